"""permessage-deflate (RFC 7692), in the one way that costs a broadcast once and an idle connection nothing (T9). Pure.

Compression of WebSockets usually remembers: each side keeps a window of what it has sent, and later messages refer to
it. Then no two members of a room can be sent the same bytes, and each connection keeps up to 300 KiB. So whatever the
client offers, it is answered that neither side remembers (``server_no_context_takeover``, which may be said unasked;
and ``client_no_context_takeover``, which the client has to keep to). A batch is compressed once, with a window that is
the same for everybody, and a decompressor lives as long as one message.

An offer that cannot be had so is declined, and the next one looked at; without any, messages go uncompressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from websockets.exceptions import InvalidHeaderFormat
from websockets.headers import parse_extension

__all__ = ["WORTH_IT", "InflatesTooFar", "deflated", "inflated", "negotiate"]

#: Of the window of what we send: 4 KiB. More would help messages that are larger, and costs 90 µs for each.
_WINDOW: Final = 12
_LEVEL: Final = 6
_MEMORY: Final = 5
#: Bytes from which on a message is compressed. Below, without memory of earlier ones, next to nothing is saved.
WORTH_IT: Final = 128

_NAME: Final = "permessage-deflate"
#: As the RFC wants them written (7.1.2): without leading zeros.
_BITS: Final = frozenset(str(bits) for bits in range(8, 16))
#: What ends a message, and is left out on the wire (7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"


class InflatesTooFar(Exception):
    """A message would be larger, inflated, than it may be."""


def negotiate(offered: str) -> str | None:
    """What to answer to a ``Sec-WebSocket-Extensions`` header; None to say nothing.

    :param offered: its value, of several headers joined with commas.
    """
    try:
        offers = parse_extension(offered)
    except InvalidHeaderFormat:
        return None
    answers = (_accepted(parameters) for name, parameters in offers if name == _NAME)
    return next((answer for answer in answers if answer is not None), None)


def _accepted(parameters: Sequence[tuple[str, str | None]]) -> str | None:
    """The answer to one offer; None for one that is declined, as any with a parameter we do not know must be (7.1)."""
    if len({name for name, _ in parameters}) < len(parameters):
        return None
    answer = [_NAME, "server_no_context_takeover", "client_no_context_takeover"]
    for name, value in parameters:
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if value is not None:
                    return None
            case "client_max_window_bits":
                # What the client may be told to keep to. It need not: any window it has is inflated here.
                if value is not None and value not in _BITS:
                    return None
            case "server_max_window_bits":
                if value not in _BITS or int(value) < _WINDOW:
                    return None
                answer.append(f"server_max_window_bits={_WINDOW}")
            case _:
                return None
    return "; ".join(answer)


def deflated(payload: bytes) -> bytes:
    """A message as it is sent, on its own: it refers to no other."""
    made = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_WINDOW, _MEMORY)
    return (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)


def inflated(payload: bytes, most: int) -> bytes:
    """The message that *payload* was made of.

    :param most: bytes that it may have. Inflating stops there: no more memory is taken, whatever would follow.
    :raises InflatesTooFar: for one that has more.
    :raises ValueError: for what was not compressed, or has something behind its end.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        message = inflater.decompress(payload + _TAIL, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(message) > most:
        raise InflatesTooFar
    # Who marks its last block as the last (7.2.3.4) has the tail, and a byte to fill up, behind it. Going on with
    # what else might be there would let a megabyte of ends be a million decompressors.
    if inflater.eof and inflater.unused_data.lstrip(b"\0") != _TAIL.lstrip(b"\0"):
        raise ValueError("something follows the last block")
    return message
