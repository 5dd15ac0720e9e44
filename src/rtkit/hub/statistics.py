"""What a hub says about itself (M1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..metrics import Counted, Measured

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["HubStatistics", "present"]


def _nothing() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """A hub as it is now, and what it has counted and measured since its start (M1).

    ``docs/reference/metrics.md`` says what each name stands for. Two of them are equal when the present is.

    :param running: it has started and not closed.
    :param connections: transports that are open, authenticated or not.
    :param transports: the same by kind: ``websocket``, ``sse``, ``http_stream``, ``poll``, ``events``.
    :param sessions: of clients that are connected, or were so a moment ago and may come back.
    :param parked: of these, those that wait for their client to come back.
    :param rooms: rooms with a member on this hub.
    :param members: sessions in rooms, each as often as it is in one.
    :param behind: of these, those that are joining, or read on from history because they fell behind.
    :param users: users with a session on this hub.
    :param queued: connections that have something to send which their peer has not taken yet.
    :param queued_bytes: of all of them, in outboxes and in the buffers of transports (D1).
    :param queued_most: of the one that has most.
    :param assembling: bytes of unfinished large units, of all connections.
    :param handshakes: connections that are not authenticated.
    :param backlog: of those who were told to come back since too many came, how many have yet to (F2).
    :param accepts: newcomers a second that are let in: what ``Limits.accepts`` allows, or what the loop bears (K4); 0
        for any number.
    :param addresses: addresses that have a connection, of those that are counted (F1).
    :param tasks: tasks that the hub owns.
    :param deadlines: heartbeats, expiries and the like that are set.
    :param totals: counters by name; one with a label appears as ``name{label}``.
    :param counted: the same, typed.
    :param measured: how long things took.
    """

    running: bool
    connections: int = 0
    transports: Mapping[str, int] = field(default_factory=_nothing)
    sessions: int = 0
    parked: int = 0
    rooms: int = 0
    members: int = 0
    behind: int = 0
    users: int = 0
    queued: int = 0
    queued_bytes: int = 0
    queued_most: int = 0
    assembling: int = 0
    handshakes: int = 0
    backlog: int = 0
    accepts: float = field(default=0.0, compare=False)
    addresses: int = 0
    tasks: int = 0
    deadlines: int = 0
    totals: Mapping[str, int] = field(default_factory=_nothing, compare=False)
    counted: Counted = field(default=Counted(), compare=False)
    measured: Measured = field(default=Measured(), compare=False)


def present(engine: Engine) -> dict[str, Any]:
    """What there is now in a running hub: the fields of :class:`HubStatistics` that come and go.

    It looks at every connection, session and room, and may be called from another thread: each is copied first, in one
    step of the interpreter.
    """
    connections, rooms = list(engine.connections), list(engine.rooms.values())
    waiting = [
        size
        for connection in connections
        # Of most it is known that there is nothing.
        if not connection.clear and (size := connection.outbox.size + connection.transport.buffered)
    ]
    behind = sum(len(room.outside) for room in rooms)
    return {
        "connections": len(connections),
        "transports": MappingProxyType(Counter(connection.transport.kind for connection in connections)),
        "sessions": len(engine.sessions),
        "parked": sum(session.connection is None for session in list(engine.sessions.values())),
        "rooms": len(rooms),
        "members": behind + sum(len(room.live) for room in rooms),
        "behind": behind,
        "users": len(engine.users),
        "queued": len(waiting),
        "queued_bytes": sum(waiting),
        "queued_most": max(waiting, default=0),
        "assembling": engine.assembling,
        "handshakes": engine.admission.handshakes,
        "backlog": engine.admission.backlog,
        "accepts": engine.admission.rate,
        "addresses": engine.admission.addresses,
        "tasks": len(engine.tasks),
        "deadlines": len(engine.deadlines) - engine.lag.ticking - engine.admission.looking,
    }
