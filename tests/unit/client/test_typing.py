"""Typing: how often it is said, and when it ends, by itself or not (X1); signals at the pace of a room (D5)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from rtkit.client import RoomClient, Signal
from rtkit.client.signalqueue import SignalQueue
from rtkit.client.typingstate import TypingState
from rtkit.errors import ConnectionClosed, NotEnabled, NotRunning
from rtkit.wire import SignalBody
from tests.unit.client.fakes import Error, FakeServer, pub, running, sub

JSON = dict[str, Any]


def typing_room(server: FakeServer, **more: Any) -> None:
    server.on["subscribe"] = lambda body: {"typing": 5.0, **more}


def said(server: FakeServer) -> list[Any]:
    """What was said of typing on the latest connection."""
    return [json.loads(bytes(body.data)) for body in server.wire.of("signal") if body.event == "typing"]


async def types(server: FakeServer, client: str, data: bool | None = True) -> None:
    body: JSON = {"event": "typing", "user": client[:-1], "client": client}
    if data is not None:
        body["data"] = data
    server.wire.push(channel="r", signal=body)
    await server.clock.settle()


def told(feed: Any) -> list[Any]:
    out: list[Any] = []
    while True:
        step = anext(feed)
        try:
            step.send(None)
        except StopIteration as found:
            out.append(found.value)
        except (StopAsyncIteration, ConnectionClosed):
            return [*out, "end"]
        else:
            step.close()
            return out


# -- we ----------------------------------------------------------------------------------------------------


async def test_it_is_said_at_once_then_seldom_and_ends_by_itself() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        start = server.clock.monotonic()
        moments: list[tuple[float, bool]] = []
        server.on["signal"] = lambda body: moments.append(
            (round(server.clock.monotonic() - start, 1), json.loads(bytes(body.data)))
        )
        for _ in range(30):  # key strokes for six seconds
            room.typing()
            await server.pass_(0.2)
        await server.pass_(20)
        # The last stroke was at 5.8.
        assert moments == [(0.0, True), (2.5, True), (5.0, True), (7.5, True), (10.8, False)]


async def test_one_key_stroke_is_said_once() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        room.typing()
        await server.pass_(4.9)
        assert said(server) == [True]
        await server.pass_(0.1)
        assert said(server) == [True, False]
        await server.pass_(20)
        assert said(server) == [True, False]


async def test_it_can_be_ended() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        room.typing(False)
        await server.clock.settle()
        assert said(server) == []
        room.typing()
        room.typing(False)
        await server.clock.settle()
        assert said(server) == [], "what is over before it was said is not said"
        room.typing()
        await server.clock.settle()
        room.typing(False)
        await server.pass_(20)
        assert said(server) == [True, False]


async def test_a_message_ends_it_without_a_word() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        room.typing()
        await server.clock.settle()
        await room.send("hi")
        await server.pass_(20)
        assert said(server) == [True]
        room.typing()
        await server.clock.settle()
        assert said(server) == [True, True], "and may begin again at once"


async def test_it_is_said_again_after_an_interruption_if_it_goes_on() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        room.typing()
        await server.clock.settle()
        server.wire.cut()
        await server.clock.settle()
        await server.pass_(2)
        assert client.state == "connected"
        assert said(server) == [True]
        server.refuse = [OSError("away")] * 3
        server.wire.cut()
        await server.pass_(40)
        assert client.state == "connected"
        assert said(server) == [], "by then it is over"
        server.refuse = [OSError("away")]
        server.wire.cut()
        await server.clock.settle()
        room.typing()  # nobody can be told
        room.typing(False)
        await server.pass_(40)
        assert said(server) == []


async def test_before_the_room_is_joined_it_is_kept_and_a_room_without_says_so_then() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = client.join("r")
        room.typing()
        await room
        await server.clock.settle()
        assert said(server) == [True]
        server.on["subscribe"] = lambda body: {}
        plain = client.join("plain")
        plain.typing()
        await plain
        with pytest.raises(NotEnabled, match=r"typing=Typing\(\)"):
            plain.typing()
        await server.pass_(10)
        assert [body.channel for body in server.wire.of("signal")] == ["r", "r"]
        await room.leave()
        with pytest.raises(NotRunning):
            room.typing()
    with pytest.raises(ConnectionClosed):
        plain.typing()


async def test_who_may_not_is_not_heard_of_again_before_the_next_join() -> None:
    server = FakeServer()
    typing_room(server)

    def signal(body: Any) -> JSON:
        raise Error(103, "no")

    server.on["signal"] = signal
    async with running(server) as client:
        room = await client.join("r")
        for _ in range(20):
            room.typing()
            await server.pass_(1)
        assert said(server) == [True]
        server.wire.cut()
        await server.pass_(20)
        room.typing()
        await server.clock.settle()
        assert said(server) == [True]


# -- others ------------------------------------------------------------------------------------------------


async def test_others_type_until_they_say_no_or_nothing() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        changes = room.typing_changes()
        signals = room.signals()
        assert room.typists == ()
        await types(server, "bob1")
        assert told(changes) == [("bob",)]
        await server.pass_(3)
        await types(server, "ann1", None)
        assert told(changes) == [("bob", "ann")]
        await types(server, "bob1")
        assert told(changes) == [], "he had been"
        await server.pass_(4.9)
        assert room.typists == ("bob", "ann")
        await server.pass_(0.1)
        assert room.typists == ()  # ann three, bob five seconds after
        assert told(changes) == [()]
        await types(server, "bob1")
        await types(server, "bob1", False)
        assert told(changes) == [()], "the newest alone"
        assert told(signals) == [], "they are no signals for the application"


async def test_several_devices_of_a_user_are_one_user_and_our_own_others_count() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        assert client.client_id == "c1"
        server.wire.push(channel="r", signal={"event": "typing", "user": "me", "client": "c1", "data": True})
        await server.clock.settle()
        assert room.typists == ()
        for each in ("me2", "bob1", "bob2"):
            await types(server, each)
        assert room.typists == ("me", "bob")
        await types(server, "bob1", False)
        assert room.typists == ("me", "bob")
        await types(server, "bob2", False)
        assert room.typists == ("me",)


async def test_who_sends_a_message_or_leaves_has_stopped() -> None:
    server = FakeServer()
    typing_room(server, presence={"v": 0, "members": [{"user": "bob", "client": "bob1"}]})
    async with running(server) as client:
        room = await client.join("r", presence=True)
        await types(server, "bob1")
        await types(server, "ann1")
        info = {"user": "ann", "client": "ann1"}
        server.wire.push(channel="r", pub=pub(0, "x", info=info))
        await server.clock.settle()
        assert room.typists == ("bob",)
        server.wire.push(channel="r", presence={"v": 1, "leaves": [{"user": "bob", "client": "bob1"}]})
        await server.clock.settle()
        assert room.typists == ()


async def test_out_of_the_room_nobody_types() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        changes = room.typing_changes()
        await types(server, "bob1")
        assert told(changes) == [("bob",)]
        server.wire.cut()
        await server.clock.settle()
        assert room.typists == ()
        assert told(changes) == [()]
        await server.pass_(20)
        assert room.typists == ()
        await types(server, "bob1")
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "again"})
        await server.clock.settle()
        assert room.typists == ()
        await types(server, "bob1")
        await room.leave()
        assert room.typists == ()
        assert told(changes) == [(), "end"]
        assert told(room.typing_changes()) == ["end"]


async def test_a_deaf_room_hears_who_stops() -> None:
    server = FakeServer()
    typing_room(server, **sub("e", 0))
    async with running(server) as client:
        room = await client.join("r", max_queue=1)
        waiting = asyncio.create_task(room.send("y"))
        room._core.engine.outbox.shut("r")  # it waits for its turn
        await server.clock.settle()
        await types(server, "ann1")
        await types(server, "bob1")
        for offset in (1, 2, 3):
            info = {"user": "ann", "client": "ann1"} if offset == 3 else {"user": "eve", "client": "eve1"}
            server.wire.push(channel="r", pub=pub(offset, info=info))
        await server.clock.settle()
        assert room._membership.state.phase == "muted"
        assert room.typists == ("bob",)
        await server.pass_(6)
        assert room.typists == ()
        waiting.cancel()
        await server.clock.settle()


async def test_nobody_remembers_a_crowd_and_nonsense_is_nothing() -> None:
    server = FakeServer()
    typing_room(server)
    async with running(server) as client:
        room = await client.join("r")
        for data in (1, "true", None, {"a": 1}):
            signal = {"event": "typing", "user": "bob", "client": "b", "data": data}
            server.wire.push(channel="r", signal=signal)
        server.wire.push(channel="r", signal={"event": "typing", "data": True})
        await server.clock.settle()
        assert room.typists == ()
        for n in range(1500):
            server.wire.push(channel="r", signal={"event": "typing", "user": f"u{n}", "client": f"c{n}x"})
        await server.clock.settle()
        assert len(room.typists) == 1000


async def test_in_rooms_without_typing_it_is_a_signal_like_any_other() -> None:
    server = FakeServer()
    async with running(server) as client:
        room = await client.join("r")
        signals = room.signals()
        await types(server, "bob1")
        assert told(signals) == [Signal(True, "typing", "bob", "bob1")]
        assert room.typists == ()
        assert room.signal({"x": 1}, name="typing")
        await server.clock.settle()
        assert said(server) == [{"x": 1}]


@given(
    st.lists(
        st.tuples(st.sampled_from(["type", "type", "stop", "send", "join"]), st.floats(0, 7)), max_size=40
    )
)
def test_who_listens_knows_whether_we_type(steps: list[tuple[str, float]]) -> None:
    """A receiver that forgets after the time, and is told by the server of messages and losses, is never far off."""
    we, they = TypingState(), TypingState()
    we.joined(5.0)
    they.joined(5.0)
    now, last = 0.0, -100.0  # last: when it was last true that we type

    def run_to(until: float) -> None:
        nonlocal now
        while True:
            when = max(now, min(we.next_at(), they.next_at()))
            if when > until:
                break
            now = when
            they.tick(now)
            word = we.say(now)
            if word is not None:
                they.heard("we", "w", Raw(b"true" if word else b"false"), now)
        now = until

    for name, pause in steps:
        if name == "type":
            we.called(True, now)
            last = now
        else:
            last = -100.0
            if name == "stop":
                we.called(False, now)
            elif name == "send":
                we.sent()
                they.stopped("w")
            else:
                we.called(False, now)
                we.joined(5.0)
                they.stopped("w")
        run_to(now)
        typing = they.users(now) == ("we",)
        assert typing == (last == now)
        run_to(now + pause)
        if now < last + 5.0:
            assert they.users(now) == ("we",), "it goes on"
        elif now > last + 5.0:
            assert they.users(now) == (), "it is over"
    run_to(now + 20)
    assert they.users(now) == ()
    assert (we.next_at(), they.next_at()) == (float("inf"), float("inf"))


# -- signals ---------------------------------------------------------------------------------------------------


def sent(server: FakeServer) -> list[Any]:
    return [(body.event, json.loads(bytes(body.data))) for body in server.wire.of("signal")]


async def test_signals_keep_to_the_pace_of_the_room_and_the_newest_wins() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: {"signals": 4.0}
    async with running(server) as client:
        room = await client.join("r")
        for n in range(10):
            assert room.signal(n, name="at")
            assert room.signal(n, name="other")
            await server.pass_(0.05)
        # At 0, 0.25 and 0.5; the one at 0.25 is what there was by then.
        await server.pass_(1)
        assert [n for event, n in sent(server) if event == "at"] == [0, 5, 9]
        assert [n for event, n in sent(server) if event == "other"] == [0, 5, 9]
        assert room.signal(11, name="at")
        await server.clock.settle()
        assert sent(server)[-1] == ("at", 11)


async def test_a_signal_that_waits_is_forgotten_when_the_room_is_left_or_lost() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: {"signals": 1.0}
    async with running(server) as client:
        room = await client.join("r")
        room.signal(1, name="at")
        await server.clock.settle()
        room.signal(2, name="at")
        await room.leave()
        again = await client.join("r")
        await server.pass_(5)
        assert sent(server) == [("at", 1)]
        again.signal(3, name="at")
        await server.clock.settle()
        again.signal(4, name="at")
        server.wire.cut()
        await server.pass_(20)
        assert sent(server) == []


async def test_without_a_pace_signals_go_at_once() -> None:
    server = FakeServer()
    async with running(server) as client:
        room: RoomClient[Any] = await client.join("r")
        for n in range(5):
            assert room.signal(n, name="at")
            await server.clock.settle()
        assert [n for _, n in sent(server)] == [0, 1, 2, 3, 4]


def test_what_is_remembered_of_the_pace_is_bounded() -> None:
    queue = SignalQueue()
    for n in range(64):
        assert queue.put(SignalBody("r", f"e{n}", Raw(b"1")), 1.0)
    assert not queue.put(SignalBody("r", "one more", Raw(b"1")), 1.0)
    assert queue.put(SignalBody("r", "e3", Raw(b"2")), 1.0)
    queue.forget("other")
    assert len(queue) == 64
    queue.forget("r")
    assert len(queue) == 0
    for n in range(1000):
        assert queue.put(SignalBody("r", f"e{n}", Raw(b"1")), 1.0)
        queue.take(n / 10)
    assert len(queue._free_at) <= 66
    assert repr(queue) == "<SignalQueue 0 waiting>"
