"""T1 to T4, T10, T11: sessions over plain HTTP, as the hub sees them; on one node and on several."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.hub.relay import Ask
from rtkit.transports import Response
from tests.support.webclient import Kind, WebClient, ask

from .brokers import FaultyBroker
from .conftest import World

KINDS: list[Kind] = ["sse", "http_stream", "poll"]


def plain_hub(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(parks=True, **options)
    hub.rooms("room:{r}", publishes=object, history=History(1000, ttl=600), grant=Grant("publish", "history"))

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[Any, Any], params: object) -> object:
        return params

    return hub


async def come(world: World, hub: Hub[Any], kind: Kind, user: str = "ann", **options: Any) -> WebClient:
    await hub.start()
    client = WebClient(hub, world.clock, kind=kind, rt=options.pop("rt", True), **options)
    world.clients.append(client)
    await client.connect(user)
    return client


def status(found: Any) -> int:
    assert isinstance(found, Response), found
    return found.status


async def ended(found: Any) -> Any:
    """The answer itself, where it comes later."""
    return await found if isinstance(found, asyncio.Future) else found


# -- the same conversation ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_conversation(world: World, kind: Kind) -> None:
    """T1: commands, replies and pushes as over a WebSocket."""
    hub = plain_hub(world)
    ann, bob = await come(world, hub, kind), await world.join(hub, "bob", "room:a")
    assert ann.session.startswith(f"{hub.node_id}.")
    joined = await ann.call("subscribe", channel="room:a")
    assert joined["recoverable"] is True
    await bob.call("publish", channel="room:a", data="hi")
    await ann.call("publish", channel="room:a", data="ho")
    assert ann.data_of("room:a") == bob.data_of("room:a") == ["hi", "ho"]
    assert ann.offsets_of("room:a") == [1, 2]
    assert await ann.call("rpc", method="echo", data={"x": 1}) == {"data": {"x": 1}}
    assert (await ann.refused("subscribe", channel="nowhere"))["code"] == 102
    assert ann.answers == [204] * 4
    await world.advance(300)
    assert ann.closed is None, "heartbeats, and polls, keep it alive"
    assert hub.statistics().connections == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_connect_is_told_in_band(world: World, kind: Kind) -> None:
    hub = plain_hub(world)
    await hub.start()
    client = WebClient(hub, world.clock, kind=kind, rt=True)
    assert (await client.refused("connect", rt={"v": 1}))["code"] == 101
    assert client.close_code == 3500
    assert client.status == 200
    await world.settle()
    assert hub.statistics().connections == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cut_is_recovered(world: World, kind: Kind) -> None:
    """C3, H2: parked, resumed, nothing lost or doubled."""
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await ann.call("subscribe", channel="room:a")
    told = ann.reply(1)["connect"]
    await hub.publish("room:a", 1)
    await ann.settle()
    await ann.drop()
    assert hub.statistics().connections == 0
    await hub.publish("room:a", 2)
    again = WebClient(hub, world.clock, kind=kind, rt=True)
    await again.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert again.reply(1)["connect"]["client"] == told["client"]
    assert again.session != ann.session
    joined = await again.call(
        "subscribe", channel="room:a", recover=True, epoch=ann.replies[2]["subscribe"]["epoch"], offset=1
    )
    assert [pub["data"] for pub in joined["publications"]] == [2]
    assert joined["recovered"] is True


@pytest.mark.parametrize("kind", KINDS)
async def test_the_way_between_transports_is_open(world: World, kind: Kind) -> None:
    """T7: a session that began over one transport goes on over another."""
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    told = ann.reply(1)["connect"]
    await ann.drop()
    socket = world.client(hub, rt=True)
    again = await socket.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert again["client"] == told["client"]
    assert "session" not in again
    await socket.drop()
    back = WebClient(hub, world.clock, kind=kind, rt=True)
    await back.connect("ann", rt={"v": 1, "resume": again["rt"]["resume"]})
    assert back.reply(1)["connect"]["client"] == told["client"]


@pytest.mark.parametrize("kind", KINDS)
async def test_goodbye(world: World, kind: Kind) -> None:
    """C3: told from loss: the session ends there and then, and again is no harm."""
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    assert (await ann.delete()).status == 204
    assert hub.statistics().sessions == 0
    assert hub.statistics().connections == 0
    assert (await ann.delete()).status == 204
    assert (await ann.post(1, b'{"id": 9, "ping": {}}')).status == 410
    bob = await come(world, hub, kind)
    await bob.leave()
    await world.settle()
    assert hub.statistics().sessions == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_server_closes(world: World, kind: Kind) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await hub.user("ann").close(reason="enough")
    await ann.settle()
    assert ann.closed == (3503, "enough")
    assert ann.pushes[-1]["disconnect"] == {"code": 3503, "reason": "enough"}
    assert hub.statistics().connections == 0
    assert (await ann.post(1, b"{}")).status == 410


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hub_that_closes_says_when_to_come_back(world: World, kind: Kind) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await hub.aclose()
    await ann.settle()
    goodbyes = [push["disconnect"] for push in ann.pushes if "disconnect" in push]
    assert goodbyes[0] == {"code": 3001, "reason": "draining", "rt": {"min": 0.0, "max": 1.0}}
    assert goodbyes[-1] == {"code": 3001, "reason": "draining"}


@pytest.mark.parametrize("kind", ["sse", "http_stream"])
async def test_a_stream_begins_before_anybody_is_authenticated(world: World, kind: Kind) -> None:
    """T7: mute and slow can be told apart."""
    gate = asyncio.Event()

    async def slow(credentials: Credentials) -> Identity[Any]:
        await gate.wait()
        return Identity("ann")

    hub = plain_hub(world, authenticate=slow)
    await hub.start()
    client = WebClient(hub, world.clock, kind=kind, rt=True)
    client.ask("connect")
    await world.settle()
    assert client.pipe.frames == [b":\n\n" if kind == "sse" else b"\n"]
    gate.set()
    await client.settle()
    assert client.answered(1)


async def test_headers_that_keep_proxies_from_collecting(world: World) -> None:
    """T6."""
    hub = plain_hub(world)
    found = await ask(hub, "POST", "sse", b'{"id": 1, "connect": {"token": "ann"}}')
    headers = dict(found.headers)
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"


async def test_event_source_puts_its_connect_command_into_the_query(world: World) -> None:
    hub = plain_hub(world)
    found = await ask(
        hub,
        "GET",
        "sse",
        query="cf_connect=%7B%22id%22%3A1%2C%22connect%22%3A%7B%22token%22%3A%22ann%22%7D%7D",
    )
    client = WebClient(hub, world.clock)
    client.down.stream = found.start(client.down)
    await client.settle()
    assert client.reply(1)["connect"]["client"]


# -- the way up -----------------------------------------------------------------------------------------


def number(n: int) -> bytes:
    return b'{"id": %d, "rpc": {"method": "echo", "data": %d}}' % (n, n)


async def test_requests_that_overtake_each_other_are_put_in_order(world: World) -> None:
    """T3."""
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    for seq in (3, 2, 5, 1, 4):
        assert (await ann.post(seq, number(100 + seq))).status == 204
    await ann.settle()
    assert [unit["id"] for unit in ann.units if unit.get("id", 0) > 100] == [101, 102, 103, 104, 105]


async def test_a_request_that_comes_again_is_not_carried_out_twice(world: World) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    await ann.call("subscribe", channel="room:a")
    publish = b'{"id": 50, "publish": {"channel": "room:a", "data": 1}}'
    assert [(await ann.post(seq, publish)).status for seq in (2, 2, 1, 2)] == [204] * 4
    await ann.settle()
    assert ann.data_of("room:a") == [1]


async def test_what_is_too_far_ahead_comes_again_later(world: World) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    refused = await ann.post(65, number(1))
    assert refused.status == 429
    assert ("retry-after", "1") in refused.headers
    big = b'{"id": 1, "rpc": {"method": "echo", "data": "%b"}}' % (b"x" * 300_000)
    assert [(await ann.post(seq, big)).status for seq in (2, 3, 4, 5)] == [204, 204, 204, 429]
    assert hub.statistics().counted.turned_away == {"429": 2}


@pytest.mark.parametrize("seq", ["", "0", "-1", "1.0", "x", "٣", "9" * 400])
async def test_a_number_that_is_none(world: World, seq: str) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    found = await ask(hub, "POST", "send", b"{}", headers={"rt-session": ann.session, "rt-seq": seq})
    assert status(found) == 400
    await ann.settle()
    assert ann.closed is None


async def test_a_body_with_too_much_in_it(world: World) -> None:
    """Counted before anything is told apart; and the sender stays connected."""
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    assert (await ann.post(1, b"\n" * 1_000_000)).status == 413
    assert (await ann.post(1, b"{}\n" * 100)).status == 413
    assert (await ann.post(1, b"x" * (hub.max_frame + 1))).status == 413
    assert await ann.call("ping") == {}


@pytest.mark.parametrize("kind", ["sse", "poll"])
async def test_while_commands_wait_nothing_more_is_taken(world: World, kind: Kind) -> None:
    """C2: nothing is dropped: the same number, later."""
    gate = asyncio.Event()
    hub = plain_hub(world, limits=Limits(max_pending=2))

    @hub.rpc(object, name="wait")
    async def wait(ctx: Context[Any, Any], params: object) -> None:
        await gate.wait()

    ann = await come(world, hub, kind)
    for seq in (1, 2):
        assert (await ann.post(seq, b'{"id": %d, "rpc": {"method": "wait"}}' % (seq + 10))).status == 204
    await world.settle()
    found = await ann.post(3, number(13))
    assert found.status == 429
    gate.set()
    await world.settle()
    assert (await ann.post(3, number(13))).status == 204
    await ann.settle()
    assert ann.reply(13)["rpc"] == {"data": 13}


@pytest.mark.parametrize(
    "session", ["", "x", ".", "a.", ".b", "00000000.aaaaaaaaaaaaaaaaaaaaaa", "a/b.c", "a" * 200 + ".b"]
)
async def test_a_session_that_is_none(world: World, session: str) -> None:
    hub = plain_hub(world)
    await hub.start()
    for method, endpoint in (("POST", "send"), ("GET", "poll"), ("DELETE", "send")):
        headers = {"rt-session": session, "rt-seq": "1"}
        found = status(await ended(await ask(hub, method, endpoint, b"{}", query="ack=0", headers=headers)))
        if session.startswith("0000"):
            assert found == (204 if method == "DELETE" else 410)
        else:
            assert found == 400


# -- polls ----------------------------------------------------------------------------------------------


def batch(response: Response) -> tuple[int, list[Any]]:
    assert response.status == 200, response
    body = json.loads(response.body)
    return body["batch"], body["replies"]


async def by_hand(world: World, hub: Hub[Any]) -> WebClient:
    """A client that polls when it is told to."""
    await hub.start()
    client = WebClient(hub, world.clock, kind="poll", rt=True)
    client.polling = False
    await client.connect("ann")
    return client


async def test_a_batch_comes_again_until_it_is_acknowledged(world: World) -> None:
    """T4."""
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    await ann.post(1, number(5))
    await world.settle()
    first = await ann.poll(1)
    assert batch(first) == (2, [{"id": 5, "rpc": {"data": 5}}])
    await ann.post(2, number(6))
    await world.settle()
    assert (await ann.poll(1)).body == first.body, "exactly the same, whatever was said meanwhile"
    assert batch(await ann.poll(2)) == (3, [{"id": 6, "rpc": {"data": 6}}])


@pytest.mark.parametrize("ack", ["", "-1", "x", "2", "3", "1000000000000000000000"])
async def test_an_acknowledgement_from_nowhere(world: World, ack: str) -> None:
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    found = await ask(hub, "GET", "poll", query=f"ack={ack}", headers={"rt-session": ann.session})
    assert status(found) == 400
    waiting = await ann.poll(1)
    await ann.post(1, number(5))
    await world.settle()
    assert batch(await waiting) == (2, [{"id": 5, "rpc": {"data": 5}}])


async def test_a_poll_waits_for_25_seconds(world: World) -> None:
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1)
    await world.clock.advance(24.9)
    assert not waiting.done()
    await world.clock.advance(0.1)
    assert batch(waiting.result()) == (1, []), "an empty answer uses no number"
    again = await ann.poll(1)
    assert not again.done()


async def test_a_second_poll_ends_the_first(world: World) -> None:
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    first = await ann.poll(1)
    second = await ann.poll(1)
    await world.settle()
    assert batch(first.result()) == (1, [])
    await ann.post(1, number(5))
    await world.settle()
    assert batch(second.result())[1] != []


async def test_no_poll_for_10_seconds_is_a_lost_client(world: World) -> None:
    """F4: gone within 35 s in any case: 25 of a poll nobody reads the answer of, and 10."""
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    _ = await ann.poll(1)
    await world.clock.advance(34.9)
    assert hub.statistics().connections == 1
    await world.clock.advance(0.2)
    assert hub.statistics().connections == 0
    assert hub.statistics().sessions == 1, "parked"
    assert status(await ann.poll(1)) == 410


async def test_a_client_that_goes_away_while_it_polls(world: World) -> None:
    """What comes then is kept for the next poll."""
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1)
    waiting.cancel()
    await world.settle()
    await ann.post(1, number(5))
    await world.settle()
    assert batch(await ann.poll(1)) == (2, [{"id": 5, "rpc": {"data": 5}}])


async def test_a_slow_poller_is_bounded(world: World) -> None:
    """D1: what it does not fetch counts; a room with history is read on from there, and nothing is missing."""
    hub = plain_hub(world, limits=Limits(outbox=600_000, max_publication=500_000))
    ann = await by_hand(world, hub)
    await ann.post(1, b'{"id": 5, "subscribe": {"channel": "room:a"}}')
    await world.settle()
    said = ["x" * 1000 + str(n) for n in range(900)]
    for each in said:
        await hub.publish("room:a", each)
    await world.settle()
    (connection,) = hub.engine.connections
    assert connection.transport.buffered + connection.outbox.size < 700_000
    got: list[Any] = []
    ack = 1
    while len(got) < len(said):
        ack, replies = batch(await ended(await ann.poll(ack)))
        got += [unit["push"]["pub"]["data"] for unit in replies if "push" in unit]
        await world.settle()
    assert got == said


# -- who is asking ----------------------------------------------------------------------------------------


async def by_cookie(credentials: Credentials) -> Identity[Any]:
    user = credentials.cookies.get("user") or credentials.token
    if not user:
        raise Reject("who are you?", code=101)
    return Identity(user)


async def test_a_session_by_cookie_is_of_no_use_to_another(world: World) -> None:
    """T11: every request shows the same user."""
    hub = plain_hub(world, authenticate=by_cookie)
    await hub.start()
    ann = WebClient(hub, world.clock, kind="poll", rt=True, headers={"cookie": "user=ann"})
    ann.polling = False
    await ann.connect()
    assert (await ann.post(1, b"{}")).status == 204
    stolen = {"rt-session": ann.session, "rt-seq": "2"}
    for headers in ({}, {"cookie": "user=eve"}, {"authorization": "Bearer eve"}):
        assert status(await ask(hub, "POST", "send", b"{}", headers={**stolen, **headers})) == 403
        assert status(await ask(hub, "GET", "poll", query="ack=1", headers={**stolen, **headers})) == 403
        assert status(await ask(hub, "DELETE", "send", headers={**stolen, **headers})) == 403
    assert hub.statistics().sessions == 1
    assert (await ann.post(2, b"{}", cookie="user=ann; theme=dark")).status == 204, "the same user"


async def test_where_a_token_was_shown_the_session_is_the_credential(world: World) -> None:
    hub = plain_hub(world, authenticate=by_cookie)
    await hub.start()
    ann = WebClient(hub, world.clock, kind="sse", rt=True)
    await ann.connect("ann")
    assert (await ann.post(1, b"{}", cookie="theme=dark")).status == 204


async def test_no_session_is_ever_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """T11, A5."""
    hub = plain_hub(world)
    ann = await come(world, hub, "poll")
    (http,) = hub.engine.web.sessions.values()
    assert http.id == ann.session
    await ann.post(7, b"nonsense")
    await ann.post(1, b"nonsense")
    await ann.drop()
    secret = ann.session.partition(".")[2]
    assert secret not in caplog.text
    for each in (http, http.connection, http.transport, hub.engine.web, hub.engine.relay):
        assert secret not in repr(each)


# -- pages of other origins -----------------------------------------------------------------------------------


ELSEWHERE = "https://elsewhere.example"
FRIEND = "https://friend.example"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed", "credentials"),
    [
        ([], "http://test", "http://test", True),
        ([], ELSEWHERE, None, False),
        ([FRIEND], FRIEND, FRIEND, True),
        ([FRIEND], ELSEWHERE, None, False),
        (["*"], ELSEWHERE, "*", False),
        (["*", FRIEND], FRIEND, FRIEND, True),
    ],
)
async def test_cors(
    world: World, origins: list[str], origin: str, allowed: str | None, credentials: bool
) -> None:
    """T10: a preflight is answered, and cookies never go to just anybody."""
    hub = plain_hub(world, origins=origins)
    preflight = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "rt-session,rt-seq",
    }
    found = await ask(hub, "OPTIONS", "send", headers=preflight)
    headers = dict(found.headers)
    assert found.status == (204 if allowed else 403)
    assert headers.get("access-control-allow-origin") == allowed
    assert ("access-control-allow-credentials" in headers) is credentials
    assert headers["vary"] == "origin"
    if allowed:
        assert {"rt-session", "rt-seq"} <= set(headers["access-control-allow-headers"].split(", "))
        assert headers["access-control-allow-methods"] == "POST, DELETE"
    connect = b'{"id": 1, "connect": {"token": "ann"}}'
    opened = await ask(hub, "POST", "sse", connect, headers={"origin": origin})
    assert opened.status == (200 if allowed else 403)
    assert dict(opened.headers).get("access-control-allow-origin") == allowed


async def test_cross_site_requests_without_origin(world: World) -> None:
    """Browsers send no Origin on a same-origin EventSource, and say where the page is from."""
    hub = plain_hub(world)
    query = "cf_connect=%7B%22id%22%3A1%2C%22connect%22%3A%7B%7D%7D"
    for site, expected in (("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)):
        found = await ask(hub, "GET", "sse", query=query, headers={"sec-fetch-site": site})
        assert found.status == expected


async def test_methods_that_mean_nothing(world: World) -> None:
    hub = plain_hub(world)
    for method, endpoint in (
        ("PUT", "send"),
        ("GET", "send"),
        ("GET", "emulation"),
        ("HEAD", "sse"),
        ("PATCH", "poll"),
    ):
        found = await ask(hub, method, endpoint)
        assert status(found) == 405
        assert "OPTIONS" in dict(found.headers)["allow"]


@pytest.mark.parametrize("endpoint", ["sse", "http_stream", "poll"])
async def test_bodies_that_open_nothing(world: World, endpoint: str) -> None:
    hub = plain_hub(world)
    assert status(await ask(hub, "POST", endpoint, b"")) == 400
    assert status(await ask(hub, "POST", endpoint, b" \n ")) == 400
    assert status(await ask(hub, "POST", endpoint, b"\n" * 1_000_000)) == 413
    assert hub.statistics().connections == 0


async def test_draining(world: World) -> None:
    hub = plain_hub(world)
    await hub.start()
    hub.engine.accepting = False
    found = await ask(hub, "POST", "sse", b'{"id": 1, "connect": {}}')
    assert status(found) == 503
    assert "retry-after" in dict(found.headers)
    hub.engine.accepting = True


# -- clients of the base ------------------------------------------------------------------------------------


def emulation(session: str, data: Any) -> bytes:
    return json.dumps({"session": session, "node": "n", "data": data}).encode()


async def test_emulation(world: World) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, "http_stream", rt=False)
    unit = {"id": 5, "rpc": {"method": "echo", "data": "é"}}
    assert status(await ask(hub, "POST", "emulation", emulation(ann.session, json.dumps(unit)))) == 204
    await ann.settle()
    assert ann.reply(5)["rpc"] == {"data": "é"}
    unit["id"] = 6
    assert status(await ask(hub, "POST", "emulation", emulation(ann.session, unit))) == 204
    await ann.settle()
    assert ann.answered(6)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"\xff", b'{"session": 5}', b'{"session": "a.b", "data": "\\ud800"}']
)
async def test_emulation_that_is_malformed(world: World, body: bytes) -> None:
    hub = plain_hub(world)
    assert status(await ask(hub, "POST", "emulation", body)) == 400


async def test_emulation_of_nobody(world: World) -> None:
    hub = plain_hub(world)
    assert status(await ask(hub, "POST", "emulation", emulation("00000000.x", "{}"))) == 404


async def test_emulation_waits_while_nothing_is_taken(world: World) -> None:
    """C2: a client of the base does not send again what was refused."""
    gate = asyncio.Event()
    hub = plain_hub(world, limits=Limits(max_pending=1))

    @hub.rpc(object, name="wait")
    async def wait(ctx: Context[Any, Any], params: object) -> None:
        await gate.wait()

    ann = await come(world, hub, "sse", rt=False)
    for id in (11, 12):
        unit = {"id": id, "rpc": {"method": "wait"}}
        assert status(await ask(hub, "POST", "emulation", emulation(ann.session, unit))) == 204
        await world.settle()
        if hub.engine.web.sessions[ann.session].transport.paused:
            break
    late = [
        await ask(hub, "POST", "emulation", emulation(ann.session, {"id": id, "ping": {}})) for id in (20, 21)
    ]
    assert all(isinstance(each, asyncio.Future) for each in late)
    gate.set()
    await ann.settle()
    await ann.settle()
    assert [status(each.result()) for each in late] == [204, 204]
    assert ann.answered(20)
    assert ann.answered(21)


# -- several nodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_any_node_takes_any_request(world: World, kind: Kind) -> None:
    """T2: three nodes in turn, as behind a load balancer without a memory."""
    hubs = [plain_hub(world) for _ in range(3)]
    for hub in hubs:
        await hub.start()
    ann = await come(world, hubs[0], kind, hubs=hubs)
    joined = await ann.call("subscribe", channel="room:a")
    assert joined["recoverable"] is True
    for n in range(20):
        await hubs[n % 3].publish("room:a", n)
        assert await ann.call("rpc", method="echo", data=n) == {"data": n}
    await ann.settle()
    assert ann.data_of("room:a") == list(range(20))
    assert [hub.statistics().connections for hub in hubs] == [1, 0, 0]
    await world.advance(120)
    assert ann.closed is None
    assert (await ann.delete()).status == 204
    await world.settle()
    assert [hub.statistics().sessions for hub in hubs] == [0, 0, 0]


async def test_no_session_is_logged_by_the_nodes_that_pass_it_on(
    world: World, caplog: pytest.LogCaptureFixture, errors: Any
) -> None:
    """T11, A5: on the way between nodes, also where the broker fails, the owner raises, or it is the wrong one."""
    broker = FaultyBroker(world.backend)
    hub, other = plain_hub(world), plain_hub(world, broker=broker)
    await other.start()
    ann = await by_hand(world, hub)
    secret, token = ann.session.partition(".")[2], "t0ken"
    asked = {"rt-session": ann.session, "rt-seq": "1", "authorization": f"Bearer {token}"}

    async def through(headers: dict[str, str]) -> Any:
        task = asyncio.ensure_future(
            ask(other, "POST", "send", f'{{"id":5,"{token}":1}}'.encode(), headers=headers)
        )
        await world.advance(10, step=0.5)
        return status(await task)

    assert await through(asked) == 204
    assert await through({**asked, "rt-session": f"{other.node_id}.{secret}"}) == 410
    assert await through({**asked, "rt-session": f"nobody.{secret}"}) == 410
    hub.engine.relay.obey["send"] = broken
    assert await through({**asked, "rt-seq": "2"}) == 500
    broker.failing = {"publish"}
    assert await through({**asked, "rt-seq": "3"}) == 503
    said = [logging.Formatter().format(record) + repr(record.__dict__) for record in caplog.records]
    assert len(said) >= 2, "what fails is told"
    shown = [
        repr(each)
        for node in (hub, other)
        for each in (node, node.engine, node.engine.relay, node.engine.web)
    ]
    for each in (secret, token):
        assert not [line for line in (*said, *shown, repr(hub.statistics())) if each in line]


def broken(request: Ask) -> Any:
    raise RuntimeError("this cannot be done")


async def test_a_poll_through_another_node_waits_there(world: World) -> None:
    hub, other = plain_hub(world), plain_hub(world)
    await other.start()
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1, hub=other)
    await world.advance(24.5, step=0.5)
    assert not waiting.done()
    await ann.post(1, number(5), hub=other)
    await world.settle()
    assert batch(waiting.result()) == (2, [{"id": 5, "rpc": {"data": 5}}])
    again = await ann.poll(2, hub=other)
    await world.advance(26, step=0.5)
    assert batch(again.result()) == (2, [])


async def test_a_poll_whose_answer_was_lost_between_nodes(world: World) -> None:
    """T2: at the latest after 5 s the other node asks again, and the batch comes again."""
    hub, other = plain_hub(world), plain_hub(world)
    await other.start()
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1, hub=other)
    await world.settle()
    deliver, other.engine.deliver = other.engine.deliver, lambda *_: None  # type: ignore[method-assign]
    await ann.post(1, number(5), hub=hub)
    await world.settle()
    other.engine.deliver = deliver  # type: ignore[method-assign]
    await world.advance(6, step=0.5)
    assert batch(waiting.result()) == (2, [{"id": 5, "rpc": {"data": 5}}])


async def test_the_owner_is_gone(world: World) -> None:
    """T2: 410 as soon as its lease is not there; the client resumes."""
    hub, other = plain_hub(world), plain_hub(world)
    await other.start()
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1, hub=other)
    await world.settle()
    hub.engine.deliver = lambda *_: None  # type: ignore[method-assign]
    posting = asyncio.ensure_future(ann.post(1, number(5), hub=other))
    await world.advance(4.5, step=0.5)
    assert (await posting).status == 503, "it may have been taken: the same number again"
    await hub.engine.lease.release()
    await world.advance(11, step=0.5)
    assert waiting.result().status == 410
    assert (await ann.post(1, number(5), hub=other)).status == 410
    assert status(await ended(await ann.poll(1, hub=other))) == 410


async def test_a_request_that_a_node_repeats_is_carried_out_once(world: World) -> None:
    """The answer got lost on the way back. Numbered ones are known by their number, the others by the call."""
    hub, other = plain_hub(world), plain_hub(world)
    await other.start()
    ann = await come(world, hub, "sse")
    await ann.call("subscribe", channel="room:a")
    unit = {"id": 5, "publish": {"channel": "room:a", "data": 1}}
    lost: list[str] = []
    deliver = other.engine.deliver

    def lose_one(topic: str, payload: bytes, position: Any) -> None:
        if topic == other.engine.relay.topic and not lost:
            lost.append(topic)
        else:
            deliver(topic, payload, position)

    other.engine.deliver = lose_one  # type: ignore[method-assign]
    posting = asyncio.ensure_future(ask(other, "POST", "emulation", emulation(ann.session, unit)))
    await world.advance(3, step=0.5)
    assert status(posting.result()) == 204
    await ann.settle()
    assert lost
    assert ann.data_of("room:a") == [1]


async def test_identity_is_checked_where_the_request_comes_in(world: World) -> None:
    hubs = [plain_hub(world, authenticate=by_cookie) for _ in range(2)]
    for hub in hubs:
        await hub.start()
    ann = WebClient(hubs[0], world.clock, kind="sse", rt=True, headers={"cookie": "user=ann"})
    await ann.connect()
    assert (await ann.post(1, b"{}", hub=hubs[1])).status == 204
    assert (await ann.post(2, b"{}", hub=hubs[1], cookie="user=eve")).status == 403
    assert (await ann.post(2, b"{}", hub=hubs[1], cookie="user=ann; a=b")).status == 204
    assert (await ann.post(3, b"{}", hub=hubs[1], cookie="")).status == 403


async def test_a_node_without_a_word_for_a_request_says_so(world: World) -> None:
    """W5: a newer release asks for something this one does not know."""
    hub, other = plain_hub(world), plain_hub(world)
    await hub.start()
    await other.start()
    await hub.engine.lease.hold()
    answered = await other.engine.relay.ask(hub.node_id, Ask(do="dance"))
    assert answered is not None
    assert answered.status == 501


@pytest.mark.parametrize("kind", KINDS)
async def test_a_goodbye_that_comes_after_the_stream_was_dropped(world: World, kind: Kind) -> None:
    """C3: a page that goes away drops its stream and says goodbye, and either may come first."""
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await ann.drop()
    assert hub.statistics().sessions == 1
    assert (await ann.delete()).status == 204
    assert hub.statistics().sessions == 0
    assert not hub.engine.web.sessions


@pytest.mark.parametrize("kind", KINDS)
async def test_last_words_are_carried_out_before_the_goodbye_that_came_with_them(
    world: World, kind: Kind
) -> None:
    """C3, T3: and in their turn, though the request before them is still on its way."""
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await ann.call("subscribe", channel="room:a")
    words = [b'{"id":7,"publish":{"channel":"room:a","data":%d}}' % n for n in (1, 2)]
    assert (await ann.post(3, words[1] + b'\n{"bye":{}}')).status == 204
    assert hub.statistics().sessions == 1
    assert (await ann.post(2, words[0])).status == 204
    await world.settle()
    assert hub.statistics().sessions == 0
    page = await hub.room("room:a").history()
    assert [message.data for message in page.messages] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
async def test_last_words_that_come_after_the_stream_was_dropped_are_a_goodbye(
    world: World, kind: Kind
) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, kind)
    await ann.drop()
    assert hub.statistics().sessions == 1
    assert (await ann.post(1, b'{"bye":{}}')).status == 204
    assert hub.statistics().sessions == 0


async def test_a_late_goodbye_does_not_end_who_has_come_back(world: World) -> None:
    hub = plain_hub(world)
    ann = await come(world, hub, "sse")
    await ann.drop()
    told = ann.reply(1)["connect"]
    again = WebClient(hub, world.clock, kind="sse", rt=True)
    await again.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert (await ann.delete()).status == 204
    assert again.closed is None
    assert hub.statistics().sessions == 1


async def test_a_client_between_two_polls_does_not_hold_up_a_hub_that_closes(world: World) -> None:
    hub = plain_hub(world)
    await by_hand(world, hub)
    closing = asyncio.ensure_future(hub.aclose())
    await world.clock.advance(1.9)
    assert not closing.done()
    await world.clock.advance(0.2)
    assert closing.done()


async def test_a_client_that_goes_while_a_hub_closes_does_not_hold_it_up(world: World) -> None:
    """Its poll is given up in the same turn in which it would have been answered."""
    hub = plain_hub(world)
    ann = await by_hand(world, hub)
    waiting = await ann.poll(1)
    closing = asyncio.ensure_future(hub.aclose())
    await asyncio.sleep(0)
    waiting.cancel()
    await world.clock.advance(2.1)
    assert closing.done()
