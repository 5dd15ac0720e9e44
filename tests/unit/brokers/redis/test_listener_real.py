"""Commands and subscriptions on real servers: what is killed, frozen, replaced and moved comes back, and is told."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from rtkit.brokers.redis.commands import Commands
from rtkit.brokers.redis.listener import Listener
from rtkit.brokers.redis.servers import servers_from_url, slot_of
from rtkit.errors import BrokerUnavailable, PublishUnknown, Unavailable
from rtkit.primitives import LoopClock
from tests.support.cable import Cable
from tests.support.redises import RedisCluster, RedisPair, RedisServer, SentinelTrio

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", ["redis", "valkey"])
#: Failovers of which the suite has seen the like with the other kind.
REST = [("redis", "order"), ("redis", "kill"), ("valkey", "freeze")]


class Append:
    """Writes."""

    name = "append"
    text = "return redis.call('RPUSH', KEYS[1], ARGV[1])"
    sha = hashlib.sha1(text.encode()).hexdigest()


async def until(true: Callable[[], Any], what: str, within: float = 20.0) -> None:
    """Wait for something that happens outside of this process."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


def tag_of(channel: bytes) -> str:
    return channel[channel.index(b"{") + 1 : channel.index(b"}")].decode()


def channel(tag: str) -> bytes:
    return f"real:{{{tag}}}:x".encode()


class Node:
    """A listener and its commands, and what was heard."""

    def __init__(self, url: str, **options: Any) -> None:
        self.messages: list[bytes] = []
        self.interrupted: list[bytes] = []
        self.times = 0
        servers = servers_from_url(url)
        self.sharded = servers.sharded
        self.commands = Commands(servers, clock=LoopClock(), **options)
        self.listener = Listener(
            servers,
            self.commands,
            deliver=lambda channel, content: self.messages.append(content),
            interrupted=self._interrupted,
            tag_of=tag_of,
            probe_channel=lambda tag: f"real:{{{tag}}}:probe".encode(),
            clock=LoopClock(),
        )

    def _interrupted(self, channels: Sequence[bytes]) -> None:
        self.times += 1
        self.interrupted.extend(channels)

    async def publish(self, tag: str, content: str) -> Any:
        name = "SPUBLISH" if self.sharded else "PUBLISH"
        return await self.commands.execute(tag, name, channel(tag), content, again=False)

    async def append(self, tag: str, content: str, *, again: bool = True, replicated: bool = False) -> Any:
        return await self.commands.run(
            tag, Append(), [f"real:{{{tag}}}:list"], [content], again=again, replicated=replicated
        )

    async def hears(self, tag: str, content: str) -> None:
        """What is published arrives, in the end: while a connection is replaced, one may be missed."""
        end = time.monotonic() + 30
        while content.encode() not in self.messages:
            assert time.monotonic() < end, f"{content} is heard"
            with suppress(Unavailable):
                await self.publish(tag, content)
            with suppress(AssertionError):
                await until(lambda: content.encode() in self.messages, "", 0.5)


@asynccontextmanager
async def node(url: str, **options: Any) -> AsyncGenerator[Node]:
    found = Node(url, **options)
    before = asyncio.all_tasks()
    await found.commands.open()
    try:
        await found.listener.open()
        yield found
    finally:
        await found.listener.aclose()
        await found.commands.aclose()
    left = {task for task in asyncio.all_tasks() - before if "rtkit" in str(task.get_stack())}
    assert left == set()


async def test_a_subscription_connection_that_is_killed_comes_back_within_a_second(
    any_redis: RedisServer,
) -> None:
    async with node(any_redis.url) as found:
        await found.listener.subscribe([channel("a"), channel("b")])
        await found.hears("a", "before")
        begun = time.monotonic()
        any_redis.kill_connections("pubsub")
        await until(lambda: found.times, "told")
        assert time.monotonic() - begun < 5  # 0.1 s on a machine with time
        assert sorted(found.interrupted) == [channel("a"), channel("b")]
        await found.hears("b", "after")


