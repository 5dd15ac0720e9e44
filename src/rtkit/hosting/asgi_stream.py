"""One response of an ASGI server that goes on, as a :class:`~rtkit.transports.StreamPipe`.

Who runs when
-------------
As with a WebSocket (:mod:`rtkit.hosting.asgi_pipe`): the server's own task waits for the client to go away
(:meth:`AsgiStream.pump`) and is all an idle stream costs. A writer task is started by the first
:meth:`AsgiStream.write` and ends when everything was passed on (C5).

::

              end()               the last body message was sent: 1000
    open ───────────────▶ ending ─────────────────────────────────────▶ over
     │                       │  the deadline: 1006                        ▲
     │                       └────────────────────────────────────────────┤
     │  http.disconnect, cancelled by the server, send() raised: 1006     │
     └────────────────────────────────────────────────────────────────────┘

There is no close code on the wire: what the peer shall know it was told in the body. So ``over`` is over at once, and
the server's task, which is inside ``receive()``, is called out of it: a timeout around it sleeps while the stream
is open and is set when it is not.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

from ..clock import Clock
from ..primitives.clocks import timeout
from ..primitives.tasks import Tasks
from ..transports import Batch, Form, Stream, StreamPipe

__all__ = ["AsgiStream"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_IN_ORDER: Final = 1000
_ABNORMAL: Final = 1006

_log: Final = logging.getLogger("rtkit.hosting")


@final
class AsgiStream:
    """Moves bytes of a body to an ASGI server.

    :param send: of the ASGI call, after ``http.response.start``.
    :param close_timeout: seconds from :meth:`end` in which what was written may be flushed.
    :param tasks: owner of the writer task.
    """

    __slots__ = (
        "_buffered",
        "_clock",
        "_close_timeout",
        "_context",
        "_ending",
        "_error",
        "_guard",
        "_last_sent",
        "_over",
        "_queue",
        "_reason",
        "_send",
        "_stream",
        "_tasks",
        "_writer",
    )

    def __init__(self, send: Send, *, close_timeout: float, clock: Clock, tasks: Tasks) -> None:
        self._send = send
        self._close_timeout = close_timeout
        self._clock = clock
        self._tasks = tasks
        # The writer belongs to this response, not to whichever handler happened to publish.
        self._context = contextvars.copy_context()
        self._guard = timeout(clock, None)
        self._stream: Stream | None = None
        self._queue: list[bytes] = []
        self._buffered = 0
        self._writer: asyncio.Task[None] | None = None
        self._ending = False
        self._last_sent = False
        self._over = False
        self._reason = "connection lost"
        self._error: Exception | None = None

    # -- the StreamPipe protocol

    @property
    def buffered(self) -> int:
        """Bytes that the server's ``send`` has not taken yet. What it took may be in its own buffer."""
        return self._buffered

    def write(self, data: bytes) -> None:
        """Queue bytes of the body; never blocks. Ignored once ended or lost."""
        if data and not self._ending and not self._over:
            self._queue.append(data)
            self._buffered += len(data)
            self._start_writer()

    def write_batch(self, batch: Batch, form: Form) -> None:
        self.write(batch.form(form))

    def end(self) -> None:
        """Flush, then end the response; after the close timeout it is over whatever happened. Idempotent."""
        if not self._ending and not self._over:
            self._ending = True
            self._end_within(self._close_timeout)
            self._start_writer()

    # -- the server's task

    async def pump(self, receive: Receive, start: Callable[[StreamPipe], Stream]) -> None:
        """Call *start*, and return when the response is over.

        The stream's ``lost`` is called exactly once however this ends, and no task is left.

        Cancellation: the server's way to end a response; cleans up and goes on outwards.

        :raises Exception: what *start* or the stream raised, a bug above us; the response was cut off.
        """
        try:
            async with self._guard:
                self._stream = start(self)
                while (await receive())["type"] != "http.disconnect":
                    pass  # a body that goes on, or comes in several messages
                self._reason = "the client has gone away"
        except TimeoutError:
            if not self._guard.expired():
                raise
        except asyncio.CancelledError:
            self._reason = "cancelled by the server"
            raise
        finally:
            await self._finish()
        if self._error is not None:
            raise self._error

    async def _finish(self) -> None:
        """Cancel the writer, tell the stream, and only then wait for anything."""
        self._over = True
        self._queue.clear()
        self._buffered = 0
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                if self._last_sent:
                    stream.lost(_IN_ORDER, "")
                else:
                    stream.lost(_ABNORMAL, self._reason)
        finally:
            if writer is not None and not writer.done():
                try:
                    async with timeout(self._clock, self._close_timeout):
                        await asyncio.wait({writer})
                except TimeoutError:
                    _log.warning("the ASGI server's send() ignores its cancellation")

    # -- the writer, in a task of its own while there is something to send

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = self._tasks.spawn(self._write_all, context=self._context)

    async def _write_all(self) -> None:
        try:
            while True:
                if not await self._write_queued():
                    return
                # The stream may have more to write for ever, and not every server's send() yields.
                await asyncio.sleep(0)
        except Exception as exc:
            # It came from the stream above, which must not raise.
            self._writer = None
            self._error = exc
            self._over_because("internal error")

    async def _write_queued(self) -> bool:
        """Pass on what is queued; whether that brought more."""
        while self._queue:
            batch, self._queue = self._queue, []
            for data in batch:
                if not await self._pass_on(data, more=True):
                    return False
                self._buffered -= len(data)
        if not self._ending:
            assert self._stream is not None
            self._stream.writable()
            if self._queue or self._ending:
                return True
            self._writer = None
        elif await self._pass_on(b"", more=False):
            self._last_sent = True
            self._over_because("")
        return False

    async def _pass_on(self, data: bytes, *, more: bool) -> bool:
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except (OSError, RuntimeError):
            # Frameworks raise an OSError for a client that is gone; servers complain about a send too many.
            _log.debug("the client is gone", exc_info=True)
        except Exception:
            _log.warning("the ASGI server's send() failed", exc_info=True)
        else:
            return True
        self._over_because("connection lost")
        return False

    # -- the ways to an end

    def _over_because(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._queue.clear()
        self._buffered = 0
        self._reason = reason
        self._end_within(0.0)

    def _end_within(self, seconds: float) -> None:
        if self._guard.expired():
            return
        if seconds > 0:
            self._reason = "the client took nothing"
        when = self._clock.monotonic() + seconds
        deadline = self._guard.when()
        if deadline is None or when < deadline:
            self._guard.reschedule(when)

    def __repr__(self) -> str:
        state = "over" if self._over else "ending" if self._ending else "open"
        return f"<AsgiStream {state}, {self._buffered} bytes buffered>"
