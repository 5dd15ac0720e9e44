"""The hub: one object that a host embeds."""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib import metadata
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self
from urllib.parse import urlsplit

from typing_extensions import TypeVar

from ..brokers import Broker, open_url
from ..clock import Clock
from ..errors import NotRunning, UsageError, WrongLoop, WrongProcess
from ..hosting.asgi import AsgiHost
from ..hosting.endpoints import Crowded
from ..identity import Credentials, Identity
from ..messages import Published
from ..metrics import Counted, Counters, Observer, Timings
from ..primitives.clocks import LoopClock
from ..transports import Answer, Driver, Handshake, HttpRequest, Refused, Transport
from ..wire.envelope import FORMATS, Formats
from .address import Proxies
from .admission import turn_away
from .config import Limits
from .connection import Connection
from .context import Context, Hook
from .control import Nodes
from .engine import Engine
from .handle import Room, User
from .origin import origin_allowed
from .router import Router, must_be_async
from .statistics import HubStatistics, present
from .web import answer

if TYPE_CHECKING:
    from aiohttp import web

    from ..hosting.wrap import AsgiApp, Wrapped

__all__ = ["Hub", "HubStatistics"]

C = TypeVar("C", default=Any)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
EndHook = Callable[[Context[C, Any], str], Awaitable[None]]


