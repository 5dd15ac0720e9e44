"""Who blocks the loop is named, and a stall of our own closes nobody (F5)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, Hub, Identity, Limits
from rtkit.hub.looplag import INTERVAL
from rtkit.primitives import Heartbeat
from rtkit.primitives.clocks import sleep
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World, by_token


def blocking(world: World, seconds: float = 5.0, **options: Any) -> Hub[Any]:
    """A hub with a procedure that keeps the loop for a while, between two steps that do not."""
    hub = world.hub(**options)
    hub.rooms("r", publishes=object, grant=Grant("publish"))

    @hub.rpc(object, name="crunch")
    async def crunch(ctx: Context[Any, Any], message: object) -> str:
        await asyncio.sleep(0)
        world.clock.stall(seconds)
        await asyncio.sleep(0)
        return "done"

    @hub.rpc(object, name="ponder")
    async def ponder(ctx: Context[Any, Any], message: object) -> str:
        await sleep(world.clock, 20)
        return "done"

    return hub


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about a loop that was blocked."""
    return [r.getMessage() for r in caplog.get_records("call") if "event loop" in r.getMessage()]


# -- the tick -----------------------------------------------------------------------------------------


async def test_lateness_is_measured(world: World) -> None:
    hub = blocking(world, limits=Limits(heartbeat=None))
    await world.join(hub, "ann")
    await world.clock.advance(10 * INTERVAL)
    lag = hub.statistics().measured.loop_lag
    assert (lag.count, lag.sum) == (10, 0)
    world.clock.stall(INTERVAL + 0.07)  # of which the tick, in the middle of it, sees the end
    await world.settle()
    await world.clock.advance(INTERVAL)
    lag = hub.statistics().measured.loop_lag
    assert lag.count == 12
    assert lag.sum == pytest.approx(0.07)
    assert lag.quantile(1) == 0.1


async def test_the_tick_is_no_connections_deadline(world: World) -> None:
    hub = blocking(world, limits=Limits(heartbeat=None))
    await world.join(hub, "ann")
    assert hub.engine.lag.ticking
    assert hub.statistics().deadlines == 0
    assert len(hub.engine.deadlines) == 1
    assert "ticking" in repr(hub.engine.lag)


async def test_without_connections_it_does_not_tick(world: World) -> None:
    """Nobody waits for anything; and a sampler that has heard of no second begins anew."""
    hub = blocking(world, limits=Limits(heartbeat=None))
    await hub.start()
    assert not hub.engine.lag.ticking
    for _ in range(10_000):
        hub.engine.timings.publications.due()
    ann = await world.join(hub, "ann")
    await world.clock.advance(INTERVAL)
    assert "1 in 1>" in repr(hub.engine.timings.publications)
    await ann.leave()
    await world.clock.advance(INTERVAL)
    assert not hub.engine.lag.ticking
    assert len(hub.engine.deadlines) == 0
    await world.join(hub, "ann")
    await world.clock.advance(2 * INTERVAL)
    assert hub.statistics().measured.loop_lag.count == 4


async def test_it_ends_with_the_hub(world: World) -> None:
    hub = blocking(world)
    await world.join(hub, "ann")
    lag = hub.engine.lag
    await world.close()
    assert not lag.ticking
    assert world.clock.timers == 0
    lag.close()
    lag._tick()


