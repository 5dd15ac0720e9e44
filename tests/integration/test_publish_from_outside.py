"""Publishers outside of hubs, on a real Redis: forked workers, a server that goes and comes back (B4, B8, H7)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Publisher, Router, anonymous
from rtkit.errors import BrokerUnavailable, Unavailable
from rtkit.sync import Publisher as SyncPublisher
from tests.support.redises import RedisServer

ROOT = Path(__file__).parents[2]
PATIENCE = 25.0

GUNICORN = """
import os, sys, threading, warnings
from rtkit import Grant, History, Router
from rtkit.sync import Publisher

# What `gunicorn --preload` imports.
router = Router()
router.rooms("kept", publishes=object, grant=Grant(), history=History(1000, ttl=600))
publisher = Publisher(sys.argv[1], router)

def work(name):
    def publish(n):
        for m in range(5):
            for _ in range(2):  # as a queue that delivers twice
                publisher.publish("kept", [name, n, m], key=f"{name} {n} {m}")
    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

publisher.publish("kept", "before")
if sys.argv[2] == "closes":
    publisher.close()
else:
    warnings.simplefilter("ignore")  # of forking while there are threads
pids = []
for name in range(4):
    pid = os.fork()
    if not pid:
        work(name)
        sys.exit()
    pids.append(pid)
publisher.publish("kept", "meanwhile")
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
publisher.publish("kept", "after")
"""


def declare() -> Router[Any]:
    router: Router[Any] = Router()
    router.rooms("kept", publishes=object, grant=Grant(), history=History(1000, ttl=600))
    return router


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


async def stored(redis: RedisServer) -> list[Any]:
    """All that was published, in the order of its offsets, which have no hole."""
    hub: Hub[Any] = Hub(authenticate=anonymous, broker=redis.url)
    hub.include(declare())
    async with hub:
        page = await hub.room("kept").history(limit=1000)
    offsets = [message.position.offset for message in page.messages if message.position is not None]
    assert offsets == list(range(1, len(page.messages) + 1))
    return [message.data for message in page.messages]


async def until_published(publish: Callable[[], Awaitable[object]]) -> None:
    """That the server is back takes a moment to be noticed."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await publish()
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("parent", ["closes", "stays open"])
async def test_prefork(redis: RedisServer, parent: str) -> None:
    """Each message is there once, and those of one thread are in order."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "default", "-c", GUNICORN, redis.url, parent),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    said = await stored(redis)
    by_workers = [each for each in said if isinstance(each, list)]
    assert [each for each in said if each not in by_workers] == ["before", "meanwhile", "after"]
    assert Counter(map(tuple, by_workers)) == Counter(
        (name, n, m) for name in range(4) for n in range(4) for m in range(5)
    )
    for name in range(4):
        for n in range(4):
            assert [m for *who, m in by_workers if who == [name, n]] == list(range(5))


async def test_a_server_that_goes_and_comes_back(redis: RedisServer) -> None:
    """What was refused was not stored, and what was stored is there, whichever publisher it came from."""
    asynchronous = Publisher(redis.url, declare(), timeout=2)
    synchronous = SyncPublisher(redis.url, declare(), timeout=2)
    try:
        await asynchronous.publish("kept", 1)
        await asyncio.to_thread(synchronous.publish, "kept", 2)
        await asyncio.to_thread(redis.kill)
        with pytest.raises(Unavailable):
            await asynchronous.publish("kept", "lost", key="a")
        with pytest.raises(Unavailable):
            await asyncio.to_thread(synchronous.publish, "kept", "lost", key="b")
        await asyncio.to_thread(redis.start)
        await until_published(lambda: asynchronous.publish("kept", 3, key="a"))
        await until_published(lambda: asyncio.to_thread(synchronous.publish, "kept", 4, key="b"))
        assert await stored(redis) == [1, 2, 3, 4]
    finally:
        await asynchronous.aclose()
        await asyncio.to_thread(synchronous.close)


async def test_a_server_that_is_not_there_at_first(redis: RedisServer) -> None:
    await asyncio.to_thread(redis.kill)
    publisher = SyncPublisher(redis.url, declare(), timeout=0.5)
    with pytest.raises(BrokerUnavailable):
        await asyncio.to_thread(publisher.publish, "kept", 1)
    await asyncio.to_thread(redis.start)
    await asyncio.to_thread(publisher.publish, "kept", 2)
    await asyncio.to_thread(publisher.close)
    assert await stored(redis) == [2]
