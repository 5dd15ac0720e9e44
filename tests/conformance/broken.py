"""Memory brokers with one fault each, of the kind that a real broker has: the kit must find it."""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from rtkit.brokers import (
    ANYTHING,
    Anything,
    Appended,
    Conflict,
    MemoryBackend,
    MemoryBroker,
    NewEntry,
    Repeated,
    Sink,
)
from rtkit.errors import BrokerUnavailable, InvalidMessage, UsageError
from rtkit.messages import Durability, History
from rtkit.position import Position
from rtkit.streams import Entry, StreamPage
from rtkit.testing import ManualClock
from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite
from tests.conformance.weather import OutdoorBroker, Weather

__all__ = ["BROKEN", "KitSuite"]


class KitSuite(StreamBrokerSuite, StateBrokerSuite):
    """The kit, for a kind of memory broker; one of :mod:`.weather` may be out of reach of its backend."""

    kind: type[MemoryBroker] = MemoryBroker
    tick = 10.0
    dedupe_window = 300.0
    patience = 0.2
    bounded = 0.2
    recovery = 0.5
    shortened = False
    stories = 800  # the one that shows a fault ends it

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], MemoryBroker]]:
        self.clock = ManualClock()
        backend = MemoryBackend(clock=self.clock)
        self.weather = Weather(backend)
        outdoors = issubclass(self.kind, OutdoorBroker)
        yield lambda: self.kind(self.weather if outdoors else backend)  # type: ignore[arg-type]

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.weather.outage()

    async def restart(self) -> None:
        await self.weather.restart()

    async def lose(self) -> None:
        await self.weather.lose()


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


# -- several in one act


class _Extending(MemoryBroker):
    """Lets a fault be put around `extend`."""

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        return await self.faulty(topic, entries, history=history, expected=expected)

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        return await super().extend(topic, entries, **options)


class ExtendsOneByOne(_Extending):
    """Has no way to do it in one act."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        position = Position("", 0)
        for entry in entries:
            position = await super().faulty(topic, [entry], **options)
            options["expected"] = None
            await asyncio.sleep(0)
        return position


class ExtendsBackwards(_Extending):
    """Puts the last first."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        return await super().faulty(topic, entries[::-1], **options)


class ExtendsOnlyStreams(_Extending):
    """Needs a stream that is there already."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        if topic not in self.backend._streams:
            return Position("", len(entries))
        return await super().faulty(topic, entries, **options)


class NamesOneRepeat(_Extending):
    """Ends its look at the keys with the first that was used."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        try:
            return await super().faulty(topic, entries, **options)
        except Repeated as repeated:
            raise Repeated(dict(list(repeated.positions.items())[:1])) from None


class ExpectsFirst(_Extending):
    """Looks at what is expected before it looks at the keys."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        top = (await self.read(topic, limit=0)).position
        if options["expected"] not in (None, top):
            raise Conflict(top)
        return await super().faulty(topic, entries, **options)


class ExtendsAnything(_Extending):
    """Does not look at what is expected."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        return await super().faulty(topic, entries, **{**options, "expected": None})


class ForgetsKeysOfSeveral(_Extending):
    """Looks at keys, and does not remember them."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        position = await super().faulty(topic, entries, **options)
        for entry in entries:
            if entry.key is not None:
                del self.backend._streams[topic].keys[entry.key]
        return position


class PublishesTheLast(_Extending):
    """Tells of several what it would tell of one."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        publish, self.backend.publish = self.backend.publish, lambda *_: None  # type: ignore[method-assign]
        try:
            position = await super().faulty(topic, entries, **options)
        finally:
            self.backend.publish = publish  # type: ignore[method-assign]
        self.backend.publish(topic, entries[-1].payload, position)
        return position


