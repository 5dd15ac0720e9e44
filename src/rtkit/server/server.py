"""The server itself: listening sockets, and the end of all connections."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl as _ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, final

from ..clock import Clock
from ..errors import UsageError
from ..primitives.clocks import LoopClock, timeout
from ..transports import Acceptor
from .limits import ServerLimits
from .listening import Listener, bind_tcp, bind_unix
from .site import Api, Site
from .static import StaticFolder

__all__ = ["Server", "ServerStatistics"]

_log: Final = logging.getLogger("rtkit.server")


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A server as it is now, and totals since it was made.

    :param http: open connections that speak HTTP.
    :param waiting: those of them whose answer comes when there is something to say: polls.
    :param streams: open responses that go on.
    :param websockets: open WebSockets.
    :param tasks: requests that are worked on.
    :param accepted: connections ever accepted.
    :param requests: requests ever answered, handshakes included.
    :param upgraded: connections that became WebSockets.
    :param streamed: connections that became streams.
    :param refused: answers to what cannot be served: bad requests, handshakes not taken, too much of something.
    :param timeouts: deadlines that clients have missed.
    :param dropped: connections dropped at once, because there were too many.
    """

    http: int
    waiting: int
    streams: int
    websockets: int
    tasks: int
    accepted: int
    requests: int
    upgraded: int
    streamed: int
    refused: int
    timeouts: int
    dropped: int


