"""Coming and going: hooks of rooms and sessions, rooms that the server chooses (api 6 and 8, H2)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Identity, Limits, Reject
from tests.support.rawclient import publications
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

HISTORY = {"history": History(100, ttl=600)}
KINDS = pytest.mark.parametrize("options", [HISTORY, {}], ids=["history", "no history"])


class Door:
    """Rooms whose on_join does what the test says, and whose comings and goings are noted."""

    def __init__(self, hub: Hub[Any], options: dict[str, Any] | None = None) -> None:
        self.hub = hub
        self.log: list[str] = []
        self.answer: Any = None
        self.gate: asyncio.Event | None = None
        self.rooms = hub.rooms("r:{x}", publishes=object, grant=Grant("publish"), **(options or {}))
        self.rooms.on_join(self.joined)
        self.rooms.on_leave(self.left)

    async def joined(self, ctx: Context[Any, Any]) -> Any:
        self.log.append(f"{ctx.user} comes")
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        self.log.append(f"{ctx.user} is in")
        return self.answer

    async def left(self, ctx: Context[Any, Any]) -> None:
        self.log.append(f"{ctx.user} left {ctx.room.name}")


# -- on_join ------------------------------------------------------------------------------------------


@KINDS
async def test_what_on_join_returns_is_the_join_data(world: World, options: dict[str, Any]) -> None:
    """API 6."""
    door = Door(world.hub(), options)
    client = await world.join(door.hub, "ann")
    for answer in ({"title": "x"}, 0, [], "", False):
        door.answer = answer
        result = await client.call("subscribe", channel="r:a")
        assert result["data"] == answer
        await client.call("unsubscribe", channel="r:a")
    door.answer = None
    assert "data" not in await client.call("subscribe", channel="r:a")


@KINDS
@pytest.mark.parametrize("answer", [Reject("full", code=450), ValueError("x"), {1, object()}])
async def test_an_on_join_that_says_no_leaves_nothing(
    world: World, errors: Any, options: dict[str, Any], answer: Any
) -> None:
    """API 6: no member, no subscription, no on_leave; and it may be tried again."""
    door = Door(world.hub(), options)
    door.answer = answer
    client = await world.join(door.hub, "ann")
    error = await client.refused("subscribe", channel="r:a")
    assert error["code"] == (450 if isinstance(answer, Reject) else 100)
    assert len(errors()) == (not isinstance(answer, Reject))
    assert door.hub.statistics().rooms == 0
    await door.hub.publish("r:a", "nobody hears")
    door.answer = "welcome"
    result = await client.call("subscribe", channel="r:a")
    assert result["data"] == "welcome"
    assert client.pushes == []
    await client.call("unsubscribe", channel="r:a")
    assert door.log.count("ann left r:a") == 1


@KINDS
async def test_no_hole_while_on_join_runs(world: World, options: dict[str, Any]) -> None:
    """H2, api 6: state read in on_join plus the messages that follow: nothing missing, nothing double."""
    hub = world.hub()
    door = Door(hub, options)
    other = await world.join(hub, "bob", "r:b")
    state: list[int] = []

    async def publish(n: int) -> None:
        state.append(n)
        await hub.publish("r:a", n)

    await publish(0)
    door.gate = asyncio.Event()
    client = await world.join(hub, "ann")
    id = client.ask("subscribe", channel="r:a")
    await client.settle()
    for n in range(1, 20):
        await publish(n)
        await client.settle()
    door.answer = list(state)
    assert not client.answered(id)
    door.gate.set()
    await client.settle()
    for n in range(20, 25):
        await publish(n)
    await client.settle()
    result = client.reply(id)["subscribe"]
    got = publications(result) + client.data_of("r:a")
    assert got == list(range(1, 25))
    if options:
        assert result["offset"] == 20
        offsets = [p["offset"] for p in result["publications"]] + client.offsets_of("r:a")
        assert offsets == list(range(2, 26))
    assert other.pushes == []


async def test_more_than_the_buffer_holds_while_on_join_runs(world: World) -> None:
    """H2: with history the rest is read; without, the oldest are dropped and counted (H6)."""
    hub = world.hub()
    door = Door(hub, {"history": History(1000, ttl=600)})
    live = hub.rooms("live:{x}", publishes=object, grant=Grant())
    live.on_join(door.joined)
    door.gate = asyncio.Event()
    ann, bob = await world.join(hub, "ann"), await world.join(hub, "bob")
    ids = ann.ask("subscribe", channel="r:a"), bob.ask("subscribe", channel="live:a")
    await world.settle()
    for n in range(600):
        await hub.publish("r:a", n)
        await hub.publish("live:a", n)
    door.gate.set()
    await world.settle()
    assert publications(ann.reply(ids[0])["subscribe"]) + ann.data_of("r:a") == list(range(600))
    assert publications(bob.reply(ids[1])["subscribe"]) == list(range(600 - 256, 600))
    totals = hub.statistics().totals
    assert totals is not None
    assert totals["drops{joining}"] == 600 - 256


async def test_an_on_join_that_takes_too_long(world: World, errors: Any) -> None:
    """C2: answered 100, taken out, and the queue goes on."""
    door = Door(world.hub(), HISTORY)
    door.gate = asyncio.Event()
    client = await world.join(door.hub, "ann")
    id, ping = client.ask("subscribe", channel="r:a"), client.ask("ping")
    await world.advance(31)
    assert client.reply(id)["error"]["code"] == 100
    assert client.answered(ping)
    assert door.hub.statistics().rooms == 0
    assert door.log == ["ann comes"]


# -- on_leave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["unsubscribe", "drop", "bye", "close", "remove", "user.close"])
async def test_on_leave_runs_once_however_one_leaves(world: World, way: str) -> None:
    """API 6."""
    hub = world.hub()
    door = Door(hub, HISTORY)
    client = await world.join(hub, "ann", "r:a", "r:b")
    door.log.clear()
    if way == "unsubscribe":
        await client.call("unsubscribe", channel="r:a")
    elif way == "remove":
        await hub.room("r:a").remove("ann", reason="out")
        await world.settle()
    else:
        if way == "drop":
            await client.drop()
        elif way == "bye":
            await client.leave()
        elif way == "close":
            [session] = hub.engine.sessions.values()
            await session.close()
        else:
            await hub.user("ann").close()
        await world.settle()
        assert door.log.count("ann left r:b") == 1
    assert door.log.count("ann left r:a") == 1


async def test_on_leave_that_fails_is_logged_with_its_context(world: World, errors: Any) -> None:
    """API 9, L3."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant())

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        if ctx.room.name == "r:b":
            await asyncio.Event().wait()
        raise ValueError("x")

    client = await world.join(hub, "ann", "r:a", "r:b")
    await client.drop()
    await world.advance(31)
    for record, room in zip(errors(), ("r:a", "r:b"), strict=True):
        assert (record.getMessage(), record.user, record.room) == ("on_leave failed", "ann", room)
    assert hub.statistics().rooms == 0


