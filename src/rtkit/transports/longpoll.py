"""Long-polling: numbered batches, each sent again until the next poll acknowledges it (T4).

::

                          send()                       the poll is answered
    units wait ◀──────────────────────── hub    ┌───────────────────────────▶ batch n is out
        │                                       │                                   │
        └───── a poll is there: they are batch n ┘        poll?ack=n-1: batch n again │ poll?ack=n: forgotten
                                                                                     ▼

A poll waits for something to say, or for its time to be up; one at a time: a second ends the first with an empty
answer, which has the number of the batch before and uses none up. Between polls the peer has a short time to come
back; then it is taken for lost. That is the heartbeat of this transport: there are no pings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, final

from ..clock import Clock
from ..codes import BAD_REQUEST_CLOSE
from ..primitives.deadlines import Deadline, Deadlines
from .base import Batch, Driver
from .http import Response, refusal
from .uplink import goodbye

__all__ = ["PollTransport"]

_HEADERS: Final = (("content-type", "application/json"), ("cache-control", "no-store, no-transform"))
#: Units of one batch at the most, in bytes and by number: what a reader can be asked to parse in one go.
_BATCH_BYTES: Final = 1024 * 1024
_BATCH_UNITS: Final = 1000
#: Seconds in which a peer that is between two polls may come for the goodbye.
_LAST_POLL: Final = 2.0


@final
class PollTransport:
    """State and format of one long-poll session.

    Whoever takes the requests calls :meth:`poll`, :meth:`message` and :meth:`lost`; the hub the rest.

    :param clock: measures, and
    :param deadlines: keeps, the two below.
    :param wait: seconds a poll waits for something to say.
    :param gone: seconds between two polls, after which the peer is lost.
    :ivar max_frame: bytes of a frame that comes up, at the most.
    :ivar paused: nothing more is to be taken from the peer now (C2).
    :ivar resumed: called when that is over.
    """

    __slots__ = (
        "_absent",
        "_answering",
        "_clock",
        "_closed",
        "_deadline",
        "_deadlines",
        "_driver",
        "_gone",
        "_number",
        "_poll",
        "_size",
        "_unacknowledged",
        "_units",
        "_wait",
        "max_frame",
        "paused",
        "resumed",
    )

    kind = "poll"

    def __init__(
        self, *, clock: Clock, deadlines: Deadlines, wait: float, gone: float, max_frame: int
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._wait = wait
        self._gone = gone
        self.max_frame = max_frame
        self._driver: Driver | None = None
        self._units: list[bytes] = []
        self._size = 0
        self._number = 0
        self._unacknowledged: tuple[bytes, int] | None = None  # the answer, and the bytes of its units
        self._poll: asyncio.Future[Response] | None = None
        self._deadline: Deadline | None = None
        self._absent = True  # what the deadline is for: the peer's absence, or the end of a poll
        self._answering = False
        self._closed: tuple[int, str] | None = None
        self.paused = False
        self.resumed: Callable[[], object] | None = None

    @property
    def closed(self) -> bool:
        """Nothing more is taken; what there is to say may still be fetched."""
        return self._closed is not None

    def drive(self, driver: Driver) -> None:
        """Have *driver* get what comes in."""
        self._driver = driver
        self._end_in(self._gone, absent=True)

    # -- called by whoever takes the requests ---------------------------------------------------

    def message(self, frame: bytes) -> None:
        """A frame came up."""
        if self._closed is not None or self._driver is None:
            return
        if len(frame) > self.max_frame:
            self.close(BAD_REQUEST_CLOSE, "bad request: message too big")
            return
        self._driver.received(frame)

    def poll(self, ack: int) -> Response | asyncio.Future[Response]:
        """The peer asks for the next batch.

        :param ack: the number of the batch it has.
        :return: the answer, or a future of it; whoever waits for it cancels it when the peer goes away.
        """
        if ack == self._number:
            self._acknowledge()
        elif ack != self._number - 1 or self._unacknowledged is None:
            return refusal(400, f"ack is {self._number} or the number before, not {ack}")
        self._answer_poll(self._empty())
        if self._unacknowledged is not None:
            self._end_in(self._gone, absent=True)
            return _response(self._unacknowledged[0])
        if self._units:
            return self._answer()
        if self._closed is not None:
            return refusal(410, "this session has ended")
        self._poll = poll = asyncio.get_running_loop().create_future()
        poll.add_done_callback(self._over)
        self._end_in(self._wait, absent=False)
        return poll

    def lost(self, code: int, reason: str) -> None:
        """The peer is gone, or has said goodbye, or has been told it."""
        self._closed = (code, reason)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._answer_poll(self._empty())
        self._units.clear()
        self._size = 0
        self._unacknowledged = None
        driver, self._driver = self._driver, None  # called twice, the second time says nothing
        if driver is not None:
            driver.lost(code, reason)

    # -- called by the hub ---------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        return self._size + (self._unacknowledged[1] if self._unacknowledged is not None else 0)

    def send(self, units: Sequence[bytes]) -> None:
        if self._closed is None:
            self._units += units
            self._size += sum(map(len, units))
            self._answer_waiting()

    def send_batch(self, batch: Batch) -> bool:
        self.send(batch.units)
        return not self.buffered

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        if self.resumed is not None:
            self.resumed()

    def close(self, code: int, reason: str) -> None:
        if self._closed is None:
            self.send((goodbye(code, reason),))
            self._closed = (code, reason)
            self._end_in(self._gone, absent=True)

    # -- inside

    def _acknowledge(self) -> None:
        if self._unacknowledged is None:
            return
        self._unacknowledged = None
        if self._driver is not None and not self._units:
            self._driver.writable()

    def _answer_waiting(self) -> None:
        """At the end of the loop turn, so that what is said in one turn is one batch (D4), a goodbye included."""
        if self._poll is not None and not self._answering:
            self._answering = True
            asyncio.get_running_loop().call_soon(self._answer_now)

    def _answer_now(self) -> None:
        self._answering = False
        if self._poll is not None and not self._poll.done() and self._unacknowledged is None and self._units:
            self._answer_poll(self._answer())

    def _answer(self) -> Response:
        """Make the next batch of what there is to say."""
        units, size = self._units, 0
        count = 0
        for unit in units[:_BATCH_UNITS]:
            size += len(unit)
            if count and size > _BATCH_BYTES:
                size -= len(unit)
                break
            count += 1
        self._units = units[count:]
        self._size -= size
        self._number += 1
        body = b'{"batch":%d,"replies":[%b]}' % (self._number, b",".join(units[:count]))
        self._unacknowledged = (body, size)
        self._end_in(self._gone, absent=True)
        self._end_if_said()
        return _response(body)

    def _end_if_said(self) -> None:
        """Once the goodbye is on its way, this is over: who asks again is told that the session has ended."""
        if self._closed is not None and not self._units and self._driver is not None:
            asyncio.get_running_loop().call_soon(self.lost, *self._closed)

    def _empty(self) -> Response:
        return _response(b'{"batch":%d,"replies":[]}' % self._number)

    def _answer_poll(self, response: Response) -> None:
        poll, self._poll = self._poll, None
        if poll is not None and not poll.done():
            poll.set_result(response)

    def _over(self, poll: asyncio.Future[Response]) -> None:
        """A poll was answered, or its peer has gone away."""
        if self._poll is poll:
            self._poll = None
            if self._driver is not None:
                self._end_in(self._gone, absent=True)

    def _end_in(self, seconds: float, *, absent: bool) -> None:
        if self._closed is not None:
            seconds = min(seconds, _LAST_POLL)
        when = self._clock.monotonic() + seconds
        self._absent = absent
        if self._deadline is None:
            self._deadline = self._deadlines.at(when, self._due, patient=True)
        else:
            self._deadline.move(when)

    def _due(self) -> None:
        if self._absent:
            self.lost(1006, "no poll")
        else:
            self._answer_poll(self._empty())
            self._end_in(self._gone, absent=True)

    def __repr__(self) -> str:
        state = "open" if self._closed is None else "closed"
        return f"<PollTransport {state}, batch {self._number}, {len(self._units)} units wait>"


def _response(body: bytes) -> Response:
    return Response(200, (*_HEADERS, ("content-length", str(len(body)))), body)
