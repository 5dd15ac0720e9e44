"""What passes of one client's signals in a room (D5). Pure: every *now* is an argument.

A signal passes at once when the last one of its event is long enough ago. Else it is *held*, in the place of an older
one of its event, and passes when that is so. A few events go on at the same time: of one more than :data:`EVENTS`
signals are held as if it had been heard of, until another has fallen silent; of one more that is held the oldest one
is dropped. So whatever a client sends, of each event no more than its rate passes, and what is kept of it is bounded.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

__all__ = ["EVENTS", "Pace"]

#: Different events that one client may use at the same time; likewise signals that are held of it.
EVENTS: Final = 16
#: Bytes that are held of it, but for the newest.
_HELD_BYTES: Final = 64 * 1024
#: Seconds that what is known of a client that fell silent is kept: one that goes on would have it made anew each time.
_LINGER: Final = 1.0
#: Seconds by which a clock may be early: sums of floats are.
_HAIR: Final = 1e-6


class Pace:
    """See the module's theory. Each *now* is seconds of one monotonic clock.

    :param rate: signals of an event that pass in a second.
    """

    __slots__ = ("_every", "_free_at", "_held", "_size")

    def __init__(self, rate: float) -> None:
        self._every = 1 / rate
        self._free_at: dict[
            str, float
        ] = {}  # of each event that has passed lately: when it may again, ascending
        self._held: dict[str, Raw] = {}
        self._size = 0

    def offer(self, event: str, data: Raw, now: float) -> bool:
        """A signal comes; whether it passes at once: else it is held, see :meth:`trim`."""
        self._forget(now)
        if event not in self._held and self._may_pass(event):
            self._free_at[event] = now + self._every
            return True
        self._size += len(bytes(data)) - self._size_of(event)
        self._held[event] = data
        return False

    def trim(self) -> int:
        """Drop what is held beyond the bounds, the oldest first; how many."""
        count = 0
        while len(self._held) > EVENTS or (self._size > _HELD_BYTES and len(self._held) > 1):
            oldest = next(iter(self._held))
            self._size -= self._size_of(oldest)
            del self._held[oldest]
            count += 1
        return count

    def take(self, now: float) -> list[tuple[str, Raw]]:
        """Events and data of what is held and passes now; it is not held any more."""
        if not self._held:
            return []
        self._forget(now)
        taken: list[tuple[str, Raw]] = []
        for event in list(self._held):
            if self._may_pass(event):
                self._free_at[event] = now + self._every
                self._size -= self._size_of(event)
                taken.append((event, self._held.pop(event)))
        return taken

    def clear(self) -> int:
        """Drop what is held; how many."""
        count = len(self._held)
        self._held.clear()
        self._size = 0
        return count

    def look_at(self, now: float) -> float | None:
        """When to :meth:`take` again, having just done so; None when there is nothing left to know."""
        if not self._held:
            if not self._free_at:
                return None
            quiet_at = next(reversed(self._free_at.values())) + _LINGER
            return quiet_at if now + _HAIR < quiet_at else None
        # One that has not passed lately waits for whichever falls silent first.
        first = next(iter(self._free_at.values()))
        return min(self._free_at.get(event, first) for event in self._held)

    def _may_pass(self, event: str) -> bool:
        return event not in self._free_at and len(self._free_at) < EVENTS

    def _forget(self, now: float) -> None:
        """Let go of events that may pass again."""
        while self._free_at:
            event = next(iter(self._free_at))
            if now + _HAIR < self._free_at[event]:
                return
            del self._free_at[event]

    def _size_of(self, event: str) -> int:
        held = self._held.get(event)
        return 0 if held is None else memoryview(held).nbytes

    def __repr__(self) -> str:
        return f"<Pace: {len(self._held)} held, {len(self._free_at)} events>"
