"""One client that types: what it says, and what the others were told (X1). Pure: every *now* is an argument.

What is *true* of it is its last word, for as long as that holds: ``true`` for :attr:`expires` seconds, ``false`` for
good. To send a message, to leave and to lose the connection is to say ``false``. What is *told* follows, at once, but

- changes at most :data:`CHANGES` times in any second. What changes more often is told when it may be, as it is then:
  so the last word always gets through;
- of a ``true`` that is only repeated, once in a third of the time after which it expires at those who were told. So
  whoever keeps saying it at least every half of that never expires.

Whoever does neither type nor has been told of within the last second is forgotten; see :meth:`Typist.look_at`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["CHANGES", "Typist"]

#: Changes of one client that are told in any second, at the most.
CHANGES: Final = 4
_SECOND: Final = 1.0
#: Seconds by which a clock may be early: sums of floats are.
_HAIR: Final = 1e-6


class Typist:
    """See the module's theory. Each *now* is seconds of one monotonic clock.

    :param expires: seconds that a ``true`` holds.
    :ivar typing: its last word.
    :ivar told: what the others were told last.
    """

    __slots__ = ("_changed", "_expires", "_repeated", "_told_at", "_until", "told", "typing")

    def __init__(self, expires: float) -> None:
        self._expires = expires
        self.typing = False
        self.told = False
        self._until = 0.0
        self._told_at = 0.0
        self._repeated = False  # since it was told
        self._changed: deque[float] = deque(maxlen=CHANGES)  # when changes were told

    def says(self, typing: bool, now: float) -> None:
        """Its word; :meth:`tell` says what to do about it."""
        self.typing = typing
        self._repeated = typing
        if typing:
            self._until = now + self._expires

    def tell(self, now: float) -> bool | None:
        """What to tell the others now, and only now; None for nothing."""
        if self.typing and now + _HAIR >= self._until:
            self.typing = self._repeated = False
        if self.typing is not self.told:
            if len(self._changed) == CHANGES and now + _HAIR < self._changed[0] + _SECOND:
                return None
            self._changed.append(now)
            self.told = self.typing
        elif not self._repeated or now + _HAIR < self._told_at + self._expires / 3:
            return None
        self._told_at = now
        self._repeated = False
        return self.told

    def look_at(self, now: float) -> float | None:
        """When to :meth:`tell` again, having just done so; None when there is nothing left to know of it."""
        if self.typing is not self.told:
            when = self._changed[0] + _SECOND
            return min(when, self._until) if self.typing else when
        if self.typing:
            return min(self._until, self._told_at + self._expires / 3) if self._repeated else self._until
        quiet_at = self._changed[-1] + _SECOND if self._changed else now
        return quiet_at if now + _HAIR < quiet_at else None

    def __repr__(self) -> str:
        return f"<Typist: {self.typing}, told {self.told}>"
