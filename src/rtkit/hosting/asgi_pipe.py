"""One WebSocket of an ASGI server, as a :class:`~rtkit.transports.Pipe`.

Who runs when
-------------
The server's own task runs the receive loop (:meth:`AsgiPipe.pump`) and is all an idle connection costs.
A writer task is started by the first :meth:`AsgiPipe.write` and ends when everything was passed on (C5).

::

                 close()                       websocket.close sent, or the deadline
    open ───────────────────────▶ closing ─────────────────────────────────────────────▶ over
     │  send() raised                                                                     ▲
     └──────────────────────────▶ broken ──────── disconnect received, or a short while ──┘

Neither *closing* nor *broken* ends the receive loop at once: both go on reading (and forget what they
read) until the server reports the disconnection. That is where the peer's close code is, and a socket
closed with bytes unread is reset by the kernel, which may cost the peer our close frame. Servers whose
``receive()`` then waits for ever are the reason for the guard: a timeout around the loop that sleeps
while the pipe is open and is set when it is not.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

from ..clock import Clock
from ..codes import INTERNAL_CLOSE
from ..primitives.clocks import timeout
from ..primitives.tasks import Tasks
from ..transports import Batch, WebSocketTransport, joined

__all__ = ["AsgiPipe", "Receive", "Send"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: RFC 6455, section 5.5.1: a control frame holds 125 bytes, two of them the code.
_REASON_BYTES: Final = 123
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
#: Seconds in which a server whose ``send`` has failed may still say why.
_LAST_WORDS: Final = 1.0

_log: Final = logging.getLogger("rtkit.hosting")


@final
class AsgiPipe:
    """Moves text messages between an ASGI server and a :class:`~rtkit.transports.WebSocketTransport`.

    :param send: of the ASGI call, after ``websocket.accept``.
    :param max_frame: bytes of an inbound message at the most.
    :param close_timeout: seconds from :meth:`close` in which what was written may be flushed and the
        peer may answer.
    :param tasks: owner of the writer task.
    """

    __slots__ = (
        "_broken",
        "_buffered",
        "_clock",
        "_close",
        "_close_timeout",
        "_context",
        "_error",
        "_guard",
        "_over",
        "_queue",
        "_resume",
        "_send",
        "_tasks",
        "_writer",
        "transport",
    )

    def __init__(
        self, send: Send, *, max_frame: int, close_timeout: float, clock: Clock, tasks: Tasks
    ) -> None:
        self.transport: Final = WebSocketTransport(self, max_frame=max_frame)
        self._send = send
        self._close_timeout = close_timeout
        self._clock = clock
        self._tasks = tasks
        # The writer belongs to this connection, not to whichever handler happened to publish.
        self._context = contextvars.copy_context()
        self._guard = timeout(clock, None)
        self._queue: list[bytes] = []
        self._buffered = 0
        self._writer: asyncio.Task[None] | None = None
        self._resume: asyncio.Future[None] | None = None
        self._close: tuple[int, str] | None = None
        self._broken = False
        self._over = False
        self._error: Exception | None = None

    # -- the Pipe protocol

    @property
    def buffered(self) -> int:
        """Bytes that the server's ``send`` has not taken yet. What it took may be in its own buffer."""
        return self._buffered

    def write(self, data: bytes) -> None:
        """Queue one text message; never blocks. Ignored once closed or lost."""
        if self._close is None and not self._broken and not self._over:
            self._queue.append(data)
            self._buffered += len(data)
            self._start_writer()

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def pause_reading(self) -> None:
        """Call ``receive()`` no more, once a single message that comes in now has been put aside."""
        if self._resume is None and self._close is None and not self._broken and not self._over:
            self._resume = asyncio.get_running_loop().create_future()

    def resume_reading(self) -> None:
        """Go on, with the message put aside first."""
        waiter, self._resume = self._resume, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self, code: int, reason: str) -> None:
        """Flush, then close; after the close timeout the pipe is over whatever happened. Idempotent."""
        if self._close is None and not self._broken and not self._over:
            self._close = (code, reason)
            self._end_within(self._close_timeout)
            self._start_writer()

    # -- the receive loop, in the server's task

    async def pump(self, receive: Receive, start: Callable[[], object]) -> None:
        """Call *start*, then hand what comes in to the transport until the connection is over.

        ``lost`` is called exactly once however this ends, and no task is left.

        Cancellation: the server's way to end a connection; cleans up and goes on outwards.

        :raises Exception: what *start* or the transport's driver raised, a bug above us; the peer was
            told 3004 before.
        """
        code, reason = _ABNORMAL, "connection lost"
        try:
            async with self._guard:
                try:
                    start()
                except Exception as exc:
                    self._crash(exc)
                code, reason = await self._receive_all(receive)
        except TimeoutError:
            if not self._guard.expired():
                raise
        except asyncio.CancelledError:
            reason = "cancelled by the server"
            raise
        finally:
            await self._finish(*(self._close or (code, reason)))
        if self._error is not None:
            raise self._error

    async def _receive_all(self, receive: Receive) -> tuple[int, str]:
        while True:
            message = await receive()
            kind = message["type"]
            if kind == "websocket.disconnect":
                return _why(message)
            if kind != "websocket.receive":
                continue
            # One message is held while paused, so that until it comes a disconnect is still noticed.
            while (waiter := self._resume) is not None:
                await waiter
            if self._close is not None or self._broken:
                continue
            data = message.get("text")
            if data is None:
                data = message.get("bytes") or b""
            try:
                self.transport.message(data)
            except Exception as exc:
                self._crash(exc)

    async def _finish(self, code: int, reason: str) -> None:
        """Cancel the writer, tell the driver, and only then wait for anything."""
        self._over = True
        self._queue.clear()
        self._buffered = 0
        self._resume = None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
        try:
            self.transport.lost(code, reason)
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
                # The driver may have more to write for ever, and not every server's send() yields.
                await asyncio.sleep(0)
        except Exception as exc:
            self._writer = None
            self._crash(exc)

    async def _write_queued(self) -> bool:
        """Pass on what is queued; whether that brought more."""
        while self._queue:
            batch, self._queue = self._queue, []
            for data in batch:
                if not await self._pass_on({"type": "websocket.send", "text": data.decode()}):
                    return False
                self._buffered -= len(data)
        if self._close is None:
            self.transport.writable()
            if self._queue or self._close is not None:
                return True
            self._writer = None
        else:
            code, reason = self._close
            await self._pass_on({"type": "websocket.close", "code": code, "reason": _shorten(reason)})
        return False

    async def _pass_on(self, message: MutableMapping[str, Any]) -> bool:
        try:
            await self._send(message)
        except (OSError, RuntimeError):
            # uvicorn's ClientDisconnected is an OSError; others complain about a send after the close.
            _log.debug("the peer is gone", exc_info=True)
        except Exception:
            _log.warning("the ASGI server's send() failed", exc_info=True)
        else:
            return True
        self._broken = True
        self._queue.clear()
        self._buffered = 0
        self._end_within(min(_LAST_WORDS, self._close_timeout))
        return False

    # -- the ways to an end

    def _end_within(self, seconds: float) -> None:
        self.resume_reading()
        when = self._clock.monotonic() + seconds
        deadline = self._guard.when()
        if not self._over and not self._guard.expired() and (deadline is None or when < deadline):
            self._guard.reschedule(when)

    def _crash(self, exc: Exception) -> None:
        """The driver raised, which it must not: tell the peer to come back, and the server what happened."""
        if self._error is None:
            self._error = exc
        self.close(INTERNAL_CLOSE, "internal error")

    def __repr__(self) -> str:
        if self._over or self._broken:
            state = "over" if self._over else "broken"
        else:
            state = "open" if self._close is None else f"closing with {self._close[0]}"
        paused = "" if self._resume is None else ", paused"
        return f"<AsgiPipe {state}{paused}, {self._buffered} bytes buffered>"


def _why(message: MutableMapping[str, Any]) -> tuple[int, str]:
    """The close code of a disconnect message; 1006 where there was no close frame."""
    code, reason = message.get("code"), message.get("reason")
    if not isinstance(code, int) or (code == _NO_STATUS and reason is None):
        # uvicorn says 1005 for a connection lost without a close frame; then it gives no reason either.
        code = _ABNORMAL
    # int(): wsproto's codes are members of an enum.
    return int(code), reason or ("connection lost" if code == _ABNORMAL else "")


def _shorten(reason: str) -> str:
    data = reason.encode("utf-8", "replace")
    return reason if len(data) <= _REASON_BYTES else data[:_REASON_BYTES].decode("utf-8", "ignore")
