"""An event loop whose time is virtual, and machines that crash and freeze on it.

The loop runs what is ready, and when nothing is, its time jumps to the next timer: an hour of heartbeats takes
moments. What it runs is the real thing; asyncio cannot tell. Two runs of one program that draws its chance from one
seed (:mod:`.chance`) do the same in the same order.

A :class:`Machine` is a computer of this world: tasks, timers and callbacks that are begun on it, and whatever these
begin, belong to it, by a context variable. One that is frozen runs nothing until it thaws; time goes on for it. One
that crashed runs nothing any more, not even the ``finally`` of its tasks. Those get their turn at the very end, cut off
from everything, so that Python can put them away.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

__all__ = ["Livelock", "Machine", "MachineClock", "SimulatedLoop", "State", "Stuck"]

T = TypeVar("T")

#: Turns of the loop in which time may stand still; more is a program that never waits.
_MAX_TURNS: Final = 200_000

_machine: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("rtkit_machine", default=None)


class Stuck(RuntimeError):
    """Nothing is ready, and no timer is set: what the main task waits for will never come."""


class Livelock(RuntimeError):
    """The program runs and runs, and time stands still."""


class State(enum.Enum):
    """How a machine is."""

    RUNNING = "running"
    FROZEN = "frozen"
    CRASHED = "crashed"
    #: Crashed, and at the end of the simulation its tasks may clean up.
    BURIED = "buried"


class _Handle(asyncio.Handle):
    """A callback, and the machine it runs on if it does; None for those that are on none."""

    __slots__ = ("_machine",)

    def __init__(
        self,
        callback: Callable[..., object],
        args: Any,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self._machine = _machine.get() if context is None else context.get(_machine)


class _Timer(asyncio.TimerHandle):
    """Likewise, later."""

    __slots__ = ("_machine",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Any,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._machine = _machine.get() if context is None else context.get(_machine)


class _Future(asyncio.Future[T]):
    """A future with a number for a hash: the order of sets does not depend on where they lie in memory."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._number = next(loop.numbers)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[T]):
    """Likewise."""

    def __init__(self, coro: Coroutine[Any, Any, T], *, loop: SimulatedLoop, **options: Any) -> None:
        self._number = next(loop.numbers)
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module. It has no sockets, threads, signals, or subprocesses; connections are the
    :class:`~rtkit.testing.simulation.Network`'s, which sets :attr:`network`.

    :param start: where its time begins, in seconds.
    """

    def __init__(self, *, start: float = 0.0) -> None:
        super().__init__()
        self._now = start
        self.numbers = itertools.count()
        #: What is to run at a time: when, a number that keeps the order of those at the same moment, and the handle.
        self.timers: list[tuple[float, int, _Timer]] = []
        self._timer_numbers = itertools.count()
        self._void = 0  # timers that were cancelled, and are still in the list
        self._still = 0  # turns since time has moved
        self.network: Any = None
        self.set_task_factory(cast(Any, _new_task))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        """See :meth:`asyncio.loop.create_future`."""
        return _Future(self)

    def _run_once(self) -> None:
        """Turn after turn until the loop is stopped: what asyncio's does, without a selector between the turns.

        :raises Stuck: when nothing would ever happen again.
        :raises Livelock: when time does not move any more.
        """
        ready: deque[_Handle | _Timer] = self._ready  # type: ignore[attr-defined]
        timers, pop = self.timers, heapq.heappop
        while True:
            while timers and timers[0][0] <= self._now:
                timer = pop(timers)[2]
                if timer._cancelled:
                    self._void -= 1
                else:
                    timer._scheduled = False  # type: ignore[attr-defined]
                    ready.append(timer)
            if ready:
                self._still += 1
                if self._still > _MAX_TURNS:
                    self._still = 0
                    raise Livelock(f"{_MAX_TURNS:,} turns at {self._now:.6f} s of virtual time")
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    if handle._cancelled:
                        continue
                    machine = handle._machine
                    if machine is None or machine.state is State.RUNNING or machine.may_run(handle):
                        handle._run()
            elif timers:
                self._still = 0
                self._now = timers[0][0]
            else:
                raise Stuck("nothing is ready and no timer is set: this would wait for ever")
            if self._stopping:  # type: ignore[attr-defined]
                return

    # -- what asyncio's base class needs

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the list until its time has come, or too many do."""
        self._void += 1
        if self._void > 1000 and self._void > len(self.timers) / 2:
            self.timers[:] = [each for each in self.timers if not each[2].cancelled()]
            heapq.heapify(self.timers)
            self._void = 0

    def _call_soon(
        self, callback: Callable[..., object], args: Any, context: contextvars.Context | None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override] # pairs of callback and arguments are typed more closely there
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """See :meth:`asyncio.loop.call_at`."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self.timers, (when, next(self._timer_numbers), timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    # -- the world outside

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """A connection of the simulated network."""
        if self.network is None:
            raise OSError("this loop has no network")
        return await self.network.connect(protocol_factory, host, port, **options)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """Names stand for themselves."""
        import socket

        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Here and now: a thread would bring back what cannot be repeated."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""


def _new_task(loop: SimulatedLoop, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
    task = _Task(coro, loop=loop, **options)
    context = options.get("context")
    machine = _machine.get() if context is None else context.get(_machine)
    if machine is not None:
        # Strong: the tasks of a machine that crashed have to be there until the end.
        machine.tasks[task] = None
        task.add_done_callback(machine.forget)
    return task


class MachineClock:
    """The :class:`~rtkit.clock.Clock` of a machine.

    :ivar wrong: seconds by which its wall clock is ahead.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.wrong = 0.0

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def boottime(self) -> float:
        """The same: frozen machines are not asleep."""
        return self._loop.time()

    def time(self) -> float:
        """Seconds since the Unix epoch, as this machine believes."""
        return 1_800_000_000.0 + self._loop.time() + self.wrong

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """See :class:`~rtkit.clock.Clock`."""
        return self._loop.call_at(when, callback, *args)


