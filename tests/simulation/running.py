"""Running plans: one, many, and a smaller one that fails as a larger one did."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rtkit.testing.simulation import Livelock, Simulation, Stuck, simulate
from tests.support.checker import Violations

from .plan import Plan
from .world import World

__all__ = ["Outcome", "run", "shrink"]


@dataclass
class Outcome:
    """How a run went.

    :ivar kinds: words for what was wrong; empty if all was well.
    :ivar minutes: virtual ones.
    :ivar cpu: seconds of this process.
    """

    plan: Plan
    kinds: frozenset[str] = frozenset()
    text: str = ""
    trace: list[str] = field(default_factory=list)
    digest: str = ""
    minutes: float = 0.0
    cpu: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    summary: str = ""

    def around(self, lines: int = 60) -> str:
        """The trace before the first thing that was wrong, or its end."""
        wrong = [n for n, line in enumerate(self.trace) if " WRONG " in line]
        end = wrong[0] + 5 if wrong else len(self.trace)
        return "\n".join(self.trace[max(0, end - lines) : end])


def run(plan: Plan) -> Outcome:
    """Run a plan; does not raise for what it finds."""
    outcome = Outcome(plan)
    seen: list[tuple[Simulation, World]] = []

    async def program(sim: Simulation) -> None:
        world = World(sim, plan)
        seen.append((sim, world))
        await world.run()

    began = time.process_time()
    logger = logging.getLogger(
        "rtkit"
    )  # its complaints are what was asked for; errors are looked at by the world
    silence, (propagates, logger.propagate) = logging.NullHandler(), (logger.propagate, False)
    logger.addHandler(silence)
    try:
        simulate(program, seed=plan.seed)
    except Violations as violations:
        outcome.kinds, outcome.text = frozenset(violations.kinds), str(violations)
    except (Livelock, Stuck) as error:
        outcome.kinds, outcome.text = frozenset({type(error).__name__}), repr(error)
    finally:
        logger.removeHandler(silence)
        logger.propagate = propagates
    outcome.cpu = time.process_time() - began
    sim, world = seen[0]
    outcome.trace, outcome.digest, outcome.minutes = sim.trace, sim.digest, sim.now / 60
    outcome.faults, outcome.delivered, outcome.summary = world.faults, world.delivered, world.record.summary()
    return outcome


def shrink(failed: Outcome, *, runs: int = 60) -> Outcome:
    """A smaller plan that fails in one of the same ways: fewer faults, and then less time.

    :param runs: how many it may take.
    """
    best = failed

    def fails(plans: Iterable[Plan]) -> bool:
        nonlocal best, runs
        for plan in plans:
            if runs <= 0:
                return False
            runs -= 1
            outcome = run(plan)
            if outcome.kinds & failed.kinds:
                best = outcome
                return True
        return False

    several = max(1, len(best.plan.faults) // 2)
    while several and runs > 0:
        faults = best.plan.faults
        parts = [faults[n : n + several] for n in range(0, len(faults), several)]
        if not fails(best.plan.without(*part) for part in parts):
            several //= 2
    while runs > 0 and best.plan.seconds > 4:
        if not fails([best.plan.for_seconds(best.plan.seconds * share) for share in (0.5, 0.75)]):
            break
    return best
