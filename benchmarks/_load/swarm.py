"""Thousands of connections in one process, and what each of them got, checked message by message.

How it stays cheap. Members of one room get the same bytes, so what a ``recv`` returned is looked up in a table of
what others got already: parsed once, it is taken for granted that the same bytes mean the same. What is done for each
member and each message, always, is to compare its publisher's sequence number with that of the one before, and the
offset where there is one; so every loss, repetition and swap is seen at the member it happens to. A ``recv`` that does
not begin and end where a frame does takes the long way, through a parser.

No asyncio: one epoll, one ``recv`` per readable socket and round. A member costs about 2 µs per message, kernel
included, so that one core of load saturates one core of server.
"""

import base64
import os
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from .frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Unit,
    accept_of,
    client_frame,
    handshake,
    parse_unit,
    server_frames,
)
from .state import GONE, JOINING, LIVE, OPENING, UPGRADING, Client, Piece, Room

__all__ = ["Swarm"]

_RECV: Final = 65536
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
#: Linux: do not pick a port before it is known where to, so that one port serves many destinations.
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_BEAT: Final = b"\x81\x02{}"
_PONG: Final = client_frame(b"{}")


class Swarm:
    """Connections to one server, driven by :meth:`turn`.

    :param address: where the server listens.
    :param wire: ``rtkit``, or ``peer`` for the peer programs, whose clients are in once they have connected.
    :param path: of the endpoint.
    :param publishers: how many publishers there will be in all processes.
    :param sources: local addresses to connect from, in turn, so that ports do not run out.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        wire: str = "rtkit",
        path: str = "/connection/websocket",
        publishers: int = 1,
        sources: Sequence[str] = ("127.0.0.1",),
    ) -> None:
        self.address = address
        self.wire = wire
        self.path = path
        self.publishers = publishers
        self.sources = list(sources)
        self.clients: dict[int, Client] = {}
        self.rooms: dict[str, Room] = {}
        self.epoll = select.epoll()
        self.faults: list[str] = []
        self.fault_count = 0
        self.lost: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.joining = array("q")
        self.latencies = array("q")
        self.last_latencies = array("q")
        self.deliveries = 0
        self.received = 0
        self.pongs = 0
        self.acks = 0
        self.on_complete: Callable[[Piece], None] | None = None
        self.others: dict[int, Callable[[], None]] = {}
        self._opened = 0
        self._opening: set[Client] = set()

    # -- connecting --------------------------------------------------------------------------------

    def connect(self, rooms: Sequence[str], *, window: int = 64, timeout: float = 60.0) -> list[Client]:
        """Connect one member for each name, at most *window* at once; an empty name only publishes.

        Whoever has not joined in time counts as failed. Returns those who have.
        """
        waiting, began = deque(rooms), time.monotonic()
        clients: list[Client] = []
        while waiting or self._opening:
            while waiting and len(self._opening) < window:
                clients.append(self._open(waiting.popleft()))
            self.turn(0.1)
            if time.monotonic() - began > timeout:
                for client in list(self._opening):
                    self._gone(client, "timed out")
                self.failed["not tried, out of time"] += len(waiting)
                break
        return [client for client in clients if client.state == LIVE]

    def _open(self, name: str) -> Client:
        room = self.rooms.setdefault(name, Room(name)) if name else None
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self.sources[self._opened % len(self.sources)], 0))
        self._opened += 1
        client = Client(sock, room, self.publishers)
        self._opening.add(client)
        self.clients[client.fd] = client
        self.epoll.register(client.fd, _OUT)
        sock.connect_ex(self.address)
        return client

    def _advance(self, client: Client, event: int) -> None:
        """Something happened to a connection that is not in yet."""
        if client.state == OPENING:
            error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._gone(client, os.strerror(error))
                return
            key = base64.b64encode(os.urandom(16))
            client.accept = accept_of(key)
            client.state = UPGRADING
            self.epoll.modify(client.fd, _IN)
            host = f"{self.address[0]}:{self.address[1]}"
            path = self.path if client.room is not None or self.wire != "peer" else "/publisher"
            self.send(client, handshake(host, path, key))
            return
        data = self._read(client)
        if not data:
            return
        if client.state == UPGRADING:
            data = client.tail + data
            head, end, rest = data.partition(b"\r\n\r\n")
            client.tail = b"" if end else data
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101") or client.accept not in head:
                self._gone(client, "refused: " + head.split(b"\r\n", 1)[0].decode(errors="replace"))
                return
            client.state = JOINING
            if self.wire == "rtkit":
                self.send(client, client_frame(b'{"id":1,"connect":{}}'))
                joining = (
                    b'{"id":2,"subscribe":{"channel":%b}}' % msgspec.json.encode(client.room.name)
                    if client.room is not None
                    else b'{"id":2,"ping":{}}'
                )
                self.send(client, client_frame(joining))
            data = rest
        if data:
            self._take(client, self._parse(client, data))

    def _joined(self, client: Client, unit: Unit) -> None:
        """The reply to the command that puts it where it shall be."""
        if unit.trouble:
            self._gone(client, unit.trouble)
            return
        client.state = LIVE
        client.offset = unit.offset
        self._opening.discard(client)
        self.joining.append((time.monotonic_ns() - client.began) // 1000)
        if client.room is not None:
            client.room.members += 1

    # -- everything that happens -------------------------------------------------------------------

    def turn(self, timeout: float) -> bool:
        """Wait at most so many seconds for something to happen, deal with all that has, and say whether any has."""
        clients, latency = self.clients, self.latencies.append
        clock = time.monotonic_ns
        happened = self.epoll.poll(timeout, 2048)
        for fd, event in happened:
            client = clients.get(fd)
            if client is None:
                other = self.others.get(fd)
                if other is not None:
                    other()
                continue
            if event & _OUT and client.state > OPENING:
                self._drain(client)
                if not event & ~_OUT:
                    continue
            room = client.room
            if client.state != LIVE or room is None:
                self._advance(client, event)
                continue
            try:
                data = client.recv(_RECV)
            except BlockingIOError:
                continue
            except OSError as error:
                self._gone(client, error.strerror or "reset")
                continue
            now = clock()
            pieces = room.chunks.get(data) if not client.tail else None
            if pieces is None:
                if not data:
                    self._gone(client, "end of stream")
                    continue
                if data == _BEAT and not client.tail:
                    self.pongs += 1
                    self.send(client, _PONG)
                    continue
                pieces = self._parse(client, data)
            self.received += len(data)
            last = client.last
            for piece in pieces:
                publisher, seq = piece.publisher, piece.seq
                if last[publisher] + 1 != seq:
                    self._fault(f"{room.name}: after {last[publisher]} of publisher {publisher} came {seq}")
                last[publisher] = seq
                offset = piece.offset
                if offset:
                    if client.offset + 1 != offset:
                        self._fault(f"{room.name}: after offset {client.offset} came {offset}")
                    client.offset = offset
                latency((now - piece.sent) // 1000)
                piece.seen += 1
                if piece.seen == room.members:
                    self._complete(room, piece, now)
            self.deliveries += len(pieces)
        return bool(happened)

    def _take(self, client: Client, pieces: Sequence[Piece]) -> None:
        """What came together with the end of joining, or to a publisher."""
        for piece in pieces:
            if client.room is None:
                self._fault("a publisher got a publication")
                continue
            if client.last[piece.publisher] and client.last[piece.publisher] + 1 != piece.seq:
                self._fault(f"{client.room.name}: on joining came {piece.seq}")
            client.last[piece.publisher] = piece.seq
            client.offset = piece.offset or client.offset
            self.deliveries += 1

    def _complete(self, room: Room, piece: Piece, now: int) -> None:
        """All members of the room in this process have it."""
        room.lines.pop(piece.line, None)
        if len(room.chunks) > 256:
            room.chunks.clear()
        self.last_latencies.append((now - piece.sent) // 1000)
        if self.on_complete is not None:
            self.on_complete(piece)

    def _parse(self, client: Client, data: bytes) -> tuple[Piece, ...]:
        """The long way: frames, units; publications are returned, the rest is dealt with."""
        room = client.room
        pure = not client.tail and room is not None
        try:
            frames, rest = server_frames(client.tail + data)
        except ValueError as error:
            self._gone(client, str(error))
            return ()
        client.tail = rest
        pieces: list[Piece] = []
        for opcode, payload in frames:
            if opcode == TEXT:
                for line in payload.split(b"\n"):
                    piece = room.lines.get(line) if room is not None else None
                    if piece is None:
                        piece = self._unit(client, line)
                    if piece is None:
                        pure = False
                    else:
                        pieces.append(piece)
                continue
            pure = False
            if opcode == PING:
                self.pongs += 1
                self.send(client, client_frame(payload, PONG))
            elif opcode == CLOSE:
                self._gone(client, f"closed {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}")
        found = tuple(pieces)
        if pure and not rest and room is not None:
            room.chunks[data] = found
        return found

    def _unit(self, client: Client, line: bytes) -> Piece | None:
        """A unit that nobody has got before: a publication, or what concerns this client alone."""
        try:
            unit = parse_unit(line)
        except msgspec.MsgspecError as error:
            self._fault(f"not a unit: {line[:100]!r}: {error}")
            return None
        if unit.pub is not None:
            if client.room is None or (unit.channel and unit.channel != client.room.name):
                self._fault(f"a message of {unit.channel!r} came to {client.room and client.room.name!r}")
                return None
            piece = client.room.lines[line] = Piece(unit, line)
            return piece
        if unit.ping:
            self.pongs += 1
            self.send(client, _PONG)
        elif client.state == JOINING and unit.reply == 2:
            self._joined(client, unit)
        elif unit.trouble:
            self._fault(unit.trouble)
        elif client.room is None and unit.reply > 2:
            self.acks += 1
        return None

    # -- sending and ending ------------------------------------------------------------------------

    def send(self, client: Client, data: bytes) -> None:
        """Send now what goes, and the rest when there is room."""
        if client.out:
            client.out += data
            return
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._gone(client, error.strerror or "reset")
            return
        if sent < len(data):
            client.out = data[sent:]
            self.epoll.modify(client.fd, _IN | _OUT)

    def _drain(self, client: Client) -> None:
        data, client.out = client.out, b""
        self.epoll.modify(client.fd, _IN)
        if data:
            self.send(client, data)

    def _read(self, client: Client) -> bytes:
        try:
            data = client.recv(_RECV)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._gone(client, error.strerror or "reset")
            return b""
        if not data:
            self._gone(client, "end of stream")
        return data

    def _gone(self, client: Client, why: str) -> None:
        """A connection is over."""
        if client.state == GONE:
            return
        if client.state == LIVE:
            self.lost[why] += 1
            if client.room is not None:
                client.room.members -= 1
        else:
            self.failed[why] += 1
        self._opening.discard(client)
        client.state = GONE
        self.clients.pop(client.fd, None)
        self.epoll.unregister(client.fd)
        client.sock.close()

    def _fault(self, what: str) -> None:
        self.fault_count += 1
        if len(self.faults) < 10:
            self.faults.append(what)

    def reset(self) -> None:
        """Begin to count anew."""
        del self.latencies[:], self.last_latencies[:], self.joining[:]
        self.deliveries = self.received = self.pongs = self.acks = 0

    def close(self) -> None:
        """Drop every connection."""
        for client in list(self.clients.values()):
            client.state = GONE
            client.sock.close()
        self.clients.clear()
        self.epoll.close()