class ExtendsWithoutBounds(_Extending):
    """Trims only where one is appended."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        return await super().faulty(topic, entries, **{**options, "history": History(10_000, ttl=86400.0)})


class ClearEndsTheWindow(MemoryBroker):
    """Forgets the keys with the messages."""

    async def clear(self, topic: str) -> Position:
        position = await super().clear(topic)
        self.backend._streams[topic].keys.clear()
        return position


# -- sizes and names

MIB = 1024 * 1024


class _Sending(_Appending):
    """Lets a fault be put before whatever is sent."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if (sent := self.send(topic, payload)) is not None:
            await super().publish(topic, sent)

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        if (sent := self.send(topic, payload)) is not None:
            return await super().faulty(topic, sent, **options)
        top = (await self.read(topic, limit=0)).position
        return Appended(replace(top, offset=top.offset + 1))

    def send(self, topic: str, payload: bytes) -> bytes | None:
        return payload


class SendsText(_Sending):
    """Payloads go through a text protocol."""

    def send(self, topic: str, payload: bytes) -> bytes | None:
        return payload.decode("utf-8", "replace").encode()


class RefusesTheLarge(_Sending):
    """As many servers do, from one MiB on."""

    def send(self, topic: str, payload: bytes) -> bytes | None:
        if len(payload) > MIB:
            raise InvalidMessage("too large")
        return payload


class IsCutOffByTheLarge(_Sending):
    """Takes what is larger than allowed, upon which the server drops all that listen."""

    def send(self, topic: str, payload: bytes) -> bytes | None:
        if len(payload) <= 5 * MIB:
            return payload
        for broker in self.backend._topics.get(topic, {}):
            broker._interrupt(topic)
        return None


class NotesTheKeyOfTheRefused(_Appending):
    """Notes the key, then looks at the size."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        if len(payload) > 5 * MIB:
            stream = self.backend._stream(topic, self.clock_now())
            stream.keys[options["key"]] = (stream.position, self.clock_now() + 300)
            raise InvalidMessage("too large")
        return await super().faulty(topic, payload, **options)

    def clock_now(self) -> float:
        return self.backend.clock.monotonic()


class _Naming(MemoryBroker):
    """Lets a fault be put into how names become those of the backend."""

    def name(self, name: str) -> str:
        return name

    async def publish(self, topic: str, payload: bytes) -> None:
        for other in tuple(self.backend._topics):
            if self.name(other) == self.name(topic):
                self.backend.publish(other, payload, None)

    async def append(self, topic: str, payload: bytes, **options: Any) -> Appended:  # type: ignore[override]
        return await super().append(self.name(topic), payload, **options)

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        return await super().read(self.name(topic), **options)

    async def put(self, key: str, *args: Any, **options: Any) -> bool:  # type: ignore[override]
        return await super().put(self.name(key), *args, **options)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        return await super().entries(self.name(key))


class ForgetsTheKind(_Naming):
    """Names things by what follows the colon, which tells it where they are."""

    def name(self, name: str) -> str:
        return name.partition(":")[2] or name


class TidiesNames(_Naming):
    """Makes names fit for its server, several of them the same."""

    def name(self, name: str) -> str:
        return re.sub(r"[^\w:]", "-", name)


class OneOfEachKind(_Naming):
    """Names things by their first two parts."""

    def name(self, name: str) -> str:
        return ":".join(name.split(":")[:2])


class PatternsOfNames(_Naming):
    """Takes topics for patterns."""

    async def publish(self, topic: str, payload: bytes) -> None:
        for other in tuple(self.backend._topics):
            if fnmatch.fnmatchcase(topic, other):
                self.backend.publish(other, payload, None)


class BeginningsOfNames(_Naming):
    """Delivers to whoever subscribed to a longer name too."""

    async def publish(self, topic: str, payload: bytes) -> None:
        for other in tuple(self.backend._topics):
            if other.startswith(topic):
                self.backend.publish(other, payload, None)


class SpreadsByWholeNames(_Revising):
    """Has key and topic on different servers, unless they are the same."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        if key != options["topic"]:
            raise BrokerUnavailable("CROSSSLOT keys in request don't hash to the same slot")
        return await super().faulty(key, changes, **options)


