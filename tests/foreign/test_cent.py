"""PyPI `cent`, Centrifugo's own client of its HTTP API, unmodified, against a hub under uvicorn and on our server.

Its synchronous client (requests) and its asynchronous one (aiohttp) are told the same; what they do is seen by
`centrifuge-python`, which is Centrifugo's own client of the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import cent
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from rtkit import Credentials, Grant, History, Hub, Identity, Presence
from rtkit.ext.http_api import HttpApi
from rtkit.server import listen
from tests.foreign.clients import Client, PythonKind
from tests.support.servers import serve_asgi

KEY = "correct-horse-battery-staple"


@dataclass
class Said:
    text: str


async def by_token(credentials: Credentials) -> Identity[None]:
    return Identity(credentials.token or "nobody")


def declared() -> Hub[Any]:
    hub = Hub(authenticate=by_token)
    grant = Grant("publish", "history")
    hub.rooms("kept:{x}", publishes=object, grant=grant, history=History(100, ttl=600))
    hub.rooms("live:{x}", publishes=object, grant=grant)
    hub.rooms("here:{x}", publishes=object, grant=grant, presence=Presence(meta=lambda who: {"of": who.user}))
    hub.rooms("chat:{x}", publishes=Said, grant=grant, history=History(100, ttl=600))
    return hub


Method = Callable[[Any], Awaitable[Any]]


class World:
    """A served hub, `cent` before its API, and clients of the hub.

    :ivar url: of the API.
    """

    def __init__(self, hub: Hub[Any], port: int) -> None:
        self.hub = hub
        self.url = f"http://127.0.0.1:{port}/api"
        self._socket = f"ws://127.0.0.1:{port}/rt/connection/websocket"
        self._clients: list[Client] = []

    async def client(self, user: str, *channels: str) -> Client:
        """Somebody who is connected and in these rooms."""
        client = PythonKind().client(user)
        await client.do("open", url=self._socket, options={"token": user})
        self._clients.append(client)
        await client.connected()
        for channel in channels:
            await client.subscribed(channel)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.do("close")


@pytest.fixture(params=["uvicorn", "own"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    hub = declared()
    api = HttpApi(hub, key=KEY, max_body=200_000)
    async with AsyncExitStack() as stack:
        if request.param == "own":
            port = (await stack.enter_async_context(listen(hub, api=api))).port
        else:
            app = Starlette(routes=[Mount("/rt", hub), Mount("/api", api)], lifespan=hub.lifespan)
            port = await stack.enter_async_context(serve_asgi(app, lifespan="on"))
        world = World(hub, port)
        yield world
        await world.close()


Call = Callable[[cent.CentRequest[Any]], Awaitable[Any]]


def calling(client: Any) -> Call:
    """A client's methods are named as the requests are."""

    async def call(request: cent.CentRequest[Any]) -> Any:
        method = getattr(client, request.api_method)
        if isinstance(client, cent.AsyncClient):
            return await method(request)
        return await asyncio.to_thread(method, request)

    return call


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Call]:
    if request.param == "sync":
        with cent.Client(world.url, KEY) as client:
            yield calling(client)
    else:
        async with cent.AsyncClient(world.url, KEY) as client:
            yield calling(client)


async def test_a_subscriber_gets_what_is_published(world: World, call: Call) -> None:
    ann = await world.client("ann", "kept:a", "live:a", "chat:a")
    first = await call(cent.PublishRequest(channel="kept:a", data={"text": "hi", "n": [1, None]}))
    assert first.offset == 1 and first.epoch
    await ann.got("kept:a", {"text": "hi", "n": [1, None]})
    assert ann.offsets("kept:a") == [1]
    live = await call(cent.PublishRequest(channel="live:a", data="now"))
    assert (live.offset, live.epoch) == (0, "")
    await ann.got("live:a", "now")
    said = {"event": "Said", "data": {"text": "hi"}}
    await call(cent.PublishRequest(channel="chat:a", data=said))
    await ann.got("chat:a", said)


