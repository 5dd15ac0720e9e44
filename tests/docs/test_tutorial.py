"""The tutorial's code runs: its server under uvicorn, its client against it, its tests as tests."""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rtkit import Gap
from rtkit.client import connect
from tests.docs.blocks import ROOT, Block, blocks
from tests.support.servers import serve_asgi

SERVER = "docs/tutorial/1-first-chat.md"
CLIENT = "docs/tutorial/2-client.md"
TESTING = "docs/tutorial/3-testing.md"


def load(name: str, sources: list[Block], change: Callable[[str], str] = lambda source: source) -> Any:
    """The blocks as one module, findable under *name* while the test runs."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for block in sources:
        changed = Block(block.page, block.line, block.info, change(block.text))
        exec(changed.code(), vars(module))
    return module


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    yield
    for name in ("server", "client", "handler_tests"):
        sys.modules.pop(name, None)


def lines_of(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


def test_part_1_is_the_example() -> None:
    told = "\n".join(block.text for block in blocks(SERVER, "python", "server"))
    example = (ROOT / "examples/fastapi_chat.py").read_text()
    docstring, *rest = lines_of(example)
    assert docstring.startswith('"""')
    assert lines_of(told) == rest


def with_handler_of_part_2() -> Any:
    (handler,) = blocks(CLIENT, "python", "handler")

    def change(source: str) -> str:
        return handler.text if "@chat.on(Say)" in source else source

    return load("server", list(blocks(SERVER, "python", "server")), change)


async def test_part_2_talks_to_part_1() -> None:
    server = with_handler_of_part_2()
    async with serve_asgi(server.app, lifespan="on") as port:
        client = load(
            "client",
            list(blocks(CLIENT, "python", "client")),
            lambda source: source.replace("8000", str(port)),
        )
        client.Saved = server.Saved
        assert await client.send_and_tell("first") == 1

        heard: asyncio.Queue[Any] = asyncio.Queue()
        client.show = heard.put_nowait
        talking = asyncio.create_task(client.main())
        try:
            async with asyncio.timeout(10):
                texts = [(await heard.get()).data.text for _ in range(2)]
                assert texts == ["first", "hello"]

                await server.hub.user("ann").close(code=3000)
                await server.hub.publish("chat:lobby", server.Said("while you were out"))
                message = await heard.get()
                assert (message.data.text, message.sender, message.position.offset) == (
                    "while you were out",
                    None,
                    3,
                )

                await server.hub.room("chat:lobby").clear()
                gap = await heard.get()
                assert isinstance(gap, Gap)
                assert gap.reason == "epoch"
        finally:
            talking.cancel()
            await asyncio.wait({talking})


async def test_part_1_keeps_people_out() -> None:
    server = load("server", list(blocks(SERVER, "python", "server")))
    from rtkit.errors import CallError, ConnectionClosed

    async with serve_asgi(server.app, lifespan="on") as port:
        url = f"http://127.0.0.1:{port}/rt"
        with pytest.raises(ConnectionClosed, match="no valid token"):
            async with connect(url, token="made up"):
                pass
        async with connect(url, token=await server.login("ann")) as ann:
            with pytest.raises(CallError, match="for staff"):
                await ann.join("chat:staff")
        async with connect(url, token=await server.login("boss")) as boss, boss.join("chat:staff"):
            pass


def handler_tests() -> list[str]:
    source = "\n".join(block.text for block in blocks(TESTING, "python", "test"))
    return [
        line.split()[2].split("(")[0] for line in source.splitlines() if line.startswith("async def test")
    ]


@pytest.mark.parametrize("name", handler_tests())
async def test_part_3_passes(name: str) -> None:
    load("server", list(blocks(SERVER, "python", "server")))
    found = getattr(load("handler_tests", list(blocks(TESTING, "python", "test"))), name)
    assert inspect.iscoroutinefunction(found)
    await found()


def test_the_first_one_has_ten_lines() -> None:
    first = next(blocks(TESTING, "python", "test")).text.partition("async def test")[2]
    assert len(lines_of(first)) <= 10


def test_every_block_is_run_or_shell() -> None:
    infos = {block.info for page in (SERVER, CLIENT, TESTING) for block in blocks(page)}
    assert infos == {
        ("sh",),
        ("js", "page"),
        *(("python", kind) for kind in ("server", "client", "handler", "test")),
    }
