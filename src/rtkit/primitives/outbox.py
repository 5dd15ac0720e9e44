"""The bounded send queue of one connection (D1). Plain synchronous state, no asyncio, no clock.

What is in it
-------------
Entries in the order they came. *Control* entries (replies, pings, goodbyes) are never dropped. A
*push* belongs to a *lane*, in practice a room, and a lane's policy acts on that lane's entries
only: what one room does to a slow member costs the member's other rooms nothing.

An entry counts as its bytes plus *overhead*, what keeping it costs, so that a flood of tiny entries
is bounded too. The sum, plus what already sits *outside* in the transport's own buffer, stays within
*limit* for pushes; control may use *reserve* bytes beyond it.

When a push does not fit
------------------------
``recover``
    It is not queued, and the lane lags: it takes nothing more until :meth:`Outbox.resume`. What it has
    queued stays; those entries are contiguous, and once they are out the owner reads on from history.
``drop_oldest``
    The lane's oldest entries go, as many as it takes.
``drop_newest``
    It is not queued.
``latest_per_key``
    The lane's oldest entries go, as many as it takes. And always, full or not: of several entries
    with the same key only the latest is kept. An unmarked one takes the place of the older in the
    queue, so a key that changes without end still gets its turn. A marked one (a stream position)
    goes to the end and the older one is removed, so that marks never arrive out of order.
``close``
    Overflow.

Before any of that, *minor* lanes give way: their entries go, the oldest first, as many as it takes. What is
pushed to a minor lane itself makes nobody else's give way.

**Overflow** means the connection cannot be saved: close it with 3008. It changes nothing in the queue.
``drop_oldest`` and ``latest_per_key`` overflow when all of the lane's own entries together would free
too little; what is minor has given way by then. An entry that is larger than the whole limit overflows
under every policy but ``drop_newest``, ``recover`` included: no wait would ever make room for it, and a
lane that lags for ever is a silent loss. Who publishes such entries sends them in chunks, past the
outbox.

How
---
One deque of entries; control entries are bare ``bytes`` in it. As long as nothing overflows and
nothing is conflated that is all there is: a push makes its entry and appends it. The first time a
lane has to be told from the others an index is built, in one pass: each lane's entries as a singly
linked list, its keys in a dict. From then on it is kept up, until the queue has run empty. Dropped
entries stay in the deque as tombstones; when these outnumber the living it is rebuilt. So every
operation is O(1), amortised. An empty outbox holds no container at all (C5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Literal, final

__all__ = ["Outbox", "OutboxStatistics", "Overflow", "Spill"]

Overflow = Literal["recover", "drop_oldest", "drop_newest", "latest_per_key", "close"]
"""What a room does when a push does not fit a member's outbox (D1)."""

_POLICIES: Final[tuple[str, ...]] = ("recover", "drop_oldest", "drop_newest", "latest_per_key", "close")

_SMALL: Final = 32
"""So many tombstones are not worth a rebuild."""


@dataclass(frozen=True, slots=True)
class Spill:
    """What a push did beyond simply being queued.

    :param queued: it is in the queue.
    :param dropped: the marks of the entries the policy dropped, oldest first; unmarked ones are left out.
    :param dropped_count: how many it dropped, unmarked ones and the push itself included.
    :param replaced: the mark of the queued entry it took the place of; 0 if there was none.
    :param lagging: the lane takes nothing until :meth:`Outbox.resume`.
    :param overflow: the connection has to be closed with 3008.
    """

    queued: bool
    dropped: tuple[int, ...] = ()
    dropped_count: int = 0
    replaced: int = 0
    lagging: bool = False
    overflow: bool = False


_LAGGING: Final = Spill(queued=False, lagging=True)
_OVERFLOW: Final = Spill(queued=False, overflow=True)


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """What an :class:`Outbox` holds and has done. Whatever was offered is in one of the first seven.

    :param queued: entries in it now.
    :param taken: entries handed to the writer.
    :param dropped: by a policy; pushes that ``drop_newest`` kept out are among them.
    :param conflated: replaced by a later one with the same key.
    :param discarded: removed because the room was left, or by :meth:`Outbox.clear`.
    :param refused: pushes that a lagging lane did not take; they are to be read from history.
    :param overflows: pushes and control entries there was no room for.
    :param size: bytes in it now, overhead included.
    :param lagging: lanes that lag now.
    """

    queued: int
    taken: int
    dropped: int
    conflated: int
    discarded: int
    refused: int
    overflows: int
    size: int
    lagging: int


