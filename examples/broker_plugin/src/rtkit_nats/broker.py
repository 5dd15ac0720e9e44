"""What a hub sees: the three protocols of :mod:`rtkit.brokers.base`, and nothing of NATS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from rtkit.brokers import ANYTHING, Anything, Appended, NewEntry, Revision, Sink
from rtkit.clock import Clock
from rtkit.errors import NotRunning, UsageError, WrongLoop
from rtkit.messages import Durability, History
from rtkit.position import Position
from rtkit.primitives.clocks import LoopClock
from rtkit.streams import StreamPage

from .connection import Connection
from .fields import Fields
from .link import Link, stored
from .records import Record
from .settings import Settings, parse_url
from .state import State
from .streams import Streams

__all__ = ["NatsBroker"]

logger = logging.getLogger("rtkit_nats")


class NatsBroker:
    """A broker on NATS JetStream, version 2.12 or later.

    :param servers: URLs without secrets: ``nats://host:4222``.
    :param settings: the same for all hubs of a cluster.
    :param clock: the running loop's unless given.
    :param options: of ``nats.connect``: ``user``, ``password``, ``token``, ``tls``, ``user_credentials`` …
    """

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        self._settings = settings or Settings()
        self._clock: Clock = clock or LoopClock()
        self._options = dict(options or {})
        self._running: _Running | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> NatsBroker:
        """For ``nats://[user:password@]host[:port][,host…][?option=value&…]``; options are those of `Settings`.

        :raises ~rtkit.errors.UsageError: for anything else.
        """
        servers, login, settings = parse_url(url)
        return cls(servers, settings=settings, clock=clock, options=login)

    # -- beginning and end

    async def open(self, sink: Sink) -> None:
        """See :meth:`rtkit.brokers.Broker.open`.

        :raises ~rtkit.errors.BrokerUnavailable: nobody is there, or it is not fit; it is not open then.
        """
        if self._loop is not None and not self._loop.is_closed():
            raise UsageError(f"{self!r} is open already; each hub needs one of its own")
        self._loop = asyncio.get_running_loop()
        running = _Running(sink, self._servers, self._options, self._settings, self._clock)
        try:
            await running.open()
        except BaseException:
            self._loop = None
            raise
        self._running = running

    async def aclose(self) -> None:
        """See :meth:`rtkit.brokers.Broker.aclose`."""
        running, self._running, self._loop = self._running, None, None
        if running is not None:
            await running.aclose()

    def _opened(self) -> _Running:
        if self._running is None:
            raise NotRunning(f"{self!r} is not open; start the hub first")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("this broker runs in another event loop; from a thread use anyio.from_thread.run")
        return self._running

    # -- Broker

    async def publish(self, topic: str, payload: bytes) -> None:
        """See :meth:`rtkit.brokers.Broker.publish`."""
        await self._opened().publish(topic, payload)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`rtkit.brokers.Broker.subscribe`."""
        await self._opened().subscribe(tuple(topics))

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`rtkit.brokers.Broker.unsubscribe`."""
        await self._opened().unsubscribe(tuple(topics))

    # -- StreamBroker

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
        """See :meth:`rtkit.brokers.StreamBroker.append`."""
        entry = NewEntry(payload, key)
        return await self._opened().streams.append(topic, entry, history, expected, durability)

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        """See :meth:`rtkit.brokers.StreamBroker.extend`."""
        return await self._opened().streams.extend(topic, entries, history, expected, durability)

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        """See :meth:`rtkit.brokers.StreamBroker.read`."""
        return await self._opened().streams.read(topic, since, limit, reverse, history)

    async def clear(self, topic: str) -> Position:
        """See :meth:`rtkit.brokers.StreamBroker.clear`."""
        return await self._opened().streams.clear(topic)

    # -- StateBroker

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        """See :meth:`rtkit.brokers.StateBroker.put`."""
        return await self._opened().state.put(key, field, value, ttl, expected)

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        """See :meth:`rtkit.brokers.StateBroker.renew`."""
        return await self._opened().state.renew(key, fields, ttl)

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        """See :meth:`rtkit.brokers.StateBroker.remove`."""
        return await self._opened().state.remove(key, field, expected)

    async def entries(self, key: str) -> Mapping[str, bytes]:
        """See :meth:`rtkit.brokers.StateBroker.entries`."""
        return (await self._opened().state.revision(key)).entries

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
        """See :meth:`rtkit.brokers.StateBroker.revise`."""
        return await self._opened().state.revise(key, changes, ttl, expected, topic, payload)

    async def revision(self, key: str) -> Revision:
        """See :meth:`rtkit.brokers.StateBroker.revision`."""
        return await self._opened().state.revision(key)

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        """See :meth:`rtkit.brokers.StateBroker.positions`."""
        return await self._opened().state.positions(keys)

    def __repr__(self) -> str:
        return f"<NatsBroker {self._settings.prefix!r} {'open' if self._running is not None else 'closed'}>"


class _Running:
    """All that there is between ``open`` and ``aclose``: what is subscribed to, and who is told."""

    def __init__(
        self,
        sink: Sink,
        servers: Sequence[str],
        options: Mapping[str, Any],
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._sink: Sink | None = sink
        self._topics: dict[str, Subscription] = {}
        self._confirmed: set[str] = set()  # of those the ones that a call has promised
        self._link = Link(
            servers,
            options,
            settings,
            clock,
            came_back=self._subscribe_again,
            is_back=lambda: self._interrupted(tuple(self._topics)),
            dropped=self._dropped,
        )
        self.streams = Streams(self._link, settings)
        self.state = State(self._link)

    async def open(self) -> None:
        """Connect."""
        await self._link.open()
        self.streams.open()

    async def aclose(self) -> None:
        """From this very moment the sink is not called any more."""
        self._sink = None
        await self.streams.aclose()
        await self._link.aclose()

    async def publish(self, topic: str, payload: bytes) -> None:
        """Store for a moment, which publishes.

        A plain publication of NATS would be cheaper. But those of two nodes would meet subscribers in different
        orders, and the contract says that there is one: so all go through the one stream that has an order.
        """
        await self._link.store(self._link.subjects.passing(topic), payload, ttl=0.0)

    # -- subscriptions

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Returns when the server that publishes knows of it."""
        async with self._link.using() as connection:
            try:
                while not self._confirmed.issuperset(topics):
                    for topic in topics:
                        # Between looking and noting nothing is waited for (see Connection): nobody comes between.
                        if topic not in self._topics:
                            self._topics[topic] = await self._listen(connection, topic)
                    await self._link.barrier(connection)
                    self._confirmed.update(topic for topic in topics if topic in self._topics)
            except BaseException:
                # The hub is told that it failed, and will not end it. Another call may have had more luck.
                await self.unsubscribe([topic for topic in topics if topic not in self._confirmed])
                raise

    async def unsubscribe(self, topics: Sequence[str]) -> None:
        """Without a connection there is nothing to end: the next one begins with what is left."""
        for topic in topics:
            self._confirmed.discard(topic)
            subscription = self._topics.pop(topic, None)
            if subscription is not None:
                await Connection.ignore(subscription)

    async def _subscribe_again(self, connection: Connection) -> None:
        """A connection is new: have it hear what the one before heard."""
        for topic in tuple(self._topics):
            self._topics[topic] = await self._listen(connection, topic)
        await self._link.barrier(connection)

    async def _listen(self, connection: Connection, topic: str) -> Subscription:
        return await connection.listen(self._link.subjects.out(topic), self._receiver(topic))

    def _receiver(self, topic: str) -> Callable[[Msg], Awaitable[None]]:
        async def receive(message: Msg) -> None:
            if self._sink is None or topic not in self._topics:
                return
            try:
                found = self._carried(topic, message)
            except Exception as error:  # it may be anything; nats-py would only tell its log
                logger.warning("a message of topic %r is none of ours, and passed over: %r", topic, error)
                self._interrupted((topic,))
                return
            for payload, position in found:
                self._deliver(topic, payload, position)

        return receive

    # -- what comes in

    def _carried(self, topic: str, message: Msg) -> list[tuple[bytes, Position | None]]:
        """The payloads of a message, and their positions: the last token of its subject says what it is.

        Raises all sorts of things for one that is none of ours.
        """
        kind = (message.headers or {})["Nats-Subject"].rpartition(".")[2]
        if kind == "pass":
            return [(message.data, None)]
        if kind == "log":
            record = Record.decode(message.data)
            self.streams.saw(topic, stored(message), record)
            return [
                (entry.payload, Position(record.epoch, offset))
                for offset, entry in enumerate(record.entries, record.first)
            ]
        found = Fields.decode(message.data)
        return [] if found.payload is None else [(found.payload, found.position)]

    def _deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        if self._sink is None:  # the one before has closed us
            return
        try:
            self._sink.deliver(topic, payload, position)
        except Exception:
            logger.exception("a hub failed on a payload of topic %r; it is told to read again", topic)
            self._interrupted((topic,))

    def _interrupted(self, topics: Sequence[str]) -> None:
        if self._sink is None or not topics:
            return
        try:
            self._sink.interrupted(topics)
        except Exception:
            logger.exception("a hub failed to note that it may have missed something")

    def _dropped(self, subscription: Subscription) -> None:
        """nats-py had to drop a payload, because this process was too slow to take it."""
        topics = [topic for topic, found in self._topics.items() if found is subscription]
        logger.warning("payloads of %d topics were dropped: this process is too slow", len(topics))
        self._interrupted(topics)
