"""One room on one node: its feed, its members, and everything that brings the two together (H2–H5, H10).

The pure arithmetic is in :mod:`rtkit.streams`; this module performs what it decides. Its duties:

- live members get every entry the feed delivers, in one loop that awaits nothing (H5);
- members outside (joining, or lagging behind) are offered the same entries, and read pages until they meet
  the cursor; a page read for a member may extend the feed, only the room's own reads repair it;
- at most one repair runs at a time, and everybody who needs one waits for the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..brokers import StreamBroker
from ..errors import BadUnit, BrokerUnavailable, Unavailable
from ..identity import Grant
from ..position import Gap, Position
from ..primitives.clocks import sleep
from ..publisher import topic_of
from ..streams import CatchUp, Entry, Feed, Meeting, Moved, StreamPage, Verdict
from ..wire import (
    ClientInfo,
    Envelope,
    GapBody,
    Kind,
    PositionPush,
    Publication,
    Push,
    Reply,
    SignalBody,
    SubscribeResult,
    UnsubscribePush,
    dumps,
)
from .table import Family

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session

__all__ = ["Joining", "LocalRoom", "Member"]

logger = logging.getLogger("rtkit.hub")

#: Bytes of publications in one subscribe reply; the rest of a long recovery follows as pushes.
REPLY_BYTES = 256 * 1024
#: Messages buffered for a joiner of a room without history, while its ``on_join`` hook runs.
JOIN_BUFFER = 256


class Prepared:
    """One publication on its way to many members: encoded once for each form somebody needs (W2)."""

    __slots__ = ("_base", "_rt", "channel", "envelope", "offset")

    def __init__(self, channel: str, envelope: Envelope, offset: int) -> None:
        self.channel = channel
        self.envelope = envelope
        self.offset = offset
        self._base: bytes | None = None
        self._rt: bytes | None = None

    def unit(self, rt: bool) -> bytes:
        """The push unit, for rtkit's own clients or for any."""
        if rt:
            if self._rt is None:
                self._rt = self._encode(True)
            return self._rt
        if self._base is None:
            self._base = self._encode(False)
        return self._base

    def _encode(self, rt: bool) -> bytes:
        return dumps(Reply(push=Push(channel=self.channel, pub=publication(self.envelope, self.offset, rt))))


def publication(envelope: Envelope, offset: int, rt: bool) -> Publication:
    """A message as the wire shows it; ``time`` is rtkit's own addition."""
    info = ClientInfo(envelope.user, envelope.client) if envelope.user else None
    found = Publication(envelope.data, offset, info)
    if rt:
        found.time = envelope.time
    return found


