"""One WebSocket on an asyncio transport, without anything in between (C5, D4).

Once a handshake is through, a :class:`RawPipe` takes the place of the protocol object that did it: it *is* the
``asyncio.Protocol`` of the connection, and what is written to it goes to the socket in the same call. A batch is
one ``transport.write`` of a frame that was made once for all members.

Who runs when
-------------
Nobody. There is no task, timer, event or queue per connection; a parser exists only while bytes of an unfinished
message are at hand. The closing deadline is an entry in a structure that all pipes share.

States
------
::

           close(), by the hub              the peer's close frame, or EOF
    open ─────────────────────────▶ closing ──────────────────────────────┐
     │                                                                     ▼
     │  the peer's close frame: echoed; EOF; a violation: told ─────────▶ deaf ────▶ over
     └──────────────────────────────────── connection_lost ────────────────────────▶ over

In *closing* we go on reading, for the peer's close frame, and forget its messages. In *deaf* nothing that the peer
says counts any more: what was written leaves, and the socket is closed. After a violation that waits until the
peer has closed its end: a socket closed with bytes unread is reset by the kernel, which may cost the peer the
close frame that says what it did wrong. Whatever the peer does, closing takes no longer than the close timeout;
then the connection is aborted, with all that was buffered.

``lost`` is called once, by the loop and never from inside a call of the hub: when the peer's end is known (its
close frame, EOF, a violation), or else with ``connection_lost``. That may be before the last bytes have left.

What bounds memory
------------------
A message, with its fragments, by the transport's ``max_frame``, inflated or not; their number; a paused pipe by one
read of the socket.
Pongs: a ping that comes while something is buffered is answered once all of it has left, and only the latest one is
(RFC 6455, section 5.5.3). Control frames have a rate, since the hub cannot see and count them.

Over TLS, ``buffered`` counts what asyncio's TLS layer holds and not what lies in the socket transport below, which
is 64 KiB and one write at the most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol, final

from ..clock import Clock
from ..codes import INTERNAL_CLOSE
from ..primitives.deadlines import Deadline, Deadlines
from ..primitives.ratelimit import Rate, TokenBucket
from ..transports import Batch, WebSocketTransport
from .frames import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Assembler,
    Violation,
    close_frame,
    deflated_text_frame,
    frame,
    parse_close,
    pong_frame,
    text_frame,
)

__all__ = ["RawPipe", "RawPipes", "limit_silence", "no_delay"]

_OPEN: Final = 0
_CLOSING: Final = 1
_DEAF: Final = 2
_OVER: Final = 3
_STATES: Final = ("open", "closing", "deaf", "over")

_ABNORMAL: Final = 1006
_POLICY: Final = 1008

#: Pings and pongs of one connection. Browsers send none, other clients one in 20 s or so.
_CONTROL: Final = Rate(rate=10, burst=100)
#: Frames of a closing peer that are looked at in one go, for its close frame.
_LAST_FRAMES: Final = 1000

_log: Final = logging.getLogger("rtkit.hosting")


@final
class RawPipes:
    """What the raw pipes of one server share.

    :param deadlines: for closing.
    :param max_frame: bytes of an inbound message at the most.
    :param close_timeout: seconds a closing connection may take, flushing included.
    :ivar open: those whose socket is not closed yet.
    :ivar on_closed: called when one of them was closed.
    """

    __slots__ = ("clock", "close_timeout", "deadlines", "max_frame", "on_closed", "open")

    def __init__(self, *, clock: Clock, deadlines: Deadlines, max_frame: int, close_timeout: float) -> None:
        self.clock = clock
        self.deadlines = deadlines
        self.max_frame = max_frame
        self.close_timeout = close_timeout
        self.open: set[RawPipe] = set()
        self.on_closed: Callable[[], object] = _nothing


@final
class RawPipe(asyncio.Protocol):
    """Moves text messages between an asyncio transport and a :class:`~rtkit.transports.WebSocketTransport`.

    ::

        pipe = RawPipe(network, pipes)
        network.write(response_101)
        transport = pipe.transport
        transport.drive(acceptor.connect(transport, handshake))
        pipe.data_received(what_came_after_the_head)

    :param network: of the upgraded connection; its protocol is this pipe from now on.
    :param deflate: the handshake has agreed to compression, as :mod:`.deflate` has it (T9). Batches are sent
        compressed; what is for one client alone is not: in a storm of reconnects it would be a lot, and all at once.
    """

    __slots__ = (
        "_control",
        "_deadline",
        "_deflate",
        "_inbound",
        "_network",
        "_pipes",
        "_pong",
        "_reading_paused",
        "_state",
        "_transport",
        "_why",
        "_writing_paused",
    )

    def __init__(self, network: asyncio.Transport, pipes: RawPipes, *, deflate: bool = False) -> None:
        self._network = network
        self._pipes = pipes
        self._deflate = deflate
        self._transport: WebSocketTransport | None = WebSocketTransport(self, max_frame=pipes.max_frame)
        self._state = _OPEN
        self._inbound: Assembler | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._pong: bytes | None = None
        self._control: TokenBucket | None = None
        self._deadline: Deadline | None = None
        self._why: tuple[int, str] | None = None
        pipes.open.add(self)
        network.set_protocol(self)
        # So that pause_writing and resume_writing tell whether anything is buffered at all. (asyncio's TLS transport
        # pauses at the bound instead of above it.)
        network.set_write_buffer_limits(high=0 if network.get_extra_info("ssl_object") is None else 1, low=0)

    @property
    def transport(self) -> WebSocketTransport:
        """What drives and is driven; there until ``lost``."""
        assert self._transport is not None
        return self._transport

    # -- the Pipe protocol

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._network.get_write_buffer_size() if self._writing_paused else 0

    def write(self, data: bytes) -> None:
        """Write one text message; never blocks. Ignored once closed or lost."""
        # A transport that has failed says so in the next turn; asyncio logs what is written to it until then.
        if self._state == _OPEN and not self._network.is_closing():
            self._network.write(frame(TEXT, data))

    def write_batch(self, batch: Batch) -> None:
        if self._state == _OPEN:
            self._network.write(batch.form(deflated_text_frame if self._deflate else text_frame))

    def pause_reading(self) -> None:
        """Take nothing more from the socket. What was read before waits here: one read at the most."""
        if self._state == _OPEN and not self._reading_paused:
            self._reading_paused = True
            self._network.pause_reading()

    def resume_reading(self) -> None:
        """Go on, in the next turn, with what waits."""
        if self._reading_paused:
            self._reading_paused = False
            self._network.resume_reading()
            if self._inbound is not None:
                asyncio.get_running_loop().call_soon(self._go_on)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, and wait for the peer's, within the close timeout."""
        if self._state == _OPEN:
            self._state = _CLOSING
            self._why = (code, reason)
            self._network.write(close_frame(code, reason))
            self._end_in_time()
            self.resume_reading()

    def abort(self) -> None:
        """Drop the connection and what is buffered, without a word."""
        if self._state != _OVER:
            self._network.abort()

    # -- called by the loop

    def data_received(self, data: bytes) -> None:
        if self._state >= _DEAF:
            return
        inbound = self._inbound
        if inbound is None:
            inbound = self._inbound = Assembler(self._max_frame, inflate=self._deflate)
        inbound.feed(data)
        if not self._reading_paused:
            self._take(inbound)

    def eof_received(self) -> None:
        """The peer is done, and so are we; what was written still leaves, in time."""
        self._deafen()
        self._end_in_time()
        self._lose(_ABNORMAL, "connection lost")
        # Returning None makes asyncio close the transport.

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._state != _OPEN:
            return
        pong, self._pong = self._pong, None
        if pong is not None:
            self._network.write(pong_frame(pong))
        if not self._writing_paused and self._transport is not None:
            try:
                self._transport.writable()
            except Exception:
                self._crash()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _OVER
        self._inbound = None
        self._writing_paused = False
        self._pong = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._pipes.open.discard(self)
        self._lose(_ABNORMAL, "connection lost")
        self._pipes.on_closed()

    # -- what comes in

    @property
    def _max_frame(self) -> int:
        """Bytes of a message at the most, now."""
        return self._pipes.max_frame if self._transport is None else self._transport.max_frame

    def _go_on(self) -> None:
        if self._inbound is not None and not self._reading_paused:
            self._take(self._inbound)

    def _take(self, inbound: Assembler) -> None:
        """Work off what is whole, until there is no more, or nobody wants more for now."""
        seen = 0
        try:
            while True:
                # Each time: a message may be what lets its sender say more, and who says too much says less.
                inbound.max_message = self._max_frame
                if (event := inbound.next()) is None:
                    break
                opcode, payload = event
                if self._state == _CLOSING:
                    seen += 1
                    if opcode == CLOSE:
                        self._peer_closes(payload)
                        return
                    if seen > _LAST_FRAMES:
                        self._deafen()
                        return
                elif opcode <= BINARY:
                    assert self._transport is not None
                    self._transport.message(payload)
                    if self._reading_paused:
                        return
                elif opcode == CLOSE:
                    self._peer_closes(payload)
                    return
                else:
                    self._control_frame(opcode, payload)
        except Violation as violation:
            self._fail(violation.code, violation.reason)
            return
        except Exception:
            self._crash()
            # The peer's close frame may be among what is left.
            asyncio.get_running_loop().call_soon(self._go_on)
        if inbound.idle and self._inbound is inbound:
            self._inbound = None

    def _control_frame(self, opcode: int, payload: bytes) -> None:
        if self._control is None:
            self._control = _CONTROL.bucket()
        if self._control.take(1, self._pipes.clock.monotonic()) > 0:
            raise Violation(_POLICY, "too many control frames")
        if opcode == PING:
            if self._writing_paused:
                self._pong = payload
            else:
                self._network.write(pong_frame(payload))

    def _peer_closes(self, payload: bytes) -> None:
        """The peer has closed; both have when we have echoed it, and the server is first to close the socket."""
        code, reason = parse_close(payload)
        if self._state == _OPEN:
            self._network.write(frame(CLOSE, payload[:2]))
        self._deafen()
        self._end_in_time()
        self._network.close()
        self._lose(code, reason)

    # -- the ways to an end

    def _fail(self, code: int, reason: str) -> None:
        """The peer broke the protocol: tell it, and hear it no more."""
        _log.debug("closing with %d: %s", code, reason)
        if self._state == _OPEN:
            self._network.write(close_frame(code, reason))
        self._deafen()
        self._end_in_time()
        if not self._network.can_write_eof():
            self._network.close()
        else:
            try:
                self._network.write_eof()
            except (
                OSError
            ):  # the peer has reset the connection, which we would have heard of in the next turn
                self._network.abort()
        self._lose(code, reason)

    def _crash(self) -> None:
        """The driver raised, which it must not: tell the peer to come back."""
        _log.exception("a connection failed")
        self.close(INTERNAL_CLOSE, "internal error")

    def _deafen(self) -> None:
        self._state = max(self._state, _DEAF)
        self._inbound = None
        self._reading_paused = False

    def _end_in_time(self) -> None:
        if self._deadline is None and self._state != _OVER:
            pipes = self._pipes
            self._deadline = pipes.deadlines.at(
                pipes.clock.monotonic() + pipes.close_timeout, self.abort, patient=True
            )

    def _lose(self, code: int, reason: str) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        try:
            transport.lost(*(self._why or (code, reason)))
        except Exception:
            _log.exception("a connection failed while it ended")

    def __repr__(self) -> str:
        paused = ", paused" if self._reading_paused else ""
        return f"<RawPipe {_STATES[self._state]}{paused}, {self.buffered} bytes buffered>"


def _nothing() -> None:
    pass


def limit_silence(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give up a peer that has confirmed nothing of what was sent for so many seconds (F4).

    On a listening socket it holds for what is accepted. Linux only, TCP only; elsewhere nothing happens.
    """
    if sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


class _Options(Protocol):
    """A socket, or what asyncio shows of one."""

    @property
    def family(self) -> int: ...

    def setsockopt(self, level: int, name: int, value: int, /) -> object: ...


def no_delay(sock: _Options) -> None:
    """Have the kernel send what is written at once, and not only when the peer has confirmed what was before (D4).

    That takes up to 40 ms when there is little to say. asyncio does this itself for sockets that name TCP as their
    protocol; those that were made without (``socket.create_server()``, uvicorn's with several workers) do not.

    On a listening socket it holds for what is accepted. TCP only; elsewhere nothing happens.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
