"""The lease of a node (P3): one for all that it holds, and what a missing one proves."""

from __future__ import annotations

from typing import Any

from rtkit import Grant, Hub
from rtkit.hub.lease import LEASE, NODES
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World


async def started(world: World, broker: Any = None) -> Hub[Any]:
    hub = world.hub(broker=broker)
    hub.rooms("chat:{x}", publishes=object, grant=Grant())
    await hub.start()
    return hub


def stored(world: World) -> dict[str, bytes]:
    return world.backend.entries(NODES)


async def test_an_idle_hub_holds_no_lease_and_has_no_task_for_one(world: World) -> None:
    hub = await started(world)
    tasks = hub.statistics().tasks
    assert not hub.engine.lease.held
    assert stored(world) == {}
    await hub.engine.lease.hold()
    await hub.engine.lease.hold()
    assert hub.statistics().tasks == tasks + 1
    assert hub.engine.lease.held
    assert stored(world) == {hub.node_id: hub.engine.lease.incarnation.encode()}


async def test_the_lease_is_renewed_and_ends_with_the_run(world: World) -> None:
    hub = await started(world)
    await hub.engine.lease.hold()
    first = hub.engine.lease.incarnation
    await world.advance(120)
    assert hub.engine.lease.held
    assert stored(world) == {hub.node_id: first.encode()}
    await hub.aclose()
    assert stored(world) == {}


async def test_holders_are_all_nodes_that_hold_and_are_read_once_a_second(world: World) -> None:
    broker = FaultyBroker(world.backend)
    one, two = await started(world, broker), await started(world)
    await one.engine.lease.hold()
    assert await one.engine.lease.holders() == {one.node_id}
    await two.engine.lease.hold()
    before = broker.calls.count("entries")
    assert await one.engine.lease.holders() == {one.node_id}  # as of a moment ago
    assert broker.calls.count("entries") == before
    await world.clock.advance(1.0)
    assert await one.engine.lease.holders() == {one.node_id, two.node_id}
    await two.aclose()
    assert await one.engine.lease.incarnations(fresh=True) == {one.node_id: one.engine.lease.incarnation}


async def test_a_broker_that_keeps_no_state_has_no_leases(world: World) -> None:
    hub = await started(world, PlainBroker())
    tasks = hub.statistics().tasks
    await hub.engine.lease.hold()
    assert hub.statistics().tasks == tasks
    assert not hub.engine.lease.held and not hub.engine.lease.may_reap
    assert await hub.engine.lease.holders() is None


async def test_a_lease_is_held_as_soon_as_the_broker_is_there(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    broker.down = True
    await hub.engine.lease.hold()  # it does not fail, and goes on trying
    await hub.engine.lease.hold()
    assert not hub.engine.lease.held
    assert await hub.engine.lease.holders() is None
    await world.advance(5)
    broker.down = False
    await world.advance(1)
    assert hub.engine.lease.held
    assert await hub.engine.lease.holders() == {hub.node_id}


async def test_a_lease_is_not_held_a_moment_longer_than_the_broker_may_think_so(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    await hub.engine.lease.hold()
    broker.down = True
    await world.advance(LEASE, step=LEASE)
    assert not hub.engine.lease.held
    assert stored(world) == {}


async def test_a_lost_lease_is_held_again_by_another_incarnation(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    lease, told = hub.engine.lease, []
    lease.on_lost.append(lambda: told.append(lease.incarnation))
    await lease.hold()
    first = lease.incarnation
    broker.down = True
    await world.advance(LEASE + 1)
    assert told == []
    broker.down = False
    await world.advance(2)
    assert lease.held
    assert lease.incarnation != first
    assert told == [lease.incarnation]
    assert stored(world) == {hub.node_id: lease.incarnation.encode()}


async def test_who_has_to_know_is_told_even_if_the_broker_went_away_again_at_once(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    lease, told = hub.engine.lease, []
    lease.on_lost.append(lambda: told.append(lease.incarnation))
    await lease.hold()
    world.backend.remove(NODES, hub.node_id, None)
    broker.failing = {"put"}
    await world.advance(4)
    assert told == [] and not lease.held
    broker.failing = set()
    await world.advance(2)
    assert told == [lease.incarnation]


async def test_an_outage_shorter_than_the_lease_is_not_noticed(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    await hub.engine.lease.hold()
    first = hub.engine.lease.incarnation
    broker.down = True
    await world.advance(5)
    broker.down = False
    await world.advance(5)
    assert hub.engine.lease.incarnation == first
    assert hub.engine.lease.held


async def test_a_missing_lease_proves_nothing_before_the_broker_was_there_for_a_full_one(
    world: World,
) -> None:
    """P3: after an outage all leases are missing, and none of the nodes is dead."""
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    lease = hub.engine.lease
    await lease.hold()
    assert not lease.may_reap
    await world.advance(LEASE - 1)
    assert not lease.may_reap
    await world.advance(1)
    assert lease.may_reap
    broker.down = True
    await world.advance(4)
    assert not lease.may_reap
    broker.down = False
    await world.advance(LEASE - 1)
    assert not lease.may_reap
    await world.advance(3)
    assert lease.may_reap


async def test_what_the_broker_has_forgotten_proves_nothing_either(world: World) -> None:
    """A broker that comes back empty was never unreachable."""
    hub = await started(world)
    lease = hub.engine.lease
    await lease.hold()
    await world.advance(LEASE)
    assert lease.may_reap
    world.backend.remove(NODES, hub.node_id, None)
    await world.advance(4)
    assert lease.held
    assert not lease.may_reap


async def test_a_broker_that_does_not_answer_is_as_good_as_away(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    await hub.engine.lease.hold()
    await world.advance(LEASE)
    gate = broker.hold("entries")
    asking = hub.engine.task(hub.engine.lease.incarnations)
    await world.advance(4)
    assert asking.done() and asking.result() is None
    assert not hub.engine.lease.may_reap
    gate.set()


async def test_a_released_lease_is_not_taken_again(world: World) -> None:
    hub = await started(world)
    await hub.engine.lease.hold()
    await hub.engine.lease.release()
    await hub.engine.lease.release()
    await hub.engine.lease.hold()
    await world.advance(20)
    assert stored(world) == {}
    assert not hub.engine.lease.held


async def test_to_end_does_not_wait_long_for_a_broker_that_is_away(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = await started(world, broker)
    await hub.engine.lease.hold()
    broker.down = True
    await hub.aclose()
    assert not hub.running
