"""Authentication that lives as long as the connection (A1 to A4): tokens of an issuer, keys that change, clocks that
are wrong, rooms that ask for a token of their own. Time is the test's own throughout; sockets are real where it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity
from rtkit.client import Client, State, TransportName, connect
from rtkit.clock import Clock, Timer
from rtkit.errors import ConnectionClosed
from rtkit.ext.jwt import JwtAuthentication, KeySet
from rtkit.server import Server
from rtkit.testing import ManualClock
from rtkit.testing.links import MemoryDialer
from rtkit.transports import Handshake
from tests.support.webclient import WebClient
from tests.unit.ext.tokens import Issuer
from tests.unit.hub.conftest import World, errors, no_error_is_logged, world

__all__ = ["errors", "no_error_is_logged", "world"]

HOUR = 3600.0
ALL = Grant("publish", "history")


class Skewed:
    """A clock whose wall shows another time."""

    def __init__(self, clock: ManualClock, off: float) -> None:
        self.clock = clock
        self.off = off

    def monotonic(self) -> float:
        return self.clock.monotonic()

    def boottime(self) -> float:
        return self.clock.boottime()

    def time(self) -> float:
        return self.clock.time() + self.off

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.clock.call_at(when, callback, *args)


class Office:
    """An issuer, and hubs that know it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.issuer = Issuer(world.clock, "k1")
        self.seen: list[Credentials] = []

    def hub(self, *, clock: Clock | None = None, parks: bool = False, **options: Any) -> Hub[Any]:
        clock = clock or self.world.clock
        keys = KeySet(self.issuer.fetch, clock=clock)
        auth = JwtAuthentication(keys, algorithms=["ES256"], clock=clock, **options)

        async def authenticate(credentials: Credentials) -> Identity[Any]:
            self.seen.append(credentials)
            return await auth(credentials)

        hub = self.world.hub(authenticate=authenticate, parks=parks)
        hub.clock = clock
        hub.rooms("log:{x}", publishes=object, grant=ALL, history=History(100, ttl=HOUR))
        rooms = hub.rooms("room:{x}", publishes=object)

        @rooms.authorize
        async def authorize(ctx: Context[Any, Any]) -> Grant:
            return await auth.room_grant(ctx, "publish", "history")

        return hub

    def token(self, user: str = "ann", *, by: str = "k1", ttl: float = 300, **claims: Any) -> str:
        return self.issuer.token(user, by=by, ttl=ttl, **claims)

    def room_token(self, room: str, user: str = "ann", **options: Any) -> str:
        return self.token(user, channel=room, **options)

    @asynccontextmanager
    async def user(self, hub: Hub[Any], token: Any, **options: Any) -> AsyncIterator[Client]:
        """One of the SDK, on an in-memory link."""
        options.setdefault("dialer", MemoryDialer(hub))
        async with connect("ws://test/rt", token=token, clock=self.world.clock, **options) as client:
            yield client

    async def pass_(self, seconds: float, step: float = 1.0) -> None:
        await self.world.advance(seconds, step)


@pytest.fixture
def office(world: World) -> Office:
    return Office(world)


# -- in band, over every transport ------------------------------------------------------------------------


async def until(done: Callable[[], bool]) -> None:
    """Wait for what real sockets bring."""
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - there is nobody to tell
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_a_token_is_renewed_in_band_before_it_ends(office: Office, transport: TransportName) -> None:
    """A3, on real sockets: one connection and one session outlive many tokens."""
    hub, clock = office.hub(), office.world.clock
    server = Server(hub, clock=clock)
    await hub.start()
    await server.start(port=0)
    given: list[float] = []

    async def token() -> str:
        given.append(clock.monotonic())
        return office.token(ttl=60)

    try:
        async with (
            connect(server.url, token=token, transports=[transport], clock=clock) as client,
            client.join("log:a") as room,
        ):
            (session,) = hub.engine.sessions.values()
            (connection,) = hub.engine.connections
            for n in range(1, 4):
                for _ in range(50):
                    await clock.advance(1)
                await until(lambda n=n: len(office.seen) > n)  # type: ignore[misc]
                await hub.publish("log:a", n)
            async with asyncio.timeout(10):
                assert [(await anext(room)).data for _ in range(3)] == [1, 2, 3]
            assert list(hub.engine.connections) == [connection], "never another one"
            assert list(hub.engine.sessions.values()) == [session]
            assert connection.transport.kind == transport
            assert [round(at - given[0]) for at in given] == [0, 50, 100, 150]
            assert [each.previous.user if each.previous else None for each in office.seen] == [
                None,
                *["ann"] * 3,
            ]
    finally:
        await server.aclose()


