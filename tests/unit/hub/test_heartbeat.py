"""Is the peer still there (F4, F5, C2, C5)?"""

from __future__ import annotations

from typing import Any

import pytest

from rtkit import Grant, Hub, Limits
from rtkit.primitives import Heartbeat
from tests.unit.hub.conftest import World


def quiet(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("r", publishes=object, grant=Grant("publish"))
    return hub


async def test_pings_come_every_interval(world: World) -> None:
    """F4: the first at a random moment within it."""
    hub = quiet(world)
    firsts: list[float] = []
    for _ in range(10):
        client = await world.join(hub, "ann")
        began = world.clock.monotonic()
        while client.pings == 0:
            await world.advance(0.5)
        firsts.append(world.clock.monotonic() - began)
        await world.advance(100)
        assert client.pings == 5
        assert client.closed is None
        await client.drop()
    assert max(firsts) <= 25.5
    assert max(firsts) - min(firsts) > 5


async def test_patience_longer_than_the_interval_makes_no_longer_interval(world: World) -> None:
    """F4: a client hangs up when the pings it was promised do not come."""
    hub = quiet(world, limits=Limits(heartbeat=Heartbeat(interval=5, timeout=20)))
    client = await world.join(hub, "ann")
    await world.advance(100)
    assert 19 <= client.pings <= 21
    silent = await world.join(hub, "bob", pongs=False)
    await world.advance(25.1, step=0.1)
    assert silent.closed == (3012, "no pong")
    assert silent.pings == 1
    assert client.closed is None


async def test_who_does_not_answer_is_closed(world: World) -> None:
    """F4: within interval and timeout of its last sign: 35 s."""
    hub = quiet(world)
    client = await world.join(hub, "ann", "r", pongs=False)
    await world.advance(35.1, step=0.1)
    assert client.closed == (3012, "no pong")
    assert client.pings == 1
    assert hub.statistics().rooms == 0
    assert hub.statistics().totals is not None
    assert hub.statistics().totals["heartbeats_lost"] == 1


@pytest.mark.parametrize("frame", [b"{}", b'{"id":9,"ping":{}}', b'{"id":9,"nonsense":{}}'])
async def test_any_frame_is_an_answer(world: World, frame: bytes) -> None:
    """Protocol 4.2."""
    hub = quiet(world)
    client = await world.join(hub, "ann", pongs=False)
    heard = 0
    for id in range(200):
        await world.advance(1)
        if client.pings > heard:
            heard = client.pings
            client.say(frame.replace(b"9", b"%d" % (100 + id)))
    assert client.closed is None
    assert heard >= 7


async def test_without_a_heartbeat(world: World) -> None:
    """Limits: heartbeat=None is off, and said so when connecting; no deadline is left for it."""
    hub = quiet(world, limits=Limits(heartbeat=None))
    await hub.start()
    client = world.client(hub, pongs=False)
    result = await client.connect("ann")
    assert "ping" not in result
    assert "pong" not in result
    assert hub.statistics().deadlines == 0
    await world.advance(1000, step=10)
    assert client.closed is None
    assert client.pings == 0


async def test_a_heartbeat_of_ones_own(world: World) -> None:
    hub = quiet(world, limits=Limits(heartbeat=Heartbeat(interval=0.4, timeout=0.2)))
    client = await world.join(hub, "ann", pongs=False)
    assert client.reply(1)["connect"]["ping"] == 1
    await world.advance(0.7, step=0.05)
    assert client.close_code == 3012


async def test_a_stall_of_our_own_closes_nobody(world: World) -> None:
    """F5: what the hub sees in its own clock puts heartbeats off instead of closing everybody."""
    hub = quiet(world)
    clients = [await world.join(hub, f"u{n}") for n in range(20)]
    await world.advance(30)
    for client in clients:
        client.pongs = False
    await world.clock.advance(9)
    assert sum(client.pings for client in clients) > 20
    world.clock.stall(60)
    await world.clock.settle()
    for client in clients:
        client.pongs = True
        await client.settle()
    await world.advance(60)
    assert [client.closed for client in clients] == [None] * 20
    assert hub.statistics().totals is not None
    assert hub.statistics().totals["stalls"] >= 1


async def test_idle_connections_cost_one_deadline_each(world: World) -> None:
    """C5: no task, and one entry in the hub's one structure of deadlines."""
    hub = quiet(world)
    await hub.start()
    before = hub.statistics()
    clients = [world.client(hub) for _ in range(100)]
    assert hub.statistics().deadlines == before.deadlines + 100
    for n, client in enumerate(clients):
        await client.connect(f"u{n}")
        await client.call("subscribe", channel="r")
    after = hub.statistics()
    assert (after.connections, after.sessions, after.rooms, after.users) == (100, 100, 1, 100)
    assert after.tasks == before.tasks
    assert after.deadlines == before.deadlines + 100
    assert world.clock.timers <= 3, "deadlines, the lease, comparing tops"
    await world.advance(60)
    assert hub.statistics().tasks == before.tasks
    assert hub.statistics().deadlines == before.deadlines + 100
    for client in clients:
        assert client.driver._pending is None  # type: ignore[attr-defined]
        assert client.driver.outbox._queue is None  # type: ignore[attr-defined]
        await client.drop()
    assert hub.statistics().deadlines == before.deadlines
