"""The ASGI host under a real uvicorn, over real sockets, alone and mounted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any

import fastapi
import httpx2
import pytest
import starlette.applications
import starlette.routing
import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rtkit.hosting.asgi import AsgiHost
from rtkit.transports import Refused
from tests.support.servers import serve_asgi
from tests.unit.hosting.scripted import Acceptor, Echo, nothing

Client = websockets.asyncio.client.ClientConnection
MEGABYTE = 1024 * 1024


class Served:
    """A host that uvicorn serves, wrapped into what *wrap* makes of it."""

    def __init__(self, *, echo: bool = True) -> None:
        self.acceptor = Acceptor(echo=echo)
        self.acceptor.max_frame = self.acceptor.max_connect = 2 * MEGABYTE
        self.acceptor.on_connect = self._connected
        self.host = AsgiHost(self.acceptor, lifespan=nothing, close_timeout=0.5)
        self.port = 0
        self.receive: Any = None
        self.received = 0
        self._connections: asyncio.Queue[Echo] = asyncio.Queue()
        self._losses: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting() -> Any:
            message = await receive()
            self.received += message["type"] == "websocket.receive"
            return message

        self.receive = receive
        await self.host(scope, counting, send)

    def _connected(self, driver: Echo) -> None:
        self._connections.put_nowait(driver)
        driver.on_lost = lambda: self._losses.put_nowait(driver.losses[-1])

    @contextlib.asynccontextmanager
    async def run(
        self, wrap: Callable[[Any], Any] = lambda app: app, **config: Any
    ) -> AsyncGenerator[Served]:
        async with serve_asgi(wrap(self), ws_per_message_deflate=False, **config) as self.port:
            yield self
        statistics = self.host.statistics()
        assert (statistics.connections, statistics.writing) == (0, 0)
        assert self._losses.empty(), "lost was called twice"

    def connect(self, path: str = "/ws", **options: Any) -> Any:
        url = f"ws://127.0.0.1:{self.port}{path}"
        return websockets.asyncio.client.connect(url, compression=None, ping_interval=None, **options)

    async def connected(self) -> Echo:
        return await asyncio.wait_for(self._connections.get(), 5)

    async def lost(self) -> tuple[int, str]:
        return await asyncio.wait_for(self._losses.get(), 5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the other side is a socket
            await asyncio.sleep(0.001)


async def test_echo() -> None:
    async with Served().run() as served:
        async with served.connect("/ws?token=x") as ws:
            for message in ("hello", "é" * 1000, "x" * MEGABYTE, ""):
                await ws.send(message)
                assert await ws.recv() == message
            await ws.send(b"binary is the same")
            assert await ws.recv() == "binary is the same"
        assert await served.lost() == (1000, "")
        [handshake] = served.acceptor.handshakes
        assert handshake.address == "127.0.0.1"
        assert handshake.query == "token=x"


async def test_a_reader_that_is_slow() -> None:
    """What does not fit into the network waits in `buffered`; `writable` comes once it has left."""
    async with Served(echo=False).run() as served:
        sock = socket.create_connection(("127.0.0.1", served.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        async with served.connect(sock=sock, max_queue=1, max_size=None) as ws:
            driver = await served.connected()
            for n in range(24):
                driver.transport.send([b"%d" % n + b"x" * MEGABYTE])
            await until(lambda: driver.transport.buffered < 24 * MEGABYTE)
            assert driver.log == []
            assert driver.transport.buffered > MEGABYTE
            for n in range(24):
                assert (await ws.recv())[:2].strip("x") == str(n)
            await until(lambda: driver.log == ["writable"])
            assert driver.transport.buffered == 0
        assert (await served.lost())[0] == 1000


async def test_a_reader_that_never_reads_does_not_hold_up_the_end() -> None:
    async with Served(echo=False).run() as served:
        sock = socket.create_connection(("127.0.0.1", served.port))
        async with served.connect(sock=sock, max_queue=1, max_size=None) as ws:
            driver = await served.connected()
            driver.transport.send([b"x" * 16 * MEGABYTE])
            driver.transport.send([b"y"])
            driver.transport.close(3008, "slow consumer")
            assert await served.lost() == (3008, "slow consumer")
            ws.transport.abort()


async def test_pausing_pushes_back_to_the_peer() -> None:
    async with Served(echo=False).run() as served:
        async with served.connect() as ws:
            driver = await served.connected()
            driver.transport.pause_reading()

            async def send_all() -> None:
                for n in range(16):
                    await ws.send(b"%d" % n + b"x" * MEGABYTE)

            sending = asyncio.create_task(send_all())
            await until(lambda: ws.transport.get_write_buffer_size() > 0)
            await asyncio.sleep(0.1)
            assert not sending.done()
            assert driver.frames == []
            assert served.receive.__self__.queue.qsize() <= 1
            driver.transport.resume_reading()
            await sending
            await until(lambda: len(driver.frames) == 16)
            assert [frame[:2].strip(b"x") for frame in driver.frames] == [b"%d" % n for n in range(16)]
        assert (await served.lost())[0] == 1000


async def test_close_codes_of_the_peer() -> None:
    async with Served().run() as served:
        for code, reason in ((1000, ""), (1001, "tab closed"), (4123, "é")):
            async with served.connect() as ws:
                await ws.close(code, reason)
            assert await served.lost() == (code, reason)
        async with served.connect() as ws:
            ws.transport.abort()
        assert await served.lost() == (1006, "connection lost")


async def test_close_codes_of_ours() -> None:
    async with Served(echo=False).run() as served:
        for code, reason in ((3001, "draining"), (3500, "bad token"), (1009, "message too big")):
            async with served.connect() as ws:
                driver = await served.connected()
                driver.transport.send([b"last words"])
                driver.transport.close(code, reason)
                assert await served.lost() == (code, reason)
                assert await ws.recv() == "last words"
                with pytest.raises(ConnectionClosed) as closed:
                    await ws.recv()
                assert closed.value.rcvd is not None
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)


async def test_a_close_arrives_although_the_peer_is_still_sending() -> None:
    async with Served(echo=False).run() as served, served.connect() as ws:
        driver = await served.connected()
        driver.transport.pause_reading()
        for _ in range(50):
            await ws.send("x" * 1000)
        driver.transport.close(3013, "too many requests")
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3013
        assert await served.lost() == (3013, "too many requests")


async def test_the_server_shuts_down() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with Served().run(lifespan="on") as served:
            ws = await stack.enter_async_context(served.connect())
            driver = await served.connected()
            driver.on_lost = lambda: None
        assert driver.losses == [(1012, "")]
        with pytest.raises(ConnectionClosed):
            await ws.recv()


async def test_the_server_shuts_down_a_paused_connection() -> None:
    """It waits for our receive(), which does not come, and cancels us when its grace is over."""
    async with contextlib.AsyncExitStack() as stack:
        async with Served().run(grace=0.1) as served:
            ws = await stack.enter_async_context(served.connect())
            driver = await served.connected()
            driver.on_lost = lambda: None
            driver.transport.pause_reading()
            await ws.send("held")
            await until(lambda: served.received == 1)
        assert driver.losses == [(1006, "cancelled by the server")]


async def test_refusals_have_a_status() -> None:
    async with Served().run() as served:
        served.acceptor.refuse = Refused(503, "draining", retry_after=3)
        with pytest.raises(InvalidStatus) as refused:
            await served.connect()
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "3"
        assert refused.value.response.body == b"draining\n"
        with pytest.raises(InvalidStatus) as refused:
            await served.connect("/elsewhere")
        assert refused.value.response.status_code == 404
        assert len(served.acceptor.handshakes) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Origin: https://a\r\nOrigin: https://b\r\n", 400),
        ("".join(f"X-{n}: y\r\n" for n in range(120)), 101),  # beyond 128 uvicorn's own limit comes first
    ],
    ids=["two origins", "many headers"],
)
async def test_odd_handshakes(headers: str, status: int) -> None:
    async with Served().run() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            + headers.encode()
            + b"\r\n"
        )
        line = await reader.readline()
        assert int(line.split()[1]) == status
        writer.transport.abort()
        if status == 101:
            assert (await served.lost())[0] == 1006


def _starlette(app: Any) -> Any:
    return starlette.applications.Starlette(routes=[starlette.routing.Mount("/rt", app)])


def _fastapi(app: Any) -> Any:
    api = fastapi.FastAPI()
    api.mount("/rt", app)
    return api


@pytest.mark.parametrize("wrap", [_starlette, _fastapi], ids=["starlette", "fastapi"])
async def test_mounted(wrap: Callable[[Any], Any]) -> None:
    async with Served().run(wrap, lifespan="on") as served, httpx2.AsyncClient() as http:
        for path in ("/rt/ws", "/rt/ws/", "/rt/connection/websocket", "/rt/"):
            async with served.connect(path) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
            assert (await served.lost())[0] == 1000
        assert served.acceptor.started == 4
        base = f"http://127.0.0.1:{served.port}/rt"
        response = await http.get(f"{base}/ws")
        assert response.status_code == 426
        assert response.headers["upgrade"] == "websocket"
        assert "proxy" in response.text
        assert (await http.head(f"{base}/ws")).status_code == 426
        assert (await http.get(f"{base}/ready")).status_code == 204
        assert (await http.post(f"{base}/ready", content=b"x" * 1000)).status_code == 405
        assert (await http.options(f"{base}/ready")).status_code == 204
        response = await http.get(f"{base}/nothing")
        assert response.status_code == 404
        assert "ready" in response.text


async def test_a_server_without_websockets() -> None:
    async with Served().run(ws="none") as served:
        with pytest.raises(InvalidStatus) as refused:
            await served.connect()
        assert refused.value.response.status_code == 426
        assert b"pip install websockets" in (refused.value.response.body or b"")