class Hub(Router[C], Generic[C]):
    """Composition root: one per process and event loop; a router, and an ASGI application.

    ::

        hub = Hub(authenticate=authenticate)
        app.mount("/rt", hub)  # and FastAPI(lifespan=hub.lifespan), or it starts on first use

    :param authenticate: turns :class:`~rtkit.Credentials` into an :class:`~rtkit.Identity`, or raises
        :class:`~rtkit.Reject`. Called once per connection, and again for each in-band refresh.
        ``anonymous`` lets everybody in.
    :param broker: a URL such as ``memory://``, or a broker of one's own making.
    :param origins: web origins that may connect besides the page's own host; ``"*"`` for any.
    :param trusted_proxies: networks of proxies whose ``X-Forwarded-For``, ``-Host`` and ``-Proto`` are believed, such
        as ``10.0.0.0/8``; ``unix`` for whoever comes through a Unix socket. See :class:`Credentials` and
        ``Limits(address_connections=…)``.
    :param limits: see :class:`Limits`.
    :param state: whatever handlers shall find at ``ctx.hub.state``: a database pool, settings.
    :param secret: signs resume tokens (C4); the same on all nodes, 32 bytes or so. Without it the broker holds one.
    :param clock: where time comes from; tests pass a manual one.
    :param random: where chance comes from, likewise.
    """

    #: What this release reads and writes for other nodes (W5).
    formats: Formats = FORMATS

    def __init__(
        self,
        *,
        authenticate: Callable[[Credentials], Awaitable[Identity[C]]],
        broker: str | Broker = "memory://",
        origins: Sequence[str] = (),
        trusted_proxies: Sequence[str] = (),
        limits: Limits | None = None,
        state: Any = None,
        secret: bytes | None = None,
        clock: Clock | None = None,
        random: random.Random | None = None,
    ) -> None:
        super().__init__()
        self.authenticate_hook = must_be_async(authenticate, "authenticate")
        self.limits = limits or Limits()
        self.origins = _checked_origins(origins)
        self.proxies = Proxies(trusted_proxies)
        self.state = state
        self.secret = secret
        self.clock: Clock = clock or LoopClock()
        self.random = random or _system_random()
        self.node_id = secrets.token_hex(4)
        self.version = _version()
        self.start_hooks: list[Hook[C, Any, None]] = []
        self.end_hooks: list[EndHook[C]] = []
        self.broker = broker
        self._engine: Engine | None = None
        self._counted = Counters()  # by runs that are over
        self._timed = Timings()
        self._observers: list[Observer] = []
        self._starting: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._host = AsgiHost(
            self, lifespan=self.lifespan, ready=self._readiness, drain=self.drain, clock=self.clock
        )

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start; ``async with hub``, ``hub.lifespan`` and the first connection do it too. Idempotent.

        :raises DeclarationError: when what was declared cannot work.
        :raises NotSupported: when the broker cannot do what was declared.
        :raises BrokerUnavailable: when it cannot be reached.
        :raises WrongLoop: while running in another loop.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._come_home(loop)
            if self._closing is not None:
                await asyncio.shield(self._closing)
            elif self._engine is not None:
                return
            elif self._starting is None:
                break
            elif await _has_started(self._starting):
                return
        self._starting = starting = loop.create_future()
        self._loop, self._pid = loop, os.getpid()
        engine: Engine | None = None
        try:
            broker = self.broker
            engine = Engine(
                self, self.table(), open_url(broker, clock=self.clock) if isinstance(broker, str) else broker
            )
            for observer in self._observers:
                engine.timings.tell(observer)
            await engine.start()
        except BaseException as error:
            try:
                if engine is not None:
                    await engine.aclose()
            finally:
                self._forget()
            if isinstance(error, Exception):
                starting.set_exception(error)
                starting.exception()
            else:
                starting.cancel()
            raise
        self._engine = engine
        self._starting = None
        starting.set_result(None)

    async def drain(self, *, spread: float | None = None, timeout: float | None = None) -> None:
        """Take no new client, and send those that are there to other nodes, told when to come back (L1, L2).

        At once ``ready`` says 503. Connections are closed in random order and evenly, rtkit's own clients with a
        window. Where there is another node, their sessions are handed over to it: nobody is seen leaving. It returns
        when that is done and handlers have ended. All else goes on, so that the application may publish, until
        :meth:`aclose`. Our own server and uvicorn do this at a SIGTERM; where nothing does, call it before the
        process is told to end.

        :param spread: seconds over which the clients set out for other nodes, at the most: 200 a second are never too
            many. ``Limits(drain_spread=…)`` unless given; 0 for all at once.
        :param timeout: seconds until it returns at the latest, having dropped whoever is left. The spread and
            ``Limits(drain_timeout=…)`` unless given. Where it is too short for the spread, clients are sent away
            earlier and told to come back later.
        :raises ValueError: for seconds that are negative or not finite.

        Idempotent: a second call, and :meth:`aclose`, join the first, and shorten it if they say so.

        Cancellation: it goes on, and nobody waits for it.
        """
        for name, seconds in (("spread", spread), ("timeout", timeout)):
            if seconds is not None and not 0 <= seconds < math.inf:
                raise ValueError(f"drain({name}=…) is 0 or more seconds, not {seconds!r}")
        if self._engine is not None:
            await self._engine.drain(spread=spread, timeout=timeout)

    async def aclose(self) -> None:
        """:meth:`drain`, and let go of everything. Idempotent and bounded.

        Afterwards no task, timer, socket or subscription of the hub is left, and it may be started again.
        """
        loop = asyncio.get_running_loop()
        self._come_home(loop)
        if self._starting is not None:
            with suppress(Exception):  # whoever started it is told
                await _has_started(self._starting)
        if self._closing is not None:
            await asyncio.shield(self._closing)
        elif self._engine is not None:
            self._closing = closing = loop.create_future()
            try:
                await self._engine.aclose()
            finally:
                self._forget()
                closing.set_result(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """For ``FastAPI(lifespan=hub.lifespan)`` and its like: run while the application runs."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncGenerator[None]:
        async with self:
            yield

    def _forget(self) -> None:
        if self._engine is not None:
            self._counted.absorb(self._engine.counters)
            self._timed.absorb(self._engine.timings)
        self._engine = None
        self._starting = None
        self._closing = None
        self._loop = None

    def _come_home(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and self._loop.is_closed() and self._loop is not loop:
            # The loop it ran in is gone without a close, as some test clients leave it.
            self._forget()
        self._check_home(loop)

    def _check_home(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            return
        if self._pid != os.getpid():
            raise WrongProcess(
                f"this hub was started in process {self._pid}, which then forked. Start it in each worker after the "
                f"fork: do not call start() or open connections at import time"
            )
        if self._loop is not loop:
            raise WrongLoop(
                "this hub is running in another event loop. From a thread, call it with "
                "anyio.from_thread.run(hub.publish, room, message); in tests, use one loop for app and test "
                "(Starlette's TestClient: `with TestClient(app) as client`)"
            )

    @property
    def running(self) -> bool:
        """Whether it has started and not closed."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The running parts; for rtkit itself.

        :raises NotRunning: before start and after close.
        :raises WrongLoop: from another event loop.
        :raises WrongProcess: in a process forked after start.
        """
        if self._engine is None:
            raise NotRunning(
                "the hub is not running: use `async with hub:`, pass lifespan=hub.lifespan to your framework, or mount "
                "it, so that the first connection starts it"
            )
        try:
            self._check_home(asyncio.get_running_loop())
        except RuntimeError:
            raise WrongLoop(
                "no event loop runs in this thread; call anyio.from_thread.run(hub.publish, room, message)"
            ) from None
        return self._engine

    # -- declarations ------------------------------------------------------------------------------

    def declared(self) -> None:
        if self._engine is not None:
            raise UsageError("the hub is running; declare rooms and handlers before it starts")
        super().declared()
        for family in self.table().families:
            family.rooms.hubs.add(self)

    def on_session_start(self, func: Hook[C, Any, None], /) -> Hook[C, Any, None]:
        """Decorator: runs when a client was authenticated, before its first command. May raise ``Reject``."""
        self._declare(self.start_hooks, must_be_async(func, "the on_session_start hook"))
        return func

    def on_session_end(self, func: EndHook[C], /) -> EndHook[C]:
        """Decorator: runs with (ctx, reason) after a session ended on this node, if its start was told."""
        self._declare(self.end_hooks, must_be_async(func, "the on_session_end hook"))
        return func

    # -- what applications do with it ----------------------------------------------------------------

    def room(self, name: str) -> Room[Any]:
        """One room, by its full name.

        :raises UnknownRoom: when no declared family matches.
        """
        family, params = self.table().find(name)
        return Room(self, family, name, params)

    async def publish(self, room: str, message: object, *, key: str | None = None) -> Published:
        """Publish to a room by name; see :meth:`Room.publish`. From a thread:
        ``anyio.from_thread.run(hub.publish, room, message)``."""
        return await self.room(room).publish(message, key=key)

    def user(self, user: str) -> User:
        """A user, on every node."""
        return User(self, user)

    async def nodes(self) -> Nodes:
        """All nodes of the cluster, and what each has now; those that do not answer within 4 s are named.

        :raises BrokerUnavailable: when they cannot be asked.
        """
        return await self.engine.control.nodes()

    def statistics(self, *, all_runs: bool = False) -> HubStatistics:
        """How things are, and what was counted and measured since the start. May be called from another thread.

        :param all_runs: also what was counted and measured before: by all runs of this hub in this process. Such
            totals never go back.
        """
        engine, counters, timings = self._engine, Counters(), Timings()
        if all_runs:
            counters.absorb(self._counted)
            timings.absorb(self._timed)
        if engine is not None:
            counters.absorb(engine.counters)
            timings.absorb(engine.timings)
        totals = counters.snapshot()
        return HubStatistics(
            running=engine is not None,
            totals=totals,
            counted=Counted.of(totals),
            measured=timings.snapshot(),
            **({} if engine is None else present(engine)),
        )

    def _tell(self, observer: Observer) -> None:
        """Have an exporter told of each value that is measured from now on, in all runs."""
        self._observers.append(observer)
        if self._engine is not None:
            self._engine.timings.tell(observer)

    # -- what hosts do with it -----------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: mounted into a framework, or on its own under a server."""
        await self._host(scope, receive, send)

    def wrap(self, app: AsgiApp, prefix: str) -> Wrapped:
        """An ASGI application that is this hub below *prefix*, and *app* elsewhere; with the lifespan of both.

        ::

            application = hub.wrap(get_asgi_application(), "/rt")  # Django

        :param prefix: such as ``/rt``.
        :raises UsageError: for a prefix with odd characters.
        """
        from ..hosting.wrap import Wrapped

        return Wrapped(app, self, prefix, self.lifespan)

    def add_to(self, app: web.Application, prefix: str) -> None:
        """Serve this hub below *prefix* of an aiohttp application, for as long as that runs.

        :param prefix: such as ``/rt``.
        :raises UsageError: for a prefix with odd characters.
        """
        from ..hosting.aiohttp_host import add_to

        add_to(app, prefix, self, start=self.start, close=self.aclose, max_frame=self.max_frame)

    @property
    def max_frame(self) -> int:
        """Bytes of one inbound frame at the most."""
        return self.limits.max_frame

    @property
    def max_connect(self) -> int:
        """Bytes that a client may send before it is let in."""
        return self.limits.max_connect

    async def ensure_running(self) -> None:
        """Start, if nobody has yet; not again while it closes, so that :meth:`admit` can refuse."""
        if self._closing is None:
            await self.start()

    def admit(self, handshake: Handshake) -> None:
        """Check a handshake before anything is spent on it (T10, L1).

        :raises Refused: with the status to answer.
        """
        if self._not_ready() is not None:
            self._refused("draining")
            raise Refused(503, "draining", retry_after=1)
        if not origin_allowed(handshake, self.origins, self.proxies):
            self._refused("origin")
            raise Refused(403, "this origin may not connect; the server lists others in Hub(origins=…)")

    def _refused(self, reason: str) -> None:
        if self._engine is not None:
            self._engine.counters.add("refusals", reason)

    def connect(self, transport: Transport, handshake: Handshake) -> Driver:
        """Drive a transport that a host has accepted; or turn its client away, if too many come (F2)."""
        engine = self.engine
        if (refusal := engine.admission.refuse(handshake)) is not None:
            return turn_away(transport, refusal)
        connection = Connection(engine, transport, handshake)
        engine.adopt(connection)
        return connection

    def turned_away(self, why: str) -> None:
        """Count somebody whom a host has turned away (M1)."""
        if self._engine is not None:
            self._engine.counters.add("turned_away", why)

    async def answer(self, request: HttpRequest) -> Answer:
        """Answer a request to an endpoint of a transport over plain HTTP (T1, T2)."""
        return await answer(self, request)

    def _not_ready(self) -> float | None:
        engine = self._engine
        return None if engine is None or engine.accepting else 1.0

    def _readiness(self) -> float | None:
        """What ``ready`` says (M4, T7)."""
        engine = self._engine
        if engine is not None and engine.accepting and engine.admission.busy:
            return Crowded(1.0)
        return self._not_ready()

    def __repr__(self) -> str:
        state = "running" if self._engine is not None else "idle"
        return f"<Hub {self.node_id} {state}, {len(self.families)} families>"


async def _has_started(starting: asyncio.Future[None]) -> bool:
    """Wait for somebody else's start; False when they were cancelled meanwhile. Raises what it failed with."""
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not starting.cancelled() or (task is not None and task.cancelling()):
            raise  # it is us who were cancelled
        return False
    return True


def _version() -> str:
    try:
        return f"rtkit {metadata.version('rtkit')}"
    except metadata.PackageNotFoundError:
        return "rtkit"


def _system_random() -> random.Random:
    return random.SystemRandom()


def _checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    if isinstance(origins, str):
        raise UsageError(f"origins= is a list of origins, as in [{origins!r}]")
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (
            parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/")
        ):
            raise UsageError(
                f"an origin is scheme://host[:port], such as https://example.org, not {origin!r}"
            )
    return tuple(origins)
