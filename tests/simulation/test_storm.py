"""A node dies, and all its clients go to the next one (K4, F2, F3, T7): real SDKs, in virtual time.

The form with 5,000 clients, real sockets and a clock that nobody has set is ``benchmarks/storm.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from rtkit import Gap, Grant, History, Hub, Identity, Limits, Position
from rtkit.client import Client, TransportName
from rtkit.messages import History as Kept
from rtkit.primitives import Rate
from rtkit.streams import StreamPage
from rtkit.testing.simulation import BrokerServer, SimulatedBroker, Simulation, simulate

Order = Sequence[Sequence[TransportName] | None]
STREAM: Sequence[TransportName] = ("sse", "websocket", "poll")
POLL: Sequence[TransportName] = ("poll", "sse")
#: Newcomers a second that the survivor lets in.
RATE = 5
ACCEPTS = Rate(RATE, burst=RATE)
#: Seconds that a window is long, that clients stay away of their own accord, that a node which has just died is waited
#: for, and by which a Retry-After in whole seconds may be later.
SLACK = 0.5 + 1.0 + 1.0 + 2.5


async def authenticate(credentials: Any) -> Identity[None]:
    return Identity(credentials.token)


class Counting(SimulatedBroker):
    """Counts how often messages were read."""

    reads = 0

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: Kept | None = None,
    ) -> StreamPage:
        self.reads += limit > 0
        return await super().read(topic, since=since, limit=limit, reverse=reverse, history=history)


@dataclasses.dataclass
class Guest:
    """An SDK in the room, and what it has seen."""

    client: Client
    heard: list[Any] = dataclasses.field(default_factory=list)
    states: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    async def stay(self, sim: Simulation) -> None:
        self.client.on_state(lambda state: self.states.append((sim.now, str(state))))
        async with self.client, self.client.join("log") as room:
            async for message in room:
                self.heard.append(message if isinstance(message, Gap) else message.data)


@dataclasses.dataclass
class Told:
    """What became of it."""

    back: list[float]
    heard: list[list[Any]]
    said: int
    transports: list[tuple[str | None, str | None]]
    tries: list[int]
    reads: int
    counted: dict[str, int]
    home: list[Any]


def storm(order: Order, *, seed: int, accepts: Rate = ACCEPTS) -> Told:
    """A client for each of *order*, on node one, which dies; what the survivor and they have seen."""

    async def program(sim: Simulation) -> Told:
        server = BrokerServer(sim, sim.machine("broker"))
        brokers: list[Counting] = []
        hubs: list[Hub[None]] = []
        for name, rate in (("one", None), ("two", accepts)):
            node = sim.machine(name)
            brokers.append(Counting(server, node))
            limits = Limits(accepts=rate)
            hub: Hub[None] = Hub(
                authenticate=authenticate, clock=node.clock, broker=brokers[-1], limits=limits
            )
            hub.rooms("log", publishes=object, grant=Grant("publish"), history=History(1000, ttl=600))
            await sim.serve(hub, node)
            hubs.append(hub)
        sim.network.balance("cluster", "one")
        guests: list[Guest] = []
        for n, transports in enumerate(order):
            phone = sim.machine(f"phone{n}")
            guests.append(
                Guest(sim.connect(phone, "http://cluster:8000/rt", token=f"u{n}", transports=transports))
            )
            _ = phone.spawn(guests[-1].stay(sim))
        home = Guest(sim.connect(sim.machine("home"), "http://two:8000/rt", token="home"))
        _ = sim.machine("home").spawn(home.stay(sim))
        await sim.sleep(3)
        said = 0

        async def talk(seconds: float) -> None:
            nonlocal said
            for _ in range(int(seconds * 2)):
                await hubs[1].room("log").publish(said)
                said += 1
                await sim.sleep(0.5)

        await talk(5)
        before = [guest.client.transport for guest in guests]
        assert all(guest.states[-1][1] == "connected" for guest in guests)
        counted, reads, died = hubs[1].statistics().totals, brokers[1].reads, sim.now
        sim.machine("one").crash()
        sim.network.balance("cluster", "two")
        await talk(len(order) / accepts.rate + SLACK + 5)
        await sim.sleep(1)
        after = hubs[1].statistics().totals
        return Told(
            back=[
                guest.states[-1][0] - died if guest.client.state == "connected" else 1e9 for guest in guests
            ],
            heard=[guest.heard for guest in guests],
            said=said,
            transports=[(a, guest.client.transport) for a, guest in zip(before, guests, strict=True)],
            tries=[
                sum(state == "connecting" and at > died for at, state in guest.states) for guest in guests
            ],
            reads=brokers[1].reads - reads,
            counted={name: count - counted.get(name, 0) for name, count in after.items()},
            home=home.heard,
        )

    return simulate(program, seed=seed)


def test_all_are_back_when_they_were_told_and_over_the_transport_they_had() -> None:
    """K4: of 40 clients five a second are let in, and none of them loses a message or its way of connecting."""
    order: Order = [*[None] * 28, *[STREAM] * 6, *[POLL] * 6]
    told = storm(order, seed=1)
    assert max(told.back) < len(order) / RATE + SLACK
    assert sorted(told.back)[RATE] > 0.5, "nobody knocks at once (F3)"
    assert told.counted["refusals{rate}"] > len(order) / 2, "it was a storm"
    assert told.counted["resumes{taken up}"] == told.counted["recoveries"] == len(order)
    assert sum(told.tries) == len(order) + told.counted["refusals{rate}"], "as often as it takes, and no more"
    assert max(told.tries) <= 4
    assert all(before == after for before, after in told.transports), Counter(told.transports)
    assert {after for _, after in told.transports} == {"websocket", "sse", "poll"}
    for heard in (*told.heard, told.home):
        assert heard == list(range(heard[0], told.said)), "none was lost, and none came twice"
    assert told.reads <= 5, "not by each of them (F2)"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_with_other_chances(seed: int) -> None:
    order: Order = [*[None] * 40, *[STREAM] * 5, *[POLL] * 5]
    told = storm(order, seed=seed)
    assert max(told.back) < len(order) / RATE + SLACK
    assert all(before == after for before, after in told.transports)
    assert all(heard == list(range(heard[0], told.said)) for heard in told.heard)
    assert told.reads <= 10
