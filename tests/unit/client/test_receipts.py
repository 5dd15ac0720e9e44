"""How far users have come: what is told, what is said and how often, epochs, pages, interruptions (X2)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.client import Marks, MarksChange, Message, Position
from rtkit.client.receiptstate import MAX_USERS, ReceiptState
from rtkit.errors import CallError, ConnectionClosed, NotRunning, UsageError
from rtkit.wire import MarksBody
from tests.unit.client.fakes import Error, FakeServer, pub, running, sub, take

JSON = dict[str, Any]


def told(feed: Any) -> list[Any]:
    """What waits in a feed of changes: by user the offsets of both kinds; a whole one in a list."""
    out: list[Any] = []
    while True:
        step = anext(feed)
        try:
            step.send(None)
        except StopIteration as found:
            change: MarksChange = found.value
            plain = offsets(change.marks)
            out.append([plain] if change.whole else plain)
        except (StopAsyncIteration, ConnectionClosed):
            return [*out, "end"]
        else:
            step.close()
            return out


def offsets(marks: Any) -> dict[str, tuple[int | None, int | None]]:
    return {
        user: (each.delivered and each.delivered.offset, each.read and each.read.offset)
        for user, each in marks.items()
    }


def whole(epoch: str = "e", /, *, more: bool = False, user: str = "me", **read: int) -> JSON:
    body: JSON = {"epoch": epoch, "whole": True, "read": read, "user": user}
    if more:
        body["more"] = True
    return body


def answers(server: FakeServer, *results: JSON) -> None:
    left = list(results)
    server.on["subscribe"] = lambda body: left.pop(0) if len(left) > 1 else left[0]


async def say(server: FakeServer, **body: Any) -> None:
    server.wire.push(channel="r", marks={"epoch": "e", **body})
    await server.clock.settle()


def said(server: FakeServer) -> list[tuple[str, str, int]]:
    return [(mark.kind, mark.epoch, mark.offset) for mark in server.wire.of("mark")]


async def publish(server: FakeServer, *offsets: int) -> None:
    for offset in offsets:
        server.wire.push(channel="r", pub=pub(offset))
    await server.clock.settle()


# -- what is told --------------------------------------------------------------------------------------


async def test_marks_are_told_whole_and_then_as_they_change() -> None:
    server = FakeServer()
    body = {"epoch": "e", "whole": True, "delivered": {"ann": 4, "bob": 2}, "read": {"ann": 3}, "user": "me"}
    answers(server, sub("e", 4, marks=body))
    async with running(server) as client:
        room = client.join("r", receipts=True)
        receipts, changes = room.receipts, room.receipts.changes()
        assert not receipts.complete
        assert receipts.marks == {}
        await room
        assert server.wire.of("subscribe")[0].marks
        assert receipts.complete
        before = receipts.marks
        assert before == {
            "ann": Marks(Position("e", 4), Position("e", 3)),
            "bob": Marks(Position("e", 2), None),
        }
        await say(server, read={"bob": 4})
        await say(server, delivered={"ann": 4}, read={"bob": 3})  # known, or less: nothing
        await say(server, delivered={"ann": 6, "cat": 1})
        assert told(changes) == [
            [{"ann": (4, 3), "bob": (2, None)}],
            {"bob": (4, 4)},
            {"ann": (6, 3), "cat": (1, None)},
        ]
        assert offsets(before) == {"ann": (4, 3), "bob": (2, None)}, "what was handed out does not change"
        assert receipts.reached(Position("e", 4)) == ["bob"]
        assert receipts.reached(Position("e", 3)) == ["ann", "bob"]
        assert receipts.reached(Position("e", 4), "delivered") == ["ann", "bob"]
        assert receipts.reached(Message("x", Position("e", 0), None, 0.0), "delivered") == [
            "ann",
            "bob",
            "cat",
        ]
        assert receipts.reached(Position("elsewhere", 1)) == []
        with pytest.raises(UsageError, match="no history"):
            receipts.reached(Message("x", None, None, 0.0))
        with pytest.raises(UsageError, match="delivered"):
            receipts.reached(Position("e", 1), "seen")  # type: ignore[arg-type]
        assert "3 users" in repr(receipts)


async def test_without_being_asked_for_there_are_none() -> None:
    server = FakeServer()
    answers(server, sub("e", 4))
    async with running(server) as client:
        room = await client.join("r")
        with pytest.raises(UsageError, match="receipts=True"):
            _ = room.receipts
        await say(server, read={"ann": 1})
        await publish(server, 5)
        assert take(room) == [5]
        await server.pass_(5)
        assert said(server) == []
        assert not server.wire.of("subscribe")[0].marks


async def test_after_an_interruption_only_the_difference_is_told() -> None:
    server = FakeServer()
    answers(
        server,
        sub("e", 4, marks=whole(ann=1, bob=2)),
        sub("e", 4, recovered=True, marks=whole(ann=1, bob=3)),
        sub("e", 4, recovered=True, marks=whole(ann=1)),
    )
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        changes = room.receipts.changes()
        assert room.receipts.current
        server.wire.cut()
        await server.clock.settle()
        assert not room.receipts.current
        assert room.receipts.reached(Position("e", 2)) == ["bob"]
        await server.pass_(20)
        assert told(changes) == [{"bob": (3, 3)}]
        server.wire.cut()
        await server.pass_(20)
        assert told(changes) == [[{"ann": (1, 1)}]]  # somebody's are gone


async def test_a_new_epoch_replaces_everything() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole(ann=1, me=2)))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        changes = room.receipts.changes()
        assert room.receipts.unread == 2
        server.wire.push(channel="r", gap={"from": 0, "to": 3, "epoch": "f", "reason": "epoch"})
        await server.clock.settle()
        assert room.receipts.unread == 3
        await say(server, epoch="f", whole=True)
        assert told(changes) == [[{}]]
        assert room.receipts.unread == 3
        await say(server, epoch="f", read={"ann": 2})
        assert room.receipts.reached(Position("f", 2)) == ["ann"]


async def test_a_change_of_another_epoch_shows_that_something_was_missed() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole(ann=1)))
    server.on["marks"] = lambda body: {"epoch": "f", "read": {"cat": 7}}
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        changes = room.receipts.changes()
        await say(server, epoch="f", read={"bob": 1})
        assert told(changes) == []
        assert not room.receipts.complete
        await server.pass_(2)
        assert [body.after for body in server.wire.of("marks")] == [""]
        assert told(changes) == [[{"cat": (7, 7)}]]
        # If the server says it by itself, nothing is asked.
        await say(server, epoch="g", read={"bob": 1})
        await say(server, epoch="g", read={"bob": 2}, whole=True)
        await server.pass_(10)
        assert len(server.wire.of("marks")) == 1
        assert offsets(room.receipts.marks) == {"bob": (2, 2)}


async def test_positions_of_an_epoch_that_was_taken_over_are_the_same_places() -> None:
    server = FakeServer()
    answers(server, sub("e", 5, pub(4), pub(5), marks=whole(ann=4, bob=5)))
    async with running(server) as client:
        room = await client.join("r", receipts=True, rewind=2)
        message = await anext(room)
        assert isinstance(message, Message)
        assert message.position == Position("e", 4)
        server.wire.push(channel="r", position={"epoch": "f", "offset": 5})
        await server.clock.settle()
        assert room.receipts.reached(message) == ["ann", "bob"], "the marks are of the old epoch still"
        assert room.receipts.reached(Position("f", 5)) == ["bob"]
        await say(server, epoch="f", whole=True, read={"ann": 5, "bob": 6})
        assert room.receipts.reached(message) == ["ann", "bob"]
        assert room.receipts.reached(Position("e", 6)) == [], "that was never in this stream"
        await publish(server, 6)
        server.wire.push(channel="r", position={"epoch": "g", "offset": 6})
        await say(server, epoch="g", whole=True, read={"ann": 5, "bob": 6})
        assert room.receipts.reached(Position("e", 5)) == ["ann", "bob"]
        assert room.receipts.reached(Position("f", 6)) == ["bob"]
        assert room.receipts.reached(Position("e", 6)) == []


# -- pages -------------------------------------------------------------------------------------------------


async def test_the_others_are_asked_for_page_by_page() -> None:
    server = FakeServer()
    users = {f"u{n:03}": n for n in range(500)}
    first = dict(list(users.items())[:200]) | {"zoe": 9}
    answers(server, sub("e", 4, marks=whole(more=True, user="zoe", **first)))

    def page(body: Any) -> JSON:
        behind = [(user, at) for user, at in users.items() if user > body.after]
        return {"epoch": "e", "read": dict(behind[:200]), "more": len(behind) > 200}

    server.on["marks"] = page
    async with running(server) as client:
        room = client.join("r", receipts=True)
        changes = room.receipts.changes()
        await room
        await server.clock.settle()
        assert [body.after for body in server.wire.of("marks")] == ["u199", "u399"]
        assert room.receipts.complete
        assert {user: at for user, (_, at) in offsets(room.receipts.marks).items()} == users | {"zoe": 9}
        found = told(changes)
        assert [len(found[0][0]), len(found[1]), len(found[2])] == [201, 200, 100]


async def test_a_rejoin_with_pages_does_not_flicker_and_forgets_who_is_gone() -> None:
    server = FakeServer()
    answers(
        server,
        sub("e", 4, marks=whole(a=1, b=2, c=3, d=4)),
        sub("e", 4, recovered=True, marks=whole(more=True, a=1, b=2)),
    )
    server.on["marks"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        changes = room.receipts.changes()
        server.wire.cut()
        await server.pass_(20)
        assert told(changes) == []
        assert list(room.receipts.marks) == ["a", "b", "c", "d"]
        assert not room.receipts.complete
        command = server.wire.last("marks")
        assert command.marks is not None
        assert command.marks.after == "b"
        server.wire.reply(command, marks={"epoch": "e", "read": {"c": 5}})
        await server.clock.settle()
        assert told(changes) == [[{"a": (1, 1), "b": (2, 2), "c": (5, 5)}]]
        assert room.receipts.complete


async def test_a_page_that_fails_is_asked_for_again_unless_that_is_pointless() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole(more=True, a=1)))
    outcomes: list[Any] = [Error(100, "later", temporary=True, retry_after=3), Error(103, "no")]

    def page(body: Any) -> JSON:
        raise outcomes.pop(0)

    server.on["marks"] = page
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await server.pass_(2)
        assert len(server.wire.of("marks")) == 1
        await server.pass_(2)
        assert len(server.wire.of("marks")) == 2
        await server.pass_(20)
        assert len(server.wire.of("marks")) == 2
        assert not room.receipts.complete


async def test_a_server_that_goes_round_in_circles_is_not_followed() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole(more=True, a=1, b=1)))
    server.on["marks"] = lambda body: {"epoch": "e", "read": {"b": 1}, "more": True}
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await server.pass_(20)
        assert len(server.wire.of("marks")) == 1
        assert not room.receipts.complete


async def test_a_page_that_was_asked_for_before_everything_was_replaced_does_not_count() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole(more=True, a=1)))
    server.on["marks"] = lambda body: None
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        command = server.wire.last("marks")
        await say(server, epoch="f", whole=True, read={"x": 1})
        server.wire.reply(command, marks={"epoch": "e", "read": {"b": 1}, "more": True})
        await server.pass_(5)
        assert list(room.receipts.marks) == ["x"]
        assert room.receipts.complete
        assert len(server.wire.of("marks")) == 1


def test_while_our_name_is_unknown_no_user_is_passed_over() -> None:
    state = ReceiptState("r")
    state.joined(MarksBody("e", {}, {"a": 1, "b": 1, "zoe": 1}, whole=True, more=True))
    assert state.ask(0.0) == ("b", 1), "zoe may be we, and out of order"


def test_an_old_epoch_is_only_as_good_as_the_weakest_link() -> None:
    state = ReceiptState("r")
    state.stands("e")
    state.carried("e", "f", 9)
    state.carried("f", "g", 5)
    state.carried("g", "h", 7)
    state.joined(MarksBody("h", {}, {"ann": 9}, whole=True))
    assert [bool(state.reached(Position("e", n), "read")) for n in (5, 6)] == [True, False]
    assert [bool(state.reached(Position("g", n), "read")) for n in (7, 8)] == [True, False]
    state.stands("i")
    assert state.reached(Position("g", 1), "read") == []
    for n in range(100):
        state.carried(f"i{n or ''}", f"i{n + 1}", 1)
    assert len(state._carried) <= 17


async def test_unread_counts_on_in_a_deaf_room() -> None:
    server = FakeServer()
    answers(server, sub("e", 0, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True, max_queue=1)
        waiting = asyncio.create_task(room.send("y"))
        room._core.engine.outbox.shut("r")  # it waits for its turn
        await server.clock.settle()
        await publish(server, 1, 2, 3)
        assert room._membership.state.phase == "muted"
        assert room.receipts.unread == 3
        server.wire.push(channel="r", gap={"from": 3, "to": 5, "epoch": "e", "reason": "trimmed"})
        await server.clock.settle()
        assert room.receipts.unread == 5
        server.wire.push(channel="r", position={"epoch": "f", "offset": 6})
        await server.clock.settle()
        assert room.receipts.unread == 6
        await say(server, read={"ann": 2}, delivered={"me": 1})
        assert room.receipts.reached(Position("e", 2)) == ["ann"]
        waiting.cancel()
        await server.clock.settle()


def test_more_users_than_are_kept() -> None:
    state = ReceiptState("r")
    first = {f"u{n:06}": 1 for n in range(200)}
    change = state.joined(MarksBody("e", {}, first | {"zoe": 3}, whole=True, more=True, user="zoe"))
    assert change is not None
    pages = 0
    while (asked := state.ask(0.0)) is not None:
        after, generation = asked
        start = int(after[1:]) + 1
        pages += 1
        read = {f"u{n:06}": 1 for n in range(start, start + 200)}
        state.page(MarksBody("e", {}, read, more=True), generation, 0.0)
    assert len(state.marks) == MAX_USERS
    assert not state.complete
    assert pages == 49
    state.pushed(MarksBody("e", {}, {"new": 5, "u000001": 7, "zoe": 8}), 0.0)
    assert len(state.marks) == MAX_USERS
    assert state.reached(Position("e", 7), "read") == ["u000001", "zoe"]


# -- what is said ------------------------------------------------------------------------------------------


async def test_what_iterating_hands_out_is_delivered_at_most_once_a_second() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await server.pass_(3)
        assert said(server) == [], "nothing was handed out"
        await publish(server, 5, 6, 7, 8)
        assert said(server) == []
        await anext(room)
        await server.clock.settle()
        assert said(server) == [("delivered", "e", 5)]
        await anext(room)
        await anext(room)
        await server.pass_(0.9)
        assert len(said(server)) == 1
        await server.pass_(0.1)
        assert said(server)[1:] == [("delivered", "e", 7)]
        await server.pass_(30)
        assert len(said(server)) == 2
        await anext(room)
        await server.clock.settle()
        assert said(server)[2:] == [("delivered", "e", 8)]


async def test_read_is_told_at_once_and_then_once_a_second_and_means_delivered_too() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await publish(server, 5, 6, 7)
        first = await anext(room)
        room.receipts.read()
        await server.clock.settle()
        assert said(server) == [("read", "e", 5)]
        second, third = await anext(room), await anext(room)
        assert isinstance(first, Message)
        assert isinstance(second, Message)
        assert isinstance(third, Message)
        room.receipts.read(second)
        room.receipts.read(third)
        room.receipts.read(first)  # not backwards
        await server.pass_(0.5)
        assert len(said(server)) == 1
        await server.pass_(0.5)
        assert said(server)[1:] == [("read", "e", 7)]
        room.receipts.read(Position("e", 6))
        room.receipts.read()
        await server.pass_(10)
        assert len(said(server)) == 2
        with pytest.raises(UsageError):
            room.receipts.read(Message("x", None, None, 0.0))


async def test_marks_that_another_device_has_set_are_not_said_again() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await publish(server, 5, 6)
        await say(server, read={"me": 6})
        assert take(room) == [5, 6]
        room.receipts.read()
        await server.pass_(5)
        assert said(server) == []
        assert room.receipts.unread == 0


async def test_unread_counts_to_the_newest_that_is_known_also_beyond_the_queue() -> None:
    server = FakeServer()
    answers(server, sub("e", 10, marks=whole(me=7)), sub("e", 12, pub(12), recovered=True, marks=whole(me=7)))
    async with running(server) as client:
        room = client.join("r", receipts=True, max_queue=1)
        assert room.receipts.unread == 0
        await room
        assert room.receipts.unread == 3
        await publish(server, 11, 12)
        assert room._membership.state.phase == "paused"
        assert room.receipts.unread == 5
        room.receipts.read(Position("e", 11))
        assert room.receipts.unread == 1
        room.receipts.read(Position("e", 99))
        assert room.receipts.unread == 0
        room.receipts.read(Position("other", 3))  # of another stream: nothing
        assert room.receipts.unread == 0


async def test_a_mark_that_was_lost_is_said_again_after_the_next_join() -> None:
    server = FakeServer()
    answers(
        server, sub("e", 4, marks=whole()), *[sub("e", 6, recovered=True, marks=whole(me=n)) for n in (2, 6)]
    )
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await publish(server, 5, 6)
        assert take(room) == [5, 6]
        server.on["mark"] = lambda body: None
        room.receipts.read()
        await server.clock.settle()
        assert said(server) == [("read", "e", 6)]
        server.wire.cut()
        await server.pass_(20)
        assert said(server) == [("read", "e", 6)]
        server.wire.cut()
        await server.pass_(20)
        assert said(server) == []


async def test_what_is_marked_without_a_connection_is_said_with_it() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()), sub("e", 6, recovered=True, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await publish(server, 5, 6)
        server.refuse = [OSError("away")]
        server.wire.cut()
        await server.clock.settle()
        assert take(room) == [5, 6]
        room.receipts.read(Position("e", 5))
        await server.pass_(30)
        assert sorted(said(server)) == [("delivered", "e", 6), ("read", "e", 5)]


async def test_marks_go_over_into_the_epoch_that_took_over_and_others_are_dropped() -> None:
    server = FakeServer()
    answers(server, sub("e", 5, pub(5), marks=whole()), sub("f", 5, recovered=True, marks=whole("f")))
    async with running(server) as client:
        room = await client.join("r", receipts=True, rewind=1)
        server.wire.cut()
        await server.clock.settle()
        assert take(room) == [5]
        room.receipts.read()
        await server.pass_(20)
        assert said(server) == [("read", "e", 5)], "the server knows up to where the old epoch is the new one"
        await say(server, epoch="f", read={"ann": 5})
        assert room.receipts.reached(Position("e", 5)) == ["ann"]
        server.wire.push(channel="r", gap={"from": 0, "to": 3, "epoch": "g", "reason": "epoch"})
        server.wire.push(channel="r", marks={"epoch": "g", "whole": True})
        await server.clock.settle()
        room.receipts.read(Position("f", 5))
        await server.pass_(5)
        assert len(said(server)) == 1
        assert len(take(room)) == 1  # the gap
        await server.pass_(1)
        assert said(server)[1:] == [("delivered", "g", 3)]


async def test_a_mark_of_an_epoch_that_ends_before_it_is_said_is_not_said() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        room.receipts.read(Position("e", 3))
        await server.clock.settle()
        room.receipts.read(Position("e", 4))
        server.wire.push(channel="r", gap={"from": 0, "to": 1, "epoch": "f", "reason": "epoch"})
        await server.pass_(5)
        assert said(server) == [("read", "e", 3)]
        room.receipts.read(Position("f", 1))
        await server.clock.settle()
        assert said(server)[1:] == [("read", "f", 1)]


async def test_a_mark_that_the_server_took_and_lost_is_said_again() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()), sub("e", 4, recovered=True, marks=whole(me=1)))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        room.receipts.read(Position("e", 4))
        await server.pass_(2)
        assert said(server) == [("read", "e", 4)]
        server.wire.cut()
        await server.pass_(20)
        assert said(server) == [("read", "e", 4)]


@pytest.mark.parametrize(
    ("error", "again"),
    [(Error(111, "slow", temporary=True, retry_after=4), 4.0), (Error(107, "beyond"), None)],
)
async def test_a_mark_that_is_refused(error: Error, again: float | None) -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    refusals = [error]

    def mark(body: Any) -> JSON:
        if refusals:
            raise refusals.pop()
        return {}

    server.on["mark"] = mark
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        room.receipts.read(Position("e", 4))
        await server.pass_(3.9)
        assert len(said(server)) == 1
        await server.pass_(30)
        assert len(said(server)) == (1 if again is None else 2)


@pytest.mark.parametrize("by", ["leaving", "closing"])
async def test_what_waits_is_said_before_we_go(by: str) -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        await publish(server, 5, 6, 7)
        await anext(room)
        await server.clock.settle()
        await anext(room)
        room.receipts.read(Position("e", 5))
        await anext(room)
        if by == "leaving":
            await room.leave()
            with pytest.raises(NotRunning):
                room.receipts.read()
        else:
            await client.aclose()
            with pytest.raises(ConnectionClosed):
                room.receipts.read()
        marks = [n for n, command in enumerate(server.wire.commands) if command.mark is not None]
        end = [
            n for n, c in enumerate(server.wire.commands) if c.unsubscribe is not None or c.bye is not None
        ]
        assert said(server) == [("delivered", "e", 5), ("read", "e", 5), ("delivered", "e", 7)]
        assert marks[-1] < end[0]


async def test_who_closes_with_very_much_to_say_says_what_the_rate_allows() -> None:
    server = FakeServer()
    server.hello = {**server.hello, "rt": {"v": 1, "limits": {"rate": 10, "burst": 20}}}
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        rooms = [client.join(f"r{n}", receipts=True) for n in range(40)]
        await server.pass_(20)
        for room in rooms:
            room.receipts.read(Position("e", 4))
        await client.aclose()
        assert 5 <= len(said(server)) <= 20
        assert server.wire.commands[-1].bye is not None


async def test_changes_end_with_the_room_and_a_slow_reader_gets_the_whole() -> None:
    server = FakeServer()
    answers(server, sub("e", 4, marks=whole()))
    async with running(server) as client:
        room = await client.join("r", receipts=True)
        changes = room.receipts.changes()
        for n in range(1, 260):
            server.wire.push(channel="r", marks={"epoch": "e", "read": {f"u{n}": n}})
        await server.clock.settle()
        found = told(changes)
        assert len(found) == 3
        assert len(found[0][0]) == 257
        await room.leave()
        assert told(changes) == ["end"]
        assert told(room.receipts.changes()) == ["end"]


async def test_a_room_without_receipts_refuses() -> None:
    server = FakeServer()

    def subscribe(body: Any) -> JSON:
        raise Error(108, "this room has no receipts")

    server.on["subscribe"] = subscribe
    async with running(server) as client:
        with pytest.raises(CallError, match="no receipts"):
            await client.join("r", receipts=True)


# -- the whole of it -------------------------------------------------------------------------------------------


class Truth:
    """A server's marks, in pages of two, with changes lost on the way; and what a client makes of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.epoch = 0
        self.marks: dict[str, tuple[int, int | None]] = {}
        self.client = ReceiptState("r")
        self.mirror: dict[str, Any] = {}
        self.requests: list[tuple[str, int]] = []
        self.now = 0.0
        self.join()

    def page(self, after: str | None) -> MarksBody:
        users = sorted(user for user in self.marks if after is None or user > after)
        listed = users[:2]
        body = MarksBody(f"e{self.epoch}", more=len(users) > 2)
        if after is None:
            body.whole = True
            if "m" in self.marks and "m" not in listed:
                listed.append("m")
        for user in listed:
            delivered, read = self.marks[user]
            body.delivered[user] = delivered
            if read is not None:
                body.read[user] = read
        return body

    def told(self, change: MarksChange | None) -> None:
        if change is not None:
            if change.whole:
                self.mirror.clear()
            self.mirror.update(change.marks)

    def join(self) -> None:
        body = self.page(None)
        body.user = "m"
        self.requests.clear()
        self.told(self.client.joined(body))

    def answer(self) -> bool:
        if (asked := self.client.ask(self.now)) is not None:
            self.requests.append(asked)
        if not self.requests:
            return False
        after, generation = self.requests.pop(0)
        self.told(
            self.client.page(
                self.page(after or None) if after == "" else self.page(after), generation, self.now
            )
        )
        return True

    def step(self, name: str, user: str) -> None:
        self.now += 0.4
        if name == "join":
            self.join()
        elif name == "answer":
            self.answer()
        elif name == "epoch":
            self.epoch += 1
            self.marks = {u: (d, r) for u, (d, r) in self.marks.items() if self.chance.random() < 0.5}
            if self.chance.random() < 0.7:
                self.told(self.client.pushed(self.page(None), self.now))
        else:
            delivered, read = self.marks.get(user, (0, None))
            delivered += 1
            if name == "read":
                read = delivered
            self.marks[user] = (delivered, read)
            body = MarksBody(f"e{self.epoch}", {user: delivered}, {user: read} if read is not None else {})
            self.told(self.client.pushed(body, self.now))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["delivered", "read", "delivered", "read", "answer", "answer", "epoch", "join"]),
            st.sampled_from("abcmxyz"),
        ),
        max_size=60,
    ),
    st.integers(0, 9),
)
def test_in_the_end_every_mark_is_known(steps: list[tuple[str, str]], seed: int) -> None:
    truth = Truth(random.Random(seed))
    for name, user in [*steps, ("read", "a")]:
        truth.step(name, user)
    for _ in range(100):
        truth.now += 1
        if not truth.answer():
            break
    else:
        raise AssertionError("it asks for ever")
    assert truth.client.complete
    assert offsets(truth.client.marks) == truth.marks
    assert truth.mirror == truth.client.marks
