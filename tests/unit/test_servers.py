"""The uvicorn of the tests: real sockets, the test's own loop, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.servers import serve_asgi


class App:
    """Answers `/`, streams for ever on `/stream`, echoes on WebSockets, and notes what happened to it."""

    def __init__(self, *, startup: str = "complete") -> None:
        self.startup = startup
        self.log: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await {"lifespan": self.lifespan, "http": self.http, "websocket": self.websocket}[scope["type"]](
            scope, receive, send
        )

    async def lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.log.append("startup")
        await send({"type": f"lifespan.startup.{self.startup}"})
        if self.startup == "failed":
            return
        await receive()
        self.log.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            try:
                await asyncio.Event().wait()
            finally:
                self.log.append("stream cancelled")
        await send({"type": "http.response.body", "body": b"hello"})

    async def websocket(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})


async def test_serves_http_and_websocket_and_runs_the_lifespan() -> None:
    app = App()
    async with serve_asgi(app) as port:
        async with httpx2.AsyncClient() as http:
            response = await http.get(f"http://127.0.0.1:{port}/")
        assert response.text == "hello"
        assert "date" in response.headers
        async with connect(f"ws://127.0.0.1:{port}/") as ws:
            await ws.send("ping")
            assert await ws.recv() == "ping"
        assert app.log == ["startup"]
    assert app.log == ["startup", "shutdown"]


async def test_leaves_the_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve_asgi(App()):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_an_open_stream_does_not_hold_up_the_end() -> None:
    app = App()
    tasks = asyncio.all_tasks()
    async with serve_asgi(app, grace=0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
    assert app.log == ["startup", "stream cancelled", "shutdown"]
    assert asyncio.all_tasks() == tasks
    assert await reader.read() == b"\r\n"  # the rest of that chunk and no last one: cut off, not completed
    writer.close()
    await writer.wait_closed()


async def test_an_open_websocket_is_told_to_come_back() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serve_asgi(App()) as port:
            ws = await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/"))
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_two_servers_at_once_and_an_exception_in_the_block() -> None:
    apps = App(), App()
    with pytest.raises(ZeroDivisionError):
        async with serve_asgi(apps[0]) as one, serve_asgi(apps[1]) as two:
            assert one != two
            raise ZeroDivisionError
    assert [app.log for app in apps] == [["startup", "shutdown"]] * 2


async def test_a_failed_startup_is_an_ordinary_exception() -> None:
    app = App(startup="failed")
    with pytest.raises(RuntimeError, match="lifespan startup failed"):
        async with serve_asgi(app):
            pytest.fail("must not get here")
