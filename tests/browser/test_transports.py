"""The chat example in Chromium behind proxies that do not let WebSockets through (T7): it connects, soon, and works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from playwright.async_api import Request

from tests.support.browser import Tabs
from tests.support.chatpage import ChatServer, Person, serve_chat
from tests.support.proxies import (
    Fault,
    Proxy,
    accept_and_stay_mute,
    buffer,
    cut_after,
    have_no_time,
    pass_on,
    refuse_upgrades,
    strip_upgrades,
)

#: Seconds to a working connection, at the most.
SOON = 5.0


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with serve_chat() as server:
        yield server


async def enter(person: Person, name: str) -> float:
    """Come in; the seconds it took to be connected."""
    began = time.monotonic()
    await person.enter(name)
    took = time.monotonic() - began
    print(f"{took:.2f} s")  # noqa: T201
    return took


class Traffic:
    """What a page opens from now on."""

    def __init__(self, person: Person) -> None:
        self.opened: list[str] = []
        person.page.on("websocket", lambda _: self.opened.append("websocket"))
        person.page.on("request", self._asked)

    def _asked(self, request: Request) -> None:
        name = request.url.rpartition("/")[2]
        if request.method == "POST" and name in ("sse", "poll"):
            self.opened.append(name)


async def talk(tabs: Tabs, chat: ChatServer, bob: Person) -> None:
    """A conversation both ways, with somebody on a good network."""
    ann = Person(await tabs.open(chat.url))
    await ann.enter("ann")
    await ann.sees("ann (you)", "bob")
    said: Sequence[tuple[str, str]] = [
        *(("ann", f"to bob {number}") for number in range(5)),
        *(("bob", f"to ann {number}") for number in range(5)),
    ]
    await ann.say(*(text for name, text in said if name == "ann"))
    await bob.hears(*said[:5])
    await bob.say(*(text for name, text in said if name == "bob"))
    for person in (ann, bob):
        await person.hears(*said)
        await person.waits_to_send()
    for person in (ann, bob):
        await person.page.close()  # before the server goes, which it would notice


@pytest.mark.parametrize(
    ("fault", "transport"),
    [
        # To a page a refusal is a refusal: one of them is enough, where there is little time.
        pytest.param(refuse_upgrades(b"403 Forbidden"), "sse", marks=pytest.mark.soak),
        (refuse_upgrades(b"502 Bad Gateway"), "sse"),
        pytest.param(refuse_upgrades(b""), "sse", marks=pytest.mark.soak),
        pytest.param(strip_upgrades, "sse", marks=pytest.mark.soak),
        (accept_and_stay_mute(handshake=True), "sse"),
        pytest.param(accept_and_stay_mute(handshake=False), "sse", marks=pytest.mark.soak),
        (buffer, "poll"),
    ],
    ids=["forbidden", "bad gateway", "hangs up", "strips", "mute", "mute from the start", "buffers"],
)
async def test_where_websockets_do_not_get_through(
    chat: ChatServer, tabs: Tabs, fault: Fault, transport: str
) -> None:
    async with Proxy(chat.port, fault) as proxy:
        bob = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/"))
        traffic = Traffic(bob)
        assert await enter(bob, "bob") < SOON
        assert traffic.opened[0] == "websocket"
        assert traffic.opened[-1] == transport
        await talk(tabs, chat, bob)


async def test_streams_that_are_cut_after_a_while_go_on(chat: ChatServer, tabs: Tabs) -> None:
    async with Proxy(chat.port, cut_after(5)) as proxy:
        bob = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/"))
        assert await enter(bob, "bob") < SOON
        await asyncio.sleep(5)  # what is measured is real time
        await talk(tabs, chat, bob)


async def test_a_server_without_time_does_not_cost_the_transport(chat: ChatServer, tabs: Tabs) -> None:
    async with Proxy(chat.port, pass_on) as proxy:
        bob = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/"))
        traffic = Traffic(bob)
        with tabs.expecting("status of 503"):
            proxy.fault = have_no_time
            proxy.cut()  # the connection that the page came by
            await bob.find("#name").fill("bob")
            await bob.find("#name").press("Enter")
            await bob.has_state("waiting")
            proxy.fault = pass_on
            began = time.monotonic()
            await bob.is_in()
        took = time.monotonic() - began
        print(f"{took:.2f} s")  # noqa: T201
        assert took < SOON
        assert set(traffic.opened) == {"websocket"}
        await talk(tabs, chat, bob)


async def test_what_works_is_remembered_by_other_pages(chat: ChatServer, tabs: Tabs) -> None:
    async with Proxy(chat.port, accept_and_stay_mute(handshake=True)) as proxy:
        bob = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/"))
        await enter(bob, "bob")
        second = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/", beside=bob.page))
        traffic = Traffic(second)
        assert await enter(second, "bob") < 2
        assert traffic.opened == ["sse"]
        await talk(tabs, chat, second)


@pytest.mark.parametrize("transport", ["sse", "poll"])
async def test_who_closes_the_page_is_gone_at_once(chat: ChatServer, tabs: Tabs, transport: str) -> None:
    fault = refuse_upgrades(b"502 Bad Gateway") if transport == "sse" else buffer
    async with Proxy(chat.port, fault) as proxy:
        ann = Person(await tabs.open(chat.url))
        await ann.enter("ann")
        bob = Person(await tabs.open(f"http://127.0.0.1:{proxy.port}/"))
        traffic = Traffic(bob)
        await enter(bob, "bob")
        assert traffic.opened[-1] == transport
        await ann.sees("ann (you)", "bob")
        async with asyncio.timeout(10):
            await bob.page.close()
            await ann.sees("ann (you)")
