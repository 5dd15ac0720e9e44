"""The HTTP API's door: keys, methods, bodies, statuses."""

from __future__ import annotations

import asyncio
import hmac
import json
import pickle
from typing import Any

import pytest

from rtkit import BrokerUnavailable, Hub, Limits, UsageError, anonymous
from rtkit.brokers import MemoryBroker
from rtkit.ext.http_api import HttpApi
from rtkit.hosting.endpoints import Request, Response
from tests.unit.ext.conftest import KEY, Caller, World, declare

HELLO = json.dumps({"channel": "kept:a", "data": "hello"}).encode()


def hub() -> Hub[Any]:
    return declare(Hub(authenticate=anonymous))


# -- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", [], [""], ()])
def test_there_is_no_api_without_a_key(key: Any) -> None:
    with pytest.raises(UsageError, match="is missing"):
        HttpApi(hub(), key=key)


@pytest.mark.parametrize(
    "key",
    [
        "too-short-a-key",
        "a key with spaces in it",
        "a-key-with-a-newline\n",
        "ein-schlüssel-mit-umlaut",
        b"bytes-are-no-string",
        [KEY, "short"],
        [KEY, ""],
        [KEY, None],
    ],
)
def test_a_bad_key_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(UsageError, match="key of the HTTP API") as caught:
        HttpApi(hub(), key=key)
    for each in [key] if isinstance(key, str | bytes) else key:
        assert not each or str(each) not in str(caught.value)


def test_sixteen_characters_are_enough() -> None:
    HttpApi(hub(), key="0123456789abcdef")


def test_nothing_of_it_shows_the_key() -> None:
    api = HttpApi(hub(), key=[KEY, f"{KEY}-2"])
    assert repr(api).endswith(", 2 keys>") and KEY not in repr(api)
    kept = [getattr(api, name) for name in HttpApi.__slots__ if name != "_hub"]
    assert KEY.encode() not in pickle.dumps(kept)


SHOWN = {
    "header": {"x-api-key": KEY},
    "spaces around it": {"x-api-key": f" {KEY} "},
    "authorization": {"authorization": f"apikey {KEY}"},
    "another case": {"authorization": f"ApiKey  {KEY}"},
    "beside a bearer token": {"x-api-key": KEY, "authorization": "Bearer something"},
}


@pytest.mark.parametrize("headers", SHOWN.values(), ids=SHOWN)
async def test_a_key_may_be_shown_like_this(caller: Caller, headers: dict[str, str]) -> None:
    response = await caller.api.handle(Request("POST", "publish", headers), HELLO)
    assert response.status == 200


NOT_SHOWN = {
    "nothing": {},
    "empty": {"x-api-key": ""},
    "another one": {"x-api-key": "correct-horse-battery-stable"},
    "the beginning of it": {"x-api-key": KEY[:-1]},
    "more than it": {"x-api-key": KEY + "x"},
    "another case": {"x-api-key": KEY.upper()},
    "twice": {"x-api-key": f"{KEY}, {KEY}"},
    "latin-1": {"x-api-key": "ÿ" * 28},
    "beyond latin-1": {"x-api-key": "ключ" * 7},
    "a lone surrogate": {"x-api-key": "\udc80" * 28},
    "NUL": {"x-api-key": f"{KEY}\0"},
    "huge": {"x-api-key": KEY * 10_000},
    "bearer": {"authorization": f"Bearer {KEY}"},
    "bare": {"authorization": KEY},
    "scheme alone": {"authorization": "apikey"},
    "three words": {"authorization": f"apikey {KEY} {KEY}"},
    "a wrong one beside a right one": {"x-api-key": "wrong", "authorization": f"apikey {KEY}"},
    "a cookie": {"cookie": f"api_key={KEY}; X-API-Key={KEY}"},
    "another header": {"api-key": KEY},
}