async def test_on_leave_never_runs_before_on_join_is_through(world: World) -> None:
    """API 6: what on_join wrote down, on_leave strikes out; the other way round it would stay for ever."""
    hub = world.hub()
    door = Door(hub, HISTORY)
    door.gate = asyncio.Event()
    client = await world.join(hub, "ann")
    client.ask("subscribe", channel="r:a")
    await client.settle()
    await client.drop()
    await world.advance(1)
    assert door.log == ["ann comes"]
    door.gate.set()
    await world.settle()
    assert door.log == ["ann comes", "ann is in", "ann left r:a"]
    assert hub.statistics().rooms == 0


async def test_no_on_leave_for_who_was_refused_and_then_went(world: World) -> None:
    """API 6: it never was in."""
    hub = world.hub()
    door = Door(hub, HISTORY)
    door.gate, door.answer = asyncio.Event(), Reject("no")
    client = await world.join(hub, "ann")
    client.ask("subscribe", channel="r:a")
    await client.settle()
    await client.drop()
    door.gate.set()
    await world.settle()
    assert door.log == ["ann comes"]


async def test_removed_while_joining(world: World) -> None:
    """A4: the join fails, and on_leave follows on_join."""
    hub = world.hub()
    door = Door(hub, HISTORY)
    door.gate = asyncio.Event()
    client = await world.join(hub, "ann")
    id = client.ask("subscribe", channel="r:a")
    await client.settle()
    await hub.room("r:a").remove("ann", reason="out")
    door.gate.set()
    await client.settle()
    assert client.reply(id)["error"]["code"] == 103
    assert door.log == ["ann comes", "ann is in", "ann left r:a"]
    await hub.publish("r:a", 1)
    await client.settle()
    assert client.data_of("r:a") == []