async def test_a_key_publishes_once(world: World, call: Call) -> None:
    ann = await world.client("ann", "kept:a")
    request = cent.PublishRequest(channel="kept:a", data=1, idempotency_key="k")
    assert await call(request) == await call(request)
    await call(cent.PublishRequest(channel="kept:a", data=2))
    await ann.got("kept:a", 1, 2)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (cent.PublishRequest(channel="nowhere", data=1), 102),
        (cent.PublishRequest(channel="chat:a", data={"text": "hi"}), 107),
        (cent.PublishRequest(channel="kept:a", data=None), 107),  # which cent leaves out
        (cent.PublishRequest(channel="kept:a", data=1, tags={"a": "b"}), 108),
        (cent.PublishRequest(channel="kept:a", data=1, skip_history=True), 108),
        (cent.PresenceRequest(channel="live:a"), 108),
        (cent.PresenceStatsRequest(channel="live:a"), 108),
        (cent.HistoryRequest(channel="live:a", limit=1), 108),
        (cent.SubscribeRequest(user="ann", channel="kept:a"), 108),
        (cent.DisconnectRequest(user="ann", session="s1"), 108),
    ],
)
async def test_an_error_is_one_to_cent(call: Call, request_: Any, code: int) -> None:
    with pytest.raises(cent.CentApiResponseError) as caught:
        await call(request_)
    assert caught.value.code == code and caught.value.message


async def test_who_is_here(world: World, call: Call) -> None:
    for user in ("ann", "ann", "bob"):
        await world.client(user, "here:a")
    found = (await call(cent.PresenceRequest(channel="here:a"))).presence
    assert sorted(info.user for info in found.values()) == ["ann", "ann", "bob"]
    assert all(
        info.client == client and info.chan_info == {"of": info.user} for client, info in found.items()
    )
    stats = await call(cent.PresenceStatsRequest(channel="here:a"))
    assert (stats.num_clients, stats.num_users) == (3, 2)
    assert (await call(cent.PresenceRequest(channel="here:empty"))).presence == {}


async def test_a_broadcast_reaches_all_channels(world: World, call: Call) -> None:
    ann, bob = await world.client("ann", "kept:a"), await world.client("bob", "live:b")
    result = await call(cent.BroadcastRequest(channels=["kept:a", "nowhere", "live:b"], data={"n": 1}))
    first, unknown, last = result.responses
    assert first.result is not None and first.result.offset == 1
    assert unknown.error is not None and unknown.error.code == 102
    assert last.result is not None and last.error is None
    await ann.got("kept:a", {"n": 1})
    await bob.got("live:b", {"n": 1})


async def test_history_is_read_and_removed(world: World, call: Call) -> None:
    for n in range(5):
        await world.hub.publish("kept:a", {"n": n})
    top = await call(cent.HistoryRequest(channel="kept:a"))
    assert (top.offset, top.publications) == (5, [])
    page = await call(cent.HistoryRequest(channel="kept:a", limit=2, reverse=True))
    assert [(each.offset, each.data) for each in page.publications] == [(5, {"n": 4}), (4, {"n": 3})]
    since = cent.StreamPosition(offset=3, epoch=top.epoch)
    page = await call(cent.HistoryRequest(channel="kept:a", limit=10, since=since))
    assert [each.offset for each in page.publications] == [4, 5]
    await call(cent.HistoryRemoveRequest(channel="kept:a"))
    after = await call(cent.HistoryRequest(channel="kept:a", limit=10))
    assert after.publications == [] and after.epoch != top.epoch
    with pytest.raises(cent.CentApiResponseError) as caught:
        await call(cent.HistoryRequest(channel="kept:a", limit=10, since=since))
    assert caught.value.code == 112


async def test_a_user_is_disconnected_with_the_code(world: World, call: Call) -> None:
    ann, bob = await world.client("ann", "live:a"), await world.client("bob", "live:a")
    goodbye = cent.Disconnect(code=4511, reason="moved out")
    await call(cent.DisconnectRequest(user="ann", disconnect=goodbye))
    await ann.until("disconnected", code=4511, reason="moved out")
    await call(cent.PublishRequest(channel="live:a", data=1))
    await bob.got("live:a", 1)
    await call(cent.DisconnectRequest(user="bob"))
    await bob.until("disconnected", code=3503)


