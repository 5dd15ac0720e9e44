"""The simulated broker keeps the promises of brokers, and breaks what it is told to break."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rtkit import BrokerUnavailable, History, NotRunning, Position, PublishUnknown, UsageError
from rtkit.testing.conformance.sinks import RecordingSink
from rtkit.testing.simulation import Simulation, simulate
from rtkit.testing.simulation.broker import BrokerServer, SimulatedBroker

KEPT = History(100, ttl=600)
ROOT = Path(__file__).parents[4]


@pytest.mark.soak
def test_it_keeps_the_promises_of_brokers() -> None:
    """In a process of its own: tests share anyio's loop, and these want a simulated one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [*command, "tests/unit/testing/simulation/kit.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "promises kept" in done.stdout


class Cluster:
    """Two brokers on two machines, subscribed to ``t``."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.server = BrokerServer(sim, sim.machine("redis"))
        self.machines = [sim.machine("a"), sim.machine("b")]
        self.brokers = [SimulatedBroker(self.server, machine) for machine in self.machines]
        self.sinks = [RecordingSink(), RecordingSink()]

    async def open(self) -> Cluster:
        for machine, broker, sink in zip(self.machines, self.brokers, self.sinks, strict=True):
            await machine.spawn(broker.open(sink))
            await machine.spawn(broker.subscribe(["t"]))
        return self

    def got(self, which: int) -> list[bytes]:
        return [found.payload for found in self.sinks[which].delivered]

    async def append(self, payload: bytes, which: int = 0) -> Position:
        return (await self.brokers[which].append("t", payload, history=KEPT)).position


def run(program: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main(sim: Simulation) -> None:
        await program(await Cluster(sim).open())

    simulate(main, seed=2)


def test_payloads_take_their_time_and_come_in_order() -> None:
    async def program(all: Cluster) -> None:
        all.sim.network.set("redis", "b", delay=(0.1, 2.0))
        for n in range(20):
            await all.append(b"%d" % n)
        assert len(all.got(1)) < 20
        await asyncio.sleep(10)
        assert all.got(0) == all.got(1) == [b"%d" % n for n in range(20)]

    run(program)


def test_away_nothing_works_and_back_everybody_is_told_and_subscribed() -> None:
    async def program(all: Cluster) -> None:
        first = await all.append(b"1")
        all.server.stop()
        with pytest.raises(BrokerUnavailable):
            await all.append(b"2")
        all.server.start()
        await asyncio.sleep(5)
        assert [sink.interruptions for sink in all.sinks] == [["t"], ["t"]]
        second = await all.append(b"3")
        await asyncio.sleep(1)
        assert all.got(1) == [b"1", b"3"]
        # Its data are all there; yet it is another life of it, which nobody vouches for.
        assert (second.offset, second.epoch == first.epoch) == (2, False)

    run(program)


def test_empty_it_begins_anew() -> None:
    async def program(all: Cluster) -> None:
        first = await all.append(b"1")
        all.server.stop()
        all.server.start(empty=True)
        await asyncio.sleep(5)
        again = await all.append(b"2")
        assert (again.offset, again.epoch == first.epoch) == (1, False)

    run(program)


def test_failing_over_it_loses_what_the_replica_had_not_got() -> None:
    async def program(all: Cluster) -> None:
        await all.append(b"1")
        snapshot = all.server.snapshot()
        lost = await all.append(b"2")
        all.server.fail_over(snapshot)
        await asyncio.sleep(5)
        other = await all.append(b"3")
        assert (lost.offset, other.offset, lost.epoch == other.epoch) == (2, 2, False)
        page = await all.brokers[1].read("t", since=lost, history=KEPT)
        assert page.lost == "rollback"
        page = await all.brokers[1].read("t", since=Position(lost.epoch, 1), history=KEPT)
        assert [entry.payload for entry in page.entries] == [b"3"]

    run(program)


def test_without_its_fence_it_gives_a_place_away_twice() -> None:
    async def program(all: Cluster) -> None:
        all.server.backend.fence = False
        snapshot = all.server.snapshot()
        lost = await all.append(b"2")
        all.server.fail_over(snapshot)
        await asyncio.sleep(5)
        found = await all.append(b"3")
        assert found.offset == lost.offset

    run(program)


def test_payloads_get_lost_on_their_way_and_stay_in_the_stream() -> None:
    async def program(all: Cluster) -> None:
        all.server.lost = 1.0
        await all.append(b"1")
        await asyncio.sleep(1)
        assert (all.got(0), all.got(1), all.server.counts["lost"]) == ([], [], 2)
        assert len((await all.brokers[0].read("t", history=KEPT)).entries) == 1

    run(program)


@pytest.mark.parametrize(("probes", "found"), [(True, True), (False, False)])
def test_a_subscription_that_hears_nothing_is_noticed_by_who_probes(probes: bool, found: bool) -> None:
    async def program(all: Cluster) -> None:
        all.brokers[1].probes = probes
        await asyncio.sleep(3)
        port = next(port for port in all.server.ports if port.client is all.brokers[1])
        port.deaf = True
        await all.append(b"1")
        await asyncio.sleep(20)
        assert bool(all.sinks[1].interruptions) is found
        await all.append(b"2")
        await asyncio.sleep(1)
        assert all.got(1) == ([b"2"] if found else [])

    run(program)


def test_a_partition_from_one_node_leaves_the_other_alone() -> None:
    async def program(all: Cluster) -> None:
        all.sim.network.partition(("redis",), ("a",))
        with pytest.raises(PublishUnknown):
            await all.append(b"1", 0)
        await all.append(b"2", 1)
        await asyncio.sleep(30)
        with pytest.raises(BrokerUnavailable):
            await all.append(b"3", 0)
        all.sim.network.heal()
        await asyncio.sleep(5)
        await all.append(b"4", 0)
        await asyncio.sleep(1)
        assert all.got(1) == [b"2", b"4"]

    run(program)


def test_an_answer_that_is_lost_leaves_it_unknown_and_done() -> None:
    async def program(all: Cluster) -> None:
        all.sim.network.set("redis", "a", delay=(0.5, 0.5))
        call = asyncio.ensure_future(all.append(b"1", 0))
        await asyncio.sleep(0.7)
        all.sim.network.partition(("redis",), ("a",))
        with pytest.raises(PublishUnknown):
            await call
        page = await all.brokers[1].read("t", history=KEPT)
        assert [entry.payload for entry in page.entries] == [b"1"]

    run(program)


def test_what_a_frozen_hub_was_sent_waits_and_of_one_that_crashed_nothing_is_left() -> None:
    async def program(all: Cluster) -> None:
        all.machines[1].freeze()
        await all.append(b"1")
        await all.append(b"2")
        await asyncio.sleep(1)
        assert all.got(1) == []
        all.machines[1].thaw()
        await asyncio.sleep(1)
        assert all.got(1) == [b"1", b"2"]
        all.machines[1].crash()
        assert len(all.server.ports) == 1
        assert repr(all.server) == "<BrokerServer up, 1 clients>"

    run(program)


def test_it_opens_once_and_closed_it_does_nothing() -> None:
    async def program(all: Cluster) -> None:
        broker = all.brokers[0]
        with pytest.raises(UsageError, match="open already"):
            await broker.open(RecordingSink())
        await broker.aclose()
        await broker.aclose()
        with pytest.raises(NotRunning):
            await all.append(b"1")
        assert len(all.server.ports) == 1
        assert "closed" in repr(broker)

    run(program)
