"""What a family of rooms is declared with to have receipts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from .running import Running

__all__ = ["Receipts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipts:
    """Rooms of the family know how far their users have got and read.

    :param kept: seconds for which a user's marks are kept after they last moved.
    :param shared: whether members are told of everybody's marks. Else each is told of its own user's alone, which is
        enough to count what is unread, on all of the user's devices.
    :raises ValueError: for a time that is not positive.
    """

    kind = "receipts"

    kept: float = 30 * 86400.0
    shared: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.kept < math.inf:
            raise ValueError(f"Receipts(kept=…) is positive seconds, not {self.kept!r}")

    def begin(self, engine: Engine) -> Running:
        """Receipts for one run of a hub.

        :raises ~rtkit.errors.NotSupported: for a broker that keeps no state.
        """
        from .running import Running

        return Running(engine)
