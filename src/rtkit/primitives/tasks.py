"""Tasks with an owner: each has one place where it is started, one where it dies, and one for its error.

A task's life here: :meth:`Tasks.spawn` makes it and holds it strongly (the event loop itself holds
tasks weakly); when it ends it is let go. Ended by an exception, that is logged once and handed to
``on_error``; ended by cancellation, that is no error. :meth:`Tasks.aclose` refuses new ones, cancels
what runs, and waits a bounded time; who ignored the cancellation is named in a warning.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar, TypeVarTuple, final

from ..clock import Clock
from ..errors import NotRunning, SlowDown
from .clocks import LoopClock, timeout

__all__ = ["Tasks", "TasksStatistics"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log: Final = logging.getLogger("rtkit.tasks")


@dataclass(frozen=True, slots=True)
class TasksStatistics:
    """What a :class:`Tasks` has seen.

    :param running: tasks that have not ended.
    :param spawned: all that were ever started.
    :param failed: ended by an exception.
    :param cancelled: ended by cancellation.
    :param closed: no new task is taken.
    """

    running: int
    spawned: int
    failed: int
    cancelled: int
    closed: bool


@final
class Tasks:
    """Owns tasks; close it and they are gone.

    ::

        async with Tasks(name="feed") as tasks:
            tasks.spawn(read, sock)
            ...
        # none of them runs any more

    Unlike :class:`asyncio.TaskGroup`, the failure of one task ends neither the others nor the owner,
    and leaving the block cancels what still runs instead of waiting for it.

    :param name: stands in log lines and before the names of the tasks.
    :param limit: how many may run at once; None for no bound.
    :param on_error: called with the exception and the task, after it was logged. Plain function.
    :param clock: measures the time :meth:`aclose` waits.
    :raises ValueError: for a limit below 1.
    """

    __slots__ = (
        "_cancelled",
        "_clock",
        "_closed",
        "_failed",
        "_limit",
        "_name",
        "_on_error",
        "_running",
        "_spawned",
    )

    def __init__(
        self,
        *,
        name: str = "tasks",
        limit: int | None = None,
        on_error: Callable[[Exception, asyncio.Task[Any]], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"Tasks(limit=…) is at least 1 or None, not {limit!r}")
        self._name = name
        self._limit = limit
        self._on_error = on_error
        self._clock: Clock = LoopClock() if clock is None else clock
        self._running: dict[asyncio.Task[Any], None] = {}
        self._closed = False
        self._spawned = 0
        self._failed = 0
        self._cancelled = 0

    def spawn(
        self,
        func: Callable[[*Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Start ``func(*args)`` as a task and own it.

        The task may be awaited, cancelled or forgotten. Awaiting it raises its exception a second
        time, besides logging it: a task whose failure is an ordinary answer should return that.

        :param name: of the task; the function's own name without one.
        :param context: to run in, as for :meth:`asyncio.loop.create_task`.
        :raises NotRunning: after closing.
        :raises SlowDown: when *limit* tasks are running.
        :raises RuntimeError: where no event loop is running.
        """
        if self._closed:
            raise NotRunning(f"{self._name} is closed: it takes no new task")
        if self._limit is not None and len(self._running) >= self._limit:
            raise SlowDown(f"{self._name} is running {self._limit} tasks, as many as it may")
        loop = asyncio.get_running_loop()
        if name is None:
            name = f"{self._name}: {getattr(func, '__qualname__', func)}"
        task = loop.create_task(func(*args), name=name, context=context)
        self._running[task] = None
        self._spawned += 1
        task.add_done_callback(self._ended)
        return task

    def close_nowait(self) -> None:
        """Refuse new tasks and cancel those that run, without waiting for them to end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        current = _current_task()
        for task in tuple(self._running):
            if task is not current:
                task.cancel()

    async def aclose(self, *, timeout: float | None = 10.0) -> None:
        """Refuse new tasks, cancel those that run, and wait until they have ended.

        Each task is cancelled once. Those that still run after the time are named in a log warning
        and left; calling again waits for them again. A task may close its own owner: it is neither
        cancelled nor waited for.

        Cancellation: safe. The tasks stay cancelled; call again to wait for the rest.

        :param timeout: seconds to wait; None waits for ever.
        """
        self.close_nowait()
        current = _current_task()
        pending = [task for task in self._running if task is not current]
        if not pending:
            return
        try:
            async with _timeout(self._clock, timeout):
                await asyncio.wait(pending)
        except TimeoutError:
            survivors = sorted(task.get_name() for task in pending if not task.done())
            if survivors:
                _log.warning(
                    "%s: %d task(s) ignored their cancellation for %s s: %s",
                    self._name, len(survivors), timeout, ", ".join(survivors),
                )  # fmt: skip

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task, None)
        if task.cancelled():
            self._cancelled += 1
            return
        exc = task.exception()
        if exc is None:
            return
        self._failed += 1
        if not isinstance(exc, Exception):
            return  # SystemExit and KeyboardInterrupt: the loop has already raised them
        _log.error("%s: task %r failed", self._name, task.get_name(), exc_info=exc)
        if self._on_error is not None:
            try:
                self._on_error(exc, task)
            except Exception:
                _log.exception("%s: on_error failed", self._name)

    def statistics(self) -> TasksStatistics:
        """Totals so far and what runs now."""
        return TasksStatistics(
            running=len(self._running),
            spawned=self._spawned,
            failed=self._failed,
            cancelled=self._cancelled,
            closed=self._closed,
        )

    def __len__(self) -> int:
        return len(self._running)

    def __bool__(self) -> bool:
        return True  # an owner without tasks is still an owner

    async def __aenter__(self) -> Tasks:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Tasks {self._name!r}, {len(self._running)} running{', closed' if self._closed else ''}>"


_timeout = timeout  # aclose() has a parameter of that name


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
