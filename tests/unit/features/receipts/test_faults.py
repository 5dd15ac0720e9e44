"""Receipts when streams are replaced, brokers go away and forget, and notices are lost (X2, B6, H4)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from rtkit import History, Hub, Limits, Position
from rtkit.features.receipts import ledger
from tests.support.rawclient import RawClient
from tests.support.takeover import SurvivingBackend
from tests.unit.features.receipts.test_receipts import ROOM, frames, hub_of, known, mark, said, watching
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

KEY = "marks:chat:a"
TOPIC = "\0marks:chat:a"


def node(world: World, **options: Any) -> tuple[Hub[Any], FaultyBroker]:
    broker = FaultyBroker(world.backend)
    return hub_of(world, broker=broker, **options), broker


def stored(world: World) -> dict[str, tuple[Any, Any]]:
    """What lies in the broker, by user: the marks delivered and read."""
    found = {user: msgspec.json.decode(raw) for user, raw in world.backend.entries(KEY).items()}
    return {user: (each.get("d"), each.get("r")) for user, each in found.items()}


def offsets(world: World) -> dict[str, int]:
    """The same, of marks read alone, without their epochs."""
    return {user: read[1] for user, (_, read) in stored(world).items() if read is not None}


async def read_by(hub: Hub[Any]) -> dict[str, int]:
    return {user: each.read.offset for user, each in (await hub.room(ROOM).marks()).items() if each.read}


# -- another epoch ----------------------------------------------------------------------------------------


@pytest.fixture
async def surviving(world: World) -> World:
    """A world whose broker's primary can fail."""
    world.backend = SurvivingBackend(clock=world.clock)
    return world


def take_over(world: World, lost: int) -> str:
    backend: Any = world.backend
    position: Position = backend.take_over("room:chat:a", lost)
    return position.epoch


async def test_marks_are_carried_over_up_to_the_takeover(surviving: World) -> None:
    world = surviving
    one, two = hub_of(world), hub_of(world)
    await said(one, 9)
    ann, first = await watching(world, one, "ann")
    bob, second = await watching(world, two, "bob")
    await mark(ann, 9)
    await mark(bob, 3)
    await world.advance(2)
    epoch = take_over(world, lost=4)
    await said(one, 1)  # of which all learn that it is another epoch
    await world.advance(2)
    for client, begun in ((ann, first), (bob, second)):
        whole = frames(client)[-1]
        assert whole["whole"] is True
        assert whole["epoch"] == epoch
        assert known(client, begun) == ({"ann": 5, "bob": 3}, {"ann": 5, "bob": 3})
    assert await read_by(one) == await read_by(two) == {"ann": 5, "bob": 3}
    # It goes on from there, and what is stored moves into the new epoch with the user's next mark.
    await mark(ann, 6)
    await world.advance(2)
    assert known(bob, second)[1] == {"ann": 6, "bob": 3}
    assert stored(world)["ann"] == ([epoch, 6], [epoch, 6])
    assert stored(world)["bob"][0][0] != epoch
    _, fresh = await watching(world, two, "cyd")
    assert (fresh["epoch"], fresh["read"]) == (epoch, {"ann": 6, "bob": 3})


async def test_a_mark_of_the_former_epoch_counts_up_to_the_takeover(surviving: World) -> None:
    """A client that has not heard of it, and one that comes with what it had read elsewhere."""
    world = surviving
    hub, broker = node(world)
    before = await said(hub, 9)
    ann, first = await watching(world, hub, "ann")
    epoch = take_over(world, lost=4)
    await said(hub, 3)
    await world.advance(1)
    reads = broker.calls.count("read")
    for offset in (2, 8, 2**53 - 1, 4):
        await mark(ann, offset, epoch=before)
    await world.advance(2)
    assert known(ann, first)[1] == {"ann": 5}
    assert stored(world)["ann"] == ([epoch, 5], [epoch, 5])
    assert broker.calls.count("read") - reads <= 2  # what was found out once is known


