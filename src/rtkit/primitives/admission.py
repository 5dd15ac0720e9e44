"""Who may come in now, and when the others shall come back (F2). State only, no clock.

Two bounds: so many newcomers a second, by a token bucket, and so many *handshakes* at once: newcomers who have not
said yet who they are. Beyond either, a newcomer is refused, and told when to come back.

*When* is a place in a queue that nobody stands in. Each refusal adds one to a backlog that drains as fast as newcomers
are let in, so that the backlog, divided by the rate, is when this one's turn is; its window begins there, and is as
long for everybody::

    refused   ▏ 1st ▏ 2nd ▏ 3rd ▏ …         each place is 1 / rate later
              └──────── wait ────────┤ spread ├      the window of the third

Those who obey come back about as fast as they are let in, in the order they came. (A window from 0 to the wait, which
looks fairer, has most of them come early, be refused again, and fall behind: with 20,000 at once that is half as long
again, and half as many refusals again.) Who does not obey finds the bucket empty, and moves to the end.

The queue has no memory of anybody, only its length; it is bounded by *longest*, so that a flood of strangers who
never come back is forgotten in as many seconds. Who finds no place in it is spread over its second half.

The rate may change at any time (:meth:`Admission.adjust`). Who has been told a place keeps it, for nobody can be told
another; who comes next is told one behind as many as before, at the new rate.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from .ratelimit import Rate

__all__ = ["Admission", "AdmissionStatistics"]


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """Where an :class:`Admission` stood when it was last asked.

    :param handshakes: under way.
    :param backlog: of those who were refused, how many have yet to come, if they obey.
    """

    handshakes: int
    backlog: float


@final
class Admission:
    """See the module's theory. Every *now* is seconds of one monotonic clock.

    ::

        if (window := admission.refuse(clock.monotonic())) is not None:
            ...  # come back in window[0] to window[1] seconds
        with admission.handshake():
            user = await authenticate(...)

    :param rate: newcomers a second, and how many at once after a rest; None for any number.
    :param handshakes: at once; None for any number.
    :param spread: seconds a window is long.
    :param longest: seconds until the end of a window, at the most.
    :raises ValueError: for a number that is not positive, and for a *spread* that does not fit into *longest* twice.
    """

    __slots__ = (
        "_bucket",
        "_drain",
        "_empty_at",
        "_handshakes",
        "_longest",
        "_now",
        "_rate",
        "_spread",
        "_under_way",
    )

    def __init__(
        self,
        rate: Rate | None = None,
        *,
        handshakes: int | None = None,
        spread: float = 0.5,
        longest: float = 60.0,
    ) -> None:
        if handshakes is not None and handshakes < 1:
            raise ValueError(f"Admission(handshakes=…) is at least 1 or None, not {handshakes!r}")
        if not (spread > 0 and 2 * spread <= longest < math.inf):
            raise ValueError(
                f"Admission(spread={spread!r}, longest={longest!r}): seconds, the second at least twice the first"
            )
        self._bucket = None if rate is None else rate.bucket()
        # Without a rate there is no telling how fast they come in; then everybody has the same window.
        self._rate = None if rate is None else rate.rate
        self._drain = math.inf if self._rate is None else self._rate
        self._handshakes = handshakes
        self._spread = spread
        self._longest = longest
        self._under_way = 0
        self._empty_at = -math.inf
        self._now = -math.inf

    @property
    def crowded(self) -> bool:
        """There are as many handshakes as there may be."""
        return self._handshakes is not None and self._under_way >= self._handshakes

    def refuse(self, now: float) -> tuple[float, float] | None:
        """A newcomer: None if it may come in, or else least and most seconds after which it shall come back."""
        self._now = max(self._now, now)
        if not self.crowded and (self._bucket is None or self._bucket.take(1, now) == 0):
            return None
        self._empty_at = max(self._empty_at, self._now) + 1 / self._drain
        wait, last = self._empty_at - self._now, self._longest - self._spread
        if wait > last:
            self._empty_at = self._now + last
            return self._longest / 2, self._longest
        return wait, wait + self._spread

    @property
    def rate(self) -> float | None:
        """Newcomers a second; None for any number."""
        return self._rate

    def adjust(self, rate: float, now: float, *, places: float | None = None) -> None:
        """Let in *rate* newcomers a second from *now* on; as many at once as before.

        :param places: in the queue, a second; None for as many as are let in. Where the rate goes up and down, places
            are better given out by what it comes to.
        :raises ValueError: for a number that is not positive and finite, and where any number is let in.
        """
        if self._bucket is None:
            raise ValueError("an Admission without a rate has none to adjust")
        places = Rate(rate if places is None else places, 1).rate  # validates
        backlog = self.backlog(now)
        self._bucket.adjust(rate, now)
        self._now = max(self._now, now)
        self._rate, self._drain = rate, places
        self._empty_at = self._now + min(backlog / places, self._longest - self._spread)

    def began(self) -> None:
        """A newcomer that was let in begins its handshake; :meth:`ended` has to follow."""
        self._under_way += 1

    def ended(self) -> None:
        """It has said who it is, or is gone.

        :raises RuntimeError: when none was under way.
        """
        if not self._under_way:
            raise RuntimeError("a handshake ended that had not begun")
        self._under_way -= 1

    @contextmanager
    def handshake(self) -> Generator[None]:
        """The block is a handshake: between :meth:`began` and :meth:`ended`."""
        self.began()
        try:
            yield
        finally:
            self.ended()

    def backlog(self, now: float) -> float:
        """Of those who were refused, how many have yet to come, if they obey. 0 without a rate."""
        wait = self._empty_at - max(self._now, now)
        return wait * self._drain if wait > 0 else 0.0

    def statistics(self) -> AdmissionStatistics:
        """Where it stood when it was last asked."""
        return AdmissionStatistics(handshakes=self._under_way, backlog=self.backlog(self._now))

    def __repr__(self) -> str:
        return f"<Admission {self._under_way} handshakes, {self.backlog(self._now):.0f} refused and to come>"
