"""Presence, typing, receipts and paced signals between real clients, on two real hubs with one memory (P1-P4, X1, X2,
D5, C3). Time is moved by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rtkit import Credentials, Grant, History, Hub, Identity, Limits, Message, Position
from rtkit.brokers import MemoryBroker
from rtkit.client import Client, Feed, Marks, RoomClient, connect
from rtkit.features import Presence, Receipts, Signals, Typing
from rtkit.testing import ManualClock
from rtkit.testing.links import Loose, MemoryDialer
from tests.support.takeover import SurvivingBackend

ROOM = "chat:a"


async def by_token(credentials: Credentials) -> Identity[None]:
    await asyncio.sleep(0)
    return Identity(credentials.token or "nobody")


class Dialer:
    """Opens links to the node it is set to."""

    def __init__(self, world: World, at: int) -> None:
        self.dialers = [MemoryDialer(hub) for hub in world.hubs]
        self.at = at
        self.online = True

    async def dial(self, url: str, headers: Any) -> Loose:
        dialer = self.dialers[self.at]
        dialer.online = self.online
        return await dialer.dial(url, headers)

    def cut(self) -> None:
        """Lose the connection."""
        self.dialers[self.at].links[-1].cut()


class World:
    """Two nodes, and whoever comes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = SurvivingBackend(clock=self.clock)
        self.hubs = [self.hub() for _ in range(2)]
        self.stack = contextlib.AsyncExitStack()
        self.dialers: dict[Client, Dialer] = {}

    def hub(self) -> Hub[None]:
        hub: Hub[None] = Hub(
            authenticate=by_token,
            broker=MemoryBroker(self.backend),
            clock=self.clock,
            random=random.Random(1),
            limits=Limits(max_publication=4096),
        )
        grant = Grant("publish", "signal", "presence")
        hub.rooms(
            "chat:{room}",
            publishes=object,
            history=History(100, ttl=600),
            grant=grant,
            presence=Presence(listed=4, meta=lambda identity: {"name": identity.user}),
            receipts=Receipts(),
            typing=Typing(),
            signals=Signals(rate=4),
        )
        hub.rooms(
            "own:{user}",
            publishes=object,
            history=History(100, ttl=600),
            grant=grant,
            auto_join=lambda identity: [f"own:{identity.user}"],
            presence=Presence(),
            receipts=Receipts(),
        )
        hub.rooms("plain:{room}", publishes=object, grant=grant)
        return hub

    async def user(self, name: str, *, node: int = 0) -> Client:
        dialer = Dialer(self, node)
        client = connect(
            "ws://localhost/rt", token=name, dialer=dialer, clock=self.clock, random=random.Random(len(name))
        )
        self.dialers[client] = dialer
        return await self.stack.enter_async_context(client)

    async def lose(self, client: Client, *, node: int, after: float = 1.0) -> None:
        """The connection is lost; the next is with that node."""
        dialer = self.dialers[client]
        dialer.cut()
        dialer.at = node
        await self.pass_(after)

    async def pass_(self, seconds: float = 1.0) -> None:
        await self.clock.advance(seconds)
        await self.clock.settle()

    async def call(self, what: Any) -> Any:
        """Await something that takes a while."""
        task = asyncio.ensure_future(what)
        for _ in range(100):
            await self.clock.settle()
            if task.done():
                break
            await self.clock.advance(0.1)
        return await task


@pytest.fixture
async def world() -> AsyncIterator[World]:
    before = asyncio.all_tasks()
    world = World()
    for hub in world.hubs:
        await hub.start()
    yield world
    await world.call(world.stack.aclose())
    for hub in world.hubs:
        await world.call(hub.aclose())
    left = {
        t for t in asyncio.all_tasks() - before if not t.done() and "TestRunner" not in repr(t.get_coro())
    }
    assert not left
    assert world.clock.timers == 0


def fetched(feed: Feed[Any]) -> list[Any]:
    """What waits in a feed."""
    out: list[Any] = []
    while True:
        step: Any = anext(feed)
        try:
            step.send(None)
        except StopIteration as found:
            out.append(found.value)
        except StopAsyncIteration:
            return out
        else:
            step.close()
            return out