async def test_where_the_takeover_is_no_longer_kept_it_is_found_all_the_same(surviving: World) -> None:
    world = surviving
    hub = hub_of(world, history=History(3, ttl=3600))
    before = await said(hub, 40)
    ann, first = await watching(world, hub, "ann")
    bob, _ = await watching(world, hub, "bob")
    await mark(ann, 40)
    await mark(bob, 11)
    await world.advance(1)
    take_over(world, lost=2)
    await said(hub, 60)
    await world.advance(2)
    assert known(ann, first)[1] == {"ann": 38, "bob": 11}
    await mark(bob, 39, epoch=before)
    await world.advance(1)
    assert known(ann, first)[1] == {"ann": 38, "bob": 38}


async def test_several_takeovers(surviving: World) -> None:
    world = surviving
    hub = hub_of(world)
    epochs = [await said(hub, 10)]
    ann, first = await watching(world, hub, "ann")
    bob, _ = await watching(world, hub, "bob")
    await mark(ann, 10)
    for _ in range(3):
        await world.advance(2)
        take_over(world, lost=3)
        epochs.append(await said(hub, 1))
    await world.advance(2)  # 10 → 7 + 1 → 5 + 1 → 3 + 1
    await mark(bob, 8, epoch=epochs[1])
    await world.advance(1)
    assert known(ann, first)[1] == {"ann": 3, "bob": 3}
    _, fresh = await watching(world, hub_of(world), "cyd")
    assert (fresh["epoch"], fresh["read"]) == (epochs[-1], {"ann": 3, "bob": 3})


async def test_a_room_that_is_cleared_begins_without_marks(world: World) -> None:
    one, two = hub_of(world), hub_of(world)
    before = await said(one, 9)
    ann, first = await watching(world, one, "ann")
    bob, second = await watching(world, two, "bob")
    await mark(ann, 9)
    await world.advance(2)
    position = await one.room(ROOM).clear()
    await world.advance(2)
    for client, begun in ((ann, first), (bob, second)):
        assert frames(client)[-1] == {"epoch": position.epoch, "whole": True}
        assert known(client, begun) == ({}, {})
    assert await read_by(one) == await read_by(two) == {}
    await mark(ann, 9, epoch=before)  # it was on its way
    await said(two, 2)
    await mark(ann, 2)
    await world.advance(2)
    assert known(bob, second)[1] == {"ann": 2}
    assert stored(world)["ann"][1] == [position.epoch, 2]


async def test_a_node_that_nobody_told_of_the_epoch_learns_it_from_a_mark(surviving: World) -> None:
    world = surviving
    (one, _), (two, second) = node(world), node(world)
    await said(one, 9)
    ann, first = await watching(world, one, "ann")
    bob, begun = await watching(world, two, "bob")
    second.deaf = {"room:chat:a"}
    epoch = take_over(world, lost=4)
    await said(one, 1)
    await world.advance(1)
    await mark(ann, 6, epoch=epoch)
    await world.advance(2)
    assert frames(bob)[-1]["epoch"] == epoch
    assert known(bob, begun)[1] == known(ann, first)[1] == {"ann": 6}


# -- the broker is away -----------------------------------------------------------------------------------


async def test_while_the_broker_is_away_marks_are_kept_here(world: World) -> None:
    (one, first), (two, _) = node(world), node(world)
    await said(one, 99)
    ann, begun = await watching(world, one, "ann")
    bob, _ = await watching(world, two, "bob")
    await world.advance(1)
    first.down = True
    for offset in range(1, 60):
        await mark(ann, offset)
        await world.clock.advance(0.3)
    running: Any = one.engine.receipts
    assert {user: len(wanted) for user, wanted in running._ledger.of(ROOM).items()} == {"ann": 1}
    assert await read_by(one) == {"ann": 59}  # the server knows, of what it has at hand
    first.down = False
    await world.advance(4)
    assert offsets(world) == {"ann": 59}
    assert known(bob, begun)[1] == {"ann": 59}
    assert len(running._ledger) == 1
    assert running._ledger.of(ROOM) == {}


async def test_what_has_to_be_looked_up_fails_for_now(world: World) -> None:
    hub, broker = node(world)
    epoch = await said(hub, 5)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob")
    broker.down = True
    for body in ({"epoch": epoch, "offset": 6}, {"epoch": "other", "offset": 1}):
        error = await ann.refused("mark", channel=ROOM, kind="read", **body)
        assert (error["code"], error["temporary"]) == (100, True)
    assert (await bob.refused("subscribe", channel="chat:b", marks=True))["code"] == 100
    broker.down = False


