"""From HTTP to WebSocket: who is let in, what arrives early, and what stays of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
from websockets.server import ServerProtocol

from rtkit.errors import BrokerUnavailable
from rtkit.hosting.raw import RawPipe
from rtkit.server.http import HttpConnection
from rtkit.transports import Refused
from tests.unit.hosting.scripted import Echo
from tests.unit.hosting.sockets import CLOSE, TEXT, masked, network_of
from tests.unit.server.world import KEY, ServerWorld, get, shake

Make = Callable[..., Awaitable[ServerWorld]]


# -- let in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/rt/ws", "/rt/websocket", "/rt/connection/websocket", "/rt", "/rt/", "/rt/ws/?a=b"]
)
async def test_the_paths_of_the_websocket(world: ServerWorld, path: str) -> None:
    client = await world.ask(shake(path))
    answer = client.answer()
    assert answer.status == 101
    assert set(answer.headers) == {"upgrade", "connection", "sec-websocket-accept"}
    client.say(masked(TEXT, b"hello"))
    await world.settle()
    assert client.texts == ["hello"]
    assert world.server.statistics().websockets == 1
    assert world.server.statistics().http == 0


@pytest.mark.parametrize("path", ["/ws", "/", "/connection/websocket"])
async def test_mounted_at_the_root(make: Make, path: str) -> None:
    world = await make(path="")
    assert (await world.ask(shake(path))).answer().status == 101
    assert (await world.ask(get("/ready"))).answer().status == 204
    assert (await world.ask(get("/rt/ready"))).answer().status == 404


@pytest.mark.parametrize("path", ["/ws", "/rt/x", "/rt/x/ws", "/rt/ws/x", "/rtws", "/rt/ready"])
async def test_other_paths_are_not(world: ServerWorld, path: str) -> None:
    answer = (await world.ask(shake(path))).answer()
    assert answer.status == (204 if path == "/rt/ready" else 404)
    assert world.acceptor.started == 0


async def test_what_the_hub_gets_to_see(world: ServerWorld) -> None:
    client = await world.ask(
        shake("/rt/w%73?a=1&b=%C3%A9", "Cookie: a=1", "X-ODD: \xff", "Cookie: b=2", "Origin: http://test")
    )
    assert client.answer().status == 101
    [handshake] = world.acceptor.handshakes
    assert handshake.path == "/rt/ws"
    assert handshake.params() == {"a": "1", "b": "é"}
    assert handshake.cookies() == {"a": "1", "b": "2"}
    assert handshake.header("x-odd") == "ÿ"
    assert handshake.header("origin") == "http://test"
    assert handshake.address == "127.0.0.1"
    assert handshake.secure is None, "a proxy may stand in between"
    assert handshake.scope == {}


async def test_on_a_unix_socket(make: Make, tmp_path: Path) -> None:
    world = await make({"unix": tmp_path / "sock"})
    await world.upgrade()
    assert world.acceptor.handshakes[0].address == ""


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["chat"], None),
        (["centrifuge-json"], "centrifuge-json"),
        (["centrifuge-json, rtkit.v1.json"], "rtkit.v1.json"),
        (["chat", "rtkit.v1.json"], "rtkit.v1.json"),
        ([", ".join(["x"] * 16 + ["rtkit.v1.json"])], None),
    ],
)
async def test_subprotocols(world: ServerWorld, offered: list[str], chosen: str | None) -> None:
    client = await world.ask(shake("/rt/ws", *[f"Sec-WebSocket-Protocol: {each}" for each in offered]))
    answer = client.answer()
    assert answer.status == 101
    assert answer.headers.get("sec-websocket-protocol") == chosen


async def test_no_extension_is_agreed_to(world: ServerWorld) -> None:
    client = await world.upgrade("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    client.say(b"\xc1" + masked(TEXT, b"x")[1:])
    await world.settle()
    assert client.closed == (1002, "reserved bits must be 0")


async def test_after_other_requests_on_the_same_connection(world: ServerWorld) -> None:
    client = await world.ask(get() + get("/rt/x") + shake() + masked(TEXT, b"early"))
    assert [answer.status for answer in client.answers()] == [204, 404, 101]
    assert client.texts == ["early"]


# -- not let in ----------------------------------------------------------------------------------------

REFUSED: list[tuple[str, bytes, int]] = [
    ("no key", shake(without="key"), 400),
    ("a key that is not base64", shake(key="!" * 24), 400),
    ("a key that is not ASCII", shake(key="\xe9" * 24), 400),
    ("a short key", shake(key="dGhlIHNhbXBsZQ=="), 400),
    ("two keys", shake("/rt/ws", f"Sec-WebSocket-Key: {KEY}"), 400),
    ("no version", shake(without="version"), 400),
    ("version 8", shake(version="8"), 426),
    ("version 13 twice", shake("/rt/ws", "Sec-WebSocket-Version: 13"), 400),
    ("two Origins", shake("/rt/ws", "Origin: http://a", "Origin: http://a"), 400),
    ("two Hosts", shake("/rt/ws", "Host: test"), 400),
    ("no Connection", shake(without="connection"), 426),
    ("another Connection", shake("/rt/ws", "Connection: close", without="connection"), 426),
    ("another Upgrade", shake("/rt/ws", "Upgrade: h2c", without="upgrade"), 426),
    ("two Upgrades", shake("/rt/ws", "Upgrade: h2c"), 426),
    ("an Upgrade that is not ASCII", shake("/rt/ws", "Upgrade: \xe9", without="upgrade"), 400),
    ("a subprotocol that is not ASCII", shake("/rt/ws", "Sec-WebSocket-Protocol: \xc3\xa9"), 400),
    ("a subprotocol with a space", shake("/rt/ws", "Sec-WebSocket-Protocol: a b"), 400),
    ("HTTP/1.0", shake().replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    ("a body", shake("/rt/ws", "Content-Length: 3") + b"abc", 400),
    ("a body in chunks", shake("/rt/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    ("a wish to go on", shake("/rt/ws", "Expect: 100-continue", "Content-Length: 3"), 400),
    ("POST", shake().replace(b"GET", b"POST"), 405),
]


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_it_is_not_let_in(world: ServerWorld, data: bytes, status: int) -> None:
    client = await world.ask(data)
    answer = client.answer()
    assert answer.status == status
    assert answer.text.endswith("\n")
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
        assert "upgrade" in answer.headers["connection"].lower()
    assert world.acceptor.started == 0
    assert world.server.statistics().websockets == 0
    await world.others_are_served()


async def test_the_version_that_is_spoken_is_named(world: ServerWorld) -> None:
    """RFC 6455, section 4.4."""
    answer = (await world.ask(shake(version="25"))).answer()
    assert answer.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_proxy_that_took_the_upgrade_away_is_explained(world: ServerWorld, method: str) -> None:
    client = await world.ask(shake(without="upgrade").replace(b"GET", method.encode()))
    answer = client.answer(head=method == "HEAD")
    assert answer.status == 426
    assert method == "HEAD" or "proxy" in answer.text
    assert not client.gone


async def test_the_hub_refuses(world: ServerWorld) -> None:
    world.acceptor.refuse = Refused(503, "draining", retry_after=7)
    client = await world.ask(shake() + masked(TEXT, b"early"))
    answer = client.answer()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["connection"] == "close"
    assert answer.text == "draining\n"
    await world.settle()
    assert client.gone
    assert not client.reset
    assert not world.acceptor.drivers


async def test_the_hub_cannot_start(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.acceptor.fail_start = BrokerUnavailable("no route")
    answer = (await world.ask(shake())).answer()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert "no route" in caplog.text
    assert "no route" not in answer.text


@pytest.mark.parametrize("where", ["fail_start", "refuse"])
async def test_a_bug_in_the_hub_is_500(
    world: ServerWorld, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    setattr(world.acceptor, where, ZeroDivisionError())
    client = await world.ask(shake())
    assert client.answer().status == 500
    assert client.gone
    assert "ZeroDivisionError" in caplog.text
    await world.others_are_served()


async def test_a_bug_as_it_begins_is_told_to_come_back(
    world: ServerWorld, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    world.acceptor.on_connect = fail
    client = await world.ask(shake())
    assert client.answer().status == 101
    assert client.closed == (3004, "internal error")
    assert "ZeroDivisionError" in caplog.text
    client.say(masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert client.gone


# -- early and late ------------------------------------------------------------------------------------


class Slow:
    """A hub that takes its time to start."""

    def __init__(self, world: ServerWorld) -> None:
        self.gate = asyncio.Event()
        self.ended = 0
        world.acceptor.ensure_running = self.ensure_running  # type: ignore[method-assign]

    async def ensure_running(self) -> None:
        try:
            await self.gate.wait()
        finally:
            self.ended += 1


async def test_what_comes_while_the_hub_starts_waits_and_is_bounded(world: ServerWorld) -> None:
    hub = Slow(world)
    client = await world.ask(shake() + masked(TEXT, b"one"))
    await world.clock.advance(29.5)
    client.say(masked(TEXT, b"two"))
    await world.settle()
    assert client.answers() == []
    (connection,) = world.server._site.open
    assert len(connection.http.trailing_data[0]) == len(masked(TEXT, b"one")), "the rest waits in the kernel"
    await world.others_are_served()
    hub.gate.set()
    await world.settle()
    assert client.answer().status == 101
    assert client.texts == ["one", "two"]


async def test_a_hub_that_takes_too_long_to_start(world: ServerWorld) -> None:
    hub = Slow(world)
    client = await world.ask(shake() + masked(TEXT, b"early"))
    await world.clock.advance(29.5)
    assert client.answers() == []
    await world.clock.advance(0.5)
    answer = client.answer()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
    assert hub.ended == 1
    assert world.server.statistics().tasks == 0
    await world.clock.advance(4)
    assert world.server.statistics().http == 0


async def test_a_hub_that_starts_although_nobody_waits_any_more(world: ServerWorld) -> None:
    gate = asyncio.Event()

    async def ensure_running() -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):  # it ignores that nobody waits
                await gate.wait()

    world.acceptor.ensure_running = ensure_running  # type: ignore[method-assign]
    client = await world.ask(shake())
    await world.clock.advance(30)
    assert client.answer().status == 503
    gate.set()
    await world.settle()
    assert client.heard == b""
    assert not world.acceptor.drivers
    await world.clock.advance(4)


async def test_a_client_that_leaves_while_the_hub_starts(world: ServerWorld) -> None:
    hub = Slow(world)
    client = await world.ask(shake())
    client.sock.close()
    await world.settle()
    hub.gate.set()
    await world.settle()
    assert hub.ended == 1
    assert [driver.losses for driver in world.acceptor.drivers] == [[(1006, "connection lost")]]


async def test_a_server_that_closes_while_the_hub_starts(make: Make) -> None:
    world = await make()
    hub = Slow(world)
    client = await world.ask(shake())
    closing = asyncio.ensure_future(world.server.aclose())
    await world.clock.advance(5)
    await closing
    assert client.gone
    assert hub.ended == 1
    assert not world.acceptor.drivers


@pytest.mark.parametrize("when", ["on_connect", "on_received"])
async def test_the_driver_may_pause_as_it_begins(world: ServerWorld, when: str) -> None:
    def pause(driver: Echo) -> None:
        if when == "on_connect":
            driver.transport.pause_reading()
        else:
            driver.on_received = driver.transport.pause_reading

    world.acceptor.on_connect = pause
    client = await world.ask(shake() + masked(TEXT, b"x"))
    assert client.answer().status == 101
    [driver] = world.acceptor.drivers
    [pipe] = world.server._site.pipes.open
    client.say(masked(TEXT, b"y"))
    await world.settle()
    assert driver.frames == ([] if when == "on_connect" else [b"x"])
    assert not network_of(pipe).is_reading(), "or it would be read into memory without bound"
    driver.on_received = lambda: None
    driver.transport.resume_reading()
    await world.settle()
    assert driver.frames == [b"x", b"y"]


async def test_the_driver_may_close_as_it_begins(world: ServerWorld) -> None:
    world.acceptor.on_connect = lambda driver: driver.transport.close(3500, "bad token")
    client = await world.ask(shake() + masked(TEXT, b"x"))
    assert client.answer().status == 101
    assert client.closed == (3500, "bad token")


# -- what stays ----------------------------------------------------------------------------------------


async def test_nothing_of_http_stays(world: ServerWorld) -> None:
    await world.ask(get())
    clients = [await world.upgrade() for _ in range(5)]
    for client in clients:
        client.say(masked(TEXT, b"x"))
    await world.settle()
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    assert kinds.count(RawPipe) == 5
    assert kinds.count(HttpConnection) == 1
    assert kinds.count(h11.Connection) == 1
    assert len(world.server._site.deadlines) == 1
    assert world.server.statistics().tasks == 0
    # The one object of websockets that all handshakes share.
    assert kinds.count(ServerProtocol) <= 1


async def test_close_codes_from_end_to_end(world: ServerWorld) -> None:
    client = await world.upgrade()
    client.say(masked(CLOSE, (4321).to_bytes(2, "big") + "é".encode()))
    await world.settle()
    assert world.acceptor.drivers[0].losses == [(4321, "é")]
    assert client.closed == (4321, "")
    assert client.gone
    other = await world.upgrade()
    other.sock.close()
    await world.settle()
    assert world.acceptor.drivers[1].losses == [(1006, "connection lost")]


BAD_FRAMES: list[tuple[str, bytes, int]] = [
    ("unmasked", b"\x81\x02hi", 1002),
    ("reserved bits", b"\xf1" + masked(TEXT)[1:], 1002),
    ("reserved opcodes", masked(5), 1002),
    ("a fragmented ping", masked(9, fin=False), 1002),
    ("a ping of 126 bytes", masked(9, b"x" * 126), 1002),
    ("a continuation of nothing", masked(0), 1002),
    ("text that is not UTF-8", masked(TEXT, b"\xc0\xaf"), 1007),
    ("a length of 2^62", b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009),
    ("a message that is too big", masked(TEXT, b"x" * 1001), 1009),
    ("fragments that add up", masked(TEXT, b"x" * 501, fin=False) + masked(0, b"x" * 500), 1009),
    ("endless empty fragments", masked(TEXT, fin=False) + masked(0, fin=False) * 20_000, 1009),
    ("a flood of pings", masked(9) * 20_000, 1008),
]


@pytest.mark.parametrize(
    ("data", "code"), [row[1:] for row in BAD_FRAMES], ids=[row[0] for row in BAD_FRAMES]
)
async def test_bad_frames_are_told_and_others_served(world: ServerWorld, data: bytes, code: int) -> None:
    other, client = await world.upgrade(), await world.upgrade()
    client.say(data)
    await world.settle()
    assert client.closed is not None
    assert client.closed[0] == code
    assert world.acceptor.drivers[1].losses[0][0] == code
    other.say(masked(TEXT, b"still here"))
    await world.settle()
    assert other.texts == ["still here"]
    await world.clock.advance(4)
    assert world.server.statistics().websockets == 1


async def test_an_endless_message_takes_no_more_memory_than_the_limit(make: Make) -> None:
    """64 MiB in one frame, and in many."""
    import tracemalloc

    world = await make()
    sizes: dict[str, int] = {}
    for name, head in {
        "one": b"\x82\xff" + (2**26).to_bytes(8, "big"),
        "many": masked(2, fin=False) * 100,
    }.items():
        client = await world.upgrade()
        tracemalloc.start()
        try:
            client.say(head)
            for _ in range(64):
                await asyncio.to_thread(flood, client, b"\0" * 2**18)
                await world.settle()
            sizes[name] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert max(sizes.values()) < 2_000_000, sizes


def flood(client: Any, data: bytes) -> None:
    client.sock.setblocking(True)
    client.sock.settimeout(5)
    try:
        client.sock.sendall(data)
    except OSError:
        pass
    finally:
        client.sock.setblocking(False)
