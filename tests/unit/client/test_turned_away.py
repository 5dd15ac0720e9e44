"""A server that takes no newcomers now says when to come back, before the client has said anything (F2)."""

from __future__ import annotations

import itertools
import random

import pytest

from rtkit.client import WireClosed, connect
from rtkit.client.fallback import FallbackDialer
from rtkit.wire import Disconnect, Push, Reply, Window, dumps
from tests.unit.client.test_fallback import FakeWire, World

AWAY = WireClosed(4001, "try again later")


def goodbye(low: float, high: float) -> bytes:
    return dumps(Reply(push=Push(disconnect=Disconnect(4001, "try again later", Window(low, high)))))


class Hasty(FakeWire):
    """Closed by the server before anything could be said; what it has said is there all the same."""

    async def send(self, frame: bytes) -> None:
        raise AWAY


@pytest.mark.parametrize("kind", [FakeWire, Hasty])
async def test_turned_away_again_and_again(kind: type[FakeWire]) -> None:
    """Each time in the window, and always over a WebSocket."""
    world = World()
    clock = world.clock
    tried: list[float] = []

    def result() -> FakeWire:
        tried.append(clock.monotonic())
        return kind(goodbye(30.0, 30.5), AWAY)

    world.websocket.result = result
    client = connect(
        "ws://localhost/rt", dialer=world.dialer, clock=clock, random=random.Random(1), wait=False
    )
    async with client:
        for _ in range(200):
            await clock.advance(1.0)
        assert client.state == "waiting"
        assert "(code 4001)" in client.statistics().last_failure
        assert len(tried) == 7
        waits = [later - before for before, later in itertools.pairwise(tried)]
        assert all(30.0 <= wait <= 30.6 for wait in waits)
        assert set(world.tried) == {"websocket"}
        assert isinstance(world.dialer, FallbackDialer)
        assert world.dialer.choice == "websocket"


async def test_closed_in_a_hurry_and_without_a_word_is_as_before() -> None:
    """Cut, not told: nobody knows when, and it is tried again soon."""
    world = World()
    world.websocket.result = lambda: Hasty(WireClosed(1006, ""))
    failed = await world.fails()
    assert failed.window is None
    assert not failed.terminal
