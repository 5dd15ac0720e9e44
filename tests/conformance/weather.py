"""A memory broker whose backend can be out of reach: calls take a while, and can be cut off on their way.

What is cut off on its way there was not done, on its way back it was; the caller cannot tell one from the other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from rtkit.brokers import MemoryBackend, MemoryBroker, Sink
from rtkit.errors import BrokerUnavailable, PublishUnknown

__all__ = ["OutdoorBroker", "Weather"]

#: What only looks: cut off, it was not done, whatever was done.
LOOKS = ("read", "entries", "revision", "positions")
#: What is repeated by whoever comes back.
SUBSCRIBES = ("subscribe", "unsubscribe")
CHANGES = ("publish", "append", "extend", "clear", "put", "renew", "remove", "revise")


class Weather:
    """Whether the backend can be reached, and by whom it is used.

    :ivar era: how often it was cut off; what began in another era does not come back.
    """

    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self.fair = True
        self.mended = asyncio.Event()
        self.era = 0
        self.brokers: dict[OutdoorBroker, None] = {}
        self.random = random.Random(4)

    async def travel(self) -> None:
        """The way there, or back."""
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def wait(self) -> None:
        """For a backend that can be reached."""
        if not self.fair:
            await self.mended.wait()

    def cut(self) -> None:
        self.fair = False
        self.mended.clear()
        self.era += 1
        for broker in self.brokers:
            self.backend.unsubscribe(broker, broker._topics)

    async def mend(self) -> None:
        self.fair = True
        self.mended.set()
        for broker in tuple(self.brokers):
            broker.coming_back = asyncio.ensure_future(broker.come_back())

    @asynccontextmanager
    async def outage(self) -> AsyncGenerator[None]:
        self.cut()
        try:
            yield
        finally:
            await self.mend()

    async def restart(self) -> None:
        self.cut()
        await asyncio.sleep(0.005)
        for broker in self.brokers:
            broker.crashed()
        await self.mend()

    async def lose(self) -> None:
        self.cut()
        self.backend._streams.clear()
        self.backend._state.clear()
        self.backend._due.clear()
        await self.mend()


class OutdoorBroker(MemoryBroker):
    """See the module. What it overrides is where faults are put."""

    def __init__(self, weather: Weather) -> None:
        super().__init__(weather.backend)
        self.weather = weather
        self.coming_back: asyncio.Future[None] | None = None

    async def open(self, sink: Sink) -> None:
        if not self.weather.fair:
            raise BrokerUnavailable("the backend cannot be reached")
        await super().open(sink)
        self.weather.brokers[self] = None

    def abandon(self) -> None:
        self.weather.brokers.pop(self, None)
        super().abandon()

    async def come_back(self) -> None:
        """The backend is there again."""
        await self.weather.travel()
        self.resubscribe()
        self.warn()

    def resubscribe(self) -> None:
        self.backend.subscribe(self, self._topics)

    def warn(self) -> None:
        if self._sink is not None:
            self._sink.interrupted(tuple(self._topics))

    def crashed(self) -> None:
        """The backend is down, about to be started again."""

    async def carry(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """A call, there and back."""
        if not self.weather.fair:
            raise BrokerUnavailable("the backend cannot be reached")
        era = self.weather.era
        await self.weather.travel()
        if era != self.weather.era:
            raise self.cut_off(name)
        try:
            return await call()
        finally:
            await self.weather.travel()
            if era != self.weather.era:
                raise self.cut_off(name)

    def cut_off(self, name: str) -> Exception:
        return PublishUnknown("it was cut off") if name in CHANGES else BrokerUnavailable("it was cut off")


def _outdoors(name: str) -> Any:
    indoors = getattr(MemoryBroker, name)

    async def call(self: OutdoorBroker, *args: Any, **options: Any) -> Any:
        self._opened()
        return await self.carry(name, lambda: indoors(self, *args, **options))

    return call


for _name in LOOKS + SUBSCRIBES + CHANGES:
    setattr(OutdoorBroker, _name, _outdoors(_name))
