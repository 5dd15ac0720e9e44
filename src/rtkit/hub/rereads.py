"""History that was read for one member, kept for a moment for those who come next (F2).

After a storm thousands come back to a room, within seconds, from about the same places. Each reads on from where it
stands; what the first has read serves the others:

- *Runs.* Entries without a hole between them, from pages that were read and from what was delivered since. A member
  that stands within one gets its page from there. An entry never changes within its epoch (:mod:`rtkit.streams`), so
  a page out of memory is a page that was read some seconds ago; what comes behind it the member buffers, or reads.
- *One at a time.* While a read is under way for a room, others wait for what it brings: a page, or that it failed.
- *Some more below.* Whoever stands a little before a run is one of a crowd, so that some more is read below: ten
  thousand members in ten thousand places read as often as there are pages.
- That an epoch is over, and that what is asked for is trimmed, is true for others as well.

Nothing is kept longer than :data:`KEPT` seconds, whoever wants it, because what it has may be beyond the history's
bounds by then (H6); nor of an epoch that is over, nor more than :data:`ROOM` bytes of a room and :data:`ALL` of all.
One entry of a room is kept however large it is: a crowd behind it would read it as often as there are members.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..position import GapReason, Position
from ..streams import Entry, StreamPage

if TYPE_CHECKING:
    from ..clock import Clock
    from ..primitives.deadlines import Deadline, Deadlines

__all__ = ["ALL", "KEPT", "ROOM", "Rereads", "RoomReads"]

#: Seconds since it was read, and since somebody last wanted it.
KEPT: Final = 10.0
#: Bytes of one room, and of all rooms.
ROOM: Final = 2 * 1024 * 1024
ALL: Final = 64 * 1024 * 1024
#: Places from which crowds come back to one room, and epochs that they come from.
_RUNS: Final = 4
_OVER: Final = 8
#: Bytes that an entry takes besides its payload, about.
_OVERHEAD: Final = 100

Read = Callable[[Position, int], Awaitable[StreamPage]]


def _size(entry: Entry) -> int:
    return len(entry.payload) + _OVERHEAD


@dataclass(slots=True)
class _Run:
    """Entries that follow on each other, the first right behind *start*.

    :ivar top: of the stream, as far as it was seen; likewise *floor*.
    :ivar born: when the oldest part of it was read: what it has may be beyond the history's bounds since.
    """

    start: int
    entries: list[Entry]
    top: int
    floor: int
    born: float

    @property
    def end(self) -> int:
        return self.start + len(self.entries)

    @property
    def size(self) -> int:
        return sum(map(_size, self.entries))


class RoomReads:
    """What is kept of one room.

    :ivar size: in bytes.
    :ivar used: when somebody last wanted it.
    """

    __slots__ = ("_epoch", "_flight", "_forgotten", "_over", "_owner", "_runs", "size", "used")

    def __init__(self, owner: Rereads) -> None:
        self._owner = owner
        self._epoch = ""
        self._runs: list[_Run] = []  # the one used last at the end
        self._over: dict[str, StreamPage] = {}  # epochs that are over, and the page that says so
        self._flight: asyncio.Future[None] | None = None
        self._forgotten = 0  # times
        self.size = 0
        self.used = 0.0

    def delivered(self, epoch: str, entry: Entry) -> None:
        """The feed has handed out an entry: a run that ends right before it goes on."""
        if epoch != self._epoch:
            self.forget()
            return
        for run in self._runs:
            if run.end + 1 == entry.offset:
                run.entries.append(entry)
                run.top = max(run.top, entry.offset)
                self._resize(_size(entry))
                self._shorten(run)
                self._owner.shorten()
                return

    @property
    def empty(self) -> bool:
        """Nothing is kept."""
        return not (self._runs or self._over)

    def forget(self) -> None:
        """What is kept is void, and so is what is being read."""
        self._forgotten += 1
        if not self.empty:
            self._runs.clear()
            self._over.clear()
            self._resize(-self.size)
            self._owner.drop(self)

    async def read(self, position: Position, limit: int, read: Read) -> StreamPage:
        """The page from a member's place on: one that is at hand and brings it on, else one that is read now.

        :param read: asks the broker.
        :raises Unavailable: when the broker cannot be reached.
        """
        while (page := self._find(position, limit)) is None and self._flight is not None:
            await asyncio.shield(self._flight)
        if page is None:
            page = await self._fly(position, limit, read)
        self._owner.use(self)
        return page

    async def _fly(self, position: Position, limit: int, read: Read) -> StreamPage:
        self._flight = flight = asyncio.get_running_loop().create_future()
        try:
            return await self._ask(position, limit, read)
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # retrieved: perhaps nobody waits
            raise
        finally:
            self._flight = None
            if not flight.done():
                flight.set_result(None)  # it is there; or this one was cancelled, and the next one reads

    async def _ask(self, position: Position, limit: int, read: Read) -> StreamPage:
        offset, forgotten = position.offset, self._forgotten
        if (more := self._below(position, limit)) > 0:
            page = await read(Position(position.epoch, offset - more), limit + more)
            # A page may be cut by its bytes before it comes to where this member stands: then it is of no use to it.
            brings = page.start <= offset < page.end or page.start <= offset == page.top
            if brings and page.epoch == position.epoch and page.lost in (None, "trimmed"):
                if forgotten == self._forgotten:
                    self._keep(page)
                entries = page.entries[offset - page.start :][:limit]
                # What is lost of the part that was read besides is nobody's loss.
                return StreamPage(page.epoch, page.top, page.floor, offset, entries)
        page = await read(position, limit)
        if forgotten == self._forgotten:
            self._keep(page)
            if page.lost == "epoch" and page.epoch != position.epoch and len(self._over) < _OVER:
                self._over[position.epoch] = page
        return page

    def _below(self, position: Position, limit: int) -> int:
        """How much more is worth reading before a place: some if it is a little before where others stand.

        As much as would be kept besides, going by the entries that are.
        """
        offset = position.offset
        if position.epoch != self._epoch:
            return 0
        for run in self._runs:
            if offset < run.start <= offset + limit:
                return min(limit // 2, offset, ROOM // 2 * len(run.entries) // run.size)
        return 0

    def _find(self, position: Position, limit: int) -> StreamPage | None:
        if position.epoch != self._epoch:
            return self._over.get(position.epoch)
        offset = position.offset
        self._forget_old()
        for index in range(len(self._runs) - 1, -1, -1):
            run = self._runs[index]
            lost: GapReason | None = None
            if offset < run.start <= run.floor:
                lost, offset = "trimmed", run.start
            if run.start <= offset < run.end:
                self._runs.append(self._runs.pop(index))
                first = offset - run.start
                entries = tuple(run.entries[first : first + limit])
                return StreamPage(self._epoch, run.top, run.floor, offset, entries, lost)
        return None

    def _forget_old(self) -> None:
        """However much it is wanted: history is bounded when it is read, too (H6)."""
        since = self._owner.now() - KEPT
        if any(run.born <= since for run in self._runs):
            self._runs = [run for run in self._runs if run.born > since]
            self._resize(sum(each.size for each in self._runs) - self.size)
            if self.empty:
                self._owner.drop(self)

    def _keep(self, page: StreamPage) -> None:
        """Keep what a page has shown; the beginning of it, if it is too much."""
        if page.epoch != self._epoch:
            self.forget()
            self._epoch = page.epoch
        entries: list[Entry] = []
        size = 0
        for entry in page.entries:
            size += _size(entry)
            if size > ROOM and entries:
                break
            entries.append(entry)
        if not entries:
            return
        self._forget_old()
        run = _Run(page.start, entries, page.top, page.floor, self._owner.now())
        for other in tuple(self._runs):
            if other.start <= run.end and run.start <= other.end:
                self._runs.remove(other)
                run = _joined(run, other)
        self._runs.append(run)
        del self._runs[:-_RUNS]
        self._resize(sum(each.size for each in self._runs) - self.size)
        self._shorten(run)

    def _shorten(self, run: _Run) -> None:
        """Forget what is too much: other runs, then the oldest of this one."""
        while self.size > ROOM and len(self._runs) > 1:
            other = next(each for each in self._runs if each is not run)
            self._runs.remove(other)
            self._resize(-other.size)
        count = gone = 0
        while self.size - gone > ROOM and count < len(run.entries) - 1:
            gone += _size(run.entries[count])
            count += 1
        if count:
            del run.entries[:count]
            run.start += count
            self._resize(-gone)

    def _resize(self, by: int) -> None:
        self.size += by
        self._owner.size += by

    def __repr__(self) -> str:
        return f"<RoomReads {len(self._runs)} runs, {self.size} bytes>"


def _joined(one: _Run, other: _Run) -> _Run:
    """Two runs that touch each other as one."""
    low, high = (one, other) if one.start <= other.start else (other, one)
    entries = low.entries + high.entries[max(0, low.end - high.start) :]
    return _Run(
        low.start, entries, max(one.top, other.top), max(one.floor, other.floor), min(one.born, other.born)
    )


class Rereads:
    """What is kept of all rooms of an engine.

    :ivar size: in bytes.
    """

    __slots__ = ("_clock", "_deadline", "_deadlines", "_rooms", "size")

    def __init__(self, clock: Clock, deadlines: Deadlines) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._deadline: Deadline | None = None
        self._rooms: dict[RoomReads, None] = {}  # the one used last at the end
        self.size = 0

    def now(self) -> float:
        """By the clock of all of this."""
        return self._clock.monotonic()

    def room(self) -> RoomReads:
        """For one room; nothing is kept of it yet."""
        return RoomReads(self)

    def use(self, room: RoomReads) -> None:
        """Somebody has wanted it."""
        room.used = self._clock.monotonic()
        self._rooms.pop(room, None)
        if not room.empty:
            self._rooms[room] = None
        self.shorten()
        if self._rooms and self._deadline is None:
            self._deadline = self._deadlines.at(room.used + KEPT, self._sweep)

    def shorten(self) -> None:
        """Forget what is too much: of the rooms that were not wanted for longest."""
        while self.size > ALL:
            next(iter(self._rooms)).forget()

    def drop(self, room: RoomReads) -> None:
        """There is nothing of it any more."""
        self._rooms.pop(room, None)
        if not self._rooms and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _sweep(self) -> None:
        self._deadline = None
        now = self._clock.monotonic()
        for room in list(self._rooms):
            if room.used + KEPT > now:
                self._deadline = self._deadlines.at(room.used + KEPT, self._sweep)
                return
            room.forget()

    def __repr__(self) -> str:
        return f"<Rereads of {len(self._rooms)} rooms, {self.size} bytes>"
