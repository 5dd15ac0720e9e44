"""Handshakes that are wrong, hostile, huge or slow: what is answered, by host (W3, T10).

The tables say what each host does, also where that is not what we would do: an ASGI application cannot see what
its server lets through. In every row others are served meanwhile, and nothing is left of the attempt.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.support.rawsocket import KEY, Ended, Peer, RawSocket, frame, upgrade
from tests.transport.conftest import Site, until

#: No answer, and the connection was ended.
DROPPED: Final = "dropped"
#: No answer, and the connection is still open: the server waits for more, or has forgotten it.
SILENT: Final = "silent"

Answer = int | str


class Row:
    """A request and what becomes of it: the status, 101 for a WebSocket that works, or one of the words above.

    :param answer: of our own server, and of every host that is not named.
    :param ends: a refusal has to end the connection: after a head that parsers may understand differently,
        nothing on it can be trusted.
    :param others: by the name of the host.
    """

    def __init__(self, request: bytes, answer: Answer, *, ends: bool = False, **others: Answer) -> None:
        self.request = request
        self.ends = ends
        self._answer = answer
        self._others = others

    def of(self, host: str) -> Answer:
        return self._others.get(host, self._answer)


def lines(*headers: str, first: str = "GET /ws HTTP/1.1", end: str = "\r\n") -> bytes:
    """A head of just these lines."""
    return end.join((first, *headers, "", "")).encode("latin-1")


_FULL: Final = (
    "Host: test.example",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
)
_HELLO: Final = bytes.fromhex(
    "16030100c8010000c40303"
    + "5a" * 32
    + "20"
    + "a5" * 32
    + "0004130113020100007700000010000e00000b746573742e"
)

ROWS: Final = {
    # -- what must work
    "as it should be": Row(upgrade("/ws"), 101),
    "names and values in other cases": Row(
        upgrade("/ws", headers={"Upgrade": "WebSocket", "Connection": "keep-alive, UPGRADE"}), 101
    ),
    "two Connection headers": Row(
        upgrade("/ws", headers={"Connection": "keep-alive"}, extra=b"Connection: Upgrade\r\n"),
        101,
    ),
    "a cookie in Latin-1": Row(upgrade("/ws", headers={"Cookie": "name=café"}), 101),
    "white space around values": Row(upgrade("/ws", headers={"Upgrade": " \twebsocket\t "}), 101),
    "an absolute URL": Row(upgrade("http://test.example/ws"), 101),
    "90 more headers": Row(upgrade("/ws", extra=b"X-More: y\r\n" * 90), 101),
    "an unknown extension": Row(upgrade("/ws", headers={"Sec-WebSocket-Extensions": "x-own; a=1"}), 101),
    "deflate with impossible parameters": Row(
        upgrade("/ws", headers={"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits=99"}),
        101,
    ),
    # -- the handshake of RFC 6455, section 4.2
    "no key": Row(upgrade("/ws", headers={"Sec-WebSocket-Key": None}), 400),
    "a key of 15 bytes": Row(upgrade("/ws", headers={"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25j"}), 400),
    "a key that is not base64": Row(upgrade("/ws", headers={"Sec-WebSocket-Key": "*" * 24}), 400),
    "two keys": Row(upgrade("/ws", extra=f"Sec-WebSocket-Key: {KEY}\r\n".encode()), 400),
    "no version": Row(upgrade("/ws", headers={"Sec-WebSocket-Version": None}), 400),
    "version 12": Row(upgrade("/ws", headers={"Sec-WebSocket-Version": "12"}), 426, uvicorn=400),
    "versions 13 and 12": Row(upgrade("/ws", headers={"Sec-WebSocket-Version": "13, 12"}), 426, uvicorn=400),
    "a POST": Row(lines(*_FULL, "Content-Length: 0", first="POST /ws HTTP/1.1"), 405),
    "HTTP/1.0": Row(lines(*_FULL, first="GET /ws HTTP/1.0"), 426, uvicorn=101),
    "no Upgrade": Row(upgrade("/ws", headers={"Upgrade": None}), 426),
    "no Connection": Row(upgrade("/ws", headers={"Connection": "keep-alive"}), 426),
    "an upgrade to something else": Row(upgrade("/ws", headers={"Upgrade": "h2c"}), 426),
    "a malformed extension": Row(
        upgrade("/ws", headers={"Sec-WebSocket-Extensions": ";;="}), 101, uvicorn=400
    ),
    "a subprotocol that is not ASCII": Row(upgrade("/ws", headers={"Sec-WebSocket-Protocol": "café"}), 400),
    "a body": Row(lines(*_FULL, "Content-Length: 5") + b"hello", 400, uvicorn=SILENT),
    # -- who is asked for, and from where
    "no Host": Row(upgrade("/ws", headers={"Host": None}), 400),
    "two Hosts": Row(upgrade("/ws", extra=b"Host: evil.example\r\n"), 400),
    "two Origins": Row(
        upgrade("/ws", extra=b"Origin: http://test.example\r\nOrigin: http://evil.example\r\n"), 400
    ),
    "an empty line before": Row(b"\r\n" + upgrade("/ws"), 400),
    # -- where parsers disagree, and requests are smuggled
    "two lengths": Row(
        lines("Host: x", "Content-Length: 5", "Transfer-Encoding: chunked", first="POST /ready HTTP/1.1")
        + b"0\r\n\r\n",
        400,
        ends=True,
        uvicorn=405,
    ),
    "two Content-Lengths": Row(
        lines("Host: x", "Content-Length: 5", "Content-Length: 6", first="POST /ready HTTP/1.1"),
        400,
        ends=True,
    ),
    "a negative length": Row(
        lines("Host: x", "Content-Length: -1", first="POST /ready HTTP/1.1"), 400, ends=True
    ),
    "an endless length": Row(
        lines("Host: x", f"Content-Length: {'9' * 5000}", first="POST /ready HTTP/1.1"), 400, ends=True
    ),
    "bare line feeds": Row(lines(*_FULL, end="\n"), 400, ends=True, uvicorn=101),
    "bare carriage returns": Row(lines(*_FULL, end="\r") + b"\r\n\r\n", 400, ends=True),
    "NUL in a value": Row(upgrade("/ws", headers={"X-Odd": "a\0b"}), 400, ends=True),
    "a carriage return in a value": Row(upgrade("/ws", headers={"X-Odd": "a\rb"}), 400, ends=True),
    "a space before the colon": Row(upgrade("/ws", extra=b"X-Odd : y\r\n"), 400, ends=True),
    "a header without a colon": Row(upgrade("/ws", extra=b"X-Odd\r\n"), 400, ends=True),
    "an empty name": Row(upgrade("/ws", extra=b": y\r\n"), 400, ends=True),
    "a folded line": Row(upgrade("/ws", extra=b"X-Odd: a\r\n  b\r\n"), 101),
    "a space in the path": Row(lines(*_FULL, first="GET /ws ws HTTP/1.1"), 400, ends=True),
    "no path": Row(lines(*_FULL, first="GET  HTTP/1.1"), 400, ends=True),
    "a path without a slash": Row(upgrade("ws"), 404, uvicorn=101),
    "NUL in the path": Row(upgrade("/ws%00"), 404),
    "NUL in the query": Row(upgrade("/ws?a=%00"), 101),
    # -- not HTTP at all
    "a TLS hello": Row(_HELLO + b"\0" * 300, 400, ends=True),
    "the preface of HTTP/2": Row(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, ends=True, uvicorn=404),
    "HTTP/0.9": Row(b"GET /ws\r\n\r\n", 400, ends=True),
    "another protocol": Row(b"EHLO mail.example\r\n\r\n", 400, ends=True),
    "bytes": Row(bytes(range(256)) + b"\r\n\r\n", 400, ends=True),
    # -- too much
    "120 more headers": Row(upgrade("/ws", extra=b"X-More: y\r\n" * 120), 431, ends=True, uvicorn=101),
    "300 more headers": Row(upgrade("/ws", extra=b"X-More: y\r\n" * 300), 431, ends=True, uvicorn=SILENT),
    "a line of 12 KiB": Row(upgrade("/ws", headers={"X-More": "y" * 12 * 1024}), 101, uvicorn=SILENT),
    "60 KiB of headers": Row(
        upgrade("/ws", extra=(b"X-More: " + b"y" * 1014 + b"\r\n") * 60), 431, ends=True, uvicorn=101
    ),
    "a line of 300 KiB": Row(
        upgrade("/ws", headers={"X-More": "y" * 300 * 1024}), 431, ends=True, uvicorn=400
    ),
    "300 KiB of headers": Row(
        upgrade("/ws", extra=(b"X-More: " + b"y" * 3062 + b"\r\n") * 100), 431, ends=True, uvicorn=400
    ),
    "a path of 300 KiB": Row(upgrade("/" + "p" * 300 * 1024 + "/ws"), 431, ends=True, uvicorn=400),
    "300 KiB and no line end": Row(b"G" * 300 * 1024, 431, ends=True, uvicorn=400),
}


def _below(prefix: str, request: bytes) -> bytes:
    """The rows are written for a hub at the root; here it may be elsewhere."""
    for endpoint in (b"/ws", b"/ready"):
        request = request.replace(endpoint, prefix.encode() + endpoint)
    return request


async def _observe(site: Site, sock: RawSocket, neighbour: Peer) -> Answer:
    """What came back, once the server had every chance to say something."""
    for _ in range(3):
        assert await neighbour.echo("here") == "here"
        await site.clock.settle()
    if not sock.speaks:
        return SILENT
    try:
        return (await sock.response()).status
    except Ended:
        return DROPPED


#: What is known to be otherwise today, by host and row.
FAULTS: Final[dict[tuple[str, str], str]] = {}


@pytest.mark.parametrize("name", ROWS)
async def test_what_is_answered(site: Site, name: str, request: pytest.FixtureRequest) -> None:
    row = ROWS[name]
    if (fault := FAULTS.get((site.host.name, name))) is not None:
        request.applymarker(pytest.mark.xfail(reason=fault, strict=True))
    served = await site.open()
    neighbour = await site.client("neighbour")
    peer = await Peer.open(served.port)
    async with peer:
        await peer.send(_below(served.prefix, row.request))
        answer = await _observe(site, peer, neighbour)
        assert answer == row.of(site.host.name)
        if answer == 101:
            await peer.connect_as("ann")
            assert await peer.echo(name) == name
        elif row.ends and answer != SILENT and answer == row.of(""):
            try:
                await peer.send(lines("Host: x", first=f"GET {served.path('ready')} HTTP/1.1"))
            except ConnectionError:
                pass
            assert b"204" not in await peer.rest()
    await until(lambda: site.hub.statistics().sessions == 1)
    assert await neighbour.echo("here") == "here"


@pytest.mark.parametrize("how", ["rest", "reset"])
async def test_a_head_byte_by_byte(site: Site, how: str) -> None:
    """Patience within bounds: a slow but correct client is served, one that gives up leaves nothing."""
    served = await site.open()
    async with await Peer.open(served.port) as peer:
        request = upgrade(served.path("ws"))
        await peer.send_slowly(request[:-1])
        if how == "reset":
            peer.reset()
        else:
            await peer.send_slowly(request[-1:])
            await peer.accepted()
            _, unit = peer.unit("connect", token="ann")
            await peer.send_slowly(frame(unit))
            assert "connect" in await peer.next_unit()
            _, unit = peer.unit("rpc", method="echo", data="é")
            await peer.send_slowly(frame(unit))
            assert (await peer.next_unit())["rpc"] == {"data": "é"}
    await until(lambda: not served.transports())


async def test_frames_together_with_the_handshake(site: Site) -> None:
    """A client may not send them before it was answered; what comes early is for the WebSocket, or lost.

    uvicorn drops it: the bytes stay in its HTTP parser. The connection works all the same from then on.
    """
    served = await site.open()
    async with await Peer.open(served.port) as peer:
        _, unit = peer.unit("connect", token="ann")
        await peer.send(upgrade(served.path("ws")) + frame(unit))
        await peer.accepted()
        if site.host.name == "uvicorn":
            await peer.say(unit)
        assert "connect" in await peer.next_unit()
        assert await peer.echo("then") == "then"
        assert site.hub.statistics().sessions == 1


async def test_requests_one_after_another_on_one_connection(site: Site) -> None:
    """Keep-alive and pipelining, with the handshake last."""
    served = await site.open()
    async with await Peer.open(served.port) as peer:
        await peer.send(lines("Host: x", first=f"GET {served.path('ready')} HTTP/1.1") * 3)
        for _ in range(3):
            assert (await peer.response()).status == 204
        await peer.send(upgrade(served.path("ws")))
        await peer.accepted()
        await peer.connect_as("ann")


async def test_the_end_of_a_connection_that_asked_nothing(site: Site) -> None:
    """Port scanners, health checks of load balancers."""
    served = await site.open()
    for ending in ("close", "reset", "send_eof"):
        for said in (b"", b"GET", upgrade(served.path("ws"))[:-2]):
            sock = await site.socket()
            if said:
                await sock.send(said)
                await site.clock.settle()
            getattr(sock, ending)()
    await until(lambda: not served.transports() and not site.open_connections)


async def test_many_heads_that_never_end(site: Site) -> None:
    """Others are served meanwhile. Our own server drops them after 10 s; uvicorn waits as long as they do."""
    served = await site.open()
    neighbour = await site.client("neighbour")
    slow = [await site.socket() for _ in range(100)]
    for sock in slow:
        await sock.send(upgrade(served.path("ws"))[:-2])
    assert await neighbour.echo("here") == "here"
    # A byte now and then does not help: the deadline is for the whole head.
    for _ in range(3):
        await site.clock.advance(3)
        for sock in slow:
            await sock.send(b"X: y\r\n"[:1])
    assert await neighbour.echo("here") == "here"
    await site.clock.advance(2)
    assert await neighbour.echo("here") == "here"
    if site.host.can.ours:
        for sock in slow:
            await sock.rest()
            assert sock.how is not None
    else:
        assert not any(sock.speaks for sock in slow)


_POST: Final = "POST {path} HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("endpoint", ["ready", "ws", "nothing"])
async def test_bodies_too_large(site: Site, endpoint: str) -> None:
    """Nothing here takes a body. Our own server reads up to 1 MiB of it, to keep the connection of use."""
    served = await site.open()
    head = _POST.format(path=served.path(endpoint)).encode()
    usual = 404 if endpoint == "nothing" else 405
    async with await RawSocket.open(served.port) as sock:
        await sock.send(head + b"Content-Length: 1000000000000\r\n\r\n" + b"x" * 1000)
        assert (await sock.response()).status == (413 if site.host.can.ours else usual)
    async with await RawSocket.open(served.port) as sock:
        await sock.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        for _ in range(20):
            try:
                await sock.send(chunk)
            except ConnectionError:
                break
        assert (await sock.response()).status == (413 if site.host.can.ours else usual)
    async with await RawSocket.open(served.port) as sock:
        await sock.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")
        assert (await sock.response()).status == usual
    await until(lambda: not served.transports())


@pytest.mark.parametrize("kind", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_a_body_that_never_ends(site: Site, kind: str) -> None:
    """30 s for all of it, however busily it trickles in. An ASGI application answers without waiting for it."""
    site.build(heartbeat=None)
    served = await site.open()
    neighbour = await site.client("neighbour")
    sock = await site.socket()
    await sock.send(f"{_POST.format(path=served.path('ready'))}{kind}\r\n\r\n".encode())
    if site.host.can.ours:
        for _ in range(29):
            await site.clock.advance(1)
            await sock.send(b"1\r\nx\r\n" if "chunked" in kind else b"x")
        assert not sock.speaks
        assert await neighbour.echo("here") == "here"
        await site.clock.advance(1.1)
    answer = await sock.response()
    assert answer.status == (408 if site.host.can.ours else 405)
    if site.host.can.ours:
        assert await sock.rest() == b""


async def test_a_body_byte_by_byte(site: Site) -> None:
    served = await site.open()
    sock = await site.socket()
    head = _POST.format(path=served.path("ready")).encode() + b"Content-Length: 20\r\n\r\n"
    await sock.send_slowly(head + b"x" * 20)
    assert (await sock.response()).status == 405


async def test_a_body_that_was_asked_to_wait(site: Site) -> None:
    """``Expect: 100-continue``: nobody wants the body, so the answer comes instead."""
    served = await site.open()
    sock = await site.socket()
    await sock.send(
        f"{_POST.format(path=served.path('ready'))}Expect: 100-continue\r\nContent-Length: 20\r\n\r\n".encode()
    )
    assert (await sock.response()).status == 405


async def test_a_connection_that_says_nothing_at_all(site: Site) -> None:
    await site.open()
    sock = await site.socket()
    await site.clock.advance(60)
    if site.host.can.ours:
        assert await sock.rest() == b""
    else:
        assert not sock.speaks


async def test_no_tls_on_a_tls_port(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Dropped without an answer, in the middle of the handshake or before; others are served, nothing is logged."""
    served = await site.open(secure=True)
    neighbour = await site.client("neighbour")
    for said in (upgrade(served.path("ws")), b"\x16\x03\x01\xff\xff", _HELLO[:20], b"\0" * 1000, b""):
        for ending in ("close", "reset", "send_eof"):
            async with await RawSocket.open(served.port) as sock:
                if said:
                    await sock.send(said)
                    await site.clock.settle()
                getattr(sock, ending)()
                if ending == "send_eof":
                    assert b"HTTP/1.1" not in await sock.rest()
    assert await neighbour.echo("here") == "here"
    await until(lambda: len(served.transports()) == 1)
    assert not [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")]


async def test_a_refused_origin_costs_nothing(site: Site) -> None:
    """Checked before anything is made for the client: nothing counts as a connection."""
    served = await site.open()
    for _ in range(20):
        sock = await site.socket()
        await sock.send(upgrade(served.path("ws"), headers={"Origin": "https://evil.example"}))
        assert (await sock.response()).status == 403
    totals = site.hub.statistics().totals
    assert totals is not None
    assert totals.get("connections", 0) == 0
