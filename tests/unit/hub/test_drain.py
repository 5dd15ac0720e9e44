"""L1, L2: a hub that drains sends its clients away evenly, and hands their sessions over to other nodes."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits
from rtkit.features import Presence
from tests.support.rawclient import RawClient
from tests.support.webclient import WebClient

from .brokers import FaultyBroker
from .conftest import World
from .test_parking import Diary, come, diary

__all__ = ["diary"]


def roomy(world: World, **options: Any) -> Hub[Any]:
    """A hub with a room of each kind."""
    hub = world.hub(parks=True, **options)
    hub.rooms("r:{x}", publishes=object, history=History(1000, ttl=600), grant=Grant("publish"))
    return hub


async def crowd(world: World, hub: Hub[Any], count: int) -> list[RawClient]:
    """So many clients, connected at the same time."""
    await hub.start()
    clients = [world.client(hub, rt=True) for _ in range(count)]
    for n, client in enumerate(clients):
        client.tell({"id": 1, "connect": {"token": f"u{n}", "rt": {"v": 1}}})
    await world.settle()
    return clients


def closed(clients: list[RawClient]) -> list[RawClient]:
    return [client for client in clients if client.pipe.closed is not None]


def window(client: RawClient) -> tuple[float, float]:
    """When it was told to come back, in seconds from then."""
    goodbye = next(push["disconnect"] for push in client.pushes if "disconnect" in push)
    assert (goodbye["code"], goodbye["reason"]) == (3001, "draining")
    return goodbye["rt"]["min"], goodbye["rt"]["max"]


def draining(hub: Hub[Any], **options: Any) -> asyncio.Task[None]:
    return asyncio.create_task(hub.drain(**options))


# -- the spread -----------------------------------------------------------------------------------------


async def test_a_small_hub_takes_no_time(world: World) -> None:
    hub = roomy(world)
    clients = await crowd(world, hub, 25)
    await hub.drain()
    assert len(closed(clients)) == 25
    assert {window(client) for client in clients} == {(0.0, 1.0)}
    assert hub.statistics().connections == 0
    await hub.publish("r:a", "all else goes on")


class Lot(random.Random):
    """By which the last to come go first."""

    def shuffle(self, x: Any) -> None:
        x.sort(key=lambda connection: -int(connection.session.identity.user[1:]))


async def test_closes_are_spread_evenly_and_by_lot(world: World) -> None:
    hub = roomy(world)
    hub.random = Lot(1)
    clients = await crowd(world, hub, 40)
    drain = draining(hub)
    await world.settle()
    counts, order = [], list[RawClient]()
    for _ in range(5):
        found = [client for client in closed(clients) if client not in order]
        order += found
        counts.append(len(found))
        await world.clock.advance(0.05)
    # 200 a second are never too many: the 10 s of the default are for larger crowds.
    assert sum(counts) == 40
    assert all(9 <= count <= 11 for count in counts[1:4]), counts
    assert counts[0] <= 2
    rank = {client: n for n, client in enumerate(reversed(clients))}
    assert all(abs(rank[client] - n) < 11 for n, client in enumerate(order)), "one tick's may be in any order"
    assert {window(client) for client in clients} == {(0.0, 1.0)}
    await drain


async def test_a_long_spread_is_kept(world: World) -> None:
    hub = roomy(world, limits=Limits(drain_spread=0.1))
    clients = await crowd(world, hub, 100)
    drain = draining(hub)
    await world.clock.advance(0.05)
    assert 45 <= len(closed(clients)) <= 55
    await world.clock.advance(0.06)
    assert len(closed(clients)) == 100
    await drain


@pytest.mark.parametrize("how", ["limits", "call"])
async def test_all_at_once(world: World, how: str) -> None:
    hub = roomy(world, limits=Limits(drain_spread=None if how == "limits" else 10.0, accepts=None))
    clients = await crowd(world, hub, 200)
    await (hub.drain() if how == "limits" else hub.drain(spread=0))
    assert len(closed(clients)) == 200
    assert {window(client) for client in clients} == {(0.0, 1.0)}


@pytest.mark.parametrize("how", ["something is being written", "the peer does not read"])
async def test_who_is_being_written_to_is_told_as_well(world: World, how: str) -> None:
    """The socket of a client has something in it when its moment comes, and be it what was published just now."""
    hub = roomy(world)
    client = await world.join(hub, "ann", "r:a")
    if how == "the peer does not read":
        client.pipe.choke()
    client.pipe.stall()
    for n in range(3):
        await hub.publish("r:a", n)
    await world.settle()
    assert client.pipe.buffered
    await hub.drain()
    client.pipe.drain()
    await client.settle()
    assert client.pipe.closed == (3001, "draining")
    assert window(client) == (0.0, 1.0)
    assert client.data_of("r:a") == ([0, 1, 2] if how == "something is being written" else [])


async def test_what_the_closes_cannot_spread_the_windows_do(world: World) -> None:
    """A deadline shorter than the spread: all are told in time, and come back as evenly as they would have."""
    hub = roomy(world)
    clients = await crowd(world, hub, 80)
    began, when = world.clock.monotonic(), dict[RawClient, float]()
    drain = draining(hub, timeout=0.4)
    counts = []
    for _ in range(5):
        await world.settle()
        before = len(when)
        for client in closed(clients):
            when.setdefault(client, world.clock.monotonic())
        counts.append(len(when) - before)
        await world.clock.advance(0.05)
    assert sum(counts) == 80, "half of the time is theirs to go"
    assert all(18 <= count <= 22 for count in counts[1:]), counts
    back = sorted(when[client] - began + window(client)[0] for client in clients)
    assert all(abs(moment - n * 0.005) < 0.051 for n, moment in enumerate(back)), back
    assert back[-1] > 0.39
    await drain


async def test_who_is_nobody_yet_goes_first_and_who_waits_for_an_answer_last(world: World) -> None:
    hub = roomy(world)
    go = asyncio.Event()

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> str:
        await go.wait()
        return "done"

    clients = await crowd(world, hub, 36)
    strangers = [world.client(hub) for _ in range(4)]
    for client in clients[:5]:
        client.ask("rpc", method="work")
    await world.settle()
    drain = draining(hub)
    await world.settle()
    await world.clock.advance(0.05)
    assert len(closed(strangers)) == 4
    await world.clock.advance(0.1)
    assert not closed(clients[:5])
    go.set()
    await world.settle()
    await world.clock.advance(0.05)
    for client in clients[:5]:
        assert client.pipe.closed is not None
        await client.settle()
        assert next(unit["rpc"] for unit in client.units if "rpc" in unit) == {"data": "done"}
    await world.clock.advance(0.05)
    await drain


async def test_who_waits_for_an_answer_for_long_goes_at_the_end_of_the_spread(world: World) -> None:
    hub = roomy(world, limits=Limits(drain_timeout=3))
    log: list[str] = []

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        log.append("begins")
        await asyncio.sleep(0)
        await forever.wait()

    forever = asyncio.Event()
    clients = await crowd(world, hub, 40)
    clients[0].ask("rpc", method="work")
    await world.settle()
    drain = draining(hub)
    await world.settle()
    await world.clock.advance(0.19)
    assert not closed(clients[:1])
    await world.clock.advance(0.02)
    assert closed(clients[:1])
    await world.clock.advance(2.9)
    assert not drain.done(), "handlers have their time from the last close on"
    await world.clock.advance(0.1)
    assert drain.done()
    forever.set()


# -- joining it -----------------------------------------------------------------------------------------


async def test_nobody_new_is_let_in_from_the_first_moment_on(world: World) -> None:
    """M4, L1; and who was let in the moment before is sent away, too."""
    hub = roomy(world)
    clients = await crowd(world, hub, 40)
    assert hub._not_ready() is None
    drain = draining(hub)
    await asyncio.sleep(0)
    assert hub._not_ready() == 1.0
    late = world.client(hub, rt=True)
    late.tell({"id": 1, "connect": {"token": "late", "rt": {"v": 1}}})
    await world.settle()
    assert late.pipe.closed == (3001, "draining")
    assert len(closed(clients)) < 10
    await world.advance(1, step=0.1)
    await drain
    later = world.client(hub, rt=True)
    await world.settle()
    assert later.pipe.closed == (3001, "draining")


async def test_a_second_call_joins_the_first(world: World) -> None:
    hub = roomy(world)
    clients = await crowd(world, hub, 40)
    calls = [draining(hub), draining(hub, spread=60, timeout=60), asyncio.create_task(hub.aclose())]
    await world.settle()
    assert len(closed(clients)) < 10
    await world.clock.advance(0.1)
    assert 18 <= len(closed(clients)) <= 24
    await world.clock.advance(0.11)
    assert all(call.done() for call in calls)
    assert not hub.running


async def test_a_second_call_shortens_the_first(world: World) -> None:
    hub = roomy(world)
    clients = await crowd(world, hub, 40)
    drain = draining(hub)
    await world.clock.advance(0.1)
    gone = closed(clients)
    assert len(gone) < 30
    await hub.drain(spread=0)
    await drain
    assert len(closed(clients)) == 40
    rest = sorted(window(client) for client in clients if client not in gone)
    assert rest[0][0] < 0.01
    assert 0.09 < rest[-1][0] < 0.1, "they come back when they would have"
    assert rest[-1][1] == pytest.approx(rest[-1][0] + 1)


async def test_in_a_hurry_nothing_is_waited_for(world: World, caplog: Any) -> None:
    hub = roomy(world)
    ended = asyncio.Event()

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        await ended.wait()

    clients = await crowd(world, hub, 2)
    clients[0].ask("rpc", method="work")
    clients[1].pipe.answers_close = False
    await world.settle()
    drain = draining(hub)
    await world.settle()
    assert len(closed(clients)) == 2
    assert not drain.done()
    await hub.drain(timeout=0)
    assert drain.done()
    assert "1 handlers and 1 connections had not ended" in caplog.text
    assert hub.statistics().connections == 0
    ended.set()


async def test_nobody_waits_for_it_any_more_and_it_goes_on(world: World) -> None:
    """Cancellation of a call."""
    hub = roomy(world)
    clients = await crowd(world, hub, 40)
    drain = draining(hub)
    await world.settle()
    drain.cancel()
    await world.clock.advance(0.21)
    assert drain.cancelled()
    assert len(closed(clients)) == 40
    await hub.drain()


async def test_closing_is_cancelled_in_the_middle_of_it(world: World) -> None:
    """Everybody is told all the same, and nothing is left (which the fixture checks)."""
    hub = roomy(world)
    clients = await crowd(world, hub, 40)
    drain, closing = draining(hub), asyncio.create_task(hub.aclose())
    await world.clock.advance(0.1)
    gone = closed(clients)
    closing.cancel()
    await world.settle()
    assert closing.cancelled()
    assert drain.done()
    assert not drain.cancelled(), "that was not cancelled by anybody"
    assert len(closed(clients)) == 40
    assert max(window(client)[0] for client in clients if client not in gone) > 0.09
    assert not hub.running


async def test_a_handler_may_drain(world: World) -> None:
    """It is not waited for by itself, whenever it joins."""
    hub = roomy(world)
    log: list[str] = []
    go = asyncio.Event()

    @hub.rpc(object, name="drain")
    async def drain(ctx: Context[Any, Any], message: Any) -> None:
        await go.wait()
        await ctx.hub.drain()
        log.append("drained")

    (ann,) = await crowd(world, hub, 1)
    ann.ask("rpc", method="drain")
    await world.settle()
    call = draining(hub)
    await world.settle()
    assert not call.done()
    go.set()
    await world.settle()
    assert call.done()
    assert log == ["drained"]


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
async def test_seconds_that_cannot_be_meant(world: World, seconds: float) -> None:
    hub = roomy(world)
    for name in ("spread", "timeout"):
        with pytest.raises(ValueError, match=rf"drain\({name}=…\)"):
            await hub.drain(**{name: seconds})


async def test_a_hub_that_does_not_run_has_nothing_to_do(world: World) -> None:
    hub = roomy(world)
    await hub.drain()
    await hub.start()
    assert hub._not_ready() is None


# -- handing over ---------------------------------------------------------------------------------------


async def test_another_node_takes_a_session_up_and_nobody_sees_it_leave(world: World, diary: Diary) -> None:
    """C3, C4: and the drain ends a moment after the last of them, in which they join their rooms there."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    drain = draining(hub)
    await world.settle()
    assert window(ann) == (0.0, 1.0)
    await other.publish("room:a", "meanwhile")
    await world.clock.advance(0.5)
    assert not drain.done()
    ann, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"] is True
    joined = await ann.call("subscribe", channel="room:a", recover=True, epoch="", offset=0)
    assert [pub["data"] for pub in joined["publications"]] == ["meanwhile"]
    await world.clock.advance(0.9)
    assert not drain.done()
    await world.clock.advance(0.2)
    assert drain.done()
    await hub.aclose()
    await world.advance(60)
    lines = diary.read()
    assert not [line for line in lines if "leaves" in line], lines
    assert "ann ends: taken up on another node" in lines
    assert other.statistics().sessions == 1


