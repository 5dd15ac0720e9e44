"""A poll whose answer was lost is answered again: nobody notices, not even where nothing is kept (T4)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rtkit import Grant, Hub, anonymous
from rtkit.testing.simulation import Simulation, simulate
from rtkit.transports.longpoll import PollTransport

#: Messages, a tenth of a second apart; every now and then the connection is cut.
COUNT = 200


def heard(seed: int) -> tuple[Sequence[int], int]:
    """What a phone got of a room without history, and how often it had to connect."""

    async def program(sim: Simulation) -> tuple[Sequence[int], int]:
        node, phone = sim.machine("node"), sim.machine("phone")
        hub = Hub(authenticate=anonymous, clock=node.clock)
        hub.rooms("ticks", publishes=object, grant=Grant())
        await sim.serve(hub, node)
        got: list[int] = []
        times: list[int] = []

        async def listen() -> None:
            client = sim.connect(phone, "http://node:8000/rt", transports=("poll",))
            async with client, client.join("ticks") as room:
                async for message in room:
                    got.append(message.data)
                    if message.data == COUNT - 1:
                        times.append(client.statistics().connects)
                        return

        listening = phone.spawn(listen())
        await sim.sleep(1)
        for number in range(COUNT):
            await hub.publish("ticks", number)
            if sim.chance.random() < 0.2:
                await sim.sleep(sim.chance.random() * 0.01)
                sim.network.cut("phone", "node")
            await sim.sleep(0.1)
        await sim.sleep(30)
        assert listening.done()
        return got, sum(times)

    return simulate(program, seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_a_lost_answer_costs_nothing(seed: int) -> None:
    assert heard(seed) == (list(range(COUNT)), 1)


def test_a_batch_that_is_acknowledged_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server itself, with sending it; within two seeds."""
    real = PollTransport._answer

    def answer(self: PollTransport) -> object:
        answered = real(self)
        self._unacknowledged = None
        return answered

    monkeypatch.setattr(PollTransport, "_answer", answer)

    def is_found(seed: int) -> bool:
        try:
            return heard(seed) != (list(range(COUNT)), 1)
        except AssertionError:
            return True

    assert any(is_found(seed) for seed in range(2))
