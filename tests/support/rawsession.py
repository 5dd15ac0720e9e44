"""Sessions over plain HTTP by hand: unit by unit, as :class:`~tests.support.rawsocket.Peer` over a WebSocket.

Nothing is read that the test does not ask for, and nothing is sent again: a request that is not taken fails the test,
which may look at :meth:`post` for itself.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from tests.support.rawsocket import Closed, Ended, RawSocket, Refusal, Response, Units
from tests.support.rawstream import RawStream, request

__all__ = ["KINDS", "PollSession", "Session", "StreamSession"]


class Session(Units):
    """What both kinds have in common: the way up.

    :ivar session: what the hub has named it, once it is connected.
    :ivar node: where it is, by the base's own field.
    :ivar come_back: the window in which the hub wants us back, once it has said so.
    """

    def __init__(
        self,
        port: int,
        prefix: str = "/rt",
        *,
        headers: Mapping[str, str | None] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__()
        self.port = port
        self.prefix = prefix
        self.headers = dict(headers or {})
        self.session = ""
        self.node = ""
        self.seq = 0
        self.come_back: dict[str, float] | None = None
        self._receive_buffer = receive_buffer
        self._up: RawSocket | None = None
        self._last_words: tuple[int, str] | None = None

    @classmethod
    async def connect(cls, port: int, path: str, **options: Any) -> Self:
        """As :meth:`Peer.connect`: of the path only what is before its last segment counts."""
        return cls(port, path.rpartition("/")[0], **options)

    async def connect_as(self, user: str, *, rt: bool = True, **body: Any) -> dict[str, Any]:
        result = await super().connect_as(user, rt=rt, **body)
        self.session, self.node = result["session"], result["node"]
        return result

    async def post(
        self, body: str | bytes, *, seq: int | None = None, endpoint: str = "send", **headers: str
    ) -> Response:
        """A request up, and its answer."""
        if self._up is None or self._up.speaks:  # the server may end what was idle
            self.hang_up()
            self._up = await RawSocket.open(self.port)
        if seq is None:
            self.seq = seq = self.seq + 1
        fields = {**self.headers, "RT-Session": self.session, "RT-Seq": str(seq), **headers}
        data = body.encode() if isinstance(body, str) else body
        await self._up.send(request("POST", f"{self.prefix}/{endpoint}", headers=fields, body=data))
        response = await self._up.response()
        if response.headers.get("connection", "").lower() == "close":
            self.hang_up()
        return response

    def hang_up(self) -> None:
        """Close the way up; it is opened again when something is to be said."""
        if self._up is not None:
            self._up.close()
            self._up = None

    async def say(self, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        if not self.opened:
            await self.open(data)
            return
        response = await self.post(data)
        assert response.status == 204, response

    async def bye(self) -> Response:
        """Say goodbye."""
        async with await RawSocket.open(self.port) as sock:
            fields = {**self.headers, "RT-Session": self.session}
            await sock.send(request("DELETE", f"{self.prefix}/send", headers=fields))
            return await sock.response()

    async def leave(self, code: int = 1000, reason: str = "") -> Closed:
        """As over a WebSocket, where the client's code comes back."""
        response = await self.bye()
        assert response.status == 204, response
        self.close()
        return Closed(code, reason)

    def _heard(self, unit: dict[str, Any]) -> None:
        """A unit was read; the last one may say why."""
        push = unit.get("push", {})
        if "disconnect" in push:
            self.come_back = push["disconnect"].get("rt", self.come_back)
            if "rt" not in push["disconnect"]:
                self._last_words = push["disconnect"]["code"], push["disconnect"]["reason"]

    @property
    @abc.abstractmethod
    def opened(self) -> bool:
        """Whether the way down is there."""

    @abc.abstractmethod
    async def open(self, body: bytes) -> None:
        """Open the way down with the first commands.

        :raises Refusal: when the hub does not let us in.
        """

    def close(self) -> None:
        self.hang_up()


