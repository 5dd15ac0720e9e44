"""RFC 6455 case by case, in the numbering of the Autobahn test suite (sections 1 to 7, and 10).

That suite itself is Python 2 and wants an echo server. Here the echo is the hub's: a message is a call of the
procedure ``echo``, padded or filled to what the case needs, so a case passes when its call is answered, or the
connection closed with the code it should be. What the hub itself does not take is said where it differs: an empty
message is no unit, so it closes with 3501.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.support.rawsocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, Frame, Peer, close_payload, frame
from tests.transport.conftest import Site

SPLITS = (None, 1, 3, 997)
"""How the bytes of a case are cut on their way: not, byte by byte, in threes, as Autobahn does with large ones."""


def call(peer: Peer, data: str = "", *, size: int = 0) -> tuple[int, str]:
    """A call of ``echo``, padded to so many bytes."""
    id, unit = peer.unit("rpc", method="echo", data=data)
    assert len(unit.encode()) <= size or not size
    return id, unit + " " * (size - len(unit.encode()))


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def fragments(parts: list[bytes], opcode: int = TEXT) -> list[bytes]:
    """A message in these fragments, each of them a frame."""
    last = len(parts) - 1
    return [frame(part, CONT if n else opcode, fin=n == last) for n, part in enumerate(parts)]


async def send(peer: Peer, data: bytes, split: int | None) -> None:
    """Send it in such pieces, or until the server has had enough."""
    try:
        if split is None:
            await peer.send(data)
        else:
            await peer.send_slowly(data, split)
    except ConnectionError:
        pass  # uvicorn ends the connection at once; what it said before is still there to be read


# -- 1: messages of many sizes


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_1_sizes(site: Site, opcode: int) -> None:
    await site.open()
    ann = await site.client("ann")
    for size in (125, 126, 127, 128, 65535, 65536):
        for split in (None, 997):
            id, unit = call(ann, str(size), size=size)
            assert len(unit) == size
            await send(ann, frame(unit.encode(), opcode), split)
            assert await ann.reply(id, "rpc") == {"data": str(size)}


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_1_1_1_and_1_2_1_empty_messages(site: Site, opcode: int) -> None:
    """No unit, so a bad one (1.1 of the protocol): the frame itself is fine."""
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b"", opcode))
    assert (await ann.closed()).code == 3501


# -- 2: pings and pongs


async def test_2_pings(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    for payload in (b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125):
        for split in (None, 1):
            await send(ann, frame(payload, PING), split)
            assert await ann.frame() == Frame(PONG, payload)
    for split in (None, 1):  # 2.10 and 2.11
        await send(ann, b"".join(frame(f"payload-{n}", PING) for n in range(10)), split)
        for n in range(10):
            assert await ann.frame() == Frame(PONG, f"payload-{n}".encode())


async def test_2_5_a_ping_too_long(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b"\xfe" * 126, PING))
    assert (await ann.closed()).code == 1002


async def test_2_7_to_2_9_pongs_nobody_asked_for(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b"", PONG) + frame(b"unsolicited", PONG) + frame(b"ping payload", PING))
    assert await ann.frame() == Frame(PONG, b"ping payload")
    assert await ann.echo("here") == "here"


# -- 3 and 4: reserved bits and opcodes


@pytest.mark.parametrize("split", SPLITS)
async def test_3_and_4_reserved(site: Site, split: int | None) -> None:
    """Alone, and behind a good message: a good one in a packet of its own is answered before the end."""
    await site.open()
    bad = [
        *(frame("Hello, world!", rsv=rsv) for rsv in range(1, 8)),
        *(frame(b"\x00\xff", BINARY, rsv=rsv) for rsv in range(1, 8)),
        *(frame("", PING, rsv=rsv) for rsv in range(1, 8)),
        *(frame(close_payload(1000), CLOSE, rsv=rsv) for rsv in range(1, 8)),
        *(frame("", opcode) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        *(frame("reserved opcode payload", opcode) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    ]
    for said in bad if split is None else bad[::5]:
        ann = await site.client("ann")
        assert await ann.echo("before") == "before"
        await send(ann, said, split)
        assert (await ann.closed()).code == 1002, said.hex(" ")


# -- 5: fragmentation

_MIDST = frame("ping payload", PING)


def _good(unit: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Fragments with control frames in between, and how many pings are among them."""
    one, two = unit[:7], unit[7:]
    yield "5.3", fragments([one, two])
    first, second = fragments([one, two])
    yield "5.6", [first, _MIDST, second]
    yield "6.1.2", fragments([b"", one + two, b""])
    yield "6.1.3", fragments([b"", b"", one, b"", two, b""])
    five = fragments([unit[:3], unit[3:6], unit[6:9], unit[9:12], unit[12:]])
    yield "5.19", [five[0], five[1], _MIDST, five[2], five[3], _MIDST, five[4]]
    yield "a byte a fragment", fragments(pieces(unit, 1))
    yield "unsolicited pongs", [first, frame("x", PONG), second]


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_5_messages_in_fragments(site: Site, opcode: int) -> None:
    """All of a case at once, frame by frame (5.4, 5.7), and byte by byte (5.5, 5.8)."""
    await site.open()
    ann = await site.client("ann")
    for split in (None, 0, 1):
        for name in [name for name, _ in _good(b"x" * 20)]:
            id, unit = call(ann, f"fragment é {name}")
            frames = dict(_good(unit.encode()))[name]
            if opcode == BINARY:
                frames = [
                    bytes([each[0] + 1]) + each[1:] if each[0] & 15 == TEXT else each for each in frames
                ]
            for part in frames if split == 0 else [b"".join(frames)]:
                await send(ann, part, 1 if split == 1 else None)
                await asyncio.sleep(0)
            for _ in range(frames.count(_MIDST)):
                assert await ann.frame() == Frame(PONG, b"ping payload"), name
            assert await ann.reply(id, "rpc") == {"data": f"fragment é {name}"}, name


