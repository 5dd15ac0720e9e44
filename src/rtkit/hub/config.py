"""What a hub allows by default; every number can be set (F1, C2, D1)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

from ..primitives.heartbeat import Heartbeat
from ..primitives.ratelimit import Rate
from ..publisher import MAX_PUBLICATION
from ..wire import UNIT
from .lease import LEASE

__all__ = ["Limits"]

#: Bytes of what a client says of a room in its ``connect``, at the most: a name of quotation marks, and a position.
STANDING: Final = 640


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a hub; sizes in bytes, times in seconds.

    :param max_frame: bytes of one inbound frame; a larger one closes with 1009.
    :param max_connect: bytes that a client may send in all before it is let in (A1); more closes with 1009. An SDK
        says there where it stands in the rooms that the server puts it into.
    :param max_publication: bytes of one message; a larger one is answered 106. Rooms may have a bound of their own.
    :param large: bytes of a unit that comes or goes in chunks (T8): a call, an answer, a message with all around it.
    :param assembling: bytes of unfinished large units, of all connections together.
    :param max_pending: commands of one session that wait; beyond that its transport is not read (C2).
    :param max_rooms: rooms of one session.
    :param commands: commands a second of one connection, and how many at once.
    :param inbound: bytes a second of one connection, and how many at once.
    :param outbox: bytes queued for one connection, its transport's own buffer counted (D1).
    :param reserve: bytes on top of that for replies and control.
    :param accepts: newcomers a second at the most, and how many at once; the others are told when to come back (F2);
        None is off.
    :param accept_lag: that the event loop may be late while newcomers come: fewer are let in while it is (K4); None for
        *accepts*, whatever comes of it.
    :param handshakes: connections at once that have not said who they are, or were not let in yet; likewise.
    :param user_connections: of one user on one node; of those that wait for their client to come back the one left
        longest ago gives way, else the newcomer is sent away. Not of the user ``anonymous``. None is off.
    :param address_connections: of one public address, or of a client's that trusted proxies tell; IPv6 by /64. None is
        off.
    :param auth_timeout: until a connection must be authenticated (A1).
    :param handler_timeout: until a handler is cancelled and answered 100; None is off.
    :param blocked: that a handler or hook may keep the event loop in one go, before a warning names it (F5); None is
        off.
    :param refresh_leeway: after an identity's expiry until the connection is closed (A3).
    :param drain_spread: over which a hub that drains sends its clients away, at the most: small hubs are faster (L1);
        None for all at once.
    :param drain_timeout: that running handlers get when the hub closes (L1), at the least.
    :param heartbeat: of each connection (F4); None is off.
    :param keepalive: between comments in a stream of events, whose client cannot answer pings (F4).
    :param grace: that a client which lost its connection has to come back to its session (C3); None is off.
    :param poll_wait: until a long-poll with nothing to say is answered (T4).
    :param poll_gone: between two polls, after which the client is taken for lost.
    :param recovery_page: messages read from history at once.
    :param history_page: messages of one ``history`` command at the most.
    :param position_check: between comparisons of a room's top with what was delivered (H4); None is off.
    :param lease: that a node is taken for alive after it was last heard of (P3): within one and a half of it those who
        were connected to a node that died have left. It is the same on all nodes, and from 1 to 3,600. A node that
        stands still for as long is dead to the others.
    :raises ValueError: for a bound that is not positive, for messages that *large* has no room for, and for rooms that
        *max_connect* has no room for.
    """

    max_frame: int = 1024 * 1024
    max_connect: int = 128 * 1024
    max_publication: int = MAX_PUBLICATION
    large: int = 16 * 1024 * 1024
    assembling: int = 256 * 1024 * 1024
    max_pending: int = 64
    max_rooms: int = 128
    commands: Rate = field(default_factory=lambda: Rate(rate=50, burst=100))
    inbound: Rate = field(default_factory=lambda: Rate(rate=1024 * 1024, burst=16 * 1024 * 1024))
    outbox: int = 1024 * 1024
    reserve: int = 256 * 1024
    accepts: Rate | None = field(default_factory=lambda: Rate(rate=1000, burst=100))
    accept_lag: float | None = 0.010
    handshakes: int | None = 2000
    user_connections: int | None = 20
    address_connections: int | None = 100
    auth_timeout: float = 10.0
    handler_timeout: float | None = 30.0
    blocked: float | None = 0.25
    refresh_leeway: float = 10.0
    drain_spread: float | None = 10.0
    drain_timeout: float = 5.0
    heartbeat: Heartbeat | None = field(default_factory=Heartbeat)
    keepalive: float = 15.0
    grace: float | None = 20.0
    poll_wait: float = 25.0
    poll_gone: float = 10.0
    recovery_page: int = 500
    history_page: int = 1000
    position_check: float | None = 30.0
    lease: float = LEASE

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"Limits({each.name}=…) is positive, not {value!r}")
        if not 1 <= self.lease <= 3600:
            raise ValueError(f"Limits(lease=…) is 1 to 3600 s, not {self.lease!r}")
        # Else who has been put into many rooms could not come back, and would be told to stay away (1009).
        if self.max_connect < min(self.max_frame, self.max_rooms * STANDING):
            raise ValueError(
                f"Limits(max_connect={self.max_connect}) must have room for max_rooms={self.max_rooms} rooms, "
                f"{STANDING} bytes each"
            )
        if self.large < self.max_publication + UNIT:
            raise ValueError(
                f"Limits(large={self.large}) must exceed max_publication={self.max_publication} by 64 KiB"
            )
