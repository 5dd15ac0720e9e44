"""The bad network of the chaos tests is as bad as it is told to be, and no worse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from tests.support.proxy_link import Link
from tests.support.serving import stop_serving

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncGenerator[Link]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with Link(server.sockets[0].getsockname()[1]) as link:
            yield link
    finally:
        await stop_serving(server)


@asynccontextmanager
async def connected(link: Link) -> AsyncGenerator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def says(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    return await reader.readexactly(len(data))


async def test_what_goes_in_comes_out_and_an_end_is_passed_on() -> None:
    async with echo() as link, connected(link) as streams:
        assert await says(streams, b"x" * 300_000) == b"x" * 300_000
        streams[1].write_eof()
        assert await streams[0].read() == b""


async def test_delays_differ_and_the_order_does_not() -> None:
    async with echo() as link, connected(link) as streams:
        delays = iter([0.05, 0.0, 0.02])
        link.delay = lambda: next(delays, 0.0)
        for n in range(50):
            streams[1].write(b"%03d" % n)
            await asyncio.sleep(0)
        assert await streams[0].readexactly(150) == b"".join(b"%03d" % n for n in range(50))


async def test_swallowed_is_held_back_and_nobody_is_told() -> None:
    async with echo() as link, connected(link) as old:
        assert await says(old, b"a") == b"a"
        link.swallow()
        async with connected(link) as new:
            answers = [asyncio.create_task(says(each, b"b")) for each in (old, new)]
            _, waiting = await asyncio.wait(answers, timeout=0.05)
            assert len(waiting) == 2
            link.heal()
            assert await asyncio.gather(*answers) == [b"b", b"b"]


async def test_cut_is_a_reset() -> None:
    async with echo() as link, connected(link) as streams:
        assert await says(streams, b"a") == b"a"
        link.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await streams[0].readexactly(1)


async def test_deaf_are_those_who_said_the_word() -> None:
    async with echo() as link, connected(link) as one, connected(link) as other:
        assert await says(one, b"SSUBSCRIBE x") == b"SSUBSCRIBE x"
        assert await says(other, b"PING") == b"PING"
        assert link.deafen(b"subscribe") == 1
        one[1].write(b"lost")
        assert await says(other, b"heard") == b"heard"
        answer = asyncio.create_task(one[0].read(1))
        await asyncio.wait([answer], timeout=0.05)
        assert not answer.done()
        answer.cancel()


async def test_a_server_that_is_gone_ends_who_connects() -> None:
    async with echo() as link:
        pass
    async with Link(link.port) as nowhere, connected(nowhere) as streams:
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await streams[0].readexactly(1)
