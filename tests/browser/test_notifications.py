"""`examples/notifications` in Chromium, the same by the SDK and by a plain EventSource; and the script of it."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.async_api import Locator, Page, expect

from tests.support.browser import PATIENCE, Tabs
from tests.support.cable import Cable
from tests.support.redises import RedisServer
from tests.support.servers import serve_asgi

EXAMPLE = Path(__file__).parents[2] / "examples" / "notifications"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@dataclass
class Site:
    """The example's server, running, and a cable between it and the tabs."""

    module: Any
    port: int
    cable: Cable

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.cable.port}/"

    async def notify(self, user: str, *texts: str) -> None:
        """From within the application."""
        for text in texts:
            await self.module.hub.publish(f"user:{user}", self.module.Notice(text))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, as its own programs import them; anew for each test."""

    def load(broker: str) -> Any:
        monkeypatch.setenv("BROKER", broker)
        monkeypatch.syspath_prepend(str(EXAMPLE))
        return importlib.import_module("server")

    yield load
    for name in ("server", "rooms"):
        sys.modules.pop(name, None)


@pytest.fixture
async def site(load: Any) -> AsyncIterator[Site]:
    module = load("memory://")
    async with serve_asgi(module.app, lifespan="on") as port, Cable(port) as cable:
        yield Site(module, port, cable)


class Desk:
    """Somebody in front of the page."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    async def log_in(self, name: str) -> None:
        await self.find("#name").fill(name)
        await self.find("#name").press("Enter")
        await self.is_live()

    async def is_live(self) -> None:
        for which in ("sdk", "plain"):
            await expect(self.find(f"#{which}-state")).to_have_text("Live", timeout=PATIENCE)

    async def is_offline(self) -> None:
        for which in ("sdk", "plain"):
            await expect(self.find(f"#{which}-state")).to_have_attribute(
                "data-state", "waiting", timeout=PATIENCE
            )

    async def lists(self, which: str, *texts: str) -> None:
        """Wait until exactly these are listed, the newest first."""
        found = self.find(f"#{which}-list li > :first-child")
        await expect(found).to_have_text(list(texts), timeout=PATIENCE)

    async def has_unread(self, count: int) -> None:
        if count:
            await expect(self.find("#unread")).to_have_text(f"{count} unread", timeout=PATIENCE)
            await expect(self.page).to_have_title(f"({count}) Notifications")
        else:
            await expect(self.find("#unread")).to_be_hidden(timeout=PATIENCE)
            await expect(self.page).to_have_title("Notifications")
            await expect(self.find("#read-all")).to_be_disabled()
        await expect(self.find("#sdk-list li.unread")).to_have_count(count)


async def come(tabs: Tabs, site: Site, name: str, **options: Any) -> Desk:
    desk = Desk(await tabs.open(site.url, **options))
    await desk.log_in(name)
    return desk


async def test_a_notification_arrives_in_both_lists_and_nowhere_else(site: Site, tabs: Tabs) -> None:
    ann, bob = await come(tabs, site, "ann"), await come(tabs, site, "bob")
    await ann.has_unread(0)
    await expect(ann.find("#sdk-none")).to_be_visible()
    await site.notify("ann", "your export is ready", "<b>bob</b> has replied")
    for which in ("sdk", "plain"):
        await ann.lists(which, "<b>bob</b> has replied", "your export is ready")
    await ann.has_unread(2)
    # The form is an ordinary request of whoever.
    await bob.find("#to").fill("ann")
    await bob.find("#text").fill("lunch?")
    await bob.find("#text").press("Enter")
    for which in ("sdk", "plain"):
        await ann.lists(which, "lunch?", "<b>bob</b> has replied", "your export is ready")
        await bob.lists(which)
    await expect(bob.find("#text")).to_have_value("")
    await bob.has_unread(0)