async def test_a_stall_of_somebody_else_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Code of the application outside of any handler, or the machine: nobody is blamed."""
    hub = blocking(world)
    await world.join(hub, "ann")
    world.clock.stall(6)
    await world.settle()
    (line,) = said(caplog)
    assert "stood still for 5.00 s" in line
    assert "no handler of this hub" in line
    assert hub.statistics().counted.stalls == 1
    assert hub.statistics().counted.blocked == 0


async def test_a_hiccup_is_nothing_to_talk_about(world: World, caplog: pytest.LogCaptureFixture) -> None:
    hub = blocking(world)
    await world.join(hub, "ann")
    world.clock.stall(INTERVAL + 0.2)
    await world.settle()
    assert said(caplog) == []


# -- the steps ----------------------------------------------------------------------------------------


async def test_the_handler_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """F5: among others that were under way at the same time, and did nothing."""
    hub = blocking(world)
    ann, bob = await world.join(hub, "ann"), await world.join(hub, "bob")
    waits = ann.ask("rpc", method="ponder", data={})
    await ann.settle()
    assert (await bob.call("rpc", method="crunch", data={}))["data"] == "done"
    (line,) = said(caplog)
    assert line.startswith(
        "tests.unit.hub.test_looplag.blocking.<locals>.crunch kept the event loop for 5.00 s"
    )
    assert hub.statistics().counted.blocked == 1
    await world.advance(30)
    assert ann.reply(waits)["rpc"]["data"] == "done"
    assert len(said(caplog)) == 1, "the tick knows who did it"


async def test_patience_is_a_limit(world: World, caplog: pytest.LogCaptureFixture) -> None:
    hub = blocking(world, 0.5, limits=Limits(blocked=0.6))
    ann = await world.join(hub, "ann")
    await ann.call("rpc", method="crunch", data={})
    assert said(caplog) == []
    assert hub.statistics().counted.blocked == 0


async def test_watching_can_be_turned_off(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The tick goes on: somebody may still want to know that it happens."""
    hub = blocking(world, limits=Limits(blocked=None))
    ann = await world.join(hub, "ann")
    await ann.call("rpc", method="crunch", data={})
    await world.settle()
    (line,) = said(caplog)
    assert "no handler" in line
    assert hub.statistics().counted.blocked == 0
    assert hub.statistics().measured.loop_lag.quantile(1) == 5.0


