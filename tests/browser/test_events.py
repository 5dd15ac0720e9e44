"""A page with the browser's own EventSource, and none of our code: `docs/how-to/events.md` in Chromium (T5)."""

from __future__ import annotations

import time
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from rtkit import History
from tests.docs.blocks import blocks
from tests.support.browser import PATIENCE, Tabs
from tests.support.cable import Cable
from tests.support.servers import serve_asgi

HOW_TO = "docs/how-to/events.md"


@dataclass
class Site:
    """The page's application, running."""

    module: Any
    port: int
    cable: Cable

    @property
    def hub(self) -> Any:
        return self.module.hub

    async def tell(self, room: str, *texts: str) -> None:
        for text in texts:
            await self.hub.publish(room, {"text": text})


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    module = types.ModuleType("page")
    for block in blocks(HOW_TO, "python", "app"):
        exec(block.code(), vars(module))
    (page,) = blocks(HOW_TO, "html", "page")
    module.page = tmp_path / "page.html"  # type: ignore[attr-defined]
    module.page.write_text(page.text)
    async with serve_asgi(module.app, lifespan="on") as port, Cable(port) as cable:
        yield Site(module, port, cable)


async def shows(page: Page, *texts: str) -> None:
    await expect(page.locator("#list li")).to_have_text(list(texts), timeout=PATIENCE)


async def says(page: Page, state: str) -> None:
    await expect(page.locator("#state")).to_have_text(state, timeout=PATIENCE)


async def listening(tabs: Tabs, site: Site) -> Page:
    page = await tabs.open(f"http://127.0.0.1:{site.cable.port}/")
    await says(page, "listening")
    return page


async def test_notifications_survive_a_cut(site: Site, tabs: Tabs) -> None:
    """T5: from both rooms, in order, once; what was published while the network was gone as well."""
    page = await listening(tabs, site)
    await site.tell("news", "one", "two\nlines\r\nor three")
    await site.tell("user:ann", "for you")
    before = ["news: one", "news: two\nlines\r\nor three", "user:ann: for you"]
    await expect(page.locator("#list li")).to_have_count(3, timeout=PATIENCE)
    assert await page.locator("#list li").all_text_contents() == before

    site.cable.pull()
    await says(page, "waiting")
    missed = [f"missed {n}" for n in range(40)]
    await site.tell("news", *missed)
    await site.tell("user:bob", "for somebody else")
    site.cable.plug()
    await says(page, "listening")
    await site.tell("user:ann", "and on")
    await expect(page.locator("#list li")).to_have_count(44, timeout=PATIENCE)
    after = [*before, *(f"news: {text}" for text in missed), "user:ann: and on"]
    assert await page.locator("#list li").all_text_contents() == after


async def test_what_is_gone_is_said(site: Site, tabs: Tabs) -> None:
    """H3: more was published than the history keeps."""
    page = await listening(tabs, site)
    await site.tell("news", "one")
    await shows(page, "news: one")
    site.cable.pull()
    await says(page, "waiting")
    await site.tell("news", *(f"lost {n}" for n in range(History(100, ttl=1).count + 1)))
    site.cable.plug()
    await shows(page, "news: one", "something is missing in news")
    await site.tell("news", "and on")
    await shows(page, "news: one", "something is missing in news", "news: and on")


async def test_a_new_token_goes_on_where_the_old_one_expired(site: Site, tabs: Tabs) -> None:
    """A3, T5: the page hears `expired`, and misses nothing by it."""
    page = await listening(tabs, site)
    await site.tell("news", "one")
    await shows(page, "news: one")
    (session,) = site.hub.engine.sessions.values()
    session.connection.close(3005, "expired")
    await site.tell("news", "two")
    await says(page, "listening")
    await shows(page, "news: one", "news: two")
    assert session not in site.hub.engine.sessions.values()


async def test_an_expired_token_ends_it(site: Site, tabs: Tabs) -> None:
    """T5: a page that does not listen for `expired` comes back with the old token, and is told 204. Chromium stops."""
    page = await tabs.open(f"http://127.0.0.1:{site.port}/token")
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status))
    token = site.module.stream_token("ann", 3600)
    await page.evaluate(
        """(url) => {
            window.heard = [];
            const source = new EventSource(url);
            for (const name of ["joined", "expired"]) source.addEventListener(name, () => heard.push(name));
            source.onerror = () => source.readyState === EventSource.CLOSED && heard.push("over");
        }""",
        f"/rt/events?room=news&token={token}",
    )
    await page.wait_for_function("heard.length === 1")
    site.module.time = types.SimpleNamespace(time=lambda: time.time() + 7200)
    (connection,) = site.hub.engine.connections
    connection.close(3005, "expired")
    await page.wait_for_function("heard.length === 3")
    assert await page.evaluate("heard") == ["joined", "expired", "over"]
    assert statuses == [200, 204]


async def test_a_drained_hub_is_come_back_to(site: Site, tabs: Tabs) -> None:
    """L1, F2: the page waits as long as it was told, and finds its place again."""
    page = await listening(tabs, site)
    await site.tell("news", "one")
    await shows(page, "news: one")
    for connection in list(site.hub.engine.connections):
        connection.close(3001, "draining")
    await site.tell("news", "two")
    await shows(page, "news: one", "news: two")


async def test_closed_for_good(site: Site, tabs: Tabs) -> None:
    """A4: Chromium asks once more, with the id of the last event, and is told 204."""
    page = await listening(tabs, site)
    statuses: list[int] = []
    page.on("response", lambda response: statuses.append(response.status))
    await site.tell("news", "one")
    await shows(page, "news: one")
    await site.hub.user("ann").close(reason="enough")
    await says(page, "closed")
    assert statuses == [204]
