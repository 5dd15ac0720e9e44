"""What a tree of routers declares, compiled: which family a room name belongs to, and what goes around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import BadUnit, DeclarationError, UnknownRoom, UsageError
from ..messages import History
from ..patterns import Pattern, respelled
from ..schema import Schema
from ..wire import check_room_name
from .context import Context, Hook
from .router import ErrorHook, Middleware, Procedure, Rooms, Router

__all__ = ["Around", "Call", "Family", "Table"]


class Around:
    """The gates, middlewares and error hooks of a declaration, the outermost first."""

    __slots__ = ("error_hooks", "gates", "middlewares")

    def __init__(self, chain: tuple[Router[Any], ...]) -> None:
        self.gates: list[Hook[Any, Any, None]] = [gate for router in chain for gate in router.gates]
        self.middlewares: list[Middleware[Any]] = [each for router in chain for each in router.middlewares]
        self.error_hooks: list[ErrorHook[Any]] = [each for router in chain for each in router.error_hooks]

    async def call(self, ctx: Context[Any, Any], innermost: Callable[[], Awaitable[Any]]) -> Any:
        """Run *innermost* inside the middlewares."""
        call = innermost
        for middleware in reversed(self.middlewares):
            call = _wrap(middleware, ctx, call)
        return await call()


def _wrap(
    middleware: Middleware[Any], ctx: Context[Any, Any], call_next: Callable[[], Awaitable[Any]]
) -> Callable[[], Awaitable[Any]]:
    return lambda: middleware(ctx, call_next)


class Family:
    """A family of rooms in its place: the full pattern, and what goes around it."""

    __slots__ = ("around", "pattern", "rooms")

    def __init__(self, rooms: Rooms[Any, Any], pattern: Pattern, around: Around) -> None:
        self.rooms = rooms
        self.pattern = pattern
        self.around = around

    @property
    def schema(self) -> Schema:
        """What the rooms publish."""
        return self.rooms.schema

    @property
    def history(self) -> History | None:
        """What is kept of their streams."""
        return self.rooms.history

    @property
    def max_publication(self) -> int | None:
        """Bytes of one of their messages at the most; None for the hub's bound."""
        return self.rooms.max_publication

    def __repr__(self) -> str:
        return f"<Family {self.pattern.text!r}>"


class Call:
    """A procedure in its place."""

    __slots__ = ("around", "procedure")

    def __init__(self, procedure: Procedure, around: Around) -> None:
        self.procedure = procedure
        self.around = around


class Table:
    """All declarations below a router.

    :raises DeclarationError: for ambiguous patterns and clashing names.
    """

    __slots__ = ("_cache", "families", "procedures")

    def __init__(self, root: Router[Any]) -> None:
        self.families: list[Family] = []
        self.procedures: dict[str, Call] = {}
        self._cache: dict[str, tuple[Family, Mapping[str, str]]] = {}
        self._add(root, "", ())
        # The longest literal prefix wins, so that is the order they are tried in.
        self.families.sort(key=lambda family: len(family.pattern.prefix), reverse=True)

    def _add(self, router: Router[Any], prefix: str, chain: tuple[Router[Any], ...]) -> None:
        prefix += router.prefix
        chain = (*chain, router)
        around = Around(chain)
        for rooms in router.families:
            pattern = Pattern(prefix + rooms.pattern)
            for other in self.families:
                if pattern.clashes(other.pattern):
                    raise DeclarationError(
                        f"the patterns {other.pattern.text!r} and {pattern.text!r} are ambiguous: some room name "
                        f"matches both. Give one of them a literal prefix of its own"
                    )
            self.families.append(Family(rooms, pattern, around))
        for name, procedure in router.procedures.items():
            if name in self.procedures:
                raise DeclarationError(
                    f"the procedure {name!r} is declared twice; give one of the two a name="
                )
            self.procedures[name] = Call(procedure, around)
        for included in router.included:
            self._add(included, prefix, chain)

    def find(self, name: str) -> tuple[Family, Mapping[str, str]]:
        """The family and parameters of a room name.

        :raises UnknownRoom: when nobody declared it; the message lists what is declared, or says how the room is
            spelled that was probably meant.
        """
        found = self._cache.get(name)
        if found is not None:
            return found
        try:
            check_room_name(name)
        except BadUnit as error:
            raise UnknownRoom(f"{name[:60]!r} cannot be a room name: {error.message}") from None
        found = self._match(name)
        if found is not None:
            if len(self._cache) >= 10_000:  # names come from clients
                self._cache.clear()
            self._cache[name] = found
            return found
        meant = respelled(name)
        if meant is not None and self._match(meant) is not None:
            raise UnknownRoom(f"no room is spelled {name!r}; did you mean {meant!r}?", meant=meant)
        known = ", ".join(family.pattern.text for family in self.families) or "none yet"
        raise UnknownRoom(f"no family of rooms matches {name!r}; declared: {known}")

    def _match(self, name: str) -> tuple[Family, Mapping[str, str]] | None:
        for family in self.families:
            params = family.pattern.match(name)
            if params is not None:
                return family, params
        return None

    def family_of(self, rooms: Rooms[Any, Any]) -> Family:
        """The family that *rooms* became here.

        :raises UnknownRoom: when its router was not included.
        :raises UsageError: when it was, in several places.
        """
        found = [family for family in self.families if family.rooms is rooms]
        if len(found) > 1:
            places = ", ".join(repr(family.pattern.text) for family in found)
            raise UsageError(
                f"rooms {rooms.pattern!r} are included as {places}; use hub.room(name) of the one meant"
            )
        if found:
            return found[0]
        raise UnknownRoom(f"rooms {rooms.pattern!r} belong to a router this hub does not include")
