"""Requests, streams and answers that come later, on every server: the bodies, the flow, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hosts.puppet import MAX_BODY, make
from tests.hosts.servers import serve_aiohttp, serve_granian, serve_hypercorn, serve_uvicorn
from tests.support.hosts import CERTIFICATE, client_context
from tests.support.rawsocket import PATIENCE, Ended, RawSocket
from tests.support.rawstream import RawStream, request
from tests.transport.conftest import until

ROOT = Path(__file__).parents[2]


def on_aiohttp() -> AbstractAsyncContextManager[int]:
    from aiohttp import web

    from rtkit.hosting.aiohttp_host import add_to

    host = make()
    puppet: Any = host._acceptor

    async def start() -> None:
        pass

    async def close() -> None:
        puppet.close()

    app = web.Application()
    add_to(app, "/rt", host, start=start, close=close, max_frame=MAX_BODY)
    return serve_aiohttp(app, grace=5)


def behind_middleware() -> AbstractAsyncContextManager[int]:
    """Starlette, with the two of its middlewares that touch bodies and ``receive()``."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.routing import Mount

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch), Middleware(GZipMiddleware)]
    return serve_uvicorn(Starlette(routes=[Mount("/rt", make())], middleware=middleware))


def on_granian() -> AbstractAsyncContextManager[int]:
    return serve_granian("tests.hosts.puppet:app", ROOT)


SERVERS: dict[str, Callable[[], AbstractAsyncContextManager[int]]] = {
    "uvicorn": lambda: serve_uvicorn(make()),
    "behind middleware": behind_middleware,
    "hypercorn": lambda: serve_hypercorn(make()),
    "granian": on_granian,
    "aiohttp": on_aiohttp,
}


class Pulled:
    """A server with a puppet, and the strings to it."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def do(self, what: str = "", **more: Any) -> dict[str, Any]:
        """Pull, and see what everything is doing."""
        async with await RawSocket.open(self.port) as sock:
            body = json.dumps({"do": what, **more}).encode()
            response = await sock.get("/rt/emulation", method="POST", body=body)
            assert response.status == 200, response
            found: dict[str, Any] = json.loads(response.body)
            return found

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Look until something is so."""
        async with asyncio.timeout(PATIENCE):
            while not condition(now := await self.do()):  # noqa: ASYNC110 - it may be in another process
                await asyncio.sleep(0.01)
        return now

    async def stream(self, **options: Any) -> RawStream:
        stream = await RawStream.begin(self.port, "/rt/sse", **options)
        assert stream.status == 200
        return stream


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Pulled]:
    async with SERVERS[request.param]() as port:
        yield Pulled(request.param, port)


# -- bodies


