"""The broker of one process, and the oracle of all others (B2).

State lives in a :class:`MemoryBackend`. Each hub has a :class:`MemoryBroker` of its own on it, so that several
hubs of one process and loop can form a cluster by sharing a backend::

    backend = MemoryBackend()
    a = Hub(broker=MemoryBroker(backend), …)
    b = Hub(broker=MemoryBroker(backend), …)

Everything happens in plain functions between two awaits, which is what makes ``append`` atomic: dedupe,
number, store, publish. Expired entries are dropped when a stream is touched; streams that nobody touches
are dropped when there are too many of them, or when their meta has aged (H6).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import EllipsisType

from ..clock import Clock
from ..errors import NotRunning, WrongLoop
from ..messages import Durability, History
from ..position import Position
from ..primitives.clocks import LoopClock
from ..streams import Entry, StreamPage, locate
from .base import Appended, Conflict, Sink

__all__ = ["MemoryBackend", "MemoryBroker"]

#: Seconds that a stream's epoch and top outlive its last use, at least (H6).
META_TTL = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What a backend holds: streams, stored entries and their bytes, topics with subscribers."""

    streams: int
    entries: int
    size: int
    topics: int


@dataclass(slots=True)
class _Stored:
    offset: int
    payload: bytes
    expires: float


class _Stream:
    """One topic's stream: its epoch, its top, what is kept of it, and the keys seen lately."""

    __slots__ = ("entries", "epoch", "expires", "floor", "keys", "size", "top")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.top = 0
        self.floor = 0
        self.size = 0
        self.expires = 0.0
        self.entries: deque[_Stored] = deque()
        # key -> (position, until); in order of time, since the window is one for all.
        self.keys: OrderedDict[str, tuple[Position, float]] = OrderedDict()

    def trim(self, now: float, history: History | None) -> None:
        entries = self.entries
        while entries and (
            entries[0].expires <= now
            or (
                history is not None
                and (len(entries) > history.count or (self.size > history.size and len(entries) > 1))
            )
        ):
            gone = entries.popleft()
            self.size -= len(gone.payload)
            self.floor = gone.offset
        while self.keys and next(iter(self.keys.values()))[1] <= now:
            self.keys.popitem(last=False)


