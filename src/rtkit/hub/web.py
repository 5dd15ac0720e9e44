"""Sessions over plain HTTP: streams and polls one way, requests the other, on whatever node they arrive (T1 to T4).

A session lives on the node that answered the request that opened it, its *owner*; the first part of its id names
that node. Every other request may come in anywhere (T2). What a request asks of a session is a plain function of the
owner's, :meth:`Web.take`, which another node calls through the :class:`~rtkit.hub.relay.Relay`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from .. import codes
from ..errors import NotRunning, Reject, Unavailable
from ..transports import (
    Answer,
    Handshake,
    HttpRequest,
    Refused,
    Response,
    Stream,
    Streaming,
    StreamPipe,
    most_of_body,
    plain,
    refusal,
)
from ..transports.longpoll import PollTransport
from ..transports.stream import EVENT_STREAM, HTTP_STREAM, StreamFormat, StreamTransport
from ..transports.uplink import Taken
from .connection import Connection
from .http_session import WHO, HttpSession
from .oneway import come_back, open_events
from .origin import cors_headers, origin_allowed
from .relay import Answered, Ask, Obeyed

if TYPE_CHECKING:
    from .engine import Engine
    from .hub import Hub

__all__ = ["Web", "answer"]

logger = logging.getLogger("rtkit.hub")

T = TypeVar("T")
R = TypeVar("R")

#: Units in one request at the most; counted before they are told apart.
MAX_UNITS: Final = 64
_RETRY_AFTER: Final = 5
#: The unit that clients end with; a page that goes does not ask again if it is refused.
_BYE: Final = b'{"bye":{}}'

_METHODS: Final = {
    "sse": ("GET", "POST", "DELETE"),
    "http_stream": ("POST",),
    "poll": ("GET", "POST", "DELETE"),
    "send": ("POST", "DELETE"),
    "emulation": ("POST",),
    "events": ("GET",),
}


class _Emulation(msgspec.Struct):
    """What a client of the base sends instead of headers."""

    session: str
    node: str = ""
    data: msgspec.Raw = msgspec.Raw(b'""')


_emulation = msgspec.json.Decoder(_Emulation)
_text = msgspec.json.Decoder(str)


async def answer(hub: Hub[Any], request: HttpRequest) -> Answer:
    """Answer a request to one of the endpoints of HTTP transports; see :meth:`Acceptor.answer`."""
    cors = cors_headers(request.handshake, hub.origins, hub.proxies)
    methods = _METHODS.get(request.endpoint, ())
    if request.method == "OPTIONS":
        return _preflight(request.handshake, hub, methods, cors)
    if request.method not in methods:
        return plain(405, "method not allowed\n", *cors, ("allow", ", ".join((*methods, "OPTIONS"))))
    try:
        await hub.ensure_running()
        if request.endpoint != "events":  # which has its own words for "not now"
            if _opens(request):
                hub.admit(request.handshake)
                if (turned := hub.engine.admission.refuse(request.handshake)) is not None:
                    raise turned.refused(hub.random)
            elif not origin_allowed(request.handshake, hub.origins, hub.proxies):
                raise Refused(403, "this origin may not connect; the server lists others in Hub(origins=…)")
            # Else it is of a session, which may be used to its end while the hub drains: a poll fetches the goodbye.
        found = await hub.engine.web.answer(request)
    except Refused as refused:
        found = refusal(refused.status, refused.reason, refused.retry_after)
    except (Unavailable, NotRunning) as error:
        logger.warning("a request could not be answered: %s", error)
        found = refusal(503, "not available right now", _RETRY_AFTER)
        if request.endpoint == "events":  # a status would end an EventSource for good (F2)
            found = come_back(hub.random, _RETRY_AFTER)
    if isinstance(found, Response) and found.status >= 400:
        hub.turned_away(str(found.status))
    return _with(found, cors)


def _opens(request: HttpRequest) -> bool:
    """Whether a request is for a new session."""
    if request.endpoint in ("sse", "http_stream"):
        return request.method != "DELETE"
    return request.endpoint == "poll" and request.method == "POST"


def _preflight(
    handshake: Handshake, hub: Hub[Any], methods: tuple[str, ...], cors: tuple[tuple[str, str], ...]
) -> Response:
    if not origin_allowed(handshake, hub.origins, hub.proxies):
        reason = "this origin may not connect; the server lists others in Hub(origins=…)\n"
        return plain(403, reason, *cors)
    allow = ", ".join((*methods, "OPTIONS"))
    headers = (
        *cors,
        ("allow", allow),
        ("access-control-allow-methods", ", ".join(methods)),
        ("access-control-allow-headers", "authorization, content-type, last-event-id, rt-seq, rt-session"),
        ("access-control-max-age", "7200"),
        ("cache-control", "no-store"),
    )
    return Response(204, headers)


def _with(found: Answer, cors: tuple[tuple[str, str], ...]) -> Answer:
    """The same answer, with these headers."""
    if isinstance(found, Response):
        return Response(found.status, (*found.headers, *cors), found.body)
    if isinstance(found, Streaming):
        return Streaming((*found.headers, *cors), found.start, found.status)
    return _mapped(
        found, lambda response: Response(response.status, (*response.headers, *cors), response.body)
    )


def _mapped(future: asyncio.Future[T], change: Callable[[T], R]) -> asyncio.Future[R]:
    """A future of what *change* makes of another's result; cancelling either cancels both."""
    later: asyncio.Future[R] = future.get_loop().create_future()

    def pass_on(_: object) -> None:
        if later.done():
            return
        if future.cancelled():
            later.cancel()
        elif (error := future.exception()) is not None:
            later.set_exception(error)
        else:
            later.set_result(change(future.result()))

    def pass_back(_: object) -> None:
        if later.cancelled():
            future.cancel()

    future.add_done_callback(pass_on)
    later.add_done_callback(pass_back)
    return later


