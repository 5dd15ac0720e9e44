"""HTTP/1.1 on our own server: answers, connections that stay, limits, and what is not HTTP."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import h11
import pytest

from tests.unit.server.exchange import ok
from tests.unit.server.world import Client, ServerWorld, get, in_thread

Make = Callable[..., Awaitable[ServerWorld]]


# -- answers -------------------------------------------------------------------------------------------


async def test_what_is_there(world: ServerWorld) -> None:
    client = await world.open()
    for path, status in (
        ("/rt/ready", 204),
        ("/rt/ready?x=/rt/ws", 204),
        ("/rt/%72eady", 204),
        ("http://test/rt/ready", 204),
        ("/rt/ws", 426),
        ("/rt/connection/websocket", 426),
        ("/rt/client.js", 200),
        ("/rt", 404),
        ("/rt/", 404),
        ("/rt/ready/x", 404),
        ("/rt/x/ready", 404),
        ("/rtready", 404),
        ("/", 404),
        ("/ready", 404),
        ("/ws", 404),
        ("http://test", 404),
        ("*", 404),
        ("x", 404),
        ("/%00%ff%2e%2e/..", 404),
    ):
        client.say(get(path))
        await world.settle()
        answer = client.answer()
        assert answer.status == status, path
        if answer.status != 204:
            assert answer.headers["x-content-type-options"] == "nosniff"
    assert "/rt/ws" in answer.text
    assert not client.gone, "all on one connection"
    assert world.server.statistics().requests == 19
    assert world.server.statistics().accepted == 1


async def test_other_methods(world: ServerWorld) -> None:
    client = await world.open()
    for method, status in (("HEAD", 426), ("POST", 405), ("OPTIONS", 204), ("TRACE", 405), ("X-Y", 405)):
        client.say(get("/rt/ws", method=method))
        await world.settle()
        assert client.answer(head=method == "HEAD").status == status
        assert client.heard == b""
    client.say(get("test:443", method="CONNECT"))
    await world.settle()
    assert client.answer().status == 404


async def test_answers_are_dated(world: ServerWorld) -> None:
    client = await world.ask(get())
    assert client.answer().headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"


async def test_pipelined_requests_are_answered_in_order_and_a_turn_each(world: ServerWorld) -> None:
    client = await world.open()
    client.say(get() + get("/rt/x") + get("/rt/ws") + get("/rt/ready", "Connection: close") + get())
    await world.settle()
    assert [answer.status for answer in client.answers()] == [204, 404, 426, 204]
    assert client.gone


async def test_many_pipelined_requests_do_not_hold_up_others(world: ServerWorld) -> None:
    client, other = await world.open(), await world.open()
    client.say(get("/rt/x") * 500)
    other.say(get())
    for _ in range(8):
        await asyncio.sleep(0)
    assert other.answer().status == 204
    assert len(client.answers()) < 20
    await world.settle()


@pytest.mark.parametrize(
    "request_",
    [get(version="1.0"), get("/rt/ready", "Connection: close"), get("/rt/ready", "connection: CLOSE")],
)
async def test_clients_that_want_one_answer(world: ServerWorld, request_: bytes) -> None:
    client = await world.ask(request_)
    answer = client.answer()
    assert answer.status == 204
    assert answer.headers["connection"] == "close"
    assert client.gone
    assert not client.reset


async def test_a_client_may_close_its_half_before_the_answer(world: ServerWorld) -> None:
    client = await world.open()
    client.say(get())
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.answer().status == 204
    assert client.gone


@pytest.mark.parametrize(
    "data", [b"", b"GET", get()[:-1], b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab"]
)
async def test_a_client_that_leaves_in_the_middle(world: ServerWorld, data: bytes) -> None:
    client = await world.ask(data)
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.heard == b""
    assert client.gone
    assert world.server.statistics().http == 0


# -- bodies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 0\r\n\r\n",
        b"Content-Length: 5\r\n\r\nhello",
        b"Content-Length: 5, 5\r\n\r\nhello",
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
        b"Content-Length: 1048576\r\n\r\n" + b"x" * 1048576,
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n",
    ],
)
async def test_a_body_nobody_asked_for_is_read_so_that_the_connection_stays(
    world: ServerWorld, body: bytes
) -> None:
    client = await world.open()
    client.sock.setblocking(True)
    await in_thread(client, b"POST /rt/ready HTTP/1.1\r\nHost: x\r\n" + body + get())
    await world.settle()
    assert [answer.status for answer in client.answers()] == [405, 204]
    assert not client.gone


async def test_a_body_in_tiny_chunks_does_not_hold_up_others(world: ServerWorld) -> None:
    client, other = await world.open(), await world.open()
    client.say(POST + CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n")
    other.say(get())
    for _ in range(8):
        await asyncio.sleep(0)
    assert other.answer().status == 204
    assert client.answers() == []
    await world.settle()
    assert client.answer().status == 404


async def test_nobody_is_told_to_go_on_with_a_body_that_is_not_wanted(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/ready", "Expect: 100-continue", "Content-Length: 100", method="POST"))
    answer = client.answer()
    assert answer.status == 405
    assert answer.headers["connection"] == "close"
    client.say(b"x" * 100)
    await world.settle()
    assert client.gone
    assert not client.reset


@pytest.mark.parametrize(
    "request_",
    [
        b"Content-Length: 1048577\r\n\r\n",
        b"Content-Length: 99999999999999999999\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n"
        + b"20000\r\n"
        + b"x" * 0x20000
        + b"\r\n"
        + (b"E0001\r\n" + b"x" * 0xE0001),
    ],
)
async def test_a_body_that_is_too_large(world: ServerWorld, request_: bytes) -> None:
    client = await world.open()
    await in_thread(client, b"POST /rt/ready HTTP/1.1\r\nHost: x\r\n" + request_)
    await world.settle()
    answer = client.answer()
    assert answer.status == 413
    assert "1048576" in answer.text
    await finished(world, client)


async def finished(world: ServerWorld, client: Client) -> None:
    """The server has said its last; what the client still sends is no reason to cut it off before it has read that."""
    client.say(b"x" * 1000)
    await world.settle()
    assert client.eof
    assert not client.reset
    assert world.server.statistics().http == 1
    await world.clock.advance(4)
    assert world.server.statistics().http == 0
    await world.others_are_served()


# -- what is not HTTP ----------------------------------------------------------------------------------

HOST = b"\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1" + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BAD: list[tuple[str, bytes, int]] = [
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    ("NUL bytes", b"\0" * 100, 400),
    ("an empty line", b"\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /\r\n\r\n", 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("HTTP/3.7", b"GET / HTTP/3.7" + HOST + b"\r\n", 505),
    ("lower case", b"GET / http/1.1" + HOST + b"\r\n", 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", b"GET / HTTP/1.1" + HOST + b"Host: y\r\n\r\n", 400),
    ("a target with a space", b"GET /a b HTTP/1.1" + HOST + b"\r\n", 400),
    ("a target that is not ASCII", b"GET /\xc3\xa9 HTTP/1.1" + HOST + b"\r\n", 400),
    ("a NUL in a target", b"GET /\0 HTTP/1.1" + HOST + b"\r\n", 400),
    ("a NUL in a header", b"GET / HTTP/1.1" + HOST + b"X: a\0b\r\n\r\n", 400),
    ("a bare CR in a header", b"GET / HTTP/1.1" + HOST + b"X: a\rb\r\n\r\n", 400),
    ("no colon", b"GET / HTTP/1.1" + HOST + b"X\r\n\r\n", 400),
    ("no name", b"GET / HTTP/1.1" + HOST + b": x\r\n\r\n", 400),
    ("a space before the colon", b"GET / HTTP/1.1" + HOST + b"X : y\r\n\r\n", 400),
    ("a continued line first", b"GET / HTTP/1.1\r\n X: y" + HOST + b"\r\n", 400),
    ("both lengths", POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
    ("both, the other way", POST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
    ("chunks in HTTP/1.0", b"POST / HTTP/1.0" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("two lengths", POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    ("lengths in a list", POST + b"Content-Length: 3, 4\r\n\r\nabc", 400),
    ("a negative length", POST + b"Content-Length: -3\r\n\r\nabc", 400),
    ("a length with a sign", POST + b"Content-Length: +3\r\n\r\nabc", 400),
    ("a length in letters", POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    ("a length of 5,000 digits", POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    ("another coding", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ("chunked twice", POST + CHUNKED + CHUNKED + b"\r\n", 501),
    ("a chunk of no size", POST + CHUNKED + b"\r\nxyz\r\n", 400),
    ("a chunk that is longer than it says", POST + CHUNKED + b"\r\n1\r\nab\r\n", 400),
    ("a huge chunk", POST + CHUNKED + b"\r\n" + b"F" * 21 + b"\r\n", 400),
    ("trailers", POST + CHUNKED + b"\r\n0\r\nX: y\r\n\r\n", 400),
    ("trailers that end in two ways", POST + CHUNKED + b"\r\n0\r\nX: y\n\nGET / HTTP/1.1" + HOST + b"\r\n", 400),
    ("bare line feeds", b"GET / HTTP/1.1\nHost: x\n\n", 400),
    ("one bare line feed", b"GET / HTTP/1.1" + HOST + b"X: y\nZ: y\r\n\r\n", 400),
    ("a bare line feed at the end", b"GET / HTTP/1.1" + HOST + b"\n", 400),
    ("a head of 20 KiB in one piece", b"GET / HTTP/1.1" + HOST + b"X: " + b"y" * 20_000 + b"\r\n\r\n", 431),
    ("101 headers", b"GET / HTTP/1.1" + HOST + b"X: y\r\n" * 100 + b"\r\n", 431),
    ("3,000 headers", b"GET / HTTP/1.1" + HOST + b"X:\r\n" * 3000 + b"\r\n", 431),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_it_is_answered_and_closed(world: ServerWorld, data: bytes, status: int) -> None:
    client = await world.ask(data)
    answer = client.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.text.endswith("\n")
    assert answer.body.isascii()
    assert world.server.statistics().refused == 1
    assert world.acceptor.away == [str(status)]
    await world.settle()
    assert client.eof
    await world.clock.advance(4)
    assert world.server.statistics().http == 0
    await world.others_are_served()


async def test_tls_on_a_plain_port_is_told_so(world: ServerWorld) -> None:
    client = await world.ask(b"\x16\x03\x01\x02\x00\x01")
    assert "http://" in client.answer().text


async def test_two_readings_of_a_request_never_make_two_requests(world: ServerWorld) -> None:
    """The classic of smuggling: what follows is not looked at."""
    smuggled = get("/rt/ready")
    client = await world.ask(
        b"POST /rt/ready HTTP/1.1"
        + HOST
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + smuggled
    )
    assert [answer.status for answer in client.answers()] == [400]


# -- size and time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 2_000_000,
        b"GET / HTTP/1.1" + HOST + b"X: " + b"y" * 2_000_000,
        b"GET / HTTP/1.1" + HOST + b"X: y\r\n" * 300_000,
        b"x" * 2_000_000,
    ],
)
async def test_an_endless_head(world: ServerWorld, data: bytes) -> None:
    client = await world.open()
    tracemalloc.start()
    try:
        await in_thread(client, data)
        await world.settle()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert client.answer().status == 431
    assert peak < 1_000_000, "one read of the socket, and its copy in the parser"
    await finished(world, client)


async def test_a_head_of_16_kib_is_fine(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/ready", "X: " + "y" * 16_000))
    assert client.answer().status == 204


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 100 + b"\r\n", 431),
        (b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 150, 431),
        (b"GET /rt/ready HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 60_000 + b"\r\n\r\n", 431),
        (b"GET /rt/ready?" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 99 + b"\r\n", 204),
    ],
)
async def test_too_much_of_a_head_is_never_parsed(
    world: ServerWorld, head: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h11 would, if it came in one read: 10,000 headers cost it a third of a second."""
    parsed: list[int] = []
    real = h11.Connection.next_event

    def next_event(connection: h11.Connection) -> Any:
        parsed.append(len(connection.trailing_data[0]))
        return real(connection)

    monkeypatch.setattr(h11.Connection, "next_event", next_event)
    client = await world.open()
    await in_thread(client, head)
    await world.settle()
    assert client.answer().status == status
    # What was there before a bound was passed may have been looked at, in vain.
    assert all(size <= 16 * 1024 for size in parsed)
    monkeypatch.undo()
    await world.others_are_served()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"HEAD /rt/ready HTTP/1.1\nHost: x\n\n", 400),
        (b"HEAD /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 99 + b"\r\n", 204),
        (b"HEAD /rt/ready HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        (b"HEAD /rt/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n", 413),
        (b"HEAD /rt/send HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ],
)
async def test_a_head_request_is_answered_without_a_body_and_refused_without_one(
    world: ServerWorld, said: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    client = await world.ask(said)
    heard = client.listen()
    assert heard.startswith(f"HTTP/1.1 {status} ".encode())
    assert heard.endswith(b"\r\n\r\n") and heard.count(b"\r\n\r\n") == 1
    assert not caplog.records


async def test_a_slow_head(world: ServerWorld) -> None:
    """One byte a second: the deadline is for the whole of it."""
    client = await world.open()
    for byte in get()[:9]:
        client.say(bytes((byte,)))
        await world.clock.advance(1)
        assert client.answers() == []
    client.say(b"T")
    await world.settle()
    await world.clock.advance(1)
    answer = client.answer()
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert world.server.statistics().timeouts == 1
    await finished(world, client)


async def test_the_deadline_of_a_head_begins_with_its_first_byte_or_the_connection(
    world: ServerWorld,
) -> None:
    client = await world.open()
    await world.clock.advance(9)
    client.say(b"GET /rt/ready")
    await world.clock.advance(9)
    assert not client.gone
    client.say(get()[len("GET /rt/ready") :])
    await world.settle()
    assert client.answer().status == 204
    await world.clock.advance(29)
    client.say(b"GET")
    await world.clock.advance(9)
    assert not client.gone
    await world.clock.advance(1)
    assert client.answer().status == 408


async def test_whoever_says_nothing_is_hung_up_on(world: ServerWorld) -> None:
    client = await world.open()
    await world.clock.advance(9.5)
    assert not client.gone
    await world.clock.advance(0.5)
    assert client.gone
    assert not client.reset
    assert client.heard == b""
    assert world.server.statistics().http == 0


async def test_500_that_say_nothing(make: Make) -> None:
    world = await make()
    for _ in range(500):
        world.connect().say(b"GET / HT")
    await world.settle()
    assert world.server.statistics().http == 500
    assert len(world.server._site.deadlines) == 500
    assert world.clock.timers == 1
    await world.others_are_served()
    await world.clock.advance(10)
    await world.clock.advance(4)
    assert world.server.statistics().http == 0


async def test_an_idle_connection_is_closed_in_time(world: ServerWorld) -> None:
    client = await world.ask(get())
    await world.clock.advance(29.5)
    assert not client.gone
    client.say(get())
    await world.settle()
    assert len(client.answers()) == 2
    await world.clock.advance(29.5)
    assert not client.gone
    await world.clock.advance(0.5)
    assert client.gone
    assert not client.reset
    assert world.acceptor.away == [], "that is how it should be"


async def test_a_slow_body(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/ready", "Content-Length: 100", method="POST"))
    for _ in range(29):
        client.say(b"x")
        await world.clock.advance(1)
    assert not client.gone
    await world.clock.advance(1)
    assert client.answer().status == 408
    await finished(world, client)


async def test_a_stall_of_our_own_is_not_the_clients_fault(world: ServerWorld) -> None:
    client = await world.ask(get()[:-2])
    world.clock.stall(60)
    await world.settle()
    client.say(b"\r\n")
    await world.settle()
    assert client.answer().status == 204


async def test_answers_do_not_pile_up_for_a_client_that_reads_none(make: Make, tmp_path: Path) -> None:
    world = await make({"unix": tmp_path / "sock"})  # no TCP timers between us
    client = await world.open()
    (connection,) = world.server._site.open
    client.say(get("/rt/client.js") * 50)
    await world.settle()
    assert connection._network is not None
    # asyncio's transport has what the kernel did not take of one answer or two, not of fifty.
    script = resources.files("rtkit.browser").joinpath("client.js").read_bytes()
    assert 0 < connection._network.get_write_buffer_size() < 2 * len(script)
    assert repr(connection) == "<HttpConnection flush>"
    await world.others_are_served()
    await world.clock.advance(29.5)
    assert world.server.statistics().http == 1
    await world.clock.advance(0.5)
    assert world.server.statistics().http == 0
    assert world.acceptor.away == ["unread"]


async def test_and_go_on_when_it_reads(make: Make, tmp_path: Path) -> None:
    world = await make({"unix": tmp_path / "sock"})
    client = await world.ask(get("/rt/client.js") * 20 + get())
    answers: list[Any] = []
    while len(answers) < 21:
        await world.settle()
        before = len(client.heard)
        answers += client.answers()
        assert len(client.heard) != before or len(answers) == 21, "stuck"
    assert [answer.status for answer in answers] == [200] * 20 + [204]
    assert world.server.statistics().timeouts == 0


async def test_who_reads_only_when_the_server_ends_still_gets_the_answer(make: Make, tmp_path: Path) -> None:
    world = await make({"unix": tmp_path / "sock"})
    world.acceptor.on_request = lambda _: ok(b"x" * 1_000_000)
    client = await world.ask(get("/rt/send"))
    (connection,) = world.server._site.open
    assert connection._network is not None
    connection._network.set_write_buffer_limits(high=1)  # so that it resumes with nothing left, as it may
    assert repr(connection) == "<HttpConnection flush>"
    world.server.stop_accepting()
    while not client.gone:
        await world.settle()
    assert len(client.answer().body) == 1_000_000
    assert not client.reset


# -- how many ------------------------------------------------------------------------------------------


async def test_too_many_connections(make: Make) -> None:
    world = await make(limits={"connections": 3})
    first = [await world.open() for _ in range(3)]
    second = [await world.open() for _ in range(8)]
    assert not any(client.gone for client in [*first, *second])
    third = await world.open()
    assert third.gone, "not even a refusal can be afforded"
    for client in second:
        client.say(get())
    await world.settle()
    for client in second:
        answer = client.answer()
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert client.gone
    first[0].say(get())
    await world.settle()
    assert first[0].answer().status == 204
    assert world.server.statistics().dropped == 1
    assert world.acceptor.away == ["dropped", *["503"] * 8]
