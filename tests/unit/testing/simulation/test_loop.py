"""The loop under virtual time, and machines that freeze and crash."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rtkit.testing.simulation import Livelock, Machine, Simulation, Stuck, simulate

Program = Callable[[Simulation], Awaitable[Any]]


async def log_each_second(log: list[float], sim: Simulation) -> None:
    while True:
        log.append(sim.now)
        await asyncio.sleep(1)


# -- time


def test_a_day_passes_in_no_time_and_to_the_second() -> None:
    async def program(sim: Simulation) -> float:
        await asyncio.sleep(86_400)
        return sim.now

    assert simulate(program, seed=0) == 86_400


def test_timers_run_in_order_at_their_moments() -> None:
    async def program(sim: Simulation) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        for name, when in (("c", 3.0), ("a", 0.1), ("b", 0.1 + 0.2)):
            sim.loop.call_at(when, lambda name=name: found.append((name, sim.now)))
        sim.loop.call_at(2.0, lambda: found.append(("never", sim.now))).cancel()
        await asyncio.sleep(5)
        return found

    # Not nearly: a timer that is early by the last bit would run its loop twice.
    assert simulate(program, seed=0) == [("a", 0.1), ("b", 0.1 + 0.2), ("c", 3.0)]


def test_timeouts_of_asyncio_work() -> None:
    async def program(sim: Simulation) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.5):
                await asyncio.Event().wait()
        return sim.now

    assert simulate(program, seed=0) == 7.5


def test_waiting_for_what_never_comes_is_told() -> None:
    async def program(_: Simulation) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match="for ever"):
        simulate(program, seed=0)


def test_a_program_that_never_waits_is_stopped() -> None:
    async def program(_: Simulation) -> None:
        while True:  # noqa: ASYNC110 # that is the bug
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="turns"):
        simulate(program, seed=0)


def test_what_belongs_into_a_thread_runs_here_and_its_exception_comes_back() -> None:
    async def program(sim: Simulation) -> object:
        with pytest.raises(ZeroDivisionError):
            await sim.loop.run_in_executor(None, lambda: 1 // 0)
        return await asyncio.to_thread(threading.current_thread)

    assert simulate(program, seed=0) is threading.current_thread()


def test_exceptions_nobody_took_are_kept() -> None:
    async def program(sim: Simulation) -> list[str]:
        async def fail() -> None:
            raise ValueError("oh")

        sim.machine("a").spawn(fail())
        await asyncio.sleep(1)
        gc.collect()  # asyncio complains when the task is put away
        return sim.errors

    assert ["ValueError" in error for error in simulate(program, seed=0)] == [True]


# -- machines


def test_what_begins_on_a_machine_belongs_to_it() -> None:
    async def program(sim: Simulation) -> set[str | None]:
        names: set[str | None] = set()

        def note() -> None:
            machine = Machine.current()
            names.add(machine.name if machine is not None else None)

        async def inner() -> None:
            note()
            sim.loop.call_later(1, note)
            sim.loop.call_soon(note)

        async def outer() -> None:
            await asyncio.create_task(inner())
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())

        await sim.machine("a").spawn(outer())
        await asyncio.sleep(2)
        assert Machine.current() is None
        return names

    assert simulate(program, seed=0) == {"a"}


def test_a_frozen_machine_does_nothing_until_it_thaws_and_then_what_was_due() -> None:
    async def program(sim: Simulation) -> tuple[list[float], list[float]]:
        mine: list[float] = []
        theirs: list[float] = []
        frozen = sim.machine("frozen")
        frozen.spawn(log_each_second(mine, sim))
        sim.machine("other").spawn(log_each_second(theirs, sim))
        await asyncio.sleep(2.5)
        frozen.freeze()
        await asyncio.sleep(5)
        frozen.thaw()
        await asyncio.sleep(2)
        return mine, theirs

    mine, theirs = simulate(program, seed=0)
    assert mine == [0, 1, 2, 7.5, 8.5, 9.5]
    assert theirs == list(range(10))


def test_what_came_while_it_was_frozen_comes_before_what_comes_as_it_thaws() -> None:
    async def program(sim: Simulation) -> list[int]:
        machine = sim.machine("a")
        found: list[int] = []

        def tell(number: int) -> None:
            sim.loop.call_soon(found.append, number, context=machine.context)

        machine.freeze()
        tell(1)
        tell(2)
        await asyncio.sleep(1)
        tell(3)  # ready in the very turn in which it thaws
        machine.thaw()
        await asyncio.sleep(1)
        return found

    assert simulate(program, seed=0) == [1, 2, 3]


def test_what_is_cancelled_while_its_machine_is_frozen_does_not_run() -> None:
    async def program(sim: Simulation) -> list[float]:
        found: list[float] = []
        machine = sim.machine("a")
        handle = sim.loop.call_later(1, found.append, 1.0, context=machine.context)
        machine.freeze()
        await asyncio.sleep(2)
        handle.cancel()
        machine.thaw()
        await asyncio.sleep(1)
        return found

    assert simulate(program, seed=0) == []


@pytest.mark.parametrize("frozen", [False, True])
def test_a_machine_that_crashed_runs_nothing_not_even_finally_until_the_end(frozen: bool) -> None:
    found: list[str] = []

    async def victim() -> None:
        try:
            while True:  # that is the bug
                await asyncio.sleep(1)
                found.append("alive")
        finally:
            found.append("finally")

    async def program(sim: Simulation) -> list[str]:
        machine = sim.machine("a")
        task = machine.spawn(victim())
        told: list[str] = []
        machine.on_crash(lambda: told.append("crashed"))
        await asyncio.sleep(1.5)
        if frozen:
            machine.freeze()
        machine.crash()
        machine.crash()
        machine.thaw()
        task.cancel()
        await asyncio.sleep(60)
        assert told == ["crashed"]
        assert not task.done()
        return list(found)

    assert simulate(program, seed=0) == ["alive"]
    assert found == ["alive", "finally"]


def test_another_machine_takes_the_name_of_one_that_crashed() -> None:
    async def program(sim: Simulation) -> None:
        first = sim.machine("a")
        assert sim.machine("a") is first
        first.freeze()
        assert sim.machine("a") is first
        first.crash()
        second = sim.machine("a")
        assert second is not first
        assert repr(second) == "<Machine a running>"
        first.freeze()
        assert repr(first) == "<Machine a crashed>"

    simulate(program, seed=0)


def test_the_clock_of_a_machine_may_be_wrong_and_its_other_clocks_are_not() -> None:
    async def program(sim: Simulation) -> None:
        right, wrong = sim.machine("right").clock, sim.machine("wrong").clock
        wrong.wrong = -3600.0
        assert wrong.time() == right.time() - 3600
        await asyncio.sleep(10)
        assert wrong.monotonic() == right.monotonic() == wrong.boottime() == 10

    simulate(program, seed=0)


def test_a_machine_knows_its_tasks_and_its_timers() -> None:
    async def program(sim: Simulation) -> None:
        machine = sim.machine("a")
        task = machine.spawn(asyncio.sleep(5))
        kept = sim.loop.call_later(9, print, context=machine.context)
        sim.loop.call_later(9, print, context=sim.machine("b").context)
        await asyncio.sleep(1)
        assert (list(machine.tasks), len(machine.timers)) == ([task], 2)
        kept.cancel()
        await asyncio.sleep(5)
        assert (list(machine.tasks), machine.timers) == ([], [])

    simulate(program, seed=0)
