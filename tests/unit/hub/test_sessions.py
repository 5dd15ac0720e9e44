"""Sessions that begin, end or change their node while something takes its time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits, Reject
from rtkit.features import Presence

from .brokers import FaultyBroker
from .conftest import World
from .test_drain import draining
from .test_parking import come


def told(hub: Hub[Any], lines: list[str], name: str = "", wait: asyncio.Event | None = None) -> None:
    """Have written down which sessions the application is told of; a beginning takes until *wait* is set."""

    @hub.on_session_start
    async def starts(ctx: Context[Any, Any]) -> None:
        lines.append(f"{name}{ctx.user} starts")
        if wait is not None:
            await wait.wait()
            lines.append(f"{name}{ctx.user} has started")

    @hub.on_session_end
    async def ends(ctx: Context[Any, Any], reason: str) -> None:
        lines.append(f"{name}{ctx.user} ends")


# -- what the application is told -----------------------------------------------------------------------


async def test_a_session_that_is_over_before_it_has_begun_ends_afterwards(world: World) -> None:
    """Else whoever counts who is there counts it for ever."""
    hub, lines, go = world.hub(parks=True), list[str](), asyncio.Event()
    told(hub, lines, wait=go)
    await hub.start()
    ann = world.client(hub, rt=True)
    ann.ask("connect", token="ann", rt={"v": 1})
    await ann.settle()
    await ann.drop()
    assert lines == ["ann starts"]
    go.set()
    await world.advance(60)
    assert lines == ["ann starts", "ann has started", "ann ends"]
    assert hub.statistics().sessions == 0


async def test_of_a_session_that_never_begins_nothing_is_told(world: World) -> None:
    """It is over while its client is put into its rooms."""
    hub, lines, go = world.hub(parks=True), list[str](), asyncio.Event()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant(), auto_join=lambda identity: ["r:a"])
    told(hub, lines)

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        await go.wait()

    await hub.start()
    ann = world.client(hub, rt=True)
    ann.ask("connect", token="ann", rt={"v": 1})
    await ann.settle()
    await ann.drop()
    go.set()
    await world.advance(60)
    assert lines == []


async def test_a_session_that_comes_back_while_it_begins_begins_once(world: World) -> None:
    """Decision 24: once for each node."""
    one, two, lines, go = world.hub(parks=True), world.hub(parks=True), list[str](), asyncio.Event()
    told(one, lines, "A: ")
    told(two, lines, "B: ", go)
    await two.start()
    ann, connected = await come(world, one)
    await ann.drop()
    clients = [world.client(two, rt=True) for _ in range(2)]
    for client in clients:
        client.ask("connect", token="ann", rt={"v": 1, "resume": connected["rt"]["resume"]})
        await client.settle()
    assert lines == ["A: ann starts", "A: ann ends", "B: ann starts"]
    go.set()
    await world.settle()
    assert clients[1].reply(1)["connect"]["client"] == connected["client"]
    assert lines[3:] == ["B: ann has started"]


async def test_a_beginning_that_failed_is_tried_again_by_who_comes_back(world: World) -> None:
    one, two = world.hub(parks=True), world.hub(parks=True)
    goes, tries = asyncio.Event(), list[str]()

    @two.on_session_start
    async def starts(ctx: Context[Any, Any]) -> None:
        tries.append(ctx.user)
        if len(tries) == 1:
            await goes.wait()
            raise Reject("not now", retry_after=1.0)

    await two.start()
    ann, connected = await come(world, one)
    await ann.drop()
    clients = [world.client(two, rt=True) for _ in range(2)]
    for client in clients:
        client.ask("connect", token="ann", rt={"v": 1, "resume": connected["rt"]["resume"]})
        await client.settle()
    goes.set()
    await world.settle()
    assert tries == ["ann", "ann"]
    assert clients[1].reply(1)["connect"]["client"] == connected["client"]


# -- what the client is told ----------------------------------------------------------------------------


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_nothing_is_heard_of_a_session_whose_connect_is_not_answered(world: World, rt: bool) -> None:
    """A push before the answer moves a foreign client's position over what the answer would have brought."""
    hub, go = world.hub(parks=True), asyncio.Event()
    kept = History(100, ttl=600)
    hub.rooms("r:{x}", publishes=object, history=kept, grant=Grant(), auto_join=lambda identity: ["r:a"])
    slow = hub.rooms("s:{x}", publishes=object, grant=Grant(), auto_join=lambda identity: ["s:a"])

    @slow.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        await go.wait()

    await hub.start()
    ann = world.client(hub, rt=rt)
    ann.ask("connect", token="ann", **({"rt": {"v": 1}} if rt else {}))
    await ann.settle()
    await hub.publish("r:a", "before the answer")
    await world.settle()
    drain = draining(hub)
    await world.settle()
    go.set()
    await ann.settle()
    await world.clock.advance(6)
    await drain
    assert ann.close_code == 3001
    assert ann.data_of("r:a") == []
    assert [push for push in ann.pushes if "disconnect" not in push] == []


