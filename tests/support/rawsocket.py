"""A client that can send any bytes: HTTP and RFC 6455 by hand, on a plain socket.

Nothing happens by itself. What a test does not ask for is neither sent nor read, so that a peer can be slow,
silent, half closed, or plain wrong; what the server sends is held to the RFC while it is read. Three layers:

- :class:`RawSocket`: bytes, and the ways a connection ends;
- :class:`RawWebSocket`: the handshake and frames (:func:`frame` makes valid and invalid ones);
- :class:`Peer`: units of the wire, as a client of the hub that knows nothing else. What it has of them, and
  sessions over plain HTTP have as well (``rawsession``), is :class:`Units`.

Every wait has a limit, far above what it takes: a server that does not answer fails the test.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import hashlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

__all__ = [
    "BINARY",
    "CLOSE",
    "CONT",
    "KEY",
    "PING",
    "PONG",
    "TEXT",
    "Closed",
    "Ended",
    "Frame",
    "Peer",
    "RawSocket",
    "RawWebSocket",
    "Refusal",
    "Response",
    "Units",
    "close_payload",
    "frame",
    "upgrade",
]

CONT: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

#: Of the RFC's own example (section 1.3).
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MASK: Final = b"\x37\xfa\x21\x3d"
#: Seconds: no wait of a test that passes comes near it.
PATIENCE: Final = 10.0


class Ended(AssertionError):
    """The connection ended while something was still expected.

    :ivar how: ``eof`` or ``reset``.
    """

    def __init__(self, how: str, got: bytes) -> None:
        super().__init__(f"the connection ended ({how}) after {got[-200:]!r}")
        self.how = how


class Refusal(AssertionError):
    """The handshake was not answered with 101."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"the handshake was answered with {response.status}: {response.body[:200]!r}")
        self.response = response