@final
class Server:
    """Serves a hub, its HTTP API, and for demos a folder of files, over HTTP/1.1 and WebSockets on one port.

    :func:`rtkit.serve` and :func:`rtkit.server.listen` make one, and mind the hub's life too.

    :param acceptor: the hub.
    :param path: where it is mounted; empty for the root.
    :param api: the HTTP API, an :class:`~rtkit.ext.http_api.HttpApi`, and
    :param api_path: where that is mounted.
    :param static: a folder whose files are served beside it.
    :param ssl: to speak TLS.
    :param deflate: see :func:`rtkit.serve`.
    :param limits: see :class:`ServerLimits`.
    :param clock: where time comes from; tests pass a manual one.
    :param ready: None when new clients are welcome, else the seconds after which they shall come back.
    :raises UsageError: for a path or a folder that cannot be served.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        path: str = "/rt",
        api: Api | None = None,
        api_path: str = "/api",
        static: str | os.PathLike[str] | None = None,
        ssl: _ssl.SSLContext | None = None,
        deflate: bool = False,
        limits: ServerLimits | None = None,
        clock: Clock | None = None,
        ready: Callable[[], float | None] | None = None,
    ) -> None:
        self._limits = limits or ServerLimits()
        self._site = Site(
            acceptor,
            path=path,
            api=api,
            api_path=api_path,
            static=None if static is None else StaticFolder(static),
            ssl=ssl,
            limits=self._limits,
            clock=LoopClock() if clock is None else clock,
            ready=ready,
            deflate=deflate,
        )
        self._listeners: list[Listener] = []
        self._addresses: tuple[Any, ...] = ()
        self._unix: tuple[str, int] | None = None
        self._closed = False

    # -- life

    async def start(
        self,
        host: str | None = "127.0.0.1",
        port: int = 8000,
        *,
        unix: str | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
    ) -> None:
        """Listen; once.

        :param host: a name or an address; None for every address of the machine.
        :param port: 0 for a free one.
        :param unix: listen on a Unix socket at this path instead.
        :param sock: listen on this socket instead, which is closed with the server.
        :raises OSError: when that is not possible; the message names the address.
        :raises UsageError: when it has been started before.
        """
        if self._addresses or self._closed:
            raise UsageError("a server is started once")
        if unix is not None:
            path = os.fspath(unix)
            socks = [bind_unix(path)]
            if not path.startswith("\0"):
                self._unix = path, os.stat(path).st_ino
        else:
            socks = await bind_tcp(host, port) if sock is None else [sock]
        self._listeners = [Listener(each, self._site) for each in socks]
        for listener in self._listeners:
            listener.start()
        self._addresses = tuple(listener.address for listener in self._listeners)
        _log.info("listening on %s", self.url)

    def stop_accepting(self) -> None:
        """Close the listening sockets, and keep no connection alive beyond its next answer. Idempotent.

        Those between two requests stay until :meth:`aclose`: a client that polls hears what the hub says at last only
        if it can ask once more.
        """
        self._closed = True
        self._site.draining = True
        for listener in self._listeners:
            listener.close()
        if self._unix is not None:
            path, inode = self._unix
            self._unix = None
            with suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        for task in self._site.arriving:
            task.cancel()

    async def aclose(self) -> None:
        """Let requests under way end, within the drain timeout, and close everything. Idempotent.

        WebSockets, streams and polls are the hub's to end, which is closed before. Of those that are left then,
        WebSockets are dropped, streams end, and polls are answered that they shall come again.

        Cancellation: everything is dropped at once.
        """
        self.stop_accepting()
        site = self._site
        site.ending = True
        for connection in list(site.open):
            connection.drain()
        try:
            async with timeout(site.clock, self._limits.drain_timeout):
                while site.open or site.streams or site.arriving:
                    # Also those that have only now begun, which a hub that is closed would not have let.
                    for connection in list(site.open):
                        connection.dismiss()
                    for stream in list(site.streams):
                        stream.end()
                    await self._change()
        except TimeoutError:
            _log.warning("dropping %d requests that did not end", len(site.open) + len(site.streams))
        finally:
            self.abort()
            while self._site.size:
                await self._change()
                self.abort()  # what has only now arrived
            await self._site.tasks.aclose(timeout=self._limits.drain_timeout)
            self._site.deadlines.close()

    def abort(self) -> None:
        """Stop accepting, and drop every connection, without a word."""
        self.stop_accepting()
        for connection in list(self._site.open):
            connection.abort()
        for stream in list(self._site.streams):
            stream.abort()
        for pipe in list(self._site.pipes.open):
            pipe.abort()

    async def _change(self) -> None:
        """Wait for a connection to end."""
        waiter = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._site.pipes.on_closed = wake
        await waiter

    # -- what it is

    @property
    def addresses(self) -> tuple[Any, ...]:
        """What it listens on: ``(host, port)`` and the like, a path for a Unix socket. Empty before :meth:`start`."""
        return self._addresses

    @property
    def port(self) -> int:
        """The TCP port, of the first address.

        :raises UsageError: before :meth:`start`, and for a Unix socket.
        """
        if not self._addresses or not isinstance(self._addresses[0], tuple):
            raise UsageError("this server does not listen on a TCP port")
        return int(self._addresses[0][1])

    @property
    def url(self) -> str:
        """The hub's, for a client on this machine; ``unix:`` and its path for a Unix socket; else empty."""
        if not self._addresses:
            return ""
        first = self._addresses[0]
        if not isinstance(first, tuple):
            return f"unix:{first if isinstance(first, str) else os.fsdecode(first)}"
        host = str(first[0])
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "http" if self._site.ssl is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{first[1]}{self._site.path}"

    def statistics(self) -> ServerStatistics:
        """How things are."""
        site, counters = self._site, self._site.counters
        return ServerStatistics(
            http=len(site.open),
            waiting=sum(connection.waiting for connection in site.open),
            streams=len(site.streams),
            websockets=len(site.pipes.open),
            tasks=len(site.tasks),
            accepted=counters["accepted"],
            requests=counters["requests"],
            upgraded=counters["websockets"],
            streamed=counters["streams"],
            refused=counters["refused"],
            timeouts=counters["timeouts"],
            dropped=counters["dropped"],
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self.url}" if self._addresses else "not started"
        return f"<Server {state}, {len(self._site.pipes.open)} WebSockets, {len(self._site.streams)} streams>"
