"""Every kind of client on every server, over everything it can connect over: it misses nothing when it is cut off.

``./dev matrix`` runs all of it; otherwise each client connects once over each of its transports, to the servers in
turn (T1, K1, W1).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import Browser

from rtkit import Gap
from rtkit.client import RoomClient, connect
from rtkit.server import listen
from tests.hosts.alone import new_club
from tests.hosts.guests import GUESTS
from tests.hosts.hosts import EVERY_SERVER, OWN_SERVER, SERVERS
from tests.hosts.servers import serve_aiohttp, serve_granian, serve_websockets
from tests.support.browser import chromium
from tests.support.cable import Cable

HERE: Final = Path(__file__).parent
Cell = tuple[str, str, str]
"""A client, a server, a transport."""


def all_cells() -> list[Cell]:
    return [
        (client, server, transport)
        for client, invite in GUESTS.items()
        for server in EVERY_SERVER
        for transport in invite.transports
        if server != "websockets" or transport == "websocket"  # it has nothing else
    ]


def few_cells() -> list[Cell]:
    """Each client over each transport once; each server in its turn."""
    everything = set(all_cells())
    turns = itertools.cycle(EVERY_SERVER)
    return [
        next(cell for server in turns if (cell := (client, server, transport)) in everything)
        for client, invite in GUESTS.items()
        for transport in invite.transports
    ]


def cell_name(cell: Cell) -> str:
    return f"{cell[0]} on {cell[1]}, {cell[2]}"


@asynccontextmanager
async def serve(server: str) -> AsyncGenerator[tuple[int, str]]:
    """A hub with a club; its port, and where it is mounted."""
    hub = new_club()
    if server == OWN_SERVER:
        async with listen(hub) as own:
            yield own.port, "/rt"
    elif server == "aiohttp":
        from aiohttp import web

        app = web.Application()
        hub.add_to(app, "/rt")
        async with serve_aiohttp(app) as port:
            yield port, "/rt"
    else:
        serving: AbstractAsyncContextManager[int]
        if server == "granian":
            serving = serve_granian("alone:club", HERE)
        else:
            serving = {**SERVERS, "websockets": serve_websockets}[server](hub)
        async with serving as port:
            yield port, ""


async def the_next(room: RoomClient[Any]) -> Any:
    item = await anext(room)
    assert not isinstance(item, Gap)
    return item.data


@pytest.fixture(scope="session")
async def running_chromium() -> AsyncIterator[Browser]:
    """One for all tests of this process."""
    async with chromium() as browser:
        yield browser


@pytest.fixture
def browser(cell: Cell, request: pytest.FixtureRequest) -> Browser | None:
    """For clients that need one."""
    found: Browser | None = None
    if GUESTS[cell[0]].in_chromium:
        found = request.getfixturevalue("running_chromium")
    return found


@pytest.mark.parametrize(
    "cell", all_cells() if os.environ.get("RTKIT_MATRIX") else few_cells(), ids=cell_name
)
async def test_a_client_that_is_cut_off_misses_nothing(cell: Cell, browser: Browser | None) -> None:
    """It hears, says, loses its connection, comes back over the same transport, and goes on where it was."""
    client, server, transport = cell
    invite = GUESTS[client]
    async with asyncio.timeout(50), serve(server) as (port, prefix), Cable(port) as cable:
        async with (
            connect(f"http://127.0.0.1:{port}{prefix}") as friend,
            friend.join("club") as room,
            invite.connect(f"http://127.0.0.1:{cable.port}{prefix}", transport, browser) as guest,
        ):
            await room.send("hello")
            assert await guest.hear() == "hello"
            await guest.say("good evening")
            assert await guest.hear() == "good evening"
            cable.pull()
            if transport != "poll":  # which asks again for 10 s before it thinks anything of it
                await guest.until_away()
            missed = [f"missed {n}" for n in range(5)]
            for text in missed:
                await room.send(text)
            cable.plug()
            assert [await guest.hear() for _ in missed] == missed
            await guest.say("back again")
            assert await guest.hear() == "back again"
            said = ["hello", "good evening", *missed, "back again"]
            assert [await the_next(room) for _ in said] == said
            assert (guest.unheard, guest.wrong) == (0, [])
        assert guest.wrong == []


def test_the_few_are_enough() -> None:
    """What ``./dev test`` runs has every client, every transport of each, and every server in it."""
    few = few_cells()
    assert {(client, transport) for client, _, transport in few} == {
        (client, transport) for client, invite in GUESTS.items() for transport in invite.transports
    }
    assert {server for _, server, _ in few} == set(EVERY_SERVER)
