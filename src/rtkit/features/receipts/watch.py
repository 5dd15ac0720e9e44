"""One room as the clients of this node watch it: a board that follows the broker, and frames to those who asked (X2).

What a watcher gets: a whole picture when it joins, then what changes. When it is behind, a frame is left out, and as
soon as it has caught up it gets a whole picture instead; so does everybody when the epoch has changed. Marks take a
quarter of an outbox at the most: who reads slowly shall get messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from ...brokers import StateBroker
from ...errors import BadUnit
from ...position import Position
from ...wire import MarksBody, Push, Reply, dumps
from .._watching import RoomWatch
from .board import Board, Carry, Found, Mark, epochs_in
from .entries import decode_entry, decode_notice, key_of, topic_of
from .epochs import Epochs

if TYPE_CHECKING:
    from ...hub.connection import Connection
    from ...hub.engine import Engine
    from ...hub.local import Member

__all__ = ["LISTED", "Reading", "Watch", "body_of", "read_room"]

#: Users of a whole picture, or a page, at the most (X2).
LISTED: Final = 200
#: Bytes of a frame, about: what has no room in it is in the next.
_FRAME: Final = 32 * 1024


class Reading(NamedTuple):
    """A room's marks as they were at one moment."""

    position: Position
    entries: Mapping[str, Found]
    carry: Carry


async def read_room(
    engine: Engine, broker: StateBroker, epochs: Epochs, name: str, also: Collection[str] = ()
) -> Reading:
    """Read all marks of a room, and find out in which epoch they are to be shown.

    :param also: other epochs that have to be known.
    :raises Unavailable: when the broker cannot be reached.
    """
    revision = await broker.revision(key_of(name))
    entries = _decoded(engine, name, revision.entries)
    carry = await epochs.learn(
        epochs_in((found.stored for found in entries.values()), also),
        look=True,
    )
    return Reading(revision.position, entries, carry)


def _decoded(engine: Engine, name: str, entries: Mapping[str, bytes]) -> dict[str, Found]:
    """A room's entries, but for those that no rtkit has written."""
    found: dict[str, Found] = {}
    for user, raw in entries.items():
        try:
            found[user] = Found(raw, decode_entry(raw, engine.versions.formats))
        except BadUnit as error:
            engine.versions.unreadable(f"room {name!r}: marks of {user!r}", error)
    return found


def body_of(
    board: Board, users: Collection[str], *, whole: bool = False, more: bool = False, user: str = ""
) -> MarksBody:
    """Marks of these users, as the wire shows them."""
    marks = [(each, board.marks[each]) for each in users if each in board.marks]
    return MarksBody(
        epoch=board.carry.epoch,
        delivered={each: mark.delivered for each, mark in marks},
        read={each: mark.read for each, mark in marks if mark.read},
        whole=whole,
        more=more,
        user=user,
    )


class Watch(RoomWatch):
    """A watched room.

    :param shared: watchers are told of everybody's marks, and not of their own user's alone.
    :param heal: called with marks that the broker has lost.
    """

    def __init__(
        self,
        engine: Engine,
        broker: StateBroker,
        name: str,
        epochs: Epochs,
        *,
        shared: bool,
        heal: Callable[[str, str, Mapping[str, Mark]], None],
    ) -> None:
        super().__init__(engine, broker, "receipts", name, key_of(name), topic_of(name))
        self.epochs = epochs
        self.shared = shared
        self.board = Board()
        self._heal = heal

    # -- following the broker ----------------------------------------------------------------------

    @property
    def follower(self) -> Board:
        """See :attr:`.RoomWatch.follower`."""
        return self.board

    def _begin(self) -> None:
        self.board = Board()

    async def _read(self) -> None:
        board = self.board
        board.reading()
        known = board.carry.epoch
        found = await read_room(self._engine, self._broker, self.epochs, self.name, (known,))
        lost = board.read(*found)
        if lost:
            self._heal(self.name, board.carry.epoch, lost)

    def _announced(self, payload: bytes, position: Position) -> None:
        formats = self._engine.versions.formats
        self.board.announced(position, _decoded(self._engine, self.name, decode_notice(payload, formats)))

    def stands_in(self, epoch: str) -> None:
        """The room's stream is in this epoch now."""
        if self.board.carry.epoch not in ("", epoch):
            self.interrupted()

    # -- telling those who watch -------------------------------------------------------------------

    def add(self, member: Member) -> MarksBody | None:
        """The member watches from now on; what it is told in its reply."""
        self.coming.discard(member)
        self.watchers[member] = False
        user = member.session.identity.user
        return self._whole(user, user)

    @property
    def _changed(self) -> bool:
        return self.board.changed

    def _tell(self) -> bool:
        board = self.board
        if board.renewed:
            board.renewed = False
            self.watchers = dict.fromkeys(self.watchers, True)
        users = board.take(_FRAME)
        moved = set(users)
        part = self._unit(body_of(board, users)) if users and self.shared else b""
        listed, more = board.page("", LISTED)
        first = set(listed) if more else None  # None: everybody
        wholes: dict[str, bytes] = {}
        parts: dict[str, bytes] = {}
        dropped = False
        for member, stale in self.watchers.items():
            connection = member.session.connection
            user = member.session.identity.user
            if connection is None:
                self.watchers[member] = True
                continue
            if stale:
                # For all alike whose own mark is in the first page, or does not exist.
                alike = (
                    ""
                    if self.shared and (first is None or user in first or user not in board.marks)
                    else user
                )
                if alike not in wholes:
                    wholes[alike] = self._unit(self._whole(user))
                unit = wholes[alike]
            elif self.shared:
                unit = part
            elif user in parts:
                unit = parts[user]
            else:
                unit = parts[user] = self._unit(body_of(board, [user])) if user in moved else b""
            if unit:
                self.watchers[member] = not self._push(connection, unit)
                dropped = dropped or self.watchers[member]
        return dropped

    def _push(self, connection: Connection, unit: bytes) -> bool:
        """Queue a frame for one member; False when there was no room for it, or it is behind with what matters more."""
        if connection.outbox.size > self._engine.limits.outbox // 4:
            self._engine.counters.add("drops", self.kind)
            return False
        return super()._push(connection, unit)

    def _whole(self, user: str, told: str = "") -> MarksBody:
        if not self.shared:
            return body_of(self.board, [user], whole=True, user=told)
        listed, more = self.board.first(LISTED, user)
        return body_of(self.board, listed, whole=True, more=more, user=told)

    def _unit(self, body: MarksBody) -> bytes:
        return dumps(Reply(push=Push(channel=self.name, marks=body)))

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}: {self.board!r}, {len(self.watchers)} watchers>"
