"""T8: units over 64 KiB come and go in chunks, delay nothing, and cost no more than was agreed (D1, D3, F1)."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, DeclarationError, Grant, History, Hub, Limits
from rtkit.hub.large import FENCE, Freight, Parcel
from rtkit.primitives import Heartbeat, Rate
from rtkit.wire import UNIT, Cut, Splitter
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")
MIB = 1024 * 1024
#: Bytes of a chunk unit at the most.
CHUNK = UNIT + 96


def hub_with(world: World, **limits: Any) -> Hub[Any]:
    options: dict[str, Any] = {"heartbeat": None, **limits}
    hub = world.hub(limits=Limits(**options))
    history = History(1000, ttl=6000, size=256 * MIB)
    most = None if "large" in limits else 4 * MIB
    hub.rooms("kept:{x}", publishes=object, grant=ALL, history=history, max_publication=most)
    hub.rooms("close-kept:{x}", publishes=object, grant=ALL, history=history, overflow="close")
    hub.rooms("live:{x}", publishes=object, grant=ALL, max_publication=most)
    hub.rooms("newest:{x}", publishes=object, grant=ALL, overflow="drop_newest")
    hub.rooms("latest:{x}", publishes=object, grant=ALL, overflow="latest_per_key")

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[Any, Any], params: Any) -> Any:
        return params

    @hub.rpc(object, name="give")
    async def give(ctx: Context[Any, Any], params: Any) -> Any:
        return "y" * params

    return hub


def cut(client: RawClient, command: dict[str, Any], of: int, size: int = 48 * 1024) -> Iterator[bytes]:
    return Splitter(Cut(json.dumps(command, ensure_ascii=False).encode(), of, push=False, size=size))


def refusals(client: RawClient) -> list[tuple[int, int, str]]:
    found = [push["chunk"] for push in client.pushes if "chunk" in push]
    return [(each["of"], each["error"]["code"], each["error"]["message"]) for each in found]


def runs_of_chunks(client: RawClient) -> list[int]:
    """How many chunks came in a row, each time."""
    runs = [0]
    for kind, _ in client.order:
        if kind == "chunk":
            runs[-1] += 1
        else:
            runs.append(0)
    return runs


# -- out -----------------------------------------------------------------------------------------------


async def test_a_large_answer_comes_in_chunks_and_to_foreign_clients_in_one_frame(world: World) -> None:
    hub = hub_with(world)
    ann, eve = await world.join(hub, "ann"), await world.join(hub, "eve", rt=False)
    for client in (ann, eve):
        assert len((await client.call("rpc", method="give", data=10 * MIB))["data"]) == 10 * MIB
    assert max(size for _, size in ann.order) <= CHUNK
    assert max(runs_of_chunks(ann)) == 214
    assert {kind for kind, _ in eve.order} == {"unit"}
    assert ann.closed is eve.closed is None
    assert hub.engine.assembling == 0


async def test_a_unit_of_64_kib_goes_whole(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    around = len('{"id":2,"rpc":{"data":""}}')
    await ann.call("rpc", method="give", data=UNIT - around)
    assert ann.order[-1] == ("unit", UNIT)
    await ann.call("rpc", method="give", data=UNIT - around + 1)
    assert [kind for kind, _ in ann.order[-2:]] == ["chunk", "chunk"]


async def test_pings_and_other_rooms_pass_while_something_large_leaves(world: World) -> None:
    """The issue's line: at most so many bytes of chunks between two small units, whatever the size of the large one."""
    hub = hub_with(world, heartbeat=Heartbeat(interval=5, timeout=5))
    ann = await world.join(hub, "ann", "kept:a", "live:b")
    ann.pipe.stall()
    ann.order.clear()
    id = ann.ask("rpc", method="give", data=10_000_000)
    await world.settle()
    turns = 0
    while not ann.answered(id):
        turns += 1
        await hub.publish("live:b", turns)
        await world.clock.advance(0.5)
        ann.pipe.drain(2)  # the chunk before, and what came with it
        await world.settle()
        ann.say(b"{}")
        assert turns < 1000
    assert ann.data_of("live:b")[:200] == list(range(1, 201))
    assert max(runs_of_chunks(ann)) <= 2
    assert ann.pings >= turns // 10 - 1
    assert ann.closed is None


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
@pytest.mark.parametrize("room", ["kept:a", "close-kept:a", "live:a", "newest:a", "latest:a"])
async def test_later_messages_of_the_room_wait_and_other_rooms_do_not(
    world: World, room: str, rt: bool
) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann", room, "live:other", rt=rt)
    ann.pipe.stall()
    size = 900_000
    await hub.publish(room, "first")
    await hub.publish(room, "x" * size)
    await hub.publish(room, "last")
    await hub.publish("live:other", "passes")
    await world.settle()
    seen: list[str] = []
    for _ in range(60):
        ann.pipe.drain(1)
        await ann.settle()
    for push in ann.pushes:
        data = push["pub"]["data"]
        seen.append("large" if len(data) == size else data)
    of_room = [each for each in seen if each != "passes"]
    assert of_room == (["first", "large", "last"] if room != "latest:a" or not rt else of_room)
    assert of_room[-1] == "last" and sorted(seen) == sorted({*seen})
    if rt and "large" in seen:
        assert seen.index("passes") < seen.index("large")
    assert ann.closed is None
    assert not hub.engine._parcels


