from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.errors import NotRunning
from rtkit.primitives import Deadline, Deadlines
from rtkit.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=0)


@pytest.fixture
def log() -> list[Any]:
    return []


def test_fires_in_order_with_one_timer(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    for when in (3, 1, 2, 1):
        deadlines.at(when, log.append, when)
    assert clock.timers == 1
    assert deadlines.next_at == 1
    assert len(deadlines) == 4
    clock.advance_nowait(1)
    assert log == [1, 1]
    assert clock.timers == 1
    clock.advance_nowait(5)
    assert log == [1, 1, 2, 3]
    assert clock.timers == 0
    assert deadlines.next_at is None
    assert deadlines.statistics().fired == 4
    assert deadlines


def test_at_never_calls_before_returning(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    deadlines.at(-5, log.append, 1)
    assert log == []
    clock.advance_nowait(0)
    assert log == [1]


def test_cancel(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    first = deadlines.at(1, log.append, 1)
    deadlines.at(2, log.append, 2)
    first.cancel()
    first.cancel()
    assert not first.armed
    assert not first.move(5)
    clock.advance_nowait(3)
    assert log == [2]
    first.cancel()


def test_the_last_cancel_gives_the_timer_back(clock: ManualClock) -> None:
    deadlines = Deadlines(clock)
    entries = [deadlines.at(n, print) for n in range(1, 4)]
    for entry in entries:
        entry.cancel()
    assert clock.timers == 0
    assert deadlines.statistics().garbage == 0


def test_move_later_touches_nothing(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    entry = deadlines.at(10, log.append, "x")
    for when in range(11, 1000):
        assert entry.move(when)
    assert entry.when == 999
    assert deadlines.statistics().garbage == 0
    clock.advance_nowait(998)
    assert log == []
    clock.advance_nowait(1)
    assert log == ["x"]


def test_move_earlier(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    entry = deadlines.at(100, log.append, "x")
    entry.move(5)
    assert entry.when == 5
    clock.advance_nowait(5)
    assert log == ["x"]
    clock.advance_nowait(200)
    assert log == ["x"]


def test_move_after_firing_arms_again(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)

    def fire() -> None:
        log.append(clock.monotonic())
        if len(log) < 3:
            entry.move(clock.monotonic() + 10)

    entry = deadlines.at(1, fire)
    clock.advance_nowait(100)
    assert log == [1, 11, 21]
    assert not entry.armed
    assert entry.move(150)
    clock.advance_nowait(50)
    assert log == [1, 11, 21, 150]


def test_an_infinite_deadline_waits_to_be_moved(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    entry = deadlines.at(math.inf, log.append, 1)
    assert clock.timers == 0
    assert len(deadlines) == 1
    entry.move(4)
    entry.move(math.inf)
    clock.advance_nowait(10)
    assert log == []
    entry.move(12)
    clock.advance_nowait(10)
    assert log == [1]


def test_callbacks_may_add_cancel_and_move(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)

    def first() -> None:
        log.append("first")
        cancelled.cancel()
        moved.move(7)
        deadlines.at(0, log.append, "added")

    deadlines.at(1, first)
    cancelled = deadlines.at(1, log.append, "cancelled")
    moved = deadlines.at(1, log.append, "moved")
    deadlines.at(1, log.append, "last")
    clock.advance_nowait(1)
    assert log == ["first", "last", "added"]
    clock.advance_nowait(6)
    assert log == ["first", "last", "added", "moved"]


@pytest.mark.parametrize("how", ["clear", "close"])
def test_a_callback_may_end_everything(clock: ManualClock, log: list[Any], how: str) -> None:
    deadlines = Deadlines(clock)
    deadlines.at(1, getattr(deadlines, how))
    deadlines.at(1, log.append, "same time")
    deadlines.at(2, log.append, "later")
    clock.advance_nowait(5)
    assert log == []
    assert clock.timers == 0


def test_a_failing_callback_stops_no_other(
    clock: ManualClock, log: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    deadlines = Deadlines(clock)
    deadlines.at(1, lambda: 1 / 0)
    deadlines.at(1, log.append, "after")
    clock.advance_nowait(1)
    assert log == ["after"]
    assert "ZeroDivisionError" in caplog.text
    assert caplog.records[0].name == "rtkit.deadlines"
    assert deadlines.statistics().failed == 1


def test_keyboard_interrupt_leaves_the_rest_due(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)

    def interrupt() -> None:
        raise KeyboardInterrupt

    deadlines.at(1, interrupt)
    deadlines.at(1, log.append, "after")
    with pytest.raises(KeyboardInterrupt):
        clock.advance_nowait(1)
    assert log == []
    clock.advance_nowait(0)
    assert log == ["after"]


def test_garbage_is_bounded(clock: ManualClock) -> None:
    deadlines = Deadlines(clock)
    keep = [deadlines.at(1e6 + n, print) for n in range(100)]
    for n in range(10_000):
        deadlines.at(10 + n, print).cancel()
        keep[n % 100].move(1e6 - n)  # earlier: leaves a dead entry
        assert deadlines.statistics().garbage <= 101
    assert len(deadlines) == 100


def test_close_and_clear(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    entry = deadlines.at(1, log.append, 1)
    fired = deadlines.at(0, log.append, 0)
    clock.advance_nowait(0)
    deadlines.clear()
    assert clock.timers == 0
    assert not entry.armed
    assert fired.move(3)
    deadlines.close()
    deadlines.close()
    assert clock.timers == 0
    assert not fired.move(5)
    with pytest.raises(NotRunning):
        deadlines.at(1, print)
    clock.advance_nowait(10)
    assert log == [0]
    assert repr(deadlines) == "<Deadlines closed>"


def test_repr_and_bad_values(clock: ManualClock) -> None:
    deadlines = Deadlines(clock)
    entry = deadlines.at(1, print)
    assert repr(entry) == "<Deadline 1.000 armed>"
    assert repr(deadlines) == "<Deadlines 1 pending>"
    entry.cancel()
    assert repr(entry) == "<Deadline 1.000 cancelled>"
    with pytest.raises(ValueError, match="nan"):
        deadlines.at(math.nan, print)
    with pytest.raises(ValueError, match="nan"):
        deadlines.at(1, print).move(math.nan)
    with pytest.raises(ValueError, match="0"):
        Deadlines(clock, stall=0)


# -- stalls (F5)


def test_a_stall_puts_off_the_patient_and_fires_the_others(clock: ManualClock, log: list[Any]) -> None:
    lags: list[float] = []
    deadlines = Deadlines(clock, on_stall=lags.append)
    deadlines.at(10, log.append, "plain")
    patient = deadlines.at(10, log.append, "patient", patient=True)
    later = deadlines.at(30, log.append, "later", patient=True)
    clock.stall(15)
    clock.advance_nowait(0)
    assert lags == [5]
    assert log == ["plain"]
    assert patient.when == 16  # the lag, and the tolerance to read what waits
    assert later.when == 36
    clock.advance_nowait(1)
    assert log == ["plain", "patient"]
    clock.advance_nowait(20)
    assert log == ["plain", "patient", "later"]
    statistics = deadlines.statistics()
    assert (statistics.stalls, statistics.stalled) == (1, 5)


def test_patient_ones_moved_and_made_after_a_stall(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    old = deadlines.at(10, log.append, "old", patient=True)
    clock.stall(20)
    clock.advance_nowait(0)
    assert old.when == 21
    new = deadlines.at(25, log.append, "new", patient=True)
    assert new.when == 25
    old.move(30)
    assert old.when == 30
    old.move(22)
    clock.advance_nowait(5)
    assert log == ["old", "new"]


def test_patience_can_be_changed(clock: ManualClock, log: list[Any]) -> None:
    """F5: the same deadline is a ping, then a judgement, then a ping."""
    deadlines = Deadlines(clock)
    clock.advance_nowait(3)
    deadlines.at(4, log.append, "late", patient=True)
    clock.stall(11)
    clock.advance_nowait(0)  # from here on the two kinds live in different times
    beat = deadlines.at(20, log.append, "beat")
    for patient in (True, True, None, False, None, True, False):
        assert beat.move(30, patient=patient)
        assert beat.when == 30
        assert beat.armed
    assert len(deadlines) == 2
    assert beat.move(25, patient=True)
    clock.advance_nowait(9)
    assert log == ["late"]
    clock.stall(7)  # to 30, where it is due at 25
    clock.advance_nowait(0)
    assert log == ["late"]
    assert beat.when == 31
    assert beat.move(29, patient=False)
    clock.advance_nowait(0)
    assert log == ["late", "beat"]
    assert beat.move(40, patient=True), "armed again, as the other kind"
    assert beat.when == 40
    clock.advance_nowait(10)
    assert log == ["late", "beat", "beat"]
    assert len(deadlines) == clock.timers == 0


def test_patience_changed_by_another_one_in_the_same_round(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock)
    deadlines.at(1, lambda: beat.move(5, patient=True))
    beat = deadlines.at(1, log.append, "beat")
    clock.advance_nowait(1)
    assert (log, len(deadlines)) == ([], 1)
    clock.advance_nowait(4)
    assert log == ["beat"]


def test_being_late_within_the_tolerance_is_no_stall(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock, stall=2)
    deadlines.at(10, log.append, "patient", patient=True)
    clock.stall(12)
    clock.advance_nowait(0)
    assert log == ["patient"]


def test_no_stall_tolerance(clock: ManualClock, log: list[Any]) -> None:
    deadlines = Deadlines(clock, stall=None)
    deadlines.at(10, log.append, "patient", patient=True)
    clock.stall(1000)
    clock.advance_nowait(0)
    assert log == ["patient"]


def test_a_failing_on_stall_is_logged(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    deadlines = Deadlines(clock, on_stall=lambda lag: 1 / 0)
    deadlines.at(10, print)
    clock.stall(100)
    clock.advance_nowait(0)
    assert "ZeroDivisionError" in caplog.text


# -- against a model


Step = tuple[str, int, float, bool | None]
# Without stalls the kinds differ in nothing.
KIND = st.sampled_from([True, False, None])

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("at"), st.just(0), st.integers(0, 40).map(float), KIND),
        st.tuples(st.just("move"), st.integers(0, 30), st.integers(0, 40).map(float), KIND),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0.0), KIND),
        st.tuples(st.just("advance"), st.just(0), st.integers(0, 15).map(float), KIND),
    ),
    max_size=120,
)


@given(STEPS)
def test_like_a_list(steps: list[Step]) -> None:
    clock = ManualClock(start=0)
    deadlines = Deadlines(clock)
    log: list[tuple[int, float]] = []
    entries: list[Deadline] = []
    model: dict[int, float] = {}
    cancelled: set[int] = set()

    def fire(n: int) -> Callable[[], None]:
        return lambda: log.append((n, clock.monotonic()))

    for what, index, value, patient in steps:
        n = index % len(entries) if entries else None
        if what == "at":
            model[len(entries)] = clock.monotonic() + value
            entries.append(deadlines.at(clock.monotonic() + value, fire(len(entries)), patient=bool(patient)))
        elif what == "move" and n is not None:
            when = clock.monotonic() + value
            assert entries[n].move(when, patient=patient) == (n not in cancelled)
            if n not in cancelled:
                model[n] = when
        elif what == "cancel" and n is not None:
            entries[n].cancel()
            cancelled.add(n)
            model.pop(n, None)
        elif what == "advance":
            log.clear()
            end = clock.monotonic() + value
            clock.advance_nowait(value)
            due = {n: when for n, when in model.items() if when <= end}
            assert sorted(log) == sorted(due.items())
            assert [when for _, when in log] == sorted(when for _, when in log)
            for n in due:
                del model[n]
        assert len(deadlines) == len(model)
        assert deadlines.next_at == min(model.values(), default=None)
        assert (clock.timers > 0) == bool(model)
        for n, when in model.items():
            assert entries[n].armed
            assert entries[n].when == when


@given(st.floats(1.5, 1e4), st.lists(st.floats(0, 1e5), min_size=1, max_size=20))
def test_nobody_is_called_before_its_moment(stalled: float, moments: list[float]) -> None:
    """Or who looks at the clock, and finds that it is not time yet, sets the same moment again and again; found by
    simulation (seed 2000949)."""
    clock = ManualClock(start=0)
    deadlines = Deadlines(clock)
    deadlines.at(0.0, lambda: None)
    clock.stall(stalled)
    clock.advance_nowait(0)
    assert deadlines.statistics().stalls == 1
    moved = deadlines.at(math.inf, lambda: None, patient=True)
    for moment in moments:
        made = deadlines.at(moment, lambda: None, patient=True)
        moved.move(moment)
        assert moment <= made.when == moved.when <= moment + 1e-9 * (stalled + moment)
