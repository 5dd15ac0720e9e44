"""A real uvicorn on the test's own event loop: no thread, no process, no signal handler, no sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

__all__ = ["serve_asgi"]


@contextlib.asynccontextmanager
async def serve_asgi(
    app: Any, *, grace: float = 1.0, proto: int = socket.IPPROTO_TCP, **config: Any
) -> AsyncIterator[int]:
    """Serve `app` on a free port of 127.0.0.1 and yield the port.

    Leaving the block closes WebSockets with 1012, gives open responses `grace` seconds to end, cancels the
    rest, runs the lifespan shutdown and leaves neither task nor socket behind.

    :param app: an ASGI application; its lifespan runs if it has one
    :param proto: of the socket; 0 is what uvicorn makes for several workers, and asyncio leaves the kernel's delay on
    :param config: further options of `uvicorn.Config`, for example ``ws=`` or ``lifespan="on"``
    :raises RuntimeError: the application's lifespan startup failed
    """
    # timeout_graceful_shutdown is annotated as int, but fractions of a second work: asyncio.wait_for gets it.
    options = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": grace, **config}
    server = _Server(uvicorn.Config(app, **options))
    sock = socket.socket(proto=proto)
    try:
        sock.bind(("127.0.0.1", 0))
        running = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
        try:
            # Whichever comes first: the server listens, or its start-up failed.
            listening = asyncio.create_task(server.listening.wait())
            await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
            if running.done():
                await running
            yield sock.getsockname()[1]
        finally:
            server.leave.set()
            await running
            await server.clear()
    finally:
        sock.close()


class _Server(uvicorn.Server):
    """uvicorn without its habits that belong to a process: signals, sys.exit, a ten-a-second poll."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Ctrl-C belongs to pytest

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        except SystemExit as exc:  # would tear down the event loop, and pytest with it
            raise RuntimeError("the application's lifespan startup failed; its traceback is logged") from exc
        self.listening.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # fills in the default response headers
        await self.leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        # Nobody is here to be waited for. uvicorn would give them a tenth of a second all the same.
        for server in self.servers:
            server.close()
            await server.wait_closed()
        for sock in sockets or []:
            sock.close()
        await self.lifespan.shutdown()

    async def clear(self) -> None:
        """Wait for tasks that shutdown cancelled, then drop connections whose response never ended."""
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # transports report connection_lost in the next turn
