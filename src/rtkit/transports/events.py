"""One way down, for a plain ``EventSource``: a connection of the hub, translated into events (T5).

The hub's connection at the other end is one like any other. This transport says to it what a client would say, one
``connect`` and a ``subscribe`` for each room, and makes events of what comes back::

    JOINING ──── all rooms joined ────▶ WAITING ──── start(pipe) ────▶ OPEN ──── close, lost ────▶ OVER
       └─ refused, or closed: `opened` has a Declined ─────────────────────────────────────────────▶ ┘

Whoever asked gets a status, so nothing is written before every room is joined; what comes meanwhile is held. What is
told, and what must not be, is :class:`~rtkit.wire.telling.Telling`'s affair.

Nobody answers on a one-way street, so there are no pings. A comment goes out every *keepalive* seconds; a peer that
takes nothing of what waits for it for *stuck* seconds is gone (F4).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, final

from .. import codes
from ..clock import Clock
from ..position import Position
from ..primitives.deadlines import Deadline, Deadlines
from ..wire import (
    Command,
    Connect,
    ErrorBody,
    Reply,
    RtHello,
    SubRequest,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    dumps,
)
from ..wire.eventstream import Bookmark
from ..wire.telling import Piece, Telling, pieces
from .base import Batch, Driver
from .http import StreamPipe

__all__ = ["HEADERS", "Declined", "EventsTransport"]

#: No cache may keep it, no proxy change or collect it (T6).
HEADERS: Final = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store, no-transform"),
    ("x-accel-buffering", "no"),
)

_KEEPALIVE: Final = b":\n\n"
#: Milliseconds after which an EventSource tries again. Each stream draws its own: a crowd shall not come at once.
_RETRY: Final = (1000, 5000)
_CONNECT_ID: Final = 1
_SUBSCRIBE_ID: Final = 2


@dataclass(frozen=True, slots=True)
class Declined:
    """Why no stream came about.

    :param code: of the error, or the close code, that said so.
    :param message: plain words for the client.
    :param room: which of them it was about, or empty.
    :param retry_after: seconds after which trying again makes sense; None when it does not.
    """

    code: int
    message: str
    room: str = ""
    retry_after: float | None = None


class Closable(Driver, Protocol):
    """The hub's connection, which this transport may also end."""

    def close(self, code: int, reason: str) -> None:
        """End it."""
        ...


class _Phase(Enum):
    JOINING = "joining"
    WAITING = "waiting for its pipe"
    OPEN = "open"
    OVER = "over"


