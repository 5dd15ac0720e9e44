"""Publications of this node on their way back to it, to measure how long a message takes to its members (M1).

Clocks of nodes differ, so a message's time stamp says little elsewhere. What a node can truly know is how long its own
publications take: through the broker and back, by its own clock.
"""

from __future__ import annotations

from typing import Final

from ..clock import Clock

__all__ = ["Underway"]

#: So many are looked for at the same time; a node with more under way has samples enough.
_MOST: Final = 256
#: Seconds after which one that did not come is looked for no more, if its place is needed.
_GONE: Final = 30.0


class Underway:
    """When publications began, by room and time stamp. Bounded; false while there are none."""

    __slots__ = ("_began", "_now")

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._began: dict[tuple[str, float], float] = {}

    def begin(self, room: str, stamp: float) -> None:
        """A message with this time stamp is about to be published to a room that has members here."""
        began, now = self._began, self._now()
        if len(began) >= _MOST:
            oldest = next(iter(began))
            if now - began[oldest] < _GONE:
                return
            del began[oldest]
        began.setdefault((room, stamp), now)

    def end(self, room: str, stamp: float) -> float | None:
        """It has come, or will not. When it began; None for one that is not looked for."""
        return self._began.pop((room, stamp), None)

    def __len__(self) -> int:
        return len(self._began)

    def __repr__(self) -> str:
        return f"<Underway {len(self._began)} publications>"
