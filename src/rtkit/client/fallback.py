"""Which kind of pipe to use, where not every kind gets through (T7).

The kinds have an order. One that *fails* gives way to the next at once, within the same attempt::

    try it ──works──► use it                      fails: cannot be opened in a way that says "not this kind here";
      │                                                  or says nothing for 3 s after it was opened;
     fails                                               or was cut within 10 s of opening, three times in a row
      ▼
    GET ready ──no answer──► the network is away: back off, the same kind again
      │  ├──429, 5xx────────► the server has no room now, or is away: come back when it says, the same kind again
      │  ├──204, Retry-After─► it is there, and so is a crowd: likewise
      │  ├──204, late────────► it is the server that is slow: back off, the same kind again
      │  └──anything else───► no hub is there: what the first try said counts
      ▼ 204
    the next kind; after the last one: back off, and begin with the first

What the server says about *us*, that a token is bad or a user not welcome, is a verdict and no failure. A choice that
is not the first of the order is kept for ten minutes; then the next reconnection begins with the first again. A
connection that works is never given up for a better one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, final

from .. import codes
from ..clock import Clock
from ..primitives.clocks import LoopClock, timeout
from .http import Answer, HttpMaker
from .httpwire import LOST
from .options import without_secrets
from .poll import ask_ready
from .refusals import retry_window
from .transport import Dialer, DialFailed, Opener, Wire, WireClosed

__all__ = ["FallbackDialer", "Ready", "http_ready"]

logger: Final = logging.getLogger("rtkit.client")

#: Seconds in which a kind of pipe has to say something.
PATIENCE: Final = 3.0
#: Seconds after which a server that says it is ready is slow, rather than the kind of pipe unusable.
_SLOW: Final = 1.0
#: Seconds a choice is kept.
_KEPT: Final = 600.0
#: A pipe that was cut sooner than this many seconds after it was opened was cut by something on the way, if it
#: happens so many times in a row.
_SHORT: Final = 10.0
_CUTS: Final = 3


class Ready(Protocol):
    """Asks a hub whether it takes connections."""

    async def __call__(self, url: str, headers: Mapping[str, str]) -> Answer:
        """The answer to ``GET ready``.

        Errors: :exc:`DialFailed` when there is none.
        """
        ...


def http_ready(make_http: HttpMaker, *, clock: Clock, patience: float = PATIENCE) -> Ready:
    """Asks over HTTP, *patience* seconds at the most."""

    async def ready(url: str, headers: Mapping[str, str]) -> Answer:
        http = make_http(url, headers)
        try:
            return await ask_ready(http, url, clock=clock, patience=patience)
        finally:
            await http.aclose()

    return ready


@dataclass(slots=True)
class _Kind:
    name: str
    dialer: Dialer | Opener
    cuts: int = 0


@final
class FallbackDialer:
    """Opens the first kind of pipe that works; an :class:`~rtkit.client.transport.Opener`.

    It remembers what works, for the client it belongs to.

    :param kinds: names and what opens them, in order.
    :param ready: asks whether the server is there; None where nothing can ask, and then there is no falling back.
    :param hint: what to do about that, for people.
    :param patience: seconds a kind of pipe may say nothing; without *ready*, seconds it may take to be dialled.
    :param clock: measures.
    :raises ValueError: for no kinds.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[str, Dialer | Opener]],
        *,
        ready: Ready | None,
        hint: str = "",
        patience: float = PATIENCE,
        clock: Clock | None = None,
    ) -> None:
        if not kinds:
            raise ValueError("at least one transport is needed")
        self._kinds = [_Kind(name, dialer) for name, dialer in kinds]
        self._ready = ready
        self._hint = hint
        self._patience = patience
        self._clock: Clock = clock or LoopClock()
        self._choice = 0
        self._kept_until = 0.0

    @property
    def choice(self) -> str:
        """The kind that is tried first now."""
        return self._kinds[self._first()].name

    async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> Wire:
        """See :meth:`Opener.open`."""
        if self._ready is None:
            return await self._open_only(url, headers, hello)
        problems: list[DialFailed] = []
        for index in range(self._first(), len(self._kinds)):
            kind = self._kinds[index]
            try:
                return await self._try(kind, url, headers, hello)
            except DialFailed as failed:
                if not failed.unusable:
                    raise
                problem = failed
            except OSError as error:
                problem = DialFailed(str(error) or type(error).__name__)
            problems.append(problem)
            logger.info("%s does not work: %s", kind.name, problem.reason)
            # Before the last one is given up too: if the network is away, the choice was not wrong.
            await self._ask(url, headers, problem)
            self._choose(index + 1)
        self._forget()
        reasons = "; ".join(problem.reason for problem in problems)
        windows = [problem.window for problem in problems if problem.window is not None]
        raise DialFailed(
            f"{without_secrets(url)}: the server is there, but no transport works: {reasons}",
            window=windows[0] if windows else None,
        )

    # -- inside --------------------------------------------------------------------------------------

    async def _open_only(self, url: str, headers: Mapping[str, str], hello: bytes) -> Wire:
        try:
            return await self._open_as_it_is(url, headers, hello)
        except DialFailed as failed:
            if not failed.unusable or not self._hint:
                raise
            raise DialFailed(
                f"{failed.reason}; {self._hint}",
                terminal=failed.terminal,
                code=failed.code,
                window=failed.window,
                unusable=True,
            ) from failed

    async def _open_as_it_is(self, url: str, headers: Mapping[str, str], hello: bytes) -> Wire:
        dialer = self._kinds[0].dialer
        if isinstance(dialer, Opener):
            return await dialer.open(url, headers, hello)
        async with timeout(self._clock, self._patience):
            wire = await dialer.dial(url, headers)
        try:
            await wire.send(hello)
        except WireClosed:
            pass  # whoever receives gets to know why
        except BaseException:
            await _drop(wire, self._clock)
            raise
        return wire

    async def _try(self, kind: _Kind, url: str, headers: Mapping[str, str], hello: bytes) -> Wire:
        if kind.cuts >= _CUTS:
            kind.cuts = 0  # is the server to blame, or the network, this kind has to be tried again
            raise DialFailed(
                f"{kind.name} was cut within {_SHORT:g} s, {_CUTS} times in a row", unusable=True
            )
        if isinstance(kind.dialer, Opener):
            wire = await kind.dialer.open(url, headers, hello)
            return _Watched(wire, kind, self._clock)
        return await self._try_dialing(kind, kind.dialer, url, headers, hello)

    async def _try_dialing(
        self, kind: _Kind, dialer: Dialer, url: str, headers: Mapping[str, str], hello: bytes
    ) -> Wire:
        """A pipe that opens without a word is proven by the answer to the first frame only."""
        wire: Wire | None = None
        proven = False
        try:
            async with timeout(self._clock, self._patience) as scope:
                wire = await dialer.dial(url, headers)
                scope.reschedule(self._clock.monotonic() + self._patience)
                watched = _Watched(wire, kind, self._clock)
                with suppress(WireClosed):  # what the server has said before it closed tells why
                    await watched.send(hello)
                await watched.look()
                proven = True
                return watched
        except TimeoutError:
            what = "said nothing" if wire is not None else "could not be opened"
            raise DialFailed(
                f"{without_secrets(url)}: the {kind.name} {what} within {self._patience:g} s", unusable=True
            ) from None
        except WireClosed as closed:
            raise DialFailed(f"{without_secrets(url)}: {closed}") from None
        finally:
            if wire is not None and not proven:
                await _drop(wire, self._clock)

    async def _ask(self, url: str, headers: Mapping[str, str], problem: DialFailed) -> None:
        """Make sure that a hub is there, and that it was this kind of pipe that failed with *problem*.

        :raises DialFailed: when nobody answers, or the hub takes nobody now; *problem* itself when no hub answers.
        """
        assert self._ready is not None
        asked = self._clock.monotonic()
        try:
            answer = await self._ready(url, headers)
        except DialFailed as failed:
            if failed.terminal:
                raise
            raise DialFailed(f"{problem.reason}; and {failed.reason}") from failed
        if answer.status == 429 or answer.status >= 500:
            window = retry_window(answer.headers.get("retry-after"), self._clock)
            raise DialFailed(
                f"{without_secrets(url)}: the server takes no connections now (HTTP {answer.status})",
                window=window,
            )
        if answer.status != 204:
            raise problem
        # In a storm no kind is fast, and a poorer one would be kept long after it.
        if window := retry_window(answer.headers.get("retry-after"), self._clock):
            raise DialFailed(f"{problem.reason}; the server has a crowd of newcomers", window=window)
        if self._clock.monotonic() - asked > _SLOW:
            raise DialFailed(f"{problem.reason}; the server is slow")

    def _first(self) -> int:
        if self._choice and self._clock.boottime() >= self._kept_until:
            self._forget()
        return self._choice

    def _choose(self, index: int) -> None:
        if index < len(self._kinds):
            self._choice = index
            self._kept_until = self._clock.boottime() + _KEPT

    def _forget(self) -> None:
        self._choice = 0
        for kind in self._kinds:
            kind.cuts = 0

    def __repr__(self) -> str:
        return f"<FallbackDialer {' '.join(kind.name for kind in self._kinds)}, now {self.choice}>"


