"""The HTTP of our own server against h11 as the judge, on requests that hypothesis makes and breaks.

Whatever comes: no exception, no more than one answer for each request that there was, each of them valid HTTP to h11's
own client, and then others are served. What h11 refuses we refuse; what we refuse beyond is on purpose (a bare line
feed, two lengths, trailers, too much of a head), and named here. However the network cuts it, the answers are the same.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from typing import Any

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtkit.primitives.deadlines import Deadlines
from rtkit.server import ServerLimits
from rtkit.server.http import HttpConnection
from rtkit.server.site import Site
from rtkit.testing.clock import ManualClock
from tests.unit.server.exchange import HttpAcceptor

#: The same examples in each run: CI is to find what a change broke, and nothing else.
BOUNDED = settings(max_examples=60, derandomize=True, database=None)
LIMITS = ServerLimits(head=2000, headers=20, body=5000)


class Wire(asyncio.Transport):
    """An asyncio transport that writes down what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.ended = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.ended, "written behind the end"
        self.said += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_protocol(self, protocol: Any) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def serve(pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    """What a connection answers to these bytes, and whether it has closed."""
    clock = ManualClock()
    site = Site(HttpAcceptor(), path="/rt", static=None, ssl=None, limits=LIMITS, clock=clock, ready=None)
    connection, wire = HttpConnection(site), Wire()
    connection.connection_made(wire)
    try:
        for piece in pieces:
            # A paused transport holds it back until it is wanted.
            for _ in range(200):
                if not wire.paused:
                    break
                await asyncio.sleep(0)
            if wire.ended or wire.paused:
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        quiet, before = 0, b""
        while quiet < 5:
            await asyncio.sleep(0)
            quiet = quiet + 1 if wire.said == before else 0
            before = wire.said
        assert not site.pipes.open, "none of these is a WebSocket"
        return wire.said, wire.ended
    finally:
        connection.connection_lost(None)
        await site.tasks.aclose(timeout=1)
        assert isinstance(site.deadlines, Deadlines)
        site.deadlines.close()


def answers(said: bytes, methods: Sequence[str]) -> list[int]:
    """The statuses of what was answered, read by h11's client; anything it does not take fails.

    :param methods: of the requests as far as they are known; HEAD is answered without a body.
    """
    client, found = h11.Connection(h11.CLIENT), list[int]()
    client.receive_data(said)
    for n in range(len(said)):  # a bound, and no count
        method = methods[n] if n < len(methods) else "GET"
        if not client.trailing_data[0]:
            break
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        while True:
            event = client.next_event()
            assert event not in (h11.NEED_DATA, h11.PAUSED), "half an answer"
            if isinstance(event, h11.Response):
                found.append(event.status_code)
            if isinstance(event, h11.EndOfMessage):
                break
            assert not isinstance(event, h11.ConnectionClosed)
        if client.our_state is not h11.DONE:
            assert not client.trailing_data[0], "an answer behind the last one"
            break
        client.start_next_cycle()
    return found


def judged(data: bytes) -> tuple[int, list[str], bool]:
    """What h11 makes of it: how many whole requests, with which methods, and whether the rest is no HTTP."""
    server, count, methods = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMITS.head), 0, list[str]()
    server.receive_data(data)
    try:
        while True:
            event = server.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED):
                asked = server.their_state not in (h11.IDLE, h11.SEND_BODY)  # done, or waiting for an upgrade
                if asked and server.our_state is h11.SEND_RESPONSE:
                    server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    server.send(h11.EndOfMessage())
                    if server.our_state is not h11.DONE:
                        return count, methods, False  # the last that it wanted
                    server.start_next_cycle()
                    continue
                return count, methods, False
            if isinstance(event, h11.Request):
                methods.append(event.method.decode())
            if isinstance(event, h11.EndOfMessage):
                count += 1
                if server.their_state is h11.MUST_CLOSE:
                    return count, methods, False  # the last that it wanted, whatever comes behind it
            if isinstance(event, h11.ConnectionClosed):
                return count, methods, False
    except h11.RemoteProtocolError:
        return count, methods, True


