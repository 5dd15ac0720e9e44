"""Clients that are not rtkit's own get the base protocol and nothing that rtkit adds (W1)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from rtkit import Context, Grant, History, Hub, Limits, Reject
from rtkit.primitives import Rate
from rtkit.wire.units import (
    ClientInfo,
    ConnectResult,
    Disconnect,
    ErrorBody,
    HistoryResult,
    MessagePush,
    Publication,
    PublishResult,
    Push,
    RefreshPush,
    RefreshResult,
    RpcResult,
    SubRefreshResult,
    SubscribeResult,
    UnsubscribePush,
)
from tests.support.rawclient import RawClient
from tests.unit.hub.conftest import World

ALL = Grant("publish", "signal", "history")

# What the base protocol knows, by structure; of ours only `retry_after`, which protocol 2.3 says goes to everybody.
BASE: dict[type[Any], set[str]] = {
    ConnectResult: {"client", "version", "data", "subs", "expires", "ttl", "ping", "pong", "session", "node"},
    SubscribeResult: {
        "recoverable",
        "positioned",
        "epoch",
        "offset",
        "publications",
        "recovered",
        "was_recovering",
        "expires",
        "ttl",
        "data",
    },
    PublishResult: {"data"},
    HistoryResult: {"publications", "epoch", "offset"},
    RpcResult: {"data"},
    RefreshResult: {"client", "version", "expires", "ttl"},
    SubRefreshResult: {"expires", "ttl"},
    ErrorBody: {"code", "message", "temporary", "retry_after"},
    Publication: {"data", "offset", "info"},
    ClientInfo: {"user", "client"},
    Push: {"channel", "pub", "unsubscribe", "message", "refresh"},
    UnsubscribePush: {"code", "reason"},
    MessagePush: {"data"},
    RefreshPush: {"expires", "ttl"},
    Disconnect: set(),
}
METHODS: dict[str, type[Any]] = {
    "connect": ConnectResult,
    "subscribe": SubscribeResult,
    "publish": PublishResult,
    "history": HistoryResult,
    "rpc": RpcResult,
    "refresh": RefreshResult,
    "sub_refresh": SubRefreshResult,
    "error": ErrorBody,
    "pub": Publication,
    "info": ClientInfo,
    "message": MessagePush,
}


def check(kind: type[Any], unit: dict[str, Any]) -> None:
    assert set(unit) <= BASE[kind], f"{kind.__name__} has {set(unit) - BASE[kind]}"
    for publication in unit.get("publications", ()):
        check(Publication, publication)
    if kind is ConnectResult:
        for sub in unit.get("subs", {}).values():
            check(SubscribeResult, sub)
    if "info" in unit:
        check(ClientInfo, unit["info"])


def check_all(client: RawClient) -> None:
    """Every unit the client has heard is of the base protocol, field by field."""
    for unit in client.units:
        if "push" in unit:
            check(Push, unit["push"])
            for name, body in unit["push"].items():
                if name in METHODS:
                    check(METHODS[name], body)
                elif name == "unsubscribe":
                    assert set(body) == {"code", "reason"}
        elif unit:
            assert set(unit) - {"id"} <= {*METHODS, "unsubscribe", "ping", "signal"}
            for name, body in unit.items():
                if name in METHODS:
                    check(METHODS[name], body)


@dataclass
class Say:
    text: str


def everything(world: World) -> Hub[Any]:
    hub = world.hub(limits=Limits(commands=Rate(rate=50, burst=60)))
    hub.rooms("raw:{x}", publishes=object, grant=ALL, history=History(3, ttl=600))
    hub.rooms("live:{x}", publishes=object, grant=ALL)
    typed = hub.rooms("chat:{x}", publishes=Say, grant=ALL, history=History(9, ttl=600))
    hub.rooms(
        "mine:{x}",
        publishes=object,
        grant=ALL,
        history=History(9, ttl=600),
        auto_join=lambda i: [f"mine:{i.user}"],
    )

    @typed.on(Say)
    async def say(ctx: Context[Any, Say], message: Say) -> str:
        await ctx.room.publish(message)
        return "saved"

    @hub.rpc(object, name="wait")
    async def wait(ctx: Context[Any, Any], message: Any) -> Any:
        ctx.session.send("psst")
        raise Reject("later", retry_after=5)

    return hub


async def test_a_life_in_the_base_protocol(world: World) -> None:
    """W1: through everything a client can meet, not one field or push of ours."""
    hub = everything(world)
    eve = await world.join(hub, "eve", "raw:a", "live:a", "chat:a", rt=False)
    ann = await world.join(hub, "ann", "raw:a", "live:a", "chat:a")
    epoch = eve.reply(2)["subscribe"]["epoch"]
    await eve.call("publish", channel="raw:a", data=1)
    await eve.call("publish", channel="live:a", data=1)
    await eve.call("publish", channel="chat:a", data={"event": "Say", "data": {"text": "hi"}}, key="k")
    await ann.call("publish", channel="raw:a", data=2)
    await ann.call("signal", channel="live:a", event="typing")
    hub.room("raw:a").signal({"x": 1})
    await eve.call("history", channel="raw:a", limit=-1)
    await eve.refused("rpc", method="wait")
    await eve.refused("presence", channel="raw:a")
    await eve.call("refresh", token="eve")
    await eve.call("sub_refresh", channel="raw:a")
    await hub.user("eve").refresh()
    await eve.call("refresh", token="eve")
    await hub.room("live:a").remove("eve", reason="out")
    await eve.call("unsubscribe", channel="raw:a")
    for n in range(9):
        await hub.publish("raw:a", n)
    await eve.call("subscribe", channel="raw:a", recover=True, epoch=epoch, offset=1)
    await eve.call("unsubscribe", channel="raw:a")
    await eve.call("subscribe", channel="raw:a", rewind=2)
    await hub.room("raw:a").clear()
    await world.advance(30)
    for _ in range(100):
        eve.ask("ping")
    await eve.settle()
    await hub.room("mine:eve").clear()
    await world.settle()
    assert eve.closed == (3010, "continuity lost")
    kinds = {name for push in eve.pushes for name in push} - {"channel"}
    assert kinds == {"pub", "message", "refresh", "unsubscribe"}
    assert {r["error"]["code"] for r in eve.replies.values() if "error" in r} == {103, 111}
    check_all(eve)
    assert "time" in json.dumps(ann.pushes)
    assert "signal" in json.dumps(ann.pushes)


async def test_draining_says_nothing_to_a_foreign_client(world: World) -> None:
    """Protocol 12.2: rt clients are told when to come back; for the others there is the close code."""
    hub = everything(world)
    eve, ann = await world.join(hub, "eve", "raw:a", rt=False), await world.join(hub, "ann", "raw:a")
    closing = asyncio.create_task(hub.aclose())
    await world.clock.settle()
    await closing
    assert eve.closed == ann.closed == (3001, "draining")
    assert eve.pushes == []
    assert ann.pushes == [
        {"disconnect": {"code": 3001, "reason": "draining", "rt": {"min": 0.0, "max": 1.0}}}
    ]
    check_all(eve)


async def test_commands_that_only_rt_clients_know_work_for_others_too(world: World) -> None:
    """W1: what is asked for is answered; what is not is not sent."""
    hub = everything(world)
    eve = await world.join(hub, "eve", "raw:a", rt=False)
    await eve.call("signal", channel="raw:a", event="e")
    first = await eve.call("publish", channel="raw:a", data=1, key="k")
    assert first == await eve.call("publish", channel="raw:a", data=1, key="k") == {}
    assert eve.offsets_of("raw:a") == [1]
    await eve.leave()
    assert eve.close_code == 1000


async def test_an_unknown_version_of_rt_and_unknown_fields(world: World) -> None:
    """W5: what a newer client announces beyond what we know does not keep it out."""
    hub = everything(world)
    await hub.start()
    client = world.client(hub)
    result = await client.connect(
        "ann", rt={"v": 7, "resume": "x", "more": []}, future={"x": 1}, name="n", version="9"
    )
    assert "limits" in result["rt"]


async def test_a_publication_is_encoded_once_for_all(world: World) -> None:
    """W2: the very same bytes go to every member of a kind."""
    hub = everything(world)
    clients = [await world.join(hub, f"u{n}", "raw:a", rt=n % 2 == 0) for n in range(6)]
    await hub.publish("raw:a", {"x": 1})
    await world.settle()
    last = [client.pipe.frames[-1] for client in clients]
    assert len({id(frame) for frame in last}) == 2
    assert all(json.loads(frame)["push"]["pub"]["data"] == {"x": 1} for frame in last)
