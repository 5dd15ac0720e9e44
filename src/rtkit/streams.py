"""Position arithmetic: what a node and a member may deliver, and when they must say gap (H1-H4).

The theory
==========
A room's stream is a run of entries numbered 1, 2, 3 … within an *epoch*. The broker's stored stream
is the only truth. What reaches a node by publish/subscribe is a hint that may be late, doubled, out
of order or missing; what a :class:`StreamPage` says was true at the moment it was read, which lies
somewhere between asking and being answered. Within an epoch an entry never changes and the stream
never goes back; the name of an epoch never returns.

**The feed.** A node keeps one :class:`Feed` per room. Its *cursor* is the place up to which every
live member has been served. An entry is

- *next* (cursor + 1, same epoch): delivered at once, the cursor moves;
- *old* (at or below the cursor, same epoch): dropped, it was delivered before;
- anything else (a hole, another epoch, or no cursor yet): *held*, and a read is wanted. The page
  then fills the hole, or says that it cannot be filled, and held entries that follow on are released.

Since live members stand at the cursor by construction, delivering costs them no comparison.

A page answers the questions that were open when its read began, and no others: a doubt raised and
an entry held while the read was under way may be younger than the page, so they want another read.
An entry that was held before the read began, and that the page neither shows nor leaves room for, is of
a life of the stream that is over, and is dropped.

**Catching up.** A member that joins, or that fell behind, stands outside the live set with a
:class:`CatchUp`: its own position, and a window of the last entries that the feed delivered meanwhile.
It reads pages from its position on and goes live in the instant in which position and cursor meet:

- position = cursor: live;
- position < cursor, and the window begins at or before position + 1: the window's rest is
  delivered, live;
- position < cursor otherwise: read on;
- position > cursor, or their epochs differ: names of epochs do not tell which is older. A position
  that the member brought along is asked of the broker first; one that a page confirmed means
  that the node stands behind, so it is repaired; and then the member reads again.

Because going live is decided and done without awaiting anything, nothing can be published between.

**Gaps.** ``lost`` on a page says that the position asked for cannot be continued, and why. A joiner is
then set to the top with ``recovered: false`` and no publications; a member or a feed that was live
goes on where the page starts, after a :class:`~rtkit.position.Gap` that names what is missing. A
position can also be continued into another epoch, when a broker carried the stream over to a new
primary without a loss (B6): then there is no gap, but who is served must learn the new name (H10).

The driver's duties
===================
Whoever does the reading (the hub; ``tests/support/streams_model.py`` is this text as code) keeps to these
rules. All but reading and subscribing happens without awaiting.

1. *Subscribe before anything is read.* A new feed's first read is ``limit=0``: the top alone. Hints that come
   while the subscription is under way are offered, but nothing is read for them: the first page judges them.
2. *Hint*: ``feed.offer``. ``DELIVER``: push to the live, ``offer`` to those catching up. ``READ``: repair.
3. *Repair*, one at a time per feed: while ``feed.wants_read``: ``since = feed.reading()``, read from there,
   ``feed.absorb(page)``, and hand out what it returned. A failed read is tried again, later.
4. *Hand out* a :class:`Moved`. Each live member is told its gap, or else, if ``moved.start`` is set, that the
   stream goes on at this position; then its entries. Each that catches up gets ``jumped(moved.start)`` if that
   is set, then an ``offer`` for each entry; of gaps it learns by reading. Whoever cannot take an entry
   now leaves the live set and stands where it stands.
5. *Join, or resume after falling behind*: once the feed has a cursor, ``catch.begin(feed.cursor)``, from then
   on it gets what is handed out, and until it is live::

       match catch.meet(feed.cursor):
           LIVE, entries: deliver them and put the member into the live set, in this very step
           REPAIR: feed.doubt(); wait until the repair is through
           READ:   page = read(catch.position)
                   hand out feed.extend(page); if feed.wants_read: begin a repair
                   entries, gap = catch.page(page)

   After a gap a *joiner* forgets the entries collected for its reply so far (this gap covers them);
   others are told the gap, then the entries. Is there no gap, yet the page has another epoch than the
   member stood in, then it is told ``Position(page.epoch, page.start)`` before the entries. One page may
   serve all members that stand at the position it was read from.
6. *Compare tops* now and then (H4): if ``feed.differs(top)``, ``feed.doubt()`` and repair. The page that
   showed the top was not read from the cursor on and is not absorbed.
7. *Forget the feed* with its last member, and whatever its reads still bring.

Nothing here awaits, reads a clock, or draws a random number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .position import Gap, GapReason, Position

__all__ = ["CatchUp", "Entry", "Feed", "Meeting", "Moved", "StreamPage", "Verdict", "locate", "locate_back"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored message: its offset in the stream's epoch, and the bytes that were appended."""

    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StreamPage:
    """What a broker's ``read`` answers: a piece of a stream, taken at one moment.

    :param epoch: of the stream at that moment.
    :param top: offset of its last entry; 0 when there never was one.
    :param floor: entries at or below this offset are no longer kept.
    :param start: *entries* cover what comes right after this offset, without a hole. When ``lost`` is
        set it is where delivery may go on; see :func:`locate`.
    :param entries: in ascending order, or descending when read in reverse; at most as many as asked.
    :param lost: why the position asked for cannot be continued from, or None if it can (or none
        was asked for).
    """

    epoch: str
    top: int
    floor: int
    start: int
    entries: tuple[Entry, ...]
    lost: GapReason | None = None

    @property
    def end(self) -> int:
        """The offset of the last entry of an ascending page; *start* when it has none."""
        return self.entries[-1].offset if self.entries else self.start

    @property
    def position(self) -> Position:
        """Where the stream ended when the page was read."""
        return Position(self.epoch, self.top)


