"""A rate for signals, on hubs; and what an outbox does with them (D5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import rtkit.features
from rtkit import DeclarationError, Grant, History, Hub, Limits, anonymous
from rtkit.features import Signals, Typing
from rtkit.primitives import Rate
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

LIMITS = Limits(heartbeat=None, commands=Rate(rate=10_000, burst=10_000), max_publication=100_000)


def hub_of(world: World, *, limits: Limits = LIMITS, rate: float = 10.0, **options: Any) -> Hub[Any]:
    hub = world.hub(limits=limits, **options)
    grant = Grant("publish", "signal")
    hub.rooms("board:{x}", publishes=object, grant=grant, signals=Signals(rate=rate))
    hub.rooms("both:{x}", publishes=object, grant=grant, signals=Signals(rate=rate), typing=Typing())
    hub.rooms("free:{x}", publishes=object, grant=grant)
    hub.rooms("kept:{x}", publishes=object, grant=grant, history=History(100, ttl=600))
    return hub


def id_of(client: RawClient) -> str:
    return str(client.replies[1]["connect"]["client"])


async def signal(client: RawClient, data: Any, event: str = "cursor", room: str = "board:a") -> None:
    await client.call("signal", channel=room, event=event, data=data)


def heard(client: RawClient, room: str = "board:a", event: str = "cursor") -> list[Any]:
    return [s["data"] for s in client.pushes_of(room, "signal") if s["event"] == event]


def dropped(hub: Hub[Any]) -> int:
    return (hub.statistics().totals or {}).get("drops{signal}", 0)


def limited(hub: Hub[Any]) -> int:
    return (hub.statistics().totals or {}).get("limits{signals}", 0)


async def two(world: World, **options: Any) -> tuple[RawClient, RawClient]:
    """Ann on one hub, Bob on another."""
    one, other = hub_of(world, **options), hub_of(world, **options)
    return await world.join(one, "ann", "board:a"), await world.join(other, "bob", "board:a")


# -- the rate ------------------------------------------------------------------------------------------


async def test_a_room_says_how_often(world: World) -> None:
    hub = hub_of(world, rate=20)
    await hub.start()
    ann = world.client(hub, rt=True)
    await ann.connect("ann")
    assert (await ann.call("subscribe", channel="board:a"))["signals"] == 20
    both = await ann.call("subscribe", channel="both:a")
    assert (both["signals"], both["typing"]) == (20, 5)
    assert await ann.call("subscribe", channel="free:a") == {}
    base = world.client(hub)
    await base.connect("eve")
    assert await base.call("subscribe", channel="board:a") == {}


async def test_of_more_than_its_rate_the_newest_passes_when_it_may(world: World) -> None:
    ann, bob = await two(world)
    for n in range(8):
        await signal(ann, n)
        await world.clock.advance(0.01)
    assert heard(bob) == [0]
    await world.advance(0.1, step=0.01)
    assert heard(bob) == [0, 7]
    await world.advance(3.0, step=0.1)
    assert heard(bob) == [0, 7]
    assert limited(world.hubs[0]) == 7
    assert dropped(world.hubs[0]) == 0


async def test_whoever_keeps_to_it_is_not_held_back(world: World) -> None:
    ann, bob = await two(world)
    for n in range(30):
        await signal(ann, n)
        assert heard(bob) == list(range(n + 1))
        await world.clock.advance(0.1)
    assert limited(world.hubs[0]) == 0


async def test_a_flood_passes_ten_times_a_second(world: World) -> None:
    ann, bob = await two(world)
    for n in range(300):
        ann.tell({"signal": {"channel": "board:a", "event": "cursor", "data": n}})
        await world.clock.advance(0.01)
    await world.advance(1.0)
    assert len(heard(bob)) in (30, 31, 32)
    assert heard(bob)[-1] == 299
    assert heard(bob) == sorted(heard(bob))


async def test_it_is_counted_for_each_client_and_event(world: World) -> None:
    ann, bob = await two(world)
    other = await world.join(world.hubs[0], "ann", "board:a")
    for client in (ann, other):
        for event in ("cursor", "selection"):
            await signal(client, 1, event)
            await signal(client, 2, event)
    await world.settle()
    got = [(s["client"], s["event"], s["data"]) for s in bob.pushes_of("board:a", "signal")]
    assert sorted(got) == sorted(
        (id_of(client), event, 1) for client in (ann, other) for event in ("cursor", "selection")
    )


@pytest.mark.parametrize("how", ["unsubscribe", "drop", "bye"])
async def test_what_is_held_ends_with_the_member(world: World, how: str) -> None:
    ann, bob = await two(world)
    for n in range(3):
        await signal(ann, n)
    if how == "unsubscribe":
        await ann.call("unsubscribe", channel="board:a")
    elif how == "drop":
        await ann.drop()
    else:
        await ann.leave()
    await world.advance(5)
    assert heard(bob) == [0]
    assert dropped(world.hubs[0]) == 1


async def test_to_leave_and_come_anew_is_no_way_around_it(world: World) -> None:
    ann, bob = await two(world)
    for n in range(5):
        await signal(ann, n)
        await ann.call("unsubscribe", channel="board:a")
        await ann.call("subscribe", channel="board:a")
    await world.settle()
    assert heard(bob) == [0]


async def test_to_stay_outside_is_none_either(world: World) -> None:
    ann, bob = await two(world)
    error = await ann.refused("signal", channel="board:b", event="cursor", data=1)
    assert error == {"code": 103, "message": "not subscribed"}
    await signal(ann, 1, room="free:a")
    assert bob.pushes == []


async def test_a_few_events_at_a_time(world: World) -> None:
    """Bounded, whatever a client makes up; what does not fit is counted."""
    ann, bob = await two(world, rate=1)
    for n in range(40):
        await signal(ann, n, event=f"e{n}")
    assert len(bob.pushes_of("board:a", "signal")) == 16
    await world.advance(1.1, step=0.1)
    assert [s["data"] for s in bob.pushes_of("board:a", "signal")] == [*range(16), *range(24, 40)]
    assert dropped(world.hubs[0]) == 8


async def test_nothing_is_kept_of_who_is_silent(world: World) -> None:
    """C5."""
    ann, _ = await two(world)
    hub = world.hubs[0]
    before = len(hub.engine.deadlines)
    for _ in range(20):
        await signal(ann, 1)
    assert repr(hub.engine.features["signals"]) == "<Signals: 1 clients>"
    assert len(hub.engine.deadlines) == before + 1
    await world.advance(3)
    assert repr(hub.engine.features["signals"]) == "<Signals: 0 clients>"
    assert len(hub.engine.deadlines) == before


async def test_typing_is_not_a_matter_of_the_rate(world: World) -> None:
    """It has rules of its own; and where it has none it is an event like others."""
    hub = hub_of(world, rate=0.5)
    ann, bob = await world.join(hub, "ann", "both:a"), await world.join(hub, "bob", "both:a")
    for typing in (True, False, True):
        await signal(ann, typing, "typing", "both:a")
    for n in range(3):
        await signal(ann, n, room="both:a")
    await world.settle()
    assert heard(bob, "both:a", "typing") == [True, False, True]
    assert heard(bob, "both:a") == [0]
    ann, bob = await world.join(hub, "ann", "board:a"), await world.join(hub, "bob", "board:a")
    for data in (True, {"on": False}):
        await signal(ann, data, "typing")
    await world.settle()
    assert heard(bob, event="typing") == [True]


async def test_the_server_is_not_held_back_and_may_leave_somebody_out(world: World) -> None:
    ann, bob = await two(world)
    hub = world.hubs[0]
    for n in range(5):
        hub.room("board:a").signal(n, exclude=hub.engine.sessions[id_of(ann)])
        await world.settle()
    assert [s["data"] for s in bob.pushes_of("board:a", "signal")] == list(range(5))
    assert ann.pushes == []


def test_it_is_declared_with_a_rate_that_can_work() -> None:
    for rate in (0, -1, float("inf"), float("nan"), "20", None, True):
        with pytest.raises(
            ValueError, match=r"Signals\(rate=…\) is a positive number of signals a second, not "
        ):
            Signals(rate=rate)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=r"pass signals=Signals\(\)"):
        Hub(authenticate=anonymous).rooms("r:{x}", publishes=object, signals=20)  # type: ignore[call-overload]
    with pytest.raises(DeclarationError, match=r"pass typing=Typing\(\)"):
        Hub(authenticate=anonymous).rooms("r:{x}", publishes=object, typing=Signals())
    assert rtkit.features.Signals is Signals


# -- who cannot keep up ----------------------------------------------------------------------------------


async def test_two_devices_of_a_user_do_not_overwrite_one_another(world: World) -> None:
    """D5: for who is behind there is the newest of each client and event, not of each user."""
    hub = hub_of(world)
    phone, desk = await world.join(hub, "ann", "free:a"), await world.join(hub, "ann", "free:a")
    slow = await world.join(hub, "slow", "free:a")
    slow.pipe.choke()
    for n in range(10):
        for client in (phone, desk):
            await signal(client, n, room="free:a")
            await signal(client, -n, "selection", "free:a")
    slow.pipe.drain()
    await slow.settle()
    got = [(s["client"], s["event"], s["data"]) for s in slow.pushes_of("free:a", "signal")]
    assert sorted(got) == sorted(
        (id_of(client), event, data)
        for client in (phone, desk)
        for event, data in (("cursor", 9), ("selection", -9))
    )


SMALL = dataclasses.replace(LIMITS, outbox=120_000, reserve=20_000)


@pytest.mark.parametrize("room", ["free:a", "kept:a"])
async def test_signals_give_way_to_messages(world: World, room: str) -> None:
    """D5: what would fill the outbox costs neither a message nor the connection; the newest signals stay."""
    hub = hub_of(world, limits=SMALL)
    ann, slow = await world.join(hub, "ann", room), await world.join(hub, "slow", room)
    slow.pipe.choke()
    for n in range(30):
        await signal(ann, "x" * 4000, f"e{n}", room)
    before = dropped(hub)
    assert before > 0
    for n in range(8):
        await hub.publish(room, f"{n}" + "y" * 4000)
        await world.settle()
    assert dropped(hub) - before >= 7
    totals = hub.statistics().totals or {}
    assert {name for name in totals if name.startswith(("drops", "lagging"))} == {"drops{signal}"}
    slow.pipe.drain()
    await slow.settle()
    assert [data[0] for data in slow.data_of(room)] == [str(n) for n in range(8)]
    assert slow.closed is None
    left = [s["event"] for s in slow.pushes_of(room, "signal")]
    assert left
    assert left == sorted(left, key=lambda event: int(event[1:]))
    assert left[0] != "e0"


async def test_signals_of_one_room_give_way_to_another_room(world: World) -> None:
    hub = hub_of(world, limits=SMALL)
    ann, slow = await world.join(hub, "ann", "free:a"), await world.join(hub, "slow", "free:a", "free:b")
    slow.pipe.choke()
    for n in range(30):
        await signal(ann, "x" * 4000, f"e{n}", "free:a")
    for n in range(8):
        await hub.publish("free:b", f"{n}" + "y" * 4000)
        await world.settle()
    slow.pipe.drain()
    await slow.settle()
    assert len(slow.data_of("free:b")) == 8
    assert slow.closed is None


async def test_signals_make_no_message_give_way_and_leave_the_reserve_alone(world: World) -> None:
    hub = hub_of(world, limits=SMALL)
    ann, slow = await world.join(hub, "ann", "kept:a"), await world.join(hub, "slow", "kept:a")
    slow.pipe.choke()
    for n in range(11):
        await hub.publish("kept:a", f"{n}" + "y" * 4000)
    await world.settle()
    for n in range(30):
        await signal(ann, "x" * 4000, f"e{n}", "kept:a")
    connection = hub.engine.sessions[id_of(slow)].connection
    assert connection is not None
    assert connection.outbox.size + slow.pipe.buffered <= SMALL.outbox
    assert dropped(hub) >= 28
    assert len(slow.pushes_of("kept:a", "signal")) == 0
    ping = slow.ask("ping")  # answered out of the reserve
    slow.pipe.drain()
    await slow.settle()
    assert slow.answered(ping)
    assert len(slow.data_of("kept:a")) == 11
    assert slow.closed is None
