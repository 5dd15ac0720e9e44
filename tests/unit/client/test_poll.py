"""Long-polling: batches and their acknowledgements, with every fault on the way, in memory."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from rtkit.client import DialFailed, PollDialer, WireClosed
from rtkit.client.http import HttpFailed
from rtkit.client.poll import PollWire
from tests.unit.client.http_fakes import FakeWorld, Request, connected, frame

URL = "ws://u:secret@localhost/rt/ws?q=secret"
HELLO = b'{"id":1,"connect":{"token":"secret"}}'


def dialer(world: FakeWorld, **options: Any) -> PollDialer:
    return PollDialer(http=world, clock=world.clock, random=random.Random(1), **options)


async def start(world: FakeWorld, **options: Any) -> PollWire:
    """A wire whose first batch was received, and which polls."""
    opening = asyncio.create_task(dialer(world, **options).open(URL, {}, HELLO))
    await world.pass_()
    world.requests[0].batch(1, connected(pong=False))
    wire = await opening
    assert await wire.recv() == frame(connected(pong=False))
    world.requests.clear()
    await world.pass_()
    assert [(r.method, r.endpoint, r.query) for r in world.requests] == [("GET", "poll", "ack=1")]
    return wire


def to_ready(answer: Callable[[Request], None]) -> Callable[[Request], None]:
    """Answers when the client asks whether the hub is ready, and nothing else."""

    def on(request: Request) -> None:
        if request.endpoint == "ready":
            answer(request)

    return on


async def finish(world: FakeWorld, wire: PollWire) -> None:
    await wire.close(3000, "")
    world.check_nothing_is_left()


async def ending(wire: PollWire) -> WireClosed:
    with pytest.raises(WireClosed) as caught:
        while True:
            await wire.recv()
    assert "secret" not in str(caught.value)
    return caught.value


async def failure(world: FakeWorld) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await dialer(world).open(URL, {}, HELLO)
    assert "secret" not in str(caught.value)
    world.check_nothing_is_left()
    return caught.value


async def test_batches_are_acknowledged_by_the_next_poll_once_they_were_fetched() -> None:
    world = FakeWorld()
    wire = await start(world)
    assert wire.transport == "poll"
    assert world.requests[0].headers["RT-Session"] == "s"
    world.requests[0].batch(2, {"a": 1}, {"b": "\n"})
    await world.pass_(5)
    assert len(world.requests) == 1, "not yet: what came was not fetched"
    assert (await wire.recv()).split(b"\n") == [b'{"a": 1}', b'{"b": "\\n"}']
    await world.pass_()
    assert world.requests[1].query == "ack=2"
    world.requests[1].batch(3, {"c": 1})
    assert await wire.recv() == b'{"c": 1}'
    await finish(world, wire)


async def test_an_answer_without_anything_is_a_sign_of_life() -> None:
    world = FakeWorld()
    wire = await start(world)
    for n in range(3):
        world.requests[n].batch(1)
        assert await wire.recv() == b"{}"
        await world.pass_()
        assert world.requests[n + 1].query == "ack=1"
    await finish(world, wire)


@pytest.mark.parametrize("fault", ["network", "503", "429", "502"])
async def test_a_poll_that_breaks_is_asked_again_with_the_same_acknowledgement(fault: str) -> None:
    world = FakeWorld()
    wire = await start(world)
    world.on = to_ready(Request.fail)
    await world.pass_(20)  # a poll that was waiting for long has as much time to be asked again
    for n in range(3):
        if fault == "network":
            world.of("GET", "poll")[n].fail()
        else:
            world.of("GET", "poll")[n].reply(int(fault), retry_after="1")
        await world.pass_(2.0)
    assert {r.query for r in world.of("GET", "poll")} == {"ack=1"}
    world.requests[-1].batch(2, {"a": 1})
    assert await wire.recv() == b'{"a": 1}'
    await world.pass_()
    assert world.requests[-1].query == "ack=2"
    await finish(world, wire)


async def test_polls_that_something_on_the_way_cuts_go_on_while_the_hub_is_ready() -> None:
    world = FakeWorld()
    wire = await start(world)
    world.on = to_ready(Request.reply)
    for n in range(1, 13):
        await world.pass_(5)
        polls = world.of("GET", "poll")
        assert [r.query for r in polls] == ["ack=1"] * n
        polls[-1].fail()
        assert await wire.recv() == b"{}", "a sign of life"
    await world.pass_(1)
    world.of("GET", "poll")[-1].batch(2, {"a": 1})
    assert await wire.recv() == b'{"a": 1}'
    await finish(world, wire)


@pytest.mark.parametrize("ready", ["no answer", "503", "network"])
async def test_polls_that_are_cut_while_the_hub_is_not_ready_end(ready: str) -> None:
    world = FakeWorld()
    wire = await start(world)
    if ready != "no answer":
        world.on = to_ready(Request.fail if ready == "network" else lambda r: r.reply(503))
    for _ in range(5):
        await world.pass_(5)
        if (poll := world.of("GET", "poll")[-1]).answer.done():
            break
        poll.fail()
    await world.pass_(10)
    closed = await ending(wire)
    assert (closed.code, "polling failed" in closed.reason) == (1006, True)
    await finish(world, wire)


async def test_polls_that_are_cut_at_once_ask_for_nothing_else() -> None:
    world = FakeWorld()
    wire = await start(world)
    world.on = lambda r: r.fail()
    await world.pass_(2)
    world.requests[0].fail()
    await world.pass_(9)
    assert len(world.requests) > 3
    assert {r.endpoint for r in world.requests} == {"poll"}
    await finish(world, wire)


async def test_asking_again_ends_when_the_server_has_given_us_up() -> None:
    world = FakeWorld()
    wire = await start(world)
    world.on = lambda r: r.fail()
    world.requests[0].fail()
    await world.pass_(10.1)
    assert (await ending(wire)).code == 1006
    asked = len(world.requests)
    await world.pass_(60)
    assert len(world.requests) == asked
    await finish(world, wire)


async def test_a_poll_without_an_answer_for_35_s_is_lost() -> None:
    world = FakeWorld()
    wire = await start(world)
    await world.pass_(34.9)
    assert not world.requests[0].given_up
    await world.pass_(0.2)
    closed = await ending(wire)
    assert (closed.code, "35 s" in closed.reason) == (1006, True)
    await finish(world, wire)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"batch":3,"replies":[{}]}',
        b'{"batch":1,"replies":[{}]}',
        b'{"batch":"2","replies":[]}',
        b'{"batch":2,"replies":{}}',
        b"<html>",
        b"\xff",
        b"",
    ],
)
async def test_an_answer_that_is_not_the_next_batch_ends_it(answer: bytes) -> None:
    world = FakeWorld()
    wire = await start(world)
    world.requests[0].reply(200, answer)
    assert (await ending(wire)).code == 1006
    await finish(world, wire)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 1006), (401, 3500), (403, 3507), (404, 1006), (410, 1006), (204, 1006), (302, 1006)],
)
async def test_an_answer_that_ends_the_session(status: int, code: int) -> None:
    world = FakeWorld()
    wire = await start(world)
    world.requests[0].reply(status)
    assert (await ending(wire)).code == code
    await finish(world, wire)


async def test_the_servers_goodbye_is_the_last_that_is_asked_for() -> None:
    world = FakeWorld()
    wire = await start(world)
    world.requests[0].batch(2, {"a": 1}, {"push": {"disconnect": {"code": 3001, "reason": "draining"}}})
    assert b"draining" in await wire.recv()
    closed = await ending(wire)
    assert (closed.code, closed.reason) == (3001, "draining")
    await world.pass_(100)
    assert len(world.requests) == 1
    await finish(world, wire)


async def test_what_goes_up_does_not_wait_for_the_poll() -> None:
    world = FakeWorld()
    wire = await start(world)
    await wire.send(b'{"id":2}')
    await world.pass_()
    assert [(r.method, r.endpoint) for r in world.requests] == [("GET", "poll"), ("POST", "send")]
    await finish(world, wire)


async def test_a_goodbye_ends_the_poll_too() -> None:
    world = FakeWorld()
    wire = await start(world)
    closing = asyncio.create_task(wire.close(1000, ""))
    await world.pass_()
    (goodbye,) = world.of("DELETE", "send")
    goodbye.reply(204)
    await closing
    assert world.requests[0].given_up
    world.check_nothing_is_left()


# -- opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "terminal", "unusable"),
    [
        (401, True, False),
        (403, True, False),
        (404, True, True),
        (204, True, True),
        (502, False, True),
        (503, False, False),
    ],
)
async def test_an_answer_that_is_no_batch(status: int, terminal: bool, unusable: bool) -> None:
    world = FakeWorld()
    world.on = lambda r: r.reply(status)
    failed = await failure(world)
    assert (failed.terminal, failed.unusable) == (terminal, unusable)


async def test_somebody_elses_page_is_no_batch() -> None:
    world = FakeWorld()
    world.on = lambda r: r.reply(200, b"<html>Please accept our terms</html>")
    assert (await failure(world)).unusable


async def test_a_network_that_is_away() -> None:
    world = FakeWorld()
    world.on = lambda r: r.fail()
    with pytest.raises(HttpFailed):
        await dialer(world).open(URL, {}, HELLO)
    world.check_nothing_is_left()


async def test_a_slow_authenticate_is_not_muteness_when_the_server_is_there() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_(3.0)
    (ready,) = world.of("GET", "ready")
    ready.reply(204)
    wire = await opening
    receiving = asyncio.create_task(wire.recv())
    await world.pass_(60.0)
    world.requests[0].batch(1, connected())
    assert await receiving == frame(connected())
    await finish(world, wire)


async def test_who_answers_nothing_at_all_is_away() -> None:
    world = FakeWorld()
    opening = asyncio.create_task(failure(world))
    await world.pass_(5.9)
    assert not opening.done()
    await world.pass_(0.2)
    failed = await opening
    assert not failed.unusable
    assert not failed.terminal


@pytest.mark.parametrize(("status", "code"), [(403, 3507), (503, 1006)])
async def test_a_refusal_that_comes_late_ends_the_pipe(status: int, code: int) -> None:
    world = FakeWorld()
    opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
    await world.pass_(3.0)
    world.requests[1].reply(204)
    wire = await opening
    world.requests[0].reply(status)
    assert (await ending(wire)).code == code
    await finish(world, wire)


@pytest.mark.parametrize(
    "unit", [{"id": 1, "error": {"code": 101, "message": "no"}}, {"id": 1, "connect": {}}]
)
async def test_without_a_session_there_is_nothing_to_poll_for(unit: Any) -> None:
    world = FakeWorld()

    def answer(request: Request) -> None:
        request.batch(1, unit)

    world.on = answer
    wire = await dialer(world).open(URL, {}, HELLO)
    assert json.loads(await wire.recv()) == unit
    assert (await ending(wire)).code == 1006
    await world.pass_(100)
    assert len(world.requests) == 1
    await finish(world, wire)


async def test_cancelling_leaves_nothing_open() -> None:
    for seconds in (0.0, 3.5):
        world = FakeWorld()
        opening = asyncio.create_task(dialer(world).open(URL, {}, HELLO))
        await world.pass_(seconds)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        world.check_nothing_is_left()


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match="max_size"):
        PollDialer(max_size=0)
