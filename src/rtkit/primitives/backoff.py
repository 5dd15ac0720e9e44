"""How long to stay away before trying again (F3).

Full jitter: the delay is drawn evenly between *minimum* and a ceiling that grows by *factor* with
each attempt, up to *maximum*. Drawing from the whole range, and not around the ceiling, is what
spreads a crowd that lost its server in the same instant. A window the server named wins: it knows
how many are waiting and how many it can take.
"""

from __future__ import annotations

import math
import random as _random
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

__all__ = ["Backoff", "BackoffStatistics"]


@dataclass(frozen=True, slots=True)
class BackoffStatistics:
    """Where a :class:`Backoff` stands.

    :param attempts: delays given since the last reset.
    :param ceiling: seconds the next one is at the most.
    """

    attempts: int
    ceiling: float


@final
class Backoff:
    """Delays between attempts.

    :param minimum: no delay is shorter, in seconds.
    :param maximum: nor longer.
    :param factor: how the ceiling grows; the first is ``minimum * factor``.
    :param random: a ``random.Random``, or a function that draws from 0 to 1.
    :raises ValueError: unless 0 < minimum <= maximum, all finite, and factor >= 1.
    """

    __slots__ = ("_attempts", "_ceiling", "_draw", "_factor", "_maximum", "_minimum")

    def __init__(
        self,
        *,
        minimum: float = 0.5,
        maximum: float = 20.0,
        factor: float = 2.0,
        random: _random.Random | Callable[[], float] = _random.random,
    ) -> None:
        if not 0 < minimum < math.inf:
            raise ValueError(f"Backoff(minimum=…) is positive finite seconds, not {minimum!r}")
        if not minimum <= maximum < math.inf:
            raise ValueError(f"Backoff(maximum=…) is finite seconds, at least {minimum!r}, not {maximum!r}")
        if not 1 <= factor < math.inf:
            raise ValueError(f"Backoff(factor=…) is at least 1 and finite, not {factor!r}")
        self._minimum = minimum
        self._maximum = maximum
        self._factor = factor
        self._draw: Callable[[], float] = random.random if isinstance(random, _random.Random) else random
        self.reset()

    def reset(self) -> None:
        """It worked: the next failure begins anew."""
        self._attempts = 0
        self._ceiling = min(self._maximum, self._minimum * self._factor)

    @property
    def attempts(self) -> int:
        """Delays given since the last reset."""
        return self._attempts

    def next(self, window: tuple[float, float] | None = None) -> float:
        """Seconds to wait before the next attempt.

        :param window: least and most seconds as the server said; wins over our own reckoning.
        :raises ValueError: for a window that is negative, infinite or backwards.
        """
        low, high = self._minimum, self._ceiling
        if window is not None:
            low, high = window
            if not 0 <= low <= high < math.inf:
                raise ValueError(f"a window is (least, most) seconds, not {window!r}")
        self._attempts += 1
        self._ceiling = min(self._maximum, self._ceiling * self._factor)
        return low + (high - low) * self._draw()

    def statistics(self) -> BackoffStatistics:
        """Where it stands."""
        return BackoffStatistics(attempts=self._attempts, ceiling=self._ceiling)

    def __repr__(self) -> str:
        return f"<Backoff {self._attempts} attempts, next within {self._ceiling:g} s>"
