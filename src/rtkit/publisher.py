"""Publishing: what a hub does for its handlers, and what a worker without a hub can do too (B8)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Protocol

from msgspec import Raw

from .brokers import Broker, open_url
from .brokers.base import keeps_streams
from .clock import Clock
from .errors import (
    BrokerUnavailable,
    InvalidMessage,
    NotSupported,
    PublishUnknown,
    UsageError,
    WrongLoop,
    WrongProcess,
)
from .messages import History, Published
from .position import Position
from .primitives.clocks import LoopClock, timeout
from .schema import Schema
from .wire import Envelope
from .wire.envelope import FORMATS, OLDEST

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


def _seal(envelope: Envelope) -> bytes:
    """Without a hub nobody knows what the nodes read; the older version they all do (W5)."""
    return FORMATS.seal(envelope, OLDEST)


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
    seal: Callable[[Envelope], bytes] = _seal,
) -> Published:
    """Publish encoded *data* into a room: into its stream if it has one, else to whoever is there.

    :param limit: bytes at the most, unless the room has a bound of its own.
    :param seal: makes bytes of the envelope, in a version that all nodes read.
    :raises InvalidMessage: when it is larger than *limit*.
    :raises BrokerUnavailable: nothing was stored.
    :raises PublishUnknown: it may have been stored; repeat with the same key.
    """
    limit = family.max_publication or limit
    if len(data) > limit:
        raise InvalidMessage(f"a message of {len(data):,} bytes; at most {limit:,} are allowed")
    payload = seal(Envelope(v=OLDEST, data=Raw(data), time=time, user=user, client=client))
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

    The connection is opened by ``async with`` or by the first publish, and again by the first one after
    :meth:`aclose`; in another event loop, if need be. It is this process's: after a fork, the child opens its own.
    From code without an event loop use :class:`rtkit.sync.Publisher`.

    :param broker: a URL, or a broker of one's own making.
    :param router: the declarations.
    :param timeout: seconds that a publication may take, with opening the connection if there is none; None for as long
        as the broker takes.
    :param clock: for time stamps and time limits; the system's unless given.
    :raises UsageError: for a URL whose broker is not installed or refuses it, and a time limit that is none.
    """

    def __init__(
        self,
        broker: str | Broker,
        router: Declarations,
        *,
        timeout: float | None = 10.0,
        clock: Clock | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise UsageError(f"Publisher(timeout=…) is a number of seconds above 0 or None, not {timeout!r}")
        self._clock: Clock = clock or LoopClock()
        self._url = broker if isinstance(broker, str) else None
        self._broker = open_url(broker, clock=self._clock) if isinstance(broker, str) else broker
        self._router = router
        self._timeout = timeout
        self._home: _Home | None = None

    async def publish(self, room: str, message: object, *, key: str | None = None) -> Published:
        """Publish one message.

        :param key: makes it safe to repeat within the broker's dedupe window (H7).
        :raises UnknownRoom: for a room nobody declared.
        :raises InvalidMessage: for a type the room does not publish, or a message too large: of more than 1 MiB,
            unless the room has a bound of its own.
        :raises BrokerUnavailable: nothing was stored.
        :raises PublishUnknown: it may have been stored, as the time was over, for example; repeat with the same key.
            So does cancelling.
        :raises WrongLoop: while it is open in another event loop.
        :raises WrongProcess: when it was opened before a fork, and the broker is not given as a URL.
        """
        return await self._publish(room, *self._encoded(room, message), key)

    def _encoded(self, room: str, message: object) -> tuple[Publishable, bytes]:
        """What can be told to be wrong before anything is opened."""
        family, _ = self._router.lookup(room)
        return family, family.schema.encode(message)

    async def _publish(self, room: str, family: Publishable, data: bytes, key: str | None) -> Published:
        begun = False
        limit = timeout(self._clock, self._timeout)
        try:
            async with limit:
                broker = await self._opened()
                begun = True
                return await publish(broker, family, room, data, time=self._clock.time(), key=key)
        except TimeoutError:
            if not limit.expired():
                raise
        if begun:
            raise PublishUnknown(f"the broker did not answer within {self._timeout:g} s")
        raise BrokerUnavailable(f"the broker could not be reached within {self._timeout:g} s")

    async def aclose(self) -> None:
        """Let go of the broker; idempotent. What is being published meanwhile may fail with ``PublishUnknown``.

        Cancellation: safe; call again to finish.

        :raises WrongLoop: while it is open in another event loop.
        """
        home = self._home
        if home is None:
            return
        if not home.here():
            self._move_out(home)
            return
        async with home.lock:
            if home.open:
                await self._broker.aclose()
                home.open = False

    async def _opened(self) -> Broker:
        """The broker, open in the running event loop."""
        home = self._home
        if home is None or not home.here():
            if home is not None:
                self._move_out(home)
            home = self._home = _Home()
        async with home.lock:
            if not home.open:
                await self._open()
                home.open = True
            return self._broker

    async def _open(self) -> None:
        try:
            await self._broker.open(_NoSink())
        except UsageError:
            raise  # somebody else's, and open there
        except BaseException:
            await self._broker.aclose()
            raise

    def _move_out(self, home: _Home) -> None:
        """Leave an event loop, or a process, in which nothing can be closed any more."""
        if home.open or home.lock.locked():
            if home.alive():
                raise WrongLoop(
                    "this publisher is open in another event loop. Close it there first, or have a publisher for each; "
                    "from code without an event loop use rtkit.sync.Publisher"
                )
            if home.pid != os.getpid():
                home.bury(self._broker)
                if self._url is None:
                    raise WrongProcess(
                        f"this publisher was opened in process {home.pid}, which then forked: give it a URL, so that "
                        f"each process opens its own connection, or close it before the fork"
                    )
            if self._url is not None:
                self._broker = open_url(self._url, clock=self._clock)
        self._home = None

    async def __aenter__(self) -> Publisher:
        limit = timeout(self._clock, self._timeout)
        try:
            async with limit:
                await self._opened()
        except TimeoutError:
            if not limit.expired():
                raise
            raise BrokerUnavailable(f"the broker could not be reached within {self._timeout:g} s") from None
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        is_open = self._home is not None and self._home.open and self._home.pid == os.getpid()
        return f"<Publisher {'open' if is_open else 'closed'} on {self._broker!r}>"


class _Home:
    """Where a publisher is open, or being opened: an event loop of a process."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.lock = asyncio.Lock()
        self.open = False
        self._buried = False

    def here(self) -> bool:
        """Whether this is it."""
        return self.loop is asyncio.get_running_loop() and self.pid == os.getpid()

    def alive(self) -> bool:
        """Whether something can still be done there."""
        return self.pid == os.getpid() and not self.loop.is_closed()

    def bury(self, broker: Broker) -> None:
        """Have nothing of the parent's come to an end here: that would reach into what the parent goes on using."""
        if not self._buried:
            self._buried = True
            _buried.append((broker, self))


#: What was open when the process was forked. It is kept for ever, so that it is never finalized.
_buried: Final[list[object]] = []


class _NoSink:
    """A publisher subscribes to nothing."""

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Never called."""

    def interrupted(self, topics: Iterable[str]) -> None:
        """Never called."""
