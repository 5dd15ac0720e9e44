"""The transport suite over plain HTTP on every host of the matrix that can serve it: minutes, as ``test_suite.py``."""

from __future__ import annotations

import os

import pytest

from tests.hosts.hosts import HOSTS
from tests.support.hosts import Host

if os.environ.get("RTKIT_MATRIX"):
    from tests.transport.test_over_http import *  # noqa: F403

    @pytest.fixture(params=[host for host in HOSTS if host.name != "websockets"], ids=lambda host: host.name)
    def host(request: pytest.FixtureRequest) -> Host:
        """Each host of the matrix in turn, but the one that serves WebSockets only."""
        found: Host = request.param
        return found
