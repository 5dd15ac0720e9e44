"""A hub that answers plain HTTP as the test says, behind a server on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rtkit.transports import Answer, HttpRequest, Response, Stream, Streaming, StreamPipe, plain
from tests.unit.hosting.scripted import Acceptor

__all__ = ["HttpAcceptor", "Told", "event", "ok"]


def ok(body: bytes = b"ok") -> Response:
    return Response(200, (("content-type", "text/plain"), ("content-length", str(len(body)))), body)


def event(units: Sequence[bytes]) -> bytes:
    """A form, as transports have them."""
    return b"data: " + b"\ndata: ".join(units) + b"\n\n"


class Told:
    """What a stream is told, and its pipe."""

    def __init__(self, pipe: StreamPipe) -> None:
        self.pipe = pipe
        self.log: list[str] = []
        self.losses: list[tuple[int, str]] = []
        self.on_writable: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    def writable(self) -> None:
        self.log.append("writable")
        self.on_writable()

    def lost(self, code: int, reason: str) -> None:
        self.log.append("lost")
        self.losses.append((code, reason))
        self.on_lost()


class HttpAcceptor(Acceptor):
    """Answers `send` at once, lets `poll` wait, and streams `sse`, unless told otherwise.

    :ivar gate: closed, an answer takes its time.
    """

    def __init__(self, *, echo: bool = False) -> None:
        super().__init__(echo=echo)
        self.requests: list[HttpRequest] = []
        self.waits: list[asyncio.Future[Response]] = []
        self.streams: list[Told] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.on_request: Callable[[HttpRequest], Answer | None] = lambda _: None
        self.on_start: Callable[[Told], object] = lambda told: told.pipe.write(b":\n\n")

    async def answer(self, request: HttpRequest) -> Answer:
        self.requests.append(request)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        found = self.on_request(request)
        if found is not None:
            return found
        match request.endpoint:
            case "send":
                return Response(204, (("cache-control", "no-store"),))
            case "poll":
                return self.wait()
            case "sse":
                return Streaming((("content-type", "text/event-stream"),), self.start)
            case _:
                return plain(404, "nothing\n")

    def wait(self) -> asyncio.Future[Response]:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.waits.append(future)
        return future

    def start(self, pipe: StreamPipe) -> Stream:
        told = Told(pipe)
        self.streams.append(told)
        self.on_start(told)
        return told
