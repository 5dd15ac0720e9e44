"""Ten thousand members recover one room, and history is read a few times (F2)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit import Grant, History, Limits, Position
from rtkit.errors import BrokerUnavailable
from rtkit.hub.rereads import ALL, KEPT, ROOM, Rereads, RoomReads
from rtkit.primitives import Deadlines
from rtkit.streams import Entry, StreamPage, locate
from rtkit.testing import ManualClock
from tests.support.rawclient import RawClient
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ROOMNAME = "room:a"


async def scene(world: World, published: int, **limits: Any) -> tuple[Any, FaultyBroker, str]:
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker, limits=Limits(accepts=None, handshakes=None, **limits))
    hub.rooms("room:{x}", publishes=object, history=History(5000, ttl=600), grant=Grant("publish", "history"))
    await hub.start()
    epoch = ""
    for n in range(1, published + 1):
        position = (await hub.publish(ROOMNAME, n)).position
        epoch = position.epoch if position is not None else ""
    broker.calls.clear()
    return hub, broker, epoch


def crowd(world: World, hub: Any, positions: list[Position]) -> list[RawClient]:
    """Members that come at once, each from its own place."""
    clients = []
    for at in positions:
        client = world.client(hub, rt=True)
        client.ask("connect", token=f"u{len(world.clients)}", rt={"v": 1})
        client.ask("subscribe", channel=ROOMNAME, recover=True, epoch=at.epoch, offset=at.offset)
        clients.append(client)
    return clients


def heard(client: RawClient) -> list[Any]:
    reply = client.replies[2]["subscribe"]
    return [pub["data"] for pub in reply.get("publications", [])] + client.data_of(ROOMNAME)


@pytest.mark.parametrize(
    ("members", "reads"), [(300, 12), pytest.param(10_000, 12, marks=pytest.mark.soak, id="ten thousand")]
)
async def test_a_crowd_reads_a_few_times(world: World, members: int, reads: int) -> None:
    """From places of their own, over the length of several pages; while more is published. Each gets all, once."""
    hub, broker, epoch = await scene(world, 1500, recovery_page=500)
    chance = random.Random(1)
    places = [chance.randrange(0, 1500) for _ in range(members)]
    clients = crowd(world, hub, [Position(epoch, at) for at in places])
    await asyncio.sleep(0)
    await hub.publish(ROOMNAME, 1501)
    await world.settle()
    await hub.publish(ROOMNAME, 1502)
    await world.settle()
    for at, client in zip(places, clients, strict=True):
        assert client.replies[2]["subscribe"]["recovered"] is True
        assert heard(client) == list(range(at + 1, 1503))
    assert broker.calls.count("read") <= reads
    # And those who come one after the other.
    for at in (1400, 700, 1501):
        (client,) = crowd(world, hub, [Position(epoch, at)])
        await world.settle()
        assert heard(client) == list(range(at + 1, 1503))
    assert broker.calls.count("read") <= reads
    await world.clock.advance(KEPT + 1)
    assert hub.engine.rereads.size == 0


async def test_one_after_the_other_each_a_little_further_back(world: World) -> None:
    """The worst order: nobody stands in what was read. Some more is read below."""
    hub, broker, epoch = await scene(world, 600, recovery_page=100)
    for at in range(599, 399, -1):
        (client,) = crowd(world, hub, [Position(epoch, at)])
        await world.settle()
        assert heard(client) == list(range(at + 1, 601))
    assert broker.calls.count("read") <= 8, "the top, and two hundred places by fifty"


async def test_while_a_read_is_under_way_others_wait_for_it(world: World) -> None:
    hub, broker, epoch = await scene(world, 50)
    await world.join(hub, "first", ROOMNAME)
    broker.calls.clear()
    gate = broker.hold("read")
    clients = crowd(world, hub, [Position(epoch, at) for at in range(20, 40)])
    await world.settle()
    assert broker.calls.count("read") == 1
    gate.set()
    await world.settle()
    assert all(heard(client) == list(range(at, 51)) for at, client in enumerate(clients, 21))
    assert broker.calls.count("read") <= 3


async def test_who_goes_away_while_reading_takes_nobody_along(world: World) -> None:
    hub, broker, epoch = await scene(world, 10)
    await world.join(hub, "first", ROOMNAME)
    gate = broker.hold("read")
    first, *others = crowd(world, hub, [Position(epoch, 5)] * 5)
    await world.settle()
    await first.drop()
    gate.set()
    await world.settle()
    assert all(heard(client) == [6, 7, 8, 9, 10] for client in others)


async def test_a_broker_that_is_away_is_asked_once_for_all(world: World) -> None:
    hub, broker, epoch = await scene(world, 10)
    await world.join(hub, "first", ROOMNAME)
    broker.calls.clear()
    broker.failing, gate = {"read"}, broker.hold("read")
    clients = crowd(world, hub, [Position(epoch, 5)] * 50)
    await world.settle()
    gate.set()
    await world.settle()
    assert broker.calls.count("read") == 1
    assert all(client.replies[2]["error"]["temporary"] for client in clients)
    broker.failing = set()
    (client,) = crowd(world, hub, [Position(epoch, 5)])
    await world.settle()
    assert heard(client) == [6, 7, 8, 9, 10]


async def test_nothing_that_was_cleared_is_shown(world: World) -> None:
    hub, broker, epoch = await scene(world, 20)
    crowd(world, hub, [Position(epoch, 5)])
    await world.settle()
    assert hub.engine.rereads.size > 0
    await hub.room(ROOMNAME).clear()
    clients = crowd(world, hub, [Position(epoch, at) for at in range(20)])
    await world.settle()
    for client in clients:
        reply = client.replies[2]["subscribe"]
        assert reply.get("publications", []) == []
        assert reply["gap"]["reason"] == "epoch"
    assert broker.calls.count("read") <= 8, "that the epoch is over is true for all"


async def test_trimmed_is_trimmed_for_all(world: World) -> None:
    broker = FaultyBroker(world.backend)
    hub = world.hub(broker=broker, limits=Limits(accepts=None))
    hub.rooms("room:{x}", publishes=object, history=History(10, ttl=600), grant=Grant("history"))
    await hub.start()
    for n in range(1, 100):
        await hub.publish(ROOMNAME, n)
    position = (await hub.publish(ROOMNAME, 100)).position
    assert position is not None
    epoch = position.epoch
    clients = crowd(world, hub, [Position(epoch, at) for at in range(60)])
    await world.settle()
    for at, client in enumerate(clients):
        gap = client.replies[2]["subscribe"]["gap"]
        assert (gap.get("from", 0), gap["to"], gap["reason"]) == (at, 100, "trimmed")
    assert broker.calls.count("read") <= 4


async def test_a_room_that_is_left_keeps_nothing(world: World) -> None:
    hub, _, epoch = await scene(world, 20)
    (client,) = crowd(world, hub, [Position(epoch, 5)])
    await world.settle()
    assert hub.engine.rereads.size > 0
    await client.drop()
    await world.settle()
    assert hub.engine.rereads.size == 0
    assert hub.statistics().deadlines == 0


# -- what is kept ---------------------------------------------------------------------------------------


class Stream:
    """A stream that is read like a broker's.

    :param size: bytes of an entry.
    :param most: entries of a page, which a broker bounds by their bytes.
    """

    def __init__(
        self, top: int, *, epoch: str = "e", floor: int = 0, size: int = 1, most: int = 1000
    ) -> None:
        self.epoch, self.top, self.floor = epoch, top, floor
        self.size = size
        self.most = most
        self.reads = 0
        self.asked: list[tuple[int, int]] = []
        self.away = False

    def entry(self, offset: int) -> Entry:
        return Entry(offset, b"%d" % offset if self.size == 1 else bytes(self.size))

    async def read(self, position: Position, limit: int) -> StreamPage:
        self.reads += 1
        self.asked.append((position.offset, limit))
        await asyncio.sleep(0)
        if self.away:
            raise BrokerUnavailable("away")
        start, lost = locate(position, epoch=self.epoch, top=self.top, floor=self.floor)
        entries = tuple(
            self.entry(each) for each in range(start + 1, min(self.top, start + min(limit, self.most)) + 1)
        )
        return StreamPage(self.epoch, self.top, self.floor, start, entries, lost)


@pytest.fixture
async def kept() -> Any:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    yield Rereads(clock, deadlines), clock
    deadlines.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 60)),
            st.tuples(st.just("publish"), st.integers(1, 5)),
            st.tuples(st.just("trim"), st.integers(0, 60)),
            st.tuples(st.just("clear"), st.just(0)),
            st.tuples(st.just("old"), st.integers(0, 60)),
        ),
        max_size=40,
    ),
    st.integers(1, 10),
)
def test_a_page_of_it_is_a_page_of_the_stream(steps: list[tuple[str, int]], limit: int) -> None:
    """It brings the member on, without a hole; what it says is lost was lost; and it was true a moment ago."""

    async def run() -> None:
        clock = ManualClock()
        deadlines = Deadlines(clock)
        rereads, stream = Rereads(clock, deadlines), Stream(30)
        room: RoomReads = rereads.room()
        for what, number in steps:
            if what == "publish":
                for _ in range(number):
                    stream.top += 1
                    room.delivered(stream.epoch, stream.entry(stream.top))
            elif what == "trim":
                stream.floor = max(stream.floor, min(stream.top, number))
            elif what == "clear":
                stream.epoch, stream.top, stream.floor = f"{stream.epoch}+", 0, 0
                room.forget()
            else:
                epoch = stream.epoch if what == "read" else "before"
                at = Position(epoch, min(number, stream.top) if what == "read" else number)
                page = await room.read(at, limit, stream.read)
                assert page.epoch == stream.epoch
                assert len(page.entries) <= limit
                assert [e.offset for e in page.entries] == list(range(page.start + 1, page.end + 1))
                assert all(entry == stream.entry(entry.offset) for entry in page.entries)
                assert page.top <= stream.top and page.floor <= stream.floor
                if epoch == "before":
                    assert page.lost == "epoch"
                elif page.lost is None:
                    assert page.start == at.offset
                    assert page.entries or at.offset == stream.top
                else:
                    assert page.lost == "trimmed" and at.offset < page.start <= stream.floor
        assert rereads.size == room.size == sum(run.size for run in room._runs)
        deadlines.close()

    asyncio.run(run())


async def test_large_messages_are_kept_from_where_they_are_wanted(kept: Any) -> None:
    """Of a page that is too much its beginning is kept, since a reply has room for that; never more than so much."""
    rereads, _ = kept
    room, stream = rereads.room(), Stream(100, size=100_000)
    page = await room.read(Position("e", 50), 50, stream.read)
    assert page.end == 100
    assert ROOM // 2 < rereads.size <= ROOM
    assert (await room.read(Position("e", 55), 50, stream.read)).end < 100
    assert stream.reads == 1
    for at in range(0, 100, 7):
        await room.read(Position("e", at), 50, stream.read)
        assert rereads.size == room.size <= ROOM


async def test_a_page_that_is_cut_by_its_bytes_brings_its_reader_on(kept: Any) -> None:
    """What is read below must not use up the page before it comes to where the reader stands: it would ask for ever."""
    rereads, _ = kept
    room, stream = rereads.room(), Stream(100, size=100_000, most=8)
    await room.read(Position("e", 97), 50, stream.read)
    at = 77
    while at < 100:
        page = await room.read(Position("e", at), 50, stream.read)
        assert page.start == at < page.end
        at = page.end
    assert stream.reads <= 1 + 2 * 3, "three pages, each twice at the most"


async def test_no_more_is_read_below_than_would_be_kept(kept: Any) -> None:
    rereads, _ = kept
    room, stream = rereads.room(), Stream(100, size=400_000)
    await room.read(Position("e", 70), 20, stream.read)
    await room.read(Position("e", 60), 20, stream.read)
    assert stream.asked == [(70, 20), (58, 22)]


async def test_one_entry_is_kept_however_large_it_is(kept: Any) -> None:
    rereads, _ = kept
    room, stream = rereads.room(), Stream(3, size=ROOM + 1)
    for at in (1, 2):
        for _ in range(5):
            page = await room.read(Position("e", at), 50, stream.read)
            assert page.entries[0] == stream.entry(at + 1)
            assert rereads.size < 2 * ROOM
    room.delivered("e", stream.entry(4))
    assert (await room.read(Position("e", 3), 50, stream.read)).end == 4
    assert stream.reads == 2


async def test_what_is_kept_is_read_again_after_a_while_however_much_it_is_wanted(kept: Any) -> None:
    """H6: what is over by the history's bounds is shown for so many seconds at the most."""
    rereads, clock = kept
    room, stream = rereads.room(), Stream(2)
    await room.read(Position("e", 0), 50, stream.read)
    for _ in range(int(KEPT)):
        stream.top += 1
        stream.floor = stream.top - 1
        room.delivered("e", stream.entry(stream.top))
        page = await room.read(Position("e", 0), 50, stream.read)
        assert (page.start, page.end, stream.reads) == (0, stream.top, 1)
        await clock.advance(1)
    page = await room.read(Position("e", 0), 50, stream.read)
    assert (page.start, page.lost, stream.reads) == (stream.floor, "trimmed", 2)


