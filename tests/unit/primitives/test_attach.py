"""On real sockets: a websockets server, and uvicorn with Starlette."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed as WebsocketsClosed

from rtkit.errors import ConnectionClosed, NotRunning, UsageError
from rtkit.primitives import (
    AttachedConnection,
    AttachPolicy,
    Heartbeat,
    Outbox,
    Rate,
    RoomRegistry,
    attach,
)
from rtkit.testing.clock import ManualClock
from tests.unit.primitives.sockets import Kind, client, eventually, raw_client, serving, vanish

HUGE = 16 * 1024 * 1024
"""More bytes than the kernel takes off our hands for a peer that does not read."""

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(params=["websockets", "starlette"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Host:
    """Handles connections by collecting what comes in; shows the last connection, and how it ended."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.got: list[str | bytes] = []
        self.conn: AttachedConnection
        self.connected = asyncio.Event()
        self.ended = asyncio.Event()
        self.body: Callable[[AttachedConnection], Any] = self.read

    async def __call__(self, sock: Any) -> None:
        try:
            async with attach(sock, **self.options) as self.conn:
                self.connected.set()
                await self.body(self.conn)
        finally:
            assert len(self.conn._tasks) == 0
            assert len(self.conn._deadlines) == 0
            assert self.conn.statistics().state == "closed"
            self.ended.set()

    async def read(self, conn: AttachedConnection) -> None:
        async for message in conn:
            self.got.append(message)

    async def wait(self, conn: AttachedConnection) -> None:
        """A host that never reads."""
        await self.ended.wait()


async def close_of(ws: ClientConnection) -> tuple[int | None, str | None]:
    with pytest.raises(WebsocketsClosed):
        while True:
            await ws.recv()
    return ws.close_code, ws.close_reason


# -- messages


async def test_both_ways_and_both_types(kind: Kind) -> None:
    host = Host()

    async def echo(conn: AttachedConnection) -> None:
        async for message in conn:
            assert conn.send_nowait(message)

    host.body = echo
    async with serving(kind, host) as port, client(port) as ws:
        await ws.send("text ä")
        await ws.send(b"bytes")
        assert await ws.recv() == "text ä"
        assert await ws.recv() == b"bytes"
        await ws.close()
        await host.ended.wait()
    statistics = host.conn.statistics()
    assert (statistics.received, statistics.sent, statistics.sent_bytes) == (2, 2, 12)
    assert statistics.outbox.taken == 2


@pytest.mark.parametrize(("text", "expected"), [(True, ["ä", "ä"]), (False, ["ä".encode(), "ä".encode()])])
async def test_one_type_for_all(kind: Kind, text: bool, expected: list[str | bytes]) -> None:
    host = Host(policy=AttachPolicy(text=text))
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        host.conn.send_nowait("ä")
        host.conn.send_nowait("ä".encode())
        assert [await ws.recv(), await ws.recv()] == expected


async def test_a_registry_of_attached_sockets(kind: Kind) -> None:
    registry = RoomRegistry[AttachedConnection]()

    async def handler(sock: Any) -> None:
        async with attach(sock) as conn, registry.join(conn, "lobby"):
            async for message in conn:
                registry.broadcast("lobby", message)

    async with serving(kind, handler) as port:
        async with client(port) as ann, client(port) as bob:
            await eventually(lambda: registry.count("lobby") == 2)
            await ann.send("hello")
            assert [await ann.recv(), await bob.recv()] == ["hello", "hello"]
            registry.deliver("lobby", b"from a broker", None)
            assert await bob.recv() == b"from a broker"
        await eventually(lambda: "lobby" not in registry)


async def test_the_writer_is_there_only_while_there_is_something_to_send(kind: Kind) -> None:
    host = Host()
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        assert len(host.conn._tasks) == 0
        host.conn.send_nowait("x")
        assert len(host.conn._tasks) == 1
        await host.conn.drained()
        assert len(host.conn._tasks) == 0
        assert await ws.recv() == "x"


