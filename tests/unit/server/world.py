"""A server on a real port and a clock that the test moves; clients are bare sockets."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import Any

from rtkit.server import Server, ServerLimits
from rtkit.testing.clock import ManualClock
from tests.unit.hosting.sockets import Peer
from tests.unit.server.exchange import HttpAcceptor

__all__ = ["KEY", "Answer", "Client", "ServerWorld", "get", "in_thread", "post", "shake"]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def get(path: str = "/rt/ready", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request as a client sends it."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def post(path: str = "/rt/send", body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    """A request with a body."""
    return get(path, f"Content-Length: {len(body)}", *headers, version=version, method="POST") + body


def shake(
    path: str = "/rt/ws", *headers: str, without: str = "", key: str = KEY, version: str = "13"
) -> bytes:
    """A WebSocket handshake; *without* one of its headers."""
    usual = {
        "upgrade": "Upgrade: websocket",
        "connection": "Connection: Upgrade",
        "key": f"Sec-WebSocket-Key: {key}",
        "version": f"Sec-WebSocket-Version: {version}",
    }
    usual.pop(without, None)
    return get(path, *usual.values(), *headers)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Client(Peer):
    """A TCP or Unix connection to the server."""

    def answers(self, *, head: bool = False) -> list[Answer]:
        """The whole answers that have come; what is left of the bytes stays in `heard`."""
        found = list[Answer]()
        self.listen()
        while b"\r\n\r\n" in self.heard:
            top, _, rest = self.heard.partition(b"\r\n\r\n")
            first, *lines = top.decode("latin-1").split("\r\n")
            match = re.fullmatch(r"HTTP/1\.1 (\d\d\d) [A-Z][A-Za-z -]*", first)
            assert match, first
            pairs = [line.split(": ", 1) for line in lines]
            headers: dict[str, str] = {}
            for name, value in ((name.lower(), value) for name, value in pairs):
                # h11 writes a line for each word of this one, which is as good as one line for all.
                assert name not in headers or name == "connection", f"a header twice: {lines}"
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            status = int(match[1])
            size = 0 if head or status in (101, 204, 304) else int(headers["content-length"])
            if len(rest) < size:
                break
            found.append(Answer(status, headers, rest[:size]))
            self.heard = rest[size:]
            if status == 101:
                break
        return found

    def answer(self, *, head: bool = False) -> Answer:
        """The only answer that has come."""
        (answer,) = self.answers(head=head)
        return answer

    def begun(self) -> Answer:
        """The head of a response that goes on; what is there of its body stays in `heard`."""
        self.listen()
        top, _, self.heard = self.heard.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        headers = dict(line.split(": ", 1) for line in lines)
        return Answer(int(first[9:12]), {name.lower(): value for name, value in headers.items()}, b"")

    def chunks(self) -> list[bytes]:
        """The whole chunks that have come; the last one is empty."""
        found = list[bytes]()
        self.listen()
        while b"\r\n" in self.heard:
            size, _, rest = self.heard.partition(b"\r\n")
            end = int(size, 16)
            if len(rest) < end + 2:
                break
            assert rest[end : end + 2] == b"\r\n"
            found.append(rest[:end])
            self.heard = rest[end + 2 :]
        return found

    @property
    def gone(self) -> bool:
        """Whether the server has closed its end."""
        self.listen()
        return self.eof or self.reset


async def in_thread(client: Client, data: bytes) -> None:
    """Say more than the kernel takes at once."""
    client.sock.setblocking(True)
    await asyncio.to_thread(client.sock.sendall, data)
    client.sock.setblocking(False)


class ServerWorld:
    """A server before an acceptor that does what the test says."""

    def __init__(self, *, echo: bool = True, limits: dict[str, Any] | None = None, **options: Any) -> None:
        self.clock = ManualClock()
        self.acceptor = HttpAcceptor(echo=echo)
        self.options = options
        self.limits = ServerLimits(**(limits or {}))
        self.server = Server(self.acceptor, limits=self.limits, clock=self.clock, **options)
        self.clients: list[Client] = []

    async def start(self, **where: Any) -> ServerWorld:
        options: dict[str, Any] = {"port": 0, **where}
        await self.server.start(**options)
        return self

    def connect(self) -> Client:
        """A connection; the server accepts it in the loop's next turns."""
        address = self.server.addresses[0]
        sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        sock.connect(address)
        client = Client(sock)
        self.clients.append(client)
        return client

    async def open(self) -> Client:
        client = self.connect()
        await self.settle()
        return client

    async def ask(self, data: bytes) -> Client:
        """A connection on which *data* was said."""
        client = await self.open()
        client.say(data)
        await self.settle()
        return client

    async def upgrade(self, *headers: str) -> Client:
        """A WebSocket."""
        client = await self.ask(shake("/rt/ws", *headers))
        answer = client.answer()
        assert answer.status == 101, answer
        assert answer.headers["sec-websocket-accept"] == ACCEPT
        return client

    async def others_are_served(self) -> None:
        client = await self.ask(get())
        assert client.answer().status == 204
        client.sock.close()
        await self.settle()

    async def settle(self) -> None:
        await self.clock.settle()

    async def aclose(self) -> None:
        for client in self.clients:
            client.sock.close()
        await self.settle()
        assert self.server.statistics().http == 0
        assert self.server.statistics().streams == 0
        assert self.server.statistics().websockets == 0
        await self.server.aclose()
        assert self.server.statistics().tasks == 0
        assert self.clock.timers == 0
        assert not len(self.server._site.deadlines)
