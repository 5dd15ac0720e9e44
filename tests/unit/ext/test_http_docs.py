"""The pages about the HTTP API: their commands run, and their tables say what the code does."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import types
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any

import httpx2
import pytest
from msgspec import Struct
from msgspec.structs import fields

from rtkit import Limits
from rtkit.ext import http_api, http_commands, http_outcomes, http_units
from rtkit.ext.http_commands import COMMANDS
from tests.docs.blocks import Block, blocks, prose, table
from tests.support.servers import serve_asgi
from tests.unit.ext.conftest import KEY

HOW_TO = "docs/how-to/http-api.md"
REFERENCE = "docs/reference/http-api.md"


# -- the how-to -------------------------------------------------------------------------------------------


def run(block: Block, **names: Any) -> Any:
    page = types.ModuleType("page")
    vars(page).update(names)
    code: Any = block.code()
    exec(code, vars(page))
    return page


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The page's application, served."""
    monkeypatch.setenv("API_KEY", KEY)
    (block,) = blocks(HOW_TO, "python", "app")
    async with serve_asgi(run(block).app, lifespan="on") as port:
        yield port


async def by_curl(command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    assert (process.returncode == 0) == ("--fail" not in command)
    return out.decode()


async def by_hand(command: str) -> str:
    """What curl would do."""
    words = iter(shlex.split(command.replace("\\\n", " ").replace("$API_KEY", KEY)))
    assert next(words) == "curl"
    url, headers, data = "", dict[str, str](), ""
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            data = next(words)
        elif word != "--fail-with-body":
            url = word
    async with httpx2.AsyncClient() as http:
        return (await http.post(url, headers=headers, content=data)).text


@pytest.mark.parametrize("how", ["curl", "hand"])
async def test_the_commands_give_the_answers(port: int, how: str) -> None:
    if how == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    asked = list(blocks(HOW_TO, "sh", "curl"))
    answers = list(blocks(HOW_TO, "json", "answer"))
    assert len(asked) == len(answers) == 5
    for command, answer in zip(asked, answers, strict=True):
        assert command.line < answer.line
        text = command.text.strip().replace("localhost:8000", f"127.0.0.1:{port}")
        found = await (by_curl if how == "curl" else by_hand)(text)
        found = re.sub(r'"epoch":"[^"]+"', '"epoch":"…"', found)
        assert json.loads(found) == json.loads(answer.text), command.where


async def test_the_library_publishes(port: int) -> None:
    (block,) = blocks(HOW_TO, "python", "cent")
    changed = Block(
        block.page, block.line, block.info, block.text.replace("localhost:8000", f"127.0.0.1:{port}")
    )
    printed: list[Any] = []
    await asyncio.to_thread(lambda: run(changed, print=printed.append))
    assert printed == [1]


def test_every_block_is_run() -> None:
    found = {block.info for block in blocks(HOW_TO)}
    assert found == {("python", "app"), ("python", "cent"), ("sh", "curl"), ("json", "answer")}


# -- the reference ----------------------------------------------------------------------------------------

SECTIONS = {
    name: text
    for name, _, text in (
        section.partition("\n")
        for section in prose(REFERENCE).partition("## What is different")[0].split("\n### ")[1:]
    )
}
REQUESTS = {each.name: each.type for each in fields(http_units.OneOfBatch)}


def test_every_command_has_a_section() -> None:
    assert set(SECTIONS) == {*COMMANDS, "batch", "drain"}


@pytest.mark.parametrize("command", [*COMMANDS, "batch", "drain"])
def test_a_section_lists_the_fields(command: str) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", SECTIONS[command], flags=re.M)
    assert len(listed) == len(set(listed))
    apart: dict[str, type[Struct]] = {"batch": http_units.BatchRequest, "drain": http_units.DrainRequest}
    request = apart.get(command)
    if request is None:
        (request,) = (each for each in REQUESTS[command].__args__ if each is not type(None))
    assert set(listed) == set(request.__struct_fields__)


def test_results_are_named() -> None:
    for command, units in {
        "broadcast": [http_units.BroadcastResult],
        "presence": [http_units.PresenceResult],
        "presence_stats": [http_units.PresenceStatsResult],
        "channels": [http_units.ChannelsResult, http_units.ChannelInfo],
        "info": [http_units.InfoResult, http_units.Node],
    }.items():
        result = SECTIONS[command].partition("Result: ")[2]
        for unit in units:
            for name in unit.__struct_fields__:
                assert re.search(rf"[`\"]{name}[`\"]", result), f"{command}: {name}"


def test_errors_have_these_statuses() -> None:
    listed = {int(row["error"]): int(row["status"]) for row in table(REFERENCE, "error", "when", "status")}
    assert listed == {100: 500, **http_api._STATUS}


def test_the_bounds_are_these() -> None:
    bounds = {row["bound"]: row["number"] for row in table(REFERENCE, "bound", "number")}
    text = json.dumps(bounds)
    limits = Limits()
    assert limits.max_publication == 1024 * 1024 and "1 MiB" in text and "8 MiB" in text
    assert str(limits.history_page) in text
    numbers = (http_commands.MAX_CHANNELS, http_commands.MAX_COMMANDS, http_commands._KEY)
    assert all(str(number) in bounds.values() for number in numbers)
    assert http_commands._ANSWERS == 4 * 1024 * 1024 and "more than 4 MiB" in SECTIONS["batch"]
    assert f"{http_outcomes.ABREAST} at a time" in prose("docs/decisions/0018-http-api.md")


def test_the_page_names_the_version() -> None:
    assert f"`cent` {metadata.version('cent')}" in prose(REFERENCE)
