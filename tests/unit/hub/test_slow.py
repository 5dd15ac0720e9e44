"""Members who cannot keep up: what it costs them, and that it costs nobody else anything (D1, D2, D3, H5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Limits
from rtkit.primitives import Heartbeat, Rate
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")
LIMITS: dict[str, Any] = {
    "outbox": 100_000,
    "reserve": 20_000,
    "max_publication": 5_000,
    "heartbeat": None,
    "commands": Rate(rate=1000, burst=1000),
}


def hub_with(
    world: World, *, count: int = 10_000, broker: Any = None, limits: dict[str, Any] | None = None
) -> Hub[Any]:
    """One room of every policy; the outbox holds about twenty messages."""
    hub = world.hub(broker=broker, limits=Limits(**(LIMITS | (limits or {}))))
    history = History(count, ttl=6000)
    hub.rooms("recover:{x}", publishes=object, grant=ALL, history=history)
    hub.rooms("close-kept:{x}", publishes=object, grant=ALL, history=history, overflow="close")
    hub.rooms("oldest:{x}", publishes=object, grant=ALL)
    hub.rooms("newest:{x}", publishes=object, grant=ALL, overflow="drop_newest")
    hub.rooms("latest:{x}", publishes=object, grant=ALL, overflow="latest_per_key")
    hub.rooms("close:{x}", publishes=object, grant=ALL, overflow="close")
    return hub


def text(n: int) -> str:
    return f"{n:06}" + "x" * 4_000


def numbers(client: RawClient, room: str) -> list[int]:
    return [int(data[:6]) for data in client.data_of(room)]


async def publish(hub: Hub[Any], room: str, first: int, last: int, each: Any = None) -> None:
    for n in range(first, last + 1):
        await hub.publish(room, text(n))
        if each is not None:
            await each()


async def test_recover_reads_on_from_history(world: World) -> None:
    """D1: bounded memory, nothing missing, nothing double, in order; the others notice nothing (D3)."""
    hub = hub_with(world)
    slow, fast = await world.join(hub, "ann", "recover:a"), await world.join(hub, "bob", "recover:a")
    slow.pipe.stall()
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == "ann"]
    peak = 0

    async def watch() -> None:
        nonlocal peak
        peak = max(peak, session.statistics().queued + slow.pipe.buffered)

    await publish(hub, "recover:a", 1, 300, watch)
    await fast.settle()
    assert numbers(fast, "recover:a") == list(range(1, 301))
    assert peak <= 100_000 + 20_000
    for n in range(400):
        slow.pipe.drain(1)
        await world.clock.settle()
        if n % 10 == 0:
            await publish(hub, "recover:a", 301 + n // 10, 301 + n // 10)
    slow.pipe.drain()
    await slow.settle()
    assert numbers(slow, "recover:a") == slow.offsets_of("recover:a") == list(range(1, 341))
    assert slow.pushes_of("recover:a", "gap") == []
    totals = hub.statistics().totals
    assert totals is not None
    assert totals["lagging"] >= 1
    await publish(hub, "recover:a", 341, 342)
    await slow.settle()
    assert numbers(slow, "recover:a")[-2:] == [341, 342]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_a_lagging_member_that_falls_out_of_history(world: World, rt: bool) -> None:
    """D2, H3, H10: it learns what is missing; a foreign one is told to subscribe again."""
    hub = hub_with(world, count=50)
    slow = await world.join(hub, "ann", "recover:a", rt=rt)
    slow.pipe.stall()
    await publish(hub, "recover:a", 1, 300)
    slow.pipe.drain()
    await slow.settle()
    got = numbers(slow, "recover:a")
    if rt:
        [gap] = slow.pushes_of("recover:a", "gap")
        assert (gap["to"], gap["reason"]) == (250, "trimmed")
        first = list(range(1, gap["from"] + 1))
        assert got == first + list(range(251, 301))
        assert slow.closed is None
    else:
        assert got == list(range(1, len(got) + 1))
        assert slow.pushes_of("recover:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]


async def test_a_slow_room_costs_the_other_rooms_of_the_member_nothing(world: World) -> None:
    """D1: the policy acts on that room's entries."""
    hub = hub_with(world)
    slow = await world.join(hub, "ann", "recover:a", "oldest:b", "newest:c")
    slow.pipe.choke()
    for n in range(1, 4):
        await publish(hub, "oldest:b", n, n)
        await publish(hub, "newest:c", n, n)
    await publish(hub, "recover:a", 1, 100)
    slow.pipe.drain()
    await slow.settle()
    assert numbers(slow, "oldest:b") == numbers(slow, "newest:c") == [1, 2, 3]
    assert numbers(slow, "recover:a") == list(range(1, 101))


