"""The memory broker keeps all promises; it is the oracle of the others (B2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing import ManualClock
from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite
from tests.conformance.weather import OutdoorBroker, Weather


class TestMemory(StreamBrokerSuite, StateBrokerSuite):
    tick = 10.0
    dedupe_window = 300.0
    left_out = dict.fromkeys(("outage", "restart", "lose"), "it lives in this process")

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], MemoryBroker]]:
        self.clock = ManualClock()
        backend = MemoryBackend(clock=self.clock)
        yield lambda: MemoryBroker(backend)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class TestMemoryOutdoors(StreamBrokerSuite, StateBrokerSuite):
    """The same, where calls take a while, and the backend can be out of reach."""

    tick = 10.0
    dedupe_window = 300.0

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], OutdoorBroker]]:
        self.clock = ManualClock()
        self.weather = Weather(MemoryBackend(clock=self.clock))
        yield lambda: OutdoorBroker(self.weather)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.weather.outage()

    async def restart(self) -> None:
        await self.weather.restart()

    async def lose(self) -> None:
        await self.weather.lose()
