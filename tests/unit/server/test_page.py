"""docs/how-to/deploy-our-server.md: its programs run, and its tables are true."""

from __future__ import annotations

import inspect
import textwrap
import types
from dataclasses import fields
from typing import Any

import pytest

import rtkit
from rtkit.client import connect
from rtkit.server import ServerLimits, listen
from tests.docs.blocks import Block, blocks, prose, table
from tests.support.hosts import CERTIFICATE

PAGE = "docs/how-to/deploy-our-server.md"


def run(block: Block) -> Any:
    module = types.ModuleType("page")
    code: Any = block.code()
    exec(code, vars(module))
    return module


@pytest.mark.parametrize("block", list(blocks(PAGE, "python")), ids=lambda block: block.info[1])
async def test_its_hubs_are_served(block: Block) -> None:
    page = run(block)
    async with listen(page.hub) as server, connect(server.url) as client, client.join("lobby") as room:
        await room.send("hello")
        assert isinstance(await anext(room), rtkit.Message)


async def test_the_program_that_does_more() -> None:
    (block,) = blocks(PAGE, "python", "listen")
    page, printed = run(block), list[Any]()
    page.print = printed.append
    await page.main()
    assert [message.data for message in printed] == ["hello"]


def test_the_program_with_an_api(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(PAGE, "python", "api")
    monkeypatch.setenv("API_KEY", "correct-horse-battery-staple")
    page = run(block)
    served = list[dict[str, Any]]()
    monkeypatch.setattr(page.rtkit, "serve", lambda hub, **options: served.append(options))
    monkeypatch.setattr(page.asyncio, "run", lambda _: None)
    _, _, main = block.text.partition('if __name__ == "__main__":\n')
    exec(textwrap.dedent(main), vars(page))
    assert isinstance(served[0]["api"], page.HttpApi)
    assert served[0].keys() == {"port", "api"}


@pytest.mark.parametrize("name", ["serve", "tls", "unix"])
async def test_the_programs_that_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very call that is on the page, but for the wait for its end."""
    (block,) = blocks(PAGE, "python", name)
    page = run(block)
    calls: list[dict[str, Any]] = []

    async def serve(hub: Any, **options: Any) -> None:
        assert hub is page.hub
        inspect.signature(original).bind(hub, **options)
        calls.append(options)

    original = rtkit.serve
    monkeypatch.setattr(rtkit, "serve", serve, raising=False)
    if name == "tls":
        await page.main(str(CERTIFICATE), str(CERTIFICATE))
        assert calls[0].keys() == {"host", "port", "ssl"}
    elif name == "unix":
        await page.main()
        assert calls == [{"unix": "/run/chat/rtkit.sock"}]
    else:
        assert "rtkit.serve(hub, port=8000)" in block.text


def test_the_options() -> None:
    parameters = dict(list(inspect.signature(rtkit.serve).parameters.items())[1:])
    rows = {
        row["option of `rtkit.serve`"].strip("`"): row["default"]
        for row in table(PAGE, "option of `rtkit.serve`", "default", "what")
    }
    assert list(rows) == list(parameters)
    for name, default in rows.items():
        value = parameters[name].default
        shown = {"off": None, "see below": None}.get(default, default.strip("`").strip('"'))
        assert shown == (None if value is None else str(value))


def test_the_limits() -> None:
    rows = {row["limit"].strip("`"): row["default"] for row in table(PAGE, "limit", "default", "beyond it")}
    assert rows == {each.name: str(each.default) for each in fields(ServerLimits)}


def test_the_time_it_takes_to_end() -> None:
    assert rtkit.Limits().drain_timeout == ServerLimits().drain_timeout == 5
    assert ServerLimits().close_timeout < rtkit.Limits().drain_timeout
    assert rtkit.Limits().drain_spread == 10
    assert "5 s for\nhandlers" in prose(PAGE) or "5 s for handlers" in prose(PAGE)
