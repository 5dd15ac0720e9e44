"""How late the event loop is, and which handler made it so (F5).

Two views of the same trouble:

- *The tick*: once a second, as long as there are connections, a deadline is due, and how late it fires is what any
  timer, and any message, had to wait at that moment. That goes into a histogram. It sees everything: our handlers,
  the application's other code in the same loop, garbage collection, a process that got no processor.
- *The steps*: a handler or hook runs in steps, from one ``await`` to the next, and nobody else runs within one. Each
  step of what the application gave us is timed, so that one that takes too long has a name, exactly, also when a
  hundred handlers are under way. What it awaits in tasks of its own is not seen.

A stall that the tick saw, and that no step explains, is reported as somebody else's.

The tick also makes stalls visible to :class:`~rtkit.primitives.deadlines.Deadlines`, which puts off verdicts on peers
by what it sees of a stall: with a tick among them, some deadline is always due within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..primitives.clocks import LoopClock
from ..primitives.deadlines import Deadline

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["INTERVAL", "LoopLag"]

T = TypeVar("T")

logger = logging.getLogger("rtkit.hub")

#: Seconds between two ticks.
INTERVAL: Final = 1.0
#: How late a tick may be before that is said, where handlers are not watched.
_LATE: Final = 1.0
#: Seconds between two lines about the same handler, or about nobody.
_COMPLAINT: Final = 10.0


class LoopLag:
    """The monitor of one engine."""

    __slots__ = ("_complaints", "_deadline", "_engine", "_explained", "_now", "_patience")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A LoopClock looks for its loop with each reading; here it is known.
        self._now: Callable[[], float] = (
            asyncio.get_running_loop().time if isinstance(engine.clock, LoopClock) else engine.clock.monotonic
        )
        self._patience = engine.limits.blocked
        self._deadline: Deadline | None = None
        self._explained = 0.0  # seconds of this interval that handlers kept the loop
        self._complaints: dict[str, tuple[float, int]] = {}  # when it was last said, and how often not since

    # -- the tick ----------------------------------------------------------------------------------

    def start(self) -> None:
        """There is a connection: tick, until there is none."""
        if self._deadline is None:
            self._engine.timings.restart()
            self._explained = 0.0
            self._deadline = self._engine.deadlines.at(self._now() + INTERVAL, self._tick)

    def close(self) -> None:
        """Tick no more. Idempotent."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    @property
    def ticking(self) -> bool:
        """Whether one of the engine's deadlines is its own."""
        return self._deadline is not None and self._deadline.armed

    def _tick(self) -> None:
        if self._deadline is None:
            return
        now = self._now()
        lag = max(0.0, now - self._deadline.when)
        self._engine.timings.loop_lag.observe(lag)
        self._engine.timings.second()
        explained, self._explained = self._explained, 0.0
        if lag - explained > (_LATE if self._patience is None else self._patience):
            self._complain(
                "",
                "the event loop stood still for %.2f s, and no handler of this hub did it in one step: something else "
                "in this process blocks it, or the machine has no time for it%s",
                lag,
            )
        if self._engine.connections:
            self._deadline.move(now + INTERVAL)
        else:
            self._deadline = None

    # -- the steps ---------------------------------------------------------------------------------

    def watch(self, func: Callable[..., Any], running: Awaitable[T]) -> Awaitable[T]:
        """The same awaitable, with each of its steps timed; one that takes too long is counted, and named in a log.

        :param func: what it is a call of, for its name.
        """
        return running if self._patience is None else self._steps(func, running, self._patience)

    @coroutine
    def _steps(
        self, func: Callable[..., Any], running: Awaitable[T], patience: float
    ) -> Generator[Any, Any, T]:
        # What `yield from` does (PEP 380), with a look at the clock before and after.
        clock = self._now
        inner: Any = running.__await__()
        resume, given = inner.send, None
        while True:
            began = clock()
            try:
                awaited = resume(given)
            except StopIteration as done:
                result: T = done.value
                return result
            finally:
                given = None  # an exception would hold this frame, and this frame it
                took = clock() - began
                if took > patience:
                    self._kept(func, took)
            try:
                given = yield awaited
                resume = inner.send
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:
                resume, given = inner.throw, error

    def _kept(self, func: Callable[..., Any], seconds: float) -> None:
        """It kept the loop for so long."""
        self._explained += seconds
        self._engine.counters.add("blocked")
        self._complain(
            _name(func),
            "{} kept the event loop for %.2f s without a pause, and everybody else waited: hand what takes long to "
            "asyncio.to_thread()%s",
            seconds,
        )

    def _complain(self, who: str, line: str, seconds: float) -> None:
        """Say it, unless it was said just now: who blocks does so with every call."""
        now = self._now()
        last, silent = self._complaints.get(who, (-_COMPLAINT, 0))
        if who in self._complaints and now - last < _COMPLAINT:
            self._complaints[who] = last, silent + 1
            return
        self._complaints[who] = now, 0
        more = f" (and {silent} times more since this was last said)" if silent else ""
        logger.warning(line.replace("{}", who, 1), seconds, more)

    def __repr__(self) -> str:
        return f"<LoopLag {'ticking' if self.ticking else 'idle'}>"


def _name(func: Callable[..., Any]) -> str:
    """Where the application finds it in its own code."""
    while isinstance(func, partial):
        func = func.func
    named: Any = func if hasattr(func, "__qualname__") else type(func)
    return f"{named.__module__}.{named.__qualname__}"
