"""The Python client: connects, comes back, recovers, and says what it could not do (K1, K2).

::

    from rtkit.client import connect

    async with connect("https://example.org/rt", token=get_token) as client:
        async with client.join("chat:lobby", receives=Said) as room:
            saved = await room.send(Say("hi"), returns=Saved)
            async for message in room:  # Message[Said] | Gap
                ...
"""

from __future__ import annotations

from ..messages import Marks, Member, Message, Page
from ..position import Gap, Position
from .client import Client
from .connecting import TransportName, connect
from .fallback import FallbackDialer
from .feeds import Feed
from .options import Policy
from .poll import PollDialer
from .presence import RoomPresence
from .receipts import RoomReceipts
from .room import RoomClient
from .sse import SseDialer
from .transport import Dialer, DialFailed, Opener, Wire, WireClosed
from .values import (
    ClientStatistics,
    MarksChange,
    PresenceChange,
    RoomStatistics,
    Signal,
    State,
    Unsubscribed,
)
from .websocket import WebSocketDialer

__all__ = [
    # connecting
    "Client",
    "Policy",
    "State",
    "TransportName",
    "connect",
    # rooms
    "RoomClient",
    "RoomPresence",
    "RoomReceipts",
    "Unsubscribed",
    # what they bring
    "Feed",
    "Gap",
    "Marks",
    "MarksChange",
    "Member",
    "Message",
    "Page",
    "Position",
    "PresenceChange",
    "Signal",
    # what they have seen
    "ClientStatistics",
    "RoomStatistics",
    # the pipe below
    "DialFailed",
    "Dialer",
    "FallbackDialer",
    "Opener",
    "PollDialer",
    "SseDialer",
    "WebSocketDialer",
    "Wire",
    "WireClosed",
]
