"""Real sockets: a tiny scripted server of the ``websockets`` library, on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rtkit.client import DialFailed, Policy, WebSocketDialer, WireClosed, connect, websocket
from rtkit.client.websocket import version
from rtkit.errors import ConnectionClosed
from rtkit.testing.clock import ManualClock

FAST = Policy(min_delay=0.01, max_delay=0.05, close_timeout=0.5, open_timeout=5)

Script = Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]


async def hub(ws: ServerConnection, command: dict[str, Any]) -> None:
    """The least a hub does."""
    if "connect" in command:
        body: dict[str, Any] = {"connect": {"client": "c", "ping": 25, "pong": True, "rt": {"v": 1}}}
    elif "subscribe" in command:
        asked = command["subscribe"]
        offset = asked.get("offset", 0)
        body = {"subscribe": {"recoverable": True, "epoch": "e", "offset": offset + 1, "recovered": True}}
        body["subscribe"]["publications"] = [{"data": offset + 1, "offset": offset + 1}]
    elif "publish" in command:
        body = {"publish": {"data": command["publish"]["data"]}}
    elif "bye" in command:
        return
    else:
        body = {"unsubscribe": {}}
    await ws.send(json.dumps({"id": command["id"], **body}))


class Scripted:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections: list[ServerConnection] = []
        self.commands: list[dict[str, Any]] = []
        self.response: Response | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/rt"

    async def handler(self, ws: ServerConnection) -> None:
        self.connections.append(ws)
        async for frame in ws:
            for line in str(frame).splitlines():
                command = json.loads(line)
                self.commands.append(command)
                if command:
                    await self.script(ws, command)

    def refuse(self, ws: ServerConnection, request: Request) -> Response | None:
        return self.response


@contextlib.asynccontextmanager
async def serving(script: Script = hub, **options: Any) -> AsyncIterator[Scripted]:
    scripted = Scripted(script)
    server: Server
    async with serve(scripted.handler, "127.0.0.1", 0, process_request=scripted.refuse, **options) as server:
        scripted.port = next(iter(server.sockets)).getsockname()[1]
        yield scripted
        server.close(code=1001)


def answer(status: int, **headers: str) -> Response:
    named = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    named["Content-Length"] = "0"
    return Response(status, http.HTTPStatus(status).phrase, named, b"")


async def dial_failure(server: Scripted) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await WebSocketDialer().dial(f"ws://u:secret@127.0.0.1:{server.port}/ws?q=secret", {})
    assert "secret" not in str(caught.value)
    return caught.value


async def test_connect_cut_and_come_back() -> None:
    async with serving() as server:
        async with connect(server.url, policy=FAST, headers={"X-A": "b"}) as client:
            request = server.connections[0].request
            assert request is not None
            assert request.path == "/rt/ws"
            assert request.headers["X-A"] == "b"
            assert request.headers["User-Agent"] == f"rtkit-python/{version()}"
            assert "Sec-WebSocket-Extensions" not in request.headers
            async with client.join("r") as room:
                assert (await anext(room)).data == 1  # type: ignore[union-attr]
                assert await room.send("ä\n") == "ä\n"
                server.connections[0].transport.abort()
                assert (await anext(room)).data == 2  # type: ignore[union-attr]
                assert await room.send([1]) == [1]
                await server.connections[1].close(4000, "replaced")
                assert (await anext(room)).data == 3  # type: ignore[union-attr]
            assert client.statistics().connects == 3
        last = server.connections[-1]
        await asyncio.wait_for(last.wait_closed(), 5)
        assert server.commands[-1] == {"bye": {}}
        assert last.close_code == 1000


async def test_the_servers_close_code_and_reason_arrive() -> None:
    async def script(ws: ServerConnection, command: dict[str, Any]) -> None:
        await hub(ws, command)
        await ws.close(3503, "closed for good")

    async with serving(script) as server, connect(server.url, policy=FAST) as client:
        assert await client.wait_state("closed") == "closed"
        assert (client.close_code, client.close_reason) == (3503, "closed for good")


async def test_a_frame_beyond_the_limit_is_the_end() -> None:
    async def script(ws: ServerConnection, command: dict[str, Any]) -> None:
        await hub(ws, command)
        await ws.send(json.dumps({"push": {"message": {"data": "x" * 5000}}}))

    async with serving(script) as server, connect(server.url, policy=FAST, max_size=4096) as client:
        await client.wait_state("closed")
        assert client.close_code == 1009


@pytest.mark.parametrize("status, code", [(400, 3501), (401, 3500), (403, 3507), (404, 3501), (426, 3501)])
async def test_handshakes_refused_for_good(status: int, code: int) -> None:
    async with serving() as server:
        server.response = answer(status)
        with pytest.raises(ConnectionClosed, match=f"HTTP {status}") as caught:
            async with connect(server.url, policy=FAST):
                pass
        assert caught.value.code == code


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_handshakes_refused_for_now(status: int) -> None:
    async with serving() as server:
        server.response = answer(status)
        async with connect(server.url, policy=FAST, wait=False) as client:
            await client.wait_state("waiting")
            assert str(status) in client.statistics().last_failure
            server.response = None
            await client.wait_state("connected")


@pytest.mark.parametrize(
    "retry_after, window",
    [
        ("30", (30.0, 45.5)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", (0.0, 0.5)),
        ("999999999", (3600.0, 5400.5)),
        ("soon", None),
        ("nan", None),
    ],
)
async def test_retry_after(retry_after: str, window: tuple[float, float] | None) -> None:
    async with serving() as server:
        server.response = answer(503, Retry_After=retry_after)
        failure = await dial_failure(server)
        assert not failure.terminal
        assert failure.window == window


async def test_redirects_are_not_followed() -> None:
    async with serving() as server:
        server.response = answer(307, Location=f"ws://127.0.0.1:{server.port}/other?token=secret")
        failure = await dial_failure(server)
        assert failure.terminal
        assert "/other" in failure.reason
        assert len(server.connections) == 0


async def test_what_is_no_websocket_server() -> None:
    async with serving() as server:
        server.response = answer(200)
        assert "no WebSocket endpoint" in (await dial_failure(server)).reason

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    other = await asyncio.start_server(rude, "127.0.0.1", 0)
    async with other:
        scripted = Scripted(hub)
        scripted.port = other.sockets[0].getsockname()[1]
        assert not (await dial_failure(scripted)).terminal
    with pytest.raises(OSError):
        await WebSocketDialer().dial(f"ws://127.0.0.1:{scripted.port}/ws", {})


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ws_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    async with serving() as server:
        wire = await WebSocketDialer().dial(f"ws://127.0.0.1:{server.port}/ws", {})
        await wire.close(1000, "")
        with pytest.raises(OSError):
            await WebSocketDialer(proxy=True).dial(f"ws://127.0.0.1:{server.port}/ws", {})
        with pytest.raises(DialFailed) as caught:
            await WebSocketDialer(proxy="nonsense://u:secret@x").dial(f"ws://127.0.0.1:{server.port}/ws", {})
        assert caught.value.terminal
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None, "it has the password of the proxy in its text (A5)"


async def test_wires_keep_the_contract() -> None:
    async with serving() as server:
        wire = await WebSocketDialer().dial(f"ws://127.0.0.1:{server.port}/ws", {"User-Agent": "mine"})
        assert server.connections[0].request.headers["User-Agent"] == "mine"  # type: ignore[union-attr]
        assert "open" in repr(wire)
        receiving = asyncio.create_task(wire.recv())
        await asyncio.sleep(0)
        receiving.cancel()  # safe: nothing is lost
        await server.connections[0].send("one")
        await server.connections[0].send(b"two")
        await server.connections[0].close(3001, "draining")
        assert await wire.recv() == b"one"
        assert await wire.recv() == b"two"
        for _ in range(2):
            with pytest.raises(WireClosed) as caught:
                await wire.recv()
            assert (caught.value.code, caught.value.reason) == (3001, "draining")
        with pytest.raises(WireClosed):
            await wire.send(b"x")
        await wire.close(1000, "")
        await wire.close(1000, "x" * 1000)


async def test_closing_a_pipe_that_is_full_is_bounded() -> None:
    stop = asyncio.Event()

    async def deaf(ws: ServerConnection) -> None:
        ws.transport.pause_reading()
        await stop.wait()
        ws.transport.abort()

    async with serve(deaf, "127.0.0.1", 0, max_queue=1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        clock = ManualClock()
        wire = await WebSocketDialer(close_timeout=2, clock=clock).dial(f"ws://127.0.0.1:{port}/ws", {})

        async def flood() -> None:
            while True:
                await wire.send(b"x" * 1_000_000)

        flooding = asyncio.create_task(flood())
        while not wire._connection.paused:  # noqa: ASYNC110 - the library has no event for it
            await asyncio.sleep(0)
        closing = asyncio.create_task(wire.close(1000, ""))
        await asyncio.sleep(0)
        assert not closing.done()
        clock.advance_nowait(2)
        await asyncio.wait_for(closing, 5)
        with pytest.raises(WireClosed):
            await asyncio.wait_for(flooding, 5)
        with pytest.raises(WireClosed):
            await wire.recv()
        stop.set()


async def test_cancelled_closing_lets_go_at_once() -> None:
    async with serving() as server:
        wire = await WebSocketDialer().dial(f"ws://127.0.0.1:{server.port}/ws", {})
        server.connections[0].transport.pause_reading()  # no answer to the close frame
        closing = asyncio.create_task(wire.close(1000, ""))
        while "closing" not in repr(wire):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(WireClosed):
            await asyncio.wait_for(wire.recv(), 5)
        server.connections[0].transport.abort()


async def test_dialling_may_be_cancelled() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dialling = asyncio.create_task(WebSocketDialer().dial(f"ws://127.0.0.1:{port}/ws", {}))
        await arrived.wait()
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        await asyncio.wait_for(gone.wait(), 5)


async def test_certificates_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        with pytest.raises(OSError):
            await WebSocketDialer(ssl=ssl.create_default_context()).dial(
                f"wss://127.0.0.1:{server.port}/ws", {}
            )

    async def refuse(*args: Any, **kwargs: Any) -> Any:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = "self-signed certificate"
        raise error

    monkeypatch.setattr(websocket, "_connector", lambda: refuse)
    with pytest.raises(DialFailed, match="self-signed") as caught:
        await WebSocketDialer().dial("wss://127.0.0.1/ws", {})
    assert caught.value.terminal


def test_loading_the_client_does_not_load_websockets() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from rtkit.client import connect; connect('ws://localhost'); "
        "sys.exit('websockets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