async def test_ten_thousand_channels_are_restored_in_one_go(any_redis: RedisServer) -> None:
    async with node(any_redis.url) as found:
        await found.listener.subscribe([channel(f"{n}") for n in range(10_000)])
        any_redis.kill_connections("pubsub")
        begun = time.monotonic()
        await until(lambda: found.times, "told")
        assert time.monotonic() - begun < 15  # 0.5 s on a machine with time
        assert len(found.interrupted) == 10_000
        assert found.times == 1
        await found.hears("9999", "after")


async def test_connections_for_commands_that_are_killed_come_back(any_redis: RedisServer) -> None:
    async with node(any_redis.url) as found:
        any_redis.kill_connections("normal")
        await until(lambda: found.commands.counters.reconnections, "back")
        assert await found.append("a", "x", again=False) > 0


@KINDS
async def test_a_server_that_was_killed_and_started_is_used_again(kind: Any) -> None:
    with RedisServer(kind) as server:
        async with node(server.url) as found:
            await found.listener.subscribe([channel("a")])
            assert await found.append("a", "1") == 1
            await asyncio.to_thread(server.kill)
            with pytest.raises(Unavailable):
                await found.append("a", "2", again=False)
            await asyncio.to_thread(server.start)
            await until(lambda: found.times, "told")
            assert found.interrupted == [channel("a")]
            assert await found.append("a", "3") >= 1
            await found.hears("a", "after")


async def test_a_frozen_server_makes_unknown_and_thaws() -> None:
    with RedisServer() as server:
        async with node(server.url, patience=0.5) as found:
            await found.listener.subscribe([channel("a")])
            server.freeze()
            begun = time.monotonic()
            with pytest.raises(PublishUnknown):
                await found.append("a", "1", again=True)
            with pytest.raises(BrokerUnavailable):
                await found.append("a", "2", again=True)
            assert time.monotonic() - begun < 10
            server.thaw()
            for _ in range(100):
                try:
                    assert await found.append("a", "3") >= 1
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
            await found.hears("a", "after")


async def test_a_changed_password_keeps_us_out_until_it_is_ours_again() -> None:
    with RedisServer(password="first") as server:
        async with node(server.url, patience=0.5) as found:
            server.set("requirepass", "second")
            server.password = "second"
            server.kill_connections("normal")
            await until(
                lambda: any("password" in link.why for link in found.commands._links.values()), "kept out"
            )
            with pytest.raises(BrokerUnavailable, match="password"):
                await found.append("a", "1")
            server.set("requirepass", "first")
            server.password = "first"
            await until(lambda: found.commands.counters.reconnections, "back")
            assert await found.append("a", "2") == 1


async def test_a_replica_is_not_used_and_a_demoted_primary_is_left() -> None:
    with RedisPair() as pair:
        with pytest.raises(BrokerUnavailable, match="no primary"):
            await Commands(servers_from_url(pair.replica.url), clock=LoopClock(), patience=0.3).open()
        async with node(pair.url, patience=0.5) as found:
            assert await found.append("a", "1") == 1
            await asyncio.to_thread(pair.primary.replicate, pair.replica)
            with pytest.raises(BrokerUnavailable, match="replica"):
                await found.append("a", "2")
            await asyncio.to_thread(pair.primary.replicate, None)
            await until(lambda: found.commands.counters.reconnections, "back")
            assert await found.append("a", "3") >= 1


