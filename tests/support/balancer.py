"""Load balancers without a memory: each request goes to the next server, as nothing in rtkit may mind (T2).

A small one of our own, and a real nginx with a configuration that the how-to shows.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from aiohttp.client_exceptions import ClientError

from .services import require

__all__ = ["free_port", "haproxy_with", "nginx", "nginx_with", "round_robin"]

#: Headers of one connection, which a proxy must not pass on.
_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}


@asynccontextmanager
async def round_robin(ports: Sequence[int]) -> AsyncGenerator[int]:
    """Pass each request to the next of these ports of this machine; the port to connect to.

    One that cannot be reached is passed over. No WebSockets.
    """
    turn = itertools.cycle(ports)
    async with ClientSession(
        connector=TCPConnector(limit=0, force_close=True),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:

        async def serve(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = [(n, v) for n, v in request.headers.items() if n.lower() not in _HOP]
            for _ in ports:
                url = f"http://127.0.0.1:{next(turn)}{request.raw_path}"
                try:
                    answer = await session.request(request.method, url, data=body or None, headers=headers)
                except ClientError:
                    continue  # it was not sent, or the server broke off: nginx would try the next, too
                async with answer:
                    kept = [(n, v) for n, v in answer.headers.items() if n.lower() not in _HOP]
                    response = web.StreamResponse(status=answer.status, headers=dict(kept))
                    await response.prepare(request)
                    try:
                        async for piece in answer.content.iter_any():
                            await response.write(piece)
                    except (ClientError, ConnectionError):
                        if request.transport is not None:
                            request.transport.abort()  # as it was cut, so it is passed on
                    return response
            return web.Response(status=502)

        app = web.Application(client_max_size=2**21)
        app.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


def _find(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return found or require(name, f"no {name}", f"apt-get install {package}")


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


_NGINX = """
daemon off;
pid pid;
error_log error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"""

_BALANCING = """
    upstream hubs {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location /rt/ {{
            proxy_pass http://hubs;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
        }}
    }}
"""


@asynccontextmanager
async def nginx(ports: Sequence[int]) -> AsyncGenerator[int]:
    """A real nginx that passes each request to the next of these ports; the port to connect to. No WebSockets."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in ports)
    async with nginx_with(_BALANCING.format(servers=servers, port=port), port):
        yield port


@asynccontextmanager
async def nginx_with(http: str, port: int) -> AsyncGenerator[None]:
    """A real nginx with this in the ``http`` block of its configuration, which makes it listen on *port*."""
    program = _find("nginx", "nginx-light")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "nginx.conf").write_text(_NGINX.format(http=http))  # noqa: ASYNC240 # a small file
        async with _running(port, program, "-p", folder, "-c", "nginx.conf"):
            yield


@asynccontextmanager
async def haproxy_with(configuration: str, port: int) -> AsyncGenerator[None]:
    """A real HAProxy with this configuration, which makes it listen on *port*."""
    program = _find("haproxy", "haproxy")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "haproxy.cfg").write_text(configuration)  # noqa: ASYNC240 # a small file
        async with _running(port, program, "-db", "-q", "-f", f"{folder}/haproxy.cfg"):
            yield


@asynccontextmanager
async def _running(port: int, *command: str) -> AsyncGenerator[None]:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        await _listening(process, port)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    for _ in range(500):
        if process.returncode is not None:
            assert process.stderr is not None
            raise RuntimeError(f"it has ended: {(await process.stderr.read()).decode()}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)  # another program; there is nothing else to wait for
        else:
            writer.close()
            return
    raise RuntimeError("it does not listen")
