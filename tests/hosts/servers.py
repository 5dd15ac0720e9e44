"""The servers of the matrix; all but granian in this process and on the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from rtkit import Hub
from tests.support.servers import serve_asgi

__all__ = ["serve_aiohttp", "serve_granian", "serve_hypercorn", "serve_uvicorn", "serve_websockets"]


def free_port() -> int:
    """A port that was free a moment ago, for servers that do not take a socket."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def serve_hypercorn(
    app: Any, *, certificate: Path | None = None, grace: float = 0.2
) -> AsyncGenerator[int]:
    """hypercorn."""
    import hypercorn.asyncio
    from hypercorn.config import Config

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.graceful_timeout = grace
    config.errorlog = logging.getLogger("hypercorn.error")
    if certificate is not None:
        config.certfile = config.keyfile = str(certificate)
    sockets = config.create_sockets()
    [sock] = sockets.secure_sockets or sockets.insecure_sockets
    leave = asyncio.Event()
    started = asyncio.Event()

    async def until_left() -> None:
        started.set()
        await leave.wait()

    config.create_sockets = lambda: sockets  # type: ignore[method-assign]
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=until_left))
    waiting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        yield sock.getsockname()[1]
    finally:
        waiting.cancel()
        leave.set()
        with _without_words_about_cancelled_handlers():
            await serving
        sock.close()


@contextlib.contextmanager
def _without_words_about_cancelled_handlers() -> Iterator[None]:
    """Python 3.11 takes a connection's handler that was cancelled for one that has failed; 3.12 does not.

    hypercorn cancels its own when they have not ended in time.
    """

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(
            "Exception in callback StreamReaderProtocol.connection_made."
        )

    logger = logging.getLogger("asyncio")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


@contextlib.asynccontextmanager
async def serve_granian(target: str, folder: Path, *options: str) -> AsyncGenerator[int]:
    """granian, in a process of its own: embedded into ours, its threads now and then take it down with them at exit.

    :param target: as on its command line: ``module:application``.
    :param options: likewise.
    """
    port = free_port()
    command = ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--no-log", "--working-dir", str(folder), *options, target]
    # A group of its own: granian is a process with workers, and all of them have to go, also when a test fails.
    process = await asyncio.create_subprocess_exec(sys.executable, *command, start_new_session=True)
    try:
        async with asyncio.timeout(20):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)  # it does not tell when it listens
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        assert process.returncode is None, "granian did not start"
        yield port
        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def serve_aiohttp(
    app: Any, *, certificate: Path | None = None, grace: float = 0.2
) -> AsyncGenerator[int]:
    """aiohttp's own server."""
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None, shutdown_timeout=grace, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls(certificate)).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def serve_websockets(hub: Hub[Any], *, certificate: Path | None = None) -> AsyncGenerator[int]:
    """A server of the websockets library."""
    from websockets.asyncio.server import serve

    from rtkit.hosting.websockets_host import OPTIONS, handler

    handle = handler(hub)
    options = {**OPTIONS, "process_request": handle.process_request, "ssl": tls(certificate)}
    async with serve(handle, "127.0.0.1", 0, **options) as server, hub:
        yield int(server.sockets[0].getsockname()[1])


def tls(certificate: Path | None) -> ssl.SSLContext | None:
    """What a server needs to serve TLS with a certificate."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@contextlib.asynccontextmanager
async def serve_uvicorn(app: Any, *, certificate: Path | None = None, **options: Any) -> AsyncGenerator[int]:
    """uvicorn, as it comes."""
    if certificate is not None:
        options["ssl_certfile"] = str(certificate)
    async with serve_asgi(app, lifespan="on", **options) as port:
        yield port
