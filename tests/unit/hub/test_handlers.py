"""Handlers, procedures, and what goes around them (api 5 and 9, C2, L3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits, Reject, Router
from rtkit.testing.clock import ManualClock
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World


@dataclass
class Say:
    text: str


@dataclass
class Shout:
    text: str


class Stage:
    """A hub with one room, whose handlers wait for their cue: a message says which one."""

    def __init__(self, world: World, **options: Any) -> None:
        self.hub = world.hub(**options)
        self.log: list[str] = []
        self.cues: dict[str, asyncio.Event] = {}
        self.rooms = self.hub.rooms(
            "r:{x}", publishes=(Say, Shout), grant=Grant("publish"), history=History(50, ttl=600)
        )
        self.rooms.on(Say)(self.handle)
        self.rooms.on(Shout, ordered=False)(self.handle)

    async def handle(self, ctx: Context[Any, Any], message: Say | Shout) -> str:
        self.log.append(f"begin {message.text}")
        try:
            await self.cue(message.text).wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {message.text}")
            raise
        self.log.append(f"end {message.text}")
        return f"did {message.text}"

    def cue(self, text: str) -> asyncio.Event:
        return self.cues.setdefault(text, asyncio.Event())

    def say(self, client: RawClient, text: str, event: str = "Say", **more: Any) -> int:
        return client.ask("publish", channel="r:a", data={"event": event, "data": {"text": text}}, **more)


# -- acknowledgements ---------------------------------------------------------------------------------


async def test_what_a_handler_returns_is_the_acknowledgement(world: World) -> None:
    """API 5: typed, any JSON, or nothing."""
    answers: list[Any] = [Say("ok"), {"a": [1]}, 0, "", [], None, b"\x00\xff"]
    hub = world.hub()

    @hub.rpc(object, name="next")
    async def answer(ctx: Context[Any, Any], message: Any) -> Any:
        return answers.pop(0)

    client = await world.join(hub, "ann")
    got = [await client.call("rpc", method="next") for _ in range(7)]
    assert got == [
        {"data": {"text": "ok"}},
        {"data": {"a": [1]}},
        {"data": 0},
        {"data": ""},
        {"data": []},
        {},
        {"data": "AP8="},
    ]


async def test_an_acknowledgement_that_is_no_json(world: World, errors: Any) -> None:
    """API 13: the application's fault is internal."""
    hub = world.hub()

    @hub.rpc(object, name="bad")
    async def bad(ctx: Context[Any, Any], message: Any) -> Any:
        return {"x": "\ud800"} if message else object()

    client = await world.join(hub, "ann")
    assert (await client.refused("rpc", method="bad"))["code"] == 100
    assert (await client.refused("rpc", method="bad", data=1))["code"] == 100
    assert len(errors()) == 2
    assert await client.call("ping") == {}


async def test_a_reject_is_the_answer(world: World) -> None:
    """API 13: the text is the application's own; nothing is logged."""
    hub = world.hub()

    @hub.rpc(object, name="no")
    async def no(ctx: Context[Any, Any], message: Any) -> None:
        raise Reject("sold out", code=455, retry_after=3)

    client = await world.join(hub, "ann")
    error = await client.refused("rpc", method="no")
    assert error == {"code": 455, "message": "sold out", "temporary": True, "retry_after": 3.0}


# -- order (C2) ---------------------------------------------------------------------------------------


async def test_commands_of_a_session_run_one_after_another(world: World) -> None:
    """C2, api 5: and everything else of this session waits, whatever it is."""
    stage = Stage(world)
    ann = await world.join(stage.hub, "ann", "r:a")
    bob = await world.join(stage.hub, "bob", "r:a")
    first, second = stage.say(ann, "1"), stage.say(ann, "2")
    ping, unsubscribe = ann.ask("ping"), ann.ask("unsubscribe", channel="r:a")
    others = stage.say(bob, "b")
    await ann.settle()
    assert stage.log == ["begin 1", "begin b"]
    stage.cue("2").set()
    stage.cue("b").set()
    await ann.settle()
    await bob.settle()
    assert stage.log == ["begin 1", "begin b", "end b"]
    assert bob.answered(others)
    assert not ann.answered(ping)
    await stage.hub.publish("r:a", Say("meanwhile"))
    await ann.settle()
    assert ann.data_of("r:a") == [{"event": "Say", "data": {"text": "meanwhile"}}]
    stage.cue("1").set()
    await ann.settle()
    order = [id for id in ann.replies if id in (first, second, ping, unsubscribe)]
    assert order == [first, second, ping, unsubscribe]
    assert ann.reply(second)["publish"] == {"data": "did 2"}


