"""Does a broker keep its promises? One short test for each promise of :mod:`rtkit.brokers.base`.

A plug-in subclasses the suites of the protocols it implements, and says how to make it::

    # conftest.py
    pytest.register_assert_rewrite("rtkit.testing.conformance")


    # test_mine.py
    class TestMine(StreamBrokerSuite, StateBrokerSuite):
        @asynccontextmanager
        async def cluster(self):
            async with my_server() as url:
                yield lambda: MyBroker(url)

That is all for a broker that has a clock of its own. One whose time can be moved overrides :meth:`BrokerSuite.advance`
and waits for nothing. The tests run under anyio's pytest plugin, on asyncio.

A broker is held to exactly what it implements: a suite too many fails, and so does one that is missing, and a test
that was taken out. Each test gets a cluster and topics of its own, so several may share one server.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pytest

from ..brokers import Appended, Broker, Conflict, StateBroker, StreamBroker
from ..errors import NotRunning, UsageError, WrongLoop
from ..messages import History
from ..position import Position
from ..streams import StreamPage

__all__ = ["BrokerSuite", "Delivery", "Node", "RecordingSink", "StateBrokerSuite", "StreamBrokerSuite"]

# A payload that ends a test's deliveries begins with this, and is none of them.
_END = b"the end " + secrets.token_bytes(8)

#: Bounds that no test comes near unless it wants to.
PLENTY = History(10_000, ttl=86400.0)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a sink was handed."""

    topic: str
    payload: bytes
    position: Position | None


class RecordingSink:
    """A hub's side of a broker that remembers what it is told.

    :ivar delivered: everything handed over, in order.
    :ivar interruptions: the topics of which something may have been missed.
    """

    def __init__(self) -> None:
        self.delivered: list[Delivery] = []
        self.interruptions: list[str] = []
        self._changed = asyncio.Event()

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """See :class:`rtkit.brokers.Sink`."""
        self.delivered.append(Delivery(topic, payload, position))
        self._changed.set()

    def interrupted(self, topics: Iterable[str]) -> None:
        """See :class:`rtkit.brokers.Sink`."""
        self.interruptions.extend(topics)
        self._changed.set()

    def of(self, topic: str) -> list[Delivery]:
        """What was delivered of one topic."""
        found = [delivery for delivery in self.delivered if delivery.topic == topic]
        return [delivery for delivery in found if not delivery.payload.startswith(_END)]

    async def until(self, ready: Callable[[], object]) -> None:
        """Wait until *ready* says so; the caller limits the time."""
        while not ready():
            self._changed.clear()
            await self._changed.wait()


@dataclass(frozen=True, slots=True)
class Node:
    """A broker that is open, and the sink it was opened with."""

    broker: Any
    sink: RecordingSink
    patience: float

    async def got(self, topic: str, count: int) -> list[Delivery]:
        """The first *count* deliveries of a topic; waits for them."""
        try:
            async with asyncio.timeout(self.patience):
                await self.sink.until(lambda: len(self.sink.of(topic)) >= count)
        except TimeoutError:
            pytest.fail(
                f"{count} payloads were published, {len(self.sink.of(topic))} came: {self.sink.of(topic)}"
            )
        return self.sink.of(topic)[:count]

    async def quiet(self, topic: str) -> list[Delivery]:
        """All deliveries of a topic so far: proven by one more that comes after them."""
        end = Delivery(topic, _END + secrets.token_bytes(8), None)
        await self.broker.publish(topic, end.payload)
        try:
            async with asyncio.timeout(self.patience):
                await self.sink.until(lambda: end in self.sink.delivered)
        except TimeoutError:
            pytest.fail(f"a payload on a subscribed topic did not come: {self.sink.delivered}")
        return self.sink.of(topic)


def _promises(suite: type) -> Iterator[tuple[str, Any]]:
    """The tests that the suites of this module define for *suite*."""
    for base in suite.__mro__:
        if base.__module__ == __name__:
            yield from ((name, test) for name, test in vars(base).items() if name.startswith("test_"))


