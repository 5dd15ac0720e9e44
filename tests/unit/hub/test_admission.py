"""Who is let in: newcomers, addresses and users, over every transport (F1, F2)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from rtkit import Credentials, Grant, History, Hub, Identity, Limits, Presence, Reject, anonymous
from rtkit.hosting.endpoints import Crowded
from rtkit.primitives import Rate
from rtkit.transports import Handshake
from tests.support.eventsource import EventSource
from tests.support.rawclient import RawClient
from tests.support.webclient import Kind, WebClient, ask
from tests.unit.hub.conftest import World

TRIES = Rate(10, burst=2)
ALL = Grant("publish", "presence", "history")


def refusals(hub: Hub[Any]) -> dict[str, int]:
    return dict(hub.statistics().counted.refusals)


def at(address: str, *forwarded: str) -> Handshake:
    headers = (("host", "test"), *(("x-forwarded-for", each) for each in forwarded))
    return Handshake("/rt/ws", headers, address=address)


def window_of(client: RawClient) -> dict[str, float]:
    """As the client was told before it was closed."""
    (push,) = client.pushes
    assert push["disconnect"]["code"] == 4001
    found: dict[str, float] = push["disconnect"]["rt"]
    return found


async def open_hub(world: World, *, parks: bool = False, **limits: Any) -> Hub[Any]:
    options = {key: limits.pop(key) for key in ("authenticate", "trusted_proxies", "broker") if key in limits}
    hub = world.hub(limits=Limits(**limits), parks=parks, **options)
    hub.rooms("room:{x}", publishes=object, history=History(100, ttl=60), grant=ALL, presence=Presence())
    await hub.start()
    return hub


# -- how many come (F2) -------------------------------------------------------------------------------


async def test_beyond_the_rate_a_websocket_is_opened_told_and_closed(world: World) -> None:
    """Each has its own place, and nothing is done for it but that."""
    asked: list[str] = []

    async def authenticate(credentials: Credentials) -> Identity[None]:
        asked.append(credentials.token or "")
        return Identity(credentials.token or "")

    hub = await open_hub(world, accepts=TRIES, authenticate=authenticate)
    clients = [world.client(hub, rt=True) for _ in range(5)]
    for n, client in enumerate(clients):
        client.ask("connect", token=f"u{n}", rt={"v": 1})
    await world.settle()
    assert asked == ["u0", "u1"]
    assert [client.closed for client in clients] == [None] * 2 + [(4001, "try again later")] * 3
    assert [window_of(client) for client in clients[2:]] == [
        {"min": n / 10, "max": n / 10 + 0.5} for n in (1, 2, 3)
    ]
    assert refusals(hub) == {"rate": 3}
    now = hub.statistics()
    assert (now.connections, now.backlog, now.handshakes) == (2, 3, 0)
    await world.clock.advance(0.3)
    assert hub.statistics().backlog == 0
    again = world.client(hub, rt=True)
    assert await again.connect("again")


async def test_ready_says_that_there_is_a_crowd(world: World) -> None:
    """T7, K4: or clients would take a slow answer for a transport that does not work. To a balancer the hub is well."""
    hub = await open_hub(world, accepts=TRIES, handshakes=4)
    assert hub._readiness() is None
    crowd = [world.client(hub, rt=True) for _ in range(5)]
    assert isinstance(hub._readiness(), Crowded)
    await world.clock.advance(0.4)
    assert hub._readiness() is None, "all of them could have come back"
    crowd += [world.client(hub, rt=True) for _ in range(3)]
    await world.clock.advance(0.2)
    assert hub._engine is not None and hub._engine.admission.handshakes == 4
    assert isinstance(hub._readiness(), Crowded), "nobody else can come in"
    await hub.aclose()
    assert not isinstance(hub._readiness(), Crowded)


@pytest.mark.parametrize("kind", ["sse", "http_stream", "poll"])
async def test_beyond_the_rate_a_request_that_opens_is_503(world: World, kind: Kind) -> None:
    hub = await open_hub(world, accepts=TRIES)
    come = [WebClient(hub, world.clock, kind=kind, rt=True) for _ in range(2)]
    for n, client in enumerate(come):
        await client.connect(f"u{n}", rt={"v": 1})
    await world.clock.advance(0.01)
    hub.engine.admission.refuse(at("10.0.0.1"))
    found: Any = None
    for _ in range(60):
        found = await ask(hub, "POST", kind, b'{"id":1,"connect":{}}', headers={"origin": "http://test"})
        assert found.status == 503
    headers = dict(found.headers)
    assert 6 <= int(headers["retry-after"]) <= 7, "the place of the 61st is 6.1 s away"
    assert headers["access-control-expose-headers"] == "retry-after", "or no page could read it"
    assert refusals(hub) == {"rate": 61}
    # What belongs to a session that is there is no newcomer.
    await come[0].call("subscribe", channel="room:a")
    assert (await come[0].delete()).status == 204


async def test_beyond_the_rate_an_eventsource_gets_a_stream_that_is_over(world: World) -> None:
    """A status would stop it for good."""
    hub = await open_hub(world, accepts=TRIES)
    for _ in range(22):
        hub.engine.admission.refuse(at("10.0.0.1"))
    page = EventSource(hub, world.clock, "room=room:a&token=ann")
    assert await page.open() == 200
    assert page.ended
    assert page.events == []
    assert 2100 <= page.retry <= 2600, "the place of the 21st"
    assert page.answered["content-type"] == "text/event-stream"
    assert refusals(hub)["rate"] == 21
    await world.clock.advance(page.retry / 1000)
    assert await page.open() == 200
    assert page.types == ["joined"]
    await page.cut()


async def test_a_refusal_is_not_a_connection(world: World) -> None:
    """Nothing of it is there, and what the client says meets nobody."""
    hub = await open_hub(world, accepts=Rate(1, burst=1))
    await world.client(hub).connect("ann")
    for _ in range(100):
        client = world.client(hub)
        client.say(b'{"id":1,"connect":{"token":"eve"}}')
        client.say(b"garbage")
        client.pipe.lose()
    assert hub.statistics().connections == hub.statistics().sessions == 1
    assert hub.statistics().totals["connections"] == 1
    assert hub.statistics().totals.get("bad_units", 0) == 0


async def test_handshakes_are_bounded(world: World) -> None:
    """Slow authentication: so many at once, and the next when one of them is through."""
    gate = asyncio.Event()

    async def slowly(credentials: Credentials) -> Identity[None]:
        await gate.wait()
        return Identity(credentials.token or "")

    hub = await open_hub(world, handshakes=3, authenticate=slowly)
    clients = [world.client(hub) for _ in range(4)]
    for client in clients:
        client.ask("connect", token="ann")
    await world.settle()
    assert [client.close_code for client in clients] == [0, 0, 0, 4001]
    assert refusals(hub) == {"handshakes": 1}
    assert hub.statistics().handshakes == 3
    found = await ask(hub, "POST", "poll", b'{"id":1,"connect":{"token":"ann"}}')
    assert found.status == 503
    await clients[0].drop()
    assert hub.statistics().handshakes == 2
    gate.set()
    await world.settle()
    assert hub.statistics().handshakes == 0
    assert await world.client(hub).connect("ann")


async def test_who_says_nothing_gives_way_to_who_speaks(world: World) -> None:
    """Silence is cheap: it must not keep the others out for the ten seconds that it may last."""
    hub = await open_hub(world, handshakes=2, accepts=None)
    first, second = world.client(hub), world.client(hub)
    await world.clock.advance(1.9)
    assert world.client(hub).close_code == 4001, "it may be on its way"
    await world.clock.advance(0.2)
    third = world.client(hub)
    assert await third.connect("ann")
    await first.settle()
    assert first.closed == (4001, "try again later")
    assert window_of(first) == {"min": 0.0, "max": 0.5}
    assert second.closed is None
    await second.connect("bob")
    assert hub.statistics().handshakes == 0


async def test_every_way_to_an_end_is_the_end_of_a_handshake(world: World) -> None:
    async def moody(credentials: Credentials) -> Identity[None]:
        if credentials.token == "bug":
            raise RuntimeError("bug")
        if credentials.token == "never":
            await asyncio.Event().wait()
        raise Reject("no", code=101)

    hub = await open_hub(world, authenticate=moody)
    logging.getLogger("rtkit.auth").disabled = True
    try:
        for token in ("bug", "never", "bad"):
            world.client(hub).ask("connect", token=token)
        world.client(hub).say(b"garbage")
        silent, gone = world.client(hub), world.client(hub)
        await gone.drop()
        assert hub.statistics().handshakes >= 2
        await world.clock.advance(10.1)
    finally:
        logging.getLogger("rtkit.auth").disabled = False
    assert silent.close_code == 3502
    assert hub.statistics().handshakes == 0


async def test_all_of_it_can_be_off(world: World) -> None:
    hub = await open_hub(
        world, accepts=None, handshakes=None, user_connections=None, address_connections=None
    )
    for _ in range(300):
        world.client(hub, handshake=at("8.8.8.8")).ask("connect", token="ann")
    await world.settle()
    assert hub.statistics().sessions == 300
    assert refusals(hub) == {}


# -- addresses (F1) -----------------------------------------------------------------------------------


async def test_an_address_has_so_many(world: World) -> None:
    hub = await open_hub(world, address_connections=2)
    here = [world.client(hub, rt=True, handshake=at("8.8.8.8")) for _ in range(3)]
    other = world.client(hub, rt=True, handshake=at("8.8.4.4"))
    for client in (*here[:2], other):
        await client.connect("ann")
    await here[2].settle()
    assert window_of(here[2]) == {"min": 5.0, "max": 20.0}
    assert refusals(hub) == {"address": 1}
    assert hub.statistics().addresses == 2
    await here[0].drop()
    assert await world.client(hub, handshake=at("::ffff:8.8.8.8")).connect("ann")
    assert world.client(hub, handshake=at("8.8.8.8")).close_code == 4001
    await other.drop()
    assert hub.statistics().addresses == 1


async def test_ipv6_counts_by_64_bits(world: World) -> None:
    hub = await open_hub(world, address_connections=2)
    clients = [world.client(hub, handshake=at(f"2a00:1450::{n}")) for n in range(1, 4)]
    await world.settle()
    assert [client.close_code for client in clients] == [0, 0, 4001]
    assert world.client(hub, handshake=at("2a00:1450:0:1::1")).close_code == 0


@pytest.mark.parametrize("kind", ["sse", "poll"])
async def test_an_address_over_http(world: World, kind: Kind) -> None:
    """By what a trusted proxy says; 429, for it is the client's own doing."""
    hub = await open_hub(world, address_connections=1, trusted_proxies=["10.0.0.0/8"])
    headers = {"x-forwarded-for": "8.8.8.8, 10.0.0.9"}
    client = WebClient(hub, world.clock, kind=kind, rt=True, headers=headers)
    await client.connect("ann", rt={"v": 1})
    found = await ask(hub, "POST", kind, b'{"id":1,"connect":{}}', headers=headers)
    assert found.status == 429
    assert 5 <= int(dict(found.headers)["retry-after"]) <= 20
    page = EventSource(hub, world.clock, "room=room:a&token=ann", headers=tuple(headers.items()))
    assert await page.open() == 200
    assert page.events == []
    assert page.ended
    assert 5000 <= page.retry <= 20_000
    await client.drop()
    assert await page.open() == 200
    assert page.types == ["joined"]
    found = await ask(hub, "POST", kind, b'{"id":1,"connect":{}}', headers=headers)
    assert found.status == 429, "a stream of events counts as well"
    await page.cut()
    assert hub.statistics().addresses == 0


