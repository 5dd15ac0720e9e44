"""The lease of a node (P3): one for all that it holds, and what a missing one proves."""

from __future__ import annotations

from typing import Any

import pytest

from rtkit import BrokerUnavailable, Grant, Hub
from rtkit.hub.lease import LEASE, NODES, Announced, NodeLease
from rtkit.hub.versions import Range
from rtkit.wire.envelope import OLDEST, VERSION
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World


async def started(world: World, broker: Any = None) -> Hub[Any]:
    hub = world.hub(broker=broker)
    hub.rooms("chat:{x}", publishes=object, grant=Grant())
    await hub.start()
    return hub


def stored(world: World) -> dict[str, bytes]:
    return world.backend.entries(NODES)


def lease_of(hub: Hub[Any]) -> dict[str, bytes]:
    """As it lies in the broker: the incarnation, and what is read (W5)."""
    return {hub.node_id: f"{hub.engine.lease.incarnation} {OLDEST}-{VERSION}".encode()}


async def test_a_hub_holds_its_lease_from_the_start_with_one_task(world: World) -> None:
    """Before anybody is let in: who asks all nodes (A4), or writes for all (W5), has to know of it."""
    hub = await started(world)
    assert hub.engine.lease.held
    assert stored(world) == lease_of(hub)
    tasks = hub.statistics().tasks
    await hub.engine.lease.hold()
    assert hub.statistics().tasks == tasks == 2, "the lease, and comparing tops"


async def test_a_hub_that_cannot_be_announced_does_not_start(world: World) -> None:
    broker = FaultyBroker(world.backend)
    broker.failing = {"put"}
    with pytest.raises(BrokerUnavailable, match="could not be announced"):
        await started(world, broker)
    broker.failing = set()
    await world.hubs[0].start()
    assert stored(world) == lease_of(world.hubs[0])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"ab12 1-2", Announced("ab12", Range(1, 2))),
        (b"ab12 3-4 and more to come", Announced("ab12", Range(3, 4))),
        (b"ab12", Announced("ab12", Range(1, 1))),
        (b"ab12 x-y", Announced("ab12", Range(1, 1))),
        (b"ab12 1-" + b"9" * 5000, Announced("ab12", Range(1, 1))),
        (b"\xff\xfe", Announced("\ufffd\ufffd", Range(1, 1))),
        (b"", Announced("", Range(1, 1))),
    ],
)
def test_what_a_lease_says(value: bytes, found: Announced) -> None:
    """W5: of a release to come what is understood; nonsense is the oldest."""
    assert Announced.decode(value) == found


async def test_whether_a_node_holds_a_lease_is_never_denied_from_memory(world: World) -> None:
    broker = FaultyBroker(world.backend)
    one = await started(world, broker)
    assert await one.engine.lease.holders() == {one.node_id}
    two = await started(world)
    before = broker.calls.count("entries")
    assert await one.engine.lease.holds(two.node_id) is True
    assert await one.engine.lease.holds(two.node_id) is True
    assert broker.calls.count("entries") == before + 1
    gate = broker.hold("entries")
    asking = [one.engine.task(one.engine.lease.holds, "nobody") for _ in range(100)]
    await world.settle()
    gate.set()
    await world.settle()
    assert [each.result() for each in asking] == [False] * 100
    assert broker.calls.count("entries") <= before + 3, "those who ask together share a look"
    await world.advance(2)
    broker.down = True
    assert await one.engine.lease.holds("nobody") is None


async def test_the_lease_is_renewed_and_ends_with_the_run(world: World) -> None:
    hub = await started(world)
    await hub.engine.lease.hold()
    first = hub.engine.lease.incarnation
    await world.advance(120)
    assert hub.engine.lease.held
    assert stored(world) == lease_of(hub)
    assert hub.engine.lease.incarnation == first
    await hub.aclose()
    assert stored(world) == {}


async def test_holders_are_all_nodes_that_hold_and_are_read_once_a_second(world: World) -> None:
    broker = FaultyBroker(world.backend)
    one = await started(world, broker)
    assert await one.engine.lease.holders() == {one.node_id}
    two = await started(world)
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
    await hub.engine.lease.release()
    hub.engine.lease = NodeLease(hub.engine)
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
    assert stored(world) == lease_of(hub)


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
