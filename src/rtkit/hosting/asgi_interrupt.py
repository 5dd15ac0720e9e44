"""For granian, whose ``send()`` of a close waits until nobody is inside ``receive()``.

The hub closes from one task while another waits for the next message, which every other server allows. Under granian
the close frame of an idle connection would leave when the client next says something, or never. So ``receive()`` is
interrupted first, and goes on once the close frame is out: what it then reports is the end of the connection.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

__all__ = ["Interrupted", "interrupted"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def interrupted(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The two calls of an ASGI connection, so that a close does not wait for a message.

    Untouched where no granian is: frameworks wrap what they pass on, so that the server cannot be told by its calls.
    """
    if "granian._granian" not in sys.modules:
        return receive, send
    both = Interrupted(receive, send)
    return both.receive, both.send


@final
class Interrupted:
    """Calls of a server that does not send a close while it receives.

    :param receive: of the server.
    :param send: of the server.
    """

    __slots__ = ("_closed", "_outside", "_receive", "_receiver", "_send")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._receiver: asyncio.Task[Any] | None = None  # who is inside the server's receive()
        self._outside: asyncio.Future[None] | None = None  # done when nobody is
        self._closed: asyncio.Future[None] | None = None  # done when the close is out

    async def receive(self) -> Message:
        """The next message. Cancellation: as the server's own."""
        if self._closed is not None:
            await asyncio.shield(self._closed)
        task = self._receiver = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            # Ours, unless somebody else wants an end of this task as well.
            if self._outside is None or task is None or task.uncancel() > 0:
                raise
        finally:
            self._receiver = None
            if self._outside is not None and not self._outside.done():
                self._outside.set_result(None)
        return await self.receive()

    async def send(self, message: Message) -> None:
        """Send; before a close, have :meth:`receive` step aside."""
        if message["type"] != "websocket.close" or self._receiver is None:
            await self._send(message)
            return
        loop = asyncio.get_running_loop()
        self._closed = loop.create_future()
        self._outside = loop.create_future()
        self._receiver.cancel()
        try:
            await self._outside
            await self._send(message)
        finally:
            if not self._closed.done():
                self._closed.set_result(None)