async def test_a_refresh_cannot_change_the_user(office: Office) -> None:
    """A3: the token function says somebody else; it stays ann's until it ends, and bob begins anew."""
    hub, users = office.hub(parks=True), ["ann", "bob", "bob"]
    await hub.start()

    async def token() -> str:
        return office.token(users.pop(0), ttl=60)

    async with office.user(hub, token) as client:
        (session,) = hub.engine.sessions.values()
        await office.pass_(55)
        assert users == ["bob"]
        assert (session.identity.user, client.client_id) == ("ann", session.id)
        await office.pass_(14)
        assert set(hub.engine.users) == {"ann"}
        await office.pass_(10)
        connected = [
            each.session.identity.user for each in hub.engine.connections if each.session is not None
        ]
        assert connected == ["bob"], "closed when ann's token and the leeway were over, and back"
        assert client.client_id != session.id, "nothing of ann's session is bob's"
        assert session.identity.user == "ann"


# -- keys -------------------------------------------------------------------------------------------------


async def test_keys_change_while_people_are_connected(office: Office) -> None:
    """Nobody is closed because of it; who shows an old one afterwards is told to get a new one."""
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub, rt=True)
    await raw.connect(office.token(by="k1"))
    office.issuer.names = ["k2"]
    await office.pass_(100)
    assert raw.closed is None
    assert (await raw.call("refresh", token=office.token(by="k2")))["ttl"] == 300
    await office.pass_(250)
    error = await raw.refused("refresh", token=office.token(by="k1"))
    assert error == {"code": 109, "message": "token expired: its key is not in use"}
    assert raw.closed is None
    late = office.world.client(hub, rt=True)
    assert (await late.refused("connect", token=office.token(by="k1"), rt={}))["code"] == 109
    assert late.closed == (3005, "expired"), "it may come back"


async def test_the_client_gets_another_token_when_its_key_is_gone(office: Office) -> None:
    """One more question to its token function, and it is in."""
    hub, names = office.hub(), ["k0", "k1"]
    await hub.start()

    async def token() -> str:
        return office.token(by=names.pop(0))

    async with office.user(hub, token) as client:
        assert (client.state, names) == (State.CONNECTED, [])


async def test_an_issuer_that_is_away_is_not_the_users_fault(office: Office) -> None:
    """4001: all come back by themselves once the keys are there."""
    hub = office.hub()
    await hub.start()
    office.issuer.fail = OSError()
    async with office.user(hub, office.token(), wait=False) as client:
        await office.pass_(25)
        assert client.state is not State.CONNECTED
        assert client.state is not State.CLOSED
        assert office.issuer.asked <= 3
        office.issuer.fail = None
        await office.pass_(30)
        assert client.state is State.CONNECTED


# -- offline, asleep, in another time -----------------------------------------------------------------------


async def test_a_token_that_ends_while_its_user_is_offline(office: Office) -> None:
    """Back with the old one, which an application has cached; refused, renewed, and nothing is missing."""
    hub = office.hub(parks=True)
    await hub.start()
    dialer, cached = MemoryDialer(hub), [office.token(ttl=60)]
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        return cached[0] if asked != 3 else office.token()

    async with office.user(hub, token, dialer=dialer) as client, client.join("log:a") as room:
        await hub.publish("log:a", 1)
        assert (await anext(room)).data == 1
        dialer.online = False
        dialer.links[-1].cut()
        await office.pass_(HOUR / 2, 5)
        assert hub.statistics().sessions == 0
        await hub.publish("log:a", 2)
        asked = 1
        dialer.online = True
        await office.pass_(60)
        assert client.state is State.CONNECTED
        assert asked == 3
        assert (await anext(room)).data == 2


@pytest.mark.parametrize("off", [HOUR, -HOUR])
async def test_a_node_whose_clock_is_an_hour_off(office: Office, off: float) -> None:
    """Ahead, it takes short tokens for old ones, and its clients for ones to come back; behind, it believes them for
    an hour too long. It closes nobody at once, and in no case does it fall into a frenzy."""
    right, wrong = office.hub(), office.hub(clock=Skewed(office.world.clock, off))
    await right.start()
    await wrong.start()
    tokens = 0

    async def token() -> str:
        nonlocal tokens
        tokens += 1
        return office.token(ttl=300)

    async with office.user(right, token) as here, office.user(wrong, token, wait=False) as there:
        await office.pass_(600)
        assert here.state is State.CONNECTED
        if off > 0:
            assert there.state in (State.WAITING, State.CONNECTING)
            assert tokens < 120, "with back-off"
        else:
            assert there.state is State.CONNECTED
            assert tokens == 4, "one each to connect; here, two to renew. There they still have an hour"
    raw = office.world.client(wrong, rt=True)
    long = office.token(ttl=2 * HOUR)
    assert (await raw.connect(long))["ttl"] == 2 * HOUR - off


