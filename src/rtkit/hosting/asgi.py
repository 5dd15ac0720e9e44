"""Under any ASGI server, mounted into any ASGI framework.

Traps, each found with a real server or framework:

- *Mount prefixes.* Starlette, FastAPI and Quart leave ``/rt/ws`` as the path and ``/rt`` as ``root_path``;
  Litestar cuts the prefix and appends a slash. So the last segment of the path decides, after
  ``root_path`` was taken off, and the empty path is the mount point itself.
- *Lifespan.* A mounted application never gets one. Everything starts lazily on first use as well.
- *A close before accept* is HTTP 403 everywhere. Another status needs the ``websocket.http.response``
  extension, and that needs a body message even for an empty body.
- *receive() is the push-back.* uvicorn stops reading a socket after a message until ``receive()`` is called.
  A paused connection therefore does not see the peer go away, until something is sent to it. hypercorn
  takes in ten messages more.
  Nothing bounds a single inbound message but the server's own limit (uvicorn: ``ws_max_size``, 16 MiB).
- *send() is not the network.* uvicorn's returns at once while its buffer is below the high-water mark
  (64 KiB) and blocks only the next one, so ``buffered`` is what waits behind that.
- *A peer that does not read* blocks the close frame as well. After the close timeout we return, but no
  ASGI application can abort the socket: uvicorn goes on trying to flush it.
- *The peer's close code* is in the disconnect message, even when ``send()`` has failed before. uvicorn says
  1005 for a connection that broke (it is 1006), hypercorn 1006 whatever the peer said.
- *Servers end a connection in three ways*: a disconnect message (uvicorn, 1012), cancellation
  (hypercorn, and uvicorn after ``timeout_graceful_shutdown``), a ``send()`` that raises.
- *A server that ends waits for open responses* first and tells us last; see :mod:`rtkit.hosting.uvicorn_drain`.
- *The TLS a client sees* ends at a proxy: ``ws`` as the scheme proves nothing about the browser's page.
- *Litestar* refuses an application whose ``__call__`` is not annotated ``-> None``.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, final

from ..clock import Clock
from ..codes import NOT_PERMITTED_CLOSE, TRY_LATER
from ..errors import Unavailable
from ..primitives.clocks import LoopClock
from ..primitives.tasks import Tasks
from ..transports import HTTP_ENDPOINTS, Acceptor, Handshake, Refused
from .asgi_http import AsgiHttp, respond
from .asgi_interrupt import interrupted
from .asgi_pipe import AsgiPipe, Receive, Send
from .asgi_raw import RawSockets
from .endpoints import NOT_FOUND, WEBSOCKET, Endpoints, Request, refusal
from .uvicorn_drain import drain_before_exit

__all__ = ["SUBPROTOCOLS", "AsgiHost", "AsgiStatistics", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]

#: The subprotocols we speak, the preferred one first; to offer none is fine too.
SUBPROTOCOLS: Final = ("rtkit.v1.json", "centrifuge-json")

_MAX_SUBPROTOCOLS: Final = 16
_MAX_HEADERS: Final = 200
_MAX_HEADER_BYTES: Final = 64 * 1024
#: Headers that decide who is let in: two of them would let a proxy and us read different ones.
_ONCE: Final = (b"origin", b"host")
_RETRY_AFTER: Final = 5

_log: Final = logging.getLogger("rtkit.hosting")


@dataclass(frozen=True, slots=True)
class AsgiStatistics:
    """What an :class:`AsgiHost` is doing.

    :param connections: WebSockets that are open now.
    :param requests: requests to the other transports that are being answered; streams among them.
    :param streams: responses that go on.
    :param writing: how many WebSockets and streams have something to send.
    """

    connections: int
    requests: int
    streams: int
    writing: int


@final
class AsgiHost:
    """An ASGI application that brings WebSockets and requests to an :class:`~rtkit.transports.Acceptor`.

    ::

        self._host = AsgiHost(self, lifespan=self.lifespan)  # in the hub's constructor
        ...
        await self._host(scope, receive, send)  # in its __call__

    Nothing is bound to a loop; one host may serve several loops one after another.

    :param acceptor: who is to drive the transports.
    :param lifespan: makes the context manager to be entered at ``lifespan.startup`` and left at
        ``lifespan.shutdown``.
    :param ready: None when new clients are welcome, else the seconds after which they shall come back (M4).
    :param drain: sends every client away, and takes no new ones; called at a SIGTERM where that can be noticed (L2).
    :param clock: for the close timeout.
    :param close_timeout: seconds a closing connection or an ending stream may take, flushing included.
    :raises ValueError: for a close timeout that is not positive.
    """

    __slots__ = (
        "_acceptor",
        "_clock",
        "_close_timeout",
        "_connections",
        "_drain",
        "_endpoints",
        "_http",
        "_lifespan",
        "_raw",
        "_tasks",
    )

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        lifespan: Callable[[], AbstractAsyncContextManager[object]],
        ready: Callable[[], float | None] | None = None,
        drain: Callable[..., Awaitable[None]] | None = None,
        clock: Clock | None = None,
        close_timeout: float = 5.0,
    ) -> None:
        if not close_timeout > 0:
            raise ValueError(f"AsgiHost(close_timeout=…) is positive seconds, not {close_timeout!r}")
        self._acceptor = acceptor
        self._lifespan = lifespan
        self._drain = drain
        self._endpoints = Endpoints(ready)
        self._clock: Clock = LoopClock() if clock is None else clock
        self._close_timeout = close_timeout
        self._connections = 0
        self._tasks = Tasks(name="asgi", clock=self._clock)
        self._raw = RawSockets(acceptor, clock=self._clock, close_timeout=close_timeout)
        self._http = AsgiHttp(acceptor, clock=self._clock, close_timeout=close_timeout, writers=self._tasks)

    def statistics(self) -> AsgiStatistics:
        """What is open and busy now."""
        return AsgiStatistics(
            connections=self._connections,
            requests=self._http.requests,
            streams=self._http.streams,
            writing=self._tasks.statistics().running,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: ``lifespan``, ``http`` or ``websocket``.

        Cancellation: safe; the connection is ended and the driver told.

        :raises ValueError: for another type of scope.
        """
        if self._drain is not None:
            drain_before_exit(self._drain)
        match scope["type"]:
            case "websocket":
                await self._serve_websocket(scope, receive, send)
            case "http":
                await self._serve_http(scope, receive, send)
            case "lifespan":
                await self._serve_lifespan(receive, send)
            case other:
                raise ValueError(f"rtkit serves the ASGI scopes lifespan, http and websocket, not {other!r}")

    # -- lifespan

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        try:
            async with self._lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as exc:
            _log.exception("%s failed", phase)
            await send({"type": f"lifespan.{phase}.failed", "message": f"rtkit: {type(exc).__name__}: {exc}"})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    # -- websocket

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["type"] != "websocket.connect":
            return  # gone before it was there
        try:
            handshake = await self._admit(scope)
        except Refused as refused:
            await _deny(scope, send, refused)
            return
        accept: dict[str, Any] = {"type": "websocket.accept"}
        if subprotocol := _choose_subprotocol(scope.get("subprotocols") or ()):
            accept["subprotocol"] = subprotocol
        side = self._raw.hold(scope)
        try:
            await send(accept)
        except (OSError, RuntimeError):
            _log.debug("gone before the handshake was complete", exc_info=True)
            return
        self._connections += 1
        try:
            if side is not None:
                await self._raw.serve(side, handshake)
            else:
                await self._pump(receive, send, handshake)
        finally:
            self._connections -= 1

    async def _pump(self, receive: Receive, send: Send, handshake: Handshake) -> None:
        receive, send = interrupted(receive, send)
        pipe = AsgiPipe(
            send,
            max_frame=self._acceptor.max_frame,
            close_timeout=self._close_timeout,
            clock=self._clock,
            tasks=self._tasks,
        )
        transport = pipe.transport
        await pipe.pump(receive, lambda: transport.drive(self._acceptor.connect(transport, handshake)))

    async def _admit(self, scope: Scope) -> Handshake:
        """The handshake, once everybody agrees to it.

        :raises Refused: if somebody does not.
        """
        handshake = read_handshake(scope)
        if _endpoint(scope) not in WEBSOCKET:
            raise Refused(404, NOT_FOUND)
        try:
            await self._acceptor.ensure_running()
        except Unavailable as exc:
            _log.warning("cannot start: %s", exc, exc_info=True)
            raise Refused(503, "not available right now", retry_after=_RETRY_AFTER) from exc
        self._acceptor.admit(handshake)
        return handshake

    # -- http

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, endpoint = scope["method"], _endpoint(scope)
        if endpoint in HTTP_ENDPOINTS:
            try:
                handshake = read_handshake(scope)
            except Refused as refused:
                await respond(send, refusal(refused.status, refused.reason))
            else:
                await self._http.serve(method, endpoint, handshake, receive, send)
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope.get("headers") or ():
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        request = Request(method, endpoint, headers, str(scope.get("http_version", "1.1")))
        await respond(send, self._endpoints.answer(request))

    def __repr__(self) -> str:
        return f"<AsgiHost, {self._connections} connections>"


