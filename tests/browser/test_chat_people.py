"""The chat example in Chromium: who is here, who is typing, who has read what (P, X1, X2)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Error, Route, expect

from rtkit.client import connect
from tests.support.browser import PATIENCE, Tabs
from tests.support.chatpage import ChatServer, Person, serve_chat

PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    """Who dies without a word is gone after a moment."""
    async with serve_chat(grace=1.0) as server:
        yield server


async def come_in(tabs: Tabs, chat: ChatServer, name: str, **options: Any) -> Person:
    person = Person(await tabs.open(chat.url, **options))
    await person.enter(name)
    return person


async def crash(person: Person, tabs: Tabs) -> None:
    """Its process is gone, without a goodbye."""
    with tabs.expecting("it crashed"):
        async with person.page.expect_event("crash"):
            with contextlib.suppress(Error):
                await person.page.goto("chrome://crash")


async def test_three_people_and_one_of_them_crashes(chat: ChatServer, tabs: Tabs) -> None:
    ann, bob, cyd = [await come_in(tabs, chat, name) for name in ("ann", "bob", "cyd")]
    await ann.sees("ann (you)", "bob", "cyd")
    await ann.say("hello")
    await ann.sees_ticks("✓✓ read by 2 of 2")

    await bob.types("hel")
    await ann.sees_typing("bob is typing …")
    await cyd.types("hi")
    await ann.sees_typing("bob and cyd are typing …")
    await bob.sees_typing("cyd is typing …")  # not oneself
    await bob.say("hello ann")
    await ann.hears(("ann", "hello"), ("bob", "hello ann"))
    await ann.sees_typing("cyd is typing …")

    await crash(cyd, tabs)
    await ann.sees_typing("")
    await ann.sees("ann (you)", "bob")
    await ann.say("where is cyd?")
    await bob.hears(("ann", "hello"), ("bob", "hello ann"), ("ann", "where is cyd?"))
    await ann.sees_ticks("✓✓ read by 2 of 2", "✓✓ read by 1 of 2")

    # Another life: what was missed is read now.
    again = await come_in(tabs, chat, "cyd")
    await again.hears(("ann", "hello"), ("bob", "hello ann"), ("ann", "where is cyd?"))
    await ann.sees("ann (you)", "bob", "cyd")
    await ann.sees_ticks("✓✓ read by 2 of 2", "✓✓ read by 2 of 2")


async def test_a_message_is_delivered_before_it_is_read(chat: ChatServer, tabs: Tabs) -> None:
    ann, bob, cyd = [await come_in(tabs, chat, name) for name in ("ann", "bob", "cyd")]
    await ann.say("one")
    await ann.sees_ticks("✓✓ read by 2 of 2")
    await bob.looks_away()
    await cyd.looks_away()
    await ann.say("two", "three")
    await ann.sees_ticks("✓✓ read by 2 of 2", "✓ delivered to 2")  # the same for both: said once
    await bob.looks_back()
    await ann.sees_ticks("✓✓ read by 2 of 2", "✓✓ read by 1 of 2")
    await cyd.looks_back()
    await ann.sees_ticks("✓✓ read by 2 of 2")

    # Nobody is asked again after a reload.
    await ann.page.reload()
    await ann.sees_ticks("✓✓ read by 2 of 2")
    assert await bob.find(".ticks").count() == 0


async def test_typing_ends_when_it_is_given_up(chat: ChatServer, tabs: Tabs) -> None:
    ann, bob = [await come_in(tabs, chat, name) for name in ("ann", "bob")]
    await bob.types("no")
    await ann.sees_typing("bob is typing …")
    await bob.find("#text").fill("")
    await ann.sees_typing("")
    await bob.types("but")
    await ann.sees_typing("bob is typing …")
    await bob.go("kitchen")
    await ann.sees_typing("")
    assert "- status: bob is typing" not in await ann.page.locator("body").aria_snapshot()


async def test_who_types_is_read_out(chat: ChatServer, tabs: Tabs) -> None:
    ann, bob = [await come_in(tabs, chat, name) for name in ("ann", "bob")]
    await bob.types("x")
    await ann.sees_typing("bob is typing …")
    assert "- status: bob is typing" in await ann.page.locator("body").aria_snapshot()


async def test_one_is_away_when_one_is_so_on_all_devices(chat: ChatServer, tabs: Tabs) -> None:
    ann, bob = [await come_in(tabs, chat, name) for name in ("ann", "bob")]
    second = Person(await tabs.open(chat.url, beside=bob.page))
    await second.enter("bob")
    await ann.sees("ann (you)", "bob (2 devices)")
    await expect(ann.find("#people-count")).to_have_text("2")
    await bob.looks_away()
    await second.looks_away()
    await ann.sees("ann (you)", "bob (2 devices, away)")
    await second.looks_back()
    await expect(ann.find("#people-list li").last).to_have_text(
        re.compile(r"bob \(2 devices\)$"), timeout=PATIENCE
    )
    await bob.looks_back()
    await second.page.close()
    await expect(ann.find("#people-list li").last).to_have_text(re.compile("bob$"), timeout=PATIENCE)


async def test_what_is_read_in_one_tab_is_not_new_in_another(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    second = Person(await tabs.open(chat.url, beside=ann.page))
    await second.enter("ann")
    for person in (ann, second):
        await person.go("kitchen")
        await person.go("lobby")
    await chat.say("coffee", "tea", room="kitchen")
    for person in (ann, second):
        await person.shows("#rooms a[href='#kitchen'] .badge", "2 unread")
    await ann.go("kitchen")
    await ann.shows("#log .rule.new", "New")
    for person in (ann, second):
        await expect(person.find(".badge")).to_have_count(0, timeout=PATIENCE)
    await second.go("kitchen")
    await second.hears(("the server", "coffee"), ("the server", "tea"))
    await expect(second.find("#log .rule.new")).to_have_count(0)


async def test_a_page_that_cannot_load_the_part_for_it_talks_all_the_same(
    chat: ChatServer, tabs: Tabs
) -> None:
    ann = await come_in(tabs, chat, "ann")
    bob = Person(await tabs.open(chat.url))

    async def refuse(route: Route) -> None:
        await route.abort()

    await bob.page.context.route("**/rt/people.js", refuse)
    await bob.page.reload()  # what was preloaded is forgotten
    with tabs.expecting("no people.js"):
        await bob.enter("bob")
        await bob.say("hello")
        await ann.hears(("bob", "hello"))
        await bob.hears(("bob", "hello"))
    await bob.find("#text").fill("typing")
    await ann.say("hello bob")
    await bob.hears(("bob", "hello"), ("ann", "hello bob"))
    await bob.sees()
    await ann.sees("ann (you)", "bob")


LONG = ["Cyd Featherstonehaugh-Cholmonde", "دانيال عبد الرحمن", "w" * 32]


async def test_many_people_with_long_names_fit_on_a_phone(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann", **PHONE)
    others = [await come_in(tabs, chat, name) for name in LONG]
    for person in others:
        await person.types("typing")
    await expect(ann.find("#typing")).to_contain_text("and 1 more are typing …", timeout=PATIENCE)
    line = await ann.find("#typing").evaluate(
        "(line) => [line.scrollWidth - line.clientWidth, line.clientHeight]"
    )
    assert line == [0, 22]
    await ann.say("مرحبا")
    await ann.sees_ticks("✓✓ read by 3 of 3")
    assert not await ann.evaluate("document.documentElement.scrollWidth > innerWidth")

    async with contextlib.AsyncExitStack() as stack:
        for number in range(46):
            client = await stack.enter_async_context(
                connect(f"{chat.url}rt", token=f"person number {number:02}")
            )
            _ = await client.join("chat:lobby")
        await expect(ann.find("#people-count")).to_have_text("50", timeout=PATIENCE)
        await ann.find("#people-open").tap()
        await expect(ann.find("#people-list li")).to_have_count(50)
        assert await ann.find("#people").evaluate("(list) => list.scrollWidth - list.clientWidth") == 0
        await ann.find("#people-list li").last.scroll_into_view_if_needed()
        await expect(ann.find("#people-list li").last).to_be_in_viewport(ratio=1)
