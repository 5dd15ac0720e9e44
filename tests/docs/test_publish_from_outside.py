"""The code of "Publish from workers and scripts" runs, and reaches a hub."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from typing import Any

import pytest

import rtkit.errors
from rtkit import Credentials, Hub, Identity, Publisher
from rtkit.testing import TestHub
from tests.docs.blocks import blocks, table
from tests.support.redises import RedisServer

PAGE = "docs/how-to/publish-from-outside.md"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def page(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("BROKER", redis.url)
    module: Any = types.ModuleType("page")
    for block in blocks(PAGE, "python"):
        exec(block.code(), vars(module))  # type: ignore[arg-type]
    return module


async def authenticate(credentials: Credentials) -> Identity[None]:
    return Identity("ann")


async def test_they_reach_the_hub(page: Any, redis: RedisServer) -> None:
    """And a job that runs twice, whether here or there, tells once."""
    hub = Hub(authenticate=authenticate, broker=redis.url)
    hub.include(page.router)
    # The page's two classes have one name, and are imported in two files.
    page.Publisher = Publisher
    try:
        async with hub:
            await page.work([("ann", "a"), ("ann", "b"), ("ann", "a")])
            for job in ("b", "c"):
                await asyncio.to_thread(page.export, "ann", job)
            history = await hub.room("exports:ann").history()
    finally:
        await asyncio.to_thread(page.publisher.close)
    assert [message.data.url for message in history.messages] == [f"/exports/{job}.csv" for job in "abc"]


async def test_members_hear_it(page: Any, redis: RedisServer) -> None:
    hub = Hub(authenticate=authenticate, broker=redis.url)
    hub.include(page.router)
    async with TestHub(hub) as served:
        ann = await served.connect(Identity("ann"))
        async with ann.join("exports:ann", receives=page.ExportReady) as room:
            await asyncio.to_thread(page.export, "ann", "d")
            assert (await served.next(room)).data == page.ExportReady("/exports/d.csv")
    await asyncio.to_thread(page.publisher.close)


def test_what_is_raised() -> None:
    rows = table(PAGE, "raised", "what has happened", "what to do")
    names = [name.strip(" `") for row in rows for name in row["raised"].split(",")]
    assert names == ["BrokerUnavailable", "PublishUnknown", "UnknownRoom", "InvalidMessage"]
    for name in names[:2]:
        assert issubclass(getattr(rtkit.errors, name), rtkit.errors.Unavailable)
