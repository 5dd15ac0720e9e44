"""Publishing without a hub (B8, H7, T8)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Grant, History, Hub, InvalidMessage, NotSupported, Publisher, Router, UnknownRoom, anonymous
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.errors import BrokerUnavailable
from rtkit.publisher import MAX_PUBLICATION, topic_of
from rtkit.testing.clock import ManualClock
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker, PlainBroker


@dataclass
class Notice:
    text: str


def declare() -> Router[Any]:
    router: Router[Any] = Router()
    router.rooms("user:{user}", publishes=Notice, grant=Grant(), history=History(10, ttl=60))
    router.rooms("live", publishes=object, grant=Grant())
    return router


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> MemoryBackend:
    return MemoryBackend(clock=clock)


async def test_a_worker_reaches_the_members(clock: ManualClock, backend: MemoryBackend) -> None:
    """B8: it needs only the broker and the router."""
    router = declare()
    hub: Hub[Any] = Hub(authenticate=anonymous, broker=MemoryBroker(backend), clock=clock)
    hub.include(router)
    async with hub, Publisher(MemoryBroker(backend), router, clock=clock) as publisher:
        client = RawClient(hub, clock, rt=True)
        await client.connect()
        for room in ("user:ann", "live"):
            await client.call("subscribe", channel=room)
        first = await publisher.publish("user:ann", Notice("ready"))
        await publisher.publish("live", {"any": ["json"]})
        await client.settle()
        assert client.data_of("live") == [{"any": ["json"]}]
        [pub] = client.pushes_of("user:ann")
        assert pub == {
            "data": {"event": "Notice", "data": {"text": "ready"}},
            "offset": 1,
            "time": clock.time(),
        }
        assert first.position is not None
        assert (first.position.offset, first.duplicate) == (1, False)
        page = await hub.room("user:ann").history()
        assert [(m.data, m.sender, m.client) for m in page.messages] == [(Notice("ready"), None, None)]


async def test_a_room_without_history_has_no_position(backend: MemoryBackend) -> None:
    async with Publisher(MemoryBroker(backend), declare()) as publisher:
        published = await publisher.publish("live", 1, key="k")
        assert (published.position, published.duplicate) == (None, False)


async def test_a_key_makes_it_safe_to_repeat(clock: ManualClock, backend: MemoryBackend) -> None:
    """H7: within the broker's window, in one room, and apart from the keys of users."""
    router = declare()
    async with Publisher(MemoryBroker(backend), router, clock=clock) as publisher:
        first = await publisher.publish("user:ann", Notice("a"), key="k")
        again = await publisher.publish("user:ann", Notice("a"), key="k")
        other = await publisher.publish("user:bob", Notice("a"), key="k")
        assert (again.position, again.duplicate) == (first.position, True)
        assert not other.duplicate
        await clock.advance(301)
        assert not (await publisher.publish("user:ann", Notice("a"), key="k")).duplicate


async def test_misuse(backend: MemoryBackend) -> None:
    """API 1, 4: before anything is sent."""
    async with Publisher(MemoryBroker(backend), declare()) as publisher:
        with pytest.raises(UnknownRoom, match=r"matches 'chat:a'; declared: user:\{user\}, live"):
            await publisher.publish("chat:a", Notice("x"))
        with pytest.raises(InvalidMessage, match="publishes Notice, not str; declare it in publishes="):
            await publisher.publish("user:ann", "x")
        with pytest.raises(InvalidMessage, match="cannot be encoded as JSON"):
            await publisher.publish("live", {"x": "\ud800"})
        with pytest.raises(
            InvalidMessage, match="a message of 1,048,577 bytes; at most 1,048,576 are allowed"
        ):
            await publisher.publish("live", "x" * 1_048_575)
    assert backend.statistics().entries == 0


async def test_history_needs_a_broker_with_streams() -> None:
    publisher = Publisher(PlainBroker(), declare())
    with pytest.raises(
        NotSupported, match="PlainBroker keeps no history; room 'user:ann' needs a broker with streams"
    ):
        await publisher.publish("user:ann", Notice("x"))
    await publisher.publish("live", 1)
    await publisher.aclose()


async def test_what_it_may_send_the_hubs_can_deliver(clock: ManualClock, backend: MemoryBackend) -> None:
    """T8, D1: the largest message of a worker fits the outbox of every member, whatever the policy."""
    router = declare()
    router.rooms("strict", publishes=object, grant=Grant(), overflow="close")
    hub: Hub[Any] = Hub(authenticate=anonymous, broker=MemoryBroker(backend), clock=clock)
    hub.include(router)
    async with hub, Publisher(MemoryBroker(backend), router, clock=clock) as publisher:
        for room in ("live", "strict"):
            client = RawClient(hub, clock)
            await client.connect()
            await client.call("subscribe", channel=room)
            await publisher.publish(room, "x" * (MAX_PUBLICATION - 2))
            await client.settle()
            assert client.closed is None
            assert len(client.data_of(room)) == 1


async def test_it_opens_on_first_use_once(backend: MemoryBackend) -> None:
    broker = FaultyBroker(backend)
    publisher = Publisher(broker, declare())
    assert repr(publisher).startswith("<Publisher closed on ")
    gate = broker.hold("open")
    sending = [asyncio.create_task(publisher.publish("live", n)) for n in range(5)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*sending)
    assert broker.calls.count("open") == 1
    assert repr(publisher).startswith("<Publisher open on ")
    await publisher.aclose()
    await publisher.aclose()
    assert "0 hubs" in repr(backend)
    await publisher.publish("live", 1)
    await publisher.aclose()


async def test_a_broker_that_is_away(backend: MemoryBackend) -> None:
    """B4: said so, and the next attempt opens it."""
    broker = FaultyBroker(backend)
    broker.down = True
    publisher = Publisher(broker, declare())
    with pytest.raises(BrokerUnavailable):
        await publisher.publish("live", 1)
    broker.down = False
    await publisher.publish("live", 1)
    broker.failing.add("append")
    with pytest.raises(BrokerUnavailable):
        await publisher.publish("user:ann", Notice("x"))
    await publisher.aclose()


async def test_by_url() -> None:
    """B1."""
    async with Publisher("memory://", declare()) as publisher:
        assert (await publisher.publish("user:ann", Notice("x"))).position is not None


def test_one_publisher_in_several_loops_one_after_another() -> None:
    """API 10: a worker that calls asyncio.run() for each of its jobs."""
    broker = MemoryBroker()
    publisher = Publisher(broker, declare())

    async def job() -> None:
        async with publisher:
            await asyncio.gather(*(publisher.publish("live", n) for n in range(3)))

    for _ in range(3):
        asyncio.run(job())


def test_topics() -> None:
    """W4: no room can name an internal topic."""
    assert topic_of("a") == "room:a"
    assert topic_of("room:a") == "room:room:a"
