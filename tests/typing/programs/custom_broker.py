"""A third party's broker: one plain class, no base class, checked against the protocol it claims to satisfy."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from rtkit import Grant, Hub, Identity, NotRunning, Router, anonymous
from rtkit.brokers import Broker, Sink

# -- somebody's message bus, as a vendor's library might look -------------------------------------------


class Bus:
    """Subjects and queues."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, set[asyncio.Queue[tuple[str, bytes]]]] = defaultdict(set)

    def listen(self, subject: str, queue: asyncio.Queue[tuple[str, bytes]]) -> None:
        self._queues[subject].add(queue)

    def forget(self, subject: str, queue: asyncio.Queue[tuple[str, bytes]]) -> None:
        self._queues[subject].discard(queue)

    def post(self, subject: str, body: bytes) -> None:
        for queue in self._queues[subject]:
            queue.put_nowait((subject, body))


# -- the broker ---------------------------------------------------------------------------------------


class BusBroker:
    """Rooms without history, over a :class:`Bus`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._topics: set[str] = set()
        self._queue: asyncio.Queue[tuple[str, bytes]] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def open(self, sink: Sink) -> None:
        self._queue = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(self._queue, sink))

    async def aclose(self) -> None:
        await self.unsubscribe(tuple(self._topics))
        reader, self._reader, self._queue = self._reader, None, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait({reader})

    async def publish(self, topic: str, payload: bytes) -> None:
        self._running()
        self._bus.post(topic, payload)

    async def subscribe(self, topics: Iterable[str]) -> None:
        queue = self._running()
        for topic in topics:
            self._bus.listen(topic, queue)
            self._topics.add(topic)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self._topics.discard(topic)
            if self._queue is not None:
                self._bus.forget(topic, self._queue)

    def _running(self) -> asyncio.Queue[tuple[str, bytes]]:
        if self._queue is None:
            raise NotRunning("the broker is not open")
        return self._queue

    async def _read(self, queue: asyncio.Queue[tuple[str, bytes]], sink: Sink) -> None:
        while True:
            topic, payload = await queue.get()
            sink.deliver(topic, payload, None)


# -- its use ------------------------------------------------------------------------------------------


def make_hub(broker: Broker) -> Hub[None]:
    """One node; what it publishes reaches the members on all."""
    router = Router[None]()
    router.rooms("lobby", publishes=object, grant=Grant("publish"), auto_join=everybody)
    hub = Hub(authenticate=anonymous, broker=broker)
    hub.include(router)
    return hub


def everybody(identity: Identity[None]) -> list[str]:
    return ["lobby"]


def make_cluster() -> tuple[Hub[None], Hub[None]]:
    bus = Bus()
    return make_hub(BusBroker(bus)), make_hub(BusBroker(bus))
