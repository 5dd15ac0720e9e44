"""A client that says more than its handlers can do: it is made to wait, by TCP, and nothing it said is lost (C2)."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Final

import pytest

from rtkit import Context
from rtkit.primitives import Rate
from tests.support.rawsocket import frame
from tests.transport.conftest import Site, until

#: Bytes of a command; with so many of them what the kernel keeps on both sides is soon full.
SIZE: Final = 16 * 1024
COUNT: Final = 700


class Slow:
    """A hub with a procedure that waits, and has room for what a client may send."""

    def __init__(self, site: Site, **limits: Any) -> None:
        plenty = Rate(rate=2**30, burst=2**30)
        hub = site.build(inbound=plenty, **limits)
        self.gate = asyncio.Event()
        self.begun: list[int] = []

        @hub.rpc(object, name="slow")
        async def slow(ctx: Context[Any, Any], data: Any) -> Any:
            self.begun.append(data["n"])
            await self.gate.wait()
            return data["n"]


def waiting(site: Site, user: str) -> int:
    """Commands of somebody that the hub holds."""
    [held] = [
        each._pending
        for each in site.hub.engine.connections
        if each.session is not None and each.session.identity.user == user
    ]
    return len(held or ())


async def test_a_flood_is_held_up_by_tcp(site: Site) -> None:
    """Its sending blocks, the hub holds what it may, others are answered; then all is answered, in order, once."""
    hub = Slow(site)
    await site.open()
    eve, ann = await site.client("eve"), await site.client("ann")
    eve._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * SIZE)
    ids: list[int] = []
    said = bytearray()
    for n in range(COUNT):
        id, unit = eve.unit("rpc", method="slow", data={"n": n, "fill": "x" * SIZE})
        ids.append(id)
        said += frame(unit)
    sent, still = 0, 0
    # So many turns of the loop in which nothing was taken, once the hub has what it may have.
    while sent < len(said) and (still < 300 or waiting(site, "eve") < site.hub.limits.max_pending):
        took = eve.send_nowait(bytes(said[sent : sent + 4 * SIZE]))
        sent += took
        still = 0 if took else still + 1
        await asyncio.sleep(0)
    assert sent < len(said), "nobody pushed back"
    assert hub.begun == [0]
    assert site.hub.limits.max_pending <= waiting(site, "eve") < 2 * site.hub.limits.max_pending
    for n in range(10):
        assert await ann.echo(n) == n
    hub.gate.set()
    rest = asyncio.create_task(eve.send(bytes(said[sent:])))
    for n, id in enumerate(ids):
        reply = await eve.next_unit()
        assert (reply["id"], reply["rpc"]["data"]) == (id, n)
    await rest
    assert hub.begun == list(range(COUNT))
    assert await eve.echo("here") == "here"


@pytest.mark.parametrize("kind", ["sse", "poll"])
async def test_a_flood_of_requests_is_sent_away_for_a_while(site: Site, kind: str) -> None:
    """429 for what the hub has no room for, which is the same request again; nothing is lost or done twice."""
    hub = Slow(site, max_pending=8)
    await site.open()
    eve, ann = await site.session(kind, "eve"), await site.client("ann")
    bodies = {n: json.dumps({"id": 100 + n, "rpc": {"method": "slow", "data": {"n": n}}}) for n in range(30)}
    refused: list[int] = []
    for n, body in bodies.items():
        response = await eve.post(body, seq=eve.seq + 1)
        assert response.status in (204, 429), response
        if response.status == 429:
            refused.append(n)
            assert int(response.headers["retry-after"]) >= 1
        else:
            eve.seq += 1
    assert refused == list(range(8, 30)), "what comes after a refused one is not taken either"
    assert waiting(site, "eve") == 8
    assert await ann.echo("here") == "here"
    hub.gate.set()
    for n in refused:
        while (response := await eve.post(bodies[n], seq=eve.seq + 1)).status == 429:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert response.status == 204
        eve.seq += 1
    heard: list[int] = []
    while len(heard) < 30:
        unit = await eve.next_unit()
        heard.append(unit["rpc"]["data"])
        assert unit["id"] == 100 + heard[-1]
    assert heard == hub.begun == list(range(30))
    await until(lambda: waiting(site, "eve") == 0)
