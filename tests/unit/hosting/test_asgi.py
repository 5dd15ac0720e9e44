"""The ASGI host against a scripted server: who is let in, plain HTTP, lifespan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from rtkit.errors import BrokerUnavailable
from rtkit.hosting.asgi import AsgiHost
from rtkit.testing.clock import ManualClock
from rtkit.transports import Refused
from tests.unit.hosting.scripted import (
    EXTENSIONS,
    Acceptor,
    Server,
    World,
    done,
    nothing,
    ws_scope,
)

# -- who is let in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/rt/ws", "/rt"),  # Starlette, FastAPI, Quart
        ("/ws/", ""),  # Litestar
        ("/rt/connection/websocket", "/rt"),
        ("/rt", "/rt"),
        ("/rt/", "/rt"),
        ("/", ""),
        ("", ""),
        ("/ws/ws", "/ws"),
        ("/ws", "/ws"),
    ],
)
async def test_routes_on_the_last_segment(world: World, path: str, root: str) -> None:
    server, driver = await world.open(path=path, root_path=root)
    server.say("disconnect", code=1000, reason="")
    await done(server.task)
    assert driver.losses == [(1000, "")]


@pytest.mark.parametrize(
    ("path", "root"), [("/rt", ""), ("/wsx", ""), ("/ws/other", ""), ("/rtws", "/rt"), ("/ws%2f", "")]
)
async def test_other_paths_are_refused_before_accept(world: World, path: str, root: str) -> None:
    [close] = await world.refused(path=path, root_path=root)
    assert close["type"] == "websocket.close"
    start, body = await world.refused(path=path, root_path=root, extensions=EXTENSIONS)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert body["type"] == "websocket.http.response.body"
    assert b"ws" in body["body"]
    assert world.acceptor.started == 0


async def test_a_refusal_has_its_status_and_says_when_to_come_back(world: World) -> None:
    world.acceptor.refuse = Refused(503, "draining", retry_after=7)
    start, body = await world.refused(extensions=EXTENSIONS)
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"] == b"7"
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert body["body"] == b"draining\n"
    [close] = await world.refused()
    assert close == {"type": "websocket.close", "code": 4001, "reason": "draining"}
    assert not world.acceptor.drivers


async def test_a_world_that_is_down_is_503_and_a_bug_is_the_servers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.acceptor.fail_start = BrokerUnavailable("no route")
    start, _ = await world.refused(extensions=EXTENSIONS)
    assert start["status"] == 503
    assert b"retry-after" in dict(start["headers"])
    assert "no route" in caplog.text
    world.acceptor.fail_start = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await world.refused()


async def test_what_the_hub_gets_to_see(world: World) -> None:
    server, _ = await world.open(
        path="/rt/ws",
        root_path="/rt",
        scheme="wss",
        query_string=b"a=1&b=%C3%A9",
        client=("192.0.2.7", 999),
        headers=[(b"Host", b"x"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-odd", b"\xff\x00")],
        state={"app": 1},
    )
    [handshake] = world.acceptor.handshakes
    assert handshake.path == "/rt/ws"
    assert handshake.header("host") == "x"
    assert handshake.cookies() == {"a": "1", "b": "2"}
    assert handshake.header("x-odd") == "ÿ\x00"
    assert handshake.params() == {"a": "1", "b": "é"}
    assert handshake.address == "192.0.2.7"
    assert handshake.secure is True
    assert handshake.scope is server.scope
    assert world.acceptor.started == 1
    server.say("disconnect", code=1001)
    await done(server.task)


@pytest.mark.parametrize("scope", [{}, {"client": None}, {"client": (None, 0)}, {"client": []}])
async def test_what_a_server_does_not_know(world: World, scope: dict[str, Any]) -> None:
    server = Server(world.host, {"type": "websocket", "path": "/ws", **scope})
    server.say("connect")
    server.say("disconnect")
    await done(server.start())
    [handshake] = world.acceptor.handshakes
    assert handshake.address == ""
    assert handshake.secure is None
    assert handshake.headers == ()
    assert world.acceptor.drivers[0].losses == [(1006, "connection lost")]


@pytest.mark.parametrize("scheme", ["ws", "http", None])
async def test_plain_text_behind_a_proxy_proves_nothing(world: World, scheme: str | None) -> None:
    server, _ = await world.open(scheme=scheme)
    assert world.acceptor.handshakes[0].secure is None
    server.say("disconnect")
    await done(server.task)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"x", b"")] * 201, 431),
        ([(b"x", b"y" * (64 * 1024))], 431),
        ([(b"origin", b"https://a"), (b"Origin", b"https://a")], 400),
        ([(b"host", b"a"), (b"host", b"b")], 400),
    ],
)
async def test_odd_headers_are_refused(world: World, headers: list[tuple[bytes, bytes]], status: int) -> None:
    start, _ = await world.refused(headers=headers, extensions=EXTENSIONS)
    assert start["status"] == status
    assert not world.acceptor.handshakes


async def test_200_headers_of_64_kib_are_fine(world: World) -> None:
    server, _ = await world.open(headers=[(b"xxxx", b"y" * 320)] * 200)
    server.say("disconnect")
    await done(server.task)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["foo"], None),
        (["centrifuge-json"], "centrifuge-json"),
        (["centrifuge-json", "rtkit.v1.json"], "rtkit.v1.json"),
        (["x"] * 16 + ["rtkit.v1.json"], None),
        (None, None),
    ],
)
async def test_subprotocols(world: World, offered: list[str] | None, chosen: str | None) -> None:
    server, _ = await world.open(subprotocols=offered)
    assert server.sent[0].get("subprotocol") == chosen
    server.say("disconnect")
    await done(server.task)


async def test_gone_before_it_was_there(world: World) -> None:
    server = Server(world.host, ws_scope())
    server.say("disconnect", code=1006)
    await done(server.start())
    assert server.sent == []
    for extensions in ({}, EXTENSIONS):
        server = Server(world.host, ws_scope(extensions=extensions))
        server.say("connect")
        server.broken = OSError("gone")
        await done(server.start())
        world.acceptor.refuse = Refused(403, "no")  # the second time it is gone while being refused
    assert world.acceptor.drivers == []


# -- http --------------------------------------------------------------------------------------------


async def http(host: AsgiHost, method: str, path: str, **more: Any) -> tuple[int, dict[str, str], str]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("there is no body to be read")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": "/rt", "headers": [], **more}
    await host(scope, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert headers["cache-control"] == "no-store"
    return start["status"], headers, body["body"].decode()


@pytest.mark.parametrize("path", ["/rt/ws", "/rt/connection/websocket", "/ws/"])
async def test_a_stripped_upgrade_is_explained(world: World, path: str) -> None:
    status, headers, body = await http(world.host, "GET", path)
    assert status == 426
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "Upgrade"
    assert "proxy" in body
    status, headers, body = await http(
        world.host, "GET", path, http_version="2", headers=[(b"Upgrade", b"websocket")]
    )
    assert status == 426
    assert "connection" not in headers
    assert "pip install websockets" in body
    status, headers, body = await http(world.host, "HEAD", path)
    assert (status, body) == (426, "")
    assert int(headers["content-length"]) > 0
    assert (await http(world.host, "OPTIONS", path))[0] == 204
    assert (await http(world.host, "POST", path))[:2][0] == 405


async def test_readiness() -> None:
    wait: list[float | None] = [None, 0.2, 12.6, 3]
    host = AsgiHost(Acceptor(), lifespan=nothing, ready=lambda: wait.pop(0))
    assert (await http(host, "GET", "/rt/ready"))[::2] == (204, "")
    for method, retry, body in (("GET", "1", "not ready\n"), ("GET", "13", "not ready\n"), ("HEAD", "3", "")):
        status, headers, found = await http(host, method, "/rt/ready")
        assert (status, headers["retry-after"], found) == (503, retry, body)
        assert headers["access-control-expose-headers"] == "retry-after"
    status, headers, _ = await http(host, "POST", "/rt/ready")
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (await http(host, "OPTIONS", "/rt/ready"))[0] == 204
    assert (await http(AsgiHost(Acceptor(), lifespan=nothing), "HEAD", "/ready/"))[0] == 204


@pytest.mark.parametrize("path", ["/rt", "/rt/", "/", "/rt/x", "/rt/ws/x"])
async def test_elsewhere_it_says_what_there_is(world: World, path: str) -> None:
    status, _, body = await http(world.host, "GET", path)
    assert status == 404
    assert "ws" in body
    assert (await http(world.host, "HEAD", path))[::2] == (404, "")


# -- lifespan ----------------------------------------------------------------------------------------


async def live(host: AsgiHost) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> MutableMapping[str, Any]:
        return inbox.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await host({"type": "lifespan"}, receive, send)
    return sent


async def test_lifespan_runs_the_context_manager() -> None:
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncGenerator[None]:
        log.append("up")
        yield
        log.append("down")

    host = AsgiHost(Acceptor(), lifespan=lifespan)
    for _ in range(2):
        sent = await live(host)
        assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert log == ["up", "down", "up", "down"]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_failing_lifespan_says_why(phase: str, caplog: pytest.LogCaptureFixture) -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncGenerator[None]:
        if phase == "startup":
            raise BrokerUnavailable("no redis at all")
        yield
        raise BrokerUnavailable("no redis at all")

    sent = await live(AsgiHost(Acceptor(), lifespan=lifespan))
    assert sent[-1] == {
        "type": f"lifespan.{phase}.failed",
        "message": "rtkit: BrokerUnavailable: no redis at all",
    }
    assert "Traceback" in caplog.text


async def test_a_cancelled_lifespan_still_shuts_down() -> None:
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            log.append("down")

    server = Server(AsgiHost(Acceptor(), lifespan=lifespan), {"type": "lifespan"})
    task = server.start()
    server.inbox.put_nowait({"type": "lifespan.startup"})
    await ManualClock().settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["down"]


async def test_misuse() -> None:
    with pytest.raises(ValueError, match="close_timeout"):
        AsgiHost(Acceptor(), lifespan=nothing, close_timeout=0)
    server = Server(AsgiHost(Acceptor(), lifespan=nothing), {"type": "webtransport"})
    with pytest.raises(ValueError, match="webtransport"):
        await server.start()
