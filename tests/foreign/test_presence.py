"""Who is here, as unmodified clients ask for it (W1)."""

from __future__ import annotations

import pytest

from tests.foreign.clients import Failed
from tests.foreign.conftest import World

#: How a client asks to be told of joins and leaves, in JavaScript and in Python.
JOIN_LEAVE = ({"joinLeave": True}, {"join_leave": True})


async def test_presence_that_is_not_there_is_said_so(world: World) -> None:
    """Protocol 15: error 108, for ever, and nothing is shown that might be wrong."""
    client = await world.connected()
    for verb in ("presence", "presence_stats"):
        with pytest.raises(Failed) as caught:
            await client.do(verb, channel="kept:a")
        assert caught.value.code == 108


async def test_presence(world: World) -> None:
    ann, bob = await world.connected("ann"), await world.connected("bob")
    for client in (ann, bob):
        await client.subscribed("live:a")
    found = await ann.do("presence", channel="live:a")
    assert sorted(info["user"] for info in found.values()) == ["ann", "bob"]
    assert {id: info["client"] for id, info in found.items()} == {id: id for id in found}


async def test_presence_stats(world: World) -> None:
    first, second = await world.connected("ann"), await world.connected("ann")
    for client in (first, second):
        await client.subscribed("live:a")
    assert await first.do("presence_stats", channel="live:a") == {"clients": 2, "users": 1}


async def test_join_and_leave(world: World) -> None:
    ann, bob = await world.connected("ann"), await world.connected("bob")
    await ann.subscribed("live:a", **JOIN_LEAVE[world.kind.name == "centrifuge-python"])
    await bob.subscribed("live:a")
    # What comes before the answer to this would have come already: nothing has to be waited for in vain.
    await world.publish("live:a", 1)
    await ann.got("live:a", 1)
    assert [event["info"]["user"] for event in ann.heard("join", channel="live:a")][-1:] == ["bob"]
    await bob.do("unsubscribe", channel="live:a")
    assert (await ann.until("leave", channel="live:a"))["info"]["user"] == "bob"
    assert bob.heard("join") == bob.heard("leave") == []  # it did not ask


async def test_what_a_client_says_about_itself(world: World) -> None:
    """P1: through the reserved procedure, as the base has no command for it."""
    ann, bob = await world.connected("ann"), await world.connected("bob")
    for client in (ann, bob):
        await client.subscribed("live:a")
    await ann.do("rpc", method="rt.presence.update", data={"channel": "live:a", "meta": {"mood": "good"}})
    with pytest.raises(Failed) as caught:
        await ann.do("rpc", method="rt.presence.update", data={"channel": "live:a", "meta": 5})
    assert caught.value.code == 107
    found = await world.hub.room("live:a").presence()
    assert {each.user: each.meta for each in found} == {"ann": {"mood": "good"}, "bob": {}}