async def test_bodies(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        for size in (0, 1, 70_000, MAX_BODY):
            response = await sock.get("/rt/send", method="POST", body=b"x" * size)
            assert (response.status, response.body) == (200, str(size).encode())


async def test_a_body_in_chunks(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        head = request("POST", "/rt/send", headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
        await sock.send_slowly(head + b"5\r\nhello\r\n" * 50 + b"0\r\n\r\n", 7)
        assert (await sock.response()).body == b"250"


async def test_a_body_beyond_the_limit(server: Pulled) -> None:
    """Its client is told, also one that sends all of it before it listens."""
    async with await RawSocket.open(server.port) as sock:
        response = await sock.get("/rt/send", method="POST", body=b"x" * (MAX_BODY + 1))
        assert response.status == 413
    async with await RawSocket.open(server.port) as sock:
        head = request("POST", "/rt/send", headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
        piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        await sock.send(head + piece * 60 + b"0\r\n\r\n")
        assert (await sock.response()).status == 413
    async with await RawSocket.open(server.port) as sock:
        assert (await sock.get("/rt/send", method="POST", body=b"x")).body == b"1", "others go on"


async def test_a_length_beyond_the_limit_is_answered_before_the_body(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        head = request("POST", "/rt/send", headers={"Content-Length": str(MAX_BODY + 1)})
        await sock.send(head + b"x")
        assert (await sock.response()).status == 413


async def test_expecting_100(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        head = request("POST", "/rt/send", headers={"Content-Length": "5", "Expect": "100-continue"})
        await sock.send(head)
        assert (await sock.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await sock.send(b"hello")
        assert (await sock.response()).body == b"5"


async def test_a_body_that_ends_early(server: Pulled) -> None:
    """The client has said more than it had, and goes: nobody is asked anything."""
    for how in ("eof", "reset"):
        sock = await RawSocket.open(server.port)
        await sock.send(request("POST", "/rt/poll", headers={"Content-Length": "10"}) + b"x")
        await asyncio.sleep(0.02)
        if how == "eof":
            sock.close()
        else:
            sock.reset()
    assert (await server.do())["polls"] == []


async def test_head_and_http_1_0(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        response = await sock.get("/rt/sse", method="HEAD")
        assert (response.status, response.body) == (405, b"")
    stream = await server.stream(version="1.0")
    assert not stream.chunked
    assert await stream.body(3) == b":\n\n"
    await server.do("write", text="data: 1\n\n")
    assert await stream.body(9) == b"data: 1\n\n"
    await server.do("end")
    assert await stream.body() == b""
    stream.close()


# -- streams


async def test_a_stream_flows_at_once(server: Pulled) -> None:
    stream = await server.stream()
    assert stream.headers["content-type"] == "text/event-stream"
    assert "content-length" not in stream.headers
    assert "content-encoding" not in stream.headers
    assert await stream.body(3) == b":\n\n"
    for n in range(5):
        await server.do("write", text=f"data: {n}\n\n")
        assert await stream.body(9) == f"data: {n}\n\n".encode()
    await server.do("end")
    assert await stream.body() == b""
    await server.until(lambda now: now["streams"][0]["lost"] == [[1000, ""]])
    stream.close()


async def test_what_was_written_before_the_end_is_read(server: Pulled) -> None:
    stream = await server.stream()
    await server.do("write", text="x" * 10_000, times=20)
    await server.do("end")
    assert len(await stream.body()) == 200_003
    stream.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_goes_is_noticed(server: Pulled, how: str) -> None:
    stream = await server.stream()
    await stream.body(3)
    if how == "half":
        stream.send_eof()
    else:
        getattr(stream, how)()
    now = await server.until(lambda now: now["streams"][0]["lost"])
    assert [code for code, _ in now["streams"][0]["lost"]] == [1006]
    stream.close()


async def test_a_slow_reader(server: Pulled) -> None:
    """Its bytes count as buffered, and when it reads, the stream hears of it and goes on."""
    stream = await server.stream(receive_buffer=4096)
    await stream.body(3)
    before = (await server.until(lambda now: now["streams"][0]["writable"]))["streams"][0]["writable"]
    piece, count = "x" * 50_000, 200
    await server.do("write", text=piece, times=count)
    if server.name == "granian":
        stream.close()
        pytest.skip("granian takes everything there is and does not say what became of it")
    now = await server.until(lambda now: now["streams"][0]["buffered"])
    assert now["streams"][0]["writable"] == before
    assert len(await stream.body(len(piece) * count)) == len(piece) * count
    now = await server.until(lambda now: now["streams"][0]["writable"] > before)
    assert now["streams"][0]["buffered"] == 0
    await server.do("write", text="more")
    assert await stream.body(4) == b"more"
    stream.close()
    await server.until(lambda now: now["streams"][0]["lost"])


async def test_a_client_that_takes_nothing_is_ended_in_time(server: Pulled) -> None:
    stream = await server.stream(receive_buffer=4096)
    await server.do("write", text="x" * 50_000, times=200)
    if server.name == "granian":
        stream.close()
        pytest.skip("granian takes everything there is and does not say what became of it")
    await server.until(lambda now: now["streams"][0]["buffered"])
    await server.do("end")
    now = await server.until(lambda now: now["streams"][0]["lost"])
    assert now["streams"][0]["lost"] == [[1006, "the client took nothing"]]
    with contextlib.suppress(Ended):
        got = await stream.body()
        assert len(got) < 10_000_000 or server.name == "hypercorn", "cut off, and looks like it"
    stream.close()


async def test_many_streams_at_once(server: Pulled) -> None:
    streams = await asyncio.gather(*(server.stream() for _ in range(200)))
    await server.until(lambda now: len(now["streams"]) == 200)
    await server.do("write", text="data: 1\n\n")
    assert set(await asyncio.gather(*(stream.body(12) for stream in streams))) == {b":\n\ndata: 1\n\n"}
    for stream in streams[::2]:
        stream.close()
    await server.until(lambda now: sum(bool(each["lost"]) for each in now["streams"]) == 100)
    await server.do("end")
    assert set(await asyncio.gather(*(stream.body() for stream in streams[1::2]))) == {b""}
    for stream in streams:
        stream.close()


# -- answers that come later


async def test_an_answer_that_comes_later(server: Pulled) -> None:
    async with await RawSocket.open(server.port) as sock:
        for n in range(3):
            await sock.send(request("GET", "/rt/poll"))
            await server.until(lambda now: now["polls"][-1:] == ["waiting"])
            assert not sock.speaks
            await server.do("release", text=f"answer {n}")
            response = await sock.response()
            assert (response.status, response.text) == (200, f"answer {n}")
    assert (await server.do())["polls"] == ["done"] * 3


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_does_not_wait(server: Pulled, how: str) -> None:
    sock = await RawSocket.open(server.port)
    await sock.send(request("POST", "/rt/poll", body=b"hello"))
    await server.until(lambda now: now["polls"] == ["waiting"])
    if how == "half":
        sock.send_eof()
    else:
        getattr(sock, how)()
    await server.until(lambda now: now["polls"] == ["cancelled"])
    sock.close()


async def test_many_waiting_answers_at_once(server: Pulled) -> None:
    socks = [await RawSocket.open(server.port) for _ in range(100)]
    for sock in socks:
        await sock.send(request("GET", "/rt/poll"))
    await server.until(lambda now: now["polls"] == ["waiting"] * 100)
    for sock in socks[::2]:
        sock.close()
    await server.until(lambda now: now["polls"].count("cancelled") == 50)
    await server.do("release", text="now")
    assert {(await sock.response()).text for sock in socks[1::2]} == {"now"}
    for sock in socks:
        sock.close()


# -- HTTP/2


async def test_http_2() -> None:
    """hypercorn: streams and waiting answers beside each other on one connection, and one of them given up."""
    async with (
        serve_hypercorn(make(), certificate=CERTIFICATE) as port,
        httpx.AsyncClient(
            http2=True, verify=client_context(), base_url=f"https://localhost:{port}/rt"
        ) as http,
    ):

        async def do(what: str = "", **more: Any) -> dict[str, Any]:
            response = await http.post("/emulation", json={"do": what, **more})
            assert response.http_version == "HTTP/2"
            found: dict[str, Any] = response.json()
            return found

        async def until_told(condition: Callable[[dict[str, Any]], object]) -> None:
            async with asyncio.timeout(PATIENCE):
                while not condition(await do()):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)

        assert (await http.post("/send", content=b"x" * 70_000)).text == "70000"
        assert (await http.post("/send", content=b"x" * (MAX_BODY + 1))).status_code == 413
        polling = asyncio.create_task(http.get("/poll"))
        async with http.stream("POST", "/sse") as one, http.stream("POST", "/sse") as two:
            first, second = one.aiter_bytes(), two.aiter_bytes()
            assert await anext(first) == await anext(second) == b":\n\n"
            await until_told(lambda now: now["polls"] == ["waiting"])
            await do("write", text="data: 1\n\n")
            assert await anext(first) == await anext(second) == b"data: 1\n\n"
            await do("release", text="later")
            assert (await polling).text == "later"
            await do("end")
            assert [piece async for piece in first] == []
        await until_told(lambda now: [each["lost"] for each in now["streams"]] == [[[1000, ""]]] * 2)


async def test_http_2_a_stream_that_is_reset() -> None:
    """Its client has gone as far as it is concerned, although the connection stays."""
    import h2.config
    import h2.connection

    context = client_context()
    context.set_alpn_protocols(["h2"])
    host = make()
    puppet: Any = host._acceptor
    async with serve_hypercorn(host, certificate=CERTIFICATE) as port:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        for id, path in ((1, "/rt/sse"), (3, "/rt/poll"), (5, "/rt/sse")):
            head = {":method": "GET", ":path": path, ":scheme": "https", ":authority": "localhost"}
            client.send_headers(id, list(head.items()), end_stream=True)
        writer.write(client.data_to_send())

        async def talk(condition: Callable[[], object]) -> None:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    client.receive_data(await reader.read(65536))
                    writer.write(client.data_to_send())

        await talk(lambda: len(puppet.streams) == 2 and puppet.polls)
        client.reset_stream(1)
        client.reset_stream(3)
        writer.write(client.data_to_send())
        await until(lambda: puppet.streams[0].losses and puppet.polls[0].cancelled())
        assert not puppet.streams[1].losses
        puppet.do("end")
        await until(lambda: puppet.streams[1].losses == [[1000, ""]])
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# -- the end of the server


async def test_aiohttp_ends_with_streams_and_answers_open() -> None:
    async with asyncio.timeout(PATIENCE):
        async with on_aiohttp() as port:
            server = Pulled("aiohttp", port)
            stream = await server.stream()
            sock = await RawSocket.open(port)
            await sock.send(request("GET", "/rt/poll"))
            await server.until(lambda now: now["polls"] == ["waiting"])

            async def read() -> tuple[bytes, str]:
                return await stream.body(), (await sock.response()).text

            reading = asyncio.create_task(read())
        assert await reading == (b":\n\n", "closing")
    stream.close()
    sock.close()
