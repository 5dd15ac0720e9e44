"""Running commands: where they belong, until they are done or the caller's patience ends, and the truth about either.

What became of a command is known or not (:mod:`.links`). What is *not done* is tried again until the caller's patience
ends, and then is ``BrokerUnavailable``. What is *unknown* is tried again only if the caller said that repeating is
harmless; else, and at the end, it is ``PublishUnknown``. A doubt that once arose does not go away: a repeat
that is refused says nothing about the first try.

What an error reply means is told in :mod:`.refusals`. One that says "not me" is followed to whoever it is: the Cluster
is looked at again, the Sentinels are asked again. One that says "no" ends it.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, final

from ...clock import Clock, Timer
from ...errors import BrokerUnavailable, NotRunning, PublishUnknown
from ...primitives.backoff import Backoff
from ...primitives.clocks import sleep, timeout
from ...primitives.tasks import Tasks
from .lines import pack
from .links import TOO_LATE, Call, Link, NotDone, RedisStatistics, TooLate, Unknown
from .refusals import Verdict, describe, elsewhere, judge, refusal
from .shifts import LATE
from .topology import Nowhere, Server, Servers

__all__ = ["Commands", "RedisStatistics", "ScriptText"]

_log: Final = logging.getLogger("rtkit.brokers.redis")

# Seconds between two looks at how a Cluster lies; after one in vain; and at the least.
_REFRESH: Final = 30.0
_REFRESH_AGAIN: Final = 1.0
_REFRESH_PAUSE: Final = 0.2


class ScriptText(Protocol):
    """What has to be known of a script."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def text(self) -> str | bytes:
        """Its source."""
        ...

    @property
    def sha(self) -> str:
        """The SHA-1 of that, in hexadecimal digits."""
        ...


@final
class _Errand:
    """One call of a caller, over all its tries."""

    __slots__ = (
        "again",
        "asked",
        "call",
        "doubt",
        "evaluate",
        "link",
        "moves",
        "pauses",
        "script",
        "server",
        "tag",
    )

    def __init__(self, tag: str, call: Call, again: bool, evaluate: Callable[[], bytes] | None) -> None:
        self.tag = tag
        self.call = call
        self.again = again
        self.script = evaluate is not None
        self.evaluate = evaluate  # the script itself, for who does not know its hash; None once it was sent
        self.server: Server | None = None  # who was asked last
        self.link: Link | None = None
        self.asked: Server | None = None  # whom to ask next, for once
        self.doubt = ""  # why it may have been done, once that is so
        self.moves = 0
        self.pauses: Backoff | None = None


