"""An in-memory connection between a client and a hub, with faults on demand.

A :class:`Link` is the :class:`~rtkit.transports.Pipe` under the hub's WebSocket transport; its :class:`Loose` end
is the :class:`~rtkit.client.transport.Wire` under the SDK. What one end writes, the other has at once; only a
reader that does not read, or a link that was cut, stands between. Nothing here sleeps or draws a random number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..client.transport import DialFailed, WireClosed
from ..transports import Acceptor, Batch, Handshake, Refused, WebSocketTransport, joined

__all__ = ["Link", "MemoryDialer"]

#: Bytes "the network" takes before a server sees that its peer does not read.
NETWORK = 64 * 1024


class Link:
    """One in-memory WebSocket.

    :param max_frame: as a server would have it.
    :param network: bytes under way at the most; what the client does not fetch beyond that is *buffered*.
    """

    def __init__(self, *, max_frame: int, network: int = NETWORK) -> None:
        self.transport = WebSocketTransport(self, max_frame=max_frame)
        self.network = network
        self.up = 0
        """Frames that have reached the hub."""
        self.down = 0
        """Frames that have reached the client."""
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._closed: tuple[int, str] | None = None
        self._reading = asyncio.Event()
        self._reading.set()
        self._arrived = asyncio.Event()
        self._lost = False
        self._frozen = False

    # -- faults ------------------------------------------------------------------------------------

    def cut(self, *, deliver: bool = False) -> None:
        """Break the link without a goodbye. Both ends see 1006.

        :param deliver: let the client have what was under way; else that is gone.
        """
        if not deliver:
            self._queue.clear()
            self._size = 0
        self._end(1006, "")

    def freeze(self) -> None:
        """The client reads nothing from now on; what is sent to it piles up."""
        self._frozen = True

    def thaw(self) -> None:
        """The client reads again."""
        self._frozen = False
        self._arrived.set()

    # -- the hub's end: a Pipe ---------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        return max(0, self._size - self.network)

    def write(self, data: bytes) -> None:
        if self._closed is None:
            self._queue.append(data)
            self._size += len(data)
            self._arrived.set()

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def _end(self, code: int, reason: str) -> None:
        if self._closed is None:
            self._closed = (code, reason)
        self._arrived.set()
        self._reading.set()
        if not self._lost:
            self._lost = True
            # A real host reports the loss from its own callback, never from inside a call into it.
            asyncio.get_running_loop().call_soon(self.transport.lost, code, reason)

    def close(self, code: int, reason: str) -> None:
        self._end(code, reason)

    # -- for the client's end ----------------------------------------------------------------------

    async def send(self, frame: bytes) -> None:
        while not self._reading.is_set() and self._closed is None:
            await self._reading.wait()
        if self._closed is not None:
            raise WireClosed(*self._closed)
        self.up += 1
        self.transport.message(frame)

    async def recv(self) -> bytes:
        while self._frozen or not self._queue:
            if not self._queue and self._closed is not None and not self._frozen:
                raise WireClosed(*self._closed)
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._queue.popleft()
        was_buffered = self.buffered > 0
        self._size -= len(frame)
        self.down += 1
        if was_buffered and self.buffered == 0:
            self.transport.writable()
        return frame

    def __repr__(self) -> str:
        state = "open" if self._closed is None else f"closed {self._closed[0]}"
        return f"<Link {state}, {len(self._queue)} frames under way>"


class Loose:
    """The client's end of a link."""

    __slots__ = ("link",)

    def __init__(self, link: Link) -> None:
        self.link = link

    async def send(self, frame: bytes) -> None:
        """Hand a frame to the hub; waits while the hub does not read."""
        await self.link.send(frame)

    async def recv(self) -> bytes:
        """The next frame from the hub."""
        return await self.link.recv()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye."""
        self.link.close(code, reason)

    def __repr__(self) -> str:
        return f"<Loose end of {self.link!r}>"


class MemoryDialer:
    """Opens links to a hub of this process; a client's dialer.

    :param acceptor: the hub.
    :param scope: stands in the handshake's scope, as an ASGI host would fill it.
    :param headers: of every handshake.
    :ivar links: all that were opened, the latest last.
    :ivar online: while False, dialling fails as with no network.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        scope: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        network: int = NETWORK,
    ) -> None:
        self._acceptor = acceptor
        self._scope = dict(scope or {})
        self._headers = dict(headers or {})
        self._network = network
        self.links: list[Link] = []
        self.online = True
        self.on_link: Callable[[Link], None] | None = None

    async def dial(self, url: str, headers: Mapping[str, str]) -> Loose:
        """Open a link, as :class:`~rtkit.client.transport.Dialer` says."""
        if not self.online:
            raise DialFailed("offline")
        parts = urlsplit(url)
        merged = {"host": parts.netloc, **self._headers, **headers}
        handshake = Handshake(
            path=parts.path,
            query=parts.query,
            headers=[(name.lower(), value) for name, value in merged.items()],
            address="127.0.0.1",
            scope=self._scope,
        )
        try:
            await self._acceptor.ensure_running()
            self._acceptor.admit(handshake)
        except Refused as refused:
            window = (refused.retry_after, 2.0 * refused.retry_after) if refused.retry_after else None
            raise DialFailed(
                refused.reason, terminal=refused.status in (401, 403, 404), window=window
            ) from None
        link = Link(max_frame=self._acceptor.max_frame, network=self._network)
        self.links.append(link)
        link.transport.drive(self._acceptor.connect(link.transport, handshake))
        if self.on_link is not None:
            self.on_link(link)
        return Loose(link)
