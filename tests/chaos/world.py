"""Hubs, clients and publishers, while something breaks: what all chaos tests have in common.

Everybody writes into one :class:`~tests.support.checker.Record`. A run ends in :meth:`World.settle`: what is broken is
healed, a last message is published to each room, and once all members stand at the top (polled, never slept for) the
record is checked. Who does not get there in time fails the check.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from rtkit import (
    BrokerUnavailable,
    Gap,
    Grant,
    History,
    Hub,
    Limits,
    NotRunning,
    Position,
    PublishUnknown,
    anonymous,
)
from rtkit.brokers import Broker
from rtkit.client import Client, Policy, RoomClient, connect
from rtkit.client.connecting import TransportName
from rtkit.errors import CallError, Unavailable
from rtkit.messages import Durability
from rtkit.primitives.ratelimit import Rate
from rtkit.server import Server
from tests.support.cable import Cable
from tests.support.checker import MemberLog, Record

from .raw import RawListener

__all__ = ["PATIENCE", "TRANSPORTS", "Node", "Plan", "World", "eventually", "make_hub"]

TRANSPORTS: Sequence[TransportName] = ("websocket", "sse", "poll")
#: Seconds that a healed system has to come to rest; a busy machine may need most of it.
PATIENCE = 40.0

#: Nobody waits long: faults come every half second.
LIMITS = Limits(
    position_check=0.5,
    commands=Rate(rate=10_000, burst=10_000),
    inbound=Rate(rate=2**30, burst=2**30),
    poll_wait=5.0,
)
POLICY = Policy(min_delay=0.05, max_delay=0.4, open_timeout=3.0)


async def eventually(
    true: Callable[[], bool | Awaitable[bool]], *, within: float = PATIENCE, every: float = 0.02
) -> bool:
    """Poll until it is true; False when it is not in time."""
    end = time.monotonic() + within
    while True:
        found = true()
        if found if isinstance(found, bool) else await found:
            return True
        if time.monotonic() > end:
            return False
        await asyncio.sleep(every)


@dataclass(frozen=True)
class Plan:
    """How large a world is.

    :ivar rooms: their names and durability.
    :ivar history: messages kept of each.
    :ivar members: of each room on each node; transports take turns.
    :ivar publishers: on each node; and as many clients that send.
    :ivar pace: a publisher waits up to so many seconds after each message.
    """

    rooms: tuple[tuple[str, Durability], ...] = (("a", "stored"), ("b", "stored"))
    nodes: int = 3
    history: int = 100_000
    members: int = 1
    publishers: int = 1
    pace: float = 0.02
    size: int = 0


def make_hub(broker: Broker, plan: Plan) -> Hub[None]:
    """A hub with the rooms of the plan; all hubs of a run are alike."""
    hub: Hub[None] = Hub(authenticate=anonymous, broker=broker, limits=LIMITS)
    for name, durability in plan.rooms:
        hub.rooms(
            name,
            publishes=object,
            history=History(plan.history, ttl=600, durability=durability),
            grant=Grant("publish", "history"),
        )
    return hub


class Node:
    """A hub on a port, and the cable that clients reach it by."""

    def __init__(self, broker: Broker, plan: Plan) -> None:
        self.broker = broker
        self.hub = make_hub(broker, plan)
        self.server = Server(self.hub)
        self.cable: Cable | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Node]:
        await self.hub.start()
        try:
            await self.server.start(port=0)
            try:
                async with Cable(self.server.port) as self.cable:
                    yield self
            finally:
                await self.server.aclose()
        finally:
            await self.hub.aclose()

    @property
    def url(self) -> str:
        assert self.cable is not None
        return f"http://127.0.0.1:{self.cable.port}/rt"


class Listener:
    """A client in one room, that writes down all it is told; it may leave and come back with its position."""

    def __init__(self, world: World, log: MemberLog, client: Client) -> None:
        self.world, self.log, self.client = world, log, client
        self.room: RoomClient[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        self.room = await self.client.join(self.log.room)
        assert self.room.position is not None
        self.log.joined(self.room.position)
        self._task = asyncio.create_task(self._listen(self.room))

    async def _listen(self, room: RoomClient[Any]) -> None:
        async for item in room:
            if isinstance(item, Gap):
                self.log.gap(item)
            else:
                assert item.position is not None, "a room with history"
                self.log.message(item.position, _id_of(item.data))

    async def come_back(self) -> None:
        """Leave, and join anew from the position, as a page that is loaded again."""
        await self.stop()
        assert self.room is not None
        since = self.room.position
        await self.room.leave()
        self.room = self.client.join(self.log.room, since=since)
        self._task = asyncio.create_task(self._listen(self.room))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()  # if it has failed, so does the test
            self._task = None

    @property
    def position(self) -> Position | None:
        if self._task is not None and self._task.done():
            self._task.result()
        return self.room.position if self.room is not None else None


def _id_of(data: Any) -> str:
    """Messages are an id, or an id and ballast."""
    return str(data).partition(" ")[0]


@dataclass
class World:
    """What is there while things break."""

    plan: Plan
    record: Record
    random: random.Random
    nodes: list[Node] = field(default_factory=list)
    listeners: list[Listener | RawListener] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _publishing: list[asyncio.Task[None]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _enough: asyncio.Event = field(default_factory=asyncio.Event)
    ballast: str = ""

    @classmethod
    @asynccontextmanager
    async def of(
        cls, brokers: Callable[[], Broker], *, plan: Plan | None = None, seed: int = 0, context: str = ""
    ) -> AsyncGenerator[World]:
        """A world that runs: hubs with a broker each, members on all transports in each room, and publishers.

        :param brokers: makes the next hub's broker.
        """
        plan = plan or Plan()
        world = cls(plan, Record(f"{context} seed {seed}"), random.Random(seed))
        async with AsyncExitStack() as stack:
            world._stack = stack
            stack.push_async_callback(world._stop)
            for _ in range(plan.nodes):
                node = Node(brokers(), plan)
                world.nodes.append(await stack.enter_async_context(node.running()))
            transports = itertools.cycle(TRANSPORTS)
            for name, _ in plan.rooms:
                for n in range(plan.nodes):
                    for _ in range(plan.members):
                        await world.enter(name, n, next(transports))
                await world.enter_raw(name, world.random.randrange(plan.nodes))
                next(transports)  # so that another room meets other pairs of node and transport
            yield world

    async def _stop(self) -> None:
        self._enough.set()
        for task in self._publishing:
            task.cancel()
        for listener in self.listeners:
            await listener.stop()
        await asyncio.gather(*self._publishing, return_exceptions=True)

    # -- members -----------------------------------------------------------------------------------

    async def enter(
        self, room: str, node: int, transport: TransportName, *, url: str | None = None
    ) -> Listener:
        """A new client comes in: at this node, or wherever *url* is."""
        client = await self._stack.enter_async_context(
            connect(
                url or self.nodes[node].url,
                transports=(transport,),
                policy=POLICY,
                random=random.Random(self.random.random()),
            )
        )
        log = self.record.member(
            room, f"{transport}{len(self.listeners)}@{node if url is None else 'elsewhere'}"
        )
        listener = Listener(self, log, client)
        self.listeners.append(listener)
        await listener.join()
        return listener

    async def enter_raw(self, room: str, node: int, *, url: str | None = None) -> RawListener:
        """A client comes in that is none of ours, and believes what it is told."""
        log = self.record.member(room, f"raw{len(self.listeners)}@{node if url is None else 'elsewhere'}")
        listener = RawListener(url or self.nodes[node].url, log)
        self.listeners.append(listener)
        await listener.join()
        return listener

    # -- publishers --------------------------------------------------------------------------------

    def talk(self) -> None:
        """Begin to publish: by hubs, and by the clients that listen."""
        for n in range(self.plan.nodes):
            for _ in range(self.plan.publishers):
                self._publishing.append(asyncio.create_task(self._publish(n, self._chance())))
        able = [each for each in self.listeners if isinstance(each, Listener)]
        for listener in able[:: max(1, len(able) // (self.plan.publishers * 3))]:
            self._publishing.append(asyncio.create_task(self._send(listener, self._chance())))

    def _chance(self) -> random.Random:
        return random.Random(self.random.random())

    async def _publish(self, node: int, chance: random.Random) -> None:
        """A server's own publisher: tries again with the same key, mostly, and mostly at the same node."""
        while not self._enough.is_set():
            room, _ = chance.choice(self.plan.rooms)
            id = f"h{node}-{next(self._numbers)}"
            at = node
            while not await self._publish_once(room, id, at) and not self._enough.is_set():
                if chance.random() < 0.2:
                    break  # gives it up
                if chance.random() < 0.3:
                    at = chance.randrange(self.plan.nodes)
                await asyncio.sleep(chance.random() * 0.1)
            await asyncio.sleep(chance.random() * self.plan.pace)

    async def _publish_once(self, room: str, id: str, node: int) -> bool:
        durability = dict(self.plan.rooms)[room]
        attempt = self.record.publishing(room, id, publisher=f"hub{node}", durability=durability)
        try:
            published = await self.nodes[node].hub.publish(room, id + self.ballast, key=id)
        except BrokerUnavailable as error:
            attempt.failed(error)
            return False
        except PublishUnknown as error:
            attempt.unknown(error)
            return False
        assert published.position is not None
        attempt.acknowledged(published.position)
        return True

    async def _send(self, listener: Listener, chance: random.Random) -> None:
        """A client that sends, with a key of its own, until it is acknowledged."""
        room, name = listener.log.room, listener.log.name
        durability = dict(self.plan.rooms)[room]
        while not self._enough.is_set():
            id = f"{name}-{next(self._numbers)}"
            while not self._enough.is_set():
                attempt = self.record.publishing(room, id, publisher=name, durability=durability)
                assert listener.room is not None
                try:
                    position = await listener.room.send(id + self.ballast, returns=Position, key=id)
                except (
                    CallError,
                    PublishUnknown,
                    NotRunning,
                ) as error:  # the last: it has left, to come back
                    # The wire does not tell "nothing was stored" from "who knows".
                    assert not isinstance(error, CallError) or error.temporary, error
                    attempt.unknown(error)
                    await asyncio.sleep(chance.random() * 0.1)
                else:
                    attempt.acknowledged(position)
                    break
            await asyncio.sleep(chance.random() * self.plan.pace)

    async def progress(self, count: int, *, within: float = PATIENCE) -> None:
        """Wait until so many more messages were acknowledged."""
        have = self._acknowledged()
        assert await eventually(lambda: self._acknowledged() >= have + count, within=within), (
            f"{count} more acknowledgements do not come\n" + "\n".join(self.record.context)
        )

    def _acknowledged(self) -> int:
        return sum(attempt.outcome == "acknowledged" for attempt in self.record.attempts)

    # -- the end -----------------------------------------------------------------------------------

    async def settle(
        self, heal: Callable[[], Awaitable[None]] | None = None, *, within: float = PATIENCE
    ) -> Record:
        """Heal, have everybody arrive, and check.

        :param within: seconds until who has not arrived counts as stuck.
        :return: the record, checked.
        """
        self._enough.set()
        if heal is not None:
            await heal()
        # Who is in the middle of a call is given the time it may take.
        if self._publishing:
            done, late = await asyncio.wait(self._publishing, timeout=PATIENCE)
            assert not late, f"{len(late)} publishers hang\n" + "\n".join(self.record.context)
            for task in done:
                task.result()
        for room, _ in self.plan.rooms:
            id = f"last-{next(self._numbers)}"

            async def last(room: str = room, id: str = id) -> bool:
                return await self._publish_once(room, id, 0)

            assert await eventually(last), "no last message:\n" + "\n".join(self.record.context)
        here = [each for each in self.listeners if not each.log.over]

        async def arrived() -> bool:
            tops = {room: await self._top(room) for room, _ in self.plan.rooms}
            return None not in tops.values() and all(each.position == tops[each.log.room] for each in here)

        began = time.monotonic()
        await eventually(arrived, within=within)  # if not, the check says who is where
        self.record.note(f"at rest after {time.monotonic() - began:.2f} s")
        for each in here:
            each.log.stands(each.position)
        for room, _ in self.plan.rooms:
            await self._read(room)
        self.record.check()
        return self.record

    async def _top(self, room: str) -> Position | None:
        try:
            return (await self.nodes[0].hub.room(room).history(limit=0)).top
        except Unavailable:
            return None

    async def _read(self, room: str) -> None:
        found: dict[int, str] = {}
        since: Position | None = None
        while True:
            page = await self.nodes[0].hub.room(room).history(limit=1000, since=since)
            for message in page.messages:
                assert message.position is not None
                found[message.position.offset] = _id_of(message.data)
                since = message.position
            if not page.messages:
                break
        floor = min(found) - 1 if found else page.top.offset
        self.record.stream(room, page.top, floor=floor, entries=found)
