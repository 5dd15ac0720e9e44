"""Real sockets for the tests of attach: both servers, clients that behave and clients that do not."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve

from tests.support.servers import serve_asgi

Kind = Literal["websockets", "starlette"]
Handler = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def serving(kind: Kind, handler: Handler) -> AsyncIterator[int]:
    """*handler* on a free port; it gets the open socket of the framework. Yields the port."""
    if kind == "websockets":
        async with serve(handler, "127.0.0.1", 0, ping_interval=None, close_timeout=1, max_queue=2) as server:
            yield next(iter(server.sockets)).getsockname()[1]
        return

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await handler(websocket)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    async with serve_asgi(app, ws_ping_interval=None, ws_per_message_deflate=False) as port:
        yield port


def client(port: int, **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{port}/", ping_interval=None, compression=None, proxy=None, **options)


async def eventually(predicate: Callable[[], object]) -> None:
    """Let the loop run, I/O included, until *predicate* holds; 10 seconds at the most."""
    async with asyncio.timeout(10):
        while not predicate():  # noqa: ASYNC110
            await asyncio.sleep(0)


def vanish(conn: ClientConnection) -> None:
    """The client's machine is gone: no close frame, just a reset."""
    conn.transport.abort()


class RawClient:
    """Speaks just enough to open a WebSocket, then does nothing: no pong, no close, no reading."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def read_close_code(self) -> int:
        """Read everything; the code of the close frame, or 1006 if there was none."""
        loop = asyncio.get_running_loop()
        data = b""
        try:
            while piece := await loop.sock_recv(self.sock, 1 << 20):
                data += piece
        except ConnectionError:
            pass  # a reset may follow the close frame
        code = 1006
        while data:
            length, head = data[1] & 127, 2
            if length == 126:
                length, head = int.from_bytes(data[2:4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(data[2:10], "big"), 10
            if data[0] & 15 == 8:
                code = int.from_bytes(data[head : head + 2], "big")
            data = data[head + length :]
        return code


@asynccontextmanager
async def raw_client(port: int, *, receive_buffer: int = 4096) -> AsyncIterator[RawClient]:
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(sock, request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += await loop.sock_recv(sock, 1)
        assert b" 101 " in head
        yield RawClient(sock)
    finally:
        sock.close()