# -- publishing


class StoresPassing(MemoryBroker):
    """Keeps what is only published."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if topic in self.backend._streams:
            self.backend._streams[topic].append(payload, self.backend.clock.monotonic())
        await super().publish(topic, payload)


class Overtakes(MemoryBroker):
    """Has several connections to publish on."""

    async def publish(self, topic: str, payload: bytes) -> None:
        loop, turns = asyncio.get_running_loop(), len(payload) % 2

        def later(turns: int) -> None:
            loop.call_soon(later, turns - 1) if turns else self.backend.publish(topic, payload, None)

        self._opened()
        later(turns)


class OwnFirst(MemoryBroker):
    """Hands its hub at once what others get over the network."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if topic in self._topics:
            self.deliver(topic, payload, None)
        await asyncio.sleep(0)
        for broker in tuple(self._opened()._topics.get(topic, ())):
            if broker is not self:
                broker.deliver(topic, payload, None)


class DeliversTwice(MemoryBroker):
    """Sends again what it has sent."""

    async def publish(self, topic: str, payload: bytes) -> None:
        await super().publish(topic, payload)
        await super().publish(topic, payload)


class CountsSubscriptions(MemoryBroker):
    """Delivers as often as it was subscribed."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        topics = list(topics)
        self.__dict__.setdefault("times", []).extend(topics)
        await super().subscribe(topics)

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        for _ in range(self.__dict__["times"].count(topic)):
            super().deliver(topic, payload, position)


class StaysSubscribed(MemoryBroker):
    """Says yes, and does nothing."""

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        self._opened()


class UnsubscribesAll(MemoryBroker):
    """Ends it for the other nodes too."""

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._opened()._topics.pop(topic, None)
            self._topics.discard(topic)


class KnowsWhatItSubscribed(MemoryBroker):
    """Refuses to end what never began."""

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        topics = list(topics)
        self._opened()
        if not self._topics.issuperset(topics):
            raise UsageError("not subscribed")
        await super().unsubscribe(topics)


class LooksAtTopicsTwice(MemoryBroker):
    """Counts them first, which uses an iterator up."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        self._opened()
        if sum(1 for _ in topics):
            await super().subscribe(topics)


class RemembersCancellation(MemoryBroker):
    """Once cancelled, it thinks it has done it."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        topics = set(topics) - self._topics
        self._topics |= topics
        await asyncio.sleep(0)
        self._opened().subscribe(self, topics)


class GoesToOthersOnly(MemoryBroker):
    """Subscribes on another node."""

    async def publish(self, topic: str, payload: bytes) -> None:
        self._opened()
        self.deliver(topic, payload, None)


# -- beginning and end


class ClosesOnce(MemoryBroker):
    """Does not like to be closed again."""

    async def aclose(self) -> None:
        if self._sink is None and self.__dict__.get("was_open"):
            raise ValueError("closed already")
        self.__dict__["was_open"] = self._sink is not None
        await super().aclose()


class OpensTwice(MemoryBroker):
    """Takes another sink, as if it were nothing."""

    async def open(self, sink: Sink) -> None:
        await self.aclose()
        await super().open(sink)


class WorksWhenClosed(MemoryBroker):
    """Buffers until it is open."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if self._sink is not None:
            await super().publish(topic, payload)


class WorksInAnyLoop(MemoryBroker):
    """Does not look where it is called."""

    def _opened(self) -> MemoryBackend:
        self._loop = asyncio.get_running_loop()
        return super()._opened()


class StaysInItsLoop(MemoryBroker):
    """Makes something at its first opening that belongs to that loop."""

    async def open(self, sink: Sink) -> None:
        loop = self.__dict__.setdefault("first", asyncio.get_running_loop())
        if loop is not asyncio.get_running_loop():
            raise ValueError("attached to a different loop")
        await super().open(sink)


