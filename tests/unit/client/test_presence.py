"""Who is in a room: snapshots, changes, holes, interruptions, and what the client says about itself (P1-P4, C3)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from rtkit.client import Member, PresenceChange, RoomClient
from rtkit.client.presencestate import PresenceState
from rtkit.errors import CallError, ConnectionClosed, InvalidMessage, NotRunning, UsageError
from rtkit.wire import PresenceBody, PresentBody
from tests.unit.client.fakes import Error, FakeServer, pub, running, sub, take

JSON = dict[str, Any]


def here(*clients: str, **metas: JSON) -> list[JSON]:
    """Members: ``ann1`` is a client of ann's."""
    return [
        {"user": each[:-1], "client": each, **({"meta": metas[each]} if each in metas else {})}
        for each in clients
    ]


def names(members: Any) -> str:
    return " ".join(member.client for member in members)


def told(feed: Any) -> list[str]:
    """What waits in a feed of changes: ``+joins -leaves ~updates``, with ``!`` in front of a whole one."""
    out: list[str] = []
    while True:
        step = anext(feed)
        try:
            step.send(None)
        except StopIteration as found:
            change: PresenceChange = found.value
            parts = [("+", change.joins), ("-", change.leaves), ("~", change.updates)]
            text = " ".join(sign + names(members) for sign, members in parts if members)
            out.append(("!" if change.whole else "") + text)
        except (StopAsyncIteration, ConnectionClosed):
            return [*out, "end"]
        else:
            step.close()
            return out


def giving(server: FakeServer, *, resumed: bool) -> None:
    """Give tokens, and take them."""

    def connect(body: Any) -> JSON:
        rt: JSON = {"v": 1, "resume": "token"}
        took = bool(body.rt.resume) and resumed
        if took:
            rt["resumed"] = True
        return {**server.hello, "client": "c" if took else f"c{len(server.wires)}", "rt": rt}

    server.on["connect"] = connect


def listing(server: FakeServer, *snapshots: list[JSON], v: int = 0, **more: Any) -> None:
    """Joins are answered with these, one after another; the last for ever."""
    left = list(snapshots)

    def subscribe(body: Any) -> JSON:
        assert body.presence
        members = left.pop(0) if len(left) > 1 else left[0]
        return {"presence": {"v": v, "members": members}, **more}

    server.on["subscribe"] = subscribe


async def change(server: FakeServer, v: int, **what: list[JSON]) -> None:
    server.wire.push(channel="r", presence={"v": v, **what})
    await server.clock.settle()


async def joined(client: Any, **options: Any) -> RoomClient[Any]:
    return await client.join("r", presence=True, **options)


async def test_a_snapshot_and_what_changes_after_it() -> None:
    server = FakeServer()
    listing(server, here("ann1", "bob1", bob1={"away": True}), v=7)
    async with running(server) as client:
        room = client.join("r", presence=True)
        changes = room.presence.changes()
        assert not room.presence.current
        assert room.presence.members == ()
        await room
        assert room.presence.current
        assert room.presence.listed
        assert room.presence.members == (Member("ann", "ann1", {}), Member("bob", "bob1", {"away": True}))
        await change(server, 8, joins=here("ann2"), leaves=here("bob1"))
        await change(server, 9, updates=here("ann1", ann1={"x": 1}))
        assert told(changes) == ["!+ann1 bob1", "+ann2 -bob1", "~ann1"]
        assert room.presence.members == (Member("ann", "ann1", {"x": 1}), Member("ann", "ann2", {}))
        assert dict(room.presence.users) == {"ann": room.presence.members}
        assert (room.presence.clients, room.presence.count) == (2, 1)
        assert "2 clients" in repr(room.presence)
        assert len(server.wire.of("subscribe")) == 1


async def test_without_being_asked_for_there_is_none() -> None:
    server = FakeServer()
    async with running(server) as client:
        room = await client.join("r")
        with pytest.raises(UsageError, match="presence=True"):
            _ = room.presence
        await change(server, 1, joins=here("ann1"))
        assert not server.wire.of("subscribe")[0].presence


