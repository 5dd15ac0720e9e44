"""What applications send, receive and are told: values shared by the hub, publishers and clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from .position import Position

__all__ = [
    "Durability",
    "History",
    "MarkKind",
    "Marks",
    "Member",
    "Message",
    "Page",
    "PresenceStats",
    "Published",
]

M = TypeVar("M", default=Any)

Durability = Literal["stored", "replicated"]
MarkKind = Literal["delivered", "read"]


@dataclass(frozen=True, slots=True)
class History:
    """How much of a room's stream is kept (H6). A room with history loses nothing silently.

    :param count: messages kept at the most; at least 1.
    :param ttl: seconds a message is kept at the most.
    :param durability: what an acknowledged publish means: ``stored`` by the broker, or
        ``replicated`` by it too (B7).
    :param size: bytes of messages kept at the most; the newest message is always kept.
    :raises ValueError: for a bound that is not positive.
    """

    count: int
    ttl: float = field(kw_only=True)
    durability: Durability = field(default="stored", kw_only=True)
    size: int = field(default=16 * 1024 * 1024, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"History(count=…) is at least 1, not {self.count!r}")
        if not self.ttl > 0:
            raise ValueError(f"History(ttl=…) is positive seconds, not {self.ttl!r}")
        if self.size < 1:
            raise ValueError(f"History(size=…) is positive bytes, not {self.size!r}")
        if self.durability not in ("stored", "replicated"):
            raise ValueError(f"History(durability=…) is 'stored' or 'replicated', not {self.durability!r}")


@dataclass(frozen=True, slots=True)
class Published:
    """A publication was taken.

    :param position: where it stands in the room's stream; None in a room without history.
    :param duplicate: the key had been seen before: nothing new was published, and *position* is
        that of the first (H7).
    """

    position: Position | None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Message(Generic[M]):
    """One message of a room.

    :param data: of the type the room publishes.
    :param position: None in a room without history.
    :param sender: the user whose handler run or command published it; None when a server did.
    :param published_at: seconds since the Unix epoch, by the clock of the node that published it.
    :param client: the client id it came from, if a client published it.
    """

    data: M
    position: Position | None
    sender: str | None
    published_at: float
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[M]):
    """A piece of a room's history.

    :param messages: in the order asked for.
    :param top: where the stream ends now.
    :param complete: nothing between the position asked for and the first message is missing.
    """

    messages: Sequence[Message[M]]
    top: Position
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Member:
    """One client of a user, in a room.

    :param user: who.
    :param client: the client id; a user with several devices is several members.
    :param meta: what the client says about itself: the JSON object it set, or was given (P1).
    """

    user: str
    client: str
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)


@dataclass(frozen=True, slots=True)
class PresenceStats:
    """How many are in a room.

    :param clients: connections, and those that were lost a moment ago.
    :param users: how many users they belong to.
    """

    clients: int
    users: int


@dataclass(frozen=True, slots=True)
class Marks:
    """How far a user has come in a room (X2). Each mark is cumulative: everything up to there.

    :param delivered: what the user's devices have got; None when nothing is known.
    :param read: what the user has read.
    """

    delivered: Position | None = None
    read: Position | None = None
