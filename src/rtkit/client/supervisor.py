"""Connects, stays connected, and comes back: the one task behind a client.

::

    run ──► get a token ──► dial ──► connect ──► read until the pipe ends ──► wait ──┐
     ▲                                                                              │
     └──────────────────────────────────────────────────────────────────────────────┘

Beside it, while a connection lives, one task writes what the engine has. All decisions about what a frame
means are the engine's; here is only what needs time, a pipe or a task: tokens, deadlines, delays, and
whether an ending is for good.

An ending is for good when the server's code says so (:func:`rtkit.codes.is_terminal`), when it refuses
``connect`` with an error that is not temporary, or when the pipe cannot be opened in a way that no second
try would mend. Everything else is tried again: after the window the server named, else with full jitter.

A session outlives its connection for a while (C4): the server gives a token with each connection, and shown with the
next one it is the same session. Another connection may have taken it over (code 4000); then it is theirs, and this
client begins a new one, or the two would push each other out for ever.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from msgspec import Raw, UnsetType

from .. import codes
from ..clock import Clock
from ..errors import BadUnit, ConnectionClosed, UsageError
from ..primitives.backoff import Backoff
from ..primitives.clocks import Timeout, timeout
from ..primitives.tasks import Tasks
from ..wire import Connect, ConnectResult, Reply, RtHello, Window, split
from .bell import Bell
from .calls import call_error, window_of
from .engine import Engine
from .options import Policy
from .silence import Silence
from .tokens import Refresher, TokenSource
from .transport import Dialer, DialFailed, Opener, Wire, WireClosed
from .values import State

__all__ = ["Ending", "Supervisor"]

logger: Final = logging.getLogger("rtkit.client")

_LOST: Final = 1006

_CLOSE_CODES: Final = {
    codes.UNAUTHORISED: codes.BAD_TOKEN,
    codes.TOKEN_EXPIRED: codes.BAD_TOKEN,
    codes.EXPIRED: codes.BAD_TOKEN,
    codes.NOT_PERMITTED: codes.NOT_PERMITTED_CLOSE,
    codes.BAD_REQUEST: codes.BAD_REQUEST_CLOSE,
    codes.UNKNOWN_METHOD: codes.BAD_REQUEST_CLOSE,
    codes.LIMIT_EXCEEDED: codes.LIMIT_REACHED,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection, or the attempt at one, ended.

    :param terminal: for good.
    :param window: when to come back, if the server said so.
    :param at_once: try again without a delay.
    """

    code: int
    reason: str
    terminal: bool = False
    window: tuple[float, float] | None = None
    at_once: bool = False
    cause: BaseException | None = None


