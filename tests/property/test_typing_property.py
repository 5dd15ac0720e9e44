"""Whatever clients say, lose and suffer: who has heard it all knows who types, and nobody types for ever (X1)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from rtkit import Grant, History, Limits
from rtkit.errors import BrokerUnavailable
from rtkit.features import Typing
from rtkit.primitives import Rate
from tests.support.rawclient import RawClient
from tests.unit.features.typing.listener import Listener
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

EXPIRES = 4.0
ROOM = "chat:a"
WHO = st.integers(0, 2)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 0.3, 0.9, 1.4, 2.0, 3.9, 4.0, 6.0])),
        st.tuples(st.just("type"), WHO),
        st.tuples(st.just("type"), WHO),
        st.tuples(st.just("flip"), WHO),
        st.tuples(st.just("stop"), WHO),
        st.tuples(st.just("publish"), WHO),
        st.tuples(st.just("publish and type"), WHO),
        st.tuples(st.just("rejoin"), WHO),
        st.tuples(st.just("drop"), WHO),
        st.tuples(st.just("broker down"), st.booleans()),
        st.tuples(st.just("deaf"), st.booleans()),
        st.tuples(st.just("choke"), st.booleans()),
    ),
    max_size=40,
)


class ForgetfulBroker(FaultyBroker):
    """What is said in rooms does not get through while it is *away*."""

    away = False

    async def publish(self, topic: str, payload: bytes) -> None:
        if self.away and topic.startswith("room:"):
            raise BrokerUnavailable("away")
        await super().publish(topic, payload)

    async def append(self, topic: str, payload: bytes, **options: Any) -> Any:
        if self.away:
            raise BrokerUnavailable("away")
        return await super().append(topic, payload, **options)


class Story:
    """Three clients on two hubs, and one on each that listens and says nothing.

    :ivar truth: until when each client types, by its last word.
    """

    def __init__(self, world: World, history: bool) -> None:
        self.world = world
        self.brokers = [ForgetfulBroker(world.backend) for _ in range(2)]
        limits = Limits(commands=Rate(rate=1000, burst=1000), heartbeat=None)
        self.hubs = [world.hub(broker=broker, parks=True, limits=limits) for broker in self.brokers]
        for hub in self.hubs:
            hub.rooms(
                "chat:{x}",
                publishes=object,
                grant=Grant("publish", "signal"),
                history=History(100, ttl=600) if history else None,
                typing=Typing(expires=EXPIRES),
            )
        self.clients: list[RawClient | None] = []
        self.ids: list[str] = []
        self.resume: list[str] = []

    async def begin(self) -> None:
        self.listeners = [
            Listener(await self.world.join(hub, f"listener {n}", ROOM), ROOM, EXPIRES)
            for n, hub in enumerate(self.hubs)
        ]
        for n in range(3):
            client = await self.world.join(self.hubs[n % 2], f"user {n // 2}", ROOM)
            welcome = client.replies[1]["connect"]
            self.clients.append(client)
            self.ids.append(welcome["client"])
            self.resume.append(welcome["rt"]["resume"])

    async def client(self, n: int) -> RawClient:
        """The client, which comes back, on the other hub, if it has to."""
        found = self.clients[n]
        if found is None or found.closed:
            hub = self.hubs[(n + 1) % 2]
            found = self.world.client(hub, rt=True)
            welcome = await found.connect(f"user {n // 2}", rt={"v": 1, "resume": self.resume[n]})
            self.ids[n], self.resume[n] = welcome["client"], welcome["rt"]["resume"]
            await found.request("subscribe", channel=ROOM)
            self.clients[n] = found
        return found

    def down(self, now: bool) -> None:
        for broker in self.brokers:
            broker.away = now

    async def step(self, name: str, argument: float) -> None:
        n = int(argument)
        match name:
            case "wait":
                await self.world.clock.advance(argument)
            case "type" | "stop":
                await self.says(n, name == "type")
            case "flip":
                client = await self.client(n)
                for k in range(12):
                    client.tell({"signal": {"channel": ROOM, "event": "typing", "data": k % 2 == 0}})
            case "publish":
                await (await self.client(n)).request("publish", channel=ROOM, data=1)
            case "publish and type":
                client = await self.client(n)
                client.tell(
                    {"publish": {"channel": ROOM, "data": 1}},
                    {"signal": {"channel": ROOM, "event": "typing", "data": True}},
                )
            case "rejoin":
                client = await self.client(n)
                await client.request("unsubscribe", channel=ROOM)
                await client.request("subscribe", channel=ROOM)
            case "drop":
                found, self.clients[n] = self.clients[n], None
                if found is not None:
                    await found.drop()
            case "broker down":
                self.down(bool(argument))
            case "deaf":
                self.brokers[0].deaf = {f"room:{ROOM}"} if argument else False
            case "choke":
                pipe = self.listeners[1].client.pipe
                if not argument:
                    pipe.drain()
                elif not pipe.stalled:
                    pipe.choke(900_000)  # of 1 MiB, so that it keeps its connection
            case _:
                raise AssertionError(name)
        await self.hear()

    async def says(self, n: int, typing: bool) -> None:
        client = await self.client(n)
        await client.request("signal", channel=ROOM, event="typing", data=typing)

    async def hear(self) -> None:
        await self.world.settle()
        for listener in self.listeners:
            await listener.client.settle()
            listener.listen()

    async def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            await self.world.clock.advance(0.1)
            await self.hear()


async def tell(steps: list[tuple[str, float]], last: list[bool], history: bool) -> None:
    world = World()
    story = Story(world, history)
    await story.begin()
    try:
        for name, argument in steps:
            await story.step(name, argument)
        # Everything works again, and each client says a last word.
        story.down(False)
        story.brokers[0].deaf = False
        story.listeners[1].client.pipe.drain()
        lossy = any(name in ("broker down", "deaf", "choke") for name, _ in steps)
        await story.pass_by(EXPIRES + 0.1 if lossy else 0.3)  # a word that was lost expires at who was told
        for n, typing in enumerate(last):
            await story.step("flip", n)
            await story.says(n, typing)
        await story.pass_by(1.2)
        truth = {story.ids[n] for n, typing in enumerate(last) if typing}
        for listener in story.listeners:
            assert listener.typists == truth
        if truth:
            event("somebody typed in the end")
        await story.pass_by(EXPIRES)
        for listener in story.listeners:
            assert listener.typists == set()
        for hub in story.hubs:
            assert repr(hub.engine.features["typing"]) == "<Typing: 0 clients>"
    finally:
        await world.close()


@settings(max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 10)
@given(STEPS, st.lists(st.booleans(), min_size=3, max_size=3), st.booleans())
def test_who_has_heard_it_all_knows_who_types(
    steps: list[tuple[str, float]], last: list[bool], history: bool
) -> None:
    asyncio.run(tell(steps, last, history))


@settings(max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 20)
@given(STEPS, st.booleans())
def test_when_all_are_gone_nobody_types(steps: list[tuple[str, float]], history: bool) -> None:
    """A node that dies says nothing for its clients: who was told forgets by itself."""

    async def crash() -> None:
        world = World()
        story = Story(world, history)
        await story.begin()
        try:
            for name, argument in steps:
                await story.step(name, argument)
            story.down(True)
            story.listeners[1].client.pipe.drain()
            await story.pass_by(EXPIRES + 0.1)
            for listener in story.listeners:
                assert listener.typists == set()
            story.down(False)
        finally:
            await world.close()

    asyncio.run(crash())
