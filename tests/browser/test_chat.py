"""The chat example in Chromium: what people do with it while the network is there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import expect

from examples import fastapi_chat
from tests.docs.blocks import blocks
from tests.support.browser import PATIENCE, Tabs
from tests.support.chatpage import ChatServer, Person, serve_chat
from tests.support.servers import serve_asgi

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
async def chat() -> AsyncIterator[ChatServer]:
    async with serve_chat() as server:
        yield server


async def come_in(tabs: Tabs, chat: ChatServer, name: str, **options: Any) -> Person:
    person = Person(await tabs.open(chat.url, **options))
    await person.enter(name)
    return person


async def test_two_people_talk_and_see_each_other(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    await ann.sees("ann (you)")
    bob = await come_in(tabs, chat, "bob")
    await ann.sees("ann (you)", "bob")
    await bob.sees("bob (you)", "ann")

    await ann.say("hello bob")
    await bob.hears(("ann", "hello bob"))
    await bob.say("hello ann", "how are you?")
    talk = ("ann", "hello bob"), ("bob", "hello ann"), ("bob", "how are you?")
    await ann.hears(*talk)
    await bob.hears(*talk)
    await ann.waits_to_send()
    # Who goes on talking is not named again, except to those who only hear it.
    assert await ann.find("#log .name").all_text_contents() == ["ann", "bob"]
    assert await ann.find("#log .message").nth(2).text_content() != "how are you?"
    await ann.shows("#log .you", "you")

    await bob.page.close()
    await ann.sees("ann (you)")


async def test_who_comes_late_reads_what_was_said(chat: ChatServer, tabs: Tabs) -> None:
    texts = [f"number {number}" for number in range(1, 131)]
    await chat.say(*texts)
    ann = await come_in(tabs, chat, "ann")
    assert [text for _, text in await ann.said()] == texts[-50:]

    # Reading back: what is read stays where it is while older messages come in above it.
    await ann.find("#scroller").hover()
    await ann.page.mouse.wheel(0, -100_000)
    await expect(ann.find("#log .text").first).to_have_text("number 31", timeout=PATIENCE)
    place = await ann.find("#log .text").nth(50).bounding_box()
    view = await ann.find("#scroller").bounding_box()
    assert place is not None and view is not None
    assert view["y"] <= place["y"] < view["y"] + view["height"]
    await ann.page.mouse.wheel(0, -100_000)
    await ann.shows("#top p", "This is where it began.")
    assert [text for _, text in await ann.said()] == texts

    # Somebody who reads back is not torn away, but told.
    await chat.say("number 131")
    await ann.shows("#newer", "↓ 1 new message")
    await expect(ann.find("#log .text").last).not_to_be_in_viewport()
    await ann.find("#newer").click()
    await expect(ann.find("#log .text").last).to_be_in_viewport()
    await expect(ann.find("#newer")).to_be_hidden()


async def test_two_tabs_of_one_user_are_one_person(chat: ChatServer, tabs: Tabs) -> None:
    bob = await come_in(tabs, chat, "bob")
    ann = await come_in(tabs, chat, "ann")
    second = Person(await tabs.open(chat.url, beside=ann.page))
    await expect(second.find("#name")).to_have_value("ann")  # offered, not taken for granted
    await second.enter("ann")
    await bob.sees("bob (you)", "ann")
    await ann.page.close()
    await second.say("still here")
    await bob.hears(("ann", "still here"))
    await bob.sees("bob (you)", "ann")
    await second.page.close()
    await bob.sees("bob (you)")


async def test_rooms_are_apart_and_tell_of_what_is_unread(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    bob = await come_in(tabs, chat, "bob")
    await bob.go("kitchen")
    await bob.say("coffee", "tea")
    await ann.shows("#rooms a[href='#kitchen'] .badge", "2 unread")
    await expect(ann.page).to_have_title("(2) #lobby · rtkit chat")
    await ann.hears()

    await ann.find("#rooms a[href='#kitchen']").click()
    await ann.hears(("bob", "coffee"), ("bob", "tea"))
    await ann.shows("#log .rule.new", "New")
    await expect(ann.find(".badge")).to_have_count(0)
    await expect(ann.page).to_have_title("#kitchen · rtkit chat")
    assert ann.page.url.endswith("#kitchen")
    await ann.page.go_back()
    await ann.shows("#title", "lobby")

    # What was unread is still unread after a reload, and what was read is not.
    await bob.say("cake")
    await ann.shows("#rooms a[href='#kitchen'] .badge", "1 unread")
    await ann.page.reload()
    await ann.shows("#rooms a[href='#kitchen'] .badge", "1 unread")


async def test_anybody_opens_a_room_and_others_find_it(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    bob = await come_in(tabs, chat, "bob")
    await ann.go("bike-shed")
    await ann.say("red or blue?")
    await ann.shows("#top h2", "#bike-shed")
    await bob.find("#others a").click()
    await bob.shows("#title", "bike-shed")
    await bob.hears(("ann", "red or blue?"))
    await ann.sees("ann (you)", "bob")
    await bob.find("#leave").click()
    await bob.shows("#title", "lobby")
    await ann.sees("ann (you)")
    await bob.shows("#others a", "bike-shed")

    # A link is enough; how it is written does not matter.
    carl = Person(await tabs.open(chat.url + "#Bike%20Shed"))
    await carl.enter("carl")
    await carl.hears(("ann", "red or blue?"))
    await ann.sees("ann (you)", "carl")


async def test_the_keyboard_is_enough(chat: ChatServer, tabs: Tabs) -> None:
    page = await tabs.open(chat.url)
    ann, press, write = Person(page), page.keyboard.press, page.keyboard.type
    await write("ann")
    await press("Enter")
    await ann.is_in()
    await write("one")
    await press("Shift+Enter")
    await write("two")
    await press("Enter")
    await ann.hears(("ann", "one\ntwo"))

    await press("Alt+ArrowDown")
    await ann.shows("#title", "kitchen")
    await press("Alt+ArrowUp")
    await press("Alt+ArrowUp")
    await ann.shows("#title", "music")
    await write("la la")
    await press("Control+k")
    await write("Attic")
    await press("Enter")
    await ann.shows("#title", "attic")
    await expect(ann.find("#text")).to_be_focused()
    await expect(ann.find("#text")).to_have_value("")
    await press("Alt+ArrowUp")
    await expect(ann.find("#text")).to_have_value("la la")  # a draft belongs to its room

    # By Tab alone: out of the text to the help, and back. What has the focus shows it.
    await ann.find("#help-open").focus()
    await press("Shift+Tab")
    await press("Tab")
    await expect(ann.find("#help-open")).to_be_focused()
    assert await ann.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    await press("Enter")
    await expect(ann.find("#help")).to_be_visible()
    await press("Escape")
    await expect(ann.find("#help")).to_be_hidden()
    await press("Escape")
    await expect(ann.find("#text")).to_be_focused()


HOSTILE = [
    "<img src=x onerror=\"document.title='hacked'\">",
    "<script>document.title='hacked'</script>",
    "javascript:alert(1) data:text/html,<b>x</b>",
    'https://example.org/"onmouseover="document.title=\'hacked\'"',
    "\u202edrowssap ruoy si siht",
    "w" * 3000,
    "&lt;b&gt; \\u202e",
]


async def test_hostile_text_stays_text(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    bob = await come_in(tabs, chat, "<b>bob</b>")
    await ann.sees("ann (you)", "<b>bob</b>")
    await bob.say(*HOSTILE)
    await ann.hears(*[("<b>bob</b>", text) for text in HOSTILE])
    for person in (ann, bob):
        assert await person.find("#log :is(img, script, b), #people-list b").count() == 0
        links = await person.evaluate("[...document.querySelectorAll('#log a')].map((a) => [a.href, a.rel])")
        assert links == [["https://example.org/", "noopener noreferrer nofollow"]]
        await expect(person.page).to_have_title("#lobby · rtkit chat")
        wide = "(scroller) => scroller.scrollWidth - scroller.clientWidth"
        assert await person.find("#scroller").evaluate(wide) == 0

    # Should markup get in some day, it still does not run.
    with tabs.expecting("Content Security Policy"):
        await ann.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'document.title = `hacked`';"
            " document.body.append(s); document.body.insertAdjacentHTML('beforeend',"
            " `<p onclick=\"document.title = 'hacked'\" id=trap>x</p>`); document.querySelector('#trap').click(); }"
        )
        await expect(ann.page).to_have_title("#lobby · rtkit chat")
        await ann.evaluate("new Promise(requestAnimationFrame)")


async def test_links_end_where_the_sentence_goes_on(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    text = "see https://example.org/a_(b), (or http://example.org/c?d=e&f=g#h), not ftp://example.org/ or https://"
    await ann.say(text)
    await ann.hears(("ann", text))
    links = await ann.find("#log a").evaluate_all("(found) => found.map((a) => a.textContent)")
    assert links == ["https://example.org/a_(b)", "http://example.org/c?d=e&f=g#h"]


async def test_a_name_that_cannot_be_seen_is_refused(chat: ChatServer, tabs: Tabs) -> None:
    page = Person(await tabs.open(chat.url))
    for name in ("a\u202eb", "\u200b", "x\u0007y"):
        await page.find("#name").fill(name)
        async with page.page.expect_navigation():
            await page.find("#name").press("Enter")
        await page.shows("#name-error", "a name has 1 to 32 characters that can be seen")
    await page.enter("ann")
    await page.sees("ann (you)")


async def test_what_the_server_refuses_is_not_lost(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    # The page itself lets nothing too long go off.
    await ann.find("#text").fill("😀" * 4001)
    await ann.shows("#left", "1 character too many")
    await expect(ann.find("#send")).to_be_disabled()
    await ann.find("#text").press("Enter")
    await ann.find("#text").fill("😀" * 4000)
    await expect(ann.find("#send")).to_be_enabled()

    chat.module.LONGEST_TEXT = 5
    await ann.say("too long", "much too long", "short")
    await ann.hears(("ann", "short"))
    await ann.waits_to_send("too long", "much too long")
    await expect(ann.find("#outbox .fate").first).to_contain_text("Not sent: a message has 1 to 5 characters")
    await ann.page.reload()  # it is neither forgotten nor sent again by itself
    await ann.waits_to_send("too long", "much too long")
    await ann.find("#outbox li").last.get_by_role("button", name="Edit").click()
    await expect(ann.find("#text")).to_have_value("much too long")
    await ann.waits_to_send("too long")
    chat.module.LONGEST_TEXT = 10
    await ann.find("#outbox li").get_by_role("button", name="Try again").click()
    await ann.hears(("ann", "short"), ("ann", "too long"))
    await ann.waits_to_send()


async def test_a_room_with_an_impossible_name_is_refused(chat: ChatServer, tabs: Tabs) -> None:
    ann = Person(await tabs.open(f"{chat.url}#{'x' * 40}"))
    await ann.enter("ann")
    await ann.shows(
        "#top", "This room cannot be opened: the name of a room has 1 to 32 characters that can be seen."
    )
    await ann.find("#leave").click()
    await ann.shows("#title", "lobby")
    await ann.sees("ann (you)")


async def test_it_is_usable_on_a_phone(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann", **PHONE)
    bob = await come_in(tabs, chat, "bob")
    await expect(ann.find("#sidebar")).to_be_hidden()
    await expect(ann.find("#people")).to_be_hidden()
    await ann.find("#text").tap()
    await ann.find("#text").fill("w" * 300)
    await ann.find("#send").tap()
    await bob.hears(("ann", "w" * 300))
    for part in ("html", "#log"):
        assert not await ann.evaluate(f"document.querySelector('{part}').scrollWidth > innerWidth")
    sizes = "(fields) => fields.map((field) => parseFloat(getComputedStyle(field).fontSize))"
    assert min(await ann.find("input, textarea").evaluate_all(sizes)) >= 16  # else the phone zooms in

    await bob.go("kitchen")
    await bob.say("coffee")
    await ann.find("button[aria-label='Rooms, some with unread messages']").tap()
    await ann.find("#rooms a[href='#kitchen']").tap()
    await ann.hears(("bob", "coffee"))
    await expect(ann.find("#sidebar")).to_be_hidden()
    await ann.find("#people-open").tap()
    await expect(ann.find("#people")).to_be_visible()
    await ann.sees("ann (you)", "bob")
    await ann.find("#people .close").tap()
    await expect(ann.find("#people")).to_be_hidden()

    # The keyboard takes its half: what one writes stays in sight.
    await ann.page.set_viewport_size({"width": 390, "height": 420})
    await expect(ann.find("#text")).to_be_in_viewport(ratio=1)
    await expect(ann.find("#log .text").last).to_be_in_viewport(ratio=1)


CONTRAST = """() => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const light = (colour) => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((byte) => {
            const part = byte / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const pairs = [
        ["--ink", "--paper"], ["--ink", "--raised"], ["--ink", "--side"], ["--ink", "--hover"], ["--soft", "--paper"],
        ["--soft", "--side"], ["--soft", "--raised"], ["--accent", "--paper"], ["--accent", "--tint"],
        ["--on-accent", "--accent"], ["--warn", "--warn-back"], ["--warn", "--paper"], ["--bad", "--paper"],
        ["--bad", "--raised"],
    ].map(([front, back]) => [`${front} on ${back}`, contrast(value(front), value(back))]);
    for (let hue = 0; hue < 360; hue += 5) {
        const name = `oklch(${value("--name-light")} ${value("--name-chroma")} ${hue})`;
        const face = `oklch(${value("--face-light")} ${value("--face-chroma")} ${hue})`;
        pairs.push([`name ${hue} on paper`, contrast(name, value("--paper"))]);
        pairs.push([`name ${hue} on side`, contrast(name, value("--side"))]);
        pairs.push([`name ${hue} on its face`, contrast(name, face)]);
    }
    return pairs.filter(([, found]) => found < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_can_be_read(chat: ChatServer, tabs: Tabs, scheme: str) -> None:
    """WCAG AA: text stands out from its ground by 4.5 to 1, every colour a name can get included."""
    page = await tabs.open(chat.url, color_scheme=scheme)
    assert await page.evaluate(CONTRAST) == []


async def test_every_control_has_a_name(chat: ChatServer, tabs: Tabs) -> None:
    ann = await come_in(tabs, chat, "ann")
    tree = await ann.page.locator("body").aria_snapshot()
    assert not re.search(r"^\s*- (button|textbox|link|navigation|log)(:|$)(?! )", tree, re.MULTILINE), tree
    assert "- log" in tree
    for name in ("Message", "Go to a room, or open one"):
        assert f'textbox "{name}"' in tree


async def test_the_page_of_the_tutorial_works(tabs: Tabs) -> None:
    (block,) = blocks("docs/tutorial/1-first-chat.md", "js", "page")
    async with serve_asgi(fastapi_chat.app, lifespan="on") as port:
        page = await tabs.open(f"http://127.0.0.1:{port}/openapi.json")
        async with page.expect_console_message(lambda message: message.type == "log") as logged:
            await page.add_script_tag(type="module", content=block.text)
        assert (await logged.value).text == "ann: hello"
        await page.close()
