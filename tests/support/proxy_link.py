"""A bad network between a hub and its broker: a TCP proxy that delays, swallows, or cuts what goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.serving import stop_serving

__all__ = ["Link"]

_CHUNK = 64 * 1024
#: Pieces that may be under way in one direction; then nothing more is read, as in a full socket buffer.
_UNDER_WAY = 64


class _Way:
    """One direction of one connection."""

    def __init__(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._link = link
        self._source, self._sink = source, sink
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        self.deaf = False

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._write())
        except* OSError:
            self._sink.transport.abort()  # reset on one side is reset on the other, and in the other direction

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._source.read(_CHUNK):
            await self._pieces.put((loop.time() + self._link.delay(), data))
        await self._pieces.put((0.0, b""))

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self._pieces.get()
            # Delays differ, the order does not.
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._link.through.wait()
            if not data:
                self._sink.close()
                return
            if not self.deaf:
                self._sink.write(data)
                await self._sink.drain()


class Link:
    """A TCP proxy on a free port of 127.0.0.1; all its faults end with :meth:`heal`.

    :param port: where the server is.
    :ivar port: where it is reached.
    :ivar delay: asked for seconds by which each piece is late, in either direction.
    :ivar through: cleared, nothing goes through, and nobody is told; connections stay, new ones are accepted and get
        no answer. Set again, what was held back arrives.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._towards_client: list[tuple[bytearray, _Way]] = []
        self.port = 0
        self.through = asyncio.Event()
        self.delay: Callable[[], float] = float
        self.heal()

    def heal(self) -> None:
        """End delays and silence. Who was made deaf stays that."""
        self.delay = float
        self.through.set()

    def swallow(self) -> None:
        """Begin to hold everything back."""
        self.through.clear()

    def cut(self) -> None:
        """Reset all connections there are."""
        for writers in self._connections.values():
            for writer in writers:
                writer.transport.abort()

    def deafen(self, word: bytes) -> int:
        """Lose, from now on, what the server sends on connections on which the client has said this word.

        :return: how many those are.
        """
        found = [way for said, way in self._towards_client if word.lower() in said.lower()]
        for way in found:
            way.deaf = True
        return len(found)

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await stop_serving(self._server)
        self.heal()
        self.cut()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = (writer,)
        try:
            await self.through.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            del self._connections[task]
            return
        self._connections[task] = (writer, back)
        said = bytearray()
        towards_client = _Way(self, there, writer)
        entry = (said, towards_client)
        self._towards_client.append(entry)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_Way(self, _Overheard(reader, said), back).run())
                group.create_task(towards_client.run())
        finally:
            self._towards_client.remove(entry)
            del self._connections[task]
            writer.transport.abort()
            back.transport.abort()


class _Overheard(asyncio.StreamReader):
    """A reader that keeps the first bytes that go through it."""

    def __init__(self, reader: asyncio.StreamReader, said: bytearray) -> None:
        super().__init__()
        self._reader, self._said = reader, said

    async def read(self, n: int = -1) -> bytes:
        data = await self._reader.read(n)
        if len(self._said) < _CHUNK:
            self._said += data
        return data
