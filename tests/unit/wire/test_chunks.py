"""T8: large units are cut, and put together again from exactly the chunks that a sender has made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rtkit import codes
from rtkit.wire import (
    SLICE,
    UNIT,
    Assembler,
    BadChunk,
    Chunk,
    Cut,
    Splitter,
    decode_command,
    decode_reply,
    slice_within,
    unit_limit,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "chunks.json").read_text("utf-8")
)


def chunk(of: int, n: int, data: bytes = b"x", *, last: bool = False) -> Chunk:
    return Chunk(of, n, last, data)


def refusal(assembler: Assembler, piece: Chunk, now: float = 0.0) -> BadChunk:
    with pytest.raises(BadChunk) as caught:
        assembler.add(piece, now)
    return caught.value


# -- the vectors that both SDKs keep to -----------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["cuts"], ids=lambda v: v["name"])
def test_cuts(vector: dict[str, Any]) -> None:
    unit = (vector["unit"] * vector.get("times", 1)).encode()
    for push in (False, True):
        cut = Cut(unit, vector["of"], push=push, size=vector["slice"])
        made = [json.loads(each) for each in Splitter(cut)]
        bodies = [each["push"]["chunk"] if push else each["chunk"] for each in made]
        assert bodies == vector["chunks"]


@pytest.mark.parametrize("vector", VECTORS["assemblies"], ids=lambda v: v["name"])
def test_assemblies(vector: dict[str, Any]) -> None:
    assembler = Assembler(limit=vector.get("limit", 1000))
    for step in vector["steps"]:
        piece = decode_command(json.dumps({"chunk": step["chunk"]}).encode()).chunk
        assert piece is not None
        if "refused" in step:
            error = refusal(assembler, piece)
            assert (error.of, error.code) == (step["chunk"]["of"], step["refused"])
        else:
            whole = assembler.add(piece, 0.0)
            assert (whole.decode() if whole is not None else None) == step.get("unit")


# -- cutting ------------------------------------------------------------------------------------------


def test_a_chunk_of_a_full_slice_is_hardly_more_than_64_kib() -> None:
    cut = Cut(b"\xff" * (2**24), 2**53 - 1, push=True)
    assert len(cut) == 342
    assert max(len(each) for each in Splitter(cut)) <= UNIT + 96
    assert len(cut.chunk(0)) > UNIT


def test_a_receiver_of_small_frames_gets_small_chunks() -> None:
    for frame in (100, 1000, 65_000, UNIT, UNIT + 1000, UNIT + 1024, 2**20):
        unit = unit_limit(frame)
        assert unit <= min(frame, UNIT)
        cut = Cut(b"\xff" * 200_000, 2**53 - 1, push=False, size=slice_within(unit))
        assert len(cut.chunk(len(cut) - 2)) <= frame, frame
    assert slice_within(UNIT) == slice_within(2**20) == SLICE


def test_all_who_send_a_cut_share_its_buffer() -> None:
    unit = bytes(300_000)
    cut = Cut(unit, 1, push=True)
    one, other = Splitter(cut), Splitter(cut)
    for _ in range(2):
        next(one)
    assert cut.unit is unit
    assert (one.n, other.n) == (2, 0)
    assert next(other) == cut.chunk(0)
    assert [one.done, *[bool(each) for each in one], one.done] == [False, *[True] * 5, True]


def test_misuse_of_a_cut() -> None:
    with pytest.raises(ValueError, match="empty"):
        Cut(b"", 1, push=True)
    with pytest.raises(ValueError, match="positive, not 3 and 0"):
        Cut(b"x", 0, push=True, size=3)
    with pytest.raises(IndexError, match="chunk 1 of 1"):
        Cut(b"x", 1, push=True).chunk(1)


# -- putting together ---------------------------------------------------------------------------------


def test_units_come_one_after_another() -> None:
    assembler = Assembler(limit=10)
    assert assembler.add(chunk(1, 0, b"ab"), 0) is None
    assert (bool(assembler), assembler.size) == (True, 2)
    assert assembler.add(chunk(1, 1, b"c", last=True), 0) == b"abc"
    assert (bool(assembler), assembler.size, assembler.expires_at) == (False, 0, math.inf)
    assert assembler.add(chunk(2, 0, b"d", last=True), 0) == b"d"


def test_a_unit_at_the_limit_is_taken_and_one_beyond_is_not() -> None:
    assembler = Assembler(limit=4)
    assembler.add(chunk(1, 0, b"abc"), 0)
    assert assembler.add(chunk(1, 1, b"d", last=True), 0) == b"abcd"
    assembler.add(chunk(2, 0, b"abc"), 0)
    error = refusal(assembler, chunk(2, 1, b"de"))
    assert (error.of, error.code, error.message) == (2, codes.LIMIT_EXCEEDED, "a unit has at most 4 bytes")
    assert assembler.size == 0


def test_what_comes_of_a_refused_unit_is_passed_over_in_silence() -> None:
    assembler = Assembler(limit=4)
    refusal(assembler, chunk(1, 0, b"abcde"))
    for n in range(1, 100):
        assert assembler.passes_over(1)
        assert assembler.add(chunk(1, n, b"abc", last=n == 99), 0) is None
    assert assembler.size == 0
    assert assembler.add(chunk(2, 0, b"ab", last=True), 0) == b"ab"


def test_endless_chunks_end_at_the_count() -> None:
    assembler = Assembler(limit=1000, count=3)
    for n in range(3):
        assembler.add(chunk(1, n), 0)
    assert refusal(assembler, chunk(1, 3)).message == "a unit has at most 3 chunks"


def test_a_new_unit_takes_the_place_of_one_given_up() -> None:
    assembler = Assembler(limit=10)
    assembler.add(chunk(1, 0), 0)
    assembler.add(chunk(2, 0, b"ab"), 0)
    assert assembler.size == 2
    assert refusal(assembler, chunk(1, 1)).of == 1, "who goes on with the first all the same is refused"
    assert assembler.add(chunk(2, 1, b"c", last=True), 0) == b"abc"


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([chunk(1, 1)], "chunk 1 of large unit 1, which is not under way"),
        ([chunk(1, 0), chunk(1, 2)], "chunk 2 of large unit 1, where 1 comes next"),
        ([chunk(1, 0), chunk(1, 0)], "chunk 0 of large unit 1, where 1 comes next"),
        ([chunk(1, 0, b"")], "chunk 0 of large unit 1 is empty"),
        ([chunk(1, 0, last=True), chunk(1, 0)], "the id 1 was used for the large unit before"),
    ],
)
def test_what_is_out_of_order_is_refused(pieces: list[Chunk], message: str) -> None:
    assembler = Assembler(limit=100)
    *good, bad = pieces
    for piece in good:
        assembler.add(piece, 0)
    error = refusal(assembler, bad)
    assert (error.message, error.code, error.of) == (message, codes.BAD_REQUEST, 1)
    assert assembler.size == 0


def test_a_unit_has_its_time() -> None:
    assembler = Assembler(limit=100, idle=10, age=25)
    assembler.add(chunk(1, 0), 0)
    assert assembler.expires_at == 10
    assembler.add(chunk(1, 1), 9)
    assert assembler.expires_at == 19
    assembler.add(chunk(1, 2), 18)
    assert assembler.expires_at == 25
    assert assembler.expire(24.9) is None
    error = assembler.expire(25)
    assert error is not None
    assert (error.of, error.code, error.message) == (1, codes.LIMIT_EXCEEDED, "the large unit took too long")
    assert assembler.add(chunk(1, 3, last=True), 25) is None
    assert assembler.expire(1000) is None


def test_a_chunk_that_comes_too_late_is_refused_even_if_nobody_looked() -> None:
    assembler = Assembler(limit=100, idle=10)
    assembler.add(chunk(1, 0), 0)
    assert refusal(assembler, chunk(1, 1), 10).message == "the large unit took too long"


def test_who_made_the_sender_wait_grants_the_time() -> None:
    assembler = Assembler(limit=100, idle=10, age=100)
    assembler.add(chunk(1, 0), 0)
    assembler.hold(50)
    assert assembler.add(chunk(1, 1, b"y", last=True), 59) == b"xy"


def test_a_refusal_of_the_owners() -> None:
    assembler = Assembler(limit=100)
    assembler.add(chunk(1, 0), 0)
    error = assembler.refuse(1, "no room", codes.TOO_MANY_REQUESTS, 1.5)
    assert (error.of, error.code, error.retry_after, assembler.size) == (1, 111, 1.5, 0)
    assert assembler.add(chunk(1, 1, last=True), 0) is None


@pytest.mark.parametrize("name", ["limit", "count", "idle", "age"])
def test_bounds_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Assembler\({name}=…\) is positive, not 0"):
        Assembler(**{"limit": 1, name: 0})


def test_a_chunk_on_the_wire() -> None:
    """The encoder leaves out what is zero; data is base64."""
    assert (
        Cut(b"abcd", 7, push=True, size=3).chunk(1)
        == b'{"push":{"chunk":{"of":7,"n":1,"last":true,"data":"ZA=="}}}'
    )
    reply = decode_reply(b'{"push":{"chunk":{"of":7,"data":"YWJj"}}}')
    assert reply.push is not None
    assert reply.push.chunk == Chunk(7, 0, False, b"abc")