async def test_drop_oldest(world: World) -> None:
    """D1, D2: the newest that fit are kept, in order; what was dropped is counted."""
    hub = hub_with(world)
    slow, fast = await world.join(hub, "ann", "oldest:a"), await world.join(hub, "bob", "oldest:a")
    slow.pipe.choke(50_000)
    await publish(hub, "oldest:a", 1, 100)
    slow.pipe.drain()
    await world.settle()
    got = numbers(slow, "oldest:a")
    assert got[-8:] == list(range(93, 101))
    assert got == sorted(set(got))
    assert numbers(fast, "oldest:a") == list(range(1, 101))
    totals = hub.statistics().totals
    assert totals is not None
    assert totals["drops{drop_oldest}"] == 100 - len(got)


async def test_drop_newest(world: World) -> None:
    """D1."""
    hub = hub_with(world)
    slow, fast = await world.join(hub, "ann", "newest:a"), await world.join(hub, "bob", "newest:a")
    slow.pipe.choke(50_000)
    await publish(hub, "newest:a", 1, 100)
    await world.settle()
    slow.pipe.drain()
    await world.settle()
    got = numbers(slow, "newest:a")
    assert got == list(range(1, len(got) + 1))
    assert 10 <= len(got) < 30
    assert numbers(fast, "newest:a") == list(range(1, 101))
    totals = hub.statistics().totals
    assert totals is not None
    assert totals["drops{drop_newest}"] == 100 - len(got)


async def test_latest_per_key(world: World) -> None:
    """D1: of each sender only the newest waits."""
    hub = hub_with(world)
    slow = await world.join(hub, "eve", "latest:a")
    ann, bob = await world.join(hub, "ann", "latest:a"), await world.join(hub, "bob", "latest:a")
    slow.pipe.choke()
    for n in range(1, 40):
        await ann.call("publish", channel="latest:a", data=f"{n:06} ann")
        await bob.call("publish", channel="latest:a", data=f"{n:06} bob")
    slow.pipe.drain()
    await slow.settle()
    assert slow.data_of("latest:a") == ["000039 ann", "000039 bob"]


@dataclass
class Price:
    value: int


@dataclass
class Volume:
    value: int


async def test_latest_per_key_tells_kinds_of_message_apart(world: World) -> None:
    """D1: the newest volume must not take the place of the newest price."""
    hub = world.hub(limits=Limits(**LIMITS))
    hub.rooms("t:{x}", publishes=(Price, Volume), grant=ALL, overflow="latest_per_key")
    slow = await world.join(hub, "eve", "t:a")
    slow.pipe.choke()
    for n in range(1, 40):
        await hub.publish("t:a", Price(n))
        await hub.publish("t:a", Volume(n))
    slow.pipe.drain()
    await slow.settle()
    assert slow.data_of("t:a") == [
        {"event": "Price", "data": {"value": 39}},
        {"event": "Volume", "data": {"value": 39}},
    ]


@pytest.mark.parametrize("room", ["close:a", "close-kept:a"])
async def test_close(world: World, room: str) -> None:
    """D1: 3008, come back; the others get everything."""
    hub = hub_with(world)
    slow, fast = await world.join(hub, "ann", room), await world.join(hub, "bob", room)
    slow.pipe.stall()
    await publish(hub, room, 1, 100)
    await world.settle()
    assert slow.closed == (3008, "slow consumer")
    assert numbers(fast, room) == list(range(1, 101))
    assert hub.statistics().sessions == 1


async def test_replies_have_a_reserve_and_then_it_ends(world: World) -> None:
    """D1: room for replies when the outbox is full of pushes; beyond that 3008."""
    hub = hub_with(world)
    slow = await world.join(hub, "ann", "newest:a")
    slow.pipe.choke()
    await publish(hub, "newest:a", 1, 100)
    ids = [slow.ask("ping") for _ in range(100)]
    await world.clock.settle()
    assert slow.closed is None
    ids += [slow.ask("ping") for _ in range(300)]
    await world.clock.settle()
    assert slow.closed == (3008, "slow consumer")
    assert hub.statistics().sessions == 0


