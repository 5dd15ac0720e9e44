"""One connection while it speaks HTTP/1.1: until it closes, or becomes a WebSocket or an open response.

h11 parses and formats; this file says when. One request is worked on at a time, and one per loop turn, so that a
client that sends ten thousand in one go costs the others ten thousand turns apart.

::

                                     ┌──▶ waiting ──┐
    idle ──▶ head ──▶ body ──▶ busy ─┴──────────────┴─▶ flush ──▶ idle
      │        │        │        │           │            │
      └────────┴────────┴────────┴───────────┴────────────┴──▶ closing

                            busy ──▶ a RawPipe or an HttpStream takes over

- *idle*: nothing of a request is there. *head*, *body*: some of it is. Each has its own deadline, for the whole
  of it and not for a pause in it: a byte a second is no way to stay.
- *busy*: a whole request is there, and is being answered by a task: a file is read, or the hub takes it. The socket
  is not read meanwhile; what came before is in h11's buffer, one read of the socket at the most.
  A client that has closed its half meanwhile still gets the answer: that it has is read only afterwards.
- *waiting*: the hub will answer when there is something to say (a long poll). Nothing runs: no task, no deadline;
  how long it lasts is the hub's affair. The socket is read, so that the client's end is noticed, which cancels the
  wait; a client that closes its half has gone.
- *flush*: the answer has not left yet. The next request waits for that, so that nobody can have answers pile up.
- *closing*: the last answer was given. If more may come from the client, it is read and forgotten until the client
  closes, since a socket that is closed with bytes unread is reset, and the client might never see the answer.

A body is kept where somebody takes it, within that one's bound, and else read and thrown away, so that the connection
stays usable. What is wrong with a head, its declared length and the API's key included, is said before the body.

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

from ..hosting.endpoints import Response, plain, refusal
from .bodies import Body, expect
from .exchanges import become_websocket
from .files import send_file
from .heads import Head, RequestRefused, not_http, read_head, screen

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .site import Site

__all__ = ["HttpConnection"]

_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_BUSY: Final = 3
_WAITING: Final = 4
_FLUSH: Final = 5
_CLOSING: Final = 6
_PHASES: Final = ("idle", "head", "body", "busy", "waiting", "flush", "closing")

#: Pieces of a body that are looked at in one loop turn: a chunk may be a single byte.
_PIECES: Final = 64
#: Bytes that may come behind a request that waits for its answer, before the socket is not read any more.
_BEHIND: Final = 64 * 1024

Ts = TypeVarTuple("Ts")

_RETRY_AFTER: Final = 5

_log: Final = logging.getLogger("rtkit.server")


@final
class HttpConnection(asyncio.Protocol):
    """The protocol object of a connection, made when it is accepted.

    :ivar site: what the connections of the server share.
    :ivar http: the parser, and formatter.
    :ivar head: of the request that is being read or answered.
    """

    __slots__ = (
        "_bodiless",
        "_body",
        "_deadline",
        "_drained",
        "_network",
        "_phase",
        "_surplus",
        "_task",
        "_waiting",
        "_writing_paused",
        "head",
        "http",
        "site",
    )

    def __init__(self, site: Site) -> None:
        self.site = site
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=site.limits.head)
        self.head: Head | None = None
        self._network: asyncio.Transport | None = None
        self._phase = _IDLE
        self._deadline: Deadline | None = None
        self._surplus = False  # one too many: it gets a refusal
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[Response] | None = None
        self._body: Body | None = None  # of the request that is being read
        # It is a HEAD: whatever it is answered, with a refusal for instance, has a head alone.
        self._bodiless = False

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._network = cast(asyncio.Transport, transport)
        self._surplus = self.site.opened(self)
        if self.site.draining:
            self._network.abort()
            return
        # From the beginning, or one might connect and say nothing for as long as others may between requests.
        self._end_in(self.site.limits.header_time)

    def data_received(self, data: bytes) -> None:
        if self._phase == _CLOSING:
            return
        self.http.receive_data(data)
        if self._phase == _IDLE:
            self._phase = _HEAD
            self._end_in(self.site.limits.header_time)
        elif self._phase == _WAITING:
            if self._network is not None and len(self.http.trailing_data[0]) > _BEHIND:
                self._network.pause_reading()
            return
        self._read()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
        elif self._phase == _FLUSH:
            # Not now: that may close the connection, and asyncio would close it a second time after this.
            asyncio.get_running_loop().call_soon(self._flushed)

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _CLOSING
        self._network = None
        if self._deadline is not None:
            self._deadline.cancel()
        if self._task is not None:
            self._task.cancel()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        self._body = None
        self.site.closed(self)

    # -- reading a request

    def _read(self) -> None:
        """Parse until a request is whole, or bytes are missing."""
        if self._phase >= _BUSY:
            return
        try:
            for _ in range(_PIECES):
                raw = b"" if self._phase == _BODY else self.http.trailing_data[0]
                if raw:
                    screen(raw, self.site.limits)
                event = self.http.next_event()
                if isinstance(event, h11.Request):
                    self._bodiless = event.method == b"HEAD"
                    self._begin(event, raw)
                    if self.http.they_are_waiting_for_100_continue and not self._ask_for_body():
                        self._answer()
                        return
                elif isinstance(event, h11.Data):
                    assert self._body is not None
                    self._body.take(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    self._end_body(event)
                    self._answer()
                    return
                else:
                    if self._phase == _IDLE and raw:
                        self._phase = _HEAD
                        self._end_in(self.site.limits.header_time)
                    return
            asyncio.get_running_loop().call_soon(self._read)
        except h11.RemoteProtocolError as error:
            self.refuse(not_http(error, self.site.limits, self.http.trailing_data[0]))
        except RequestRefused as refused:
            self.refuse(refused.response)

    def _begin(self, event: h11.Request, raw: bytes) -> None:
        """A head is there, at the beginning of *raw*.

        :raises RequestRefused: for one that is not served.
        """
        self.head = head = read_head(event, raw, self.site.limits)
        if self._surplus:
            raise RequestRefused(refusal(503, "too many connections", _RETRY_AFTER))
        self._body = expect(self.site, head)
        if head.has_body:
            self._phase = _BODY
            self._end_in(self.site.limits.body_time)

    def _ask_for_body(self) -> bool:
        """The client waits to be told to go on: whether it was. Nobody is who has no body, or one nobody takes."""
        if self._body is None or self._body.taker is None or self._network is None or self._phase != _BODY:
            return False
        self._network.write(
            self.http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        )
        return True

    def _end_body(self, event: h11.EndOfMessage) -> None:
        if event.headers:
            # h11 takes bare line feeds here, and a proxy in front may see another end of the request.
            raise RequestRefused(plain(400, "trailers after a body are not served\n"))

    # -- answering it

    def _answer(self) -> None:
        """A whole request is there."""
        site, head = self.site, self.head
        assert head is not None
        site.counters["requests"] += 1
        if head.method == "GET" and "upgrade" in head.merged and site.is_websocket(head.path):
            self._work(become_websocket, self, head)
            return
        body, self._body = self._body, None
        if body is not None and body.taker is not None:
            self._work(body.taker, self, head, body.whole())
            return
        parts = site.file(head.path)
        if parts is None:
            self.respond(site.answer(head))
        elif head.method in ("GET", "HEAD"):
            self._work(send_file, self, head, parts)
        else:
            self.respond(plain(405, "method not allowed\n", ("allow", "GET, HEAD")))

    def _work(self, func: Callable[[*Ts], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        """Answer in a task, which ends with the connection."""
        self._phase = _BUSY
        self._end_in(self.site.limits.answer_time)
        if self._network is not None:
            self._network.pause_reading()
        self._task = self.site.tasks.spawn(self._guard, func, args)

    async def _guard(self, func: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await func(*args)
        except Exception:
            self._failed()
        finally:
            self._task = None

    def _failed(self) -> None:
        """An answer could not be made; called where the exception is handled."""
        assert self.head is not None
        _log.exception("a request failed: %s %s", self.head.method, ascii(self.head.path))
        if self._network is not None and self.http.our_state is h11.SEND_RESPONSE:
            self.respond(plain(500, "internal error\n"), last=True)
        else:
            self.abort()  # in the middle of an answer that has promised more

    # -- what those who answer call

    @property
    def address(self) -> str:
        """The client's IP address, or empty."""
        peer = None if self._network is None else self._network.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    def respond(self, response: Response, *, last: bool = False) -> None:
        """Send a whole answer.

        :param last: close the connection then.
        """
        data = self.format(response, last=last)
        if response.body and not self._bodiless:
            data += self.http.send(h11.Data(data=response.body))
        self.finish(data)

    def wait_for(self, answer: asyncio.Future[Response]) -> None:
        """Send a whole answer when it is there. It is cancelled when the client has gone away before."""
        if self._network is None or self._phase != _BUSY:
            answer.cancel()
            return
        self._phase = _WAITING
        self._waiting = answer
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._network.resume_reading()
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Response]) -> None:
        if self._waiting is not answer:
            return  # the client has gone, or the wait was ended
        self._waiting = None
        self._phase = _BUSY
        try:
            self.respond(refusal(503, "ended", 1) if answer.cancelled() else answer.result())
        except Exception:
            self._failed()

    def release(self) -> tuple[asyncio.Transport, bytes] | None:
        """Let another protocol object have the connection, and what came behind the request.

        :return: None when the client has gone, or it took too long.
        """
        network = self._network
        if network is None or self._phase != _BUSY:
            return None
        self._network = None
        if self._deadline is not None:
            self._deadline.cancel()
        return network, self.http.trailing_data[0]

    def format(self, response: Response, *, last: bool = False) -> bytes:
        """The head of an answer, as bytes that are now to be sent."""
        headers = [*response.headers, ("date", email.utils.formatdate(self.site.clock.time(), usegmt=True))]
        if last or self.site.draining or self.http.they_are_waiting_for_100_continue:
            headers.append(("connection", "close"))
        reason = HTTPStatus(response.status).phrase.encode()
        return self.http.send(h11.Response(status_code=response.status, headers=headers, reason=reason))

    def finish(self, data: bytes) -> None:
        """Send the last of an answer, and go on to the next request, if there may be one."""
        if self._network is None:
            return
        self._network.write(data + self.http.send(h11.EndOfMessage()))
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            self._hang_up()
            return
        self.http.start_next_cycle()
        self._bodiless = False
        if self._writing_paused:
            self._phase = _FLUSH
            self._network.pause_reading()
            self._end_in(self.site.limits.answer_time)
        else:
            self._next()

    def _flushed(self) -> None:
        if self._phase == _FLUSH and not self._writing_paused:
            self._next()

    def _next(self) -> None:
        """What was answered has left: on to the next request."""
        if self._network is None:
            return
        if self.site.draining:
            self._hang_up()
            return
        self._phase = _IDLE
        self._end_in(self.site.limits.idle_time)
        self._network.resume_reading()
        # The next one may be here already; its turn is the next.
        asyncio.get_running_loop().call_soon(self._read)

    def refuse(self, response: Response) -> None:
        """Answer what cannot be served, and close."""
        self.site.turned_away(str(response.status), "refused")
        if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.respond(response, last=True)
        else:
            self._hang_up()

    async def send_piece(self, data: bytes) -> None:
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
        self._end_in(self.site.limits.answer_time)

    # -- the ways to an end

    def drain(self) -> None:
        """Close, at once or when the answer that is under way was given."""
        if self._phase == _IDLE:
            self._hang_up()

    @property
    def waiting(self) -> bool:
        """Whether it waits for an answer that comes when there is something to say."""
        return self._phase == _WAITING

    def dismiss(self) -> None:
        """End such a wait, with an answer that says to come again."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
            self._phase = _BUSY
            self.respond(refusal(503, "draining", 1), last=True)

    def abort(self) -> None:
        """Drop the connection, without a word."""
        if self._network is not None:
            self._network.abort()

    def _end_in(self, seconds: float) -> None:
        when = self.site.clock.monotonic() + seconds
        if self._deadline is None:
            self._deadline = self.site.deadlines.at(when, self._timed_out, patient=True)
        else:
            self._deadline.move(when)

    def _timed_out(self) -> None:
        self.site.counters["timeouts"] += 1
        if self._phase == _IDLE:
            if self.head is None:
                self.site.acceptor.turned_away("silent")
            self._hang_up()
        elif self._phase in (_HEAD, _BODY):
            self.refuse(plain(408, "the request took too long\n"))
        elif self._task is not None and self.http.our_state is h11.SEND_RESPONSE:
            self._task.cancel()
            self.refuse(refusal(503, "not available right now", _RETRY_AFTER))
        else:
            if self._phase != _CLOSING:
                self.site.acceptor.turned_away("unread")
            self.abort()

    def _hang_up(self) -> None:
        """The last answer was given: close when it has left, without cutting off what the client may still send."""
        network = self._network
        if network is None or self._phase == _CLOSING:
            return
        settled = self.http.their_state in (h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        settled = settled and not self.http.trailing_data[0]
        self._phase = _CLOSING
        self._end_in(self.site.limits.close_timeout)
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
