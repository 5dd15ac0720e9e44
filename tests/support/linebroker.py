"""A broker over real sockets that is small enough to see through: a line for each publication, a line for its answer.

For tests of who opens connections and who uses them: :class:`LineServer` writes down what comes, by connection.
``line://host:port`` names a :class:`LineBroker` where :func:`install_line_broker` made a package of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rtkit.brokers import Sink
from rtkit.clock import Clock
from rtkit.errors import BrokerUnavailable, NotRunning, PublishUnknown, UsageError

__all__ = ["PATIENCE", "LineBroker", "LineServer", "install_line_broker"]

#: Seconds until what was waited for is given up.
PATIENCE = 40.0


class LineBroker:
    """Publishes, and does nothing else; says ``bye`` when it is closed."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: list[asyncio.Future[None]] = []

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> LineBroker:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise UsageError("line:// needs a host and a port")
        return cls(parts.hostname, parts.port)

    async def open(self, sink: Sink) -> None:
        if self._streams is not None:
            raise UsageError("it is open already")
        try:
            self._streams = await asyncio.open_connection(*self._where)
        except OSError as error:
            raise BrokerUnavailable(str(error)) from error
        self._reading = asyncio.create_task(self._read(*self._streams))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                waiting = self._answers.pop(0)
                if not waiting.done():
                    waiting.set_result(None)
        finally:
            # Were this to run in a child, the parent would lose its connection, and the server would see it.
            self._end(writer)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if self._streams is not None:
            self._streams = None
            writer.write(b'"bye"\n')
            writer.close()
        for each in self._answers:
            if not each.done():
                each.set_exception(PublishUnknown("the connection is gone"))
        self._answers.clear()

    async def aclose(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        if self._streams is not None:  # it had not begun
            self._end(self._streams[1])

    async def publish(self, topic: str, payload: bytes) -> None:
        if self._streams is None:
            raise NotRunning("it is not open")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers.append(waiting)
        line = json.dumps([os.getpid(), topic, json.loads(payload)["data"]])
        self._streams[1].write(line.encode() + b"\n")
        await waiting

    async def subscribe(self, topics: Iterable[str]) -> None: ...

    async def unsubscribe(self, topics: Iterable[str]) -> None: ...


class LineServer:
    """Its server, in threads; a context manager.

    :ivar lines: what came, in order: (connection, process, topic, data). Connections are numbered from 1.
    :ivar byes: the connections that were closed properly.
    :ivar holding: publications are not answered while it is set.
    """

    def __init__(self, port: int = 0) -> None:
        self.lines: list[tuple[int, int, str, Any]] = []
        self.byes: list[int] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._sock = socket.create_server(("127.0.0.1", port))
        self.port = int(self._sock.getsockname()[1])
        self._held: list[socket.socket] = []
        self._open: dict[int, socket.socket] = {}
        self._holding = False
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"line://127.0.0.1:{self.port}"

    def broker(self) -> LineBroker:
        return LineBroker("127.0.0.1", self.port)

    def __enter__(self) -> LineServer:
        self._start(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Closing alone does not wake who waits in accept().
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        with self._changed:
            for sock in self._open.values():
                with contextlib.suppress(OSError):  # its client was quicker
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def hold(self) -> None:
        """Take publications, and do not answer them."""
        with self._changed:
            self._holding = True

    def release(self) -> None:
        """Answer them now."""
        with self._changed:
            self._holding = False
            for sock in self._held:
                sock.sendall(b"ok\n")
            self._held.clear()

    def wait_for(self, count: int) -> list[tuple[int, int, str, Any]]:
        """The first so many publications; waits until they have come."""
        self._wait(lambda: len(self.lines) >= count)
        return self.lines[:count]

    def wait_until_closed(self, connections: int = 0) -> None:
        """Until there is no connection any more, and have been so many: that one was made is noticed late, too."""
        self._wait(lambda: self.connections >= connections and not self._open)

    def said(self) -> list[Any]:
        """The data of all publications."""
        return [data for _, _, _, data in self.lines]

    def users(self) -> dict[int, set[int]]:
        """The processes that have used each connection."""
        found: dict[int, set[int]] = {}
        for connection, process, _, _ in self.lines:
            found.setdefault(connection, set()).add(process)
        return found

    def _wait(self, condition: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), (self.lines, self.byes)

    def _start(self, func: Any, *args: Any) -> None:
        thread = threading.Thread(target=func, args=args, name="line-server", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                self._open[self.connections] = sock
                self._start(self._serve, self.connections, sock)

    def _serve(self, number: int, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            try:
                for line in file:
                    self._got(number, sock, json.loads(line))
            except OSError:
                pass  # reset
            with self._changed:
                del self._open[number]
                if sock in self._held:
                    self._held.remove(sock)
                self._changed.notify_all()

    def _got(self, number: int, sock: socket.socket, unit: Any) -> None:
        with self._changed:
            if unit == "bye":
                self.byes.append(number)
            else:
                self.lines.append((number, *unit))
                if self._holding:
                    self._held.append(sock)
                else:
                    sock.sendall(b"ok\n")
            self._changed.notify_all()


def install_line_broker(folder: Path) -> None:
    """Make *folder* a place from which Python can import, with a package that brings ``line://``."""
    info = folder / "line_broker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: line-broker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rtkit.brokers]\nline = tests.support.linebroker:LineBroker\n")
