"""Events of an event stream as bytes, and the id that says where a stream of many rooms stands (T5). Pure.

An event's id is all that a plain ``EventSource`` gives back when it returns, so it is the whole memory of a one-way
client: of every room with history the position behind this event, of rooms it was taken out of that it was, and
whether it should return at all. It is opaque to everybody else, and proves nothing: what it says is judged like the
position any client names, so that who forges one can only be told of a gap.

::

    "1" base64url( msgpack [stop, [[room, epoch, offset], …]] )

*room* is the beginning of a hash of the room's name: 32 names would not fit. Two rooms that share one have to be made
for it, and then lose their place: the epoch of the one does not hold in the other. The first character is the version.
An id of another version, or of somebody else's making, is an unknown place in every room, not an error, since an
``EventSource`` never recovers from errors.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Final, final

import msgspec
from msgspec import UNSET

from .. import codes
from ..errors import BadUnit
from ..position import Position
from .codec import dumps
from .units import Data, GapBody, Publication, SignalBody

__all__ = [
    "MAX_ID",
    "MAX_ROOMS",
    "Bookmark",
    "Place",
    "RoomJoined",
    "event",
    "gap_event",
    "goodbye",
    "joined_event",
    "left_event",
    "message_event",
    "message_lines",
    "place_of",
    "signal_event",
    "write_id",
]

#: Rooms of one stream, and bytes of an id, at the most.
MAX_ROOMS: Final = 32
MAX_ID: Final = 4096

_VERSION: Final = "1"
_LINES: Final = re.compile(rb"\r\n|\r|\n")
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")
_VERSIONED: Final = re.compile(r"[0-9A-Za-z][A-Za-z0-9_-]*")
#: So that 32 of them fit an id. Epochs of rtkit's own brokers have a quarter of that.
_MAX_EPOCH: Final = 64
_LEFT: Final = -1


class Place(msgspec.Struct, array_like=True):
    """A room's entry in an id; changed in place as the stream goes on.

    :param key: stands for the room's name.
    :param epoch: of its position, likewise *offset*.
    """

    key: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    epoch: Annotated[str, msgspec.Meta(max_length=_MAX_EPOCH)]
    offset: Annotated[int, msgspec.Meta(ge=_LEFT, lt=2**53)]

    def move(self, position: Position) -> None:
        """It stands there now."""
        self.epoch, self.offset = position.epoch, position.offset
        if len(position.epoch.encode()) > _MAX_EPOCH:
            # No room for it. Without the epoch an offset proves nothing, so that a gap will be said.
            self.epoch, self.offset = "", max(1, position.offset)

    def leave(self) -> None:
        """It is in the room no more, and shall not come back by itself."""
        self.epoch, self.offset = "", _LEFT


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    stop: Annotated[int, msgspec.Meta(ge=0, lt=5000)]
    places: Annotated[Sequence[Place], msgspec.Meta(max_length=MAX_ROOMS)]


_decoder: Final = msgspec.msgpack.Decoder(_Body)
_encode: Final = msgspec.msgpack.Encoder().encode


def event(name: str, data: bytes, *, id: str | None = None) -> bytes:
    """One event, whole. Line breaks of any kind in *data* are line feeds for the reader.

    :param name: what listeners are put on for.
    :param id: without one the reader keeps the id it has.
    :raises ValueError: for a line break or NUL in *name* or *id*, which would be a field of its own, or none at all.
    """
    for field in (name, id or ""):
        if _FORBIDDEN.search(field):
            raise ValueError(f"a field of an event has no line breaks and no NUL, unlike {field!r:.80}")
    lines = _LINES.split(data)
    head = b"event: %b\n" % name.encode() + b"".join([b"data: %b\n" % line for line in lines])
    return head + (b"\n" if id is None else b"id: %b\n\n" % id.encode())


def place_of(room: str, position: Position) -> Place:
    """A room's entry in an id."""
    place = Place(_key(room), "", 0)
    place.move(position)
    return place


def write_id(places: Sequence[Place], stop: int = 0) -> str:
    """The id of an event after which the rooms stand there; at most :data:`MAX_ID` bytes for 32 of them.

    :param stop: the close code for which the stream is not to be opened again.
    """
    if len(places) == 1:  # a crowd in one room stands in the same place
        (place,) = places
        return _id_of_one(place.key, place.epoch, place.offset, stop)
    return _VERSION + base64.urlsafe_b64encode(_encode(_Body(stop, places))).rstrip(b"=").decode()


@lru_cache(maxsize=256)
def _id_of_one(key: bytes, epoch: str, offset: int, stop: int) -> str:
    body = _encode(_Body(stop, (Place(key, epoch, offset),)))
    return _VERSION + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


