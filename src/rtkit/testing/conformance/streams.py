"""The promises of brokers that number and keep what is published."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from ...brokers import MAX_PAYLOAD, Appended, Conflict, NewEntry, Repeated
from ...errors import InvalidMessage
from ...messages import History
from ...position import Position
from ...streams import StreamPage
from .brokers import NAMES, BrokerSuite
from .outages import StreamOutages
from .sinks import Delivery, Node

__all__ = ["StreamBrokerSuite"]

#: Bounds that no test comes near unless it wants to.
PLENTY = History(10_000, ttl=86400.0)


class StreamBrokerSuite(BrokerSuite, StreamOutages):
    """The promises of :class:`rtkit.brokers.StreamBroker`."""

    def calls(self, broker: Any, topic: str) -> Iterator[Callable[[], Any]]:
        """Every call that needs an open broker."""
        yield from super().calls(broker, topic)
        yield lambda: broker.append(topic, b"", history=PLENTY)
        yield lambda: broker.extend(topic, [NewEntry(b"")], history=PLENTY)
        yield lambda: broker.read(topic)
        yield lambda: broker.clear(topic)

    def acts(self) -> list[list[Any]]:
        """What may happen in a story that is compared with the memory broker's."""
        from .stories import STREAMING

        return [*super().acts(), STREAMING]

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
        # Not compared in the assertion: to explain how large bytes differ takes pytest minutes.
        opaque = [entry.payload for entry in page.entries] == payloads
        assert opaque, "a payload that is not text, or is large, is stored as another one"

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
            try:
                position = (await nodes[1].got(topic, number))[-1].position
                assert position is not None
                page = await nodes[1].broker.read(topic, since=Position(position.epoch, number - 1))
                assert self.offsets(page) == [number]
            finally:
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
            pytest.xfail("the end of the dedupe window is not waited for: dedupe_window is not set")
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

    # -- several in one act

    async def extend(
        self, node: Node, topic: str, *payloads: bytes | tuple[bytes, str], **options: Any
    ) -> Any:
        """Extend by payloads, some of them with a key."""
        entries = [NewEntry(one) if isinstance(one, bytes) else NewEntry(*one) for one in payloads]
        return await node.broker.extend(topic, entries, **{"history": PLENTY, **options})

    async def test_several_are_appended_and_published_in_their_order(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        start = await self.fill(nodes[0], topic, 1)
        top = await self.extend(nodes[1], topic, b"2", (b"3", "k"), b"4")
        assert top == Position(start.epoch, 4)
        assert await self.extend(nodes[0], topic, b"5") == Position(start.epoch, 5)
        assert self.offsets(await nodes[0].broker.read(topic)) == [1, 2, 3, 4, 5]
        for node in nodes:
            assert await node.quiet(topic) == [
                Delivery(topic, b"%d" % n, Position(start.epoch, n)) for n in (1, 2, 3, 4, 5)
            ]

    async def test_several_begin_a_stream(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.extend(nodes[0], topic, b"1", b"2")
        assert top.epoch and top.offset == 2
        assert (await nodes[1].broker.read(topic)).position == top

    async def test_of_several_all_or_none_are_appended(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        first = (await nodes[0].broker.append(topic, b"1", history=PLENTY, key="a")).position
        top = await self.fill(nodes[0], topic, 1)
        with pytest.raises(Repeated) as caught:
            await self.extend(nodes[1], topic, (b"x", "b"), b"y", (b"z", "a"))
        assert dict(caught.value.positions) == {"a": first}
        assert (await nodes[0].broker.read(topic)).position == top
        assert len(await nodes[0].quiet(topic)) == 2
        # Nothing was done, so that the other key is free.
        assert not (await nodes[0].broker.append(topic, b"3", history=PLENTY, key="b")).duplicate

    async def test_all_that_are_repeated_are_named(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.extend(nodes[0], topic, (b"1", "a"), b"2", (b"3", "c"))
        for _ in range(2):
            with pytest.raises(Repeated) as caught:
                await self.extend(nodes[1], topic, (b"x", "a"), b"x", (b"x", "c"), (b"x", ""))
            assert dict(caught.value.positions) == {"a": Position(top.epoch, 1), "c": top}

    async def test_keys_of_several_are_those_of_one(self, nodes: tuple[Node, Node], topic: str) -> None:
        top = await self.extend(nodes[0], topic, b"1", (b"2", "k"))
        again = await nodes[1].broker.append(topic, b"2", history=PLENTY, key="k")
        assert again == Appended(top, duplicate=True)

    async def test_several_repeats_are_ones_although_the_stream_was_cleared(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        top = await self.extend(nodes[0], topic, (b"1", "k"))
        await nodes[0].broker.clear(topic)
        with pytest.raises(Repeated) as caught:
            await self.extend(nodes[0], topic, (b"1", "k"))
        assert dict(caught.value.positions) == {"k": top}

    async def test_of_several_a_repeat_is_looked_at_before_what_is_expected(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        start = (await nodes[0].broker.read(topic, limit=0)).position
        top = await self.extend(nodes[0], topic, (b"1", "k"), b"2", expected=start)
        with pytest.raises(Repeated) as caught:
            await self.extend(nodes[1], topic, (b"1", "k"), b"2", expected=start)
        assert dict(caught.value.positions) == {"k": Position(top.epoch, 1)}

    async def test_several_that_are_not_expected_are_a_conflict(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        await self.subscribe(nodes, topic)
        top = await self.fill(nodes[0], topic, 2)
        for wrong in (Position(top.epoch, 1), Position(top.epoch, 3), Position("another", 2)):
            with pytest.raises(Conflict) as caught:
                await self.extend(nodes[1], topic, (b"3", "k"), b"4", expected=wrong)
            assert caught.value.top == top
        assert (await nodes[0].broker.read(topic)).position == top
        assert len(await nodes[1].quiet(topic)) == 2
        assert (await self.extend(nodes[1], topic, (b"3", "k"), b"4", expected=top)).offset == 4

    async def test_nothing_comes_between_several(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)

        def act(n: int) -> Any:
            if n % 3 == 0:
                return nodes[n % 2].broker.append(topic, b"alone", history=PLENTY)
            return self.extend(nodes[n % 2], topic, *(b"%d" % n for _ in range(4)))

        await asyncio.gather(*(act(n) for n in range(18)))
        page = await nodes[0].broker.read(topic)
        stored = [entry.payload for entry in page.entries]
        assert len(stored) == page.top == 6 + 12 * 4
        blocks = [payload for payload in stored if payload != b"alone"]
        for n in range(0, len(blocks), 4):
            assert len(set(blocks[n : n + 4])) == 1
            begin = stored.index(blocks[n])
            assert stored[begin : begin + 4] == blocks[n : n + 4]
        for node in nodes:
            told = await node.got(topic, len(stored))
            assert [found.payload for found in told] == stored
            assert [found.position.offset for found in told if found.position] == list(range(1, page.top + 1))

    async def test_several_are_bounded_like_others(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        history = History(3, ttl=86400.0)
        await self.extend(nodes[0], topic, *(b"%d" % n for n in range(1, 6)), history=history)
        page = await nodes[1].broker.read(topic)
        assert (self.offsets(page), page.top, page.floor) == ([3, 4, 5], 5, 2)
        assert len(await nodes[1].quiet(topic)) == 5  # all are published, whatever is kept

    # -- what may be large, and what names are like

    async def test_the_largest_payload_is_stored(self, nodes: tuple[Node, Node], topic: str) -> None:
        await self.subscribe(nodes, topic)
        payload = secrets.token_bytes(MAX_PAYLOAD)
        position = (await nodes[0].broker.append(topic, payload, history=PLENTY)).position
        for node in nodes:
            (found,) = await node.quiet(topic)
            assert found.payload == payload and found.position == position
        (entry,) = (await nodes[1].broker.read(topic)).entries
        assert entry.payload == payload and entry.offset == 1

    @pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 4 * MAX_PAYLOAD])
    async def test_a_larger_payload_is_stored_or_refused_and_cuts_nobody_off(
        self, nodes: tuple[Node, Node], topic: str, size: int
    ) -> None:
        await self.subscribe(nodes, topic)
        payload, taken = b"x" * size, 1
        try:
            await nodes[0].broker.append(topic, payload, history=PLENTY, key="k")
        except InvalidMessage:
            taken = 0
        small = await nodes[0].broker.append(topic, b"small", history=PLENTY)
        assert small.position.offset == taken + 1
        for node in nodes:
            assert [len(found.payload) for found in await node.quiet(topic)] == [size] * taken + [5]
            assert node.sink.interruptions == []
        page = await nodes[1].broker.read(topic)
        assert page.entries[-1].payload == b"small"
        # What was refused has not used up its key.
        again = await nodes[0].broker.append(topic, b"in small", history=PLENTY, key="k")
        assert again.duplicate == bool(taken)

    @pytest.mark.parametrize("names", NAMES)
    async def test_streams_whose_names_are_alike_are_apart(
        self, nodes: tuple[Node, Node], topic: str, names: list[str]
    ) -> None:
        names = [name.replace("*", topic.replace(":", "-")) for name in names]
        for name in names:
            await nodes[0].broker.append(name, name.encode(), history=PLENTY, key="k")
        for name in names:
            page = await nodes[1].broker.read(name)
            assert [(entry.offset, entry.payload) for entry in page.entries] == [(1, name.encode())]

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
        assert self.offsets(await nodes[0].broker.read(topic, since=top, history=history)) == [4]

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
        since = Position(top.epoch, 0)
        pages: list[list[int]] = []
        while since != top and len(pages) < 5:
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
