"""A hub begins, ends, and begins again; nothing is left of it (L1, C5, api 10)."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Identity, Limits, NotRunning, anonymous
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.errors import BrokerUnavailable, WrongLoop, WrongProcess
from rtkit.testing.clock import ManualClock
from rtkit.transports import Handshake, Refused
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World


def roomy(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("r:{x}", publishes=object, grant=Grant("publish", ttl=50), history=History(50, ttl=600))
    return hub


# -- closing ------------------------------------------------------------------------------------------


async def test_after_closing_nothing_is_left(world: World) -> None:
    """L1: no task, deadline, timer, subscription or registry entry; and everybody was told when to come back."""
    hub = roomy(world)
    await hub.start()
    tasks = asyncio.all_tasks()
    clients = [await world.join(hub, f"u{n}", "r:a", f"r:{n}") for n in range(10)]

    async def for_ever() -> None:
        await asyncio.Event().wait()

    for session in hub.engine.sessions.values():
        session.spawn(for_ever)
    clients[0].pipe.stall()
    for _ in range(100):
        await hub.publish("r:a", "x" * 20_000)
    unauthenticated = world.client(hub)
    engine = hub.engine
    await hub.aclose()
    assert [client.closed for client in [*clients, unauthenticated]] == [(3001, "draining")] * 11
    for client in clients[1:]:
        assert client.pushes[-1]["disconnect"] == {
            "code": 3001,
            "reason": "draining",
            "rt": {"min": 0.0, "max": 1.0},
        }
    assert not hub.statistics().running
    for left in (
        engine.connections,
        engine.sessions,
        engine.users,
        engine.rooms,
        engine.working,
        engine._runs,
    ):
        assert not left
    assert (len(engine.deadlines), len(engine.tasks)) == (0, 0)
    assert world.clock.timers == 0
    assert world.backend.statistics().topics == 0
    assert {task for task in asyncio.all_tasks() - tasks if not task.done()} == set()
    dead = weakref.ref(engine)
    del engine, session, tasks
    for client in clients:
        client.driver = None  # type: ignore[assignment]
    unauthenticated.driver = None  # type: ignore[assignment]
    await asyncio.sleep(0)
    gc.collect()
    assert dead() is None, "somebody still holds the engine"


async def test_closing_is_idempotent(world: World) -> None:
    """L1: twice, at once, before starting, and after."""
    hub = roomy(world)
    await hub.aclose()
    await world.join(hub, "ann", "r:a")
    await asyncio.gather(hub.aclose(), hub.aclose(), hub.aclose())
    await hub.aclose()
    with pytest.raises(NotRunning):
        await hub.publish("r:a", 1)


async def test_a_running_handler_may_end(world: World) -> None:
    """L1, api 5: the drain deadline ends it, not the draining."""
    hub = roomy(world)
    log: list[str] = []
    go = asyncio.Event()

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        await go.wait()
        await ctx.hub.publish("r:a", "written")
        log.append("done")

    @hub.rpc(object, name="beside", ordered=False)
    async def beside(ctx: Context[Any, Any], message: Any) -> None:
        await go.wait()
        log.append("beside")

    client = await world.join(hub, "ann")
    client.ask("rpc", method="beside")
    client.ask("rpc", method="work")
    client.ask("rpc", method="work")
    await client.settle()
    closing = asyncio.create_task(hub.aclose())
    await world.clock.advance(4)
    assert not closing.done()
    go.set()
    await world.clock.settle()
    assert closing.done()
    assert sorted(log) == ["beside", "done"]
    await closing


async def test_a_handler_that_does_not_end_is_cancelled(world: World, caplog: Any) -> None:
    """L1: bounded by drain_timeout, and named in a warning."""
    hub = roomy(world, limits=Limits(drain_timeout=3))
    log: list[str] = []

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    client = await world.join(hub, "ann")
    client.ask("rpc", method="work")
    await client.settle()
    closing = asyncio.create_task(hub.aclose())
    await world.clock.advance(2.9)
    assert (closing.done(), log) == (False, [])
    await world.clock.advance(0.2)
    assert (closing.done(), log) == (True, ["cancelled"])
    assert any("1 handlers and 0 connections had not ended" in r.getMessage() for r in caplog.records)


async def test_hooks_run_while_closing(world: World) -> None:
    """L1, api 6: who is sent away has left, and the application is told of it; it may take a moment."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=Grant())
    log: list[str] = []

    async def note(text: str) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        log.append(text)

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        await note("left")

    @hub.on_session_end
    async def end(ctx: Context[Any, Any], reason: str) -> None:
        await note(f"ended, {reason}")

    await world.join(hub, "ann", "r:a")
    await hub.aclose()
    assert log == ["left", "ended, draining"]


