"""Who is in a room, as one node sees it (P1, P2). Pure: no task, no clock, no wire.

The broker has the truth: the fields of one key, one for each client. A roster is a :class:`.Follower` of them. What
a read shows it adopts, and the difference to what it had is what has changed: whether it was announced or read makes
none to those who are told.

It tells in *frames*, numbered 1, 2, 3 …: what has changed since the frame before, each client at most once. Who came
and went in between, or left and was back, is in none. A *snapshot* is what the frames up to now amount to, with the
number of the last; so a snapshot and the frames that follow it agree, whenever it was taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ...position import Position
from .._following import Follower

__all__ = ["Frame", "Present", "Roster"]

#: Bytes that an entry takes on the wire besides its user, client and meta.
_OVERHEAD: Final = 36


@dataclass(frozen=True, slots=True)
class Present:
    """A client that is in a room.

    :param meta: what it says about itself: a JSON object.
    :param node: that it is connected to; likewise *incarnation*, the node's life.
    :param generation: how often its session was taken up again.
    """

    client: str
    user: str
    meta: bytes = b"{}"
    node: str = ""
    incarnation: str = ""
    generation: int = 0

    def looks_like(self, other: Present) -> bool:
        """Whether others would see no difference: on which node it is does not concern them (P4)."""
        return self.user == other.user and self.meta == other.meta

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire."""
        return _OVERHEAD + len(self.client) + len(self.user.encode()) + len(self.meta)


@dataclass(frozen=True, slots=True)
class Frame:
    """What has changed since the frame before.

    :param v: its number.
    """

    v: int
    joins: tuple[Present, ...] = ()
    leaves: tuple[Present, ...] = ()
    updates: tuple[Present, ...] = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes on the wire."""
        return sum(each.size for each in (*self.joins, *self.leaves, *self.updates))


class Roster(Follower):
    """The members of one room.

    :ivar v: the number of the last frame.
    :ivar size: about how many bytes all members take on the wire.
    """

    __slots__ = ("_before", "_users", "members", "size", "v")

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[str, Present] = {}
        self.v = 0
        self.size = 0
        self._users: Counter[str] = Counter()
        self._before: dict[
            str, Present | None
        ] = {}  # of who has changed since the last frame: what it was then

    # -- what the broker says ----------------------------------------------------------------------

    def announced(self, position: Position, changes: Mapping[str, Present | None]) -> None:
        """A revision: who is there now, or has changed; None: is not there any more. See :attr:`wants_read`."""
        if self.advances(position):
            for client, present in changes.items():
                self._set(client, present)

    def read(self, position: Position, members: Iterable[Present]) -> None:
        """What the read has shown. It asks for another when more was announced meanwhile than it shows."""
        first = self.position is None
        found = {each.client: each for each in members}
        for client in [client for client in self.members if client not in found]:
            self._set(client, None)
        for client, present in found.items():
            self._set(client, present)
        if first:
            self._before.clear()  # who was there from the beginning has not come
        self.has_read(position)

    def _set(self, client: str, present: Present | None) -> None:
        old = self.members.pop(client, None) if present is None else self.members.get(client)
        if old is not None:
            self._count(old, -1)
        if present is not None:
            self.members[client] = present
            self._count(present, 1)
        if client not in self._before:
            if not _alike(old, present):
                self._before[client] = old
        elif _alike(self._before[client], present):
            del self._before[client]

    def _count(self, present: Present, by: int) -> None:
        self.size += by * present.size
        self._users[present.user] += by
        if not self._users[present.user]:
            del self._users[present.user]

    # -- what others are told ----------------------------------------------------------------------

    @property
    def clients(self) -> int:
        """How many clients are there."""
        return len(self.members)

    @property
    def users(self) -> int:
        """How many users are there: several clients of one are one."""
        return len(self._users)

    @property
    def changed(self) -> bool:
        """Whether there is something for a frame."""
        return bool(self._before)

    def frame(self) -> Frame | None:
        """What has changed since the last one; None when nothing has."""
        if not self._before:
            return None
        joins: list[Present] = []
        leaves: list[Present] = []
        updates: list[Present] = []
        for client, before in self._before.items():
            now = self.members.get(client)
            if before is None and now is not None:
                joins.append(now)
            elif before is not None and now is None:
                leaves.append(before)
            elif now is not None:
                updates.append(now)
        self._before.clear()
        self.v += 1
        return Frame(self.v, tuple(joins), tuple(leaves), tuple(updates))

    def snapshot(self) -> list[Present]:
        """Who was there as of the last frame, whose number is :attr:`v`."""
        shown = [each for client, each in self.members.items() if client not in self._before]
        return [*shown, *(before for before in self._before.values() if before is not None)]

    def __repr__(self) -> str:
        state = ", wants to read" if self.wants_read else ""
        return f"<Roster v{self.v}: {self.clients} clients at {self.position}{state}>"


def _alike(one: Present | None, other: Present | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.looks_like(other)
