"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.unit.server.world import ServerWorld


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Awaitable[ServerWorld]]]:
    """Makes servers that listen, and sees to it that nothing is left of them."""
    made: list[ServerWorld] = []

    async def make_one(where: dict[str, Any] | None = None, **options: Any) -> ServerWorld:
        world = ServerWorld(**options)
        made.append(world)
        return await world.start(**(where or {}))

    yield make_one
    for world in made:
        await world.aclose()


@pytest.fixture
async def world(make: Callable[..., Awaitable[ServerWorld]]) -> ServerWorld:
    return await make()
