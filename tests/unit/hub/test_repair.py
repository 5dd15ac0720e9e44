"""What a broker loses on the way is noticed, read again, and delivered in order (H4, B4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Limits
from rtkit.brokers import MemoryBroker
from rtkit.errors import BrokerUnavailable
from rtkit.hub.engine import REPAIRS
from tests.support.rawclient import RawClient, publications
from tests.unit.hub.brokers import FaultyBroker
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


class Lossy:
    """A hub on a broker that loses deliveries when told to, and one beside it that loses none."""

    def __init__(self, world: World, count: int = 100) -> None:
        self.broker = FaultyBroker(world.backend)
        self.hub = world.hub(broker=self.broker)
        self.other = world.hub()
        for hub in (self.hub, self.other):
            hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(count, ttl=6000))
            hub.rooms("live:{x}", publishes=object, grant=ALL)
        self.sent = 0

    async def publish(self, count: int = 1, *, heard: bool = True, room: str = "r:a") -> None:
        self.broker.deaf = not heard
        for _ in range(count):
            self.sent += 1
            await self.other.publish(room, self.sent)
        self.broker.deaf = False

    async def start(self) -> None:
        await self.hub.start()
        await self.other.start()

    @property
    def totals(self) -> Any:
        return self.hub.statistics().totals


async def test_a_hole_is_noticed_by_the_next_offset(world: World) -> None:
    """H4: the missing part is read once for all members, and delivered in order, before what showed it."""
    lossy = Lossy(world)
    await lossy.start()
    clients = [await world.join(lossy.hub, f"u{n}", "r:a", rt=n % 2 == 0) for n in range(5)]
    await lossy.publish(2)
    await lossy.publish(3, heard=False)
    await world.settle()
    lossy.broker.calls.clear()
    await lossy.publish(2)
    await world.settle()
    for client in clients:
        assert client.data_of("r:a") == client.offsets_of("r:a") == [1, 2, 3, 4, 5, 6, 7]
        assert client.pushes_of("r:a", "gap") == client.pushes_of("r:a", "unsubscribe") == []
    assert lossy.broker.calls.count("read") <= 2
    assert lossy.totals["holes"] >= 1


async def test_a_room_is_repaired_by_one_task(world: World) -> None:
    """H4, C5: however many hints there are that something is missing, while the broker cannot be read."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    idle = lossy.hub.statistics().tasks
    lossy.broker.failing.add("read")
    await lossy.publish(heard=False)
    await lossy.publish(40)
    await world.settle()
    assert lossy.hub.statistics().tasks == idle + 1
    lossy.broker.failing.clear()
    await world.advance(20)
    assert ann.offsets_of("r:a") == list(range(1, 42))
    assert lossy.hub.statistics().tasks == idle


async def test_a_lost_last_message_is_found_by_comparing_tops(world: World) -> None:
    """H4: every 30 s, more or less, for rooms in which nothing else would show it."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    await lossy.publish()
    await lossy.publish(heard=False)
    await world.advance(20)
    assert ann.data_of("r:a") == [1]
    await world.advance(20)
    assert ann.data_of("r:a") == [1, 2]


async def test_a_lost_clear_is_found_by_comparing_tops(world: World) -> None:
    """H10: also when the new stream happens to stand at the same offset."""
    lossy = Lossy(world)
    await lossy.start()
    rt, foreign = (
        await world.join(lossy.hub, "ann", "r:a"),
        await world.join(lossy.hub, "eve", "r:a", rt=False),
    )
    await lossy.publish()
    lossy.broker.deaf = True
    await lossy.other.room("r:a").clear()
    await lossy.publish(heard=False)
    await world.advance(40)
    assert rt.offsets_of("r:a") == [1, 1]
    assert [g["reason"] for g in rt.pushes_of("r:a", "gap")] == ["epoch"]
    assert foreign.pushes_of("r:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]


async def test_comparing_tops_costs_one_read_a_room(world: World) -> None:
    """H4, C5: and none at all for rooms without history."""
    lossy = Lossy(world)
    await lossy.start()
    await world.join(lossy.hub, "ann", "r:a", "r:b", "live:a")
    await lossy.publish(5)
    await world.settle()
    lossy.broker.calls.clear()
    await world.advance(300)
    reads = lossy.broker.calls.count("read")
    assert 2 * 300 / 38 <= reads <= 2 * 300 / 22
    assert set(lossy.broker.calls) - {"renew"} == {"read", "positions"}
    assert lossy.broker.calls.count("positions") == reads / 2, "revocations, at the same time"


async def test_an_interruption_makes_the_hub_read(world: World) -> None:
    """H4, B4: when the broker says that it may have missed something, nobody waits for the 30 s."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a", "r:b")
    await lossy.publish(3, heard=False)
    await lossy.publish(2, heard=False, room="r:b")
    lossy.broker.interrupt("room:r:a", "room:r:b", "room:r:nobody", "\0control", "unheard of")
    await world.settle()
    await ann.settle()
    assert ann.data_of("r:a") == [1, 2, 3]
    assert ann.data_of("r:b") == [4, 5]
    lossy.broker.interrupt("room:r:a")
    await world.settle()
    assert ann.data_of("r:a") == [1, 2, 3]