def names(room: RoomClient[Any]) -> list[str]:
    return sorted(member.meta["name"] for member in room.presence.members)


async def take(world: World, room: RoomClient[Any], count: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(count):
        item: Any = await world.call(anext(room))
        found.append(item.data)
    return found


# -- presence ----------------------------------------------------------------------------------------------


async def test_everybody_sees_everybody_on_both_nodes(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, presence=True).joined())
    his = await world.call(bob.join(ROOM, presence=True).joined())
    await world.pass_()
    assert names(hers) == names(his) == ["ann", "bob"]
    assert [m.client for m in hers.presence.members] == [ann.client_id, bob.client_id]
    feed = hers.presence.changes()
    await world.call(his.presence.update({"name": "Bob", "away": True}))
    await world.pass_()
    (change,) = fetched(feed)
    assert [member.meta for member in change.updates] == [{"name": "Bob", "away": True}]
    await world.call(his.leave())
    await world.pass_()
    (change,) = fetched(feed)
    assert [member.user for member in change.leaves] == ["bob"]
    assert names(hers) == ["ann"]


async def test_who_returns_with_its_session_on_another_node_is_not_seen_to_go_and_sees_the_difference(
    world: World,
) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, presence=True).joined())
    his = await world.call(bob.join(ROOM, presence=True).joined())
    await world.call(hers.presence.update({"name": "Ann!"}))
    await world.pass_()
    seen, missed = his.presence.changes(), hers.presence.changes()
    world.dialers[ann].online = False
    world.dialers[ann].cut()
    await world.pass_(0)
    assert not hers.presence.current
    assert names(hers) == ["Ann!", "bob"]
    cat = await world.user("cat", node=1)
    await world.call(cat.join(ROOM).joined())
    await world.pass_(3)
    world.dialers[ann].online = True
    world.dialers[ann].at = 1
    await world.pass_(15)
    assert ann.resumed
    (change,) = fetched(missed)
    assert [member.user for member in change.joins] == ["cat"]
    assert (change.leaves, change.updates, change.whole) == ((), (), False)
    assert [[m.user for m in (*c.joins, *c.leaves, *c.updates)] for c in fetched(seen)] == [["cat"]]
    assert names(his) == names(hers) == ["Ann!", "bob", "cat"]


async def test_who_returns_too_late_says_again_what_it_said_of_itself(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, presence=True).joined())
    his = await world.call(bob.join(ROOM, presence=True).joined())
    await world.call(hers.presence.update({"name": "Ann!"}))
    before = ann.client_id
    world.dialers[ann].online = False
    world.dialers[ann].cut()
    await world.pass_(40)
    assert names(his) == ["bob"]
    world.dialers[ann].online = True
    await world.pass_(40)
    assert not ann.resumed
    assert ann.client_id != before
    assert names(his) == names(hers) == ["Ann!", "bob"]


async def test_a_large_room_is_counted_and_listed_again_when_it_is_small(world: World) -> None:
    ann = await world.user("ann")
    hers = await world.call(ann.join(ROOM, presence=True).joined())
    others: list[RoomClient[Any]] = []
    for n in range(5):
        other = await world.user(f"u{n % 3}", node=n % 2)
        others.append(await world.call(other.join(ROOM).joined()))
    await world.pass_(2)
    assert not hers.presence.listed
    assert (hers.presence.members, hers.presence.clients, hers.presence.count) == ((), 6, 4)
    for other in others[2:]:
        await world.call(other.leave())
    await world.pass_(2)
    assert hers.presence.listed
    assert names(hers) == ["ann", "u0", "u1"]


async def test_a_room_the_server_puts_its_clients_in(world: World) -> None:
    ann = await world.user("ann")
    room = await world.call(ann.join("own:ann", presence=True, receipts=True).joined())
    await world.pass_()
    assert [m.user for m in room.presence.members] == ["ann"]
    assert room.receipts.complete
    await world.lose(ann, node=1)
    await world.pass_()
    assert ann.resumed
    assert room.presence.current
    assert [m.client for m in room.presence.members] == [ann.client_id]
    await world.call(world.hubs[0].publish("own:ann", 1))
    assert await take(world, room, 1) == [1]
    await world.pass_()
    assert room.receipts.marks["ann"].delivered == room.position


