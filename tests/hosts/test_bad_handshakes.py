"""What servers let through, and what becomes of it: the table of ``docs/how-to/hosts/servers.md``, cell by cell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rtkit import Grant, Hub, anonymous
from tests.docs.blocks import table
from tests.hosts.examples import FOLDER
from tests.hosts.hosts import SERVERS
from tests.hosts.servers import serve_aiohttp, serve_granian, serve_websockets
from tests.support.rawsocket import Ended, Peer, RawSocket, frame, upgrade

PAGE = "docs/how-to/hosts/servers.md"
NAMES = (*SERVERS, "granian", "aiohttp", "websockets")


class Target:
    """A server, and how it answers."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def answer(self, headers: dict[str, str | None], extra: bytes = b"") -> str:
        """The status of a handshake, ``closed`` for none, ``silence`` where nothing comes."""
        sock = await RawSocket.open(self.port)
        try:
            await sock.send(upgrade("/rt/ws", headers=headers, extra=extra))
            async with asyncio.timeout(2):
                head = await _line(sock)
            return head.split()[1].decode()
        except TimeoutError:
            return "silence"
        except (Ended, IndexError):
            return "closed"
        finally:
            sock.close()

    async def empty_fragments(self, patience: float) -> str:
        """The close code for 100,000 of them, or ``open`` if there is none within so many seconds."""
        eve = await Peer.connect(self.port)
        try:
            await eve.send(frame(b"", fin=False))
            await eve.send(frame(b"", 0, fin=False) * 100_000)
            async with asyncio.timeout(patience):
                return str((await eve.closed()).code)
        except TimeoutError:
            return "open"
        finally:
            eve.close()


async def _line(sock: RawSocket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n"):
        data += await sock.read(1)
    return data


@pytest.fixture(params=NAMES)
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    name: str = request.param
    hub: Hub[Any] = Hub(authenticate=anonymous)
    hub.rooms("lobby", publishes=object, grant=Grant())
    async with AsyncExitStack() as stack:
        if name == "granian":
            port = await stack.enter_async_context(serve_granian("starlette_app:app", FOLDER))
        elif name == "aiohttp":
            from aiohttp import web

            app = web.Application()
            hub.add_to(app, "/rt")
            port = await stack.enter_async_context(serve_aiohttp(app))
        elif name == "websockets":
            port = await stack.enter_async_context(serve_websockets(hub))
        else:
            port = await stack.enter_async_context(SERVERS[name](hub))
        yield Target(name, port)


async def test_the_page_says_how_it_is(target: Target) -> None:
    found = {
        "two `Origin` headers": await target.answer({"Origin": "http://a", "origin": "http://b"}),
        "a wrong key": await target.answer({"Sec-WebSocket-Key": "YWJj"}),
        "no key": await target.answer({"Sec-WebSocket-Key": None}),
        "10,000 headers": await target.answer({}, b"".join(b"x-%d: y\r\n" % n for n in range(10_000))),
        "a header of 100 kB": await target.answer({}, b"x: " + b"y" * 100_000 + b"\r\n"),
    }
    last = "endless empty fragments"
    (said,) = [row for row in table(PAGE, "server", *found, last) if row["server"] == target.name]
    found[last] = await target.empty_fragments(2 if said[last] == "open" else 30)
    assert {"server": target.name, **found} == said
