"""The memory broker, being the oracle of all others, is compared with lists so plain that they are right.

The calls go to the backend, whose functions are plain: that a broker hands them on, the conformance kit knows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rtkit.brokers import ANYTHING, Anything, Appended, Conflict, MemoryBackend, MemoryBroker, Revision
from rtkit.messages import History
from rtkit.position import Position
from rtkit.streams import Entry, StreamPage
from rtkit.testing import ManualClock

WINDOW = 30.0
TOPICS = st.sampled_from(["a", "b"])
HISTORIES = st.builds(
    History, st.integers(1, 5), ttl=st.sampled_from([5.0, 20.0, 100.0]), size=st.sampled_from([10, 1000])
)


@dataclass
class Plain:
    """A stream: everything that ever was in it, with when it came."""

    epoch: str
    entries: list[tuple[bytes, float]] = field(default_factory=list)
    floor: int = 0
    history: History | None = None
    keys: dict[str, tuple[Position, float]] = field(default_factory=dict)

    @property
    def top(self) -> int:
        return len(self.entries)

    def trim(self, now: float, history: History | None) -> None:
        for bounds in (self.history, history):
            while bounds is not None and self.floor < self.top:
                kept = self.entries[self.floor :]
                too_old = kept[0][1] + bounds.ttl <= now
                too_large = sum(len(payload) for payload, _ in kept) > bounds.size and len(kept) > 1
                if not (too_old or too_large or len(kept) > bounds.count):
                    break
                self.floor += 1

    def page(self, since: Position | None, limit: int) -> StreamPage:
        start, lost = self.floor, None
        if since is not None and since.epoch != self.epoch:
            lost = "epoch"
        elif since is not None and since.offset > self.top:
            start, lost = self.top, "rollback"
        elif since is not None and since.offset < self.floor:
            lost = "trimmed"
        elif since is not None:
            start = since.offset
        offsets = range(start + 1, self.top + 1)[:limit]
        return StreamPage(self.epoch, self.top, self.floor, start, self.show(offsets), lost)  # type: ignore[arg-type]

    def page_back(self, since: Position | None, limit: int) -> StreamPage:
        end, lost = self.top, None
        if since is not None and since.epoch != self.epoch:
            lost = "epoch"
        elif since is not None and since.offset > self.top:
            lost = "rollback"
        elif since is not None:
            end = max(0, since.offset - 1)
            lost = "trimmed" if 0 < end <= self.floor else None
        offsets = [offset for offset in range(end, 0, -1) if offset > self.floor][:limit]
        start = end - len(offsets)
        return StreamPage(self.epoch, self.top, self.floor, start, self.show(offsets), lost)  # type: ignore[arg-type]

    def show(self, offsets: Iterable[int]) -> tuple[Entry, ...]:
        return tuple(Entry(offset, self.entries[offset - 1][0]) for offset in offsets)


class Recorder:
    def __init__(self) -> None:
        self.got: list[tuple[str, bytes, Position | None]] = []

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        self.got.append((topic, payload, position))

    def interrupted(self, topics: Iterable[str]) -> None:
        raise AssertionError(f"nothing was missed of {topics}")


class MemoryAgainstLists(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock(start=0.0)
        self.backend = MemoryBackend(clock=self.clock, dedupe_window=WINDOW)
        self.brokers = [MemoryBroker(self.backend), MemoryBroker(self.backend)]
        self.sinks = [Recorder(), Recorder()]
        self.streams: dict[str, Plain] = {}
        self.state: dict[tuple[str, str], tuple[bytes, float]] = {}
        self.epochs: set[str] = set()
        self.expected: list[list[tuple[str, bytes, Position | None]]] = [[], []]
        self.subscribed: list[set[str]] = [set(), set()]

        async def open_all() -> None:
            for broker, sink in zip(self.brokers, self.sinks, strict=True):
                await broker.open(sink)

        asyncio.run(open_all())

    def plain(self, topic: str) -> Plain:
        if topic not in self.streams:
            # The name is chance; that it is the same from now on is not.
            self.streams[topic] = Plain(self.backend.read(topic, None, 0, False, None).epoch)
        return self.streams[topic]

    def published(self, topic: str, payload: bytes, position: Position | None) -> None:
        for subscribed, expected in zip(self.subscribed, self.expected, strict=True):
            if topic in subscribed:
                expected.append((topic, payload, position))

    @rule(seconds=st.sampled_from([1.0, 4.0, 16.0, 50.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance_nowait(seconds)

    @rule(node=st.integers(0, 1), topic=TOPICS, join=st.booleans())
    def subscribe(self, node: int, topic: str, join: bool) -> None:
        (self.backend.subscribe if join else self.backend.unsubscribe)(self.brokers[node], [topic])
        (self.subscribed[node].add if join else self.subscribed[node].discard)(topic)

    @rule(topic=TOPICS, payload=st.binary(max_size=2))
    def publish(self, topic: str, payload: bytes) -> None:
        self.backend.publish(topic, payload, None)
        self.published(topic, payload, None)

    @rule(
        topic=TOPICS,
        payload=st.binary(max_size=6),
        history=HISTORIES,
        key=st.none() | st.sampled_from(["k", "l"]),
        expect=st.none() | st.integers(-1, 1),
    )
    def append(
        self, topic: str, payload: bytes, history: History, key: str | None, expect: int | None
    ) -> None:
        plain, now = self.plain(topic), self.clock.monotonic()
        top = Position(plain.epoch, plain.top)
        expected = None if expect is None else Position(plain.epoch, plain.top + expect)
        arguments = (topic, payload, history, key, expected)
        seen = plain.keys.get(key) if key is not None else None
        if seen is not None and seen[1] > now:
            assert self.backend.append(*arguments) == Appended(seen[0], duplicate=True)
        elif expected is not None and expected != top:
            with pytest.raises(Conflict) as caught:
                self.backend.append(*arguments)
            assert caught.value.top == top
        else:
            position = Position(plain.epoch, plain.top + 1)
            assert self.backend.append(*arguments) == Appended(position)
            plain.trim(now, None)
            plain.entries.append((payload, now))
            plain.history = history
            plain.trim(now, None)
            if key is not None:
                plain.keys[key] = (position, now + WINDOW)
            self.published(topic, payload, position)

    @rule(
        topic=TOPICS,
        since=st.none() | st.integers(0, 12),
        foreign=st.booleans(),
        limit=st.integers(0, 4),
        reverse=st.booleans(),
        history=st.none() | HISTORIES,
    )
    def read(
        self, topic: str, since: int | None, foreign: bool, limit: int, reverse: bool, history: History | None
    ) -> None:
        plain = self.plain(topic)
        at = None if since is None else Position("foreign" if foreign else plain.epoch, since)
        plain.trim(self.clock.monotonic(), history)
        page = self.backend.read(topic, at, limit, reverse, history)
        assert page == (plain.page_back if reverse else plain.page)(at, limit)

    @rule(topic=TOPICS)
    def clear(self, topic: str) -> None:
        old = self.plain(topic)
        start = self.backend.clear(topic)
        assert start.epoch != old.epoch
        assert start.offset == 0
        self.streams[topic] = Plain(start.epoch, keys=old.keys)

    def present(self, key: str, name: str) -> bytes | None:
        value, until = self.state.get((key, name), (None, 0.0))
        return value if until > self.clock.monotonic() else None

    @rule(
        key=st.sampled_from("xy"),
        name=st.sampled_from("fg"),
        value=st.sampled_from([b"", b"1"]),
        ttl=st.sampled_from([2.0, 20.0]),
        expected=st.sampled_from([ANYTHING, None, b"", b"1"]),
    )
    def put(self, key: str, name: str, value: bytes, ttl: float, expected: bytes | Anything | None) -> None:
        took = self.backend.put(key, name, value, ttl, expected)
        assert took == (isinstance(expected, Anything) or self.present(key, name) == expected)
        if took:
            self.state[key, name] = (value, self.clock.monotonic() + ttl)

    @rule(key=st.sampled_from("xy"), ttl=st.sampled_from([2.0, 20.0]))
    def renew(self, key: str, ttl: float) -> None:
        gone = self.backend.renew(key, "fg", ttl)
        assert list(gone) == [name for name in "fg" if self.present(key, name) is None]
        for name in "fg":
            if (value := self.present(key, name)) is not None:
                self.state[key, name] = (value, self.clock.monotonic() + ttl)

    @rule(key=st.sampled_from("xy"), name=st.sampled_from("fg"), expected=st.sampled_from([None, b"", b"1"]))
    def remove(self, key: str, name: str, expected: bytes | None) -> None:
        present = self.present(key, name)
        removed = self.backend.remove(key, name, expected)
        assert removed == (present is not None and expected in (None, present))
        if removed:
            del self.state[key, name]

    @rule(
        key=st.sampled_from("xy"),
        topic=TOPICS,
        changes=st.dictionaries(st.sampled_from("fg"), st.sampled_from([None, b"", b"1"])),
        ttl=st.sampled_from([2.0, 20.0]),
        expected=st.dictionaries(st.sampled_from("fg"), st.sampled_from([None, b"", b"1"])),
        payload=st.binary(max_size=2),
    )
    def revise(
        self,
        key: str,
        topic: str,
        changes: dict[str, bytes | None],
        ttl: float,
        expected: dict[str, bytes | None],
        payload: bytes,
    ) -> None:
        before = self.backend.position(key)
        position = self.backend.revise(key, changes, ttl, expected, topic, payload)
        if any(self.present(key, name) != value for name, value in expected.items()):
            assert position is None
            assert self.backend.position(key) == before
            return
        assert position is not None
        if before.epoch:
            assert position == Position(before.epoch, before.offset + 1)
        else:
            assert position.offset == 1 and position.epoch not in self.epochs
            self.epochs.add(position.epoch)
        for name, value in changes.items():
            if value is None:
                self.state.pop((key, name), None)
            else:
                self.state[key, name] = (value, self.clock.monotonic() + ttl)
        self.published(topic, payload, position)

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "state"):
            return
        for sink, expected in zip(self.sinks, self.expected, strict=True):
            assert sink.got == expected
        for key in "xy":
            fields = {name: value for name in "fg" if (value := self.present(key, name)) is not None}
            assert self.backend.entries(key) == fields
            assert self.backend.revision(key) == Revision(self.backend.position(key), fields)


TestMemoryAgainstLists = MemoryAgainstLists.TestCase
TestMemoryAgainstLists.settings = settings(
    max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 8, stateful_step_count=40
)
