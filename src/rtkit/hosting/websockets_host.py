"""A hub on connections of ``websockets.serve``, for those who have such a server already.

::

    handle = handler(hub)
    async with hub, serve(handle, "localhost", 8765, **OPTIONS) as server:
        await server.serve_forever()

A connection that gets here has shaken hands. Who may not connect is therefore not answered with an HTTP status but
with a close code, unless ``process_request=handle.process_request`` is passed on as well: it also answers ``ready``
and ``client.js``, for GET is all that websockets can answer. The transports over plain HTTP need bodies, and responses
that go on: they are answered with 501, which makes clients try something else.

Traps:

- *Pings.* websockets' own have their own opinion of when a peer is dead; the hub has one too. ``ping_interval=None``.
- *Compression* is on unless told otherwise: every member of a room would pay for it (T9). ``compression=None``.
- *recv()* in one task, *send()* in another, *close()* in a third is fine, but ``close()`` waits for the peer, and
  for a peer that does not read; the pipe above has a limit for that, and then the socket is dropped.
- *The server's close* says 1001 to every client before anybody asks the hub: leave ``async with hub`` first, as above
  by the order of the two, or ``server.close(close_connections=False)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Final, final
from urllib.parse import unquote

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from ..transports import HTTP_ENDPOINTS, plain
from ..transports import Response as Answer
from .asgi import SUBPROTOCOLS, Scope
from .wrap import AsgiApp

__all__ = ["OPTIONS", "Handler", "handler"]

Message = MutableMapping[str, Any]

_ABNORMAL: Final = 1006
_MAX_SUBPROTOCOLS: Final = 16
_NO_HTTP: Final = (
    "This is a server of the websockets library: it serves WebSockets, and neither event streams nor long-polls. "
    "For those, serve the hub with rtkit's own server, an ASGI server, or aiohttp.\n"
)


def _choose(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours that the client wants too; to want none is fine, which websockets' own choice would refuse."""
    first = offered[:_MAX_SUBPROTOCOLS]
    return next((Subprotocol(ours) for ours in SUBPROTOCOLS if ours in first), None)


def _is_http_endpoint(target: str) -> bool:
    """Whether a request's target, path and query, is of a transport over plain HTTP."""
    return target.partition("?")[0].strip("/").rpartition("/")[2] in HTTP_ENDPOINTS


class Connection(ServerConnection):
    """A connection that is over when both sides have closed it, not only when the peer has closed its socket as well.

    The RFC wants the server to close first (section 7.1.1), and a peer that does not would be kept for 10 s.
    """

    _begun = False

    def data_received(self, data: bytes) -> None:
        first, self._begun = not self._begun, True
        if (
            first
            and data.startswith(b"POST ")
            and _is_http_endpoint(data.split(b" ", 2)[1].decode("latin-1"))
        ):
            # websockets ends a request with a body without a word, and asks nobody.
            self.transport.write(_response(plain(501, _NO_HTTP)).serialize())
            self.transport.close()
            return
        super().data_received(data)
        if self.protocol.close_rcvd is not None and self.protocol.close_sent is not None:
            self.transport.close()

    def send_data(self) -> None:
        super().send_data()
        if self.protocol.close_sent is not None and not self.transport.is_closing():
            # A message of too many fragments has stopped the reading, and nobody would notice that the peer goes.
            self.transport.resume_reading()


#: What to pass to ``serve()``.
OPTIONS: Final[dict[str, Any]] = {
    "create_connection": Connection,
    "select_subprotocol": _choose,
    "compression": None,
    "ping_interval": None,
}


def handler(hub: AsgiApp) -> Handler:
    """A handler for ``websockets.serve`` that drives connections with *hub*."""
    return Handler(hub)


