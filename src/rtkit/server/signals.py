"""Being told to end: SIGTERM and SIGINT, while a server runs (L2).

- The first signal asks for a drain, the second ends it: the task is cancelled.
- Afterwards the handlers that were there before are back, and what came is handed on to them: a handler that the
  program had installed hears of the signal, after the drain, or at once with the second one.
- Where there was no handler but the system's or Python's own, the first signal is not handed on: it has done what it
  was sent for, the program may still have things to close after the server, and to be killed or to get a
  ``KeyboardInterrupt`` then would be no service. The second is: it asked for just that.

A signal that the process was told to ignore stays ignored: a shell does that to SIGINT for what runs in its background.
Handlers can be installed in the main thread only. Elsewhere nothing is caught.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, final

__all__ = ["Signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_Handler = Callable[[int, FrameType | None], Any] | int | None


@final
class Signals:
    """A context manager that catches the signals, to be entered in the task that they shall end.

    :param at_once: called at the second signal, before the task is cancelled.
    """

    def __init__(self, at_once: Callable[[], object]) -> None:
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._told = asyncio.Event()
        self._came: list[int] = []
        self._before: dict[int, _Handler] = {}

    async def wait(self) -> None:
        """Wait for the first signal."""
        await self._told.wait()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        for number, before in self._before.items():
            # None: it was not installed by Python, and cannot be by us.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        if not self._came:
            return False
        twice = len(self._came) > 1
        if twice or not _is_default(self._before[self._came[0]]):
            signal.raise_signal(self._came[-1])
        ours = twice and exc_type is not None and issubclass(exc_type, asyncio.CancelledError)
        # What the second signal was handed on to may let us live; then the cancellation was ours alone.
        return ours and self._task is not None and self._task.uncancel() == 0

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # In the main thread, between two instructions of whatever runs there.
        self._loop.call_soon_threadsafe(self._hear, number)

    def _hear(self, number: int) -> None:
        self._came.append(number)
        self._told.set()
        if len(self._came) == 2:
            self._at_once()
            if self._task is not None:
                self._task.cancel()


def _is_default(handler: _Handler) -> bool:
    """Whether nobody but the system, Python or ``asyncio.run`` has installed it."""
    if handler is signal.default_int_handler or not callable(handler):
        return True
    owner = getattr(getattr(handler, "func", None), "__self__", None)
    return isinstance(owner, asyncio.Runner)
