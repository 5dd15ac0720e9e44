"""Publishing without a hub (B8, H7, T8)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rtkit import (
    Grant,
    History,
    Hub,
    InvalidMessage,
    NotSupported,
    Publisher,
    PublishUnknown,
    Router,
    UnknownRoom,
    UsageError,
    WrongLoop,
    anonymous,
)
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.errors import BrokerUnavailable
from rtkit.publisher import MAX_PUBLICATION, topic_of
from rtkit.testing.clock import ManualClock
from tests.support.linebroker import PATIENCE, LineServer, install_line_broker
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker, PlainBroker

ROOT = Path(__file__).parents[2]


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


def test_many_at_once_in_each_of_several_loops() -> None:
    """Each of which the first publication opens it in."""
    broker = MemoryBroker()
    publisher = Publisher(broker, declare())

    async def job() -> None:
        await asyncio.gather(*(publisher.publish("live", n) for n in range(3)))
        await publisher.aclose()

    for _ in range(3):
        asyncio.run(job())


@pytest.mark.parametrize("by_url", [True, False])
def test_a_loop_that_has_ended_without_closing_it(by_url: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was open there cannot be closed any more; it is opened anew."""
    opened: list[MemoryBroker] = []

    def open_url(url: str, *, clock: object) -> MemoryBroker:
        assert url == "some://url"
        opened.append(MemoryBroker())
        return opened[-1]

    monkeypatch.setattr("rtkit.publisher.open_url", open_url)
    publisher = Publisher("some://url" if by_url else MemoryBroker(), declare())
    for _ in range(3):
        asyncio.run(_publish_one(publisher))
        assert repr(publisher).startswith("<Publisher open on ")
    assert len(opened) == (3 if by_url else 0)
    asyncio.run(publisher.aclose())
    assert repr(publisher).startswith("<Publisher closed on ")


async def _publish_one(publisher: Publisher) -> None:
    await publisher.publish("live", 1)


@pytest.mark.parametrize("opening", [False, True])
def test_two_loops_at_once(opening: bool, backend: MemoryBackend) -> None:
    """API 10: refused with the remedy, also while it is only being opened."""
    broker = FaultyBroker(backend)
    publisher = Publisher(broker, declare())
    gate = broker.hold("open")
    with asyncio.Runner() as first, asyncio.Runner() as second:

        async def start() -> asyncio.Task[Any]:
            task = asyncio.create_task(publisher.publish("live", 1))
            if not opening:
                gate.set()
                await task
            else:
                await asyncio.sleep(0)
            return task

        task = first.run(start())
        for use in (_publish_one, Publisher.aclose):
            with pytest.raises(WrongLoop, match="open in another event loop.*rtkit.sync.Publisher"):
                second.run(use(publisher))

        async def finish() -> None:
            gate.set()
            await task
            await publisher.publish("live", 2)
            await publisher.aclose()

        first.run(finish())
        second.run(_publish_one(publisher))
        second.run(publisher.aclose())
    assert broker.calls.count("open") == 2


async def until_called(broker: FaultyBroker, name: str) -> None:
    while name not in broker.calls:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)


async def test_the_time_limit(clock: ManualClock, backend: MemoryBackend) -> None:
    """Until it is open nothing was stored; after that, nobody knows."""
    broker = FaultyBroker(backend)
    publisher = Publisher(broker, declare(), timeout=3, clock=clock)
    gate = broker.hold("open")
    for using in (publisher.publish("live", 1), publisher.__aenter__()):
        broker.calls.clear()
        task = asyncio.ensure_future(using)
        await until_called(broker, "open")
        await clock.advance(2.9)
        assert not task.done()
        await clock.advance(0.1)
        with pytest.raises(BrokerUnavailable, match="could not be reached within 3 s"):
            await task
    gate.set()
    broker.hold("append")
    late = asyncio.create_task(publisher.publish("user:ann", Notice("x")))
    await until_called(broker, "append")
    await clock.advance(3)
    with pytest.raises(PublishUnknown, match="did not answer within 3 s"):
        await late
    broker.gates["append"].set()
    await publisher.publish("user:ann", Notice("x"))
    await publisher.aclose()


