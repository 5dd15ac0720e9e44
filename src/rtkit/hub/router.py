"""Declarations without a hub: families of rooms, handlers, procedures, and what goes around them.

A router knows no loop and no broker, so handler modules and workers import it freely. A hub, or a publisher,
compiles a tree of routers into a :class:`~rtkit.hub.table.Table`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, Unpack, cast, get_args, overload
from weakref import WeakSet

from typing_extensions import TypeVar as DefaultTypeVar

from ..errors import DeclarationError, UsageError
from ..identity import Grant, Identity
from ..messages import History
from ..patterns import Pattern
from ..primitives.outbox import Overflow
from ..schema import Codec, Schema, message_name
from .context import Context, Handler, Hook, current_run
from .feature import Feature, PresenceFeature, ReceiptsFeature

if TYPE_CHECKING:
    from .handle import Room
    from .hub import Hub
    from .table import Family, Table

__all__ = ["Procedure", "Rooms", "Router"]

C = DefaultTypeVar("C", default=Any)
M = DefaultTypeVar("M", default=Any)
P = TypeVar("P")
R = TypeVar("R")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")

#: Bytes of one message at the most in a room that raises the bound (T8).
MAX_ROOM_PUBLICATION: Final = 4 * 1024 * 1024

Middleware = Callable[[Context[C, Any], Callable[[], Awaitable[Any]]], Awaitable[Any]]
ErrorHook = Callable[[Context[C, Any], Exception], Awaitable[None]]
F = TypeVar("F", bound=Callable[..., Any])


def must_be_async(func: F, what: str) -> F:
    """Handlers and hooks run on the event loop, so they are ``async def``.

    :raises TypeError: for anything else, with the remedy.
    """
    if inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None)):  # noqa: B004
        return func
    name = getattr(func, "__qualname__", repr(func))
    raise TypeError(
        f"{what} {name} must be `async def`: a plain function would block every connection of this process. "
        f"Make it async, and run what blocks with `await anyio.to_thread.run_sync(…)`"
    )


class RoomOptions(TypedDict, Generic[C], total=False):
    """What :meth:`Router.rooms` takes besides the types; see there."""

    grant: Grant | None
    history: History | None
    overflow: Overflow | None
    auto_join: Callable[[Identity[C]], Iterable[str]] | None
    max_publication: int | None
    presence: PresenceFeature | None
    receipts: ReceiptsFeature | None
    typing: Feature | None
    signals: Feature | None


class Procedure:
    """A handler with the decoder of what it takes."""

    __slots__ = ("codec", "func", "name", "ordered")

    def __init__(
        self, name: str, codec: Codec[Any], func: Handler[Any, Any, Any, Any], ordered: bool
    ) -> None:
        self.name = name
        self.codec = codec
        self.func = func
        self.ordered = ordered


def _is_feature(given: object, kind: str) -> bool:
    """Whether it is an instance of a feature of this kind, and not ``True`` or the class."""
    return not isinstance(given, type) and isinstance(given, Feature) and given.kind == kind


class Rooms(Generic[C, M]):
    """A declared family of rooms; made by :meth:`Router.rooms`.

    :ivar pattern: as it was declared, without the prefixes of its routers.
    """

    def __init__(
        self,
        router: Router[C],
        pattern: str,
        *,
        schema: Schema,
        grant: Grant | None,
        history: History | None,
        overflow: Overflow,
        auto_join: Callable[[Identity[C]], Iterable[str]] | None,
        max_publication: int | None,
        features: Mapping[str, Feature],
    ) -> None:
        self.router = router
        self.pattern = pattern
        self.schema = schema
        self.grant = grant
        self.history = history
        self.overflow: Overflow = overflow
        self.auto_join = auto_join
        self.max_publication = max_publication
        self.features = features
        self.authorize_hook: Hook[C, M, Grant] | None = None
        self.join_hook: Hook[C, M, Any] | None = None
        self.leave_hook: Hook[C, M, None] | None = None
        self.handlers: dict[str, Procedure] = {}
        self.hubs: WeakSet[Hub[Any]] = WeakSet()

    def name(self, **params: str) -> str:
        """The name of one room of the family; values are escaped where they must be, so that any user id fits.

        Every room has one name, and a name spelled otherwise is unknown; so names are made here, not by hand. For
        ``auto_join``, workers and whoever else has to name a room: ``rooms.name(user="org:7/ann")``.

        :raises UsageError: for missing, unknown or empty values, for what no name can hold, for more than 255
            bytes, or when several routers with different prefixes include the family's.
        """
        prefixes = self.router.prefixes()
        if len(prefixes) != 1:
            raise UsageError(
                f"rooms {self.pattern!r} stand below several prefixes: {', '.join(sorted(prefixes))}"
            )
        return Pattern(prefixes.pop() + self.pattern).fill(params)

    def room(self, **params: str) -> Room[M]:
        """One room of the family, in the hub that included its router: the running one, if there are several.

        :raises UsageError: for wrong parameters, or when it is not clear which hub is meant.
        """
        run = current_run.get()
        hubs = [run.hub] if run is not None and run.hub in self.hubs else list(self.hubs)
        if len(hubs) > 1:
            hubs = [hub for hub in hubs if hub.running]
        if len(hubs) != 1:
            state = (
                "no hub has included it yet" if not self.hubs else f"{len(self.hubs)} hubs have included it"
            )
            raise UsageError(f"rooms {self.pattern!r}: {state}; use hub.room(name) of the hub that is meant")
        return hubs[0].room(hubs[0].table().family_of(self).pattern.fill(params))

    def authorize(self, func: Hook[C, M, Grant], /) -> Hook[C, M, Grant]:
        """Decorator: decides who may join. Asked once per join, again after the grant's ttl and on refresh.

        Return a :class:`~rtkit.Grant`, or raise :class:`~rtkit.Reject`.
        """
        must_be_async(func, "the authorize hook")
        self.router.declared()
        if self.grant is not None or self.authorize_hook is not None:
            raise DeclarationError(
                f"rooms {self.pattern!r} have a grant= or an authorize hook already; keep one"
            )
        self.authorize_hook = func
        return func

    def on(
        self, message: type[P], /, *, name: str = "", ordered: bool = True
    ) -> Callable[[Handler[C, M, P, R]], Handler[C, M, P, R]]:
        """Decorator: handles messages of this type that clients send to the room.

        What it returns is the acknowledgement. It may be called again for the same command (H7).

        :param name: the wire name, unless the type's own.
        :param ordered: False lets it run beside the session's other commands.
        :raises DeclarationError: when the name is taken.
        :raises TypeError: for a plain ``def``.
        """
        wire_name = message_name(message, name)
        codec = Codec(message)

        def decorate(func: Handler[C, M, P, R]) -> Handler[C, M, P, R]:
            must_be_async(func, "the handler")
            self.router.declared()
            if wire_name in self.handlers:
                raise DeclarationError(
                    f"rooms {self.pattern!r} handle {wire_name!r} already; give one of the two a name="
                )
            self.handlers[wire_name] = Procedure(wire_name, codec, func, ordered)
            return func

        return decorate

    def on_join(self, func: Hook[C, M, R], /) -> Hook[C, M, R]:
        """Decorator: what it returns is the join data. Runs after buffering has begun, so that state
        read here and the messages that follow have no hole between them. May raise ``Reject``."""
        must_be_async(func, "the on_join hook")
        self.router.declared()
        if self.join_hook is not None:
            raise DeclarationError(f"rooms {self.pattern!r} have an on_join hook already")
        self.join_hook = func
        return func

    def on_leave(self, func: Hook[C, M, None], /) -> Hook[C, M, None]:
        """Decorator: runs on the session's node after it left; not when that node crashed."""
        must_be_async(func, "the on_leave hook")
        self.router.declared()
        if self.leave_hook is not None:
            raise DeclarationError(f"rooms {self.pattern!r} have an on_leave hook already")
        self.leave_hook = func
        return func

    def __repr__(self) -> str:
        return f"<Rooms {self.pattern!r} {self.schema!r}>"


