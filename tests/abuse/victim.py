"""A hub in a process of its own, served by our server or by uvicorn: what the attacks are made on.

Run as a program: ``python -m tests.abuse.victim own|hasty|uvicorn`` prints its port, and then serves until its
input ends. Its deadlines are a few seconds, so that an attack can wait for them; its sizes are the defaults, but for
how many are let in at once: who is turned away at the door cannot do anything, and tests of admission tell of that.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import sys
import time
from contextlib import suppress
from typing import Any

import uvicorn

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.primitives import Heartbeat
from rtkit.server import ServerLimits, listen

#: Seconds that a request's head, its body, and saying who one is may take.
HEADER_TIME = BODY_TIME = 2.0
AUTH_TIMEOUT = 4.0
#: Seconds of a handler that waits for something.
WAITS = 1.0
#: Seconds of a handler that blocks the loop, and a heartbeat that is less patient.
BLOCKED = 1.2
HASTY = Heartbeat(interval=0.4, timeout=0.4)


async def by_token(credentials: Credentials) -> Identity[None]:
    """The token is the user's name; none is refused."""
    if not credentials.token:
        raise Reject("show a token", code=101)
    return Identity(credentials.token)


def make_hub(*, heartbeat: Heartbeat | None = None) -> Hub[None]:
    """A hub with the default limits, but for time and the door."""
    limits: dict[str, Any] = {"auth_timeout": AUTH_TIMEOUT, "grace": None, "accepts": None}
    if heartbeat is not None:
        limits["heartbeat"] = heartbeat
    hub: Hub[None] = Hub(authenticate=by_token, limits=Limits(**limits))
    grant = Grant("publish", "signal", "history")
    waiting = 0
    hub.rooms("log:{x}", publishes=object, grant=grant, history=History(100, ttl=60))
    hub.rooms("now:{x}", publishes=object, grant=grant)

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[None, Any], data: Any) -> Any:
        return data

    @hub.rpc(object, name="block")
    async def block(ctx: Context[None, Any], data: Any) -> Any:
        time.sleep(BLOCKED)  # noqa: ASYNC251 - what nobody should do
        return data

    @hub.rpc(object, name="wait")
    async def wait(ctx: Context[None, Any], data: Any) -> None:
        nonlocal waiting
        waiting += 1
        try:
            await asyncio.sleep(WAITS)
        finally:
            waiting -= 1

    @hub.rpc(object, name="tidy")
    async def tidy(ctx: Context[None, Any], data: Any) -> None:
        """Give back what is free, so that what somebody else takes does not find its place there unseen."""
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc has it
            ctypes.CDLL(None).malloc_trim(0)

    @hub.rpc(object, name="totals")
    async def totals(ctx: Context[None, Any], data: Any) -> Any:
        return dict(hub.statistics().totals)

    @hub.rpc(object, name="count")
    async def count(ctx: Context[None, Any], data: Any) -> Any:
        now = hub.statistics()
        found = {"connections": now.connections, "sessions": now.sessions, "rooms": now.rooms}
        return {**found, "waiting": waiting}

    return hub


async def _until_told() -> None:
    """Until the standard input ends, which it does with whoever has started us."""
    await asyncio.to_thread(sys.stdin.read)


async def serve_own(*, heartbeat: Heartbeat | None = None) -> None:
    """Our own server, which compresses for who offers it."""
    limits = ServerLimits(header_time=HEADER_TIME, body_time=BODY_TIME)
    async with listen(make_hub(heartbeat=heartbeat), limits=limits, deflate=True) as server:
        print(server.port, flush=True)  # noqa: T201
        await _until_told()


async def serve_uvicorn() -> None:
    """uvicorn, as its command line starts it, but for its logs."""
    server = uvicorn.Server(
        uvicorn.Config(make_hub(), port=0, log_config=None, access_log=False, lifespan="on")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await _until_told()
    server.should_exit = True
    await serving


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # uvicorn logs a traceback for much of what comes
    match sys.argv[1]:
        case "own":
            asyncio.run(serve_own())
        case "hasty":
            asyncio.run(serve_own(heartbeat=HASTY))
        case _:
            asyncio.run(serve_uvicorn())