def _shared(since: Position, epoch: str, top: int, takeovers: Sequence[tuple[str, int]]) -> int | None:
    """Up to which offset the epoch of *since* and the present one are the same stream; None: nowhere."""
    if since.epoch == epoch:
        return top
    for index in range(len(takeovers) - 1, -1, -1):
        if takeovers[index][0] == since.epoch:
            return min(offset for _, offset in takeovers[index:])
    return None


def locate(
    since: Position | None, *, epoch: str, top: int, floor: int, takeovers: Sequence[tuple[str, int]] = ()
) -> tuple[int, GapReason | None]:
    """Where reading begins: the ``start`` and ``lost`` of a page for the position *since*.

    Every broker uses this one function, so that all give the same answer (B2).

    - no position: from the oldest kept;
    - of an epoch that has nothing to do with the present one: ``epoch``, and on from the oldest kept;
    - beyond what its epoch and the present one have in common, for its own epoch the top (the stream once
      was longer): ``rollback``, and on from there, or from the oldest kept if that comes later;
    - below the oldest kept: ``trimmed``, and on from the oldest kept.

    :param takeovers: former epochs that the stream went through without losing what it had up to then,
        oldest first, each with the offset at which the next epoch took over (B6).
    """
    if since is None:
        return floor, None
    shared = _shared(since, epoch, top, takeovers)
    if shared is None:
        return floor, "epoch"
    if since.offset > shared:
        return max(shared, floor), "rollback"
    if since.offset < floor:
        return floor, "trimmed"
    return since.offset, None


def locate_back(
    since: Position | None, *, epoch: str, top: int, floor: int, takeovers: Sequence[tuple[str, int]] = ()
) -> tuple[int, GapReason | None]:
    """Where reading in reverse begins: the highest offset that may be shown, and the page's ``lost``.

    - no position: from the top;
    - a position of the stream: right before it; ``trimmed`` when what stood there is no longer kept;
    - any other: from the top, with the reason that :func:`locate` gives.
    """
    if since is None:
        return top, None
    shared = _shared(since, epoch, top, takeovers)
    if shared is None:
        return top, "epoch"
    if since.offset > shared:
        return top, "rollback"
    before = max(0, since.offset - 1)
    return before, "trimmed" if 0 < before <= floor else None


def _gap(before: Position | None, page: StreamPage) -> Gap:
    """The gap that *page* shows to somebody who stood at *before*, up to where it starts."""
    assert page.lost is not None
    start = 0  # of a new epoch everything up to the oldest kept is missing
    if before is not None:
        if page.lost == "trimmed":
            start = min(before.offset, page.start)
        elif page.lost == "rollback" and before.epoch != page.epoch and page.start > page.floor:
            # The place where the new epoch took over, and it is kept: what comes now is all there is.
            # Within one epoch the place is not known, so that nothing is proven but the top.
            start = page.start
    return Gap(start, page.start, page.epoch, page.lost)


