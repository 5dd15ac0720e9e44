"""W5: releases change under a running cluster, one node after the other, and back; nothing is lost.

There is only one version yet. The *next* release exists in this test alone: it writes envelopes with other names and
one field more, so that whoever reads them as if they were the old ones gets nothing out of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw, UnsetType

from rtkit import Grant, History, Hub
from rtkit.brokers import MemoryBroker
from rtkit.features.presence import Presence
from rtkit.hub.control import Reached
from rtkit.hub.relay import CONTROL, Ask
from rtkit.hub.revocations import KEY
from rtkit.hub.versions import SETTLED
from rtkit.publisher import Publisher
from rtkit.wire import Envelope, Formats, Kind, UnknownVersion
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World, by_token

ROOM = "room:r:a"


class NextEnvelope(msgspec.Struct, omit_defaults=True):
    """The envelope of the next release: all fields but the version are called otherwise, and there is one more."""

    v: int
    what: Kind = Kind.MESSAGE
    body: Raw | UnsetType = UNSET
    at: float = 0.0
    by: tuple[str, str] = ("", "")
    named: str = ""
    not_to: str = ""
    trace: str = "t"


class NextFormats(Formats):
    """Reads 1 and 2."""

    newest = 2

    def seal(self, envelope: Envelope, version: int) -> bytes:
        if version == 1:
            return super().seal(envelope, 1)
        e = envelope
        out = NextEnvelope(2, e.kind, e.data, e.time, (e.user, e.client), e.event, e.skip, "traced")
        return msgspec.json.encode(out)

    def open(self, payload: bytes) -> Envelope:
        try:
            found = msgspec.json.decode(payload, type=NextEnvelope)
        except msgspec.DecodeError:
            return super().open(payload)
        if found.v != 2:
            return super().open(payload)
        assert found.trace == "traced"
        user, client = found.by
        return Envelope(1, found.what, found.body, found.at, user, client, found.named, found.not_to)


class NextHub(Hub[Any]):
    """A hub of the next release."""

    formats = NextFormats()


class LateFormats(Formats):
    """The release after the next: it does not read 1 any more."""

    oldest, newest = 2, 3


def build(world: World, release: int, broker: Any = None) -> Hub[Any]:
    """A node that is not started yet."""
    hub = (NextHub if release == 2 else Hub)(
        authenticate=by_token,
        broker=broker or MemoryBroker(world.backend),
        clock=world.clock,
        random=random.Random(release),
    )
    hub.rooms(
        "r:{x}",
        publishes=object,
        grant=Grant("publish", "signal", "presence"),
        history=History(1000, ttl=6000),
        presence=Presence(),
    )
    world.hubs.append(hub)
    return hub


def versions(world: World, since: int = 0) -> set[int]:
    """In which entries of the room are stored."""
    stream = world.backend._streams[ROOM]
    return {msgspec.json.decode(entry.payload)["v"] for entry in stream.after(since, 9999)}


def totals(hub: Hub[Any]) -> Mapping[str, int]:
    return hub.statistics().totals or {}


class Member:
    """A client of rtkit's own kind: it comes back with its token and its position, and writes down what it gets."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.got: list[Any] = []
        self.at: tuple[str, int] | None = None
        self.token = ""
        self.id = ""
        self.lost = 0
        self.client: RawClient | None = None

    async def come(self, hub: Hub[Any]) -> None:
        self.read()
        client = self.client = self.world.client(hub, rt=True)
        asked = client.ask("connect", token=self.name, rt={"v": 1, "resume": self.token})
        await client.settle()
        if not client.answered(asked):
            await self.world.advance(1.0)  # a node that was there a moment ago has that time to answer
        told = client.reply(asked)["connect"]
        self.token, self.id = told["rt"]["resume"], told["client"]
        since = {} if self.at is None else {"recover": True, "epoch": self.at[0], "offset": self.at[1]}
        joined = await client.call("subscribe", channel="r:a", presence=True, **since)
        if self.at is not None:
            self.lost += not joined["recovered"]
        self.at = (joined["epoch"], joined.get("offset", 0))
        self.got.extend(pub["data"] for pub in joined.get("publications", ()))

    def read(self) -> None:
        """What was pushed so far."""
        if self.client is not None:
            assert not self.client.pushes_of("r:a", "gap")
            for pub in self.client.pushes_of("r:a"):
                assert self.at is not None
                assert pub["offset"] == self.at[1] + 1
                self.at = (self.at[0], pub["offset"])
                self.got.append(pub["data"])
                assert (pub["info"]["user"] if "info" in pub else "server") in (
                    "server",
                    self.name,
                    "ann",
                    "bob",
                )
            self.client.forget()