async def test_what_is_read_in_one_tab_is_read_in_the_other(site: Site, tabs: Tabs) -> None:
    ann = await come(tabs, site, "ann")
    await site.notify("ann", "one", "two", "three", "four")
    await ann.has_unread(4)
    second = Desk(await tabs.open(site.url, beside=ann.page))
    await second.is_live()
    await second.lists("sdk", "four", "three", "two", "one")
    await second.lists("plain")
    await second.has_unread(4)
    await (
        second.find("#sdk-list li")
        .filter(has_text="two")
        .get_by_role("button", name="Read up to here")
        .click()
    )
    await ann.has_unread(2)
    await second.has_unread(2)
    await expect(ann.find("#sdk-list li.unread > :first-child")).to_have_text(["four", "three"])
    await ann.find("#read-all").click()
    await second.has_unread(0)
    # On another device, and later: what was read is read.
    await site.notify("ann", "five")
    phone = await come(tabs, site, "ann", **PHONE)
    await phone.lists("sdk", "five", "four", "three", "two", "one")
    await phone.has_unread(1)
    await phone.page.reload()
    await phone.is_live()
    await phone.has_unread(1)


async def test_what_was_missed_comes_when_the_network_is_back(site: Site, tabs: Tabs) -> None:
    """By resuming with the SDK, and by `Last-Event-ID` with the browser's own."""
    ann = await come(tabs, site, "ann")
    await site.notify("ann", "before")
    for which in ("sdk", "plain"):
        await ann.lists(which, "before")
    await ann.find("#read-all").click()
    await ann.has_unread(0)
    site.cable.pull()
    await ann.is_offline()
    await site.notify("ann", "missed 1", "missed 2")
    await site.notify("bob", "not hers")
    site.cable.plug()
    await ann.is_live()
    for which in ("sdk", "plain"):
        await ann.lists(which, "missed 2", "missed 1", "before")
    await ann.has_unread(2)


async def test_what_was_read_offline_is_told_when_the_network_is_back(site: Site, tabs: Tabs) -> None:
    ann = await come(tabs, site, "ann")
    other = Desk(await tabs.open(f"http://127.0.0.1:{site.port}/"))  # by another way
    await other.log_in("ann")
    await site.notify("ann", "one", "two")
    await ann.has_unread(2)
    site.cable.pull()
    await ann.is_offline()
    await ann.find("#read-all").click()
    await ann.has_unread(0)
    await other.has_unread(2)
    site.cable.plug()
    await other.has_unread(0)
    await ann.has_unread(0)


async def test_nobody_hears_what_is_for_others(site: Site, tabs: Tabs) -> None:
    ann = await come(tabs, site, "ann")
    with tabs.expecting("403"):
        status = await ann.page.evaluate("fetch('/rt/events?room=user:bob').then((answer) => answer.status)")
    assert status == 403
    with tabs.expecting("401"):
        stranger = await tabs.open(site.url)
        status = await stranger.evaluate("fetch('/rt/events?room=user:bob').then((answer) => answer.status)")
    assert status == 401


async def test_a_link_leads_where_it_may(site: Site, tabs: Tabs) -> None:
    ann = await come(tabs, site, "ann")
    notice = site.module.Notice
    for link in ("/exports/1.csv", "javascript:alert(1)"):
        await site.module.hub.publish("user:ann", notice("look", link))
    await ann.lists("sdk", "look", "look")
    links = ann.find("#sdk-list a")
    await expect(links).to_have_count(1)
    assert await links.evaluate("(link) => link.pathname") == "/exports/1.csv"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "device", [{"viewport": {"width": 1280, "height": 800}}, PHONE], ids=["desk", "phone"]
)
async def test_it_fits_and_can_be_read(site: Site, tabs: Tabs, device: dict[str, Any], scheme: str) -> None:
    ann = await come(tabs, site, "ann", color_scheme=scheme, **device)
    await site.notify(
        "ann", *[f"number {n}, which is a rather long notification" for n in range(60)], "x" * 200
    )
    await expect(ann.find("#sdk-list li")).to_have_count(50, timeout=PATIENCE)
    await ann.find("#read-all").click()
    await site.notify("ann", "one more")
    await expect(ann.find("#plain-list li").first).to_contain_text("one more", timeout=PATIENCE)
    await ann.has_unread(1)
    wide = await ann.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "it scrolls sideways"
    small = await ann.page.evaluate(
        """() => [...document.querySelectorAll("button, input")].filter((each) => each.checkVisibility())
            .map((each) => [each.textContent || each.id, each.getBoundingClientRect().height])
            .filter(([, height]) => height < 36)"""
    )
    assert not small, "too small for a finger"
    faint = await ann.page.evaluate(CONTRAST)
    assert not faint, "too faint to be read"
    unnamed = await ann.page.evaluate(
        """() => [...document.querySelectorAll("input")].filter((each) => !each.labels.length).map((each) => each.id)"""
    )
    assert not unnamed


