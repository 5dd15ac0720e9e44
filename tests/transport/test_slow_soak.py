"""A room that publishes a thousand messages a second to hundreds of members, and to one who reads one a second.

On real sockets and by the real clock, with a hub in a process of its own; its figures are printed (``-s``). By a clock
that is moved by hand it is in ``tests/unit/hub/test_backpressure.py``. ``RTKIT_SLOW=members,rate,seconds`` says
otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from rtkit.wire import Assembler, decode_reply
from tests.docs.blocks import ROOT
from tests.support.rawsession import StreamSession
from tests.support.rawsocket import Ended, Peer, frame, upgrade
from tests.transport.slow_node import GOES

MEMBERS, RATE, SECONDS = (int(n) for n in os.environ.get("RTKIT_SLOW", "300,1000,30").split(","))
#: Bytes of a message, about.
SIZE = 100
MIB = 2**20

pytestmark = pytest.mark.soak


class Member(asyncio.Protocol):
    """Reads whatever comes, and takes down how old the newest of it is."""

    def __init__(self, user: str, path: str, room: str) -> None:
        self._hello: tuple[str, ...] = (
            f'{{"id":1,"connect":{{"token":"{user}","rt":{{"v":1}}}}}}',
            f'{{"id":2,"subscribe":{{"channel":"{room}"}}}}',
        )
        self._path = path
        self.joined = asyncio.get_running_loop().create_future()
        self.ages: list[float] = []
        self.heard = 0
        self.last = False
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(upgrade(self._path))

    def data_received(self, data: bytes) -> None:
        if not self.joined.done():
            self._seen += data
            if b"101 " in self._seen and self._hello:
                for each in self._hello:
                    self.transport.write(frame(each))
                self._hello = ()
            if b'"id":2,' in self._seen:
                self.joined.set_result(None)
            return
        if b"{}" in data:  # a ping, with other units or alone
            self.transport.write(frame("{}"))
        self.heard += data.count(b'"fill"')
        at = data.rfind(b'"at":') + 5
        if at > 4 and (end := data.find(b",", at)) > 0:
            published = float(data[at:end])
            if published:
                self.ages.append(time.monotonic() - published)
            else:
                self.last = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.joined.done():
            self.joined.set_exception(ConnectionError("refused"))


class Hub:
    """The process, and a member that asks it for figures."""

    def __init__(self, port: int, path: str, pid: int) -> None:
        self.port, self.path = port, path
        self._status = Path(f"/proc/{pid}/status")
        self.asker: Peer

    async def ask(self, method: str, **data: Any) -> Any:
        while self.asker.speaks:
            await self.asker.next_unit()
        if self.asker.pings:
            self.asker.pings = 0
            await self.asker.say("{}")
        return (await self.asker.call("rpc", method=method, data=data))["data"]

    def memory(self) -> float:
        """MiB of resident memory."""
        [line] = [line for line in self._status.read_text().splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024


@contextlib.asynccontextmanager
async def a_hub(kind: str) -> AsyncGenerator[Hub]:
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else goes on yet
        [sys.executable, "-m", "tests.transport.slow_node", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(await asyncio.to_thread(process.stdout.readline))
        yield Hub(port, "/rt/ws" if kind == "own" else "/ws", process.pid)
    finally:
        process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, 10)
        finally:
            process.kill()
            process.stdout.close()


class Slow:
    """Reads one message a second until it is told to hurry; it comes back when it is closed, and goes on."""

    def __init__(self, hub: Hub, transport: str, room: str) -> None:
        self.hub, self.transport, self.room = hub, transport, room
        self.offsets: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.closes: list[str] = []
        self.hurry = False
        self.done = False
        self._epoch = ""
        self._at = 0
        self._assembler: Assembler
        self.joined = asyncio.Event()

    async def run(self) -> None:
        while not self.done:
            kind = Peer if self.transport == "websocket" else StreamSession
            peer = await kind.connect(self.hub.port, self.hub.path, receive_buffer=4096)
            try:
                await self._read(peer)
            except (Ended, ConnectionError) as error:
                self.closes.append(str(error)[:60])
            except AssertionError as error:
                if "closed instead" not in str(error):
                    raise
                self.closes.append(str(error))
            finally:
                peer.close()

    async def _read(self, peer: Any) -> None:
        await peer.connect_as("slow")
        self._assembler = Assembler(limit=2**26, count=2**20, idle=math.inf, age=math.inf)
        since = {"recover": True, "epoch": self._epoch, "offset": self._at} if self._epoch else {}
        id = await peer.ask("subscribe", channel=self.room, **since)
        while (unit := await self._next(peer)).get("id") != id:
            pass
        joined = unit["subscribe"]
        if not self._epoch:
            self._at = joined["offset"]
        self._epoch = joined["epoch"]
        self.joined.set()
        if "gap" in joined:
            self._gap(joined["gap"])
        for pub in joined.get("publications", ()):
            await self._take(pub)
        while not self.done:
            unit = await self._next(peer)
            if not unit:
                await peer.say("{}")
            elif "pub" in (push := unit.get("push", {})):
                await self._take(push["pub"])
            elif "gap" in push:
                self._gap(push["gap"])

    async def _next(self, peer: Any) -> Any:
        while True:
            try:
                unit = await peer.next_unit()
            except TimeoutError:
                continue  # nothing for a while
            if "chunk" not in unit.get("push", {}):
                return unit
            push = decode_reply(json.dumps(unit).encode()).push
            assert push is not None and push.chunk is not None
            if (whole := self._assembler.add(push.chunk, 0.0)) is not None:
                return json.loads(whole)

    def _gap(self, gap: Any) -> None:
        assert gap["from"] == self._at
        self.gaps.append((gap["from"], gap["to"]))
        self._at = gap["to"]

    async def _take(self, pub: Any) -> None:
        assert pub["offset"] == self._at + 1, f"{pub['offset']} after {self._at}"
        self._at = pub["offset"]
        self.offsets.append(self._at)
        self.done = pub["data"]["fill"] == "last" and pub["data"]["at"] == 0 and self.hurry
        if not self.hurry:
            await asyncio.sleep(1)


def percentile(ages: list[float], share: float) -> str:
    return f"{sorted(ages)[int(len(ages) * share)] * 1000:.0f} ms"


async def publish(hub: Hub, room: str, members: list[Member]) -> tuple[list[float], float, int]:
    """Publish to all; ages of what arrived, the most memory, and the most that was held for one."""
    for each in members:
        each.ages.clear()
        each.last = False
    memory, most = 0.0, 0
    await hub.ask("publish", room=room, rate=RATE, seconds=SECONDS, size=SIZE)
    end = time.monotonic() + 3 * SECONDS + 20
    while not all(each.last for each in members):
        assert not any(each.transport.is_closing() for each in members), "others were closed"
        assert time.monotonic() < end, "the others do not get what is published"
        await asyncio.sleep(0.5)
        memory = max(memory, hub.memory())
        most = max(most, (await hub.ask("look"))["most"])
    return [age for each in members for age in each.ages], memory, most


@pytest.mark.parametrize("room", ["kept", "trimmed"])
@pytest.mark.parametrize("transport", ["websocket", "sse"])
@pytest.mark.parametrize("kind", ["own", "uvicorn"])
@pytest.mark.timeout(900)
async def test_one_message_a_second_beside_many_who_read_all(kind: str, transport: str, room: str) -> None:
    """D1 to D3: bounded, nobody waits for it, and in the end it has everything, or knows what is gone."""
    async with a_hub(kind) as hub, contextlib.AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        members: list[Member] = []
        for n in range(MEMBERS):
            _, member = await loop.create_connection(
                functools.partial(Member, f"user{n}", hub.path, room), "127.0.0.1", hub.port
            )
            members.append(member)
            stack.callback(member.transport.abort)
            await member.joined
        hub.asker = await Peer.connect(hub.port, hub.path)
        stack.callback(hub.asker.close)
        await hub.asker.connect_as("asker")
        alone, before, _ = await publish(hub, room, members)
        slow = Slow(hub, transport, room)
        reading = asyncio.create_task(slow.run())
        try:
            await slow.joined.wait()
            beside, after, most = await publish(hub, room, members)
            read = len(slow.offsets)
            slow.hurry = True
            began = time.monotonic()
            async with asyncio.timeout(120):
                await reading
            caught_up = time.monotonic() - began
            totals = (await hub.ask("look"))["totals"]
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    total = 2 * (RATE // GOES * GOES * SECONDS + 1)
    assert all(each.heard == total for each in members), "somebody else has missed something"
    assert most <= (1024 + 256) * 1024
    assert after - before < 24 + (16 if room == "kept" else 0), "the process has grown"
    missed = sum(end - start for start, end in slow.gaps)
    assert len(slow.offsets) + missed == total // 2
    assert (not slow.gaps) == (room == "kept")
    print(  # noqa: T201
        f"\n{kind}, {transport}, {room}: {MEMBERS} members, {RATE} messages a second for {SECONDS} s\n"
        f"  others, alone: median {percentile(alone, 0.5)}, p99 {percentile(alone, 0.99)};"
        f" beside the slow one: median {percentile(beside, 0.5)}, p99 {percentile(beside, 0.99)}\n"
        f"  memory of the process: {before:.1f} MiB, then {after:.1f} MiB;"
        f" most held for one: {most / 1024:.0f} KiB\n"
        f"  the slow one read {read} meanwhile, and the rest in {caught_up:.1f} s; {len(slow.offsets)} messages,"
        f" {len(slow.gaps)} gaps ({missed} messages), closed {len(slow.closes)} times {slow.closes[:3]}\n"
        f"  lagging {totals.get('lagging')}, recoveries {totals.get('recoveries')},"
        f" closes { {k: v for k, v in totals.items() if k.startswith('closes')} }"
    )
    assert statistics.median(beside) < 5 * statistics.median(alone) + 0.05, "others were delayed"
