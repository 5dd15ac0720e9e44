"""Three hubs on a memory broker with a bad day: the harness itself, and the hub, without any server."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.simulated import BadBackend
from tests.chaos.world import Plan, World


async def run(seed: int, faults: int = 4) -> str:
    bad = BadBackend(seed)
    async with World.of(bad.broker, seed=seed, context="memory", plan=Plan(pace=0.01)) as world:
        world.talk()
        await world.progress(20)
        for _ in range(faults):
            fault = world.random.choice(bad.faults)
            world.record.note(fault.__name__)
            await fault(world)
            await world.progress(20)
            if world.random.random() < 0.5:
                cable = world.random.choice(world.nodes).cable
                assert cable is not None
                cable.pull()
                cable.plug()
            if world.random.random() < 0.5:
                await world.random.choice(world.listeners).come_back()

        async def heal() -> None:
            bad.heal()

        return (await world.settle(heal)).summary()


@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_lost_in_silence(seed: int) -> None:
    assert await run(seed)


@pytest.mark.soak
async def test_nor_in_a_hundred_runs() -> None:
    for seed in range(100):
        print(seed, await run(seed))  # noqa: T201
        await asyncio.sleep(0)
