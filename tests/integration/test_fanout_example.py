"""examples/fanout.py: a registry and a broker without a hub, as several nodes on one Redis."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import websockets.asyncio.client

from examples import fanout
from tests.support.daemons import Daemon, wait_until
from tests.support.rawsocket import RawWebSocket
from tests.support.redises import RedisServer
from tests.support.servers import serve_asgi

EXAMPLE = Path(__file__).parents[2] / "examples/fanout.py"


class Node(Daemon):
    """The example as a process."""

    def __init__(self, broker: str) -> None:
        super().__init__()
        self._broker = broker

    def _prepare(self) -> Sequence[str]:
        return [
            sys.executable,
            "-W",
            "error",
            str(EXAMPLE),
            f"--port={self.port}",
            f"--broker={self._broker}",
        ]

    def _answers(self) -> bool:
        with socket.create_connection((self.host, self.port)):
            return True


@contextlib.asynccontextmanager
async def node(server: RedisServer) -> AsyncGenerator[tuple[fanout.Fanout, int]]:
    """The example in this process: what it holds, and its port."""
    app = fanout.make_app(server.url)
    async with serve_asgi(app, lifespan="on") as port:
        yield app.state.fanout, port


@contextlib.asynccontextmanager
async def member(port: int, room: str) -> AsyncGenerator[Any]:
    """Somebody who is in a room."""
    async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}/rooms/{room}") as sock:
        while await sock.recv() != "* you are in":
            pass  # somebody else's words
        yield sock


async def test_two_processes_on_one_redis(redis_server: RedisServer) -> None:
    """What is said on one node is heard on both, in the same order; another room hears nothing of it.

    One of them is this process; the other is run as people run it.
    """
    with Node(redis_server.url) as one:
        async with (
            asyncio.timeout(20),
            node(redis_server) as (_, port),
            member(one.port, "lobby") as ann,
            member(port, "lobby") as bob,
            member(port, "other") as eve,
        ):
            await asyncio.gather(
                *(each.send(f"{name} {n}") for n in range(5) for name, each in (("ann", ann), ("bob", bob)))
            )
            heard = [await ann.recv() for _ in range(10)]
            assert [await bob.recv() for _ in range(10)] == heard
            assert sorted(heard) == sorted(f"{name} {n}" for n in range(5) for name in ("ann", "bob"))
            await eve.send("alone")
            assert await eve.recv() == "alone"
        await asyncio.to_thread(one.stop)
        assert "Traceback" not in one.log()


async def test_a_slow_reader_is_bounded_and_delays_nobody(redis_server: RedisServer) -> None:
    """The oldest of what waits for it are dropped, and counted; the others have all of it meanwhile."""
    async with (
        asyncio.timeout(20),
        node(redis_server) as (first, port),
        node(redis_server) as (_, other),
        member(port, "flood") as near,
        member(other, "flood") as far,
    ):
        slow = await RawWebSocket.connect(port, "/rooms/flood", receive_buffer=4096)
        with contextlib.closing(slow):
            assert await slow.message() == "* you are in"
            _, conn = first.registry.members("room:flood")
            most = 0
            for n in range(400):
                await first.broker.publish("room:flood", f"{n:03} {'x' * 16_000}".encode())
                assert (await near.recv())[:3] == (await far.recv())[:3] == f"{n:03}"
                most = max(most, conn.statistics().outbox.size)
            assert 64_000 < most <= fanout.WAITING
            got: list[int] = []
            while not got or got[-1] != 399:
                got.append(int((await slow.message())[:3]))
            assert got == sorted(set(got))
            assert conn.statistics().outbox.dropped == 400 - len(got) > 20


async def test_rooms_are_followed_while_somebody_is_there(redis_server: RedisServer) -> None:
    """Coming and going leaves nothing behind, however it is interleaved, and whoever is in hears."""

    def followed() -> int:
        found = redis_server.command("PUBSUB", "NUMSUB", "room:a", "room:b")
        return int(found[1]) + int(found[3])

    async with asyncio.timeout(20), node(redis_server) as (first, port):

        async def visit(n: int) -> None:
            async with member(port, "ab"[n % 2]) as sock:
                await sock.send(f"{n}")
                while await sock.recv() != f"{n}":
                    pass

        for _ in range(3):
            await asyncio.gather(*(visit(n) for n in range(20)))
        await asyncio.to_thread(wait_until, lambda: not first.registry.statistics().memberships, "all left")
        await asyncio.to_thread(wait_until, lambda: followed() == 0, "nothing is followed")


async def test_without_the_broker_everybody_is_told(redis_server: RedisServer) -> None:
    with RedisServer("redis", appendonly="no") as server:
        async with asyncio.timeout(30), node(server) as (_, port), member(port, "a") as ann:
            await asyncio.to_thread(server.kill)
            await ann.send("hello?")
            assert (await ann.recv()).startswith("* ")
            await asyncio.to_thread(server.start)
            said = ""
            while said != "again":
                await ann.send("again")
                said = await ann.recv()


async def test_what_is_no_text_harms_nobody(redis_server: RedisServer) -> None:
    async with (
        asyncio.timeout(20),
        node(redis_server) as (_, port),
        member(port, "a") as ann,
        member(port, "a") as eve,
    ):
        await eve.send(b"\xff\xfe")
        assert "text only" in await eve.recv()
        await eve.send("x" * 20_000)
        assert "text only" in await eve.recv()
        await eve.send("well")
        assert await ann.recv() == "well"
