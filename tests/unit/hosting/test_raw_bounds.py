"""How large a message may be changes while a pipe is open: who was let in has more (A1)."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import pytest

from tests.unit.hosting.sockets import TEXT, PipeWorld, masked


@pytest.fixture
async def world() -> AsyncIterator[PipeWorld]:
    world = PipeWorld()
    yield world
    await world.aclose()


async def test_what_is_too_large_is_refused_by_its_head(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.transport.max_frame = 1000
    peer.say(masked(TEXT, b"x" * 1001)[:4])
    await world.settle()
    assert peer.closed == (1009, "message too big")
    assert driver.losses == [(1009, "message too big")]


async def test_fragments_are_added_up(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe.transport.max_frame = 1000
    peer.say(masked(TEXT, b"x" * 600, fin=False) + masked(0, b"x" * 401)[:4])
    await world.settle()
    assert peer.closed == (1009, "message too big")
    assert driver.frames == []


async def test_a_message_that_has_begun_to_come_in_gets_the_new_bound(world: PipeWorld) -> None:
    """Who is let in by one message has its next one on the way."""
    pipe, driver, peer = await world.open()
    pipe.transport.max_frame = 1000
    large = masked(TEXT, b"x" * 50_000)
    peer.say(masked(TEXT, b"me") + large[:1])  # not even its length can be seen
    await world.settle()
    assert driver.frames == [b"me"]
    pipe.transport.max_frame = 100_000
    peer.say(large[1:])
    await world.settle()
    assert driver.frames == [b"me", b"x" * 50_000]


async def test_within_one_read_a_message_changes_it_for_the_next(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()

    def less() -> None:
        pipe.transport.max_frame = 10

    driver.on_received = less
    peer.say(masked(TEXT, b"x" * 20) * 2)
    await world.settle()
    assert driver.frames == [b"x" * 20]
    assert peer.closed == (1009, "message too big")


async def test_nobody_inflates_more_than_that(world: PipeWorld) -> None:
    pipe, driver, peer = await world.open()
    pipe._deflate = True
    pipe.transport.max_frame = 1000
    squeezed = zlib.compressobj(wbits=-15)
    data = squeezed.compress(b"x" * 2000) + squeezed.flush(zlib.Z_SYNC_FLUSH)[:-4]
    said = bytearray(masked(TEXT, data))
    said[0] |= 0x40
    peer.say(bytes(said))
    await world.settle()
    assert peer.closed == (1009, "message too big")
    assert driver.frames == []