async def test_who_is_not_taken_up_in_time_ends(world: World, diary: Diary) -> None:
    """The window, and three seconds more; their hooks are waited for."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    ann, _ = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    diary.read()
    drain = draining(hub)
    await world.settle()
    await world.clock.advance(3.9)
    assert diary.read() == []
    assert not drain.done()
    await world.clock.advance(0.15)
    assert sorted(diary.read()) == ["ann ends: draining", "ann leaves room:a"]
    assert drain.done()


async def test_while_they_come_it_waits_for_more(world: World, diary: Diary) -> None:
    """Other nodes let in only so many at once: who was turned away there comes seconds after its window."""
    hub, other = diary.hub(world, limits=Limits(drain_timeout=20)), diary.hub(world, "B: ")
    await other.start()
    tokens = [(await come(world, hub))[1]["rt"]["resume"] for _ in range(5)]
    drain = draining(hub)
    await world.settle()
    for token in tokens[:-1]:
        await world.clock.advance(2.9)
        _, again = await come(world, other, token=token)
        assert again["rt"]["resumed"]
    await world.clock.advance(2.9)
    assert not drain.done()
    await world.clock.advance(0.2)
    assert drain.done()
    assert "ann ends: draining" in diary.read()


async def test_who_comes_when_all_is_over_is_nobody_new(world: World, diary: Diary) -> None:
    """As if the node had died: it has left its rooms, and what it was told and not told goes with it (C4)."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    drain = draining(hub)
    await world.clock.advance(5)
    assert drain.done()
    assert "ann leaves room:a" in diary.read()
    ann, again = await come(world, other, token=told["rt"]["resume"])
    assert again["rt"]["resumed"]
    assert again["client"] == told["client"]
    assert ann.pipe.closed is None
    await world.advance(60)
    assert not [line for line in diary.read() if "leaves" in line]


