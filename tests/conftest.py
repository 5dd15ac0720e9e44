"""What holds for every test: one event loop flavour, patient hypothesis, no silent skips."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["pytester", "tests.support.services", "tests.support.redises", "tests.support.natses"]

# Time limits are pytest-timeout's business: a deadline per example fails on a busy machine.
# Everything else stays as hypothesis chose it, which under CI=true means its `ci` profile. The suite looks at so many
# examples as find what they are there for; RTKIT_EXAMPLES=100000 makes the search as long as one likes.
settings.register_profile(
    "rtkit", deadline=None, max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 6
)
settings.load_profile("rtkit")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio only. Session scope, so that async fixtures of any scope can be written."""
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def leaks_fail_where_they_were_made() -> Iterator[None]:
    """Collect garbage after each file: a forgotten socket, transport or coroutine fails who left it.

    pytest itself looks only at the end of the run, and an xdist worker swallows what it finds then.
    """
    yield
    gc.collect()