class Machine:
    """A computer of the simulation: see the module.

    :ivar name: by which others reach it: ``http://<name>:8000``. When it has crashed, another may have it.
    :ivar dark: it lost its power: not even its kernel says anything to those who were connected.
    :ivar clock: its :class:`~rtkit.clock.Clock`.
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.dark = False
        self.clock = MachineClock(loop)
        self.state = State.RUNNING
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._held: list[asyncio.Handle] = []
        self._crashed: list[Callable[[], object]] = []
        self._context = contextvars.copy_context()
        self._context.run(_machine.set, self)

    @staticmethod
    def current() -> Machine | None:
        """The machine this code runs on."""
        return _machine.get()

    # -- for whoever runs something on it

    @property
    def context(self) -> contextvars.Context:
        """A copy of the context in which its tasks and callbacks are begun."""
        return self._context.copy()

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine on this machine.

        A task that waits for it waits for ever when the machine crashes.
        """
        return self.loop.create_task(coro, name=name or self.name, context=self.context)

    def on_crash(self, callback: Callable[[], object]) -> None:
        """Call this when it crashes: the rest of the world, which has to notice."""
        self._crashed.append(callback)

    # -- faults

    def freeze(self) -> None:
        """Stop, as a laptop whose lid is closed or a process that got SIGSTOP."""
        if self.state is State.RUNNING:
            self.state = State.FROZEN

    def thaw(self) -> None:
        """Go on: all that has become due meanwhile runs now, late."""
        if self.state is State.FROZEN:
            self.state = State.RUNNING
            held, self._held = self._held, []
            # Before what has become ready in this very turn: that came later.
            self.loop._ready.extendleft(reversed(held))  # type: ignore[attr-defined]

    def crash(self, *, dark: bool = False) -> None:
        """Stop for good, between two callbacks: its process died, or with *dark* all of it."""
        if self.state in (State.RUNNING, State.FROZEN):
            self.state = State.CRASHED
            self.dark = dark
            for callback in self._crashed:
                callback()
            self._crashed.clear()

    def bury(self) -> list[asyncio.Task[Any]]:
        """At the end: the tasks of a machine that crashed may clean up; all are cancelled."""
        if self.state is not State.RUNNING:
            self.state = State.BURIED
            self.loop._ready.extendleft(reversed(self._held))  # type: ignore[attr-defined]
            self._held = []
        tasks = [task for task in self.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        return tasks

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """Its timers that are still to come."""
        return [each for _, _, each in self.loop.timers if each._machine is self and not each.cancelled()]

    # -- for the loop

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Whether a callback runs now."""
        if self.state is State.RUNNING or self.state is State.BURIED:
            return True
        self._held.append(handle)
        return False

    def forget(self, task: asyncio.Task[Any]) -> None:
        """A task has ended."""
        self.tasks.pop(task, None)

    def __repr__(self) -> str:
        return f"<Machine {self.name} {self.state.value}>"
