"""A clock that moves only when a test moves it.

How the event loop is brought to rest
-------------------------------------
Between two moments of virtual time everything that can run must have run, or a test would depend on
how many turns some code happens to need. :meth:`ManualClock.settle` yields until nothing but the
callers of ``settle`` themselves is ready to run. It looks at the loop's queue of ready callbacks
for that, which every loop of the standard library has; on another loop (uvloop) it yields a fixed
number of turns. Each turn also polls the selector once, so bytes that already lie in a socket of
this process do arrive; real network time, threads and subprocesses are outside the virtual world.

Timers fire as they do on a real loop: those that are due at the same moment in one turn, in the
order of their time and then of their making, each in the context it was made in, from a loop
callback and never from inside the task that moves the clock. What is due at once waits for the next
turn, or for the next move of the clock where no loop is running.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from collections.abc import Callable
from typing import Any, Final, final
from weakref import WeakKeyDictionary

__all__ = ["ManualClock", "ManualTimer"]

_TURNS_WITHOUT_VIEW: Final = 100
_MAX_TURNS: Final = 20_000

# How many tasks are inside settle() per loop: they are ready all the time, and no work.
_settling: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()


@final
class ManualTimer:
    """A pending call of :meth:`ManualClock.call_at`."""

    __slots__ = ("_args", "_callback", "_context", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = contextvars.copy_context()

    def cancel(self) -> None:
        """Forget the call. Harmless when it has already happened."""
        self._callback = None
        self._args = ()

    @property
    def pending(self) -> bool:
        """Whether the call is still to come."""
        return self._callback is not None

    def _fire(self) -> None:
        callback, args = self._callback, self._args
        self.cancel()
        if callback is not None:
            self._context.run(callback, *args)

    def __repr__(self) -> str:
        return f"<ManualTimer at {self.when:.3f}{'' if self.pending else ' done'}>"


@final
class ManualClock:
    """A :class:`~rtkit.clock.Clock` for tests: time passes by :meth:`advance` only.

    ::

        clock = ManualClock()
        task = asyncio.create_task(sleep(clock, 90))
        await clock.advance(90)
        assert task.done()

    Not safe for use from several threads.

    :param start: what :meth:`monotonic` and :meth:`boottime` begin with, in seconds.
    :param wall: what :meth:`time` begins with, in seconds since the Unix epoch.
    """

    def __init__(self, *, start: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        for name, value in (("start", start), ("wall", wall)):
            if not math.isfinite(value):
                raise ValueError(f"ManualClock({name}=…) is a finite number of seconds, not {value!r}")
        self._now = start
        self._slept = 0.0
        self._wall_offset = wall - start
        self._heap: list[tuple[float, int, ManualTimer]] = []
        self._made = 0
        self._errors: list[Exception] = []

    # -- the Clock protocol

    def monotonic(self) -> float:
        """Seconds from *start*; moved by :meth:`advance` and :meth:`stall`."""
        return self._now

    def boottime(self) -> float:
        """Like :meth:`monotonic`, and moved by :meth:`suspend` too."""
        return self._now + self._slept

    def time(self) -> float:
        """Seconds since the Unix epoch; moved by everything, and by :meth:`jump_wall`."""
        return self._now + self._wall_offset

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> ManualTimer:
        """Call ``callback(*args)`` when the clock gets to *when*; never before returning."""
        if math.isnan(when):
            raise ValueError(f"a timer's moment is a number of seconds, not {when!r}")
        timer = ManualTimer(when, callback, args)
        self._made += 1
        heapq.heappush(self._heap, (when, self._made, timer))
        if when <= self._now:
            self._fire_in_next_turn()
        return timer

    # -- moving time

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass: stop at each timer on the way, fire it, and let the loop settle.

        Timers made on the way fire too if they fall within the time. Settles first, so that tasks
        just created get to set their timers. Several tasks may advance at once: each moves the
        clock on by its own amount.

        Cancellation: safe; the clock stands where it had got to.

        :raises ValueError: for negative seconds.
        :raises Exception: what a timer's callback raised (an ``ExceptionGroup`` of several), after
            the time has passed.
        """
        self._check(seconds)
        await self.settle()
        target = self._now + seconds
        while (when := self.next_at) is not None and when <= target:
            self._now = max(self._now, when)
            self._fire_in_next_turn()
            await self.settle()
        self._now = max(self._now, target)
        self._raise_errors()

    def advance_nowait(self, seconds: float) -> None:
        """Let *seconds* pass and fire what becomes due, in this call and in order of time.

        For plain functions, with or without a running loop: tasks do not get to run in between.

        :raises ValueError: for negative seconds.
        :raises Exception: what a timer's callback raised, after the time has passed.
        """
        self._check(seconds)
        target = self._now + seconds
        while (when := self.next_at) is not None and when <= target:
            self._now = max(self._now, when)
            self._fire_due()
        self._now = max(self._now, target)
        self._raise_errors()

    def stall(self, seconds: float) -> None:
        """Let *seconds* pass at once, as if the loop had been blocked that long (F5).

        What became due meanwhile fires late: in the loop's next turn, or at the next move of the
        clock where no loop is running.
        """
        self._check(seconds)
        self._now += seconds
        self._fire_in_next_turn()

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: :meth:`boottime` and :meth:`time` move on, :meth:`monotonic` stands still."""
        self._check(seconds)
        self._slept += seconds
        self._wall_offset += seconds

    def jump_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, by *seconds* forwards or, negative, backwards."""
        self._wall_offset += seconds

    async def settle(self) -> None:
        """Let the loop run until nothing is ready but the callers of this method.

        Cancellation: safe.

        :raises RuntimeError: if the loop does not come to rest in 20,000 turns: a task is spinning.
        """
        loop = asyncio.get_running_loop()
        ready = getattr(loop, "_ready", None)
        if ready is None:
            for _ in range(_TURNS_WITHOUT_VIEW):
                await asyncio.sleep(0)
            return
        _settling[loop] = _settling.get(loop, 0) + 1
        try:
            quiet = 0
            for _ in range(_MAX_TURNS):
                await asyncio.sleep(0)
                # Twice in a row: the turn between polls the selector once more.
                quiet = quiet + 1 if len(ready) < _settling[loop] else 0
                if quiet == 2:
                    return
        finally:
            _settling[loop] -= 1
        raise RuntimeError(
            f"the loop did not come to rest in {_MAX_TURNS} turns, something spins: {list(ready)[:3]!r}"
        )

    # -- looking at it

    @property
    def next_at(self) -> float | None:
        """When the next pending timer is due; None without one."""
        while self._heap and not self._heap[0][2].pending:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def timers(self) -> int:
        """How many timers are pending: 0 proves that nothing was left behind."""
        return sum(timer.pending for _, _, timer in self._heap)

    # -- inside

    def _check(self, seconds: float) -> None:
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"time goes forward, by a finite number of seconds, not {seconds!r}")

    def _fire_in_next_turn(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next move fires it
        loop.call_soon(self._fire_due, context=contextvars.Context())

    def _fire_due(self) -> None:
        due: list[ManualTimer] = []
        while self._heap and self._heap[0][0] <= self._now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            try:
                timer._fire()  # pyright: ignore[reportPrivateUsage]
            except Exception as exc:
                self._errors.append(exc)

    def _raise_errors(self) -> None:
        errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("timers failed", errors)

    def __repr__(self) -> str:
        return f"<ManualClock {self._now:.3f}, {self.timers} timers>"
