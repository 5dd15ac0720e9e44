"""Who is in which room, and telling everybody who is (D3, H5).

A broadcast never awaits and never stops: it goes over the members as they were when it began, skips
those that left meanwhile, and what one of them raises is logged and counted. Rooms exist as long as
somebody is in them.

A registry is also a broker's sink (B1): give it to ``broker.open(registry)``, subscribe to a topic
when ``on_open`` says that its first member came, and every process that does so hears the same
publications. That is many-node fan-out without a hub; it has no memory, so what a broker says was
interrupted can only be passed on, to ``on_interrupted``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, final, overload

__all__ = ["Membership", "Receiver", "RoomRegistry", "RoomRegistryStatistics", "TextReceiver"]

_log: Final = logging.getLogger("rtkit.rooms")


class Receiver(Protocol):
    """A member that can be told something."""

    def send_nowait(self, data: bytes, /) -> object:
        """Take *data* without waiting. Return False for "dropped"; anything else counts as taken."""
        ...


class TextReceiver(Protocol):
    """The same for one that takes text as well, as an attached socket does."""

    def send_nowait(self, data: bytes | str, /) -> object:
        """Take *data* without waiting. Return False for "dropped"; anything else counts as taken."""
        ...


M = TypeVar("M")
"""A member; hashable."""
R = TypeVar("R", bound=Receiver)
TR = TypeVar("TR", bound=TextReceiver)


@dataclass(frozen=True, slots=True)
class RoomRegistryStatistics:
    """What a :class:`RoomRegistry` holds and has done.

    :param rooms: with at least one member.
    :param members: in at least one room.
    :param memberships: pairs of the two.
    :param broadcasts: to rooms with members.
    :param delivered: members that took one.
    :param refused: members that answered False.
    :param failed: members, or hooks, that raised.
    :param interruptions: times a broker said that a room with members may have missed something.
    """

    rooms: int
    members: int
    memberships: int
    broadcasts: int
    delivered: int
    refused: int
    failed: int
    interruptions: int


@final
class Membership(Generic[M]):
    """What :meth:`RoomRegistry.join` returns: leave by hand, by ``with`` or ``async with``, or never."""

    __slots__ = ("_registry", "member", "room")

    def __init__(self, registry: RoomRegistry[M], member: M, room: str) -> None:
        self._registry = registry
        self.member = member
        self.room = room

    def leave(self) -> bool:
        """Leave the room. False if the member was not in it any more."""
        return self._registry.leave(self.member, self.room)

    def __enter__(self) -> Membership[M]:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.leave()

    async def __aenter__(self) -> Membership[M]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        return f"<Membership of {self.member!r} in {self.room!r}>"


@final
class RoomRegistry(Generic[M]):
    """Rooms and their members, of this process. Nothing here waits.

    :param on_open: called with a room's name when its first member joined.
    :param on_empty: called with a room's name when its last member left.
    :param on_interrupted: called with a room's name when a broker may have missed a publication of
        it (H4); without it that is logged as a warning.

    The hooks are plain functions; what they raise is logged.
    """

    def __init__(
        self,
        *,
        on_open: Callable[[str], object] | None = None,
        on_empty: Callable[[str], object] | None = None,
        on_interrupted: Callable[[str], object] | None = None,
    ) -> None:
        # Dicts for sets: they keep the order of joining, so that two runs of a test are one.
        self._rooms: dict[str, dict[M, None]] = {}
        self._members: dict[M, dict[str, None]] = {}
        self._on_open = on_open
        self._on_empty = on_empty
        self._on_interrupted = on_interrupted
        self._memberships = 0
        self._changes = 0
        self._broadcasts = 0
        self._delivered = 0
        self._refused = 0
        self._failed = 0
        self._interruptions = 0

    # -- who is where

    def join(self, member: M, room: str) -> Membership[M]:
        """Put *member* into *room*. Joining twice is once: leaving once ends it.

        ::

            registry.join(conn, "ticker")  # until leave() or discard()
            with registry.join(conn, "ticker"):
                ...  # for the block; also `async with`
        """
        inside = self._rooms.get(room)
        if inside is None:
            inside = self._rooms[room] = {}
        if member not in inside:
            inside[member] = None
            self._members.setdefault(member, {})[room] = None
            self._memberships += 1
            if len(inside) == 1:
                self._tell(self._on_open, room)
        return Membership(self, member, room)

    def leave(self, member: M, room: str) -> bool:
        """Take *member* out of *room*; an empty room is gone at once. False if it was not in it."""
        inside = self._rooms.get(room)
        if inside is None or member not in inside:
            return False
        del inside[member]
        self._changes += 1
        self._memberships -= 1
        rooms = self._members[member]
        del rooms[room]
        if not rooms:
            del self._members[member]
        if not inside:
            del self._rooms[room]
            self._tell(self._on_empty, room)
        return True

    def discard(self, member: M) -> tuple[str, ...]:
        """Take *member* out of all its rooms; return which they were."""
        rooms = self.rooms(member)
        for room in rooms:
            self.leave(member, room)
        return rooms

    def members(self, room: str) -> tuple[M, ...]:
        """Who is in *room* now, in the order of joining."""
        return tuple(self._rooms.get(room, ()))

    def rooms(self, member: M) -> tuple[str, ...]:
        """Where *member* is now, in the order of joining."""
        return tuple(self._members.get(member, ()))

    def is_member(self, member: M, room: str) -> bool:
        """Whether *member* is in *room*."""
        return member in self._rooms.get(room, ())

    def count(self, room: str) -> int:
        """How many are in *room*."""
        return len(self._rooms.get(room, ()))

    def __contains__(self, room: object) -> bool:
        return room in self._rooms

    def __len__(self) -> int:
        return len(self._rooms)

    def __bool__(self) -> bool:
        return True

    # -- telling them

    @overload
    def broadcast(self: RoomRegistry[R], room: str, data: bytes, *, exclude: R | None = None) -> int: ...
    @overload
    def broadcast(
        self: RoomRegistry[TR], room: str, data: bytes | str, *, exclude: TR | None = None
    ) -> int: ...
    def broadcast(self: RoomRegistry[Any], room: str, data: bytes | str, *, exclude: object = None) -> int:
        """Hand *data* to every member of *room* but *exclude*. Never waits; one member cannot harm another.

        :return: how many took it.
        """
        inside = self._rooms.get(room)
        if inside is None:
            return 0
        self._broadcasts += 1
        taken = 0
        changes = self._changes
        for member in tuple(inside):
            if member is exclude or (changes != self._changes and not self.is_member(member, room)):
                continue
            try:
                if member.send_nowait(data) is False:
                    self._refused += 1
                else:
                    taken += 1
            except Exception:
                self._failed += 1
                _log.exception("room %r: a member failed: %r", room, member)
        self._delivered += taken
        return taken

    def deliver(self: RoomRegistry[Any], topic: str, payload: bytes, position: object | None) -> None:
        """As a broker's sink: a publication came in on *topic*, which is a room's name (B1)."""
        self.broadcast(topic, payload)

    def interrupted(self, topics: Iterable[str]) -> None:
        """As a broker's sink: publications of *topics* may have been missed (B1)."""
        for room in topics:
            if room not in self._rooms:
                continue
            self._interruptions += 1
            if self._on_interrupted is None:
                _log.warning("room %r: the broker may have missed publications", room)
            else:
                self._tell(self._on_interrupted, room)

    # -- inside

    def _tell(self, hook: Callable[[str], object] | None, room: str) -> None:
        if hook is not None:
            try:
                hook(room)
            except Exception:
                self._failed += 1
                _log.exception("room %r: a hook failed", room)

    def statistics(self) -> RoomRegistryStatistics:
        """What it holds now, and totals so far."""
        return RoomRegistryStatistics(
            rooms=len(self._rooms),
            members=len(self._members),
            memberships=self._memberships,
            broadcasts=self._broadcasts,
            delivered=self._delivered,
            refused=self._refused,
            failed=self._failed,
            interruptions=self._interruptions,
        )

    def __repr__(self) -> str:
        return f"<RoomRegistry {len(self._rooms)} rooms, {len(self._members)} members>"