# -- on_session_start and on_session_end --------------------------------------------------------------


async def test_session_hooks(world: World) -> None:
    """API 6."""
    hub = world.hub()
    log: list[str] = []

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        ctx.session.state["n"] = 1
        log.append(f"{ctx.user} begins, resumed {ctx.resumed}")

    @hub.on_session_end
    async def end(ctx: Context[Any, Any], reason: str) -> None:
        log.append(f"{ctx.user} ends {ctx.session.state} {reason!r}")

    ends: list[Any] = []
    for way in ("bye", "drop", "close"):
        client = await world.join(hub, "ann")
        if way == "bye":
            await client.leave()
        elif way == "drop":
            await client.drop()
        else:
            await hub.user("ann").close(reason="go home")
            await world.settle()
        ends.append(log[-1])
    assert log.count("ann begins, resumed False") == 3
    assert ends == [
        "ann ends {'n': 1} 'bye'",
        "ann ends {'n': 1} 'connection lost'",
        "ann ends {'n': 1} 'go home'",
    ]


async def test_on_session_start_may_refuse(world: World) -> None:
    """Protocol 3.8: 3507; and no room's push comes before the error."""
    hub = world.hub()
    hub.rooms("r:{x}", publishes=object, grant=Grant(), auto_join=lambda identity: ["r:a"], **HISTORY)

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        await hub.publish("r:a", "news")
        raise Reject("closed today", code=460)

    await hub.start()
    client = world.client(hub)
    error = await client.refused("connect", token="ann")
    assert error == {"code": 460, "message": "closed today"}
    assert client.closed == (3507, "not permitted")
    assert client.pushes == []
    assert (hub.statistics().sessions, hub.statistics().rooms) == (0, 0)


@pytest.mark.parametrize("problem", ["raises", "hangs"])
async def test_on_session_start_that_fails(world: World, errors: Any, problem: str) -> None:
    """Protocol 3.8: 3004, come back; in bounded time."""
    hub = world.hub(limits=Limits(heartbeat=None))

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        if problem == "hangs":
            await asyncio.Event().wait()
        raise ValueError("x")

    await hub.start()
    client = world.client(hub)
    id = client.ask("connect", token="ann")
    await world.advance(31)
    assert client.reply(id)["error"]["code"] == 100
    assert client.closed == (3004, "internal error")
    assert len(errors()) == 1


async def test_on_session_end_that_fails_or_hangs(world: World, errors: Any) -> None:
    """L3: logged; the next one runs all the same."""
    hub = world.hub()
    log: list[str] = []

    @hub.on_session_end
    async def first(ctx: Context[Any, Any], reason: str) -> None:
        if ctx.user == "ann":
            raise ValueError
        await asyncio.Event().wait()

    @hub.on_session_end
    async def second(ctx: Context[Any, Any], reason: str) -> None:
        log.append(ctx.user)

    for user in ("ann", "bob"):
        client = await world.join(hub, user)
        await client.drop()
    await world.advance(31)
    assert log == ["ann", "bob"]
    assert len(errors()) == 2


# -- rooms that the server chooses --------------------------------------------------------------------


