"""What a row of records means: no server is needed to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtkit_nats.fields import NOWHERE, Fields
from rtkit_nats.log import Log
from rtkit_nats.records import Damaged, Record

from rtkit.brokers import NewEntry
from rtkit.messages import History
from rtkit.position import Position

PLENTY = History(1000, ttl=1000.0)


def filled(count: int, history: History = PLENTY, *, key: str | None = None) -> tuple[Log, list[Record]]:
    """A log of records with one entry each, a second apart, and the records."""
    log, records = Log(300.0), []
    for number in range(count):
        if number == 0:
            log.apply(log.beginning("one", "life"), sequence=1, stored=0.0)
            records.append(Record("one", 1, fence="life"))
        record = log.appending([NewEntry(b"%d" % number, f"{key}{number}" if key else None)], history)
        records.append(record)
        log.apply(record, sequence=number + 2, stored=float(number))
    return log, records


def shown(log: Log, now: float = 0.0, since: Position | None = None) -> tuple[int, list[int], str | None]:
    """Floor, offsets, and what is lost, of a page."""
    plan = log.plan(now, since=since, limit=1000, reverse=False, history=None)
    return plan.floor, [entry.offset for entry in plan.wanted], plan.lost


@given(
    st.text(),
    st.lists(st.tuples(st.binary(max_size=9), st.none() | st.text(st.characters())), max_size=4),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 9.0)),
    st.lists(st.tuples(st.text(), st.integers(0, 9)), max_size=3),
)
def test_a_record_reads_as_it_was_written(
    epoch: str,
    entries: Sequence[tuple[bytes, str | None]],
    bounds: tuple[int, int, float] | None,
    takeovers: Sequence[tuple[str, int]],
) -> None:
    record = Record(
        epoch, 7, tuple(NewEntry(*entry) for entry in entries), bounds, tuple(takeovers), "life", 3
    )
    assert Record.decode(record.encode()) == record


@given(st.binary() | st.sampled_from([b"{}\n", b'{"s":[9]}\nx', b'{"s":[]}\n', b"[]\n", b'{"s":["x"]}\n']))
def test_what_is_no_record_is_damaged(body: bytes) -> None:
    for kind in (Record, Fields):
        with pytest.raises(Damaged):
            kind.decode(body)


@given(st.integers(0, 10))
def test_without_its_oldest_records_a_log_says_the_same_of_what_is_left(purged: int) -> None:
    whole, records = filled(10)
    rest = Log(300.0)
    for sequence, record in enumerate(records[purged:], purged + 1):
        rest.apply(record, sequence=sequence, stored=float(sequence - 2))
    assert rest.position == whole.position
    assert shown(rest) == (max(0, purged - 1), list(range(max(1, purged), 11)), None)


def test_a_record_that_is_missing_in_the_middle_takes_what_was_before_it_along() -> None:
    _, records = filled(5)
    log = Log(300.0)
    for sequence in (1, 2, 3, 5, 6):
        log.apply(records[sequence - 1], sequence=sequence, stored=0.0)
    assert shown(log) == (3, [4, 5], None)
    assert shown(log, since=Position("one", 2)) == (3, [4, 5], "trimmed")


def test_a_new_epoch_has_nothing_of_the_one_before_but_its_keys() -> None:
    log, _ = filled(3, key="k")
    log.apply(log.beginning("two", "life"), sequence=9, stored=3.0)
    assert (log.position, shown(log)) == (Position("two", 0), (0, [], None))
    assert shown(log, since=Position("one", 3))[2] == "epoch"
    assert log.repeated([NewEntry(b"", "k1"), NewEntry(b"", "x")], 3.0) == {"k1": Position("one", 2)}


def test_a_stream_that_was_taken_over_goes_on_as_far_as_it_is_there() -> None:
    log, _ = filled(3)
    log.apply(log.taken_over("two", "another life"), sequence=9, stored=3.0)
    log.apply(log.appending([NewEntry(b"new")], PLENTY), sequence=10, stored=4.0)
    assert (log.position, log.fence) == (Position("two", 4), "another life")
    assert shown(log, since=Position("one", 2)) == (0, [3, 4], None)
    assert shown(log, since=Position("one", 4)) == (0, [4], "rollback")


def test_bounds_are_those_of_the_last_append_and_time_passes() -> None:
    log, _ = filled(5, History(3, ttl=10.0))
    assert shown(log, 4.0) == (2, [3, 4, 5], None)
    assert shown(log, 12.5) == (3, [4, 5], None)
    assert shown(log, 99.0) == (5, [], None)
    assert log.position == Position("one", 5)


def test_keys_are_forgotten_after_their_window() -> None:
    log, _ = filled(1, key="k")
    entry = NewEntry(b"", "k0")
    assert log.repeated([entry], 299.0)
    assert not log.repeated([entry], 300.0)


def test_a_page_holds_only_so_many_bytes_and_begins_where_it_begins() -> None:
    log = Log(300.0)
    log.apply(Record("one", 1), sequence=1, stored=0.0)
    for sequence in (2, 3, 4):
        record = log.appending([NewEntry(b"x" * 5_000_000)], PLENTY)
        log.apply(record, sequence=sequence, stored=0.0)
    forward = log.plan(0.0, since=None, limit=10, reverse=False, history=None)
    backward = log.plan(0.0, since=None, limit=10, reverse=True, history=None)
    assert [entry.offset for entry in forward.wanted] == [1]
    assert ([entry.offset for entry in backward.wanted], backward.start) == ([3], 2)


def test_records_are_disposable_when_nothing_of_them_is_shown_or_remembered() -> None:
    log, _ = filled(5, History(2, ttl=10.0))
    assert log.disposable(4.0) == 5  # the first of two entries that are kept
    assert log.disposable(4.0, 5) == 0
    keyed, _ = filled(5, History(2, ttl=10.0), key="k")
    assert keyed.disposable(4.0) == 2  # keys are remembered by their records
    assert keyed.disposable(301.5) == 4
    keyed.purged(4)
    assert keyed.disposable(301.5) == 0


def test_the_last_record_stays_until_it_is_replaced_by_one_that_says_only_where_the_stream_stands() -> None:
    log, _ = filled(2, History(2, ttl=10.0))
    assert not log.last_is_stale(5.0)
    assert log.last_is_stale(11.0)
    log.apply(log.mark(), sequence=9, stored=12.0)
    assert not log.last_is_stale(12.0)
    assert (log.position, log.disposable(12.0)) == (Position("one", 2), 9)


# -- fields


def test_fields_read_as_they_were_written() -> None:
    fields = Fields(fence="life").changed({"a": b"1", "": b""}, 10.0, 5.0)
    assert Fields.decode(fields.encode()) == fields
    told = fields.counted(b"payload", lambda: "one")
    assert Fields.decode(told.encode()) == told
    assert (told.position, told.payload) == (Position("one", 1), b"payload")


def test_leases_run_out_and_a_count_does_not_outlive_the_server() -> None:
    fields = Fields(fence="life").changed({"a": b"1"}, 0.0, 10.0).changed({"b": b"2"}, 0.0, 100.0)
    fields = fields.counted(b"", lambda: "one")
    assert fields.at(5.0, "life").values() == {"a": b"1", "b": b"2"}
    assert fields.at(10.0, "life").values() == {"b": b"2"}
    assert fields.at(10.0, "life").position == Position("one", 1)
    assert fields.at(10.0, "another").position == NOWHERE
    assert fields.at(10.0, "another").values() == {"b": b"2"}


def test_an_older_message_that_is_still_there_does_not_count_when_the_newest_is_gone() -> None:
    older = Fields().changed({"a": b"1"}, 0.0, 1000.0)
    newer = older.changed({"a": None}, 5.0, 0.0)
    assert newer.until >= older.until
    assert older.at(newer.until, "").values() == {}
    assert replace(older, until=0.0).at(1.0, "").values() == {}
