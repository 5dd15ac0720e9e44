"""One connection while it speaks HTTP/1.1: until it closes, or becomes a WebSocket.

h11 parses and formats; this file says when. One request is worked on at a time, and one per loop turn, so that a
client that sends ten thousand in one go costs the others ten thousand turns apart.

::

    tls ──▶ idle ──▶ head ──▶ body ──▶ busy ──▶ flush ──▶ idle
     │        │        │        │        │        │
     └────────┴────────┴────────┴────────┴────────┴──▶ closing        busy ──▶ a RawPipe takes over

- *tls*: where TLS is spoken, its handshake, in a task. asyncio would do it before it tells anybody about the
  connection, which then could not be counted, nor be dropped when the server closes.
- *idle*: nothing of a request is there. *head*, *body*: some of it is. Each has its own deadline, for the whole
  of it and not for a pause in it: a byte a second is no way to stay.
- *busy*: a whole request is there, and is being answered by a task: a file is read, or a hub starts. The socket is
  not read meanwhile; what came before is in h11's buffer, one read of the socket at the most.
- *flush*: the answer has not left yet. The next request waits for that, so that nobody can have answers pile up.
- *closing*: the last answer was given. If more may come from the client, it is read and forgotten until the client
  closes, since a socket that is closed with bytes unread is reset, and the client might never see the answer.

All deadlines are one entry of a structure that all connections share. They are patient: time in which this process
itself stood still is not the client's fault (F5).
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, cast, final
from urllib.parse import unquote

import h11

from ..codes import INTERNAL_CLOSE
from ..errors import Unavailable
from ..hosting.endpoints import Request, Response, etag_matches, plain, refusal
from ..hosting.raw import RawPipe
from ..transports import Handshake, Refused
from .static import PIECE, StaticFile
from .upgrade import upgrade

if TYPE_CHECKING:
    import ssl

    from ..primitives.deadlines import Deadline
    from .site import Site

__all__ = ["HttpConnection"]

_TLS: Final = 0
_IDLE: Final = 1
_HEAD: Final = 2
_BODY: Final = 3
_BUSY: Final = 4
_FLUSH: Final = 5
_CLOSING: Final = 6
_PHASES: Final = ("tls", "idle", "head", "body", "busy", "flush", "closing")

#: Pieces of a body that are looked at in one loop turn: a chunk may be a single byte.
_PIECES: Final = 64

Ts = TypeVarTuple("Ts")

_RETRY_AFTER: Final = 5
_TLS_HANDSHAKE: Final = 0x16

_log: Final = logging.getLogger("rtkit.server")


class _Refuse(Exception):
    """This request gets an answer at once, and is the connection's last."""

    def __init__(self, status: int, text: str, *more: tuple[str, str]) -> None:
        super().__init__(text)
        self.response = plain(status, text, *more)


