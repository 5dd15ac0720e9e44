"""Every kind of client behind one face, as guests of the hub in ``alone.py``: ours, and unmodified foreign ones.

A guest is in the room ``club``; it says things there, hears what is said, and may be cut off. What it is told to be
missing, and every error, stands in :attr:`Guest.wrong`.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from playwright.async_api import Browser

from rtkit import Gap
from rtkit.client import RoomClient, State, TransportName, connect
from tests.foreign.clients import Client, Kind, PythonKind, in_chromium, in_node
from tests.support.node import find_node

__all__ = ["GUESTS", "TRANSPORTS", "Guest", "Invite"]

#: Seconds until what was waited for is given up.
PATIENCE = 15.0
SCRIPT: Final = Path(__file__).with_name("guest.mjs")
#: What there is for a client to connect over, as the tables call it.
TRANSPORTS: Final = {
    "websocket": "WebSocket",
    "sse": "event stream",
    "http_stream": "HTTP stream",
    "poll": "long-poll",
}


class Guest(ABC):
    """A client that has joined.

    :ivar wrong: what should not have happened to it.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        self._away = asyncio.Event()

    @abstractmethod
    async def say(self, data: Any) -> None:
        """Publish; the hub has acknowledged it."""

    async def hear(self) -> Any:
        """What was said next, by anybody."""
        async with asyncio.timeout(PATIENCE):
            return await self._heard.get()

    async def until_away(self) -> None:
        """Until it has noticed that it is cut off."""
        async with asyncio.timeout(PATIENCE):
            await self._away.wait()

    @property
    def unheard(self) -> int:
        """How much has come that nobody asked for."""
        return self._heard.qsize()


# -- ours: Python


