from __future__ import annotations

import asyncio
import contextvars
import math
import socket

import pytest

from rtkit.primitives import sleep
from rtkit.testing.clock import ManualClock


def test_three_readings() -> None:
    clock = ManualClock(start=10, wall=1000)
    clock.advance_nowait(5)
    assert (clock.monotonic(), clock.boottime(), clock.time()) == (15, 15, 1005)
    clock.suspend(100)
    assert (clock.monotonic(), clock.boottime(), clock.time()) == (15, 115, 1105)
    clock.jump_wall(-500)
    assert (clock.monotonic(), clock.boottime(), clock.time()) == (15, 115, 605)
    assert repr(clock) == "<ManualClock 15.000, 0 timers>"


def test_timers_fire_in_order_of_time_then_of_making() -> None:
    clock = ManualClock(start=0)
    log: list[tuple[str, float]] = []

    def note(name: str) -> None:
        log.append((name, clock.monotonic()))

    for name, when in (("c", 3), ("a1", 1), ("b", 2), ("a2", 1)):
        clock.call_at(when, note, name)
    clock.call_at(2.5, note, "cancelled").cancel()
    clock.advance_nowait(2)
    assert log == [("a1", 1), ("a2", 1), ("b", 2)]
    assert clock.timers == 1
    assert clock.next_at == 3
    clock.advance_nowait(1)
    assert log[-1] == ("c", 3)
    assert clock.next_at is None


def test_a_timer_made_by_a_timer_fires_within_the_time() -> None:
    clock = ManualClock(start=0)
    log: list[float] = []

    def again() -> None:
        log.append(clock.monotonic())
        clock.call_at(clock.monotonic() + 1, again)

    clock.call_at(1, again)
    clock.advance_nowait(3.5)
    assert log == [1, 2, 3]
    assert clock.monotonic() == 3.5


def test_without_a_loop_a_due_timer_waits_for_the_next_move() -> None:
    clock = ManualClock(start=0)
    log: list[int] = []
    clock.call_at(-1, log.append, 1)
    assert log == []
    clock.advance_nowait(0)
    assert log == [1]


async def test_in_a_loop_a_due_timer_fires_in_the_next_turn_and_once() -> None:
    clock = ManualClock(start=0)
    log: list[int] = []
    clock.call_at(0, log.append, 1)
    assert log == []
    await asyncio.sleep(0)
    assert log == [1]
    clock.call_at(0, log.append, 2)
    clock.advance_nowait(0)
    await clock.settle()
    assert log == [1, 2]


async def test_advance_lets_the_loop_settle_between_timers() -> None:
    clock = ManualClock(start=0)
    log: list[tuple[int, float]] = []

    async def sleeper(n: int) -> None:
        for _ in range(3):
            await sleep(clock, n)
            for _ in range(20):  # needs several turns before it sleeps again
                await asyncio.sleep(0)
            log.append((n, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(n)) for n in (2, 3)]
    await clock.advance(9)
    assert log == [(2, 2), (3, 3), (2, 4), (3, 6), (2, 6), (3, 9)]
    assert all(task.done() for task in tasks)


async def test_callbacks_run_outside_the_moving_task_in_their_own_context() -> None:
    clock = ManualClock(start=0)
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
    seen: list[object] = []
    var.set("at making")
    clock.call_at(1, lambda: seen.extend((asyncio.current_task(), var.get())))
    var.set("at firing")
    await clock.advance(1)
    assert seen == [None, "at making"]


async def test_a_failing_timer_is_raised_when_the_time_has_passed() -> None:
    clock = ManualClock(start=0)
    log: list[int] = []

    def fail() -> None:
        raise KeyError("x")

    clock.call_at(1, fail)
    clock.call_at(2, log.append, 2)
    with pytest.raises(KeyError):
        await clock.advance(3)
    assert log == [2]
    assert clock.monotonic() == 3
    clock.call_at(4, fail)
    clock.call_at(4, fail)
    with pytest.raises(ExceptionGroup):
        clock.advance_nowait(1)


async def test_two_tasks_may_advance_at_once() -> None:
    clock = ManualClock(start=0)
    await asyncio.wait_for(asyncio.gather(clock.advance(3), clock.advance(5)), 5)
    assert clock.monotonic() in (5, 8)


async def test_settle_gives_up_on_a_spinning_task() -> None:
    clock = ManualClock()

    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    with pytest.raises(RuntimeError, match="something spins"):
        await clock.settle()
    task.cancel()
    await clock.settle()


async def test_settle_sees_bytes_that_already_lie_in_a_socket() -> None:
    clock = ManualClock()
    left, right = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=left)
    _, other = await asyncio.open_connection(sock=right)
    task = asyncio.create_task(reader.readline())
    await clock.settle()
    other.write(b"hello\n")
    await clock.settle()
    assert task.done()
    for w in (writer, other):
        w.close()
        await w.wait_closed()


async def test_a_stall_fires_late() -> None:
    clock = ManualClock(start=0)
    log: list[float] = []
    clock.call_at(1, lambda: log.append(clock.monotonic()))
    clock.stall(10)
    assert log == []
    await clock.settle()
    assert log == [10]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
async def test_time_goes_forward(seconds: float) -> None:
    clock = ManualClock()
    for move in (clock.advance_nowait, clock.stall, clock.suspend):
        with pytest.raises(ValueError, match="forward"):
            move(seconds)
    with pytest.raises(ValueError, match="forward"):
        await clock.advance(seconds)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="nan"):
        ManualClock(start=math.nan)
    with pytest.raises(ValueError, match="inf"):
        ManualClock(wall=math.inf)
    with pytest.raises(ValueError, match="nan"):
        ManualClock().call_at(math.nan, print)
