"""Rooms' keyed state as the clients of this node watch it: what all features that have such a thing do alike (P2).

A watch exists while somebody on this node asked to be told. Otherwise nothing is subscribed to, and nothing is kept.
It follows the broker, repairs what it has missed, and tells those who asked, in few frames. What a frame says, and what
is read, is for the feature.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from ..brokers import StateBroker
from ..brokers.base import keeps_state
from ..errors import BadUnit, NotSupported, Unavailable
from ..position import Position
from ..primitives.clocks import sleep
from ..transports import Batch
from ._following import Follower

if TYPE_CHECKING:
    from ..hub.connection import Connection
    from ..hub.engine import Engine
    from ..hub.local import Member
    from ..primitives.deadlines import Deadline

__all__ = ["POSITIONS", "Reads", "RoomWatch", "Watches", "check_positions", "state_broker"]

T = TypeVar("T")

#: Rooms whose positions are asked for at once.
POSITIONS: Final = 500
#: Frames of a room in any second, at the most (P2).
_FRAMES: Final = 2
_SECOND: Final = 1.0
#: Clients of this node that two frames a second may be told to. With more of them frames are fewer, so that a room
#: costs no more: what a frame costs is to hand it to the kernel, for each.
_CROWD: Final = 2500
#: Seconds that two frames take at the most, however many they are.
_SLOWEST: Final = 10.0


def state_broker(engine: Engine, option: str) -> StateBroker:
    """The broker of a run, for a feature that keeps state in it.

    :param option: that a family asks for the feature with.
    :raises NotSupported: when the broker keeps no state.
    """
    broker = engine.broker
    if not keeps_state(broker):
        raise NotSupported(
            f"rooms have {option}=, but {type(broker).__name__} keeps no state; use a broker that does, such as memory://"
        )
    return broker


class RoomWatch:
    """A watched room.

    :ivar kind: of the feature; it is in the name of the key, the topic, the lane and the logger.
    :ivar watchers: who is told, and whether it needs a whole picture first.
    :ivar coming: who will be a watcher in a moment, so that the watch is kept.
    """

    def __init__(
        self, engine: Engine, broker: StateBroker, kind: str, name: str, key: str, topic: str
    ) -> None:
        self._engine = engine
        self._broker = broker
        self.kind = kind
        self.name = name
        self.key = key
        self.topic = topic
        self.watchers: dict[Member, bool] = {}
        self.coming: set[Member] = set()
        self._subscribed = False
        # Asked to be; a broker that could not confirm it may do it all the same, when it is back.
        self._asked = False
        self._gate = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._repairing = False
        self._sent: deque[float] = deque(maxlen=_FRAMES)  # when the last frames left
        self._timer: Deadline | None = None
        self._batch: Batch | None = None  # of the frame that is being told
        self._logger = logging.getLogger(f"rtkit.{kind}")

    # -- for the feature ---------------------------------------------------------------------------

    @property
    def follower(self) -> Follower:
        """What follows the revisions."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Forget what was known: the room is followed from now on, for the first time or again."""
        raise NotImplementedError

    async def _read(self) -> None:
        """Read once, and bring the follower up to it.

        :raises Unavailable: when the broker cannot be reached.
        """
        raise NotImplementedError

    def _announced(self, payload: bytes, position: Position) -> None:
        """A notice.

        :raises BadUnit: when no rtkit has written it.
        """
        raise NotImplementedError

    @property
    def _changed(self) -> bool:
        """Whether there is something to be told."""
        raise NotImplementedError

    def _tell(self) -> bool:
        """Tell what has changed, all of it or a part; whether somebody had no room for it, and is to be told again."""
        raise NotImplementedError

    # -- following the broker ----------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether anybody watches, or is about to."""
        return bool(self.watchers or self.coming)

    @property
    def current(self) -> bool:
        """Whether the state is known, and nothing is known to be missing."""
        return self._subscribed and not self.follower.wants_read

    async def open(self) -> None:
        """Follow the room, and know how it is.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._gate:
            if not self._subscribed:
                self._begin()
                self._asked = True
                await self._broker.subscribe([self.topic])
                self._subscribed = True
        async with self._reading:
            while self._subscribed and self.follower.wants_read:
                await self._read()
        if self._changed:
            self._flush()

    async def close(self) -> bool:
        """Let go, unless somebody has come meanwhile; whether it did.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._gate:
            if self.wanted:
                return False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._asked:
                self._subscribed = self._asked = False
                await self._broker.unsubscribe([self.topic])
            return True

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """A notice."""
        if position is None:
            raise BadUnit(f"a notice of {self.kind} without a position")
        try:
            self._announced(payload, position)
        except BadUnit:
            self.interrupted()  # whatever it was, it counts
            raise
        if self.follower.wants_read:
            self.repair_soon()
        elif self._changed:
            self._flush()

    def interrupted(self) -> None:
        """Something may have been missed."""
        self.follower.wants_read = True
        self.repair_soon()

    def checked(self, position: Position) -> None:
        """The position check has found the room there."""
        if self.follower.position is not None and self.follower.differs(position):
            self.interrupted()

    def repair_soon(self) -> None:
        """Read in the background, and do not give up while the broker is away."""
        if not self._repairing and self.wanted:
            self._repairing = True
            self._engine.spawn(self._repair_until_done)

    async def _repair_until_done(self) -> None:
        try:
            while self.wanted:
                try:
                    await self.open()
                    return
                except Unavailable as error:
                    self._logger.warning("room %r: %s cannot be read: %s", self.name, self.kind, error)
                except Exception as error:
                    self._logger.exception("room %r: %s cannot be read", self.name, self.kind, exc_info=error)
                await sleep(self._engine.clock, self._engine.backoff())
        finally:
            self._repairing = False

    # -- telling those who watch -------------------------------------------------------------------

    def remove(self, member: Member) -> None:
        """The member watches no more."""
        self.coming.discard(member)
        self.watchers.pop(member, None)

    def _flush(self, *, waited: bool = False) -> None:
        """Tell what has changed, now or as soon as a frame may be sent.

        :param waited: this is when one may.
        """
        now = self._engine.clock.monotonic()
        pace = min(max(_SECOND, len(self.watchers) / _CROWD), _SLOWEST)
        if len(self._sent) == _FRAMES and now < self._sent[0] + pace:
            self._flush_at(self._sent[0] + pace)
            return
        if not self._changed and not any(self.watchers.values()):
            return
        self._sent.append(now)
        if waited:
            # While changes go on the frames are spread: else the second of each two would have hardly anything in it.
            self._sent[0] = max(self._sent[0], now - pace / _FRAMES)
        dropped = self._tell()
        self._batch = None
        if self._changed:
            self._flush_at(now + _SECOND / _FRAMES)
        elif dropped:
            self._flush_at(now + _SECOND)

    def _flush_at(self, when: float) -> None:
        if self._timer is None:
            self._timer = self._engine.deadlines.at(when, self._due)
        else:
            self._timer.move(when)

    def _due(self) -> None:
        self._timer = None
        if self.wanted:
            self._flush(waited=True)

    def _push(self, connection: Connection, unit: bytes) -> bool:
        """Hand a frame to one member, or queue it; False when there was no room for it (D1), or it would come before
        the reply with which the member joins, and mean nothing to it."""
        if connection.rt and connection.answers(self.name):
            return False
        if connection.clear and len(unit) <= connection.small:
            # Nothing is queued that it could overtake: most get it from a form that all share, past their outboxes.
            if self._batch is None or self._batch.units[0] is not unit:
                self._batch = Batch([unit])
            connection.clear = connection.transport.send_batch(self._batch)
            self._engine.counters.add("units_sent")
            self._engine.counters.add("sent_bytes", amount=len(unit))
            return True
        spill = connection.push((self.name, self.kind), unit, "drop_newest")
        if spill is None or spill.queued:
            return True
        self._engine.counters.add("drops", self.kind)
        return False


