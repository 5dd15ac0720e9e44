"""Clients that come back, by WebSocket, event stream and long-poll: what an SDK does, by hand, on one epoll.

After a loss a client stays away with full jitter, or for as long as it was told, in whatever form. Then it shows its
resume token, and joins its room from where it stood. Offsets are checked: each message comes once, and in order.
"""

import base64
import errno
import heapq
import itertools
import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rtkit.primitives import Backoff

from .frames import CLOSE, TEXT, accept_of, client_frame, handshake, server_frames

__all__ = ["KINDS", "Client", "Crowd"]

KINDS: Final = ("websocket", "sse", "poll")
#: Seconds that a connection may take to open, and again to be answered.
PATIENCE: Final = 10.0
#: Seconds that a connection has to last for the delays to begin anew.
_STABLE: Final = 5.0
_PONG: Final = b"{}"
#: About what a browser sends along.
_HEAD: Final = (
    "{method} {target} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux "
    "x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nAccept: */*\r\nAccept-Encoding: "
    "gzip, deflate, br\r\nAccept-Language: en\r\nReferer: http://{host}/\r\n{more}\r\n"
)


class _Data(msgspec.Struct):
    t: int = 0


class _Pub(msgspec.Struct):
    data: _Data
    offset: int = 0


class _Window(msgspec.Struct):
    min: float = 0.0
    max: float = 0.0


class _Goodbye(msgspec.Struct):
    code: int
    reason: str = ""
    rt: _Window | None = None


class _Push(msgspec.Struct):
    pub: _Pub | None = None
    disconnect: _Goodbye | None = None


class _Error(msgspec.Struct):
    code: int
    message: str = ""
    retry_after: float = 0.0


class _Welcome(msgspec.Struct):
    resume: str = ""
    resumed: bool = False


class _Connected(msgspec.Struct):
    session: str = ""
    rt: _Welcome | None = None


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Pub] = []


class _Unit(msgspec.Struct):
    id: int = 0
    push: _Push | None = None
    error: _Error | None = None
    connect: _Connected | None = None
    subscribe: _Subscribed | None = None


class _Batch(msgspec.Struct):
    batch: int
    replies: list[msgspec.Raw]


_unit = msgspec.json.Decoder(_Unit).decode
_batch = msgspec.json.Decoder(_Batch).decode


class Line:
    """One TCP connection of a client: the one it listens on, or the one it sends its POSTs over."""

    __slots__ = ("client", "pending", "sock", "tail", "up")

    def __init__(self, client: "Client", sock: socket.socket, pending: bytes, *, up: bool) -> None:
        self.client = client
        self.sock = sock
        self.pending = pending  # to be sent when it is open
        self.tail = b""
        self.up = up


class Client:
    """One of the crowd.

    :ivar state: ``away``, ``opening``, ``greeting``, ``joining`` or ``in``.
    :ivar opened: when it last began to connect, *welcomed* when it was let in, *back* when it was in its room again; by
        the monotonic clock.
    :ivar tries: to connect, since it was last in.
    """

    __slots__ = (
        "accept",
        "ack",
        "back",
        "backoff",
        "down",
        "epoch",
        "kind",
        "life",
        "offset",
        "opened",
        "resume",
        "room",
        "seq",
        "session",
        "state",
        "tries",
        "up",
        "user",
        "welcomed",
        "window",
    )

    def __init__(self, user: str, kind: str, room: str, backoff: Backoff) -> None:
        self.user = user
        self.kind = kind
        self.room = room
        self.backoff = backoff
        self.state = "away"
        self.life = 0
        self.tries = 0
        self.down: Line | None = None
        self.up: Line | None = None
        self.resume = self.session = self.epoch = ""
        self.offset = -1
        self.seq = self.ack = 0
        self.accept = b""
        self.window: tuple[float, float] | None = None
        self.opened = self.welcomed = self.back = 0.0