_BAD_FRAGMENTS = {
    "5.1 a ping in two": frame("a", PING, fin=False) + frame("b", CONT),
    "5.2 a pong in two": frame("a", PONG, fin=False) + frame("b", CONT),
    "5.9 a continuation of nothing": frame("a", CONT) + frame("Hello"),
    "5.12 not even the last one": frame("a", CONT, fin=False) + frame("Hello"),
    "5.15 behind a message of two": frame("{", fin=False) + frame("}", CONT) + frame("a", CONT, fin=False),
    "5.16 twice": (frame("a", CONT, fin=False) + frame("{}")) * 2,
    "5.18 a second beginning": frame("fragment1", fin=False) + frame("fragment2"),
    "a second beginning, binary": frame("fragment1", fin=False) + frame("fragment2", BINARY),
}


@pytest.mark.parametrize("split", [None, 1])
async def test_5_fragments_out_of_place(site: Site, split: int | None) -> None:
    await site.open()
    for name, said in _BAD_FRAGMENTS.items():
        ann = await site.client("ann")
        await send(ann, said, split)
        assert (await ann.closed()).code == 1002, name


# -- 6: UTF-8

_TEXT = "Hello-µ@ßöäüàá-UTF-8!! κόσμε 日本語 \U0001f600"
_LAST = "\x7f\x80߿ࠀ\uffff\U00010000\ud7ff\ue000�\U0010ffff"
_NONCHARACTERS = "".join(chr((plane << 16) + end) for plane in range(17) for end in (0xFFFE, 0xFFFF))

