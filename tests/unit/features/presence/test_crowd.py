"""What changes all the time is told in few frames, spread over time (P2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import rtkit.features._watching as watching
from rtkit import Grant, Hub, Limits, Presence
from rtkit.primitives import Rate
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

ROOM = "chat:a"
LIMITS = Limits(heartbeat=None, commands=Rate(rate=10_000, burst=10_000))


def hub_of(world: World) -> Hub[Any]:
    hub = world.hub(limits=LIMITS)
    hub.rooms("chat:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
    return hub


async def watcher(world: World, hub: Hub[Any], user: str) -> tuple[RawClient, Any]:
    client = await world.join(hub, user)
    return client, (await client.call("subscribe", channel=ROOM, presence=True))["presence"]


async def frames(world: World, client: RawClient, busy: RawClient, seconds: float) -> list[float]:
    """Somebody comes and goes all the time: when was it told?"""
    told: list[float] = []
    inside = False
    for _ in range(round(seconds / 0.05)):
        before = len(client.pushes_of(ROOM, "presence"))
        await busy.call("unsubscribe" if inside else "subscribe", channel=ROOM)
        inside = not inside
        other = "chat:b" if inside else ROOM  # so that there is a change in any frame
        busy.tell({"presence_update": {"channel": other, "meta": {"n": len(told)}}})
        await world.clock.advance(0.05)
        told += [world.clock.monotonic()] * (len(client.pushes_of(ROOM, "presence")) - before)
    return told


async def test_while_changes_go_on_frames_are_half_a_second_apart(world: World) -> None:
    hub = hub_of(world)
    ann, _ = await watcher(world, hub, "ann")
    busy = await world.join(hub, "busy")
    await world.advance(3)
    told = await frames(world, ann, busy, 10)
    assert len(told) > 8
    in_a_second = [sum(each <= other < each + 0.99 for other in told) for each in told]
    assert max(in_a_second) == 2
    later = told[3:]
    assert min(b - a for a, b in pairwise(later)) > 0.4


async def test_in_a_crowd_there_are_fewer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a frame costs is to hand it to each: with twice as many watchers there are half as many."""
    monkeypatch.setattr(watching, "_CROWD", 2)
    hub = hub_of(world)
    watchers = [(await watcher(world, hub, f"user {n}"))[0] for n in range(8)]
    busy = await world.join(hub, "busy")
    await world.advance(5)
    told = await frames(world, watchers[0], busy, 20)
    assert 5 <= len(told) <= 12
    later = told[3:]
    assert min(b - a for a, b in pairwise(later)) > 1.9


async def test_who_come_between_two_frames_share_a_snapshot_that_agrees_with_what_follows(
    world: World,
) -> None:
    hub = hub_of(world)
    await watcher(world, hub, "ann")
    await world.advance(3)
    known: list[dict[str, str]] = []
    clients: list[RawClient] = []
    for n in range(6):
        client, snapshot = await watcher(world, hub, f"user {n}")
        clients.append(client)
        known.append({each["client"]: each["user"] for each in snapshot["members"]})
        if n % 2:
            await world.clock.advance(0.3)
    await clients[0].call("unsubscribe", channel=ROOM)
    await world.advance(3)
    for client, members in list(zip(clients, known, strict=True))[1:]:
        for push in client.pushes_of(ROOM, "presence"):
            for each in push.get("joins", []):
                assert each["client"] not in members
                members[each["client"]] = each["user"]
            for each in push.get("leaves", []):
                assert members.pop(each["client"]) == each["user"]
        assert sorted(members.values()) == ["ann", *(f"user {n}" for n in range(1, 6))]


async def test_a_frame_that_goes_past_the_outbox_overtakes_nothing(world: World) -> None:
    """Neither what is queued, nor the reply that it comes after."""
    hub = hub_of(world)
    ann, snapshot = await watcher(world, hub, "ann")
    numbers = [snapshot.get("v", 0)]
    for n in range(6):
        if n == 2:
            ann.pipe.stall()
        other = await world.join(hub, f"user {n}")
        await other.call("subscribe", channel=ROOM)
        ann.ask("ping")
        await world.clock.advance(1.0)
    ann.pipe.drain()
    await world.advance(2)
    numbers += [push["v"] for push in ann.pushes_of(ROOM, "presence")]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(numbers) > 6
