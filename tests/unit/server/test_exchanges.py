"""Requests to the hub's endpoints on our own server: bodies, answers at once, and answers that wait."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from rtkit.transports import Response
from tests.unit.server.exchange import ok
from tests.unit.server.world import Client, ServerWorld, get, in_thread, post

Make = Callable[..., Awaitable[ServerWorld]]

POLL = get("/rt/poll?ack=0", "RT-Session: x")


def statuses(client: Client) -> list[int]:
    return [answer.status for answer in client.answers()]


# -- at once -------------------------------------------------------------------------------------------


async def test_the_hub_gets_the_whole_request(world: ServerWorld) -> None:
    client = await world.ask(post("/rt/connection/send?a=b", b"hello", "RT-Seq: 1", "X: y", "X: z"))
    assert client.answer().status == 204
    (request,) = world.acceptor.requests
    assert (request.method, request.endpoint, request.body) == ("POST", "send", b"hello")
    handshake = request.handshake
    assert (handshake.path, handshake.query) == ("/rt/connection/send", "a=b")
    assert (handshake.header("rt-seq"), handshake.header("x")) == ("1", "y, z")
    assert (handshake.address, handshake.secure) == ("127.0.0.1", None)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PUT", "X-Y"])
async def test_every_method_is_the_hubs_to_judge(world: ServerWorld, method: str) -> None:
    client = await world.ask(get("/rt/send", method=method))
    assert client.answer().status == 204
    assert [request.method for request in world.acceptor.requests] == [method]


@pytest.mark.parametrize("how", ["by its length", "as it comes"])
@pytest.mark.parametrize("endpoint", ["sse", "http_stream", "poll"])
async def test_the_first_word_of_a_client_has_a_bound_of_its_own(
    world: ServerWorld, endpoint: str, how: str
) -> None:
    """A1: what comes later is somebody's who was let in."""
    world.acceptor.max_connect = 500
    if how == "by its length":
        client = await world.ask(
            f"POST /rt/{endpoint} HTTP/1.1\r\nHost: x\r\nContent-Length: 501\r\n\r\n".encode()
        )
    else:
        head = f"POST /rt/{endpoint} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        client = await world.ask(head + b"1f5\r\n" + b"x" * 501)
    assert client.answer().status == 413
    assert world.acceptor.requests == []
    later = await world.ask(post("/rt/send", b"x" * 501))
    assert later.answer().status == 204


@pytest.mark.parametrize("endpoint", ["sse", "http_stream", "send", "emulation", "poll", "events"])
async def test_a_head_is_not_asked_of_the_hub(world: ServerWorld, endpoint: str) -> None:
    client = await world.ask(get(f"/rt/{endpoint}", method="HEAD"))
    answer = client.answer(head=True)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, DELETE, OPTIONS")
    assert client.heard == b""
    assert world.acceptor.requests == []


@pytest.mark.parametrize(
    ("path", "target", "served"),
    [
        ("/rt", "/rt/send", True),
        ("/rt", "/rt/connection/send", True),
        ("/rt", "/rt/x/send", False),
        ("/rt", "/send", False),
        ("/rt", "/rtsend", False),
        ("", "/send", True),
        ("", "/connection/send", True),
        ("", "/x/send", False),
    ],
)
async def test_where_it_is(make: Make, path: str, target: str, served: bool) -> None:
    world = await make(path=path)
    client = await world.ask(post(target))
    assert client.answer().status == (204 if served else 404)
    assert len(world.acceptor.requests) == served


async def test_a_connection_is_used_again(world: ServerWorld) -> None:
    client = await world.open()
    for n in range(20):
        client.say(post(body=b"%d" % n))
        await world.settle()
        assert client.answer().status == 204
    assert [request.body for request in world.acceptor.requests] == [b"%d" % n for n in range(20)]
    assert world.server.statistics().accepted == 1
    assert world.server.statistics().tasks == 0


async def test_pipelined_requests_are_answered_in_order(world: ServerWorld) -> None:
    client = await world.ask(post(body=b"1") + post("/rt/nothing") + post(body=b"2") + get())
    assert statuses(client) == [204, 404, 204, 204]
    assert [request.body for request in world.acceptor.requests] == [b"1", b"2"]


async def test_http_1_0_gets_an_answer_and_the_end(world: ServerWorld) -> None:
    client = await world.ask(post(body=b"x", version="1.0"))
    assert client.answer().status == 204
    assert client.gone
    assert not client.reset


async def test_a_client_may_close_its_half_behind_the_request(world: ServerWorld) -> None:
    client = await world.open()
    client.say(post(body=b"x"))
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.answer().status == 204
    assert client.gone


async def test_two_origins_are_refused(world: ServerWorld) -> None:
    client = await world.ask(post("/rt/send", b"", "Origin: https://a", "Origin: https://b"))
    assert client.answer().status == 400
    assert world.acceptor.requests == []


