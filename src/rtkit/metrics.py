"""Counters and gauges that cost an addition; sinks that export them plug in above (M1).

Label values come from fixed sets of our own, never from users: room names and user ids never
become labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["Counters"]


class Counters:
    """Named totals that only grow, with at most one label each.

    >>> c = Counters()
    >>> c.add("closes", "3012")
    >>> c.snapshot()
    mappingproxy({'closes{3012}': 1})
    """

    __slots__ = ("_totals",)

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}

    def add(self, name: str, label: str = "", amount: int = 1) -> None:
        """Add *amount* to the total *name*, told apart by *label*."""
        key = f"{name}{{{label}}}" if label else name
        self._totals[key] = self._totals.get(key, 0) + amount

    def get(self, name: str, label: str = "") -> int:
        """The total so far; 0 for one that was never added to."""
        return self._totals.get(f"{name}{{{label}}}" if label else name, 0)

    def snapshot(self) -> Mapping[str, int]:
        """All totals as they are now, read-only."""
        return MappingProxyType(dict(self._totals))

    def __repr__(self) -> str:
        return f"<Counters {len(self._totals)} totals>"