class BrokerSuite:
    """The promises of :class:`rtkit.brokers.Broker`."""

    pytestmark: ClassVar[Any] = pytest.mark.anyio

    #: Seconds after which something that has to come is given up.
    patience: ClassVar[float] = 5.0
    #: The unit of time in these tests, in seconds; leases last 10 of them. Small where time has to be waited for.
    tick: ClassVar[float] = 0.1
    #: The dedupe window the cluster was made with, in seconds; None if it is too long to wait for its end.
    dedupe_window: ClassVar[float | None] = None

    def cluster(self) -> AbstractAsyncContextManager[Callable[[], Any]]:
        """Override this: yields a function that makes brokers on one backend, not open yet."""
        raise NotImplementedError("a conformance suite overrides cluster()")

    async def advance(self, seconds: float) -> None:
        """Override this where time can be moved: let *seconds* pass for the brokers of the cluster."""
        await asyncio.sleep(seconds)

    # -- fixtures

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Brokers are made for asyncio."""
        return "asyncio"

    @pytest.fixture
    def topic(self) -> str:
        """A topic of this test's own."""
        return f"conformance:{secrets.token_hex(8)}"

    @pytest.fixture
    async def make(self) -> AsyncIterator[Callable[[], Any]]:
        """Makes brokers on one backend."""
        async with self.cluster() as make:
            yield make

    @pytest.fixture
    async def nodes(self, make: Callable[[], Any]) -> AsyncIterator[tuple[Node, Node]]:
        """Two hubs of one cluster."""
        async with self.open(make) as first, self.open(make) as second:
            yield first, second

    @asynccontextmanager
    async def open(self, make: Callable[[], Any]) -> AsyncIterator[Node]:
        """A broker, open for the length of the block."""
        broker, sink = make(), RecordingSink()
        await broker.open(sink)
        try:
            yield Node(broker, sink, self.patience)
        finally:
            await broker.aclose()

    async def subscribe(self, nodes: Iterable[Node], *topics: str) -> None:
        """Subscribe all of them."""
        for node in nodes:
            await node.broker.subscribe(topics)

    # -- what it is

    def test_no_promise_was_taken_out(self) -> None:
        for name, test in _promises(type(self)):
            mine = getattr(type(self), name, None)
            excused = any(mark.name == "xfail" for mark in getattr(mine, "pytestmark", ()))
            assert mine is test or excused, f"{name} is replaced; mark it xfail with a reason instead"

    async def test_is_held_to_all_it_implements(self, make: Callable[[], Any]) -> None:
        broker = make()
        assert isinstance(broker, Broker)
        suites = {StreamBroker: StreamBrokerSuite, StateBroker: StateBrokerSuite}
        for protocol, suite in suites.items():
            assert isinstance(broker, cast(Any, protocol)) == isinstance(self, suite), (
                f"{type(broker).__name__} implements {protocol.__name__} if, and only if, it is tested by "
                f"{suite.__name__}"
            )

    # -- delivery

    async def test_every_subscriber_gets_it(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        await nodes[0].broker.publish(topic, b"hello")
        for node in nodes:
            assert await node.got(topic, 1) == [Delivery(topic, b"hello", None)]

    async def test_echo(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes[:1], topic)
        await nodes[0].broker.publish(topic, b"to myself")
        assert await nodes[0].got(topic, 1) == [Delivery(topic, b"to myself", None)]

    async def test_nobody_else_gets_it(self, nodes: tuple[Node, Node], topic: str) -> None:
        first, second = nodes
        await self.subscribe([first], topic)
        await self.subscribe([second], topic + "2")
        await first.broker.publish(topic, b"private")
        await first.got(topic, 1)
        assert await second.quiet(topic + "2") == []
        assert second.sink.of(topic) == []

    async def test_a_publication_is_delivered_once(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        await nodes[0].broker.publish(topic, b"once")
        for node in nodes:
            assert await node.quiet(topic) == [Delivery(topic, b"once", None)]

    async def test_subscribing_twice_is_once(self, nodes: tuple[Node, Node], topic: str) -> None:
        first, second = nodes
        await self.subscribe([first, first], topic, topic)
        await second.broker.publish(topic, b"once")
        assert await first.quiet(topic) == [Delivery(topic, b"once", None)]

    async def test_after_unsubscribing_nothing_comes(self, nodes: tuple[Node, Node], topic: str) -> None:
        first, second = nodes
        await self.subscribe(nodes, topic)
        await first.broker.unsubscribe([topic])
        await second.broker.publish(topic, b"missed")
        await second.got(topic, 1)
        await self.subscribe([first], topic)
        assert await first.quiet(topic) == []

    async def test_unsubscribing_ends_one_topic_on_one_node(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        first, second = nodes
        other = topic + ":other"
        await self.subscribe(nodes, topic, other)
        await first.broker.unsubscribe([topic])
        await second.broker.publish(topic, b"1")
        await second.broker.publish(other, b"2")
        assert await second.got(topic, 1) == [Delivery(topic, b"1", None)]
        assert await first.got(other, 1) == [Delivery(other, b"2", None)]

    async def test_not_subscribed_is_no_error(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.unsubscribe([topic])
        await nodes[0].broker.unsubscribe([])
        await nodes[0].broker.subscribe([])

    async def test_topics_may_come_from_an_iterator(self, nodes: tuple[Node, Node], topic: str) -> None:
        names = [f"{topic}:{number}" for number in range(300)]
        await nodes[0].broker.subscribe(iter(names))
        for name in (names[0], names[-1]):
            assert await nodes[0].quiet(name) == []
        await nodes[0].broker.unsubscribe(iter(names))

    async def test_a_topic_is_opaque(self, nodes: tuple[Node, Node], topic: str) -> None:
        awkward = [
            topic + rest for rest in ("*", "?", "[a-z]", "{x}", " x ", "\0\n", "é\U0001f600", ".>", "/..")
        ]
        await self.subscribe(nodes, *awkward)
        await nodes[1].broker.publish(topic + "a", b"for nobody")
        for name in awkward:
            await nodes[1].broker.publish(name, name.encode())
        for name in awkward:
            assert await nodes[0].quiet(name) == [Delivery(name, name.encode(), None)]

    async def test_a_payload_is_opaque(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        payloads = [b"", bytes(range(256)), b"\0" * 5, b"\r\n\r\n", secrets.token_bytes(200_000)]
        for payload in payloads:
            await nodes[0].broker.publish(topic, payload)
        assert [found.payload for found in await nodes[1].got(topic, 5)] == payloads

    async def test_order_of_one_publisher(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        payloads = [b"%d" % number for number in range(200)]
        for payload in payloads:
            await nodes[0].broker.publish(topic, payload)
        assert [found.payload for found in await nodes[1].got(topic, 200)] == payloads

    async def test_one_order_everywhere(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        await asyncio.gather(*(nodes[n % 2].broker.publish(topic, b"%d" % n) for n in range(100)))
        first, second = [await node.got(topic, 100) for node in nodes]
        assert sorted(int(found.payload) for found in first) == list(range(100))
        assert first == second

    async def test_a_sink_that_raises_harms_nobody(self, make: Callable[[], Any], topic: str) -> None:
        class Faulty(RecordingSink):
            def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
                super().deliver(topic, payload, position)
                if payload == b"bad":
                    raise ValueError("this hub has a bug")

        broker, sink = make(), Faulty()
        async with self.open(make) as other:
            await broker.open(sink)
            try:
                faulty = Node(broker, sink, self.patience)
                await self.subscribe([faulty, other], topic)
                await broker.publish(topic, b"bad")
                assert await other.quiet(topic) == [Delivery(topic, b"bad", None)]
                assert await faulty.quiet(topic) == [Delivery(topic, b"bad", None)]
                async with asyncio.timeout(self.patience):
                    await sink.until(lambda: topic in sink.interruptions)
            finally:
                await broker.aclose()

    async def test_a_cancelled_call_can_be_repeated(self, nodes: tuple[Node, Node], topic: str) -> None:
        first = nodes[0].broker
        for again in (first.subscribe, first.unsubscribe, first.subscribe):
            task = asyncio.ensure_future(again([topic]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await again([topic])
        await first.publish(topic, b"x")
        assert await nodes[0].quiet(topic) == [Delivery(topic, b"x", None)]

    # -- beginning and end

    async def test_not_running_before_open_and_after_close(self, make: Callable[[], Any], topic: str) -> None:
        broker = make()
        for _ in range(2):
            for call in self.calls(broker, topic):
                with pytest.raises(NotRunning):
                    await call()
            await broker.open(RecordingSink())
            await broker.aclose()

    async def test_wrong_loop(self, nodes: tuple[Node, Node], topic: str) -> None:
        async def elsewhere() -> None:
            for call in self.calls(nodes[0].broker, topic):
                with pytest.raises(WrongLoop):
                    await call()

        await asyncio.to_thread(asyncio.run, elsewhere())

    async def test_open_is_not_for_twice(self, nodes: tuple[Node, Node], topic: str) -> None:
        with pytest.raises(UsageError):
            await nodes[0].broker.open(RecordingSink())
        await self.subscribe(nodes[:1], topic)
        assert await nodes[0].quiet(topic) == []

    async def test_aclose_is_idempotent(self, make: Callable[[], Any]) -> None:
        broker = make()
        await broker.aclose()
        await broker.open(RecordingSink())
        await broker.aclose()
        await broker.aclose()

    async def test_after_close_the_sink_is_not_called(self, make: Callable[[], Any], topic: str) -> None:
        async with self.open(make) as stays:
            async with self.open(make) as goes:
                await self.subscribe([stays, goes], topic)
                await goes.quiet(topic)
                before = goes.sink.of(topic)
            await stays.broker.publish(topic, b"too late")
            await stays.quiet(topic)
            assert goes.sink.of(topic) == before

    async def test_reopened_it_works_and_is_subscribed_to_nothing(
        self, make: Callable[[], Any], topic: str
    ) -> None:
        broker = make()
        await broker.open(RecordingSink())
        await broker.subscribe([topic])
        await broker.aclose()
        sink = RecordingSink()
        await broker.open(sink)
        try:
            node = Node(broker, sink, self.patience)
            await broker.subscribe([topic + ":other"])
            await broker.publish(topic, b"for nobody")
            assert await node.quiet(topic + ":other") == []
            assert sink.of(topic) == []
            await broker.subscribe([topic])
            assert await node.quiet(topic) == []
        finally:
            await broker.aclose()

    async def test_reopened_it_works_in_another_loop(self, make: Callable[[], Any], topic: str) -> None:
        broker = make()
        await broker.open(RecordingSink())
        await broker.aclose()

        async def elsewhere() -> None:
            sink = RecordingSink()
            await broker.open(sink)
            try:
                await broker.subscribe([topic])
                assert await Node(broker, sink, self.patience).quiet(topic) == []
            finally:
                await broker.aclose()

        await asyncio.to_thread(asyncio.run, elsewhere())

    def calls(self, broker: Any, topic: str) -> Iterator[Callable[[], Any]]:
        """Every call that needs an open broker."""
        yield lambda: broker.publish(topic, b"")
        yield lambda: broker.subscribe([topic])
        yield lambda: broker.unsubscribe([topic])


class StreamBrokerSuite(BrokerSuite):
    """The promises of :class:`rtkit.brokers.StreamBroker`."""

    def calls(self, broker: Any, topic: str) -> Iterator[Callable[[], Any]]:
        """Every call that needs an open broker."""
        yield from super().calls(broker, topic)
        yield lambda: broker.append(topic, b"", history=PLENTY)
        yield lambda: broker.read(topic)
        yield lambda: broker.clear(topic)

    async def fill(self, node: Node, topic: str, count: int, history: History = PLENTY) -> Position:
        """Append b"1", b"2", …; returns the top."""
        top = (await node.broker.read(topic, limit=0)).position
        for _ in range(count):
            payload = b"%d" % (top.offset + 1)
            top = (await node.broker.append(topic, payload, history=history)).position
        return cast(Position, top)

    def offsets(self, page: StreamPage) -> list[int]:
        """The offsets of a page, of which the payloads have to tell the same."""
        found = [entry.offset for entry in page.entries]
        assert [int(entry.payload) for entry in page.entries] == found
        return found

    # -- appending

    async def test_offsets_are_1_2_3(self, nodes: tuple[Node, Node], topic: str) -> None:
        found = [await nodes[n % 2].broker.append(topic, b"x", history=PLENTY) for n in range(4)]
        assert [appended.position.offset for appended in found] == [1, 2, 3, 4]
        assert len({appended.position.epoch for appended in found}) == 1
        assert not any(appended.duplicate for appended in found)

    async def test_what_is_appended_is_published_with_its_position(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        epoch = (await self.fill(nodes[0], topic, 3)).epoch
        for node in nodes:
            assert await node.quiet(topic) == [
                Delivery(topic, b"%d" % n, Position(epoch, n)) for n in (1, 2, 3)
            ]

    async def test_streams_are_apart(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.fill(nodes[0], topic, 3)
        other = await nodes[0].broker.append(topic + ":other", b"1", history=PLENTY)
        assert other.position.offset == 1
        assert (await nodes[0].broker.read(topic)).top == 3

    async def test_what_is_only_published_is_not_stored(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        await self.fill(nodes[0], topic, 1)
        await nodes[0].broker.publish(topic, b"passing")
        await self.fill(nodes[0], topic, 1)
        assert [found.payload for found in await nodes[1].got(topic, 3)] == [b"1", b"passing", b"2"]
        assert self.offsets(await nodes[1].broker.read(topic)) == [1, 2]

    async def test_a_stored_payload_is_opaque(self, nodes: tuple[Node, Node], topic: str) -> None:
        payloads = [b"", bytes(range(256)), secrets.token_bytes(200_000)]
        for payload in payloads:
            await nodes[0].broker.append(topic, payload, history=PLENTY)
        page = await nodes[1].broker.read(topic)
        assert [entry.payload for entry in page.entries] == payloads

    async def test_concurrent_appends_are_numbered_stored_and_published_alike(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        found = await asyncio.gather(
            *(nodes[n % 2].broker.append(topic, b"%d" % n, history=PLENTY) for n in range(60))
        )
        numbered = {appended.position.offset: b"%d" % n for n, appended in enumerate(found)}
        assert sorted(numbered) == list(range(1, 61))
        expected = [numbered[offset] for offset in range(1, 61)]
        page = await nodes[0].broker.read(topic)
        assert [entry.payload for entry in page.entries] == expected
        for node in nodes:
            got = await node.quiet(topic)
            assert [delivery.payload for delivery in got] == expected
            assert [d.position for d in got] == [Position(page.epoch, n) for n in range(1, 61)]

    async def test_what_was_delivered_can_be_read(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        for number in range(1, 6):
            task = asyncio.ensure_future(nodes[0].broker.append(topic, b"%d" % number, history=PLENTY))
            position = (await nodes[1].got(topic, number))[-1].position
            assert position is not None
            page = await nodes[1].broker.read(topic, since=Position(position.epoch, number - 1))
            assert self.offsets(page) == [number]
            await task

    async def test_what_was_acknowledged_can_be_read(self, nodes: tuple[Node, Node], topic: str) -> None:
        for number in range(1, 6):
            top = await self.fill(nodes[0], topic, 1)
            assert (await nodes[1].broker.read(topic, limit=0)).position == top == Position(top.epoch, number)

    # -- idempotency

    async def test_a_repeat_is_answered_with_the_first_position(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        first = await nodes[0].broker.append(topic, b"1", history=PLENTY, key="k")
        await self.fill(nodes[0], topic, 1)
        again = await nodes[1].broker.append(topic, b"something else", history=PLENTY, key="k")
        assert (first.duplicate, again) == (False, Appended(first.position, duplicate=True))
        assert self.offsets(await nodes[0].broker.read(topic)) == [1, 2]
        assert [delivery.payload for delivery in await nodes[1].quiet(topic)] == [b"1", b"2"]

    async def test_other_keys_and_none_are_no_repeats(self, nodes: tuple[Node, Node], topic: str) -> None:
        found = [
            await nodes[0].broker.append(topic, b"x", history=PLENTY, key=key)
            for key in (None, "a", None, "b", "")
        ]
        assert [appended.position.offset for appended in found] == [1, 2, 3, 4, 5]

    async def test_a_key_is_of_one_stream(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k")
        other = await nodes[0].broker.append(topic + ":other", b"x", history=PLENTY, key="k")
        assert not other.duplicate

    async def test_of_concurrent_repeats_one_is_appended(self, nodes: tuple[Node, Node], topic: str) -> None:
        found = await asyncio.gather(
            *(nodes[n % 2].broker.append(topic, b"1", history=PLENTY, key="k") for n in range(20))
        )
        assert [appended.duplicate for appended in found].count(False) == 1
        assert {appended.position.offset for appended in found} == {1}
        assert (await nodes[0].broker.read(topic)).top == 1

    async def test_a_repeat_needs_no_expectation(self, nodes: tuple[Node, Node], topic: str) -> None:
        start = (await nodes[0].broker.read(topic, limit=0)).position
        first = await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k", expected=start)
        again = await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k", expected=start)
        assert again == Appended(first.position, duplicate=True)

    async def test_a_repeat_is_one_although_the_first_is_trimmed(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        history = History(1, ttl=86400.0)
        first = await nodes[0].broker.append(topic, b"1", history=history, key="k")
        await self.fill(nodes[0], topic, 2, history)
        again = await nodes[0].broker.append(topic, b"1", history=history, key="k")
        assert again == Appended(first.position, duplicate=True)

    async def test_a_repeat_is_one_although_the_stream_was_cleared(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        first = await nodes[0].broker.append(topic, b"1", history=PLENTY, key="k")
        await nodes[0].broker.clear(topic)
        again = await nodes[0].broker.append(topic, b"1", history=PLENTY, key="k")
        assert again == Appended(first.position, duplicate=True)
        assert (await nodes[0].broker.read(topic)).top == 0

    async def test_the_window_of_a_key_ends(self, nodes: tuple[Node, Node], topic: str) -> None:
        if self.dedupe_window is None:
            pytest.skip("the end of the dedupe window cannot be waited for: set dedupe_window")
        await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k")
        await self.advance(self.dedupe_window * 0.8)
        assert (await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k")).duplicate
        await self.advance(self.dedupe_window * 0.3)
        assert not (await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k")).duplicate

    # -- expectations

    async def test_what_is_expected_is_appended(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = (await nodes[0].broker.read(topic, limit=0)).position
        for _ in range(3):
            top = (await nodes[0].broker.append(topic, b"x", history=PLENTY, expected=top)).position
        assert top.offset == 3

    @pytest.mark.parametrize("epoch, offset", [(None, 1), (None, 3), (None, 0), ("another", 2)])
    async def test_what_is_not_expected_is_a_conflict(
        self, nodes: tuple[Node, Node], topic: str, epoch: str | None, offset: int
    ) -> None:
        await self.subscribe(nodes, topic)
        top = await self.fill(nodes[0], topic, 2)
        with pytest.raises(Conflict) as caught:
            await nodes[1].broker.append(
                topic, b"x", history=PLENTY, key="k", expected=Position(epoch or top.epoch, offset)
            )
        assert caught.value.top == top
        assert (await nodes[0].broker.read(topic)).top == 2
        assert len(await nodes[0].quiet(topic)) == 2
        # Nothing was done, so that the key is free.
        assert not (await nodes[0].broker.append(topic, b"x", history=PLENTY, key="k")).duplicate

    async def test_of_concurrent_expectations_one_is_met(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 1)
        found = await asyncio.gather(
            *(nodes[n % 2].broker.append(topic, b"2", history=PLENTY, expected=top) for n in range(10)),
            return_exceptions=True,
        )
        assert [type(one) for one in found].count(Appended) == 1
        assert [type(one) for one in found].count(Conflict) == 9
        assert self.offsets(await nodes[0].broker.read(topic)) == [1, 2]

    # -- bounds

    async def test_bounded_by_count(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.fill(nodes[0], topic, 7, History(3, ttl=86400.0))
        page = await nodes[1].broker.read(topic)
        assert (self.offsets(page), page.top, page.floor, page.start) == ([5, 6, 7], 7, 4, 4)

    async def test_bounded_by_bytes(self, nodes: tuple[Node, Node], topic: str) -> None:
        history = History(100, ttl=86400.0, size=250)
        for _ in range(5):
            await nodes[0].broker.append(topic, b"x" * 100, history=history)
        page = await nodes[0].broker.read(topic)
        assert ([entry.offset for entry in page.entries], page.top, page.floor) == ([4, 5], 5, 3)

    async def test_the_newest_is_kept_however_large(self, nodes: tuple[Node, Node], topic: str) -> None:
        history = History(100, ttl=86400.0, size=10)
        for _ in range(2):
            await nodes[0].broker.append(topic, b"x" * 100, history=history)
        page = await nodes[0].broker.read(topic)
        assert [entry.offset for entry in page.entries] == [2]

    async def test_bounded_by_age(self, nodes: tuple[Node, Node], topic: str) -> None:
        history = History(100, ttl=10 * self.tick)
        await self.fill(nodes[0], topic, 2, history)
        await self.advance(6 * self.tick)
        await self.fill(nodes[0], topic, 1, history)
        assert self.offsets(await nodes[0].broker.read(topic, history=history)) == [1, 2, 3]
        await self.advance(6 * self.tick)
        page = await nodes[0].broker.read(topic, history=history)
        assert (self.offsets(page), page.top, page.floor) == ([3], 3, 2)

    async def test_bounds_apply_to_what_is_read(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.fill(nodes[0], topic, 5)
        page = await nodes[0].broker.read(topic, history=History(2, ttl=86400.0))
        assert (self.offsets(page), page.top, page.floor, page.start) == ([4, 5], 5, 3, 3)
        await self.advance(5 * self.tick)
        aged = await nodes[0].broker.read(topic, history=History(100, ttl=2 * self.tick))
        assert (aged.entries, aged.top, aged.floor) == ((), 5, 5)

    async def test_epoch_and_top_outlive_the_messages(self, nodes: tuple[Node, Node], topic: str) -> None:
        history = History(100, ttl=5 * self.tick)
        top = await self.fill(nodes[0], topic, 3, history)
        await self.advance(9 * self.tick)
        page = await nodes[0].broker.read(topic, since=top, history=history)
        assert page == StreamPage(top.epoch, 3, 3, 3, (), None)
        behind = await nodes[0].broker.read(topic, since=Position(top.epoch, 2), history=history)
        assert behind == StreamPage(top.epoch, 3, 3, 3, (), "trimmed")
        assert (await self.fill(nodes[0], topic, 1, history)) == Position(top.epoch, 4)

    # -- reading

    async def test_a_stream_begins_when_it_is_read(self, nodes: tuple[Node, Node], topic: str) -> None:
        page = await nodes[0].broker.read(topic)
        assert page == StreamPage(page.epoch, 0, 0, 0, ())
        assert page.epoch
        assert (await nodes[1].broker.read(topic)).position == page.position
        await self.fill(nodes[1], topic, 1)
        later = await nodes[0].broker.read(topic, since=page.position)
        assert (self.offsets(later), later.lost, later.epoch) == ([1], None, page.epoch)

    async def test_read_all(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 4)
        page = await nodes[1].broker.read(topic)
        assert (self.offsets(page), page.position, page.floor, page.start) == ([1, 2, 3, 4], top, 0, 0)
        assert page.lost is None

    async def test_read_on_from_a_position(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 4)
        page = await nodes[1].broker.read(topic, since=Position(top.epoch, 2))
        assert (self.offsets(page), page.start, page.lost) == ([3, 4], 2, None)

    async def test_read_on_from_the_top(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 4)
        assert await nodes[1].broker.read(topic, since=top) == StreamPage(top.epoch, 4, 0, 4, ())

    async def test_read_page_by_page(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 7)
        since, pages = Position(top.epoch, 0), []
        while since != top:
            page = await nodes[0].broker.read(topic, since=since, limit=3)
            assert (page.top, page.lost, page.start) == (7, None, since.offset)
            pages.append(self.offsets(page))
            since = Position(page.epoch, page.end)
        assert pages == [[1, 2, 3], [4, 5, 6], [7]]

    async def test_read_the_top_alone(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 3)
        page = await nodes[0].broker.read(topic, limit=0)
        assert (page.entries, page.position, page.lost) == ((), top, None)
        asked = await nodes[0].broker.read(topic, since=Position(top.epoch, 1), limit=0)
        assert (asked.entries, asked.position, asked.start, asked.lost) == ((), top, 1, None)

    async def test_read_in_reverse(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 7)
        page = await nodes[0].broker.read(topic, reverse=True, limit=3)
        assert (self.offsets(page), page.start, page.position, page.lost) == ([7, 6, 5], 4, top, None)
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 5), reverse=True, limit=3)
        assert (self.offsets(page), page.start, page.lost) == ([4, 3, 2], 1, None)
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 2), reverse=True, limit=3)
        assert (self.offsets(page), page.start, page.lost) == ([1], 0, None)
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 1), reverse=True, limit=3)
        assert (page.entries, page.start, page.lost) == ((), 0, None)

    async def test_read_in_reverse_what_is_not_kept(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 7, History(3, ttl=86400.0))
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 6), reverse=True)
        assert (self.offsets(page), page.start, page.lost) == ([5], 4, None)
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 5), reverse=True)
        assert (page.entries, page.lost) == ((), "trimmed")
        page = await nodes[0].broker.read(topic, since=Position("another", 6), reverse=True, limit=2)
        assert (self.offsets(page), page.lost) == ([7, 6], "epoch")
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 8), reverse=True, limit=2)
        assert (self.offsets(page), page.lost) == ([7, 6], "rollback")

    # -- honesty

    async def test_a_trimmed_position_is_lost(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 7, History(3, ttl=86400.0))
        kept = await nodes[0].broker.read(topic, since=Position(top.epoch, 4))
        assert (self.offsets(kept), kept.start, kept.lost) == ([5, 6, 7], 4, None)
        gone = await nodes[0].broker.read(topic, since=Position(top.epoch, 3), limit=2)
        assert (self.offsets(gone), gone.start, gone.lost) == ([5, 6], 4, "trimmed")

    async def test_a_position_of_another_epoch_is_lost(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.fill(nodes[0], topic, 7, History(3, ttl=86400.0))
        for offset in (0, 5, 7, 99):
            page = await nodes[0].broker.read(topic, since=Position("another", offset), limit=2)
            assert (self.offsets(page), page.start, page.lost) == ([5, 6], 4, "epoch")

    async def test_a_position_beyond_the_top_is_lost(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.fill(nodes[0], topic, 3)
        page = await nodes[0].broker.read(topic, since=Position(top.epoch, 4))
        assert page == StreamPage(top.epoch, 3, 0, 3, (), "rollback")

    async def test_clear_begins_a_new_epoch(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        old = await self.fill(nodes[0], topic, 3)
        await nodes[0].quiet(topic)
        start = await nodes[1].broker.clear(topic)
        assert start.offset == 0
        assert start.epoch != old.epoch
        page = await nodes[0].broker.read(topic, since=old)
        assert page == StreamPage(start.epoch, 0, 0, 0, (), "epoch")
        assert await self.fill(nodes[0], topic, 1) == Position(start.epoch, 1)
        delivered = [delivery for delivery in await nodes[1].quiet(topic) if delivery.position is not None]
        assert [delivery.position for delivery in delivered[3:]] == [Position(start.epoch, 1)]

    async def test_the_name_of_an_epoch_never_returns(self, nodes: tuple[Node, Node], topic: str) -> None:
        names = [(await nodes[0].broker.clear(topic)).epoch for _ in range(20)]
        names += [(await nodes[0].broker.read(f"{topic}:{n}")).epoch for n in range(20)]
        assert len(set(names)) == 40

    async def test_what_is_stored_outlives_the_hub(self, make: Callable[[], Any], topic: str) -> None:
        async with self.open(make) as stays:
            async with self.open(make) as goes:
                top = await self.fill(goes, topic, 3)
            page = await stays.broker.read(topic, since=Position(top.epoch, 1))
            assert (self.offsets(page), page.lost) == ([2, 3], None)


class StateBrokerSuite(BrokerSuite):
    """The promises of :class:`rtkit.brokers.StateBroker`."""

    #: A lease that does not run out in a test.
    long = 86400.0

    def calls(self, broker: Any, topic: str) -> Iterator[Callable[[], Any]]:
        """Every call that needs an open broker."""
        yield from super().calls(broker, topic)
        yield lambda: broker.put(topic, "f", b"", ttl=1.0)
        yield lambda: broker.renew(topic, ["f"], ttl=1.0)
        yield lambda: broker.remove(topic, "f")
        yield lambda: broker.entries(topic)

    async def test_what_is_put_is_seen_everywhere(self, nodes: tuple[Node, Node], topic: str) -> None:
        assert await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        assert await nodes[1].broker.put(topic, "b", b"2", ttl=self.long)
        for node in nodes:
            assert dict(await node.broker.entries(topic)) == {"a": b"1", "b": b"2"}

    async def test_put_replaces(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        assert await nodes[1].broker.put(topic, "a", b"2", ttl=self.long)
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"2"}

    async def test_what_is_unknown_has_no_entries(self, nodes: tuple[Node, Node], topic: str) -> None:
        assert dict(await nodes[0].broker.entries(topic)) == {}

    async def test_keys_are_apart(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        await nodes[0].broker.put(topic + ":other", "a", b"2", ttl=self.long)
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1"}

    async def test_fields_and_values_are_opaque(self, nodes: tuple[Node, Node], topic: str) -> None:
        expected = {"": b"", "\0 é*": bytes(range(256)), "{x}:y": b"\r\n", "none": b"None"}
        for field, value in expected.items():
            assert await nodes[0].broker.put(topic, field, value, ttl=self.long)
        assert dict(await nodes[1].broker.entries(topic)) == expected

    # -- leases

    async def test_a_field_is_gone_when_its_lease_has_run_out_and_not_before(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await nodes[0].broker.put(topic, "short", b"1", ttl=10 * self.tick)
        await nodes[0].broker.put(topic, "long", b"2", ttl=self.long)
        await self.advance(7 * self.tick)
        assert dict(await nodes[1].broker.entries(topic)) == {"short": b"1", "long": b"2"}
        await self.advance(4 * self.tick)
        assert dict(await nodes[1].broker.entries(topic)) == {"long": b"2"}

    async def test_renewing_extends(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=10 * self.tick)
        await nodes[0].broker.put(topic, "b", b"2", ttl=10 * self.tick)
        await self.advance(7 * self.tick)
        assert list(await nodes[1].broker.renew(topic, ["a"], ttl=10 * self.tick)) == []
        await self.advance(5 * self.tick)
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1"}

    async def test_putting_again_extends(self, nodes: tuple[Node, Node], topic: str) -> None:
        for _ in range(2):
            await nodes[0].broker.put(topic, "a", b"1", ttl=10 * self.tick)
            await self.advance(7 * self.tick)
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1"}

    async def test_renewing_tells_what_was_gone(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        await nodes[0].broker.put(topic, "b", b"1", ttl=10 * self.tick)
        await self.advance(11 * self.tick)
        gone = await nodes[1].broker.renew(topic, ["a", "b", "never"], ttl=self.long)
        assert sorted(gone) == ["b", "never"]
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1"}
        assert list(await nodes[0].broker.renew(topic + ":other", iter(["a"]), ttl=self.long)) == ["a"]

    # -- compare and set

    async def test_put_only_if_there_is_none(self, nodes: tuple[Node, Node], topic: str) -> None:
        assert await nodes[0].broker.put(topic, "a", b"1", ttl=self.long, expected=None)
        assert not await nodes[1].broker.put(topic, "a", b"2", ttl=self.long, expected=None)
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1"}

    async def test_put_only_if_it_is_this(self, nodes: tuple[Node, Node], topic: str) -> None:
        assert not await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=b"1")
        assert dict(await nodes[0].broker.entries(topic)) == {}
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        assert not await nodes[1].broker.put(topic, "a", b"2", ttl=self.long, expected=b"")
        assert await nodes[1].broker.put(topic, "a", b"2", ttl=self.long, expected=b"1")
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"2"}

    async def test_an_empty_value_is_a_value(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"", ttl=self.long)
        assert not await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=None)
        assert await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=b"")

    async def test_what_has_run_out_is_not_there(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=10 * self.tick)
        await self.advance(11 * self.tick)
        assert not await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=b"1")
        assert not await nodes[0].broker.remove(topic, "a")
        assert await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=None)

    async def test_what_was_refused_extends_nothing(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=10 * self.tick)
        assert not await nodes[0].broker.put(topic, "a", b"2", ttl=self.long, expected=None)
        await self.advance(11 * self.tick)
        assert dict(await nodes[0].broker.entries(topic)) == {}

    async def test_of_concurrent_puts_one_wins(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"0", ttl=self.long)
        won = await asyncio.gather(
            *(
                nodes[n % 2].broker.put(topic, "a", b"%d" % (n + 1), ttl=self.long, expected=b"0")
                for n in range(10)
            )
        )
        assert won.count(True) == 1
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"%d" % (won.index(True) + 1)}

    # -- removing

    async def test_remove(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        await nodes[0].broker.put(topic, "b", b"2", ttl=self.long)
        assert await nodes[1].broker.remove(topic, "a")
        assert not await nodes[0].broker.remove(topic, "a")
        assert dict(await nodes[0].broker.entries(topic)) == {"b": b"2"}
        assert await nodes[0].broker.remove(topic, "b")
        assert not await nodes[0].broker.remove(topic, "b")

    async def test_remove_only_if_it_is_this(self, nodes: tuple[Node, Node], topic: str) -> None:
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        assert not await nodes[0].broker.remove(topic, "a", expected=b"2")
        assert dict(await nodes[1].broker.entries(topic)) == {"a": b"1"}
        assert await nodes[0].broker.remove(topic, "a", expected=b"1")
        assert dict(await nodes[1].broker.entries(topic)) == {}
