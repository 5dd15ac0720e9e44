"""Three servers, and a node at each: what is acknowledged outlives the server that acknowledged it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
import pytest
from nats_server import LARGE, NatsServer, free_port
from rtkit_nats import NatsBroker, Settings

from rtkit.errors import BrokerUnavailable, PublishUnknown
from rtkit.messages import History
from rtkit.testing.conformance import Node, RecordingSink

PLENTY = History(1000, ttl=86400.0)

pytestmark = pytest.mark.anyio


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NatsServer]]:
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    servers = [
        NatsServer(
            tmp_path_factory.mktemp("nats"),
            f"{LARGE}\nserver_name: n{number}\n"
            f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}',
        )
        for number, port in enumerate(ports)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


async def again(call: Callable[[], Any]) -> Any:
    """Until the cluster has a leader."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await call()
            except (BrokerUnavailable, PublishUnknown):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def nodes(servers: list[NatsServer]) -> AsyncGenerator[list[Node]]:
    """One at each server; when it is gone they are not told of another."""
    async with AsyncExitStack() as stack:
        found = []
        for server in servers:
            broker, sink = (
                NatsBroker(server.url, settings=Settings(replicas=3, patience=5.0)),
                RecordingSink(),
            )
            await again(lambda broker=broker, sink=sink: broker.open(sink))
            stack.push_async_callback(broker.aclose)
            found.append(Node(broker, sink, 20.0))
        yield found


async def leader(servers: list[NatsServer]) -> int:
    """Which server leads the stream."""
    client = await nats.connect(servers[0].url)
    try:
        info = await client.jetstream().stream_info("rt")
        assert info.cluster is not None and info.cluster.leader is not None
        return int(info.cluster.leader.removeprefix("n"))
    finally:
        await client.close()


async def test_a_stream_goes_on_when_its_leader_dies(servers: list[NatsServer]) -> None:
    async with nodes(servers) as there:
        for node in there:
            await again(lambda node=node: node.broker.subscribe(["t"]))
        first = await again(
            lambda: there[0].broker.append("t", b"first", history=PLENTY, durability="replicated")
        )
        done = await asyncio.gather(
            *(there[n % 3].broker.append("t", b"%d" % n, history=PLENTY, key=f"{n}") for n in range(30))
        )
        assert sorted(one.position.offset for one in done) == list(range(2, 32))
        assert {one.position.epoch for one in done} == {first.position.epoch}

        dead = await leader(servers)
        servers[dead].stop()
        left = [node for number, node in enumerate(there) if number != dead]
        more = [
            await again(lambda n=n: left[n % 2].broker.append("t", b"%d" % n, history=PLENTY, key=f"{n}"))
            for n in range(20, 40)
        ]
        assert [one.duplicate for one in more] == [True] * 10 + [False] * 10
        assert more[-1].position.epoch == first.position.epoch
        page = await again(lambda: left[0].broker.read("t", since=first.position))
        assert [entry.offset for entry in page.entries] == list(range(2, 42))
        assert page.lost is None
        for n in range(4):
            await again(
                lambda n=n: left[n % 2].broker.revise(
                    "k:x", {f"{n}": b""}, ttl=60.0, expected={}, topic="t:x", payload=b""
                )
            )
        assert set(await left[0].broker.entries("k:x")) == {"0", "1", "2", "3"}
        # Who was told that something may have been missed reads, and has it; whoever hears, hears it in order.
        for node in left:
            offsets = [found.position.offset for found in node.sink.of("t") if found.position]
            assert offsets == sorted(set(offsets))
