"""What the base protocol's own clients, which know nothing of rtkit, rely on beyond the mere fields (W1).

Each of these was found with an unmodified client, or in its source; ``tests/foreign`` runs the clients themselves.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Identity, Limits, Reject
from tests.support.rawclient import RawClient, Unit, publications
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")


def kept(world: World, count: int = 5, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(count, ttl=600))
    hub.rooms("live:{x}", publishes=object, grant=ALL)
    return hub


async def fill(hub: Hub[Any], first: int, last: int, room: str = "r:a") -> None:
    for n in range(first, last + 1):
        await hub.publish(room, n)


async def epoch_of(hub: Hub[Any], room: str = "r:a") -> str:
    return (await hub.room(room).history(limit=0)).top.epoch


async def recover(client: RawClient, epoch: str, offset: int, **more: Any) -> Unit:
    return await client.call("subscribe", channel="r:a", recover=True, epoch=epoch, offset=offset, **more)


# -- positions ------------------------------------------------------------------------------------------


async def test_a_recovery_begins_at_the_position_it_recovers_from(world: World) -> None:
    """H3: such a client takes `offset` for its position at once, and moves it with each publication; were it the top,
    leaving the room before the last of them would lose the rest."""
    hub = kept(world)
    client = await world.join(hub, "eve", rt=False)
    await fill(hub, 1, 4)
    result = await recover(client, await epoch_of(hub), 2)
    assert (result["recovered"], result["offset"], publications(result)) == (True, 2, [3, 4])
    rt = await world.join(hub, "ann")
    assert (await recover(rt, await epoch_of(hub), 2))["offset"] == 4


async def test_a_recovery_longer_than_a_reply_begins_there_too(world: World) -> None:
    """H3: the publications of the reply move it to where the pushes go on."""
    hub = kept(world, 50)
    client = await world.join(hub, "eve", rt=False)
    for _ in range(8):
        await hub.publish("r:a", "x" * 65536)
    result = await recover(client, await epoch_of(hub), 0)
    await client.settle()
    offsets = [p["offset"] for p in result["publications"]] + client.offsets_of("r:a")
    assert (result["recovered"], result.get("offset", 0), offsets) == (True, 0, list(range(1, 9)))
    assert client.offsets_of("r:a")


async def test_what_comes_while_a_room_is_joined_follows_the_position_in_the_reply(world: World) -> None:
    """H2: the same for a fresh join."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(9, ttl=600))

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        await fill(hub, 3, 4)

    await hub.start()
    await fill(hub, 1, 2)
    client = await world.join(hub, "eve", rt=False)
    result = await client.call("subscribe", channel="r:a")
    assert (result.get("recovered", False), result["offset"], publications(result)) == (False, 2, [3, 4])


async def test_from_the_beginning_of_whatever_stream_there_is(world: World) -> None:
    """H3: offset 0 without an epoch names no stream, and claims nothing; what is said of it is checked all the same."""
    hub = kept(world, 5)
    client = await world.join(hub, "eve", rt=False)
    await fill(hub, 1, 5)
    result = await recover(client, "", 0)
    assert (result["recovered"], publications(result), result["epoch"]) == (
        True,
        [1, 2, 3, 4, 5],
        await epoch_of(hub),
    )
    await fill(hub, 6, 6)
    await client.call("unsubscribe", channel="r:a")
    result = await recover(client, "", 0)
    assert (result.get("recovered", False), result["was_recovering"], result["offset"]) == (False, True, 6)
    assert publications(result) == []


async def test_an_offset_without_its_epoch_proves_nothing(world: World) -> None:
    """H3: Centrifugo would take it for one of the present epoch."""
    hub = kept(world)
    client = await world.join(hub, "eve", rt=False)
    await fill(hub, 1, 4)
    assert "recovered" not in await recover(client, "", 4)


