from __future__ import annotations

import asyncio
import math
import time

import pytest

from rtkit.primitives import LoopClock, Timeout, sleep, sleep_until, timeout
from rtkit.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# -- LoopClock


def test_a_loop_clock_is_made_outside_a_loop() -> None:
    clock = LoopClock()
    assert repr(clock) == "LoopClock()"
    with pytest.raises(RuntimeError):
        clock.monotonic()


def test_one_loop_clock_serves_two_loops() -> None:
    clock = LoopClock()

    async def use() -> None:
        assert clock.monotonic() == pytest.approx(asyncio.get_running_loop().time(), abs=1)
        fired = asyncio.Event()
        clock.call_at(clock.monotonic(), fired.set)
        assert not fired.is_set()
        await fired.wait()

    asyncio.run(use())
    asyncio.run(use())


def test_wall_and_boottime() -> None:
    clock = LoopClock()
    assert clock.time() == pytest.approx(time.time(), abs=5)
    first = clock.boottime()
    assert clock.boottime() >= first
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert first == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


# -- sleep


async def test_sleep_takes_the_time(clock: ManualClock) -> None:
    task = asyncio.create_task(sleep(clock, 10))
    await clock.advance(9.99)
    assert not task.done()
    await clock.advance(0.01)
    assert task.done()


@pytest.mark.parametrize("seconds", [0, -1])
async def test_sleep_of_nothing_yields_once(clock: ManualClock, seconds: float) -> None:
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await sleep(clock, seconds)
    assert turns == [1]
    assert clock.timers == 0


async def test_sleep_until_a_past_moment_ends(clock: ManualClock) -> None:
    await sleep_until(clock, clock.monotonic() - 5)


async def test_a_cancelled_sleep_gives_its_timer_back(clock: ManualClock) -> None:
    task = asyncio.create_task(sleep(clock, 10))
    await clock.settle()
    assert clock.timers == 1
    task.cancel()
    await clock.settle()
    assert task.cancelled()
    assert clock.timers == 0


async def test_sleep_for_ever_needs_no_timer(clock: ManualClock) -> None:
    task = asyncio.create_task(sleep(clock, math.inf))
    await clock.advance(1e6)
    assert clock.timers == 0
    assert not task.done()
    task.cancel()
    await clock.settle()


async def test_sleep_refuses_nan(clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="nan"):
        await sleep(clock, math.nan)
    with pytest.raises(ValueError, match="nan"):
        timeout(clock, math.nan)


# -- timeout


async def run_with(clock: ManualClock, seconds: float | None, body_seconds: float) -> str:
    try:
        async with timeout(clock, seconds) as t:
            assert isinstance(t, Timeout)
            await sleep(clock, body_seconds)
        return "done"
    except TimeoutError:
        return "timeout"


@pytest.mark.parametrize(
    ("seconds", "body", "result"), [(5, 1, "done"), (5, 9, "timeout"), (None, 9, "done"), (0, 1, "timeout")]
)
async def test_timeout(clock: ManualClock, seconds: float | None, body: float, result: str) -> None:
    task = asyncio.create_task(run_with(clock, seconds, body))
    await clock.advance(10)
    assert task.result() == result
    assert task.cancelling() == 0
    assert clock.timers == 0


async def test_a_timeout_error_of_the_body_is_not_ours(clock: ManualClock) -> None:
    t = timeout(clock, 5)
    with pytest.raises(TimeoutError, match="theirs"):
        async with t:
            raise TimeoutError("theirs")
    assert not t.expired()


async def test_an_outer_cancellation_goes_through(clock: ManualClock) -> None:
    task = asyncio.create_task(run_with(clock, 5, 9))
    await clock.advance(1)
    task.cancel()
    await clock.settle()
    assert task.cancelled()


async def test_an_outer_cancellation_in_the_same_turn_wins(clock: ManualClock) -> None:
    for theirs_first in (True, False):
        task = asyncio.create_task(run_with(clock, 5, 9))
        await clock.settle()
        if theirs_first:
            task.cancel()
        clock.advance_nowait(5)
        if not theirs_first:
            task.cancel()
        await clock.settle()
        assert task.cancelled()


