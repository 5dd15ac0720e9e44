"""Closing, removing, refreshing and revoking, wherever the user is (A4, api 8); signals (D5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Identity, InvalidMessage, NotEnabled, NotRunning, NotSupported
from rtkit.brokers import MemoryBroker
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World


@dataclass
class Moved:
    x: int


def cluster(world: World, **options: Any) -> tuple[Hub[Any], Hub[Any]]:
    """Two hubs on one backend, with the same rooms."""
    hubs = world.hub(**options), world.hub(**options)
    for hub in hubs:
        hub.rooms("r:{x}", publishes=object, grant=Grant("publish", "signal"), history=History(50, ttl=600))
        hub.rooms("live:{x}", publishes=object, grant=Grant("publish", "signal"))
    return hubs


async def test_two_hubs_are_one_cluster(world: World) -> None:
    """H1: all members on all nodes see the same order."""
    one, two = cluster(world)
    ann, bob = await world.join(one, "ann", "r:a", "live:a"), await world.join(two, "bob", "r:a", "live:a")
    for n in range(5):
        await (one, two)[n % 2].publish("r:a", n)
        await (ann, bob)[n % 2].call("publish", channel="live:a", data=n)
    await world.settle()
    for client in (ann, bob):
        assert client.data_of("r:a") == client.data_of("live:a") == list(range(5))
        assert client.offsets_of("r:a") == [1, 2, 3, 4, 5]


async def test_user_close(world: World) -> None:
    """A4: all the user's connections on all nodes, and nobody else's."""
    one, two = cluster(world)
    mine = [await world.join(hub, "ann") for hub in (one, two, two)]
    bob = await world.join(two, "bob")
    await one.user("ann").close(code=4123, reason="signed out everywhere")
    await world.settle()
    assert [client.closed for client in mine] == [(4123, "signed out everywhere")] * 3
    assert bob.closed is None
    await two.user("bob").close()
    await world.settle()
    assert bob.closed == (3503, "closed for good")
    again = await world.join(one, "ann")
    assert again.closed is None


async def test_user_refresh(world: World) -> None:
    """A3: each client is asked for a new token; who shows one stays, who does not is closed as expired."""
    one, two = cluster(world)
    ann, tab = await world.join(one, "ann"), await world.join(two, "ann", rt=False)
    bob = await world.join(two, "bob")
    await two.user("ann").refresh()
    await world.settle()
    for client in (ann, tab):
        assert client.pushes == [{"refresh": {"expires": True, "ttl": 1}}]
    assert bob.pushes == []
    await ann.call("refresh", token="ann")
    await world.advance(12)
    assert ann.closed is None
    assert tab.closed == (3005, "expired")
    assert bob.closed is None


async def test_user_refresh_never_makes_an_identity_last_longer(world: World) -> None:
    """A3."""

    async def soon(credentials: Any) -> Identity[None]:
        return Identity("ann", expires_at=world.clock.time() + 0.5)

    hub = world.hub(authenticate=soon)
    client = await world.join(hub, "ann")
    await world.advance(5)
    await hub.user("ann").refresh()
    await world.advance(5)
    assert client.closed is None
    await world.advance(0.6)
    assert client.close_code == 3005


async def test_room_remove(world: World) -> None:
    """A4: out of the room on every node; told 2000 and why; may come back."""
    one, two = cluster(world)
    ann, tab = await world.join(one, "ann", "r:a", "r:b"), await world.join(two, "ann", "r:a", rt=False)
    bob = await world.join(one, "bob", "r:a")
    await two.room("r:a").remove("ann", reason="calm down")
    await one.publish("r:a", "later")
    await one.publish("r:b", "here")
    await world.settle()
    for client in (ann, tab):
        assert client.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "calm down"}]
        assert client.data_of("r:a") == []
        assert client.closed is None
    assert ann.data_of("r:b") == ["here"]
    assert bob.data_of("r:a") == ["later"]
    await ann.call("subscribe", channel="r:a")


async def test_a_ban_holds_for_its_time_on_every_node(world: World) -> None:
    """API 8: neither joining nor anything else in the room; other rooms and other users are free."""
    one, two = cluster(world)
    ann = await world.join(one, "ann", "r:a")
    await one.room("r:a").remove("ann", reason="out", ban=60)
    await world.settle()
    tab = await world.join(two, "ann", "r:b")
    for client in (ann, tab):
        for method in ("subscribe", "publish", "signal"):
            error = await client.refused(method, channel="r:a", data=1)
            assert (error["code"], error["message"]) == (103, "banned from this room")
    bob = await world.join(two, "bob", "r:a")
    await world.advance(59)
    assert (await tab.refused("subscribe", channel="r:a"))["code"] == 103
    await world.advance(2)
    await tab.call("subscribe", channel="r:a")
    await ann.call("publish", channel="r:a", data="back")
    await world.settle()
    assert bob.data_of("r:a") == tab.data_of("r:a") == ["back"]


async def test_a_ban_catches_who_is_joining_meanwhile(world: World) -> None:
    """A4: whoever was asked before the ban, and subscribed after the removal, is not in either."""
    broker = FaultyBroker(world.backend)
    one, two = world.hub(), world.hub(broker=broker)
    for hub in (one, two):
        hub.rooms("r:{x}", publishes=object, grant=Grant(), history=History(50, ttl=600))
    await one.start()
    ann = await world.join(two, "ann")
    gate = broker.hold("subscribe")
    id = ann.ask("subscribe", channel="r:a")
    await ann.settle()
    await one.room("r:a").remove("ann", reason="out", ban=60)
    gate.set()
    await ann.settle()
    assert ann.reply(id)["error"] == {"code": 103, "message": "banned from this room"}
    assert two.statistics().rooms == 0


async def test_user_revoke(world: World) -> None:
    """A4: closed 4501, stay away, and refused until then on every node; refreshing does not help."""
    one, two = cluster(world)
    ann, tab = await world.join(one, "ann"), await world.join(two, "ann")
    await two.user("ann").revoke(world.clock.time() + 100)
    await world.settle()
    assert [client.closed for client in (ann, tab)] == [(4501, "revoked")] * 2
    for hub in (one, two):
        client = world.client(hub, rt=True)
        assert (await client.refused("connect", token="ann", rt={}))["code"] == 101
        assert 3500 <= client.close_code < 4000
        assert (await world.join(hub, "bob")).closed is None
    await world.advance(101)
    await world.join(two, "ann")


async def test_a_revocation_in_the_past_is_over(world: World) -> None:
    hub = world.hub()
    await hub.start()
    await hub.user("ann").revoke(world.clock.time() - 5)
    await world.advance(1)
    await world.join(hub, "ann")


async def test_a_revoked_user_cannot_refresh(world: World) -> None:
    """A4: all that is said of it may be lost; whoever shows a token is looked up all the same."""
    broker = FaultyBroker(world.backend)
    one, two = world.hub(), world.hub(broker=broker)
    client = await world.join(two, "ann")
    await one.start()
    broker.deaf = True
    revoking = one.engine.task(one.user("ann").revoke, world.clock.time() + 100)
    await client.settle()
    broker.gates["positions"] = gate = asyncio.Event()
    client.ask("refresh", token="ann")
    await client.settle()
    assert client.closed is None, "nobody has told this node"
    gate.set()
    await client.settle()
    assert client.closed == (4501, "revoked")
    await world.advance(5)
    assert revoking.result().silent == (two.node_id,)


async def test_a_lost_control_message_does_not_keep_a_revoked_user_in(world: World) -> None:
    """A4: the next comparison of tops finds it, on whatever node; nothing has to be heard of it again."""
    broker = FaultyBroker(world.backend)
    one, two = world.hub(), world.hub(broker=broker)
    client = await world.join(two, "ann")
    await one.start()
    broker.deaf = True
    revoking = one.engine.task(one.user("ann").revoke, world.clock.time() + 1000)
    await world.advance(5)
    assert revoking.result().silent == (two.node_id,)
    assert client.closed is None
    await world.advance(40)
    assert client.closed == (4501, "revoked")


async def test_bans_and_revocations_need_a_broker_that_keeps_state(world: World) -> None:
    """Misuse: NotSupported, and it says what is missing; removing and closing work all the same."""
    hub = world.hub(broker=PlainBroker())
    hub.rooms("live:{x}", publishes=object, grant=Grant())
    ann = await world.join(hub, "ann", "live:a")
    with pytest.raises(NotSupported, match="PlainBroker keeps no state; bans and revocations need"):
        await hub.room("live:a").remove("ann", reason="x", ban=1)
    with pytest.raises(NotSupported, match="keeps no state"):
        await hub.user("ann").revoke(world.clock.time() + 1)
    await hub.room("live:a").remove("ann", reason="x")
    await world.settle()
    assert ann.pushes_of("live:a", "unsubscribe") == [{"code": 2000, "reason": "x"}]
    await hub.user("ann").close()
    await world.settle()
    assert ann.close_code == 3503


async def test_control_before_start(world: World) -> None:
    hub = world.hub()
    hub.rooms("r:{x}", publishes=object, grant=Grant())
    for call in (
        hub.user("ann").close(),
        hub.user("ann").refresh(),
        hub.user("ann").revoke(1),
        hub.room("r:a").remove("ann", reason=""),
        hub.publish("r:a", 1),
    ):
        with pytest.raises(NotRunning, match="async with hub"):
            await call
    with pytest.raises(NotRunning, match="the hub is not running"):
        hub.room("r:a").signal(1)


async def test_foreign_payloads_on_our_topics_harm_nothing(world: World, errors: Any) -> None:
    """W5: what no hub has written is counted, logged, and passed over."""
    hub = cluster(world)[0]
    client = await world.join(hub, "ann", "r:a", "live:a")
    broker = MemoryBroker(world.backend)

    class Nobody:
        def deliver(self, *args: Any) -> None: ...
        def interrupted(self, *args: Any) -> None: ...

    await broker.open(Nobody())
    for topic in ("\0control", "room:live:a", "room:r:a"):
        for payload in (b"", b"\xff", b"{}", b'{"v":99,"do":"close","user":"ann"}', b'{"v":2}', b"[" * 5000):
            await broker.publish(topic, payload)
    await broker.append("room:r:a", b"garbage", history=History(50, ttl=600))
    await hub.publish("r:a", "fine")
    await hub.publish("live:a", "fine")
    await client.settle()
    await broker.aclose()
    assert client.closed is None
    assert client.offsets_of("r:a") == [1, 2]
    assert client.data_of("r:a") == [None, "fine"]
    assert client.data_of("live:a") == ["fine"]
    assert errors()


# -- signals ------------------------------------------------------------------------------------------


async def test_signal_from_the_server(world: World) -> None:
    """D5, api 8: to rtkit's clients on every node, except who is excluded; never stored, never blocks."""
    one, two = cluster(world)

    @one.rpc(object, name="move")
    async def move(ctx: Context[Any, Any], message: Any) -> None:
        ctx.hub.room("r:a").signal(Moved(message), exclude=ctx.session)

    ann = await world.join(one, "ann", "r:a")
    tab, bob = await world.join(one, "ann", "r:a"), await world.join(two, "bob", "r:a")
    eve = await world.join(two, "eve", "r:a", rt=False)
    await ann.call("rpc", method="move", data=3)
    await world.settle()
    for client in (tab, bob):
        assert client.pushes_of("r:a", "signal") == [{"event": "Moved", "data": {"x": 3}}]
    assert ann.pushes == eve.pushes == []
    assert (await one.room("r:a").history()).messages == []


