"""Requests of a scripted server: bodies within their limits, answers at once and later, clients that go away."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rtkit.hosting.asgi_http import BODY_TIME
from rtkit.transports import HTTP_ENDPOINTS, Answer, HttpRequest, Response, plain
from tests.unit.hosting.scripted import Goes, Server, World, done, http_scope

# -- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", sorted(HTTP_ENDPOINTS))
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PATCH"])
async def test_every_method_of_every_endpoint_is_passed_on(world: World, endpoint: str, method: str) -> None:
    server = await world.ask(
        method, f"/rt/connection/{endpoint}/", b"body", query_string=b"ack=3", headers=[("RT-Session", "a.b")]
    )
    await done(server.task)
    (request,) = world.acceptor.requests
    assert (request.method, request.endpoint, request.body) == (method, endpoint, b"body")
    assert request.handshake.header("rt-session") == "a.b"
    assert request.handshake.params() == {"ack": "3"}
    assert (server.status, server.body) == (200, f"{method} {endpoint} 4".encode())
    assert world.acceptor.started == 0, "the acceptor sees to that"


async def test_head_is_not_asked(world: World) -> None:
    server = await world.ask("HEAD", "/sse")
    await done(server.task)
    assert (server.status, server.body) == (405, b"")
    assert "POST" in server.headers["allow"]
    assert world.acceptor.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("origin", "http://a"), ("Origin", "http://b")], 400),
        ([("host", "a"), ("host", "b")], 400),
        ([(f"x-{n}", "") for n in range(201)], 431),
        ([("x", "y" * 65536)], 431),
    ],
)
async def test_heads_are_checked_as_those_of_websockets(
    world: World, headers: list[tuple[str, str]], status: int
) -> None:
    server = await world.ask("POST", "/send", headers=headers)
    await done(server.task)
    assert server.status == status
    assert world.acceptor.requests == []


async def test_a_body_in_many_pieces(world: World) -> None:
    server = Server(world.host, http_scope("POST", "/send"))
    _ = server.start()
    for piece in (b"a", b"", b"b" * 500, b"c" * 499):
        server.say("request", body=piece, more_body=True)
        await world.clock.settle()
    assert world.acceptor.requests == []
    server.say("request")
    await done(server.task)
    assert world.acceptor.requests[0].body == b"a" + b"b" * 500 + b"c" * 499


# -- bodies that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["1001", "9" * 5000])
async def test_a_length_beyond_the_limit_is_not_waited_for(world: World, length: str) -> None:
    server = Server(world.host, http_scope("POST", "/send", headers=[("content-length", length)]))
    _ = server.start()
    await world.clock.settle()
    assert server.status == 413
    assert "1000 bytes" in server.body.decode()
    assert world.acceptor.away == ["413"]
    server.say("disconnect")
    await done(server.task)
    assert world.acceptor.requests == []


@pytest.mark.parametrize("endpoint", ["sse", "http_stream", "poll"])
async def test_the_first_word_of_a_client_has_a_bound_of_its_own(world: World, endpoint: str) -> None:
    """A1: what comes later is somebody's who was let in."""
    world.acceptor.max_connect = 500
    server = Server(world.host, http_scope("POST", f"/{endpoint}"))
    _ = server.start()
    server.say("request", body=b"x" * 501, more_body=True)
    await world.clock.settle()
    assert server.status == 413
    assert "500 bytes" in server.body.decode()
    server.say("disconnect")
    await done(server.task)
    assert world.acceptor.requests == []


async def test_more_than_the_length_says(world: World) -> None:
    server = Server(world.host, http_scope("POST", "/send", headers=[("content-length", "5")]))
    _ = server.start()
    server.say("request", body=b"x" * 600, more_body=True)
    server.say("request", body=b"x" * 600, more_body=True)
    await world.clock.settle()
    assert server.status == 413
    assert server.task is not None and not server.task.done()
    # The rest is taken, so that the client comes to read the answer.
    server.say("request", body=b"x" * 600, more_body=True)
    server.say("request", body=b"")
    await done(server.task)
    assert world.acceptor.requests == []


