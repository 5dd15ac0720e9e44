"""One connection while it speaks HTTP/1.1: until it closes, or becomes a WebSocket.

h11 parses and formats; this file says when. One request is worked on at a time, and one per loop turn, so that a
client that sends ten thousand in one go costs the others ten thousand turns apart.

::

    idle ──▶ head ──▶ body ──▶ busy ──▶ flush ──▶ idle
      │        │        │        │        │
      └────────┴────────┴────────┴────────┴──▶ closing        busy ──▶ a RawPipe takes over

- *idle*: nothing of a request is there. *head*, *body*: some of it is. Each has its own deadline, for the whole
  of it and not for a pause in it: a byte a second is no way to stay.
- *busy*: a whole request is there, and is being answered by a task: a file is read, or a hub starts. The socket is
  not read meanwhile; what came before is in h11's buffer, one read of the socket at the most.
  A client that has closed its half meanwhile still gets the answer: that it has is read only afterwards.
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
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, cast, final

import h11

from ..codes import INTERNAL_CLOSE
from ..errors import Unavailable
from ..hosting.endpoints import Response, etag_matches, plain, refusal
from ..hosting.raw import RawPipe
from ..transports import Handshake, Refused
from .heads import Head, RequestRefused, not_http, read_head, too_large
from .static import PIECE, StaticFile
from .upgrade import upgrade

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .site import Site

__all__ = ["HttpConnection"]

_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_BUSY: Final = 3
_FLUSH: Final = 4
_CLOSING: Final = 5
_PHASES: Final = ("idle", "head", "body", "busy", "flush", "closing")

#: Pieces of a body that are looked at in one loop turn: a chunk may be a single byte.
_PIECES: Final = 64

Ts = TypeVarTuple("Ts")

_RETRY_AFTER: Final = 5

_log: Final = logging.getLogger("rtkit.server")


@final
class HttpConnection(asyncio.Protocol):
    """The protocol object of a connection, made when it is accepted."""

    __slots__ = (
        "_body",
        "_deadline",
        "_drained",
        "_head",
        "_http",
        "_network",
        "_phase",
        "_site",
        "_surplus",
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
        self._head: Head | None = None

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._network = cast(asyncio.Transport, transport)
        self._surplus = self._site.opened(self)
        if self._site.draining:
            self._network.abort()
            return
        # From the beginning, or one might connect and say nothing for as long as others may between requests.
        self._end_in(self._site.limits.header_time)

    def data_received(self, data: bytes) -> None:
        if self._phase == _CLOSING:
            return
        self._http.receive_data(data)
        if self._phase == _IDLE:
            self._phase = _HEAD
            self._end_in(self._site.limits.header_time)
        self._read()

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
        if self._phase >= _BUSY:
            return
        try:
            for _ in range(_PIECES):
                raw = b"" if self._phase == _BODY else self._http.trailing_data[0]
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._begin(event, raw)
                    if self._http.they_are_waiting_for_100_continue:
                        # Nothing here takes a body, so none is asked for.
                        self._answer()
                        return
                elif isinstance(event, h11.Data):
                    self._count(len(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._end_body(event)
                    self._answer()
                    return
                else:
                    if self._phase == _IDLE and raw:
                        self._phase = _HEAD
                        self._end_in(self._site.limits.header_time)
                    return
            asyncio.get_running_loop().call_soon(self._read)
        except h11.RemoteProtocolError as error:
            self._refuse(not_http(error, self._site.limits, self._http.trailing_data[0]))
        except RequestRefused as refused:
            self._refuse(refused.response)

    def _begin(self, event: h11.Request, raw: bytes) -> None:
        """A head is there, at the beginning of *raw*.

        :raises RequestRefused: for one that is not served.
        """
        self._body = 0
        self._head = head = read_head(event, raw, self._site.limits)
        if self._surplus:
            raise RequestRefused(refusal(503, "too many connections", _RETRY_AFTER))
        if head.has_body:
            self._phase = _BODY
            self._end_in(self._site.limits.body_time)

    def _count(self, size: int) -> None:
        """Some of a body is there. Nothing wants it; it is read so that the connection stays usable."""
        self._body += size
        if self._body > self._site.limits.body:
            raise RequestRefused(too_large(self._site.limits))

    def _end_body(self, event: h11.EndOfMessage) -> None:
        if event.headers:
            # h11 takes bare line feeds here, and a proxy in front may see another end of the request.
            raise RequestRefused(plain(400, "trailers after a body are not served\n"))

    # -- answering it

    def _answer(self) -> None:
        """A whole request is there."""
        site, head = self._site, self._head
        assert head is not None
        site.counters["requests"] += 1
        if head.method == "GET" and "upgrade" in head.merged and site.is_websocket(head.path):
            self._work(self._upgrade, head)
            return
        parts = site.file(head.path)
        if parts is None:
            self._respond(site.answer(head))
        elif head.method in ("GET", "HEAD"):
            self._work(self._send_file, head, parts)
        else:
            self._respond(plain(405, "method not allowed\n", ("allow", "GET, HEAD")))

    def _work(self, func: Callable[[*Ts], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        """Answer in a task, which ends with the connection."""
        self._phase = _BUSY
        self._end_in(self._site.limits.answer_time)
        if self._network is not None:
            self._network.pause_reading()
        self._task = self._site.tasks.spawn(self._guard, func, args)

    async def _guard(self, func: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await func(*args)
        except Exception:
            assert self._head is not None
            _log.exception("a request failed: %s %s", self._head.method, ascii(self._head.path))
            if self._network is not None and self._http.our_state is h11.SEND_RESPONSE:
                self._respond(plain(500, "internal error\n"), last=True)
            else:
                self.abort()  # in the middle of an answer that has promised more
        finally:
            self._task = None

    def _respond(self, response: Response, *, last: bool = False) -> None:
        """Send a whole answer."""
        data = self._format(response, last=last)
        if response.body:
            data += self._http.send(h11.Data(data=response.body))
        self._finish(data)

    def _format(self, response: Response, *, last: bool = False) -> bytes:
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
            self._end_in(self._site.limits.answer_time)
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

    async def _send_file(self, head: Head, parts: tuple[str, ...]) -> None:
        folder = self._site.static
        assert folder is not None
        found = await folder.find(parts)
        if found is None:
            self._respond(self._site.nothing(head))
            return
        try:
            await self._send_found(head, found)
        finally:
            found.close()

    async def _send_found(self, head: Head, found: StaticFile) -> None:
        headers = [("cache-control", "no-cache"), ("etag", found.etag), ("x-content-type-options", "nosniff")]
        if etag_matches(head.merged.get("if-none-match"), found.etag):
            self._respond(Response(304, headers))
            return
        headers += [("content-type", found.content_type), ("content-length", str(found.size))]
        if head.method == "HEAD" or found.size == len(found.first):
            self._respond(Response(200, headers, b"" if head.method == "HEAD" else found.first))
            return
        await self._send_piece(self._format(Response(200, headers)))
        left, piece = found.size, found.first
        while piece:
            left -= len(piece)
            await self._send_piece(self._http.send(h11.Data(data=piece)))
            piece = await found.read(min(PIECE, left))
        self._finish(b"")  # raises for a file that has shrunk meanwhile

    async def _send_piece(self, data: bytes) -> None:
        """Write, and wait until there is room for more."""
        if self._network is None:
            return
        self._network.write(data)
        if self._writing_paused:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        self._end_in(self._site.limits.answer_time)

    # -- becoming a WebSocket

    async def _upgrade(self, head: Head) -> None:
        site, network = self._site, self._network
        try:
            answer = self._shake_hands(head)
            await site.acceptor.ensure_running()
            handshake = self._handshake(head)
            site.acceptor.admit(handshake)
        except RequestRefused as refused:
            self._refuse(refused.response)
            return
        except Refused as refused:
            self._refuse(refusal(refused.status, refused.reason, refused.retry_after))
            return
        except Unavailable as exc:
            _log.warning("cannot start: %s", exc, exc_info=True)
            self._refuse(refusal(503, "not available right now", _RETRY_AFTER))
            return
        if network is None or self._phase != _BUSY:
            return  # gone meanwhile, or it took too long
        early, _ = self._http.trailing_data
        if self._deadline is not None:
            self._deadline.cancel()
        self._network = None
        site.counters["websockets"] += 1
        pipe = RawPipe(network, site.pipes)
        site.closed(self)
        network.write(answer)
        network.resume_reading()  # in a later turn; before the driver may pause it
        transport = pipe.transport
        try:
            transport.drive(site.acceptor.connect(transport, handshake))
        except Exception:
            _log.exception("a connection failed as it began")
            pipe.close(INTERNAL_CLOSE, "internal error")
        if early:
            pipe.data_received(early)

    def _shake_hands(self, head: Head) -> bytes:
        """The answer that takes the handshake.

        :raises RequestRefused: for one that is not taken.
        """
        if self._site.draining:
            raise RequestRefused(refusal(503, "draining", 1))
        if head.has_body:
            raise RequestRefused(plain(400, "a WebSocket handshake has no body\n"))
        if head.version != "1.1":
            more = (("upgrade", "websocket"), ("connection", "Upgrade"))
            raise RequestRefused(plain(426, "a WebSocket handshake is HTTP/1.1\n", *more))
        answer = upgrade(head.target, head.headers)
        if isinstance(answer, Response):
            raise RequestRefused(answer)
        return answer

    def _handshake(self, head: Head) -> Handshake:
        peer = None if self._network is None else self._network.get_extra_info("peername")
        return Handshake(
            path=head.path,
            headers=tuple(head.headers),
            query=head.query,
            address=str(peer[0]) if isinstance(peer, tuple) and peer else "",
            # Without TLS of our own there may still be some at a proxy's.
            secure=None if self._site.ssl is None else True,
        )

    # -- the ways to an end

    def drain(self) -> None:
        """Close, at once or when the answer that is under way was given."""
        if self._phase == _IDLE:
            self._hang_up()

    def abort(self) -> None:
        """Drop the connection, without a word."""
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
        elif self._task is not None and self._http.our_state is h11.SEND_RESPONSE:
            self._task.cancel()
            self._refuse(refusal(503, "not available right now", _RETRY_AFTER))
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
