"""A client of HTTP by hand whose response may go on: nothing is read that the test does not ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from tests.support.rawsocket import PATIENCE, Ended, RawSocket

__all__ = ["RawStream", "request"]


def request(
    method: str,
    path: str,
    *,
    headers: Mapping[str, str | None] | None = None,
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """A request.

    :param headers: to set, or with None to leave out.
    """
    fields: dict[str, str | None] = {"Host": "test.example"}
    if body or method == "POST":
        fields["Content-Length"] = str(len(body))
    fields |= headers or {}
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class RawStream(RawSocket):
    """A response whose body is read as it comes.

    :ivar status: of the response.
    :ivar headers: names in lower case.
    """

    status = 0
    headers: Mapping[str, str] = {}
    _ended = False

    @classmethod
    async def begin(
        cls,
        port: int,
        path: str,
        *,
        method: str = "POST",
        headers: Mapping[str, str | None] | None = None,
        body: bytes = b"",
        version: str = "1.1",
        receive_buffer: int | None = None,
    ) -> Self:
        """Connect, ask, and read the head of the response."""
        stream = await cls.open(port, receive_buffer=receive_buffer)
        try:
            await stream.send(request(method, path, headers=headers, body=body, version=version))
            await stream.head()
        except BaseException:
            stream.close()
            raise
        return stream

    async def head(self) -> None:
        """Read the head of the response."""
        text = (await self.read_until(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.removesuffix("\r\n\r\n").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    async def piece(self) -> bytes:
        """The next piece of the body, as large as the server made it; empty at its end.

        :raises Ended: when the connection ended before the body, which in HTTP/1.0 cannot be told.
        """
        if self._ended:
            return b""
        if self.chunked:
            size = int(await self.read_until(b"\r\n"), 16)
            data = await self.read(size)
            assert await self.read(2) == b"\r\n"
        else:
            assert "content-length" not in self.headers, "it has an end that is known"
            try:
                data = await self.some()
            except Ended as end:
                if end.how != "eof":
                    raise
                data = b""
        self._ended = not data
        return data

    async def some(self) -> bytes:
        """Bytes, as many as are there and at least one."""
        async with asyncio.timeout(PATIENCE):
            while not self._buffer:
                await self._fill()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def body(self, count: int | None = None) -> bytes:
        """So many bytes of the body and no fewer; without a number all there are."""
        data = b""
        while count is None or len(data) < count:
            piece = await self.piece()
            if not piece:
                assert count is None, f"the body ended after {data[-200:]!r}"
                break
            data += piece
        return data
