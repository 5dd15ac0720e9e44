"""A4: who was revoked or banned stays out, on all nodes, whatever was lost, and whatever the clocks say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import BrokerUnavailable, Grant, History, Hub
from rtkit.hub.revocations import KEY, TOPIC
from rtkit.testing.clock import ManualClock
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World
from tests.unit.hub.test_control_nodes import faulty, node, result


async def refused(world: World, hub: Hub[Any], user: str = "ann") -> RawClient:
    client = world.client(hub, rt=True)
    error = await client.refused("connect", token=user, rt={})
    assert (error["code"], error["message"]) == (101, "revoked")
    assert client.close_code == 3500
    return client


async def revoke(world: World, hub: Hub[Any], seconds: float, user: str = "ann") -> None:
    await result(world, hub.user(user).revoke(world.clock.time() + seconds))


def known(hub: Hub[Any]) -> int:
    return len(hub.engine.revocations)


def wrong(world: World, off: float) -> Hub[Any]:
    """A node that is wrong about what time it is."""
    hub = node(world)
    hub.clock = WrongClock(world.clock, off)
    return hub


class WrongClock:
    """So many seconds fast."""

    def __init__(self, right: ManualClock, off: float) -> None:
        self._right = right
        self._off = off

    def monotonic(self) -> float:
        return self._right.monotonic()

    def time(self) -> float:
        return self._right.time() + self._off

    def boottime(self) -> float:
        return self._right.boottime()

    def call_at(self, *args: Any, **options: Any) -> Any:
        return self._right.call_at(*args, **options)


# -- at the start, and after a loss -------------------------------------------------------------------


async def test_a_node_knows_all_that_is_in_force_before_it_lets_anybody_in(world: World) -> None:
    one = node(world)
    await one.start()
    await revoke(world, one, 100)
    await one.room("r:a").remove("bob", reason="x", ban=100)
    two = node(world)
    await two.start()
    assert known(two) == 2
    await refused(world, two)
    bob = await world.join(two, "bob")
    assert (await bob.refused("subscribe", channel="r:a"))["message"] == "banned from this room"
    await bob.call("subscribe", channel="r:b")


async def test_all_nodes_may_have_been_down_meanwhile(world: World) -> None:
    one = node(world)
    await one.start()
    await revoke(world, one, 1000)
    await one.aclose()
    await world.advance(500, step=20)
    two = node(world)
    await two.start()
    await refused(world, two)


async def test_a_hub_that_cannot_read_them_does_not_start(world: World) -> None:
    hub, broker = faulty(world)
    broker.failing = {"revision"}
    with pytest.raises(BrokerUnavailable):
        await hub.start()
    assert not hub.running
    assert world.backend.statistics().topics == 0
    broker.failing = set()
    await hub.start()


async def test_a_change_while_a_node_starts_is_not_missed(world: World) -> None:
    """It is subscribed before it reads."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    gate = broker.hold("revision")
    starting = asyncio.ensure_future(two.start())
    await world.settle()
    await revoke(world, one, 100)
    assert not starting.done()
    gate.set()
    await world.settle()
    assert starting.done() and known(two) == 1
    await refused(world, two)


async def test_a_lost_notice_is_noticed_by_the_next(world: World) -> None:
    """H4: by the count. The request to all is lost here, too."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    ann = await world.join(two, "ann")
    broker.deaf = True
    await revoke(world, one, 100)
    assert ann.closed is None
    broker.deaf = {"\0control", two.engine.relay.topic}
    await revoke(world, one, 100, "bob")
    assert ann.closed == (4501, "revoked")


async def test_an_interruption_makes_a_node_read(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    ann = await world.join(two, "ann", "r:a")
    broker.deaf = True
    asking = asyncio.ensure_future(one.room("r:a").remove("ann", reason="x", ban=100))
    await world.settle()
    broker.deaf = False
    broker.interrupt(TOPIC)
    await ann.settle()
    assert ann.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "x"}]
    await result(world, asking)


async def test_a_node_that_was_cut_off_closes_them_when_the_broker_is_back(world: World) -> None:
    """B4: longer than the lease; no restart is needed."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    ann = await world.join(two, "ann")
    broker.down = broker.deaf = True
    await world.advance(30)
    await revoke(world, one, 1000)
    await world.advance(100)
    assert ann.closed is None, "nobody could tell it"
    broker.down = broker.deaf = False
    broker.interrupt(TOPIC)
    await ann.settle()
    assert ann.closed == (4501, "revoked")