async def test_what_has_to_be_looked_up_does_not_take_for_ever(world: World) -> None:
    hub, broker = node(world)
    await said(hub, 5)
    clients = [await world.join(hub, f"u{n}", ROOM) for n in range(5)]
    gate = broker.hold("read")
    asked = [client.ask("mark", channel=ROOM, kind="read", epoch="other", offset=1) for client in clients]
    await world.advance(4)
    assert not any(client.answered(id) for client, id in zip(clients, asked, strict=True))
    await world.advance(2)
    for client, id in zip(clients, asked, strict=True):
        assert client.reply(id)["error"]["code"] == 100
    gate.set()


async def test_who_joins_is_refused_while_marks_cannot_be_read(world: World) -> None:
    hub, broker = node(world)
    await said(hub, 5)
    bob = await world.join(hub, "bob")
    for name in ("subscribe", "revision", "read"):
        broker.failing = {name}
        assert (await bob.refused("subscribe", channel=ROOM, marks=True))["code"] == 100
        broker.failing = set()
        await world.advance(1)
        assert TOPIC not in hub.engine.listeners
    assert (await bob.call("subscribe", channel=ROOM, marks=True))["marks"]["whole"] is True


@pytest.mark.parametrize("watched", [True, False])
async def test_of_a_revision_without_an_answer_it_is_found_out_what_became(
    world: World, watched: bool
) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann = await world.join(hub, "ann")
    await ann.call("subscribe", channel=ROOM, marks=watched)
    broker.losing_answers = 1
    await mark(ann, 3)
    await world.advance(2)
    assert offsets(world) == {"ann": 3}
    assert world.backend.position(KEY).offset == 1  # it was done, and is not done again
    await mark(ann, 5)
    await world.advance(2)
    assert offsets(world) == {"ann": 5}


async def test_a_broker_that_hangs_is_not_waited_for(world: World) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann, first = await watching(world, hub, "ann")
    gate = broker.hold("revise")
    await mark(ann, 3)
    await world.advance(2)
    del broker.gates["revise"]
    await world.advance(5)
    assert known(ann, first)[1] == {"ann": 3}
    gate.set()


async def test_the_end_waits_a_moment_for_the_broker(world: World) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob", ROOM)
    await mark(ann, 1)
    broker.failing = {"revise"}
    await mark(bob, 2)  # half a second after the other, or at the end
    closing = asyncio.ensure_future(hub.aclose())
    await world.clock.advance(0.2)
    broker.failing = set()
    await world.clock.advance(1.5)
    assert closing.done()
    assert offsets(world) == {"ann": 1, "bob": 2}


async def test_the_end_does_not_wait_for_ever(world: World, caplog: pytest.LogCaptureFixture) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann, _ = await watching(world, hub, "ann")
    broker.failing = {"revise", "entries"}
    await mark(ann, 1)
    began = world.clock.monotonic()
    closing = asyncio.ensure_future(hub.aclose())
    while not closing.done():
        await world.clock.advance(0.25)
        assert world.clock.monotonic() - began < 5
    assert "marks of 1 users are lost" in caplog.text
    assert offsets(world) == {}


async def test_a_bug_below_costs_the_batch_and_not_the_room(world: World, errors: Any) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann, first = await watching(world, hub, "ann")
    broker.errors["revise"] = [RuntimeError("a bug")]
    await mark(ann, 3)
    await world.advance(2)
    assert known(ann, first)[1] == {}
    await mark(ann, 4)
    await world.advance(2)
    assert known(ann, first)[1] == {"ann": 4}
    assert [record.getMessage() for record in errors()] == ["room 'chat:a': marks could not be written"]


# -- nodes at the same time -------------------------------------------------------------------------------


async def test_devices_on_two_nodes_that_write_at_the_same_moment(world: World) -> None:
    (one, first), (two, second) = node(world), node(world)
    await said(one, 99)
    phone, begun = await watching(world, one, "ann")
    laptop, _ = await watching(world, two, "ann")
    for step in range(1, 10):
        gates = [broker.hold("revise") for broker in (first, second)]
        await mark(phone, 10 * step + step % 2)
        await mark(laptop, 10 * step + 1 - step % 2)
        for broker, gate in zip((first, second), gates, strict=True):
            del broker.gates["revise"]
            gate.set()
        await world.advance(2)
        assert offsets(world) == {"ann": 10 * step + 1}
        assert known(phone, begun) == known(laptop, begun) == ({"ann": 10 * step + 1},) * 2


