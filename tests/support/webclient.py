"""Clients over plain HTTP that know nothing, for tests of a hub: no socket, no real time.

:class:`WebClient` is a :class:`~tests.support.rawclient.RawClient` whose frames travel in requests to
:meth:`Hub.answer`, down a stream or in polls; so what is tested with one can be tested with the others. Each request
may go to another hub, as behind a load balancer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rtkit import Hub
from rtkit.testing.clock import ManualClock
from rtkit.transports import Batch, Form, Handshake, HttpRequest, Response, Stream, Streaming

from .rawclient import FakePipe, RawClient, Unit

__all__ = ["FakeStream", "WebClient", "ask"]

Kind = Literal["sse", "http_stream", "poll"]


async def ask(
    hub: Hub[Any],
    method: str,
    endpoint: str,
    body: bytes = b"",
    *,
    query: str = "",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
) -> Any:
    """One request; a future is not waited for."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    handshake = Handshake(
        path=f"/rt/{endpoint}",
        query=query,
        headers=(("host", "test"), *((name.lower(), value) for name, value in pairs)),
        address="10.0.0.1",
    )
    return await hub.answer(HttpRequest(method, endpoint, handshake, body))


class FakeStream(FakePipe):
    """A host's end of a response that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Stream | None = None
        self.ended = False

    def write_batch(self, batch: Batch, form: Form) -> None:  # type: ignore[override]
        self.write(batch.form(form))

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.frames.extend(self.waiting)
            self.waiting.clear()
            self.buffered = 0
            self._soon(self.lose, 1000, "")

    def lose(self, code: int = 1006, reason: str = "") -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.lost(code, reason)

    def drain(self, frames: int | None = None) -> None:
        super().drain(frames)

    def _writable(self) -> None:
        if self.stream is not None and not self.ended and not self.waiting:
            self.stream.writable()


class WebClient(RawClient):
    """One session over plain HTTP, unit by unit.

    :param hubs: that take its requests in turn; the first takes the one that opens.
    :ivar down: the host's end of its stream.
    :ivar answers: status of each request but polls, in the order of their answers.
    """

    def __init__(
        self,
        hub: Hub[Any],
        clock: ManualClock,
        *,
        kind: Kind = "sse",
        hubs: Sequence[Hub[Any]] = (),
        headers: Mapping[str, str] | None = None,
        rt: bool = False,
        pongs: bool = True,
    ) -> None:
        # Deliberately not RawClient's: there is no pipe before the first command.
        self.hub = hub
        self.clock = clock
        self.kind = kind
        self.rt = rt
        self.pongs = pongs
        self.headers = dict(headers or {})
        self.down = FakeStream()
        self.pipe = self.down
        self.last_id = 0
        self._read = 0
        self._units: list[Unit] = []
        self._hubs = itertools.cycle([*hubs[1:], hub] if hubs else [hub])
        self._opened = False
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.ack = 0
        self.polling = True
        self.session = ""
        self.answers: list[int] = []
        self.status = 0
        """Of the request that opened."""

    # -- saying things

    def say(self, frame: str | bytes) -> None:
        data = frame.encode() if isinstance(frame, str) else frame
        if not self._opened:
            self._opened = True
            self._spawn(self._open(data))
        else:
            self._seq += 1
            self._spawn(self._send(self._seq, data))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, frame: bytes) -> None:
        found = await ask(self.hub, "POST", self.kind, frame, headers=self.headers)
        if isinstance(found, asyncio.Future):
            found = await found
        self.status = found.status
        if isinstance(found, Streaming):
            self.down.stream = found.start(self.down)
        elif self.kind == "poll" and found.status == 200:
            self._take(found)
            self._spawn(self._poll())

    async def _send(self, seq: int, frame: bytes) -> None:
        found = await self.post(seq, frame)
        self.answers.append(found.status)

    async def post(self, seq: int, frame: bytes, *, hub: Hub[Any] | None = None, **headers: str) -> Response:
        """One request up, with its number."""
        self._hear()
        headers = {"rt-session": self.session, "rt-seq": str(seq), **self.headers, **headers}
        found = await ask(hub or next(self._hubs), "POST", "send", frame, headers=headers)
        assert isinstance(found, Response)
        return found

    async def poll(self, ack: int, *, hub: Hub[Any] | None = None, **headers: str) -> Any:
        """One poll; a future if it waits."""
        self._hear()
        headers = {"rt-session": self.session, **self.headers, **headers}
        return await ask(hub or next(self._hubs), "GET", "poll", query=f"ack={ack}", headers=headers)

    async def _poll(self) -> None:
        while self.polling:
            self._hear()
            found = await self.poll(self.ack)
            if isinstance(found, asyncio.Future):
                found = await found
            if found.status != 200:
                self.status = found.status
                return
            self._take(found)

    def _take(self, response: Response) -> None:
        body = json.loads(response.body)
        self.ack = body["batch"]
        self.pipe.frames += [json.dumps(unit).encode() for unit in body["replies"]]
        if any("disconnect" in unit.get("push", {}) for unit in body["replies"]):
            self.polling = False

    async def delete(self) -> Response:
        """A goodbye."""
        self._hear()
        found = await ask(
            next(self._hubs), "DELETE", "send", headers={"rt-session": self.session, **self.headers}
        )
        assert isinstance(found, Response)
        await self.clock.settle()
        return found

    # -- what was heard

    def _hear(self) -> None:
        for frame in self.pipe.frames[self._read :]:
            for line in frame.split(b"\n"):
                if line in (b"", b":"):
                    continue
                unit = json.loads(line.removeprefix(b"data: "))
                if unit == {}:
                    self._pings_due += 1
                if "connect" in unit:
                    self.session = unit["connect"].get("session", "")
                self._units.append(unit)
        self._read = len(self.pipe.frames)

    @property
    def closed(self) -> tuple[int, str] | None:
        for push in reversed(self.pushes):
            if "disconnect" in push:
                return push["disconnect"]["code"], push["disconnect"]["reason"]
        return None

    @property
    def close_code(self) -> int:
        return self.closed[0] if self.closed is not None else 0

    async def drop(self) -> None:
        self.polling = False
        for task in tuple(self._tasks):
            task.cancel()
        self.pipe.lose(1006, "")
        await self.clock.settle()
        if self.kind == "poll":
            await self.clock.advance(self.hub.limits.poll_gone)
