"""Heartbeats and close codes, the hub and the Python SDK together: real both, in-memory links, time moved by hand.

Every close code of the table in ``docs/reference/protocol.md`` that can occur is brought about by what the table says
brings it about, and the SDK then does what the code's band says (F3, F4, F5, C2). Those that cannot occur yet are in
`LATER`; a test fails when one of them begins to be sent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject, codes
from rtkit.brokers import MemoryBroker
from rtkit.client import Client, RoomClient, State, WireClosed
from rtkit.errors import ConnectionClosed
from rtkit.primitives import Heartbeat, Rate
from rtkit.primitives.clocks import sleep
from rtkit.testing import TestHub
from rtkit.testing.links import Link
from tests.docs.blocks import table
from tests.support.rawclient import RawClient

PAGE = "docs/reference/protocol.md"
SOURCES = Path(__file__).parents[2] / "src" / "rtkit"

#: Close codes that nothing sends yet, by their names in `rtkit.codes`.
LATER = {
    "LIMIT_REACHED": "needs limits per user and per address (F1)",
    "RATE_LIMIT_ABUSED": "needs limits per user and per address (F1)",
}
#: Where such a name may stand all the same: its definition, and what has nothing to do with a hub.
ELSEWHERE = ("codes.py", "client/", "browser/", "primitives/attach.py", "primitives/_")


class Scene:
    """A hub with a bit of everything, and one user of the SDK.

    :ivar authenticate: what the application does; a scenario may set another.
    """

    def __init__(self, **limits: Any) -> None:
        self.hub: Hub[Any] = Hub(
            authenticate=self._authenticate, broker=MemoryBroker(), limits=Limits(**limits)
        )
        self.authenticate: Callable[[Credentials], Awaitable[Identity[Any]]] = by_token
        self.start: Callable[[], Awaitable[None]] | None = None
        self.t = TestHub(self.hub)
        self.clock = self.t.clock
        self.gate = asyncio.Event()
        self.client: Client
        self.room: RoomClient[Any] | None = None
        self.said = 0
        grant = Grant("publish", "history")
        self.hub.rooms("kept", publishes=object, grant=grant, history=History(1000, ttl=6000))
        self.hub.rooms("frail", publishes=object, grant=grant, overflow="close")
        self.hub.rooms(
            "mine",
            publishes=object,
            grant=grant,
            history=History(1000, ttl=6000),
            auto_join=lambda identity: ["mine"] if identity.user == "foreign" else [],
        )

        @self.hub.rpc(int, name="close")
        async def close(ctx: Context[Any, Any], code: int) -> None:
            await ctx.session.close(code=code)

        @self.hub.rpc(int, name="wait")
        async def wait(ctx: Context[Any, Any], seconds: int) -> int:
            await sleep(self.clock, seconds)
            return seconds

        @self.hub.on_session_start
        async def started(ctx: Context[Any, Any]) -> None:
            if self.start is not None:
                await self.start()

    async def _authenticate(self, credentials: Credentials) -> Identity[Any]:
        return await self.authenticate(credentials)

    async def __aenter__(self) -> Scene:
        await self.t.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        # Handlers that still run get their time, which somebody has to let pass.
        leaving = asyncio.ensure_future(self.t.__aexit__(*error))
        for _ in range(100):
            await self.t.settle()
            if leaving.done():
                break
            await self.clock.advance(1)
        await leaving

    async def call_on(self, token: Any = "ann", **options: Any) -> Client:
        """Begin to connect; whether that works is the scenario's affair."""
        self.client = await self.t.connect(token=token, wait=False, **options)
        await self.t.settle()
        return self.client

    async def come_in(self, token: Any = "ann", **options: Any) -> Client:
        """Connect, and join a room with history."""
        client = await self.call_on(token, **options)
        assert client.state == "connected"
        self.room = await client.join("kept")
        return client

    @property
    def links(self) -> list[Link]:
        return self.t._dialers[self.client].links

    @property
    def link(self) -> Link:
        return self.links[-1]

    async def inject(self, *frames: bytes) -> None:
        """Have the hub hear something that no SDK would say."""
        for frame in frames:
            try:
                await self.link.send(frame)
            except WireClosed:
                return

    async def say(self) -> int:
        self.said += 1
        await self.hub.publish("kept", self.said)
        return self.said

    async def heard(self) -> list[Any]:
        """What came in the room since the last time."""
        assert self.room is not None
        await self.t.settle()
        found = []
        while self.room.statistics().queued:
            found.append((await self.t.next(self.room)).data)
        return found

    @property
    def totals(self) -> Any:
        totals = self.hub.statistics().totals
        assert totals is not None
        return totals


