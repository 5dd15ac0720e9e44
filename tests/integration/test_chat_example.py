"""The main job, on real sockets: examples/chat, two terminals, and a cut cable. The page is in tests/browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from examples import fastapi_chat
from rtkit.testing import TestHub
from tests.support.cable import Cable
from tests.support.chatpage import load_server
from tests.support.servers import serve_asgi

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = EXAMPLES / "chat"


class Program:
    """A subprocess whose lines are waited for, never slept for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def until(self, line: str) -> str:
        """Read up to and including a line that begins so; the rest of it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while not (self.lines and self.lines[-1].startswith(line)):
                raw = await self._process.stdout.readline()
                assert raw, f"ended after {self.lines}, without {line!r}"
                self.lines.append(raw.decode().rstrip("\n"))
        return self.lines[-1].removeprefix(line)

    async def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Wait for the end, after a signal if one is given: the return code, and what was written to stderr."""
        assert self._process.stderr is not None
        if number is not None:
            self._process.send_signal(number)
        async with asyncio.timeout(10):
            errors = await self._process.stderr.read()
            return await self._process.wait(), errors.decode()

    async def type(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    @property
    def said(self) -> list[str]:
        """What people said, without the program's own remarks."""
        return [line for line in self.lines if line and not line.startswith("*")]


@contextlib.asynccontextmanager
async def program(*args: str) -> AsyncGenerator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        yield Program(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def converse(port: int, *options: str) -> None:
    """Two people talk; bob's connection is reset and refused for a while; when it is back he has everything, once."""
    terminal = str(CHAT / "terminal.py")
    async with (
        Cable(port) as cable,
        program(terminal, "ann", "--url", f"http://127.0.0.1:{port}", *options) as ann,
        program(terminal, "bob", "--url", f"http://127.0.0.1:{cable.port}", *options) as bob,
    ):
        await ann.until("* connected")
        await bob.until("* connected")
        await ann.type("hello bob")
        await bob.until("ann: hello bob")
        await bob.type("hello ann")
        await ann.until("bob: hello ann")

        cable.pull()
        await bob.until("* waiting")
        for number in range(20):
            await ann.type(f"you cannot hear this yet: {number}")
        await ann.until("ann: you cannot hear this yet: 19")
        await bob.type("and this is said offline")
        cable.plug()

        await bob.until("bob: and this is said offline")
        await ann.until("bob: and this is said offline")
        assert bob.said == ann.said
        assert len(ann.said) == 23
        assert not any("gone" in line for line in [*ann.lines, *bob.lines])


@pytest.mark.timeout(120)
async def test_two_terminals_hold_a_conversation_that_survives_a_cut() -> None:
    """H2, K2."""
    async with program(str(CHAT), "--port", "0") as server:
        await converse(int(await server.until("The chat is at http://127.0.0.1:")))


@pytest.mark.timeout(120)
async def test_the_fastapi_chat_is_the_same_with_tokens() -> None:
    async with serve_asgi(fastapi_chat.app, lifespan="on") as port:
        await converse(port, "--login")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_ends_quickly_and_quietly(number: signal.Signals) -> None:
    """L2."""
    async with program(str(CHAT), "--port", "0") as server:
        port = await server.until("The chat is at http://127.0.0.1:")
        async with program(str(CHAT / "terminal.py"), "ann", "--url", f"http://127.0.0.1:{port}") as ann:
            await ann.until("* connected")
            assert await server.end(number) == (0, "")


async def test_a_port_that_is_taken_is_said_in_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with program(str(CHAT), "--port", str(port)) as server:
            assert await server.end() == (
                1,
                f"Something else is at 127.0.0.1, port {port}. Try --port {port + 1}, or 0 for a free one.\n",
            )


@pytest.mark.parametrize("name", ["ann", "Ann O'Neill", "李雷", "Zoë", "x" * 32, "👍", "<b>"])
def test_a_name_is_one_line_that_can_be_seen(name: str) -> None:
    assert load_server().is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " ann",
        "ann ",
        "a  b",
        "a\nb",
        "a\u202eb",
        "\u200b",
        "x" * 33,
        "Zoe\u0308",
        "a\u00a0b",
        "\ud800",
    ],
)
def test_anything_else_is_none(name: str) -> None:
    assert not load_server().is_name(name)


async def test_the_first_one_in_a_room_opens_it_and_others_see_who_is_here() -> None:
    server = load_server()
    async with TestHub(server.hub) as t:
        ann, ann_again, bob = [await t.connect(token=name) for name in ("ann", "ann", "bob")]
        for client in (ann, ann_again, bob):
            _ = await client.join("chat:lobby")
            await t.settle()
        assert [member.user for member in await server.hub.room("chat:lobby").presence()] == [
            "ann",
            "ann",
            "bob",
        ]
        opened = await server.hub.room("rooms").history()
        assert [message.data for message in opened.messages] == [server.Opened("lobby")]
