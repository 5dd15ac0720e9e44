"""A response that goes on, one way down, with requests as the way up (T1, T6).

Two formats, one transport: an event stream, each event of which is a frame, and lines of JSON. What comes up in
requests is handed to :meth:`StreamTransport.message` by whoever owns the session, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from ..codes import BAD_REQUEST_CLOSE
from .base import Batch, Driver
from .http import Form, StreamPipe
from .uplink import goodbye

__all__ = ["EVENT_STREAM", "HTTP_STREAM", "StreamFormat", "StreamTransport", "events", "lines"]


def events(units: Sequence[bytes]) -> bytes:
    """Units as one event: a ``data`` line for each. A unit has no line break in it."""
    return b"data: " + b"\ndata: ".join(units) + b"\n\n"


def lines(units: Sequence[bytes]) -> bytes:
    """Units as lines."""
    return b"\n".join(units) + b"\n"


#: No cache may keep it, no proxy change or collect it (T6).
_STREAMED: Final = (("cache-control", "no-store, no-transform"), ("x-accel-buffering", "no"))


@final
class StreamFormat:
    """One way to write units into a response.

    :ivar kind: a metric's label.
    :ivar hello: what the stream begins with, at once: whoever waits for it knows that nothing on the way holds
        responses back, however long authentication takes.
    """

    __slots__ = ("form", "headers", "hello", "kind")

    def __init__(self, kind: str, content_type: str, form: Form, hello: bytes) -> None:
        self.kind = kind
        self.headers = (("content-type", content_type), *_STREAMED)
        self.form = form
        self.hello = hello

    def __repr__(self) -> str:
        return f"<StreamFormat {self.kind}>"


EVENT_STREAM: Final = StreamFormat("sse", "text/event-stream", events, b":\n\n")
HTTP_STREAM: Final = StreamFormat("http_stream", "application/x-ndjson", lines, b"\n")


@final
class StreamTransport:
    """State and format of one stream, whatever host moves its bytes.

    The host calls :meth:`writable` and :meth:`lost`; whoever takes the requests :meth:`message`; the hub the rest.

    :param pipe: the host's end of the response.
    :ivar max_frame: bytes of a frame that comes up, at the most.
    :ivar paused: nothing more is to be taken from the peer now (C2).
    :ivar resumed: called when that is over.
    """

    __slots__ = ("_closed", "_driver", "_format", "_pipe", "max_frame", "paused", "resumed")

    def __init__(self, pipe: StreamPipe, format: StreamFormat, *, max_frame: int) -> None:
        self._pipe = pipe
        self._format = format
        self._driver: Driver | None = None
        self.max_frame = max_frame
        self._closed = False
        self.paused = False
        self.resumed: Callable[[], object] | None = None

    @property
    def kind(self) -> str:
        return self._format.kind

    @property
    def closed(self) -> bool:
        """Nothing can be sent or taken any more."""
        return self._closed

    def drive(self, driver: Driver) -> None:
        """Have *driver* get what comes in, and tell the peer that the stream is there."""
        self._driver = driver
        self._pipe.write(self._format.hello)

    # -- called by the host, and by whoever takes requests --------------------------------------

    def message(self, frame: bytes) -> None:
        """A frame came up."""
        if self._closed or self._driver is None:
            return
        if len(frame) > self.max_frame:
            self.close(BAD_REQUEST_CLOSE, "bad request: message too big")
            return
        self._driver.received(frame)

    def writable(self) -> None:
        """The host has passed on all that was written."""
        if self._driver is not None:
            self._driver.writable()

    def lost(self, code: int, reason: str) -> None:
        """The response has ended, or the peer is gone."""
        self._closed = True
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.lost(code, reason)

    # -- called by the hub ---------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        return self._pipe.buffered

    def send(self, units: Sequence[bytes]) -> None:
        if not self._closed:
            self._pipe.write(self._format.form(units))

    def send_batch(self, batch: Batch) -> bool:
        if self._closed:
            return True
        self._pipe.write_batch(batch, self._format.form)
        return not self._pipe.buffered

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        if self.resumed is not None:
            self.resumed()

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._pipe.write(self._format.form((goodbye(code, reason),)))
            self._pipe.end()

    def __repr__(self) -> str:
        return f"<StreamTransport {self.kind} {'closed' if self._closed else 'open'}>"
