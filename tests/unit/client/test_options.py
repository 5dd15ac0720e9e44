"""URLs, small parts, and what they look like."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rtkit.client import Feed, connect
from rtkit.client.bell import Bell
from rtkit.client.options import endpoint, is_loopback, without_secrets
from rtkit.testing.clock import ManualClock
from tests.unit.client.fakes import FakeServer


@pytest.mark.parametrize(
    "given, used",
    [
        ("http://x/rt", "ws://x/rt/ws"),
        ("https://x:8443/rt/", "wss://x:8443/rt/ws"),
        ("ws://x", "ws://x/ws"),
        ("wss://x/rt/ws", "wss://x/rt/ws"),
        ("wss://x/rt/ws/", "wss://x/rt/ws"),
        ("ws://x/connection/websocket", "ws://x/connection/websocket"),
        ("ws://u:p@x/rt?a=1#f", "ws://u:p@x/rt/ws?a=1"),
        ("HTTPS://X/rt", "wss://X/rt/ws"),
        ("ws://x/news", "ws://x/news/ws"),
    ],
)
def test_endpoints(given: str, used: str) -> None:
    assert endpoint(given) == used


@pytest.mark.parametrize("url", ["", "/rt", "ftp://x", "ws://", "ws://x:99999", "x.example/rt", "ws://[bad"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        connect(url)


def test_secrets_are_not_shown() -> None:
    assert without_secrets("wss://u:p@x:1/rt/ws?token=s") == "wss://x:1/rt/ws"
    assert "secret" not in repr(connect("ws://u:secret@x/?a=secret", token="secret"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://u:secret@x/rt?token=secret", "not 'ftp://x/rt'"),
        ("wss:u:secret@x/rt?token=secret", "not 'x/rt'"),
        ("u:secret@x/rt#secret", "not 'x/rt'"),
        ("ws://u:secret@x:99999/rt?token=secret", "'ws://x:99999/rt' is no URL"),
        ("ws://u:secret@[bad?token=secret", "'ws://[bad' is no URL"),
        ("ws://u:secret@x\u2100/rt", "is no URL"),
    ],
)
def test_secrets_are_not_shown_of_what_is_no_url(url: str, shown: str) -> None:
    """A5: it is a slip that ends in somebody's log."""
    with pytest.raises(ValueError, match="URL") as caught:
        connect(url)
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)


def test_loopback() -> None:
    assert all(map(is_loopback, ("ws://localhost:1/", "ws://127.0.0.1/", "ws://[::1]/", "ws://a.localhost/")))
    assert not is_loopback("ws://example.org/")


def test_a_token_over_plain_ws_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        connect("ws://example.org/", token="t")
        connect("ws://localhost/", token="t")
        connect("wss://example.org/", token="t")
        connect("ws://example.org/")
    assert len(caplog.records) == 1
    assert "unencrypted" in caplog.text


async def test_bell() -> None:
    bell, clock = Bell(), ManualClock()
    a, b = asyncio.create_task(bell.wait()), asyncio.create_task(bell.wait(clock, clock.monotonic() + 5))
    await clock.settle()
    assert "2 waiting" in repr(bell)
    bell.ring()
    bell.ring()
    await asyncio.gather(a, b)
    c = asyncio.create_task(bell.wait(clock, clock.monotonic() + 5))
    await clock.advance(4)
    assert not c.done()
    await clock.advance(1)
    assert c.done()
    assert clock.timers == 0


async def test_feed_is_bounded_and_ends_once() -> None:
    with pytest.raises(ValueError, match="max_queue"):
        Feed("x", max_queue=0)
    feed: Feed[int] = Feed("x", max_queue=2)
    for n in range(3):
        feed.offer(n)
    feed.end(KeyError())
    feed.end(None)
    feed.offer(9)
    got: list[int] = []
    with pytest.raises(KeyError):
        async for n in feed:
            got += [n]
    assert got == [1, 2]
    assert feed.dropped == 1


async def test_feeds_that_nobody_holds_are_forgotten() -> None:
    import gc

    server = FakeServer()
    async with server.client() as client:
        client.messages()
        gc.collect()
        assert len(client._messages) == 0  # pyright: ignore[reportPrivateUsage]
