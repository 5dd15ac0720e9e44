"""The codec at the edge: what it refuses, what it says about it, and in what time (W2, W3, W4)."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.errors import BadUnit
from rtkit.wire import (
    MAX_DEPTH,
    BadCommand,
    Command,
    Reply,
    check_room_name,
    decode_command,
    decode_reply,
    dumps,
    loads,
    recode,
    split,
)

ANY = msgspec.json.Decoder(Any)


def why(data: bytes) -> str:
    with pytest.raises(BadUnit) as caught:
        recode(data)
    assert caught.value.__cause__ is None
    return caught.value.message


def test_what_is_said_about_poison() -> None:
    """W3: the peer's fault in plain words, never ours."""
    assert why(b"") == why(b"{") == why(b'"\\ud800"') == why(b"NaN") == why(b"[1,]") == "not JSON"
    assert why(b'"\xff"') == why(b'"\xed\xa0\x80"') == "not UTF-8"
    assert why(b"1e999") == "Number out of range"
    assert why(b"1" * 5000) == "Integer value out of range"
    assert why(b'{"a":[1e999]}') == "Number out of range - at `$[...][0]`"


@pytest.mark.parametrize(
    ("data", "canonical"),
    [
        (b' [ 1 , {"b" : 2 , "a" : 1 } ] ', b'[1,{"b":2,"a":1}]'),
        (b'"\\u00e9\\/\\n"', '"é/\\n"'.encode()),
        (b"1.50", b"1.5"),
        (b"-0.0", b"-0.0"),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b"\n\tnull\r\n", b"null"),
        (b'"\\ud83d\\ude00"', '"\U0001f600"'.encode()),
        (b"18446744073709551616", b"18446744073709551616"),
    ],
)
def test_recode_is_canonical_and_in_one_line(data: bytes, canonical: bytes) -> None:
    """W3: of a repeated name the last is kept; a unit is a line, so no value may bring one."""
    assert recode(data) == canonical
    assert recode(canonical) == canonical
    assert b"\n" not in canonical


# -- depth --------------------------------------------------------------------------------------------


def nested(opening: bytes, inner: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + inner + closing * depth


@pytest.mark.parametrize(
    ("opening", "inner", "closing"),
    [(b"[", b"", b"]"), (b"[", b"1", b"]"), (b'{"a":', b"1", b"}"), (b"[1,[],", b"{}", b"]")],
)
def test_depth_is_counted_exactly(opening: bytes, inner: bytes, closing: bytes) -> None:
    """W3: 128 levels pass, 129 do not; receivers' parsers recurse."""
    extra = 1 if inner == b"{}" else 0
    fine = nested(opening, inner, closing, MAX_DEPTH - extra)
    assert json.loads(recode(fine)) == json.loads(fine)
    assert why(nested(opening, inner, closing, MAX_DEPTH + 1 - extra)) == "nested deeper than 128 levels"


def test_breadth_is_not_depth_and_strings_are_not_brackets() -> None:
    """W3: whatever stands in a string, escaped or not, counts for nothing, up or down."""
    assert recode(b"[" + b"[]," * 5000 + b"{}]")
    assert recode(json.dumps(["[" * 500, '\\"{[' * 500, '"' * 500]).encode())
    hidden = nested(b'["]",', b"1", b"]", MAX_DEPTH + 1)
    assert why(hidden) == "nested deeper than 128 levels"
    assert why(nested(b'{"}":', b"1", b"}", MAX_DEPTH + 1)) == "nested deeper than 128 levels"


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """A value about as deep as it may be, with brackets and quotes in its strings."""
    value: Any = draw(st.sampled_from([1, "[[", '"]', "\\", []]))
    others = draw(st.lists(st.sampled_from(["]", "}", '{"', '\\"[', 0]), min_size=4, max_size=8))
    for n in range(draw(st.integers(MAX_DEPTH - 3, MAX_DEPTH + 3))):
        other = others[n % len(others)]
        value = {other: value} if isinstance(other, str) and n % 3 else [other, value, [], {}]
    return value


@given(trees())
def test_depth_agrees_with_counting_it(value: Any) -> None:
    """W3."""

    def depth(item: Any) -> int:
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    data = json.dumps(value).encode()
    if depth(value) <= MAX_DEPTH:
        assert json.loads(recode(data)) == value
    else:
        assert why(data) == "nested deeper than 128 levels"


HARD = {
    "a string that never ends": b'"' + b'\\"' * 250_000 + b"[" * 200,
    "ending in a backslash": b"[" * 100 + b'"' + b'\\"' * 250_000 + b"\\",
    "backslashes": b'"' + b"\\" * 500_000 + b"[" * 200,
    "quotes": b'"' * 500_000 + b"{" * 200,
    "deep and closed": (b"[" * 128 + b"]" * 128) * 2000,
    "wide": b"[" + b"[]," * 160_000 + b"[]]",
    "openings": b"[" * 500_000,
    "closings": b"]" * 500_000 + b"[" * 200,
    "many strings": b'"a",' * 120_000 + b"[" * 200,
}


@pytest.mark.parametrize("data", HARD.values(), ids=HARD)
def test_no_unit_takes_long_to_refuse(data: bytes) -> None:
    """W3: half a megabyte, before anybody has authenticated; quadratic time would be hours, this is hundredths."""
    begin = time.process_time()
    for unit in (data, b'{"id":1,"publish":{"channel":"c","data":' + data):
        with pytest.raises(BadCommand):
            decode_command(unit)
    try:
        loads(data, ANY)
    except BadUnit:
        pass
    assert time.process_time() - begin < 3


# -- commands and replies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "id", "message"),
    [
        (b'{"id":5,"subscribe":{}}', 5, "Object missing required field `channel` - at `$.subscribe`"),
        (
            b'{"id":5,"connect":{"subs":{"a":1}}}',
            5,
            "Expected `object`, got `int` - at `$.connect.subs[...]`",
        ),
        (b'{"subscribe":{}}', 0, "Object missing required field `channel` - at `$.subscribe`"),
        (b'{"id":9007199254740993,"ping":{}}', 0, "Expected `int` <= 9007199254740991 - at `$.id`"),
        (b"[" * 1000, 0, "Expected `object`, got `array`"),
        (b'{"x":' + b"[" * 5000, 0, "nested deeper than 128 levels"),
        (b"\x00", 0, "not JSON"),
    ],
)
def test_a_bad_command_names_its_id_and_its_fault(unit: bytes, id: int, message: str) -> None:
    """W3, protocol 13."""
    with pytest.raises(BadCommand) as caught:
        decode_command(unit)
    assert (caught.value.id, caught.value.message) == (id, message)


