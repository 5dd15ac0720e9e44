"""What every command of the wire does when all is well, and each documented error (W1, W3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Limits, Reject, UnknownRoom
from tests.support.rawclient import CallFailed, RawClient, publications
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "presence", "history")


@dataclass
class Say:
    text: str


@dataclass
class Saved:
    number: int


@dataclass
class Add:
    a: int
    b: int


def chat(world: World, **options: Any) -> Hub[Any]:
    """Raw rooms with and without history, a typed one with a handler, one that nobody may write to, an rpc."""
    hub = world.hub(**options)
    hub.rooms("raw:{x}", publishes=object, grant=ALL, history=History(5, ttl=3600))
    hub.rooms("live:{x}", publishes=object, grant=ALL)
    typed = hub.rooms("chat:{x}", publishes=Say, grant=ALL, history=History(5, ttl=3600))
    hub.rooms("read:{x}", publishes=Say, grant=Grant(), history=History(5, ttl=3600))

    @typed.on(Say)
    async def say(ctx: Context[Any, Say], message: Say) -> Saved:
        published = await ctx.room.publish(message)
        assert published.position is not None
        return Saved(published.position.offset)

    @hub.rpc(Add, name="add")
    async def add(ctx: Context[Any, Any], message: Add) -> int:
        if message.a == 13:
            raise Reject("not that one", code=413)
        return message.a + message.b

    return hub


# -- connect ------------------------------------------------------------------------------------------


async def test_connect(world: World) -> None:
    """W1: the reply names the client, the server, the ping interval and that pongs are wanted."""
    hub = chat(world)
    await hub.start()
    client = world.client(hub)
    result = await client.connect("ann")
    assert len(result.pop("client")) >= 16
    assert result == {"version": hub.version, "ping": 25, "pong": True, "node": hub.node_id}


async def test_connect_of_an_rtkit_client_is_welcomed_with_the_limits(world: World) -> None:
    """Protocol, additions: `rt` in connect is answered with `rt`."""
    hub = chat(world)
    client = await world.join(hub, "ann")
    welcome = client.reply(1)["connect"]["rt"]
    limits = hub.limits
    assert welcome["limits"] == {
        "unit": 65_536,
        "message": limits.max_publication,
        "rate": 50,
        "burst": 100,
        "large": limits.large,
        "bytes": limits.inbound.rate,
        "surge": limits.inbound.burst,
    }


async def test_a_second_connect_closes(world: World) -> None:
    """W3: out of place, 3501."""
    client = await world.join(chat(world), "ann")
    client.ask("connect", token="ann")
    await client.settle()
    assert client.closed == (3501, "bad request: connected already")


async def test_a_command_before_connect_closes(world: World) -> None:
    """A1: nothing but authentication is possible before it."""
    hub = chat(world)
    await hub.start()
    client = world.client(hub)
    client.ask("subscribe", channel="raw:a")
    await client.settle()
    assert client.closed == (3501, "bad request: the first command must be connect")
    assert client.units == []


async def test_connect_and_subscribe_in_one_frame(world: World) -> None:
    """W1: a client may pipeline; the commands are handled in order."""
    hub = chat(world)
    await hub.start()
    client = world.client(hub)
    client.tell(
        {"id": 1, "connect": {"token": "ann"}},
        {"id": 2, "subscribe": {"channel": "raw:a"}},
        {"id": 3, "publish": {"channel": "raw:a", "data": "hi"}},
    )
    await client.settle()
    assert list(client.replies) == [1, 2, 3]
    assert client.data_of("raw:a") == ["hi"]


async def test_what_is_pipelined_behind_a_refused_connect_is_never_done(world: World) -> None:
    """A1: not even another attempt to authenticate, however many came in one frame."""
    asked: list[str | None] = []

    async def nobody(credentials: Any) -> Any:
        asked.append(credentials.token)
        raise Reject("no", code=101)

    hub = chat(world, authenticate=nobody)
    await hub.start()
    client = world.client(hub, answers_close=False)
    client.tell(*({"id": i, "connect": {"token": str(i), "rt": {}}} for i in range(1, 9)))
    await client.settle()
    assert asked == ["1"]
    assert client.close_code == 3500
    assert list(client.replies) == [1]
    client.pipe.lose()


# -- rooms --------------------------------------------------------------------------------------------


async def test_subscribe_says_where_the_stream_stands(world: World) -> None:
    """H1: position, even before there was a message."""
    client = await world.join(chat(world), "ann")
    result = await client.call("subscribe", channel="raw:a")
    epoch = result.pop("epoch")
    assert len(epoch) >= 6
    assert result == {"recoverable": True, "positioned": True}
    await client.call("publish", channel="raw:a", data=1)
    await client.call("unsubscribe", channel="raw:a")
    again = await client.call("subscribe", channel="raw:a")
    assert (again["epoch"], again["offset"]) == (epoch, 1)
    assert "publications" not in again


async def test_a_room_without_history_says_so(world: World) -> None:
    """H6: at most once, and the join reply says it."""
    client = await world.join(chat(world), "ann")
    assert await client.call("subscribe", channel="live:a") == {}
    result = await client.call("subscribe", channel="live:b", recover=True, epoch="x", offset=3)
    assert result == {"was_recovering": True}


@pytest.mark.parametrize(
    "channel", ["", "nobody:declared", "raw", "raw:", "raw:a:b", "x" * 256, "raw:\x00", "\x00control"]
)
async def test_unknown_room(world: World, channel: str) -> None:
    """A2: a room nobody declared does not exist; W4: nor does one that cannot be a name."""
    client = await world.join(chat(world), "ann")
    for method in ("subscribe", "publish", "history", "signal"):
        error = await client.refused(method, channel=channel, data=1)
        assert error == {"code": 102, "message": "unknown room"}
    assert await client.call("unsubscribe", channel=channel) == {}
    assert client.closed is None


@pytest.mark.parametrize(
    ("channel", "meant"),
    [
        ("raw:a%20b", "raw:a b"),
        ("live:%c3%a9'%F0%9F%98%80", "live:é'😀"),
        ("chat:100%", "chat:100%25"),
        ("read:%41", "read:A"),
    ],
)
async def test_a_name_that_is_spelled_otherwise(world: World, channel: str, meant: str) -> None:
    """API 2: each room has one name, or a ban from raw:A would not be one from raw:%41; the error says which."""
    hub = chat(world)
    client = await world.join(hub, "ann")
    for method in ("subscribe", "publish", "history", "signal"):
        error = await client.refused(method, channel=channel, data=1)
        assert error == {"code": 102, "message": f"unknown room; did you mean {meant!r}?"}
    await client.call("subscribe", channel=meant)
    assert hub.statistics().rooms == 1
    with pytest.raises(UnknownRoom, match=f"no room is spelled {channel!r}; did you mean {meant!r}"):
        hub.room(channel)


async def test_a_room_that_the_application_names_wrongly_is_its_own_fault(world: World, errors: Any) -> None:
    """L3: the client did not name it and is not told its name; the log has it."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        ctx.hub.room("r:%73ecret")
        raise AssertionError

    client = await world.join(hub, "ann")
    error = await client.refused("subscribe", channel="r:a")
    assert error["code"] == 100
    assert "ecret" not in error["message"]
    (record,) = errors()
    assert "did you mean 'r:secret'?" in str(record.exc_info[1])


