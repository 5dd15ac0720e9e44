"""The main job, on real sockets: examples/chat on uvicorn, two terminals, and a cut cable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

CHAT = Path(__file__).parents[2] / "examples" / "chat"


class Cable:
    """A TCP proxy: what lies between a terminal and the server, and can be pulled."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._plugged = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.pull()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pull(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._plugged = False
        for writer in self._writers:
            writer.transport.abort()

    def plug(self) -> None:
        """Let connections through again."""
        self._plugged = True

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._plugged:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._carry(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()


class Program:
    """A subprocess whose lines are waited for, never slept for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def until(self, line: str) -> None:
        """Read up to and including a line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while line not in self.lines[-1:]:
                raw = await self._process.stdout.readline()
                assert raw, f"ended after {self.lines}, without {line!r}"
                self.lines.append(raw.decode().rstrip("\n"))

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
async def program(*args: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        yield Program(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.timeout(120)
async def test_two_terminals_hold_a_conversation_that_survives_a_cut() -> None:
    """H2, K2: bob's connection is reset and refused for a while; when it is back he has everything, once."""
    port = free_port()
    async with (
        program(str(CHAT), str(port)) as server,
        Cable(port) as cable,
    ):
        await server.until("* ready")
        terminal = str(CHAT / "terminal.py")
        async with (
            program(terminal, "ann", "--url", f"http://127.0.0.1:{port}") as ann,
            program(terminal, "bob", "--url", f"http://127.0.0.1:{cable.port}") as bob,
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
