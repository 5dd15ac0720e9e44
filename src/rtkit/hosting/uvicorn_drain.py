"""A SIGTERM to uvicorn drains the hub first, and is handed on when that is done (L2).

uvicorn tells an application that it ends when every response has ended: a stream or a waiting poll would keep it for
ever, WebSockets are sent away without a hint when to come back, and until then new clients find a server that looks
well. Nothing in ASGI helps, but the signal does::

    signal ──▶ hub drains: clients are told when to come back, ``ready`` says 503
                  │ done, or at its deadline; or a second signal, at which everybody left is sent away at once
                  ▼
               uvicorn's own handler, with all that came ──▶ its shutdown ──▶ lifespan ──▶ the hub closes

Nothing is done but where the handler of the signal is a uvicorn server's, which also means that it runs in the main
thread, and puts back what was there before when it ends. Several hubs of one server share one handler, and drain at the
same time. Whoever puts a handler of theirs over ours calls ours from there, or goes without. A server that ends for
another reason (``--limit-max-requests``, gunicorn's worker class, which has handlers of its own) waits for open
responses as long as ``timeout_graceful_shutdown`` says.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final, final

from ..primitives.tasks import Tasks

__all__ = ["Drainer", "drain_before_exit"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_log: Final = logging.getLogger("rtkit.hosting")


#: :meth:`.Hub.drain`, which is bounded by itself; called again with ``spread`` and ``timeout`` it hurries.
_Drain = Callable[..., Awaitable[None]]


def drain_before_exit(drain: _Drain) -> None:
    """Have a hub drained before the uvicorn that runs this loop ends; nothing where there is none. Idempotent.

    :param drain: takes ``spread`` and ``timeout``, as :meth:`.Hub.drain` does.
    """
    handler: Any = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, Drainer):
        handler.add(drain)
    elif _is_uvicorns(handler) and threading.current_thread() is threading.main_thread():
        drainer = Drainer({number: signal.getsignal(number) for number in _SIGNALS})
        drainer.add(drain)
        for number in _SIGNALS:
            if _is_uvicorns(signal.getsignal(number)):
                signal.signal(number, drainer)


def _is_uvicorns(handler: Any) -> bool:
    module = sys.modules.get("uvicorn.server")
    return module is not None and isinstance(getattr(handler, "__self__", None), module.Server)


@final
class Drainer:
    """A signal handler that drains first.

    :param before: the handlers to hand signals on to.
    """

    def __init__(self, before: dict[int, Any]) -> None:
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._drains: dict[_Drain, None] = {}
        self._came: list[int] = []
        self._handed_on = False
        self._tasks = Tasks(name="drain")

    def add(self, drain: _Drain) -> None:
        """Drain this one, too. Of one server and one loop, since handlers are the process's."""
        self._drains[drain] = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: in the main thread, between two instructions of whatever runs there."""
        if not self._handed_on:
            try:
                self._loop.call_soon_threadsafe(self._hear, number)
            except RuntimeError:
                self._handed_on = True  # the loop is closed
        if self._handed_on:
            self._before[number](number, frame)

    def _hear(self, number: int) -> None:
        self._came.append(number)
        if self._handed_on:
            self._hand_on()
        elif len(self._came) > 1:
            _ = self._tasks.spawn(self._hurry)
            self._hand_on()
        else:
            _log.info("draining before the server ends; a second signal ends it at once")
            _ = self._tasks.spawn(self._drain_all)

    async def _drain_all(self) -> None:
        try:
            # Each is bounded by itself, and failing is no reason to stay.
            found = await asyncio.gather(*(drain() for drain in self._drains), return_exceptions=True)
        finally:
            self._hand_on()
        for error in found:
            if isinstance(error, Exception):
                _log.error("draining failed", exc_info=error)

    async def _hurry(self) -> None:
        """Streams that are still open would keep the server for as long as the drain has planned."""
        hurried = (drain(spread=0.0, timeout=0.0) for drain in self._drains)
        await asyncio.gather(*hurried, return_exceptions=True)  # whoever drains is told of what fails

    def _hand_on(self) -> None:
        self._handed_on = True
        came, self._came = self._came, []
        for number in came:
            self._before[number](number, None)

    def __repr__(self) -> str:
        return f"<Drainer of {len(self._drains)}{', drained' if self._handed_on else ''}>"
