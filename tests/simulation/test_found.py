"""What the simulation has found in the code, each as small as it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Identity, Limits, Presence
from rtkit.testing.simulation import BrokerServer, SimulatedBroker, Simulation, simulate


async def authenticate(credentials: Any) -> Identity[None]:
    return Identity(credentials.token)


async def boot(sim: Simulation, server: BrokerServer, name: str) -> Hub[None]:
    node = sim.machine(name)
    hub: Hub[None] = Hub(
        authenticate=authenticate,
        clock=node.clock,
        broker=SimulatedBroker(server, node),
        limits=Limits(position_check=10.0),
    )
    every = Grant("publish", "presence")
    hub.rooms("log", publishes=object, grant=every, history=History(100, ttl=600), presence=Presence())
    await sim.serve(hub, node)
    return hub


async def users(hub: Hub[None]) -> list[str]:
    return sorted(member.user for member in await hub.room("log").presence())


async def stay(sim: Simulation, name: str, node: str, seconds: float) -> None:
    """Somebody is in the room for a while."""
    client = sim.connect(sim.machine(name), f"http://{node}:8000/rt", token=name)
    async with client, client.join("log"):
        await sim.sleep(seconds)


@pytest.mark.parametrize("comes", [True, False])
def test_presence_is_the_truth_again_after_a_failover_that_lost_writes(comes: bool) -> None:
    """Who came, or left, between the snapshot and the failover (seeds 1023, 1030 and 1058)."""

    async def program(sim: Simulation) -> Sequence[Any]:
        server = BrokerServer(sim, sim.machine("broker"))
        one, two = await boot(sim, server, "one"), await boot(sim, server, "two")

        sim.machine("ann").spawn(stay(sim, "ann", "one", 1000))
        if comes:
            await sim.sleep(5)
            snapshot = server.snapshot()
            sim.machine("bob").spawn(stay(sim, "bob", "one", 1000))
        else:
            sim.machine("bob").spawn(stay(sim, "bob", "one", 7))
            await sim.sleep(5)
            snapshot = server.snapshot()
        await sim.sleep(5)
        server.fail_over(snapshot)
        await sim.sleep(300)
        return await users(one), await users(two)

    there = ["ann", "bob"] if comes else ["ann"]
    assert simulate(program, seed=1) == (there, there)


async def left_before_a_failover(sim: Simulation) -> tuple[Hub[None], Hub[None]]:
    """Ann was the last in the room on her node, and is back with what the broker has failed over to; Bob is on the
    other."""
    server = BrokerServer(sim, sim.machine("broker"))
    one, two = await boot(sim, server, "one"), await boot(sim, server, "two")
    sim.machine("ann").spawn(stay(sim, "ann", "one", 6))
    sim.machine("bob").spawn(stay(sim, "bob", "two", 1000))
    await sim.sleep(5)
    snapshot = server.snapshot()
    await sim.sleep(5)
    server.fail_over(snapshot)
    return one, two


def test_who_left_as_the_last_of_its_node_does_not_come_back_with_a_failover() -> None:
    """Of such a room the node knows nothing any more that could tell it (seed 1300030)."""

    async def program(sim: Simulation) -> Sequence[Any]:
        one, two = await left_before_a_failover(sim)
        await sim.sleep(1)
        # The node begins the room anew, and sees no difference.
        sim.machine("cyd").spawn(stay(sim, "cyd", "one", 1000))
        await sim.sleep(300)
        return await users(one), await users(two)

    assert simulate(program, seed=1) == (["bob", "cyd"], ["bob", "cyd"])


def test_who_looks_in_after_a_failover_does_not_take_the_room_out_of_the_index() -> None:
    """It was begun anew, and empty again before anybody had looked what lies there (seed 2001523)."""

    async def program(sim: Simulation) -> Sequence[Any]:
        one, two = await left_before_a_failover(sim)
        sim.machine("cyd").spawn(stay(sim, "cyd", "one", 1))
        await sim.sleep(300)
        return await users(one), await users(two)

    assert simulate(program, seed=1) == (["bob"], ["bob"])


def test_a_node_that_ends_right_after_a_failover_leaves_nobody_behind() -> None:
    """Who left before it, and is back with it, is for others to take away (seed 2300163)."""

    async def program(sim: Simulation) -> Sequence[Any]:
        server = BrokerServer(sim, sim.machine("broker"))
        await boot(sim, server, "one")
        two = await boot(sim, server, "two")

        sim.machine("ann").spawn(stay(sim, "ann", "one", 6))
        sim.machine("bob").spawn(stay(sim, "bob", "two", 1000))
        await sim.sleep(5)
        snapshot = server.snapshot()
        await sim.sleep(3)
        server.fail_over(snapshot)
        await sim.sleep(2)
        await sim.stop(sim.machine("one"))
        await sim.sleep(60)
        return await users(two)

    assert simulate(program, seed=1) == ["bob"]


def test_a_poll_at_another_node_while_the_broker_is_away_is_told_to_come_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was answered 500, and logged as an error twice (seeds 1005 and 1021)."""

    async def program(sim: Simulation) -> None:
        server = BrokerServer(sim, sim.machine("broker"))
        for name in ("one", "two", "three"):
            await boot(sim, server, name)
        sim.network.balance("cluster", "one", "two", "three")

        async def listen() -> None:
            client = sim.connect(
                sim.machine("ann"), "http://cluster:8000/rt", token="ann", transports=("poll",)
            )
            async with client, client.join("log") as room:
                async for _ in room:
                    pass

        sim.machine("ann").spawn(listen())
        await sim.sleep(5)
        server.stop()
        for _ in range(10):
            await sim.sleep(0.7)
            for name in ("one", "two", "three"):
                sim.network.cut("ann", name)  # the next poll goes to any node
        server.reappear()
        await sim.sleep(60)

    for seed in range(3):
        simulate(program, seed=seed)
    assert "failed" not in caplog.text
    assert "a poll could not be passed on" in caplog.text
