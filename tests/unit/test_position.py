"""Positions and gaps are plain values."""

from __future__ import annotations

import dataclasses

import pytest

from rtkit.position import Gap, Position


def test_a_position_is_a_value() -> None:
    assert Position("e", 3) == Position("e", 3)
    assert Position("e", 3) != Position("f", 3)
    assert len({Position("e", 3), Position("e", 3), Position("e", 4)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Position("e", 3).offset = 4  # type: ignore[misc]


def test_positions_have_no_order() -> None:
    # Offsets of different epochs cannot be compared, so that `<` would be an invitation to err.
    with pytest.raises(TypeError):
        Position("e", 3) < Position("e", 4)  # type: ignore[operator]  # noqa: B015


def test_they_speak_plainly() -> None:
    assert str(Position("e", 3)) == "e:3"
    assert str(Gap(3, 7, "e", "trimmed")) == "gap (trimmed): 3 < offset <= 7 in epoch e"
    assert str(Gap(0, 2, "", "dropped")) == "gap (dropped): 0 < offset <= 2 in epoch -"
