"""The promises of every broker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from ...brokers import MAX_PAYLOAD, Broker, StateBroker, StreamBroker
from ...errors import InvalidMessage, NotRunning, UsageError, WrongLoop
from ...position import Position
from .likeness import Likeness
from .outages import BrokerOutages
from .sinks import Delivery, Node, RecordingSink
from .suite import HOOKS, provides

__all__ = ["BrokerSuite", "promises"]


#: Topics whose names a broker may confuse; ``*`` stands for something that no other test has. The first are a hub's.
NAMES = [
    ["room:*", "\0presence:*", "\0*", "*", "\0node:*", "ban:*"],
    ["*:", "*", "*::", ":*", "::*", ":*:"],
    ["*:a:b", "*:a", "a:*:b", "b:*:a", "*:b:a", "*a:b", "*:ab"],
    [
        "room:{*}",
        "room:*",
        "room:{*",
        "room:*}",
        "{room:*}",
        "room:%*",
        "room:%7B*%7D",
        "room:*\r\n",
        "room: *",
    ],
]


def promises(suite: type) -> Iterator[tuple[str, Any]]:
    """The tests that the suites of this package define for *suite*."""
    for base in suite.__mro__:
        if base.__module__.startswith(__name__.rpartition(".")[0] + "."):
            yield from ((name, test) for name, test in vars(base).items() if name.startswith("test_"))


class BrokerSuite(Likeness, BrokerOutages):
    """The promises of :class:`rtkit.brokers.Broker`."""

    # -- what it is

    def test_no_promise_was_taken_out(self) -> None:
        for name, test in promises(type(self)):
            mine = getattr(type(self), name, None)
            excused = any(mark.name == "xfail" for mark in getattr(mine, "pytestmark", ()))
            assert mine is test or excused, f"{name} is replaced; mark it xfail with a reason instead"

    async def test_is_held_to_all_it_implements(self, make: Callable[[], Any]) -> None:
        from . import StateBrokerSuite, StreamBrokerSuite  # they are made from this one

        broker = make()
        assert isinstance(broker, Broker)
        suites = {StreamBroker: StreamBrokerSuite, StateBroker: StateBrokerSuite}
        for protocol, suite in suites.items():
            assert isinstance(broker, cast(Any, protocol)) == isinstance(self, suite), (
                f"{type(broker).__name__} implements {protocol.__name__} if, and only if, it is tested by "
                f"{suite.__name__}"
            )

    def test_what_cannot_be_tried_is_said(self) -> None:
        for hook in HOOKS:
            assert provides(type(self), hook) != (hook in self.left_out), (
                f"{hook}() says how to do that to the backend; who cannot names it in left_out, with the reason"
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
        # Not compared in the assertion: to explain how large bytes differ takes pytest minutes.
        opaque = [found.payload for found in await nodes[1].got(topic, 5)] == payloads
        assert opaque, "a payload that is not text, or is large, comes as another one"

    async def test_the_largest_payload_is_taken(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        payload = secrets.token_bytes(MAX_PAYLOAD)
        await nodes[0].broker.publish(topic, payload)
        for node in nodes:
            assert [found.payload == payload for found in await node.quiet(topic)] == [True]

    @pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 4 * MAX_PAYLOAD])
    async def test_a_larger_payload_is_taken_or_refused_and_cuts_nobody_off(
        self, nodes: tuple[Node, Node], topic: str, size: int
    ) -> None:
        await self.subscribe(nodes, topic)
        payload = b"x" * size
        try:
            await nodes[0].broker.publish(topic, payload)
            taken = [True]
        except InvalidMessage:
            taken = []
        for node in nodes:
            assert [found.payload == payload for found in await node.quiet(topic)] == taken
            assert node.sink.interruptions == []

    @pytest.mark.parametrize("names", NAMES)
    async def test_what_a_name_has_before_its_colon_tells_it_from_others(
        self, nodes: tuple[Node, Node], topic: str, names: list[str]
    ) -> None:
        names = [name.replace("*", topic.replace(":", "-")) for name in names]
        await self.subscribe(nodes, *names)
        for name in names:
            await nodes[0].broker.publish(name, name.encode())
        for name in names:
            assert await nodes[1].quiet(name) == [Delivery(name, name.encode(), None)]

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
                await faulty.until(
                    lambda: topic in sink.interruptions, "a sink that raised may have missed something"
                )
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