async def test_without_a_time_limit(clock: ManualClock, backend: MemoryBackend) -> None:
    broker = FaultyBroker(backend)
    publisher = Publisher(broker, declare(), timeout=None, clock=clock)
    gate = broker.hold("open")
    patient = asyncio.create_task(publisher.publish("live", 1))
    await until_called(broker, "open")
    await clock.advance(1_000_000)
    gate.set()
    await patient
    await publisher.aclose()
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(UsageError, match=r"timeout=…\) is a number of seconds above 0 or None, not "):
            Publisher(broker, declare(), timeout=wrong)


async def test_a_time_limit_of_the_callers_own_is_theirs(backend: MemoryBackend) -> None:
    broker = FaultyBroker(backend)
    broker.hold("open")
    publisher = Publisher(broker, declare())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await publisher.publish("live", 1)
    broker.gates["open"].set()
    broker.errors["publish"] = [TimeoutError("the broker's own")]
    with pytest.raises(TimeoutError, match="the broker's own"):
        await publisher.publish("live", 1)
    await publisher.aclose()


async def test_who_is_cancelled_while_opening_leaves_nothing_behind(backend: MemoryBackend) -> None:
    """Those who wait for the same open it themselves."""

    class HalfOpen(FaultyBroker):
        async def open(self, sink: Any) -> None:
            await super(FaultyBroker, self).open(sink)
            await self._call("open")

    broker = HalfOpen(backend)
    publisher = Publisher(broker, declare())
    gate = broker.hold("open")
    first, second = (asyncio.create_task(publisher.publish("live", n)) for n in range(2))
    await until_called(broker, "open")
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    gate.set()
    await second
    assert broker.calls.count("open") == 2
    await publisher.aclose()


async def test_a_broker_that_a_hub_uses_is_left_alone(clock: ManualClock, backend: MemoryBackend) -> None:
    """It belongs to one of them; the other is told, and does not close it."""
    broker = MemoryBroker(backend)
    router = declare()
    hub: Hub[Any] = Hub(authenticate=anonymous, broker=broker, clock=clock)
    hub.include(router)
    async with hub:
        publisher = Publisher(broker, router, clock=clock)
        with pytest.raises(UsageError, match="is open already"):
            await publisher.publish("live", 1)
        await publisher.aclose()
        await hub.publish("live", 1)


FORKED = """
import asyncio, gc, os, sys, warnings
from rtkit import Grant, Publisher, Router
from rtkit.errors import WrongProcess
from tests.support.linebroker import LineBroker

router = Router()
router.rooms("live", publishes=object, grant=Grant())

async def child(publisher):
    await publisher.publish("live", "child")
    await publisher.aclose()

async def refused(publisher):
    for use in (publisher.publish("live", "child"), publisher.aclose()):
        try:
            await use
        except WrongProcess as error:
            assert "give it a URL" in str(error), error
        else:
            raise AssertionError

def fork(func, publisher):
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
    else:
        status = 1
        try:
            asyncio.run(func(publisher))
            gc.collect()
            status = 0
        finally:
            os._exit(status)

async def parent():
    async with Publisher(sys.argv[1], router) as publisher:
        await publisher.publish("live", "parent")
        for _ in range(2):
            fork(child, publisher)
        await publisher.publish("live", "parent")
    async with Publisher(LineBroker.from_url(sys.argv[1]), router) as publisher:
        await publisher.publish("live", "parent")
        fork(refused, publisher)
        await publisher.publish("live", "parent")
    fork(child, publisher)

asyncio.run(parent())
"""


def test_a_child_opens_a_connection_of_its_own(tmp_path: Path) -> None:
    """And does nothing to its parent's, which goes on."""
    install_line_broker(tmp_path)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    with LineServer() as server:
        done = subprocess.run(
            [sys.executable, "-W", "default", "-c", FORKED, server.url],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, "")
        server.wait_until_closed()
        said = ["parent", "child", "child", "parent", "parent", "parent", "child"]
        assert (server.said(), server.connections) == (said, 5)
        assert all(len(processes) == 1 for processes in server.users().values())
        assert sorted(server.byes) == [1, 2, 3, 4, 5]


def test_topics() -> None:
    """W4: no room can name an internal topic."""
    assert topic_of("a") == "room:a"
    assert topic_of("room:a") == "room:room:a"
