"""One connection for the commands of all callers, which renews itself.

What is asked for in one turn of the loop goes out in one write; replies come back in order. So a command is in one of
three places, and what a lost connection means for it is told by the place alone:

======================  ========================================================================
waiting to be sent      *not done*: it simply goes out over the next line
sent, not answered      *unknown*: the server may have run it, or may not
answered                done, or, with an error reply, not done (:mod:`.refusals`)
======================  ========================================================================

A :class:`Link` connects by itself, again and again, as long as it is open. Its line is given up when

- it breaks, or says what nobody asked for;
- nothing has been answered for longer than *patience*: a frozen server, a network that swallows packets;
- the server is no primary any more: it refused a write, or told so when asked, which happens every few seconds,
  because reading from it would go on to work, and show the past.

The first moments after a loss callers wait for the next line. Once it has been away for longer than *patience*
they are told at once: a queue of callers would only be in the way.

Durability ``replicated`` (B7) has a link of its own. After each batch it asks ``WAIT``, which answers how many
replicas have what *this connection* wrote last. On another connection it would speak of that one's writes, and after
a batch that wrote nothing (repeats answered from memory) of older ones: both would prove nothing, which is why it
is asked here, and why repeats write too. And because ``WAIT`` blocks the connection until then, those who
do not need it are on the other one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from ...clock import Clock, Timer
from ...primitives.backoff import Backoff
from ...primitives.clocks import sleep
from ...primitives.tasks import Tasks
from .lines import Line, Lost, pack, role_in
from .refusals import describe
from .shifts import Shift
from .topology import Server, Servers, connect_patiently

__all__ = ["STEADY", "TOO_LATE", "Call", "Link", "NotDone", "RedisStatistics", "TooLate", "Unknown"]

_log: Final = logging.getLogger("rtkit.brokers.redis")

# Bytes after which a write is sent off: what waits here while the network is slow is still "not done".
_BATCH: Final = 256 * 1024

# Seconds between two looks at whether a server still is a primary, and is there at all.
_BEAT: Final = 5.0

#: Seconds that a line has to last for the next attempts to begin anew with short pauses.
STEADY: Final = 2.0

# Replies after which others get a turn.
_TURN: Final = 256

_ASKING: Final = pack("ASKING")
_HELLO: Final = pack("HELLO")


@dataclass(slots=True)
class RedisStatistics:
    """What a broker has counted since it was made.

    :param commands: commands and scripts asked for.
    :param batches: writes that they went out in.
    :param reconnections: connections for commands that were lost and came back.
    :param listener_reconnections: and those for subscriptions.
    :param probes_missed: messages to ourselves that did not come back.
    :param foreign_frames: what came on our channels and was not ours.
    :param interrupted: topics that may have missed something, each time.
    :param reads_shared: reads that were answered by another's.
    :param unknown: calls whose outcome remained unknown.
    :param takeovers: streams and states that another server was seen to have taken over.
    """

    commands: int = 0
    batches: int = 0
    reconnections: int = 0
    listener_reconnections: int = 0
    probes_missed: int = 0
    foreign_frames: int = 0
    interrupted: int = 0
    reads_shared: int = 0
    unknown: int = 0
    takeovers: int = 0


# -- one command, and what can become of it

_COMMAND, _SKIPPED, _WAIT, _HEARTBEAT = range(4)


@final
class Call:
    """A command on its way. One future for each try."""

    __slots__ = ("asking", "deadline", "future", "kind", "over", "packed", "sent", "sent_at")

    def __init__(self, packed: bytes, deadline: float, kind: int = _COMMAND) -> None:
        self.packed = packed
        self.deadline = deadline
        self.kind = kind
        self.future: asyncio.Future[Any] | None = None
        self.sent = False
        self.sent_at = 0.0
        self.asking = False
        self.over = False

    def settle(self, outcome: Any) -> None:
        future = self.future
        if future is not None and not future.done():
            future.set_result(outcome)


@final
class NotDone:
    """Nothing was done, and this link has nothing more to say about it."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why


@final
class Unknown:
    """It was sent, and may have been done."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why


@final
class TooLate:
    """The caller's patience has ended."""


TOO_LATE: Final = TooLate()


class LinkOwner(Protocol):
    """What a link has to know of who has it."""

    servers: Servers
    clock: Clock
    patience: float
    replicas: int
    wait_timeout: float
    random: Callable[[], float]
    counters: RedisStatistics
    tasks: Tasks

    def refresh_soon(self) -> None:
        """A server did not do: look again how the Cluster lies."""
        ...