class _Entry:
    __slots__ = ("data", "key", "lane", "mark", "next")

    def __init__(self, lane: Hashable, data: bytes, mark: int, key: Hashable) -> None:
        self.lane = lane
        self.data: bytes | None = data  # None: a tombstone
        self.mark = mark
        self.key = key
        self.next: _Entry | None = None  # in the lane, once there is an index


class _Lane:
    """The living entries of a lane, oldest first (tombstones in between are passed over), and its keys."""

    __slots__ = ("head", "keys", "size", "tail")

    def __init__(self) -> None:
        self.head: _Entry | None = None
        self.tail: _Entry | None = None
        self.size = 0
        self.keys: dict[Hashable, _Entry] | None = None

    def append(self, entry: _Entry, cost: int) -> None:
        if self.tail is None:
            self.head = entry
        else:
            self.tail.next = entry
        self.tail = entry
        self.size += cost
        if entry.key is not None:
            if self.keys is None:
                self.keys = {}
            self.keys[entry.key] = entry

    def remove(self, entry: _Entry, cost: int) -> None:
        """Forget *entry*, which is not to be alive any more; unlinks what is dead at the head."""
        self.size -= cost
        if self.keys is not None and self.keys.get(entry.key) is entry:
            del self.keys[entry.key]
        while self.head is not None and self.head.data is None:
            self.head = self.head.next
        if self.head is None:
            self.tail = None


