"""What a hub says of itself is what happened (M1)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Limits
from rtkit.brokers.base import Conflict
from rtkit.errors import BrokerUnavailable, UsageError
from rtkit.hub.underway import _GONE, _MOST, Underway
from rtkit.testing.clock import ManualClock
from rtkit.transports import Handshake, Refused
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World


def chat(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    grant = Grant("publish", "history")
    hub.rooms("r", publishes=object, grant=grant)
    hub.rooms("h", publishes=object, grant=grant, history=History(100, ttl=60))
    return hub


# -- what goes in and out -----------------------------------------------------------------------------


async def test_bytes_and_units_are_those_of_the_pipes(world: World) -> None:
    """In both forms of a message, at once and through outboxes, replies and pings included."""
    hub = chat(world)
    clients = [await world.join(hub, f"u{n}", "r", "h", rt=bool(n % 2)) for n in range(4)]
    said = 0
    for client in clients:
        frame = b'{"id":90,"publish":{"channel":"h","data":{"n":1}}}\n{"id":91,"ping":{}}'
        client.say(frame)
        said += len(frame)
    before = hub.statistics().counted
    await hub.publish("r", {"x": "y" * 1000})
    await world.settle()  # alone in its turn, it goes past the outboxes
    clients[0].pipe.choke()
    await hub.publish("h", {"x": "z" * 1000})
    await world.settle()
    clients[0].pipe.drain()
    await world.advance(40)
    counted = hub.statistics().counted
    frames = [frame for client in clients for frame in client.pipe.frames]
    assert counted.units_sent == sum(frame.count(b"\n") + 1 for frame in frames)
    assert counted.sent_bytes == sum(len(unit) for frame in frames for unit in frame.split(b"\n"))
    assert counted.deliveries == 4 * 6
    assert before.received_bytes > said
    assert before.units_received == sum(client.last_id for client in clients) + 2 * len(clients)
    assert counted.units_received - before.units_received == sum(client.pings for client in clients) > 0
    assert counted.received_bytes - before.received_bytes == 2 * sum(client.pings for client in clients)


async def test_what_leaves_with_a_goodbye_counts(world: World) -> None:
    hub = chat(world)
    client = await world.join(hub, "ann")
    client.ask("ping")
    await world.settle()
    client.driver.control(b'{"id":99}')  # type: ignore[attr-defined]
    await hub.user("ann").close(reason="off")
    await world.settle()
    frames = client.pipe.frames
    assert b'{"id":99}' in frames[-1]
    assert hub.statistics().counted.units_sent == sum(frame.count(b"\n") + 1 for frame in frames)
    assert hub.statistics().counted.closes == {"3503": 1}


async def test_large_units_count_by_the_piece(world: World) -> None:
    hub = chat(world)
    client = await world.join(hub, "ann", "r")
    await hub.publish("r", {"x": "y" * 300_000})
    await world.settle()
    frames = client.pipe.frames
    counted = hub.statistics().counted
    assert client.data_of("r") == [{"x": "y" * 300_000}]
    assert counted.units_sent == sum(frame.count(b"\n") + 1 for frame in frames)
    assert counted.sent_bytes == sum(len(unit) for frame in frames for unit in frame.split(b"\n"))


async def test_commands_are_told_apart(world: World) -> None:
    hub = chat(world)
    client = await world.join(hub, "ann", "r")
    await client.call("ping")
    await client.call("publish", channel="r", data=1)
    await client.refused("publish", channel="nowhere", data=1)
    await client.refused("nonsense")
    await client.call("refresh", token="ann")
    client.tell({"send": {"data": 1}})
    await client.leave()
    assert hub.statistics().counted.commands == {
        "connect": 1,
        "subscribe": 1,
        "ping": 1,
        "publish": 2,
        "refresh": 1,
        "send": 1,
        "bye": 1,
    }


async def test_refused_handshakes_are_counted(world: World) -> None:
    hub = chat(world)
    await hub.start()
    foreign = Handshake(headers=(("host", "a.example"), ("origin", "https://b.example")))
    with pytest.raises(Refused):
        hub.admit(foreign)
    hub.admit(Handshake())
    await hub.drain()
    for _ in range(2):
        with pytest.raises(Refused):
            hub.admit(Handshake())
    assert hub.statistics().counted.refusals == {"origin": 1, "draining": 2}


# -- what there is now --------------------------------------------------------------------------------


async def test_what_is_there_now(world: World) -> None:
    hub = chat(world, parks=True)
    ann, bob = await world.join(hub, "ann", "r", "h"), await world.join(hub, "bob", "r")
    world.client(hub)
    now = hub.statistics()
    assert (now.connections, now.transports) == (3, {"websocket": 3})
    assert (now.sessions, now.parked, now.users) == (2, 0, 2)
    assert (now.rooms, now.members, now.behind) == (2, 3, 0)
    await bob.drop()
    now = hub.statistics()
    assert (now.connections, now.sessions, now.parked, now.users) == (2, 2, 1, 2)
    assert ann.closed is None


async def test_what_waits_for_slow_peers(world: World) -> None:
    """Outbox and transport's buffer together, as the bound of D1 counts them."""
    hub = chat(world)
    slow, slower = await world.join(hub, "ann", "h"), await world.join(hub, "bob", "h")
    await world.join(hub, "cem", "h")
    now = hub.statistics()
    assert (now.queued, now.queued_bytes, now.queued_most) == (0, 0, 0)
    slow.pipe.stall()
    slower.pipe.stall()
    await hub.publish("h", "x" * 1000)
    await world.settle()
    slow.pipe.drain()
    slow.pipe.choke()
    for _ in range(3):
        await hub.publish("h", "x" * 1000)
        await world.settle()
    now = hub.statistics()
    sizes = [each.driver.outbox.size + each.pipe.buffered for each in (slow, slower)]  # type: ignore[attr-defined]
    assert slow.driver.outbox.size > 3000  # type: ignore[attr-defined]
    assert slower.pipe.buffered > 4000
    assert (now.queued, now.queued_bytes, now.queued_most) == (2, sum(sizes), max(sizes))