async def test_what_was_lost_and_then_trimmed_is_a_gap(world: World) -> None:
    """H3: from, to, why; delivery goes on right behind it. Foreign members are told to come back."""
    lossy = Lossy(world, 3)
    await lossy.start()
    rt, foreign = (
        await world.join(lossy.hub, "ann", "r:a"),
        await world.join(lossy.hub, "eve", "r:a", rt=False),
    )
    await lossy.publish(2)
    await lossy.publish(6, heard=False)
    await lossy.publish(2)
    await world.settle()
    assert rt.offsets_of("r:a") == [1, 2, 8, 9, 10]
    [gap] = rt.pushes_of("r:a", "gap")
    assert (gap["from"], gap["to"], gap["reason"]) == (2, 7, "trimmed")
    assert next(p for p in rt.pushes if "gap" in p) is rt.pushes[2]
    assert foreign.offsets_of("r:a") == [1, 2]
    assert foreign.pushes_of("r:a", "unsubscribe") == [{"code": 2500, "reason": "continuity lost"}]
    assert lossy.totals["gaps{trimmed}"] >= 1


async def test_deliveries_that_come_twice_late_or_early(world: World) -> None:
    """H1: each once, in order, whatever pub/sub makes of it."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    caught: list[tuple[str, bytes, Any]] = []
    deliver = MemoryBroker.deliver
    lossy.broker.deliver = lambda *args: caught.append(args)  # type: ignore[method-assign]
    await lossy.publish(6)
    for index in (0, 2, 2, 1, 0, 5, 4, 3, 3, 5, 0):
        deliver(lossy.broker, *caught[index])
        if index == 1:
            await world.settle()
    await world.settle()
    assert ann.offsets_of("r:a") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rt", [True, False], ids=["rt", "foreign"])
async def test_a_joiner_who_knows_more_than_the_node(world: World, rt: bool) -> None:
    """H2, H4: it heard a message elsewhere that this node missed; the node is repaired, and nobody waits for ever."""
    lossy = Lossy(world)
    await lossy.start()
    bob = await world.join(lossy.hub, "bob", "r:a")
    ann = await world.join(lossy.other, "ann", "r:a")
    await lossy.publish(2)
    await lossy.publish(2, heard=False)
    await world.settle()
    assert ann.offsets_of("r:a") == [1, 2, 3, 4]
    epoch = (await lossy.hub.room("r:a").history(limit=0)).top.epoch
    again = await world.join(lossy.hub, "ann", rt=rt)
    result = await again.call("subscribe", channel="r:a", recover=True, epoch=epoch, offset=4)
    assert (result["recovered"], result["offset"], publications(result)) == (True, 4, [])
    await bob.settle()
    assert bob.offsets_of("r:a") == [1, 2, 3, 4]
    await lossy.publish()
    await again.settle()
    assert again.offsets_of("r:a") == [5]


async def test_a_joiner_from_a_new_epoch_that_the_node_has_not_heard_of(world: World) -> None:
    """H2, H10: likewise when the stream was begun anew."""
    lossy = Lossy(world)
    await lossy.start()
    bob = await world.join(lossy.hub, "bob", "r:a")
    await lossy.publish(2)
    lossy.broker.deaf = True
    position = await lossy.other.room("r:a").clear()
    await lossy.publish(1, heard=False)
    ann = await world.join(lossy.hub, "ann")
    result = await ann.call("subscribe", channel="r:a", recover=True, epoch=position.epoch, offset=1)
    assert (result["recovered"], result["epoch"], result["offset"]) == (True, position.epoch, 1)
    await bob.settle()
    assert [g["reason"] for g in bob.pushes_of("r:a", "gap")] == ["epoch"]
    await lossy.publish()
    await world.settle()
    assert ann.offsets_of("r:a") == [2]
    assert bob.offsets_of("r:a")[-1] == 2


async def test_a_room_without_history_promises_nothing(world: World) -> None:
    """H6: at most once: what is lost is lost, and nothing is read for it."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "live:a")
    lossy.broker.calls.clear()
    await lossy.publish(1, room="live:a")
    await lossy.publish(1, heard=False, room="live:a")
    await lossy.publish(1, room="live:a")
    lossy.broker.interrupt("room:live:a")
    await world.advance(60)
    assert ann.data_of("live:a") == [1, 3]
    assert "read" not in lossy.broker.calls