_NOT_UTF8 = {
    "6.3.1": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    "6.6.1": b"\xce",
    "6.6.3": b"\xce\xba\xe1",
    "6.6.4": b"\xce\xba\xe1\xbd",
    "6.8.1 five bytes": b"\xf8\x88\x80\x80\x80",
    "6.8.2 six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "6.10.2 five bytes, last": b"\xfb\xbf\xbf\xbf\xbf",
    "6.10.3 six bytes, last": b"\xfd\xbf\xbf\xbf\xbf\xbf",
    "6.11.5 beyond the last character": b"\xf4\x90\x80\x80",
    **{
        f"6.12 {data.hex()}": data
        for data in (b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80", b"\x80\xbf" * 3)
    },
    "6.12.8 every continuation": bytes(range(0x80, 0xC0)),
    **{f"6.13 lonely {first:02x}": bytes([first]) + b" " for first in range(0xC0, 0x100)},
    **{
        f"6.14 cut short {data.hex()}": data
        for data in (b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf")
    },
    **{
        f"6.16 too long {data.hex()}": data
        for data in (
            b"\xc0\xaf",
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xf8\x80\x80\x80\xaf",
            b"\xfc\x80\x80\x80\x80\xaf",
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xf0\x8f\xbf\xbf",
            b"\xc0\x80",
            b"\xe0\x80\x80",
        )
    },
    **{
        f"6.20 surrogate {data.hex()}": data
        for data in (
            b"\xed\xa0\x80",
            b"\xed\xad\xbf",
            b"\xed\xae\x80",
            b"\xed\xaf\xbf",
            b"\xed\xb0\x80",
            b"\xed\xbf\xbf",
            b"\xed\xa0\x80\xed\xb0\x80",
            b"\xed\xaf\xbf\xed\xbf\xbf",
        )
    },
}


@pytest.mark.parametrize("text", [_TEXT, _LAST, _NONCHARACTERS], ids=["words", "boundaries", "noncharacters"])
async def test_6_utf8_whole_and_cut_anywhere(site: Site, text: str) -> None:
    """6.2, 6.5, 6.7, 6.9, 6.22, 6.23: in one frame, in fragments that cut characters, byte by byte."""
    await site.open()
    ann = await site.client("ann")
    for size in (0, 1, 2, 3, 5):
        id, _ = ann.unit("rpc", method="echo", data="")
        unit = json.dumps({"id": id, "rpc": {"method": "echo", "data": text}}, ensure_ascii=False).encode()
        await ann.send(b"".join(fragments(pieces(unit, size or len(unit)))))
        assert await ann.reply(id, "rpc") == {"data": text}


@pytest.mark.parametrize("name", _NOT_UTF8)
async def test_6_what_is_not_utf8(site: Site, name: str) -> None:
    """Whole, and with every byte a fragment of its own: 1007 either way, at the latest when the message is whole."""
    await site.open()
    for said in ([_NOT_UTF8[name]], pieces(_NOT_UTF8[name], 1)):
        ann = await site.client("ann")
        await ann.send(b"".join(fragments(said)))
        assert (await ann.closed()).code == 1007


async def test_6_4_text_is_judged_at_the_latest_when_it_is_whole(site: Site) -> None:
    """Failing fast is allowed, not asked for: no host does, and all of them do in the end."""
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80", fin=False))
    await site.clock.settle()
    if not ann.speaks:
        await ann.send(frame(b"edited", CONT))
    assert (await ann.closed()).code == 1007


# -- 7: closing


@pytest.mark.parametrize("split", [None, 1])
async def test_7_1_what_follows_a_close_is_ignored(site: Site, split: int | None) -> None:
    await site.open()
    closing = frame(close_payload(1000), CLOSE)
    for behind in (b"", closing, _MIDST, frame("Hello"), frame("ragment", CONT), frame(b"*" * 70_000)):
        ann = await site.client("ann")
        await send(ann, closing + behind, split if len(behind) < 100 else None)
        closed = await ann.closed(answer=False)
        assert closed.code == 1000


async def test_7_1_5_a_close_in_the_middle_of_a_message(site: Site) -> None:
    """Autobahn wants it answered like any other; websockets, under uvicorn, calls it incomplete."""
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame("fragment1", fin=False) + frame(close_payload(1000), CLOSE) + frame("2", CONT))
    assert (await ann.closed(answer=False)).code == (1000 if site.host.can.ours else 1002)


async def test_7_1_6_a_large_message_and_a_close(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    _, unit = call(ann, size=256 * 1024)
    await ann.send(frame(unit) + frame(close_payload(1000), CLOSE) + _MIDST)
    assert (await ann.closed(answer=False)).code == 1000


_CLOSES = {
    "7.3.1 empty": (b"", 1005),
    "7.3.2 one byte": (b"a", 1002),
    "7.3.3 a code": (close_payload(1000), 1000),
    "7.3.4 a code and a reason": (close_payload(1000, "Hello World!"), 1000),
    "7.3.5 the longest reason": (close_payload(1000, "*" * 123), 1000),
    "7.3.6 too long a reason": (close_payload(1000, "*" * 124), 1002),
    "7.5.1 a reason that is not UTF-8": (
        close_payload(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"),
        1007,
    ),
    **{
        f"7.7 {code}": (close_payload(code), code)
        for code in (
            1000,
            1001,
            1002,
            1003,
            1007,
            1008,
            1009,
            1010,
            1011,
            1012,
            1013,
            1014,
            3000,
            3999,
            4000,
            4999,
        )
    },
    **{
        f"7.9 {code}": (close_payload(code, "why"), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("name", _CLOSES)
async def test_7_closes(site: Site, name: str) -> None:
    await site.open()
    payload, code = _CLOSES[name]
    ann = await site.client("ann")
    await ann.send(frame(payload, CLOSE))
    closed = await ann.closed(answer=False)
    assert (closed.code, closed.how) == (code, "eof")


# -- 9 and 10: large ones, and many fragments


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_9_and_10_large_messages_in_fragments(site: Site, opcode: int) -> None:
    """10.1.1 is 64 KiB in pieces of 1,300 bytes; a quarter of a megabyte in pieces of 64 bytes to 64 KiB is 9.3."""
    site.build(max_frame=256 * 1024)
    await site.open()
    ann = await site.client("ann")
    for size, piece in ((65536, 1300), (65536, 64), (256 * 1024, 256), (256 * 1024, 65536)):
        id, unit = call(ann, f"{size} {piece}", size=size)
        await ann.send(b"".join(fragments(pieces(unit.encode(), piece), opcode)))
        assert await ann.reply(id, "rpc") == {"data": f"{size} {piece}"}
