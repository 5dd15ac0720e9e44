"""A hub on our own server, a cable before it, and every kind of foreign client that there is."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Presence, Reject
from rtkit.primitives import Heartbeat
from rtkit.server import Server, listen
from rtkit.transports import Answer, Driver, Handshake, HttpRequest, Transport
from tests.foreign.cable import Valve
from tests.foreign.clients import PATIENCE, Client, Kind, PythonKind, ScriptKind, in_chromium, in_node
from tests.support.browser import chromium

ALL = Grant("publish", "signal", "history", "presence")


@pytest.fixture(scope="session")
async def node() -> AsyncIterator[ScriptKind]:
    """One node for all tests of this process."""
    async with in_node() as kind:
        yield kind


@pytest.fixture(scope="session")
async def page() -> AsyncIterator[ScriptKind]:
    """One page of one Chromium for all tests of this process."""
    async with chromium() as browser, in_chromium(browser) as kind:
        yield kind


KINDS = [
    "node",
    pytest.param("chromium", marks=pytest.mark.soak),  # the same script as in node, over the same transport
    "python",
    "node over http_stream",
    "chromium over sse",
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every kind of client, one after the other: each scenario is run with each."""
    if request.param == "python":
        return PythonKind()
    where, _, transport = request.param.partition(" over ")
    kind: ScriptKind = request.getfixturevalue("page" if where == "chromium" else "node")
    return kind.over(transport) if transport else kind


class Overheard:
    """What drives a connection, with an ear on what the client says."""

    def __init__(self, driver: Driver, hear: Callable[[bytes], None]) -> None:
        self._driver = driver
        self._hear = hear

    def received(self, frame: bytes) -> None:
        self._hear(frame)
        self._driver.received(frame)

    def writable(self) -> None:
        self._driver.writable()

    def lost(self, code: int, reason: str) -> None:
        self._driver.lost(code, reason)


class ListeningHub(Hub[dict[str, Any]]):
    """A hub that writes down what its clients say.

    :ivar frames: every frame, in order.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.frames: list[bytes] = []
        self._heard = asyncio.Event()

    def connect(self, transport: Transport, handshake: Handshake) -> Driver:
        return Overheard(super().connect(transport, handshake), self._hear)

    async def answer(self, request: HttpRequest) -> Answer:
        if request.endpoint == "emulation" and request.method == "POST":
            self._hear(json.loads(request.body)["data"].encode())
        elif request.method in ("GET", "POST"):
            self._hear(request.body or request.handshake.params()["cf_connect"].encode())
        return await super().answer(request)

    def _hear(self, frame: bytes) -> None:
        self.frames.append(frame)
        self._heard.set()

    async def until_heard(self, condition: Callable[[list[bytes]], bool]) -> None:
        """Until a frame makes it true."""
        async with asyncio.timeout(PATIENCE):
            while not condition(self.frames):
                self._heard.clear()
                await self._heard.wait()


@dataclass
class Say:
    text: str


async def authenticate(credentials: Credentials) -> Identity[dict[str, Any]]:
    """A token is ``user``, or ``user;option=value;…``: ``auto=room`` chooses a room, ``left=seconds`` expires."""
    user, *options = (credentials.token or "").split(";")
    claims = dict[str, Any](option.split("=") for option in options)
    if not user or user == "stolen":
        raise Reject("who is that?", code=101)
    if user == "suspended":
        raise Reject("suspended until spring", code=442)
    if user == "old":
        raise Reject("token expired", code=109)
    if user == "busy":
        raise Reject("too many at once", retry_after=0.01)
    left = float(claims["left"]) if "left" in claims else None
    claims["data"] = credentials.data
    return Identity(user, claims, expires_at=None if left is None else time.time() + left)


def declare(hub: Hub[dict[str, Any]], counts: Counter[str]) -> None:
    """Rooms of every sort."""
    hub.rooms("kept:{x}", publishes=object, grant=ALL, history=History(100, ttl=600))
    hub.rooms("small:{x}", publishes=object, grant=ALL, history=History(2, ttl=600))
    hub.rooms("live:{x}", publishes=object, grant=ALL, presence=Presence())
    hub.rooms(
        "#{user}",
        publishes=object,
        grant=ALL,
        history=History(3, ttl=600),
        auto_join=lambda identity: [f"#{identity.user}"] if "auto" in identity.claims else [],
    )
    busy = hub.rooms(
        "busy:{user}",
        publishes=object,
        grant=ALL,
        history=History(9, ttl=600),
        auto_join=lambda identity: [f"busy:{identity.user}"] if "busy" in identity.claims else [],
    )
    chat = hub.rooms("chat:{x}", publishes=Say, grant=ALL, history=History(100, ttl=600))
    guarded = hub.rooms("guarded:{x}", publishes=object)
    greeted = hub.rooms("greeted:{x}", publishes=object, grant=ALL, history=History(100, ttl=600))

    @chat.on(Say)
    async def say(ctx: Context[Any, Say], message: Say) -> dict[str, bool]:
        await ctx.room.publish(message)
        return {"saved": True}

    @guarded.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        """The token is the room's name, or that and how long it holds."""
        counts["authorize"] += 1
        if ctx.token == "old":
            raise Reject("token expired", code=109)
        room, _, left = (ctx.token or "").partition(";")
        if room != ctx.room.name:
            raise Reject("not for this room")
        return Grant("publish", ttl=float(left) if left else None)

    @busy.on_join
    async def meanwhile(ctx: Context[Any, Any]) -> None:
        for n in range(3):
            await hub.publish(ctx.where, [counts["busy"], n])
        counts["busy"] += 1

    @greeted.on_join
    async def greet(ctx: Context[Any, Any]) -> dict[str, Any]:
        return {"welcome": ctx.user, "asked": ctx.data}

    @hub.rpc(object, name="double")
    async def double(ctx: Context[Any, Any], number: Any) -> Any:
        return number * 2

    @hub.rpc(object, name="nothing")
    async def nothing(ctx: Context[Any, Any], message: Any) -> None:
        counts["nothing"] += 1

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[Any, Any], message: Any) -> None:
        ctx.session.send(message)

    @hub.rpc(object, name="refuse")
    async def refuse(ctx: Context[Any, Any], message: Any) -> None:
        raise Reject("not today", code=477, retry_after=2)

    @hub.rpc(object, name="close")
    async def close(ctx: Context[Any, Any], message: Any) -> None:
        await ctx.session.close(code=message["code"], reason=message["reason"])


