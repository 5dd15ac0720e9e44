"""State and format of each kind of pipe; a host moves the bytes."""

from .acceptor import Acceptor, most_of_body
from .base import Batch, Driver, Handshake, Pipe, Refused, Transport, joined
from .http import (
    HTTP_ENDPOINTS,
    Answer,
    Form,
    HttpRequest,
    Response,
    Stream,
    Streaming,
    StreamPipe,
    plain,
    refusal,
)
from .websocket import WebSocketTransport

__all__ = [
    "HTTP_ENDPOINTS",
    "Acceptor",
    "Answer",
    "Batch",
    "Driver",
    "Form",
    "Handshake",
    "HttpRequest",
    "Pipe",
    "Refused",
    "Response",
    "Stream",
    "StreamPipe",
    "Streaming",
    "Transport",
    "WebSocketTransport",
    "joined",
    "most_of_body",
    "plain",
    "refusal",
]
