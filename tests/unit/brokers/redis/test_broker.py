"""The broker itself: its options, its bounds, and what it makes of what comes back."""

from __future__ import annotations

import asyncio
import logging
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis.asyncio

import rtkit.brokers.redis.streams
from rtkit.brokers import MAX_PAYLOAD, Appended, NewEntry, Repeated, open_url
from rtkit.brokers.redis import RedisBroker
from rtkit.brokers.redis.commands import Commands
from rtkit.brokers.redis.scripts import COMMANDS
from rtkit.errors import BrokerUnavailable, InvalidMessage, NotRunning, PublishUnknown, UsageError, WrongLoop
from rtkit.messages import History
from rtkit.position import Position
from rtkit.testing import ManualClock
from rtkit.testing.conformance import Delivery, Node, RecordingSink
from tests.support.daemons import free_port, wait_until
from tests.support.redises import RedisPair, RedisServer

PLENTY = History(1000, ttl=3600.0)
REPLICATED = History(1000, ttl=3600.0, durability="replicated")

Open = Callable[..., Any]


@pytest.fixture
async def opened(any_redis: RedisServer) -> AsyncIterator[Open]:
    """Opens brokers of one cluster, each with a sink."""
    prefix = f"t{secrets.token_hex(5)}"
    async with AsyncExitStack() as stack:

        async def open_one(url: str = any_redis.url, **options: Any) -> Node:
            broker, sink = RedisBroker(url, **{"prefix": prefix, **options}), RecordingSink()
            await broker.open(sink)
            stack.push_async_callback(broker.aclose)
            return Node(broker, sink, 5.0)

        yield open_one


# -- options


def test_options_stand_in_the_url() -> None:
    clock = ManualClock()
    broker = open_url(
        "redis://localhost:1/3?prefix=chat&dedupe_window=600&patience=5&replicas=2&wait_timeout=3"
        "&max_payload=1000&client_name=a%26b",
        clock=clock,
    )
    assert isinstance(broker, RedisBroker)
    assert (broker.dedupe_window, broker.patience, broker.replicas) == (600.0, 5.0, 2)
    assert (broker.wait_timeout, broker.max_payload) == (3.0, 1000)
    assert broker._clock is clock
    assert broker._names("room:r").channel == b"chat:{r}:room:3"


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_every_scheme_is_this_broker(scheme: str) -> None:
    assert isinstance(open_url(f"{scheme}://localhost:1"), RedisBroker)
    assert isinstance(open_url("redis+sentinel://localhost:1/main"), RedisBroker)
    assert isinstance(open_url("redis+cluster://localhost:1"), RedisBroker)


@pytest.mark.parametrize(
    "query",
    [
        "prefix=",
        "prefix=a{b",
        "dedupe_window=soon",
        "dedupe_window=0",
        "dedupe_window=inf",
        "dedupe_window=nan",
        "patience=-1",
        "patience=1&wait_timeout=1",
        "patience=2&dedupe_window=3",
        "replicas=0",
        "replicas=1.5",
        "max_payload=0",
        "max_payload=100000000",
        "nonsense=1",
    ],
)
def test_an_option_that_cannot_be_used_is_refused(query: str) -> None:
    with pytest.raises(UsageError) as caught:
        RedisBroker.from_url(f"redis://user:hunter2@localhost:1/0?{query}")
    assert "hunter2" not in str(caught.value)


def test_it_takes_a_url_or_a_client() -> None:
    with pytest.raises(UsageError):
        RedisBroker()
    with pytest.raises(UsageError):
        RedisBroker("redis://localhost:1", client=redis.asyncio.Redis())
    with pytest.raises(UsageError):
        RedisBroker(client="redis://localhost:1")


def test_what_it_is_tells_no_password() -> None:
    broker = RedisBroker("redis://user:hunter2@localhost:1")
    assert "localhost:1" in repr(broker) and "closed" in repr(broker)
    assert "hunter2" not in repr(broker)


def test_whoever_does_without_it_does_not_import_redis() -> None:
    code = "import sys, rtkit, rtkit.brokers; assert 'redis' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_client_of_the_applications_is_left_alone(any_redis: RedisServer) -> None:
    client = redis.asyncio.Redis.from_url(any_redis.redis_url, decode_responses=True, client_name="mine")
    try:
        broker, sink = RedisBroker(client=client, prefix=f"t{secrets.token_hex(4)}"), RecordingSink()
        await broker.open(sink)
        node = Node(broker, sink, 5.0)
        await broker.subscribe(["room:r"])
        await broker.publish("room:r", b"x")
        assert await node.got("room:r", 1) == [Delivery("room:r", b"x", None)]
        await broker.aclose()
        assert await client.ping()
    finally:
        await client.aclose()