@final
class Bookmark:
    """What an id says.

    :ivar stop: the close code for which its stream is not to be opened again, or 0.
    """

    __slots__ = ("_places", "stop")

    def __init__(self, places: Mapping[bytes, Place] | None, stop: int = 0) -> None:
        self._places = places  # None: of another version, so that it could be anywhere
        self.stop = stop

    @staticmethod
    def read(text: str) -> Bookmark:
        """An id that somebody gives back.

        :raises BadUnit: for what no release of rtkit has written.
        """
        if len(text) > MAX_ID:
            raise BadUnit(f"the id of an event has at most {MAX_ID} bytes")
        if _VERSIONED.fullmatch(text) is None:
            raise BadUnit("that is no id of an event of ours")
        if text[0] != _VERSION:
            return Bookmark(None)
        try:
            body = base64.b64decode(text[1:] + "=" * (-(len(text) - 1) % 4), altchars=b"-_", validate=True)
            found = _decoder.decode(body)
        except (binascii.Error, msgspec.DecodeError, RecursionError, ValueError):
            raise BadUnit("that is no id of an event of ours") from None
        return Bookmark({place.key: place for place in found.places}, found.stop)

    def position(self, room: str) -> Position | None:
        """Where it stands in a room; None for one it does not know, or has left."""
        if self._places is None:
            return Position("", 1)  # which proves nothing
        place = self._places.get(_key(room))
        return None if place is None or place.offset == _LEFT else Position(place.epoch, place.offset)

    def has_left(self, room: str) -> bool:
        """Whether it was taken out of the room."""
        place = None if self._places is None else self._places.get(_key(room))
        return place is not None and place.offset == _LEFT

    def __repr__(self) -> str:
        known = "another version" if self._places is None else f"{len(self._places)} rooms"
        return f"<Bookmark of {known}{f', stop {self.stop}' if self.stop else ''}>"


def _key(room: str) -> bytes:
    return blake2b(room.encode(), digest_size=6).digest()


# -- the events --------------------------------------------------------------------------------------


class _Message(msgspec.Struct, omit_defaults=True):
    """*room* is missing from what was sent to this session alone, *offset* in rooms without history."""

    room: str = ""
    data: Data = UNSET
    offset: int = 0
    sender: str = ""
    client: str = ""
    time: float = 0.0


class RoomJoined(msgspec.Struct, omit_defaults=True):
    """How a room was joined; *typing*: after how many seconds somebody who types has stopped."""

    recoverable: bool = False
    recovered: bool = False
    data: Data = UNSET
    typing: float | None = None


class _Welcome(msgspec.Struct):
    rooms: Mapping[str, RoomJoined]


class _Gap(msgspec.Struct, rename={"start": "from", "end": "to"}):
    room: str
    start: int
    end: int
    epoch: str
    reason: str


class _Left(msgspec.Struct):
    room: str
    code: int
    reason: str


class _Signal(msgspec.Struct, omit_defaults=True):
    room: str
    event: str = ""
    data: Data = UNSET
    sender: str = ""
    client: str = ""


class _Goodbye(msgspec.Struct):
    code: int
    reason: str


def joined_event(rooms: Mapping[str, RoomJoined], id: str) -> bytes:
    """All rooms are joined, and the stream stands where *id* says."""
    return event("joined", dumps(_Welcome(rooms)), id=id)


def message_lines(room: str, pub: Publication) -> bytes:
    """A message of a room, without the lines that end it: its id, if it has one, and an empty one."""
    message = _Message(room, pub.data, pub.offset, time=pub.time)
    if pub.info is not None:
        message.sender, message.client = pub.info.user, pub.info.client
    return event("message", dumps(message))[:-1]


def message_event(data: Data) -> bytes:
    """A message to this session alone."""
    return event("message", dumps(_Message(data=data)))


def gap_event(room: str, gap: GapBody, id: str) -> bytes:
    """Some of a room is not available."""
    return event("gap", dumps(_Gap(room, gap.start, gap.end, gap.epoch, gap.reason)), id=id)


def left_event(room: str, code: int, reason: str, id: str) -> bytes:
    """The server took the client out of a room."""
    return event("left", dumps(_Left(room, code, reason)), id=id)


def signal_event(room: str, signal: SignalBody) -> bytes:
    """A room message without storage."""
    return event("signal", dumps(_Signal(room, signal.event, signal.data, signal.user, signal.client)))


def goodbye(code: int, reason: str, places: Sequence[Place]) -> bytes:
    """The last words. Who comes back with an id that has *stop* in it is told that there is nothing more."""
    words = dumps(_Goodbye(code, reason))
    if code == codes.EXPIRED_CLOSE:
        return event("expired", words)
    if codes.is_terminal(code):
        return event("closed", words, id=write_id(places, code))
    return b": %b\n\n" % words
