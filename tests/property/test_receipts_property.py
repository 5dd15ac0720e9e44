"""Marks of several devices on two nodes, in any order and in bad weather: everybody comes to know the furthest (X2)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rtkit import Grant, History, Hub, Position
from rtkit.features import Receipts
from tests.support.rawclient import RawClient, Unit
from tests.support.takeover import SurvivingBackend
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ROOM, KEY = "chat:a", "marks:chat:a"
USERS = ["ann", "bob", "cyd"]

NODES = st.integers(0, 1)
STEPS = st.one_of(
    # of a user's device at a node, so far behind the top that the node knows of
    st.tuples(
        st.just("mark"),
        NODES,
        st.sampled_from(USERS),
        st.sampled_from(["delivered", "read"]),
        st.integers(0, 6),
    ),
    st.tuples(st.just("mark"), NODES, st.sampled_from(USERS), st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("say"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.5, 2.0])),
    st.tuples(st.just("take over"), st.integers(0, 4)),
    st.tuples(st.just("down"), NODES, st.booleans()),
    st.tuples(st.just("deaf"), NODES, st.booleans()),
    st.tuples(st.just("no answer"), NODES),
    st.tuples(st.just("watch"), NODES),
)


class Watcher:
    """A client that was told of marks, and keeps to what the wire says about them."""

    def __init__(self, client: RawClient, first: Unit) -> None:
        self.client = client
        self.epoch = ""
        self.marks: dict[str, dict[str, int]] = {}
        self._heard = 0
        self._hear(first)

    def _hear(self, body: Unit) -> None:
        if body.get("whole"):
            self.epoch, self.marks = body["epoch"], {"delivered": {}, "read": {}}
        assert body["epoch"] == self.epoch
        for kind, known in self.marks.items():
            for user, offset in body.get(kind, {}).items():
                assert offset >= known.get(user, 0), "a mark went back"
                known[user] = offset
        assert self.marks["read"].keys() <= self.marks["delivered"].keys()

    def hear(self) -> None:
        pushes = self.client.pushes_of(ROOM, "marks")
        for body in pushes[self._heard :]:
            self._hear(body)
        self._heard = len(pushes)


class Story:
    """Two nodes, a device of each user at each, and what has come of it."""

    def __init__(self) -> None:
        self.world = World()
        self.backend = self.world.backend = SurvivingBackend(clock=self.world.clock)
        self.brokers = [FaultyBroker(self.backend) for _ in range(2)]
        self.hubs: list[Hub[Any]] = []
        for broker in self.brokers:
            hub = self.world.hub(broker=broker)
            hub.rooms(
                "chat:{x}",
                publishes=object,
                history=History(4, ttl=3600),
                grant=Grant("publish"),
                receipts=Receipts(),
            )
            self.hubs.append(hub)
        self.made: list[tuple[str, str, Position]] = []
        self.watchers: list[Watcher] = []

    async def begin(self) -> None:
        for hub in self.hubs:
            await hub.start()
        await self.say(6)
        self.devices = {
            (node, user): await self.world.join(hub, user, ROOM)
            for node, hub in enumerate(self.hubs)
            for user in USERS
        }
        for node in range(2):
            await self.watch(node)

    async def say(self, count: int) -> None:
        for n in range(count):
            # past the nodes: their brokers may be away
            self.backend.append("room:chat:a", b'{"v":1,"data":%d}' % n, History(4, ttl=3600), None, None)
        await self.world.settle()

    async def watch(self, node: int) -> None:
        if not self.brokers[node].down:
            client = await self.world.join(self.hubs[node], f"watcher{len(self.watchers)}")
            result = await client.call("subscribe", channel=ROOM, marks=True)
            self.watchers.append(Watcher(client, result["marks"]))

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case "mark", node, user, kind, behind:
                feed = self.hubs[node].engine.rooms[ROOM].feed
                assert feed is not None and feed.cursor is not None
                place = Position(feed.cursor.epoch, max(0, feed.cursor.offset - behind))
                client: RawClient = self.devices[node, user]
                body = {"channel": ROOM, "kind": kind, "epoch": place.epoch, "offset": place.offset}
                reply = await client.request("mark", **body)
                assert "error" not in reply
                self.made.append((user, "delivered", place))
                if kind == "read":
                    self.made.append((user, "read", place))
            case "say", count:
                await self.say(count)
            case "wait", seconds:
                await self.world.clock.advance(seconds)
            case "take over", lost:
                self.backend.take_over("room:chat:a", lost)
            case "down", node, down:
                self.brokers[node].down = down
            case "deaf", node, deaf:
                self.brokers[node].deaf = deaf
            case "no answer", node:
                self.brokers[node].losing_answers += 1
            case "watch", node:
                await self.watch(node)
            case _:
                raise AssertionError(step)
        for client in self.world.clients:
            await client.settle()
        for watcher in self.watchers:
            watcher.hear()

    def expected(self) -> tuple[str, dict[str, dict[str, int]]]:
        """The furthest of all that was ever answered, in the present epoch."""
        epoch = self.backend._streams["room:chat:a"].epoch
        furthest: dict[str, dict[str, int]] = {"delivered": {}, "read": {}}
        for user, kind, place in self.made:
            offset = place.offset
            if place.epoch != epoch:
                offset = min(offset, self.backend.shared("room:chat:a", place.epoch, epoch))
            if offset:
                furthest[kind][user] = max(offset, furthest[kind].get(user, 0))
        return epoch, furthest

    async def check(self) -> None:
        for broker in self.brokers:
            broker.down = broker.deaf = False
            broker.losing_answers = 0
        await self.world.advance(45)
        await self.say(1)
        await self.world.advance(45)
        epoch, furthest = self.expected()
        for node in range(2):
            await self.watch(node)
        for watcher in self.watchers:
            watcher.hear()
            assert (watcher.epoch, watcher.marks) == (epoch, furthest)
        for hub in self.hubs:
            marks = await hub.room(ROOM).marks()
            assert {user: each.delivered for user, each in marks.items()} == {
                user: Position(epoch, offset) for user, offset in furthest["delivered"].items()
            }
            running: Any = hub.engine.receipts
            assert not running._ledger.of(ROOM)


async def tell(steps: list[tuple[Any, ...]]) -> None:
    story = Story()
    try:
        await story.begin()
        for step in steps:
            await story.step(step)
        await story.check()
    finally:
        for broker in story.brokers:
            broker.down = False
        await story.world.close()


@settings(max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 12, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_everybody_comes_to_know_the_furthest(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(tell(steps))