def read_handshake(scope: Scope) -> Handshake:
    """The handshake of an ASGI scope.

    :raises Refused: 431 for more than 200 headers or 64 KiB of them, 400 for two ``Origin`` or ``Host``, and for a
        ``Sec-WebSocket-Key`` that is none.
    """
    raw: list[tuple[bytes, bytes]] = list(scope.get("headers") or ())
    if len(raw) > _MAX_HEADERS or sum(len(name) + len(value) for name, value in raw) > _MAX_HEADER_BYTES:
        raise Refused(431, "too many headers")
    names = [name.lower() for name, _ in raw]
    for name in _ONCE:
        if names.count(name) > 1:
            raise Refused(400, f"more than one {name.decode().title()} header")
    for name, value in raw:
        # hypercorn and granian take anything. (HTTP/2 has no such header.)
        if name.lower() == b"sec-websocket-key" and not _is_key(value):
            raise Refused(400, "the Sec-WebSocket-Key is not 16 bytes in base64")
    client = scope.get("client")
    return Handshake(
        path=str(scope.get("path") or "/"),
        # Every byte is a character in latin-1, so this cannot fail, whatever was sent.
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw),
        query=bytes(scope.get("query_string") or b"").decode("utf-8", "replace"),
        address=str(client[0] or "") if client else "",
        secure=True if scope.get("scheme") in ("wss", "https") else None,
        scope=scope,
    )


