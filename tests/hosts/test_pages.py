"""The how-to pages of the hosts: their code is the examples that the matrix runs."""

from __future__ import annotations

import ast
import asyncio
import types
from typing import Any

import httpx2
import pytest

from rtkit.client import connect
from rtkit.errors import ConnectionClosed
from tests.docs.blocks import ROOT, blocks, table
from tests.hosts.examples import ALONE, FOLDER, NAMES
from tests.hosts.guests import GUESTS
from tests.hosts.hosts import EVERY_SERVER
from tests.hosts.test_matrix import LAST_WORDS
from tests.support.servers import serve_asgi

PAGES = "docs/how-to/hosts"


@pytest.mark.parametrize("framework", NAMES)
def test_the_page_is_the_example(framework: str) -> None:
    page = f"{PAGES}/{framework.lower()}.md"
    example = (FOLDER / f"{NAMES[framework]}.py").read_text()
    (block,) = blocks(page, "python", "host")
    code = example.partition('"""\n\n')[2]
    assert block.text.strip() == code.strip()
    run = ast.get_docstring(ast.parse(example)) or ""
    shell = "".join(each.text for each in blocks(page, "sh"))
    how = (
        run.partition("`")[2]
        .partition("`")[0]
        .replace("--app-dir examples/hosts ", "")
        .replace("examples/hosts/", "")
    )
    assert how in shell, f"the page does not say {how}"


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NAMES.values())


async def test_what_depends_does_not_reach() -> None:
    """FastAPI: a session by ``credentials.scope``, the application's things by ``hub.state``."""
    (block,) = blocks(f"{PAGES}/fastapi.md", "python", "depends")
    page: Any = types.ModuleType("page")
    exec(block.code(), vars(page))
    async with serve_asgi(page.app, lifespan="on") as port, httpx2.AsyncClient() as http:
        base = f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionClosed, match="3500"):
            async with connect(f"{base}/rt"):
                pass
        response = await http.post(f"{base}/login?user=ann")
        cookie = response.headers["set-cookie"].partition(";")[0]
        async with connect(f"{base}/rt", headers={"Cookie": cookie}) as ann:
            async with asyncio.timeout(5):
                assert await ann.call("world", name="greet", returns=str) == "hello, world, says ann"


def test_the_front_page_says_where_it_works() -> None:
    """``./dev matrix`` writes the table; a framework or server that is new has to get into it."""
    servers = [name for name in LAST_WORDS if name not in (*NAMES, ALONE)]
    rows = table("README.md", "framework", *servers, "its own server")
    assert [row["framework"] for row in rows] == [*NAMES, ALONE]
    rows = table("README.md", "client", *EVERY_SERVER)
    assert [row["client"] for row in rows] == list(GUESTS)
    assert (ROOT / "README.md").read_text().count("<!-- matrix") == 2
