"""What is done over a line until it is lost, and the notice that nothing comes back over it.

Links and ears (:mod:`.links`, :mod:`.ears`) have one line after the other, and do their own things over it. That these
end together, whatever ends them, and that a line is given up when it is silent although something was asked, is the
same for both, and stands here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

from ...clock import Clock, Timer
from .lines import Lost

__all__ = ["LATE", "Shift"]

_log: Final = logging.getLogger("rtkit.brokers.redis")

#: A timer that comes this late, in seconds, says that our own loop stood still: then what has arrived meanwhile is
#: looked at before anybody is declared dead.
LATE: Final = 0.2


@final
class Shift:
    """What is done over a line; begun anew for each.

    :param patience: seconds for which nothing may come back although something was asked.
    :param waits_since: since when the oldest that was asked waits for its answer, or for the next answer, if others
        came; None when nothing was asked.
    :param what: is done, as the log calls it.
    """

    __slots__ = ("_broken", "_clock", "_patience", "_waits_since", "_watch", "_what")

    def __init__(
        self, clock: Clock, patience: float, waits_since: Callable[[], float | None], what: str
    ) -> None:
        self._clock = clock
        self._patience = patience
        self._waits_since = waits_since
        self._what = what
        self._broken: asyncio.Future[None] | None = None
        self._watch: Timer | None = None

    async def work(self, *tasks: tuple[str, Coroutine[Any, Any, None]]) -> str:
        """Do all of it until the line is lost, or :meth:`end`; returns why.

        An error of our own is logged, and ends the line like any other.

        :param tasks: their names, and what they do.
        """
        self._broken = asyncio.get_running_loop().create_future()
        why = "it was closed"
        try:
            async with asyncio.TaskGroup() as group:
                for name, task in tasks:
                    group.create_task(task, name=name)
                await self._broken
        except* Lost as lost:
            why = str(lost.exceptions[0])
        except* Exception as bug:
            _log.error("redis: %s failed on its own", self._what, exc_info=bug)
            why = "an error of our own"
        finally:
            self._broken = None
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise asyncio.CancelledError  # before Python 3.13 a group that fails just then swallows it
        return why

    def end(self, why: str) -> None:
        """The line is no good any more."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(Lost(why))

    def asked(self) -> None:
        """Something goes out that has to be answered."""
        if self._watch is None:
            self._look_at(self._clock.monotonic() + self._patience)

    def _look_at(self, due: float) -> None:
        self._watch = self._clock.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        """Give the line up if it is silent."""
        self._watch = None
        since = self._waits_since()
        if since is None:
            return
        now = self._clock.monotonic()
        if now < since + self._patience:
            self._look_at(since + self._patience)
        elif now - due > LATE:
            self._look_at(now + LATE)
        else:
            self.end(f"no answer within {self._patience:g} s")

    def __repr__(self) -> str:
        return f"<Shift: {self._what}, {'off' if self._broken is None else 'on'}>"
