"""The event stream format, read piece by piece. Pure.

Source: WHATWG HTML, section 9.2.6 *Interpreting an event stream*. The stream is UTF-8, and what the format itself
is made of is ASCII: so everything stays bytes here, and cutting the stream anywhere changes nothing.

A line ends with LF, CR, or CRLF. After a CR the line is over at once, and an LF that follows is skipped whenever it
comes: waiting for it would hold back an event that is complete. An event that the stream ends in the middle of is
dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from ..errors import BadUnit

__all__ = ["Event", "EventStream"]

_BOM: Final = b"\xef\xbb\xbf"
#: Digits of a reconnection time that are read; more of them mean "never", not work.
_DIGITS: Final = 15


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    :param data: its lines, put together with line feeds.
    :param type: ``message`` unless the stream named another.
    :param id: the latest id the stream has named, with this event or before.
    """

    data: bytes
    type: str = "message"
    id: str = ""

    @property
    def text(self) -> str:
        """The data as the standard decodes it: what is no UTF-8 becomes U+FFFD."""
        return self.data.decode(errors="replace")

    def __repr__(self) -> str:
        # The first of a stream has the session's id in it (A5).
        return f"<Event {self.type!r}, {len(self.data)} bytes>"


@final
class EventStream:
    """Reads one event stream.

    :param max_size: bytes of a line, and of an event, at the most.
    :raises ValueError: for a size that is not positive.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_id",
        "_line",
        "_max_size",
        "_size",
        "_start",
        "_type",
        "last_event_id",
        "retry",
    )

    def __init__(self, *, max_size: int = 32 * 1024 * 1024) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is positive bytes, not {max_size!r}")
        self.last_event_id = ""
        """The id to go on after: that of the latest event that is complete."""
        self.retry: int | None = None
        """The reconnection time the stream asked for, in milliseconds; None if it did not."""
        self._max_size = max_size
        self._start: bytes | None = b""  # what may still be a byte order mark
        self._after_cr = False
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._type = b""
        self._id = ""

    def feed(self, piece: bytes) -> list[Event]:
        """The events that are complete with this *piece*; pieces may be cut anywhere.

        :raises BadUnit: for a line or an event larger than *max_size*. The stream cannot be read on.
        """
        if self._start is not None:
            piece = self._start + piece
            if len(piece) < len(_BOM) and _BOM.startswith(piece):
                self._start = piece
                return []
            self._start = None
            piece = piece.removeprefix(_BOM)
        return [event for line in self._lines(piece) if (event := self._take(line)) is not None]

    def _lines(self, piece: bytes) -> Iterator[bytes]:
        at = 0
        if self._after_cr and piece:
            self._after_cr = False
            at = 1 if piece.startswith(b"\n") else 0
        # Each is looked for again only when it was passed: for a piece of one kind alone, too, that is linear.
        lf, cr = piece.find(b"\n", at), piece.find(b"\r", at)
        while lf >= 0 or cr >= 0:
            stop = lf if cr < 0 or 0 <= lf < cr else cr
            if self._line:
                self._grow(piece[at:stop])
                yield bytes(self._line)
                self._line.clear()
            else:
                self._check(stop - at)
                yield piece[at:stop]
            at = stop + 1
            if stop == cr:
                if at == len(piece):
                    self._after_cr = True
                elif piece[at] == 0x0A:
                    at += 1
                cr = piece.find(b"\r", at)
            if 0 <= lf < at:
                lf = piece.find(b"\n", at)
        self._grow(piece[at:])

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value) + 1
            self._check(self._size - 1)
            self._data.append(value)
        elif name == b"event":
            self._type = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value.lstrip(b"0")[: _DIGITS + 1] or b"0")
        return None  # comments, and fields nobody knows

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        lines, type_ = self._data, self._type
        self._data, self._size, self._type = [], 0, b""
        if not lines:
            return None
        return Event(b"\n".join(lines), type_.decode(errors="replace") or "message", self._id)

    def _grow(self, more: bytes) -> None:
        self._check(len(self._line) + len(more))
        self._line += more

    def _check(self, size: int) -> None:
        if size > self._max_size:
            raise BadUnit(f"an event of more than {self._max_size} bytes")

    def __repr__(self) -> str:
        return f"<EventStream {len(self._data)} lines of an event, {len(self._line)} bytes of a line>"
