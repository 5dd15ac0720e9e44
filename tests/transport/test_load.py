"""Two hundred clients at once, half of them cut off, and nothing left of it afterwards (L1, C3)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from tests.support.rawsocket import Peer, frame, upgrade
from tests.transport.conftest import Site, tasks, until

CLIENTS = 200
MESSAGES = 50


async def test_a_crowd(site: Site) -> None:
    """All get all messages in order, until half of them are gone without a word; then the rest goes."""
    served = await site.open()
    first = await site.client("first", "log:a")
    before, running = site.hub.statistics(), len(tasks())
    crowd = [await site.client(f"user {n % 50}", "log:a", "now:a", rt=False) for n in range(CLIENTS)]
    now = site.hub.statistics()
    assert (now.sessions, now.rooms, now.users) == (CLIENTS + 1, 2, 51)

    async def hear(peer: Peer, numbers: range) -> None:
        assert await peer.data("log:a", len(numbers)) == list(numbers)

    half = MESSAGES // 2
    for n in range(half):
        await site.hub.room("log:a").publish(n)
    await asyncio.gather(*(hear(peer, range(half)) for peer in [first, *crowd]))
    chance = random.Random(7)
    gone = chance.sample(crowd, CLIENTS // 2)
    left = [peer for peer in crowd if peer not in gone]
    for n in range(half, MESSAGES):
        await site.hub.room("log:a").publish(n)
        # Cut while the room is talking: with pushes on the way, and some with half a frame said.
        for peer in gone[(n - half) * 4 : (n - half + 1) * 4]:
            if chance.random() < 0.5:
                peer.send_nowait(b"\x81\xfe")
            peer.reset()
    await asyncio.gather(*(hear(peer, range(half, MESSAGES)) for peer in [first, *left]))
    await until(lambda: site.hub.statistics().sessions == len(left) + 1)
    assert all([await peer.echo(n) == n for n, peer in enumerate(left)])
    for n, peer in enumerate(left):
        if n % 2:
            await peer.leave()
        else:
            peer.close()
    await until(lambda: replace(site.hub.statistics(), totals=None) == replace(before, totals=None))
    await until(lambda: len(served.transports()) == 1)
    await until(lambda: len(tasks()) == running)
    assert await first.echo("here") == "here"


async def test_an_idle_crowd_costs_no_task(site: Site) -> None:
    """C5: on our own server; an ASGI server has a task per connection, and that is all."""
    await site.open()
    first = await site.client("first", "log:a")
    running = len(tasks())
    crowd = [await site.client(f"user {n}", "log:a", rt=False) for n in range(100)]
    await first.echo("here")
    await site.clock.settle()
    assert len(tasks()) - running == (0 if site.host.can.ours else 100)
    assert len(crowd) == 100


async def test_everybody_comes_and_goes_at_once(site: Site) -> None:
    """Handshakes side by side, each cut off at another place."""
    served = await site.open()
    chance = random.Random(3)

    async def visit(n: int) -> None:
        sock = await site.socket()
        said = upgrade(served.path("ws")) + frame('{"id":1,"connect":{"token":"ann"}}') * 2
        await sock.send(said[: chance.randrange(len(said))])
        await asyncio.sleep(0)
        if n % 3 == 0:
            sock.reset()
        elif n % 3 == 1:
            sock.close()
        else:
            sock.send_eof()

    for _ in range(4):
        await asyncio.gather(*(visit(n) for n in range(60)))
        await until(lambda: not served.transports() and not site.open_connections)
