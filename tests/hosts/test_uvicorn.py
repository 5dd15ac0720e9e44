"""uvicorn with our protocol class: the socket is the hub's, the rest is uvicorn's, and without it all still works."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rtkit import Credentials, Grant, Hub, Identity, anonymous
from rtkit.hosting import uvicorn_host
from rtkit.hosting.asgi_pipe import AsgiPipe
from rtkit.hosting.raw import RawPipe
from rtkit.hosting.uvicorn_host import Protocol, missing_parts
from tests.support.rawsocket import Peer, frame, upgrade
from tests.support.servers import serve_asgi
from tests.transport.conftest import until

NAME = "rtkit.hosting.uvicorn_host:Protocol"


@pytest.fixture
def hub() -> Hub[Any]:
    hub = Hub(authenticate=anonymous)
    hub.rooms("lobby", publishes=object, grant=Grant("publish"))
    return hub


@asynccontextmanager
async def served(hub: Hub[Any], **options: Any) -> AsyncGenerator[int]:
    """A hub below /rt of a Starlette application that has a WebSocket of its own as well."""

    async def echo(sock: WebSocket) -> None:
        await sock.accept()
        await sock.send_text(await sock.receive_text())
        await sock.close()

    app = Starlette(routes=[Mount("/rt", hub), WebSocketRoute("/echo", echo)], lifespan=hub.lifespan)
    async with serve_asgi(app, **{"ws": NAME, "lifespan": "on", **options}) as port:
        yield port


def pipes(hub: Hub[Any]) -> list[Any]:
    """What moves the messages of the hub's connections."""
    return [each.transport._pipe for each in hub.engine.connections]


async def test_refusals_are_no_errors_of_ours(hub: Hub[Any], caplog: pytest.LogCaptureFixture) -> None:
    """F2: where thousands are told to come back later, the log does not say so thousands of times."""
    async with served(hub) as port, websocket(f"ws://127.0.0.1:{port}/rt/ws"):
        hub.engine.accepting = False
        for _ in range(3):
            with pytest.raises(InvalidStatus) as refused:
                await websocket(f"ws://127.0.0.1:{port}/rt/ws")
            assert refused.value.response.status_code == 503
        hub.engine.accepting = True
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- the contract with uvicorn


def test_the_installed_uvicorn_has_what_we_rely_on() -> None:
    """A new uvicorn that fails this is served as plain ASGI: see what has changed, and adapt the class."""
    assert missing_parts(WebSocketsSansIOProtocol) == []
    assert uvicorn_host._usable


@pytest.mark.parametrize("http", ["h11", *(["httptools"] if find_spec("httptools") else [])])
async def test_the_hub_has_the_socket(hub: Hub[Any], http: str) -> None:
    """Not by mistake on the slow path: everything else would pass there too."""
    async with served(hub, http=http) as port:
        ann = await Peer.connect(port)
        await ann.connect_as("ann")
        await ann.join("lobby")
        assert [type(each) for each in pipes(hub)] == [RawPipe]
        await hub.publish("lobby", "hello")
        assert (await ann.push("lobby"))["data"] == "hello"
        assert (await ann.leave(1000)).code == 1000
        ann.close()
        await until(lambda: not hub.statistics().connections)


async def test_nobody_waits_for_a_confirmation(hub: Hub[Any]) -> None:
    """With several workers, uvicorn makes sockets on which asyncio leaves the kernel's delay on."""
    async with served(hub, proto=0) as port:
        ann = await Peer.connect(port)
        await ann.connect_as("ann")
        [pipe] = pipes(hub)
        sock = pipe._network.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        ann.close()


async def test_without_our_class_it_is_plain_asgi(hub: Hub[Any]) -> None:
    async with served(hub, ws="websockets-sansio") as port:
        ann = await Peer.connect(port)
        await ann.connect_as("ann")
        assert [type(each) for each in pipes(hub)] == [AsgiPipe]
        ann.close()


# -- what is uvicorn's stays so


async def test_other_websockets_of_the_application(hub: Hub[Any]) -> None:
    """They are uvicorn's, with compression."""
    async with served(hub) as port, websocket(f"ws://127.0.0.1:{port}/echo") as sock:
        assert "permessage-deflate" in sock.response.headers["Sec-WebSocket-Extensions"]  # type: ignore[union-attr]
        await sock.send("hello")
        assert await sock.recv() == "hello"