@final
class Commands:
    """Runs scripts and commands where their tag lies.

    Cancelling a caller leaves it unknown whether its command was done, and touches nobody else's.

    :param servers: whom to talk to.
    :param clock: what all waiting goes by.
    :param patience: seconds that a caller waits at most, that a silent connection gets, and an attempt to connect.
    :param replicas: how many have to confirm what is ``replicated``.
    :param wait_timeout: seconds they get for it; at most half of *patience*.
    :param random: draws from 0 to 1, for pauses.
    :param counters: where to count.
    :raises ValueError: for fewer than one replica.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        clock: Clock,
        patience: float = 2.0,
        replicas: int = 1,
        wait_timeout: float = 1.0,
        random: Callable[[], float] = _random.random,
        counters: RedisStatistics | None = None,
    ) -> None:
        if replicas < 1:
            raise ValueError(f"replicas is at least 1, not {replicas!r}")
        self.servers = servers
        self.clock = clock
        self.patience = patience
        self.replicas = replicas
        # More would leave no time for a second try.
        self.wait_timeout = min(wait_timeout, patience / 2)
        self.random = random
        self.counters = RedisStatistics() if counters is None else counters
        self.tasks = Tasks(name="redis", clock=clock)
        self._links: dict[tuple[Server, bool], Link] = {}
        self._calls: deque[Call] = deque()  # by their deadline, because all have the same patience
        self._timer: Timer | None = None
        self._pausing: set[asyncio.Future[None]] = set()
        self._open = False
        self._version = servers.version
        self._refreshing: asyncio.Task[None] | None = None
        self._refresh_timer: Timer | None = None
        self._refreshed_at = -_REFRESH
        self._no_picture = "no answer"
        #: Called when the Cluster lies otherwise than before.
        self.on_moved: list[Callable[[], object]] = []

    async def open(self) -> None:
        """Connect. Once only: an instance that was closed stays closed.

        Cancellation: safe; nothing stays behind.

        :raises BrokerUnavailable: when nobody is there within *patience*; nothing stays behind then either.
        """
        self._open = True
        try:
            async with timeout(self.clock, self.patience):
                if self.servers.sharded:
                    await self._first_look()
                await _any_up([self._link(server, False) for server in self.servers.primaries()])
        except BaseException as error:
            reasons = [f"{link.server}: {link.why}" for link in self._links.values()]
            await self.aclose()
            if isinstance(error, TimeoutError):
                why = "; ".join(reasons) or self._no_picture
                raise BrokerUnavailable(f"Redis cannot be reached: {why}") from None
            raise

    async def _first_look(self) -> None:
        pauses = Backoff(minimum=0.05, maximum=0.5, random=self.random)
        while True:
            await self.refreshed()
            if self.servers.primaries():
                return
            await sleep(self.clock, pauses.next())

    async def aclose(self) -> None:
        """Drop all connections. What was sent and not answered is unknown to its callers. Idempotent."""
        self._open = False
        for timer in (self._timer, self._refresh_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._refresh_timer = None
        for link in self._links.values():
            link.close()
        for waiter in self._pausing:
            _wake(waiter)
        await self.tasks.aclose()
        self._links.clear()
        await asyncio.sleep(0)  # sockets close in the turn after they were told to

    # -- running

    async def run(
        self,
        tag: str,
        script: ScriptText,
        keys: Sequence[str],
        args: Sequence[bytes | str | int],
        *,
        again: bool,
        replicated: bool = False,
    ) -> Any:
        """Run a script where *tag* lies.

        Cancellation: leaves it unknown whether it ran.

        :param again: repeating it is harmless: a read, or something with a key of its own. Then an unknown outcome is
            tried again.
        :param replicated: wait until enough replicas have it.
        :return: the reply: bytes, numbers, lists, None.
        :raises BrokerUnavailable: nothing was done.
        :raises PublishUnknown: it may have been done.
        :raises NotRunning: before ``open`` and after ``aclose``.
        """

        def evaluate() -> bytes:
            return pack("EVAL", script.text, len(keys), *keys, *args)

        packed = pack("EVALSHA", script.sha, len(keys), *keys, *args)
        return await self._perform(tag, packed, again, replicated, evaluate)

    async def execute(self, tag: str, *command: bytes | str | int, again: bool) -> Any:
        """Run a single command where *tag* lies; see :meth:`run`."""
        return await self._perform(tag, pack(*command), again, False, None)

    async def _perform(
        self, tag: str, packed: bytes, again: bool, replicated: bool, evaluate: Callable[[], bytes] | None
    ) -> Any:
        if not self._open:
            raise NotRunning("the connection to Redis is not open")
        self.counters.commands += 1
        call = self._enter(packed)
        errand = _Errand(tag, call, again, evaluate)
        try:
            while True:
                outcome = await self._ask(errand, replicated)
                if not isinstance(outcome, (NotDone, Unknown, TooLate, Exception)):
                    return outcome
                if self._next(errand, outcome):
                    await self._pause(errand, outcome)
        finally:
            self._leave(call)

    async def _ask(self, errand: _Errand, replicated: bool) -> Any:
        """One try."""
        asked, errand.asked = errand.asked, None
        errand.call.asking = asked is not None
        try:
            server = errand.server = asked or self.servers.server_of(errand.tag)
        except Nowhere as error:
            errand.server = errand.link = None
            return NotDone(str(error))
        link = errand.link = self._link(server, replicated)
        return await link.ask(errand.call)

    def _next(self, errand: _Errand, outcome: NotDone | Unknown | TooLate | Exception) -> bool:
        """What to do after this outcome: returns whether to pause before the next try, raises if there is none."""
        if isinstance(outcome, TooLate):
            if errand.call.sent and not errand.doubt:
                errand.doubt = f"no answer within {self.patience:g} s"
            link = errand.link
            raise self._failure(
                errand, link.why if link and not link.up.is_set() else "there was no time left"
            )
        if isinstance(outcome, Unknown):
            errand.doubt = outcome.why
            if not errand.again or not self._open:
                raise self._failure(errand, outcome.why)
            return True
        self.refresh_soon()
        if isinstance(outcome, NotDone):
            if not self._open or (errand.server is not None and self._lies_at(errand.tag, errand.server)):
                raise self._failure(errand, outcome.why)
            return True
        return self._follow(errand, outcome)

    def _follow(self, errand: _Errand, error: Exception) -> bool:
        """What to do after an error reply; likewise."""
        verdict = judge(error, script=errand.script)
        if verdict is Verdict.NO_SCRIPT and errand.evaluate is not None:
            errand.call.packed, errand.evaluate = errand.evaluate(), None
            return False
        place = elsewhere(error) if verdict in (Verdict.MOVED, Verdict.ASK) and self.servers.sharded else None
        if place is not None and errand.server is not None:
            if verdict is Verdict.ASK:
                errand.asked = self.servers.at(place[1], place[2], errand.server)
            else:
                self.servers.moved(*place, errand.server)
            errand.moves += 1
            return errand.moves % 2 == 0  # two servers that point at each other get time to agree
        if verdict is Verdict.ELSEWHERE and errand.link is not None:
            errand.link.renew(describe(error))
            return True
        if verdict is Verdict.SOON:
            return True
        if verdict is Verdict.UNSURE:
            errand.doubt = f"it broke off: {describe(error)}"
        raise self._failure(errand, refusal(error, errand.server))

    async def _pause(self, errand: _Errand, outcome: NotDone | Unknown | TooLate | Exception) -> None:
        if errand.pauses is None:
            errand.pauses = Backoff(minimum=0.02, maximum=0.3, random=self.random)
        left = errand.call.deadline - self.clock.monotonic()
        # Not a plain sleep: aclose() ends it.
        waiter = asyncio.get_running_loop().create_future()
        timer = self.clock.call_at(self.clock.monotonic() + min(errand.pauses.next(), left), _wake, waiter)
        self._pausing.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._pausing.discard(waiter)
        if self.clock.monotonic() >= errand.call.deadline or not self._open:
            if isinstance(outcome, Exception):
                raise self._failure(errand, refusal(outcome, errand.server))
            raise self._failure(errand, "no time left" if isinstance(outcome, TooLate) else outcome.why)

    def _failure(self, errand: _Errand, why: str | BrokerUnavailable) -> Exception:
        """What to raise at the end."""
        server = errand.server
        if errand.doubt:
            self.counters.unknown += 1
            return PublishUnknown(f"Redis{f' at {server}' if server else ''}: {errand.doubt}")
        if isinstance(why, BrokerUnavailable):
            return why
        return BrokerUnavailable(f"Redis{f' at {server}' if server else ''} is away: {why}")

    def _lies_at(self, tag: str, server: Server) -> bool:
        try:
            return self.servers.server_of(tag) == server
        except Nowhere:
            return True

    # -- patience

    def _enter(self, packed: bytes) -> Call:
        call = Call(packed, self.clock.monotonic() + self.patience)
        self._calls.append(call)
        if self._timer is None:
            self._timer = self.clock.call_at(call.deadline, self._expire, call.deadline)
        return call

    def _leave(self, call: Call) -> None:
        call.over = True
        call.packed = b""
        calls = self._calls
        while calls and calls[0].over:
            calls.popleft()

    def _expire(self, due: float) -> None:
        """Tell those whose patience has ended. One timer serves all."""
        self._timer = None
        now = self.clock.monotonic()
        late = now - due > LATE  # our loop stood still: the answers may be here, and unread
        while self._calls and (self._calls[0].over or (self._calls[0].deadline <= now and not late)):
            self._calls.popleft().settle(TOO_LATE)
        if self._calls:
            due = now + LATE if late else self._calls[0].deadline
            self._timer = self.clock.call_at(due, self._expire, due)

    # -- servers

    def _link(self, server: Server, replicated: bool) -> Link:
        link = self._links.get((server, replicated))
        if link is None or link.closed:
            link = self._links[server, replicated] = Link(self, server, replicated)
        return link

    def nudge(self, server: Server) -> None:
        """*server* is there: whoever waits to try again to connect to it tries now."""
        for replicated in (False, True):
            link = self._links.get((server, replicated))
            if link is not None:
                link.nudge()

    def refresh_soon(self) -> None:
        """Have a look at how the Cluster lies; several who ask share it."""
        if self._open and self.servers.sharded and self._refreshing is None:
            self._refreshing = self.tasks.spawn(self._refresh, name="redis: how the Cluster lies")

    async def refreshed(self) -> None:
        """Wait for such a look, successful or not. Cancellation: safe."""
        self.refresh_soon()
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing])

    async def _refresh(self) -> None:
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
            self._refresh_timer = None
        again = _REFRESH_AGAIN
        try:
            # Some a second at the most, whoever asks.
            await sleep(self.clock, self._refreshed_at + _REFRESH_PAUSE - self.clock.monotonic())
            await self.servers.refresh(self.clock)
            again = _REFRESH
        except Nowhere as error:
            self._no_picture = str(error)
        except Exception as error:
            self._no_picture = describe(error)
            _log.exception("redis: how the Cluster lies cannot be understood")
        finally:
            self._refreshing = None
            self._refreshed_at = self.clock.monotonic()
            if self._open:
                self._refresh_timer = self.clock.call_at(self._refreshed_at + again, self.refresh_soon)
        self._look_at_version()

    def _look_at_version(self) -> None:
        if self._version == self.servers.version:
            return
        self._version = self.servers.version
        there = set(self.servers.primaries())
        for (server, replicated), link in list(self._links.items()):
            if server not in there:
                del self._links[server, replicated]
                link.retire("it has no slots any more")
        for moved in self.on_moved:
            moved()

    def __repr__(self) -> str:
        return f"<Commands {'open' if self._open else 'closed'} on {self.servers!r}>"


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _any_up(links: Sequence[Link]) -> None:
    waiting = [asyncio.ensure_future(link.up.wait()) for link in links]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