class StreamSession(Session):
    """A stream of events.

    :ivar comments: lines of them that were read so far.
    :ivar stream: the response.
    """

    stream: RawStream | None = None
    comments = 0
    _rest = b""

    @property
    def opened(self) -> bool:
        return self.stream is not None

    async def open(self, body: bytes) -> None:
        stream = await RawStream.open(self.port, receive_buffer=self._receive_buffer)
        try:
            await stream.send(request("POST", f"{self.prefix}/sse", headers=self.headers, body=body))
            await stream.head()
            if stream.status != 200:
                data = await stream.read(int(stream.headers["content-length"]))
                raise Refusal(Response(stream.status, stream.headers, data))
            assert stream.headers["content-type"] == "text/event-stream"
            assert "no-transform" in stream.headers["cache-control"]
            assert stream.headers["x-accel-buffering"] == "no"
        except BaseException:
            stream.close()
            raise
        self.stream = stream

    async def message(self) -> str:
        while True:
            event = await self._event()
            lines = event.decode().split("\n")
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
            self.comments += sum(line.startswith(":") for line in lines)
            assert len(data) == sum(not line.startswith(":") for line in lines), event
            if data:
                for line in data:
                    self._heard(json.loads(line))
                return "\n".join(data)

    async def _event(self) -> bytes:
        """Up to the next empty line, which is not part of it."""
        assert self.stream is not None
        while b"\n\n" not in self._rest:
            piece = await self.stream.piece()
            if not piece:
                assert not self._rest, f"ended in the middle of {self._rest!r}"
                raise Ended("eof", b"")
            self._rest += piece
            assert b"\r" not in piece, "line feeds only"
        event, _, self._rest = self._rest.partition(b"\n\n")
        return event

    async def closed(self, *, answer: bool = True) -> Closed:
        how: Literal["eof", "reset"] = "eof"
        try:
            while True:
                await self.message()
        except Ended as end:
            if end.how == "reset":
                how = "reset"
        return Closed(*(self._last_words or (1006, "")), how)

    def close(self) -> None:
        super().close()
        if self.stream is not None:
            self.stream.close()


class PollSession(Session):
    """Answers that are waited for.

    :ivar ack: the number of the last batch that came.
    """

    ack = 0
    _down: RawSocket | None = None
    _waiting: list[str] | None = None
    _asked = False

    @property
    def opened(self) -> bool:
        return self._down is not None

    async def open(self, body: bytes) -> None:
        self._down = await RawSocket.open(self.port, receive_buffer=self._receive_buffer)
        self._waiting = []
        await self._down.send(request("POST", f"{self.prefix}/poll", headers=self.headers, body=body))
        self._asked = True

    async def ask_next(self) -> None:
        """Ask for the next batch, if that was not done; :meth:`message` does it, too."""
        assert self._down is not None
        if not self._asked:
            if self._down.speaks:  # the server may end what was idle
                self._down.close()
                self._down = await RawSocket.open(self.port, receive_buffer=self._receive_buffer)
            fields = {**self.headers, "RT-Session": self.session}
            await self._down.send(request("GET", f"{self.prefix}/poll?ack={self.ack}", headers=fields))
            self._asked = True

    async def message(self) -> str:
        assert self._down is not None and self._waiting is not None
        while not self._waiting:
            if self._last_words is not None:
                raise Ended("eof", b"")
            await self.ask_next()
            response = await self._down.response()
            self._asked = False
            if response.status == 410:
                raise Ended("eof", b"")
            if response.status != 200:
                raise Refusal(response)
            batch = json.loads(response.body)
            assert batch["batch"] == self.ack + bool(batch["replies"]), (batch["batch"], self.ack)
            self.ack = batch["batch"]
            for unit in batch["replies"]:
                if not self.session and "connect" in unit:
                    self.session = unit["connect"]["session"]
                self._heard(unit)
                self._waiting.append(json.dumps(unit))
        units, self._waiting = self._waiting, []
        return "\n".join(units)

    async def closed(self, *, answer: bool = True) -> Closed:
        try:
            while True:
                await self.message()
        except Ended:
            return Closed(*(self._last_words or (1006, "")))

    def close(self) -> None:
        super().close()
        if self._down is not None:
            self._down.close()


#: By the name that the hub's metrics give them.
KINDS: dict[str, type[Session]] = {"sse": StreamSession, "poll": PollSession}
