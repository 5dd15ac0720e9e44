"""The hub: rooms, sessions, handlers, and everything that holds them together."""

from .config import Limits
from .context import Context, Handler, Hook
from .control import NodeInfo, Nodes, Reached
from .handle import Room, User
from .hub import Hub, HubStatistics
from .router import Rooms, Router
from .session import Session

__all__ = [
    "Context",
    "Handler",
    "Hook",
    "Hub",
    "HubStatistics",
    "Limits",
    "NodeInfo",
    "Nodes",
    "Reached",
    "Room",
    "Rooms",
    "Router",
    "Session",
    "User",
]