async def test_the_hubs_are_not_compressed(hub: Hub[Any]) -> None:
    """T9: what a room gets is written once for all."""
    async with served(hub) as port, websocket(f"ws://127.0.0.1:{port}/rt/ws") as sock:
        assert "Sec-WebSocket-Extensions" not in sock.response.headers  # type: ignore[union-attr]
        await sock.send('{"id":1,"connect":{}}')
        assert '"connect"' in str(await sock.recv())


async def test_headers_of_the_application_are_in_the_answer(hub: Hub[Any]) -> None:
    """The accept goes through the application, as any."""

    class Middleware:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def sending(message: Any) -> None:
                if message["type"] == "websocket.accept":
                    message = {**message, "headers": [(b"x-seen", b"yes")]}
                await send(message)

            await self.app(scope, receive, sending)

    async with (
        serve_asgi(Middleware(hub), ws=NAME, lifespan="on") as port,
        websocket(f"ws://127.0.0.1:{port}/ws") as sock,
    ):
        assert sock.response is not None
        assert sock.response.headers["x-seen"] == "yes"
        assert sock.response.headers["server"] == "uvicorn"


async def test_context_variables_of_the_application_reach_handlers() -> None:
    """As they do on plain ASGI, where handlers descend from the application's task."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    async def authenticate(credentials: Credentials) -> Identity[None]:
        seen.append(who.get())
        return Identity("ann")

    hub: Hub[None] = Hub(authenticate=authenticate)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        who.set("the tenant")
        await hub(scope, receive, send)

    for ws in (NAME, "websockets-sansio"):
        async with serve_asgi(app, ws=ws, lifespan="on") as port:
            ann = await Peer.connect(port)
            await ann.connect_as("ann")
            ann.close()
    assert seen == ["the tenant", "the tenant"]


async def test_the_application_waits_until_the_connection_is_over(hub: Hub[Any]) -> None:
    """So that what it cleans up behind a connection is not gone while that is open."""
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hub(scope, receive, send)
        if scope["type"] == "websocket":
            log.append("left")

    async with serve_asgi(app, ws=NAME, lifespan="on") as port:
        ann = await Peer.connect(port)
        await ann.connect_as("ann")
        assert log == []
        await ann.leave(1000)
        ann.close()
        await until(lambda: log == ["left"])


# -- the moments in between


async def turns(count: int = 50) -> None:
    """Let what is on the way on this machine's own network arrive."""
    for _ in range(count):
        await asyncio.sleep(0)


async def release(*events: asyncio.Event) -> None:
    await turns()
    for event in events:
        event.set()