class KeepsTopics(MemoryBroker):
    """Subscribes anew, when it is opened again, to what it was subscribed to."""

    async def open(self, sink: Sink) -> None:
        await super().open(sink)
        self.backend.subscribe(self, self.__dict__.get("kept", ()))

    async def aclose(self) -> None:
        self.__dict__["kept"] = tuple(self._topics)
        await super().aclose()


class KeepsInTheHub(MemoryBroker):
    """Streams go with the hub that wrote them."""

    async def aclose(self) -> None:
        if self._sink is not None:
            self.backend._streams.clear()
        await super().aclose()


# -- streams


class KeysOfAllStreams(_Appending):
    """Has one window of keys for all streams."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        known = self.backend.__dict__.setdefault("known", {})
        if options["key"] in known:
            return Appended(known[options["key"]], duplicate=True)
        appended = await super().faulty(topic, payload, **options)
        if options["key"] is not None:
            known[options["key"]] = appended.position
        return appended


class NoneIsAKey(_Appending):
    """Takes the empty key and none for one."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        return await super().faulty(topic, payload, **{**options, "key": options["key"] or ""})


class IgnoresSize(_Appending):
    """Has no bound in bytes."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        options["history"] = replace(options["history"], size=1 << 30)
        return await super().faulty(topic, payload, **options)


class IgnoresCount(_Appending):
    """Has no bound in messages."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        options["history"] = replace(options["history"], count=1 << 30)
        return await super().faulty(topic, payload, **options)


class DropsTheTooLarge(_Appending):
    """Trims to the bytes allowed, whatever is left."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        appended = await super().faulty(topic, payload, **options)
        if len(payload) > options["history"].size:
            self.backend._streams[topic]._trim(float("inf"), 0, 0)
        return appended


class BeginsWithTheFirst(MemoryBroker):
    """A stream that has no messages has no epoch yet."""

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        if topic not in self._opened()._streams:
            return StreamPage(self.backend._new_epoch(), 0, 0, 0, ())
        return await super().read(topic, **options)


class ReadsOneLess(_Reading):
    """Ends before the last."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        return replace(page, entries=page.entries[:-1])


class ReadsFromHere(_Reading):
    """Shows the message at the position again."""

    def faulty(self, page: StreamPage, since: Position | None) -> StreamPage:
        here = Entry(since.offset, b"%d" % since.offset) if since is not None and since.offset else None
        return replace(page, entries=(here, *page.entries)) if here and page.lost is None else page


class ReadsForward(MemoryBroker):
    """Cannot read in reverse."""

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        return await super().read(topic, **{**options, "reverse": False})


class NothingAges(_Appending):
    """Has no bound in time."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        return await super().faulty(topic, payload, **{**options, "history": History(10_000, ttl=1e9)})

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        return await super().read(topic, **{**options, "history": None})


class ReadsWithoutBounds(MemoryBroker):
    """Shows what is there, however old."""

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        return await super().read(topic, **{**options, "history": None})


class LimitsNothing(MemoryBroker):
    """Takes no limit for none."""

    async def read(self, topic: str, **options: Any) -> StreamPage:  # type: ignore[override]
        return await super().read(topic, **{**options, "limit": options.get("limit") or 100})


# -- state


class StateOfItsOwn(MemoryBroker):
    """Each node has its own."""

    async def put(self, key: str, *args: Any, **options: Any) -> bool:  # type: ignore[override]
        return await super().put(f"{id(self)}{key}", *args, **options)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        return await super().entries(f"{id(self)}{key}")


class PutsOnce(MemoryBroker):
    """Does not replace."""

    async def put(self, key: str, field: str, value: bytes, **options: Any) -> bool:  # type: ignore[override]
        there = field in await self.entries(key)
        return True if there else await super().put(key, field, value, **options)


class UnknownIsAnError(MemoryBroker):
    """Has no entries of what it does not know."""

    async def entries(self, key: str) -> Mapping[str, bytes]:
        if key not in self._opened()._state:
            raise LookupError(key)
        return await super().entries(key)


class ValuesAreText(MemoryBroker):
    """Keeps strings."""

    async def put(self, key: str, field: str, value: bytes, **options: Any) -> bool:  # type: ignore[override]
        return await super().put(key, field.strip("\0"), value.decode("latin-1").encode(), **options)


class LooksThenPuts(MemoryBroker):
    """Compares in one step, and sets in another."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        if not isinstance(expected, Anything) and (await self.entries(key)).get(field) != expected:
            return False
        await asyncio.sleep(0)
        return await super().put(key, field, value, ttl=ttl)


