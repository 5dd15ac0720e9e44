"""What stands between a client and its server in offices and on trains, on real sockets.

Each is a TCP proxy on a free port of 127.0.0.1 that looks at the first request of a connection, and has a fault.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from tests.support.serving import stop_serving

__all__ = [
    "Fault",
    "Proxy",
    "accept_and_stay_mute",
    "buffer",
    "cut_after",
    "have_no_time",
    "pass_on",
    "refuse_upgrades",
    "strip_upgrades",
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HOP: Final = (b"upgrade:", b"connection:", b"sec-websocket-", b"keep-alive:")

Fault = Callable[["Proxy", "Head", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Head:
    """The head of a request: its lines, without the empty one."""

    def __init__(self, raw: bytes) -> None:
        self.lines = raw.rstrip(b"\r\n").split(b"\r\n")

    def __getitem__(self, name: bytes) -> bytes:
        for line in self.lines[1:]:
            if line.lower().startswith(name + b":"):
                return line.partition(b":")[2].strip()
        return b""

    @property
    def upgrades(self) -> bool:
        return self[b"upgrade"].lower() == b"websocket"

    def without(self, *names: bytes) -> list[bytes]:
        return [line for line in self.lines if not line.lower().startswith(names)]


class Proxy:
    """A proxy with a fault.

    :param port: where the server is.
    :param fault: what is done with a connection whose first request has the given head. May be changed.
    :ivar port: where clients connect to.
    :ivar seen: the first lines of requests.
    """

    def __init__(self, port: int, fault: Fault) -> None:
        self.target = port
        self.fault = fault
        self.port = 0
        self.seen: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await stop_serving(self._server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection there is."""
        for task in self._tasks:
            task.cancel()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = Head(await reader.readuntil(b"\r\n\r\n"))
                self.seen.append(head.lines[0])
                await self.fault(self, head, reader, writer)
        finally:
            writer.transport.abort()

    async def splice(
        self, lines: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on this head, and everything after it, both ways, until one end closes."""
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        back.write(b"\r\n".join(lines) + b"\r\n\r\n")
        ways = [asyncio.ensure_future(_carry(reader, back)), asyncio.ensure_future(_carry(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await _finish(writer)
        finally:
            back.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def say(writer: asyncio.StreamWriter, status: bytes, *headers: bytes) -> None:
    """Answer with nothing but a head, and close."""
    writer.write(
        b"\r\n".join((b"HTTP/1.1 " + status, *headers, b"Content-Length: 0", b"Connection: close", b"", b""))
    )
    await _finish(writer)


async def pass_on(
    proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """No fault."""
    await proxy.splice(head.lines, reader, writer)


def refuse_upgrades(status: bytes) -> Fault:
    """Answers whoever wants a WebSocket with *status*; without one, by closing."""

    async def fault(
        proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not head.upgrades:
            await proxy.splice(head.lines, reader, writer)
        elif status:
            await say(writer, status)

    return fault


async def strip_upgrades(
    proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Knows nothing of upgrades, and passes on what is left of the request."""
    lines = head.without(*_HOP) if head.upgrades else head.lines
    await proxy.splice(lines, reader, writer)


def accept_and_stay_mute(*, handshake: bool) -> Fault:
    """Takes every WebSocket, and passes nothing on; with a proper *handshake*, or not even that."""

    async def fault(
        proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not head.upgrades:
            await proxy.splice(head.lines, reader, writer)
            return
        if handshake:
            accept = base64.b64encode(hashlib.sha1(head[b"sec-websocket-key"] + _GUID).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
        while await reader.read(65536):
            pass

    return fault


async def buffer(
    proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Hands on no response before it is whole, as proxies do that scan them; takes no upgrades."""
    if head.upgrades:
        await say(writer, b"502 Bad Gateway")
        return
    body = await reader.readexactly(int(head[b"content-length"] or b"0"))
    there, back = await asyncio.open_connection("127.0.0.1", proxy.target)
    back.write(b"\r\n".join([*head.without(*_HOP), b"Connection: close"]) + b"\r\n\r\n" + body)
    gone = asyncio.ensure_future(reader.read(1))
    whole = asyncio.ensure_future(there.read())
    try:
        await asyncio.wait({gone, whole}, return_when=asyncio.FIRST_COMPLETED)
        if whole.done():
            writer.write(whole.result())
            await _finish(writer)
    finally:
        gone.cancel()
        whole.cancel()
        await asyncio.gather(gone, whole, return_exceptions=True)
        back.transport.abort()


def cut_after(seconds: float) -> Fault:
    """Cuts every connection that lives longer than that."""

    async def fault(
        proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await proxy.splice(head.lines, reader, writer)

    return fault


async def have_no_time(
    proxy: Proxy, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answers everybody with 503."""
    await say(writer, b"503 Service Unavailable", b"Retry-After: 1")