async def by_token(credentials: Credentials) -> Identity[Any]:
    return Identity(credentials.token or "nobody")


# -- the table ----------------------------------------------------------------------------------------

Play = Callable[[Scene], AsyncIterator[None]]


@dataclass
class Scenario:
    """How a close code comes about.

    *play* brings it about, yields, and then takes away what would bring it about again.
    """

    code: int
    play: Play
    reason: str
    window: tuple[float, float]
    limits: dict[str, Any] = field(default_factory=dict)


SCENARIOS: list[Scenario] = []


def closes(
    code: int, reason: str | None = None, *, window: tuple[float, float] = (0.5, 1.0), **limits: Any
) -> Callable[[Play], Play]:
    """The decorated scenario ends in this close.

    :param reason: its words, unless they are the table's.
    :param window: when the SDK comes back, in seconds; unless the server names one, the first back-off.
    """

    def decorate(play: Play) -> Play:
        words = reason if reason is not None else codes.describe_close(code)
        SCENARIOS.append(Scenario(code, play, words, window, limits))
        return play

    return decorate


@closes(3000)
async def the_application_closes_with_a_code_of_its_own(scene: Scene) -> AsyncIterator[None]:
    client = await scene.come_in()
    calling = scene.t.spawn(lambda: client.call(3000, name="close"))
    await scene.t.settle()
    yield
    calling.cancel()  # it is kept, and would be sent again (H7)
    await scene.t.settle()