async def test_a_hub_that_fails(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    world.acceptor.on_request = fail
    client = await world.ask(post(body=b"x"))
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (500, "close")
    assert client.gone
    assert "ZeroDivisionError" in caplog.text
    assert "POST '/rt/send'" in caplog.text
    await world.others_are_served()


async def test_an_answer_that_cannot_be_sent(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    world.acceptor.on_request = lambda _: Response(200, (("x", "a\r\nb"),))
    client = await world.ask(post(body=b"x"))
    assert client.heard == b""
    assert client.gone
    assert "LocalProtocolError" in caplog.text
    await world.others_are_served()


async def test_a_hub_that_takes_too_long(world: ServerWorld) -> None:
    world.acceptor.gate.clear()
    client = await world.ask(post(body=b"x"))
    await world.clock.advance(29.9)
    assert client.answers() == []
    await world.clock.advance(0.2)
    answer = client.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert world.acceptor.cancelled == 1
    assert client.gone


# -- bodies --------------------------------------------------------------------------------------------

SIZE = 1000  # what the scripted hub takes


def chunked(*pieces: bytes) -> bytes:
    head = get("/rt/send", "Transfer-Encoding: chunked", method="POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@pytest.mark.parametrize("sent", [post(body=b"x" * SIZE), chunked(b"x" * 999, b"x", b"")])
async def test_the_largest_body(world: ServerWorld, sent: bytes) -> None:
    client = await world.ask(sent)
    assert client.answer().status == 204
    (request,) = world.acceptor.requests
    assert request.body == b"x" * SIZE
    assert isinstance(request.body, bytes)


async def test_a_body_byte_by_byte(world: ServerWorld) -> None:
    client = await world.open()
    for byte in chunked(b"hello", b" ", b"there", b""):
        client.say(bytes((byte,)))
        await world.settle()
    assert client.answer().status == 204
    assert world.acceptor.requests[0].body == b"hello there"


@pytest.mark.parametrize(
    "sent",
    [
        get("/rt/send", "Content-Length: 1001", method="POST"),
        get("/rt/send", "Content-Length: 1001", "Expect: 100-continue", method="POST"),
        get("/rt/send", "Content-Length: 99999999999999999999", method="POST"),
        post(body=b"x" * 1001),
        chunked(b"x" * 1001),
        chunked(b"x" * 999, b"xx"),
    ],
)
async def test_a_body_that_is_too_large_is_refused_as_soon_as_it_shows(
    world: ServerWorld, sent: bytes
) -> None:
    client = await world.ask(sent)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.text == "a body has 1000 bytes at the most\n"
    assert world.acceptor.requests == []
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.eof
    assert not client.reset


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n" * 4_000_000,
        b"\n" * 8_000_000,
        get("/rt/send", "Content-Length: 8000000", method="POST") + b"\n" * 8_000_000,
        get("/rt/send", "Transfer-Encoding: chunked", method="POST") + b"7a1200\r\n" + b"\n" * 8_000_000,
    ],
    ids=["crlf", "lf", "length", "chunked"],
)
async def test_eight_megabytes_of_newlines(world: ServerWorld, sent: bytes) -> None:
    client = await world.open()
    tracemalloc.start()
    try:
        await in_thread(client, sent)
        await world.settle()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(status in (400, 413, 431) for status in statuses(client))
    assert world.acceptor.requests == []
    assert peak < 2_000_000, "reads of the socket, and copies of them in the parser"
    await world.others_are_served()


async def test_a_client_that_waits_to_be_told_is_told(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/send", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    assert client.listen() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.heard = b""
    client.say(b"hello" + get())
    await world.settle()
    assert statuses(client) == [204, 204]
    assert world.acceptor.requests[0].body == b"hello"


@pytest.mark.parametrize("headers", [["Content-Length: 0"], []])
async def test_nobody_is_told_to_send_a_body_that_is_not_there(
    world: ServerWorld, headers: list[str]
) -> None:
    client = await world.ask(get("/rt/send", "Expect: 100-continue", *headers, method="POST"))
    assert client.answer().status == 204


async def test_a_body_that_comes_a_byte_a_second(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/send", "Content-Length: 100", method="POST"))
    for _ in range(29):
        client.say(b"x")
        await world.clock.advance(1)
        assert client.answers() == []
    await world.clock.advance(1.1)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert world.acceptor.requests == []
    assert world.server.statistics().timeouts == 1


async def test_a_body_longer_than_it_says_is_two_requests_and_one_of_them_is_none(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/send", "Content-Length: 5", method="POST") + b"hello there\r\n\r\n")
    assert statuses(client) == [204, 400]
    assert [request.body for request in world.acceptor.requests] == [b"hello"]


async def test_a_body_shorter_than_it_says_never_reaches_the_hub(world: ServerWorld) -> None:
    client = await world.ask(get("/rt/send", "Content-Length: 6", method="POST") + b"hello")
    client.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert client.heard == b""
    assert client.gone
    assert world.acceptor.requests == []


async def test_trailers_are_refused(world: ServerWorld) -> None:
    client = await world.ask(chunked(b"x") + b"0\r\nX: y\r\n\r\n")
    assert client.answer().status == 400
    assert world.acceptor.requests == []


# -- later ---------------------------------------------------------------------------------------------


async def test_a_wait_has_no_end_of_our_own_and_nothing_runs_for_it(world: ServerWorld) -> None:
    clients = [await world.ask(POLL) for _ in range(50)]
    await world.clock.advance(3600)
    assert world.server.statistics().tasks == 0
    assert len(world.server._site.deadlines) == 0
    assert world.server.statistics().waiting == 50
    for client, wait in zip(clients, world.acceptor.waits, strict=True):
        assert client.answers() == []
        wait.set_result(ok())
    await world.settle()
    assert [client.answer().body for client in clients] == [b"ok"] * 50
    assert world.server.statistics().waiting == 0


async def test_one_poll_after_the_other_on_one_connection(world: ServerWorld) -> None:
    client = await world.open()
    for n in range(10):
        client.say(POLL)
        await world.settle()
        world.acceptor.waits[n].set_result(ok(b"%d" % n))
        await world.settle()
        assert client.answer().body == b"%d" % n
    await world.clock.advance(29)
    assert not client.gone
    await world.clock.advance(2)
    assert client.gone, "between requests the usual patience holds"


async def test_an_answer_that_is_there_already(world: ServerWorld) -> None:
    def at_once(_: object) -> asyncio.Future[Response]:
        wait = world.acceptor.wait()
        wait.set_result(ok())
        return wait

    world.acceptor.on_request = at_once
    client = await world.ask(POLL + POLL)
    assert [answer.body for answer in client.answers()] == [b"ok", b"ok"]


@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_a_client_that_goes_away_ends_the_wait(world: ServerWorld, how: str) -> None:
    client = await world.ask(POLL)
    if how == "half":
        client.sock.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sock.close()
    await world.settle()
    assert world.acceptor.waits[0].cancelled()
    assert world.server.statistics().http == 0


async def test_the_hub_may_give_up_a_wait(world: ServerWorld) -> None:
    client = await world.ask(POLL)
    world.acceptor.waits[0].cancel()
    await world.settle()
    answer = client.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert not client.gone


async def test_a_wait_that_fails(world: ServerWorld, caplog: pytest.LogCaptureFixture) -> None:
    client = await world.ask(POLL)
    world.acceptor.waits[0].set_exception(ZeroDivisionError())
    await world.settle()
    assert client.answer().status == 500
    assert "ZeroDivisionError" in caplog.text
    await world.others_are_served()


async def test_requests_behind_one_that_waits_wait_too(world: ServerWorld) -> None:
    client = await world.ask(POLL + post(body=b"x"))
    client.say(get())
    await world.settle()
    assert len(world.acceptor.requests) == 1
    world.acceptor.waits[0].set_result(ok())
    await world.settle()
    assert statuses(client) == [200, 204, 204]


async def test_what_is_sent_behind_a_wait_is_bounded(world: ServerWorld) -> None:
    client = await world.ask(POLL)
    (connection,) = world.server._site.open
    behind, sent = post("/rt/nothing", b"x" * 100_000) * 100, 0
    for _ in range(200):
        try:
            sent += client.sock.send(behind[sent : sent + 65536])
        except BlockingIOError:
            break
        await world.settle()
    else:
        pytest.fail("it takes everything")
    held = len(connection.http.trailing_data[0])
    assert 65536 < held <= 65536 + 256 * 1024, "the bound, and one read of the socket"
    world.acceptor.waits[0].set_result(ok())
    await world.settle()
    assert statuses(client)[:2] == [200, 404], "and then it is read on"


async def test_the_end_of_a_server_that_is_asked_to_wait(world: ServerWorld) -> None:
    """The hub is closed before: what it says at last is heard."""
    told, left = await world.ask(POLL), await world.ask(POLL)
    world.server.stop_accepting()
    await world.settle()
    assert not told.gone
    world.acceptor.waits[0].set_result(ok(b"goodbye"))
    await world.settle()
    answer = told.answer()
    assert (answer.body, answer.headers["connection"]) == (b"goodbye", "close")
    await world.server.aclose()
    answer = left.answer()
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
    assert world.acceptor.waits[1].cancelled()
    assert told.eof
    assert left.eof


async def test_between_two_polls_one_may_ask_once_more(world: ServerWorld) -> None:
    """Or else who is not asking just then would never hear that the hub goes."""
    client, idle = await world.ask(post()), await world.ask(post())
    client.answers()
    idle.answers()
    world.server.stop_accepting()
    await world.settle()
    client.say(POLL)
    await world.settle()
    world.acceptor.waits[0].set_result(ok(b"goodbye"))
    await world.settle()
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"goodbye", "close")
    assert client.gone
    assert not idle.gone
    await world.server.aclose()
    assert idle.gone


async def test_a_wait_that_begins_as_the_server_closes_is_ended_too(world: ServerWorld) -> None:
    world.acceptor.gate.clear()
    client = await world.ask(POLL)
    closing = asyncio.ensure_future(world.server.aclose())
    await world.settle()
    world.acceptor.gate.set()
    await world.clock.advance(5)
    await closing
    assert world.acceptor.waits[0].cancelled()
    assert client.gone
