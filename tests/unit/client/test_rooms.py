"""Rooms of a client: joining, iterating, coming back, gaps, a slow application, the server's own rooms."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from rtkit.client import Gap, Position, Unsubscribed
from rtkit.errors import (
    BadUnit,
    CallError,
    ConnectionClosed,
    DeclarationError,
    NotRunning,
    PublishUnknown,
    UsageError,
)
from tests.unit.client.fakes import Error, FakeServer, pub, running, sub, take


@dataclass
class Said:
    text: str


@dataclass
class Colour:
    number: int

    def __post_init__(self) -> None:
        self.name = {1: "red"}[self.number]


class Left(msgspec.Struct, tag="left"):
    who: str


def answers(server: FakeServer, *results: Any) -> None:
    """Joins are answered with these, one after another; the last for ever."""
    left = list(results)

    def subscribe(body: Any) -> Any:
        result = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(result, Exception):
            raise result
        return result

    server.on["subscribe"] = subscribe


async def lose(server: FakeServer) -> None:
    server.wire.cut()
    await server.pass_(20)


async def test_messages_are_typed_and_carry_their_place() -> None:
    server = FakeServer()
    answers(server, sub("e", 5))
    async with running(server) as client:
        async with client.join("chat", receives=(Said, Left)) as room:
            assert room.name == "chat"
            assert room.position == Position("e", 5)
            info = {"user": "ann", "client": "x"}
            server.wire.push(
                channel="chat", pub=pub(6, {"event": "Said", "data": {"text": "hi"}}, info=info, time=12.5)
            )
            server.wire.push(channel="chat", pub=pub(7, {"event": "other", "data": {}}))
            server.wire.push(
                channel="chat", pub=pub(8, {"event": "left", "data": {"type": "left", "who": "bo"}})
            )
            first = await anext(room)
            assert not isinstance(first, Gap)
            assert first.data == Said("hi")
            assert (first.sender, first.client, first.published_at) == ("ann", "x", 12.5)
            assert first.position == room.position == Position("e", 6)
            second = await anext(room)
            assert not isinstance(second, Gap)
            assert second.data == Left("bo")
            assert room.statistics().ignored == 1
            assert "chat" in repr(room)
        assert server.wire.of("unsubscribe")[0].channel == "chat"
        with pytest.raises(StopAsyncIteration):
            await anext(room)
        with pytest.raises(NotRunning, match="left"):
            await room.send("x")
        await room.leave()
        assert len(server.wire.of("unsubscribe")) == 1


async def test_a_message_that_does_not_fit_is_raised_and_iterating_goes_on() -> None:
    server = FakeServer()
    answers(
        server, sub("e", 0, pub(1, {"event": "Said", "data": {"text": 3}}), pub(2, {"no": 1}), pub(3, "x"))
    )
    server.on["subscribe"] = lambda body: sub(
        "e",
        2,
        pub(1, {"event": "Said", "data": {"text": 3}}),
        pub(2, {"event": "Said", "data": {"text": "ok"}}),
    )
    async with running(server) as client:
        room = await client.join("r", receives=Said)
        with pytest.raises(BadUnit, match=r"e:1.*text"):
            await anext(room)
        found = await anext(room)
        assert not isinstance(found, Gap)
        assert found.data == Said("ok")


async def test_iterating_waits_and_may_be_cancelled() -> None:
    server = FakeServer()
    answers(server, sub("e", 0))
    async with running(server) as client:
        room = await client.join("r")
        waiting = asyncio.create_task(anext(room))
        await server.clock.settle()
        waiting.cancel()
        await server.clock.settle()
        server.wire.push(channel="r", pub=pub(1))
        await server.clock.settle()
        assert take(room) == [1]


async def test_coming_back_recovers_from_our_position() -> None:
    server = FakeServer()
    answers(server, sub("e", 3), sub("e", 6, pub(4), pub(5), pub(6), recovered=True, was_recovering=True))
    async with running(server) as client:
        room = await client.join("r", data={"as": "guest"})
        server.wire.push(channel="r", pub=pub(4))
        await lose(server)
        body = server.wire.of("subscribe")[0]
        assert (body.recover, body.epoch, body.offset, bytes(body.data)) == (True, "e", 4, b'{"as":"guest"}')
        assert take(room) == [4, 5, 6]
        assert room.statistics().duplicates == 1
        assert room.statistics().joins == 2


async def test_a_gap_stands_in_the_place_of_what_is_missing() -> None:
    server = FakeServer()
    answers(server, sub("e", 3), sub("f", 8))
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", pub=pub(4))
        await lose(server)
        server.wire.push(channel="r", pub=pub(9))
        await server.clock.settle()
        assert take(room) == [4, Gap(0, 8, "f", "epoch"), 9]


async def test_pushed_gaps_and_positions() -> None:
    server = FakeServer()
    answers(server, sub("e", 3))
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", gap={"from": 3, "to": 7, "epoch": "e", "reason": "trimmed"})
        server.wire.push(channel="r", position={"epoch": "e", "offset": 7})
        server.wire.push(channel="r", pub=pub(8))
        server.wire.say({"push": {"position": {"channel": "r", "epoch": "f", "offset": 8}}})
        server.wire.push(channel="r", pub=pub(9))
        await server.clock.settle()
        assert take(room) == [Gap(3, 7, "e", "trimmed"), 8, 9]
        assert room.position == Position("f", 9)
        assert len(server.wire.of("subscribe")) == 1


async def test_a_position_where_it_does_not_stand_makes_it_join_again() -> None:
    """H3, H10: from where it stands; the server knows what that is in the new epoch."""
    server = FakeServer()
    answers(server, sub("e", 3), sub("f", 5, pub(4), pub(5), recovered=True))
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", position={"epoch": "f", "offset": 5})
        server.wire.push(channel="r", pub=pub(6))
        await server.clock.settle()
        again = server.wire.of("subscribe")[1]
        assert (again.recover, again.epoch, again.offset) == (True, "e", 3)
        server.wire.push(channel="r", pub=pub(6))
        await server.clock.settle()
        assert take(room) == [4, 5, 6]
        assert room.position == Position("f", 6)


async def test_a_hole_makes_it_join_again_and_at_a_slower_pace_each_time() -> None:
    server = FakeServer()
    answers(
        server,
        sub("e", 3),
        sub("e", 3, recovered=True),
        sub("e", 3, recovered=True),
        sub("e", 5, pub(4), pub(5), recovered=True),
    )
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", pub=pub(5))
        await server.clock.settle()
        assert [c.subscribe is not None for c in server.wire.commands[1:]] == [True, False, True]
        server.wire.push(channel="r", pub=pub(5))
        await server.pass_(0.4)
        assert len(server.wire.of("subscribe")) == 2
        await server.pass_(0.7)
        assert len(server.wire.of("subscribe")) == 3
        server.wire.push(channel="r", pub=pub(5))
        await server.pass_(2.1)
        assert len(server.wire.of("subscribe")) == 4
        assert take(room) == [4, 5]


async def test_a_refused_join_is_raised() -> None:
    server = FakeServer()
    answers(server, Error(103, "members only"))
    async with running(server) as client:
        with pytest.raises(CallError, match="members only") as caught:
            async with client.join("r"):
                pass
        assert caught.value.code == 103
        room = client.join("r")
        sending = asyncio.create_task(room.send("x"))
        with pytest.raises(CallError):
            await room
        with pytest.raises(CallError):
            await anext(room)
        with pytest.raises(CallError):
            await sending
        with pytest.raises(CallError):
            room.signal({"a": 1}, name="x")
        assert client.statistics().rooms == 0


async def test_a_temporary_refusal_is_tried_again() -> None:
    server = FakeServer()
    answers(
        server,
        Error(100, "later", temporary=True, retry_after=3),
        Error(111, "too many", temporary=True),
        sub("e", 3),
    )
    async with running(server) as client:
        joining = asyncio.create_task(client.join("r").joined())
        await server.pass_(2.9)
        assert len(server.wire.of("subscribe")) == 1
        await server.pass_(20)
        await joining
        assert len(server.wire.of("subscribe")) == 3


async def test_a_refused_rejoin_ends_the_room_after_its_queue() -> None:
    server = FakeServer()
    answers(server, sub("e", 0), Error(103, "not any more"))
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", pub=pub(1))
        await server.clock.settle()
        server.wire.stuck = True
        written = asyncio.create_task(room.send("was on its way"))
        await server.clock.settle()
        server.wire.cut()
        unwritten = asyncio.create_task(room.send("never left"))
        await server.pass_(20)
        assert await anext(room)
        with pytest.raises(CallError, match="not any more"):
            await anext(room)
        with pytest.raises(PublishUnknown):
            await written
        with pytest.raises(CallError):
            await unwritten


async def test_a_position_the_server_cannot_recover() -> None:
    server = FakeServer()
    answers(server, Error(112, "cannot"), sub("f", 9))
    async with running(server) as client:
        room = await client.join("r", since=Position("e", 3))
        assert [b.recover for b in server.wire.of("subscribe")] == [True, False]
        assert take(room) == [Gap(0, 9, "f", "epoch")]


async def test_already_subscribed_leaves_and_joins() -> None:
    server = FakeServer()
    answers(server, Error(105), sub("e", 3))
    async with running(server) as client:
        await client.join("r")
        methods = [("subscribe" if c.subscribe else "unsubscribe") for c in server.wire.commands[1:]]
        assert methods == ["subscribe", "unsubscribe", "subscribe"]


async def test_kicked() -> None:
    server = FakeServer()
    answers(server, sub("e", 3))
    server.on["publish"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r")
        sending = asyncio.create_task(room.send("x"))
        await server.clock.settle()
        server.wire.push(channel="r", pub=pub(4))
        server.wire.push(channel="r", unsubscribe={"code": 2000, "reason": "be gone"})
        await server.clock.settle()
        assert await anext(room)
        with pytest.raises(Unsubscribed, match="be gone") as caught:
            await anext(room)
        assert caught.value.code == 2000
        with pytest.raises(Unsubscribed):
            await room.send("y")
        assert not sending.done(), "the reply may still come"
        server.wire.reply(server.wire.last("publish"), publish={"data": 1})
        assert await sending == 1
        await lose(server)
        assert server.wire.of("subscribe") == []
        again = client.join("r")
        await again


async def test_continuity_lost_joins_again() -> None:
    server = FakeServer()
    answers(server, sub("e", 3), sub("e", 4, pub(4), recovered=True))
    async with running(server) as client:
        room = await client.join("r")
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "continuity lost"})
        await server.clock.settle()
        assert take(room) == [4]
        assert server.wire.of("unsubscribe") == []


async def test_the_end_of_the_client_is_raised_after_the_queue() -> None:
    server = FakeServer()
    answers(server, sub("e", 0))
    async with running(server) as client:
        room = await client.join("r")
        waiting = client.join("s")
        joined = asyncio.create_task(waiting.joined())
        server.wire.push(channel="r", pub=pub(1))
        await joined
        server.wire.cut(3503, "closed for good")
        await server.clock.settle()
        assert await anext(room)
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="closed for good"):
                await anext(room)
        with pytest.raises(ConnectionClosed):
            await waiting.send("x")


async def test_closing_the_client_ends_iterating() -> None:
    server = FakeServer()
    answers(server, sub("e", 0))
    async with running(server) as client:
        room, other = await client.join("r"), await client.join("s")
        task = asyncio.create_task(anext(room))
        server.wire.push(channel="s", pub=pub(1))
        await server.clock.settle()
    with pytest.raises(StopAsyncIteration):
        await task
    assert take(other) == [1], "what had come is still there"


async def test_a_room_without_history() -> None:
    server = FakeServer()
    answers(server, {})
    async with running(server) as client:
        room = await client.join("r", max_queue=2)
        assert room.position is None
        await lose(server)
        assert not server.wire.of("subscribe")[0].recover
        for n in range(4):
            server.wire.push(channel="r", pub=pub(0, n))
        await server.clock.settle()
        assert take(room) == [Gap(0, 0, "", "dropped"), 2, 3]


async def test_join_data() -> None:
    server = FakeServer()
    answers(
        server,
        sub("e", 3, data={"text": "hello"}),
        sub("e", 3, recovered=True),
        sub("f", 1, data={"text": "new"}),
    )
    async with running(server) as client:
        room = await client.join("r", joined=Said)
        assert room.join_data == Said("hello")
        await lose(server)
        assert room.join_data == Said("hello")
        await lose(server)
        assert room.join_data == Said("new")
        none = client.join("s")
        assert none.join_data is None


async def test_rewind_and_echo() -> None:
    server = FakeServer()
    answers(server, sub("e", 6, pub(5, info={"user": "u", "client": "c1"}), pub(6)))
    async with running(server) as client:
        room = await client.join("r", rewind=2, echo=False)
        assert server.wire.of("subscribe")[0].rewind == 2
        assert take(room) == [6]
        await lose(server)
        assert server.wire.of("subscribe")[0].rewind == 0


async def test_echo_knows_former_client_ids() -> None:
    server = FakeServer()
    answers(
        server, sub("e", 0), sub("e", 2, pub(1, info={"user": "u", "client": "c1"}), pub(2), recovered=True)
    )
    async with running(server) as client:
        room = await client.join("r", echo=False)
        await lose(server)
        assert take(room) == [2]


async def test_wrong_joins() -> None:
    server = FakeServer()
    async with running(server) as client:
        client.join("r")
        with pytest.raises(UsageError, match="joined already"):
            client.join("r")
        with pytest.raises(UsageError, match="rewind"):
            client.join("s", since=Position("e", 1), rewind=1)
        for name in ("", "\ud800", "a\n"):
            with pytest.raises(ValueError, match="room name"):
                client.join(name)
        with pytest.raises(ValueError, match="max_queue"):
            client.join("s", max_queue=0)
        with pytest.raises(DeclarationError):
            client.join("s", receives=int)
        assert client.statistics().rooms == 1


async def test_cancelling_a_join_takes_it_back() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: None
    async with running(server) as client:
        room = client.join("r")
        task = asyncio.create_task(room.__aenter__())
        await server.clock.settle()
        task.cancel()
        await server.clock.settle()
        assert client.statistics().rooms == 0
        assert server.wire.of("unsubscribe")
        again = client.join("r")
        server.wire.reply(server.wire.of("subscribe") and server.wire.commands[1], subscribe=sub("e", 9))
        await server.clock.settle()
        assert again.position is None, "that was the answer to the first"


async def test_leaving_waits_for_the_server_but_not_for_ever() -> None:
    server = FakeServer()
    server.on["unsubscribe"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r")
        leaving = asyncio.create_task(room.leave())
        await server.pass_(4)
        assert not leaving.done()
        await server.pass_(1)
        await leaving
        other = await client.join("s")
        leaving = asyncio.create_task(other.leave())
        await server.clock.settle()
        server.wire.cut()
        await leaving
        third = client.join("t")
        await third.leave()  # offline: nothing to wait for


# -- a slow application


def stream(server: FakeServer, top: int) -> None:
    """A room that recovers everything up to *top*."""

    def subscribe(body: Any) -> Any:
        if not body.recover:
            return sub("e", 0)
        return sub("e", top, *(pub(n) for n in range(body.offset + 1, top + 1)), recovered=True)

    server.on["subscribe"] = subscribe


async def test_a_full_queue_leaves_the_room_until_half_is_drained() -> None:
    server = FakeServer()
    stream(server, 10)
    async with running(server) as client:
        room, other = await client.join("r", max_queue=4), await client.join("o")
        for n in range(1, 11):
            server.wire.push(channel="r", pub=pub(n))
            server.wire.push(channel="o", pub=pub(n))
        await server.clock.settle()
        assert [b.channel for b in server.wire.of("unsubscribe")] == ["r"]
        assert room.statistics().queued == 4
        assert room.statistics().pauses == 1
        assert other.statistics().queued == 10, "other rooms are not disturbed"
        got: list[Any] = []
        async for message in room:
            assert not isinstance(message, Gap)
            got.append(message.data)
            await server.clock.settle()
            assert room.statistics().queued <= 4
            if got[-1] == 10:
                break
        assert got == list(range(1, 11))


async def test_sending_from_within_the_loop_does_not_deadlock_when_the_queue_is_full() -> None:
    server = FakeServer()
    stream(server, 10)
    async with running(server) as client:
        room = await client.join("r", max_queue=4)
        for n in range(1, 11):
            server.wire.push(channel="r", pub=pub(n))
        await server.clock.settle()
        assert not any(b.recover for b in server.wire.of("subscribe"))
        assert await room.send("a") is None
        assert len(server.wire.of("subscribe")) == 2
        assert not server.wire.of("subscribe")[1].recover, "in, but deaf"
        server.wire.push(channel="r", pub=pub(11))
        await server.clock.settle()
        got: list[Any] = []
        while len(got) < 10:
            got += take(room)
            await server.clock.settle()
        assert got == list(range(1, 11))
        assert server.wire.of("subscribe")[2].offset == 4


async def test_with_a_command_waiting_a_full_queue_does_not_leave() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 1, "burst": 3}}
    stream(server, 10)
    async with running(server) as client:
        room = await client.join("r", max_queue=2)
        sending = [asyncio.create_task(room.send(n)) for n in range(3)]
        await server.clock.settle()
        for n in range(1, 4):
            server.wire.push(channel="r", pub=pub(n))
        await server.clock.settle()
        assert server.wire.of("unsubscribe") == []
        await server.pass_(5)
        await asyncio.gather(*sending)


async def test_taken_out_while_deaf_with_a_command_waiting() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 1, "burst": 3}}
    stream(server, 10)
    async with running(server) as client:
        room = await client.join("r", max_queue=2)
        sending = [asyncio.create_task(room.send(n)) for n in range(3)]
        await server.clock.settle()
        for n in range(1, 4):
            server.wire.push(channel="r", pub=pub(n))
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "continuity lost"})
        await server.pass_(10)
        await asyncio.gather(*sending)
        assert [b.recover for b in server.wire.of("subscribe")] == [False, False]
        assert take(room) == [1, 2]
        await server.pass_(10)
        assert take(room)[:1] == [3]


async def test_losing_the_connection_with_a_full_queue() -> None:
    server = FakeServer()
    stream(server, 6)
    async with running(server) as client:
        room = await client.join("r", max_queue=2)
        for n in range(1, 4):
            server.wire.push(channel="r", pub=pub(n))
        await lose(server)
        assert server.wire.of("subscribe") == []
        sending = asyncio.create_task(room.send("x"))
        await server.clock.settle()
        assert await sending is None
        await lose(server)
        assert server.wire.of("subscribe") == []
        assert take(room) == [1, 2]
        await server.clock.settle()
        assert take(room) == [3, 4]
        await server.clock.settle()
        assert take(room) == [5, 6]


# -- rooms of the server's own


async def test_the_servers_own_rooms_gather_until_somebody_comes() -> None:
    server = FakeServer()
    server.hello["subs"] = {"user:ann": sub("e", 3, data={"text": "x"})}
    async with running(server) as client:
        server.wire.push(channel="user:ann", pub=pub(4))
        await server.clock.settle()
        room = await client.join("user:ann", joined=Said)
        assert room.join_data == Said("x")
        assert take(room) == [4]
        assert server.wire.of("subscribe") == []
        server.hello["subs"] = {"user:ann": sub("e", 6, pub(5), pub(6), recovered=True)}
        await lose(server)
        standing = server.wire.commands[0].connect.subs["user:ann"]  # type: ignore[union-attr]
        assert (standing.recover, standing.epoch, standing.offset) == (True, "e", 4)
        assert take(room) == [5, 6]


async def test_an_own_room_with_a_wish_is_joined_anew() -> None:
    server = FakeServer()
    server.hello["subs"] = {"u": sub("e", 3)}
    answers(server, sub("e", 3, pub(2), pub(3), recovered=True))
    async with running(server) as client:
        room = await client.join("u", since=Position("e", 1))
        await server.clock.settle()
        assert take(room) == [2, 3]
        assert server.wire.of("unsubscribe")


async def test_an_own_room_moved_while_connecting_is_not_taken_for_recovered() -> None:
    """H3: what the server recovers is where the room stood when connect was written."""
    server = FakeServer()
    server.hello["subs"] = {"u": sub("new", 3)}
    answers(server, sub("new", 3, was_recovering=True))
    async with running(server) as client:
        server.on["connect"] = lambda body: None
        await lose(server)
        [asked] = server.wire.of("connect")
        assert asked.subs["u"].epoch == "new"
        room = client.join("u", since=Position("old", 2))
        subs = {"u": sub("new", 3, recovered=True, was_recovering=True)}
        server.wire.reply(server.wire.last("connect"), connect={**server.hello, "subs": subs})
        await room.joined()
        await server.clock.settle()
        [asked] = server.wire.of("subscribe")
        assert (asked.recover, asked.epoch, asked.offset) == (True, "old", 2)
        [gap] = take(room)
        assert isinstance(gap, Gap)
        assert gap.epoch == "new"


async def test_a_room_joined_offline_that_the_server_puts_us_in() -> None:
    server = FakeServer()
    server.hello["subs"] = {"u": sub("e", 3)}
    async with running(server, wait=False) as client:
        room = client.join("u")
        await room
        assert server.wire.of("subscribe") == []
        assert room.position == Position("e", 3)


async def test_an_own_room_that_is_not_given_again() -> None:
    server = FakeServer()
    server.hello["subs"] = {"u": sub("e", 3), "v": sub("e", 3)}
    answers(server, sub("e", 4, pub(4), recovered=True))
    async with running(server) as client:
        room = await client.join("u")
        del server.hello["subs"]
        await lose(server)
        assert [b.channel for b in server.wire.of("subscribe")] == ["u"], (
            "held by the application: joined by us"
        )
        assert client.statistics().rooms == 1
        assert take(room) == [4]


async def test_put_into_a_room_later_and_out_again() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.push(channel="u", subscribe={"recoverable": True, "epoch": "e", "offset": 3})
        server.wire.push(channel="u", pub=pub(4))
        await server.clock.settle()
        room = await client.join("u")
        assert take(room) == [4]
        server.wire.push(channel="u", unsubscribe={"code": 2000, "reason": ""})
        await server.clock.settle()
        with pytest.raises(Unsubscribed):
            await anext(room)


async def test_an_own_room_nobody_reads_is_bounded() -> None:
    server = FakeServer()
    server.hello["subs"] = {"u": sub("e", 0)}
    stream(server, 1500)
    async with running(server) as client:
        for n in range(1, 1501):
            server.wire.push(channel="u", pub=pub(n))
        await server.clock.settle()
        assert [b.channel for b in server.wire.of("unsubscribe")] == ["u"]
        server.hello["subs"] = {"u": sub("e", 1500)}
        await lose(server)
        assert server.wire.commands[0].connect.subs == {}  # type: ignore[union-attr]
        room = await client.join("u")
        got: list[Any] = []
        while len(got) < 1500:
            got += take(room)
            await server.clock.settle()
        assert got == list(range(1, 1501))


async def test_an_own_room_that_was_full_with_a_wish() -> None:
    server = FakeServer()
    server.hello["subs"] = {"u": sub("e", 0)}
    stream(server, 1500)
    async with running(server) as client:
        for n in range(1, 1501):
            server.wire.push(channel="u", pub=pub(n))
        await server.clock.settle()
        room = await client.join("u", since=Position("e", 1490))
        await server.clock.settle()
        assert take(room) == list(range(1491, 1501))


async def test_former_client_ids_are_bounded() -> None:
    server = FakeServer()
    async with running(server) as client:
        rooms = client._engine.rooms  # pyright: ignore[reportPrivateUsage]
        for n in range(100):
            rooms.know_own(f"x{n}")
        assert len(rooms.own) == 64
        assert "x99" in rooms.own


# -- signals


async def test_signals() -> None:
    server = FakeServer()
    answers(server, {})
    async with running(server) as client:
        room = await client.join("r")
        everything, typed = room.signals(), room.signals(Said)
        server.wire.push(channel="r", signal={"event": "Said", "data": {"text": "a"}, "user": "ann"})
        server.wire.push(channel="r", signal={"event": "typing", "data": True})
        server.wire.push(channel="r", signal={"event": "Said", "data": {"text": 1}})
        await server.clock.settle()
        first = await anext(everything)
        assert (first.data, first.event, first.sender) == ({"text": "a"}, "Said", "ann")
        second = await anext(everything)
        assert (second.data, second.event, second.sender) == (True, "typing", None)
        one = await anext(typed)
        assert one.data == Said("a")
        assert typed.dropped == 1
        async with typed:
            pass
        with pytest.raises(StopAsyncIteration):
            await anext(typed)
        assert room.signal(Said("b"))
        assert room.signal({"x": 1}, name="cursor")
        assert room.signal({"x": 2}, name="cursor"), "only the newest is sent"
        await server.clock.settle()
        sent = [(b.event, bytes(b.data)) for b in server.wire.of("signal")]
        assert sent == [("Said", b'{"text":"b"}'), ("cursor", b'{"x":2}')]
        server.wire.cut()
        await server.clock.settle()
        assert not room.signal(Said("c"))
        await room.leave()
        for feed in (everything, room.signals()):
            while True:
                try:
                    await anext(feed)
                except StopAsyncIteration:
                    break
        assert "signals" in repr(everything)


async def test_a_signal_whose_type_fails_is_dropped_and_costs_nothing_else() -> None:
    server = FakeServer()
    answers(server, {})
    async with running(server) as client:
        room = await client.join("r")
        signals = room.signals(Colour)
        for n in (2, 1):
            server.wire.push(channel="r", signal={"event": "Colour", "data": {"number": n}})
        await server.clock.settle()
        assert (await anext(signals)).data == Colour(1)
        assert signals.dropped == 1
        assert client.state == "connected"
        assert server.wire.closed is None


async def test_signals_that_nobody_fetches_are_bounded() -> None:
    server = FakeServer()
    answers(server, {})
    async with running(server) as client:
        room = await client.join("r")
        feed = room.signals()
        for n in range(300):
            server.wire.push(channel="r", signal={"event": "n", "data": n})
        await server.clock.settle()
        assert feed.dropped == 44
        assert (await anext(feed)).data == 44


async def test_too_many_kinds_of_signals_at_once() -> None:
    server = FakeServer()
    server.hello["rt"] = {"v": 1, "limits": {"rate": 1, "burst": 3}}
    answers(server, {})
    async with running(server) as client:
        room = await client.join("r")
        taken = [room.signal(n, name=f"n{n}") for n in range(80)]
        assert taken.count(True) == 64


# -- history


async def test_history_pages() -> None:
    server = FakeServer()
    said = {"event": "Said", "data": {"text": "x"}}
    server.on["history"] = lambda body: {
        "publications": [pub(4, said), pub(5, {"event": "else", "data": 1})],
        "epoch": "e",
        "offset": 9,
    }
    async with running(server) as client:
        room = await client.join("r", receives=Said)
        page = await room.history(limit=2, since=Position("e", 3))
        assert [m.data for m in page.messages] == [Said("x")]
        assert page.messages[0].position == Position("e", 4)
        assert page.top == Position("e", 9)
        assert page.complete
        body = server.wire.of("history")[0]
        assert (body.limit, body.since.offset, body.since.epoch, body.reverse) == (2, 3, "e", False)
        assert not (await room.history(since=Position("e", 2))).complete
        assert not (await room.history(since=Position("d", 3))).complete
        assert (await room.history(since=Position("e", 5), reverse=True)).complete
        assert (await room.history()).complete
        server.on["history"] = lambda body: {"epoch": "e", "offset": 9}
        assert (await room.history(since=Position("e", 9))).complete
        assert not (await room.history(since=Position("e", 8))).complete
        assert (await room.history(since=Position("e", 1), reverse=True)).complete
        with pytest.raises(ValueError, match="limit"):
            await room.history(limit=-1)


async def test_history_is_asked_again_after_a_loss_and_may_time_out() -> None:
    server = FakeServer()
    server.on["history"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r")
        page = asyncio.create_task(room.history())
        await server.clock.settle()
        server.on["history"] = lambda body: {"epoch": "e", "offset": 1}
        await lose(server)
        assert (await page).top == Position("e", 1)
        server.on["history"] = lambda body: None
        page = asyncio.create_task(room.history(timeout=2))
        await server.pass_(2)
        with pytest.raises(TimeoutError):
            await page
