"""What somebody may do in a room: gates, grants, and when they are asked again (A2, api 3)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits, Presence, Reject, Router
from rtkit.errors import DeclarationError
from tests.unit.hub.conftest import World

RIGHTS = ("publish", "signal", "history", "presence")


@pytest.mark.parametrize("right", RIGHTS)
@pytest.mark.parametrize("joined", [True, False], ids=["joined", "not joined"])
async def test_each_right_by_itself(world: World, right: str, joined: bool) -> None:
    """A2: with it the command works, joined or not; without it, 103."""
    hub = world.hub()
    grant: Any = Grant(right)  # type: ignore[arg-type]
    hub.rooms("r:{x}", publishes=object, grant=grant, history=History(5, ttl=60), presence=Presence())
    client = await world.join(hub, "ann", *(["r:a"] if joined else []))
    for method in RIGHTS:
        reply = await client.request(method, channel="r:a", data=1)
        if method == right:
            assert method in reply
        else:
            assert reply["error"]["code"] == 103
            assert "the right to" in reply["error"]["message"]
    assert hub.statistics().rooms == joined


async def test_nobody_may_join_what_was_not_granted(world: World) -> None:
    """API 3: a family with neither authorize nor grant= refuses to start, and says what to do."""
    hub = world.hub()
    hub.rooms("open:{x}", publishes=object, grant=Grant())
    hub.rooms("closed:{x}", publishes=object)
    with pytest.raises(DeclarationError, match=r"'closed:\{x\}': pass grant=Grant\(…\).*authorize"):
        await hub.start()
    assert not hub.statistics().running


async def test_authorize_is_asked_once_per_join(world: World) -> None:
    """API 3: then a command is a set lookup."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, history=History(5, ttl=60))
    asked: list[tuple[str, str, Any]] = []

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        asked.append((ctx.user, ctx.room.params["x"], ctx.data))
        return Grant("publish", "history")

    client = await world.join(hub, "ann")
    await client.call("subscribe", channel="r:a b", data={"pin": 1})
    for _ in range(5):
        await client.call("publish", channel="r:a b", data=1)
        await client.call("history", channel="r:a b")
    assert asked == [("ann", "a b", {"pin": 1})]
    await client.call("publish", channel="r:other", data=1)
    await client.call("publish", channel="r:other", data=1)
    assert asked[1:] == [("ann", "other", None)] * 2


async def test_a_rejected_join_leaves_nothing(world: World) -> None:
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        raise Reject("members only", code=451, retry_after=9)

    client = await world.join(hub, "ann")
    error = await client.refused("subscribe", channel="r:a")
    assert error == {"code": 451, "message": "members only", "temporary": True, "retry_after": 9.0}
    assert hub.statistics().rooms == 0
    await hub.publish("r:a", 1)
    await client.settle()
    assert client.pushes == []


