"""HTTP in memory: every exchange waits for the test to answer it. No sleeping, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rtkit.client.http import Answer, HttpFailed
from rtkit.testing.clock import ManualClock

__all__ = ["FakeBody", "FakeWorld", "Request", "connected", "frame"]

JSON = dict[str, Any]


def frame(*units: JSON) -> bytes:
    return b"\n".join(json.dumps(unit).encode() for unit in units)


def connected(session: str = "s", **more: Any) -> JSON:
    """The reply to `connect`."""
    return {
        "id": 1,
        "connect": {"client": "c", "session": session, "ping": 25, "pong": True, "rt": {"v": 1}, **more},
    }


class FakeBody:
    """The body of an answer; the test is its other end."""

    def __init__(self, status: int = 200, **headers: str) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}
        self.reads = 0
        self.closed = False
        self._pieces: deque[bytes | Exception] = deque()
        self._changed = asyncio.Event()

    def push(self, *pieces: bytes | Exception) -> None:
        self._pieces += pieces
        self._changed.set()

    def event(self, *units: JSON) -> None:
        self.push(b"".join(b"data: " + json.dumps(unit).encode() + b"\n" for unit in units) + b"\n")

    def end(self) -> None:
        self.push(b"")

    def cut(self) -> None:
        self.push(HttpFailed("cut"))

    async def aclose(self) -> None:
        self.closed = True

    async def read(self) -> bytes:
        assert not self.closed
        self.reads += 1
        while not self._pieces:
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces[0]
        if isinstance(piece, Exception):
            raise piece
        if piece:
            self._pieces.popleft()
        return piece


class Request:
    """What the client asked; the test answers."""

    def __init__(
        self, method: str, endpoint: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        self.method = method
        self.endpoint = endpoint
        self.query = query
        self.headers = dict(headers)
        self.body = body
        self.answer: asyncio.Future[Answer | FakeBody] = asyncio.get_running_loop().create_future()

    def reply(self, status: int = 204, body: bytes = b"", **headers: str) -> None:
        self.answer.set_result(
            Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
        )

    def batch(self, number: int, *units: JSON) -> None:
        self.reply(200, json.dumps({"batch": number, "replies": units}).encode())

    def stream(self, body: FakeBody) -> FakeBody:
        self.answer.set_result(body)
        return body

    def fail(self) -> None:
        self.answer.set_exception(HttpFailed("the network is away"))

    @property
    def given_up(self) -> bool:
        """The client does not wait for the answer any more."""
        return self.answer.cancelled()

    def __repr__(self) -> str:
        return f"<{self.method} {self.endpoint}?{self.query} {self.headers} {self.body!r}>"


class FakeHttp:
    def __init__(self, world: FakeWorld) -> None:
        self.world = world
        self.closed = 0

    async def request(
        self,
        method: str,
        endpoint: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        max_size: int = 0,
    ) -> Answer:
        answer = await self._ask(Request(method, endpoint, query, headers or {}, body))
        assert isinstance(answer, Answer)
        return answer

    async def stream(self, endpoint: str, *, headers: Mapping[str, str], body: bytes) -> FakeBody:
        answer = await self._ask(Request("POST", endpoint, "", headers, body))
        return answer if isinstance(answer, FakeBody) else FakeBody(answer.status, **dict(answer.headers))

    async def _ask(self, request: Request) -> Answer | FakeBody:
        assert not self.closed, "used after it was closed"
        self.world.requests.append(request)
        if self.world.on is not None:
            self.world.on(request)
        return await request.answer

    async def aclose(self) -> None:
        self.closed += 1


class FakeWorld:
    """All that a dialer asks, of whichever pipe.

    :ivar on: is called with each request; may answer it.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.requests: list[Request] = []
        self.https: list[FakeHttp] = []
        self.on: Callable[[Request], object] | None = None

    def __call__(self, url: str, headers: Mapping[str, str]) -> FakeHttp:
        self.https.append(FakeHttp(self))
        return self.https[-1]

    def of(self, method: str, endpoint: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.endpoint) == (method, endpoint)]

    async def pass_(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        await self.clock.settle()

    def check_nothing_is_left(self) -> None:
        assert self.clock.timers == 0
        assert all(http.closed for http in self.https)
        assert not [task for task in asyncio.all_tasks() if "rtkit" in task.get_name()]