async def test_an_unordered_handler_runs_beside(world: World) -> None:
    """API 5: ordered=False."""
    stage = Stage(world)
    ann = await world.join(stage.hub, "ann", "r:a")
    slow = [stage.say(ann, str(n), "Shout") for n in (1, 2)]
    ping = ann.ask("ping")
    say = stage.say(ann, "3")
    await ann.settle()
    assert sorted(stage.log) == ["begin 1", "begin 2", "begin 3"]
    assert ann.answered(ping)
    for text in ("2", "3", "1"):
        stage.cue(text).set()
        await ann.settle()
    assert [id for id in ann.replies if id in (*slow, say)] == [slow[1], say, slow[0]]


async def test_an_unordered_handler_that_fails(world: World, errors: Any) -> None:
    hub = world.hub()

    @hub.rpc(object, name="bad", ordered=False)
    async def bad(ctx: Context[Any, Any], message: Any) -> None:
        if message:
            raise Reject("no")
        raise ValueError

    client = await world.join(hub, "ann")
    assert (await client.refused("rpc", method="bad"))["code"] == 100
    assert (await client.refused("rpc", method="bad", data=1))["code"] == 103
    assert len(errors()) == 1


async def test_handlers_that_pile_up_pause_reading(world: World) -> None:
    """C2: max_pending commands wait, then the transport is not read; half of them done, it is again."""
    stage = Stage(world, limits=Limits(max_pending=8))
    ann = await world.join(stage.hub, "ann", "r:a")
    for n in range(7):
        stage.say(ann, str(n))
    assert not ann.pipe.paused
    stage.say(ann, "7")
    assert ann.pipe.paused
    for n in range(4):
        assert ann.pipe.paused
        stage.cue(str(n)).set()
        await ann.settle()
    assert not ann.pipe.paused
    for n in range(8):
        stage.cue(str(n)).set()
    await ann.settle()
    assert stage.log[-1] == "end 7"
    assert (ann.pipe.paused, ann.pipe.pauses) == (False, 1)
    assert stage.hub.statistics().counted.limits == {"pending": 1}


async def test_a_batch_beyond_max_pending_is_done_all_the_same(world: World) -> None:
    """C2: nothing is dropped."""
    stage = Stage(world, limits=Limits(max_pending=4))
    ann = await world.join(stage.hub, "ann", "r:a")
    ids = list(range(100, 120))
    ann.tell(
        *(
            {"id": i, "publish": {"channel": "r:a", "data": {"event": "Say", "data": {"text": "x"}}}}
            for i in ids
        )
    )
    assert ann.pipe.paused
    stage.cue("x").set()
    await ann.settle()
    assert [id for id in ann.replies if id in ids] == ids
    assert not ann.pipe.paused


async def test_the_pong_deadline_stands_still_while_reading_is_paused(world: World) -> None:
    """C2: we cannot hear a pong then; afterwards the deadline goes on with what was left."""
    stage = Stage(world, limits=Limits(max_pending=2, handler_timeout=None))
    ann = await world.join(stage.hub, "ann", "r:a", pongs=False)
    stage.say(ann, "1")
    stage.say(ann, "2")
    assert ann.pipe.paused
    await world.advance(300, step=5)
    assert ann.closed is None
    assert ann.pings >= 1
    stage.cue("1").set()
    await ann.settle()
    assert not ann.pipe.paused
    await world.advance(9)
    assert ann.closed is None
    await world.advance(40)
    assert ann.close_code == 3012


