"""What was missed, honestly: after cuts, after leaving, when history is gone, when the stream is another (H3, H10)."""

from __future__ import annotations

import pytest

from rtkit import Limits
from rtkit.primitives import Heartbeat
from tests.foreign.conftest import World


async def test_what_was_missed_in_a_cut_is_recovered(world: World) -> None:
    """H3: complete, in order, once; and then live."""
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 1, 2)
    await client.got("kept:a", 1, 2)
    await world.cut(client)
    await world.publish("kept:a", 3, 4, 5)
    world.cable.plug()
    event = await client.until("subscribed", channel="kept:a")
    assert (event["was_recovering"], event["recovered"]) == (True, True)
    await world.publish("kept:a", 6)
    await client.got("kept:a", 1, 2, 3, 4, 5, 6)
    assert client.offsets("kept:a") == [1, 2, 3, 4, 5, 6]


async def test_nothing_missed_is_recovered_too(world: World) -> None:
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.cut(client)
    world.cable.plug()
    event = await client.until("subscribed", channel="kept:a")
    assert (event["was_recovering"], event["recovered"]) == (True, True)
    await world.publish("kept:a", 1)
    await client.got("kept:a", 1)


async def test_a_recovery_longer_than_a_reply(world: World) -> None:
    """Protocol 6.2: what the reply does not hold follows as pushes."""
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 0)
    await client.got("kept:a", 0)
    await world.cut(client)
    missed = [f"{n}{'x' * 20_000}" for n in range(60)]
    await world.publish("kept:a", *missed)
    world.cable.plug()
    assert (await client.until("subscribed", channel="kept:a"))["recovered"] is True
    await client.got("kept:a", 0, *missed)


async def test_what_was_missed_while_away_from_the_room(world: World) -> None:
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 1)
    await client.got("kept:a", 1)
    await client.do("unsubscribe", channel="kept:a")
    await world.publish("kept:a", 2, 3)
    await client.do("again", channel="kept:a")
    assert (await client.until("subscribed", channel="kept:a"))["recovered"] is True
    await client.got("kept:a", 1, 2, 3)


async def test_leaving_at_the_very_moment_of_recovery_loses_nothing(world: World) -> None:
    """A client that leaves before it has handled what was recovered gets it when it comes back."""
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 1)
    await client.got("kept:a", 1)
    await client.do("unsubscribe", channel="kept:a")
    await world.publish("kept:a", 2, 3, 4)
    await client.do("unsubscribe_when_subscribed", channel="kept:a")
    await client.do("again", channel="kept:a")
    await client.until("unsubscribed", channel="kept:a")
    await client.until("unsubscribed", channel="kept:a")
    assert client.data("kept:a") == [1]
    await client.do("again", channel="kept:a")
    await client.got("kept:a", 1, 2, 3, 4)


async def test_history_that_is_gone_is_not_recovered(world: World) -> None:
    """H3: `recovered: false`, none of what is left, and on from the top."""
    client = await world.connected()
    await client.subscribed("small:a")
    await world.publish("small:a", 1)
    await client.got("small:a", 1)
    await world.cut(client)
    await world.publish("small:a", 2, 3, 4, 5)
    world.cable.plug()
    event = await client.until("subscribed", channel="small:a", was_recovering=True)
    assert (event["recovered"], event["position"]["offset"]) == (False, 5)
    await world.publish("small:a", 6)
    await client.got("small:a", 1, 6)


async def test_a_stream_that_began_anew_is_not_recovered(world: World) -> None:
    """H3: the offset would fit; the epoch says that it is another stream."""
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 1, 2)
    await client.got("kept:a", 1, 2)
    await world.cut(client)
    await world.hub.room("kept:a").clear()
    await world.publish("kept:a", "new 1", "new 2", "new 3")
    world.cable.plug()
    event = await client.until("subscribed", channel="kept:a", was_recovering=True)
    assert (event["recovered"], event["position"]["offset"]) == (False, 3)
    await world.publish("kept:a", "new 4")
    await client.got("kept:a", 1, 2, "new 4")


async def test_a_live_member_is_told_when_the_stream_begins_anew(world: World) -> None:
    """H10: unsubscribed with 2500, so that it subscribes again, and learns that it missed something."""
    client = await world.connected()
    await client.subscribed("kept:a")
    await world.publish("kept:a", 1)
    await client.got("kept:a", 1)
    await world.hub.room("kept:a").clear()
    event = await client.until("subscribing", channel="kept:a", code=2500)
    assert event["reason"] == "continuity lost"
    event = await client.until("subscribed", channel="kept:a", was_recovering=True)
    assert event["recovered"] is False
    await world.publish("kept:a", "new 1")
    await client.got("kept:a", 1, "new 1")
    assert client.offsets("kept:a") == [1, 1]


@pytest.mark.parametrize(
    "limits",
    [Limits(max_publication=16_384, outbox=82_000, heartbeat=Heartbeat(interval=5, timeout=60))],
    ids=["small outbox"],
)
async def test_a_slow_reader_is_told_what_it_lost(world: World) -> None:
    """H3, H10, D1: what it gets has no hole that nobody told it of."""
    client = await world.connected()
    await client.subscribed("small:a")
    world.cable.block()
    count = 0

    def times(what: str) -> int:
        totals = world.hub.statistics().totals or {}
        return sum(n for key, n in totals.items() if what in key)

    async def more(many: int) -> None:
        nonlocal count
        for _ in range(many):
            count += 1
            await world.hub.publish("small:a", [count, "x" * 16_000])

    while not times("lagging"):  # the kernel takes what it takes
        await more(10)
    await more(10)
    world.cable.unblock()
    event = await client.until("subscribing", channel="small:a", code=2500)
    before = [data[0] for data in client.data("small:a")]
    assert before == list(range(1, len(before) + 1))
    assert len(before) < count
    event = await client.until("subscribed", channel="small:a", was_recovering=True)
    assert event["recovered"] is False
    await world.hub.publish("small:a", ["end"])
    await client.until_true(lambda: ["end"] in client.data("small:a"), "end")
    after = [data[0] for data in client.data("small:a")][len(before) :]
    assert after == [*range(count - len(after) + 2, count + 1), "end"]


