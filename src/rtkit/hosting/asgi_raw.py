"""Connections of an ASGI server that lends its socket, as ``scope["extensions"]["rtkit.transport"]``.

The one such server is uvicorn with :mod:`rtkit.hosting.uvicorn_host`; this module knows it by what it can do, so that
uvicorn need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from ..clock import Clock
from ..codes import INTERNAL_CLOSE
from ..primitives.deadlines import Deadlines
from ..transports import Acceptor, Handshake

if TYPE_CHECKING:
    from .raw import RawPipe, RawPipes

__all__ = ["EXTENSION", "RawSide", "RawSockets"]

#: Where in ``scope["extensions"]`` the server's side is.
EXTENSION: Final = "rtkit.transport"


class RawSide(Protocol):
    """What a server offers that lends its socket."""

    def hold(self) -> bool:
        """Get ready to be taken; called right before the accept. False when this connection is better left alone."""
        ...

    def take(self, pipes: RawPipes) -> RawPipe | None:
        """Have a pipe move the messages from now on; None when the handshake did not come to its end."""
        ...

    def start(self) -> None:
        """Hand over what came in meanwhile."""
        ...

    async def wait_over(self) -> None:
        """Wait until the socket is closed. Cancellation: drops the connection."""
        ...


@final
class RawSockets:
    """The raw connections of one ASGI host.

    Nothing is bound to a loop for longer than a connection is open.

    :param acceptor: who is to drive the transports.
    :param close_timeout: seconds a closing connection may take, flushing included.
    """

    __slots__ = ("_acceptor", "_clock", "_close_timeout", "_pipes")

    def __init__(self, acceptor: Acceptor, *, clock: Clock, close_timeout: float) -> None:
        self._acceptor = acceptor
        self._clock = clock
        self._close_timeout = close_timeout
        self._pipes: RawPipes | None = None

    def hold(self, scope: Mapping[str, Any]) -> RawSide | None:
        """The server's side of a connection that is about to be accepted, if it lends its socket."""
        side: RawSide | None = (scope.get("extensions") or {}).get(EXTENSION)
        return side if side is not None and side.hold() else None

    async def serve(self, side: RawSide, handshake: Handshake) -> None:
        """Have a connection that was accepted driven, until it is over.

        Cancellation: drops the connection; the driver is told.

        :raises Exception: what the acceptor raised, a bug above us; the peer was told 3004 before.
        """
        from .raw import RawPipes  # which loads websockets: `import rtkit` shall not

        pipes = self._pipes
        if pipes is None or not pipes.open:
            # The last connection may have been one of another loop.
            pipes = self._pipes = RawPipes(
                clock=self._clock,
                deadlines=Deadlines(self._clock),
                max_frame=self._acceptor.max_frame,
                close_timeout=self._close_timeout,
            )
        pipe = side.take(pipes)
        if pipe is None:
            return  # gone before it was there
        transport = pipe.transport
        error: Exception | None = None
        try:
            transport.drive(self._acceptor.connect(transport, handshake))
        except Exception as exc:
            error = exc
            pipe.close(INTERNAL_CLOSE, "internal error")
        side.start()
        await side.wait_over()
        if error is not None:
            raise error
