"""Long-polling: one request after another asks for what there is, and says what has come (T4).

A poll that breaks is asked again with the same acknowledgement: the server then sends the same batch again. It does
so for as long as the server waits for it; after that the session is lost. One that was cut later than at once may have
been cut by something on the way that likes short requests: when the hub says that it is ready, that is a sign of life,
and polling goes on for as long as there is one.

There are no pings: an answer without anything in it is handed on as one, so that whoever watches for silence hears
that the server lives.
"""

from __future__ import annotations

import math
import ssl as _ssl
from collections.abc import Mapping
from random import Random, SystemRandom
from typing import Final, final

import msgspec

from ..clock import Clock
from ..primitives.clocks import LoopClock, sleep, timeout
from .http import Answer, Http, HttpFailed, HttpMaker, http_maker
from .httpwire import LOST, HttpWire, end_of
from .options import without_secrets
from .refusals import refusal, retry_window
from .transport import DialFailed, WireClosed

__all__ = ["PollDialer", "PollWire", "ask_ready"]

#: Seconds the server lets a poll wait, and what an answer may take beyond that (F4).
_UNANSWERED: Final = 25.0 + 10.0
#: Seconds after an answer in which the server waits for the next poll.
_GONE: Final = 10.0
#: A poll that lived this many seconds and was cut may have lived too long for something on the way.
_LONG: Final = 2.0
#: Seconds in which the hub has to say that it is ready.
_READY: Final = 3.0
_PING: Final = b"{}"
_HEADERS: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class _Batch(msgspec.Struct):
    batch: int
    replies: list[msgspec.Raw] = []


_decode: Final = msgspec.json.Decoder(_Batch).decode


async def ask_ready(http: Http, url: str, *, clock: Clock, patience: float) -> Answer:
    """What the hub says about new connections: 204, or 503 with a time (T10).

    :raises DialFailed: when there is no answer within *patience* seconds: the network, or the server, is away.
    """
    try:
        async with timeout(clock, patience):
            return await http.request("GET", "ready")
    except (TimeoutError, HttpFailed) as error:
        why = str(error) or f"{without_secrets(url)} does not answer within {patience:g} s"
        raise DialFailed(why) from None


