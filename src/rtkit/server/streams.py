"""A response that goes on, on an asyncio transport, without anything in between (C5, D4, T1).

Once the head of the response was written, an :class:`HttpStream` takes the place of the protocol object that read the
request: it *is* the ``asyncio.Protocol`` of the connection, and nothing of HTTP's parser is left. What is written to
it goes to the socket in the same call, as a chunk; in HTTP/1.0 as it is, and the end of the connection is the end
of the response. A batch is one ``transport.write`` of a chunk that was made once for all streams.

Nobody runs for an open stream: it has no task, timer or queue. The end is bounded by an entry in the structure that
all connections share.

::

           end(), by the hub
    open ─────────────────────▶ ending ──────── all of it has left, connection_lost ───▶ over: lost(1000)
      │                            └─ it took longer than the close timeout: aborted ──▶ over: lost(1006)
      └── EOF or connection_lost ─────────────────────────────────────────────────────▶ over: lost(1006)

What the client sends meanwhile has no meaning: the answer said that the connection closes with it. It is read, so
that its end is noticed, and forgotten; beyond a bound the stream is ended. A client that closes its half is gone.

A stream that nobody reads is the business of the hub, which sees ``buffered``; and of the kernel, which gives up a
peer that confirms nothing (:func:`~rtkit.hosting.raw.limit_silence`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, final

from ..transports import Batch, Form, Stream, StreamPipe

if TYPE_CHECKING:
    from ..primitives.deadlines import Deadline
    from .site import Site

__all__ = ["HttpStream", "chunk", "chunk_form"]

_OPEN: Final = 0
_ENDING: Final = 1
_OVER: Final = 2
_STATES: Final = ("open", "ending", "over")

_IN_ORDER: Final = 1000
_ABNORMAL: Final = 1006
_POLICY: Final = 1008

_LAST_CHUNK: Final = b"0\r\n\r\n"
#: Bytes that a client may send behind the request, in the life of a stream.
_BEHIND: Final = 64 * 1024

_log: Final = logging.getLogger("rtkit.server")


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, section 7.1). *data* is not empty, which would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@functools.lru_cache(maxsize=64)
def chunk_form(form: Form) -> Form:
    """The form whose bytes are a chunk of those of *form*; always the same for the same, so that batches share it."""

    def chunked(units: Sequence[bytes]) -> bytes:
        return chunk(form(units))

    return chunked


@final
class HttpStream(asyncio.Protocol):
    """The host's end of one open response: a :class:`~rtkit.transports.StreamPipe`.

    :param network: of the connection, to which the head was written; its protocol is this stream from now on.
    :param chunked: whether the response is sent in chunks; else its end is that of the connection.
    """

    __slots__ = (
        "_behind",
        "_chunked",
        "_deadline",
        "_network",
        "_site",
        "_state",
        "_stream",
        "_why",
        "_writing_paused",
    )

    def __init__(self, network: asyncio.Transport, site: Site, *, chunked: bool) -> None:
        self._network = network
        self._site = site
        self._chunked = chunked
        self._state = _OPEN
        self._stream: Stream | None = None
        self._writing_paused = False
        self._behind = 0
        self._deadline: Deadline | None = None
        self._why: tuple[int, str] | None = None
        site.streams.add(self)
        network.set_protocol(self)
        # So that pause_writing and resume_writing tell whether anything is buffered at all. (asyncio's TLS transport
        # pauses at the bound instead of above it.)
        network.set_write_buffer_limits(high=0 if network.get_extra_info("ssl_object") is None else 1, low=0)

    def begin(self, start: Callable[[StreamPipe], Stream], behind: bytes) -> None:
        """Hand the stream to whoever fills it.

        :param behind: what has come behind the request already.
        """
        try:
            self._stream = start(self)
        except Exception:
            _log.exception("a stream failed as it began")
            self.abort()
            return
        if behind:
            self.data_received(behind)

    # -- the StreamPipe protocol

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._network.get_write_buffer_size() if self._writing_paused else 0

    def write(self, data: bytes) -> None:
        """Send bytes of the body; never blocks. Ignored once ended or lost."""
        # A transport that has failed says so in the next turn; asyncio logs what is written to it until then.
        if data and self._state == _OPEN and not self._network.is_closing():
            self._network.write(chunk(data) if self._chunked else data)

    def write_batch(self, batch: Batch, form: Form) -> None:
        """The same as ``write(batch.form(form))``, from a form all share."""
        if self._state == _OPEN and not self._network.is_closing():
            self._network.write(batch.form(chunk_form(form) if self._chunked else form))

    def end(self) -> None:
        """Send what was written, then end response and connection, within the close timeout. Idempotent."""
        if self._state != _OPEN:
            return
        self._state = _ENDING
        if self._network.is_closing():
            return  # connection_lost is on its way
        self._end_in_time()
        if self._chunked:
            self._network.write(_LAST_CHUNK)
        # Not now: asyncio may be in resume_writing, after which it would close a second time.
        asyncio.get_running_loop().call_soon(self._close)

    def _close(self) -> None:
        network = self._network
        if self._state == _OVER or network.is_closing():
            return
        if not self._behind or not network.can_write_eof():
            network.close()
            return
        # A socket that is closed with bytes unread is reset, which may cost a client that goes on sending the end of
        # the response: wait until it has closed.
        try:
            network.write_eof()
        except OSError:  # the client has reset the connection
            network.abort()

    def abort(self) -> None:
        """Drop the connection and what is buffered, without a word."""
        if self._state != _OVER:
            self._network.abort()

    # -- called by the loop

    def data_received(self, data: bytes) -> None:
        self._behind += len(data)
        if self._behind > _BEHIND and self._state == _OPEN:
            _log.debug("ending a stream whose client does not stop sending")
            self._why = _POLICY, "too much sent behind the request"
            self.end()

    def eof_received(self) -> None:
        """The client is done. Returning None makes asyncio close the transport, when what was written has left."""
        if self._state == _OPEN:
            self._state = _ENDING
            self._why = _ABNORMAL, "connection lost"
            self._end_in_time()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._state != _OPEN or self._stream is None:
            return
        try:
            self._stream.writable()
        except Exception:
            _log.exception("a stream failed")
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        in_order = self._state == _ENDING and exc is None and not self._writing_paused
        why = self._why or ((_IN_ORDER, "") if in_order else (_ABNORMAL, "connection lost"))
        self._state = _OVER
        self._writing_paused = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._site.streams.discard(self)
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.lost(*why)
            except Exception:
                _log.exception("a stream failed while it ended")
        self._site.pipes.on_closed()

    def _end_in_time(self) -> None:
        site = self._site
        when = site.clock.monotonic() + site.limits.close_timeout
        self._deadline = site.deadlines.at(when, self.abort, patient=True)

    def __repr__(self) -> str:
        return f"<HttpStream {_STATES[self._state]}, {self.buffered} bytes buffered>"