async def test_gates_run_from_the_outside_in_before_authorize(world: World) -> None:
    """API 3: the tenant check stands before everything below it, and guards ad hoc commands too."""
    log: list[str] = []
    may = True
    outer: Router[Any] = Router("t:{tenant}:")
    inner: Router[Any] = Router("doc:")
    hub = world.hub()

    def gate(router: Router[Any], name: str) -> None:
        @router.gate
        async def check(ctx: Context[Any, Any]) -> None:
            log.append(f"{name} {ctx.room.params['tenant']}")
            if not may:
                raise Reject("other tenant")

    gate(outer, "outer 1")
    gate(outer, "outer 2")
    gate(inner, "inner")
    rooms = inner.rooms("{id}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        log.append("authorize")
        return Grant("publish")

    hub.rooms("lobby", publishes=object, grant=Grant())
    outer.include(inner)
    hub.include(outer)
    client = await world.join(hub, "ann", "t:x:doc:1", "lobby")
    assert log == ["outer 1 x", "outer 2 x", "inner x", "authorize"]
    may = False
    log.clear()
    assert (await client.refused("publish", channel="t:y:doc:1", data=1))["message"] == "other tenant"
    assert log == ["outer 1 y"]
    await client.call("publish", channel="t:x:doc:1", data=1)
    assert (await client.refused("subscribe", channel="t:z:doc:1"))["code"] == 103


async def test_gates_stand_before_a_plain_grant_too(world: World) -> None:
    hub = world.hub()
    router: Router[Any] = Router()
    router.rooms("r:{x}", publishes=object, grant=Grant("publish"))

    @router.gate
    async def check(ctx: Context[Any, Any]) -> None:
        if ctx.user == "eve":
            raise Reject("no")

    hub.include(router)
    await world.join(hub, "ann", "r:a")
    eve = await world.join(hub, "eve")
    assert (await eve.refused("subscribe", channel="r:a"))["code"] == 103
    assert (await eve.refused("publish", channel="r:a", data=1))["code"] == 103


# -- asked again --------------------------------------------------------------------------------------


class Permission:
    """An ``authorize`` that does what the test says."""

    def __init__(self, hub: Hub[Any], grant: Grant) -> None:
        self.answer: Any = grant
        self.asked = 0
        rooms = hub.rooms("r:{x}", publishes=object)

        @rooms.authorize
        async def authorize(ctx: Context[Any, Any]) -> Grant:
            self.asked += 1
            if isinstance(self.answer, asyncio.Event):
                await self.answer.wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer  # type: ignore[no-any-return]


async def test_a_grant_is_asked_for_again_after_its_ttl(world: World) -> None:
    """API 3: again and again, as long as the answer has a ttl; with what it says then."""
    hub = world.hub()
    permission = Permission(hub, Grant("publish", ttl=60))
    client = await world.join(hub, "ann", "r:a")
    await world.advance(59)
    assert permission.asked == 1
    await world.advance(2)
    assert permission.asked == 2
    permission.answer = Grant()
    await world.advance(60)
    assert permission.asked == 3
    assert (await client.refused("publish", channel="r:a", data=1))["code"] == 103
    await world.advance(200)
    assert permission.asked == 3
    assert client.pushes == []


async def test_who_may_not_any_more_is_taken_out(world: World) -> None:
    """Protocol 14: 2000, with the application's words: do not come back by yourself."""
    hub = world.hub()
    permission = Permission(hub, Grant(ttl=60))
    client = await world.join(hub, "ann", "r:a")
    other = await world.join(hub, "bob", "r:a")
    permission.answer = Reject("the trial is over")
    await world.advance(61)
    assert client.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "the trial is over"}]
    assert other.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "the trial is over"}]
    assert hub.statistics().rooms == 0
    assert client.closed is None


@pytest.mark.parametrize(
    "answer", [ZeroDivisionError("inside"), asyncio.Event(), None], ids=["raises", "hangs", "none"]
)
async def test_who_cannot_be_asked_about_is_taken_out(world: World, errors: Any, answer: Any) -> None:
    """A2: to keep a right that nobody could confirm would be to guess; 2501, and the client may join again."""
    hub = world.hub()
    permission = Permission(hub, Grant(ttl=60))
    client = await world.join(hub, "ann", "r:a")
    permission.answer = answer
    await world.advance(60 + 31)
    [push] = client.pushes_of("r:a", "unsubscribe")
    hangs = isinstance(answer, asyncio.Event)
    reason = "authorizing took too long" if hangs else "permission could not be renewed"
    assert push == {"code": 2501, "reason": reason}
    assert bool(errors()) is not hangs, "a fault of the application's, of which somebody has to hear"
    assert "inside" not in client.text
    permission.answer = Grant()
    await client.call("subscribe", channel="r:a")


async def test_leaving_ends_the_asking(world: World) -> None:
    """C5: no timer is left for a room that was left."""
    hub = world.hub(limits=Limits(heartbeat=None))
    permission = Permission(hub, Grant(ttl=60))
    client = await world.join(hub, "ann", "r:a")
    assert hub.statistics().deadlines == 1
    await client.call("unsubscribe", channel="r:a")
    assert hub.statistics().deadlines == 0
    await world.advance(100)
    assert permission.asked == 1


@pytest.mark.parametrize("method", ["subscribe", "publish", "signal", "history"])
async def test_an_authorize_that_hangs_holds_up_nothing_for_ever(
    world: World, errors: Any, method: str
) -> None:
    """C2: answered 100 after the handler timeout, and the queue goes on."""
    hub = world.hub()
    permission = Permission(hub, Grant())
    permission.answer = asyncio.Event()
    client = await world.join(hub, "ann")
    first, second = client.ask(method, channel="r:a", data=1), client.ask("ping")
    await world.advance(29)
    assert not client.answered(first)
    await world.advance(2)
    assert client.reply(first)["error"]["code"] == 100
    assert client.answered(second)
    assert hub.statistics().rooms == 0


@pytest.mark.parametrize("answer", [None, True, {"publish"}])
async def test_an_authorize_that_returns_no_grant(world: World, errors: Any, answer: Any) -> None:
    """Misuse: internal to the client, the remedy to the log."""
    hub = world.hub()
    permission = Permission(hub, Grant())
    permission.answer = answer
    client = await world.join(hub, "ann")
    assert (await client.refused("subscribe", channel="r:a"))["code"] == 100
    [record] = errors()
    assert "not a Grant; raise Reject to refuse" in str(record.exc_info[1])
