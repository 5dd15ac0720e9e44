"""The broker of one process, and the oracle of all others (B2).

State lives in a :class:`MemoryBackend`. Each hub has a :class:`MemoryBroker` of its own on it, so that several
hubs of one process and loop can form a cluster by sharing a backend::

    backend = MemoryBackend()
    a = Hub(broker=MemoryBroker(backend), …)
    b = Hub(broker=MemoryBroker(backend), …)

Everything happens in plain functions between two awaits, which is what makes ``append`` atomic: dedupe,
number, store, publish.

There is no task and no timer. What has expired is never shown, because each call looks at the time; and it
does not stay in memory either, because each call that writes or reads also tidies a few of the places where
something is due. A stream goes when its meta has aged, or when there are too many of them (H6), and never
while a hub is subscribed to it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from ..clock import Clock
from ..errors import NotRunning, UsageError, WrongLoop
from ..messages import Durability, History
from ..position import Position
from ..primitives.clocks import LoopClock
from ..streams import Entry, StreamPage, locate, locate_back
from .base import ANYTHING, Anything, Appended, Conflict, NewEntry, Repeated, Revision, Sink

__all__ = ["MemoryBackend", "MemoryBroker", "MemoryStatistics"]

logger = logging.getLogger("rtkit.brokers.memory")

#: Seconds that a stream's epoch and top outlive its last use, at least (H6).
META_TTL: Final = 30 * 86400.0

# One call tidies this many places at the most, and none more often than every so many seconds.
_TIDY_AT_ONCE: Final = 4
_TIDY_EVERY: Final = 1.0
# How many of the longest idle streams are looked at for one that nobody is subscribed to.
_EVICTION_TRIES: Final = 32
# Where a key stands that was never revised.
_NOWHERE: Final = Position("", 0)
# In place of an entry that is gone, until its place is given back.
_GONE: Final = Entry(0, b"")


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What a backend holds now.

    :param streams: streams with an epoch, empty ones too.
    :param entries: stored messages, and *size* their bytes.
    :param keys: idempotency keys.
    :param topics: topics that somebody is subscribed to.
    :param fields: fields of keyed state.
    """

    streams: int
    entries: int
    size: int
    keys: int
    topics: int
    fields: int


class _Stream:
    """One topic's stream: its epoch, its top, what is kept of it, and the keys seen lately."""

    __slots__ = (
        "_first",
        "_kept",
        "_stamps",
        "due",
        "epoch",
        "expires",
        "floor",
        "history",
        "keys",
        "size",
        "tidied",
    )

    def __init__(self, epoch: str, now: float) -> None:
        self.epoch = epoch
        self.floor = 0
        self.size = 0
        self.history: History | None = None  # the bounds of the last append
        self.expires = now + META_TTL
        self.due = math.inf  # when it is to be tidied
        self.tidied = -math.inf  # when that was done
        # key -> (position, until); in order of time, since the window is one for all.
        self.keys: OrderedDict[str, tuple[Position, float]] = OrderedDict()
        # Lists, of which the first few are gone: a page is a slice, however long the history is.
        self._kept: list[Entry] = []
        self._stamps: list[float] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._kept) - self._first

    @property
    def top(self) -> int:
        return self.floor + len(self)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.top)

    def touch(self, now: float) -> None:
        ttl = self.history.ttl if self.history is not None else 0.0
        self.expires = max(self.expires, now + max(META_TTL, 2 * ttl))

    def append(self, payload: bytes, now: float) -> None:
        self._kept.append(Entry(self.top + 1, payload))
        self._stamps.append(now)
        self.size += len(payload)

    def after(self, offset: int, limit: int) -> tuple[Entry, ...]:
        """Up to *limit* kept entries beyond *offset*, which is not below the floor."""
        begin = self._first + offset - self.floor
        return tuple(self._kept[begin : begin + limit])

    def trim(self, now: float, history: History | None) -> None:
        for bounds in (self.history, history):
            if bounds is not None:
                self._trim(now - bounds.ttl, bounds.count, bounds.size)
        while self.keys and next(iter(self.keys.values()))[1] <= now:
            self.keys.popitem(last=False)

    def _trim(self, oldest: float, count: int, size: int) -> None:
        kept, stamps, first, end = self._kept, self._stamps, self._first, len(self._kept)
        while first < end and (
            stamps[first] <= oldest or end - first > count or (self.size > size and end - first > 1)
        ):
            self.size -= len(kept[first].payload)
            kept[first] = _GONE
            first += 1
        self.floor += first - self._first
        if first == end:
            kept.clear()
            stamps.clear()
            first = 0
        elif first > 64 and first > end // 2:
            del kept[:first]
            del stamps[:first]
            first = 0
        self._first = first

    def next_due(self) -> float:
        """When something of it will have expired."""
        due = self.expires
        if len(self) and self.history is not None:
            due = min(due, self._stamps[self._first] + self.history.ttl)
        if self.keys:
            due = min(due, next(iter(self.keys.values()))[1])
        return due


