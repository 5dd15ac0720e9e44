"""What lies in the broker: an entry for each user of a room, and what nodes tell each other of changes.

======================================  =============  ==========================================================
key                                     field          value
======================================  =============  ==========================================================
``marks:<room>``                        user           an :class:`Entry`
topic ``\\0marks:<room>``                               a :class:`Notice`, published with each revision of it
======================================  =============  ==========================================================

No entry names a node: whoever writes compares with what is there, and goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw

from ...position import Position
from ...wire.envelope import FORMATS, Formats

__all__ = [
    "NOTHING",
    "Stored",
    "decode_entry",
    "decode_notice",
    "encode_entry",
    "encode_notice",
    "key_of",
    "topic_of",
]


def key_of(room: str) -> str:
    """The key of a room's entries."""
    return f"marks:{room}"


def topic_of(room: str) -> str:
    """The topic of a room's notices. It begins with NUL, so that it is no room's (W4)."""
    return f"\0marks:{room}"


class Stored(NamedTuple):
    """A user's marks as they lie in the broker; each in the epoch in which it was written."""

    delivered: Position | None = None
    read: Position | None = None


#: Of a user who has no entry.
NOTHING: Final = Stored()

_Place = tuple[str, Annotated[int, Meta(ge=0, lt=2**53)]]


class Entry(msgspec.Struct, omit_defaults=True):
    """A user's marks in a room; the field it lies in is the user (W5)."""

    v: int
    d: _Place | None = None
    r: _Place | None = None


class Notice(msgspec.Struct, omit_defaults=True):
    """What a revision has changed, by user."""

    v: int
    marks: dict[str, Raw] = {}


_encode: Final = msgspec.json.Encoder().encode
_entries: Final = msgspec.json.Decoder(Entry)
_notices: Final = msgspec.json.Decoder(Notice)


def encode_entry(stored: Stored, version: int) -> bytes:
    """As it lies in the broker, in a version that all nodes read (W5)."""
    delivered, read = stored
    return _encode(
        Entry(
            version,
            None if delivered is None else (delivered.epoch, delivered.offset),
            None if read is None else (read.epoch, read.offset),
        )
    )


def decode_entry(value: bytes, formats: Formats = FORMATS) -> Stored:
    """From the broker.

    :param formats: what this release reads.
    :raises BadUnit: for what no release of rtkit has written, or a newer one did.
    """
    entry = formats.decode("a user's marks", value, _entries.decode)
    return Stored(
        None if entry.d is None else Position(*entry.d), None if entry.r is None else Position(*entry.r)
    )


def encode_notice(changes: Mapping[str, bytes], version: int) -> bytes:
    """Of encoded entries, by user."""
    return _encode(Notice(version, {user: Raw(value) for user, value in changes.items()}))


def decode_notice(payload: bytes, formats: Formats = FORMATS) -> dict[str, bytes]:
    """The entries that a notice tells of, still encoded, by user.

    :param formats: what this release reads.
    :raises BadUnit: for what no release of rtkit has written, or a newer one did.
    """
    notice = formats.decode("a notice of marks", payload, _notices.decode)
    return {user: bytes(value) for user, value in notice.marks.items()}
