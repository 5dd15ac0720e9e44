"""Who has yet to say who it is: little is kept of it, and what an SDK has to say fits that (A1)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rtkit import Credentials, Grant, History, Hub, Identity, Limits
from rtkit.hub.config import STANDING
from rtkit.wire import Command, Connect, RtHello, SubRequest, dumps
from tests.support.webclient import ask
from tests.unit.hub.conftest import World

KIB = 1024
BOUND = 128 * KIB
#: Names as long on the wire as can be: quotation marks are escaped.
ROOMS = [f"{n:03d}" + '"' * 252 for n in range(128)]
LAST = 2**53 - 1
#: A JSON Web Token with much in it, and a resume token of a user with a long name; the longest a server reads.
TOKEN, RESUME = "t" * 8 * KIB, "r" * 4096


def of_size(size: int, **body: Any) -> bytes:
    """A ``connect`` of so many bytes."""
    unit = json.dumps({"id": 1, "connect": {"token": "ann", "rt": {"v": 1}, **body}}).encode()
    return unit.ljust(size)


async def test_a_connect_has_128_kib(world: World) -> None:
    """1009 for a byte more; and who was let in has a frame of 1 MiB."""
    hub = world.hub()
    await hub.start()
    ann, eve = world.client(hub), world.client(hub)
    eve.say(of_size(BOUND + 1))
    ann.say(of_size(BOUND))
    await ann.settle()
    assert eve.closed == (1009, "message too big")
    assert "connect" in ann.reply(1)
    ann.say(b'{"id":2,"ping":{}}'.ljust(hub.max_frame))
    await ann.settle()
    assert ann.answered(2)
    ann.say(b" " * (hub.max_frame + 1))
    await ann.settle()
    assert ann.closed == (1009, "message too big")


async def test_what_waits_behind_it_counts_as_well(world: World) -> None:
    """While ``authenticate`` takes its time, 64 commands of 1 MiB could wait."""
    known = asyncio.Event()

    async def slowly(credentials: Credentials) -> Identity[None]:
        await known.wait()
        return Identity(credentials.token or "")

    hub = world.hub(authenticate=slowly)
    await hub.start()
    ann, eve = world.client(hub), world.client(hub)
    for client, more in ((ann, 0), (eve, 1)):
        client.say(of_size(100 * KIB))
        client.say(b'{"id":2,"ping":{}}'.ljust(28 * KIB + more))
    await ann.settle()
    assert eve.closed == (1009, "message too big")
    assert ann.closed is None
    known.set()
    await ann.settle()
    assert ann.answered(2)
    assert hub.statistics().sessions == 1


async def test_a_frame_bound_that_is_lower_holds(world: World) -> None:
    hub = world.hub(limits=Limits(max_frame=1000))
    await hub.start()
    eve = world.client(hub)
    eve.say(of_size(1001))
    await eve.settle()
    assert eve.closed == (1009, "message too big")


@pytest.mark.parametrize("endpoint", ["sse", "http_stream", "poll"])
async def test_over_http_it_is_the_body(world: World, endpoint: str) -> None:
    hub = world.hub()
    await hub.start()
    found = await ask(hub, "POST", endpoint, of_size(BOUND + 1))
    assert (found.status, found.body) == (413, b"a body has at most 131072 bytes\n")
    assert hub.statistics().connections == 0
    if endpoint == "poll":
        answer = await ask(hub, "POST", endpoint, of_size(BOUND))
        assert (await answer).status == 200
        assert hub.statistics().sessions == 1


async def test_what_is_sent_to_a_session_may_be_larger(world: World) -> None:
    """It is somebody's who was let in."""
    hub = world.hub()
    await hub.start()
    found = await ask(hub, "POST", "send", b" " * (BOUND + 1), headers={"rt-session": "a.b", "rt-seq": "1"})
    assert found.status == 410


# -- what is said by those who may --------------------------------------------------------------------


def by_python(epoch: str) -> bytes:
    """What the Python SDK says when it comes back, at its longest."""
    subs = dict.fromkeys(ROOMS, SubRequest(True, epoch, LAST, True, True))
    return dumps(
        Command(id=1, connect=Connect(token=TOKEN, name="rtkit-py", subs=subs, rt=RtHello(1, RESUME)))
    )


def by_javascript(epoch: str) -> bytes:
    """The browser SDK: ``#introduce`` in client.js."""
    standing = {"presence": True, "marks": True, "recover": True, "epoch": epoch, "offset": LAST}
    body = {
        "token": TOKEN,
        "name": "rtkit-js",
        "subs": dict.fromkeys(ROOMS, standing),
        "rt": {"v": 1, "resume": RESUME},
    }
    return json.dumps({"id": 1, "connect": body}, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("by", [by_python, by_javascript])
def test_the_longest_connect_of_the_sdks_fits(by: Any) -> None:
    """In 64 KiB it would not: 128 rooms, 255 bytes of name each, and a position in each."""
    room_for_data = 16 * KIB
    ours = by("12345678")  # as our brokers make them
    assert 64 * KIB < len(ours) < Limits().max_connect - room_for_data
    longest = by("e" * 128)  # as any broker may
    assert len(longest) < Limits().max_connect - room_for_data
    tokens = len(TOKEN) + len(RESUME)
    assert (len(ours) - tokens) / len(ROOMS) < STANDING


async def test_who_stood_in_128_rooms_comes_back_to_them(world: World) -> None:
    """As long as names and rooms can be, put in by the server."""

    def theirs(identity: Identity[Any]) -> list[str]:
        return [mine.name(x=name) for name in ROOMS]

    hub: Hub[Any] = world.hub()
    mine = hub.rooms(
        "{x}", publishes=object, history=History(5, ttl=60), grant=Grant("publish"), auto_join=theirs
    )
    await hub.start()
    ann = world.client(hub, rt=True)
    first = await ann.connect("ann")
    subs = {
        name: {"recover": True, "epoch": result["epoch"], "offset": result.get("offset", 0)}
        for name, result in first["subs"].items()
    }
    assert set(subs) == set(ROOMS)
    await ann.drop()
    again = world.client(hub, rt=True)
    said = {"id": 1, "connect": {"token": "ann", "subs": subs, "rt": {"v": 1}}}
    again.tell(said)
    await again.settle()
    assert all(each["recovered"] for each in again.reply(1)["connect"]["subs"].values())
