"""What a swarm knows of its connections, their rooms, and what came to them."""

import socket
import time

from .frames import Unit

__all__ = ["GONE", "JOINING", "LIVE", "OPENING", "UPGRADING", "Client", "Piece", "Room"]

OPENING, UPGRADING, JOINING, LIVE, GONE = range(5)


class Piece:
    """One publication, shared by all who got it."""

    __slots__ = ("line", "offset", "publisher", "seen", "sent", "seq")

    def __init__(self, unit: Unit, line: bytes) -> None:
        assert unit.pub is not None
        self.publisher = unit.pub.p
        self.seq = unit.pub.s
        self.sent = unit.pub.t
        self.offset = unit.offset
        self.line = line
        self.seen = 0


class Room:
    """A room and what its members got.

    :ivar members: how many are live in this process.
    :ivar chunks: what a ``recv`` returned, and what it means.
    :ivar lines: publications that not all members have got yet.
    """

    __slots__ = ("chunks", "lines", "members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members = 0
        self.chunks: dict[bytes, tuple[Piece, ...]] = {}
        self.lines: dict[bytes, Piece] = {}


class Client:
    """One connection.

    :ivar last: the newest sequence number of each publisher.
    :ivar room: None for one that only publishes.
    :ivar began: when it began to connect, monotonic ns; afterwards how long it took until it had joined.
    """

    __slots__ = ("accept", "began", "fd", "last", "offset", "out", "recv", "room", "sock", "state", "tail")

    def __init__(self, sock: socket.socket, room: Room | None, publishers: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.room = room
        self.state = OPENING
        self.tail = b""
        self.out = b""
        self.last = [0] * publishers
        self.offset = 0
        self.began = time.monotonic_ns()
        self.accept = b""
