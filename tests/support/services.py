"""Services a test may find missing, and how loudly it says so.

A test that needs a Redis server or a browser calls `require` when there is none. On a laptop the test
is skipped and the run closes with a line that tells what was left out and how to get it::

    3 skipped: no redis-server (apt-get install redis-server)

Where the service has to be there, in CI (``CI=true``) or when asked for (``RTKIT_REQUIRE=redis,browser``),
the test fails instead: nothing may drop out of CI unnoticed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import NoReturn

import pytest

__all__ = ["require"]

# With xdist only the text of a skip travels to the process that prints the summary, so the text says it all.
_SKIPPED = re.compile(r"missing service \w+: (?P<what>.*)", re.DOTALL)


def require(service: str, reason: str, how_to_get: str) -> NoReturn:
    """Give up the running test (fixture, module) because `service` is missing.

    :param service: its word in ``RTKIT_REQUIRE``, for example ``redis``
    :param reason: what was not found, for example ``no redis-server``
    :param how_to_get: the command that brings it, for example ``apt-get install redis-server``
    """
    message = f"missing service {service}: {reason} ({how_to_get})"
    required = {name.strip() for name in os.environ.get("RTKIT_REQUIRE", "").split(",")}
    if os.environ.get("CI") == "true" or service in required:
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close the run with one line per missing service."""
    missing = Counter[str]()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if found := _SKIPPED.search(text):
            missing[found["what"]] += 1
    for what, count in sorted(missing.items()):
        terminalreporter.write_line(f"{count} skipped: {what}", yellow=True)
