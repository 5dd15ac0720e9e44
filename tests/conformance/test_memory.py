"""The memory broker keeps all promises; it is the oracle of the others (B2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing import ManualClock
from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite


class TestMemory(StreamBrokerSuite, StateBrokerSuite):
    tick = 10.0
    dedupe_window = 300.0

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], MemoryBroker]]:
        self.clock = ManualClock()
        backend = MemoryBackend(clock=self.clock)
        yield lambda: MemoryBroker(backend)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
