"""SIGKILL for a node, over a real Redis: who was on it leaves everywhere, once, in time (P3); and nothing lingers.

:mod:`tests.simulation.test_presence` has the many ways in which that can go; here nothing is simulated.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.chaos.world import eventually
from tests.support.daemons import free_port
from tests.support.redises import Kind, RedisServer
from tests.support.sitters import Outdoors, Sitter, Watcher

ROOT = Path(__file__).parents[2]
NODES = ("n0", "n1", "n2")
MEMBERS = 12

#: What may lie in Redis when all clients have gone and all nodes have ended, and for how many seconds.
REMAINS = {
    "secret": 30 * 86400,  # signs resume tokens: the same for nodes to come
    "revocations": 30 * 86400,  # whom nodes to come may not let in; here it is the empty list's beginning
    "session": 86400,  # taken up once, by a node that was killed: older tokens of it stay void while they are good
}


class Node:
    """A hub in a process of its own."""

    def __init__(self, redis: RedisServer, lease: float) -> None:
        self.port = free_port()
        command = [
            sys.executable,
            "-m",
            "tests.integration.presence_node",
            redis.url,
            str(self.port),
            str(lease),
        ]
        self._process = subprocess.Popen(command, cwd=ROOT)

    async def ready(self) -> None:
        async def listens() -> bool:
            assert self._process.poll() is None, "it has ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        assert await eventually(listens)

    async def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        await asyncio.to_thread(self._process.wait)

    def bury(self) -> None:
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def nodes(redis: RedisServer, lease: float) -> AsyncGenerator[dict[str, Node]]:
    async with AsyncExitStack() as stack:
        started = {}
        for name in NODES:
            started[name] = Node(redis, lease)
            stack.callback(started[name].bury)
        for node in started.values():
            await node.ready()
        yield started


def kind_and_name(key: str) -> tuple[str, str]:
    """Of ``rt:{<name>}:<kind>:<part>``."""
    name, _, rest = key.removeprefix("rt:{").partition("}:")
    return rest.split(":")[0] or name, name


def keys(redis: RedisServer) -> dict[str, int]:
    """All that lies there, each with the seconds it will."""
    found: list[bytes] = []
    cursor = b"0"
    while True:
        cursor, some = redis.command("SCAN", cursor, "COUNT", 1000)
        found += some
        if int(cursor) == 0:
            return {key.decode(): int(redis.command("TTL", key)) for key in found}


async def kill_one(seed: int, *, lease: float, kind: Kind = "redis") -> str:
    chance = random.Random(seed)
    with RedisServer(kind, appendonly="no") as redis:
        async with nodes(redis, lease) as started:
            world = Outdoors({name: node.port for name, node in started.items()})
            began = world.now
            watchers = [Watcher(world, f"w{number}", NODES[number % 3]) for number in range(6)]
            members = [Sitter(world, f"m{number}", chance.choice(NODES)) for number in range(MEMBERS)]
            everybody = [*watchers, *members]
            for sitter in everybody:
                sitter.come()
            assert await eventually(lambda: all(each.inside for each in everybody))
            # Some have been elsewhere before.
            for sitter in chance.sample(members, k=4):
                sitter.lose()
                sitter.come(chance.choice(NODES))
            assert await eventually(lambda: all(len(each.members) == len(everybody) for each in watchers))
            assert await eventually(lambda: all(each.inside for each in members))
            await asyncio.sleep(max(0.0, began + lease - world.now) + chance.uniform(0, lease / 3))

            victim = members[0].node
            doomed = [sitter for sitter in everybody if sitter.node == victim]
            back = [sitter for sitter in doomed if sitter in members[1::3]]
            gone = [sitter for sitter in doomed if sitter not in back]
            stay = [watcher for watcher in watchers if watcher not in doomed]
            died = world.now
            await started[victim].end(signal.SIGKILL)
            for sitter in doomed:
                sitter.lose()
            for sitter in back:
                sitter.come(chance.choice([name for name in NODES if name != victim]))

            def have_left() -> bool:
                return all(not ({each.client for each in gone} & watcher.members.keys()) for watcher in stay)

            assert await eventually(have_left), "they have left"
            took = world.now - died
            assert await eventually(lambda: all(each.inside and each.resumed for each in back))
            # Whoever would take them away once more, or others, has done so then.
            await asyncio.sleep(lease / 2 + 0.5)
            # Who was back before the lease can have ended is not to be noticed at all (P4); a busy machine may be late.
            unseen = [
                each for each in back if each.entered_at is not None and each.entered_at - died < 0.6 * lease
            ]
            late = {each.name for each in back} - {each.name for each in unseen}
            for watcher in stay:
                assert not watcher.wrong
                seen = [each for each in watcher.seen if each.user not in late]
                counted = Counter((each.what, each.user) for each in seen)
                assert {user for (what, user) in counted if what == "leave"} == {each.name for each in gone}
                assert set(counted.values()) == {1}, counted
                for each in seen:
                    if each.what == "leave":
                        # A lease and a check; and what a busy machine takes to tell.
                        assert 0.65 * lease < each.when - died < 1.5 * lease + 2.0
            for sitter in everybody:
                if sitter.inside:
                    await sitter.leave()
            for name in NODES:
                if name != victim:
                    await started[name].end(signal.SIGTERM)
            remains = keys(redis)
            for key, seconds in remains.items():
                what, name = kind_and_name(key)
                assert what in REMAINS and 0 < seconds <= REMAINS[what], key
                assert what != "session" or name in {id for each in gone for id in each.ids}, key
            return f"seed {seed}: {len(gone)} left within {took:.1f} s, {len(back)} moved; left over: {[*remains]}"


async def test_a_node_is_killed() -> None:
    assert await kill_one(1, lease=3.0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_ten_times_with_the_lease_as_it_is(seed: int) -> None:
    print(await kill_one(seed, lease=10.0, kind="valkey" if seed % 2 else "redis"))  # noqa: T201