@pytest.mark.parametrize("headers", NOT_SHOWN.values(), ids=NOT_SHOWN)
async def test_without_a_key_nothing_is_done(world: World, headers: dict[str, str]) -> None:
    response = await world.api.handle(Request("POST", "publish", headers), HELLO)
    assert response.status == 401
    assert dict(response.headers)["www-authenticate"] == "apikey"
    assert KEY.encode() not in response.body
    assert (await world.hub.room("kept:a").history()).messages == []
    assert world.api.statistics().unauthorised == 1


async def test_without_a_key_nothing_is_learned(world: World) -> None:
    """Neither what commands there are, nor how large a body may be, nor that a body is none."""
    answers = [
        await world.api.handle(Request("POST", endpoint, headers), body)
        for endpoint in ("publish", "no-such-command")
        for headers in ({}, {"content-length": "999999999"})
        for body in (b"", HELLO, b"{", b"x" * (world.api.max_body + 1))
    ]
    assert len({(each.status, each.body) for each in answers}) == 1


async def test_while_keys_are_changed_both_hold(world: World) -> None:
    old, new = "the-old-key-0123456789", "the-new-key-0123456789"
    api = HttpApi(world.hub, key=[old, new])
    seen = [
        (await api.handle(Request("POST", "info", {"x-api-key": key}), b"{}")).status
        for key in (old, new, "neither-of-the-two-keys")
    ]
    assert seen == [200, 200, 401]


async def test_keys_are_compared_in_constant_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hmac.compare_digest, with all of them, and always with as many bytes."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    api = HttpApi(world.hub, key=[KEY, "another-key-0123456789"])
    for shown in (KEY, "another-key-0123456789", "", "x", "ключ", "x" * 5_000):
        await api.handle(Request("POST", "info", {"x-api-key": shown}), b"{}")
    assert len(compared) == 12
    assert {len(each) for pair in compared for each in pair} == {32}


# -- methods and endpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_only_post_is_taken(caller: Caller, method: str) -> None:
    response = await caller.api.handle(Request(method, "publish", {"x-api-key": KEY}), HELLO)
    assert response.status == 405
    assert dict(response.headers)["allow"] == "POST"
    assert (response.body == b"") == (method == "HEAD")


