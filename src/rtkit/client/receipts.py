"""How far users have come in a room, as the application sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from ..errors import UsageError
from ..messages import MarkKind, Marks, Message
from ..position import Position
from .core import Core
from .feeds import Feed
from .membership import Membership
from .receiptstate import ReceiptState
from .values import MarksChange

__all__ = ["RoomReceipts"]

_CHANGES: Final = 256


@final
class RoomReceipts:
    """How far users have got, and read (X2): :attr:`RoomClient.receipts` of a room joined with ``receipts=True``.

    Marks are cumulative: everything up to there. All devices of a user share them. What iterating the room hands out is
    ``delivered`` by itself; what is read, the application says with :meth:`read`.
    """

    def __init__(self, core: Core, membership: Membership, state: ReceiptState) -> None:
        self._core = core
        self._membership = membership
        self._state = state
        self._feeds: WeakKeyDictionary[Feed[MarksChange], None] = WeakKeyDictionary()

    @property
    def marks(self) -> Mapping[str, Marks]:
        """The marks of all users that have some, by user. What was handed out once does not change."""
        return self._state.marks

    @property
    def complete(self) -> bool:
        """Whether the marks of all users are known: not before the room is joined, not while more are being fetched,
        and not in a room where more than 10,000 users have marks."""
        return self._state.complete

    @property
    def current(self) -> bool:
        """Whether we are told of changes now; False without a connection, and until the room is joined."""
        return self._membership.state.is_in

    @property
    def unread(self) -> int:
        """Messages behind this user's own mark ``read``, up to the newest that is known of, in the queue or not."""
        return self._state.unread(self._membership.state.top)

    def read(self, where: Position | Message[Any] | None = None) -> None:
        """This user has read everything up to here. Never blocks.

        It is told at once, and then at most once a second; the newest counts, and is never lost while the client
        lives: it is told again after a reconnect if the server does not know it. Not further than before is no
        error, and changes nothing.

        :param where: a message, or a position; without it, the last that iterating handed out. Before anything was,
            and in a room whose place is not known yet, that is nothing.
        :raises UsageError: for a message without a position: this room has no history.
        :raises Unsubscribed: the server took us out of the room.
        :raises ConnectionClosed: the client is closed.
        :raises NotRunning: the room was left.
        """
        self._core.check()
        self._membership.raise_if_over()
        position = self._membership.state.position if where is None else _position(where)
        if position is not None:
            self._state.want("read", position)
            self._core.engine.rooms.talk.look(self._membership)

    def reached(self, where: Position | Message[Any], kind: MarkKind = "read") -> Sequence[str]:
        """Who is there, or beyond: the names of the users, sorted. This user is among them.

        :param where: a message, or a position. Of a stream that is gone nobody is known to be anywhere.
        :param kind: ``read`` or ``delivered``; who has read has got it.
        :raises UsageError: for a message without a position: this room has no history.
        """
        if kind not in ("read", "delivered"):
            raise UsageError(f"reached(kind=…) is 'read' or 'delivered', not {kind!r}")
        return self._state.reached(_position(where), kind)

    def changes(self) -> Feed[MarksChange]:
        """Iterate over what changes from now on; :attr:`marks` is what it begins with.

        Who does not fetch for long gets one change with ``whole`` in the place of all that was missed. It ends
        when the room is left, and raises what the room ended with.

        :return: an asynchronous iterator.
        """
        feed: Feed[MarksChange] = Feed(f"marks of {self._membership.channel!r}", max_queue=_CHANGES)
        self._feeds[feed] = None
        self._membership.end_if_over(feed)
        return feed

    def tell(self, change: MarksChange) -> None:
        """Called by the room."""
        for feed in list(self._feeds):
            if feed.full:
                feed.replace(MarksChange(self.marks, whole=True))
            else:
                feed.offer(change)

    def end(self, error: BaseException | None) -> None:
        """Called by the room: it is over."""
        for feed in list(self._feeds):
            feed.end(error)

    def __repr__(self) -> str:
        return f"<RoomReceipts of {self._membership.channel!r}: {len(self.marks)} users>"


def _position(where: Position | Message[Any]) -> Position:
    position = where.position if isinstance(where, Message) else where
    if position is None:
        raise UsageError("this message has no position: its room has no history")
    return position