class Web:
    """The sessions over HTTP of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sessions: dict[str, HttpSession] = {}
        # Those whose transport is gone, for as long as the session they belonged to is parked: a page that goes away
        # drops its stream and says goodbye, and either may come first.
        self._parted: WeakValueDictionary[str, HttpSession] = WeakValueDictionary()
        for do in ("send", "emulate", "poll", "bye"):
            engine.relay.obey[do] = self.take

    # -- requests, as they come in on any node ---------------------------------------------------

    async def answer(self, request: HttpRequest) -> Answer:
        """Answer a request whose origin and method are fine.

        :raises Unavailable: when its owner cannot be asked.
        """
        endpoint, method = request.endpoint, request.method
        if method == "DELETE":
            found = await self._carry("bye", request)
            gone = isinstance(found, Response) and found.status == 410
            return Response(204, (("cache-control", "no-store"),)) if gone else found
        if endpoint == "emulation":
            return await self._emulate(request)
        if endpoint == "send":
            return await self._send(request)
        if endpoint == "poll" and method == "GET":
            return await self._poll(request)
        if endpoint == "events":
            return await open_events(self._engine, request)
        frame = request.body
        if method == "GET":
            frame = request.handshake.params().get("cf_connect", "").encode()
        if refused := self._check_body(frame, endpoint):
            return refused
        if not frame.strip():
            return plain(400, "the body is the connect command\n")
        await self._engine.lease.hold()  # others find sessions by it
        if endpoint == "poll":
            return self._open_poll(frame, request.handshake)
        return self._open_stream(EVENT_STREAM if endpoint == "sse" else HTTP_STREAM, frame, request.handshake)

    def _check_body(self, frame: bytes, endpoint: str) -> Response | None:
        most = most_of_body(self._engine.hub, endpoint)
        if len(frame) > most:
            return plain(413, f"a body has at most {most} bytes\n")
        if frame.count(b"\n") > MAX_UNITS:
            return plain(413, f"a body has at most {MAX_UNITS} units\n")
        return None

    def _open_stream(self, format: StreamFormat, frame: bytes, handshake: Handshake) -> Streaming:
        def start(pipe: StreamPipe) -> Stream:
            transport = StreamTransport(pipe, format, max_frame=self._engine.limits.max_frame)
            if not self._engine.accepting:  # since the head was sent
                transport.close(codes.DRAINING, "draining")
                return transport
            self._open(transport, handshake)
            transport.message(frame)
            return transport

        return Streaming(format.headers, start)

    def _open_poll(self, frame: bytes, handshake: Handshake) -> Answer:
        limits = self._engine.limits
        transport = PollTransport(
            clock=self._engine.clock,
            deadlines=self._engine.deadlines,
            wait=limits.poll_wait,
            gone=limits.poll_gone,
            max_frame=limits.max_frame,
        )
        self._open(transport, handshake)
        transport.message(frame)
        return transport.poll(0)

    def _open(self, transport: StreamTransport | PollTransport, handshake: Handshake) -> None:
        connection = Connection(self._engine, transport, handshake)
        connection.http = http = HttpSession(self._engine.node_id, connection, transport, _proof(handshake))
        self.sessions[http.id] = http
        self._engine.adopt(connection)
        transport.drive(connection)

    def forget(self, http: HttpSession) -> None:
        """Its transport is gone."""
        self.sessions.pop(http.id, None)
        http.end()
        session = http.connection.session
        if session is not None and session.connection is None and not session.ended:
            session.parted = http
            self._parted[http.id] = http

    async def _send(self, request: HttpRequest) -> Answer:
        seq = request.handshake.header("rt-seq") or ""
        if not (seq.isascii() and seq.isdigit() and len(seq) < 16 and int(seq)):
            return plain(400, "RT-Seq is the number of this request, from 1\n")
        if refused := self._check_body(request.body, "send"):
            return refused
        return await self._carry("send", request, number=int(seq), body=request.body)

    async def _poll(self, request: HttpRequest) -> Answer:
        ack = request.handshake.params().get("ack", "")
        if not (ack.isascii() and ack.isdigit() and len(ack) < 16):
            return plain(400, "ack is the number of the last batch that came\n")
        return await self._carry("poll", request, number=int(ack))

    async def _emulate(self, request: HttpRequest) -> Answer:
        try:
            body = _emulation.decode(request.body)
            data = bytes(body.data)
            if data.startswith(b'"'):
                data = _text.decode(data).encode()
        except (msgspec.DecodeError, UnicodeEncodeError):
            return plain(400, 'the body is {"session": …, "node": …, "data": …}\n')
        if refused := self._check_body(data, "emulation"):
            return refused
        found = await self._carry("emulate", request, session=body.session, body=data)
        gone = isinstance(found, Response) and found.status == 410
        return plain(404, "no such session\n") if gone else found

    # -- to the owner, wherever it is ------------------------------------------------------------

    async def _carry(
        self, do: str, request: HttpRequest, *, session: str = "", number: int = 0, body: bytes = b""
    ) -> Answer:
        """Have the owner of a session take a request, and answer with what it says."""
        session = session or request.handshake.header("rt-session") or ""
        node, dot, secret = session.partition(".")
        if not (dot and secret and node.isalnum() and len(session) <= 128 and session.isascii()):
            return plain(400, "RT-Session is the session of the reply to connect\n")
        ask = Ask(do=do, session=session, number=number, body=body, proof=_proof(request.handshake))
        found = await self._pass(node, ask)
        if isinstance(found, Answered) and found.status == WHO:
            try:
                identity = await self._engine.authority.authenticate(request.handshake, "", None)
            except Reject as error:
                if error.retry_after is not None:
                    return refusal(503, "try again later", _RETRY_AFTER)
                return plain(403, "this session is another's\n")
            ask.user = identity.user
            found = await self._pass(node, ask)
        return _response(found) if isinstance(found, Answered) else _mapped(found, _response)

    async def _pass(self, node: str, ask: Ask) -> Obeyed:
        if node == self._engine.node_id:
            return self.take(ask)
        if ask.do == "poll":
            # It may take as long as a poll does, and is given up when the client goes away.
            return self._engine.task(self._pass_on, node, ask)
        return await self._pass_on(node, ask)

    async def _pass_on(self, node: str, ask: Ask) -> Answered:
        limits = self._engine.limits
        within = limits.poll_wait + limits.poll_gone  # a poll is answered by then, if its owner is alive
        try:
            found = await self._engine.relay.ask(node, ask, within=within)
        except Unavailable as error:
            if ask.do != "poll":
                raise
            # It runs beside the request, which `answer` is done with: there nobody makes an answer of an exception.
            logger.warning("a poll could not be passed on: %s", error)
            return Answered(status=503, retry_after=1, body=b"not available right now\n")
        if found is not None:
            return found
        if ask.do in ("send", "emulate") and await self._engine.lease.holds(node) is not False:
            return Answered(status=503, retry_after=1, body=b"the session's node does not answer\n")
        return Answered(status=410, body=b"the session's node is gone\n")

    # -- at the owner ----------------------------------------------------------------------------

    def take(self, request: Ask) -> Obeyed:
        """Do with a session what a request asks; plain, on the owner."""
        http = self.sessions.get(request.session)
        last = request.do == "bye" or (request.do == "send" and request.body.endswith(_BYE))
        if http is None and last:
            http = self._parted.get(request.session)
        if http is None:
            return Answered(status=410, body=b"this session has ended\n")
        if status := http.is_shown_by(request):
            return Answered(status=status, body=b"this session is another's\n")
        if request.do == "poll":
            return self._take_poll(http, request.number)
        if request.do == "bye" or (last and http.transport.closed):
            self._bye(http)
            return Answered(status=204)
        if http.transport.closed:
            return Answered(status=410, body=b"this session has ended\n")
        if request.do == "emulate":
            repeated = request.id and http.is_repeated(request.id)
            return Answered(status=204) if repeated else http.emulate(request.body)
        if http.transport.paused and not last:
            return Answered(status=429, retry_after=1, body=b"too many commands wait\n")
        if http.uplink.take(request.number, request.body) is Taken.REFUSED:
            return Answered(status=429, retry_after=1, body=b"requests before this one are missing\n")
        return Answered(status=204)

    def _bye(self, http: HttpSession) -> None:
        session = http.connection.session
        if session is not None and session.parted is http and session.connection is None:
            self._engine.parking.end(session, "bye")
        else:
            http.connection.close(codes.WS_NORMAL, "bye")

    def _take_poll(self, http: HttpSession, ack: int) -> Obeyed:
        transport = http.transport
        if not isinstance(transport, PollTransport):
            return Answered(status=400, body=b"this session is no long-poll\n")
        found = transport.poll(ack)
        return _answered(found) if isinstance(found, Response) else _mapped(found, _answered)


def _proof(handshake: Handshake) -> bytes:
    """What a request shows of its user besides the session, as a digest; empty if nothing."""
    shown = [value for name, value in handshake.headers if name in ("cookie", "authorization")]
    return hashlib.sha256("\0".join(shown).encode()).digest() if shown else b""


def _answered(response: Response) -> Answered:
    return Answered(status=response.status, body=response.body)


def _response(answered: Answered) -> Response:
    """For a client."""
    more: tuple[tuple[str, str], ...] = ()
    if answered.retry_after:
        more = (("retry-after", str(answered.retry_after)),)
    if answered.status == 204:
        return Response(204, (("cache-control", "no-store"),))
    if answered.status == 200:
        length = ("content-length", str(len(answered.body)))
        return Response(
            200,
            (("content-type", "application/json"), ("cache-control", "no-store, no-transform"), length),
            answered.body,
        )
    return plain(answered.status, answered.body.decode("utf-8", "replace"), *more)