async def test_signal_of_a_handler_names_its_user(world: World) -> None:
    """Protocol 9.2: which a client cannot choose."""
    hub = world.hub()
    rooms = hub.rooms("live:{x}", publishes=object, grant=Grant("publish", "signal"))

    @rooms.on(object, name="move")
    async def move(ctx: Context[Any, Any], message: Any) -> None:
        ctx.room.signal(Moved(1), exclude=ctx.session)

    ann, bob = await world.join(hub, "ann", "live:a"), await world.join(hub, "bob", "live:a")
    await ann.call("publish", channel="live:a", data={"event": "move"})
    await ann.call("signal", channel="live:a", event="Moved", data=2, user="bob")
    await world.settle()
    assert [s["user"] for s in bob.pushes_of("live:a", "signal")] == ["ann", "ann"]


async def test_signals_are_conflated_per_sender_and_kind(world: World) -> None:
    """D5: who is behind gets only the newest of each."""
    hub = world.hub()
    hub.rooms("live:{x}", publishes=object, grant=Grant("publish", "signal"))
    ann, bob = await world.join(hub, "ann", "live:a"), await world.join(hub, "bob", "live:a")
    eve = await world.join(hub, "eve", "live:a")
    eve.pipe.choke()
    for n in range(20):
        for client in (ann, bob):
            for event in ("typing", "cursor"):
                await client.call("signal", channel="live:a", event=event, data=n)
    assert len(ann.pushes_of("live:a", "signal")) == 40
    eve.pipe.drain()
    await eve.settle()
    got = [(s["user"], s["event"], s["data"]) for s in eve.pushes_of("live:a", "signal")]
    assert sorted(got) == [
        ("ann", "cursor", 19),
        ("ann", "typing", 19),
        ("bob", "cursor", 19),
        ("bob", "typing", 19),
    ]