def _is_key(value: bytes) -> bool:
    """RFC 6455, section 4.1: 16 bytes in base64."""
    try:
        return len(base64.b64decode(value.strip(), validate=True)) == 16
    except ValueError:
        return False


def _endpoint(scope: Scope) -> str:
    """The last segment of the path below the mount point; empty for the mount point itself."""
    path, root = str(scope.get("path") or ""), str(scope.get("root_path") or "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path.strip("/").rpartition("/")[2]


def _choose_subprotocol(offered: Iterable[str]) -> str | None:
    first = list(offered)[:_MAX_SUBPROTOCOLS]
    return next((ours for ours in SUBPROTOCOLS if ours in first), None)


async def _deny(scope: Scope, send: Send, refused: Refused) -> None:
    """Answer a WebSocket handshake with an HTTP response where the server can, else with its 403."""
    try:
        if "websocket.http.response" in (scope.get("extensions") or {}):
            response = refusal(refused.status, refused.reason, refused.retry_after)
            await respond(send, response, prefix="websocket.http.response")
        else:
            # The code gets no further than an in-memory client; on the network this is a 403.
            code = TRY_LATER if refused.status in (429, 503) else NOT_PERMITTED_CLOSE
            await send({"type": "websocket.close", "code": code, "reason": refused.reason.strip()[:100]})
    except (OSError, RuntimeError):
        _log.debug("gone before it was refused", exc_info=True)