@pytest.mark.parametrize("code", [3001, 4500])
async def test_a_goodbye_before_which_the_outbox_overflows_is_that_goodbye(world: World, code: int) -> None:
    """What was published in this turn is handed out before it, and is too much: it may not change the code."""
    hub = world.hub(parks=True, limits=Limits(outbox=64 * 1024))
    hub.rooms("x:{x}", publishes=object, grant=Grant(), overflow="close")
    ann = await world.join(hub, "ann", "x:a")
    ann.pipe.choke(33 * 1024)
    for _ in range(2):
        await hub.publish("x:a", "y" * 14_000)
        await world.settle()
    publication = asyncio.ensure_future(hub.publish("x:a", "y" * 14_000))
    while not hub.engine._pending:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert ann.closed is None
    (session,) = hub.engine.sessions.values()
    await session.close(code=code)
    await publication
    await world.settle()
    assert ann.close_code == code
    totals: Any = hub.statistics().totals
    assert {name: count for name, count in totals.items() if "closes" in name} == {f"closes{{{code}}}": 1}
    assert len(hub.engine.sessions) == (code == 3001), "it parks unless it was closed for good"


# -- on its way from one node to another ----------------------------------------------------------------


class Passing:
    """Ann's session, which A has let go of, while its answer is on its way to B."""

    def __init__(self, world: World) -> None:
        self.world, self.lines = world, list[str]()
        self.broker = FaultyBroker(world.backend)
        self.a, self.b = self._hub("A: "), self._hub("B: ", broker=self.broker)

    def _hub(self, name: str, **options: Any) -> Hub[Any]:
        hub = self.world.hub(parks=True, **options)
        rooms = hub.rooms("p:{x}", publishes=object, grant=Grant("presence"), presence=Presence())

        @rooms.on_leave
        async def left(ctx: Context[Any, Any]) -> None:
            self.lines.append(f"{name}{ctx.user} leaves")

        told(hub, self.lines, name)
        return hub

    async def under_way(self) -> Any:
        """The client at B."""
        await self.b.start()
        ann, connected = await come(self.world, self.a)
        await ann.call("subscribe", channel="p:a")
        await self.world.advance(3)
        await ann.drop()
        deliver, self.kept = self.broker.deliver, list[Any]()

        def late(topic: str, *more: Any) -> None:
            self.kept.append((topic, *more)) if topic == self.b.engine.relay.topic else deliver(topic, *more)

        self.broker.deliver = late  # type: ignore[method-assign]
        client = self.world.client(self.b, rt=True)
        client.ask("connect", token="ann", rt={"v": 1, "resume": connected["rt"]["resume"]})
        await client.settle()
        assert not self.a.engine.sessions
        assert not self.b.engine.sessions
        return client

    async def arrives(self) -> None:
        del self.broker.deliver
        for each in self.kept:
            self.broker.deliver(*each)
        await self.world.settle()


async def test_who_is_revoked_on_the_way_leaves_at_once(world: World) -> None:
    passing = Passing(world)
    client = await passing.under_way()
    await passing.a.user("ann").revoke(until=passing.a.clock.time() + 1000)
    await passing.arrives()
    assert client.close_code == 4501
    await world.advance(3)
    assert await passing.b.room("p:a").presence() == []
    assert "B: ann leaves" in passing.lines
    assert not passing.b.engine.sessions


async def test_who_is_banned_on_the_way_leaves_that_room(world: World) -> None:
    passing = Passing(world)
    client = await passing.under_way()
    await passing.a.room("p:a").remove("ann", reason="out", ban=1000)
    await passing.arrives()
    assert client.reply(1)["connect"]["rt"]["resumed"]
    await world.advance(3)
    assert await passing.b.room("p:a").presence() == []
    assert passing.lines.count("B: ann leaves") == 1
