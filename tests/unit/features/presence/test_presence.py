"""Who is in a room: what clients see, on one node and on two (P1, P2)."""

from __future__ import annotations

from typing import Any

import pytest

from rtkit import (
    DeclarationError,
    Grant,
    History,
    Hub,
    Identity,
    Member,
    NotEnabled,
    NotSupported,
    Presence,
)
from rtkit.brokers import MemoryBroker
from rtkit.messages import PresenceStats
from rtkit.testing import TestHub
from tests.support.rawclient import RawClient, Unit
from tests.unit.hub.brokers import FaultyBroker, PlainBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history", "presence")


def hub_of(world: World, *, broker: Any = None, **policy: Any) -> Hub[Any]:
    hub = world.hub(broker=broker)
    hub.rooms("chat:{x}", publishes=object, grant=ALL, presence=Presence(**policy))
    hub.rooms("kept:{x}", publishes=object, grant=ALL, presence=Presence(), history=History(9, ttl=60))
    hub.rooms("shy:{x}", publishes=object, grant=Grant("publish"), presence=Presence())
    hub.rooms("bare:{x}", publishes=object, grant=ALL)
    return hub


async def watching(world: World, hub: Hub[Any], user: str, room: str = "chat:a") -> tuple[RawClient, Unit]:
    """A client of rtkit's own that has asked who is there, and the snapshot it got."""
    client = await world.join(hub, user)
    result = await client.call("subscribe", channel=room, presence=True)
    return client, result["presence"]


def frames(client: RawClient, room: str = "chat:a") -> list[Unit]:
    return client.pushes_of(room, "presence")


def users(bodies: list[Unit]) -> list[str]:
    return [each["user"] for each in bodies]


def id_of(client: RawClient) -> str:
    """The client id, from the reply to connect."""
    found: str = client.reply(1)["connect"]["client"]
    return found


# -- asking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "base"])
async def test_who_is_here(world: World, rt: bool) -> None:
    """P1: two clients of one user are two, and one."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", "chat:a", rt=rt)
    phone = await world.join(hub, "ann", "chat:a", rt=rt)
    bob = await world.join(hub, "bob", "chat:a", rt=rt)
    expected = {
        id_of(each): {"user": user, "client": id_of(each)}
        for each, user in ((ann, "ann"), (phone, "ann"), (bob, "bob"))
    }
    assert await bob.call("presence", channel="chat:a") == {"presence": expected}
    assert await bob.call("presence_stats", channel="chat:a") == {"num_clients": 3, "num_users": 2}
    assert await bob.call("presence", channel="chat:empty") == {}
    assert await bob.call("presence_stats", channel="chat:empty") == {}


async def test_the_server_asks(world: World) -> None:
    """P1."""
    hub = hub_of(world, meta=lambda identity: {"name": identity.user.title()})
    ann = await world.join(hub, "ann", "chat:a")
    assert list(await hub.room("chat:a").presence()) == [Member("ann", id_of(ann), {"name": "Ann"})]
    assert await hub.room("chat:a").presence_stats() == PresenceStats(1, 1)
    assert list(await hub.room("chat:b").presence()) == []
    with pytest.raises(NotEnabled, match=r"pass presence=Presence\(\) to rooms\('bare:\{x\}'\)"):
        await hub.room("bare:a").presence()
    with pytest.raises(NotEnabled):
        await hub.room("bare:a").presence_stats()


async def test_who_is_here_on_all_nodes(world: World) -> None:
    one, two = hub_of(world), hub_of(world)
    await world.join(one, "ann", "chat:a")
    bob = await world.join(two, "bob", "chat:a")
    eve = await world.join(two, "eve")
    found = await eve.call("presence", channel="chat:a")
    assert sorted(each["user"] for each in found["presence"].values()) == ["ann", "bob"]
    await bob.call("unsubscribe", channel="chat:a")
    found = await eve.call("presence", channel="chat:a")
    assert [each["user"] for each in found["presence"].values()] == ["ann"]


async def test_the_right_to_see_who_is_here(world: World) -> None:
    """A2: 103 without it; 108 where there is no presence; 102 for no room."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", "shy:a", "bare:a")
    for method in ("presence", "presence_stats"):
        assert (await ann.refused(method, channel="shy:a"))["code"] == 103
        assert (await ann.refused(method, channel="bare:a"))["code"] == 108
        assert (await ann.refused(method, channel="nowhere"))["code"] == 102
    assert (await ann.refused("subscribe", channel="shy:b", presence=True))["code"] == 103
    assert (await ann.refused("subscribe", channel="bare:b", presence=True))["code"] == 108
    assert (await ann.refused("subscribe", channel="nowhere", presence=True))["code"] == 102
    assert "shy:b" not in hub.engine.rooms


