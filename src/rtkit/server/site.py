"""What the connections of one server share: limits, time, and what is where."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING, Final, Protocol, final

from ..clock import Clock
from ..errors import UsageError
from ..hosting.endpoints import WEBSOCKET, Endpoints, Request, Response, plain
from ..hosting.raw import RawPipes
from ..primitives.deadlines import Deadlines
from ..primitives.tasks import Tasks
from ..transports import HTTP_ENDPOINTS, Acceptor
from .limits import ServerLimits
from .static import StaticFolder, safe_parts

if TYPE_CHECKING:
    from .heads import Head
    from .http import HttpConnection
    from .streams import HttpStream

__all__ = ["Api", "Site"]

_log: Final = logging.getLogger("rtkit.server")

_ALLOW: Final = "GET, POST, DELETE, OPTIONS"
_NOTHING: Final = "Nothing is here. This is rtkit's own server; the hub's WebSocket is at {path}/ws.\n"


class Api(Protocol):
    """The server HTTP API, as this server sees it: :class:`rtkit.ext.http_api.HttpApi`."""

    @property
    def max_body(self) -> int:
        """Bytes of a request's body at the most."""
        ...

    def screen(self, request: Request) -> Response | None:
        """What to answer to a request right away; None for one whose body is to be read."""
        ...

    async def answer(self, request: Request, body: bytes) -> Response:
        """Carry out a request that :meth:`screen` has let through. Raises nothing but what is a bug."""
        ...


@final
class Site:
    """Routing, and what one server's connections have in common. Has no sockets.

    :param path: where the hub is mounted; empty for the root.
    :param api: the HTTP API, at *api_path*.
    :param ssl: None where TLS is not spoken.
    :param deflate: compress what WebSockets are sent, where the client agrees (T9).
    :ivar arriving: tasks that give an accepted connection its transport; with TLS, a handshake.
    :ivar open: connections that speak HTTP.
    :ivar streams: connections with a response that goes on.
    :ivar draining: no connection is kept alive beyond its answer.
    :ivar ending: the hub has been closed, and no request is to start it again.
    """

    __slots__ = (
        "acceptor",
        "api",
        "api_path",
        "arriving",
        "clock",
        "counters",
        "deadlines",
        "deflate",
        "draining",
        "ending",
        "endpoints",
        "limits",
        "open",
        "path",
        "pipes",
        "ssl",
        "static",
        "streams",
        "tasks",
    )

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        path: str,
        api: Api | None = None,
        api_path: str = "/api",
        static: StaticFolder | None,
        ssl: SSLContext | None,
        limits: ServerLimits,
        clock: Clock,
        ready: Callable[[], float | None] | None,
        deflate: bool = False,
    ) -> None:
        self.acceptor = acceptor
        self.path = _checked_path(path)
        self.api = api
        self.api_path = api_path
        if api is not None and (not _checked_path(api_path) or api_path == path):
            raise UsageError(f"api_path= is a path of its own, such as '/api', not {api_path!r}")
        self.static = static
        self.ssl = ssl
        self.deflate = deflate
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
        self.streams: set[HttpStream] = set()
        self.arriving: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()
        self.draining = False
        self.ending = False

    # -- who is here

    @property
    def size(self) -> int:
        """Open connections of all kinds, and those that are about to be."""
        return len(self.open) + len(self.streams) + len(self.pipes.open) + len(self.arriving)

    @property
    def crowded(self) -> bool:
        """Not even a refusal can be afforded."""
        most = self.limits.connections
        return self.size >= most + most // 8 + 8

    def opened(self, connection: HttpConnection) -> bool:
        """A connection was made: whether it is one too many."""
        self.counters["accepted"] += 1
        self.open.add(connection)
        return len(self.open) + len(self.streams) + len(self.pipes.open) > self.limits.connections

    def turned_away(self, why: str, kind: str) -> None:
        """Somebody gets no answer, or not the one it wanted; see :meth:`.Acceptor.turned_away`.

        :param kind: the counter of ours that it is one more of.
        """
        self.counters[kind] += 1
        self.acceptor.turned_away(why)

    def closed(self, connection: HttpConnection) -> None:
        """It is gone, or is a WebSocket or a stream now."""
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

    def exchange(self, head: Head) -> str | None:
        """The endpoint of the hub that takes this request with its body; None when none does.

        A HEAD would have to be answered as the GET is, and a response that goes on has no head alone.
        """
        endpoint = self.endpoint(head.path)
        return endpoint if endpoint in HTTP_ENDPOINTS and head.method != "HEAD" else None

    def api_request(self, head: Head) -> Request | None:
        """A request to the HTTP API, whose endpoint is all of the path below its own; None for any other."""
        if self.api is None or not head.path.startswith(f"{self.api_path}/"):
            return None
        endpoint = head.path[len(self.api_path) + 1 :].removesuffix("/")
        return Request(head.method, endpoint, head.merged, head.version)

    def file(self, path: str) -> tuple[str, ...] | None:
        """What to look up in the static folder; None for a path that is not to be looked up."""
        return None if self.static is None or self._hubs(path) else safe_parts(path)

    def answer(self, head: Head) -> Response:
        """What to answer to a request that is neither a WebSocket's nor a file's."""
        if not self._hubs(head.path):
            return self.nothing(head)
        endpoint = self.endpoint(head.path) or ""
        if endpoint in HTTP_ENDPOINTS:
            return plain(405, "method not allowed\n", ("allow", _ALLOW), head=True)
        return self.endpoints.answer(Request(head.method, endpoint, head.merged, head.version))

    def nothing(self, head: Head) -> Response:
        """There is nothing."""
        return plain(404, _NOTHING.format(path=self.path), head=head.method == "HEAD")

    def _hubs(self, path: str) -> bool:
        """Whether plain HTTP at this path is the hub's to answer."""
        if self.path:
            return path == self.path or path.startswith(f"{self.path}/")
        endpoint = self.endpoint(path)
        return endpoint is not None and (endpoint in HTTP_ENDPOINTS or self.endpoints.knows(endpoint))


def _checked_path(path: str) -> str:
    if path and (not path.startswith("/") or path.endswith("/") or "?" in path or "#" in path):
        raise UsageError(
            f"path= is where the hub is mounted, such as '/rt', or '' for the root, not {path!r}"
        )
    return path
