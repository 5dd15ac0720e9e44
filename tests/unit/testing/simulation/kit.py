"""The conformance kit on simulated brokers; run by test_broker.py, in a process of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rtkit.testing.conformance import StateBrokerSuite, StreamBrokerSuite
from rtkit.testing.conformance.sinks import Node
from rtkit.testing.simulation import SimulatedLoop, Simulation
from rtkit.testing.simulation.broker import BrokerServer, SimulatedBroker

ONE_LOOP = "a simulation is one loop, and has no threads"


class TestSimulated(StreamBrokerSuite, StateBrokerSuite):
    """All promises, on the simulated loop: whoever waits ten minutes waits a moment."""

    tick = 10.0
    dedupe_window = 300.0

    @pytest.fixture
    def anyio_backend(self) -> Any:  # type: ignore[override] # with options, for the loop
        return "asyncio", {"loop_factory": SimulatedLoop}

    @asynccontextmanager
    async def cluster(self) -> AsyncGenerator[Callable[[], SimulatedBroker]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        sim = Simulation(loop, random.Random(5))
        self.server = BrokerServer(sim, sim.machine("redis"))
        try:
            yield lambda: SimulatedBroker(self.server, sim.machine(f"node {len(sim.machines)}"))
        finally:
            sim.network.close()

    @asynccontextmanager
    async def outage(self) -> AsyncGenerator[None]:
        self.server.stop()
        try:
            yield
        finally:
            self.server.reappear()

    async def restart(self) -> None:
        self.server.stop()
        await asyncio.sleep(1)
        self.server.start()

    async def lose(self) -> None:
        self.server.stop()
        await asyncio.sleep(1)
        self.server.start(empty=True)

    @pytest.mark.xfail(raises=RuntimeError, reason=ONE_LOOP)
    async def test_wrong_loop(self, nodes: tuple[Node, Node], topic: str) -> None:
        raise RuntimeError(ONE_LOOP)

    @pytest.mark.xfail(raises=RuntimeError, reason=ONE_LOOP)
    async def test_reopened_it_works_in_another_loop(self, make: Callable[[], Any], topic: str) -> None:
        raise RuntimeError(ONE_LOOP)

    @pytest.mark.xfail(raises=RuntimeError, reason="it is compared in a loop of its own")
    def test_it_is_like_the_memory_broker(self) -> None:
        raise RuntimeError(ONE_LOOP)
