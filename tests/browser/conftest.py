"""Chromium, started once, and tabs in it for each test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.support.browser import Tabs, chromium

_outcome = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Keep the outcome, so that fixtures know it when they end."""
    report: pytest.TestReport = yield
    if report.when == "call":
        item.stash[_outcome] = report
    return report


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all tests of this process."""
    async with chromium() as running:
        yield running


@pytest.fixture
async def tabs(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tabs]:
    """Tabs; of a test that fails there are pictures."""
    opened = Tabs(browser)
    yield opened
    report = request.node.stash.get(_outcome, None)
    if report is not None and report.failed:
        for path in await opened.picture(tmp_path):
            print(f"picture: {path}", file=sys.stderr)  # noqa: T201
    await opened.close()
