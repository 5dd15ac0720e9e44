"""A stream that goes on in a new epoch without a loss: who is told what, and that nobody is deceived (H3, H10, B6).

No broker of today does this. A backend that does stands in for the one that will.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from rtkit import Gap, Grant, History, Hub, Identity, Limits, Message, Position, anonymous
from rtkit.client import RoomClient
from rtkit.testing import TestHub
from tests.support.rawclient import RawClient, publications
from tests.support.takeover import SurvivingBackend
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")
ROOM, TOPIC = "r:a", "room:r:a"


class Scene:
    """A hub on a backend that survives, through a broker that can be made deaf."""

    def __init__(self, world: World | None = None, *, count: int = 1000, **limits: Any) -> None:
        self.backend = SurvivingBackend(**({"clock": world.clock} if world is not None else {}))
        self.broker = FaultyBroker(self.backend)
        options: dict[str, Any] = {"broker": self.broker, "limits": Limits(**limits)}
        self.hub: Hub[Any] = (
            world.hub(**options) if world is not None else Hub(authenticate=anonymous, **options)
        )
        self.hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(count, ttl=6000))
        self.hub.rooms(
            "mine:{x}",
            publishes=object,
            grant=ALL,
            history=History(count, ttl=6000),
            auto_join=lambda identity: [f"mine:{identity.user}"] if identity.user == "eve" else [],
        )
        self.sent = 0

    async def publish(self, count: int = 1, *, heard: bool = True) -> None:
        self.broker.deaf = not heard
        for _ in range(count):
            self.sent += 1
            await self.hub.publish(ROOM, self.sent)
        self.broker.deaf = False


def told(client: RawClient) -> list[Any]:
    """What came for the room: numbers of messages, and other pushes as they are."""
    found: list[Any] = []
    for push in client.pushes:
        if push["channel"] == ROOM:
            body = {key: value for key, value in push.items() if key != "channel"}
            found.append(body["pub"]["data"] if "pub" in body else body)
    return found


# -- what the hub says --------------------------------------------------------------------------------


async def test_live_members_are_told_between_the_two_epochs(world: World) -> None:
    """H10: behind all of the old, before the first of the new; at the offset where everybody stands."""
    scene = Scene(world)
    rt, foreign = await world.join(scene.hub, "ann", ROOM), await world.join(scene.hub, "bob", ROOM, rt=False)
    await scene.publish(3)
    new = scene.backend.take_over(TOPIC)
    await scene.publish(2)
    await world.settle()
    assert told(rt) == [1, 2, 3, {"position": {"epoch": new.epoch, "offset": 3}}, 4, 5]
    assert rt.offsets_of(ROOM) == [1, 2, 3, 4, 5]
    assert told(foreign) == [1, 2, 3, {"unsubscribe": {"code": 2500, "reason": "continuity lost"}}]


async def test_what_came_in_the_same_turn_comes_before_the_new_epoch(world: World) -> None:
    """H10, D4: it waits for the end of the turn, and the page that shows the takeover does not."""
    scene = Scene(world)
    rt = await world.join(scene.hub, "ann", ROOM)
    gate = scene.broker.hold("read")
    scene.broker.interrupt(TOPIC)
    await world.settle()
    assert scene.broker.calls[-1] == "read"
    gate.set()  # the read goes on in the next turn, and so does the end of this one, which comes after it
    await scene.publish()
    new = scene.backend.take_over(TOPIC)
    await world.settle()
    assert told(rt) == [1, {"position": {"epoch": new.epoch, "offset": 1}}]


async def test_a_takeover_in_silence_is_found_by_comparing_tops(world: World) -> None:
    """H4, H10: nothing else came."""
    scene = Scene(world)
    rt = await world.join(scene.hub, "ann", ROOM)
    await scene.publish(3)
    await world.settle()
    new = scene.backend.take_over(TOPIC)
    await world.advance(40)
    assert told(rt) == [1, 2, 3, {"position": {"epoch": new.epoch, "offset": 3}}]


async def test_what_was_lost_on_the_way_is_a_gap_or_is_read(world: World) -> None:
    """H3, H4: an entry that nobody heard of is read in the new epoch, if it made it there."""
    scene = Scene(world)
    rt = await world.join(scene.hub, "ann", ROOM)
    await scene.publish(3)
    await scene.publish(2, heard=False)
    new = scene.backend.take_over(TOPIC)
    await scene.publish()
    await world.settle()
    assert told(rt) == [1, 2, 3, {"position": {"epoch": new.epoch, "offset": 3}}, 4, 5, 6]
    newer = scene.backend.take_over(TOPIC, lost=2)
    await scene.publish()
    await world.settle()
    gap = {"from": 4, "to": 4, "epoch": newer.epoch, "reason": "rollback"}
    assert told(rt)[7:] == [{"gap": gap}, 7]


async def test_a_slow_member_is_told_where_it_stands(world: World) -> None:
    """H3, D1: not where the others do."""
    scene = Scene(world, outbox=100_000, reserve=20_000, max_publication=5_000, heartbeat=None)
    slow, fast = await world.join(scene.hub, "ann", ROOM), await world.join(scene.hub, "bob", ROOM)
    slow.pipe.stall()
    for _ in range(60):
        await scene.hub.publish(ROOM, "x" * 4_000)
    await world.settle()
    new = scene.backend.take_over(TOPIC)
    await scene.publish(2)
    await world.settle()
    assert fast.pushes_of(ROOM, "position") == [{"epoch": new.epoch, "offset": 60}]
    slow.pipe.drain()
    await world.settle()
    assert slow.offsets_of(ROOM) == list(range(1, 63))
    (position,) = slow.pushes_of(ROOM, "position")
    assert position["epoch"] == new.epoch
    assert position["offset"] < 60
    before = [push for push in slow.pushes if "pub" in push or "position" in push]
    at = next(index for index, push in enumerate(before) if "position" in push)
    assert before[at - 1]["pub"]["offset"] == position["offset"]


async def test_a_foreign_client_in_a_room_of_the_servers_connects_again(world: World) -> None:
    """H10: 3010, and it recovers what it stood at in the old epoch."""
    scene = Scene(world)
    foreign = await world.join(scene.hub, "eve", rt=False)
    await scene.hub.publish("mine:eve", 1)
    old = foreign.reply(1)["connect"]["subs"]["mine:eve"]["epoch"]
    scene.backend.take_over("room:mine:eve")
    await scene.hub.publish("mine:eve", 2)
    await world.settle()
    assert foreign.closed == (3010, "continuity lost")
    again = world.client(scene.hub)
    reply = await again.connect("eve", subs={"mine:eve": {"recover": True, "epoch": old, "offset": 1}})
    assert reply["subs"]["mine:eve"]["recovered"]
    assert publications(reply["subs"]["mine:eve"]) == [2]


async def test_recovering_into_an_epoch_that_took_over(world: World) -> None:
    """H3: what both have in common counts, and not one message more."""
    scene = Scene(world)
    client = await world.join(scene.hub, "ann", ROOM)
    await scene.publish(5)
    old = (await client.call("history", channel=ROOM))["epoch"]
    await client.call("unsubscribe", channel=ROOM)
    new = scene.backend.take_over(TOPIC, lost=2)
    await scene.publish(2)
    for offset, recovered in ((0, True), (2, True), (3, True), (4, False), (5, False)):
        result = await client.call("subscribe", channel=ROOM, recover=True, epoch=old, offset=offset)
        assert result["epoch"] == new.epoch
        assert result.get("recovered", False) is recovered
        assert publications(result) == ([*range(offset + 1, 4), 6, 7] if recovered else [])
        await client.call("unsubscribe", channel=ROOM)


# -- what the Python client makes of it -----------------------------------------------------------------


async def items(t: TestHub[Any], room: RoomClient[Any]) -> list[Any]:
    """All that has come: data of messages, and gaps."""
    await t.settle()
    found: list[Any] = []
    while room.statistics().queued:
        item = await t.next_item(room)
        found.append(item if isinstance(item, Gap) else item.data)
        await t.settle()
    return found


async def test_the_client_goes_on_as_if_nothing_had_happened() -> None:
    """H10: live, with positions in the new epoch, and without joining again."""
    scene = Scene()
    async with TestHub(scene.hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join(ROOM) as room:
            await scene.publish(3)
            new = scene.backend.take_over(TOPIC)
            await scene.publish(2)
            assert await items(t, room) == [1, 2, 3, 4, 5]
            assert room.position == Position(new.epoch, 5)
            statistics = room.statistics()
            assert (statistics.gaps, statistics.joins, statistics.duplicates) == (0, 1, 0)


async def test_the_client_comes_back_into_the_new_epoch() -> None:
    """H3: its position is of the old one, which the new one continues."""
    scene = Scene()
    async with TestHub(scene.hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join(ROOM) as room:
            await scene.publish(3)
            assert await items(t, room) == [1, 2, 3]
            t.offline(ann)
            scene.backend.take_over(TOPIC)
            await scene.publish(2)
            scene.backend.take_over(TOPIC)
            await scene.publish(1)
            t.online(ann)
            await t.clock.advance(21)
            assert await items(t, room) == [4, 5, 6]
            assert room.statistics().gaps == 0


async def test_what_the_takeover_lost_is_a_gap() -> None:
    """H3: the client had it, and what comes next is not what it would have been."""
    scene = Scene()
    async with TestHub(scene.hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join(ROOM) as room:
            await scene.publish(5)
            await t.settle()
            new = scene.backend.take_over(TOPIC, lost=2)
            await scene.publish(1)
            assert await items(t, room) == [1, 2, 3, 4, 5, Gap(3, 3, new.epoch, "rollback"), 6]


async def test_a_client_that_is_slow_while_it_happens() -> None:
    """K2: its queue is full; it recovers from the old epoch when it has room."""
    scene = Scene()
    async with TestHub(scene.hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join(ROOM, max_queue=4) as room:
            await scene.publish(10)
            await t.settle()
            new = scene.backend.take_over(TOPIC)
            await scene.publish(10)
            assert await items(t, room) == list(range(1, 21))
            assert room.position == Position(new.epoch, 20)
            assert room.statistics().gaps == 0


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_each_message_once_or_a_true_gap(seed: int) -> None:
    """H1-H4, H10: takeovers with and without losses, lost deliveries, cuts, a reader that comes and goes."""
    scene, chance = Scene(count=40), random.Random(seed)
    backend = scene.backend
    async with TestHub(scene.hub, seed=seed) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join(ROOM, max_queue=6) as room:
            await t.settle()
            at = room.position
            assert at is not None
            away = False
            for _ in range(300):
                match chance.randrange(12):
                    case 0 | 1 | 2 | 3:
                        await scene.publish(chance.randint(1, 4))
                    case 4:
                        await scene.publish(chance.randint(1, 3), heard=False)
                    case 5 if backend.truth:
                        backend.take_over(TOPIC, lost=max(0, chance.randint(-6, 3)))
                    case 6 if not away:
                        t.offline(ann)
                        away = True
                    case 7 | 8 if away:
                        t.online(ann)
                        away = False
                        await t.clock.advance(21)
                    case 9:
                        await t.clock.advance(chance.choice([0.1, 1, 40]))
                    case _:
                        for _ in range(chance.randint(0, min(8, room.statistics().queued))):
                            if room.statistics().queued:
                                at = check(backend, at, await t.next_item(room))
            t.online(ann)
            await t.clock.advance(60)
            while room.statistics().queued:
                at = check(backend, at, await t.next_item(room))
                await t.settle()
            stream = backend._streams[TOPIC]
            assert room.position == stream.position, "all there is was handed out or told"
            assert at.offset == stream.top
            assert at.epoch == stream.epoch or backend.shared(TOPIC, at.epoch, stream.epoch) >= at.offset


def check(backend: SurvivingBackend, at: Position, item: Message[Any] | Gap) -> Position:
    """One item after the place *at*: true, or nothing is said about what is missing."""
    epoch = item.epoch if isinstance(item, Gap) else item.position.epoch if item.position else ""
    carried = epoch != at.epoch and backend.shared(TOPIC, at.epoch, epoch) >= at.offset
    if isinstance(item, Gap):
        if item.reason == "trimmed":
            assert epoch == at.epoch or carried
            assert item.start == at.offset < item.end
        else:
            assert item.reason == "rollback", "no stream was begun anew"
            assert not carried or item.start <= item.end
        return Position(epoch, item.end)
    assert item.position is not None
    assert epoch == at.epoch or carried, f"{item.position} after {at}, and nothing was said"
    assert item.position.offset == at.offset + 1
    truth = backend.truth[TOPIC, epoch][item.position.offset - 1]
    assert b'"data":%d' % item.data in truth
    return item.position
