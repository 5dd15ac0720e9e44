"""A response that goes on, of a scripted server: bytes, push-back, and every way to an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import pytest

from rtkit.transports import Answer, Batch, HttpRequest
from tests.unit.hosting.scripted import WHO, Goes, Server, World, done

# -- bytes -------------------------------------------------------------------------------------------


async def test_bytes_flow_at_once_and_in_order(world: World) -> None:
    server, goes = await world.stream()
    assert (server.status, server.headers) == (200, {"content-type": "text/event-stream"})
    assert (world.host.statistics().requests, world.host.statistics().streams) == (1, 1)
    goes.write(b":\n\n")
    goes.write(b"")
    goes.write(b"data: 1\n\n")
    await world.clock.settle()
    assert [m["body"] for m in server.sent[1:]] == [b":\n\n", b"data: 1\n\n"]
    assert not server.ended
    server.say("disconnect")
    await done(server.task)
    assert goes.losses == [(1006, "the client has gone away")]


async def test_what_is_written_while_it_starts(world: World) -> None:
    goes = Goes()

    def start() -> None:
        goes.write(b"all")
        goes.end()

    goes.on_start = start

    async def answer(_: HttpRequest) -> Answer:
        return goes.answer

    world.acceptor.on_answer = answer
    server = await world.ask("POST", "/sse")
    await done(server.task)
    assert (server.body, server.ended) == (b"all", True)
    assert goes.losses == [(1000, "")]


async def test_an_idle_stream_costs_one_task_and_no_timer(world: World) -> None:
    before = asyncio.all_tasks()
    server, goes = await world.stream()
    goes.write(b"hello")
    await world.clock.settle()
    assert asyncio.all_tasks() - before == {server.task}
    assert world.clock.timers == 0
    server.say("disconnect")
    await done(server.task)


async def test_buffered_counts_down_as_the_server_takes_it(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.write(b"12345")
    goes.write(b"6789")
    assert goes.buffered == 9
    await world.clock.settle()
    assert goes.buffered == 9
    assert goes.log == []
    assert world.host.statistics().writing == 1
    server.gate.set()
    await world.clock.settle()
    assert goes.buffered == 0
    assert goes.log == ["writable"]
    goes.write(b"again")
    await world.clock.settle()
    assert goes.log == ["writable", "writable"]
    server.say("disconnect")
    await done(server.task)


async def test_a_batch_is_formed_once_for_all(world: World) -> None:
    formed: list[Sequence[bytes]] = []

    def form(units: Sequence[bytes]) -> bytes:
        formed.append(units)
        return b"".join(b"data: %b\n" % unit for unit in units) + b"\n"

    streams = [await world.stream() for _ in range(3)]
    batch = Batch([b"one", b"two"])
    for _, goes in streams:
        assert goes.pipe is not None
        goes.pipe.write_batch(batch, form)
    await world.clock.settle()
    assert {server.body for server, _ in streams} == {b"data: one\ndata: two\n\n"}
    assert len(formed) == 1
    for server, _ in streams:
        server.say("disconnect")
        await done(server.task)


async def test_writing_and_ending_from_writable(world: World) -> None:
    server, goes = await world.stream()
    steps: list[Callable[[], object]] = [lambda: goes.write(b"2"), lambda: goes.write(b"3"), goes.end]
    goes.on_writable = lambda: steps.pop(0)()
    goes.write(b"1")
    await done(server.task)
    assert (server.body, server.ended) == (b"123", True)
    assert goes.log == ["writable", "writable", "writable", "lost"]
    assert goes.losses == [(1000, "")]


async def test_a_stream_that_always_writes_does_not_take_the_loop(world: World) -> None:
    server, goes = await world.stream()
    goes.on_writable = lambda: goes.write(b"x")
    goes.write(b"x")
    for _ in range(10):
        await asyncio.sleep(0)
    assert 1 < len(server.body) < 20
    server.say("disconnect")
    await done(server.task)


async def test_the_writer_runs_in_the_context_of_its_own_response(world: World) -> None:
    server, goes = await world.stream()
    token = WHO.set("somebody else's handler")
    goes.write(b"x")
    await world.clock.settle()
    WHO.reset(token)
    assert server.context == ["nobody", "nobody"]
    server.say("disconnect")
    await done(server.task)


async def test_what_the_client_says_besides_is_not_listened_to(world: World) -> None:
    server, goes = await world.stream()
    server.say("request", body=b"more", more_body=True)
    server.say("whatever")
    await world.clock.settle()
    assert goes.log == []
    server.say("disconnect")
    await done(server.task)


# -- ends --------------------------------------------------------------------------------------------


async def test_ending_flushes_first_and_is_idempotent(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.write(b"last words")
    goes.end()
    goes.end()
    goes.write(b"too late")
    await world.clock.settle()
    assert goes.losses == []
    server.gate.set()
    await done(server.task)
    assert (server.body, server.ended) == (b"last words", True)
    assert goes.log == ["lost"]
    assert goes.losses == [(1000, "")]
    goes.write(b"much too late")
    goes.end()
    assert goes.buffered == 0
    assert world.clock.timers == 0


async def test_a_client_that_takes_nothing_is_not_waited_for_for_ever(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.write(b"last words")
    goes.end()
    await world.clock.advance(4.9)
    assert goes.losses == []
    await world.clock.advance(0.2)
    await done(server.task)
    assert goes.losses == [(1006, "the client took nothing")]
    assert len(server.sent) == 1, "the response was cut off, not ended"


async def test_the_client_goes_away_while_the_stream_ends(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.write(b"last words")
    goes.end()
    await world.clock.settle()
    server.say("disconnect")
    await done(server.task)
    assert goes.losses == [(1006, "the client has gone away")]
    assert goes.buffered == 0


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("after the end"), ValueError("what")])
async def test_a_send_that_raises_is_the_end(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    server, goes = await world.stream()
    server.broken = error
    goes.write(b"1")
    goes.write(b"2")
    with caplog.at_level(logging.WARNING):
        await done(server.task)
    assert goes.losses == [(1006, "connection lost")]
    assert bool(caplog.records) == isinstance(error, ValueError)
    goes.write(b"3")
    assert goes.buffered == 0


async def test_a_send_that_raises_for_the_last_message(world: World) -> None:
    server, goes = await world.stream()
    server.broken = OSError("gone")
    goes.end()
    await done(server.task)
    assert goes.losses == [(1006, "connection lost")]


async def test_the_server_cancels(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.write(b"x")
    await world.clock.settle()
    assert server.task is not None
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done(server.task)
    assert goes.losses == [(1006, "cancelled by the server")]


async def test_a_cancellation_at_the_deadline_goes_on_outwards(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    goes.end()
    await world.clock.settle()
    assert server.task is not None
    world.clock.stall(5)
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done(server.task)
    assert len(goes.losses) == 1


async def test_a_send_that_ignores_its_cancellation(world: World, caplog: pytest.LogCaptureFixture) -> None:
    server, goes = await world.stream()
    let_go = asyncio.Event()

    async def stubborn(_: object) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass
        raise OSError("gone")

    assert goes.pipe is not None
    goes.pipe._send = stubborn  # type: ignore[attr-defined]  # as if from the beginning
    goes.write(b"x")
    await world.clock.settle()
    server.say("disconnect")
    with caplog.at_level(logging.WARNING):
        await world.clock.advance(5)
        await done(server.task)
    assert "ignores its cancellation" in caplog.text
    assert len(goes.losses) == 1
    caplog.clear()
    let_go.set()
    await world.clock.settle()
    assert not caplog.records, "what comes of it then is nobody's concern"


async def test_the_client_is_gone_before_the_head_was_sent(world: World) -> None:
    goes = Goes()

    async def answer(_: HttpRequest) -> Answer:
        server.broken = OSError("gone")
        return goes.answer

    world.acceptor.on_answer = answer
    server = Server(world.host, {"type": "http", "method": "POST", "path": "/sse"})
    server.say("request")
    await done(server.start())
    assert goes.pipe is None
    assert server.sent == []


# -- bugs above us -----------------------------------------------------------------------------------


async def test_a_start_that_raises(world: World) -> None:
    goes = Goes()

    def fail() -> None:
        goes.write(b"x")
        raise ZeroDivisionError

    goes.on_start = fail

    async def answer(_: HttpRequest) -> Answer:
        return goes.answer

    world.acceptor.on_answer = answer
    server = await world.ask("POST", "/sse")
    with pytest.raises(ZeroDivisionError):
        await done(server.task)
    assert goes.losses == []


async def test_a_writable_that_raises(world: World, caplog: pytest.LogCaptureFixture) -> None:
    server, goes = await world.stream()

    def fail() -> None:
        raise ZeroDivisionError

    goes.on_writable = fail
    goes.write(b"x")
    with pytest.raises(ZeroDivisionError):
        await done(server.task)
    assert goes.losses == [(1006, "internal error")]
    assert not server.sent[-1].get("body") or server.sent[-1]["more_body"], "it was cut off, not ended"


async def test_a_lost_that_raises_leaves_nothing_behind(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()

    def fail() -> None:
        raise ZeroDivisionError

    goes.on_lost = fail
    goes.write(b"x")
    await world.clock.settle()
    server.say("disconnect")
    with pytest.raises(ZeroDivisionError):
        await done(server.task)
    assert world.host.statistics().writing == 0


async def test_repr(world: World) -> None:
    server, goes = await world.stream()
    server.gate.clear()
    assert repr(goes.pipe) == "<AsgiStream open, 0 bytes buffered>"
    goes.write(b"xyz")
    goes.end()
    assert repr(goes.pipe) == "<AsgiStream ending, 3 bytes buffered>"
    server.gate.set()
    await done(server.task)
    assert repr(goes.pipe) == "<AsgiStream over, 0 bytes buffered>"
