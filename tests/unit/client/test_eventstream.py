"""The event stream format, case by case as the Web Platform Tests know it (folder ``eventsource``).

Each case is fed whole, byte by byte, and cut at random places: the answer is always the same.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.client.eventstream import Event, EventStream
from rtkit.errors import BadUnit

LONG = b"x" * 2049


class Case(NamedTuple):
    name: str
    stream: bytes
    events: list[Event]
    retry: int | None = None
    last: str | None = None


def ev(text: str, type: str = "message", id: str = "") -> Event:
    return Event(text.encode(), type, id)


CASES = [
    Case("a line of data", b"data: a\n\n", [ev("a")]),
    Case("lines are joined by line feeds", b"data: a\ndata: b\ndata\ndata: c\n\n", [ev("a\nb\n\nc")]),
    Case(
        "one leading space goes", b"data:\ttest\rdata: \ndata:test\ndata:  x\n\n", [ev("\ttest\n\ntest\n x")]
    ),
    Case("a colon in the value stays", b"data: a: b:\n\n", [ev("a: b:")]),
    Case("empty data are events", b"data:\n\ndata\ndata\n\ndata:test\n\n", [ev(""), ev("\n"), ev("test")]),
    Case("nothing is an event without data", b"event: a\n\nid: 7\n\n\n\n:\n\n", [], last="7"),
    Case("line ends of all kinds", b"data:a\r\ndata\ndata:b\r\n\r", [ev("a\n\nb")]),
    Case("CR alone", b"data:a\rdata:b\r\rdata:c\r\r", [ev("a\nb"), ev("c")]),
    Case("CRLF alone", b"data:a\r\n\r\ndata:b\r\n\r\n", [ev("a"), ev("b")]),
    Case("LF CR is two ends", b"data:a\n\rdata:b\n\r", [ev("a"), ev("b")]),
    Case(
        "other separators of Unicode are text",
        "data:a\u2028b\u0085c\v\f\n\n".encode(),
        [ev("a\u2028b\u0085c\v\f")],
    ),
    Case(
        "a mark at the start goes",
        b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n",
        [ev("1"), ev("3")],
    ),
    Case("only one mark goes", b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\n", [ev("2")]),
    Case("half a mark is none", b"\xef\xbbdata:1\n\ndata:2\n\n", [ev("2")]),
    Case(
        "comments",
        b"data:1\r:\0\n:\r\ndata:2\n:" + LONG + b"\rdata:3\n:data:fail\r:" + LONG + b"\ndata:4\n\n",
        [ev("1\n2\n3\n4")],
    ),
    Case(
        "field names are exact",
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\n"
        b"data:3\rdata:\r\n data:32\ndata:4\n\n",
        [ev("\0\n 2\n1\n3\n\n4")],
    ),
    Case(
        "unknown fields",
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        [ev("test\n\ntest")],
    ),
    Case(
        "what is no data makes no event",
        b"data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n",
        [ev("msg\nmsg"), ev(""), ev("end")],
    ),
    Case("a null character is text", b"data:\0\n\n\n\n", [ev("\0")]),
    Case("the type", b"event:test\ndata:x\n\ndata:x\n\n", [ev("x", "test"), ev("x")]),
    Case("an empty type", b"event: \ndata:data\n\n", [ev("data")]),
    Case("the last type counts", b"event:a\nevent:b\ndata:x\n\n", [ev("x", "b")]),
    Case("a type without data is forgotten", b"event:a\n\ndata:x\n\n", [ev("x")]),
    Case("an id stays", b"id:1\ndata:a\n\ndata:b\n\n", [ev("a", id="1"), ev("b", id="1")], last="1"),
    Case("an id changes", b"id:1\ndata:a\n\nid: 2\ndata:b\n\n", [ev("a", id="1"), ev("b", id="2")], last="2"),
    Case("an id is taken back", b"id:1\ndata:a\n\nid\ndata:b\n\n", [ev("a", id="1"), ev("b")], last=""),
    Case(
        "an id with a null is none",
        b"id:1\ndata:a\n\nid:2\x003\ndata:b\n\n",
        [ev("a", id="1"), ev("b", id="1")],
    ),
    Case("an id is any text", "id:…\ndata:1\n\n".encode(), [ev("1", id="…")], last="…"),
    Case("an id without data counts too", b"id:1\n\ndata:a\n\n", [ev("a", id="1")], last="1"),
    Case("what is cut off is dropped", b"retry:1000\ndata:1\n\nid:test\ndata:2", [ev("1")], 1000, ""),
    Case("so is a line without its end", b"data:1\n\ndata:2\n", [ev("1")]),
    Case("retry, with a zero before", b"retry:03000\ndata:x\n\n", [ev("x")], 3000),
    Case("a bogus retry", b"retry:3000\nretry:1000x\ndata:x\n\n", [ev("x")], 3000),
    Case("a signed retry", b"retry:3000\nretry:+1\nretry: -1\nretry:1.5\n", [], 3000),
    Case("an empty retry", b"retry\ndata:test\n\n", [ev("test")]),
    Case("digits of other scripts", "retry:٣\n".encode(), []),
    Case("a retry of nought", b"retry:000\n", [], 0),
    Case("a retry beyond all reason", b"retry:" + b"9" * 10_000 + b"\n", [], 10**16 - 1),
    Case("it is always UTF-8", b"data:ok\xe2\x80\xa6\n\n", [ev("ok…")]),
    Case("a stream of nothing", b"", []),
]


def run(stream: bytes, cuts: list[int], parser: EventStream) -> list[Event]:
    events: list[Event] = []
    ends = [*sorted({cut for cut in cuts if cut < len(stream)}), len(stream)]
    at = 0
    for end in ends:
        events += parser.feed(stream[at:end])
        at = end
    return events


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("pieces", ["whole", "bytes", "random"])
def test_a_case_of_the_standard(case: Case, pieces: str) -> None:
    cut = {
        "whole": [[]],
        "bytes": [list(range(len(case.stream)))],
        "random": [random.Random(seed).choices(range(len(case.stream) + 1), k=5) for seed in range(30)],
    }
    for cuts in cut[pieces]:
        parser = EventStream()
        assert run(case.stream, cuts, parser) == case.events
        assert parser.retry == case.retry
        if case.last is not None:
            assert parser.last_event_id == case.last


def test_what_is_no_utf_8_is_replaced_in_the_text_alone() -> None:
    (event,) = EventStream().feed(b"data:\xff\xe2\x80\n\n")
    assert event.data == b"\xff\xe2\x80"
    assert event.text == "\ufffd\ufffd"


def test_an_event_is_not_held_back_for_the_second_half_of_its_line_end() -> None:
    parser = EventStream()
    assert parser.feed(b"data:a\r\n\r") == [ev("a")]
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\n") == []
    assert parser.feed(b"data:b\r\n\r\n") == [ev("b")]


@given(
    st.lists(
        st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"id", b"event", b"x", b"\0", b"\xe2\x80\xa6"])
    ),
    st.lists(st.integers(0, 200)),
)
def test_cutting_changes_nothing(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    whole, cut = EventStream(), EventStream()
    assert run(stream, cuts, cut) == whole.feed(stream)
    assert (cut.last_event_id, cut.retry) == (whole.last_event_id, whole.retry)


@given(st.binary(), st.lists(st.integers(0, 200)))
def test_any_bytes_can_be_read(stream: bytes, cuts: list[int]) -> None:
    assert run(stream, cuts, EventStream()) == EventStream().feed(stream)


@given(
    st.lists(st.lists(st.binary().filter(lambda b: not {10, 13} & set(b)), min_size=1)),
    st.lists(st.integers()),
)
def test_what_is_written_is_read(events: list[list[bytes]], cuts: list[int]) -> None:
    stream = b"".join(b"".join(b"data: " + line + b"\n" for line in lines) + b"\n" for lines in events)
    read = run(stream, [c % (len(stream) + 1) for c in cuts], EventStream())
    assert [event.data for event in read] == [b"\n".join(lines) for lines in events]


@pytest.mark.parametrize(
    "stream",
    [
        b"x" * 11,
        b":" + b"x" * 10 + b"\n",
        b"data:" + b"x" * 6 + b"\n",
        b"data:abc\ndata:def\ndata:efgh\n",
        b"data\n" * 12,
    ],
    ids=["a line without end", "a comment", "a line of data", "an event of many lines", "empty lines"],
)
@pytest.mark.parametrize("step", [1, 4, 1000])
def test_nothing_grows_without_bound(stream: bytes, step: int) -> None:
    parser = EventStream(max_size=10)
    with pytest.raises(BadUnit, match="10 bytes"):
        for at in range(0, len(stream), step):
            parser.feed(stream[at : at + step])


def test_what_is_as_large_as_may_be_is_taken_again_and_again() -> None:
    parser = EventStream(max_size=10)
    for _ in range(5):
        assert parser.feed(b"data:abcde\ndata:fghi\n:comment\n\n") == [ev("abcde\nfghi")]


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match="not 0"):
        EventStream(max_size=0)