async def test_a_refusal_ends_the_room() -> None:
    server = FakeServer()

    def subscribe(body: Any) -> JSON:
        raise Error(108, "this room has no presence")

    server.on["subscribe"] = subscribe
    async with running(server) as client:
        room = client.join("r", presence=True)
        changes = room.presence.changes()
        with pytest.raises(CallError, match="no presence"):
            await room
        with pytest.raises(CallError, match="no presence"):
            await anext(changes)
        with pytest.raises(CallError):
            await anext(room.presence.changes())
        with pytest.raises(CallError):
            await room.presence.update({})


async def test_a_jump_in_the_numbers_is_a_hole_and_the_room_is_joined_again() -> None:
    server = FakeServer()
    listing(server, here("ann1"), here("ann1", "cat1"), v=3)
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        server.wire.push(channel="r", presence={"v": 5, "joins": here("eve1")})
        server.wire.push(channel="r", presence={"v": 6, "joins": here("fay1")})
        await server.clock.settle()
        assert [type(c).__name__ for c in server.wire.of("unsubscribe")] == ["Unsubscribe"]
        assert len(server.wire.of("subscribe")) == 2
        assert names(room.presence.members) == "ann1 cat1"
        assert room.presence.current
        assert told(changes) == ["+cat1"]
        # Going back is no better; and a server that keeps doing it is not hammered.
        await change(server, 3, joins=here("eve1"))
        assert not room.presence.current
        assert names(room.presence.members) == "ann1 cat1"
        assert len(server.wire.of("subscribe")) == 2
        await server.pass_(5)
        assert len(server.wire.of("subscribe")) == 3


async def test_a_snapshot_in_between_replaces_and_is_told_as_a_difference() -> None:
    server = FakeServer()
    listing(server, here("ann1", "bob1", "cat1"))
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        await change(server, 40, members=here("dan1", "cat1", "bob1", bob1={"y": 2}))
        assert told(changes) == ["+dan1 -ann1 ~bob1"]
        assert names(room.presence.members) == "bob1 cat1 dan1"  # those that stay, stay in their places
        await change(server, 41, leaves=here("cat1"))
        await change(server, 41, members=here("dan1", "bob1", bob1={"y": 2}))
        assert told(changes) == ["-cat1"]


async def test_what_does_not_fit_what_is_known_changes_nothing_it_should_not() -> None:
    server = FakeServer()
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        await change(server, 1, leaves=here("eve1"), joins=here("ann1"))  # not there; there already
        await change(server, 2, updates=here("bob1"))  # not there: it is now
        await change(
            server, 3, joins=[{"user": "cat", "client": "cat1", "meta": [1]}], updates=here("cat1", "cat1")
        )
        await change(server, 4, leaves=here("bob1"), joins=here("bob1", bob1={"a": 1}))
        assert told(changes) == ["+bob1", "+cat1", "~bob1"]
        assert names(room.presence.members) == "ann1 cat1 bob1"


async def test_a_large_room_is_only_counted() -> None:
    server = FakeServer()
    server.on["subscribe"] = lambda body: {"presence": {"v": 2, "clients": 1207, "users": 1190}}
    async with running(server) as client:
        room = client.join("r", presence=True)
        changes = room.presence.changes()
        await room
        presence = room.presence
        assert (presence.listed, presence.members, presence.clients, presence.count) == (
            False,
            (),
            1207,
            1190,
        )
        await change(server, 3, clients=1000, users=999)  # type: ignore[arg-type]
        assert (presence.clients, presence.count) == (1000, 999)
        await change(server, 4, clients=1000, users=999)  # type: ignore[arg-type]
        await change(server, 5, members=here("ann1", "ann2"))
        assert (presence.listed, presence.clients, presence.count) == (True, 2, 1)
        await change(server, 6, leaves=here("ann1"))
        assert told(changes) == ["!", "!", "!+ann1 ann2", "-ann1"]
        await change(server, 7, clients=2000, users=5)  # type: ignore[arg-type]
        assert told(changes) == ["!"]
        assert presence.members == ()
        server.on["subscribe"] = lambda body: {"presence": {"v": 1, "members": []}}
        await change(server, 8, joins=here("eve1"))  # of whom? that is a hole
        assert presence.listed
        assert presence.members == ()


