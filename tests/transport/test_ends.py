"""Heartbeats, and the many ways in which a connection ends, on real sockets (F4, C3, L1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtkit import Context, Credentials, Hub, Identity, Message, Reject, codes
from rtkit.client import Client, Policy, connect
from rtkit.errors import ConnectionClosed
from rtkit.primitives import Rate
from rtkit.testing.clock import ManualClock
from tests.support.hosts import ADAPTERS, HOSTS, Host
from tests.support.rawsocket import CLOSE, Closed, close_payload, frame
from tests.transport.conftest import Site, until


@pytest.fixture(params=ADAPTERS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each adapter in turn."""
    found: Host = request.param
    return found


# -- heartbeats


async def test_the_server_pings_and_a_pong_keeps_the_connection(site: Site) -> None:
    """F4: every 25 s, the first at a random moment within that."""
    await site.open()
    ann = await site.client("ann", "log:a")
    await site.until_pinged(ann)
    for count in range(2, 5):
        await ann.say("{}")
        await site.clock.advance(25)
        assert await ann.next_unit() == {}
        assert ann.pings == count
    await ann.say("{}")
    assert await ann.echo("here") == "here"
    assert ann.pings == 4


async def test_anything_heard_is_an_answer_to_a_ping(site: Site) -> None:
    """4.2."""
    await site.open()
    ann = await site.client("ann")
    await site.until_pinged(ann)
    assert await ann.echo("busy") == "busy"
    await site.clock.advance(10)
    assert await ann.echo("here") == "here"


async def test_without_a_pong_the_connection_is_closed(site: Site) -> None:
    """F4: silence is death 10 s after the ping; others live on."""
    await site.open()
    ann, bob = await site.client("ann", "log:a"), await site.client("bob", "log:a")
    await site.until_pinged(ann, bob)
    # Should bob be pinged meanwhile, he has 10 s from then.
    await site.clock.advance(10)
    assert await ann.closed() == Closed(codes.NO_PONG, "no pong")
    assert await bob.echo("here") == "here"
    await until(lambda: site.open_connections == 1)
    assert site.hub.statistics().sessions == 1


async def test_a_dead_network_is_noticed_by_the_heartbeat(site: Site) -> None:
    """Nobody answers the close frame either: the hub is rid of the client all the same."""
    await site.open()
    await site.client("ann", "log:a")
    await site.clock.advance(25 + 10)
    assert site.hub.statistics().sessions == 0
    assert site.hub.statistics().rooms == 0
    await site.clock.advance(5)  # the time to answer a close frame
    assert site.open_connections == 0


async def test_pings_go_out_while_the_client_talks(site: Site) -> None:
    """A client's own watch relies on hearing them."""
    await site.open()
    ann = await site.client("ann")
    for _ in range(5):
        await site.clock.advance(5)
        assert await ann.echo("talk") == "talk"
    assert ann.pings == 1


async def test_who_does_not_say_who_it_is_is_closed(site: Site) -> None:
    """A1: 10 s."""
    await site.open()
    peer = await site.peer()
    await site.clock.advance(9.9)
    assert site.open_connections == 1
    await site.clock.advance(0.2)
    assert await peer.closed() == Closed(codes.STALE, "not authenticated in time")


async def test_pings_of_the_protocol_below_do_not_authenticate(site: Site) -> None:
    """A1: neither they nor unfinished messages put the deadline off."""
    await site.open()
    peer = await site.peer()
    await peer.send(frame('{"id":1,', fin=False))
    for _ in range(10):
        await site.clock.advance(1)
        await peer.send(frame(b"", 9))
    assert (await peer.closed()).code == codes.STALE


# -- the peer ends it


def _close(payload: bytes = b"") -> bytes:
    return frame(payload, CLOSE)


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", 1005),
        (close_payload(1000), 1000),
        (close_payload(1001, "tab closed"), 1001),
        (close_payload(4123, "é" * 61), 4123),
    ],
    ids=["without a code", "1000", "1001", "4123"],
)
async def test_a_peer_that_closes(site: Site, payload: bytes, answer: int) -> None:
    """The close is answered with the same code (RFC 6455, 5.5.1), the TCP connection ended, nothing is left."""
    ended: list[str] = []
    site.hub.on_session_end(_into(ended))
    await site.open()
    ann = await site.client("ann", "log:a", "now:a")
    bob = await site.client("bob", "log:a")
    await ann.send(_close(payload))
    closed = await ann.closed(answer=False)
    assert (closed.code, closed.how) == (answer, "eof")
    await until(lambda: site.open_connections == 1)
    await until(lambda: ended)
    assert site.hub.statistics().rooms == 1
    assert await bob.echo("here") == "here"