W = TypeVar("W", bound=RoomWatch)


class Watches(Generic[W]):
    """The rooms that are watched in one run of a hub."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rooms: dict[str, W] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self._rooms)

    def get(self, name: str) -> W | None:
        """The watch of a room, if there is one."""
        return self._rooms.get(name)

    def awaiting(self, member: Member) -> W | None:
        """The watch of the member's room, if the member is about to be added to it."""
        watch = self._rooms.get(member.room.name)
        return watch if watch is not None and member in watch.coming else None

    @property
    def current(self) -> list[W]:
        """Those whose state is known; see :attr:`RoomWatch.current`."""
        return [watch for watch in self._rooms.values() if watch.current]

    def add(self, watch: W) -> W:
        """Watch a room; who will be told is for the watch to know."""
        self._rooms[watch.name] = watch
        self._engine.listeners[watch.topic] = watch
        return watch

    def remove(self, member: Member) -> None:
        """The member watches no more. When it was the last, nobody on this node follows its room any more."""
        watch = self._rooms.get(member.room.name)
        if watch is not None and watch.wanted:
            watch.remove(member)
            if not watch.wanted and not self._ended:
                self._engine.spawn(self._close, watch)

    async def _close(self, watch: W) -> None:
        try:
            gone = await watch.close()
        except Unavailable as error:
            watch._logger.warning("room %r: could not unsubscribe: %s", watch.name, error)
            gone = not watch.wanted
        if gone and not watch.wanted and self._rooms.get(watch.name) is watch:
            del self._rooms[watch.name]
            self._engine.listeners.pop(watch.topic, None)

    def end(self) -> None:
        """The run ends, and its subscriptions with it: nothing is delivered any more."""
        self._ended = True
        for watch in self._rooms.values():
            self._engine.listeners.pop(watch.topic, None)
        self._rooms.clear()


