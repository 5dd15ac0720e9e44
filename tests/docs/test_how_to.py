"""The how-to pages' code runs, and so does the front page's."""

from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any

import httpx2
import pytest
import websockets.asyncio.client
import websockets.asyncio.server

from rtkit import Identity, Limits, Presence
from rtkit.brokers import MemoryBackend
from rtkit.client import connect
from rtkit.hub.lease import LEASE
from rtkit.hub.relay import PATIENCE
from rtkit.hub.versions import SETTLED
from rtkit.testing import TestHub
from rtkit.testing.conformance.suite import HOOKS
from tests.conformance.weather import OutdoorBroker, Weather
from tests.docs.blocks import ROOT, Block, blocks, prose
from tests.support.servers import serve_asgi

MOUNT = "docs/how-to/mount.md"
PRIMITIVES = "docs/how-to/primitives.md"
BROKER = "docs/how-to/write-a-broker.md"
PRESENCE = "docs/how-to/presence.md"
ACCESS = "docs/how-to/end-access.md"
UPGRADE = "docs/how-to/upgrade.md"


def run(*sources: Block) -> Any:
    module = types.ModuleType("page")
    for block in sources:
        exec(block.code(), vars(module))
    return module


# -- mounting -----------------------------------------------------------------------------------------

APPS = list(blocks(MOUNT, "python", "app"))


@pytest.mark.parametrize("block", APPS, ids=[f"line {block.line}" for block in APPS])
async def test_it_is_served_and_joined(block: Block) -> None:
    page = run(block)
    async with serve_asgi(page.app, lifespan="on") as port:
        assert page.hub.statistics().running
        mount = "" if page.app is page.hub else "/rt"
        base = f"http://127.0.0.1:{port}"
        async with (
            connect(base + mount) as client,
            client.join("lobby") as room,
            httpx2.AsyncClient() as http,
        ):
            assert (await http.get(f"{base}{mount}/ready")).status_code == 204
            if hasattr(page, "announce"):
                assert (await http.post(f"{base}/announce?text=news")).json() == 1
                assert (await http.post(f"{base}/announce-from-a-thread?text=more")).status_code == 200
            else:
                await room.send("news")
            async with asyncio.timeout(5):
                assert (await anext(room)).data == "news"
    assert not page.hub.statistics().running


def test_the_other_lifespan_sets_the_state() -> None:
    assert sum("hub.state = " in block.text for block in APPS) == 1


# -- primitives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["starlette", "websockets"])
def test_the_page_is_the_example(kind: str) -> None:
    (block,) = blocks(PRIMITIVES, "python", kind)
    example = (ROOT / f"examples/primitives_{kind}.py").read_text()
    code = example.partition('"""\n\n')[2].partition('\n\nif __name__ == "__main__":')[0]
    assert block.text.strip() == code.strip()


async def hear_each_other(url: str) -> None:
    async with (
        asyncio.timeout(5),
        websockets.asyncio.client.connect(url) as ann,
        websockets.asyncio.client.connect(url) as bob,
    ):
        await ann.send("hello")
        assert await ann.recv() == "hello"
        await bob.send("and hello")
        assert await ann.recv() == "and hello"


async def test_a_chat_on_starlette() -> None:
    page = run(*blocks(PRIMITIVES, "python", "starlette"))
    async with serve_asgi(page.app) as port:
        await hear_each_other(f"ws://127.0.0.1:{port}/ws")


async def test_a_chat_on_websockets() -> None:
    page = run(*blocks(PRIMITIVES, "python", "websockets"))
    async with websockets.asyncio.server.serve(page.chat, "127.0.0.1", 0, ping_interval=None) as server:
        port = server.sockets[0].getsockname()[1]
        await hear_each_other(f"ws://127.0.0.1:{port}/ws")


def test_the_parts_exist() -> None:
    import re

    from rtkit import primitives
    from tests.docs.blocks import table

    for row in table(PRIMITIVES, "part", "for"):
        for name in re.findall(r"`(\w+)`", row["part"]):
            assert hasattr(primitives, name)


# -- brokers ------------------------------------------------------------------------------------------

bus_page = run(*blocks(BROKER, "python", "broker"), *blocks(BROKER, "python", "test"))
#: The page's own suite, collected by pytest: the page's broker keeps its promises.
TestBus = bus_page.TestBus


def outages_page() -> Any:
    """The page's suite with outages, for a server that somebody brought."""
    page = run(*blocks(BROKER, "python", "broker"), *blocks(BROKER, "python", "test"))
    page.MyServer = Server
    page.MyBroker = lambda server: OutdoorBroker(server.weather)
    for block in blocks(BROKER, "python", "outages"):
        exec(block.code(), vars(page))
    return page


class Server:
    """A server that can be stopped."""

    async def __aenter__(self) -> Server:
        self.weather = Weather(MemoryBackend())
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def stop(self) -> None:
        self.weather.cut()

    kill = stop

    async def start(self) -> None:
        await self.weather.mend()


OUTAGES = [
    "test_after_an_outage_subscriptions_are_there_without_help",
    "test_after_a_restart_subscriptions_are_there_without_help",
]


@pytest.mark.parametrize("promise", OUTAGES)
async def test_the_pages_hooks_take_the_backend_away(promise: str) -> None:
    suite = outages_page().TestMine()
    async with suite.cluster() as make, suite.open(make) as first, suite.open(make) as second:
        await getattr(suite, promise)((first, second), "topic")
    assert suite.server.weather.era >= 1