async def test_nobody_watches_and_the_devices_are_on_two_nodes(world: World) -> None:
    """What this node has written is not what lies there now."""
    (one, first), (two, _) = node(world), node(world)
    await said(one, 99)
    phone = await world.join(one, "ann", ROOM)
    laptop = await world.join(two, "ann", ROOM)
    for offset in range(1, 12):
        await mark((phone, laptop)[offset % 2], offset)
        await world.advance(1)
    await mark(phone, 5)
    await world.advance(1)
    assert offsets(world) == {"ann": 11}
    entries = first.calls.count("entries")
    for offset in range(20, 30):
        await mark(phone, offset)
        await world.advance(1)
    assert first.calls.count("entries") - entries <= 1  # it is remembered


async def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_KNOWN", 5)
    hub = hub_of(world)
    await said(hub, 9)
    keeper = await world.join(hub, "keeper", ROOM)
    for n in range(20):
        client = await world.join(hub, f"u{n}", ROOM)
        await mark(client, 3)
        await world.advance(1)
        await client.leave()
        assert len(hub.engine.receipts._ledger._rooms[ROOM].known) <= 6  # type: ignore[attr-defined]
    await keeper.leave()
    await world.settle()
    assert len(hub.engine.receipts._ledger) == 0  # type: ignore[attr-defined]


# -- notices and entries ----------------------------------------------------------------------------------


async def test_a_lost_notice_is_noticed_with_the_next_one(world: World) -> None:
    (one, _), (two, second) = node(world), node(world)
    await said(one, 9)
    ann, _ = await watching(world, one, "ann")
    bob, begun = await watching(world, two, "bob")
    second.deaf = {TOPIC}
    await mark(ann, 3)
    await world.advance(1)
    second.deaf = False
    cyd = await world.join(one, "cyd", ROOM)
    await mark(cyd, 4)
    await world.advance(1)
    assert known(bob, begun)[1] == {"ann": 3, "cyd": 4}


async def test_a_lost_last_notice_is_noticed_by_the_check(world: World) -> None:
    """H4."""
    (one, _), (two, second) = node(world), node(world)
    await said(one, 9)
    ann, _ = await watching(world, one, "ann")
    bob, begun = await watching(world, two, "bob")
    second.deaf = {TOPIC}
    reads = second.calls.count("revision")
    await mark(ann, 3)
    await world.advance(1)
    assert known(bob, begun)[1] == {}
    await world.advance(40)
    assert known(bob, begun)[1] == {"ann": 3}
    assert second.calls.count("revision") == reads + 1
    await world.advance(120)
    assert second.calls.count("revision") == reads + 1  # when nothing was missed, nothing is read


async def test_an_interruption_is_repaired_when_the_broker_is_back(world: World) -> None:
    (one, _), (two, second) = node(world), node(world)
    await said(one, 9)
    ann, _ = await watching(world, one, "ann")
    bob, begun = await watching(world, two, "bob")
    second.deaf = True
    second.down = True
    await mark(ann, 3)
    second.interrupt(TOPIC)
    await world.advance(3)
    second.deaf = second.down = False
    await world.advance(3)
    assert known(bob, begun)[1] == {"ann": 3}


async def test_nothing_runs_while_nothing_is_watched(world: World) -> None:
    """C5."""
    hub = hub_of(world)
    await said(hub, 9)
    ann = await world.join(hub, "ann", ROOM)
    await mark(ann, 3)
    await world.advance(1)
    tasks = len(hub.engine.tasks)
    bob, _ = await watching(world, hub, "bob")
    assert len(hub.engine.tasks) == tasks + 1
    for room in "bcdefg":
        await bob.call("subscribe", channel=f"chat:{room}", marks=True)
    assert len(hub.engine.tasks) == tasks + 1
    await bob.leave()
    await world.advance(60)
    assert len(hub.engine.tasks) == tasks


