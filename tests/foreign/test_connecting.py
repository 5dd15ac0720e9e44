"""Connecting, being refused, being sent away, and keeping alive (W1, A1, A3, F4)."""

from __future__ import annotations

import json

import pytest

from rtkit import Limits
from rtkit.primitives import Heartbeat
from tests.foreign.conftest import World


async def test_connecting_and_disconnecting_in_a_loop(world: World) -> None:
    client = await world.client()
    for _ in range(3):
        event = await client.connected()
        assert event["id"]
        await client.do("disconnect")
        assert (await client.until("disconnected"))["code"] == 0
    assert [event["code"] for event in client.heard("connecting")] == [0, 0, 0]
    assert client.heard("error") == []


async def test_connect_data_reaches_the_application(world: World) -> None:
    await world.connected("ann", data={"tab": 7})
    [session] = world.hub.engine.sessions.values()
    assert session.identity.claims["data"] == {"tab": 7}


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        ("stolen", 3500, "bad token"),
        ("", 3500, "bad token"),
        ("suspended", 442, "suspended until spring"),
    ],
)
async def test_being_refused(world: World, token: str, code: int, reason: str) -> None:
    """Protocol 3.8: they stay away, and say why: 3500 for a bad token, or with the application's own words."""
    client = await world.client(token)
    await client.do("connect")
    event = await client.until("disconnected")
    assert (event["code"], event["reason"]) == (code, reason)


async def test_having_no_token_to_show(world: World) -> None:
    client = await world.client("", tokens=[None])
    await client.do("connect")
    assert (await client.until("disconnected"))["code"] == 1


async def test_a_token_that_has_expired_is_replaced(world: World) -> None:
    """Protocol 3.8: error 109 has them ask for another one, and come back."""
    client = await world.client("", tokens=["old", "ann"])
    await client.connected()
    assert len(client.heard("get_token")) == 2
    assert [error["code"] for error in client.heard("error")] == [109]


async def test_try_again_later(world: World) -> None:
    """Protocol 3.8: a temporary error has them come back by themselves."""
    client = await world.client("", tokens=["busy"])
    await client.do("connect")
    for _ in range(2):
        assert (await client.until("error"))["code"] == 103
    assert client.heard("disconnected") == []


async def test_codes_after_which_they_stay_away(world: World) -> None:
    """Protocol 14: both ends of either band, and what lies between."""
    client = await world.client()
    for code in (3500, 3503, 3999, 4500, 4501, 4999):
        await client.connected()
        await world.hub.user("ann").close(code=code, reason=f"enough {code}")
        event = await client.until("disconnected")
        assert (event["code"], event["reason"]) == (code, f"enough {code}")
    assert len(client.heard("connected")) == 6


async def test_codes_after_which_they_come_back(world: World) -> None:
    """Protocol 14: all others."""
    client = await world.connected()
    for code in (1000, 3000, 3001, 3005, 3499, 4000, 4001, 4499):
        await world.hub.user("ann").close(code=code, reason=f"see you {code}")
        # Over a WebSocket 1000 is no more than its end; elsewhere every code travels in a push.
        told = code >= 3000 or world.kind.transport != "websocket"
        event = await client.until("connecting", reason=f"see you {code}" if told else "transport closed")
        assert event["code"] == (code if told else 1)
        await client.until("connected")
    assert client.heard("disconnected") == []


async def test_a_revoked_user_stays_away(world: World) -> None:
    """A4: revoked 4501, then a bad token."""
    client = await world.connected()
    await world.hub.user("ann").revoke(2**40)
    assert (await client.until("disconnected"))["code"] == 4501
    await client.do("connect")
    assert (await client.until("disconnected"))["code"] == 3500


async def test_a_hub_that_closes_and_is_back(world: World) -> None:
    """L1: 3001, and they return when there is somebody to return to."""
    client = await world.connected()
    await world.hub.aclose()
    assert (await client.until("connecting", code=3001))["reason"] == "draining"
    await client.until("connected")


async def test_after_a_cut_they_come_back(world: World) -> None:
    client = await world.connected()
    await world.cut(client)
    world.cable.plug()
    await client.until("connected")


async def test_pings_are_answered(world: World) -> None:
    """F4, protocol 4."""
    client = await world.connected()
    await world.hub.until_heard(lambda frames: b"{}" in frames)
    assert client.heard("connecting", code=2) == []
    assert len(client.heard("connected")) == 1


@pytest.mark.parametrize("limits", [Limits(heartbeat=Heartbeat(interval=1, timeout=5))], ids=["1 s"])
async def test_a_server_that_has_fallen_silent_is_noticed(world: World) -> None:
    """Protocol 4.3: after the ping interval it announced, and some patience."""
    client = await world.connected(maxServerPingDelay=100)
    world.cable.block()
    assert (await client.until("connecting", code=2))["reason"] == "no ping"
    world.cable.unblock()
    await client.until("connected")


@pytest.mark.parametrize("limits", [Limits(heartbeat=None)], ids=["no heartbeat"])
async def test_a_hub_without_heartbeat_is_not_waited_for(world: World) -> None:
    """Protocol 3.4: `ping` is not there, and they do not expect any."""
    client = await world.connected(maxServerPingDelay=1)
    assert await client.do("rpc", method="double", data=1) == 2
    assert len(client.heard("connected")) == 1


async def test_they_do_not_say_that_they_are_rtkits(world: World) -> None:
    """Protocol 3.3: what all of this rests on."""
    await world.connected()
    [connect] = [json.loads(frame)["connect"] for frame in world.hub.frames if b'"connect"' in frame]
    assert "rt" not in connect


async def test_a_token_is_refreshed_in_band(world: World) -> None:
    """A3, protocol 11.1: the connection lives on with the new one."""
    client = await world.client("", tokens=["ann;left=1.2", "ann;generation=2"])
    await client.connected()
    await world.hub.until_heard(lambda frames: any(b'"refresh"' in frame for frame in frames))
    await client.do("rpc", method="double", data=1)
    [session] = world.hub.engine.sessions.values()
    assert session.identity.claims["generation"] == "2"
    assert len(client.heard("connected")) == 1
    assert len(client.heard("get_token")) == 2
