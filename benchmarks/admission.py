"""What does it cost to turn somebody away, beside letting him in (F2)?

    ./dev bench admission [--count 1000] [--rounds 5]

CPU of the server, kernel included, for each connection, on our own server and real sockets; fifty come at once.
``let in`` shows a JWT, and joins two rooms, of one of which it recovers the last ten messages; ``websocket``,
``poll`` and ``events`` are turned away from these; ``404`` is the cheapest answer there is, for comparison.
"""

import argparse
import asyncio
import base64
import os
import signal
import socket
import statistics
import sys
import time
from typing import Final

from _load.control import Server, cores
from _load.frames import client_frame, handshake
from _load.proc import environment, usage
from server import LIMITS, listener, on_own

from rtkit import Grant, History, Hub, Limits
from rtkit.primitives import Rate

CASES: Final = ("let in", "websocket", "poll", "events", "404")
_AT_ONCE: Final = 50
_SECRET: Final = b"a secret of 32 bytes, for this alone"


# -- the server ------------------------------------------------------------------------------------------


async def serve(port: int, *, closed: bool) -> None:
    """A hub that lets in everybody; or, if it is *closed*, one and no more; until SIGTERM."""
    from rtkit.ext.jwt import JwtAuthentication

    hub = Hub(
        authenticate=JwtAuthentication(_SECRET, algorithms=["HS256"]),
        limits=Limits(
            accepts=Rate(rate=1e-6, burst=1) if closed else None,
            user_connections=None,
            commands=LIMITS.commands,
        ),
    )
    hub.rooms("h:{x}", publishes=object, grant=Grant("history"), history=History(100, ttl=600))
    hub.rooms("now:{x}", publishes=object, grant=Grant())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sock = listener("127.0.0.1", port)
    async with on_own(hub, sock):
        for n in range(49):
            await hub.publish("h:a", n)
        told = await hub.publish("h:a", 49)
        assert told.position is not None
        epoch = told.position.epoch
        print(f"listening on ws://127.0.0.1:{sock.getsockname()[1]}/{epoch}, pid {os.getpid()}", flush=True)
        await stop.wait()


# -- clients -----------------------------------------------------------------------------------------------


def token() -> str:
    import jwt

    return jwt.encode({"sub": "ann", "exp": int(time.time()) + 3600}, _SECRET, algorithm="HS256")


class Client:
    """Comes to the server again and again, in one of the ways of :data:`CASES`."""

    def __init__(self, port: int, epoch: str, shown: str) -> None:
        self.port = port
        host = f"127.0.0.1:{port}"
        hello = b'{"id":1,"connect":{"token":"%b","rt":{"v":1}}}' % shown.encode()
        joins = (
            b'{"id":2,"subscribe":{"channel":"h:a","recover":true,"epoch":"%b","offset":40}}' % epoch.encode()
        )
        joins += b'\n{"id":3,"subscribe":{"channel":"now:a"}}'
        self.upgrade = handshake(host, "/ws", base64.b64encode(os.urandom(16)))
        self.hello = client_frame(hello)
        self.joins = client_frame(joins)
        head = f"Host: {host}\r\nConnection: close\r\nUser-Agent: a browser, more or less\r\n"
        length = f"Content-Length: {len(hello)}\r\n"
        self.requests = {
            "poll": f"POST /poll HTTP/1.1\r\n{head}{length}\r\n".encode() + hello,
            "events": f"GET /events?room=h:a&token={shown} HTTP/1.1\r\n{head}\r\n".encode(),
            "404": f"GET /nowhere HTTP/1.1\r\n{head}\r\n".encode(),
        }
        self.expected = {
            "let in": b'"id":3',
            "websocket": b"try again later",
            "poll": b"retry-after",
            "events": b"retry: ",
            "404": b"HTTP/1.1 404",
        }

    def open(self, case: str) -> socket.socket:
        """Say all there is to say; a WebSocket's first frames right behind its handshake."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(20)
        websocket = self.upgrade + self.hello + (self.joins if case == "let in" else b"")
        sock.sendall(self.requests.get(case, websocket))
        return sock

    def close(self, case: str, sock: socket.socket) -> None:
        """Hear what the server has to say, and go."""
        said = b""
        while self.expected[case] not in said.lower() and self.expected[case] not in said:
            data = sock.recv(65536)
            if not data:
                raise SystemExit(f"{case}: the server said {said!r}")
            said += data
        if case == "websocket":
            sock.sendall(
                client_frame((4001).to_bytes(2, "big"), 8)
            )  # as the protocol says; the server hangs up
        sock.close()

    def come(self, case: str, count: int) -> None:
        """So many times, some at once."""
        for first in range(0, count, _AT_ONCE):
            opened = [self.open(case) for _ in range(min(_AT_ONCE, count - first))]
            for sock in opened:
                self.close(case, sock)


def measure(case: str, server: Server, count: int, shown: str) -> float:
    """Seconds of CPU for each connection."""
    client = Client(server.port, server.said.split(",")[0].rpartition("/")[2], shown)
    client.come(case, 100)
    before = usage(server.pid)
    client.come(case, count)
    time.sleep(0.3)  # until it has seen the last one go
    return usage(server.pid).since(before).total / count


def main(args: argparse.Namespace) -> None:
    print(environment())
    core, own = cores()
    os.sched_setaffinity(0, {own})
    shown = token()
    found: dict[str, list[float]] = {case: [] for case in CASES}
    program = "admission.py"
    with (
        Server.running(program, core=core) as opened,
        Server.running(program, "--closed", core=core) as closed,
    ):
        first = socket.create_connection(("127.0.0.1", closed.port))
        first.sendall(handshake(f"127.0.0.1:{closed.port}", "/ws", base64.b64encode(os.urandom(16))))
        first.recv(65536)  # takes the one place there is
        for _ in range(args.rounds):
            for case in CASES:
                server = opened if case == "let in" else closed
                found[case].append(measure(case, server, args.count, shown))
        first.close()
    whole = statistics.median(found["let in"])
    for case, seconds in found.items():
        median = statistics.median(seconds)
        low, high = min(seconds) * 1e6, max(seconds) * 1e6
        print(
            f"{case:>10}: {median * 1e6:6.0f} µs ({low:.0f} to {high:.0f}), {median / whole:5.2f} of letting in"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--closed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port is not None:
        asyncio.run(serve(options.port, closed=options.closed))
        sys.exit()
    main(options)