async def test_a_wall_clock_that_jumps_while_people_are_connected(office: Office) -> None:
    """How long an identity holds was found when it was shown; nobody is closed by somebody setting the clock."""
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub, rt=True)
    await raw.connect(office.token(ttl=300))
    office.world.clock.jump_wall(HOUR)
    await office.pass_(299)
    assert raw.closed is None
    office.world.clock.jump_wall(-HOUR)
    assert (await raw.call("refresh", token=office.token(ttl=300)))["ttl"] == 300
    office.world.clock.jump_wall(-HOUR)
    await office.pass_(309)
    assert raw.closed is None
    await office.pass_(2)
    assert raw.closed == (3005, "expired")


# -- rooms that ask for a token of their own ----------------------------------------------------------------


async def test_the_permission_of_a_room_ends_by_itself(office: Office) -> None:
    """A2, A3: told for how long; kept by showing another in time; else out of that room and of no other."""
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub)
    await raw.connect(office.token(ttl=HOUR))
    for room in ("room:a", "room:b"):
        joined = await raw.call("subscribe", channel=room, token=office.room_token(room, ttl=60))
        assert (joined["expires"], joined["ttl"]) == (True, 60)
    await office.pass_(55)
    renewed = await raw.call("sub_refresh", channel="room:a", token=office.room_token("room:a", ttl=90))
    assert renewed == {"expires": True, "ttl": 90}
    await office.pass_(14)
    assert raw.pushes_of("room:b", "unsubscribe") == []
    await office.pass_(2)
    assert raw.pushes_of("room:b", "unsubscribe") == [{"code": 2501, "reason": "token expired"}]
    for room in ("room:a", "room:b"):
        await hub.publish(room, 1)
    await raw.settle()
    assert (raw.data_of("room:a"), raw.data_of("room:b")) == ([1], [])
    assert (await raw.refused("publish", channel="room:b", data=1))["code"] == 103
    assert raw.closed is None
    await raw.call("subscribe", channel="room:b", token=office.room_token("room:b"))


async def test_what_opens_no_room(office: Office) -> None:
    """The token of another room, of another user, of the connection; an old one; and none."""
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub)
    await raw.connect(office.token())

    async def code(token: str) -> tuple[int, str]:
        error = await raw.refused("subscribe", channel="room:a", token=token)
        return error["code"], error["message"]

    bad = (103, "bad token for this room")
    assert await code(office.room_token("room:b")) == bad
    assert await code(office.room_token("room:a", "bob")) == bad
    assert await code(office.token()) == bad
    assert await code(office.room_token("room:a", rights="publish")) == bad
    assert await code("nonsense") == bad
    assert await code("") == (103, "this room needs a token of its own")
    assert await code(office.room_token("room:a", ttl=-1)) == (109, "token expired")
    assert await code(office.room_token("room:a", by="k0")) == (100, "try again later"), (
        "its key may be a new one"
    )


async def test_a_token_may_say_less_than_the_room_gives(office: Office) -> None:
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub)
    await raw.connect(office.token())
    some = office.room_token("room:a", rights=["history", "presence", "anything", 7])
    await raw.call("subscribe", channel="room:a", token=some)
    assert (await raw.refused("publish", channel="room:a", data=1))["code"] == 103
    (session,) = hub.engine.sessions.values()
    assert session.rooms["room:a"].grant.rights == {"history"}, "of what both say"


async def test_a_room_is_left_for_now_when_nobody_can_say_whether_it_is_still_allowed(office: Office) -> None:
    """2501, to come back: not 2000, which would be for good."""
    hub = office.hub()
    await hub.start()
    raw = office.world.client(hub)
    await raw.connect(office.token(ttl=HOUR))
    await raw.call("subscribe", channel="room:a", token=office.room_token("room:a"))
    office.issuer.fail = OSError()
    await office.pass_(20)
    await raw.refused("sub_refresh", channel="room:a", token=office.room_token("room:a", by="k2"))
    assert raw.pushes_of("room:a", "unsubscribe") == [{"code": 2501, "reason": "try again later"}]


# -- taken back -----------------------------------------------------------------------------------------------


async def test_a_revoked_user_is_out_on_every_node_whatever_is_shown(office: Office) -> None:
    """A4: closed where they are, refused where they were not, until it is over."""
    here, there = office.hub(), office.hub()
    await here.start()
    await there.start()
    async with office.user(there, office.token()) as client, office.user(there, office.token("bob")) as bob:
        reached = await here.user("ann").revoke(office.world.clock.time() + 120)
        assert (reached.sessions, reached.complete) == (1, True)
        with pytest.raises(ConnectionClosed) as caught:
            await client.wait_state(State.CONNECTED)
        assert caught.value.code == 4501
        assert bob.state is State.CONNECTED
        for hub in (here, there):
            raw = office.world.client(hub, rt=True)
            assert (await raw.refused("connect", token=office.token(), rt={}))["code"] == 101
            assert raw.close_code == 3500
    await office.pass_(121)
    raw = office.world.client(there, rt=True)
    await raw.connect(office.token())


