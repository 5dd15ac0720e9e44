"""Equal calls that several make at the same time, made once for all of them (F2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar, final

from ...errors import NotRunning
from ...primitives.tasks import Tasks

__all__ = ["Shared"]

T = TypeVar("T")


@final
class Shared(Generic[T]):
    """Of equal calls one is under way, and at most one waits.

    Who asks while one is under way shares the next one. Never the one under way: that may have looked already, at
    something older than what this caller knows of.

    :param tasks: owns the calls that are made for several.
    :param shared: called when one is answered with another's.
    """

    def __init__(self, tasks: Tasks, shared: Callable[[], object]) -> None:
        self._tasks: Final = tasks
        self._shared: Final = shared
        # Who waits for the next call, of each that is under way.
        self._waiting: dict[Hashable, list[asyncio.Future[T]]] = {}

    async def call(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """What *call* returns, or raises; calls with equal *key* must be the same.

        Cancellation: safe; the others are served all the same.
        """
        waiting = self._waiting.get(key)
        if waiting is not None:
            if waiting:
                self._shared()
            waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            waiting.append(waiter)
            return await waiter
        self._waiting[key] = []
        try:
            return await call()
        finally:
            # Mostly nobody else has come: this costs no task.
            self._next(key, call)

    def _next(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> None:
        waiters = _open(self._waiting.pop(key))
        if not waiters:
            return
        self._waiting[key] = []
        try:
            task = self._tasks.spawn(self._serve, call, waiters)
        except NotRunning:
            self._served(key, call, waiters)
        else:
            # Not at the end of _serve(), which a task that is cancelled at once never comes to.
            task.add_done_callback(lambda _: self._served(key, call, waiters))

    async def _serve(self, call: Callable[[], Awaitable[T]], waiters: list[asyncio.Future[T]]) -> None:
        try:
            found = await call()
        except Exception as error:
            for waiter in _open(waiters):
                waiter.set_exception(error)
        else:
            for waiter in _open(waiters):
                waiter.set_result(found)

    def _served(
        self, key: Hashable, call: Callable[[], Awaitable[T]], waiters: list[asyncio.Future[T]]
    ) -> None:
        for waiter in _open(waiters):
            waiter.set_exception(NotRunning("the broker was closed"))
        self._next(key, call)


def _open(waiters: list[asyncio.Future[T]]) -> list[asyncio.Future[T]]:
    return [waiter for waiter in waiters if not waiter.done()]
