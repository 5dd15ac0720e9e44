"""T2: three hubs behind a balancer without a memory; clients over HTTP talk, a hub dies, and nothing is lost.

The hubs share one in-memory broker, so this is one process; every request between clients, balancer and hubs is a real
one. `./dev soak` repeats it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Message, anonymous
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.client import Client, RoomClient, connect
from rtkit.client.connecting import TransportName
from rtkit.server import Server
from tests.support.balancer import nginx, round_robin

ROOMS = ("room:a", "room:b")


class Node:
    """A hub on a port."""

    def __init__(self, backend: MemoryBackend) -> None:
        self.hub: Hub[None] = Hub(authenticate=anonymous, broker=MemoryBroker(backend))
        self.hub.rooms(
            "room:{r}", publishes=object, history=History(10_000, ttl=600), grant=Grant("publish", "history")
        )
        self.server = Server(self.hub)
        self.dead = False

    async def start(self) -> None:
        await self.hub.start()
        await self.server.start(port=0)

    async def crash(self) -> None:
        """As if the process were killed: no goodbye to clients, none to the broker, no lease given back."""
        self.dead = True
        engine = self.hub.engine
        self.hub._forget()
        engine.relay.close()
        engine.deliver = lambda *_: None  # type: ignore[method-assign]
        engine.deadlines.close()
        self.server.abort()
        await engine.tasks.aclose(timeout=0)
        await engine.broker.aclose()
        await self.server.aclose()

    async def aclose(self) -> None:
        if not self.dead:
            await self.hub.aclose()
            await self.server.aclose()


class Changed:
    """Wakes who waits for something to become true."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        self._event.set()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._event.clear()
            await self._event.wait()


class Listener:
    """A client that writes down what it gets, and sends on its own."""

    def __init__(self, name: str, client: Client, changed: Changed) -> None:
        self.name = name
        self.changed = changed
        self.client = client
        self.heard: dict[str, list[Any]] = {room: [] for room in ROOMS}
        self.gaps: list[Any] = []

    async def listen(self, room: RoomClient[Any]) -> None:
        async for message in room:
            if isinstance(message, Message):
                self.heard[room.name].append(message.data)
            else:
                self.gaps.append(message)
            self.changed.tell()


@asynccontextmanager
async def cluster(count: int = 3) -> AsyncGenerator[list[Node]]:
    backend = MemoryBackend()
    nodes = [Node(backend) for _ in range(count)]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            await node.aclose()


async def talk(port: int, nodes: list[Node], *, seed: int, each: int = 2, messages: int = 40) -> None:
    """Clients over both transports talk through the balancer; in the middle the busiest hub dies."""
    choice = random.Random(seed)
    kinds: tuple[TransportName, ...] = ("sse", "poll")
    changed = Changed()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        listeners: list[Listener] = []
        joined: list[dict[str, RoomClient[Any]]] = []
        tasks: list[asyncio.Task[None]] = []
        for kind, n in itertools.product(kinds, range(each)):
            client = await stack.enter_async_context(
                connect(
                    f"http://127.0.0.1:{port}/rt", transports=(kind,), random=random.Random(choice.random())
                )
            )
            listener = Listener(f"{kind}{n}", client, changed)
            rooms = {room: await client.join(room) for room in ROOMS}
            tasks += [group.create_task(listener.listen(room)) for room in rooms.values()]
            listeners.append(listener)
            joined.append(rooms)
        said: list[tuple[str, str]] = []

        async def say(listener: Listener, rooms: dict[str, RoomClient[Any]]) -> None:
            for n in range(messages):
                room = choice.choice(ROOMS)
                text = f"{listener.name}-{n}"
                await rooms[room].send(text)
                said.append((room, text))
                changed.tell()
                await asyncio.sleep(choice.random() * 0.05)  # a person's pace; nothing depends on it

        saying = [group.create_task(say(*pair)) for pair in zip(listeners, joined, strict=True)]
        await changed.until(lambda: len(said) >= messages * len(listeners) // 3)
        victim = max(
            (node for node in nodes if not node.dead), key=lambda node: node.hub.statistics().sessions
        )
        assert victim.hub.statistics().sessions > 0
        began = time.monotonic()
        await victim.crash()
        await asyncio.wait(saying)
        await asyncio.gather(*saying)
        took = time.monotonic() - began
        everything = {room: sorted(text for where, text in said if where == room) for room in ROOMS}
        async with asyncio.timeout(20):
            await changed.until(
                lambda: all(sorted(li.heard[room]) == everything[room] for li in listeners for room in ROOMS)
            )
        for listener in listeners:
            assert listener.gaps == []
            for room in ROOMS:
                assert listener.heard[room] == listeners[0].heard[room], "the same order for all"
                assert len(set(listener.heard[room])) == len(listener.heard[room]), "nothing twice"
        print(  # noqa: T201 # what one wants to know
            f"seed {seed}: {len(said)} messages, {took:.1f} s from the crash to the last"
        )
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("balancer", [pytest.param("round robin", marks=pytest.mark.soak), "nginx"])
async def test_a_hub_dies_and_nothing_is_lost(balancer: str) -> None:
    """T2, C3, K2: clients go on elsewhere, in time, with everything once."""
    async with cluster() as nodes:
        ports = [node.server.port for node in nodes]
        async with (round_robin if balancer == "round robin" else nginx)(ports) as port:
            await talk(port, nodes, seed=1)


@pytest.mark.soak
async def test_a_hundred_times_in_a_row() -> None:
    """Issue 5: a hundred hubs die, four clusters at a time, behind both balancers in turn; one failure ends it."""
    rounds = iter(range(100))

    async def one_after_another() -> None:
        for seed in rounds:
            async with cluster() as nodes:
                ports = [node.server.port for node in nodes]
                async with (nginx if seed % 2 else round_robin)(ports) as port:
                    await talk(port, nodes, seed=seed)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one_after_another())
