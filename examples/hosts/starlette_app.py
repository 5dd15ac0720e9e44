"""A hub in Starlette. Run: `uvicorn --app-dir examples/hosts starlette_app:app`."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from rtkit import Grant, History, Hub, anonymous

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))


async def announce(request: Request) -> JSONResponse:
    await hub.publish("lobby", await request.json())
    return JSONResponse("published")


app = Starlette(
    routes=[Mount("/rt", hub), Route("/announce", announce, methods=["POST"])],
    lifespan=hub.lifespan,
)
