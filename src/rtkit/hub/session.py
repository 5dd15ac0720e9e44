"""The identity behind successive connections, and what belongs to it (C1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from msgspec import Raw
from typing_extensions import TypeVar

from .. import codes
from ..identity import Identity
from ..schema import encode_value, event_of
from ..wire import MessagePush, Push, Reply, dumps

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .connection import Connection
    from .engine import Engine
    from .http_session import HttpSession
    from .local import Member

__all__ = ["Session", "SessionStatistics", "application_data"]

C = TypeVar("C", default=Any)


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """What a session has: rooms it is in, background tasks that run, bytes queued for it."""

    rooms: int
    tasks: int
    queued: int


class Session(Generic[C]):
    """One client of a user.

    :ivar id: the client id; other members see it beside messages.
    :ivar identity: who it is; replaced by a refresh, never by another user's.
    :ivar state: the application's own, on this node only.
    :ivar resumed: it was taken up again with a resume token (C4).
    :ivar generation: how often that happened.
    :ivar established: its client was told that it is connected, so that it may come back to it.
    :ivar parked: rooms it was in before its connection was lost, and has not come back to yet.
    :ivar removed: rooms it was taken out of meanwhile, each with the reason; its client has not been told yet.
    :ivar stale: its client was to be asked for a new token meanwhile.
    :ivar taken_by: the node that it went on at, as far as that is known.
    """

    __slots__ = (
        "__weakref__",
        "_tasks",
        "connection",
        "engine",
        "established",
        "generation",
        "id",
        "identity",
        "park_deadline",
        "park_reason",
        "parked",
        "parted",
        "removed",
        "resumed",
        "rooms",
        "stale",
        "starting",
        "state",
        "taken_by",
    )

    def __init__(self, engine: Engine, id: str, identity: Identity[C]) -> None:
        self.engine = engine
        self.id = id
        self.identity = identity
        self.state: dict[str, Any] = {}
        self.rooms: dict[str, Member] = {}
        self.connection: Connection | None = None
        self.resumed = False
        self.generation = 0
        self.established = False
        # Since the application is told that it begins; in the end, whether that went well.
        self.starting: asyncio.Future[bool] | None = None
        self.parked: dict[str, Member] = {}
        self.removed: dict[str, str] | None = None
        self.stale = False
        self.taken_by = ""
        self.park_deadline: Deadline | None = None
        self.park_reason = ""
        self.parted: HttpSession | None = None  # what it was connected by last, over HTTP
        self._tasks: dict[asyncio.Task[None], None] | None = None

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run ``func(*args)`` in the background; it is cancelled when the session ends.

        An exception in it is logged, and ends nothing else.
        """
        task = self.engine.task(_run, func, args)
        if self._tasks is None:
            self._tasks = {}
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def send(self, message: object) -> bool:
        """Send to this session only, at most once; what must arrive goes to a personal room (H9).

        :return: False when it could not be queued: the client is not connected, or too far behind.
        :raises InvalidMessage: for a value that JSON cannot hold.
        """
        connection = self.connection
        if connection is None:
            return False
        unit = dumps(Reply(push=Push(message=MessagePush(application_data(message)))))
        # In a lane of its own: however many there are, the reserve is for replies (D1).
        return connection.push(("message",), unit, "drop_newest") is None

    async def close(self, *, code: int = codes.CLOSED_FOR_GOOD, reason: str = "") -> None:
        """End the session's connection, and tell the client why.

        The session ends with it, unless the code lets the client come back, and it does so in time (C3).

        :param code: a close code from :mod:`rtkit.codes`; its band tells the client whether to return.
        :raises ValueError: for a code that cannot close a connection.
        """
        if not codes.is_valid_close(code):
            raise ValueError(f"a close code is 1000 or from 3000 to 4999, not {code!r}")
        if self.connection is not None:
            self.connection.close(code, reason or codes.describe_close(code))
        elif not self.ended:
            self.engine.parking.end(self, reason or codes.describe_close(code))

    @property
    def ended(self) -> bool:
        """Neither connected nor parked: it is over."""
        return self.engine.sessions.get(self.id) is not self

    def end(self) -> None:
        """Called by the hub: cancel the background tasks."""
        for task in tuple(self._tasks or ()):
            task.cancel()

    def statistics(self) -> SessionStatistics:
        """What it has now."""
        queued = self.connection.outbox.size if self.connection is not None else 0
        return SessionStatistics(rooms=len(self.rooms), tasks=len(self._tasks or ()), queued=queued)

    def __repr__(self) -> str:
        state = "connected" if self.connection is not None else "ended" if self.ended else "parked"
        return f"<Session {self.id} of {self.identity.user!r}, {state}, {len(self.rooms)} rooms>"


async def _run(func: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    await func(*args)


def application_data(message: object) -> Any:
    """A message outside any room: with its event name if its class gives one, else the bare JSON."""
    data, event = encode_value(message), event_of(message)
    return Raw(b'{"event":%b,"data":%b}' % (dumps(event), data) if event else data)
