"""A headless Chromium for tests.

The Chromium is the system's (``RTKIT_CHROMIUM``, or what is on the PATH), driven by Playwright, whose own browsers
are not downloaded. Chromium is started once per process; every test gets fresh contexts, which are like users with
computers of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright

from tests.support.services import require

__all__ = ["Tabs", "chromium", "find_chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# How Chromium itself tells that a network is gone, which tests bring about.
_NETWORK = re.compile(r"WebSocket connection to '\S*' failed|Failed to load resource: net::ERR_")
#: Of everything a page waits for, in milliseconds. Nothing takes as long; a busy machine may.
PATIENCE = 20_000


def find_chromium() -> str | None:
    """The path of a Chromium that runs, or None."""
    named = os.environ.get("RTKIT_CHROMIUM")
    for name in [named] if named else _NAMES:
        path = shutil.which(name)
        # Ubuntu's chromium-browser only says how to install another one.
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


@asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    """A running Chromium; gives up the test when there is none."""
    path = find_chromium()
    if path is None:
        require("browser", "no chromium", "apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            chromium_sandbox=os.geteuid() != 0,  # which it refuses to root
            args=["--disable-background-networking", "--disable-quic", "--disable-dev-shm-usage"],
        )
        yield browser
        await browser.close()


class Tabs:
    """The tabs of one test: opens them, watches them, and takes a picture of each when the test has failed.

    No tab may raise an exception, write an error to the console, or ask another host for anything.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._pages: list[Page] = []
        self._problems: list[str] = []

    async def open(self, url: str, *, beside: Page | None = None, **options: Any) -> Page:
        """Open a tab.

        :param beside: in the same context: the same person's second tab; else it is somebody else's computer.
        :param options: of the context, such as ``viewport=``.
        """
        if beside is None:
            settings: dict[str, Any] = {"locale": "en-GB", "timezone_id": "UTC", **options}
            context = await self._browser.new_context(**settings)
            context.set_default_timeout(PATIENCE)
            self._contexts.append(context)
        else:
            context = beside.context
        page = await context.new_page()
        self._pages.append(page)
        host = urlsplit(url).netloc

        def asked(request: Request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts.netloc != host:
                self._problems.append(f"it asked {request.url}")

        def wrote(message: ConsoleMessage) -> None:
            asked_for_icon = message.location["url"].endswith("/favicon.ico")  # Chromium itself did
            if message.type in ("error", "warning") and not (asked_for_icon or _NETWORK.search(message.text)):
                self._problems.append(f"its console says: {message.text}")

        page.on("request", asked)
        page.on("console", wrote)
        page.on("pageerror", lambda error: self._problems.append(f"it raised {error.stack or error}"))
        page.on("crash", lambda _: self._problems.append("it crashed"))
        await page.goto(url)
        return page

    @contextmanager
    def expecting(self, pattern: str) -> Generator[None]:
        """What happens inside the block may bring about problems that match; it has to bring about one."""
        before = len(self._problems)
        yield
        new = self._problems[before:]
        expected = [problem for problem in new if re.search(pattern, problem)]
        assert expected, f"nothing matches {pattern!r} in {new}"
        self._problems[before:] = [problem for problem in new if problem not in expected]

    async def picture(self, folder: Path) -> list[Path]:
        """Take a picture of every tab that is open."""
        paths: list[Path] = []
        for number, page in enumerate(self._pages, 1):
            if not page.is_closed():
                paths.append(folder / f"tab-{number}.png")
                await page.screenshot(path=paths[-1])
        return paths

    async def close(self) -> None:
        """Close all of them.

        :raises AssertionError: when there was a problem.
        """
        for context in self._contexts:
            await context.close()
        assert not self._problems, "\n".join(["a tab did what it should not:", *self._problems])
