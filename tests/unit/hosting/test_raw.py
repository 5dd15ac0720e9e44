"""The raw pipe on real sockets: what passes, what an idle one holds, and the ways to an end."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rtkit.hosting.frames import Assembler
from rtkit.hosting.raw import limit_silence, no_delay
from rtkit.primitives.ratelimit import TokenBucket
from rtkit.transports import Batch
from tests.unit.hosting.sockets import BINARY, CLOSE, PING, PONG, TEXT, PipeWorld, masked, network_of


@pytest.fixture
async def world() -> AsyncIterator[PipeWorld]:
    world = PipeWorld()
    yield world
    await world.aclose()


# -- messages ------------------------------------------------------------------------------------------


async def test_messages_both_ways(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(echo=True)
    peer.say(masked(TEXT, b"one") + masked(BINARY, b"two") + masked(TEXT, "drei é".encode()))
    await world.settle()
    assert driver.frames == [b"one", b"two", "drei é".encode()]
    assert peer.texts == ["one", "two", "drei é"]
    assert repr(pipe) == "<RawPipe open, 0 bytes buffered>"


class Recorder:
    """A transport that notes what is written to it."""

    def __init__(self, network: Any, writes: list[bytes]) -> None:
        self._network = network
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._network.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


async def test_a_batch_is_made_once_and_is_one_frame(world: PipeWorld) -> None:
    pipes = [await world.open() for _ in range(3)]
    batch = Batch([b"{}", b'{"a":1}'])
    writes: list[bytes] = []
    for pipe, driver, _ in pipes:
        pipe._network = Recorder(network_of(pipe), writes)  # type: ignore[assignment]
        assert driver.transport.send_batch(batch)
    assert len(writes) == 3
    assert len({id(data) for data in writes}) == 1
    for _, _, peer in pipes:
        assert peer.texts == ['{}\n{"a":1}']


async def test_an_idle_pipe_holds_nothing(world: PipeWorld) -> None:
    before = asyncio.all_tasks()
    pipe, driver, peer = await world.open(echo=True)
    for _ in range(2):
        peer.say(masked(TEXT, b"a", fin=False))
        await world.settle()
        assert isinstance(pipe._inbound, Assembler)
        peer.say(masked(0, b"b"))
        await world.settle()
    assert driver.frames == [b"ab", b"ab"]
    gc.collect()
    held = [each for each in gc.get_referents(pipe) if each is not network_of(pipe)]
    kinds = {type(each).__name__ for each in held}
    assert kinds <= {"RawPipes", "WebSocketTransport", "bool", "int", "NoneType", "type"}
    assert asyncio.all_tasks() == before
    assert not len(world.deadlines)
    assert sys.getsizeof(pipe) <= 150


async def test_a_message_that_is_too_big(world: PipeWorld) -> None:
    _, driver, peer = await world.open()
    peer.say(masked(TEXT, b"x" * 100_001)[:20])
    await world.settle()
    assert peer.closed == (1009, "message too big")
    assert driver.losses == [(1009, "message too big")]


# -- pushing back --------------------------------------------------------------------------------------


async def test_paused_it_takes_nothing_more(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    driver.on_received = pipe.pause_reading
    for i in range(3):
        peer.say(masked(TEXT, b"%d" % i) + masked(TEXT, b"%d again" % i))
        await world.settle()
    assert driver.frames == [b"0"]
    for done in (2, 3, 4, 5, 6):
        pipe.resume_reading()
        assert len(driver.frames) == done - 1, "never from inside a call of the hub"
        await world.settle()
        assert len(driver.frames) == done
    pipe.resume_reading()
    pipe.resume_reading()
    await world.settle()
    assert pipe._inbound is None
    assert driver.frames == [b"0", b"0 again", b"1", b"1 again", b"2", b"2 again"]


async def test_what_is_buffered_and_when_it_has_left(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    assert pipe.buffered == 0
    for _ in range(20):
        driver.transport.send([b"x" * 10_000])
    assert pipe.buffered > 100_000
    assert pipe.buffered == network_of(pipe).get_write_buffer_size()
    assert not driver.transport.send_batch(Batch([b"{}"]))
    assert driver.log == []
    while len(peer.listen(20_000)) < 200_000 and not driver.log:
        await world.settle()
        assert bool(pipe.buffered) != bool(driver.log)
    assert driver.log == ["writable"]
    assert pipe.buffered == 0
    await world.settle()
    assert len(peer.texts) == 21
    assert driver.log == ["writable"], "what the kernel takes at once was never buffered"


async def test_a_single_byte_that_waits_is_seen(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    network = network_of(pipe)
    while not network.get_write_buffer_size():
        assert pipe.buffered == 0
        assert driver.transport.send_batch(Batch([b"x"])) == (not network.get_write_buffer_size())
    assert 0 < pipe.buffered == network.get_write_buffer_size() < 100
    while not driver.log:
        peer.listen()
        await world.settle()
    assert driver.log == ["writable"]
    assert pipe.buffered == 0


async def test_a_driver_may_write_when_it_may(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.on_writable = lambda: driver.transport.send([b"y" * 100_000]) if len(driver.log) < 3 else None
    driver.transport.send([b"x" * 100_000])
    for _ in range(200):
        peer.listen()
        await world.settle()
    assert driver.log == ["writable"] * 3
    assert [len(text) for text in peer.texts] == [100_000] * 3
    assert pipe.buffered == 0


# -- pings ---------------------------------------------------------------------------------------------


async def test_pings_are_answered_and_pongs_are_not(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    peer.say(masked(PING, b"a") + masked(PONG, b"b") + masked(TEXT, b"x", fin=False) + masked(PING, b"c"))
    peer.say(masked(0, b"y"))
    await world.settle()
    assert peer.frames == [(PONG, b"a"), (PONG, b"c")]
    assert driver.frames == [b"xy"]
    assert isinstance(pipe._control, TokenBucket)


async def test_a_peer_that_pings_and_does_not_read_gets_the_last_pong_only(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    before = pipe.buffered
    assert before > 0
    for i in range(50):
        peer.say(masked(PING, b"%d" % i))
        await world.settle()
        assert pipe.buffered <= before
    for _ in range(100):
        peer.listen()
        await world.settle()
    assert [frame for frame in peer.frames if frame[0] != TEXT] == [(PONG, b"49")]
    assert driver.log == ["writable"]


async def test_a_flood_of_control_frames_ends_the_connection(world: PipeWorld) -> None:
    _, driver, peer = await world.open()
    peer.say(masked(PONG) * 100)
    await world.settle()
    assert driver.losses == []
    await world.clock.advance(1)
    peer.say(masked(PING) * 10)
    await world.settle()
    assert driver.losses == []
    peer.say(masked(PING))
    await world.settle()
    assert peer.closed == (1008, "too many control frames")
    assert driver.losses == [(1008, "too many control frames")]


# -- the hub closes ------------------------------------------------------------------------------------


async def test_the_hub_closes_and_the_peer_agrees(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    driver.transport.send([b"last"])
    driver.transport.close(3001, "draining")
    driver.transport.close(3000, "again")
    driver.transport.send([b"too late"])
    pipe.write(b"too late")
    pipe.write_batch(Batch([b"too late"]))
    pipe.close(3000, "again")
    assert driver.losses == []
    await world.settle()
    assert peer.frames[0] == (TEXT, b"last")
    assert peer.closed == (3001, "draining")
    assert not peer.eof
    assert repr(pipe) == "<RawPipe closing, 0 bytes buffered>"
    peer.say(masked(TEXT, b"x") + masked(CLOSE, b"\x0b\xb9"))
    await world.settle()
    peer.listen()
    assert peer.eof
    assert driver.frames == []
    assert driver.losses == [(3001, "draining")]
    assert repr(pipe) == "<RawPipe over, 0 bytes buffered>"
    pipe.abort()
    pipe.resume_reading()


async def test_a_paused_pipe_that_closes_reads_again(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.pause_reading()
    peer.say(masked(TEXT, b"x") * 3 + masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    pipe.close(3000, "")
    await world.settle()
    assert driver.losses == [(3000, "")]
    assert driver.frames == []


async def test_what_came_before_pausing_holds_the_close_frame(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    driver.on_received = pipe.pause_reading
    peer.say(masked(TEXT, b"x") * 3 + masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert driver.losses == []
    pipe.close(3000, "")
    assert driver.losses == []
    await world.settle()
    assert driver.losses == [(3000, "")]


async def test_a_peer_that_never_agrees_is_dropped_in_time(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.close(3001, "draining")
    await world.clock.advance(3.5)
    peer.say(masked(TEXT, b"still here"))
    await world.settle()
    assert driver.losses == []
    await world.clock.advance(0.5)
    assert driver.losses == [(3001, "draining")]
    peer.listen()
    assert peer.eof
    assert peer.closed == (3001, "draining")


async def test_a_peer_that_reads_nothing_cannot_keep_a_closing_pipe(world: PipeWorld) -> None:
    pipe, driver, _ = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    pipe.close(3008, "slow consumer")
    await world.clock.advance(3.5)
    assert driver.losses == []
    assert pipe.buffered > 0
    await world.clock.advance(0.5)
    assert driver.losses == [(3008, "slow consumer")]
    assert pipe.buffered == 0


async def test_our_own_stall_is_not_held_against_the_peer(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.close(3001, "draining")
    world.clock.stall(10)
    await world.settle()
    assert driver.losses == []
    peer.say(masked(CLOSE, b"\x0b\xb9"))
    await world.settle()
    assert driver.losses == [(3001, "draining")]


async def test_a_closing_peer_that_floods_is_heard_no_more(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.close(3013, "too many requests")
    peer.say(masked(TEXT) * 1002 + masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert pipe._inbound is None
    assert driver.losses == []
    await world.clock.advance(4)
    assert driver.losses == [(3013, "too many requests")]


# -- the peer closes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "loss", "echo"),
    [
        (b"\x03\xe8bye", (1000, "bye"), b"\x03\xe8"),
        (b"\x03\xe9", (1001, ""), b"\x03\xe9"),
        (b"\x12\x34", (4660, ""), b"\x12\x34"),
        (b"", (1005, ""), b""),
    ],
)
async def test_the_peer_closes(world: PipeWorld, payload: bytes, loss: tuple[int, str], echo: bytes) -> None:
    _, driver, peer = await world.open()
    peer.say(masked(CLOSE, payload) + masked(TEXT, b"after the end"))
    await world.settle()
    assert peer.frames == [(CLOSE, echo)]
    assert peer.eof
    assert driver.losses == [loss]
    assert driver.frames == []


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xed", b"\x03\xee", b"\x00\x00", b"\xff\xff"])
async def test_with_a_code_nobody_may_send(world: PipeWorld, payload: bytes) -> None:
    _, driver, peer = await world.open()
    peer.say(masked(CLOSE, payload))
    await world.settle()
    assert peer.closed is not None
    assert peer.closed[0] == 1002
    assert driver.losses[0][0] == 1002


async def test_what_was_written_leaves_before_the_echo(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    peer.say(masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert driver.losses == [(1000, "")], "the hub knows at once"
    assert pipe in world.pipes.open
    for _ in range(100):
        peer.listen()
        await world.settle()
    assert [opcode for opcode, _ in peer.frames] == [TEXT, CLOSE]
    assert pipe not in world.pipes.open


async def test_a_peer_that_closes_and_reads_nothing_is_dropped_in_time(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    peer.say(masked(CLOSE, b"\x03\xe8"))
    await world.clock.advance(3.5)
    assert pipe in world.pipes.open
    await world.clock.advance(0.5)
    assert pipe not in world.pipes.open
    assert driver.losses == [(1000, "")]


@pytest.mark.parametrize("reads", [True, False])
async def test_the_peer_ends_without_a_word(world: PipeWorld, reads: bool) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    peer.say(masked(TEXT, b"half")[:3])
    peer.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert driver.losses == [(1006, "connection lost")]
    if reads:
        for _ in range(100):
            peer.listen()
            await world.settle()
        assert len(peer.texts) == 1
    else:
        await world.clock.advance(4)
    assert pipe not in world.pipes.open


async def test_the_connection_breaks(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open(buffer=4096)
    driver.transport.send([b"x" * 90_000])
    peer.sock.close()
    await world.settle()
    assert driver.losses == [(1006, "connection lost")]
    assert pipe.buffered == 0
    driver.transport.send([b"x"])
    driver.transport.close(3000, "")
    driver.transport.resume_reading()
    driver.transport.pause_reading()


async def test_a_broken_connection_that_is_written_to(
    world: PipeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    _, driver, peer = await world.open()
    peer.sock.close()
    for _ in range(20):
        driver.transport.send([b"x" * 1000])
    assert driver.losses == [], "never from inside a call of the hub"
    await world.settle()
    assert driver.losses == [(1006, "connection lost")]
    assert caplog.text == ""


# -- violations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x05hello", 1002),
        (masked(3, b"x"), 1002),
        (masked(TEXT, b"\xff\xff"), 1007),
        (b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009),
        (masked(TEXT, fin=False) + masked(0, fin=False) * 2000, 1009),
    ],
)
async def test_a_violation_is_told_and_then_nobody_listens(world: PipeWorld, data: bytes, code: int) -> None:
    pipe, driver, peer = await world.open()
    peer.say(masked(TEXT, b"fine") + data)
    await world.settle()
    assert peer.closed is not None
    assert peer.closed[0] == code
    assert driver.losses == [peer.closed]
    assert driver.frames == [b"fine"]
    peer.say(b"\x81\x05hello" * 1000)  # is read and forgotten, or our close frame would be lost
    await world.settle()
    assert not peer.reset
    assert pipe._inbound is None
    peer.sock.shutdown(socket.SHUT_WR)
    await world.settle()
    assert pipe not in world.pipes.open
    assert not len(world.deadlines)


async def test_whoever_stays_after_a_violation_is_dropped_in_time(world: PipeWorld) -> None:
    pipe, _, peer = await world.open()
    peer.say(masked(3))
    await world.clock.advance(3.5)
    assert pipe in world.pipes.open
    await world.clock.advance(0.5)
    assert pipe not in world.pipes.open


async def test_a_violation_while_closing_is_not_told_twice(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.close(3000, "bye")
    peer.say(masked(3))
    await world.settle()
    assert peer.closed == (3000, "bye")
    assert driver.losses == [(3000, "bye")]


# -- bugs above us -------------------------------------------------------------------------------------


async def test_a_driver_that_raises(world: PipeWorld, caplog: pytest.LogCaptureFixture) -> None:
    _, driver, peer = await world.open()
    peer.say(masked(TEXT, b"raise") + masked(TEXT, b"x") + masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert peer.closed == (3004, "internal error")
    assert driver.losses == [(3004, "internal error")]
    assert driver.frames == []
    assert "ZeroDivisionError" in caplog.text


async def test_a_driver_that_raises_when_it_may_write(
    world: PipeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    _, driver, peer = await world.open(buffer=4096)
    driver.on_writable = lambda: 1 / 0
    driver.transport.send([b"x" * 90_000])
    for _ in range(100):
        peer.listen()
        await world.settle()
    assert peer.closed == (3004, "internal error")
    assert "ZeroDivisionError" in caplog.text


async def test_a_driver_that_raises_when_it_is_lost(
    world: PipeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, driver, peer = await world.open()
    driver.on_lost = lambda: 1 / 0
    peer.say(masked(CLOSE, b"\x03\xe8"))
    await world.settle()
    assert "ZeroDivisionError" in caplog.text
    assert peer.closed == (1000, "")
    assert pipe not in world.pipes.open


# -- the network ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
async def test_what_is_accepted_inherits_the_limit_of_silence() -> None:
    accepted: list[Any] = []
    loop = asyncio.get_running_loop()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    server = await loop.create_server(Protocol, "127.0.0.1", 0, start_serving=False)
    limit_silence(server.sockets[0], 12.5)
    await server.start_serving()
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    while not accepted:  # noqa: ASYNC110
        await asyncio.sleep(0)
    sock = accepted[0].get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_500
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    accepted[0].abort()
    server.close()
    await asyncio.sleep(0)


def test_other_sockets_have_no_such_limit() -> None:
    one, other = socket.socketpair()
    limit_silence(one, 5)
    one.close()
    other.close()


@pytest.mark.parametrize("made", [socket.socket, lambda: socket.create_server(("127.0.0.1", 0))])
async def test_nobody_waits_for_a_confirmation(made: Callable[[], socket.socket]) -> None:
    """On sockets that do not name TCP as their protocol asyncio leaves the kernel's delay on."""
    with made() as listening:
        no_delay(listening)
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_socket_without_delays_of_its_own() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        no_delay(sock)
    with socket.socket() as closed:
        pass
    no_delay(closed)