class Member:
    """A session in a room.

    :ivar outside: where it stands while it is not live; None when it is.
    :ivar left: it is on its way out; nothing may be done for it any more.
    """

    __slots__ = ("grant", "grant_deadline", "held", "left", "outside", "room", "server_side", "session")

    def __init__(self, session: Session[Any], room: LocalRoom, grant: Grant, *, server_side: bool) -> None:
        self.session = session
        self.room = room
        self.grant = grant
        self.server_side = server_side
        self.outside: CatchUp | None = None
        self.held: deque[Prepared] | None = None  # a room without history: what came while joining
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
        self.reading = asyncio.Lock()
        self._gate = asyncio.Lock()
        self._repairing = False

    # -- what the broker hands over ----------------------------------------------------------------

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """Called for everything on the room's topic; plain, and never blocks."""
        if position is None or self.feed is None:
            envelope = Envelope.decode(payload)
            if envelope.kind is Kind.SIGNAL:
                self._signal(envelope)
            elif envelope.kind is Kind.KICK:
                self._kick(envelope)
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
            self.repair_soon()

    def _deliver(self, entry: Entry) -> None:
        for member in self.outside:
            if member.outside is not None:
                member.outside.offer(entry)
        self._fan_out(self.open_entry(entry), entry.offset)

    def open_entry(self, entry: Entry) -> Envelope:
        """The message in a stream's entry. Foreign bytes become ``null``: their offset must not go missing."""
        try:
            return Envelope.decode(entry.payload)
        except BadUnit as error:
            self.engine.counters.add("foreign_entries")
            logger.error("room %r: offset %d holds %s", self.name, entry.offset, error)
            return Envelope(v=1, data=Raw(b"null"))

    def _fan_out(self, envelope: Envelope, offset: int) -> None:
        """One loop over the live members; whoever could not take it is dealt with afterwards (D3)."""
        prepared = Prepared(self.name, envelope, offset)
        policy = self.family.rooms.overflow
        key = (envelope.user, envelope.event) if policy == "latest_per_key" else None
        spilled: list[tuple[Member, Any]] | None = None
        for member in self.live:
            connection = member.session.connection
            if connection is None:
                continue
            spill = connection.push(self.name, prepared.unit(connection.rt), policy, key=key, mark=offset)
            if spill is not None:
                spilled = spilled or []
                spilled.append((member, spill))
        if offset == 0 and self.outside:
            for member in self.outside:
                self._hold(member, prepared)
        self.engine.counters.add("deliveries", amount=len(self.live))
        for member, spill in spilled or ():
            self._spilled(member, spill, offset)

    def _hold(self, member: Member, prepared: Prepared) -> None:
        if member.held is None:
            member.held = deque(maxlen=JOIN_BUFFER)
        if len(member.held) == JOIN_BUFFER:
            self.engine.counters.add("drops", "joining")
        member.held.append(prepared)

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
            assert self.feed is not None and self.feed.cursor is not None
            self._fall_behind(member, Position(self.feed.cursor.epoch, offset - 1))

    def _fall_behind(self, member: Member, at: Position) -> None:
        """The member's outbox is full: it leaves the live set and reads on from history when it has room."""
        self.engine.counters.add("lagging")
        self.live.pop(member, None)
        self.outside[member] = None
        member.outside = CatchUp(at, joining=False)
        if member.session.connection is not None:
            member.session.connection.lagging[member] = None

    def _signal(self, envelope: Envelope) -> None:
        body = SignalBody(event=envelope.event, data=envelope.data, user=envelope.user)
        unit = dumps(Reply(push=Push(channel=self.name, signal=body)))
        key = (envelope.user, envelope.event)
        for member in self.live:
            connection = member.session.connection
            if connection is None or not connection.rt or member.session.id == envelope.skip:
                continue
            # Signals are the first to go, and only the newest of each sender and kind counts (D5).
            spill = connection.push((self.name, "signal"), unit, "latest_per_key", key=key)
            if spill is not None and (spill.overflow or spill.dropped_count):
                self.engine.counters.add("drops", "signal")

    def _kick(self, envelope: Envelope) -> None:
        """A user was removed from this room, on whatever node (A4)."""
        for member in [*self.live, *self.outside]:
            if member.session.identity.user == envelope.user:
                self.engine.unsubscribe(member, envelope.code, envelope.reason)

    # -- reading and repairing ---------------------------------------------------------------------

    @property
    def stream(self) -> StreamBroker:
        """The broker, of which the hub has made sure that it keeps streams."""
        return self.engine.stream

    async def read(self, since: Position | None, limit: int) -> StreamPage:
        """A page of this room's stream."""
        return await self.stream.read(self.topic, since=since, limit=limit, history=self.family.history)

    def repair_soon(self) -> None:
        """Repair in the background, and do not give up while the broker is away."""
        if not self._repairing and (self.live or self.outside):
            self._repairing = True
            self.engine.spawn(self._repair)

    async def _repair(self) -> None:
        try:
            while self.live or self.outside:
                try:
                    await self.repair()
                    return
                except Unavailable as error:
                    logger.warning("room %r: repair waits for the broker: %s", self.name, error)
                    await sleep(self.engine.clock, self.engine.backoff())
        finally:
            self._repairing = False

    async def repair(self) -> None:
        """Have the feed read until it is satisfied; whoever needs that at the same time shares the reads.

        :raises Unavailable: when the broker cannot be reached.
        """
        while self.feed is not None and self.feed.wants_read:
            await self._read_for_feed()

    async def _read_for_feed(self) -> None:
        feed = self.feed
        assert feed is not None
        async with self.reading:
            if not feed.wants_read:
                return
            since = feed.cursor
            page = await self.read(since, 0 if since is None else self.engine.limits.recovery_page)
            self._moved(feed.absorb(page))
            if feed.wants_read and feed.cursor == since:
                # A replica that lags, say: reading on at once would spin.
                raise BrokerUnavailable(f"room {self.name!r}: the stream does not yet have what was announced")

    def _extend(self, page: StreamPage) -> None:
        """A member's page may show what comes next for everybody."""
        if self.feed is not None:
            self._moved(self.feed.extend(page))

    def _moved(self, moved: Moved) -> None:
        if not moved or self.feed is None or self.feed.cursor is None:
            return
        cursor = self.feed.cursor
        if moved.gap is not None or moved.epoch_changed:
            begin = moved.entries[0].offset - 1 if moved.entries else cursor.offset
            for member in self.outside:
                if member.outside is not None:
                    member.outside.jumped(Position(cursor.epoch, begin))
            for member in list(self.live):
                self._tell(member, moved.gap, Position(cursor.epoch, begin) if moved.epoch_changed else None)
        for entry in moved.entries:
            self._deliver(entry)

    def _tell(self, member: Member, gap: Gap | None, position: Position | None) -> None:
        """Tell one member what it cannot get, and where its stream goes on (H3, H10)."""
        connection = member.session.connection
        if connection is None:
            return
        if gap is not None:
            self.engine.counters.add("gaps", gap.reason)
        if connection.rt:
            if gap is not None:
                body = GapBody(start=gap.start, end=gap.end, epoch=gap.epoch, reason=gap.reason)
                connection.control(dumps(Reply(push=Push(channel=self.name, gap=body))))
            if position is not None:
                where = PositionPush(epoch=position.epoch, offset=position.offset)
                connection.control(dumps(Reply(push=Push(channel=self.name, position=where))))
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
                await self.engine.broker.subscribe([self.topic])
                self.subscribed = True
        if self.feed is not None and self.feed.cursor is None:
            await self.repair()

    async def close(self) -> None:
        """Let go of the topic, unless somebody has come meanwhile."""
        async with self._gate:
            if self.subscribed and not (self.live or self.outside):
                self.subscribed = False
                await self.engine.broker.unsubscribe([self.topic])

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
                    member.outside = None
                    self.outside.pop(member, None)
                    self.live[member] = None
                return
            if meeting is Meeting.REPAIR:
                await self.repair()
            assert catch.position is not None
            page = await self.read(catch.position, self.engine.limits.recovery_page)
            if member.left:
                return
            self._extend(page)
            epoch = catch.position.epoch
            entries, gap = catch.page(page)
            if gap is not None or page.epoch != epoch:
                self._tell(member, gap, Position(page.epoch, page.start) if page.epoch != epoch else None)
            if not self._push_all(member, catch, entries):
                return

    def _push_all(self, member: Member, catch: CatchUp, entries: Sequence[Entry]) -> bool:
        """Push entries to one member; False when its outbox filled up, and it stays behind from there."""
        connection = member.session.connection
        for entry in entries:
            if connection is None or member.left:
                return False
            unit = Prepared(self.name, self.open_entry(entry), entry.offset).unit(connection.rt)
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

    def __repr__(self) -> str:
        return f"<LocalRoom {self.name!r}: {len(self.live)} live, {len(self.outside)} outside>"


