"""Who comes in at once, and when the others do (F2)."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import Admission, AdmissionStatistics, Backoff, Rate


def test_a_burst_comes_in_and_the_next_have_a_place_each() -> None:
    admission = Admission(Rate(64, burst=2), spread=0.5)
    assert [admission.refuse(7.0) for _ in range(2)] == [None, None]
    windows = [admission.refuse(7.0) for _ in range(3)]
    assert windows == [(n / 64, n / 64 + 0.5) for n in (1, 2, 3)]
    assert admission.statistics() == AdmissionStatistics(handshakes=0, backlog=3.0)


def test_the_backlog_drains_as_fast_as_they_come_in() -> None:
    admission = Admission(Rate(100, burst=1))
    for _ in range(101):
        admission.refuse(0.0)
    assert admission.backlog(0.25) == pytest.approx(75)
    assert admission.refuse(0.25) is None
    assert admission.refuse(0.25) == pytest.approx((0.76, 1.26))
    assert admission.backlog(5.0) == 0
    assert admission.refuse(5.0) is None
    assert admission.refuse(5.0) == pytest.approx((0.01, 0.51))


def test_a_clock_that_goes_back_gives_nobody_an_earlier_place() -> None:
    admission = Admission(Rate(1, burst=1))
    admission.refuse(10.0)
    admission.refuse(10.0)
    assert admission.refuse(3.0) == pytest.approx((2.0, 2.5))


def test_handshakes_are_bounded_whatever_the_rate() -> None:
    admission = Admission(Rate(100, burst=100), handshakes=2)
    admission.began()
    with admission.handshake():
        assert admission.crowded
        assert admission.refuse(0.0) is not None
        assert admission.statistics().handshakes == 2
    assert admission.refuse(0.0) is None
    admission.ended()
    with pytest.raises(RuntimeError):
        admission.ended()
    with pytest.raises(KeyError), admission.handshake():
        raise KeyError  # it ends whatever comes of it
    assert admission.statistics().handshakes == 0


def test_a_refusal_for_handshakes_takes_no_token() -> None:
    admission = Admission(Rate(1, burst=1), handshakes=1)
    with admission.handshake():
        assert admission.refuse(0.0) is not None
    assert admission.refuse(0.0) is None


def test_without_a_rate_all_have_the_same_window() -> None:
    admission = Admission(handshakes=1, spread=0.5)
    assert admission.refuse(0.0) is None
    with admission.handshake():
        assert [admission.refuse(0.0) for _ in range(3)] == [(0.0, 0.5)] * 3
    assert admission.backlog(0.0) == 0


def test_a_flood_of_strangers_is_forgotten() -> None:
    """However many: whoever comes a minute later comes in."""
    admission = Admission(Rate(10, burst=1), longest=60.0)
    windows = [admission.refuse(0.0) for _ in range(5000)]
    assert windows[-1] == (30.0, 60.0)
    assert max(window[1] for window in windows if window is not None) <= 60.0
    assert admission.backlog(0.0) == pytest.approx(595)
    assert admission.refuse(59.5) is None
    assert admission.refuse(59.5) == pytest.approx((0.1, 0.6))


def test_another_rate_from_now_on() -> None:
    """Who was told a place keeps it; who comes next stands behind as many, at the new rate."""
    admission = Admission(Rate(100, burst=1))
    for _ in range(101):
        admission.refuse(0.0)
    admission.adjust(10, 0.5)
    assert (admission.rate, admission.backlog(0.5)) == (10, pytest.approx(50))
    assert admission.refuse(0.5) is None
    assert admission.refuse(0.5) == pytest.approx((5.1, 5.6))
    admission.adjust(10, 0.5, places=20)
    assert (admission.rate, admission.backlog(0.5)) == (10, pytest.approx(51))
    assert admission.refuse(0.5) == pytest.approx((2.6, 3.1))
    assert admission.refuse(0.6) is None
    admission.adjust(0.1, 0.6)
    assert admission.backlog(0.6) == pytest.approx(5.95), "the queue is a minute long at the most"
    assert admission.refuse(0.6) == (30.0, 60.0)


def test_what_cannot_be_adjusted() -> None:
    with pytest.raises(ValueError, match="without a rate"):
        Admission(handshakes=1).adjust(1, 0.0)
    admission = Admission(Rate(5, burst=1))
    for options in ({"rate": 0.0}, {"rate": 1.0, "places": -1.0}, {"rate": float("nan")}):
        with pytest.raises(ValueError, match="positive"):
            admission.adjust(now=0.0, **options)
    assert admission.rate == 5


def drill(clients: int, rate: Rate, seed: int = 1) -> tuple[float, float, int]:
    """All come within half a second, and do as they are told: when the last one is in, refusals for each client, and
    how many come in the worst second after the first two."""
    admission, chance = Admission(rate), random.Random(seed)
    backoff = Backoff(random=chance)
    coming = [0.5 + chance.random() / 2 for _ in range(clients)]
    heapq.heapify(coming)
    refusals = 0
    seconds: dict[int, int] = {}
    now = 0.0
    while coming:
        now = heapq.heappop(coming)
        seconds[int(now)] = seconds.get(int(now), 0) + 1
        window = admission.refuse(now)
        if window is not None:
            refusals += 1
            heapq.heappush(coming, now + 0.02 + backoff.next(window))
    return now, refusals / clients, max((n for at, n in seconds.items() if at >= 2), default=0)


@pytest.mark.parametrize(("clients", "within"), [(5000, 5.0), (20_000, 20.5)])
def test_those_who_obey_come_back_evenly(clients: int, within: float) -> None:
    """K4: 5,000 are in within 5 s, of more a thousand a second; and hardly anybody is refused twice."""
    last, refusals, worst = drill(clients, Rate(1000, burst=1000))
    assert last < within
    assert refusals < 1.0
    assert worst < 1150


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=200),
    st.floats(0.5, 1000),
    st.integers(1, 50),
)
def test_whatever_comes_when(arrivals: list[tuple[float, bool]], rate: float, burst: int) -> None:
    """The rate holds, windows are windows, and no place is before another's that was given out at the same time."""
    admission = Admission(Rate(rate, burst=burst), handshakes=20)
    now, admitted, began, last_at, last_low = 0.0, 0, 0, -1.0, 0.0
    for after, ends in arrivals:
        now += after
        if ends and began:
            admission.ended()
            began -= 1
        window = admission.refuse(now)
        if window is None:
            admission.began()
            admitted, began = admitted + 1, began + 1
        else:
            low, high = window
            assert 0 <= low < high <= 60.0
            if last_at == now and low < 30.0:
                assert low >= last_low
            last_at, last_low = now, low
        assert began <= 20
        assert admitted <= burst + rate * now + 1e-3
        assert 0 <= admission.backlog(now) <= 60.0 * rate


@pytest.mark.parametrize(
    "options", [{"handshakes": 0}, {"spread": 0.0}, {"spread": 40.0}, {"longest": float("inf")}]
)
def test_numbers_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Admission"):
        Admission(Rate(1, 1), **options)  # type: ignore[arg-type]


def test_it_says_where_it_stands() -> None:
    admission = Admission(Rate(1, burst=1))
    admission.refuse(0.0)
    admission.refuse(0.0)
    assert repr(admission) == "<Admission 0 handshakes, 1 refused and to come>"
