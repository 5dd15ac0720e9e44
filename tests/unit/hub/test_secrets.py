"""Tokens, cookies, session ids and resume tokens are written nowhere: a search of everything that is written (A5).

Real sockets, real clients over every transport, every logger at DEBUG, and much that goes wrong. Then everything that
can be read is searched: log records of whatever library, the names of counters, the repr of every object of rtkit's
that is alive, and the URLs the server was asked for.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import re
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import websockets.asyncio.client
import websockets.exceptions

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.client import Policy, TransportName, connect
from rtkit.errors import CallError, ConnectionClosed
from rtkit.ext.http_api import HttpApi
from rtkit.hub.resume import write_token
from rtkit.server import Server
from rtkit.transports import Answer, Handshake, HttpRequest
from tests.support.servers import serve_asgi

MARK = "m4rk"
TOKEN, COOKIE, STREAM, OWN = (
    f"{MARK}-token",
    f"{MARK}-cookie",
    f"{MARK}-stream",
    f"{MARK}-own-and-long-enough",
)
SOON = Policy(min_delay=0.01, max_delay=0.02)


class Watched(Hub[Any]):
    """A hub that notes what it was asked for, and which secrets it has given out."""

    def __init__(self, **options: Any) -> None:
        async def noting(credentials: Credentials) -> Identity[Any]:
            self.shown.append(credentials.token)
            return await authenticate(credentials)

        super().__init__(authenticate=noting, limits=Limits(auth_timeout=0.2), **options)
        self.urls: list[str] = []
        self.heads: list[object] = []
        self.given: set[str] = set()
        self.shown: list[str | None] = []

        rooms = self.rooms("room:{x}", publishes=object, history=History(100, ttl=60))

        @rooms.authorize
        async def authorize(ctx: Context[Any, Any]) -> Grant:
            if ctx.room.params["x"] == "broken":
                raise RuntimeError("the guard")
            if ctx.room.params["x"] == "shut":
                raise Reject("not here")
            return Grant("publish", "history")

        @self.rpc(object, name="fail")
        async def fail(ctx: Context[Any, Any], data: Any) -> None:
            raise RuntimeError("the handler")

        @self.rpc(object, name="wait")
        async def wait(ctx: Context[Any, Any], data: Any) -> None:
            await asyncio.Event().wait()

    def admit(self, handshake: Handshake) -> None:
        self.note(handshake)
        super().admit(handshake)

    async def answer(self, request: HttpRequest) -> Answer:
        self.note(request.handshake)
        self.heads.append(request)
        found = await super().answer(request)
        self.heads.append(found)
        self.given |= {each.partition(".")[2] for each in self.engine.web.sessions}
        return found

    def note(self, handshake: Handshake) -> None:
        self.urls.append(f"{handshake.path}?{handshake.query}")
        self.heads.append(handshake)


async def authenticate(credentials: Credentials) -> Identity[Any]:
    assert COOKIE in credentials.cookies.get("sid", COOKIE)
    if credentials.data == "broken":
        raise RuntimeError("the database")
    if credentials.data == "slow":
        await asyncio.Event().wait()
    if credentials.token in (TOKEN, STREAM):
        return Identity("ann", {"token": credentials.token})
    if credentials.token == f"{MARK}-old":
        raise Reject("old", code=109)
    raise Reject("no", code=101)


@asynccontextmanager
async def own(hub: Watched) -> AsyncGenerator[str]:
    server = Server(hub, api=HttpApi(hub, key=OWN))
    await hub.start()
    await server.start(port=0)
    try:
        yield server.url
    finally:
        await hub.aclose()
        await server.aclose()


@asynccontextmanager
async def uvicorn(hub: Watched) -> AsyncGenerator[str]:
    async with serve_asgi(hub, lifespan="on") as port:
        yield f"http://127.0.0.1:{port}"


class Searched:
    """All that was written, to be searched."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.formatter = logging.Formatter()
        self.read = 0  # records
        self.secrets: set[str] = set()  # that these were searched for

    def records(self) -> Iterator[tuple[str, str]]:
        found = self.caplog.get_records("call")
        for record in found[self.read :]:
            # A server of others, and a raw client, may do as they like; see docs/how-to/authenticate.md.
            if not record.name.startswith(("uvicorn", "raw")):
                text = self.formatter.format(record) + repr(record.__dict__)
                yield f"{record.name} at {record.levelname}: {record.msg}", text
        self.read = len(found)

    def objects(self) -> Iterator[tuple[str, str]]:
        for each in gc.get_objects():
            type_ = type(each)
            if isinstance(type_.__module__, str) and type_.__module__.startswith("rtkit."):
                with suppress(RuntimeError, AttributeError):  # what other tests have left half made
                    yield f"{type_.__module__}.{type_.__qualname__}", repr(each)

    def search(self, hub: Watched, *more: object) -> set[str]:
        """Where a secret was found."""
        secrets = {MARK, *hub.given}
        if secrets != self.secrets:
            self.secrets, self.read = secrets, 0  # a new one may have been written before
        pattern = re.compile("|".join(map(re.escape, secrets)))
        named = (
            *self.records(),
            *self.objects(),
            *((type(each).__name__, repr(each)) for each in (hub, *hub.heads, *more)),
            ("counters", repr(hub.statistics())),
        )
        return {where for where, text in named if pattern.search(text)}


