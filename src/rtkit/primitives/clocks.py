"""The clock of a running event loop, and waiting by any :class:`~rtkit.clock.Clock`.

A timeout is a promise about who was cancelled by whom, so its rules come first. They are those of
:func:`asyncio.timeout`; what differs is that the time comes from a clock, and the last rule.

- The block's task is cancelled when the clock reaches the deadline. Whoever cancels a task adds one
  to ``task.cancelling()``; whoever absorbs that cancellation takes its own one off again, with
  ``task.uncancel()``.
- ``TimeoutError`` is raised only if this timeout fired, a ``CancelledError`` comes out of the block,
  and after taking off our own request no more of them are open than when the block was entered. Was
  somebody else's request added meanwhile, then theirs wins: the ``CancelledError`` goes on outwards.
- A block that ends by itself in the same moment ends as it would have; nothing is raised in its place.
- Python before 3.13 keeps a request that was made but not yet delivered (the task was running when
  it was cancelled) although it has been taken back, and delivers it at the next ``await``, which
  then looks like a cancellation by nobody. A manual clock moved from inside the block does exactly
  that. Such a stale request is waited for and swallowed on the way out.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time as _time
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Final, final

from ..clock import Clock, Timer

__all__ = ["LoopClock", "Timeout", "sleep", "sleep_until", "timeout"]


def _find_boottime() -> Callable[[], float]:
    """The reading that goes on while the machine sleeps, where the system has one."""
    # On Linux the monotonic clock stops during suspend and CLOCK_BOOTTIME does not. On macOS
    # CLOCK_MONOTONIC counts sleep, unlike the CLOCK_UPTIME_RAW behind time.monotonic().
    name = "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    clock_id = getattr(_time, name, None)
    if clock_id is None:  # pragma: no cover - Windows: its monotonic clock counts sleep
        return _time.monotonic
    get = _time.clock_gettime
    return lambda: get(clock_id)


_boottime: Final = _find_boottime()


@final
class LoopClock:
    """The :class:`~rtkit.clock.Clock` of whichever event loop is running when it is asked.

    Nothing is bound at construction: one may be made at import time, outside any loop, and serve
    several loops one after another. :meth:`monotonic` and :meth:`call_at` raise ``RuntimeError``
    where no loop is running.
    """

    __slots__ = ()

    def monotonic(self) -> float:
        """Seconds of ``loop.time()``. For intervals and deadlines."""
        return asyncio.get_running_loop().time()

    def boottime(self) -> float:
        """Seconds by a clock that counts the time the machine slept, where the system has one (H7)."""
        return _boottime()

    def time(self) -> float:
        """Seconds since the Unix epoch; it may jump."""
        return _time.time()

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """``loop.call_at``: call ``callback(*args)`` once :meth:`monotonic` has reached *when*."""
        return asyncio.get_running_loop().call_at(when, callback, *args)

    def __repr__(self) -> str:
        return "LoopClock()"


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait *seconds* by *clock*; zero or less yields to the loop once.

    Cancellation: safe; the timer is given back.

    :raises ValueError: for a NaN.
    """
    if seconds <= 0:
        await asyncio.sleep(0)
    else:
        await sleep_until(clock, clock.monotonic() + seconds)


async def sleep_until(clock: Clock, when: float) -> None:
    """Wait until ``clock.monotonic()`` has reached *when*, in seconds; yields to the loop at least once.

    Cancellation: safe; the timer is given back.

    :raises ValueError: for a NaN.
    """
    if math.isnan(when):
        raise ValueError(f"a moment to sleep until is a number of seconds, not {when!r}")
    waiter = asyncio.get_running_loop().create_future()
    timer = clock.call_at(when, _wake, waiter) if when < math.inf else None
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()


class _State(Enum):
    CREATED = "created"
    ENTERED = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    EXITED = "finished"


@final
class Timeout:
    """What :func:`timeout` returns: an async context manager, to be entered once."""

    __slots__ = ("_cancelling", "_clock", "_state", "_task", "_timer", "_when")

    def __init__(self, clock: Clock, when: float | None) -> None:
        if when is not None and math.isnan(when):
            raise ValueError(f"a timeout is a number of seconds or None, not {when!r}")
        self._clock = clock
        self._when = when
        self._state = _State.CREATED
        self._task: asyncio.Task[Any] | None = None
        self._timer: Timer | None = None
        self._cancelling = 0

    def when(self) -> float | None:
        """The deadline in seconds of ``clock.monotonic()``; None for never."""
        return self._when

    def reschedule(self, when: float | None) -> None:
        """Move the deadline of the running block to *when*; a moment that has passed fires in the next turn.

        :raises RuntimeError: before the block was entered, or once it has expired or ended.
        """
        if self._state is not _State.ENTERED:
            raise RuntimeError(f"cannot reschedule a timeout that is {self._state.value}")
        self._when = when
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None and when < math.inf:
            self._timer = self._clock.call_at(when, self._on_timeout)

    def expired(self) -> bool:
        """Whether the deadline was reached while the block ran."""
        return self._state in (_State.EXPIRING, _State.EXPIRED)

    async def __aenter__(self) -> Timeout:
        if self._state is not _State.CREATED:
            raise RuntimeError(f"a timeout can be entered once; this one is {self._state.value}")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout works inside a task only")
        self._task = task
        self._cancelling = task.cancelling()
        self._state = _State.ENTERED
        self.reschedule(self._when)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        if self._state is not _State.EXPIRING or task is None:
            self._state = _State.EXITED
            return
        self._state = _State.EXPIRED
        ours_alone = task.uncancel() <= self._cancelling
        if ours_alone and getattr(task, "_must_cancel", False):
            await self._swallow_stale_request(task)
        if ours_alone and exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
            raise TimeoutError from exc

    async def _swallow_stale_request(self, task: asyncio.Task[Any]) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if task.cancelling() > self._cancelling:
                raise  # somebody cancelled us in this very turn, and means it

    def _on_timeout(self) -> None:
        self._timer = None
        if self._state is _State.ENTERED and self._task is not None:
            self._state = _State.EXPIRING
            self._task.cancel()

    def __repr__(self) -> str:
        when = "" if self._when is None else f" when={self._when:.3f}"
        return f"<Timeout {self._state.value}{when}>"


def timeout(clock: Clock, seconds: float | None) -> Timeout:
    """An async context manager that cancels its block after *seconds* by *clock*; None never does.

    ::

        async with timeout(clock, 5.0) as t:
            await something()

    The meaning is that of :func:`asyncio.timeout`: ``TimeoutError`` comes out only if this timeout
    itself fired; a cancellation from outside, even in the same turn, goes through untouched. May be
    nested. Zero or less fires at the block's first ``await``.

    :raises ValueError: for a NaN.
    """
    return Timeout(clock, None if seconds is None else clock.monotonic() + seconds)
