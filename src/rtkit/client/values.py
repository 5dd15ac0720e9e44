"""What the client shows and tells: states, statistics, and the errors of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from typing_extensions import TypeVar

from ..errors import RtkitError
from ..messages import Marks, Member

__all__ = [
    "ClientStatistics",
    "MarksChange",
    "PresenceChange",
    "RoomStatistics",
    "Signal",
    "State",
    "Unsubscribed",
]

M = TypeVar("M")


class State(StrEnum):
    """Where a client stands (K1)."""

    IDLE = "idle"
    """Made, but not entered: nothing runs."""
    CONNECTING = "connecting"
    """A connection is being opened or authenticated."""
    CONNECTED = "connected"
    """Authenticated; rooms are joined as their replies come in."""
    WAITING = "waiting"
    """Not connected; the next attempt is due after a delay."""
    CLOSED = "closed"
    """For good: by :meth:`Client.aclose`, or because the server said so."""


class Unsubscribed(RtkitError):
    """The server took this client out of a room, and it shall not join again by itself.

    :param code: the unsubscribe code (see :mod:`rtkit.codes`), below 2500.
    :param reason: plain words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(
            f"taken out of the room by the server with code {code}: {reason or 'no reason given'}"
        )
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Signal(Generic[M]):
    """A message without storage: at most once, to those who are there now (D5).

    :param data: decoded.
    :param event: its name on the wire; empty when it was sent without one.
    :param sender: the user it came from; None when a server sent it.
    :param client: the client id it came from, likewise.
    """

    data: M
    event: str
    sender: str | None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """Who has come to a room, left it, or says something else about itself (P2).

    :param joins: who is there now and was not.
    :param leaves: who was there and is not.
    :param updates: who is there with another meta.
    :param whole: forget what you knew: *joins* are all that are there. In a room of which it is only told how many are
        there they are none; look at the numbers.
    """

    joins: tuple[Member, ...]
    leaves: tuple[Member, ...]
    updates: tuple[Member, ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class MarksChange:
    """How far users of a room have come since the last change (X2).

    :param marks: of those users, by user.
    :param whole: forget what you knew: *marks* are all there are.
    """

    marks: Mapping[str, Marks]
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomStatistics:
    """What a room of this client has seen, since it was joined.

    :param queued: items that wait to be iterated over.
    :param received: messages taken into the queue.
    :param duplicates: dropped because they had been delivered before.
    :param echoes: dropped because this client sent them (``echo=False``).
    :param gaps: gaps told.
    :param dropped: messages of a room without history that were dropped because the queue was full.
    :param ignored: messages whose event is none of the types the room receives.
    :param pauses: times the queue was full and the stream was left until it had drained.
    :param joins: joins the server accepted: the first, and one after each interruption.
    """

    queued: int
    received: int
    duplicates: int
    echoes: int
    gaps: int
    dropped: int
    ignored: int
    pauses: int
    joins: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """What a client has seen.

    :param state: now.
    :param connects: connections that were authenticated.
    :param attempts: connections tried since one was last established for a while.
    :param last_failure: why the latest connection ended or attempt failed, in plain words.
    :param rooms: joined, or being joined; the server's own included.
    :param pending: commands without an answer yet.
    :param pending_bytes: of their payloads.
    :param sent: commands written, each time they were.
    :param resent: of these, written once more after a reconnect.
    :param held_back: times the server answered "too many requests".
    :param received: units that came in.
    """

    state: State
    connects: int
    attempts: int
    last_failure: str
    rooms: int
    pending: int
    pending_bytes: int
    sent: int
    resent: int
    held_back: int
    received: int