# -- receipts ----------------------------------------------------------------------------------------------


async def test_what_is_delivered_and_read_is_known_on_both_nodes(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, receipts=True).joined())
    his = await world.call(bob.join(ROOM, receipts=True).joined())
    for n in range(3):
        await world.call(hers.send(n))
    assert his.receipts.unread == 3
    assert await take(world, his, 3) == [0, 1, 2]
    await world.pass_(3)
    epoch = his.position.epoch if his.position is not None else ""
    third = Position(epoch, 3)
    assert hers.receipts.marks["bob"] == Marks(third, None)
    assert hers.receipts.reached(third, "delivered") == ["bob"]
    assert hers.receipts.reached(third) == []
    changes = hers.receipts.changes()
    his.receipts.read()
    assert his.receipts.unread == 0
    await world.pass_(3)
    (change,) = fetched(changes)
    assert change.marks == {"bob": Marks(third, third)}
    assert hers.receipts.reached(third) == ["bob"]
    # Another device of bob's knows what the first one has read.
    tablet = await world.user("bob", node=0)
    again = await world.call(tablet.join(ROOM, receipts=True).joined())
    assert again.receipts.unread == 0
    await world.call(hers.send(3))
    await world.pass_()
    assert (again.receipts.unread, his.receipts.unread) == (1, 1)
    again.receipts.read(Position(epoch, 4))
    await world.pass_(2)
    assert his.receipts.unread == 0


async def test_marks_survive_a_loss_and_what_was_not_told_is_told_after_it(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, receipts=True).joined())
    his = await world.call(bob.join(ROOM, receipts=True).joined())
    for n in range(4):
        await world.call(hers.send(n))
    assert await take(world, his, 2) == [0, 1]
    world.dialers[bob].online = False
    world.dialers[bob].cut()
    await world.pass_(0)
    assert await take(world, his, 2) == [2, 3]
    his.receipts.read()
    await world.pass_(5)
    assert hers.receipts.reached(his.position or Position("", 0)) == []
    world.dialers[bob].online = True
    world.dialers[bob].at = 0
    await world.pass_(30)
    assert hers.receipts.reached(his.position or Position("", 0)) == ["bob"]


async def test_a_last_mark_is_told_by_who_leaves_and_by_who_closes(world: World) -> None:
    ann, bob, cat = await world.user("ann"), await world.user("bob", node=1), await world.user("cat")
    hers = await world.call(ann.join(ROOM, receipts=True).joined())
    his = await world.call(bob.join(ROOM, receipts=True).joined())
    cats = await world.call(cat.join(ROOM, receipts=True).joined())
    for n in range(4):
        await world.call(hers.send(n))
    for room in (his, cats):
        await take(world, room, 1)
        room.receipts.read()
        await world.pass_(0)
        await take(world, room, 3)
        room.receipts.read()
    await world.call(his.leave())
    await world.call(cat.aclose())
    await world.pass_(2)
    assert hers.receipts.reached(his.position or Position("", 0)) == ["bob", "cat"]


async def test_many_users_come_in_pages(world: World) -> None:
    ann = await world.user("zoe")
    hers = await world.call(ann.join(ROOM).joined())
    await world.call(hers.send(1))
    await world.pass_()
    top = hers.position
    assert top is not None
    running = world.hubs[0].engine.receipts
    for n in range(450):
        # As if they had been here; it is about the pages.
        running._ledger.mark(  # type: ignore[attr-defined]
            ROOM,
            f"u{n:03}",
            top.epoch,
            _mark(1, n % 2),
            kept=1000.0,
            epochs=running._epochs_of(ROOM),  # type: ignore[attr-defined]
        )
    await world.pass_(10)
    late = await world.user("ann", node=1)
    room = await world.call(late.join(ROOM, receipts=True).joined())
    await world.pass_(5)
    assert room.receipts.complete
    assert len(room.receipts.marks) == 450
    assert len(room.receipts.reached(Position(top.epoch, 1))) == 225


