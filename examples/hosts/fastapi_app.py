"""A hub in FastAPI. Run: `uvicorn --app-dir examples/hosts fastapi_app:app`."""

from typing import Annotated, Any

from fastapi import Body, FastAPI

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))

app = FastAPI(lifespan=hub.lifespan)
app.mount("/rt", hub)


@app.post("/announce")
async def announce(news: Annotated[Any, Body()]) -> str:
    await hub.publish("lobby", news)
    return "published"
