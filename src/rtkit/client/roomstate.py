"""What a client knows of one room: where it stands, what is queued, and when it must say gap. Pure.

The theory
==========
**Position.** ``at`` is the place up to which everything was queued for the application, or told as a gap.
In a room with history the next message is ``at.offset + 1`` of the same epoch, and nothing else is ever
queued:

- at or below ``at``: a duplicate, dropped;
- beyond ``at.offset + 1``, without a gap having been told: a hole. It is not delivered across; the room is
  joined anew, recovering from ``at``, and what is pushed until the reply is ignored, because it comes again;
- a gap that is told moves ``at`` to its end, is cut to what was really missing, and queued in its place;
- a *position* that is told names a new epoch, in which the stream goes on where the old one was left, without a
  loss. It says so to whoever stands at that offset, for he has all of the old epoch that the new one
  took over: ``at`` moves to the new epoch, and nothing is queued. Who stands anywhere else, or is told another
  place in his own epoch, cannot tell what he missed: the room is joined anew, recovering from ``at``, and
  the server judges.

A reply to a join that recovers either proves continuity (``recovered``), in which case the same rule runs
over its publications, or it does not: then there is a gap up to where it goes on, always.

**A room without history** has no ``at``: at most once, nothing is promised across an interruption.

**Phases.** Everything the server pushes counts in ``IN`` only. The wire keeps order, so what arrives before
the reply to a join belongs to an older membership::

    OUT ──asked──► ASKED ──reply──► IN ──queue full──► PAUSED ──half drained──► asked again
     ▲               │               │                  │  ▲
     └──── lost ─────┴───────────────┘          to send │  │ lost
                                                        ▼  │
                                             ASKED ──► MUTED ──half drained──► out, asked again

**A slow application** (the queue is full). With history the room is left at ``at`` and joined again,
recovering from there, when half of the queue is drained: bounded memory, nothing lost. While it is out,
commands to the room could not be sent, and the application may be waiting for exactly such a command before
it drains more; so for a command the room is joined *muted*: in, but deaf. Without history the oldest messages
are dropped, and one gap says so in their place.

What else a room has (:mod:`rtkit.client.roomfeatures`) counts while we are in it, deaf or not. Where that cannot go
on, the room is joined anew too; a deaf one is not, it will be anyhow.

Who calls does what is answered (:class:`Do`) and nothing here awaits, reads a clock, or knows a socket.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from enum import Enum, StrEnum

from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..messages import Message
from ..position import Gap, GapReason, Position
from ..wire import GapBody, Publication, Push, SubRequest, Subscribe, SubscribeResult
from .roomfeatures import RoomFeatures
from .roomqueue import Item, RoomQueue
from .values import RoomStatistics, Unsubscribed

__all__ = ["Do", "Phase", "RoomState"]

_REASONS: dict[str, GapReason] = {r: r for r in ("trimmed", "epoch", "rollback", "dropped")}


class Phase(StrEnum):
    """Where a room stands with the server; see the module's theory."""

    OUT = "out"
    ASKED = "asked"
    IN = "in"
    PAUSED = "paused"
    MUTED = "muted"
    ENDED = "ended"


class Do(Enum):
    """What the caller has to do now."""

    NOTHING = "nothing"
    JOIN = "join"
    """Send a subscribe."""
    REJOIN = "rejoin"
    """Send an unsubscribe, then a subscribe: a hole was seen."""
    PAUSE = "pause"
    """The queue is full: call :meth:`RoomState.pause`, and send an unsubscribe unless commands wait."""


