"""Listening sockets: binding them, and accepting without being carried away.

asyncio's own server could do it, but not these things:

- *Out of file descriptors*, it logs a traceback and sets a timer for each connection that its backlog has room for,
  and again when those go off (CPython issue 151615). Here one line is logged, and after a second it is tried again.
- *A storm*: it accepts as many in one loop turn as the backlog allows, while everybody else waits. Here it is a
  small number a turn.
- *The end*: what it has accepted and not yet handed over, such as a TLS handshake under way, is nobody's when it
  closes; and cannot be counted before.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, Final, final

from ..errors import UsageError
from ..hosting.raw import limit_silence, no_delay
from .http import HttpConnection

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .site import Site

__all__ = ["Listener", "bind_tcp", "bind_unix"]

#: Connections that wait in the kernel; more are refused by it, or have to try again.
_BACKLOG: Final = 4096
#: Connections accepted in one loop turn.
_A_TURN: Final = 4
#: Seconds until accepting is tried again when it was not possible.
_PAUSE: Final = 1.0
_HOPELESS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_log: Final = logging.getLogger("rtkit.server")


@final
class Listener:
    """Accepts the connections of one listening socket, which it owns.

    :param sock: bound.
    :raises UsageError: for a socket that is no stream's.
    """

    __slots__ = ("_closed", "_loop", "_pause", "_site", "_sock", "_task", "address")

    def __init__(self, sock: socket.socket, site: Site) -> None:
        if sock.type != socket.SOCK_STREAM:
            raise UsageError(f"a server listens on a stream socket, not on {sock!r}")
        self._sock = sock
        self._site = site
        self._loop = asyncio.get_running_loop()
        self._pause: Deadline | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None  # only where the loop cannot watch a socket
        self.address: Any = sock.getsockname()

    def start(self) -> None:
        """Listen, and accept from the next turn on."""
        sock = self._sock
        sock.setblocking(False)
        if self._site.limits.silence is not None:
            limit_silence(sock, self._site.limits.silence)
        no_delay(sock)
        sock.listen(_BACKLOG)
        try:
            self._loop.add_reader(sock, self._accept_some)
        except NotImplementedError:  # the proactor loop of Windows
            self._task = self._site.tasks.spawn(self._accept_all)

    def close(self) -> None:
        """Stop. Idempotent. Connections that wait in the kernel are reset by it."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        if self._task is None:
            self._loop.remove_reader(self._sock)
        else:
            self._task.cancel()
        self._sock.close()

    def _accept_some(self) -> None:
        for _ in range(_A_TURN):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                self._loop.remove_reader(self._sock)
                self._wait(exc)
                return
            self._hand_over(connection)

    async def _accept_all(self) -> None:
        while not self._closed:
            try:
                connection, _ = await self._loop.sock_accept(self._sock)
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                if not self._closed:
                    self._wait(exc)
                return
            self._hand_over(connection)

    def _wait(self, exc: OSError) -> None:
        """Accepting was not possible: try again in a while."""
        why = "out of file descriptors or memory" if exc.errno in _HOPELESS else "cannot accept"
        _log.error("%s (%s): %d connections are open, new ones have to wait", why, exc, self._site.size)
        self._pause = self._site.deadlines.at(self._site.clock.monotonic() + _PAUSE, self.start)

    def _hand_over(self, sock: socket.socket) -> None:
        site = self._site
        if site.crowded:
            site.turned_away("dropped", "dropped")
            sock.close()
            return
        deadline = None
        task = site.tasks.spawn(self._take, sock)
        site.arriving.add(task)
        if site.ssl is not None:
            when = site.clock.monotonic() + site.limits.header_time
            deadline = site.deadlines.at(when, self._too_slow, task, patient=True)
        task.add_done_callback(functools.partial(self._taken, sock, deadline))

    async def _take(self, sock: socket.socket) -> None:
        """Give a connection its transport; with TLS that takes a handshake."""
        limits = self._site.limits
        options: dict[str, Any] = {}
        if self._site.ssl is not None:
            options |= {
                "ssl": self._site.ssl,
                "ssl_handshake_timeout": limits.header_time,
                "ssl_shutdown_timeout": limits.close_timeout,
            }
        try:
            await self._loop.connect_accepted_socket(lambda: HttpConnection(self._site), sock, **options)
        except OSError:
            _log.debug("a connection was lost as it began", exc_info=True)
            sock.close()

    def _too_slow(self, task: asyncio.Task[None]) -> None:
        self._site.turned_away("silent", "timeouts")
        task.cancel()

    def _taken(self, sock: socket.socket, deadline: Deadline | None, task: asyncio.Task[None]) -> None:
        if deadline is not None:
            deadline.cancel()
        if task.cancelled():
            sock.close()  # nobody has, if the task had not begun
        self._site.arriving.discard(task)
        self._site.pipes.on_closed()

    def __repr__(self) -> str:
        return f"<Listener {self.address!r}{' closed' if self._closed else ''}>"


async def bind_tcp(host: str | None, port: int) -> list[socket.socket]:
    """Sockets for all addresses of *host*, on one port.

    :raises OSError: when there is none; the message names host and port.
    """
    loop = asyncio.get_running_loop()
    bound: list[socket.socket] = []
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        failed: OSError | None = None
        for family, kind, proto, _, address in dict.fromkeys(infos):
            try:
                sock = socket.socket(family, kind, proto)
            except OSError as exc:  # a family that this machine has not got
                failed = exc
                continue
            try:
                if os.name == "posix":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                chosen = bound[0].getsockname()[1] if bound else address[1]  # one port, even if it is any
                sock.bind((address[0], chosen, *address[2:]))
            except OSError as exc:
                sock.close()
                failed = exc
                if exc.errno != errno.EADDRNOTAVAIL:  # localhost may be ::1 by name and not in fact
                    raise
                continue
            bound.append(sock)
        if failed is not None and not bound:
            raise failed
    except OSError as exc:
        for each in bound:
            each.close()
        raise OSError(
            exc.errno, f"cannot listen on {host or 'any address'}, port {port}: {_hint(exc)}"
        ) from None
    return bound


def _hint(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "something is listening there already; choose another port=, or 0 for a free one"
    if exc.errno == errno.EACCES:
        return "this user may not; ports below 1024 are reserved on many systems"
    return exc.strerror or str(exc)


def bind_unix(path: str) -> socket.socket:
    """A socket at *path*. One that is there and that nobody listens on is a leftover, and is removed.

    :raises OSError: when that is not possible; the message names the path.
    """
    try:
        leftover = not path.startswith("\0") and stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        leftover = False
    if leftover:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except OSError:
                pass  # in use, or not ours to touch: binding will say so
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on the Unix socket {path}: {exc.strerror or exc}") from None
    return sock
