"""What the connections of one server share: limits, time, and what is where."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING, Final, final

from ..clock import Clock
from ..errors import UsageError
from ..hosting.endpoints import WEBSOCKET, Endpoints, Request, Response, plain
from ..hosting.raw import RawPipes
from ..primitives.deadlines import Deadlines
from ..primitives.tasks import Tasks
from ..transports import Acceptor
from .limits import ServerLimits
from .static import StaticFolder, safe_parts

if TYPE_CHECKING:
    from .heads import Head
    from .http import HttpConnection

__all__ = ["Site"]

_log: Final = logging.getLogger("rtkit.server")

_NOTHING: Final = "Nothing is here. This is rtkit's own server; the hub's WebSocket is at {path}/ws.\n"


@final
class Site:
    """Routing, and what one server's connections have in common. Has no sockets.

    :param path: where the hub is mounted; empty for the root.
    :param ssl: None where TLS is not spoken.
    :ivar arriving: tasks that give an accepted connection its transport; with TLS, a handshake.
    :ivar open: connections that speak HTTP.
    :ivar draining: no connection is kept alive beyond its answer.
    """

    __slots__ = (
        "acceptor",
        "arriving",
        "clock",
        "counters",
        "deadlines",
        "draining",
        "endpoints",
        "limits",
        "open",
        "path",
        "pipes",
        "ssl",
        "static",
        "tasks",
    )

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        path: str,
        static: StaticFolder | None,
        ssl: SSLContext | None,
        limits: ServerLimits,
        clock: Clock,
        ready: Callable[[], float | None] | None,
    ) -> None:
        self.acceptor = acceptor
        self.path = _checked_path(path)
        self.static = static
        self.ssl = ssl
        self.limits = limits
        self.clock = clock
        self.endpoints = Endpoints(lambda: 1.0 if self.draining else None if ready is None else ready())
        self.deadlines = Deadlines(clock)
        self.tasks = Tasks(name="rtkit.server", clock=clock)
        self.pipes = RawPipes(
            clock=clock,
            deadlines=self.deadlines,
            max_frame=acceptor.max_frame,
            close_timeout=limits.close_timeout,
        )
        self.open: set[HttpConnection] = set()
        self.arriving: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()
        self.draining = False

    # -- who is here

    @property
    def size(self) -> int:
        """Open connections of both kinds, and those that are about to be."""
        return len(self.open) + len(self.pipes.open) + len(self.arriving)

    @property
    def crowded(self) -> bool:
        """Not even a refusal can be afforded."""
        most = self.limits.connections
        return self.size >= most + most // 8 + 8

    def opened(self, connection: HttpConnection) -> bool:
        """A connection was made: whether it is one too many."""
        self.counters["accepted"] += 1
        self.open.add(connection)
        return len(self.open) + len(self.pipes.open) > self.limits.connections

    def closed(self, connection: HttpConnection) -> None:
        """It is gone, or speaks WebSocket now."""
        self.open.discard(connection)
        self.pipes.on_closed()

    # -- what is where

    def endpoint(self, path: str) -> str | None:
        """The hub's endpoint that a decoded path names; None for a path that is not the hub's."""
        if path != self.path and not path.startswith(f"{self.path}/"):
            return None
        *before, last = path[len(self.path) :].strip("/").split("/")
        return last if before in ([], ["connection"]) else None

    def is_websocket(self, path: str) -> bool:
        """Whether the hub's WebSocket is there."""
        return self.endpoint(path) in WEBSOCKET

    def file(self, path: str) -> tuple[str, ...] | None:
        """What to look up in the static folder; None for a path that is not to be looked up."""
        return None if self.static is None or self._hubs(path) else safe_parts(path)

    def answer(self, head: Head) -> Response:
        """What to answer to a request that is neither a WebSocket's nor a file's."""
        if not self._hubs(head.path):
            return self.nothing(head)
        endpoint = self.endpoint(head.path) or ""
        return self.endpoints.answer(Request(head.method, endpoint, head.merged, head.version))

    def nothing(self, head: Head) -> Response:
        """There is nothing."""
        return plain(404, _NOTHING.format(path=self.path), head=head.method == "HEAD")

    def _hubs(self, path: str) -> bool:
        """Whether plain HTTP at this path is the hub's to answer."""
        if self.path:
            return path == self.path or path.startswith(f"{self.path}/")
        endpoint = self.endpoint(path)
        return endpoint is not None and self.endpoints.knows(endpoint)


def _checked_path(path: str) -> str:
    if path and (not path.startswith("/") or path.endswith("/") or "?" in path or "#" in path):
        raise UsageError(
            f"path= is where the hub is mounted, such as '/rt', or '' for the root, not {path!r}"
        )
    return path
