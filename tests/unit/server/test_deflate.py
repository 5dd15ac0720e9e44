"""A server that compresses: who gets it, what a broadcast costs, and that bombs end who sends them (T9)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import rtkit
from rtkit import Grant, Hub, anonymous
from rtkit.client import connect
from rtkit.hosting.raw import RawPipe
from rtkit.server import listen
from rtkit.transports import Batch
from tests.unit.hosting.sockets import TEXT, masked, network_of
from tests.unit.hosting.test_deflate import ANSWER, bomb, compressed, said
from tests.unit.server.world import ServerWorld

Make = Callable[..., Awaitable[ServerWorld]]
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


async def test_off_unless_asked_for(world: ServerWorld) -> None:
    client = await world.ask(_shake(OFFER))
    assert "sec-websocket-extensions" not in client.answer().headers
    client.say(said(TEXT, compressed(b"x")))
    await world.settle()
    assert client.closed == (1002, "reserved bits must be 0")


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ((OFFER,), ANSWER),
        (("Sec-WebSocket-Extensions: x-other", OFFER), ANSWER),
        ((), None),
        (("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8",), None),
        (("Sec-WebSocket-Extensions: ;;;",), None),
    ],
)
async def test_who_offers_it_gets_it(make: Make, headers: tuple[str, ...], answer: str | None) -> None:
    world = await make(deflate=True)
    client = await world.ask(_shake(*headers))
    answered = client.answer()
    assert answered.status == 101
    assert answered.headers.get("sec-websocket-extensions") == answer
    client.say(masked(TEXT, b"as it is"))
    await world.settle()
    assert client.texts == ["as it is"]
    client.say(said(TEXT, compressed(b"smaller")))
    await world.settle()
    if answer is None:
        assert client.closed == (1002, "reserved bits must be 0")
    else:
        assert client.texts == ["as it is", "smaller"]


class _Recorder:
    """Notes what is written to an asyncio transport."""

    def __init__(self, network: Any, writes: list[bytes]) -> None:
        self._network = network
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


async def test_a_broadcast_is_compressed_once_for_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from rtkit.hosting import frames

    world = await make(deflate=True)
    for headers in ((OFFER,), (), (OFFER,)):
        await world.ask(_shake(*headers))
    calls: list[bytes] = []
    real = frames.deflated

    def counted(payload: bytes) -> bytes:
        calls.append(payload)
        return real(payload)

    monkeypatch.setattr(frames, "deflated", counted)
    batch = Batch([b'{"push":"%s"}' % (b"hello " * 50)])
    pipes: list[RawPipe] = sorted(world.server._site.pipes.open, key=lambda pipe: pipe._deflate)
    networks, writes = [network_of(pipe) for pipe in pipes], list[bytes]()
    for pipe, network in zip(pipes, networks, strict=True):
        pipe._network = _Recorder(network, writes)  # type: ignore[assignment]
        pipe.write_batch(batch)
        pipe._network = network
    plain, first, second = writes
    assert len(calls) == 1
    assert first is second
    assert len(first) < len(plain) / 3


async def test_what_is_for_one_alone_is_not_compressed(make: Make) -> None:
    world = await make(deflate=True)
    client = await world.upgrade(OFFER)
    client.say(masked(TEXT, b"a" * 900))
    await world.settle()
    assert client.texts == ["a" * 900]


async def test_a_bomb_ends_who_sends_it(make: Make) -> None:
    world = await make(deflate=True)
    other, client = await world.upgrade(OFFER), await world.upgrade(OFFER)
    client.say(said(TEXT, bomb(1)[:900]))
    await world.settle()
    assert client.closed == (1009, "message too big")
    other.say(said(TEXT, compressed(b"here")))
    await world.settle()
    assert other.texts == ["here"]


async def test_a_conversation_with_a_client_that_compresses() -> None:
    """The library's client, which offers it unless told otherwise, in a room with one of ours, which does not."""
    from websockets.asyncio.client import connect as dial

    hub: Hub[None] = Hub(authenticate=anonymous)
    hub.rooms("chat:{x}", publishes=object, grant=Grant("publish"))
    async with (
        listen(hub, deflate=True) as server,
        dial(server.url.replace("http", "ws") + "/ws") as theirs,
    ):
        assert theirs.protocol.extensions
        await theirs.send('{"id":1,"connect":{}}')
        assert '"connect"' in str(await theirs.recv())
        await theirs.send('{"id":2,"subscribe":{"channel":"chat:a"}}')
        assert '"subscribe"' in str(await theirs.recv())
        async with connect(server.url) as ours, ours.join("chat:a") as room:
            await hub.room("chat:a").publish("hello " * 100)
            assert "hello " * 100 in str(await theirs.recv())
            message = await anext(room)
            assert isinstance(message, rtkit.Message) and message.data == "hello " * 100


def _shake(*headers: str) -> bytes:
    from tests.unit.server.world import shake

    return shake("/rt/ws", *headers)
