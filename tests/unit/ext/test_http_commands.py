"""What the commands of the HTTP API do, and what members of rooms see of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rtkit import BrokerUnavailable, Identity, PublishUnknown, Room
from rtkit.client import Unsubscribed
from rtkit.errors import ConnectionClosed
from rtkit.ext import http_commands, http_units
from rtkit.ext.http_commands import COMMANDS, MAX_CHANNELS, MAX_COMMANDS
from rtkit.messages import Member, PresenceStats
from tests.unit.ext.conftest import Caller, Counted, Moved, Named, Said, World

# -- publish ----------------------------------------------------------------------------------------------


async def test_members_on_all_nodes_get_what_is_published(world: World) -> None:
    ann, bob = await world.one.connect(Identity("ann")), await world.two.connect(Identity("bob"))
    async with ann.join("kept:a") as hers, bob.join("kept:a") as his:
        result = await world.caller.result("publish", channel="kept:a", data={"n": [1, None, "ü"]})
        for node, room in ((world.one, hers), (world.two, his)):
            message = await node.next(room)
            assert message.data == {"n": [1, None, "ü"]}
            assert message.position is not None and message.sender is None and message.client is None
            assert result == {"offset": 1, "epoch": message.position.epoch}


async def test_in_a_room_without_history_there_is_no_position(world: World) -> None:
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("live:a") as room:
        assert await world.caller.result("publish", channel="live:a", data=None) == {}
        assert (await world.one.next(room)).data is None


MESSAGES = [
    ({"event": "Said", "data": {"text": "hi"}}, Said("hi")),
    ({"event": "Said", "data": {"text": "hi", "loud": True, "unknown": 1}}, Said("hi", loud=True)),
    ({"event": "moved", "data": {"type": "moved", "x": 1}}, Moved(1)),
    ({"event": "Named", "data": {"name": "Zoë"}}, Named(name="Zoë")),
    ({"event": "Counted", "data": {"count": 3}}, Counted(count=3)),
]


@pytest.mark.parametrize(("data", "message"), MESSAGES)
async def test_a_typed_room_gets_what_a_handler_would_publish(world: World, data: Any, message: Any) -> None:
    await world.caller.result("publish", channel="chat:a", data=data)
    (stored,) = (await world.hub.room("chat:a").history()).messages
    assert stored.data == message
    await world.hub.publish("chat:a", stored.data)
    first, second = (await world.caller.result("history", channel="chat:a", limit=2))["publications"]
    assert first["data"] == second["data"]
    assert "unknown" not in first["data"]["data"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"event": "Said", "data": {"text": 1}}, "$.text"),
        ({"event": "Said", "data": {}}, "text"),
        ({"event": "Said"}, "null"),
        ({"event": "moved", "data": {"x": "1"}}, "$.x"),
        ({"event": "Named", "data": {"name": "Z"}}, "$.name"),
        ({"event": "Whispered", "data": {"text": "hi"}}, "Said, moved, Named, Counted"),
        ({"text": "hi"}, "event is missing"),
        ("hi", "object"),
        (None, "object"),
    ],
)
async def test_a_typed_room_takes_only_its_messages(world: World, data: Any, fault: str) -> None:
    code, message = await world.caller.error("publish", channel="chat:a", data=data)
    assert code == 107
    assert fault in message
    assert (await world.hub.room("chat:a").history()).messages == []


async def test_what_is_published_is_written_anew(world: World) -> None:
    """Spaces, order of bytes and escapes are of the caller's; members get canonical JSON in one line."""
    body = b'{"channel": "kept:a",\r\n "data": {"a" :\t"\\u00e9\\n",\n"b": 1.50}}'
    assert (await world.caller.send("publish", body))[0] == 200
    page = await world.hub.engine.stream.read("room:kept:a")
    assert '"data":{"a":"é\\n","b":1.5}'.encode() in page.entries[0].payload