def _into(reasons: list[str]) -> Any:
    async def session_ended(ctx: Context[Any, Any], reason: str) -> None:
        reasons.append(f"{ctx.user}: {reason}")

    return session_ended


async def test_the_reason_of_the_peer_is_told_to_the_application(site: Site) -> None:
    ended: list[str] = []
    site.hub.on_session_end(_into(ended))
    await site.open()
    ann = await site.client("ann")
    await ann.leave(1001, "tab closed")
    await until(lambda: ended)
    assert ended == ["ann: tab closed"]


@pytest.mark.parametrize("last", [b"", b"\x81", b"\x81\xfe\xff", frame('{"id":', fin=False)], ids=repr)
@pytest.mark.parametrize("how", ["reset", "eof", "closed"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_peer_that_is_gone(site: Site, how: str, last: bytes, secure: bool) -> None:
    """Without a close frame, between frames or in one: nothing is left, and no clock had to move."""
    ended: list[str] = []
    site.hub.on_session_end(_into(ended))
    await site.open(secure=secure)
    ann = await site.client("ann", "log:a", "now:a")
    if last:
        await ann.send(last)
        await site.clock.settle()
    if how == "reset":
        ann.reset()
    elif how == "eof":
        ann.send_eof()
    else:
        ann.close()
    await until(lambda: site.open_connections == 0)
    await until(lambda: ended)
    now = site.hub.statistics()
    assert (now.sessions, now.rooms, now.users, now.deadlines) == (0, 0, 0, 0)
    assert now.totals is not None
    assert now.totals["closes{lost}"] == 1


async def test_a_half_closed_connection_is_ended_by_the_server(site: Site) -> None:
    """Who closes its half says that nothing more will come: the server does not keep the other half open."""
    await site.open()
    ann = await site.client("ann")
    ann.send_eof()
    assert (await ann.closed(answer=False)).how == "eof"


async def test_a_reset_with_commands_on_the_way(site: Site) -> None:
    """What came before the end is carried out or not, but the hub is whole (L3)."""
    await site.open()
    bob = await site.client("bob", "log:a")
    for n in range(20):
        ann = await site.client("ann", "log:a")
        await ann.say(ann.unit("publish", channel="log:a", data=n)[1])
        await ann.ask("subscribe", channel="now:a")
        ann.reset()
    await until(lambda: site.open_connections == 1)
    assert await bob.echo("here") == "here"
    assert site.hub.statistics().rooms == 1


async def test_data_after_the_close_frame_is_not_looked_at(site: Site) -> None:
    """RFC 6455, 5.5.1."""
    await site.open()
    ann, bob = await site.client("ann"), await site.client("bob", "log:a")
    _, unit = ann.unit("publish", channel="log:a", data="too late")
    await ann.send(_close(close_payload(1000)) + frame(unit) + b"\xff" * 100)
    closed = await ann.closed(answer=False)
    assert closed.code == 1000
    await until(lambda: site.open_connections == 1)
    await bob.call("publish", channel="log:a", data="in time")
    assert await bob.data("log:a", 1) == ["in time"] or bob.pushes[0]["pub"]["data"] == "in time"


async def test_half_a_frame_behind_the_close_frame(site: Site) -> None:
    await site.open()
    ann = await site.client("ann")
    await ann.send(_close(close_payload(1000)) + b"\x81\xfe")
    assert (await ann.closed(answer=False)).code == 1000


# -- the server ends it

_OF_THE_HUB = sorted(
    {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)}
    & set(range(3000, 5000))
)


@pytest.mark.parametrize(("rt", "secure"), [(True, False), (False, True)], ids=["rt", "foreign, over TLS"])
async def test_every_code_reaches_the_client_with_its_words(site: Site, rt: bool, secure: bool) -> None:
    """What a client does depends on the code; the reason is words, which no client can take for JSON."""
    await site.open(secure=secure)
    assert len(_OF_THE_HUB) > 15
    # Some of each band will do where the server is not ours, nor what most people use.
    of_the_hub = _OF_THE_HUB if site.host in HOSTS else _OF_THE_HUB[::6]
    for code in (1000, *of_the_hub, 4400, 4999):
        ann = await site.client("ann", "log:a", rt=rt)
        await site.hub.user("ann").close(code=code)
        closed = await ann.closed()
        assert closed == Closed(code, codes.describe_close(code))
        with pytest.raises(ValueError):
            json.loads(closed.reason)
        await until(lambda: site.open_connections == 0)


async def test_a_reason_that_is_too_long_is_cut_between_characters(site: Site) -> None:
    """RFC 6455, 5.5: a control frame has 125 bytes."""
    await site.open()
    ann = await site.client("ann")
    await site.hub.user("ann").close(code=3503, reason="€" * 100)
    assert await ann.closed() == Closed(3503, "€" * 41)


async def test_what_was_said_before_the_close_arrives(site: Site) -> None:
    await site.open()
    ann = await site.client("ann", "log:a")
    await site.hub.room("log:a").publish("last words")
    await site.hub.user("ann").close(code=3000)
    assert await ann.data("log:a", 1) == ["last words"]
    assert (await ann.closed()).code == 3000


async def test_a_close_arrives_although_the_client_keeps_talking(site: Site) -> None:
    """Bytes that nobody reads make the kernel reset a connection, and the close frame may be lost with it."""
    await site.open()
    ann = await site.client("ann")
    await ann.ask("connect", token="again")
    for _ in range(200):
        await ann.ask("rpc", method="echo", data="x" * 500)
    closed = await ann.closed()
    assert (closed.code, closed.how) == (3501, "eof")


async def test_who_does_not_answer_the_close_frame(site: Site) -> None:
    """Our own server drops it after 4 s; under others the hub gives it up, and they drop it when they see fit."""
    await site.open()
    ann = await site.client("ann", "log:a")
    await site.hub.user("ann").close(code=3000)
    assert (await ann.frame()).opcode == CLOSE
    assert site.hub.statistics().sessions == 0
    if site.host.can.ours:
        await site.clock.advance(3.9)
        assert site.open_connections == 1
        await site.clock.advance(0.2)
        assert await ann.rest() == b""
    else:
        await site.clock.advance(10)
    await until(lambda: site.open_connections == 0)


async def _choosy(credentials: Credentials) -> Identity[None]:
    match credentials.token:
        case "expired":
            raise Reject("too old", code=codes.TOKEN_EXPIRED)
        case "later":
            raise Reject("not now", retry_after=3)
        case "bad":
            raise Reject("no")
        case "broken":
            raise RuntimeError("the database is away")
        case "mayfly":
            return Identity("mayfly", None, expires_at=1_700_000_060.0)
        case token:
            return Identity(token or "nobody")


async def _not_you(ctx: Context[Any, Any]) -> None:
    if ctx.user == "unwelcome":
        raise Reject("not you")


def _connect(token: str, id: int = 1) -> str:
    return json.dumps({"id": id, "connect": {"token": token}})


#: Before the next message there is an answer: till then a client may send less (A1).
_LET_IN = "let in"

_CLOSED_FOR: dict[str, tuple[list[str], Closed]] = {
    "an expired token": ([_connect("expired")], Closed(3005, "expired")),
    "an application that is busy": ([_connect("later")], Closed(4001, "try again later")),
    "a bad token": ([_connect("bad")], Closed(3500, "bad token")),
    "an application that breaks": ([_connect("broken")], Closed(3004, "internal error")),
    "who it is": ([_connect("unwelcome")], Closed(3507, "not permitted")),
    "no JSON": (["what"], Closed(3501, "bad request: not JSON")),
    "nothing": ([""], Closed(3501, "bad request: not JSON")),
    "another command first": (
        ['{"id":1,"rpc":{"method":"echo"}}'],
        Closed(3501, "bad request: the first command must be connect"),
    ),
    "connecting twice": (
        [_connect("a"), _connect("a", 2)],
        Closed(3501, "bad request: connected already"),
    ),
    "too many commands": (
        [_connect("a"), *['{"rpc":{"method":"echo"}}'] * 30],
        Closed(3013, "too many requests"),
    ),
    "too many bytes": (
        [
            _connect("a"),
            _LET_IN,
            *[json.dumps({"id": 2, "rpc": {"method": "fail", "data": "x" * 40_000}})] * 2,
        ],
        Closed(3013, "too many bytes"),
    ),
    "too large a message": ([_connect("a"), " " * (48 * 1024 + 1)], Closed(1009, "message too big")),
}


@pytest.mark.parametrize("why", _CLOSED_FOR)
async def test_what_a_client_is_closed_for(site: Site, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """Section 14 of the protocol, end to end: a documented code, plain words, and no trace left (W3)."""
    site.build(
        authenticate=_choosy,
        commands=Rate(rate=1, burst=10),
        inbound=Rate(rate=1, burst=64 * 1024),
        max_frame=48 * 1024,
    )
    site.hub.on_session_start(_not_you)
    await site.open()
    said, expected = _CLOSED_FOR[why]
    peer = await site.peer()
    for message in said:
        if message is _LET_IN:
            await peer.next_unit()
        else:
            await peer.say(message)
    closed = await peer.closed()
    assert (closed.code, closed.how) == (expected.code, "eof")
    assert closed.reason.startswith(expected.reason)
    with pytest.raises(ValueError):
        json.loads(closed.reason)
    await until(lambda: site.open_connections == 0)
    if why == "an application that breaks":
        caplog.clear()


async def test_an_identity_that_expires(site: Site) -> None:
    """A3: 10 s after its end."""
    site.build(authenticate=_choosy, heartbeat=None)
    await site.open()
    ann = await site.client("mayfly")
    await site.clock.advance(69)
    assert site.open_connections == 1
    await site.clock.advance(2)
    assert await ann.closed() == Closed(3005, "expired")


async def test_a_revoked_user(site: Site) -> None:
    """A4: closed at once, and not let in again."""
    await site.open()
    ann, bob = await site.client("ann", "log:a"), await site.client("bob", "log:a")
    await site.hub.user("ann").revoke(site.clock.time() + 60)
    assert await ann.closed() == Closed(4501, "revoked")
    again = await site.peer()
    await again.ask("connect", token="ann")
    assert (await again.closed()).code in (codes.BAD_TOKEN, codes.REVOKED)
    assert await bob.echo("here") == "here"


# -- what the Python client makes of it

_SOON = Policy(min_delay=0.001, max_delay=0.002, stable=60)


async def _connected(client: Client, times: int) -> None:
    await until(lambda: client.statistics().connects == times and client.state == "connected")


@pytest.mark.parametrize("code", [3000, 3004, 3008, 3012, 4000, 4499])
async def test_the_client_comes_back_after(site: Site, code: int) -> None:
    """The band of the code says so."""
    served = await site.open()
    async with connect(served.url, token="ann", policy=_SOON) as client, client.join("log:a") as room:
        for times in range(1, 4):
            assert client.statistics().connects == times
            await site.hub.user("ann").close(code=code)
            await _connected(client, times + 1)
        await site.hub.room("log:a").publish("still here")
        async for message in room:
            assert isinstance(message, Message)
            assert message.data == "still here"
            break


@pytest.mark.parametrize(
    ("code", "reason"), [(3500, "bad token"), (3503, "enough"), (4501, "revoked"), (4999, "")]
)
async def test_the_client_stays_away_after(site: Site, code: int, reason: str) -> None:
    served = await site.open()
    async with connect(served.url, token="ann", policy=_SOON) as client:
        await site.hub.user("ann").close(code=code, reason=reason)
        await until(lambda: client.state == "closed")
        assert (client.close_code, client.close_reason) == (code, reason)
    assert site.hub.statistics().totals is not None
    assert site.hub.statistics().totals["connections"] == 1  # type: ignore[index]


async def test_the_client_answers_pings(site: Site) -> None:
    served = await site.open()
    async with connect(served.url, token="ann") as client:
        for _ in range(4):
            await site.clock.advance(25)
            await until(lambda: not _unanswered(site.hub))
        assert client.state == "connected"
        assert client.statistics().connects == 1


def _unanswered(hub: Hub[Any]) -> bool:
    return any(c._beat is not None and c._beat.statistics().unanswered for c in hub.engine.connections)


async def test_the_client_leaves_a_server_that_is_silent(site: Site) -> None:
    """F4: 35 s without a word, on its own clock. The hub's stands still, so it sends no pings."""
    served = await site.open()
    clock = ManualClock()
    async with connect(served.url, token="ann", clock=clock, policy=_SOON) as client:
        await clock.advance(34)
        assert client.statistics().connects == 1
        states: list[str] = []
        client.on_state(states.append)
        await clock.advance(1.1)
        await until(lambda: "waiting" in states)
        await clock.advance(1)
        await _connected(client, 2)


async def test_a_client_that_is_refused_says_why(site: Site) -> None:
    served = await site.open()
    client = connect(served.url, token="ann", headers={"Origin": "https://evil.example"}, policy=_SOON)
    with pytest.raises(ConnectionClosed) as closed:
        async with client:
            pass
    assert closed.value.code == codes.NOT_PERMITTED_CLOSE
