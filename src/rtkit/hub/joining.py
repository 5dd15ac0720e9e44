"""A member on its way into a room: subscribe, buffer, read what was missed, go live (H2, H3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import UNSET, Raw, UnsetType

from ..errors import Reject
from ..position import Gap, Position
from ..streams import CatchUp, Entry, Meeting
from ..wire import GapBody, SubscribeResult
from .local import Member
from .prepared import REPLY_BYTES, publication

__all__ = ["BEGINNING", "Joining"]

#: A position that names no stream: the beginning of whatever stream there is.
BEGINNING = Position("", 0)


class Joining:
    """One member on its way in.

    :meth:`run` does all that has to be awaited; :meth:`finish` then goes live and makes the reply, without
    awaiting anything, so that nothing can be published between the two.

    :param since: the position to recover from.
    :param rewind: begin this many messages back instead (H8).
    :param admit: raises ``Reject`` for who may not come in; asked once the room is subscribed, so that whoever is
        put out after the answer is put out of the room.
    :param hook: returns the join data as JSON; runs after buffering has begun.
    """

    def __init__(
        self,
        member: Member,
        *,
        since: Position | None,
        rewind: int,
        admit: Callable[[], Awaitable[None]],
        hook: Callable[[], Awaitable[Raw | UnsetType]] | None,
    ) -> None:
        self.member = member
        self.room = member.room
        self.since = since
        self.rewind = rewind if since is None else 0
        self._admit = admit
        self._hook = hook
        self._data: Raw | UnsetType = UNSET
        self._entries: list[Entry] = []
        self._size = 0
        self._full = False  # a reply should not hold more
        self._gap: Gap | None = None
        self._next = Meeting.READ

    async def run(self) -> None:
        """Subscribe, begin to buffer, run the hook, and read what was missed.

        :raises Unavailable: when the broker cannot be reached.
        :raises Reject: from the hook, or when the member left meanwhile.
        """
        room, member = self.room, self.member
        room.outside[member] = None
        await room.open()
        await self._admit()
        self._check_still_here()
        feed = room.feed
        if feed is not None:
            assert feed.cursor is not None
            since, forgiving = self.since, False
            if since == BEGINNING:
                since = Position(feed.cursor.epoch, 0)
            if self.rewind:
                since, forgiving = Position(feed.cursor.epoch, max(0, feed.cursor.offset - self.rewind)), True
            member.outside = CatchUp(since, joining=True, forgiving=forgiving)
            member.outside.begin(feed.cursor)
        if self._hook is not None:
            self._data = await self._hook()
            room.engine.entered(member)

    def _check_still_here(self) -> None:
        if self.member.left:
            raise Reject("taken out of the room while joining")

    def _gather(self, entries: Sequence[Entry]) -> None:
        """Take as many as one reply should hold; the member stands where they end."""
        catch = self.member.outside
        assert catch is not None
        bound = min(REPLY_BYTES, self.room.engine.limits.outbox // 2)
        for entry in entries:
            if self._entries and self._size + len(entry.payload) > bound:
                assert catch.position is not None
                catch.position = Position(catch.position.epoch, entry.offset - 1)
                self._full = True
                return
            self._entries.append(entry)
            self._size += len(entry.payload)

    def finish(self) -> SubscribeResult | None:
        """Go live and make the reply; None when :meth:`advance` must be awaited first."""
        room, member = self.room, self.member
        if room.feed is None:
            return self._finish_without_history()
        catch = member.outside
        assert catch is not None and room.feed.cursor is not None
        if not self._full:
            self._next, entries = catch.meet(room.feed.cursor)
            if self._next is not Meeting.LIVE:
                return None
            self._gather(entries)
        if not self._full:
            room.admit(member)
        else:
            # More than one reply should hold: the rest follows as pushes, as fast as it is taken.
            catch.joining = False
            if member.session.connection is not None:
                member.session.connection.lagging[member] = None
        return self._result(catch)

    async def advance(self) -> None:
        """Do what :meth:`finish` found to be missing."""
        room, catch = self.room, self.member.outside
        assert room.feed is not None
        assert catch is not None
        if self._next is Meeting.REPAIR:
            room.feed.doubt()
            await room.repair()
            return
        assert catch.position is not None
        page = await room.read_on(catch.position)
        room._extend(page)
        entries, gap = catch.page(page)
        if gap is not None:
            # It covers what was gathered before: the member begins at the top.
            self._entries.clear()
            self._size = 0
            self._gap = gap
        self._gather(entries)

    async def complete(self) -> SubscribeResult:
        """Finish, however often the stream moves on meanwhile.

        :raises Unavailable: when the broker cannot be reached.
        :raises Reject: when the member left meanwhile.
        """
        self._check_still_here()
        while (result := self.finish()) is None:
            await self.advance()
            self._check_still_here()
        self.room.engine.entered(self.member)
        return result

    def _result(self, catch: CatchUp) -> SubscribeResult:
        connection = self.member.session.connection
        rt = connection is not None and connection.rt
        assert catch.position is not None
        position = catch.position
        if not rt and self._entries:
            # The base's clients stand here at once, and every publication that follows moves them. Were it the top, one
            # that leaves the room before the last of them would lose the rest.
            position = Position(position.epoch, self._entries[0].offset - 1)
        recovering = self.since is not None
        self.room.engine.counters.add("recoveries" if recovering and self._gap is None else "joins")
        result = SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=position.epoch,
            offset=position.offset,
            publications=[publication(self.room.open_entry(e), e.offset, rt) for e in self._entries],
            recovered=recovering and self._gap is None,
            was_recovering=recovering,
            data=self._data,
        )
        if self._gap is not None:
            # Of a fresh join too: its join data may be older than what was trimmed while the hook ran.
            self.room.engine.counters.add("gaps", self._gap.reason)
            if rt:
                gap = self._gap
                result.gap = GapBody(start=gap.start, end=gap.end, epoch=gap.epoch, reason=gap.reason)
        return result

    def _finish_without_history(self) -> SubscribeResult:
        """At most once: live from here, after what came while the hook ran."""
        room, member = self.room, self.member
        held, member.held = member.held, None
        room.admit(member)
        room.engine.counters.add("joins")
        connection = member.session.connection
        rt = connection is not None and connection.rt
        publications = [publication(prepared.envelope, 0, rt) for prepared in held or ()]
        return SubscribeResult(
            data=self._data, publications=publications, was_recovering=self.since is not None
        )
