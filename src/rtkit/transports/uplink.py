"""What transports without a pipe of their own upwards have in common: requests put in order, and goodbyes as units.

Requests of one client travel on several connections, and overtake each other; one whose answer was lost comes
again. Their number says where each belongs (T3).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import Final, final

__all__ = ["Taken", "Uplink", "goodbye"]

#: Requests that may be held while an earlier one is missing, and their bytes together (T3).
AHEAD: Final = 64
AHEAD_BYTES: Final = 1024 * 1024


class Taken(Enum):
    """What became of a request."""

    DONE = "done"
    """It was carried out, or will be when those before it have come."""
    REPEATED = "repeated"
    """It had been taken before; nothing was done."""
    REFUSED = "refused"
    """It is too far ahead, or too much is held: the same one again, later."""


@final
class Uplink:
    """Puts numbered frames in order, each once. Plain state.

    :param deliver: gets each frame in its turn.
    """

    __slots__ = ("_deliver", "_held", "_size", "_turn", "next")

    def __init__(self, deliver: Callable[[bytes], object]) -> None:
        self._deliver = deliver
        self.next = 1
        self._held: dict[int, bytes] | None = None
        self._size = 0
        self._turn = False

    def take(self, seq: int, frame: bytes) -> Taken:
        """A frame came in.

        :param seq: 1, 2, 3 … in the order of sending.
        :raises ValueError: for a number that is not positive.
        """
        if seq < 1:
            raise ValueError(f"seq is positive, not {seq!r}")
        if seq < self.next or (self._held is not None and seq in self._held):
            return Taken.REPEATED
        if seq > self.next or self._turn:
            if seq - self.next >= AHEAD or self._size + len(frame) > AHEAD_BYTES:
                return Taken.REFUSED
            if self._held is None:
                self._held = {}
            self._held[seq] = frame
            self._size += len(frame)
            return Taken.DONE
        self._turn = True
        try:
            self.next += 1
            self._deliver(frame)
            while self._held and (following := self._held.pop(self.next, None)) is not None:
                self._size -= len(following)
                self.next += 1
                self._deliver(following)
            if not self._held:
                self._held = None
        finally:
            self._turn = False
        return Taken.DONE

    def __repr__(self) -> str:
        return f"<Uplink next={self.next}, {len(self._held or ())} held>"


def goodbye(code: int, reason: str) -> bytes:
    """The unit that stands for a WebSocket's close frame."""
    return json.dumps({"push": {"disconnect": {"code": code, "reason": reason}}}, ensure_ascii=False).encode()
