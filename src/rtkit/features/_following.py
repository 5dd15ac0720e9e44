"""Following what the broker keeps under one key, by the positions of its revisions (P2). Pure: no task, no clock.

The broker has the truth: the fields of one key, and a position that counts how often they were revised. Each revision
is announced with its position. A follower says what to do with it:

=====================================  ==========================================================================
what is announced                      what a follower says
=====================================  ==========================================================================
the next revision                      apply it
one that was applied already           nothing: an announcement may be late
any other, or another epoch            that a read is needed, and nothing more is to be applied until then
=====================================  ==========================================================================

A read shows the fields and their position at one moment. Another one is needed when more was announced while it was
under way than it shows.
"""

from __future__ import annotations

from ..position import Position

__all__ = ["Follower"]


class Follower:
    """Where somebody stands who follows the revisions of one key.

    :ivar position: of the last revision that was applied or read; None before the first read.
    :ivar wants_read: it cannot go on without a read.
    """

    __slots__ = ("_announced", "position", "wants_read")

    def __init__(self) -> None:
        self.position: Position | None = None
        self.wants_read = True
        self._announced: list[Position] = []  # since the read began

    def advances(self, position: Position) -> bool:
        """A revision was announced; whether it is the next one, and to be applied. See :attr:`wants_read`."""
        if self.wants_read or self.position is None:
            # Only the last of each epoch can matter: a read shows all before it.
            if self._announced and self._announced[-1].epoch == position.epoch:
                self._announced.pop()
            self._announced.append(position)
        elif position.epoch != self.position.epoch or position.offset > self.position.offset + 1:
            self.wants_read = True
        elif position.offset == self.position.offset + 1:
            self.position = position
            return True
        return False

    def reading(self) -> None:
        """A read begins: it will show all that was announced before."""
        self.wants_read = True
        self._announced.clear()

    def has_read(self, position: Position) -> None:
        """That is where the read has found it. It asks for another when more was announced meanwhile."""
        self.position = position
        self.wants_read = any(
            each.epoch != position.epoch or each.offset > position.offset for each in self._announced
        )
        self._announced.clear()

    def differs(self, position: Position) -> bool:
        """Whether the broker's position shows that something was missed."""
        return self.position != position