async def test_one_s_own_presence_is_there_at_once(world: World) -> None:
    """However long the broker takes to write it down."""
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    gate = broker.hold("revise")
    ann = await world.join(hub, "ann", "chat:a")
    assert len((await ann.call("presence", channel="chat:a"))["presence"]) == 1
    gate.set()
    await ann.settle()
    gate = broker.gates["revise"] = type(gate)()
    await ann.call("unsubscribe", channel="chat:a")
    assert await ann.call("presence", channel="chat:a") == {}
    gate.set()
    await ann.settle()
    assert await hub.room("chat:a").presence() == []


# -- watching -----------------------------------------------------------------------------------------


async def test_a_snapshot_and_what_follows_agree(world: World) -> None:
    """P2."""
    one, two = hub_of(world), hub_of(world)
    bob = await world.join(one, "bob", "chat:a")
    ann, snapshot = await watching(world, two, "ann")
    assert snapshot == {"members": [{"user": "bob", "client": id_of(bob)}]}
    await world.join(one, "eve", "chat:a")
    await bob.call("unsubscribe", channel="chat:a")
    await world.advance(2)
    told = frames(ann)
    assert [each["v"] for each in told] == [1, 2, 3]
    assert users(told[0]["joins"]) == ["ann"]  # one's own coming is told like any other
    assert users(told[1]["joins"]) == ["eve"]
    assert users(told[2]["leaves"]) == ["bob"] and told[2]["leaves"][0]["client"] == id_of(bob)
    _, later = await watching(world, one, "dan")
    assert sorted(users(later["members"])) == ["ann", "eve"]


async def test_at_most_two_frames_a_second(world: World) -> None:
    """P2: batched, however many come and go."""
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    at: list[float] = []
    heard = len(frames(ann))
    for step in range(100):
        await world.join(hub, f"user{step}", "chat:a")
        await world.clock.advance(0.05)
        if len(frames(ann)) > heard:
            assert len(frames(ann)) == heard + 1
            heard += 1
            at.append(world.clock.monotonic())
    await world.advance(2)
    assert len(at) > 5
    assert all(later - first > 0.9 for first, later in zip(at, at[2:], strict=False))
    told = frames(ann)
    assert [each["v"] for each in told] == list(range(1, len(told) + 1))
    assert [user for each in told for user in users(each.get("joins", []))] == ["ann"] + [
        f"user{n}" for n in range(100)
    ]


async def test_who_only_looked_in_is_in_no_frame(world: World) -> None:
    """P2."""
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    await world.join(hub, "bob", "chat:a")  # two frames have left: the next waits
    eve = await world.join(hub, "eve", "chat:a")
    await eve.call("unsubscribe", channel="chat:a")
    await world.advance(3)
    assert [users(each["joins"]) for each in frames(ann)] == [["ann"], ["bob"]]
    assert "eve" not in ann.text


async def test_a_snapshot_in_between_frames_agrees_with_the_next(world: World) -> None:
    """P2: what waits for the next frame is not in the snapshot."""
    hub = hub_of(world)
    await watching(world, hub, "ann")
    await world.join(hub, "bob", "chat:a")
    await world.join(hub, "eve", "chat:a")
    dan, snapshot = await watching(world, hub, "dan")
    assert (snapshot["v"], users(snapshot["members"])) == (2, ["ann", "bob"])
    await world.advance(2)
    assert [(each["v"], users(each["joins"])) for each in frames(dan)] == [(3, ["eve", "dan"])]


