"""What a one-way client is told next, and what it must not be (T5, H3, H10)."""

from __future__ import annotations

from typing import Any

import pytest

from rtkit import Position
from rtkit.wire import dumps
from rtkit.wire.chunks import Cut
from rtkit.wire.eventstream import Bookmark
from rtkit.wire.telling import Telling, pieces
from rtkit.wire.units import SubscribeResult
from tests.support.eventsource import Event, EventParser


class Page:
    """A telling, and who reads it."""

    def __init__(self, **rooms: SubscribeResult) -> None:
        self.telling = Telling()
        for name, result in rooms.items():
            assert self.telling.joined(name, None, result) == []
        self.parser = EventParser()
        self.parser.feed(self.telling.begin().decode())

    def hears(self, *units: dict[str, Any] | bytes) -> list[Event]:
        found = pieces([unit if isinstance(unit, bytes) else dumps(unit) for unit in units])
        return self.parser.feed(self.telling.tell(found, 0.0).decode())

    def stands(self, room: str) -> Position | None:
        return Bookmark.read(self.parser.last_id).position(room)


def at(offset: int, epoch: str = "e") -> SubscribeResult:
    return SubscribeResult(recoverable=True, positioned=True, epoch=epoch, offset=offset)


def push(room: str, **body: Any) -> dict[str, Any]:
    return {"push": {"channel": room, **body}}


def pub(room: str, offset: int) -> dict[str, Any]:
    return push(room, pub={"data": offset, "offset": offset})


def test_each_event_stands_behind_itself() -> None:
    page = Page(r=at(3), s=at(8))
    assert (page.stands("r"), page.stands("s")) == (Position("e", 3), Position("e", 8))
    ids = [event.id for event in page.hears(pub("r", 4), pub("s", 9), pub("r", 5))]
    found = [(Bookmark.read(id).position("r"), Bookmark.read(id).position("s")) for id in ids]
    assert [(r and r.offset, s and s.offset) for r, s in found] == [(4, 8), (4, 9), (5, 9)]


def test_an_offset_is_never_passed_over() -> None:
    """H3: nothing behind it is told, in no room; where the client stands is where the next stream goes on."""
    page = Page(r=at(3), s=at(0))
    assert len(page.hears(pub("r", 4), pub("r", 6), pub("r", 7), pub("s", 1))) == 1
    assert page.telling.broken == "an offset is missing"
    assert page.hears(pub("s", 1), pub("r", 5)) == []
    assert (page.stands("r"), page.stands("s")) == (Position("e", 4), Position("e", 0))


def test_nothing_is_told_twice() -> None:
    page = Page(r=at(3))
    assert page.hears(pub("r", 3), pub("r", 1)) == []
    assert len(page.hears(pub("r", 4), pub("r", 4))) == 1
    assert page.telling.broken is None


def test_a_room_that_is_none_of_this_stream() -> None:
    page = Page(r=at(3))
    assert page.hears(pub("other", 1), push("other", unsubscribe={"code": 2500, "reason": "x"})) == []
    assert page.telling.broken is None


def test_a_new_epoch_that_goes_on_right_here() -> None:
    """H10, B6: the client has all of the old one, so that nothing is said; the next id has the new one."""
    page = Page(r=at(3))
    assert page.hears(push("r", position={"epoch": "f", "offset": 3})) == []
    assert len(page.hears(pub("r", 4))) == 1
    assert page.stands("r") == Position("f", 4)


@pytest.mark.parametrize("offset", [2, 4])
def test_a_new_epoch_that_goes_on_elsewhere(offset: int) -> None:
    """H10: what is missing is for the hub to judge."""
    page = Page(r=at(3))
    assert page.hears(push("r", position={"epoch": "f", "offset": offset}), pub("r", 4)) == []
    assert page.telling.broken
    assert page.stands("r") == Position("e", 3)


def test_a_gap_moves_on() -> None:
    page = Page(r=at(3))
    (gap,) = page.hears(push("r", gap={"from": 3, "to": 7, "epoch": "f", "reason": "trimmed"}))
    assert (gap.type, gap.json) == (
        "gap",
        {"room": "r", "from": 3, "to": 7, "epoch": "f", "reason": "trimmed"},
    )
    assert page.stands("r") == Position("f", 7)
    assert len(page.hears(pub("r", 8))) == 1


def test_a_gap_of_a_fresh_join_is_told_again_until_it_was_heard() -> None:
    """Its join data may be older than what was trimmed while the hook ran."""
    telling = Telling()
    result = SubscribeResult(recoverable=True, epoch="e", offset=9)
    (unit,) = pieces([dumps(push("r", gap={"from": 4, "to": 9, "epoch": "e", "reason": "trimmed"}))])
    assert not isinstance(unit, tuple)
    assert unit.push is not None
    result.gap = unit.push.gap
    told = telling.joined("r", None, result)
    parser = EventParser()
    parser.feed(telling.begin().decode())
    assert Bookmark.read(parser.last_id).position("r") == Position("e", 4)
    parser.feed(telling.tell(told, 0.0).decode())
    assert Bookmark.read(parser.last_id).position("r") == Position("e", 9)


def test_to_be_joined_again_is_to_come_back() -> None:
    page = Page(r=at(3), s=at(0))
    assert page.hears(push("r", unsubscribe={"code": 2501, "reason": "old"})) == []
    assert page.telling.broken
    assert not Bookmark.read(page.telling.id()).has_left("r")


def test_a_large_unit_in_chunks_with_others_in_between() -> None:
    """T8."""
    page = Page(r=at(3), s=at(0))
    cut = Cut(dumps(push("r", pub={"data": "x" * 200_000, "offset": 4})), 1, push=True)
    assert len(cut) == 5
    found = page.hears(
        cut.chunk(0), pub("s", 1), cut.chunk(1), cut.chunk(2), pub("s", 2), cut.chunk(3), cut.chunk(4)
    )
    assert [event.json["room"] for event in found] == ["s", "s", "r"]
    assert len(found[-1].json["data"]) == 200_000


def test_a_large_unit_that_is_not_whole() -> None:
    page = Page(r=at(3))
    cut = Cut(dumps(push("r", pub={"data": "x" * 200_000, "offset": 4})), 1, push=True)
    assert page.hears(cut.chunk(0), cut.chunk(2)) == []
    assert page.telling.broken