async def test_what_the_application_sees(world: World) -> None:
    """The client's address, where the proxy is trusted; else what the host says, as it says it."""
    seen: list[str] = []

    async def authenticate(credentials: Credentials) -> Identity[None]:
        seen.append(credentials.address)
        return Identity("ann")

    hub = await open_hub(world, authenticate=authenticate, trusted_proxies=["10.0.0.0/8"])
    for handshake in (at("10.0.0.1", "8.8.8.8:9"), at("9.9.9.9", "8.8.8.8"), at("10.0.0.1", "garbage")):
        await world.client(hub, handshake=handshake).connect("x")
    assert seen == ["8.8.8.8", "9.9.9.9", ""]


async def test_a_race_for_the_last_place_of_an_address(world: World) -> None:
    """Between the answer to a request and the begin of its stream another may come: it is closed, and told."""
    hub = await open_hub(world, address_connections=1, trusted_proxies=["10.0.0.0/8"])
    headers = {"x-forwarded-for": "8.8.8.8"}
    first, second = (WebClient(hub, world.clock, kind="sse", rt=True, headers=headers) for _ in range(2))
    answers = [
        await ask(hub, "POST", "sse", b'{"id":1,"connect":{"token":"ann"}}', headers=headers)
        for _ in range(2)
    ]
    for client, answer in zip((first, second), answers, strict=True):
        client.down.stream = answer.start(client.down)
    await world.settle()
    assert (first.close_code, second.close_code) == (0, 4001)
    assert hub.statistics().connections == 1
    await first.drop()
    assert hub.statistics().addresses == 0