class Crowd:
    """See the module.

    :param port: where all of them connect to, on this machine.
    :param token: of a user.
    :param told: called for each message of each client, with when it was sent, in monotonic ns.
    :ivar cut: when the first was lost after :meth:`watch`.
    :ivar refusals: by the form in which it was said.
    :ivar faults: what must not be.
    """

    def __init__(
        self,
        port: int,
        token: Callable[[str], str],
        *,
        seed: int = 1,
        told: Callable[[Client, int], object] | None = None,
    ) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self.clients: list[Client] = []
        self.inside = 0
        self.cut = 0.0
        self.messages = 0
        self.refusals: Counter[str] = Counter()
        self.comings: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.epoll = select.epoll()
        self.others: dict[int, Callable[[], object]] = {}
        self._token = token
        self._told = told
        self._random = random.Random(seed)
        self._lines: dict[int, Line] = {}
        self._later: list[tuple[float, int, Client, int, bool]] = []
        self._count = itertools.count()
        self._known: dict[bytes, tuple[int, int]] = {}  # units of messages: offset, when sent

    # -- what the program does ----------------------------------------------------------------------

    def add(self, user: str, kind: str, room: str) -> Client:
        """One more, who comes at once."""
        client = Client(user, kind, room, Backoff(random=self._random))
        self.clients.append(client)
        self._come(client)
        return client

    def join(self, users: Sequence[tuple[str, str, str]], *, at_once: int = 50) -> None:
        """Users, kinds and rooms: they come, a few at a time."""
        for first in range(0, len(users), at_once):
            some = [self.add(*each) for each in users[first : first + at_once]]
            until = time.monotonic() + 60
            while any(each.state != "in" for each in some):
                self.turn(0.05)
                if time.monotonic() > until:
                    raise SystemExit(f"not everybody has come: {dict(self.faults)} {dict(self.refusals)}")

    def watch(self) -> None:
        """From now on it counts."""
        self.cut = 0.0
        self.refusals.clear()
        self.comings.clear()

    def say(self, client: Client, unit: bytes) -> None:
        """Send a unit over a WebSocket."""
        if client.kind != "websocket" or client.down is None:
            raise SystemExit(f"{client.user} is not there: {dict(self.refusals)} {dict(self.faults)}")
        client.down.sock.send(client_frame(unit))

    def turn(self, timeout: float) -> None:
        """Wait for something to happen, and see to it."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, _, client, life, give_up = heapq.heappop(self._later)
            if client.life != life:
                continue
            if not give_up:
                self._come(client)
            elif client.state != "in":
                self.refusals["no answer"] += 1
                self._lost(client)
        if self._later:
            timeout = min(timeout, self._later[0][0] - now)
        for fd, events in self.epoll.poll(max(0.0, timeout), 512):
            line = self._lines.get(fd)
            if line is None:
                if fd in self.others:
                    self.others[fd]()
            elif events & select.EPOLLOUT:
                self._opened(line)
            else:
                self._readable(line)

    # -- connections --------------------------------------------------------------------------------

    def _come(self, client: Client) -> None:
        client.life += 1
        client.tries += 1
        client.window = None
        client.opened = time.monotonic()
        client.seq = client.ack = 0
        client.state = "opening"
        connect = self._connect(client)
        if client.kind == "websocket":
            key = base64.b64encode(os.urandom(16))
            client.accept = accept_of(key)
            first = handshake(self.host, "/rt/ws", key)
        else:
            client.state = "greeting"
            first = self._request("POST", client.kind, connect)
        client.down = self._open(client, first, up=False)
        self._after(client, PATIENCE, give_up=True)

    def _connect(self, client: Client) -> bytes:
        rt = f',"resume":"{client.resume}"' if client.resume else ""
        return f'{{"id":1,"connect":{{"token":"{self._token(client.user)}","rt":{{"v":1{rt}}}}}}}'.encode()

    def _request(self, method: str, target: str, body: bytes, *more: str) -> bytes:
        lines = [f"{line}\r\n" for line in more]
        if method == "POST":
            lines.append(f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n")
        head = _HEAD.format(method=method, target=f"/rt/{target}", host=self.host, more="".join(lines))
        return head.encode() + body

    def _open(self, client: Client, first: bytes, *, up: bool) -> Line:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Line(client, sock, first, up=up)
        self._lines[sock.fileno()] = line
        error = sock.connect_ex(("127.0.0.1", self.port))
        if error not in (0, errno.EINPROGRESS):
            self.faults[f"connect: {errno.errorcode.get(error, error)}"] += 1
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return line

    def _opened(self, line: Line) -> None:
        if line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._ended(line, "nobody there")
            return
        self.epoll.modify(line.sock.fileno(), select.EPOLLIN)
        first, line.pending = line.pending, b""
        self._send(line, first)

    def _send(self, line: Line, data: bytes) -> None:
        if line.pending:
            line.pending += data
            return
        try:
            sent = line.sock.send(data)
        except OSError:
            return  # what is to be read tells more
        if sent < len(data):
            self.faults["a write that blocks"] += 1

    def _close(self, line: Line | None) -> None:
        if line is not None and self._lines.pop(line.sock.fileno(), None) is not None:
            line.sock.close()

    def _ended(self, line: Line, how: str) -> None:
        client = line.client
        if line.up:
            self._close(line)
            if client.up is line:
                client.up = None
            return
        if client.state != "in" and client.window is None:
            self.refusals[how] += 1
        self._lost(client)

    def _lost(self, client: Client) -> None:
        """Its connection is over: come back later."""
        now = time.monotonic()
        if client.state == "in":
            self.inside -= 1
            if not self.cut:
                self.cut = now
            self.comings["lost"] += 1
            client.tries = 0
            if now - client.back >= _STABLE:
                client.backoff.reset()
        self._close(client.down)
        self._close(client.up)
        client.down = client.up = None
        client.state = "away"
        client.life += 1
        self._after(client, client.backoff.next(client.window), give_up=False)

    def _after(self, client: Client, seconds: float, *, give_up: bool) -> None:
        at = time.monotonic() + seconds
        heapq.heappush(self._later, (at, next(self._count), client, client.life, give_up))

    # -- what comes -----------------------------------------------------------------------------------

    def _readable(self, line: Line) -> None:
        try:
            data = line.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended(line, "cut off")
            return
        if line.tail:
            data = line.tail + data
            line.tail = b""
        if line.up:
            if not data.startswith(b"HTTP/1.1 204 "):
                self.faults[f"a POST: {data[:40]!r}"] += 1
        elif line.client.kind == "websocket":
            self._websocket(line, data)
        elif line.client.kind == "sse":
            self._stream(line, data)
        else:
            self._poll(line, data)

    def _refused(self, client: Client, head: bytes) -> None:
        """An answer that is not the one that was hoped for."""
        status = head.split(b" ", 2)[1].decode()
        lines = head.decode("latin-1").lower().split("\r\n")
        after = [line.partition(":")[2] for line in lines if line.startswith("retry-after:")]
        form = f"HTTP {status}" + (" with Retry-After" if after else "")
        self.refusals[form] += 1
        if status not in ("503", "429", "410"):
            self.faults[form] += 1
        if after:
            low = float(after[0])
            client.window = low, low * 1.5 + 0.5
        self._lost(client)

    def _websocket(self, line: Line, data: bytes) -> None:
        client = line.client
        if client.state == "opening":
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                line.tail = data
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._refused(client, head)
                return
            if client.accept not in head:
                self.faults["a wrong Sec-WebSocket-Accept"] += 1
            client.state = "greeting"
            self._send(line, client_frame(self._connect(client)))
            data = rest
        frames, line.tail = server_frames(data)
        for opcode, payload in frames:
            if opcode == TEXT:
                for unit in payload.split(b"\n"):
                    self._unit(client, unit)
            elif opcode == CLOSE:
                if client.window is None:
                    self.refusals[f"close {int.from_bytes(payload[:2], 'big')}"] += 1
                self._lost(client)
                return

    def _stream(self, line: Line, data: bytes) -> None:
        client = line.client
        if client.state == "greeting" and data.startswith(b"HTTP/"):
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                line.tail = head
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                self._refused(client, head)
                return
        *whole, line.tail = data.split(b"\n")
        for each in whole:
            if each.startswith(b"data: "):
                self._unit(client, each[6:])
            elif each == b"0\r" and client.down is line:  # its end
                self._ended(line, "the stream ended")
                return

    def _poll(self, line: Line, data: bytes) -> None:
        client = line.client
        head, end, body = data.partition(b"\r\n\r\n")
        length = [each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length:")]
        if not end or (length and len(body) < int(length[0][15:])):
            line.tail = data
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self._refused(client, head)
            return
        found = _batch(body)
        client.ack = found.batch
        for unit in found.replies:
            self._unit(client, bytes(unit))
        if client.down is not line:
            return
        if client.session:
            self._send(
                line, self._request("GET", f"poll?ack={client.ack}", b"", f"RT-Session: {client.session}")
            )
        else:
            self._ended(line, "the poll ended")

    def _command(self, client: Client, unit: bytes) -> None:
        if client.kind == "websocket":
            assert client.down is not None
            self._send(client.down, client_frame(unit))
            return
        client.seq += 1
        post = self._request("POST", "send", unit, f"RT-Session: {client.session}", f"RT-Seq: {client.seq}")
        if client.up is None:
            client.up = self._open(client, post, up=True)
        else:
            self._send(client.up, post)

    # -- units ----------------------------------------------------------------------------------------

    def _unit(self, client: Client, line: bytes) -> None:
        known = self._known.get(line)
        if known is not None:
            self._message(client, *known)
            return
        if line == _PONG:
            self._command(client, _PONG)
            return
        unit = _unit(line)
        if unit.push is not None:
            if (pub := unit.push.pub) is not None:
                if len(self._known) > 256:
                    self._known.clear()
                self._known[line] = pub.offset, pub.data.t
                self._message(client, pub.offset, pub.data.t)
            elif (goodbye := unit.push.disconnect) is not None:
                self.refusals[
                    f"{goodbye.code} {goodbye.reason}" + (", with a window" if goodbye.rt else "")
                ] += 1
                client.window = (goodbye.rt.min, goodbye.rt.max) if goodbye.rt is not None else (1.0, 2.0)
            else:
                self.faults[f"push {line[:80]!r}"] += 1
        elif unit.error is not None:
            said = f"error {unit.error.code}: {unit.error.message}"
            (self.refusals if unit.error.retry_after else self.faults)[said] += 1
            if after := unit.error.retry_after:
                client.window = after, after * 1.5
        elif unit.connect is not None:
            self._welcome(client, unit.connect)
        elif unit.subscribe is not None:
            self._joined(client, unit.subscribe)

    def _welcome(self, client: Client, said: _Connected) -> None:
        client.welcomed = time.monotonic()
        client.session = said.session
        client.state = "joining"
        if said.rt is not None:
            if client.resume:
                self.comings["resumed" if said.rt.resumed else "as new"] += 1
            client.resume = said.rt.resume
        since = f',"recover":true,"epoch":"{client.epoch}","offset":{client.offset}' if client.epoch else ""
        self._command(client, f'{{"id":2,"subscribe":{{"channel":"{client.room}"{since}}}}}'.encode())

    def _joined(self, client: Client, said: _Subscribed) -> None:
        if client.epoch:
            self.comings["recovered" if said.recovered else "with a gap"] += 1
        else:
            client.offset = said.offset
        client.epoch = said.epoch
        for pub in said.publications:
            self._message(client, pub.offset, 0)
        if said.offset != client.offset:
            self.faults["missing after joining"] += 1
        client.state = "in"
        client.back = time.monotonic()
        self.inside += 1

    def _message(self, client: Client, offset: int, sent: int) -> None:
        if offset and client.offset >= 0 and offset != client.offset + 1:
            self.faults["doubled" if offset <= client.offset else "missing"] += 1
        client.offset = offset
        self.messages += 1
        if self._told is not None and sent:
            self._told(client, sent)