async def test_who_did_not_ask_is_told_nothing(world: World) -> None:
    hub = hub_of(world)
    plain = await world.join(hub, "ann", "chat:a")
    base = await world.join(hub, "bob", "chat:a", rt=False)
    asked = await world.join(hub, "eve", rt=False)
    assert "presence" not in await asked.call("subscribe", channel="chat:a", presence=True)
    await world.join(hub, "dan", "chat:a")
    await world.advance(2)
    for client in (plain, base, asked):
        assert client.pushes == []
    assert hub.engine.listeners == {}


async def test_clients_of_the_base_are_told_of_each(world: World) -> None:
    """W1: `join_leave`. They know no updates."""
    hub = hub_of(world, meta=lambda identity: {"n": len(identity.user)})
    ann = await world.join(hub, "ann", rt=False)
    result = await ann.call("subscribe", channel="chat:a", join_leave=True)
    assert "presence" not in result
    bob = await world.join(hub, "bob", "chat:a", rt=True)
    await bob.call("presence_update", channel="chat:a", meta={"n": 4})
    await bob.call("unsubscribe", channel="chat:a")
    await world.advance(3)
    assert users([each["info"] for each in ann.pushes_of("chat:a", "join")]) == ["ann", "bob"]
    assert ann.pushes_of("chat:a", "join")[1]["info"] == {
        "user": "bob",
        "client": id_of(bob),
        "chan_info": {"n": 3},
    }
    assert users([each["info"] for each in ann.pushes_of("chat:a", "leave")]) == ["bob"]
    assert frames(ann) == []