# -- beginning and end


async def test_when_nobody_is_there_it_is_said_and_can_be_tried_again(any_redis: RedisServer) -> None:
    broker = RedisBroker(f"redis://localhost:{free_port()}", patience=0.2, wait_timeout=0.1)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await broker.open(RecordingSink())
        with pytest.raises(NotRunning):
            await broker.publish("room:r", b"")
    await broker.aclose()


async def test_closed_while_it_was_opening(any_redis: RedisServer) -> None:
    broker = RedisBroker(any_redis.url)
    opening = asyncio.ensure_future(broker.open(RecordingSink()))
    await asyncio.sleep(0)
    with pytest.raises(UsageError):
        await broker.open(RecordingSink())
    with pytest.raises(NotRunning):
        await broker.publish("room:r", b"")
    await broker.aclose()
    with pytest.raises((NotRunning, BrokerUnavailable)):
        await opening
    await broker.open(RecordingSink())
    await broker.aclose()


async def test_closed_and_opened_again_while_it_was_opening(any_redis: RedisServer) -> None:
    name, sink = f"t{secrets.token_hex(4)}", RecordingSink()
    broker = RedisBroker.from_url(f"{any_redis.url}?prefix={name}&client_name={name}")
    first = asyncio.ensure_future(broker.open(RecordingSink()))
    await asyncio.sleep(0)
    await broker.aclose()
    await broker.open(sink)
    with pytest.raises((NotRunning, BrokerUnavailable)):
        await first
    await broker.subscribe(["room:r"])
    await broker.publish("room:r", b"x")
    assert await Node(broker, sink, 5.0).got("room:r", 1) == [Delivery("room:r", b"x", None)]

    def connections() -> int:
        clients: bytes = any_redis.command("CLIENT", "LIST")
        return clients.count(name.encode())

    await asyncio.to_thread(wait_until, lambda: connections() == 2, "one for commands, and one to listen")
    await broker.aclose()
    await asyncio.to_thread(wait_until, lambda: connections() == 0, "all connections are gone")


async def test_it_is_closed_where_it_was_opened(opened: Open) -> None:
    node = await opened()

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            await node.broker.aclose()

    await asyncio.to_thread(asyncio.run, elsewhere())
    await node.broker.publish("room:r", b"")


def test_a_loop_that_ended_without_closing_it(any_redis: RedisServer) -> None:
    broker = RedisBroker(any_redis.url)

    async def use() -> None:
        await broker.open(RecordingSink())
        await broker.publish("room:r", b"")

    with asyncio.Runner() as runner:
        runner.run(use())
    with asyncio.Runner() as runner:
        runner.run(broker.aclose())
    with asyncio.Runner() as runner:
        runner.run(use())
        runner.run(broker.aclose())