async def test_it_is_said_once_in_a_while(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Who blocks does so with every call: a log of its own for each would block us too."""
    hub = blocking(world, 0.3)
    ann = await world.join(hub, "ann")
    for _ in range(5):
        await ann.call("rpc", method="crunch", data={})
    assert len(said(caplog)) == 1
    await world.advance(10)
    await ann.call("rpc", method="crunch", data={})
    assert len(said(caplog)) == 2
    assert said(caplog)[1].endswith("(and 4 times more since this was last said)")
    assert hub.statistics().counted.blocked == 6


HOOKS = ["authenticate", "gate", "authorize", "on_join", "on_session_start", "on_session_end", "on_leave"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_every_hook_is_watched(world: World, caplog: pytest.LogCaptureFixture, hook: str) -> None:
    slow: Callable[[str], None] = lambda name: world.clock.stall(1) if name == hook else None  # noqa: E731

    async def authenticate(credentials: Credentials) -> Identity[Any]:
        slow("authenticate")
        return await by_token(credentials)

    hub = world.hub(authenticate=authenticate)
    rooms = hub.rooms("r", publishes=object)

    @hub.gate
    async def gate(ctx: Context[Any, Any]) -> None:
        slow("gate")

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        slow("authorize")
        return Grant("publish")

    @rooms.on_join
    async def on_join(ctx: Context[Any, Any]) -> None:
        slow("on_join")

    @rooms.on_leave
    async def on_leave(ctx: Context[Any, Any]) -> None:
        slow("on_leave")

    @hub.on_session_start
    async def on_session_start(ctx: Context[Any, Any]) -> None:
        slow("on_session_start")

    @hub.on_session_end
    async def on_session_end(ctx: Context[Any, Any], reason: str) -> None:
        slow("on_session_end")

    ann = await world.join(hub, "ann", "r")
    await ann.leave()
    await world.settle()
    assert [line.partition(" ")[0].rpartition(".")[2] for line in said(caplog)] == [hook]


# -- watching changes nothing -------------------------------------------------------------------------


async def watched(world: World, func: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    hub = blocking(world)
    await hub.start()
    return await hub.engine.lag.watch(func, func(*args))


async def test_results_and_errors_come_through(world: World) -> None:
    async def value() -> int:
        await asyncio.sleep(0)
        return 42

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    assert await watched(world, value) == 42
    with pytest.raises(KeyError):
        await watched(world, fails)


async def test_what_is_raised_by_what_it_awaits_can_be_caught(world: World) -> None:
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def catches() -> str:
        try:
            await failing
        except ValueError as error:
            await asyncio.sleep(0)
            return str(error)
        return "nothing"

    asyncio.get_running_loop().call_soon(failing.set_exception, ValueError("caught"))
    assert await watched(world, catches) == "caught"


async def test_cancelling_comes_through_and_may_be_refused(world: World) -> None:
    began = asyncio.Event()
    seen: list[str] = []

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
        return "not yet"

    task = asyncio.ensure_future(watched(world, stubborn))
    await world.settle()
    assert began.is_set()
    task.cancel()
    assert await task == "not yet"
    assert seen == ["cancelled"]


async def test_a_watched_coroutine_that_is_dropped_ends(world: World) -> None:
    """As one that is not watched: its finally runs."""
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("finally")

    hub = blocking(world)
    await hub.start()
    steps: Any = hub.engine.lag.watch(waits, waits())
    steps.send(None)
    steps.close()
    assert ended == ["finally"]


async def test_timeouts_work_inside(world: World) -> None:
    async def waits() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(3600)
        return "in time"

    assert await watched(world, waits) == "in time"


async def test_callables_of_all_kinds_have_a_name(world: World, caplog: pytest.LogCaptureFixture) -> None:
    class Callable_:
        async def __call__(self) -> None:
            world.clock.stall(1)

    async def plain(x: int) -> None:
        world.clock.stall(1)

    hub = blocking(world)
    await hub.start()
    for func in (functools.partial(functools.partial(plain), 1), Callable_()):
        await hub.engine.lag.watch(func, func())
    assert [line.partition(" ")[0].rpartition(".")[2] for line in said(caplog)] == ["plain", "Callable_"]


# -- a stall of our own -------------------------------------------------------------------------------


class Socket:
    """What peers have sent, and nobody has read: the host reads when the loop turns, a turn after timers."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    def pong(self) -> None:
        loop = asyncio.get_running_loop()
        # A framework passes a message on from callback to task to queue: timers that are due go first.
        loop.call_soon(loop.call_soon, loop.call_soon, self.client.say, b"{}")


async def stalled(world: World, peers: int, before: float, seconds: float, **limits: Any) -> list[RawClient]:
    """Peers that answer every ping at once; the loop stands still, *before* seconds after each was pinged, or just
    then. Pongs that came meanwhile wait in their sockets."""
    hub = blocking(world, limits=Limits(**limits))
    clients = [await world.join(hub, f"u{n}", pongs=False) for n in range(peers)]
    answered = dict.fromkeys(clients, 0)

    async def turn(pass_by: float) -> None:
        await world.clock.advance(pass_by)
        for client in clients:
            if client.pings > answered[client]:
                answered[client] = client.pings
                client.say(b"{}")
        await world.settle()

    while min(answered.values()) == 0:
        await turn(1)
    pinged = sum(client.pings for client in clients)
    while sum(client.pings for client in clients) == pinged:
        await world.clock.advance(0.01)
    await world.clock.advance(before)
    unanswered = [client for client in clients if client.pings > answered[client]]
    assert unanswered
    world.clock.stall(seconds)
    for client in unanswered:
        Socket(client).pong()
        answered[client] = client.pings
    await world.settle()
    for _ in range(60):
        await turn(1)
    assert hub.statistics().counted.heartbeats_lost == sum(client.closed is not None for client in clients)
    return clients


@pytest.mark.parametrize("seconds", [5.0, 10.5, 60.0])
async def test_a_stall_closes_nobody(world: World, seconds: float) -> None:
    """F5: a hundred peers whose pongs wait in sockets while the loop stands still."""
    clients = await stalled(world, 100, before=0, seconds=seconds)
    assert [client.closed for client in clients] == [None] * 100


@pytest.mark.parametrize("seconds", [5.0, 10.001, 10.5, 11.0, 40.0])
@pytest.mark.parametrize("before", [0.0, 0.3])
async def test_nor_does_it_close_the_only_one(world: World, seconds: float, before: float) -> None:
    """With one peer no other deadline tells how long the loop stood still: the tick does."""
    (client,) = await stalled(world, 1, before=before, seconds=seconds)
    assert client.closed is None


async def test_nor_with_heartbeats_shorter_than_the_stall(world: World) -> None:
    heartbeat = Heartbeat(interval=5, timeout=2)
    clients = await stalled(world, 100, before=0, seconds=5, heartbeat=heartbeat)
    assert [client.closed for client in clients] == [None] * 100


async def test_who_is_dead_is_found_after_a_stall(world: World) -> None:
    """It is put off, not forgotten."""
    hub = blocking(world)
    client = await world.join(hub, "ann", pongs=False)
    while not client.pings:
        await world.clock.advance(1)
    world.clock.stall(5)
    await world.clock.advance(9)
    assert client.closed is None
    await world.clock.advance(8)
    assert client.closed == (3012, "no pong")


async def test_the_log_names_no_user(world: World, caplog: pytest.LogCaptureFixture) -> None:
    hub = blocking(world)  # the world has the log at DEBUG
    ann = await world.join(hub, "secret-user", "r")
    await ann.call("rpc", method="crunch", data={"secret": "payload"})
    assert not any("secret" in line for line in said(caplog))
