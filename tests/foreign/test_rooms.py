"""Rooms, messages, calls, history and permissions, as unmodified clients see them (W1, A2, H8)."""

from __future__ import annotations

import asyncio
from typing import Any

import centrifuge
import pytest

from rtkit import Limits
from tests.foreign.clients import Client, Failed
from tests.foreign.conftest import World


async def failing(client: Client, verb: str, **args: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        await client.do(verb, **args)
    return caught.value


# -- joining and leaving -------------------------------------------------------------------------------


async def test_subscribing_and_unsubscribing_in_a_loop(world: World) -> None:
    client = await world.connected()
    await client.subscribed("kept:a")
    for _ in range(3):
        await client.do("unsubscribe", channel="kept:a")
        assert (await client.until("unsubscribed"))["code"] == 0
        await client.do("again", channel="kept:a")
        await client.until("subscribed")
    await client.do("publish", channel="kept:a", data=1)
    await client.got("kept:a", 1)


async def test_changing_ones_mind_in_one_breath(world: World) -> None:
    """Subscribes and unsubscribes that overtake their replies leave the client where it went last."""
    client = await world.connected()
    await client.subscribed("live:a")
    for _ in range(10):
        await asyncio.gather(client.do("unsubscribe", channel="live:a"), client.do("again", channel="live:a"))
    await client.until_true(lambda: client.log[-1]["event"] == "subscribed", "subscribed at the end")
    await client.do("publish", channel="live:a", data="still here")
    await client.got("live:a", "still here")


async def test_subscribing_before_connecting(world: World) -> None:
    """Centrifuge-js sends both in one frame; nothing of the second is done before the first has succeeded."""
    client = await world.client()
    for channel in ("kept:a", "live:a", "small:a"):
        await client.do("subscribe", channel=channel)
    await client.do("connect")
    for channel in ("kept:a", "live:a", "small:a"):
        await client.until("subscribed", channel=channel)


async def test_what_a_subscription_says_of_itself(world: World) -> None:
    """Protocol 5.2."""
    await world.publish("kept:a", 1, 2)
    client = await world.connected()
    kept = await client.subscribed("kept:a")
    epoch = kept["position"].pop("epoch")
    assert epoch
    assert (kept["recoverable"], kept["positioned"], kept["position"]) == (True, True, {"offset": 2})
    assert (kept["recovered"], kept["was_recovering"]) == (False, False)
    live = await client.subscribed("live:a")
    assert (live["recoverable"], live["positioned"], live.get("position")) == (False, False, None)


async def test_join_data_in_both_directions(world: World) -> None:
    client = await world.connected()
    event = await client.subscribed("greeted:a", data={"as": "guest"})
    assert event["data"] == {"welcome": "ann", "asked": {"as": "guest"}}


@pytest.mark.parametrize(
    ("channel", "code", "reason"),
    [("nowhere", 102, "unknown room"), ("guarded:a", 103, "not for this room")],
)
async def test_a_room_that_cannot_be_joined(world: World, channel: str, code: int, reason: str) -> None:
    """Protocol 5.1: the room is given up, the connection stays."""
    client = await world.connected()
    await client.do("subscribe", channel=channel)
    event = await client.until("unsubscribed", channel=channel)
    assert (event["code"], event["reason"]) == (code, reason)
    assert await client.do("rpc", method="double", data=1) == 2


async def test_being_taken_out_of_a_room(world: World) -> None:
    """Protocol 5.6: from 2000 to 2499 they stay out."""
    client = await world.connected()
    await client.subscribed("live:a")
    await world.hub.room("live:a").remove("ann", reason="too loud")
    event = await client.until("unsubscribed", channel="live:a")
    assert (event["code"], event["reason"]) == (2000, "too loud")
    assert await client.do("rpc", method="double", data=1) == 2


# -- messages ------------------------------------------------------------------------------------------


async def test_publications_with_offsets_and_senders(world: World) -> None:
    """Protocol 5.4."""
    ann, bob = await world.connected("ann"), await world.connected("bob")
    for client in (ann, bob):
        await client.subscribed("kept:a")
    await ann.do("publish", channel="kept:a", data={"text": "hällo ✓ \u2028"})
    await world.publish("kept:a", None, [1, 2.5, "x"], "")
    for client in (ann, bob):
        await client.until("publication", channel="kept:a", offset=4)
        assert client.offsets("kept:a") == [1, 2, 3, 4]
        first, second, *_ = client.heard("publication", channel="kept:a")
        assert first["data"] == {"text": "hällo ✓ \u2028"}
        assert first["info"] == {"user": "ann", "client": ann.heard("connected")[0]["id"]}
        assert (second.get("data"), second.get("info")) == (None, None)


async def test_a_room_without_history(world: World) -> None:
    client = await world.connected()
    await client.subscribed("live:a")
    await client.do("publish", channel="live:a", data=1)
    await client.got("live:a", 1)
    assert client.offsets("live:a") == [0]


async def test_deltas_that_were_asked_for(world: World) -> None:
    """Whole messages do as well, and the client is told that they are."""
    client = await world.connected()
    await client.subscribed("kept:a", delta="fossil")
    await world.publish("kept:a", {"x": "y" * 100}, {"x": "y" * 100})
    await client.got("kept:a", {"x": "y" * 100}, {"x": "y" * 100})


async def test_a_typed_room(world: World) -> None:
    """Protocol 5.5, 7.1: what is published names its event; the handler decides what becomes of it."""
    client = await world.connected()
    await client.subscribed("chat:a")
    await client.do("publish", channel="chat:a", data={"event": "Say", "data": {"text": "hi"}})
    await client.got("chat:a", {"event": "Say", "data": {"text": "hi"}})
    refused = await failing(client, "publish", channel="chat:a", data={"event": "Shout", "data": {}})
    assert (refused.code, refused.message) == (107, "unknown event 'Shout'; clients may send Say")


@pytest.mark.parametrize("limits", [Limits(max_publication=500_000)], ids=["500 kB"])
async def test_a_message_that_is_too_big(world: World) -> None:
    """Protocol 7.4: refused, and nothing else happens."""
    client = await world.connected()
    error = await failing(client, "publish", channel="live:a", data="x" * 600_000)
    assert error.code == 106
    assert len(client.heard("connected")) == 1


async def test_a_large_message_in_both_directions(world: World) -> None:
    client = await world.connected()
    await client.subscribed("kept:a")
    await client.do("publish", channel="kept:a", data="x" * 500_000)
    await client.got("kept:a", "x" * 500_000)


async def test_batches(world: World) -> None:
    """Several commands at once, answered one by one and in order."""
    client = await world.connected()
    await client.subscribed("kept:a")
    commands = [{"verb": "publish", "channel": "kept:a", "data": n} for n in range(20)]
    commands.append({"verb": "publish", "channel": "nowhere", "data": 1})
    results = await client.do("batch", commands=commands)
    assert results[:20] == [{"result": None}] * 20
    assert results[20]["error"]["code"] == 102
    await client.got("kept:a", *range(20))
    if world.kind.sends:
        assert max(frame.count(b"\n") for frame in world.hub.frames) == 20


async def test_too_many_commands(world: World) -> None:
    """F1: refused with 111; who goes on is closed with 3013, and comes back."""
    client = await world.connected()
    if world.kind.transport != "websocket":
        # Requests trickle in, so that a token comes back now and then: refused, and no more.
        each = [{"verb": "rpc", "method": "nothing", "data": 1}] * 60
        results = [await client.do("batch", commands=each) for _ in range(3)]
        refused = [result["error"]["code"] for batch in results for result in batch if "error" in result]
        assert set(refused) == {111}
        assert world.counts["nothing"] == 180 - len(refused)
        return
    commands = [{"verb": "rpc", "method": "nothing", "data": n} for n in range(300)]
    sending = asyncio.ensure_future(client.do("batch", commands=commands))
    assert (await client.until("connecting", code=3013))["reason"] == "too many requests"
    await client.until("connected")
    await asyncio.wait([sending])
    sending.exception()


async def test_more_than_one_request_holds(world: World) -> None:
    """T3: counted before it is told apart; it fails, and nothing else does."""
    if world.kind.transport == "websocket":
        pytest.skip("a frame is bounded in bytes")
    client = await world.connected(timeout=300)
    results = await client.do("batch", commands=[{"verb": "rpc", "method": "nothing", "data": 1}] * 100)
    assert all("error" in result for result in results)
    assert world.counts["nothing"] == 0
    await client.do("rpc", method="nothing", data=1)
    assert len(client.heard("connected")) == 1


# -- calls ---------------------------------------------------------------------------------------------


async def test_rpc(world: World) -> None:
    client = await world.connected()
    assert await client.do("rpc", method="double", data=21) == 42
    assert await client.do("rpc", method="nothing", data={}) is None


async def test_rpc_before_the_connection_is_there(world: World) -> None:
    client = await world.client()
    call = asyncio.ensure_future(client.do("rpc", method="double", data=1))
    connecting = asyncio.ensure_future(client.do("connect"))
    if not world.kind.sends:  # centrifuge-python waits only once it connects
        call.cancel()
        call = asyncio.ensure_future(client.do("rpc", method="double", data=1))
    await connecting
    assert await call == 2


async def test_rpc_that_fails(world: World) -> None:
    client = await world.connected()
    error = await failing(client, "rpc", method="refuse", data={})
    assert (error.code, error.message) == (477, "not today")
    error = await failing(client, "rpc", method="divide", data={})
    assert (error.code, error.message) == (104, "unknown procedure")


async def test_send_and_messages_outside_rooms(world: World) -> None:
    """Protocol 10: a send names its procedure as a message names its event."""
    client = await world.connected()
    if not world.kind.sends:
        assert not hasattr(centrifuge.Client, "send")  # one that has it shall be tested
        return
    await client.do("send", data={"event": "echo", "data": {"n": 1}})
    assert (await client.until("message"))["data"] == {"n": 1}


# -- history -------------------------------------------------------------------------------------------


async def test_history_in_both_directions(world: World) -> None:
    """H8: every page, without overlap, forwards and backwards."""
    client = await world.connected()
    await world.publish("kept:a", *range(1, 6))

    async def page(**options: Any) -> tuple[list[int], dict[str, Any]]:
        found = await client.do("history", channel="kept:a", options=options)
        assert [each["data"] for each in found["publications"]] == [
            each["offset"] for each in found["publications"]
        ]
        return [each["offset"] for each in found["publications"]], found

    offsets, top = await page()
    assert (offsets, top["offset"]) == ([], 5)
    epoch = top["epoch"]
    assert (await page(limit=-1))[0] == [1, 2, 3, 4, 5]
    assert (await page(limit=-1, reverse=True))[0] == [5, 4, 3, 2, 1]
    for reverse, expected in ((False, [1, 2, 3, 4, 5]), (True, [5, 4, 3, 2, 1])):
        seen: list[int] = []
        options: dict[str, Any] = {"limit": 2, "reverse": reverse}
        while offsets := (await page(**options))[0]:
            seen += offsets
            options["since"] = {"offset": seen[-1], "epoch": epoch}
        assert seen == expected
    assert (await page(limit=-1, since={"offset": 3, "epoch": ""}))[0] == [4, 5]


async def test_history_that_is_not_there(world: World) -> None:
    client = await world.connected()
    await world.publish("small:a", *range(5))
    error = await failing(client, "history", channel="live:a")
    assert error.code == 108
    for since in ({"offset": 1, "epoch": "other"}, {"offset": 9, "epoch": ""}):
        error = await failing(client, "history", channel="small:a", options={"limit": 9, "since": since})
        assert error.code == 112


# -- tokens of subscriptions ----------------------------------------------------------------------------


async def test_a_subscription_token_reaches_the_application(world: World) -> None:
    client = await world.connected()
    await client.subscribed("guarded:a", tokens=["guarded:a"])
    await client.do("publish", channel="guarded:a", data=1)
    await client.got("guarded:a", 1)
    assert len(client.heard("get_token", channel="guarded:a")) == 1


async def test_a_subscription_token_for_another_room(world: World) -> None:
    client = await world.connected()
    await client.do("subscribe", channel="guarded:a", options={"tokens": ["guarded:b"]})
    assert (await client.until("unsubscribed", channel="guarded:a"))["code"] == 103


async def test_having_no_subscription_token_to_show(world: World) -> None:
    client = await world.connected()
    await client.do("subscribe", channel="guarded:a", options={"tokens": [None]})
    assert (await client.until("unsubscribed", channel="guarded:a"))["code"] == 1
    assert world.counts["authorize"] == 0


async def test_a_subscription_token_that_has_expired_is_replaced(world: World) -> None:
    """`Reject(code=109)` has them ask for another one."""
    client = await world.connected()
    await client.subscribed("guarded:a", tokens=["old", "guarded:a"])
    assert [error["code"] for error in client.heard("error", channel="guarded:a")] == [109]


async def test_subscription_tokens_are_refreshed(world: World) -> None:
    """A grant with a ttl is told to who showed a token, and the next one comes by itself.

    One that is refused costs the room, and no more: for good, or when it has only expired, until there is another.
    """
    client = await world.connected()
    await client.subscribed("guarded:renewed", tokens=["guarded:renewed;1", "guarded:renewed"])
    await client.subscribed("guarded:lost", tokens=["guarded:lost;1", "guarded:another"])
    await client.subscribed("guarded:late", tokens=["guarded:late;1", "old", "guarded:late"])

    event = await client.until("unsubscribed", channel="guarded:lost")
    assert (event["code"], event["reason"]) == (2000, "not for this room")

    await client.until("subscribing", channel="guarded:late", code=2501)
    await client.until("subscribed", channel="guarded:late")

    def refreshed(frames: list[bytes]) -> bool:
        return b"guarded:renewed" in b"".join(frame for frame in frames if b'"sub_refresh"' in frame)

    await world.hub.until_heard(refreshed)
    await client.do("publish", channel="guarded:renewed", data=1)
    await client.got("guarded:renewed", 1)
    assert len(client.heard("subscribing", channel="guarded:renewed")) == 1
    assert len(client.heard("connected")) == 1
