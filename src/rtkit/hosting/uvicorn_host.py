"""uvicorn with the hub on the bare socket: ``uvicorn app:app --ws rtkit.hosting.uvicorn_host:Protocol``.

Routing, middleware and the handshake are the framework's, as ever. Once ``websocket.accept`` went out, a
:class:`~rtkit.hosting.raw.RawPipe` moves the messages, so that a publication is one finished frame that each member's
socket is handed, and the RFC is held to by our own parser. WebSockets of the application that are not the hub's are
served by uvicorn as before.

How
---
uvicorn's own protocol object stays the protocol of the connection, since uvicorn counts it; it passes on what the loop
tells it. It puts itself into the scope, where :class:`~rtkit.hosting.asgi.AsgiHost` finds it::

    scope["extensions"]["rtkit.transport"]

    hold()      before the accept: compression is declined, and bytes from now on are kept as they come.
    take()      after the accept: a pipe has the socket. None when the connection is over instead.
    start()     the bytes that were kept go to the pipe.
    over        done when the socket is closed; until then the application's coroutine waits, as it would without us,
                so that a middleware that cleans up behind it does so at the same moment.

What is not the same: a middleware that looks at single messages sees none, and uvicorn's options for messages
(``--ws-max-size``, ``--ws-ping-interval``, ``--ws-per-message-deflate``) mean nothing to the hub's connections.

What we rely on
---------------
That ``ws=`` takes a class is documented; how the class behaves is not. Its parts that we touch are listed in
:data:`_PARTS` and looked at when this module is loaded, and an ``AttributeError`` before the accept counts as well. If
something is missing, connections are served by plain ASGI, slower and else alike, and a warning says so, once. The
test that this list is true of the installed uvicorn is ``tests/hosts/test_uvicorn.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .asgi_raw import EXTENSION
from .raw import RawPipe, RawPipes, no_delay

if TYPE_CHECKING:
    from websockets.http11 import Request

__all__ = ["Protocol", "missing_parts"]

_RESTART: Final = 1012

#: Methods of uvicorn's class that we override or call.
_PARTS: Final = (
    "connection_lost",
    "data_received",
    "eof_received",
    "handle_connect",
    "pause_writing",
    "resume_writing",
    "shutdown",
    "stop_keepalive",
)
#: Attributes of its instances that we read, once the handshake came in.
_STATE: Final = ("close_sent", "conn", "handshake_complete", "response", "scope", "transport")

_log: Final = logging.getLogger("rtkit.hosting")


def missing_parts(kind: type[Any]) -> list[str]:
    """What a class does not have of what :class:`Protocol` needs of uvicorn's."""
    return [name for name in _PARTS if not callable(getattr(kind, name, None))]


class Protocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, whose socket a hub may take. See the module's docstring."""

    _heads = 0
    _held: list[bytes] | None = None
    _pipe: RawPipe | None = None
    _over: asyncio.Future[None] | None = None
    _context: contextvars.Context | None = None

    # -- called by uvicorn and the loop

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        # There is none when uvicorn refused the handshake. The application's task has not begun to run yet.
        scope: Any = getattr(self, "scope", None)
        if scope is not None and _usable:
            scope["extensions"][EXTENSION] = self

    def data_received(self, data: bytes) -> None:
        if self._pipe is not None:
            assert self._context is not None
            self._context.run(self._pipe.data_received, data)
        elif self._held is not None:
            self._held.append(data)
        else:
            self._heads += 1
            super().data_received(data)
            if self._heads == 1 and not self.handshake_initiated and not self.transport.is_closing():
                # websockets has refused the head, with 431 for instance, and uvicorn does not look.
                self.transport.write(b"".join(self.conn.data_to_send()))
                self.transport.close()

    def eof_received(self) -> None:
        if self._pipe is not None:
            self._pipe.eof_received()
        else:
            super().eof_received()

    def pause_writing(self) -> None:
        if self._pipe is not None:
            self._pipe.pause_writing()
        else:
            super().pause_writing()

    def resume_writing(self) -> None:
        if self._pipe is not None:
            self._pipe.resume_writing()
        else:
            super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._pipe is not None:
            self._pipe.connection_lost(exc)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def shutdown(self) -> None:
        if self._pipe is not None:
            self._pipe.close(_RESTART, "")
        else:
            super().shutdown()

    async def send(self, message: Any) -> None:
        """uvicorn logs each handshake that is refused with a response as an error of ours: thousands, in a storm."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True

    # -- called by the host of the hub

    def hold(self) -> bool:
        """Get ready to be taken; call it right before the accept. False when this connection is better left alone."""
        try:
            if self._heads != 1 or self.handshake_complete or self.close_sent or self.transport.is_closing():
                return False  # a client that talks before the handshake is through, or is gone
            headers = self.response.headers
            if "Sec-WebSocket-Extensions" in headers:
                del headers["Sec-WebSocket-Extensions"]
            self.conn.extensions = []
        except AttributeError:
            _give_up("its objects are not what they were")
            return False
        self._held = []
        return True

    def take(self, pipes: RawPipes) -> RawPipe | None:
        """Have a pipe move the messages from now on; None when the handshake did not come to its end."""
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return None
        self.stop_keepalive()
        self._context = contextvars.copy_context()
        self._over = self.loop.create_future()
        no_delay(self.transport.get_extra_info("socket"))
        pipe = self._pipe = RawPipe(self.transport, pipes)
        self.transport.set_protocol(self)
        return pipe

    def start(self) -> None:
        """Hand over what came in meanwhile."""
        held, self._held = self._held, None
        if held and self._pipe is not None:
            self._pipe.data_received(b"".join(held))

    async def wait_over(self) -> None:
        """Wait until the socket is closed.

        Cancellation: drops the connection, since that is how uvicorn ends what outstays its graceful shutdown.
        """
        assert self._over is not None and self._pipe is not None
        try:
            await self._over
        except asyncio.CancelledError:
            self._pipe.abort()
            raise


_usable = True


def _give_up(why: str) -> None:
    global _usable  # noqa: PLW0603 - one uvicorn per process, and one verdict on it
    if _usable:
        _usable = False
        _log.warning("this version of uvicorn is not one that rtkit knows: %s; it is used as plain ASGI", why)


if _missing := missing_parts(WebSocketsSansIOProtocol):
    _give_up(f"there is no {', '.join(_missing)}")
