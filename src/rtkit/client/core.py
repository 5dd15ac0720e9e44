"""What a client and its rooms share: one engine, one clock, and waiting for the answer to a command."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from ..clock import Clock
from ..errors import NotRunning, PublishUnknown, WrongLoop
from ..primitives import clocks
from ..wire import HistoryCommand, PresenceUpdate, Publish, Reply, Rpc
from .bell import Bell
from .commands import Sending
from .engine import Engine
from .payloads import Unpack

__all__ = ["Core"]


class Core:
    """Bound to a loop from :meth:`enter` on."""

    def __init__(self, engine: Engine, bell: Bell, clock: Clock, chance: random.Random) -> None:
        self.engine = engine
        self.bell = bell
        self.clock = clock
        self._keys = 0
        self._key_prefix = f"{chance.getrandbits(96):024x}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self.refuse: Callable[[], None] = lambda: None
        """Raises when the client is closed."""

    @property
    def entered(self) -> bool:
        """Whether the client was ever started."""
        return self._loop is not None

    def enter(self) -> None:
        """The client runs now, in this loop."""
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Before anything that needs a running client.

        :raises NotRunning: before it is entered.
        :raises WrongLoop: from another loop.
        :raises ConnectionClosed: when it is closed.
        """
        if self._loop is None:
            raise NotRunning("the client is not running: use it inside `async with connect(…) as client:`")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop(
                "the client runs in another event loop; use asyncio.run_coroutine_threadsafe with that one"
            )
        self.refuse()

    def new_key(self) -> str:
        """For a command that shall happen once: never the same again (H7)."""
        self._keys += 1
        return f"{self._key_prefix}-{self._keys}"

    async def ask(
        self,
        body: Publish | Rpc | HistoryCommand | PresenceUpdate,
        size: int,
        unpack: Unpack,
        *,
        timeout: float | None,
    ) -> Any:
        """Queue a command and wait for its answer; see :meth:`RoomClient.send` for all that may happen."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def settle(outcome: Reply | BaseException) -> None:
            if waiter.done():
                return
            if isinstance(outcome, BaseException):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

        sending = Sending(body, size=size, settle=settle)
        self.engine.submit(sending)
        try:
            async with clocks.timeout(self.clock, timeout):
                await waiter
        except TimeoutError:
            if not waiter.done() or waiter.cancelled():
                self.engine.outbox.withdraw(sending)
                if sending.may_be_taken:
                    raise PublishUnknown(
                        f"it may or may not have been done: sent, but not answered within {timeout:g} s"
                    ) from None
                raise TimeoutError(f"not sent within {timeout:g} s; it was withdrawn") from None
        except asyncio.CancelledError:
            self.engine.outbox.withdraw(sending)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # it came in the same moment; nobody will look at it, and that is all right
            raise
        return unpack(waiter.result())
