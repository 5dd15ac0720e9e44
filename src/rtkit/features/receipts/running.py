"""Receipts in one run of a hub: what the hub calls, and one task that compares positions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakValueDictionary

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ... import codes
from ...errors import BadUnit, BrokerUnavailable, Reject, Unavailable
from ...hub.answers import asked_for
from ...hub.feature import FeatureCall, RunningReceipts
from ...messages import MarkKind, Marks
from ...position import Position
from ...primitives.clocks import sleep, timeout
from ...wire import MarksBody, SubscribeResult, dumps, loads
from ...wire.units import Mark as MarkUnit
from ...wire.units import MarksCommand
from .._watching import Reads, Watches, check_positions, state_broker
from .board import Board, Mark
from .epochs import Epochs
from .ledger import Ledger
from .policy import Receipts
from .watch import LISTED, Watch, body_of, read_room

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import LocalRoom, Member
    from ...hub.session import Session
    from ...hub.table import Family

__all__ = ["Running"]

logger = logging.getLogger("rtkit.receipts")

#: Seconds for which a client waits until a mark that has to be looked up is.
_PATIENCE: Final = 5.0

_marks: Final = msgspec.json.Decoder(MarkUnit)
_pages: Final = msgspec.json.Decoder(MarksCommand)


class Running(RunningReceipts):
    """See :class:`rtkit.hub.feature.RunningReceipts`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._broker = state_broker(engine, "receipts")
        self._ledger = Ledger(engine, self._broker, self._board, self._inhabited)
        self._watches: Watches[Watch] = Watches(engine)
        self._epochs: WeakValueDictionary[str, Epochs] = WeakValueDictionary()
        self._read: Reads[Board] = Reads(engine, self._read_marks)
        self._tending = False
        self._closed = False
        self._calls: Mapping[str, FeatureCall] = {"rt.mark": self._mark_call, "rt.marks": self._marks_call}

    @property
    def calls(self) -> Mapping[str, FeatureCall]:
        """See :meth:`.RunningFeature.calls`."""
        return self._calls

    # -- members -----------------------------------------------------------------------------------

    async def joining(self, member: Member, *, asked: Collection[str], base: bool) -> None:
        """See :meth:`.RunningFeature.joining`."""
        if member.left or "receipts" not in asked:
            return  # of one that has left already, nobody would say so again
        room = member.room
        watch = self._watches.get(room.name)
        if watch is None:
            epochs, shared = self._epochs_of(room.name), _policy(room.family).shared
            watch = self._watches.add(
                Watch(self._engine, self._broker, room.name, epochs, shared=shared, heal=self._heal)
            )
        watch.coming.add(member)
        self._tend()
        self.renewed(room)
        await watch.open()

    def joined(self, member: Member, result: SubscribeResult) -> None:
        """See :meth:`.RunningFeature.joined`."""
        if (watch := self._watches.awaiting(member)) is not None:
            result.marks = watch.add(member)

    def detached(self, member: Member) -> None:
        """See :meth:`.RunningFeature.detached`."""
        self._watches.remove(member)
        self._ledger.forget(member.room.name)

    def renewed(self, room: LocalRoom) -> None:
        """See :meth:`.RunningFeature.renewed`."""
        watch = self._watches.get(room.name)
        if watch is not None and room.feed is not None and room.feed.cursor is not None:
            watch.stands_in(room.feed.cursor.epoch)

    def _board(self, name: str) -> Board | None:
        """What is known of a room, if that is all there is to be known."""
        watch = self._watches.get(name)
        return watch.board if watch is not None and watch.current else None

    def _inhabited(self, name: str) -> bool:
        room = self._engine.rooms.get(name)
        return room is not None and bool(room.live or room.outside)

    def _epochs_of(self, name: str) -> Epochs:
        found = self._epochs.get(name)
        if found is None:
            found = self._epochs[name] = Epochs(self._engine, name)
        return found

    # -- marking -----------------------------------------------------------------------------------

    async def mark(self, session: Session[Any], name: str, kind: MarkKind, position: Position) -> None:
        """See :meth:`.RunningReceipts.mark`."""
        member = _member(session, name)
        epochs = self._epochs_of(name)
        try:
            async with timeout(self._engine.clock, _PATIENCE):
                place = await self._place(member.room, epochs, position)
        except TimeoutError:
            raise BrokerUnavailable("the broker does not say where that is") from None
        if not place.offset:
            return
        self._ledger.mark(
            name,
            session.identity.user,
            place.epoch,
            Mark(place.offset, place.offset if kind == "read" else 0),
            kept=_policy(member.room.family).kept,
            epochs=epochs,
        )

    async def _place(self, room: LocalRoom, epochs: Epochs, position: Position) -> Position:
        """Where that is, in an epoch of the room that is the present one, or was a moment ago; 0 if nowhere."""
        if not position.epoch:
            raise BadUnit("the epoch is missing")
        cursor = room.feed.cursor if room.feed is not None else None
        if not position.offset:
            return position
        if cursor is not None and position.epoch == cursor.epoch and position.offset <= cursor.offset:
            return position
        here = {cursor.epoch} if cursor is not None else set[str]()
        carry = await epochs.learn({position.epoch, *here})
        if position.epoch == carry.epoch and position.offset > epochs.top:
            # It may know more than this node: from another node, where it was a moment ago.
            await epochs.look()
            carry = await epochs.learn({position.epoch})
        if position.epoch != carry.epoch:
            return Position(carry.epoch, carry.offset(position))
        if position.offset > epochs.top:
            raise BadUnit(f"there is no message {position.offset} yet")
        return position

    def _heal(self, name: str, epoch: str, lost: Mapping[str, Mark]) -> None:
        """The broker has lost marks that this node has seen: they are written again."""
        watch = self._watches.get(name)
        if watch is None:
            return  # nobody watches any more, or this hub ends: another node will find out
        kept = _policy(self._engine.lookup(name)[0]).kept
        logger.info("room %r: marks of %d users were lost, and are written again", name, len(lost))
        for user, mark in lost.items():
            self._ledger.mark(name, user, epoch, mark, kept=kept, epochs=watch.epochs)

    async def _mark_call(self, session: Session[Any], data: Raw | UnsetType) -> Raw | UnsetType:
        body = loads(b"{}" if isinstance(data, UnsetType) else bytes(data), _marks)
        self._must_have_receipts(body.channel)
        await self.mark(session, body.channel, body.kind, Position(body.epoch, body.offset))
        return UNSET

    # -- who is how far ----------------------------------------------------------------------------

    async def page(self, session: Session[Any], name: str, after: str) -> MarksBody:
        """See :meth:`.RunningReceipts.page`."""
        member = _member(session, name)
        board = await self._known(name)
        if not _policy(member.room.family).shared:
            user = session.identity.user
            return body_of(board, [user] if user > after else [])
        users, more = board.page(after, LISTED)
        return body_of(board, users, more=more)

    async def _marks_call(self, session: Session[Any], data: Raw | UnsetType) -> Raw | UnsetType:
        body = loads(b"{}" if isinstance(data, UnsetType) else bytes(data), _pages)
        self._must_have_receipts(body.channel)
        return Raw(dumps(await self.page(session, body.channel, body.after)))

    def _must_have_receipts(self, name: str) -> None:
        if "receipts" not in asked_for(self._engine, name)[0].rooms.features:
            raise Reject("this room has no receipts", code=codes.NOT_AVAILABLE)

    async def marks(self, name: str, family: Family) -> Mapping[str, Marks]:
        """See :meth:`.RunningReceipts.marks`. Of this node's own users it is not waited until that is written."""
        board = await self._known(name)
        epoch = board.carry.epoch
        found = dict(board.marks)
        for user, wanted in self._ledger.of(name).items():
            if epoch in wanted:
                found[user] = found.get(user, Mark()).or_further(wanted[epoch])
        return {
            user: Marks(
                delivered=Position(epoch, mark.delivered),
                read=Position(epoch, mark.read) if mark.read else None,
            )
            for user, mark in found.items()
        }

    async def _known(self, name: str) -> Board:
        """The marks of a room."""
        board = self._board(name)
        return board if board is not None else await self._read(name)

    async def _read_marks(self, name: str) -> Board:
        board = Board()
        board.read(*await read_room(self._engine, self._broker, self._epochs_of(name), name))
        return board

    # -- looking after it --------------------------------------------------------------------------

    def _tend(self) -> None:
        interval = self._engine.limits.position_check
        if not self._tending and not self._closed and interval is not None:
            self._tending = True
            self._engine.spawn(self._look_after, interval)

    async def _look_after(self, interval: float) -> None:
        """As long as something is watched: compare positions, so that a lost last notice is noticed too (H4)."""
        engine = self._engine
        try:
            while self._watches:
                await sleep(engine.clock, interval * (0.75 + engine.random.random() / 2))
                try:
                    await check_positions(self._broker, self._watches.current)
                except Unavailable as error:
                    logger.debug("marks could not be compared: %s", error)
                except Exception as error:
                    logger.exception("marks could not be compared", exc_info=error)
        finally:
            self._tending = False

    async def aclose(self) -> None:
        """See :meth:`.RunningFeature.aclose`."""
        self._closed = True
        self._watches.end()
        try:
            await self._ledger.aclose()
        except Exception as error:
            logger.exception("receipts could not end", exc_info=error)

    def __repr__(self) -> str:
        return f"<Receipts {self._ledger!r}, {len(self._watches)} rooms watched>"


def _policy(family: Family) -> Receipts:
    return cast("Receipts", family.rooms.features["receipts"])


def _member(session: Session[Any], name: str) -> Member:
    member = session.rooms.get(name)
    if member is None:
        raise Reject("not subscribed", code=codes.NOT_PERMITTED)
    return member