async def test_a_slow_reader_of_large_messages_gets_them_all_from_history(world: World) -> None:
    """Memory: one large unit, and what an outbox holds; nothing missing, nothing double, in order."""
    hub = hub_with(world)
    slow, fast = await world.join(hub, "ann", "kept:a"), await world.join(hub, "bob", "kept:a")
    [connection] = [c for c in hub.engine.connections if c.session and c.session.identity.user == "ann"]
    slow.pipe.stall()
    for n in range(30):
        await hub.publish("kept:a", f"{n:03}" + "x" * (3 * MIB if n % 3 else 10))
        assert connection.outbox.size + (connection._freight.waiting if connection._freight else 0) <= MIB
    await fast.settle()
    gc.collect()
    assert len(hub.engine._parcels) <= 2
    expected = list(range(30))
    assert [int(data[:3]) for data in fast.data_of("kept:a")] == expected
    for _ in range(5000):
        slow.pipe.drain(1)
        await world.settle()
        if len(slow.pushes) >= 30:
            break
    await slow.settle()
    assert [int(data[:3]) for data in slow.data_of("kept:a")] == expected
    assert slow.pushes_of("kept:a", "gap") == []
    assert slow.closed is None
    await hub.publish("kept:a", "100")
    slow.pipe.drain()
    await slow.settle()
    assert slow.data_of("kept:a")[-1] == "100"


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
@pytest.mark.parametrize("size", [200_000, 900_000, 3 * MIB])
async def test_a_slow_reader_without_history_loses_some_and_nothing_else(
    world: World, size: int, rt: bool
) -> None:
    hub = hub_with(world)
    slow = await world.join(hub, "ann", "live:a", rt=rt)
    slow.pipe.stall()
    [connection] = hub.engine.connections
    for n in range(30):
        await hub.publish("live:a", f"{n:03}" + "x" * size)
        freight = connection._freight
        assert connection.outbox.size + (freight.waiting if freight else 0) <= MIB
        assert len(hub.engine._parcels) <= 2
    await world.settle()
    for _ in range(3000):
        slow.pipe.drain(1)
        await world.settle()
    slow.pipe.drain()
    await slow.settle()
    got = [int(data[:3]) for data in slow.data_of("live:a")]
    assert got == sorted(set(got))
    assert 1 <= len(got) < 30
    assert slow.closed is None
    await hub.publish("live:a", "100" + "x" * size)
    await slow.settle()
    assert slow.data_of("live:a")[-1][:3] == "100"


