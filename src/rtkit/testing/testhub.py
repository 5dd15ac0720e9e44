"""Users, time and failures for the tests of an application, without sockets and without sleeping.

::

    async with TestHub(hub) as t:
        ann = await t.connect(Identity("ann"))
        bob = await t.connect(Identity("bob"))
        async with (
            ann.join("chat:lobby", receives=Said) as hers,
            bob.join("chat:lobby", receives=Said) as his,
        ):
            await hers.send(Say("hi"))
            assert (await t.next(his)).data == Said("hi")

Users are the real SDK on in-memory links to the real hub, on the test's own loop. Time stands still until the
test moves it: ``await t.clock.advance(90)``. Chance is seeded, so two runs of a test are the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Generic, Self

from typing_extensions import TypeVar

from ..brokers.memory import MemoryBroker
from ..client import Client, RoomClient, connect
from ..clock import Clock
from ..errors import UsageError
from ..hub import Hub
from ..identity import Credentials, Identity
from ..messages import Message
from ..position import Gap
from .clock import ManualClock
from .links import Link, MemoryDialer

__all__ = ["TestHub"]

C = TypeVar("C", default=Any)
M = TypeVar("M", default=Any)
R = TypeVar("R")

_IDENTITY = "rtkit.testing.identity"


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


class TestHub(Generic[C]):
    """A hub under test: started, with a manual clock and seeded chance, and users who connect in memory.

    Enter it with ``async with``. The hub must not be running, and gets its own clock and randomness back at the end.

    :param hub: the application's hub, as it is.
    :param clock: a manual clock to share with other parts; one of its own unless given.
    :param seed: of all randomness.
    """

    __test__ = False  # its name begins with Test, but it is no test

    def __init__(self, hub: Hub[C], *, clock: ManualClock | None = None, seed: int = 0) -> None:
        self.hub = hub
        self.clock = clock or ManualClock()
        self.random = random.Random(seed)
        self._before: tuple[Any, Any, Any] | None = None
        self._backend_clock: Clock | None = None
        self._stack = AsyncExitStack()
        self._dialers: dict[Client, MemoryDialer] = {}

    async def __aenter__(self) -> Self:
        hub = self.hub
        if hub.statistics().running:
            raise UsageError("this hub is running already; hand TestHub one that is not")
        self._before = (hub.clock, hub.random, hub.authenticate_hook)
        hub.clock, hub.random, hub.authenticate_hook = self.clock, self.random, self._authenticate
        if isinstance(hub.broker, MemoryBroker):  # by URL it is made at start, with the hub's clock
            self._backend_clock = hub.broker.backend.clock
            hub.broker.backend.clock = self.clock
        try:
            await hub.start()
        except BaseException:
            self._restore()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._stack.aclose()
            await self.hub.aclose()
        finally:
            self._restore()

    def _restore(self) -> None:
        assert self._before is not None
        self.hub.clock, self.hub.random, self.hub.authenticate_hook = self._before
        if isinstance(self.hub.broker, MemoryBroker) and self._backend_clock is not None:
            self.hub.broker.backend.clock = self._backend_clock

    async def _authenticate(self, credentials: Credentials) -> Identity[C]:
        given = credentials.scope.get(_IDENTITY)
        if given is not None and credentials.token is None:
            identity: Identity[C] = given
            return identity
        assert self._before is not None
        real: Identity[C] = await self._before[2](credentials)
        return real

    async def connect(
        self,
        identity: Identity[C] | None = None,
        *,
        token: str | None = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        network: int = 64 * 1024,
        wait: bool = True,
    ) -> Client:
        """A user comes; it leaves with the ``TestHub`` at the latest.

        :param identity: who; the application's ``authenticate`` is not asked then.
        :param token: shown to the application's ``authenticate`` instead.
        :param headers: of the handshake.
        :param network: bytes that fit between the hub and a user who does not read.
        :param wait: return when connected; False returns at once.
        :raises ConnectionClosed: when the hub refuses.
        """
        scope = {_IDENTITY: identity} if identity is not None else {}
        dialer = MemoryDialer(self.hub, scope=scope, headers=headers, network=network)
        client = connect(
            "ws://test/rt",
            token=token,
            data=data,
            dialer=dialer,
            clock=self.clock,
            random=self.random,
            wait=wait,
        )
        self._dialers[client] = dialer
        return await self._stack.enter_async_context(client)

    def spawn(self, func: Callable[..., Coroutine[Any, Any, R]], *args: Any) -> asyncio.Task[R]:
        """Run ``func(*args)`` beside the test; it is cancelled with the ``TestHub`` at the latest."""
        task = asyncio.ensure_future(func(*args))
        self._stack.push_async_callback(_cancel, task)
        return task

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing."""
        await self.clock.settle()

    async def next(self, room: RoomClient[M]) -> Message[M]:
        """The next message of a room.

        :raises AssertionError: when there is none now, or it is a gap.
        """
        item = await self.next_item(room)
        if isinstance(item, Gap):
            raise AssertionError(f"room {room.name!r}: expected a message, got a {item}")
        return item

    async def next_item(self, room: RoomClient[M]) -> Message[M] | Gap:
        """The next message or gap of a room.

        :raises AssertionError: when there is none now.
        """
        task = asyncio.ensure_future(anext(room))
        await self.settle()
        if not task.done():
            task.cancel()
            raise AssertionError(f"room {room.name!r}: expected a message, but none has come: {room!r}")
        return task.result()

    async def silent(self, room: RoomClient[Any]) -> None:
        """Assert that nothing has come in a room.

        :raises AssertionError: with what has.
        """
        task = asyncio.ensure_future(anext(room))
        await self.settle()
        if task.done():
            raise AssertionError(f"room {room.name!r}: expected silence, got {task.result()!r}")
        task.cancel()

    # -- faults ------------------------------------------------------------------------------------

    def link(self, client: Client) -> Link:
        """The client's present, or else latest, connection to the hub."""
        links = self._dialers[client].links
        if not links:
            raise UsageError("this client has not connected yet")
        return links[-1]

    def cut(self, client: Client) -> None:
        """Break the client's connection without a goodbye; what was under way is lost. It will be back
        after its back-off: ``await t.clock.advance(20)``."""
        self.link(client).cut()

    def offline(self, client: Client) -> None:
        """Cut the client off, and let it not return before :meth:`online`."""
        self._dialers[client].online = False
        self.cut(client)

    def online(self, client: Client) -> None:
        """Let it return, after its back-off."""
        self._dialers[client].online = True

    def __repr__(self) -> str:
        return f"<TestHub {len(self._dialers)} users on {self.hub!r}>"
