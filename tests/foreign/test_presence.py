"""Who is here, as unmodified clients ask for it (W1)."""

from __future__ import annotations

import pytest

from tests.foreign.clients import Failed
from tests.foreign.conftest import World

presence = pytest.mark.xfail(strict=True, reason="issue 8: presence", raises=(Failed, AssertionError))


async def test_presence_that_is_not_there_is_said_so(world: World) -> None:
    """Protocol 15: error 108, for ever, and nothing is shown that might be wrong."""
    client = await world.connected()
    for verb in ("presence", "presence_stats"):
        with pytest.raises(Failed) as caught:
            await client.do(verb, channel="live:a")
        assert caught.value.code == 108


@presence
async def test_presence(world: World) -> None:
    ann, bob = await world.connected("ann"), await world.connected("bob")
    for client in (ann, bob):
        await client.subscribed("live:a")
    found = await ann.do("presence", channel="live:a")
    assert sorted(info["user"] for info in found.values()) == ["ann", "bob"]
    assert {id: info["client"] for id, info in found.items()} == {id: id for id in found}


@presence
async def test_presence_stats(world: World) -> None:
    first, second = await world.connected("ann"), await world.connected("ann")
    for client in (first, second):
        await client.subscribed("live:a")
    assert await first.do("presence_stats", channel="live:a") == {"clients": 2, "users": 1}


@presence
async def test_join_and_leave(world: World) -> None:
    ann, bob = await world.connected("ann"), await world.connected("bob")
    await ann.subscribed("live:a")
    await bob.subscribed("live:a")
    # What comes before the answer to this would have come already: nothing has to be waited for in vain.
    await world.publish("live:a", 1)
    await ann.got("live:a", 1)
    assert [event["info"]["user"] for event in ann.heard("join", channel="live:a")][-1:] == ["bob"]
    await bob.do("unsubscribe", channel="live:a")
    assert (await ann.until("leave", channel="live:a"))["info"]["user"] == "bob"
