"""The peer of ``versus_websockets.py`` and ``idle.py``: the least that fans out with the websockets library.

``websockets.serve`` without compression and ``websockets.broadcast``, with everything else as it is by default. What
one client sends is broadcast as it came to all who connected at ``/member``: nothing is parsed, stored, permitted,
answered or bounded here, which is all in the peer's favour.

    python benchmarks/_peer_websockets.py --port 8001 [--loop asyncio|uvloop]
"""

import argparse
import asyncio
import os
import signal
import socket
from importlib import metadata
from typing import Any

from server import raise_open_files, run
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosedError

MEMBERS: set[ServerConnection] = set()


async def handler(connection: ServerConnection) -> None:
    assert connection.request is not None
    if connection.request.path == "/member":
        MEMBERS.add(connection)
        try:
            # So that the load client knows when it is in; rtkit's client is told by the reply to subscribe.
            await connection.send('{"id":2}')
            await connection.wait_closed()
        finally:
            MEMBERS.discard(connection)
        return
    await connection.send('{"id":2}')
    try:
        async for message in connection:
            broadcast(MEMBERS, message)
    except ConnectionClosedError:
        pass  # a load process that has ended says no goodbye


async def main(args: argparse.Namespace) -> None:
    raise_open_files()
    sock = socket.create_server(("127.0.0.1", args.port), backlog=65535)
    stop = asyncio.Event()
    loop: Any = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(handler, sock=sock, compression=None):
        print(
            f"listening on ws://127.0.0.1:{sock.getsockname()[1]}/member, pid {os.getpid()}, "
            f"websockets {metadata.version('websockets')}, loop {type(loop).__module__}",
            flush=True,
        )
        await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parsed = parser.parse_args()
    run(parsed.loop, main(parsed))