class Joining:
    """One member on its way in.

    :meth:`run` does all that has to be awaited; :meth:`finish` then goes live and makes the reply, without
    awaiting anything, so that nothing can be published between the two.

    :param since: the position to recover from.
    :param rewind: begin this many messages back instead (H8).
    :param hook: returns the join data as JSON; runs after buffering has begun.
    """

    def __init__(
        self,
        member: Member,
        *,
        since: Position | None,
        rewind: int,
        hook: Callable[[], Awaitable[Raw | UnsetType]] | None,
    ) -> None:
        self.member = member
        self.room = member.room
        self.since = since
        self.rewind = rewind if since is None else 0
        self._hook = hook
        self._data: Raw | UnsetType = UNSET
        self._entries: list[Entry] = []
        self._size = 0
        self._gap: Gap | None = None
        self._wants: Meeting | None = None

    async def run(self) -> None:
        """Subscribe, begin to buffer, run the hook, and read what was missed.

        :raises Unavailable: when the broker cannot be reached.
        :raises Reject: from the hook.
        """
        room, member = self.room, self.member
        room.outside[member] = None
        await room.open()
        feed = room.feed
        if feed is not None:
            assert feed.cursor is not None
            since, forgiving = self.since, False
            if self.rewind:
                since, forgiving = Position(feed.cursor.epoch, max(0, feed.cursor.offset - self.rewind)), True
            member.outside = CatchUp(since, joining=True, forgiving=forgiving)
            member.outside.begin(feed.cursor)
        if self._hook is not None:
            self._data = await self._hook()
        if member.outside is not None and (self.since is not None or self.rewind):
            await self._read()

    async def _read(self) -> None:
        catch = self.member.outside
        assert catch is not None
        page = await self.room.read(catch.position, self.room.engine.limits.recovery_page)
        self.room._extend(page)
        entries, gap = catch.page(page)
        if gap is not None:
            # What was gathered before does not connect any more: the member begins at the top.
            self._entries.clear()
            start = self.since.offset if self.since is not None and gap.reason == "trimmed" else gap.start
            self._gap = Gap(min(start, gap.end), gap.end, gap.epoch, gap.reason)
        self._gather(entries)

    def _gather(self, entries: Sequence[Entry]) -> None:
        self._entries.extend(entries)
        self._size += sum(len(entry.payload) for entry in entries)

    def finish(self) -> SubscribeResult | None:
        """Go live and make the reply; None when :meth:`advance` must be awaited first."""
        room, member = self.room, self.member
        if room.feed is None:
            return self._finish_without_history()
        catch = member.outside
        assert catch is not None and room.feed.cursor is not None
        if self._size < REPLY_BYTES:
            self._wants, entries = catch.meet(room.feed.cursor)
            if self._wants is not Meeting.LIVE:
                return None
            self._gather(entries)
            member.outside = None
            room.outside.pop(member, None)
            room.live[member] = None
        else:
            # More than one reply should hold: the rest follows as pushes, as fast as it is taken.
            catch.joining = False
            if member.session.connection is not None:
                member.session.connection.lagging[member] = None
        return self._result(catch)

    async def advance(self) -> None:
        """Do what :meth:`finish` found to be missing."""
        if self._wants is Meeting.REPAIR:
            await self.room.repair()
        await self._read()

    async def complete(self) -> SubscribeResult:
        """Finish, however often the stream moves on meanwhile."""
        while (result := self.finish()) is None:
            await self.advance()
        return result

    def _result(self, catch: CatchUp) -> SubscribeResult:
        connection = self.member.session.connection
        rt = connection is not None and connection.rt
        assert catch.position is not None
        recovering = self.since is not None
        self.room.engine.counters.add("recoveries" if recovering and self._gap is None else "joins")
        result = SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=catch.position.epoch,
            offset=catch.position.offset,
            publications=[publication(self.room.open_entry(e), e.offset, rt) for e in self._entries],
            recovered=recovering and self._gap is None,
            was_recovering=recovering,
            data=self._data,
        )
        if recovering and self._gap is not None:
            self.room.engine.counters.add("gaps", self._gap.reason)
            if rt:
                gap = self._gap
                result.gap = GapBody(start=gap.start, end=gap.end, epoch=gap.epoch, reason=gap.reason)
        return result

    def _finish_without_history(self) -> SubscribeResult:
        """At most once: live from here, after what came while the hook ran."""
        room, member = self.room, self.member
        held, member.held = member.held, None
        room.outside.pop(member, None)
        room.live[member] = None
        room.engine.counters.add("joins")
        connection = member.session.connection
        rt = connection is not None and connection.rt
        publications = [publication(prepared.envelope, 0, rt) for prepared in held or ()]
        return SubscribeResult(
            data=self._data, publications=publications, was_recovering=self.since is not None
        )


def unsubscribe_unit(channel: str, code: int, reason: str) -> bytes:
    """The push that takes a client out of a room."""
    return dumps(Reply(push=Push(channel=channel, unsubscribe=UnsubscribePush(code, reason))))
