"""Is the peer still there? State only: time comes in as an argument, the caller sends and closes.

The side that pings (F4)
------------------------
::

    start ──► WAIT ──(the ping's moment)──► PING ──► WAIT for the pong ──(timeout)──► DEAD
               ▲                                        │
               └──────────── anything heard ────────────┘

- Pings go out every *interval*, the first at a random moment within it, so that ten thousand
  clients that came back at once are not pinged at once for ever after; a late one does not move those
  that follow, for the same reason. Traffic does not put pings off: the peer's own watch relies on
  hearing one.
- Anything heard after a ping proves life as well as its pong does; only a pong measures the latency.
- No second ping goes out while one is unanswered, so *timeout* may be longer than *interval*.
- A peer is dead *timeout* after an unanswered ping: gone within interval + timeout of its last sign.
- While we ourselves have paused reading, its answer cannot be heard, so the deadline stands still and
  goes on with what was left of it when reading goes on (C2). Pings still go out: they tell the peer
  that we live.
- A ping that stands behind what a slow peer has not read yet is not heard yet. Whoever sends it may know
  that: while the peer takes something, and when the ping itself leaves at last, its time begins anew.

What comes next is a ping or a judgement (:attr:`HeartbeatState.judging`). When we ourselves stood still,
a judgement has to be put off, for we did not listen; a ping is overdue, for the peer did (F5).

The side that is pinged only watches for silence (:class:`SilenceWatch`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

__all__ = [
    "Action",
    "Heartbeat",
    "HeartbeatState",
    "HeartbeatStatistics",
    "SilenceWatch",
    "SilenceWatchStatistics",
]

_NEVER: Final = math.inf


class Action(Enum):
    """What :meth:`HeartbeatState.due` asks of its caller."""

    PING = "ping"
    """Send a ping now."""
    DEAD = "dead"
    """The peer is gone: close with 3012 (no pong)."""
    WAIT = "wait"
    """Nothing; come back at ``next_at``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How often to ping and how long to wait for an answer (F4).

    :param interval: seconds between pings.
    :param timeout: seconds a ping may stay unanswered.
    :raises ValueError: for one that is not positive and finite.
    """

    interval: float = 25.0
    timeout: float = 10.0

    def __post_init__(self) -> None:
        for name, value in (("interval", self.interval), ("timeout", self.timeout)):
            if not 0 < value < math.inf:
                raise ValueError(f"Heartbeat({name}=…) is positive finite seconds, not {value!r}")


@dataclass(frozen=True, slots=True)
class HeartbeatStatistics:
    """What a :class:`HeartbeatState` knows.

    :param latency: seconds the last measured pong took; None before the first.
    :param unanswered: a ping is waiting for its answer.
    :param paused: reading is paused, the pong deadline stands still.
    """

    latency: float | None
    unanswered: bool
    paused: bool


@final
class HeartbeatState:
    """The heartbeat of one connection, from the side that pings.

    Every *now* is seconds of one monotonic clock. Call :meth:`start` first, :meth:`due` whenever
    ``next_at`` has come, and read ``next_at`` again after each call of it, after ``delayed`` and ``resumed``, and
    when ``heard`` or ``pong`` say so.
    """

    __slots__ = ("_paused_at", "_ping_at", "_pinged_at", "_policy", "_pong_by", "latency")

    def __init__(self, policy: Heartbeat) -> None:
        self._policy = policy
        self._ping_at = _NEVER
        self._pong_by = _NEVER  # in a time that stands still while reading is paused
        self._pinged_at = _NEVER  # of the ping whose pong tells the latency
        self._paused_at = _NEVER
        self.latency: float | None = None
        """Seconds the last measured pong took; None before the first."""

    def start(self, now: float, random_fraction: float) -> float:
        """Begin; return when to ping first: *random_fraction* of an interval from *now*.

        :raises ValueError: for a fraction outside 0 to 1.
        """
        if not 0 <= random_fraction <= 1:
            raise ValueError(f"random_fraction is between 0 and 1, not {random_fraction!r}")
        self._ping_at = now + self._policy.interval * random_fraction
        return self._ping_at

    @property
    def next_at(self) -> float:
        """When to call :meth:`due` again; infinite before :meth:`start`."""
        if self._pong_by == _NEVER or self._paused_at != _NEVER:
            return self._ping_at
        return self._pong_by

    @property
    def judging(self) -> bool:
        """Whether at :attr:`next_at` it is decided that the peer is dead; else a ping goes out, or nothing does."""
        return self._pong_by != _NEVER and self._paused_at == _NEVER

    def due(self, now: float) -> Action:
        """Decide. On PING the ping counts as sent at *now*; DEAD stays DEAD until something is heard."""
        paused = self._paused_at != _NEVER
        if now >= self._pong_by and not paused:
            return Action.DEAD
        if now < self._ping_at or (self._pong_by != _NEVER and not paused):
            return Action.WAIT
        self._ping_at += self._policy.interval * (1 + (now - self._ping_at) // self._policy.interval)
        if self._pong_by == _NEVER:
            # By the time that stands still, a ping sent while paused is sent when the pause began.
            self._pong_by = (self._paused_at if paused else now) + self._policy.timeout
            self._pinged_at = _NEVER if paused else now
        return Action.PING

    def heard(self, now: float) -> bool:
        """Something came from the peer: it lives.

        :return: whether that was being waited for, so that :attr:`next_at` is another now.
        """
        awaited = self._pong_by != _NEVER
        self._pong_by = _NEVER
        self._pinged_at = _NEVER
        return awaited

    def pong(self, now: float) -> bool:
        """An answer to a ping came: the peer lives, this far away. An unasked one is harmless.

        :return: likewise.
        """
        if self._pinged_at != _NEVER:
            self.latency = now - self._pinged_at
        return self.heard(now)

    def delayed(self, now: float) -> None:
        """The ping has not left yet, or leaves only now: the time to answer it begins here (D1)."""
        if self._pong_by != _NEVER:
            self._pong_by = (now if self._paused_at == _NEVER else self._paused_at) + self._policy.timeout
            self._pinged_at = _NEVER  # its time would include the wait

    def paused(self, now: float) -> None:
        """We stopped reading: from now on an answer cannot be heard (C2). Idempotent."""
        if self._paused_at == _NEVER:
            self._paused_at = now
            self._pinged_at = _NEVER  # its time would include the pause

    def resumed(self, now: float) -> None:
        """We read again: the pong deadline goes on with what was left of it. Idempotent."""
        if self._paused_at != _NEVER:
            self._pong_by += now - self._paused_at
            self._paused_at = _NEVER

    def statistics(self) -> HeartbeatStatistics:
        """What is known now."""
        return HeartbeatStatistics(
            latency=self.latency, unanswered=self._pong_by != _NEVER, paused=self._paused_at != _NEVER
        )

    def __repr__(self) -> str:
        state = (
            "paused" if self._paused_at != _NEVER else "unanswered" if self._pong_by != _NEVER else "alive"
        )
        latency = "" if self.latency is None else f", latency {self.latency * 1000:.1f} ms"
        return f"<HeartbeatState {state}, next at {self.next_at:.3f}{latency}>"


@dataclass(frozen=True, slots=True)
class SilenceWatchStatistics:
    """What a :class:`SilenceWatch` knows.

    :param heard_at: when something was heard last, in seconds of its clock.
    :param next_at: when silence becomes death.
    """

    heard_at: float
    next_at: float


@final
class SilenceWatch:
    """The other side: the server is dead if nothing was heard for interval + timeout (F4).

    :param interval: seconds between the server's pings, as it announced them.
    :param timeout: seconds beyond that before it counts as dead.
    :param now: when the watch begins.
    :raises ValueError: for a time that is not positive and finite.
    """

    __slots__ = ("_allowed", "_heard_at")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        for name, value in (("interval", interval), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise ValueError(f"SilenceWatch({name}=…) is positive finite seconds, not {value!r}")
        self._allowed = interval + timeout
        self._heard_at = now

    @property
    def next_at(self) -> float:
        """When silence becomes death, if nothing is heard before."""
        return self._heard_at + self._allowed

    def heard(self, now: float) -> None:
        """Something came, a ping or anything else."""
        self._heard_at = now

    def dead(self, now: float) -> bool:
        """Whether the silence has lasted too long."""
        return now >= self._heard_at + self._allowed

    def statistics(self) -> SilenceWatchStatistics:
        """What is known now."""
        return SilenceWatchStatistics(heard_at=self._heard_at, next_at=self.next_at)

    def __repr__(self) -> str:
        return f"<SilenceWatch heard at {self._heard_at:.3f}, dead at {self.next_at:.3f}>"
