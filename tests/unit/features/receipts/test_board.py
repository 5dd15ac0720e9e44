"""Who is how far, as a pure value (X2)."""

from __future__ import annotations

import pytest

from rtkit.errors import BadUnit
from rtkit.features.receipts.board import Board, Carry, Found, Mark, merge
from rtkit.features.receipts.entries import (
    NOTHING,
    Stored,
    decode_entry,
    decode_notice,
    encode_entry,
    encode_notice,
    key_of,
    topic_of,
)
from rtkit.position import Position
from rtkit.wire import UnknownVersion

PRESENT = Carry("e2", {"e1": 5, "e0": None})


def at(delivered: int, read: int = 0, epoch: str = "e2") -> Found:
    stored = Stored(Position(epoch, delivered), Position(epoch, read) if read else None)
    return Found(encode_entry(stored, 1), stored)


def board_of(**marks: Found) -> Board:
    board = Board()
    board.reading()
    board.read(Position("r", 1), marks, PRESENT)
    return board


# -- between epochs ---------------------------------------------------------------------------------------


def test_a_mark_is_carried_over_up_to_the_takeover() -> None:
    assert PRESENT.offset(Position("e2", 9)) == 9
    assert PRESENT.offset(Position("e1", 3)) == 3
    assert PRESENT.offset(Position("e1", 9)) == 5
    assert PRESENT.offset(Position("e0", 9)) == 0
    assert PRESENT.offset(None) == 0
    assert PRESENT.knows("e0")
    assert not PRESENT.knows("e3")


def test_who_has_read_it_has_got_it() -> None:
    """Also where the two were written in different epochs."""
    assert PRESENT.mark(Stored(Position("e0", 9), Position("e2", 4))) == Mark(4, 4)
    assert PRESENT.mark(NOTHING) == Mark()


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        (NOTHING, {"e2": Mark(3, 2)}, at(3, 2).stored),
        (at(3, 2).stored, {"e2": Mark(2, 2)}, at(3, 2).stored),
        (at(3, 2).stored, {"e2": Mark(4)}, at(4, 2).stored),
        (at(3, 2).stored, {"e2": Mark(3, 3)}, at(3, 3).stored),
        (at(9, 9, "e1").stored, {"e2": Mark(4, 4)}, at(9, 9, "e1").stored),
        (at(9, 9, "e1").stored, {"e2": Mark(6)}, at(6, 5).stored),
        (at(9, 9, "e0").stored, {"e2": Mark(6)}, at(6).stored),
        (at(4, 4).stored, {"e1": Mark(9, 9)}, at(5, 5).stored),
        (at(4, 4).stored, {"e0": Mark(9, 9)}, at(4, 4).stored),
        (NOTHING, {"e1": Mark(9, 1), "e2": Mark(4, 4), "e0": Mark(7, 7)}, at(5, 4).stored),
    ],
)
def test_the_furthest_of_each_kind_is_stored(
    stored: Stored, wanted: dict[str, Mark], expected: Stored
) -> None:
    assert merge(stored, wanted, PRESENT) == expected


def test_within_one_epoch_nothing_has_to_be_known() -> None:
    assert merge(at(3, 2, "x").stored, {"x": Mark(4, 1)}, None) == at(4, 2, "x").stored
    assert merge(NOTHING, {"x": Mark(4, 1)}, None) == at(4, 1, "x").stored


# -- following --------------------------------------------------------------------------------------------


def test_what_was_there_from_the_beginning_has_not_changed() -> None:
    board = board_of(ann=at(3, 2), bob=at(9, epoch="e1"), eve=at(7, epoch="e0"))
    assert board.marks == {"ann": Mark(3, 2), "bob": Mark(5)}
    assert not board.changed
    assert board.take(1000) == []


def test_announcements_are_applied_in_order_and_once() -> None:
    board = board_of(ann=at(3))
    board.announced(Position("r", 2), {"ann": at(4)})
    board.announced(Position("r", 2), {"ann": at(9)})
    assert board.marks == {"ann": Mark(4)}
    assert not board.wants_read
    board.announced(Position("r", 4), {"ann": at(6)})
    assert board.wants_read
    assert board.marks == {"ann": Mark(4)}


