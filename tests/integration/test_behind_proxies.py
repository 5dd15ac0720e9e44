"""A hub behind real proxies, with the configurations that the how-to shows, over TLS (T6, T7, T10)."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore2
import pytest

from rtkit import Grant, History, Hub, Message, anonymous
from rtkit.client import TransportName, connect
from rtkit.server import listen
from tests.docs.blocks import blocks
from tests.support.balancer import free_port, haproxy_with, nginx_with

PAGE = "docs/how-to/behind-a-proxy.md"
PEM = Path(__file__).parents[1] / "support" / "localhost.pem"
CONNECT = b'{"id":1,"connect":{}}'


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(PEM))


def make_hub() -> Hub[None]:
    hub = Hub(authenticate=anonymous)
    hub.rooms("room", publishes=object, grant=Grant("publish"), history=History(100, ttl=60))
    return hub


def nginx_conf(hub_port: int, port: int, more: str = "") -> str:
    """What the page shows, on ports of ours, with a certificate; and *more* in the location."""
    (block,) = blocks(PAGE, "nginx")
    text = block.text
    for old, new in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{hub_port};"),
        # `http2 on` is younger than the nginx of Debian 12.
        (
            "listen 443 ssl;\n    http2 on;",
            f"listen 127.0.0.1:{port} ssl http2; ssl_certificate {PEM}; ssl_certificate_key {PEM};",
        ),
        ("proxy_read_timeout 60s;", f"proxy_read_timeout 60s; {more}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def haproxy_conf(hub_port: int, port: int) -> str:
    (block,) = blocks(PAGE, "haproxy")
    text = block.text
    for old, new in (
        ("127.0.0.1:8000", f"127.0.0.1:{hub_port}"),
        (":443 ssl crt /etc/ssl/private/example.org.pem", f"127.0.0.1:{port} ssl crt {PEM}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def behind(proxy: str, more: str = "") -> AsyncGenerator[tuple[Hub[None], str]]:
    """A hub, and where it is to be found: behind this proxy."""
    hub, port = make_hub(), free_port()
    async with listen(hub, port=0) as server:
        if proxy == "nginx":
            running: Any = nginx_with(nginx_conf(server.port, port, more), port)
        else:
            running = haproxy_with(haproxy_conf(server.port, port), port)
        async with running:
            yield hub, f"https://localhost:{port}/rt"


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_a_conversation(proxy: str, transport: TransportName) -> None:
    async with (
        behind(proxy) as (hub, url),
        connect(url, transports=[transport], ssl=trusting()) as client,
        client.join("room") as room,
    ):
        for n in range(10):
            await room.send(n)
        heard: list[Any] = []
        async with asyncio.timeout(10):
            async for message in room:
                assert isinstance(message, Message)
                heard.append(message.data)
                if len(heard) == 10:
                    break
        assert heard == list(range(10))
        assert client.transport == transport
        assert hub.statistics().connections == 1


#: What once held every event back until the stream ended.
GZIP = "gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream application/json;"


async def test_nginx_that_compresses_holds_nothing_back() -> None:
    """T6: `X-Accel-Buffering: no` is obeyed, gzip or not; without it this takes until the stream ends."""
    async with (
        behind("nginx", GZIP) as (_, url),
        httpcore2.AsyncConnectionPool(ssl_context=trusting()) as pool,
        asyncio.timeout(10),
        pool.stream("POST", f"{url}/sse", headers={"accept-encoding": "gzip"}, content=CONNECT) as answer,
    ):
        assert answer.status == 200
        encodings = [value for name, value in answer.headers if name.lower() == b"content-encoding"]
        assert encodings == [b"gzip"], "or nothing is shown here"
        unzip = zlib.decompressobj(31)
        text = b""
        async for piece in answer.aiter_stream():
            text += unzip.decompress(piece)
            if b'"client"' in text:
                return
    raise AssertionError("it ended")


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "{here}"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),  # a same-origin EventSource sends no Origin
        ({}, 200),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "https://localhost"}, 403),  # another port is another origin
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_origins(proxy: str, headers: dict[str, str], status: int) -> None:
    """T10: behind TLS that ends at the proxy, the page's own origin is let in, and no other."""
    async with behind(proxy) as (_, url), httpcore2.AsyncConnectionPool(ssl_context=trusting()) as pool:
        here = url.removesuffix("/rt")
        sent: dict[bytes | str, bytes | str] = {
            name: value.format(here=here) for name, value in headers.items()
        }
        query = "?cf_connect=%7B%22id%22%3A1%2C%22connect%22%3A%7B%7D%7D"
        async with pool.stream("GET", f"{url}/sse{query}", headers=sent) as answer:
            assert answer.status == status
        async with pool.stream("POST", f"{url}/sse", headers=sent, content=CONNECT) as answer:
            assert answer.status == status
