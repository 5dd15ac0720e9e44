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

__all__ = ["find_nginx", "nginx", "round_robin"]

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


def find_nginx() -> str:
    """The program; the test is skipped, or fails in CI, without one."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    return found or require("nginx", "no nginx", "apt-get install nginx-light")


_CONF = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream hubs {{ {servers} }}
    {http}
    server {{
        listen {listen};
        {server}
        location /rt/ {{
            proxy_pass {scheme}://hubs;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_read_timeout 60s;
            {location}
        }}
    }}
}}
"""


@asynccontextmanager
async def nginx(
    ports: Sequence[int], *, http: str = "", server: str = "", location: str = "", tls: bool = False
) -> AsyncGenerator[int]:
    """A real nginx in front of these ports; the port to connect to.

    :param http: more lines of its configuration, and
    :param server: of the server, and
    :param location: of the hub's location.
    :param tls: it speaks TLS to clients, with the tests' certificate.
    """
    program = find_nginx()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        listen = f"127.0.0.1:{port}"
        if tls:
            pem = Path(__file__).with_name("localhost.pem")
            listen += " ssl"
            server += f"ssl_certificate {pem}; ssl_certificate_key {pem};"
        servers = "".join(f"server 127.0.0.1:{each} max_fails=0; " for each in ports)
        conf = _CONF.format(
            folder=folder,
            servers=servers,
            listen=listen,
            http=http,
            server=server,
            location=location,
            scheme="http",
        )
        Path(folder, "nginx.conf").write_text(conf)  # noqa: ASYNC240 # a small file, in a test
        process = await asyncio.create_subprocess_exec(
            program, "-p", folder, "-c", f"{folder}/nginx.conf", stderr=asyncio.subprocess.PIPE
        )
        try:
            await _listening(process, port)
            yield port
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    for _ in range(500):
        if process.returncode is not None:
            assert process.stderr is not None
            raise RuntimeError(f"nginx has ended: {(await process.stderr.read()).decode()}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise RuntimeError("nginx does not listen")