# -- the broker is away -------------------------------------------------------------------------------


async def test_a_repair_waits_for_the_broker(world: World) -> None:
    """B4: when it returns, H4 repairs; no restart is needed."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    await lossy.publish(1)
    await lossy.publish(2, heard=False)
    lossy.broker.down = True
    await lossy.publish(1)
    await world.advance(20)
    assert ann.data_of("r:a") == [1]
    assert ann.closed is None
    lossy.broker.down = False
    await world.advance(6)
    assert ann.data_of("r:a") == [1, 2, 3, 4]


async def test_positions_cannot_be_compared_while_the_broker_is_away(world: World, caplog: Any) -> None:
    """B4."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a", "r:b")
    await lossy.publish(1, heard=False)
    lossy.broker.down = True
    await world.advance(100)
    assert any("cannot be read" in r.getMessage() for r in caplog.get_records("call"))
    lossy.broker.down = False
    await world.advance(40)
    assert ann.data_of("r:a") == [1]


async def test_one_room_that_cannot_be_read_does_not_keep_the_others_from_being_checked(world: World) -> None:
    """H4: a broker may have trouble with one key alone, and for ever."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:broken", "r:a")
    read = lossy.broker.read

    async def one_is_broken(topic: str, **options: Any) -> Any:
        if topic == "room:r:broken":
            raise BrokerUnavailable("somebody has put something else at this key")
        return await read(topic, **options)

    lossy.broker.read = one_is_broken  # type: ignore[method-assign]
    await lossy.publish(1, heard=False)
    await world.advance(100)
    assert ann.data_of("r:a") == [1]


async def test_a_broker_that_is_back_is_asked_at_once_and_not_by_all_at_once(
    world: World, caplog: Any
) -> None:
    """F2: what 80 rooms missed is read some at a time; and however long they have waited, none goes on waiting."""
    lossy = Lossy(world)
    await lossy.start()
    rooms = [f"r:{n}" for n in range(80)]
    members = [await world.join(lossy.hub, f"user{n}", *rooms) for n in range(3)]
    lossy.broker.down = True
    lossy.hub.engine.interrupted([f"room:{room}" for room in rooms])
    await world.advance(60)
    assert sum("cannot be read" in record.getMessage() for record in caplog.get_records("call")) <= 8
    reading = most = 0
    read = lossy.broker.read

    async def counted(topic: str, **options: Any) -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        try:
            return await read(topic, **options)
        finally:
            reading -= 1

    lossy.broker.read = counted  # type: ignore[method-assign]
    lossy.broker.down = False
    await lossy.publish(1, heard=False, room="r:77")
    lossy.hub.engine.interrupted([f"room:{room}" for room in rooms])
    await world.settle()
    assert [member.data_of("r:77") for member in members] == [[1]] * 3
    assert 1 < most <= REPAIRS


async def test_nothing_is_read_before_a_new_subscription_is_through(world: World) -> None:
    """H2: a repair that was waiting for the broker would show a top, and what comes before it is heard is lost."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    await lossy.publish(1)
    lossy.broker.failing = {"read"}
    lossy.broker.interrupt("room:r:a")
    await world.settle()
    leaving, coming = lossy.broker.hold("unsubscribe"), lossy.broker.hold("subscribe")
    await ann.call("unsubscribe", channel="r:a")
    bob = await world.join(lossy.hub, "bob")
    id = bob.ask("subscribe", channel="r:a")
    leaving.set()
    await world.settle()
    lossy.broker.failing = set()
    lossy.broker.calls.clear()
    await world.advance(6)
    assert "read" not in lossy.broker.calls
    await lossy.publish(1)
    coming.set()
    await world.settle()
    assert bob.reply(id)["subscribe"]["offset"] == 2
    await lossy.publish(1)
    await world.settle()
    assert bob.data_of("r:a") == [3]


