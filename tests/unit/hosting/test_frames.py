"""Frames: what is written, what is read however the network cuts it, and what is refused as early as can be."""

from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from rtkit.hosting import frames
from rtkit.hosting.frames import BINARY, CLOSE, MAX_FRAGMENTS, PING, PONG, TEXT, Assembler, Violation

LIMIT = 1000
Event = tuple[int, bytes]


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, key: bytes = b"\x01\x02\x03\x04") -> bytes:
    """A frame as a client sends it."""
    size = len(payload)
    if size < 126:
        head = bytes((fin << 7 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((fin << 7 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((fin << 7 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def read(pieces: list[bytes], limit: int = LIMIT) -> tuple[list[Event], tuple[int, str] | None]:
    """All events of a stream, and how it ended if it was refused."""
    assembler, events = Assembler(limit), list[Event]()
    try:
        for piece in pieces:
            assembler.feed(piece)
            while (event := assembler.next()) is not None:
                events.append(event)
    except Violation as violation:
        return events, (violation.code, violation.reason)
    return events, None


# -- writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_what_is_written_is_what_websockets_writes(opcode: int, size: int) -> None:
    payload = b"x" * size
    assert frames.frame(opcode, payload) == Frame(Opcode(opcode), payload).serialize(mask=False)


def test_units_become_one_text_frame() -> None:
    assert frames.text_frame([b"{}", b'{"a":1}']) == b'\x81\x0a{}\n{"a":1}'


def test_a_long_reason_is_cut_at_a_character() -> None:
    data = frames.close_frame(3000, "é" * 100)
    assert len(data) == 2 + 2 + 122
    assert frames.parse_close(data[2:]) == (3000, "é" * 61)
    assert frames.close_frame(1000, "\ud800") == b"\x88\x03\x03\xe8?"


# -- reading -------------------------------------------------------------------------------------------

GOOD: list[tuple[list[bytes], list[Event]]] = [
    ([masked(TEXT, b"hello")], [(TEXT, b"hello")]),
    ([masked(BINARY, b"\xff\x00")], [(BINARY, b"\xff\x00")]),
    ([masked(TEXT)], [(TEXT, b"")]),
    ([masked(TEXT, b"x" * 125), masked(TEXT, b"x" * 126)], [(TEXT, b"x" * 125), (TEXT, b"x" * 126)]),
    ([masked(TEXT, b"x" * LIMIT)], [(TEXT, b"x" * LIMIT)]),
    ([masked(PING, b"a"), masked(PONG)], [(PING, b"a"), (PONG, b"")]),
    ([masked(PING, b"x" * 125)], [(PING, b"x" * 125)]),
    ([masked(CLOSE, b"\x03\xe8bye")], [(CLOSE, b"\x03\xe8bye")]),
    ([masked(TEXT, b"a", fin=False), masked(0, b"b", fin=False), masked(0, b"c")], [(TEXT, b"abc")]),
    ([masked(BINARY, fin=False), masked(0, fin=False), masked(0)], [(BINARY, b"")]),
    # a character cut by fragments
    ([masked(TEXT, b"\xc3", fin=False), masked(0, b"\xa9")], [(TEXT, "é".encode())]),
    # control frames between fragments; one larger than what is left for the message
    (
        [
            masked(TEXT, b"x" * 900, fin=False),
            masked(PING, b"p" * 125),
            masked(0, b"y" * 100),
            masked(TEXT, b"z"),
        ],
        [(PING, b"p" * 125), (TEXT, b"x" * 900 + b"y" * 100), (TEXT, b"z")],
    ),
    # more bytes for the length than it needs
    ([b"\x81\xfe\x00\x01" + b"\0\0\0\0" + b"a"], [(TEXT, b"a")]),
    ([b"\x81\xff" + (1).to_bytes(8, "big") + b"\0\0\0\0" + b"a"], [(TEXT, b"a")]),
    (
        [masked(TEXT, b"", fin=False), *[masked(0, fin=False)] * (MAX_FRAGMENTS - 2), masked(0, b"e")],
        [(TEXT, b"e")],
    ),
]


@pytest.mark.parametrize(("stream", "events"), GOOD)
def test_what_is_read(stream: list[bytes], events: list[Event]) -> None:
    assert read([b"".join(stream)]) == (events, None)
    assert read(stream) == (events, None)


#: What is refused, with which code, and after how many bytes at the latest.
BAD: list[tuple[bytes, int, int | None]] = [
    (b"\x81\x05hello", 1002, 2),  # not masked
    (masked(3), 1002, 2),
    (masked(7), 1002, 2),
    (masked(11), 1002, 2),
    (masked(15), 1002, 2),
    (bytes((0xC1,)) + masked(TEXT, b"abc")[1:], 1002, 2),  # RSV1, without an extension
    (bytes((0xA1,)) + masked(TEXT, b"abc")[1:], 1002, 2),
    (bytes((0x91,)) + masked(TEXT, b"abc")[1:], 1002, 2),
    (bytes((0xC9,)) + masked(PING)[1:], 1002, 2),
    (masked(PING, fin=False), 1002, 2),
    (masked(CLOSE, fin=False), 1002, 2),
    (masked(PING, b"x" * 126), 1002, 2),
    (masked(CLOSE, b"x" * 126), 1002, 2),
    (masked(0, b"a"), 1002, 2),
    (masked(0, b"a", fin=False), 1002, 2),
    (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002, 7 + 2),
    (masked(TEXT, b"a", fin=False) + masked(BINARY, b"b"), 1002, 7 + 2),
    (masked(TEXT, b"\xff"), 1007, None),
    (masked(TEXT, b"\xed\xa0\x80"), 1007, None),  # a lone surrogate
    (masked(TEXT, b"\xc3", fin=False) + masked(0), 1007, None),
    (masked(TEXT, b"x" * (LIMIT + 1)), 1009, 4),
    (b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009, 10),
    (b"\x81\xff" + (2**64 - 1).to_bytes(8, "big"), 1009, 10),
    (masked(TEXT, b"x" * 600, fin=False) + masked(0, b"x" * 401), 1009, 608 + 4),
    (masked(TEXT, fin=False) + masked(0, fin=False) * MAX_FRAGMENTS, 1009, 6 * (MAX_FRAGMENTS + 1)),
]


@pytest.mark.parametrize(("stream", "code", "at"), BAD)
def test_what_is_refused_and_when(stream: bytes, code: int, at: int | None) -> None:
    events, end = read([stream])
    assert events == []
    assert end is not None
    assert end[0] == code
    assert end[1].isascii()
    needed = len(stream) if at is None else at
    assert read([stream[:needed]])[1] == end
    assert read([stream[: needed - 1]])[1] is None


def test_what_came_before_is_read_first() -> None:
    events, end = read([masked(TEXT, b"a") + masked(PING) + masked(3)])
    assert events == [(TEXT, b"a"), (PING, b"")]
    assert end is not None


# -- cuts ----------------------------------------------------------------------------------------------


def frames_of_clients() -> st.SearchStrategy[bytes]:
    key = st.binary(min_size=4, max_size=4)
    data = st.builds(
        lambda op, payload, fin, key: masked(op, payload, fin=fin, key=key),
        st.sampled_from([0, 0, TEXT, BINARY]),
        st.binary(max_size=300) | st.text(max_size=50).map(str.encode),
        st.booleans(),
        key,
    )
    control = st.builds(
        lambda op, payload, key: masked(op, payload, key=key),
        st.sampled_from([PING, PONG, CLOSE]),
        st.binary(max_size=125),
        key,
    )
    return data | control


@given(
    st.lists(frames_of_clients(), max_size=8).map(b"".join) | st.binary(max_size=200),
    st.lists(st.integers(1, 40), max_size=60),
)
def test_any_cut_of_a_stream_yields_the_same(stream: bytes, cuts: list[int]) -> None:
    pieces, rest = list[bytes](), stream
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    assert read([piece for piece in pieces if piece]) == read([stream])
    assert read([stream[i : i + 1] for i in range(len(stream))]) == read([stream])


def reference(stream: bytes, limit: int) -> list[Event]:
    """What websockets' parser makes of the frames of a stream, up to its first complaint, put together."""
    reader = StreamReader()
    reader.feed_data(stream)
    events, message, kind = list[Event](), b"", 0
    while True:
        try:
            next(Frame.parse(reader.read_exact, mask=True, max_size=limit))
            return events  # it wants more
        except StopIteration as done:
            frame = done.value
        except Exception:
            return events
        if frame.opcode >= CLOSE:
            events.append((int(frame.opcode), bytes(frame.data)))
            continue
        if bool(frame.opcode) == bool(kind):
            return events
        kind, message = kind or int(frame.opcode), message + bytes(frame.data)
        if len(message) > limit:
            return events
        if frame.fin:
            if kind == TEXT:
                try:
                    message.decode()
                except UnicodeDecodeError:
                    return events
            events.append((kind, message))
            message, kind = b"", 0


@given(st.lists(frames_of_clients(), max_size=8).map(b"".join) | st.binary(max_size=200))
def test_websockets_reads_the_same(stream: bytes) -> None:
    ours, _ = read([stream])
    assert ours == reference(stream, LIMIT)


# -- memory and time -----------------------------------------------------------------------------------


def test_it_is_idle_between_messages_and_only_then() -> None:
    assembler = Assembler(LIMIT)
    assert assembler.idle
    stream = masked(TEXT, b"ab", fin=False) + masked(0, b"c")
    for i, byte in enumerate(stream):
        assembler.feed(bytes((byte,)))
        done = assembler.next() is not None
        assert done == (i == len(stream) - 1)
        assert assembler.idle == done


def test_nothing_is_stored_for_what_is_refused() -> None:
    assembler = Assembler(2**63)
    tracemalloc.start()
    try:
        assembler.feed(b"\x81\xff" + (2**62).to_bytes(8, "big"))
        assert assembler.next() is None
        assert tracemalloc.get_traced_memory()[1] < 5000
    finally:
        tracemalloc.stop()


def test_a_megabyte_in_single_bytes_takes_linear_time() -> None:
    stream = masked(BINARY, os.urandom(200_000), key=b"\0\0\0\0")
    assembler, event = Assembler(2**20), None
    for i in range(len(stream)):
        assert event is None
        assembler.feed(stream[i : i + 1])
        event = assembler.next()
    assert event == (BINARY, stream[-200_000:])


def test_many_small_frames_at_once_are_not_copied_again_and_again() -> None:
    count = 40_000
    assembler = Assembler(LIMIT)
    assembler.feed(masked(PING) * count + b"\x89")
    assert sum(1 for _ in iter(assembler.next, None)) == count
    assembler.feed(masked(PING)[1:])
    assert assembler.next() == (PING, b"")
    assert assembler.idle


# -- close frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1014, 3000, 4999])
def test_codes_that_may_be_sent(code: int) -> None:
    assert frames.parse_close(code.to_bytes(2, "big") + "é".encode()) == (code, "é")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_codes_that_may_not(code: int) -> None:
    with pytest.raises(Violation) as caught:
        frames.parse_close(code.to_bytes(2, "big"))
    assert caught.value.code == 1002


def test_other_close_frames() -> None:
    assert frames.parse_close(b"") == (1005, "")
    with pytest.raises(Violation) as caught:
        frames.parse_close(b"\x03")
    assert caught.value.code == 1002
    with pytest.raises(Violation) as caught:
        frames.parse_close(b"\x03\xe8\xff")
    assert caught.value.code == 1007