@final
class PollWire(HttpWire):
    """A :class:`~rtkit.client.transport.Wire` whose frames come down as batches."""

    transport = "poll"

    def __init__(
        self,
        http: Http,
        url: str,
        *,
        max_size: int,
        clock: Clock,
        random: Random,
        close_timeout: float,
    ) -> None:
        super().__init__(http, clock=clock, random=random, close_timeout=close_timeout)
        self._url = url
        self._max_size = max_size
        self._batch = 0
        self._opened = False
        self._failed: DialFailed | HttpFailed | None = None

    def begin(self, hello: bytes) -> None:
        """Open the session, and poll from then on."""

        async def read() -> None:
            try:
                await self._open(hello)
            except (DialFailed, HttpFailed) as error:
                self._failed = error
                code = error.code if isinstance(error, DialFailed) and error.terminal else LOST
                raise WireClosed(code, str(error)) from None
            if not self._session:
                raise WireClosed(LOST, "the server named no session to poll for")
            while True:
                await self._fetched()
                await self._poll()

        self._reader = self._spawn(read, "poll")

    async def opened(self) -> None:
        """Wait until the first batch has come.

        :raises DialFailed: when none comes, as :exc:`HttpFailed` says too.
        """
        while not self._opened and self._closed is None:
            await self._bell.wait()
        if self._failed is not None:
            raise self._failed

    async def _open(self, hello: bytes) -> None:
        answer = await self._http.request(
            "POST", "poll", headers=_HEADERS, body=hello, max_size=self._max_size
        )
        if answer.status != 200:
            raise refusal(
                self._url,
                "the long poll",
                answer.status,
                clock=self._clock,
                location=answer.headers.get("location"),
                retry_after=answer.headers.get("retry-after"),
            )
        try:
            batch = _decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise refusal(self._url, "the long poll", 200, clock=self._clock) from None
        self._opened = True
        self._bell.ring()
        self._take(batch)

    async def _poll(self) -> None:
        """Ask for the next batch until there is an answer."""
        clock, backoff = self._clock, self._backoff()
        headers = {"RT-Session": self._session, "Cache-Control": "no-store"}
        until = math.inf
        while True:
            window, cut = None, False
            asked = clock.monotonic()
            try:
                async with timeout(clock, _UNANSWERED):
                    answer = await self._http.request(
                        "GET",
                        "poll",
                        query=f"ack={self._batch}",
                        headers=headers,
                        max_size=self._max_size,
                    )
            except HttpFailed as error:
                problem, cut = str(error), True
            except TimeoutError:
                raise WireClosed(LOST, f"a poll was not answered within {_UNANSWERED:g} s") from None
            else:
                if answer.status == 200:
                    self._take(self._decode(answer))
                    return
                if (closed := end_of(answer, "a poll")) is not None:
                    raise closed
                window = retry_window(answer.headers.get("retry-after"), clock)
                problem = f"HTTP {answer.status}"
            now = clock.monotonic()
            if cut and now - asked > _LONG and await self._is_ready():
                self._arrived(_PING)
                until = math.inf
                backoff.reset()
            until = min(until, now + _GONE)
            wait = backoff.next(window)
            if clock.monotonic() + wait > until:
                raise WireClosed(LOST, f"polling failed for {_GONE:g} s: {problem}")
            await sleep(clock, wait)

    async def _is_ready(self) -> bool:
        try:
            answer = await ask_ready(self._http, self._url, clock=self._clock, patience=_READY)
        except DialFailed:
            return False
        return answer.status == 204

    def _decode(self, answer: Answer) -> _Batch:
        try:
            return _decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise WireClosed(LOST, "a poll was answered with something that is no batch") from None

    def _take(self, batch: _Batch) -> None:
        if not batch.replies:
            self._arrived(_PING)
            return
        if batch.batch != self._batch + 1:
            raise WireClosed(LOST, f"batch {batch.batch} came after batch {self._batch}")
        self._batch = batch.batch
        self._arrived(b"\n".join(bytes(reply) for reply in batch.replies))


@final
class PollDialer:
    """Opens sessions of long-polling; an :class:`~rtkit.client.transport.Opener`.

    The parameters are those of :class:`~rtkit.client.sse.SseDialer`. When nothing is answered within *patience*,
    the server is asked whether it is there: it may just take its time to authenticate.
    """

    def __init__(
        self,
        *,
        ssl: _ssl.SSLContext | None = None,
        proxy: str | bool | None = None,
        max_size: int = 32 * 1024 * 1024,
        close_timeout: float = 2.0,
        patience: float = _READY,
        clock: Clock | None = None,
        random: Random | None = None,
        http: HttpMaker | None = None,
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is positive bytes, not {max_size!r}")
        self._max_size = max_size
        self._close_timeout = close_timeout
        self._patience = patience
        self._clock: Clock = clock or LoopClock()
        self._random = random or SystemRandom()
        self._make_http = http or http_maker(ssl=ssl, proxy=proxy)

    async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> PollWire:
        """See :meth:`Opener.open`."""
        http = self._make_http(url, headers)
        wire = PollWire(
            http,
            url,
            max_size=self._max_size,
            clock=self._clock,
            random=self._random,
            close_timeout=self._close_timeout,
        )
        opened = False
        try:
            wire.begin(hello)
            try:
                async with timeout(self._clock, self._patience):
                    await wire.opened()
            except TimeoutError:
                await ask_ready(http, url, clock=self._clock, patience=self._patience)
            opened = True
        finally:
            if not opened:
                await wire.close(1001, "")
        return wire

    def __repr__(self) -> str:
        return f"PollDialer(max_size={self._max_size})"
