"""Bytes between machines: what TCP promises, and what links do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rtkit.testing.simulation import Link, Simulation, simulate

LONG = bytes(range(256)) * 4096  # 1 MiB: more than all windows and buffers together


class Peer(asyncio.Protocol):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended = False
        self.lost: list[Exception | None] = []
        self.pauses = 0
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.pauses += 1
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()


class Pair:
    """Two machines with a connection between them: ``a`` made it, ``b`` listened."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.a, self.b = Peer(), Peer()

    async def connect(self) -> Pair:
        sim = self.sim
        sim.network.listen(sim.machine("b"), 80, lambda: self.b)
        await sim.machine("a").spawn(sim.loop.create_connection(lambda: self.a, "b", 80))
        await asyncio.sleep(1)
        return self


def run(program: Callable[[Pair], Awaitable[None]], *, seed: int = 1, connected: bool = True) -> None:
    async def main(sim: Simulation) -> None:
        pair = Pair(sim)
        await program(await pair.connect() if connected else pair)

    simulate(main, seed=seed)


def test_bytes_arrive_in_order_and_once_both_ways() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.network.link = Link(delay=(0.001, 0.5), loss=0.2)
        for n in range(200):
            pair.a.transport.write(b"%d," % n)
            pair.b.transport.write(b"%d;" % n)
        await asyncio.sleep(600)
        assert bytes(pair.b.got) == b"".join(b"%d," % n for n in range(200))
        assert bytes(pair.a.got) == b"".join(b"%d;" % n for n in range(200))

    run(program)


def test_who_does_not_read_stops_who_writes_until_it_reads_again() -> None:
    async def program(pair: Pair) -> None:
        pair.b.transport.pause_reading()
        pair.a.transport.write(LONG)
        await asyncio.sleep(30)
        assert (pair.a.pauses, pair.a.can_write.is_set(), len(pair.b.got)) == (1, False, 0)
        assert pair.a.transport.get_write_buffer_size() > len(LONG) // 2
        pair.b.transport.resume_reading()
        await asyncio.sleep(30)
        assert pair.a.can_write.is_set()
        assert pair.a.transport.get_write_buffer_size() == 0
        assert bytes(pair.b.got) == LONG

    run(program)


def test_a_frozen_machine_takes_a_window_and_no_more() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.machine("b").freeze()
        pair.a.transport.write(LONG)
        await asyncio.sleep(300)
        assert (pair.a.can_write.is_set(), len(pair.b.got), pair.a.lost) == (False, 0, [])
        pair.sim.machine("b").thaw()
        await asyncio.sleep(30)
        assert bytes(pair.b.got) == LONG

    run(program)


def test_the_end_comes_after_the_bytes_and_the_other_way_stays_open() -> None:
    async def program(pair: Pair) -> None:
        pair.a.transport.write(LONG)
        pair.a.transport.write_eof()
        await asyncio.sleep(30)
        assert (bytes(pair.b.got), pair.b.ended, pair.b.lost) == (LONG, True, [])
        with pytest.raises(RuntimeError, match="write_eof"):
            pair.a.transport.write(b"more")
        pair.b.transport.write(b"thanks")
        pair.b.transport.close()
        await asyncio.sleep(30)
        assert (bytes(pair.a.got), pair.a.ended, pair.b.lost) == (b"thanks", True, [None])

    run(program)


def test_closing_sends_what_was_written() -> None:
    async def program(pair: Pair) -> None:
        pair.a.transport.write(LONG)
        pair.a.transport.close()
        assert pair.a.transport.is_closing()
        await asyncio.sleep(30)
        assert (bytes(pair.b.got), pair.b.ended, pair.a.lost) == (LONG, True, [None])

    run(program)


def test_aborting_does_not_and_resets_the_other_end() -> None:
    async def program(pair: Pair) -> None:
        pair.a.transport.write(LONG)
        pair.a.transport.abort()
        await asyncio.sleep(30)
        assert len(pair.b.got) < len(LONG)
        assert pair.a.lost == [None]
        assert [type(error) for error in pair.b.lost] == [ConnectionResetError]

    run(program)


def test_a_cut_is_heard_at_both_ends() -> None:
    async def program(pair: Pair) -> None:
        assert pair.sim.network.cut("a", "b") == 1
        await asyncio.sleep(1)
        assert [type(e) for e in pair.a.lost + pair.b.lost] == [ConnectionResetError] * 2
        assert not pair.sim.network.connections

    run(program)


@pytest.mark.parametrize("seed", range(20))
def test_after_a_partition_nothing_is_lost_doubled_or_overtaken(seed: int) -> None:
    async def program(pair: Pair) -> None:
        network, expected = pair.sim.network, b""
        chance = pair.sim.chance
        for n in range(400):
            # Written before, within, after, and while TCP still waits to send again what was lost.
            data = b"%d," % n
            expected += data
            pair.a.transport.write(data)
            if n % 40 == 20:
                network.partition(("a",), ("b",))
            if n % 40 == 35:
                network.heal()
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.003, 0.2)))
        network.heal()
        await asyncio.sleep(60)
        assert bytes(pair.b.got) == expected

    run(program, seed=seed)


