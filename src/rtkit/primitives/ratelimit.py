"""A token bucket: *rate* tokens a second, at most *burst* of them saved up (F1). State only, no clock.

Promise: whatever the moments of asking, what :meth:`TokenBucket.take` grants within any stretch of t
seconds is at most ``burst + rate * (t + 1e-6)``, to the precision of floats.

- The bucket starts full. Tokens flow in by the time that passed since the latest *now* ever seen; a
  clock that goes back brings nothing, nor does the way forward again until it passes that moment.
- A refusal takes nothing and names the wait. After exactly that wait the tokens are there: rounding
  could leave a hair missing, and a caller who then waits for the hair never gets anywhere, because
  adding it to a large clock reading changes nothing. So what is missing by less than the flow of a
  microsecond, or by less than a full bucket's rounding, is granted, and booked as debt, which keeps
  it from adding up.
- :meth:`TokenBucket.force` takes even what is not there. For what has already happened (bytes that
  were read): the debt is waited off before the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

__all__ = ["Rate", "TokenBucket", "TokenBucketStatistics"]

_HAIR: Final = 1e-6
"""Seconds of flow that may be missing, see above."""

_ROUNDING: Final = 1e-12
"""The share of a full bucket that may be missing."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How much a second, and how much at once.

    :param rate: tokens (commands, bytes) a second.
    :param burst: how many may be taken at once after a rest; an amount beyond it is never granted.
    :raises ValueError: for one that is not positive and finite.
    """

    rate: float
    burst: float

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("burst", self.burst)):
            if not 0 < value < math.inf:
                raise ValueError(f"Rate({name}=…) is a positive finite number, not {value!r}")

    def bucket(self) -> TokenBucket:
        """A full bucket of this rate."""
        return TokenBucket(self.rate, self.burst)


@dataclass(frozen=True, slots=True)
class TokenBucketStatistics:
    """What is in a :class:`TokenBucket`.

    :param tokens: there when it was last asked; negative is debt.
    :param rate: tokens a second.
    :param burst: tokens at the most.
    """

    tokens: float
    rate: float
    burst: float


@final
class TokenBucket:
    """See the module's theory. Every *now* is seconds of one monotonic clock.

    :param rate: tokens a second.
    :param burst: tokens at the most, and at the start.
    :raises ValueError: for one that is not positive and finite.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        Rate(rate, burst)  # validates
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = math.inf  # not asked yet

    def take(self, amount: float, now: float) -> float:
        """Take *amount* if it is there: 0.0. Else take nothing, and return the seconds until it could be.

        :return: infinite for an amount beyond the burst: it will never be there.
        :raises ValueError: for a negative amount.
        """
        wait = self.wait(amount, now)
        if wait == 0:
            self._tokens -= amount
        return wait

    def wait(self, amount: float, now: float) -> float:
        """Seconds until *amount* could be taken, 0.0 for now; takes nothing.

        :raises ValueError: for a negative amount.
        """
        self._flow(amount, now)
        if amount > self._burst:
            return math.inf
        missing = amount - self._tokens
        return 0.0 if missing <= self._rate * _HAIR + self._burst * _ROUNDING else missing / self._rate

    def force(self, amount: float, now: float) -> float:
        """Take *amount* whether it is there or not; return the seconds until the debt is gone, or 0.0.

        :raises ValueError: for a negative amount.
        """
        self._flow(amount, now)
        self._tokens -= amount
        return max(0.0, -self._tokens / self._rate)

    def adjust(self, rate: float, now: float) -> None:
        """Have *rate* tokens a second flow in from *now* on; the burst stays as it is.

        :raises ValueError: for one that is not positive and finite.
        """
        Rate(rate, self._burst)  # validates
        self._flow(0, now)
        self._rate = rate

    def _flow(self, amount: float, now: float) -> None:
        if not amount >= 0:
            raise ValueError(f"an amount of tokens is not negative, as {amount!r} is")
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        elif self._at == math.inf:
            self._at = now

    def statistics(self) -> TokenBucketStatistics:
        """What was there when it was last asked."""
        return TokenBucketStatistics(tokens=self._tokens, rate=self._rate, burst=self._burst)

    def __repr__(self) -> str:
        return f"<TokenBucket {self._tokens:.3g} of {self._burst:g}, {self._rate:g}/s>"
