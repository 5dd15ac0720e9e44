"""Malformed, misplaced and poisonous units: a documented answer, nothing stored, nobody else harmed (W3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rtkit import Context, Grant, History, Hub, Identity, Limits
from rtkit.primitives import Rate
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "presence", "history")


def plain(world: World, **options: Any) -> Hub[Any]:
    hub = world.hub(**options)
    rooms = hub.rooms("raw:{x}", publishes=object, grant=ALL, history=History(50, ttl=3600))
    hub.rooms("live:{x}", publishes=object, grant=ALL)

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> Any:
        return ctx.data

    @hub.rpc(object, name="echo")
    async def echo(ctx: Context[Any, Any], message: Any) -> Any:
        return message

    return hub


# -- units that cannot be addressed -------------------------------------------------------------------

HOPELESS = {
    "empty": b"",
    "spaces": b"  ",
    "newlines": b"\n\n\n",
    "not json": b"hello",
    "half": b'{"id":1,"ping":{}',
    "two in a line": b'{"id":1,"ping":{}}{"id":2,"ping":{}}',
    "array": b'[{"id":1,"ping":{}}]',
    "number": b"1",
    "null": b"null",
    "string": b'"{}"',
    "bom": b'\xef\xbb\xbf{"id":1,"ping":{}}',
    "not utf-8": b"\xff\xfe\x00",
    "utf-16": '{"id":1,"ping":{}}'.encode("utf-16"),
    "nul": b"\x00",
    "negative id": b'{"id":-1,"ping":{}}',
    "huge id": b'{"id":9007199254740992,"ping":{}}',
    "astronomic id": b'{"id":' + b"9" * 5000 + b',"ping":{}}',
    "float id": b'{"id":1.5,"ping":{}}',
    "integral float id": b'{"id":1.0,"ping":{}}',
    "bool id": b'{"id":true,"ping":{}}',
    "string id": b'{"id":"1","ping":{}}',
    "null id": b'{"id":null,"ping":{}}',
    "wrong type without id": b'{"subscribe":[]}',
    "lone surrogate in a name": b'{"id":2,"subscribe":{"channel":"\\ud800"}}',
    "control character": b'{"id":2,"subscribe":{"channel":"raw:\x01"}}',
    "NaN": b'{"id":2,"publish":{"channel":"raw:a","data":NaN}}',
    "Infinity": b'{"id":2,"publish":{"channel":"raw:a","data":-Infinity}}',
    "single quotes": b"{'id':1,'ping':{}}",
    "deep": b'{"id":2,"publish":{"channel":"raw:a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "deep objects": b'{"id":2,"x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "deep, unclosed": b"[" * 400_000,
}


@pytest.mark.parametrize("frame", HOPELESS.values(), ids=HOPELESS)
async def test_an_unaddressable_unit_closes(world: World, frame: bytes) -> None:
    """W3, protocol 13.2: 3501 and plain words, never a trace; nothing of it was done; others go on."""
    hub = plain(world)
    bob = await world.join(hub, "bob", "raw:a")
    ann = await world.join(hub, "ann", "raw:a")
    ann.say(frame)
    ann.tell({"id": 99, "publish": {"channel": "raw:a", "data": "after"}})
    await ann.settle()
    assert ann.closed is not None
    assert ann.closed[0] == 3501
    assert ann.closed[1].startswith("bad request: ")
    assert_no_insides(ann)
    assert not ann.answered(99)
    await hub.publish("raw:a", "on")
    await bob.settle()
    assert bob.data_of("raw:a") == ["on"]


@pytest.mark.parametrize("frame", HOPELESS.values(), ids=HOPELESS)
async def test_before_connecting_too(world: World, frame: bytes) -> None:
    """A1, W3. What nobody may say who is not known is not looked at."""
    hub = plain(world)
    await hub.start()
    client = world.client(hub)
    client.say(frame)
    await client.settle()
    assert client.close_code == (3501 if len(frame) <= hub.max_connect else 1009)
    assert_no_insides(client)


async def test_every_bad_unit_before_connecting_closes(world: World) -> None:
    """Protocol 13.2: who has not authenticated is not argued with."""
    hub = plain(world)
    await hub.start()
    for unit in (
        b'{"id":1,"connect":[]}',
        b'{"id":1,"connect":{"token":1}}',
        b'{"id":1,"nonsense":{}}',
        b"{ }",
    ):
        client = world.client(hub)
        client.say(unit)
        await client.settle()
        assert client.close_code == 3501, unit


# -- units that can -----------------------------------------------------------------------------------

WRONG = {
    "body": ('{"id":5,"subscribe":[]}', "Expected `object | null`, got `array` - at `$.subscribe`"),
    "missing": ('{"id":5,"subscribe":{}}', "Object missing required field `channel` - at `$.subscribe`"),
    "type": ('{"id":5,"subscribe":{"channel":1}}', "Expected `str`, got `int` - at `$.subscribe.channel`"),
    "bool": ('{"id":5,"subscribe":{"channel":"raw:a","recover":1}}', "got `int` - at `$.subscribe.recover`"),
    "offset": (
        '{"id":5,"subscribe":{"channel":"raw:a","recover":true,"offset":-1}}',
        "Expected `int` >= 0 - at `$.subscribe.offset`",
    ),
    "huge offset": (
        '{"id":5,"subscribe":{"channel":"raw:a","offset":9007199254740992}}',
        "`$.subscribe.offset`",
    ),
    "epoch": ('{"id":5,"subscribe":{"channel":"raw:a","epoch":"%s"}}' % ("e" * 129), "`$.subscribe.epoch`"),
    "limit": (
        '{"id":5,"history":{"channel":"raw:a","limit":-2}}',
        "Expected `int` >= -1 - at `$.history.limit`",
    ),
    "since": ('{"id":5,"history":{"channel":"raw:a","since":[]}}', "`$.history.since`"),
    "empty key": ('{"id":5,"publish":{"channel":"raw:a","data":1,"key":""}}', "`$.publish.key`"),
    "long key": (
        '{"id":5,"publish":{"channel":"raw:a","data":1,"key":"%s"}}' % ("k" * 129),
        "`$.publish.key`",
    ),
    "method name": ('{"id":5,"rpc":{"method":"%s"}}' % ("m" * 256), "`$.rpc.method`"),
    "two methods": ('{"id":5,"ping":{},"rpc":{"method":"echo"}}', "one method a command, not rpc and ping"),
    "two with refresh": (
        '{"id":5,"refresh":{"token":"ann"},"ping":{}}',
        "one method a command, not ping and refresh",
    ),
    "two with connect": (
        '{"id":5,"connect":{"token":"ann"},"ping":{}}',
        "one method a command, not connect and ping",
    ),
}


@pytest.mark.parametrize(("frame", "message"), WRONG.values(), ids=WRONG)
async def test_an_addressable_fault_is_answered(world: World, frame: str, message: str) -> None:
    """W3, protocol 13.1: 107 with the path of the fault, and the connection lives."""
    client = await world.join(plain(world), "ann")
    client.say(frame)
    await client.settle()
    error = client.reply(5)["error"]
    assert error["code"] == 107
    assert message in error["message"]
    assert "temporary" not in error
    assert await client.call("ping") == {}


@pytest.mark.parametrize(
    "unit", ['{"id":5}', '{"id":5,"teleport":{}}', '{"id":5,"subscribe":null}', '{"id":5,"push":{}}']
)
async def test_an_unknown_method(world: World, unit: str) -> None:
    """W3: 104."""
    client = await world.join(plain(world), "ann")
    client.say(unit)
    await client.settle()
    assert client.reply(5)["error"] == {"code": 104, "message": "unknown method"}
    assert client.closed is None


# -- poison -------------------------------------------------------------------------------------------

POISON = {
    "lone surrogate": b'"\\ud800"',
    "reversed surrogates": b'"\\udc00\\ud800"',
    "surrogate key": b'{"\\ud800":1}',
    "surrogate bytes": b'"\xed\xa0\x80"',
    "broken utf-8": b'"\xff"',
    "cut utf-8": b'"\xc3"',
    "overlong utf-8": b'"\xc0\xaf"',
    "nan": b"NaN",
    "infinity": b"Infinity",
    "1e999": b"1e999",
    "-1e999": b"[-1e999]",
    "5000 digits": b"1" * 5000,
    "5000 digits and a fraction": b"1" * 5000 + b".5",
    "deep": b"[" * 200 + b"]" * 200,
    "deeper": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "mixed depth": b'[{"a":' * 70 + b"1" + b"}]" * 70,
    "control character": b'"\x01"',
    "escaped badly": b'"\\x"',
    "trailing comma": b"[1,]",
    "leading zero": b"01",
}

UNITS = {
    "publish": b'{"id":5,"publish":{"channel":"raw:a","data":%b}}',
    "publish in an unheard room": b'{"id":5,"publish":{"channel":"raw:other","data":%b}}',
    "publish without history": b'{"id":5,"publish":{"channel":"live:a","data":%b}}',
    "signal": b'{"id":5,"signal":{"channel":"live:a","event":"e","data":%b}}',
    "rpc": b'{"id":5,"rpc":{"method":"echo","data":%b}}',
    "join": b'{"id":5,"subscribe":{"channel":"raw:b","data":%b}}',
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
async def test_poison_is_refused_at_the_edge(world: World, unit: bytes) -> None:
    """W3: refused before anything is stored; where its unit could be addressed the connection lives."""
    hub = plain(world)
    bob = await world.join(hub, "bob", "raw:a", "raw:other", "live:a")
    for name, poison in POISON.items():
        ann = await world.join(hub, "ann", "raw:a", "live:a")
        ann.say(unit % poison)
        await ann.settle()
        if ann.closed is None:
            assert ann.reply(5)["error"]["code"] == 107, name
            assert await ann.call("ping") == {}
        else:
            assert ann.close_code == 3501, name
        assert_no_insides(ann)
        await ann.drop()
    await bob.settle()
    assert bob.pushes == []
    for room in ("raw:a", "raw:b", "raw:other"):
        page = await hub.room(room).history()
        assert (page.messages, page.top.offset) == ([], 0)
    assert hub.statistics().sessions == 1


@pytest.mark.parametrize("name", ["1e999", "5000 digits", "broken utf-8", "deep", "mixed depth"])
async def test_poison_in_an_addressable_unit_is_answered(world: World, name: str) -> None:
    """W3: these leave the unit readable, so the connection goes on."""
    ann = await world.join(plain(world), "ann")
    ann.say(UNITS["publish"] % POISON[name])
    await ann.settle()
    assert ann.reply(5)["error"]["code"] == 107
    assert ann.closed is None


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_poison_in_connect_data(world: World, poison: bytes) -> None:
    """W3: the application never sees it, and the client may try again."""
    seen: list[Any] = []

    async def authenticate(credentials: Any) -> Identity[None]:
        seen.append(credentials.data)
        return Identity("ann")

    hub = plain(world, authenticate=authenticate)
    await hub.start()
    client = world.client(hub)
    client.say(b'{"id":1,"connect":{"token":"ann","data":%b}}' % poison)
    await client.settle()
    assert seen == []
    if client.closed is None:
        assert client.reply(1)["error"]["code"] == 107
        client.say(b'{"id":2,"connect":{"token":"ann"}}')
        await client.settle()
        assert client.reply(2)["connect"]["client"]
    else:
        assert client.close_code == 3501
    assert_no_insides(client)


SOUND = {
    "astral": '"\U0001f600"',
    "escaped pair": '"\\ud83d\\ude00"',
    "nul": '"\\u0000"',
    "separators": '"\u2028\u2029"',
    "edges": "[1.7976931348623157e308, -0.0, 5e-324, 9007199254740991, -9223372036854775808]",
    "128 deep": "[" * 128 + "]" * 128,
    "many brackets in a string": json.dumps("[" * 1000 + '"' + "{" * 1000),
    "null": "null",
    "empty": '{"":[]}',
}


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
async def test_what_is_unusual_and_sound_passes(world: World, text: str) -> None:
    """W3: the edge refuses poison only; what passes arrives as it was, in one line."""
    hub = plain(world)
    bob = await world.join(hub, "bob", "raw:a")
    ann = await world.join(hub, "ann", "raw:a")
    ann.say(f'{{"id":5,"publish":{{"channel":"raw:a","data":{text}}}}}'.encode())
    await ann.settle()
    assert "publish" in ann.reply(5)
    await bob.settle()
    assert bob.data_of("raw:a") == [json.loads(text)]
    assert [m.data for m in (await hub.room("raw:a").history()).messages] == [json.loads(text)]


# -- frames -------------------------------------------------------------------------------------------


async def test_binary_frames_are_read_like_text(world: World) -> None:
    """Protocol 1.1."""
    hub = plain(world)
    await hub.start()
    client = world.client(hub)
    client.transport.message(b'{"id":1,"connect":{"token":"ann"}}')
    client.transport.message('{"id":2,"ping":{}}')
    await client.settle()
    assert list(client.replies) == [1, 2]


async def test_a_text_frame_with_a_lone_surrogate(world: World) -> None:
    """W3: some hosts let one through; it is not UTF-8."""
    client = await world.join(plain(world), "ann")
    client.transport.message('{"id":5,"rpc":{"method":"\ud800"}}')
    client.say(b'{"id":6,"subscribe":{"channel":"raw:\xc3"}}')
    await client.settle()
    for id in (5, 6):
        assert client.reply(id)["error"] == {"code": 107, "message": "not UTF-8"}


async def test_a_frame_that_is_too_large(world: World) -> None:
    """W3, T8: 1009 at the limit, counted in bytes, before anything is decoded."""
    hub = plain(world, limits=Limits(max_frame=1000))
    client = await world.join(hub, "ann")
    client.say(b'{"id":5,"ping":{}}' + b" " * (1000 - 18))
    await client.settle()
    assert client.answered(5)
    client.say("é" * 501)
    await client.settle()
    assert client.closed == (1009, "message too big")
    assert hub.statistics().sessions == 0


async def test_a_message_that_is_too_large(world: World) -> None:
    """T8: 106, and the connection lives; also when it only grows too large by being made canonical."""
    hub = plain(world, limits=Limits(max_publication=1000))
    client = await world.join(hub, "ann", "raw:a")
    await client.call("publish", channel="raw:a", data="x" * 998)
    error = await client.refused("publish", channel="raw:a", data="x" * 999)
    assert error == {"code": 106, "message": "a message has at most 1000 bytes"}
    client.say(b'{"id":77,"publish":{"channel":"raw:a","data":[%b0]}}' % (b"1e9," * 249))
    await client.settle()
    assert client.reply(77)["error"]["code"] == 106
    assert client.offsets_of("raw:a") == [1]


async def test_pongs_are_free_of_answers_and_unasked_ones_harmless(world: World) -> None:
    """F4."""
    client = await world.join(plain(world), "ann")
    heard = len(client.units)
    for _ in range(50):
        client.say(b"{}")
    client.say(b"{}\n{}\n\n{}")
    await client.settle()
    assert len(client.units) == heard
    assert client.closed is None


async def test_too_many_rooms(world: World) -> None:
    """F1: 106, and leaving one makes room."""
    hub = plain(world, limits=Limits(max_rooms=3))
    client = await world.join(hub, "ann", "raw:1", "raw:2", "raw:3")
    error = await client.refused("subscribe", channel="raw:4")
    assert error == {"code": 106, "message": "at most 3 rooms"}
    await client.call("unsubscribe", channel="raw:1")
    await client.call("subscribe", channel="raw:4")
    assert hub.statistics().totals is not None
    assert hub.statistics().totals["limits{rooms}"] == 1


# -- rates (F1) ---------------------------------------------------------------------------------------


async def test_too_many_commands(world: World) -> None:
    """F1: 111 with retry_after, and all is well again after that time."""
    hub = plain(world, limits=Limits(commands=Rate(rate=10, burst=5)))
    client = await world.join(hub, "ann")
    ids = [client.ask("ping") for _ in range(6)]
    await client.settle()
    outcome = [client.reply(id).get("error", {}).get("code", 0) for id in ids]
    assert outcome == [0, 0, 0, 0, 111, 111]  # connect took one of the five
    error = client.reply(ids[-1])["error"]
    assert error == {"code": 111, "message": "too many requests", "temporary": True, "retry_after": 0.1}
    await world.clock.advance(0.1)
    assert await client.call("ping") == {}
    assert (await client.refused("ping"))["code"] == 111


async def test_who_goes_on_after_refusals_is_closed(world: World) -> None:
    """F1: then a close if it goes on; the others notice nothing."""
    hub = plain(world, limits=Limits(commands=Rate(rate=10, burst=5)))
    bob = await world.join(hub, "bob", "raw:a")
    client = await world.join(hub, "ann")
    for _ in range(20):
        client.ask("ping")
    await client.settle()
    assert client.closed == (3013, "too many requests")
    assert await bob.call("publish", channel="raw:a", data=1)
    assert bob.data_of("raw:a") == [1]


async def test_a_flood_of_pongs_is_closed_too(world: World) -> None:
    """F1: a tenth of a command each."""
    hub = plain(world, limits=Limits(commands=Rate(rate=10, burst=5)))
    client = await world.join(hub, "ann")
    client.say(b"\n".join([b"{}"] * 60))
    await client.settle()
    assert client.close_code == 3013


async def test_bad_units_cost_as_much_as_good_ones(world: World) -> None:
    """F1."""
    hub = plain(world, limits=Limits(commands=Rate(rate=10, burst=5)))
    client = await world.join(hub, "ann")
    for id in range(10, 30):
        client.tell({"id": id, "subscribe": 1})
    await client.settle()
    assert client.close_code == 3013
    assert [client.reply(id)["error"]["code"] for id in range(10, 17)] == [107] * 4 + [111] * 3


async def test_too_many_bytes(world: World) -> None:
    """F1: 16 MiB at once, 1 MiB a second; here a thousand."""
    hub = plain(world, limits=Limits(inbound=Rate(rate=100, burst=1000)))
    client = await world.join(hub, "ann")
    client.say(b'{"id":5,"ping":{}}' + b" " * 850)
    await client.settle()
    assert client.answered(5)
    await world.clock.advance(1)
    client.say(b'{"id":6,"ping":{}}' + b" " * 300)
    await client.settle()
    assert client.closed == (3013, "too many bytes")


# -- insides ------------------------------------------------------------------------------------------


def assert_no_insides(client: RawClient) -> None:
    """No text of ours but what is documented: no trace, no path, no class of ours."""
    said = client.text + repr(client.closed)
    for word in ("Traceback", "rtkit/", ".py", "msgspec", "line 1", "object at 0x", "Error("):
        assert word not in said, said


@pytest.fixture
def broken() -> Callable[[], None]:
    def fail() -> None:
        raise ZeroDivisionError("secret detail")

    return fail


async def test_the_text_of_an_exception_never_reaches_the_peer(
    world: World, errors: Any, broken: Callable[[], None]
) -> None:
    """W3, api 13: `internal` with a reference, which stands in the log beside the trace."""
    hub = world.hub()
    rooms = hub.rooms("r:{x}", publishes=object)
    fail_in = "authorize"

    @rooms.authorize
    async def authorize(ctx: Context[Any, Any]) -> Grant:
        if fail_in == "authorize":
            broken()
        return ALL

    @rooms.on_join
    async def joined(ctx: Context[Any, Any]) -> None:
        if fail_in == "on_join":
            broken()

    @rooms.on(object, name="do")
    async def do(ctx: Context[Any, Any], message: Any) -> None:
        broken()

    client = await world.join(hub, "ann")
    failures = [await client.refused("subscribe", channel="r:a")]
    fail_in = "on_join"
    failures.append(await client.refused("subscribe", channel="r:a"))
    fail_in = "handler"
    failures.append(await client.refused("publish", channel="r:a", data={"event": "do"}))
    for failure, record in zip(failures, errors(), strict=True):
        assert failure["code"] == 100
        assert failure["temporary"] is True
        reference = failure["message"].removeprefix("internal error (reference ").removesuffix(")")
        assert reference in record.getMessage()
        assert record.exc_info is not None
        assert "ann" in (record.getMessage() + str(getattr(record, "user", "")))
    assert "secret" not in client.text
    assert "Zero" not in client.text
    assert hub.statistics().rooms == 0