def test_a_mark_of_an_epoch_that_nobody_knows_wants_a_read() -> None:
    board = board_of(ann=at(3))
    board.announced(Position("r", 2), {"ann": at(4, epoch="e3"), "bob": at(1)})
    assert board.wants_read
    assert board.marks == {"ann": Mark(3), "bob": Mark(1)}
    board.reading()
    assert (
        board.read(Position("r", 2), {"ann": at(4, epoch="e3"), "bob": at(1)}, Carry("e3", {"e2": 2})) == {}
    )
    assert board.marks == {"ann": Mark(4), "bob": Mark(1)}
    assert board.renewed
    assert board.take(1000) == []  # it is all in the whole picture


def test_what_the_broker_has_lost_is_found_out() -> None:
    board = board_of(ann=at(3), bob=at(4, 2))
    board.announced(Position("r", 2), {"ann": at(7)})
    board.reading()
    lost = board.read(Position("other", 1), {"ann": at(3)}, PRESENT)
    assert lost == {"ann": Mark(7), "bob": Mark(4, 2)}
    assert board.marks == {"ann": Mark(7), "bob": Mark(4, 2)}
    assert not board.renewed


def test_what_was_lost_of_a_former_epoch_is_carried_over() -> None:
    board = board_of(ann=at(9, 9))
    board.reading()
    assert board.read(Position("other", 1), {}, Carry("e3", {"e2": 4})) == {"ann": Mark(4, 4)}
    board = board_of(ann=at(9, 9))
    board.reading()
    assert board.read(Position("other", 1), {}, Carry("e3", {"e2": None})) == {}
    assert board.marks == {}
    assert board.names == []


# -- telling ----------------------------------------------------------------------------------------------


def test_frames_have_a_bound_and_leave_nobody_out() -> None:
    board = board_of()
    users = [f"u{n:03}" for n in range(100)]
    board.announced(Position("r", 2), {user: at(1) for user in reversed(users)})
    told: list[str] = []
    while board.changed:
        some = board.take(500)
        assert 0 < len(some) <= 500 / (2 * 4)
        told += some
    assert told == users[::-1]  # the longest ago first
    assert board.take(0) == []
    board.announced(Position("r", 3), {"x" * 200: at(1), "y": at(1)})
    assert board.take(1) == ["x" * 200]  # however large, one goes


def test_what_did_not_move_is_not_told() -> None:
    board = board_of(ann=at(3))
    board.announced(Position("r", 2), {"ann": at(2), "bob": at(9, epoch="e0")})
    assert not board.changed
    assert "bob" not in board.marks


def test_pages_are_in_the_order_of_code_points() -> None:
    users = ["Z", "a", "é", "\ufb03", "😀", "10", "9"]
    board = board_of(**{user: at(1) for user in users})
    assert board.names == sorted(users)
    found: list[str] = []
    more = True
    while more:
        some, more = board.page(found[-1] if found else "", 2)
        found += some
    assert found == sorted(users)
    assert board.page("zzz", 9) == (["é", "\ufb03", "😀"], False)
    assert board.page("😀", 9) == ([], False)
    assert board.first(3, "😀") == (["10", "9", "😀"], True)
    assert board.first(3, "nobody") == (["10", "9", "Z"], True)
    assert board.first(3, "9") == (["10", "9", "Z"], True)
    assert board.first(7, "😀") == (sorted(users), False)


# -- what lies in the broker ------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [at(3), at(3, 2), Found(encode_entry(NOTHING, 1), NOTHING)])
def test_an_entry_and_back(found: Found) -> None:
    assert decode_entry(found.raw) == found.stored
    assert decode_notice(encode_notice({"ann": found.raw}, 1)) == {"ann": found.raw}


def test_how_it_lies_there() -> None:
    """Another release reads it (W5)."""
    assert at(3, 2).raw == b'{"v":1,"d":["e2",3],"r":["e2",2]}'
    assert encode_notice({"ann": at(3).raw}, 1) == b'{"v":1,"marks":{"ann":{"v":1,"d":["e2",3]}}}'
    assert (key_of("chat:a"), topic_of("chat:a")) == ("marks:chat:a", "\0marks:chat:a")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"v":1,"d":3}',
        b'{"v":1,"d":["e",-1]}',
        b'{"v":1,"r":["e",9007199254740992]}',
        b"\xff",
    ],
)
def test_what_is_no_entry(raw: bytes) -> None:
    with pytest.raises(BadUnit):
        decode_entry(raw)
    if raw != b"{}":
        with pytest.raises(BadUnit):
            decode_notice(b'{"v":1,"marks":' + raw)


def test_newer_versions_are_told_apart() -> None:
    for decode in (decode_entry, decode_notice):
        for raw in (b'{"v":9}', b'{"v":9,"d":7,"marks":3}'):
            with pytest.raises(UnknownVersion):
                decode(raw)
