"""T8 on real sockets: 10 MB both ways, while pings and small messages go on. Prints what the small ones felt."""

from __future__ import annotations

import asyncio
import socket
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pytest

import rtkit
from rtkit import Context, Credentials, Grant, Hub, Identity, Limits
from rtkit.client import RoomClient, connect
from rtkit.primitives import Heartbeat
from rtkit.testing.clock import ManualClock
from rtkit.testing.links import MemoryDialer


@dataclass
class Mirror:
    text: str


async def anybody(credentials: Credentials) -> Identity[None]:
    return Identity(credentials.token or "anybody")


def mirrors(**options: Any) -> Hub[None]:
    hub: Hub[None] = Hub(authenticate=anybody, **options)
    hub.rooms("room:{x}", publishes=object, grant=Grant("publish"))

    @hub.rpc(Mirror)
    async def mirror(ctx: Context[None, None], message: Mirror) -> str:
        return message.text[::-1]

    return hub


@asynccontextmanager
async def serving(hub: Hub[None]) -> AsyncIterator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(rtkit.serve(hub, sock=sock))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/rt"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_ten_megabytes_both_ways_while_small_messages_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The issue's line. Times are printed, not judged: what is judged is that all of it arrives, in order."""
    hub = mirrors(limits=Limits(heartbeat=Heartbeat(interval=0.2, timeout=5)))
    text = "0123456789" * 1_000_000
    felt: dict[str, list[float]] = {"the same client": [], "another client": []}
    async with (
        serving(hub) as url,
        connect(url) as ann,
        connect(url) as bob,
        ann.join("room:1", receives=object) as hers,
        bob.join("room:2", receives=object) as his,
    ):
        done = asyncio.Event()

        async def chat(room: RoomClient[object], times: list[float]) -> None:
            n = 0
            while not done.is_set():
                n += 1
                began = perf_counter()
                await room.send(n)
                assert (await anext(room)).data == n  # type: ignore[union-attr]
                times.append(perf_counter() - began)
                await asyncio.sleep(0)

        chats = [
            asyncio.create_task(chat(room, times))
            for room, times in zip((hers, his), felt.values(), strict=True)
        ]
        began = perf_counter()
        assert await ann.call(Mirror(text), returns=str) == text[::-1]
        took = perf_counter() - began
        done.set()
        await asyncio.gather(*chats)
        assert all(felt.values())
        assert ann.statistics().connects == bob.statistics().connects == 1
    with capsys.disabled():
        print(f"\n10 MB both ways in {took:.2f} s; round trips of small messages meanwhile:")
        for who, times in felt.items():
            print(
                f"  {who}: {len(times)}, median {statistics.median(times) * 1000:.1f} ms, most {max(times) * 1000:.0f} ms"
            )


async def test_a_slow_link_carries_pings_and_small_messages_beside_ten_megabytes() -> None:
    """Bounded by counts, in virtual time: over a link that takes two frames a tick, a small message of another room
    is there within two ticks, and no ping is late."""
    clock = ManualClock()
    hub = mirrors(clock=clock, limits=Limits(heartbeat=Heartbeat(interval=5, timeout=5)))
    dialer = MemoryDialer(hub)
    async with hub, connect("ws://test/rt", dialer=dialer, clock=clock) as ann:
        async with ann.join("room:1", receives=object) as room:
            link = dialer.links[0]
            text = "x" * 10_000_000
            call = asyncio.create_task(ann.call(Mirror(text), returns=str))
            for _ in range(100):  # all of it goes up, and the answer begins to come down
                await clock.settle()
            link.freeze()
            waits: list[int] = []
            ticks = told = 0
            while not call.done():
                await hub.publish("room:1", told)
                told += 1
                waited = 0
                item: asyncio.Task[Any] = asyncio.create_task(anext(room))
                while not item.done():
                    link.thaw()
                    await clock.settle()
                    link.freeze()
                    ticks += 1
                    waited += 1
                    await clock.advance(0.5)
                waits.append(waited)
                assert item.result().data == told - 1
                assert ticks < 5000
            assert await call == text
            assert max(waits) <= 2
            assert ann.statistics().connects == 1
