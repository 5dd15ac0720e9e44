"""Bugs on purpose: what the simulation has to find. Each is a change that somebody could make by mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Position
from rtkit.brokers.base import Appended
from rtkit.client.roomstate import RoomState
from rtkit.features._watching import RoomWatch
from rtkit.features.presence import running
from rtkit.features.presence.ledger import Ledger
from rtkit.hub import connection, joining
from rtkit.hub.local import LocalRoom
from rtkit.hub.parking import Parking
from rtkit.primitives.deadlines import Deadlines
from rtkit.testing.simulation import broker

__all__ = ["MUTANTS", "Mutant", "mutated"]


@dataclass(frozen=True)
class Mutant:
    """A bug.

    :ivar within: seeds, counted from 1, of which at least one finds it.
    :ivar shows: words for what it makes wrong, one of which is to be found.
    """

    name: str
    change: Callable[[pytest.MonkeyPatch], None]
    within: int
    shows: frozenset[str]


@contextmanager
def mutated(mutant: Mutant) -> Generator[None]:
    """Have the bug for a while."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.change(patch)
        yield


def nothing(*_: Any, **__: Any) -> None: ...


async def nothing_later(*_: Any, **__: Any) -> None: ...


def resume_off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = joining.CatchUp

    def catch_up(since: Position | None, **options: Any) -> Any:
        if since is not None and since.offset and not options.get("forgiving"):
            since = Position(since.epoch, since.offset + 1)
        return real(since, **options)

    patch.setattr(joining, "CatchUp", catch_up)


def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    real = broker.SimulatedBroker.append

    async def append(self: Any, topic: str, payload: bytes, **options: Any) -> Appended:
        options["key"] = None
        return await real(self, topic, payload, **options)

    patch.setattr(broker.SimulatedBroker, "append", append)


def repair_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LocalRoom, "repair_soon", nothing)
    patch.setattr(LocalRoom, "check", nothing_later)


def reaper_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(running, "reap", nothing_later)


def outbox_without_bound(patch: pytest.MonkeyPatch) -> None:
    real = connection.Outbox
    patch.setattr(connection, "Outbox", lambda *, limit, reserve: real(limit=2**30, reserve=reserve))


def one_epoch_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(broker._Backend, "_name", lambda self: "e")


def grace_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Parking, "_watch", nothing)


def answer_before_append(patch: pytest.MonkeyPatch) -> None:
    real = broker.SimulatedBroker.append

    async def append(self: Any, topic: str, payload: bytes, **options: Any) -> Appended:
        stream = self.server.backend._streams.get(topic)
        writing = asyncio.ensure_future(real(self, topic, payload, **options))
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        if stream is None:
            return await writing
        return Appended(Position(stream.epoch, stream.top + 1))

    patch.setattr(broker.SimulatedBroker, "append", append)


def queued_counts_as_handled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RoomState, "position", property(lambda self: self.at))


def timers_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deadlines, "_rest", nothing)


def fence_by_run_id(patch: pytest.MonkeyPatch) -> None:
    real = broker.BrokerServer.another_life

    def another_life(self: Any, backend: Any) -> None:
        life = self.backend.life
        real(self, backend)
        backend.life = 3 - life  # two servers that take turns: A, B, A

    patch.setattr(broker.BrokerServer, "another_life", another_life)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    real = broker._Backend.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.fence = False

    patch.setattr(broker._Backend, "__init__", init)


def always_recovered(patch: pytest.MonkeyPatch) -> None:
    real = joining.Joining._result

    def result(self: Any, catch: Any) -> Any:
        self._gap = None
        return real(self, catch)

    patch.setattr(joining.Joining, "_result", result)


def who_leaves_stays_shown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "depart", nothing)


def missed_notices_stay_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RoomWatch, "repair_soon", nothing)


MUTANTS = [
    Mutant("resume off by one", resume_off_by_one, 1, frozenset({"behind"})),
    Mutant("no dedupe", no_dedupe, 16, frozenset({"twice"})),
    Mutant("repair off", repair_off, 1, frozenset({"behind"})),
    Mutant("presence reaper off", reaper_off, 6, frozenset({"left over"})),
    Mutant("outbox without bound", outbox_without_bound, 10, frozenset({"outbox"})),
    Mutant("one epoch for all", one_epoch_for_all, 2, frozenset({"two messages at one place"})),
    Mutant("grace without end", grace_without_end, 5, frozenset({"left over"})),
    Mutant("answer before append", answer_before_append, 4, frozenset({"acknowledged, yet lost"})),
    Mutant("queued counts as handled", queued_counts_as_handled, 18, frozenset({"missed in silence"})),
    Mutant("timers stay", timers_stay, 16, frozenset({"left over"})),
    Mutant("fence by run id", fence_by_run_id, 12, frozenset({"two messages at one place"})),
    Mutant("no fence", no_fence, 2, frozenset({"two messages at one place"})),
    Mutant("always recovered", always_recovered, 4, frozenset({"false continuity"})),
    Mutant("missed notices stay missed", missed_notices_stay_missed, 6, frozenset({"presence", "marks"})),
    Mutant("who leaves stays shown", who_leaves_stays_shown, 4, frozenset({"left over"})),
]
