"""HTTP on real sockets of this machine, against a server that says what the test wants, to the byte."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable

import h11
import pytest
from websockets.asyncio.server import ServerConnection, serve

from rtkit.client import (
    DialFailed,
    PollDialer,
    SseDialer,
    TransportName,
    WireClosed,
    connect,
    connecting,
    http,
)
from rtkit.client.http import HttpFailed, http_maker
from rtkit.client.websocket import version
from rtkit.errors import ConnectionClosed
from tests.support.hosts import CERTIFICATE, client_context

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with what comes next, to the byte; then, or after ``b""``, cuts the connection."""

    def __init__(self, answers: list[Answer], ssl: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.requests: list[tuple[h11.Request, bytes]] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._ssl = ssl

    def url(self, path: str = "/rt/ws", user: str = "") -> str:
        return f"{'wss' if self._ssl else 'ws'}://{user}127.0.0.1:{self.port}{path}"

    @property
    def targets(self) -> list[str]:
        return [f"{r.method.decode()} {r.target.decode()}" for r, _ in self.requests]

    def header(self, name: str, n: int = 0) -> str | None:
        found = [v.decode() for k, v in self.requests[n][0].headers if k == name.lower().encode()]
        return found[0] if found else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError):
                while (request := await self._read(reader)) is not None:
                    self.requests.append(request)
                    if not self.answers:
                        return
                    answer = self.answers.pop(0)
                    if callable(answer):
                        await answer(writer)
                        return
                    if not answer:
                        return
                    writer.write(answer)
        finally:
            self.open -= 1
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes] | None:
        parser = h11.Connection(h11.SERVER)
        request, body = None, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data and request is None:
                    return None
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return request, body
            else:
                return None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._ssl)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


def serving(
    *answers: Answer, ssl: ssl.SSLContext | None = None
) -> contextlib.AbstractAsyncContextManager[Server]:
    return Server(list(answers), ssl).running()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what it waits for happens in sockets
            await asyncio.sleep(0.001)


async def gone(server: Server) -> None:
    """The client has let go of every connection."""
    await until(lambda: not server.open)


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


def body(text: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(text), more, text)


async def test_what_a_request_says() -> None:
    async with serving(OK) as server:
        made = http_maker()(server.url("/a/rt/ws?x=1&y=é", user="me:p%40ss@"), {"X-A": "b"})
        answer = await made.request("POST", "send", query="z=2", headers={"RT-Seq": "1"}, body=b"ab")
        assert (answer.status, answer.body) == (204, b"")
        assert server.targets == ["POST /a/rt/send?x=1&y=%C3%A9&z=2"]
        assert server.requests[0][1] == b"ab"
        assert server.header("Host") == f"127.0.0.1:{server.port}"
        assert server.header("User-Agent") == f"rtkit-python/{version()}"
        assert server.header("Authorization") == "Basic " + base64.b64encode(b"me:p@ss").decode()
        assert (server.header("X-A"), server.header("RT-Seq")) == ("b", "1")
        assert server.header("Accept-Encoding") is None
        assert server.header("Cookie") is None
        await made.aclose()
        await gone(server)


async def test_headers_of_the_applications_own_win() -> None:
    own = {"User-Agent": "mine", "Authorization": "Bearer x", "Host": "example.org", "X-Latin": "é"}
    async with serving(OK) as server:
        made = http_maker()(server.url(user="me:pw@"), own)
        await made.request("GET", "ready")
        await made.aclose()
        for name, value in own.items():
            found = [v for k, v in server.requests[0][0].headers if k == name.lower().encode()]
            assert found == [value.encode("latin-1")]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/ws", "/ready"),
        ("/rt/ws", "/rt/ready"),
        ("/rt/connection/websocket", "/rt/ready"),
        ("/connection/websocket", "/ready"),
        ("/%C3%A9/é/ws", "/%C3%A9/%C3%A9/ready"),
    ],
)
async def test_where_the_other_endpoints_are(path: str, target: str) -> None:
    async with serving(OK) as server:
        made = http_maker()(server.url(path), {})
        await made.request("GET", "ready")
        await made.aclose()
        assert server.targets == [f"GET {target}"]


