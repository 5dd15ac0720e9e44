"""A node finds how many newcomers a second it can carry (F2, K4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit import Hub, Limits
from rtkit.hub.pace import AVERAGE, FIRST, LEAST, LOOK, PLACES, REST, paced
from rtkit.primitives import Rate
from rtkit.transports import Handshake
from tests.unit.hub.conftest import World

ANY = Handshake("/rt/ws", (("host", "test"),))


async def open_hub(world: World, accepts: Rate | None, **limits: Any) -> Hub[Any]:
    hub = world.hub(limits=Limits(accepts=accepts, **limits))
    await hub.start()
    return hub


def come(hub: Hub[Any], count: int) -> int:
    """So many at once; how many of them are let in."""
    return sum(hub.engine.admission.refuse(ANY) is None for _ in range(count))


def rate(hub: Hub[Any]) -> float:
    return hub.statistics().accepts


async def test_it_begins_with_what_a_slow_core_carries(world: World) -> None:
    assert rate(await open_hub(world, Rate(1000, burst=10))) == FIRST
    assert rate(await open_hub(world, Rate(20, burst=10))) == 20, "accepts is the most"
    assert rate(await open_hub(world, Rate(1000, burst=10), accept_lag=None)) == 1000
    assert rate(await open_hub(world, None)) == 0


async def test_while_the_loop_is_on_time_and_more_would_come_it_rises(world: World) -> None:
    hub = await open_hub(world, Rate(1000, burst=120))
    assert come(hub, 500) == 120
    assert rate(hub) == FIRST, "nothing is known yet"
    await world.clock.advance(LOOK)
    assert rate(hub) == pytest.approx(1.05 * FIRST)
    let_in = 0
    for _ in range(60):
        let_in += come(hub, 100)
        await world.clock.advance(LOOK)
    assert rate(hub) == 1000
    assert FIRST * 3 < let_in < 1000 * 3, "in as many seconds"


async def test_who_is_late_lets_in_fewer(world: World) -> None:
    hub = await open_hub(world, Rate(1000, burst=10))
    come(hub, 100)
    world.clock.stall(LOOK + 0.02)
    await world.settle()
    assert rate(hub) == pytest.approx(0.7 * FIRST)
    for _ in range(20):
        world.clock.stall(LOOK + 0.02)
        await world.settle()
    assert rate(hub) == LEAST, "the loop may be late for other reasons"
    let_in = 0
    for _ in range(20):
        world.clock.stall(LOOK + 0.02)
        let_in += come(hub, 100)
        await world.settle()
    assert let_in == pytest.approx(LEAST * 20 * (LOOK + 0.02), abs=10 + 1)


async def test_a_little_late_is_not_late(world: World) -> None:
    hub = await open_hub(world, Rate(1000, burst=10), accept_lag=0.2)
    come(hub, 100)
    world.clock.stall(LOOK + 0.19)
    await world.settle()
    assert rate(hub) > FIRST


async def test_what_was_found_is_kept_and_nobody_looks_at_an_idle_loop(world: World) -> None:
    hub = await open_hub(world, Rate(1000, burst=120))
    assert come(hub, 50) == 50
    await world.clock.advance(REST)
    assert rate(hub) == FIRST, "nobody was turned away"
    come(hub, 500)
    await world.clock.advance(LOOK)
    found = rate(hub)
    await world.clock.advance(REST + LOOK)
    assert not hub.engine.admission.looking
    assert rate(hub) == found > FIRST
    # Whatever held the loop meanwhile had nothing to do with newcomers.
    world.clock.stall(60)
    await world.settle()
    assert rate(hub) == found
    come(hub, 1)
    assert hub.engine.admission.looking


async def test_places_are_given_out_by_what_the_rate_comes_to(world: World) -> None:
    """In a storm's first second all are told when to come, and just then the loop is late. And by a little more."""

    def queue() -> float:
        """Where the last of a thousand stands, in seconds."""
        refusals = [hub.engine.admission.refuse(ANY) for _ in range(1001)]
        assert refusals[-1] is not None
        return refusals[-1].window[0]

    hub = await open_hub(world, Rate(1000, burst=1))
    come(hub, 1)
    for _ in range(5):
        world.clock.stall(LOOK + 0.02)
        await world.settle()
    assert rate(hub) == LEAST
    assert 1000 / (PLACES * FIRST) < queue() < 1000 / FIRST
    for _ in range(round(4 * AVERAGE / LOOK)):
        come(hub, 1)
        world.clock.stall(LOOK + 0.02)
        await world.settle()
    await world.clock.advance(60)  # the queue is empty
    assert queue() == pytest.approx(1000 / (PLACES * LEAST), rel=0.05)
    hub = await open_hub(world, Rate(60, burst=1))
    assert queue() == pytest.approx(1000 / 60), "accepts is the most"


async def test_without_it_the_rate_is_what_it_was_told(world: World) -> None:
    hub = await open_hub(world, Rate(1000, burst=10), accept_lag=None)
    come(hub, 100)
    assert not hub.engine.admission.looking
    world.clock.stall(5)
    await world.settle()
    assert rate(hub) == 1000


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300),
    st.floats(1, 10_000),
)
def test_it_stays_within_its_bounds(looks: list[tuple[bool, bool]], most: float) -> None:
    now = min(FIRST, most)
    for late, wanted in looks:
        before, now = now, paced(now, late=late, wanted=wanted, most=most)
        assert min(LEAST, most) <= now <= most
        assert now <= before if late or not wanted else now >= before


@pytest.mark.parametrize("carries", [80, 150, 400])
async def test_a_storm_meets_a_node_that_carries_so_many(world: World, carries: int) -> None:
    """Who obeys is in about as soon as the node can have it, and does not knock in vain for ever (K4)."""
    hub = await open_hub(world, Rate(1000, burst=20))
    clients, now, refusals = 3000, 0.0, 0
    work = 0.0  # seconds of it that the loop has before it
    coming = [n / clients for n in range(clients)]
    while coming:
        took = min(
            max(work, LOOK), 5 * LOOK
        )  # it looks when it has worked that off, or late enough to see it
        now, work = now + took, max(0.0, work - took)
        world.clock.stall(took)
        await world.settle()
        due, coming = [t for t in coming if t <= now], [t for t in coming if t > now]
        for _ in due:
            refusal = hub.engine.admission.refuse(ANY)
            work += (1.0 if refusal is None else 0.4) / carries
            if refusal is not None:
                refusals += 1
                coming.append(now + sum(refusal.window) / 2)
    assert now < 2.5 * clients / carries + 5
    assert refusals < 3 * clients
