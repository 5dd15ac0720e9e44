"""A hub in aiohttp, which is no ASGI server: ``hub.add_to(app, "/rt")``.

Each request becomes an ASGI scope, so that a hub behaves here as everywhere. ``credentials.scope["aiohttp.request"]``
is aiohttp's own request, for whoever authenticates by what a middleware has put there.

Traps:

- *Shutdown.* aiohttp waits up to 60 s for its handlers before it cleans up, and a WebSocket is a handler that does
  not end. So the hub closes at ``on_shutdown``, which comes before that, and not in a ``cleanup_ctx``.
- *close()* while somebody is inside ``receive()`` ends the connection without waiting for the peer's close frame, and
  the kernel answers that with a reset, which may cost the peer ours. So we write close frames ourselves.
- *While it shuts down*, aiohttp takes no more bytes from anybody, so a peer's close frame is not waited for then.
- *A connection that broke* may be reported as closed with 1000. Only a code that came in a close frame counts.
- *Compression* is on unless told otherwise; T9 says off.
- *Nobody tells that a client has gone away* while an answer is waited for or goes on, unless the application runs with
  ``handler_cancellation``. So we look over aiohttp's shoulder, at what the loop tells its protocol.
- *A response that was sent already* cannot be changed by aiohttp's middlewares: those of streams are, for they must be.
  Others are handed back, as every handler does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

from aiohttp import WSMsgType, web
from multidict import CIMultiDict

from .asgi import Scope
from .wrap import AsgiApp, check_prefix

__all__ = ["add_to"]

Message = MutableMapping[str, Any]

_ABNORMAL: Final = 1006
_NO_STATUS: Final = 1005
#: Seconds in which a peer that broke the protocol may answer aiohttp's close frame.
_CLOSE_TIMEOUT: Final = 5.0


def add_to(
    app: web.Application,
    prefix: str,
    hub: AsgiApp,
    *,
    start: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    max_frame: int,
) -> None:
    """Serve *hub* below *prefix* of an aiohttp application, and have it live as long as that.

    :param hub: an ASGI application.
    :param start: called at the application's startup.
    :param close: called at its shutdown, before it waits for its handlers.
    :param max_frame: bytes of an inbound message at the most.
    :raises UsageError: for a prefix with odd characters.
    :raises RuntimeError: when the application is running already.
    """
    root = check_prefix(prefix)
    ending = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        return await _serve(request, hub, max_frame, ending)

    async def startup(_: web.Application) -> None:
        ending.clear()
        await start()

    async def shutdown(_: web.Application) -> None:
        ending.set()
        await close()

    app.router.add_route("*", root, serve)
    app.router.add_route("*", root + "/{rt_endpoint:.*}", serve)
    app.on_startup.append(startup)
    app.on_shutdown.append(shutdown)


def _scope(request: web.Request, kind: str) -> Scope:
    path = request.path
    tail = request.match_info.get("rt_endpoint")
    address = request.transport.get_extra_info("peername") if request.transport is not None else None
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": {"http": "ws", "https": "wss"}[request.scheme] if kind == "websocket" else request.scheme,
        "path": path,
        "root_path": path if tail is None else path[: len(path) - len(tail)].rstrip("/"),
        "query_string": request.rel_url.raw_query_string.encode(),
        "headers": list(request.raw_headers),
        "subprotocols": [each.strip() for each in offered.split(",") if each.strip()],
        "client": address[:2] if isinstance(address, tuple) else None,
        "extensions": {"websocket.http.response": {}},
        "aiohttp.request": request,
    }


async def _serve(
    request: web.Request, hub: AsgiApp, max_frame: int, ending: asyncio.Event
) -> web.StreamResponse:
    if request.headers.get("Upgrade", "").strip().lower() == "websocket" and request.method == "GET":
        socket = _Socket(request, max_frame, ending)
        trial = socket.prepared()
        if not trial.can_prepare(request):
            await trial.prepare(request)  # says what is wrong with the handshake
        await hub(_scope(request, "websocket"), socket.receive, socket.send)
        return socket.end()
    exchange = _Exchange(request)
    try:
        await hub(_scope(request, "http"), exchange.receive, exchange.send)
    finally:
        exchange.end()
    return exchange.response()


@final
class _Exchange:
    """A request and its response behind the ASGI messages of them."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._network = request.transport
        self._answer = _Answer()
        self._stream: web.StreamResponse | None = None
        self._body_read = False
        self._complete = False
        self._shoulder: _Shoulder | None = None

    async def receive(self) -> Message:
        if self._complete:
            return {"type": "http.disconnect"}
        if not self._body_read:
            try:
                data = await self._request.content.readany()
            except (OSError, web.RequestPayloadError):
                return {"type": "http.disconnect"}
            self._body_read = not data or self._request.content.at_eof()
            return {"type": "http.request", "body": data, "more_body": not self._body_read}
        if self._shoulder is None:
            self._shoulder = _Shoulder(self._request)
        await self._shoulder.wait_gone()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        more = message.get("more_body", False)
        if message["type"] == "http.response.start":
            await self._answer.send(message)
        elif self._stream is None and not more:
            self._complete = True
            await self._answer.send(message)
        else:
            if self._stream is None:
                self._stream = self._answer.streamed()
                await self._stream.prepare(self._request)
            if data := message.get("body", b""):
                await self._stream.write(data)
            if not more:
                await self._stream.write_eof()
                self._complete = True

    def end(self) -> None:
        """The hub is done with it."""
        if self._shoulder is not None:
            self._shoulder.leave()
        if not self._complete and self._network is not None:
            # Cut off: the client must not take it for whole. Or it takes nothing, and had its time.
            self._network.abort()

    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._stream or self._answer.response()