async def test_a_waiting_handler_does_not_delay_the_heartbeat(world: World) -> None:
    """C2."""
    stage = Stage(world, limits=Limits(handler_timeout=None))
    ann = await world.join(stage.hub, "ann", "r:a")
    stage.say(ann, "1")
    await world.advance(100)
    assert ann.closed is None
    assert ann.pings == 4


# -- time and failure ---------------------------------------------------------------------------------


async def test_a_handler_that_takes_too_long(world: World, errors: Any) -> None:
    """C2: cancelled, answered 100, and the queue goes on."""
    stage = Stage(world)
    ann = await world.join(stage.hub, "ann", "r:a")
    slow, next_one, beside = stage.say(ann, "1"), stage.say(ann, "2"), stage.say(ann, "3", "Shout")
    stage.cue("2").set()
    await world.advance(29.5)
    assert stage.log == ["begin 1"]
    await world.advance(1)
    assert stage.log == ["begin 1", "cancelled 1", "begin 2", "end 2", "begin 3"]
    error = ann.reply(slow)["error"]
    assert (error["code"], error["temporary"]) == (100, True)
    assert ann.reply(next_one)["publish"] == {"data": "did 2"}
    await world.advance(30)
    assert ann.reply(beside)["error"]["code"] == 100
    assert len(errors()) == 2


async def test_joining_that_takes_too_long_may_be_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """L3: it is no fault of ours, so nobody gets a trace; found by simulation: a node stood still (seed 100105)."""
    hub = world.hub()
    rooms = hub.rooms("slow:{x}", publishes=object, grant=Grant())
    patient = asyncio.Event()

    @rooms.on_join
    async def slowly(ctx: Context[Any, Any]) -> None:
        await patient.wait()

    ann = await world.join(hub, "ann")
    id = ann.ask("subscribe", channel="slow:a")
    await world.advance(31)
    error = ann.reply(id)["error"]
    assert error == {"code": 100, "message": "joining took too long", "temporary": True, "retry_after": 1.0}
    assert [record.levelname for record in caplog.records if "took too long" in record.message] == ["WARNING"]
    patient.set()
    await ann.call("subscribe", channel="slow:a")