async def test_reading_goes_on_until_the_broker_answers(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    ann = await world.join(two, "ann")
    broker.deaf, broker.failing = True, {"revision"}
    await revoke(world, one, 1000)
    broker.interrupt(TOPIC)
    await world.advance(5)
    assert ann.closed is None
    broker.failing = set()
    await world.advance(2)
    assert ann.closed == (4501, "revoked")


async def test_nobody_is_let_in_on_old_knowledge(world: World) -> None:
    """B4: whether somebody was revoked meanwhile, a node that is cut off cannot know."""
    hub, broker = faulty(world)
    ann = await world.join(hub, "ann")
    broker.failing = {"positions"}
    client = world.client(hub, rt=True)
    error = await client.refused("connect", token="bob", rt={})
    assert (error["code"], error["temporary"]) == (100, True)
    assert client.closed == (4001, "try again later")
    assert (await ann.refused("subscribe", channel="r:a"))["temporary"] is True
    broker.failing = set()
    await ann.call("subscribe", channel="r:a")


async def test_who_was_authenticated_just_before_does_not_slip_in(world: World) -> None:
    """Between two lines: it was looked up, and waits for its session to be taken up."""
    broker = FaultyBroker(world.backend)
    one, two = world.hub(parks=True), world.hub(broker=broker, parks=True)
    await one.start()
    await two.start()
    ann = world.client(two, rt=True)
    told = await ann.connect("ann")
    await ann.drop()
    gate = broker.hold("entries")
    ann = world.client(two, rt=True)
    ann.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await ann.settle()
    assert (await one.user("ann").revoke(world.clock.time() + 100)).complete
    assert ann.closed is None
    gate.set()
    await ann.settle()
    assert ann.closed == (4501, "revoked")
    assert two.statistics().sessions == 0


# -- how long -----------------------------------------------------------------------------------------


async def test_a_revocation_ends_by_itself_and_nothing_of_it_remains(world: World) -> None:
    one, two = node(world), node(world)
    await two.start()
    await one.start()
    await revoke(world, one, 60)
    await one.room("r:a").remove("ann", reason="x", ban=50)
    await world.advance(59)
    await refused(world, two)
    await world.advance(1.5)
    await world.join(two, "ann", "r:a")
    await world.advance(60)
    assert known(one) == known(two) == 0
    assert list(world.backend.entries(KEY)) == [""]
    assert world.backend.position(KEY).offset == 2, "the count is not forgotten"


async def test_the_last_word_counts(world: World) -> None:
    """Longer, shorter, and lifted: by a time that is over."""
    one, two = node(world), node(world)
    await two.start()
    await one.start()
    await revoke(world, one, 1000)
    await revoke(world, two, 20)
    await world.advance(21)
    ann = await world.join(one, "ann")
    await revoke(world, one, 1000)
    assert ann.closed is not None
    await refused(world, two)
    await revoke(world, two, -1)
    again = await world.join(one, "ann")
    await world.settle()
    assert again.closed is None
    assert known(one) == known(two) == 0


async def test_to_lift_closes_once_however_often_it_is_heard(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    await two.start()
    broker.deaf = {"\0control"}
    lifting = asyncio.ensure_future(one.user("ann").revoke(0))
    await world.settle()
    ann = await world.join(two, "ann")
    await world.advance(3)
    assert lifting.done() and lifting.result().complete
    assert ann.closed is None


@pytest.mark.parametrize("off", [-7200.0, 7200.0])
async def test_a_node_whose_clock_is_wrong_keeps_to_the_time_all_the_same(world: World, off: float) -> None:
    """Two hours slow, and two hours fast: it is the broker that counts."""
    one, two = node(world), wrong(world, off)
    await one.start()
    await revoke(world, one, 600)
    await two.start()
    three = wrong(world, off)
    await three.start()
    await world.advance(595, step=5)
    for hub in (two, three):
        await refused(world, hub)
    await world.advance(6)
    for hub in (one, two, three):
        assert (await world.join(hub, "ann")).closed is None


async def test_a_node_whose_clock_is_wrong_revokes_for_as_long_as_it_means(world: World) -> None:
    one, two = node(world), wrong(world, 7200)
    await one.start()
    await two.start()
    await two.user("ann").revoke(two.clock.time() + 60)
    await world.advance(58)
    await refused(world, one)
    await world.advance(3)
    await world.join(one, "ann")


@pytest.mark.parametrize("until", [float("inf"), float("nan"), float("-inf")])
async def test_for_ever_is_no_time(world: World, until: float) -> None:
    hub = node(world)
    await hub.start()
    with pytest.raises(ValueError, match="seconds since the Unix epoch"):
        await hub.user("ann").revoke(until)
    await hub.user("ann").revoke(4e9 * 1000)  # milliseconds, by mistake: long enough
    await refused(world, hub)
    with pytest.raises(ValueError, match="ban= is seconds"):
        await hub.room("r:a").remove("ann", reason="x", ban=-1)


# -- what the broker loses ----------------------------------------------------------------------------


async def test_what_the_broker_has_lost_is_written_back(world: World) -> None:
    """A failover that came back empty does not let a revoked user in, as long as one node remembers."""
    one, two = node(world), node(world)
    await two.start()
    await one.start()
    await revoke(world, one, 1000)
    await one.room("r:a").remove("bob", reason="x", ban=1000)
    del world.backend._state[KEY]
    await refused(world, two)
    await world.advance(40)
    assert set(world.backend.entries(KEY)) == {"ann\n", "bob\nr:a"}
    three = node(world)
    await three.start()
    await refused(world, three)
    await world.advance(960)
    await world.join(three, "ann")


async def test_what_is_lost_while_the_broker_fails_is_written_back_later(world: World) -> None:
    hub, broker = faulty(world)
    await hub.start()
    await revoke(world, hub, 1000)
    del world.backend._state[KEY]
    broker.failing = {"revise"}
    await world.advance(70)
    assert world.backend.entries(KEY) == {}
    await refused(world, hub)
    broker.failing = set()
    await world.advance(40)
    assert set(world.backend.entries(KEY)) == {"ann\n"}


async def test_what_was_lifted_is_not_brought_back(world: World) -> None:
    """By a node that did not hear of it: the count goes on."""
    one, (two, broker) = node(world), faulty(world)
    await two.start()
    await one.start()
    await revoke(world, one, 1000)
    broker.deaf = True
    await revoke(world, one, -1)
    assert known(two) == 1
    await world.advance(70)
    assert known(two) == known(one) == 0


async def test_what_was_lifted_is_not_taken_for_lost(world: World) -> None:
    """By a node that stood still while the broker failed over, and it was lifted; found by simulation."""
    one, (two, broker) = node(world), faulty(world)
    await two.start()
    await one.start()
    await revoke(world, one, 1000)
    assert known(two) == 1
    broker.down = broker.deaf = True
    world.backend._state[KEY].epoch = "another"  # what it held is there
    await result(world, one.user("ann").revoke(0.0))
    broker.down = broker.deaf = False
    await world.advance(70)
    assert known(one) == known(two) == 0
    await world.join(two, "ann")
    await world.advance(1000)
    assert set(world.backend.entries(KEY)) == {""}, "what was lifted is said until it would have ended"


async def test_lifting_what_is_none_leaves_nothing(world: World) -> None:
    """As who closes all connections of a user so, a hundred thousand times a day."""
    hub = node(world)
    await hub.start()
    await revoke(world, hub, -1)
    assert set(world.backend.entries(KEY)) == {""}


# -- what it costs, and what is odd -------------------------------------------------------------------


async def test_those_who_come_together_share_a_look(world: World) -> None:
    """F2: a storm of reconnections asks the broker a few times, and reads nothing."""
    hub, broker = faulty(world)
    await hub.start()
    await revoke(world, hub, 1000, "eve")
    del broker.calls[:]
    gate = broker.hold("positions")
    clients = [world.client(hub, rt=True) for _ in range(500)]
    for n, client in enumerate(clients):
        client.ask("connect", token=f"user{n}")
    await world.settle()
    gate.set()
    for client in clients:
        await client.settle()
        assert "connect" in client.reply(1)
    assert broker.calls.count("positions") <= 2
    assert not {"entries", "revision"} & set(broker.calls)


async def test_a_look_that_began_before_says_nothing_to_who_comes_later(world: World) -> None:
    """Revoked while the first look is on its way back: the second has to look for itself."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    await two.start()
    broker.deaf = True
    answers: list[Any] = []
    positions, hold = broker.positions, asyncio.Event()

    async def slowly(keys: Any) -> Any:
        answers.append(await positions(keys))
        if len(answers) == 1:
            await hold.wait()
        return answers[-1]

    broker.positions = slowly  # type: ignore[method-assign]
    bob = world.client(two, rt=True)
    bob.ask("connect", token="bob")
    await bob.settle()
    assert len(answers) == 1
    await revoke(world, one, 1000)
    ann = world.client(two, rt=True)
    ann.ask("connect", token="ann", rt={})
    await ann.settle()
    hold.set()
    await bob.settle()
    await ann.settle()
    assert "connect" in bob.reply(1)
    assert ann.reply(1)["error"]["code"] == 101


async def test_who_stops_waiting_for_a_look_does_not_stop_the_others(world: World) -> None:
    hub, broker = faulty(world)
    await hub.start()
    gate = broker.hold("positions")
    first = asyncio.ensure_future(hub.engine.revocations.find("ann"))
    second = asyncio.ensure_future(hub.engine.revocations.find("bob"))
    await world.settle()
    first.cancel()
    await world.settle()
    gate.set()
    await world.settle()
    assert first.cancelled() and second.result() is False


async def test_foreign_bytes_among_them_harm_nothing(world: World, errors: Any) -> None:
    """W5: what cannot be read keeps out whom it is about, and nobody else."""
    one = node(world)
    await one.start()
    for payload in (b"", b"\xff", b"{}", b'{"v":1}', b'{"v":99,"id":"x","user":"ann"}', b"[" * 5000):
        await one.engine.broker.publish(TOPIC, payload)
        world.backend.publish(TOPIC, payload, world.backend.position(KEY))
    backend = world.backend
    backend.revise(KEY, {"ann\n": b"nonsense"}, 100, {}, TOPIC, b"nonsense")
    backend.revise(KEY, {"bob\n": b'{"v":99}'}, 100, {}, TOPIC, b'{"v":99}')
    await world.settle()
    two = node(world)
    await two.start()
    for hub in (one, two):
        await refused(world, hub, "ann")
        await refused(world, hub, "bob")
        await world.join(hub, "eve")
    assert errors()
    await world.advance(120)
    for hub in (one, two):
        await world.join(hub, "ann")


async def test_users_and_rooms_are_told_apart(world: World) -> None:
    """No name of one can look like another's."""
    hub = world.hub()
    hub.rooms("{x}", publishes=object, grant=Grant(), history=History(5, ttl=60))
    await hub.start()
    await hub.room("b").remove("a", reason="x", ban=100)
    await hub.room("x").remove("a:b", reason="x", ban=100)
    ab = await world.join(hub, "a:b", "b")
    a = await world.join(hub, "a", "x")
    assert (await ab.refused("subscribe", channel="x"))["code"] == 103
    assert (await a.refused("subscribe", channel="b"))["code"] == 103


async def test_revoking_many_users_at_once_from_many_nodes(world: World) -> None:
    """The count is one for all; whoever is first, all are out."""
    hubs = [node(world) for _ in range(3)]
    for hub in hubs:
        await hub.start()
    clients = [await world.join(hubs[n % 3], f"user{n}") for n in range(30)]
    until = world.clock.time() + 100
    found = await asyncio.gather(*(hubs[n % 2].user(f"user{n}").revoke(until) for n in range(30)))
    assert [each.sessions for each in found] == [1] * 30
    for client in clients:
        assert client.close_code == 4501
    assert [known(hub) for hub in hubs] == [30] * 3
    assert len({hub.engine.revocations._at for hub in hubs}) == 1
