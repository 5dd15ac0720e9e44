"""Brokers that fail, lose and dawdle as a test tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.errors import BrokerUnavailable
from rtkit.position import Position

__all__ = ["FaultyBroker", "PlainBroker"]


class FaultyBroker(MemoryBroker):
    """A memory broker whose faults are switched on by name.

    :ivar down: every call fails with BrokerUnavailable.
    :ivar failing: so does each of these calls; *errors* are raised by them instead, one each.
    :ivar deaf: deliveries of these topics (of all, if it is True) are lost without a trace.
    :ivar losing_answers: so many revisions are done, and fail all the same.
    :ivar gates: a call waits until its gate, if it has one, is open.
    """

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend)
        self.down = False
        self.failing: set[str] = set()
        self.errors: dict[str, list[Exception]] = {}
        self.deaf: bool | set[str] = False
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self.lost = 0
        self.losing_answers = 0

    def hold(self, name: str) -> asyncio.Event:
        """Make calls of *name* wait for the event that is returned."""
        return self.gates.setdefault(name, asyncio.Event())

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        gate = self.gates.get(name)
        if gate is not None:
            await gate.wait()
        if self.down or name in self.failing:
            raise BrokerUnavailable(f"{name}: the broker is away")
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        if self.deaf is True or (isinstance(self.deaf, set) and topic in self.deaf):
            self.lost += 1
            return
        super().deliver(topic, payload, position)

    def interrupt(self, *topics: str) -> None:
        """Tell the hub that it may have missed something on these topics."""
        assert self._sink is not None
        self._sink.interrupted(topics)

    async def open(self, sink: Any) -> None:
        await self._call("open")
        await super().open(sink)

    async def publish(self, topic: str, payload: bytes) -> None:
        await self._call("publish")
        await super().publish(topic, payload)

    async def subscribe(self, topics: Iterable[str]) -> None:
        await self._call("subscribe")
        await super().subscribe(topics)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        await self._call("unsubscribe")
        await super().unsubscribe(topics)

    async def append(self, topic: str, payload: bytes, **options: Any) -> Any:
        await self._call("append")
        return await super().append(topic, payload, **options)

    async def read(self, topic: str, **options: Any) -> Any:
        await self._call("read")
        return await super().read(topic, **options)

    async def put(self, key: str, field: str, value: bytes, **options: Any) -> Any:
        await self._call("put")
        return await super().put(key, field, value, **options)

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Any:
        await self._call("renew")
        return await super().renew(key, fields, ttl=ttl)

    async def remove(self, key: str, field: str, **options: Any) -> Any:
        await self._call("remove")
        return await super().remove(key, field, **options)

    async def revise(self, key: str, changes: Any, **options: Any) -> Any:
        await self._call("revise")
        position = await super().revise(key, changes, **options)
        if self.losing_answers:
            self.losing_answers -= 1
            raise BrokerUnavailable("revise: it was done, and the connection broke")
        return position

    async def revision(self, key: str) -> Any:
        await self._call("revision")
        return await super().revision(key)

    async def positions(self, keys: Any) -> Any:
        await self._call("positions")
        return await super().positions(keys)

    async def entries(self, key: str) -> Any:
        await self._call("entries")
        return await super().entries(key)


class PlainBroker:
    """The least that is a broker: it neither keeps streams nor state."""

    def __init__(self) -> None:
        self.sink: Any = None
        self.topics: set[str] = set()

    async def open(self, sink: Any) -> None:
        self.sink = sink

    async def aclose(self) -> None:
        self.sink = None
        self.topics.clear()

    async def publish(self, topic: str, payload: bytes) -> None:
        if topic in self.topics:
            self.sink.deliver(topic, payload, None)

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.topics.update(topics)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        self.topics.difference_update(topics)