class MemoryBackend:
    """The state that the memory brokers of one cluster share.

    :param clock: for expiry; the running loop's unless given.
    :param dedupe_window: seconds a key is remembered (H7).
    :param max_streams: streams kept at the most; beyond that the longest idle one that no hub
        subscribes to is dropped, and begins a new epoch when it is used again (H6).
    :param new_epoch: makes the name of a new epoch; random unless given.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        dedupe_window: float = 300.0,
        max_streams: int = 100_000,
        new_epoch: Callable[[], str] | None = None,
    ) -> None:
        if max_streams < 1:
            raise ValueError(f"max_streams is at least 1, not {max_streams!r}")
        self.clock: Clock = clock or LoopClock()
        self.dedupe_window = dedupe_window
        self.max_streams = max_streams
        self._new_epoch = new_epoch or (lambda: secrets.token_urlsafe(6))
        self._streams: OrderedDict[str, _Stream] = OrderedDict()  # the longest idle first
        self._topics: dict[str, dict[MemoryBroker, None]] = {}
        self._state: dict[str, dict[str, tuple[bytes, float]]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.open_brokers: set[MemoryBroker] = set()

    def statistics(self) -> MemoryStatistics:
        """What is held now."""
        streams = self._streams.values()
        return MemoryStatistics(
            streams=len(streams),
            entries=sum(len(stream.entries) for stream in streams),
            size=sum(stream.size for stream in streams),
            topics=len(self._topics),
        )

    # -- publish and subscribe ----------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, position: Position | None) -> None:
        for broker in tuple(self._topics.get(topic, ())):
            broker.deliver(topic, payload, position)

    def subscribe(self, broker: MemoryBroker, topics: Iterable[str]) -> None:
        for topic in topics:
            self._topics.setdefault(topic, {})[broker] = None

    def unsubscribe(self, broker: MemoryBroker, topics: Iterable[str]) -> None:
        for topic in topics:
            brokers = self._topics.get(topic)
            if brokers is not None:
                brokers.pop(broker, None)
                if not brokers:
                    del self._topics[topic]

    def forget(self, broker: MemoryBroker) -> None:
        self.unsubscribe(broker, [topic for topic, brokers in self._topics.items() if broker in brokers])

    # -- streams ------------------------------------------------------------------------------

    def append(
        self, topic: str, payload: bytes, history: History, key: str | None, expected: Position | None
    ) -> Appended:
        now = self.clock.monotonic()
        stream = self._stream(topic, now)
        stream.trim(now, None)
        if key is not None and (seen := stream.keys.get(key)) is not None:
            return Appended(seen[0], duplicate=True)
        if expected is not None and expected != Position(stream.epoch, stream.top):
            raise Conflict(Position(stream.epoch, stream.top))
        stream.top += 1
        stream.entries.append(_Stored(stream.top, payload, now + history.ttl))
        stream.size += len(payload)
        stream.expires = max(stream.expires, now + max(META_TTL, 2 * history.ttl))
        position = Position(stream.epoch, stream.top)
        if key is not None:
            stream.keys[key] = (position, now + self.dedupe_window)
        stream.trim(now, history)
        self.publish(topic, payload, position)
        return Appended(position)

    def read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        now = self.clock.monotonic()
        stream = self._stream(topic, now)
        stream.trim(now, history)
        epoch, top, floor = stream.epoch, stream.top, stream.floor
        kept = stream.entries
        if reverse:
            # Right before `since`; a position that is not of this stream shows the newest.
            below = since.offset if since is not None and since.epoch == epoch else top + 1
            last = min(len(kept), max(0, below - floor - 1))
            chosen = [kept[i] for i in range(last - 1, max(-1, last - 1 - limit), -1)]
            start, lost = floor, None if since is None or since.epoch == epoch else "epoch"
        else:
            start, lost = locate(since, epoch=epoch, top=top, floor=floor)
            first = start - floor
            chosen = [kept[i] for i in range(first, min(len(kept), first + limit))]
        entries = tuple(Entry(stored.offset, stored.payload) for stored in chosen)
        return StreamPage(epoch, top, floor, start, entries, lost)

    def clear(self, topic: str) -> Position:
        self._streams.pop(topic, None)
        stream = self._stream(topic, self.clock.monotonic())
        return Position(stream.epoch, 0)

    def _stream(self, topic: str, now: float) -> _Stream:
        stream = self._streams.get(topic)
        if stream is not None and stream.expires <= now:
            del self._streams[topic]
            stream = None
        if stream is None:
            stream = self._streams[topic] = _Stream(self._new_epoch())
            stream.expires = now + META_TTL
            if len(self._streams) > self.max_streams:
                self._evict(topic)
        else:
            self._streams.move_to_end(topic)
        return stream

    def _evict(self, newest: str) -> None:
        for topic in self._streams:
            if topic != newest and topic not in self._topics:
                del self._streams[topic]
                return
        # Every stream is in use: more of them than asked for is better than a loss.

    # -- state --------------------------------------------------------------------------------

    def put(
        self, key: str, field: str, value: bytes, ttl: float, expected: bytes | None | EllipsisType
    ) -> bool:
        fields = self._fields(key)
        present = fields.get(field)
        if not isinstance(expected, EllipsisType) and (present[0] if present else None) != expected:
            return False
        fields[field] = (value, self.clock.monotonic() + ttl)
        self._state[key] = fields
        return True

    def renew(self, key: str, names: Iterable[str], ttl: float) -> list[str]:
        fields = self._fields(key)
        until = self.clock.monotonic() + ttl
        gone: list[str] = []
        for name in names:
            if name in fields:
                fields[name] = (fields[name][0], until)
            else:
                gone.append(name)
        return gone

    def remove(self, key: str, field: str, expected: bytes | None) -> bool:
        fields = self._fields(key)
        present = fields.get(field)
        if present is None or (expected is not None and present[0] != expected):
            return False
        del fields[field]
        if not fields:
            self._state.pop(key, None)
        return True

    def entries(self, key: str) -> dict[str, bytes]:
        return {field: value for field, (value, _) in self._fields(key).items()}

    def _fields(self, key: str) -> dict[str, tuple[bytes, float]]:
        """The fields of *key* that have not expired."""
        fields = self._state.get(key)
        if fields is None:
            return {}
        now = self.clock.monotonic()
        for field in [field for field, (_, until) in fields.items() if until <= now]:
            del fields[field]
        if not fields:
            del self._state[key]
        return fields

    def __repr__(self) -> str:
        return f"<MemoryBackend {len(self._streams)} streams, {len(self.open_brokers)} hubs>"


class MemoryBroker:
    """A hub's end of a :class:`MemoryBackend`; implements all three broker protocols.

    :param backend: shared with other hubs of the same loop; one of its own unless given.
    """

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self._sink: Sink | None = None

    @classmethod
    def from_url(cls, url: str) -> MemoryBroker:
        """For ``memory://``: a broker on a backend of its own."""
        return cls()

    async def open(self, sink: Sink) -> None:
        backend, loop = self.backend, asyncio.get_running_loop()
        if backend.open_brokers and backend.loop is not loop:
            raise WrongLoop(
                "this MemoryBackend is in use in another event loop; hubs that share one must run in one "
                "loop. Use a broker that crosses processes, or run both hubs in the same loop"
            )
        if self._sink is not None:
            raise NotRunning(f"{self!r} is open already; give each hub a MemoryBroker of its own, on one backend")
        backend.loop = loop
        backend.open_brokers.add(self)
        self._sink = sink

    async def aclose(self) -> None:
        self._sink = None
        self.backend.open_brokers.discard(self)
        self.backend.forget(self)

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Called by the backend."""
        if self._sink is not None:
            self._sink.deliver(topic, payload, position)

    async def publish(self, topic: str, payload: bytes) -> None:
        self._opened().publish(topic, payload, None)

    async def subscribe(self, topics: Iterable[str]) -> None:
        self._opened().subscribe(self, topics)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        self._opened().unsubscribe(self, topics)

    async def append(
        self,
        topic: str,
        payload: bytes,
        *,
        history: History,
        key: str | None = None,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Appended:
        return self._opened().append(topic, payload, history, key, expected)

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        return self._opened().read(topic, since, limit, reverse, history)

    async def clear(self, topic: str) -> Position:
        return self._opened().clear(topic)

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | None | EllipsisType = ...
    ) -> bool:
        return self._opened().put(key, field, value, ttl, expected)

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        return self._opened().renew(key, fields, ttl)

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        return self._opened().remove(key, field, expected)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        return self._opened().entries(key)

    def _opened(self) -> MemoryBackend:
        if self._sink is None:
            raise NotRunning(f"{self!r} is not open; start the hub first")
        if asyncio.get_running_loop() is not self.backend.loop:
            raise WrongLoop("this broker runs in another event loop; from a thread use anyio.from_thread.run")
        return self.backend

    def __repr__(self) -> str:
        return f"<MemoryBroker {'open' if self._sink is not None else 'closed'} on {self.backend!r}>"
