"""What Autobahn's suite tries: everything that moves frames for us, made to say back what it hears.

The hub takes text and binary messages for the same and answers in text, so nothing between the parser and the hub
says which one it was. The suite wants each back as it came. What is added here remembers that, and no more: the bytes
go through the code that serves a hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Sequence
from typing import Any, final
from unittest.mock import patch

from rtkit.client.websocket import WebSocketDialer, WebSocketWire
from rtkit.hosting import frames, raw
from rtkit.server import Server
from rtkit.transports import Answer, Batch, Handshake, HttpRequest, Transport, plain
from tests.support.servers import serve_asgi

__all__ = ["MAX_MESSAGE", "echoing_client", "free_port", "serve_echo", "serve_echo_on_uvicorn"]

#: The suite's largest message has 16 MiB.
MAX_MESSAGE = 17 * 1024 * 1024


class _Binary(bytes):
    """A message that came as binary."""


@final
class _Assembler:
    """The parser of the server, whose binary messages can be told from text."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._real = frames.Assembler(*args, **options)

    def next(self) -> tuple[int, bytes] | None:
        event = self._real.next()
        return (
            (frames.BINARY, _Binary(event[1])) if event is not None and event[0] == frames.BINARY else event
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _text_frame(units: Sequence[bytes]) -> bytes:
    return frames.frame(_kind(units[0]), units[0])


def _deflated_text_frame(units: Sequence[bytes]) -> bytes:
    return frames.deflated_frame(_kind(units[0]), units[0])


def _kind(message: bytes) -> int:
    return frames.BINARY if isinstance(message, _Binary) else frames.TEXT


@final
class _Echo:
    """A driver that says back each message."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def received(self, frame: bytes) -> None:
        self._transport.send_batch(Batch([frame]))

    def writable(self) -> None:
        pass

    def lost(self, code: int, reason: str) -> None:
        pass


@final
class _EchoAcceptor:
    """A hub, as a server sees it, that takes everybody."""

    max_frame = max_connect = MAX_MESSAGE

    async def ensure_running(self) -> None:
        pass

    def admit(self, handshake: Handshake) -> None:
        pass

    def connect(self, transport: Transport, handshake: Handshake) -> _Echo:
        return _Echo(transport)

    def turned_away(self, why: str) -> None:
        pass

    async def answer(self, request: HttpRequest) -> Answer:
        return plain(404, "nothing\n")


@contextlib.asynccontextmanager
async def serve_echo(**options: Any) -> AsyncGenerator[str]:
    """Our own server; yields the URL of its WebSocket.

    :param options: more of the server's.
    """
    with (
        patch.object(raw, "Assembler", _Assembler),
        patch.object(raw, "text_frame", _text_frame),
        patch.object(raw, "deflated_text_frame", _deflated_text_frame),
    ):
        server = Server(_EchoAcceptor(), **options)
        await server.start(port=0)
        try:
            yield f"ws://127.0.0.1:{server.port}/rt/ws"
        finally:
            server.abort()
            await server.aclose()


async def _application(scope: Any, receive: Any, send: Any) -> None:
    """Under ASGI text and binary are different already."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        said = {key: message[key] for key in ("text", "bytes") if message.get(key) is not None}
        await send({"type": "websocket.send", **said})


@contextlib.asynccontextmanager
async def serve_echo_on_uvicorn(**options: Any) -> AsyncGenerator[str]:
    """uvicorn, as a hub is served by it: the URL."""
    config: dict[str, Any] = {"ws": "websockets-sansio", "http": "h11", "lifespan": "off", **options}
    async with serve_asgi(_application, ws_max_size=MAX_MESSAGE, **config) as port:
        yield f"ws://127.0.0.1:{port}/"


# -- the client


@final
class _Speaker:
    """The wire of our client, which says back each message as it came."""

    def __init__(self, wire: WebSocketWire) -> None:
        self._wire = wire

    async def echo(self) -> None:
        """Until the server ends it."""
        from websockets.exceptions import ConnectionClosed

        connection = self._wire._connection
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                await connection.send(message)
        await self._wire.close(1000, "")


async def echoing_client(port: int, name: str, *, at_once: int = 8) -> None:
    """Have our client's WebSockets go through all cases of the suite's server.

    :param at_once: cases; many of them mostly wait.
    """
    dialer = WebSocketDialer(max_size=MAX_MESSAGE)
    base = f"ws://127.0.0.1:{port}"
    wire = await dialer.dial(f"{base}/getCaseCount", {})
    count = int(await wire.recv())
    await wire.close(1000, "")
    free = asyncio.Semaphore(at_once)

    async def run(case: int) -> None:
        async with free:
            await _Speaker(await dialer.dial(f"{base}/runCase?case={case}&agent={name}", {})).echo()

    async with asyncio.TaskGroup() as group:
        for case in range(1, count + 1):
            group.create_task(run(case))
    await _Speaker(await dialer.dial(f"{base}/updateReports?agent={name}", {})).echo()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
