"""Idempotency: what handlers publish is published exactly once, however often a command is sent (H7, api 5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from rtkit import Context, Grant, History, Hub, Router
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World


@dataclass
class Say:
    text: str


class Shop:
    """Handlers that publish to their own room and to others, and count their runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hub: Hub[Any] = world.hub()
        self.keys: list[str | None] = []
        self.published: list[bool] = []
        self.gate: asyncio.Event | None = None
        options: Any = {"grant": Grant("publish", "history"), "history": History(100, ttl=600)}
        self.rooms = self.hub.rooms("r:{x}", publishes=Say, **options)
        self.log = self.hub.rooms("log:{x}", publishes=object, **options)
        self.rooms.on(Say, name="Order")(self.order)
        self.hub.rpc(Say, name="Order")(self.order)

    async def order(self, ctx: Context[Any, Any], message: Say) -> int:
        self.keys.append(ctx.key)
        if self.gate is not None:
            await self.gate.wait()
        first = self.hub.room("log:a") if ctx.where == "" else ctx.room
        body: Any = message.text if ctx.where == "" else message
        published = [
            await first.publish(body),
            await self.log.room(x="a").publish(f"{message.text} noted"),
            await ctx.hub.room("log:a").publish(f"{message.text} noted again"),
        ]
        self.published.extend(p.duplicate for p in published)
        return len(self.keys)

    def ask(self, client: RawClient, text: str, room: str = "r:a", **more: Any) -> int:
        return client.ask("publish", channel=room, data={"event": "Order", "data": {"text": text}}, **more)

    async def order_(self, client: RawClient, text: str, room: str = "r:a", **more: Any) -> Any:
        id = self.ask(client, text, room, **more)
        await client.settle()
        return client.reply(id)["publish"]["data"]

    async def texts(self, room: str) -> list[Any]:
        messages = (await self.hub.room(room).history()).messages
        return [m.data.text if isinstance(m.data, Say) else m.data for m in messages]


async def test_a_resend_after_the_end_publishes_nothing_twice(world: World) -> None:
    """H7: the handler runs again with the same key; its publications are numbered, so they are known."""
    shop = Shop(world)
    ann = await world.join(shop.hub, "ann", "r:a")
    assert await shop.order_(ann, "tea", key="k1") == 1
    assert await shop.order_(ann, "tea", key="k1") == 2
    await ann.drop()
    again = await world.join(shop.hub, "ann", "r:a")
    assert await shop.order_(again, "tea", key="k1") == 3
    assert shop.keys == ["k1"] * 3
    assert shop.published == [False] * 3 + [True] * 6
    assert await shop.texts("r:a") == ["tea"]
    assert await shop.texts("log:a") == ["tea noted", "tea noted again"]


async def test_another_key_is_another_command(world: World) -> None:
    shop = Shop(world)
    ann = await world.join(shop.hub, "ann", "r:a")
    await shop.order_(ann, "tea", key="k1")
    await shop.order_(ann, "tea", key="k2")
    await shop.order_(ann, "tea")
    await shop.order_(ann, "tea")
    assert shop.keys == ["k1", "k2", None, None]
    assert await shop.texts("r:a") == ["tea"] * 4
    assert len(await shop.texts("log:a")) == 8


async def test_keys_belong_to_a_user(world: World) -> None:
    """H7: two users with the same key do not meet, neither here nor in rooms that both handlers publish to."""
    shop = Shop(world)
    for user in ("ann", "bob"):
        client = await world.join(shop.hub, user, "r:a")
        await shop.order_(client, user, key="k1")
    assert await shop.texts("r:a") == ["ann", "bob"]
    assert await shop.texts("log:a") == ["ann noted", "ann noted again", "bob noted", "bob noted again"]


async def test_keys_belong_to_a_room(world: World) -> None:
    """H7: nor do two commands of one user to different rooms, in a third one that both handlers publish to."""
    shop = Shop(world)
    ann = await world.join(shop.hub, "ann", "r:a", "r:b")
    await shop.order_(ann, "a", "r:a", key="k1")
    await shop.order_(ann, "b", "r:b", key="k1")
    await ann.call("rpc", method="Order", data={"text": "rpc"}, key="k1")
    assert await shop.texts("r:a") == ["a"]
    assert await shop.texts("r:b") == ["b"]
    log = await shop.texts("log:a")
    assert log == [
        "a noted",
        "a noted again",
        "b noted",
        "b noted again",
        "rpc",
        "rpc noted",
        "rpc noted again",
    ]


