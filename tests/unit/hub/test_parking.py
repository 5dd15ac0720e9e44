"""C3, C4: a session outlives its connection for a while, and is taken up again, here or on another node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits
from rtkit.brokers import MemoryBackend
from rtkit.errors import BrokerUnavailable
from rtkit.hub import parking, secret
from rtkit.hub.relay import Ask
from tests.support.rawclient import RawClient

from .brokers import FaultyBroker
from .conftest import World


class Diary:
    """What the application was told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def hub(self, world: World, name: str = "", **options: Any) -> Hub[Any]:
        """A hub that writes down who comes and goes."""
        hub = world.hub(parks=True, **options)
        rooms = hub.rooms("room:{r}", publishes=object, history=History(100, ttl=600), grant=Grant("publish"))

        @rooms.on_join
        async def joined(ctx: Context[Any, Any]) -> None:
            self.lines.append(f"{name}{ctx.user} joins{' again' if ctx.resumed else ''}")

        @rooms.on_leave
        async def left(ctx: Context[Any, Any]) -> None:
            self.lines.append(f"{name}{ctx.user} leaves {ctx.room.name}")

        @hub.on_session_start
        async def started(ctx: Context[Any, Any]) -> None:
            self.lines.append(f"{name}{ctx.user} starts{' again' if ctx.resumed else ''}")

        @hub.on_session_end
        async def ended(ctx: Context[Any, Any], reason: str) -> None:
            self.lines.append(f"{name}{ctx.user} ends: {reason}")

        return hub

    def read(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def come(world: World, hub: Hub[Any], user: str = "ann", token: str = "") -> tuple[RawClient, Any]:
    """Connect, perhaps with a resume token; the client, and what it was told."""
    await hub.start()
    client = world.client(hub, rt=True)
    return client, await client.connect(user, rt={"v": 1, "resume": token} if token else {"v": 1})


async def test_a_token_is_offered_with_the_grace(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    _, told = await come(world, hub)
    assert told["rt"]["grace"] == 20
    assert "resumed" not in told["rt"]
    _, other = await come(world, hub)
    assert other["rt"]["resume"] != told["rt"]["resume"]


async def test_back_in_time_nobody_sees_it_leave_or_join(world: World, diary: Diary) -> None:
    """C3: the same client id; no leave; the state is still there; what was missed is recovered from history."""
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    session = hub.engine.sessions[told["client"]]
    session.state["cart"] = 1
    await ann.drop()
    assert hub.statistics().sessions == 1
    assert session.send({}) is False
    await hub.publish("room:a", "while away")
    await world.advance(19.9)
    ann, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"] is True
    assert again["rt"]["resume"] != told["rt"]["resume"]
    joined = await ann.call("subscribe", channel="room:a", recover=True, epoch="", offset=0)
    assert [pub["data"] for pub in joined["publications"]] == ["while away"]
    assert hub.engine.sessions[told["client"]] is session
    assert session.state == {"cart": 1}
    await world.advance(60)
    assert diary.read() == ["ann starts", "ann joins", "ann joins again"]


async def test_too_late_it_has_left_once_and_nothing_remains(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.call("subscribe", channel="room:b")
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    hub.engine.sessions[told["client"]].spawn(forever)
    await ann.drop()
    await world.advance(19.9)
    assert diary.read() == ["ann starts", "ann joins", "ann joins"]
    assert not cancelled.is_set()
    await world.advance(0.2)
    assert sorted(diary.read()) == ["ann ends: connection lost", "ann leaves room:a", "ann leaves room:b"]
    assert cancelled.is_set()
    statistics = hub.statistics()
    assert (statistics.sessions, statistics.users, statistics.rooms) == (0, 0, 0)
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] != told["client"]
    assert "resumed" not in again["rt"]


async def test_a_room_it_does_not_come_back_to_is_left(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.call("subscribe", channel="room:b")
    await ann.drop()
    ann, _ = await come(world, hub, token=told["rt"]["resume"])
    await ann.call("subscribe", channel="room:a")
    diary.read()
    await world.advance(20.1)
    assert diary.read() == ["ann leaves room:b"]
    await world.advance(100)
    assert diary.read() == []


@pytest.mark.parametrize("way", ["bye", "terminal close", "application"])
async def test_a_goodbye_ends_it_at_once(world: World, diary: Diary, way: str) -> None:
    """C3: told from loss."""
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    if way == "bye":
        await ann.leave()
    elif way == "terminal close":
        ann.say(b"\xff")
        ann.say(b'{"connect": {}}')
    else:
        await hub.engine.sessions[told["client"]].close(reason="enough")
    await world.settle()
    assert hub.statistics().sessions == 0
    assert "ann leaves room:a" in diary.read()
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] != told["client"]


async def test_a_close_that_lets_come_back_parks_for_the_window_too(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await hub.engine.sessions[told["client"]].close(code=3000, reason="balance")
    await world.advance(19)
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


async def test_a_parked_session_can_be_closed(world: World, diary: Diary) -> None:
    """A4: by the application, here and from anywhere."""
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.drop()
    await other.user("ann").close(reason="go")
    await world.settle()
    assert diary.read() == ["ann starts", "ann ends: go"]
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] != told["client"]


async def test_without_a_grace_nothing_parks(world: World, diary: Diary) -> None:
    hub = diary.hub(world, limits=Limits(grace=None))
    ann, told = await come(world, hub)
    assert "resume" not in told["rt"]
    await ann.drop()
    assert hub.statistics().sessions == 0


async def test_a_foreign_client_never_parks(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    await hub.start()
    bob = world.client(hub)
    told = await bob.connect("bob")
    assert "rt" not in told
    await bob.drop()
    assert hub.statistics().sessions == 0


# -- tokens -------------------------------------------------------------------------------------------


async def test_somebody_elses_token_is_as_good_as_none(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.drop()
    _, eve = await come(world, hub, "eve", token=told["rt"]["resume"])
    assert eve["client"] != told["client"]
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"], "and hurts nobody"


FORGED = [
    lambda token: token[:-2],
    lambda token: "AAAA" + token[4:],
    lambda token: token + "A",
    lambda token: "é" * 9,
    lambda token: "A" * 5000,
    lambda token: "!",
]


@pytest.mark.parametrize("change", FORGED)
async def test_a_forged_token_makes_a_new_session(world: World, diary: Diary, change: Any) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.drop()
    forged = change(told["rt"]["resume"])
    _, again = await come(world, hub, token=forged)
    assert again["client"] != told["client"]


async def test_a_token_is_good_for_a_day(world: World, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parking.TOKEN_LIFE == 24 * 3600
    monkeypatch.setattr(parking, "TOKEN_LIFE", 60.0)  # for a day, in which much would have to be done
    hub = diary.hub(world)
    _, told = await come(world, hub)
    await world.advance(61)
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] != told["client"]


async def test_an_answer_that_was_lost_costs_nothing(world: World, diary: Diary) -> None:
    """The client comes back with the token before, because it never saw the next one."""
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.drop()
    lost, _ = await come(world, hub, token=told["rt"]["resume"])
    await lost.drop()
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


async def test_a_token_of_two_generations_ago_is_stale(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, first = await come(world, hub)
    await ann.drop()
    ann, second = await come(world, hub, token=first["rt"]["resume"])
    await ann.drop()
    ann, third = await come(world, hub, token=second["rt"]["resume"])
    await ann.drop()
    _, stale = await come(world, hub, token=first["rt"]["resume"])
    assert stale["client"] != first["client"]
    _, good = await come(world, hub, token=third["rt"]["resume"])
    assert good["client"] == first["client"]


# -- two claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_newer_claim_wins_and_the_older_is_told(
    world: World, diary: Diary, elsewhere: bool
) -> None:
    """C4: a second tab with a copy of the token. The first drops it, and both live on, apart."""
    hub = diary.hub(world)
    other = diary.hub(world) if elsewhere else hub
    first, told = await come(world, hub)
    await first.call("subscribe", channel="room:a")
    second, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert first.closed == (4000, "replaced by a newer connection")
    await second.call("subscribe", channel="room:a")
    first, new = await come(world, hub)  # its SDK has dropped the token
    assert new["client"] != told["client"]
    await world.advance(60)
    assert second.closed is None
    assert first.closed is None
    assert [line for line in diary.read() if "leaves" in line] == []


async def test_two_claims_at_once(world: World, diary: Diary) -> None:
    """On two nodes, in the same moment: one has it in the end, and it is one session."""
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.drop()
    claims = [world.client(each, rt=True) for each in (hub, other)]
    for claim in claims:
        claim.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await world.advance(5)
    have = [each.engine.sessions.get(told["client"]) for each in (hub, other)]
    live = [session for session in have if session is not None and session.connection is not None]
    assert len(live) == 1
    closed = [claim.close_code for claim in claims]
    assert sorted(closed) in ([0, 0], [0, 4000])
    await world.advance(60)
    assert sum(told["client"] in each.engine.sessions for each in (hub, other)) == 1


# -- on another node --------------------------------------------------------------------------------------


async def test_taken_up_on_another_node(world: World, diary: Diary) -> None:
    """C3: the same client id, no leave anywhere; the first node lets go of everything."""
    hub, other = diary.hub(world, "1:"), diary.hub(world, "2:")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    ann, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"] is True
    assert hub.statistics().sessions == 0
    await ann.call("subscribe", channel="room:a")
    await world.advance(60)
    assert diary.read() == [
        "1:ann starts",
        "1:ann joins",
        "1:ann ends: taken up on another node",
        "2:ann starts again",
        "2:ann joins again",
    ]
    await ann.drop()
    await world.advance(21)
    assert diary.read() == ["2:ann leaves room:a", "2:ann ends: connection lost"]
    assert world.backend.statistics().topics > 0


async def test_a_room_it_does_not_come_back_to_is_left_on_the_new_node(world: World, diary: Diary) -> None:
    hub, other = diary.hub(world, "1:"), diary.hub(world, "2:")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    await come(world, other, token=told["rt"]["resume"])
    diary.read()
    await world.advance(21)
    assert diary.read() == ["2:ann leaves room:a"]


async def test_back_and_forth(world: World, diary: Diary) -> None:
    hubs = [diary.hub(world), diary.hub(world)]
    for hub in hubs:
        await hub.start()
    client, told = await come(world, hubs[0])
    first = told["client"]
    for turn in range(6):
        await client.drop()
        client, told = await come(world, hubs[(turn + 1) % 2], token=told["rt"]["resume"])
        assert told["client"] == first
    await client.leave()
    assert [hub.statistics().sessions for hub in hubs] == [0, 0]
    assert await hubs[0].engine.broker.entries(f"session:{first}") == {}  # type: ignore[attr-defined]


async def test_the_first_node_says_it_is_too_late(world: World, diary: Diary) -> None:
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.drop()
    await world.advance(21)
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] != told["client"]


async def test_a_node_that_is_dead_is_not_asked(world: World, diary: Diary) -> None:
    """Its lease is gone: its silence is consent, and nobody waits for it."""
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.drop()
    await hub.engine.lease.release()
    hub.engine.deliver = lambda *_: None  # type: ignore[method-assign]  # it is dead
    client = world.client(other, rt=True)
    client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await client.settle()
    assert client.reply(1)["connect"]["client"] == told["client"]


async def test_a_node_that_does_not_answer_is_not_waited_for_long(world: World, diary: Diary) -> None:
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.drop()
    deaf: list[str] = []
    deliver = hub.engine.deliver
    hub.engine.deliver = lambda topic, *_: deaf.append(topic)  # type: ignore[method-assign]
    client = world.client(other, rt=True)
    client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await world.advance(0.9, step=0.1)
    assert not client.answered(1)
    await world.advance(0.2, step=0.1)
    assert client.reply(1)["connect"]["client"] == told["client"]
    assert len([topic for topic in deaf if "node:" in topic]) == 1
    hub.engine.deliver = deliver  # type: ignore[method-assign]
    diary.read()
    await world.advance(21)
    assert diary.read() == ["ann ends: taken up on another node"], "it finds out by itself, and tells nobody"


async def test_a_node_that_has_died_is_waited_for_once(world: World, diary: Diary) -> None:
    """K4: not by each of the thousands that it had; and one that is heard of again is waited for again."""
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    tokens = []
    for name in ("ann", "bob", "cat"):
        client, told = await come(world, hub, name)
        await client.drop()
        tokens.append((name, told["rt"]["resume"], told["client"]))
    deliver = hub.engine.deliver
    hub.engine.deliver = lambda *_: None  # type: ignore[method-assign]

    async def takes(name: str, token: str, client: str) -> float:
        """Seconds until it is back."""
        back = world.client(other, rt=True)
        back.ask("connect", token=name, rt={"v": 1, "resume": token})
        await back.settle()
        began = world.clock.monotonic()
        while not back.answered(1):
            await world.advance(0.1)
        assert back.reply(1)["connect"]["client"] == client
        return world.clock.monotonic() - began

    assert await takes(*tokens[0]) == pytest.approx(1.0, abs=0.15)
    assert await takes(*tokens[1]) < 0.15
    assert other.engine.relay.silent(hub.node_id)
    hub.engine.deliver = deliver  # type: ignore[method-assign]
    await other.engine.relay.ask(hub.node_id, Ask(do="nothing"))
    assert not other.engine.relay.silent(hub.node_id)
    hub.engine.deliver = lambda *_: None  # type: ignore[method-assign]
    assert await takes(*tokens[2]) == pytest.approx(1.0, abs=0.15)
    await world.advance(61)
    assert not other.engine.relay.silent(hub.node_id), "nothing is remembered for ever"


async def test_a_claim_that_overtakes_another_waits_for_it(world: World, diary: Diary) -> None:
    """Its client has given up on B, where the session is not yet, and comes to C."""
    broker = FaultyBroker(world.backend)
    a, b, c = diary.hub(world, "A: "), diary.hub(world, "B: ", broker=broker), diary.hub(world, "C: ")
    await b.start()
    await c.start()
    ann, told = await come(world, a)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    gate = broker.hold("publish")
    clients = [world.client(hub, rt=True) for hub in (b, c)]
    for client in clients:
        client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
        await client.settle()
    await clients[0].drop()
    gate.set()
    await world.settle()
    await world.advance(1)
    assert clients[1].reply(1)["connect"]["client"] == told["client"]
    await world.advance(60)
    assert [line for line in diary.read() if "leaves" in line] == ["C: ann leaves room:a"], (
        "it did not come back to it"
    )
    assert c.statistics().sessions == 1


@pytest.mark.parametrize("call", ["put", "publish"])
async def test_what_was_done_and_nobody_knows_costs_no_session(world: World, diary: Diary, call: str) -> None:
    """A claim, or a question to the node that has the session, whose answer is lost: the client comes again."""

    class Ambiguous(FaultyBroker):
        def __init__(self, backend: MemoryBackend) -> None:
            super().__init__(backend)
            self.about = ""

        async def put(self, key: str, *args: Any, **options: Any) -> bool:
            done = await super().put(key, *args, **options)
            self.fail_once("put" if key.startswith("session:") else "")
            return done

        async def publish(self, topic: str, payload: bytes) -> None:
            await super().publish(topic, payload)
            self.fail_once("publish" if topic.startswith("\0node:") else "")

        def fail_once(self, call: str) -> None:
            if call and call == self.about:
                self.about = ""
                raise BrokerUnavailable("it was done, and the connection broke")

    broker = Ambiguous(world.backend)
    one, two = diary.hub(world, "A: "), diary.hub(world, "B: ", broker=broker)
    await two.start()
    ann, told = await come(world, one)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    broker.about = call
    ann = world.client(two, rt=True)
    ann.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await ann.settle()
    assert ann.reply(1)["error"]["code"] == 100
    ann, again = await come(world, two, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"]
    await ann.call("subscribe", channel="room:a")
    await world.advance(60)
    assert not [line for line in diary.read() if "leaves" in line]
    assert (one.statistics().sessions, two.statistics().sessions) == (0, 1)


async def test_a_room_that_another_release_had_is_none_here(world: World) -> None:
    """A rolling deployment without that family: the session is taken up all the same."""
    old, new = world.hub(parks=True), world.hub(parks=True)
    for hub in (old, new):
        hub.rooms("kept:{x}", publishes=object, grant=Grant())
    old.rooms("gone:{x}", publishes=object, grant=Grant())
    await new.start()
    ann, told = await come(world, old)
    for room in ("kept:a", "gone:a"):
        await ann.call("subscribe", channel=room)
    await ann.drop()
    ann, again = await come(world, new, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    (session,) = new.engine.sessions.values()
    assert list(session.parked) == ["kept:a"]


# -- the secret -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a month has passed", "the broker has lost it"])
async def test_nodes_that_start_later_read_the_tokens_of_those_that_run(
    world: World, diary: Diary, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Else everybody is somebody new at the next deployment."""
    monkeypatch.setattr(secret, "LIFE", 60.0)  # for a month
    hub, other = diary.hub(world, "A: "), diary.hub(world, "B: ")
    await come(world, hub, "eve")
    if how == "a month has passed":
        await world.advance(61)
    ann, told = await come(world, hub)
    if how == "the broker has lost it":
        for key in list(world.backend._state):
            del world.backend._state[key]
        await world.advance(12)
    await ann.drop()
    await other.start()
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


async def test_a_node_that_was_late_takes_the_secret_of_the_others_and_reads_its_own(
    world: World, diary: Diary
) -> None:
    hub, other = diary.hub(world, "A: "), diary.hub(world, "B: ")
    ann, told = await come(world, hub)
    await ann.drop()
    world.backend.put("secret", "resume", b"of another node", 60, None)
    hub.engine.parking._secret._good_until = 0.0
    _, newer = await come(world, hub, "eve")
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"], "signed with what it had"
    await other.start()
    _, again = await come(world, other, "eve", token=newer["rt"]["resume"])
    assert again["client"] == newer["client"], "signed with what all have"


async def test_the_broker_away_means_later(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.drop()

    async def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("away")

    broker: Any = hub.engine.broker
    entries, broker.entries = broker.entries, away
    client = world.client(hub, rt=True)
    error = await client.refused("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert error["temporary"] is True
    broker.entries = entries
    _, again = await come(world, hub, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


async def test_what_ended_while_the_broker_was_away_is_forgotten_when_it_is_back(
    world: World, diary: Diary
) -> None:
    """Nothing lies in the broker for a day that nobody will ask for (found by simulation, seed 100125)."""
    broker = FaultyBroker(world.backend)
    hub = diary.hub(world, broker=broker)
    ann, told = await come(world, hub)
    await ann.drop()
    ann, again = await come(world, hub, token=told["rt"]["resume"])
    key = f"session:{told['client']}"
    assert again["client"] == told["client"]
    assert world.backend.entries(key)
    broker.down = True
    await ann.drop()
    await world.advance(60)
    assert hub.statistics().sessions == 0
    assert world.backend.entries(key), "the broker was away"
    broker.down = False
    await world.advance(30)
    assert not world.backend.entries(key)


async def test_what_ends_with_the_hub_is_forgotten(world: World, diary: Diary) -> None:
    """However many there are: each deployment ends sessions, and nothing of them lies in the broker for a day."""
    hub = diary.hub(world)
    keys = []
    for _ in range(20):
        ann, told = await come(world, hub)
        await ann.drop()
        ann, again = await come(world, hub, token=told["rt"]["resume"])
        assert again["client"] == told["client"]
        keys.append(f"session:{told['client']}")
    assert all(world.backend.entries(key) for key in keys)
    await hub.aclose()
    assert not [key for key in keys if world.backend.entries(key)]


async def test_a_session_that_another_node_has_is_not_forgotten_by_the_one_that_ended_it(
    world: World, diary: Diary
) -> None:
    """The broker was away when it ended here, and its client was quicker to come back than we to clean up."""
    broker = FaultyBroker(world.backend)
    one, two = diary.hub(world, broker=broker), diary.hub(world)
    await two.start()
    ann, told = await come(world, one)
    await ann.drop()
    ann, told = await come(world, one, token=told["rt"]["resume"])
    broker.down = True
    await ann.drop()
    await world.advance(60)
    assert one.statistics().sessions == 0
    ann, again = await come(world, two, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    broker.down = False
    await world.advance(30)
    assert world.backend.entries(f"session:{told['client']}")


async def test_a_hub_with_a_secret_of_its_own(world: World, diary: Diary) -> None:
    one, two = diary.hub(world, secret=b"1" * 32), diary.hub(world, secret=b"2" * 32)
    await two.start()
    ann, told = await come(world, one)
    await ann.drop()
    _, again = await come(world, two, token=told["rt"]["resume"])
    assert again["client"] != told["client"]
    _, again = await come(world, one, token=told["rt"]["resume"])
    assert again["client"] == told["client"]


# -- between two lines ------------------------------------------------------------------------------------


async def test_lost_while_it_is_taken_up(world: World, diary: Diary) -> None:
    """The new connection breaks before it was told: the session stays parked, wherever it is."""
    hub, other = diary.hub(world), diary.hub(world)
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    client = world.client(other, rt=True)
    client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    client.pipe.lose()
    await world.settle()
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    diary.read()
    await world.advance(21)
    assert diary.read() == ["ann leaves room:a"]


async def test_lost_while_joining(world: World, diary: Diary) -> None:
    """The hook is not through when the transport goes: on_leave comes after it, and once."""
    hub = world.hub(parks=True)
    rooms = hub.rooms("room:{r}", publishes=object, grant=Grant())
    gate = asyncio.Event()

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        await gate.wait()
        diary.lines.append("joined")

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        diary.lines.append("left")

    ann, told = await come(world, hub)
    ann.ask("subscribe", channel="room:a")
    await ann.settle()
    await ann.drop()
    gate.set()
    await world.settle()
    assert diary.read() == ["joined"]
    await world.advance(21)
    assert diary.read() == ["left"]
    assert told["client"] not in hub.engine.sessions


async def test_refused_when_it_comes_back(world: World, diary: Diary) -> None:
    """What it may not do any more it has left."""
    hub = world.hub(parks=True)
    rooms = hub.rooms("room:{r}", publishes=object, grant=Grant())

    @rooms.on_leave
    async def left(ctx: Context[Any, Any]) -> None:
        diary.lines.append("left")

    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    await hub.room("room:a").remove("ann", reason="no", ban=60)
    ann, _ = await come(world, hub, token=told["rt"]["resume"])
    assert (await ann.refused("subscribe", channel="room:a"))["code"] == 103
    await world.settle()
    assert diary.read() == ["left"]


async def test_handlers_go_on_while_parked(world: World) -> None:
    hub = world.hub(parks=True)
    gate = asyncio.Event()
    done: list[str] = []

    @hub.rpc(object, name="slow")
    async def slow(ctx: Context[Any, Any], params: object) -> None:
        await gate.wait()
        done.append(ctx.session.id)

    ann, told = await come(world, hub)
    ann.ask("rpc", method="slow", data=1)
    await ann.settle()
    await ann.drop()
    gate.set()
    await world.settle()
    assert done == [told["client"]]


async def test_a_hub_that_closes_ends_who_is_parked(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    ann, _ = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    await hub.aclose()
    assert sorted(diary.read()[2:]) == ["ann ends: draining", "ann leaves room:a"]


async def test_a_goodbye_in_the_same_packet_as_the_close(world: World, diary: Diary) -> None:
    """C3: the transport is gone before the goodbye has had its turn."""
    hub = diary.hub(world)
    ann, _ = await come(world, hub)
    ann.tell({"bye": {}})
    ann.pipe.lose(1000, "")
    await world.settle()
    assert hub.statistics().sessions == 0


async def test_what_was_said_before_a_goodbye_is_done_though_the_transport_is_gone(
    world: World, diary: Diary
) -> None:
    """C3: a client that says something, says goodbye and hangs up, all in one packet."""
    hub = diary.hub(world)
    ann, _ = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    ann.tell(
        {"id": 7, "publish": {"channel": "room:a", "data": 1}},
        {"bye": {}},
        {"id": 8, "publish": {"channel": "room:a", "data": 2}},
    )
    ann.pipe.lose(1000, "")
    await world.settle()
    assert [message.data for message in (await hub.room("room:a").history()).messages] == [1]
    assert (hub.statistics().sessions, hub.statistics().connections) == (0, 0)
    assert not ann.answered(7)


async def test_a_slow_handler_does_not_keep_who_has_said_goodbye(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    gate = asyncio.Event()

    @hub.rpc(object, name="slow")
    async def slow(ctx: Context[Any, Any], params: object) -> None:
        await gate.wait()

    ann, _ = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    ann.tell({"id": 7, "rpc": {"method": "slow", "data": 1}}, {"bye": {}})
    ann.pipe.lose(1000, "")
    await world.settle()
    assert hub.statistics().sessions == 1
    await hub.room("room:a").publish(1)  # there is nobody to be sent anything
    await world.clock.advance(5.0)
    assert hub.statistics().sessions == 0
    assert "ann leaves room:a" in diary.read()
    gate.set()
    await world.settle()


async def test_a_hub_closes_over_somebodys_last_words(world: World, diary: Diary) -> None:
    hub = diary.hub(world)
    gate = asyncio.Event()

    @hub.rpc(object, name="slow")
    async def slow(ctx: Context[Any, Any], params: object) -> None:
        await gate.wait()

    ann, _ = await come(world, hub)
    ann.tell({"id": 7, "rpc": {"method": "slow", "data": 1}}, {"bye": {}})
    ann.pipe.lose(1000, "")
    await world.settle()
    closing = asyncio.ensure_future(hub.aclose())
    await world.settle()
    gate.set()
    await closing
    assert (hub.statistics().sessions, hub.statistics().connections) == (0, 0)


async def test_lost_while_the_other_node_is_asked(world: World, diary: Diary) -> None:
    """The session is here by then, and parks here: nobody sees it leave, and its client comes back to it."""
    hub, other = diary.hub(world, "1:"), diary.hub(world, "2:")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    gate, ask = asyncio.Event(), other.engine.relay.ask

    async def slowly(*args: Any, **options: Any) -> Any:
        answered = await ask(*args, **options)
        await gate.wait()
        return answered

    other.engine.relay.ask = slowly  # type: ignore[method-assign]
    client = world.client(other, rt=True)
    client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    await world.settle()
    await client.drop()
    gate.set()
    await world.settle()
    assert not [line for line in diary.read() if "leaves" in line]
    _, again = await come(world, other, token=told["rt"]["resume"])
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"] is True


@pytest.mark.parametrize("away", [False, True])
async def test_who_gives_up_waiting_and_comes_again_is_not_too_late(
    world: World, diary: Diary, away: bool
) -> None:
    """K4, C3: in a storm the first attempt is still being worked on, or has failed half way, when the second comes."""
    hub, other = diary.hub(world, "1:"), diary.hub(world, "2:")
    await other.start()
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    gate, ask = asyncio.Event(), other.engine.relay.ask

    async def slowly(*args: Any, **options: Any) -> Any:
        other.engine.relay.ask = ask  # type: ignore[method-assign]
        await gate.wait()
        if away:
            raise BrokerUnavailable("away")
        return await ask(*args, **options)

    other.engine.relay.ask = slowly  # type: ignore[method-assign]
    clients = []
    for _ in range(2):
        client = world.client(other, rt=True)
        asked = client.ask("connect", token="ann", rt={"v": 1, "resume": told["rt"]["resume"]})
        await world.settle()
        clients.append(client)
        if not gate.is_set() and len(clients) == 1:
            await client.drop()
    assert not clients[1].answered(asked)
    gate.set()
    await world.settle()
    again = clients[1].reply(asked)["connect"]
    assert again["client"] == told["client"]
    assert again["rt"]["resumed"] is True
    await clients[1].call("subscribe", channel="room:a")
    assert not [line for line in diary.read() if "leaves" in line]
    assert other.statistics().counted.resumes["taken up"] >= 1
    assert not other.engine.parking._taking
    assert not other.engine.parking._unasked


async def test_told_to_try_again_it_has_not_left(world: World, diary: Diary) -> None:
    """A broker that is away is no reason to be seen leaving."""
    hub = diary.hub(world)
    ann, told = await come(world, hub)
    await ann.call("subscribe", channel="room:a")
    await ann.drop()
    ann, _ = await come(world, hub, token=told["rt"]["resume"])

    async def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("away")

    broker: Any = hub.engine.broker
    positions, broker.positions = broker.positions, away
    error = await ann.refused("subscribe", channel="room:a")
    assert error["temporary"] is True
    broker.positions = positions
    await ann.call("subscribe", channel="room:a")
    await world.advance(30)
    assert not [line for line in diary.read() if "leaves" in line]
