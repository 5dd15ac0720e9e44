"""permessage-deflate: what is agreed to, that messages stand alone, and what a hostile one can do (T9)."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.headers import parse_extension

from rtkit.hosting import frames
from rtkit.hosting.deflate import WORTH_IT, InflatesTooFar, deflated, inflated, negotiate
from rtkit.hosting.frames import BINARY, PING, TEXT, Assembler, Violation
from tests.unit.hosting.test_frames import masked

TAIL = b"\x00\x00\xff\xff"
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LIMIT = 1000


def compressed(payload: bytes, *, window: int = 15, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """A message as some client would compress it."""
    made = zlib.compressobj(9, zlib.DEFLATED, -window)
    return (made.compress(payload) + made.flush(flush)).removesuffix(TAIL)


def bomb(megabytes: int) -> bytes:
    """What inflates to so many megabytes of zeros: a thousandth of that."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = made.compress(bytes(2**20)) + made.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes


def said(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 4) -> bytes:
    """A frame of a client, with these reserved bits; the first is that of compression."""
    data = bytearray(masked(opcode, payload, fin=fin))
    data[0] |= rsv << 4
    return bytes(data)


def read(
    stream: bytes, *, inflate: bool = True, limit: int = LIMIT
) -> tuple[list[tuple[int, bytes]], int | None]:
    assembler, events = Assembler(limit, inflate=inflate), list[tuple[int, bytes]]()
    assembler.feed(stream)
    try:
        while (event := assembler.next()) is not None:
            events.append(event)
    except Violation as violation:
        return events, violation.code
    return events, None


# -- what is agreed to ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),  # what browsers offer
        ("permessage-deflate; client_max_window_bits=10", ANSWER),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_max_window_bits=15", f"{ANSWER}; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=12", f"{ANSWER}; server_max_window_bits=12"),
        ("x-unknown, permessage-deflate", ANSWER),
        # An offer that will not do, and one that will.
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", ANSWER),
        ("permessage-deflate; server_max_window_bits=11", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        # What the RFC wants declined (7.1, 7.1.2).
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=015", None),
        ("permessage-deflate; server_max_window_bits=-15", None),
        ("permessage-deflate; server_max_window_bits=99999999999999999999", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover=true", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-bzip2", None),
        ("", None),
        (";", None),
        ("permessage-deflate; =", None),
        ("permessage-deflate\x00", None),
    ],
)
def test_what_is_answered(offered: str, answer: str | None) -> None:
    assert negotiate(offered) == answer


@pytest.mark.parametrize("bits", [None, 12, 15])
def test_a_client_of_websockets_takes_the_answer(bits: int | None) -> None:
    """And reads what we send, with the window that it was told."""
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=bits, client_max_window_bits=True)
    offer = "; ".join(
        ["permessage-deflate", *(k if v is None else f"{k}={v}" for k, v in factory.get_request_params())]
    )
    answer = negotiate(offer)
    assert answer is not None
    ((_, parameters),) = parse_extension(answer)
    client = factory.process_response_params(parameters, [])
    assert isinstance(client, PerMessageDeflate)
    assert client.remote_no_context_takeover and client.local_no_context_takeover
    for text in (b"hello " * 100, b'{"push":{}}' * 5000):
        made = frames.deflated_frame(TEXT, text)
        payload = made[2:] if made[1] < 126 else made[4:]
        heard = client.decode(Frame(Opcode.TEXT, payload, rsv1=True))
        assert bytes(heard.data) == text


@given(st.text(max_size=300))
@settings(max_examples=40)
def test_any_header_gets_an_answer_or_none(offered: str) -> None:
    assert negotiate(offered) in (None, ANSWER, f"{ANSWER}; server_max_window_bits=12")


# -- what is written -----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=5))
@settings(max_examples=40)
def test_each_message_stands_alone(messages: list[bytes]) -> None:
    """Whoever comes late, or hears only every second one, reads it: which is why one form is good for all."""
    for message in messages:
        assert zlib.decompressobj(-12).decompress(deflated(message) + TAIL) == message
        assert inflated(deflated(message), len(message)) == message


