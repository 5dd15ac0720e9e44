"""Who is let in: the bounds of a node on newcomers, addresses and users, and what a refusal looks like (F1, F2).

A newcomer meets three bounds, the cheapest first; of all refusals only the last costs an authentication:

==============================  ===================================================================================
its address has too many        told to come back some time later
too many come, or are coming    told its place in the queue (:mod:`rtkit.primitives.admission`)
its user has too many           the session that its client left longest ago gives way; where all are connected,
                                the ``connect`` is answered with error 111, and the connection closed with 4001
==============================  ===================================================================================

A client that comes back to a session of this node's is no newcomer to its user. A claim to a session of another node's
is; so the bound comes before the claim, or a session would be taken from there and be refused here.

*Handshakes.* Whoever has opened a connection and not said who it is takes up room. When all room is taken, who has said
nothing for two seconds gives way to a newcomer: silence is cheap, and must not keep out those who speak.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .. import codes
from ..errors import Reject
from ..identity import ANONYMOUS
from ..primitives.admission import Admission
from ..primitives.keyed import KeyedLimit
from ..transports import Driver, Handshake, Refused, Transport
from ..wire import Disconnect, Push, Reply, Window, dumps
from .address import Client, Uncounted
from .pace import Pace

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine
    from .session import Session

__all__ = ["HubAdmission", "Refusal", "turn_away"]

logger = logging.getLogger("rtkit.hub")

#: When to come back for whom others of the same address have to leave first.
_LATER: Final = (5.0, 20.0)
#: The same for a user, as ``retry_after``; clients stay away for up to half as long again.
_LATER_AS_USER: Final = 10.0
#: Seconds after which who has said nothing gives way to a newcomer.
_SILENCE: Final = 2.0
_WORDS: Final = "try again later"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A newcomer that is not let in.

    :param status: of HTTP, to answer it with.
    :param window: least and most seconds after which it shall come back.
    """

    status: int
    window: tuple[float, float]

    def refused(self, chance: random.Random) -> Refused:
        """In the form of a status with ``Retry-After``: whole seconds, in the window or right behind it."""
        low, high = self.window
        seconds = max(1, math.ceil(low + (high - low) * chance.random()))
        return Refused(self.status, _WORDS, retry_after=seconds)


class _Nobody:
    """Drives a transport whose client was turned away."""

    __slots__ = ()

    def received(self, frame: bytes) -> None:
        """Nobody hears it."""

    def writable(self) -> None:
        """There is nothing more to say."""

    def lost(self, code: int, reason: str) -> None:
        """So be it."""


_NOBODY: Final = _Nobody()


def turn_away(transport: Transport, refusal: Refusal) -> Driver:
    """Tell a client that is connected, and has not said anything, when to come back; and close.

    It may be a client of the base, which understands all of this but the window, and passes that over.
    """
    transport.send([_goodbye(refusal.window)])
    transport.close(codes.TRY_LATER, _WORDS)
    return _NOBODY


def _goodbye(window: tuple[float, float]) -> bytes:
    told = Window(round(window[0], 3), round(window[1], 3))
    return dumps(Reply(push=Push(disconnect=Disconnect(codes.TRY_LATER, _WORDS, told))))


class Seat:
    """Keeps room for a session that is about to begin: the node counts it until it can be counted itself."""

    __slots__ = ("_admission", "_taken", "_user")

    def __init__(self, admission: HubAdmission, user: str) -> None:
        self._admission = admission
        self._user = user
        self._taken: bool | None = None  # not asked for; not needed; taken

    def take(self) -> None:
        """Have it. Idempotent.

        :raises Reject: when there is no room.
        """
        if self._taken is None:
            self._taken = self._admission.expect(self._user)

    def close(self) -> None:
        """The session is there, or will not come."""
        if self._taken:
            self._admission.arrived(self._user)
        self._taken = False