def test_the_pages_excuse_is_one() -> None:
    page = run(
        *blocks(BROKER, "python", "broker"),
        *blocks(BROKER, "python", "test"),
        *blocks(BROKER, "python", "excuse"),
    )
    page.TestDeaf().test_no_promise_was_taken_out()


def test_the_page_knows_what_a_suite_may_say() -> None:
    import re

    from rtkit.testing.conformance import VERSION, BrokerSuite, promises
    from tests.docs.blocks import table

    said = [re.findall(r"`(\w+)`", row["name"]) for row in table(BROKER, "name", "what it says")]
    assert all(hasattr(BrokerSuite, name) for names in said for name in names)
    assert {name for names in said for name in names} >= {*HOOKS, "left_out", "advance", "patience"}
    assert VERSION == 1
    names = {name for name, _ in promises(BrokerSuite)}
    excused = {name for name in names if "self.needs(" in inspect.getsource(getattr(BrokerSuite, name))}
    line = f"rtkit conformance: TestBus: {len(names - excused)} promises kept, {len(excused)} excused"
    assert line in prose(BROKER)


async def test_two_hubs_on_the_pages_broker() -> None:
    page = run(*blocks(BROKER, "python", "broker"), *blocks(BROKER, "python", "use"))
    async with TestHub(page.first) as one, TestHub(page.second) as two:
        ann, bob = await one.connect(Identity("ann")), await two.connect(Identity("bob"))
        async with ann.join("lobby") as hers, bob.join("lobby") as his:
            await hers.send("hello")
            assert (await two.next(his)).data == "hello"


def test_the_protocols_have_these_methods() -> None:
    import re

    from rtkit import brokers
    from tests.docs.blocks import table

    known: set[str] = set()
    for row in table(BROKER, "protocol", "methods", "what hubs can do with it"):
        protocol = getattr(brokers, row["protocol"].strip("`"))
        listed = set(re.findall(r"`(\w+)`", row["methods"]))
        known = known if known else listed
        has = {name for name in dir(protocol) if not name.startswith("_")}
        assert has == listed | known


# -- the front page -----------------------------------------------------------------------------------


async def test_the_front_pages_chat() -> None:
    page = run(*blocks("README.md", "python", "server"))
    (client,) = blocks("README.md", "python", "client")
    async with serve_asgi(page.app, lifespan="on") as port:
        source = client.text.replace("8000", str(port))
        exec(Block(client.page, client.line, client.info, source).code(), vars(page))
        printed: asyncio.Queue[str] = asyncio.Queue()
        page.print = printed.put_nowait
        talking = [asyncio.create_task(page.talk(name)) for name in ("ann", "bob")]
        try:
            async with asyncio.timeout(5):
                # Each hears both, whoever came first: `rewind` brings what was said before.
                heard = sorted([await printed.get() for _ in range(4)])
            assert heard == ["ann: hello", "ann: hello", "bob: hello", "bob: hello"]
        finally:
            for task in talking:
                task.cancel()
            await asyncio.wait(talking)


def test_the_server_is_about_thirty_lines() -> None:
    (server,) = blocks("README.md", "python", "server")
    assert len([line for line in server.text.splitlines() if line.strip()]) <= 30


# -- presence -----------------------------------------------------------------------------------------


async def test_it_is_shown_who_is_there() -> None:
    page = run(*blocks(PRESENCE, "python", "presence"))
    async with TestHub(page.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        async with ann.join("chat:lobby"), bob.join("chat:lobby"), bob.join("chat:other"):
            await t.settle()
            assert await page.names("chat:lobby") == ["Ann", "Bob"]
            assert await page.names("chat:other") == ["Bob"]
            assert await ann.call(["chat:other", "chat:lobby"], name="busiest") == "chat:lobby"
        await t.settle()
        assert await page.names("chat:lobby") == []


# -- ending access, and upgrading -----------------------------------------------------------------------


async def test_access_is_ended() -> None:
    page = run(*blocks(ACCESS, "python", "access"))
    async with TestHub(page.hub) as t:
        ann, bob = await t.connect(Identity("ann")), await t.connect(Identity("bob"))
        assert await ann.call("", name="my devices") == 1
        async with bob.join("chat:a"):
            reached = await page.mute("bob", "chat:a")
            assert (reached.sessions, reached.complete) == (1, True)
        assert (await page.sign_out_everywhere("ann")).sessions == 1
        assert (await page.lock_out("bob", 60)).sessions == 1
        await t.settle()
        assert ann.state == bob.state == "closed"


def test_the_times_are_those_of_the_code() -> None:
    assert f"after {PATIENCE:g} s and one repetition" in prose(ACCESS)
    assert f"lease for up to {LEASE:g} s" in prose(ACCESS)
    assert f"come back to it for {Limits().grace:g} s" in prose(ACCESS)
    assert f"every {Limits().position_check:g} s" in prose(ACCESS)
    assert SETTLED == 600 and "after ten minutes more" in prose(UPGRADE)


def test_the_numbers_are_the_defaults() -> None:
    policy, text = Presence(), prose(PRESENCE)
    assert f"more than {policy.listed:,} clients" in text
    assert f"more than {policy.listed_size // 1024} KiB" in text
    assert f"({Limits().grace:g} s, `Limits.grace`)" in text