async def test_already_subscribed(world: World) -> None:
    client = await world.join(chat(world), "ann", "raw:a")
    assert (await client.refused("subscribe", channel="raw:a"))["code"] == 105


async def test_unsubscribe_ends_delivery_and_is_idempotent(world: World) -> None:
    hub = chat(world)
    client = await world.join(hub, "ann", "raw:a")
    assert await client.call("unsubscribe", channel="raw:a") == {}
    assert await client.call("unsubscribe", channel="raw:a") == {}
    await hub.publish("raw:a", 1)
    await client.settle()
    assert client.pushes == []
    assert hub.statistics().rooms == 0


# -- publishing ---------------------------------------------------------------------------------------


async def test_publish_to_a_raw_room(world: World) -> None:
    """W1: the data goes out as canonical JSON, with the offset and who published."""
    hub = chat(world)
    ann, bob = await world.join(hub, "ann", "raw:a"), await world.join(hub, "bob", "raw:a", rt=False)
    ann.tell(b'{"id":9,"publish":{"channel":"raw:a","data":{"b" : [1, 2.50,null] , "a":"\\u00e9"}}}')
    await ann.settle()
    result = ann.reply(9)["publish"]
    assert result["offset"] == 1
    assert result["epoch"]
    [pub] = bob.pushes_of("raw:a")
    assert pub["data"] == {"b": [1, 2.5, None], "a": "é"}
    assert pub["offset"] == 1
    assert pub["info"]["user"] == "ann"
    assert pub["info"]["client"] == ann.reply(1)["connect"]["client"]
    assert '{"b":[1,2.5,null],"a":"é"}' in bob.text