class HubAdmission:
    """The bounds of one engine."""

    def __init__(self, engine: Engine) -> None:
        limits = engine.limits
        self._engine = engine
        self._core = Admission(limits.accepts, handshakes=limits.handshakes)
        self.pace: Pace | None = None
        if limits.accepts is not None and limits.accept_lag is not None:
            self.pace = Pace(engine, self._core, limits.accepts.rate, limits.accept_lag)
        most = limits.address_connections
        self._addresses: KeyedLimit[int] | None = None if most is None else KeyedLimit(most)
        self._silent: dict[Connection, float] = {}  # since when, the oldest first
        self._speaking: set[Connection] = set()  # have said who they are, and wait for what comes of it
        self._expected: Counter[str] = Counter()  # connections of users, about to become sessions
        self._warned: set[Uncounted] = set()

    @property
    def handshakes(self) -> int:
        """Connections that are not authenticated."""
        return len(self._silent) + len(self._speaking)

    @property
    def backlog(self) -> int:
        """Of those who were refused, how many have yet to come, if they obey. May be asked from another thread."""
        try:
            now = self._engine.clock.monotonic()
        except RuntimeError:  # a clock of the loop, which does not run here
            now = self._engine.loop.time()
        return round(self._core.backlog(now))

    @property
    def rate(self) -> float:
        """Newcomers a second that are let in now; 0 for any number."""
        return self._core.rate or 0.0

    @property
    def looking(self) -> bool:
        """Whether one of the engine's deadlines is the look at its loop."""
        return self.pace is not None and self.pace.looking

    @property
    def busy(self) -> bool:
        """More have come than are let in, and not all of those who were refused are back."""
        return self._core.crowded or self._core.backlog(self._engine.clock.monotonic()) > 0

    @property
    def addresses(self) -> int:
        """Addresses that have a connection, of those that are counted."""
        return 0 if self._addresses is None else self._addresses.statistics().keys

    # -- before there is a connection --------------------------------------------------------------

    def refuse(self, handshake: Handshake) -> Refusal | None:
        """Whether a newcomer is let in: None; else how it is refused, which is counted."""
        if self._addresses is not None:
            key = self._client(handshake).key
            if isinstance(key, int) and self._addresses.full(key):
                self._engine.counters.add("refusals", "address")
                return Refusal(429, _LATER)
        now = self._engine.clock.monotonic()
        if self._core.crowded:
            self._make_room(now)
        crowded = self._core.crowded
        window = self._core.refuse(now)
        if self.pace is not None:
            self.pace.came(now, refused=window is not None)
        if window is None:
            return None
        self._engine.counters.add("refusals", "handshakes" if crowded else "rate")
        return Refusal(503, window)

    def _make_room(self, now: float) -> None:
        """Have the one who has said nothing for longest give way, if that is long enough."""
        for connection, since in self._silent.items():
            if now - since >= _SILENCE:
                window = self._core.refuse(now)
                assert window is not None, "it is crowded"
                connection.control(_goodbye(window))
                connection.close(codes.TRY_LATER, _WORDS)
            return

    def _client(self, handshake: Handshake) -> Client:
        """Where a handshake comes from; says so, once, if that cannot be counted."""
        client = self._engine.hub.proxies.client(handshake)
        if isinstance(client.key, Uncounted) and client.key not in self._warned:
            self._warned.add(client.key)
            _warn(client, handshake)
        return client

    # -- connections -------------------------------------------------------------------------------

    def enter(self, connection: Connection) -> bool:
        """A connection begins; False when its address has too many after all."""
        if self._addresses is not None:
            key = self._client(connection.handshake).key
            if isinstance(key, int):
                if not self._addresses.take(key):
                    self._engine.counters.add("refusals", "address")
                    return False
                connection.place = key
        self._core.began()
        self._silent[connection] = self._engine.clock.monotonic()
        return True

    def spoke(self, connection: Connection) -> None:
        """Its client says who it is."""
        if self._silent.pop(connection, None) is not None:
            self._speaking.add(connection)

    def settled(self, connection: Connection) -> None:
        """It is known who it is; or it is over before that. Idempotent."""
        if self._silent.pop(connection, None) is not None:
            self._core.ended()
        elif connection in self._speaking:
            self._speaking.discard(connection)
            self._core.ended()

    def left(self, connection: Connection) -> None:
        """A connection is gone."""
        if connection.place is not None and self._addresses is not None:
            self._addresses.release(connection.place)
            connection.place = None

    # -- users -------------------------------------------------------------------------------------

    def seat(self, user: str) -> Seat:
        """For one more session of a user's on this node; nothing is taken yet. The caller closes it."""
        return Seat(self, user)

    def expect(self, user: str) -> bool:
        """A user gets one more session on this node, soon: :meth:`arrived` has to follow. False where nobody counts.

        :raises Reject: when there are as many as there may be, and none of them is parked.
        """
        most = self._engine.limits.user_connections
        if most is None or user == ANONYMOUS:
            return False
        sessions = self._engine.users.get(user, ())
        if len(sessions) + self._expected[user] >= most:
            parked = [session for session in sessions if session.connection is None]
            if not parked:
                self._engine.counters.add("refusals", "user")
                raise Reject(
                    f"at most {most} connections of a user",
                    code=codes.TOO_MANY_REQUESTS,
                    retry_after=_LATER_AS_USER,
                )
            self._engine.counters.add("limits", "user")
            self._engine.parking.end(min(parked, key=_end_of), "gave way to another session of the user")
        self._expected[user] += 1
        return True

    def arrived(self, user: str) -> None:
        """It is there, or will not come."""
        self._expected[user] -= 1
        if self._expected[user] <= 0:
            del self._expected[user]

    def __repr__(self) -> str:
        return f"<HubAdmission {self._core!r}, {self._addresses!r}>"


def _end_of(session: Session[Any]) -> float:
    """When the client of a parked session would be too late: of those that were left the longest ago, the soonest."""
    return math.inf if session.park_deadline is None else session.park_deadline.when


def _warn(client: Client, handshake: Handshake) -> None:
    say = "Limits(address_connections=…) does not apply to"
    match client.key:
        case Uncounted.PRIVATE:
            forwarded = handshake.header("x-forwarded-for") is not None
            # On a machine of one's own there is mostly no proxy, and nothing to be warned of.
            level = logging.INFO if client.address in _LOOPBACK and not forwarded else logging.WARNING
            logger.log(
                level,
                "%s connections from %s, which is not public; if it is a proxy, name its network in "
                "Hub(trusted_proxies=…)",
                say,
                client.address,
            )
        case Uncounted.UNSAID:
            logger.warning(
                "%s connections from %s, a trusted proxy that sends no X-Forwarded-For", say, client.address
            )
        case _:
            logger.info("%s connections whose address is not known", say)


_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