async def test_in_http_2_the_answer_comes_behind_the_body(world: World) -> None:
    for headers in ([], [("content-length", "5000")]):
        server = Server(world.host, http_scope("POST", "/send", headers=headers, http_version="2"))
        _ = server.start()
        server.say("request", body=b"x" * 1001, more_body=True)
        await world.clock.settle()
        assert server.sent == []
        server.say("request", body=b"")
        await done(server.task)
        assert server.status == 413


async def test_a_rest_that_does_not_end_is_taken_for_a_while_only(world: World) -> None:
    server = Server(world.host, http_scope("POST", "/send"))
    _ = server.start()
    server.say("request", body=b"x" * 1001, more_body=True)
    await world.clock.settle()
    for _ in range(6):
        server.say("request", body=b"x" * 1001, more_body=True)
        await world.clock.advance(1)
    await done(server.task)
    assert server.status == 413


@pytest.mark.parametrize("length", ["", "five", "-1", "5, 5", "²"])
async def test_a_length_that_is_none_is_the_servers_business(world: World, length: str) -> None:
    scope = http_scope("POST", "/send")
    scope["headers"] = [(b"content-length", length.encode("latin-1"))]
    server = Server(world.host, scope)
    server.say("request", body=b"12345")
    await done(server.start())
    assert server.status == 200


@pytest.mark.parametrize(("version", "closes"), [("1.0", True), ("1.1", True), ("2", False)])
async def test_a_body_that_comes_one_byte_a_second(world: World, version: str, closes: bool) -> None:
    server = Server(world.host, http_scope("POST", "/send", http_version=version))
    _ = server.start()
    for _ in range(int(BODY_TIME)):
        assert server.sent == []
        server.say("request", body=b"x", more_body=True)
        await world.clock.advance(1)
    await done(server.task)
    assert server.status == 408
    assert ("connection" in server.headers) is closes
    assert world.acceptor.requests == []
    assert world.acceptor.away == ["408"]


async def test_the_client_goes_away_in_its_body(world: World) -> None:
    server = Server(world.host, http_scope("POST", "/send"))
    _ = server.start()
    server.say("request", body=b"x", more_body=True)
    server.say("disconnect")
    await done(server.task)
    assert server.sent == []
    assert world.acceptor.requests == []


async def test_the_server_cancels_in_a_body(world: World) -> None:
    server = Server(world.host, http_scope("POST", "/send"))
    task = server.start()
    await world.clock.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done(task)


# -- answers -----------------------------------------------------------------------------------------


def later(world: World) -> list[asyncio.Future[Response]]:
    """Have every request answered by a future; the list of them."""
    futures: list[asyncio.Future[Response]] = []

    async def answer(_: HttpRequest) -> Answer:
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    world.acceptor.on_answer = answer
    return futures


async def test_an_answer_at_once_needs_nobody_who_listens(world: World) -> None:
    server = await world.ask("POST", "/send")
    await done(server.task)
    assert server.receiving == 1


async def test_a_response_that_comes_later(world: World) -> None:
    futures = later(world)
    server = await world.ask()
    server.say("request", body=b"more", more_body=True)
    await world.clock.advance(25)
    assert server.sent == []
    assert (world.host.statistics().requests, world.host.statistics().streams) == (1, 0)
    futures[0].set_result(plain(200, "at last"))
    await done(server.task)
    assert server.body == b"at last"
    assert world.clock.timers == 0


async def test_a_waiting_request_costs_one_task_and_no_timer(world: World) -> None:
    futures = later(world)
    before = asyncio.all_tasks()
    server = await world.ask()
    assert asyncio.all_tasks() - before == {server.task}
    assert world.clock.timers == 0
    futures[0].set_result(plain(200, ""))
    await done(server.task)