async def test_recovered_or_not_at_all(world: World) -> None:
    """With bit 2 of `flag` a client asks to be refused rather than to begin anew; bit 1 asks for what we do not do."""
    hub = kept(world, 2)
    left: list[str] = []
    client = await world.join(hub, "eve", rt=False)
    await fill(hub, 1, 4)
    epoch = await epoch_of(hub)
    for position in ({"epoch": epoch, "offset": 1}, {"epoch": "other", "offset": 4}):
        error = await client.refused("subscribe", channel="r:a", recover=True, flag=3, **position)
        assert error == {"code": 112, "message": "the position cannot be recovered"}
    assert not left
    assert (await recover(client, epoch, 3, flag=3))["recovered"] is True
    await client.call("unsubscribe", channel="r:a")
    # A fresh join, and one of a room that keeps nothing, ask for no recovery that could fail.
    assert (await client.call("subscribe", channel="r:a", flag=3))["recoverable"] is True
    await client.call("subscribe", channel="live:a", recover=True, flag=3)
    await world.settle()
    await hub.publish("r:a", 5)
    await client.settle()
    assert client.offsets_of("r:a") == [5]


async def test_who_was_not_recovered_has_not_joined(world: World) -> None:
    """Refused for its position, a client is in no room, and its hooks have come in pairs."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=ALL, history=History(9, ttl=600))
    log: list[str] = []

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        log.append("join")

    @rooms.on_leave
    async def gone(ctx: Context[Any, Any]) -> None:
        log.append("leave")

    client = await world.join(hub, "eve", rt=False)
    await client.refused("subscribe", channel="r:a", recover=True, epoch="other", flag=2)
    await hub.publish("r:a", 1)
    await client.settle()
    assert log == ["join", "leave"]
    assert client.pushes == []


# -- rooms that the server chose --------------------------------------------------------------------------


def mine(world: World, *, history: History | None, count: int = 0) -> Hub[Any]:
    hub = world.hub()
    rooms = hub.rooms(
        "mine:{x}", publishes=object, grant=ALL, history=history, auto_join=lambda i: [f"mine:{i.user}"]
    )
    hub.rooms("other:{x}", publishes=object, grant=ALL, history=history, auto_join=lambda i: ["other:a"])

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        for n in range(count):
            await hub.publish(ctx.where, n)

    return hub


@pytest.mark.parametrize("history", [History(9, ttl=600), None], ids=["kept", "live"])
async def test_what_comes_while_the_server_joins_is_pushed(world: World, history: History | None) -> None:
    """H2: of such a room, the base's clients look at the publications of a recovery alone. They would lose these."""
    hub = mine(world, history=history, count=3)
    await hub.start()
    client = world.client(hub)
    result = await client.connect("eve")
    sub = result["subs"]["mine:eve"]
    assert (sub.get("publications", []), sub.get("offset", 0)) == ([], 0)
    assert client.data_of("mine:eve") == [0, 1, 2]
    assert [list(unit) for unit in client.units] == [["id", "connect"], *[["push"]] * 3]
    await hub.publish("mine:eve", 3)
    await client.settle()
    assert client.data_of("mine:eve") == [0, 1, 2, 3]
    if history is not None:
        assert client.offsets_of("mine:eve") == [1, 2, 3, 4]


async def test_an_rt_client_gets_them_in_the_reply(world: World) -> None:
    hub = mine(world, history=History(9, ttl=600), count=3)
    await hub.start()
    client = world.client(hub, rt=True)
    sub = (await client.connect("ann"))["subs"]["mine:ann"]
    assert (publications(sub), sub["offset"], client.pushes) == ([0, 1, 2], 3, [])


async def test_what_a_recovery_of_the_servers_rooms_found_is_in_the_reply(world: World) -> None:
    """H3: there the clients look."""
    hub = mine(world, history=History(9, ttl=600))
    await hub.start()
    await fill(hub, 1, 3, "mine:eve")
    client = world.client(hub)
    position = {"recover": True, "epoch": await epoch_of(hub, "mine:eve"), "offset": 1}
    sub = (await client.connect("eve", subs={"mine:eve": position}))["subs"]["mine:eve"]
    assert (sub["recovered"], sub["offset"], publications(sub)) == (True, 1, [2, 3])
    assert client.pushes == []


# -- being refused ------------------------------------------------------------------------------------------


