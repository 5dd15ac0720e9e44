"""Who is in a room, as the application sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final
from weakref import WeakKeyDictionary

from msgspec import Raw

from ..errors import InvalidMessage
from ..messages import Member
from ..schema import encode_value
from ..wire import PresenceUpdate, Reply
from .core import Core
from .feeds import Feed
from .membership import Membership
from .presencestate import PresenceState
from .values import PresenceChange

__all__ = ["RoomPresence"]

_CHANGES: Final = 256


@final
class RoomPresence:
    """Who is in a room (P1–P4): :attr:`RoomClient.presence` of a room that was joined with ``presence=True``.

    ::

        changes = room.presence.changes()
        show(room.presence.members)
        async for change in changes:
            show(room.presence.members)

    Every client is a member, this one included, as soon as the server says so. Changes come at most twice a second.
    While there is no connection the members stay as they were; after it the difference comes as one change.
    """

    def __init__(self, core: Core, membership: Membership, state: PresenceState) -> None:
        self._core = core
        self._membership = membership
        self._state = state
        self._feeds: WeakKeyDictionary[Feed[PresenceChange], None] = WeakKeyDictionary()
        self._members: tuple[Member, ...] | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """All that are there, in the order in which they became known; none where they are not :attr:`listed`."""
        if self._members is None:
            self._members = tuple(self._state.members.values())
        return self._members

    @property
    def users(self) -> Mapping[str, tuple[Member, ...]]:
        """The members of each user: one for each device."""
        found: dict[str, list[Member]] = {}
        for member in self.members:
            found.setdefault(member.user, []).append(member)
        return {user: tuple(members) for user, members in found.items()}

    @property
    def clients(self) -> int:
        """How many clients are there, listed or not."""
        return self._state.clients

    @property
    def count(self) -> int:
        """How many users are there, listed or not: several clients of one are one."""
        return self._state.users

    @property
    def listed(self) -> bool:
        """Whether it is told who is there; in a large room it is only told how many are."""
        return self._state.listed

    @property
    def current(self) -> bool:
        """Whether it is known who is there now; False without a connection, and until the room is joined."""
        return self._membership.state.is_in and self._state.fresh

    async def update(self, meta: object, *, timeout: float | None = None) -> None:
        """Replace what this client says about itself in the room, and wait until the server has taken it.

        It is said again by itself whenever the server cannot have kept it, as after a new session. Queued without a
        connection, like :meth:`RoomClient.send`. Cancellation: withdrawn if it was not sent yet; otherwise it may
        happen.

        :param meta: a JSON object: a dict, or a value of a declared type.
        :param timeout: seconds to wait, None for ever.
        :raises CallError: the server refused it: 103 without the right ``presence``, or where it is not allowed; 106
            for one that is too large.
        :raises InvalidMessage: for a value that is no JSON object.
        :raises TimeoutError: not answered in time.
        :raises QueueFull: too many commands wait.
        :raises Unsubscribed: the server took us out of the room.
        :raises ConnectionClosed: the client is closed.
        :raises NotRunning: the room was left.
        """
        self._core.check()
        self._membership.raise_if_over()
        data = encode_value(meta)
        if not data.startswith(b"{"):
            raise InvalidMessage(f"a meta is a JSON object, not {type(meta).__name__}")
        state, raw = self._state, Raw(data)

        def taken(reply: Reply) -> None:
            state.took(raw)

        state.pending += 1
        try:
            body = PresenceUpdate(self._membership.channel, raw)
            await self._core.ask(body, len(data), taken, timeout=timeout)
        finally:
            state.pending -= 1
            self._core.engine.rooms.talk.look(self._membership)

    def changes(self) -> Feed[PresenceChange]:
        """Iterate over what changes from now on; :attr:`members` is what it begins with.

        Who does not fetch for long gets one change with ``whole`` in the place of all that was missed. It ends
        when the room is left, and raises what the room ended with.

        :return: an asynchronous iterator.
        """
        feed: Feed[PresenceChange] = Feed(f"presence of {self._membership.channel!r}", max_queue=_CHANGES)
        self._feeds[feed] = None
        self._membership.end_if_over(feed)
        return feed

    def tell(self, change: PresenceChange) -> None:
        """Called by the room."""
        self._members = None
        for feed in list(self._feeds):
            if feed.full:
                feed.replace(PresenceChange(self.members, (), (), whole=True))
            else:
                feed.offer(change)

    def end(self, error: BaseException | None) -> None:
        """Called by the room: it is over."""
        for feed in list(self._feeds):
            feed.end(error)

    def __repr__(self) -> str:
        state = "" if self.current else ", not current"
        return f"<RoomPresence of {self._membership.channel!r}: {self.clients} clients{state}>"