@final
class _Shoulder(asyncio.Protocol):
    """Looks over the shoulder of a connection's protocol, to see the connection go."""

    def __init__(self, request: web.Request) -> None:
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._network = request.transport
        self._inner: asyncio.Protocol = request.protocol
        if self._network is None or self._network.is_closing():
            self._gone.set_result(None)
        elif self._network.get_protocol() is self._inner:
            self._network.set_protocol(self)

    async def wait_gone(self) -> None:
        """Wait for the end of the connection; for ever if we cannot see it. Cancellation: safe."""
        await asyncio.shield(self._gone)

    def leave(self) -> None:
        """Look elsewhere."""
        if self._network is not None and self._network.get_protocol() is self:
            self._network.set_protocol(self._inner)
        self._gone.cancel()

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        if not self._gone.done():
            self._gone.set_result(None)


class _Answer:
    """A response, from the two ASGI messages that a plain one is made of."""

    def __init__(self) -> None:
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"].endswith(".start"):
            self._start = message
        else:
            self._body += message.get("body", b"")

    def response(self) -> web.Response:
        status, headers = self._head()
        return web.Response(status=status, headers=headers, body=self._body)

    def streamed(self) -> web.StreamResponse:
        status, headers = self._head()
        return web.StreamResponse(status=status, headers=headers)

    def _head(self) -> tuple[int, CIMultiDict[str]]:
        start = self._start or {"status": 500, "headers": ()}
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
        return start["status"], CIMultiDict(headers)


@final
class _Socket:
    """An aiohttp WebSocket behind the ASGI messages of one."""

    def __init__(self, request: web.Request, max_frame: int, ending: asyncio.Event) -> None:
        self._request = request
        self._ending = ending
        self._max_frame = max_frame
        self._websocket: web.WebSocketResponse | None = None
        self._network = request.transport
        self._refusal: _Answer | None = None
        self._began = False
        self._said_close = False

    def prepared(self, *protocols: str) -> web.WebSocketResponse:
        """A WebSocket that is not accepted yet."""
        return web.WebSocketResponse(
            protocols=protocols,
            compress=False,
            heartbeat=None,
            autoclose=False,
            timeout=_CLOSE_TIMEOUT,
            # A message that is a little too long is refused by us, with words. (aiohttp refuses from its bound on.)
            max_msg_size=self._max_frame + 2,
        )

    @property
    def websocket(self) -> web.WebSocketResponse:
        assert self._websocket is not None, "accepted"
        return self._websocket

    async def receive(self) -> Message:
        if not self._began:
            self._began = True
            return {"type": "websocket.connect"}
        message = await self.websocket.receive()
        if message.type is WSMsgType.TEXT:
            return {"type": "websocket.receive", "text": message.data}
        if message.type is WSMsgType.BINARY:
            return {"type": "websocket.receive", "bytes": message.data}
        if message.type is WSMsgType.CLOSE:
            code = int(message.data or 0)
            if not self._said_close:
                await self._say_close(code, "")
            return {"type": "websocket.disconnect", "code": code or _NO_STATUS, "reason": message.extra or ""}
        if message.type is WSMsgType.ERROR and self.websocket.close_code in (1002, 1007, 1009):
            # The peer broke the protocol, and was told so.
            return {
                "type": "websocket.disconnect",
                "code": self.websocket.close_code,
                "reason": str(message.data),
            }
        return {"type": "websocket.disconnect", "code": _ABNORMAL}

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "websocket.send":
                await self.websocket.send_str(message["text"])
            case "websocket.accept":
                chosen = message.get("subprotocol")
                socket = self.prepared(*([chosen] if chosen else ()))
                if chosen:
                    # aiohttp prefers what the client prefers, and looks at one header of several.
                    socket.headers["Sec-WebSocket-Protocol"] = chosen
                await socket.prepare(self._request)
                self._websocket = socket
            case "websocket.close":
                await self._say_close(message["code"], message["reason"])
            case _:
                self._refusal = self._refusal or _Answer()
                await self._refusal.send(message)

    async def _say_close(self, code: int, reason: str) -> None:
        """Send a close frame, and go on receiving: aiohttp's own close() ends the connection there and then."""
        self._said_close = True
        payload = code.to_bytes(2, "big") + reason.encode() if code else b""
        try:
            await self.websocket.send_frame(payload, WSMsgType.CLOSE)
        except OSError:
            pass  # the peer is gone
        if self._ending.is_set() and self._network is not None:
            self._network.close()

    def end(self) -> web.StreamResponse:
        """What the handler returns; by now the connection is over."""
        if self._refusal is not None:
            return self._refusal.response()
        network = self._network
        if network is not None:
            if network.get_write_buffer_size():
                # The peer takes nothing, and had its time.
                network.abort()
            else:
                network.close()
        return self._websocket or web.Response(status=400)
