"""Three processes behind nginx, over Redis, and one of them is killed: no sticky sessions, nothing is lost (T2, C3).

It is :mod:`tests.integration.test_no_sticky_sessions` with nothing in between that is not real: each request of a
client goes to the next process, WebSockets too, and what the dead one knew, nobody else does.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from rtkit.brokers.redis import RedisBroker
from tests.chaos.world import TRANSPORTS, Plan, World, eventually
from tests.support.balancer import nginx_with
from tests.support.daemons import free_port
from tests.support.redises import RedisServer

ROOT = Path(__file__).parents[2]

# The servers in turn, whatever became of them: who cannot be reached is passed over.
_NGINX = """
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    upstream hubs {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location /rt/ {{
            proxy_pass http://hubs;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
"""


class Process:
    """A hub in a process of its own."""

    def __init__(self, broker: str, plan: Plan) -> None:
        self.port = free_port()
        rooms = [f"{name}={durability}" for name, durability in plan.rooms]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.node", broker, str(self.port), *rooms], cwd=ROOT
        )

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

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def processes(broker: str, plan: Plan, count: int = 3) -> AsyncGenerator[tuple[list[Process], str]]:
    """So many processes, and the URL of the nginx before them."""
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(count):
            process = Process(broker, plan)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            await process.ready()
        port = free_port()
        servers = " ".join(f"server 127.0.0.1:{each.port} max_fails=0;" for each in started)
        await stack.enter_async_context(nginx_with(_NGINX.format(servers=servers, port=port), port))
        yield started, f"http://127.0.0.1:{port}/rt"


async def run(seed: int, *, each: int = 1, messages: int = 150) -> str:
    plan = Plan(nodes=1, members=0, publishers=1)
    choice = random.Random(seed)
    with RedisServer() as redis:
        async with (
            processes(redis.url, plan) as (started, url),
            World.of(lambda: RedisBroker(redis.url), plan=plan, seed=seed, context="processes") as world,
        ):
            for room, transport, _ in itertools.product(("a", "b"), TRANSPORTS, range(each)):
                await world.enter(room, 0, transport, url=url)
            await world.enter_raw("a", 0, url=url)
            world.record.note("all are in")
            world.talk()
            await world.progress(messages // 3)
            victim = choice.choice(started)
            world.record.note(f"the process at {victim.port} is killed")
            await asyncio.to_thread(victim.kill)
            await world.progress(messages - messages // 3)
            world.record.note("enough")
            record = await world.settle()
            assert not [gap for member in record.members for gap in member.gaps], "nothing was lost at all"
            return record.summary()


async def test_a_process_is_killed_and_nothing_is_lost() -> None:
    assert await run(1)


@pytest.mark.soak
async def test_thirty_times_in_a_row() -> None:
    for seed in range(30):
        print(seed, await run(seed, each=3, messages=400))  # noqa: T201
