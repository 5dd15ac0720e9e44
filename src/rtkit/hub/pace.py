"""How many newcomers a second a node lets in: as many as leave its event loop on time (F2, K4).

What one newcomer costs depends on the application's ``authenticate`` and ``on_join``, on what there is to recover, on
the machine, and on what else it does at the moment. Nobody knows that number; but whether it was too high can be seen:
the loop is late, and everybody on the node waits. So while newcomers come it is looked at twenty times a second::

    it was late                       the rate falls, by three tenths
    it was not, and more would come   it rises, by a twentieth: to two and a half times as much in a second
    nobody was turned away            it stays

The first is faster than the second, or the node would be late half of the time (this is how TCP finds the width of a
path). What has been found is kept for the next time. ``Limits(accepts=…)`` is the most it may rise to.

Places in the queue are given out by the average of a quarter of a minute, and a quarter more. For a storm's first
second decides: nearly all come then, and are told when to come again, while the rate is at its lowest, since turning
away thousands takes all the time there is. The quarter is so that there is somebody to try a higher rate with; who
comes too early costs little.

It begins with a rate that a slow core can carry beside other work, and never falls below one that costs next to
nothing, for the loop may be late for other reasons.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..primitives.admission import Admission
    from ..primitives.deadlines import Deadline
    from .engine import Engine

__all__ = ["Pace", "paced"]

#: Newcomers a second at the beginning, and at the least.
FIRST: Final = 200.0
LEAST: Final = 50.0
#: Seconds between two looks at the loop, and after the last newcomer until it is not looked at any more.
LOOK: Final = 0.05
REST: Final = 1.0
#: Seconds over which the rate is averaged, and places in the queue for each that is let in.
AVERAGE: Final = 15.0
PLACES: Final = 1.25
_RISE: Final = 1.05
_FALL: Final = 0.7


def paced(rate: float, *, late: bool, wanted: bool, most: float) -> float:
    """The rate after a look at the loop.

    :param rate: newcomers a second until now.
    :param late: the loop was, by more than is bearable.
    :param wanted: somebody was turned away for the rate.
    :param most: newcomers a second.
    """
    if late:
        return max(min(LEAST, most), rate * _FALL)
    return min(most, rate * _RISE) if wanted else rate


class Pace:
    """Adjusts an admission that has a rate.

    :param most: newcomers a second.
    :param bearable: seconds the loop may be late while they come.
    """

    __slots__ = ("_average", "_bearable", "_core", "_deadline", "_engine", "_last", "_most", "_wanted")

    def __init__(self, engine: Engine, core: Admission, most: float, bearable: float) -> None:
        self._engine = engine
        self._core = core
        self._most = most
        self._bearable = bearable
        self._deadline: Deadline | None = None
        self._last = 0.0
        self._wanted = False
        self._average = min(FIRST, most)
        self._adjust(self._average, engine.clock.monotonic())

    @property
    def looking(self) -> bool:
        """Whether one of the engine's deadlines is its own."""
        return self._deadline is not None and self._deadline.armed

    def came(self, now: float, *, refused: bool) -> None:
        """There was a newcomer."""
        self._last = now
        self._wanted = self._wanted or refused
        if self._deadline is None:
            self._deadline = self._engine.deadlines.at(now + LOOK, self._look)
        elif not self._deadline.armed:
            self._deadline.move(now + LOOK)

    def _look(self) -> None:
        assert self._deadline is not None
        now = self._engine.clock.monotonic()
        lag = now - self._deadline.when
        rate = self._core.rate
        assert rate is not None, "it has one"
        rate = paced(rate, late=lag > self._bearable, wanted=self._wanted, most=self._most)
        self._wanted = False
        self._average += (rate - self._average) * -math.expm1(-(LOOK + lag) / AVERAGE)
        self._adjust(rate, now)
        if now - self._last < REST:
            self._deadline.move(now + LOOK)

    def _adjust(self, rate: float, now: float) -> None:
        self._core.adjust(rate, now, places=min(self._most, PLACES * self._average))

    def __repr__(self) -> str:
        return f"<Pace {self._core.rate:.0f} of {self._most:.0f} a second>"
