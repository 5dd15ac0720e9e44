"""For code without an event loop: a Celery task, a Django view, a management command, a script (B8).

The theory
==========
A :class:`Publisher` has a thread of its own with an event loop in it (the *portal*), where an asynchronous
:class:`rtkit.Publisher` lives. Both are made by the first publication, not before: at import time there is nothing.

*Threads.* Any number of them publish at once; each waits for its own publication only. Work is handed over under a
lock, so that it comes either before the order to end, and is waited for, or after it, and gets a new portal.

*Forks.* In a child there is no such thread, and what it had open is the parent's: sockets, and on Linux the list of
what the loop waits for too. So the child forgets the portal, untouched and never finalized, has a lock of its own,
since the old one may have been held, and opens a connection with its first publication. The parent notices nothing.

*The end of the process.* The thread is a daemon, so nobody waits for it; before that, an exit handler closes every
publisher that is still open. A publisher that is garbage ends its thread as well.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Final, TypeVar, TypeVarTuple

from .brokers import Broker, MemoryBroker
from .clock import Clock
from .errors import NotRunning, PublishUnknown, UsageError, WrongProcess
from .messages import Published
from .publisher import Declarations
from .publisher import Publisher as AsyncPublisher

__all__ = ["Publisher"]

logger = logging.getLogger("rtkit.sync")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Seconds for which what is being published may go on when the publisher is closed; and for which closing the
#: connection may take.
GRACE: Final = 5.0


class Publisher:
    """:class:`rtkit.Publisher` without ``await``::

        publisher = Publisher("redis://…", router)  # at import time: nothing is opened yet

        def export_is_ready(user: str) -> None:
            publisher.publish(f"user:{user}", Notice("your export is ready"))

    The connection is opened by the first publication, or by ``with``, and again by the first one after :meth:`close`.
    It is this process's: after a fork, the child opens its own. May be used by many threads at once. What is still
    open when the interpreter ends is closed then.

    :param broker: a URL, or a broker of one's own making; that one cannot be used in a child that is forked after
        the first publication. Not ``memory://``, whose hubs are in one event loop of one process: nobody would hear it.
    :param router: the declarations.
    :param timeout: seconds that a publication may take, with opening the connection if there is none; None for as long
        as the broker takes.
    :param clock: for time stamps and time limits; the system's unless given. It is used in another thread.
    :raises UsageError: for ``memory://``, a URL whose broker is not installed or refuses it, and a time limit that is
        none.
    """

    def __init__(
        self,
        broker: str | Broker,
        router: Declarations,
        *,
        timeout: float | None = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._portal: _Portal | None = None  # first, for the sake of __del__
        self._lost = 0  # the process in which it was opened, when this is a child of that and can do nothing
        if isinstance(broker, MemoryBroker) or (isinstance(broker, str) and _is_memory(broker)):
            raise UsageError(
                "memory:// lives in the event loop of one process, where a publisher without an event loop reaches "
                'nobody. Give all of them a broker such as "redis://host:6379/0"; from a thread of that process, call '
                "anyio.from_thread.run(hub.publish, room, message)"
            )
        self._make: Callable[[], AsyncPublisher] = lambda: AsyncPublisher(
            broker, router, timeout=timeout, clock=clock
        )
        # Finds what is wrong with the URL, and says what is wrong with messages. It is never opened.
        self._model = self._make()
        self._owned = isinstance(broker, str)
        # A signal handler may publish while its own thread is in here.
        self._lock = threading.RLock()
        _publishers.add(self)

    def publish(self, room: str, message: object, *, key: str | None = None) -> Published:
        """Publish one message; returns when it is stored, or on its way.

        Interrupted (``KeyboardInterrupt``), it may have been stored, like everything that ends with
        ``PublishUnknown``. The publisher goes on working.

        :param key: makes it safe to repeat within the broker's dedupe window (H7).
        :raises UnknownRoom: for a room nobody declared.
        :raises InvalidMessage: for a type the room does not publish, or a message too large: of more than 1 MiB,
            unless the room has a bound of its own.
        :raises BrokerUnavailable: nothing was stored.
        :raises PublishUnknown: it may have been stored, as the time was over, for example; repeat with the same key.
        :raises UsageError: in a thread whose event loop is running, which it would block.
        :raises WrongProcess: when it was opened before a fork, and the broker is not given as a URL.
        :raises NotRunning: when the interpreter is ending, so that no thread can be started.
        """
        _refuse_event_loop("publish")
        return self._run(AsyncPublisher._publish, room, *self._model._encoded(room, message), key)

    def close(self) -> None:
        """Let go of the connection and the thread; idempotent.

        What other threads are publishing is waited for, for 5 s; then it fails with ``PublishUnknown``. In a thread
        whose event loop is running it blocks that loop meanwhile.
        """
        with self._lock:
            portal, self._portal = self._portal, None
            if portal is not None:
                portal.end()
                portal.join()

    def _run(self, func: Callable[[AsyncPublisher, *Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """Have something done in the portal, and wait for it."""
        with self._lock:
            future = self._entered().submit(func, *args)
        try:
            return future.result()
        except CancelledError:
            raise PublishUnknown("the publisher was closed while this was being published") from None
        except BaseException:
            future.cancel()  # that is an interrupt: nobody waits for it any more
            raise

    def _entered(self) -> _Portal:
        if self._lost:
            raise WrongProcess(
                f"this publisher was opened in process {self._lost}, which then forked: give it a URL, so that each "
                f"process opens its own connection, or close it before the fork"
            )
        if self._portal is None or not self._portal.works():
            made = _Portal(self._make())
            made.start()
            if self._portal is not None and self._portal.works():
                made.end()  # a signal handler was here meanwhile
            else:
                self._portal = made
        return self._portal

    def forget_parent(self) -> None:
        """In a child, right after the fork: for this module."""
        self._lock = threading.RLock()
        portal, self._portal = self._portal, None
        if portal is not None:
            _buried.append(portal)
            if not self._owned:
                self._lost = portal.pid

    def __enter__(self) -> Publisher:
        _refuse_event_loop("with")
        self._run(AsyncPublisher.__aenter__)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        portal = self._portal
        if portal is not None:
            portal.end()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        portal = self._portal
        return f"<rtkit.sync.Publisher {'closed' if portal is None else 'open'} on {self._model._broker!r}>"


class _Portal:
    """A thread, the event loop that runs in it, and the publisher that lives there. Used once."""

    def __init__(self, publisher: AsyncPublisher) -> None:
        self.pid = os.getpid()
        self._publisher = publisher
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._busy: set[asyncio.Task[Any]] = set()
        # A daemon: the interpreter would wait for any other before it calls exit handlers, that is, for ever.
        self._thread = threading.Thread(target=self._main, name="rtkit-publisher", daemon=True)

    def start(self) -> None:
        """Start the thread.

        :raises NotRunning: when there can be none any more.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise NotRunning(f"the publisher cannot have a thread: {error}") from error
        _portals.add(self)

    def works(self) -> bool:
        """Whether something can be done here."""
        return self._thread.is_alive() and not self._loop.is_closed()

    def submit(self, func: Callable[[AsyncPublisher, *Ts], Coroutine[Any, Any, T]], *args: *Ts) -> Future[T]:
        """Have it done; never after :meth:`end`. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(self._tracked(func, *args), self._loop)

    def end(self) -> None:
        """Finish what was submitted, and end. Does not wait."""
        try:
            self._loop.call_soon_threadsafe(self._ending.set)
        except RuntimeError:
            pass  # it has ended by itself

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(3 * GRACE)
        if self._thread.is_alive():
            logger.warning("%s has not ended within %g s; it is left", self._thread.name, 3 * GRACE)

    async def _tracked(self, func: Callable[[AsyncPublisher, *Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            return await func(self._publisher, *args)
        finally:
            self._busy.discard(task)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except (
            BaseException
        ):  # SystemExit in a broker: it ends the event loop, and must not end this silently
            logger.exception("the thread of a publisher has ended; the next publication starts another")

    async def _live(self) -> None:
        try:
            await self._ending.wait()
            await self._finish()
        finally:
            await self._close()

    async def _finish(self) -> None:
        # What was submitted before the end has become a task by now, but may not have had its first turn.
        await asyncio.sleep(0)
        if self._busy:
            _, late = await asyncio.wait(tuple(self._busy), timeout=GRACE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=GRACE)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(GRACE):
                await self._publisher.aclose()
        except Exception as error:
            logger.warning("closing the connection failed: %s", str(error) or type(error).__name__)


def _is_memory(url: str) -> bool:
    return url.partition(":")[0].lower() == "memory"


def _refuse_event_loop(what: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        f"{what} of rtkit.sync.Publisher would block the event loop that runs in this thread. Await "
        f"rtkit.Publisher there, or call it in a thread: anyio.to_thread.run_sync(publisher.publish, room, message)"
    )


_publishers: Final[weakref.WeakSet[Publisher]] = weakref.WeakSet()
_portals: Final[weakref.WeakSet[_Portal]] = weakref.WeakSet()
#: What was open when this process was forked off. CPython never lets go of what a thread that is gone had on its stack;
#: this does not rely on it.
_buried: Final[list[_Portal]] = []


def _forget_parent() -> None:
    _portals.clear()
    for publisher in tuple(_publishers):
        publisher.forget_parent()


def _close_all() -> None:
    """The interpreter is ending, and threads are still running."""
    for publisher in tuple(_publishers):
        publisher.close()
    for portal in tuple(_portals):  # of publishers that are garbage
        portal.join()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_close_all)
