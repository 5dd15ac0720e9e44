"""Receipts on a real Redis: two nodes, two devices, and another primary (X2, B6)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rtkit import Credentials, Grant, History, Hub, Identity, Limits, Position
from rtkit.features import Receipts
from tests.support.rawclient import RawClient
from tests.support.redises import RedisServer

ROOM = "chat:a"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


class RealTime:
    """As much of a ManualClock as a raw client needs, where time cannot be moved."""

    async def settle(self) -> None:
        await asyncio.sleep(0.005)


class Client(RawClient):
    """A raw client that waits for what a real server takes its time for."""

    async def call(self, method: str, /, **body: Any) -> Any:
        id = self.ask(method, **body)
        await until(lambda: self.answered(id))
        assert "error" not in self.reply(id), self.reply(id)
        return self.reply(id)[method]

    @property
    def read(self) -> tuple[str, dict[str, int]]:
        """What it was told of marks read: their epoch, and whose they are."""
        bodies = [reply["subscribe"]["marks"] for reply in self.replies.values() if "subscribe" in reply]
        epoch = ""
        known: dict[str, int] = {}
        for body in [*bodies, *self.pushes_of(ROOM, "marks")]:
            if body.get("whole"):
                epoch, known = body["epoch"], {}
            known.update(body.get("read", {}))
        return epoch, known


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 # what it waits for happens in a server
            await asyncio.sleep(0.005)


async def by_token(credentials: Credentials) -> Identity[None]:
    return Identity(credentials.token or "nobody")


@asynccontextmanager
async def node(server: RedisServer) -> AsyncGenerator[Hub[Any]]:
    hub: Hub[Any] = Hub(authenticate=by_token, broker=server.url, limits=Limits(position_check=1))
    hub.rooms(
        "chat:{x}", publishes=object, history=History(3, ttl=600), grant=Grant("publish"), receipts=Receipts()
    )
    async with hub:
        yield hub


async def device(hub: Hub[Any], user: str) -> Client:
    time: Any = RealTime()
    client = Client(hub, time, rt=True)
    await client.connect(user)
    await client.call("subscribe", channel=ROOM, marks=True)
    return client


async def said(hub: Hub[Any], count: int) -> Position:
    place = None
    for n in range(count):
        place = (await hub.publish(ROOM, n)).position
    assert place is not None
    return place


async def test_marks_of_two_devices_on_two_nodes_and_after_a_takeover(server: RedisServer) -> None:
    async with node(server) as one, node(server) as two:
        place = await said(one, 40)
        phone, laptop, bob = await device(one, "ann"), await device(two, "ann"), await device(two, "bob")
        for offset in range(1, 41):  # each node sees the other go ahead of it
            client = (phone, laptop)[offset % 2]
            body = {"channel": ROOM, "kind": "read", "epoch": place.epoch, "offset": offset}
            assert await client.call("mark", **body) == {}
        await bob.call("mark", channel=ROOM, kind="read", epoch=place.epoch, offset=7)
        everybody = (phone, laptop, bob)
        await until(lambda: all(each.read == (place.epoch, {"ann": 40, "bob": 7}) for each in everybody))

        # The server becomes a replica of nobody, and a primary again: another one than it was.
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            server.command("REPLICAOF", "127.0.0.1", nobody.getsockname()[1])
            server.command("REPLICAOF", "NO", "ONE")
        later = await said(one, 9)  # of what was there at the takeover nothing is kept any more
        assert (later.epoch == place.epoch, later.offset) == (False, 49)
        await until(lambda: all(each.read == (later.epoch, {"ann": 40, "bob": 7}) for each in everybody))
        # A device that has not heard of it, and says what it can never have seen.
        await bob.call("mark", channel=ROOM, kind="read", epoch=place.epoch, offset=2**53 - 1)
        await phone.call("mark", channel=ROOM, kind="read", epoch=later.epoch, offset=48)
        await until(lambda: all(each.read == (later.epoch, {"ann": 48, "bob": 40}) for each in everybody))

    # They outlive all nodes.
    async with node(server) as three:
        marks = await three.room(ROOM).marks()
        assert {user: mark.read for user, mark in marks.items()} == {
            "ann": Position(later.epoch, 48),
            "bob": Position(later.epoch, 40),
        }
        position = await three.room(ROOM).clear()
        assert await three.room(ROOM).marks() == {}
        assert (await device(three, "ann")).read == (position.epoch, {})