@final
class Handler:
    """What :func:`handler` makes; may also be awaited by a handler that does its own routing first.

    :param hub: an ASGI application.
    """

    __slots__ = ("_hub",)

    def __init__(self, hub: AsgiApp) -> None:
        self._hub = hub

    async def __call__(self, connection: ServerConnection) -> None:
        """Drive one connection until it is over.

        Cancellation: safe; the connection is ended.
        """
        socket = _Socket(connection)
        try:
            await self._hub(socket.scope(), socket.receive, socket.send)
        finally:
            socket.end()

    async def process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """For ``serve(process_request=…)``: refuse with a status who may not connect, and answer plain requests.

        It does not take in anybody: the connection then comes to the handler, and is asked the same again.
        """
        upgrades = request.headers.get_all("Upgrade")
        if _is_http_endpoint(request.path):
            return _response(plain(501, _NO_HTTP))
        kind = "websocket" if any(each.strip().lower() == "websocket" for each in upgrades) else "http"
        trial = _Trial(kind)
        await self._hub(_scope(connection, request, kind), trial.receive, trial.send)
        return trial.response()


def _scope(connection: ServerConnection, request: Request, kind: str) -> Scope:
    path, _, query = request.path.partition("?")
    secure = connection.transport.get_extra_info("ssl_object") is not None
    address = connection.remote_address
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": getattr(request, "method", "GET"),
        "scheme": f"{'ws' if kind == 'websocket' else 'http'}{'s' if secure else ''}",
        "path": unquote(path),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.raw_items()
        ],
        # They were negotiated by websockets itself.
        "subprotocols": [],
        "client": address[:2] if isinstance(address, tuple) else None,
        "extensions": {"websocket.http.response": {}} if connection.response is None else {},
        "websockets.connection": connection,
    }


class _Trial:
    """An ASGI server that is only asked what it would answer."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._start: Message | None = None
        self._body = b""
        self._asked = False

    async def receive(self) -> Message:
        first, self._asked = not self._asked, True
        if self._kind == "http":
            return {"type": "http.disconnect"}
        return {"type": "websocket.connect" if first else "websocket.disconnect", "code": _ABNORMAL}

    async def send(self, message: Message) -> None:
        if message["type"] == "websocket.accept":
            raise OSError("this was a trial")
        if message["type"].endswith(".start"):
            self._start = message
        else:
            self._body += message.get("body", b"")

    def response(self) -> Response | None:
        if self._start is None:
            return None
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start["headers"]
        ]
        return _response(Answer(self._start["status"], headers, self._body))


def _response(answer: Answer) -> Response:
    headers = Headers(answer.headers)
    if "Content-Length" not in headers and answer.status != HTTPStatus.NO_CONTENT:
        headers["Content-Length"] = str(len(answer.body))
    headers["Connection"] = "close"
    status = HTTPStatus(answer.status)
    return Response(status.value, status.phrase, headers, answer.body)


@final
class _Socket:
    """A connection of websockets behind the ASGI messages of one."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._began = False
        self._closing: asyncio.Future[None] | None = None

    def scope(self) -> Scope:
        request = self._connection.request
        assert request is not None, "a handler is called after the handshake"
        return _scope(self._connection, request, "websocket")

    async def receive(self) -> Message:
        if not self._began:
            self._began = True
            return {"type": "websocket.connect"}
        try:
            data = await self._connection.recv()
        except ConnectionClosed:
            if self._closing is not None:
                await asyncio.shield(self._closing)
            protocol = self._connection.protocol
            code, reason = protocol.close_code, protocol.close_reason
            return {"type": "websocket.disconnect", "code": code or _ABNORMAL, "reason": reason or ""}
        return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "websocket.send":
                try:
                    await self._connection.send(message["text"])
                except ConnectionClosed as exc:
                    raise OSError("the connection is closed") from exc
            case "websocket.close":
                self._closing = asyncio.get_running_loop().create_future()
                try:
                    await self._connection.close(message["code"], message["reason"])
                finally:
                    if not self._closing.done():
                        self._closing.set_result(None)
            case _:
                pass  # it is accepted already

    def end(self) -> None:
        """The hub is done with it."""
        transport = self._connection.transport
        # The peer takes nothing, or does not answer, and had its time: websockets would give it its own once more.
        if transport.get_write_buffer_size():
            transport.abort()
        elif self._connection.protocol.close_sent is not None:
            transport.close()
