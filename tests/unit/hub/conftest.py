"""What the tests of the hub share: a hub in virtual time, and the proof that nothing is left of it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rtkit import Credentials, Hub, Identity, Limits, Reject
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing.clock import ManualClock
from tests.support.rawclient import RawClient


async def by_token(credentials: Credentials) -> Identity[dict[str, Any]]:
    """The token is the user's name; none is refused."""
    if not credentials.token:
        raise Reject("no token", code=101)
    return Identity(credentials.token, {"data": credentials.data})


class World:
    """Hubs on one backend and one clock, and their clients."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(clock=self.clock)
        self.hubs: list[Hub[Any]] = []
        self.clients: list[RawClient] = []

    def hub(self, *, broker: Any = None, parks: bool = False, **options: Any) -> Hub[Any]:
        """A hub that is not started yet, so that rooms can be declared.

        :param parks: sessions outlive their connection, as they do by default (C3); most tests are about connections.
        """
        options.setdefault("authenticate", by_token)
        limits = options.get("limits") or Limits()
        if limits.accepts == Limits().accepts:
            limits = dataclasses.replace(
                limits, accepts=None
            )  # a test's crowd is no storm, unless it says so
        options["limits"] = limits if parks else dataclasses.replace(limits, grace=None)
        hub: Hub[Any] = Hub(
            broker=broker or MemoryBroker(self.backend), clock=self.clock, random=random.Random(1), **options
        )
        self.hubs.append(hub)
        return hub

    def client(self, hub: Hub[Any], **options: Any) -> RawClient:
        """A client that has not said anything yet."""
        client = RawClient(hub, self.clock, **options)
        self.clients.append(client)
        return client

    async def join(self, hub: Hub[Any], user: str, *rooms: str, rt: bool = True, **options: Any) -> RawClient:
        """A client that is connected and in these rooms; the hub is started if need be."""
        await hub.start()
        client = self.client(hub, rt=rt, **options)
        await client.connect(user)
        for room in rooms:
            await client.call("subscribe", channel=room)
        return client

    async def advance(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass; clients answer pings meanwhile."""
        left = seconds
        while left > 0:
            await self.clock.advance(min(step, left))
            left -= step
            for client in self.clients:
                await client.settle()

    async def settle(self) -> None:
        await self.clock.settle()

    async def end(self, hub: Hub[Any]) -> None:
        """Close a hub, and have the time go by that it gives its clients to come back elsewhere (L1)."""
        closing = asyncio.ensure_future(hub.aclose())
        await self.clock.settle()
        for _ in range(40):
            if closing.done():
                break
            await self.clock.advance(0.5)
        await closing

    async def close(self) -> None:
        for hub in self.hubs:
            await self.end(hub)


@pytest.fixture
async def world(caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    """Everything that a test needs; afterwards nothing of it may be left (L1)."""
    before = asyncio.all_tasks()
    world = World()
    with caplog.at_level(logging.DEBUG):
        yield world
        await world.close()
    left = {
        task
        for task in asyncio.all_tasks() - before
        if not task.done() and "TestRunner" not in repr(task.get_coro())
    }
    assert not left, f"tasks left: {left}"
    assert world.clock.timers == 0, "timers left"
    assert world.backend.statistics().topics == 0, "subscriptions left"
    assert ", 0 hubs" in repr(world.backend)


@pytest.fixture(autouse=True)
def no_error_is_logged(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Any:
    """An exception in the log fails the test, unless it asked for the fixture ``errors``."""
    yield
    if "errors" not in request.fixturenames:
        found = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
        assert not found, [r.getMessage() for r in found]


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """The errors logged so far; a test that expects some asks for them here."""

    def found() -> list[logging.LogRecord]:
        return [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]

    return found