class World:
    """A served hub, and clients of one kind.

    :ivar counts: how often what was called on the server.
    """

    def __init__(self, kind: Kind, hub: ListeningHub, server: Server, cable: Valve) -> None:
        self.kind = kind
        self.hub = hub
        self.server = server
        self.cable = cable
        self.url = f"ws://127.0.0.1:{cable.port}/connection/websocket"
        self.counts = Counter[str]()
        self._clients: list[Client] = []

    async def client(self, token: str = "ann", **options: Any) -> Client:
        """A client that is not connected yet. Without a token it shows none."""
        client = self.kind.client(token.split(";", 1)[0] or "nobody")
        if token:
            options["token"] = token
        url, more = self.kind.where(self.cable.port)
        await client.do("open", url=url, options={**options, **more})
        self._clients.append(client)
        return client

    async def connected(self, token: str = "ann", **options: Any) -> Client:
        """A client that is connected."""
        client = await self.client(token, **options)
        await client.connected()
        return client

    async def publish(self, room: str, *data: Any) -> None:
        for each in data:
            await self.hub.publish(room, each)

    async def cut(self, *clients: Client) -> None:
        """Pull the cable, and wait until they have noticed."""
        self.cable.pull()
        for client in clients:
            await client.until("connecting", code=1)

    async def close(self) -> None:
        for client in self._clients:
            await client.do("close")


#: Pings are so frequent that no scenario has to wait for one.
LIMITS = Limits(heartbeat=Heartbeat(interval=0.2, timeout=5))


@pytest.fixture
def limits() -> Limits:
    """Of the hub; a test with other ones is parametrized with them."""
    return LIMITS


@pytest.fixture
async def world(kind: Kind, limits: Limits) -> AsyncIterator[World]:
    """Everything that a scenario needs."""
    # A page of no site has the origin `null`.
    hub = ListeningHub(authenticate=authenticate, origins=["*"], limits=limits)
    counts = Counter[str]()
    declare(hub, counts)
    async with listen(hub, path="/connection") as server, (cable := Valve(server.port)):
        world = World(kind, hub, server, cable)
        world.counts = counts
        yield world
        await world.close()
