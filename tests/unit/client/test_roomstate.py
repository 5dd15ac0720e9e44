"""The room's rules, each by itself: position, duplicates, holes, gaps, and a full queue."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rtkit.client.roomstate import Do, Phase, RoomState
from rtkit.client.values import Unsubscribed
from rtkit.messages import Message
from rtkit.position import Gap, Position
from rtkit.wire import ClientInfo, GapBody, Publication, SubscribeResult

E = "e"


def pub(offset: int, client: str = "") -> Publication:
    info = ClientInfo("ann", client) if client else None
    return Publication(msgspec.Raw(b"%d" % offset), offset, info)


def result(offset: int = 0, *offsets: int, epoch: str = E, **more: Any) -> SubscribeResult:
    return SubscribeResult(
        recoverable=True, epoch=epoch, offset=offset, publications=[pub(o) for o in offsets], **more
    )


def joined(at: int = 0, **options: Any) -> RoomState:
    state = RoomState("r", **options)
    state.request()
    assert state.accept(result(at)) is Do.NOTHING
    return state


def drain(state: RoomState) -> list[Any]:
    out: list[Any] = []
    while (item := state.take()) is not None:
        out.append(int(item.data) if isinstance(item, Message) else item)
    return out


def test_a_fresh_join_begins_at_the_top() -> None:
    state = joined(7)
    assert state.at == state.position == Position(E, 7)
    assert state.published(pub(8)) is Do.NOTHING
    assert state.position == Position(E, 7), "not before the application has it"
    assert drain(state) == [8]
    assert state.position == Position(E, 8)


def test_rewound_publications_come_before_the_top() -> None:
    state = RoomState("r", rewind=3)
    assert state.request().rewind == 3
    assert state.accept(result(9, 7, 8, 9)) is Do.NOTHING
    assert state.position == Position(E, 6)
    assert drain(state) == [7, 8, 9]
    assert state.request().rewind == 0, "only the first time"


def test_duplicates_are_dropped_and_counted() -> None:
    state = joined(3)
    for offset in (2, 3, 4, 4, 1, 5):
        assert state.published(pub(offset)) is Do.NOTHING
    assert drain(state) == [4, 5]
    assert state.statistics().duplicates == 4


def test_a_hole_is_never_crossed() -> None:
    state = joined(3)
    assert state.published(pub(5)) is Do.REJOIN
    assert drain(state) == []
    request = state.request()
    assert (request.recover, request.epoch, request.offset) == (True, E, 3)
    assert state.published(pub(6)) is Do.NOTHING, "ignored until the reply"
    assert state.accept(result(6, 4, 5, 6, recovered=True)) is Do.NOTHING
    assert drain(state) == [4, 5, 6]


def test_a_recovery_with_a_hole_inside_is_not_believed() -> None:
    state = joined(3)
    state.lost()
    state.request()
    assert state.accept(result(6, 4, 6, recovered=True)) is Do.REJOIN
    assert drain(state) == [4]


def test_a_recovery_that_ends_beyond_what_it_brought_is_not_believed() -> None:
    state = joined(3)
    state.lost()
    state.request()
    assert state.accept(result(6, 4, 5, recovered=True)) is Do.REJOIN
    assert drain(state) == [4, 5]


@pytest.mark.parametrize(
    "reply, gap",
    [
        (result(9), Gap(3, 9, E, "trimmed")),
        (result(9, epoch="f"), Gap(0, 9, "f", "epoch")),
        (result(2), Gap(2, 2, E, "rollback")),
        (result(9, gap=GapBody("r", 3, 9, E, "trimmed")), Gap(3, 9, E, "trimmed")),
        (result(9, epoch="f", gap=GapBody("r", 4, 9, "f", "rollback")), Gap(4, 9, "f", "rollback")),
        (result(9, gap=GapBody("r", 0, 9, E, "whatever")), Gap(3, 9, E, "trimmed")),
    ],
)
def test_a_join_that_could_not_recover_is_a_gap(reply: SubscribeResult, gap: Gap) -> None:
    state = joined(3)
    state.lost()
    state.request()
    assert state.accept(reply) is Do.NOTHING
    assert drain(state) == [gap]
    assert state.at == state.position == Position(gap.epoch, gap.end)


def test_publications_may_follow_the_gap_in_the_reply() -> None:
    state = joined(3)
    state.lost()
    state.request()
    state.accept(result(9, 8, 9, gap=GapBody("r", 3, 7, E, "trimmed")))
    assert drain(state) == [Gap(3, 7, E, "trimmed"), 8, 9]


def test_publications_that_do_not_connect_to_the_gap_are_not_believed() -> None:
    state = joined(3)
    state.lost()
    state.request()
    assert state.accept(result(9, 9, gap=GapBody("r", 3, 7, E, "trimmed"))) is Do.REJOIN
    assert state.at == Position(E, 7)


def test_the_server_may_prove_continuity_across_epochs() -> None:
    state = joined(3)
    state.lost()
    state.request()
    state.accept(result(4, 4, epoch="f", recovered=True))
    assert drain(state) == [4]
    assert state.at == Position("f", 4)


def test_since_recovers_on_the_first_join() -> None:
    state = RoomState("r", since=Position(E, 5))
    request = state.request()
    assert (request.recover, request.epoch, request.offset) == (True, E, 5)
    state.accept(result(8, epoch="f"))
    assert drain(state) == [Gap(0, 8, "f", "epoch")]


def test_an_answer_to_another_question_does_not_count() -> None:
    state = joined(3)
    state.lost()
    state.request()
    state.rebase(Position("other", 1), 0)
    assert state.accept(result(5, 4, 5, recovered=True)) is Do.REJOIN
    assert state.at == Position("other", 1)


def test_unrecoverable_joins_without_position_and_tells() -> None:
    state = joined(3)
    state.lost()
    state.forgotten = True
    assert not state.request().recover
    state.accept(result(9))
    assert drain(state) == [Gap(3, 9, E, "trimmed")]
    assert state.request().recover


# -- gaps that are pushed


@pytest.mark.parametrize(
    "body, gap",
    [
        (GapBody("r", 3, 7, E, "trimmed"), Gap(3, 7, E, "trimmed")),
        (GapBody("r", 1, 7, E, "trimmed"), Gap(3, 7, E, "trimmed")),
        (GapBody("r", 0, 2, "f", "epoch"), Gap(0, 2, "f", "epoch")),
        (GapBody("r", 2, 2, E, "rollback"), Gap(2, 2, E, "rollback")),
        (GapBody("r", 3, 7, "", "dropped"), Gap(3, 7, E, "dropped")),
    ],
)
def test_a_pushed_gap_moves_the_position(body: GapBody, gap: Gap) -> None:
    state = joined(3)
    assert state.told_gap(body) is Do.NOTHING
    assert state.told_position(gap.epoch, gap.end) is Do.NOTHING, (
        "the position after the gap says nothing new"
    )
    assert state.published(pub(gap.end + 1)) is Do.NOTHING
    assert drain(state) == [gap, gap.end + 1]


def test_a_gap_over_what_we_have_is_no_gap() -> None:
    state = joined(3)
    assert state.told_gap(GapBody("r", 0, 3, E, "trimmed")) is Do.NOTHING
    assert drain(state) == []


def test_a_gap_that_begins_beyond_our_position_hides_a_hole() -> None:
    state = joined(3)
    assert state.told_gap(GapBody("r", 5, 9, E, "trimmed")) is Do.REJOIN
    assert drain(state) == []


def test_a_gap_in_a_new_epoch_that_begins_beyond_our_position_hides_a_hole() -> None:
    for reason in ("rollback", "trimmed", "whatever"):
        state = joined(3)
        assert state.told_gap(GapBody("r", 5, 5, "f", reason)) is Do.REJOIN
        assert state.at == Position(E, 3)
        assert state.told_gap(GapBody("r", 3, 5, "f", reason)) is Do.NOTHING
        assert state.at == Position("f", 5)
    state = joined(3)
    assert state.told_gap(GapBody("r", 5, 5, "f", "epoch")) is Do.NOTHING, (
        "anything may be missing of the old"
    )
    assert state.at == Position("f", 5)


# -- positions that are pushed (H10)


def test_a_new_epoch_where_we_stand_is_no_loss() -> None:
    state = joined(3)
    state.published(pub(4))
    assert state.told_position("f", 4) is Do.NOTHING
    assert state.published(pub(5)) is Do.NOTHING
    assert state.at == Position("f", 5)
    first, second = state.take(), state.take()
    assert isinstance(first, Message)
    assert isinstance(second, Message)
    assert (first.position, second.position) == (Position(E, 4), Position("f", 5))
    assert state.take() is None
    assert state.statistics().gaps == 0
    assert state.request().epoch == "f"


def test_and_it_is_our_position_as_soon_as_the_queue_is_empty() -> None:
    state = joined(3)
    state.told_position("f", 3)
    assert state.position == Position("f", 3)
    state.published(pub(4))
    assert state.position == Position("f", 3), "not the old epoch, which the server may forget first"
    state.told_position("g", 4)
    assert state.position == Position("f", 3), "what waits was not handed out yet"
    state.take()
    assert state.position == Position("g", 4)


def test_a_new_epoch_elsewhere_is_for_the_server_to_judge() -> None:
    for offset in (0, 2, 4, 9):
        state = joined(3)
        assert state.told_position("f", offset) is Do.REJOIN
        request = state.request()
        assert (request.recover, request.epoch, request.offset) == (True, E, 3)
        assert drain(state) == []


def test_a_hole_before_a_new_epoch_is_seen() -> None:
    """4 was lost on the way; the hub believes that we stand there."""
    state = joined(3)
    assert state.told_position("f", 4) is Do.REJOIN
    state.request()
    assert state.accept(result(5, 4, 5, epoch="f", recovered=True)) is Do.NOTHING
    assert drain(state) == [4, 5]


def test_the_same_position_again_says_nothing_new() -> None:
    state = joined(3)
    for epoch in (E, "", "f", "f", "", "g", "f"):
        assert state.told_position(epoch, 3) is Do.NOTHING
    assert state.at == Position("f", 3)


def test_another_place_in_our_own_epoch_is_for_the_server_to_judge() -> None:
    """Ahead there is a hole. Behind, what comes next would be dropped as a duplicate."""
    for epoch in (E, ""):
        for offset in (4, 2, 0):
            state = joined(3)
            assert state.told_position(epoch, offset) is Do.REJOIN
            assert state.at == Position(E, 3)


def test_a_stale_position_after_more_came_is_for_the_server_to_judge() -> None:
    state = joined(3)
    state.told_position("f", 3)
    state.published(pub(4))
    assert state.told_position("f", 3) is Do.REJOIN


def test_a_position_while_joining_belongs_to_the_past() -> None:
    state = joined(3)
    assert state.published(pub(5)) is Do.REJOIN
    state.request()
    assert state.told_position("f", 3) is Do.NOTHING
    assert state.at == Position(E, 3)
    assert state.accept(result(5, 4, 5, epoch="f", recovered=True)) is Do.NOTHING
    assert state.at == Position("f", 5)
    assert drain(state) == [4, 5]


def test_a_position_before_the_first_join_is_answered_is_ignored() -> None:
    state = RoomState("r")
    state.request()
    assert state.told_position("f", 3) is Do.NOTHING
    assert state.at is None
    state.accept(result(7))
    assert state.at == Position(E, 7)


def test_a_position_while_out_or_deaf_is_ignored() -> None:
    for stay in (False, True):
        state = joined(0, max_queue=1)
        state.published(pub(1))
        assert state.published(pub(2)) is Do.PAUSE
        state.pause(stay=stay)
        assert state.told_position("f", 1) is Do.NOTHING
        assert state.at == Position(E, 1), "2 was not taken, and the server must be asked for it"
    state = joined(3)
    state.lost()
    assert state.told_position("f", 3) is Do.NOTHING
    assert state.at == Position(E, 3)
    state.end(None)
    assert state.told_position("f", 3) is Do.NOTHING


def test_a_position_needs_no_room_in_the_queue() -> None:
    state = joined(0, max_queue=1)
    state.published(pub(1))
    assert state.told_position("f", 1) is Do.NOTHING
    assert state.at == Position("f", 1)
    assert state.published(pub(2)) is Do.PAUSE
    state.pause(stay=False)
    state.take()
    request = state.request()
    assert (request.epoch, request.offset) == ("f", 1)


def test_our_own_messages_count_for_a_position() -> None:
    state = joined(0, echo=False, own={"me"})
    state.published(pub(1, "me"))
    assert state.told_position("f", 1) is Do.NOTHING
    assert state.at == state.position == Position("f", 1)


def test_a_position_in_a_room_without_history_says_nothing() -> None:
    state = RoomState("r")
    state.request()
    state.accept(SubscribeResult())
    assert state.told_position("f", 3) is Do.NOTHING
    assert state.at is None


# -- being taken out


def test_unsubscribed_with_a_high_code_joins_again() -> None:
    state = joined(3)
    assert state.unsubscribed(2500, "continuity lost") is Do.JOIN
    assert state.request().recover


def test_unsubscribed_with_a_low_code_ends_after_the_queue() -> None:
    state = joined(3)
    state.published(pub(4))
    assert state.unsubscribed(2000, "kicked") is Do.NOTHING
    assert state.phase is Phase.ENDED
    assert isinstance(state.error, Unsubscribed)
    assert drain(state) == [4]


def test_unsubscribed_while_joining_belongs_to_the_past() -> None:
    state = joined(3)
    state.request()
    assert state.unsubscribed(2000, "kicked") is Do.NOTHING
    assert state.phase is Phase.ASKED


# -- a full queue


def test_a_full_queue_pauses_and_goes_on_from_there() -> None:
    state = joined(0, max_queue=4)
    for offset in (1, 2, 3, 4):
        assert state.published(pub(offset)) is Do.NOTHING
    assert state.published(pub(5)) is Do.PAUSE
    state.pause(stay=False)
    assert state.published(pub(5)) is Do.NOTHING
    assert not state.resumable
    state.lost()
    assert state.phase is Phase.PAUSED, "losing the connection does not matter"
    assert [state.take() is not None for _ in range(2)] == [True, True]
    assert state.resumable
    assert state.request().offset == 4
    assert state.accept(result(9, 5, 6, 7, 8, 9, recovered=True)) is Do.PAUSE, "and again"
    assert drain(state) == [3, 4, 5, 6]


def test_deaf_for_a_command_until_half_is_drained() -> None:
    state = joined(0, max_queue=2)
    state.published(pub(1))
    state.published(pub(2))
    assert state.published(pub(3)) is Do.PAUSE
    state.pause(stay=False)
    request = state.request(muted=True)
    assert not request.recover
    assert state.accept(result(3)) is Do.NOTHING
    assert state.phase is Phase.MUTED
    assert state.is_in
    assert state.published(pub(4)) is Do.NOTHING
    assert state.told_gap(GapBody("r", 0, 9, E, "trimmed")) is Do.NOTHING
    state.take()
    assert state.resumable
    assert state.request().offset == 2
    assert drain(state) == [2]


def test_a_deaf_join_that_is_answered_late_goes_on_at_once() -> None:
    state = joined(0, max_queue=2)
    state.published(pub(1))
    state.published(pub(2))
    state.pause(stay=False)
    state.request(muted=True)
    drain(state)
    assert state.accept(result(3)) is Do.REJOIN


def test_a_gap_that_does_not_fit_is_told_later() -> None:
    state = joined(0, max_queue=1)
    state.published(pub(1))
    assert state.told_gap(GapBody("r", 1, 5, E, "trimmed")) is Do.PAUSE
    assert state.at == Position(E, 1)


def test_without_history_the_oldest_go_and_one_gap_says_so() -> None:
    state = RoomState("r", max_queue=3)
    state.request()
    state.accept(SubscribeResult())
    for n in range(1, 8):
        assert state.published(Publication(msgspec.Raw(b"%d" % n))) is Do.NOTHING
    assert drain(state) == [Gap(0, 0, "", "dropped"), 5, 6, 7]
    assert state.statistics().dropped == 4
    assert state.statistics().gaps == 1
    assert state.position is None


def test_without_history_nothing_is_promised_across_a_loss() -> None:
    state = RoomState("r")
    state.request()
    state.accept(SubscribeResult())
    state.lost()
    assert not state.request().recover
    state.accept(SubscribeResult())
    assert drain(state) == []


def test_a_position_in_a_room_that_keeps_no_history_any_more_is_a_gap() -> None:
    state = RoomState("r", since=Position(E, 3))
    state.request()
    state.accept(SubscribeResult())
    assert drain(state) == [Gap(0, 0, "", "epoch")]


def test_our_own_messages_can_be_left_out() -> None:
    state = joined(0, echo=False, own={"me"})
    for offset, client in ((1, "me"), (2, "you"), (3, "me")):
        state.published(pub(offset, client))
    assert drain(state) == [2]
    assert state.position == Position(E, 3)
    assert state.statistics().echoes == 2


# -- rooms the server puts us in


def test_put_in_where_we_stand_is_no_loss() -> None:
    state = joined(3)
    state.lost()
    assert state.adopt(result(3), asked=False) is Do.NOTHING
    assert state.phase is Phase.IN


def test_put_in_elsewhere_recovers() -> None:
    state = joined(3)
    state.lost()
    assert state.adopt(result(5), asked=False) is Do.REJOIN
    assert state.at == Position(E, 3)


def test_put_in_with_a_wish_of_our_own() -> None:
    state = RoomState("r", rewind=2)
    assert state.adopt(result(5), asked=False) is Do.REJOIN


def test_put_in_while_the_queue_is_full_stays_deaf() -> None:
    state = joined(0, max_queue=1)
    state.published(pub(1))
    state.pause(stay=False)
    assert state.adopt(result(5), asked=False) is Do.NOTHING
    assert state.phase is Phase.MUTED


def test_the_first_end_counts() -> None:
    state = joined(0)
    first = ValueError()
    state.end(first)
    state.end(None)
    assert state.error is first
    state.step_out()
    state.lost()
    assert state.phase is Phase.ENDED
    assert state.adopt(result(1), asked=False) is Do.NOTHING
    assert "ended" in repr(state)
