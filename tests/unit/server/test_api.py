"""The HTTP API on our own server: who is let through is judged before the body, and the rest of it is HttpApi's."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import rtkit
from rtkit import Grant, History, Hub, UsageError, anonymous
from rtkit.ext.http_api import HttpApi
from rtkit.hosting.endpoints import Request
from rtkit.server import Server, listen
from rtkit.testing.clock import ManualClock
from rtkit.transports import Response, plain
from tests.unit.server.exchange import HttpAcceptor, ok
from tests.unit.server.world import Client, ServerWorld, get, post

Make = Callable[..., Awaitable[ServerWorld]]

KEY = "correct-horse-battery-staple"
SHOWN = f"X-API-Key: {KEY}"


class ScriptedApi:
    """Lets everybody through who asks for something that is there."""

    max_body = 100

    def __init__(self) -> None:
        self.screened: list[Request] = []
        self.carried_out: list[tuple[Request, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0

    def screen(self, request: Request) -> Response | None:
        self.screened.append(request)
        return plain(404, "no such command\n") if request.endpoint != "publish" else None

    async def answer(self, request: Request, body: bytes) -> Response:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.carried_out.append((request, body))
        return ok(b"done")


@pytest.fixture
def api() -> ScriptedApi:
    return ScriptedApi()


async def test_a_request_is_screened_and_carried_out(make: Make, api: ScriptedApi) -> None:
    world = await make(api=api)
    client = await world.ask(post("/api/publish", b"{}", "X: y") + post("/api/publish/", b"[]"))
    assert [answer.body for answer in client.answers()] == [b"done", b"done"]
    assert [body for _, body in api.carried_out] == [b"{}", b"[]"]
    request = api.screened[0]
    assert (request.method, request.endpoint, request.headers["x"]) == ("POST", "publish", "y")
    assert not client.gone


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/api/x", "x"),
        ("/api/", ""),
        ("/api/x/publish", "x/publish"),
        ("/api//publish", "/publish"),
        ("/api", None),
        ("/apipublish", None),
        ("/rt/publish", None),
        ("/publish", None),
    ],
)
async def test_where_it_is(make: Make, api: ScriptedApi, path: str, endpoint: str | None) -> None:
    world = await make(api=api)
    client = await world.ask(post(path))
    assert client.answer().status == 404
    assert [request.endpoint for request in api.screened] == ([] if endpoint is None else [endpoint])


@pytest.mark.parametrize("path", ["", "/rt"])
async def test_it_may_be_anywhere(make: Make, api: ScriptedApi, path: str) -> None:
    world = await make(api=api, api_path="/rt/server/api", path=path)
    client = await world.ask(post("/rt/server/api/publish"))
    assert client.answer().body == b"done"
    client = await world.ask(post(f"{path}/send"))
    assert client.answer().status == 204


async def test_without_one_there_is_none(world: ServerWorld) -> None:
    client = await world.ask(post("/api/publish"))
    assert client.answer().status == 404


@pytest.mark.parametrize("api_path", ["", "/", "api", "/api/", "/rt", "/a?b"])
async def test_a_path_it_cannot_have(api: ScriptedApi, api_path: str) -> None:
    with pytest.raises(UsageError):
        Server(HttpAcceptor(), api=api, api_path=api_path, clock=ManualClock())


async def test_who_is_turned_away_is_so_before_the_body(make: Make, api: ScriptedApi) -> None:
    world = await make(api=api)
    client = await world.ask(get("/api/x", "Content-Length: 100", "Expect: 100-continue", method="POST"))
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.eof
    assert not client.reset


async def test_who_is_let_through_is_asked_for_the_body(make: Make, api: ScriptedApi) -> None:
    world = await make(api=api)
    client = await world.ask(get("/api/publish", "Content-Length: 2", "Expect: 100-continue", method="POST"))
    assert client.listen() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.heard = b""
    client.say(b"{}")
    await world.settle()
    assert client.answer().body == b"done"


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_its_bodies_have_its_bound(
    make: Make, api: ScriptedApi, size: int, status: int, chunked: bool
) -> None:
    world = await make(api=api)
    sent = post("/api/publish", b"x" * size)
    if chunked:
        sent = get("/api/publish", "Transfer-Encoding: chunked", method="POST")
        sent += b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    client = await world.ask(sent)
    assert client.answer().status == status
    assert len(api.carried_out) == (status == 200)


async def test_a_command_that_takes_too_long(make: Make, api: ScriptedApi) -> None:
    world = await make(api=api)
    api.gate.clear()
    client = await world.ask(post("/api/publish", b"{}"))
    await world.clock.advance(31)
    assert client.answer().status == 503
    assert api.cancelled == 1


async def test_commands_under_way_end_before_the_server_does(make: Make, api: ScriptedApi) -> None:
    world = await make(api=api)
    api.gate.clear()
    client = await world.ask(post("/api/publish", b"{}"))
    closing = asyncio.ensure_future(world.server.aclose())
    await world.clock.advance(4)
    assert not closing.done()
    api.gate.set()
    await closing
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")


# -- the real one --------------------------------------------------------------------------------------


class World(ServerWorld):
    """A hub with an API."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hub: Hub[Any] = Hub(authenticate=anonymous, clock=self.clock)
        self.hub.rooms("news:{x}", publishes=object, grant=Grant("history"), history=History(10, ttl=60))
        self.api = HttpApi(self.hub, key=KEY, max_body=1000)
        self.clients: list[Client] = []


async def test_publishing() -> None:
    world = World()
    async with listen(world.hub, api=world.api) as server:
        world.server = server
        body = json.dumps({"channel": "news:x", "data": {"text": "hi"}}).encode()
        client = await world.ask(post("/api/publish", body, SHOWN))
        answer = client.answer()
        assert answer.status == 200
        assert json.loads(answer.body)["result"]["offset"] == 1
        (message,) = (await world.hub.room("news:x").history()).messages
        assert message.data == {"text": "hi"}
        for request, status in (
            (post("/api/publish", body), 401),
            (post("/api/publish", body, f"Authorization: apikey {KEY}"), 200),
            (post("/api/nothing", body, SHOWN), 404),
            (get("/api/publish", SHOWN), 405),
            (post("/api/publish", b"{", SHOWN), 400),
            (post("/api/publish", b"x" * 1001, SHOWN), 413),
            (get("/api/publish", SHOWN, method="HEAD"), 405),
        ):
            client = await world.ask(request)
            assert client.answer(head=status == 405).status == status, request
        for each in world.clients:
            each.sock.close()
    assert world.api.statistics().answered == 2


def test_serve_takes_it_too() -> None:
    parameters = inspect.signature(rtkit.serve).parameters
    assert parameters["api_path"].default == "/api"
    assert parameters["api"].default is None
