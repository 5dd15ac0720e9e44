"""The page of what a hub counts lists what it counts."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any

from rtkit.client import connect
from rtkit.hub import HubStatistics
from tests.docs.blocks import ROOT, blocks, table
from tests.support.servers import serve_asgi

PAGE = "docs/reference/metrics.md"


def counted() -> set[str]:
    """Every name that is added to a hub's counters, wherever that is."""
    found: set[str] = set()
    trees = [ROOT / "src/rtkit/hub", ROOT / "src/rtkit/features"]
    for path in sorted(path for tree in trees for path in tree.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("counters.add"):
                name = node.args[0]
                parts = [name.body, name.orelse] if isinstance(name, ast.IfExp) else [name]
                found |= {ast.literal_eval(part) for part in parts}
    return found


def first_words(column: str, *columns: str) -> set[str]:
    return {re.sub("`", "", row[column]) for row in table(PAGE, column, *columns)}


def test_every_total_is_listed() -> None:
    assert first_words("total", "label", "meaning") == counted()


def test_everything_of_now_is_listed() -> None:
    fields = {field.name for field in dataclasses.fields(HubStatistics)}
    assert first_words("now", "meaning") == fields - {"totals"}


async def test_the_route_answers() -> None:
    import httpx2

    (block,) = blocks(PAGE, "python", "metrics")
    page: dict[str, Any] = {"__name__": "page"}
    exec(block.code(), page)
    async with serve_asgi(page["app"], lifespan="on") as port:
        base = f"http://127.0.0.1:{port}"
        async with connect(f"{base}/rt"), httpx2.AsyncClient() as http:
            answer = (await http.get(f"{base}/stats")).json()
            assert (answer["connections"], answer["sessions"]) == (1, 1)