async def test_reusable_while_an_outer_cancellation_is_being_worked_off(clock: ManualClock) -> None:
    """A clean-up that runs under a cancellation may use a timeout of its own."""
    log: list[str] = []

    async def body() -> None:
        try:
            await sleep(clock, 100)
        except asyncio.CancelledError:
            log.append(await run_with(clock, 5, 9))
            raise

    task = asyncio.create_task(body())
    await clock.settle()
    task.cancel()
    await clock.advance(10)
    assert log == ["timeout"]
    assert task.cancelled()


async def test_nested_the_inner_one_fires(clock: ManualClock) -> None:
    async def body() -> str:
        async with timeout(clock, 10) as outer:
            result = await run_with(clock, 5, 9)
            assert not outer.expired()
            return result

    task = asyncio.create_task(body())
    await clock.advance(10)
    assert task.result() == "timeout"


async def test_nested_the_outer_one_fires(clock: ManualClock) -> None:
    inner = timeout(clock, 10)

    async def body() -> str:
        try:
            async with timeout(clock, 5), inner:
                await sleep(clock, 20)
        except TimeoutError:
            return "outer"
        return "none"

    task = asyncio.create_task(body())
    await clock.advance(30)
    assert task.result() == "outer"
    assert not inner.expired()
    assert task.cancelling() == 0


async def test_nested_both_fire_in_one_turn(clock: ManualClock) -> None:
    async def body() -> list[str]:
        log: list[str] = []
        try:
            async with timeout(clock, 5):
                try:
                    async with timeout(clock, 5):
                        await sleep(clock, 20)
                except TimeoutError:
                    log.append("inner")
                    raise
        except TimeoutError:
            log.append("outer")
        await asyncio.sleep(0)
        return log

    task = asyncio.create_task(body())
    await clock.advance(5)
    assert task.result()[-1] == "outer"
    assert task.cancelling() == 0


async def test_a_body_that_ends_in_the_same_moment_just_ends(clock: ManualClock) -> None:
    """And the cancellation that was asked for and not delivered does not hit a later await."""

    async def body() -> str:
        async with timeout(clock, 5) as t:
            clock.advance_nowait(5)
        assert t.expired()
        await asyncio.sleep(0)
        return "done"

    task = asyncio.create_task(body())
    await clock.settle()
    assert task.result() == "done"


async def test_a_real_cancellation_beside_a_stale_one_is_kept(clock: ManualClock) -> None:
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with timeout(clock, 5):
            clock.advance_nowait(5)
            task.cancel()
        await asyncio.sleep(0)

    task = asyncio.create_task(body())
    await clock.settle()
    assert task.cancelled()


async def test_the_exception_of_a_body_that_overran_is_its_own(clock: ManualClock) -> None:
    async def body() -> None:
        async with timeout(clock, 5):
            try:
                await sleep(clock, 9)
            finally:
                raise KeyError("x")

    task = asyncio.create_task(body())
    await clock.advance(5)
    assert isinstance(task.exception(), KeyError)
    assert task.cancelling() == 0


async def test_reschedule(clock: ManualClock) -> None:
    start = clock.monotonic()

    async def body() -> str:
        try:
            async with timeout(clock, 5) as t:
                assert t.when() == start + 5
                t.reschedule(start + 20)
                await sleep(clock, 15)
                t.reschedule(None)
                await sleep(clock, 15)
                t.reschedule(clock.monotonic())
                await sleep(clock, 15)
        except TimeoutError:
            return "timeout"
        return "done"

    task = asyncio.create_task(body())
    await clock.advance(30)
    assert task.result() == "timeout"
    assert clock.monotonic() == start + 30


async def test_misuse_of_a_timeout_is_named(clock: ManualClock) -> None:
    t = timeout(clock, 5)
    assert "created" in repr(t)
    with pytest.raises(RuntimeError, match="created"):
        t.reschedule(None)
    async with t:
        assert "active" in repr(t)
    with pytest.raises(RuntimeError, match="finished"):
        async with t:
            pass
    with pytest.raises(RuntimeError, match="finished"):
        t.reschedule(None)


async def test_a_timeout_works_inside_a_task_only(clock: ManualClock) -> None:
    errors: list[Exception] = []

    def outside() -> None:
        try:
            timeout(clock, 5).__aenter__().send(None)
        except RuntimeError as exc:
            errors.append(exc)

    asyncio.get_running_loop().call_soon(outside)
    await clock.settle()
    assert "inside a task" in str(errors[0])


async def test_real_loop_clock() -> None:
    clock = LoopClock()
    with pytest.raises(TimeoutError):
        async with timeout(clock, 0):
            await asyncio.Event().wait()