async def test_a_bad_token_is_a_code_and_no_error(world: World) -> None:
    """The base's clients report what they are told first; of a bad token that has to be 3500."""
    hub = world.hub()
    await hub.start()
    client = world.client(hub)
    client.ask("connect")
    await client.settle()
    assert (client.units, client.closed) == ([], (3500, "bad token"))


async def test_other_refusals_are_the_applications_own(world: World) -> None:
    async def authenticate(credentials: Any) -> Identity[Any]:
        raise Reject("suspended", code=442)

    hub = world.hub(authenticate=authenticate)
    await hub.start()
    client = world.client(hub)
    assert await client.refused("connect", token="eve") == {"code": 442, "message": "suspended"}
    assert client.close_code == 3500


async def test_an_error_always_has_a_code_and_a_message(world: World) -> None:
    """The base's Python client takes both for granted."""
    hub = world.hub()

    @hub.rpc(object, name="say")
    async def say(ctx: Context[Any, Any], message: Any) -> None:
        raise Reject("", code=0)

    client = await world.join(hub, "eve", rt=False)
    assert await client.refused("rpc", method="say") == {"code": 0, "message": ""}


@pytest.mark.parametrize(
    "body",
    [{"tf": {"key": "team", "cmp": "eq", "val": "x"}}, {"type": 1}, {"type": 4}],
    ids=["filter", "map", "poll"],
)
async def test_a_subscription_of_a_kind_we_do_not_have(world: World, body: Unit) -> None:
    """Refused, rather than taken for an ordinary one: who asked for a filter would get what it is to keep out."""
    hub = kept(world)
    client = await world.join(hub, "eve", rt=False)
    assert (await client.refused("subscribe", channel="r:a", **body))["code"] == 108
    assert (await client.call("subscribe", channel="r:a", delta="fossil", tf=None, type=0))["recoverable"]


@pytest.mark.parametrize("body", [{"type": 1}, {"removed": True}], ids=["map", "removal"])
async def test_a_publication_of_a_kind_we_do_not_have(world: World, body: Unit) -> None:
    """A change of a map is no message, and its key no key of ours."""
    hub = kept(world)
    client = await world.join(hub, "eve", "r:a", rt=False)
    assert (await client.refused("publish", channel="r:a", key="k", data=1, **body))["code"] == 108
    assert client.pushes == []


async def test_history_since_an_offset_alone(world: World) -> None:
    """H8: what a page is asked for by an offset without epoch is of the present stream."""
    hub = kept(world)
    client = await world.join(hub, "eve", rt=False)
    await fill(hub, 1, 4)
    page = await client.call("history", channel="r:a", since={"offset": 2}, limit=-1)
    assert publications(page) == [3, 4]
    page = await client.call("history", channel="r:a", since={"offset": 3}, limit=-1, reverse=True)
    assert publications(page) == [2, 1]
    assert (await client.refused("history", channel="r:a", since={"offset": 9}, limit=-1))["code"] == 112


# -- tokens of subscriptions -------------------------------------------------------------------------------


class Guard:
    """Rooms whose ``authorize`` goes by a token: ``ttl:<seconds>``, ``old`` or anything else."""

    def __init__(self, world: World, **options: Any) -> None:
        self.hub = world.hub(**options)
        self.asked: list[str | None] = []
        rooms = self.hub.rooms("r:{x}", publishes=object)

        @rooms.authorize
        async def authorize(ctx: Context[Any, Any]) -> Grant:
            self.asked.append(ctx.token)
            if ctx.token is None:
                raise Reject("show a token")
            if ctx.token == "old":
                raise Reject("token expired", code=109)
            if ctx.token.startswith("ttl:"):
                return Grant(ttl=float(ctx.token.removeprefix("ttl:")))
            raise Reject("not for this room")


async def test_authorize_is_shown_the_token(world: World) -> None:
    """A2: what the client shows for one room."""
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    assert (await client.refused("subscribe", channel="r:a"))["code"] == 103
    assert (await client.refused("subscribe", channel="r:a", token="stolen"))["code"] == 103
    assert (await client.refused("subscribe", channel="r:a", token="old"))["code"] == 109
    await client.call("subscribe", channel="r:a", token="ttl:60")
    assert guard.asked == [None, "stolen", "old", "ttl:60"]
    assert "ttl:60" not in repr(guard.hub)


