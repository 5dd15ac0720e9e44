"""A hub in front of any ASGI application, below a path of its own: ``hub.wrap(app, "/rt")``.

For frameworks that cannot mount an application, or cut off its WebSockets: Django, Quart. What lies below the
prefix is the hub's, and nothing else is looked at.

The lifespan is both's. The application starts first and ends last, so that the hub's handlers may rely on what it
has opened (a pool, a cache) for as long as clients are connected. An application that does not know the lifespan
protocol, and says so by raising or returning, as Django's does, is left in peace.

::

    startup      application.startup ──▶ hub starts ──▶ complete
    shutdown     hub closes ──▶ application.shutdown ──▶ complete
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, final

from ..errors import UsageError
from ..primitives.tasks import Tasks

__all__ = ["AsgiApp", "Wrapped", "check_prefix"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_log: Final = logging.getLogger("rtkit.hosting")

#: Unreserved characters of RFC 3986, section 2.3: they look the same in a URL, in a scope, and in a proxy's rules.
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def check_prefix(prefix: str) -> str:
    """The prefix, if a hub can be mounted there: ``/`` before each segment, and no other odd character.

    :raises UsageError: if not.
    """
    try:
        good = _PREFIX.fullmatch(prefix) and not {".", ".."} & set(prefix.split("/"))
    except TypeError:
        good = False
    if not good:
        raise UsageError(
            f"a hub is mounted at a prefix such as '/rt': a slash before each segment and none behind, of letters, "
            f"digits and -._~ only, not {prefix!r}"
        )
    return prefix


@final
class Wrapped:
    """An ASGI application that is a hub below a prefix, and another application elsewhere.

    :param app: what is elsewhere.
    :param hub: an ASGI application.
    :param prefix: such as ``/rt``.
    :param lifespan: makes the context manager that runs the hub.
    :raises UsageError: for a prefix with odd characters.
    """

    __slots__ = ("_app", "_hub", "_lifespan", "_prefix")

    def __init__(
        self,
        app: AsgiApp,
        hub: AsgiApp,
        prefix: str,
        lifespan: Callable[[], AbstractAsyncContextManager[object]],
    ) -> None:
        if not callable(app):
            raise UsageError(f"wrap() takes an ASGI application, not {app!r:.80}")
        self._app = app
        self._hub = hub
        self._prefix = check_prefix(prefix)
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
            return
        path, root = str(scope.get("path") or ""), str(scope.get("root_path") or "").rstrip("/")
        if root and (path == root or path.startswith(f"{root}/")):
            path = path[len(root) :]
        else:
            # Servers are not of one mind on whether the path begins with the root path.
            root = ""
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            # A copy: the server's own scope may be looked at by others once we are done.
            await self._hub({**scope, "root_path": root + self._prefix}, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        async with Tasks(name="rtkit.wrap") as tasks:
            app = _Life(self._app, scope, tasks)
            try:
                await app.pass_on("startup")
                try:
                    async with self._lifespan():
                        await send({"type": "lifespan.startup.complete"})
                        phase = "shutdown"
                        await receive()
                finally:
                    await app.pass_on("shutdown")
            except _Failed as failed:
                await send({"type": f"lifespan.{phase}.failed", "message": str(failed)})
            except Exception as exc:
                _log.exception("%s failed", phase)
                message = f"rtkit: {type(exc).__name__}: {exc}"
                await send({"type": f"lifespan.{phase}.failed", "message": message})
            else:
                await send({"type": "lifespan.shutdown.complete"})

    def __repr__(self) -> str:
        return f"<Wrapped {self._prefix}>"


class _Failed(Exception):
    """The application said that its own startup or shutdown has failed."""


class _Life:
    """The lifespan of the application within: we are its server."""

    def __init__(self, app: AsgiApp, scope: Scope, tasks: Tasks) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None
        self._error: Exception | None = None
        # A task of its own for all of it: a cancel scope is left by the task that entered it.
        self._running = tasks.spawn(self._run, app, scope, name="rtkit: lifespan of the wrapped application")

    async def _run(self, app: AsgiApp, scope: Scope) -> None:
        try:
            await app(scope, self._messages.get, self._send)
        except Exception as exc:
            self._error = exc

    async def _send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    async def pass_on(self, phase: str) -> None:
        """Have the application start up, or shut down.

        :raises _Failed: when it says that this failed.
        :raises Exception: what it raised during shutdown. During startup that means that it does not know lifespan.
        """
        if self._running.done():
            return
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": f"lifespan.{phase}"})
        await asyncio.wait({self._running, answer}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            message = answer.result()
            if message["type"] == f"lifespan.{phase}.failed":
                raise _Failed(str(message.get("message") or f"the application's {phase} failed"))
        elif self._error is not None:
            if phase == "shutdown":
                raise self._error
            _log.info("the wrapped application does not know the lifespan protocol: %r", self._error)