async def test_without_a_position_check_there_is_no_task(world: World) -> None:
    hub = hub_of(world, limits=Limits(position_check=None))
    await said(hub, 9)
    await world.join(hub, "ann", ROOM)
    tasks = len(hub.engine.tasks)
    await watching(world, hub, "bob")
    assert len(hub.engine.tasks) == tasks


async def test_a_broker_that_has_forgotten_is_told_again(world: World) -> None:
    """A failover may lose what was written last; marks only move forward all the same."""
    one, two = hub_of(world), hub_of(world)
    await said(one, 9)
    ann, first = await watching(world, one, "ann")
    bob, second = await watching(world, two, "bob")
    await mark(ann, 3)
    await mark(bob, 4)
    await world.advance(2)
    older = world.backend.entries(KEY)
    await mark(ann, 7)
    await world.advance(2)
    del world.backend._state[KEY]
    world.backend.put(KEY, "ann", older["ann"], 60, None)
    await world.advance(80)
    assert offsets(world) == {"ann": 7, "bob": 4}
    for client, begun in ((ann, first), (bob, second)):
        assert known(client, begun)[1] == {"ann": 7, "bob": 4}
        assert not any(frame.get("whole") for frame in frames(client))
    assert world.backend.position(KEY).offset <= 2


async def test_what_no_rtkit_has_written(world: World, errors: Any) -> None:
    hub = hub_of(world)
    epoch = await said(hub, 9)
    world.backend.put(KEY, "eve", b"?", 60, None)
    world.backend.put(KEY, "new", b'{"v":99,"d":7}', 60, None)
    world.backend.put(KEY, "ann", b'{"v":1,"d":["%s",3]}' % epoch.encode(), 60, None)
    ann, first = await watching(world, hub, "ann")
    assert first["delivered"] == {"ann": 3}
    for payload in (b"?", b'{"v":99}', b'{"v":1,"marks":{"eve":3}}', b'{"v":1,"marks":[]}'):
        world.backend.revise(KEY, {"x": b"?"}, 60, {}, TOPIC, payload)
    world.backend.publish(TOPIC, b"{}", None)
    eve = await world.join(hub, "eve", ROOM)
    new = await world.join(hub, "new", ROOM)
    await mark(eve, 5)
    await mark(new, 6)
    await mark(ann, 4)
    await world.advance(3)
    assert known(ann, first) == ({"ann": 4, "eve": 5, "new": 6},) * 2
    assert hub.engine.counters.get("unknown_versions") > 0
    assert errors()


async def test_it_is_logged_when_marks_wait_and_only_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    await said(hub, 9, "chat:b")
    ann: RawClient = await world.join(hub, "ann", ROOM, "chat:b")
    broker.failing = {"revise"}
    await mark(ann, 3)
    await mark(ann, 3, room="chat:b")
    await world.advance(9)
    waiting = [r for r in caplog.get_records("call") if "marks wait for the broker" in r.getMessage()]
    assert len(waiting) == 1
    assert waiting[0].levelno == logging.WARNING
    broker.failing = set()
    await world.advance(2)
    assert offsets(world) == {"ann": 3}


async def test_what_is_said_while_it_is_written_is_written_next(world: World) -> None:
    hub, broker = node(world)
    await said(hub, 9)
    ann, first = await watching(world, hub, "ann")
    gate = broker.hold("revise")
    await mark(ann, 3)
    await mark(ann, 7)
    del broker.gates["revise"]
    gate.set()
    await world.settle()
    assert offsets(world) == {"ann": 3}
    await world.advance(1)
    assert offsets(world) == {"ann": 7}
    assert known(ann, first)[1] == {"ann": 7}


async def test_what_was_found_out_in_a_former_epoch_is_not_believed_in_the_next(world: World) -> None:
    """Of a room that nobody watches, too."""
    hub = hub_of(world)
    before = await said(hub, 9)
    ann = await world.join(hub, "ann", ROOM)
    await mark(ann, 2)
    await mark(ann, 1, epoch="made-up")  # has it look
    await world.advance(1)
    position = await hub.room(ROOM).clear()
    await world.advance(1)
    await mark(ann, 9, epoch=before)
    await world.advance(1)
    assert stored(world)["ann"][1] == [before, 2]
    await said(hub, 1)
    await mark(ann, 1)
    await world.advance(1)
    assert stored(world)["ann"] == ([position.epoch, 1], [position.epoch, 1])