async def test_across_an_interruption_members_stay_and_the_difference_comes_as_one_change() -> None:
    server = FakeServer()
    listing(server, here("ann1", "bob1", "cat1"), here("bob1", "cat1", "dan1", cat1={"z": 1}))
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        server.wire.cut()
        await server.clock.settle()
        assert not room.presence.current
        assert names(room.presence.members) == "ann1 bob1 cat1"
        await server.pass_(20)
        assert room.presence.current
        assert told(changes) == ["+dan1 -ann1 ~cat1"]
        assert names(room.presence.members) == "bob1 cat1 dan1"


async def test_a_late_push_of_the_membership_before_is_not_taken_for_the_new_ones() -> None:
    server = FakeServer()
    listing(server, here("ann1"), v=1)
    async with running(server) as client:
        room = await joined(client)
        server.on["subscribe"] = lambda body: None
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "again"})
        await server.clock.settle()
        await change(server, 2, joins=here("eve1"))
        assert names(room.presence.members) == "ann1"
        command = server.wire.last("subscribe")
        server.wire.reply(command, subscribe={"presence": {"v": 9, "members": here("ann1")}})
        await change(server, 10, joins=here("bob1"))
        assert names(room.presence.members) == "ann1 bob1"


async def test_a_full_queue_leaves_the_room_and_members_stay_as_they_were() -> None:
    server = FakeServer()
    answers = [
        sub("e", 0, presence={"v": 0, "members": here("ann1")}),
        sub("e", 2, pub(2), recovered=True, presence={"v": 5, "members": here("bob1")}),
    ]
    server.on["subscribe"] = lambda body: answers.pop(0)
    async with running(server) as client:
        room = await joined(client, max_queue=1)
        changes = room.presence.changes()
        server.wire.push(channel="r", pub=pub(1))
        server.wire.push(channel="r", pub=pub(2))
        await server.clock.settle()
        assert not room.presence.current
        assert names(room.presence.members) == "ann1"
        assert take(room) == [1]
        await server.clock.settle()
        assert room.presence.current
        assert told(changes) == ["+bob1 -ann1"]


async def test_a_deaf_room_still_sees_who_is_there_and_a_hole_waits() -> None:
    server = FakeServer()
    listing(server, here("ann1"), v=0, **sub("e", 0))
    async with running(server) as client:
        room = await joined(client, max_queue=1)
        server.on["publish"] = lambda body: None
        server.hello = {**server.hello}
        sending = asyncio.create_task(room.send("x"))
        await server.clock.settle()
        server.wire.push(channel="r", pub=pub(1))
        server.on["publish"] = lambda body: {}
        more = asyncio.create_task(room.send("y"))
        room._core.engine.outbox.shut("r")  # it waits for its turn
        await server.clock.settle()
        server.wire.push(channel="r", pub=pub(2))
        await server.clock.settle()
        assert room._membership.state.phase == "muted"
        await change(server, 1, joins=here("bob1"))
        assert names(room.presence.members) == "ann1 bob1"
        await change(server, 5, joins=here("eve1"))
        assert not room.presence.current
        assert len(server.wire.of("subscribe")) == 1
        sending.cancel()
        more.cancel()
        await server.clock.settle()


async def test_a_room_the_server_put_us_in_is_asked_with_the_next_connect() -> None:
    server = FakeServer()
    shown: list[Any] = []

    def connect(body: Any) -> JSON:
        shown.append(body.subs)
        result: JSON = sub("e", 0)
        if body.subs.get("r") is not None and body.subs["r"].presence:
            result = sub("e", 0, recovered=True, presence={"v": 4, "members": here("ann1", "bob1")})
        return {**server.hello, "subs": {"r": result}}

    server.on["connect"] = connect
    server.on["subscribe"] = lambda body: sub(
        "e", 0, recovered=True, presence={"v": 1, "members": here("ann1")}
    )
    async with running(server) as client:
        room = await client.join("r", presence=True)
        # It had not been asked for, so the room is joined anew; nothing that was gathered is lost.
        await server.clock.settle()
        assert names(room.presence.members) == "ann1"
        (asked,) = server.wire.of("subscribe")
        assert (asked.recover, asked.offset, asked.presence) == (True, 0, True)
        changes = room.presence.changes()
        server.wire.cut()
        await server.pass_(20)
        assert shown[-1]["r"].presence
        assert server.wire.of("subscribe") == []
        assert told(changes) == ["+bob1"]


