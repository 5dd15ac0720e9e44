"""What a one-way client has been told, and what it is told next: units to events (T5). Pure.

An ``EventSource`` remembers the id of the last event, and nothing else. So

- the first event, ``joined``, has an id, or what is published before the next one would be lost with a cut;
- the id of every event says where the client stands *behind* it, in all of its rooms: before what was recovered for
  ``joined``, behind the gap for ``gap``. Whatever event the stream is cut at, the next one goes on there;
- an offset that does not follow on the one before is never passed over. Nothing more is told then: the stream has
  to end, comes back, and the hub judges.

Encoding is shared: the lines of a message are made once for all streams (:func:`pieces` is the form of a batch), and
only the id is a stream's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from .. import codes
from ..position import Position
from .chunks import Assembler, BadChunk
from .codec import decode_reply
from .eventstream import (
    Place,
    RoomJoined,
    gap_event,
    goodbye,
    joined_event,
    left_event,
    message_event,
    message_lines,
    place_of,
    signal_event,
    write_id,
)
from .units import Chunk, GapBody, Push, Reply, SubscribeResult, UnsubscribePush, Window

__all__ = ["Piece", "Telling", "pieces"]

Piece = tuple[str, int, bytes] | Reply
"""A message: its room, its offset (0 without history), and its lines without the end; or any other unit."""

#: Bytes of a unit that comes in chunks, at the most; the hub's own bounds are below.
_LARGE = 64 * 1024 * 1024


def pieces(units: Sequence[bytes]) -> tuple[Piece, ...]:
    """Units as far as they are the same for every stream."""
    return tuple(_piece(decode_reply(unit)) for unit in units)


def _piece(reply: Reply) -> Piece:
    push = reply.push
    if push is None or push.pub is None:
        return reply
    return push.channel, push.pub.offset, message_lines(push.channel, push.pub)


@final
class Telling:
    """One stream's state.

    :ivar rooms: those that were joined and not left; None for one without history.
    :ivar broken: why nothing more can be told truthfully; the client has to come back.
    :ivar window: when the hub said that it shall, if it did.
    """

    __slots__ = ("_assembler", "_places", "_welcome", "broken", "rooms", "window")

    def __init__(self, left: Iterable[str] = ()) -> None:
        self.rooms: dict[str, Place | None] = {}
        self.broken: str | None = None
        self.window: Window | None = None
        self._places: list[Place] = []  # what the id is made of
        self._welcome: dict[str, RoomJoined] = {}
        self._assembler: Assembler | None = None
        for room in left:  # in a stream before this one; the ids go on saying so
            self._leave(place_of(room, Position("", 0)), new=True)

    # -- before the first event ------------------------------------------------------------------

    def joined(self, room: str, since: Position | None, result: SubscribeResult) -> list[Piece]:
        """A room was joined: stand where the client does, before anything was told.

        :param since: the position that was asked for.
        :return: what to tell behind the first event.
        """
        gap, publications = result.gap, result.publications
        # Before its first publication, or where it is, without any.
        at = Position(result.epoch, publications[0].offset - 1 if publications else result.offset)
        if gap is None and result.was_recovering and not result.recovered:
            # Its history has been taken away since.
            gap = GapBody(end=at.offset, epoch=at.epoch, reason="epoch" if result.recoverable else "dropped")
        place: Place | None = None
        if result.recoverable:
            if gap is not None:  # until it was told, the client stands before it
                at = since or Position(gap.epoch, gap.start)
            place = place_of(room, at)
            self._places.append(place)
        self.rooms[room] = place
        self._welcome[room] = RoomJoined(
            result.recoverable, result.recovered, result.data, result.typing or None
        )
        told: list[Piece] = [] if gap is None else [Reply(push=Push(channel=room, gap=gap))]
        told += [(room, pub.offset, message_lines(room, pub)) for pub in publications]
        return told

    def begin(self) -> bytes:
        """The first event."""
        welcome, self._welcome = self._welcome, {}
        return joined_event(welcome, self.id())

    # -- from then on ----------------------------------------------------------------------------

    def id(self) -> str:
        """Where the client stands behind what was told."""
        return write_id(self._places)

    def tell(self, found: Sequence[Piece], now: float) -> bytes:
        """Units as events, each with the id of what is behind it. Up to where it breaks."""
        out: list[bytes] = []
        for piece in found:
            if self.broken is not None:
                break
            if isinstance(piece, Reply):
                if piece.push is not None:
                    self._push(piece.push, now, out)
            else:
                self._message(*piece, out)
        return b"".join(out)

    def _message(self, room: str, offset: int, lines: bytes, out: list[bytes]) -> None:
        if room not in self.rooms:
            return
        place = self.rooms[room]
        if place is None or not offset:
            out += (lines, b"\n")
        elif offset == place.offset + 1:
            place.offset = offset
            out += (lines, b"id: %b\n\n" % self.id().encode())
        elif offset > place.offset:
            self.broken = "an offset is missing"

    def _push(self, push: Push, now: float, out: list[bytes]) -> None:
        if push.chunk is not None:
            unit = self.assemble(push.chunk, now)
            if unit is not None:
                out.append(self.tell(pieces((unit,)), now))
        elif push.disconnect is not None:
            self.window = push.disconnect.rt
        elif push.message is not None:
            out.append(message_event(push.message.data))
        elif push.channel in self.rooms:
            self._of_room(push.channel, push, out)

    def _of_room(self, room: str, push: Push, out: list[bytes]) -> None:
        place = self.rooms[room]
        if push.gap is not None:
            if place is not None:
                place.move(Position(push.gap.epoch, push.gap.end))
            out.append(gap_event(room, push.gap, self.id()))
        elif push.position is not None:
            if place is None or push.position.offset != place.offset:
                self.broken = "a new epoch begins elsewhere"
            else:
                place.move(Position(push.position.epoch, place.offset))
        elif push.unsubscribe is not None:
            self._taken_out(room, push.unsubscribe, out)
        elif push.signal is not None:
            out.append(signal_event(room, push.signal))

    def _taken_out(self, room: str, why: UnsubscribePush, out: list[bytes]) -> None:
        if codes.may_resubscribe(why.code):
            self.broken = "a room has to be joined again"  # which is what a new stream does
            return
        place = self.rooms.pop(room)
        self._leave(place or place_of(room, Position("", 0)), new=place is None)
        out.append(left_event(room, why.code, why.reason, self.id()))
        if not self.rooms:
            self.broken = "no room is left"

    def _leave(self, place: Place, *, new: bool) -> None:
        place.leave()
        if new:
            self._places.append(place)

    def goodbye(self, code: int, reason: str) -> bytes:
        """The last words."""
        return goodbye(code, reason, self._places)

    # -- large units -----------------------------------------------------------------------------

    def assemble(self, chunk: Chunk, now: float) -> bytes | None:
        """Take a chunk of a large unit (T8); the unit, once it is whole."""
        if self._assembler is None:
            self._assembler = Assembler(limit=_LARGE)
        try:
            return self._assembler.add(chunk, now)
        except BadChunk as error:
            self.broken = error.message
            return None

    def __repr__(self) -> str:
        return f"<Telling of {len(self.rooms)} rooms{f', broken: {self.broken}' if self.broken else ''}>"
