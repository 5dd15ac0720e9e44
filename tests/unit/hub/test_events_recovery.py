"""A page that is cut off comes back with the id of its last event, and has everything, or is told a gap (T5, H3)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Limits, Position
from rtkit.wire.eventstream import place_of, write_id
from tests.support.eventsource import EventSource
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


def hub_of(world: World, count: int = 100, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(count, ttl=600))
    hub.rooms("plain:{x}", publishes=object, grant=ALL)
    return hub


async def page_of(world: World, hub: Hub[Any], *rooms: str, more: str = "") -> EventSource:
    await hub.start()
    query = "&".join([*(f"room={room}" for room in rooms), "token=ann"]) + more
    page = EventSource(hub, world.clock, query)
    assert await page.open() == 200
    return page


def offsets(page: EventSource, room: str = "r:a") -> list[int]:
    return [each["offset"] for each in page.of("message") if each["room"] == room]


# -- everything ----------------------------------------------------------------------------------------


async def test_cut_at_every_byte_it_comes_back_to_everything_once(world: World) -> None:
    """T5: of two rooms, through live messages, a gap and a second stream; whatever has arrived of the first."""
    hub = hub_of(world, count=6, limits=Limits(accepts=None))  # a thousand times at once
    page = await page_of(world, hub, "r:a", "r:b")
    for n in range(1, 5):
        await hub.publish("r:a", n)
        await hub.publish("r:b", -n)
        await world.settle()
    whole = len(page.sink.body)
    expected = {"r:a": [1, 2, 3, 4, 5], "r:b": [-1, -2, -3, -4]}
    await page.cut()
    await hub.publish("r:a", 5)
    second = EventSource(hub, world.clock, page.query)
    body = page.sink.body
    places: set[str] = set()
    for at in range(body.index(b"\n\n") + 2, whole + 1):  # before the first event is over it has not begun
        page = EventSource(hub, world.clock, second.query)
        page.sink.body = body
        await page.cut(at)
        places.add(page.last_id)
        assert await page.open() == 200
        assert {room: page.data(room) for room in expected} == expected, f"cut at byte {at}"
        assert "gap" not in page.types
        assert page.events[-1].id == page.last_id
        await page.cut()
    assert len(places) == 9  # one behind each event


async def test_cut_again_and_again(world: World) -> None:
    """A recovery is cut as well, at each of its events; the next one goes on behind it."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a", "r:b")
    await page.cut()
    for n in range(1, 9):
        await hub.publish("r:a", n)
        await hub.publish("r:b", -n)
    for _ in range(40):
        assert await page.open() == 200
        events = page.sink.body.split(b"\n\n")
        await page.cut(len(b"\n\n".join(events[:2])) + 2)  # the first two of it
        if page.data("r:a") == list(range(1, 9)) and page.data("r:b") == [-n for n in range(1, 9)]:
            break
    else:
        raise AssertionError(f"{page.data('r:a')}, {page.data('r:b')}")
    assert "gap" not in page.types


async def test_to_another_node(world: World) -> None:
    """T2: an id is good on every node."""
    one, two = hub_of(world), hub_of(world)
    page = await page_of(world, one, "r:a")
    await two.start()
    await one.publish("r:a", 1)
    await page.settle()
    await page.cut()
    await two.publish("r:a", 2)
    page.hub = two
    await page.open()
    assert page.data() == [1, 2]
    assert page.of("joined")[-1] == {"rooms": {"r:a": {"recoverable": True, "recovered": True}}}


async def test_a_long_recovery_is_told_in_parts_and_whole(world: World) -> None:
    """More than one reply holds: the rest follows as pushes."""
    hub = hub_of(world, count=1000)
    page = await page_of(world, hub, "r:a")
    await page.cut()
    for n in range(100):
        await hub.publish("r:a", [n, "x" * 9000])
    await page.open()
    await page.settle()
    assert [n for n, _ in page.data()] == list(range(100))
    assert "gap" not in page.types


async def test_a_cut_without_an_event_in_between_loses_nothing(world: World) -> None:
    """The first event has an id: without it this page would come back to the top."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await page.cut()
    await hub.publish("r:a", "while it was away")
    await page.open()
    assert page.data() == ["while it was away"]


async def test_a_page_that_was_cut_within_its_first_event_begins_anew(world: World) -> None:
    """It has heard nothing, and was promised nothing."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await page.cut(len(page.sink.body) - 1)
    await hub.publish("r:a", 1)
    await page.open()
    assert page.of("joined") == [{"rooms": {"r:a": {"recoverable": True}}}]