class Verdict(Enum):
    """What becomes of an entry that a node was handed by its broker."""

    DELIVER = "deliver"
    """It is the next one; the cursor has moved; fan it out."""
    OLD = "old"
    """It was delivered before; drop it."""
    READ = "read"
    """It is held; read from the cursor on and hand the page to :meth:`Feed.absorb`."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How a page moved a feed: first the gap is told, then the entries are delivered.

    :param gap: what live members cannot get any more.
    :param epoch_changed: the cursor is in a new epoch; live members must learn of it (H10).
    :param entries: to be fanned out, in order.
    :param start: where *entries* follow on; set with *gap* or *epoch_changed*, and what they say.
    """

    gap: Gap | None = None
    epoch_changed: bool = False
    entries: tuple[Entry, ...] = ()
    start: Position | None = None

    def __bool__(self) -> bool:
        return bool(self.gap or self.epoch_changed or self.entries)


_UNMOVED = Moved()


class Feed:
    """One room's stream as one node sees it: a cursor, and what is held until a read explains it.

    :param max_held: entries held at the most while a read is wanted; beyond that the oldest held
        are dropped, because a read will bring them.
    :param max_held_size: and their bytes at the most.
    """

    __slots__ = (
        "_asked",
        "_doubted",
        "_held",
        "_held_size",
        "_turn",
        "_unread",
        "cursor",
        "max_held",
        "max_held_size",
    )

    def __init__(self, *, max_held: int = 256, max_held_size: int = 4 * 1024 * 1024) -> None:
        self.cursor: Position | None = None
        self.max_held = max_held
        self.max_held_size = max_held_size
        # What is held, in order of arrival, each with the turn it came in: reading() begins a new turn.
        self._held: dict[Position, tuple[int, bytes]] = {}
        self._held_size = 0
        self._turn = 0
        self._asked: Position | None = None  # the cursor when reading() was called
        self._unread = True  # there is a reason to read that the read under way, or the next one, answers
        self._doubted = False  # … and one that came up since it began

    @property
    def wants_read(self) -> bool:
        """Whether continuity from the cursor on is unproven until a page is absorbed."""
        return self._unread or self._doubted or bool(self._held)

    def offer(self, position: Position, payload: bytes) -> Verdict:
        """Judge an entry the broker handed over; see :class:`Verdict`."""
        cursor = self.cursor
        if cursor is not None and position.epoch == cursor.epoch:
            if position.offset <= cursor.offset:
                return Verdict.OLD
            # In a doubt the next is the next all the same. It waits only if held ones had to come along.
            if position.offset == cursor.offset + 1 and not (
                self._held and Position(position.epoch, position.offset + 1) in self._held
            ):
                self.cursor = position
                return Verdict.DELIVER
        self._hold(position, payload)
        return Verdict.READ

    def doubt(self) -> None:
        """Something may have been missed without a trace: ask for a read that begins after this (H4)."""
        self._doubted = True

    def differs(self, top: Position) -> bool:
        """Whether the stream's *top*, as the broker says, is not where this feed stands."""
        return self.cursor is not None and top != self.cursor

    def reading(self) -> Position | None:
        """A read for this feed begins now: returns the position to read on from.

        None means that the feed has no cursor yet, and ``limit=0`` is enough. A driver that leaves this out
        is safe, but reads once more than it had to, since it is then unknown what the page may answer.
        """
        self._asked = self.cursor
        self._turn += 1
        self._unread, self._doubted = True, False
        return self.cursor

    def absorb(self, page: StreamPage) -> Moved:
        """Learn from a page that was read *for this feed*, from its cursor on.

        The cursor may have moved since; but a page that leaves open whether its start is where the cursor
        stands is passed over, and another read is wanted.
        """
        cursor = self.cursor
        changed = cursor is not None and page.epoch != cursor.epoch
        gap: Gap | None = None
        if cursor is None:
            start = page.top  # the first page: members who join now start at the top
        elif changed:
            # Only a stream begun anew says the same to every cursor of another epoch. How far an epoch
            # that was taken over is shared was answered for the place asked about, and for no other.
            if page.lost != "epoch" and cursor != self._asked:
                return self._unanswered()
            start, gap = page.start, None if page.lost is None else _gap(cursor, page)
        elif page.lost == "rollback":
            start, gap = page.start, _gap(cursor, page)
        elif page.start <= cursor.offset:
            start = cursor.offset  # if something was lost, another page has brought it meanwhile
        elif page.lost is None:
            return self._unanswered()
        else:
            start, gap = page.start, _gap(cursor, page)
        entries = [entry for entry in page.entries if entry.offset > start]
        self.cursor = Position(page.epoch, entries[-1].offset if entries else start)
        self._drop_explained(page)
        entries.extend(self._release())
        self._unread = self._doubted or page.top > self.cursor.offset
        self._doubted, self._asked = False, self.cursor
        self._turn += 1
        return Moved(gap, changed, tuple(entries), Position(page.epoch, start) if gap or changed else None)

    def extend(self, page: StreamPage) -> Moved:
        """Learn from a page that was read for a member: it may show what is next, never a gap."""
        cursor = self.cursor
        if cursor is None:
            return _UNMOVED
        if page.epoch != cursor.epoch:
            self._doubted = True  # one of the two is old
            return _UNMOVED
        if page.start > cursor.offset or page.end <= cursor.offset:
            return _UNMOVED
        entries = [entry for entry in page.entries if entry.offset > cursor.offset]
        self.cursor = Position(page.epoch, page.end)
        entries.extend(self._release())
        if page.top > self.cursor.offset:
            self._doubted = True
        return Moved(entries=tuple(entries))

    def _unanswered(self) -> Moved:
        self._asked, self._unread = self.cursor, True
        self._turn += 1
        return _UNMOVED

    def _hold(self, position: Position, payload: bytes) -> None:
        if position in self._held:
            return
        self._held[position] = (self._turn, payload)
        self._held_size += len(payload)
        while len(self._held) > self.max_held or self._held_size > self.max_held_size:
            self._unhold(next(iter(self._held)))
            self._doubted = True  # what was known of it is to be read

    def _unhold(self, position: Position) -> bytes | None:
        held = self._held.pop(position, None)
        if held is None:
            return None
        self._held_size -= len(held[1])
        return held[1]

    def _drop_explained(self, page: StreamPage) -> None:
        """Drop what was held before the read began and is not in the stream that was read."""
        for position, (turn, _) in tuple(self._held.items()):
            if turn < self._turn and (position.epoch != page.epoch or position.offset > page.top):
                self._unhold(position)

    def _release(self) -> list[Entry]:
        """Move the cursor over held entries that follow on, and drop those it has passed."""
        assert self.cursor is not None
        if not self._held:
            return []
        epoch, at = self.cursor.epoch, self.cursor.offset
        entries: list[Entry] = []
        while (payload := self._unhold(Position(epoch, at + 1))) is not None:
            at += 1
            entries.append(Entry(at, payload))
        self.cursor = Position(epoch, at)
        for position in tuple(self._held):
            if position.epoch == epoch and position.offset <= at:
                self._unhold(position)
        return entries

    def __repr__(self) -> str:
        return f"<Feed at {self.cursor}, {len(self._held)} held{', wants read' if self.wants_read else ''}>"


