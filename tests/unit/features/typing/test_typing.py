"""Typing on hubs: who hears what, and that nobody types for ever (X1)."""

from __future__ import annotations

from typing import Any

import pytest

import rtkit.features
from rtkit import Context, DeclarationError, Grant, History, Hub, Limits, anonymous
from rtkit.features import Typing
from rtkit.primitives import Rate
from tests.support.rawclient import CallFailed, RawClient
from tests.unit.features.typing.listener import Listener
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


def hub_of(world: World, *, expires: float = 5.0, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    for prefix, history in (("live", None), ("kept", History(100, ttl=600))):
        rooms = hub.rooms(
            prefix + ":{x}", publishes=object, grant=ALL, history=history, typing=Typing(expires=expires)
        )

        @rooms.on(object, name="say")
        async def say(ctx: Context[Any, Any], message: Any) -> None:
            if message is not None:
                await ctx.room.publish(message)

    hub.rooms("plain:{x}", publishes=object, grant=ALL)
    hub.rooms("mute:{x}", publishes=object, grant=Grant("publish"), typing=Typing())
    return hub


def id_of(client: RawClient) -> str:
    return str(client.replies[1]["connect"]["client"])


async def types(client: RawClient, typing: bool = True, room: str = "live:a") -> None:
    await client.call("signal", channel=room, event="typing", data=typing)


class Two:
    """Ann on one hub, Bob on another; Bob listens."""

    def __init__(self, world: World, ann: RawClient, bob: RawClient) -> None:
        self.world = world
        self.ann = ann
        self.bob = bob

    @property
    def heard(self) -> list[bool]:
        return [s["data"] for s in self.bob.pushes_of("live:a", "signal") if s["event"] == "typing"]

    @classmethod
    async def meet(cls, world: World, **options: Any) -> Two:
        one, two = hub_of(world, **options), hub_of(world, **options)
        return cls(world, await world.join(one, "ann", "live:a"), await world.join(two, "bob", "live:a"))

    def kept(self) -> int:
        running: list[Any] = [hub.engine.features["typing"] for hub in self.world.hubs]
        return sum(len(each._watched) for each in running)


async def test_a_room_says_that_it_has_typing(world: World) -> None:
    hub = hub_of(world, expires=4.0)
    await hub.start()
    ann = world.client(hub, rt=True)
    await ann.connect("ann")
    assert (await ann.call("subscribe", channel="live:a"))["typing"] == 4.0
    assert "typing" not in await ann.call("subscribe", channel="plain:a")
    base = world.client(hub)
    await base.connect("eve")
    assert await base.call("subscribe", channel="live:a") == {}


async def test_the_others_hear_it_with_user_and_client(world: World) -> None:
    two = await Two.meet(world)
    assert await two.ann.call("signal", channel="live:a", event="typing", data=True) == {}
    await world.settle()
    said = {"event": "typing", "data": True, "user": "ann", "client": id_of(two.ann)}
    assert two.bob.pushes_of("live:a", "signal") == [said]
    await types(two.ann, False)
    await world.settle()
    assert two.bob.pushes_of("live:a", "signal")[1:] == [said | {"data": False}]
    assert two.ann.pushes == []


async def test_without_data_it_is_true_and_else_it_is_refused(world: World) -> None:
    two = await Two.meet(world)
    await two.ann.call("signal", channel="live:a", event="typing")
    wrong: list[Any] = [{"on": True}, 1, 0, "true", [], "", 1.5]
    for data in wrong:
        with pytest.raises(CallFailed, match="typing is true or false") as failed:
            await two.ann.call("signal", channel="live:a", event="typing", data=data)
        assert failed.value.code == 107
    await world.settle()
    assert two.heard == [True]


async def test_elsewhere_it_is_a_signal_like_any_other(world: World) -> None:
    hub = hub_of(world)
    ann, bob = await world.join(hub, "ann", "plain:a"), await world.join(hub, "bob", "plain:a")
    for data in ({"on": True}, True, True, False):
        await ann.call("signal", channel="plain:a", event="typing", data=data)
    await world.advance(10)
    assert [s["data"] for s in bob.pushes_of("plain:a", "signal")] == [{"on": True}, True, True, False]


async def test_other_signals_of_the_room_are_none_of_its_business(world: World) -> None:
    two = await Two.meet(world)
    await two.ann.call("signal", channel="live:a", event="cursor", data={"x": 1})
    await world.settle()
    assert [s["event"] for s in two.bob.pushes_of("live:a", "signal")] == ["cursor"]


async def test_it_needs_the_right_and_membership(world: World) -> None:
    two = await Two.meet(world)
    assert (await two.ann.refused("signal", channel="mute:a", event="typing", data=True))["code"] == 103
    outside = await two.ann.refused("signal", channel="live:b", event="typing", data=True)
    assert outside == {"code": 103, "message": "not subscribed"}


async def test_who_falls_silent_stops(world: World) -> None:
    two = await Two.meet(world)
    await types(two.ann)
    await world.advance(4.9, step=0.1)
    assert two.heard == [True]
    await world.advance(0.2, step=0.1)
    assert two.heard == [True, False]


async def test_who_goes_on_is_passed_on_now_and_then(world: World) -> None:
    """At most once in a third of the time, and often enough that it expires nowhere."""
    two = await Two.meet(world)
    listener = Listener(two.bob, "live:a", 5.0)
    for _ in range(200):
        await types(two.ann)
        await world.advance(0.1)
        assert listener.typists == {id_of(two.ann)}
    assert set(two.heard) == {True}
    assert len(two.heard) <= 20 / (5 / 3) + 1


async def test_a_sender_that_repeats_at_half_of_it_never_expires(world: World) -> None:
    two = await Two.meet(world)
    listener = Listener(two.bob, "live:a", 5.0)
    for _ in range(20):
        await types(two.ann)
        for _ in range(5):
            await world.advance(0.5)
            assert listener.typists == {id_of(two.ann)}
    assert two.heard == [True] * 20


@pytest.mark.parametrize("room", ["live:a", "kept:a"])
async def test_who_has_sent_a_message_has_stopped(world: World, room: str) -> None:
    one, two = hub_of(world), hub_of(world)
    ann, bob = await world.join(one, "ann", room), await world.join(two, "bob", room)
    listener = Listener(bob, room, 5.0)
    await types(ann, room=room)
    await world.settle()
    assert listener.typists == {id_of(ann)}
    await ann.call("publish", channel=room, data="hello")
    await world.settle()
    assert listener.typists == set()
    assert bob.pushes_of(room, "signal")[-1]["data"] is False


async def test_a_handler_that_speaks_for_it_counts_and_so_does_one_that_says_nothing(world: World) -> None:
    two = await Two.meet(world)
    for message in ("hello", None):
        await types(two.ann)
        await two.ann.call("publish", channel="live:a", data={"event": "say", "data": message})
        await world.settle()
    assert two.heard == [True, False, True, False]
    assert two.bob.data_of("live:a") == ["hello"]


async def test_a_message_that_was_refused_does_not(world: World) -> None:
    two = await Two.meet(world)
    await types(two.ann)
    await two.ann.refused("publish", channel="live:a")
    await world.settle()
    assert two.heard == [True]


@pytest.mark.parametrize("room", ["live:a", "kept:a"])
async def test_who_types_the_next_message_at_once_types(world: World, room: str) -> None:
    """The word must not overtake the message: who hears them the other way round would conclude the opposite."""
    one, two = hub_of(world), hub_of(world)
    ann, bob = await world.join(one, "ann", room), await world.join(two, "bob", room)
    listener = Listener(bob, room, 5.0)
    for n in range(2):
        for hub in (one, two):
            assert hub.engine.rooms[room].live
        ann.tell(
            {"id": ann.next_id(), "publish": {"channel": room, "data": n}},
            {"id": ann.next_id(), "signal": {"channel": room, "event": "typing", "data": True}},
        )
        await world.settle()
        assert listener.typists == {id_of(ann)}
        await world.advance(1.5)


async def test_what_the_broker_brings_in_one_turn_stays_in_order(world: World) -> None:
    """A listener that parses many at once calls the hub for all of them before the turn ends."""
    two = await Two.meet(world)
    taken: list[tuple[str, bytes, Any]] = []
    engine = two.world.hubs[1].engine
    deliver = engine.deliver
    engine.deliver = lambda *args: taken.append(args)  # type: ignore[method-assign]
    await two.ann.call("publish", channel="live:a", data="hello")
    await types(two.ann)
    await world.settle()
    assert len(taken) == 2
    for args in taken:
        deliver(*args)
    await world.settle()
    assert [sorted(push)[1] for push in two.bob.pushes] == ["pub", "signal"]


@pytest.mark.parametrize("how", ["unsubscribe", "bye", "drop", "close", "remove"])
@pytest.mark.parametrize("parks", [False, True])
async def test_who_is_not_there_any_more_has_stopped(world: World, how: str, parks: bool) -> None:
    two = await Two.meet(world, parks=parks)
    await types(two.ann)
    await world.settle()
    hub = world.hubs[0]
    if how == "unsubscribe":
        await two.ann.call("unsubscribe", channel="live:a")
    elif how == "bye":
        await two.ann.leave()
    elif how == "drop":
        await two.ann.drop()
    elif how == "close":
        await hub.engine.sessions[id_of(two.ann)].close(code=3503)
    else:
        removing = hub.engine.task(lambda: hub.room("live:a").remove("ann", reason="enough"))
        await world.advance(0.1)
        assert removing.done()
    await world.settle()
    assert two.heard == [True, False]
    await world.advance(30)
    assert two.heard == [True, False]


async def test_a_hub_that_closes_says_so_for_its_clients(world: World) -> None:
    two = await Two.meet(world)
    await types(two.ann)
    closing = two.world.hubs[0].aclose()
    task = two.world.hubs[1].engine.task(lambda: closing)
    await world.advance(1.0)
    assert task.done()
    assert two.heard == [True, False]


async def test_who_comes_back_types_as_the_same_client(world: World) -> None:
    """C3, on the other node too: it is told that it stopped, and that it goes on."""
    two = await Two.meet(world, parks=True)
    welcome = two.ann.replies[1]["connect"]
    listener = Listener(two.bob, "live:a", 5.0)
    await types(two.ann)
    await two.ann.drop()
    back = world.client(world.hubs[1], rt=True)
    again = await back.connect("ann", rt={"v": 1, "resume": welcome["rt"]["resume"]})
    assert again["rt"]["resumed"]
    assert again["client"] == welcome["client"]
    await back.call("subscribe", channel="live:a")
    assert listener.typists == set()
    await types(back)
    await world.settle()
    assert listener.typists == {welcome["client"]}
    await types(back, False)
    await world.settle()
    assert listener.typists == set()
    assert listener.heard == [(welcome["client"], each) for each in (True, False, True, False)]


async def test_two_devices_of_a_user_are_two_that_type(world: World) -> None:
    two = await Two.meet(world)
    other = await world.join(world.hubs[1], "ann", "live:a")
    listener = Listener(two.bob, "live:a", 5.0)
    await types(two.ann)
    await types(other)
    await types(two.ann, False)
    await world.settle()
    assert listener.typists == {id_of(other)}


async def test_a_flood_of_flips_costs_the_others_four_changes_a_second(world: World) -> None:
    """And the last word gets through, whichever it is."""
    options: Any = {"limits": Limits(commands=Rate(rate=1000, burst=1000), heartbeat=None)}
    for last in (True, False):
        two = await Two.meet(world, **options)
        listener = Listener(two.bob, "live:a", 5.0)
        for n in range(300):
            two.ann.tell({"signal": {"channel": "live:a", "event": "typing", "data": n % 2 == 0}})
            await world.clock.advance(0.01)
        two.ann.tell({"signal": {"channel": "live:a", "event": "typing", "data": last}})
        await world.advance(1.0, step=0.1)
        assert len(two.heard) <= 4 * 4 + 1
        assert listener.typists == ({id_of(two.ann)} if last else set())


async def test_to_leave_and_come_anew_is_no_way_around_that(world: World) -> None:
    two = await Two.meet(world)
    for _ in range(10):
        await types(two.ann)
        await two.ann.call("unsubscribe", channel="live:a")
        await two.ann.call("subscribe", channel="live:a")
    await world.settle()
    assert two.heard == [True, False, True, False]


async def test_nothing_is_kept_of_who_does_not_type(world: World) -> None:
    """C5: not before, and not a second after."""
    two = await Two.meet(world)
    before = [len(hub.engine.deadlines) for hub in world.hubs]
    assert two.kept() == 0
    await types(two.ann, False)
    assert two.kept() == 0
    await types(two.ann)
    assert two.kept() == 1
    assert [len(hub.engine.deadlines) for hub in world.hubs] == [before[0] + 1, before[1]]
    await types(two.ann, False)
    await world.advance(1.1, step=0.1)
    assert two.kept() == 0
    assert [len(hub.engine.deadlines) for hub in world.hubs] == before


async def test_it_is_in_no_history_and_nobody_hears_it_later(world: World) -> None:
    hub = hub_of(world)
    ann = await world.join(hub, "ann", "kept:a")
    await types(ann, room="kept:a")
    bob = await world.join(hub, "bob", "kept:a")
    assert (await bob.call("history", channel="kept:a", limit=-1)).get("publications", []) == []
    assert bob.pushes == []
    await world.advance(2.5)
    await types(ann, room="kept:a")
    await world.settle()
    assert [s["data"] for s in bob.pushes_of("kept:a", "signal")] == [True]


async def test_clients_that_are_not_rt_hear_nothing_of_it(world: World) -> None:
    two = await Two.meet(world)
    base = await world.join(world.hubs[1], "eve", "live:a", rt=False)
    for typing in (True, False, True):
        await types(two.ann, typing)
    await two.ann.drop()
    await world.advance(6)
    assert base.pushes == []


async def test_a_lost_word_is_made_good_by_the_next(world: World) -> None:
    """The broker is away for some seconds: who goes on typing is heard of again, who does not expires by itself."""
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    ann, bob = await world.join(hub, "ann", "live:a"), await world.join(hub, "bob", "live:a")
    listener = Listener(bob, "live:a", 5.0)
    await types(ann)
    await world.settle()
    broker.down = True
    await types(ann, False)
    await world.settle()
    assert listener.typists == {id_of(ann)}
    await world.advance(5.1, step=0.5)
    assert listener.typists == set()
    await types(ann)
    await world.settle()
    assert listener.typists == set()
    broker.down = False
    await world.advance(2)
    await types(ann)
    await world.settle()
    assert listener.typists == {id_of(ann)}
    assert (hub.statistics().totals or {})["drops{signal}"] == 2


async def test_a_stall_of_the_hub_stops_nobody(world: World) -> None:
    """F5: what the clients said meanwhile lies in the kernel's buffers."""
    two = await Two.meet(world, limits=Limits(heartbeat=None))
    await types(two.ann)
    await world.settle()
    world.clock.stall(7.0)
    await world.settle()
    await types(two.ann)
    await world.settle()
    assert False not in two.heard
    await world.advance(20)
    assert two.heard[-1] is False


def test_it_is_declared_with_a_time_that_can_work() -> None:
    for expires in (0, 0.5, -1, 61, float("inf"), float("nan"), "5", None, True):
        with pytest.raises(ValueError, match=r"Typing\(expires=…\) is 1 to 60 seconds, not "):
            Typing(expires=expires)  # type: ignore[arg-type]
    assert Typing(expires=1) == Typing(expires=1.0)
    with pytest.raises(DeclarationError, match=r"pass typing=Typing\(\)"):
        Hub(authenticate=anonymous).rooms("r:{x}", publishes=object, typing=Typing)  # type: ignore[call-overload]
    assert rtkit.features.Typing is Typing
