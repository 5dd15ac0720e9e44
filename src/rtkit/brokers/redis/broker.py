"""The broker on Redis or Valkey: topics become channels, and streams and state what the scripts make of them.

Nothing is kept here but what was subscribed to. What a hub hears comes back from Redis, its own publications too, so
that all hubs hear the same in the same order (H2).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, final
from urllib.parse import parse_qsl, urlencode

from ...clock import Clock
from ...errors import NotRunning, UsageError, WrongLoop
from ...primitives.clocks import LoopClock
from ...primitives.tasks import Tasks
from ..base import MAX_PAYLOAD, Sink
from .commands import Commands, RedisStatistics
from .frames import Foreign, pack, unpack
from .listener import Listener
from .names import Names, tag_of
from .servers import Servers, servers_from_client, servers_from_url
from .shared import Shared
from .state import State
from .streams import ACT, Streams

__all__ = ["RedisBroker"]

logger = logging.getLogger("rtkit.brokers.redis")

# Seconds between complaints about frames that are not ours.
_COMPLAINT: Final = 60.0
# Options of a URL that are ours, and what makes them of a text; all others are redis-py's.
_OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "prefix": str,
    "dedupe_window": float,
    "patience": float,
    "replicas": int,
    "wait_timeout": float,
    "max_payload": int,
}


@final
class RedisBroker(Streams, State):
    """Carries, numbers and keeps messages in Redis or Valkey, 7.0 and later; implements all three broker protocols.

    Standalone, behind Sentinels, or a Cluster; no restart is needed when it was away (B4).

    :param url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` with ``host:port/database``;
        ``redis+sentinel://host:port,host:port/service``; ``redis+cluster://host:port,host:port``.
    :param client: instead of it, a client of redis-py's ``redis.asyncio`` that the application has already. Its
        connections are left alone: ours are made like them.
    :param prefix: what all keys and channels begin with; hubs that share it are one cluster.
    :param dedupe_window: seconds an idempotency key is remembered (H7).
    :param patience: seconds within which a call succeeds or fails while Redis is away or silent.
    :param replicas: how many have to have it at durability ``replicated`` (B7).
    :param wait_timeout: seconds they are given.
    :param max_payload: bytes of a payload.
    :param clock: for patience and probes; what expires goes by the clock of Redis.
    :raises ~rtkit.errors.UsageError: for a URL, client or option that cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: Any = None,
        prefix: str = "rt",
        dedupe_window: float = 300.0,
        patience: float = 2.0,
        replicas: int = 1,
        wait_timeout: float = 1.0,
        max_payload: int = MAX_PAYLOAD,
        clock: Clock | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise UsageError("RedisBroker takes a URL, or client=…")
        for name, value in (
            ("dedupe_window", dedupe_window),
            ("patience", patience),
            ("wait_timeout", wait_timeout),
        ):
            if not 0 < value < math.inf:
                raise UsageError(f"RedisBroker({name}=…) is positive seconds, not {value!r}")
        if wait_timeout >= patience:
            raise UsageError(
                f"RedisBroker(wait_timeout={wait_timeout!r}) has to be less than patience={patience!r}"
            )
        if dedupe_window < 2 * patience:
            raise UsageError(
                f"RedisBroker(dedupe_window={dedupe_window!r}) has to be twice patience={patience!r}: within that "
                "time what may have been done is tried again"
            )
        if replicas < 1:
            raise UsageError(f"RedisBroker(replicas=…) is at least 1, not {replicas!r}")
        if not 0 < max_payload <= ACT:
            raise UsageError(f"RedisBroker(max_payload=…) is 1 to {ACT:,} bytes, not {max_payload!r}")
        self.dedupe_window = dedupe_window
        self.patience = patience
        self.replicas = replicas
        self.wait_timeout = wait_timeout
        self.max_payload = max_payload
        self._clock: Clock = clock or LoopClock()
        # They remember where things are, and with each open() they look anew.
        self._find: Callable[[], Servers] = (
            (lambda: servers_from_client(client)) if url is None else (lambda: servers_from_url(url))
        )
        servers = self._find()
        self._label = repr(servers)
        self._publish = "SPUBLISH" if servers.sharded else "PUBLISH"
        self._names = Names(prefix, servers.database)
        self._counters = RedisStatistics()
        self._complained = -math.inf
        self._life = 0  # another number after each open() and aclose()
        self._topics: dict[bytes, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sink: Sink | None = None
        self._commands: Commands | None = None
        self._listener: Listener | None = None
        self._tasks = Tasks(name="redis", clock=self._clock)
        self._reads = Shared(self._tasks, self._shared)

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> RedisBroker:
        """For :func:`rtkit.brokers.open_url`: options stand in the query, beside those of redis-py.

        ``redis://host:6379/0?prefix=chat&dedupe_window=600&client_name=web``

        :raises ~rtkit.errors.UsageError: for a URL or an option that cannot be used.
        """
        ours: dict[str, Any] = {}
        theirs: list[tuple[str, str]] = []
        address, mark, query = url.partition("?")
        for name, value in parse_qsl(query, keep_blank_values=True):
            convert = _OPTIONS.get(name)
            if convert is None:
                theirs.append((name, value))
                continue
            try:
                ours[name] = convert(value)
            except ValueError:
                raise UsageError(f"{name}= in the URL is a number, not {value!r}") from None
        return cls(address + (mark + urlencode(theirs) if theirs else ""), clock=clock, **ours)

    # -- beginning and end ----------------------------------------------------------------------

    async def open(self, sink: Sink) -> None:
        """Connect, and begin to listen.

        :raises ~rtkit.errors.UsageError: when this broker is open already.
        :raises ~rtkit.errors.BrokerUnavailable: when nobody is there within *patience*.
        """
        if self._loop is not None and not self._loop.is_closed():
            raise UsageError(f"{self!r} is open already; give each hub a RedisBroker of its own")
        self._forget()
        self._loop, life = asyncio.get_running_loop(), self._life
        servers = self._find()
        commands = Commands(
            servers,
            clock=self._clock,
            patience=self.patience,
            replicas=self.replicas,
            wait_timeout=self.wait_timeout,
            counters=self._counters,
        )
        listener = Listener(
            servers,
            commands,
            deliver=self._deliver,
            interrupted=self._interrupted,
            tag_of=tag_of,
            probe_channel=self._names.probe,
            clock=self._clock,
            counters=self._counters,
        )
        try:
            await commands.open()
            await listener.open()
            if self._life != life:
                raise NotRunning(f"{self!r} was closed while it was being opened")
        except BaseException:
            if self._life == life:  # else it is closed already, and may even be opening again
                self._forget()
            await _close(listener, commands)
            raise
        self._tasks = Tasks(name="redis", clock=self._clock)
        self._reads = Shared(self._tasks, self._shared)
        self._commands, self._listener, self._sink = commands, listener, sink

    async def aclose(self) -> None:
        """Let go of everything; what is in Redis stays."""
        loop, commands, listener, tasks = self._loop, self._commands, self._listener, self._tasks
        if loop is None:
            return
        if loop.is_closed():  # it ended without closing us: nothing of it can be waited for
            self._forget()
            return
        if loop is not asyncio.get_running_loop():
            raise WrongLoop(f"{self!r} runs in another event loop, and is closed there")
        self._forget()
        if commands is not None and listener is not None:
            try:
                await tasks.aclose(timeout=self.patience)
            finally:
                await _close(listener, commands)

    def _shared(self) -> None:
        self._counters.reads_shared += 1

    def _forget(self) -> None:
        self._loop = self._sink = self._commands = self._listener = None
        self._topics = {}
        self._life += 1

    # -- publish and subscribe ------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes) -> None:
        """See :meth:`.Broker.publish`."""
        commands = self._opened()
        self._check(payload)
        place = self._names(topic)
        # Never again after an unknown outcome: a payload is never delivered twice by one publish.
        await commands.execute(place.tag, self._publish, place.channel, pack(payload), again=False)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.subscribe`."""
        self._opened()
        assert self._listener is not None
        channels = {self._names(topic).channel: topic for topic in topics}
        self._topics.update(channels)
        if channels:
            await self._listener.subscribe(tuple(channels))

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """See :meth:`.Broker.unsubscribe`."""
        self._opened()
        assert self._listener is not None
        channels = tuple({self._names(topic).channel: None for topic in topics})
        for channel in channels:
            self._topics.pop(channel, None)
        if channels:
            await self._listener.unsubscribe(channels)

    def _deliver(self, channel: bytes, frame: bytes) -> None:
        """Something came in on a channel; called by the listener."""
        topic, sink = self._topics.get(channel), self._sink
        if topic is None or sink is None:
            return
        try:
            payload, position = unpack(frame)
        except Foreign as foreign:
            self._complain(topic, foreign)
            self._missed(channel)
            return
        try:
            sink.deliver(topic, payload, position)
        except Exception:
            logger.exception("a hub failed on a payload of topic %r; it is told to read again", topic)
            self._missed(channel)

    def _missed(self, channel: bytes) -> None:
        self._counters.interrupted += 1
        self._interrupted((channel,))

    def _interrupted(self, channels: Sequence[bytes]) -> None:
        """Something may have been missed on these channels; called by the listener."""
        sink = self._sink
        topics = [topic for channel in channels if (topic := self._topics.get(channel)) is not None]
        if sink is None or not topics:
            return
        try:
            sink.interrupted(topics)
        except Exception:
            logger.exception(
                "a hub failed to note that it may have missed something on %d topics", len(topics)
            )

    def _complain(self, topic: str, foreign: Foreign) -> None:
        self._counters.foreign_frames += 1
        now = self._clock.monotonic()
        if now - self._complained >= _COMPLAINT:
            self._complained = now
            logger.warning("on the channel of topic %r somebody else publishes: %s", topic, foreign)

    # -- seeing inside --------------------------------------------------------------------------

    def statistics(self) -> RedisStatistics:
        """What was counted since this broker was made."""
        return replace(self._counters)

    def __repr__(self) -> str:
        return f"<RedisBroker {'open' if self._commands is not None else 'closed'} on {self._label}>"


async def _close(listener: Listener, commands: Commands) -> None:
    try:
        await listener.aclose()
    finally:
        await commands.aclose()
