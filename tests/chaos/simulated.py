"""The memory broker with a bad day: what may happen to a hub behind any broker, without a server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

from rtkit import BrokerUnavailable, Position, PublishUnknown
from rtkit.brokers import Appended, MemoryBackend, MemoryBroker
from rtkit.streams import StreamPage

from .world import World

__all__ = ["BadBackend", "BadBroker"]


class BadBackend:
    """What the brokers of one run share.

    :ivar down: nothing works; what is under way ends as unknown, half of it done.
    :ivar lossy: chance that a payload does not reach a hub; the hub is told only later, if at all.
    """

    def __init__(self, seed: int) -> None:
        self.backend = MemoryBackend()
        self.random = random.Random(seed)
        self.down = False
        self.lossy = 0.0
        self.slow = 0.0
        self.brokers: list[BadBroker] = []

    def broker(self) -> BadBroker:
        self.brokers.append(BadBroker(self))
        return self.brokers[-1]

    def heal(self) -> None:
        self.down, self.lossy, self.slow = False, 0.0, 0.0
        for broker in self.brokers:
            broker.tell_interrupted()

    # -- faults, for a plan ------------------------------------------------------------------------

    async def lose_payloads(self, world: World) -> None:
        """Pub/sub loses a third, and says so at the end."""
        self.lossy = 0.3
        await asyncio.sleep(world.random.uniform(0.05, 0.3))
        self.heal()

    async def be_down(self, world: World) -> None:
        """Nobody answers for a moment."""
        self.down, self.lossy = True, 1.0
        await asyncio.sleep(world.random.uniform(0.05, 0.3))
        self.heal()

    async def be_slow(self, world: World) -> None:
        """Answers are late."""
        self.slow = 0.1
        await asyncio.sleep(world.random.uniform(0.05, 0.3))
        self.heal()

    async def lose_all(self, world: World) -> None:
        """The data are gone."""
        for topic in list(self.backend._streams):
            del self.backend._streams[topic]
        world.record.lost("all data")

    @property
    def faults(self) -> Sequence[Any]:
        return (self.lose_payloads, self.be_down, self.be_slow, self.lose_all)


class BadBroker(MemoryBroker):
    """One hub's end of it."""

    def __init__(self, bad: BadBackend) -> None:
        super().__init__(bad.backend)
        self.bad = bad
        self._missed: set[str] = set()

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        if topic.startswith("room:") and self.bad.random.random() < self.bad.lossy:
            self._missed.add(topic)
        else:
            super().deliver(topic, payload, position)

    def tell_interrupted(self) -> None:
        if self._missed and self._sink is not None:
            missed, self._missed = self._missed, set()
            self._sink.interrupted(missed)

    async def _late(self) -> None:
        if self.bad.slow:
            await asyncio.sleep(self.bad.random.random() * self.bad.slow)

    async def append(self, topic: str, payload: bytes, **options: Any) -> Appended:
        await self._late()
        if self.bad.down:
            fate = self.bad.random.random()
            if fate < 0.5:
                raise BrokerUnavailable("down")
            if fate < 0.75:
                await super().append(topic, payload, **options)
            raise PublishUnknown("no answer")
        found = await super().append(topic, payload, **options)
        await self._late()
        return found

    async def read(self, topic: str, **options: Any) -> StreamPage:
        if self.bad.down:
            raise BrokerUnavailable("down")
        page = await super().read(topic, **options)
        await self._late()
        return page

    async def subscribe(self, topics: Iterable[str]) -> None:
        await self._late()
        await super().subscribe(topics)
