"""What :func:`~rtkit.primitives.attach.attach` needs of a socket, made from the two kinds it knows.

Neither starlette nor websockets is imported: a socket is recognised by what it can do, an exception
by the name of its class. Both libraries tell "the connection is over" by exceptions of several
classes; here that is one, :class:`Gone`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Protocol, cast, final

from ..errors import UsageError

__all__ = ["Gone", "Pipe", "pipe_of"]

_GONE: Final = frozenset(
    {
        "WebSocketDisconnect",  # starlette: the peer left, or a write failed
        "WebSocketDisconnected",  # starlette: used after that
        "ClientDisconnected",  # uvicorn
        "ConnectionClosed",  # websockets
    }
)


class Gone(Exception):
    """The connection is over. *code* is 1006 where there was no close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Pipe(Protocol):
    """One socket. :meth:`receive` is used by one task, :meth:`send` by another."""

    @property
    def can_ping(self) -> bool:
        """Whether :meth:`ping` works."""
        ...

    @property
    def reads_ahead(self) -> bool:
        """Whether the library reads, and hears pongs, while nobody is inside :meth:`receive`."""
        ...

    def is_reading(self) -> bool:
        """Whether something the peer sends now would be heard."""
        ...

    def buffered(self) -> int:
        """Bytes that wait in the transport, where that can be known; else 0."""
        ...

    async def receive(self) -> str | bytes:
        """The next message. Cancelling loses none.

        :raises Gone: the connection is over.
        """
        ...

    async def send(self, data: bytes, *, text: bool) -> None:
        """Send a message; waits while the transport is full.

        :raises Gone: the connection is over.
        """
        ...

    async def ping(self) -> asyncio.Future[Any]:
        """Send a ping; the future ends with the pong. Waits while the transport is full.

        :raises Gone: the connection is over.
        """
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close, and wait for the peer where the library does. May wait for ever: bound it."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, where the library lets us."""
        ...


def pipe_of(sock: object) -> Pipe:
    """The pipe over *sock*.

    :raises TypeError: for something that is neither kind of socket.
    :raises UsageError: for a Starlette socket that was not accepted, or is closed.
    """
    if _has(sock, "receive", "send_text", "send_bytes", "close", "application_state", "client_state"):
        states = {name: getattr(getattr(sock, name), "name", "") for name in _STATES}
        if any(state != "CONNECTED" for state in states.values()):
            raise UsageError(
                f"attach() wants an open socket: `await websocket.accept()` first "
                f"(it is {states['client_state']}/{states['application_state']})"
            )
        return _StarlettePipe(cast(_StarletteSocket, sock))
    asynchronous = inspect.iscoroutinefunction(getattr(sock, "recv", None))
    if asynchronous and _has(sock, "send", "ping", "close", "close_code", "close_reason", "transport"):
        return _WebsocketsPipe(cast(_WebsocketsSocket, sock))
    raise TypeError(
        "attach() takes an accepted Starlette or FastAPI WebSocket, or an asyncio connection of websockets, "
        f"not {type(sock).__module__}.{type(sock).__qualname__}"
    )


_STATES: Final = ("client_state", "application_state")


def _has(sock: object, *names: str) -> bool:
    return all(hasattr(sock, name) for name in names)


def _is_gone(exc: BaseException) -> bool:
    return isinstance(exc, OSError) or any(cls.__name__ in _GONE for cls in type(exc).__mro__)


# -- Starlette, FastAPI -------------------------------------------------------------------------


class _StarletteSocket(Protocol):
    async def receive(self) -> MutableMapping[str, Any]: ...
    async def send_text(self, data: str) -> None: ...
    async def send_bytes(self, data: bytes) -> None: ...
    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


@final
class _StarlettePipe:
    """ASGI shows neither pings, nor the transport, nor its buffer."""

    __slots__ = ("_receiving", "_sock")

    can_ping = False
    reads_ahead = False

    def __init__(self, sock: _StarletteSocket) -> None:
        self._sock = sock
        self._receiving = False

    def is_reading(self) -> bool:
        return self._receiving

    def buffered(self) -> int:
        return 0

    async def receive(self) -> str | bytes:
        self._receiving = True
        try:
            message: Mapping[str, Any] = await self._sock.receive()
        except Exception as exc:
            if _is_gone(exc):
                raise Gone(*_starlette_end(exc)) from exc
            raise
        finally:
            self._receiving = False
        if message["type"] == "websocket.disconnect":
            raise Gone(message.get("code") or 1005, message.get("reason") or "")
        text: str | None = message.get("text")
        if text is not None:
            return text
        data: bytes = message["bytes"]
        return data

    async def send(self, data: bytes, *, text: bool) -> None:
        try:
            if text:
                await self._sock.send_text(data.decode())
            else:
                await self._sock.send_bytes(data)
        except Exception as exc:
            # uvicorn refuses a message after its own close (a lost keepalive) with a bare RuntimeError.
            if _is_gone(exc) or (isinstance(exc, RuntimeError) and "websocket.close" in str(exc)):
                raise Gone(*_starlette_end(exc)) from exc
            raise

    async def ping(self) -> asyncio.Future[Any]:
        raise UsageError("ASGI has no pings")

    async def close(self, code: int, reason: str) -> None:
        try:
            await self._sock.close(code, reason)
        except Exception as exc:
            if not (_is_gone(exc) or isinstance(exc, RuntimeError)):
                raise

    def abort(self) -> None:
        pass  # out of reach: the server drops it when the handler returns, or by its own keepalive


def _starlette_end(exc: BaseException) -> tuple[int, str]:
    return int(getattr(exc, "code", 1006)), str(getattr(exc, "reason", ""))


# -- websockets ---------------------------------------------------------------------------------


class _WebsocketsSocket(Protocol):
    @property
    def close_code(self) -> int | None: ...
    @property
    def close_reason(self) -> str | None: ...
    @property
    def transport(self) -> asyncio.Transport: ...
    async def recv(self) -> str | bytes: ...
    async def send(self, message: bytes, *, text: bool | None = None) -> None: ...
    async def ping(self) -> asyncio.Future[Any]: ...
    async def close(self, code: int = 1000, reason: str = "") -> None: ...


@final
class _WebsocketsPipe:
    """``websockets.asyncio``: reads ahead up to its ``max_queue``, answers and hears pings by itself."""

    __slots__ = ("_sock",)

    can_ping = True
    reads_ahead = True

    def __init__(self, sock: _WebsocketsSocket) -> None:
        self._sock = sock

    def is_reading(self) -> bool:
        return self._sock.transport.is_reading()

    def buffered(self) -> int:
        return self._sock.transport.get_write_buffer_size()

    async def receive(self) -> str | bytes:
        try:
            return await self._sock.recv()
        except Exception as exc:
            if not _is_gone(exc):
                raise
            raise self._end() from exc

    async def send(self, data: bytes, *, text: bool) -> None:
        try:
            await self._sock.send(data, text=text)
        except Exception as exc:
            if not _is_gone(exc):
                raise
            raise self._end() from exc

    async def ping(self) -> asyncio.Future[Any]:
        try:
            return await self._sock.ping()
        except Exception as exc:
            if not _is_gone(exc):
                raise
            raise self._end() from exc

    async def close(self, code: int, reason: str) -> None:
        await self._sock.close(code, reason)

    def abort(self) -> None:
        self._sock.transport.abort()

    def _end(self) -> Gone:
        return Gone(self._sock.close_code or 1006, self._sock.close_reason or "")
