"""Waiting for "something changed", with or without a deadline."""

from __future__ import annotations

import asyncio
import math

from ..clock import Clock

__all__ = ["Bell"]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Bell:
    """Wakes everybody who waits; says nothing about why.

    Look first, then wait, without awaiting in between: then no ring is missed. Bound to no loop while
    nobody waits.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], None] = {}

    def ring(self) -> None:
        """Wake all who wait now."""
        for waiter in self._waiters:
            _wake(waiter)

    async def wait(self, clock: Clock | None = None, until: float = math.inf) -> None:
        """Wait for a ring, or until the moment *until* of ``clock.monotonic()``.

        Cancellation: safe.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = clock.call_at(until, _wake, waiter) if clock is not None and until < math.inf else None
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
            if timer is not None:
                timer.cancel()

    def __repr__(self) -> str:
        return f"<Bell, {len(self._waiters)} waiting>"
