"""At most so many for each key, and nothing is left of what was given back (F1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import KeyedLimit, KeyedLimitStatistics


def test_each_key_has_its_own() -> None:
    limit = KeyedLimit[str](2)
    assert [limit.take("a"), limit.take("a"), limit.take("a"), limit.take("b")] == [True, True, False, True]
    assert (limit.full("a"), limit.full("b"), limit.full("c")) == (True, False, False)
    limit.release("a")
    assert limit.take("a")
    assert (limit.count("a"), limit.count("b"), limit.count("c")) == (2, 1, 0)


def test_what_is_given_back_leaves_no_trace() -> None:
    limit = KeyedLimit[int](3)
    for key in range(1000):
        assert limit.take(key)
    assert limit.statistics() == KeyedLimitStatistics(keys=1000, taken=1000)
    for key in range(1000):
        limit.release(key)
    assert limit.statistics() == KeyedLimitStatistics(keys=0, taken=0)
    with pytest.raises(KeyError):
        limit.release(1)
    assert limit.statistics() == KeyedLimitStatistics(keys=0, taken=0)


def test_a_block_gives_back_what_it_has_taken() -> None:
    limit = KeyedLimit[str](1)
    with pytest.raises(OSError), limit.hold("a") as first, limit.hold("a") as second:
        assert (first, second) == (True, False)
        raise OSError
    assert limit.count("a") == 0


def test_keys_are_bounded() -> None:
    """Whoever makes up keys fills no memory; those that are there go on."""
    limit = KeyedLimit[str](2, keys=2)
    assert limit.take("a")
    assert limit.take("b")
    assert limit.full("c")
    assert not limit.take("c")
    assert limit.take("a")
    limit.release("b")
    assert limit.take("c")


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1, "keys": 0}])
def test_numbers_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="KeyedLimit"):
        KeyedLimit[str](**options)


def test_it_says_what_it_holds() -> None:
    limit = KeyedLimit[str](5)
    limit.take("a")
    assert repr(limit) == "<KeyedLimit 1 of 1 keys, 5 each>"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=100))
def test_the_sum_is_what_there_is(steps: list[tuple[bool, int]]) -> None:
    limit, model = KeyedLimit[int](3), dict[int, int]()
    for takes, key in steps:
        if takes:
            assert limit.take(key) == (model.get(key, 0) < 3)
            model[key] = min(3, model.get(key, 0) + 1)
        elif model.get(key):
            limit.release(key)
            model[key] -= 1
    counts = {key: count for key, count in model.items() if count}
    assert limit.statistics() == KeyedLimitStatistics(len(counts), sum(counts.values()))