async def test_one_client_of_a_user_is_disconnected(world: World, call: Call) -> None:
    first = await world.client("ann", "live:a")
    kept = {session.id for session in world.hub.engine.users["ann"]}
    second = await world.client("ann", "live:a")
    (client,) = {session.id for session in world.hub.engine.users["ann"]} - kept
    await call(cent.DisconnectRequest(user="ann", client=client))
    await second.until("disconnected", code=3503)
    await call(cent.PublishRequest(channel="live:a", data=1))
    await first.got("live:a", 1)


async def test_a_user_is_unsubscribed(world: World, call: Call) -> None:
    ann = await world.client("ann", "live:a", "live:b")
    await call(cent.UnsubscribeRequest(user="ann", channel="live:a"))
    await ann.until("unsubscribed", channel="live:a", code=2000)
    await call(cent.BroadcastRequest(channels=["live:a", "live:b"], data=1))
    await ann.got("live:b", 1)
    assert ann.data("live:a") == []


async def test_an_expired_user_comes_back(world: World, call: Call) -> None:
    ann = await world.client("ann", "kept:a")
    await call(cent.RefreshRequest(user="ann", expired=True))
    await ann.until("connecting", code=3005)
    await ann.until("connected")
    await call(cent.PublishRequest(channel="kept:a", data=1))
    await ann.got("kept:a", 1)


async def test_channels_and_info(world: World, call: Call) -> None:
    await world.client("ann", "kept:a", "live:a")
    await world.client("bob", "kept:a")
    channels = (await call(cent.ChannelsRequest())).channels
    assert {name: each.num_clients for name, each in channels.items()} == {"kept:a": 2, "live:a": 1}
    assert list((await call(cent.ChannelsRequest(pattern="live:*"))).channels) == ["live:a"]
    (node,) = (await call(cent.InfoRequest())).nodes
    assert (node.uid, node.num_clients, node.num_users) == (world.hub.node_id, 2, 2)
    assert (node.num_subs, node.num_channels) == (3, 2)


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_batch(world: World, call: Call, parallel: bool) -> None:
    requests = [
        cent.PublishRequest(channel="kept:a", data=1),
        cent.BroadcastRequest(channels=["kept:b", "nowhere"], data=2),
        cent.DisconnectRequest(user="nobody here"),
        cent.InfoRequest(),
    ]
    published, broadcast, _, info = (
        await call(cent.BatchRequest(requests=requests, parallel=parallel))
    ).replies
    assert published.offset == 1
    assert [each.error is None for each in broadcast.responses] == [True, False]
    assert info.nodes[0].uid == world.hub.node_id


@pytest.mark.parametrize("key", ["", "not-the-key-0123456789"])
async def test_without_the_key_cent_is_unauthorised(world: World, key: str) -> None:
    request = cent.PublishRequest(channel="kept:a", data=1)
    with cent.Client(world.url, key) as one, pytest.raises(cent.CentUnauthorizedError):
        await calling(one)(request)
    async with cent.AsyncClient(world.url, key) as two:
        with pytest.raises(cent.CentUnauthorizedError):
            await calling(two)(request)
    assert (await world.hub.room("kept:a").history()).messages == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (cent.ConnectionsRequest(user="ann", expression=""), 404),
        (cent.HistoryRequest(channel="kept:a", limit=2**40), 400),
        (cent.PublishRequest(channel="kept:a", data="x" * 900_000), 413),
    ],
    ids=["unknown", "malformed", "oversized"],
)
async def test_what_is_no_request_is_a_transport_error_to_cent(
    world: World, call: Call, request_: Any, status: int
) -> None:
    with pytest.raises(cent.CentTransportError) as caught:
        await call(request_)
    assert caught.value.status_code == status
    # The connection, which is kept alive, is as good as new, or the client makes another.
    assert (await call(cent.PublishRequest(channel="kept:a", data=1))).offset == 1


async def test_a_client_that_has_gone_leaves_the_others_alone(world: World) -> None:
    """In the middle of a body."""
    _, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(world.url).port)
    head = f"POST /api/publish HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + b'{"channel":"kept:a",')
    await writer.drain()
    writer.close()
    async with cent.AsyncClient(world.url, KEY) as client:
        assert (await client.publish(cent.PublishRequest(channel="kept:a", data=1))).offset == 1