@pytest.mark.parametrize("room", ["shy:a", "bare:a"])
async def test_join_leave_where_it_is_not_to_be_had_is_passed_over(world: World, room: str) -> None:
    """W1: as in the base."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann", rt=False)
    await ann.call("subscribe", channel=room, join_leave=True)
    await world.join(hub, "bob", room)
    await world.advance(2)
    assert ann.pushes == []


async def test_rooms_that_the_server_chose(world: World) -> None:
    """An rt client asks in `subs` of connect."""
    hub = world.hub()
    hub.rooms(
        "all:{x}", publishes=object, grant=ALL, presence=Presence(), auto_join=lambda identity: ["all:a"]
    )
    await hub.start()
    bob, ann = world.client(hub, rt=True), world.client(hub, rt=True)
    assert "presence" not in (await bob.connect("bob"))["subs"]["all:a"]
    result = await ann.connect("ann", subs={"all:a": {"presence": True}})
    assert users(result["subs"]["all:a"]["presence"]["members"]) == ["bob"]
    await world.advance(1)
    assert [users(each["joins"]) for each in frames(ann, "all:a")] == [["ann"]]
    assert frames(bob, "all:a") == []


async def test_nothing_is_said_of_a_room_that_was_left(world: World) -> None:
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    await world.join(hub, "bob", "chat:a")
    await world.join(hub, "eve", "chat:a")
    await ann.call("unsubscribe", channel="chat:a")
    told = len(frames(ann))
    await world.advance(3)
    assert len(frames(ann)) == told
    assert hub.engine.listeners == {}
    # And it begins anew.
    assert sorted(
        users((await ann.call("subscribe", channel="chat:a", presence=True))["presence"]["members"])
    ) == [
        "bob",
        "eve",
    ]


async def test_what_was_queued_for_a_room_that_was_left_is_void(world: World) -> None:
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    ann.pipe.choke()
    await world.join(hub, "bob", "chat:a")
    ann.ask("unsubscribe", channel="chat:a")
    await world.settle()
    ann.pipe.drain()
    await world.advance(2)
    assert [users(each["joins"]) for each in frames(ann)] == [["ann"]]


async def test_who_is_taken_out_while_it_is_read_who_is_there_leaves_nothing(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    ann = await world.join(hub, "ann")
    gate = broker.hold("revision")
    asked = ann.ask("subscribe", channel="chat:a", presence=True)
    await world.settle()
    assert len(hub.engine.listeners) == 1
    await hub.room("chat:a").remove("ann", reason="enough")
    await world.settle()
    gate.set()
    await ann.settle()
    assert "error" in ann.reply(asked)
    assert hub.engine.listeners == {} and hub.engine.rooms == {}
    assert await hub.room("chat:a").presence() == []


async def test_who_comes_while_the_last_one_goes_is_told(world: World) -> None:
    """Another client, or the same one again in the same frame."""
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob")
    await world.advance(2)
    ann.ask("unsubscribe", channel="chat:a")
    bob.ask("subscribe", channel="chat:a", presence=True)
    await world.advance(2)
    bob.tell(
        {"id": 90, "unsubscribe": {"channel": "chat:a"}},
        {"id": 91, "subscribe": {"channel": "chat:a", "presence": True}},
    )
    await world.advance(2)
    assert bob.answered(91)
    await world.join(hub, "eve", "chat:a")
    await world.advance(1)
    assert "eve" in users(frames(bob)[-1]["joins"])


async def test_who_is_taken_out_before_it_is_read_who_is_there_leaves_nothing(world: World) -> None:
    hub = world.hub()
    rooms = hub.rooms("chat:{x}", publishes=object, grant=ALL, presence=Presence())

    @rooms.on_join
    async def joined(ctx: Any) -> None:
        await ctx.room.remove(ctx.user, reason="enough")
        await world.settle()

    ann = await world.join(hub, "ann")
    assert "code" in await ann.refused("subscribe", channel="chat:a", presence=True)
    await world.advance(1)
    assert hub.engine.listeners == {} and hub.engine.rooms == {}
    assert await hub.room("chat:a").presence() == []


async def test_who_may_not_see_it_any_more_is_told_nothing(world: World) -> None:
    """A2: the grant counts when something is to be said, not when it was asked for."""
    hub = world.hub()
    rooms = hub.rooms("chat:{x}", publishes=object, presence=Presence())
    rights: list[Any] = ["presence"]

    @rooms.authorize
    async def authorize(ctx: Any) -> Grant:
        return Grant(*rights, ttl=5)

    await hub.start()
    ann, _ = await watching(world, hub, "ann")
    rights.clear()
    await world.advance(6)
    told = len(frames(ann))
    await world.join(hub, "bob", "chat:a")
    await world.advance(1)
    assert len(frames(ann)) == told
    rights.append("presence")
    await world.advance(6)
    await world.join(hub, "eve", "chat:a")
    await world.advance(1)
    assert sorted(users(frames(ann)[-1]["members"])) == ["ann", "bob", "eve"]


# -- what a client says about itself ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["command", "rpc", "rpc of the base"])
async def test_meta_is_updated_in_place(world: World, way: str) -> None:
    """P1."""
    one, two = hub_of(world, meta=lambda identity: {"name": identity.user}), hub_of(world)
    ann, _ = await watching(world, two, "ann")
    bob = await world.join(one, "bob", "chat:a", rt=way != "rpc of the base")
    await world.advance(2)
    meta = {"name": "bob", "away": True}
    if way == "command":
        assert await bob.call("presence_update", channel="chat:a", meta=meta) == {}
    else:
        data = {"channel": "chat:a", "meta": meta}
        assert await bob.call("rpc", method="rt.presence.update", data=data) == {}
    await ann.settle()
    last = frames(ann)[-1]
    assert last["updates"] == [{"user": "bob", "client": id_of(bob), "meta": meta}]
    assert "joins" not in last and "leaves" not in last
    found = {each.user: each.meta for each in await two.room("chat:a").presence()}
    assert found["bob"] == meta
    shown = (await ann.call("presence", channel="chat:a"))["presence"][id_of(bob)]
    assert shown == {"user": "bob", "client": id_of(bob), "chan_info": meta}


async def test_an_update_that_changes_nothing_is_no_frame(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker, meta=lambda identity: {"n": 1})
    ann, _ = await watching(world, hub, "ann")
    before = len(frames(ann)), broker.calls.count("revise")
    await ann.call("presence_update", channel="chat:a", meta={"n": 1})
    await world.advance(2)
    assert (len(frames(ann)), broker.calls.count("revise")) == before


async def test_bad_metas(world: World) -> None:
    """W3, F1."""
    hub = hub_of(world, max_meta=20)
    ann = await world.join(hub, "ann", "chat:a", "shy:a", "bare:a")
    for meta in ([], "x", 1, None):
        assert (await ann.refused("presence_update", channel="chat:a", meta=meta))["code"] == 107
    assert (await ann.refused("presence_update", channel="chat:a"))["code"] == 107
    assert (await ann.refused("presence_update", channel="chat:a", meta={"x": "y" * 20}))["code"] == 106
    assert (await ann.refused("presence_update", channel="chat:b", meta={}))["code"] == 103
    assert (await ann.refused("presence_update", channel="shy:a", meta={}))["code"] == 103
    assert (await ann.refused("presence_update", channel="bare:a", meta={}))["code"] == 108
    assert (await ann.refused("presence_update", channel="nowhere", meta={}))["code"] == 102
    assert (await ann.refused("rpc", method="rt.presence.update"))["code"] == 107
    data = {"channel": "bare:a", "meta": {}}
    assert (await ann.refused("rpc", method="rt.presence.update", data=data))["code"] == 108
    ann.tell(b'{"id":99,"presence_update":{"channel":"chat:a","meta":{"x":1e999}}}')
    await ann.settle()
    assert ann.reply(99)["error"]["code"] == 107
    await ann.call("presence_update", channel="chat:a", meta={"x": "y" * 12})
    assert [each.meta for each in await hub.room("chat:a").presence()] == [{"x": "y" * 12}]


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        (b'{"x":' + b"[" * 100 + b"]" * 100 + b"}", None),
        (b'{"x":' + b"[" * 400 + b"]" * 400 + b"}", 107),
        (b'{"x":' * 20_000 + b"1" + b"}" * 20_000, 107),
        (b'{"x":"' + b"y" * 60_000 + b'"}', 106),
        (b'{"x":1,"x":2}', None),
        (b'{"x":"\\ud800"}', 107),
        (b'{"":{}}', None),
        (b'{"x":NaN}', 107),
        (b'{"x":123456789012345678901234567890}', None),
    ],
    ids=[
        "nested",
        "nested too deeply",
        "nested beyond reason",
        "huge",
        "twice",
        "half a character",
        "no name",
        "NaN",
        "large number",
    ],
)
async def test_strange_metas(world: World, meta: bytes, code: int | None) -> None:
    """One is refused in good order, or taken, and then all see the same."""
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob", "chat:a")
    await world.advance(2)
    bob.tell(b'{"id":99,"presence_update":{"channel":"chat:a","meta":' + meta + b"}}")
    await world.advance(2)
    if code is None:
        assert "error" not in bob.reply(99)
        shown = {each.user: each.meta for each in await hub.room("chat:a").presence()}
        assert frames(ann)[-1]["updates"][0]["meta"] == shown["bob"] != {}
    elif bob.closed is None:
        assert bob.reply(99)["error"]["code"] == code
    else:
        assert bob.closed[0] == 3501, "what is no unit closes"
    assert (await ann.call("presence_stats", channel="chat:a"))["num_clients"] in (1, 2)


async def test_a_family_may_keep_metas_to_itself(world: World) -> None:
    hub = hub_of(world, meta=lambda identity: {"role": "guest"}, updates=False)
    ann = await world.join(hub, "ann", "chat:a")
    refused = await ann.refused("presence_update", channel="chat:a", meta={"role": "admin"})
    assert refused["code"] == 103
    assert [each.meta for each in await hub.room("chat:a").presence()] == [{"role": "guest"}]


@pytest.mark.parametrize(
    "meta", [lambda _: 1 / 0, lambda _: ["x"], lambda _: {"x": "y" * 2000}, lambda _: {"x": {1}.pop}]
)
async def test_a_meta_function_that_fails_keeps_nobody_out(world: World, errors: Any, meta: Any) -> None:
    hub = hub_of(world, meta=meta)
    await world.join(hub, "ann", "chat:a")
    assert [each.meta for each in await hub.room("chat:a").presence()] == [{}]
    assert len(errors()) == 1


def test_what_cannot_work_is_said_when_it_is_declared() -> None:
    with pytest.raises(ValueError, match="max_meta"):
        Presence(max_meta=0)
    with pytest.raises(ValueError, match="listed"):
        Presence(listed=0)

    async def later(identity: Identity[Any]) -> dict[str, Any]:
        return {}

    with pytest.raises(TypeError, match="plain function"):
        Presence(meta=later)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, Presence, object()])
async def test_presence_is_an_instance(world: World, given: Any) -> None:
    """api 7."""
    with pytest.raises(DeclarationError, match=r"pass presence=Presence\(\)"):
        world.hub().rooms("chat:{x}", publishes=object, grant=ALL, presence=given)


async def test_a_broker_without_state_is_refused_at_start(world: World) -> None:
    hub = world.hub(broker=PlainBroker())
    hub.rooms("chat:{x}", publishes=object, grant=ALL, presence=Presence())
    with pytest.raises(NotSupported, match="PlainBroker keeps no state"):
        await hub.start()


# -- large rooms --------------------------------------------------------------------------------------------


async def test_a_large_room_is_counted_and_not_listed(world: World) -> None:
    hub = hub_of(world, listed=3)
    ann, snapshot = await watching(world, hub, "ann")
    assert snapshot == {"members": []}
    base = await world.join(hub, "zoe", rt=False)
    await base.call("subscribe", channel="chat:a", join_leave=True)
    others = [await world.join(hub, f"user{n}", "chat:a") for n in range(2)]
    await world.advance(2)
    assert frames(ann)[-1] == {"v": len(frames(ann)), "clients": 4, "users": 4}
    error = await ann.refused("presence", channel="chat:a")
    assert error["code"] == 106 and "4 clients" in error["message"]
    assert (await ann.call("presence_stats", channel="chat:a"))["num_clients"] == 4
    assert len(await hub.room("chat:a").presence()) == 4
    dan, late = await watching(world, hub, "dan")
    assert late["clients"] == 4 and "members" not in late
    told = len(base.pushes)
    await world.advance(2)
    assert len(base.pushes) == told
    # When it has become smaller, it begins with a list again, for everybody.
    for other in others:
        await other.call("unsubscribe", channel="chat:a")
    await world.advance(2)
    for client in (ann, dan):
        assert sorted(users(frames(client)[-1]["members"])) == ["ann", "dan", "zoe"]
    await dan.call("presence_update", channel="chat:a", meta={"x": 1})
    await world.advance(2)
    assert users(frames(ann)[-1]["updates"]) == ["dan"]


async def test_who_comes_to_a_large_room_before_it_shrinks_gets_a_list(world: World) -> None:
    hub = hub_of(world, listed=2)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob", "chat:a")
    await world.advance(2)
    eve = await world.join(hub, "eve", "chat:a")
    dan, snapshot = await watching(world, hub, "dan")
    assert "members" not in snapshot
    for each in (eve, bob):
        await each.call("unsubscribe", channel="chat:a")
    await world.advance(3)
    assert sorted(users(frames(dan)[-1]["members"])) == ["ann", "dan"]
    assert sorted(users(frames(ann)[-1]["members"])) == ["ann", "dan"]


async def test_who_was_only_told_a_number_is_told_the_list_whatever_the_others_know(world: World) -> None:
    """It was too large for a moment between two frames."""
    hub = hub_of(world, listed=2)
    ann, _ = await watching(world, hub, "ann")
    bob = await world.join(hub, "bob", "chat:a")  # two frames have left
    eve = await world.join(hub, "eve", "chat:a")
    dan, snapshot = await watching(world, hub, "dan")
    assert "members" not in snapshot
    for each in (eve, bob):
        await each.call("unsubscribe", channel="chat:a")
    await world.advance(2)
    assert sorted(users(frames(dan)[0]["members"])) == ["ann", "dan"]
    assert len(frames(ann)) == 3


async def test_a_list_is_bounded_in_bytes_too(world: World) -> None:
    hub = hub_of(world, meta=lambda identity: {"x": "y" * 500}, listed_size=1500)
    ann, _ = await watching(world, hub, "ann")
    await world.join(hub, "bob", "chat:a")
    await world.advance(2)
    assert len((await ann.call("presence", channel="chat:a"))["presence"]) == 2
    await world.join(hub, "eve", "chat:a")
    await world.advance(2)
    assert frames(ann)[-1]["clients"] == 3
    assert (await ann.refused("presence", channel="chat:a"))["code"] == 106


# -- slow, and missed ---------------------------------------------------------------------------------------


async def test_who_is_slow_gets_a_snapshot_when_there_is_room(world: World) -> None:
    """D2: late, and never wrong."""
    hub = hub_of(world, meta=lambda identity: {"x": "y" * 1000})
    ann, _ = await watching(world, hub, "ann")
    await world.advance(2)
    ann.pipe.choke(hub.limits.outbox)
    bob = await world.join(hub, "bob", "chat:a")
    await world.advance(2)
    await world.join(hub, "eve", "chat:a")
    await bob.call("unsubscribe", channel="chat:a")
    await world.advance(2)
    assert len(frames(ann)) == 1
    ann.pipe.drain()
    await world.advance(2)
    assert sorted(users(frames(ann)[-1]["members"])) == ["ann", "eve"]
    await world.join(hub, "dan", "chat:a")
    await world.advance(2)
    assert users(frames(ann)[-1]["joins"]) == ["dan"]
    assert frames(ann)[-1]["v"] == frames(ann)[-2]["v"] + 1
    assert hub.statistics().totals is not None and hub.engine.counters.get("drops", "presence")


async def test_a_slow_one_does_not_hold_up_the_others(world: World) -> None:
    """D3."""
    hub = hub_of(world)
    slow, _ = await watching(world, hub, "slow")
    ann, _ = await watching(world, hub, "ann")
    await world.advance(2)
    slow.pipe.choke(hub.limits.outbox)
    await world.join(hub, "bob", "chat:a")
    assert users(frames(ann)[-1]["joins"]) == ["bob"]
    await world.clock.advance(0.1)
    await world.join(hub, "eve", "chat:a")
    assert users(frames(ann)[-1]["joins"]) == ["eve"]


@pytest.mark.parametrize("behind", ["its own chunks", "what is left of another"])
async def test_who_joins_with_a_large_answer_is_told_nothing_before_it(world: World, behind: str) -> None:
    """P2, T8: a frame says what is different from the answer's snapshot. Found by simulation (seed 2001000)."""
    hub = hub_of(world)
    ann = await world.join(hub, "ann")
    for _ in range(5):
        await hub.publish("kept:a", "x" * 50_000)
    ann.pipe.choke()
    stands: dict[str, Any] = {"recover": True, "epoch": "", "offset": 0}
    if behind == "its own chunks":
        asked = ann.ask("subscribe", channel="kept:a", presence=True, **stands)
    else:
        ann.ask("subscribe", channel="kept:a", presence=True, **stands)
        await world.settle()
        ann.ask("unsubscribe", channel="kept:a")
        asked = ann.ask("subscribe", channel="kept:a", presence=True)
    await world.settle()
    await world.join(hub, "bob", "kept:a")
    ann.pipe.drain()
    await world.advance(3)
    units = ann.units
    (joined,) = (n for n, unit in enumerate(units) if unit.get("id") == asked)
    told = [n for n, unit in enumerate(units) if "presence" in unit.get("push", {})]
    assert told and min(told) > joined
    last = frames(ann, "kept:a")[-1]
    assert sorted(users(last["members"])) == ["ann", "bob"]
    await world.join(hub, "eve", "kept:a")
    await world.advance(2)
    assert users(frames(ann, "kept:a")[-1]["joins"]) == ["eve"]
    assert frames(ann, "kept:a")[-1]["v"] == last["v"] + 1


