"""A cable between brokers and a server that can be pulled out: the server stays what it is, nobody reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from nats_server import free_port

__all__ = ["Cable"]


class Cable:
    """Listens on a port of its own, and passes on to another.

    :ivar port: where it listens.
    """

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self._to = to
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def plug_in(self) -> None:
        """Connections can be made."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def pull_out(self) -> None:
        """Connections are cut, and none can be made."""
        assert self._server is not None
        self._server.close()
        for end in tuple(self._ends):
            end.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._ends.add(writer)
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._ends.add(other_writer)
            try:
                await asyncio.gather(self._pass(reader, other_writer), self._pass(other_reader, writer))
            finally:
                self._ends.discard(other_writer)
                other_writer.transport.abort()
        except OSError:
            pass  # the server is not there: then neither are we
        finally:
            self._ends.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while more := await reader.read(65536):
                writer.write(more)
                await writer.drain()
        except OSError:
            pass  # one end is gone, and so is the other
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def pulled_out(self) -> AsyncGenerator[None]:
        """For the length of the block."""
        await self.pull_out()
        try:
            yield
        finally:
            await self.plug_in()