@pytest.mark.parametrize("serve", [own, pytest.param(uvicorn, marks=pytest.mark.soak)])
async def test_no_secret_is_written_anywhere(
    caplog: pytest.LogCaptureFixture, errors: Any, monkeypatch: pytest.MonkeyPatch, serve: Any
) -> None:
    """A5."""
    caplog.set_level(logging.DEBUG)
    hub, searched = Watched(broker=MemoryBroker(MemoryBackend())), Searched(caplog)

    def noting(*args: Any, **options: Any) -> str:
        found = write_token(*args, **options)
        hub.given.add(found)
        return found

    monkeypatch.setattr("rtkit.hub.parking.write_token", noting)
    async with serve(hub) as url:
        for transport in ("websocket", "sse", "poll"):
            await live(hub, searched, url, transport)
        assert len(hub.given) >= 3 * 2 + 2 * 2, (
            "each has had two resume tokens, and two of them two session ids"
        )
        secrets = {MARK, *hub.given}
        assert [url for url in hub.urls if any(secret in url for secret in secrets)] == []
        await asyncio.gather(*(turned_away(url, *each) for each in itertools.product(TRANSPORTS, REFUSED)))
        asked = len(hub.heads)
        await raw_requests(hub, url)
        await raw_socket(url)
        assert len(hub.heads) > asked + 10
        assert searched.search(hub) == set()
    assert searched.search(hub) == set()
    failed = {record.getMessage().split(",")[0].split("error")[0] for record in errors()}
    assert failed >= {"authenticate failed", "unexpected ", "handler fail failed"}, "much has"


TRANSPORTS: tuple[TransportName, ...] = ("websocket", "sse", "poll")
HEADERS = {"cookie": f"sid={COOKIE}", "authorization": f"Bearer {MARK}-bearer"}


async def live(hub: Watched, searched: Searched, url: str, transport: TransportName) -> None:
    """Somebody is there, does what fails, is cut off, comes back, shows other tokens, and is thrown out."""
    wrong = False

    async def token() -> str:
        return f"{MARK}-wrong" if wrong else TOKEN

    async with (
        asyncio.timeout(20),
        connect(url, token=token, headers=HEADERS, transports=[transport], policy=SOON) as client,
    ):
        room = await client.join("room:a").joined()
        await room.send("hello")
        broken = client.join("room:broken")  # is tried again and again
        for name in ("room:shut", "nowhere"):
            with pytest.raises(CallError):
                await client.join(name).joined()
        for call in ("fail", "unknown"):
            with pytest.raises(CallError):
                await client.call(1, name=call)
        await broken.leave()
        (session,) = hub.engine.sessions.values()
        assert searched.search(hub, client, room, session, session.connection) == set()
        assert session.connection is not None
        given = len(hub.given)
        session.connection.close(3000, "again")
        await until(lambda: len(hub.given) > given and session.connection is not None)
        wrong = True
        await hub.user("ann").refresh()
        await until(lambda: hub.shown[-1] == f"{MARK}-wrong")
        wrong = False
        with pytest.raises(CallError):
            await client.call(1, name="fail")  # so that nothing is under way any more
        await hub.user("ann").close(code=4501)
        await client.wait_state("closed")


async def until(done: Callable[[], bool]) -> None:
    """Wait for what real sockets bring."""
    while not done():  # noqa: ASYNC110 - there is nobody to tell
        await asyncio.sleep(0.002)


#: Token and data of those who are not let in.
REFUSED = (
    (f"{MARK}-unknown", None),
    (f"{MARK}-old", None),
    (TOKEN, "broken"),
    (TOKEN, "slow"),
)