@final
class Outbox:
    """See the module's theory.

    :param limit: bytes of pushes it holds at the most, with what is outside.
    :param reserve: bytes beyond it that only control may use.
    :param overhead: bytes an entry counts beside its data.
    :ivar gave_way: how many entries of minor lanes were dropped, for the owner to count and to set to 0.
    :raises ValueError: for a limit that is not positive, a reserve or an overhead that is negative.
    """

    __slots__ = (
        "_conflated",
        "_dead",
        "_discarded",
        "_dropped",
        "_lagging",
        "_lanes",
        "_limit",
        "_minor",
        "_overflows",
        "_overhead",
        "_queue",
        "_refused",
        "_reserve",
        "_size",
        "_taken",
        "gave_way",
    )

    def __init__(self, *, limit: int = 1024 * 1024, reserve: int = 256 * 1024, overhead: int = 64) -> None:
        if limit <= 0:
            raise ValueError(f"Outbox(limit=…) is positive bytes, not {limit!r}")
        if reserve < 0:
            raise ValueError(f"Outbox(reserve=…) is not negative, as {reserve!r} is")
        if overhead < 0:
            raise ValueError(f"Outbox(overhead=…) is not negative, as {overhead!r} is")
        self._limit = limit
        self._reserve = reserve
        self._overhead = overhead
        self._size = 0
        self._dead = 0
        self._queue: deque[bytes | _Entry] | None = None
        self._lanes: dict[Hashable, _Lane] | None = None
        self._lagging: set[Hashable] | None = None
        self._minor: dict[Hashable, None] | None = None  # lanes that may have entries
        self.gave_way = 0
        self._taken = 0
        self._dropped = 0
        self._conflated = 0
        self._discarded = 0
        self._refused = 0
        self._overflows = 0

    # -- in

    def put(self, data: bytes, *, outside: int = 0) -> bool:
        """Queue a control entry: a reply, a ping, a goodbye. It is never dropped and may use the reserve.

        :param outside: bytes that sit in the transport's own buffer.
        :return: False if not even the reserve has room. Nothing is queued then, and the caller must
            close with 3008.
        """
        cost = len(data) + self._overhead
        if self._size + outside + cost > self._limit + self._reserve:
            self._overflows += 1
            return False
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self._size += cost
        return True

    def push(
        self,
        lane: Hashable,
        data: bytes,
        policy: Overflow,
        *,
        key: Hashable = None,
        mark: int = 0,
        outside: int = 0,
        minor: bool = False,
    ) -> Spill | None:
        """Queue a push of *lane*, or do what *policy* says when it does not fit.

        :param key: what ``latest_per_key`` tells entries of the lane apart by; None is no key.
        :param mark: where it stands in the lane's stream (an offset); 0 for nowhere.
        :param outside: bytes that sit in the transport's own buffer.
        :param minor: the lane's entries give way to those of lanes that are not.
        :return: None when it was simply queued, which is the rule; else what happened.
        :raises ValueError: for an unknown policy, at the latest when it comes to act.
        """
        cost = len(data) + self._overhead
        if (
            self._lagging is None
            and self._lanes is None
            and not minor
            and policy != "latest_per_key"
            and self._size + outside + cost <= self._limit
        ):
            if self._queue is None:
                self._queue = deque()
            self._queue.append(_Entry(lane, data, mark, key))
            self._size += cost
            return None
        if minor:
            if self._minor is None:
                self._minor = {}
            self._minor[lane] = None
        return self._push_slowly(lane, data, policy, key, mark, outside, minor)

    def _push_slowly(
        self,
        lane: Hashable,
        data: bytes,
        policy: Overflow,
        key: Hashable,
        mark: int,
        outside: int,
        minor: bool,
    ) -> Spill | None:
        """Whatever is not the rule: a lane lags, there is an index, there are keys, or it does not fit."""
        if self._lagging is not None and lane in self._lagging:
            self._refused += 1
            return _LAGGING
        cost = len(data) + self._overhead
        if policy == "latest_per_key" and key is not None:
            own = self._index().get(lane)
            older = own.keys.get(key) if own is not None and own.keys is not None else None
            if older is not None:
                return self._conflate(lane, older, data, mark, outside, minor)
        excess = self._make_way(self._size + outside + cost - self._limit, minor)
        if excess <= 0:
            self._append(lane, data, mark, key)
            return None
        if policy == "drop_newest":
            self._dropped += 1
            return Spill(queued=False, dropped=(mark,) if mark else (), dropped_count=1)
        if policy not in _POLICIES:
            raise ValueError(f"an overflow policy is one of {', '.join(_POLICIES)}, not {policy!r}")
        if policy == "close" or cost > self._limit:
            self._overflows += 1
            return _OVERFLOW
        if policy == "recover":
            if self._lagging is None:
                self._lagging = set()
            self._lagging.add(lane)
            self._refused += 1
            return _LAGGING
        own = self._index().get(lane)
        if own is None or own.size < excess:
            self._overflows += 1
            return _OVERFLOW
        marks, count = self._drop(own, excess, None)
        self._append(lane, data, mark, key)
        return Spill(queued=True, dropped=marks, dropped_count=count)

    def _conflate(
        self, lane: Hashable, older: _Entry, data: bytes, mark: int, outside: int, minor: bool
    ) -> Spill | None:
        """*data* takes the place of *older*, which has the same lane and key."""
        old = self._cost(older)
        cost = len(data) + self._overhead
        excess = self._make_way(self._size - old + outside + cost - self._limit, minor)
        own = self._index()[lane]
        marks: tuple[int, ...] = ()
        count = 0
        if excess > 0:
            if cost > self._limit or own.size - old < excess:
                self._overflows += 1
                return _OVERFLOW
            marks, count = self._drop(own, excess, older)
        self._conflated += 1
        replaced = older.mark
        if mark == 0 and replaced == 0:
            older.data = data
            own.size += cost - old
            self._size += cost - old
        else:
            key = older.key
            self._bury(own, older)
            self._append(lane, data, mark, key)
            self._sweep()
        if count or replaced:
            return Spill(queued=True, dropped=marks, dropped_count=count, replaced=replaced)
        return None

    def _append(self, lane: Hashable, data: bytes, mark: int, key: Hashable) -> None:
        entry = _Entry(lane, data, mark, key)
        cost = self._cost(entry)
        if self._queue is None:
            self._queue = deque()
        self._queue.append(entry)
        self._size += cost
        if self._lanes is not None:
            own = self._lanes.get(lane)
            if own is None:
                own = self._lanes[lane] = _Lane()
            own.append(entry, cost)

    def _drop(self, own: _Lane, excess: int, spare: _Entry | None) -> tuple[tuple[int, ...], int]:
        """Drop the oldest entries of a lane until *excess* bytes are free, but never *spare*."""
        marks: list[int] = []
        count = 0
        entry = own.head
        while excess > 0 and entry is not None:
            following = entry.next
            if entry.data is not None and entry is not spare:
                excess -= self._cost(entry)
                self._bury(own, entry)
                count += 1
                if entry.mark:
                    marks.append(entry.mark)
            entry = following
        self._dropped += count
        self._sweep()
        return tuple(marks), count

    def _make_way(self, excess: int, minor: bool) -> int:
        """Have minor lanes give way to a push that is not minor; returns by how many bytes it still does not fit."""
        if minor or excess <= 0 or self._minor is None:
            return excess
        for lane in list(self._minor):
            own = self._index().get(lane)
            if own is not None:
                before = self._size
                _, count = self._drop(own, excess, None)
                self.gave_way += count
                excess -= before - self._size
                if excess <= 0:
                    break
            if self._minor is not None:  # else the queue has run empty
                self._minor.pop(lane, None)
        return excess

    # -- out

    def take(self, max_bytes: int) -> list[bytes]:
        """Take entries out for writing, in the order they came, across lanes and control.

        :param max_bytes: of data, together; at least one entry is taken, however large, if there is any.
        """
        queue = self._queue
        taken: list[bytes] = []
        if queue is None:
            return taken
        lanes = self._lanes
        overhead = self._overhead
        left = max_bytes
        while queue:
            entry = queue[0]
            data = entry if isinstance(entry, bytes) else entry.data
            if data is None:
                self._dead -= 1
            else:
                left -= len(data)
                if left < 0 and taken:
                    break
                taken.append(data)
                self._size -= len(data) + overhead
            queue.popleft()
            if lanes is not None and data is not None and isinstance(entry, _Entry):
                entry.data = None
                own = lanes[entry.lane]
                own.remove(entry, len(data) + overhead)
                if own.head is None:
                    del lanes[entry.lane]
        self._taken += len(taken)
        self._let_go()
        return taken

    def discard(self, lane: Hashable) -> int:
        """Remove what *lane* has queued, and that it lags: the room was left. O(n) in the whole queue.

        :return: how many entries.
        """
        self.resume(lane)
        if self._queue is None:
            return 0
        before = len(self)
        self._rebuild(lambda entry: entry.lane != lane)
        removed = before - len(self)
        self._discarded += removed
        return removed

    def clear(self) -> int:
        """Remove everything, control too: the connection has ended. Return how many entries."""
        removed = len(self)
        self._discarded += removed
        self._queue = self._lanes = self._lagging = self._minor = None
        self._size = self._dead = 0
        return removed

    # -- lanes that lag

    def resume(self, lane: Hashable) -> None:
        """Let *lane* take pushes again: the owner has read on from history. Harmless if it does not lag."""
        if self._lagging is not None:
            self._lagging.discard(lane)
            if not self._lagging:
                self._lagging = None

    def lags(self, lane: Hashable) -> bool:
        """Whether *lane* refuses pushes until :meth:`resume`."""
        return self._lagging is not None and lane in self._lagging

    @property
    def lagging(self) -> frozenset[Hashable]:
        """The lanes that refuse pushes until :meth:`resume`."""
        return frozenset(self._lagging or ())

    # -- inside

    def _cost(self, entry: _Entry) -> int:
        return (0 if entry.data is None else len(entry.data)) + self._overhead

    def _index(self) -> dict[Hashable, _Lane]:
        if self._lanes is None:
            self._lanes = {}
            for entry in self._queue or ():
                if isinstance(entry, _Entry) and entry.data is not None:
                    own = self._lanes.get(entry.lane)
                    if own is None:
                        own = self._lanes[entry.lane] = _Lane()
                    entry.next = None
                    own.append(entry, self._cost(entry))
        return self._lanes

    def _bury(self, own: _Lane, entry: _Entry) -> None:
        """Make a tombstone of a living, queued entry."""
        cost = self._cost(entry)
        entry.data = None
        self._size -= cost
        self._dead += 1
        own.remove(entry, cost)

    def _sweep(self) -> None:
        if self._queue is not None and self._dead > _SMALL and self._dead * 2 > len(self._queue):
            self._rebuild(lambda entry: True)

    def _rebuild(self, keep: Callable[[_Entry], bool]) -> None:
        """Without tombstones, and without living entries that *keep* says no to; without the index too."""
        old = self._queue or ()
        self._queue = queue = deque[bytes | _Entry]()
        for entry in old:
            if isinstance(entry, bytes):
                queue.append(entry)
            elif entry.data is not None:
                if keep(entry):
                    queue.append(entry)
                else:
                    self._size -= self._cost(entry)
        self._dead = 0
        self._lanes = None
        self._let_go()

    def _let_go(self) -> None:
        """An empty outbox holds no container."""
        if not self._queue:
            self._queue = None
            self._lanes = None
            self._minor = None

    # -- looking at it

    @property
    def size(self) -> int:
        """Bytes queued, each entry with its overhead."""
        return self._size

    @property
    def limit(self) -> int:
        """Bytes of pushes it holds at the most."""
        return self._limit

    @property
    def conflated(self) -> int:
        """Entries so far whose place a later one with the same key took."""
        return self._conflated

    def __len__(self) -> int:
        return 0 if self._queue is None else len(self._queue) - self._dead

    def __bool__(self) -> bool:
        return len(self) > 0

    def statistics(self) -> OutboxStatistics:
        """What it holds now, and totals so far."""
        return OutboxStatistics(
            queued=len(self),
            taken=self._taken,
            dropped=self._dropped,
            conflated=self._conflated,
            discarded=self._discarded,
            refused=self._refused,
            overflows=self._overflows,
            size=self._size,
            lagging=len(self._lagging or ()),
        )

    def __repr__(self) -> str:
        lagging = f", {len(self._lagging)} lanes lag" if self._lagging else ""
        return f"<Outbox {len(self)} entries, {self._size} of {self._limit} bytes{lagging}>"