@final
class EventsTransport:
    """State and format of one one-way stream.

    :param rooms: full names, each once.
    :param left: rooms that it was taken out of in a life before.
    :param bookmark: where the stream is to go on; None at the top.
    :param token: shown to ``authenticate``, or empty.
    :param clock: measures, and
    :param deadlines: keeps, the two below.
    :param keepalive: seconds between comments.
    :param stuck: seconds for which a peer may take nothing; and within which :meth:`start` has to follow.
    :param hold: bytes that may be held while rooms are being joined.
    :param chance: draws when the peer shall come back.
    :ivar opened: None when all rooms are joined, so that :meth:`start` may follow; or why not.
    """

    __slots__ = (
        "_chance",
        "_clock",
        "_closed",
        "_closing_soon",
        "_deadline",
        "_deadlines",
        "_driver",
        "_held",
        "_held_size",
        "_hold",
        "_keepalive",
        "_passed",
        "_phase",
        "_pipe",
        "_since",
        "_stuck",
        "_stuck_since",
        "_telling",
        "_to_join",
        "_token",
        "_written",
        "max_frame",
        "opened",
    )

    kind = "events"

    def __init__(
        self,
        rooms: Sequence[str],
        bookmark: Bookmark | None,
        *,
        left: Sequence[str] = (),
        token: str,
        clock: Clock,
        deadlines: Deadlines,
        keepalive: float,
        stuck: float,
        hold: int,
        chance: random.Random,
    ) -> None:
        self._to_join = deque(rooms)
        self._since: dict[str, Position] = {}
        for room in rooms:
            if bookmark is not None and (position := bookmark.position(room)) is not None:
                self._since[room] = position
        self._telling = Telling(left)
        self._token = token
        self._clock = clock
        self._deadlines = deadlines
        self._keepalive = keepalive
        self._stuck = stuck
        self._hold = hold
        self._chance = chance
        self.max_frame = 0  # nothing comes in but what is said here
        self._driver: Closable | None = None
        self._pipe: StreamPipe | None = None
        self._phase = _Phase.JOINING
        self._closed: tuple[int, str] | None = None
        self._closing_soon = False
        self._held: list[Piece] = []
        self._held_size = 0
        self._deadline: Deadline | None = None
        self._written = 0
        self._passed = 0
        self._stuck_since: float | None = None
        self.opened: asyncio.Future[Declined | None] = asyncio.get_running_loop().create_future()

    # -- opening -----------------------------------------------------------------------------------

    def drive(self, driver: Closable) -> None:
        """Speak to *driver* from now on; :attr:`opened` tells what came of it."""
        self._driver = driver
        subs = {room: SubRequest(True, at.epoch, at.offset) for room, at in self._since.items()}
        hello = Connect(token=self._token, name="events", subs=subs, rt=RtHello(v=1))
        self._say(Command(id=_CONNECT_ID, connect=hello))

    def _say(self, command: Command) -> None:
        if self._driver is not None:
            self._driver.received(dumps(command))

    def _answered(self, reply: Reply) -> None:
        """A reply while rooms are being joined."""
        room = "" if reply.id == _CONNECT_ID else self._to_join[0]
        if reply.error is not None:
            retry = reply.error.retry_after
            if room and retry and reply.error.code == codes.TOO_MANY_REQUESTS:
                # The rate of commands is for clients; who asks for so many rooms at once only has to wait.
                self._deadline = self._deadlines.at(self._clock.monotonic() + retry, self._join_next)
            else:
                self._decline(reply.error, room)
        elif reply.connect is not None:
            for name, result in reply.connect.subs.items():
                if name in self._to_join:
                    self._to_join.remove(name)
                    self._joined(name, result)
                else:  # the server puts every client of the user into it; this stream is about others
                    self._say(Command(unsubscribe=Unsubscribe(channel=name)))
            self._join_next()
        elif reply.subscribe is not None:
            self._to_join.popleft()
            self._joined(room, reply.subscribe)
            self._join_next()

    def _join_next(self) -> None:
        if self._phase is not _Phase.JOINING:
            return
        if self._to_join:
            command = Subscribe(channel=self._to_join[0])
            if (since := self._since.get(command.channel)) is not None:
                command.recover, command.epoch, command.offset = True, since.epoch, since.offset
            self._say(Command(id=_SUBSCRIBE_ID, subscribe=command))
            return
        self._phase = _Phase.WAITING
        if not self.opened.done():
            self.opened.set_result(None)
        self._deadline = self._deadlines.at(self._clock.monotonic() + self._stuck, self._never_started)

    def _joined(self, room: str, result: SubscribeResult) -> None:
        # What a reply brought does not count as held: it has a bound of its own.
        self._held += self._telling.joined(room, self._since.get(room), result)

    def _decline(self, error: ErrorBody, room: str) -> None:
        retry = error.retry_after or (1.0 if error.temporary else None)
        self._refuse(Declined(error.code, error.message, room, retry))

    def _refuse(self, declined: Declined) -> None:
        if not self.opened.done():
            self.opened.set_result(declined)
        self._phase = _Phase.OVER
        # The hub is in the middle of saying something; whom it says it to may go when it has finished.
        asyncio.get_running_loop().call_soon(self.lost, codes.WS_NORMAL, declined.message)

    def _never_started(self) -> None:
        self.lost(1006, "the client was gone before it was answered")

    # -- called by the host ------------------------------------------------------------------------

    def start(self, pipe: StreamPipe) -> EventsTransport:
        """The head was sent: say where the stream stands, and what has come meanwhile."""
        self._cancel()
        self._pipe = pipe
        self._phase = _Phase.OPEN
        low, high = _RETRY
        retry = low + int((high - low) * self._chance.random())
        held, self._held, self._held_size, self._since = self._held, [], 0, {}
        self._write(b"retry: %d\n" % retry + self._telling.begin() + self._told(held))
        if self._closed is not None:
            self._end(*self._closed)
        else:
            self._watch(self._chance.random())  # a crowd that came at once is not to be kept alive in step
            if not pipe.buffered:
                asyncio.get_running_loop().call_soon(self.writable)
        return self

    def writable(self) -> None:
        """The host has passed on all that was written."""
        self._stuck_since = None
        if self._driver is not None:
            self._driver.writable()

    def lost(self, code: int, reason: str) -> None:
        """The response has ended, or the peer is gone. A second time says nothing."""
        self._phase = _Phase.OVER
        self._cancel()
        self._held, self._held_size = [], 0
        if self._pipe is None and self._closed is None:
            self._closed = (code, reason)  # should there be a pipe after all, it ends at once
        if not self.opened.done():
            self.opened.set_result(Declined(code, reason, retry_after=1.0))
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.lost(code, reason)

    # -- called by the hub -------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        if self._pipe is not None:
            return self._pipe.buffered
        # While rooms are being joined nothing counts, or the replies would wait for themselves.
        return self._held_size if self._phase is _Phase.WAITING else 0

    def send(self, units: Sequence[bytes]) -> None:
        self._take(pieces(units), units)

    def send_batch(self, batch: Batch) -> bool:
        self._take(batch.form(pieces), batch.units)
        return not self.buffered

    def pause_reading(self) -> None:
        """There is nothing to read."""

    def resume_reading(self) -> None:
        """Likewise."""

    def close(self, code: int, reason: str) -> None:
        if self._closed is not None or self._phase is _Phase.OVER:
            return
        self._closed = (code, reason)
        if self._pipe is not None:
            self._end(code, reason)
            return
        if not self.opened.done():
            final = codes.is_terminal(code) or code == codes.EXPIRED_CLOSE
            self.opened.set_result(Declined(code, reason, retry_after=None if final else 1.0))
        # There is no host yet that could say it is over. What is held stays, for the one that may come.
        asyncio.get_running_loop().call_soon(self._closed_early, code, reason)

    def _closed_early(self, code: int, reason: str) -> None:
        driver, self._driver = self._driver, None
        self._cancel()
        if driver is not None:
            driver.lost(code, reason)

    def _end(self, code: int, reason: str) -> None:
        assert self._pipe is not None
        self._phase = _Phase.OVER
        self._cancel()
        self._pipe.write(self._telling.goodbye(code, reason))
        self._pipe.end()

    # -- inside ------------------------------------------------------------------------------------

    def _take(self, found: Sequence[Piece], units: Sequence[bytes]) -> None:
        if self._phase is _Phase.OPEN:
            self._write(self._told(found))
        elif self._phase is not _Phase.OVER:
            for piece, unit in zip(found, units, strict=True):
                self._take_early(piece, len(unit))
            if self._held_size > self._hold and self._phase is _Phase.JOINING:
                why = "too much is published meanwhile"
                self._refuse(Declined(codes.SLOW_CONSUMER, why, retry_after=1.0))

    def _take_early(self, piece: Piece, size: int) -> None:
        """A unit while nothing can be written: a reply goes on with joining, all else is held."""
        if isinstance(piece, Reply):
            if piece.id:
                self._answered(piece)
                return
            if piece.push is not None and piece.push.chunk is not None:
                unit = self._telling.assemble(piece.push.chunk, self._clock.monotonic())
                if unit is not None:
                    self._take_early(pieces((unit,))[0], len(unit))
                self._break_if_broken()
                return
        self._held.append(piece)
        self._held_size += size

    def _told(self, found: Sequence[Piece]) -> bytes:
        telling = self._telling
        data = telling.tell(found, self._clock.monotonic())
        if telling.window is not None:
            low, high = telling.window.min, telling.window.max
            data += b"retry: %d\n\n" % round(1000 * (low + (high - low) * self._chance.random()))
            telling.window = None
        self._break_if_broken()
        return data

    def _break_if_broken(self) -> None:
        """What comes next could not be told truthfully: end the stream. Where it stands, the next one goes on.

        The hub may be handing out to many just now, and must not see one of them leave meanwhile.
        """
        if self._telling.broken is not None and not self._closing_soon:
            self._closing_soon = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._close_connection, codes.CONTINUITY_LOST, self._telling.broken)

    def _close_connection(self, code: int, reason: str) -> None:
        if self._driver is not None:
            self._driver.close(code, reason)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        assert self._pipe is not None
        self._written += len(data)
        self._pipe.write(data)
        if self._stuck_since is None and (buffered := self._pipe.buffered):
            self._stuck_since, self._passed = self._clock.monotonic(), self._written - buffered

    def _watch(self, fraction: float = 1.0) -> None:
        when = self._clock.monotonic() + self._keepalive * fraction
        if self._stuck_since is not None:
            when = min(when, self._stuck_since + self._stuck)
        if self._deadline is None:
            self._deadline = self._deadlines.at(when, self._look, patient=True)
        else:
            self._deadline.move(when)

    def _look(self) -> None:
        """Is somebody there?"""
        assert self._pipe is not None
        now, buffered = self._clock.monotonic(), self._pipe.buffered
        passed = self._written - buffered
        if not buffered:
            self._write(_KEEPALIVE)
        elif self._stuck_since is None or passed > self._passed:
            self._stuck_since, self._passed = now, passed
        elif now >= self._stuck_since + self._stuck:
            self._close_connection(codes.WRITE_TIMEOUT, "write timeout")
            return
        self._watch()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def __repr__(self) -> str:
        return f"<EventsTransport {self._phase.value}, {self._telling!r}>"