async def test_who_waits_for_a_read_is_told_that_it_was_closed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await opened()
    silent = asyncio.Event()

    async def run(*args: Any, **options: Any) -> Any:
        await silent.wait()

    monkeypatch.setattr(Commands, "run", run)
    asked = [asyncio.ensure_future(node.broker.read("room:r")) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[0].cancel()  # the other two are being served by now
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await node.broker.aclose()
    found = await asyncio.gather(*asked[1:], return_exceptions=True)
    assert [type(error) for error in found] == [NotRunning, NotRunning]


# -- what comes in


async def test_what_is_no_frame_is_passed_over_counted_and_told_once(
    opened: Open, any_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    node = await opened()
    await node.broker.subscribe(["room:r", "room:other"])
    channel = node.broker._names("room:r").channel
    with caplog.at_level(logging.WARNING, "rtkit.brokers.redis"):
        for frame in (b"hello", b"", b"2\nfrom the future"):
            any_redis.command("PUBLISH", channel, frame)
        assert await node.quiet("room:r") == []
    assert node.sink.interruptions == ["room:r"] * 3
    assert node.broker.statistics().foreign_frames == 3
    (record,) = [each for each in caplog.records if "somebody else" in each.message]
    assert "hello" not in record.message


async def test_complaints_come_once_a_minute(
    opened: Open, any_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    node = await opened()
    clock = ManualClock()
    node.broker._clock = clock
    await node.broker.subscribe(["room:r"])
    with caplog.at_level(logging.WARNING, "rtkit.brokers.redis"):
        for seconds in (0.0, 59.0, 2.0, 1.0):
            clock.advance_nowait(seconds)
            any_redis.command("PUBLISH", node.broker._names("room:r").channel, b"hello")
            await node.quiet("room:r")
    assert len([each for each in caplog.records if "somebody else" in each.message]) == 2


async def test_a_hub_whose_sink_fails_twice_harms_nobody(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    node = await opened()

    def fail(*args: Any) -> None:
        raise ValueError("a bug")

    await node.broker.subscribe(["room:r"])
    deliver, interrupted = node.sink.deliver, node.sink.interrupted
    node.sink.deliver, node.sink.interrupted = fail, fail  # type: ignore[method-assign]
    await node.broker.publish("room:r", b"x")
    await node.broker.subscribe(["room:s"])  # its confirmation comes after that
    node.sink.deliver, node.sink.interrupted = deliver, interrupted  # type: ignore[method-assign]
    assert await node.quiet("room:r") == []
    assert any("failed on a payload" in record.message for record in caplog.records)
    assert any("failed to note" in record.message for record in caplog.records)


async def test_databases_do_not_hear_each_other(opened: Open, any_redis: RedisServer) -> None:
    zero, three = await opened(), await opened(f"{any_redis.url}/3")
    for node in (zero, three):
        await node.broker.subscribe(["room:r"])
    await zero.broker.append("room:r", b"of zero", history=PLENTY)
    await three.broker.publish("room:r", b"of three")
    assert [each.payload for each in await zero.quiet("room:r")] == [b"of zero"]
    assert [each.payload for each in await three.quiet("room:r")] == [b"of three"]
    assert (await three.broker.read("room:r")).top == 0


async def test_applications_with_other_prefixes_do_not_meet(opened: Open) -> None:
    ours, theirs = await opened(), await opened(prefix="another")
    await ours.broker.subscribe(["room:r"])
    await theirs.broker.publish("room:r", b"x")
    await theirs.broker.put("room:r", "f", b"", ttl=1.0)
    assert await ours.quiet("room:r") == []
    assert await ours.broker.entries("room:r") == {}


# -- bounds


async def test_what_is_too_large_is_refused_before_anything_is_sent(opened: Open) -> None:
    node = await opened(max_payload=10)
    broker, sent = node.broker, node.broker.statistics().commands
    for call in (
        lambda: broker.publish("room:r", b"x" * 11),
        lambda: broker.append("room:r", b"x" * 11, history=PLENTY),
        lambda: broker.extend("room:r", [NewEntry(b""), NewEntry(b"x" * 11)], history=PLENTY),
        lambda: broker.revise("k:r", {}, ttl=1.0, expected={}, topic="room:r", payload=b"x" * 11),
    ):
        with pytest.raises(InvalidMessage):
            await call()
    assert broker.statistics().commands == sent
    await broker.publish("room:r", b"x" * 10)


async def test_one_act_publishes_no_more_than_redis_lets_a_subscriber_wait_for(opened: Open) -> None:
    node = await opened()
    with pytest.raises(InvalidMessage):
        await node.broker.extend("room:r", [NewEntry(b"x" * MAX_PAYLOAD)] * 5, history=PLENTY)


async def test_several_are_at_least_one_and_have_different_keys(opened: Open) -> None:
    node = await opened()
    for entries in ([], [NewEntry(b"a", "k"), NewEntry(b"b", "k")]):
        with pytest.raises(UsageError):
            await node.broker.extend("room:r", entries, history=PLENTY)


async def test_a_large_page_comes_in_pieces(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtkit.brokers.redis.streams, "_PAGE", 1000)
    node = await opened()
    for _ in range(5):
        await node.broker.append("room:r", b"x" * 400, history=PLENTY)
    page = await node.broker.read("room:r")
    assert ([entry.offset for entry in page.entries], page.end) == ([1, 2], 2)
    page = await node.broker.read("room:r", since=Position(page.epoch, page.end))
    assert ([entry.offset for entry in page.entries], page.start) == ([3, 4], 2)
    page = await node.broker.read("room:r", reverse=True)
    assert ([entry.offset for entry in page.entries], page.start) == ([5, 4], 3)


async def test_bounds_without_end(opened: Open) -> None:
    node = await opened()
    endless = History(10**30, ttl=float("inf"), size=10**30)
    await node.broker.append("room:r", b"x", history=endless)
    assert (await node.broker.read("room:r", limit=10**30, history=endless)).top == 1
    assert await node.broker.put("k:r", "f", b"", ttl=float("inf"))
    assert await node.broker.entries("k:r") == {"f": b""}
    far = Position("e" * 100, 10**30)
    assert (await node.broker.read("room:r", since=far)).lost == "epoch"
    assert (await node.broker.read("room:r", limit=-5)).entries == ()


@pytest.mark.parametrize(
    "name", ["", ":", "room:", "\ud800:\udfff", "a{b}c:d{e}f", "%", "x" * 1000, "room:\0\r\n"]
)
async def test_names_of_any_kind(opened: Open, name: str) -> None:
    node = await opened()
    await node.broker.subscribe([name])
    top = (await node.broker.append(name, b"x", history=PLENTY, key=name)).position
    assert (await node.broker.append(name, b"x", history=PLENTY, key=name)).duplicate
    assert await node.quiet(name) == [Delivery(name, b"x", top)]
    assert await node.broker.put(name, name, b"1", ttl=60.0)
    assert await node.broker.renew(name, [name, "other"], ttl=60.0) == ["other"]
    assert await node.broker.entries(name) == {name: b"1"}


async def test_a_field_that_is_no_text_is_nobodys(opened: Open, any_redis: RedisServer) -> None:
    node = await opened()
    await node.broker.put("k:r", "f", b"1", ttl=60.0)
    values, leases, _ = node.broker._names("k:r").values
    any_redis.command("HSET", values, b"\xff", "x")
    any_redis.command("ZADD", leases, 10**13, b"\xff")
    assert await node.broker.entries("k:r") == {"f": b"1"}


async def test_what_does_not_belong_together_is_not_revised(opened: Open) -> None:
    node = await opened()
    with pytest.raises(UsageError):
        await node.broker.revise("k:r", {}, ttl=1.0, expected={}, topic="room:other", payload=b"")


# -- what went wrong


async def test_what_was_damaged_is_said_and_not_mended(opened: Open, any_redis: RedisServer) -> None:
    node = await opened()
    await node.broker.append("room:r", b"x", history=PLENTY)
    any_redis.command("SET", node.broker._names("room:r").stream[0], "x")
    with pytest.raises(BrokerUnavailable, match="of another type"):
        await node.broker.append("room:r", b"y", history=PLENTY)
    with pytest.raises(BrokerUnavailable, match="of another type"):
        await node.broker.read("room:r")


async def test_what_was_written_and_not_published_is_not_said_to_be_undone(
    opened: Open, any_redis: RedisServer
) -> None:
    any_redis.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels")
    try:
        url = any_redis.url.replace("://", "://mute:secret@")
        mute, node = await opened(url), await opened()
        with pytest.raises(PublishUnknown, match="RTUNPUBLISHED"):
            await mute.broker.append("room:r", b"x", history=PLENTY)
        with pytest.raises(BrokerUnavailable, match="lacks a permission"):
            await mute.broker.publish("room:r", b"x")
        assert (await node.broker.read("room:r")).top == 1
    finally:
        any_redis.command("ACL", "DELUSER", "mute")


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every script whose caller allows it is run twice, as if the first answer had been lost."""
    run, again_allowed = Commands.run, []

    async def run_twice(self: Commands, *args: Any, again: bool, **options: Any) -> Any:
        again_allowed.append(again)
        if again:
            await run(self, *args, again=again, **options)
        return await run(self, *args, again=again, **options)

    monkeypatch.setattr(Commands, "run", run_twice)
    return again_allowed


async def test_an_append_that_was_tried_again_is_no_repeat(opened: Open, twice: list[bool]) -> None:
    node = await opened()
    await node.broker.subscribe(["room:r"])
    first = await node.broker.append("room:r", b"a", history=PLENTY, key="k")
    assert (first.position.offset, first.duplicate) == (1, False)
    second = await node.broker.append("room:r", b"b", history=PLENTY, key="l", expected=first.position)
    assert (second.position.offset, second.duplicate) == (2, False)
    entries = [NewEntry(b"c", "m"), NewEntry(b"d"), NewEntry(b"e", "n"), NewEntry(b"f")]
    assert (await node.broker.extend("room:r", entries, history=PLENTY)).offset == 6
    again = await node.broker.append("room:r", b"a", history=PLENTY, key="k")
    assert again == Appended(first.position, duplicate=True)
    with pytest.raises(Repeated) as caught:
        await node.broker.extend("room:r", [NewEntry(b"g", "o"), *entries], history=PLENTY)
    assert {key: position.offset for key, position in caught.value.positions.items()} == {"m": 3, "n": 5}
    assert [each.payload for each in await node.quiet("room:r")] == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert all(twice)


async def test_only_what_is_harmless_is_tried_again(opened: Open, twice: list[bool]) -> None:
    node = await opened()
    broker = node.broker
    for call in (
        lambda: broker.append("room:r", b"a", history=PLENTY),
        lambda: broker.extend("room:r", [NewEntry(b"a")], history=PLENTY),
        lambda: broker.clear("room:r"),
        lambda: broker.put("k:r", "f", b"", ttl=60.0),
        lambda: broker.put("k:r", "f", b"1", ttl=60.0, expected=b""),
        lambda: broker.revise("k:r", {}, ttl=1.0, expected={}, topic="room:r", payload=b""),
        lambda: broker.remove("k:r", "f"),
    ):
        await call()
    assert twice == [False] * 7
    twice.clear()
    for call in (
        lambda: broker.read("room:r"),
        lambda: broker.renew("k:r", ["f"], ttl=60.0),
        lambda: broker.entries("k:r"),
        lambda: broker.revision("k:r"),
        lambda: broker.positions(["k:r"]),
    ):
        await call()
    assert twice == [True] * 5


async def test_who_only_reads_is_not_told_that_something_may_have_been_done(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await opened()

    async def run(*args: Any, **options: Any) -> Any:
        raise PublishUnknown("no answer")

    monkeypatch.setattr(Commands, "run", run)
    for call in (
        lambda: node.broker.read("room:r"),
        lambda: node.broker.entries("k:r"),
        lambda: node.broker.revision("k:r"),
        lambda: node.broker.positions(["k:r"]),
    ):
        with pytest.raises(BrokerUnavailable, match="no answer"):
            await call()
    with pytest.raises(PublishUnknown):
        await node.broker.append("room:r", b"", history=PLENTY, key="k")


async def test_a_user_needs_these_commands_and_no_others(
    any_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    mine = ("eval", "evalsha", "select", "wait", "subscribe", "unsubscribe")
    rights = [f"+{name}" for name in (*COMMANDS, *mine)]
    any_redis.command("ACL", "SETUSER", "app", "on", ">secret", "~acl:*", "&acl:*", "-@all", *rights)
    url = any_redis.url.replace("://", "://app:secret@")
    broker, sink = RedisBroker(f"{url}/1", prefix="acl", patience=0.4, wait_timeout=0.1), RecordingSink()
    await broker.open(sink)
    try:
        node = Node(broker, sink, 5.0)
        await broker.subscribe(["room:r"])
        await broker.append("room:r", b"1", history=PLENTY, key="k")
        await broker.append("room:r", b"1", history=PLENTY, key="k")
        await broker.clear("room:r")
        with pytest.raises(PublishUnknown, match="0 of 1 replicas"):
            await broker.append("room:r", b"2", history=History(1, ttl=60.0), durability="replicated")
        await broker.read("room:r")
        await broker.read("room:r", reverse=True)
        await broker.revise("k:r", {"a": b"1"}, ttl=60.0, expected={}, topic="room:r", payload=b"3")
        await broker.put("k:r", "f", b"", ttl=0.0)
        await broker.renew("k:r", ["f", "a"], ttl=60.0)
        await broker.revision("k:r")
        await broker.positions(["k:r"])
        await broker.entries("k:r")
        await broker.remove("k:r", "a")
        assert [each.payload for each in await node.quiet("room:r")] == [b"1", b"2", b"3"]
        await broker.unsubscribe(["room:r"])
    finally:
        await broker.aclose()
        any_redis.command("ACL", "DELUSER", "app")
    denied = any_redis.command("ACL", "LOG")
    assert not [entry for entry in denied if b"app" in entry and b"client|setinfo" not in entry]
    assert not caplog.records


# -- durability


@pytest.fixture(scope="module")
def pair() -> Any:
    with RedisPair("valkey", appendonly="no") as pair:
        yield pair


async def test_what_is_replicated_is_on_the_replica_when_it_is_acknowledged(
    opened: Open, pair: RedisPair
) -> None:
    node = await opened(pair.url)
    entries = node.broker._names("room:r").stream[1]
    for number, key in enumerate((None, "k", "k"), 1):
        before = pair.primary.info("persistence")["rdb_changes_since_last_save"]
        found = await node.broker.append("room:r", b"x", history=REPLICATED, key=key, durability="replicated")
        assert found.duplicate == (number == 3)
        assert pair.replica.command("XLEN", entries) == min(number, 2)
        # A repeat writes too, or WAIT would have answered for nothing.
        assert pair.primary.info("persistence")["rdb_changes_since_last_save"] != before
    last = await node.broker.extend(
        "room:r", [NewEntry(b"y"), NewEntry(b"z")], history=REPLICATED, durability="replicated"
    )
    assert last.offset == 4
    assert pair.replica.command("XLEN", entries) == 4


@pytest.mark.parametrize("key", [None, "k"])
async def test_without_a_replica_nobody_knows_and_it_is_there_once(
    opened: Open, any_redis: RedisServer, key: str | None
) -> None:
    node = await opened(patience=0.4, wait_timeout=0.05)
    await node.broker.subscribe(["room:r"])
    any_redis.command("CONFIG", "RESETSTAT")
    with pytest.raises(PublishUnknown):
        await node.broker.append("room:r", b"x", history=REPLICATED, key=key, durability="replicated")
    # It was tried again and again, with one key.
    assert not any_redis.info("commandstats")["cmdstat_wait"].startswith("calls=1,")
    assert [each.payload for each in await node.quiet("room:r")] == [b"x"]
    assert (await node.broker.read("room:r")).top == 1


# -- reading together


async def test_equal_reads_at_the_same_time_are_made_once(opened: Open) -> None:
    node = await opened()
    await node.broker.append("room:r", b"1", history=PLENTY)
    before = node.broker.statistics().commands
    pages = await asyncio.gather(*(node.broker.read("room:r", limit=5) for _ in range(100)))
    assert {page.top for page in pages} == {1}
    assert node.broker.statistics().commands - before == 2
    assert node.broker.statistics().reads_shared == 98


async def test_reads_that_differ_are_not_shared(opened: Open) -> None:
    node = await opened()
    for topic in ("room:r", "room:s"):
        for _ in range(5):
            top = (await node.broker.append(topic, topic.encode(), history=PLENTY)).position
    asked: list[tuple[str, dict[str, Any]]] = [
        ("room:r", {}),
        ("room:s", {}),
        ("room:s", {"limit": 1}),
        ("room:s", {"reverse": True}),
        ("room:s", {"since": Position(top.epoch, 2)}),
        ("room:s", {"since": Position(top.epoch, 3)}),
        ("room:s", {"since": Position("another", 3)}),
    ]
    alone = [await node.broker.read(topic, **options) for topic, options in asked]
    together = await asyncio.gather(*(node.broker.read(topic, **options) for topic, options in asked * 3))
    assert together == alone * 3
    bounded, whole = await asyncio.gather(
        node.broker.read("room:r", history=History(2, ttl=60.0)), node.broker.read("room:s")
    )
    assert (len(bounded.entries), len(whole.entries)) == (2, 5)
    first, second = await asyncio.gather(
        node.broker.read("room:s"), node.broker.read("room:s", history=History(2, ttl=60.0))
    )
    assert (len(first.entries), len(second.entries)) == (5, 2)


async def test_a_read_shows_what_was_acknowledged_before_it_began(opened: Open) -> None:
    node = await opened()

    async def append_and_read(number: int) -> None:
        position = (await node.broker.append("room:r", b"%d" % number, history=PLENTY)).position
        page = await node.broker.read("room:r", limit=0)
        assert page.top >= position.offset

    await asyncio.gather(*(append_and_read(number) for number in range(200)))


async def test_what_it_counts(opened: Open, any_redis: RedisServer) -> None:
    node = await opened()
    await node.broker.append("room:r", b"1", history=PLENTY)
    any_redis.command("HSET", node.broker._names("room:r").stream[0], "server", "another")
    await node.broker.append("room:r", b"2", history=PLENTY)
    any_redis.command("HSET", node.broker._names("room:r").stream[0], "server", "a third")
    await node.broker.read("room:r")
    counted = node.broker.statistics()
    assert (counted.takeovers, counted.commands) == (2, 3)
    await node.broker.read("room:r")
    assert counted.commands == 3, "it is a picture"