@pytest.mark.parametrize("what", ["close", "refresh"])
async def test_what_is_done_to_who_has_not_come_yet_is_done(world: World, diary: Diary, what: str) -> None:
    """Between the end of the drain and that of the process."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    _, told = await come(world, hub)
    drain = draining(hub)
    await world.clock.advance(5)
    assert drain.done()
    reached = await getattr(other.user("ann"), what)()
    assert reached.sessions == 1
    ann, again = await come(world, other, token=told["rt"]["resume"])
    await ann.settle()
    assert again["rt"].get("resumed", False) is (what == "refresh")
    assert any("refresh" in push for push in ann.pushes) is (what == "refresh")


async def test_a_node_that_starts_while_another_drains_alone_takes_over(world: World, diary: Diary) -> None:
    """Nobody could be waited for, and here somebody is."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    _, told = await come(world, hub)
    await hub.drain()
    await other.start()
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


async def test_last_words_are_carried_out_during_a_drain(world: World, diary: Diary) -> None:
    """Who says goodbye and hangs up does not park, drain or not; what it said before is done (C3)."""
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    go = asyncio.Event()

    @hub.rpc(object, name="slow")
    async def slow(ctx: Context[Any, Any], message: Any) -> None:
        await go.wait()

    ann, _ = await come(world, hub)
    bob, _ = await come(world, other, "bob")
    for client in (ann, bob):
        await client.call("subscribe", channel="room:a")
    ann.tell(
        {"id": 7, "rpc": {"method": "slow", "data": 1}},
        {"id": 8, "publish": {"channel": "room:a", "data": "last words"}},
        {"bye": {}},
    )
    await ann.drop()
    drain = draining(hub)
    await world.settle()
    go.set()
    await world.settle()
    await bob.settle()
    assert bob.data_of("room:a") == ["last words"]
    await world.clock.advance(0.1)
    assert drain.done(), "nobody is waited for"
    assert hub.statistics().sessions == 0


