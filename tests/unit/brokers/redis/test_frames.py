"""What travels is told from what somebody else published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.brokers.redis.frames import Foreign, pack, unpack
from rtkit.position import Position


@given(st.binary())
def test_a_payload_comes_back_as_it_was(payload: bytes) -> None:
    assert unpack(pack(payload)) == (payload, None)
    assert unpack(b"1 abc-_Z 12\n" + payload) == (payload, Position("abc-_Z", 12))


@pytest.mark.parametrize("payload", [b"", b"\n", b"1\n", b"1 e 5\nx", b"\0" * 5])
def test_a_payload_may_look_like_a_frame(payload: bytes) -> None:
    assert unpack(pack(payload)) == (payload, None)


def test_offsets_are_as_large_as_lua_counts() -> None:
    assert unpack(b"1 e 9007199254740992\n") == (b"", Position("e", 2**53))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        b"1",
        b"hello",
        b"2\nof a version to come",
        b"2 e 5\nof a version to come",
        b"1 e\n",
        b"1 e 5",
        b"1  5\n",
        b"1 e 5 6\n",
        b"1 e -5\n",
        b"1 e +5\n",
        b"1 e 1_0\n",
        b"1 e \xd9\xa3\n",
        b"1 \xc3\xa9 5\n",
        b"1 e 99999999999999999\n",
        b"1 " + b"e" * 1000 + b" 5\n",
        b'{"type": "message"}\n',
    ],
)
def test_anything_else_is_foreign(frame: bytes) -> None:
    with pytest.raises(Foreign):
        unpack(frame)


def test_what_is_foreign_is_not_repeated() -> None:
    with pytest.raises(Foreign) as caught:
        unpack(b"somebody's secret")
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=40))
def test_nothing_else_is_raised(frame: bytes) -> None:
    try:
        unpack(frame)
    except Foreign:
        pass
