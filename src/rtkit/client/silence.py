"""Noticing that the server is gone: nothing was heard for too long (F4), and it was not we who did not listen (F5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

from ..clock import Clock, Timer
from ..primitives.heartbeat import SilenceWatch

__all__ = ["Silence"]

#: A timer that comes later than this shows that we were stalled, not the server silent (F5).
_LATE: Final = 1.0
#: Seconds to hear something after that. A machine that stood still may have the server on it, which pings again
#: when it has looked around itself.
_GRACE: Final = 5.0
#: Seconds between looks once a ping is overdue: a stall that ends shortly before the silence is too long shows, too.
_LOOK: Final = 2.5


@final
class Silence:
    """Watches one connection after another.

    :param silence: seconds beyond the server's ping interval in which nothing need be heard.
    :param clock: measures them.
    :param gone: called when it was silent for longer.
    """

    __slots__ = ("_at", "_clock", "_gone", "_patient_until", "_silence", "_timer", "_watch")

    def __init__(self, silence: float, *, clock: Clock, gone: Callable[[], None]) -> None:
        self._silence = silence
        self._clock = clock
        self._gone = gone
        self._watch: SilenceWatch | None = None
        self._at = math.inf
        self._patient_until = -math.inf
        self._timer: Timer | None = None

    def watch(self, interval: float, now: float) -> None:
        """From now on the server pings every *interval* seconds."""
        self._watch = SilenceWatch(interval, self._silence, now)
        self._again(now + interval)

    def heard(self, now: float) -> None:
        """Something came in."""
        if self._watch is not None:
            self._watch.heard(now)

    def stop(self) -> None:
        """The connection is gone."""
        self._watch = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self, when: float) -> None:
        self._at = when
        self._timer = self._clock.call_at(when, self._look)

    def _look(self) -> None:
        watch, now = self._watch, self._clock.monotonic()
        if watch is None:
            return
        if now - self._at > _LATE:
            self._patient_until = now + _GRACE
        expected, end = watch.next_at - self._silence, max(watch.next_at, self._patient_until)
        if now < end:
            self._again(max(expected, min(end, now + _LOOK)))
        else:
            self._gone()

    def __repr__(self) -> str:
        return f"<Silence {self._watch!r}>"
