"""What a family of rooms is declared with to bound the signals in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from .running import Running

__all__ = ["Signals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Members of the family's rooms send signals at most so often; of more, the newest counts.

    That is for clients: ``room.signal(…)`` on the server is not held back.

    :param rate: signals a second, of each client and event.
    :raises ValueError: for a rate that is not a positive, finite number.
    """

    kind = "signals"

    rate: float = 20.0

    def __post_init__(self) -> None:
        rate: object = self.rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < inf:
            raise ValueError(f"Signals(rate=…) is a positive number of signals a second, not {rate!r}")

    def begin(self, engine: Engine) -> Running:
        """Signals for one run of a hub."""
        from .running import Running

        return Running(engine)
