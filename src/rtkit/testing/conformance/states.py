"""The promises of brokers that keep keyed state with leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ...position import Position
from .brokers import NAMES, BrokerSuite
from .outages import StateOutages
from .sinks import Delivery, Node

__all__ = ["StateBrokerSuite"]


class StateBrokerSuite(BrokerSuite, StateOutages):
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
        yield lambda: broker.revise(topic, {}, ttl=1.0, expected={}, topic=topic, payload=b"")
        yield lambda: broker.revision(topic)
        yield lambda: broker.positions([topic])

    def acts(self) -> list[list[Any]]:
        """What may happen in a story that is compared with the memory broker's."""
        from .stories import KEEPING

        return [*super().acts(), KEEPING]

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

    # -- revisions

    async def revise(
        self,
        node: Node,
        topic: str,
        changes: Mapping[str, bytes | None],
        *,
        expected: Mapping[str, bytes | None] | None = None,
        payload: bytes = b"",
        ttl: float | None = None,
    ) -> Any:
        """Revise a key of the topic's name, and publish there."""
        return await node.broker.revise(
            topic, changes, ttl=ttl or self.long, expected=expected or {}, topic=topic, payload=payload
        )

    async def test_a_revision_changes_counts_and_publishes(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        first = await self.revise(nodes[0], topic, {"a": b"1", "b": b"2"}, payload=b"both")
        second = await self.revise(nodes[1], topic, {"a": None, "c": b""}, payload=b"one less")
        assert first is not None and first.epoch and first.offset == 1
        assert second == Position(first.epoch, 2)
        for node in nodes:
            assert dict(await node.broker.entries(topic)) == {"b": b"2", "c": b""}
            found = await node.broker.revision(topic)
            assert (found.position, dict(found.entries)) == (second, {"b": b"2", "c": b""})
            assert await node.got(topic, 2) == [
                Delivery(topic, b"both", first),
                Delivery(topic, b"one less", second),
            ]

    async def test_a_revision_of_what_is_not_as_expected_does_nothing(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        stands = await self.revise(nodes[0], topic, {"a": b"1", "b": b""}, payload=b"first")
        for expected in ({"a": b"2"}, {"a": None}, {"b": None}, {"c": b""}, {"a": b"1", "b": b"1"}):
            changes = {"a": b"9", "d": b"9"}
            assert await self.revise(nodes[1], topic, changes, expected=expected, payload=b"no") is None
        found = await nodes[0].broker.revision(topic)
        assert (found.position, dict(found.entries)) == (stands, {"a": b"1", "b": b""})
        for node in nodes:
            assert await node.quiet(topic) == [Delivery(topic, b"first", stands)]

    async def test_a_revision_of_what_is_as_expected_is_done(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.revise(nodes[0], topic, {"a": b"1", "b": b""}, expected={"a": None, "b": None})
        expected = {"a": b"1", "b": b"", "c": None}
        position = await self.revise(nodes[1], topic, {"c": b"3", "b": None}, expected=expected)
        assert position is not None and position.offset == 2
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"1", "c": b"3"}

    async def test_what_was_never_revised_stands_nowhere(self, nodes: tuple[Node, Node], topic: str) -> None:
        found = await nodes[0].broker.revision(topic)
        assert (found.position, dict(found.entries)) == (Position("", 0), {})
        await nodes[0].broker.put(topic, "a", b"1", ttl=self.long)
        found = await nodes[1].broker.revision(topic)
        assert (found.position, dict(found.entries)) == (Position("", 0), {"a": b"1"})

    async def test_only_revisions_are_counted(self, nodes: tuple[Node, Node], topic: str) -> None:
        stands = await self.revise(nodes[0], topic, {"a": b"1"})
        await nodes[0].broker.put(topic, "b", b"2", ttl=self.long)
        await nodes[0].broker.renew(topic, ["a", "b"], ttl=self.long)
        await nodes[0].broker.remove(topic, "b")
        assert (await nodes[1].broker.revision(topic)).position == stands

    async def test_positions_of_many_keys(self, nodes: tuple[Node, Node], topic: str) -> None:
        other = topic + ":other"
        first = await self.revise(nodes[0], topic, {"a": b"1"})
        await self.revise(nodes[0], other, {"a": b"1"})
        second = await self.revise(nodes[1], other, {"a": b"2"})
        keys = [other, topic + ":never", topic, other]
        assert list(await nodes[1].broker.positions(keys)) == [second, Position("", 0), first, second]
        assert list(await nodes[1].broker.positions([])) == []

    async def test_who_was_forgotten_is_counted_in_a_new_epoch(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        # A broker may remember the count of a key without fields, or forget it; it never goes back.
        counted: dict[str, int] = {}
        ended = Position("", 0)
        for _ in range(3):
            begun = await self.revise(nodes[0], topic, {"a": b"1"})
            ended = await self.revise(nodes[1], topic, {"a": None})
            assert begun.offset == counted.get(begun.epoch, 0) + 1
            assert ended == Position(begun.epoch, begun.offset + 1)
            counted[begun.epoch] = ended.offset
        found = await nodes[0].broker.revision(topic)
        assert dict(found.entries) == {}
        assert found.position in (Position("", 0), ended)

    async def test_what_was_revised_has_a_lease(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.revise(nodes[0], topic, {"long": b"1"})
        await self.revise(nodes[0], topic, {"short": b"2"}, ttl=10 * self.tick)
        await self.advance(7 * self.tick)
        assert dict((await nodes[1].broker.revision(topic)).entries) == {"long": b"1", "short": b"2"}
        await self.advance(4 * self.tick)
        assert dict((await nodes[1].broker.revision(topic)).entries) == {"long": b"1"}
        assert await self.revise(nodes[1], topic, {"a": b""}, expected={"short": b"2"}) is None
        assert await self.revise(nodes[1], topic, {"a": b""}, expected={"short": None}) is not None

    async def test_of_concurrent_revisions_one_finds_what_it_expects(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        found = await asyncio.gather(
            *(
                self.revise(nodes[n % 2], topic, {"a": b"%d" % n, f"{n}": b""}, expected={"a": None})
                for n in range(10)
            )
        )
        (winner,) = [n for n, position in enumerate(found) if position is not None]
        assert dict(await nodes[0].broker.entries(topic)) == {"a": b"%d" % winner, f"{winner}": b""}

    async def test_concurrent_revisions_are_counted_and_published_alike(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        found = await asyncio.gather(
            *(self.revise(nodes[n % 2], topic, {f"{n}": b""}, payload=b"%d" % n) for n in range(20))
        )
        positions = {b"%d" % n: position for n, position in enumerate(found)}
        assert sorted(position.offset for position in found) == list(range(1, 21))
        for node in nodes:
            got = await node.got(topic, 20)
            assert [each.position.offset for each in got if each.position] == list(range(1, 21))
            assert {each.payload: each.position for each in got} == positions

    # -- names

    @pytest.mark.parametrize("names", NAMES)
    async def test_keys_whose_names_are_alike_are_apart(
        self, nodes: tuple[Node, Node], topic: str, names: list[str]
    ) -> None:
        names = [name.replace("*", topic.replace(":", "-")) for name in names]
        for name in names:
            await nodes[0].broker.put(name, "f", name.encode(), ttl=self.long)
        for name in names:
            assert dict(await nodes[1].broker.entries(name)) == {"f": name.encode()}

    @pytest.mark.parametrize(
        "key, about",
        [
            ("presence:*", "\0presence:*"),
            ("kind:*:more", "other:*:more"),
            ("*", "*"),
            ("kind-*:", "kind-*-too:"),
            (":*", "kind:*"),
        ],
    )
    async def test_what_belongs_together_is_revised_and_told_in_one_act(
        self, nodes: tuple[Node, Node], topic: str, key: str, about: str
    ) -> None:
        key, about = (name.replace("*", topic.replace(":", "-")) for name in (key, about))
        await self.subscribe(nodes, about)
        position = await nodes[0].broker.revise(
            key, {"f": b"1"}, ttl=self.long, expected={}, topic=about, payload=b"told"
        )
        for node in nodes:
            assert await node.quiet(about) == [Delivery(about, b"told", position)]
            assert list(await node.broker.positions([key, about])) == [
                position,
                position if key == about else Position("", 0),
            ]
