"""A client of the wire that knows nothing: it says what a test tells it to, and writes down what it hears.

No socket and no real time: a :class:`FakePipe` stands where a host's end of a WebSocket would, and a
:class:`~rtkit.testing.clock.ManualClock` brings the loop to rest after each thing that is said::

    ann = RawClient(hub, clock, rt=True)
    await ann.connect("ann")
    joined = await ann.call("subscribe", channel="chat:lobby")
    assert [p["pub"]["data"] for p in ann.pushes_of("chat:lobby")] == [...]
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rtkit import Hub
from rtkit.testing.clock import ManualClock
from rtkit.transports import Batch, Driver, Handshake, WebSocketTransport, joined
from rtkit.wire import Assembler, decode_reply

__all__ = ["CallFailed", "FakePipe", "RawClient", "Unit"]

Unit = dict[str, Any]


class CallFailed(AssertionError):
    """The server answered a command with an error: *code*, *message*, and the whole body as *error*."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"error {error}")
        self.error = dict(error)
        self.code: int = error["code"]
        self.message: str = error["message"]


class FakePipe:
    """A host's end of a WebSocket, in memory.

    What is written is *received* by the peer at once, unless the pipe is *stalled*: then it counts as
    buffered until :meth:`drain` lets it through.

    :ivar frames: what arrived at the peer, one per write.
    :ivar closed: with what code and reason the hub closed it.
    :ivar paused: whether the hub has stopped reading.
    """

    def __init__(self, *, answers_close: bool = True) -> None:
        self.frames: list[bytes] = []
        self.waiting: list[bytes] = []
        self.buffered = 0
        self.stalled = False
        self.choked = 0
        self.paused = False
        self.pauses = 0
        self.closed: tuple[int, str] | None = None
        self.answers_close = answers_close
        self.transport: WebSocketTransport | None = None

    def write(self, data: bytes) -> None:
        assert self.closed is None, "written after closing"
        data.decode()  # a host sends text
        if self.stalled:
            self.waiting.append(data)
            self.buffered += len(data)
        else:
            self.frames.append(data)
            self._soon(self._writable)

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def stall(self) -> None:
        """The peer reads nothing any more."""
        self.stalled = True

    def choke(self, size: int = 64 * 1024) -> None:
        """The peer reads nothing, and the buffers in between are full already: the hub can hand on nothing."""
        self.stalled = True
        self.choked += size
        self.buffered += size
        if self.transport is not None:
            # What fills a real pipe is what the hub writes, so that it knows; here it is made to look.
            self.transport.writable()

    def drain(self, frames: int | None = None) -> None:
        """The peer reads so many frames; without a number all there are, and from now on whatever comes."""
        if frames is None:
            self.stalled = False
            frames = len(self.waiting)
        self.buffered -= self.choked
        self.choked = 0
        for data in self.waiting[:frames]:
            self.frames.append(data)
            self.buffered -= len(data)
        del self.waiting[:frames]
        if not self.waiting:
            self._soon(self._writable)

    def pause_reading(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        self.paused = False

    def close(self, code: int, reason: str) -> None:
        assert 1000 <= code <= 4999
        assert len(reason.encode()) <= 123, "a close frame has no room for that"
        if self.closed is None:
            self.closed = (code, reason)
            self.frames.extend(self.waiting)
            self.waiting.clear()
            self.buffered = 0
            if self.answers_close:
                self._soon(self.lose, code, reason)

    def lose(self, code: int = 1006, reason: str = "") -> None:
        """The network, or the peer, ends it; the transport is told once."""
        if self.transport is not None:
            transport, self.transport = self.transport, None
            transport.lost(code, reason)

    def _writable(self) -> None:
        if self.transport is not None and self.closed is None and not self.waiting:
            self.transport.writable()

    def _soon(self, func: Any, *args: Any) -> None:
        asyncio.get_running_loop().call_soon(func, *args)


class RawClient:
    """One connection to a hub, unit by unit.

    :param rt: announce rtkit's own additions when connecting.
    :param pongs: answer pings by itself.
    :param handshake: what the upgrade request looked like.
    :ivar units: everything heard, in order, decoded; pings are ``{}``, and what came in chunks stands where the last
        of them came.
    :ivar order: the same, as sizes of units, with those of chunks where they came.
    """

    def __init__(
        self,
        hub: Hub[Any],
        clock: ManualClock,
        *,
        rt: bool = False,
        pongs: bool = True,
        handshake: Handshake | None = None,
        answers_close: bool = True,
    ) -> None:
        self.hub = hub
        self.clock = clock
        self.rt = rt
        self.pongs = pongs
        self.pipe = FakePipe(answers_close=answers_close)
        self.transport = WebSocketTransport(self.pipe, max_frame=hub.max_frame)
        self.pipe.transport = self.transport
        self.handshake = handshake or Handshake(
            path="/rt/ws", headers=(("host", "test"),), address="10.0.0.1"
        )
        self.last_id = 0
        self._read = 0
        self._units: list[Unit] = []
        self._assembler = Assembler(limit=2**26, count=2**20, idle=math.inf, age=math.inf)
        self.order: list[tuple[str, int]] = []
        self.driver: Driver = hub.connect(self.transport, self.handshake)
        self.transport.drive(self.driver)

    # -- saying things

    def say(self, frame: str | bytes) -> None:
        """Send one frame as it is, now."""
        if self.pipe.transport is not None:
            self.transport.message(frame)

    def tell(self, *units: Mapping[str, Any] | bytes) -> None:
        """Send units in one frame, now."""
        self.say(b"\n".join(u if isinstance(u, bytes) else json.dumps(u).encode() for u in units))

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def ask(self, method: str, /, **body: Any) -> int:
        """Send a command without waiting; returns its id."""
        id = self.next_id()
        self.tell({"id": id, method: body})
        return id

    async def request(self, method: str, /, **body: Any) -> Unit:
        """Send a command, let the loop settle, and return the whole reply."""
        id = self.ask(method, **body)
        await self.settle()
        return self.reply(id)

    async def call(self, method: str, /, **body: Any) -> Unit:
        """Send a command and return its result.

        :raises CallFailed: when the server answered with an error.
        """
        reply = await self.request(method, **body)
        if "error" in reply:
            raise CallFailed(reply["error"])
        result: Unit = reply[method]
        return result

    async def refused(self, method: str, /, **body: Any) -> Unit:
        """Send a command that has to fail; returns the error."""
        reply = await self.request(method, **body)
        assert "error" in reply, f"no error but {reply}"
        error: Unit = reply["error"]
        return error

    async def connect(self, token: str = "", **body: Any) -> Unit:
        """Send ``connect``; with *rt* announced if this client is one of rtkit's own."""
        if token:
            body["token"] = token
        if self.rt:
            body.setdefault("rt", {"v": 1})
        return await self.call("connect", **body)

    async def settle(self) -> None:
        """Let everything happen that can happen now."""
        await self.clock.settle()
        self._hear()
        if self.pongs and self._pings_due:
            self._pings_due = 0
            self.say(b"{}")
            await self.clock.settle()
            self._hear()

    # -- what was heard

    _pings_due = 0

    def _hear(self) -> None:
        for frame in self.pipe.frames[self._read :]:
            for line in frame.split(b"\n"):
                unit = json.loads(line)
                chunk = unit.get("push", {}).get("chunk", {})
                self.order.append(("chunk" if "data" in chunk else "unit", len(line)))
                if "data" in chunk:
                    push = decode_reply(line).push
                    assert push is not None and push.chunk is not None
                    whole = self._assembler.add(push.chunk, 0.0)
                    if whole is None:
                        continue
                    unit = json.loads(whole)
                if unit == {}:
                    self._pings_due += 1
                self._units.append(unit)
        self._read = len(self.pipe.frames)

    @property
    def units(self) -> list[Unit]:
        self._hear()
        return self._units

    @property
    def text(self) -> str:
        """Every byte heard, for tests on what must never be said."""
        return b"\n".join(self.pipe.frames).decode()

    @property
    def pings(self) -> int:
        return self.units.count({})

    @property
    def replies(self) -> dict[int, Unit]:
        found: dict[int, Unit] = {}
        for unit in self.units:
            if "id" in unit:
                assert unit["id"] not in found, f"answered twice: {unit}"
                found[unit["id"]] = unit
        return found

    def reply(self, id: int) -> Unit:
        """The reply to a command, which must have come."""
        replies = self.replies
        assert id in replies, f"no reply to {id}; closed: {self.closed}; heard: {self.units[-3:]}"
        return replies[id]

    def answered(self, id: int) -> bool:
        return id in self.replies

    @property
    def pushes(self) -> list[Unit]:
        return [unit["push"] for unit in self.units if "push" in unit]

    def pushes_of(self, channel: str, kind: str = "pub") -> list[Unit]:
        """The pushes of one kind for one room: their bodies."""
        return [push[kind] for push in self.pushes if push.get("channel", "") == channel and kind in push]

    def data_of(self, channel: str) -> list[Any]:
        """The data of all publications that were pushed for a room."""
        return [pub["data"] for pub in self.pushes_of(channel)]

    def offsets_of(self, channel: str) -> list[int]:
        return [pub.get("offset", 0) for pub in self.pushes_of(channel)]

    def forget(self) -> None:
        """Begin a new list of what was heard."""
        self._hear()
        self._units.clear()

    # -- its end

    @property
    def closed(self) -> tuple[int, str] | None:
        """How the hub closed it."""
        return self.pipe.closed

    @property
    def close_code(self) -> int:
        return 0 if self.pipe.closed is None else self.pipe.closed[0]

    async def drop(self) -> None:
        """The network is gone, without a word."""
        self.pipe.lose(1006, "")
        await self.clock.settle()

    async def leave(self) -> None:
        """A clean goodbye."""
        self.tell({"bye": {}})
        await self.clock.settle()

    def __repr__(self) -> str:
        return f"<RawClient {len(self._units)} units, closed {self.closed}>"


def publications(result: Mapping[str, Any]) -> Sequence[Any]:
    """The data of the publications in a subscribe or history result."""
    return [pub["data"] for pub in result.get("publications", ())]