class Meeting(Enum):
    """What a member that is catching up must do to meet the cursor."""

    LIVE = "live"
    """They have met: put it into the live set now, before anything is awaited."""
    READ = "read"
    """Read from the member's position on, and hand the page to :meth:`CatchUp.page`."""
    REPAIR = "repair"
    """The node stands behind, or one of the two is in an old epoch: repair its feed, then meet again."""


class CatchUp:
    """A member outside the live set: where it stands, and what the feed delivered meanwhile.

    :param since: the position to continue from. None: it begins at the cursor of the node's feed,
        given by :meth:`begin`.
    :param joining: nothing was delivered to this member yet, so that a position that cannot be
        continued sends it to the top (H3). Otherwise it goes on at the oldest entry kept.
    :param forgiving: *since* was a wish (``rewind``), not a place the member had been at: what the
        first page cannot continue is no gap.
    :param max_buffered: entries buffered at the most; beyond that the oldest are forgotten and read
        from history instead.
    :param max_buffered_size: and their bytes at the most.
    """

    __slots__ = (
        "_buffer",
        "_buffer_from",
        "_buffer_size",
        "_confirmed",
        "_gap",
        "_since",
        "forgiving",
        "joining",
        "max_buffered",
        "max_buffered_size",
        "position",
    )

    def __init__(
        self,
        since: Position | None,
        *,
        joining: bool,
        forgiving: bool = False,
        max_buffered: int = 256,
        max_buffered_size: int = 4 * 1024 * 1024,
    ) -> None:
        self.position = self._since = since
        self.joining = joining
        self.forgiving = forgiving
        self.max_buffered = max_buffered
        self.max_buffered_size = max_buffered_size
        self._buffer: deque[Entry] = deque()
        self._buffer_size = 0
        # The buffer covers what the feed delivered after this place, up to its cursor; None: not begun.
        self._buffer_from: Position | None = None
        self._confirmed = False  # a page has said where it stands, and no repair was asked for since
        self._gap: Gap | None = None

    def begin(self, cursor: Position) -> None:
        """Start buffering: what the feed delivers from *cursor* on will be offered."""
        if self.position is None:
            self.position = self._since = cursor
        self._restart(cursor)

    def offer(self, entry: Entry) -> None:
        """The feed delivered *entry* while this member stood outside."""
        begin = self._buffer_from
        if begin is None:
            return
        end = self._buffer[-1].offset if self._buffer else begin.offset
        if entry.offset != end + 1:
            if entry.offset <= end:
                return  # it lies before the place that buffering began at
            self._restart(Position(begin.epoch, entry.offset - 1))
        self._buffer.append(entry)
        self._buffer_size += len(entry.payload)
        while len(self._buffer) > self.max_buffered or self._buffer_size > self.max_buffered_size:
            gone = self._buffer.popleft()
            self._buffer_size -= len(gone.payload)
            self._buffer_from = Position(begin.epoch, gone.offset)

    def jumped(self, cursor: Position) -> None:
        """The feed had a gap or changed its epoch, and goes on at *cursor*: the buffer starts anew."""
        if self._buffer_from is not None:
            self._restart(cursor)

    def page(self, page: StreamPage) -> tuple[tuple[Entry, ...], Gap | None]:
        """Take a page read from :attr:`position` on: what to deliver, after what gap.

        A joiner that cannot be continued gets no entries, stands at the top, and its gap reaches up to
        there and covers all it was given before. Anybody else goes on where the page starts, after a
        gap that ends there.
        """
        before = self.position
        start = page.start
        if page.lost is None and before is not None:
            if start > before.offset or (start < before.offset and before.epoch != page.epoch):
                return (), None  # it was read from another position, and would leave a hole: read again
            start = before.offset
        forgiven, self.forgiving = self.forgiving, False  # from here on it stands where it has been
        self._confirmed = True
        if page.lost is None or forgiven:
            entries = tuple(entry for entry in page.entries if entry.offset > start)
            self.position = Position(page.epoch, entries[-1].offset if entries else start)
            return entries, None
        gap = _gap(before, page)
        if not self.joining:
            self.position = Position(page.epoch, page.end)
            return page.entries, gap
        # What it was given so far is forgotten, so that its gap begins where it came in, or before.
        start, reason = gap.start, gap.reason
        if self._since is not None:
            start = min(start, self._since.offset)
        if self._gap is not None:
            start = min(start, self._gap.start)
            reason = reason if reason == "epoch" else self._gap.reason
        self._gap = Gap(start, page.top, page.epoch, reason)
        self.position = page.position
        return (), self._gap

    def meet(self, cursor: Position) -> tuple[Meeting, tuple[Entry, ...]]:
        """Try to meet the node's *cursor*; on ``LIVE`` the entries are the last to deliver outside."""
        position, begin = self.position, self._buffer_from
        if position is None or begin is None:
            raise RuntimeError("a CatchUp meets the cursor after begin()")
        if position.epoch != cursor.epoch or position.offset > cursor.offset:
            confirmed, self._confirmed = self._confirmed, False
            return (Meeting.REPAIR if confirmed else Meeting.READ), ()
        if position.offset == cursor.offset:
            return self._go_live(cursor, ())
        end = self._buffer[-1].offset if self._buffer else begin.offset
        if begin.epoch != cursor.epoch or end != cursor.offset:
            self._restart(cursor)  # it was not told of all the feed did
            return Meeting.READ, ()
        if begin.offset > position.offset:
            return Meeting.READ, ()
        return self._go_live(cursor, tuple(entry for entry in self._buffer if entry.offset > position.offset))

    def _restart(self, at: Position) -> None:
        self._buffer.clear()
        self._buffer_size = 0
        self._buffer_from = at

    def _go_live(self, cursor: Position, entries: tuple[Entry, ...]) -> tuple[Meeting, tuple[Entry, ...]]:
        self.position = cursor
        self._buffer.clear()
        self._buffer_size = 0
        self._buffer_from = None
        return Meeting.LIVE, entries

    def __repr__(self) -> str:
        return f"<CatchUp at {self.position}, {len(self._buffer)} buffered>"
