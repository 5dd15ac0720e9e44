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
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

from aiohttp import WSMsgType, web

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
    answer = _Answer()
    await hub(_scope(request, "http"), answer.receive, answer.send)
    return answer.response()


class _Answer:
    """A plain response, from the two ASGI messages that it is made of."""

    def __init__(self) -> None:
        self._start: Message | None = None
        self._body = b""

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"].endswith(".start"):
            self._start = message
        else:
            self._body += message.get("body", b"")

    def response(self) -> web.Response:
        start = self._start or {"status": 500, "headers": ()}
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return web.Response(status=start["status"], headers=headers, body=self._body)


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
