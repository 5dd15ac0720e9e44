"""What is too large to leave a connection whole, and what waits behind it (T8, D3).

A large unit stays outside of the outbox: one buffer, shared by all who send it, and of each connection a cursor. At
most one chunk leaves in a turn of the loop, and only when the transport has passed on what it had; so a ping or
another room's message waits for one chunk at the most. Clients that know no chunks get the unit in one frame, when
its turn has come.

Order
-----
A unit is delivered with its last chunk. What was queued before it has left by then: unless the outbox is empty, a
*fence* is put into it, an empty entry, and the first chunk is not sent before that has come out. What comes after it
in the same *lane*, a room, is held behind it, in an outbox of that lane's own, where the room's policy acts as it does
in the common one. Other lanes pass. When the large unit has left, what was held goes into the common outbox, as far as
the next large unit, for which the same begins anew.

Bounds
------
One large push at a time is under way that the outbox has no room for. A second one, of whatever room, is held like a
small unit; if it is larger than an outbox, a room with history lags, and reads it from there when it is its turn, and
a room without history drops it. Replies are never dropped: a connection gets no more commands worked off while half of
``Limits.large`` waits to leave, and whoever exceeds the whole of it all the same is a slow consumer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, final

from ..primitives.outbox import Outbox, Overflow, Spill
from ..transports import Batch
from ..wire import Cut

__all__ = ["FENCE", "Freight", "Parcel", "breathe"]

#: Stands in an outbox where a large unit would. No unit is empty.
FENCE: Final = b""

#: Chunks of a parcel kept for others who are about to send them too.
_KEPT: Final = 4
_OVERHEAD: Final = 64

_LAGGING: Final = Spill(queued=False, lagging=True)
_OVERFLOW: Final = Spill(queued=False, overflow=True)
_DROPPED: Final = Spill(queued=False, dropped_count=1)


async def breathe() -> None:
    """Let others have their turn between two steps that take long, each of which is JSON of all of a large unit.

    Twice, because what the loop finds on its sockets comes behind whoever waits for one turn only.
    """
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@final
class Parcel:
    """A large unit, and its pieces in every form somebody writes: made once, not for each receiver (W2)."""

    __slots__ = ("__weakref__", "_batches", "_cut", "_whole", "count")

    def __init__(self, unit: bytes, of: int) -> None:
        self._cut = Cut(unit, of, push=True)
        self._batches: dict[int, Batch] = {}
        self._whole: Batch | None = None
        self.count = len(self._cut)

    @property
    def unit(self) -> bytes:
        """The whole."""
        return self._cut.unit

    @property
    def of(self) -> int:
        """Its id on the wire."""
        return self._cut.of

    def chunk(self, n: int) -> Batch:
        """Chunk *n*."""
        found = self._batches.get(n)
        if found is None:
            found = self._batches[n] = Batch([self._cut.chunk(n)])
            if len(self._batches) > _KEPT:
                del self._batches[next(iter(self._batches))]
        return found

    def whole(self) -> Batch:
        """The unit in one piece."""
        if self._whole is None:
            self._whole = Batch([self.unit])
        return self._whole

    def __repr__(self) -> str:
        return f"<Parcel of {self._cut!r}>"


class _Shipment:
    """A parcel on its way out of one connection."""

    __slots__ = ("lane", "n", "parcel", "push", "void")

    def __init__(self, lane: Hashable, parcel: Parcel, *, push: bool) -> None:
        self.lane = lane
        self.parcel = parcel
        self.push = push
        self.n = 0
        self.void = False


@final
class Freight:
    """See the module's theory. A connection has one only while something large is on its way.

    :param parcel: makes a unit's parcel, or finds the one that others send.
    :param small: bytes of a unit at the most that goes through the outbox.
    :param whole: the client knows no chunks.
    :param limit: bytes of pushes that wait at the most, with what is outside; as in an outbox.
    :param reserve: on top of that for control.
    """

    __slots__ = (
        "_answers",
        "_behind",
        "_fenced",
        "_lag",
        "_limit",
        "_parcel",
        "_queue",
        "_reserve",
        "_small",
        "_whole",
        "replies",
    )

    def __init__(
        self, parcel: Callable[[bytes], Parcel], *, small: int, whole: bool, limit: int, reserve: int
    ) -> None:
        self._parcel = parcel
        self._small = small
        self._whole = whole
        self._limit = limit
        self._reserve = reserve
        self._queue: deque[_Shipment] = deque()
        self._fenced: deque[_Shipment] = deque()
        self._behind: dict[
            Hashable, Outbox | None
        ] = {}  # of each lane that is held; None before anything waits
        self._lag: set[Hashable] = set()
        # Large replies that are held, by the identity of the notes that stand for them.
        self._answers: dict[int, tuple[bytes, bytes]] = {}
        self.replies = 0
        """Bytes of large replies that have not left."""

    # -- in

    def holds(self, lane: Hashable) -> bool:
        """Whether what comes in this lane has to wait."""
        return lane in self._behind

    def answers(self, lane: Hashable) -> bool:
        """Whether a large reply in this lane has not left, and with it perhaps others that are held behind it.

        None is held behind a push alone: who joins anew has left before, and then there are no pushes any more.
        """
        return any(
            each.lane == lane and not each.push and not each.void for each in (*self._queue, *self._fenced)
        )

    @property
    def takes_push(self) -> bool:
        """Whether a large push may begin now: none is under way."""
        return not any(each.push for each in (*self._queue, *self._fenced))

    def begin(self, lane: Hashable, unit: bytes, *, push: bool, fenced: bool) -> None:
        """Have a large unit leave, after all that was begun before it.

        :param lane: what comes in it is held from now on; None for a reply that nothing has to wait for.
        :param fenced: the caller puts a :data:`FENCE` into the outbox, and calls :meth:`passed` when it comes out.
        """
        shipment = _Shipment(lane, self._parcel(unit), push=push)
        (self._fenced if fenced else self._queue).append(shipment)
        if lane is not None:
            self._behind.setdefault(lane, None)
        if not push:
            self.replies += len(unit)

    def hold(
        self, lane: Hashable, unit: bytes, policy: Overflow, *, key: Hashable, mark: int, outside: int
    ) -> Spill | None:
        """Have a push wait in its lane, or do what the policy says when there is no room; as ``Outbox.push``.

        :param outside: bytes in the common outbox and in the transport.
        """
        if lane in self._lag:
            return _LAGGING
        own = self._own(lane)
        if len(unit) + _OVERHEAD > self._limit:
            if mark:
                self._lag.add(lane)
                return _LAGGING
            return _OVERFLOW if policy == "close" else _DROPPED
        return own.push(lane, unit, policy, key=key, mark=mark, outside=outside + self.waiting - own.size)

    def hold_control(self, lane: Hashable, unit: bytes, *, outside: int, most: int) -> bool:
        """Have a control push wait in its lane; False when not even the reserve has room.

        :param most: bytes of large replies beyond which there is no more. In the lane a note stands for each.
        """
        large = len(unit) > self._small
        if large and self.replies > most:
            return False
        own = self._own(lane)
        note = b"answer %d" % self.replies if large else unit
        if not own.put(note, outside=outside + self.waiting - own.size):
            return False
        if large:
            self._answers[id(note)] = note, unit
            self.replies += len(unit)
        return True

    def _own(self, lane: Hashable) -> Outbox:
        own = self._behind.get(lane)
        if own is None:
            own = self._behind[lane] = Outbox(limit=self._limit, reserve=self._reserve, overhead=_OVERHEAD)
        return own

    @property
    def waiting(self) -> int:
        """Bytes held in lanes; what an outbox must count as outside."""
        return sum(own.size for own in self._behind.values() if own is not None)

    # -- out

    def passed(self) -> None:
        """A fence has come out of the outbox."""
        shipment = self._fenced.popleft()
        if not shipment.void:
            self._queue.append(shipment)

    @property
    def ready(self) -> bool:
        """Whether :meth:`next` has something."""
        return bool(self._queue)

    def next(self) -> tuple[Batch, list[bytes]]:
        """The next piece to be sent, and what may go into the common outbox once it is: units, and fences."""
        shipment = self._queue[0]
        parcel = shipment.parcel
        if self._whole:
            batch = parcel.whole()
        else:
            batch = parcel.chunk(shipment.n)
            shipment.n += 1
            if shipment.n < parcel.count:
                return batch, []
        self._queue.popleft()
        if not shipment.push:
            self.replies -= len(parcel.unit)
        return batch, self._after(shipment.lane)

    def _after(self, lane: Hashable) -> list[bytes]:
        """A shipment of *lane* has left, or will not: what need not wait any more."""
        units: list[bytes] = []
        if lane is not None and not self._carries(lane):
            self._release(lane, units)
        for other in list(self._behind):
            if not self.takes_push:
                break
            if not self._carries(other):
                self._release(other, units)
        return units

    def _carries(self, lane: Hashable) -> bool:
        return any(each.lane == lane and not each.void for each in (*self._queue, *self._fenced))

    def _release(self, lane: Hashable, units: list[bytes]) -> None:
        """Let go what is held in a lane, as far as the next large unit."""
        own = self._behind.get(lane)
        while own:
            [unit] = own.take(1)
            answer = self._answers.pop(id(unit), None)
            if answer is not None:
                unit = answer[1]
                self.replies -= len(unit)  # begun, it counts again
            if len(unit) > self._small:
                self.begin(lane, unit, push=answer is None, fenced=True)
                units.append(FENCE)
                return
            units.append(unit)
        self._behind.pop(lane, None)
        self._lag.discard(lane)

    def discard(self, lane: Hashable) -> list[bytes]:
        """The room was left: no more pushes of its lane. One that is under way is given up, and never ends.

        Replies and control stay, in their order: the client waits for them.

        :return: what need not wait any more, as of :meth:`next`.
        """
        if lane not in self._behind:
            return []
        own = self._behind[lane]
        if own is not None:
            own.discard(lane)
        self._lag.discard(lane)
        for shipment in self._fenced:
            if shipment.push and shipment.lane == lane:
                # Its fence is in the outbox, so it stays until that has come out.
                shipment.void, shipment.push = True, False
        self._queue = deque(each for each in self._queue if not (each.push and each.lane == lane))
        return self._after(lane)

    def __bool__(self) -> bool:
        return bool(self._queue or self._fenced or self._behind)

    def __repr__(self) -> str:
        under_way = len(self._queue) + len(self._fenced)
        return f"<Freight {under_way} large units, {len(self._behind)} lanes held, {self.waiting} bytes behind them>"