#: Texts whose contrast is less than WCAG's AA wants, by their computed colours.
CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const over = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const each of document.querySelectorAll("#site *")) {
        const texts = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!texts || !each.checkVisibility()) continue;
        const behind = [];
        for (let at = each; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
        const back = over(["canvas", ...behind]);
        const front = over(["canvas", ...behind, getComputedStyle(each).color]);
        const [high, low] = [light(back), light(front)].sort((a, b) => b - a);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) found.push([each.textContent.slice(0, 30), ratio]);
    }
    return found;
}"""


async def test_logging_out_ends_it(site: Site, tabs: Tabs) -> None:
    ann = await come(tabs, site, "ann")
    await ann.find("#logout").click()
    await expect(ann.find("#enter")).to_be_visible(timeout=PATIENCE)
    await expect(ann.find("#site")).to_be_hidden()


async def test_a_bad_name_is_told(site: Site, tabs: Tabs) -> None:
    desk = Desk(await tabs.open(site.url))
    await desk.find("#name").evaluate("(input) => input.removeAttribute('pattern')")
    await desk.find("#name").fill("ann lee")
    with tabs.expecting("422"):
        await desk.find("#name").press("Enter")
        await expect(desk.find("#name-error")).to_contain_text("1 to 32 letters", timeout=PATIENCE)


# -- the script ---------------------------------------------------------------------------------------------


async def run_script(*arguments: str, **environment: str) -> tuple[int, str]:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLE / "notify.py"), *arguments]
        env = {**os.environ, **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)

    done = await asyncio.to_thread(run)
    return done.returncode, done.stdout + done.stderr


async def test_the_script_publishes_through_redis(load: Any, tabs: Tabs) -> None:
    """Whether or not somebody is there; and with a key it is safe to run twice."""
    with RedisServer(appendonly="no") as redis:
        assert await run_script("--broker", redis.url, "ann", "while nobody was there") == (0, "")
        module = load(redis.url)
        async with serve_asgi(module.app, lifespan="on") as port, Cable(port) as cable:
            ann = await come(tabs, Site(module, port, cable), "ann")
            for _ in range(2):
                arguments = ("--key", "export 7", "--link", "/exports/7.csv", "ann", "your export is ready")
                assert await run_script(*arguments, BROKER=redis.url) == (0, "")
            await ann.lists("plain", "your export is ready")
            await ann.lists("sdk", "your export is ready", "while nobody was there")
            await ann.has_unread(2)
            assert await ann.find("#plain-list a").evaluate("(link) => link.pathname") == "/exports/7.csv"


async def test_the_script_asks_the_server_where_there_is_no_broker(site: Site) -> None:
    url = f"http://127.0.0.1:{site.port}"
    assert await run_script("--url", url, "ann", "hello", BROKER="") == (0, "")
    history = await site.module.hub.room("user:ann").history()
    assert [message.data.text for message in history.messages] == ["hello"]
    code, said = await run_script("--url", url, "not a name", "hello", BROKER="")
    assert code == 1 and "not sent: HTTP Error 422" in said


async def test_the_script_says_that_it_could_not(site: Site) -> None:
    code, said = await run_script("--broker", "redis://127.0.0.1:1", "ann", "hello")
    assert code == 1 and "\nnot sent: " in said
    code, said = await run_script("--url", "http://127.0.0.1:1", "ann", "hello", BROKER="")
    assert code == 1 and said.startswith("not sent: ")


async def test_the_form_refuses_what_is_too_much(site: Site) -> None:
    async with httpx2.AsyncClient() as http:
        for body in (
            {"user": "ann", "text": "x" * 501},
            {"user": "ann", "text": ""},
            {"user": "a:b", "text": "x"},
            {"user": "", "text": "x"},
            {"text": "x"},
            ["ann", "x"],
        ):
            answer = await http.post(f"http://127.0.0.1:{site.port}/notify", json=body)
            assert answer.status_code == 422, body
        answer = await http.post(
            f"http://127.0.0.1:{site.port}/notify", json={"user": "ann", "text": "x" * 500}
        )
        assert answer.json() == 1
