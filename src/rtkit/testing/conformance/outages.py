"""The promises that are put to the test when the backend goes away, and comes back: with its data, or without.

What is done meanwhile fails, soon, and says what is known of it. What was acknowledged is there, or its epoch is not
the present one. Nobody has to be helped to his feet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from ...brokers import Appended, Conflict, NewEntry
from ...errors import BrokerUnavailable, NotRunning, PublishUnknown
from ...messages import History
from ...position import Position
from ...streams import StreamPage
from .sinks import Node, RecordingSink
from .suite import Suite

__all__ = ["BrokerOutages", "StateOutages", "StreamOutages"]

_PLENTY = History(1_000_000, ttl=86400.0)
_LONG = 86400.0

# Seconds that somebody rests whose act was in vain. Others do not rest: many acts are under way when the end comes.
_IDLE = 0.02
# Acts that are known to have been done, before it does.
_ENOUGH = 12


@dataclass
class Work:
    """What became of things that were done one after another, until the backend was away."""

    done: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


class _Working(Suite):
    """A suite in which several are at work when the backend goes away."""

    @asynccontextmanager
    async def at_work(self, act: Callable[[str, int], Coroutine[Any, Any, Any]]) -> AsyncGenerator[Work]:
        """Before the block begins a lot was done; it goes on until it fails, or the block ends.

        :param act: does one thing of the given name, through the node of the given number.
        """
        work, enough, stop = Work(), asyncio.Event(), asyncio.Event()

        async def worker(number: int) -> None:
            serial = 0
            while not stop.is_set():
                name = f"{number}-{serial}"
                serial += 1
                found = await self.outcome(partial(act, name, number % 2))
                if isinstance(found, BrokerUnavailable):
                    work.refused.add(name)
                elif isinstance(found, PublishUnknown):
                    work.unknown.add(name)
                elif isinstance(found, BaseException):
                    raise found
                else:
                    work.done[name] = found
                    if len(work.done) >= _ENOUGH:
                        enough.set()
                await asyncio.sleep(_IDLE if isinstance(found, BaseException) else 0)

        workers = [asyncio.create_task(worker(number)) for number in range(6)]
        try:
            waiting = asyncio.ensure_future(enough.wait())
            try:
                await asyncio.wait(
                    [waiting, *workers], timeout=self.patience, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            for broken in (each for each in workers if each.done()):
                broken.result()  # raises
            assert len(work.done) >= _ENOUGH, f"before the outage came, too little could be done: {work}"
            yield work
        finally:
            stop.set()
            ended = await asyncio.gather(*workers, return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error


class BrokerOutages(_Working):
    """The promises of :class:`rtkit.brokers.Broker` when the backend is away."""

    async def test_without_the_backend_publishing_fails_and_nothing_hangs(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await self.subscribe(nodes, topic)
        async with self.outage():
            calls = [partial(nodes[n % 2].broker.publish, topic, b"%d" % n) for n in range(6)]
            raised = await self.failed(*calls)
        await self.heard_again(nodes, topic)
        # What is said not to have been done was not done, and is not done later.
        unknown = {b"%d" % n for n, error in enumerate(raised) if isinstance(error, PublishUnknown)}
        for node in nodes:
            late = [found.payload for found in node.sink.of(topic)]
            assert len(late) == len(set(late))
            assert set(late) <= unknown

    async def test_without_the_backend_subscribing_does_not_hang(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        other = topic + ":other"
        await self.subscribe(nodes, other)
        async with self.outage():
            calls = [
                call
                for node in nodes
                for call in (
                    partial(node.broker.subscribe, [topic]),
                    partial(node.broker.unsubscribe, [other]),
                )
            ]
            for found in await asyncio.gather(*(self.outcome(call) for call in calls)):
                assert found is None or isinstance(found, BrokerUnavailable)
        for node in nodes:
            await self.again(partial(node.broker.subscribe, [topic]))
            await self.again(partial(node.broker.unsubscribe, [other]))
        await self.again(lambda: nodes[0].broker.publish(topic, b"1"))
        await self.again(lambda: nodes[1].broker.publish(other, b"2"))
        await self.heard_again(nodes, topic)
        for node in nodes:
            heard = b"1" in [found.payload for found in node.sink.of(topic)]
            assert heard or topic in node.sink.interruptions
            assert node.sink.of(other) == []

    async def test_after_an_outage_subscriptions_are_there_without_help(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await self.subscribe(nodes, topic)
        for _ in range(2):
            async with self.outage():
                await self.failed(*(partial(node.broker.publish, topic, b"") for node in nodes))
            await self.heard_again(nodes, topic)

    async def test_after_an_outage_it_is_said_that_something_may_have_been_missed(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await self.subscribe(nodes, topic, topic + ":other")
        async with self.outage():
            await self.failed(*(partial(node.broker.publish, topic, b"") for node in nodes))
        await self.interrupted(nodes, topic)
        await self.interrupted(nodes, topic + ":other")

    async def test_who_is_told_that_something_was_missed_hears_what_comes(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        # In this order, or else what is read to repair it and what is delivered leave a hole between them.
        self.needs("outage")
        await self.subscribe(nodes, topic)
        async with self.outage():
            await self.failed(*(partial(node.broker.publish, topic, b"") for node in nodes))
        for n, node in enumerate(nodes):
            await self.interrupted([node], topic)
            sink, told, after = node.sink, len(node.sink.interruptions), b"after %d" % n

            def known(sink: RecordingSink = sink, told: int = told, after: bytes = after) -> bool:
                heard = any(found.payload == after for found in sink.of(topic))
                return heard or topic in sink.interruptions[told:]

            await self.again(partial(nodes[1 - n].broker.publish, topic, after))
            await node.until(
                known,
                "after it was said that something may have been missed, more was missed",
            )

    async def test_it_can_be_closed_and_opened_without_the_backend(
        self, make: Callable[[], Any], topic: str
    ) -> None:
        self.needs("outage")
        broker, sink = make(), RecordingSink()
        await broker.open(RecordingSink())
        await broker.subscribe([topic])
        async with self.outage():
            assert await self.outcome(broker.aclose) is None
            opened = await self.outcome(lambda: broker.open(sink))
            if opened is not None:
                assert isinstance(opened, BrokerUnavailable)
                with pytest.raises(NotRunning):
                    await broker.publish(topic, b"")
        try:
            if opened is not None:
                await self.again(lambda: broker.open(sink))
            await self.again(lambda: broker.subscribe([topic]))
            await self.heard_again([Node(broker, sink, self.patience)], topic)
        finally:
            await broker.aclose()

    async def test_after_a_restart_subscriptions_are_there_without_help(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("restart")
        await self.subscribe(nodes, topic)
        await self.restart()
        await self.interrupted(nodes, topic)
        await self.heard_again(nodes, topic)

    async def test_after_a_loss_subscriptions_are_there_without_help(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("lose")
        await self.subscribe(nodes, topic)
        await self.lose()
        await self.interrupted(nodes, topic)
        await self.heard_again(nodes, topic)


class StreamOutages(_Working):
    """The promises of :class:`rtkit.brokers.StreamBroker` when the backend is away."""

    def keep_appending(self, nodes: tuple[Node, Node], topic: str) -> Any:
        """Appending under keys, by several."""
        return self.at_work(
            lambda name, n: nodes[n].broker.append(topic, name.encode(), history=_PLENTY, key=name)
        )

    async def everything(self, node: Node, topic: str, **options: Any) -> StreamPage:
        """The whole stream, once it can be read again."""
        page: StreamPage = await self.again(partial(node.broker.read, topic, limit=10_000, **options))
        first, entries = page, list(page.entries)
        while page.entries and page.end < page.top:  # a page may hold less than was asked for
            page = await self.again(
                partial(node.broker.read, topic, since=Position(page.epoch, page.end), limit=10_000)
            )
            assert page.lost is None
            entries += page.entries
        return replace(page, start=first.start, lost=first.lost, entries=tuple(entries))

    async def test_without_the_backend_appending_and_reading_fail(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        top = (await nodes[0].broker.append(topic, b"kept", history=_PLENTY)).position
        broker = nodes[1].broker
        async with self.outage():
            await self.refused(lambda: broker.read(topic), lambda: broker.read(topic, since=top, limit=0))
            raised = await self.failed(
                lambda: broker.append(topic, b"a", history=_PLENTY),
                lambda: broker.append(topic, b"b", history=_PLENTY, key="k"),
                lambda: broker.append(topic, b"c", history=_PLENTY, expected=top),
                lambda: broker.extend(topic, [NewEntry(b"d"), NewEntry(b"e")], history=_PLENTY),
            )
        page = await self.everything(nodes[0], topic)
        later = b"".join(entry.payload for entry in page.entries).removeprefix(b"kept")
        for payload, error in zip([b"a", b"b", b"c", b"de"], raised, strict=True):
            if isinstance(error, BrokerUnavailable):
                assert payload not in later
        assert page.epoch == top.epoch

    async def test_without_the_backend_clearing_fails(self, nodes: tuple[Node, Node], topic: str) -> None:
        self.needs("outage")
        top = (await nodes[0].broker.append(topic, b"kept", history=_PLENTY)).position
        async with self.outage():
            (raised,) = await self.failed(lambda: nodes[1].broker.clear(topic))
        page = await self.everything(nodes[0], topic)
        assert page.position == top or isinstance(raised, PublishUnknown)

    async def test_what_was_being_appended_is_there_once_when_it_is_repeated(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await self.subscribe(nodes, topic)
        async with self.keep_appending(nodes, topic) as work, self.outage():
            await self.failed(lambda: nodes[0].broker.append(topic, b"last", history=_PLENTY, key="last"))
        before = await self.everything(nodes[0], topic)
        stored = [entry.payload.decode() for entry in before.entries]
        assert set(work.done) <= set(stored), "what was acknowledged is not there"
        assert not work.refused & set(stored), "what was said not to have been done is there"
        assert [entry.offset for entry in before.entries] == list(range(1, before.top + 1))
        repeated = dict(work.done)
        for name in sorted(work.unknown | work.refused):
            appended = repeated[name] = await self.again(
                partial(nodes[1].broker.append, topic, name.encode(), history=_PLENTY, key=name)
            )
            assert appended.duplicate or name not in stored
            assert not (appended.duplicate and name in work.refused)
        page = await self.everything(nodes[0], topic)
        shown = {entry.payload.decode(): Position(page.epoch, entry.offset) for entry in page.entries}
        shown.pop("last", None)
        assert len(page.entries) - len(shown) <= 1, "something is there twice"
        assert shown == {name: appended.position for name, appended in repeated.items()}
        self.agree(nodes, topic, page)

    def agree(self, nodes: tuple[Node, Node], topic: str, page: StreamPage) -> None:
        """What was delivered under a position is what stands there, and nothing came twice or out of order."""
        stands = {Position(page.epoch, entry.offset): entry.payload for entry in page.entries}
        for node in nodes:
            found = [delivery for delivery in node.sink.of(topic) if delivery.position is not None]
            for delivery in found:
                assert delivery.position is not None
                stood = stands.setdefault(delivery.position, delivery.payload)
                assert delivery.payload == stood, f"two different payloads at {delivery.position}"
            for epoch in {delivery.position.epoch for delivery in found if delivery.position}:
                offsets = [
                    delivery.position.offset
                    for delivery in found
                    if delivery.position and delivery.position.epoch == epoch
                ]
                assert offsets == sorted(set(offsets)), "delivered twice, or out of order"

    async def test_after_a_restart_what_was_acknowledged_is_there_or_the_epoch_is_another(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("restart")
        await self.subscribe(nodes, topic)
        first = (await nodes[0].broker.append(topic, b"first", history=_PLENTY)).position
        async with self.keep_appending(nodes, topic) as work:
            await self.restart()
        acknowledged: dict[str, Appended] = work.done
        last = max(
            (one.position for one in acknowledged.values() if one.position.epoch == first.epoch),
            key=lambda position: position.offset,
        )
        page = await self.everything(nodes[1], topic, since=last)
        whole = await self.everything(nodes[1], topic)
        assert page.epoch != last.epoch or page.lost is None, "within an epoch a stream went back"
        # Where continuity is claimed, what was acknowledged is what stands there.
        claimed = {whole.epoch} | ({last.epoch} if page.lost is None else set())
        stands = {entry.offset: entry.payload for entry in whole.entries}
        for name, one in acknowledged.items():
            if one.position.epoch in claimed:
                assert stands.get(one.position.offset) == name.encode(), f"{name} was acknowledged"
        self.agree(nodes, topic, whole)
        added = await self.again(lambda: nodes[0].broker.append(topic, b"next", history=_PLENTY, key="next"))
        assert added.position == Position(whole.epoch, whole.top + 1)

    async def test_a_stream_that_was_lost_begins_a_new_epoch(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("lose")
        epochs = []
        for _ in range(2):
            old = Position("", 0)
            for key in "abc":
                appended = await self.again(
                    partial(nodes[0].broker.append, topic, b"x", history=_PLENTY, key=key)
                )
                old = appended.position
            epochs.append(old.epoch)
            await self.lose()
            page = await self.everything(nodes[1], topic, since=old)
            assert (page.lost, page.entries, page.top) == ("epoch", (), 0)
            epochs.append(page.epoch)
            with pytest.raises(Conflict):
                await self.again(partial(nodes[0].broker.append, topic, b"x", history=_PLENTY, expected=old))
            await self.again(lambda: nodes[1].broker.clear(topic))
        # An epoch begins with the loss or with the clearing, and none of them has a name that was there before.
        assert epochs[0] != epochs[1] != epochs[2] != epochs[3]
        assert len(set(epochs)) == len(epochs)


class StateOutages(_Working):
    """The promises of :class:`rtkit.brokers.StateBroker` when the backend is away."""

    async def test_without_the_backend_state_is_neither_changed_nor_shown(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await nodes[0].broker.put(topic, "a", b"1", ttl=_LONG)
        broker = nodes[1].broker
        async with self.outage():
            await self.refused(
                lambda: broker.entries(topic),
                lambda: broker.revision(topic),
                lambda: broker.positions([topic, topic + ":other"]),
            )
            raised = await self.failed(
                lambda: broker.put(topic, "b", b"2", ttl=_LONG),
                lambda: broker.remove(topic, "a"),
                lambda: broker.revise(topic, {"c": b"3"}, ttl=_LONG, expected={}, topic=topic, payload=b""),
                lambda: broker.renew(topic, ["a"], ttl=_LONG),
            )
        found = dict(await self.again(lambda: nodes[0].broker.entries(topic)))
        done = ["b" in found, "a" not in found, "c" in found]
        for error, was_done in zip(raised[:3], done, strict=True):
            assert not was_done or isinstance(error, PublishUnknown)

    async def test_a_revision_is_done_wholly_or_not_at_all(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("outage")
        await self.subscribe(nodes, topic)

        def revise(name: str, n: int) -> Any:
            changes = {f"{name}/a": b"1", f"{name}/b": b"2"}
            return nodes[n].broker.revise(
                topic, changes, ttl=_LONG, expected={}, topic=topic, payload=name.encode()
            )

        async with self.at_work(revise) as work, self.outage():
            await self.refused(lambda: nodes[0].broker.revision(topic))
        found = await self.again(lambda: nodes[1].broker.revision(topic))
        names = {name.partition("/")[0] for name in found.entries}
        assert set(found.entries) == {f"{name}/{half}" for name in names for half in "ab"}
        assert set(work.done) <= names, "what was acknowledged is not there"
        assert not names & work.refused, "what was said not to have been done was done"
        assert names <= set(work.done) | work.unknown
        assert found.position.offset == len(names)
        assert {position.epoch for position in work.done.values()} == {found.position.epoch}
        for node in nodes:
            told = [delivery for delivery in node.sink.of(topic) if delivery.position is not None]
            assert {delivery.payload.decode() for delivery in told} <= names | work.unknown
            offsets = [delivery.position.offset for delivery in told if delivery.position]
            assert offsets == sorted(set(offsets))

    async def test_a_count_that_was_lost_goes_on_in_a_new_epoch(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("lose")

        def revise(field: str) -> Any:
            return nodes[0].broker.revise(
                topic, {field: b""}, ttl=_LONG, expected={}, topic=topic, payload=b""
            )

        await revise("a")
        old = await revise("b")
        await self.lose()
        lost = await self.again(lambda: nodes[1].broker.revision(topic))
        assert (lost.position, dict(lost.entries)) == (Position("", 0), {})
        new = await self.again(lambda: revise("c"))
        assert new.epoch not in ("", old.epoch)
        assert new.offset == 1
        assert list(await nodes[1].broker.positions([topic])) == [new]

    async def test_after_a_restart_a_count_has_not_gone_back(
        self, nodes: tuple[Node, Node], topic: str
    ) -> None:
        self.needs("restart")

        def revise(name: str, n: int) -> Any:
            return nodes[n].broker.revise(
                topic, {name: b""}, ttl=_LONG, expected={}, topic=topic, payload=b""
            )

        async with self.at_work(revise) as work:
            await self.restart()
        last = max(work.done.values(), key=lambda position: position.offset)
        found = await self.again(lambda: nodes[1].broker.revision(topic))
        if found.position.epoch == last.epoch:
            assert found.position.offset >= last.offset
            assert set(work.done) <= set(found.entries)
        new = await self.again(lambda: revise("next", 0))
        assert new not in work.done.values()
        assert new.epoch != found.position.epoch or new.offset > found.position.offset
