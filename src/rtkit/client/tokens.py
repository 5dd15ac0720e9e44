"""Where tokens come from, and showing a new one before the old one expires (A3)."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from .. import codes
from ..clock import Clock, Timer
from ..errors import UsageError
from ..primitives.backoff import Backoff
from ..primitives.clocks import sleep
from ..primitives.tasks import Tasks
from ..wire import Command, Refresh, Reply
from .calls import call_error, window_of
from .engine import Engine
from .payloads import is_utf8

__all__ = ["Refresher", "Token", "TokenSource"]

Token = str | Callable[[], Awaitable[str | None]] | None

logger: Final = logging.getLogger("rtkit.client")


class TokenSource:
    """A token, or the function that gets one.

    :param token: a string; an async function that is called for every connection and every refresh; or None.
    """

    __slots__ = ("_token",)

    def __init__(self, token: Token) -> None:
        if token is not None and not isinstance(token, str) and not callable(token):
            raise TypeError(f"token= is a string, an async function or None, not {type(token).__name__}")
        self._token = token

    @property
    def renewable(self) -> bool:
        """Whether asking again may bring another token."""
        return callable(self._token)

    def __bool__(self) -> bool:
        return self._token is not None

    async def get(self) -> str:
        """The token to show now; empty for none.

        :raises UsageError: when the function is not an async one, or returns something else.
        :raises RuntimeError: when the function waited for something that was cancelled.
        :raises Exception: what the function raises.
        """
        if not callable(self._token):
            return _utf8(self._token or "")
        coming = self._token()
        if not inspect.isawaitable(coming):
            raise UsageError(f"token= must be an async function; it returned {type(coming).__name__} instead")
        try:
            token = await coming
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # It was not we who were cancelled, but something that the function waited for: it has failed, no more.
            raise RuntimeError("what the token function waited for was cancelled") from error
        if token is not None and not isinstance(token, str):
            raise UsageError(f"the token function must return a string or None, not {type(token).__name__}")
        return _utf8(token or "")

    def __repr__(self) -> str:
        return f"<TokenSource {'function' if self.renewable else 'fixed' if self._token else 'none'}>"


def _utf8(token: str) -> str:
    if not is_utf8(token):
        raise UsageError("a token is text that UTF-8 can hold; this one has a lone surrogate")
    return token


class Refresher:
    """Keeps one connection's identity fresh: a timer, and a task only while a refresh is under way."""

    def __init__(
        self, source: TokenSource, engine: Engine, *, clock: Clock, tasks: Tasks, backoff: Backoff
    ) -> None:
        self._source = source
        self._engine = engine
        self._clock = clock
        self._tasks = tasks
        self._backoff = backoff
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    def schedule(self, ttl: float) -> None:
        """The identity holds *ttl* seconds more: refresh a fifth of that, but at most 10 s, before its end."""
        if not self._source.renewable:
            return
        if self._timer is not None:
            self._timer.cancel()
        ttl = max(0.0, ttl)
        self._timer = self._clock.call_at(self._clock.monotonic() + ttl - min(10.0, ttl * 0.2), self._begin)

    def stop(self) -> None:
        """The connection is gone: its identity with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _begin(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = self._tasks.spawn(self._refresh, name="rtkit client: refresh")

    async def _refresh(self) -> None:
        self._backoff.reset()
        while True:
            reply, window = None, None
            try:
                token = await self._source.get()
            except Exception as error:
                logger.warning("refreshing: the token function failed: %r", error)
            else:
                if not token:
                    logger.warning("refreshing: the token function has no token; the identity will expire")
                    return
                reply = await self._ask(token)
                if reply is None:
                    return
                if reply.error is None:
                    result = reply.refresh
                    if result is not None and result.expires:
                        self.schedule(result.ttl)
                    return
                error_ = call_error(reply.error)
                window = window_of(error_)
                expired = error_.code in (codes.TOKEN_EXPIRED, codes.EXPIRED)
                if not (error_.temporary or expired):
                    # When the identity ends the server closes the connection, and judges the next one.
                    logger.warning("refreshing was refused: %s", error_)
                    return
            await sleep(self._clock, self._backoff.next(window))

    async def _ask(self, token: str) -> Reply | None:
        waiter: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply | None, now: float) -> None:
            if not waiter.done():
                waiter.set_result(reply)

        self._engine.refresh(Command(refresh=Refresh(token)), answered)
        return await waiter
