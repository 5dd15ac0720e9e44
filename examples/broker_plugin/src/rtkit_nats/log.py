"""What a row of records means. Pure: no I/O, no clock.

The theory
==========
A topic's stream is a *log*: the messages of one subject of JetStream, each a :class:`~.records.Record`. Nothing else
is stored. Whoever has read them all, in their order, knows the epoch, the top, what is kept, which keys were used:
:class:`Log` is that knowledge, and :meth:`Log.apply` adds one record to it.

**Writing** is: know the log up to its last record, decide, and have the server store a new one *on the condition that
the last one is still the last*. JetStream checks that and stores in one act (``Nats-Expected-Last-Subject-Sequence``),
which is all the atomicity there is, and all that is needed: had anybody appended, cleared, or used the key meanwhile,
the condition fails, we read what we did not know, and decide again.

**Reading** is: ask for the last record, read those between it and the last one known, and then answer from what is
known. Nodes get the records of subscribed topics anyway, as they are delivered, so that mostly nothing is left to read.

**Forgetting**. Old records are purged from the front only: so each one says enough for a log to begin with it. What
comes before the first entry that is there is not kept; nobody has to have written that down. Should the server lose
records in the middle, or at the front, it is the same: entries that do not join on to the rest are not shown.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from rtkit.brokers import NewEntry
from rtkit.messages import History
from rtkit.position import GapReason, Position
from rtkit.streams import locate, locate_back

from .records import Bounds, Record

__all__ = ["Kept", "Log", "Plan", "bounds_of"]

# A page holds no more bytes than this, or one entry; whoever wants more reads on.
_PAGE_BYTES = 8 * 1024 * 1024

# How many former epochs are remembered.
_TAKEOVERS = 16


class Kept(NamedTuple):
    """An entry that is kept: its offset, its bytes, when it was stored, and the sequence of its record."""

    offset: int
    size: int
    stored: float
    sequence: int


class _Used(NamedTuple):
    """A key that was used, where, when, and the sequence of its record."""

    position: Position
    stored: float
    sequence: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a page will say, and which entries have to be fetched for it."""

    epoch: str
    top: int
    floor: int
    start: int
    wanted: tuple[Kept, ...]
    lost: GapReason | None


def bounds_of(history: History) -> Bounds:
    """A ``History`` as it is written down."""
    return history.count, history.size, history.ttl


def _at_most(entries: Iterable[Kept]) -> tuple[Kept, ...]:
    """The first of them that fit into a page: at least one."""
    found: list[Kept] = []
    size = 0
    for entry in entries:
        size += entry.size
        if found and size > _PAGE_BYTES:
            break
        found.append(entry)
    return tuple(found)


