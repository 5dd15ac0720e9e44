"""Which clients this node says are present, and the writing of that into the broker (P3).

For each room there is what *shall* be there (:class:`Mine`) and what is *known* to be there. Whoever comes, goes or
changes is marked; a task that exists only while something is marked brings the broker up to it, many clients with one
revision. Each revision expects what is known. When that does not hold, or nobody knows what became of the last one,
the room is read and what is known is put right. So it is safe to fail anywhere, and to try again.

Whose entry it is
-----------------
A client's session may have gone on at another node (C4), which then has written the entry. It has a higher generation.
An entry with a higher generation than ours is never touched. One with a lower one is taken over, with its meta.

=====================================  ==========================================================================
a session                              its entry
=====================================  ==========================================================================
begins, or is taken up again           is written, with this node's life
ends                                   is removed, unless a higher generation has it
was taken up at another node           is left to that; and removed should it still be ours after a while, or when
                                       that node has died
=====================================  ==========================================================================

When this node's lease was lost, others may have taken its entries away. It writes them again, under its new life.
Who is still there as before sees no difference.

What a failover has lost
------------------------
A broker that failed over may have lost what was written last, and kept the leases. Whatever is counted begins another
epoch then (B6), so epochs are looked at with the positions:

- Of each room with entries of ours. Where one is new, all that lies there is compared with what shall be: entries may
  be missing, and such may be back that were taken away.
- Of the list of lives. It is the canary for all that no room of ours tells of: that this life is in the list, what is
  in its index, and rooms that all its clients had left, which may be back together with their place in the index.

If any is new, this life is put down again, and so is its index, and every room that is in the index is compared. The
index itself is not counted; in a Cluster, where each server fails over by itself, a room may tell of it and the list
not. When the list says so as the run ends, this life stays in it, and others look after what is back.

A room that was begun anew since does not tell of it: what its first revision has counted is the new epoch. So it is not
taken out of the index, for its last client has left, unless the list is in the epoch that this node knows, or the room
was compared in the one that it is in. Else who is back there would be, of all that is looked at, in nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ...brokers import StateBroker
from ...errors import BadUnit, BrokerUnavailable, Unavailable
from ...position import Position
from ...primitives.clocks import sleep, timeout
from .._watching import POSITIONS
from .entries import (
    LIVES,
    LIVES_TOPIC,
    decode_entry,
    encode_entry,
    encode_notice,
    index_of,
    key_of,
    life_of,
    topic_of,
)
from .roster import Present

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import Member

__all__ = ["KEPT", "Ledger", "Mine"]

logger = logging.getLogger("rtkit.presence")

#: Seconds that entries and indexes lie in the broker, should nobody be left to take them away.
KEPT: Final = 86400.0
#: Seconds after which they are renewed.
_RENEWED: Final = KEPT / 4
#: Seconds between revisions that only tell what clients say about themselves: nobody hears of them more often (P2).
_UPDATES: Final = 0.5
#: Clients of one revision, and fields of one renewal, at the most.
_AT_ONCE: Final = 256
#: Rooms renewed at one time, so that many that began together are spread.
_ROOMS_AT_ONCE: Final = 10
#: Seconds until an entry that another node was to take over, and has not, is taken away.
_HANDED_OVER: Final = 60.0
#: Seconds until a command that has no answer is given up, and what came of it found out.
_PATIENCE: Final = 5.0
#: Revisions in a row that find something else than expected, before it waits a little.
_IN_VAIN: Final = 5


class Mine:
    """A client of this node, in one room.

    :ivar member: who it is there for; the latest, if it came back.
    :ivar there: whether it shall be present; *moved*, that another node is about to say so.
    :ivar meta: what it says about itself; None when that stands in the entry that it is to take over.
    :ivar first: what it says if there is no such entry.
    :ivar known: what the broker has of it, None for nothing; *doubt* says that this has to be read first.
    :ivar stayed: this node had it before, too; what lies there under this node's name is no newer than *first* then.
    :ivar stamp: counts what is to be written, so that a change while writing is not lost.
    """

    __slots__ = (
        "doubt",
        "first",
        "generation",
        "known",
        "member",
        "meta",
        "moved",
        "stamp",
        "stayed",
        "there",
        "user",
    )

    def __init__(self, user: str, generation: int, meta: bytes) -> None:
        self.user = user
        self.generation = generation
        # Of a session that is new, nobody else can have written anything.
        self.meta: bytes | None = None if generation else meta
        self.first = meta
        self.doubt = generation > 0
        self.known: bytes | None = None
        self.member: Member | None = None
        self.there = True
        self.moved = False
        self.stayed = False
        self.stamp = 0

    @property
    def shall_lie(self) -> bool:
        """Whether an entry of ours shall be there: of one that goes on elsewhere the one there is, until it is taken
        over."""
        return self.there or (self.moved and self.known is not None)


class _Room:
    """What this node has in one room.

    :ivar updates: who has said something that is to be written at *update_at*, for others have just done so.
    :ivar epoch: of the count of revisions when this node last added to it. Another one says that the broker has lost
        something: entries of ours may be missing, and such may be back that we had taken away.
    :ivar suspect: that was so, and nobody has looked yet.
    :ivar looked: the epoch that the list of lives was in before somebody last looked; None when nobody had to.
    """

    __slots__ = (
        "epoch",
        "indexed",
        "looked",
        "marked",
        "mine",
        "name",
        "renew_at",
        "suspect",
        "update_at",
        "updates",
        "writer",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = ""
        self.suspect = False
        self.looked: str | None = None
        self.mine: dict[str, Mine] = {}
        self.marked: dict[str, None] = {}
        self.updates: dict[str, None] = {}
        self.update_at = 0.0
        self.writer: asyncio.Task[Any] | None = None
        self.indexed = ""  # the life under which the index has the room
        self.renew_at = 0.0


class Ledger:
    """The entries of one node, in all rooms."""

    def __init__(self, engine: Engine, broker: StateBroker) -> None:
        self._engine = engine
        self._broker = broker
        self._rooms: dict[str, _Room] = {}
        self._registered = ""  # the life that stands in the list of lives
        self._registering = asyncio.Lock()
        self._lives = ""  # the epoch of that list
        self._lost = False  # an epoch was new, and not everything was put right yet
        self._moved: dict[tuple[str, str, int], str] = {}  # who went on at which node, lately
        self._registered_until = 0.0
        self._waiting = False
        self._closed = False
        engine.lease.on_lost.append(self._lease_lost)

    @property
    def life(self) -> str:
        """This life of this node."""
        return life_of(self._engine.node_id, self._engine.lease.incarnation)

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def writers(self) -> list[asyncio.Task[Any]]:
        """The tasks that write now; none when nothing is left to be written."""
        return [room.writer for room in self._rooms.values() if room.writer is not None]

    def find(self, name: str, client: str) -> Mine | None:
        """What there is of a client in a room."""
        room = self._rooms.get(name)
        return room.mine.get(client) if room is not None else None

    def of(self, name: str) -> Mapping[str, Mine]:
        """All clients of this node in a room; those too that shall not be there any more."""
        room = self._rooms.get(name)
        return room.mine if room is not None else {}

    def shown(self, client: str, mine: Mine) -> Present:
        """A client as others will see it."""
        return Present(
            client,
            mine.user,
            mine.first if mine.meta is None else mine.meta,
            self._engine.node_id,
            self._engine.lease.incarnation,
            mine.generation,
        )

    # -- what shall be -----------------------------------------------------------------------------

    def enter(self, member: Member, meta: bytes) -> None:
        """A client is there; its meta is *meta*, unless it had one before (P4)."""
        session, name = member.session, member.room.name
        room = self._rooms.get(name)
        if room is None:
            room = self._begin(name)
        mine = room.mine.get(session.id)
        if mine is None or mine.member is None:
            # What it said before it went elsewhere is of no interest any more: it may say something else since.
            stamp = 0 if mine is None else mine.stamp
            mine = room.mine[session.id] = Mine(session.identity.user, session.generation, meta)
            mine.stamp = stamp
        mine.member = member
        mine.there = True
        if mine.generation != session.generation:
            # It may have been elsewhere in between, and say something else since.
            mine.generation = session.generation
            mine.first = mine.first if mine.meta is None else mine.meta
            mine.meta = None
            mine.stayed = True
            mine.doubt = True
        self._mark(room, session.id, mine)

    def _begin(self, name: str) -> _Room:
        room = self._rooms[name] = _Room(name)
        room.renew_at = self._engine.clock.monotonic() + _RENEWED
        return room

    def depart(self, member: Member) -> None:
        """A client is gone, for good."""
        session, name = member.session, member.room.name
        room = self._rooms.get(name)
        mine = room.mine.get(session.id) if room is not None else None
        if room is None or mine is None:
            if session.generation:
                # It was to come back to this room from another node, and has not: the entry is that node's.
                self.enter(member, b"{}")
                self.depart(member)
            return
        if mine.member is not member and mine.member is session.rooms.get(name) is not None:
            return  # an earlier stay of a client that is back
        mine.there = mine.moved = False
        mine.generation = max(mine.generation, session.generation)
        self._mark(room, session.id, mine)

    def move(self, client: str, name: str, to: str) -> None:
        """A client goes on at another node, which takes its entry over."""
        mine = self.find(name, client)
        if mine is not None:
            self.hasten(name, client)
            mine.there, mine.moved = False, True
            mine.member = None
            mine.stamp += 1
            if mine.known is None and not mine.doubt:
                # Nothing was written yet, and whoever has it now will do that.
                self._rooms[name].marked.pop(client, None)
            self._moved[name, client, mine.stamp] = to
            when = self._engine.clock.monotonic() + _HANDED_OVER
            self._engine.deadlines.at(when, self._not_taken_over, name, client, mine.stamp)

    async def check_moved(self) -> None:
        """Who went to a node that has died meanwhile is gone with it, if that had not written its entry yet."""
        lease = self._engine.lease
        if not self._moved or not lease.may_reap:
            return
        holders = await lease.incarnations(fresh=True)
        if holders is None or not lease.may_reap:
            return
        for (name, client, stamp), to in list(self._moved.items()):
            if to and to not in holders:
                self._not_taken_over(name, client, stamp)

    def _not_taken_over(self, name: str, client: str, stamp: int) -> None:
        if self._moved.pop((name, client, stamp), None) is None:
            return
        room = self._rooms.get(name)
        mine = room.mine.get(client) if room is not None else None
        if room is not None and mine is not None and mine.stamp == stamp:
            mine.moved = False
            mine.doubt = True
            self._mark(room, client, mine)

    def update(self, name: str, client: str, meta: bytes) -> None:
        """A client says something else about itself (P1)."""
        room = self._rooms[name]
        mine = room.mine[client]
        mine.meta = meta
        now = self._engine.clock.monotonic()
        if room.updates:
            room.updates[client] = None
        elif now < room.update_at:
            room.updates[client] = None
            self._engine.deadlines.at(room.update_at, self._updates_due, name)
        else:
            room.update_at = now + _UPDATES
            self._mark(room, client, mine)

    def _updates_due(self, name: str) -> None:
        room = self._rooms.get(name)
        if room is not None and room.updates:
            room.update_at = self._engine.clock.monotonic() + _UPDATES
            for client in list(room.updates):
                self.hasten(name, client)

    def hasten(self, name: str, client: str) -> None:
        """Write what a client has said about itself now: it may go on elsewhere, and there this is read."""
        room = self._rooms.get(name)
        if room is not None and client in room.updates:
            del room.updates[client]
            if (mine := room.mine.get(client)) is not None:
                self._mark(room, client, mine)

    def _lease_lost(self) -> None:
        """Others may have taken away what this node had written: write it again (P3)."""
        for room in self._rooms.values():
            for client, mine in room.mine.items():
                if mine.there:
                    self._mark(room, client, mine)

    def _mark(self, room: _Room, client: str, mine: Mine) -> None:
        mine.stamp += 1
        room.marked[client] = None
        if room.writer is None and not self._closed:
            room.writer = self._engine.task(self._write, room)

    # -- writing -----------------------------------------------------------------------------------

    async def _write(self, room: _Room) -> None:
        """Bring the broker up to what shall be; ends when it is."""
        in_vain = 0
        try:
            while room.marked or room.suspect or (room.indexed and not room.mine):
                try:
                    async with timeout(self._engine.clock, _PATIENCE):
                        in_vain = 0 if await self._write_some(room) else in_vain + 1
                    self._waiting = False
                    if in_vain < _IN_VAIN:
                        continue
                except (Unavailable, TimeoutError) as error:
                    if not self._waiting:  # of all rooms one is enough
                        self._waiting = True
                        logger.warning("room %r: presence waits for the broker: %s", room.name, error)
                except Exception as error:
                    logger.exception("room %r: presence could not be written", room.name, exc_info=error)
                await sleep(self._engine.clock, self._engine.backoff())
        finally:
            room.writer = None
            if not room.mine and self._rooms.get(room.name) is room:
                del self._rooms[room.name]

    async def _write_some(self, room: _Room) -> bool:
        """One revision; False when something was found that was not expected."""
        if room.suspect:
            await self._compare_all(room)
        if not room.mine:
            room.marked.clear()
            return not room.indexed or await self._take_out(room)
        batch = {client: room.mine[client] for client in islice(room.marked, _AT_ONCE) if client in room.mine}
        if any(mine.shall_lie for mine in batch.values()):
            await self._index(room)
        if any(mine.doubt for mine in batch.values()):
            await self._find_out(room, batch)
        batch = {client: mine for client, mine in batch.items() if client in room.marked}
        stamps = {client: mine.stamp for client, mine in batch.items()}
        changes: dict[str, bytes | None] = {}
        expected: dict[str, bytes | None] = {}
        for client, mine in batch.items():
            value = (
                encode_entry(self.shown(client, mine), self._engine.versions.writes)
                if mine.shall_lie
                else None
            )
            if value != mine.known:
                changes[client], expected[client] = value, mine.known
        if changes and not await self._revise(room, batch, changes, expected):
            return False
        for client, mine in batch.items():
            if mine.stamp == stamps[client] and room.mine.get(client) is mine:
                room.marked.pop(client, None)
                if not mine.shall_lie:
                    del room.mine[client]
        return True

    async def _revise(
        self,
        room: _Room,
        batch: Mapping[str, Mine],
        changes: Mapping[str, bytes | None],
        expected: Mapping[str, bytes | None],
    ) -> bool:
        for client in changes:
            batch[client].doubt = True  # until there is an answer
        position = await self._broker.revise(
            key_of(room.name),
            changes,
            ttl=KEPT,
            expected=expected,
            topic=topic_of(room.name),
            payload=encode_notice(changes, self._engine.versions.writes),
        )
        if position is None:
            return False
        room.suspect = room.suspect or room.epoch not in ("", position.epoch)
        room.epoch = position.epoch
        for client, value in changes.items():
            mine = batch[client]
            mine.doubt = False
            mine.known = value
        return True

    async def _find_out(self, room: _Room, batch: dict[str, Mine]) -> None:
        """Read what there is of these; who belongs to a later generation is none of ours any more."""
        entries = await self._broker.entries(key_of(room.name))
        for client, mine in list(batch.items()):
            stored, knew = entries.get(client), mine.stayed
            mine.doubt = False
            mine.known = stored
            found = self._decode(room, client, stored)
            elsewhere = found is not None and found.node != self._engine.node_id
            if found is not None and elsewhere and found.generation >= mine.generation + mine.there:
                del batch[client], room.mine[client]
                room.marked.pop(client, None)
            elif mine.meta is None:
                same = found is not None and (elsewhere or not knew) and found.user == mine.user
                mine.meta = found.meta if found is not None and same else mine.first

    async def _compare_all(self, room: _Room) -> None:
        """Look at all that lies there: what of ours is missing is written again, what is too much is taken away."""
        room.suspect = False
        try:
            found = await self._broker.revision(key_of(room.name))
        except BaseException:
            room.suspect = True
            raise
        room.epoch = found.position.epoch
        for client, mine in room.mine.items():
            if found.entries.get(client) != mine.known:
                mine.doubt = True
                mine.stamp += 1
                room.marked[client] = None
        for client, stored in found.entries.items():
            ghost = None if client in room.mine else self._decode(room, client, stored)
            if ghost is not None and ghost.node == self._engine.node_id:
                mine = room.mine[client] = Mine(ghost.user, ghost.generation, ghost.meta)
                mine.there = False
                mine.known, mine.doubt = stored, False
                room.marked[client] = None

    def _decode(self, room: _Room, client: str, stored: bytes | None) -> Present | None:
        if stored is None:
            return None
        try:
            return decode_entry(client, stored, self._engine.versions.formats)
        except BadUnit as error:
            self._engine.versions.unreadable(f"room {room.name!r}: presence of {client!r}", error)
            return None

    # -- the index ---------------------------------------------------------------------------------

    async def _index(self, room: _Room) -> None:
        """Before the first entry: hold the lease, and have it known where to look should this node die."""
        lease = self._engine.lease
        await lease.hold()
        if not lease.held:
            raise BrokerUnavailable("this node holds no lease now")
        life = self.life
        if self._registered != life:
            await self._register(life)
        if room.indexed != life:
            await self._broker.put(index_of(life), room.name, b"", ttl=KEPT)
            room.indexed = life

    async def _index_again(self, room: _Room) -> None:
        """The index of an earlier life is for those who reap it, and is not to come back behind them."""
        if room.indexed == self.life:
            await self._broker.put(index_of(room.indexed), room.name, b"", ttl=KEPT)

    async def _take_out(self, room: _Room) -> bool:
        """Nobody of this node is in the room: take it out of the index. False when it has to be looked at before.

        Whether the broker has lost something is asked afterwards: a failover that comes later takes back both, what was
        written to the room and this.
        """
        was_in = await self._broker.remove(index_of(room.indexed), room.name)
        lives, there = await self._broker.positions([LIVES, key_of(room.name)])
        sure = lives.epoch == room.looked or (lives.epoch == self._lives and not self._lost)
        if sure and there.epoch in ("", room.epoch):
            room.indexed = ""
            return True
        # Not of an earlier life: its index is for those who reap it, and is not to come back behind them.
        if was_in or room.indexed == self.life:
            await self._broker.put(index_of(room.indexed), room.name, b"", ttl=KEPT)
        room.looked = lives.epoch
        room.suspect = True
        return False

    async def _register(self, life: str) -> None:
        async with self._registering:
            if self._closed and self._registered == life:
                return  # it is about to be taken out
            done = await self._broker.revise(
                LIVES, {life: b""}, ttl=KEPT, expected={}, topic=LIVES_TOPIC, payload=b"{}"
            )
            if done is not None:
                self._lost = self._lost or self._lives not in ("", done.epoch)
                self._lives = done.epoch
            self._registered = life
            self._registered_until = self._engine.clock.monotonic() + _RENEWED

    # -- keeping -----------------------------------------------------------------------------------

    async def renew(self) -> None:
        """Renew what has lain in the broker for a quarter of its time, a few rooms at a time.

        :raises Unavailable: when the broker cannot be reached.
        """
        now = self._engine.clock.monotonic()
        if self._registered and self._registered == self.life and now >= self._registered_until:
            await self._register(self._registered)
        due = [room for room in self._rooms.values() if now >= room.renew_at and room.indexed]
        for room in due[:_ROOMS_AT_ONCE]:
            await self._index_again(room)
            clients = iter([client for client, mine in room.mine.items() if mine.known is not None])
            while some := list(islice(clients, _AT_ONCE)):
                for client in await self._broker.renew(key_of(room.name), some, ttl=KEPT):
                    mine = room.mine.get(client)
                    if mine is not None and mine.there:
                        mine.doubt = True
                        self._mark(room, client, mine)
            room.renew_at = now + _RENEWED

    async def check(self, known: Mapping[str, Position]) -> None:
        """Find out whether the broker has lost writes in a failover, and put right what follows from it.

        :param known: positions by key that were asked for just now.
        :raises Unavailable: when the broker cannot be reached. It is done again with the next check, then.
        """
        rooms = await self._of_new_epochs(known)
        self._lost = self._lost or bool(rooms)
        for room in rooms:
            self._suspect(room)
        if self._registered and await self._has_lost():
            await self._put_again()
        self._lost = False

    async def _of_new_epochs(self, known: Mapping[str, Position]) -> list[_Room]:
        """The rooms of which something may have been lost."""
        found: list[_Room] = []
        asked: list[_Room] = []
        for room in self._rooms.values():
            if room.epoch:
                position = known.get(key_of(room.name))
                if position is None:
                    asked.append(room)
                elif position.epoch != room.epoch:
                    found.append(room)
        for start in range(0, len(asked), POSITIONS):
            some = asked[start : start + POSITIONS]
            before = [room.epoch for room in some]
            positions = await self._broker.positions([key_of(room.name) for room in some])
            for room, epoch, position in zip(some, before, positions, strict=True):
                if position.epoch != epoch == room.epoch:  # else it was written to meanwhile, and knows
                    found.append(room)
        return found

    async def _has_lost(self) -> bool:
        """Whether something may have been lost that no room tells of."""
        (lives,) = await self._broker.positions([LIVES])
        self._lost = self._lost or lives.epoch != self._lives
        return self._lost

    async def _put_again(self) -> None:
        """Where to look should this node die; and look there for rooms that are back."""
        life = self._registered
        if life == self.life:
            await self._register(life)
        for room in list(self._rooms.values()):
            await self._index_again(room)
        for name in await self._broker.entries(index_of(life)):
            if name not in self._rooms:
                self._begin(name).indexed = life
            # If it was begun anew since, it has the new epoch already, and has compared nothing.
            self._suspect(self._rooms[name])

    def _suspect(self, room: _Room) -> None:
        room.suspect = True
        if room.writer is None and not self._closed:
            room.writer = self._engine.task(self._write, room)

    async def leave(self) -> None:
        """The run ends. If everything was written, nobody has to look for this life any more.

        :raises Unavailable: when the broker cannot be reached.
        """
        self._closed = True
        if self._registered and await self._has_lost():
            return  # what was taken away may be back: others will look, as for a node that died
        for room in list(self._rooms.values()):
            if room.writer is None and all(
                mine.member is None and not mine.there for mine in room.mine.values()
            ):
                await self._settle(room)
        if self._registered and not self._rooms:
            async with self._registering:  # or what is on its way would put it back
                await self._broker.remove(LIVES, self._registered)

    async def _settle(self, room: _Room) -> None:
        """All that were here have gone on elsewhere. Whose entry was taken over is not our concern any more."""
        entries = await self._broker.entries(key_of(room.name))
        for client in list(room.mine):
            found = self._decode(room, client, entries.get(client))
            if found is None or found.node != self._engine.node_id:
                del room.mine[client]
        if not room.mine:
            if room.indexed:
                await self._broker.remove(index_of(room.indexed), room.name)
            del self._rooms[room.name]

    def __repr__(self) -> str:
        clients: Any = sum(len(room.mine) for room in self._rooms.values())
        return f"<Ledger {self.life}: {clients} clients in {len(self._rooms)} rooms>"