class RemovesAnything(MemoryBroker):
    """Does not look what it removes."""

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        return await super().remove(key, field)


class RemovesAlways(MemoryBroker):
    """Says that it removed what was not there."""

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        await super().remove(key, field, expected=expected)
        return True


class RevisesWithoutRemoving(_Revising):
    """Sets what is to be set."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        changes = {field: value for field, value in changes.items() if value is not None}
        return await super().faulty(key, changes, **options)


class EmptyIsNone(_Revising):
    """Takes an empty value for none, where it compares."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        options["expected"] = {field: value or None for field, value in options["expected"].items()}
        return await super().faulty(key, changes, **options)


class PositionsInAnyOrder(MemoryBroker):
    """Answers in the order that suits it."""

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        return await super().positions(sorted(set(keys)))


# -- what no short test looks for, and a story comes across


class TakesAnyBeginning(_Appending):
    """Takes a stream without messages for any other without messages."""

    async def faulty(self, topic: str, payload: bytes, **options: Any) -> Appended:
        top = (await self.read(topic, limit=0)).position
        if options["expected"] is not None and options["expected"].offset == top.offset == 0:
            options["expected"] = None
        return await super().faulty(topic, payload, **options)


class ShrinksLate(_Extending):
    """Under tighter bounds than before, it trims the next time."""

    async def faulty(self, topic: str, entries: Sequence[NewEntry], **options: Any) -> Position:
        stream = self.backend._streams.get(topic)
        if stream is not None and stream.history is not None:
            count = max(options["history"].count, stream.history.count)
            options["history"] = replace(options["history"], count=count)
        return await super().faulty(topic, entries, **options)


class EmptyIsNotThere(MemoryBroker):
    """Does not remove what is empty."""

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        if (await self.entries(key)).get(field) == b"":
            return False
        return await super().remove(key, field, expected=expected)


class CountsOnlyChanges(_Revising):
    """Does not count a revision that leaves all as it is."""

    async def faulty(self, key: str, changes: Mapping[str, bytes | None], **options: Any) -> Position | None:
        position = await super().faulty(key, changes, **options)
        if position is not None and not changes and (found := self.backend._state.get(key)) is not None:
            found.revisions -= 1
        return position


class RemembersPositions(MemoryBroker):
    """Asks once for a key's position, and counts its own revisions."""

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        known = self.__dict__.setdefault("known", {})
        fresh = await super().positions(keys)
        return [
            known.setdefault(key, position) if position.offset > 2 else position
            for key, position in zip(keys, fresh, strict=True)
        ]


class RepeatsEndWithTheStream(MemoryBroker):
    """After a second clearing, it has forgotten the keys of the first."""

    async def clear(self, topic: str) -> Position:
        before = self._opened()._streams.get(topic)
        position = await super().clear(topic)
        if before is not None and before.top == 0:
            self.backend._streams[topic].keys.clear()
        return position


class _Deaf(Sink):
    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        pass

    def interrupted(self, topics: Iterable[str]) -> None:
        pass