async def test_who_is_behind(world: World) -> None:
    hub = chat(world, limits=Limits(outbox=20_000))
    slow = await world.join(hub, "ann", "h")
    await world.join(hub, "bob", "h")
    slow.pipe.choke()
    for _ in range(40):
        await hub.publish("h", "x" * 1000)
        await world.settle()
    now = hub.statistics()
    assert (now.members, now.behind, now.counted.lagging) == (2, 1, 1)
    slow.pipe.drain()
    await world.settle()
    assert hub.statistics().behind == 0


async def test_two_moments_are_equal_when_there_is_the_same(world: World) -> None:
    """Totals apart: a test can say that nothing was left."""
    hub = chat(world)
    await hub.start()
    before = hub.statistics()
    client = await world.join(hub, "ann", "r")
    assert hub.statistics() != before
    await client.leave()
    await world.settle()
    assert hub.statistics() == before
    assert hub.statistics().totals != before.totals


# -- how long things take -----------------------------------------------------------------------------


async def test_delivery_is_measured_through_the_broker_and_back(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = chat(world, broker=broker)
    await world.join(hub, "ann", "r")
    gate = broker.hold("publish")
    publishing = asyncio.ensure_future(hub.publish("r", 1))
    await world.clock.advance(0.3)
    gate.set()
    await publishing
    await world.settle()
    measured = hub.statistics().measured
    assert (measured.delivery.count, measured.delivery.sum) == (1, pytest.approx(0.3))
    assert (measured.fanout.count, measured.fanout.sum) == (1, 0)
    assert (measured.broker["publish"].count, measured.broker["publish"].sum) == (1, pytest.approx(0.3))


async def test_fan_out_is_measured_to_the_last_member(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = chat(world)
    clients = [await world.join(hub, f"u{n}", "r") for n in range(3)]
    for client in clients:
        write = client.pipe.write_batch
        monkeypatch.setattr(
            client.pipe, "write_batch", lambda batch, write=write: (world.clock.stall(0.02), write(batch))
        )
    await hub.publish("r", 1)
    await world.settle()
    measured = hub.statistics().measured
    assert (measured.fanout.count, measured.fanout.sum) == (1, pytest.approx(0.06))
    assert measured.delivery.sum == pytest.approx(0.06)


async def test_only_this_nodes_own_publications_tell_a_delivery(world: World) -> None:
    """Clocks of nodes differ: of others it is known only when they came."""
    near, far = chat(world), chat(world)
    await world.join(near, "ann", "r", "h")
    await far.start()
    await far.publish("r", 1)
    await far.publish("h", 1)
    await world.settle()
    assert near.statistics().measured.fanout.count == 2
    assert near.statistics().measured.delivery.count == 0
    assert far.statistics().measured.delivery.count == 0
    assert len(far.engine.underway) == 0, "nobody is here whom it could reach"


async def test_what_does_not_come_is_not_looked_for(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = chat(world, broker=broker)
    client = await world.join(hub, "ann", "r", "h")
    await hub.publish("h", 1, key="once")
    await hub.publish("h", 1, key="once")
    broker.failing.add("publish")
    with pytest.raises(BrokerUnavailable):
        await hub.publish("r", 1)
    await world.settle()
    assert len(hub.engine.underway) == 0
    assert hub.statistics().measured.delivery.count == 1
    broker.failing.clear()
    broker.deaf = True
    await hub.publish("h", 2)
    assert len(hub.engine.underway) == 1
    broker.deaf = False
    await world.advance(60)  # it is repaired
    assert client.data_of("h") == [1, 2]
    assert len(hub.engine.underway) == 0
    assert hub.statistics().measured.delivery.count == 2


def test_what_is_under_way_is_bounded() -> None:
    clock = ManualClock()
    underway = Underway(clock)
    for number in range(_MOST + 10):
        underway.begin("r", number)
    assert len(underway) == _MOST
    assert underway.end("r", _MOST) is None
    clock.advance_nowait(_GONE)
    underway.begin("r", -1.0)
    assert underway.end("r", 0) is None, "the oldest made room"
    assert underway.end("r", -1.0) == clock.monotonic()
    assert "255" in repr(underway)


async def test_calls_of_the_broker_are_timed_by_what_they_do(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = chat(world, broker=broker)
    await world.join(hub, "ann", "h")
    await hub.publish("h", 1)
    measured = hub.statistics().measured
    assert set(measured.broker) == {"append", "read", "state", "subscribe"}
    assert measured.broker["append"].count == 1
    await hub.engine.clear("h")
    assert hub.statistics().measured.broker["append"].count == 2


async def test_failures_of_the_broker_are_counted_and_not_timed(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = chat(world, broker=broker)
    await world.join(hub, "ann", "h")
    before = hub.statistics().measured
    broker.failing.add("append")
    with pytest.raises(BrokerUnavailable):
        await hub.publish("h", 1)
    assert hub.statistics().counted.broker_errors == {"append": 1}
    assert hub.statistics().measured.broker.get("append") == before.broker.get("append")


async def test_a_refusal_is_an_answer(world: World) -> None:
    hub = chat(world)
    await hub.start()
    stream = hub.engine.stream
    await hub.publish("h", 1)
    page = await stream.read("room:h", limit=1)
    await hub.publish("h", 2)
    with pytest.raises(Conflict):
        await stream.append("room:h", b"{}", history=History(10, ttl=60), expected=page.position)
    assert hub.statistics().measured.broker["append"].count == 3
    assert hub.statistics().counted.broker_errors == {}


async def test_a_timed_broker_is_what_it_was(world: World) -> None:
    """Its name stands in errors; what it cannot do, it cannot do; what else it has is there."""
    plain = world.hub(broker=PlainBroker())
    await plain.start()
    assert type(plain.engine.broker).__name__ == "PlainBroker"
    assert not hasattr(plain.engine.broker, "append")
    hub = world.hub(broker=FaultyBroker(world.backend))
    await hub.start()
    assert hub.engine.broker.calls is hub.broker.calls  # type: ignore[union-attr, attr-defined]
    assert repr(hub.engine.broker) == repr(hub.broker)


# -- runs and threads ---------------------------------------------------------------------------------


async def test_totals_begin_anew_and_all_runs_do_not(world: World) -> None:
    hub = chat(world)
    for run in range(1, 4):
        client = await world.join(hub, "ann", "r")
        await hub.publish("r", 1)
        await client.leave()
        this, every = hub.statistics(), hub.statistics(all_runs=True)
        assert (this.counted.sessions, every.counted.sessions) == (1, run)
        assert (this.measured.fanout.count, every.measured.fanout.count) == (1, run)
        await hub.aclose()
        assert hub.statistics() == hub.statistics(all_runs=True)
        assert not hub.statistics().running
        assert (hub.statistics().totals, hub.statistics().counted.sessions) == ({}, 0)
        assert hub.statistics(all_runs=True).counted.sessions == run
        assert hub.statistics(all_runs=True).counted.closes["1000"] == run
        assert hub.statistics(all_runs=True).measured.fanout.count == run


async def test_a_run_that_never_began_is_none(world: World) -> None:
    broker = FaultyBroker(world.backend)
    broker.failing.add("subscribe")
    hub = chat(world, broker=broker)
    with pytest.raises(BrokerUnavailable):
        await hub.start()
    assert hub.statistics(all_runs=True).totals == {}
    broker.failing.clear()
    await hub.start()
    with pytest.raises(UsageError):
        hub.rooms("late", publishes=object, grant=Grant())
    assert hub.statistics().running


async def test_another_thread_may_ask(world: World) -> None:
    """As prometheus_client's own server does; the loop goes on meanwhile."""
    hub = chat(world)
    await world.join(hub, "ann", "r")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(hub.statistics()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert found == [hub.statistics()]
    assert found[0].members == 1
