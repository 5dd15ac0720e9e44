"""What the tests of the hosts share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.hosting.scripted import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    assert world.host.statistics().connections == 0
    assert world.host.statistics().writing == 0
    assert world.host.statistics().requests == world.host.statistics().streams == 0
    assert world.clock.timers == 0
