"""Commands: encoding, acknowledgements, order, resending, giving up, pacing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from rtkit.client import Client, Position
from rtkit.errors import (
    BadUnit,
    CallError,
    ConnectionClosed,
    InvalidMessage,
    PublishUnknown,
    QueueFull,
    UsageError,
)
from tests.unit.client.fakes import Error, FakeServer, running, sub


@dataclass
class Say:
    text: str


@dataclass
class Colour:
    number: int

    def __post_init__(self) -> None:
        self.name = {1: "red"}[self.number]


class Saved(msgspec.Struct):
    id: int


class Draw(TypedDict):
    x: int


class Model(pydantic.BaseModel):
    n: int


def later(coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(coro)


def sent(server: FakeServer, wire: int = -1) -> list[Any]:
    return [msgspec.json.decode(b.data) for b in server.wires[wire].of("publish")]


@pytest.mark.parametrize(
    "message, name, data",
    [
        (Say("hi"), "", {"event": "Say", "data": {"text": "hi"}}),
        (Say("hi"), "said", {"event": "said", "data": {"text": "hi"}}),
        (Model(n=1), "", {"event": "Model", "data": {"n": 1}}),
        (Saved(1), "", {"event": "Saved", "data": {"id": 1}}),
        (Draw(x=1), "Draw", {"event": "Draw", "data": {"x": 1}}),
        ({"x": 1}, "", {"x": 1}),
        ([1, 2], "", [1, 2]),
        ("text", "", "text"),
        (None, "", None),
    ],
)
async def test_what_is_sent(message: object, name: str, data: Any) -> None:
    server = FakeServer()
    async with running(server) as client:
        room = client.join("r")
        assert await room.send(message, name=name) is None
        assert sent(server) == [data]


async def test_acknowledgements() -> None:
    server = FakeServer()
    server.on["publish"] = lambda body: {"data": {"id": 7}}
    async with running(server) as client:
        room = client.join("r")
        assert await room.send("x") == {"id": 7}
        assert await room.send("x", returns=Saved) == Saved(7)
        with pytest.raises(BadUnit):
            await room.send("x", returns=Say)
        server.on["publish"] = lambda body: {"epoch": "e", "offset": 4}
        assert await room.send("x", returns=Position) == Position("e", 4)
        assert await room.send("x") is None


async def test_calls() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: {"data": {"id": 7}}
    async with running(server) as client:
        assert await client.call(Say("hi"), returns=Saved) == Saved(7)
        assert await client.call({"a": 1}, name="do") == {"id": 7}
        assert await client.call(name="do", key="mine") == {"id": 7}
        bodies = server.wire.of("rpc")
        assert [b.method for b in bodies] == ["Say", "do", "do"]
        assert bytes(bodies[0].data) == b'{"text":"hi"}'
        assert bodies[2].data is msgspec.UNSET
        assert bodies[2].key == "mine"
        assert bodies[0].key != bodies[1].key
        with pytest.raises(UsageError, match="name"):
            await client.call({"a": 1})
        with pytest.raises(InvalidMessage, match="255"):
            await client.call(name="x" * 256)
        with pytest.raises(InvalidMessage):
            await client.call({"a": object()}, name="x")
        with pytest.raises(ValueError, match="key"):
            await client.call(name="x", key="")
        for key in ("k" * 129, "\ud800"):
            with pytest.raises(ValueError, match="key"):
                await client.call(name="x", key=key)
        for name in ("\ud800", ""):
            with pytest.raises((InvalidMessage, UsageError)):
                await client.call("\ud800", name=name)
        with pytest.raises(InvalidMessage):
            await client.join("r").send("\ud800")
        with pytest.raises(InvalidMessage):
            await client.call(1, name="\ud800")


async def test_keys_are_never_the_same() -> None:
    server = FakeServer()
    async with running(server) as a, server.client(random=None) as b:
        for client in (a, b):
            await client.call(name="x")
            await client.call(name="x")
        keys = [body.key for wire in server.wires for body in wire.of("rpc")]
        assert len(set(keys)) == 4


async def test_errors() -> None:
    server = FakeServer()

    def refuse(body: Any) -> Any:
        raise Error(400, "no money", temporary=True, retry_after=2.5)

    server.on["publish"] = server.on["rpc"] = refuse
    async with running(server) as client:
        with pytest.raises(CallError, match="no money") as caught:
            await client.join("r").send("x")
        assert (caught.value.code, caught.value.temporary, caught.value.retry_after) == (400, True, 2.5)
        with pytest.raises(CallError):
            await client.call(name="x")


async def test_unanswered_ones_are_sent_again_with_their_key_before_newer_ones() -> None:
    server = FakeServer()
    server.on["publish"] = lambda body: None
    async with running(server) as client:
        room = client.join("r")
        tasks = [later(room.send(n)) for n in (1, 2)]
        await server.clock.settle()
        server.wire.cut()
        await server.clock.settle()
        tasks.append(later(room.send(3)))
        server.on["publish"] = lambda body: {"data": body.key}
        await server.pass_(1)
        assert sent(server, 0) == [1, 2]
        assert sent(server, 1) == [1, 2, 3]
        keys = [b.key for b in server.wires[0].of("publish")]
        assert [await task for task in tasks][:2] == keys
        assert client.statistics().resent == 2


async def test_a_rooms_commands_wait_until_it_is_joined_again_others_do_not() -> None:
    server = FakeServer()
    async with running(server) as client:
        room, other = await client.join("r"), await client.join("s")
        server.wire.cut()
        await server.clock.settle()
        held: list[Any] = []
        server.on["subscribe"] = lambda body: held.append(body) if body.channel == "r" else {}
        tasks = [later(room.send("r")), later(other.send("s")), later(client.call(name="c"))]
        await server.pass_(1)
        assert [t.done() for t in tasks] == [False, True, True]
        join = next(c for c in server.wire.commands if c.subscribe is not None and c.subscribe.channel == "r")
        server.wire.reply(join, subscribe={})
        await server.clock.settle()
        assert tasks[0].done()


async def test_too_old_to_be_sent_again() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        call = later(client.call(name="x"))
        await server.clock.settle()
        server.refuse = [OSError()] * 1000
        server.wire.cut()
        fresh = later(client.call(name="y"))
        await server.pass_(149)
        assert not call.done()
        await server.pass_(1.1)
        with pytest.raises(PublishUnknown, match="offline"):
            await call
        assert not fresh.done(), "never sent, never too old"
        server.refuse = []
        server.on["rpc"] = lambda body: {}
        await server.pass_(25)
        await fresh
        assert [b.method for b in server.wire.of("rpc")] == ["y"]


async def test_time_asleep_counts_as_age() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        call = later(client.call(name="x"))
        await server.clock.settle()
        server.wire.cut()
        await server.clock.settle()
        server.clock.suspend(3600)
        await server.pass_(1)
        with pytest.raises(PublishUnknown):
            await call
        assert client.state == "connected"
        assert server.wire.of("rpc") == []


async def test_in_flight_on_a_living_connection_is_never_too_old() -> None:
    server = FakeServer()
    server.hello["ping"] = 0
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        call = later(client.call(name="x"))
        await server.pass_(1000)
        server.wire.reply(server.wire.last("rpc"), rpc={"data": 1})
        assert await call == 1


async def test_servers_without_keys_get_nothing_twice() -> None:
    server = FakeServer()
    del server.hello["rt"]
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        call = later(client.call(name="x"))
        await server.clock.settle()
        server.wire.cut()
        with pytest.raises(PublishUnknown):
            await call


async def test_timeouts() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        written = later(client.call(name="x", timeout=3))
        await server.pass_(3)
        with pytest.raises(PublishUnknown, match="within 3 s"):
            await written
        server.wire.reply(server.wire.last("rpc"), rpc={})  # too late, and harmless
        server.wire.cut()
        server.refuse = [OSError()] * 50
        await server.clock.settle()
        unwritten = later(client.call(name="y", timeout=3))
        await server.pass_(3)
        with pytest.raises(TimeoutError, match="withdrawn"):
            await unwritten
        server.refuse = []
        await server.pass_(20)
        assert server.wire.of("rpc") == []
        assert client.statistics().pending == 0


async def test_cancelling() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        written = later(client.call(name="x"))
        await server.clock.settle()
        written.cancel()
        await server.clock.settle()
        assert client.statistics().pending == 0
        server.wire.cut()
        await server.clock.settle()
        unwritten = later(client.call(name="y"))
        await server.clock.settle()
        unwritten.cancel()
        await server.pass_(2)
        assert server.wire.of("rpc") == []


async def test_cancelling_in_the_moment_of_the_answer() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        call = later(client.call(name="x"))
        timed = later(client.call(name="y", timeout=3))
        await server.clock.settle()
        sendings = list(client._engine.outbox)  # pyright: ignore[reportPrivateUsage]
        for sending in sendings:
            sending.settle(CallError(400, "no"))
            sending.settle(CallError(400, "twice does no harm"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(CallError, match="no"):
            await timed


async def test_the_offline_queue_is_bounded() -> None:
    server = FakeServer()
    async with running(server, max_offline=3) as client:
        server.wire.cut()
        await server.clock.settle()
        tasks = [later(client.call(name=f"n{n}")) for n in range(3)]
        await server.clock.settle()
        with pytest.raises(QueueFull, match="3 commands"):
            await client.call(name="one too many")
        assert client.statistics().pending == 3
        await server.pass_(1)
        await asyncio.gather(*tasks)
        assert [b.method for b in server.wire.of("rpc")] == ["n0", "n1", "n2"]


async def test_the_end_of_the_client() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        room = client.join("r")
        server.on["subscribe"] = lambda body: None
        written, unwritten = later(client.call(name="x")), later(room.send("y"))
        await server.clock.settle()
        server.wire.cut(3503, "over")
        await server.clock.settle()
        with pytest.raises(PublishUnknown) as caught:
            await written
        assert isinstance(caught.value.__cause__, ConnectionClosed)
        with pytest.raises(ConnectionClosed, match="over"):
            await unwritten


async def test_closing_the_client() -> None:
    server = FakeServer()
    server.on["rpc"] = lambda body: None
    async with running(server) as client:
        written = later(client.call(name="x"))
        await server.clock.settle()
    with pytest.raises(PublishUnknown):
        await written


async def test_leaving_a_room_fails_what_was_not_sent() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: None
    async with running(server) as client:
        room = client.join("r")
        sending = later(room.send("x"))
        await server.clock.settle()
        await room.leave()
        with pytest.raises(Exception, match="was left"):
            await sending
        assert server.wire.of("publish") == []


async def test_a_command_that_is_refused_for_now_when_its_room_was_left() -> None:
    server = FakeServer()
    server.on["publish"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r")
        sending = later(room.send("x"))
        await server.clock.settle()
        command = server.wire.last("publish")
        await room.leave()
        server.wire.reply(command, error={"code": 111, "message": "too many", "temporary": True})
        with pytest.raises(Exception, match="was left"):
            await sending


# -- limits


async def paced(server: FakeServer, client: Client, calls: int) -> list[float]:
    times: list[float] = []
    server.on["rpc"] = lambda body: times.append(server.clock.monotonic()) or {}
    tasks = [later(client.call(name="x")) for _ in range(calls)]
    await server.pass_(30)
    await asyncio.gather(*tasks)
    return times


async def test_commands_keep_to_the_rate_the_server_named() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 10, "burst": 20}}
    async with running(server) as client:
        times = await paced(server, client, 100)
        start = times[0]
        assert sum(t == start for t in times) == 17, "nine tenths of the burst, without the connect command"
        for i, first in enumerate(times):
            within = sum(first <= t <= first + 2 for t in times[i:])
            assert within <= 20 + 2 * 10


async def test_many_rooms_are_joined_within_the_rate() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 50, "burst": 100}}
    async with running(server) as client:
        rooms = [client.join(f"r{n}") for n in range(128)]
        await server.clock.settle()
        assert len(server.wire.of("subscribe")) == 89
        await server.pass_(2)
        for room in rooms:
            await room


async def test_too_many_requests_holds_everything_back_in_order() -> None:
    server = FakeServer()
    refused = False

    def publish(body: Any) -> Any:
        nonlocal refused
        if not refused:
            refused = True
            raise Error(111, "too many", temporary=True, retry_after=4)
        return {"data": msgspec.json.decode(body.data)}

    server.on["publish"] = publish
    async with running(server) as client:
        room = await client.join("r")
        first = later(room.send(1))
        await server.clock.settle()
        tasks = [first, *(later(room.send(n)) for n in (2, 3))]
        await server.pass_(3.9)
        assert sent(server) == [1]
        await server.pass_(0.2)
        assert [await t for t in tasks] == [1, 2, 3]
        assert sent(server) == [1, 1, 2, 3]
        assert client.statistics().held_back == 1
        refused = False
        withdrawn = later(room.send(9, timeout=2))
        await server.pass_(2)
        with pytest.raises(TimeoutError):
            await withdrawn


async def test_too_large_for_the_server() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"unit": 4000, "message": 1000}}
    async with running(server) as client:
        room = client.join("r")
        with pytest.raises(InvalidMessage, match="1000"):
            await room.send("x" * 1000)
        with pytest.raises(InvalidMessage, match="4000"):
            await client.call("x" * 3990, name="m")
        await client.call("x" * 3000, name="m")
        assert client.statistics().pending == 0


async def test_small_units_share_frames_and_large_ones_go_alone() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.cut()
        await server.clock.settle()
        sizes = [10, 10, 10_000, 10_000, 10, 100_000, 10]
        tasks = [later(client.call("x" * size, name="m")) for size in sizes]
        await server.pass_(1)
        await asyncio.gather(*tasks)
        frames = [frame for frame in server.wire.frames if b'"rpc"' in frame]
        assert [frame.count(b"\n") + 1 for frame in frames] == [3, 1, 1, 1, 1]
        assert all(len(frame) < 17_000 or frame.count(b"\n") == 0 for frame in frames)


async def test_messages_to_the_session() -> None:
    server = FakeServer()
    async with running(server) as client:
        everything, typed = client.messages(), client.messages(Say)
        server.wire.push(message={"data": {"event": "Say", "data": {"text": "a"}}})
        server.wire.push(message={"data": [1]})
        await server.clock.settle()
        assert await anext(everything) == {"event": "Say", "data": {"text": "a"}}
        assert await anext(everything) == [1]
        assert await anext(typed) == Say("a")
        assert typed.dropped == 1
        waiting = later(anext(typed))
        await server.clock.settle()
        server.wire.cut(3503, "over")
        with pytest.raises(ConnectionClosed, match="over"):
            await waiting
        with pytest.raises(ConnectionClosed, match="over"):
            await anext(client.messages())
    async with running(FakeServer()) as client:
        waiting = later(anext(client.messages()))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await anext(client.messages())


async def test_a_message_whose_type_fails_is_dropped_and_costs_nothing_else() -> None:
    server = FakeServer()
    async with running(server) as client:
        messages = client.messages(Colour)
        for n in (2, 1):
            server.wire.push(message={"data": {"event": "Colour", "data": {"number": n}}})
        await server.clock.settle()
        assert await anext(messages) == Colour(1)
        assert messages.dropped == 1
        assert client.state == "connected"
        assert server.wire.closed is None


async def test_statistics_and_repr() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: sub("e", 1)
    async with running(server) as client:
        await client.join("r").send("x")
        statistics = client.statistics()
        assert (statistics.connects, statistics.rooms, statistics.sent, statistics.pending) == (1, 1, 1, 0)
        assert statistics.received == 3
        assert "1 rooms" in repr(client)
