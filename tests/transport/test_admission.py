"""Who is turned away on real sockets, by every host: what is said, and that the Python client minds it (F1, F2)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtkit.client import connect
from rtkit.primitives import Rate
from tests.support.hosts import ADAPTERS, HTTP_HOSTS, Host
from tests.support.rawstream import request
from tests.transport.conftest import Site, until

ONE = Rate(rate=1, burst=1)
HELLO = '{"id":1,"connect":{"token":"eve","rt":{"v":1}}}'


@pytest.fixture(params=ADAPTERS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each adapter in turn."""
    found: Host = request.param
    return found


async def told(peer: Any) -> dict[str, Any]:
    """What a client that was turned away hears before it is closed."""
    unit = json.loads(await peer.message())
    found: dict[str, Any] = unit["push"]["disconnect"]
    closed = await peer.closed()
    assert (closed.code, closed.reason) == (found["code"], found["reason"]) == (4001, "try again later")
    return found


async def test_a_websocket_is_opened_told_and_closed(site: Site) -> None:
    """Whether it speaks at once, or not at all."""
    site.build(accepts=ONE)
    await site.open()
    await site.client("ann")
    eve = await site.peer()
    await eve.say(HELLO)
    assert (await told(eve))["rt"] == {"min": 1.0, "max": 1.5}
    assert (await told(await site.peer()))["rt"] == {"min": 2.0, "max": 2.5}
    assert dict(site.hub.statistics().counted.refusals) == {"rate": 2}
    assert site.open_connections == 1
    await site.clock.advance(2.0)
    await site.client("eve")
    assert site.open_connections == 2


async def test_a_request_that_opens_is_503_and_an_eventsource_hears_when(site: Site) -> None:
    if site.host not in HTTP_HOSTS:
        pytest.skip(f"{site.host.name} has no HTTP")
    site.build(accepts=ONE)
    served = await site.open()
    await site.client("ann")
    for kind in ("sse", "poll", "http_stream"):
        sock = await site.socket()
        await sock.send(request("POST", served.path(kind), body=HELLO.encode()))
        answer = await sock.response()
        assert (answer.status, int(answer.headers["retry-after"]) > 0) == (503, True)
    answer = await site.request(served.path("events?room=now:a&token=eve"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    retry = int(answer.text.removeprefix("retry: ").partition("\n")[0])
    assert 4000 <= retry <= 4500, "the fourth"
    assert site.open_connections == 1


@pytest.mark.parametrize("kind", ["websocket", "sse", "poll"])
async def test_our_client_comes_when_it_was_told_and_over_the_same_transport(site: Site, kind: str) -> None:
    """T7: being told to wait is no failure of a transport."""
    if kind != "websocket" and site.host not in HTTP_HOSTS:
        pytest.skip(f"{site.host.name} has no HTTP")
    site.build(accepts=ONE)
    served = await site.open()
    await site.client("ann")
    order = {"websocket": None, "sse": ["sse", "websocket", "poll"], "poll": ["poll", "sse"]}[kind]
    client = connect(served.url, token="eve", transports=order, wait=False, clock=site.clock)  # type: ignore[arg-type]
    async with client:
        await until(lambda: client.state == "waiting")
        assert dict(site.hub.statistics().counted.refusals) == {"rate": 1}
        await site.clock.advance(0.95)
        assert client.state == "waiting"
        # A window has half a second; as a header it is whole seconds, from which the client spreads.
        await site.clock.advance(0.6 if kind == "websocket" else 3.0)
        await until(lambda: client.state == "connected")
        assert client.transport == kind
        assert client.statistics().connects == 1
    assert dict(site.hub.statistics().counted.refusals) == {"rate": 1}


async def test_a_user_with_too_many_is_told_by_every_transport(site: Site) -> None:
    site.build(user_connections=1)
    await site.open()
    await site.client("ann")
    kinds = ["websocket", "sse", "poll"] if site.host in HTTP_HOSTS else ["websocket"]
    for kind in kinds:
        peer = await site.peer() if kind == "websocket" else site.nobody(kind)
        await peer.ask("connect", token="ann", rt={"v": 1})
        error = (await peer.next_unit())["error"]
        assert (error["code"], error["retry_after"]) == (111, 10.0)
        assert (await peer.closed()).code == 4001
    assert dict(site.hub.statistics().counted.refusals) == {"user": len(kinds)}


async def test_behind_a_proxy_an_address_has_so_many(site: Site) -> None:
    site.build(address_connections=1)
    hub: Any = site.hub
    hub.proxies = type(hub.proxies)(["127.0.0.0/8"])
    served = await site.open()
    headers = {"X-Forwarded-For": "203.0.113.9, 8.8.8.8"}
    await site.client("ann", headers=headers)
    assert (await told(await site.peer(headers=headers)))["rt"] == {"min": 5.0, "max": 20.0}
    await site.client("bob", headers={"X-Forwarded-For": "8.8.4.4"})
    if site.host in HTTP_HOSTS:
        sock = await site.socket()
        await sock.send(request("POST", served.path("poll"), body=HELLO.encode(), headers=headers))
        assert (await sock.response()).status == 429
    assert hub.statistics().addresses == 2