async def test_a_stream_that_is_cleared_though_nobody_could_be_told(world: World) -> None:
    """H10: here it is seen as soon as the broker can be read, elsewhere at the next comparison."""
    lossy = Lossy(world)
    await lossy.start()
    ann, eve = await world.join(lossy.hub, "ann", "r:a"), await world.join(lossy.other, "eve", "r:a")
    await lossy.publish(1)
    lossy.broker.failing = {"publish"}
    with pytest.raises(BrokerUnavailable):
        await lossy.hub.room("r:a").clear()
    await world.settle()
    assert [gap["reason"] for gap in ann.pushes_of("r:a", "gap")] == ["epoch"]
    assert not eve.pushes_of("r:a", "gap")
    await world.advance(40)
    assert eve.pushes_of("r:a", "gap") == ann.pushes_of("r:a", "gap")


async def test_a_check_that_fails_unexpectedly_is_not_the_last(world: World, errors: Any) -> None:
    """L3: logged; the other rooms are checked, and the next round comes."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a", "r:b")
    await lossy.publish(1, heard=False, room="r:b")
    lossy.broker.errors["read"] = [RuntimeError("first"), RuntimeError("second")]
    await world.advance(80)
    assert ann.data_of("r:b") == [1]
    assert [str(r.exc_info[1]) for r in errors()] == ["first", "second"]


async def test_a_repair_that_fails_unexpectedly_is_made_up_for(world: World, errors: Any) -> None:
    """H4: at the latest by the next comparison of tops."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    await lossy.publish(1, heard=False)
    lossy.broker.errors["read"] = [RuntimeError("once")]
    await lossy.publish(1)
    await world.advance(41)
    assert ann.data_of("r:a") == [1, 2]
    assert errors()


@pytest.mark.parametrize("call", ["append", "publish"])
async def test_publishing_while_the_broker_is_away(world: World, call: str) -> None:
    """B4: never reported as done: 100, temporary, when to try again."""
    lossy = Lossy(world)
    await lossy.start()
    room = "r:a" if call == "append" else "live:a"
    ann: RawClient = await world.join(lossy.hub, "ann", room)
    lossy.broker.failing.add(call)
    error = await ann.refused("publish", channel=room, data=1, key="k")
    assert (error["code"], error["temporary"], error["retry_after"]) == (100, True, 1.0)
    lossy.broker.failing.clear()
    await ann.call("publish", channel=room, data=1, key="k")
    assert ann.data_of(room) == [1]


async def test_the_hub_survives_a_broker_that_shows_less_than_it_announced(world: World) -> None:
    """H4: a replica that lags breaks the contract; it must not make the hub spin, and the next check mends it."""
    lossy = Lossy(world)
    await lossy.start()
    ann = await world.join(lossy.hub, "ann", "r:a")
    read = MemoryBroker.read
    stale: list[Any] = [await read(lossy.broker, "room:r:a", limit=0)]

    async def lagging(topic: str, **options: Any) -> Any:
        lossy.broker.calls.append("read")
        return stale[0] if stale else await read(lossy.broker, topic, **options)

    lossy.broker.read = lagging  # type: ignore[method-assign]
    await lossy.publish(1, heard=False)
    await lossy.publish(1)
    lossy.broker.calls.clear()
    await world.advance(10)
    assert lossy.broker.calls.count("read") < 150
    assert ann.data_of("r:a") == []
    stale.clear()
    await world.advance(38)
    assert ann.data_of("r:a") == [1, 2]


async def test_a_hub_without_position_checks(world: World) -> None:
    """Limits: position_check=None is off."""
    hub: Hub[Any] = world.hub(limits=Limits(position_check=None))
    hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(9, ttl=60))
    await world.join(hub, "ann", "r:a")
    assert hub.statistics().tasks == 1, "the lease"
