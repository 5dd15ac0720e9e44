"""Where a position of a former epoch is in the present stream of a room (H10).

A broker that lost its primary may go on with the same stream in another epoch (B6). It is asked where a place far
beyond any end is: what it answers is where the next epoch took over, or that nothing is known of such an epoch. One
answer for each former epoch serves all marks in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ...position import Position
from ...publisher import topic_of
from ...streams import StreamPage
from .board import Carry

if TYPE_CHECKING:
    from ...hub.engine import Engine

__all__ = ["Epochs"]

#: Beyond every stream.
_BEYOND: Final = 2**53 - 1
#: Former epochs asked about at the same time.
_AT_ONCE: Final = 16
#: Epochs remembered that a client has named, before they are forgotten again: it may have made them up.
_REMEMBERED: Final = 64


class Epochs:
    """The epochs of one room's stream.

    :ivar carry: what is known.
    :ivar top: the offset of the last message that is known of in the present epoch.
    """

    __slots__ = ("__weakref__", "_engine", "_lock", "_shared", "_topic", "carry", "top")

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._topic = topic_of(name)
        self._lock = asyncio.Lock()
        self._shared: dict[str, int | None] = {}
        self.carry = Carry("", self._shared)
        self.top = 0

    async def look(self) -> Position:
        """Where the stream ends now.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._lock:
            return (await self._read(None)).position

    async def learn(self, epochs: Collection[str], *, look: bool = False) -> Carry:
        """Know these epochs.

        :param look: even if they are known, see whether the present one still is.
        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._lock:
            if look or not self.carry.epoch:
                await self._read(None)
            while missing := [epoch for epoch in epochs if not self.carry.knows(epoch)]:
                await asyncio.gather(*map(self._ask, missing[:_AT_ONCE]))
            carry = self.carry
            if len(self._shared) > max(len(epochs), _REMEMBERED):
                self._begin(carry.epoch)  # who holds the old one goes on with it
            return carry

    async def _read(self, since: Position | None) -> StreamPage:
        page = await self._engine.stream.read(self._topic, since=since, limit=0)
        if page.epoch != self.carry.epoch:
            self._begin(page.epoch)
            self.top = page.top
        self.top = max(self.top, page.top)
        return page

    def _begin(self, epoch: str) -> None:
        self._shared = {}
        self.carry = Carry(epoch, self._shared)

    async def _ask(self, epoch: str) -> None:
        page = await self._read(Position(epoch, _BEYOND))
        if page.epoch == epoch:
            return
        if page.lost != "rollback":
            self._found(page, epoch, None)
        elif page.start > page.floor:
            self._found(page, epoch, page.start)
        else:
            # The place itself is no longer kept, and the answer is where the stream begins now. Of every place it can
            # be told on which side it is.
            low, high = 0, page.floor
            while low < high:
                middle = (low + high + 1) // 2
                probe = await self._read(Position(epoch, middle))
                if probe.lost == "rollback":
                    high = middle - 1
                else:
                    low = middle
            self._found(page, epoch, low)

    def _found(self, page: StreamPage, epoch: str, shared: int | None) -> None:
        if page.epoch == self.carry.epoch:  # else it changed meanwhile, and is to be asked again
            self._shared[epoch] = shared

    def __repr__(self) -> str:
        return f"<Epochs {self.carry.epoch!r} up to {self.top}, {len(self._shared)} former ones>"