@final
class HttpConnection(asyncio.Protocol):
    """The protocol object of a connection, made when it is accepted."""

    __slots__ = (
        "_body",
        "_deadline",
        "_drained",
        "_headers",
        "_http",
        "_network",
        "_path",
        "_phase",
        "_query",
        "_request",
        "_site",
        "_surplus",
        "_target",
        "_task",
        "_writing_paused",
    )

    def __init__(self, site: Site) -> None:
        self._site = site
        self._network: asyncio.Transport | None = None
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=site.limits.head)
        self._phase = _IDLE
        self._deadline: Deadline | None = None
        self._surplus = False  # one too many: it gets a refusal
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._body = 0  # bytes of it so far
        self._request = Request("GET", "")
        self._headers: Sequence[tuple[str, str]] = ()
        self._target = self._path = "/"
        self._query = ""

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._network = cast(asyncio.Transport, transport)
        surplus = self._site.opened(self)
        if surplus is None:
            self._network.abort()
            return
        self._surplus = surplus
        # From the beginning, or one might connect and say nothing for as long as others may between requests.
        self._end_in(self._site.limits.header_time)
        if self._site.ssl is not None:
            self._phase = _TLS
            self._network.pause_reading()
            self._task = self._site.tasks.spawn(self._start_tls, self._network, self._site.ssl)

    async def _start_tls(self, network: asyncio.Transport, context: ssl.SSLContext) -> None:
        limits, secured = self._site.limits, None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                network,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=limits.header_time,
                ssl_shutdown_timeout=limits.close_timeout,
            )
        except OSError:
            _log.debug("a TLS handshake failed", exc_info=True)
        finally:
            self._task = None
            if secured is None:
                network.abort()
                self.connection_lost(None)  # which asyncio does not call for all failures
        if secured is not None and self._network is not None:
            self._network = secured
            self._phase = _IDLE
            self._read()  # what came with the end of the handshake

    def data_received(self, data: bytes) -> None:
        if self._phase == _CLOSING:
            return
        self._http.receive_data(data)
        if self._phase == _IDLE:
            self._phase = _HEAD
            self._end_in(self._site.limits.header_time)
        self._read()

    def eof_received(self) -> bool:
        """A client may close its half when it has sent its request, and still gets the answer."""
        return self._phase in (_BUSY, _FLUSH)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
        elif self._phase == _FLUSH:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _CLOSING
        self._network = None
        if self._deadline is not None:
            self._deadline.cancel()
        if self._task is not None:
            self._task.cancel()
        self._site.closed(self)

    # -- reading a request

    def _read(self) -> None:
        """Parse until a request is whole, or bytes are missing."""
        if not _TLS < self._phase < _BUSY:
            return
        try:
            for _ in range(_PIECES):
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._begin(event)
                    if self._http.they_are_waiting_for_100_continue:
                        # Nothing here takes a body, so none is asked for.
                        self._answer()
                        return
                elif isinstance(event, h11.Data):
                    self._count(len(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._answer()
                    return
                else:
                    if self._phase == _IDLE and self._http.trailing_data[0]:
                        self._phase = _HEAD
                        self._end_in(self._site.limits.header_time)
                    return
            asyncio.get_running_loop().call_soon(self._read)
        except h11.RemoteProtocolError as error:
            self._refuse(_bad_request(error, self._site.limits.head, self._http.trailing_data[0]))
        except _Refuse as refused:
            self._refuse(refused.response)

    def _begin(self, event: h11.Request) -> None:
        """A head is there.

        :raises _Refuse: for one that is not served.
        """
        limits = self._site.limits
        self._body = 0
        self._headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
        self._target = event.target.decode("latin-1")
        version = event.http_version.decode("latin-1")
        merged: dict[str, str] = {}
        for name, value in self._headers:
            merged[name] = f"{merged[name]}, {value}" if name in merged else value
        self._path, self._query = _split_target(self._target)
        endpoint = self._site.endpoint(self._path) or ""
        self._request = Request(event.method.decode("latin-1"), endpoint, merged, version)
        if len(self._headers) > limits.headers:
            raise _Refuse(431, f"more than {limits.headers} headers\n")
        if version not in ("1.0", "1.1"):
            raise _Refuse(505, "this server speaks HTTP/1.1\n")
        length, chunked = merged.get("content-length"), "transfer-encoding" in merged
        if chunked and (length is not None or version == "1.0"):
            # Where two readings are possible, a proxy in front may have taken the other one.
            raise _Refuse(
                400, "a request has one length: Content-Length or, in HTTP/1.1, Transfer-Encoding\n"
            )
        if length is not None and int(length) > limits.body:
            raise _Refuse(413, f"a body has {limits.body} bytes at the most\n")
        if self._surplus:
            raise _Refuse(503, "too many connections\n", ("retry-after", str(_RETRY_AFTER)))
        if chunked or length not in (None, "0"):
            self._phase = _BODY
            self._end_in(limits.body_time)

    def _count(self, size: int) -> None:
        """Some of a body is there. Nothing wants it; it is read so that the connection stays usable."""
        self._body += size
        if self._body > self._site.limits.body:
            raise _Refuse(413, f"a body has {self._site.limits.body} bytes at the most\n")

    # -- answering it

    def _answer(self) -> None:
        """A whole request is there."""
        site, request = self._site, self._request
        site.counters["requests"] += 1
        if request.method == "GET" and "upgrade" in request.headers and site.is_websocket(self._path):
            self._work(self._upgrade)
            return
        parts = site.file(self._path)
        if parts is None:
            self._respond(site.answer(request, self._path))
        elif request.method in ("GET", "HEAD"):
            self._work(self._send_file, parts)
        else:
            self._respond(plain(405, "method not allowed\n", ("allow", "GET, HEAD")))

    def _work(self, func: Callable[[*Ts], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        """Answer in a task, which ends with the connection."""
        self._phase = _BUSY
        self._end_in(math.inf)
        if self._network is not None:
            self._network.pause_reading()
        self._task = self._site.tasks.spawn(self._guard, func, args)

    async def _guard(self, func: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await func(*args)
        except Exception:
            _log.exception("a request failed: %s %s", self._request.method, ascii(self._path))
            if self._network is not None and self._http.our_state is h11.SEND_RESPONSE:
                self._respond(plain(500, "internal error\n"), last=True)
            else:
                self.abort()  # in the middle of an answer that has promised more
        finally:
            self._task = None

    def _respond(self, response: Response, *, last: bool = False) -> None:
        """Send a whole answer."""
        data = self._head(response, last=last)
        if response.body:
            data += self._http.send(h11.Data(data=response.body))
        self._finish(data)

    def _head(self, response: Response, *, last: bool = False) -> bytes:
        """The head of an answer, as bytes."""
        headers = [*response.headers, ("date", email.utils.formatdate(self._site.clock.time(), usegmt=True))]
        if last or self._site.draining or self._http.they_are_waiting_for_100_continue:
            headers.append(("connection", "close"))
        reason = HTTPStatus(response.status).phrase.encode()
        return self._http.send(h11.Response(status_code=response.status, headers=headers, reason=reason))

    def _finish(self, data: bytes) -> None:
        """Send the last of an answer, and go on to the next request, if there may be one."""
        if self._network is None:
            return
        self._network.write(data + self._http.send(h11.EndOfMessage()))
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._hang_up()
            return
        self._http.start_next_cycle()
        if self._writing_paused:
            self._phase = _FLUSH
            self._network.pause_reading()
            self._end_in(self._site.limits.send_time)
        else:
            self._next()

    def _next(self) -> None:
        """What was answered has left: on to the next request."""
        if self._network is None:
            return
        if self._site.draining:
            self._hang_up()
            return
        self._phase = _IDLE
        self._end_in(self._site.limits.idle_time)
        self._network.resume_reading()
        # The next one may be here already; its turn is the next.
        asyncio.get_running_loop().call_soon(self._read)

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be served, and close."""
        self._site.counters["refused"] += 1
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._respond(response, last=True)
        else:
            self._hang_up()

    # -- files

    async def _send_file(self, parts: tuple[str, ...]) -> None:
        folder = self._site.static
        assert folder is not None
        found = await asyncio.to_thread(folder.open, parts)
        if found is None:
            self._respond(self._site.nothing(self._request))
            return
        try:
            await self._send_found(found)
        finally:
            found.close()

    async def _send_found(self, found: StaticFile) -> None:
        headers = (("cache-control", "no-cache"), ("etag", found.etag), ("x-content-type-options", "nosniff"))
        if etag_matches(self._request.headers.get("if-none-match"), found.etag):
            self._respond(Response(304, headers))
            return
        more = (("content-type", found.content_type), ("content-length", str(found.size)))
        if self._request.method == "HEAD":
            self._respond(Response(200, (*headers, *more)))
            return
        if found.rest is None:
            self._respond(Response(200, (*headers, *more), found.first))
            return
        await self._send_piece(self._head(Response(200, (*headers, *more))))
        left, piece = found.size, found.first
        while piece:
            left -= len(piece)
            await self._send_piece(self._http.send(h11.Data(data=piece)))
            piece = await asyncio.to_thread(found.rest.read, min(PIECE, left)) if left else b""
        self._finish(b"")  # raises for a file that has shrunk meanwhile

    async def _send_piece(self, data: bytes) -> None:
        """Write, and wait until there is room for more."""
        if self._network is None:
            return
        self._network.write(data)
        if self._writing_paused:
            self._end_in(self._site.limits.send_time)
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
            self._end_in(math.inf)

    # -- becoming a WebSocket

    async def _upgrade(self) -> None:
        site, network = self._site, self._network
        try:
            head = self._shake_hands()
            await site.acceptor.ensure_running()
            handshake = self._handshake()
            site.acceptor.admit(handshake)
        except _Refuse as refused:
            self._refuse(refused.response)
            return
        except Refused as refused:
            self._refuse(refusal(refused.status, refused.reason, refused.retry_after))
            return
        except Unavailable as exc:
            _log.warning("cannot start: %s", exc, exc_info=True)
            self._refuse(refusal(503, "not available right now", _RETRY_AFTER))
            return
        if network is None or self._network is None:
            return  # gone meanwhile
        early, _ = self._http.trailing_data
        if self._deadline is not None:
            self._deadline.cancel()
        self._network = None
        site.counters["websockets"] += 1
        pipe = RawPipe(network, site.pipes)
        site.closed(self)
        network.write(head)
        transport = pipe.transport
        try:
            transport.drive(site.acceptor.connect(transport, handshake))
        except Exception:
            _log.exception("a connection failed as it began")
            pipe.close(INTERNAL_CLOSE, "internal error")
        network.resume_reading()
        if early:
            pipe.data_received(early)

    def _shake_hands(self) -> bytes:
        """The head of the answer that takes the handshake.

        :raises _Refuse: for one that is not taken.
        """
        if self._site.draining:
            raise _Refuse(503, "draining\n", ("retry-after", "1"))
        if (
            self._request.headers.get("content-length", "0") != "0"
            or "transfer-encoding" in self._request.headers
        ):
            raise _Refuse(400, "a WebSocket handshake has no body\n")
        if self._request.http_version != "1.1":
            more = (("upgrade", "websocket"), ("connection", "Upgrade"))
            raise _Refuse(426, "a WebSocket handshake is HTTP/1.1\n", *more)
        head = upgrade(self._target, self._headers)
        if isinstance(head, Response):
            refuse = _Refuse(head.status, "")
            refuse.response = head
            raise refuse
        return head

    def _handshake(self) -> Handshake:
        network = self._network
        peer = None if network is None else network.get_extra_info("peername")
        secure = network is not None and network.get_extra_info("ssl_object") is not None
        return Handshake(
            path=self._path,
            headers=tuple(self._headers),
            query=self._query,
            address=str(peer[0]) if isinstance(peer, tuple) and peer else "",
            secure=True if secure else None,
        )

    # -- the ways to an end

    def drain(self) -> None:
        """Close, at once or when the answer that is under way was given."""
        if self._phase == _IDLE:
            self._hang_up()

    def abort(self) -> None:
        """Drop the connection, without a word."""
        if self._phase == _TLS and self._task is not None:
            self._task.cancel()
        if self._network is not None:
            self._network.abort()

    def _end_in(self, seconds: float) -> None:
        when = self._site.clock.monotonic() + seconds
        if self._deadline is None:
            self._deadline = self._site.deadlines.at(when, self._timed_out, patient=True)
        else:
            self._deadline.move(when)

    def _timed_out(self) -> None:
        self._site.counters["timeouts"] += 1
        if self._phase == _IDLE:
            self._hang_up()
        elif self._phase in (_HEAD, _BODY):
            self._refuse(plain(408, "the request took too long\n"))
        else:
            self.abort()

    def _hang_up(self) -> None:
        """The last answer was given: close when it has left, without cutting off what the client may still send."""
        network = self._network
        if network is None or self._phase == _CLOSING:
            return
        settled = self._http.their_state in (h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        settled = settled and not self._http.trailing_data[0]
        self._phase = _CLOSING
        self._end_in(self._site.limits.close_timeout)
        if settled or not network.can_write_eof():
            network.close()
            return
        try:
            network.write_eof()
        except OSError:  # the client has reset the connection
            network.abort()
        else:
            network.resume_reading()

    def __repr__(self) -> str:
        return f"<HttpConnection {_PHASES[self._phase]}>"


def _split_target(target: str) -> tuple[str, str]:
    """The decoded path and the raw query of a request target."""
    if not target.startswith("/") and "://" in target:
        # The absolute form, which every server must take (RFC 9112, section 3.2.2).
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    return unquote(path), query


def _bad_request(error: h11.RemoteProtocolError, limit: int, data: bytes) -> Response:
    """The answer to what is not HTTP, or too much of it."""
    status = error.error_status_hint
    if data[:1] and data[0] == _TLS_HANDSHAKE:
        _log.debug("a TLS handshake on a plain port")
        return plain(400, "This port speaks plain HTTP, and this was TLS: use http:// and ws://.\n")
    if status == 431:
        return plain(431, f"the head of a request has {limit} bytes at the most\n")
    if status == 501:
        return plain(501, "the only Transfer-Encoding served is chunked\n")
    return plain(400, f"not a valid HTTP/1.1 request: {error}\n")