async def test_put_in_by_the_server_while_out_it_is_joined_anew_to_see_who_is_there() -> None:
    server = FakeServer()
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        for _ in range(2):
            server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "again"})
            await server.clock.settle()
        assert not room.presence.current, "it waits a little before it comes again"
        count = len(server.wire.of("subscribe"))
        server.wire.push(channel="r", subscribe={})
        await server.pass_(5)
        assert len(server.wire.of("subscribe")) == count + 1
        assert room.presence.current


async def test_taken_over_while_it_is_being_joined_without_presence_it_is_joined_once_more() -> None:
    server = FakeServer()
    server.on["connect"] = lambda body: {**server.hello, "subs": {"r": sub("e", 0)}}
    server.on["subscribe"] = lambda body: None
    async with running(server) as client:
        server.wire.push(channel="r", pub=pub(5))  # a hole
        await server.clock.settle()
        command = server.wire.last("subscribe")
        room = client.join("r", presence=True)
        listing(server, here("ann1"), **sub("e", 0, recovered=True))
        server.wire.reply(command, subscribe=sub("e", 0, recovered=True))
        await server.pass_(5)
        assert [body.presence for body in server.wire.of("subscribe")] == [False, True]
        assert room.presence.current


async def test_a_server_that_puts_us_in_later_is_asked_then() -> None:
    server = FakeServer()
    listing(server, here("ann1"))
    server.on["connect"] = lambda body: {**server.hello, "subs": {"r": {}}}
    async with running(server) as client:
        server.on["subscribe"] = lambda body: None
        room = client.join("r", presence=True)
        await server.clock.settle()
        (asked,) = server.wire.of("subscribe")
        assert asked.presence
        server.wire.reply(
            server.wire.last("subscribe"), subscribe={"presence": {"v": 0, "members": here("x1")}}
        )
        await server.clock.settle()
        assert room.presence.current


# -- what the client says about itself ---------------------------------------------------------------------


async def test_update_waits_for_the_answer() -> None:
    server = FakeServer()
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"away": True})
        (body,) = server.wire.of("presence_update")
        assert (body.channel, bytes(body.meta)) == ("r", b'{"away":true}')

        def refuse(body: Any) -> JSON:
            raise Error(106, "too large")

        server.on["presence_update"] = refuse
        with pytest.raises(CallError, match="too large"):
            await room.presence.update({"long": "x"})
        with pytest.raises(InvalidMessage, match="object"):
            await room.presence.update([1])
        server.on["presence_update"] = lambda body: None
        waiting = asyncio.create_task(room.presence.update({}, timeout=3))
        await server.pass_(3)
        with pytest.raises(TimeoutError):
            await waiting
        await room.leave()
        with pytest.raises(NotRunning):
            await room.presence.update({})


async def test_it_is_said_again_by_a_new_client_and_not_by_one_that_went_on() -> None:
    server = FakeServer()
    giving(server, resumed=True)
    me = {"user": "me", "client": "c", "meta": {"n": 1}}
    listing(server, [me])
    server.hello["client"] = "c"
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.wire.cut()
        await server.pass_(20)
        assert client.resumed
        assert server.wire.of("presence_update") == []
        giving(server, resumed=False)
        server.wire.cut()
        await server.pass_(20)
        assert not client.resumed
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}']
        server.wire.cut(4000, "replaced")
        await server.pass_(20)
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}']