async def test_on_join_is_shown_the_token_too(world: World) -> None:
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object, grant=ALL)
    seen: list[str | None] = []

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        seen.append(ctx.token)

    client = await world.join(hub, "eve", rt=False)
    await client.call("subscribe", channel="r:a", token="t")
    await client.call("subscribe", channel="r:b")
    assert seen == ["t", None]


async def test_outside_a_join_there_is_no_token(world: World) -> None:
    """To publish to a room it is not in, a client has shown nothing."""
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    assert (await client.refused("publish", channel="r:a", data=1))["code"] == 103
    assert guard.asked == [None]


async def test_a_permission_by_token_is_the_clients_to_renew(world: World) -> None:
    """A3: it is told how long it holds, shows a new token then, and is asked for none that it did not show."""
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    result = await client.call("subscribe", channel="r:a", token="ttl:60")
    assert (result["expires"], result["ttl"]) == (True, 60)
    await world.advance(61)
    assert guard.asked == ["ttl:60"]
    assert await client.call("sub_refresh", channel="r:a", token="ttl:90") == {"expires": True, "ttl": 90}
    assert guard.asked == ["ttl:60", "ttl:90"]
    await world.advance(99)
    assert len(guard.asked) == 2
    await world.advance(2)
    assert guard.asked == ["ttl:60", "ttl:90", "ttl:90"]
    assert client.pushes == []


async def test_a_permission_without_token_is_the_servers_to_renew(world: World) -> None:
    """A2: as before: the client is told nothing of it."""
    hub = world.hub()
    asked = 0
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        nonlocal asked
        asked += 1
        return Grant(ttl=60)

    client = await world.join(hub, "eve", rt=False)
    assert await client.call("subscribe", channel="r:a") == {}
    await world.advance(61)
    assert asked == 2


@pytest.mark.parametrize(("token", "code"), [("old", 2501), ("stolen", 2000)])
async def test_a_refresh_with_a_bad_token(world: World, token: str, code: int) -> None:
    """Whose token has expired comes back with another; who may not, does not."""
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    await client.call("subscribe", channel="r:a", token="ttl:60")
    error = await client.refused("sub_refresh", channel="r:a", token=token)
    assert error["code"] == 103
    assert [push["code"] for push in client.pushes_of("r:a", "unsubscribe")] == [code]


async def test_who_does_not_refresh_is_asked_for_the_room_again(world: World) -> None:
    """After the leeway the old token is judged once more; expired, it costs the room, until there is a new one."""
    guard = Guard(world, limits=Limits(refresh_leeway=5))
    client = await world.join(guard.hub, "eve", rt=False)
    await client.call("subscribe", channel="r:a", token="ttl:60")
    await world.advance(64)
    assert client.pushes == []

    async def expired(ctx: Context[Any, Any]) -> Grant:
        raise Reject("token expired", code=109)

    guard.hub.families[0].authorize_hook = expired
    await world.advance(2)
    assert client.pushes_of("r:a", "unsubscribe") == [{"code": 2501, "reason": "token expired"}]


async def test_a_new_identity_is_weighed_with_the_token_of_the_room(world: World) -> None:
    """A3: after a refresh of the connection too."""
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    await client.call("subscribe", channel="r:a", token="ttl:60")
    await client.call("refresh", token="eve")
    assert guard.asked == ["ttl:60", "ttl:60"]
    assert await client.call("sub_refresh", channel="r:a") == {"expires": True, "ttl": 60}
    assert guard.asked == ["ttl:60"] * 3
    assert client.pushes == []


async def test_a_token_is_not_kept_longer_than_the_room(world: World) -> None:
    guard = Guard(world)
    client = await world.join(guard.hub, "eve", rt=False)
    await client.call("subscribe", channel="r:a", token="ttl:60")
    await client.call("unsubscribe", channel="r:a")
    assert (await client.refused("subscribe", channel="r:a"))["code"] == 103
    await asyncio.sleep(0)
    assert guard.asked == ["ttl:60", None]
