"""The Redis broker on a real Cluster: slots move, primaries die, and streams go on (B3, B4, B6, H4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import pytest

from rtkit import Position
from rtkit.brokers.redis import RedisBroker
from rtkit.errors import Unavailable
from rtkit.messages import History
from tests.support.redises import RedisCluster, RedisServer

HISTORY = History(1000, ttl=600)
off = asyncio.to_thread


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(replicas=1) as running:
        yield running


class Sink:
    """Writes down what a broker hands over."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes, Position | None]] = []
        self.told: list[str] = []
        self._changed = asyncio.Event()

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        self.heard.append((topic, payload, position))
        self._changed.set()

    def interrupted(self, topics: Iterable[str]) -> None:
        self.told += topics
        self._changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def hears(self, payload: bytes) -> None:
        await self.until(lambda: any(heard == payload for _, heard, _ in self.heard))


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[tuple[RedisBroker, Sink]]:
    broker, sink = RedisBroker(url), Sink()
    await broker.open(sink)
    try:
        yield broker, sink
    finally:
        await broker.aclose()


async def append(broker: RedisBroker, topic: str, payload: bytes) -> Position:
    """Until it is stored; what is away for a moment is asked again."""
    async with asyncio.timeout(30):
        while True:
            try:
                found = await broker.append(topic, payload, history=HISTORY, key=payload.decode())
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return found.position


def place_of(cluster: RedisCluster, room: str) -> tuple[int, RedisServer, RedisServer]:
    """The slot of a room, its owner, and another primary."""
    slot = cluster.slot_of(room)
    owner = cluster.owner_of(slot)
    other = next(each for each in cluster.servers if each is not owner and each.role == "master")
    return slot, owner, other


async def payloads(broker: RedisBroker, topic: str, since: Position | None) -> list[bytes]:
    async with asyncio.timeout(30):
        while True:
            try:
                page = await broker.read(topic, since=since, limit=1000)
            except Unavailable:  # it has just found out that a server is gone
                await asyncio.sleep(0.05)
            else:
                assert page.lost is None
                return [entry.payload for entry in page.entries]


async def test_rooms_lie_on_all_primaries_and_each_is_heard(cluster: RedisCluster) -> None:
    topics = [f"room:{n}" for n in range(30)]
    owners = {cluster.owner_of(cluster.slot_of(topic.partition(":")[2])).port for topic in topics}
    assert len(owners) == len(cluster.primaries)
    async with opened(cluster.url) as (broker, sink), opened(cluster.url) as (_other, _):
        await broker.subscribe(topics)
        for topic in topics:
            await broker.publish(topic, topic.encode())
        await sink.until(lambda: len(sink.heard) >= len(topics))
        assert sorted(sink.heard) == sorted((topic, topic.encode(), None) for topic in topics)


async def test_what_belongs_together_is_one_act(cluster: RedisCluster) -> None:
    """The colon rule: keys and topics that agree after their first colon are on one server."""
    async with opened(cluster.url) as (broker, sink):
        for n in range(10):
            topic = f"\0presence:x{n}"
            await broker.subscribe([topic])
            changes = {"ann": b"1"}
            assert await broker.revise(
                f"presence:x{n}", changes, ttl=10, expected={"ann": None}, topic=topic, payload=b"joined"
            )
        await sink.until(lambda: len(sink.heard) >= 10)


async def test_positions_of_many_keys_come_from_many_servers(cluster: RedisCluster) -> None:
    async with opened(cluster.url) as (broker, _):
        keys = [f"presence:y{n}" for n in range(20)]
        expected = []
        for key in keys:
            revised = await broker.revise(key, {"f": b""}, ttl=10, expected={}, topic=f"\0{key}", payload=b"")
            expected.append(revised)
        assert list(await broker.positions(keys)) == expected


async def test_a_slot_moves_and_who_listens_moves_along(cluster: RedisCluster) -> None:
    """The server only says ``sunsubscribe``; nothing is lost, and the position goes on without a gap."""
    topic = "room:moving"
    slot, _, target = place_of(cluster, "moving")
    async with opened(cluster.url) as (broker, sink), opened(cluster.url) as (other, _):
        await broker.subscribe([topic])
        first = await append(other, topic, b"before")
        await sink.hears(b"before")
        await off(cluster.migrate, slot, target)
        await sink.until(lambda: topic in sink.told)
        last = await append(other, topic, b"after")
        assert last.offset == first.offset + 1
        # Heard, or announced as missed and there to be read.
        assert await payloads(broker, topic, first) == [b"after"]
        await append(other, topic, b"later")
        await sink.hears(b"later")


@pytest.mark.soak  # it waits for a minute where the machine is busy; tests/chaos moves slots under load, too
async def test_what_is_appended_while_a_slot_is_on_its_way_is_stored_once(cluster: RedisCluster) -> None:
    """ASK, TRYAGAIN and MOVED are nobody's business but the broker's."""
    topic = "room:slowly"
    slot, _, target = place_of(cluster, "slowly")
    async with opened(cluster.url) as (broker, sink), opened(cluster.url) as (other, _):
        await broker.subscribe([topic])
        start = await append(other, topic, b"start")
        moving = asyncio.create_task(
            off(lambda: cluster.migrate(slot, target, between=lambda: time.sleep(0.3)))
        )
        sent = [b"start"]
        while not moving.done() or len(sent) < 20:
            sent.append(b"%d" % len(sent))
            await append(other, topic, sent[-1])
        await moving
        assert await payloads(broker, topic, Position(start.epoch, 0)) == sent
        await append(other, topic, b"end")
        await sink.hears(b"end")


async def test_a_primary_dies_and_its_rooms_go_on_while_the_others_never_stopped(
    cluster: RedisCluster,
) -> None:
    topic = "room:mortal"
    slot, owner, _ = place_of(cluster, "mortal")
    elsewhere = next(
        f"room:{n}" for n in range(100) if cluster.owner_of(cluster.slot_of(str(n))) is not owner
    )
    async with opened(cluster.url) as (broker, sink), opened(cluster.url) as (other, _):
        await broker.subscribe([topic, elsewhere])
        first = await append(other, topic, b"first")
        await off(owner.wait_replicated)
        await off(owner.kill)
        try:
            # What lies elsewhere is as it was; nothing of it is refused.
            await other.append(elsewhere, b"elsewhere", history=HISTORY)
            await sink.hears(b"elsewhere")
            last = await append(other, topic, b"second")
            assert (last.offset, last.epoch != first.epoch) == (first.offset + 1, True)
            assert await payloads(broker, topic, first) == [b"second"]
            await sink.until(lambda: topic in sink.told)
            await append(other, topic, b"third")
            await sink.hears(b"third")
            assert cluster.owner_of(slot) is not owner
        finally:
            await off(owner.start)
            await off(cluster.wait_settled)


async def test_one_living_node_of_those_named_is_enough(cluster: RedisCluster) -> None:
    living = cluster.servers[1]
    url = f"redis+cluster://127.0.0.1:1,{living.host}:{living.port}"
    async with opened(url) as (broker, _):
        assert (await append(broker, "room:named", b"x")).offset == 1