class Router(Generic[C]):
    """Holds declarations; ``hub.include(router)`` puts them to work.

    :param prefix: stands before every pattern below, and may have placeholders: ``tenant:{tenant}:``.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.families: list[Rooms[C, Any]] = []
        self.procedures: dict[str, Procedure] = {}
        self.gates: list[Hook[C, Any, None]] = []
        self.middlewares: list[Middleware[C]] = []
        self.error_hooks: list[ErrorHook[C]] = []
        self.included: list[Router[C]] = []
        self._parents: WeakSet[Router[Any]] = WeakSet()
        self._compiled: Table | None = None

    @overload
    def rooms(
        self,
        pattern: str,
        *,
        publishes: tuple[type[T1], type[T2]],
        **options: Unpack[RoomOptions[C]],
    ) -> Rooms[C, T1 | T2]: ...
    @overload
    def rooms(
        self,
        pattern: str,
        *,
        publishes: tuple[type[T1], type[T2], type[T3]],
        **options: Unpack[RoomOptions[C]],
    ) -> Rooms[C, T1 | T2 | T3]: ...
    @overload
    def rooms(
        self,
        pattern: str,
        *,
        publishes: tuple[type[T1], type[T2], type[T3], type[T4]],
        **options: Unpack[RoomOptions[C]],
    ) -> Rooms[C, T1 | T2 | T3 | T4]: ...
    @overload
    def rooms(
        self,
        pattern: str,
        *,
        publishes: tuple[type[T1], type[T2], type[T3], type[T4], type[T5]],
        **options: Unpack[RoomOptions[C]],
    ) -> Rooms[C, T1 | T2 | T3 | T4 | T5]: ...
    @overload
    def rooms(
        self,
        pattern: str,
        *,
        publishes: tuple[type[T1], type[T2], type[T3], type[T4], type[T5], type[T6]],
        **options: Unpack[RoomOptions[C]],
    ) -> Rooms[C, T1 | T2 | T3 | T4 | T5 | T6]: ...
    @overload
    def rooms(
        self, pattern: str, *, publishes: type[T1], **options: Unpack[RoomOptions[C]]
    ) -> Rooms[C, T1]: ...
    def rooms(
        self,
        pattern: str,
        *,
        publishes: Any,
        grant: Grant | None = None,
        history: History | None = None,
        overflow: Overflow | None = None,
        auto_join: Callable[[Identity[C]], Iterable[str]] | None = None,
        max_publication: int | None = None,
        presence: PresenceFeature | None = None,
        receipts: ReceiptsFeature | None = None,
        typing: Feature | None = None,
        signals: Feature | None = None,
    ) -> Rooms[C, Any]:
        """Declare a family of rooms.

        :param pattern: such as ``chat:{room}``; see :mod:`rtkit.patterns`.
        :param publishes: the type or up to six types of message; ``object`` for any JSON.
        :param grant: the same permission for everybody; else decorate an ``authorize`` hook.
        :param history: keeps messages, so that members recover what they missed; None is at most once.
        :param overflow: what happens to a slow member: with history ``recover`` (default) or
            ``close``; without ``drop_oldest`` (default), ``drop_newest``, ``latest_per_key`` or ``close``.
        :param auto_join: names the rooms of this family that an identity is put into on connecting.
        :param max_publication: bytes of one message, instead of the hub's bound; 4 MiB at the most.
        :param presence: a :class:`~rtkit.Presence`: the rooms know who is in them (P1).
        :param receipts: a :class:`~rtkit.features.Receipts`: how far users have got and read (X2). Needs *history*.
        :param typing: a :class:`~rtkit.features.Typing`: who is typing (X1).
        :param signals: a :class:`~rtkit.features.Signals`: how often members may send signals (D5).
        :raises DeclarationError: for a pattern or option that cannot work; the message says why.
        """
        where = f"rooms {pattern!r}"
        types = publishes if isinstance(publishes, tuple) else (publishes,)
        schema = Schema(cast("tuple[type[Any], ...]", types), where=where)
        allowed = (
            ("recover", "close") if history else ("drop_oldest", "drop_newest", "latest_per_key", "close")
        )
        policy = overflow or cast("Overflow", allowed[0])
        if policy not in get_args(Overflow):
            raise DeclarationError(
                f"{where}: overflow={overflow!r} is none of {', '.join(get_args(Overflow))}"
            )
        if policy not in allowed:
            raise DeclarationError(
                f"{where}: overflow={overflow!r} does not go {'with' if history else 'without'} history; "
                f"use {' or '.join(allowed)}"
            )
        if max_publication is not None and not 0 < max_publication <= MAX_ROOM_PUBLICATION:
            raise DeclarationError(
                f"{where}: max_publication={max_publication!r} is not between 1 byte and 4 MiB; what is larger "
                f"belongs behind a URL"
            )
        features: dict[str, Feature] = {}
        # In this order they are asked whether they take a signal: the general one last.
        given = {"presence": presence, "receipts": receipts, "typing": typing, "signals": signals}
        for kind, feature in given.items():
            if feature is not None:
                if not _is_feature(feature, kind):
                    raise DeclarationError(
                        f"{where}: {kind}={feature!r} is none; pass {kind}={kind.title()}()"
                    )
                features[kind] = feature
        if receipts is not None and history is None:
            raise DeclarationError(
                f"{where}: receipts= say how far somebody has come in the history; pass history= too"
            )
        family: Rooms[C, Any] = Rooms(
            self,
            pattern,
            schema=schema,
            grant=grant,
            history=history,
            overflow=policy,
            auto_join=auto_join,
            max_publication=max_publication,
            features=features,
        )
        self._declare(self.families, family)
        return family

    def gate(self, func: Hook[C, Any, None], /) -> Hook[C, Any, None]:
        """Decorator: runs before every ``authorize`` of this router and those it includes. Raise ``Reject``."""
        self._declare(self.gates, must_be_async(func, "the gate"))
        return func

    def rpc(
        self, params: type[P], /, *, name: str = "", ordered: bool = True
    ) -> Callable[[Handler[C, Any, P, R]], Handler[C, Any, P, R]]:
        """Decorator: a procedure clients can call, outside any room.

        :param name: the wire name, unless the type's own.
        :param ordered: False lets it run beside the session's other commands.
        """
        wire_name = message_name(params, name)
        codec = Codec(params)

        def decorate(func: Handler[C, Any, P, R]) -> Handler[C, Any, P, R]:
            must_be_async(func, "the procedure")
            if wire_name in self.procedures:
                raise DeclarationError(
                    f"the procedure {wire_name!r} is declared twice; give one of the two a name="
                )
            if wire_name.startswith("rt."):
                raise DeclarationError(
                    f"procedure names that begin with 'rt.' are rtkit's own, so not {wire_name!r}"
                )
            self.procedures[wire_name] = Procedure(wire_name, codec, func, ordered)
            try:
                self.declared()
            except UsageError:
                del self.procedures[wire_name]
                raise
            return func

        return decorate

    def middleware(self, func: Middleware[C], /) -> Middleware[C]:
        """Decorator: goes around every handler and procedure below; ``await call_next()`` runs it."""
        self._declare(self.middlewares, must_be_async(func, "the middleware"))
        return func

    def on_error(self, func: ErrorHook[C], /) -> ErrorHook[C]:
        """Decorator: told of every exception a handler below raised that is no ``Reject``."""
        self._declare(self.error_hooks, must_be_async(func, "the error hook"))
        return func

    def include(self, router: Router[C]) -> None:
        """Put another router's declarations below this one.

        :raises DeclarationError: when something clashes with what is there, or it would contain itself.
        """
        if router is self or self in router.walk():
            raise DeclarationError("a router cannot include itself")
        if router in self.included:
            raise DeclarationError("this router is included already")
        self.included.append(router)
        router._parents.add(self)
        try:
            self.declared()
        except UsageError:
            self.included.remove(router)
            router._parents.discard(self)
            raise

    def lookup(self, room: str) -> tuple[Family, Mapping[str, str]]:
        """The family and parameters of a room name.

        :raises UnknownRoom: when nothing below this router declares it.
        """
        return self.table().find(room)

    def table(self) -> Table:
        """The declarations of this router and all below it, compiled."""
        from .table import Table

        if self._compiled is None:
            self._compiled = Table(self)
        return self._compiled

    def prefixes(self) -> set[str]:
        """What stands before this router's patterns, for each way it is included."""
        if not self._parents:
            return {self.prefix}
        return {above + self.prefix for parent in self._parents for above in parent.prefixes()}

    def walk(self) -> Iterable[Router[C]]:
        """This router and all below it."""
        yield self
        for router in self.included:
            yield from router.walk()

    def _declare(self, among: list[T1], item: T1) -> None:
        """Add a declaration, unless somebody above objects."""
        among.append(item)
        try:
            self.declared()
        except UsageError:
            among.remove(item)
            raise

    def declared(self) -> None:
        """Something is being declared: whoever stands above checks the whole, or refuses.

        :raises UsageError: when a hub above is running, or what is declared clashes.
        """
        self._compiled = None
        for parent in list(self._parents):
            parent.declared()
        if not self._parents:
            self.table()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.prefix!r} {len(self.families)} families>"