async def test_no_page_of_another_site_may_read_an_answer(caller: Caller) -> None:
    for method in ("POST", "OPTIONS"):
        headers = {"x-api-key": KEY, "origin": "https://evil.example"}
        response = await caller.api.handle(Request(method, "info", headers), b"{}")
        assert not [name for name, _ in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("endpoint", ["", "nothing", "rpc", "Publish", "__class__", "map_publish"])
async def test_an_unknown_command_is_404(caller: Caller, endpoint: str) -> None:
    status, text = await caller.send(endpoint, b"{}")
    assert status == 404
    assert "publish, broadcast" in text and "batch" in text


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type_does_not_matter(caller: Caller, kind: str) -> None:
    assert (await caller.send("publish", HELLO, content_type=kind))[0] == 200


# -- bodies -----------------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": b"",
    "space": b"  ",
    "no JSON": b"channel=kept:a&data=1",
    "cut": HELLO[:-1],
    "two": HELLO + HELLO,
    "trailing": HELLO + b"x",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"publish"',
    "a byte order mark": b"\xef\xbb\xbf" + HELLO,
    "UTF-16": HELLO.decode().encode("utf-16"),
    "not UTF-8 in a name": b'{"channel":"kept:\xff","data":1}',
    "a lone surrogate in a name": b'{"channel":"kept:\\ud800","data":1}',
    "a lone surrogate in data": b'{"channel":"kept:a","data":"\\ud800"}',
    "NaN": b'{"channel":"kept:a","data":NaN}',
    "infinity": b'{"channel":"kept:a","data":-Infinity}',
    "deep": b'{"channel":"kept:a","data":' + b"[" * 500 + b"]" * 500 + b"}",
    "deep and cut": b'{"channel":"kept:a","data":' + b"[" * 200_000,
    "deep where nobody looks": b'{"channel":"kept:a","data":1,"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "a channel that is a number": b'{"channel":1,"data":1}',
    "a channel that is a list": b'{"channel":["kept:a"],"data":1}',
    "tags that are a list": b'{"channel":"kept:a","data":1,"tags":[1]}',
    "a flag that is a number": b'{"channel":"kept:a","data":1,"skip_history":0}',
    "a version that is huge": b'{"channel":"kept:a","data":1,"version":1e400}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_body_is_400(world: World, body: bytes) -> None:
    status, text = await world.caller.send("publish", body)
    assert status == 400
    assert text.startswith("bad request: ") and len(text) < 300
    assert (await world.hub.room("kept:a").history()).messages == []
    assert world.api.statistics().refused == 1


async def test_the_fault_is_named(caller: Caller) -> None:
    _, text = await caller.send("publish", b'{"channel":1,"data":1}')
    assert text == "bad request: Expected `str | null`, got `int` - at `$.channel`\n"


POISON = {
    "bytes": b'"\xff"',
    "a number beyond a double": b"1e999",
    "an integer of 5,000 digits": b"9" * 5_000,
}


@pytest.mark.parametrize("data", POISON.values(), ids=POISON)
@pytest.mark.parametrize("channel", ["kept:a", "live:a", "chat:a"])
async def test_poison_in_a_message_is_refused(world: World, channel: str, data: bytes) -> None:
    body = b'{"channel":"%b","data":%b}' % (channel.encode(), data)
    status, answer = await world.caller.send("publish", body)
    assert status == 400 or (status, answer["error"]["code"]) == (200, 107)
    assert world.hub.engine.counters.get("publications") == 0


async def test_a_body_has_as_many_bytes_as_allowed(world: World) -> None:
    api = HttpApi(world.hub, key=KEY, max_body=len(HELLO))
    caller = Caller(api)
    assert (await caller.send("publish", HELLO))[0] == 200
    assert await caller.send("publish", HELLO + b" ") == (
        413,
        f"a body has {len(HELLO)} bytes at the most\n",
    )
    assert api.statistics().refused == 1


@pytest.mark.parametrize("length", ["8388609", "9" * 5_000])
def test_too_large_a_body_is_not_waited_for(length: str) -> None:
    api = HttpApi(hub(), key=KEY)
    response = api.screen(Request("POST", "publish", {"x-api-key": KEY, "content-length": length}))
    assert response is not None and response.status == 413


@pytest.mark.parametrize("length", ["4194304", "", "-1", "many", "²"])
def test_any_other_is_read(length: str) -> None:
    """What is no number the server should have refused; here the body is counted all the same."""
    api = HttpApi(hub(), key=KEY)
    assert api.screen(Request("POST", "publish", {"x-api-key": KEY, "content-length": length})) is None


def test_the_bound_follows_the_hubs() -> None:
    small = Hub(authenticate=anonymous, limits=Limits(max_publication=1000))
    assert HttpApi(small, key=KEY).max_body == 8000
    for bound in (0, -1):
        with pytest.raises(ValueError, match="max_body=…"):
            HttpApi(small, key=KEY, max_body=bound)


# -- errors -----------------------------------------------------------------------------------------------


async def test_errors_may_be_statuses(world: World) -> None:
    """For callers that ask for it: they take every 200 for a success."""
    wanted = {
        404: {"channel": "nowhere", "data": 1},
        400: {"channel": "kept:a"},
        413: {"channel": "kept:a", "data": "x" * world.hub.limits.max_publication},
    }
    for status, fields in wanted.items():
        body = json.dumps(fields).encode()
        found, answer = await world.caller.send("publish", body, x_centrifugo_error_mode="transport")
        assert found == status
        assert list(answer) == ["code", "message"]
        assert (await world.caller.send("publish", body))[0] == 200
    since = {"channel": "kept:a", "limit": 1, "since": {"epoch": "another", "offset": 7}}
    found, _ = await world.caller.send(
        "history", json.dumps(since).encode(), x_centrifugo_error_mode="transport"
    )
    assert found == 416
    found, answer = await world.caller.send("publish", HELLO, x_centrifugo_error_mode="transport")
    assert (found, list(answer)) == (200, ["result"])


class Away(MemoryBroker):
    """A broker that cannot be reached."""

    async def open(self, sink: Any) -> None:
        raise BrokerUnavailable("cannot reach redis://user:secret@db")


async def test_while_the_hub_cannot_start_it_is_503() -> None:
    api = HttpApi(declare(Hub(authenticate=anonymous, broker=Away())), key=KEY)
    response = await api.handle(Request("POST", "publish", {"x-api-key": KEY}), HELLO)
    assert response.status == 503
    assert dict(response.headers)["retry-after"] == "5"
    assert b"secret" not in response.body


async def test_while_the_hub_closes_it_is_503(world: World) -> None:
    world.hub.engine.accepting = False
    assert (await world.caller.send("publish", HELLO))[0] == 503
    assert world.hub.engine.counters.get("publications") == 0


async def test_a_node_is_drained_by_whoever_has_the_key(world: World) -> None:
    """L2: for a preStop hook, which may come twice."""
    assert (await world.caller.api.handle(Request("POST", "drain"), b"")).status == 401
    assert world.hub._not_ready() is None
    assert (await world.caller.send("drain", b'{"spread":-1}'))[0] == 400
    assert world.hub._not_ready() is None
    for body in (b"", b'{"spread":0,"timeout":2.5}'):
        assert await world.caller.send("drain", body) == (200, {"result": {}})
        assert world.hub._not_ready() == 1.0
        assert world.hub.running


async def test_draining_starts_no_hub() -> None:
    hub = declare(Hub(authenticate=anonymous))
    response = await HttpApi(hub, key=KEY).handle(Request("POST", "drain", {"x-api-key": KEY}), b"{}")
    assert response.status == 200
    assert not hub.running


async def test_the_first_request_starts_the_hub() -> None:
    hub = declare(Hub(authenticate=anonymous))
    api = HttpApi(hub, key=KEY)
    try:
        assert (await api.handle(Request("POST", "info"), b"{}")).status == 401
        assert not hub.running
        assert (await api.handle(Request("POST", "info", {"x-api-key": KEY}), b"{")).status == 400
        assert not hub.running
        assert (await api.handle(Request("POST", "info", {"x-api-key": KEY}), b"{}")).status == 200
        assert hub.running
    finally:
        await hub.aclose()


async def test_a_hub_that_is_declared_wrongly_is_500(errors: None, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(authenticate=anonymous)
    hub.rooms("secret:{x}", publishes=object)  # nobody may join
    api = HttpApi(hub, key=KEY)
    response = await api.handle(Request("POST", "info", {"x-api-key": KEY}), b"{}")
    assert response.status == 500
    reference = response.body.decode().partition("(reference ")[2].partition(")")[0]
    assert reference and b"secret" not in response.body
    assert reference in caplog.text


def test_another_loop_is_told_from_a_fault_of_the_caller(errors: None) -> None:
    async def main() -> Response:
        hub = declare(Hub(authenticate=anonymous))
        api = HttpApi(hub, key=KEY)
        async with hub:
            request = Request("POST", "info", {"x-api-key": KEY})
            return await asyncio.to_thread(asyncio.run, api.handle(request, b"{}"))

    assert asyncio.run(main()).status == 500


async def test_what_it_counts(world: World) -> None:
    await world.caller.call("info")
    await world.caller.error("publish", channel="nowhere", data=1)
    await world.caller.send("nothing", b"{}")
    await world.api.handle(Request("POST", "info"), b"{}")
    await world.caller.send("info", b"{}", method="GET")
    now = world.api.statistics()
    assert (now.answered, now.unauthorised, now.refused) == (2, 1, 2)