async def test_a_missed_notice_is_made_up_for_by_the_next(world: World) -> None:
    """P2: a jump re-reads, and yields the difference."""
    broker = FaultyBroker(world.backend)
    one, two = hub_of(world), hub_of(world, broker=broker)
    ann, _ = await watching(world, two, "ann")
    await world.advance(2)
    broker.deaf = {"\0presence:chat:a"}
    bob = await world.join(one, "bob", "chat:a")
    await world.join(one, "eve", "chat:a")
    broker.deaf = False
    assert len(frames(ann)) == 1
    await bob.call("unsubscribe", channel="chat:a")
    await world.advance(1)
    assert users(frames(ann)[-1]["joins"]) == ["eve"]
    assert "bob" not in ann.text


async def test_a_missed_last_notice_is_found_by_the_position_check(world: World) -> None:
    """P2, H4."""
    broker = FaultyBroker(world.backend)
    one, two = hub_of(world), hub_of(world, broker=broker)
    ann, _ = await watching(world, two, "ann")
    broker.deaf = {"\0presence:chat:a"}
    await world.join(one, "bob", "chat:a")
    broker.deaf = False
    await world.advance(2)
    assert len(frames(ann)) == 1
    await world.advance(36)
    assert users(frames(ann)[-1]["joins"]) == ["bob"]


