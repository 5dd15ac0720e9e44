"""Frames that are wrong, hostile, huge or endless: how the connection ends, by host (W3, RFC 6455).

Each is tried before and after authentication. Others are served meanwhile and nothing is left of it. What a host
lets through that our own server does not is in the tables too.
"""

from __future__ import annotations

import random
from typing import Final

import pytest

from rtkit.codes import VIOLATIONS
from tests.support.rawsocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, close_payload, frame
from tests.transport.conftest import Site, until

MAX_FRAME: Final = 64 * 1024
#: Bytes of a message that uvicorn takes into memory before it lets us judge it.
UVICORN_MAX: Final = 16 * 1024 * 1024

#: What was sent is waited on: more of it may still come.
OPEN: Final = 0


class Row:
    """What a client sends, and the code it is closed with; :data:`OPEN` when it is not.

    :param code: of our own server, and of every host that is not named.
    :param others: by the name of the host.
    """

    def __init__(self, said: bytes, code: int, **others: int) -> None:
        self.said = said
        self._code = code
        self._others = others

    def of(self, host: str) -> int:
        return self._others.get(host, self._code)


def _closing(payload: bytes) -> bytes:
    return frame(payload, CLOSE)


ROWS: Final = {
    # -- headers (5.2)
    "not masked": Row(frame("{}", mask=None), 1002),
    "an empty frame, not masked": Row(frame("", mask=None), 1002),
    "a ping, not masked": Row(frame("", PING, mask=None), 1002),
    **{f"reserved bits {rsv:03b}": Row(frame("{}", rsv=rsv), 1002) for rsv in range(1, 8)},
    "a reserved bit of a ping": Row(frame("", PING, rsv=4), 1002),
    **{f"opcode {code}": Row(frame("{}", code), 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    # -- lengths
    "2^62 bytes": Row(frame(b"", BINARY, length=2**62), 1009),
    "2^63 bytes, which no length may be": Row(frame(b"", BINARY, length=2**63), 1009),
    "2^64 - 1 bytes": Row(frame(b"", TEXT, length=2**64 - 1), 1009),
    "one byte too many": Row(frame(b" " * (MAX_FRAME + 1)), 1009),
    "the header of one byte too many": Row(frame(b"", length=MAX_FRAME + 1), 1009, uvicorn=OPEN),
    "a header beyond the server's own bound": Row(frame(b"", length=UVICORN_MAX + 1), 1009),
    "a fragment too many": Row(
        frame(b" " * 30_000, fin=False) + frame(b" " * 30_000, CONT, fin=False) + frame(b" " * 6_000, CONT),
        1009,
    ),
    "the header of a fragment too many": Row(
        frame(b" " * 60_000, fin=False) + frame(b"", CONT, fin=False, length=MAX_FRAME), 1009, uvicorn=OPEN
    ),
    "1,025 empty fragments": Row(frame(fin=False) + frame(opcode=CONT, fin=False) * 1024, 1009, uvicorn=OPEN),
    "20,000 fragments of a byte": Row(
        frame(" ", fin=False) + frame(" ", CONT, fin=False) * 19_999, 1009, uvicorn=OPEN
    ),
    # -- fragments (5.4)
    "a continuation of nothing": Row(frame("{}", CONT), 1002),
    "the beginning of a continuation of nothing": Row(frame("{}", CONT, fin=False), 1002),
    "a message within a message": Row(frame("{", fin=False) + frame("}"), 1002),
    "a binary message within one of text": Row(frame("{", fin=False) + frame("}", BINARY, fin=False), 1002),
    "a continuation behind the last": Row(frame("{", BINARY, fin=False) + frame("}", CONT) * 2, 1002),
    # -- control frames (5.5)
    "a ping in fragments": Row(frame("a", PING, fin=False) + frame("b", CONT), 1002),
    "a pong in fragments": Row(frame("a", PONG, fin=False), 1002),
    "a close in fragments": Row(frame(close_payload(1000), CLOSE, fin=False), 1002),
    "a ping of 126 bytes": Row(frame(b"x" * 126, PING), 1002),
    "a pong of 65536 bytes": Row(frame(b"x" * 65536, PONG), 1002),
    "a close of 126 bytes": Row(_closing(close_payload(1000, b"x" * 124)), 1002),
    # -- text that is none (8.1)
    **{
        f"text {data.hex(' ')}": Row(frame(data), 1007)
        for data in (
            b"\xff",
            b'"\xc3"',  # cut short
            b'"\xe2\x82"',
            b"\xc0\x80",  # longer than need be
            b"\xe0\x80\xaf",
            b"\xed\xa0\x80",  # half a surrogate pair
            b"\xf4\x90\x80\x80",  # beyond the last character
            b"\xf8\x88\x80\x80\x80",
            b"\x80",  # a continuation of nothing
        )
    },
    "text cut in a character, and not continued": Row(
        frame(b"\xe2\x82", fin=False) + frame(b"x", CONT), 1007
    ),
    "text that ends in half a character": Row(frame(b"{}", fin=False) + frame(b"\xc3", CONT), 1007),
    # -- close frames (7.4)
    "a close of one byte": Row(_closing(b"\x03"), 1002),
    **{
        f"a close with {code}": Row(_closing(close_payload(code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "a close with a reason that is no text": Row(_closing(close_payload(1000, b"\xff\xfe")), 1007),
    "a close within a message": Row(
        frame("{", fin=False) + _closing(close_payload(1000)), 1000, uvicorn=1002
    ),
    # -- another protocol altogether
    "HTTP": Row(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "a TLS hello": Row(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"\x5a" * 32, 1002),
    "zeros": Row(b"\0" * 64, 1002),
}


@pytest.mark.parametrize("name", ROWS)
async def test_how_it_ends(site: Site, name: str) -> None:
    row = ROWS[name]
    site.build(max_frame=MAX_FRAME)
    await site.open()
    neighbour = await site.client("neighbour")
    code = row.of(site.host.name)
    for authenticated in (True, False):
        peer = await site.peer()
        if authenticated:
            await peer.connect_as("ann")
        await peer.send(row.said)
        if code == OPEN:
            for _ in range(2):
                assert await neighbour.echo("here") == "here"
                await site.clock.settle()
            assert not peer.speaks
            peer.close()
        else:
            closed = await peer.closed()
            assert (closed.code, closed.how) == (code, "eof")
    await until(lambda: site.open_connections == 1)
    assert await neighbour.echo("here") == "here"
    if code in VIOLATIONS:
        assert site.hub.statistics().counted.closes == {str(code): 2}, "M1: whoever has noticed"


async def test_what_is_within_the_bounds_is_taken(site: Site) -> None:
    """The largest message; and the same in as many fragments as may be, the last ones empty."""
    site.build(max_frame=MAX_FRAME)
    await site.open()
    ann = await site.client("ann")
    overhead = len(ann.unit("rpc", method="echo", data="")[1])
    for fragments in (1, 2, 1024):
        id, unit = ann.unit("rpc", method="echo", data="x" * (MAX_FRAME - overhead - 1))
        assert len(unit) in (MAX_FRAME - 1, MAX_FRAME)
        unit = unit.ljust(MAX_FRAME)
        size = -(-MAX_FRAME // max(1, fragments // 2))
        pieces = [unit[at : at + size] for at in range(0, MAX_FRAME, size)]
        pieces += [""] * (fragments - len(pieces))
        await ann.send(
            b"".join(
                frame(piece, CONT if n else TEXT, fin=n == fragments - 1) for n, piece in enumerate(pieces)
            )
        )
        assert len((await ann.reply(id, "rpc"))["data"]) == MAX_FRAME - overhead - 1


@pytest.mark.parametrize("width", [2, 8])
async def test_a_length_in_more_bytes_than_it_needs(site: Site, width: int) -> None:
    """The RFC forbids to send it; refusing protects nobody, and no host does."""
    await site.open()
    ann = await site.client("ann")
    id, unit = ann.unit("rpc", method="echo", data="here")
    await ann.send(frame(unit, width=2 if width == 2 else 8))
    assert await ann.reply(id, "rpc") == {"data": "here"}


async def test_binary_that_is_no_text(site: Site) -> None:
    """A binary frame may hold any bytes; as a unit they are a bad one, and its sender is told so by its id."""
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b'{"id":7,"rpc":{"method":"echo","data":"\xff"}}', BINARY))
    assert (await ann.reply(7, "rpc"))["error"]["code"] == 107
    await ann.send(frame(b"\xff\x00\xfe", BINARY))
    closed = await ann.closed()
    assert (closed.code, closed.reason) == (3501, "bad request: not JSON")


@pytest.mark.parametrize("seed", range(8))
async def test_any_bytes(site: Site, seed: int) -> None:
    """Whatever is sent after the handshake, only who sent it is concerned."""
    await site.open()
    chance = random.Random(seed)
    neighbour = await site.client("neighbour", "log:a")
    for _ in range(6):
        peer = await site.peer()
        if chance.random() < 0.5:
            await peer.connect_as("ann")
        said = bytearray(b"".join(frame(peer.unit("publish", channel="log:a", data=n)[1]) for n in range(3)))
        for _ in range(chance.randrange(1, 8)):
            said[chance.randrange(len(said))] = chance.randrange(256)
        if chance.random() < 0.5:
            said += chance.randbytes(chance.randrange(200))
        await peer.send(bytes(said))
        assert await neighbour.echo("here") == "here"
        peer.send_eof()
        ended = await peer.closed(answer=False)
        assert ended.code in (1002, 1005, 1006, 1007, 1009, 3501, *range(1000, 1015), *range(3000, 5000))
    await until(lambda: site.open_connections == 1)


# -- floods


async def test_a_flood_of_pings_from_a_peer_that_reads_nothing(site: Site) -> None:
    """Our own server closes after a burst of 100. uvicorn answers each into its buffer, without any bound."""
    served = await site.open()
    neighbour = await site.client("neighbour")
    peer = await site.client("ann", receive_buffer=4096)
    pings = frame(b"x" * 125, PING) * 1000
    for _ in range(30):
        peer.send_nowait(pings)
        await site.clock.settle()
    assert await neighbour.echo("here") == "here"
    if site.host.can.ours:
        assert served.buffered < 64 * 1024
        assert (await peer.closed()).code == 1008
    else:
        assert site.open_connections == 2
    peer.reset()
    await until(lambda: site.open_connections == 1)


async def test_a_ping_now_and_then_is_no_flood(site: Site) -> None:
    site.build(heartbeat=None)
    await site.open()
    ann = await site.client("ann")
    for _ in range(300):
        await ann.send(frame(b"?", PING))
        assert (await ann.frame()).opcode == PONG
        await site.clock.advance(0.2)


async def test_a_flood_of_pongs_nobody_asked_for(site: Site) -> None:
    """Harmless on any host, and beyond a rate our own server does not want them."""
    await site.open()
    ann = await site.client("ann")
    await ann.send(frame(b"x", PONG) * 50)
    assert await ann.echo("here") == "here"
    await ann.send(frame(b"x", PONG) * 1000)
    if site.host.can.ours:
        assert (await ann.closed()).code == 1008
    else:
        assert await ann.echo("here") == "here"


async def test_a_flood_of_units_from_a_peer_that_reads_nothing(site: Site) -> None:
    """What it is told fits its outbox; then it is closed as a slow consumer (D1), and others never felt it."""
    site.build(outbox=600 * 1024 + 64 * 1024, reserve=64 * 1024)
    served = await site.open()
    neighbour = await site.client("neighbour")
    peer = await site.client("ann", receive_buffer=4096)
    for _ in range(3000):
        _, unit = peer.unit("rpc", method="echo", data="x" * 8000)
        said = frame(unit)
        if peer.send_nowait(said) < len(said):
            break
        await site.clock.settle()
        assert served.buffered < 2 * 1024 * 1024
        if site.hub.statistics().sessions == 1:
            break
    assert await neighbour.echo("here") == "here"
    assert site.hub.statistics().sessions == 1, "it is still there"
    totals = site.hub.statistics().totals
    assert totals is not None
    assert totals["closes{3008}"] == 1


async def test_thousands_of_commands_in_one_go(site: Site) -> None:
    """C2: 64 wait, then the hub stops reading; all are answered in order, and nobody else waits for it."""
    await site.open()
    neighbour, ann = await site.client("neighbour"), await site.client("ann")
    units = [ann.unit("rpc", method="echo", data=n) for n in range(2000)]
    await ann.send(b"".join(frame(unit) for _, unit in units))
    assert await neighbour.echo("here") == "here"
    for n, (id, _) in enumerate(units):
        assert await ann.reply(id, "rpc") == {"data": n}


async def test_a_violation_behind_a_command(site: Site) -> None:
    """What an end in the same packet overtakes is not carried out: its sender cannot know, and has no answer."""
    await site.open()
    bob, ann = await site.client("bob", "log:a"), await site.client("ann")
    _, unit = ann.unit("publish", channel="log:a", data="before")
    await ann.send(frame(unit) + frame("{}", rsv=7))
    assert (await ann.closed()).code == 1002
    await bob.call("publish", channel="log:a", data="after")
    assert (await bob.call("history", channel="log:a", limit=0))["offset"] == 1
