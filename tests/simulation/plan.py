"""What a run is: a cluster of some size, for some time, and the faults that happen to it. All follows from a seed.

Each fault stands for itself, so that any of them can be left out: that is how a schedule is shrunk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["KINDS", "Fault", "Plan", "make_plan"]

#: Kinds of faults, and how often each is drawn, in proportion.
KINDS = {
    "user freezes": 6,
    "user reads nothing": 3,
    "user crashes": 4,
    "user is cut": 4,
    "user is offline": 5,
    "user is closed": 2,
    "user is removed": 3,
    "user is revoked": 2,
    "node freezes": 3,
    "node crashes": 3,
    "node restarts": 3,
    "node without broker": 3,
    "node without users": 2,
    "broker away": 3,
    "broker silent": 3,
    "broker empty": 1,
    "broker fails over": 2,
    "broker fails over and back": 1,
    "broker loses messages": 4,
    "broker deaf": 3,
    "clock wrong": 2,
    "links bad": 2,
}


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a moment, and is over some time later.

    :ivar who: number of the user or node it happens to, counted around.
    :ivar much: between 0 and 1: how bad, where that can be said.
    """

    kind: str
    at: float
    lasts: float
    who: int
    much: float

    def __str__(self) -> str:
        return f"{self.at:6.2f} s: {self.kind} (who={self.who}, for {self.lasts:.2f} s, much={self.much:.2f})"


@dataclass(frozen=True)
class Plan:
    """A run.

    :ivar seconds: of faults and traffic; the time until all is quiet comes after that.
    :ivar pace: seconds between two messages of one user, on average.
    """

    seed: int
    seconds: float = 60.0
    nodes: int = 3
    users: int = 6
    pace: float = 2.0
    faults: Sequence[Fault] = ()

    def without(self, *faults: Fault) -> Plan:
        """The same, but these do not happen."""
        return replace(self, faults=tuple(each for each in self.faults if each not in faults))

    def for_seconds(self, seconds: float) -> Plan:
        """Only the first so many seconds of it."""
        return replace(self, seconds=seconds, faults=tuple(each for each in self.faults if each.at < seconds))

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.nodes} nodes, {self.users} users, {self.seconds:.0f} s"]
        return "\n".join(lines + [f"  {each}" for each in self.faults])


def make_plan(
    seed: int, *, seconds: float = 60.0, nodes: int = 3, users: int = 6, every: float = 5.0, pace: float = 2.0
) -> Plan:
    """What a seed stands for.

    :param every: seconds between two faults, on average.
    """
    chance = random.Random(f"plan {seed}")
    kinds, weights = list(KINDS), list(KINDS.values())
    faults: list[Fault] = []
    at = 3.0
    while (at := at + chance.expovariate(1 / every)) < seconds:
        kind = chance.choices(kinds, weights)[0]
        # Mostly short, and now and then longer than any patience: of heartbeats, graces, leases.
        lasts = chance.choice((0.3, 2.0, 8.0, 30.0)) * (0.5 + chance.random())
        faults.append(Fault(kind, at, lasts, chance.randrange(60), chance.random()))
    return Plan(seed, seconds, nodes, users, pace, tuple(faults))
