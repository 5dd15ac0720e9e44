"""The broker as the hub sees it: the same, with calls timed and each failure counted (M1)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from ..brokers import Broker, Conflict, Repeated
from ..brokers.base import Sink
from ..clock import Clock
from ..errors import Unavailable
from ..metrics import Counters, Timings

__all__ = ["timed"]

#: The calls of the contracts, by the kind of work they are. Opening and closing are no round trips.
_OPERATIONS: Final = {
    "publish": ("publish",),
    "subscribe": ("subscribe", "unsubscribe"),
    "append": ("append", "extend", "clear"),
    "read": ("read",),
    "state": ("put", "renew", "remove", "entries", "revise", "revision", "positions"),
}


class _Timed:
    """What all timed brokers have in common. All that is no call of a contract is the inner broker's own."""

    def __init__(self, inner: Broker, clock: Clock, timings: Timings, counters: Counters) -> None:
        self._inner = inner
        self._now = clock.monotonic
        self._due = timings.calls.due
        self._timings = timings.broker
        self._counters = counters

    # Whether it keeps what is asked of its class, from Python 3.12 on: so no method may come by __getattr__ alone.
    async def open(self, sink: Sink) -> None:
        """See :meth:`.Broker.open`."""
        await self._inner.open(sink)

    async def aclose(self) -> None:
        """See :meth:`.Broker.aclose`."""
        await self._inner.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return repr(self._inner)


def _method(name: str, operation: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(self: _Timed, *args: Any, **options: Any) -> Any:
        began = self._now() if self._due() else None
        try:
            found = await getattr(self._inner, name)(*args, **options)
        except Unavailable:
            # It took as long as somebody's patience; that says nothing about the broker.
            self._counters.add("broker_errors", operation)
            raise
        except (Conflict, Repeated):  # an answer, too
            if began is not None:
                self._timings[operation].observe(self._now() - began)
            raise
        if began is not None:
            self._timings[operation].observe(self._now() - began)
        return found

    return call


def timed(broker: Broker, clock: Clock, timings: Timings, counters: Counters) -> Broker:
    """The same broker, timed. It can do what *broker* can, and bears its name."""
    calls = {
        name: _method(name, operation)
        for operation, names in _OPERATIONS.items()
        for name in names
        if hasattr(broker, name)
    }
    kind = type(type(broker).__name__, (_Timed,), calls)
    return cast("Broker", kind(broker, clock, timings, counters))