async def test_a_mute_broker_does_not_make_a_drain_longer_than_it_may_take(
    world: World, diary: Diary
) -> None:
    broker = FaultyBroker(world.backend)
    hub, other = diary.hub(world, broker=broker), diary.hub(world, "B: ")
    await other.start()
    await come(world, hub)
    gate = broker.hold("entries")
    drain = draining(hub, timeout=0.25)
    await world.settle()
    await world.clock.advance(0.3)
    assert drain.done()
    gate.set()


async def test_alone_it_waits_for_nobody(world: World, diary: Diary) -> None:
    """Nobody could take them up: sessions end as their connections close."""
    hub = diary.hub(world)
    ann, _ = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await hub.drain()
    assert sorted(diary.read()[2:]) == ["ann ends: draining", "ann leaves room:a"]
    assert hub.statistics().sessions == 0


async def test_who_was_away_before_it_may_come_back_elsewhere_still(world: World, diary: Diary) -> None:
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    drain = draining(hub)
    await world.clock.advance(0.2)
    assert not drain.done()
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    await world.clock.advance(1.1)
    assert drain.done()
    assert not [line for line in diary.read() if "leaves" in line]


async def test_a_deadline_ends_the_handing_over(world: World, diary: Diary) -> None:
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    await other.start()
    await come(world, hub)
    drain = draining(hub, timeout=0.5)
    await world.settle()
    await world.clock.advance(0.4)
    assert not drain.done()
    await world.clock.advance(0.11)
    assert drain.done()
    assert hub.statistics().sessions == 0


