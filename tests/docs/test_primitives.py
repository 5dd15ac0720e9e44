"""The page about the parts: every part is on it, and every example does what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from rtkit import primitives
from rtkit.primitives import Deadlines, Rate
from rtkit.testing.clock import ManualClock
from tests.docs.blocks import blocks, prose, table
from tests.docs.test_how_to import run
from tests.support.rawsocket import RawWebSocket
from tests.support.servers import serve_asgi

PAGE = "docs/how-to/primitives.md"
PATIENCE = 10.0


def page_of(name: str) -> Any:
    return run(*blocks(PAGE, "python", name))


@contextlib.asynccontextmanager
async def starlette(handler: Any) -> AsyncGenerator[str]:
    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    async with serve_asgi(app) as port, asyncio.timeout(PATIENCE):
        yield f"ws://127.0.0.1:{port}/ws"


@contextlib.asynccontextmanager
async def served(handler: Any) -> AsyncGenerator[int]:
    async with websockets.asyncio.server.serve(handler, "127.0.0.1", 0, compression=None) as server:
        async with asyncio.timeout(PATIENCE):
            yield server.sockets[0].getsockname()[1]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so; what brings it about is on a socket."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)


def connect(url: str) -> Any:
    return websockets.asyncio.client.connect(url)


def test_every_part_is_on_the_page() -> None:
    """Those whose names say that they are what another one returns or reports are not asked for."""
    told = prose(PAGE) + "".join(block.text for block in blocks(PAGE, "python"))
    for name in primitives.__all__:
        if name.endswith("Statistics") or name in (
            "Overflow",
            "Receiver",
            "TextReceiver",
            "Deadline",
            "Timeout",
        ):
            continue
        assert re.search(rf"\b{name}\b", told), name


def test_the_table_knows_what_there_is() -> None:
    for row in table(PAGE, "part", "for"):
        for name in re.findall(r"`(\w+)`", row["part"]):
            assert hasattr(primitives, name)


def test_examples_are_small() -> None:
    for block in blocks(PAGE, "python"):
        handlers = [line for line in block.text.splitlines() if line.strip() and "import" not in line]
        assert len(handlers) <= 24, block.where


async def test_an_outbox() -> None:
    """A reader that stands still for a while gets what fitted, and then the newest."""
    page = page_of("outbox")
    done = asyncio.Event()

    async def ticks() -> AsyncIterator[tuple[str, str]]:
        for n in range(400):
            yield "ACME", f"{n} {'x' * 16_000}"
            await asyncio.sleep(0)
        done.set()

    page.ticks = ticks
    async with served(page.prices) as port:
        slow = await RawWebSocket.connect(port, "/", receive_buffer=4096)
        with contextlib.closing(slow):
            await done.wait()
            got: list[int] = []
            while not got or got[-1] != 399:
                got.append(int((await slow.message()).split()[1]))
            assert got == sorted(set(got))
            assert len(got) < 350


async def test_an_outbox_that_is_read() -> None:
    page = page_of("outbox")

    async def ticks() -> AsyncIterator[tuple[str, str]]:
        for n in range(5):
            yield "ACME", str(n)
        yield "IBM", "1"

    page.ticks = ticks
    async with served(page.prices) as port, connect(f"ws://127.0.0.1:{port}") as sock:
        assert [await sock.recv() for _ in range(2)] == ["ACME 4", "IBM 1"]


async def test_a_registry() -> None:
    page = page_of("registry")
    async with starlette(page.desk) as url, connect(url) as ann, connect(url) as bob:
        await bob.send("join sport")
        await bob.send("nobody hears this")
        assert await bob.recv() == "0 heard it"
        assert page.feeds == {"all", "sport"}
        await ann.send("sport 2:0")
        assert await ann.recv() == "1 heard it"
        assert await bob.recv() == "2:0"
        await bob.send("leave sport")
        await bob.send("all hello")
        assert await bob.recv() == "1 heard it"
        assert await ann.recv() == "hello"
        await bob.send("join tech")
        await bob.send("nobody")
        assert await bob.recv() == "0 heard it"
        assert page.feeds == {"all", "tech"}
        await bob.close()
        await until(lambda: page.feeds == {"all"})
    assert page.feeds == set()


async def test_a_heartbeat() -> None:
    page = page_of("heartbeat")
    clock = ManualClock()
    attach = page.attach
    page.attach = lambda *args, **options: attach(*args, clock=clock, random=lambda: 0.5, **options)
    async with starlette(page.echo) as url, connect(url) as sock:
        await sock.send("hello")
        assert await sock.recv() == "hello"
        await clock.advance(5)
        assert await sock.recv() == "ping"
        await sock.send("pong")
        await sock.send("still here")
        assert await sock.recv() == "still here"
        await clock.advance(10)
        assert await sock.recv() == "ping"
        await clock.advance(5)
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            await sock.recv()
        assert sock.close_code == 3012
        await clock.settle()
        assert page.LEFT == [(3012, "no pong")]


async def test_a_rate() -> None:
    page = page_of("rate")
    page.clock = clock = ManualClock()
    async with starlette(page.ask) as url, connect(url) as sock:
        for _ in range(6):
            await sock.send("why")
        heard = [json.loads(await sock.recv()) for _ in range(6)]
        assert heard == [{"answer": "WHY"}] * 5 + [{"error": "slow down", "retry_after": 0.5}]
        await clock.advance(0.5)
        await sock.send("now")
        assert json.loads(await sock.recv()) == {"answer": "NOW"}


async def refused(url: str) -> str:
    """The wait that a refusal names."""
    with pytest.raises(websockets.exceptions.InvalidStatus) as failed:
        await connect(url)
    assert failed.value.response.status_code == 503
    return str(failed.value.response.headers["retry-after"])


async def test_who_may_come_in() -> None:
    page = page_of("admission")
    page.clock = clock = ManualClock()
    page.admission = primitives.Admission(Rate(1, burst=2))
    page.of_address = primitives.KeyedLimit[str](3)
    async with starlette(page.echo) as url, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            sock = await stack.enter_async_context(connect(url))
            await sock.send("hello")
            assert await sock.recv() == "hello"
        assert await refused(url) == "1"
        await clock.advance(1)
        await stack.enter_async_context(connect(url))
        await clock.advance(100)
        assert await refused(url) == "10", "three of one address"
        await sock.close()
        await until(lambda: page.of_address.count("127.0.0.1") == 2)
        await stack.enter_async_context(connect(url))


async def test_a_back_off() -> None:
    """It comes back after a while, and gets on where it works."""
    page = page_of("backoff")
    page.clock = clock = ManualClock()

    async def once(sock: websockets.asyncio.server.ServerConnection) -> None:
        await sock.send("hello")

    async with served(once) as port:
        following = page.follow(f"ws://127.0.0.1:{port}")
        assert await anext(following) == "hello"
        again = asyncio.ensure_future(anext(following))
        await until(lambda: clock.timers)
        assert not again.done()
        await clock.advance(1)  # the longest after the first failure
        assert await again == "hello"
        await following.aclose()


async def test_deadlines() -> None:
    page = page_of("deadlines")
    page.clock = clock = ManualClock()
    page.deadlines = Deadlines(clock)
    async with served(page.echo) as port, connect(f"ws://127.0.0.1:{port}") as sock:
        for _ in range(3):
            await clock.advance(50)
            await sock.send("here")
            assert await sock.recv() == "here"
        await clock.advance(60)
        with pytest.raises(websockets.exceptions.ConnectionClosedError):
            await sock.recv()
        assert (sock.close_code, sock.close_reason) == (4408, "idle")
    assert len(page.deadlines) == 0


async def test_tasks() -> None:
    page = page_of("tasks")
    page.clock = clock = ManualClock()
    async with starlette(page.ask) as url, connect(url) as sock:
        await sock.send("0")
        assert await sock.recv() == "0"
        for seconds in [9, *range(1, 10)]:
            await sock.send(str(seconds))
        await sock.send("1")
        assert await sock.recv() == "one after the other, please"
        await clock.advance(3)
        assert [await sock.recv() for _ in range(3)] == ["1", "2", "3"]
        await clock.advance(3)
        assert sorted([await sock.recv() for _ in range(7)])[2:] == ["that took too long"] * 5
        await sock.send("4")
    assert clock.timers == 0
