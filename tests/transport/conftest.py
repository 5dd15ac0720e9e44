"""What the transport suite shares: a site, which is a hub that some host serves on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.brokers import Broker
from rtkit.primitives import Rate
from rtkit.testing.clock import ManualClock
from tests.support.hosts import HOSTS, Host, Served, client_context, mark_known
from tests.support.rawsession import PollSession, StreamSession
from tests.support.rawsocket import Peer, RawSocket
from tests.transport.cable import Cable

#: Far above what any wait of a passing test takes.
PATIENCE = 10.0


async def by_token(credentials: Credentials) -> Identity[None]:
    """The token is the user's name; none is refused."""
    if not credentials.token:
        raise Reject("show a token", code=101)
    return Identity(credentials.token)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so; what brings it about is on a socket."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)


def make_hub(
    clock: ManualClock,
    authenticate: Callable[[Credentials], Awaitable[Identity[None]]] = by_token,
    **limits: Any,
) -> Hub[None]:
    """The hub of this suite: rooms with and without history, and procedures ``echo`` and ``fail``.

    Its time stands still unless the test moves it, so no heartbeat and no deadline comes in between; the rate of
    commands is high for the same reason.
    """
    limits.setdefault("commands", Rate(rate=10_000, burst=10_000))
    limits.setdefault("accepts", None)  # a crowd is no storm
    limits.setdefault("grace", None)  # who is gone is gone: nothing of it may be left
    hub: Hub[None] = Hub(
        authenticate=authenticate, clock=clock, random=random.Random(1), limits=Limits(**limits)
    )
    grant = Grant("publish", "signal", "history")
    hub.rooms("log:{x}", publishes=object, grant=grant, history=History(2000, ttl=3600))
    hub.rooms("now:{x}", publishes=object, grant=grant)

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[None, Any], data: Any) -> Any:
        return data

    @hub.rpc(object, name="fail")
    async def fail(ctx: Context[None, Any], data: Any) -> Any:
        raise Reject("as you wish", code=400)

    return hub


