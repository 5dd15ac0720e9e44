"""State and format of each kind of pipe; a host moves the bytes."""

from .base import Acceptor, Driver, Handshake, Pipe, Refused, Transport
from .websocket import WebSocketTransport

__all__ = ["Acceptor", "Driver", "Handshake", "Pipe", "Refused", "Transport", "WebSocketTransport"]
