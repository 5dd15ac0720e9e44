"""Where a server listens, TLS, running out of sockets, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from rtkit.errors import UsageError
from rtkit.hosting.raw import RawPipe
from rtkit.server import Server, ServerLimits
from rtkit.server.http import HttpConnection
from rtkit.testing.clock import ManualClock
from tests.support.hosts import CERTIFICATE, client_context
from tests.unit.hosting.scripted import Acceptor
from tests.unit.hosting.sockets import CLOSE, TEXT, masked
from tests.unit.server.world import ServerWorld, get, post, shake

Make = Callable[..., Awaitable[ServerWorld]]


# -- where ---------------------------------------------------------------------------------------------


async def test_a_free_port(make: Make) -> None:
    world = await make()
    server = world.server
    assert server.addresses == (("127.0.0.1", server.port),)
    assert server.url == f"http://127.0.0.1:{server.port}/rt"
    assert repr(server) == f"<Server at {server.url}, 0 WebSockets, 0 streams>"
    await world.upgrade()
    assert repr(server) == f"<Server at {server.url}, 1 WebSockets, 0 streams>"
    with pytest.raises(UsageError, match="once"):
        await server.start(port=0)
    await server.aclose()
    assert repr(server) == "<Server closed, 0 WebSockets, 0 streams>"
    with pytest.raises(UsageError, match="once"):
        await server.start(port=0)


async def test_all_addresses(make: Make) -> None:
    world = await make({"host": None})
    assert {address[0] for address in world.server.addresses} <= {"0.0.0.0", "::"}
    assert world.server.url.startswith(("http://127.0.0.1:", "http://[::1]:"))
    assert world.server.port == world.server.addresses[0][1]


async def test_a_name_with_two_addresses_gets_one_port(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: Any, **kwargs: Any) -> list[Any]:
        tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        # The second is nobody's; the third is there twice.
        return [(*tcp, (host, 0)) for host in ("127.0.0.1", "192.0.2.1", "127.0.0.2", "127.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    world = await make({"host": "both"})
    one, two = world.server.addresses
    assert one == ("127.0.0.1", world.server.port)
    assert two == ("127.0.0.2", world.server.port)


async def test_before_and_after(make: Make) -> None:
    server = Server(Acceptor(), clock=ManualClock())
    assert repr(server) == "<Server not started, 0 WebSockets, 0 streams>"
    assert server.url == ""
    assert server.addresses == ()
    with pytest.raises(UsageError, match="TCP port"):
        _ = server.port
    await server.aclose()
    await server.aclose()


async def test_an_address_in_use(make: Make) -> None:
    first = await make()
    second = Server(Acceptor(), clock=ManualClock())
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1, port {first.server.port}: .*already"):
        await second.start(port=first.server.port)
    await second.aclose()


async def test_an_address_of_somebody_else(make: Make) -> None:
    server = Server(Acceptor(), clock=ManualClock())
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1, port 0: "):
        await server.start("192.0.2.1", 0)
    await server.aclose()


async def test_a_socket_that_is_there(make: Make) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    world = await make({"sock": sock})
    assert world.server.port == sock.getsockname()[1]
    await world.others_are_served()
    await world.server.aclose()
    assert sock.fileno() == -1


async def test_a_unix_socket(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    world = await make({"unix": path})
    assert world.server.addresses == (str(path),)
    assert world.server.url == f"unix:{path}"
    with pytest.raises(UsageError, match="TCP port"):
        _ = world.server.port
    await world.others_are_served()
    client = await world.upgrade()
    client.say(masked(TEXT, b"x"))
    await world.settle()
    assert client.texts == ["x"]
    second = Server(Acceptor(), clock=ManualClock())
    with pytest.raises(OSError, match="cannot listen on the Unix socket .*sock: "):
        await second.start(unix=path)
    await second.aclose()
    assert path.exists(), "it belongs to the first"
    await world.server.aclose()
    assert not path.exists()


async def test_a_leftover_of_a_unix_socket_is_replaced_and_a_file_is_not(make: Make, tmp_path: Path) -> None:
    leftover, file = tmp_path / "leftover", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(leftover))
    file.write_text("precious")
    world = await make({"unix": leftover})
    await world.others_are_served()
    server = Server(Acceptor(), clock=ManualClock())
    with pytest.raises(OSError, match="cannot listen on the Unix socket .*file: "):
        await server.start(unix=file)
    assert file.read_text() == "precious"
    with pytest.raises(OSError, match="No such file"):
        await server.start(unix=tmp_path / "missing" / "sock")
    await server.aclose()


async def test_a_unix_socket_that_somebody_has_replaced_is_left_alone(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    world = await make({"unix": path})
    path.unlink()
    path.write_text("somebody else's")
    await world.server.aclose()
    assert path.read_text() == "somebody else's"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
async def test_an_abstract_unix_socket(make: Make) -> None:
    world = await make({"unix": f"\0rtkit-test-{os.getpid()}"})
    await world.others_are_served()


@pytest.mark.parametrize("path", ["rt", "/rt/", "/", "/rt?x", "/rt#x"])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(UsageError, match="path="):
        Server(Acceptor(), path=path)


@pytest.mark.parametrize("name", ["head", "body", "header_time", "connections", "silence"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"ServerLimits\({name}=…\) is positive, not "):
        ServerLimits(**{name: value})


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
async def test_the_kernel_is_told_how_long_a_silence_may_be(make: Make) -> None:
    """F4."""
    world = await make(limits={"silence": 12.5})
    await world.open()
    (connection,) = world.server._site.open
    assert connection._network is not None
    sock = connection._network.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_500


def test_limits_may_be_off_where_off_means_something() -> None:
    assert ServerLimits(silence=None).silence is None
    with pytest.raises(ValueError, match="head"):
        ServerLimits(head=None)  # type: ignore[arg-type]


# -- TLS -----------------------------------------------------------------------------------------------


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


async def dial(world: ServerWorld) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", world.server.port, ssl=client_context(), server_hostname="localhost"
    )


async def test_over_tls(make: Make) -> None:
    world = await make(ssl=tls())
    assert world.server.url == f"https://127.0.0.1:{world.server.port}/rt"
    async with asyncio.timeout(20):
        reader, writer = await dial(world)
        writer.write(get() + shake("/rt/ws", "Origin: https://test") + masked(TEXT, b"early"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(7) == b"\x81\x05early"
        assert world.acceptor.handshakes[0].secure is True
        assert world.acceptor.handshakes[0].address == "127.0.0.1"
        [driver] = world.acceptor.drivers
        count = 0
        while driver.transport.buffered == 0:
            driver.transport.send([b"x" * 1_000_000])
            count += 1
            assert count < 100
        for _ in range(count):
            assert (await reader.readexactly(10))[2:] == (1_000_000).to_bytes(8, "big")
            assert await reader.readexactly(1_000_000) == b"x" * 1_000_000
        await world.settle()
        assert driver.log == ["writable"]
        assert driver.transport.buffered == 0
        driver.transport.close(3001, "draining")
        assert await reader.readexactly(12) == b"\x88\x0a\x0b\xb9draining"
        writer.write(masked(CLOSE, b"\x0b\xb9"))
        assert await reader.read() == b""
        writer.close()
        await world.settle()
        assert driver.losses == [(3001, "draining")]


async def test_a_violation_over_tls(make: Make) -> None:
    world = await make(ssl=tls())
    async with asyncio.timeout(20):
        reader, writer = await dial(world)
        writer.write(shake() + masked(3))
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.read())[:4] == b"\x88\x10\x03\xea"
        writer.close()
        await world.settle()
    assert world.server.statistics().websockets == 0


async def test_plain_http_on_a_tls_port(make: Make) -> None:
    world = await make(ssl=tls())
    client = await world.ask(get())
    await settle_tls(world, lambda: client.gone)
    assert b"HTTP" not in client.heard
    assert world.server.statistics().http == 0


async def settle_tls(world: ServerWorld, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await world.settle()


async def test_a_tls_handshake_that_never_ends(make: Make) -> None:
    world = await make(ssl=tls())
    silent, half = await world.open(), await world.ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert world.server._site.size == 2, "counted from the beginning"
    await world.clock.advance(9.5)
    assert not silent.gone
    await world.clock.advance(0.5)
    await settle_tls(world, lambda: silent.gone and half.gone)
    assert world.server.statistics().http == 0
    assert world.server.statistics().tasks == 0
    assert world.server.statistics().timeouts == 2
    assert world.acceptor.away == ["silent", "silent"]


async def test_closing_in_the_middle_of_tls_handshakes(make: Make) -> None:
    world = await make(ssl=tls())
    client = await world.open()
    closing = asyncio.ensure_future(world.server.aclose())
    await world.settle()
    assert closing.done(), "at once: neither the clock nor asyncio's own timeout is waited for"
    await closing
    assert client.gone
    assert world.server.statistics().tasks == 0


async def test_a_peer_that_reads_nothing_over_tls_is_dropped_in_time(make: Make) -> None:
    world = await make(ssl=tls())
    async with asyncio.timeout(20):
        reader, writer = await dial(world)
        writer.write(shake())
        await reader.readuntil(b"\r\n\r\n")
        cast(asyncio.Transport, writer.transport).pause_reading()
        [driver] = world.acceptor.drivers
        for _ in range(100):
            driver.transport.send([b"x" * 100_000])
        assert driver.transport.buffered > 1_000_000
        driver.transport.close(3008, "slow consumer")
        await world.clock.advance(4)
        await settle_tls(world, lambda: world.server.statistics().websockets == 0)
        assert driver.losses == [(3008, "slow consumer")]
        writer.transport.abort()
        await asyncio.sleep(0)


# -- running out ---------------------------------------------------------------------------------------


async def test_out_of_file_descriptors_others_are_served_and_the_rest_later(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = await make()
    first = await world.upgrade()
    waiting = [world.connect() for _ in range(3)]  # in the kernel's queue
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No descriptor that the process may still open: the lowest free one is beyond the limit.
    free = os.dup(first.sock.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        await world.settle()
        first.say(masked(TEXT, b"still here"))
        await world.settle()
        assert first.texts == ["still here"]
        heard = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(heard) == 1, "one line, and no spinning"
        assert "out of file descriptors" in caplog.text
        await world.clock.advance(1)
        heard = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(heard) == 2, "tried again"
        await world.clock.advance(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for client in waiting:
        client.say(get())
    await world.settle()
    assert not any(client.listen() for client in waiting)
    await world.clock.advance(0.5)
    assert [client.answer().status for client in waiting] == [204] * 3


async def test_closing_while_out_of_file_descriptors(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    world = await make()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = world.connect()
    free = os.dup(client.sock.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        await world.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await world.server.aclose()
    assert world.clock.timers == 0
    assert client.gone


async def test_a_storm_is_taken_in_small_steps(make: Make) -> None:
    world = await make()
    clients = [world.connect() for _ in range(200)]
    sizes = [0]
    while world.server.statistics().http < 200:
        await asyncio.sleep(0)
        sizes.append(world.server.statistics().http)
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= 32
    for client in clients:
        client.say(get())
    await world.settle()
    assert all(client.answer().status == 204 for client in clients)


async def test_closing_in_the_middle_of_a_storm(make: Make) -> None:
    world = await make()
    clients = [world.connect() for _ in range(100)]
    while not world.server._site.arriving:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await world.server.aclose()
    assert all(client.gone for client in clients)
    assert world.server.statistics().tasks == 0


async def test_where_the_loop_cannot_watch_a_socket(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proactor loop of Windows."""

    def fail(*args: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", fail)
    world = await make()
    await world.others_are_served()
    client = await world.upgrade()
    await world.server.aclose()
    assert client.gone


# -- the end -------------------------------------------------------------------------------------------


async def test_a_draining_server_lets_requests_end_and_takes_no_more(make: Make) -> None:
    world = await make()
    gate = asyncio.Event()

    async def ensure_running() -> None:
        await gate.wait()

    world.acceptor.ensure_running = ensure_running  # type: ignore[method-assign]
    idle, busy, half = await world.ask(get()), await world.ask(shake()), await world.ask(get()[:-2])
    idle.answers()
    port = world.server.port
    closing = asyncio.ensure_future(world.server.aclose())
    await world.settle()
    assert idle.gone
    assert not busy.gone
    with pytest.raises(ConnectionRefusedError), socket.socket() as sock:
        sock.connect(("127.0.0.1", port))
    half.say(b"\r\n")
    await world.settle()
    answer = half.answer()
    assert answer.status == 503, "not ready any more"
    assert answer.headers["connection"] == "close"
    assert half.gone
    gate.set()
    await world.settle()
    assert busy.answer().status == 101, "it had asked before"
    assert closing.done()
    assert busy.gone, "and the hub, whose it was to close, has left it"
    await closing


async def test_a_request_that_comes_as_the_server_ends_does_not_start_the_hub_again(make: Make) -> None:
    """L1: the hub has been closed by then. Found by simulation (seed 2001744)."""
    world = await make()
    client = await world.ask(post()[:-2])
    closing = asyncio.ensure_future(world.server.aclose())
    client.say(b"\r\n")
    await world.settle()
    answer = client.answer()
    assert answer.status == 503
    assert "retry-after" in answer.headers
    assert world.acceptor.started == 0
    await closing


async def test_no_handshake_is_taken_while_draining(make: Make) -> None:
    world = await make()
    client = await world.ask(shake()[:-2])
    world.server.stop_accepting()
    client.say(b"\r\n")
    await world.settle()
    answer = client.answer()
    assert answer.status == 503
    assert "retry-after" in answer.headers
    assert world.acceptor.started == 0


async def test_requests_that_do_not_end_are_dropped_in_time(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = await make(limits={"header_time": 100})
    client = await world.ask(get()[:-2])
    closing = asyncio.ensure_future(world.server.aclose())
    await world.clock.advance(4.5)
    assert not closing.done()
    await world.clock.advance(0.5)
    await asyncio.wait_for(closing, 5)
    assert client.gone
    assert "dropping 1 requests" in caplog.text


async def test_closing_may_be_cancelled_and_then_drops_everything(make: Make) -> None:
    world = await make()
    client, socket_ = await world.ask(get()[:-2]), await world.upgrade()
    closing = asyncio.ensure_future(world.server.aclose())
    await world.settle()
    assert not client.gone
    closing.cancel()
    await world.settle()
    assert closing.cancelled()
    assert client.gone
    assert socket_.gone
    assert world.acceptor.drivers[0].losses == [(1006, "connection lost")]
    assert world.clock.timers == 0


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
async def test_nothing_is_left(make: Make) -> None:
    def connections() -> list[object]:
        return [each for each in gc.get_objects() if type(each) in (HttpConnection, RawPipe)]

    before = asyncio.all_tasks()
    others = connections()  # of tests that failed, or whose cycles nobody has collected yet
    world = await make()
    for _ in range(3):
        await world.upgrade()
        await world.ask(get())
        await world.ask(get()[:-5])
    world.server.abort()
    await world.server.aclose()
    assert asyncio.all_tasks() == before
    world.acceptor.drivers.clear()
    # Without a collection: no cycle is left that would need one, ten thousand times in a storm.
    assert not [each for each in connections() if not any(each is other for other in others)]
