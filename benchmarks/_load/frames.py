"""RFC 6455 as much as a load client needs, and what the units of our wire say."""

import base64
import hashlib
import os
from typing import Final, NamedTuple

import msgspec

__all__ = [
    "CLOSE",
    "PING",
    "TEXT",
    "Unit",
    "accept_of",
    "client_frame",
    "handshake",
    "parse_unit",
    "server_frames",
]

TEXT: Final = 1
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: One key for the whole process: unmasking costs the server the same whatever the key is.
_KEY: Final = os.urandom(4)


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One masked frame."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8, "big")
    key = int.from_bytes((_KEY * (length // 4 + 1))[:length], "big")
    return head + _KEY + (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")


def server_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames at the beginning of *data*, as opcode and payload, and the rest.

    :raises ValueError: for a frame that is masked, fragmented or compressed, none of which we expect.
    """
    frames: list[tuple[int, bytes]] = []
    at, end = 0, len(data)
    while end - at >= 2:
        first, length = data[at], data[at + 1]
        if first & 0xF0 != 0x80 or length & 0x80:
            raise ValueError(f"unexpected frame head {data[at : at + 2].hex()}")
        begin = at + 2
        if length == 126:
            begin += 2
            length = int.from_bytes(data[at + 2 : begin], "big")
        elif length == 127:
            begin += 8
            length = int.from_bytes(data[at + 2 : begin], "big")
        if end < begin + length:
            break
        frames.append((first & 0x0F, data[begin : begin + length]))
        at = begin + length
    return frames, data[at:]


_BROWSER: Final = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
    "Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http://{host}\r\nSec-WebSocket-Version: 13\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\nSec-WebSocket-Key: {key}\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


def handshake(host: str, path: str, key: bytes) -> bytes:
    """The request that opens a WebSocket, with what a browser says: servers keep it, so it counts as memory."""
    return _BROWSER.format(host=host, path=path, key=key.decode()).encode()


def accept_of(key: bytes) -> bytes:
    """The answer that proves that the server understood the handshake."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


class Load(msgspec.Struct):
    """The data of our publications: publisher, its sequence number, when it was sent (monotonic ns), padding."""

    p: int
    s: int
    t: int
    x: str = ""


class _Pub(msgspec.Struct):
    data: Load
    offset: int = 0


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Pub] = []


class _Error(msgspec.Struct):
    code: int
    message: str = ""


class _Unsubscribed(msgspec.Struct):
    code: int


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Pub | None = None
    unsubscribe: _Unsubscribed | None = None


class _Reply(msgspec.Struct):
    id: int = 0
    push: _Push | None = None
    error: _Error | None = None
    subscribe: _Subscribed | None = None


class Unit(NamedTuple):
    """What one unit of the server says. One of: a publication, a reply, a ping, something that should not be."""

    pub: Load | None = None
    channel: str = ""
    offset: int = 0
    reply: int = 0
    ping: bool = False
    trouble: str = ""


_decode = msgspec.json.Decoder(_Reply).decode


def parse_unit(line: bytes) -> Unit:
    """Read a unit of the wire.

    :raises msgspec.MsgspecError: for one that is none.
    """
    if line == b"{}":
        return Unit(ping=True)
    said = _decode(line)
    if said.push is not None:
        if said.push.pub is None:
            return Unit(trouble=f"push {line[:200]!r}")
        return Unit(pub=said.push.pub.data, channel=said.push.channel, offset=said.push.pub.offset)
    if said.error is not None:
        return Unit(reply=said.id, trouble=f"error {said.error.code}: {said.error.message}")
    offset = said.subscribe.offset if said.subscribe is not None else 0
    return Unit(reply=said.id, offset=offset)
