"""Three hubs on Redis or Valkey, clients on all transports, publishers with keys; and everything breaks (B4, H1-H7).

What is held against them is in :mod:`tests.support.checker`; what happens to them in :mod:`tests.chaos.deployments`.
The short form runs a few fixed seeds. The long one goes on for 20 minutes, and with other seeds each time::

    ./dev soak tests/chaos
    RTKIT_CHAOS=cluster:17 ./dev soak tests/chaos      # this one again
    RTKIT_CHAOS_MINUTES=1 ./dev soak tests/chaos
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence

import pytest

from tests.chaos.deployments import Cluster, Deployment, Fault, Parted, Sentinels, Standalone
from tests.chaos.world import World

DEPLOYMENTS: dict[str, Callable[[bool], Deployment]] = {
    "redis": lambda long: Standalone("redis", long=long),
    "valkey": lambda long: Standalone("valkey", long=long),
    "sentinel": lambda long: Sentinels("redis", long=long),
    "cluster": lambda long: Cluster("redis", long=long),
    "parted": lambda long: Parted("redis", long=long),
    "valkey-sentinel": lambda long: Sentinels("valkey", long=long),
    "valkey-cluster": lambda long: Cluster("valkey", long=long),
}


async def run(
    name: str,
    seed: int,
    *,
    faults: Sequence[str] | None = None,
    count: int = 4,
    long: bool = False,
    history: int | None = None,
) -> str:
    """One run; what happened, in a line.

    :param history: messages kept; mostly all, unless given.
    """
    deployment = DEPLOYMENTS[name](long)
    if history is None:
        # A few only: whoever is away for a moment has missed some that are gone.
        history = 30 if long and random.Random(seed).random() < 0.3 else 100_000
    plan = deployment.plan(history=history)
    async with (
        deployment.running(),
        World.of(deployment.broker, plan=plan, seed=seed, context=f"{name}, {history} kept,") as world,
    ):
        chosen: list[Fault] = (
            [getattr(deployment, fault) for fault in faults]
            if faults is not None
            else [world.random.choice(deployment.faults) for _ in range(count)]
        )
        world.talk()
        await world.progress(20)
        for fault in chosen:
            world.record.note(fault.__name__)
            await fault(world)
            world.record.note(f"{fault.__name__} is over")
            await world.progress(20)
        record = await world.settle(deployment.heal)
        return f"{name}:{seed} {record.summary()}; {', '.join(fault.__name__ for fault in chosen)}"


@pytest.mark.parametrize(
    "name, seed, faults",
    [
        ("redis", 1, ("restarted", "listeners_killed", "entries_deleted", "read_only")),
        ("redis", 2, ("rolled_back", "links_cut", "memory_full", "flushed")),
        ("valkey", 3, ("restarted_empty", "far_away", "listeners_overflow", "comes_back")),
        ("valkey", 4, ("frozen", "cut_off", "meta_deleted", "clients_cut")),
        ("sentinel", 5, ("failed_over", "primary_killed")),
        ("parted", 7, ("cable_cut",)),
        ("cluster", 6, ("slot_moved_slowly", "primary_killed")),
    ],
)
async def test_what_breaks_heals_and_nothing_is_lost_in_silence(
    name: str, seed: int, faults: Sequence[str]
) -> None:
    assert await run(name, seed, faults=faults)


async def test_what_is_trimmed_meanwhile_is_told() -> None:
    assert await run("redis", 8, faults=("cut_off", "clients_cut", "restarted"), history=20)


@pytest.mark.soak
@pytest.mark.parametrize("name", DEPLOYMENTS)
async def test_for_twenty_minutes(name: str) -> None:
    """Each deployment gets its share of the time."""
    only, _, given = os.environ.get("RTKIT_CHAOS", "").partition(":")
    if only:
        if only == name:
            print(await run(name, int(given), long=True))  # noqa: T201 # what one wants to know
        return
    end = time.monotonic() + float(os.environ.get("RTKIT_CHAOS_MINUTES", "20")) * 60 / len(DEPLOYMENTS)
    seeds = random.SystemRandom()
    while time.monotonic() < end:
        print(await run(name, seeds.randrange(10**6), long=True))  # noqa: T201
