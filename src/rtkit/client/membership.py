"""One room of a client, for as long as the client wants to be in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from ..errors import NotRunning
from ..primitives.backoff import Backoff
from ..wire import SignalBody
from .feeds import Feed
from .roomfeatures import News
from .roomstate import Phase, RoomState

__all__ = ["Membership"]

#: Seconds without an interruption after which the next one counts as the first again.
_PEACE: Final = 20.0


def _ignore() -> None:
    pass


def _ignore_signal(body: SignalBody) -> None:
    pass


def _ignore_news(news: News) -> None:
    pass


class Membership:
    """One room, for as long as this client wants to be in it.

    :ivar bound: the application holds it; else the server put us in, and it gathers until somebody comes.
    :ivar server_side: the server puts us in by itself when we connect.
    :ivar changed: called whenever there is something new to look at in *state*.
    :ivar signalled: called with each signal.
    :ivar told: called with what is new of presence, receipts and typing.
    """

    __slots__ = (
        "__weakref__",
        "backoff",
        "bound",
        "changed",
        "disturbed_at",
        "server_side",
        "signalled",
        "state",
        "told",
    )

    def __init__(self, state: RoomState, backoff: Backoff, *, bound: bool) -> None:
        self.state = state
        self.backoff = backoff
        self.bound = bound
        self.server_side = False
        self.disturbed_at = -math.inf
        self.changed: Callable[[], None] = _ignore
        self.signalled: Callable[[SignalBody], None] = _ignore_signal
        self.told: Callable[[News], None] = _ignore_news

    @property
    def channel(self) -> str:
        """The room's name."""
        return self.state.channel

    def raise_if_over(self) -> None:
        """Raise what the room has ended with, if it has."""
        state = self.state
        if state.phase is Phase.ENDED:
            if state.error is not None:
                raise state.error.with_traceback(None)
            raise NotRunning(f"room {self.channel!r} was left")

    def end_if_over(self, feed: Feed[Any]) -> None:
        """Nothing comes to a feed any more if the room has ended."""
        if self.state.phase is Phase.ENDED:
            feed.end(self.state.error)

    def delay(self, now: float) -> float:
        """How long to stay out after an interruption."""
        calm = now - self.disturbed_at >= _PEACE
        self.disturbed_at = now
        if calm:
            self.backoff.reset()
            return 0.0
        return self.backoff.next()

    def __repr__(self) -> str:
        return f"<Membership {self.state!r}{'' if self.bound else ', unbound'}>"