async def _drop(wire: Wire, clock: Clock) -> None:
    """Let go of a pipe that may be dead: nobody waits for its goodbye. Not 1000: the session may be resumed."""
    try:
        async with timeout(clock, 0.0):
            await wire.close(codes.WS_GOING_AWAY, "")
    except TimeoutError:
        pass


@final
class _Watched:
    """A wire whose end is looked at: was it cut, and how soon?"""

    def __init__(self, wire: Wire, kind: _Kind, clock: Clock) -> None:
        self.transport = kind.name
        self._wire = wire
        self._kind = kind
        self._clock = clock
        self._opened = clock.monotonic()
        self._ended = False
        self._seen: deque[bytes] = deque()

    async def look(self) -> None:
        """Wait until there is something to receive: a frame, or a close code of the server's."""
        try:
            self._seen.append(await self.recv())
        except WireClosed as closed:
            if closed.code == LOST:
                raise

    async def send(self, frame: bytes) -> None:
        await self._wire.send(frame)

    async def recv(self) -> bytes:
        if self._seen:
            return self._seen.popleft()
        try:
            return await self._wire.recv()
        except WireClosed as closed:
            if not self._ended:
                self._ended = True
                cut = closed.code == LOST and self._clock.monotonic() - self._opened < _SHORT
                self._kind.cuts = self._kind.cuts + 1 if cut else 0
            raise

    async def close(self, code: int, reason: str) -> None:
        self._ended = True
        await self._wire.close(code, reason)

    def __repr__(self) -> str:
        return f"<{self._wire!r}, {self._kind.cuts} cuts before>"
