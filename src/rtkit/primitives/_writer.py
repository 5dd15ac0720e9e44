"""The sending half of an attached socket: an outbox, and a task while there is something in it.

- Entries leave the outbox one by one, so whatever is still queued can still be dropped by its policy.
- The one inside the library's ``send``, and the transport's own buffer, count against the limit (D1).
- The task ends when the outbox is empty, and the next entry starts another. What is queued between
  its last look and its end is seen when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, final

from .. import codes
from ..clock import Clock
from ._sockets import Gone, Pipe
from .deadlines import Deadline, Deadlines
from .outbox import Outbox, Overflow, Spill
from .tasks import Tasks

__all__ = ["INTERNAL_ERROR", "SocketWriter"]

INTERNAL_ERROR = 1011
"""RFC 6455, section 7.4.1."""

_LANE = "messages"


class _Text(bytes):
    """Marks an entry of the outbox that came in as ``str``."""

    __slots__ = ()


_last_text: tuple[str, _Text] = ("", _Text())


def _encode(text: str) -> _Text:
    """UTF-8, remembering the last one: a broadcast brings the same object for every member."""
    global _last_text  # noqa: PLW0603
    last, encoded = _last_text
    if text is not last:
        encoded = _Text(text.encode())
        _last_text = (text, encoded)
    return encoded


@final
class SocketWriter:
    """Sends what is queued, in order, as fast as the peer reads.

    :param text: as in :class:`~.attach.AttachPolicy`.
    :param write_timeout: seconds one send may take; None for no bound.
    :param on_gone: called when the connection turns out to be over.
    :param on_failed: called with a close code and words when it has to be ended: by a send that took
        too long or raised something unforeseen.
    """

    __slots__ = (
        "_clock",
        "_deadlines",
        "_in_flight",
        "_on_failed",
        "_on_gone",
        "_open",
        "_pipe",
        "_task",
        "_tasks",
        "_text",
        "_timeout",
        "_timer",
        "_waiters",
        "outbox",
        "sent",
        "sent_bytes",
        "undelivered",
    )

    def __init__(
        self,
        pipe: Pipe,
        outbox: Outbox,
        *,
        text: bool | None,
        write_timeout: float | None,
        tasks: Tasks,
        deadlines: Deadlines,
        clock: Clock,
        on_gone: Callable[[Gone], object],
        on_failed: Callable[[int, str], object],
    ) -> None:
        self._pipe = pipe
        self._text = text
        self._timeout = write_timeout
        self._tasks = tasks
        self._deadlines = deadlines
        self._clock = clock
        self._on_gone = on_gone
        self._on_failed = on_failed
        self._open = True
        self._task: asyncio.Task[None] | None = None
        self._timer: Deadline | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight = 0
        self.outbox = outbox
        self.sent = 0
        self.sent_bytes = 0
        self.undelivered = 0

    def push(self, data: str | bytes, policy: Overflow, key: Hashable) -> Spill | None:
        """Queue a message of the host's."""
        entry = _encode(data) if isinstance(data, str) else data
        spill = self.outbox.push(_LANE, entry, policy, key=key, outside=self._outside())
        if spill is None or spill.queued:
            self._start()
        return spill

    def put_text(self, text: str) -> bool:
        """Queue a message of our own, which may use the reserve. False if there is no room."""
        if not self.outbox.put(_Text(text.encode()), outside=self._outside()):
            return False
        self._start()
        return True

    async def idle(self) -> None:
        """Wait until nothing is queued or being sent any more, whether it was sent or given up."""
        while self._task is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)

    def stop(self) -> None:
        """Give up what is queued and what is being sent. Idempotent; :meth:`idle` waits for the end."""
        self._open = False
        self.undelivered += self.outbox.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # -- inside

    def _outside(self) -> int:
        return self._in_flight + self._pipe.buffered()

    def _start(self) -> None:
        if self._task is not None:
            return
        self._task = self._tasks.spawn(self._run, name="attached socket: writing")
        self._task.add_done_callback(self._ended)
        if self._timeout is not None:
            when = self._clock.monotonic() + self._timeout
            self._timer = self._deadlines.at(when, self._stalled, patient=True)

    async def _run(self) -> None:
        all_text, by_kind = self._text is True, self._text is None
        try:
            while self._open and (taken := self.outbox.take(0)):
                data = taken[0]
                self._in_flight = len(data)
                await self._pipe.send(data, text=all_text or (by_kind and isinstance(data, _Text)))
                self._in_flight = 0
                self.sent += 1
                self.sent_bytes += len(data)
                if self._timer is not None and self._timeout is not None:
                    self._timer.move(self._clock.monotonic() + self._timeout)
        except Gone as gone:
            self._on_gone(gone)
        except Exception:
            self._on_failed(INTERNAL_ERROR, "internal error")
            raise  # into the log, by the owner of the tasks

    def _stalled(self) -> None:
        self._on_failed(codes.WRITE_TIMEOUT, "write timeout")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._in_flight:
            self.undelivered += 1
            self._in_flight = 0
        if self._open and self.outbox:
            self._start()
            return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
