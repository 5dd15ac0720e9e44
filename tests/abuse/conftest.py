"""Victims for the attacks, and a neighbour who looks on."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, table
from tests.support.rawsocket import Peer, RawSocket, upgrade

MIB = 2**20
#: Seconds that a neighbour waits for an answer at the most. A tenth of one is meant; but machines have other work.
PATIENCE = 5.0
#: Bytes that each abuse may have a hub take, by its test: the page says how many (docs/explanation/security.md).
BOUNDS = {
    row["shown by"].strip("`").partition("::")[2]: int(row["memory"].removesuffix(" MiB")) * MIB
    for row in table("docs/explanation/security.md", "what is done", "at once", "memory", "shown by")
}


@dataclass
class Seen:
    """What a neighbour saw.

    :ivar answers: it got.
    :ivar worst: seconds that one took.
    :ivar grown: bytes of resident memory that the victim took more than before, at its height.
    :ivar counted: by how much the hub's totals have grown; what an operator sees of it (M1).
    """

    answers: int = 0
    worst: float = 0.0
    grown: int = 0
    counted: Counter[str] = field(default_factory=Counter)


class Victim:
    """A hub in a process of its own."""

    def __init__(self, kind: str, port: int, pid: int) -> None:
        self.kind = kind
        self.port = port
        self._proc = Path(f"/proc/{pid}")
        self._sockets: list[RawSocket] = []

    @property
    def ours(self) -> bool:
        return self.kind != "uvicorn"

    def memory(self, of: str = "VmRSS") -> int:
        """Bytes of resident memory now, or with ``VmHWM`` at their height; 0 where the system does not tell."""
        status = self._proc / "status"
        if not status.exists():
            return 0
        [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{of}:")]
        return int(line.split()[1]) * 1024

    def forget_height(self) -> None:
        """Have the height of memory begin anew from what it is now."""
        if self._proc.exists():
            (self._proc / "clear_refs").write_text("5")

    @property
    def path(self) -> str:
        return "/rt/ws" if self.ours else "/ws"

    async def socket(self, **options: Any) -> RawSocket:
        """A connection on which nothing was said yet."""
        sock = await RawSocket.open(self.port, **options)
        self._sockets.append(sock)
        return sock

    async def peer(self, user: str | None = None, *, deflate: bool = False, **options: Any) -> Peer:
        """A client that has shaken hands; with *user* it is connected.

        :param deflate: it offers compression, which has to be taken.
        """
        peer = await Peer.open(self.port, **options)
        self._sockets.append(peer)
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"} if deflate else {}
        await peer.send(upgrade(self.path, headers=offer))
        response = await peer.response()
        assert response.status == 101, response
        assert ("sec-websocket-extensions" in response.headers) == deflate
        if user is not None:
            await peer.connect_as(user)
        return peer

    def drop_sockets(self) -> None:
        """Close what the attackers have open."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    @contextlib.asynccontextmanager
    async def watched(self, bound: int) -> AsyncGenerator[Seen]:
        """A block during which somebody else is answered all the time, and memory grows by no more than *bound* bytes.

        Each answer has :data:`PATIENCE`. After the block one more is asked for.
        """
        neighbour = await self.peer("neighbour")
        await neighbour.call("rpc", method="tidy", data=None)
        totals = (await neighbour.call("rpc", method="totals", data=None))["data"]
        self.forget_height()
        seen, before = Seen(), self.memory()

        async def look(n: int) -> None:
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                assert await neighbour.echo(n) == n
                while neighbour.pings:
                    neighbour.pings -= 1
                    await neighbour.say("{}")
            seen.answers += 1
            seen.worst = max(seen.worst, time.monotonic() - began)

        async def look_on() -> None:
            n = 0
            while True:
                await look(n)
                n += 1
                await asyncio.sleep(0.05)

        looking = asyncio.create_task(look_on())
        try:
            yield seen
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            # Its last question may be unanswered.
            neighbour = await self.peer("neighbour")
            await look(-1)
            seen.counted.update((await neighbour.call("rpc", method="totals", data=None))["data"])
            seen.counted.subtract(totals)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self.drop_sockets()
        seen.grown = self.memory("VmHWM") - before
        assert seen.grown < bound, f"{seen.grown / MIB:.1f} MiB more"


@pytest.fixture
def bound(request: pytest.FixtureRequest) -> int:
    """Bytes that a hub may take more than before in this test, as the page has it."""
    return BOUNDS[request.function.__name__]


@contextlib.contextmanager
def running(kind: str) -> Generator[Victim]:
    """A victim in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.abuse.victim", kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said, f"the victim ended with {process.wait()}"
        yield Victim(kind, int(said), process.pid)
    finally:
        # Its input ends, and so does it.
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def own() -> Iterator[Victim]:
    """Our own server, which compresses for who offers it."""
    with running("own") as victim:
        yield victim


@pytest.fixture(scope="module")
def hasty() -> Iterator[Victim]:
    """Our own server, of a hub whose heartbeat is patient for less than a second."""
    with running("hasty") as victim:
        yield victim


@pytest.fixture(scope="module")
def uvicorn() -> Iterator[Victim]:
    """uvicorn."""
    with running("uvicorn") as victim:
        yield victim


#: uvicorn in the soak: much of what is tried on it is its own to answer.
@pytest.fixture(params=["own", pytest.param("uvicorn", marks=pytest.mark.soak)])
def victim(request: pytest.FixtureRequest) -> Victim:
    """Each in turn."""
    found: Victim = request.getfixturevalue(request.param)
    return found
