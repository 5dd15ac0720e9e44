"""Memory brokers with one fault each, of the kind that a real broker has: the kit must find it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from rtkit.brokers import ANYTHING, Anything, Appended, MemoryBackend, MemoryBroker, Sink
from rtkit.messages import Durability, History
from rtkit.position import Position
from rtkit.streams import StreamPage
from rtkit.testing import ManualClock
from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite

__all__ = ["BROKEN", "KitSuite"]


class KitSuite(StreamBrokerSuite, StateBrokerSuite):
    """The kit, for a kind of memory broker."""

    kind: type[MemoryBroker] = MemoryBroker
    tick = 10.0
    dedupe_window = 300.0
    patience = 0.2

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], MemoryBroker]]:
        self.clock = ManualClock()
        backend = MemoryBackend(clock=self.clock)
        yield lambda: self.kind(backend)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class _Appending(MemoryBroker):
    """Lets a fault be put around `append`."""

    async def append(
        self,
        topic: str,
        payload: bytes,
        *,
        history: History,
        key: str | None = None,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Appended:
        return await self.faulty(topic, payload, history=history, key=key, expected=expected)

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        return await super().append(topic, payload, **options)


class _Reading(MemoryBroker):
    """Lets a fault be put into the pages."""

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        page = await super().read(topic, since=since, limit=limit, reverse=reverse, history=history)
        return self.faulty(page, since)

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        return page


class NumbersFromZero(_Appending):
    """Acknowledges the offset before, and publishes the right one."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        appended = await super().faulty(topic, payload, **options)
        position = replace(appended.position, offset=appended.position.offset - 1)
        return replace(appended, position=position)


class NoDedupe(_Appending):
    """Forgets keys."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        return await super().faulty(topic, payload, **{**options, "key": None})


class DedupesPerNode(_Appending):
    """Remembers keys, but each node its own."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        if (key := options["key"]) is not None:
            options["key"] = f"{id(self)}:{key}"
        return await super().faulty(topic, payload, **options)


class IgnoresExpected(_Appending):
    """Appends whatever the stream's position is."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        return await super().faulty(topic, payload, **{**options, "expected": None})


class ChecksThenAppends(_Appending):
    """Looks whether the position is the expected one, and appends in a second step."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        if (expected := options["expected"]) is not None:
            top = (await self.read(topic, limit=0)).position
            await asyncio.sleep(0)
            options["expected"] = expected if expected != top else None
        return await super().faulty(topic, payload, **options)


class PublishesBeforeStoring(_Appending):
    """Announces what it is about to store."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        top = (await self.read(topic, limit=0)).position
        self.backend.publish(topic, payload, replace(top, offset=top.offset + 1))
        for _ in range(5):
            await asyncio.sleep(0)
        publish, self.backend.publish = self.backend.publish, lambda *_: None  # type: ignore[method-assign]
        try:
            return await super().faulty(topic, payload, **options)
        finally:
            self.backend.publish = publish  # type: ignore[method-assign]


class StoresThenPublishes(_Appending):
    """Numbers and stores in one step, publishes in another: two nodes overtake each other."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        publish, self.backend.publish = self.backend.publish, lambda *_: None  # type: ignore[method-assign]
        try:
            appended = await super().faulty(topic, payload, **options)
        finally:
            self.backend.publish = publish  # type: ignore[method-assign]
        if not appended.duplicate:
            for _ in range(appended.position.offset % 3):
                await asyncio.sleep(0)
            self.backend.publish(topic, payload, appended.position)
        return appended


class WrongReason(_Reading):
    """Calls trimmed what is of another epoch."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        return replace(page, lost="trimmed") if page.lost == "epoch" else page


class NeverLost(_Reading):
    """Claims that every position can be continued: the worst of all."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        return replace(page, lost=None)


class OneTooMany(_Reading):
    """Takes the oldest kept for the last that is gone."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        return replace(page, lost="trimmed") if since and since.offset == page.floor > 0 else page


class KeepsTheEpoch(MemoryBroker):
    """Clears a stream and goes on in the same epoch."""

    async def clear(self, topic: str) -> Position:
        top = (await self.read(topic, limit=0)).position
        make, self.backend._new_epoch = self.backend._new_epoch, lambda: top.epoch
        try:
            return await super().clear(topic)
        finally:
            self.backend._new_epoch = make


class ForgetsMeta(_Reading):
    """Begins a new stream when the last message has aged."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        if page.top > 0 and page.top == page.floor:
            return StreamPage("new", 0, 0, 0, (), "epoch" if since else None)
        return page


class NoEcho(MemoryBroker):
    """Does not hand a hub what it has published itself."""

    async def publish(self, topic: str, payload: bytes) -> None:
        sink, self._sink = self._sink, _Deaf()
        try:
            self.backend.publish(topic, payload, None)
        finally:
            self._sink = sink


class DeliversAfterClose(MemoryBroker):
    """Lets go of the backend, but not of its subscriptions."""

    async def aclose(self) -> None:
        sink, topics = self._sink, tuple(self._topics)
        await super().aclose()
        if sink is not None and topics:
            left = MemoryBroker(self.backend)
            left._sink = sink
            self.backend.subscribe(left, topics)


class SwallowsFaults(MemoryBroker):
    """A sink that raises is not told that it missed something."""

    def _interrupt(self, topic: str) -> None:
        pass