NAMES = (
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Expect",
    "Host",
    "X-A",
    "Upgrade",
    "Origin",
    "X A",
    "",
)
VALUES = (
    "0",
    "5",
    "05",
    "+5",
    "5, 5",
    "chunked",
    "gzip, chunked",
    "close",
    "keep-alive",
    "100-continue",
    "x",
    "\t5 ",
    "\x00",
)
headers = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=5)
ends = st.sampled_from(["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is nearly one."""
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "DELETE", "PRI", "get", "G T", ""]))
    target = draw(
        st.sampled_from(
            ["/rt/ready", "/rt/send", "/rt/nothing", "/", "*", "http://x/rt/ready", "/%zz", "/a b", ""]
        )
    )
    version = draw(st.sampled_from(["HTTP/1.1"] * 5 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", ""]))
    end = draw(ends)
    lines = [
        f"{method} {target} {version}",
        "Host: x",
        *(f"{name}: {value}" for name, value in draw(headers)),
    ]
    body = draw(
        st.sampled_from(
            [b"", b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"fffffffff\r\n"]
        )
    )
    return end.join(lines).encode("latin-1") + end.encode() * 2 + body


streams = st.lists(requests(), min_size=1, max_size=3).map(b"".join)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(each % (len(data) + 1) for each in at)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


REFUSALS = (400, 408, 413, 417, 431, 501, 503, 505)
#: What we refuse and h11 does not, in an answer that says so: each has a row in tests/unit/server/test_http.py.
BEYOND = re.compile(
    rb"(?<!\r)\n"  # lines that end in a line feed alone
    rb"|Content-Length[^\0]*Transfer-Encoding|Transfer-Encoding[^\0]*Content-Length"  # two lengths
    rb"|0\r\nX: y\r\n"  # trailers
    rb"|HTTP/(?!1\.[01]\r)"  # versions that are not ours
    rb"|Origin: [^\0]*Origin: "  # two of it
)


@given(streams, st.lists(st.integers(0, 5000), max_size=6))
@example(b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n\r\nGET /rt/ready HTTP/1.1\r\nHost: x\r\n\r\n", [3])
@example(b"HEAD /rt/ready HTTP/1.1\nHost: x\n\n", [])  # found here: the refusal had a body
@example(b"POST /rt/send HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", [])
@BOUNDED
async def test_nearly_requests_are_answered_as_h11_judges(data: bytes, at: list[int]) -> None:
    said, ended = await serve(cut(data, at))
    whole, methods, broken = judged(data)
    statuses = answers(said, methods)
    # One answer for each request; one more for what is no request, and what is refused before it is whole.
    assert len(statuses) <= whole + 1
    if broken:
        assert ended
        # Who waits to be told to go on, and is not, is answered and hung up on: what comes then is not looked at.
        assert statuses[-1] >= 400 or b"Expect: 100-continue" in data
    fine = [status for status in statuses if status < 400]
    assert len(fine) <= whole
    if statuses and statuses[-1] in REFUSALS:
        assert ended
        assert broken or BEYOND.search(data), "h11 takes it, and no reason of ours is there"
    if not ended:
        assert len(statuses) == whole, "a request without an answer"
    assert all(status < 500 or status in (501, 505) for status in statuses)


@given(streams, st.lists(st.integers(0, 5000), max_size=6))
@BOUNDED
async def test_however_it_is_cut_the_answers_are_the_same(data: bytes, at: list[int]) -> None:
    methods = judged(data)[1]
    whole = answers((await serve([data]))[0], methods)
    assert answers((await serve(cut(data, at)))[0], methods) == whole


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
@BOUNDED
async def test_any_bytes_end_in_an_answer_or_in_silence(data: bytes, at: list[int]) -> None:
    said, ended = await serve(cut(data, at) if data else [])
    statuses = answers(said, [])
    assert len(statuses) <= 1 + data.count(b"\n\r\n") + data.count(b"\n\n")
    assert not statuses or statuses[-1] < 400 or ended
