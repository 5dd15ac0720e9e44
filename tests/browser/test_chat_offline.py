"""The chat example in Chromium while the network fails: nothing is missing, nothing doubled, and all of it is said."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Route, expect

from tests.support.browser import PATIENCE, Tabs
from tests.support.cable import Cable
from tests.support.chatpage import CHAT, ChatServer, Person, serve_chat


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with serve_chat() as server:
        yield server


@pytest.fixture
async def cable(chat: ChatServer) -> AsyncIterator[Cable]:
    """What bob's computer is connected by."""
    async with Cable(chat.port) as cable:
        yield cable


async def ann_and_bob(tabs: Tabs, chat: ChatServer, cable: Cable) -> tuple[Person, Person]:
    ann = Person(await tabs.open(chat.url))
    await ann.enter("ann")
    bob = Person(await tabs.open(f"http://127.0.0.1:{cable.port}/"))
    await bob.enter("bob")
    await ann.sees("ann (you)", "bob")
    return ann, bob


async def only_pages(person: Person) -> None:
    """Pages come through, WebSockets do not, and nor does the question whether something else would."""

    async def refuse(route: Route) -> None:
        await route.abort()

    await person.page.context.route("**/rt/ready", refuse)


async def test_a_conversation_survives_a_cut(chat: ChatServer, tabs: Tabs, cable: Cable) -> None:
    ann, bob = await ann_and_bob(tabs, chat, cable)
    await ann.say("hello bob")
    await bob.say("hello ann")
    before = [("ann", "hello bob"), ("bob", "hello ann")]
    await bob.hears(*before)

    cable.pull()
    await expect(bob.find("#trouble-text")).to_have_text(
        "The connection is lost. What you write is sent when you are back.", timeout=PATIENCE
    )
    await ann.sees(
        "ann (you)", "bob"
    )  # C3: he may come back, and is not seen to leave until the grace is over
    away = [f"you cannot hear this yet: {number}" for number in range(20)]
    await ann.say(*away)
    await bob.say("and this", "is said offline")
    await bob.waits_to_send("and this", "is said offline")
    await bob.hears(*before)
    await bob.shows("#people-title", "Were here")

    cable.plug()
    await bob.has_state("connected")
    talk = [*before, *(("ann", text) for text in away), ("bob", "and this"), ("bob", "is said offline")]
    await bob.hears(*talk)
    await ann.hears(*talk)
    await bob.waits_to_send()
    await ann.sees("ann (you)", "bob")
    await bob.sees("bob (you)", "ann")
    await expect(bob.find("#trouble")).to_be_hidden()
    await expect(bob.find(".rule.gap")).to_have_count(0)
    await ann.say("welcome back")
    await bob.hears(*talk, ("ann", "welcome back"))


async def test_the_browser_says_when_it_is_offline(chat: ChatServer, tabs: Tabs, cable: Cable) -> None:
    """Offline, the client does not try for 20 s; when the network is back it does so at once."""
    ann, bob = await ann_and_bob(tabs, chat, cable)
    await bob.page.context.set_offline(True)
    cable.pull()  # an open WebSocket outlives set_offline
    await expect(bob.find("#trouble-text")).to_contain_text("You are offline.", timeout=PATIENCE)
    await bob.shows("#state-text", "Offline")
    await bob.say("into the void")
    await ann.say("bob?")
    cable.plug()
    async with asyncio.timeout(10):
        await bob.page.context.set_offline(False)
        await bob.hears(("ann", "bob?"), ("bob", "into the void"))
    await ann.hears(("ann", "bob?"), ("bob", "into the void"))
    await bob.shows("#state-text", "Connected")


async def test_trying_at_once_is_a_button(chat: ChatServer, tabs: Tabs, cable: Cable) -> None:
    ann, bob = await ann_and_bob(tabs, chat, cable)
    await bob.evaluate("Object.defineProperty(navigator, 'onLine', { get: () => false })")
    cable.pull()
    await bob.has_state("waiting")  # for 20 s, since it is offline
    cable.plug()
    async with asyncio.timeout(10):
        await bob.find("#trouble-act").click()
        await bob.has_state("connected")
    await ann.say("there you are")
    await bob.hears(("ann", "there you are"))


