"""What travels on a channel: a version, a position if there is one, and the payload as it is.

::

    1 <epoch> <offset>\\n<payload>      appended, or of a revision
    1\\n<payload>                       only published

The scripts write the first kind (``lua/common.lua``), :func:`pack` the second. Another version, or
anything else that somebody published there, is *foreign*: nobody can say what it was meant to be.
"""

from __future__ import annotations

from typing import Final

from ...position import Position

__all__ = ["Foreign", "pack", "unpack"]

_PLAIN: Final = b"1\n"
# Longer than a head ever is: an epoch is 12 letters, an offset below 2 ** 53.
_HEAD: Final = 128


class Foreign(ValueError):
    """This is no frame of ours."""


def pack(payload: bytes) -> bytes:
    """A frame without a position."""
    return _PLAIN + payload


def unpack(frame: bytes) -> tuple[bytes, Position | None]:
    """The payload, and its position if it has one.

    :raises Foreign: when it is no frame, or one of a version to come.
    """
    if frame.startswith(_PLAIN):
        return frame[2:], None
    end = frame.find(b"\n", 0, _HEAD)
    parts = frame[:end].split(b" ") if end > 0 else ()
    if len(parts) != 3:
        raise Foreign(_describe(frame))
    version, epoch, offset = parts
    # int() alone would take b"+1", b"1_0" and other digits than these.
    if version != b"1" or not epoch or not epoch.isascii() or not offset.isdigit() or len(offset) > 16:
        raise Foreign(_describe(frame))
    return frame[end + 1 :], Position(epoch.decode("ascii"), int(offset))


def _describe(frame: bytes) -> str:
    # It is not repeated here: it may be anybody's, and a secret.
    return f"{len(frame)} bytes that are no frame of rtkit's, or of a later version"