class Site:
    """A hub served by a host, its clock, and the sockets that clients of the test have opened.

    :ivar hub: of :func:`make_hub`; not yet served, so that a test may declare more.
    :ivar served: what the host says of it, once :meth:`open` was called.
    """

    def __init__(self, host: Host, stack: contextlib.AsyncExitStack) -> None:
        self.host = host
        self.clock = ManualClock()
        self.hub: Hub[Any] = make_hub(self.clock)
        self._stack = stack
        self._served: Served | None = None
        self._port = 0
        self._sockets: list[RawSocket | StreamSession | PollSession] = []

    def build(self, **options: Any) -> Hub[Any]:
        """Another hub than the usual one; the options of :func:`make_hub`."""
        assert self._served is None
        self.hub = make_hub(self.clock, **options)
        return self.hub

    def build_beside(self, *, broker: Broker) -> Hub[Any]:
        """A second hub, for the test itself to serve."""
        hub = make_hub(self.clock)
        hub.broker = broker
        return hub

    async def open(self, *, secure: bool = False) -> Served:
        """Have the host serve the hub.

        :param secure: over TLS; the test's own clients get there through a :class:`Cable` that does it for them.
        """
        assert self.host.can.tls or not secure
        self._served = await self._stack.enter_async_context(self.host.serve(self.hub, secure))
        self._port = self._served.port
        if secure:
            cable = Cable(self._served.port, ssl=client_context())
            self._port = (await self._stack.enter_async_context(cable)).port
        return self._served

    async def shut(self) -> None:
        """Have the host stop, and with it the hub."""
        self._served = None
        await self._stack.aclose()

    @property
    def served(self) -> Served:
        assert self._served is not None, "site.open() comes first"
        return self._served

    async def socket(self, **options: Any) -> RawSocket:
        """A connection on which nothing was said yet."""
        sock = await RawSocket.open(self._port, **options)
        self._sockets.append(sock)
        return sock

    async def peer(self, endpoint: str = "ws", **options: Any) -> Peer:
        """A client that has shaken hands, and not said who it is."""
        peer = await Peer.connect(self._port, self.served.path(endpoint), **options)
        self._sockets.append(peer)
        return peer

    async def client(self, user: str, *rooms: str, rt: bool = True, **options: Any) -> Peer:
        """A client that is connected and in these rooms."""
        peer = await self.peer(**options)
        await peer.connect_as(user, rt=rt)
        for room in rooms:
            await peer.join(room)
        return peer

    async def session(
        self, kind: str, user: str, *rooms: str, rt: bool = True, **options: Any
    ) -> StreamSession | PollSession:
        """A client over plain HTTP that is connected and in these rooms.

        :param kind: ``sse`` or ``poll``.
        """
        session = self.nobody(kind, **options)
        await session.connect_as(user, rt=rt)
        for room in rooms:
            await session.join(room)
        return session

    def nobody(self, kind: str, **options: Any) -> StreamSession | PollSession:
        """A client over plain HTTP that has not said anything."""
        found = {"sse": StreamSession, "poll": PollSession}[kind](self._port, self.served.prefix, **options)
        assert isinstance(found, StreamSession | PollSession)
        self._sockets.append(found)
        return found

    async def request(self, path: str, **options: Any) -> Any:
        """The answer to one plain request, on a connection of its own."""
        return await (await self.socket()).get(path, **options)

    async def until_pinged(self, peer: Peer, *others: Peer) -> None:
        """Let time pass until a client has heard a ping; the first comes at a random moment. *Others* answer theirs."""
        before = peer.pings
        while peer.pings == before:
            await self.clock.advance(1)
            for each in (peer, *others):
                while each.speaks:
                    assert await each.next_unit() == {}
                    if each is not peer:
                        await each.say("{}")

    async def ends_within(self, seconds: float, task: asyncio.Task[Any], *, real: float = 0.01) -> None:
        """Let time pass until a task has ended, which must not take longer than so many seconds of the clock.

        :param real: seconds that it may take of each half second: uvicorn waits on a clock of its own.
        """
        left = seconds
        async with asyncio.timeout(PATIENCE):
            while not task.done():
                await asyncio.wait({task}, timeout=real)
                if not task.done():
                    assert left > 0, f"not ended after {seconds} s"
                    await self.clock.advance(min(left, 0.5))
                    left -= 0.5
        await task

    def drop_sockets(self) -> None:
        """Close everything that the test's clients have open."""
        for sock in self._sockets:
            sock.close()

    @property
    def open_connections(self) -> int:
        return self.hub.statistics().connections

    async def nothing_is_left(self) -> None:
        """Wait until the hub holds nothing of anybody, whatever the test has done to it."""
        self.drop_sockets()

        def left() -> dict[str, int]:
            now = self.hub.statistics()
            names = ("connections", "sessions", "rooms", "users", "deadlines")
            found = {name: count for name in names if (count := getattr(now, name))}
            if self._served is not None and (transports := len(self._served.transports())):
                found["transports"] = transports
            return found

        try:
            await until(lambda: "transports" not in left())
            # A poll that does not come is waited for 10 s. A connection that was not seen to end would be found out by
            # its heartbeat, after 35.
            for _ in range(11):
                if left():
                    await asyncio.sleep(0)
                    await self.clock.advance(1)
            await until(lambda: not left())
        except TimeoutError:
            raise AssertionError(f"left: {left()}") from None


@pytest.fixture(params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Each host in turn."""
    found: Host = request.param
    return found


def tasks() -> set[asyncio.Task[Any]]:
    """Those that run, but for pytest's own."""
    return {each for each in asyncio.all_tasks() if "TestRunner" not in repr(each.get_coro())}


@pytest.fixture
async def site(host: Host, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A site for one test; afterwards nothing of it may be left, and no error have been logged."""
    before = tasks()
    with caplog.at_level(logging.WARNING, "rtkit"):
        async with contextlib.AsyncExitStack() as stack:
            site = Site(host, stack)
            try:
                yield site
                if site.hub.running:
                    await site.nothing_is_left()
            finally:
                # A test that failed may have left anything behind: time has to pass for that to end.
                site.drop_sockets()
                await site.ends_within(20, asyncio.create_task(site.shut()), real=0.05)
    assert not (tasks() - before), "tasks are left"
    assert site.clock.timers == 0, "timers are left"
    ours = [each for each in caplog.get_records("call") if each.name.startswith(("rtkit", "asyncio"))]
    errors = [each.getMessage() for each in ours if each.levelno >= logging.ERROR]
    assert not errors, errors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is known of hosts."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            mark_known(item)
