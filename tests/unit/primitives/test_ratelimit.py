from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import Rate, TokenBucket


def test_starts_full_and_refills() -> None:
    bucket = TokenBucket(10, 5)
    assert [bucket.take(1, 100.0) for _ in range(5)] == [0] * 5
    assert bucket.take(1, 100.0) == pytest.approx(0.1)
    assert bucket.take(1, 100.1) == 0
    assert bucket.take(1, 100.1) > 0
    assert bucket.take(5, 200.0) == 0
    assert bucket.take(1, 200.0) == pytest.approx(0.1)


def test_a_refusal_takes_nothing() -> None:
    bucket = TokenBucket(1, 10)
    assert bucket.take(8, 0) == 0
    assert bucket.take(5, 0) == 3
    assert bucket.take(2, 0) == 0


def test_wait_takes_nothing() -> None:
    bucket = TokenBucket(1, 2)
    assert bucket.wait(2, 0) == 0
    assert bucket.wait(2, 0) == 0
    assert bucket.take(2, 0) == 0
    assert bucket.wait(1, 0) == 1


def test_more_than_the_burst_is_never_granted() -> None:
    bucket = TokenBucket(1000, 10)
    assert bucket.take(10.1, 0) == math.inf
    assert bucket.take(10, 0) == 0


def test_force_takes_into_debt() -> None:
    bucket = TokenBucket(10, 100)
    assert bucket.force(100, 0) == 0
    assert bucket.force(50, 0) == 5
    assert bucket.take(1, 0) == pytest.approx(5.1)
    assert bucket.take(1, 5.1) == 0
    assert bucket.force(0, 5.1) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 10)
    assert bucket.take(10, 1000) == 0
    assert bucket.take(1, 10) > 0
    assert bucket.take(1, 1000) > 0  # the way forward again was counted once already
    assert bucket.take(1, 1001) == 0


def test_an_amount_of_nothing() -> None:
    bucket = TokenBucket(1, 1)
    assert bucket.take(1, 0) == 0
    assert bucket.take(0, 0) == 0


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_bad_values_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=rf"rate.*{value}"):
        Rate(value, 1)
    with pytest.raises(ValueError, match=rf"burst.*{value}"):
        TokenBucket(1, value)


@pytest.mark.parametrize("amount", [-1, math.nan])
def test_bad_amounts_are_named(amount: float) -> None:
    bucket = Rate(1, 1).bucket()
    for call in (bucket.take, bucket.wait, bucket.force):
        with pytest.raises(ValueError, match=str(amount)):
            call(amount, 0)


def test_statistics_and_repr() -> None:
    bucket = Rate(50, 100).bucket()
    bucket.take(25, 0)
    statistics = bucket.statistics()
    assert (statistics.tokens, statistics.rate, statistics.burst) == (75, 50, 100)
    assert repr(bucket) == "<TokenBucket 75 of 100, 50/s>"
    assert not hasattr(bucket, "__dict__")


RATES = st.floats(0.01, 1e7)
BURSTS = st.floats(0.01, 1e8)
STARTS = st.floats(0, 1e7)
STEPS = st.lists(st.tuples(st.floats(-2, 10), st.floats(0, 1.2)), max_size=60)


@given(rate=RATES, burst=BURSTS, start=STARTS, steps=STEPS)
def test_never_more_than_burst_and_flow_in_any_window(
    rate: float, burst: float, start: float, steps: list[tuple[float, float]]
) -> None:
    """Whatever the moments, with a clock that may go back; amounts are shares of the burst."""
    bucket = TokenBucket(rate, burst)
    granted: list[tuple[float, float]] = []
    now, latest = start, -math.inf  # the latest moment it was asked at
    for step, share in steps:
        now += step
        latest = max(latest, now)
        if bucket.take(share * burst, now) == 0:
            granted.append((latest, share * burst))
    for first in range(len(granted)):
        total = 0.0
        for when, amount in granted[first:]:
            total += amount
            allowed = burst + rate * (when - granted[first][0] + 1e-6)
            assert total <= allowed * (1 + 1e-9)


@given(rate=RATES, burst=BURSTS, start=STARTS, shares=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_after_the_wait_it_is_granted(rate: float, burst: float, start: float, shares: list[float]) -> None:
    """A caller who waits as told gets on, however large the clock reading and small the wait."""
    bucket = TokenBucket(rate, burst)
    now = start
    for share in shares:
        wait = bucket.take(share * burst, now)
        if wait > 0:
            now += wait
            assert bucket.take(share * burst, now) == 0


@given(rate=RATES, burst=BURSTS, shares=st.lists(st.floats(0, 2), min_size=1, max_size=30))
def test_debt_is_gone_after_the_time_it_names(rate: float, burst: float, shares: list[float]) -> None:
    bucket = TokenBucket(rate, burst)
    debt = 0.0
    for share in shares:
        debt = bucket.force(share * burst, 0)
    assert bucket.force(0, debt) <= 1e-6 + debt * 1e-9


def test_another_rate_from_now_on() -> None:
    bucket = TokenBucket(10, 5)
    assert bucket.take(5, 0) == 0
    bucket.adjust(1, 0.2)
    assert bucket.take(2, 0.2) == 0, "what flowed in before is there"
    assert bucket.take(1, 0.2) == pytest.approx(1)
    bucket.adjust(100, 0.2)
    assert bucket.take(1, 0.21) == 0
    assert bucket.take(5, 9) == 0
    assert bucket.take(6, 9) == math.inf, "the burst is what it was"
    assert bucket.statistics().rate == 100
    for rate in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="rate"):
            bucket.adjust(rate, 9)
