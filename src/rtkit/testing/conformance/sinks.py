"""What the suites look at a broker with."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from ...position import Position

__all__ = ["Delivery", "Node", "RecordingSink"]

# A payload that ends a test's deliveries begins with this, and is none of them.
_END = b"the end " + secrets.token_bytes(8)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a sink was handed."""

    topic: str
    payload: bytes
    position: Position | None

    def __repr__(self) -> str:
        # Some tests deliver megabytes, and a test that fails shows all there was.
        long = len(self.payload) > 200
        payload = f"{self.payload[:20]!r}… ({len(self.payload)} bytes)" if long else repr(self.payload)
        return f"Delivery({self.topic!r}, {payload}, {self.position})"


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

    async def until(self, ready: Callable[[], object], complaint: str) -> None:
        """Wait until the sink was told what makes *ready* true."""
        try:
            async with asyncio.timeout(self.patience):
                await self.sink.until(ready)
        except TimeoutError:
            pytest.fail(f"{complaint}; it was told {self.sink.delivered} and {self.sink.interruptions}")

    async def got(self, topic: str, count: int) -> list[Delivery]:
        """The first *count* deliveries of a topic; waits for them."""
        await self.until(
            lambda: len(self.sink.of(topic)) >= count,
            f"of {count} payloads on a subscribed topic not all came",
        )
        return self.sink.of(topic)[:count]

    async def quiet(self, topic: str) -> list[Delivery]:
        """All deliveries of a topic so far: proven by one more that comes after them."""
        end = Delivery(topic, _END + secrets.token_bytes(8), None)
        await self.broker.publish(topic, end.payload)
        await self.until(lambda: end in self.sink.delivered, "a payload on a subscribed topic did not come")
        return self.sink.of(topic)