@pytest.mark.parametrize(
    ("fields", "code", "fault"),
    [
        ({"data": 1}, 107, "channel is missing"),
        ({"channel": "", "data": 1}, 107, "channel is missing"),
        ({"channel": None, "data": 1}, 107, "channel is missing"),
        ({"channel": "kept:a"}, 107, "data is missing"),
        ({"channel": "nowhere", "data": 1}, 102, "kept:{x}"),
        ({"channel": "kept:%61", "data": 1}, 102, "did you mean 'kept:a'?"),
        ({"channel": "kept:" + "a" * 300, "data": 1}, 102, "255 bytes"),
        ({"channel": "kept:\n", "data": 1}, 102, "control"),
        ({"channel": "\0control", "data": 1}, 102, "control"),
        ({"channel": "kept:a", "data": 1, "b64data": "MQ=="}, 108, "b64data"),
        ({"channel": "kept:a", "data": 1, "tags": {"a": "b"}}, 108, "tags"),
        ({"channel": "kept:a", "data": 1, "version": 3}, 108, "version"),
        ({"channel": "kept:a", "data": 1, "skip_history": True}, 108, "skip_history"),
        ({"channel": "kept:a", "data": 1, "idempotency_key": "a\nb"}, 107, "idempotency_key"),
        ({"channel": "kept:a", "data": 1, "idempotency_key": "k" * 129}, 107, "idempotency_key"),
    ],
)
async def test_what_cannot_be_published_is_an_error(
    world: World, fields: dict[str, Any], code: int, fault: str
) -> None:
    found, message = await world.caller.error("publish", **fields)
    assert (found, fault in message) == (code, True), message
    assert (await world.hub.room("kept:a").history()).messages == []


async def test_what_is_null_or_harmless_is_as_if_it_were_not_there(caller: Caller) -> None:
    nothing = dict.fromkeys(
        ("b64data", "tags", "version", "version_epoch", "skip_history", "idempotency_key")
    )
    await caller.result("publish", channel="kept:a", data=1, **nothing)
    empty = {"b64data": "", "tags": {}, "version": 0, "skip_history": False, "idempotency_key": ""}
    await caller.result("publish", channel="kept:a", data=2, **empty)
    await caller.result("publish", channel="kept:a", data=3, delta=True, something="else")
    await caller.result("publish", channel="live:a", data=4, skip_history=True)


async def test_a_message_has_a_size(world: World) -> None:
    most = world.hub.limits.max_publication
    await world.caller.result("publish", channel="kept:a", data="x" * (most - 2))
    code, message = await world.caller.error("publish", channel="kept:a", data="x" * (most - 1))
    assert (code, str(most) in message) == (106, True)
    # It grows by what the caller has left out.
    text = "x" * (most - len('{"event":"Said","data":{"text":""}}'))
    code, _ = await world.caller.error(
        "publish", channel="chat:a", data={"event": "Said", "data": {"text": text}}
    )
    assert code == 106


async def test_with_a_key_it_is_published_once(world: World) -> None:
    first = await world.caller.result("publish", channel="kept:a", data=1, idempotency_key="k")
    again = await world.caller.result("publish", channel="kept:a", data=1, idempotency_key="k")
    other = await world.caller.result("publish", channel="kept:a", data=1, idempotency_key="l")
    elsewhere = await world.caller.result("publish", channel="kept:b", data=1, idempotency_key="k")
    assert (again, other["offset"], elsewhere["offset"]) == (first, 2, 1)
    # It is the application's own: whoever publishes under it, here or there.
    published = await world.hub.publish("kept:a", 1, key="k")
    assert published.duplicate
    await world.one.clock.advance(301)
    late = await world.caller.result("publish", channel="kept:a", data=1, idempotency_key="k")
    assert late["offset"] == 3


# -- broadcast --------------------------------------------------------------------------------------------


async def test_a_broadcast_answers_for_each_channel_in_order(world: World) -> None:
    channels = ["kept:a", "nowhere", "live:a", "chat:a", "", "kept:b", "kept:a"]
    result = await world.caller.result("broadcast", channels=channels, data={"n": 1})
    told = [each.get("result", each.get("error", {}).get("code")) for each in result["responses"]]
    epoch = told[0]["epoch"]
    assert told == [
        {"offset": 1, "epoch": epoch},
        102,
        {},
        107,
        107,
        {"offset": 1, "epoch": told[5]["epoch"]},
        {"offset": 2, "epoch": epoch},
    ]


