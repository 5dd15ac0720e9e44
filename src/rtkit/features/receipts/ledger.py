"""The writing of marks into the broker (X2).

What this node's clients say is noted for each user and room, and written in the background: at once if the room was
quiet, else half a second after the last time, many users with one revision. Each revision expects what is known of the
users in it, so that the marks of two devices on two nodes go one after the other and the further wins. When that does
not hold, or nobody knows what became of the last one, the room is read. So it is safe to fail anywhere, and to try
again.

What is noted when the run ends and the broker stays away is lost, as it is when a node dies: it was answered, and its
client says it again when it rejoins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ...brokers import StateBroker
from ...errors import BadUnit, Unavailable
from ...primitives.clocks import sleep, timeout
from .board import Board, Mark, Wanted, epochs_of, merge
from .entries import NOTHING, Stored, decode_entry, encode_entry, encode_notice, key_of, topic_of
from .epochs import Epochs

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...primitives.deadlines import Deadline

__all__ = ["Ledger"]

logger = logging.getLogger("rtkit.receipts")

#: Seconds between two times at which marks of a room are written (X2).
_APART: Final = 0.5
#: Users of one revision at the most.
_AT_ONCE: Final = 256
#: Users of a room whose entries are remembered where nobody watches it.
_KNOWN: Final = 4096
#: Seconds until a command that has no answer is given up, and what came of it found out.
_PATIENCE: Final = 5.0
#: Revisions in a row that find something else than expected, before it waits a little.
_IN_VAIN: Final = 5
#: Seconds that the run's end waits for what is left to be written.
_END: Final = 2.0


class _Room:
    """What this node has to write in one room.

    :ivar wanted: marks that are not in the broker yet, by user.
    :ivar known: what lies in the broker, by user, as far as it was read or written here.
    :ivar doubt: users of whom nobody knows what became of the last revision.
    :ivar next_at: when it may be written again.
    """

    __slots__ = ("doubt", "epochs", "kept", "known", "name", "next_at", "timer", "wanted", "writer")

    def __init__(self, name: str, kept: float, epochs: Epochs) -> None:
        self.name = name
        self.kept = kept
        self.epochs = epochs
        self.wanted: dict[str, Wanted] = {}
        self.known: dict[str, bytes | None] = {}
        self.doubt: set[str] = set()
        self.writer: asyncio.Task[Any] | None = None
        self.timer: Deadline | None = None
        self.next_at = 0.0


class Ledger:
    """What one node writes, in all rooms.

    :param board: finds the board of a room, if there is one and nothing is known to be missing from it.
    :param inhabited: whether this node has members in a room.
    """

    def __init__(
        self,
        engine: Engine,
        broker: StateBroker,
        board: Callable[[str], Board | None],
        inhabited: Callable[[str], bool],
    ) -> None:
        self._engine = engine
        self._broker = broker
        self._board = board
        self._inhabited = inhabited
        self._rooms: dict[str, _Room] = {}
        self._waiting = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._rooms)

    def mark(self, name: str, user: str, epoch: str, mark: Mark, *, kept: float, epochs: Epochs) -> None:
        """A user is there; written soon.

        :param kept: seconds for which the entry is kept.
        """
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = _Room(name, kept, epochs)
        wanted = room.wanted.setdefault(user, {})
        wanted[epoch] = mark.or_further(wanted.get(epoch, Mark()))
        self._start(room)

    def of(self, name: str) -> Mapping[str, Wanted]:
        """What is not in the broker yet, by user."""
        room = self._rooms.get(name)
        return room.wanted if room is not None else {}

    def forget(self, name: str) -> None:
        """Let go of a room in which there is nothing to do, and nobody who could change that."""
        room = self._rooms.get(name)
        if room is not None and not room.wanted and room.writer is None and not self._inhabited(name):
            del self._rooms[name]

    # -- writing -----------------------------------------------------------------------------------

    def _start(self, room: _Room) -> None:
        if room.writer is not None or room.timer is not None or self._closed:
            return
        if self._engine.clock.monotonic() >= room.next_at:
            room.writer = self._engine.task(self._write, room)
        else:
            room.timer = self._engine.deadlines.at(room.next_at, self._due, room)

    def _due(self, room: _Room) -> None:
        room.timer = None
        self._start(room)

    async def _write(self, room: _Room) -> None:
        """Write what is wanted by now; what comes meanwhile has its turn the next time."""
        room.next_at = self._engine.clock.monotonic() + _APART
        try:
            users = iter(list(room.wanted))
            while some := list(islice(users, _AT_ONCE)):
                await self._write_until_done(room, some)
        finally:
            room.writer = None
            if room.wanted:
                self._start(room)
            else:
                self.forget(room.name)

    async def _write_until_done(self, room: _Room, users: Collection[str]) -> None:
        in_vain = 0
        while True:
            try:
                async with timeout(self._engine.clock, _PATIENCE):
                    done = await self._write_some(room, users)
                self._waiting = False
                if done:
                    return
                in_vain += 1
                if in_vain % _IN_VAIN:
                    continue
            except (Unavailable, TimeoutError) as error:
                if not self._waiting:  # of all rooms one is enough
                    self._waiting = True
                    logger.warning("room %r: marks wait for the broker: %s", room.name, error)
            except Exception as error:
                # It would be the same again. Whose marks these are says them again some time.
                logger.exception("room %r: marks could not be written", room.name, exc_info=error)
                for user in users:
                    room.wanted.pop(user, None)
                return
            await sleep(self._engine.clock, self._engine.backoff())

    async def _write_some(self, room: _Room, users: Collection[str]) -> bool:
        """One revision; False when something was found that was not expected."""
        batch = {user: dict(room.wanted[user]) for user in users if user in room.wanted}
        if not batch:
            return True
        known = await self._known(room, batch)
        stored = {user: self._decode(room, user, raw) for user, raw in known.items()}
        changes = {
            user: encode_entry(merged, self._engine.versions.writes)
            for user, merged in (await self._merged(room, stored, batch)).items()
            if merged != stored[user]
        }
        if changes:
            room.doubt.update(changes)  # until there is an answer
            done = await self._broker.revise(
                key_of(room.name),
                {**changes},
                ttl=room.kept,
                expected={user: known[user] for user in changes},
                topic=topic_of(room.name),
                payload=encode_notice(changes, self._engine.versions.writes),
            )
            if done is None:
                return False
            room.doubt.difference_update(changes)
        if self._board(room.name) is not None:
            room.known.clear()  # it is on the board, now or in a moment
        else:
            if len(room.known) > _KNOWN:
                room.known.clear()
            room.known.update(known)
            room.known.update(changes)
        for user, wanted in batch.items():
            if room.wanted.get(user) == wanted:
                del room.wanted[user]
        return True

    async def _merged(
        self, room: _Room, stored: Mapping[str, Stored], batch: Mapping[str, Wanted]
    ) -> dict[str, Stored]:
        merged: dict[str, Stored] = {}
        several: dict[str, set[str]] = {}
        for user, wanted in batch.items():
            epochs = epochs_of(stored[user]) | wanted.keys()
            if len(epochs) == 1:
                merged[user] = merge(stored[user], wanted, None)
            else:
                several[user] = epochs
        if several:
            carry = await room.epochs.learn(set[str]().union(*several.values()))
            for user in several:
                merged[user] = merge(stored[user], batch[user], carry)
        return merged

    async def _known(self, room: _Room, users: Collection[str]) -> dict[str, bytes | None]:
        """What lies in the broker, of these users: as far as it is known, else it is read."""
        board = self._board(room.name)
        known: dict[str, bytes | None] = {}
        if board is not None:
            known = {user: board.raws.get(user) for user in users if user not in room.doubt}
        else:
            known = {
                user: room.known[user] for user in users if user in room.known and user not in room.doubt
            }
        if len(known) < len(users):
            entries = await self._broker.entries(key_of(room.name))
            for user in users:
                known[user] = entries.get(user)
        return known

    def _decode(self, room: _Room, user: str, raw: bytes | None) -> Stored:
        if raw is None:
            return NOTHING
        try:
            return decode_entry(raw, self._engine.versions.formats)
        except BadUnit as error:
            self._engine.versions.unreadable(f"room {room.name!r}: marks of {user!r}", error)
            return NOTHING

    # -- the end -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """The run ends: write what is left, if the broker lets us, and do not wait long."""
        self._closed = True
        for room in self._rooms.values():
            if room.timer is not None:
                room.timer.cancel()
                room.timer = None
        try:
            async with timeout(self._engine.clock, _END):
                while writers := [self._last_writer(room) for room in self._rooms.values() if room.wanted]:
                    await asyncio.wait(writers)
        except TimeoutError:
            users = sum(len(room.wanted) for room in self._rooms.values())
            logger.warning("the broker is away: marks of %d users are lost until they say them again", users)

    def _last_writer(self, room: _Room) -> asyncio.Task[Any]:
        if room.writer is None:
            room.writer = self._engine.task(self._write, room)
        return room.writer

    def __repr__(self) -> str:
        users = sum(len(room.wanted) for room in self._rooms.values())
        return f"<Ledger: marks of {users} users to be written, {len(self._rooms)} rooms>"
