"""The frames of RFC 6455, as a server reads and writes them. Pure.

Writing is one function per kind. Reading is an :class:`Assembler`: bytes go in as the network cut them, whole
messages and control frames come out. It is made for connections that are idle nearly all of the time: one is
made when bytes arrive, and dropped as soon as nothing unfinished is in it, so that an idle connection holds none.

Bad input ends in a :class:`Violation` that carries the close code. It is raised as early as can be: what the first
two bytes of a frame show is judged by them, and the length by the length, so that nothing is ever stored for a
frame that will be refused.

- 1002 protocol error: reserved bits or opcodes, a frame that is not masked, a control frame that is fragmented or
  longer than 125 bytes, a continuation of nothing, a message within a message, a close frame with half a code or a
  code nobody may send.
- 1007 invalid data: text, or a reason for closing, that is not UTF-8; what cannot be inflated. Judged when the message
  is whole.
- 1009 too big: a message, fragments added up, beyond the bound, before it is inflated or then; or of more fragments
  than are allowed, since empty ones would otherwise never come to an end.

A length that is not coded in the fewest bytes is taken: the RFC forbids to send it, and refusing protects nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, final

from ..transports import joined
from .deflate import WORTH_IT, InflatesTooFar, deflated, inflated

if TYPE_CHECKING:
    apply_mask: Callable[[bytes | bytearray, bytes | bytearray], bytes]
else:
    try:
        from websockets.speedups import apply_mask
    except ImportError:  # pragma: no cover - no wheel for this platform
        from websockets.utils import apply_mask

__all__ = [
    "BINARY",
    "CLOSE",
    "MAX_FRAGMENTS",
    "PING",
    "PONG",
    "TEXT",
    "Assembler",
    "Violation",
    "close_frame",
    "deflated_frame",
    "deflated_text_frame",
    "frame",
    "parse_close",
    "pong_frame",
    "text_frame",
]

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

#: Fragments of one message at the most, the empty ones counted.
MAX_FRAGMENTS: Final = 1024

PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009

_FIN: Final = 0x80
_RESERVED: Final = 0x70
#: The first of the reserved bits, in the first frame of a message that is compressed.
_DEFLATED: Final = 0x40
_MASKED: Final = 0x80
_CONTROL_BYTES: Final = 125
#: Section 7.4: what an endpoint may put into a close frame, below 3000.
_CLOSE_CODES: Final = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))


class Violation(Exception):
    """The peer broke the protocol.

    :ivar code: to close with.
    :ivar reason: plain words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


# -- writing -------------------------------------------------------------------------------------------


