"""Of equal calls one is under way, and at most one waits (F2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rtkit.brokers.redis.shared import Shared
from rtkit.errors import BrokerUnavailable, NotRunning
from rtkit.primitives.tasks import Tasks


class Calls:
    """Calls that end when they are told to."""

    def __init__(self) -> None:
        self.under_way: list[asyncio.Future[int]] = []

    async def __call__(self) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.under_way.append(future)
        return await future


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as tasks:
        yield tasks


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_asks_while_one_is_under_way_shares_the_next_one(tasks: Tasks) -> None:
    calls, counting = Calls(), Counting()
    shared: Shared[int] = Shared(tasks, counting)
    asked = [asyncio.ensure_future(shared.call("k", calls))]
    await turn()
    asked += [asyncio.ensure_future(shared.call("k", calls)) for _ in range(5)]
    await turn()
    assert len(calls.under_way) == 1
    calls.under_way[0].set_result(1)
    await turn()
    assert asked[0].result() == 1
    # What was under way when they asked may have looked before they knew what they know.
    assert not any(one.done() for one in asked[1:])
    assert len(calls.under_way) == 2
    calls.under_way[1].set_result(2)
    assert await asyncio.gather(*asked[1:]) == [2] * 5
    assert counting.count == 4


async def test_who_asks_later_still_is_served_too(tasks: Tasks) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    asked = []
    for number in range(4):
        asked.append(asyncio.ensure_future(shared.call("k", calls)))
        await turn()
        if number:
            calls.under_way[-1].set_result(number)
            await turn()
    calls.under_way[-1].set_result(4)
    assert await asyncio.gather(*asked) == [1, 2, 3, 4]


async def test_other_calls_are_made_at_once(tasks: Tasks) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    asked = [asyncio.ensure_future(shared.call(key, calls)) for key in "abc"]
    await turn()
    assert len(calls.under_way) == 3
    for number, one in enumerate(calls.under_way):
        one.set_result(number)
    assert await asyncio.gather(*asked) == [0, 1, 2]


async def test_one_alone_costs_no_task(tasks: Tasks) -> None:
    shared: Shared[int] = Shared(tasks, Counting())
    for number in range(3):
        assert await shared.call("k", lambda number=number: asyncio.sleep(0, number)) == number
    assert tasks.statistics().spawned == 0


async def test_a_failure_is_everybodys_and_nobodys_after(tasks: Tasks) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    asked = [asyncio.ensure_future(shared.call("k", calls))]
    await turn()
    asked += [asyncio.ensure_future(shared.call("k", calls)) for _ in range(2)]
    await turn()
    calls.under_way[0].set_exception(BrokerUnavailable("away"))
    await turn()
    calls.under_way[1].set_exception(BrokerUnavailable("still away"))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in found] == ["away", "still away", "still away"]
    asked = [asyncio.ensure_future(shared.call("k", calls))]
    await turn()
    calls.under_way[2].set_result(3)
    assert await asked[0] == 3


async def test_who_gives_up_leaves_the_others(tasks: Tasks) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    first = asyncio.ensure_future(shared.call("k", calls))
    await turn()
    second, third = (asyncio.ensure_future(shared.call("k", calls)) for _ in range(2))
    await turn()
    first.cancel()
    second.cancel()
    await turn()
    assert len(calls.under_way) == 2
    calls.under_way[1].set_result(7)
    assert await third == 7


async def test_nothing_is_called_for_those_who_have_gone(tasks: Tasks) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    first = asyncio.ensure_future(shared.call("k", calls))
    await turn()
    second = asyncio.ensure_future(shared.call("k", calls))
    await turn()
    second.cancel()
    calls.under_way[0].set_result(1)
    assert await first == 1
    await turn()
    assert len(calls.under_way) == 1


@pytest.mark.parametrize("turns", [0, 1])
async def test_closed_all_are_told(tasks: Tasks, turns: int) -> None:
    calls = Calls()
    shared: Shared[int] = Shared(tasks, Counting())
    first = asyncio.ensure_future(shared.call("k", calls))
    await turn()
    waits = [asyncio.ensure_future(shared.call("k", calls)) for _ in range(2)]
    await turn()
    calls.under_way[0].set_result(1)
    await first
    for _ in range(turns):
        await turn()
    waits.append(asyncio.ensure_future(shared.call("k", calls)))
    await asyncio.sleep(0)
    await tasks.aclose()  # with turns == 0, before the task for them took its first step
    found = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(error) for error in found] == [NotRunning] * 3
    asked = asyncio.ensure_future(shared.call("k", calls))
    await turn()
    calls.under_way[-1].set_result(9)
    assert await asked == 9