async def test_a_broker_that_says_it_was_interrupted_is_read(world: World) -> None:
    broker = FaultyBroker(world.backend)
    one, two = hub_of(world), hub_of(world, broker=broker)
    ann, _ = await watching(world, two, "ann")
    broker.deaf = {"\0presence:chat:a"}
    await world.join(one, "bob", "chat:a")
    broker.deaf = False
    broker.failing = {"revision"}
    broker.interrupt("\0presence:chat:a")
    await world.settle()
    assert len(frames(ann)) == 1
    broker.failing = set()
    await world.advance(3)
    assert users(frames(ann)[-1]["joins"]) == ["bob"]


async def test_what_nobody_of_ours_has_written_harms_nothing(world: World, errors: Any) -> None:
    """W5: a newer release, or a stray program."""
    hub = hub_of(world)
    ann, _ = await watching(world, hub, "ann")
    await world.advance(1)
    key, topic = "presence:chat:a", "\0presence:chat:a"
    world.backend.revise(key, {"x": b"?"}, 60, {}, topic, b"?")
    world.backend.revise(key, {"y": b'{"v":9,"user":"y","node":"n","life":"l"}'}, 60, {}, topic, b'{"v":9}')
    world.backend.publish(topic, b"{}", None)
    await world.advance(2)
    assert errors()
    # A notice that cannot be read is still the news that something has changed.
    eve = b'{"v":1,"user":"eve","node":"n","life":"l"}'
    world.backend.revise(key, {"z": eve}, 60, {}, topic, b'{"v":9}')
    await world.advance(2)
    assert users(frames(ann)[-1]["joins"]) == ["eve"]
    bob = await world.join(hub, "bob", "chat:a")
    await world.advance(2)
    assert users(frames(ann)[-1]["joins"]) == ["bob"]
    found = (await bob.call("presence", channel="chat:a"))["presence"]
    assert sorted(each["user"] for each in found.values()) == ["ann", "bob", "eve"]


