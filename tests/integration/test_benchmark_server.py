"""benchmarks/server.py as a process of its own: what measurements, ours and others', rely on."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

SERVER = Path(__file__).parents[2] / "benchmarks" / "server.py"


class Running:
    """The server, once it listens."""

    def __init__(self, process: asyncio.subprocess.Process, said: list[str]) -> None:
        self.process = process
        self.said = said
        self.port = int(said[-1].split("/")[2].rpartition(":")[2])

    def url(self, path: str = "/connection/websocket") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"


@contextlib.asynccontextmanager
async def started(*args: str) -> AsyncGenerator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SERVER),
        *("--port", "0", *args),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stdout is not None
        said: list[str] = []
        async with asyncio.timeout(30):
            while not (said and said[-1].startswith("listening on ")):
                line = await process.stdout.readline()
                assert line, f"it ended after {said}"
                said.append(line.decode().rstrip())
        yield Running(process, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
async def server() -> AsyncGenerator[Running]:
    async with started() as running:
        yield running


class Client:
    """Speaks the base wire, one unit at a time; answers to pings aside."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._units: list[dict[str, Any]] = []
        self._id = 0

    async def tell(self, text: str) -> None:
        await self.socket.send(text)

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while not self._units:
                frame = await self.socket.recv(decode=True)
                self._units += [json.loads(line) for line in frame.split("\n")]
        return self._units.pop(0)

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command; its reply. Pushes that come meanwhile are kept for :meth:`next`."""
        self._id += 1
        await self.tell(json.dumps({"id": self._id, **command}))
        before: list[dict[str, Any]] = []
        while (unit := await self.next()).get("id") != self._id:
            before.append(unit)
        self._units[:0] = before
        return unit


@contextlib.asynccontextmanager
async def client(server: Running, path: str = "/connection/websocket") -> AsyncGenerator[Client]:
    async with connect(server.url(path), compression=None) as socket:
        found = Client(socket)
        assert "connect" in await found.ask(connect={})
        yield found


async def publication(client: Client) -> dict[str, Any]:
    unit = await client.next()
    found: dict[str, Any] = unit["push"]["pub"]
    return found


async def test_any_client_publishes_to_any_channel_and_members_get_it_as_it_was(server: Running) -> None:
    async with client(server) as ann, client(server, "/ws") as bob:
        for channel in ("bench", "a:b:c", "deep:er:{x}:%41", "ü", "x" * 255):
            assert (await ann.ask(subscribe={"channel": channel}))["subscribe"] == {}
            assert "error" not in await bob.ask(publish={"channel": channel, "data": {"n": [1, "two", None]}})
            unit = await ann.next()
            assert unit["push"]["channel"] == channel
            assert unit["push"]["pub"]["data"] == {"n": [1, "two", None]}
            assert "offset" not in unit["push"]["pub"]


async def test_only_channels_that_begin_with_h_keep_history(server: Running) -> None:
    async with client(server) as ann:
        for channel in ("plain", "history", "hh:x", "H:x"):
            joined = await ann.ask(subscribe={"channel": channel})
            assert "recoverable" not in joined["subscribe"]
            assert (await ann.ask(history={"channel": channel}))["error"]["code"] == 108
        joined = (await ann.ask(subscribe={"channel": "h:x:y"}))["subscribe"]
        assert joined["recoverable"]
        assert joined["positioned"]
        await ann.ask(publish={"channel": "h:x:y", "data": "kept"})
        page = (await ann.ask(history={"channel": "h:x:y", "limit": -1}))["history"]
        assert [each["data"] for each in page["publications"]] == ["kept"]
        assert page["epoch"] == joined["epoch"]


async def test_who_was_away_recovers_what_an_h_channel_kept(server: Running) -> None:
    async with client(server) as ann:
        async with client(server) as bob:
            epoch = (await bob.ask(subscribe={"channel": "h:r"}))["subscribe"]["epoch"]
            await ann.ask(publish={"channel": "h:r", "data": 0})
            assert (await publication(bob))["offset"] == 1
        for number in range(1, 1500):
            await ann.ask(publish={"channel": "h:r", "data": number})
        async with client(server) as bob:
            back = {"channel": "h:r", "recover": True, "epoch": epoch, "offset": 1}
            reply = (await bob.ask(subscribe=back))["subscribe"]
            assert reply["recovered"]
            got = [each["data"] for each in reply["publications"]]
            while got[-1] < 1499:
                got.append((await publication(bob))["data"])
            assert got == list(range(1, 1500))


async def test_echo_returns_its_data(server: Running) -> None:
    async with client(server) as ann:
        values: list[Any] = [{"a": [1, 2.5, "x", None, True]}, "text", 7, [], None]
        for data in values:
            reply = await ann.ask(rpc={"method": "echo", "data": data})
            assert reply["rpc"].get("data") == data
        assert (await ann.ask(rpc={"method": "other"}))["error"]["code"] == 104


async def test_thousands_of_commands_at_once_are_neither_refused_nor_reordered(server: Running) -> None:
    async with client(server) as ann:
        await ann.ask(subscribe={"channel": "burst"})
        for number in range(3000):
            await ann.tell(f'{{"publish":{{"channel":"burst","data":{number}}}}}')
        assert [(await publication(ann))["data"] for _ in range(3000)] == list(range(3000))


async def test_malformed_frames_get_an_error_or_a_close_and_harm_nobody_else(server: Running) -> None:
    async with client(server) as ann:
        await ann.tell('{"id":5,"rpc":5}')
        assert (await ann.next())["error"]["code"] == 107
        await ann.tell('{"id":6,"nothing":{}}')
        assert (await ann.next())["error"]["code"] == 104
        for poison in (
            "",
            "[]",
            "nonsense",
            "null",
            '{"id":-1,"ping":{}}',
            "\n\n",
            '{"id":7,"rpc":{"data":"\\ud800"}}',
        ):
            async with client(server) as bob:
                await bob.tell(poison)
                with pytest.raises(ConnectionClosed):
                    await bob.next()
                assert bob.socket.close_code == 3501
        async with connect(server.url(), compression=None) as stranger:
            await stranger.send('{"id":1,"subscribe":{"channel":"x"}}')
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(stranger.recv(), 10)
            assert stranger.close_code == 3501
        assert (await ann.ask(rpc={"method": "echo", "data": "still here"}))["rpc"]["data"] == "still here"


async def test_sigterm_sends_members_away_and_ends_it_cleanly(server: Running) -> None:
    async with client(server) as ann:
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            while True:
                await ann.next()
        assert ann.socket.close_code == 3001
        assert await asyncio.wait_for(server.process.wait(), 10) == 0


async def test_the_limits_are_printed_and_open_files_are_as_many_as_may_be(server: Running) -> None:
    import resource

    assert "commands=Rate(" in server.said[0]
    assert server.said[0].endswith(f"open files {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}")
    assert (
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0]
        == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    )


async def test_a_missing_uvloop_is_said_in_one_line() -> None:
    if importlib.util.find_spec("uvloop") is not None:
        pytest.skip("uvloop is installed")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVER), "--port", "0", "--loop", "uvloop", stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert said.decode().count("\n") == 1
    assert "uvloop is not installed" in said.decode()
