"""What a room hands its members at the end of a loop turn, and what must not overtake it (D3, D4, H5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Limits
from rtkit.hub.connection import Connection
from rtkit.transports import Batch
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


def hub_of(world: World, **limits: Any) -> Hub[Any]:
    hub = world.hub(limits=Limits(heartbeat=None, **limits))
    hub.rooms("kept:{x}", publishes=object, grant=ALL, history=History(100, ttl=600))
    hub.rooms("plain:{x}", publishes=object, grant=ALL)
    return hub


def now(hub: Hub[Any], room: str, *messages: Any) -> None:
    """Have these delivered within this very turn, as a broker's connection would that read them at once."""
    for message in messages:
        publishing = hub.publish(room, message)
        with pytest.raises(StopIteration):
            publishing.send(None)


def frames(client: RawClient) -> int:
    return len(client.pipe.frames)


async def test_a_turn_is_one_write_whatever_it_brings(world: World) -> None:
    """D4: three messages and a reply, and the messages of two rooms."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", "kept:a", "plain:a")
    before = frames(ann)
    now(hub, "kept:a", 1, 2, 3)
    now(hub, "plain:a", 4)
    session = next(iter(hub.engine.sessions.values()))
    assert session.send("direct")
    await ann.settle()
    assert frames(ann) == before + 1
    assert ann.data_of("kept:a") == [1, 2, 3]
    assert ann.data_of("plain:a") == [4]


async def test_two_rooms_in_one_turn_are_one_write_for_those_in_both(world: World) -> None:
    """D4."""
    hub = hub_of(world)
    both, one = await world.join(hub, "ann", "kept:a", "plain:a"), await world.join(hub, "bob", "kept:a")
    before = frames(both), frames(one)
    now(hub, "kept:a", 1, 2)
    now(hub, "plain:a", 3)
    await world.settle()
    assert (frames(both), frames(one)) == (before[0] + 1, before[1] + 1)
    assert (both.data_of("kept:a"), both.data_of("plain:a")) == ([1, 2], [3])


async def test_every_form_is_made_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """W2: however many members, one encoding for rtkit's clients and one for any."""
    made: list[int] = []
    init = Batch.__init__

    def count(self: Batch, units: Any) -> None:
        made.append(len(units))
        init(self, units)

    hub = hub_of(world)
    clients = [await world.join(hub, f"u{n}", "kept:a", rt=n % 2 == 0) for n in range(10)]
    monkeypatch.setattr(Batch, "__init__", count)
    now(hub, "kept:a", 1, 2, 3)
    await world.settle()
    assert made == [3, 3]
    assert all(client.data_of("kept:a") == [1, 2, 3] for client in clients)
    assert all(("time" in push) == client.rt for client in clients for push in client.pushes_of("kept:a"))


@pytest.mark.parametrize("room", ["kept:a", "plain:a"])
async def test_who_goes_live_in_the_turn_of_a_message(world: World, room: str) -> None:
    """H2: it has it in its reply or not at all; never twice, and the others have it before what comes next."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", room)
    bob = await world.join(hub, "bob")
    asked = bob.ask("subscribe", channel=room)
    for n in range(1, 12):  # one turn of bob's joining each
        now(hub, room, n)
        await _one_turn()
    await world.settle()
    reply = bob.reply(asked)["subscribe"]
    began = [pub["data"] for pub in reply.get("publications", ())]
    got = began + bob.data_of(room)
    assert got == list(range(12 - len(got), 12))
    if room == "kept:a":
        assert reply.get("offset", 0) + len(bob.data_of(room)) == 11
    assert ann.data_of(room) == list(range(1, 12))


async def test_what_was_published_before_a_goodbye_comes_before_it(world: World) -> None:
    hub = hub_of(world)
    ann, bob = await world.join(hub, "ann", "kept:a"), await world.join(hub, "bob", "kept:a")
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == "ann"]
    now(hub, "kept:a", 1, 2)
    await session.close(reason="enough")
    await world.settle()
    assert ann.data_of("kept:a") == bob.data_of("kept:a") == [1, 2]
    assert ann.closed == (3503, "enough")


async def test_what_was_published_before_a_new_epoch_comes_before_it(world: World) -> None:
    """H3: the statement of what is gone must not overtake what is not."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", "kept:a")
    now(hub, "kept:a", 1, 2)
    await hub.room("kept:a").clear()
    now(hub, "kept:a", 3)
    await world.settle()
    kinds = [next(kind for kind in ("pub", "gap", "position") if kind in push) for push in ann.pushes]
    assert kinds == ["pub", "pub", "gap", "pub"]
    assert ann.data_of("kept:a") == [1, 2, 3]
    assert ann.offsets_of("kept:a") == [1, 2, 1]


async def test_who_left_in_the_turn_of_a_message_does_not_get_it(world: World) -> None:
    hub = hub_of(world)
    ann, bob = await world.join(hub, "ann", "kept:a"), await world.join(hub, "bob", "kept:a")
    now(hub, "kept:a", 1)
    ann.ask("unsubscribe", channel="kept:a")
    await world.settle()
    now(hub, "kept:a", 2)
    await world.settle()
    assert 2 not in ann.data_of("kept:a")
    assert bob.data_of("kept:a") == [1, 2]


