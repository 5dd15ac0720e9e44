"""The bounded queue between a room and the application that iterates it. Pure."""

from __future__ import annotations

from collections import deque

from ..messages import Message
from ..position import Gap, Position

__all__ = ["Item", "RoomQueue"]

#: A message whose data is not decoded yet, or a gap.
Item = Message[bytes] | Gap


class RoomQueue:
    """What waits to be iterated over.

    :param limit: items at the most.
    :ivar handed: behind the last item that was taken.
    :ivar dropped: messages dropped by :meth:`put_dropping`.
    """

    __slots__ = ("_holed", "_items", "dropped", "handed", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.handed: Position | None = None
        self.dropped = 0
        self._items: deque[Item] = deque()
        self._holed = False

    @property
    def full(self) -> bool:
        """No more room."""
        return len(self._items) >= self.limit

    @property
    def half_drained(self) -> bool:
        """Enough room to go on after it was full."""
        return len(self._items) <= self.limit // 2

    def put(self, item: Item) -> None:
        """Add an item; whoever calls has seen to it that there is room."""
        self._items.append(item)

    def put_dropping(self, item: Item) -> bool:
        """Add an item; if need be drop the oldest one, with a gap in its place.

        :return: whether that gap is a new one.
        """
        if not self.full:
            self._items.append(item)
            return False
        if isinstance(self._items.popleft(), Message):
            self.dropped += 1
        self._items.append(item)
        new, self._holed = not self._holed, True
        return new

    def take(self) -> Item | None:
        """The oldest item; None when there is none."""
        if self._holed:
            self._holed = False
            return Gap(0, 0, "", "dropped")
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, Gap):
            if item.epoch:
                self.handed = Position(item.epoch, item.end)
        elif item.position is not None:
            self.handed = item.position
        return item

    def clear(self) -> None:
        """Forget everything that waits."""
        self._items.clear()
        self._holed = False

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<RoomQueue {len(self)} of {self.limit}>"