class RoomState:
    """One room of one client.

    :param since: recover from here; None begins at the stream's top.
    :param rewind: or so many messages before it.
    :param data: sent with every join, as JSON.
    :param echo: deliver what this client itself sent.
    :param max_queue: items that may wait for the application.
    :param own: the client ids this client has had.
    :param presence: ask who is there; likewise *receipts*: how far users have come.
    :ivar top: of the room's stream, as far as we know: also of what was not queued.
    """

    __slots__ = (
        "_asked_features",
        "_asked_from",
        "_has_handed",
        "_muting",
        "at",
        "channel",
        "data",
        "duplicates",
        "echo",
        "echoes",
        "error",
        "features",
        "forgotten",
        "gaps",
        "ignored",
        "join_data",
        "joins",
        "own",
        "pauses",
        "phase",
        "queue",
        "received",
        "rewind",
        "top",
    )

    def __init__(
        self,
        channel: str,
        *,
        since: Position | None = None,
        rewind: int = 0,
        data: Raw | UnsetType = UNSET,
        echo: bool = True,
        max_queue: int = 1024,
        own: Container[str] = (),
        presence: bool = False,
        receipts: bool = False,
    ) -> None:
        self.channel = channel
        self.features = RoomFeatures(channel, presence=presence, receipts=receipts)
        self.top: Position | None = None
        self.data = data
        self.echo = echo
        self.own = own
        self.phase = Phase.OUT
        self.error: BaseException | None = None
        """Why the room ended; None while it has not, and after leaving it."""
        self.join_data: bytes | None = None
        """What the latest join was answered with."""
        self.forgotten = False
        """The server cannot recover from ``at`` and said so with an error: join without it, then tell a gap."""
        self.queue = RoomQueue(max_queue)
        self._asked_from: Position | None = None
        self._asked_features = self.features.asked
        self._has_handed = False
        self._muting = False
        self.received = self.duplicates = self.echoes = self.gaps = 0
        self.ignored = self.pauses = self.joins = 0
        self.rebase(since, rewind)

    def rebase(self, since: Position | None, rewind: int) -> None:
        """Begin somewhere else: before the first join, or to be followed by a rejoin."""
        self.at = since
        self.rewind = rewind
        self.queue.handed = since
        self.queue.clear()
        self._has_handed = False

    # -- joining -----------------------------------------------------------------------------------

    def request(self, *, muted: bool = False) -> Subscribe:
        """The command to join with; from now on only its reply counts."""
        self.phase = Phase.ASKED
        self._muting = muted
        self._asked_from = self.at
        self._asked_features = self.features.asked
        self.features.left()
        presence, receipts = self.features.asked
        body = Subscribe(self.channel, data=self.data, presence=presence, marks=receipts)
        if self.at is None:
            body.rewind = 0 if muted else self.rewind
        elif not muted and not self.forgotten:
            body.recover, body.epoch, body.offset = True, self.at.epoch, self.at.offset
        return body

    def standing(self) -> SubRequest:
        """Where this room of the server's stands, for the connect command."""
        presence, receipts = self.features.asked
        if self.at is None:
            return SubRequest(presence=presence, marks=receipts)
        return SubRequest(True, self.at.epoch, self.at.offset, presence, receipts)

    @property
    def can_stand(self) -> bool:
        """Whether the connect command may recover this room: not while its queue is too full for that."""
        return self.phase is Phase.OUT and not self.forgotten

    @property
    def has_data(self) -> bool:
        """Whether joins carry data."""
        return not isinstance(self.data, UnsetType)

    def accept(self, result: SubscribeResult) -> Do:
        """The reply to the join that was asked for."""
        if self.phase is not Phase.ASKED:
            return Do.NOTHING
        if self._muting:
            return self._accept_muted(result)
        if self.at != self._asked_from or self._asked_features != self.features.asked:
            return Do.REJOIN  # it was moved meanwhile: the answer is to another question
        return self._accept(result, self.at is not None)

    def adopt(self, result: SubscribeResult, *, asked: bool) -> Do:
        """The server put us into the room by itself.

        :param asked: the connect command had said where we stand.
        """
        if self.phase is Phase.PAUSED:
            return self._accept_muted(result)
        if self.phase is not Phase.OUT:
            return Do.NOTHING
        if not self.joins and (self.rewind or self.has_data):
            return Do.REJOIN  # the application asked for a join of its own making
        if self.features.lacks(result):
            return Do.REJOIN  # likewise; who is not let in with them is told why
        return self._accept(result, asked)

    def _accept_muted(self, result: SubscribeResult) -> Do:
        self.phase = Phase.MUTED
        self._joined(result)
        return Do.REJOIN if self.resumable else Do.NOTHING

    def _joined(self, result: SubscribeResult) -> None:
        self.features.joined(result)
        if result.recoverable:
            last = result.publications[-1].offset if result.publications else 0
            self.top = Position(result.epoch, max(result.offset, last))
        else:
            self.top = None

    def _accept(self, result: SubscribeResult, asked: bool) -> Do:
        if not isinstance(result.data, UnsetType):
            self.join_data = bytes(result.data)
        before = self.at
        top = Position(result.epoch, result.offset)
        if result.recoverable and before is not None and not asked and before != top:
            return Do.REJOIN  # the server put us at its top, unasked, and we stand elsewhere
        self.phase = Phase.IN
        self.joins += 1
        self.rewind = 0
        self.forgotten = False
        self._joined(result)
        if not result.recoverable:
            self.at = None
            if before is not None:
                self._say(Gap(0, 0, "", "epoch"))  # there was a position, and now nothing can be proven
            return self._follow(result.publications, None)
        if before is None:
            first = result.publications[0].offset if result.publications else result.offset + 1
            self.at = Position(result.epoch, max(0, first - 1))
            self._stands(result.epoch)
            if not self.queue:
                self.queue.handed = self.at
        elif result.recovered and asked:
            # The epoch may be new: the server knows that the old position holds in it (B6).
            self.at = Position(result.epoch, before.offset)
            self._carry(before.epoch, result.epoch, before.offset)
            if result.offset < before.offset:
                self._move(Gap(result.offset, result.offset, result.epoch, "rollback"))
        elif asked:
            self._move(self._gap_of(result, before))
        return self._follow(result.publications, result.offset)

    def _gap_of(self, result: SubscribeResult, before: Position) -> Gap:
        """The gap of a join that could not recover."""
        told = result.gap
        end = result.publications[0].offset - 1 if result.publications else result.offset
        if told is not None and told.epoch in ("", result.epoch) and told.end <= end:
            end = told.end
        same = before.epoch == result.epoch
        reason: GapReason = "trimmed" if same else "epoch"
        if told is not None:
            reason = _REASONS.get(told.reason, reason)
        if same and end < before.offset:
            return Gap(end, end, result.epoch, "rollback")
        start = before.offset if same else told.start if told is not None else 0
        return Gap(min(start, end), end, result.epoch, reason)

    def _follow(self, publications: Sequence[Publication], end: int | None) -> Do:
        for publication in publications:
            do = self._receive(publication)
            if do is not Do.NOTHING:
                return do
        if end is not None and self.at is not None and self.at.offset < end:
            return Do.REJOIN  # the reply ends beyond what it brought
        return Do.NOTHING

    # -- what is pushed ----------------------------------------------------------------------------

    def pushed(self, push: Push, now: float) -> Do:
        """Something else than a message was pushed that concerns those who are in the room."""
        if not self.is_in or self.features.pushed(push, now) or self.phase is Phase.MUTED:
            return Do.NOTHING
        return Do.REJOIN

    def published(self, publication: Publication) -> Do:
        """A message was pushed."""
        top = self.top
        if self.is_in and top is not None and publication.offset > top.offset:
            self.top = Position(top.epoch, publication.offset)
        return self._receive(publication) if self.phase is Phase.IN else Do.NOTHING

    def _receive(self, publication: Publication) -> Do:
        at, offset = self.at, publication.offset
        if at is not None and offset:
            if offset <= at.offset:
                self.duplicates += 1
                return Do.NOTHING
            if offset > at.offset + 1:
                return Do.REJOIN
        info = publication.info
        if not self.echo and info is not None and info.client and info.client in self.own:
            self.echoes += 1
            if at is not None and offset:
                self.at = Position(at.epoch, offset)
            return Do.NOTHING
        if at is not None and self.queue.full:
            return Do.PAUSE
        position = Position(at.epoch, offset) if at is not None and offset else None
        data = b"null" if isinstance(publication.data, UnsetType) else bytes(publication.data)
        user, client = (info.user, info.client) if info is not None else ("", "")
        self._append(Message(data, position, user or None, publication.time, client or None))
        self.received += 1
        if position is not None:
            self.at = position
        return Do.NOTHING

    def told_gap(self, body: GapBody) -> Do:
        """A gap was pushed."""
        if self.is_in and self.top is not None:
            epoch, top = body.epoch or self.top.epoch, self.top
            if epoch != top.epoch or body.end > top.offset or body.reason == "rollback":
                self.top = Position(epoch, body.end)
        if self.phase is not Phase.IN:
            return Do.NOTHING
        at = self.at
        reason = _REASONS.get(body.reason, "dropped" if at is None else "trimmed")
        if at is None:
            self._say(Gap(body.start, body.end, body.epoch, reason))
            return Do.NOTHING
        start, epoch = body.start, body.epoch or at.epoch
        if epoch != at.epoch and reason != "epoch" and start > at.offset:
            return Do.REJOIN  # up to there the new epoch is the old one, and we do not have all of it
        if epoch == at.epoch and reason != "rollback":
            if body.end <= at.offset:
                return Do.NOTHING  # we have all of it
            if start > at.offset:
                return Do.REJOIN  # and what is between?
            start = at.offset
        if self.queue.full:
            return Do.PAUSE  # it will be told again
        self._move(Gap(start, body.end, epoch, reason))
        return Do.NOTHING

    def told_position(self, epoch: str, offset: int) -> Do:
        """A position was pushed: the stream goes on behind it, and nothing was lost (H10)."""
        at = self.at
        if self.is_in and self.top is not None:
            self.top = Position(epoch or self.top.epoch, offset)
        if self.phase is not Phase.IN or at is None:
            return Do.NOTHING
        if offset != at.offset:
            # Ahead: we miss something. Behind: what comes next would pass for what we have.
            return Do.REJOIN
        self.at = Position(epoch or at.epoch, offset)
        self._carry(at.epoch, self.at.epoch, offset)
        if not self.queue:
            self.queue.handed = self.at
        return Do.NOTHING

    def unsubscribed(self, code: int, reason: str) -> Do:
        """The server took us out; the caller ends the room if the phase is ``ENDED`` afterwards."""
        if self.phase not in (Phase.IN, Phase.MUTED):
            return Do.NOTHING
        if not codes.may_resubscribe(code):
            self.end(Unsubscribed(code, reason))
            return Do.NOTHING
        if self.phase is Phase.MUTED:
            self.phase = Phase.PAUSED
            self.features.left()
            return Do.NOTHING
        self.phase = Phase.OUT
        self.features.left()
        return Do.JOIN

    # -- going out ---------------------------------------------------------------------------------

    def step_out(self) -> None:
        """The room is being left, to be joined again; if it was to be joined deaf, it stays paused."""
        if self.phase is not Phase.ENDED:
            muted = self.phase is Phase.ASKED and self._muting
            self.phase = Phase.PAUSED if muted else Phase.OUT
            self.features.left()

    def pause(self, *, stay: bool) -> None:
        """The queue is full: be deaf until half of it is drained.

        :param stay: without leaving, because commands to the room wait.
        """
        self.pauses += 1
        self.phase = Phase.MUTED if stay else Phase.PAUSED
        if not stay:
            self.features.left()

    def lost(self) -> None:
        """The connection is gone."""
        if self.phase in (Phase.ENDED, Phase.PAUSED):
            return
        if self.is_in:
            self.features.lost()
        self.features.left()
        muted = self.phase is Phase.MUTED or (self.phase is Phase.ASKED and self._muting)
        if muted or (self.at is not None and self.queue.full):
            self.phase = Phase.PAUSED
        else:
            self.phase = Phase.OUT

    def end(self, error: BaseException | None, *, discard: bool = False) -> None:
        """Nothing more will come; *error* is raised once the queue is consumed. The first end counts."""
        if self.phase is Phase.ENDED:
            return
        self.phase = Phase.ENDED
        self.error = error
        self.features.left()
        if discard:
            self.queue.clear()

    # -- the queue ---------------------------------------------------------------------------------

    @property
    def is_in(self) -> bool:
        """Whether the server has us in: commands may be sent."""
        return self.phase in (Phase.IN, Phase.MUTED)

    @property
    def resumable(self) -> bool:
        """It was full, and enough has been drained to go on."""
        return self.phase in (Phase.PAUSED, Phase.MUTED) and self.queue.half_drained

    @property
    def position(self) -> Position | None:
        """Behind the last item that was handed to the application, and all that was filtered after it."""
        return self.queue.handed if self.queue else self.at

    @property
    def delivered(self) -> Position | None:
        """Likewise, once something was handed to the application."""
        return self.position if self._has_handed else None

    def take(self) -> Item | None:
        """The next item for the application; then look whether the room is :attr:`resumable`."""
        item = self.queue.take()
        self._has_handed = self._has_handed or item is not None
        return item

    def _move(self, gap: Gap) -> None:
        if self.at is not None and gap.reason != "epoch":
            self._carry(self.at.epoch, gap.epoch, gap.start)
        else:
            self._stands(gap.epoch)
        self.at = Position(gap.epoch, gap.end)
        self._say(gap)

    def _carry(self, old: str, new: str, until: int) -> None:
        if self.features.receipts is not None:
            self.features.receipts.carried(old, new, until)

    def _stands(self, epoch: str) -> None:
        if self.features.receipts is not None:
            self.features.receipts.stands(epoch)

    def _say(self, gap: Gap) -> None:
        self.gaps += 1
        self._append(gap)

    def _append(self, item: Item) -> None:
        if self.at is not None:
            self.queue.put(item)
        elif self.queue.put_dropping(item):
            self.gaps += 1

    def statistics(self) -> RoomStatistics:
        """Totals so far."""
        return RoomStatistics(
            queued=len(self.queue),
            received=self.received,
            duplicates=self.duplicates,
            echoes=self.echoes,
            gaps=self.gaps,
            dropped=self.queue.dropped,
            ignored=self.ignored,
            pauses=self.pauses,
            joins=self.joins,
        )

    def __repr__(self) -> str:
        return f"<RoomState {self.channel!r} {self.phase} at {self.at}, {len(self.queue)} queued>"