async def test_what_was_never_sent_survives_a_reload(chat: ChatServer, tabs: Tabs, cable: Cable) -> None:
    ann, bob = await ann_and_bob(tabs, chat, cable)
    cable.pull()
    await bob.has_state("waiting")
    await bob.say("first", "second")
    await bob.find("#text").fill("a draft")
    await only_pages(bob)
    cable.plug(but=b"/rt/ws")  # pages come through, WebSockets do not
    await bob.page.reload()
    await bob.waits_to_send("first", "second")
    await expect(bob.find("#text")).to_have_value("a draft")
    await bob.say("third")
    await bob.waits_to_send("first", "second", "third")
    await ann.say("anybody?")
    await ann.hears(("ann", "anybody?"))

    cable.plug()
    talk = ("ann", "anybody?"), ("bob", "first"), ("bob", "second"), ("bob", "third")
    await bob.hears(*talk)
    await ann.hears(*talk)
    await bob.waits_to_send()
    await bob.page.reload()
    await bob.hears(*talk)
    await bob.waits_to_send()


@pytest.mark.parametrize("later", [0, 60])
async def test_what_was_sent_and_never_answered_is_not_sent_twice(
    chat: ChatServer, tabs: Tabs, cable: Cable, later: int
) -> None:
    """After a reload nobody knows whether it was sent; the stream does, also further back than is shown."""
    ann, bob = await ann_and_bob(tabs, chat, cable)
    cable.deafen(only=b"/rt/ws")
    await bob.say("did you get this?")
    await ann.hears(("bob", "did you get this?"))
    await bob.waits_to_send("did you get this?")
    await bob.hears()
    await chat.say(*(f"filler {number}" for number in range(later)))
    chat.module.LONGEST_TEXT = 1  # sent again, it would be refused

    await bob.page.reload()
    await bob.is_in()
    await bob.waits_to_send()
    said = [("bob", "did you get this?"), *(("the server", f"filler {number}") for number in range(later))]
    await bob.hears(*said[-50:])
    await ann.hears(*said)


async def test_two_tabs_that_share_what_waits_send_it_once(
    chat: ChatServer, tabs: Tabs, cable: Cable
) -> None:
    """A duplicated tab has a copy of sessionStorage: the same messages wait in both, under the same keys."""
    ann, bob = await ann_and_bob(tabs, chat, cable)
    cable.pull()
    await bob.has_state("waiting")
    await bob.say("once")
    kept = await bob.evaluate("JSON.stringify(sessionStorage)")
    await only_pages(bob)
    cable.plug(but=b"/rt/ws")
    twin = Person(await tabs.open(f"http://127.0.0.1:{cable.port}/", beside=bob.page))
    await twin.evaluate("(kept) => Object.assign(sessionStorage, JSON.parse(kept))", kept)
    await twin.page.reload()
    await twin.waits_to_send("once")
    cable.plug()
    for person in (bob, twin, ann):
        await person.hears(("bob", "once"))
        await person.waits_to_send()
    await ann.say("I heard you")
    for person in (bob, twin, ann):
        await person.hears(("bob", "once"), ("ann", "I heard you"))


async def test_what_is_no_longer_there_is_said(chat: ChatServer, tabs: Tabs, cable: Cable) -> None:
    """The history keeps 1,000 messages. Of those that were missed the page shows what there is, and says the rest."""
    ann, bob = await ann_and_bob(tabs, chat, cable)
    await ann.say("the last thing bob hears")
    await bob.hears(("ann", "the last thing bob hears"))
    cable.pull()
    await bob.has_state("waiting")
    await chat.say(*(f"number {number}" for number in range(2, 1041)))
    cable.plug()
    await bob.say("what did I miss?")
    await bob.waits_to_send()
    await bob.shows(".rule.gap", "Messages 2–990 are not shown Show more of them")
    for shown in (300, 550, 800, 999):
        await bob.find(".rule.gap button").press("Enter")
        await expect(bob.find("#log .text")).to_have_count(shown + 2, timeout=PATIENCE)
    await bob.find(".rule.gap button").press("Enter")
    await bob.shows(".rule.gap", "Messages 2–41 are no longer available")
    await bob.hears(
        ("ann", "the last thing bob hears"),
        *(("the server", f"number {number}") for number in range(42, 1041)),
        ("bob", "what did I miss?"),
    )


