"""Whoever breaks the rules is found out: each promise is taken back in turn, and the chaos tests have to notice.

A row says what is broken, what is done to it, and within how many seeds it has to be caught. Should one of them no
longer be caught, then the tests have gone blind, or the code has a second way to keep its promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rtkit import Position
from rtkit.brokers import Appended
from rtkit.brokers.redis import RedisBroker, scripts
from rtkit.client.roomstate import Do, RoomState
from rtkit.hub.local import LocalRoom
from rtkit.streams import CatchUp, Feed, Meeting, Verdict
from rtkit.wire import Publication
from tests.chaos.deployments import Deployment, Sentinels, Standalone
from tests.chaos.world import PATIENCE, World
from tests.support.checker import Violations

Patch = pytest.MonkeyPatch


def no_deduplication(patch: Patch) -> None:
    """A publish that may have happened is simply repeated."""
    append = RedisBroker.append

    async def forgetful(self: RedisBroker, *args: Any, key: str | None = None, **options: Any) -> Appended:
        return await append(self, *args, **options)

    patch.setattr(RedisBroker, "append", forgetful)


def no_repair(patch: Patch) -> None:
    """Whatever may have been missed, nobody looks: plain publish and subscribe."""

    async def nothing(self: LocalRoom) -> None:
        return

    patch.setattr(LocalRoom, "interrupted", lambda self: None)
    patch.setattr(LocalRoom, "check", nothing)
    patch.setattr(Feed, "offer", _deliver_whatever_comes)
    _trusting_clients(patch)


def _deliver_whatever_comes(self: Feed, position: Position, payload: bytes) -> Verdict:
    self.cursor = position
    return Verdict.DELIVER


def _trusting_clients(patch: Patch) -> None:
    """Clients of ours look at offsets themselves, and would mend much of what a hub breaks. Not these."""
    receive, follow = RoomState._receive, RoomState._follow

    def believe(self: RoomState, publication: Publication) -> Do:
        if self.at is not None and publication.offset > self.at.offset + 1:
            self.at = Position(self.at.epoch, publication.offset - 1)
        return receive(self, publication)

    patch.setattr(RoomState, "_receive", believe)
    patch.setattr(RoomState, "_follow", lambda self, publications, end: follow(self, publications, None))


def no_fence(patch: Patch) -> None:
    """Nobody looks which server has the data."""
    for name in ("APPEND", "READ"):
        script = getattr(scripts, name)
        text = script.text.replace("local server = replication()", "local server = 'any'")
        assert text != script.text
        patch.setattr(scripts, name, replace(script, text=text))


def history_first(patch: Patch) -> None:
    """Who joins reads history, and is subscribed after that: what comes in between is for nobody."""

    def meet(self: CatchUp, cursor: Position) -> tuple[Meeting, tuple[()]]:
        if not self._confirmed and self._since is not None:
            return Meeting.READ, ()
        self._go_live(cursor, ())
        return Meeting.LIVE, ()

    patch.setattr(CatchUp, "meet", meet)
    _trusting_clients(patch)


def no_waiting(patch: Patch) -> None:
    """What is said to be replicated is not."""
    append = RedisBroker.append

    async def hasty(self: RedisBroker, *args: Any, durability: str = "", **options: Any) -> Appended:
        return await append(self, *args, **options)

    patch.setattr(RedisBroker, "append", hasty)


def _row(broken: Callable[[Patch], None], *row: object, slow: bool = True) -> Any:
    return pytest.param(broken, *row, id=broken.__name__, marks=[pytest.mark.soak] if slow else [])


@pytest.mark.parametrize(
    "broken, deployment, faults, seeds, kinds",
    [
        _row(
            no_deduplication,
            Standalone,
            ("frozen_for_long", "everybody_killed", "frozen_for_long"),
            3,
            {"one message at two places"},
        ),
        _row(
            no_repair,
            Standalone,
            ("listeners_killed", "links_cut", "listeners_killed"),
            2,
            {"missed in silence"},
        ),
        _row(
            no_fence,
            Standalone,
            ("rolled_back", "rolled_back"),
            3,
            {"two messages at one place", "order", "missed in silence"},
            slow=False,
        ),
        _row(
            history_first,
            Standalone,
            ("clients_cut", "clients_cut", "comes_back", "comes_back"),
            10,
            {"missed in silence"},
        ),
        _row(no_waiting, Sentinels, ("replica_behind",), 3, {"acknowledged, yet lost"}),
    ],
)
async def test_it_is_caught(
    broken: Callable[[Patch], None],
    deployment: Callable[[], Deployment],
    faults: Sequence[str],
    seeds: int,
    kinds: set[str],
    monkeypatch: Patch,
) -> None:
    with monkeypatch.context() as patch:
        broken(patch)
        for seed in range(seeds):
            try:
                await _run(deployment(), seed, faults, within=5)
            except Violations as found:
                print(f"{broken.__name__}: seed {seed}: {sorted(found.kinds)}")  # noqa: T201
                if found.kinds & kinds:
                    return
                raise
    pytest.fail(f"{broken.__name__} was not noticed in {seeds} runs")


@pytest.mark.soak
@pytest.mark.parametrize(
    "deployment, faults",
    [
        (Standalone, ("frozen_for_long", "everybody_killed", "frozen_for_long")),
        (Standalone, ("rolled_back", "rolled_back")),
        (Sentinels, ("replica_behind",)),
    ],
)
async def test_unbroken_it_is_not(deployment: Callable[[], Deployment], faults: Sequence[str]) -> None:
    """The same runs with nothing broken."""
    await _run(deployment(), 0, faults)


async def _run(deployment: Deployment, seed: int, faults: Sequence[str], within: float = PATIENCE) -> None:
    async with deployment.running(), World.of(deployment.broker, plan=deployment.plan(), seed=seed) as world:
        world.talk()
        await world.progress(20)
        for fault in faults:
            await getattr(deployment, fault)(world)
            await world.progress(20)
        await world.settle(deployment.heal, within=within)
