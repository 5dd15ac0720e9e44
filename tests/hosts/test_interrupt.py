"""A server that does not send a close while somebody receives, as granian: the calls step out of each other's way."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from rtkit.hosting.asgi_interrupt import Interrupted, interrupted
from tests.transport.conftest import until


class Granian:
    """Has one lock for ``receive()`` and the sending of a close."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[str] = []
        self.receiving = False

    async def receive(self) -> Any:
        async with self.lock:
            self.receiving = True
            try:
                return await self.messages.get()
            finally:
                self.receiving = False

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            async with self.lock:
                self.sent.append("close")
                self.messages.put_nowait({"type": "websocket.disconnect"})
        else:
            self.sent.append(message["type"])


async def test_a_close_leaves_while_somebody_receives() -> None:
    server = Granian()
    both = Interrupted(server.receive, server.send)
    receiving = asyncio.create_task(both.receive())
    await until(lambda: server.receiving)
    async with asyncio.timeout(5):
        await both.send({"type": "websocket.send"})
        assert server.receiving, "only a close interrupts"
        await both.send({"type": "websocket.close"})
        assert await receiving == {"type": "websocket.disconnect"}
    assert server.sent == ["websocket.send", "close"]
    assert receiving.cancelling() == 0


async def test_who_comes_to_receive_during_a_close_waits_for_it() -> None:
    server = Granian()
    both = Interrupted(server.receive, server.send)
    first = asyncio.create_task(both.receive())
    await until(lambda: server.receiving)
    async with asyncio.timeout(5):
        await server.messages.put({"type": "websocket.receive"})
        closing = asyncio.create_task(both.send({"type": "websocket.close"}))
        await asyncio.wait({first, closing})
        last = first.result()
        if last["type"] == "websocket.receive":
            last = await both.receive()
        assert last["type"] == "websocket.disconnect" or await both.receive()
    assert server.sent == ["close"]


async def test_a_close_when_nobody_receives() -> None:
    server = Granian()
    both = Interrupted(server.receive, server.send)
    async with asyncio.timeout(5):
        await both.send({"type": "websocket.close"})
        assert (await both.receive())["type"] == "websocket.disconnect"


async def test_a_cancellation_by_others_goes_on() -> None:
    """The server's, at its end: with and without a close at the same time."""
    server = Granian()
    both = Interrupted(server.receive, server.send)
    receiving = asyncio.create_task(both.receive())
    await until(lambda: server.receiving)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    receiving = asyncio.create_task(both.receive())
    await until(lambda: server.receiving)
    closing = asyncio.create_task(both.send({"type": "websocket.close"}))
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    async with asyncio.timeout(5):
        await closing
    assert server.sent == ["close"]


def test_other_servers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Granian()
    monkeypatch.delitem(sys.modules, "granian._granian", raising=False)
    assert interrupted(server.receive, server.send) == (server.receive, server.send)
    monkeypatch.setitem(sys.modules, "granian._granian", sys)
    assert interrupted(server.receive, server.send) != (server.receive, server.send)