@pytest.mark.parametrize("lost", [[], [{"user": "me", "client": "c", "meta": {"n": 0}}]])
async def test_a_list_without_it_shows_that_the_server_has_not_kept_it(lost: list[JSON]) -> None:
    """P3: the node that it was said to died, and another took its clients away before they were back."""
    server = FakeServer()
    giving(server, resumed=True)
    me = {"user": "me", "client": "c", "meta": {"n": 1}}
    listing(server, [me], lost)
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.wire.cut()
        await server.pass_(20)
        assert client.resumed
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}']
        # Where it is only counted there is nothing to see, until it is listed again.
        server.on["subscribe"] = lambda body: {"presence": {"v": 0, "clients": 7, "users": 7}}
        server.wire.cut()
        await server.pass_(20)
        assert server.wire.of("presence_update") == []
        await change(server, 1, members=[me])
        assert server.wire.of("presence_update") == []
        await change(server, 2, clients=7, users=7)  # type: ignore[arg-type]
        await change(server, 3, members=lost)
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}']


async def test_a_new_client_says_it_again_where_it_is_only_counted_too() -> None:
    server = FakeServer()
    giving(server, resumed=False)
    server.on["subscribe"] = lambda body: {"presence": {"v": 0, "clients": 7, "users": 7}}
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.wire.cut()
        await server.pass_(20)
        assert not client.resumed
        assert len(server.wire.of("presence_update")) == 1


async def test_it_is_said_again_when_the_room_was_left_meanwhile() -> None:
    server = FakeServer()
    giving(server, resumed=True)
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "again"})
        await server.pass_(1)
        assert len(server.wire.of("presence_update")) == 2
        # Out of the room when the connection is lost: to the server it had left.
        server.on["subscribe"] = lambda body: None
        server.wire.push(channel="r", unsubscribe={"code": 2500, "reason": "again"})
        await server.pass_(30)
        server.wire.cut()
        listing(server, here("ann1"))
        await server.pass_(30)
        assert client.resumed
        assert len(server.wire.of("presence_update")) == 1


async def test_having_gone_on_with_the_session_once_proves_nothing_for_later() -> None:
    server = FakeServer()
    giving(server, resumed=True)
    listing(server, [{"user": "me", "client": "c", "meta": {"n": 1}}])
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.wire.cut()
        await server.pass_(20)
        assert client.resumed
        assert server.wire.of("presence_update") == []
        await change(server, 7, joins=here("eve1"))  # a hole: the room is left, and joined again
        await server.pass_(5)
        assert len(server.wire.of("unsubscribe")) == 1
        assert len(server.wire.of("presence_update")) == 1


async def test_only_what_was_taken_is_said_again_and_later_if_need_be() -> None:
    server = FakeServer()
    giving(server, resumed=False)
    listing(server, here("ann1"))
    refusals: list[Error] = []

    def update(body: Any) -> JSON:
        if refusals:
            raise refusals.pop(0)
        return {}

    server.on["presence_update"] = update
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        refusals.append(Error(103, "no"))
        with pytest.raises(CallError):
            await room.presence.update({"n": 2})
        refusals.append(Error(100, "later", temporary=True, retry_after=4))
        server.wire.cut()
        await server.pass_(2)
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}']
        await server.pass_(4)
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":1}'] * 2
        refusals.append(Error(103, "no more"))
        server.wire.cut()
        await server.pass_(20)
        assert len(server.wire.of("presence_update")) == 1


async def test_an_update_without_a_connection_waits_and_is_the_last_word() -> None:
    server = FakeServer()
    giving(server, resumed=False)
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        await room.presence.update({"n": 1})
        server.refuse = [OSError("away")]
        server.wire.cut()
        await server.clock.settle()
        waiting = asyncio.create_task(room.presence.update({"n": 2}))
        await server.pass_(30)
        await waiting
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":2}']
        server.on["presence_update"] = lambda body: None
        waiting = asyncio.create_task(room.presence.update({"n": 3}))
        await server.clock.settle()
        server.wire.cut()
        server.on["presence_update"] = lambda body: {}
        await server.pass_(30)
        await waiting
        assert [bytes(body.meta) for body in server.wire.of("presence_update")] == [b'{"n":3}']


# -- feeds -----------------------------------------------------------------------------------------------------


