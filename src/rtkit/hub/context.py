"""What a handler, a hook or a middleware is given."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

from typing_extensions import TypeVar

from ..errors import UsageError

if TYPE_CHECKING:
    from .handle import Room
    from .hub import Hub
    from .session import Session

__all__ = ["Context", "Handler", "Hook", "Run", "current_run", "outside_runs"]

C = TypeVar("C", default=Any)
M = TypeVar("M", default=Any)
P = TypeVar("P", default=Any)
R = TypeVar("R", default=Any)


class Context(Generic[C, M]):
    """One run of a handler or hook: who, where, and with what.

    ``key`` is the command's idempotency key, None if the client gave none: the same for every resend of a
    command, so that it is what a handler makes unique in its own tables (H7). ``data`` is what the client
    gave when joining, decoded from JSON; elsewhere the message itself. ``token`` is what the client showed for
    this room, when joining or to renew the permission; None when it showed none, and outside of the gates,
    ``authorize`` and ``on_join``. ``resumed`` tells a session that was continued from one that began.
    """

    __slots__ = ("_room", "data", "hub", "key", "resumed", "session", "token")

    def __init__(
        self,
        *,
        hub: Hub[C],
        session: Session[C],
        room: Room[M] | None,
        data: Any,
        key: str | None,
        resumed: bool,
        token: str | None = None,
    ) -> None:
        self.hub = hub
        self.session = session
        self._room = room
        self.data = data
        self.key = key
        self.resumed = resumed
        self.token = token

    @property
    def room(self) -> Room[M]:
        """The room this is about.

        :raises UsageError: in a procedure, which is outside any room; use ``ctx.hub.room(name)``.
        """
        if self._room is None:
            raise UsageError("a procedure is outside any room; use ctx.hub.room(name) for the one you mean")
        return self._room

    @property
    def where(self) -> str:
        """The room's name, for logs; empty outside any room."""
        return "" if self._room is None else self._room.name

    @property
    def user(self) -> str:
        """The user's id."""
        return self.session.identity.user

    @property
    def claims(self) -> C:
        """What authentication said about the user."""
        return self.session.identity.claims

    def __repr__(self) -> str:
        return f"<Context {self.user!r} in {self.where!r}>"


#: ``async def hook(ctx) -> R``
Hook: TypeAlias = Callable[[Context[C, M]], Awaitable[R]]
#: ``async def handler(ctx, message) -> R``
Handler: TypeAlias = Callable[[Context[C, M], P], Awaitable[R]]


class Run:
    """Numbers the publications of one handler run, so that a resend repeats their keys (H7)."""

    __slots__ = ("count", "hub", "key", "user", "where")

    def __init__(self, hub: Hub[Any], user: str, key: str | None, where: str) -> None:
        self.hub = hub
        self.user = user
        self.key = key
        self.where = where  # the room, or the procedure: keys belong to it
        self.count = 0

    def next_key(self, *, elsewhere: bool) -> str | None:
        """The key of this run's next publication; None when the command had no key.

        :param elsewhere: it is not published as ``ctx.room``. Other users, and other rooms, may publish to the
            same place under the same key, so there it is told from theirs.
        """
        self.count += 1
        if self.key is None:
            return None
        key = f"{self.key}/{self.count}"
        return f"{self.user}\n{self.where}\n{key}" if elsewhere else key


#: The handler run that the current task works for.
current_run: ContextVar[Run | None] = ContextVar("rtkit_run", default=None)


def outside_runs(hub: Hub[Any]) -> contextvars.Context:
    """A copy of the present context for a task of its own: what it publishes is not numbered with a run."""
    context = contextvars.copy_context()
    context.run(current_run.set, Run(hub, "", None, ""))
    return context
