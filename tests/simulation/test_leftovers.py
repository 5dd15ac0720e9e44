"""Whoever comes, and however it goes: in the end nothing is left, of anything (F4, L1).

What there is of objects, containers, tasks, timers, connections and subscriptions is counted before the first visitor
and after the last, on nodes that live throughout, whatever happens to them: see :mod:`.visitors` and :mod:`.census`.
A short visit here, an hour in ``./dev soak``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from rtkit.hub.connection import Connection
from rtkit.hub.engine import Engine
from rtkit.hub.local import LocalRoom
from rtkit.hub.web import Web
from rtkit.testing.simulation import Simulation, simulate

from .census import census, more
from .visitors import Visits, visits


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Warnings are what was asked for; and who keeps one keeps its exception, with all that was there at the time."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def visited(seed: int, *, minutes: float, slots: int) -> Visits:
    async def program(sim: Simulation) -> Visits:
        return await visits(sim, seed, minutes=minutes, slots=slots)

    return simulate(program, seed=seed)


def test_of_a_few_visitors_nothing_is_left() -> None:
    found = visited(1, minutes=0.8, slots=5)
    assert found.left == {}
    assert found.errors == []
    assert sum(found.what.values()) > 20 and found.height["sessions"] > 2, "there was hardly anybody"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_of_an_hour_of_visitors_nothing_is_left() -> None:
    found = visited(11, minutes=60, slots=8)
    print(f"{found.minutes:.0f} minutes: {dict(found.what)}; at the height {dict(found.height)}")  # noqa: T201
    assert found.left == {}
    assert found.errors == []


# -- does the net hold fish?


def forgets_no_web_session(self: Web, http: Any) -> None:
    http.end()


def closes_no_room(self: Engine, room: LocalRoom) -> Any:
    return asyncio.sleep(0)


def leaves_deadlines(self: Connection, code: int, reason: str, window: float | None) -> None:
    self._beat = None
    if self.session is not None:
        self.engine.disconnected(self, self.session, reason, window=window)


@pytest.mark.parametrize(
    ("of", "name", "wrong"),
    [
        (Web, "forget", forgets_no_web_session),
        (Engine, "_close_room", closes_no_room),
        (Connection, "_let_go", leaves_deadlines),
    ],
)
@pytest.mark.soak
def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, wrong: Any) -> None:
    monkeypatch.setattr(of, name, wrong)
    assert visited(1, minutes=1, slots=5).left


def test_what_is_counted() -> None:
    """Objects of ours by class, containers by whose they are; however deep, and each once."""
    from rtkit.primitives.outbox import Outbox
    from rtkit.transports import Handshake

    def holds(*what: Any) -> Any:
        return lambda: what

    one = Handshake(headers=[("a", "b"), ("c", "d")])
    found = census(holds({"x": [one, one, Outbox(limit=1, reserve=1)]}))
    assert found["Handshake"] == found["Outbox"] == 1
    assert found["Handshake.headers"] == 2
    before = Counter({"A.b": 3, "C": 1})
    now = Counter({"A.b": 4, "C": 1, "D.e": 9, "F.g": 2})
    assert more(now, before, but={"D.e": 8, "F.g": 2}) == {"A.b": "3 -> 4", "D.e": "0 -> 9"}