# -- ends


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (3333, "so long")])
async def test_the_peer_closes(kind: Kind, code: int, reason: str) -> None:
    host = Host()
    async with serving(kind, host) as port, client(port) as ws:
        await ws.send("last")
        await ws.close(code, reason)
        await host.ended.wait()
    assert host.got == ["last"]
    assert (host.conn.close_code, host.conn.close_reason) == (code, reason)
    assert not host.conn.send_nowait("x")
    assert [m async for m in host.conn] == []
    await host.conn.close()


async def test_the_host_closes_after_what_is_queued(kind: Kind) -> None:
    host = Host()

    async def body(conn: AttachedConnection) -> None:
        for n in range(100):
            conn.send_nowait(str(n))
        await conn.close(3333, "so long")
        await conn.close(4444, "ignored")
        assert not conn.send_nowait("too late")

    host.body = body
    async with serving(kind, host) as port, client(port) as ws:
        assert [await ws.recv() for _ in range(100)] == [str(n) for n in range(100)]
        assert await close_of(ws) == (3333, "so long")
        await host.ended.wait()
    assert (host.conn.close_code, host.conn.close_reason) == (3333, "so long")
    assert "closed with 3333" in repr(host.conn)


async def test_leaving_the_block_closes_normally(kind: Kind) -> None:
    async def handler(sock: Any) -> None:
        async with attach(sock) as conn:
            conn.send_nowait("bye")

    async with serving(kind, handler) as port, client(port) as ws:
        assert await ws.recv() == "bye"
        assert await close_of(ws) == (1000, "")