async def test_publish_without_data(world: World) -> None:
    client = await world.join(chat(world), "ann", "raw:a")
    assert await client.refused("publish", channel="raw:a") == {"code": 107, "message": "data is missing"}


async def test_publish_to_a_handler_is_answered_with_its_acknowledgement(world: World) -> None:
    """H7: the reply carries the handler's acknowledgement in `data`."""
    client = await world.join(chat(world), "ann", "chat:a")
    result = await client.call("publish", channel="chat:a", data={"event": "Say", "data": {"text": "hi"}})
    assert result == {"data": {"number": 1}}
    assert client.data_of("chat:a") == [{"event": "Say", "data": {"text": "hi"}}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (1, "Expected `object`, got `int`"),
        ([], "Expected `object`, got `array`"),
        ({}, 'expected {"event": name, "data": …}: the event is missing'),
        ({"event": 1}, "Expected `str`, got `int` - at `$.event`"),
        ({"event": "Nope"}, "unknown event 'Nope'; clients may send Say"),
        ({"event": "Say"}, "Expected `object`, got `null`"),
        ({"event": "Say", "data": {}}, "Object missing required field `text`"),
        ({"event": "Say", "data": {"text": 1}}, "Expected `str`, got `int` - at `$.text`"),
    ],
)
async def test_a_wrong_message_is_refused_with_its_path(world: World, data: Any, message: str) -> None:
    """API 4: a bad message is answered 107 with the path of the fault."""
    hub = chat(world)
    client = await world.join(hub, "ann", "chat:a")
    assert await client.refused("publish", channel="chat:a", data=data) == {"code": 107, "message": message}
    assert (await hub.room("chat:a").history()).messages == []


async def test_unknown_fields_are_ignored(world: World) -> None:
    """API 4."""
    client = await world.join(chat(world), "ann", "chat:a")
    data = {"event": "Say", "data": {"text": "hi", "new": 1}, "more": []}
    await client.call("publish", channel="chat:a", data=data, future=True)
    assert client.data_of("chat:a") == [{"event": "Say", "data": {"text": "hi"}}]


async def test_nobody_goes_past_the_handlers_of_a_typed_room(world: World) -> None:
    """API 4: clients send, servers publish; a typed room takes from clients what a handler takes."""
    hub = world.hub()
    hub.rooms("t:{x}", publishes=Say, grant=ALL, history=History(5, ttl=60))
    client = await world.join(hub, "ann", "t:a")
    error = await client.refused("publish", channel="t:a", data={"event": "Say", "data": {"text": "hi"}})
    assert error == {
        "code": 107,
        "message": "unknown event 'Say'; clients may send nothing: it has no handlers",
    }
    assert client.data_of("t:a") == []
    error = await client.refused("publish", channel="t:a", data="Say")
    assert error["code"] == 107


async def test_not_permitted(world: World) -> None:
    """A2: each right by itself; here none but joining is granted."""
    client = await world.join(chat(world), "ann", "read:a")
    for method, right in (("publish", "publish"), ("signal", "signal"), ("history", "read the history of")):
        error = await client.refused(method, channel="read:a", data={"event": "Say", "data": {"text": ""}})
        assert error["code"] == 103
        assert right in error["message"]


# -- history ------------------------------------------------------------------------------------------


async def test_history_pages_both_ways(world: World) -> None:
    """H8."""
    hub = chat(world)
    client = await world.join(hub, "ann")
    for n in range(1, 8):
        await hub.publish("raw:a", n)
    top = await client.call("history", channel="raw:a")
    assert (top["offset"], publications(top)) == (7, [])
    epoch = top["epoch"]
    assert publications(await client.call("history", channel="raw:a", limit=-1)) == [3, 4, 5, 6, 7]
    assert publications(await client.call("history", channel="raw:a", limit=2)) == [3, 4]
    since = {"offset": 4, "epoch": epoch}
    assert publications(await client.call("history", channel="raw:a", limit=2, since=since)) == [5, 6]
    assert publications(await client.call("history", channel="raw:a", limit=2, reverse=True)) == [7, 6]
    since = {"offset": 6, "epoch": epoch}
    page = await client.call("history", channel="raw:a", limit=2, reverse=True, since=since)
    assert publications(page) == [5, 4]


