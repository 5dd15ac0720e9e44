"""A hub in aiohttp. Run: `python examples/hosts/aiohttp_app.py`."""

from aiohttp import web

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))


async def announce(request: web.Request) -> web.Response:
    await hub.publish("lobby", await request.json())
    return web.Response(text="published")


app = web.Application()
hub.add_to(app, "/rt")
app.router.add_post("/announce", announce)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8000)
