"""Time as an argument.

Nothing in rtkit reads the time or starts a timer except through a :class:`Clock`. A hub, a broker
and a client each hold one; tests hand them a manual one and move it by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Clock", "Timer"]


class Timer(Protocol):
    """A pending call of :meth:`Clock.call_at`."""

    def cancel(self) -> None:
        """Forget the call. Harmless when it has already happened."""


class Clock(Protocol):
    """Three readings of time and one way to be woken."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back. For intervals and deadlines."""
        ...

    def boottime(self) -> float:
        """Like :meth:`monotonic`, but the time a machine slept counts too (H7)."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch. For time stamps and token expiry only: it may jump."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` when :meth:`monotonic` has reached *when*; never before returning."""
        ...