async def test_a_broadcast_is_checked_and_encoded_once_for_each_kind_of_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    schema = world.hub.engine.lookup("chat:a")[0].schema
    real = type(schema).decode

    def decode(self: Any, data: Any) -> Any:
        seen.append(self)
        return real(self, data)

    monkeypatch.setattr(type(schema), "decode", decode)
    bad = {"event": "Said", "data": {}}
    for data in (bad, {"event": "Said", "data": {"text": "hi"}}):
        seen.clear()
        channels = [f"{family}:{n}" for n in range(50) for family in ("chat", "kept")]
        await world.caller.result("broadcast", channels=channels, data=data)
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"data": 1}, 107),
        ({"channels": [], "data": 1}, 107),
        ({"channels": None, "data": 1}, 107),
        ({"channels": ["kept:a"]}, 107),
        ({"channels": ["kept:a"], "data": 1, "tags": {"a": "b"}}, 108),
        ({"channels": ["kept:a"] * (MAX_CHANNELS + 1), "data": 1}, 106),
    ],
)
async def test_a_broadcast_that_is_none_publishes_nothing(
    world: World, fields: dict[str, Any], code: int
) -> None:
    assert (await world.caller.error("broadcast", **fields))[0] == code
    assert (await world.hub.room("kept:a").history()).messages == []


async def test_everybody_else_has_turns_while_a_broadcast_runs(world: World) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    world.one.spawn(count)
    channels = [f"kept:{n}" for n in range(5_000)]
    result = await world.caller.result("broadcast", channels=channels, data=1)
    assert [each["result"]["offset"] for each in result["responses"]] == [1] * 5_000
    assert turns >= 5_000 // 64


