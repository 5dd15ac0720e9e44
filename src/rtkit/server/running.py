"""Serving a hub from its start to its end."""

from __future__ import annotations

import os
import socket
import ssl as _ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from ..clock import Clock
from ..hub import Hub
from .limits import ServerLimits
from .server import Server
from .signals import Signals
from .site import Api

__all__ = ["listen", "serve"]


@asynccontextmanager
async def listen(
    hub: Hub[Any],
    host: str | None = "127.0.0.1",
    port: int = 0,
    *,
    path: str = "/rt",
    api: Api | None = None,
    api_path: str = "/api",
    static: str | os.PathLike[str] | None = None,
    ssl: _ssl.SSLContext | None = None,
    deflate: bool = False,
    unix: str | os.PathLike[str] | None = None,
    sock: socket.socket | None = None,
    limits: ServerLimits | None = None,
    clock: Clock | None = None,
) -> AsyncGenerator[Server]:
    """Serve *hub* while the block runs: for tests, and programs that do more than serving.

    ::

        async with listen(hub) as server:
            async with connect(server.url) as client:
                ...

    The hub is started before, and closed after, whoever else has started it: leaving the block sends every client
    away, told when to come back. No signal is caught.

    The parameters are those of :func:`serve`, with a free port unless one is named.

    Cancellation: as leaving the block; cancelled again while closing, it drops every connection.

    :raises OSError: when it cannot listen there.
    """
    server = Server(
        hub,
        path=path,
        api=api,
        api_path=api_path,
        static=static,
        ssl=ssl,
        deflate=deflate,
        limits=limits,
        clock=clock or hub.clock,
        ready=hub._readiness,
    )
    async with _running(hub, server, host, port, unix, sock):
        yield server


async def serve(
    hub: Hub[Any],
    host: str | None = "127.0.0.1",
    port: int = 8000,
    *,
    path: str = "/rt",
    api: Api | None = None,
    api_path: str = "/api",
    static: str | os.PathLike[str] | None = None,
    ssl: _ssl.SSLContext | None = None,
    deflate: bool = False,
    unix: str | os.PathLike[str] | None = None,
    sock: socket.socket | None = None,
    limits: ServerLimits | None = None,
) -> None:
    """Start *hub* and serve it until cancelled, or until the process is told to end.

    ::

        asyncio.run(rtkit.serve(hub, port=8000))

    At the first SIGTERM or SIGINT it drains: it takes no new client, sends every client away with the time to come
    back, has other nodes take their sessions up, gives handlers and requests their time to end, and returns; see
    :meth:`.Hub.drain`. The second drops everything at once.

    :param host: a name or an address; None for every address of the machine.
    :param port: 0 for a free one, which is logged.
    :param path: where the hub is mounted: its WebSocket is at ``{path}/ws``. Empty for the root.
    :param api: the server HTTP API, an :class:`~rtkit.ext.http_api.HttpApi`; none unless given.
    :param api_path: where that is mounted: it is asked to publish at ``{api_path}/publish``.
    :param static: a folder whose files are served beside the hub, for demos.
    :param ssl: to speak TLS.
    :param deflate: compress messages for the members of a room, once for all of them, where clients offer
        permessage-deflate (T9). It saves about a third of small messages, more of large ones, and costs some 30 µs
        a message, however many members. Leave it off where a secret and what others write may be in one message.
    :param unix: listen on a Unix socket at this path instead of a port.
    :param sock: listen on this socket instead; it is closed in the end.
    :param limits: see :class:`~rtkit.server.ServerLimits`.
    :raises OSError: when it cannot listen there; the message says why.
    :raises UsageError: for a path or a folder that cannot be served.
    """
    server = Server(
        hub,
        path=path,
        api=api,
        api_path=api_path,
        static=static,
        ssl=ssl,
        deflate=deflate,
        limits=limits,
        clock=hub.clock,
        ready=hub._readiness,
    )
    with Signals(server.abort) as signals:
        async with _running(hub, server, host, port, unix, sock):
            await signals.wait()


@asynccontextmanager
async def _running(
    hub: Hub[Any],
    server: Server,
    host: str | None,
    port: int,
    unix: str | os.PathLike[str] | None,
    sock: socket.socket | None,
) -> AsyncGenerator[None]:
    try:
        await hub.start()
        await server.start(host, port, unix=unix, sock=sock)
        yield
    finally:
        try:
            # Still listening: who is here polls, and sends, until it is sent away; who is new is told to come back.
            await hub.aclose()
        except BaseException:
            server.abort()
            raise
        finally:
            await server.aclose()
