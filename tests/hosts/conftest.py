"""What the tests of the hosts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.hosts import HOSTS
from tests.support.hosts import KNOWN, Host, mark_known
from tests.transport.conftest import site

__all__ = ["KNOWN", "host", "site"]

HERE = Path(__file__).parent


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Each host of the matrix in turn, for the transport suite."""
    found: Host = request.param
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark in the transport suite what is known."""
    for item in items:
        if item.path.parent == HERE and item.path.name.startswith("test_suite"):
            mark_known(item)