async def test_a_signal_that_is_no_json(world: World) -> None:
    hub = world.hub()
    hub.rooms("live:{x}", publishes=object, grant=Grant())
    await hub.start()
    with pytest.raises(InvalidMessage, match="cannot be encoded as JSON"):
        hub.room("live:a").signal({"x": "\ud800"})
    hub.room("live:a").signal({"x": 1})


async def test_a_plain_value_as_a_signal_has_no_event(world: World) -> None:
    """As `session.send` does it: the event is the name of a class, and a dict's class says nothing."""
    hub = world.hub()
    hub.rooms("live:{x}", publishes=object, grant=Grant())
    client = await world.join(hub, "ann", "live:a")
    hub.room("live:a").signal({"x": 1})
    await client.settle()
    assert client.pushes_of("live:a", "signal") == [{"data": {"x": 1}}]


async def test_signals_while_the_broker_is_away_are_dropped_and_counted(world: World) -> None:
    """D5, D2."""
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker)
    hub.rooms("live:{x}", publishes=object, grant=Grant("signal"))
    client = await world.join(hub, "ann", "live:a")
    broker.down = True
    await client.call("signal", channel="live:a", event="e")
    assert hub.statistics().totals is not None
    assert hub.statistics().totals["drops{signal}"] == 1


async def test_what_needs_history_says_so(world: World) -> None:
    """API 7: NotEnabled, with the remedy."""
    hub = world.hub()
    hub.rooms("live:{x}", publishes=object, grant=Grant())
    await hub.start()
    with pytest.raises(NotEnabled, match=r"pass history=History\(100, ttl=3600\) to rooms\('live:\{x\}'\)"):
        await hub.room("live:a").history()
    with pytest.raises(NotEnabled, match="keeps no history"):
        await hub.room("live:a").clear()
    with pytest.raises(NotEnabled, match="has no presence"):
        await hub.room("live:a").presence()