class _Hash:
    """The fields of one key, with their values and when their leases end, and how often they were revised."""

    __slots__ = ("due", "epoch", "fields", "revisions", "tidied")

    def __init__(self) -> None:
        self.due = math.inf
        self.tidied = -math.inf
        self.fields: dict[str, tuple[bytes, float]] = {}
        self.epoch = ""
        self.revisions = 0

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.revisions)

    def get(self, field: str, now: float) -> bytes | None:
        found = self.fields.get(field)
        return found[0] if found is not None and found[1] > now else None


class MemoryBackend:
    """The state that the memory brokers of one cluster share.

    :param clock: for expiry; the running loop's unless given.
    :param dedupe_window: seconds a key is remembered (H7).
    :param max_streams: streams kept at the most; beyond that the longest idle one that no hub
        subscribes to is dropped, and begins a new epoch when it is used again (H6).
    :param new_epoch: makes the name of a new epoch, never the same twice; random unless given.
    :raises ValueError: for a bound that is not positive.
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
        if not dedupe_window > 0:
            raise ValueError(f"dedupe_window is positive seconds, not {dedupe_window!r}")
        self.clock: Clock = clock or LoopClock()
        self.dedupe_window = dedupe_window
        self.max_streams = max_streams
        self._new_epoch = new_epoch or (lambda: secrets.token_urlsafe(9))
        self._streams: OrderedDict[str, _Stream] = OrderedDict()  # the longest idle first
        self._topics: dict[str, dict[MemoryBroker, None]] = {}
        self._state: dict[str, _Hash] = {}
        # (when, is it a stream, its name); no longer valid if the place itself says another time.
        self._due: list[tuple[float, bool, str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[MemoryBroker] = set()

    def statistics(self) -> MemoryStatistics:
        """What is held now; counts it, so not for every second."""
        streams = self._streams.values()
        return MemoryStatistics(
            streams=len(streams),
            entries=sum(len(stream) for stream in streams),
            size=sum(stream.size for stream in streams),
            keys=sum(len(stream.keys) for stream in streams),
            topics=len(self._topics),
            fields=sum(len(found.fields) for found in self._state.values()),
        )

    # -- hubs -----------------------------------------------------------------------------------

    def attach(self, broker: MemoryBroker) -> asyncio.AbstractEventLoop:
        """A hub comes; all that are here run in one loop, which is returned."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop.is_closed():
            for left_over in tuple(self._open):  # of a loop that ended without closing its hubs
                left_over.abandon()
        if self._open and self._loop is not loop:
            raise WrongLoop(
                "this MemoryBackend is in use in another event loop; hubs that share one must run in one "
                "loop. Use a broker that crosses processes, or run both hubs in the same loop"
            )
        self._loop = loop
        self._open.add(broker)
        return loop

    def detach(self, broker: MemoryBroker, topics: Iterable[str]) -> None:
        """A hub goes, with its subscriptions."""
        self.unsubscribe(broker, topics)
        self._open.discard(broker)

    # -- publish and subscribe ------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Hand a payload to all that are subscribed."""
        for broker in tuple(self._topics.get(topic, ())):
            broker.deliver(topic, payload, position)

    def subscribe(self, broker: MemoryBroker, topics: Iterable[str]) -> None:
        """From now on *broker* gets what is published on *topics*."""
        for topic in topics:
            self._topics.setdefault(topic, {})[broker] = None

    def unsubscribe(self, broker: MemoryBroker, topics: Iterable[str]) -> None:
        """And from now on no more."""
        for topic in topics:
            brokers = self._topics.get(topic)
            if brokers is not None:
                brokers.pop(broker, None)
                if not brokers:
                    del self._topics[topic]

    # -- streams --------------------------------------------------------------------------------

    def append(
        self, topic: str, payload: bytes, history: History, key: str | None, expected: Position | None
    ) -> Appended:
        """Deduplicate, number, store and publish."""
        try:
            return Appended(self.extend(topic, (NewEntry(payload, key),), history, expected))
        except Repeated as repeated:
            assert key is not None
            return Appended(repeated.positions[key], duplicate=True)

    def extend(
        self, topic: str, entries: Sequence[NewEntry], history: History, expected: Position | None
    ) -> Position:
        """Deduplicate, number, store and publish several, or none."""
        now = self._tidy()
        stream = self._stream(topic, now)
        stream.trim(now, None)
        repeats = {key: stream.keys[key][0] for _, key in entries if key is not None and key in stream.keys}
        if repeats:
            raise Repeated(repeats)
        if expected is not None and expected != stream.position:
            raise Conflict(stream.position)
        stream.history = history
        stream.touch(now)
        appended: list[tuple[bytes, Position]] = []
        for payload, key in entries:
            stream.append(payload, now)
            appended.append((payload, stream.position))
            if key is not None:
                stream.keys[key] = (stream.position, now + self.dedupe_window)
        stream.trim(now, None)
        self._plan(stream, topic)
        for payload, position in appended:
            self.publish(topic, payload, position)
        return appended[-1][1]

    def read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        """A page of the stream as it is now."""
        now = self._tidy()
        stream = self._stream(topic, now)
        stream.trim(now, history)
        epoch, top, floor, limit = stream.epoch, stream.top, stream.floor, max(0, limit)
        if reverse:
            last, lost = locate_back(since, epoch=epoch, top=top, floor=floor)
            start = min(last, max(floor, last - limit))
            entries = stream.after(start, last - start)[::-1] if start >= floor else ()
        else:
            start, lost = locate(since, epoch=epoch, top=top, floor=floor)
            entries = stream.after(start, limit)
        return StreamPage(epoch, top, floor, start, entries, lost)

    def clear(self, topic: str) -> Position:
        """Begin the stream anew. Keys stay: a repeat is a repeat, although what it repeats is gone."""
        now = self._tidy()
        old = self._stream(topic, now)
        stream = self._streams[topic] = _Stream(self._new_epoch(), now)
        stream.keys = old.keys
        self._plan(stream, topic)
        return stream.position

    def _stream(self, topic: str, now: float) -> _Stream:
        stream = self._streams.get(topic)
        if stream is None or self._has_aged(stream, topic, now):
            stream = self._streams[topic] = _Stream(self._new_epoch(), now)
            self._plan(stream, topic)
            if len(self._streams) > self.max_streams:
                self._evict(topic)
        stream.touch(now)
        self._streams.move_to_end(topic)
        return stream

    def _has_aged(self, stream: _Stream, topic: str, now: float) -> bool:
        return stream.expires <= now and topic not in self._topics

    def _evict(self, newest: str) -> None:
        for _ in range(min(_EVICTION_TRIES, len(self._streams))):
            topic = next(iter(self._streams))
            if topic != newest and topic not in self._topics:
                del self._streams[topic]
                if len(self._streams) <= self.max_streams:
                    return
            else:
                self._streams.move_to_end(topic)  # in use, so not idle
        # All are in use, it seems: more of them than asked for is better than a loss.

    # -- keyed state ----------------------------------------------------------------------------

    def put(self, key: str, field: str, value: bytes, ttl: float, expected: bytes | Anything | None) -> bool:
        """Set a field, if it holds what is expected."""
        now = self._tidy()
        found = self._state.get(key)
        if not isinstance(expected, Anything) and (found.get(field, now) if found else None) != expected:
            return False
        if found is None:
            found = self._state[key] = _Hash()
        found.fields[field] = (value, now + ttl)
        self._plan_at(found, False, key, now + ttl)
        return True

    def renew(self, key: str, fields: Iterable[str], ttl: float) -> list[str]:
        """Extend leases; the fields that are gone."""
        now = self._tidy()
        found = self._state.get(key)
        gone: list[str] = []
        for field in fields:
            value = found.get(field, now) if found is not None else None
            if found is None or value is None:
                gone.append(field)
            else:
                found.fields[field] = (value, now + ttl)
        if found is not None:
            self._plan_at(found, False, key, now + ttl)
        return gone

    def remove(self, key: str, field: str, expected: bytes | None) -> bool:
        """Delete a field."""
        now = self._tidy()
        found = self._state.get(key)
        value = found.get(field, now) if found is not None else None
        if found is None or value is None or (expected is not None and value != expected):
            return False
        del found.fields[field]
        if not found.fields:
            del self._state[key]
        return True

    def entries(self, key: str) -> dict[str, bytes]:
        """All fields of a key."""
        now = self._tidy()
        found = self._state.get(key)
        if found is None:
            return {}
        return {field: value for field, (value, until) in found.fields.items() if until > now}

    def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        """Compare, change, count and publish."""
        now = self._tidy()
        found = self._state.get(key)
        for field, value in expected.items():
            if (found.get(field, now) if found is not None else None) != value:
                return None
        if found is None:
            found = self._state[key] = _Hash()
        if not found.revisions:
            found.epoch = self._new_epoch()
        found.revisions += 1
        for field, value in changes.items():
            if value is None:
                found.fields.pop(field, None)
            else:
                found.fields[field] = (value, now + ttl)
        if found.fields:
            self._plan_at(found, False, key, now + ttl)
        else:
            del self._state[key]
        self.publish(topic, payload, found.position)
        return found.position

    def revision(self, key: str) -> Revision:
        """All fields of a key, and how often they were revised."""
        entries = self.entries(key)
        return Revision(self.position(key), entries)

    def position(self, key: str) -> Position:
        """How often a key was revised."""
        found = self._state.get(key)
        return found.position if found is not None else _NOWHERE

    # -- tidying --------------------------------------------------------------------------------

    def _plan(self, stream: _Stream, topic: str) -> None:
        self._plan_at(stream, True, topic, stream.next_due())

    def _plan_at(self, place: _Stream | _Hash, is_stream: bool, name: str, when: float) -> None:
        when = max(when, place.tidied + _TIDY_EVERY)
        if when >= place.due:
            return
        place.due = when
        heapq.heappush(self._due, (when, is_stream, name))
        if len(self._due) > 2 * (len(self._streams) + len(self._state)) + 64:
            # Most of it is of places that are no more, or were planned anew.
            self._due = [(stream.due, True, topic) for topic, stream in self._streams.items()]
            self._due += [(found.due, False, key) for key, found in self._state.items()]
            heapq.heapify(self._due)

    def _tidy(self) -> float:
        """Give back what has expired, at a few places; returns the time."""
        now = self.clock.monotonic()
        for _ in range(_TIDY_AT_ONCE):
            if not self._due or self._due[0][0] > now:
                break
            when, is_stream, name = heapq.heappop(self._due)
            if is_stream:
                self._tidy_stream(name, when, now)
            else:
                self._tidy_hash(name, when, now)
        return now

    def _tidy_stream(self, topic: str, when: float, now: float) -> None:
        stream = self._streams.get(topic)
        if stream is None or stream.due != when:
            return
        stream.due, stream.tidied = math.inf, now
        if self._has_aged(stream, topic, now):
            del self._streams[topic]
            return
        stream.trim(now, None)
        self._plan(stream, topic)

    def _tidy_hash(self, key: str, when: float, now: float) -> None:
        found = self._state.get(key)
        if found is None or found.due != when:
            return
        found.due, found.tidied = math.inf, now
        for field in [field for field, (_, until) in found.fields.items() if until <= now]:
            del found.fields[field]
        if not found.fields:
            del self._state[key]
            return
        self._plan_at(found, False, key, min(until for _, until in found.fields.values()))

    def __repr__(self) -> str:
        return f"<MemoryBackend {len(self._streams)} streams, {len(self._open)} hubs>"