async def test_who_does_not_fetch_gets_one_whole_change_instead() -> None:
    server = FakeServer()
    listing(server, [])
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        for n in range(1, 300):
            server.wire.push(channel="r", presence={"v": n, "joins": here(f"u{n}")})
        await server.clock.settle()
        found = told(changes)
        assert changes.dropped == 256
        assert found[0].startswith("!+u1 u2 ")
        assert found[0].endswith(" u257")
        assert found[1:] == [f"+u{n}" for n in range(258, 300)]


async def test_feeds_end_with_the_room_and_with_the_client() -> None:
    server = FakeServer()
    listing(server, here("ann1"))
    async with running(server) as client:
        room = await joined(client)
        changes = room.presence.changes()
        await room.leave()
        assert told(changes) == ["end"]
        assert told(room.presence.changes()) == ["end"]
        assert not room.presence.current
        again = await joined(client)
        assert again.presence is not room.presence
        changes = again.presence.changes()
    assert told(changes) == ["end"]


# -- the whole of it -------------------------------------------------------------------------------------------


class Truth:
    """A server's view, frames lost on the way, and what a client makes of it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.here: dict[str, JSON] = {}
        self.v = 0
        self.client = PresenceState()
        self.mirror: dict[str, Member] = {}
        self.whole = False
        self.join(kept=False)

    def body(self, clients: Any) -> list[PresentBody]:
        return [
            PresentBody("u" + c, c, Raw(str(self.here.get(c, {}).get("m", 0)).join(('{"m":', "}")).encode()))
            if self.here.get(c)
            else PresentBody("u" + c, c, UNSET)
            for c in clients
        ]

    def told(self, change: PresenceChange | None) -> None:
        if change is None:
            return
        if change.whole:
            self.mirror.clear()
        for member in change.leaves:
            del self.mirror[member.client]
        for member in change.joins:
            assert member.client not in self.mirror
            self.mirror[member.client] = member
        for member in change.updates:
            assert self.mirror[member.client] != member
            self.mirror[member.client] = member
        assert not set(change.joins) & set(change.leaves)

    def snapshot(self) -> PresenceBody:
        if len(self.here) > 6:
            return PresenceBody(v=self.v, clients=len(self.here), users=len(self.here))
        clients = list(self.here)
        self.chance.shuffle(clients)
        return PresenceBody(v=self.v, members=self.body(clients))

    def join(self, *, kept: bool) -> None:
        self.told(self.client.joined(self.snapshot(), "", kept=kept))

    def step(self, name: str, which: str) -> None:
        if name == "rejoin":
            self.join(kept=False)
            return
        counted = len(self.here) > 6
        body = PresenceBody()
        if name == "leave" and which in self.here:
            body.leaves = [PresentBody("u" + which, which)]
            del self.here[which]
        elif name == "update" and which in self.here:
            self.here[which] = {"m": self.chance.randrange(3)}
            body.updates = self.body([which])
        elif which not in self.here:
            self.here[which] = {}
            body.joins = self.body([which])
        else:
            return
        self.v += 1
        body.v = self.v
        if counted or len(self.here) > 6 or name == "whole":
            body = self.snapshot()
        if name == "lost":
            return
        self.told(self.client.pushed(body, ""))
        if not self.client.fresh:
            self.join(kept=False)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "leave", "update", "whole", "lost", "rejoin"]),
        st.sampled_from("abcdefghij"),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 9))
def test_whatever_is_lost_in_the_end_everybody_knows_the_truth(
    steps: list[tuple[str, str]], seed: int
) -> None:
    truth = Truth(random.Random(seed))
    for name, which in [*steps, ("join", "y"), ("join", "z")]:
        truth.step(name, which)
    state = truth.client
    assert (state.clients, state.users) == (len(truth.here), len(truth.here))
    assert state.listed == (len(truth.here) <= 6)
    assert truth.mirror == state.members, "who follows the changes knows what the client knows"
    if state.listed:
        assert set(state.members) == set(truth.here)
        assert {c: m.meta for c, m in state.members.items()} == truth.here
