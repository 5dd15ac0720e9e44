"""The chat example for browser tests: its server in this process, and people who use its page."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Locator, Page, expect
from playwright.async_api import TimeoutError as PlaywrightTimeout

from rtkit.server import listen
from tests.support.browser import PATIENCE

__all__ = ["CHAT", "ChatServer", "Person", "load_server", "serve_chat"]

CHAT = Path(__file__).parents[2] / "examples" / "chat"

_numbers = itertools.count(1)
_SAID = """() => {
    let name = null;
    return [...document.querySelectorAll("#log .message")].map((message) => {
        name = message.querySelector(".name")?.textContent ?? name;
        return [name, message.querySelector(".text").textContent];
    });
}"""


def load_server() -> Any:
    """The example's server.py as a module of its own, with a hub that nobody has used."""
    name = f"chat_example_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, CHAT / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for what annotations mean
    spec.loader.exec_module(module)
    return module


class ChatServer:
    """The example's server, running.

    :ivar module: its server.py.
    """

    def __init__(self, module: Any, port: int) -> None:
        self.module = module
        self.hub = module.hub
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    async def say(self, *texts: str, room: str = "lobby") -> None:
        """Publish without any client; the page calls the sender "the server"."""
        for text in texts:
            await self.hub.publish(f"chat:{room}", self.module.Said(text))


@asynccontextmanager
async def serve_chat(port: int = 0, **limits: Any) -> AsyncGenerator[ChatServer]:
    """Run the example's server in this process, with an empty memory.

    :param limits: other than those of the example, by name.
    """
    module = load_server()
    module.hub.limits = replace(module.hub.limits, **limits)
    try:
        async with listen(module.hub, port=port, static=CHAT / "page") as server:
            yield ChatServer(module, int(server.url.rpartition(":")[2].partition("/")[0]))
    finally:
        del sys.modules[module.__name__]


class Person:
    """Somebody in front of the page. Everything waits for what it is about to see."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    async def enter(self, name: str) -> None:
        """Come in under a name."""
        await self.find("#name").fill(name)
        await self.find("#name").press("Enter")
        await self.is_in()

    async def is_in(self) -> None:
        """Wait until the room is joined."""
        await self.has_state("connected")
        await expect(self.find("#top")).not_to_contain_text("Opening", timeout=PATIENCE)

    async def has_state(self, state: Literal["connecting", "connected", "waiting", "closed"]) -> None:
        await expect(self.find("#state")).to_have_attribute("data-state", state, timeout=PATIENCE)

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.find("#text").fill(text)
            await self.find("#text").press("Enter")

    async def go(self, room: str) -> None:
        """To another room, by its name."""
        await self.find("#go-to").fill(room)
        await self.find("#go-to").press("Enter")
        await self.shows("#title", room)

    async def shows(self, selector: str, text: str) -> None:
        await expect(self.find(selector)).to_have_text(text, timeout=PATIENCE)

    async def said(self) -> list[tuple[str, str]]:
        """The conversation as it is shown: who, what."""
        return [(name, text) for name, text in await self.page.evaluate(_SAID)]

    async def hears(self, *conversation: tuple[str, str]) -> None:
        """Wait until exactly this is shown."""
        expected = [list(each) for each in conversation]
        try:
            await self.page.wait_for_function(
                f"(expected) => JSON.stringify(({_SAID})()) === JSON.stringify(expected)", arg=expected
            )
        except PlaywrightTimeout:
            assert await self.said() == list(conversation)

    async def waits_to_send(self, *texts: str) -> None:
        """Wait until exactly this is shown as not sent yet."""
        await expect(self.find("#outbox .text")).to_have_text(list(texts), timeout=PATIENCE)

    async def sees(self, *people: str) -> None:
        """Wait until exactly these are shown to be here, oneself first."""
        await expect(self.find("#people-list li")).to_contain_text(list(people), timeout=PATIENCE)
        await expect(self.find("#people-list li")).to_have_count(len(people), timeout=PATIENCE)

    async def types(self, text: str) -> None:
        """Key by key, and does not send it."""
        await self.find("#text").press_sequentially(text)

    async def sees_typing(self, text: str) -> None:
        """Wait until the line that says who is typing says this."""
        await expect(self.find("#typing")).to_have_text(text, timeout=PATIENCE)

    async def sees_ticks(self, *ticks: str) -> None:
        """Wait until exactly this is said beside one's own messages."""
        visible = self.find(".ticks:not([hidden])")
        await expect(visible).to_have_text(
            [re.compile(f"^{re.escape(each)}$") for each in ticks], timeout=PATIENCE
        )

    async def looks_away(self) -> None:
        """To another tab; Playwright's pages are always in front, so the page is only told."""
        await self._hide(True)

    async def looks_back(self) -> None:
        await self._hide(False)

    async def _hide(self, value: bool) -> None:
        await self.evaluate(
            "(value) => { Object.defineProperty(document, 'hidden', { value, configurable: true });"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            value,
        )

    async def evaluate(self, script: str, arg: Any = None) -> Any:
        return await self.page.evaluate(script, arg)
