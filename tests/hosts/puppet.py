"""An ASGI application of AsgiHost alone, whose answers a test pulls by requests: it may be in another process.

- ``POST send`` says how long the body was;
- ``POST sse`` is a stream, ``GET poll`` an answer that comes later;
- ``POST emulation`` with ``{"do": …}`` moves all of them, and says what they are doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from rtkit.hosting.asgi import AsgiHost
from rtkit.transports import (
    Answer,
    Driver,
    Handshake,
    HttpRequest,
    Response,
    Streaming,
    StreamPipe,
    Transport,
    plain,
)

MAX_BODY = 1_000_000


class Stream:
    """What became of one stream."""

    def __init__(self, headers: Any, first: bytes) -> None:
        self.answer = Streaming(headers, self._start)
        self.writable_count = 0
        self.losses: list[Any] = []
        self._first = first
        self._pipe: StreamPipe | None = None

    @property
    def pipe(self) -> StreamPipe:
        assert self._pipe is not None
        return self._pipe

    def _start(self, pipe: StreamPipe) -> Stream:
        self._pipe = pipe
        pipe.write(self._first)
        return self

    def writable(self) -> None:
        self.writable_count += 1

    def lost(self, code: int, reason: str) -> None:
        self.losses.append([code, reason])

    def tell(self) -> dict[str, Any]:
        return {
            "buffered": self._pipe.buffered if self._pipe is not None else None,
            "writable": self.writable_count,
            "lost": self.losses,
        }


class Puppet:
    """An acceptor."""

    max_frame = max_connect = MAX_BODY

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.polls: list[asyncio.Future[Response]] = []

    async def ensure_running(self) -> None:
        pass

    def admit(self, handshake: Handshake) -> None:
        pass

    def connect(self, transport: Transport, handshake: Handshake) -> Driver:
        raise NotImplementedError

    def turned_away(self, why: str) -> None:
        pass

    async def answer(self, request: HttpRequest) -> Answer:
        match request.endpoint:
            case "send":
                return plain(200, str(len(request.body)))
            case "sse":
                headers = (("content-type", "text/event-stream"), ("cache-control", "no-store, no-transform"))
                self.streams.append(Stream(headers, b":\n\n"))
                return self.streams[-1].answer
            case "http_stream":
                headers = (
                    ("content-type", "application/x-ndjson"),
                    ("cache-control", "no-store, no-transform"),
                )
                self.streams.append(Stream(headers, b"\n"))
                return self.streams[-1].answer
            case "poll":
                self.polls.append(asyncio.get_running_loop().create_future())
                return self.polls[-1]
            case "emulation":
                return plain(200, json.dumps(self.do(**json.loads(request.body))))
            case _:
                return plain(404, "no")

    def do(self, do: str = "", text: str = "", times: int = 1) -> dict[str, Any]:
        going = [stream for stream in self.streams if not stream.losses]
        if do == "write":
            for stream in going:
                for _ in range(times):
                    stream.pipe.write(text.encode())
        elif do == "end":
            for stream in going:
                stream.pipe.end()
        elif do == "release":
            for poll in self.polls:
                if not poll.done():
                    poll.set_result(plain(200, text))
        elif do == "forget":
            self.streams.clear()
            self.polls.clear()
        polls = ["cancelled" if p.cancelled() else "done" if p.done() else "waiting" for p in self.polls]
        return {"streams": [stream.tell() for stream in self.streams], "polls": polls}

    def close(self) -> None:
        """What a hub does when it closes."""
        self.do("end")
        self.do("release", "closing")


@contextlib.asynccontextmanager
async def nothing() -> AsyncGenerator[None]:
    yield


def make() -> AsgiHost:
    """A host of its own puppet."""
    return AsgiHost(Puppet(), lifespan=nothing, close_timeout=1.0)


app = make()