async def test_handlers_and_handing_over_are_waited_for_at_the_same_time(
    world: World, diary: Diary, caplog: Any
) -> None:
    hub, other = diary.hub(world), diary.hub(world, "B: ")
    go = asyncio.Event()

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        await go.wait()
        await ctx.hub.publish("room:a", "from the handler")

    await other.start()
    ann, told = await come(world, hub)
    ann.ask("rpc", method="work")
    await ann.settle()
    drain = draining(hub)
    await world.settle()
    ann, _ = await come(world, other, token=told["rt"]["resume"])
    await ann.call("subscribe", channel="room:a")
    await world.clock.advance(4)
    assert not drain.done()
    go.set()
    await world.settle()
    assert drain.done()
    await ann.settle()
    assert ann.data_of("room:a") == ["from the handler"]
    assert "had not ended" not in caplog.text


@pytest.mark.parametrize("trouble", ["away", "mute"])
async def test_a_broker_that_is_not_there_holds_nothing_up(
    world: World, diary: Diary, trouble: str, caplog: Any
) -> None:
    """Nobody can take a session up without it."""
    broker = FaultyBroker(world.backend)
    hub, other = diary.hub(world, broker=broker), diary.hub(world, "B: ")
    await other.start()
    ann, _ = await come(world, hub)
    gate = broker.hold("entries")
    if trouble == "away":
        broker.down = True
        gate.set()
    drain = draining(hub)
    await world.settle()
    await world.clock.advance(1.1)
    assert ann.pipe.closed == (3001, "draining")
    assert drain.done()
    assert hub.statistics().sessions == 0
    broker.down = False
    gate.set()
    await world.settle()


async def test_the_others_see_nobody_leave(world: World) -> None:
    """P4: who watches the room at the other node hears nothing while three clients move there."""
    hubs = [world.hub(parks=True) for _ in range(2)]
    for hub in hubs:
        hub.rooms("p:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
        await hub.start()
    hub, other = hubs
    eve = await world.join(other, "eve")
    await eve.call("subscribe", channel="p:a", rt={"presence": True})
    moving: list[tuple[str, Any]] = []
    for user in ("ann", "bob", "cid"):
        client, told = await come(world, hub, user)
        await client.call("subscribe", channel="p:a")
        moving.append((user, told))
    await world.advance(12)
    await eve.settle()
    eve.forget()
    closing = asyncio.create_task(hub.aclose())
    await world.settle()
    for user, told in moving:
        await world.clock.advance(0.3)
        client, again = await come(world, other, user, told["rt"]["resume"])
        assert again["client"] == told["client"]
        await client.call("subscribe", channel="p:a")
    await world.advance(60)
    assert closing.done()
    await eve.settle()
    assert not any(body.get("leaves") for body in eve.pushes_of("p:a", "presence")), eve.pushes
    assert {member.user for member in await other.room("p:a").presence()} == {"eve", "ann", "bob", "cid"}


@pytest.mark.parametrize("kind", ["sse", "poll"])
async def test_requests_that_come_in_at_another_node_are_answered_to_the_end(world: World, kind: Any) -> None:
    """T2: who polls, or sends, elsewhere hears from here when to come back."""
    hub, other = roomy(world), roomy(world)
    await hub.start()
    await other.start()
    ann = WebClient(hub, world.clock, kind=kind, hubs=[hub, other], rt=True)
    world.clients.append(ann)
    await ann.connect("ann")
    crowded = await crowd(world, hub, 40)
    drain = draining(hub)
    await world.settle()
    sent = 0
    while ann.closed is None:
        if not any("disconnect" in push for push in ann.pushes):
            sent += 1
            await ann.call("publish", channel="r:a", data=sent)
        await world.clock.advance(0.05)
        await ann.settle()
        assert sent < 10
    assert window(ann) == (0.0, 1.0)
    assert (await other.room("r:a").history(limit=100)).messages[-1].data == sent
    await world.advance(5)
    assert drain.done()
    assert len(closed(crowded)) == 40
