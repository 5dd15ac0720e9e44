"""The Python client over every transport, and through the proxies of the world (T7, C3, H2), on real sockets.

How long it takes until a connection works is what is measured here, by the real clock; ``pytest -s`` prints it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Message
from rtkit.client import Policy, RoomClient, State, TransportName, connect
from rtkit.primitives import Rate
from tests.support.cable import Cable
from tests.support.hosts import HOSTS, Host, client_context
from tests.support.proxies import (
    Fault,
    Proxy,
    accept_and_stay_mute,
    buffer,
    cut_after,
    have_no_time,
    pass_on,
    refuse_upgrades,
    strip_upgrades,
)

#: Seconds within which a connection has to work (T7).
TARGET = 5.0
SOON = Policy(min_delay=0.01, max_delay=0.1)


def make_hub() -> Hub[None]:
    async def authenticate(credentials: Credentials) -> Identity[None]:
        await asyncio.sleep(0)
        return Identity(credentials.token or "nobody")

    hub: Hub[None] = Hub(authenticate=authenticate, limits=Limits(commands=Rate(rate=10_000, burst=10_000)))
    hub.rooms("log:{x}", publishes=object, grant=Grant("publish", "history"), history=History(2000, ttl=600))

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[None, Any], data: Any) -> Any:
        return data

    return hub


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """Of a hub mounted where the host mounts it."""
    host: Host = request.param
    async with host.serve(make_hub(), False) as served:
        request.node.prefix = served.prefix
        yield served.port


#: For what is about the client and what lies in between: the host makes no difference.
on_our_own = pytest.mark.parametrize(
    "port", [host for host in HOSTS if host.can.ours], ids=lambda host: host.name, indirect=True
)


@pytest.fixture
def prefix(request: pytest.FixtureRequest, port: int) -> str:
    return str(request.node.prefix)


def say(what: str) -> None:
    print(f"\n{what}")  # noqa: T201 - a measurement, for `pytest -s`


async def hear(room: RoomClient[Any], count: int) -> list[Any]:
    """The data of the next so many messages; a gap fails."""
    heard: list[Any] = []
    async with asyncio.timeout(30):
        async for message in room:
            assert isinstance(message, Message), message
            heard.append(message.data)
            if len(heard) == count:
                break
    return heard


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_a_conversation(port: int, prefix: str, transport: Any) -> None:
    url = f"http://127.0.0.1:{port}{prefix}"
    async with (
        connect(url, token="ann", transports=[transport], policy=SOON) as ann,
        connect(url, token="bob", transports=[transport], policy=SOON) as bob,
        ann.join("log:a") as anns,
        bob.join("log:a") as bobs,
    ):
        assert ann.transport == bob.transport == transport
        for n in range(30):
            await (anns if n % 2 else bobs).send([n, "hällo\n" * n])
        assert [n for n, _ in await hear(anns, 30)] == list(range(30))
        assert [n for n, _ in await hear(bobs, 30)] == list(range(30))
        assert await ann.call("x" * 100_000, name="echo") == "x" * 100_000
        together = await asyncio.gather(*(ann.call(n, name="echo") for n in range(200)))
        assert together == list(range(200))
        assert ann.statistics().connects == 1
    assert ann.close_code == 1000


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_nothing_is_lost_or_doubled_when_the_cable_is_pulled(
    port: int, prefix: str, transport: Any
) -> None:
    count = 60
    async with Cable(port) as cable:
        url = f"http://127.0.0.1:{cable.port}{prefix}"
        async with (
            connect(url, token="ann", transports=[transport], policy=SOON) as ann,
            connect(url, token="bob", transports=[transport], policy=SOON) as bob,
            ann.join("log:a") as anns,
            bob.join("log:a") as bobs,
        ):
            ids = ann.client_id, bob.client_id
            hearing = asyncio.create_task(hear(bobs, count))

            async def talk() -> None:
                for n in range(count):
                    await anns.send(n)

            talking = asyncio.create_task(talk())
            for _ in range(5):
                await asyncio.sleep(0.05)
                cable.pull()
                await asyncio.sleep(0.02)
                cable.plug()
                async with asyncio.timeout(10):
                    await ann.wait_state(State.CONNECTED)
                    await bob.wait_state(State.CONNECTED)
            await talking
            assert await hearing == list(range(count))
            assert await hear(anns, count) == list(range(count))
            if transport != "poll":  # a poll that is cut is asked again, and the session goes on
                assert ann.resumed
                assert bob.resumed
            assert (ann.client_id, bob.client_id) == ids


PROXIES: list[tuple[str, Fault, str]] = [
    ("none", pass_on, "websocket"),
    ("refuses upgrades with 502", refuse_upgrades(b"502 Bad Gateway"), "sse"),
    ("refuses upgrades with 405", refuse_upgrades(b"405 Method Not Allowed"), "sse"),
    ("refuses upgrades by closing", refuse_upgrades(b""), "sse"),
    ("strips upgrades", strip_upgrades, "sse"),
    ("accepts and stays mute", accept_and_stay_mute(handshake=True), "sse"),
    ("swallows the upgrade", accept_and_stay_mute(handshake=False), "sse"),
    ("buffers responses", buffer, "poll"),
    ("cuts after 5 s", cut_after(5), "websocket"),
]


@on_our_own
@pytest.mark.parametrize(("name", "fault", "transport"), PROXIES, ids=[name for name, _, _ in PROXIES])
async def test_a_connection_works_within_5_s_behind_a_proxy_that(
    port: int, prefix: str, name: str, fault: Fault, transport: str
) -> None:
    async with Proxy(port, fault) as proxy:
        began = time.monotonic()
        async with (
            connect(f"http://127.0.0.1:{proxy.port}{prefix}", token="ann") as client,
            client.join("log:a") as room,
        ):
            await room.send("hello")
            assert await hear(room, 1) == ["hello"]
            took = time.monotonic() - began
            say(f"{name}: {took:.2f} s by {client.transport}")
            assert client.transport == transport
            assert took < TARGET
            assert client.statistics().connects == 1


@on_our_own
async def test_a_connection_works_within_5_s_when_everybody_gets_503_for_a_while(
    port: int, prefix: str
) -> None:
    async with Proxy(port, have_no_time) as proxy:
        asyncio.get_running_loop().call_later(1.5, setattr, proxy, "fault", pass_on)
        began = time.monotonic()
        async with connect(f"http://127.0.0.1:{proxy.port}{prefix}", token="ann") as client:
            took = time.monotonic() - began
            say(f"503 for 1.5 s: {took:.2f} s by {client.transport}")
            assert took < TARGET
            assert client.transport == "websocket", "who is told to wait does not go for another kind of pipe"


@on_our_own
async def test_a_proxy_that_cuts_everything_makes_it_a_poll_and_nothing_is_lost(
    port: int, prefix: str
) -> None:
    async with Proxy(port, cut_after(0.3)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{prefix}"
        async with (
            connect(f"http://127.0.0.1:{port}{prefix}", token="bob") as bob,
            connect(url, token="ann", policy=SOON) as ann,
            bob.join("log:a") as bobs,
            ann.join("log:a") as anns,
        ):
            hearing = asyncio.create_task(hear(anns, 40))
            ids = {ann.client_id}
            for n in range(40):
                await bobs.send(n)
                await asyncio.sleep(0.1)
                ids.add(ann.client_id)
            assert await hearing == list(range(40))
            say(f"cut after 0.3 s: {ann.transport} after {ann.statistics().connects} connections")
            assert ann.transport == "poll"
            assert len(ids) == 1, "it is one session all the time"


@on_our_own
async def test_a_session_goes_on_over_another_transport(port: int, prefix: str) -> None:
    async with (
        Proxy(port, pass_on) as proxy,
        connect(f"http://127.0.0.1:{port}{prefix}", token="bob") as bob,
        connect(f"http://127.0.0.1:{proxy.port}{prefix}", token="ann", policy=SOON) as ann,
        bob.join("log:a") as bobs,
        ann.join("log:a") as anns,
    ):
        was = ann.client_id
        for n, (fault, transport) in enumerate(
            [(pass_on, "websocket"), (refuse_upgrades(b"502 Bad Gateway"), "sse"), (buffer, "poll")]
        ):
            before = ann.statistics().connects
            proxy.fault = fault
            proxy.cut()
            await bobs.send(f"{n} while away")
            async with asyncio.timeout(10):
                while ann.statistics().connects == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (ann.transport, ann.client_id, ann.resumed) == (transport, was, True)
            await anns.send(f"{n} back")
        expected = [f"{n} {where}" for n in range(3) for where in ("while away", "back")]
        assert await hear(anns, 6) == expected
        assert await hear(bobs, 6) == expected


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
async def test_over_tls(host: Host) -> None:
    async with host.serve(make_hub(), True) as served:
        for transport in get_args(TransportName):
            context = client_context()
            async with (
                connect(served.url, token="ann", transports=[transport], ssl=context) as ann,
                ann.join("log:a") as room,
            ):
                assert ann.transport == transport
                await room.send(transport)
                assert await hear(room, 1) == [transport]


@on_our_own
async def test_one_that_works_again_is_not_taken_before_the_next_reconnection(port: int, prefix: str) -> None:
    async with (
        Proxy(port, refuse_upgrades(b"502 Bad Gateway")) as proxy,
        connect(f"http://127.0.0.1:{proxy.port}{prefix}", token="ann") as client,
    ):
        assert client.transport == "sse"
        proxy.fault = pass_on
        assert await client.call(1, name="echo") == 1
        assert client.transport == "sse"
        assert not any(b"/ws " in line for line in proxy.seen[1:])


@on_our_own
async def test_who_only_receives_has_an_event_stream_at_once(port: int, prefix: str) -> None:
    async with connect(f"http://127.0.0.1:{port}{prefix}", token="ann", receive_only=True) as client:
        assert client.transport == "sse"
