"""No schedule of late, lost, doubled and reordered events makes rtkit deceive anybody (H1-H4, H10).

The driver, the truth and the checks are in `tests/support/streams_model.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.streams_model import OPERATIONS, World

schedules = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 59)), max_size=60)


@given(schedules, st.integers(1, 4), st.integers(1, 4))
def test_nobody_is_deceived(schedule: list[tuple[str, int]], page_limit: int, window: int) -> None:
    World(page_limit=page_limit, window=window).play(schedule)