def personal(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("all", publishes=object, grant=Grant(), auto_join=lambda identity: ["all"])
    hub.rooms(
        "user:{user}",
        publishes=object,
        grant=Grant(),
        auto_join=lambda identity: [f"user:{identity.user}"],
        **HISTORY,
    )
    return hub


async def test_auto_join(world: World) -> None:
    """API 8: the rooms are in the connect reply, and their messages come after it."""
    hub = personal(world)
    await hub.publish("user:ann", "old") if hub.statistics().running else None
    await hub.start()
    await hub.publish("user:ann", "old")
    client = world.client(hub)
    result = await client.connect("ann")
    epoch = result["subs"]["user:ann"]["epoch"]
    assert result["subs"] == {
        "all": {},
        "user:ann": {"recoverable": True, "positioned": True, "epoch": epoch, "offset": 1},
    }
    await hub.publish("user:ann", 1)
    await hub.publish("user:bob", 2)
    await hub.publish("all", 3)
    await client.settle()
    assert [(p["channel"], p["pub"]["data"]) for p in client.pushes] == [("user:ann", 1), ("all", 3)]
    assert (await client.refused("subscribe", channel="all"))["code"] == 105


async def test_the_connect_reply_comes_before_any_push(world: World) -> None:
    """Protocol 3.7: whatever is published while the session starts."""
    hub = personal(world)

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        for n in range(3):
            await hub.publish("user:ann", n)
            await hub.publish("all", n)
            await world.clock.settle()
        ctx.session.send("hello")

    await hub.start()
    client = world.client(hub)
    client.ask("connect", token="ann")
    for _ in range(5):
        await client.settle()
    assert "connect" in client.units[0]
    assert client.offsets_of("user:ann") == [1, 2, 3]
    assert client.data_of("all") == [0, 1, 2]
    assert client.pushes[-1] == {"message": {"data": "hello"}}


async def test_auto_joined_rooms_recover_by_connect_subs(world: World) -> None:
    """Protocol 3.6, H3: and names that the server did not choose are ignored."""
    hub = personal(world)
    client = await world.join(hub, "ann")
    await hub.publish("user:ann", 1)
    epoch = client.reply(1)["connect"]["subs"]["user:ann"]["epoch"]
    await client.drop()
    for n in (2, 3):
        await hub.publish("user:ann", n)
    again = world.client(hub, rt=True)
    result = await again.connect(
        "ann",
        subs={
            "user:ann": {"recover": True, "epoch": epoch, "offset": 1},
            "user:bob": {"recover": True},
            "nothing": {},
        },
    )
    assert set(result["subs"]) == {"all", "user:ann"}
    sub = result["subs"]["user:ann"]
    assert (sub["recovered"], sub["was_recovering"], sub["offset"]) == (True, True, 3)
    assert publications(sub) == [2, 3]
    await hub.publish("user:ann", 4)
    await again.settle()
    assert again.offsets_of("user:ann") == [4]
    late = world.client(hub, rt=True)
    result = await late.connect("ann", subs={"user:ann": {"recover": True, "epoch": "other", "offset": 1}})
    sub = result["subs"]["user:ann"]
    assert "recovered" not in sub
    assert sub["gap"]["reason"] == "epoch"


@pytest.mark.parametrize(
    ("names", "code", "log"),
    [
        (["r:no"], 3507, ""),
        (["r:a", "r:no"], 3507, ""),
        (["s:a"], 3004, "named 's:a', of another family"),
        (["?"], 3004, "no family of rooms matches '?'"),
        (None, 3004, "'NoneType' object is not iterable"),
    ],
)
async def test_an_auto_join_that_fails_refuses_the_connection(
    world: World, errors: Any, names: Any, code: int, log: str
) -> None:
    """Protocol 3.8: all of them or none."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, auto_join=lambda identity: names, **HISTORY)
    hub.rooms("s:{x}", publishes=object, grant=Grant())

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        if ctx.room.params["x"] == "no":
            raise Reject("no")
        return Grant()

    await hub.start()
    client = world.client(hub)
    assert (await client.refused("connect", token="ann"))["code"] in (100, 103)
    assert client.close_code == code
    assert log in "".join(str(r.exc_info[1]) for r in errors())
    assert bool(log) == bool(errors())
    assert (hub.statistics().sessions, hub.statistics().rooms) == (0, 0)


async def test_auto_join_may_name_a_room_twice(world: World) -> None:
    """API 8: two reasons to be in a room are no reason to be refused."""
    hub = world.hub()
    hub.rooms("r:{x}", publishes=object, grant=Grant(), auto_join=lambda identity: ["r:a", "r:b", "r:a"])
    client = await world.join(hub, "ann")
    assert set(client.reply(1)["connect"]["subs"]) == {"r:a", "r:b"}


async def test_auto_join_sees_the_identity(world: World) -> None:
    async def authenticate(credentials: Any) -> Identity[list[str]]:
        return Identity("ann", ["x", "y"])

    hub = world.hub(authenticate=authenticate)
    hub.rooms(
        "team:{x}", publishes=object, grant=Grant(), auto_join=lambda i: [f"team:{t}" for t in i.claims]
    )
    client = await world.join(hub, "ann")
    assert set(client.reply(1)["connect"]["subs"]) == {"team:x", "team:y"}


# -- when the broker is away, or slow -----------------------------------------------------------------


@pytest.mark.parametrize("call", ["subscribe", "read", "positions"])
async def test_a_join_while_the_broker_is_away(world: World, call: str) -> None:
    """B4: 100, temporary, when to try again; nothing is left of it."""
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker)
    door = Door(hub, HISTORY)
    client = await world.join(hub, "ann")
    broker.failing.add(call)
    error = await client.refused("subscribe", channel="r:a")
    assert error["code"] == 100
    assert error["temporary"] is True
    assert error["retry_after"] == 1.0
    assert hub.statistics().rooms == 0
    assert door.log == []
    broker.failing.clear()
    await client.call("subscribe", channel="r:a")
    await hub.publish("r:a", 1)
    await client.settle()
    assert client.data_of("r:a") == [1]


async def test_leaving_and_joining_while_the_broker_dawdles(world: World) -> None:
    """H2: an unsubscription under way must not take the next member's subscription with it."""
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker)
    Door(hub, HISTORY)
    ann = await world.join(hub, "ann", "r:a")
    gate = broker.hold("unsubscribe")
    await ann.call("unsubscribe", channel="r:a")
    bob = await world.join(hub, "bob")
    joining = bob.ask("subscribe", channel="r:a")
    await bob.settle()
    gate.set()
    await bob.settle()
    assert "recoverable" in bob.reply(joining)["subscribe"]
    await hub.publish("r:a", 1)
    await bob.settle()
    assert bob.data_of("r:a") == [1]
    assert hub.statistics().rooms == 1


