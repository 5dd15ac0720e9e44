from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import Backoff


def test_the_ceiling_grows_to_the_maximum() -> None:
    backoff = Backoff(random=lambda: 1.0)
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 20, 20, 20]
    assert backoff.attempts == 8


def test_full_jitter_goes_down_to_the_minimum() -> None:
    backoff = Backoff(random=lambda: 0.0)
    assert [backoff.next() for _ in range(3)] == [0.5, 0.5, 0.5]


def test_reset() -> None:
    backoff = Backoff(random=lambda: 1.0)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.attempts == 0
    assert backoff.next() == 1


def test_the_servers_window_wins() -> None:
    backoff = Backoff(random=lambda: 0.5)
    assert backoff.next((10, 60)) == 35
    assert backoff.next((0, 0)) == 0
    assert backoff.attempts == 2


def test_chance_is_an_argument() -> None:
    one, two = Backoff(random=random.Random(7)), Backoff(random=random.Random(7))
    assert [one.next() for _ in range(5)] == [two.next() for _ in range(5)]


def test_a_million_attempts_do_not_overflow() -> None:
    backoff = Backoff(factor=1e300, random=lambda: 1.0)
    for _ in range(10):
        assert backoff.next() <= 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minimum": 0}, "minimum.*0"),
        ({"minimum": math.nan}, "minimum.*nan"),
        ({"maximum": 0.1}, r"maximum.*0\.1"),
        ({"maximum": math.inf}, "maximum.*inf"),
        ({"factor": 0.9}, r"factor.*0\.9"),
    ],
)
def test_bad_values_are_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Backoff(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(-1, 2), (3, 2), (0, math.inf), (math.nan, 1)])
def test_bad_windows_are_named(window: tuple[float, float]) -> None:
    backoff = Backoff()
    with pytest.raises(ValueError, match="window"):
        backoff.next(window)
    assert backoff.attempts == 0


def test_statistics_and_repr() -> None:
    backoff = Backoff()
    backoff.next()
    assert (backoff.statistics().attempts, backoff.statistics().ceiling) == (1, 2)
    assert repr(backoff) == "<Backoff 1 attempts, next within 2 s>"


@given(st.lists(st.floats(0, 1), max_size=50))
def test_always_within_bounds(draws: list[float]) -> None:
    backoff = Backoff(minimum=0.5, maximum=20, random=iter(draws).__next__)
    assert all(0.5 <= backoff.next() <= 20 for _ in draws)
