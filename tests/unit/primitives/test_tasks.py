from __future__ import annotations

import asyncio
import contextvars
import gc
import logging

import pytest

from rtkit.errors import NotRunning, SlowDown
from rtkit.primitives import Tasks, sleep
from rtkit.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(word: str) -> None:
    raise KeyError(word)


async def stubborn(clock: ManualClock, seconds: float) -> None:
    """Ignores its cancellation for a while."""
    try:
        await forever()
    except asyncio.CancelledError:
        await sleep(clock, seconds)


async def test_spawn_returns_the_task(clock: ManualClock) -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    async with Tasks(clock=clock) as tasks:
        task = tasks.spawn(add, 1, 2)
        assert len(tasks) == 1
        assert await task == 3
        assert len(tasks) == 0
    assert tasks  # also when empty


async def test_tasks_are_held_strongly(clock: ManualClock) -> None:
    async with Tasks(clock=clock) as tasks:
        _ = tasks.spawn(forever)
        await clock.settle()
        gc.collect()
        assert len(tasks) == 1


async def test_names(clock: ManualClock) -> None:
    async with Tasks(name="feed", clock=clock) as tasks:
        assert tasks.spawn(forever).get_name() == "feed: forever"
        assert tasks.spawn(forever, name="mine").get_name() == "mine"


async def test_context_is_passed_through(clock: ManualClock) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="outside")

    async def read() -> str:
        return var.get()

    context = contextvars.copy_context()
    context.run(var.set, "inside")
    async with Tasks(clock=clock) as tasks:
        assert await tasks.spawn(read, context=context) == "inside"
        assert await tasks.spawn(read) == "outside"


async def test_a_failure_is_logged_once_and_handed_on(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, str]] = []
    tasks = Tasks(
        name="feed", on_error=lambda exc, task: seen.append((repr(exc), task.get_name())), clock=clock
    )
    _ = tasks.spawn(fail, "x")
    await clock.settle()
    assert seen == [("KeyError('x')", "feed: fail")]
    assert [(r.name, r.levelno) for r in caplog.records] == [("rtkit.tasks", logging.ERROR)]
    assert "feed: fail" in caplog.text
    assert "KeyError" in caplog.text
    assert tasks.statistics().failed == 1
    await tasks.aclose()


async def test_a_failing_on_error_is_logged(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks(on_error=lambda exc, task: 1 / 0, clock=clock)
    _ = tasks.spawn(fail, "x")
    await clock.settle()
    assert "ZeroDivisionError" in caplog.text
    await tasks.aclose()


async def test_cancellation_is_no_error(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks(clock=clock)
    task = tasks.spawn(forever)
    task.cancel()
    await clock.settle()
    assert caplog.records == []
    assert tasks.statistics().cancelled == 1
    await tasks.aclose()


async def test_one_failure_harms_no_other(clock: ManualClock) -> None:
    async with Tasks(clock=clock) as tasks:
        task = tasks.spawn(forever)
        _ = tasks.spawn(fail, "x")
        await clock.settle()
        assert not task.done()


async def test_aclose_cancels_waits_and_is_idempotent(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks(clock=clock)
    task = tasks.spawn(forever)
    slow = tasks.spawn(stubborn, clock, 3)
    await clock.settle()
    closing = asyncio.create_task(tasks.aclose(timeout=5))
    again = asyncio.create_task(tasks.aclose(timeout=5))
    await clock.advance(2.9)
    assert task.cancelled()
    assert not closing.done()
    await clock.advance(0.1)
    assert closing.done()
    assert again.done()
    assert slow.done()
    assert not slow.cancelled()
    await tasks.aclose()
    assert caplog.records == []
    assert tasks.statistics().closed
    assert clock.timers == 0


async def test_after_close_spawn_raises_and_makes_no_coroutine(clock: ManualClock) -> None:
    tasks = Tasks(name="feed", clock=clock)
    await tasks.aclose()
    with pytest.raises(NotRunning, match="feed"):
        _ = tasks.spawn(forever)


async def test_survivors_are_named(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks(name="feed", clock=clock)
    _ = tasks.spawn(stubborn, clock, 60, name="rock")
    await clock.settle()
    closing = asyncio.create_task(tasks.aclose(timeout=5))
    await clock.advance(5)
    assert closing.done()
    assert "rock" in caplog.text
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert len(tasks) == 1
    await clock.advance(60)
    assert len(tasks) == 0


async def test_a_cancelled_aclose_can_be_called_again(clock: ManualClock) -> None:
    tasks = Tasks(clock=clock)
    slow = tasks.spawn(stubborn, clock, 3)
    await clock.settle()
    closing = asyncio.create_task(tasks.aclose(timeout=None))
    await clock.settle()
    closing.cancel()
    await clock.settle()
    assert closing.cancelled()
    again = asyncio.create_task(tasks.aclose(timeout=None))
    await clock.advance(3)
    assert again.done()
    assert slow.done()
    assert not slow.cancelled()


async def test_a_task_may_close_its_owner(clock: ManualClock) -> None:
    tasks = Tasks(clock=clock)
    other = tasks.spawn(forever)

    async def close() -> str:
        await tasks.aclose()
        return "closed"

    assert await tasks.spawn(close) == "closed"
    assert other.cancelled()


async def test_close_nowait(clock: ManualClock) -> None:
    tasks = Tasks(clock=clock)
    task = tasks.spawn(forever)
    tasks.close_nowait()
    tasks.close_nowait()
    assert not task.done()
    await clock.settle()
    assert task.cancelled()


async def test_limit(clock: ManualClock) -> None:
    async with Tasks(limit=2, clock=clock) as tasks:
        first = tasks.spawn(forever)
        _ = tasks.spawn(forever)
        with pytest.raises(SlowDown, match="2"):
            _ = tasks.spawn(forever)
        first.cancel()
        await clock.settle()
        _ = tasks.spawn(forever)
        assert tasks.statistics().running == 2
        assert tasks.statistics().spawned == 3
        assert "2 running" in repr(tasks)


def test_a_bad_limit_is_named() -> None:
    with pytest.raises(ValueError, match="0"):
        Tasks(limit=0)


def test_spawn_outside_a_loop() -> None:
    with pytest.raises(RuntimeError, match="loop"):
        _ = Tasks().spawn(forever)