async def test_what_was_missed_and_is_still_there_is_shown(
    chat: ChatServer, tabs: Tabs, cable: Cable
) -> None:
    """A room that was emptied and filled again: its new messages are no loss."""
    ann, bob = await ann_and_bob(tabs, chat, cable)
    await ann.say("before")
    await bob.hears(("ann", "before"))
    cable.pull()
    await bob.has_state("waiting")
    await chat.hub.room("chat:lobby").clear()
    await ann.shows(".rule.gap", "The server has forgotten what was said before")
    await ann.say("one", "two")
    await ann.hears(("ann", "before"), ("ann", "one"), ("ann", "two"))
    cable.plug()
    await bob.hears(("ann", "before"), ("ann", "one"), ("ann", "two"))
    await bob.shows(".rule.gap", "The server has forgotten what was said before")
    await bob.shows(".rule.day", "Today")  # once


async def test_the_server_forgets_and_the_page_says_so(tabs: Tabs) -> None:
    async with contextlib.AsyncExitStack() as first:
        chat = await first.enter_async_context(serve_chat())
        ann = Person(await tabs.open(chat.url))
        bob = Person(await tabs.open(chat.url))
        await ann.enter("ann")
        await bob.enter("bob")
        await ann.say("before")
        await bob.hears(("ann", "before"))
    await bob.has_state("waiting")
    await bob.say("while it was down")
    await bob.waits_to_send("while it was down")

    async with serve_chat(chat.port) as chat:
        for person in (ann, bob):
            await person.hears(("ann", "before"), ("bob", "while it was down"))
            await person.shows(".rule.gap", "The server has forgotten what was said before")
            await person.waits_to_send()
        await ann.sees("ann (you)", "bob")
        await ann.say("and on it goes")
        await bob.hears(("ann", "before"), ("bob", "while it was down"), ("ann", "and on it goes"))
        await bob.page.reload()
        await bob.hears(("bob", "while it was down"), ("ann", "and on it goes"))


async def test_a_server_that_closes_for_good_is_obeyed(chat: ChatServer, tabs: Tabs) -> None:
    ann = Person(await tabs.open(chat.url))
    await ann.enter("ann")
    await chat.hub.user("ann").close(reason="that was rude")
    await ann.has_state("closed")
    await ann.shows("#trouble-text", "The connection is closed: that was rude.")
    await ann.say("sorry")
    await ann.waits_to_send("sorry")
    await ann.find("#trouble-act").click()
    await ann.hears(("ann", "sorry"))
    await ann.waits_to_send()


async def test_a_page_that_slept_is_up_to_date(chat: ChatServer, tabs: Tabs) -> None:
    """As when one comes back to it with the back button. Playwright's Chromium keeps no pages, so it is only told."""
    ann = Person(await tabs.open(chat.url))
    await ann.enter("ann")
    await ann.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    await ann.has_state("waiting")
    await chat.say("while you were away")
    await ann.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await ann.hears(("the server", "while you were away"))
    await ann.sees("ann (you)")


async def test_control_c_ends_the_demo_while_a_tab_is_open(tabs: Tabs) -> None:
    """L2: quickly, quietly, and with success."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHAT),
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        while not (line := (await process.stdout.readline()).decode()).startswith("The chat is at "):
            pass
        ann = Person(await tabs.open(line.split()[-1]))
        await ann.enter("ann")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            _, errors = await process.communicate()
        assert (process.returncode, errors.decode()) == (0, "")
        await ann.has_state("waiting")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