class Supervisor:
    """See the module's theory.

    :param changed: called after each change of :attr:`state`.
    """

    def __init__(
        self,
        *,
        url: str,
        source: TokenSource,
        data: Raw | UnsetType,
        headers: Mapping[str, str],
        version: str,
        dialer: Dialer | Opener,
        engine: Engine,
        bell: Bell,
        policy: Policy,
        clock: Clock,
        tasks: Tasks,
        new_backoff: Callable[[], Backoff],
        changed: Callable[[], None],
    ) -> None:
        self.state = State.IDLE
        self.client_id = ""
        self.connects = 0
        self.transport: str | None = None
        """Kind of the pipe that is open; None without one."""
        self.resumed = False
        """The latest connection went on with the session of the one before."""
        self.closed: ConnectionClosed | None = None
        """Why the client is closed; None while it is not."""
        self.last_failure = ""
        self.backoff = new_backoff()
        self._url = url
        self._source = source
        self._data = data
        self._headers = headers
        self._version = version
        self._dialer = dialer
        self._engine = engine
        self._bell = bell
        self._policy = policy
        self._clock = clock
        self._tasks = tasks
        self._changed = changed
        self._refresher = Refresher(source, engine, clock=clock, tasks=tasks, backoff=new_backoff())
        self._resume = ""
        self._leaving = False
        self._renewed = False  # a token was refused as expired, and a new one fetched at once
        self._wire: Wire | None = None
        self._writer: asyncio.Task[None] | None = None
        self._scope: Timeout | None = None
        self._verdict: Ending | None = None
        self._began = math.inf
        self._silence = Silence(policy.silence, clock=clock, gone=self._interrupt_silent)
        engine.on_refresh = lambda push: self._refresher.schedule(push.ttl) if push.expires else None

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on there is a client; :meth:`run` follows."""
        self._set(State.CONNECTING)

    async def run(self) -> None:
        """Connect and reconnect until it is over for good."""
        try:
            await self._run()
        except Exception as error:
            # A fault of ours. Nobody shall wait for a client that is dead.
            self.finish(codes.INTERNAL_CLOSE, f"internal error of the client: {error!r}", cause=error)
            raise

    async def _run(self) -> None:
        while True:
            self._set(State.CONNECTING)
            ending = await self._attempt()
            if self._leaving:
                return
            self.last_failure = f"{ending.reason or codes.describe_close(ending.code)} (code {ending.code})"
            if ending.terminal:
                self.finish(ending.code, ending.reason, cause=ending.cause)
                return
            logger.info("not connected: %s", self.last_failure)
            if not ending.at_once:
                self._set(State.WAITING)
                await self._wait(self.backoff.next(ending.window))

    def finish(
        self, code: int, reason: str, *, cause: BaseException | None = None, by_us: bool = False
    ) -> None:
        """It is over: everybody who waits for something is told. The first reason counts."""
        if self.closed is not None:
            return
        self.closed = ConnectionClosed(code, reason)
        self.closed.__cause__ = cause
        self._leaving = True
        self._resume = ""
        self._engine.end(self.closed, rooms_raise=not by_us)
        self._set(State.CLOSED)

    async def goodbye(self) -> None:
        """Tell the server that this client does not come back, and close the pipe; bounded in time."""
        wire, writer = self._wire, self._writer
        if wire is None:
            return
        try:
            if writer is not None:
                self._engine.bye()
                async with timeout(self._clock, self._policy.close_timeout):
                    await asyncio.wait({writer})
        except TimeoutError:
            pass  # the pipe is stuck: close it all the same
        finally:
            await wire.close(codes.WS_NORMAL, "")

    async def _wait(self, seconds: float) -> None:
        clock, engine = self._clock, self._engine
        until = clock.monotonic() + seconds
        while (now := clock.monotonic()) < until:
            engine.expire(clock.boottime())
            await self._bell.wait(clock, min(until, engine.next_expiry(now, clock.boottime())))

    def _set(self, state: State) -> None:
        if state is not self.state and self.state is not State.CLOSED:
            self.state = state
            self._changed()

    # -- one attempt ---------------------------------------------------------------------------------

    async def _attempt(self) -> Ending:
        try:
            async with timeout(self._clock, self._policy.open_timeout):
                token = await self._source.get()
        except UsageError as error:
            return Ending(codes.BAD_TOKEN, str(error), terminal=True, cause=error)
        except ConnectionClosed as error:
            return Ending(error.code, error.reason, terminal=True, cause=error)
        except TimeoutError as error:  # ours, or one of its own
            logger.warning("the token function takes too long")
            return Ending(_LOST, "the token function takes too long", cause=error)
        except Exception as error:
            logger.warning("the token function failed: %r", error)
            return Ending(_LOST, f"the token function failed: {error!r}", cause=error)
        if self._leaving:  # the token function has closed the client, as it may
            return Ending(_LOST, "closed")
        hello = Connect(
            token, self._data, "rtkit-python", self._version, rt=RtHello(v=1, resume=self._resume)
        )
        try:
            wire = await self._open(hello)
        except DialFailed as error:
            code = error.code if error.terminal else _LOST
            return Ending(code, error.reason, terminal=error.terminal, window=error.window, cause=error)
        except TimeoutError:
            return Ending(_LOST, f"no connection within {self._policy.open_timeout:g} s")
        except OSError as error:
            return Ending(_LOST, str(error) or type(error).__name__, cause=error)
        except Exception as error:
            logger.exception("the dialer failed")
            return Ending(_LOST, f"the dialer failed: {error!r}", cause=error)
        return await self._drive(wire)

    async def _open(self, hello: Connect) -> Wire:
        """A pipe; the engine waits for the answer to *hello*, and has handed it over if the pipe begins with it."""
        clock, engine, dialer = self._clock, self._engine, self._dialer
        if not isinstance(dialer, Opener):
            async with timeout(clock, self._policy.open_timeout):
                wire = await dialer.dial(self._url, self._headers)
            engine.connect(hello, self._on_connect)
            return wire
        engine.connect(hello, self._on_connect)
        frames, _ = engine.take(clock.monotonic(), clock.boottime())
        try:
            return await dialer.open(self._url, self._headers, b"\n".join(frames))
        except BaseException:
            engine.lost(clock.monotonic(), clock.boottime())
            raise

    async def _drive(self, wire: Wire) -> Ending:
        clock = self._clock
        self._wire = wire
        self.transport = getattr(wire, "transport", None)
        self._verdict = None
        self._began = math.inf
        try:
            ending = await self._read(wire)
        except asyncio.CancelledError:
            await wire.close(codes.WS_GOING_AWAY, "")
            raise
        finally:
            now = clock.monotonic()
            self._silence.stop()
            self._refresher.stop()
            if self._writer is not None:
                self._writer.cancel()
                self._writer = None
            self._wire = None
            self.transport = None
            self._engine.lost(now, clock.boottime())
        ending = self._judge(ending)
        if ending.code == codes.REPLACED:
            self._resume = ""
        if not self._leaving:
            # Nobody waits for the goodbye of a pipe that may be dead.
            _ = self._tasks.spawn(wire.close, *_goodbye(ending), name="rtkit client: close")
        if now - self._began >= self._policy.stable:
            self.backoff.reset()
        return ending

    async def _read(self, wire: Wire) -> Ending:
        clock, engine = self._clock, self._engine
        try:
            async with timeout(clock, self._policy.open_timeout) as scope:
                self._scope = scope
                self._writer = self._tasks.spawn(self._write, wire, name="rtkit client: write")
                while self._verdict is None:
                    frame = await wire.recv()
                    now = clock.monotonic()
                    self._silence.heard(now)
                    for unit in split(frame):
                        engine.feed(unit, now)
                return await self._last_word(wire, self._verdict, scope)
        except WireClosed as closed:
            return Ending(closed.code, closed.reason, terminal=codes.is_terminal(closed.code))
        except TimeoutError:
            return self._verdict or Ending(_LOST, "the server did not answer")
        except BadUnit as error:
            return Ending(_LOST, f"the server sent something that is no unit: {error.message}", cause=error)
        except Exception as error:
            logger.exception("handling what the server sent failed")
            return Ending(_LOST, f"handling what the server sent failed: {error!r}", cause=error)
        finally:
            self._scope = None

    async def _last_word(self, wire: Wire, refused: Ending, scope: Timeout) -> Ending:
        """Whoever refuses us for good also closes, with a code that says more than the error did.

        A server that does not is not waited for longer than for a goodbye.
        """
        if refused.terminal:
            scope.reschedule(self._clock.monotonic() + self._policy.close_timeout)
            try:
                while True:
                    await wire.recv()
            except WireClosed as closed:
                if codes.is_terminal(closed.code):
                    return replace(refused, code=closed.code)
        return refused

    def _judge(self, ending: Ending) -> Ending:
        """What the server said before it closed counts more than how the pipe ended."""
        farewell = self._engine.farewell
        if farewell is None or ending.terminal:
            return ending
        window = _window(farewell.rt) if farewell.rt is not None else ending.window
        return Ending(
            farewell.code, farewell.reason, terminal=codes.is_terminal(farewell.code), window=window
        )

    async def _write(self, wire: Wire) -> None:
        clock, engine = self._clock, self._engine
        try:
            while not engine.said_bye:
                frames, again = engine.take(clock.monotonic(), clock.boottime())
                for frame in frames:
                    await wire.send(frame)
                if not frames and not engine.said_bye:
                    await self._bell.wait(clock, again)
        except WireClosed:
            pass  # the reader gets to know why
        except Exception as error:
            self._interrupt(Ending(_LOST, f"writing failed: {error!r}", cause=error))
            raise

    def _interrupt(self, ending: Ending) -> None:
        """End the connection from outside of the reading task."""
        self._verdict = self._verdict or ending
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(self._clock.monotonic())

    def _interrupt_silent(self) -> None:
        silence = self._policy.silence
        reason = f"nothing heard from the server for its ping interval + {silence:g} s"
        self._interrupt(Ending(_LOST, reason))

    # -- connected -----------------------------------------------------------------------------------

    def _on_connect(self, reply: Reply, now: float) -> None:
        if reply.error is not None:
            self._verdict = self._refused(reply)
            return
        result = reply.connect or ConnectResult()
        self._began = now
        self._renewed = False
        self.connects += 1
        self.client_id = result.client
        self._resume = result.rt.resume if result.rt is not None else ""
        self.resumed = result.rt is not None and result.rt.resumed
        if self._scope is not None:
            self._scope.reschedule(None)
        self._engine.begin(result, now)
        if result.ping > 0:
            self._silence.watch(result.ping, now)
        if result.expires:
            self._refresher.schedule(result.ttl)
        self._set(State.CONNECTED)

    def _refused(self, reply: Reply) -> Ending:
        assert reply.error is not None
        error = call_error(reply.error)
        code = _CLOSE_CODES.get(error.code, codes.CLOSED_FOR_GOOD)
        text = f"{error.message} (error {error.code})"
        if error.code in (codes.TOKEN_EXPIRED, codes.EXPIRED):
            if not self._source.renewable:
                text += "; pass token= an async function that gets a new one"
                return Ending(code, text, terminal=True, cause=error)
            at_once, self._renewed = not self._renewed, True
            return Ending(code, text, at_once=at_once, window=window_of(error), cause=error)
        if error.temporary:
            return Ending(_LOST, text, window=window_of(error), cause=error)
        return Ending(code, text, terminal=True, cause=error)

    def __repr__(self) -> str:
        return f"<Supervisor {self.state}>"


def _window(window: Window) -> tuple[float, float] | None:
    low = max(0.0, window.min)
    high = max(low, window.max)
    return (low, high) if high < math.inf else None


def _goodbye(ending: Ending) -> tuple[int, str]:
    """What to close our end with. Not 1000: that would say we do not come back."""
    if ending.terminal:
        return codes.WS_NORMAL, ""
    return codes.CLOSED_BY_SERVER, "reconnecting"
