"""What the hub knows of its features: where they hook in (api 7).

A feature is an instance that a family of rooms is declared with, such as ``presence=Presence()``. The hub imports
none of them. For each kind that is declared it begins one :class:`RunningFeature` per run, which is told of members
that come and go, and of nothing else: a family without features costs an empty loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from msgspec import UNSET, Raw, UnsetType

from ..messages import MarkKind, Marks, PresenceStats
from ..messages import Member as Present
from ..position import Position
from ..wire import ClientInfo, MarksBody, SubscribeResult, dumps

if TYPE_CHECKING:
    from .engine import Engine
    from .local import LocalRoom, Member
    from .session import Session
    from .table import Family

__all__ = [
    "Feature",
    "FeatureCall",
    "Listener",
    "PresenceFeature",
    "ReceiptsFeature",
    "RunningFeature",
    "RunningPresence",
    "RunningReceipts",
    "client_info",
]

#: A procedure under the reserved prefix ``rt.``: it gets the session and the data, and returns what is answered.
FeatureCall = Callable[["Session[Any]", "Raw | UnsetType"], Awaitable["Raw | UnsetType"]]


def client_info(member: Present) -> ClientInfo:
    """A member as the base shows it."""
    return ClientInfo(member.user, member.client, Raw(dumps(member.meta)) if member.meta else UNSET)


class Listener(Protocol):
    """What a topic is delivered to: plain functions that do not block."""

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """A payload came in. Raises ``BadUnit`` for what no rtkit has written."""

    def interrupted(self) -> None:
        """Something may have been missed."""


@runtime_checkable
class Feature(Protocol):
    """What a family is declared with. Immutable: it may be shared by families and hubs."""

    @property
    def kind(self) -> str:
        """By which the hub tells features apart; of each a family has one."""
        ...

    def begin(self, engine: Engine) -> RunningFeature:
        """The feature for one run of a hub, for all families that have one of its kind.

        :raises NotSupported: when the broker cannot do what it needs.
        """
        ...


class RunningFeature(Protocol):
    """A feature in one run of a hub. Its plain functions never block, and never raise unless it says so.

    Whoever inherits from it writes what it needs; the rest does nothing.
    """

    @property
    def calls(self) -> Mapping[str, FeatureCall]:
        """The procedures it answers, by name."""
        return {}

    async def joining(self, member: Member, *, asked: Collection[str], base: bool) -> None:
        """A member is about to come in; what has to be awaited for its reply is awaited here.

        :param asked: the kinds of features that its client has asked for, as rt clients do.
        :param base: it has asked for ``join_leave``, as others do.
        :raises Reject: when it may not, or cannot.
        :raises Unavailable: when the broker cannot be reached.
        """
        return

    def joined(self, member: Member, result: SubscribeResult) -> None:
        """It is in; *result* is about to be sent, and may be added to."""
        return

    def entered(self, member: Member) -> None:
        """Others may know of the member. Of one that returns (C3) this is said again."""
        return

    def detached(self, member: Member) -> None:
        """Nothing is delivered to the member any more; perhaps it comes back."""
        return

    def departed(self, member: Member) -> None:
        """A member that had entered is gone."""
        return

    def moved(self, session: Session[Any], room: str) -> None:
        """A session that had entered the room goes on at another node (C4)."""
        return

    def signalled(self, member: Member, event: str, data: Raw) -> bool:
        """A member has sent a signal, and may; whether it is taken care of: else it goes to everybody.

        :param data: canonical JSON.
        :raises Reject: when it is refused.
        """
        return False

    def spoke(self, member: Member) -> None:
        """A member has sent a message, and it was taken."""
        return

    def renewed(self, room: LocalRoom) -> None:
        """The stream of a room goes on in another epoch, and its members have been told (H10)."""
        return

    async def aclose(self) -> None:
        """The run ends: all members have departed. Bounded in time; does not raise."""
        return


@runtime_checkable
class PresenceFeature(Feature, Protocol):
    """A feature whose kind is ``presence``."""

    def begin(self, engine: Engine) -> RunningPresence:
        """As :meth:`Feature.begin`."""
        ...


class RunningPresence(RunningFeature, Protocol):
    """Who is in a room, on all nodes."""

    async def members(self, name: str, family: Family, *, bounded: bool = False) -> Sequence[Present]:
        """All that are in a room.

        :param bounded: only if they are not too many to be listed for a client.
        :raises Reject: with 106 when they are.
        :raises Unavailable: when the broker cannot be reached.
        """
        ...

    async def stats(self, name: str, family: Family) -> PresenceStats:
        """How many are in a room; raises as :meth:`members`."""
        ...

    def update(self, session: Session[Any], name: str, meta: Raw | UnsetType) -> None:
        """Replace what a client says about itself.

        :raises Reject: when it is not there, has not the right, or *meta* is no object or too large.
        """


@runtime_checkable
class ReceiptsFeature(Feature, Protocol):
    """A feature whose kind is ``receipts``."""

    def begin(self, engine: Engine) -> RunningReceipts:
        """As :meth:`Feature.begin`."""
        ...


class RunningReceipts(RunningFeature, Protocol):
    """How far users have come in a room, on all nodes (X2)."""

    async def mark(self, session: Session[Any], name: str, kind: MarkKind, position: Position) -> None:
        """A user has come this far. Not further than before is no error, and changes nothing.

        :raises Reject: when its session is not in the room, or there is no such place.
        :raises Unavailable: when that has to be looked up, and the broker cannot be reached.
        """
        ...

    async def page(self, session: Session[Any], name: str, after: str) -> MarksBody:
        """A page of marks, for a client that is in the room.

        :param after: only users behind this one, in the order of their names.
        :raises Reject: when it is not.
        :raises Unavailable: when the broker cannot be reached.
        """
        ...

    async def marks(self, name: str, family: Family) -> Mapping[str, Marks]:
        """All marks, by user, in the present epoch.

        :raises Unavailable: when the broker cannot be reached.
        """
        ...