class _PythonGuest(Guest):
    def __init__(self, room: RoomClient[Any]) -> None:
        super().__init__()
        self._room = room

    async def say(self, data: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._room.send(data)

    def state(self, state: State) -> None:
        if state is State.WAITING:
            self._away.set()

    async def listen(self) -> None:
        async for item in self._room:
            if isinstance(item, Gap):
                self.wrong.append(repr(item))
            else:
                self._heard.put_nowait(item.data)


@asynccontextmanager
async def _in_python(url: str, transport: str, _: Browser | None) -> AsyncGenerator[Guest]:
    async with (
        connect(url, transports=[cast("TransportName", transport)]) as client,
        client.join("club") as room,
    ):
        assert client.transport == transport
        guest = _PythonGuest(room)
        client.on_state(guest.state)
        listening = asyncio.create_task(guest.listen())
        yield guest
        listening.cancel()
        await asyncio.wait([listening])


# -- ours: the browser SDK


class _ScriptGuest(Guest):
    """The browser SDK; *ask* has it do something, and what it emits comes to :meth:`emitted`."""

    ask: Callable[[dict[str, Any]], Any]

    def emitted(self, unit: Mapping[str, Any]) -> None:
        if "heard" in unit:
            self._heard.put_nowait(unit["heard"])
        elif "wrong" in unit:
            self.wrong.append(unit["wrong"])
        elif unit.get("state") == "waiting":
            self._away.set()

    async def say(self, data: Any) -> None:
        await self.do("say", data)

    async def do(self, verb: str, data: Any = None) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.ask({"verb": verb, "data": data})


@asynccontextmanager
async def _in_node(url: str, transport: str, _: Browser | None) -> AsyncGenerator[Guest]:
    process = await asyncio.create_subprocess_exec(
        find_node(),
        str(SCRIPT),
        url,
        transport,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    answers: asyncio.Queue[Any] = asyncio.Queue()
    guest = _ScriptGuest()

    async def ask(command: dict[str, Any]) -> Any:
        stdin.write(json.dumps(command).encode() + b"\n")
        return await answers.get()

    async def listen() -> None:
        while line := await stdout.readline():
            unit = json.loads(line)
            if "answer" in unit:
                answers.put_nowait(unit["answer"])
            else:
                guest.emitted(unit)

    guest.ask = ask
    listening = asyncio.create_task(listen())
    try:
        assert await guest.do("join") == transport
        yield guest
        await guest.do("close")
        stdin.close()  # upon which it ends
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await listening


@asynccontextmanager
async def _in_chromium(url: str, transport: str, browser: Browser | None) -> AsyncGenerator[Guest]:
    assert browser is not None
    origin = f"http://{urlsplit(url).netloc}"
    guest = _ScriptGuest()
    page = await browser.new_page()
    page.on("pageerror", lambda error: guest.wrong.append(f"{error.stack or error}"))
    await page.route(
        f"{origin}/guest.mjs", lambda route: route.fulfill(content_type="text/javascript", path=SCRIPT)
    )
    # Something that every server shows. A page that did not come from there may not open a WebSocket to this machine.
    await page.goto(f"{url}/client.js")
    await page.expose_function("emit", guest.emitted)
    await page.evaluate(
        """async ({ url, transport }) => {
            const { connect } = await import(`${url}/client.js`);
            const { guest } = await import("/guest.mjs");
            globalThis.act = guest(connect, url, transport, emit);
        }""",
        {"url": url, "transport": transport},
    )
    guest.ask = lambda command: page.evaluate("command => act(command)", command)
    assert await guest.do("join") == transport
    yield guest
    await guest.do("close")
    await page.close()


# -- Centrifugo's


class _ForeignGuest(Guest):
    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._given = 0

    async def say(self, data: Any) -> None:
        await self._client.do("publish", channel="club", data=data)

    async def hear(self) -> Any:
        await self._client.until_true(lambda: self.unheard > 0, "publication")
        self._given += 1
        return self._client.data("club")[self._given - 1]

    async def until_away(self) -> None:
        await self._client.until("connecting", code=1)

    @property
    def unheard(self) -> int:
        return len(self._client.data("club")) - self._given

    def look_back(self) -> None:
        again = self._client.heard("subscribed", channel="club", was_recovering=True)
        self.wrong += [f"not recovered: {event}" for event in again if not event["recovered"]]


@asynccontextmanager
async def _foreign(kind: Kind, url: str, transport: str) -> AsyncGenerator[Guest]:
    client = kind.client("guest")
    where: Any = f"{url}/{transport}".replace("http", "ws", 1)
    options: dict[str, Any] = {}
    if transport != "websocket":
        where = [{"transport": transport, "endpoint": f"{url}/{transport}"}]
        options["emulationEndpoint"] = f"{url}/emulation"
    await client.do("open", url=where, options=options)
    await client.connected()
    await client.subscribed("club")
    guest = _ForeignGuest(client)
    yield guest
    guest.look_back()
    await client.do("close")


@asynccontextmanager
async def _js_in_node(url: str, transport: str, _: Browser | None) -> AsyncGenerator[Guest]:
    async with in_node() as kind, _foreign(kind, url, transport) as guest:
        yield guest


@asynccontextmanager
async def _js_in_chromium(url: str, transport: str, browser: Browser | None) -> AsyncGenerator[Guest]:
    assert browser is not None
    async with in_chromium(browser) as kind, _foreign(kind, url, transport) as guest:
        yield guest


@asynccontextmanager
async def _centrifuge_python(url: str, transport: str, _: Browser | None) -> AsyncGenerator[Guest]:
    async with _foreign(PythonKind(), url, transport) as guest:
        yield guest


@dataclass(frozen=True)
class Invite:
    """A kind of client.

    :param transports: what it can connect over.
    :param in_chromium: it needs one.
    :param connect: a guest, for a block: ``connect(url of the hub, transport, Chromium)``.
    """

    transports: tuple[str, ...]
    connect: Callable[[str, str, Browser | None], AbstractAsyncContextManager[Guest]]
    in_chromium: bool = False


OURS = ("websocket", "sse", "poll")
GUESTS: Final[Mapping[str, Invite]] = {
    "rtkit in Python": Invite(OURS, _in_python),
    "rtkit in node": Invite(OURS, _in_node),
    "rtkit in Chromium": Invite(OURS, _in_chromium, in_chromium=True),
    "npm centrifuge in node": Invite(("websocket", "http_stream"), _js_in_node),
    "npm centrifuge in Chromium": Invite(
        ("websocket", "sse", "http_stream"), _js_in_chromium, in_chromium=True
    ),
    "centrifuge-python": Invite(("websocket",), _centrifuge_python),
}