def gated(hub: Hub[Any], before: asyncio.Event, behind: asyncio.Event) -> Any:
    """The hub, with an application in between that waits before it passes on the accept, and behind that."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            accept = message["type"] == "websocket.accept"
            if accept:
                await before.wait()
            await send(message)
            if accept:
                await behind.wait()

        await hub(scope, receive, sending)

    return app


async def test_frames_between_the_accept_and_the_take_over(hub: Hub[Any]) -> None:
    """They are kept, in whatever pieces they come."""
    before, behind = asyncio.Event(), asyncio.Event()
    before.set()
    async with serve_asgi(gated(hub, before, behind), ws=NAME, lifespan="on") as port:
        ann = await Peer.connect(port)
        id, unit = ann.unit("connect")
        whole = frame(unit)
        for cut in range(0, len(whole) - 5, 5):
            await ann.send(whole[cut : cut + 5])
            await turns()
        behind.set()
        await ann.send(whole[cut + 5 :])
        assert "client" in await ann.reply(id, "connect")
        assert [type(each) for each in pipes(hub)] == [RawPipe]
        ann.close()
        await until(lambda: not hub.statistics().connections)


async def test_frames_before_the_accept(hub: Hub[Any]) -> None:
    """RFC 6455, 4.1: a client must wait. uvicorn has read them already, so it keeps the connection."""
    before, behind = asyncio.Event(), asyncio.Event()
    async with serve_asgi(gated(hub, before, behind), ws=NAME, lifespan="on") as port:
        ann = await Peer.open(port)
        await ann.send(upgrade("/rt/ws"))
        await turns()
        id, unit = ann.unit("connect")
        await ann.send(frame(unit)[:3])
        await turns()
        before.set()
        behind.set()
        await ann.accepted()
        await ann.send(frame(unit)[3:])
        assert "client" in await ann.reply(id, "connect")
        ann.close()
        await until(lambda: not hub.statistics().connections)


@pytest.mark.parametrize("behind_the_accept", [False, True])
async def test_the_server_ends_in_between(hub: Hub[Any], behind_the_accept: bool) -> None:
    """Nobody is connected any more who would then be forgotten."""
    before, behind = asyncio.Event(), asyncio.Event()
    if behind_the_accept:
        before.set()
    async with serve_asgi(gated(hub, before, behind), ws=NAME, lifespan="on", grace=0.1) as port:
        ann = await Peer.open(port)
        await ann.send(upgrade("/rt/ws"))
        if behind_the_accept:
            await ann.accepted()
        else:
            await turns()
        releasing = asyncio.create_task(release(before, behind))
    await releasing
    await ann.rest()
    assert ann.how is not None
    ann.close()
    assert not hub.running


async def test_a_client_that_is_gone_before_the_accept(hub: Hub[Any]) -> None:
    async with served(hub) as port:
        for turns in range(8):
            sock = await Peer.open(port)
            await sock.send(upgrade("/rt/ws"))
            for _ in range(turns):
                await asyncio.sleep(0)
            sock.reset()
        await until(lambda: not hub.statistics().connections)
        ann = await Peer.connect(port)
        await ann.connect_as("ann")
        ann.close()


async def test_endless_empty_fragments(hub: Hub[Any]) -> None:
    """uvicorn would go on for ever; our own parser counts them."""
    async with served(hub) as port:
        eve = await Peer.connect(port)
        await eve.send(frame(b"", fin=False) + frame(b"", 0, fin=False) * 2000)
        assert (await eve.closed()).code == 1009
        eve.close()


# -- the end


async def test_sent_away_when_the_server_ends(hub: Hub[Any]) -> None:
    """1012, with all that was written before; and uvicorn does not wait for those who stay."""
    async with served(hub) as port:
        ann, bob = await Peer.connect(port), await Peer.connect(port)
        for peer in (ann, bob):
            await peer.connect_as("somebody")
            await peer.join("lobby")
        await hub.publish("lobby", "last words")
        closing = asyncio.create_task(_last(ann))
    assert await closing == ("last words", 1012)
    # Its grace over, uvicorn has dropped the one who did not answer.
    assert (await bob.push("lobby"))["data"] == "last words"
    assert (await bob.closed(answer=False)).code == 1012
    bob.close()
    assert not hub.running


async def _last(peer: Peer) -> tuple[str, int]:
    said = (await peer.push("lobby"))["data"]
    closed = await peer.closed()
    peer.close()
    return said, closed.code


async def test_cancelled_by_the_server(hub: Hub[Any]) -> None:
    """uvicorn cancels what outstays its grace: the connection is dropped, and the hub told."""
    lost: list[str] = []

    @hub.on_session_end
    async def ended(ctx: Any, reason: str) -> None:
        lost.append(reason)

    tasks: list[asyncio.Task[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await hub(scope, receive, send)

    async with serve_asgi(app, ws=NAME, lifespan="off") as port, hub:
        ann = await Peer.connect(port)
        await ann.connect_as("ann", rt=False)  # it does not come back, and nobody waits for it
        tasks[-1].cancel()
        await ann.rest()
        await until(lambda: lost)
        ann.close()


# -- when uvicorn is another one


@pytest.mark.parametrize("missing", ["response", "conn", "handshake_complete"])
async def test_a_uvicorn_that_is_not_what_it_was(
    hub: Hub[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """Everything goes on as plain ASGI, with one warning, however many connections there are."""

    class Odd(Protocol):
        def hold(self) -> bool:
            kept = self.__dict__.pop(missing)
            try:
                return super().hold()
            finally:
                setattr(self, missing, kept)

    monkeypatch.setattr(uvicorn_host, "_usable", True)
    with caplog.at_level(logging.WARNING, "rtkit"):
        async with served(hub, ws=Odd) as port:
            for _ in range(3):
                ann = await Peer.connect(port)
                await ann.connect_as("ann")
                assert [type(each) for each in pipes(hub)] == [AsgiPipe]
                await ann.leave(1000)
                ann.close()
                await until(lambda: not hub.statistics().connections)
    assert len([each for each in caplog.records if "not one that rtkit knows" in each.message]) == 1


def test_a_class_that_lacks_methods() -> None:
    assert missing_parts(object) == list(uvicorn_host._PARTS)


async def test_a_hub_that_cannot_drive_a_connection(hub: Hub[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug above us: the client is told to come back, and uvicorn what happened."""

    def connect(*args: Any) -> Any:
        raise ZeroDivisionError

    async with served(hub) as port:
        monkeypatch.setattr(hub, "connect", connect)
        async with websocket(f"ws://127.0.0.1:{port}/rt/ws") as sock:
            with pytest.raises(ConnectionClosed) as closed:
                await sock.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3004
