"""The story of the page on simulations happens as it says."""

from __future__ import annotations

import types
from typing import Any

from rtkit.testing import simulation
from rtkit.testing.simulation import BrokerServer, Machine, Network, Simulation
from tests.docs.blocks import blocks, prose

PAGE = "docs/how-to/simulate.md"


def test_the_story_ends_well() -> None:
    page: Any = types.ModuleType("page")
    for block in blocks(PAGE, "python", "simulate"):
        code: Any = block.code()
        exec(code, vars(page))
    page.test_nothing_is_missed_when_a_node_crashes()


def test_what_it_names_exists() -> None:
    text = prose(PAGE)
    for name, owner in [
        *((name, Machine) for name in ("freeze", "thaw", "crash", "spawn")),
        *((name, Network) for name in ("cut", "partition", "rejoin", "heal", "set", "balance")),
        *((name, BrokerServer) for name in ("stop", "start", "fail_over", "snapshot")),
        *((name, Simulation) for name in ("stop", "note", "digest")),
        *((name, simulation) for name in ("Stuck", "Livelock", "Link")),
    ]:
        assert hasattr(owner, name)
        assert name in text or name in ("spawn", "balance")
