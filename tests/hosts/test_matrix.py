"""Frameworks on servers, in short: what the how-to pages show works (T1, L1); every one on every one in `./dev matrix`.

The applications are those of ``examples/hosts``, as they stand on the pages, and the hub alone. The transport suite on
all of them takes minutes: that is ``tests/hosts/test_suite.py``. Every client is in ``tests/hosts/test_clients.py``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from rtkit import Hub, codes
from rtkit.client import TransportName, connect
from rtkit.server import listen
from tests.hosts.examples import ALONE, FOLDER, NAMES, application, load
from tests.hosts.hosts import SERVERS
from tests.hosts.servers import serve_aiohttp, serve_granian, serve_websockets
from tests.support.rawsocket import Closed, Peer, RawSocket, Refusal
from tests.transport.conftest import until


@asynccontextmanager
async def serve_own(hub: Hub[Any]) -> AsyncGenerator[int]:
    """Our own server."""
    async with listen(hub) as server:
        yield server.port


#: The servers that serve one framework only; all others are ASGI applications.
OWN = {ALONE: serve_own, "aiohttp": serve_aiohttp, "websockets": serve_websockets}
#: The close codes with which clients are sent away when the server ends. The hub's own is 3001, with a moment to come
#: back at; uvicorn and hypercorn end connections before they tell the hub (L2). In granian the two race, in threads:
#: a client hears the hub or nothing.
LAST_WORDS = {
    "uvicorn": {1012},
    "uvicorn with our class": {1012},
    "hypercorn": {1011},
    "granian": {1006, 3001},
    "aiohttp": {3001},
    "websockets": {3001},
    ALONE: {3001},
}
#: What runs on ASGI servers.
ASGI = [name for name in (*NAMES, ALONE) if name not in OWN or name == ALONE]
PAIRS = [(name, server) for name in ASGI for server in (*SERVERS, "granian")]
PAIRS += [(name, name) for name in OWN]  # websockets last
if not os.environ.get("RTKIT_MATRIX"):
    # Every framework on one server, and every server with one framework. All of it is `./dev matrix`.
    PAIRS = [pair for pair in PAIRS if "Starlette" in pair or "uvicorn" in pair or pair[0] in OWN]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]} on {pair[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


def serve(framework: str, server: str, module: ModuleType) -> AbstractAsyncContextManager[int]:
    """The example of a framework, on a server."""
    if server == "granian":
        if framework == ALONE:
            return serve_granian("alone:hub", Path(__file__).parent)
        name = "application" if framework == "Django" else "app"
        return serve_granian(f"{NAMES[framework]}:{name}", FOLDER)
    return (OWN.get(server) or SERVERS[server])(application(module))


def mount(framework: str, server: str) -> str:
    """Where the hub is: alone on an ASGI server, it is all there is."""
    return "" if framework == ALONE and server != ALONE else "/rt"


async def test_a_conversation(pair: tuple[str, str]) -> None:
    """Our client, a foreign one and the application itself talk; wrong guests are told; nothing is left."""
    framework, server = pair
    before = asyncio.all_tasks()
    module = load(framework)
    # granian's is in another process.
    hub: Hub[Any] | None = None if server == "granian" else module.hub
    async with asyncio.timeout(30), serve(framework, server, module) as port:
        assert hub is None or hub.running, "the lifespan starts it, before anybody comes"
        base = f"http://127.0.0.1:{port}"
        rt = mount(framework, server)
        async with connect(f"{base}{rt}") as ann, ann.join("lobby") as room:
            bob = await Peer.connect(port, f"{rt}/ws", headers={"Sec-WebSocket-Protocol": "centrifuge-json"})
            try:
                assert bob.subprotocol == "centrifuge-json"
                await bob.connect_as("bob", rt=False)
                await bob.join("lobby")
                await room.send("from ann")
                await bob.call("publish", channel="lobby", data="from bob")
                said: list[Any] = ["from ann", "from bob"]
                if hasattr(module, "announce"):
                    async with httpx2.AsyncClient() as http:
                        response = await http.post(f"{base}/announce", json={"from": "the application"})
                    assert response.is_success, response.text
                    assert "published" in response.text
                    said.append({"from": "the application"})
                assert [(await anext(room)).data for _ in said] == said
                while len(bob.pushes) < len(said):
                    await bob.next_unit()
                assert [push["pub"]["data"] for push in bob.pushes] == said
                assert (await bob.leave(1000)).code == 1000
            finally:
                bob.close()
        await closed_while_idle(port, rt)
        await look_around(port, rt)
    assert hub is None or not hub.running, "the lifespan closes it"
    await until(lambda: asyncio.all_tasks() <= before)


@pytest.mark.parametrize("kind", ["sse", "poll"])
@pytest.mark.parametrize("pair", PAIRS[:-1], ids=lambda pair: f"{pair[0]} on {pair[1]}")
async def test_a_conversation_over_http(pair: tuple[str, str], kind: TransportName) -> None:
    """The same without WebSockets, by an event stream and by long-polls; with a foreign client over a WebSocket."""
    framework, server = pair
    assert server != "websockets", "which is the last, and serves WebSockets only"
    before = asyncio.all_tasks()
    module = load(framework)
    async with asyncio.timeout(30), serve(framework, server, module) as port:
        rt = mount(framework, server)
        async with (
            connect(f"http://127.0.0.1:{port}{rt}", transports=[kind]) as ann,
            ann.join("lobby") as room,
        ):
            assert ann.transport == kind
            bob = await Peer.connect(port, f"{rt}/ws")
            try:
                await bob.connect_as("bob", rt=False)
                await bob.join("lobby")
                for n in range(5):
                    await room.send(f"{n} from ann")
                    await bob.call("publish", channel="lobby", data=f"{n} from bob")
                    assert (await anext(room)).data == f"{n} from ann"
                    assert (await anext(room)).data == f"{n} from bob"
                assert (await bob.leave(1000)).code == 1000
            finally:
                bob.close()
    await until(lambda: asyncio.all_tasks() <= before)


async def test_what_websockets_says_of_other_transports() -> None:
    """It cannot serve them, and clients are told so in a way that makes them try something else."""
    async with serve_websockets(load("websockets").hub) as port:
        for method, body in (("GET", b""), ("POST", b'{"id":1,"connect":{}}'), ("OPTIONS", b"")):
            for endpoint in ("sse", "poll?ack=1"):
                async with await RawSocket.open(port) as sock:
                    response = await sock.get(f"/rt/{endpoint}", method=method, body=body)
                assert response.status == 501
                assert "neither event streams nor long-polls" in response.text


async def closed_while_idle(port: int, rt: str) -> None:
    """The hub closes a connection at a moment when it waits for the client to say something."""
    eve = await Peer.connect(port, f"{rt}/ws")
    try:
        await eve.say("what")
        async with asyncio.timeout(4):  # the hub gives up after 5 s
            closed = await eve.closed()
        assert closed.code == codes.BAD_REQUEST_CLOSE
        assert "JSON" in closed.reason
    finally:
        eve.close()


async def look_around(port: int, rt: str) -> None:
    """Plain requests, and handshakes that are refused."""
    base = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient() as http:
        assert (await http.get(f"{base}{rt}/ready")).status_code == 204
        response = await http.get(f"{base}{rt}/ws")
        assert response.status_code == 426
        response = await http.get(f"{base}{rt}/nothing")
        assert (response.status_code, "ready" in response.text) == (404, True)
        response = await http.get(f"{base}{rt}/client.js")
        assert response.headers["content-type"].startswith("text/javascript")
        assert response.headers["etag"]
    wrong: list[tuple[dict[str, str | None], int]] = [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://test.example", "origin": "https://evil.example"}, 400),
    ]
    for headers, status in wrong:
        with pytest.raises(Refusal) as refused:
            await Peer.connect(port, f"{rt}/ws", headers=headers)
        assert refused.value.response.status == status
        assert "rigin" in refused.value.response.text
    with pytest.raises(Refusal) as refused:
        await Peer.connect(port, f"{rt}/nothing")
    assert refused.value.response.status == 404


async def closed_and_gone(peer: Peer) -> Closed:
    closed = await peer.closed()
    peer.close()
    return closed


@pytest.mark.parametrize(
    ("framework", "server"),
    # granian once: it never tells of the end of connections that it drops, which costs the hub its 5 s.
    [pair for pair in PAIRS if pair[1] != "granian" or pair[0] == "Starlette"],
    ids=lambda name: str(name),
)
async def test_clients_are_told_when_the_server_ends(framework: str, server: str) -> None:
    """Nobody is left hanging, and the server does not wait for those who stay."""
    async with asyncio.timeout(20):
        async with serve(framework, server, load(framework)) as port:
            bob = await Peer.connect(port, f"{mount(framework, server)}/ws")
            await bob.connect_as("bob")
            closing = asyncio.create_task(closed_and_gone(bob))
        closed = await closing
    assert closed.code in LAST_WORDS[server]
    assert not codes.is_terminal(closed.code), "it makes a client come back"
