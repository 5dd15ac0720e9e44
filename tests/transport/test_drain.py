"""The end of a hub, and of the host around it, with clients still there (L1, L2, F3)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context
from tests.support.hosts import ADAPTERS, Host
from tests.support.rawsocket import CLOSE, Closed, Peer, RawSocket, Refusal
from tests.transport.conftest import PATIENCE, Site, tasks, until


@pytest.fixture(params=ADAPTERS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Here each adapter in turn."""
    found: Host = request.param
    return found


async def _sent_away(peer: Peer, *, rt: bool) -> None:
    """It hears when to come back, if it understands that, and is closed with 3001."""
    if rt:
        push = await peer.push("", "disconnect")
        assert (push["code"], push["reason"]) == (3001, "draining")
        assert 0 <= push["rt"]["min"] <= push["rt"]["max"]
    frame = await peer.frame()
    assert (frame.opcode, frame.payload) == (CLOSE, b"\x0b\xb9draining")
    await peer.send(b"\x88\x82\0\0\0\0\x0b\xb9")
    assert (await peer.closed(answer=False)).how == "eof"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_everybody_is_told_when_to_come_back(site: Site, secure: bool) -> None:
    """The hub closes while its host still serves: rt clients and foreign ones, in rooms and not yet anybody."""
    served = await site.open(secure=secure)
    clients = [(await site.client(f"user {n}", "log:a", rt=n % 2 == 0), n % 2 == 0) for n in range(10)]
    stranger = await site.peer()
    closing = asyncio.create_task(site.hub.aclose())
    await asyncio.gather(*(_sent_away(peer, rt=rt) for peer, rt in clients), _sent_away(stranger, rt=False))
    async with asyncio.timeout(PATIENCE):
        await closing
    assert not site.hub.running
    await until(lambda: not served.transports())


async def test_what_was_under_way_is_finished(site: Site) -> None:
    """A handler that runs gets its time; new clients are sent elsewhere meanwhile, by words of HTTP."""
    go_on, begun = asyncio.Event(), asyncio.Event()

    @site.hub.rpc(object, name="long")
    async def long(ctx: Context[Any, Any], data: Any) -> Any:
        begun.set()
        await go_on.wait()
        await ctx.hub.publish("log:a", "from the handler")

    served = await site.open()
    ann = await site.client("ann")
    await ann.ask("rpc", method="long")
    await begun.wait()
    closing = asyncio.create_task(site.hub.aclose())
    await _sent_away(ann, rt=True)
    assert not closing.done()
    ready = await site.request(served.path("ready"))
    assert ready.status == 503
    assert int(ready.headers["retry-after"]) >= 1
    try:
        await site.peer()
    except Refusal as refused:
        assert refused.response.status == 503
        assert int(refused.response.headers["retry-after"]) >= 1
    else:
        raise AssertionError("it was let in")
    go_on.set()
    async with asyncio.timeout(PATIENCE):
        await closing


async def test_a_handler_that_does_not_end(site: Site) -> None:
    """5 s, then the hub ends without it."""
    cancelled = asyncio.Event()
    begun = asyncio.Event()

    @site.hub.rpc(object, name="endless")
    async def endless(ctx: Context[Any, Any], data: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await site.open()
    ann = await site.client("ann")
    await ann.ask("rpc", method="endless")
    await begun.wait()
    closing = asyncio.create_task(site.hub.aclose())
    await _sent_away(ann, rt=True)
    await site.clock.advance(4.9)
    assert not cancelled.is_set()
    await site.clock.advance(0.2)
    async with asyncio.timeout(PATIENCE):
        await closing
    assert cancelled.is_set()


async def test_clients_that_do_not_answer_do_not_hold_up_the_end(site: Site) -> None:
    """Half of them read nothing: neither the words nor the close frame. The end is bounded all the same."""
    served = await site.open()
    deaf = [await site.client(f"deaf {n}", "log:a", receive_buffer=4096) for n in range(3)]
    mute = [await site.client(f"mute {n}", "log:a") for n in range(3)]
    for _ in range(300):
        await site.hub.room("log:a").publish("x" * 16_000)
        await asyncio.sleep(0)
    assert served.buffered > 0
    closing = asyncio.create_task(site.hub.aclose())
    await site.ends_within(5, closing)
    assert not site.hub.running
    for peer in mute:
        # Those behind whom too much waits hear what their server has to say, or nothing.
        assert (await peer.closed(answer=False)).code in (3001, 1006, site.host.can.last_words)
    if site.host.can.aborts:
        await until(lambda: not served.transports())
    for peer in deaf:
        peer.reset()
    await until(lambda: not served.transports())


async def test_the_host_stops_with_clients_connected(site: Site) -> None:
    """L2: most close the hub first. uvicorn and hypercorn end WebSockets themselves, and then the hub."""
    await site.open()
    before = len(tasks())
    rt, foreign, stranger = (
        await site.client("ann", "log:a"),
        await site.client("bob", rt=False),
        await site.peer(),
    )
    assert len(tasks()) >= before
    stopping = asyncio.create_task(site.shut())
    code = site.host.can.last_words
    expected = Closed(code, "draining" if code == 3001 else "")
    for peer in (rt, foreign, stranger):
        assert await peer.closed() == expected
    async with asyncio.timeout(PATIENCE):
        await stopping
    assert not site.hub.running


async def test_the_host_stops_with_clients_in_the_middle_of_something(site: Site) -> None:
    """Half a head, half a frame, an answer that nobody fetches: nothing holds up the end."""
    served = await site.open()
    left: list[RawSocket] = []
    if site.host.can.drops_halves:
        half_head, idle, kept = left = [await site.socket() for _ in range(3)]
        await half_head.send(b"GET /rt/ws HTTP/1.1\r\nHost: ")
        assert not idle.speaks
        assert (await kept.get(served.path("ready"))).status == 204
    half_frame = await site.client("ann")
    await half_frame.send(b"\x81\xfe\x01")
    await site.clock.settle()
    stopping = asyncio.create_task(site.shut())
    # The hub's time for its clients, then our own server's for requests under way.
    await site.ends_within(5 + 5, stopping, real=0.01 if site.host.can.ours else 0.3)
    for sock in (*left, half_frame):
        await sock.rest()
        assert sock.how is not None


async def test_a_hub_lives_again(site: Site) -> None:
    """API 10: closed under a host that still serves, it starts with the next client."""
    await site.open()
    ann = await site.client("ann", "log:a")
    closing = asyncio.create_task(site.hub.aclose())
    await _sent_away(ann, rt=True)
    await closing
    bob = await site.client("bob", "log:a")
    await site.hub.room("log:a").publish("again")
    assert await bob.data("log:a", 1) == ["again"]