async def test_a_resend_joins_the_run_that_is_still_going(world: World) -> None:
    """API 5: over a new connection of the same user; both get the acknowledgement of the one run."""
    shop = Shop(world)
    shop.gate = asyncio.Event()
    ann = await world.join(shop.hub, "ann", "r:a")
    shop.ask(ann, "tea", key="k1")
    await ann.settle()
    await ann.drop()
    again, tab = await world.join(shop.hub, "ann", "r:a"), await world.join(shop.hub, "ann", "r:a")
    bob = await world.join(shop.hub, "bob", "r:a")
    ids = [shop.ask(again, "tea", key="k1"), shop.ask(tab, "tea", key="k1")]
    other = shop.ask(bob, "tea", key="k1")
    await world.settle()
    assert shop.keys == ["k1", "k1"]
    shop.gate.set()
    await world.settle()
    assert again.reply(ids[0])["publish"] == tab.reply(ids[1])["publish"]
    assert bob.answered(other)
    assert shop.keys == ["k1", "k1"]
    assert await shop.texts("r:a") == ["tea", "tea"]


async def test_who_joined_a_run_that_fails_gets_its_failure(world: World, errors: Any) -> None:
    hub = world.hub()
    gate = asyncio.Event()
    runs = 0

    @hub.rpc(object, name="fail")
    async def fail(ctx: Context[Any, Any], message: Any) -> None:
        nonlocal runs
        runs += 1
        await gate.wait()
        raise KeyError

    ann, tab = await world.join(hub, "ann"), await world.join(hub, "ann")
    ids = [client.ask("rpc", method="fail", key="k") for client in (ann, tab)]
    await world.settle()
    gate.set()
    await world.settle()
    assert ann.reply(ids[0])["error"] == tab.reply(ids[1])["error"]
    assert (runs, len(errors())) == (1, 1)
    assert (await ann.refused("rpc", method="fail", key="k"))["code"] == 100
    assert runs == 2


async def test_a_run_that_times_out_fails_for_all_who_joined(world: World, errors: Any) -> None:
    hub = world.hub()

    @hub.rpc(object, name="hang")
    async def hang(ctx: Context[Any, Any], message: Any) -> None:
        await asyncio.Event().wait()

    ann, tab = await world.join(hub, "ann"), await world.join(hub, "ann")
    first = ann.ask("rpc", method="hang", key="k")
    await world.advance(20)
    second = tab.ask("rpc", method="hang", key="k")
    await world.advance(11)
    assert ann.reply(first)["error"]["code"] == tab.reply(second)["error"]["code"] == 100
    assert len(errors()) == 1


async def test_a_plain_publish_with_a_key(world: World) -> None:
    """H7: published once, and a repeat is answered with the first position; for five minutes."""
    shop = Shop(world)
    ann, bob = await world.join(shop.hub, "ann"), await world.join(shop.hub, "bob")
    first = await ann.call("publish", channel="log:a", data=1, key="k")
    assert await ann.call("publish", channel="log:a", data=1, key="k") == first
    assert (await bob.call("publish", channel="log:a", data=2, key="k"))["offset"] == 2
    assert (await ann.call("publish", channel="log:b", data=3, key="k"))["offset"] == 1
    await world.advance(301, step=10)
    assert (await ann.call("publish", channel="log:a", data=1, key="k"))["offset"] == 3
    assert shop.hub.statistics().totals is not None
    assert shop.hub.statistics().totals["duplicates"] == 1


