"""What a broker could not confirm is let go of as well: it may be kept there, and be restored when it is back (B4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from rtkit import BrokerUnavailable, Grant, History, Presence
from rtkit.brokers import MemoryBroker
from tests.unit.hub.conftest import World


class Halting(MemoryBroker):
    """It takes a subscription, and goes away before it has said so."""

    away = ""

    async def subscribe(self, topics: Iterable[str]) -> None:
        wanted = list(topics)
        await super().subscribe(wanted)
        if self.away and any(self.away in topic for topic in wanted):
            raise BrokerUnavailable("gone")


@pytest.mark.parametrize("kept", [True, False])
async def test_a_room_that_could_not_be_joined(world: World, kept: bool) -> None:
    broker = Halting(world.backend)
    hub = world.hub(broker=broker)
    history = History(5, ttl=60) if kept else None
    hub.rooms("room:{x}", publishes=object, history=history, grant=Grant())
    ann = await world.join(hub, "ann", "room:b")
    broker.away = "room:a"
    assert (await ann.refused("subscribe", channel="room:a"))["code"] == 100
    await ann.settle()
    assert set(topics(world)) == {"room:room:b"}
    broker.away = ""
    await ann.call("subscribe", channel="room:a")
    assert set(topics(world)) == {"room:room:a", "room:room:b"}
    await ann.call("unsubscribe", channel="room:a")
    assert set(topics(world)) == {"room:room:b"}


async def test_presence_that_could_not_be_watched(world: World) -> None:
    broker = Halting(world.backend)
    hub = world.hub(broker=broker)
    hub.rooms("room:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
    ann = await world.join(hub, "ann")
    before = set(world.backend._topics)
    broker.away = "presence"
    await ann.refused("subscribe", channel="room:a", presence=True)
    await world.advance(2)
    assert set(world.backend._topics) == before
    broker.away = ""
    await ann.call("subscribe", channel="room:a", presence=True)
    assert set(world.backend._topics) > before
    await ann.call("unsubscribe", channel="room:a")
    await world.advance(30)
    assert set(world.backend._topics) == before


def topics(world: World) -> Any:
    """Of rooms, that somebody is subscribed to."""
    return [topic for topic in world.backend._topics if topic.startswith("room:")]