class Cluster:
    """Three nodes, a member on each, and numbers that are published all the time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: list[Hub[Any]] = []
        self.members = [Member(world, name) for name in ("ann", "bob", "eve")]
        self.published: list[int] = []

    async def start(self, *releases: int) -> None:
        for release in releases:
            self.nodes.append(build(self.world, release))
            await self.nodes[-1].start()
        for n, member in enumerate(self.members):
            await member.come(self.nodes[n])

    async def say(self) -> None:
        """Every node and every member says something, and a worker that is no hub."""
        for hub in self.nodes:
            self.published.append(len(self.published))
            await hub.publish("r:a", self.published[-1])
        for member in self.members[:2]:
            if member.client is not None and member.client.pipe.transport is not None:
                self.published.append(len(self.published))
                await member.client.call("publish", channel="r:a", data=self.published[-1])
        async with Publisher(
            MemoryBroker(self.world.backend), self.nodes[0], clock=self.world.clock
        ) as worker:
            self.published.append(len(self.published))
            await worker.publish("r:a", self.published[-1])
        await self.world.settle()
        for member in self.members:
            member.read()

    async def replace(self, n: int, release: int) -> None:
        """One node goes, orderly, and comes back with another release; its member comes back to another node."""
        old = self.nodes.pop(n)
        await self.world.end(old)
        await self.say()
        member = self.members[n]
        await member.come(self.nodes[n % 2])
        await self.say()
        self.nodes.insert(n, build(self.world, release))
        await self.nodes[n].start()
        await self.say()
        assert member.client is not None
        await member.client.drop()
        await self.say()
        await member.come(self.nodes[n])  # with its session, from the one release to the other
        await self.say()

    def check(self) -> None:
        for member in self.members:
            member.read()
            assert member.got == self.published, member.name
            assert member.lost == 0

    async def presence(self) -> list[list[str]]:
        return [sorted(each.user for each in await hub.room("r:a").presence()) for hub in self.nodes]


async def test_an_upgrade_of_three_nodes_and_back_loses_nothing(world: World) -> None:
    """One after the other, with parked sessions, presence and revocations; then all the way back."""
    cluster = Cluster(world)
    await cluster.start(1, 1, 1)
    await cluster.say()
    for release in (2, 1):
        for n in range(3):
            ids = [member.id for member in cluster.members]
            await cluster.replace(n, release)
            await world.advance(20)
            await cluster.say()
            cluster.check()
            assert await cluster.presence() == [["ann", "bob", "eve"]] * 3
            others = [m for m in range(3) if m != n]
            assert [cluster.members[m].id for m in others] == [ids[m] for m in others]
            # What is said of users holds on both.
            user = f"user{release}{n}"
            client = await world.join(cluster.nodes[(n + 1) % 3], user)
            reached = await cluster.nodes[n].user(user).revoke(world.clock.time() + 5000)
            assert reached.sessions == 1 and reached.complete
            assert client.closed == (4501, "revoked")
            for hub in cluster.nodes:
                assert len(hub.engine.revocations) == 3 * (release == 1) + n + 1
    assert versions(world) == {1}, "what all could read all the time"
    for hub in cluster.nodes:
        assert not {"unknown_versions", "foreign_payloads", "foreign_entries"} & totals(hub).keys()


async def test_the_newer_version_is_written_when_all_have_read_it_for_a_while(world: World) -> None:
    cluster = Cluster(world)
    await cluster.start(1, 1, 1)
    for n in range(3):
        await cluster.replace(n, 2)
    await world.advance(SETTLED - 60, step=5)
    await cluster.say()
    assert versions(world) == {1}
    await world.advance(90, step=5)
    before = len(cluster.published)
    await cluster.say()
    cluster.check()
    assert [hub.engine.versions.writes for hub in cluster.nodes] == [2, 2, 2]
    assert versions(world, before) == {1, 2}, "the worker writes the older, for it cannot know"
    # Old and new are read together, as history and by who comes back.
    page = await cluster.nodes[0].room("r:a").history(limit=1000)
    assert [message.data for message in page.messages] == cluster.published
    late = Member(world, "ann")
    late.at = (page.top.epoch, 0)
    await late.come(cluster.nodes[1])
    assert late.got == cluster.published
    # So do requests between nodes, revocations, presence, and sessions that move.
    ann = cluster.members[0]
    assert ann.client is not None
    await ann.client.drop()
    id = ann.id
    await ann.come(cluster.nodes[2])
    assert ann.id == id
    await cluster.nodes[0].user("zoe").revoke(world.clock.time() + 1000)
    assert msgspec.json.decode(world.backend.entries(KEY)["zoe\n"])["v"] == 2
    await world.advance(3)
    entries = world.backend.entries("presence:r:a")
    assert 2 in {msgspec.json.decode(value)["v"] for value in entries.values()}
    assert await cluster.presence() == [["ann", "ann", "bob", "eve"]] * 3
    cluster.check()


async def test_an_older_release_that_comes_in_is_written_for_before_it_lets_anybody_in(
    world: World, errors: Any
) -> None:
    """Back, after the newer was written: what is said from then on is for all; of what cannot be read, it is told."""
    cluster = Cluster(world)
    await cluster.start(2, 2, 2)
    await world.advance(SETTLED + 10, step=5)
    await cluster.say()
    newer = len(cluster.published)
    assert versions(world) == {1, 2}
    old = build(world, 1)
    await old.start()
    assert [hub.engine.versions.writes for hub in cluster.nodes] == [1, 1, 1]
    cluster.nodes.append(old)
    late = Member(world, "zoe")
    await late.come(old)
    await cluster.say()
    late.read()
    assert versions(world, newer) == {1}
    assert late.got == cluster.published[newer:]
    cluster.check()
    # The offsets of what it cannot read do not go missing, and the log tells of it once.
    all_of_it = Member(world, "zoe")
    assert late.at is not None
    all_of_it.at = (late.at[0], 0)
    await all_of_it.come(old)
    assert len(all_of_it.got) == len(cluster.published)
    assert all_of_it.got[newer:] == cluster.published[newer:]
    assert None in all_of_it.got[:newer]
    assert totals(old)["unknown_versions"] == all_of_it.got.count(None) > 1
    assert len(errors()) == 1
    assert "an envelope of version 2; this release reads 1" in errors()[0].getMessage()
    # When it has gone again, the time begins anew.
    await world.end(old)
    cluster.nodes.remove(old)
    await world.advance(SETTLED - 30, step=5)
    assert {hub.engine.versions.writes for hub in cluster.nodes} == {1}
    await world.advance(60, step=5)
    assert {hub.engine.versions.writes for hub in cluster.nodes} == {2}


async def test_a_node_that_cannot_be_asked_does_not_keep_an_older_one_out(world: World, caplog: Any) -> None:
    """It is named in the log; it may write what cannot be read until it sees the lease."""
    broker = FaultyBroker(world.backend)
    new = build(world, 2, broker)
    await new.start()
    await world.advance(SETTLED + 10, step=5)
    broker.deaf = True
    old = build(world, 1)
    task = asyncio.ensure_future(old.start())
    await world.settle()
    assert not task.done()
    await world.advance(4)
    assert task.done() and task.exception() is None
    assert any(new.node_id in r.getMessage() for r in caplog.get_records("call") if r.levelname == "WARNING")
    await world.advance(4)
    assert new.engine.versions.writes == 1, "it looks at the leases, too"


async def test_an_older_node_that_was_cut_off_is_not_forgotten_at_once(world: World) -> None:
    """Its lease is gone for minutes; it comes back, and can read all there is."""
    broker = FaultyBroker(world.backend)
    new, old = build(world, 2), build(world, 1, broker)
    await new.start()
    await old.start()
    await world.advance(SETTLED + 10, step=5)
    assert new.engine.versions.writes == 1
    broker.down = broker.deaf = True
    await world.advance(SETTLED / 2, step=5)
    await new.publish("r:a", 1)
    broker.down = broker.deaf = False
    await world.advance(30)
    page = await old.room("r:a").history()
    assert [message.data for message in page.messages] == [1]


async def test_one_that_was_cut_off_for_too_long_says_so_when_it_is_back(world: World) -> None:
    broker = FaultyBroker(world.backend)
    new, old = build(world, 2), build(world, 1, broker)
    await new.start()
    await old.start()
    broker.down = broker.deaf = True
    await world.advance(SETTLED + 60, step=5)
    assert new.engine.versions.writes == 2
    broker.down = broker.deaf = False
    await world.clock.advance(1.0)
    assert new.engine.versions.writes == 1


async def test_time_without_the_broker_proves_nothing(world: World) -> None:
    """Whoever cannot see the leases begins to wait anew."""
    broker = FaultyBroker(world.backend)
    new = build(world, 2, broker)
    await new.start()
    await world.advance(SETTLED - 30, step=5)
    broker.failing = {"entries"}
    await world.advance(20)
    broker.failing = set()
    await world.advance(SETTLED - 30, step=5)
    assert new.engine.versions.writes == 1
    await world.advance(60)
    assert new.engine.versions.writes == 2


async def test_two_releases_apart_is_told(world: World, errors: Any) -> None:
    old = build(world, 1)
    await old.start()
    late = build(world, 1)
    late.formats = LateFormats()
    await late.start()
    await world.advance(10)
    assert [each.getMessage() for each in errors()] == [
        f"node {old.node_id} reads versions up to 1, and this release writes 2 at the least: "
        f"upgrade one release after the other"
    ], "once"


async def test_requests_of_a_release_to_come_are_passed_over(world: World, errors: Any) -> None:
    """Told once, counted, and nothing is killed by it; other versions are told of, too."""
    hub = build(world, 1)
    client = await world.join(hub, "ann", "r:a")
    broker = hub.engine.broker
    for version in (7, 7, 7, 8):
        for topic in (CONTROL, hub.engine.relay.topic):
            await broker.publish(topic, msgspec.msgpack.encode({"type": "ask", "v": version, "do": ["new"]}))
        await broker.publish(ROOM, b'{"v":%d,"kind":{"new":1}}' % version)
    await client.settle()
    assert client.closed is None
    assert totals(hub)["unknown_versions"] == 12
    assert "foreign_payloads" not in totals(hub)
    assert len(errors()) == 2
    assert await hub.user("ann").where() == Reached({hub.node_id: 1})


async def test_a_session_that_a_release_to_come_has_moved_begins_anew(world: World, errors: Any) -> None:
    """What the broker keeps of it cannot be read: no error for its client, but a new session."""
    hub = build(world, 1)
    await hub.start()
    ann = world.client(hub, rt=True)
    told = await ann.connect("ann")
    await ann.drop()
    world.backend.put(f"session:{told['client']}", "owner", msgspec.msgpack.encode([2, "?"]), 100, None)
    ann = world.client(hub, rt=True)
    again = await ann.connect("ann", rt={"v": 1, "resume": told["rt"]["resume"]})
    assert again["client"] != told["client"]
    await world.advance(30)
    assert hub.statistics().sessions == 1
    assert len(errors()) == 1


async def test_what_is_asked_of_a_node_is_in_a_version_that_it_reads(world: World) -> None:
    old, new = build(world, 1), build(world, 2)
    await old.start()
    await new.start()
    heard: list[Any] = []
    deliver = old.engine.relay.deliver
    old.engine.relay.deliver = lambda payload: (heard.append(payload), deliver(payload))[1]  # type: ignore[method-assign,func-returns-value]
    found = await new.engine.relay.ask_all(Ask(do="where", user="ann"))
    assert set(found.answers) == {old.node_id, new.node_id}
    assert [msgspec.msgpack.decode(payload)["v"] for payload in heard] == [1]


def test_the_next_release_of_this_test_is_one() -> None:
    """Else the rest would prove nothing: neither reads what the other alone writes."""
    envelope = Envelope(1, data=Raw(b"1"), user="ann")
    new = NextFormats()
    assert new.open(new.seal(envelope, 2)).user == "ann"
    assert new.open(new.seal(envelope, 1)).user == "ann"
    with pytest.raises(UnknownVersion, match="version 2"):
        Formats().open(new.seal(envelope, 2))
