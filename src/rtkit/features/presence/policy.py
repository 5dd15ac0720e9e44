"""What a family of rooms is declared with to have presence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...identity import Identity

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from .running import Running

__all__ = ["Presence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Rooms of the family know who is in them.

    :param meta: makes what a client says about itself when it comes, from its identity: an object that JSON can hold.
        Everybody with the right ``presence`` in the room sees it. A plain function; nothing unless given.
    :param max_meta: bytes of JSON that a meta has at the most.
    :param updates: whether clients may replace their meta.
    :param listed: so many clients are listed for others at the most. A room with more is only counted.
    :param listed_size: bytes of such a list at the most, likewise.
    :raises ValueError: for a bound that is not positive.
    :raises TypeError: for a *meta* that is no plain function.
    """

    kind = "presence"

    meta: Callable[[Identity[Any]], Mapping[str, Any]] | None = None
    max_meta: int = 1024
    updates: bool = True
    listed: int = 1000
    listed_size: int = 256 * 1024

    def __post_init__(self) -> None:
        for name in ("max_meta", "listed", "listed_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Presence({name}=…) is at least 1, not {getattr(self, name)!r}")
        meta: object = self.meta
        if meta is not None and (not callable(meta) or inspect.iscoroutinefunction(meta)):
            raise TypeError(
                f"Presence(meta=…) is a plain function of an Identity, not {self.meta!r}; what has to be awaited "
                f"belongs into authenticate, and then into the identity's claims"
            )

    def begin(self, engine: Engine) -> Running:
        """Presence for one run of a hub.

        :raises ~rtkit.errors.NotSupported: for a broker that keeps no state.
        """
        from .running import Running

        return Running(engine)
