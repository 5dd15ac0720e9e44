"""The format of events, and the ids that say where a stream stands (T5)."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit import Position
from rtkit.errors import BadUnit
from rtkit.wire.eventstream import MAX_ID, MAX_ROOMS, Bookmark, event, goodbye, place_of, write_id
from tests.support.eventsource import EventParser

OFFSETS = st.integers(0, 2**53 - 1)
EPOCHS = st.text(min_size=1, max_size=16)
ROOMS = st.dictionaries(
    st.text(min_size=1, max_size=60), st.builds(Position, EPOCHS, OFFSETS), max_size=MAX_ROOMS
)
LINES = st.text(st.sampled_from("ab:\r\n\u2028\x85\0 é\ufeff"), max_size=12)


# -- fields --------------------------------------------------------------------------------------------


@given(LINES, st.integers(0, 40))
def test_a_reader_gets_the_data_as_it_was_whatever_is_in_it(data: str, cut: int) -> None:
    """Line breaks of all kinds are line feeds; nothing ends the event early, and no field can be smuggled in."""
    text = event("message", data.encode(), id="x").decode()
    parser = EventParser()
    found = parser.feed(text[:cut]) + parser.feed(text[cut:])
    plain = data.replace("\r\n", "\n").replace("\r", "\n")
    assert [(each.type, each.data, each.id) for each in found] == [("message", plain, "x")]


def test_only_line_feeds_are_sent() -> None:
    assert event("a", b"1\r\n2\r3\n4", id="i") == b"event: a\ndata: 1\ndata: 2\ndata: 3\ndata: 4\nid: i\n\n"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\n"])
def test_line_breaks_and_nul_in_other_fields_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="no line breaks and no NUL"):
        event(bad, b"{}")
    with pytest.raises(ValueError, match="no line breaks and no NUL"):
        event("message", b"{}", id=bad)


def test_a_reason_cannot_leave_its_line() -> None:
    """A plain goodbye is a comment, whatever the application gave as a reason."""
    parser = EventParser()
    assert parser.feed(goodbye(3000, "so\nevent: message\ndata: 1\n\n\r\0", []).decode()) == []
    assert (parser.comments, parser.last_id) == (1, "")
    closed = goodbye(3503, "a\nb\r", []).decode()
    assert [json.loads(each.data)["reason"] for each in parser.feed(closed)] == ["a\nb\r"]


# -- ids -----------------------------------------------------------------------------------------------


@given(ROOMS)
def test_an_id_tells_what_it_was_made_of(rooms: dict[str, Position]) -> None:
    text = write_id([place_of(room, position) for room, position in rooms.items()])
    event("joined", b"{}", id=text)  # it can be one
    found = Bookmark.read(text)
    assert {room: found.position(room) for room in rooms} == rooms
    assert found.position("another room of nobody's") is None
    assert found.stop == 0


@given(st.lists(st.text(max_size=128), min_size=1, max_size=MAX_ROOMS, unique=True), OFFSETS)
def test_an_id_of_all_rooms_fits(epochs: list[str], offset: int) -> None:
    """T5: 32 rooms, 4 KiB. An epoch too long for it is left out, and an offset without its epoch proves nothing."""
    places = [place_of(f"r{n}", Position(epoch, offset)) for n, epoch in enumerate(epochs)]
    text = write_id(places, 4999)
    assert len(text) <= MAX_ID
    found = Bookmark.read(text)
    for n, epoch in enumerate(epochs):
        position = found.position(f"r{n}")
        assert position is not None
        if position.epoch != epoch:
            assert (position.epoch, len(epoch.encode()) > 64, position.offset > 0) == ("", True, True)


@pytest.mark.parametrize("epoch", ["x" * 65, "é" * 33, "x" * 128])
@pytest.mark.parametrize("offset", [0, 7])
def test_an_epoch_that_does_not_fit_is_no_proof(epoch: str, offset: int) -> None:
    """H3: not even of the beginning, which needs no epoch; so there will be a gap."""
    place = place_of("r", Position("e", 3))
    place.move(Position(epoch, offset))
    assert Bookmark.read(write_id([place])).position("r") == Position("", max(1, offset))
    place.move(Position("x" * 64, offset))
    assert Bookmark.read(write_id([place])).position("r") == Position("x" * 64, offset)


def test_the_largest_id_is_below_the_bound() -> None:
    places = [place_of(f"r{n}", Position("x" * 64, 2**53 - 1)) for n in range(MAX_ROOMS)]
    assert 3500 < len(write_id(places, 4999)) <= MAX_ID


def test_who_left_stays_away_and_has_no_position() -> None:
    place = place_of("r", Position("e", 7))
    place.leave()
    found = Bookmark.read(write_id([place, place_of("s", Position("e", 1))]))
    assert (found.has_left("r"), found.position("r")) == (True, None)
    assert (found.has_left("s"), found.has_left("t")) == (False, False)


@pytest.mark.parametrize("text", ["2" + write_id([place_of("r", Position("e", 7))])[1:], "42", "a6e0-77"])
def test_an_id_of_another_version_or_make_is_an_unknown_place_everywhere(text: str) -> None:
    """W5: an error would end an EventSource for good; a position that proves nothing makes a gap."""
    found = Bookmark.read(text)
    assert found.position("r") == found.position("s") == Position("", 1)
    assert not found.has_left("r")
    assert not found.stop


def packed(*value: object) -> str:
    import base64

    return "1" + base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).rstrip(b"=").decode()


HOSTILE = {
    "empty": "",
    "a number of version 1": "12",
    "words": "where I was",
    "no base64": "1%%%%",
    "a line break": "1kgCQ\n",
    "another alphabet": "1kg+/",
    "half a byte": "1k",
    "not msgpack": "1wcHB",
    "not the right thing": packed(1, 2),
    "too many fields": packed(0, [], 1),
    "too many rooms": packed(0, [[b"abcdef", "e", 1]] * 33),
    "a short key": packed(0, [[b"abc", "e", 1]]),
    "a large offset": packed(0, [[b"abcdef", "e", 2**53]]),
    "a negative offset": packed(0, [[b"abcdef", "e", -2]]),
    "a long epoch": packed(0, [[b"abcdef", "e" * 65, 1]]),
    "an odd stop": packed(5000, []),
    "nested deeply": "1" + "kZGR" * 1000,
    "too long": "1" + "A" * 4096,
    "a BOM": "\ufeff1kgCQ",
    "full-width digits": "\uff11kgCQ",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_nobody_of_ours_wrote_is_refused(text: str) -> None:
    with pytest.raises(BadUnit, match="id of an event"):
        Bookmark.read(text)


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda b: "1" + b.hex()))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        found = Bookmark.read(text)
    except BadUnit:
        return
    assert found.stop < 5000
    repr(found)
