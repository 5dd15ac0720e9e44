"""An event stream as the way down, and requests as the way up (T1)."""

from __future__ import annotations

import ssl as _ssl
from collections.abc import Mapping
from random import Random, SystemRandom
from typing import Final, final

from ..clock import Clock
from ..primitives.clocks import LoopClock, timeout
from .eventstream import EventStream
from .http import Body, Http, HttpMaker, http_maker
from .httpwire import LOST, HttpWire
from .options import without_secrets
from .refusals import refusal
from .transport import DialFailed, WireClosed

__all__ = ["SseDialer", "SseWire"]

_TYPE: Final = "text/event-stream"
_HEADERS: Final = {"Accept": _TYPE, "Content-Type": "application/json", "Cache-Control": "no-store"}


@final
class SseWire(HttpWire):
    """A :class:`~rtkit.client.transport.Wire` whose frames come down as events."""

    transport = "sse"

    def __init__(
        self, http: Http, body: Body, *, max_size: int, clock: Clock, random: Random, close_timeout: float
    ) -> None:
        super().__init__(http, clock=clock, random=random, close_timeout=close_timeout)
        self._body = body
        self._events = EventStream(max_size=max_size)

    def begin(self, first: bytes) -> None:
        """Read on after the *first* piece of the stream."""

        async def read() -> None:
            piece = first
            try:
                while piece:
                    for event in self._events.feed(piece):
                        if event.data and event.type == "message":
                            self._arrived(event.data)
                    await self._fetched()
                    piece = await self._body.read()
            finally:
                await self._body.aclose()
            raise WireClosed(LOST, "the stream ended")

        self._reader = self._spawn(read, "read")

    async def _let_go(self) -> None:
        await self._body.aclose()  # the task may have been cancelled before it began


@final
class SseDialer:
    """Opens event streams; an :class:`~rtkit.client.transport.Opener`.

    :param ssl: as for :class:`~rtkit.client.websocket.WebSocketDialer`, as are
    :param proxy: and
    :param max_size: of an event,
    :param close_timeout: and
    :param clock:.
    :param patience: seconds until the first byte of the stream has come; a hub sends it before it authenticates.
    :param random: draws delays.
    :param http: makes what carries the requests, in place of the library; then *ssl* and *proxy* mean nothing.
    """

    def __init__(
        self,
        *,
        ssl: _ssl.SSLContext | None = None,
        proxy: str | bool | None = None,
        max_size: int = 32 * 1024 * 1024,
        close_timeout: float = 2.0,
        patience: float = 3.0,
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

    async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> SseWire:
        """See :meth:`Opener.open`."""
        http = self._make_http(url, headers)
        opened = False
        try:
            async with timeout(self._clock, self._patience):
                body = await http.stream("sse", headers=_HEADERS, body=hello)
                self._check(body, url)
                first = await body.read()
            if not first:
                raise DialFailed(f"{without_secrets(url)}: the event stream ended at once", unusable=True)
            opened = True
        except TimeoutError:
            raise DialFailed(
                f"{without_secrets(url)}: no event stream within {self._patience:g} s; does a proxy hold it back?",
                unusable=True,
            ) from None
        finally:
            if not opened:
                await http.aclose()
        wire = SseWire(
            http,
            body,
            max_size=self._max_size,
            clock=self._clock,
            random=self._random,
            close_timeout=self._close_timeout,
        )
        wire.begin(first)
        return wire

    def _check(self, body: Body, url: str) -> None:
        if body.status != 200:
            raise refusal(
                url,
                "the event stream",
                body.status,
                clock=self._clock,
                location=body.headers.get("location"),
                retry_after=body.headers.get("retry-after"),
            )
        found = body.headers.get("content-type", "").partition(";")[0].strip().lower()
        if found != _TYPE:
            raise refusal(url, "the event stream", 200, clock=self._clock)

    def __repr__(self) -> str:
        return f"SseDialer(max_size={self._max_size})"
