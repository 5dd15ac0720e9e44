"""A room publishes a thousand messages a second, and one member reads one a second (D1, D2, D3, F4).

Here by a clock that is moved by hand, over each transport. On real sockets, with hundreds of others beside it, it is in
``tests/transport/test_slow_soak.py``. What each policy does in one go is in ``test_slow.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

import pytest

from rtkit import Grant, History, Hub, Limits
from rtkit.hub.connection import Connection
from tests.support.rawclient import FakePipe, RawClient
from tests.support.webclient import WebClient
from tests.unit.hub.conftest import World

Kind = Literal["websocket", "sse", "poll"]

OUTBOX: Final = 60_000
RESERVE: Final = 20_000
#: Messages a second, which are published ten at a time.
RATE: Final = 1000
TICK: Final = 10 / RATE
ROOM: Final = "log:a"
#: A poller that is as slow as it may be: beyond 10 s it is taken for lost.
BETWEEN_POLLS: Final = 9


def make_hub(world: World, *, count: int = 10_000, **limits: Any) -> Hub[Any]:
    """With heartbeats as they are by default: who reads slowly hears the pings late."""
    hub = world.hub(limits=Limits(outbox=OUTBOX, reserve=RESERVE, max_publication=5_000, **limits))
    grant = Grant("publish", "history")
    hub.rooms("log:{x}", publishes=object, grant=grant, history=History(count, ttl=36_000))
    hub.rooms("oldest:{x}", publishes=object, grant=grant)
    hub.rooms("newest:{x}", publishes=object, grant=grant, overflow="drop_newest")
    hub.rooms("latest:{x}", publishes=object, grant=grant, overflow="latest_per_key")
    hub.rooms("close:{x}", publishes=object, grant=grant, overflow="close")
    return hub


async def come(world: World, hub: Hub[Any], kind: Kind, room: str) -> RawClient:
    """A member over one of the transports."""
    if kind == "websocket":
        return await world.join(hub, "slow", room)
    await hub.start()
    client = WebClient(hub, world.clock, kind=kind, rt=True)
    world.clients.append(client)
    await client.connect("slow")
    await client.call("subscribe", channel=room)
    if kind == "poll":
        client.polling = False
        await world.clock.advance(hub.limits.poll_wait)  # the poll that is under way ends, empty
    return client


def sip(pipe: FakePipe) -> None:
    """Read up to the next message, and with it; on the way there may be pings and comments."""
    while pipe.waiting:
        line, more, rest = pipe.waiting[0].partition(b"\n")
        pipe.frames.append(line)
        pipe.buffered -= len(line) + len(more)
        if rest:
            pipe.waiting[0] = rest
        else:
            del pipe.waiting[0]
            if not pipe.waiting:
                pipe._soon(pipe._writable)
        if b'"pub"' in line:
            return


class Slow:
    """A member that reads one message a second, and what the hub holds for it."""

    def __init__(self, world: World, hub: Hub[Any], client: RawClient, kind: Kind) -> None:
        self.world = world
        self.client = client
        self.kind = kind
        self.most = 0
        [session] = [each for each in hub.engine.sessions.values() if each.identity.user == "slow"]
        assert session.connection is not None
        self.connection: Connection = session.connection
        self._next_poll = 0.0
        if kind != "poll":
            client.pipe.stall()

    def look(self) -> None:
        """Take down what is held for it now."""
        self.most = max(self.most, self.connection.outbox.size + self.connection.transport.buffered)

    async def read(self) -> None:
        """What it reads in a second."""
        self.look()
        if self.kind != "poll":
            sip(self.client.pipe)
        elif self.world.clock.monotonic() >= self._next_poll:
            self._next_poll = self.world.clock.monotonic() + BETWEEN_POLLS
            await self._poll()
        await self.client.settle()

    async def _poll(self) -> None:
        assert isinstance(self.client, WebClient)
        found = await self.client.poll(self.client.ack)
        if isinstance(found, asyncio.Future):
            await self.world.clock.settle()
            if not found.done():
                found.cancel()
                return
            found = found.result()
        assert found.status == 200, found
        self.client._take(found)

    async def read_until(self, number: int, room: str = ROOM) -> None:
        """Read on, one message a second, until it has this one; answers to pings included."""
        for second in range(20_000):
            if self.client.pipe.frames and f'"{number:06} ' in self.client.pipe.frames[-1].decode():
                return
            assert self.client.closed is None, f"closed after {len(self.client.pushes_of(room))} messages"
            await self.world.clock.advance(1)
            await self.read()
            if second % 5 == 0:
                for each in self.world.clients:
                    await each.settle()  # they answer their pings
        raise AssertionError(f"{number} never came")


async def turns_until_heard(hub: Hub[Any], other: RawClient, room: str, data: str) -> int:
    """Publish, and count the turns of the loop until somebody else has it."""
    before = len(other.pipe.frames)
    await hub.publish(room, data)
    turns = 0
    while len(other.pipe.frames) == before:
        await asyncio.sleep(0)
        turns += 1
        assert turns < 100
    return turns


async def publish(
    hub: Hub[Any], slow: Slow, other: RawClient, total: int, room: str = ROOM, size: int = 40
) -> None:
    """A thousand a second; the other member has all of them in the moment they were published in."""
    for first in range(1, total + 1, 10):
        for n in range(first, first + 10):
            await hub.publish(room, f"{n:06} {'x' * size}")
        await slow.world.settle()
        assert f'"{n:06} '.encode() in other.pipe.frames[-1], "it was delayed"
        slow.look()
        await slow.world.clock.advance(TICK)
        if first % RATE == 1:
            await slow.read()


def numbers(client: RawClient, room: str = ROOM) -> list[int]:
    return [int(data[:6]) for data in client.data_of(room) if data != "before"]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "trimmed"])
@pytest.mark.parametrize("kind", ["websocket", "sse", "poll"])
async def test_one_message_a_second_of_a_thousand(world: World, kind: Kind, kept: bool) -> None:
    """D1, D2, D3, F4: bounded, nobody is delayed; in the end every message, in order, or one gap and then the rest.

    And it is never taken for dead, though it comes to each ping minutes after that was sent.
    """
    count = 10_000 if kept else 200
    hub = make_hub(world, count=count)
    other = await world.join(hub, "other", ROOM)
    alone = await turns_until_heard(hub, other, ROOM, "before")
    client = await come(world, hub, kind, ROOM)
    slow = Slow(world, hub, client, kind)
    await publish(hub, slow, other, RATE)
    assert hub.statistics().behind == 1
    last = RATE + 1  # its offset is one more, as there was one before
    assert await turns_until_heard(hub, other, ROOM, f"{last:06} last") == alone, "it delays somebody"
    await slow.read_until(last)
    assert OUTBOX * 0.9 < slow.most <= OUTBOX + RESERVE
    got = numbers(client)
    assert client.offsets_of(ROOM) == [n + 1 for n in got]
    gaps = client.pushes_of(ROOM, "gap")
    totals = hub.statistics().totals
    assert totals is not None
    if kept:
        assert gaps == []
        assert got == list(range(1, last + 1))
    else:
        [gap] = gaps
        assert (gap["to"], gap["reason"]) == (last + 1 - count, "trimmed")
        missed = range(gap["from"], gap["to"])  # numbers of those with an offset in (from, to]
        assert len(missed) > 100
        assert got == [n for n in range(1, last + 1) if n not in missed]
        assert totals["gaps{trimmed}"] == 1
    assert numbers(other) == list(range(1, last + 1))
    # And then it is one of them again.
    assert hub.statistics().behind == 0
    assert client.closed is None
    assert totals["lagging"] >= 1
    assert not [name for name in totals if name.startswith(("drops", "closes", "heartbeats_lost"))], totals


@pytest.mark.parametrize("policy", ["oldest", "newest", "latest", "close"])
async def test_what_the_other_policies_drop_is_bounded_and_counted(world: World, policy: str) -> None:
    """D1, D2, D3: what did not arrive was dropped by that policy; what arrives is in order."""
    room, total = f"{policy}:a", 300
    hub = make_hub(world)
    other = await world.join(hub, "other", room)
    client = await world.join(hub, "slow", room)
    slow = Slow(world, hub, client, "websocket")
    await publish(hub, slow, other, total, room, size=1000)
    heard = numbers(other, room)
    # Of what comes in one turn of the loop, nobody gets more than the latest there.
    assert heard == list(range(10 if policy == "latest" else 1, total + 1, 10 if policy == "latest" else 1))
    assert slow.most <= OUTBOX + RESERVE
    if policy == "close":
        assert client.closed == (3008, "slow consumer")
        assert hub.statistics().counted.closes == {"3008": 1}
        assert hub.statistics().sessions == 1
        return
    client.pipe.drain()
    await client.settle()
    got = numbers(client, room)
    assert got == sorted(set(got))
    name = "latest_per_key" if policy == "latest" else f"drop_{policy}"
    assert hub.statistics().counted.drops == {name: 2 * total - len(heard) - len(got)}
    if policy == "newest":
        assert got == list(range(1, len(got) + 1))
        assert 40 < len(got) < 70
    elif policy == "oldest":
        assert got[-10:] == list(range(total - 9, total + 1))
        assert 40 < len(got) < 70
    else:
        assert got[-1] == total
        assert len(got) < 70
    assert client.closed is None
    assert hub.statistics().queued_bytes == 0


async def test_a_burst_of_tiny_messages_is_bounded_too(world: World) -> None:
    """D1: what makes them up for the wire counts, and that is most of them."""
    hub = make_hub(world)
    client = await world.join(hub, "slow", ROOM)
    slow = Slow(world, hub, client, "websocket")
    for _ in range(3000):
        await hub.publish(ROOM, 1)  # in one turn of the loop: nothing is waited for in memory
        slow.look()
    await world.settle()
    slow.look()
    assert slow.most <= OUTBOX + RESERVE
    client.pipe.drain()
    await client.settle()
    assert client.offsets_of(ROOM) == list(range(1, 3001))
    assert client.closed is None


# -- slow, or dead (F4)


async def fall_behind(world: World, hub: Hub[Any], **options: Any) -> tuple[RawClient, Slow]:
    """A member that answers no ping, with more to read than the hub may hold for it."""
    client = await world.join(hub, "slow", ROOM, pongs=False, **options)
    slow = Slow(world, hub, client, "websocket")
    for n in range(1, 1001):
        await hub.publish(ROOM, f"{n:06} {'x' * 40}")
        if n % 10 == 0:
            await world.settle()
    assert hub.statistics().behind == 1
    return client, slow


async def test_who_takes_nothing_is_dead(world: World) -> None:
    """F4: whatever stands before the ping, interval and timeout are all the time there is."""
    client, _ = await fall_behind(world, make_hub(world))
    await world.clock.advance(25 + 10)
    assert client.closed == (3012, "no pong")


async def test_who_takes_something_within_the_timeout_lives(world: World) -> None:
    """F4, D1: it cannot have heard the ping yet. When it can, its time begins."""
    hub = make_hub(world)
    client, slow = await fall_behind(world, hub)
    for _ in range(60):
        await world.clock.advance(9)
        sip(client.pipe)
    assert client.closed is None
    client.pipe.drain()
    await world.clock.advance(9)
    assert client.closed is None
    assert client.pings >= 1
    assert client.offsets_of(ROOM) == list(range(1, 1001))
    await world.clock.advance(1)
    assert client.closed == (3012, "no pong")
    assert slow.most <= OUTBOX + RESERVE


async def test_who_stops_taking_is_dead_as_soon_as_anybody(world: World) -> None:
    """F4: a sign of life counts for one timeout."""
    client, _ = await fall_behind(world, make_hub(world))
    for _ in range(20):
        await world.clock.advance(9)
        sip(client.pipe)
    await world.clock.advance(2 * 10)
    assert client.closed == (3012, "no pong")


class LatePipe(FakePipe):
    """A host that takes what is written a turn later, as one with a task of its own for writing does."""

    def write(self, data: bytes) -> None:
        if not self.waiting:
            self._soon(self.drain)
        self.stalled = True
        super().write(data)
        self.stalled = False


async def test_what_only_waits_for_its_turn_does_not_stand_before_a_ping(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F4: a busy host takes everything all the time; that says nothing about the peer."""
    monkeypatch.setattr("tests.support.rawclient.FakePipe", LatePipe)
    hub = make_hub(world)
    client = await world.join(hub, "dead", ROOM, pongs=False)

    def busy() -> None:
        """Something is on its way whenever the hub looks."""
        client.driver.control(b'{"push":{"message":{"data":1}}}')  # type: ignore[attr-defined]
        client.driver.flush()  # type: ignore[attr-defined]

    for _ in range(350):
        busy()
        world.clock.advance_nowait(0.1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await world.settle()
    assert client.closed == (3012, "no pong")