async def test_a_ping_that_does_not_fit_ends_it_too(world: World, errors: Any) -> None:
    """F4, D1: 3008, and nothing breaks on the way."""
    hub = hub_with(world, limits={"heartbeat": Heartbeat(interval=10, timeout=100)})
    slow = await world.join(hub, "ann", "newest:a", pongs=False)
    slow.pipe.choke(130_000)
    await world.clock.advance(11)
    assert slow.closed == (3008, "slow consumer")
    assert errors() == []


async def test_leaving_a_room_frees_what_it_had_queued(world: World) -> None:
    """D1: and what is queued for a room that was left is not sent any more."""
    hub = hub_with(world)
    slow = await world.join(hub, "ann", "recover:a", "oldest:b")
    slow.pipe.choke()
    await publish(hub, "oldest:b", 1, 2)
    await publish(hub, "recover:a", 1, 100)
    slow.ask("unsubscribe", channel="recover:a")
    await world.clock.settle()
    [session] = hub.engine.sessions.values()
    assert session.statistics().queued < 10_000
    slow.pipe.drain()
    await slow.settle()
    assert numbers(slow, "recover:a") == []
    assert numbers(slow, "oldest:b") == [1, 2]
    await slow.call("subscribe", channel="recover:a")
    await publish(hub, "recover:a", 101, 101)
    await slow.settle()
    assert slow.offsets_of("recover:a") == [101]


async def test_catching_up_waits_for_the_broker(world: World) -> None:
    """B4, D1."""
    broker = FaultyBroker(world.backend)
    hub = hub_with(world, broker=broker)
    slow = await world.join(hub, "ann", "recover:a")
    slow.pipe.stall()
    await publish(hub, "recover:a", 1, 100)
    broker.failing.add("read")
    slow.pipe.drain()
    await world.advance(5)
    assert len(numbers(slow, "recover:a")) < 100
    broker.failing.clear()
    await world.advance(2)
    assert numbers(slow, "recover:a") == list(range(1, 101))


async def test_catching_up_that_fails_unexpectedly_is_no_silent_loss(world: World, errors: Any) -> None:
    """H3: who cannot be served any more is closed, so that it comes back and recovers."""
    broker = FaultyBroker(world.backend)
    hub = hub_with(world, broker=broker)
    slow = await world.join(hub, "ann", "recover:a")
    slow.pipe.stall()
    await publish(hub, "recover:a", 1, 100)
    broker.errors["read"] = [RuntimeError("x")]
    slow.pipe.drain()
    await world.settle()
    assert slow.closed == (3004, "internal error")
    assert errors()


async def test_gone_while_catching_up(world: World) -> None:
    """L1."""
    broker = FaultyBroker(world.backend)
    hub = hub_with(world, broker=broker)
    slow = await world.join(hub, "ann", "recover:a")
    slow.pipe.stall()
    await publish(hub, "recover:a", 1, 100)
    gate = broker.hold("read")
    slow.pipe.drain()
    await world.settle()
    await slow.drop()
    gate.set()
    await world.settle()
    assert hub.statistics().rooms == 0


async def test_left_and_joined_again_while_catching_up(world: World) -> None:
    """H2: what is still being read for the member that left is not delivered to the one that joined."""
    broker = FaultyBroker(world.backend)
    hub = hub_with(world, broker=broker)
    slow = await world.join(hub, "ann", "recover:a")
    slow.pipe.stall()
    await publish(hub, "recover:a", 1, 100)
    gate = broker.hold("read")
    slow.pipe.drain()
    await world.settle()
    before = slow.offsets_of("recover:a")
    slow.ask("unsubscribe", channel="recover:a")
    await slow.settle()
    again = slow.ask("subscribe", channel="recover:a", recover=True, epoch="x", offset=before[-1])
    gate.set()
    broker.gates.clear()
    await slow.settle()
    assert slow.answered(again)
    await publish(hub, "recover:a", 101, 102)
    await slow.settle()
    assert slow.offsets_of("recover:a") == [*before, 101, 102]


async def test_a_large_message_at_the_limit_reaches_everybody(world: World) -> None:
    """T8, D1: what may be published fits an empty outbox, under every policy."""
    hub: Hub[Any] = world.hub(limits=Limits(heartbeat=None))
    for name, options in (
        ("kept", {"history": History(10, ttl=60)}),
        ("oldest", {}),
        ("newest", {"overflow": "drop_newest"}),
        ("latest", {"overflow": "latest_per_key"}),
        ("close", {"overflow": "close"}),
    ):
        hub.rooms(name, publishes=object, grant=ALL, **options)  # type: ignore[arg-type]
        client = await world.join(hub, "ann", name)
        await hub.publish(name, "x" * (hub.limits.max_publication - 2))
        await client.settle()
        assert len(client.data_of(name)[0]) == hub.limits.max_publication - 2
        assert client.closed is None
        await client.leave()
        await hub.aclose()


