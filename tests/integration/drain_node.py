"""A node that is going to be drained, in a process of its own, under a server of one's choice.

``python -m tests.integration.drain_node SERVER PORT``, with the broker's URL in the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import Mount

from rtkit import Grant, History, Hub, Identity, Presence
from rtkit.ext.http_api import HttpApi
from rtkit.server import serve

KEY: Final = "a-key-for-the-tests-alone"


async def authenticate(credentials: Any) -> Identity[None]:
    """Everybody is who they say."""
    return Identity(credentials.token)


def make_hub() -> Hub[None]:
    hub: Hub[None] = Hub(broker=os.environ["DRAIN_BROKER"], authenticate=authenticate)
    hub.rooms("log:{x}", publishes=object, history=History(1000, ttl=600), grant=Grant("publish", "history"))
    hub.rooms("team:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
    return hub


def make_app() -> Starlette:
    """For granian, which wants a factory."""
    hub = make_hub()
    return Starlette(routes=[Mount("/rt", hub), Mount("/api", HttpApi(hub, key=KEY))], lifespan=hub.lifespan)


def main(server: str, port: str) -> None:
    if server == "own":
        asyncio.run(serve(make_hub(), port=int(port)))
    elif server == "uvicorn":
        import uvicorn

        uvicorn.run(make_app(), port=int(port), log_level="warning", ws="rtkit.hosting.uvicorn_host:Protocol")
    elif server == "hypercorn":
        import hypercorn.asyncio
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"127.0.0.1:{port}"]
        asyncio.run(hypercorn.asyncio.serve(make_app(), config))  # type: ignore[arg-type]
    else:
        from granian.constants import Interfaces
        from granian.server import Server

        target = "tests.integration.drain_node:make_app"
        Server(
            target,
            port=int(port),
            interface=Interfaces.ASGI,
            factory=True,
            websockets=True,
            backpressure=16_384,  # connections, of which streams and polls have two; else there are 1,024
            workers_kill_timeout=10,
        ).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