async def turned_away(url: str, transport: TransportName, shown: tuple[str, Any]) -> None:
    """Refused for good, or told to come again, which it does not live to do."""
    token, data = shown
    options: dict[str, Any] = {"token": token, "data": data, "headers": HEADERS, "transports": [transport]}
    async with connect(url, policy=Policy(min_delay=30, max_delay=60), wait=False, **options) as client:
        await client.wait_state("waiting", "closed", timeout=10)
        try:
            await client.wait_state("connected", timeout=0.001)
        except (ConnectionClosed, TimeoutError) as error:
            assert MARK not in "".join(traceback.format_exception(error)) + repr(error) + repr(client)


async def request(
    url: str, method: str, path: str, headers: dict[str, str], body: bytes = b"", *, goes_on: bool = False
) -> bytes:
    """One request, and its answer; of one that goes on the beginning."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = [f"{method} {parts.path}{path} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in {**HEADERS, **headers, "connection": "close"}.items()]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    try:
        async with asyncio.timeout(10):
            return await (reader.readuntil(b"data: ") if goes_on else reader.read(65536))
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def raw_requests(hub: Watched, url: str) -> None:
    """What no client of ours would say, with a secret wherever there is room for one."""
    connecting = json.dumps({"id": 1, "connect": {"token": TOKEN, "data": "broken", "rt": {"resume": MARK}}})
    session = {"rt-session": f"{hub.node_id}.{MARK}-session", "rt-seq": "1"}
    asked = [
        request(url, "POST", "/sse", {}, connecting.encode()),
        request(url, "POST", "/poll", {}, connecting.encode()),
        request(url, "POST", "/poll", {}, b'{"id": 1, "connect": {"token": "m4rk'),
        request(url, "POST", "/poll", {}, b'{"id": 1, "subscribe": {"token": "m4rk"}}'),
        request(url, "GET", "/sse?cf_connect=" + quote(connecting), {}),
        request(url, "GET", "/poll?ack=1", session),
        request(url, "POST", "/send", session, b'{"id": 2, "refresh": {"token": "m4rk"}}'),
        request(url, "POST", "/send", {**session, "rt-session": f"other.{MARK}"}, b"m4rk"),
        request(url, "DELETE", "/send", session),
        request(
            url, "POST", "/emulation", {}, json.dumps({"session": MARK, "node": MARK, "data": MARK}).encode()
        ),
        request(url, "GET", f"/events?room=room:a&token={STREAM}", {}, goes_on=True),
        request(url, "GET", f"/events?room=room:shut&token={STREAM}", {}),
        request(url, "GET", f"/events?room=room:broken&token={STREAM}", {}),
        request(url, "GET", f"/events?room=room:a&token={MARK}-unknown", {"last-event-id": MARK}),
        request(url, "GET", f"/events?room=room:a&token={MARK}-old", {"last-event-id": MARK}),
        request(url, "POST", "/poll", {"origin": f"https://{MARK}.example"}, connecting.encode()),
        request(url, "POST", f"/nowhere?token={MARK}", {}),
        request(url, "GET", f"/ws?token={MARK}", {}),
        request(url, "BREW", f"/ws?token={MARK}", {"x\x00y": MARK}),
    ]
    assert all(await asyncio.gather(*asked))


async def raw_socket(url: str) -> None:
    """Frames that are none, before and after somebody has authenticated."""
    connecting = json.dumps({"id": 1, "connect": {"token": TOKEN, "rt": {"v": 1, "resume": MARK}}})
    said: tuple[list[str | bytes], ...] = (
        [f'{{"id": 1, "connect": {{"token": "{MARK}'],
        [f'{{"id": 1, "refresh": {{"token": "{MARK}"}}}}'],
        [f'{{"id": 1, "connect": {{"token": "{MARK}", "data": 5, "rt": 7}}}}'],
        [connecting, connecting],
        [connecting, f'{{"id": 2, "subscribe": {{"channel": "room:broken", "token": "{MARK}"}}}}'],
        [connecting, f'{{"id": 2, "subscribe": {{"channel": 7, "token": "{MARK}"}}}}'],
        [
            connecting,
            f'{{"id": 2, "refresh": {{"token": "{MARK}"}}}}',
            f'{{"id": 3, "nonsense": "{MARK}"}}',
            MARK,
        ],
        [connecting.encode()],
    )
    await asyncio.gather(*(converse(url, frames) for frames in said))


async def converse(url: str, frames: list[str | bytes]) -> None:
    async with websockets.asyncio.client.connect(
        f"ws{url.removeprefix('http')}/ws?token={MARK}",
        additional_headers=HEADERS,
        logger=logging.getLogger("raw"),
        compression=None,
    ) as socket:
        with suppress(TimeoutError, websockets.exceptions.ConnectionClosed):
            for frame in frames:
                await socket.send(frame)
            async with asyncio.timeout(0.1):
                while True:
                    await socket.recv()