# -- rooms that the server chose ------------------------------------------------------------------------


async def test_a_room_that_the_server_chose(world: World) -> None:
    """Protocol 3.6: subscribed by connecting, published to without subscribing."""
    client = await world.connected("42;auto=1")
    event = await client.until("subscribed", channel="#42", server=True)
    assert (event["recovered"], event["recoverable"], event["position"]["offset"]) == (False, True, 0)
    await client.do("publish", channel="#42", data={"input": "test"})
    await client.until("publication", channel="#42", server=True)
    await client.got("#42", {"input": "test"})
    assert client.offsets("#42") == [1]


async def test_what_is_published_while_the_server_joins_it_is_not_lost(world: World) -> None:
    """H2: of a fresh join. What could not be recovered is over with all that came before its end, and says so."""
    client = await world.connected("eve;busy=1")
    await client.got("busy:eve", [0, 0], [0, 1], [0, 2])
    await world.cut(client)
    await world.publish("busy:eve", *range(10))
    world.cable.plug()
    await client.until("subscribed", channel="busy:eve", was_recovering=False)
    event = await client.until("subscribed", channel="busy:eve", was_recovering=True)
    assert event["recovered"] is False
    await world.publish("busy:eve", "end")
    await client.got("busy:eve", [0, 0], [0, 1], [0, 2], "end")
    assert client.offsets("busy:eve") == [1, 2, 3, event["position"]["offset"] + 1]


async def test_a_room_that_the_server_chose_is_recovered(world: World) -> None:
    client = await world.connected("42;auto=1")
    await world.publish("#42", 1)
    await client.got("#42", 1)
    await client.until("subscribed")
    await world.cut(client)
    await world.publish("#42", 2, 3)
    world.cable.plug()
    event = await client.until("subscribed", channel="#42")
    assert (event["was_recovering"], event["recovered"]) == (True, True)
    await world.publish("#42", 4)
    await client.got("#42", 1, 2, 3, 4)
    assert client.offsets("#42") == [1, 2, 3, 4]


async def test_a_room_that_the_server_chose_is_not_recovered_when_history_is_gone(world: World) -> None:
    client = await world.connected("42;auto=1")
    await client.until("subscribed")
    await world.cut(client)
    await world.publish("#42", *range(1, 9))
    world.cable.plug()
    event = await client.until("subscribed", channel="#42")
    assert (event["was_recovering"], event["recovered"], event["position"]["offset"]) == (True, False, 8)
    await world.publish("#42", 9)
    await client.got("#42", 9)


async def test_a_live_member_of_such_a_room_is_told_too(world: World) -> None:
    """H10: such a client cannot be asked to subscribe again, so that it is closed with 3010."""
    client = await world.connected("42;auto=1")
    await world.publish("#42", 1)
    await client.got("#42", 1)
    await client.until("subscribed")
    await world.hub.room("#42").clear()
    assert (await client.until("connecting", code=3010))["reason"] == "continuity lost"
    event = await client.until("subscribed", channel="#42")
    assert (event["was_recovering"], event["recovered"]) == (True, False)
    await world.publish("#42", "new")
    await client.got("#42", 1, "new")


async def test_being_taken_out_of_such_a_room(world: World) -> None:
    client = await world.connected("42;auto=1")
    await client.until("subscribed")
    await world.hub.room("#42").remove("42", reason="moved")
    await client.until("unsubscribed", channel="#42")
    await world.publish("#42", 1)
    assert await client.do("rpc", method="double", data=1) == 2
    assert client.data("#42") == []


# -- an application that keeps its own state -------------------------------------------------------------


async def test_from_a_state_of_the_applications_own(world: World) -> None:
    """`getState`: what has come since the position that the application read its state at."""
    await world.publish("kept:a", 1, 2, 3)
    epoch = (await world.hub.room("kept:a").history(limit=0)).top.epoch
    client = await world.connected()
    event = await client.subscribed("kept:a", states=[{"offset": 1, "epoch": epoch}])
    assert event["recovered"] is True
    await client.got("kept:a", 2, 3)


async def test_from_the_beginning(world: World) -> None:
    """Offset 0 without an epoch: all there is, if it is still all."""
    await world.publish("kept:a", 1, 2, 3)
    client = await world.connected()
    event = await client.subscribed("kept:a", states=[{"offset": 0, "epoch": ""}])
    assert event["recovered"] is True
    await client.got("kept:a", 1, 2, 3)


async def test_a_state_that_is_too_old_is_read_again(world: World) -> None:
    """Protocol 5.7: refused with 112 rather than not recovered, such a client reads its state anew."""
    client = await world.connected()
    epoch = (await world.hub.room("small:a").history(limit=0)).top.epoch
    states = [{"offset": 0, "epoch": epoch}, {"offset": 5, "epoch": epoch}]
    await client.subscribed("small:a", states=states)
    await world.cut(client)
    await world.publish("small:a", *range(1, 6))
    world.cable.plug()
    event = await client.until("subscribed", channel="small:a")
    assert (event["recovered"], event["position"]["offset"]) == (True, 5)
    assert len(client.heard("get_state")) == 2
    await world.publish("small:a", 6)
    await client.got("small:a", 6)
