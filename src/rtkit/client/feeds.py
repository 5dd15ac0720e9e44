"""Iterating over what comes at most once: signals of a room, who is there, messages to this session."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Generic

from typing_extensions import TypeVar

from .bell import Bell

__all__ = ["Feed"]

T = TypeVar("T")


class Feed(Generic[T]):
    """An asynchronous iterator with a bounded queue; the oldest is dropped when nobody fetches.

    Made by :meth:`RoomClient.signals`, :meth:`Client.messages`, and what tells of changes. It gathers from then on
    until it is closed or nobody holds it any more.

    :ivar dropped: how many were dropped.
    """

    __slots__ = ("__weakref__", "_bell", "_ended", "_error", "_items", "_what", "dropped")

    def __init__(self, what: str, *, max_queue: int = 256) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue is at least 1, not {max_queue!r}")
        self.dropped = 0
        self._what: Final = what
        self._items: deque[T] = deque(maxlen=max_queue)
        self._bell = Bell()
        self._ended = False
        self._error: BaseException | None = None

    def offer(self, item: T) -> None:
        """Called by the client."""
        if self._ended:
            return
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append(item)
        self._bell.ring()

    def replace(self, item: T) -> None:
        """Called by the client: this one stands for all that were not fetched."""
        if not self._ended:
            self.dropped += len(self._items)
            self._items.clear()
            self.offer(item)

    @property
    def full(self) -> bool:
        """Whether the next item drops one."""
        return len(self._items) == self._items.maxlen

    def end(self, error: BaseException | None) -> None:
        """Called by the client: nothing more comes. What is queued is still handed out."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._bell.ring()

    def __aiter__(self) -> Feed[T]:
        return self

    async def __anext__(self) -> T:
        """The next one.

        Cancellation: safe, nothing is lost.

        :raises ConnectionClosed: when the client is closed for good, after what was queued.
        """
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error.with_traceback(None)
                raise StopAsyncIteration
            await self._bell.wait()
        return self._items.popleft()

    async def aclose(self) -> None:
        """Stop gathering; iterating ends."""
        self._items.clear()
        self.end(None)
        await asyncio.sleep(0)

    async def __aenter__(self) -> Feed[T]:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Feed of {self._what}, {len(self._items)} queued, {self.dropped} dropped>"