async def test_to_ask_who_is_there_needs_the_broker(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    ann = await world.join(hub, "ann", "chat:a")
    broker.failing = {"revision", "entries"}
    error = await ann.refused("subscribe", channel="chat:b", presence=True)
    assert error["code"] == 100 and error["temporary"]
    assert hub.engine.listeners == {}
    assert (await ann.refused("presence", channel="chat:b"))["code"] == 100
    broker.failing = set()
    assert (await ann.call("subscribe", channel="chat:b", presence=True))["presence"] == {"members": []}
    await world.advance(1)


async def test_many_who_ask_at_the_same_time_share_a_read(world: World) -> None:
    """F2."""
    broker = FaultyBroker(world.backend)
    hub = hub_of(world, broker=broker)
    await world.join(hub, "bob", "chat:a")
    clients = [await world.join(hub, f"user{n}") for n in range(20)]
    del broker.calls[:]
    gate = broker.hold("entries")
    asked = [client.ask("presence", channel="chat:a") for client in clients]
    await world.settle()
    await clients[0].drop()  # of one that is waited for by others
    del broker.gates["entries"]
    gate.set()
    await world.settle()
    reads = [call for call in broker.calls if call == "entries"]
    assert len(reads) == 1
    for client, id in zip(clients[1:], asked[1:], strict=True):
        assert len(client.reply(id)["presence"]["presence"]) == 1


async def test_presence_through_the_test_hub() -> None:
    """The way an application tests it."""
    hub: Hub[Any] = Hub(authenticate=by_nobody, broker=MemoryBroker())
    hub.rooms("chat:{x}", publishes=object, grant=ALL, presence=Presence())
    async with TestHub(hub) as t:
        ann = await t.connect(Identity("ann"))
        async with ann.join("chat:a"):
            await t.settle()
            assert [each.user for each in await hub.room("chat:a").presence()] == ["ann"]
        await t.settle()
        assert await hub.room("chat:a").presence() == []


async def by_nobody(credentials: Any) -> Any:
    raise AssertionError("not asked")
