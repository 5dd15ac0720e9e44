"""A hub in Quart. Run: `uvicorn --app-dir examples/hosts quart_app:app`."""

from quart import Quart, request

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))

app = Quart(__name__)
app.asgi_app = hub.wrap(app.asgi_app, "/rt")  # type: ignore[method-assign]


@app.post("/announce")
async def announce() -> str:
    await hub.publish("lobby", await request.get_json())
    return "published"
