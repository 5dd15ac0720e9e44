"""T8: whatever a sender cuts arrives whole; whatever a hostile one says costs no more than the bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtkit.wire import Assembler, BadChunk, Chunk, Cut, Splitter, decode_command, decode_reply

units = st.binary(min_size=1, max_size=200)


@given(st.lists(st.tuples(units, st.integers(1, 64)), min_size=1, max_size=5), st.booleans())
def test_units_arrive_as_they_were(sent: list[tuple[bytes, int]], push: bool) -> None:
    assembler = Assembler(limit=200)
    got: list[bytes] = []
    for of, (unit, size) in enumerate(sent, 1):
        for piece in Splitter(Cut(unit, of, push=push, size=size)):
            if push:
                reply = decode_reply(piece)
                assert reply.push is not None
                chunk = reply.push.chunk
            else:
                chunk = decode_command(piece).chunk
            assert chunk is not None
            whole = assembler.add(chunk, 0.0)
            if whole is not None:
                got.append(whole)
    assert got == [unit for unit, _ in sent]
    assert not assembler


chunks = st.builds(
    Chunk,
    of=st.integers(1, 3),
    n=st.integers(0, 4),
    last=st.booleans(),
    data=st.binary(max_size=6),
)


@given(st.lists(st.tuples(chunks, st.floats(0, 3)), max_size=60))
def test_hostile_chunks_make_nothing_that_was_not_sent_in_order(said: list[tuple[Chunk, float]]) -> None:
    """A model: what is whole is a run 0, 1, 2 … last of one id, with nothing but refusals of others in between."""
    assembler = Assembler(limit=16, count=4, idle=5, age=12)
    run: list[Chunk] = []
    began = now = 0.0
    for chunk, later in said:
        now += later
        before = assembler.size
        if chunk.n == 0 and not (run and run[0].of == chunk.of):
            candidate = [chunk]
        elif run and run[0].of == chunk.of and chunk.n == len(run):
            candidate = [*run, chunk]
        else:
            candidate = []
        try:
            whole = assembler.add(chunk, now)
        except BadChunk as error:
            assert error.of == chunk.of
            assert assembler.passes_over(chunk.of)
            assert assembler.size <= before
            if (run and run[0].of == chunk.of) or not assembler:
                run = []
            continue
        if assembler.size == before and whole is None and not (candidate and assembler):
            continue  # passed over
        if assembler.passes_over(chunk.of):
            assert whole is None
            continue
        assert candidate
        if len(candidate) == 1:
            began = now
        run = candidate
        assert now - began < 12
        if whole is not None:
            assert chunk.last
            assert whole == b"".join(each.data for each in run)
            run = []
        assert assembler.size == sum(len(each.data) for each in run) <= 16
        assert len(run) <= 4
