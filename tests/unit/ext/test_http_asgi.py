"""The HTTP API as an ASGI application: bodies in pieces, mounts, and servers that are real."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterable, MutableMapping
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from rtkit import Hub, anonymous
from rtkit.ext.http_api import HttpApi
from tests.support.servers import serve_asgi
from tests.unit.ext.conftest import KEY, World, declare

HELLO = json.dumps({"channel": "kept:a", "data": "hello"}).encode()
Event = MutableMapping[str, Any]


class Call:
    """One request, told to the application event by event.

    :ivar taken: how many events it has asked for.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = iter(events)
        self.taken = 0
        self.sent: list[Event] = []

    async def receive(self) -> Event:
        self.taken += 1
        return next(self._events)

    async def send(self, event: Event) -> None:
        self.sent.append(event)

    async def run(
        self, app: Any, *, path: str = "/api/publish", key: str = KEY, **headers: str
    ) -> int | None:
        """The status; None if there was no answer."""
        shown = {"X-API-Key": key, **headers} if key else headers
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "http_version": "1.1",
            "headers": [
                (name.replace("_", "-").encode("latin-1"), value.encode("latin-1"))
                for name, value in shown.items()
            ],
        }
        await app(scope, self.receive, self.send)
        if not self.sent:
            return None
        start, body = self.sent
        length = dict(start["headers"])[b"content-length"]
        assert int(length) == len(body["body"])
        status: int = start["status"]
        return status

    @property
    def answer(self) -> Any:
        return json.loads(self.sent[1]["body"])


def pieces(body: bytes, size: int) -> Iterable[Event]:
    for at in range(0, len(body), size):
        yield {"type": "http.request", "body": body[at : at + size], "more_body": True}
    yield {"type": "http.request"}


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_body_may_come_in_pieces(world: World, size: int) -> None:
    call = Call(pieces(HELLO, size))
    assert await call.run(world.api) == 200
    assert call.answer["result"]["offset"] == 1


async def test_who_has_no_key_is_not_listened_to(world: World) -> None:
    for key in ("", "not-the-key-0123456789"):
        call = Call(pieces(HELLO, 10))
        assert await call.run(world.api, key=key) == 401
        assert call.taken == 0


async def test_too_large_a_body_is_not_read_to_its_end(world: World) -> None:
    call = Call([])
    assert await call.run(world.api, content_length=str(world.api.max_body + 1)) == 413
    assert call.taken == 0


async def test_a_body_without_an_end_takes_bounded_memory(world: World) -> None:
    def endless() -> Iterable[Event]:
        while True:
            yield {"type": "http.request", "body": bytes(64 * 1024), "more_body": True}

    call = Call(endless())
    tracemalloc.start()
    try:
        assert await call.run(world.api) == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert call.taken == world.api.max_body // (64 * 1024) + 1
    assert peak < 3 * world.api.max_body


async def test_a_body_of_single_bytes_takes_bounded_memory(world: World) -> None:
    api = HttpApi(world.hub, key=KEY, max_body=50_000)

    def endless() -> Iterable[Event]:
        while True:
            yield {"type": "http.request", "body": b" ", "more_body": True}

    tracemalloc.start()
    try:
        assert await Call(endless()).run(api) == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * api.max_body


async def test_who_goes_away_before_the_end_is_not_answered(world: World) -> None:
    call = Call([*list(pieces(HELLO, 10))[:3], {"type": "http.disconnect"}])
    assert await call.run(world.api) is None
    assert (await world.hub.room("kept:a").history()).messages == []


@pytest.mark.parametrize("path", ["/publish", "/api/publish", "/api/publish/", "/a/b/c/publish"])
async def test_the_last_segment_of_the_path_counts(world: World, path: str) -> None:
    assert await Call(pieces(HELLO, 1000)).run(world.api, path=path) == 200


@pytest.mark.parametrize("path", ["", "/", "/api", "/api/", "/publish/x"])
async def test_any_other_path_is_nothing(world: World, path: str) -> None:
    assert await Call(pieces(HELLO, 1000)).run(world.api, path=path) == 404


async def test_names_of_headers_have_no_case_and_repeated_keys_are_none(world: World) -> None:
    lower = Call(pieces(HELLO, 1000))
    assert await lower.run(world.api, key="", **{"x-api-key": KEY}) == 200
    twice = Call(pieces(HELLO, 1000))
    assert await twice.run(world.api, key=KEY, **{"x-api-key": KEY}) == 401


async def test_it_speaks_no_websocket(world: World) -> None:
    call = Call([{"type": "websocket.connect"}])
    await world.api({"type": "websocket", "path": "/api/publish"}, call.receive, call.send)
    assert [event["type"] for event in call.sent] == ["websocket.close"]
    with pytest.raises(ValueError, match="telepathy"):
        await world.api({"type": "telepathy"}, call.receive, call.send)


# -- mounted, and served ----------------------------------------------------------------------------------


def mounted(hub: Hub[Any], kind: str) -> Any:
    api = HttpApi(hub, key=KEY)
    if kind == "alone":
        return api
    if kind == "starlette":
        return Starlette(routes=[Mount("/rt", hub), Mount("/api", api)], lifespan=hub.lifespan)
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/rt", hub)
    app.mount("/api", api)
    return app


@pytest.mark.parametrize("kind", ["alone", "starlette", "fastapi"])
async def test_it_is_served(kind: str) -> None:
    hub = declare(Hub(authenticate=anonymous))
    async with serve_asgi(mounted(hub, kind), lifespan="on") as port:
        assert hub.running
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            answer = await http.post("/api/publish", content=HELLO, headers={"X-API-Key": KEY})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
            assert answer.json()["result"]["offset"] == 1
            assert (await http.post("/api/publish", content=HELLO)).status_code == 401
            assert (await http.post(f"/api/publish?api_key={KEY}", content=HELLO)).status_code == 401
            assert (await http.get("/api/publish")).status_code == 405
    assert not hub.running


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_over_a_socket(chunked: bool) -> None:
    """The answer comes while the body is still under way, and the next request is served."""
    hub = declare(Hub(authenticate=anonymous))
    api = HttpApi(hub, key=KEY, max_body=100_000)
    async with hub, serve_asgi(api) as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        how = "Transfer-Encoding: chunked" if chunked else "Content-Length: 10000000"
        head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n{how}\r\n\r\n"
        writer.write(head.encode())
        body = b"x" * 200_000
        writer.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
        assert (await reader.readline()).split()[1] == b"413"
        writer.close()
        async with httpx2.AsyncClient() as client:
            url, headers = f"http://127.0.0.1:{port}/publish", {"X-API-Key": KEY}
            assert (await client.post(url, content=HELLO, headers=headers)).status_code == 200
