"""A hub in Litestar. Run: `uvicorn --app-dir examples/hosts litestar_app:app`."""

from typing import Any

from litestar import Litestar, Request, asgi, post

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))


@post("/announce")
async def announce(request: Request[Any, Any, Any]) -> str:
    await hub.publish("lobby", await request.json())
    return "published"


app = Litestar(
    [asgi("/rt", is_mount=True, copy_scope=True)(hub), announce],
    lifespan=[hub.lifespan],
)