def test_a_fault_is_quoted_in_brief() -> None:
    """W3: the peer's own text comes back to it, but not a megabyte of it; the path stays."""

    class Tagged(msgspec.Struct, tag="x"):
        pass

    with pytest.raises(BadUnit) as caught:
        loads(b'{"a":{"type":"%b"}}' % (b"z" * 100_000), msgspec.json.Decoder(dict[str, Tagged]))
    assert len(caught.value.message) < 250
    assert caught.value.message.startswith("Invalid value 'zzz")
    assert caught.value.message.endswith(" - at `$[...].type`")


@given(st.binary(max_size=100))
def test_no_bytes_crash_the_decoders(data: bytes) -> None:
    """W3."""
    try:
        assert isinstance(decode_command(data), Command)
    except BadCommand as error:
        assert 0 <= error.id < 2**53
    try:
        assert isinstance(decode_reply(data), Reply)
    except BadUnit as error:
        assert error.message
    for unit in split(data):
        assert b"\n" not in unit


@given(st.lists(st.sampled_from([b"{}", b'{"id":1,"ping":{}}', b"", b" ", b"\t"])))
def test_a_frame_is_its_lines(lines: list[bytes]) -> None:
    """Protocol 1.1."""
    frame = b"\n".join(lines)
    kept = [line for line in lines if line.strip()]
    if len(lines) > 1:
        assert split(frame) == kept


def test_what_cannot_be_encoded() -> None:
    """W3: a ValueError or TypeError, never anything else."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested too deeply, or contains itself"):
        dumps(loop)
    with pytest.raises(ValueError, match="lone surrogate, which UTF-8 cannot hold"):
        dumps("\ud800")
    with pytest.raises(TypeError):
        dumps(object())
    assert dumps(b"\x00\xff") == b'"AP8="'


# -- room names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "chat:lobby", "x" * 255, "é" * 127, " ", "{}", "a/b?c#d", "\U0001f600"]
)
def test_room_names(name: str) -> None:
    """W4."""
    check_room_name(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 256, "é" * 128, "a\x00", "\n", "a\x1f", "\x7f", "\ud800", "a\udfffb"]
)
def test_what_is_no_room_name(name: str) -> None:
    """W4: 1 to 255 bytes of UTF-8 without control characters."""
    with pytest.raises(BadUnit, match="a channel is 1 to 255 bytes of UTF-8 without control characters"):
        check_room_name(name)
