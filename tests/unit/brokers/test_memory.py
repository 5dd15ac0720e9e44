"""What the memory broker does beyond the contract: it forgets what has expired, and stays within its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from rtkit.brokers import MemoryBackend, MemoryBroker, MemoryStatistics
from rtkit.brokers.memory import META_TTL
from rtkit.errors import NotRunning, UsageError, WrongLoop
from rtkit.messages import History
from rtkit.position import Position
from rtkit.primitives.clocks import LoopClock
from rtkit.testing import ManualClock

LONG = History(1000, ttl=3600.0)


@dataclass
class Sink:
    got: list[bytes] = field(default_factory=list)
    doubted: list[str] = field(default_factory=list)

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        self.got.append(payload)

    def interrupted(self, topics: Iterable[str]) -> None:
        self.doubted.extend(topics)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> MemoryBackend:
    names = iter(range(1_000_000))
    return MemoryBackend(clock=clock, new_epoch=lambda: f"e{next(names)}")


@pytest.fixture
async def broker(backend: MemoryBackend) -> MemoryBroker:
    broker = MemoryBroker(backend)
    await broker.open(Sink())
    return broker


async def append(broker: MemoryBroker, topic: str = "t", history: History = LONG, **options: str) -> Position:
    return (await broker.append(topic, b"12345", history=history, **options)).position  # type: ignore[arg-type]


class TestForgetting:
    async def test_an_idle_stream_gives_its_messages_back(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        for number in range(8):
            await append(broker, f"t{number}", History(10, ttl=60.0), key="k")
        assert broker.statistics() == MemoryStatistics(8, 8, 40, 8, 0, 0)
        await clock.advance(400)
        # Whatever is done next tidies a few places, however many there are.
        await broker.read("another")
        assert broker.statistics().entries == 4
        await broker.read("another")
        assert broker.statistics() == MemoryStatistics(9, 0, 0, 0, 0, 0)

    async def test_what_expires_one_by_one_goes_one_by_one(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        for _ in range(3):
            await append(broker, history=History(10, ttl=60.0))
            await clock.advance(10)
        left = []
        await clock.advance(25)
        for _ in range(4):
            await clock.advance(10)
            await broker.read("another")
            left.append(broker.statistics().entries)
        assert left == [2, 1, 0, 0]

    async def test_what_waits_to_be_tidied_is_not_shown(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        for number in range(20):
            await append(broker, f"t{number}", History(10, ttl=60.0), key="k")
        await clock.advance(301)
        again = await broker.append("t19", b"", history=History(10, ttl=60.0), key="k")
        assert (again.duplicate, again.position.offset) == (False, 2)
        page = await broker.read("t19")
        assert [entry.offset for entry in page.entries] == [2]

    async def test_what_was_cleared_gives_its_keys_back(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        await append(broker, key="k")
        await broker.clear("t")
        assert broker.statistics() == MemoryStatistics(1, 0, 0, 1, 0, 0)
        await clock.advance(301)
        await broker.read("another")
        assert broker.statistics().keys == 0

    async def test_a_payload_that_is_gone_is_not_held(self, broker: MemoryBroker) -> None:
        for _ in range(50):
            await append(broker, history=History(10, ttl=60.0))
        stream = broker.backend._streams["t"]
        assert sum(len(entry.payload) for entry in stream._kept) == stream.size == 50

    async def test_in_the_last_moment_it_is_there_and_then_it_is_not(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        history = History(10, ttl=300.0)
        await append(broker, history=history, key="k")
        await broker.put("s", "f", b"", ttl=300.0)
        await clock.advance(299.5)
        assert len((await broker.read("t")).entries) == 1
        assert (await broker.append("t", b"", history=history, key="k")).duplicate
        assert await broker.entries("s")
        await clock.advance(0.5)
        assert (await broker.read("t")).entries == ()
        assert not (await broker.append("t", b"", history=history, key="k")).duplicate
        assert not await broker.entries("s")

    async def test_an_idle_hash_gives_its_fields_back(self, broker: MemoryBroker, clock: ManualClock) -> None:
        for number in range(3):
            await broker.put("a", f"f{number}", b"", ttl=10.0 + number)
        await broker.put("b", "f", b"", ttl=100.0)
        await clock.advance(11.5)
        await broker.entries("c")
        assert broker.statistics().fields == 2
        await clock.advance(1.0)
        await broker.renew("b", ["f"], ttl=100.0)
        assert broker.statistics().fields == 1
        assert "a" not in broker.backend._state

    async def test_what_is_used_all_the_time_is_tidied_once_a_second(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        tidied = 0
        original = broker.backend._tidy_stream

        def counting(topic: str, when: float, now: float) -> None:
            nonlocal tidied
            tidied += 1
            original(topic, when, now)

        broker.backend._tidy_stream = counting  # type: ignore[method-assign]
        for _ in range(1000):
            await append(broker, history=History(1000, ttl=0.5))
            clock.advance_nowait(0.01)
        assert tidied <= 11
        assert broker.statistics().entries <= 51

    async def test_plans_of_streams_that_are_no_more_do_not_pile_up(self, clock: ManualClock) -> None:
        broker = MemoryBroker(MemoryBackend(clock=clock, max_streams=10))
        await broker.open(Sink())
        await broker.put("kept", "f", b"", ttl=100.0)
        for number in range(2000):
            await append(broker, f"t{number}", key="k")
            await broker.put(f"s{number}", "f", b"", ttl=1000.0)
            await broker.remove(f"s{number}", "f")
            await broker.clear("t")
        assert len(broker.backend._due) < 200
        assert broker.statistics().streams == 10
        await clock.advance(100)
        await broker.read("t")
        assert broker.statistics().fields == 0

    async def test_a_long_history_gives_its_places_back(self, broker: MemoryBroker) -> None:
        for _ in range(5000):
            await append(broker, history=History(100, ttl=60.0))
        stream = broker.backend._streams["t"]
        assert len(stream) == 100
        assert len(stream._kept) == len(stream._stamps) < 400
        page = await broker.read("t", since=Position(stream.epoch, 4950), limit=2)
        assert [entry.offset for entry in page.entries] == [4951, 4952]

    async def test_the_bounds_in_force_are_those_of_the_last_append(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        # A deployment that shortens a room's history means what is stored already, too.
        for _ in range(5):
            await append(broker)
        await clock.advance(20)
        await append(broker, history=History(1000, ttl=10.0))
        assert [entry.offset for entry in (await broker.read("t")).entries] == [6]


class TestMeta:
    async def test_it_is_gone_after_30_idle_days(self, broker: MemoryBroker, clock: ManualClock) -> None:
        top = await append(broker)
        await clock.advance(META_TTL - 1)
        assert (await broker.read("t", since=top)).lost is None
        await clock.advance(META_TTL - 1)  # reading was a use
        assert (await broker.read("t", since=top)).lost is None
        await clock.advance(META_TTL)
        assert (await broker.read("t", since=top)).lost == "epoch"

    async def test_it_lives_twice_as_long_as_the_messages(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        top = await append(broker, history=History(10, ttl=META_TTL))
        await clock.advance(2 * META_TTL - 1)
        assert (await broker.read("t", since=top)).lost is None

    async def test_it_lives_while_somebody_is_subscribed(
        self, broker: MemoryBroker, clock: ManualClock
    ) -> None:
        await broker.subscribe(["t"])
        top = await append(broker)
        await clock.advance(2 * META_TTL)
        await broker.read("another")
        assert (await broker.read("t", since=top)).lost is None

    async def test_idle_streams_are_swept(self, broker: MemoryBroker, clock: ManualClock) -> None:
        await append(broker, "written")
        await broker.read("read")
        await clock.advance(META_TTL)
        await broker.read("another")
        assert list(broker.backend._streams) == ["another"]


class TestEviction:
    async def test_the_longest_idle_goes(self, clock: ManualClock) -> None:
        broker = MemoryBroker(MemoryBackend(clock=clock, max_streams=3))
        await broker.open(Sink())
        for topic in ("a", "b", "c"):
            await append(broker, topic)
        await broker.read("a")
        await append(broker, "d")
        assert list(broker.backend._streams) == ["c", "a", "d"]

    async def test_an_evicted_stream_begins_a_new_epoch(self, clock: ManualClock) -> None:
        broker = MemoryBroker(MemoryBackend(clock=clock, max_streams=1))
        await broker.open(Sink())
        top = await append(broker, "a")
        await append(broker, "b")
        page = await broker.read("a", since=top)
        assert (page.lost, page.top) == ("epoch", 0)

    async def test_one_that_a_hub_is_subscribed_to_stays(self, clock: ManualClock) -> None:
        backend = MemoryBackend(clock=clock, max_streams=2)
        broker, other = MemoryBroker(backend), MemoryBroker(backend)
        await broker.open(Sink())
        await other.open(Sink())
        await other.subscribe(["a"])
        for topic in ("a", "b", "c"):
            await append(broker, topic)
        assert set(backend._streams) == {"a", "c"}
        await broker.subscribe(["c"])
        await append(broker, "d")
        assert set(backend._streams) == {"a", "c", "d"}  # more than asked for, rather than a loss
        await append(broker, "e")
        assert set(backend._streams) == {"a", "c", "e"}
        await other.aclose()
        await append(broker, "f")
        assert len(backend._streams) == 2


class TestHubs:
    async def test_they_share_a_loop(self, backend: MemoryBackend, broker: MemoryBroker) -> None:
        async def elsewhere() -> None:
            with pytest.raises(WrongLoop, match="in use in another event loop"):
                await MemoryBroker(backend).open(Sink())

        await asyncio.to_thread(asyncio.run, elsewhere())

    async def test_a_loop_that_ended_leaves_nothing_in_the_way(self, backend: MemoryBackend) -> None:
        lost = MemoryBroker(backend)

        async def elsewhere() -> Position:
            await lost.open(Sink())
            await lost.subscribe(["t"])
            return await append(lost)

        top = await asyncio.to_thread(asyncio.run, elsewhere())
        assert repr(lost).startswith("<MemoryBroker open")
        broker = MemoryBroker(backend)
        await broker.open(Sink())
        assert (await broker.read("t", limit=0)).position == top
        assert broker.statistics().topics == 0
        with pytest.raises(NotRunning):
            await lost.publish("t", b"")
        await lost.open(Sink())

    async def test_one_broker_is_for_one_hub(self, broker: MemoryBroker) -> None:
        with pytest.raises(UsageError, match="a MemoryBroker of its own"):
            await broker.open(Sink())

    async def test_a_sink_that_raises_twice_harms_nobody(
        self, backend: MemoryBackend, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Faulty(Sink):
            def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
                raise ValueError("deliver")

            def interrupted(self, topics: Iterable[str]) -> None:
                raise ValueError("interrupted")

        faulty = MemoryBroker(backend)
        await faulty.open(Faulty())
        await faulty.subscribe(["t"])
        sink = Sink()
        other = MemoryBroker(backend)
        await other.open(sink)
        await other.subscribe(["t"])
        await append(broker)
        assert sink.got == [b"12345"]
        assert [record.message for record in caplog.records] == [
            "a hub failed on a payload of topic 't'; it is told to read again",
            "a hub failed to note that it may have missed something on topic 't'",
        ]

    async def test_a_sink_may_close_its_broker_from_within(self, backend: MemoryBackend) -> None:
        first, second = MemoryBroker(backend), MemoryBroker(backend)

        class Closing(Sink):
            def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
                super().deliver(topic, payload, position)
                second.abandon()

        closing, sink = Closing(), Sink()
        await first.open(closing)
        await second.open(sink)
        await first.subscribe(["t"])
        await second.subscribe(["t"])
        await first.publish("t", b"x")
        assert (closing.got, sink.got) == ([b"x"], [])

    async def test_they_leave_nothing_behind(self, backend: MemoryBackend, broker: MemoryBroker) -> None:
        await broker.subscribe(f"t{n}" for n in range(100))
        await broker.unsubscribe(f"t{n}" for n in range(50))
        assert len(broker._topics) == backend.statistics().topics == 50
        assert repr(broker) == "<MemoryBroker open on <MemoryBackend 0 streams, 1 hubs>>"
        await broker.aclose()
        assert backend.statistics() == MemoryStatistics(0, 0, 0, 0, 0, 0)
        assert repr(broker) == "<MemoryBroker closed on <MemoryBackend 0 streams, 0 hubs>>"


class TestMaking:
    @pytest.mark.parametrize(
        "options", [{"max_streams": 0}, {"dedupe_window": 0.0}, {"dedupe_window": float("nan")}]
    )
    def test_bounds_are_positive(self, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"not (0|0\.0|nan)$"):
            MemoryBackend(**options)  # type: ignore[arg-type]

    async def test_epochs_are_random(self) -> None:
        broker = MemoryBroker()
        await broker.open(Sink())
        names = {(await broker.read(f"t{n}", limit=0)).epoch for n in range(50)}
        assert len(names) == 50
        assert all(len(name) == 12 for name in names)

    def test_without_a_clock_it_takes_the_loops(self) -> None:
        assert isinstance(MemoryBroker().backend.clock, LoopClock)

    async def test_a_negative_limit_is_none(self, broker: MemoryBroker) -> None:
        await append(broker)
        assert (await broker.read("t", limit=-1)).entries == ()
        assert (await broker.read("t", limit=-1, reverse=True)).entries == ()