class Reads(Generic[T]):
    """Reads of rooms that nobody here watches; many who ask at the same time share one (F2).

    :param read: reads a room of this name; raises ``Unavailable`` when the broker cannot be reached.
    """

    def __init__(self, engine: Engine, read: Callable[[str], Coroutine[Any, Any, T]]) -> None:
        self._engine = engine
        self._read = read
        self._under_way: dict[str, asyncio.Task[T | Unavailable]] = {}

    async def __call__(self, name: str) -> T:
        """What is found in a room. Who is cancelled leaves the others their read.

        :raises Unavailable: when the broker cannot be reached.
        """
        reading = self._under_way.get(name)
        if reading is None:
            reading = self._under_way[name] = self._engine.task(self._result, name)
            reading.add_done_callback(lambda _: self._under_way.pop(name, None))
        found = await asyncio.shield(reading)
        if isinstance(found, Unavailable):
            raise found
        return found

    async def _result(self, name: str) -> T | Unavailable:
        try:
            return await self._read(name)
        except Unavailable as error:
            return error  # perhaps nobody waits for it any more


class _Followed(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def follower(self) -> Follower: ...
    def checked(self, position: Position) -> None: ...


async def check_positions(broker: StateBroker, watches: Sequence[_Followed]) -> Mapping[str, Position]:
    """Compare positions, so that a lost last notice is noticed too (P2, H4).

    :return: the positions, by key, for who has a use for them.
    :raises Unavailable: when the broker cannot be reached.
    """
    found: dict[str, Position] = {}
    for start in range(0, len(watches), POSITIONS):
        some = watches[start : start + POSITIONS]
        before = [watch.follower.position for watch in some]
        positions = await broker.positions([watch.key for watch in some])
        for watch, was, position in zip(some, before, positions, strict=True):
            found[watch.key] = position
            if watch.follower.position == was:  # else it has moved on meanwhile, and is well
                watch.checked(position)
    return found
