"""An event stream down and numbered requests up, with every fault on the way, in memory."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from rtkit.client import DialFailed, SseDialer, WireClosed
from rtkit.client.http import HttpFailed
from rtkit.client.sse import SseWire
from tests.unit.client.http_fakes import FakeBody, FakeWorld, Request, connected, frame

URL = "ws://u:secret@localhost/rt/ws?q=secret"
HELLO = b'{"id":1,"connect":{"token":"secret"}}'


def dialer(world: FakeWorld, **options: Any) -> SseDialer:
    return SseDialer(http=world, clock=world.clock, random=random.Random(1), **options)


def stream() -> FakeBody:
    return FakeBody(content_type="text/event-stream")


async def start(world: FakeWorld, **options: Any) -> tuple[SseWire, FakeBody]:
    """A wire whose session is known."""
    opening = asyncio.create_task(dialer(world, **options).open(URL, {}, HELLO))
    await world.pass_()
    body = world.requests[0].stream(stream())
    body.push(b":\n\n")
    wire = await opening
    body.event(connected())
    assert b'"connect"' in await wire.recv()
    world.requests.clear()
    return wire, body


async def finish(world: FakeWorld, wire: SseWire) -> None:
    await wire.close(3000, "")
    world.check_nothing_is_left()


async def ending(wire: SseWire) -> WireClosed:
    with pytest.raises(WireClosed) as caught:
        await wire.recv()
    with pytest.raises(WireClosed) as again:
        await wire.recv()
    assert again.value.code == caught.value.code
    assert "secret" not in str(caught.value)
    return caught.value


async def failure(world: FakeWorld) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await dialer(world).open(URL, {}, HELLO)
    assert "secret" not in str(caught.value)
    world.check_nothing_is_left()
    return caught.value


# -- opening -----------------------------------------------------------------------------------------------


async def test_the_pipe_begins_with_the_first_frame_and_opens_with_the_first_comment() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_()
    (asked,) = world.requests
    assert (asked.method, asked.endpoint, asked.body) == ("POST", "sse", HELLO)
    assert asked.headers["Accept"] == "text/event-stream"
    body = asked.stream(stream())
    await world.pass_(2.9)
    assert not opening.done()
    body.push(b":\n")
    wire = await opening
    assert wire.transport == "sse"
    body.push(b"\n")
    receiving = asyncio.create_task(wire.recv())
    await world.pass_(60)
    assert not receiving.done(), "a slow authenticate is not muteness"
    body.event(connected(), {"push": {}})
    assert await receiving == frame(connected(), {"push": {}})
    await finish(world, wire)


@pytest.mark.parametrize("head", [True, False])
async def test_a_stream_that_says_nothing_for_3_s_does_not_work_here(head: bool) -> None:
    world = FakeWorld()
    opening = asyncio.create_task(failure(world))
    await world.pass_(0)
    if head:
        world.requests[0].stream(stream())
    await world.pass_(2.99)
    assert not opening.done()
    await world.pass_(0.02)
    failed = await opening
    assert failed.unusable
    assert not failed.terminal


@pytest.mark.parametrize(
    ("status", "terminal", "unusable", "code"),
    [
        (400, True, True, 3501),
        (401, True, False, 3500),
        (403, True, False, 3507),
        (404, True, True, 3501),
        (405, True, True, 3501),
        (204, True, True, 3501),
        (301, True, False, 3501),
        (413, True, False, 3501),
        (429, False, False, None),
        (500, False, False, None),
        (501, False, True, None),
        (502, False, True, None),
        (503, False, False, None),
    ],
)
async def test_an_answer_that_is_no_stream(
    status: int, terminal: bool, unusable: bool, code: int | None
) -> None:
    world = FakeWorld()
    world.on = lambda r: r.reply(status, location="https://elsewhere/?secret", retry_after="2")
    failed = await failure(world)
    assert (failed.terminal, failed.unusable) == (terminal, unusable)
    assert code is None or failed.code == code
    assert failed.window == ((2.0, 3.5) if not terminal else None)


@pytest.mark.parametrize("kind", ["text/html", "", "application/json", "text/event-stream-not"])
async def test_another_kind_of_body_is_somebody_elses(kind: str) -> None:
    world = FakeWorld()
    world.on = lambda r: r.stream(FakeBody(content_type=kind))
    assert (await failure(world)).unusable


@pytest.mark.parametrize(
    "kind", ["text/event-stream; charset=utf-8", "Text/Event-Stream", "text/event-stream;"]
)
async def test_parameters_of_the_type_do_not_matter(kind: str) -> None:
    world = FakeWorld()

    def answer(request: Request) -> None:
        request.stream(FakeBody(content_type=kind)).push(b":\n\n")

    world.on = answer
    wire = await dialer(world).open(URL, {}, HELLO)
    await finish(world, wire)


async def test_a_stream_that_ends_at_once() -> None:
    world = FakeWorld()
    world.on = lambda r: r.stream(stream()).end()
    assert (await failure(world)).unusable


async def test_a_network_that_is_away_is_an_os_error() -> None:
    world = FakeWorld()
    world.on = lambda r: r.fail()
    with pytest.raises(HttpFailed):
        await dialer(world).open(URL, {}, HELLO)
    world.check_nothing_is_left()


async def test_cancelling_leaves_nothing_open() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    world.check_nothing_is_left()


# -- down --------------------------------------------------------------------------------------------------


async def test_what_came_before_the_end_is_still_received() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    body.push(b'data: {"a":1}\n\ndata: {"b":2}\ndata: {"c":3}\n\ndata: {"half')
    body.end()
    await world.pass_()
    assert await wire.recv() == b'{"a":1}'
    assert await wire.recv() == b'{"b":2}\n{"c":3}'
    closed = await ending(wire)
    assert (closed.code, closed.reason) == (1006, "the stream ended")
    await finish(world, wire)


async def test_an_event_of_another_kind_is_no_frame() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    body.push(b'event: other\ndata: {"a":1}\n\ndata\n\ndata: {"b":2}\n\n')
    assert await wire.recv() == b'{"b":2}'
    await finish(world, wire)


async def test_a_cut_is_1006() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    body.cut()
    assert (await ending(wire)).code == 1006
    with pytest.raises(WireClosed):
        await wire.send(b"{}")
    await finish(world, wire)


async def test_the_servers_goodbye_ends_it_though_a_proxy_keeps_the_stream_open() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    body.event({"push": {"channel": "r", "pub": {"data": {"disconnect": 1}}}})
    body.event({"push": {"disconnect": {"code": 3503, "reason": "enough"}}})
    assert b"pub" in await wire.recv()
    assert b'"code": 3503' in await wire.recv()
    closed = await ending(wire)
    assert (closed.code, closed.reason) == (3503, "enough")
    await wire.close(1000, "")
    assert not world.requests, "who was told to go does not say goodbye"
    world.check_nothing_is_left()


async def test_an_event_that_is_too_large_ends_it_for_good() -> None:
    world = FakeWorld()
    wire, body = await start(world, max_size=1000)
    body.push(b"data: " + b"x" * 1001)
    assert (await ending(wire)).code == 1009
    await finish(world, wire)


async def test_nothing_is_read_while_a_frame_waits_to_be_fetched() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    await world.pass_()
    before = body.reads
    body.event({"a": 1})
    body.event({"b": 1})
    await world.pass_()
    assert body.reads == before
    await wire.recv()
    await world.pass_()
    assert body.reads == before + 1
    await finish(world, wire)


async def test_cancelling_to_receive_loses_nothing() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    receiving = asyncio.create_task(wire.recv())
    await world.pass_()
    receiving.cancel()
    body.event({"a": 1})
    await world.pass_()
    assert receiving.cancelled()
    assert await wire.recv() == b'{"a": 1}'
    await finish(world, wire)


async def test_a_server_that_names_no_session_cannot_be_sent_to() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_()
    body = world.requests[0].stream(stream())
    body.push(b":\n\n")
    wire = await opening
    body.event({"id": 1, "connect": {"client": "c"}})
    assert await wire.recv()
    assert "session" in (await ending(wire)).reason
    await finish(world, wire)


async def test_what_is_no_unit_is_left_to_whoever_receives_it() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_()
    body = world.requests[0].stream(stream())
    body.push(b':\n\ndata: {"connect" "disconnect"\n\n')
    wire = await opening
    assert await wire.recv() == b'{"connect" "disconnect"'
    await finish(world, wire)


# -- up ----------------------------------------------------------------------------------------------------


async def test_one_request_at_a_time_and_all_that_waits_goes_with_the_next() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    await wire.send(b'{"id":3}\n{"id":4}')
    await wire.send(b'{"id":5}')
    await world.pass_()
    (first,) = world.of("POST", "send")
    assert first.body == b'{"id":2}'
    assert (first.headers["RT-Session"], first.headers["RT-Seq"]) == ("s", "1")
    first.reply(204)
    await world.pass_()
    second = world.requests[1]
    assert second.body == b'{"id":3}\n{"id":4}\n{"id":5}'
    assert second.headers["RT-Seq"] == "2"
    second.reply(204)
    await world.pass_(100)
    assert len(world.requests) == 2
    await wire.send(b"{}")
    await world.pass_()
    assert world.requests[2].headers["RT-Seq"] == "3"
    await finish(world, wire)


async def test_what_is_sent_before_the_session_is_known_waits() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_()
    body = world.requests[0].stream(stream())
    body.push(b":\n\n")
    wire = await opening
    await wire.send(b'{"id":2}')
    await world.pass_()
    assert not world.of("POST", "send")
    body.event(connected("s2"))
    await world.pass_()
    (sent,) = world.of("POST", "send")
    assert (sent.body, sent.headers["RT-Session"]) == (b'{"id":2}', "s2")
    await finish(world, wire)


async def test_a_request_carries_64_units_and_256_kib_at_the_most() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    world.on = lambda r: r.reply(204)
    units = [b'{"id":%d}' % n for n in range(2, 152)]
    await wire.send(b"\n".join(units))
    await world.pass_()
    assert [r.body.count(b"\n") + 1 for r in world.requests] == [64, 64, 22]
    assert b"\n".join(r.body for r in world.requests).split(b"\n") == units
    world.requests.clear()
    large = [b'{"id":%d,"x":"%b"}' % (n, b"x" * 100_000) for n in range(5)]
    await wire.send(b"\n".join(large))
    await world.pass_()
    assert [r.body.count(b"\n") + 1 for r in world.requests] == [2, 2, 1]
    assert b"\n".join(r.body for r in world.requests).split(b"\n") == large
    world.requests.clear()
    larger = b'{"id":9,"x":"%b"}' % (b"x" * 300_000)
    await wire.send(b'{"id":8}\n' + larger + b'\n{"id":10}')
    await world.pass_()
    assert [r.body for r in world.requests] == [b'{"id":8}', larger, b'{"id":10}']
    assert "open, 0 units of 0 bytes" in repr(wire)
    await finish(world, wire)


@pytest.mark.parametrize("fault", ["503", "503 later", "429", "502", "network", "silence"])
async def test_what_may_not_have_been_taken_is_sent_again_with_its_number(fault: str) -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    await wire.send(b'{"id":3}')
    for _ in range(3):
        asked = world.requests[-1]
        if fault == "network":
            asked.fail()
        elif fault == "silence":
            await world.pass_(10.1)
            assert asked.given_up
            await world.pass_(0.3)
            break  # two of them are all that the patience allows
        else:
            status, _, later = fault.partition(" ")
            headers = {"retry_after": "5"} if later else {}
            asked.reply(int(status), b"", **headers)
            if later:
                count = len(world.requests)
                await world.pass_(4.9)
                assert len(world.requests) == count
                await world.pass_(3.2)
                assert len(world.requests) == count + 1
                continue
        await world.pass_(4.0)
    world.requests[-1].reply(204)
    await world.pass_(4.0)
    *again, following = world.requests
    assert {(r.headers["RT-Seq"], r.body) for r in again} == {("1", b'{"id":2}')}
    assert len(again) > 1
    assert (following.headers["RT-Seq"], following.body) == ("2", b'{"id":3}')
    await finish(world, wire)


async def test_a_body_that_is_too_large_on_this_way_is_sent_in_smaller_ones() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    world.on = lambda r: r.reply(413 if len(r.body) > 100 else 204)
    units = [b'{"id":%d,"x":"%b"}' % (n, b"x" * 50) for n in range(20)]
    await wire.send(b"\n".join(units))
    await world.pass_()
    taken = [r for r in world.requests if len(r.body) <= 100]
    assert b"\n".join(r.body for r in taken).split(b"\n") == units
    assert [r.headers["RT-Seq"] for r in taken] == [str(n) for n in range(1, len(taken) + 1)]
    assert len(world.requests) < 30, "it is remembered what was too much"
    assert "open, 0 units of 0 bytes" in repr(wire)
    await wire.send(b'{"x":"%b"}' % (b"x" * 100))
    await world.pass_()
    assert (await ending(wire)).code == 1009
    await finish(world, wire)


async def test_a_server_that_says_later_is_waited_for_as_long_as_it_says_so() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    world.on = lambda r: r.reply(429, retry_after="5")
    await wire.send(b'{"id":2}')
    await world.pass_(300.0)
    world.on = lambda r: r.reply(204)
    await world.pass_(10.0)
    assert {r.headers["RT-Seq"] for r in world.requests} == {"1"}
    await wire.send(b'{"id":3}')
    await world.pass_()
    assert world.requests[-1].headers["RT-Seq"] == "2"
    await finish(world, wire)


async def test_a_slow_line_has_more_time_for_more_bytes() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"x":"%b"}' % (b"x" * 160 * 1024))
    await world.pass_(19.9)
    assert not world.requests[0].given_up
    await world.pass_(0.2)
    assert world.requests[0].given_up
    await finish(world, wire)


async def test_sending_again_has_an_end() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    world.on = lambda r: r.fail()
    await wire.send(b'{"id":2}')
    await world.pass_(25.0)
    asked = len(world.requests)
    assert 5 < asked < 100
    await world.pass_(10.0)
    assert (await ending(wire)).code == 1006
    await world.pass_(100.0)
    assert len(world.requests) <= asked + 20
    await finish(world, wire)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 1006), (401, 3500), (403, 3507), (404, 1006), (410, 1006), (413, 1009), (302, 1006), (200, 1006)],
)
async def test_an_answer_that_ends_the_session(status: int, code: int) -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    world.requests[0].reply(status)
    await world.pass_()
    closed = await ending(wire)
    assert closed.code == code
    assert ("does not know this session" in closed.reason) == (status in (404, 410))
    await finish(world, wire)


async def test_who_sends_too_much_waits_until_it_has_gone_up_or_the_pipe_ends() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    large = b'{"x":"%b"}' % (b"x" * 200_000)
    for _ in range(3):  # one is under way, and two wait
        await wire.send(large)
        await world.pass_()
    waiting = asyncio.create_task(wire.send(b'{"id":9}'))
    await world.pass_()
    assert not waiting.done()
    world.requests[0].reply(204)
    await world.pass_()
    await waiting
    await wire.send(large)
    stuck = asyncio.create_task(wire.send(b"{}"))
    await world.pass_()
    assert not stuck.done()
    body.cut()
    await world.pass_()
    with pytest.raises(WireClosed):
        await stuck
    await finish(world, wire)


# -- closing -----------------------------------------------------------------------------------------------


async def test_a_goodbye_goes_after_what_was_sent() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    await wire.send(b'{"bye":{}}')
    closing = asyncio.create_task(wire.close(1000, ""))
    await world.pass_()
    assert len(world.requests) == 1
    world.requests[0].reply(204)
    await world.pass_()
    assert world.requests[1].body == b'{"bye":{}}'
    world.requests[1].reply(204)
    await world.pass_()
    assert (world.requests[2].method, world.requests[2].endpoint) == ("DELETE", "send")
    assert world.requests[2].headers["RT-Session"] == "s"
    world.requests[2].reply(204)
    await closing
    world.check_nothing_is_left()
    await wire.close(1000, "")
    assert len(world.requests) == 3
    assert (await ending(wire)).code == 1000


@pytest.mark.parametrize("code", [3000, 1001])
async def test_a_session_that_may_be_resumed_is_not_ended(code: int) -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    await wire.close(code, "")
    assert [r.method for r in world.requests] == ["POST"]
    world.check_nothing_is_left()


@pytest.mark.parametrize("stuck", ["a request", "the goodbye"])
async def test_a_goodbye_is_bounded_in_time(stuck: str) -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    if stuck == "a request":
        await wire.send(b'{"id":2}')
    closing = asyncio.create_task(wire.close(1000, ""))
    await world.pass_(1.99)
    assert not closing.done()
    await world.pass_(0.02)
    await closing
    world.check_nothing_is_left()


async def test_a_goodbye_that_fails_is_no_error() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    world.on = lambda r: r.fail()
    await wire.close(1000, "")
    world.check_nothing_is_left()


async def test_cancelling_a_goodbye_lets_go_nevertheless() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    closing = asyncio.create_task(wire.close(1000, ""))
    await world.pass_()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await world.pass_()
    world.check_nothing_is_left()


async def test_closing_ends_whoever_receives_or_sends() -> None:
    world = FakeWorld()
    wire, _ = await start(world)
    receiving = asyncio.create_task(wire.recv())
    await world.pass_()
    await wire.close(3000, "")
    with pytest.raises(WireClosed):
        await receiving
    with pytest.raises(WireClosed):
        await wire.send(b"{}")


@pytest.mark.parametrize("unfetched", [True, False])
async def test_the_stream_is_closed_with_the_pipe_whatever_waits(unfetched: bool) -> None:
    world = FakeWorld()
    wire, body = await start(world)
    if unfetched:
        body.event({"a": 1})
    await world.pass_()
    await wire.close(3000, "")
    assert body.closed
    world, body = FakeWorld(), stream()
    body.push(b":\n\n")
    world.on = lambda r: r.stream(body)
    wire = await dialer(world).open(URL, {}, HELLO)
    await wire.close(3000, "")  # before anything of it could run
    assert body.closed
    world.check_nothing_is_left()


async def test_a_fault_of_ours_ends_the_pipe_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = FakeWorld()
    wire, body = await start(world)
    body.push(RuntimeError("a bug"))
    assert (await ending(wire)).code == 1006
    assert "a pipe over HTTP failed" in caplog.text
    await finish(world, wire)


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match="max_size"):
        SseDialer(max_size=0)


async def test_the_session_is_shown_to_nobody() -> None:
    world = FakeWorld()
    wire, body = await start(world)
    assert "'s'" not in repr(wire)
    body.event(json.loads(frame({"push": {}})))
    await finish(world, wire)