class Far:
    """Publishing takes a while, and is counted."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self.order: list[str] = []
        self.there = asyncio.Event()
        real = Room.publish_raw

        async def publish_raw(room: Room[Any], data: bytes, *, key: str | None = None) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(room.name)
            try:
                await self.there.wait()
                return await real(room, data, key=key)
            finally:
                self.now -= 1

        monkeypatch.setattr(Room, "publish_raw", publish_raw)


async def test_a_broker_that_is_far_away_is_waited_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far(world, monkeypatch)
    channels = [f"kept:{n}" for n in range(100)]
    task = world.one.spawn(lambda: world.caller.result("broadcast", channels=channels, data=1))
    await world.one.settle()
    assert far.now == 32
    far.there.set()
    await world.one.settle()
    assert len((await task)["responses"]) == 100
    assert far.most == 32 and sorted(far.order) == sorted(channels)


async def test_a_caller_who_goes_away_leaves_nothing_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far(world, monkeypatch)
    before = world.hub.statistics().tasks
    task = world.one.spawn(lambda: world.caller.result("broadcast", channels=["kept:a"] * 50, data=1))
    await world.one.settle()
    assert far.now == 32
    task.cancel()
    await world.one.settle()
    assert task.cancelled() and far.now == 0
    assert world.hub.statistics().tasks == before


async def test_a_hub_that_closes_meanwhile_says_that_nothing_is_certain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far(world, monkeypatch)
    one = world.one.spawn(lambda: world.caller.error("broadcast", channels=["kept:a"] * 5, data=1))
    commands = [{"publish": {"channel": "kept:a", "data": n}} for n in range(5)]
    body = json.dumps({"commands": commands, "parallel": True}).encode()
    many = world.one.spawn(lambda: world.caller.send("batch", body))
    await world.one.settle()
    assert far.now == 10
    closing = world.one.spawn(world.hub.aclose)
    await world.one.clock.advance(20)
    await closing
    code, message = await one
    assert (code, "may have been published" in message) == (100, True)
    assert (await many)[0] == 503


# -- history ----------------------------------------------------------------------------------------------


async def fill(world: World, count: int, channel: str = "kept:a") -> str:
    for n in range(count):
        await world.hub.publish(channel, n + 1)
    return (await world.hub.room(channel).history()).top.epoch


async def pages(world: World, **fields: Any) -> list[tuple[int, Any]]:
    result = await world.caller.result("history", channel="kept:a", **fields)
    return [(each["offset"], each["data"]) for each in result.get("publications", [])]


async def test_without_a_limit_history_is_the_position_alone(world: World) -> None:
    epoch = await fill(world, 3)
    for limit in ({}, {"limit": 0}, {"limit": None}):
        assert await world.caller.result("history", channel="kept:a", **limit) == {
            "offset": 3,
            "epoch": epoch,
        }


async def test_history_is_read_in_both_directions(world: World) -> None:
    epoch = await fill(world, 5)
    two = {"epoch": epoch, "offset": 2}
    assert await pages(world, limit=2) == [(1, 1), (2, 2)]
    assert await pages(world, limit=-1) == [(n, n) for n in range(1, 6)]
    assert await pages(world, limit=2, since=two) == [(3, 3), (4, 4)]
    assert await pages(world, limit=2, reverse=True) == [(5, 5), (4, 4)]
    assert await pages(world, limit=2, reverse=True, since=two) == [(1, 1)]
    assert await pages(world, limit=2, since={"offset": 4}) == [(5, 5)]
    assert await pages(world, limit=2, since=None, reverse=None) == [(1, 1), (2, 2)]


async def test_history_says_who_published(world: World) -> None:
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("kept:a") as room:
        await room.send("hers")
        await world.one.next(room)
    await world.caller.result("publish", channel="kept:a", data="ours")
    hers, ours = (await world.caller.result("history", channel="kept:a", limit=9))["publications"]
    assert hers["info"]["user"] == "ann" and hers["info"]["client"]
    assert ours == {"data": "ours", "offset": 2}


async def test_a_page_that_would_begin_with_a_hole_is_refused(world: World) -> None:
    epoch = await fill(world, 5, "small:a")
    for since in (
        {"epoch": epoch, "offset": 1},
        {"epoch": "another", "offset": 4},
        {"epoch": epoch, "offset": 9},
    ):
        code, _ = await world.caller.error("history", channel="small:a", limit=9, since=since)
        assert code == 112
    result = await world.caller.result(
        "history", channel="small:a", limit=9, since={"epoch": epoch, "offset": 3}
    )
    assert [each["offset"] for each in result["publications"]] == [4, 5]


async def test_a_page_has_a_size(world: World) -> None:
    for n in range(5):
        await world.hub.publish("kept:a", f"{n}" * 100_000)
    result = await world.caller.result("history", channel="kept:a", limit=-1)
    assert [each["offset"] for each in result["publications"]] == [1, 2]
    assert result["offset"] == 5


@pytest.mark.parametrize("command", ["history", "history_remove", "presence", "presence_stats"])
async def test_what_is_not_switched_on_is_not_available(caller: Caller, command: str) -> None:
    assert (await caller.error(command, channel="live:a"))[0] == 108
    assert (await caller.error(command, channel="nowhere"))[0] == 102
    assert (await caller.error(command))[0] == 107


async def test_removing_history_begins_a_new_epoch_and_members_learn_of_it(world: World) -> None:
    epoch = await fill(world, 3)
    bob = await world.two.connect(Identity("bob"))
    async with bob.join("kept:a") as room:
        assert await world.caller.result("history_remove", channel="kept:a") == {}
        gap = await world.two.next_item(room)
        assert getattr(gap, "reason", "") == "epoch"
    now = await world.caller.result("history", channel="kept:a", limit=9)
    assert now["epoch"] != epoch and "publications" not in now and "offset" not in now


# -- presence ---------------------------------------------------------------------------------------------


async def test_presence_is_what_the_room_says(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [Member("ann", "c1"), Member("ann", "c2", {"n": 1}), Member("bob", "c3")]

    async def presence(room: Room[Any]) -> list[Member]:
        return members

    async def presence_stats(room: Room[Any]) -> PresenceStats:
        return PresenceStats(len(members), len({each.user for each in members}))

    monkeypatch.setattr(Room, "presence", presence)
    monkeypatch.setattr(Room, "presence_stats", presence_stats)
    found = (await world.caller.result("presence", channel="kept:a"))["presence"]
    assert found.pop("c2") == {"user": "ann", "client": "c2", "chan_info": {"n": 1}}
    assert found == {each: {"user": user, "client": each} for each, user in (("c1", "ann"), ("c3", "bob"))}
    assert await world.caller.result("presence_stats", channel="kept:a") == {"num_clients": 3, "num_users": 2}
    members.clear()
    assert await world.caller.result("presence", channel="kept:a") == {"presence": {}}
    assert await world.caller.result("presence_stats", channel="kept:a") == {"num_clients": 0, "num_users": 0}


# -- users ------------------------------------------------------------------------------------------------


async def test_a_user_is_taken_out_of_a_room_on_every_node(world: World) -> None:
    ann, ann2, bob = (
        await world.one.connect(Identity("ann")),
        await world.two.connect(Identity("ann")),
        await world.two.connect(Identity("bob")),
    )
    async with bob.join("kept:a") as his, ann.join("kept:b") as other:
        here, there = await ann.join("kept:a"), await ann2.join("kept:a")
        assert await world.caller.result("unsubscribe", user="ann", channel="kept:a") == {}
        for room in (here, there):
            with pytest.raises(Unsubscribed) as caught:
                await anext(room)
            assert caught.value.code == 2000
        await world.caller.result("broadcast", channels=["kept:a", "kept:b"], data=1)
        assert (await world.two.next(his)).data == 1
        assert (await world.one.next(other)).data == 1


async def test_an_order_may_be_about_one_client_on_whatever_node(world: World) -> None:
    ann, ann2, bob = (
        await world.one.connect(Identity("ann")),
        await world.two.connect(Identity("ann")),
        await world.two.connect(Identity("bob")),
    )
    one, two = await ann.join("kept:a"), await ann2.join("kept:a")
    for command, more in (("unsubscribe", {"channel": "kept:a"}), ("disconnect", {}), ("refresh", {})):
        # An id that is somebody else's is nobody's.
        for client in (bob.client_id, "nobody"):
            assert await world.caller.result(command, user="ann", client=client, **more) == {}
    await world.one.settle()
    assert {each.state for each in (ann, ann2, bob)} == {"connected"}
    assert await world.caller.result("unsubscribe", user="ann", client=ann2.client_id, channel="kept:a") == {}
    with pytest.raises(Unsubscribed):
        await anext(two)
    await world.caller.result("publish", channel="kept:a", data=1)
    assert (await world.one.next(one)).data == 1
    assert await world.caller.result("refresh", user="ann", client=ann2.client_id) == {}
    await world.one.settle()
    expiry = [
        session.identity.expires_at is not None
        for hub in (world.one.hub, world.two.hub)
        for session in hub.engine.users["ann"]
    ]
    assert expiry == [False, True]
    assert await world.caller.result("disconnect", user="ann", client=ann2.client_id) == {}
    await world.one.settle()
    with pytest.raises(ConnectionClosed) as caught:
        await ann2.call(Said("anybody there?"))
    assert caught.value.code == 3503
    assert ann.state == bob.state == "connected"


@pytest.mark.parametrize(
    ("disconnect", "code", "reason"),
    [
        ({}, 3503, "closed for good"),
        ({"disconnect": None}, 3503, "closed for good"),
        ({"disconnect": {"code": 4512, "reason": "moved out"}}, 4512, "moved out"),
        ({"disconnect": {"code": 3500, "reason": None}}, 3500, "bad token"),
    ],
)
async def test_a_user_is_sent_away_from_every_node(
    world: World, disconnect: dict[str, Any], code: int, reason: str
) -> None:
    ann, ann2, bob = (
        await world.one.connect(Identity("ann")),
        await world.two.connect(Identity("ann")),
        await world.two.connect(Identity("bob")),
    )
    assert await world.caller.result("disconnect", user="ann", **disconnect) == {}
    await world.one.settle()
    for client in (ann, ann2):
        with pytest.raises(ConnectionClosed) as caught:
            await client.call(Said("anybody there?"))
        assert (caught.value.code, caught.value.reason) == (code, reason)
    assert bob.state == "connected"


async def test_a_user_may_be_made_to_show_a_new_token(world: World) -> None:
    ann = await world.one.connect(Identity("ann"))
    assert await world.caller.result("refresh", user="ann", expired=None, expire_at=None, info=None) == {}
    await world.one.settle()
    assert ann.state == "connected"
    (session,) = world.hub.engine.sessions.values()
    assert session.identity.expires_at is not None
    assert await world.caller.result("refresh", user="ann", expired=True) == {}
    await world.one.settle()
    assert world.hub.engine.counters.get("closes", "3005") == 1


@pytest.mark.parametrize(
    ("command", "fields", "code"),
    [
        ("disconnect", {}, 107),
        ("disconnect", {"user": ""}, 107),
        ("disconnect", {"user": "a\nb"}, 107),
        ("disconnect", {"user": "u" * 256}, 107),
        ("disconnect", {"user": "ann", "session": "s1"}, 108),
        ("disconnect", {"user": "ann", "whitelist": ["c1"]}, 108),
        ("disconnect", {"user": "ann", "disconnect": {}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 1006}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 5000}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": -(10**18)}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 3500, "reason": "é" * 62}}, 107),
        ("unsubscribe", {"channel": "kept:a"}, 107),
        ("unsubscribe", {"user": "ann"}, 107),
        ("unsubscribe", {"user": "ann", "channel": "nowhere"}, 102),
        ("unsubscribe", {"user": "ann", "channel": "kept:a", "session": "s1"}, 108),
        ("refresh", {}, 107),
        ("refresh", {"user": "ann", "session": "s1"}, 108),
        ("refresh", {"user": "ann", "expire_at": 1}, 108),
        ("refresh", {"user": "ann", "expired": True, "info": {}}, 108),
        ("subscribe", {"user": "ann", "channel": "kept:a"}, 108),
    ],
)
async def test_what_a_hub_cannot_do_is_refused_and_not_done_by_half(
    world: World, command: str, fields: dict[str, Any], code: int
) -> None:
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("kept:a"):
        assert (await world.caller.error(command, **fields))[0] == code
        await world.one.settle()
        assert ann.state == "connected" and world.hub.statistics().rooms == 1


# -- what there is ----------------------------------------------------------------------------------------


async def test_channels_are_those_with_members_here(world: World) -> None:
    ann, bob = await world.one.connect(Identity("ann")), await world.one.connect(Identity("bob"))
    far = await world.two.connect(Identity("far"))
    await world.hub.publish("kept:empty", 1)
    async with ann.join("kept:a"), bob.join("kept:a"), bob.join("live:b[1]"), far.join("kept:far"):
        assert await world.caller.result("channels") == {
            "channels": {"kept:a": {"num_clients": 2}, "live:b[1]": {"num_clients": 1}}
        }
        for pattern, found in {
            "kept:*": ["kept:a"],
            "*": ["kept:a", "live:b[1]"],
            "????:?": ["kept:a"],
            "[!k]*": ["live:b[1]"],
            "live:b[[]1]": ["live:b[1]"],
            "KEPT:*": [],
            "kept": [],
        }.items():
            assert list((await world.caller.result("channels", pattern=pattern))["channels"]) == found
    await world.one.settle()
    assert await world.caller.result("channels") == {"channels": {}}


async def test_who_is_about_to_come_counts_and_who_has_left_does_not(world: World) -> None:
    ann = await world.one.connect(Identity("ann"))
    world.hub.state = asyncio.Event()

    async def join() -> None:
        await ann.join("slow:a")

    joining = world.one.spawn(join)
    await world.one.settle()
    assert not joining.done()
    world.hub.engine.local("kept:a", *world.hub.engine.lookup("kept:a"))
    found = await world.caller.result("channels")
    world.hub.state.set()
    await joining
    assert found == {"channels": {"slow:a": {"num_clients": 1}}}


@pytest.mark.parametrize("pattern", ["{kept,live}:*", "\\*", "*" * 256])
async def test_a_pattern_that_would_be_read_otherwise_is_refused(caller: Caller, pattern: str) -> None:
    assert (await caller.error("channels", pattern=pattern))[0] == 107


async def test_a_pattern_that_goes_back_and_forth_takes_no_time(world: World) -> None:
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("kept:" + "a" * 250):
        pattern = "*a" * 100 + "*b"
        assert await world.caller.result("channels", pattern=pattern) == {"channels": {}}


async def test_too_many_channels_are_refused_rather_than_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_commands, "MAX_CHANNELS", 2)
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("kept:a"), ann.join("kept:b"):
        assert len((await world.caller.result("channels"))["channels"]) == 2
        async with ann.join("live:c"):
            assert (await world.caller.error("channels"))[0] == 106
            assert len((await world.caller.result("channels", pattern="kept:*"))["channels"]) == 2


async def test_info_is_about_all_nodes(world: World) -> None:
    ann, ann2 = await world.one.connect(Identity("ann")), await world.one.connect(Identity("ann"))
    await world.two.connect(Identity("far"))
    async with ann.join("kept:a"), ann2.join("kept:a"), ann2.join("kept:b"):
        found = await world.caller.result("info")
        assert list(found) == ["nodes"]
        nodes = {node["uid"]: node for node in found["nodes"]}
        assert list(nodes) == sorted(nodes)
        far = nodes.pop(world.two.hub.node_id)
        assert (far["num_clients"], far["num_users"], far["num_subs"]) == (1, 1, 0)
        (node,) = nodes.values()
        assert node == {
            "uid": world.hub.node_id,
            "name": world.hub.node_id,
            "version": world.hub.version,
            "num_clients": 2,
            "num_users": 1,
            "num_subs": 3,
            "num_channels": 2,
            "uptime": 0,
        }
    await world.one.clock.advance(5.5)
    for node in (await world.caller.result("info"))["nodes"]:
        assert node["uptime"] == 5


async def test_nodes_that_do_not_answer_are_named(world: World) -> None:
    """T2: what was asked for is done elsewhere."""
    ann, far = await world.one.connect(Identity("ann")), await world.two.connect(Identity("far"))
    world.two.hub.engine.relay.obey.clear()  # as a release that knows nothing of this
    silent = {"silent": [world.two.hub.node_id]}
    assert await world.caller.result("unsubscribe", user="ann", channel="kept:a") == silent
    assert await world.caller.result("refresh", user="far") == silent
    assert await world.caller.result("disconnect", user="ann") == silent
    found = await world.caller.result("info")
    assert found["silent"] == silent["silent"]
    assert [node["uid"] for node in found["nodes"]] == [world.hub.node_id]
    await world.one.settle()
    assert ann.state == "closed"
    assert far.state == "connected"


# -- batches ----------------------------------------------------------------------------------------------


async def replies(caller: Caller, *commands: Any, **more: Any) -> list[Any]:
    answer = await caller.call("batch", commands=commands, **more)
    assert list(answer) == ["replies"]
    found: list[Any] = answer["replies"]
    return found


@pytest.mark.parametrize("parallel", [False, True, None])
async def test_a_batch_answers_each_command_in_order(world: World, parallel: bool | None) -> None:
    ann = await world.one.connect(Identity("ann"))
    async with ann.join("live:a"):
        found = await replies(
            world.caller,
            {"publish": {"channel": "kept:a", "data": 1}},
            {"publish": {"channel": "live:a", "data": 1}},
            {"publish": {"channel": "nowhere", "data": 1}},
            {"broadcast": {"channels": ["kept:b", "x"], "data": 1}},
            {"channels": {}},
            {"presence": {"channel": "kept:a"}},
            {"rpc": {"method": "x"}},
            {"batch": {"commands": []}},
            {},
            None,
            {"publish": None, "refresh": {"user": "ann"}},
            {"info": {}},
            parallel=parallel,
        )
    assert found[0]["publish"]["offset"] == 1
    assert found[1] == {"publish": {}}
    assert [list(each["broadcast"]["responses"][n]) for n, each in ((0, found[3]), (1, found[3]))] == [
        ["result"],
        ["error"],
    ]
    assert found[4] == {"channels": {"channels": {"live:a": {"num_clients": 1}}}}
    codes = {n: found[n]["error"]["code"] for n in (2, 5, 6, 7, 8, 9)}
    assert codes == {2: 102, 5: 108, 6: 104, 7: 104, 8: 104, 9: 107}
    assert found[10] == {"refresh": {}}
    assert world.hub.node_id in {node["uid"] for node in found[11]["info"]["nodes"]}


async def test_a_batch_is_in_order_unless_it_need_not_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far(world, monkeypatch)
    commands = [{"publish": {"channel": f"kept:{n}", "data": n}} for n in range(50)]
    for parallel, width in ((False, 1), (True, 32)):
        far.there.clear()
        far.order.clear()
        task = world.one.spawn(lambda p: replies(world.caller, *commands, parallel=p), parallel)
        await world.one.settle()
        assert far.now == width
        far.there.set()
        await world.one.settle()
        assert len(await task) == 50
    assert far.order[:32] == [f"kept:{n}" for n in range(32)]


async def test_an_empty_batch_has_no_replies(caller: Caller) -> None:
    assert await replies(caller) == []
    assert await caller.call("batch") == {"replies": []}


@pytest.mark.parametrize(
    "commands",
    [
        [{"publish": {"channel": "kept:a", "data": 1}}, {"publish": {"channel": 1}}],
        [{"publish": {"channel": "kept:a", "data": 1}}, 5],
        [{"publish": {"channel": "kept:a", "data": 1}}] * (MAX_COMMANDS + 1),
        {"publish": {"channel": "kept:a", "data": 1}},
    ],
)
async def test_of_a_batch_that_is_none_nothing_is_done(world: World, commands: Any) -> None:
    status, _ = await world.caller.send("batch", json.dumps({"commands": commands}).encode())
    assert status == 400
    assert (await world.hub.room("kept:a").history()).messages == []


async def test_the_answer_to_a_batch_has_a_size(world: World) -> None:
    """What would still be read is refused; what would be written is done."""
    await world.hub.publish("kept:a", "x" * 400_000)
    reads = [{"history": {"channel": "kept:a", "limit": 1}}] * 50
    found = await replies(world.caller, *reads, {"publish": {"channel": "kept:b", "data": 1}}, {"info": {}})
    read = [each for each in found[:50] if "history" in each]
    assert 10 <= len(read) <= 12
    assert {each["error"]["code"] for each in found[len(read) : 50]} == {106}
    assert found[50]["publish"]["offset"] == 1 and "info" in found[51]


# -- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (BrokerUnavailable("redis://secret"), "the broker is not available", "redis://secret"),
        (PublishUnknown("redis://secret"), "may have been published", "redis://secret"),
    ],
)
async def test_a_broker_that_is_away_is_an_error(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
    logged: str,
) -> None:
    async def publish_raw(room: Room[Any], data: bytes, *, key: str | None = None) -> Any:
        raise error

    monkeypatch.setattr(Room, "publish_raw", publish_raw)
    code, message = await world.caller.error("publish", channel="kept:a", data=1)
    assert (code, said in message, "secret" in message) == (100, True, False)
    assert logged in caplog.text


async def test_a_fault_of_ours_is_logged_once_and_told_by_reference(
    world: World, monkeypatch: pytest.MonkeyPatch, errors: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def clear(room: Room[Any]) -> Any:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(Room, "clear", clear)
    code, message = await world.caller.error("history_remove", channel="kept:a")
    assert code == 100 and "secret" not in message
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert message.partition("(reference ")[2].rstrip(")") in record.getMessage()
    assert record.exc_info is not None


def test_a_batch_knows_every_command() -> None:
    assert list(http_units.OneOfBatch.__struct_fields__) == list(COMMANDS)


def test_every_unit_is_listed() -> None:
    found = [
        name
        for name, each in vars(http_units).items()
        if getattr(each, "__module__", "") == http_units.__name__
    ]
    assert sorted(found) == sorted(http_units.__all__)
