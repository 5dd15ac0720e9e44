"""A server that speaks Redis' protocol and answers as a test tells it to, on a real socket in the test's own loop.

Time in the test stands still unless it is moved, so what a server does late, never, or in the wrong order can be had
without waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tests.support.serving import stop_serving

__all__ = ["OK", "Peer", "ScriptedRedis", "array", "bulk", "error", "number", "slots"]

Answer: TypeAlias = bytes | Callable[["Peer", list[bytes]], bytes | None] | None

OK: Final = b"+OK\r\n"


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


def error(text: str) -> bytes:
    return f"-{text}\r\n".encode()


def slots(*ranges: tuple[int, int, int]) -> bytes:
    """The answer to CLUSTER SLOTS: first slot, last slot, port."""
    return array(
        *(
            array(number(first), number(last), array(bulk(b"127.0.0.1"), number(port), bulk(b"id")))
            for first, last, port in ranges
        )
    )


class Peer:
    """A connection to it."""

    def __init__(self, server: ScriptedRedis, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.writer = writer
        self.commands: list[list[bytes]] = []
        self.chunks = 0  # how many pieces arrived: writes, as long as they are small
        self.subscribed: set[bytes] = set()

    @property
    def names(self) -> list[bytes]:
        """What it has asked, without how it introduced itself."""
        return [command[0] for command in self.commands if command[0] not in {b"HELLO", b"CLIENT", b"AUTH"}]

    @property
    def open(self) -> bool:
        return not self.writer.transport.is_closing()

    def say(self, data: bytes) -> None:
        """Send it something, asked for or not."""
        if self.open:
            self.writer.write(data)

    def drop(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


class ScriptedRedis:
    """The server: an async context manager.

    :ivar port: where it listens.
    :ivar answers: by command name: bytes to send, None to send nothing, or a function that returns either.
    :ivar peers: all connections there ever were.
    :ivar role: what it says it is.
    :ivar mute: swallows everything, as a frozen server does.
    :ivar deaf: publishes to nobody, as a replica that was cut off.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.answers: dict[bytes, Answer] = {}
        self.peers: list[Peer] = []
        self.role = "master"
        self.mute = False
        self.deaf = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def live(self) -> list[Peer]:
        """The connections that are open."""
        return [peer for peer in self.peers if peer.open]

    @property
    def commands(self) -> list[list[bytes]]:
        """Of all connections, one after the other."""
        return [command for peer in self.peers for command in peer.commands]

    @property
    def names(self) -> list[bytes]:
        return [name for peer in self.peers for name in peer.names]

    async def __aenter__(self) -> ScriptedRedis:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; on the same port as before."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset all connections and refuse new ones."""
        self.drop()
        if self._server is not None:
            await stop_serving(self._server)
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        """Reset all connections."""
        for peer in self.peers:
            peer.drop()

    def publish(self, channel: bytes, content: bytes, *, kind: bytes = b"message") -> int:
        hearers = [peer for peer in self.live if channel in peer.subscribed]
        for peer in hearers:
            peer.say(array(bulk(kind), bulk(channel), bulk(content)))
        return len(hearers)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(self, writer)
        self.peers.append(peer)
        task = asyncio.get_running_loop().create_task(self._serve(peer, reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: Peer, reader: asyncio.StreamReader) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 20):
                peer.chunks += 1
                data, at = data + piece, 0
                while (parsed := _parse(data, at)) is not None:
                    command, at = parsed
                    command[0] = command[0].upper()
                    peer.commands.append(command)
                    if not self.mute and (answer := self._answer(peer, command)) is not None:
                        peer.say(answer)
                data = data[at:]
        peer.drop()

    def _answer(self, peer: Peer, command: list[bytes]) -> bytes | None:
        name = command[0]
        if name in self.answers:
            found = self.answers[name]
            return found(peer, command) if callable(found) else found
        if name == b"HELLO":
            return array(bulk(b"server"), bulk(b"redis"), bulk(b"role"), bulk(self.role.encode()))
        if name in {b"CLIENT", b"AUTH", b"ASKING"}:
            return OK
        if name in {b"SUBSCRIBE", b"SSUBSCRIBE"}:
            peer.subscribed |= set(command[1:])
            return b"".join(array(bulk(name.lower()), bulk(each), number(1)) for each in command[1:])
        if name in {b"UNSUBSCRIBE", b"SUNSUBSCRIBE"}:
            peer.subscribed -= set(command[1:])
            return b"".join(array(bulk(name.lower()), bulk(each), number(0)) for each in command[1:])
        if name in {b"PUBLISH", b"SPUBLISH"}:
            kind = b"smessage" if name == b"SPUBLISH" else b"message"
            return number(0 if self.deaf else self.publish(command[1], command[2], kind=kind))
        if name == b"WAIT":
            return number(1)
        if name in {b"EVALSHA", b"EVAL"}:
            return bulk(command[-1])  # the last argument
        return error(f"ERR unknown command '{name.decode()}'")


def _parse(data: bytes, at: int) -> tuple[list[bytes], int] | None:
    """The command that begins there, and where the next one does; None when it is not complete."""
    words: list[bytes] = []
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    for _ in range(int(data[at + 1 : end])):
        at, end = end + 2, data.find(b"\r\n", end + 2)
        if end < 0:
            return None
        at, end = end + 2, end + 2 + int(data[at + 1 : end])
        if len(data) < end + 2:
            return None
        words.append(data[at:end])
    return words, end + 2


def tag_in(first: int, last: int, names: Sequence[str] = ()) -> str:
    """A tag whose slot lies between two, other than *names*."""
    return next(
        tag
        for tag in (f"t{n}" for n in range(100_000))
        if tag not in names and first <= crc_hqx(tag.encode(), 0) % 16_384 <= last
    )