async def test_gone_while_subscribing(world: World) -> None:
    """L1: nothing is left of it, whatever comes back from the broker."""
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker)
    door = Door(hub, HISTORY)
    for call in ("subscribe", "read"):
        ann = await world.join(hub, "ann")
        gate = broker.hold(call)
        ann.ask("subscribe", channel="r:a")
        await ann.settle()
        await ann.drop()
        gate.set()
        await world.settle()
        assert hub.statistics().rooms == 0
        assert world.backend.statistics().topics == 3, "those on which hubs talk to each other"
        assert "ann left r:a" not in door.log or "ann is in" in door.log


async def test_connecting_while_the_broker_is_away(world: World) -> None:
    """Protocol 3.8, B4: rooms of the server's cannot be joined: 100, temporary, and 3004: come back."""
    broker = FaultyBroker(world.backend)
    hub = personal(world, broker=broker)
    await hub.start()
    for call in ("subscribe", "read"):
        broker.failing = {call}
        client = world.client(hub, rt=True)
        error = await client.refused("connect", token="ann", rt={})
        assert (error["code"], error["temporary"], error["retry_after"]) == (100, True, 1.0)
        assert client.closed == (3004, "the broker is not available")
        assert (hub.statistics().sessions, hub.statistics().rooms) == (0, 0)
    broker.failing.clear()
    assert set((await world.join(hub, "ann")).reply(1)["connect"]["subs"]) == {"all", "user:ann"}


async def test_closed_by_the_application_while_connecting(world: World) -> None:
    """A4: no connect reply comes after the close."""
    hub = personal(world)

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        await ctx.session.close(code=4123, reason="not now")

    await hub.start()
    client = world.client(hub)
    client.ask("connect", token="ann")
    await client.settle()
    assert client.closed == (4123, "not now")
    assert client.units == []
    assert hub.statistics().rooms == 0


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_a_fresh_join_that_was_overtaken_by_trimming(world: World, rt: bool) -> None:
    """H2, H3: the join data is older than what history still has: the hole between the two is told."""
    hub = world.hub()
    door = Door(hub, {"history": History(5, ttl=600)})
    door.gate = asyncio.Event()
    client = await world.join(hub, "ann", rt=rt)
    id = client.ask("subscribe", channel="r:a")
    await client.settle()
    for n in range(1, 400):
        await hub.publish("r:a", n)
    door.gate.set()
    await client.settle()
    result = client.reply(id)["subscribe"]
    assert "recovered" not in result
    await hub.publish("r:a", 400)
    await client.settle()
    if rt:
        gap = result["gap"]
        assert (gap.get("from", 0), gap["reason"]) == (0, "trimmed")
        got = [p["offset"] for p in result.get("publications", ())] + client.offsets_of("r:a")
        assert got == list(range(gap["to"] + 1, 401))
    else:
        assert "gap" not in result
        assert client.offsets_of("r:a") == [400]