async def test_refusals_of_a_real_server_are_told_with_their_cause() -> None:
    with RedisServer() as server:
        async with node(server.url) as found:
            server.set("maxmemory", "1")
            with pytest.raises(BrokerUnavailable, match="maxmemory"):
                await found.append("a", "1")
            server.set("maxmemory", "0")
            server.set("min-replicas-to-write", "1")
            with pytest.raises(BrokerUnavailable, match="min-replicas-to-write"):
                await found.append("a", "1")
            server.set("min-replicas-to-write", "0")
            server.command("SET", "real:{a}:list", "no list")
            with pytest.raises(BrokerUnavailable, match="not ours"):
                await found.append("a", "1")
            server.command("ACL", "SETUSER", "default", "-rpush")
            # The script may have come some way before it met what it must not do.
            with pytest.raises(PublishUnknown, match="can't run this command"):
                await found.append("a", "1")
            server.command("ACL", "SETUSER", "default", "-evalsha")
            with pytest.raises(BrokerUnavailable, match="permission"):
                await found.append("a", "1")
            assert found.commands.counters.reconnections == 0


async def test_replicated_means_that_a_replica_has_it_and_a_frozen_one_makes_it_unknown() -> None:
    with RedisPair() as pair:
        async with node(pair.url, wait_timeout=0.3) as found:
            # More than once, when the replica is only just in step and slow to confirm.
            length = await found.append("a", "1", replicated=True)
            assert pair.replica.command("LRANGE", "real:{a}:list", 0, -1) == [b"1"] * length
            pair.replica.freeze()
            with pytest.raises(PublishUnknown, match="0 of 1 replicas"):
                await found.append("a", "2", replicated=True, again=False)
            with pytest.raises(PublishUnknown):
                await found.append("a", "3", replicated=True, again=True)
            assert await found.append("b", "stored") == 1  # who needs no replica does not wait for one
            pair.replica.thaw()
            for _ in range(50):
                try:
                    await found.append("a", "4", replicated=True)
                    break
                except PublishUnknown:
                    continue
            assert pair.replica.command("LRANGE", "real:{a}:list", -1, -1) == [b"4"]


async def test_a_slow_reader_that_the_server_cuts_off_comes_back_and_is_told() -> None:
    with RedisServer(client_output_buffer_limit="pubsub 256kb 128kb 1") as server:
        async with node(server.url) as found:
            await found.listener.subscribe([channel("a")])
            # While our loop stands still, more is published than the server keeps for us.
            for _ in range(60):
                server.command("PUBLISH", channel("a"), b"x" * 500_000)
            await until(lambda: found.times, "told")
            assert found.interrupted == [channel("a")]
            await found.hears("a", "after")


async def test_a_connection_that_only_speaks_is_found_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtkit.brokers.redis.ears._PROBE", 0.3)
    with RedisServer() as server:
        async with Cable(server.port) as cable, node(f"redis://127.0.0.1:{cable.port}") as found:
            await found.listener.subscribe([channel("a")])
            await found.hears("a", "before")
            cable.deafen(b"")  # both directions back; the connection for commands is given up for its silence
            await until(lambda: found.times, "told")
            await found.hears("a", "after")
            assert found.commands.counters.probes_missed >= 2


async def test_a_listener_on_a_replica_that_was_cut_off_is_found_deaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The subscription lives on the old primary, which is nobody's any more; everything is answered."""
    monkeypatch.setattr("rtkit.brokers.redis.ears._PROBE", 0.3)
    with RedisServer() as one, RedisServer() as two:
        async with Cable(one.port) as cable, node(f"redis://127.0.0.1:{cable.port}") as found:
            await found.listener.subscribe([channel("a")])
            cable._target = two.port  # new connections go to the new primary
            one.kill_connections("normal")  # those for commands only
            await until(lambda: found.times, "told")
            assert found.interrupted == [channel("a")]
            assert two.command("PUBSUB", "NUMSUB", channel("a"))[1] == 1
            await found.hears("a", "after")


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("redis", "freeze"),
        ("valkey", "kill"),
        ("valkey", "order"),
        *(pytest.param(*each, marks=pytest.mark.soak) for each in REST),
    ],
)
async def test_after_a_failover_by_sentinel_the_new_primary_is_used(kind: Any, how: str) -> None:
    trio = SentinelTrio(kind)
    await asyncio.to_thread(trio.__enter__)
    try:
        async with node(trio.url, patience=1.0) as found:
            await found.listener.subscribe([channel("a")])
            assert await found.append("a", "1", replicated=True) >= 1
            old = trio.current()
            if how == "order":
                new = await asyncio.to_thread(trio.failover)
                await asyncio.to_thread(
                    trio.wait_settled
                )  # until then the old one takes writes, and loses them
            else:
                await asyncio.to_thread(old.kill if how == "kill" else old.freeze)
                new = await asyncio.to_thread(trio.wait_for_other_than, old)
            for _ in range(300):
                try:
                    await found.append("a", "2")
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
            assert b"2" in new.command("LRANGE", "real:{a}:list", 0, -1)
            await until(lambda: found.times, "told", 40)
            await found.hears("a", "after")
            assert new.command("PUBSUB", "NUMSUB", channel("a"))[1] == 1
    finally:
        await asyncio.to_thread(trio.__exit__)


