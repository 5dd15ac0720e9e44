"""One connection of a scripted server: messages, push-back, and every way to an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest

from tests.unit.hosting.scripted import (
    WHO,
    Server,
    World,
    done,
    ws_scope,
)

# -- messages ----------------------------------------------------------------------------------------


async def test_echo_text_and_binary_and_what_is_unknown(world: World) -> None:
    world.acceptor.echo = True
    server, driver = await world.open()
    server.say("receive", text="é")
    server.say("receive", bytes=b"two")
    server.say("receive", text=None, bytes=b"three")
    server.say("whatever")
    server.say("receive", text="")
    await world.clock.settle()
    assert server.texts == ["é", "two", "three", ""]
    assert driver.frames == ["é".encode(), b"two", b"three", b""]
    assert world.host.statistics().connections == 1
    server.say("disconnect", code=1000, reason="bye")
    await done(server.task)
    assert driver.losses == [(1000, "bye")]


async def test_an_idle_connection_costs_one_task_and_no_timer(world: World) -> None:
    world.acceptor.echo = True
    before = asyncio.all_tasks()
    server, _ = await world.open()
    server.say("receive", text="hello")
    await world.clock.settle()
    assert asyncio.all_tasks() - before == {server.task}
    assert world.clock.timers == 0
    server.say("disconnect", code=1000)
    await done(server.task)


async def test_buffered_counts_down_as_the_server_takes_it(world: World) -> None:
    server, driver = await world.open()
    server.gate.clear()
    driver.transport.send([b"12345"])
    driver.transport.send([b"678", b"9"])
    assert driver.transport.buffered == 10
    await world.clock.settle()
    assert driver.transport.buffered == 10
    assert driver.log == []
    server.gate.set()
    await world.clock.settle()
    assert driver.transport.buffered == 0
    assert server.texts == ["12345", "678\n9"]
    assert driver.log == ["writable"]
    driver.transport.send([b"again"])
    await world.clock.settle()
    assert driver.log == ["writable", "writable"]
    server.say("disconnect")
    await done(server.task)


async def test_writing_and_closing_from_writable(world: World) -> None:
    server, driver = await world.open()
    steps: list[Callable[[], object]] = [
        lambda: driver.transport.send([b"two"]),
        lambda: driver.transport.send([b"three"]),
        lambda: driver.transport.close(3001, "draining"),
    ]
    driver.on_writable = lambda: steps.pop(0)()
    driver.transport.send([b"one"])
    await world.clock.settle()
    assert server.texts == ["one", "two", "three"]
    assert server.sent[-1] == {"type": "websocket.close", "code": 3001, "reason": "draining"}
    server.say("disconnect", code=3001)
    await done(server.task)
    assert driver.losses == [(3001, "draining")]


async def test_a_driver_that_always_writes_does_not_take_the_loop(world: World) -> None:
    server, driver = await world.open()
    driver.on_writable = lambda: driver.transport.send([b"more"])
    driver.transport.send([b"more"])
    for _ in range(10):
        await asyncio.sleep(0)
    assert 1 < len(server.texts) < 20
    server.say("disconnect")
    await done(server.task)


async def test_the_writer_runs_in_the_context_of_its_own_connection(world: World) -> None:
    server, driver = await world.open()
    token = WHO.set("somebody else's handler")
    driver.transport.send([b"x"])
    await world.clock.settle()
    WHO.reset(token)
    assert server.context == ["nobody", "nobody"]
    server.say("disconnect")
    await done(server.task)


async def test_pausing_holds_one_message_and_asks_for_no_more(world: World) -> None:
    server, driver = await world.open()
    driver.transport.pause_reading()
    driver.transport.pause_reading()
    for text in ("one", "two", "three"):
        server.say("receive", text=text)
    await world.clock.settle()
    assert driver.frames == []
    assert server.inbox.qsize() == 2
    driver.transport.resume_reading()
    driver.transport.pause_reading()
    await world.clock.settle()
    assert driver.frames == []
    driver.transport.resume_reading()
    driver.transport.resume_reading()
    await world.clock.settle()
    assert driver.frames == [b"one", b"two", b"three"]
    server.say("disconnect")
    await done(server.task)


async def test_a_paused_connection_without_messages_sees_the_end(world: World) -> None:
    server, driver = await world.open()
    driver.transport.pause_reading()
    server.say("disconnect", code=1001)
    await done(server.task)
    assert driver.losses == [(1001, "")]


async def test_a_message_that_is_too_big(world: World) -> None:
    server, driver = await world.open()
    server.say("receive", text="x" * 1001)
    await world.clock.settle()
    assert server.sent[-1]["code"] == 1009
    server.say("disconnect", code=1009)
    await done(server.task)
    assert driver.frames == []
    assert driver.losses[0][0] == 1009


# -- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "loss"),
    [
        ({}, (1006, "connection lost")),
        ({"code": None}, (1006, "connection lost")),
        ({"code": 1005}, (1006, "connection lost")),  # uvicorn: no close frame
        ({"code": 1005, "reason": ""}, (1005, "")),  # uvicorn: a close frame without a code
        ({"code": 1006}, (1006, "connection lost")),
        ({"code": 1012}, (1012, "")),
        ({"code": 4000, "reason": None}, (4000, "")),
        ({"code": 4000, "reason": "because"}, (4000, "because")),
    ],
)
async def test_the_peers_close_code(world: World, message: dict[str, Any], loss: tuple[int, str]) -> None:
    server, driver = await world.open()
    server.say("disconnect", **message)
    await done(server.task)
    assert driver.losses == [loss]


async def test_closing_flushes_first_and_only_once(world: World) -> None:
    server, driver = await world.open()
    server.gate.clear()
    driver.transport.send([b"one"])
    driver.transport.close(3500, "bad token")
    driver.transport.close(3501, "again")
    driver.transport.send([b"too late"])
    server.say("receive", text="ignored")
    await world.clock.settle()
    server.gate.set()
    await world.clock.settle()
    assert [m["type"] for m in server.sent[1:]] == ["websocket.send", "websocket.close"]
    server.say("disconnect", code=3500)
    await done(server.task)
    assert driver.losses == [(3500, "bad token")]
    assert driver.frames == []


async def test_a_long_reason_is_cut_where_a_character_ends(world: World) -> None:
    server, driver = await world.open()
    driver.transport.close(3000, "é" * 100)
    await world.clock.settle()
    assert server.sent[-1]["reason"] == "é" * 61
    server.say("disconnect")
    await done(server.task)


async def test_returns_although_receive_waits_for_ever(world: World) -> None:
    server, driver = await world.open()
    driver.transport.close(3001, "draining")
    await world.clock.advance(4.9)
    assert driver.losses == []
    await world.clock.advance(0.1)
    await done(server.task)
    assert driver.losses == [(3001, "draining")]


async def test_returns_although_the_peer_does_not_read(world: World) -> None:
    server, driver = await world.open()
    server.gate.clear()
    driver.transport.send([b"x" * 100])
    driver.transport.close(3008, "slow consumer")
    await world.clock.advance(5)
    await done(server.task)
    assert driver.losses == [(3008, "slow consumer")]
    assert driver.transport.buffered == 0
    assert len(server.sent) == 1


async def test_closing_while_paused_with_a_message_held(world: World) -> None:
    server, driver = await world.open()
    driver.transport.pause_reading()
    server.say("receive", text="held")
    await world.clock.settle()
    driver.transport.close(3000, "")
    driver.transport.pause_reading()
    server.say("disconnect", code=3000)
    await done(server.task)
    assert driver.frames == []
    assert driver.losses == [(3000, "")]


async def test_closing_from_connect(world: World) -> None:
    world.acceptor.on_connect = lambda driver: driver.transport.close(4001, "try again later")
    server, driver = await world.open()
    assert server.sent[-1]["code"] == 4001
    server.say("disconnect", code=4001)
    await done(server.task)
    assert driver.losses == [(4001, "try again later")]


class Vanished(Exception):
    """As some servers have it: of no type one could name."""


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (OSError("gone"), logging.DEBUG),
        (RuntimeError("after close"), logging.DEBUG),
        (Vanished(), logging.WARNING),
    ],
)
async def test_a_send_that_raises_waits_for_the_peers_code(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception, level: int
) -> None:
    caplog.set_level(logging.DEBUG, "rtkit.hosting")
    server, driver = await world.open()
    driver.transport.pause_reading()
    server.say("receive", text="held")
    await world.clock.settle()
    server.broken = error
    driver.transport.send([b"one"])
    driver.transport.send([b"two"])
    await world.clock.settle()
    assert driver.transport.buffered == 0
    assert [record.levelno for record in caplog.records if record.name == "rtkit.hosting"] == [level]
    driver.transport.send([b"three"])
    driver.transport.close(3000, "")
    server.say("disconnect", code=1001, reason="left")
    await done(server.task)
    assert driver.losses == [(1001, "left")]
    assert driver.frames == []


async def test_a_send_that_raises_and_a_receive_that_waits(world: World) -> None:
    server, driver = await world.open()
    server.broken = OSError("gone")
    driver.transport.send([b"one"])
    await world.clock.advance(1)
    await done(server.task)
    assert driver.losses == [(1006, "connection lost")]


async def test_a_send_that_raises_while_closing(world: World) -> None:
    server, driver = await world.open()
    server.broken = OSError("gone")
    driver.transport.close(3001, "draining")
    await world.clock.advance(1)
    await done(server.task)
    assert driver.losses == [(3001, "draining")]


@pytest.mark.parametrize("state", ["idle", "paused", "writing", "closing"])
async def test_cancelled_by_the_server(world: World, state: str) -> None:
    server, driver = await world.open()
    if state == "paused":
        driver.transport.pause_reading()
        server.say("receive", text="held")
    elif state in ("writing", "closing"):
        server.gate.clear()
        driver.transport.send([b"x"])
    if state == "closing":
        driver.transport.close(3001, "draining")
    await world.clock.settle()
    assert server.task is not None
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.task
    assert driver.losses == [(3001, "draining") if state == "closing" else (1006, "cancelled by the server")]
    assert driver.log == ["lost"]
    driver.transport.send([b"after"])
    driver.transport.close(3000, "after")
    driver.transport.pause_reading()
    await world.clock.settle()
    assert len(server.sent) == 1


async def test_cancelled_twice_while_send_does_not_let_go(world: World) -> None:
    """lost() has been called by then, and the cancellation is not swallowed."""
    server, driver = await world.open()
    release = asyncio.Event()

    async def stubborn(message: MutableMapping[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()

    assert server.task is not None
    pipe: Any = driver.transport
    pipe._pipe._send = stubborn
    driver.transport.send([b"x"])
    await world.clock.settle()
    server.task.cancel()
    await world.clock.settle()
    assert driver.losses == [(1006, "cancelled by the server")]
    assert not server.task.done()
    server.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server.task
    release.set()
    await world.clock.settle()


async def test_a_send_that_ignores_its_cancellation_is_left_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    server, driver = await world.open()
    release = asyncio.Event()

    async def stubborn(message: MutableMapping[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()

    pipe: Any = driver.transport
    pipe._pipe._send = stubborn
    driver.transport.send([b"x"])
    await world.clock.settle()
    server.say("disconnect", code=1000)
    await world.clock.advance(5)
    await done(server.task)
    assert "ignores its cancellation" in caplog.text
    release.set()
    await world.clock.settle()


@pytest.mark.parametrize("where", ["connect", "received", "writable"])
async def test_a_bug_above_us_tells_the_peer_and_the_server(world: World, where: str) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    server = Server(world.host, ws_scope())
    server.say("connect")
    if where == "connect":
        world.acceptor.on_connect = fail
    task = server.start()
    await world.clock.settle()
    if where == "received":
        server.say("receive", text="raise")
        server.say("receive", text="raise")
    elif where == "writable":
        world.acceptor.drivers[0].on_writable = fail
        world.acceptor.drivers[0].transport.send([b"x"])
    await world.clock.settle()
    assert server.sent[-1] == {"type": "websocket.close", "code": 3004, "reason": "internal error"}
    server.say("disconnect", code=3004)
    with pytest.raises(ZeroDivisionError):
        await task
    assert [driver.losses for driver in world.acceptor.drivers] == [[(3004, "internal error")]] * (
        where != "connect"
    )


async def test_a_receive_that_raises_ends_the_connection(world: World) -> None:
    server, driver = await world.open()

    class Broken(asyncio.Queue[dict[str, Any]]):
        async def get(self) -> dict[str, Any]:
            raise TimeoutError("the server's own")

    server.inbox, inbox = Broken(), server.inbox
    inbox.put_nowait({"type": "websocket.receive", "text": "x"})
    with pytest.raises(TimeoutError, match="the server's own"):
        await done(server.task)
    assert driver.losses == [(1006, "connection lost")]


async def test_what_it_looks_like(world: World) -> None:
    server, driver = await world.open()
    pipe: Any = driver.transport
    pipe = pipe._pipe
    assert repr(pipe) == "<AsgiPipe open, 0 bytes buffered>"
    driver.transport.pause_reading()
    assert repr(pipe) == "<AsgiPipe open, paused, 0 bytes buffered>"
    driver.transport.close(3000, "")
    assert repr(pipe) == "<AsgiPipe closing with 3000, 0 bytes buffered>"
    assert repr(world.host) == "<AsgiHost, 1 connections>"
    server.say("disconnect")
    await done(server.task)
    assert repr(pipe) == "<AsgiPipe over, 0 bytes buffered>"