async def test_a_room_that_emptied_while_it_was_read(world: World) -> None:
    """H2: what the old reads bring is not for those who came after."""
    broker = FaultyBroker(world.backend)
    hub, other = world.hub(broker=broker), world.hub()
    for each in (hub, other):
        Door(each, HISTORY)
    await other.start()
    ann = await world.join(hub, "ann", "r:a")
    await other.publish("r:a", 1)
    broker.deaf = True
    await other.publish("r:a", 2)
    broker.deaf = False
    gate = broker.hold("read")
    await other.publish("r:a", 3)
    await world.settle()
    await ann.call("unsubscribe", channel="r:a")
    bob = await world.join(hub, "bob")
    id = bob.ask("subscribe", channel="r:a")
    await world.settle()
    gate.set()
    await bob.settle()
    assert bob.reply(id)["subscribe"]["offset"] == 3
    await other.publish("r:a", 4)
    await world.settle()
    assert bob.offsets_of("r:a") == [4]
    assert ann.offsets_of("r:a") == [1]
    assert repr(next(iter(hub.engine.rooms["r:a"].live))) == "<Member 'bob' of 'r:a'>"


async def test_nothing_is_read_before_the_subscription_is_through(world: World) -> None:
    """H2: a straggler of a former subscription is no reason: the page would be older than what is heard later."""
    broker = FaultyBroker(world.backend)
    hub, other = world.hub(broker=broker), world.hub()
    for each in (hub, other):
        Door(each, HISTORY)
    await other.start()
    await other.publish("r:a", 1)
    page = world.backend.read("room:r:a", None, 1, False, None)
    ann = await world.join(hub, "ann")
    broker.calls.clear()
    gate = broker.hold("subscribe")
    id = ann.ask("subscribe", channel="r:a")
    await ann.settle()
    broker.deliver("room:r:a", page.entries[0].payload, page.position)
    await world.settle()
    assert broker.calls == ["subscribe"]
    await other.publish("r:a", 2)
    gate.set()
    await ann.settle()
    assert ann.reply(id)["subscribe"]["offset"] == 2
    await other.publish("r:a", 3)
    await ann.settle()
    assert ann.offsets_of("r:a") == [3]


async def test_what_was_published_between_two_subscriptions(world: World) -> None:
    """H2: a room that was let go of, and is wanted again before that is through, does not know where it stands."""
    broker = FaultyBroker(world.backend)
    hub, other = world.hub(broker=broker), world.hub()
    for each in (hub, other):
        Door(each, HISTORY)
    await other.start()
    ann = await world.join(hub, "ann", "r:a")
    await other.publish("r:a", 1)
    gate = broker.hold("unsubscribe")
    await ann.call("unsubscribe", channel="r:a")
    bob = await world.join(hub, "bob")
    id = bob.ask("subscribe", channel="r:a")
    await bob.settle()
    broker.deaf = True  # the unsubscription has taken effect, and its answer is under way
    await other.publish("r:a", 2)
    broker.deaf = False
    gate.set()
    await bob.settle()
    assert bob.reply(id)["subscribe"]["offset"] == 2
    await other.publish("r:a", 3)
    await bob.settle()
    assert bob.offsets_of("r:a") == [3]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_a_recovery_that_was_overtaken_by_trimming(world: World, rt: bool) -> None:
    """H3: what it had gathered before the gap is forgotten, or it would come before a hole."""
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker, limits=Limits(recovery_page=2))
    Door(hub, {"history": History(10, ttl=600)})
    ann = await world.join(hub, "ann", "r:a", rt=rt)
    await ann.call("unsubscribe", channel="r:a")
    for n in range(1, 9):
        await hub.publish("r:a", n)
    epoch = world.backend.read("room:r:a", None, 0, False, None).epoch

    async def read(topic: str, **options: Any) -> Any:
        page = await FaultyBroker.read(broker, topic, **options)
        if options["limit"] == 2 and page.start == 0:  # the second page comes too late
            for n in range(9, 30):
                await hub.publish("r:a", n)
        return page

    broker.read = read  # type: ignore[method-assign]
    result = await ann.call("subscribe", channel="r:a", recover=True, epoch=epoch, offset=0)
    assert result["was_recovering"]
    assert "recovered" not in result
    assert publications(result) == []
    assert result["offset"] == 29
    if rt:
        assert result["gap"] == {"to": 29, "epoch": epoch, "reason": "trimmed"}
    await hub.publish("r:a", 30)
    await ann.settle()
    assert ann.offsets_of("r:a") == [30]
