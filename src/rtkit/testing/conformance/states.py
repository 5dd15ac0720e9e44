"""The promises of brokers that keep keyed state with leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from .brokers import BrokerSuite
from .sinks import Node

__all__ = ["StateBrokerSuite"]


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
