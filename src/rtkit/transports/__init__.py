"""State and format of each kind of pipe; a host moves the bytes."""

from .base import Acceptor, Batch, Driver, Handshake, Pipe, Refused, Transport, joined
from .websocket import WebSocketTransport

__all__ = [
    "Acceptor",
    "Batch",
    "Driver",
    "Handshake",
    "Pipe",
    "Refused",
    "Transport",
    "WebSocketTransport",
    "joined",
]
