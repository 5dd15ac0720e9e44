"""Taking leave of all clients, so that another node takes them without a stampede (L1, L2).

::

    accepting ──▶ closing, evenly over the spread ──▶ handing over ──▶ letting handlers end ──▶ drained
                  │                                   │
                  │ each is told when to come back    │ until every session that parked was taken up elsewhere
                  └ and its session parks             └ or nobody is expected any more: then what is left ends

Every connection has a moment, drawn by lot, at which its client shall set out for another node; the moments lie evenly
over the spread. A connection is closed at its moment, with a window that begins now. When there is not time enough for
that, because the deadline is near or somebody is in a hurry, it is closed before, with a window that begins at its
moment: what the closes cannot spread, the windows do. (Clients other than rtkit's own have no window. They have their
back-off.)

The rules:

- A small hub has no spread: no more connections are closed than :data:`_RATE` a second, and fewer than that only if
  the spread is long enough.
- Connections that have not authenticated go first, for they have nothing to lose. Those that have commands under way
  go when these are answered, or last: what is called here shall not have to be called again elsewhere.
- Sessions are handed over only where there is another node that could take them. A node that is alone ends them as
  their connections close, as a hub always did.
- Where they are, the drain waits for them as long as they were told, and :data:`_LATE` more, and again after each that
  was taken up. When the last was taken up lately, :data:`_SETTLED` more, in which its client says on the other node
  which rooms it is in. Only then may this node's lease go, upon which others take away what it still has in the broker.
- Everything is bounded by one deadline. Then connections are dropped, and sessions end.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, final

from .. import codes
from ..primitives.clocks import Timeout, timeout
from ..wire import Window
from .pace import FIRST

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine

__all__ = ["Drain"]

logger = logging.getLogger("rtkit.hub")

#: Closes a second at the least: as many as another node begins to let in are no stampede, and fewer would only keep the
#: process waiting.
_RATE: Final = FIRST
#: Connections that are closed at once.
_FEW: Final = 25
#: Seconds between two rounds of closes.
_TICK: Final = 0.05
#: Closes in one loop turn at the most.
_AT_ONCE: Final = 100
#: Seconds of each client's window.
_WINDOW: Final = 1.0
#: Seconds after its window that a client is expected still. A balancer that has not noticed yet may have sent it here
#: again, where it was told to try in a second or two. With the window and what follows, as long as handlers get.
_LATE: Final = 3.0
#: Seconds in which a client that has come back at another node joins its rooms there.
_SETTLED: Final = 1.0
#: Seconds to find out whether there are other nodes.
_LOOK: Final = 1.0


@final
class Drain:
    """The drain of one engine; there is one at the most."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._excused: set[asyncio.Task[Any]] = set()  # handlers that wait for the drain cannot be waited for
        self._scope: Timeout | None = None  # what the drain waits in just now
        self._spread = 0.0
        self._until = math.inf  # the deadline
        self._last_close = math.inf
        self._back_by = 0.0  # the last window's end
        self._waiting: deque[tuple[Connection, float]] = deque()
        self._busy: list[tuple[Connection, float]] = []

    async def run(self, spread: float | None, timeout: float | None) -> None:
        """Drain, or join the drain that runs, which is shortened to what is asked for now, and never lengthened.

        :param spread: seconds over which the clients come back elsewhere.
        :param timeout: seconds for everything.

        Cancellation: nobody waits for the drain any more; it goes on, and is bounded.
        """
        current = asyncio.current_task()
        if current is not None:
            self._excused.add(current)
        try:
            if self._task is None:
                self._plan(spread, timeout)
                self._task = self._engine.task(self._drain)
            else:
                self._shorten(spread, timeout)
            await asyncio.wait({self._task})
        finally:
            if current is not None:
                self._excused.discard(current)
        if not self._task.cancelled():
            self._task.result()

    def abandon(self) -> None:
        """The run ends now, whatever was planned: who is still here is told at once. Idempotent."""
        engine = self._engine
        engine.parks = False
        now = engine.clock.monotonic()
        left = [*self._busy, *self._waiting]
        self._busy.clear()
        self._waiting.clear()
        for connection, moment in left:
            self._close(connection, moment, now)
        for connection in list(engine.connections):
            self._close(connection, now, now)
        engine.parking.end_all("draining")

    # -- the plan ----------------------------------------------------------------------------------

    def _plan(self, spread: float | None, timeout: float | None) -> None:
        limits, count = self._engine.limits, len(self._engine.connections)
        wanted = (limits.drain_spread or 0.0) if spread is None else spread
        self._spread = min(wanted, count / _RATE) if count > _FEW else 0.0
        whole = self._spread + limits.drain_timeout if timeout is None else timeout
        now = self._engine.clock.monotonic()
        self._until = now + whole
        self._back_by = now + _WINDOW  # who was lost just before may come back elsewhere, too
        # The last ones need their time, too: to come back elsewhere, or to finish what they do here.
        self._last_close = now + min(self._spread, max(whole - _WINDOW - _LATE, whole / 2))

    def _shorten(self, spread: float | None, timeout: float | None) -> None:
        now = self._engine.clock.monotonic()
        if timeout is not None:
            self._until = min(self._until, now + timeout)
        self._last_close = min(self._last_close, self._until, math.inf if spread is None else now + spread)
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(now)

    # -- what is done ------------------------------------------------------------------------------

    async def _drain(self) -> None:
        engine = self._engine
        began, count = engine.clock.monotonic(), len(engine.connections)
        if not await self._finds_others():
            engine.parks = False
            engine.parking.end_all("draining")
        await self._send_away()
        if engine.parks:
            await self._hand_over()
        await self._let_end()
        if count:
            took = engine.clock.monotonic() - began
            logger.info("drained: %d clients were sent away; it took %.1f s", count, took)

    async def _finds_others(self) -> bool:
        """Whether there is a node that could take the sessions up, as far as can be known."""
        engine = self._engine
        if engine.limits.grace is None or not engine.sessions:
            return False
        try:
            async with timeout(engine.clock, max(0.0, min(_LOOK, self._until - engine.clock.monotonic()))):
                holders = await engine.lease.incarnations(fresh=True)
        except TimeoutError:
            return False
        return holders is not None and bool(holders.keys() - {engine.node_id})

    async def _send_away(self) -> None:
        """Close all connections, each at its moment or before."""
        clock = self._engine.clock
        connections = list(self._engine.connections)
        self._engine.random.shuffle(connections)
        connections.sort(key=lambda each: each.session is not None)
        began = clock.monotonic()
        apart = self._spread / len(connections) if connections else 0.0
        self._waiting.extend((each, began + n * apart) for n, each in enumerate(connections))
        hurry = self._spread / within if (within := self._last_close - began) > 0 else math.inf
        while self._waiting or self._busy:
            now = clock.monotonic()
            over = now >= self._last_close
            reached = math.inf if over else began + (now - began) * max(1.0, hurry)
            busy, self._busy = self._busy, []
            closed = 0
            for connection, moment in busy:
                closed += self._close_unless_busy(connection, moment, now, over=over)
            while self._waiting and self._waiting[0][1] <= reached:
                closed += self._close_unless_busy(*self._waiting.popleft(), now, over=over)
                if closed >= _AT_ONCE:
                    break
            if closed >= _AT_ONCE:
                await asyncio.sleep(0)
            elif self._waiting or self._busy:
                await self._pause(min(now + _TICK, self._last_close))

    def _close_unless_busy(self, connection: Connection, moment: float, now: float, *, over: bool) -> bool:
        if connection.lost_with is not None and not connection.closing:
            return False  # somebody's last words, who is gone; they have a bound of their own
        if connection.busy and not over:
            self._busy.append((connection, moment))
            return False
        self._close(connection, moment, now)
        return True

    def _close(self, connection: Connection, moment: float, now: float) -> None:
        if connection.closing:
            return
        wait = round(max(0.0, moment - now), 3)
        try:
            connection.close(codes.DRAINING, "draining", window=Window(wait, wait + _WINDOW))
        except Exception as error:
            # A bug below. The others shall be told all the same.
            logger.exception("%r could not be sent away", connection, exc_info=error)
            connection.lost(1006, "draining")
        self._back_by = max(self._back_by, now + wait + _WINDOW)

    async def _hand_over(self) -> None:
        """Wait until other nodes have taken the parked sessions up, and end those that nobody has."""
        engine = self._engine
        while engine.sessions:
            # While they come, more will: other nodes let in only so many at once.
            until = max(self._back_by, engine.parking.handed_over_at) + _LATE
            if (now := engine.clock.monotonic()) >= min(until, self._until):
                break
            await self._pause(now + _TICK)
        settled = engine.parking.handed_over_at + _SETTLED
        while (now := engine.clock.monotonic()) < min(settled, self._until):
            await self._pause(settled)
        engine.parks = False
        if left := len(engine.sessions):
            logger.info("%d sessions that no other node has taken up end", left)
        engine.parking.end_all("draining")

    async def _let_end(self) -> None:
        """Wait for handlers and hooks, and for clients that have not gone yet."""
        engine = self._engine
        while True:
            working = engine.working - self._excused
            if not working and engine.quiet.is_set():
                return
            if engine.clock.monotonic() >= self._until:
                break
            if working:
                await self._wait(self._until, asyncio.wait(working))
            else:
                await self._wait(self._until, engine.quiet.wait())
        logger.warning(
            "the hub has drained as long as it may: %d handlers and %d connections had not ended",
            len(working),
            len(engine.connections),
        )
        for connection in list(engine.connections):
            connection.lost(1006, "the hub has closed")

    # -- waiting -----------------------------------------------------------------------------------

    async def _pause(self, until: float) -> None:
        await self._wait(until, asyncio.Event().wait())

    async def _wait(self, until: float, thing: Coroutine[Any, Any, object]) -> None:
        """Wait for something, until then or the deadline, or until the plan has changed."""
        left = min(until, self._until) - self._engine.clock.monotonic()
        try:
            async with timeout(self._engine.clock, max(0.0, left)) as self._scope:
                await thing
        except TimeoutError:
            pass
        finally:
            self._scope = None

    def __repr__(self) -> str:
        return f"<Drain of {self._engine.node_id}, {len(self._waiting) + len(self._busy)} to be closed>"
