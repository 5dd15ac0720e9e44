"""A raw pipe on one end of a socket pair, and the other end in the hands of the test."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from rtkit.hosting import frames
from rtkit.hosting.frames import BINARY, CLOSE, PING, PONG, TEXT
from rtkit.hosting.raw import RawPipe, RawPipes
from rtkit.primitives.deadlines import Deadlines
from rtkit.testing.clock import ManualClock
from tests.unit.hosting.scripted import Echo

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "TEXT", "Peer", "PipeWorld", "masked"]


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame as a client sends it, masked with zeros, so that tests can read it."""
    head = bytearray(frames.frame(opcode, payload))
    head[1] |= 0x80
    if not fin:
        head[0] &= 0x7F
    at = len(head) - len(payload)
    return bytes(head[:at] + b"\0\0\0\0" + head[at:])


class Peer:
    """The client's end: says bytes, and writes down what it hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.heard = b""
        self.eof = False
        self.reset = False

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def listen(self, limit: int = 1 << 24) -> bytes:
        """Everything that has arrived by now."""
        try:
            while limit and not self.eof:
                data = self.sock.recv(min(limit, 65536))
                self.eof = not data
                self.heard += data
                limit -= len(data)
        except BlockingIOError:
            pass
        except OSError:
            self.reset = True
        return self.heard

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """The frames that have arrived, which a server must not mask."""
        found, data = list[tuple[int, bytes]](), self.listen()
        while data:
            size, start = data[1], 2
            assert size < 128, "masked"
            if size > 125:
                start = 4 if size == 126 else 10
                size = int.from_bytes(data[2:start], "big")
            assert data[0] & 0x80
            found.append((data[0] & 15, data[start : start + size]))
            data = data[start + size :]
        return found

    @property
    def texts(self) -> list[str]:
        return [payload.decode() for opcode, payload in self.frames if opcode == TEXT]

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the close frame that came, which must be the last frame."""
        *before, (opcode, payload) = self.frames or [(0, b"")]
        assert all(each[0] != CLOSE for each in before)
        return frames.parse_close(payload) if opcode == CLOSE else None


class PipeWorld:
    """Pipes on a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.deadlines = Deadlines(self.clock)
        self.pipes = RawPipes(clock=self.clock, deadlines=self.deadlines, max_frame=100_000, close_timeout=4)
        self.peers: list[Peer] = []

    async def open(self, *, echo: bool = False, buffer: int | None = None) -> tuple[RawPipe, Echo, Peer]:
        """A pipe, its driver, and the client; with *buffer* the kernel takes about so many bytes."""
        ours, theirs = socket.socketpair()
        if buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        loop = asyncio.get_running_loop()
        network, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
        pipe = RawPipe(network, self.pipes)
        driver = Echo(pipe.transport, echo=echo)
        pipe.transport.drive(driver)
        peer = Peer(theirs)
        self.peers.append(peer)
        await self.clock.settle()
        return pipe, driver, peer

    async def settle(self) -> None:
        await self.clock.settle()

    async def aclose(self) -> None:
        for pipe in list(self.pipes.open):
            pipe.abort()
        await self.clock.settle()
        for peer in self.peers:
            peer.sock.close()
        assert not self.pipes.open
        assert not len(self.deadlines)
        assert self.clock.timers == 0


def network_of(pipe: RawPipe) -> Any:
    """The asyncio transport below a pipe."""
    return pipe._network
