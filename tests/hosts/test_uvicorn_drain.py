"""uvicorn, told to end with clients on every transport: the hub drains first, and nothing hangs (L2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from rtkit.hosting.uvicorn_drain import Drainer, drain_before_exit
from tests.hosts.servers import free_port
from tests.support.rawsession import PollSession, StreamSession
from tests.support.rawsocket import Ended, Peer, RawSocket
from tests.support.rawstream import request

PROGRAM = """
import asyncio
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from rtkit import Context, Grant, Hub, anonymous

hub = Hub(authenticate=anonymous)
hub.rooms("lobby", publishes=object, grant=Grant("publish"))
other = Hub(authenticate=anonymous)

@hub.rpc(object, name="hang")
async def hang(ctx, data):
    print("hanging", flush=True)
    await asyncio.Event().wait()

async def slow(request):
    print("slow", flush=True)
    while hub._engine.accepting:
        await asyncio.sleep(0.01)
    await hub.publish("lobby", "while it drains")
    return PlainTextResponse("published")

@asynccontextmanager
async def lifespan(app):
    async with hub, other:
        yield
        await hub.publish("lobby", "after it has drained")
        print("lifespan", flush=True)

app = Starlette(routes=[Mount("/rt", hub), Mount("/other", other), Route("/slow", slow)], lifespan=lifespan)
"""


class Running:
    """uvicorn in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []

    async def until(self, line: str) -> None:
        """Read what it prints, up to a line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line not in self.lines:
                data = await self.process.stdout.readline()
                assert data, (line, self.lines)
                self.lines.append(data.decode().rstrip())

    async def end(self, seconds: float) -> int:
        """Its exit code; it has so many seconds left."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            self.lines += (await self.process.stdout.read()).decode().splitlines()
            return await self.process.wait()


@contextlib.asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncGenerator[Running]:
    (folder / "program.py").write_text(PROGRAM)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), "--port", str(port), *options]
    process = await asyncio.create_subprocess_exec(
        *command, "program:app", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    running = Running(process, port)
    try:
        await running.until(f"INFO:     Uvicorn running on http://127.0.0.1:{port} (Press CTRL+C to quit)")
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_everybody_is_told_and_nothing_hangs(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(tmp_path) as running:
        clients = [
            await Peer.connect(running.port, "/rt/ws"),
            StreamSession(running.port),
            PollSession(running.port),
            StreamSession(running.port, "/other"),
        ]
        for client in clients:
            await client.connect_as("ann")
        waiting = clients[2]
        assert isinstance(waiting, PollSession)
        await waiting.ask_next()
        slow = await RawSocket.open(running.port)
        await slow.send(request("GET", "/slow"))
        await running.until("slow")
        running.process.send_signal(number)
        for client in clients:
            closed = await client.closed()
            assert (closed.code, closed.reason) == (3001, "draining")
            if not isinstance(client, Peer):
                assert client.come_back == {"min": 0.0, "max": 1.0}
            client.close()
        assert (await slow.response()).text == "published", "the application goes on meanwhile"
        slow.close()
        # uvicorn raises again what it has caught, and makes nothing of a KeyboardInterrupt.
        assert await running.end(10) == (-number if number == signal.SIGTERM else 0)
    assert "lifespan" in running.lines
    assert not any("Traceback" in line or "ERROR" in line for line in running.lines), running.lines


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        ann = await Peer.connect(running.port, "/rt/ws")
        await ann.connect_as("ann")
        await ann.ask("rpc", method="hang")
        await running.until("hanging")
        stream = StreamSession(running.port)
        await stream.connect_as("bob")
        running.process.send_signal(signal.SIGINT)
        assert (await stream.closed()).code == 3001
        running.process.send_signal(signal.SIGINT)
        assert await running.end(4) == 0  # the handler that hangs would have had 5 s
        ann.close()
        stream.close()


async def test_workers(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2") as running:
        streams = [StreamSession(running.port) for _ in range(4)]
        for stream in streams:
            await _connected(stream)
        running.process.send_signal(signal.SIGTERM)
        assert {(await stream.closed()).code for stream in streams} == {3001}
        for stream in streams:
            stream.close()
        await running.end(10)
    assert running.lines.count("lifespan") == 2


async def _connected(stream: StreamSession) -> None:
    """The supervisor listens before its workers do."""
    async with asyncio.timeout(20):
        while True:
            try:
                await stream.connect_as("ann")
                return
            except (OSError, Ended):
                await asyncio.sleep(0.05)


# -- the handler


class World:
    """Handlers of a server that is not running, in place of this process's."""

    def __init__(self) -> None:
        self.server = uvicorn.Server(uvicorn.Config(_nothing))
        self.began = self.hurried = 0
        self.go_on = asyncio.Event()

    async def drain(self, *, spread: float | None = None, timeout: float | None = None) -> None:
        if spread == timeout == 0:
            self.hurried += 1
            return
        self.began += 1
        await self.go_on.wait()

    async def fail(self) -> None:
        raise ZeroDivisionError


async def _nothing(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    world = World()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, world.server.handle_exit)
    yield world
    for number, handler in before.items():
        signal.signal(number, handler)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_signal_is_handed_on_when_all_have_drained(world: World) -> None:
    slower = asyncio.Event()

    async def slow() -> None:
        await slower.wait()

    drains: list[Callable[..., Awaitable[None]]] = [world.drain, slow, world.drain]
    for drain in drains:
        drain_before_exit(drain)
    os.kill(os.getpid(), signal.SIGTERM)
    await turns()
    assert world.began == 1, "each once"
    world.go_on.set()
    await turns()
    assert not world.server.should_exit
    slower.set()
    await turns()
    assert world.server.should_exit
    assert world.server._captured_signals == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGINT)
    await turns()
    assert world.server.force_exit, "from then on uvicorn's own"


async def test_two_signals_are_handed_on_at_once(world: World) -> None:
    drain_before_exit(world.drain)
    os.kill(os.getpid(), signal.SIGINT)
    await turns()
    assert not world.server.should_exit
    os.kill(os.getpid(), signal.SIGINT)
    await turns()
    assert world.server.force_exit
    assert (world.began, world.hurried) == (1, 1), "who is left is sent away at once"
    world.go_on.set()
    await turns()
    assert world.server._captured_signals == [signal.SIGINT] * 2


async def test_a_drain_that_fails_holds_nobody_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    drain_before_exit(world.fail)
    drain_before_exit(world.drain)
    world.go_on.set()
    os.kill(os.getpid(), signal.SIGTERM)
    await turns()
    assert world.began == 1
    assert world.server.should_exit
    assert "draining failed" in caplog.text


def test_a_signal_after_the_loop_has_ended(world_of_threads: None) -> None:
    server = uvicorn.Server(uvicorn.Config(_nothing))
    made: list[Drainer] = []

    async def main() -> None:
        made.append(Drainer({signal.SIGTERM: server.handle_exit}))

    asyncio.run(main())
    made[0](signal.SIGTERM, None)
    assert server.should_exit


@pytest.fixture
def world_of_threads() -> None:
    """No loop is running here."""


async def test_other_handlers_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def drain() -> None: ...

    drain_before_exit(drain)
    assert signal.getsignal(signal.SIGTERM) is before
