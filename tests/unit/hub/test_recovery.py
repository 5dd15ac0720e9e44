"""Coming back to a room: what was missed, and what is said when it is gone (H1, H2, H3, H8, H10)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits, Position
from rtkit.primitives import sleep
from tests.support.rawclient import RawClient, Unit, publications
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


def kept(world: World, count: int = 5, *, ttl: float = 600, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(count, ttl=ttl))
    hub.rooms(
        "mine:{x}",
        publishes=object,
        grant=ALL,
        history=History(count, ttl=ttl),
        auto_join=lambda identity: [f"mine:{identity.user}"],
    )
    return hub


async def fill(hub: Hub[Any], first: int, last: int, room: str = "r:a") -> None:
    for n in range(first, last + 1):
        await hub.publish(room, n)


async def recover(client: RawClient, epoch: str, offset: int, **more: Any) -> Unit:
    return await client.call("subscribe", channel="r:a", recover=True, epoch=epoch, offset=offset, **more)


async def epoch_of(hub: Hub[Any], room: str = "r:a") -> str:
    return (await hub.room(room).history(limit=0)).top.epoch


# -- recovered ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_what_was_missed_is_in_the_reply(world: World, rt: bool) -> None:
    """H3: recovered, complete and in order; then live, without a seam."""
    hub = kept(world)
    client = await world.join(hub, "ann", rt=rt)
    await fill(hub, 1, 4)
    result = await recover(client, await epoch_of(hub), 2)
    assert (result["recovered"], result["was_recovering"], result["offset"]) == (True, True, 4 if rt else 2)
    assert [p["offset"] for p in result["publications"]] == [3, 4]
    await fill(hub, 5, 6)
    await client.settle()
    assert client.offsets_of("r:a") == [5, 6]


@pytest.mark.parametrize("offset", [0, 4])
async def test_from_the_very_beginning_and_from_the_top(world: World, offset: int) -> None:
    """H3."""
    hub = kept(world)
    client = await world.join(hub, "ann")
    await fill(hub, 1, 4)
    result = await recover(client, await epoch_of(hub), offset)
    assert result["recovered"] is True
    assert publications(result) == list(range(offset + 1, 5))


async def test_nothing_ever_published(world: World) -> None:
    """H1: a room that was only joined has a position that holds."""
    hub = kept(world)
    client = await world.join(hub, "ann")
    epoch = (await client.call("subscribe", channel="r:a"))["epoch"]
    await client.drop()
    again = await world.join(hub, "ann")
    result = await recover(again, epoch, 0)
    assert (result["recovered"], result["epoch"]) == (True, epoch)


async def test_to_another_node(world: World) -> None:
    """H1: the position is the room's, not the node's."""
    one, two = kept(world), kept(world)
    ann = await world.join(one, "ann", "r:a")
    await two.start()
    await fill(two, 1, 3)
    await ann.settle()
    epoch = await epoch_of(one)
    await ann.drop()
    await fill(one, 4, 5)
    again = await world.join(two, "ann")
    result = await recover(again, epoch, 3)
    assert (publications(result), result["recovered"]) == ([4, 5], True)


# -- not recovered ------------------------------------------------------------------------------------

GONE = [
    ("trimmed", 2, "", {"from": 2, "to": 9, "reason": "trimmed"}),
    ("trimmed at the very edge", 3, "", {"from": 3, "to": 9, "reason": "trimmed"}),
    ("epoch", 9, "other", {"to": 9, "reason": "epoch"}),
    ("no epoch", 9, None, {"to": 9, "reason": "epoch"}),
    ("rollback", 10, "", {"to": 9, "reason": "rollback"}),
    ("far beyond", 2**53 - 1, "", {"to": 9, "reason": "rollback"}),
]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
@pytest.mark.parametrize(("offset", "epoch", "gap"), [g[1:] for g in GONE], ids=[g[0] for g in GONE])
async def test_what_cannot_be_proven_is_never_claimed(
    world: World, rt: bool, offset: int, epoch: str | None, gap: dict[str, Any]
) -> None:
    """H3: no `recovered`, no publications, the top as the position; and to rt what is missing, and why."""
    hub = kept(world)
    client = await world.join(hub, "ann", rt=rt)
    await fill(hub, 1, 9)
    now = await epoch_of(hub)
    result = await recover(client, now if epoch == "" else epoch or "", offset)
    assert "recovered" not in result
    assert "publications" not in result
    assert result["was_recovering"] is True
    assert (result["epoch"], result["offset"]) == (now, 9)
    if rt:
        assert result["gap"].pop("epoch") == now
        told = result["gap"]
        assert (told["to"], told["reason"]) == (gap["to"], gap["reason"])
        assert told.get("from", 0) <= gap.get("from", 0)
    else:
        assert "gap" not in result
    await fill(hub, 10, 10)
    await client.settle()
    assert client.offsets_of("r:a") == [10]


async def test_what_has_aged_is_gone(world: World) -> None:
    """H6: bounded by age, also when read; the position outlives the messages."""
    hub = kept(world, ttl=60)
    client = await world.join(hub, "ann")
    await fill(hub, 1, 2)
    await world.advance(40)
    await fill(hub, 3, 3)
    await world.advance(30)
    epoch = await epoch_of(hub)
    result = await recover(client, epoch, 2)
    assert (publications(result), result["recovered"]) == ([3], True)
    await client.call("unsubscribe", channel="r:a")
    result = await recover(client, epoch, 1)
    assert "recovered" not in result
    await client.call("unsubscribe", channel="r:a")
    await world.advance(60)
    result = await recover(client, epoch, 3)
    assert result["recovered"] is True


async def test_a_made_up_position_costs_no_more_than_a_true_one(world: World) -> None:
    """H3: a position beyond the top is asked of the broker, and never sends the hub in circles."""
    broker = FaultyBroker(world.backend)
    hub = kept(world, broker=broker)
    other = await world.join(hub, "bob", "r:a")
    await fill(hub, 1, 3)
    client = await world.join(hub, "ann")
    broker.calls.clear()
    result = await recover(client, await epoch_of(hub), 77)
    assert "recovered" not in result
    assert broker.calls.count("read") < 6
    await other.settle()
    assert other.offsets_of("r:a") == [1, 2, 3]


# -- rewind (H8) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewind", "got"), [(1, [9]), (3, [7, 8, 9]), (5, [5, 6, 7, 8, 9]), (50, [5, 6, 7, 8, 9])]
)
async def test_rewind(world: World, rewind: int, got: list[int]) -> None:
    """H8: that many back, or as many as there are; it is no recovery, so nothing is claimed and nothing missing."""
    hub = kept(world)
    client = await world.join(hub, "ann")
    await fill(hub, 1, 9)
    result = await client.call("subscribe", channel="r:a", rewind=rewind)
    assert publications(result) == got
    assert not {"recovered", "was_recovering", "gap"} & set(result)
    await fill(hub, 10, 10)
    await client.settle()
    assert client.offsets_of("r:a") == [10]


async def test_rewind_of_an_empty_room_and_with_recover(world: World) -> None:
    """Protocol 6.7: with `recover` it is ignored; without history too."""
    hub = kept(world)
    hub.rooms("live:{x}", publishes=object, grant=ALL)
    client = await world.join(hub, "ann")
    assert publications(await client.call("subscribe", channel="r:a", rewind=3)) == []
    await client.call("unsubscribe", channel="r:a")
    await fill(hub, 1, 4)
    assert publications(await recover(client, await epoch_of(hub), 3, rewind=3)) == [4]
    assert await client.call("subscribe", channel="live:a", rewind=3) == {}


# -- long recoveries ----------------------------------------------------------------------------------


def big(n: int) -> str:
    return f"{n:05}" + "x" * 20_000


def numbers(data: list[Any]) -> list[int]:
    return [int(d[:5]) for d in data]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
@pytest.mark.parametrize("count", [14, 60, 700])
async def test_a_large_recovery_is_spread_over_reply_and_pushes(world: World, rt: bool, count: int) -> None:
    """H3, D1: 14 MB pass through an outbox of one, in order, while more is published."""
    hub = kept(world, 2000)
    for n in range(1, count + 1):
        if n == 1:
            await hub.start()
        await hub.publish("r:a", big(n))
    client = await world.join(hub, "ann", rt=rt)
    client.pipe.stall()
    id = client.ask("subscribe", channel="r:a", recover=True, epoch=await epoch_of(hub))
    await world.settle()
    for n in range(count + 1, count + 20):
        await hub.publish("r:a", big(n))
    for _ in range(2000):
        client.pipe.drain(3)
        await world.clock.settle()
        assert client.pipe.buffered < 1_500_000
    client.pipe.drain()
    await client.settle()
    result = client.reply(id)["subscribe"]
    assert result["recovered"] is True
    sizes = [len(frame) for frame in client.pipe.frames]
    assert max(sizes) < 400_000
    got = numbers(publications(result))
    assert result.get("offset", 0) == (got[-1] if rt else 0)  # a foreign one counts from where it begins
    assert got + numbers(client.data_of("r:a")) == list(range(1, count + 20))
    assert client.closed is None
    assert client.pushes_of("r:a", "gap") == []


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_a_large_recovery_that_is_overtaken_by_trimming(world: World, rt: bool) -> None:
    """H3: who was told `recovered` and then falls out of history is told so, not lied to."""
    hub = kept(world, 100)
    await hub.start()
    for n in range(1, 101):
        await hub.publish("r:a", big(n))
    client = await world.join(hub, "ann", rt=rt)
    client.pipe.stall()
    id = client.ask("subscribe", channel="r:a", recover=True, epoch=await epoch_of(hub))
    await world.settle()
    for n in range(101, 301):
        await hub.publish("r:a", big(n))
    for _ in range(500):
        client.pipe.drain(2)
        await world.clock.settle()
    client.pipe.drain()
    await client.settle()
    got = numbers(publications(client.reply(id)["subscribe"]))
    if rt:
        check_with_gaps(client, "r:a", after=got[-1], top=300)
        assert [g["reason"] for g in client.pushes_of("r:a", "gap")] == ["trimmed"]
    else:
        assert client.pushes_of("r:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]
        got += numbers(client.data_of("r:a"))
        assert got == list(range(1, len(got) + 1))


def check_with_gaps(client: RawClient, room: str, *, after: int, top: int) -> None:
    """Every offset up to *top* was delivered once, in order, or lies in a gap that was told in its place."""
    at = after
    for push in client.pushes:
        if push.get("channel") != room:
            continue
        if "gap" in push:
            gap = push["gap"]
            assert gap.get("from", 0) <= at <= gap["to"], (at, gap)
            at = gap["to"]
        elif "pub" in push:
            assert push["pub"]["offset"] == at + 1, (at, push)
            at += 1
    assert at == top


async def test_joining_while_everybody_publishes(world: World) -> None:
    """H2: no hole, no duplicate, whatever is published meanwhile; with a broker that takes its time."""
    broker = FaultyBroker(world.backend)
    hub = kept(world, 500, broker=broker)
    await hub.start()
    await fill(hub, 1, 20)
    epoch = await epoch_of(hub)
    publishing = asyncio.create_task(slowly(hub, world, 21, 120))
    clients: list[tuple[RawClient, int, int]] = []
    for n in range(20):
        client = await world.join(hub, f"user{n}", rt=n % 2 == 0)
        gate = broker.hold("read") if n % 3 == 0 else None
        id = client.ask("subscribe", channel="r:a", recover=True, epoch=epoch, offset=n)
        await world.advance(2)
        if gate is not None:
            gate.set()
            broker.gates.clear()
        clients.append((client, id, n))
    await world.advance(300)
    await publishing
    for client, id, n in clients:
        await client.settle()
        result = client.reply(id)["subscribe"]
        assert result["recovered"] is True
        got = [p["offset"] for p in result["publications"]] + client.offsets_of("r:a")
        assert got == list(range(n + 1, 121))


async def slowly(hub: Hub[Any], world: World, first: int, last: int) -> None:
    for n in range(first, last + 1):
        await hub.publish("r:a", n)
        await sleep(world.clock, 0.7)


# -- a new epoch (H6, H10) ----------------------------------------------------------------------------


async def test_clear_begins_a_new_epoch(world: World) -> None:
    """H6, H10: rt learns of it by gap or position, foreign ones by 2500, and by 3010 where the server put them."""
    one, two = kept(world), kept(world)
    await one.start()
    rt = await world.join(one, "ann", "r:a")
    far = await world.join(two, "bob", "r:a")
    foreign = await world.join(one, "eve", "r:a", rt=False)
    await fill(one, 1, 3)
    old = await epoch_of(one)
    position = await two.room("r:a").clear()
    assert position.offset == 0
    assert position.epoch != old
    await world.settle()
    for client in (rt, far):
        told = [push for push in client.pushes if "gap" in push or "position" in push]
        assert told == [{"channel": "r:a", "gap": {"epoch": position.epoch, "reason": "epoch"}}]
    assert foreign.pushes_of("r:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]
    await fill(one, 7, 8)
    await world.settle()
    assert rt.offsets_of("r:a") == far.offsets_of("r:a") == [1, 2, 3, 1, 2]
    assert rt.data_of("r:a")[3:] == [7, 8]
    assert foreign.data_of("r:a") == [1, 2, 3]
    result = await recover(foreign, old, 3)
    assert ("recovered" not in result, result["offset"]) == (True, 2)


async def test_a_foreign_client_in_a_room_of_the_servers_is_closed(world: World) -> None:
    """H10: it cannot subscribe again by itself, so it connects again: 3010, come back."""
    hub = kept(world)
    foreign, rt = await world.join(hub, "eve", rt=False), await world.join(hub, "ann")
    for user in ("eve", "ann"):
        await hub.publish(f"mine:{user}", 1)
        await hub.room(f"mine:{user}").clear()
    await world.settle()
    assert foreign.closed == (3010, "continuity lost")
    assert rt.closed is None
    assert len(rt.pushes_of("mine:ann", "gap")) == 1


async def test_recovering_into_a_new_epoch(world: World) -> None:
    """H3: nothing of the new stream is passed off as what followed the old position."""
    hub = kept(world)
    client = await world.join(hub, "ann")
    await fill(hub, 1, 3)
    old = await epoch_of(hub)
    await hub.room("r:a").clear()
    await fill(hub, 4, 9)
    result = await recover(client, old, 3)
    assert "recovered" not in result
    assert publications(result) == []
    assert result["gap"] == {"to": 6, "epoch": result["epoch"], "reason": "epoch"}
    assert result["epoch"] != old


async def test_the_application_reads_history_by_position(world: World) -> None:
    """H8, on the server: messages with position, sender and time; incomplete when something is missing."""
    hub = kept(world)
    ann = await world.join(hub, "ann")
    await fill(hub, 1, 6)
    await ann.call("publish", channel="r:a", data="last")
    room = hub.room("r:a")
    page = await room.history()
    assert [m.data for m in page.messages] == [3, 4, 5, 6, "last"]
    assert page.complete
    assert page.top == Position(await epoch_of(hub), 7)
    last = page.messages[-1]
    assert (last.position, last.sender, last.published_at) == (page.top, "ann", world.clock.time())
    assert last.client == ann.reply(1)["connect"]["client"]
    assert page.messages[0].sender is None
    page = await room.history(since=Position(page.top.epoch, 5), limit=1)
    assert ([m.data for m in page.messages], page.complete) == ([6], True)
    page = await room.history(since=Position(page.top.epoch, 1))
    assert (len(page.messages), page.complete) == (5, False)
    page = await room.history(reverse=True, limit=2)
    assert [m.data for m in page.messages] == ["last", 6]


async def test_on_join_and_recovery_together(world: World) -> None:
    """H2, api 6: join data, what was missed before, and what came while the hook ran."""
    hub = world.hub(limits=Limits(recovery_page=3))
    rooms = hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(100, ttl=60))

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> Any:
        await fill(hub, 6, 9)
        return "state"

    client = await world.join(hub, "ann")
    await fill(hub, 1, 5)
    result = await recover(client, await epoch_of(hub), 1)
    assert result["data"] == "state"
    assert (publications(result), result["recovered"]) == ([2, 3, 4, 5, 6, 7, 8, 9], True)
