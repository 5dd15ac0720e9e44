"""The same over plain HTTP, on real sockets: conversations, ends, slow readers, crowds (T1 to T4)."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

import rtkit
from rtkit import Credentials, Identity
from tests.support.hosts import HTTP_HOSTS, Host
from tests.support.rawsession import PollSession, StreamSession
from tests.support.rawsocket import Peer, Refusal
from tests.transport.conftest import PATIENCE, Site, tasks, until

_PACKAGE: Final = str(Path(rtkit.__file__).parent)
#: Bytes of a message; with a thousand of them what TCP keeps in its own buffers is soon full.
SIZE: Final = 16 * 1024
#: What a connection may hold in this process: its outbox of 1 MiB, and what the transport was given last.
BOUND: Final = 1024 * 1024 + 128 * 1024


@pytest.fixture(params=HTTP_HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each host that can."""
    found: Host = request.param
    return found


@pytest.fixture(params=["sse", "poll"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


# -- conversations


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_two_clients_talk(site: Site, kind: str, secure: bool) -> None:
    """One over this transport, one over a WebSocket; neither can tell."""
    await site.open(secure=secure)
    ann, bob = await site.session(kind, "ann"), await site.client("bob", rt=False)
    joined = await ann.join("log:a")
    assert joined["recoverable"] and joined["positioned"]
    await bob.join("log:a")
    assert await bob.call("publish", channel="log:a", data={"text": "hällo"}) == {}
    second = await ann.call("publish", channel="log:a", data=[1, None, 2.5])
    assert second == {"epoch": joined["epoch"], "offset": 2}
    for peer in (ann, bob):
        while len(peer.pushes) < 2:
            await peer.next_unit()
        pubs = [push["pub"] for push in peer.pushes]
        assert [pub["data"] for pub in pubs] == [{"text": "hällo"}, [1, None, 2.5]]
        assert [pub["offset"] for pub in pubs] == [1, 2]
        assert [pub["info"]["user"] for pub in pubs] == ["bob", "ann"]
    page = await ann.call("history", channel="log:a", limit=1, since={"epoch": joined["epoch"], "offset": 1})
    assert [pub["data"] for pub in page["publications"]] == [[1, None, 2.5]]
    assert (await ann.call("rpc", method="fail"))["error"]["code"] == 400
    for size in (1, 60_000):
        assert await ann.echo("x" * size) == "x" * size
    assert await ann.call("unsubscribe", channel="log:a") == {}
    await bob.call("publish", channel="log:a", data="only bob hears this")
    assert await ann.echo("nothing came in between") == "nothing came in between"
    assert len(ann.pushes) == 2
    assert (await ann.bye()).status == 204
    await until(lambda: site.hub.statistics().sessions == 1)


async def test_what_is_published_is_there_at_once_and_in_order(site: Site, kind: str) -> None:
    await site.open()
    ann = await site.session(kind, "ann", "log:a")
    for n in range(50):
        await site.hub.room("log:a").publish(n)
        if n % 10 == 9:
            assert await ann.data("log:a", 10) == list(range(n - 9, n + 1))


async def test_a_batch_of_units_is_one_request(site: Site, kind: str) -> None:
    await site.open()
    ann = site.nobody(kind)
    units = [ann.unit("connect", token="ann"), ann.unit("subscribe", channel="log:a")]
    await ann.say("\n".join(unit for _, unit in units))
    for id, method in zip((id for id, _ in units), ("connect", "subscribe"), strict=True):
        await ann.reply(id, method)


async def test_a_stream_speaks_before_it_knows_who_is_there(site: Site) -> None:
    """T7: a client can tell a proxy that holds responses back from an authentication that takes long."""
    go_on = asyncio.Event()

    async def slowly(credentials: Credentials) -> Identity[None]:
        await go_on.wait()
        return Identity("ann")

    site.build(authenticate=slowly)
    await site.open()
    ann = site.nobody("sse")
    assert isinstance(ann, StreamSession)
    id = await ann.ask("connect", rt={"v": 1})
    assert ann.stream is not None
    assert await ann.stream.body(3) == b":\n\n"
    go_on.set()
    assert (await ann.reply(id, "connect"))["client"]


async def test_origins(site: Site, kind: str) -> None:
    """T10: at the door, and with every request behind it."""
    await site.open()
    evil = {"Origin": "https://evil.example"}
    stranger = site.nobody(kind, headers=evil)
    with pytest.raises(Refusal) as refused:
        await stranger.connect_as("ann")
    assert refused.value.response.status == 403
    assert site.open_connections == 0
    ann = await site.session(kind, "ann")
    assert (await ann.post("{}", Origin="https://evil.example")).status == 403
    assert (await ann.post("{}", Origin="http://test.example")).status == 204


async def test_requests_that_are_wrong(site: Site, kind: str) -> None:
    served = await site.open()
    ann = await site.session(kind, "ann")
    assert (await ann.post("{}", **{"RT-Session": ""})).status == 400
    assert (await ann.post("{}", **{"RT-Session": f"{ann.node}.aaaaaaaaaaaaaaaaaaaaaa"})).status == 410
    assert (await ann.post("{}", **{"RT-Seq": "one"})).status == 400
    assert (await ann.post("\n".join(["{}"] * 66), seq=7)).status == 413
    assert (await ann.post("x" * (site.hub.max_frame + 1), seq=7)).status == 413
    assert (await site.request(served.path("sse"), method="HEAD")).status == 405
    assert (await site.request(served.path("sse"), method="PUT", body=b"x")).status == 405
    assert (await site.request(served.path("poll"), method="POST")).status == 400
    ann.seq = 0
    assert await ann.echo("here") == "here"


async def test_a_request_that_comes_again_is_carried_out_once(site: Site, kind: str) -> None:
    await site.open()
    ann = await site.session(kind, "ann", "log:a")
    id, unit = ann.unit("publish", channel="log:a", data="once")
    ann.seq += 1
    for _ in range(3):
        assert (await ann.post(unit, seq=ann.seq)).status == 204
    await ann.reply(id, "publish")
    assert await ann.echo("here") == "here"
    assert [push["pub"]["data"] for push in ann.pushes] == ["once"]


# -- ends


def _polls(site: Site) -> int:
    """How many polls wait at the hub."""
    sessions: Any = site.hub.engine.web.sessions.values()
    return sum(each.transport._poll is not None for each in sessions)


@pytest.mark.parametrize("rt", [True, False])
async def test_goodbye(site: Site, kind: str, rt: bool) -> None:
    """C3: nobody waits for who has said that it will not come back."""
    await site.open()
    ann = await site.session(kind, "ann", "log:a", rt=rt)
    assert (await ann.bye()).status == 204
    await until(lambda: site.hub.statistics().sessions == 0)
    assert (await ann.closed()).how == "eof"
    assert (await ann.bye()).status == 204


async def test_the_hub_closes_a_client(site: Site, kind: str) -> None:
    await site.open()
    ann = await site.session(kind, "ann")
    await ann.say("what")
    closed = await ann.closed()
    assert closed.code == 3501
    assert "JSON" in closed.reason
    await until(lambda: site.open_connections == 0)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_is_gone(site: Site, kind: str, how: str) -> None:
    """A stream is noticed at once, a poll after the 10 s in which another could come."""
    await site.open()
    ann = await site.session(kind, "ann", "log:a", rt=False)
    down = ann._down if isinstance(ann, PollSession) else ann.stream
    assert down is not None
    if isinstance(ann, PollSession):
        await ann.ask_next()
        await until(lambda: _polls(site))
    if how == "reset":
        down.reset()
    ann.close()
    if kind == "poll":
        # Only once the host has noticed does the time begin.
        await until(lambda: not _polls(site))
        await site.clock.advance(10)
    await until(lambda: site.hub.statistics().sessions == 0)
    assert site.open_connections == 0


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_everybody_is_told_when_to_come_back(site: Site, kind: str, secure: bool) -> None:
    """The hub closes while its host still serves: rt clients and foreign ones, waiting and not."""
    served = await site.open(secure=secure)
    clients = [await site.session(kind, f"user {n}", "log:a", rt=n % 2 == 0) for n in range(6)]
    if kind == "poll":
        for client in clients[::3]:
            assert isinstance(client, PollSession)
            await client.ask_next()
        await until(lambda: _polls(site) == 2)
    closing = asyncio.create_task(site.hub.drain())
    for n, client in enumerate(clients):
        closed = await client.closed()
        assert (closed.code, closed.reason) == (3001, "draining")
        # Who does not wait may have something to fetch first, and then hears the code alone.
        if kind == "sse" or n % 3 == 0:
            assert (client.come_back is not None) is (n % 2 == 0)
    async with asyncio.timeout(PATIENCE):
        await closing
    assert site.hub.running, "it has drained, no more"
    ready = await site.request(served.path("ready"))
    assert (ready.status, ready.headers["retry-after"]) == (503, "1")
    with pytest.raises(Refusal) as refused:
        await site.session(kind, "late")
    assert refused.value.response.status == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1
    await site.hub.aclose()


async def test_the_host_stops_with_clients_connected(site: Site, kind: str) -> None:
    """Nothing hangs. Most close the hub first; uvicorn without a signal, and hypercorn, cut off what is open."""
    await site.open()
    clients = [await site.session(kind, f"user {n}", "log:a") for n in range(3)]
    for client in clients:
        if isinstance(client, PollSession):
            await client.ask_next()
    stopping = asyncio.create_task(site.shut())
    ends = asyncio.gather(*(client.closed() for client in clients), return_exceptions=True)
    await site.ends_within(5 + 5, stopping, real=0.3)
    for end in await ends:
        if site.host.can.last_words == 3001:
            assert not isinstance(end, BaseException)
            assert (end.code, end.reason) == (3001, "draining")
    assert not site.hub.running


async def test_a_hub_lives_again(site: Site, kind: str) -> None:
    """API 10: closed under a host that still serves, it starts with the next client."""
    await site.open()
    ann = await site.session(kind, "ann", "log:a")
    closing = asyncio.create_task(site.hub.aclose())
    assert (await ann.closed()).code == 3001
    await closing
    bob = await site.session(kind, "bob", "log:a")
    await site.hub.room("log:a").publish("again")
    assert await bob.data("log:a", 1) == ["again"]


# -- slow readers


def _held(site: Site) -> int:
    """Bytes that rtkit and its host hold for those who have not read yet."""
    connections = site.hub.engine.connections
    return sum(each.outbox.size + each.transport.buffered for each in connections) + site.served.buffered


async def _flood(site: Site, room: str, count: int, reader: Any) -> int:
    """Publish while one member reads all of it, ten at a time; the most that was held meanwhile."""
    most = 0
    for n in range(0, count, 10):
        for k in range(n, n + 10):
            await site.hub.room(room).publish({"n": k, "fill": "x" * SIZE})
        assert [each["n"] for each in await reader.data(room, 10)] == list(range(n, n + 10))
        most = max(most, _held(site))
    return most


async def test_a_room_with_history_waits_for_a_slow_reader(site: Site, kind: str) -> None:
    """D1, D3: others get everything at once, memory is bounded, and the slow one misses nothing."""
    await site.open()
    slow = await site.session(kind, "slow", "log:a", receive_buffer=4096)
    fast = await site.client("fast", "log:a")
    assert 4 * SIZE < await _flood(site, "log:a", 600, fast) < BOUND
    for n in range(600):
        pub = await slow.push("log:a")
        assert (pub["data"]["n"], pub["offset"]) == (n, n + 1)
    await site.hub.room("log:a").publish("live again")
    assert (await slow.push("log:a"))["data"] == "live again"
    assert await slow.echo("here") == "here"


async def test_a_room_without_history_goes_on_without_a_slow_reader(site: Site, kind: str) -> None:
    """H6: the oldest are dropped, what arrives is in order, and the last is there."""
    await site.open()
    slow = await site.session(kind, "slow", "now:a", receive_buffer=4096)
    fast = await site.client("fast", "now:a")
    assert await _flood(site, "now:a", 600, fast) < BOUND
    heard: list[int] = []
    while not heard or heard[-1] != 599:
        heard.append((await slow.push("now:a"))["data"]["n"])
    assert heard == sorted(set(heard))
    assert 4 < len(heard) < 600
    assert await slow.echo("here") == "here"


async def test_who_never_reads_again_is_dropped(site: Site) -> None:
    """F4: it answers no ping. Our own server drops the connection; uvicorn goes on trying to flush it."""
    await site.open()
    slow = await site.session("sse", "slow", "log:a", receive_buffer=4096, rt=False)
    for n in range(400):
        await site.hub.room("log:a").publish({"n": n, "fill": "x" * SIZE})
        await asyncio.sleep(0)
    assert _held(site) > 4 * SIZE
    await site.clock.advance(25 + 10)
    await site.clock.advance(5)
    await until(lambda: site.open_connections == 0)
    assert site.hub.statistics().sessions == 0
    slow.close()


# -- crowds


def _tasks_of_ours() -> int:
    """Tasks that run our code, or somebody else's with ours in it, but for those a server has for each request."""
    return sum(str(each.get_coro().cr_code.co_filename).startswith(_PACKAGE) for each in tasks())  # type: ignore[union-attr]


async def _first(site: Site, kind: str) -> Peer:
    """A member over a WebSocket, where a session over HTTP has been: from then on the hub keeps its lease up."""
    first = await site.client("first", "log:a")
    early = await site.session(kind, "early")
    await early.leave()
    if kind == "poll":
        await site.clock.advance(10)  # its goodbye might have been fetched
    await until(lambda: site.open_connections == 1 == len(site.served.transports()))
    return first


async def test_a_crowd(site: Site, kind: str) -> None:
    """All get all messages in order, until half of them are gone without a word; then the rest says goodbye."""
    await site.open()
    first = await _first(site, kind)
    before, running = site.hub.statistics(), _tasks_of_ours()
    # Each comes by several requests, which take other servers several times as long as ours.
    size = 100 if site.host.can.ours else 30
    crowd = [await site.session(kind, f"user {n % 20}", "log:a", "now:a", rt=False) for n in range(size)]
    now = site.hub.statistics()
    assert (now.sessions, now.rooms, now.users) == (size + 1, 2, 21)

    async def hear(peer: Any, numbers: range) -> None:
        assert await peer.data("log:a", len(numbers)) == list(numbers)

    for n in range(10):
        await site.hub.room("log:a").publish(n)
    await asyncio.gather(*(hear(peer, range(10)) for peer in [first, *crowd]))
    gone = random.Random(7).sample(crowd, size // 2)
    left = [peer for peer in crowd if peer not in gone]
    for peer in gone:
        peer.close()
    for n in range(10, 20):
        await site.hub.room("log:a").publish(n)
    await asyncio.gather(*(hear(peer, range(10, 20)) for peer in [first, *left]))
    if kind == "sse":
        await until(lambda: site.hub.statistics().sessions == len(left) + 1)
    assert all([await peer.echo(n) == n for n, peer in enumerate(left[:10])])
    for peer in left:
        assert (await peer.bye()).status == 204
        peer.close()
    if kind == "poll":
        await site.clock.advance(10)
    await until(lambda: replace(site.hub.statistics(), totals=None) == replace(before, totals=None))
    await until(lambda: len(site.served.transports()) == 1)
    await until(lambda: _tasks_of_ours() == running)
    assert await first.echo("here") == "here"


async def test_an_idle_crowd_costs_no_task(site: Site, kind: str) -> None:
    """C5: none of ours. Other servers have one or two of their own per connection or request; ours has none."""
    await site.open()
    first = await _first(site, kind)
    running, all_running = _tasks_of_ours(), len(tasks())
    crowd = [await site.session(kind, f"user {n}", "log:a") for n in range(20)]
    for each in crowd:
        if isinstance(each, PollSession):
            await each.ask_next()
    await first.echo("here")
    await until(lambda: _tasks_of_ours() == running)
    if site.host.can.ours:
        await until(lambda: len(tasks()) == all_running)


async def test_everybody_comes_and_goes_at_once(site: Site, kind: str) -> None:
    """Requests side by side, each cut off at another place."""
    served = await site.open()
    chance = random.Random(3)

    async def visit(n: int) -> None:
        sock = await site.socket()
        body = b'{"id":1,"connect":{"token":"ann"}}'
        head = (
            f"POST {served.path(kind)} HTTP/1.1\r\nHost: test.example\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        said = head.encode() + body
        await sock.send(said[: chance.randrange(len(said) + 1)])
        await asyncio.sleep(0)
        if n % 3 == 0:
            sock.reset()
        elif n % 3 == 1:
            sock.close()
        else:
            sock.send_eof()

    for _ in range(4):
        await asyncio.gather(*(visit(n) for n in range(60)))
        await until(lambda: not served.transports())
        await site.clock.advance(10)
        await until(lambda: not site.open_connections)