@closes(3001, window=(0.0, 1.0))
async def the_hub_closes(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    closing = scene.t.spawn(scene.hub.aclose)
    await scene.t.settle()
    yield
    await closing
    await scene.hub.start()


@closes(4000)
async def a_second_tab_shows_the_same_token(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    (session,) = scene.hub.engine.sessions.values()
    token = await scene.hub.engine.parking.token(session)
    tab = RawClient(scene.hub, scene.clock, rt=True)
    await tab.connect("ann", rt={"v": 1, "resume": token})
    yield
    await tab.leave()


@closes(3004)
async def something_breaks_while_connecting(scene: Scene) -> AsyncIterator[None]:
    async def broken(credentials: Credentials) -> Identity[Any]:
        raise RuntimeError("the database is away")

    scene.authenticate = broken
    await scene.call_on()
    yield
    scene.authenticate = by_token


@closes(3004)
async def a_hook_breaks_while_connecting(scene: Scene) -> AsyncIterator[None]:
    async def broken() -> None:
        raise RuntimeError("the database is away")

    scene.start = broken
    await scene.call_on()
    yield
    scene.start = None


@closes(3004)
async def a_bug_in_the_hub(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()

    async def buggy(*args: Any) -> None:
        raise RuntimeError("a bug")

    with patch("rtkit.hub.connection.handle", buggy):
        await scene.inject(b'{"id":1000,"ping":{}}')
        await scene.t.settle()
    yield


@closes(3005)
async def the_identity_ends_and_is_not_renewed(scene: Scene) -> AsyncIterator[None]:
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise RuntimeError("the login service is away")
        return "ann"

    async def for_a_minute(credentials: Credentials) -> Identity[Any]:
        return Identity("ann", expires_at=scene.clock.time() + 60)

    scene.authenticate = for_a_minute
    await scene.come_in(token)
    await scene.clock.advance(69.9)
    assert scene.client.state == "connected"
    assert asked > 1
    await scene.clock.advance(0.2)
    yield
    asked = 0


@closes(3008, outbox=80_000, max_publication=2_000)
async def the_outbox_is_full(scene: Scene) -> AsyncIterator[None]:
    client = await scene.come_in(network=1024)
    frail = await client.join("frail")
    scene.link.freeze()
    for _ in range(100):
        await scene.hub.publish("frail", "x" * 1_000)
    await scene.t.settle()
    scene.link.thaw()
    await scene.t.settle()
    yield
    assert frail.name == "frail"


@closes(3012)
async def a_ping_is_not_answered(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    scene.link.freeze()
    await scene.clock.advance(35)
    scene.link.thaw()
    await scene.t.settle()
    yield


@closes(3013)
async def too_many_commands(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.inject(*(b'{"id":%d,"ping":{}}' % id for id in range(1_000, 1_300)))
    await scene.t.settle()
    yield


@closes(3013, "too many bytes", inbound=Rate(rate=1_000, burst=5_000))
async def too_many_bytes(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.inject(b'{"id":1000,"ping":{}}' + b" " * 6_000)
    await scene.t.settle()
    yield


@closes(4001, window=(7.0, 10.5))
async def authentication_says_to_come_later(scene: Scene) -> AsyncIterator[None]:
    async def busy(credentials: Credentials) -> Identity[Any]:
        raise Reject("too many logins", code=413, retry_after=7)

    scene.authenticate = busy
    await scene.call_on()
    yield
    scene.authenticate = by_token


@closes(3500)
async def authentication_refuses(scene: Scene) -> AsyncIterator[None]:
    async def nobody(credentials: Credentials) -> Identity[Any]:
        raise Reject("who are you?")

    scene.authenticate = nobody
    await scene.call_on()
    yield
    scene.authenticate = by_token


@closes(3500)
async def authentication_refuses_in_words_of_its_own(scene: Scene) -> AsyncIterator[None]:
    async def nobody(credentials: Credentials) -> Identity[Any]:
        raise Reject("not on Sundays", code=477)

    scene.authenticate = nobody
    await scene.call_on()
    yield
    scene.authenticate = by_token


@closes(3501, "bad request: not JSON")
async def a_unit_that_cannot_be_answered(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.inject(b"nonsense")
    await scene.t.settle()
    yield


@closes(3004, "authentication took too long", auth_timeout=9.0)  # the SDK gives up after 10 s
async def authentication_takes_too_long(scene: Scene) -> AsyncIterator[None]:
    async def slow(credentials: Credentials) -> Identity[Any]:
        await sleep(scene.clock, 60)
        return Identity("ann")

    scene.authenticate = slow
    await scene.call_on()
    await scene.clock.advance(9)
    yield
    scene.authenticate = by_token


@closes(3503)
async def the_user_is_closed(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.hub.user("ann").close()
    await scene.t.settle()
    yield


@closes(3507)
async def a_session_may_not_start(scene: Scene) -> AsyncIterator[None]:
    async def refuse() -> None:
        raise Reject("banned", code=466)

    scene.start = refuse
    await scene.call_on()
    yield
    scene.start = None


@closes(4501)
async def the_user_is_revoked(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.hub.user("ann").revoke(scene.clock.time() + 60)
    await scene.t.settle()
    yield


@closes(1009)
async def a_message_that_is_too_big(scene: Scene) -> AsyncIterator[None]:
    await scene.come_in()
    await scene.inject(b" " * (scene.hub.limits.max_frame + 1))
    await scene.t.settle()
    yield


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.code} {s.play.__name__}")
async def test_what_closes_and_what_the_sdk_does_then(scenario: Scenario) -> None:
    """Protocol 14, F3: comes back within the window, recovering; or stops, and raises."""
    async with Scene(**scenario.limits) as scene:
        steps = scenario.play(scene)
        await anext(steps)
        assert scene.link._closed == (scenario.code, scenario.reason)
        dialled, client = len(scene.links), scene.client
        assert dialled == 1
        if codes.is_terminal(scenario.code):
            await stays_away(scene, scenario, steps)
            return
        assert client.state == "waiting"
        words = client.statistics().last_failure
        assert "(code " in words
        await anext(steps, None)
        least, most = scenario.window
        missed = await scene.say() if scene.room is not None else None
        await scene.clock.advance(max(0.0, least - 0.001))
        assert len(scene.links) == dialled, "not before the window"
        await scene.clock.advance(most - least + 0.002)
        assert client.state == "connected"
        assert len(scene.links) == dialled + 1
        assert client.statistics().connects == 2 - (scene.room is None)
        if scene.room is not None:
            assert (await scene.heard())[-1] == missed, "and recovers what it missed"


async def stays_away(scene: Scene, scenario: Scenario, steps: AsyncIterator[None]) -> None:
    client = scene.client
    assert client.state == "closed"
    assert client.close_code == scenario.code
    for attempt in (client.call(1, name="wait"), client.wait_state("connected")):
        with pytest.raises(ConnectionClosed) as caught:
            await attempt
        assert caught.value.code == scenario.code
    if scene.room is not None:
        with pytest.raises(ConnectionClosed) as caught:
            await anext(scene.room)
        assert caught.value.code == scenario.code
    await anext(steps, None)
    await scene.clock.advance(300)
    assert len(scene.links) == 1
    assert scene.hub.statistics().connections == 0


async def test_an_expired_token_is_replaced_at_once() -> None:
    """3005, protocol 3.8, A3: by an SDK that can get another one; who has a fixed one is told, and stops."""
    async with Scene() as scene:

        async def fresh_only(credentials: Credentials) -> Identity[Any]:
            if credentials.token == "stale":
                raise Reject("token expired", code=109)
            return Identity("ann")

        tokens = ["stale", "fresh"]

        async def token() -> str:
            return tokens.pop(0)

        scene.authenticate = fresh_only
        client = await scene.call_on(token)
        assert client.state == "connected"
        assert [link._closed for link in scene.links] == [(3005, "expired"), None]
        fixed = await scene.call_on("stale")
        assert scene.link._closed == (3005, "expired")
        assert fixed.state == "closed"
        assert "token= an async function" in (fixed.close_reason or "")


async def test_a_foreign_client_that_cannot_be_told_otherwise() -> None:
    """3010, H10: in a room that the server put it into; it comes back and recovers. The SDK gets a gap instead."""
    async with Scene() as scene:
        foreign = RawClient(scene.hub, scene.clock)
        await foreign.connect("foreign")
        sdk = await scene.call_on("foreign")
        await scene.hub.publish("mine", 1)
        await scene.hub.room("mine").clear()
        await scene.t.settle()
        assert foreign.closed == (3010, "continuity lost")
        assert not codes.is_terminal(3010)
        assert sdk.state == "connected"


async def test_a_hub_that_closes_says_when_to_come_back() -> None:
    """3001, F3, L1: evenly spread over the window that it names, and not over the SDK's own."""
    async with Scene() as scene:
        crowd = [await scene.t.connect(token=f"u{n}") for n in range(25)]
        closing = scene.t.spawn(scene.hub.aclose)
        await scene.t.settle()
        assert {client.state for client in crowd} == {State.WAITING}
        await closing
        await scene.hub.start()
        back = []
        for _ in range(4):
            await scene.clock.advance(0.25)
            back.append(scene.hub.statistics().sessions)
        assert back[-1] == 25
        assert all(2 <= after - before <= 14 for before, after in itertools.pairwise([0, *back]))


async def test_goodbye() -> None:
    """1000, protocol 12.1: the client closes; the hub ends its session at once."""
    async with Scene() as scene:
        client = await scene.come_in()
        assert scene.hub.statistics().sessions == 1
        await client.aclose()
        assert scene.link._closed == (1000, "bye")
        assert (client.state, client.close_code) == ("closed", 1000)
        assert scene.hub.statistics().sessions == 0


async def test_who_never_says_who_it_is() -> None:
    """3502, A1: after 10 s."""
    async with Scene() as scene:
        silent = RawClient(scene.hub, scene.clock)
        await scene.clock.advance(9.9)
        assert silent.closed is None
        await scene.clock.advance(0.2)
        assert silent.closed == (3502, "not authenticated in time")


@pytest.mark.parametrize("code", [1000, 3000, 3123, 3499, 4000, 4250, 4499, 3500, 3777, 3999, 4500, 4999])
async def test_codes_that_an_application_chooses(code: int) -> None:
    """Protocol 14: the band tells the SDK what to do, whatever the code."""
    async with Scene() as scene:
        client = await scene.come_in()
        (session,) = scene.hub.engine.sessions.values()
        await session.close(code=code)
        await scene.clock.advance(1.0)
        assert scene.links[0]._closed == (code, codes.describe_close(code))
        terminal = 3500 <= code <= 3999 or 4500 <= code <= 4999
        assert (client.state, client.close_code) == (("closed", code) if terminal else ("connected", None))


def test_the_table_is_covered() -> None:
    """Protocol 14: each code that is sent is brought about above; each that is not is in `LATER`."""
    here = {scenario.code for scenario in SCENARIOS} | {3502, 3010, 1000, 3009}
    rows = {int(row["close code"]): row["sent"] for row in table(PAGE, "close code", "words", "sent", "when")}
    assert {code for code, sent in rows.items() if sent == "yes"} == here - {3000, 1000, 1009}
    later = {getattr(codes, name) for name in LATER}
    # 3000 is for applications to send, so that it can be brought about.
    assert {code for code, sent in rows.items() if sent == "reserved"} == later | {3000}
    assert set(rows.values()) == {"yes", "reserved"}


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_sent_yet(name: str) -> None:
    """When this fails, somebody has built it: a scenario is wanted, and the protocol's table says "yes"."""
    users = [
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if name in path.read_text("utf-8").replace(".", " ").replace(",", " ").replace(")", " ").split()
    ]
    assert [path for path in users if not path.startswith(ELSEWHERE)] == [], LATER[name]


# -- half-open connections (F4) -----------------------------------------------------------------------


class HalfOpen:
    """From now on nothing gets through the link, either way, and nobody is told."""

    def __init__(self, link: Link, *, up: bool = True, down: bool = True) -> None:
        self.link = link
        self.closes: list[tuple[int, str]] = []
        self._close = link.close

        async def swallow(frame: bytes) -> None:
            pass

        if up:
            link.send = swallow  # type: ignore[method-assign]
        if down:
            link.write = lambda data: None  # type: ignore[method-assign]
        # A goodbye gets through as little as anything else.
        link.close = lambda code, reason: self.closes.append((code, reason))  # type: ignore[method-assign]

    def bury(self) -> None:
        """The network notices at last."""
        self.link.close = self._close  # type: ignore[method-assign]
        self.link.cut()


@pytest.mark.parametrize("seed", range(10))
async def test_a_half_open_connection_is_gone_on_both_sides(seed: int) -> None:
    """F4: within 35 s of the last that was heard, whatever part of the interval it breaks in."""
    async with Scene() as scene:
        client = await scene.come_in()
        scene.hub.engine.random.seed(seed)
        await scene.clock.advance(random.Random(seed).uniform(0, 60))
        assert client.state == "connected"
        assert scene.hub.statistics().sessions == 1
        broken, since = HalfOpen(scene.link), scene.clock.monotonic()
        scene.t._dialers[client].online = False  # or it would be back
        gone: dict[str, float] = {}
        client.on_state(lambda state: gone.setdefault("client", scene.clock.monotonic() - since))
        while len(gone) < 2 and scene.clock.monotonic() < since + 100:
            await scene.clock.advance(0.1)
            if all(connection.closing for connection in scene.hub.engine.connections):
                gone.setdefault("hub", scene.clock.monotonic() - since)
        assert gone["hub"] <= 35.1
        assert gone["client"] <= 35.1
        assert gone["hub"] > 9.8, "a ping has its 10 s"
        assert gone["client"] > 9.8
        assert broken.closes[0] in ((3012, "no pong"), (3000, "reconnecting"))
        assert (3012, "no pong") in broken.closes
        assert "nothing heard from the server" in client.statistics().last_failure
        assert scene.hub.statistics().rooms == 0
        assert scene.hub.statistics().sessions == 1, "parked"
        await scene.clock.advance(20)
        assert scene.hub.statistics().sessions == 0
        broken.bury()


async def test_a_link_that_is_broken_one_way_is_gone_too() -> None:
    """F4: the hub hears nothing: 3012. The client hears nothing: it comes back by another link."""
    for up in (True, False):
        async with Scene() as scene:
            client = await scene.come_in()
            broken = HalfOpen(scene.link, up=up, down=not up)
            await scene.clock.advance(36.1)
            assert client.statistics().connects == 2 if not up else (3012, "no pong") in broken.closes
            await scene.clock.advance(40)
            assert client.state == "connected"
            assert scene.hub.statistics().sessions == 1
            broken.bury()


async def test_a_live_connection_lives() -> None:
    """F4: for an hour, in which nobody says anything."""
    async with Scene() as scene:
        client = await scene.come_in()
        await scene.clock.advance(3_600)
        assert client.state == "connected"
        assert client.statistics().connects == 1
        assert scene.link.up >= 3_600 / 25 - 1, "a pong for each ping"


async def test_the_first_ping_comes_at_a_random_moment() -> None:
    """F4: a crowd that came back at once is not pinged at once for ever after."""
    async with Scene() as scene:
        crowd = [await scene.t.connect(Identity(f"u{n}")) for n in range(60)]
        links, began = [scene.t.link(client) for client in crowd], scene.clock.monotonic()
        pinged: dict[Link, list[float]] = {link: [] for link in links}
        for link in links:
            watch(link, pinged[link], scene)
        await scene.clock.advance(50)
        firsts = [times[0] - began for times in pinged.values()]
        assert all(0 <= first <= 25 for first in firsts)
        for quarter in range(4):
            assert 5 <= sum(quarter * 6.25 <= first < (quarter + 1) * 6.25 for first in firsts) <= 30
        assert len({round(first, 3) for first in firsts}) > 50
        assert all(times[1] - times[0] == pytest.approx(25) for times in pinged.values())
        assert all(client.state == "connected" for client in crowd)


def watch(link: Link, times: list[float], scene: Scene) -> None:
    """Note when the hub pings."""
    write = link.write

    def noted(data: bytes) -> None:
        times.extend(scene.clock.monotonic() for unit in data.split(b"\n") if unit == b"{}")
        write(data)

    link.write = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("before", [0.0, 9.0, 24.9, 26.0, 34.0, 49.9])
@pytest.mark.parametrize("seconds", [5.0, 12.0, 36.0, 600.0])
async def test_a_loop_that_stood_still_kills_nobody(before: float, seconds: float) -> None:
    """F5: neither the hub its clients nor the SDK its hub; afterwards hearts beat on, and real silence is found."""
    async with Scene() as scene:
        crowd = [await scene.t.connect(Identity(f"u{n}")) for n in range(20)]
        links = [scene.t.link(client) for client in crowd]
        await scene.clock.advance(before)
        scene.clock.stall(seconds)
        await scene.t.settle()
        await scene.clock.advance(120)
        assert [client.state for client in crowd] == [State.CONNECTED] * 20
        assert [client.statistics().connects for client in crowd] == [1] * 20
        assert "heartbeats_lost" not in scene.totals
        broken = HalfOpen(links[0])
        scene.t._dialers[crowd[0]].online = False
        await scene.clock.advance(35.1)
        assert sum(not connection.closing for connection in scene.hub.engine.connections) == 19
        assert crowd[0].state != "connected"
        broken.bury()


async def test_pings_that_came_due_in_a_stall_go_out_when_it_is_over() -> None:
    """F5: clients elsewhere did not stand still, and hear nothing until then. And they do not come into step (F4)."""
    async with Scene() as scene:
        crowd = [await scene.t.connect(Identity(f"u{n}")) for n in range(40)]
        links = [scene.t.link(client) for client in crowd]
        pinged: dict[Link, list[float]] = {link: [] for link in links}
        for link in links:
            watch(link, pinged[link], scene)
        await scene.clock.advance(60)
        phases = {link: times[-1] % 25 for link, times in pinged.items()}
        for stall in (9.0, 9.9, 31.0, 200.0):
            scene.clock.stall(stall)
            await scene.clock.advance(60)
            gaps = [b - a for times in pinged.values() for a, b in itertools.pairwise(times)]
            assert max(gaps) <= 25 + stall
        assert {link: pytest.approx(times[-1] % 25) for link, times in pinged.items()} == phases
        assert [client.statistics().connects for client in crowd] == [1] * 40


async def test_a_stall_while_pongs_are_awaited() -> None:
    """F5: the worst moment: all are pinged, and the answers lie in the kernel when the loop goes on."""
    async with Scene(heartbeat=Heartbeat(interval=25, timeout=10)) as scene:
        crowd = [await scene.t.connect(Identity(f"u{n}")) for n in range(20)]
        links = [scene.t.link(client) for client in crowd]
        for link in links:
            link.freeze()
        await scene.clock.advance(9)
        pinged = sum(link._size > 0 for link in links)
        assert pinged >= 3
        scene.clock.stall(40)
        for link in links:
            link.thaw()
        await scene.clock.advance(60)
        assert [client.statistics().connects for client in crowd] == [1] * 20
        assert scene.totals["stalls"] >= 1


# -- while the hub does not read (C2) --------------------------------------------------------------------


async def flood(scene: Scene, count: int, seconds: int) -> list[asyncio.Task[Any]]:
    """More calls than may wait, each of which takes its time; the hub stops reading."""
    client = await scene.come_in()
    calls = [scene.t.spawn(lambda: client.call(seconds, name="wait")) for _ in range(count)]
    await scene.clock.advance(2)
    assert not scene.link._reading.is_set()
    return calls


async def test_while_the_hub_does_not_read_the_pong_deadline_stands_still() -> None:
    """C2: the client answers, and cannot be heard. It is not closed, and all its commands are carried out."""
    async with Scene(max_pending=8) as scene:
        calls = await flood(scene, 40, 20)
        slow = watched = 0
        for _ in range(90):
            await scene.clock.advance(10)
            slow += not scene.link._reading.is_set()
            watched += 1
        assert slow > watched / 2, "it was paused for most of the time"
        await scene.clock.advance(100)
        assert [task.result() for task in calls] == [20] * 40
        assert scene.client.statistics().connects == 1
        assert scene.client.state == "connected"
        assert "heartbeats_lost" not in scene.totals


async def test_who_goes_silent_meanwhile_is_found_when_the_hub_reads_again() -> None:
    """C2, F4: pings go out meanwhile, and the first has its 10 s from the moment in which an answer can be heard."""
    async with Scene(max_pending=8) as scene:
        silent = RawClient(scene.hub, scene.clock, pongs=False)
        await silent.connect("ann")
        silent.tell(*({"id": id, "rpc": {"method": "wait", "data": 20}} for id in range(10, 20)))
        await silent.settle()
        assert silent.pipe.paused
        while silent.pipe.paused:
            await scene.clock.advance(0.1)
            await silent.settle()
        assert silent.pings >= 3
        await scene.clock.advance(9.8)
        assert silent.closed is None
        await scene.clock.advance(0.4)
        assert silent.closed == (3012, "no pong")
