"""At most so many of something for each key: connections of an address, uploads of a user (F1). State only.

A key is there while something of it is: what is taken and given back leaves no trace, so that memory is bounded by what
is there, and by *keys* besides, for where strangers make up keys.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, final

__all__ = ["KeyedLimit", "KeyedLimitStatistics"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class KeyedLimitStatistics:
    """What a :class:`KeyedLimit` holds.

    :param keys: that have something.
    :param taken: of all of them together.
    """

    keys: int
    taken: int


@final
class KeyedLimit(Generic[K]):
    """Counts for each key, up to a limit.

    ::

        with connections.hold(address) as taken:
            if not taken:
                ...  # too many of that address

    :param limit: for each key.
    :param keys: at once; of keys beyond that nothing is to be had.
    :raises ValueError: for one that is not positive.
    """

    __slots__ = ("_counts", "_keys", "_limit", "_taken")

    def __init__(self, limit: int, *, keys: int = 1_000_000) -> None:
        if limit < 1:
            raise ValueError(f"KeyedLimit(limit) is at least 1, not {limit!r}")
        if keys < 1:
            raise ValueError(f"KeyedLimit(keys=…) is at least 1, not {keys!r}")
        self._limit = limit
        self._keys = keys
        self._counts: dict[K, int] = {}
        self._taken = 0

    def full(self, key: K) -> bool:
        """Whether :meth:`take` would say no."""
        count = self._counts.get(key, 0)
        return count >= self._limit or (count == 0 and len(self._counts) >= self._keys)

    def take(self, key: K) -> bool:
        """Take one of this key; False when there is none left. Each has to be given back by :meth:`release`."""
        if self.full(key):
            return False
        self._counts[key] = self._counts.get(key, 0) + 1
        self._taken += 1
        return True

    def release(self, key: K) -> None:
        """Give one back.

        :raises KeyError: when none was taken.
        """
        left = self._counts[key] - 1
        self._taken -= 1
        if left:
            self._counts[key] = left
        else:
            del self._counts[key]

    @contextmanager
    def hold(self, key: K) -> Generator[bool]:
        """Take one for the length of the block; False when there was none left."""
        taken = self.take(key)
        try:
            yield taken
        finally:
            if taken:
                self.release(key)

    def count(self, key: K) -> int:
        """How many of this key are taken."""
        return self._counts.get(key, 0)

    def statistics(self) -> KeyedLimitStatistics:
        """What it holds."""
        return KeyedLimitStatistics(keys=len(self._counts), taken=self._taken)

    def __repr__(self) -> str:
        return f"<KeyedLimit {self._taken} of {len(self._counts)} keys, {self._limit} each>"
