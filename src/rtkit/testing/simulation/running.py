"""Running a program in a simulation, from one seed."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ...client import Client, connect
from ...hub import Hub
from .chance import seeded
from .loop import Machine, SimulatedLoop, State
from .network import Network

__all__ = ["Simulation", "simulate"]

T = TypeVar("T")


class Simulation:
    """A world: machines, a network, time, and chance for the schedule.

    :ivar chance: for whoever makes the schedule. What the program itself draws comes from elsewhere.
    :ivar trace: what happened, as told with :meth:`note`: two runs of one seed tell the same.
    :ivar errors: what asyncio complained about: exceptions that nobody took.
    """

    def __init__(self, loop: SimulatedLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.network = Network(loop, random.Random(chance.random()))
        self.machines: dict[str, Machine] = {}
        self.all_machines: list[Machine] = []
        self.trace: list[str] = []
        self.errors: list[str] = []
        self._serving: dict[Machine, asyncio.Task[None]] = {}
        loop.set_exception_handler(self._complained)

    def _complained(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
        self.note(f"asyncio complains: {self.errors[-1]}")

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.loop.time()

    def note(self, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.now:12.6f} {what}")

    @property
    def digest(self) -> str:
        """Of the trace, the moment and the network's work: equal for two runs that did the same."""
        told = [*self.trace, f"{self.now!r} {self.network.pieces}"]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def machine(self, name: str) -> Machine:
        """A machine of this name: the one that is there, or a new one when there is none, or it has crashed."""
        found = self.machines.get(name)
        if found is None or found.state is State.CRASHED:
            found = self.machines[name] = Machine(self.loop, name)
            self.all_machines.append(found)
        return found

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)

    async def serve(self, hub: Hub[Any], machine: Machine, *, port: int = 8000, path: str = "/rt") -> None:
        """Run *hub* on *machine*, by our own server, at ``http://<machine>:<port><path>``, until it crashes.

        The hub's clock should be the machine's. It is started when this returns.
        """
        started = self.loop.create_future()
        serving = machine.spawn(self._serve(hub, machine, port, path, started), name=f"{machine.name} serves")
        self._serving[machine] = serving
        await asyncio.wait({started, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()

    async def stop(self, machine: Machine) -> None:
        """End what :meth:`serve` began, as a deployment does: the hub tells its clients to go elsewhere, and closes.

        Call it when the machine runs: one that is frozen stops when it has thawed, and then this returns.
        """
        serving = self._serving.pop(machine)
        serving.cancel()
        await asyncio.wait([serving])
        if not serving.cancelled():
            serving.result()

    async def _serve(
        self, hub: Hub[Any], machine: Machine, port: int, path: str, started: asyncio.Future[None]
    ) -> None:
        from ...server.http import HttpConnection
        from ...server.server import Server

        server = Server(hub, path=path, clock=machine.clock, ready=hub._readiness)
        try:
            async with hub:
                self.network.listen(machine, port, lambda: HttpConnection(server._site))
                started.set_result(None)
                await asyncio.Event().wait()
        finally:
            self.network.stop_listening(machine, port)
            await server.aclose()

    def connect(self, machine: Machine, url: str, **options: Any) -> Client:
        """The Python SDK on *machine*, not yet connected: enter it in a task of that machine."""
        return connect(url, clock=machine.clock, random=random.Random(self.chance.random()), **options)

    async def end(self, *others: asyncio.Task[Any]) -> None:
        """Put everything away, and wait for these as well."""
        if others:
            await asyncio.wait(others, timeout=600)
        self.network.bury()
        for machine in reversed(self.all_machines):
            tasks = machine.bury()
            if tasks:
                await asyncio.wait(tasks, timeout=600)
        self.network.close()


def _prepare() -> None:
    """Make what is made at its first use and draws chance for that, so that the first run is as the others are."""
    from ...server.upgrade import checks

    checks()


async def _main(program: Callable[[Simulation], Awaitable[T]], simulation: Simulation) -> T:
    return await program(simulation)


def simulate(program: Callable[[Simulation], Awaitable[T]], *, seed: int) -> T:
    """Run *program* in a world of its own, under virtual time, and return what it returns.

    ::

        async def program(sim: Simulation) -> None:
            node, phone = sim.machine("node"), sim.machine("phone")
            await sim.serve(make_hub(clock=node.clock), node)
            ...


        simulate(program, seed=7)

    :raises Stuck: when nothing would ever happen any more.
    """
    _prepare()
    with seeded(seed) as chance:
        loop = SimulatedLoop()
        collecting = gc.isenabled()
        gc.disable()  # what it finalises, it finalises at moments that no seed decides
        try:
            asyncio.set_event_loop(loop)
            simulation = Simulation(loop, chance)
            main = loop.create_task(_main(program, simulation))
            try:
                return loop.run_until_complete(main)
            finally:
                main.cancel()  # if it is the loop that gave up
                loop.run_until_complete(simulation.end(main))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
            if collecting:
                gc.enable()