@pytest.mark.parametrize("epoch", ["e", "before"])
async def test_what_was_being_read_when_the_stream_was_cleared_is_not_kept(kept: Any, epoch: str) -> None:
    rereads, _ = kept
    room, stream = rereads.room(), Stream(10)
    answers = asyncio.Event()

    async def slow(position: Position, limit: int) -> StreamPage:
        page = await stream.read(position, limit)
        await answers.wait()
        return page

    await room.read(Position("e", 9), 50, stream.read)
    first = asyncio.ensure_future(room.read(Position(epoch, 5), 50, slow))
    await asyncio.sleep(0.01)
    stream.epoch, stream.top = "e+", 0
    room.forget()
    answers.set()
    assert (await first).epoch == "e", "it has asked before"
    assert room.empty
    page = await room.read(Position(epoch, 5), 50, stream.read)
    assert (page.epoch, page.lost, page.entries) == ("e+", "epoch", ())


async def test_what_is_delivered_counts_as_well(kept: Any) -> None:
    rereads, _ = kept
    rooms = [rereads.room() for _ in range(ALL // ROOM + 10)]
    large = Stream(3, size=ROOM // 2 - 1000)
    for room in rooms:
        await room.read(Position("e", 0), 50, Stream(1).read)
        room.delivered("e", large.entry(2))
        room.delivered("e", large.entry(3))
        assert rereads.size <= ALL
    assert rooms[0].empty
    assert not rooms[-1].empty


async def test_all_rooms_together_are_bounded(kept: Any) -> None:
    rereads, clock = kept
    rooms = [rereads.room() for _ in range(ALL // ROOM + 10)]
    for room in rooms:
        await room.read(Position("e", 0), 50, Stream(50, size=40_000).read)
        assert rereads.size <= ALL
    assert rooms[0].empty, "the one that was not wanted for longest"
    assert not rooms[-1].empty
    await clock.advance(KEPT - 1)
    await rooms[-1].read(Position("e", 3), 50, Stream(50).read)
    await clock.advance(2)
    assert rooms[-2].empty
    assert not rooms[-1].empty
    await clock.advance(KEPT)
    assert rereads.size == 0
    assert clock.timers == 0


async def test_it_says_what_it_keeps(kept: Any) -> None:
    rereads, _ = kept
    room = rereads.room()
    await room.read(Position("e", 0), 50, Stream(2).read)
    assert repr(room) == "<RoomReads 1 runs, 202 bytes>"
    assert repr(rereads) == "<Rereads of 1 rooms, 202 bytes>"