#: Each, and the tests that have to fail for it.
BROKEN: dict[type[MemoryBroker], str] = {
    NumbersFromZero: "test_offsets_are_1_2_3"
    " test_what_is_appended_is_published_with_its_position"
    " test_what_was_acknowledged_can_be_read"
    " test_what_is_expected_is_appended",
    NoDedupe: "test_a_repeat_is_answered_with_the_first_position"
    " test_the_window_of_a_key_ends"
    " test_a_repeat_needs_no_expectation"
    " test_a_repeat_is_one_although_the_first_is_trimmed",
    DedupesPerNode: "test_of_concurrent_repeats_one_is_appended",
    IgnoresExpected: "test_what_is_not_expected_is_a_conflict",
    ChecksThenAppends: "test_of_concurrent_expectations_one_is_met",
    PublishesBeforeStoring: "test_what_was_delivered_can_be_read",
    StoresThenPublishes: "test_concurrent_appends_are_numbered_stored_and_published_alike",
    WrongReason: "test_a_position_of_another_epoch_is_lost",
    NeverLost: "test_a_trimmed_position_is_lost test_a_position_beyond_the_top_is_lost",
    OneTooMany: "test_a_trimmed_position_is_lost",
    KeepsTheEpoch: "test_clear_begins_a_new_epoch test_the_name_of_an_epoch_never_returns",
    ForgetsMeta: "test_epoch_and_top_outlive_the_messages",
    NoEcho: "test_echo",
    DeliversAfterClose: "test_after_close_the_sink_is_not_called",
    SwallowsFaults: "test_a_sink_that_raises_harms_nobody",
    RaisesIntoOthers: "test_a_sink_that_raises_harms_nobody",
    LeasesForEver: "test_a_field_is_gone_when_its_lease_has_run_out_and_not_before"
    " test_what_was_refused_extends_nothing"
    " test_what_has_run_out_is_not_there",
    LeasesTooShort: "test_a_field_is_gone_when_its_lease_has_run_out_and_not_before"
    " test_putting_again_extends",
    NoneIsAnything: "test_put_only_if_there_is_none test_an_empty_value_is_a_value",
    RenewsNothing: "test_renewing_extends test_renewing_tells_what_was_gone",
    RevisesWhatIsThere: "test_a_revision_of_what_is_not_as_expected_does_nothing",
    LooksThenRevises: "test_of_concurrent_revisions_one_finds_what_it_expects",
    RevisesThenPublishes: "test_concurrent_revisions_are_counted_and_published_alike",
    CountsRefusals: "test_a_revision_of_what_is_not_as_expected_does_nothing",
    CountsFromOneAgain: "test_who_was_forgotten_is_counted_in_a_new_epoch",
    RevisesForEver: "test_what_was_revised_has_a_lease",
    CountsEverything: "test_only_revisions_are_counted test_what_was_never_revised_stands_nowhere",
    ExtendsOneByOne: "test_of_several_all_or_none_are_appended test_nothing_comes_between_several",
    ExtendsBackwards: "test_several_are_appended_and_published_in_their_order",
    ExtendsOnlyStreams: "test_several_begin_a_stream",
    NamesOneRepeat: "test_all_that_are_repeated_are_named",
    ExpectsFirst: "test_of_several_a_repeat_is_looked_at_before_what_is_expected",
    ExtendsAnything: "test_several_that_are_not_expected_are_a_conflict",
    ForgetsKeysOfSeveral: "test_keys_of_several_are_those_of_one",
    PublishesTheLast: "test_several_are_bounded_like_others",
    ExtendsWithoutBounds: "test_several_are_bounded_like_others",
    ClearEndsTheWindow: "test_several_repeats_are_ones_although_the_stream_was_cleared"
    " test_a_repeat_is_one_although_the_stream_was_cleared",
    SendsText: "test_a_payload_is_opaque test_a_stored_payload_is_opaque",
    RefusesTheLarge: "test_the_largest_payload_is_taken test_the_largest_payload_is_stored",
    IsCutOffByTheLarge: "test_a_larger_payload_is_taken_or_refused_and_cuts_nobody_off"
    " test_a_larger_payload_is_stored_or_refused_and_cuts_nobody_off",
    NotesTheKeyOfTheRefused: "test_a_larger_payload_is_stored_or_refused_and_cuts_nobody_off",
    ForgetsTheKind: "test_what_a_name_has_before_its_colon_tells_it_from_others"
    " test_streams_whose_names_are_alike_are_apart test_keys_whose_names_are_alike_are_apart",
    TidiesNames: "test_a_topic_is_opaque test_what_a_name_has_before_its_colon_tells_it_from_others"
    " test_streams_whose_names_are_alike_are_apart test_keys_whose_names_are_alike_are_apart",
    OneOfEachKind: "test_streams_are_apart test_keys_are_apart",
    PatternsOfNames: "test_a_topic_is_opaque",
    SpreadsByWholeNames: "test_what_belongs_together_is_revised_and_told_in_one_act",
    StoresPassing: "test_what_is_only_published_is_not_stored",
    Overtakes: "test_order_of_one_publisher",
    OwnFirst: "test_one_order_everywhere",
    DeliversTwice: "test_a_publication_is_delivered_once",
    CountsSubscriptions: "test_subscribing_twice_is_once",
    StaysSubscribed: "test_after_unsubscribing_nothing_comes",
    UnsubscribesAll: "test_unsubscribing_ends_one_topic_on_one_node",
    KnowsWhatItSubscribed: "test_not_subscribed_is_no_error",
    LooksAtTopicsTwice: "test_topics_may_come_from_an_iterator",
    RemembersCancellation: "test_a_cancelled_call_can_be_repeated",
    GoesToOthersOnly: "test_every_subscriber_gets_it",
    BeginningsOfNames: "test_nobody_else_gets_it",
    ClosesOnce: "test_aclose_is_idempotent",
    OpensTwice: "test_open_is_not_for_twice",
    WorksWhenClosed: "test_not_running_before_open_and_after_close",
    WorksInAnyLoop: "test_wrong_loop",
    StaysInItsLoop: "test_reopened_it_works_in_another_loop",
    KeepsTopics: "test_reopened_it_works_and_is_subscribed_to_nothing",
    KeepsInTheHub: "test_what_is_stored_outlives_the_hub",
    KeysOfAllStreams: "test_a_key_is_of_one_stream",
    NoneIsAKey: "test_other_keys_and_none_are_no_repeats",
    IgnoresSize: "test_bounded_by_bytes",
    IgnoresCount: "test_bounded_by_count",
    DropsTheTooLarge: "test_the_newest_is_kept_however_large",
    BeginsWithTheFirst: "test_a_stream_begins_when_it_is_read",
    ReadsOneLess: "test_read_all test_read_page_by_page",
    ReadsFromHere: "test_read_on_from_a_position test_read_on_from_the_top",
    ReadsForward: "test_read_in_reverse test_read_in_reverse_what_is_not_kept",
    NothingAges: "test_bounded_by_age",
    ReadsWithoutBounds: "test_bounds_apply_to_what_is_read",
    LimitsNothing: "test_read_the_top_alone",
    StateOfItsOwn: "test_what_is_put_is_seen_everywhere",
    PutsOnce: "test_put_replaces test_put_only_if_it_is_this",
    UnknownIsAnError: "test_what_is_unknown_has_no_entries",
    ValuesAreText: "test_fields_and_values_are_opaque",
    LooksThenPuts: "test_of_concurrent_puts_one_wins",
    RemovesAnything: "test_remove_only_if_it_is_this",
    RemovesAlways: "test_remove",
    RevisesWithoutRemoving: "test_a_revision_changes_counts_and_publishes",
    EmptyIsNone: "test_a_revision_of_what_is_as_expected_is_done",
    PositionsInAnyOrder: "test_positions_of_many_keys",
    **dict.fromkeys(
        (
            TakesAnyBeginning,
            ShrinksLate,
            EmptyIsNotThere,
            CountsOnlyChanges,
            RemembersPositions,
            RepeatsEndWithTheStream,
        ),
        "test_it_is_like_the_memory_broker",
    ),
}
