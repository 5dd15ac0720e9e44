"""One connection that hears what is published, and notices when it does not.

Redis tells nobody what he missed. So the rule here is one: whoever was told that a channel is subscribed is told
``interrupted`` for each time in which it may not have been, and only once it is subscribed again: what he then reads
has no hole in front of what he hears. Such a time begins when

- the connection is lost, or given up because nothing came back for a while;
- the slot of a channel moves to another server of the Cluster, which the old one says by a ``sunsubscribe`` that nobody
  asked for, and by nothing else; or a look at the Cluster shows it;
- the connection has gone deaf: alive, answering, and not hearing. Every few seconds a message is published through the
  connection for commands to a channel of this connection's own. After two in a row that did not come back it is given
  up (B5), and the server looked up anew: it may be a replica that was cut off, which no ping would tell.

Confirmations come in order: what was asked for is in a queue, and the next one belongs to its head. Anything that
does not fit means that we and the server understand each other no longer; then the connection begins anew,
which is always safe. Nothing that a reply or a callback brings ends an ear: what cannot be helped by going on is
helped by a new connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, final

from ...clock import Clock
from ...errors import BrokerUnavailable, NotRunning, Unavailable
from ...primitives.backoff import Backoff
from ...primitives.clocks import sleep
from ...primitives.tasks import Tasks
from .commands import Commands
from .lines import Line, Lost, pack
from .links import STEADY, RedisStatistics
from .refusals import Verdict, describe, elsewhere, judge, refusal
from .shifts import Shift
from .topology import Server, Servers, connect_patiently, slot_of

__all__ = ["Ear", "EarOwner", "Subscription", "Waiter"]

_log: Final = logging.getLogger("rtkit.brokers.redis")

# Channels in one command.
_BATCH: Final = 500

# Seconds between two messages to ourselves, and how many may be missed in a row.
_PROBE: Final = 5.0
_PROBES_MISSED: Final = 2

# Messages after which others get a turn.
_TURN: Final = 64


class EarOwner(Protocol):
    """What an ear has to know of who has it."""

    servers: Servers
    commands: Commands
    clock: Clock
    patience: float
    random: Callable[[], float]
    counters: RedisStatistics
    tasks: Tasks
    name: str
    tag_of: Callable[[bytes], str]
    probe_channel: Callable[[str], bytes]

    def hear(self, channel: bytes, content: bytes) -> None:
        """A message came."""
        ...

    def interrupt(self, channels: Sequence[bytes]) -> None:
        """These may have missed something, and are heard again."""
        ...

    def lies_at(self, tag: str, server: Server) -> bool:
        """Whether *server* has *tag*, as far as is known."""
        ...

    def not_here(self, subscription: Subscription, *, moved: bool, failure: BrokerUnavailable | None) -> None:
        """A server would not have it: because it is elsewhere, for good reasons, or for now."""
        ...

    def find_home(self, subscription: Subscription) -> None:
        """Nobody hears it any more."""
        ...


@final
class Subscription:
    """A channel that somebody wants to hear."""

    __slots__ = ("bounced", "channel", "confirmed", "ear", "promised", "waiters")

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self.ear: Ear | None = None
        self.confirmed = False  # the server said so, over the present connection
        self.promised = False  # somebody was told
        self.bounced = False  # it was sent on by a server, and has not been confirmed since
        self.waiters: list[Waiter] = []


@final
class Waiter:
    """Somebody who waits for several subscriptions."""

    __slots__ = ("failure", "future", "missing")

    def __init__(self) -> None:
        self.missing: set[Subscription] = set()
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: BrokerUnavailable | None = None

    def add(self, subscription: Subscription) -> None:
        if subscription not in self.missing:
            self.missing.add(subscription)
            subscription.waiters.append(self)

    def confirmed(self, subscription: Subscription) -> None:
        self.missing.discard(subscription)
        if not self.missing and not self.future.done():
            self.future.set_result(None)

    def fail(self, failure: BrokerUnavailable) -> None:
        self.failure = self.failure or failure
        if not self.future.done():
            self.future.set_result(None)


@final
class _Request:
    """A command that was sent and is not confirmed yet, for some of its channels."""

    __slots__ = ("kind", "sent_at", "subscriptions")

    def __init__(self, kind: bytes, subscriptions: Iterable[Subscription], sent_at: float) -> None:
        self.kind = kind
        self.subscriptions = deque(subscriptions)
        self.sent_at = sent_at


@final
class Ear:
    """The connection to one server that hears, and what it has to hear."""

    def __init__(self, owner: EarOwner, server: Server) -> None:
        self._owner = owner
        self._clock = owner.clock
        self.server = server
        self._sharded = owner.servers.sharded
        self._subscribe = b"ssubscribe" if self._sharded else b"subscribe"
        self._unsubscribe = b"sunsubscribe" if self._sharded else b"unsubscribe"
        self.subscriptions: dict[bytes, Subscription] = {}
        self._lost: set[Subscription] = set()  # were heard, and are not yet again
        self._missed: list[bytes] = []  # are again; their hearers are told when _lost is empty
        self._unsent: deque[tuple[bytes, Subscription]] = deque()
        self._requests: deque[_Request] = deque()
        self._work = asyncio.Event()
        self.up = asyncio.Event()
        self._nudged = asyncio.Event()
        self._shift = Shift(self._clock, owner.patience, self._waits_since, f"listening at {server}")
        self._last_reply = 0.0
        self._probe: Subscription | None = None
        self._probe_tag = ""
        self._probes_heard = 0
        self._down_since = self._clock.monotonic()
        self.why = "it does not answer"
        self._task = owner.tasks.spawn(self._live, name=f"redis: subscriptions at {server}")

    # -- what to hear

    def add(self, subscription: Subscription) -> None:
        """Hear this one too."""
        subscription.ear = self
        subscription.confirmed = False
        self.subscriptions[subscription.channel] = subscription
        if subscription.promised:
            self._lost.add(subscription)
        self._send(self._subscribe, subscription)

    def remove(self, subscription: Subscription, *, tell: bool = True) -> None:
        """Hear this one no more.

        :param tell: the server too.
        """
        subscription.ear = None
        subscription.confirmed = False
        if self.subscriptions.get(subscription.channel) is subscription:
            del self.subscriptions[subscription.channel]
            if tell:
                self._send(self._unsubscribe, subscription)
        self._lost.discard(subscription)
        self._tell_missed()

    def _send(self, kind: bytes, subscription: Subscription) -> None:
        if self.up.is_set():
            self._unsent.append((kind, subscription))
            self._work.set()

    # -- living

    def close(self) -> None:
        """The server has nothing any more."""
        self._task.cancel()

    async def _live(self) -> None:
        backoff = Backoff(minimum=0.05, maximum=2.0, random=self._owner.random)
        first = True
        while True:
            line = await self._connect(backoff, first)
            connected_at = self._clock.monotonic()
            try:
                self._is_up(first)
                self.why = await self._serve(line)
            except Exception as bug:  # what the owner's functions raise must not end it either
                _log.error("redis: listening at %s failed on its own", self.server, exc_info=bug)
                self.why = "an error of our own"
            finally:
                first = False
                line.close()
                self._is_down()
            _log.warning("redis: lost the connection to %s for subscriptions: %s", self.server, self.why)
            self._owner.commands.refresh_soon()
            if self._clock.monotonic() - connected_at > STEADY:
                backoff.reset()  # and not before: one that accepts and hangs up is no server

    async def _connect(self, backoff: Backoff, first: bool) -> Line:
        return await connect_patiently(
            self._owner.servers, self.server, "subscriptions", clock=self._clock, patience=self._owner.patience,
            backoff=backoff, failed=self._failed, at_once=first, nudged=self._nudged,
        )  # fmt: skip

    def _failed(self, why: str) -> None:
        self.why = why
        self._owner.commands.refresh_soon()

    async def _serve(self, line: Line) -> str:
        """Listen until the line is lost; returns why."""
        return await self._shift.work(
            (f"redis: messages from {self.server}", self._read(line)),
            (f"redis: subscribing at {self.server}", self._write(line)),
            (f"redis: probes of {self.server}", self._listen_to_itself()),
        )

    def _is_up(self, first: bool) -> None:
        away = self._clock.monotonic() - self._down_since
        self.up.set()
        self._owner.commands.nudge(self.server)  # who is told of an interruption wants to read at once
        self._last_reply = self._clock.monotonic()
        self._choose_probe()
        for subscription in self.subscriptions.values():
            self._unsent.append((self._subscribe, subscription))
        self._work.set()
        if not first:
            self._owner.counters.listener_reconnections += 1
        if not first or away > self._owner.patience:
            _log.warning("redis: connected to %s for subscriptions, after %.1f s", self.server, away)

    def _is_down(self) -> None:
        self.up.clear()
        self._unsent.clear()
        self._requests.clear()
        self._missed.clear()  # they are among the lost again
        self._probe = None
        self._down_since = self._clock.monotonic()
        for subscription in self.subscriptions.values():
            subscription.confirmed = False
            if subscription.promised:
                self._lost.add(subscription)

    # -- asking

    async def _write(self, line: Line) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while pieces := self._next_batch():
                await line.send(pieces)

    def _next_batch(self) -> list[bytes]:
        if not self._unsent:
            return []
        kind = self._unsent[0][0]
        batch: list[Subscription] = []
        while self._unsent and self._unsent[0][0] == kind and len(batch) < _BATCH:
            batch.append(self._unsent.popleft()[1])
        groups: dict[int, list[Subscription]] = {}
        for subscription in batch:
            # A command of a Cluster may name channels of one slot only.
            slot = slot_of(self._owner.tag_of(subscription.channel)) if self._sharded else 0
            groups.setdefault(slot, []).append(subscription)
        now = self._clock.monotonic()
        pieces: list[bytes] = []
        for group in groups.values():
            self._requests.append(_Request(kind, group, now))
            pieces.append(pack(kind, *(each.channel for each in group)))
        self._shift.asked()
        return pieces

    def _waits_since(self) -> float | None:
        return max(self._last_reply, self._requests[0].sent_at) if self._requests else None

    # -- hearing

    async def _read(self, line: Line) -> None:
        turn = 0
        while True:
            reply = await line.read()
            self._last_reply = self._clock.monotonic()
            if isinstance(reply, Exception):
                self._refused(reply)
            elif isinstance(reply, list) and len(reply) == 3:
                kind, channel, content = reply
                if kind in (b"message", b"smessage"):
                    self._hear(channel, content)
                else:
                    self._confirmed(kind, channel)
            else:
                raise Lost(f"it said what nobody asked for: {reply!r:.80}")
            turn += 1
            if turn >= _TURN:
                turn = 0
                await asyncio.sleep(0)  # reading what is there already never waits

    def _hear(self, channel: bytes, content: bytes) -> None:
        if channel in self.subscriptions:
            self._owner.hear(channel, content)
        elif self._probe is not None and channel == self._probe.channel:
            self._probes_heard += 1

    def _confirmed(self, kind: bytes, channel: bytes) -> None:
        head = self._requests[0] if self._requests else None
        if head is None or head.kind != kind or head.subscriptions[0].channel != channel:
            if kind != b"sunsubscribe":
                raise Lost(f"it said what nobody asked for: {kind!r:.20} of {channel!r:.60}")
            self._taken_away(channel)
            return
        subscription = head.subscriptions.popleft()
        if not head.subscriptions:
            self._requests.popleft()
        if kind == self._subscribe and self.subscriptions.get(channel) is subscription:
            self._is_heard(subscription)

    def _is_heard(self, subscription: Subscription) -> None:
        subscription.confirmed = subscription.promised = True
        subscription.bounced = False
        waiters, subscription.waiters = subscription.waiters, []
        for waiter in waiters:
            waiter.confirmed(subscription)
        if subscription in self._lost:
            self._lost.discard(subscription)
            self._missed.append(subscription.channel)
            self._tell_missed()

    def _tell_missed(self) -> None:
        """Once all that was lost is heard again, say so in one go."""
        if self._missed and not self._lost:
            missed, self._missed = self._missed, []
            self._owner.interrupt(missed)

    def _taken_away(self, channel: bytes) -> None:
        """Nobody asked: the slot of the channel has gone to another server."""
        if self._probe is not None and channel == self._probe.channel:
            self._probe = None
        subscription = self.subscriptions.get(channel)
        if subscription is not None:
            self.remove(subscription, tell=False)
            self._owner.find_home(subscription)

    def _refused(self, error: Exception) -> None:
        """The head of the queue was refused as a whole."""
        if not self._requests:
            if self._sharded and judge(error) is Verdict.MOVED:
                # We gave up a channel while the server took it away: it told us, and answers us too.
                return
            raise Lost(describe(error))
        request = self._requests.popleft()
        if request.kind != self._subscribe:
            return  # what was not subscribed, or has moved, needs no end
        verdict = judge(error)
        if verdict is Verdict.ELSEWHERE:
            raise Lost(describe(error))
        place = elsewhere(error) if verdict is Verdict.MOVED and self._sharded else None
        if place is not None:
            self._owner.servers.moved(*place, self.server)
        passing = place is not None or verdict in (Verdict.SOON, Verdict.ASK)
        failure = None if passing else refusal(error, self.server)
        for subscription in request.subscriptions:
            if subscription is self._probe:
                self._probe = None
            if self.subscriptions.get(subscription.channel) is subscription:
                self.remove(subscription, tell=False)
                self._owner.not_here(subscription, moved=place is not None, failure=failure)

    # -- listening to itself

    def _choose_probe(self) -> None:
        tag = self._owner.servers.tag_on(self.server, self._owner.name)
        if tag is None:
            self._probe = None
            return
        self._probe_tag = tag
        self._probe = Subscription(self._owner.probe_channel(tag))
        self._send(self._subscribe, self._probe)

    async def _listen_to_itself(self) -> None:
        missed = 0
        number = 0
        heard = self._probes_heard
        sent = False
        while True:
            await sleep(self._clock, _PROBE)
            if sent and self._probe is not None:
                missed = missed + 1 if self._probes_heard == heard else 0
                if missed:
                    self._owner.counters.probes_missed += 1
                if missed >= _PROBES_MISSED:
                    raise Lost(f"it is deaf: {missed} messages to ourselves did not come back")
            heard = self._probes_heard
            sent = False
            if self._probe is None or not self._owner.lies_at(self._probe_tag, self.server):
                if self._probe is not None:
                    self._send(self._unsubscribe, self._probe)
                self._choose_probe()
                continue
            number += 1
            sent = True
            try:
                await self._owner.commands.execute(
                    self._probe_tag, "SPUBLISH" if self._sharded else "PUBLISH", self._probe.channel, str(number),
                    again=False,
                )  # fmt: skip
            except (Unavailable, NotRunning) as error:
                # It counts as missed: what cannot be tried cannot be trusted.
                _log.debug("redis: the probe of %s was not sent: %s", self.server, error)

    def __repr__(self) -> str:
        return f"<Ear at {self.server}, {len(self.subscriptions)} channels{'' if self.up.is_set() else ', down'}>"