def test_what_is_small_or_does_not_shrink_goes_as_it_is() -> None:
    small, noise = b"a" * (WORTH_IT - 1), bytes(range(256))
    assert frames.deflated_frame(TEXT, small) == frames.frame(TEXT, small)
    assert frames.deflated_frame(BINARY, noise) == frames.frame(BINARY, noise)
    made = frames.deflated_text_frame([b"a" * WORTH_IT, b"b"])
    assert made[0] == 0x80 | 0x40 | TEXT
    assert inflated(made[2:], LIMIT) == b"a" * WORTH_IT + b"\nb"


# -- what is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", range(9, 16))
def test_any_window_of_a_client_is_read(window: int) -> None:
    payload = b'{"id":1,"rpc":{"method":"echo"}}' * 20
    assert read(said(TEXT, compressed(payload, window=window))) == ([(TEXT, payload)], None)


def test_a_last_block_that_says_so() -> None:
    """The RFC's own example (7.2.3.4)."""
    assert inflated(bytes.fromhex("f348cdc9c9070000"), LIMIT) == b"Hello"
    assert inflated(compressed(b"Hello", flush=zlib.Z_FINISH), LIMIT) == b"Hello"


@pytest.mark.parametrize("more", [b"more", compressed(b"more"), b"\x03\x00" * 1000])
def test_nothing_may_follow_the_last_block(more: bytes) -> None:
    """Two bytes of a block each that is the last would else cost a decompressor each."""
    with pytest.raises(ValueError, match="follows"):
        inflated(compressed(b"Hello", flush=zlib.Z_FINISH) + more, LIMIT)


def test_compressed_and_plain_messages_mix() -> None:
    stream = said(TEXT, compressed(b"one")) + masked(TEXT, b"two") + said(BINARY, compressed(b"\xff"))
    assert read(stream) == ([(TEXT, b"one"), (TEXT, b"two"), (BINARY, b"\xff")], None)


def test_fragments_are_inflated_together() -> None:
    data = compressed(b"hello " * 20)
    stream = said(TEXT, data[:3], fin=False) + masked(PING, b"?") + masked(0, data[3:])
    assert read(stream + masked(TEXT, b"then")) == (
        [(PING, b"?"), (TEXT, b"hello " * 20), (TEXT, b"then")],
        None,
    )


def test_an_empty_message() -> None:
    assert read(said(TEXT, b"\x00")) == ([(TEXT, b"")], None)
    assert read(said(TEXT, b"")) == ([(TEXT, b"")], None)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (said(TEXT, compressed(b"x"), rsv=2), 1002),
        (said(TEXT, compressed(b"x"), rsv=6), 1002),
        (said(PING, compressed(b"x")), 1002),
        (said(8, compressed(b"x")), 1002),
        (said(TEXT, b"a", fin=False, rsv=0) + said(0, b"b"), 1002),
        (said(TEXT, compressed(b"a"), fin=False) + said(0, b""), 1002),
        (said(TEXT, b"not compressed at all"), 1007),
        (said(TEXT, compressed(b"\xff\xfe")), 1007),
        (said(TEXT, compressed(bytes(LIMIT + 1))), 1009),
    ],
)
def test_what_is_refused(stream: bytes, code: int) -> None:
    assert read(stream) == ([], code)


def test_who_has_not_agreed_may_not_compress() -> None:
    assert read(said(TEXT, compressed(b"x")), inflate=False) == ([], 1002)


# -- bombs ---------------------------------------------------------------------------------------------


def test_a_bomb_is_not_inflated() -> None:
    """260 KB that would be 256 MiB take as much memory as a message may have, and no more."""
    data, limit = bomb(256), 2**20
    assert len(data) < 300_000
    stream = said(TEXT, data)
    tracemalloc.start()
    try:
        assert read(stream, limit=limit) == ([], 1009)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The payload twice (unmasked, with its tail), and what was inflated until the bound, as it grew.
    assert peak < 2 * len(data) + 2.5 * limit


def test_what_just_fits_is_inflated() -> None:
    data = compressed(bytes(2**20))
    assert inflated(data, 2**20) == bytes(2**20)
    with pytest.raises(InflatesTooFar):
        inflated(data, 2**20 - 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert len(inflated(data, LIMIT)) <= LIMIT
    except (ValueError, InflatesTooFar):
        pass