@KINDS
async def test_in_a_cluster_subscriptions_follow_a_slot_that_moves(kind: Any) -> None:
    cluster = RedisCluster(kind)
    await asyncio.to_thread(cluster.__enter__)
    try:
        async with node(cluster.url) as found:
            tags = [f"t{n}" for n in range(30)]
            await found.listener.subscribe([channel(tag) for tag in tags])
            for tag in tags:
                assert await found.append(tag, "1") == 1
                await found.hears(tag, f"before {tag}")
            slot = slot_of("t0")
            source = cluster.owner_of(slot)
            target = next(each for each in cluster.primaries if each is not source)
            await asyncio.to_thread(cluster.migrate, slot, target)
            await until(lambda: found.times, "told")
            assert set(found.interrupted) == {channel(tag) for tag in tags if slot_of(tag) == slot}
            assert await found.append("t0", "2") == 2
            for tag in tags:
                await found.hears(tag, f"after {tag}")
            assert target.command("PUBSUB", "SHARDNUMSUB", channel("t0"))[1] == 1
    finally:
        await asyncio.to_thread(cluster.__exit__)


async def test_in_a_cluster_commands_go_on_while_a_slot_is_on_its_way() -> None:
    cluster = RedisCluster()
    await asyncio.to_thread(cluster.__enter__)
    try:
        async with node(cluster.url) as found:
            assert await found.append("t0", "1") == 1
            slot = slot_of("t0")
            target = next(each for each in cluster.primaries if each is not cluster.owner_of(slot))
            done = 1
            moving = asyncio.create_task(asyncio.to_thread(cluster.migrate, slot, target))
            while not moving.done() or done < 50:
                done += 1
                assert await found.append("t0", f"{done}", again=False) == done
            await moving
            # A key that is not there yet is asked for at the new owner.
            other = next(f"u{n}" for n in range(1000) if slot_of(f"u{n}") != slot)
            assert await found.append(other, "1", again=False) == 1
    finally:
        await asyncio.to_thread(cluster.__exit__)


async def test_in_a_cluster_a_primary_that_dies_is_replaced() -> None:
    cluster = RedisCluster(replicas=1)
    await asyncio.to_thread(cluster.__enter__)
    try:
        async with node(cluster.url, patience=1.0) as found:
            tags = [f"t{n}" for n in range(12)]
            await found.listener.subscribe([channel(tag) for tag in tags])
            slot = slot_of("t0")
            old = cluster.owner_of(slot)
            theirs = {channel(tag) for tag in tags if cluster.owner_of(slot_of(tag)) is old}
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(cluster.wait_taken_over, slot, old)
            await until(lambda: theirs <= set(found.interrupted), "told", 40)
            for tag in tags:
                await found.hears(tag, f"after {tag}")
            assert await found.append("t0", "1") >= 1
    finally:
        await asyncio.to_thread(cluster.__exit__)
