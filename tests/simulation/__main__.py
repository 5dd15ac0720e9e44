"""``./dev simulate``: fresh seeds for so many minutes, or one again."""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from .plan import make_plan
from .running import Outcome, run, shrink
from .world import INVARIANTS


def main() -> int:
    """Run seeds; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="./dev simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, help="run so many (default: 20)")
    parser.add_argument("--minutes", type=float, help="run for so many real minutes")
    parser.add_argument("--seed", type=int, help="run this one, and show what happened")
    parser.add_argument(
        "--first", type=int, help="begin with this seed, and count up (default: a random one)"
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic and faults, in each")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two messages of a user")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    parser.add_argument("--no-shrink", action="store_true")
    asked = parser.parse_args()
    size = {
        "nodes": asked.nodes,
        "users": asked.users,
        "seconds": asked.seconds,
        "every": asked.every,
        "pace": asked.pace,
    }
    if asked.seed is not None:
        outcome = run(make_plan(asked.seed, **size))
        print(outcome.plan)
        print(f"{outcome.summary}\ndigest {outcome.digest}")
        return 0 if not outcome.kinds else _report(outcome, shrinking=not asked.no_shrink)
    first = asked.first if asked.first is not None else random.SystemRandom().randrange(2**32)
    count = asked.seeds or (10**9 if asked.minutes else 20)
    until = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
    print(f"seeds from {first}: {asked.nodes} nodes, {asked.users} users", flush=True)
    faults: Counter[str] = Counter()
    began, cpu, minutes, delivered, done, failed = time.monotonic(), 0.0, 0.0, 0, 0, 0
    while done < count and time.monotonic() < until:
        outcome = run(make_plan(first + done, **size))
        done += 1
        if asked.verbose:
            print(
                f"{outcome.plan.seed}: {outcome.cpu:.1f} s, {outcome.minutes:.1f} minutes, {outcome.summary}",
                flush=True,
            )
        faults += outcome.faults
        cpu, minutes, delivered = cpu + outcome.cpu, minutes + outcome.minutes, delivered + outcome.delivered
        if outcome.kinds:
            failed += 1
            _report(outcome, shrinking=not asked.no_shrink)
    real = time.monotonic() - began
    print(
        f"{done} seeds, {failed} failed; {done / real:.2f} seeds a second, {done / cpu:.2f} a second of CPU"
    )
    print(f"{minutes:.0f} simulated minutes: {60 * minutes / real:.0f} a real minute,", end=" ")
    print(f"{60 * minutes / cpu:.0f} a minute of CPU; {delivered} messages delivered")
    print(f"{sum(faults.values())} faults: " + ", ".join(f"{n} {kind}" for kind, n in faults.most_common()))
    print("checked: " + "; ".join(INVARIANTS))
    return 1 if failed else 0


def _report(outcome: Outcome, *, shrinking: bool) -> int:
    print(f"\nseed {outcome.plan.seed} FAILED: {', '.join(sorted(outcome.kinds))}\n{outcome.text}")
    smaller = shrink(outcome) if shrinking else outcome
    if smaller is not outcome:
        print(f"\nas small as it gets:\n{smaller.plan}\n{smaller.text}")
    print(f"\nwhat happened before:\n{smaller.around()}\n", flush=True)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