async def test_a_token_taken_back_by_its_id(office: Office) -> None:
    """The application's own list: the token is refused, the user is not."""
    taken: set[str] = set()

    async def revoked(claims: Any) -> bool:
        return claims.get("jti") in taken

    hub = office.hub(revoked=revoked)
    await hub.start()
    stolen = office.token(jti="1")
    raw = office.world.client(hub, rt=True)
    await raw.connect(stolen)
    taken.add("1")
    assert (await raw.refused("refresh", token=stolen))["code"] == 101
    again = office.world.client(hub, rt=True)
    assert (await again.refused("connect", token=stolen, rt={}))["code"] == 101
    await office.world.client(hub, rt=True).connect(office.token(jti="2"))


# -- cookies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "origins", "user"),
    [
        (None, [], "ann"),
        ("http://test", [], "ann"),
        ("https://friend.example", ["https://friend.example"], "ann"),
        ("https://friend.example", ["*", "https://friend.example"], "ann"),
        ("https://eve.example", ["*"], None),
        ("http://test", ["*"], "ann"),
    ],
)
async def test_a_page_that_only_the_asterisk_lets_in_has_no_cookies(
    office: Office, origin: str | None, origins: list[str], user: str | None
) -> None:
    """T10: as over HTTP, where browsers see to it. Else any page could connect as whoever visits it."""
    hub = office.hub(cookie="__Host-token")
    hub.origins = tuple(origins)
    await hub.start()
    headers = [("host", "test"), ("cookie", f"__Host-token={office.token()}; theme=dark")]
    handshake = Handshake(headers=headers + ([("origin", origin)] if origin else []))
    hub.admit(handshake)
    raw = office.world.client(hub, rt=True, handshake=handshake)
    if user is None:
        assert await raw.refused("connect", rt={}) == {"code": 101, "message": "no token"}
        assert "cookie" not in office.seen[0].headers
    else:
        await raw.connect()
        assert list(hub.engine.users) == [user]


# -- before anybody is known ------------------------------------------------------------------------------------

COMMANDS: dict[str, dict[str, Any]] = {
    "subscribe": {"channel": "log:a"},
    "publish": {"channel": "log:a", "data": 1},
    "history": {"channel": "log:a", "limit": 1},
    "presence": {"channel": "log:a"},
    "unsubscribe": {"channel": "log:a"},
    "rpc": {"method": "x", "data": 1},
    "send": {"data": 1},
    "refresh": {"token": "x"},
    "sub_refresh": {"channel": "log:a", "token": "x"},
    "ping": {},
}


@pytest.mark.parametrize("kind", ["websocket", "sse", "http_stream", "poll"])
async def test_nothing_is_possible_before_authentication(office: Office, kind: Any) -> None:
    """A1: over every transport; the application is not asked either."""
    hub, world = office.hub(), office.world
    await hub.start()
    await hub.publish("log:a", "before")
    for method, body in COMMANDS.items():
        raw = world.client(hub) if kind == "websocket" else WebClient(hub, world.clock, kind=kind)
        id = raw.ask(method, **body)
        await raw.settle()
        assert raw.closed == (3501, "bad request: the first command must be connect")
        assert not raw.answered(id)
    page = await hub.room("log:a").history()
    assert [message.data for message in page.messages] == ["before"]
    assert office.seen == []
    assert hub.statistics().sessions == 0


@pytest.mark.parametrize("kind", ["websocket", "sse", "http_stream", "poll"])
async def test_who_does_not_authenticate_is_closed_after_ten_seconds(office: Office, kind: Any) -> None:
    """A1: also when the application takes its time to look at the token; whose fault it is decides about the code."""
    hub, world = office.hub(), office.world
    await hub.start()
    office.issuer.hold = asyncio.Event()
    raw = world.client(hub) if kind == "websocket" else WebClient(hub, world.clock, kind=kind)
    raw.ask("connect", token=office.token())
    await office.pass_(4.9)
    assert raw.closed is None
    await office.pass_(5.2)
    assert raw.close_code == 4001, "its keys did not come within 5 s"
    if kind == "websocket":
        silent = world.client(hub)
        await office.pass_(9.9)
        assert silent.closed is None
        await office.pass_(0.2)
        assert silent.closed == (3502, "not authenticated in time")
    await world.settle()
    assert hub.statistics().connections == 0
