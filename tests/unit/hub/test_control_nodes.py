"""A4, T2: what is done to a user on all nodes is acknowledged by each, and who keeps silent is named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import BrokerUnavailable, Context, Grant, History, Hub
from rtkit.errors import Unavailable
from rtkit.hub import Reached
from rtkit.hub.relay import CONTROL, PATIENCE, Answered, Ask
from rtkit.primitives.clocks import sleep
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World
from tests.unit.hub.test_parking import Diary, come


def node(world: World, broker: Any = None, **options: Any) -> Hub[Any]:
    hub = world.hub(broker=broker, **options)
    hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(50, ttl=600))
    return hub


def faulty(world: World) -> tuple[Hub[Any], FaultyBroker]:
    broker = FaultyBroker(world.backend)
    return node(world, broker), broker


async def result(world: World, doing: Any, *, within: float = 10.0) -> Any:
    """What comes of it, in virtual time."""
    task = asyncio.ensure_future(doing)
    await world.settle()
    for _ in range(int(within * 2)):
        if task.done():
            break
        await world.advance(0.5, step=0.5)
    assert task.done(), "it does not end"
    return await task


# -- who did it, and to how many --------------------------------------------------------------------------


async def test_every_node_says_how_many_it_has_closed(world: World) -> None:
    hubs = [node(world) for _ in range(3)]
    for hub in hubs:
        await hub.start()
    mine = [await world.join(hubs[n], "ann") for n in (0, 1, 1)]
    bob = await world.join(hubs[1], "bob")
    reached = await hubs[2].user("ann").close(reason="enough")
    assert reached == Reached({hub.node_id: n for hub, n in zip(hubs, (1, 2, 0), strict=True)})
    assert (reached.sessions, reached.complete) == (3, True)
    reached.check()
    assert [client.closed for client in mine] == [(3503, "enough")] * 3, "when it returns, it is done"
    assert bob.closed is None
    assert (await hubs[0].user("ann").close()).sessions == 0


async def test_one_client_alone(world: World) -> None:
    one, two = node(world), node(world)
    await one.start()
    await world.join(two, "ann", "r:a")
    tab = await world.join(two, "ann", "r:a")
    client = tab.reply(1)["connect"]["client"]
    assert (await one.room("r:a").remove("ann", reason="x", client=client)).sessions == 1
    assert (await one.user("ann").where("r:a")).nodes == {one.node_id: 0, two.node_id: 1}
    assert (await one.user("ann").refresh(client=client)).sessions == 1
    assert (await one.user("ann").close(client=client)).sessions == 1
    assert (await one.user("ann").where()).nodes == {one.node_id: 0, two.node_id: 1}


async def test_revoking_and_banning_count_whom_they_put_out(world: World) -> None:
    """However the nodes learn of it first."""
    one, two = node(world), node(world)
    await one.start()
    for hub in (one, two, two):
        await world.join(hub, "ann", "r:a")
    banned = await one.room("r:a").remove("ann", reason="x", ban=5)
    assert banned.nodes == {one.node_id: 1, two.node_id: 2}
    revoked = await one.user("ann").revoke(world.clock.time() + 5)
    assert revoked.nodes == {one.node_id: 1, two.node_id: 2}
    assert (await one.user("ann").where()).sessions == 0


async def test_what_is_published_after_a_removal_is_not_heard(world: World) -> None:
    """The removal is through when it returns."""
    one, two = node(world), node(world)
    await one.start()
    ann = await world.join(two, "ann", "r:a")
    await one.room("r:a").remove("ann", reason="x")
    await one.publish("r:a", "secret")
    await ann.settle()
    assert ann.data_of("r:a") == []
    assert ann.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "x"}]


async def test_what_all_nodes_have(world: World) -> None:
    one, two = node(world), node(world)
    await one.start()
    await world.join(two, "ann", "r:a", "r:b")
    await world.join(two, "bob", "r:a")
    await world.advance(7)
    found = await one.nodes()
    assert found.silent == () and found.known
    nodes = {each.id: each for each in found.nodes}
    assert list(nodes) == sorted([one.node_id, two.node_id])
    mine, other = nodes[one.node_id], nodes[two.node_id]
    assert (mine.sessions, mine.users, mine.rooms, mine.members) == (0, 0, 0, 0)
    assert (other.sessions, other.users, other.rooms, other.members) == (2, 2, 2, 3)
    assert other.uptime == 7 and other.version == two.engine.version


# -- who is silent ----------------------------------------------------------------------------------------


async def test_who_does_not_answer_is_named(world: World) -> None:
    """It holds its lease, and hears nothing: 2 s, once more, 2 s."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    mine, other = await world.join(one, "ann"), await world.join(two, "ann")
    broker.deaf = True
    closing = asyncio.ensure_future(one.user("ann").close())
    await world.advance(2 * PATIENCE - 0.5, step=0.5)
    assert mine.closed is not None and not closing.done()
    await world.advance(0.5)
    reached = closing.result()
    assert reached == Reached({one.node_id: 1}, silent=(two.node_id,))
    assert not reached.complete
    with pytest.raises(Unavailable, match=f"nodes {two.node_id} do not answer"):
        reached.check()
    assert other.closed is None
    assert one.statistics().totals["silent"] == 1  # type: ignore[index]


