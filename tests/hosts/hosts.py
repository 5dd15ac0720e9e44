"""Every framework on every server, as hosts of the transport suite.

A framework is a function that mounts a hub at ``/rt``; a server is one that serves an ASGI application. Three hosts
are both in one: aiohttp, a server of the websockets library, and our own.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from rtkit import Hub
from tests.hosts.examples import ALONE
from tests.hosts.servers import serve_aiohttp, serve_hypercorn, serve_uvicorn, serve_websockets
from tests.support.hosts import HOSTS as SUITE_HOSTS
from tests.support.hosts import Abilities, Serve, host_of

__all__ = ["EVERY_SERVER", "FRAMEWORKS", "HOSTS", "OWN_SERVER", "SERVERS"]


# -- frameworks


def starlette(hub: Hub[Any]) -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount("/rt", hub)], lifespan=hub.lifespan)


def fastapi(hub: Hub[Any]) -> Any:
    from fastapi import FastAPI

    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/rt", hub)
    return app


def litestar(hub: Hub[Any]) -> Any:
    from litestar import Litestar, asgi

    return Litestar(
        [asgi("/rt", is_mount=True, copy_scope=True)(hub)],
        lifespan=[hub.lifespan],
        logging_config=None,  # its own would have the whole process log, and other tests hear it
    )


def quart(hub: Hub[Any]) -> Any:
    from quart import Quart

    app = Quart("matrix")
    app.asgi_app = hub.wrap(app.asgi_app, "/rt")  # type: ignore[method-assign]
    return app


def django(hub: Hub[Any]) -> Any:
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    if not settings.configured:
        settings.configure(ROOT_URLCONF=types.ModuleType("urls"), ALLOWED_HOSTS=["*"])
    return hub.wrap(get_asgi_application(), "/rt")


def no_framework(hub: Hub[Any]) -> Any:
    return hub


FRAMEWORKS: Final[dict[str, Callable[[Hub[Any]], Any]]] = {
    ALONE: no_framework,
    "Starlette": starlette,
    "FastAPI": fastapi,
    "Litestar": litestar,
    "Quart": quart,
    "Django": django,
}

# -- servers


def _uvicorn_fast(app: Any, **options: Any) -> AbstractAsyncContextManager[int]:
    """uvicorn with our protocol class, named as on its command line."""
    return serve_uvicorn(app, ws="rtkit.hosting.uvicorn_host:Protocol", **options)


SERVERS: Final[dict[str, Serve]] = {
    "uvicorn": serve_uvicorn,
    "uvicorn with our class": _uvicorn_fast,
    "hypercorn": serve_hypercorn,
}

#: As the README's tables call it.
OWN_SERVER: Final = "rtkit's own"
#: All that clients connect to, by the names in the README.
EVERY_SERVER: Final = (OWN_SERVER, *SERVERS, "granian", "aiohttp", "websockets")

# -- both


def _aiohttp_app(hub: Hub[Any]) -> Any:
    from aiohttp import web

    app = web.Application()
    hub.add_to(app, "/rt")
    return app


HOSTS: Final = (
    *(
        host_of(
            f"{framework}, {server}",
            serve,
            build,
            "" if build is no_framework else "/rt",
            Abilities(last_words=1011 if server == "hypercorn" else 1012),
        )
        for server, serve in SERVERS.items()
        for framework, build in FRAMEWORKS.items()
    ),
    host_of("aiohttp", serve_aiohttp, _aiohttp_app, "/rt"),
    host_of("websockets", serve_websockets, no_framework, "", Abilities(drops_halves=False)),
    *(dataclasses.replace(host, name=ALONE) for host in SUITE_HOSTS if host.name == "own"),
)
