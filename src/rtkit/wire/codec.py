"""Units to bytes and back, for input nobody can trust (W3).

Poison is refused here, before anything is stored or forwarded: lone surrogates, invalid UTF-8, NaN
and infinities, numbers beyond a double, integers of thousands of digits, and nesting that would
overflow somebody's stack. What passes is encoded anew, so every receiver gets canonical JSON in one line.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from ..errors import BadUnit
from .units import Command, Reply

__all__ = [
    "MAX_DEPTH",
    "BadCommand",
    "check_room_name",
    "decode_command",
    "decode_reply",
    "dumps",
    "loads",
    "recode",
    "split",
]

T = TypeVar("T")

#: Nesting of application data at the most. Receivers' parsers recurse; a thousand levels kill some.
MAX_DEPTH = 128

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A string, also one that never ends, is passed over in one go (possessively): to look for its end from each of
# its quotes again would take hours for a megabyte, and this is asked before anybody has authenticated.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level in, one out
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_command = msgspec.json.Decoder(Command)
_reply = msgspec.json.Decoder(Reply)
_encoder = msgspec.json.Encoder()


class _JustId(msgspec.Struct):
    id: int = 0


_just_id = msgspec.json.Decoder(_JustId)


class BadCommand(BadUnit):
    """A unit that is no valid command.

    :param id: of the command, when that much could be read; 0 when no reply can be addressed.
    """

    def __init__(self, message: str, *, id: int = 0) -> None:
        super().__init__(message)
        self.id = id


def split(frame: bytes) -> list[bytes]:
    """The units of a frame: one JSON object a line; empty lines are skipped."""
    if b"\n" not in frame:
        return [frame] if frame else []
    return [line for line in frame.split(b"\n") if line and not line.isspace()]


def decode_command(unit: bytes) -> Command:
    """One unit from a client.

    :raises BadCommand: for anything that is not a command, with its id if it has a readable one.
    """
    try:
        return _command.decode(unit)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        message, id = _explain(error), 0
        try:
            _check_depth(unit)
            id = _just_id.decode(unit).id
        except BadUnit as deep:
            # How deep a parser gets before it gives up is the interpreter's affair; what is said is not.
            message = message if isinstance(error, msgspec.ValidationError) else deep.message
        except (msgspec.DecodeError, RecursionError, ValueError):
            pass  # it has no id that could be read
        raise BadCommand(message, id=id if 0 < id < 2**53 else 0) from None


def decode_reply(unit: bytes) -> Reply:
    """One unit from a server.

    :raises BadUnit: for anything that is not a reply, a push or a ping.
    """
    try:
        return _reply.decode(unit)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BadUnit(_explain(error)) from None


def dumps(value: Any) -> bytes:
    """Canonical JSON in one line; ``bytes`` as base64.

    :raises ValueError: for what JSON cannot hold: lone surrogates, cycles.
    :raises TypeError: for a type that has no JSON form.
    """
    try:
        return _encoder.encode(value)
    except RecursionError:
        raise ValueError("nested too deeply, or contains itself") from None
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which UTF-8 cannot hold") from None


def loads(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Application data as the decoder's type.

    :raises BadUnit: with the path of the fault.
    """
    try:
        _check_depth(data)
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BadUnit(_explain(error)) from None


_any = msgspec.json.Decoder(Any)


def recode(data: bytes) -> bytes:
    """Any JSON value, checked throughout and made canonical.

    :raises BadUnit: for poison.
    """
    try:
        return dumps(loads(data, _any))
    except ValueError as error:
        raise BadUnit(_explain(error)) from None


def check_room_name(name: str) -> None:
    """Room names are 1 to 255 bytes of UTF-8 without control characters (W4).

    :raises BadUnit: for any other.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 255 or _CONTROL.search(name):
        raise BadUnit("a channel is 1 to 255 bytes of UTF-8 without control characters")


def _check_depth(data: bytes) -> None:
    """Refuse deep nesting without recursing, and in linear time; costs two counts for ordinary data."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    steps = array("b", _STRING.sub(b"", data).translate(_STEPS, _NO_BRACKETS))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise BadUnit(f"nested deeper than {MAX_DEPTH} levels")


def _explain(error: Exception) -> str:
    """What the peer may read about a fault of its own."""
    if isinstance(error, BadUnit):
        return error.message
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        text = str(error)  # which may quote the fault, however long; the path is at its end
        return text if len(text) <= 200 else f"{text[:100]}…{text[-100:]}"
    if isinstance(error, msgspec.DecodeError):
        return "not JSON"
    return "a value that JSON cannot hold"
