"""A server, a hub and a clock that do what the test says, to try the ASGI host with."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

from rtkit.hosting.asgi import AsgiHost
from rtkit.testing.clock import ManualClock
from rtkit.transports import (
    Answer,
    Driver,
    Handshake,
    HttpRequest,
    Refused,
    Streaming,
    StreamPipe,
    Transport,
    plain,
)

EXTENSIONS: dict[str, Any] = {"websocket.http.response": {}}
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


class Echo:
    """A driver that notes what happens to it, and echoes if told to."""

    def __init__(self, transport: Transport, *, echo: bool) -> None:
        self.transport = transport
        self.echo = echo
        self.frames: list[bytes] = []
        self.log: list[str] = []
        self.losses: list[tuple[int, str]] = []
        self.on_received: Callable[[], object] = lambda: None
        self.on_writable: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    def received(self, frame: bytes) -> None:
        if frame == b"raise":
            raise ZeroDivisionError
        self.frames.append(frame)
        self.on_received()
        if self.echo:
            self.transport.send([frame])

    def writable(self) -> None:
        self.log.append("writable")
        self.on_writable()

    def lost(self, code: int, reason: str) -> None:
        self.log.append("lost")
        self.losses.append((code, reason))
        self.on_lost()


class Goes:
    """A stream that notes what happens to it."""

    def __init__(self) -> None:
        self.pipe: StreamPipe | None = None
        self.log: list[str] = []
        self.losses: list[tuple[int, str]] = []
        self.on_start: Callable[[], object] = lambda: None
        self.on_writable: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    @property
    def answer(self) -> Streaming:
        return Streaming((("content-type", "text/event-stream"),), self._start)

    def _start(self, pipe: StreamPipe) -> Goes:
        assert self.pipe is None, "started twice"
        self.pipe = pipe
        self.on_start()
        return self

    def write(self, data: bytes) -> None:
        assert self.pipe is not None
        self.pipe.write(data)

    def end(self) -> None:
        assert self.pipe is not None
        self.pipe.end()

    @property
    def buffered(self) -> int:
        assert self.pipe is not None
        return self.pipe.buffered

    def writable(self) -> None:
        assert not self.losses
        self.log.append("writable")
        self.on_writable()

    def lost(self, code: int, reason: str) -> None:
        self.log.append("lost")
        self.losses.append((code, reason))
        self.on_lost()


async def welcome(request: HttpRequest) -> Answer:
    return plain(200, f"{request.method} {request.endpoint} {len(request.body)}")


class Acceptor:
    """Admits everybody, unless told otherwise."""

    max_frame = 1000
    max_connect = 1000

    def __init__(self, *, echo: bool = False) -> None:
        self.echo = echo
        self.handshakes: list[Handshake] = []
        self.drivers: list[Echo] = []
        self.started = 0
        self.refuse: Refused | None = None
        self.fail_start: Exception | None = None
        self.on_connect: Callable[[Echo], object] = lambda _: None
        self.requests: list[HttpRequest] = []
        self.on_answer: Callable[[HttpRequest], Awaitable[Answer]] = welcome
        self.away: list[str] = []

    async def ensure_running(self) -> None:
        if self.fail_start is not None:
            raise self.fail_start
        self.started += 1

    def admit(self, handshake: Handshake) -> None:
        self.handshakes.append(handshake)
        if self.refuse is not None:
            raise self.refuse

    def connect(self, transport: Transport, handshake: Handshake) -> Driver:
        driver = Echo(transport, echo=self.echo)
        self.on_connect(driver)
        self.drivers.append(driver)
        return driver

    def turned_away(self, why: str) -> None:
        self.away.append(why)

    async def answer(self, request: HttpRequest) -> Answer:
        self.requests.append(request)
        return await self.on_answer(request)


class Server:
    """One ASGI call: the test is the server. `gate` closed makes send() wait, `broken` makes it raise."""

    def __init__(self, host: AsgiHost, scope: dict[str, Any]) -> None:
        self.host = host
        self.scope = scope
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[MutableMapping[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: Exception | None = None
        self.receiving = 0
        self.context: list[Any] = []
        self.task: asyncio.Task[None] | None = None

    async def receive(self) -> MutableMapping[str, Any]:
        self.receiving += 1
        return await self.inbox.get()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.context.append(WHO.get())
        await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        self.sent.append(message)

    def start(self) -> asyncio.Task[None]:
        self.task = asyncio.create_task(self.host(self.scope, self.receive, self.send))
        return self.task

    def say(self, kind: str, **fields: Any) -> None:
        self.inbox.put_nowait({"type": f"{self.scope['type']}.{kind}", **fields})

    @property
    def texts(self) -> list[str]:
        return [m["text"] for m in self.sent if m["type"] == "websocket.send"]

    @property
    def status(self) -> int:
        """Of the answer to a plain request."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        """What was sent of it; ``ended`` tells whether that is all."""
        return b"".join(m["body"] for m in self.sent[1:])

    @property
    def ended(self) -> bool:
        return not self.sent[-1].get("more_body", False)


@contextlib.asynccontextmanager
async def nothing() -> AsyncGenerator[None]:
    yield


def ws_scope(path: str = "/ws", **more: Any) -> dict[str, Any]:
    return {"type": "websocket", "path": path, "root_path": "", "headers": [], "subprotocols": [], **more}


def http_scope(method: str = "GET", path: str = "/poll", **more: Any) -> dict[str, Any]:
    headers = [(name.encode(), value.encode()) for name, value in more.pop("headers", ())]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": headers}
    return {**scope, "http_version": "1.1", **more}


class World:
    """A host on a clock that the test moves, and what was connected to it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.acceptor = Acceptor()
        self.host = AsgiHost(self.acceptor, lifespan=nothing, clock=self.clock, close_timeout=5)

    async def open(self, **scope: Any) -> tuple[Server, Echo]:
        server = Server(self.host, ws_scope(**scope))
        server.say("connect")
        _ = server.start()
        await self.clock.settle()
        assert server.sent[0]["type"] == "websocket.accept"
        return server, self.acceptor.drivers[-1]

    async def ask(self, method: str = "GET", path: str = "/poll", body: bytes = b"", **scope: Any) -> Server:
        """A plain request with its body, as far as it got."""
        server = Server(self.host, http_scope(method, path, **scope))
        server.say("request", body=body)
        _ = server.start()
        await self.clock.settle()
        return server

    async def stream(self) -> tuple[Server, Goes]:
        """A response that goes on."""
        goes = Goes()

        async def answer(_: HttpRequest) -> Answer:
            return goes.answer

        self.acceptor.on_answer = answer
        server = await self.ask("POST", "/sse")
        assert server.sent[0]["type"] == "http.response.start"
        return server, goes

    async def refused(self, **scope: Any) -> list[MutableMapping[str, Any]]:
        server = Server(self.host, ws_scope(**scope))
        server.say("connect")
        await server.start()
        return server.sent


async def done(task: asyncio.Task[None] | None) -> None:
    assert task is not None
    await asyncio.wait_for(task, 5)
