"""A network cable that can also be blocked: then the server's words wait in the kernel, and its outbox fills."""

from __future__ import annotations

import asyncio

from tests.support.cable import Cable

__all__ = ["Valve"]


class Valve(Cable):
    """A cable with a valve in it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._open = asyncio.Event()
        self._open.set()

    def block(self) -> None:
        """Carry nothing any more, in either direction."""
        self._open.clear()

    def unblock(self) -> None:
        """Carry on."""
        self._open.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._carry(_Patient(reader, self._open), writer)  # type: ignore[arg-type]


class _Patient:
    """A reader that reads while the valve is open."""

    def __init__(self, reader: asyncio.StreamReader, valve: asyncio.Event) -> None:
        self._reader = reader
        self._valve = valve

    async def read(self, count: int) -> bytes:
        await self._valve.wait()
        data = await self._reader.read(count)
        await self._valve.wait()
        return data