async def test_fan_out_awaits_nobody(world: World) -> None:
    """H5, D3: a hundred stalled members; a publish completes, and the one who reads has it at once."""
    hub = hub_with(world)
    fast = await world.join(hub, "bob", "recover:a")
    stalled = [await world.join(hub, f"u{n}", "recover:a") for n in range(100)]
    for client in stalled:
        client.pipe.stall()
    for n in range(1, 60):
        await hub.publish("recover:a", text(n))
    await fast.settle()
    assert numbers(fast, "recover:a") == list(range(1, 60))
    assert sum(client.pipe.buffered for client in stalled) < 100 * 120_000


async def test_what_one_turn_brings_leaves_in_one_write(world: World) -> None:
    """D4."""
    hub = hub_with(world)
    client = await world.join(hub, "ann", "oldest:a")
    before = len(client.pipe.frames)
    for n in range(5):
        hub.engine.broker.backend.publish(  # type: ignore[attr-defined]
            "room:oldest:a", b'{"v":1,"data":%d}' % n, None
        )
    await client.settle()
    assert len(client.pipe.frames) == before + 1
    assert client.data_of("oldest:a") == [0, 1, 2, 3, 4]


async def test_foreign_payloads_in_a_room_of_the_latest(world: World) -> None:
    """W5: bytes of no kind are one kind."""
    hub = world.hub(limits=Limits(**LIMITS))
    hub.rooms("t:{x}", publishes=(Price, Volume), grant=ALL, overflow="latest_per_key")
    slow = await world.join(hub, "eve", "t:a")
    slow.pipe.choke()
    for n in range(3):
        await hub.engine.broker.publish("room:t:a", b'{"v":1,"data":%d}' % n)
    await hub.publish("t:a", Price(1))
    slow.pipe.drain()
    await slow.settle()
    assert slow.data_of("t:a") == [2, {"event": "Price", "data": {"value": 1}}]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_catching_up_into_an_epoch_the_node_has_not_heard_of(world: World, rt: bool) -> None:
    """H3, H4, H10: the slow member reads it first; the node is repaired with it, and nobody is deceived."""
    broker = FaultyBroker(world.backend)
    hub, other = hub_with(world, broker=broker), hub_with(world)
    await other.start()
    slow, fast = await world.join(hub, "ann", "recover:a", rt=rt), await world.join(hub, "bob", "recover:a")
    slow.pipe.stall()
    await publish(other, "recover:a", 1, 60)
    broker.deaf = True
    position = await other.room("recover:a").clear()
    await publish(other, "recover:a", 1, 3)
    broker.deaf = False
    slow.pipe.drain()
    await world.settle()
    await publish(other, "recover:a", 4, 4)
    await world.settle()
    assert numbers(fast, "recover:a") == [*range(1, 61), 1, 2, 3, 4]
    assert [g["epoch"] for g in fast.pushes_of("recover:a", "gap")] == [position.epoch]
    first = numbers(slow, "recover:a")
    if rt:
        assert [g["reason"] for g in slow.pushes_of("recover:a", "gap")] == ["epoch"]
        assert first[-4:] == [1, 2, 3, 4]
        assert first[:-4] == list(range(1, len(first) - 3))
    else:
        assert first == list(range(1, len(first) + 1))
        assert slow.pushes_of("recover:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]


async def test_a_message_that_no_outbox_of_this_hub_can_hold(world: World) -> None:
    """T8: from a hub with larger limits. It goes past the outbox, and costs nobody the connection."""
    small, large = hub_with(world), world.hub()
    for name in ("recover", "oldest", "newest"):
        large.rooms(
            f"{name}:{{x}}",
            publishes=object,
            grant=ALL,
            history=History(100, ttl=60) if name == "recover" else None,
        )
    await large.start()
    for rt in (True, False):
        for name in ("recover", "oldest", "newest"):
            client = await world.join(small, "ann", f"{name}:a", rt=rt)
            await large.publish(f"{name}:a", "x" * 200_000)
            await large.publish(f"{name}:a", "small")
            await client.settle()
            assert [len(data) for data in client.data_of(f"{name}:a")] == [200_000, 5]
            assert client.closed is None
