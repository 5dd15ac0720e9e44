"""Requests over plain HTTP under an ASGI server: a body in, and one answer out, at once, later, or without an end.

::

    body ──▶ Acceptor.answer ──┬─▶ Response                      sent
                               ├─▶ future of one ──▶ Response    sent; cancelled if the client goes away before
                               └─▶ Streaming ──▶ AsgiStream      until the stream ends, or the client does

Traps:

- *Nobody tells that the client has gone away* but ``receive()``, so somebody has to be inside it for as long as an
  answer is not there. An answer that is there at once, as that to most uplinks is, does without.
- *hypercorn* puts a body into a queue of ten pieces and stops to read the connection when it is full, also when the
  application has answered and gone. So what is left of a body that is too large is taken and forgotten, for a while.
  In HTTP/2 it takes the whole connection down when a body goes on after its answer: there the answer comes last.
- *Expect: 100-continue* is answered by the server when we first ``receive()``: a body that says itself that it is too
  large is not asked for.
- *uvicorn* discards what is sent to a client that has gone away; other servers and frameworks raise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeVar, final

from ..clock import Clock
from ..primitives.clocks import timeout
from ..primitives.tasks import Tasks
from ..transports import (
    Acceptor,
    Answer,
    Handshake,
    HttpRequest,
    Refused,
    Response,
    Streaming,
    most_of_body,
    plain,
    refusal,
)
from .asgi_stream import AsgiStream

__all__ = ["BODY_TIME", "AsgiHttp", "respond"]

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Seconds a body may take, as on our own server.
BODY_TIME: Final = 30.0

_ALLOW: Final = "GET, POST, DELETE, OPTIONS"

_log: Final = logging.getLogger("rtkit.hosting")


class _Gone(Exception):
    """The client has gone away before it was answered."""


@final
class AsgiHttp:
    """Exchanges over plain HTTP of one ASGI host.

    Nothing is bound to a loop for longer than an exchange takes.

    :param acceptor: who answers.
    :param close_timeout: seconds an ending stream may take, flushing included.
    :param writers: owner of the tasks that write to streams.
    :ivar requests: exchanges under way, streams among them.
    :ivar streams: responses that go on.
    """

    __slots__ = ("_acceptor", "_asking", "_clock", "_close_timeout", "_writers", "requests", "streams")

    def __init__(self, acceptor: Acceptor, *, clock: Clock, close_timeout: float, writers: Tasks) -> None:
        self._acceptor = acceptor
        self._clock = clock
        self._close_timeout = close_timeout
        self._writers = writers
        self._asking = Tasks(name="asgi http", clock=clock)
        self.requests = 0
        self.streams = 0

    async def serve(
        self, method: str, endpoint: str, handshake: Handshake, receive: Receive, send: Send
    ) -> None:
        """Serve one request to an endpoint of a transport.

        Cancellation: safe; whoever was to answer is told.

        :raises Exception: what the acceptor or a stream raised, a bug above us.
        """
        if method == "HEAD":
            # What is behind these endpoints is nothing that one could ask about without doing it.
            await respond(send, plain(405, "method not allowed\n", ("allow", _ALLOW), head=True))
            return
        self.requests += 1
        try:
            body = await self._read(handshake, receive, most_of_body(self._acceptor, endpoint))
            await self._exchange(HttpRequest(method, endpoint, handshake, body), receive, send)
        except Refused as refused:
            self._acceptor.turned_away(str(refused.status))
            first = _is_http_1(handshake)
            if refused.status == 413 and not first:
                await self._forget_rest(receive)
            await _refuse(handshake, send, refused)
            if refused.status == 413 and first:
                await self._forget_rest(receive)
        except _Gone:
            _log.debug("the client has gone away before it was answered")
        finally:
            self.requests -= 1

    # -- the body

    async def _read(self, handshake: Handshake, receive: Receive, most: int) -> bytes:
        """The body.

        :raises Refused: 413 when it is too large, 408 when it does not come.
        :raises _Gone: when the client has gone away.
        """
        length = handshake.header("content-length") or ""
        # A length that is none, or not what comes, is the server's business; we count.
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        body = bytearray()
        try:
            async with timeout(self._clock, BODY_TIME):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as exc:
            raise Refused(408, f"the body was not there after {BODY_TIME:.0f} s") from exc

    async def _forget_rest(self, receive: Receive) -> None:
        """Take what is left of a body, so that the client gets to read our answer; bounded in time."""
        try:
            async with timeout(self._clock, self._close_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            pass

    # -- the answer

    async def _exchange(self, request: HttpRequest, receive: Receive, send: Send) -> None:
        asking = self._asking.spawn(self._ask, request)
        try:
            await asyncio.sleep(0)
            answer = await self._while_there(asking, receive)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, asyncio.Future):
                answer = await self._while_there(answer, receive)
        finally:
            _give_up(asking)
        if answer is None:
            answer = refusal(503, "not now", retry_after=1)
        if isinstance(answer, Response):
            await respond(send, answer)
        else:
            await self._stream(answer, receive, send)

    async def _ask(self, request: HttpRequest) -> Answer | Exception:
        try:
            return await self._acceptor.answer(request)
        except Exception as exc:
            return exc  # for the server's own task to raise, and nobody else to log

    async def _while_there(self, future: asyncio.Future[T], receive: Receive) -> T | None:
        """Wait for a future for as long as the client is there; None when somebody has cancelled it.

        :raises _Gone: when the client has gone away before; the future was cancelled.
        """
        if not future.done():
            guard = timeout(self._clock, None)
            watching = False
            gone = False

            def done(_: object) -> None:
                if watching:
                    guard.reschedule(self._clock.monotonic())

            future.add_done_callback(done)
            try:
                async with guard:
                    watching = True
                    try:
                        while (await receive())["type"] != "http.disconnect":
                            pass
                    finally:
                        watching = False
            except TimeoutError:
                if not guard.expired():
                    raise
            finally:
                future.remove_done_callback(done)
                if gone := not future.done():
                    future.cancel()
            if gone:
                raise _Gone
        return None if future.cancelled() else future.result()

    async def _stream(self, answer: Streaming, receive: Receive, send: Send) -> None:
        if not await _begin(send, answer.status, answer.headers):
            return
        stream = AsgiStream(send, close_timeout=self._close_timeout, clock=self._clock, tasks=self._writers)
        self.streams += 1
        try:
            await stream.pump(receive, answer.start)
        finally:
            self.streams -= 1

    def __repr__(self) -> str:
        return f"<AsgiHttp, {self.requests} requests, {self.streams} streams>"


def _too_large(most: int) -> Refused:
    return Refused(413, f"a body has {most} bytes at the most")


def _is_http_1(handshake: Handshake) -> bool:
    return str(handshake.scope.get("http_version", "1.1")).startswith("1")


def _give_up(asking: asyncio.Task[Any]) -> None:
    """Nobody wants the answer any more, if there is one to come."""
    if asking.done():
        _forget(asking)
    else:
        asking.cancel()
        asking.add_done_callback(_forget)


def _forget(asking: asyncio.Task[Any]) -> None:
    if not asking.cancelled() and isinstance(answer := asking.result(), asyncio.Future):
        answer.cancel()


async def _refuse(handshake: Handshake, send: Send, refused: Refused) -> None:
    response = refusal(refused.status, refused.reason, refused.retry_after)
    if refused.status == 408 and _is_http_1(handshake):
        # Else the connection waits for the rest. (HTTP/2 has no such header: there it is one stream of many.)
        response = Response(response.status, (*response.headers, ("connection", "close")), response.body)
    await respond(send, response)


async def respond(send: Send, response: Response, *, prefix: str = "http.response") -> None:
    """Send a response that is at hand; a client that is gone is not our concern."""
    if await _begin(send, response.status, response.headers, prefix=prefix):
        try:
            await send({"type": f"{prefix}.body", "body": response.body})
        except (OSError, RuntimeError):
            _log.debug("gone before it was answered", exc_info=True)


async def _begin(
    send: Send, status: int, headers: Sequence[tuple[str, str]], *, prefix: str = "http.response"
) -> bool:
    """Send the head of a response; whether somebody was there."""
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    try:
        await send({"type": f"{prefix}.start", "status": status, "headers": encoded})
    except (OSError, RuntimeError):
        _log.debug("gone before it was answered", exc_info=True)
        return False
    return True
