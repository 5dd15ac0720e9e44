"""What a family of rooms is declared with so that it is shown who types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from .running import Running

__all__ = ["Typing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typing:
    """Members of the family's rooms are told who is typing.

    Who has the right ``signal`` may say so; every rtkit client in the room hears it.

    :param expires: seconds after which somebody who types, and says nothing more, has stopped; 1 to 60. Clients repeat
        it every half of that, so that a shorter time costs more signals, and a longer one shows those for longer whose
        node has died.
    :raises ValueError: for a time outside of that.
    """

    kind = "typing"

    expires: float = 5.0

    def __post_init__(self) -> None:
        expires: object = self.expires
        if isinstance(expires, bool) or not isinstance(expires, int | float) or not 1 <= expires <= 60:
            raise ValueError(f"Typing(expires=…) is 1 to 60 seconds, not {expires!r}")

    def begin(self, engine: Engine) -> Running:
        """Typing for one run of a hub."""
        from .running import Running

        return Running(engine)