async def test_a_future_that_is_done_already(world: World) -> None:
    async def answer(_: HttpRequest) -> Answer:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        future.set_result(plain(200, "at once"))
        return future

    world.acceptor.on_answer = answer
    server = await world.ask()
    await done(server.task)
    assert server.body == b"at once"


async def test_the_client_goes_away_while_it_waits(world: World) -> None:
    futures = later(world)
    server = await world.ask()
    server.say("disconnect")
    await done(server.task)
    assert futures[0].cancelled()
    assert server.sent == []


async def test_the_server_cancels_a_waiting_request(world: World) -> None:
    futures = later(world)
    server = await world.ask()
    assert server.task is not None
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done(server.task)
    assert futures[0].cancelled()


async def test_an_answer_and_a_goodbye_in_the_same_moment(world: World) -> None:
    """Whatever comes of it: no error, and the future is done."""
    futures = later(world)
    for answer_first in (True, False):
        server = await world.ask()
        if answer_first:
            futures[-1].set_result(plain(200, "x"))
        server.say("disconnect")
        if not answer_first:
            futures[-1].set_result(plain(200, "x"))
        await done(server.task)
        assert futures[-1].done()


async def test_a_future_that_somebody_else_cancels(world: World) -> None:
    futures = later(world)
    server = await world.ask()
    futures[0].cancel()
    await done(server.task)
    assert (server.status, server.headers["retry-after"]) == (503, "1")


async def test_the_client_goes_away_while_the_acceptor_thinks(world: World) -> None:
    ended: list[str] = []

    async def answer(_: HttpRequest) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    world.acceptor.on_answer = answer
    server = await world.ask("POST", "/sse")
    server.say("disconnect")
    await done(server.task)
    await world.clock.settle()
    assert ended == ["cancelled"]
    server = await world.ask("POST", "/sse")
    assert server.task is not None
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done(server.task)
    await world.clock.settle()
    assert ended == ["cancelled", "cancelled"]


async def test_a_future_that_comes_too_late_is_cancelled(world: World) -> None:
    """The acceptor does not let itself be cancelled, and answers when nobody is there."""
    futures: list[asyncio.Future[Response]] = []

    async def answer(_: HttpRequest) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            futures.append(asyncio.get_running_loop().create_future())
        return futures[0]

    world.acceptor.on_answer = answer
    server = await world.ask()
    server.say("disconnect")
    await done(server.task)
    await world.clock.settle()
    assert futures[0].cancelled()


async def test_a_stream_of_somebody_who_took_time(world: World) -> None:
    goes, go_on = Goes(), asyncio.Event()

    async def answer(_: HttpRequest) -> Answer:
        await go_on.wait()
        return goes.answer

    world.acceptor.on_answer = answer
    server = await world.ask("POST", "/sse")
    go_on.set()
    await world.clock.settle()
    goes.end()
    await done(server.task)
    assert (server.status, server.ended) == (200, True)


@pytest.mark.parametrize("thinks", [False, True])
async def test_an_acceptor_that_raises(world: World, thinks: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: HttpRequest) -> Answer:
        if thinks:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        raise ZeroDivisionError

    world.acceptor.on_answer = answer
    with caplog.at_level(logging.DEBUG):
        server = await world.ask()
        with pytest.raises(ZeroDivisionError):
            await done(server.task)
    assert not caplog.records, "the server logs it"


async def test_the_client_is_gone_when_it_is_answered(world: World) -> None:
    server = Server(world.host, http_scope())
    server.broken = OSError("gone")
    server.say("request")
    await done(server.start())
    assert server.sent == []


async def test_repr(world: World) -> None:
    futures = later(world)
    server = await world.ask()
    assert repr(world.host._http) == "<AsgiHttp, 1 requests, 0 streams>"
    futures[0].set_result(plain(200, ""))
    await done(server.task)
