"""T8 on real sockets: 10 MB both ways, while pings and small messages go on. Prints what the small ones felt."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import pytest

import rtkit
from rtkit import Context, Credentials, Grant, Hub, Identity, Limits
from rtkit.client import RoomClient, connect
from rtkit.primitives import Heartbeat, Rate


@dataclass
class Mirror:
    text: str


async def anybody(credentials: Credentials) -> Identity[None]:
    return Identity(credentials.token or "anybody")


def mirrors(limits: Limits) -> Hub[None]:
    hub: Hub[None] = Hub(authenticate=anybody, limits=limits)
    hub.rooms("room:{x}", publishes=object, grant=Grant("publish"))

    @hub.rpc(Mirror)
    async def mirror(ctx: Context[None, None], message: Mirror) -> str:
        return message.text[::-1]

    return hub


@asynccontextmanager
async def serving(hub: Hub[None]) -> AsyncGenerator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(rtkit.serve(hub, sock=sock))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/rt"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_client_with_much_to_send_keeps_to_the_bytes_a_second() -> None:
    """F1: each call is small, and all of them together are more than the hub takes at once."""
    hub = mirrors(Limits(inbound=Rate(400_000, 200_000)))
    async with serving(hub) as url, connect(url) as ann:
        answers = await asyncio.gather(*(ann.call(Mirror("ab" * 5_000)) for _ in range(25)))
        assert answers == ["ba" * 5_000] * 25
        assert ann.statistics().connects == 1


async def test_ten_megabytes_both_ways_while_small_messages_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The issue's line. Times are printed, not judged: what is judged is that all of it arrives, in order."""
    hub = mirrors(Limits(heartbeat=Heartbeat(interval=0.2, timeout=5)))
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
    lines = [f"10 MB both ways in {took:.2f} s; round trips of small messages meanwhile:"]
    for who, times in felt.items():
        middle, most = statistics.median(times) * 1000, max(times) * 1000
        lines.append(f"  {who}: {len(times)}, median {middle:.1f} ms, most {most:.0f} ms")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
