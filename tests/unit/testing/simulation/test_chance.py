"""One seed for all chance, and what is left when it is over."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest

from rtkit.testing.simulation.chance import seeded

DRAWS: dict[str, Callable[[], object]] = {
    "random": random.random,
    "SystemRandom": lambda: random.SystemRandom().random(),
    "secrets": lambda: secrets.token_hex(8),
    "uuid4": uuid.uuid4,
    "urandom": lambda: os.urandom(8),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_same_seed_draws_the_same_and_another_does_not(draw: Callable[[], object]) -> None:
    found = []
    for seed in (1, 1, 2):
        with seeded(seed):
            found.append([draw() for _ in range(3)])
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]


def test_the_schedule_does_not_depend_on_what_the_program_draws() -> None:
    with seeded(3) as chance:
        first = chance.random()
    with seeded(3) as chance:
        for draw in DRAWS.values():
            draw()
        assert chance.random() == first


def test_afterwards_all_is_as_before_even_when_it_fails() -> None:
    state, urandom = random.getstate(), os.urandom
    with pytest.raises(ZeroDivisionError), seeded(4):
        random.random()
        raise ZeroDivisionError
    assert (random.getstate(), os.urandom) == (state, urandom)
    assert len({secrets.token_hex(8) for _ in range(10)}) == 10


PROGRAM = """
import asyncio
from rtkit import Grant, History, Hub, Identity
from rtkit.testing.simulation import simulate
from rtkit.testing.simulation.broker import BrokerServer, SimulatedBroker

async def authenticate(credentials):
    return Identity(credentials.token)

async def program(sim):
    server = BrokerServer(sim, sim.machine("redis"))
    for name in ("n0", "n1"):
        node = sim.machine(name)
        hub = Hub(authenticate=authenticate, clock=node.clock, broker=SimulatedBroker(server, node))
        hub.rooms("log", publishes=object, grant=Grant("publish"), history=History(100, ttl=600))
        await sim.serve(hub, node)

    async def user(name, node, transports):
        client = sim.connect(sim.machine(name), f"http://{node}:8000/rt", token=name, transports=transports)
        async with client, client.join("log") as room:
            for n in range(3):
                await asyncio.sleep(sim.chance.random())
                await room.send(f"{name} {n}")
            async for message in room:
                sim.note(f"{name} {client.client_id} got {message}")

    users = [("a", "n0", "websocket"), ("b", "n1", "sse"), ("c", "n0", "poll")]
    for name, node, transport in users:
        sim.machine(name).spawn(user(name, node, [transport]))
    await sim.sleep(3)
    server.lost = 0.5
    await sim.sleep(5)
    sim.machine("n1").freeze()
    await sim.sleep(5)
    sim.machine("n1").thaw()
    await sim.sleep(30)
    return sim.digest, len(sim.trace)

print(*simulate(program, seed=%d))
"""


def digest(seed: int, hashes: str) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hashes}
    command = [sys.executable, "-W", "error", "-c", PROGRAM % seed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_two_processes_do_the_same_whatever_their_hash_seed() -> None:
    first, second, other = digest(7, "1"), digest(7, "2"), digest(8, "1")
    assert first == second != other
    assert int(first[1]) > 3
