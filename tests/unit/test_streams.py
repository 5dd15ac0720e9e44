"""One small case for each rule of `rtkit.streams`; what they add up to is proven in the property tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from rtkit.position import Gap, GapReason, Position
from rtkit.streams import CatchUp, Entry, Feed, Meeting, Moved, StreamPage, Verdict, locate, locate_back

NOTHING: tuple[Entry, ...] = ()


def at(offset: int, epoch: str = "A") -> Position:
    return Position(epoch, offset)


def entries(offsets: Iterable[int], epoch: str = "A") -> tuple[Entry, ...]:
    return tuple(Entry(offset, f"{epoch}{offset}".encode()) for offset in offsets)


def page(
    start: int,
    end: int,
    *,
    epoch: str = "A",
    top: int | None = None,
    floor: int = 0,
    lost: GapReason | None = None,
) -> StreamPage:
    """What a read answers that brings what comes after *start* up to *end*."""
    top = end if top is None else top
    return StreamPage(epoch, top, floor, start, entries(range(start + 1, end + 1), epoch), lost)


def feed_at(offset: int, epoch: str = "A", **options: Any) -> Feed:
    feed = Feed(**options)
    feed.reading()
    feed.absorb(page(offset, offset, epoch=epoch))
    assert feed.cursor == at(offset, epoch)
    assert not feed.wants_read
    return feed


def hint(feed: Feed, offset: int, epoch: str = "A") -> Verdict:
    return feed.offer(at(offset, epoch), f"{epoch}{offset}".encode())


class TestPage:
    def test_ends_with_its_last_entry(self) -> None:
        assert page(3, 5).end == 5

    def test_without_entries_ends_where_it_starts(self) -> None:
        assert page(3, 3, top=9).end == 3

    def test_knows_where_the_stream_ended(self) -> None:
        assert page(3, 5, top=9).position == at(9)


# Epoch A was taken over by B at 7, and that by C at 5; now C:4 to C:9 are kept.
HISTORY = {"epoch": "C", "top": 9, "floor": 3}
TAKEOVERS = (("A", 7), ("B", 5))


class TestLocate:
    @pytest.mark.parametrize(
        "since, expected",
        [
            (None, (3, None)),
            (at(3, "C"), (3, None)),
            (at(6, "C"), (6, None)),
            (at(9, "C"), (9, None)),
            (at(10, "C"), (9, "rollback")),
            (at(2, "C"), (3, "trimmed")),
            (at(0, "C"), (3, "trimmed")),
            (at(6, "X"), (3, "epoch")),
            (at(0, "X"), (3, "epoch")),
        ],
    )
    def test_in_one_epoch(self, since: Position | None, expected: tuple[int, GapReason | None]) -> None:
        assert locate(since, **HISTORY) == expected  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "since, expected",
        [
            (at(5, "B"), (5, None)),
            (at(4, "B"), (4, None)),
            (at(6, "B"), (5, "rollback")),
            (at(2, "B"), (3, "trimmed")),
            (at(5, "A"), (5, None)),
            (at(6, "A"), (5, "rollback")),  # A gave B the 6, but B lost it
            (at(8, "A"), (5, "rollback")),
            (at(5, "X"), (3, "epoch")),
            (at(6, "C"), (6, None)),
        ],
    )
    def test_across_takeovers(self, since: Position, expected: tuple[int, GapReason | None]) -> None:
        assert locate(since, **HISTORY, takeovers=TAKEOVERS) == expected  # type: ignore[arg-type]

    def test_what_was_shared_may_be_trimmed(self) -> None:
        where = locate(at(8, "A"), epoch="B", top=20, floor=12, takeovers=[("A", 7)])
        assert where == (12, "rollback")

    @pytest.mark.parametrize(
        "since, expected",
        [
            (None, (9, None)),
            (at(9, "C"), (8, None)),
            (at(5, "C"), (4, None)),
            (at(4, "C"), (3, "trimmed")),
            (at(2, "C"), (1, "trimmed")),
            (at(1, "C"), (0, None)),  # there never was anything before it
            (at(0, "C"), (0, None)),
            (at(10, "C"), (9, "rollback")),
            (at(5, "B"), (4, None)),
            (at(6, "A"), (9, "rollback")),
            (at(5, "X"), (9, "epoch")),
        ],
    )
    def test_in_reverse(self, since: Position | None, expected: tuple[int, GapReason | None]) -> None:
        assert locate_back(since, **HISTORY, takeovers=TAKEOVERS) == expected  # type: ignore[arg-type]


class TestFeed:
    def test_begins_with_a_read_of_the_top(self) -> None:
        feed = Feed()
        assert feed.wants_read
        assert feed.reading() is None
        assert feed.absorb(page(4, 4)) == Moved()
        assert feed.cursor == at(4)
        assert not feed.wants_read

    def test_holds_what_comes_before_its_first_page(self) -> None:
        feed = Feed()
        feed.reading()
        assert [hint(feed, n) for n in (4, 5, 6)] == [Verdict.READ] * 3
        assert feed.absorb(page(4, 4)).entries == entries([5, 6])
        assert feed.cursor == at(6)
        assert not feed.wants_read

    def test_delivers_what_is_next(self) -> None:
        feed = feed_at(4)
        assert hint(feed, 5) is Verdict.DELIVER
        assert feed.cursor == at(5)

    def test_drops_what_is_old(self) -> None:
        feed = feed_at(4)
        assert [hint(feed, n) for n in (4, 3, 1)] == [Verdict.OLD] * 3
        assert not feed.wants_read

    def test_reads_when_there_is_a_hole(self) -> None:
        feed = feed_at(4)
        assert hint(feed, 7) is Verdict.READ
        assert feed.reading() == at(4)
        moved = feed.absorb(page(4, 6, top=7))
        assert moved.entries == entries([5, 6, 7])
        assert (moved.gap, moved.epoch_changed, moved.start) == (None, False, None)
        assert not feed.wants_read

    def test_delivers_the_next_even_in_doubt(self) -> None:
        # Waiting for the read would cost every member of a busy room its latency, and prove nothing more.
        feed = feed_at(4)
        feed.doubt()
        assert hint(feed, 5) is Verdict.DELIVER
        assert feed.wants_read

    def test_the_next_waits_for_held_ones_that_follow_it(self) -> None:
        feed = feed_at(4)
        assert hint(feed, 6) is Verdict.READ
        assert hint(feed, 5) is Verdict.READ
        feed.reading()
        assert feed.absorb(page(4, 5, top=6)).entries == entries([5, 6])

    def test_the_next_does_not_wait_for_what_is_held_of_another_epoch(self) -> None:
        feed = feed_at(4)
        hint(feed, 6, "B")
        assert hint(feed, 5) is Verdict.DELIVER

    def test_a_held_one_that_comes_again_takes_no_more_room(self) -> None:
        feed = feed_at(4, max_held_size=4)
        for offset in (6, 7, 7, 6):
            hint(feed, offset)
        assert repr(feed) == "<Feed at A:4, 2 held, wants read>"

    def test_a_held_one_may_come_twice(self) -> None:
        feed = feed_at(4, max_held=2)
        for offset in (6, 6, 6, 7):
            hint(feed, offset)
        feed.reading()
        assert feed.absorb(page(4, 5, top=7)).entries == entries([5, 6, 7])
        assert not feed.wants_read

    def test_reads_on_when_the_page_was_full(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        assert feed.absorb(page(4, 6, top=9)).entries == entries([5, 6])
        assert feed.wants_read
        assert feed.reading() == at(6)
        feed.absorb(page(6, 9))
        assert not feed.wants_read

    def test_a_page_that_another_has_overtaken_brings_the_rest(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        feed.extend(page(4, 6, top=6))
        assert feed.absorb(page(4, 8)).entries == entries([7, 8])

    def test_a_page_that_is_overtaken_altogether_brings_nothing(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        for offset in (5, 6, 7):
            hint(feed, offset)
        assert feed.absorb(page(4, 5)) == Moved()
        assert feed.cursor == at(7)

    def test_trimmed_is_a_gap(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        moved = feed.absorb(page(7, 9, floor=7, lost="trimmed"))
        assert moved == Moved(Gap(4, 7, "A", "trimmed"), False, entries([8, 9]), at(7))
        assert feed.cursor == at(9)

    def test_trimmed_is_no_gap_if_another_page_brought_it(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        feed.extend(page(4, 8, top=8))
        assert feed.absorb(page(7, 9, floor=7, lost="trimmed")) == Moved(entries=entries([9]))

    def test_a_new_epoch_is_a_gap_up_to_the_oldest_kept(self) -> None:
        feed = feed_at(4)
        assert hint(feed, 3, "B") is Verdict.READ
        feed.reading()
        moved = feed.absorb(page(1, 3, epoch="B", floor=1, lost="epoch"))
        assert moved == Moved(Gap(0, 1, "B", "epoch"), True, entries([2, 3], "B"), at(1, "B"))
        assert feed.cursor == at(3, "B")
        assert not feed.wants_read

    def test_an_epoch_that_goes_on_is_no_gap(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        moved = feed.absorb(page(4, 6, epoch="B"))
        assert moved == Moved(None, True, entries([5, 6], "B"), at(4, "B"))

    @pytest.mark.parametrize("lost", [None, "trimmed", "rollback"])
    def test_an_epoch_that_goes_on_was_asked_about_one_place_only(self, lost: GapReason | None) -> None:
        # A:5 came while the page was under way. Whether B has that very A:5, the page does not say.
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        hint(feed, 5)
        assert feed.absorb(page(4, 6, epoch="B", lost=lost)) == Moved()
        assert feed.cursor == at(5)
        assert feed.wants_read
        assert feed.reading() == at(5)
        assert feed.absorb(page(5, 6, epoch="B")).entries == entries([6], "B")

    def test_what_came_before_the_read_began_is_part_of_the_question(self) -> None:
        feed = feed_at(4)
        hint(feed, 5)
        feed.doubt()
        feed.reading()
        assert feed.absorb(page(5, 6, epoch="B")).entries == entries([6], "B")
        assert not feed.wants_read

    def test_an_epoch_begun_anew_says_the_same_to_all(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        hint(feed, 5)
        assert feed.absorb(page(0, 1, epoch="B", lost="epoch")).gap == Gap(0, 0, "B", "epoch")

    def test_a_rollback_to_a_kept_place_misses_nothing(self) -> None:
        feed = feed_at(7)
        feed.doubt()
        feed.reading()
        moved = feed.absorb(page(5, 6, epoch="B", floor=2, lost="rollback"))
        assert moved == Moved(Gap(5, 5, "B", "rollback"), True, entries([6], "B"), at(5, "B"))

    def test_a_rollback_to_a_trimmed_place_misses_what_is_not_kept(self) -> None:
        feed = feed_at(7)
        feed.doubt()
        feed.reading()
        moved = feed.absorb(page(9, 10, epoch="B", floor=9, lost="rollback"))
        assert moved.gap == Gap(0, 9, "B", "rollback")

    def test_a_rollback_within_an_epoch_proves_nothing_but_the_top(self) -> None:
        # No honest broker does that. Which of the kept ones replaced what we had, nobody knows.
        feed = feed_at(7)
        feed.doubt()
        feed.reading()
        moved = feed.absorb(page(5, 5, lost="rollback"))
        assert moved == Moved(Gap(0, 5, "A", "rollback"), False, (), at(5))
        assert feed.cursor == at(5)
        assert not feed.wants_read

    def test_an_epoch_may_flip_there_and_back(self) -> None:
        # Two primaries that both answer: dishonest, but each flip is told.
        feed = feed_at(4)
        for epoch in "BAB":
            feed.doubt()
            feed.reading()
            moved = feed.absorb(page(0, 2, epoch=epoch, lost="epoch"))
            assert moved.gap == Gap(0, 0, epoch, "epoch")
            assert feed.cursor == at(2, epoch)
            assert not feed.wants_read

    def test_a_late_hint_of_an_old_epoch_costs_one_read(self) -> None:
        feed = feed_at(4, "B")
        assert hint(feed, 9, "A") is Verdict.READ
        feed.reading()
        assert feed.absorb(page(4, 4, epoch="B")) == Moved()
        assert not feed.wants_read

    def test_a_hint_of_a_new_epoch_outlives_a_page_that_is_older(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        assert hint(feed, 1, "B") is Verdict.READ
        assert feed.absorb(page(4, 5)) == Moved(entries=entries([5]))
        assert feed.wants_read
        feed.reading()
        assert feed.absorb(page(0, 1, epoch="B", lost="epoch")).epoch_changed
        assert not feed.wants_read

    def test_a_doubt_outlives_a_page_that_is_older(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        feed.doubt()
        feed.absorb(page(4, 4))
        assert feed.wants_read
        feed.reading()
        feed.absorb(page(4, 5))
        assert not feed.wants_read

    def test_a_failed_read_leaves_the_doubt(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        assert feed.wants_read
        feed.reading()
        feed.absorb(page(4, 4))
        assert not feed.wants_read

    def test_without_reading_it_reads_once_more(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.absorb(page(4, 4))
        assert feed.wants_read
        feed.absorb(page(4, 4))
        assert not feed.wants_read

    def test_without_reading_what_is_held_is_read_for_once_more(self) -> None:
        feed = feed_at(4, "B")
        hint(feed, 9, "A")
        feed.absorb(page(4, 4, epoch="B"))
        assert feed.wants_read
        feed.absorb(page(4, 4, epoch="B"))
        assert not feed.wants_read

    def test_without_reading_a_takeover_is_asked_about_once_more(self) -> None:
        feed = feed_at(4)
        hint(feed, 5)
        feed.doubt()
        assert feed.absorb(page(5, 6, epoch="B")) == Moved()
        assert feed.wants_read
        assert feed.absorb(page(5, 6, epoch="B")).entries == entries([6], "B")

    def test_a_held_one_that_the_stream_denies_is_dropped(self) -> None:
        # Without this a stream that went back would be read for ever.
        feed = feed_at(4)
        hint(feed, 9)
        feed.reading()
        assert feed.absorb(page(4, 5)) == Moved(entries=entries([5]))
        assert not feed.wants_read

    def test_a_held_one_that_came_during_the_read_is_read_for(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        hint(feed, 9)
        feed.absorb(page(4, 5))
        assert feed.wants_read
        assert feed.reading() == at(5)
        assert feed.absorb(page(5, 8, top=9)).entries == entries([6, 7, 8, 9])

    @pytest.mark.parametrize("options", [{"max_held": 2}, {"max_held_size": 6}])
    def test_what_it_cannot_hold_it_reads(self, options: dict[str, Any]) -> None:
        feed = feed_at(4, **options)
        feed.doubt()
        feed.reading()
        for offset in range(6, 12):
            assert hint(feed, offset) is Verdict.READ
        assert feed.absorb(page(4, 5)).entries == entries([5])
        assert feed.wants_read
        feed.reading()
        assert feed.absorb(page(5, 9, top=11)).entries == entries([6, 7, 8, 9, 10, 11])
        assert not feed.wants_read

    def test_it_reads_for_one_too_large_to_hold(self) -> None:
        feed = feed_at(4, max_held_size=1)
        assert hint(feed, 6) is Verdict.READ
        assert feed.wants_read

    def test_a_page_read_from_beyond_the_cursor_is_passed_over(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.reading()
        assert feed.absorb(page(6, 8)) == Moved()
        assert feed.cursor == at(4)
        assert feed.wants_read

    def test_a_members_page_shows_what_is_next(self) -> None:
        feed = feed_at(4)
        assert feed.extend(page(2, 6)) == Moved(entries=entries([5, 6]))
        assert feed.cursor == at(6)
        assert not feed.wants_read

    def test_a_members_page_releases_what_is_held(self) -> None:
        feed = feed_at(4)
        hint(feed, 7)
        assert feed.extend(page(2, 6)).entries == entries([5, 6, 7])
        assert not feed.wants_read

    @pytest.mark.parametrize(
        "other",
        [
            page(1, 3, top=9),  # what lies before the cursor
            page(5, 9),  # what begins beyond it
            page(7, 9, floor=7, lost="trimmed"),  # the member has a gap, the node may have none
            page(2, 2, top=2, lost="rollback"),
        ],
    )
    def test_a_members_page_that_does_not_follow_on_says_nothing(self, other: StreamPage) -> None:
        feed = feed_at(4)
        assert feed.extend(other) == Moved()
        assert feed.cursor == at(4)
        assert not feed.wants_read

    def test_a_members_page_of_another_epoch_raises_a_doubt(self) -> None:
        feed = feed_at(4)
        assert feed.extend(page(0, 9, epoch="B", lost="epoch")) == Moved()
        assert feed.wants_read

    def test_a_members_page_that_shows_more_to_come_raises_a_doubt(self) -> None:
        feed = feed_at(4)
        feed.extend(page(3, 6, top=9))
        assert feed.wants_read

    def test_a_members_page_settles_no_doubt(self) -> None:
        feed = feed_at(4)
        feed.doubt()
        feed.extend(page(3, 6))
        assert feed.wants_read

    def test_a_members_page_keeps_what_is_held_of_another_epoch(self) -> None:
        feed = feed_at(4)
        hint(feed, 1, "B")
        feed.extend(page(3, 6))
        assert feed.wants_read

    def test_a_members_page_means_nothing_to_a_feed_without_cursor(self) -> None:
        feed = Feed()
        assert feed.extend(page(0, 3)) == Moved()
        assert feed.cursor is None

    def test_tops_are_compared(self) -> None:
        feed = feed_at(4)
        assert not feed.differs(at(4))
        assert feed.differs(at(5))
        assert feed.differs(at(3))
        assert feed.differs(at(4, "B"))
        assert not Feed().differs(at(4))

    def test_it_has_a_telling_repr(self) -> None:
        feed = feed_at(4)
        assert repr(feed) == "<Feed at A:4, 0 held>"
        hint(feed, 6)
        assert repr(feed) == "<Feed at A:4, 1 held, wants read>"

    def test_moved_is_true_if_anything_happened(self) -> None:
        assert not Moved()
        assert Moved(entries=entries([1]))
        assert Moved(epoch_changed=True)
        assert Moved(Gap(0, 0, "A", "epoch"))


def catching(since: Position | None, cursor: Position, *, joining: bool = True, **options: Any) -> CatchUp:
    catch = CatchUp(since, joining=joining, **options)
    catch.begin(cursor)
    return catch


class TestCatchUp:
    def test_without_a_position_it_begins_at_the_cursor(self) -> None:
        catch = catching(None, at(4))
        assert catch.meet(at(4)) == (Meeting.LIVE, NOTHING)
        assert catch.position == at(4)

    def test_at_the_cursor_it_is_live_without_a_read(self) -> None:
        # Ten thousand that come back to a quiet room cost the broker nothing.
        assert catching(at(4), at(4)).meet(at(4)) == (Meeting.LIVE, NOTHING)

    def test_it_is_an_error_to_meet_before_it_began(self) -> None:
        with pytest.raises(RuntimeError, match="begin"):
            CatchUp(at(3), joining=True).meet(at(4))

    def test_it_reads_what_it_missed(self) -> None:
        catch = catching(at(2), at(4))
        assert catch.meet(at(4)) == (Meeting.READ, NOTHING)
        assert catch.page(page(2, 4)) == (entries([3, 4]), None)
        assert catch.meet(at(4)) == (Meeting.LIVE, NOTHING)

    def test_it_gets_what_was_delivered_meanwhile(self) -> None:
        catch = catching(at(2), at(4))
        for entry in entries([5, 6]):
            catch.offer(entry)
        catch.page(page(2, 5))
        assert catch.meet(at(6)) == (Meeting.LIVE, entries([6]))
        assert catch.position == at(6)
        catch.offer(entries([7])[0])
        assert repr(catch) == "<CatchUp at A:6, 0 buffered>"

    def test_what_it_read_must_reach_its_buffer(self) -> None:
        catch = catching(at(1), at(4))
        catch.offer(entries([5])[0])
        catch.page(page(1, 3, top=5))
        assert catch.meet(at(5)) == (Meeting.READ, NOTHING)
        # The buffer is kept: what it covers needs no reading, however fast the room is.
        catch.page(page(3, 4, top=5))
        assert catch.meet(at(5)) == (Meeting.LIVE, entries([5]))

    @pytest.mark.parametrize("options", [{"max_buffered": 2}, {"max_buffered_size": 4}])
    def test_what_it_cannot_buffer_it_reads(self, options: dict[str, Any]) -> None:
        catch = catching(at(4), at(4), **options)
        for entry in entries([5, 6, 7, 8]):
            catch.offer(entry)
        assert catch.meet(at(8)) == (Meeting.READ, NOTHING)
        catch.page(page(4, 5, top=8))
        assert catch.meet(at(8)) == (Meeting.READ, NOTHING)
        catch.page(page(5, 6, top=8))
        assert catch.meet(at(8)) == (Meeting.LIVE, entries([7, 8]))

    def test_one_too_large_to_buffer_is_read(self) -> None:
        catch = catching(at(4), at(4), max_buffered_size=1)
        catch.offer(entries([5])[0])
        assert catch.meet(at(5)) == (Meeting.READ, NOTHING)
        catch.page(page(4, 5))
        assert catch.meet(at(5)) == (Meeting.LIVE, NOTHING)

    def test_knowing_more_than_the_node_it_repairs_the_node(self) -> None:
        catch = catching(at(2), at(4))
        catch.page(page(2, 9))
        assert catch.meet(at(4)) == (Meeting.REPAIR, NOTHING)
        for entry in entries([5, 6, 7, 8, 9]):
            catch.offer(entry)
        assert catch.meet(at(9)) == (Meeting.LIVE, NOTHING)

    @pytest.mark.parametrize("since", [at(9), at(2, "X")])
    def test_what_it_brought_along_is_asked_of_the_broker_first(self, since: Position) -> None:
        catch = catching(since, at(4))
        assert catch.meet(at(4)) == (Meeting.READ, NOTHING)

    def test_after_a_repair_it_reads_again(self) -> None:
        # Or two that never agree would go on for ever.
        catch = catching(at(2), at(4))
        catch.page(page(2, 4))
        catch.jumped(at(1, "B"))
        assert catch.meet(at(1, "B")) == (Meeting.REPAIR, NOTHING)
        assert catch.meet(at(1, "B")) == (Meeting.READ, NOTHING)

    def test_a_jump_of_the_feed_starts_the_buffer_anew(self) -> None:
        catch = catching(at(2), at(4), joining=False)
        catch.offer(entries([5])[0])
        catch.jumped(at(1, "B"))
        catch.offer(entries([2], "B")[0])
        entries_, gap = catch.page(page(1, 1, epoch="B", top=2, floor=1, lost="epoch"))
        assert (entries_, gap) == (NOTHING, Gap(0, 1, "B", "epoch"))
        assert catch.meet(at(2, "B")) == (Meeting.LIVE, entries([2], "B"))

    def test_before_it_begins_nothing_is_buffered(self) -> None:
        catch = CatchUp(at(4), joining=False)
        catch.jumped(at(7))
        catch.offer(entries([8])[0])
        assert repr(catch) == "<CatchUp at A:4, 0 buffered>"
        catch.begin(at(8))
        assert catch.meet(at(8)) == (Meeting.READ, NOTHING)

    def test_an_entry_from_before_the_buffer_is_not_buffered(self) -> None:
        catch = catching(at(6), at(4))
        for entry in entries([3, 4, 5, 6, 7]):
            catch.offer(entry)
        assert catch.meet(at(7)) == (Meeting.LIVE, entries([7]))

    def test_a_driver_that_forgets_to_offer_makes_no_hole(self) -> None:
        catch = catching(at(4), at(4))
        catch.offer(entries([6])[0])
        assert catch.meet(at(6)) == (Meeting.READ, NOTHING)
        catch.page(page(4, 5, top=6))
        assert catch.meet(at(6)) == (Meeting.LIVE, entries([6]))

    def test_a_driver_that_forgets_the_last_one_makes_no_hole(self) -> None:
        catch = catching(at(4), at(4))
        catch.offer(entries([5])[0])
        assert catch.meet(at(6)) == (Meeting.READ, NOTHING)

    def test_a_driver_that_forgets_a_jump_makes_no_hole(self) -> None:
        catch = catching(at(4), at(4), joining=False)
        catch.page(page(0, 2, epoch="B", top=3, lost="epoch"))
        assert catch.meet(at(3, "B")) == (Meeting.READ, NOTHING)
        catch.page(page(2, 3, epoch="B"))
        catch.offer(entries([4], "B")[0])
        assert catch.meet(at(4, "B")) == (Meeting.LIVE, entries([4], "B"))

    def test_a_buffer_begun_anew_has_all_its_room(self) -> None:
        catch = catching(at(4), at(4), max_buffered_size=4)
        for entry in entries([5, 6]):
            catch.offer(entry)
        catch.jumped(at(7))
        for entry in entries([8, 9]):
            catch.offer(entry)
        assert repr(catch) == "<CatchUp at A:4, 2 buffered>"

    @pytest.mark.parametrize("answer", [page(5, 6), page(6, 7, epoch="B"), page(3, 7, epoch="B")])
    def test_a_page_read_from_elsewhere_is_passed_over(self, answer: StreamPage) -> None:
        catch = catching(at(4), at(8))
        assert catch.page(answer) == (NOTHING, None)
        assert catch.position == at(4)
        assert catch.meet(at(8)) == (Meeting.READ, NOTHING)

    def test_a_page_read_from_an_earlier_place_brings_the_rest(self) -> None:
        catch = catching(at(4), at(8))
        assert catch.page(page(2, 6, top=8)) == (entries([5, 6]), None)


class TestJoining:
    def test_trimmed_sends_it_to_the_top(self) -> None:
        catch = catching(at(2), at(9))
        assert catch.page(page(5, 7, top=9, floor=5, lost="trimmed")) == (NOTHING, Gap(2, 9, "A", "trimmed"))
        assert catch.meet(at(9)) == (Meeting.LIVE, NOTHING)

    def test_another_epoch_sends_it_to_the_top(self) -> None:
        catch = catching(at(2), at(9, "B"))
        assert catch.page(page(5, 7, epoch="B", top=9, floor=5, lost="epoch")) == (
            NOTHING,
            Gap(0, 9, "B", "epoch"),
        )
        assert catch.meet(at(9, "B")) == (Meeting.LIVE, NOTHING)

    def test_a_rollback_sends_it_to_the_top(self) -> None:
        catch = catching(at(8), at(9, "B"))
        assert catch.page(page(6, 9, epoch="B", floor=2, lost="rollback")) == (
            NOTHING,
            Gap(6, 9, "B", "rollback"),
        )

    def test_beyond_the_top_of_its_epoch_nothing_is_proven(self) -> None:
        catch = catching(at(12), at(9))
        assert catch.page(page(9, 9, lost="rollback")) == (NOTHING, Gap(0, 9, "A", "rollback"))

    def test_an_epoch_that_goes_on_is_recovered(self) -> None:
        catch = catching(at(6), at(6, "B"))
        assert catch.page(page(6, 7, epoch="B")) == (entries([7], "B"), None)
        assert catch.position == at(7, "B")

    def test_what_comes_after_the_gap_is_delivered(self) -> None:
        catch = catching(at(2), at(9))
        catch.page(page(5, 7, top=9, floor=5, lost="trimmed"))
        catch.offer(entries([10])[0])
        assert catch.meet(at(10)) == (Meeting.LIVE, entries([10]))

    def test_lost_between_two_pages_the_gap_begins_where_it_came_in(self) -> None:
        catch = catching(at(2), at(9))
        catch.page(page(2, 4, top=9))
        assert catch.page(page(6, 8, top=9, floor=6, lost="trimmed")) == (NOTHING, Gap(2, 9, "A", "trimmed"))

    def test_one_that_asked_for_nothing_came_in_at_the_cursor(self) -> None:
        # What its join hook told it is as new as that; all that came later is missing.
        catch = catching(None, at(4), max_buffered=1)
        for entry in entries([5, 6, 7, 8, 9]):
            catch.offer(entry)
        catch.page(page(4, 6, top=9))
        assert catch.page(page(8, 9, floor=8, lost="trimmed")) == (NOTHING, Gap(4, 9, "A", "trimmed"))

    def test_lost_twice_is_one_gap(self) -> None:
        catch = catching(at(4), at(9))
        catch.page(page(5, 7, top=9, floor=5, lost="trimmed"))
        assert catch.page(page(8, 8, epoch="B", floor=3, lost="rollback")) == (
            NOTHING,
            Gap(4, 8, "B", "trimmed"),
        )
        assert catch.page(page(0, 1, epoch="C", lost="epoch")) == (NOTHING, Gap(0, 1, "C", "epoch"))
        assert catch.page(page(5, 6, epoch="C", floor=5, lost="trimmed")) == (
            NOTHING,
            Gap(0, 6, "C", "epoch"),
        )


class TestRewind:
    @pytest.mark.parametrize("lost", ["trimmed", "epoch", "rollback"])
    def test_what_it_wished_for_is_no_gap(self, lost: GapReason) -> None:
        catch = CatchUp(at(2), joining=True, forgiving=True)
        catch.begin(at(9))
        epoch = "A" if lost == "trimmed" else "B"
        answer = page(5, 7, epoch=epoch, top=9, floor=5, lost=lost)
        assert catch.page(answer) == (entries([6, 7], epoch), None)
        assert catch.position == at(7, epoch)

    def test_a_wish_that_is_trimmed_altogether_begins_at_the_top(self) -> None:
        catch = CatchUp(at(2), joining=True, forgiving=True)
        catch.begin(at(9))
        assert catch.page(page(9, 9, floor=9, lost="trimmed")) == (NOTHING, None)
        assert catch.meet(at(9)) == (Meeting.LIVE, NOTHING)

    def test_a_hole_after_the_first_page_is_a_gap(self) -> None:
        catch = CatchUp(at(2), joining=True, forgiving=True)
        catch.begin(at(9))
        catch.page(page(2, 4, top=9))
        assert catch.page(page(6, 8, top=9, floor=6, lost="trimmed")) == (NOTHING, Gap(2, 9, "A", "trimmed"))


class TestFallenBehind:
    def test_trimmed_it_goes_on_at_the_oldest_kept(self) -> None:
        catch = catching(at(2), at(9), joining=False)
        lost = catch.page(page(5, 7, top=9, floor=5, lost="trimmed"))
        assert lost == (entries([6, 7]), Gap(2, 5, "A", "trimmed"))
        assert catch.position == at(7)

    def test_in_a_new_epoch_it_goes_on_at_the_oldest_kept(self) -> None:
        catch = catching(at(2), at(9, "B"), joining=False)
        lost = catch.page(page(5, 9, epoch="B", floor=5, lost="epoch"))
        assert lost == (entries([6, 7, 8, 9], "B"), Gap(0, 5, "B", "epoch"))

    def test_after_a_rollback_it_goes_on_where_the_epochs_part(self) -> None:
        catch = catching(at(8), at(7, "B"), joining=False)
        lost = catch.page(page(6, 7, epoch="B", floor=2, lost="rollback"))
        assert lost == (entries([7], "B"), Gap(6, 6, "B", "rollback"))

    def test_trimmed_after_a_takeover(self) -> None:
        catch = catching(at(4), at(7, "B"), joining=False)
        lost = catch.page(page(6, 7, epoch="B", floor=6, lost="trimmed"))
        assert lost == (entries([7], "B"), Gap(4, 6, "B", "trimmed"))

    def test_each_loss_is_a_gap_of_its_own(self) -> None:
        catch = catching(at(2), at(9), joining=False)
        catch.page(page(5, 7, top=9, floor=5, lost="trimmed"))
        assert catch.page(page(8, 9, floor=8, lost="trimmed")) == (entries([9]), Gap(7, 8, "A", "trimmed"))