async def test_an_address_that_cannot_be_counted_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    hub = await open_hub(world, trusted_proxies=["10.0.0.0/8"], address_connections=1)
    for _ in range(3):
        for handshake in (
            at("192.168.0.1"),
            at("127.0.0.1", "8.8.8.8"),
            at("10.0.0.1"),
            at(""),
            at("8.8.8.8"),
        ):
            world.client(hub, handshake=handshake)
    told = [
        (record.levelname, record.args[1] if record.args and len(record.args) > 1 else "")  # type: ignore[index]
        for record in caplog.records
        if "address_connections" in record.getMessage()
    ]
    assert told == [("WARNING", "192.168.0.1"), ("WARNING", "10.0.0.1"), ("INFO", "")]


async def test_nobody_is_warned_of_his_own_machine(world: World, caplog: pytest.LogCaptureFixture) -> None:
    hub = await open_hub(world)
    world.client(hub, handshake=at("127.0.0.1"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    off = await open_hub(world, address_connections=None)
    world.client(off, handshake=at("192.168.0.1"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# -- users (F1) ---------------------------------------------------------------------------------------


async def user_refused(client: RawClient, user: str, **body: Any) -> None:
    error = await client.refused("connect", token=user, **({"rt": {"v": 1, **body}} if client.rt else {}))
    assert (error["code"], error["temporary"], error["retry_after"]) == (111, True, 10.0)
    assert "connections" in error["message"]
    assert client.close_code == 4001


async def test_a_user_has_so_many(world: World) -> None:
    """Whatever the transport, and whatever kind of client."""
    hub = await open_hub(world, user_connections=3)
    socket = await world.join(hub, "ann")
    poll = WebClient(hub, world.clock, kind="poll", rt=True)
    await poll.connect("ann", rt={"v": 1})
    page = EventSource(hub, world.clock, "room=room:a&token=ann")
    assert await page.open() == 200
    await user_refused(world.client(hub, rt=True), "ann")
    await user_refused(world.client(hub), "ann")
    await user_refused(WebClient(hub, world.clock, kind="sse", rt=True), "ann")
    other = EventSource(hub, world.clock, "room=room:a&token=ann")
    assert await other.open() == 200
    assert other.events == []
    assert other.ended
    assert 10_000 <= other.retry <= 20_000
    assert refusals(hub) == {"user": 4}
    await world.join(hub, "bob")
    await socket.drop()
    await world.join(hub, "ann")
    await page.cut()
    assert await other.open() == 200
    assert other.types == ["joined"]
    await other.cut()
    assert hub.statistics().handshakes == 0


async def test_anonymous_is_not_one_user(world: World) -> None:
    hub = await open_hub(world, user_connections=2, authenticate=anonymous)
    for _ in range(5):
        await world.client(hub).connect()
    assert hub.statistics().sessions == 5


async def test_who_comes_back_to_his_own_session_is_no_newcomer(world: World) -> None:
    hub = await open_hub(world, user_connections=2, parks=True)
    one, two = [world.client(hub, rt=True) for _ in range(2)]
    tokens = [(await each.connect("ann"))["rt"]["resume"] for each in (one, two)]
    await one.drop()
    again = world.client(hub, rt=True)
    result = await again.connect("ann", rt={"v": 1, "resume": tokens[0]})
    assert result["rt"]["resumed"] is True
    # Nor who takes over one that is still connected: the old connection goes.
    over = world.client(hub, rt=True)
    result = await over.connect("ann", rt={"v": 1, "resume": tokens[1]})
    assert result["rt"]["resumed"] is True
    await two.settle()
    assert two.close_code == 4000
    assert hub.statistics().sessions == 2
    await user_refused(world.client(hub, rt=True), "ann")
    await user_refused(world.client(hub, rt=True), "ann", resume="forged")


async def test_of_those_that_are_parked_the_one_left_longest_ago_gives_way(world: World) -> None:
    """Reloaded pages leave sessions behind; they must not lock their user out, nor pile up."""
    hub = await open_hub(world, user_connections=3, parks=True)
    watcher = await world.join(hub, "bob", "room:a")
    tokens = []
    for _ in range(3):
        client = world.client(hub, rt=True)
        tokens.append((await client.connect("ann"))["rt"]["resume"])
        await client.call("subscribe", channel="room:a")
        await world.advance(1)
        await client.drop()
    assert (hub.statistics().sessions, hub.statistics().parked) == (4, 3)
    newcomer = world.client(hub, rt=True)
    await newcomer.connect("ann")
    assert (hub.statistics().sessions, hub.statistics().parked) == (4, 2)
    assert hub.statistics().counted.limits == {"user": 1}
    assert len((await watcher.call("presence", channel="room:a"))["presence"]) == 3, "it has left its rooms"
    # The first gave way. The second is still there, and the third.
    back = world.client(hub, rt=True)
    assert (await back.connect("ann", rt={"v": 1, "resume": tokens[1]}))["rt"]["resumed"] is True
    late = world.client(hub, rt=True)
    assert (await late.connect("ann", rt={"v": 1, "resume": tokens[0]}))["rt"].get("resumed", False) is False
    assert (hub.statistics().sessions, hub.statistics().parked) == (4, 0), "the third gave way to it"
    await user_refused(world.client(hub, rt=True), "ann", resume=tokens[2])


async def test_a_session_is_not_taken_from_another_node_to_be_refused_here(world: World) -> None:
    """The bound comes before the claim: it stays where it is, and its client may go back to it."""
    there, here = [await open_hub(world, user_connections=1, parks=True) for _ in range(2)]
    watcher = await world.join(there, "bob", "room:a")
    ann = world.client(there, rt=True)
    told = await ann.connect("ann")
    await ann.call("subscribe", channel="room:a")
    await world.join(here, "ann")
    await ann.drop()
    await user_refused(world.client(here, rt=True), "ann", resume=told["rt"]["resume"])
    assert len((await watcher.call("presence", channel="room:a"))["presence"]) == 2
    back = world.client(there, rt=True)
    result = await back.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert (result["client"], result["rt"]["resumed"]) == (told["client"], True)


async def test_a_session_from_another_node_takes_a_place_here(world: World) -> None:
    there, here = [await open_hub(world, user_connections=1, parks=True) for _ in range(2)]
    ann = world.client(there, rt=True)
    told = await ann.connect("ann")
    await ann.drop()
    over = world.client(here, rt=True)
    assert (await over.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]}))["rt"]["resumed"] is True
    await user_refused(world.client(here, rt=True), "ann")
    await world.join(there, "ann")  # per node


async def test_a_crowd_of_one_user_at_once(world: World) -> None:
    """Each is counted before it is there, or all would pass while none is."""
    hub = await open_hub(world, user_connections=5)
    clients = [world.client(hub, rt=True) for _ in range(40)]
    for client in clients:
        client.ask("connect", token="ann", rt={"v": 1})
    await world.settle()
    assert sum(client.close_code == 0 for client in clients) == hub.statistics().sessions == 5
    assert refusals(hub) == {"user": 35}
    assert not hub.engine.admission._expected


async def test_a_crowd_that_claims_while_the_broker_is_slow(world: World) -> None:
    """Between the bound and the session there is the broker; who fails there gives his place back."""
    there, here = [await open_hub(world, user_connections=4, parks=True) for _ in range(2)]
    tokens = []
    for _ in range(4):
        client = world.client(there, rt=True)
        tokens.append((await client.connect("ann"))["rt"]["resume"])
        await client.drop()
    clients = [world.client(here, rt=True) for _ in range(12)]
    for n, client in enumerate(clients):  # three claims to each
        client.ask("connect", token="ann", rt={"v": 1, "resume": tokens[n % 4]})
    for _ in range(10):
        await world.clock.advance(0.5)
    alive = [client for client in clients if client.close_code == 0]
    assert len(alive) == here.statistics().sessions <= 4
    assert alive
    assert not here.engine.admission._expected


async def test_a_reject_that_is_for_now_closes_for_now(world: World) -> None:
    """4001 and not 3507: the base's clients go by the code."""
    hub = await open_hub(world)
    await hub.aclose()

    @hub.on_session_start
    async def full(ctx: Any) -> None:
        raise Reject("full", code=400, retry_after=5.0)

    await hub.start()
    client = world.client(hub)
    assert (await client.refused("connect", token="ann"))["retry_after"] == 5.0
    assert client.closed == (4001, "try again later")


async def test_a_refusal_is_a_unit_of_the_base(world: World) -> None:
    """Its clients know it, but for the window."""
    hub = await open_hub(world, accepts=Rate(1, burst=1))
    world.client(hub)
    client = world.client(hub)
    (frame,) = client.pipe.frames
    assert json.loads(frame) == {
        "push": {
            "disconnect": {"code": 4001, "reason": "try again later", "rt": {"min": 1.0, "max": 1.5}},
        }
    }


async def test_it_is_told_to_another_thread() -> None:
    """M1: an exporter asks from one of its own, where no loop runs."""
    hub = Hub(authenticate=anonymous, limits=Limits(accepts=Rate(1, burst=1)))
    async with hub:
        for _ in range(3):
            hub.engine.admission.refuse(at(""))
        assert (await asyncio.to_thread(hub.statistics)).backlog == 2
