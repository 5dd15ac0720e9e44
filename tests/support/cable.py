"""A network cable for tests on real sockets: what lies between an HTTP client and its server, and can be pulled."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.serving import stop_serving

__all__ = ["Cable"]


class Cable:
    """A TCP proxy on a free port of 127.0.0.1.

    :param port: where the server is.
    :ivar port: where the cable begins.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._begun_with: dict[asyncio.StreamWriter, bytes] = {}  # those towards the client
        self._deaf: set[asyncio.StreamWriter] = set()
        self._plugged = True
        self._refused: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await stop_serving(self._server)
        self.pull()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pull(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._plugged = False
        for writer in self._writers:
            writer.transport.abort()

    def plug(self, *, but: bytes | None = None) -> None:
        """Let connections through again.

        :param but: not those whose first bytes have this in them: a network that lets pages through, but no
            WebSockets, is ``but=b"/rt/ws"``.
        """
        self._plugged = True
        self._refused = but

    def deafen(self, only: bytes) -> None:
        """Lose what the server sends on some of the connections there are. What the client sends arrives.

        :param only: those whose first bytes have this in them.
        """
        self._deaf |= {writer for writer, first in self._begun_with.items() if only in first}

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._plugged:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            first = await reader.read(65536)
            if not first or (self._refused is not None and self._refused in first):
                raise ConnectionRefusedError
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # it went, or may not come in, or the server is down
            self._writers.discard(writer)
            writer.transport.abort()
            return
        if writer.is_closing():  # pulled meanwhile
            back.transport.abort()
            return
        self._begun_with[writer] = first
        self._writers.add(back)
        back.write(first)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._carry(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._deaf:
                    writer.write(data)
                    await writer.drain()
        self._writers.discard(writer)
        self._deaf.discard(writer)
        self._begun_with.pop(writer, None)
        writer.close()