def test_a_partition_says_nothing_and_what_cannot_be_sent_is_given_up_after_a_minute() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.network.partition(("a",), ("b",))
        pair.a.transport.write(b"x")
        await asyncio.sleep(59)
        assert (pair.a.lost, pair.b.lost) == ([], [])
        await asyncio.sleep(2)
        assert [type(error) for error in pair.a.lost] == [TimeoutError]
        assert pair.b.lost == []  # half-open: it has nothing to send, and so it never knows

    run(program)


def test_a_partition_that_heals_before_that_is_a_delay() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.network.partition(("a",), ("b",))
        pair.a.transport.write(b"x")
        await asyncio.sleep(50)
        pair.sim.network.heal()
        await asyncio.sleep(100)
        assert (bytes(pair.b.got), pair.a.lost) == (b"x", [])

    run(program)


def test_who_closed_during_a_partition_is_heard_of_after_it() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.network.partition(("a",), ("b",))
        pair.a.transport.close()
        await asyncio.sleep(30)
        assert (pair.a.lost, pair.b.ended) == ([None], False)
        pair.sim.network.heal()
        await asyncio.sleep(3)
        assert pair.b.ended

    run(program)


@pytest.mark.parametrize(("dark", "told"), [(False, True), (True, False)])
def test_a_process_that_dies_resets_its_connections_and_a_power_cut_does_not(dark: bool, told: bool) -> None:
    async def program(pair: Pair) -> None:
        pair.sim.machine("b").crash(dark=dark)
        await asyncio.sleep(1)
        assert bool(pair.a.lost) is told
        pair.a.transport.write(b"anybody there?")
        await asyncio.sleep(1)
        assert bool(pair.a.lost) is told
        assert pair.b.lost == []  # it does not run any more

    run(program)


def test_nobody_listening_refuses() -> None:
    async def program(pair: Pair) -> None:
        pair.sim.machine("b")
        with pytest.raises(ConnectionRefusedError, match="b:80"):
            await pair.sim.machine("a").spawn(pair.sim.loop.create_connection(Peer, "b", 80))
        await pair.connect()
        pair.sim.machine("b").crash()
        with pytest.raises(ConnectionRefusedError):
            await pair.sim.machine("a").spawn(pair.sim.loop.create_connection(Peer, "b", 80))

    run(program, connected=False)


def test_connecting_through_a_partition_takes_a_minute_and_fails_or_succeeds_when_it_ends() -> None:
    async def program(pair: Pair) -> None:
        sim, network = pair.sim, pair.sim.network
        network.partition(("a",), ("b",))
        network.listen(sim.machine("b"), 80, Peer)
        with pytest.raises(TimeoutError):
            await sim.machine("a").spawn(sim.loop.create_connection(Peer, "b", 80))
        assert 60 <= sim.now < 63
        sim.loop.call_later(10, network.heal)
        await sim.machine("a").spawn(sim.loop.create_connection(Peer, "b", 80))
        assert 70 <= sim.now < 75

    run(program, connected=False)


def test_connections_are_made_by_machines_and_without_tls() -> None:
    async def program(pair: Pair) -> None:
        with pytest.raises(RuntimeError, match=r"Machine\.spawn"):
            await pair.sim.loop.create_connection(Peer, "b", 80)
        with pytest.raises(OSError, match="no TLS"):
            await pair.sim.machine("a").spawn(pair.sim.loop.create_connection(Peer, "b", 80, ssl=True))

    run(program, connected=False)


def test_a_link_of_its_own_is_for_two_machines_and_ends_with_heal() -> None:
    async def program(pair: Pair) -> None:
        network = pair.sim.network
        network.set("a", "b", delay=(5.0, 5.0))
        assert network.between("b", "a").delay == (5.0, 5.0)
        assert network.between("a", "c") == network.link
        pair.a.transport.write(b"slow")
        await asyncio.sleep(4)
        assert not pair.b.got
        await asyncio.sleep(2)
        assert pair.b.got
        network.heal()
        assert network.between("a", "b") == network.link

    run(program)


def test_what_is_lost_before_a_frozen_machine_accepted_it_is_made_and_then_lost() -> None:
    async def program(pair: Pair) -> None:
        sim = pair.sim
        sim.machine("b").freeze()
        await pair.connect()
        pair.a.transport.abort()
        await asyncio.sleep(1)
        assert pair.b.transport is None
        sim.machine("b").thaw()
        await asyncio.sleep(1)
        assert pair.b.transport is not None
        assert [type(error) for error in pair.b.lost] == [ConnectionResetError]

    run(program, connected=False)
