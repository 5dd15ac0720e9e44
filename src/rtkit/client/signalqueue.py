"""Signals that wait to be written: of each room and event the newest, no more often than the room allows (D5). Pure."""

from __future__ import annotations

import math
from typing import Final

from ..wire import SignalBody

__all__ = ["SignalQueue"]

#: Signals that wait at the most.
_MOST: Final = 64

_Key = tuple[str, str]


class SignalQueue:
    """Of all rooms of a client.

    A signal that comes too soon after one of its kind is held, and replaced by those that follow. The first after a
    pause goes at once.
    """

    __slots__ = ("_free_at", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[_Key, tuple[SignalBody, float]] = {}
        self._free_at: dict[_Key, float] = {}

    def put(self, body: SignalBody, rate: float) -> bool:
        """Take a signal in; False when too many wait.

        :param rate: how many of this kind the room takes in a second; 0 for any number.
        """
        key = (body.channel, body.event)
        if key not in self._waiting and len(self._waiting) >= _MOST:
            return False
        self._waiting[key] = (body, 1 / rate if rate > 0 else 0.0)
        return True

    def ready(self, now: float) -> bool:
        """Whether one may be written now."""
        return any(self._free_at.get(key, now) <= now for key in self._waiting)

    def next_at(self) -> float:
        """When one may be written that may not be yet, if one may not be before; infinite for never."""
        return min((self._free_at.get(key, -math.inf) for key in self._waiting), default=math.inf)

    def take(self, now: float) -> SignalBody:
        """The one that has waited longest of those that are :meth:`ready`."""
        key = next(key for key in self._waiting if self._free_at.get(key, now) <= now)
        body, pause = self._waiting.pop(key)
        if len(self._free_at) > _MOST:
            self._free_at = {each: when for each, when in self._free_at.items() if when > now}
        if pause:
            self._free_at[key] = now + pause
        return body

    def forget(self, channel: str) -> None:
        """The room was left."""
        for key in [key for key in self._waiting if key[0] == channel]:
            del self._waiting[key]

    def clear(self) -> None:
        """The connection is gone, and with it what waits. Soon is still too soon."""
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<SignalQueue {len(self)} waiting>"
