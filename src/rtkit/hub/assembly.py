"""What is too large to come in whole: a connection's chunks are put together, within bounds for all of them (T8, F1).

Of one connection one large unit at a time is under way, of at most ``Limits.large`` bytes; of all connections together
at most ``Limits.assembling`` bytes are. What shows that a unit cannot be taken has it refused as a whole: its sender
is told once, and what still comes of it is passed over. A unit that is never finished is refused when its time is up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from .. import codes
from ..primitives.deadlines import Deadline
from ..wire import Assembler, BadChunk, Chunk

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Assembly"]

#: A chunk with less, unless it is the last, counts as a pong does: many tiny ones cost more than their bytes (F1).
_SMALL: Final = 1024


@final
class Assembly:
    """What comes in large over one connection; begun with its first chunk.

    :param refused: called with each refusal, which its sender is to be told. It may let go of this.
    :param paused: whether it is we who do not read.
    """

    __slots__ = ("_assembler", "_counted", "_deadline", "_engine", "_paused", "_refused")

    def __init__(
        self, engine: Engine, refused: Callable[[BadChunk, float], None], paused: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._refused = refused
        self._paused = paused
        self._assembler = Assembler(limit=engine.limits.large)
        self._counted = 0  # bytes of this in `engine.assembling`
        self._deadline: Deadline | None = None

    def costs(self, chunk: Chunk) -> bool:
        """Whether a chunk costs its sender something besides its bytes."""
        return self._assembler.passes_over(chunk.of) or (len(chunk.data) < _SMALL and not chunk.last)

    def add(self, chunk: Chunk, now: float, wait: float) -> bytes | None:
        """Take a chunk.

        :param wait: seconds that its sender has to wait for what it costs; the unit is refused then.
        :return: the unit, when it is whole.
        """
        assembler, engine = self._assembler, self._engine
        try:
            if not assembler.passes_over(chunk.of):
                if wait:
                    raise assembler.refuse(
                        chunk.of, "too many requests", codes.TOO_MANY_REQUESTS, round(wait, 3)
                    )
                if engine.assembling + len(chunk.data) > engine.limits.assembling:
                    engine.counters.add("limits", "assembling")
                    raise assembler.refuse(
                        chunk.of, "too many large units at once", codes.TOO_MANY_REQUESTS, 1.0
                    )
            unit = assembler.add(chunk, now)
        except BadChunk as error:
            self._changed()
            self._refused(error, now)
            return None
        self._changed()
        return unit

    def _changed(self) -> None:
        """Count what is there now, and have it forgotten in time if it is never finished."""
        assembler = self._assembler
        self._engine.assembling += assembler.size - self._counted
        self._counted = assembler.size
        if not assembler:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self._engine.deadlines.at(assembler.expires_at, self._abandoned)
        else:
            self._deadline.move(assembler.expires_at)

    def _abandoned(self) -> None:
        now = self._engine.clock.monotonic()
        self._deadline = None
        if self._paused():
            self._assembler.hold(now)
        error = self._assembler.expire(now)
        self._changed()
        if error is not None:
            self._refused(error, now)

    def resumed(self, now: float) -> None:
        """It is read again: its sender had to wait until now."""
        self._assembler.hold(now)
        self._changed()

    def let_go(self) -> None:
        """Forget what is under way: the connection is over."""
        self._engine.assembling -= self._counted
        self._counted = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def __repr__(self) -> str:
        return f"<Assembly of {self._counted} bytes>"