class MemoryBroker:
    """A hub's end of a :class:`MemoryBackend`; implements all three broker protocols.

    :param backend: shared with other hubs of the same loop; one of its own unless given.
    """

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self._sink: Sink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._topics: set[str] = set()

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> MemoryBroker:
        """For ``memory://``, on a backend of its own: ``memory://?dedupe_window=300&max_streams=100000``.

        :raises ~rtkit.errors.UsageError: for anything else in the URL.
        """
        parts = urlsplit(url)
        if parts.netloc or parts.path.strip("/") or parts.fragment:
            raise UsageError(
                "memory:// takes no host, path or fragment; hubs share a MemoryBackend object instead"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            window = float(options.pop("dedupe_window", "300"))
            streams = int(options.pop("max_streams", "100000"))
            if options:
                raise ValueError(f"it has no option {next(iter(options))!r}")
            return cls(MemoryBackend(clock=clock, dedupe_window=window, max_streams=streams))
        except ValueError as error:
            raise UsageError(f"memory:// takes dedupe_window and max_streams: {error}") from None

    async def open(self, sink: Sink) -> None:
        """Join the hubs of the backend.

        :raises ~rtkit.errors.UsageError: when this broker is open already.
        :raises ~rtkit.errors.WrongLoop: when the others run in another loop.
        """
        if self._sink is not None and self._loop is not None and not self._loop.is_closed():
            raise UsageError(
                f"{self!r} is open already; give each hub a MemoryBroker of its own, on one backend"
            )
        self.abandon()
        self._loop = self.backend.attach(self)
        self._sink = sink

    async def aclose(self) -> None:
        """Leave the backend. What is stored stays, for other hubs or the next ``open``."""
        self.abandon()

    def abandon(self) -> None:
        """What ``aclose`` does; plain, because nothing has to be waited for."""
        self.backend.detach(self, self._topics)
        self._topics.clear()
        self._sink = None
        self._loop = None

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Called by the backend."""
        if self._sink is None:
            return
        try:
            self._sink.deliver(topic, payload, position)
        except Exception:
            logger.exception("a hub failed on a payload of topic %r; it is told to read again", topic)
            self._interrupt(topic)

    def _interrupt(self, topic: str) -> None:
        try:
            if self._sink is not None:
                self._sink.interrupted((topic,))
        except Exception:
            logger.exception("a hub failed to note that it may have missed something on topic %r", topic)

    async def publish(self, topic: str, payload: bytes) -> None:
        """See :meth:`.Broker.publish`."""
        self._opened().publish(topic, payload, None)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.subscribe`."""
        backend, topics = self._opened(), tuple(topics)
        self._topics.update(topics)
        backend.subscribe(self, topics)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.unsubscribe`."""
        backend, topics = self._opened(), tuple(topics)
        self._topics.difference_update(topics)
        backend.unsubscribe(self, topics)

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
        """See :meth:`.StreamBroker.append`. There is one level of durability: the life of the process."""
        return self._opened().append(topic, payload, history, key, expected)

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        """See :meth:`.StreamBroker.extend`."""
        return self._opened().extend(topic, entries, history, expected)

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        """See :meth:`.StreamBroker.read`."""
        return self._opened().read(topic, since, limit, reverse, history)

    async def clear(self, topic: str) -> Position:
        """See :meth:`.StreamBroker.clear`."""
        return self._opened().clear(topic)

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        """See :meth:`.StateBroker.put`."""
        return self._opened().put(key, field, value, ttl, expected)

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        """See :meth:`.StateBroker.renew`."""
        return self._opened().renew(key, fields, ttl)

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        """See :meth:`.StateBroker.remove`."""
        return self._opened().remove(key, field, expected)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        """See :meth:`.StateBroker.entries`."""
        return self._opened().entries(key)

    async def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        *,
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        """See :meth:`.StateBroker.revise`."""
        return self._opened().revise(key, changes, ttl, expected, topic, payload)

    async def revision(self, key: str) -> Revision:
        """See :meth:`.StateBroker.revision`."""
        return self._opened().revision(key)

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        """See :meth:`.StateBroker.positions`."""
        backend = self._opened()
        return [backend.position(key) for key in keys]

    def statistics(self) -> MemoryStatistics:
        """What the backend holds now, for all its hubs."""
        return self.backend.statistics()

    def _opened(self) -> MemoryBackend:
        if self._sink is None:
            raise NotRunning(f"{self!r} is not open; start the hub first")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("this broker runs in another event loop; from a thread use anyio.from_thread.run")
        return self.backend

    def __repr__(self) -> str:
        return f"<MemoryBroker {'open' if self._sink is not None else 'closed'} on {self.backend!r}>"
