"""Whole clusters under seeds: a fixed set of them here, fresh ones in ``./dev soak`` and ``./dev simulate``."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from . import running
from .mutants import MUTANTS, Mutant, mutated
from .plan import KINDS, Plan, make_plan
from .running import Outcome, run, shrink

#: Together they have every kind of fault. Seeds that showed a fault of the code join them, each with what it was.
SEEDS = range(1, 5)


def short(seed: int) -> Plan:
    """What runs every time: half as long, and as many faults."""
    return make_plan(seed, seconds=30.0, every=3.0, pace=4.0)


def all_is_well(outcome: Outcome) -> None:
    assert not outcome.kinds, f"{outcome.text}\n\n{outcome.around()}"
    assert outcome.delivered > 50, "there was hardly anything to check"


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_all_invariants_hold(seed: int) -> None:
    all_is_well(run(short(seed)))


def test_the_seeds_draw_every_kind_of_fault() -> None:
    drawn = {fault.kind for seed in range(1, 30) for fault in make_plan(seed).faults}
    assert drawn == set(KINDS)


def test_a_seed_is_one_run_in_another_process_too() -> None:
    plan = make_plan(2, seconds=6.0)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "2", "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"digest {run(plan).digest}" in done.stdout, done.stdout + done.stderr


def test_a_seed_is_one_run_wherever_its_objects_lie() -> None:
    """A node that ends says goodbye to its clients in the order in which they came, and not in that of a set."""
    plan = make_plan(1_000_020, seconds=12.0, every=3.0, pace=4.0)
    assert "node restarts" in [fault.kind for fault in plan.faults]
    assert run(plan).digest == run(plan).digest


def test_without_faults_nobody_is_ever_told_of_a_gap() -> None:
    outcome = run(short(3).without(*short(3).faults))
    all_is_well(outcome)
    assert "gaps: none" in outcome.summary
    assert "failed 0" in outcome.summary


# -- does the net hold fish?

#: Those that take longer to find are looked for in `./dev soak`.
QUICK = [mutant for mutant in MUTANTS if mutant.within == 1]


def found(mutant: Mutant, plan: Callable[[int], Plan] = make_plan) -> Outcome:
    with mutated(mutant):
        for seed in range(1, mutant.within + 1):
            outcome = run(plan(seed))
            if outcome.kinds & mutant.shows:
                return outcome
    pytest.fail(f"{mutant.name!r} was not found within {mutant.within} seeds")


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.name)
def test_a_bug_is_found(mutant: Mutant) -> None:
    found(mutant, short)


@pytest.mark.soak
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_bug_is_found(mutant: Mutant) -> None:
    found(mutant)


def test_a_schedule_is_shrunk_to_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_with_both(plan: Plan) -> Outcome:
        kinds = {fault.kind for fault in plan.faults}
        return Outcome(plan, frozenset({"lost"}) if {"node crashes", "broker away"} <= kinds else frozenset())

    monkeypatch.setattr(running, "run", fails_with_both)
    plans = (make_plan(seed, every=1.0) for seed in itertools.count())
    failed = next(found for plan in plans if (found := fails_with_both(plan)).kinds)
    smaller = shrink(failed).plan
    assert sorted(fault.kind for fault in smaller.faults) == ["broker away", "node crashes"]
    assert smaller.seconds <= 2 * max(fault.at for fault in smaller.faults)
    assert len(shrink(failed, runs=1).plan.faults) >= len(failed.plan.faults) // 2


@pytest.mark.soak
def test_fresh_seeds_for_ten_minutes() -> None:
    first = random.SystemRandom().randrange(2**32)
    until = time.monotonic() + 600
    seed = first
    while time.monotonic() < until:
        print(seed, end=" ", flush=True)  # noqa: T201
        all_is_well(run(make_plan(seed)))
        seed += 1