async def test_connections_are_used_again_and_no_cookies_kept() -> None:
    async with serving(body(b"a", b"Set-Cookie: a=b\r\n"), body(b"b")) as server:
        made = http_maker()(server.url(), {})
        assert (await made.request("GET", "poll")).body == b"a"
        assert (await made.request("GET", "poll")).body == b"b"
        assert server.connections == 1
        assert server.header("Cookie", 1) is None
        await made.aclose()
        await made.aclose()
        await gone(server)


async def test_redirects_are_not_followed() -> None:
    async with serving(b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n") as server:
        made = http_maker()(server.url(), {})
        answer = await made.request("POST", "send")
        await made.aclose()
        assert (answer.status, answer.headers["location"]) == (307, "/elsewhere")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    ],
    ids=range(9),
)
async def test_an_answer_that_is_not_whole_or_lies_is_a_failure(answer: bytes) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with serving(say) as server:
        made = http_maker()(server.url(user="u:secret@"), {})
        with pytest.raises(HttpFailed) as failed:
            await made.request("GET", "poll", headers={"RT-Session": "hidden"})
        assert "secret" not in str(failed.value)
        assert "hidden" not in str(failed.value)
        await made.aclose()
        await gone(server)


async def test_an_answer_larger_than_allowed_is_a_failure() -> None:
    async with serving(body(b"x" * 1001), body(b"x" * 1000)) as server:
        made = http_maker()(server.url(), {})
        with pytest.raises(HttpFailed, match="more than 1000 bytes"):
            await made.request("GET", "poll", max_size=1000)
        assert len((await made.request("GET", "poll", max_size=1000)).body) == 1000
        await made.aclose()


async def test_a_server_that_is_not_there() -> None:
    async with serving() as server:
        pass
    made = http_maker()(server.url(), {})
    with pytest.raises(HttpFailed):
        await made.request("GET", "ready")
    await made.aclose()