async def test_authorizing_that_takes_too_long_may_be_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A2, L3: likewise, also where nobody joins."""
    hub = world.hub()
    rooms = hub.rooms("slow:{x}", publishes=object)
    patient = asyncio.Event()

    @rooms.authorize
    async def slowly(ctx: Context[Any, Any]) -> Grant:
        await patient.wait()
        return Grant("publish")

    ann = await world.join(hub, "ann")
    id = ann.ask("publish", channel="slow:a", data=1)
    await world.advance(31)
    error = ann.reply(id)["error"]
    assert error == {
        "code": 100,
        "message": "authorizing took too long",
        "temporary": True,
        "retry_after": 1.0,
    }
    assert [record.levelname for record in caplog.records if "took more than" in record.message] == [
        "WARNING"
    ]
    patient.set()
    await ann.call("publish", channel="slow:a", data=1)


async def test_without_a_handler_timeout(world: World) -> None:
    stage = Stage(world, limits=Limits(handler_timeout=None))
    ann = await world.join(stage.hub, "ann", "r:a")
    id = stage.say(ann, "1")
    await world.advance(500, step=5)
    stage.cue("1").set()
    await ann.settle()
    assert ann.reply(id)["publish"] == {"data": "did 1"}


class Failing:
    """A hub whose handler fails as it is told."""

    def __init__(self, world: World) -> None:
        self.hub = world.hub()
        self.told: list[tuple[str, str, str]] = []
        router: Router[Any] = Router()
        rooms = router.rooms("r:{x}", publishes=object, grant=Grant("publish"), history=History(9, ttl=60))

        @rooms.on(object, name="fail")
        async def fail(ctx: Context[Any, Any], message: Any) -> None:
            await ctx.room.publish("before")
            raise ZeroDivisionError(message)

        @rooms.on(object, name="cancel")
        async def cancel(ctx: Context[Any, Any], message: Any) -> None:
            raise asyncio.CancelledError

        @rooms.on(object, name="cancel itself")
        async def cancel_itself(ctx: Context[Any, Any], message: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        self.router = router

        @router.on_error
        async def tell(ctx: Context[Any, Any], error: Exception) -> None:
            self.told.append((ctx.user, ctx.room.name, str(error)))

        self.hub.include(router)


async def test_an_exception_is_logged_once_with_its_context(world: World, errors: Any) -> None:
    """L3, api 9: session, user and room in extra, the reference of the answer, one trace; the hook is told."""
    failing = Failing(world)
    ann, bob = await world.join(failing.hub, "ann", "r:a"), await world.join(failing.hub, "bob", "r:a")
    error = await ann.refused("publish", channel="r:a", data={"event": "fail", "data": "why"})
    [record] = errors()
    assert record.name == "rtkit.handlers"
    assert (record.user, record.room) == ("ann", "r:a")
    assert record.session == ann.reply(1)["connect"]["client"]
    assert record.exc_info[0] is ZeroDivisionError
    reference = error["message"].removeprefix("internal error (reference ").removesuffix(")")
    assert len(reference) == 8
    assert reference in record.getMessage()
    assert failing.told == [("ann", "r:a", "why")]
    assert "why" not in ann.text
    await bob.settle()
    assert bob.data_of("r:a") == ["before"]
    assert await bob.call("ping") == {}
    assert await ann.call("ping") == {}


async def test_an_error_hook_that_fails_or_hangs(world: World, errors: Any) -> None:
    """L3: it harms neither the answer nor the queue."""
    failing = Failing(world)

    @failing.router.on_error
    async def second(ctx: Context[Any, Any], error: Exception) -> None:
        if str(error) == "raise":
            raise RuntimeError("hook")
        await asyncio.Event().wait()

    ann = await world.join(failing.hub, "ann", "r:a")
    error = await ann.refused("publish", channel="r:a", data={"event": "fail", "data": "raise"})
    assert error["code"] == 100
    assert [r.getMessage() for r in errors()][1] == "an error hook failed"
    id, ping = ann.ask("publish", channel="r:a", data={"event": "fail", "data": "hang"}), ann.ask("ping")
    await world.advance(31)
    assert ann.reply(id)["error"]["code"] == 100
    assert ann.answered(ping)


async def test_a_cancellation_by_nobody_is_a_failure(world: World, errors: Any) -> None:
    """L3: a handler that awaited something cancelled must not take the session's queue with it."""
    failing = Failing(world)
    ann = await world.join(failing.hub, "ann", "r:a")
    failed, ping = ann.ask("publish", channel="r:a", data={"event": "cancel"}), ann.ask("ping")
    await ann.settle()
    assert ann.reply(failed)["error"]["code"] == 100
    assert ann.answered(ping)
    assert len(errors()) == 1
    assert failing.told == [
        ("ann", "r:a", "the handler let a CancelledError through that was not meant for it")
    ]
    assert await ann.call("ping") == {}


async def test_a_handler_that_cancels_its_own_task(world: World) -> None:
    """W3: never silence; who has no answer coming is closed, so that it comes back and asks again."""
    failing = Failing(world)
    ann = await world.join(failing.hub, "ann", "r:a")
    ann.ask("publish", channel="r:a", data={"event": "cancel itself"})
    ann.ask("ping")
    await ann.settle()
    assert ann.closed == (3004, "internal error")


async def test_handlers_go_on_when_their_transport_drops(world: World) -> None:
    """API 5: they belong to the session; what they publish is published. What was not begun is not begun."""
    stage = Stage(world)
    ann = await world.join(stage.hub, "ann", "r:a")
    stage.say(ann, "1")
    stage.say(ann, "2")
    await ann.settle()
    await ann.drop()
    stage.cue("1").set()
    stage.cue("2").set()
    await world.settle()
    assert stage.log == ["begin 1", "end 1"]
    assert stage.hub.statistics().sessions == 0


# -- middleware ---------------------------------------------------------------------------------------