async def test_an_exception_closes_with_internal_error(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(sock: Any) -> None:
        async with attach(sock):
            raise KeyError("x")

    async with serving(kind, handler) as port, client(port) as ws:
        assert await close_of(ws) == (1011, "internal error")
    assert "KeyError" in caplog.text  # by the server, as without attach


async def test_cancelling_the_host_says_going_away(kind: Kind) -> None:
    host = Host()
    task: list[asyncio.Task[Any] | None] = []

    async def handler(sock: Any) -> None:
        task.append(asyncio.current_task())
        try:
            await host(sock)
        except asyncio.CancelledError:
            pass  # so that the server does not log it

    async with serving(kind, handler) as port, client(port) as ws:
        await host.connected.wait()
        host.conn.send_nowait("last")
        assert task[0] is not None
        task[0].cancel()
        assert await ws.recv() == "last"
        assert await close_of(ws) == (1001, "going away")
        await host.ended.wait()


async def test_cancelling_twice_drops_everything_at_once(kind: Kind, clock: ManualClock) -> None:
    host = Host(clock=clock)
    task: list[asyncio.Task[Any]] = []

    async def handler(sock: Any) -> None:
        task.append(asyncio.create_task(attached(sock)))
        await asyncio.wait(task)

    async def attached(sock: Any) -> None:
        async with attach(sock, clock=clock) as host.conn:
            host.connected.set()
            while host.conn.send_nowait(b"x" * 60_000) and not host.conn.statistics().outbox.dropped:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.Event().wait()

    async with serving(kind, handler) as port, raw_client(port):
        await host.connected.wait()
        await eventually(lambda: host.conn.statistics().outbox.dropped)
        task[0].cancel()
        await clock.settle()
        assert not task[0].done()
        task[0].cancel()
        await clock.settle()
        assert task[0].cancelled()
        assert len(host.conn._tasks) == 0
        assert clock.timers == 0


async def test_closing_from_another_task_ends_the_iteration(kind: Kind) -> None:
    host = Host()
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        await asyncio.gather(host.conn.close(3001), host.conn.close(3002))
        await host.ended.wait()
        assert await close_of(ws) == (3001, "")


async def test_a_client_that_vanishes(kind: Kind) -> None:
    host = Host()
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        vanish(ws)
        await host.ended.wait()
    assert host.conn.close_code in (1005, 1006)  # uvicorn says 1005
    with pytest.raises(NotRunning):
        _ = host.conn._tasks.spawn(asyncio.sleep, 0)


async def test_a_client_that_vanishes_while_the_host_only_sends(kind: Kind) -> None:
    """A host that never reads learns of it by sending."""
    host = Host()

    async def body(conn: AttachedConnection) -> None:
        while conn.send_nowait("x" * 1000):
            await conn.drained()
            await asyncio.sleep(0)

    host.body = body
    async with serving(kind, host) as port, client(port) as ws:
        await ws.recv()
        vanish(ws)
        await asyncio.wait_for(host.ended.wait(), 10)
    assert host.conn.close_code == 1006


async def test_drained_says_when_something_was_not_sent(kind: Kind) -> None:
    host = Host(outbox=Outbox(limit=HUGE))
    async with serving(kind, host) as port, raw_client(port) as raw:
        await host.connected.wait()
        for _ in range(20):
            host.conn.send_nowait(b"x" * (HUGE // 20 - 1000))
        drained = asyncio.create_task(host.conn.drained())
        await eventually(lambda: host.conn.statistics().sent)
        host.conn._end(3333, "so long", flush=False)
        with pytest.raises(ConnectionClosed) as info:
            await drained
        assert info.value.code == 3333
        raw.sock.close()
        await host.ended.wait()


# -- a client that never reads


async def test_a_client_that_never_reads_costs_bounded_memory_and_nobody_else(
    kind: Kind, clock: ManualClock
) -> None:
    conns: list[AttachedConnection] = []
    outboxes: list[Outbox] = []
    done = asyncio.Event()

    async def handler(sock: Any) -> None:
        outbox = Outbox(limit=300_000)
        async with attach(sock, outbox=outbox, heartbeat=None, clock=clock) as conn:
            conns.append(conn)
            outboxes.append(outbox)
            async for _ in conn:
                pass
        if len(conns) == 2:
            done.set()

    async with serving(kind, handler) as port, raw_client(port) as raw, client(port) as good:
        await eventually(lambda: len(conns) == 2)
        stuck, fine = conns
        for n in range(1200):
            message = f"{n:06}" * 700
            assert stuck.send_nowait(message)
            assert fine.send_nowait(message)
            assert await good.recv() == message
            assert outboxes[0].size <= 300_000
        await eventually(lambda: stuck.statistics().outbox.dropped > 100)
        assert fine.statistics().outbox.dropped == 0
        await clock.advance(29)
        assert stuck.statistics().state == "open"
        await clock.advance(31)
        assert stuck.close_code == 3009
        await clock.advance(10)
        assert stuck.statistics().state == "closed"
        raw.sock.close()
        assert good.close_code is None
        await good.close()
        await done.wait()
    assert clock.timers == 0


async def test_the_policy_close_ends_a_slow_consumer(kind: Kind, clock: ManualClock) -> None:
    host = Host(
        outbox=Outbox(limit=100_000),
        policy=AttachPolicy(overflow="close"),
        clock=clock,
    )
    async with serving(kind, host) as port, raw_client(port) as raw:
        await host.connected.wait()
        while host.conn.send_nowait(b"x" * 10_000):  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert host.conn.statistics().state == "closing"
        await clock.advance(5)  # the closing handshake's time
        await host.ended.wait()
        assert host.conn.close_code == 3008
        assert host.conn.statistics().outbox.queued == 0
        raw.sock.close()


async def test_drop_newest_says_so(kind: Kind) -> None:
    host = Host(outbox=Outbox(limit=1000), policy=AttachPolicy(overflow="drop_newest"))
    async with serving(kind, host) as port, client(port):
        await host.connected.wait()
        assert not host.conn.send_nowait(b"x" * 2000)
        assert host.conn.statistics().outbox.dropped == 1
        assert host.conn.statistics().state == "open"


async def test_latest_per_key(kind: Kind) -> None:
    host = Host(policy=AttachPolicy(overflow="latest_per_key"))
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        for n in range(5):
            host.conn.send_nowait(f"a{n}", key="a")
            host.conn.send_nowait(f"b{n}", key="b")
        assert [await ws.recv(), await ws.recv()] == ["a4", "b4"]


async def test_the_flush_is_bounded(kind: Kind, clock: ManualClock) -> None:
    host = Host(
        clock=clock,
        heartbeat=None,
        outbox=Outbox(limit=HUGE),
        policy=AttachPolicy(flush_timeout=3, close_timeout=2),
    )

    async def body(conn: AttachedConnection) -> None:
        for _ in range(20):
            conn.send_nowait(b"x" * (HUGE // 20 - 1000))

    host.body = body
    async with serving(kind, host) as port, raw_client(port, receive_buffer=4096) as raw:
        await host.connected.wait()
        await clock.advance(2.9)
        assert host.conn.statistics().state == "closing"
        assert not host.ended.is_set()
        await clock.advance(0.1)
        await clock.advance(2)
        await host.ended.wait()
        assert host.conn.statistics().outbox.discarded > 0
        raw.sock.close()
    assert clock.timers == 0


async def test_a_send_that_fails_in_an_unforeseen_way_is_logged_and_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host(policy=AttachPolicy(text=True))
    async with serving("starlette", host) as port, client(port) as ws:
        await host.connected.wait()
        host.conn.send_nowait(b"\xff is no UTF-8")
        assert await close_of(ws) == (1011, "internal error")
        await host.ended.wait()
    assert "UnicodeDecodeError" in caplog.text


# -- heartbeat


async def test_protocol_pings(clock: ManualClock) -> None:
    host = Host(heartbeat=Heartbeat(interval=20, timeout=5), clock=clock, random=lambda: 0.5)
    async with serving("websockets", host) as port, client(port):
        await host.connected.wait()
        await clock.advance(9.9)
        assert host.conn.latency is None
        await clock.advance(0.1)
        await eventually(lambda: host.conn.latency is not None)
        assert host.conn.latency == 0
        for _ in range(10):
            await clock.advance(20)
            await eventually(lambda: not host.conn._beat.statistics().unanswered)  # type: ignore[union-attr]
        assert host.conn.statistics().state == "open"


async def test_a_silent_peer_is_closed(clock: ManualClock) -> None:
    host = Host(heartbeat=Heartbeat(interval=20, timeout=5), clock=clock, random=lambda: 0.0)
    async with serving("websockets", host) as port, raw_client(port) as raw:
        await host.connected.wait()
        await clock.advance(4.9)
        assert host.conn.statistics().state == "open"
        await clock.advance(0.1)
        assert host.conn.close_code == 3012
        await clock.advance(5)  # it does not answer the close frame either
        await host.ended.wait()
        assert await raw.read_close_code() == 3012
    assert clock.timers == 0


async def test_while_the_read_queue_is_full_silence_is_not_held_against_the_peer(clock: ManualClock) -> None:
    host = Host(heartbeat=Heartbeat(interval=20, timeout=5), clock=clock, random=lambda: 0.0)
    host.body = host.wait
    async with serving("websockets", host) as port, client(port) as ws:
        await host.connected.wait()
        for _ in range(5):  # max_queue is 2
            await ws.send("x")
        await eventually(lambda: not host.conn._pipe.is_reading())
        await clock.advance(100)
        assert host.conn.statistics().state == "open"
        await host.conn.close()
        host.ended.set()


async def test_pings_of_text(clock: ManualClock) -> None:
    host = Host(
        heartbeat=Heartbeat(interval=20, timeout=5),
        policy=AttachPolicy(ping_text="ping", pong_text="pong"),
        clock=clock,
        random=lambda: 0.0,
    )
    async with serving("starlette", host) as port, client(port) as ws:
        await host.connected.wait()
        await clock.settle()
        assert await ws.recv() == "ping"
        await clock.advance(2)
        await ws.send("pong")
        await eventually(lambda: host.conn.latency is not None)
        assert host.conn.latency == 2
        await clock.advance(18)
        assert await ws.recv() == "ping"
        await ws.send("anything is a sign of life")
        await eventually(lambda: host.got)
        await clock.advance(10)
        assert host.got == ["anything is a sign of life"]
        assert host.conn.statistics().state == "open"
        await clock.advance(10)
        assert await ws.recv() == "ping"
        await clock.advance(5)
        assert await close_of(ws) == (3012, "no pong")
        await host.ended.wait()
    assert clock.timers == 0


async def test_while_the_host_is_not_reading_the_pong_deadline_stands_still(clock: ManualClock) -> None:
    host = Host(
        heartbeat=Heartbeat(interval=20, timeout=5),
        policy=AttachPolicy(ping_text="ping", pong_text="pong"),
        clock=clock,
        random=lambda: 0.0,
    )
    go_on = asyncio.Event()

    async def body(conn: AttachedConnection) -> None:
        await go_on.wait()
        await host.read(conn)

    host.body = body
    async with serving("starlette", host) as port, client(port) as ws:
        await host.connected.wait()
        await clock.advance(19)
        assert await ws.recv() == "ping"
        await ws.send("pong")
        await clock.advance(30)
        assert await ws.recv() == "ping"  # they go on: the peer wants to hear of us
        assert host.conn.statistics().state == "open"
        go_on.set()
        await eventually(lambda: not host.conn._beat.statistics().unanswered)  # type: ignore[union-attr]
        await ws.close()
        await host.ended.wait()


async def test_without_ping_text_starlette_has_no_heartbeat_of_ours(clock: ManualClock) -> None:
    host = Host(clock=clock)
    async with serving("starlette", host) as port, client(port):
        await host.connected.wait()
        assert clock.timers == 0
        await clock.advance(1000)
        assert host.conn.statistics().state == "open"


async def test_no_heartbeat(kind: Kind, clock: ManualClock) -> None:
    host = Host(heartbeat=None, clock=clock)
    async with serving(kind, host) as port, client(port):
        await host.connected.wait()
        assert clock.timers == 0
        assert host.conn.latency is None


async def test_a_stall_of_ours_closes_nobody(clock: ManualClock) -> None:
    host = Host(heartbeat=Heartbeat(interval=20, timeout=5), clock=clock, random=lambda: 0.0)
    async with serving("websockets", host) as port, client(port):
        await host.connected.wait()
        clock.advance_nowait(0)  # the ping is due
        clock.stall(60)
        await eventually(lambda: host.conn.latency is not None)
        assert host.conn.statistics().state == "open"


async def test_nor_does_it_put_off_our_ping(clock: ManualClock) -> None:
    """F5: the peer waits for it, and has waited long enough."""
    host = Host(
        heartbeat=Heartbeat(interval=20, timeout=5),
        policy=AttachPolicy(ping_text="ping", pong_text="pong"),
        clock=clock,
        random=lambda: 0.5,
    )
    async with serving("starlette", host) as port, client(port) as ws:
        await host.connected.wait()
        for _ in range(3):
            await clock.advance(9.9)
            clock.stall(7)
            await clock.settle()
            assert await asyncio.wait_for(ws.recv(), 5) == "ping"
            await ws.send("pong")
            await eventually(lambda: not host.conn._beat.statistics().unanswered)  # type: ignore[union-attr]
            await clock.advance(3.1)  # it keeps its beat
        assert host.conn.statistics().state == "open"


# -- rate limit


async def test_beyond_the_limit_reading_pauses_and_nothing_is_dropped(kind: Kind, clock: ManualClock) -> None:
    host = Host(limit=Rate(1, burst=3), clock=clock, heartbeat=None)
    async with serving(kind, host) as port, client(port) as ws:
        sending = asyncio.create_task(send_all(ws, 10))
        await eventually(lambda: len(host.got) == 3)
        for n in range(4, 11):
            await clock.advance(0.9)
            assert len(host.got) == n - 1
            await clock.advance(0.1)
            await eventually(lambda n=n: len(host.got) == n)  # type: ignore[misc]
        assert host.got == [str(n) for n in range(10)]
        assert host.conn.statistics().held_back == pytest.approx(7)
        await sending
        await ws.close()
        await clock.advance(1)
        await host.ended.wait()


async def send_all(ws: ClientConnection, count: int) -> None:
    for n in range(count):
        await ws.send(str(n))


async def test_a_cancelled_read_loses_nothing(kind: Kind, clock: ManualClock) -> None:
    host = Host(limit=Rate(1, burst=1), clock=clock, heartbeat=None)
    host.body = host.wait
    async with serving(kind, host) as port, client(port) as ws:
        await host.connected.wait()
        await send_all(ws, 3)
        conn = host.conn
        assert await anext(conn) == "0"
        reading = asyncio.create_task(conn.__anext__())
        await clock.settle()
        reading.cancel()  # held back
        await clock.advance(1)
        assert reading.cancelled()
        assert await anext(conn) == "1"
        await clock.advance(1)
        assert await anext(conn) == "2"
        await clock.advance(1)
        reading = asyncio.create_task(conn.__anext__())
        await clock.settle()
        with pytest.raises(UsageError, match="another task"):
            await anext(conn)
        reading.cancel()  # waiting
        await clock.settle()
        reading = asyncio.create_task(conn.__anext__())
        await ws.send("4")
        assert await reading == "4"
        await conn.close()
        host.ended.set()


async def test_closing_while_held_back(kind: Kind, clock: ManualClock) -> None:
    host = Host(limit=Rate(1, burst=1), clock=clock, heartbeat=None)
    async with serving(kind, host) as port, client(port) as ws:
        await send_all(ws, 3)
        await eventually(lambda: host.got)
        await clock.settle()
        await host.conn.close()
        await host.ended.wait()
    assert host.got == ["0"]
    assert clock.timers == 0


# -- misuse


async def test_only_known_sockets() -> None:
    with pytest.raises(TypeError, match=r"builtins\.object"):
        attach(object())


async def test_a_starlette_socket_has_to_be_accepted() -> None:
    async def nothing(*_: Any) -> Any: ...

    sock = WebSocket({"type": "websocket"}, nothing, nothing)
    with pytest.raises(UsageError, match="accept"):
        attach(sock)


async def test_use_inside_the_block_and_enter_once(kind: Kind) -> None:
    async def handler(sock: Any) -> None:
        conn = attach(sock)
        assert "created" in repr(conn)
        with pytest.raises(NotRunning):
            conn.send_nowait("x")
        with pytest.raises(NotRunning):
            await anext(conn)
        with pytest.raises(NotRunning):
            await conn.close()
        async with conn:
            with pytest.raises(UsageError, match="once"):
                await conn.__aenter__()
            for code in (999, 1005, 1006, 2000, 5000):
                with pytest.raises(ValueError, match=str(code)):
                    await conn.close(code)
            with pytest.raises(ValueError, match="123"):
                await conn.close(1000, "ä" * 62)
            with pytest.raises(UnicodeEncodeError):
                conn.send_nowait("\ud800")
            conn.send_nowait("ok")

    async with serving(kind, handler) as port, client(port) as ws:
        assert await ws.recv() == "ok"
        assert await close_of(ws) == (1000, "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overflow": "recover"}, "recover"),
        ({"overflow": "nonsense"}, "nonsense"),
        ({"write_timeout": 0}, "write_timeout.*0"),
        ({"flush_timeout": 0}, "flush_timeout.*0"),
        ({"close_timeout": float("inf")}, "close_timeout.*inf"),
    ],
)
def test_a_bad_policy_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AttachPolicy(**options)


# -- the client side, and the examples


async def test_a_client_connection_can_be_attached_too(kind: Kind) -> None:
    host = Host()
    async with serving(kind, host) as port, client(port) as ws, attach(ws) as conn:
        conn.send_nowait("hello")
        await eventually(lambda: host.got)
        host.conn.send_nowait("hi")
        assert await anext(conn) == "hi"
        await conn.close(3000)
        assert (conn.close_code, host.got) == (3000, ["hello"])


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_examples_work(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    example = load(f"primitives_{kind}")
    handler = example.chat
    if kind == "starlette":
        assert example.app.routes[0].path == "/ws"

        async def handler(sock: Any) -> None:
            await example.chat(AlreadyAccepted(sock))

    async with serving(kind, handler) as port, client(port) as ann, client(port) as bob:
        await eventually(lambda: example.registry.count("lobby") == 2)
        await ann.send("hello")
        assert [await ann.recv(), await bob.recv()] == ["hello", "hello"]
    await eventually(lambda: example.registry.count("lobby") == 0)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


class AlreadyAccepted:
    def __init__(self, sock: WebSocket) -> None:
        self._sock = sock

    async def accept(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
