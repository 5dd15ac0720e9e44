"""rtkit: real-time rooms for asyncio applications, over WebSocket, that lose nothing silently.

The names here are what a host application writes. The rest is in named modules: :mod:`rtkit.client` (the Python
SDK), :mod:`rtkit.testing`, :mod:`rtkit.primitives`, :mod:`rtkit.brokers`, :mod:`rtkit.errors`, :mod:`rtkit.codes`.
"""

from typing import TYPE_CHECKING

from .errors import (
    BrokerUnavailable,
    DeclarationError,
    InvalidMessage,
    NotEnabled,
    NotRunning,
    NotSupported,
    PublishUnknown,
    Reject,
    RtkitError,
    UnknownRoom,
    UsageError,
    WrongLoop,
)
from .features.presence import Presence
from .hub import Context, Hub, Limits, Room, Rooms, Router, Session, User
from .identity import Credentials, Grant, Identity, anonymous
from .messages import History, Member, Message, Page, Published
from .position import Gap, Position
from .publisher import Publisher

if TYPE_CHECKING:
    from .server import serve
else:

    def __getattr__(name):
        # `serve` needs an HTTP parser and a WebSocket library, which those who mount their hub elsewhere never load.
        if name == "serve":
            from .server import serve

            return serve
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    # -- declare and run
    "Hub",
    "Router",
    "Rooms",
    "History",
    "Limits",
    "Presence",
    "serve",
    # -- who may do what
    "Credentials",
    "Identity",
    "Grant",
    "Reject",
    "anonymous",
    # -- in handlers
    "Context",
    "Session",
    "Room",
    "User",
    # -- messages
    "Message",
    "Gap",
    "Position",
    "Published",
    "Page",
    "Member",
    "Publisher",
    # -- what can go wrong
    "RtkitError",
    "UsageError",
    "DeclarationError",
    "InvalidMessage",
    "UnknownRoom",
    "NotEnabled",
    "NotSupported",
    "NotRunning",
    "WrongLoop",
    "BrokerUnavailable",
    "PublishUnknown",
]