async def test_cancelling_leaves_no_socket_open_whatever_was_going_on() -> None:
    """Also half-way through a TLS handshake; an open socket would be a warning, and that an error."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # the beginning of a request, or of a handshake: then nobody closes it for us
        connected.set()
        await reader.read()
        writer.close()
        closed.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for scheme in ("ws", "wss"):
        connected, closed = asyncio.Event(), asyncio.Event()
        made = http_maker()(f"{scheme}://127.0.0.1:{port}/ws", {})
        asking = asyncio.create_task(made.request("GET", "ready"))
        async with asyncio.timeout(5):
            await connected.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await made.aclose()
            await closed.wait()
    server.close()
    gc.collect()


async def test_over_tls_and_not_with_a_certificate_nobody_vouches_for() -> None:
    async with serving(OK, ssl=server_context()) as server:
        made = http_maker(ssl=client_context())(server.url().replace("127.0.0.1", "localhost"), {})
        assert (await made.request("GET", "ready")).status == 204
        await made.aclose()
        stranger = http_maker()(server.url().replace("127.0.0.1", "localhost"), {})
        with pytest.raises(DialFailed) as failed:
            await stranger.request("GET", "ready")
        assert (failed.value.terminal, failed.value.code) == (True, 1015)
        await stranger.aclose()


async def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(OK, OK) as proxy:
        where = f"http://me:pw@127.0.0.1:{proxy.port}"
        made = http_maker(proxy=where)("ws://example.test/rt/ws", {})
        assert (await made.request("GET", "ready")).status == 204
        await made.aclose()
        assert proxy.targets == ["GET http://example.test/rt/ready"]
        assert proxy.header("Proxy-Authorization") == "Basic " + base64.b64encode(b"me:pw").decode()
        monkeypatch.setenv("http_proxy", where)
        made = http_maker(proxy=True)("ws://example.test/rt/ws", {})
        await made.request("GET", "ready")
        await made.aclose()
        assert len(proxy.targets) == 2
    for bad in ("nonsense://secret@x", "http://secret@x:port"):
        with pytest.raises(DialFailed) as failed:
            http_maker(proxy=bad)("ws://example.test/rt/ws", {})
        assert "secret" not in str(failed.value)


async def test_the_environments_proxy_is_used_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(OK) as server:
        made = http_maker()(server.url(), {})
        assert (await made.request("GET", "ready")).status == 204
        await made.aclose()
    monkeypatch.setenv("no_proxy", "*")
    async with serving(OK) as server:
        made = http_maker(proxy=True)(server.url(), {})
        assert (await made.request("GET", "ready")).status == 204
        await made.aclose()


# -- the transports on it ----------------------------------------------------------------------------------

HELLO = b'{"id":1,"connect":{}}'
CONNECTED = b'{"id":1,"connect":{"client":"c","session":"s"}}'


async def test_a_stream_cut_in_the_middle_of_an_event() -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + b"\r\n:\n\ndata: %b\n\n" % CONNECTED)
        for byte in "data: ä\r\n\r\n".encode():
            writer.write(bytes([byte]))
            await writer.drain()
        writer.write(b"data: half")

    async with serving(say) as server:
        wire = await SseDialer().open(server.url(), {}, HELLO)
        assert await wire.recv() == CONNECTED
        assert await wire.recv() == "ä".encode()
        with pytest.raises(WireClosed) as closed:
            await wire.recv()
        assert closed.value.code == 1006
        await wire.close(3000, "")
        assert server.targets == ["POST /rt/sse"]
        assert server.requests[0][1] == HELLO


async def test_a_chunked_stream_that_lies_about_its_length() -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\nffff\r\ndata: x\n\n")

    async with serving(say) as server:
        wire = await SseDialer().open(server.url(), {}, HELLO)
        assert await wire.recv() == b"x"
        with pytest.raises(WireClosed) as closed:
            await wire.recv()
        assert closed.value.code == 1006
        await wire.close(3000, "")
        await gone(server)


async def test_long_polling() -> None:
    def batch(n: int, *units: bytes) -> bytes:
        return body(b'{"batch":%d,"replies":[%b]}' % (n, b",".join(units)))

    async def hold(writer: asyncio.StreamWriter) -> None:
        await holding.wait()

    holding = asyncio.Event()
    async with serving(batch(1, CONNECTED), batch(2, b'{"a":1}', b'{"b":2}'), b"", hold, OK) as server:
        wire = await PollDialer().open(server.url("/rt/ws?q=1"), {}, HELLO)
        assert await wire.recv() == CONNECTED
        assert await wire.recv() == b'{"a":1}\n{"b":2}'
        await until(lambda: len(server.requests) == 4)
        await wire.close(1000, "")
        assert server.targets == [
            "POST /rt/poll?q=1",
            "GET /rt/poll?q=1&ack=1",
            "GET /rt/poll?q=1&ack=2",
            "GET /rt/poll?q=1&ack=2",
            "DELETE /rt/send?q=1",
        ]
        assert server.header("RT-Session", 4) == "s"
        holding.set()
        await gone(server)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http, connecting):
        monkeypatch.setattr(module, "http_is_installed", lambda: False)


@pytest.mark.usefixtures("no_library")
async def test_without_the_library_it_is_said_what_to_install() -> None:
    for dialer in (SseDialer(), PollDialer()):
        with pytest.raises(DialFailed, match=r"pip install 'rtkit\[http\]'") as failed:
            await dialer.open("ws://127.0.0.1:1/ws", {}, HELLO)
        assert failed.value.terminal
    orders: list[tuple[TransportName, ...]] = [("sse",), ("sse", "poll"), ("poll", "sse")]
    for order in orders:
        with pytest.raises(ConnectionClosed, match=r"pip install 'rtkit\[http\]'"):
            async with connect("ws://127.0.0.1:1/ws", transports=order):
                pass


@pytest.mark.usefixtures("no_library")
async def test_without_the_library_a_websocket_alone_works_as_ever() -> None:
    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", receive_only=True) as client:
            assert client.transport == "websocket"
            assert await client.call(name="x") is None
    async with serving(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        with pytest.raises(ConnectionClosed, match=r"HTTP 426.*pip install 'rtkit\[http\]'"):
            async with connect(proxy.url()):
                pass
        assert proxy.targets == ["GET /rt/ws"]


async def talk(ws: ServerConnection) -> None:
    """The least a hub does."""
    async for frame in ws:
        for line in str(frame).splitlines():
            command = json.loads(line)
            if "connect" in command:
                await ws.send(json.dumps({"id": command["id"], "connect": {"client": "c", "rt": {"v": 1}}}))
            elif "rpc" in command:
                await ws.send(json.dumps({"id": command["id"], "rpc": {}}))


async def test_a_certificate_nobody_vouches_for_is_no_reason_to_try_something_else() -> None:
    async with serving(ssl=server_context()) as server:
        with pytest.raises(ConnectionClosed) as closed:
            async with connect(server.url().replace("127.0.0.1", "localhost"), transports=("sse", "poll")):
                pass
        assert closed.value.code == 1015