async def test_a_key_given_by_the_application(world: World) -> None:
    """H7: it is taken as it is, and numbers nothing."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(9, ttl=60))

    @rooms.on(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> Any:
        own = await ctx.room.publish("own", key="mine")
        first = await ctx.room.publish("first")
        return [own.duplicate, first.duplicate]

    client = await world.join(hub, "ann", "r:a")
    data = {"event": "do"}
    assert (await client.call("publish", channel="r:a", data=data, key="k1"))["data"] == [False, False]
    assert (await client.call("publish", channel="r:a", data=data, key="k2"))["data"] == [True, False]
    assert (await client.call("publish", channel="r:a", data=data, key="k1"))["data"] == [True, True]
    assert client.data_of("r:a") == ["own", "first", "first"]


async def test_what_a_background_task_publishes_is_not_numbered(world: World) -> None:
    """API 6: a task that outlives the run must not use up its keys, nor be taken for a repeat."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(99, ttl=60))

    async def ticks(room: Any, other: Any) -> None:
        for n in range(3):
            await room.publish(f"tick {n}")
            await other.publish(f"tock {n}")

    @rooms.on(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> None:
        ctx.session.spawn(ticks, ctx.room, ctx.hub.room("r:other"))
        await asyncio.sleep(0)
        await ctx.room.publish("done")

    client = await world.join(hub, "ann", "r:a")
    for _ in range(2):
        await client.call("publish", channel="r:a", data={"event": "do"}, key="k1")
    published = client.data_of("r:a")
    assert published.count("done") == 1
    assert [published.count(f"tick {n}") for n in range(3)] == [2, 2, 2]
    other = [m.data for m in (await hub.room("r:other").history()).messages]
    assert [other.count(f"tock {n}") for n in range(3)] == [2, 2, 2]


async def test_who_is_named_as_the_sender(world: World) -> None:
    """API: as ctx.room the user is; as any other room, nobody."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(9, ttl=60))

    @rooms.on(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> None:
        await ctx.room.publish(1)
        await ctx.hub.room("r:a").publish(2)
        await rooms.room(x="a").publish(3)

    client = await world.join(hub, "ann", "r:a")
    await client.call("publish", channel="r:a", data={"event": "do"})
    senders = [(m.data, m.sender, m.client) for m in (await hub.room("r:a").history()).messages]
    own = client.reply(1)["connect"]["client"]
    assert senders == [(1, "ann", own), (2, None, None), (3, None, None)]
    assert ["info" in pub for pub in client.pushes_of("r:a")] == [True, False, False]


async def test_what_hooks_publish_is_not_numbered_with_the_run_that_caused_them(world: World) -> None:
    """H7: a handler that closes its session makes on_leave run; what that says is said each time."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(99, ttl=60))

    @rooms.on(object, name="quit")
    async def quit_(ctx: Context[Any, Any], message: Any) -> None:
        await ctx.session.close()

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        await ctx.room.publish(f"{ctx.user} left")
        await rooms.room(x="log").publish(f"{ctx.user} left")

    for _ in range(2):
        client = await world.join(hub, "ann", "r:a")
        client.ask("publish", channel="r:a", data={"event": "quit"}, key="k")
        await client.settle()
    for room in ("r:a", "r:log"):
        assert [m.data for m in (await hub.room(room).history()).messages] == ["ann left"] * 2


async def test_hooks_and_tasks_know_their_hub(world: World) -> None:
    """API 2: with two hubs of one router, `rooms.room()` is the room of the hub that runs the code."""
    shared: list[Any] = []
    hubs = [world.hub() for _ in range(2)]
    for hub in hubs:
        hub.state = str(hub.node_id)
    router: Router[Any] = Router()
    rooms = router.rooms("r:{x}", publishes=object, history=History(9, ttl=60))

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        await rooms.room(x="log").publish("authorize")
        return Grant()

    async def later() -> None:
        await rooms.room(x="log").publish("spawned")

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        shared.append(rooms.room(x="b")._hub)
        ctx.session.spawn(later)

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        await rooms.room(x="log").publish("left")

    for hub in hubs:
        hub.include(router)
        client = await world.join(hub, "ann", "r:a")
        await client.leave()
    assert shared == hubs
    said = [m.data for m in (await hubs[0].room("r:log").history()).messages]
    assert said == ["authorize", "spawned", "left"] * 2


async def test_who_joined_a_run_that_was_cancelled_runs_it_anew(world: World) -> None:
    """API 5: the first run ended without a result, so somebody has to."""
    hub = world.hub()
    gate = asyncio.Event()
    runs = 0

    @hub.rpc(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            await gate.wait()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return "done"

    ann, tab = await world.join(hub, "ann"), await world.join(hub, "ann")
    ann.ask("rpc", method="do", key="k")
    second = tab.ask("rpc", method="do", key="k")
    await world.settle()
    gate.set()
    await world.settle()
    assert ann.close_code == 3004
    assert tab.reply(second)["rpc"] == {"data": "done"}
    assert runs == 2


async def test_who_waits_for_a_run_may_go(world: World) -> None:
    """API 5, L1: the run goes on for the one who began it."""
    hub = world.hub()
    gate = asyncio.Event()

    @hub.rpc(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> str:
        await gate.wait()
        return "done"

    ann, tab = await world.join(hub, "ann"), await world.join(hub, "ann")
    first = ann.ask("rpc", method="do", key="k")
    tab.ask("rpc", method="do", key="k")
    await world.settle()
    await tab.drop()
    gate.set()
    await world.settle()
    assert ann.reply(first)["rpc"] == {"data": "done"}
