"""rtkit-nats keeps what a broker promises: the whole kit, on a real server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from cable import Cable
from nats_server import NatsServer
from rtkit_nats import NatsBroker, Settings

from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite


class TestNats(StreamBrokerSuite, StateBrokerSuite):
    tick = 0.1
    stories = 30
    server: NatsServer

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def one_server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """One for all tests; each has names of its own."""
        with NatsServer(tmp_path_factory.mktemp("nats")) as cls.server:
            yield

    @pytest.fixture(autouse=True)
    def window(self, request: pytest.FixtureRequest) -> None:
        """Keys are remembered for long, but for the test that waits for the end of that."""
        if request.node.name == "test_the_window_of_a_key_ends":
            self.dedupe_window = 2.0  # type: ignore[misc]

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], NatsBroker]]:
        settings = Settings(prefix=f"t{secrets.token_hex(4)}", dedupe_window=self.dedupe_window or 300.0)
        self.cable = Cable(self.server.port)
        await self.cable.plug_in()
        try:
            yield lambda: NatsBroker(f"nats://127.0.0.1:{self.cable.port}", settings=settings)
        finally:
            await self.cable.pull_out()

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.cable.pulled_out()

    async def restart(self) -> None:
        self.server.stop()
        await asyncio.to_thread(self.server.start)

    async def lose(self) -> None:
        self.server.stop()
        self.server.wipe()
        await asyncio.to_thread(self.server.start)
