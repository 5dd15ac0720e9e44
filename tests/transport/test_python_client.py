"""The Python client over each host: it talks, is cut off, comes back, and has missed nothing (K2, H2, H7)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from rtkit import Gap, Message
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.client import Policy, RoomClient, connect
from rtkit.errors import CallError, ConnectionClosed
from tests.support.hosts import ADAPTERS, Host, client_context
from tests.transport.cable import Cable, pieces
from tests.transport.conftest import PATIENCE, Site, until

_SOON = Policy(min_delay=0.001, max_delay=0.005, stable=60)


@pytest.fixture(params=ADAPTERS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each adapter in turn."""
    found: Host = request.param
    return found


async def hear(room: RoomClient[Any], count: int) -> list[Any]:
    """The data of the next so many messages; a gap fails."""
    heard: list[Any] = []
    async with asyncio.timeout(PATIENCE * 2):
        async for message in room:
            assert not isinstance(message, Gap), message
            assert isinstance(message, Message)
            heard.append(message.data)
            if len(heard) == count:
                break
    return heard


async def test_a_conversation(site: Site) -> None:
    served = await site.open()
    async with (
        connect(served.url, token="ann") as ann,
        connect(served.url, token="bob") as bob,
        ann.join("log:a") as anns,
        bob.join("log:a") as bobs,
    ):
        await anns.send("hällo")
        await bobs.send({"n": [1, 2, 3]})
        await site.hub.publish("log:a", "from the server")
        expected = ["hällo", {"n": [1, 2, 3]}, "from the server"]
        assert await hear(anns, 3) == await hear(bobs, 3) == expected
        page = await bobs.history(limit=2)
        assert [message.data for message in page.messages] == expected[:2]
        assert await ann.call("x" * 100_000, name="echo") == "x" * 100_000
        with pytest.raises(CallError) as failed:
            await ann.call(None, name="fail")
        assert failed.value.code == 400
    await until(lambda: site.open_connections == 0)


async def test_over_tls(site: Site) -> None:
    """The same, encrypted; a client that does not know the certificate stays away."""
    if not site.host.can.tls:
        pytest.skip(f"{site.host.name} has no TLS")
    served = await site.open(secure=True)
    assert served.url.startswith("https://")
    context = client_context()
    async with (
        connect(served.url, token="ann", ssl=context) as ann,
        connect(served.url, token="bob", ssl=context) as bob,
        ann.join("log:a") as anns,
        bob.join("log:a") as bobs,
    ):
        for n in range(20):
            await (anns if n % 2 else bobs).send([n, "x" * n * 1000])
        assert [n for n, _ in await hear(anns, 20)] == list(range(20))
        assert [n for n, _ in await hear(bobs, 20)] == list(range(20))
        await site.hub.user("bob").close(code=3503, reason="enough")
        await until(lambda: bob.state == "closed")
        assert (bob.close_code, bob.close_reason) == (3503, "enough")
    with pytest.raises(ConnectionClosed) as refused:
        async with connect(served.url, token="eve", policy=_SOON):
            pass
    assert refused.value.code == 1015
    await until(lambda: not served.transports())


@pytest.mark.parametrize("seed", range(3))
async def test_cut_off_again_and_again(site: Site, seed: int) -> None:
    """Resets in the middle of frames, both ways: every message once, in order; everything sent, once."""
    chance = random.Random(seed)
    served = await site.open()
    async with (
        Cable(served.port, piece=pieces(seed, 2000)) as cable,
        connect(
            f"http://127.0.0.1:{cable.port}{served.prefix}",
            token="bob",
            policy=_SOON,
            transports=["websocket"],  # which is cut so often and so soon that another would be taken (T7)
        ) as bob,
        bob.join("log:a") as bobs,
        bob.join("log:b") as sent,
    ):
        witness = await site.client("witness", "log:b")
        hearing = asyncio.create_task(hear(bobs, 150))
        sending: list[asyncio.Task[Any]] = []
        for n in range(150):
            await site.hub.publish("log:a", [n, "x" * chance.randrange(2000)])
            if n % 3 == 0:
                sending.append(asyncio.create_task(sent.send(n)))
            if n % 15 == 7:
                cable.cut_after(chance.randrange(3000))
            if n % 50 == 20:
                cable.pull()
                await until(lambda: bob.state != "connected")
            if n % 50 == 35:
                cable.plug()
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
        cable.plug()
        assert [n for n, _ in await hearing] == list(range(150))
        await asyncio.gather(*sending)
        assert await witness.data("log:b", 50) == list(range(0, 150, 3))
        page = await site.hub.room("log:b").history(limit=1000)
        assert len(page.messages) == 50
        assert bob.statistics().connects >= 2
        assert cable.cuts >= 5
    await until(lambda: site.open_connections == 1)


@pytest.mark.parametrize("most", [1, 7, 200])
async def test_a_network_that_delivers_in_small_pieces(site: Site, most: int) -> None:
    served = await site.open()
    async with (
        Cable(served.port, piece=pieces(most, most)) as cable,
        connect(f"http://127.0.0.1:{cable.port}{served.prefix}", token="bob", policy=_SOON) as bob,
        bob.join("log:a") as bobs,
    ):
        for n in range(10):
            await bobs.send([n, "é" * 100])
        assert [n for n, _ in await hear(bobs, 10)] == list(range(10))
        assert bob.statistics().connects == 1


async def test_moved_to_another_server(site: Site) -> None:
    """A rolling restart: the old hub sends its clients away, the new one has them, and nothing was missed."""
    backend = MemoryBackend(clock=site.clock)
    first = site.hub
    first.broker = MemoryBroker(backend)
    old = await site.open()
    second = site.build_beside(broker=MemoryBroker(backend))
    async with (
        site.host.serve(second, False) as new,
        Cable(old.port) as cable,
        connect(f"http://127.0.0.1:{cable.port}{old.prefix}", token="bob", policy=_SOON) as bob,
        bob.join("log:a") as room,
    ):
        await first.publish("log:a", 0)
        assert await hear(room, 1) == [0]
        cable.target = new.port
        closing = asyncio.create_task(first.aclose())
        for n in range(1, 20):
            await second.publish("log:a", n)
            await asyncio.sleep(0)
        await closing
        assert await hear(room, 19) == list(range(1, 20))
        sent = asyncio.create_task(room.send("to the new one"))
        assert await hear(room, 1) == ["to the new one"]
        await sent
        assert second.statistics().sessions == 1
        assert bob.statistics().connects == 2
    await until(lambda: second.statistics().connections == 0)
