"""Whatever the bytes, and however the network cuts them: the same answers, no exception, and an end."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rtkit.server import ServerLimits
from rtkit.server.http import HttpConnection
from rtkit.server.site import Site
from rtkit.testing.clock import ManualClock
from tests.unit.server.exchange import HttpAcceptor
from tests.unit.server.world import get, post, shake


class Network:
    """An asyncio transport in memory, whose peer reads everything."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.written = bytearray()
        self.over = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        assert not self.over
        self.written += data

    def close(self) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def write_eof(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.over

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


async def talk(pieces: list[bytes]) -> bytes:
    """What a server says to bytes that come in pieces."""
    clock = ManualClock()
    limits = ServerLimits(head=2000, body=3000, headers=20)
    site = Site(
        HttpAcceptor(echo=True), path="/rt", static=None, ssl=None, limits=limits, clock=clock, ready=None
    )
    network = Network()
    network.protocol = connection = HttpConnection(site)
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: problems.append(context))
    connection.connection_made(network)  # type: ignore[arg-type]
    for piece in pieces:
        if network.over:
            break
        network.protocol.data_received(piece)
        await clock.settle()
    if not network.over:
        network.protocol.eof_received()
        await clock.settle()
    await clock.advance(10)
    await clock.advance(30)
    if isinstance(network.protocol, HttpConnection) and network.protocol.waiting:
        network.close()  # as asyncio does when the client is done; here others get to say what they think of it
        await clock.settle()
    assert network.over, repr(network.protocol)
    assert site.size == 0
    assert not len(site.deadlines)
    assert not len(site.tasks)
    assert clock.timers == 0
    assert problems == []
    return bytes(network.written)


def run(pieces: list[bytes]) -> bytes:
    async def main() -> bytes:
        return await talk(pieces)

    return asyncio.run(main())


def statuses(said: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d\d\d)", said)


REQUESTS = [
    get(),
    get("/rt/x"),
    get("/rt/ready", method="HEAD"),
    get("/rt/ready", "Connection: close"),
    get(version="1.0"),
    get("/rt/ready", "Content-Length: 5", method="POST") + b"hello",
    get("/rt/ready", "Content-Length: 3001", method="POST") + b"x" * 3001,
    get("/rt/ready", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
    get("/rt/ready", "Transfer-Encoding: chunked", method="POST") + b"BB9\r\n" + b"x" * 0xBB9,
    get("/rt/ready", "Transfer-Encoding: chunked", "Content-Length: 3", method="POST") + b"0\r\n\r\n",
    get("/rt/ready", "Expect: 100-continue", "Content-Length: 3", method="POST") + b"abc",
    get("/rt/ready", "X: " + "y" * 3000),
    get("/rt/ready", *["X: y"] * 30),
    shake() + b"\x81\x80\0\0\0\0" + b"\x88\x80\0\0\0\0",
    shake(version="8"),
    shake() + b"\x81\x00",
    b"\x16\x03\x01\x02\x00",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    post(body=b"hello"),
    post(body=b"x" * 1001),
    get("/rt/send", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
    get("/rt/send", "Expect: 100-continue", "Content-Length: 3", method="POST") + b"abc",
    post("/rt/poll", b"{}"),
    post("/rt/sse", b"{}"),
    post("/rt/sse", b"{}", version="1.0"),
    b"\r\n",
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(REQUESTS), max_size=4).map(b"".join),
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
)
def test_any_cut_gets_the_same_answers(stream: bytes, cuts: list[int]) -> None:
    pieces, rest = list[bytes](), stream
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    whole, cut_up = run([stream] if stream else []), run([piece for piece in pieces if piece])
    # What is wrong may be seen, and said, earlier; that it is, is seen in the same place.
    assert statuses(cut_up) == statuses(whole)
    if b" 400 " not in whole:
        assert cut_up == whole


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*REQUESTS, b"GET /rt/ready HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"Content-Length: 2\r\n"]
        )
        | st.binary(max_size=40),
        max_size=8,
    ).map(b"".join),
    st.data(),
)
def test_nothing_breaks_it(stream: bytes, data: st.DataObject) -> None:
    """Requests with bytes changed, left out and put in."""
    changed = bytearray(stream)
    for _ in range(data.draw(st.integers(0, 4)) if stream else 0):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    said = run([bytes(changed)] if changed else [])
    assert said == b"" or said.startswith(b"HTTP/1.1 ")