@pytest.mark.parametrize("name", ["kept:a", "plain:a"])
async def test_who_is_closed_as_others_are_served_does_not_go_live(world: World, name: str) -> None:
    """L1: or the room would hold it for ever."""
    hub = hub_of(world)
    ann, bob = await world.join(hub, "ann", name), await world.join(hub, "bob")
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == "bob"]
    room = hub.engine.rooms[name]
    settle = room.settle

    def settle_and_close(*, alone: bool = False) -> None:
        settle(alone=alone)
        if session.connection is not None and name in session.rooms:
            session.connection.close(3008, "slow consumer")

    room.settle = settle_and_close  # type: ignore[method-assign]
    bob.ask("subscribe", channel=name)
    await world.settle()
    assert bob.closed == (3008, "slow consumer")
    assert [member.session.identity.user for member in room.live] == ["ann"]
    assert not room.outside
    await ann.drop()
    assert hub.statistics().rooms == 0


async def test_more_than_a_turn_should_hold_is_handed_on_within_it(world: World) -> None:
    """D1: what waits in the room is bounded as well, and a member that does not read is still held to its bound."""
    hub = hub_of(world, outbox=200_000, max_publication=50_000)
    fast, slow = await world.join(hub, "ann", "plain:a"), await world.join(hub, "bob", "plain:a")
    slow.pipe.choke()
    for n in range(40):
        payload = b'{"v":1,"data":"%04d%b"}' % (n, b"x" * 20_000)
        hub.engine.broker.backend.publish("room:plain:a", payload, None)  # type: ignore[attr-defined]
        assert sum(prepared.size for prepared in hub.engine.rooms["plain:a"]._pending) < 64 * 1024 + 50_000
    await world.settle()
    assert [int(data[:4]) for data in fast.data_of("plain:a")] == list(range(40))
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == "bob"]
    assert session.statistics().queued + slow.pipe.buffered <= 200_000
    slow.pipe.drain()
    await world.settle()
    assert [int(data[:4]) for data in slow.data_of("plain:a")][-1] == 39


async def test_a_fault_while_handing_out_is_no_silent_loss(
    world: World, monkeypatch: pytest.MonkeyPatch, errors: Any
) -> None:
    """H3, L3: who should have had it is sent away to recover; other rooms and the next message are served."""
    hub = hub_of(world)
    ann, bob = await world.join(hub, "ann", "kept:a"), await world.join(hub, "bob", "kept:b")

    def broken(batch: Batch) -> bool:
        raise RuntimeError("planted")

    monkeypatch.setattr(type(ann.transport), "send_batch", lambda self, batch: broken(batch))
    now(hub, "kept:a", 1)
    await world.settle()
    monkeypatch.undo()
    now(hub, "kept:b", 2)
    await world.settle()
    assert ann.closed == (3004, "internal error")
    assert bob.data_of("kept:b") == [2]
    assert ["fan-out failed" in record.getMessage() for record in errors()] == [True]


@pytest.mark.parametrize("what", ["small", "large", "signal"])
async def test_a_member_that_cannot_be_handed_anything_costs_nobody_else_anything(
    world: World, monkeypatch: pytest.MonkeyPatch, errors: Any, what: str
) -> None:
    """H3, L3: it alone does not know what it has. What is large is handed out before the turn ends."""
    hub = hub_of(world)
    ann, bob, eve = [await world.join(hub, user, "kept:a") for user in ("ann", "bob", "eve")]
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == "bob"]
    bob.pipe.choke()
    push = Connection.push

    def broken(self: Connection, *args: Any, **options: Any) -> Any:
        if self is session.connection:
            raise RuntimeError("planted")
        return push(self, *args, **options)

    monkeypatch.setattr(Connection, "push", broken)
    if what == "signal":
        hub.room("kept:a").signal({"x": 1})
    else:
        await hub.publish("kept:a", "x" * (100_000 if what == "large" else 10))
    await world.settle()
    assert bob.closed == (3004, "internal error")
    assert len(ann.pushes) == len(eve.pushes) == 1
    assert ["fan-out failed, to 1 of its members" in record.getMessage() for record in errors()] == [True]
    await hub.publish("kept:a", "next")
    await world.settle()
    assert [client.data_of("kept:a")[-1] for client in (ann, eve)] == ["next", "next"]


@pytest.mark.parametrize("where", ["settle", "spilled", "entry", "gap", "admit"])
async def test_a_fault_below_is_never_a_silent_loss(
    world: World, monkeypatch: pytest.MonkeyPatch, errors: Any, where: str
) -> None:
    """H3: whoever called, the cursor is past it; so all who may have missed it are sent away, to recover."""
    hub = hub_of(world, outbox=100_000, max_publication=20_000)
    ann, bob = await world.join(hub, "ann", "kept:a"), await world.join(hub, "bob", "kept:a")
    room = hub.engine.rooms["kept:a"]

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("planted")

    names = {"spilled": "_spilled", "entry": "open_entry", "gap": "_tell"}
    monkeypatch.setattr(room, names.get(where, "_settle"), broken)
    if where == "spilled":
        bob.pipe.choke()
    if where == "gap":
        await hub.room("kept:a").clear()
    elif where == "admit":
        now(hub, "kept:a", 1)
        hub.engine.settle(next(iter(hub.engine.sessions.values())))
    else:
        for _ in range(30):  # an outbox is full
            await hub.publish("kept:a", "x" * 5_000)
    await world.settle()
    monkeypatch.undo()
    assert ann.closed == bob.closed == (3004, "internal error")
    assert "planted" in str(errors()[0].exc_info)
    eve = await world.join(hub, "eve", "kept:a")
    now(hub, "kept:a", 2)
    await world.settle()
    assert eve.data_of("kept:a") == [2]


async def _one_turn() -> None:
    await asyncio.sleep(0)
