"""The Redis broker keeps all promises, on Redis and on Valkey (B2)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from rtkit.brokers.redis import RedisBroker
from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite
from tests.support.redis_scripts import age
from tests.support.redises import Kind, RedisCluster, RedisServer

# Seconds. A busy machine may take long; where nobody is there, it would only be waited for.
_PATIENT, _IMPATIENT = 10.0, 0.5


class _OnRedis(StreamBrokerSuite, StateBrokerSuite):
    tick = 10.0
    dedupe_window = 300.0
    patience = 20.0
    stories = 20
    kind: Kind
    server: RedisServer
    prefix: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def on(cls) -> Iterator[None]:
        """A server of its own, because it is killed; with a file, because it has to keep what it has."""
        with RedisServer(cls.kind) as cls.server:
            yield

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], RedisBroker]]:
        self.prefix = f"t{secrets.token_hex(4)}"
        self.made: list[RedisBroker] = []

        def make() -> RedisBroker:
            broker = RedisBroker(self.server.url, prefix=self.prefix, patience=_PATIENT, wait_timeout=0.4)
            self.made.append(broker)
            return broker

        yield make

    async def advance(self, seconds: float) -> None:
        # What expires goes by the server's clock, which cannot be moved; and to wait for it would be slow, and never
        # sure on a busy machine. So what it keeps is made older.
        age(self.server, self.prefix, seconds)

    @asynccontextmanager
    async def outage(self) -> AsyncGenerator[None]:
        # Not by killing it: a server that starts anew begins new epochs, which is another test.
        with self.server.unreachable():
            self._be(_IMPATIENT)
            try:
                yield
            finally:
                self._be(_PATIENT)

    def _be(self, patience: float) -> None:
        for broker in self.made:
            broker.patience = patience
            for part in (broker._commands, broker._listener):
                if part is not None:
                    part.patience = patience

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)

    async def lose(self) -> None:
        await asyncio.to_thread(self.server.wipe)


class TestCluster(StreamBrokerSuite, StateBrokerSuite):
    tick = 10.0
    dedupe_window = 300.0
    stories = 8
    left_out: ClassVar[Mapping[str, str]] = {
        "outage": "one server of several is away at a time; there are tests of that elsewhere",
        "restart": "likewise",
        "lose": "likewise",
    }
    patience = 20.0
    servers: RedisCluster
    prefix: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def on(cls) -> Iterator[None]:
        with RedisCluster("redis") as cls.servers:
            yield

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], RedisBroker]]:
        self.prefix = f"t{secrets.token_hex(4)}"
        yield lambda: RedisBroker(self.servers.url, prefix=self.prefix, patience=_PATIENT)

    async def advance(self, seconds: float) -> None:
        for server in self.servers.primaries:
            age(server, self.prefix, seconds)


class TestRedis(_OnRedis):
    kind = "redis"


class TestValkey(_OnRedis):
    kind = "valkey"
