"""A TCP proxy: what lies between a client and a server, and can be cut, stretched, or led elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from ssl import SSLContext
from types import TracebackType
from typing import Self

from tests.support.serving import stop_serving

__all__ = ["Cable"]


class Cable:
    """Carries bytes between whoever connects to :attr:`port` and a server on this machine.

    :param target: the server's port; may be changed, and then holds for new connections.
    :param ssl: the server speaks TLS, the clients do not: so a test can say any bytes through TLS.
    :param piece: how large the next piece is that is passed on, at the most; a turn of the loop lies between two.
    :ivar cuts: connections that were cut so far.
    """

    def __init__(
        self, target: int, *, ssl: SSLContext | None = None, piece: Callable[[], int] = lambda: 65536
    ) -> None:
        self.target = target
        self._ssl = ssl
        self.port = 0
        self.cuts = 0
        self._piece = piece
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._plugged = True
        self._left: int | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        await stop_serving(self._server)
        self.pull()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def pull(self) -> None:
        """Reset every connection on both sides, and new ones until :meth:`plug`."""
        self._plugged = False
        self._cut()

    def plug(self) -> None:
        """Let connections through again."""
        self._plugged = True

    def cut_after(self, count: int) -> None:
        """Reset every connection as soon as so many bytes more have gone to clients: in the middle of whatever."""
        self._left = count

    def _cut(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._plugged:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target, ssl=self._ssl)
        self._writers |= {writer, back}
        for source, sink, down in ((reader, back, False), (there, writer, True)):
            task = asyncio.ensure_future(self._carry(source, sink, down))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self._piece()):
                if down and self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)
                if self._left == 0:
                    self._left = None
                    self._cut()
                    return
        self._writers.discard(writer)
        writer.close()


def pieces(seed: int, most: int) -> Callable[[], int]:
    """Sizes drawn at random from 1 to *most*."""
    chance = random.Random(seed)
    return lambda: chance.randint(1, most)