def frame(opcode: int, payload: bytes) -> bytes:
    """One finished frame, unmasked, as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65536:
        return bytes((_FIN | opcode, 126, size >> 8, size & 255)) + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


def deflated_frame(opcode: int, payload: bytes) -> bytes:
    """The same, compressed where that makes it smaller, for who has agreed to that."""
    if len(payload) >= WORTH_IT:
        smaller = deflated(payload)
        if len(smaller) < len(payload):
            return frame(_DEFLATED | opcode, smaller)
    return frame(opcode, payload)


def text_frame(units: Sequence[bytes]) -> bytes:
    """Units as one text frame, one a line: the form of a :class:`~rtkit.transports.Batch` for raw pipes."""
    return frame(TEXT, joined(units))


def deflated_text_frame(units: Sequence[bytes]) -> bytes:
    """The form of a batch for pipes that have agreed to compression: made once for all of them (T9)."""
    return deflated_frame(TEXT, joined(units))


def close_frame(code: int, reason: str) -> bytes:
    """A close frame; a reason that is too long is cut at a character."""
    data = reason.encode("utf-8", "replace")
    if len(data) > _CONTROL_BYTES - 2:
        data = data[: _CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + data)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return frame(PONG, payload)


# -- reading -------------------------------------------------------------------------------------------


def parse_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close frame; 1005 for an empty one.

    :raises Violation: for what must not be in one.
    """
    if not payload:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise Violation(PROTOCOL_ERROR, "close frame too short")
    code = int.from_bytes(payload[:2], "big")
    if code not in _CLOSE_CODES and not 3000 <= code <= 4999:
        raise Violation(PROTOCOL_ERROR, "invalid close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(INVALID_DATA, "the reason for closing is not UTF-8") from None


@final
class Assembler:
    """Makes messages of the bytes of a client.

    ::

        assembler.feed(data)
        while (event := assembler.next()) is not None:
            opcode, payload = event  # TEXT, BINARY (whole messages), PING, PONG, CLOSE

    After a :class:`Violation` it is to be thrown away.

    :ivar max_message: bytes of a message at the most, inflated; may change from one message to the next.
    :param inflate: messages may be compressed.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_count",
        "_deflated",
        "_inflate",
        "_kind",
        "_parts",
        "_size",
        "max_message",
    )

    def __init__(self, max_message: int, *, inflate: bool = False) -> None:
        self.max_message = max_message
        self._inflate = inflate
        self._buffer: bytes | bytearray = b""
        self._at = 0  # what lies before is done with
        self._kind = 0  # the opcode of the message whose fragments are in `_parts`
        self._deflated = False  # that message
        self._parts: list[bytes] = []
        self._count = 0
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the network; at most what was unfinished before is copied, and only once."""
        if self._at == len(self._buffer):
            self._buffer, self._at = data, 0
            return
        if self._at or not isinstance(self._buffer, bytearray):
            self._buffer, self._at = bytearray(memoryview(self._buffer)[self._at :]), 0
        self._buffer += data

    @property
    def idle(self) -> bool:
        """Nothing is unfinished: a new one would do as well."""
        return not self._kind and self._at == len(self._buffer)

    def next(self) -> tuple[int, bytes] | None:
        """The next message or control frame, as opcode and payload; None when more bytes are needed.

        :raises Violation: for what the protocol forbids, and what exceeds a bound.
        """
        while True:
            buffer, at = self._buffer, self._at
            have = len(buffer) - at
            if have < 2:
                return None
            head, size = buffer[at], buffer[at + 1]
            self._judge(head, size)
            size &= 127
            start = at + 6
            if size > 125:
                extra = 2 if size == 126 else 8
                start += extra
                if have < 2 + extra:
                    return None
                size = int.from_bytes(buffer[at + 2 : at + 2 + extra], "big")
            opcode = head & 15
            if opcode < CLOSE and self._size + size > self.max_message:
                raise Violation(TOO_BIG, "message too big")
            end = start + size
            if have < end - at:
                return None
            payload = apply_mask(buffer[start:end], buffer[start - 4 : start]) if size else b""
            self._at = end
            if opcode >= CLOSE:
                return opcode, payload
            if not self._kind:
                self._deflated = bool(head & _DEFLATED)
                if head & _FIN:
                    return opcode, self._checked(opcode, payload)
            if (whole := self._add(opcode, payload, last=bool(head & _FIN))) is not None:
                return whole

    def _judge(self, head: int, size: int) -> None:
        """What the first two bytes of a frame show."""
        opcode = head & 15
        if head & _RESERVED and not (self._inflate and head & _RESERVED == _DEFLATED and 0 < opcode < CLOSE):
            raise Violation(PROTOCOL_ERROR, "reserved bits must be 0")
        if not size & _MASKED:
            raise Violation(PROTOCOL_ERROR, "frames of a client must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise Violation(PROTOCOL_ERROR, "unknown opcode")
            if not head & _FIN:
                raise Violation(PROTOCOL_ERROR, "fragmented control frame")
            if size & 127 > _CONTROL_BYTES:
                raise Violation(PROTOCOL_ERROR, "control frame too long")
        elif opcode > BINARY:
            raise Violation(PROTOCOL_ERROR, "unknown opcode")
        elif bool(opcode) == bool(self._kind):
            what = "a message within a message" if opcode else "a continuation of nothing"
            raise Violation(PROTOCOL_ERROR, what)

    def _add(self, opcode: int, payload: bytes, *, last: bool) -> tuple[int, bytes] | None:
        """A fragment; the message when it was the last one."""
        if opcode:
            self._kind = opcode
        self._count += 1
        if self._count > MAX_FRAGMENTS:
            raise Violation(TOO_BIG, "too many fragments")
        if payload:
            self._parts.append(payload)
            self._size += len(payload)
        if not last:
            return None
        kind, message = self._kind, b"".join(self._parts)
        self._kind = self._count = self._size = 0
        self._parts = []
        return kind, self._checked(kind, message)

    def _checked(self, opcode: int, message: bytes) -> bytes:
        """A message that is whole, inflated if need be."""
        if self._deflated:
            try:
                message = inflated(message, self.max_message)
            except InflatesTooFar:
                raise Violation(TOO_BIG, "message too big") from None
            except ValueError:
                raise Violation(INVALID_DATA, "a message that cannot be inflated") from None
        if opcode == TEXT and not message.isascii():
            try:
                message.decode()
            except UnicodeDecodeError:
                raise Violation(INVALID_DATA, "text that is not UTF-8") from None
        return message

    def __repr__(self) -> str:
        return f"<Assembler, {len(self._buffer) - self._at} bytes and {self._count} fragments unfinished>"
