"""One session over plain HTTP at its owner: where its requests come in, and who may send them (T3, T11)."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from ..transports.longpoll import PollTransport
from ..transports.stream import StreamTransport
from ..transports.uplink import Uplink
from .relay import Answered, Ask, Obeyed

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .connection import Connection

__all__ = ["WHO", "HttpSession"]

#: What the owner says when it has to know who shows the session; never leaves the nodes.
WHO: Final = 401
#: Calls of foreign clients that are remembered, so that one that another node repeats is carried out once.
_CALLS: Final = 64
#: Their frames that may wait while the connection takes nothing, and for how many seconds.
_WAITING: Final = 16
_WAIT: Final = 1.5


class HttpSession:
    """Where the requests of one session come in, at its owner.

    :ivar id: names the owner, then 128 bits that nobody can guess; where the client shows nothing else, it is the
        credential, and is written nowhere (T11).
    """

    __slots__ = (
        "__weakref__",
        "_bound",
        "_calls",
        "_proof",
        "_waiting",
        "connection",
        "id",
        "transport",
        "uplink",
    )

    def __init__(
        self, node: str, connection: Connection, transport: StreamTransport | PollTransport, proof: bytes
    ) -> None:
        self.id = f"{node}.{secrets.token_urlsafe(16)}"
        self.connection = connection
        self.transport = transport
        self.uplink = Uplink(transport.message)
        self._proof = proof
        self._bound = False
        self._calls: dict[str, None] | None = None
        self._waiting: deque[tuple[bytes, asyncio.Future[Answered], Deadline]] | None = None
        transport.resumed = self._resumed

    def emulate(self, frame: bytes) -> Obeyed:
        """Take a frame without a number. A client of the base does not repeat what was refused, so it may wait."""
        engine = self.connection.engine
        if not self.transport.paused:
            self.transport.message(frame)
            return Answered(status=204)
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= _WAITING:
            return Answered(status=503, retry_after=1, body=b"too many commands wait\n")
        answered: asyncio.Future[Answered] = engine.loop.create_future()
        when = engine.clock.monotonic() + _WAIT
        deadline = engine.deadlines.at(when, self._waited, answered)
        self._waiting.append((frame, answered, deadline))
        return answered

    def _waited(self, answered: asyncio.Future[Answered]) -> None:
        assert self._waiting is not None
        self._waiting = deque(each for each in self._waiting if each[1] is not answered)
        if not answered.done():
            answered.set_result(Answered(status=503, retry_after=1, body=b"too many commands wait\n"))

    def _resumed(self) -> None:
        """The connection takes commands again."""
        while self._waiting and not self.transport.paused:
            frame, answered, deadline = self._waiting.popleft()
            deadline.cancel()
            self.transport.message(frame)
            if not answered.done():
                answered.set_result(Answered(status=204))

    def end(self) -> None:
        """Its transport is gone."""
        for _, answered, deadline in self._waiting or ():
            deadline.cancel()
            if not answered.done():
                answered.set_result(Answered(status=410, body=b"this session has ended\n"))
        self._waiting = None

    def authenticated(self, *, by_token: bool) -> None:
        """How the client was authenticated: what came of headers and cookies has to be shown with every request."""
        self._bound = not by_token and bool(self._proof)

    def is_shown_by(self, request: Ask) -> int:
        """0 if the request comes from whom the session is for; else the status to answer."""
        if not self._bound or request.proof == self._proof:
            return 0
        session = self.connection.session
        if request.user is None:
            return WHO
        if session is None or request.user != session.identity.user:
            return 403
        self._proof = request.proof  # the same user, with a new cookie
        return 0

    def is_repeated(self, call: str) -> bool:
        """Whether another node has passed this call on before; notes it."""
        if self._calls is None:
            self._calls = {}
        if call in self._calls:
            return True
        self._calls[call] = None
        if len(self._calls) > _CALLS:
            del self._calls[next(iter(self._calls))]
        return False

    def __repr__(self) -> str:
        return f"<HttpSession {self.transport!r}>"
