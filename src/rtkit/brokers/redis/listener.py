"""Subscriptions: which channels there are to hear, and which ear hears each of them.

An ear (:mod:`.ears`) is the connection to one server that hears. Here it is decided which one has a channel: with one
server that is easily said. In a Cluster a channel lies in a slot, and slots move; who was heard at one server then
has to be found a new home, which is tried again and again, because for a moment servers contradict each other.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

from ...clock import Clock
from ...errors import BrokerUnavailable, NotRunning
from ...primitives.backoff import Backoff
from ...primitives.clocks import sleep, timeout
from ...primitives.tasks import Tasks
from .commands import Commands, RedisStatistics
from .ears import Ear, Subscription, Waiter
from .topology import Nowhere, Server, Servers

__all__ = ["Listener"]

_log: Final = logging.getLogger("rtkit.brokers.redis")


@final
class Listener:
    """Subscribes to channels, wherever they lie, and stays subscribed.

    :param servers: whom to talk to.
    :param commands: open, and on the same servers; probes go through it.
    :param deliver: a plain function, called with the channel and what came on it.
    :param interrupted: a plain function, called with channels that may have missed something and are heard
        again.
    :param tag_of: what decides where a channel lies.
    :param probe_channel: the channel for messages to ourselves that has a given tag.
    :param clock: what all waiting goes by.
    :param patience: seconds that a silent connection gets; those of *commands* unless given.
    :param random: draws from 0 to 1, for pauses.
    :param counters: where to count; those of *commands* unless given.
    """

    def __init__(
        self,
        servers: Servers,
        commands: Commands,
        *,
        deliver: Callable[[bytes, bytes], object],
        interrupted: Callable[[Sequence[bytes]], object],
        tag_of: Callable[[bytes], str],
        probe_channel: Callable[[str], bytes],
        clock: Clock,
        patience: float | None = None,
        random: Callable[[], float] = _random.random,
        counters: RedisStatistics | None = None,
    ) -> None:
        self.servers = servers
        self.commands = commands
        self._deliver = deliver
        self._interrupted = interrupted
        self.tag_of = tag_of
        self.probe_channel = probe_channel
        self.clock = clock
        self.patience = commands.patience if patience is None else patience
        self.random = random
        self.counters = commands.counters if counters is None else counters
        #: Ours alone: who else probes on the same server must not be taken for us.
        self.name = f"probe-{secrets.token_hex(6)}"
        self.tasks = Tasks(name="redis listener", clock=clock)
        self._subscriptions: dict[bytes, Subscription] = {}
        self._ears: dict[Server, Ear] = {}
        self._homeless: dict[bytes, Subscription] = {}
        self._rehoming: asyncio.Task[None] | None = None
        self._open = False
        self._silent_until: dict[str, float] = {}

    async def open(self) -> None:
        """Connect, where there is one server for everything; those of a Cluster are connected to when needed.

        Cancellation: safe; nothing stays behind.

        :raises BrokerUnavailable: when it is not there within *patience*.
        """
        self._open = True
        self.commands.on_moved.append(self._look_at_servers)
        try:
            if not self.servers.sharded:
                ear = self._ear(self.servers.primaries()[0])
                try:
                    async with timeout(self.clock, self.patience):
                        await ear.up.wait()
                except TimeoutError:
                    raise BrokerUnavailable(f"Redis at {ear.server} cannot be reached: {ear.why}") from None
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Drop all connections; nothing is called any more. Idempotent."""
        self._open = False
        if self._look_at_servers in self.commands.on_moved:
            self.commands.on_moved.remove(self._look_at_servers)
        closed = BrokerUnavailable("the connection to Redis was closed")
        for subscription in self._subscriptions.values():
            for waiter in subscription.waiters:
                waiter.fail(closed)
        await self.tasks.aclose()
        self._subscriptions.clear()
        self._homeless.clear()
        self._ears.clear()
        await asyncio.sleep(0)  # sockets close in the turn after they were told to

    async def subscribe(self, channels: Iterable[bytes]) -> None:
        """Have what comes on these channels delivered; returns when the servers have confirmed all of them.

        Cancellation: those that were not confirmed yet are forgotten.

        :raises BrokerUnavailable: when they do not confirm in time, or refuse; those not confirmed are forgotten.
        :raises NotRunning: before ``open`` and after ``aclose``.
        """
        if not self._open:
            raise NotRunning("the listener is not open")
        waiter = Waiter()
        try:
            for channel in channels:
                subscription = self._subscriptions.get(channel)
                if subscription is None:
                    subscription = self._subscriptions[channel] = Subscription(channel)
                    waiter.add(subscription)
                    self._place(subscription)
                elif not subscription.confirmed:
                    waiter.add(subscription)
            if waiter.missing:
                await self._wait(waiter)
        finally:
            self._forget(waiter)

    async def _wait(self, waiter: Waiter) -> None:
        while not waiter.future.done():
            before = len(waiter.missing)
            try:
                async with timeout(self.clock, self.patience):
                    await asyncio.wait([waiter.future])
            except TimeoutError:
                if len(waiter.missing) == before:
                    reasons = {
                        ear.why for each in waiter.missing if (ear := each.ear) and not ear.up.is_set()
                    }
                    why = "; ".join(sorted(reasons)) or f"no answer within {self.patience:g} s"
                    raise BrokerUnavailable(f"Redis did not confirm the subscription: {why}") from None
        if waiter.failure is not None:
            raise waiter.failure

    def _forget(self, waiter: Waiter) -> None:
        """Nobody waits any more; what nobody else wants is dropped."""
        for subscription in waiter.missing:
            if waiter in subscription.waiters:
                subscription.waiters.remove(waiter)
            if not subscription.promised and not subscription.waiters:
                self._drop(subscription)

    async def unsubscribe(self, channels: Iterable[bytes]) -> None:
        """End that; what is on its way may still come. Does not wait for the server, and cannot fail."""
        for channel in channels:
            subscription = self._subscriptions.get(channel)
            if subscription is not None:
                gone = BrokerUnavailable("it was unsubscribed meanwhile")
                for waiter in subscription.waiters:
                    waiter.fail(gone)
                self._drop(subscription)

    def _drop(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.channel) is subscription:
            del self._subscriptions[subscription.channel]
        self._homeless.pop(subscription.channel, None)
        if subscription.ear is not None:
            subscription.ear.remove(subscription)

    # -- for ears

    def hear(self, channel: bytes, content: bytes) -> None:
        """A message came. Whatever the callback raises, listening goes on."""
        if not self._open:
            return
        try:
            self._deliver(channel, content)
        except (Exception, asyncio.CancelledError) as error:  # nobody can cancel us in there
            self._complain("delivering", error)
            self.interrupt([channel])

    def interrupt(self, channels: Sequence[bytes]) -> None:
        """These may have missed something."""
        if not self._open:
            return
        self.counters.interrupted += len(channels)
        try:
            self._interrupted(channels)
        except (Exception, asyncio.CancelledError) as error:
            self._complain("telling of an interruption", error)

    def _complain(self, what: str, error: BaseException) -> None:
        """Say what does not work, once a minute."""
        now = self.clock.monotonic()
        if now >= self._silent_until.get(what, now):
            self._silent_until[what] = now + 60.0
            _log.error("redis: %s failed; listening goes on", what, exc_info=error)

    def lies_at(self, tag: str, server: Server) -> bool:
        """Whether *server* has *tag*, as far as is known."""
        try:
            return self.servers.server_of(tag) == server
        except Nowhere:
            return True

    def not_here(self, subscription: Subscription, *, moved: bool, failure: BrokerUnavailable | None) -> None:
        """A server would not have it."""
        if moved and not subscription.bounced:
            subscription.bounced = True
            self._place(subscription)
        elif failure is None or subscription.promised:
            if failure is not None:
                self._complain("subscribing again", failure)
            self.find_home(subscription)
        else:
            for waiter in subscription.waiters:
                waiter.fail(failure)

    def find_home(self, subscription: Subscription) -> None:
        """Find out where its channel is, and subscribe there; in a moment."""
        if not self._open:
            return
        self._homeless[subscription.channel] = subscription
        if self._rehoming is None:
            self._rehoming = self.tasks.spawn(self._rehome, name="redis: channels that moved")

    async def _rehome(self) -> None:
        backoff = Backoff(minimum=0.05, maximum=1.0, random=self.random)
        try:
            while self._homeless:
                await self.commands.refreshed()
                homeless, self._homeless = self._homeless, {}
                for subscription in homeless.values():
                    self._place(subscription)
                # Who cannot be placed, or is sent on again, has to wait.
                await sleep(self.clock, backoff.next())
        finally:
            self._rehoming = None

    def _place(self, subscription: Subscription) -> None:
        try:
            server = self.servers.server_of(self.tag_of(subscription.channel))
        except Nowhere:
            self.find_home(subscription)
        else:
            self._ear(server).add(subscription)

    def _ear(self, server: Server) -> Ear:
        ear = self._ears.get(server)
        if ear is None:
            ear = self._ears[server] = Ear(self, server)
        return ear

    def _look_at_servers(self) -> None:
        """The Cluster lies otherwise: move what has to."""
        for subscription in list(self._subscriptions.values()):
            ear = subscription.ear
            if ear is not None and not self.lies_at(self.tag_of(subscription.channel), ear.server):
                ear.remove(subscription)
                self._place(subscription)
        there = set(self.servers.primaries())
        for server, ear in list(self._ears.items()):
            if server not in there and not ear.subscriptions:
                del self._ears[server]
                ear.close()

    def __repr__(self) -> str:
        return f"<Listener {'open' if self._open else 'closed'}, {len(self._subscriptions)} channels>"