@pytest.mark.parametrize("name", ["since", "last_event_id"])
async def test_a_page_that_kept_the_id_itself(world: World, name: str) -> None:
    """It gives it in the query; and what the browser then adds in the header is newer."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await page.cut()
    await hub.publish("r:a", 1)
    other = await page_of(world, hub, "r:a", more=f"&{name}={page.last_id}")
    assert other.data() == [1]
    await other.cut()
    await hub.publish("r:a", 2)
    await other.open()
    assert other.data() == [1, 2]


async def test_other_rooms_than_before(world: World) -> None:
    """Those it had go on, those it had not begin, and what it no longer wants is forgotten."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a", "r:b")
    await page.cut()
    for room in ("r:a", "r:b", "r:c"):
        await hub.publish(room, room)
    other = await page_of(world, hub, "r:c", "r:b", more=f"&since={page.last_id}")
    assert other.data() == ["r:b"]
    assert other.of("joined") == [
        {"rooms": {"r:c": {"recoverable": True}, "r:b": {"recoverable": True, "recovered": True}}}
    ]
    await hub.publish("r:c", "live")
    await other.settle()
    assert other.data() == ["r:b", "live"]


async def test_in_a_room_without_history_it_is_at_most_once(world: World) -> None:
    """H6: the first event says so, `recoverable` is missing; and nothing of another room is held up by it."""
    hub = hub_of(world)
    page = await page_of(world, hub, "plain:a", "r:a")
    await page.cut()
    await hub.publish("plain:a", "missed")
    await hub.publish("r:a", 1)
    await page.open()
    assert page.of("joined")[-1]["rooms"]["plain:a"] == {}
    assert page.data() == [1]
    assert "gap" not in page.types


# -- or a gap ------------------------------------------------------------------------------------------


async def test_what_was_trimmed_is_said(world: World) -> None:
    """H3: what is missing, and where it goes on; also when the gap itself was cut off."""
    hub = hub_of(world, count=3)
    page = await page_of(world, hub, "r:a", "r:b")
    await hub.publish("r:a", 1)
    await page.settle()
    await page.cut()
    for n in range(2, 10):
        await hub.publish("r:a", n)
    await hub.publish("r:b", "b")
    epoch = (await hub.room("r:a").history(limit=0)).top.epoch
    gap = {"room": "r:a", "from": 1, "to": 9, "epoch": epoch, "reason": "trimmed"}
    for _ in range(3):
        await page.open()
        body = page.sink.body
        assert page.of("gap") == [gap]
        assert page.data("r:b") == ["b"]
        page.forget()
        await page.cut(body.index(b"event: gap"))  # has arrived: what was said before it
        page = EventSource(hub, world.clock, page.query)
        page.sink.body = body[: body.index(b"event: gap")]
        await page.cut()
        page.forget()
    await page.open()
    assert page.of("gap") == [gap]
    assert page.of("joined") == [
        {"rooms": {"r:a": {"recoverable": True}, "r:b": {"recoverable": True, "recovered": True}}}
    ]
    await page.cut()
    await hub.publish("r:a", 10)
    await page.open()
    assert page.data("r:a") == [10]
    assert len(page.of("gap")) == 1  # it was told, and is over


async def test_a_new_epoch_while_it_is_there(world: World) -> None:
    """H10: the gap is in its place, between the old messages and the new."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await hub.publish("r:a", "old")
    await page.settle()
    position = await hub.room("r:a").clear()
    await page.settle()
    await hub.publish("r:a", "new")
    await page.settle()
    assert page.types == ["joined", "message", "gap", "message"]
    assert page.of("gap") == [{"room": "r:a", "from": 0, "to": 0, "epoch": position.epoch, "reason": "epoch"}]
    await page.cut()
    await hub.publish("r:a", "newer")
    await page.open()
    assert page.data() == ["old", "new", "newer"]
    assert len(page.of("gap")) == 1


async def test_a_new_epoch_while_it_is_away(world: World) -> None:
    """H3."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await hub.publish("r:a", 1)
    await page.settle()
    await page.cut()
    await hub.room("r:a").clear()
    for n in (7, 8, 9):
        await hub.publish("r:a", n)
    await page.open()
    assert (page.types[2:], page.of("gap")[0]["reason"], page.of("gap")[0]["to"]) == (
        ["joined", "gap"],
        "epoch",
        3,
    )
    await hub.publish("r:a", 10)
    await page.settle()
    assert page.data() == [1, 10]


