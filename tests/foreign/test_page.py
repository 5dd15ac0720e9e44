"""The page about these clients, `docs/reference/centrifugo.md`, names what is tested."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tests.foreign.clients import NPM

PAGE = Path(__file__).parents[2] / "docs/reference/centrifugo.md"


def test_the_page_names_the_versions() -> None:
    text = PAGE.read_text().replace("\n", " ")
    assert f"npm `centrifuge` {NPM['centrifuge']}" in text
    assert f"`centrifuge-python` {metadata.version('centrifuge-python')}" in text