class Log:
    """What is known of a topic's stream.

    :param window: seconds that keys are remembered.
    :ivar sequence: the last record that is known; 0 when there is none.
    :ivar asked: a number that grows: when somebody last asked the server whether this is all.
    """

    def __init__(self, window: float) -> None:
        self.sequence = 0
        self.asked = 0
        self.epoch = ""
        self.top = 0
        self.bounds: Bounds | None = None
        self.takeovers: tuple[tuple[str, int], ...] = ()
        self.fence = ""
        self._window = window
        self._size = 0
        self._kept: deque[Kept] = deque()
        self._keys: OrderedDict[str, _Used] = OrderedDict()  # in order of time
        self._records: deque[int] = deque()  # sequences of those that are stored, as far as is known
        self._last_size = 0

    @property
    def position(self) -> Position:
        """Where the stream stands."""
        return Position(self.epoch, self.top)

    @property
    def floor(self) -> int:
        """Entries up to here are not kept."""
        return self._kept[0].offset - 1 if self._kept else self.top

    # -- reading the log

    def apply(self, record: Record, *, sequence: int, stored: float) -> None:
        """Take note of the next record: its sequence, and when it was stored."""
        self.trim(stored)  # by what held until now, as if somebody had looked in that moment
        if not self._continues(record):
            self._kept.clear()
            self._size = 0
        self.epoch, self.fence, self.takeovers = record.epoch, record.fence, record.takeovers
        self.bounds = record.bounds or self.bounds
        offset = record.first - 1
        for entry in record.entries:
            offset += 1
            self._kept.append(Kept(offset, len(entry.payload), stored, sequence))
            self._size += len(entry.payload)
            if entry.key is not None:
                self._keys[entry.key] = _Used(Position(record.epoch, offset), stored, sequence)
                self._keys.move_to_end(entry.key)
        self.top = offset
        self.sequence = sequence
        self._records.append(sequence)
        self._last_size = record.size
        self.trim(stored)

    def skip(self, sequence: int) -> None:
        """Pass over a message that is no record: it is only the one after which the next comes."""
        self.sequence = sequence
        self._records.append(sequence)

    def ends_with(self, record: Record) -> bool:
        """Whether this is the record that was applied last."""
        return record.end == self.position

    def _continues(self, record: Record) -> bool:
        same = record.epoch == self.epoch or any(epoch == self.epoch for epoch, _ in record.takeovers)
        return same and record.first == self.top + 1

    def trim(self, now: float) -> None:
        """Forget what is beyond the bounds at this moment, and keys whose window is over."""
        if self.bounds is not None:
            for _ in range(self._beyond(now, self.bounds)):
                self._size -= self._kept.popleft().size
        while self._keys and next(iter(self._keys.values())).stored + self._window <= now:
            self._keys.popitem(last=False)

    def _beyond(self, now: float, bounds: Bounds) -> int:
        """How many of the oldest entries are beyond bounds. The newest only ages."""
        (count, size, ttl), kept, left = bounds, len(self._kept), self._size
        number = 0
        for entry in self._kept:
            aged = entry.stored <= now - ttl
            if not (aged or kept - number > count or (left > size and kept - number > 1)):
                break
            left -= entry.size
            number += 1
        return number

    # -- deciding what to write

    def repeated(self, entries: Iterable[NewEntry], now: float) -> dict[str, Position]:
        """Of these entries' keys those that were used within the window, and where."""
        self.trim(now)
        return {key: self._keys[key].position for _, key in entries if key is not None and key in self._keys}

    def appending(self, entries: Sequence[NewEntry], history: History) -> Record:
        """The record that appends these entries."""
        return replace(self.mark(), entries=tuple(entries), bounds=bounds_of(history))

    def mark(self) -> Record:
        """A record that says where the stream stands, and nothing new."""
        return Record(
            self.epoch,
            self.top + 1,
            bounds=self.bounds,
            takeovers=self.takeovers,
            fence=self.fence,
            before=self.sequence,
        )

    def beginning(self, epoch: str, fence: str) -> Record:
        """The record that begins a new epoch, which has nothing to do with the one before."""
        return Record(epoch, 1, bounds=self.bounds, fence=fence, before=self.sequence)

    def taken_over(self, epoch: str, fence: str) -> Record:
        """The record that begins a new epoch, in which the stream goes on as far as we have it."""
        over = (*self.takeovers, (self.epoch, self.top))[-_TAKEOVERS:]
        return replace(self.mark(), epoch=epoch, fence=fence, takeovers=over)

    # -- answering

    def plan(
        self, now: float, *, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> Plan:
        """The page that :meth:`rtkit.brokers.StreamBroker.read` asks for, but for its payloads."""
        self.trim(now)
        base, limit = self.floor, max(0, limit)
        floor = base + (self._beyond(now, bounds_of(history)) if history is not None else 0)
        if reverse:
            last, lost = locate_back(
                since, epoch=self.epoch, top=self.top, floor=floor, takeovers=self.takeovers
            )
            start = min(last, max(floor, last - limit))
            wanted = _at_most(
                reversed(tuple(islice(self._kept, start - base, last - base))) if start >= floor else ()
            )
            if wanted:
                start = wanted[-1].offset - 1
        else:
            start, lost = locate(since, epoch=self.epoch, top=self.top, floor=floor, takeovers=self.takeovers)
            wanted = _at_most(islice(self._kept, start - base, start - base + limit))
        return Plan(self.epoch, self.top, floor, start, wanted, lost)

    # -- giving back

    def disposable(self, now: float, number: int = 1) -> int:
        """Records before this sequence may be purged; 0 if there are less than *number* of them."""
        self.trim(now)
        needed = self.sequence
        if self._kept:
            needed = min(needed, self._kept[0].sequence)
        if self._keys:
            needed = min(needed, next(iter(self._keys.values())).sequence)
        return needed if len(self._records) >= number and self._records[number - 1] < needed else 0

    def purged(self, before: int) -> None:
        """Records before this sequence were purged."""
        while self._records and self._records[0] < before:
            self._records.popleft()

    def last_is_stale(self, now: float) -> bool:
        """Whether the last record carries entries that nobody will be shown any more, and whose keys are forgotten."""
        self.trim(now)
        needed = bool(self._keys) and next(reversed(self._keys.values())).sequence == self.sequence
        return self._last_size > 0 and not self._kept and not needed

    def __repr__(self) -> str:
        return f"<Log {self.position}, {len(self._kept)} kept, {len(self._records)} records>"