async def test_a_history_page_has_no_more_than_the_limit(world: World) -> None:
    hub = chat(world, limits=Limits(history_page=2))
    client = await world.join(hub, "ann")
    for n in range(1, 5):
        await hub.publish("raw:a", n)
    for limit in (-1, 3, 1000):
        assert len(publications(await client.call("history", channel="raw:a", limit=limit))) == 2


@pytest.mark.parametrize("since", [{"offset": 1}, {"offset": 99}, {"offset": 5, "epoch": "other"}])
async def test_history_from_a_position_that_is_gone(world: World, since: dict[str, Any]) -> None:
    """Protocol: 112. Trimmed, beyond the top, and of another epoch."""
    hub = chat(world)
    client = await world.join(hub, "ann")
    for n in range(1, 8):
        await hub.publish("raw:a", n)
    epoch = (await client.call("history", channel="raw:a"))["epoch"]
    error = await client.refused("history", channel="raw:a", limit=3, since={"epoch": epoch, **since})
    assert error["code"] == 112


async def test_history_of_a_room_without(world: World) -> None:
    """Protocol: 108."""
    client = await world.join(chat(world), "ann", "live:a")
    assert (await client.refused("history", channel="live:a", limit=1))["code"] == 108


async def test_a_history_page_fits_a_reply_however_large_the_messages(world: World) -> None:
    """D1: a page that no outbox could hold would close the one who asked, again and again."""
    hub = world.hub()
    hub.rooms("big:{x}", publishes=object, grant=ALL, history=History(100, ttl=60))
    client = await world.join(hub, "ann")
    for n in range(60):
        await hub.publish("big:a", f"{n:03}" + "x" * 50_000)
    got: list[int] = []
    since: dict[str, Any] | None = None
    while len(got) < 60:
        page = await client.call("history", channel="big:a", limit=60, **({"since": since} if since else {}))
        assert publications(page)
        got.extend(int(data[:3]) for data in publications(page))
        since = {"offset": page["publications"][-1]["offset"], "epoch": page["epoch"]}
    assert got == list(range(60))
    page = await client.call("history", channel="big:a", limit=60, reverse=True)
    assert int(publications(page)[0][:3]) == 59
    assert client.closed is None


# -- calls, signals and the rest ----------------------------------------------------------------------


async def test_rpc(world: World) -> None:
    client = await world.join(chat(world), "ann")
    assert await client.call("rpc", method="add", data={"a": 1, "b": 2}) == {"data": 3}


async def test_rpc_errors(world: World) -> None:
    """104 for an unknown procedure, 107 for wrong arguments, the application's own for its Reject."""
    client = await world.join(chat(world), "ann")
    assert await client.refused("rpc", method="sub") == {"code": 104, "message": "unknown procedure"}
    assert (await client.refused("rpc", method="rt.presence.update"))["code"] == 104
    error = await client.refused("rpc", method="add", data={"a": 1, "b": "2"})
    assert error == {"code": 107, "message": "Expected `int`, got `str` - at `$.b`"}
    assert (await client.refused("rpc", method="add"))["code"] == 107
    error = await client.refused("rpc", method="add", data={"a": 13, "b": 2})
    assert error == {"code": 413, "message": "not that one"}


async def test_signal_reaches_the_others(world: World) -> None:
    """D5: not stored, not echoed to who sent it, and known to rtkit clients only."""
    hub = chat(world)
    bob = await world.join(hub, "bob", "live:a")
    eve = await world.join(hub, "eve", "live:a", rt=False)
    ann = world.client(hub, rt=True)
    id = (await ann.connect("ann"))["client"]
    await ann.call("subscribe", channel="live:a")
    assert await ann.call("signal", channel="live:a", event="typing", data={"on": True}) == {}
    await world.settle()
    said = {"event": "typing", "data": {"on": True}, "user": "ann", "client": id}
    assert bob.pushes_of("live:a", "signal") == [said]
    assert ann.pushes == eve.pushes == []


