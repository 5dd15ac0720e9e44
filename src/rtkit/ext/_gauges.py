"""What there is now in a hub, as all exporters tell it (M1). The rest is in :mod:`rtkit.metrics`."""

from __future__ import annotations

from typing import Final

from ..hub import HubStatistics

__all__ = ["GAUGES", "gauges_of"]

#: What there is now: the name, the meaning, the label.
GAUGES: Final = {
    "running": ("1 while the hub runs", ""),
    "connections": ("transports that are open", "transport"),
    "sessions": ("sessions, of clients that are connected or may come back", "state"),
    "rooms": ("rooms with a member on this node", ""),
    "members": ("sessions in rooms: live, or joining or reading on from history", "state"),
    "users": ("users with a session on this node", ""),
    "queued_connections": ("connections with something to send that their peer has not taken", ""),
    "queued_bytes": ("bytes that wait to be taken, of all connections", ""),
    "queued_max_bytes": ("bytes that wait to be taken, of the connection that has most", ""),
    "assembling_bytes": ("bytes of unfinished large units, of all connections", ""),
    "handshakes": ("connections that are not authenticated", ""),
    "backlog": ("of those who were told to come back since too many came, how many have yet to", ""),
    "accepts": ("newcomers a second that are let in; 0 for any number", ""),
    "addresses": ("addresses that have a connection, of those that are counted", ""),
    "tasks": ("tasks that the hub owns", ""),
    "deadlines": ("heartbeats, expiries and the like that are set", ""),
}
_TRANSPORTS: Final = ("websocket", "sse", "http_stream", "poll", "events")


def gauges_of(now: HubStatistics) -> dict[str, dict[str, float]]:
    """The values of :data:`GAUGES`, by the value of the label, or by nothing."""
    return {
        "running": {"": float(now.running)},
        "connections": {kind: now.transports.get(kind, 0) for kind in (*_TRANSPORTS, *now.transports)},
        "sessions": {"connected": now.sessions - now.parked, "parked": now.parked},
        "rooms": {"": now.rooms},
        "members": {"live": now.members - now.behind, "behind": now.behind},
        "users": {"": now.users},
        "queued_connections": {"": now.queued},
        "queued_bytes": {"": now.queued_bytes},
        "queued_max_bytes": {"": now.queued_most},
        "assembling_bytes": {"": now.assembling},
        "handshakes": {"": now.handshakes},
        "backlog": {"": now.backlog},
        "accepts": {"": now.accepts},
        "addresses": {"": now.addresses},
        "tasks": {"": now.tasks},
        "deadlines": {"": now.deadlines},
    }
