"""What the pipes over HTTP have in common: frames come down by one way, units go up by another (T1, T3).

::

    send() ──► units wait ──► POST send, numbered; one at a time, all that waits goes with the next ──► hub
    recv() ◄── frames ◄────── a stream, or one poll after another ◄──────────────────────────────────── hub

A request that goes up and is not answered, or with "later", is sent again with its number, so that the hub carries
it out once; for a while, then the pipe counts as broken. The way down is a task of its own, so that the end of the
pipe is noticed while nobody receives; it reads no further while a frame waits to be fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, ClassVar, Final

from .. import codes
from ..clock import Clock
from ..errors import BadUnit
from ..primitives.backoff import Backoff
from ..primitives.clocks import sleep, timeout
from ..wire import decode_reply, split
from .bell import Bell
from .http import Answer, Http, HttpFailed
from .refusals import retry_window
from .transport import DialFailed, WireClosed

__all__ = ["ANSWER", "LOST", "HttpWire", "end_of"]

logger: Final = logging.getLogger("rtkit.client")

LOST: Final = 1006
#: Seconds an answer may take that the server has nothing to think about for.
ANSWER: Final = 10.0
#: Seconds after its first sending in which a request is sent again.
_PATIENCE: Final = 30.0
#: Bytes a second that an answer may take longer for what is sent before it.
_SLOWEST: Final = 16 * 1024
#: What one request carries at the most. The server takes 64 units, and a mebibyte unless it was told otherwise; but
#: what is sent again on a slow line should not be large.
_MAX_BODY: Final = 256 * 1024
_MAX_UNITS: Final = 64
#: Bytes that may wait to go up, besides one frame.
_MAX_WAITING: Final = 256 * 1024

_VERDICTS: Final = {
    401: codes.BAD_TOKEN,
    403: codes.NOT_PERMITTED_CLOSE,
    413: codes.WS_TOO_BIG,
}
#: Later, the same again: nothing is lost by it, since requests are numbered.
LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def end_of(answer: Answer, what: str) -> WireClosed | None:
    """The end of a session that an answer amounts to; None when the same request again may fare better."""
    if answer.status in LATER:
        return None
    if answer.status in (404, 410):
        return WireClosed(LOST, "the server does not know this session any more")
    return WireClosed(_VERDICTS.get(answer.status, LOST), f"{what} was answered with HTTP {answer.status}")


class HttpWire:
    """A :class:`~rtkit.client.transport.Wire` of requests; what comes down is up to those derived from it.

    :param http: is closed with the wire.
    """

    transport: ClassVar[str] = ""

    def __init__(self, http: Http, *, clock: Clock, random: Random, close_timeout: float) -> None:
        self._http = http
        self._clock = clock
        self._random = random
        self._close_timeout = close_timeout
        self._session = ""
        self._closed: WireClosed | None = None
        self._bell = Bell()
        self._frames: deque[bytes] = deque()
        self._up: deque[bytes] = deque()
        self._up_size = 0
        self._max_body = _MAX_BODY
        self._seq = 0
        self._poster: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    # -- the wire ------------------------------------------------------------------------------------

    async def send(self, frame: bytes) -> None:
        """See :meth:`Wire.send`."""
        while self._closed is None and self._up_size > _MAX_WAITING:
            await self._bell.wait()
        self._check()
        for unit in split(frame):
            self._up.append(unit)
            self._up_size += len(unit)
        if self._poster is None and self._session:
            self._poster = self._spawn(self._post_all, "send")

    async def recv(self) -> bytes:
        """See :meth:`Wire.recv`."""
        while not self._frames:
            self._check()
            await self._bell.wait()
        frame = self._frames.popleft()
        if not self._frames:
            self._bell.ring()
        return frame

    async def close(self, code: int, reason: str) -> None:
        """See :meth:`Wire.close`. 1000 ends the session; after any other code it can be resumed."""
        try:
            if code == codes.WS_NORMAL and self._closed is None and self._session:
                async with timeout(self._clock, self._close_timeout):
                    while self._poster is not None:
                        await self._bell.wait()
                    if self._closed is None:
                        await self._http.request("DELETE", "send", headers={"RT-Session": self._session})
        except (TimeoutError, HttpFailed, DialFailed):
            pass  # the server will notice by itself
        finally:
            self._end(WireClosed(code, reason))
            await self._release()

    def _check(self) -> None:
        if self._closed is not None:
            raise WireClosed(self._closed.code, self._closed.reason)

    async def _release(self) -> None:
        tasks = {task for task in (self._reader, self._poster) if task is not None}
        try:
            if tasks:
                await asyncio.wait(tasks)
            await self._let_go()
        finally:
            await self._http.aclose()

    async def _let_go(self) -> None:
        """What else there is to be closed, once nothing reads any more."""

    # -- for those derived ---------------------------------------------------------------------------

    def _spawn(self, func: Callable[[], Coroutine[Any, Any, None]], what: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(
            self._guarded(func), name=f"rtkit client: {self.transport} {what}"
        )

    async def _guarded(self, func: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await func()
        except WireClosed as closed:
            self._end(closed)
        except (HttpFailed, DialFailed) as error:
            self._end(WireClosed(LOST, str(error)))
        except BadUnit as error:
            self._end(WireClosed(codes.WS_TOO_BIG, error.message))
        except Exception as error:
            logger.exception("a pipe over HTTP failed")
            self._end(WireClosed(LOST, f"the pipe failed: {error!r}"))

    def _arrived(self, frame: bytes) -> None:
        """A frame came down.

        :raises WireClosed: when it is the last one.
        """
        self._frames.append(frame)
        self._bell.ring()
        if not self._session and b'"connect"' in frame:
            self._look_for_session(frame)
        if b'"disconnect"' in frame:
            for unit in split(frame):
                push = _push(unit)
                if push is not None:
                    raise WireClosed(*push)

    async def _fetched(self) -> None:
        """Wait until what came down was fetched."""
        while self._frames and self._closed is None:
            await self._bell.wait()
        self._check()

    def _backoff(self) -> Backoff:
        return Backoff(minimum=0.1, maximum=4.0, random=self._random)

    def _end(self, closed: WireClosed) -> None:
        """It is over. The first reason counts."""
        if self._closed is None:
            self._closed = closed
            current = asyncio.current_task()
            for task in (self._reader, self._poster):
                if task is not None and task is not current:
                    task.cancel()  # once: a second time would disturb what it tidies up
            self._bell.ring()

    # -- inside --------------------------------------------------------------------------------------

    def _look_for_session(self, frame: bytes) -> None:
        for unit in split(frame):
            try:
                result = decode_reply(unit).connect
            except BadUnit:
                continue  # whoever receives it will say so
            if result is not None:
                if not result.session:
                    raise WireClosed(LOST, "the server named no session to send to")
                self._session = result.session
                if self._up:
                    self._poster = self._spawn(self._post_all, "send")

    async def _post_all(self) -> None:
        try:
            while self._up and self._closed is None:
                units = self._next_units()
                self._bell.ring()
                body = b"\n".join(units)
                if await self._post(self._seq + 1, body):
                    self._seq += 1
                    continue
                if len(units) == 1:
                    raise WireClosed(codes.WS_TOO_BIG, f"{len(body)} bytes are more than the server takes")
                # The server, or something on the way, takes less than most do. Nothing of it was taken.
                self._max_body = len(body) // 2
                self._up.extendleft(reversed(units))
                self._up_size += sum(map(len, units))
        finally:
            self._poster = None
            self._bell.ring()

    def _next_units(self) -> list[bytes]:
        units: list[bytes] = []
        size = 0
        while self._up and len(units) < _MAX_UNITS:
            more = len(self._up[0]) + 1
            if units and size + more > self._max_body:
                break
            units.append(self._up.popleft())
            self._up_size -= more - 1
            size += more
        return units

    async def _post(self, seq: int, body: bytes) -> bool:
        """Send until it was taken; False when it is too large to be."""
        clock, backoff = self._clock, self._backoff()
        headers = {
            "RT-Session": self._session,
            "RT-Seq": str(seq),
            "Content-Type": "application/json",
        }
        until = clock.monotonic() + _PATIENCE
        while True:
            window, problem = None, ""
            try:
                async with timeout(clock, ANSWER + len(body) / _SLOWEST):
                    answer = await self._http.request("POST", "send", headers=headers, body=body)
            except HttpFailed as error:
                problem = str(error)
            except TimeoutError:
                problem = "no answer"
            else:
                if answer.status == 204:
                    return True
                if answer.status == 413:
                    return False
                if (closed := end_of(answer, "what was sent")) is not None:
                    raise closed
                window = retry_window(answer.headers.get("retry-after"), clock)
                problem = f"HTTP {answer.status}"
                if answer.status == 429:  # it is there, and has a lot to do: that may last
                    until = clock.monotonic() + _PATIENCE
            wait = backoff.next(window)
            if clock.monotonic() + wait > until:
                raise WireClosed(LOST, f"sending failed for {_PATIENCE:g} s: {problem}")
            await sleep(clock, wait)

    def __repr__(self) -> str:
        state = "open" if self._closed is None else f"closed with {self._closed.code}"
        return f"<{type(self).__name__} {state}, {len(self._up)} units of {self._up_size} bytes to go up>"


def _push(unit: bytes) -> tuple[int, str] | None:
    """Code and reason, if the unit says that the server closes."""
    try:
        push = decode_reply(unit).push
    except BadUnit:
        return None
    if push is None or push.disconnect is None:
        return None
    return push.disconnect.code, push.disconnect.reason