# -- one connection


@final
class Link:
    """A connection to one server that renews itself, and all commands that go over it."""

    def __init__(self, owner: LinkOwner, server: Server, replicated: bool) -> None:
        self._owner = owner
        self._clock = owner.clock
        self.server = server
        self._replicated = replicated
        self._unsent: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        self._held: list[tuple[Call, Any]] = []  # answered, and waiting for what WAIT says
        self._heard_at = -math.inf
        self._waiting = False  # a WAIT is under way
        self._work = asyncio.Event()
        self.up = asyncio.Event()
        self._nudged = asyncio.Event()
        self._shift = Shift(self._clock, owner.patience, self._waits_since, f"the connection to {server}")
        self._renewing: str | None = None  # why no more is sent over this line
        self.closed = False
        self.why = "it does not answer"
        self._down_since = self._clock.monotonic()
        self._hopeless = False
        self._down_timer: Timer | None = self._clock.call_at(self._down_since + owner.patience, self._despair)
        self._wait = pack("WAIT", owner.replicas, round(owner.wait_timeout * 1000)) if replicated else b""
        self._task = owner.tasks.spawn(self._live, name=f"redis: commands to {server}")

    # -- asking

    def ask(self, call: Call) -> asyncio.Future[Any]:
        """Have it sent; the future's result is a reply, an error reply, or one of the three outcomes."""
        call.future = asyncio.get_running_loop().create_future()
        call.sent = False
        if self.closed or self._hopeless:
            call.settle(NotDone(self.why))
        else:
            self._unsent.append(call)
            self._work.set()
        return call.future

    def renew(self, why: str) -> None:
        """Send nothing more over this line; once all is answered, connect again."""
        if self._renewing is None and self.up.is_set():
            self._renewing = why
            if not self._sent:
                self._shift.end(why)

    def nudge(self) -> None:
        """The server is there, somebody says: try now, and let callers wait for it."""
        if not self.up.is_set() and not self.closed:
            self._nudged.set()
            self._hope()

    def retire(self, why: str) -> None:
        """The server has nothing any more: end once all is answered."""
        self.closed = True
        self.why = why
        self._refuse_unsent()
        if self.up.is_set():
            self.renew(why)
        else:
            self._task.cancel()

    def close(self) -> None:
        """End at once: what is unanswered is unknown."""
        self.closed = True
        self.why = "it was closed"
        self._task.cancel()

    # -- living

    async def _live(self) -> None:
        backoff = Backoff(minimum=0.05, maximum=2.0, random=self._owner.random)
        first = True
        try:
            while not self.closed:
                line = await self._connect(backoff, first)
                connected_at = self._clock.monotonic()
                self._is_up(first)
                first = False
                try:
                    self.why = await self._serve(line)
                finally:
                    line.close()
                    self._is_down()
                if self._clock.monotonic() - connected_at > STEADY:
                    backoff.reset()  # and not before: one that accepts and hangs up is no server
        finally:
            self.closed = True
            self._stop_despairing()
            self._refuse_unsent()

    async def _connect(self, backoff: Backoff, first: bool) -> Line:
        return await connect_patiently(
            self._owner.servers, self.server, "commands", clock=self._clock, patience=self._owner.patience,
            backoff=backoff, failed=self._failed, at_once=first, nudged=self._nudged,
        )  # fmt: skip

    def _failed(self, why: str) -> None:
        self.why = why
        self._owner.refresh_soon()

    async def _serve(self, line: Line) -> str:
        """Work over one line until it is lost; returns why."""
        self._renewing = None
        self._work.set()
        return await self._shift.work(
            (f"redis: replies of {self.server}", self._read(line)),
            (f"redis: writes to {self.server}", self._write(line)),
            (f"redis: heartbeat of {self.server}", self._beat()),
        )

    async def _write(self, line: Line) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while batch := self._next_batch():
                await line.send(batch)

    def _next_batch(self) -> list[bytes]:
        """What to send now. From here on it counts as sent."""
        if self._renewing is not None or self._waiting:
            return []
        now = self._clock.monotonic()
        pieces: list[bytes] = []
        size = 0
        proof = False
        while self._unsent and size < _BATCH:
            call = self._unsent.popleft()
            if call.kind == _COMMAND:
                if call.future is None or call.future.done():
                    continue  # cancelled, or too late
                proof = self._replicated
            if call.asking:
                self._expect(Call(b"", 0.0, _SKIPPED), now)
                pieces.append(_ASKING)
            self._expect(call, now)
            pieces.append(call.packed)
            size += len(call.packed)
        if proof:
            self._waiting = True
            self._expect(Call(b"", 0.0, _WAIT), now)
            pieces.append(self._wait)
        if pieces:
            self._owner.counters.batches += 1
        return pieces

    def _expect(self, call: Call, now: float) -> None:
        call.sent = True
        call.sent_at = now
        self._sent.append(call)
        self._shift.asked()

    async def _read(self, line: Line) -> None:
        turn = 0
        while True:
            reply = await line.read()
            self._heard_at = self._clock.monotonic()
            if not self._sent:
                raise Lost(f"it said what nobody asked for: {reply!r:.80}")
            self._answered(self._sent.popleft(), reply)
            if self._renewing is not None and not self._sent:
                raise Lost(self._renewing)
            turn += 1
            if turn >= _TURN:
                turn = 0
                await asyncio.sleep(0)  # reading what is there already never waits

    def _answered(self, call: Call, reply: Any) -> None:
        if call.kind == _COMMAND:
            if self._replicated and not isinstance(reply, Exception):
                self._held.append((call, reply))
            else:
                call.settle(reply)
        elif call.kind == _WAIT:
            self._waited(reply)
        elif call.kind == _HEARTBEAT:
            role = "" if isinstance(reply, Exception) else role_in(reply)
            if role not in ("", "master"):
                self.renew(f"it is a {role} now")

    def _waited(self, reply: Any) -> None:
        self._waiting = False
        held, self._held = self._held, []
        wanted = self._owner.replicas
        if isinstance(reply, int) and reply >= wanted:
            for call, result in held:
                call.settle(result)
        else:
            if isinstance(reply, Exception):
                why = f"WAIT failed: {describe(reply)}"
                self.renew(why)
            else:
                why = f"{reply} of {wanted} replicas confirmed within {self._owner.wait_timeout:g} s"
            for call, _ in held:
                call.settle(Unknown(why))
        self._work.set()

    async def _beat(self) -> None:
        while True:
            await sleep(self._clock, _BEAT)
            self._unsent.append(Call(_HELLO, 0.0, _HEARTBEAT))
            self._work.set()

    # -- the end of a line

    def _waits_since(self) -> float | None:
        # As long as replies come it is not silent, only busy: to connect anew would make it busier.
        return max(self._sent[0].sent_at, self._heard_at) if self._sent else None

    def _is_up(self, first: bool) -> None:
        away = self._clock.monotonic() - self._down_since
        self._stop_despairing()
        self._hopeless = False
        self.up.set()
        if not first:
            self._owner.counters.reconnections += 1
        if not first or away > self._owner.patience:
            _log.warning("redis: connected to %s for commands, after %.1f s", self.server, away)

    def _is_down(self) -> None:
        self.up.clear()
        unknown = [call for call, _ in self._held]
        unknown += [call for call in self._sent if call.kind == _COMMAND]
        self._held.clear()
        self._sent.clear()
        self._waiting = False
        # A heartbeat belongs to its line, what others wait for does not.
        self._unsent = deque(call for call in self._unsent if call.kind == _COMMAND)
        for call in unknown:
            call.settle(Unknown(f"the connection was lost before it was answered ({self.why})"))
        if not self.closed:
            self._down_since = self._clock.monotonic()
            self._hope()
            _log.warning(
                "redis: lost the connection to %s for commands, %d unanswered: %s",
                self.server, len(unknown), self.why,
            )  # fmt: skip
            self._owner.refresh_soon()

    def _hope(self) -> None:
        """Let callers wait for the next line, for a while."""
        self._hopeless = False
        self._stop_despairing()
        self._down_timer = self._clock.call_at(self._clock.monotonic() + self._owner.patience, self._despair)

    def _despair(self) -> None:
        """It has been away for too long to wait for it."""
        self._down_timer = None
        self._hopeless = True
        self._refuse_unsent()

    def _refuse_unsent(self) -> None:
        unsent, self._unsent = self._unsent, deque()
        for call in unsent:
            call.settle(NotDone(self.why))

    def _stop_despairing(self) -> None:
        if self._down_timer is not None:
            self._down_timer.cancel()
            self._down_timer = None
