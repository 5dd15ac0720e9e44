"""The page on live notifications has the example's own code; the example is run in tests/browser."""

from __future__ import annotations

import textwrap

import pytest

from tests.docs.blocks import ROOT, blocks

PAGE = "docs/how-to/notifications.md"
EXAMPLE = ROOT / "examples" / "notifications"


@pytest.mark.parametrize(
    ("language", "block", "file"),
    [
        ("python", "rooms", "rooms.py"),
        ("python", "authenticate", "server.py"),
        ("python", "notify", "server.py"),
        ("python", "script", "notify.py"),
        ("js", "sdk", "page/notifications.js"),
        ("js", "plain", "page/notifications.js"),
    ],
)
def test_the_page_is_the_example(language: str, block: str, file: str) -> None:
    (found,) = blocks(PAGE, language, block)
    code = (EXAMPLE / file).read_text()
    assert any(textwrap.indent(found.text.rstrip(), indent) in code for indent in ("", "    ", "  "))


def test_all_of_the_page_is_held_to_something() -> None:
    assert not [block.where for block in blocks(PAGE) if block.info[0] != "sh" and len(block.info) < 2]


def test_the_rooms_are_the_whole_file() -> None:
    (found,) = blocks(PAGE, "python", "rooms")
    assert (EXAMPLE / "rooms.py").read_text().partition('"""\n\n')[2] == found.text
