"""The hub that is measured: bare, on our own server, and open to anybody.

    ./dev bench server --port 8000 [--loop asyncio|uvloop] [--host own|uvicorn]

It speaks the base wire at ``/connection/websocket`` and at ``/ws``. Whoever connects is ``anonymous`` and may join
and publish to any channel, as any JSON; there are no limits by address. Channels whose name begins with ``h:`` keep
history. The procedure ``echo`` returns what it was given. Limits that a load generator would hit are lifted and
printed; everything else is what rtkit does by default, heartbeats included.

It prints ``listening on …`` when it takes connections, and ends on SIGTERM or SIGINT.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import fields
from typing import Any

import msgspec

from rtkit import Context, Grant, History, Hub, Limits, anonymous
from rtkit.primitives import Rate

#: What a load generator on one connection would run into otherwise. A bucket is never "off": these are numbers
#: that nobody reaches.
LIMITS = Limits(
    commands=Rate(rate=1_000_000, burst=1_000_000),
    inbound=Rate(rate=1 << 34, burst=1 << 34),
    max_rooms=10_000,
    max_connect=1024 * 1024,
    accepts=None,
    handshakes=None,
)
#: Of each channel that begins with ``h:``.
HISTORY = History(10_000, ttl=600)


def make_hub() -> Hub[None]:
    """Any channel without history, any ``h:`` channel with, and ``echo``."""
    hub = Hub(authenticate=anonymous, limits=LIMITS)
    everything = Grant("publish", "signal", "presence", "history")
    hub.rooms("{channel*}", publishes=object, grant=everything)
    hub.rooms("h:{channel*}", publishes=object, grant=everything, history=HISTORY)

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[None, None], params: object) -> object:
        return params

    return hub


def raise_open_files() -> int:
    """As many open files as the system lets us have; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe(limits: Limits) -> str:
    """The limits on one line, as they are."""
    values = [f"{each.name}={getattr(limits, each.name)!r}" for each in fields(limits)]
    return ", ".join(values)


def listener(address: str, port: int) -> socket.socket:
    """A socket that listens with as long a queue as the system allows: thousands may connect at once."""
    sock = socket.create_server((address, port), backlog=65535, reuse_port=False)
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def on_uvicorn(hub: Hub[Any], sock: socket.socket) -> AsyncGenerator[None]:
    """The same hub under uvicorn, for comparison; compression off, as on our own server."""
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    config = uvicorn.Config(
        hub,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the hub beats by itself
        timeout_graceful_shutdown=2,
    )
    server = Quiet(config)
    async with hub:
        running = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.wait({running}, timeout=0.01)
            if running.done():
                await running
        try:
            yield
        finally:
            await hub.aclose()  # first, so that members are told when to come back
            server.should_exit = True
            await running


@contextlib.asynccontextmanager
async def on_own(hub: Hub[Any], sock: socket.socket) -> AsyncGenerator[None]:
    """The hub on rtkit's own server."""
    from rtkit.server import ServerLimits, listen

    limits = ServerLimits(connections=1_000_000)  # the open files decide
    async with listen(hub, sock=sock, path="", limits=limits):
        yield


async def main(args: argparse.Namespace) -> None:
    hub = make_hub()
    sock = listener(args.address, args.port)
    files = raise_open_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = on_uvicorn if args.host == "uvicorn" else on_own
    async with host(hub, sock):
        name, port = sock.getsockname()[:2]
        print(f"limits: {describe(LIMITS)}; history of h:… {HISTORY!r}; open files {files}")
        print(
            f"listening on ws://{name}:{port}/connection/websocket and /ws, pid {os.getpid()}, host {args.host}, "
            f"loop {type(loop).__module__}, msgspec {msgspec.__version__}",
            flush=True,
        )
        await stop.wait()


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run *main* on the event loop of that name."""
    if loop == "asyncio":
        asyncio.run(main)
        return
    try:
        import uvloop  # type: ignore[import-not-found, unused-ignore]  # pyright: ignore[reportMissingImports]
    except ImportError:
        main.close()
        sys.exit("--loop uvloop: uvloop is not installed; pip install uvloop, or leave the option out")
    uvloop.run(main)  # pyright: ignore[reportUnknownMemberType]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--host", choices=("own", "uvicorn"), default="own")
    parsed = parser.parse_args()
    run(parsed.loop, main(parsed))