async def test_a_request_that_was_lost_is_sent_once_more(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    client = await world.join(two, "ann")
    broker.deaf = {CONTROL}
    reached = await result(world, one.user("ann").close())
    assert reached == Reached({one.node_id: 0, two.node_id: 1})
    assert client.closed is not None


async def test_an_answer_that_was_lost_is_given_again_and_nothing_done_twice(world: World) -> None:
    (one, broker), two = faulty(world), node(world)
    await one.start()
    client = await world.join(two, "ann")
    broker.deaf = {one.engine.relay.topic}
    closing = asyncio.ensure_future(one.user("ann").close())
    await client.settle()
    assert client.closed is not None
    broker.deaf = False
    again = await world.join(two, "ann")
    await world.advance(2)
    assert closing.result() == Reached({one.node_id: 0, two.node_id: 1})
    assert again.closed is None, "it was asked for before"


async def test_who_died_meanwhile_is_not_waited_for_again(world: World) -> None:
    """Crash between two lines: asked, and gone before it answered. It has no sessions any more."""
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    await two.start()
    broker.deaf = True
    closing = asyncio.ensure_future(one.user("ann").close())
    await world.advance(1)
    await two.engine.lease.release()
    await world.advance(1)
    assert closing.result() == Reached({one.node_id: 0})


async def test_a_node_that_is_cut_off_is_not_asked_when_its_lease_is_gone(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    await two.start()
    broker.down = broker.deaf = True
    await world.advance(11)
    assert await one.user("ann").close() == Reached({one.node_id: 0})


async def test_a_node_that_fails_counts_as_silent(world: World, errors: Any) -> None:
    """L3: logged there; it is not taken for done."""
    one, two = node(world), node(world)
    await one.start()
    await two.start()

    def fail(*_: Any) -> Answered:
        raise RuntimeError("a bug")

    two.engine.relay.obey["close"] = fail
    assert await one.user("ann").close() == Reached({one.node_id: 0}, silent=(two.node_id,))
    assert [str(each.exc_info[1]) for each in errors()] == ["a bug"]
    del two.engine.relay.obey["close"]  # a release that does not know of it
    assert (await one.user("ann").close()).silent == (two.node_id,)


async def test_the_broker_away_means_that_nothing_was_done(world: World) -> None:
    """B4: never reported as done."""
    (one, broker), two = faulty(world), node(world)
    await two.start()
    ann, tab = await world.join(one, "ann", "r:a"), await world.join(two, "ann")
    broker.down = True
    for doing in (
        one.user("ann").close(),
        one.user("ann").refresh(),
        one.user("ann").revoke(world.clock.time() + 9),
        one.room("r:a").remove("ann", reason="x"),
        one.room("r:a").remove("ann", reason="x", ban=9),
        one.user("ann").where(),
        one.nodes(),
    ):
        with pytest.raises(BrokerUnavailable):
            await doing
    await world.settle()
    assert ann.closed is tab.closed is None
    assert len(ann.units) == 2 and len(tab.units) == 1
    broker.down = False
    assert (await one.user("ann").close()).sessions == 2


async def test_a_broker_that_goes_away_while_others_are_asked_leaves_them_silent(world: World) -> None:
    (one, broker), (two, other) = faulty(world), faulty(world)
    await one.start()
    ann = await world.join(one, "ann")
    await two.start()
    other.deaf = True
    closing = asyncio.ensure_future(one.user("ann").close())
    await world.advance(1)
    broker.down = True
    await world.advance(3)
    assert closing.result() == Reached({one.node_id: 1}, silent=(two.node_id,))
    assert ann.closed is not None


async def test_a_broker_without_state_is_told_and_hoped_for(world: World) -> None:
    hub = node_of_plain(world)
    client = await world.join(hub, "ann", "live:a")
    reached = await hub.room("live:a").remove("ann", reason="x")
    assert reached == Reached({hub.node_id: 1}, known=False)
    assert not reached.complete
    with pytest.raises(Unavailable, match="keeps no state"):
        reached.check()
    assert (await hub.user("ann").close()).sessions == 1
    assert client.closed is not None
    assert not (await hub.nodes()).known


def node_of_plain(world: World) -> Hub[Any]:
    hub = world.hub(broker=PlainBroker())
    hub.rooms("live:{x}", publishes=object, grant=Grant())
    return hub


async def test_to_be_cancelled_while_asking_leaves_nothing(world: World) -> None:
    one, (two, broker) = node(world), faulty(world)
    await one.start()
    await two.start()
    broker.deaf = True
    closing = asyncio.ensure_future(one.user("ann").close())
    await world.settle()
    closing.cancel()
    await world.settle()
    assert closing.cancelled()
    assert "0 asked" in repr(one.engine.relay)


async def test_a_node_may_ask_from_within_a_handler(world: World) -> None:
    """And close the very session that asks."""
    one, two = node(world), node(world)

    @one.rpc(object, name="log me out everywhere")
    async def log_out(ctx: Context[Any, Any], message: Any) -> int:
        return (await ctx.hub.user(ctx.user).close()).sessions

    tab = await world.join(two, "ann")
    client = await world.join(one, "ann")
    client.ask("rpc", method="log me out everywhere", data=0)
    await client.settle()
    assert client.closed == tab.closed == (3503, "closed for good")


async def test_who_says_later_for_ever_is_not_waited_for_for_ever(world: World) -> None:
    """T2: the caller's patience counts in total."""
    one, two = node(world), node(world)
    await one.start()
    await two.start()
    never: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
    two.engine.relay.obey["dawdle"] = lambda _: never
    asking = asyncio.ensure_future(one.engine.relay.ask(two.node_id, Ask(do="dawdle"), within=12))
    await world.advance(11.5, step=0.5)
    assert not asking.done()
    await world.advance(1, step=0.5)
    assert asking.result() is None
    never.set_result(Answered(status=200))
    await world.settle()


async def test_an_answer_within_the_patience_is_taken(world: World) -> None:
    one, two = node(world), node(world)
    await one.start()
    await two.start()

    async def soon() -> Answered:
        await sleep(world.clock, 11)
        return Answered(status=200, number=7)

    two.engine.relay.obey["dawdle"] = lambda _: asyncio.ensure_future(soon())
    found = await result(world, one.engine.relay.ask(two.node_id, Ask(do="dawdle"), within=12), within=20)
    assert found is not None and found.number == 7


# -- sessions that are parked -----------------------------------------------------------------------------


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def gone(world: World, hub: Hub[Any], *rooms: str) -> tuple[RawClient, str]:
    """A client that has lost its connection, and its resume token."""
    ann, told = await come(world, hub)
    for room in rooms:
        await ann.call("subscribe", channel=room)
    await ann.drop()
    return ann, told["rt"]["resume"]


async def test_parked_sessions_are_counted_and_closed(world: World, diary: Diary) -> None:
    one, two = diary.hub(world), diary.hub(world)
    await two.start()
    await gone(world, one, "room:a")
    assert (await two.user("ann").where()).sessions == 1
    assert (await two.user("ann").where("room:a")).sessions == 1
    assert (await two.user("ann").where("room:b")).sessions == 0
    assert (await two.user("ann").close(reason="enough")).sessions == 1
    await world.settle()
    assert diary.read() == ["ann starts", "ann joins", "ann leaves room:a", "ann ends: enough"]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("ban", [0, 9])
async def test_who_is_removed_while_away_has_left_and_does_not_come_back_in_silence(
    world: World, diary: Diary, elsewhere: bool, ban: float
) -> None:
    """A4, C3: the others are told at once; its client is told when it comes back, in the place of coming in."""
    one, two = diary.hub(world), diary.hub(world)
    await two.start()
    _, token = await gone(world, one, "room:a", "room:b")
    diary.read()
    assert (await two.room("room:a").remove("ann", reason="calm down", ban=ban)).sessions == 1
    await world.settle()
    assert diary.read() == ["ann leaves room:a"]
    ann, again = await come(world, two if elsewhere else one, token=token)
    assert again["rt"]["resumed"] is True
    error = await ann.refused("subscribe", channel="room:a")
    assert (error["code"], error["message"]) == (103, "removed from this room: calm down")
    assert not error.get("temporary")
    await ann.call("subscribe", channel="room:b")
    await world.advance(ban + 1)
    await ann.call("subscribe", channel="room:a")  # it may, if it wants to
    await world.advance(30)
    assert "leaves" not in " ".join(diary.read())


async def test_who_is_removed_while_coming_back_in_is_told_once(world: World, diary: Diary) -> None:
    broker = FaultyBroker(world.backend)
    hub = diary.hub(world, broker=broker)
    _, token = await gone(world, hub, "room:a")
    diary.read()
    ann, _ = await come(world, hub, token=token)
    gate = broker.hold("subscribe")
    asked = ann.ask("subscribe", channel="room:a")
    await ann.settle()
    assert (await hub.room("room:a").remove("ann", reason="x")).sessions == 1
    gate.set()
    await ann.settle()
    assert "error" in ann.reply(asked)
    assert "ann leaves room:a" in diary.read()
    await ann.call("subscribe", channel="room:a")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_who_was_to_be_refreshed_while_away_is_asked_when_back(
    world: World, diary: Diary, elsewhere: bool
) -> None:
    """A3."""
    one, two = diary.hub(world), diary.hub(world)
    await two.start()
    _, token = await gone(world, one)
    assert (await two.user("ann").refresh()).sessions == 1
    ann, _ = await come(world, two if elsewhere else one, token=token)
    assert ann.pushes == [{"refresh": {"expires": True, "ttl": 1}}]
    assert "connect" in ann.units[0], "which comes first"
    await world.advance(12)
    assert ann.close_code == 3005


@pytest.mark.parametrize("do", ["close", "remove", "refresh"])
async def test_a_session_on_its_way_between_nodes_is_not_missed(world: World, diary: Diary, do: str) -> None:
    """Two nodes: the one has let go of it, the other has not heard of that yet."""
    one = diary.hub(world)
    broker = FaultyBroker(world.backend)
    two = diary.hub(world, broker=broker)
    await two.start()
    _, token = await gone(world, one, "room:a")
    held: list[tuple[Any, ...]] = []
    deliver = two.engine.deliver
    two.engine.deliver = lambda *args: held.append(args)  # type: ignore[method-assign]
    ann = world.client(two, rt=True)
    ann.ask("connect", token="ann", rt={"v": 1, "resume": token})
    await ann.settle()
    assert one.statistics().sessions == two.statistics().sessions == 0, "on its way"
    two.engine.deliver = deliver  # type: ignore[method-assign]
    if do == "close":
        await one.user("ann").close()
    elif do == "refresh":
        await one.user("ann").refresh()
    else:
        await one.room("room:a").remove("ann", reason="x")
    for args in held:
        deliver(*args)
    await ann.settle()
    if do == "close":
        assert ann.closed == (3503, "closed for good")
        assert two.statistics().sessions == 0
    elif do == "refresh":
        assert ann.pushes == [{"refresh": {"expires": True, "ttl": 1}}]
    else:
        assert (await ann.refused("subscribe", channel="room:a"))["message"] == "removed from this room: x"
        assert "ann leaves room:a" in diary.read()
    assert not two.engine.control.passing


async def test_rooms_of_the_servers_choice_let_in_who_was_removed_while_away(world: World) -> None:
    """Without a ban nothing keeps it out, and a refusal would refuse the whole connection."""
    hub = world.hub(parks=True)
    hub.rooms("team:{x}", publishes=object, grant=Grant(), auto_join=lambda identity: ["team:a"])
    _, token = await gone(world, hub)
    assert (await hub.room("team:a").remove("ann", reason="x")).sessions == 1
    ann, again = await come(world, hub, token=token)
    assert list(again["subs"]) == ["team:a"]
    assert ann.closed is None