class RaisesIntoOthers(MemoryBroker):
    """A sink that raises ends the fan-out for everybody."""

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        if self._sink is not None:
            self._sink.deliver(topic, payload, position)


class LeasesForEver(MemoryBroker):
    """Keeps what it was given."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        return await super().put(key, field, value, ttl=1e9, expected=expected)


class LeasesTooShort(MemoryBroker):
    """Lets go of what it was given too early."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        return await super().put(key, field, value, ttl=ttl / 2, expected=expected)


class NoneIsAnything(MemoryBroker):
    """Takes `expected=None` for no expectation."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        return await super().put(
            key, field, value, ttl=ttl, expected=ANYTHING if expected is None else expected
        )


class RenewsNothing(MemoryBroker):
    """Says that all is well, and extends nothing."""

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        return []


class _Revising(MemoryBroker):
    """Lets a fault be put around `revise`."""

    async def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        *,
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        return await self.faulty(key, changes, ttl=ttl, expected=expected, topic=topic, payload=payload)

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        return await super().revise(key, changes, **options)


class RevisesWhatIsThere(_Revising):
    """Changes the fields that are as expected, and leaves the others."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        expected, present = options.pop("expected"), await self.entries(key)
        wrong = {field for field, value in expected.items() if present.get(field) != value}
        changes = {field: value for field, value in changes.items() if field not in wrong}
        return await super().faulty(key, changes, expected={}, **options)


class LooksThenRevises(_Revising):
    """Compares in one step, and changes in another."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        expected, present = options.pop("expected"), await self.entries(key)
        if any(present.get(field) != value for field, value in expected.items()):
            return None
        await asyncio.sleep(0)
        return await super().faulty(key, changes, expected={}, **options)


class RevisesThenPublishes(_Revising):
    """Changes and counts in one step, publishes in another."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        publish, self.backend.publish = self.backend.publish, lambda *_: None  # type: ignore[method-assign]
        try:
            position = await super().faulty(key, changes, **options)
        finally:
            self.backend.publish = publish  # type: ignore[method-assign]
        if position is not None:
            for _ in range(position.offset % 3):
                await asyncio.sleep(0)
            self.backend.publish(options["topic"], options["payload"], position)
        return position


class CountsRefusals(_Revising):
    """Counts what it did not do."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        position = await super().faulty(key, changes, **options)
        if position is None and (found := self.backend._state.get(key)) is not None:
            found.revisions += 1
        return position


class CountsFromOneAgain(_Revising):
    """Forgets the count of a key without fields, and begins again in the same epoch."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        make, self.backend._new_epoch = self.backend._new_epoch, lambda: "always"
        try:
            return await super().faulty(key, changes, **options)
        finally:
            self.backend._new_epoch = make


class RevisesForEver(_Revising):
    """Gives no lease to what was revised."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        return await super().faulty(key, changes, **{**options, "ttl": 1e9})


class CountsEverything(MemoryBroker):
    """Counts a put as well."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        took = await super().put(key, field, value, ttl=ttl, expected=expected)
        self.backend._state[key].revisions += took
        return took


class _Deaf(Sink):
    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        pass

    def interrupted(self, topics: Iterable[str]) -> None:
        pass


#: Each, and a test that has to fail for it.
BROKEN: dict[type[MemoryBroker], str] = {
    NumbersFromZero: "test_offsets_are_1_2_3",
    NoDedupe: "test_a_repeat_is_answered_with_the_first_position",
    DedupesPerNode: "test_of_concurrent_repeats_one_is_appended",
    IgnoresExpected: "test_what_is_not_expected_is_a_conflict",
    ChecksThenAppends: "test_of_concurrent_expectations_one_is_met",
    PublishesBeforeStoring: "test_what_was_delivered_can_be_read",
    StoresThenPublishes: "test_concurrent_appends_are_numbered_stored_and_published_alike",
    WrongReason: "test_a_position_of_another_epoch_is_lost",
    NeverLost: "test_a_trimmed_position_is_lost",
    OneTooMany: "test_a_trimmed_position_is_lost",
    KeepsTheEpoch: "test_clear_begins_a_new_epoch",
    ForgetsMeta: "test_epoch_and_top_outlive_the_messages",
    NoEcho: "test_echo",
    DeliversAfterClose: "test_after_close_the_sink_is_not_called",
    SwallowsFaults: "test_a_sink_that_raises_harms_nobody",
    RaisesIntoOthers: "test_a_sink_that_raises_harms_nobody",
    LeasesForEver: "test_a_field_is_gone_when_its_lease_has_run_out_and_not_before",
    LeasesTooShort: "test_a_field_is_gone_when_its_lease_has_run_out_and_not_before",
    NoneIsAnything: "test_put_only_if_there_is_none",
    RenewsNothing: "test_renewing_extends",
    RevisesWhatIsThere: "test_a_revision_of_what_is_not_as_expected_does_nothing",
    LooksThenRevises: "test_of_concurrent_revisions_one_finds_what_it_expects",
    RevisesThenPublishes: "test_concurrent_revisions_are_counted_and_published_alike",
    CountsRefusals: "test_a_revision_of_what_is_not_as_expected_does_nothing",
    CountsFromOneAgain: "test_who_was_forgotten_is_counted_in_a_new_epoch",
    RevisesForEver: "test_what_was_revised_has_a_lease",
    CountsEverything: "test_only_revisions_are_counted",
}
