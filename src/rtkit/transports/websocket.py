"""The WebSocket transport: each text message is a frame of units, one a line."""

from __future__ import annotations

from collections.abc import Sequence

from ..codes import WS_TOO_BIG
from .base import Batch, Driver, Pipe, joined

__all__ = ["WebSocketTransport"]


class WebSocketTransport:
    """State and format of one WebSocket, whatever host moves its bytes.

    The host calls :meth:`message`, :meth:`writable` and :meth:`lost`; the hub the rest.

    :param pipe: the host's end.
    :ivar max_frame: bytes of an inbound message at the most; a larger one closes with 1009 (W3). A client that has yet
        to say who it is has less.
    """

    __slots__ = ("_closed", "_driver", "_pipe", "max_frame")

    kind = "websocket"

    def __init__(self, pipe: Pipe, *, max_frame: int) -> None:
        self._pipe = pipe
        self._driver: Driver | None = None
        self.max_frame = max_frame
        self._closed = False

    def drive(self, driver: Driver) -> None:
        """Have *driver* get what comes in."""
        self._driver = driver

    # -- called by the host --------------------------------------------------------------------

    def message(self, data: str | bytes) -> None:
        """A message came in; text and binary are the same to us."""
        if self._closed or self._driver is None:
            return
        if isinstance(data, str):
            # A lone surrogate cannot come from a valid frame; some hosts let it through all the same.
            data = data.encode("utf-8", "surrogatepass")
        if len(data) > self.max_frame:
            self.close(WS_TOO_BIG, "message too big")
            return
        self._driver.received(data)

    def writable(self) -> None:
        """The host has passed on all that was written."""
        if self._driver is not None:
            self._driver.writable()

    def lost(self, code: int, reason: str) -> None:
        """The peer or the network ended it."""
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
            self._pipe.write(joined(units))

    def send_batch(self, batch: Batch) -> bool:
        if self._closed:
            return True
        self._pipe.write_batch(batch)
        return not self._pipe.buffered

    def pause_reading(self) -> None:
        self._pipe.pause_reading()

    def resume_reading(self) -> None:
        self._pipe.resume_reading()

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._pipe.close(code, reason)

    def __repr__(self) -> str:
        return f"<WebSocketTransport {'closed' if self._closed else 'open'}>"