@dataclass(frozen=True)
class Response:
    """An HTTP response. Names of headers are in lower case; repeated ones are joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Frame:
    """A frame as it came in."""

    opcode: int
    payload: bytes = b""
    fin: bool = True


@dataclass(frozen=True)
class Closed:
    """How a WebSocket ended.

    :param code: of the server's close frame; 1005 for one without, 1006 when there was no close frame.
    :param reason: of the same.
    :param how: how the TCP connection ended after it: ``eof`` or ``reset``.
    """

    code: int
    reason: str = ""
    how: Literal["eof", "reset"] = "eof"


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload under the mask, as one big number: frames of a megabyte are made in these tests."""
    if not payload:
        return b""
    count = len(payload)
    pattern = (mask * (count // 4 + 1))[:count]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(count, "big")


def frame(
    payload: bytes | str = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = _MASK,
    length: int | None = None,
    width: Literal[0, 2, 8] | None = None,
) -> bytes:
    """One frame of a client, valid unless asked otherwise.

    :param rsv: the three reserved bits, 0 to 7.
    :param mask: None leaves it out, which a client must not.
    :param length: what the header says, where that is not the truth.
    :param width: bytes of the length field, where it is not the shortest that will do.
    """
    data = payload.encode() if isinstance(payload, str) else payload
    says = len(data) if length is None else length
    if width is None:
        width = 0 if says < 126 else 2 if says < 65536 else 8
    bit = 0 if mask is None else 0x80
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if width == 0:
        head += bytes([bit | says])
    elif width == 2:
        head += struct.pack("!BH", bit | 126, says)
    else:
        head += struct.pack("!BQ", bit | 127, says)
    return head + data if mask is None else head + mask + masked(data, mask)


def close_payload(code: int, reason: str | bytes = b"") -> bytes:
    """What a close frame holds."""
    return struct.pack("!H", code) + (reason.encode() if isinstance(reason, str) else reason)


def upgrade(
    path: str = "/rt/ws", *, headers: Mapping[str, str | None] | None = None, extra: bytes = b""
) -> bytes:
    """A handshake request.

    :param headers: to set, or with None to leave out; names as they shall be written.
    :param extra: whole header lines, each with its line end.
    """
    fields: dict[str, str | None] = {
        "Host": "test.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n" + extra + b"\r\n"


class RawSocket:
    """A TCP connection to a server on this machine."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._end: Literal["eof", "reset"] | None = None

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        """Connect.

        :param receive_buffer: bytes the kernel shall hold for us, about; a small one makes a slow reader
            felt early.
        """
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    # -- sending

    async def send(self, data: bytes) -> None:
        """Send all of it, as soon as the server takes it.

        :raises ConnectionError: when the server has ended the connection.
        """
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def send_slowly(self, data: bytes, size: int = 1) -> None:
        """Send it in pieces, each of which the server gets to see alone."""
        for start in range(0, len(data), size):
            await self.send(data[start : start + size])
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def send_nowait(self, data: bytes) -> int:
        """Send what the kernel takes at once; how much that was."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def send_eof(self) -> None:
        """Close our half: the server reads an end, and may still write."""
        self._sock.shutdown(socket.SHUT_WR)

    # -- reading

    async def _fill(self) -> None:
        if self._end is None:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._sock, 256 * 1024)
            except ConnectionResetError:
                self._end = "reset"
            else:
                self._buffer += data
                if not data:
                    self._end = "eof"
        if self._end is not None:
            raise Ended(self._end, bytes(self._buffer))

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes.

        :raises Ended: when there will never be so many.
        """
        async with asyncio.timeout(PATIENCE):
            while len(self._buffer) < count:
                await self._fill()
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to the mark and with it.

        :raises Ended: when it does not come.
        """
        async with asyncio.timeout(PATIENCE):
            while (found := self._buffer.find(mark)) < 0:
                await self._fill()
        return await self.read(found + len(mark))

    async def rest(self) -> bytes:
        """Everything up to the end; ``how`` tells what kind of end."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await self._fill()
                except Ended:
                    break
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    @property
    def speaks(self) -> bool:
        """Whether something is there to be read now, an end included."""
        if self._buffer or self._end is not None:
            return True
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            self._end = "reset"
        return True

    @property
    def how(self) -> Literal["eof", "reset"] | None:
        """How the server ended it; None while that has not been read."""
        return self._end

    async def response(self, *, body: bool = True) -> Response:
        """The next HTTP response.

        :param body: False for the answer to HEAD, which has none whatever its headers say.
        """
        head = (await self.read_until(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers: dict[str, str] = {}
        for line in lines:
            name, separator, value = line.partition(":")
            assert separator and name == name.strip(), line
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        data = b""
        if not body or status in ("101", "204", "304"):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.read_until(b"\r\n"), 16):
                data += await self.read(size)
                assert await self.read(2) == b"\r\n"
            assert await self.read(2) == b"\r\n"
        elif "content-length" in headers:
            data = await self.read(int(headers["content-length"]))
        else:
            data = await self.rest()
        return Response(int(status), headers, data)

    async def get(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Response:
        """Send a plain request and read the answer; the connection can be used again."""
        fields = {"Host": "test.example", **(headers or {})}
        if body:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return await self.response(body=method != "HEAD")

    # -- ends

    def reset(self) -> None:
        """Be gone without a word: the server gets a RST."""
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def close(self) -> None:
        """Close. Idempotent."""
        self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class RawWebSocket(RawSocket):
    """A WebSocket whose frames the test makes. What the server sends is checked against the RFC."""

    subprotocol: str | None = None

    @classmethod
    async def connect(
        cls,
        port: int,
        path: str = "/rt/ws",
        *,
        headers: Mapping[str, str | None] | None = None,
        receive_buffer: int | None = None,
    ) -> Self:
        """Connect and shake hands.

        :raises Refusal: when the server answers with anything but 101.
        """
        ws = await cls.open(port, receive_buffer=receive_buffer)
        try:
            await ws.send(upgrade(path, headers=headers))
            await ws.accepted()
        except BaseException:
            ws.close()
            raise
        return ws

    async def accepted(self) -> Response:
        """Read the answer to a handshake, which has to be a correct 101.

        :raises Refusal: when it is another.
        """
        response = await self.response()
        if response.status != 101:
            raise Refusal(response)
        digest = hashlib.sha1((KEY + _GUID).encode(), usedforsecurity=False).digest()
        assert response.headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
        assert response.headers["upgrade"].lower() == "websocket"
        assert response.headers["connection"].lower() == "upgrade"
        assert "sec-websocket-extensions" not in response.headers, "we have offered none"
        self.subprotocol = response.headers.get("sec-websocket-protocol")
        return response

    async def frame(self) -> Frame:
        """The server's next frame.

        :raises Ended: when there is none.
        """
        first, second = await self.read(2)
        assert first & 0x70 == 0, "a reserved bit is set"
        assert second & 0x80 == 0, "a server must not mask"
        fin, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.read(2))
            assert length > 125, "the length is not in its shortest form"
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.read(8))
            assert length > 65535, "the length is not in its shortest form"
        assert opcode in (CONT, TEXT, BINARY, CLOSE, PING, PONG), f"opcode {opcode}"
        if opcode >= CLOSE:
            assert fin and length <= 125, "a control frame is whole and small"
        return Frame(opcode, await self.read(length), fin)

    async def message(self) -> str:
        """The next text message, of however many frames; the server's own pings are skipped.

        :raises Ended: when the connection ended instead.
        """
        data = b""
        while True:
            got = await self.frame()
            if got.opcode in (PING, PONG):
                continue
            assert got.opcode != CLOSE, f"closed instead: {got.payload!r}"
            assert got.opcode == (CONT if data else TEXT), f"opcode {got.opcode}"
            data += got.payload
            if got.fin:
                return data.decode()

    async def say(self, message: str | bytes) -> None:
        """Send a message in one frame: text, or for bytes binary."""
        await self.send(frame(message, TEXT if isinstance(message, str) else BINARY))

    async def closed(self, *, answer: bool = True) -> Closed:
        """Read on to the end, forgetting messages, and tell how it was.

        :param answer: answer the server's close frame, as the RFC wants.
        """
        code, reason = 1006, ""
        try:
            while True:
                got = await self.frame()
                if got.opcode != CLOSE:
                    continue
                assert code == 1006, "a second close frame"
                code = 1005
                if got.payload:
                    code, reason = int.from_bytes(got.payload[:2], "big"), got.payload[2:].decode()
                    assert len(got.payload) >= 2, "a close frame has no or at least two bytes"
                if answer:
                    try:
                        await self.send(frame(got.payload, CLOSE))
                    except ConnectionError:
                        pass  # it did not wait for us
        except Ended as end:
            return Closed(code, reason, "eof" if end.how == "eof" else "reset")

    async def leave(self, code: int = 1000, reason: str = "") -> Closed:
        """Close properly, and tell what the server said to it."""
        await self.send(frame(close_payload(code, reason), CLOSE))
        return await self.closed(answer=False)


class Units(abc.ABC):
    """A client of a hub, unit by unit, over whatever carries them.

    :ivar pushes: bodies of all pushes that were read so far, in order.
    :ivar pings: the hub's pings that were read so far.
    """

    def __init__(self) -> None:
        self.pushes: list[dict[str, Any]] = []
        self.pings = 0
        self._last_id = 0
        self._units: list[dict[str, Any]] = []

    @abc.abstractmethod
    async def say(self, message: str | bytes) -> None:
        """Send a frame of units."""

    @abc.abstractmethod
    async def message(self) -> str:
        """The next frame of units.

        :raises Ended: when the connection ended instead.
        """

    @abc.abstractmethod
    async def closed(self, *, answer: bool = True) -> Closed:
        """Read on to the end, forgetting messages, and tell how it was."""

    @abc.abstractmethod
    def close(self) -> None:
        """Be gone. Idempotent."""

    def unit(self, method: str, /, **body: Any) -> tuple[int, str]:
        """A command and its id."""
        self._last_id += 1
        return self._last_id, json.dumps({"id": self._last_id, method: body}, separators=(",", ":"))

    async def ask(self, method: str, /, **body: Any) -> int:
        """Send a command; its id."""
        id, unit = self.unit(method, **body)
        await self.say(unit)
        return id

    async def call(self, method: str, /, **body: Any) -> dict[str, Any]:
        """Send a command and return its result, or ``{"error": …}``. Pushes and pings are put aside."""
        id = await self.ask(method, **body)
        return await self.reply(id, method)

    async def reply(self, id: int, method: str) -> dict[str, Any]:
        """The reply to a command, which has to be the next."""
        while True:
            unit = await self.next_unit()
            if "id" not in unit:
                continue
            assert unit["id"] == id, f"{unit} instead of the reply to {id}"
            if "error" in unit:
                return {"error": unit["error"]}
            result: dict[str, Any] = unit[method]
            return result

    async def next_unit(self) -> dict[str, Any]:
        """The next unit of any kind; pushes and pings are counted, too."""
        while not self._units:
            self._units += [json.loads(line) for line in (await self.message()).split("\n")]
        unit = self._units.pop(0)
        if not unit:
            self.pings += 1
        elif "push" in unit:
            self.pushes.append(unit["push"])
        return unit

    async def connect_as(self, user: str, *, rt: bool = True, **body: Any) -> dict[str, Any]:
        """Send ``connect``, which must succeed."""
        if rt:
            body["rt"] = {"v": 1}
        result = await self.call("connect", token=user, **body)
        assert "error" not in result, result
        return result

    async def join(self, room: str, **body: Any) -> dict[str, Any]:
        """Subscribe, which must succeed."""
        result = await self.call("subscribe", channel=room, **body)
        assert "error" not in result, result
        return result

    async def push(self, room: str, kind: str = "pub") -> dict[str, Any]:
        """The next push, which has to be this one; its body."""
        while "push" not in (unit := await self.next_unit()):
            assert not unit, f"{unit} instead of a push"
        push = unit["push"]
        assert push.get("channel", "") == room and kind in push, f"{push} instead of {kind} of {room!r}"
        body: dict[str, Any] = push[kind]
        return body

    async def data(self, room: str, count: int) -> list[Any]:
        """The data of the next so many publications of a room, in order."""
        return [(await self.push(room))["data"] for _ in range(count)]

    async def echo(self, data: Any) -> Any:
        """Have the hub's ``echo`` say it."""
        result = await self.call("rpc", method="echo", data=data)
        return result.get("data", result)


class Peer(Units, RawWebSocket):
    """A client of a hub over a WebSocket."""

    def __init__(self, sock: socket.socket) -> None:
        Units.__init__(self)
        RawWebSocket.__init__(self, sock)

    async def say(self, message: str | bytes) -> None:
        await RawWebSocket.say(self, message)

    async def message(self) -> str:
        return await RawWebSocket.message(self)

    async def closed(self, *, answer: bool = True) -> Closed:
        return await RawWebSocket.closed(self, answer=answer)

    def close(self) -> None:
        RawWebSocket.close(self)
