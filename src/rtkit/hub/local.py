"""One room on one node: its feed, its members, and everything that brings the two together (H2–H5, H10).

The pure arithmetic is in :mod:`rtkit.streams`, which also numbers the duties of whoever performs what it
decides; that is this module. Live members get every entry in one loop that awaits nothing (H5); members
*outside* (joining, or lagging behind) are offered the same entries, and read pages until they meet the cursor.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from msgspec import Raw

from .. import codes
from ..brokers import StreamBroker
from ..errors import BadUnit, BrokerUnavailable, Unavailable
from ..identity import Grant
from ..position import Gap, Position
from ..primitives.backoff import Backoff
from ..primitives.clocks import timeout
from ..primitives.outbox import Overflow
from ..publisher import topic_of
from ..schema import split_event
from ..streams import CatchUp, Entry, Feed, Meeting, Moved, StreamPage, Verdict
from ..transports import Batch
from ..wire import (
    Envelope,
    GapBody,
    Kind,
    PositionPush,
    Push,
    Reply,
    SignalBody,
    dumps,
)
from .large import Parcel
from .prepared import HIGH_WATER, Prepared
from .table import Family

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine
    from .session import Session

__all__ = ["LocalRoom", "Member"]

logger = logging.getLogger("rtkit.hub")

#: Messages buffered for a joiner of a room without history, while its ``on_join`` hook runs.
JOIN_BUFFER = 256
#: Bytes that a message is more on the wire, about: small ones are mostly that.
_WRAPPING = 128


class Member:
    """A session in a room.

    :ivar outside: where it stands while it is not live; None when it is.
    :ivar entered: its ``on_join`` is through, so that ``on_leave`` will have to run.
    :ivar left: it is on its way out; nothing may be done for it any more.
    """

    __slots__ = (
        "entered",
        "grant",
        "grant_deadline",
        "held",
        "left",
        "outside",
        "room",
        "server_side",
        "session",
    )

    def __init__(self, session: Session[Any], room: LocalRoom, grant: Grant, *, server_side: bool) -> None:
        self.session = session
        self.room = room
        self.grant = grant
        self.server_side = server_side
        self.outside: CatchUp | None = None
        self.held: deque[Prepared] | None = None  # a room without history: what came while joining
        self.entered = False
        self.left = False
        self.grant_deadline: Any = None

    def __repr__(self) -> str:
        return f"<Member {self.session.identity.user!r} of {self.room.name!r}{' (outside)' if self.outside else ''}>"


class LocalRoom:
    """A room as this node sees it; exists while it has members."""

    def __init__(self, engine: Engine, name: str, family: Family, params: Mapping[str, str]) -> None:
        self.engine = engine
        self.name = name
        self.family = family
        self.params = params
        self.topic = topic_of(name)
        self.feed: Feed | None = Feed() if family.history is not None else None
        self.live: dict[Member, None] = {}
        self.outside: dict[Member, None] = {}
        self.subscribed = False
        # Asked to be; a broker that could not confirm it may do it all the same, when it is back.
        self._asked = False
        self._pending: list[Prepared] = []  # delivered in this loop turn, and not yet handed to the members
        self._pending_bytes = 0
        self._pending_epoch = ""
        self._arrived: float | None = None  # when the first of them was delivered
        self._published: float | None = None  # when the first of them that this node has published was
        self._rereads = engine.rereads.room()
        self._reading = asyncio.Lock()
        self._gate = asyncio.Lock()
        self._repairing = False
        self._hurry: asyncio.Event | None = None
        # Read for those who lag.
        self._large: WeakValueDictionary[tuple[str, int, bool], Parcel] | None = None

    # -- what the broker hands over ----------------------------------------------------------------

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """Called for everything on the room's topic; plain, and never blocks."""
        if position is None or self.feed is None:
            envelope = self.engine.versions.formats.open(payload)
            if envelope.kind is Kind.SIGNAL:
                self._signal(envelope)
            elif self.feed is None:
                self._fan_out(envelope, 0)
            return
        verdict = self.feed.offer(position, payload)
        if verdict is Verdict.DELIVER:
            self._deliver(Entry(position.offset, payload))
        elif verdict is Verdict.READ:
            self.engine.counters.add("holes")
            self.repair_soon()

    def interrupted(self) -> None:
        """Something may have been missed on the way here: read, and see (H4)."""
        if self.feed is not None:
            self.feed.doubt()
            if self._hurry is not None:
                self._hurry.set()  # it waits for a broker that is back
            self.repair_soon()

    def _deliver(self, entry: Entry) -> None:
        """Hand on what the feed's cursor has passed: nobody will look for it again, so this does not fail."""
        try:
            if self._rereads.size and self.feed is not None and self.feed.cursor is not None:
                self._rereads.delivered(self.feed.cursor.epoch, entry)
            for member in self.outside:
                if member.outside is not None:
                    member.outside.offer(entry)
            self._fan_out(self.open_entry(entry), entry.offset)
        except Exception as error:
            self._lost_track((*self.live, *self.outside), error)

    def open_entry(self, entry: Entry) -> Envelope:
        """The message in a stream's entry. Foreign bytes become ``null``: their offset must not go missing."""
        try:
            return self.engine.versions.formats.open(entry.payload)
        except BadUnit as error:
            self.engine.versions.unreadable(f"room {self.name!r}, offset {entry.offset}", error)
            return Envelope(v=1, data=Raw(b"null"))

    def _fan_out(self, envelope: Envelope, offset: int) -> None:
        """Have the live members get it at the end of the loop turn, with what else came in it (D4)."""
        prepared = Prepared(self.name, envelope, offset)
        began = self.engine.underway.end(self.name, envelope.time) if self.engine.underway else None
        if offset == 0 and self.outside:
            for member in self.outside:
                self._hold(member, prepared)
        if not self.live:
            return
        if not self._pending:
            self._pending_epoch = self.feed.cursor.epoch if self.feed is not None and self.feed.cursor else ""
            engine = self.engine
            self._arrived = engine.clock.monotonic() if engine.timings.fanouts.due() else None
            self.engine.pending(self)
        self._pending.append(prepared)
        if self._published is None:
            self._published = began
        self._pending_bytes += prepared.size + _WRAPPING
        if self._pending_bytes >= HIGH_WATER:
            self.settle()

    def settle(self, *, alone: bool = False) -> None:
        """Hand what came in this loop turn to the live members: one loop that awaits nothing (H5, D3).

        Whoever has nothing queued gets it at once, from a form that all share. Who has goes through the outbox,
        where the room's policy acts. Called at the end of the turn, and before anything that must not overtake it, or
        that changes who is live. It does not fail, whoever calls it: the cursor has moved on already.

        :param alone: no other room waits for the end of this turn; else a member of several rooms goes through the
            outbox, so that all it gets leaves in one write.
        """
        pending = self._pending
        if not pending:
            return
        size, self._pending_bytes = self._pending_bytes, 0
        self._pending = []
        self.engine.settled(self)
        try:
            self._settle(pending, size, alone)
        except Exception as error:
            self._lost_track(self.live, error)

    def _settle(self, pending: Sequence[Prepared], size: int, alone: bool) -> None:
        policy = self.family.rooms.overflow
        # What conflates, or is larger than any outbox, is for the outbox to judge.
        direct = len(pending) == 1 or policy != "latest_per_key"
        direct = direct and size < self.engine.limits.outbox
        aside = False  # to foreign members alone
        if size > self.engine.small_rt:
            # What is too large to go whole does not go past the outbox either (T8).
            largest = max(each.size for each in pending)
            if largest > self.engine.small_rt:
                direct, aside = False, direct and largest <= self.engine.small
        base: Batch | None = None
        rt: Batch | None = None
        written = written_rt = 0
        spilled: list[tuple[Member, Any, int]] = []
        unserved: dict[Member, Exception] = {}
        for member in tuple(self.live):  # whoever is closed meanwhile leaves
            session = member.session
            connection = session.connection
            if connection is None:
                continue
            try:
                if direct and connection.clear and (alone or len(session.rooms) == 1):
                    if connection.rt:
                        batch = rt = rt or Batch([each.unit(True) for each in pending])
                        written_rt += 1
                    else:
                        batch = base = base or Batch([each.unit(False) for each in pending])
                        written += 1
                    connection.clear = connection.transport.send_batch(batch)
                elif aside and not connection.rt and connection.clear and (alone or len(session.rooms) == 1):
                    base = base or Batch([each.unit(False) for each in pending])
                    connection.clear = connection.transport.send_batch(base)
                    written += 1
                else:
                    self._queue(member, connection, pending, policy, spilled)
            except Exception as error:
                unserved[member] = error
        count = len(pending)
        self.engine.counters.add("deliveries", amount=count * len(self.live))
        self.engine.counters.add("units_sent", amount=count * (written + written_rt))
        size = written * sum(map(len, base.units)) if base is not None else 0
        size += written_rt * sum(map(len, rt.units)) if rt is not None else 0
        self.engine.counters.add("sent_bytes", amount=size)
        if self._arrived is not None or self._published is not None:
            self._measure()
        for member, spill, offset in spilled:
            self._spilled(member, spill, offset)
        if unserved:
            self._lost_track(unserved, next(iter(unserved.values())))

    def _lost_track(self, members: Iterable[Member], error: Exception) -> None:
        """A bug below. What these got is unknown, and the feed is past it: let them come back, and recover (H3)."""
        members = tuple(members)
        logger.error("room %r: fan-out failed, to %d of its members", self.name, len(members), exc_info=error)
        for member in members:
            connection = member.session.connection
            if connection is not None:
                try:
                    connection.close(codes.INTERNAL_CLOSE, "internal error")
                except Exception as another:
                    logger.exception("%r could not be closed", connection, exc_info=another)

    def _measure(self) -> None:
        """What the turn brought has been handed out."""
        now, timings = self.engine.clock.monotonic(), self.engine.timings
        if self._arrived is not None:
            timings.fanout.observe(now - self._arrived)
        if self._published is not None:
            timings.delivery.observe(now - self._published)
            self._published = None

    def _queue(
        self,
        member: Member,
        connection: Connection,
        pending: Sequence[Prepared],
        policy: Overflow,
        spilled: list[tuple[Member, Any, int]],
    ) -> None:
        """Queue for one member; what did not simply fit is noted, to be dealt with when all have theirs (D3)."""
        for each in pending:
            unit = each.unit(connection.rt)
            if policy == "latest_per_key":
                before = connection.outbox.conflated
                key = self._key(each.envelope)
                spill = connection.push(self.name, unit, policy, key=key, mark=each.offset)
                if connection.outbox.conflated != before:
                    self.engine.counters.add("drops", policy)  # the one whose place it took (D2)
            else:
                spill = connection.push(self.name, unit, policy, mark=each.offset)
            if spill is not None:
                spilled.append((member, spill, each.offset))

    def _key(self, envelope: Envelope) -> tuple[str, str]:
        """What ``latest_per_key`` tells messages apart by: the sender, and the kind in rooms that declare kinds."""
        if self.family.schema.raw:
            return envelope.user, ""
        try:
            return envelope.user, split_event(envelope.data)[0]
        except BadUnit:
            return envelope.user, ""

    def _hold(self, member: Member, prepared: Prepared) -> None:
        if member.held is None:
            member.held = deque(maxlen=JOIN_BUFFER)
        if len(member.held) == JOIN_BUFFER:
            self.engine.counters.add("drops", "joining")
        member.held.append(prepared)
        while len(member.held) > 1 and sum(each.size for each in member.held) > self.engine.limits.outbox:
            member.held.popleft()
            self.engine.counters.add("drops", "joining")

    def _spilled(self, member: Member, spill: Any, offset: int) -> None:
        """A push did not simply fit: do what the outbox decided (D1, D2)."""
        connection = member.session.connection
        if spill.dropped_count:
            self.engine.counters.add("drops", self.family.rooms.overflow, spill.dropped_count)
        if connection is None:
            return
        if spill.overflow:
            connection.close(codes.SLOW_CONSUMER, "slow consumer")
        elif spill.lagging and member in self.live:
            self._fall_behind(member, Position(self._pending_epoch, offset - 1))

    def _fall_behind(self, member: Member, at: Position) -> None:
        """The member's outbox is full: it leaves the live set and reads on from history when it has room."""
        self.engine.counters.add("lagging")
        self.live.pop(member, None)
        self.outside[member] = None
        member.outside = CatchUp(at, joining=False)
        if member.session.connection is not None:
            member.session.connection.lagging[member] = None

    def _signal(self, envelope: Envelope) -> None:
        self.settle()  # of a message, and the word that its sender types the next, the message comes first (X1)
        body = SignalBody(
            event=envelope.event, data=envelope.data, user=envelope.user, client=envelope.client
        )
        unit = dumps(Reply(push=Push(channel=self.name, signal=body)))
        key = (envelope.user, envelope.client, envelope.event)
        for member in tuple(self.live):
            connection = member.session.connection
            if connection is None or not connection.rt or member.session.id == envelope.skip:
                continue
            # Signals are the first to go, and only the newest of each sender and kind counts (D5).
            lane = (self.name, "signal")
            try:
                spill = connection.push(lane, unit, "latest_per_key", key=key, minor=True)
            except Exception as error:
                self._lost_track((member,), error)
                continue
            if spill is not None and (spill.overflow or spill.dropped_count):
                self.engine.counters.add("drops", "signal")

    # -- reading and repairing ---------------------------------------------------------------------

    @property
    def stream(self) -> StreamBroker:
        """The broker, of which the hub has made sure that it keeps streams."""
        return self.engine.stream

    async def read(self, since: Position | None, limit: int) -> StreamPage:
        """A page of this room's stream."""
        return await self.stream.read(self.topic, since=since, limit=limit, history=self.family.history)

    async def read_on(self, position: Position) -> StreamPage:
        """A page from where a member stands: what was read for others does as well (F2)."""
        return await self._rereads.read(position, self.engine.limits.recovery_page, self.read)

    def forget_reads(self) -> None:
        """What was read is not to be shown any more."""
        self._rereads.forget()

    def repair_soon(self) -> None:
        """Repair in the background, and do not give up while the broker is away."""
        # Before the subscription is through, nothing is read: the first page judges what came till then (H2).
        if self.subscribed and not self._repairing and (self.live or self.outside):
            self._repairing = True
            self.engine.spawn(self._repair)

    async def _repair(self) -> None:
        engine = self.engine
        backoff = Backoff(minimum=0.1, maximum=5.0, random=engine.random)
        self._hurry = asyncio.Event()
        try:
            # Not before a new subscription is through either: then the first page judges (H2).
            while self.subscribed and (self.live or self.outside):
                self._hurry.clear()
                try:
                    async with engine.repairs:
                        await self.repair()
                    return
                except Unavailable as error:
                    engine.cannot_read(self, error)
                with suppress(TimeoutError):
                    async with timeout(engine.clock, backoff.next()):
                        await self._hurry.wait()
        finally:
            self._hurry = None
            self._repairing = False

    async def repair(self) -> None:
        """Have the feed read until it is satisfied; whoever needs that at the same time shares the reads.

        :raises Unavailable: when the broker cannot be reached, or does not show what it has announced.
        """
        in_vain = 0
        while (feed := self.feed) is not None and feed.wants_read:
            async with self._reading:
                if feed is not self.feed or not feed.wants_read:
                    continue
                since = feed.reading()
                page = await self.read(since, 0 if since is None else self.engine.limits.recovery_page)
                if feed is not self.feed:
                    continue
                self._hand_out(feed.absorb(page))
            in_vain = in_vain + 1 if feed.cursor == since else 0
            if in_vain > 3:
                # A replica that lags, say: to read on at once would spin.
                raise BrokerUnavailable(
                    f"room {self.name!r}: the stream does not yet have what was announced"
                )

    def _extend(self, page: StreamPage) -> None:
        """A page read for a member may show what comes next for everybody."""
        if self.feed is not None:
            self._hand_out(self.feed.extend(page))
            if self.feed.wants_read:
                self.repair_soon()

    def _hand_out(self, moved: Moved) -> None:
        """What a page taught the feed: to live members the gap, or the new epoch, then the entries."""
        try:
            self._jump(moved)
        except Exception as error:
            self._lost_track((*self.live, *self.outside), error)
        for entry in moved.entries:
            self._deliver(entry)

    def _jump(self, moved: Moved) -> None:
        """The feed goes on elsewhere, or in a new epoch, if it does."""
        if moved.start is not None:
            self.settle()
            for member in self.outside:
                if member.outside is not None:
                    member.outside.jumped(moved.start)
            for member in list(self.live):
                self._tell(member, moved.gap, moved.start)
        if moved.epoch_changed:
            self._rereads.forget()
            for kind in self.family.rooms.features:
                self.engine.features[kind].renewed(self)

    def _tell(self, member: Member, gap: Gap | None, start: Position) -> None:
        """Tell one member what it cannot get, or else where its stream goes on in a new epoch (H3, H10)."""
        connection = member.session.connection
        if connection is None:
            return
        if gap is not None:
            self.engine.counters.add("gaps", gap.reason)
        if connection.rt:
            push = Push(channel=self.name)
            if gap is not None:
                push.gap = GapBody(start=gap.start, end=gap.end, epoch=gap.epoch, reason=gap.reason)
            else:
                push.position = PositionPush(epoch=start.epoch, offset=start.offset)
            connection.control(dumps(Reply(push=push)), lane=self.name)
        elif member.server_side:
            connection.close(codes.CONTINUITY_LOST, "continuity lost")
        else:
            self.engine.unsubscribe(member, codes.ROOM_CONTINUITY_LOST, "continuity lost")

    async def check(self) -> None:
        """Compare the stream's top with what was delivered; repair if they differ (H4)."""
        if self.feed is None or not (self.live or self.outside):
            return
        page = await self.read(None, 0)
        if self.feed.differs(page.position):
            self.feed.doubt()
            await self.repair()

    # -- members -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Be subscribed, and know where the stream stands.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._gate:
            if not self.subscribed:
                if self.feed is not None:
                    self.feed = Feed()
                self._asked = True
                await self.engine.broker.subscribe([self.topic])
                self.subscribed = True
        if self.feed is not None and self.feed.cursor is None:
            await self.repair()

    async def close(self) -> None:
        """Let go of the topic, unless somebody has come meanwhile."""
        async with self._gate:
            if not (self.live or self.outside):
                self._rereads.forget()
            if self._asked and not (self.live or self.outside):
                self.subscribed = self._asked = False
                await self.engine.broker.unsubscribe([self.topic])

    def admit(self, member: Member) -> None:
        """From the next message on *member* is live; what waits for the end of the turn it has already."""
        self.settle()
        if member.left:
            return  # handing out closed somebody, whose other rooms then closed this one's connection too
        member.outside = None
        self.outside.pop(member, None)
        self.live[member] = None

    def leave(self, member: Member) -> None:
        """Forget a member; nothing reaches it from now on."""
        member.left = True
        self.live.pop(member, None)
        self.outside.pop(member, None)
        if member.session.connection is not None:
            member.session.connection.forget(member)
        if member.grant_deadline is not None:
            member.grant_deadline.cancel()

    async def catch_up(self, member: Member) -> None:
        """A member that fell behind has room again: read on from where it stands until it is live."""
        catch, connection = member.outside, member.session.connection
        if catch is None or connection is None or self.feed is None or self.feed.cursor is None:
            return
        connection.outbox.resume(self.name)
        catch.begin(self.feed.cursor)
        while not member.left and connection is member.session.connection:
            meeting, entries = catch.meet(self.feed.cursor)
            if meeting is Meeting.LIVE:
                if self._push_all(member, catch, entries):
                    self.admit(member)
                return
            if meeting is Meeting.REPAIR:
                self.feed.doubt()
                await self.repair()
                continue
            before = catch.position
            assert before is not None
            page = await self.read_on(before)
            if member.left:
                return
            self._extend(page)
            entries, gap = catch.page(page)
            assert catch.position is not None
            if gap is not None or catch.position.epoch != before.epoch:
                self._tell(member, gap, Position(page.epoch, page.start))
            if not self._push_all(member, catch, entries):
                return

    def _push_all(self, member: Member, catch: CatchUp, entries: Sequence[Entry]) -> bool:
        """Push entries to one member; False when its outbox filled up, and it stays behind from there."""
        connection = member.session.connection
        for entry in entries:
            if connection is None or member.left:
                return False
            # Kept until it is pushed: a large one is shared only while somebody has its parcel.
            parcel = self._parcel(entry, catch, connection)
            unit = parcel.unit if parcel is not None else self._unit(entry, connection)
            spill = connection.push(self.name, unit, "recover", mark=entry.offset)
            if spill is None or spill.queued:
                continue
            if spill.overflow:
                connection.close(codes.SLOW_CONSUMER, "slow consumer")
            else:
                assert catch.position is not None
                catch.position = Position(catch.position.epoch, entry.offset - 1)
                connection.lagging[member] = None
            return False
        return True

    def _unit(self, entry: Entry, connection: Connection) -> bytes:
        """An entry as the push that one member gets."""
        return Prepared(self.name, self.open_entry(entry), entry.offset).unit(connection.rt)

    def _parcel(self, entry: Entry, catch: CatchUp, connection: Connection) -> Parcel | None:
        """The same of a large one, shared with others who lag (D3); None for one that is not."""
        if len(entry.payload) <= connection.small or catch.position is None:
            return None
        if self._large is None:
            self._large = WeakValueDictionary()
        place = (catch.position.epoch, entry.offset, connection.rt)
        parcel = self._large.get(place)
        if parcel is None:
            parcel = self._large[place] = self.engine.parcel(self._unit(entry, connection))
        return parcel

    def __repr__(self) -> str:
        return f"<LocalRoom {self.name!r}: {len(self.live)} live, {len(self.outside)} outside>"