def _mark(delivered: int, read: int) -> Any:
    from rtkit.features.receipts.board import Mark

    return Mark(delivered, read)


async def test_a_stream_that_is_lost_takes_its_marks_along(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, receipts=True).joined())
    his = await world.call(bob.join(ROOM, receipts=True).joined())
    for n in range(2):
        await world.call(hers.send(n))
    assert await take(world, his, 2) == [0, 1]
    his.receipts.read()
    await world.pass_(3)
    before = his.position
    assert before is not None
    assert hers.receipts.reached(before) == ["bob"]
    await world.call(world.hubs[0].room(ROOM).clear())
    await world.call(hers.send(2))
    await world.pass_(20)
    assert his.receipts.unread == 1
    assert hers.receipts.reached(before) == []
    while not isinstance(await world.call(anext(his)), Message):
        pass
    his.receipts.read()
    await world.pass_(3)
    assert his.position is not None
    assert his.position.epoch != before.epoch
    assert hers.receipts.marks["bob"].read == his.position
    assert his.receipts.unread == 0


async def test_a_stream_that_was_taken_over_keeps_them(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM, receipts=True).joined())
    his = await world.call(bob.join(ROOM, receipts=True).joined())
    for n in range(2):
        await world.call(hers.send(n))
    first: Any = await world.call(anext(his))
    his.receipts.read()
    await world.pass_(3)
    world.backend.take_over(f"room:{ROOM}")
    await world.call(hers.send(2))
    await world.pass_(20)
    assert his.receipts.unread == 2
    assert hers.receipts.reached(first) == ["bob"], "a message of the old epoch is where it was"
    his.receipts.read(first)
    assert await take(world, his, 2) == [1, 2]
    his.receipts.read()
    await world.pass_(3)
    assert hers.receipts.marks["bob"].read == his.position
    assert hers.receipts.reached(first) == ["bob"]


# -- typing ------------------------------------------------------------------------------------------------


async def test_typing_is_seen_and_ends(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM).joined())
    his = await world.call(bob.join(ROOM).joined())
    changes = hers.typing_changes()
    for _ in range(40):  # eight seconds
        his.typing()
        await world.pass_(0.2)
        assert hers.typists == ("bob",)
    assert his.typists == ()
    assert fetched(changes) == [("bob",)]
    await world.pass_(6)
    assert hers.typists == ()
    his.typing()
    await world.pass_(1)
    assert hers.typists == ("bob",)
    await world.call(his.send("hi"))
    await world.pass_(0.5)
    assert hers.typists == ()
    his.typing()
    await world.pass_(1)
    his.typing(False)
    await world.pass_(0.5)
    assert hers.typists == ()


async def test_typing_ends_with_the_connection_and_goes_on_after_it(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM).joined())
    his = await world.call(bob.join(ROOM).joined())
    his.typing()
    await world.pass_(1)
    world.dialers[bob].online = False
    world.dialers[bob].cut()
    await world.pass_(0.1)
    assert hers.typists == ()
    world.dialers[bob].online = True
    world.dialers[bob].at = 0
    await world.pass_(2.5)
    assert bob.resumed
    assert hers.typists == ("bob",)
    await world.lose(ann, node=1, after=0.0)
    assert hers.typists == ()
    await world.pass_(1.5)
    assert hers.typists == (), "until it is heard again"
    his.typing()
    await world.pass_(1)
    assert hers.typists == ("bob",)


# -- signals -----------------------------------------------------------------------------------------------


async def test_signals_come_at_the_pace_of_the_room_the_newest_last(world: World) -> None:
    ann, bob = await world.user("ann"), await world.user("bob", node=1)
    hers = await world.call(ann.join(ROOM).joined())
    his = await world.call(bob.join(ROOM).joined())
    signals = hers.signals()
    for n in range(20):
        his.signal(n, name="at")
        await world.pass_(0.05)
    await world.pass_(1)
    found = fetched(signals)
    assert [signal.data for signal in found] == [0, 5, 10, 15, 19]
    assert {(signal.sender, signal.client) for signal in found} == {("bob", bob.client_id)}