async def test_a_large_message_is_cut_once_for_all_members(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3, W2: neither the buffer nor its chunks are made for each."""
    hub = hub_with(world)
    clients = [await world.join(hub, f"u{n}", "kept:a") for n in range(20)]
    made = 0
    chunk = Cut.chunk

    def counting(self: Cut, n: int) -> bytes:
        nonlocal made
        made += 1
        return chunk(self, n)

    monkeypatch.setattr(Cut, "chunk", counting)
    await hub.publish("kept:a", "x" * (MIB - 2))
    await world.settle()
    assert all(len(client.data_of("kept:a")[0]) == MIB - 2 for client in clients)
    assert made == 22


async def test_two_rooms_take_turns(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a", "live:b", "live:c")
    ann.pipe.stall()
    for name in ("kept:a", "live:b", "live:c"):
        await hub.publish(name, "x" * 300_000)
        await hub.publish(name, "small")
    ann.pipe.drain()
    await ann.settle()
    for name in ("kept:a", "live:b", "live:c"):
        assert [len(data) for data in ann.data_of(name)] == [300_000, 5]


async def test_leaving_in_the_middle_gives_the_unit_up(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a", "live:b")
    ann.pipe.stall()
    await hub.publish("kept:a", "x" * 300_000)
    await hub.publish("kept:a", "small")
    await hub.publish("live:b", "y" * 300_000)
    await world.settle()
    ann.pipe.drain(2)
    await world.settle()
    ann.ask("unsubscribe", channel="kept:a")
    await world.settle()
    ann.pipe.drain()
    await ann.settle()
    assert ann.data_of("kept:a") == []
    assert [len(data) for data in ann.data_of("live:b")] == [300_000]
    await ann.call("subscribe", channel="kept:a")
    await hub.publish("kept:a", "z" * 300_000)
    await ann.settle()
    assert [data[0] for data in ann.data_of("kept:a")] == ["z"]
    assert not hub.engine._parcels


async def test_a_large_answer_to_subscribe_comes_before_what_the_room_says_next(world: World) -> None:
    """A kick in the middle of it too: who is told that it is in is told afterwards that it is out."""
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a")
    position = await ann.call("history", channel="kept:a", limit=0)
    await ann.call("unsubscribe", channel="kept:a")
    for n in range(3):
        await hub.publish("kept:a", f"{n}" + "x" * 70_000)
    ann.pipe.stall()
    id = ann.ask("subscribe", channel="kept:a", recover=True, epoch=position["epoch"])
    await world.settle()
    await hub.publish("kept:a", "next")
    await world.settle()
    await hub.room("kept:a").remove("ann", reason="enough")
    await world.settle()
    ann.pipe.drain()
    await ann.settle()
    told = [unit for unit in ann.units if unit.get("id") == id or "push" in unit]
    assert [p["offset"] for p in told[0]["subscribe"]["publications"]] == [1, 2, 3]
    assert told[-1]["push"]["unsubscribe"]["code"] == 2000


async def test_a_new_epoch_is_told_after_the_large_message_of_the_old_one(world: World) -> None:
    """H10: a position push that overtook it would make an offset of the old stream one of the new."""
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a")
    ann.pipe.stall()
    await hub.publish("kept:a", "x" * 300_000)
    await world.settle()
    await hub.room("kept:a").clear()
    await world.settle()
    await hub.publish("kept:a", "new")
    await world.settle()
    ann.pipe.drain()
    await ann.settle()
    kinds = [next(iter(set(push) - {"channel"})) for push in ann.pushes]
    assert kinds[0] == "pub"
    assert len(ann.pushes[0]["pub"]["data"]) == 300_000
    assert kinds[1] in ("position", "gap")
    assert kinds[2:] == ["pub"]


async def test_who_asks_for_large_answers_and_does_not_read_is_made_to_wait(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    ann.pipe.stall()
    ids = [ann.ask("rpc", method="give", data=6 * MIB) for _ in range(20)]
    await world.settle()
    [connection] = hub.engine.connections
    assert connection._freight is not None
    assert connection._freight.replies <= 16 * MIB
    assert len(hub.engine._parcels) == 2
    ann.pipe.drain()
    await ann.settle()
    assert [len(ann.reply(id)["rpc"]["data"]) for id in ids] == [6 * MIB] * 20
    assert ann.closed is None


async def test_closing_lets_go_of_what_is_large(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a")
    ann.pipe.stall()
    for _ in range(4):
        ann.ask("rpc", method="give", data=6 * MIB)
    await hub.publish("kept:a", "x" * MIB)
    pieces = cut(ann, {"id": 99, "rpc": {"method": "echo", "data": "x" * 300_000}}, 5)
    ann.tell(next(pieces), next(pieces))
    await world.settle()
    assert hub.engine.assembling == 96 * 1024
    await ann.drop()
    await world.settle()
    gc.collect()
    assert hub.engine.assembling == 0
    assert not hub.engine._parcels


async def to_the_brim(world: World, hub: Hub[Any], client: RawClient, user: str) -> None:
    """It asks and does not read, until there is no room for one entry more, and it has not exceeded anything."""
    client.pipe.choke()
    [session] = [s for s in hub.engine.sessions.values() if s.identity.user == user]
    client.last_id = 99
    around = len('{"id":100,"rpc":{"data":""}}')
    most = hub.limits.outbox + hub.limits.reserve
    while (room := most - session.statistics().queued - client.pipe.buffered) >= 64:
        client.ask("rpc", method="give", data=min(room - 64, 50_000) - around)
        await world.settle()


@pytest.mark.parametrize("what", ["kept:a", "live:a", "signal"])
async def test_one_whose_outbox_is_full_to_the_brim_harms_nobody_else(world: World, what: str) -> None:
    """H5: there is always room for the fence of a large unit, and so nobody is closed in the middle of a fan-out."""
    hub = hub_with(world)
    room = "kept:a" if what == "signal" else what
    ann, bob, eve = [await world.join(hub, user, room) for user in ("ann", "bob", "eve")]
    await to_the_brim(world, hub, bob, "bob")
    if what == "signal":
        hub.room(room).signal({"x": "y" * 100_000})
    else:
        await hub.publish(room, "y" * 100_000)
    await world.settle()
    assert (ann.closed, bob.closed, eve.closed) == (None, None, None)
    bob.pipe.drain()
    await bob.settle()
    for client in (ann, bob, eve):
        assert [next(iter(set(push) - {"channel"})) for push in client.pushes] == [
            "signal" if what == "signal" else "pub"
        ]


def ids_of(client: RawClient) -> list[int]:
    """The numbers of the large units that it was sent the beginning of."""
    units = [json.loads(unit) for frame in client.pipe.frames for unit in frame.split(b"\n")]
    chunks = [unit["push"]["chunk"] for unit in units if "chunk" in unit.get("push", ())]
    return [chunk["of"] for chunk in chunks if not chunk.get("n")]


@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("between", [False, True])
async def test_who_comes_back_for_a_large_message_gets_it_again(
    world: World, given_up: bool, between: bool
) -> None:
    """Though somebody slow is still being sent the same: on one connection no number is used twice."""
    hub = hub_with(world)
    await hub.start()
    await hub.publish("kept:a", "small")
    await hub.publish("kept:a", "x" * 300_000)
    slow, ann = await world.join(hub, "slow"), await world.join(hub, "ann")
    for client in (slow, ann):
        client.pipe.stall()
        client.ask("subscribe", channel="kept:a", rewind=2)
        await world.settle()
    ann.pipe.drain(2 if given_up else None)  # the reply and a chunk, or all
    await ann.settle()
    assert ann.offsets_of("kept:a") == ([] if given_up else [2])
    ann.forget()
    if between:
        ann.ask("rpc", method="give", data=300_000)
    ann.ask("unsubscribe", channel="kept:a")
    ann.ask("subscribe", channel="kept:a", rewind=2)
    await world.settle()
    ann.pipe.drain()
    await world.settle()
    await ann.settle()
    assert ann.offsets_of("kept:a") == [2]
    assert len(set(ids_of(ann))) == len(ids_of(ann)) == 2 + between


async def test_what_many_who_lag_are_sent_is_one_buffer(world: World) -> None:
    """D3: whoever reads it from history, and when."""
    hub = hub_with(world)
    await hub.start()
    await hub.publish("kept:a", "small")
    await hub.publish("kept:a", "x" * MIB)
    for n in range(5):
        slow = await world.join(hub, f"slow{n}")
        slow.pipe.stall()
        slow.ask("subscribe", channel="kept:a", rewind=2)
        await world.settle()
    assert len({id(parcel.unit) for parcel in hub.engine._parcels.values()}) == 1


async def test_who_leaves_and_comes_back_while_a_large_answer_leaves_is_no_slow_consumer(
    world: World,
) -> None:
    """The second answer is held behind the first, and counts as what it is: an answer (D1)."""
    hub = hub_with(world)
    await hub.start()
    await hub.publish("kept:a", "x" * 2 * MIB)
    ann = await world.join(hub, "ann")
    ann.pipe.stall()
    ids = []
    for _ in range(2):
        ids.append(ann.ask("subscribe", channel="kept:a", rewind=1))
        ann.ask("unsubscribe", channel="kept:a")
    await world.settle()
    assert ann.closed is None
    ann.pipe.drain()
    await ann.settle()
    assert [len(ann.reply(id)["subscribe"]["publications"]) for id in ids] == [1, 1]


def test_large_answers_that_are_held_are_bounded_too() -> None:
    freight = Freight(lambda unit: Parcel(unit, 1), small=10, whole=False, limit=100, reserve=100)
    freight.begin("room", b"x" * 50, push=False, fenced=False)
    assert freight.hold_control("room", b"y" * 50, outside=0, most=60)
    assert not freight.hold_control("room", b"z" * 50, outside=0, most=60)
    assert freight.replies == 100
    assert freight.next()[1] == [FENCE]
    assert freight.replies == 50


async def test_an_answer_beyond_the_limit_is_an_error(world: World) -> None:
    hub = hub_with(world, large=2 * MIB)
    ann = await world.join(hub, "ann")
    error = await ann.refused("rpc", method="give", data=2 * MIB)
    assert (error["code"], error["message"]) == (106, "the answer is too large")


async def test_a_message_held_for_a_joiner_is_bounded_in_bytes(world: World) -> None:
    hub = world.hub(limits=Limits(heartbeat=None))
    go = asyncio.Event()
    rooms = hub.rooms("slow", publishes=object, grant=ALL)

    @rooms.on_join
    async def wait(ctx: Context[Any, Any]) -> None:
        await go.wait()

    await hub.start()
    ann = await world.join(hub, "ann")
    id = ann.ask("subscribe", channel="slow")
    await world.settle()
    for n in range(20):
        await hub.publish("slow", f"{n:03}" + "x" * 300_000)
    await world.settle()
    go.set()
    await ann.settle()
    got = [int(each["data"][:3]) for each in ann.reply(id)["subscribe"]["publications"]]
    assert got == [17, 18, 19]


# -- in ------------------------------------------------------------------------------------------------


async def test_a_large_call_comes_in_chunks_between_other_commands(world: World) -> None:
    """F1: chunks cost bytes; the whole costs one command."""
    hub = hub_with(world, commands=Rate(rate=1, burst=3))
    ann = await world.join(hub, "ann")
    data = "ä" * 4_900_000
    pieces = list(cut(ann, {"id": 7, "rpc": {"method": "echo", "data": data}}, 3))
    assert len(pieces) == 200
    for n, piece in enumerate(pieces):
        ann.say(piece)
        if n == 100:
            ann.tell({"id": 6, "ping": {}})
    await ann.settle()
    assert ann.answered(6)
    assert ann.reply(7)["rpc"]["data"] == data
    assert (await ann.refused("ping"))["code"] == 111
    assert hub.engine.assembling == 0


async def test_others_have_their_turn_between_the_steps_of_a_large_call(world: World) -> None:
    """Each step is JSON of all of it, for which the loop stands still; the steps together are felt by everybody."""
    hub = hub_with(world)
    order: list[str] = []
    loop = asyncio.get_running_loop()

    @dataclass
    class Large:
        text: str

        def __post_init__(self) -> None:
            order.append("it is decoded")
            loop.call_soon(say, "between decoding and the handler")

    @hub.rpc(Large, name="large")
    async def large(ctx: Context[Any, Any], message: Large) -> None:
        order.append("its handler runs")

    @hub.rpc(object, name="small")
    async def small(ctx: Context[Any, Any], params: Any) -> None:
        order.append(params)

    ann, bob = await world.join(hub, "ann"), await world.join(hub, "bob")

    def say(when: str) -> None:
        bob.tell({"rpc": {"method": "small", "data": when}})

    for piece in cut(ann, {"id": 7, "rpc": {"method": "large", "data": {"text": "x" * 100_000}}}, 3):
        ann.say(piece)
    say("between the last chunk and decoding")
    await ann.settle()
    assert ann.answered(7)
    assert order == [
        "between the last chunk and decoding",
        "it is decoded",
        "between decoding and the handler",
        "its handler runs",
    ]


async def test_a_large_publication(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann", "kept:a")
    for piece in cut(ann, {"id": 7, "publish": {"channel": "kept:a", "data": "x" * (4 * MIB - 2)}}, 1):
        ann.say(piece)
    for piece in cut(ann, {"id": 8, "publish": {"channel": "kept:a", "data": "x" * (4 * MIB - 1)}}, 2):
        ann.say(piece)
    await ann.settle()
    assert ann.reply(7)["publish"]["offset"] == 1
    assert ann.reply(8)["error"]["code"] == 106
    assert len(ann.data_of("kept:a")[0]) == 4 * MIB - 2


@pytest.mark.parametrize(
    ("units", "refused"),
    [
        ([{"of": 1, "n": 1, "data": "YWJj"}], (1, 107, "chunk 1 of large unit 1, which is not under way")),
        (
            [{"of": 1, "data": "YWJj"}, {"of": 1, "n": 2, "data": "YWJj"}, {"of": 1, "n": 3, "data": "YWJj"}],
            (1, 107, "chunk 2 of large unit 1, where 1 comes next"),
        ),
        (
            [{"of": 1, "data": "YWJj"}, {"of": 2, "data": "YWJj"}, {"of": 1, "n": 1, "data": "YWJj"}],
            (1, 107, "chunk 1 of large unit 1, which is not under way"),
        ),
        ([{"of": 1, "last": True}], (1, 107, "chunk 0 of large unit 1 is empty")),
    ],
)
async def test_chunks_out_of_order_are_refused_once_and_the_connection_stays(
    world: World, units: list[dict[str, Any]], refused: tuple[int, int, str]
) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    ann.tell(*({"chunk": unit} for unit in units))
    await ann.settle()
    assert refusals(ann) == [refused]
    await ann.call("ping")
    for piece in cut(ann, {"id": 90, "ping": {}}, 50, size=5):
        ann.say(piece)
    await ann.settle()
    assert ann.reply(90)["ping"] == {}
    assert ann.closed is None


async def test_an_id_used_again_is_refused(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    for id in (10, 11):
        for piece in cut(ann, {"id": id, "ping": {}}, 1):
            ann.say(piece)
    await ann.settle()
    assert ann.answered(10) and not ann.answered(11)
    assert refusals(ann) == [(1, 107, "the id 1 was used for the large unit before")]


async def test_17_mib_are_refused_before_they_are_there(world: World) -> None:
    hub = hub_with(world, inbound=Rate(rate=64 * MIB, burst=64 * MIB))
    ann = await world.join(hub, "ann")
    most = 0
    for piece in cut(ann, {"id": 7, "rpc": {"method": "echo", "data": "x" * (17 * MIB)}}, 3):
        ann.say(piece)
        most = max(most, hub.engine.assembling)
    await ann.settle()
    assert refusals(ann) == [(3, 106, f"a unit has at most {16 * MIB} bytes")]
    assert 15 * MIB < most <= 16 * MIB
    assert hub.engine.assembling == 0
    await ann.call("ping")


async def test_a_unit_that_is_never_finished_is_forgotten(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    pieces = cut(ann, {"id": 7, "rpc": {"method": "echo", "data": "x" * 300_000}}, 3)
    ann.say(next(pieces))
    await world.advance(29)
    ann.say(next(pieces))
    await world.advance(29)
    assert hub.engine.assembling == 96 * 1024
    await world.advance(2)
    await ann.settle()
    assert hub.engine.assembling == 0
    assert refusals(ann) == [(3, 106, "the large unit took too long")]
    ann.say(next(pieces))
    await ann.settle()
    assert len(refusals(ann)) == 1
    await ann.call("ping")
    await world.advance(60)  # no timer is left, as the fixture proves


async def test_endless_tiny_chunks_are_held_back_and_then_closed(world: World) -> None:
    """F1: a tiny chunk counts as a pong does."""
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    sent = 0
    while ann.closed is None and sent < 100_000:
        ann.tell(*({"chunk": {"of": 1, "n": sent + n, "data": "YQ=="}} for n in range(50)))
        sent += 50
    await ann.settle()
    assert ann.closed is not None and ann.closed[0] == 3013
    assert sent < 5000
    assert refusals(ann)[0] == (1, 111, "too many requests")
    assert hub.engine.assembling == 0


async def test_a_flood_of_refusals_is_closed(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    for of in range(1, 1000):
        ann.tell({"chunk": {"of": of, "n": 5, "last": True, "data": "YWJj"}})
    await ann.settle()
    assert ann.closed is not None and ann.closed[0] == 3013
    assert len(refusals(ann)) <= 200


async def test_what_was_put_together_is_given_back_when_its_refusal_closes(world: World) -> None:
    """F1: else a few hostile clients would use up for good what all connections have together."""
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    piece = next(cut(ann, {"id": 7, "rpc": {"method": "echo", "data": "x" * 300_000}}, 5))
    ann.say(piece)
    for _ in range(2 * int(hub.engine.limits.commands.burst) - 1):  # connect was one
        ann.tell({"id": 8, "ping": {}})
    await ann.settle()
    assert (ann.closed, hub.engine.assembling) == (None, 48 * 1024)
    ann.say(piece)  # which does not come next; and refusing that is one command too many
    await ann.settle()
    assert ann.closed == (3013, "too many requests")
    assert hub.engine.assembling == 0


async def test_all_connections_together_are_bounded(world: World) -> None:
    hub = hub_with(world, assembling=100_000)
    ann, bob = await world.join(hub, "ann"), await world.join(hub, "bob")
    first = cut(ann, {"id": 7, "rpc": {"method": "echo", "data": "a" * 60_000}}, 1)
    ann.say(next(first))
    second = list(cut(bob, {"id": 7, "rpc": {"method": "echo", "data": "b" * 90_000}}, 1))
    for piece in second:
        bob.say(piece)
    await bob.settle()
    assert refusals(bob) == [(1, 111, "too many large units at once")]
    assert bob.pushes[-1]["chunk"]["error"]["retry_after"] == 1.0
    for piece in first:
        ann.say(piece)
    await ann.settle()
    assert ann.answered(7)
    for piece in cut(bob, {"id": 8, "rpc": {"method": "echo", "data": "b" * 90_000}}, 2):
        bob.say(piece)
    await bob.settle()
    assert len(bob.reply(8)["rpc"]["data"]) == 90_000


async def test_large_commands_that_wait_stop_the_reading(world: World) -> None:
    """C2: not only their number is bounded."""
    hub = hub_with(world, inbound=Rate(rate=64 * MIB, burst=64 * MIB), large=2 * MIB)
    go = asyncio.Event()

    @hub.rpc(object, name="wait")
    async def wait(ctx: Context[Any, Any], params: Any) -> int:
        await go.wait()
        return len(params)

    ann = await world.join(hub, "ann")
    for n in range(1, 4):
        for piece in cut(ann, {"id": 10 + n, "rpc": {"method": "wait", "data": "x" * MIB}}, n):
            ann.say(piece)
        await world.settle()
        assert ann.pipe.paused is (n > 1)
    go.set()
    await ann.settle()
    assert not ann.pipe.paused
    assert [ann.reply(10 + n)["rpc"]["data"] for n in range(1, 4)] == [MIB] * 3


async def test_foreign_clients_have_no_chunks(world: World) -> None:
    hub = hub_with(world)
    eve = await world.join(hub, "eve", rt=False)
    eve.tell(
        {"id": 5, "chunk": {"of": 1, "last": True, "data": "e30="}},
        {"chunk": {"of": 2, "n": 1, "data": "YQ=="}},
    )
    await eve.settle()
    assert eve.reply(5)["error"]["code"] == 104
    assert hub.engine.assembling == 0
    assert (eve.closed, refusals(eve)) == (None, [])


@pytest.mark.parametrize(
    "inner",
    [{"id": 5, "chunk": {"of": 9, "last": True, "data": "e30="}}, {"id": 5, "nothing": {}}],
)
async def test_what_a_large_unit_holds_is_judged_like_any(world: World, inner: dict[str, Any]) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    for piece in cut(ann, inner, 1):
        ann.say(piece)
    await ann.settle()
    assert ann.reply(5)["error"]["code"] == 104


async def test_chunks_before_connect_close(world: World) -> None:
    hub = hub_with(world)
    await hub.start()
    client = world.client(hub, rt=True)
    client.tell({"chunk": {"of": 1, "data": "YWJj"}})
    await client.settle()
    assert client.closed == (3501, "bad request: the first command must be connect")


# -- limits --------------------------------------------------------------------------------------------


async def test_the_welcome_names_the_largest_message_that_some_room_takes(world: World) -> None:
    hub = hub_with(world)
    ann = await world.join(hub, "ann")
    limits = ann.reply(1)["connect"]["rt"]["limits"]
    assert (limits["unit"], limits["message"], limits["large"]) == (UNIT, 4 * MIB, 16 * MIB)


@pytest.mark.parametrize("bad", [0, -1, 4 * MIB + 1])
async def test_a_room_has_4_mib_at_the_most(world: World, bad: int) -> None:
    hub = world.hub()
    with pytest.raises(DeclarationError, match="not between 1 byte and 4 MiB"):
        hub.rooms("x", publishes=object, max_publication=bad)


async def test_a_room_beyond_the_limits_of_the_hub_does_not_start(world: World) -> None:
    hub = world.hub(limits=Limits(large=2 * MIB))
    hub.rooms("x", publishes=object, grant=ALL, max_publication=3 * MIB)
    with pytest.raises(
        DeclarationError, match=r"max_publication=3145728, .* more than Limits\(large=2097152\)"
    ):
        await hub.start()
