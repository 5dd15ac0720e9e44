"""Presence, typing, receipts and signals between two clients of the Python SDK, on real sockets, by every transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rtkit import Credentials, Grant, History, Hub, Identity, Limits
from rtkit.client import Message, Policy, Position, RoomClient, connect
from rtkit.features import Presence, Receipts, Signals, Typing
from rtkit.primitives import Rate
from tests.support.cable import Cable
from tests.support.hosts import HOSTS, Host

SOON = Policy(min_delay=0.01, max_delay=0.1)
ROOM = "chat:a"

pytestmark = pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])


def make_hub() -> Hub[None]:
    async def authenticate(credentials: Credentials) -> Identity[None]:
        await asyncio.sleep(0)
        return Identity(credentials.token or "nobody")

    hub: Hub[None] = Hub(authenticate=authenticate, limits=Limits(commands=Rate(rate=10_000, burst=10_000)))
    hub.rooms(
        "chat:{x}",
        publishes=object,
        grant=Grant("publish", "signal", "presence"),
        history=History(200, ttl=600),
        presence=Presence(),
        receipts=Receipts(),
        typing=Typing(expires=2.0),
        signals=Signals(rate=10),
    )
    return hub


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
async def cable(request: pytest.FixtureRequest) -> AsyncIterator[Cable]:
    """To a hub mounted where the host mounts it; it can be pulled."""
    host: Host = request.param
    async with host.serve(make_hub(), False) as served, Cable(served.port) as cable:
        request.node.url = f"http://127.0.0.1:{cable.port}{served.prefix}"
        yield cable


@pytest.fixture
async def rooms(
    request: pytest.FixtureRequest, cable: Cable, transport: Any
) -> AsyncIterator[tuple[RoomClient[Any], RoomClient[Any]]]:
    """Ann's and bob's."""
    async with AsyncExitStack() as stack:
        found: list[RoomClient[Any]] = []
        for user in ("ann", "bob"):
            client = connect(request.node.url, token=user, transports=[transport], policy=SOON)
            await stack.enter_async_context(client)
            room = client.join(ROOM, presence=True, receipts=True)
            found.append(await stack.enter_async_context(room))
        yield found[0], found[1]


Rooms = tuple[RoomClient[Any], RoomClient[Any]]


async def until(true: Callable[[], bool]) -> None:
    """Wait for what has to come, however long it takes here."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - what changes rings no bell that a test could hear
            await asyncio.sleep(0.01)


def users(room: RoomClient[Any]) -> list[str]:
    return sorted(member.user for member in room.presence.members)


async def test_presence(rooms: Rooms, cable: Cable, transport: str) -> None:
    ann, bob = rooms
    await until(lambda: users(ann) == users(bob) == ["ann", "bob"])
    seen = ann.presence.changes()
    await bob.presence.update({"away": True})
    change = await anext(seen)
    assert [(member.user, member.meta) for member in change.updates] == [("bob", {"away": True})]
    cable.pull()
    if transport != "poll":  # polling does not give up so soon
        await until(lambda: not (ann.presence.current or bob.presence.current))
    assert users(ann) == users(bob) == ["ann", "bob"]
    cable.plug()
    await until(lambda: ann.presence.current and bob.presence.current)
    await bob.leave()
    change = await anext(seen)
    assert [member.user for member in change.leaves] == ["bob"], "and nothing of the interruption"
    assert (change.joins, change.updates) == ((), ())


async def test_receipts(rooms: Rooms, cable: Cable, transport: str) -> None:
    ann, bob = rooms
    for n in range(3):
        await ann.send(n)
    await until(lambda: bob.receipts.unread == 3)
    last: Any = None
    for n in range(3):
        last = await anext(bob)
        assert isinstance(last, Message)
        assert last.data == n
    await until(lambda: ann.receipts.reached(last, "delivered") == ["bob"])
    assert ann.receipts.reached(last) == []
    cable.pull()
    if transport != "poll":  # polling does not give up so soon
        await until(lambda: not (ann.receipts.current or bob.receipts.current))
    bob.receipts.read()
    cable.plug()
    await until(lambda: list(ann.receipts.reached(last)) == ["bob"])
    assert bob.receipts.unread == 0
    assert isinstance(bob.position, Position)


async def test_typing(rooms: Rooms) -> None:
    ann, bob = rooms
    changes = ann.typing_changes()
    bob.typing()
    assert await anext(changes) == ("bob",)
    await bob.send("hi")
    assert await anext(changes) == ()
    bob.typing()
    assert await anext(changes) == ("bob",)
    async with asyncio.timeout(30):
        assert await anext(changes) == (), "by itself"
    assert bob.typists == ()


async def test_signals_are_paced_and_the_newest_arrives(rooms: Rooms) -> None:
    ann, bob = rooms
    signals = ann.signals()
    for n in range(100):
        assert bob.signal(n, name="at")
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        found = [await anext(signals)]
        while found[-1].data != 99:
            found.append(await anext(signals))
    assert len(found) < 20
    assert found[-1].sender == "bob"