async def test_send_runs_a_procedure_that_nobody_waits_for(world: World) -> None:
    """W1: `send` has no id and no reply."""
    hub = chat(world)
    seen: list[Say] = []

    @hub.rpc(Say)
    async def say(ctx: Context[Any, Any], message: Say) -> None:
        seen.append(message)

    client = await world.join(hub, "ann")
    heard = len(client.units)
    client.tell({"send": {"data": {"event": "Say", "data": {"text": "psst"}}}})
    client.tell({"send": {"data": {"event": "Say", "data": 1}}}, {"send": {"data": 1}}, {"send": {}})
    client.tell({"send": {"data": {"event": "nobody"}}})
    await client.settle()
    assert seen == [Say("psst")]
    assert len(client.units) == heard
    assert client.closed is None


async def test_ping_command(world: World) -> None:
    client = await world.join(chat(world), "ann")
    assert await client.call("ping") == {}


async def test_bye_is_a_clean_goodbye(world: World) -> None:
    """C3: close 1000 after `bye`; what was queued before it is sent, what comes after it is not done."""
    client = await world.join(chat(world), "ann", "raw:a")
    client.tell(
        {"id": 7, "publish": {"channel": "raw:a", "data": 1}},
        {"bye": {}},
        {"id": 8, "publish": {"channel": "raw:a", "data": 2}},
    )
    await client.settle()
    assert client.closed == (1000, "bye")
    assert client.answered(7)
    assert not client.answered(8)


async def test_presence_is_not_available(world: World) -> None:
    """Protocol: 108 until the room has presence."""
    client = await world.join(chat(world), "ann", "raw:a")
    for method in ("presence", "presence_stats"):
        assert (await client.refused(method, channel="raw:a"))["code"] == 108


async def test_sub_refresh_asks_for_the_permission_again(world: World) -> None:
    """A2: permitted, not subscribed, and no longer permitted."""
    hub = world.hub()
    may = True
    rooms = hub.rooms("r:{x}", publishes=object)

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        if not may:
            raise Reject("no more")
        return Grant(ttl=90)

    client = await world.join(hub, "ann", "r:a")
    assert await client.call("sub_refresh", channel="r:a", token="t") == {"expires": True, "ttl": 90}
    assert (await client.refused("sub_refresh", channel="r:b"))["code"] == 103
    may = False
    assert (await client.refused("sub_refresh", channel="r:a"))["code"] == 103
    assert client.pushes_of("r:a", "unsubscribe") == [{"code": 2000, "reason": "no more"}]


async def test_commands_without_an_id(world: World) -> None:
    """Protocol 2.4: carried out, and not answered, not even with an error; `connect` is answered as 1."""
    hub = chat(world)
    await hub.start()
    client = world.client(hub)
    client.tell({"connect": {"token": "ann"}})
    await client.settle()
    assert list(client.replies) == [1]
    client.forget()
    client.tell({"subscribe": {"channel": "raw:a"}}, {"publish": {"channel": "raw:a", "data": 1}})
    client.tell(
        {"subscribe": {"channel": "?"}}, {"id": 0, "ping": {}}, {"what": {}}, {"rpc": {"method": "no"}}
    )
    await client.settle()
    assert [list(unit) for unit in client.units] == [["push"]]
    assert client.data_of("raw:a") == [1]
    assert client.closed is None


async def test_call_failed_shows_the_error(world: World) -> None:
    client = await world.join(chat(world), "ann")
    with pytest.raises(CallFailed) as caught:
        await client.call("subscribe", channel="?")
    assert caught.value.code == 102


async def test_commands_of_a_batch_are_answered_in_order(world: World) -> None:
    """C2."""
    client: RawClient = await world.join(chat(world), "ann")
    ids = [10, 11, 12, 13]
    client.tell(
        {"id": 10, "subscribe": {"channel": "raw:a"}},
        {"id": 11, "publish": {"channel": "raw:a", "data": 1}},
        b"",
        {"id": 12, "nonsense": {}},
        b"   ",
        {"id": 13, "unsubscribe": {"channel": "raw:a"}},
    )
    await client.settle()
    assert [id for id in client.replies if id in ids] == ids
    assert client.reply(12)["error"] == {"code": 104, "message": "unknown method"}
