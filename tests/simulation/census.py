"""What is there: every object of rtkit's that can be reached from somewhere, and how much is in its containers.

A leak is something that grows where nobody looks. So nothing is named here: all that hangs on a hub and its server is
walked, and two counts of it are compared.
"""

from __future__ import annotations

import asyncio
import types
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["census", "more"]

#: Of these nothing is counted: they belong to the test, or count for ever.
_OUTSIDE = ("rtkit.testing", "rtkit.metrics", "rtkit.client")
_SEQUENCES = (list, tuple, set, frozenset, deque)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    found: dict[str, Any] = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
                if hasattr(thing, mangled):
                    found[name] = getattr(thing, mangled)
    yield from found.items()


def _is_ours(thing: Any) -> bool:
    module = getattr(type(thing), "__module__", "") or ""
    return module.startswith("rtkit.") and not module.startswith(_OUTSIDE)


def census(*roots: Any) -> Counter[str]:
    """Objects by their class, and what is in containers, by class and attribute, as far as they can be reached."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    kept: list[Any] = []  # so that no id comes up twice
    waiting: list[tuple[str, Any]] = [("root", root) for root in roots]

    def go_on(where: str, things: Iterable[Any]) -> None:
        waiting.extend((where, thing) for thing in things)

    while waiting:
        where, thing = waiting.pop()
        if id(thing) in seen or thing is None or isinstance(thing, str | bytes | int | float | type):
            continue
        seen.add(id(thing))
        kept.append(thing)
        if isinstance(thing, Mapping):
            found[where] += len(thing)
            go_on(f"{where}[]", (*thing.keys(), *thing.values()))
        elif isinstance(thing, _SEQUENCES):
            if not isinstance(thing, tuple):
                found[where] += len(thing)
            go_on(f"{where}[]", thing)
        elif isinstance(thing, types.MethodType):
            go_on(where, (thing.__self__,))
        elif isinstance(thing, types.FunctionType):
            go_on(where, (cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()))
        elif isinstance(thing, asyncio.Task):
            found["Task"] += 1
        elif isinstance(thing, asyncio.Future):
            found["Future"] += 1
        elif _is_ours(thing):
            kind = type(thing).__name__
            found[kind] += 1
            for name, value in _attributes(thing):
                go_on(f"{kind}.{name}", (value,))
    return +found


def more(now: Counter[str], before: Counter[str], *, but: Mapping[str, int]) -> dict[str, str]:
    """What there is more of.

    :param but: what may be, up to a number.
    """
    found: dict[str, str] = {}
    for what, count in sorted(now.items()):
        owner = what.removesuffix("[]").removesuffix("[]")
        if count > before[what] and not (owner in but and (what != owner or count <= but[owner])):
            found[what] = f"{before[what]} -> {count}"
    return found
