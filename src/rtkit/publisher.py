"""Publishing: what a hub does for its handlers, and what a worker without a hub can do too (B8)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Protocol

from msgspec import Raw

from .brokers import Broker, open_url
from .brokers.base import keeps_streams
from .clock import Clock
from .errors import InvalidMessage, NotSupported
from .messages import History, Published
from .position import Position
from .primitives.clocks import LoopClock
from .schema import Schema
from .wire import Envelope

__all__ = ["Declarations", "Publisher", "publish", "topic_of"]

#: Bytes of one message at the most, unless a room or a hub says otherwise (T8).
MAX_PUBLICATION = 1024 * 1024


def topic_of(room: str) -> str:
    """The broker topic of a room."""
    return f"room:{room}"


class Publishable(Protocol):
    """A declared family, as far as publishing needs it."""

    @property
    def schema(self) -> Schema: ...
    @property
    def history(self) -> History | None: ...
    @property
    def max_publication(self) -> int | None: ...


class Declarations(Protocol):
    """Anything that knows which rooms are declared: a router, a hub."""

    def lookup(self, room: str) -> tuple[Publishable, Mapping[str, str]]:
        """The family and parameters of a room; raises :class:`~rtkit.errors.UnknownRoom`."""
        ...


async def publish(
    broker: Broker,
    family: Publishable,
    room: str,
    data: bytes,
    *,
    time: float,
    key: str | None = None,
    user: str = "",
    client: str = "",
    limit: int = MAX_PUBLICATION,
) -> Published:
    """Publish encoded *data* into a room: into its stream if it has one, else to whoever is there.

    :param limit: bytes at the most, unless the room has a bound of its own.
    :raises InvalidMessage: when it is larger than *limit*.
    :raises BrokerUnavailable: nothing was stored.
    :raises PublishUnknown: it may have been stored; repeat with the same key.
    """
    limit = family.max_publication or limit
    if len(data) > limit:
        raise InvalidMessage(f"a message of {len(data):,} bytes; at most {limit:,} are allowed")
    payload = Envelope(v=1, data=Raw(data), time=time, user=user, client=client).encode()
    topic = topic_of(room)
    if family.history is None:
        await broker.publish(topic, payload)
        return Published(None)
    if not keeps_streams(broker):
        raise NotSupported(
            f"{type(broker).__name__} keeps no history; room {room!r} needs a broker with streams"
        )
    appended = await broker.append(
        topic,
        payload,
        history=family.history,
        # Keys are scoped to room and user; a line feed cannot be part of a user id.
        key=None if key is None else f"{user}\n{key}",
        durability=family.history.durability,
    )
    return Published(appended.position, appended.duplicate)


class Publisher:
    """Publishes from outside a hub: a worker, a script, another service.

    It needs the broker the hubs use, and the router that declares the rooms, nothing else::

        async with Publisher("redis://…", router) as publisher:
            await publisher.publish("user:ann", Notice("your export is ready"))

    The connection is opened by ``async with`` or by the first publish.

    :param broker: a URL, or a broker of one's own making.
    :param router: the declarations.
    :param clock: for time stamps; the system's unless given.
    """

    def __init__(self, broker: str | Broker, router: Declarations, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or LoopClock()
        self._broker = open_url(broker, clock=self._clock) if isinstance(broker, str) else broker
        self._router = router
        self._open = False
        self._opening = asyncio.Lock()

    async def publish(self, room: str, message: object, *, key: str | None = None) -> Published:
        """Publish one message.

        :param key: makes it safe to repeat within the broker's dedupe window (H7).
        :raises UnknownRoom: for a room nobody declared.
        :raises InvalidMessage: for a type the room does not publish, or a message too large: of more than 1 MiB,
            unless the room has a bound of its own.
        :raises BrokerUnavailable: nothing was stored.
        :raises PublishUnknown: it may have been stored; repeat with the same key. So does cancelling.
        """
        family, _ = self._router.lookup(room)
        data = family.schema.encode(message)
        await self._ensure_open()
        return await publish(self._broker, family, room, data, time=self._clock.time(), key=key)

    async def aclose(self) -> None:
        """Let go of the broker; idempotent."""
        self._open = False
        await self._broker.aclose()

    async def __aenter__(self) -> Publisher:
        await self._ensure_open()
        return self

    async def _ensure_open(self) -> None:
        async with self._opening:
            if not self._open:
                await self._broker.open(_NoSink())
                self._open = True

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Publisher {'open' if self._open else 'closed'} on {self._broker!r}>"


class _NoSink:
    """A publisher subscribes to nothing."""

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Never called."""

    def interrupted(self, topics: Iterable[str]) -> None:
        """Never called."""