async def test_middlewares_wrap_in_order(world: World) -> None:
    """API 9: the outermost router's first; around handlers, procedures and on_join alike."""
    log: list[str] = []

    def add(router: Router[Any], name: str) -> None:
        @router.middleware
        async def around(ctx: Context[Any, Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
            log.append(f"{name}>")
            try:
                return await call_next()
            finally:
                log.append(f"<{name}")

    hub = world.hub()
    outer: Router[Any] = Router()
    inner: Router[Any] = Router()
    rooms = inner.rooms("r:{x}", publishes=object, grant=Grant("publish"))

    @rooms.on(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> str:
        log.append("do")
        return "done"

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        log.append("join")

    @outer.rpc(object, name="call")
    async def call(ctx: Context[Any, Any], message: Any) -> None:
        log.append("call")

    add(hub, "hub")
    add(outer, "a")
    add(outer, "b")
    add(inner, "c")
    outer.include(inner)
    hub.include(outer)
    client = await world.join(hub, "ann", "r:a")
    assert log == ["hub>", "a>", "b>", "c>", "join", "<c", "<b", "<a", "<hub"]
    log.clear()
    result = await client.call("publish", channel="r:a", data={"event": "do"})
    assert result == {"data": "done"}
    assert log == ["hub>", "a>", "b>", "c>", "do", "<c", "<b", "<a", "<hub"]
    log.clear()
    await client.call("rpc", method="call")
    assert log == ["hub>", "a>", "b>", "call", "<b", "<a", "<hub"]


async def test_a_transaction_around_a_handler(world: World, errors: Any) -> None:
    """API 9: committed when it returned, rolled back when it raised, changed on the way, or never run."""
    log: list[str] = []
    hub = world.hub()

    @hub.middleware
    async def transaction(ctx: Context[Any, Any], call_next: Callable[[], Awaitable[Any]]) -> Any:
        if ctx.data == "closed":
            raise Reject("the shop is closed")
        if ctx.data == "cached":
            return "from the cache"
        try:
            result = await call_next()
        except BaseException as error:
            log.append(f"rollback {type(error).__name__}")
            raise
        log.append("commit")
        return [result]

    @hub.rpc(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> Any:
        if message == "reject":
            raise Reject("no")
        if message == "fail":
            raise KeyError
        if message == "hang":
            await asyncio.Event().wait()
        return message

    client = await world.join(hub, "ann")
    assert await client.call("rpc", method="do", data=1) == {"data": [1]}
    assert await client.call("rpc", method="do", data="cached") == {"data": "from the cache"}
    for data, code in (("reject", 103), ("fail", 100), ("closed", 103)):
        assert (await client.refused("rpc", method="do", data=data))["code"] == code
    id = client.ask("rpc", method="do", data="hang")
    await world.advance(31)
    assert client.reply(id)["error"]["code"] == 100
    assert log == ["commit", "rollback Reject", "rollback KeyError", "rollback CancelledError"]
    assert len(errors()) == 2


async def test_a_procedure_is_outside_any_room(world: World, errors: Any) -> None:
    hub = world.hub()

    @hub.rpc(object, name="where")
    async def where(ctx: Context[Any, Any], message: Any) -> Any:
        return ctx.room.name

    client = await world.join(hub, "ann")
    assert (await client.refused("rpc", method="where"))["code"] == 100
    [record] = errors()
    assert "use ctx.hub.room(name)" in str(record.exc_info[1])
    assert record.room == ""


# -- the session --------------------------------------------------------------------------------------


async def test_session_state_is_kept_between_commands(world: World) -> None:
    """API 6."""
    hub: Hub[Any] = world.hub(state={"db": 1})

    @hub.rpc(object, name="count")
    async def count(ctx: Context[Any, Any], message: Any) -> Any:
        ctx.session.state["n"] = ctx.session.state.get("n", 0) + ctx.hub.state["db"]
        return ctx.session.state["n"]

    ann, two = await world.join(hub, "ann"), await world.join(hub, "ann")
    assert [(await ann.call("rpc", method="count"))["data"] for _ in range(3)] == [1, 2, 3]
    assert (await two.call("rpc", method="count"))["data"] == 1


async def test_session_send(world: World) -> None:
    """H9: to this session only, also before its connect reply was sent, and after which it comes."""
    hub = world.hub()
    sessions: list[Any] = []

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        sessions.append(ctx.session)
        assert ctx.session.send(Say("welcome"))

    ann, bob = await world.join(hub, "ann", rt=False), await world.join(hub, "bob")
    for message in ({"a": 1}, "text", None, 0, [1]):
        assert sessions[0].send(message) is True
    await ann.settle()
    assert "connect" in ann.units[0]
    got = [push["message"] for push in ann.pushes]
    assert got == [
        {"data": {"event": "Say", "data": {"text": "welcome"}}},
        {"data": {"a": 1}},
        {"data": "text"},
        {"data": None},
        {"data": 0},
        {"data": [1]},
    ]
    assert len(bob.pushes) == 1
    await ann.drop()
    assert sessions[0].send(1) is False


async def test_a_flood_of_sends_costs_messages_and_not_the_connection(world: World) -> None:
    """H9, D1: at most once, False when it could not be queued; the reserve is for replies."""
    hub = world.hub(limits=Limits(outbox=100_000, max_publication=1000))
    sessions: list[Any] = []

    @hub.on_session_start
    async def start(ctx: Context[Any, Any]) -> None:
        sessions.append(ctx.session)

    ann = await world.join(hub, "ann")
    ann.pipe.stall()
    sent = [sessions[0].send("x" * 990) for _ in range(500)]
    assert sent.count(True) < 110
    assert sent[-1] is False
    assert ann.closed is None
    ping = ann.ask("ping")
    await ann.settle()
    ann.pipe.drain()
    await ann.settle()
    assert ann.answered(ping)
    assert len(ann.pushes) == sent.count(True)
    assert sessions[0].send("again") is True


async def test_session_close_tells_the_client_why(world: World) -> None:
    """API: the band of the code tells it whether to return."""
    hub = world.hub()

    @hub.rpc(object, name="go")
    async def go(ctx: Context[Any, Any], message: Any) -> None:
        if message is None:
            await ctx.session.close()
        else:
            await ctx.session.close(code=message, reason="enough")

    for data, closed in (
        (None, (3503, "closed for good")),
        (4600, (4600, "enough")),
        (1000, (1000, "enough")),
    ):
        client = await world.join(hub, "ann")
        client.ask("rpc", method="go", data=data)
        await client.settle()
        assert client.closed == closed
    assert hub.statistics().sessions == 0


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 2000, 2999, 5000, -1])
async def test_a_code_that_cannot_close(world: World, errors: Any, code: int) -> None:
    """RFC 6455, section 7.4."""
    hub = world.hub()

    @hub.rpc(object, name="go")
    async def go(ctx: Context[Any, Any], message: Any) -> None:
        with pytest.raises(ValueError, match=f"1000 or from 3000 to 4999, not {code}"):
            await ctx.session.close(code=code)
        with pytest.raises(ValueError, match="a close code is"):
            await ctx.hub.user("bob").close(code=code)

    client = await world.join(hub, "ann")
    await client.call("rpc", method="go")


async def test_background_tasks_end_with_the_session(world: World, errors: Any) -> None:
    """API 6: `session.spawn`; its exception is logged and ends nothing else."""
    hub = world.hub()
    log: list[str] = []

    async def work(name: str, clock: ManualClock) -> None:
        log.append(f"begin {name}")
        if name == "bad":
            raise ValueError(name)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append(f"cancelled {name}")
            raise

    @hub.rpc(object, name="spawn")
    async def spawn(ctx: Context[Any, Any], message: str) -> int:
        ctx.session.spawn(work, message, world.clock)
        return ctx.session.statistics().tasks

    ann, bob = await world.join(hub, "ann"), await world.join(hub, "bob")
    assert (await ann.call("rpc", method="spawn", data="a"))["data"] == 1
    assert (await ann.call("rpc", method="spawn", data="bad"))["data"] == 2
    assert (await bob.call("rpc", method="spawn", data="b"))["data"] == 1
    assert log == ["begin a", "begin bad", "begin b"]
    assert len(errors()) == 1
    await ann.drop()
    assert log[3:] == ["cancelled a"]
    await bob.leave()
    assert log[4:] == ["cancelled b"]