async def test_a_peer_that_does_not_let_go(world: World) -> None:
    """L1: the deadline ends it."""
    hub = roomy(world)
    client = await world.join(hub, "ann", "r:a", answers_close=False)
    closing = asyncio.create_task(hub.aclose())
    await world.clock.advance(4.9)
    assert not closing.done()
    await world.clock.advance(0.2)
    assert closing.done()
    client.pipe.lose()


async def test_a_handler_may_close_the_hub(world: World) -> None:
    """L1: at once; it does not wait for itself."""
    hub = roomy(world)

    @hub.rpc(object, name="stop")
    async def stop(ctx: Context[Any, Any], message: Any) -> None:
        await ctx.hub.aclose()

    client = await world.join(hub, "ann", "r:a")
    client.ask("rpc", method="stop")
    await client.settle()
    assert client.close_code == 3001
    assert not hub.statistics().running


async def test_closing_while_the_broker_is_away(world: World) -> None:
    """L1, B4."""
    broker = FaultyBroker(world.backend)
    hub = roomy(world, broker=broker)
    await world.join(hub, "ann", "r:a")
    broker.down = True
    await hub.aclose()
    assert world.backend.statistics().topics == 0


async def test_a_close_that_is_cancelled_lets_go_all_the_same(world: World) -> None:
    """L1: the host has lost its patience; no task or subscription stays behind."""
    hub = roomy(world)
    log: list[str] = []

    @hub.rpc(object, name="work")
    async def work(ctx: Context[Any, Any], message: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    client = await world.join(hub, "ann", "r:a")
    client.ask("rpc", method="work")
    await client.settle()
    closing = asyncio.create_task(hub.aclose())
    await world.settle()
    closing.cancel()
    await world.settle()
    assert closing.cancelled()
    assert log == ["cancelled"]
    assert not hub.statistics().running
    assert world.clock.timers == 0
    assert world.backend.statistics().topics == 0


async def test_no_connection_restarts_a_hub_that_is_closing(world: World) -> None:
    """L1: accept no more; a late handshake gets 503."""
    hub = roomy(world)
    client = await world.join(hub, "ann", answers_close=False)
    closing = asyncio.create_task(hub.aclose())
    await world.settle()
    await hub.ensure_running()
    with pytest.raises(Refused):
        hub.admit(Handshake())
    client.pipe.lose()
    await closing
    assert not hub.statistics().running


# -- starting -----------------------------------------------------------------------------------------


async def test_starting_again(world: World) -> None:
    """API 10: one hub may run again after another run; what is stored is still there."""
    hub = roomy(world)
    for n in range(1, 4):
        client = await world.join(hub, "ann", "r:a")
        await hub.publish("r:a", n)
        await client.settle()
        assert client.offsets_of("r:a") == [n]
        await hub.aclose()


def test_starting_again_in_another_loop() -> None:
    """API 10: nothing bound to a loop is left over."""
    hub: Hub[Any] = Hub(authenticate=anonymous)
    hub.rooms("r", publishes=object, grant=Grant("publish"), history=History(5, ttl=60))

    async def run() -> None:
        async with hub:
            await hub.publish("r", 1)

    for _ in range(3):
        asyncio.run(run())


def test_a_loop_that_ended_without_closing_the_hub() -> None:
    """API 10: as some test clients leave it; also with a broker of one's own."""
    for broker in ("memory://", MemoryBroker()):
        hub: Hub[Any] = Hub(authenticate=anonymous, broker=broker, limits=Limits(position_check=None))
        hub.rooms("r", publishes=object, grant=Grant("publish"), history=History(5, ttl=60))
        for _ in range(3):
            asyncio.run(hub.start())
            assert hub.statistics().running

        async def end(hub: Hub[Any] = hub) -> None:
            await hub.start()
            await hub.publish("r", 1)
            await hub.aclose()

        asyncio.run(end())
        asyncio.run(hub.start())
        asyncio.run(hub.aclose())
        assert not hub.statistics().running


async def test_starting_lazily_from_many_sides(world: World) -> None:
    """API 10: the first connections start it, once."""
    broker = FaultyBroker(world.backend)
    hub = roomy(world, broker=broker)
    gate = broker.hold("open")
    starting = [asyncio.create_task(hub.ensure_running()) for _ in range(10)]
    await world.settle()
    assert not any(task.done() for task in starting)
    gate.set()
    await asyncio.gather(*starting)
    assert broker.calls.count("open") == 1


async def test_a_start_that_fails_fails_for_all_and_leaves_nothing(world: World) -> None:
    """API 10, B4: and the next one may succeed."""
    for call in ("open", "subscribe"):
        broker = FaultyBroker(world.backend)
        hub = roomy(world, broker=broker)
        broker.failing.add(call)
        results = await asyncio.gather(*(hub.start() for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [BrokerUnavailable] * 3
        assert not hub.statistics().running
        assert ", 0 hubs" in repr(world.backend)
        assert world.clock.timers == 0
        broker.failing.clear()
        await world.join(hub, "ann", "r:a")
        await hub.aclose()


async def test_a_cancelled_start_takes_nobody_with_it(world: World) -> None:
    """API 10: the first connection went away while the hub was starting for it; the second one is served."""
    broker = FaultyBroker(world.backend)
    hub = roomy(world, broker=broker)
    gate = broker.hold("open")
    first, second = asyncio.create_task(hub.start()), asyncio.create_task(hub.start())
    await world.settle()
    first.cancel()
    await world.settle()
    gate.set()
    await second
    assert hub.statistics().running
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_waiting_start_may_be_cancelled(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = roomy(world, broker=broker)
    gate = broker.hold("open")
    first, second = asyncio.create_task(hub.start()), asyncio.create_task(hub.start())
    await world.settle()
    second.cancel()
    await world.settle()
    assert second.cancelled()
    gate.set()
    await first
    assert hub.statistics().running


async def test_closing_while_starting(world: World) -> None:
    """L1: a host that shuts down meanwhile must not leave a hub running."""
    broker = FaultyBroker(world.backend)
    hub = roomy(world, broker=broker)
    gate = broker.hold("open")
    starting = asyncio.create_task(hub.start())
    await world.settle()
    closing = asyncio.create_task(hub.aclose())
    await world.settle()
    gate.set()
    await starting
    await closing
    assert not hub.statistics().running
    assert ", 0 hubs" in repr(world.backend)


async def test_starting_while_closing(world: World) -> None:
    """API 10: it waits for the end of that run, and begins another."""
    hub = roomy(world)
    client = await world.join(hub, "ann", answers_close=False)
    closing = asyncio.create_task(hub.aclose())
    await world.settle()
    starting = asyncio.create_task(hub.start())
    await world.settle()
    client.pipe.lose()
    await closing
    await starting
    assert hub.statistics().running
    again = await world.join(hub, "ann", "r:a")
    assert again.closed is None


async def test_lifespan(world: World) -> None:
    """API: `FastAPI(lifespan=hub.lifespan)`."""
    hub = roomy(world)
    async with hub.lifespan(object()):
        assert hub.statistics().running
        assert "running" in repr(hub)
    assert not hub.statistics().running
    assert "idle" in repr(hub)


# -- loops and processes ------------------------------------------------------------------------------


def test_another_loop() -> None:
    """API 10: WrongLoop, with the remedy for threads and for tests."""
    hub: Hub[Any] = Hub(authenticate=anonymous, limits=Limits(position_check=None))
    hub.rooms("r", publishes=object, grant=Grant("publish"))
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(hub.start())

        async def elsewhere() -> None:
            for call in (lambda: hub.publish("r", 1), hub.start, hub.aclose):
                with pytest.raises(
                    WrongLoop, match=r"anyio.from_thread.run\(hub.publish, room, message\).*TestClient"
                ):
                    await call()

        asyncio.run(elsewhere())
        with pytest.raises(WrongLoop, match=r"no event loop runs in this thread; call anyio.from_thread.run"):
            hub.room("r").signal(1)
        loop.run_until_complete(hub.publish("r", 1))
        loop.run_until_complete(hub.aclose())
    finally:
        loop.close()


async def test_another_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """API 10: a fork after start is refused, and told where to start instead."""
    hub = roomy(world)
    await hub.start()
    pid = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        for call in (lambda: hub.publish("r:a", 1), hub.start, hub.aclose):
            with pytest.raises(
                WrongProcess, match=f"started in process {pid}, .*Start it in each worker after the fork"
            ):
                await call()
    await hub.publish("r:a", 1)


async def test_connecting_to_a_hub_that_does_not_run(world: World) -> None:
    hub = roomy(world)
    with pytest.raises(NotRunning, match=r"use `async with hub:`, pass lifespan=hub.lifespan"):
        RawClient(hub, world.clock)
    assert hub.statistics().running is False


# -- what it is while it runs -------------------------------------------------------------------------


async def test_statistics(world: World) -> None:
    """M1: gauges and totals, no label of a user's making."""
    hub = roomy(world)
    ann = await world.join(hub, "ann", "r:a", "r:b")
    await world.join(hub, "ann", "r:a")
    await world.join(hub, "bob", "r:secret")
    world.client(hub)
    await ann.call("publish", channel="r:a", data=1)
    await ann.refused("publish", channel="no:a", data=1)
    now = hub.statistics()
    assert (now.connections, now.sessions, now.rooms, now.users) == (4, 3, 3, 2)
    assert now.totals is not None
    totals = now.totals
    expected = {
        "connections": 4,
        "sessions": 3,
        "joins": 4,
        "publications": 1,
        "deliveries": 2,
        "errors{102}": 1,
    }
    assert {name: totals[name] for name in expected} == expected
    assert "secret" not in repr(totals)
    with pytest.raises(TypeError):
        totals["x"] = 1  # type: ignore[index]
    assert hub.engine.sessions.keys()
    assert all(s.statistics().rooms in (1, 2) for s in hub.engine.sessions.values())
    assert "3 sessions, 3 rooms" in repr(hub.engine)
    assert "1 live, 0 outside" in repr(hub.engine.rooms["r:b"])


async def test_hubs_of_one_process_are_told_apart(world: World) -> None:
    one, two = roomy(world), roomy(world)
    assert one.node_id != two.node_id
    async with one, two:
        assert one.statistics().running


async def test_the_real_clock(world: World) -> None:
    """Without a manual clock: everything works on the loop's own."""

    async def authenticate(credentials: Any) -> Identity[None]:
        return Identity(credentials.token)

    hub: Hub[Any] = Hub(authenticate=authenticate, broker=MemoryBroker(MemoryBackend()))
    hub.rooms("r", publishes=object, grant=Grant("publish"), history=History(5, ttl=60))
    async with hub:
        client = RawClient(hub, ManualClock())
        await client.connect("ann")
        await client.call("subscribe", channel="r")
        await client.call("publish", channel="r", data=1)
        assert client.data_of("r") == [1]
    assert client.closed == (3001, "draining")
