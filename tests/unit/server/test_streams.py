"""Responses that go on, on our own server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import h11
import pytest

from rtkit.server import ServerLimits
from rtkit.server.http import HttpConnection
from rtkit.server.site import Site
from rtkit.server.streams import HttpStream, chunk, chunk_form
from rtkit.testing.clock import ManualClock
from rtkit.transports import Answer, Batch, HttpRequest, Streaming
from tests.support.hosts import CERTIFICATE, client_context
from tests.unit.server.exchange import HttpAcceptor, Told, event
from tests.unit.server.test_http_cuts import Network
from tests.unit.server.world import Client, ServerWorld, get, in_thread, post

Make = Callable[..., Awaitable[ServerWorld]]

OPEN = post("/rt/sse", b'{"id":1,"connect":{}}')
HELLO = b":\n\n"


async def stream(
    world: ServerWorld, request: bytes = OPEN, *, buffer: int | None = None
) -> tuple[Client, Told]:
    """An open stream: the client, whose answer has begun, and what the hub has of it."""
    client = await world.open()
    if buffer is not None:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.say(request)
    await world.settle()
    answer = client.begun()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers["connection"] == "close"
    assert "content-length" not in answer.headers
    if answer.headers.get("transfer-encoding") == "chunked":
        assert client.chunks() == [HELLO]
    return client, world.acceptor.streams[-1]


async def stuck(world: ServerWorld, **options: Any) -> tuple[Client, Told]:
    """A stream that nobody reads, and more written than the kernel takes."""
    client, told = await stream(world, buffer=4096, **options)
    (each,) = [each for each in world.server._site.streams if told.pipe is each]
    each._network.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    while not told.pipe.buffered:
        told.pipe.write(b"x" * 10_000)
    return client, told


# -- what flows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [OPEN, get("/rt/sse?cf_connect=%7B%7D"), get("/rt/connection/sse")])
async def test_what_is_written_is_there_at_once(world: ServerWorld, request_: bytes) -> None:
    client, told = await stream(world, request_)
    for n in range(3):
        told.pipe.write(b"data: %d\n\n" % n)
        assert client.chunks() == [b"data: %d\n\n" % n], "without a turn of the loop"
    assert told.pipe.buffered == 0
    assert told.log == []
    statistics = world.server.statistics()
    assert (statistics.http, statistics.streams, statistics.streamed) == (0, 1, 1)


async def test_the_end(world: ServerWorld) -> None:
    client, told = await stream(world)
    told.pipe.write(b"last")
    told.pipe.end()
    told.pipe.end()
    told.pipe.write(b"not any more")
    told.pipe.write_batch(Batch([b"nor this"]), event)
    assert told.log == [], "never from inside a call of the hub"
    await world.settle()
    assert client.chunks() == [b"last", b""]
    assert client.heard == b""
    assert client.eof
    assert told.losses == [(1000, "")]
    assert told.log == ["lost"]
    assert world.server.statistics().streams == 0
    assert told.pipe.buffered == 0


async def test_to_http_1_0_the_end_is_that_of_the_connection(world: ServerWorld) -> None:
    client, told = await stream(world, post("/rt/sse", b"{}", version="1.0"))
    told.pipe.write(b"data: 1\n\n")
    told.pipe.write_batch(Batch([b"2"]), event)
    told.pipe.end()
    await world.settle()
    assert client.listen() == HELLO + b"data: 1\n\ndata: 2\n\n"
    assert client.eof
    assert told.losses == [(1000, "")]


async def test_nothing_is_not_written_for_it_would_be_the_end(world: ServerWorld) -> None:
    client, told = await stream(world)
    told.pipe.write(b"")
    told.pipe.write(b"x")
    assert client.chunks() == [b"x"]


async def test_a_stream_may_end_as_it_begins(world: ServerWorld) -> None:
    def start(told: Told) -> None:
        told.pipe.write(b"no")
        told.pipe.end()

    world.acceptor.on_start = start
    client = await world.ask(OPEN)
    assert client.begun().status == 200
    assert client.chunks() == [b"no", b""]
    assert world.acceptor.streams[0].losses == [(1000, "")]


async def test_over_tls(make: Make) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    world = await make(ssl=context)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.server.port, ssl=client_context(), server_hostname="localhost"
    )
    writer.write(OPEN)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert await reader.readexactly(8) == chunk(HELLO)
    (told,) = world.acceptor.streams
    assert world.acceptor.requests[0].handshake.secure
    big, written = b"x" * 1_000_000, 0
    while not told.pipe.buffered:
        told.pipe.write(big)
        written += 1
    for _ in range(written):
        assert await reader.readexactly(len(chunk(big))) == chunk(big)
    await world.settle()
    assert told.log == ["writable"]
    told.pipe.end()
    assert await reader.read() == b"0\r\n\r\n"
    writer.close()
    await writer.wait_closed()
    await world.settle()
    assert told.losses == [(1000, "")]


# -- for many ------------------------------------------------------------------------------------------


async def test_a_batch_is_made_once_for_a_thousand_streams_and_written_as_it_is() -> None:
    made = list[Sequence[bytes]]()

    def form(units: Sequence[bytes]) -> bytes:
        made.append(units)
        return event(units)

    class Kept(Network):
        def write(self, data: bytes) -> None:
            self.last = data

    site = Site(
        HttpAcceptor(), path="", static=None, ssl=None, limits=ServerLimits(), clock=ManualClock(), ready=None
    )
    networks: Any = [Kept() for _ in range(1000)]
    streams = [HttpStream(network, site, chunked=True) for network in networks]
    old: Any = Kept()
    streams.append(HttpStream(old, site, chunked=False))
    for _ in range(2):
        batch = Batch([b"one", b"two"])
        for each in streams:
            each.write_batch(batch, form)
        (written,) = {id(network.last): network.last for network in networks}.values()
        assert written == b"15\r\ndata: one\ndata: two\n\n\r\n"
        assert old.last == b"data: one\ndata: two\n\n"
    assert len(made) == 4, "as a chunk and as it is, for each batch"
    assert chunk_form(form) is chunk_form(form)


async def test_nobody_runs_for_an_open_stream(world: ServerWorld) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(50):
        await stream(world)
    await world.clock.advance(3600)
    assert len(asyncio.all_tasks()) == before
    statistics = world.server.statistics()
    assert (statistics.streams, statistics.tasks) == (50, 0)
    assert len(world.server._site.deadlines) == 0
    assert world.clock.timers == 0
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    assert kinds.count(HttpStream) == 50
    assert kinds.count(HttpConnection) == 0, "nothing of HTTP stays"
    assert kinds.count(h11.Connection) == 0


async def test_streams_count_as_connections(make: Make) -> None:
    world = await make(limits={"connections": 2})
    await stream(world)
    await stream(world)
    client = await world.ask(get())
    assert client.answer().status == 503


# -- readers -------------------------------------------------------------------------------------------


async def test_a_slow_reader_is_seen_and_then_heard_of(world: ServerWorld) -> None:
    client, told = await stuck(world)
    before = told.pipe.buffered
    told.pipe.write(b"y" * 1000)
    assert told.pipe.buffered == before + len(chunk(b"y" * 1000))
    assert told.log == []
    while told.pipe.buffered:
        client.listen()
        await world.settle()
    assert told.log == ["writable"]
    chunks = client.chunks()
    while chunks[-1] != b"y" * 1000:  # the kernel has some of it
        chunks += client.chunks()
    assert set(chunks[:-1]) == {b"x" * 10_000}


async def test_what_is_shared_is_held_once_for_many_slow_readers(world: ServerWorld) -> None:
    """asyncio keeps what it could not send as it is (3.12 and later), or as a copy; never more than was written."""
    streams = [await stuck(world) for _ in range(20)]
    batch = Batch([b"z" * 100_000])
    tracemalloc.start()
    try:
        for _, told in streams:
            told.pipe.write_batch(batch, event)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 21 * 110_000 * 2


async def test_a_slow_reader_does_not_hold_up_the_end(world: ServerWorld) -> None:
    client, told = await stuck(world)
    told.pipe.end()
    await world.clock.advance(3.9)
    assert told.log == []
    await world.clock.advance(0.2)
    assert told.losses == [(1006, "connection lost")]
    while not client.gone:  # the kernel has some of it
        await world.settle()
    assert b"0\r\n\r\n" not in client.heard


async def test_a_reader_in_time_gets_the_end(world: ServerWorld) -> None:
    client, told = await stuck(world)
    told.pipe.end()
    await world.clock.advance(3)
    while not client.gone:
        await world.settle()
    assert client.chunks()[-1] == b""
    assert not client.reset
    assert told.losses == [(1000, "")]
    assert "writable" not in told.log, "nothing may be written any more"


# -- clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_a_client_that_goes_away(world: ServerWorld, how: str) -> None:
    client, told = await stream(world)
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sock.close()
    await world.settle()
    assert told.losses == [(1006, "connection lost")]
    told.pipe.write(b"x")
    told.pipe.end()
    await world.clock.advance(10)
    assert told.log == ["lost"]


async def test_a_client_that_closes_its_half_and_does_not_read(world: ServerWorld) -> None:
    client, told = await stuck(world)
    client.sock.shutdown(socket.SHUT_WR)
    await world.clock.advance(4.1)
    assert told.losses == [(1006, "connection lost")]
    assert world.server.statistics().streams == 0


async def test_a_client_that_resets_in_the_middle_of_a_storm(
    world: ServerWorld, caplog: pytest.LogCaptureFixture
) -> None:
    client, told = await stream(world)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.sock.close()
    for _ in range(20):
        told.pipe.write(b"x")
        told.pipe.write_batch(Batch([b"y"]), event)
    told.pipe.end()
    await world.settle()
    assert told.losses == [(1006, "connection lost")]
    assert caplog.records == [], "asyncio logs what is written to a transport that has failed"


async def test_what_is_sent_behind_the_request_has_no_meaning(world: ServerWorld) -> None:
    client, told = await stream(world, OPEN + get() + post(body=b"x"))
    client.say(get() * 10 + b"\0\xff")
    await world.settle()
    told.pipe.write(b"x")
    told.pipe.end()
    await world.settle()
    assert client.chunks() == [b"x", b""]
    assert client.heard == b""
    assert client.eof
    assert not client.reset
    assert len(world.acceptor.requests) == 1
    client.sock.close()
    await world.settle()
    assert told.losses == [(1000, "")]


async def test_a_client_that_does_not_stop_sending(world: ServerWorld) -> None:
    client, told = await stream(world)
    await in_thread(client, b"x" * 3_000_000)
    await world.settle()
    assert client.chunks() == [b""]
    assert client.eof
    assert not client.reset
    assert told.log == [], "it may still come to its senses"
    await world.clock.advance(4.1)
    assert told.losses == [(1008, "too much sent behind the request")]
    assert world.server.statistics().streams == 0


async def test_one_that_does_not_close_after_the_end_is_dropped(world: ServerWorld) -> None:
    client, told = await stream(world)
    client.say(b"x")
    await world.settle()
    told.pipe.end()
    await world.clock.advance(4.1)
    assert told.losses == [(1000, "")], "it has had all of the response"
    assert client.chunks() == [b""]
    assert world.server.statistics().streams == 0


async def test_a_client_that_has_gone_before_the_stream_began(world: ServerWorld) -> None:
    """The socket is not read meanwhile."""
    world.acceptor.gate.clear()
    client = await world.ask(OPEN)
    client.sock.close()
    await world.settle()
    world.acceptor.gate.set()
    await world.settle()
    assert [told.losses for told in world.acceptor.streams] == [[(1006, "connection lost")]]


async def test_a_stream_that_was_granted_too_late(world: ServerWorld) -> None:
    world.acceptor.gate.clear()
    client = await world.ask(OPEN)
    await world.clock.advance(31)
    assert client.answer().status == 503
    world.acceptor.gate.set()
    await world.settle()
    assert world.acceptor.streams == []


async def test_a_hub_that_does_not_let_itself_be_cancelled(
    world: ServerWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: HttpRequest) -> Answer:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return Streaming((("content-type", "text/event-stream"),), world.acceptor.start)

    world.acceptor.answer = answer  # type: ignore[method-assign]
    client = await world.ask(OPEN)
    await world.clock.advance(31)
    assert client.answer().status == 503
    assert client.gone
    assert world.acceptor.streams == []
    assert caplog.records == []


async def test_a_head_that_cannot_be_sent(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.acceptor.on_request = lambda _: Streaming((("x", "a\r\nb"),), world.acceptor.start)
    client = await world.ask(OPEN)
    assert client.heard == b""
    assert client.gone
    assert "LocalProtocolError" in caplog.text
    assert world.acceptor.streams == []
    await world.others_are_served()


# -- faults of the hub ---------------------------------------------------------------------------------


async def test_a_stream_that_fails_as_it_begins(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.acceptor.on_start = lambda _: 1 / 0
    client = await world.ask(OPEN)
    assert client.gone
    assert "a stream failed as it began" in caplog.text
    assert world.server.statistics().streams == 0
    await world.others_are_served()


async def test_a_stream_that_fails_later(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    client, told = await stuck(world)
    told.on_writable = told.on_lost = lambda: 1 / 0
    while not client.gone:
        await world.settle()
    assert client.chunks()[-1] == b""
    assert told.losses == [(1000, "")]
    assert "a stream failed\n" in caplog.text
    assert "a stream failed while it ended" in caplog.text
    await world.others_are_served()


# -- the server's end ----------------------------------------------------------------------------------


async def test_streams_stay_until_the_hub_has_ended_them(world: ServerWorld) -> None:
    client, told = await stream(world)
    world.server.stop_accepting()
    await world.settle()
    told.pipe.write(b"goodbye")
    told.pipe.end()
    await world.server.aclose()
    assert client.chunks() == [b"goodbye", b""]
    assert told.losses == [(1000, "")]


async def test_streams_that_the_hub_has_left_are_ended(world: ServerWorld) -> None:
    client, told = await stream(world)
    await world.server.aclose()
    assert client.chunks() == [b""]
    assert client.eof
    assert told.losses == [(1000, "")]


async def test_a_stream_that_nobody_reads_does_not_hold_up_the_servers_end(world: ServerWorld) -> None:
    _, told = await stuck(world)
    closing = asyncio.ensure_future(world.server.aclose())
    await world.clock.advance(4.1)
    await closing
    assert told.losses == [(1006, "connection lost")]


async def test_dropping_everything(world: ServerWorld) -> None:
    _, told = await stream(world)
    world.server.abort()
    await world.settle()
    assert told.losses == [(1006, "connection lost")]
    assert repr(told.pipe) == "<HttpStream over, 0 bytes buffered>"
