"""How far everybody is in a room, as one node sees it (X2). Pure: no task, no clock, no wire.

The broker has the truth: an entry for each user, in which each mark stands in the epoch in which it was made. A board
is a :class:`.Follower` of them, and shows all marks as offsets of the present epoch.

Marks only move forward. So a board never shows less than it has shown in an epoch: when the broker does, because it has
lost what was written last, :meth:`Board.read` says what is to be written again. And it does no harm to tell somebody of
a mark twice, or of two marks in two frames: whoever has a whole picture and all that has changed since, in whatever
pieces, knows what the board knows.

Between epochs
--------------
Of each former epoch a :class:`Carry` knows how far it is the same stream as the present one: up to where that took
over, or not at all. A mark beyond that place moves back to it: what its user had read behind it is gone.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from ...position import Position
from .._following import Follower
from .entries import Stored

__all__ = ["Board", "Carry", "Found", "Mark", "Wanted", "epochs_in", "epochs_of", "merge"]

#: Bytes that a user takes in a frame besides its name, twice: quotes, colon, comma, and the offset.
_OVERHEAD: Final = 12


class Mark(NamedTuple):
    """A user's marks as offsets of one epoch; 0 is none. *read* is at most *delivered*."""

    delivered: int = 0
    read: int = 0

    def or_further(self, other: Mark) -> Mark:
        """The further of both, of each kind."""
        return Mark(max(self.delivered, other.delivered), max(self.read, other.read))


_NONE: Final = Mark()

#: Marks that somebody made, by the epoch in which they were made.
Wanted = dict[str, Mark]


class Carry(NamedTuple):
    """How marks of former epochs stand in the present one.

    :ivar epoch: the present one.
    :ivar shared: of former ones: up to which offset they are the same stream; None: nowhere.
    """

    epoch: str
    shared: Mapping[str, int | None]

    def knows(self, epoch: str) -> bool:
        """Whether it can tell."""
        return epoch == self.epoch or epoch in self.shared

    def offset(self, position: Position | None) -> int:
        """Where that is in the present epoch; 0 if nowhere. Its epoch is known."""
        if position is None:
            return 0
        if position.epoch == self.epoch:
            return position.offset
        return min(position.offset, self.shared[position.epoch] or 0)

    def mark(self, stored: Stored) -> Mark:
        """A user's marks in the present epoch."""
        delivered, read = self.offset(stored.delivered), self.offset(stored.read)
        return Mark(max(delivered, read), read)


def epochs_of(stored: Stored) -> set[str]:
    """The epochs in which its marks stand."""
    return {each.epoch for each in stored if each is not None}


def merge(stored: Stored, wanted: Wanted, carry: Carry | None) -> Stored:
    """What is to be stored when somebody has made marks besides what is stored: of each kind the furthest.

    :param carry: knows all epochs of both; None will do if they are one and the same.
    """
    if carry is None:
        ((epoch, mark),) = wanted.items()
        carry = Carry(epoch, {})
    mark = before = carry.mark(stored)
    for epoch, made in wanted.items():
        mark = mark.or_further(
            Mark(carry.offset(Position(epoch, made.delivered)), carry.offset(Position(epoch, made.read)))
        )
    if mark == before:
        return stored
    epoch = carry.epoch
    return Stored(Position(epoch, mark.delivered), Position(epoch, mark.read) if mark.read else None)


class Found(NamedTuple):
    """An entry: as it lies in the broker, and what it says."""

    raw: bytes
    stored: Stored


class Board(Follower):
    """The marks of one room.

    :ivar carry: by which they are shown.
    :ivar raws: the entries, as they lie in the broker.
    :ivar marks: by user; who has none in the present epoch is not there.
    :ivar names: of those, in order.
    :ivar renewed: what was told belongs to another epoch: a whole picture has to be told.
    """

    __slots__ = ("_changed", "carry", "marks", "names", "raws", "renewed")

    def __init__(self) -> None:
        super().__init__()
        self.carry = Carry("", {})
        self.raws: dict[str, bytes] = {}
        self.marks: dict[str, Mark] = {}
        self.names: list[str] = []
        self.renewed = False
        self._changed: dict[str, None] = {}

    # -- what the broker says ----------------------------------------------------------------------

    def announced(self, position: Position, entries: Mapping[str, Found]) -> None:
        """A revision: what it has changed. See :attr:`wants_read`."""
        if not self.advances(position):
            return
        for user, found in entries.items():
            self.raws[user] = found.raw
            if all(map(self.carry.knows, epochs_of(found.stored))):
                self._set(user, self.carry.mark(found.stored))
            else:
                self.wants_read = True  # the room is in another epoch, or was: somebody has to look

    def read(self, position: Position, entries: Mapping[str, Found], carry: Carry) -> Mapping[str, Mark]:
        """What the read has shown; the marks that the broker once had, and has no more.

        :param carry: knows the epochs of all entries, and that of the board.
        """
        first = self.position is None
        self.has_read(position)
        self.raws = {user: found.raw for user, found in entries.items()}
        before, known = self.carry, self.marks
        self.carry = carry
        if carry.epoch != before.epoch:
            self.renewed = not first
            self.marks, self.names = {}, []
            self._changed.clear()
            # What was seen is carried over, too.
            for user, mark in known.items():
                self._set(
                    user,
                    Mark(
                        carry.offset(Position(before.epoch, mark.delivered)),
                        carry.offset(Position(before.epoch, mark.read)),
                    ),
                )
        for user, found in entries.items():
            self._set(user, carry.mark(found.stored))
        if first or self.renewed:
            self._changed.clear()
        return {
            user: mark
            for user, mark in self.marks.items()
            if user not in entries or carry.mark(entries[user].stored) != mark
        }

    def _set(self, user: str, mark: Mark) -> None:
        old = self.marks.get(user)
        if old is None:
            if mark == _NONE:
                return
            insort(self.names, user)
        else:
            mark = mark.or_further(old)
            if mark == old:
                return
        self.marks[user] = mark
        self._changed[user] = None

    # -- what others are told ----------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether there is something to be told."""
        return self.renewed or bool(self._changed)

    def take(self, size: int) -> list[str]:
        """Users whose marks have moved and were not told since, the longest ago first; about *size* bytes of them."""
        taken: list[str] = []
        for user in self._changed:
            size -= 2 * (len(user.encode()) + _OVERHEAD)
            if size < 0 and taken:
                break
            taken.append(user)
        for user in taken:
            del self._changed[user]
        return taken

    def page(self, after: str, count: int) -> tuple[list[str], bool]:
        """The next users behind *after* in the order of their names, and whether there are more."""
        start = bisect_right(self.names, after)
        return self.names[start : start + count], len(self.names) > start + count

    def first(self, count: int, user: str) -> tuple[list[str], bool]:
        """The first users, one of them *user* if it has a mark, and whether there are more."""
        listed, more = self.page("", count)
        if more and user in self.marks and user > listed[-1]:
            listed[-1] = user
        return listed, more

    def __repr__(self) -> str:
        state = ", wants to read" if self.wants_read else ""
        return f"<Board of {len(self.marks)} in {self.carry.epoch!r} at {self.position}{state}>"


def epochs_in(entries: Iterable[Stored], also: Collection[str] = ()) -> set[str]:
    """All epochs that somebody has to know."""
    found = {epoch for epoch in also if epoch}
    for each in entries:
        found |= epochs_of(each)
    return found
