"""Outbox, heartbeat and rate limit on any framework's WebSocket.

::

    async with attach(websocket) as conn, registry.join(conn, "ticker"):
        async for message in conn:
            registry.broadcast("ticker", message)

What runs, and when
-------------------
- *Reading* happens in the task that iterates, one message at a time, and nowhere else. A handler
  that is busy, or a rate limit that is used up, simply does not read; the library's small queue
  fills, then the kernel's, and TCP pushes back on the peer. Nothing is dropped on the way in.
- *Writing* happens in one task that exists while the outbox has something in it (``_writer.py``).
- *Timers* (heartbeat, write timeout) are entries of one :class:`~.deadlines.Deadlines`, so that a
  stall of our own process closes nobody (F5).
- *Ending*. Whoever decides first (the host, a full outbox, a missing pong, the peer) ends the
  connection with its code; the iteration stops; the writer gets a bounded time to empty the outbox if
  the end is a peaceful one; the closing handshake gets a bounded time; then the transport is dropped
  where the library lets us. Leaving the ``async with`` block waits for all that, and no task is left.

Liveness by kind of socket
--------------------------
- ``websockets``: protocol pings. The library has a keepalive of its own (20 s); pass
  ``ping_interval=None`` to ``serve`` or ``connect`` to leave it to this one. While its read queue is
  full, pongs cannot be heard, and silence is not held against the peer (C2).
- Starlette, FastAPI: ASGI has no pings. With ``AttachPolicy(ping_text=…)`` that text is sent as a
  message, and anything the peer sends counts as the answer (a receive-only client has to answer
  something; give it as ``pong_text`` and it is not shown to the host). The deadline stands still
  while the host is not reading. Without ``ping_text`` there is no heartbeat of ours: the server's own
  keepalive (uvicorn: ``ws_ping_interval``, on by default) finds the dead, and ``write_timeout`` those
  who do not read. Neither can be seen before the host reads or writes again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random as _random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, final

from .. import codes
from ..clock import Clock
from ..errors import ConnectionClosed, NotRunning, UsageError
from ._sockets import Gone, Pipe, pipe_of
from ._writer import INTERNAL_ERROR, SocketWriter
from .clocks import LoopClock, Timeout, sleep, timeout
from .deadlines import Deadline, Deadlines
from .heartbeat import Action, Heartbeat, HeartbeatState
from .outbox import Outbox, OutboxStatistics, Overflow
from .ratelimit import Rate, TokenBucket
from .tasks import Tasks

__all__ = ["AttachPolicy", "AttachedConnection", "AttachedConnectionStatistics", "attach"]

_log: Final = logging.getLogger("rtkit.attach")
_LOOP_CLOCK: Final = LoopClock()

State = Literal["created", "open", "closing", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPolicy:
    """How an attached socket behaves.

    :param text: how ``bytes`` and ``str`` go out: None each as what it is; True both as text (bytes
        have to be UTF-8, as JSON encoders give them); False both as binary.
    :param overflow: what to do with a message the outbox has no room for (D1). ``recover`` needs a
        history and is refused.
    :param ping_text: message to send as a ping where the protocol's pings are out of reach.
    :param pong_text: an inbound message that equals this is the answer to it, and is not shown.
    :param write_timeout: seconds one send may wait for a peer that does not read, then close 3009;
        None waits for ever.
    :param flush_timeout: seconds a peaceful end may take to send what is queued.
    :param close_timeout: seconds the closing handshake may take.
    :raises ValueError: for ``recover``, an unknown policy, or a time that is not positive.
    """

    text: bool | None = None
    overflow: Overflow = "drop_oldest"
    ping_text: str | None = None
    pong_text: str | None = None
    write_timeout: float | None = 30.0
    flush_timeout: float = 5.0
    close_timeout: float = 5.0

    def __post_init__(self) -> None:
        if self.overflow not in ("drop_oldest", "drop_newest", "latest_per_key", "close"):
            raise ValueError(
                "AttachPolicy(overflow=…) is drop_oldest, drop_newest, latest_per_key or close, "
                f"not {self.overflow!r}"
            )
        if self.write_timeout is not None and not self.write_timeout > 0:
            raise ValueError(f"AttachPolicy(write_timeout=…) is positive or None, not {self.write_timeout!r}")
        for name in ("flush_timeout", "close_timeout"):
            seconds: float = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise ValueError(f"AttachPolicy({name}=…) is positive finite seconds, not {seconds!r}")


@dataclass(frozen=True, slots=True)
class AttachedConnectionStatistics:
    """What an :class:`AttachedConnection` has done.

    :param state: ``created``, ``open``, ``closing`` or ``closed``.
    :param received: messages the host was given.
    :param sent: messages handed to the socket, pings of text included.
    :param sent_bytes: their bytes.
    :param held_back: seconds reading was paused by the rate limit.
    :param latency: seconds the last measured pong took; None before the first.
    :param outbox: of the outbox.
    """

    state: State
    received: int
    sent: int
    sent_bytes: int
    held_back: float
    latency: float | None
    outbox: OutboxStatistics


def attach(
    sock: object,
    *,
    heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008 - frozen
    outbox: Outbox | None = None,
    limit: Rate | None = None,
    policy: AttachPolicy = AttachPolicy(),
    clock: Clock | None = None,
    random: Callable[[], float] = _random.random,
) -> AttachedConnection:
    """Put outbox, heartbeat and rate limit on an open socket; use the result with ``async with``.

    :param sock: an accepted Starlette or FastAPI ``WebSocket``, or an asyncio ``ServerConnection`` or
        ``ClientConnection`` of websockets. Leave its own receive, send and close alone meanwhile.
    :param heartbeat: when to ping and when to give up; None for none. See the module for what works on
        which socket.
    :param outbox: bounds what waits to be sent; one of its own for each socket. Default size if None.
    :param limit: messages a second the host is given; beyond it reading pauses. None for no limit.
    :param policy: the rest.
    :param clock: the loop's if None.
    :param random: draws from 0 to 1, for the moment of the first ping.
    :raises TypeError: for a socket of another kind.
    :raises UsageError: for a Starlette socket that was not accepted, or is closed.
    """
    return AttachedConnection(pipe_of(sock), heartbeat, outbox, limit, policy, clock, random)


@final
class AttachedConnection:
    """A socket with an outbox, a heartbeat and a rate limit; made by :func:`attach`.

    Works as a member of a :class:`~.rooms.RoomRegistry`.
    """

    __slots__ = (
        "_beat",
        "_beat_at",
        "_bucket",
        "_clock",
        "_closer",
        "_deadlines",
        "_gone",
        "_held_back",
        "_pipe",
        "_policy",
        "_random",
        "_received",
        "_scope",
        "_state",
        "_tasks",
        "_writer",
        "close_code",
        "close_reason",
    )

    def __init__(
        self,
        pipe: Pipe,
        heartbeat: Heartbeat | None,
        outbox: Outbox | None,
        limit: Rate | None,
        policy: AttachPolicy,
        clock: Clock | None,
        random: Callable[[], float],
    ) -> None:
        self._pipe = pipe
        self._policy = policy
        self._clock: Clock = _LOOP_CLOCK if clock is None else clock
        self._random = random
        self._bucket: TokenBucket | None = None if limit is None else limit.bucket()
        pings = heartbeat is not None and (pipe.can_ping or policy.ping_text is not None)
        self._beat = HeartbeatState(heartbeat) if heartbeat is not None and pings else None
        self._beat_at: Deadline | None = None
        self._deadlines = Deadlines(self._clock)
        self._tasks = Tasks(name="attached socket", clock=self._clock)
        self._state: State = "created"
        self._gone = False
        self._closer: asyncio.Task[None] | None = None
        self._scope: Timeout | None = None  # around the host's wait for a message
        self._writer = SocketWriter(
            pipe,
            Outbox() if outbox is None else outbox,
            text=policy.text,
            write_timeout=policy.write_timeout,
            tasks=self._tasks,
            deadlines=self._deadlines,
            clock=self._clock,
            on_gone=self._lost,
            on_failed=self._write_failed,
        )
        self._received = 0
        self._held_back = 0.0
        self.close_code: int | None = None
        """What ended the connection: our code, or the peer's, or 1006 for neither; None while open."""
        self.close_reason = ""
        """The words with it."""

    # -- life

    async def __aenter__(self) -> AttachedConnection:
        if self._state != "created":
            raise UsageError("an attached socket is entered once")
        self._state = "open"
        if self._beat is not None:
            now = self._clock.monotonic()
            first = self._beat.start(now, self._random())
            if not self._pipe.reads_ahead:
                self._beat.paused(now)  # until the host reads
            self._beat_at = self._deadlines.at(first, self._heartbeat)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc_type is None:
            code, reason = codes.WS_NORMAL, ""
        elif issubclass(exc_type, Exception):
            code, reason = INTERNAL_ERROR, "internal error"
        else:
            code, reason = codes.WS_GOING_AWAY, "going away"
        try:
            await self.close(code, reason)
            await self._tasks.aclose(timeout=self._policy.close_timeout)
        except asyncio.CancelledError:
            # Cancelled (again) while being polite: no more of that.
            self._tasks.close_nowait()
            self._finish(code, reason)
            self._pipe.abort()
            raise

    async def close(self, code: int = codes.WS_NORMAL, reason: str = "") -> None:
        """Send what is queued, tell the peer why, and close; each within its time. Idempotent.

        The first end wins: after another one this only waits for it. To be called from the host's own
        tasks. A cancelled call leaves the closing going on.

        :param code: 1000, 1001, 1003, 1007 to 1011, or 3000 to 4999.
        :param reason: at most 123 bytes of UTF-8.
        :raises ValueError: for a code or a reason that cannot be sent.
        :raises NotRunning: before the ``async with`` block.
        """
        if not (codes.is_valid_close(code) or code in (1001, 1003) or 1007 <= code <= 1011):
            raise ValueError(f"a socket cannot be closed with code {code!r}")
        if len(reason.encode()) > 123:
            raise ValueError(f"a close reason is at most 123 bytes of UTF-8, not {reason!r}")
        if self._state == "created":
            raise NotRunning("close() inside `async with attach(…) as conn` only")
        if self._state == "open":
            self._end(code, reason, flush=True)
        if self._closer is not None:
            await asyncio.shield(self._closer)

    def _end(self, code: int, reason: str, *, flush: bool) -> None:
        """Begin to end, by our will."""
        if self._state != "open":
            return
        self._state = "closing"
        self.close_code, self.close_reason = code, reason
        if not flush:
            self._writer.stop()
        if self._beat_at is not None:
            self._beat_at.cancel()
        self._interrupt_reader()
        self._closer = self._tasks.spawn(self._shut, code, reason, flush, name="attached socket: closing")

    async def _shut(self, code: int, reason: str, flush: bool) -> None:
        try:
            if flush:
                try:
                    async with timeout(self._clock, self._policy.flush_timeout):
                        await self._writer.idle()
                except TimeoutError:
                    pass  # what is left is counted as discarded
            self._writer.stop()
            async with timeout(self._clock, self._policy.close_timeout):
                await self._writer.idle()
                if not self._gone:
                    if self._pipe.reads_ahead:
                        _ = self._tasks.spawn(self._discard, name="attached socket: discarding")
                    await self._pipe.close(code, reason)
        except TimeoutError:
            self._pipe.abort()
        except Exception:
            _log.exception("%r: closing failed", self)
            self._pipe.abort()
        finally:
            self._finish(code, reason)

    async def _discard(self) -> None:
        """Read what still comes in: the peer's close frame stands behind it."""
        while self._scope is not None:  # noqa: ASYNC110 - the host's read is being interrupted right now
            await asyncio.sleep(0)
        try:
            while True:
                await self._pipe.receive()
        except Gone:
            pass

    def _lost(self, gone: Gone) -> None:
        """The peer, or the network, ended it."""
        self._gone = True
        if self._state == "open":
            self._finish(gone.code, gone.reason)
        else:
            self._writer.stop()  # the closer sees to the rest

    def _finish(self, code: int, reason: str) -> None:
        if self._state == "closed":
            return
        if self._state == "open":
            self.close_code, self.close_reason = code, reason
        self._state = "closed"
        self._interrupt_reader()
        self._writer.stop()
        self._deadlines.close()

    # -- reading

    def __aiter__(self) -> AttachedConnection:
        return self

    async def __anext__(self) -> str | bytes:
        """The next message; ends when the connection does, in whatever way: see :attr:`close_code`.

        Cancellation: safe, no message is lost.

        :raises UsageError: while another task is reading.
        :raises NotRunning: before the ``async with`` block.
        """
        if self._state == "created":
            raise NotRunning("read inside `async with attach(…) as conn` only")
        if self._scope is not None:
            raise UsageError("another task is reading from this socket")
        if self._state != "open":
            raise StopAsyncIteration
        scope = Timeout(self._clock, None)
        try:
            async with scope:
                self._scope = scope
                try:
                    if self._bucket is not None:
                        await self._hold_back(self._bucket)
                    return await self._receive()
                finally:
                    self._scope = None
        except TimeoutError:
            if not scope.expired():
                raise
            raise StopAsyncIteration from None
        except Gone as gone:
            self._lost(gone)
            raise StopAsyncIteration from None

    async def _hold_back(self, bucket: TokenBucket) -> None:
        """Do not read before one more message may be given to the host."""
        while (wait := bucket.wait(1, self._clock.monotonic())) > 0:
            began = self._clock.monotonic()
            await sleep(self._clock, wait)
            self._held_back += self._clock.monotonic() - began

    async def _receive(self) -> str | bytes:
        tracked = self._beat if not self._pipe.reads_ahead else None
        if tracked is not None:
            tracked.resumed(self._clock.monotonic())
            self._set_heartbeat(tracked)
        try:
            while True:
                message = await self._pipe.receive()
                now = self._clock.monotonic()
                if message == self._policy.pong_text:
                    if self._beat is not None and self._beat.pong(now):
                        self._set_heartbeat(self._beat)
                    continue
                if tracked is not None and tracked.heard(now):
                    self._set_heartbeat(tracked)
                if self._bucket is not None:
                    self._bucket.take(1, now)
                self._received += 1
                return message
        finally:
            if tracked is not None:
                tracked.paused(self._clock.monotonic())
                self._set_heartbeat(tracked)

    def _interrupt_reader(self) -> None:
        scope = self._scope
        if scope is not None and not scope.expired():
            scope.reschedule(self._clock.monotonic())

    # -- writing

    def send_nowait(self, data: str | bytes, /, *, key: Hashable = None) -> bool:
        """Queue a message. Never waits.

        :param key: what the overflow policy ``latest_per_key`` tells messages apart by.
        :return: False if it will not be sent: the connection is over or ending, or the outbox is full
            and its policy dropped this message or ended the connection (3008).
        :raises NotRunning: before the ``async with`` block.
        :raises UnicodeEncodeError: for a ``str`` with lone surrogates.
        """
        if self._state != "open":
            if self._state == "created":
                raise NotRunning("send inside `async with attach(…) as conn` only")
            return False
        spill = self._writer.push(data, self._policy.overflow, key)
        if spill is None:
            return True
        if spill.overflow:
            self._end(codes.SLOW_CONSUMER, "slow consumer", flush=False)
        return spill.queued

    async def drained(self) -> None:
        """Wait until all that was queued has been handed to the socket.

        Cancellation: safe.

        :raises ConnectionClosed: the connection ended first, and something was not sent.
        """
        await self._writer.idle()
        if self._writer.undelivered:
            raise ConnectionClosed(self.close_code or 1006, self.close_reason)

    def _write_failed(self, code: int, reason: str) -> None:
        self._end(code, reason, flush=False)

    # -- heartbeat

    def _heartbeat(self) -> None:
        beat = self._beat
        if beat is None:
            return
        now = self._clock.monotonic()
        action = beat.due(now)
        if action is Action.DEAD:
            if self._pipe.is_reading():
                self._end(codes.NO_PONG, "no pong", flush=False)
                return
            beat.heard(now)  # a full read queue: its pong could not be heard (C2)
        elif action is Action.PING:
            if self._pipe.can_ping:
                _ = self._tasks.spawn(self._ping, beat, name="attached socket: ping")
            elif self._policy.ping_text is not None:
                # Where even the reserve has no room for it, it stays unanswered, and that will tell.
                self._writer.put_text(self._policy.ping_text)
        self._set_heartbeat(beat)

    def _set_heartbeat(self, beat: HeartbeatState) -> None:
        if self._beat_at is not None:
            # A stall of ours puts off what we think of the peer, not what it wants to hear of us (F5).
            self._beat_at.move(beat.next_at, patient=beat.judging)

    async def _ping(self, beat: HeartbeatState) -> None:
        def answered(pong: asyncio.Future[Any]) -> None:
            if not pong.cancelled() and pong.exception() is None:
                beat.pong(self._clock.monotonic())
                self._set_heartbeat(beat)

        try:
            pong = await self._pipe.ping()
        except Gone as gone:
            self._lost(gone)
        else:
            pong.add_done_callback(answered)

    # -- looking at it

    @property
    def latency(self) -> float | None:
        """Seconds the last measured pong took; None before the first."""
        return None if self._beat is None else self._beat.latency

    def statistics(self) -> AttachedConnectionStatistics:
        """What it has done so far."""
        return AttachedConnectionStatistics(
            state=self._state,
            received=self._received,
            sent=self._writer.sent,
            sent_bytes=self._writer.sent_bytes,
            held_back=self._held_back,
            latency=self.latency,
            outbox=self._writer.outbox.statistics(),
        )

    def __repr__(self) -> str:
        ended = "" if self.close_code is None else f" with {self.close_code}"
        return f"<AttachedConnection {self._state}{ended}, {self._writer.outbox!r}>"
