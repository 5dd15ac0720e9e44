"""The hub, as hosts see it."""

from __future__ import annotations

from typing import Final, Protocol

from .base import Driver, Handshake, Transport
from .http import Answer, HttpRequest

__all__ = ["Acceptor", "most_of_body"]

#: Endpoints where the body of a request is the first that a client says.
_OPENING: Final = frozenset({"sse", "http_stream", "poll"})


class Acceptor(Protocol):
    """The hub, as a host sees it."""

    @property
    def max_frame(self) -> int:
        """Bytes of one inbound frame, or of a request's body, at the most."""
        ...

    @property
    def max_connect(self) -> int:
        """The same for somebody who has yet to say who it is (A1), in all that it says."""
        ...

    async def ensure_running(self) -> None:
        """Start the hub on first use, where the host gave it no lifespan."""
        ...

    def admit(self, handshake: Handshake) -> None:
        """Check a handshake before anything is spent on it.

        :raises Refused: with the status to answer.
        """
        ...

    def connect(self, transport: Transport, handshake: Handshake) -> Driver:
        """Drive *transport* from now on."""
        ...

    def turned_away(self, why: str) -> None:
        """Count somebody whom the host has turned away before the hub could see it (M1).

        :param why: the status it was answered; or, where there was no answer, ``dropped`` (there were too many),
            ``silent`` (it never asked anything), ``unread`` (it did not take what it was answered).
        """
        ...

    async def answer(self, request: HttpRequest) -> Answer:
        """Answer a request to one of the endpoints of :data:`HTTP_ENDPOINTS` (T1).

        It starts the hub and checks the handshake by itself. Raises nothing but what is a bug.

        Cancellation: the client has gone away; safe.
        """
        ...


def most_of_body(acceptor: Acceptor, endpoint: str) -> int:
    """Bytes that the body of a request to an endpoint may have, so that a host need not keep more of it."""
    return min(acceptor.max_connect, acceptor.max_frame) if endpoint in _OPENING else acceptor.max_frame