async def test_the_ids_of_another_hub(world: World) -> None:
    """Whose rooms have the same names, and lie elsewhere: never `recovered`."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    for n in range(3):
        await hub.publish("r:a", n)
    await page.cut()
    foreign = write_id([place_of("r:a", Position("elsewhere", 2))])
    await page.open(last_id=foreign)
    assert page.of("gap")[-1]["reason"] == "epoch"
    assert "recovered" not in page.of("joined")[-1]["rooms"]["r:a"]
    await page.cut()
    await page.open(
        last_id=write_id([place_of("r:a", Position((await hub.room("r:a").history(limit=0)).top.epoch, 99))])
    )
    assert page.of("gap")[-1]["reason"] == "rollback"


@pytest.mark.parametrize("last_id", ["42", "2kgCQ", "0a1b2c3d-aaaa"])
async def test_the_ids_of_another_version_or_make(world: World, last_id: str) -> None:
    """W5: to end the stream for good would be worse than to say a gap."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await page.cut()
    await hub.publish("r:a", 1)
    page.forget()
    assert await page.open(last_id=last_id) == 200
    assert page.types == ["joined", "gap"]
    await page.cut()
    await hub.publish("r:a", 2)
    await page.open()
    assert page.data() == [2]


async def test_a_room_that_lost_its_history(world: World) -> None:
    """Declared anew, without: what was missed is gone, and that is said once."""
    hub = hub_of(world)
    page = await page_of(world, hub, "r:a")
    await page.cut()
    other = world.hub()
    other.rooms("r:{x}", publishes=object, grant=ALL)
    await other.start()
    page.hub = other
    await page.open()
    assert page.of("gap") == [{"room": "r:a", "from": 0, "to": 0, "epoch": "", "reason": "dropped"}]
    await page.cut()
    await page.open()
    assert len(page.of("gap")) == 1


async def test_a_hole_that_the_hub_repairs_is_not_seen(world: World) -> None:
    """H4: pub/sub is lossy; the page gets it all, in order."""
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    page = await page_of(world, hub, "r:a")
    await hub.publish("r:a", 1)
    broker.deaf = True
    await hub.publish("r:a", 2)
    await hub.publish("r:a", 3)
    broker.deaf = False
    await hub.publish("r:a", 4)
    await page.settle()
    assert page.data() == [1, 2, 3, 4]


# -- all of it at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_nothing_is_missing_unsaid(world: World, seed: int) -> None:
    """H3: publishing, cutting anywhere, stalling, clearing and changing nodes, at random. What a page has of a room
    follows on, or there is a gap in between."""
    chance = random.Random(seed)
    one, two = hub_of(world, count=12), hub_of(world, count=12)
    await two.start()
    page = await page_of(world, one, "r:a", "r:b")
    for step in range(150):
        deed = chance.choices(["publish", "cut", "stall", "drain", "clear"], [60, 20, 8, 8, 1])[0]
        if deed == "publish":
            for _ in range(chance.randint(1, 4)):
                await chance.choice((one, two)).publish(chance.choice(("r:a", "r:b")), step)
        elif deed == "cut":
            await page.cut(
                len(page.sink.body) - chance.choice([0, 0, 1, 60, 400]) if page.sink.body else None
            )
            page.hub = chance.choice((one, two))
            if page.last_id:
                for _ in range(chance.choice([0, 1, 5, 16])):
                    await one.publish("r:a", step)
            assert await page.open() == 200
        elif deed == "clear":
            await one.room("r:b").clear()
        elif deed == "stall":
            page.sink.stalled = True
        else:
            page.sink.drain()
        if chance.random() < 0.6:
            await page.settle()
    await page.cut()
    await page.open()
    await page.settle()
    for room in ("r:a", "r:b"):
        at: int | None = None
        for event in page.events:
            if event.type == "gap" and event.json["room"] == room:
                at = event.json["to"]
            elif event.type == "message" and event.json["room"] == room:
                offset = event.json["offset"]
                assert at is None or offset == at + 1, f"{room}: {offset} behind {at}"
                at = offset
        assert at is not None
        assert at == (await one.room(room).history(limit=0)).top.offset
