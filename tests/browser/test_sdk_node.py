"""The browser SDK in node: its own tests, under a virtual clock, and a client of a real hub (K1, K2, K3)."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Reject
from rtkit.features import Presence, Receipts, Signals, Typing
from rtkit.server import listen
from tests.support.node import find_node

HERE = Path(__file__).parent / "unit"
FILES = sorted(HERE.glob("*.test.mjs"))
#: How many tests stand in each, at the least; some are made in loops.
WRITTEN = {file: len(re.findall(r"^test\(", file.read_text(), flags=re.M)) for file in FILES}


async def run_node(*arguments: str, **env: str) -> str:
    """Run node's own test runner; what it wrote, if it fails, is the failure."""
    process = await asyncio.create_subprocess_exec(
        find_node(),
        "--test",
        "--test-reporter=tap",
        "--test-timeout=20000",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # A node that runs tests tells its children so, and they would not write for people.
        env={**{k: v for k, v in os.environ.items() if k != "NODE_TEST_CONTEXT"}, **env},
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        failed = [
            block for block in re.split(r"^(?=not ok|# Subtest)", output, flags=re.M) if "not ok" in block
        ]
        pytest.fail("\n".join(failed)[:10_000] or output[-10_000:], pytrace=False)
    return output


@pytest.mark.parametrize("file", FILES, ids=[file.name.split(".")[0] for file in FILES])
async def test_unit(file: Path) -> None:
    output = await run_node(str(file))
    passed = re.search(r"^# pass (\d+)$", output, flags=re.M)
    assert passed is not None
    assert int(passed[1]) >= WRITTEN[file] > 0


def test_every_file_is_run() -> None:
    assert {file.name for file in HERE.glob("*.mjs")} - {file.name for file in FILES} == {
        "harness.mjs",
        "hub.mjs",
    }


# -- a real hub --------------------------------------------------------------------------------------


@dataclass
class Say:
    text: str


@dataclass
class Said:
    text: str


@dataclass
class Saved:
    offset: int


@dataclass
class Add:
    a: int
    b: int


@dataclass
class Cut:
    room: str
    texts: list[str]


@dataclass
class Clear:
    room: str


@dataclass
class Remove:
    room: str


@dataclass
class Echo:
    text: str


@dataclass
class Poke:
    pass


@dataclass
class Renew:
    pass


async def authenticate(credentials: Credentials) -> Identity[None]:
    if not (credentials.token or "").startswith("t-"):
        raise Reject("show a token", code=101)
    return Identity((credentials.token or "").removeprefix("t-"))


def make_hub() -> Hub[None]:
    hub = Hub(authenticate=authenticate)
    rights = Grant("publish", "signal", "history")
    chat = hub.rooms("chat:{room}", publishes=Said, history=History(100, ttl=3600), grant=rights)
    hub.rooms(
        "user:{user}",
        publishes=object,
        history=History(100, ttl=3600),
        grant=Grant(),
        auto_join=lambda identity: [f"user:{identity.user}"],
    )
    team = hub.rooms(
        "team:{room}",
        publishes=Said,
        history=History(100, ttl=3600),
        grant=Grant("publish", "signal", "presence"),
        presence=Presence(),
        receipts=Receipts(),
        typing=Typing(),
        signals=Signals(rate=20),
    )
    cut: set[str | None] = set()

    @team.on(Say)
    async def say_to_team(ctx: Context[None, Said], message: Say) -> None:
        await ctx.room.publish(Said(message.text))

    @chat.on_join
    async def on_join(ctx: Context[None, Said]) -> dict[str, Any]:
        return {"room": ctx.room.params["room"], **(ctx.data or {})}

    @chat.on(Say)
    async def say(ctx: Context[None, Said], message: Say) -> Saved:
        if message.text == "no":
            raise Reject("not here", code=455)
        published = await ctx.room.publish(Said(message.text))
        if message.text == "cut me" and ctx.key not in cut:
            cut.add(ctx.key)  # done, and the answer is lost
            await ctx.session.close(code=3000)
        assert published.position is not None
        return Saved(published.position.offset)

    @hub.rpc(Add)
    async def add(ctx: Context[None, Any], params: Add) -> int:
        return params.a + params.b

    @hub.rpc(Cut)
    async def cut_off(ctx: Context[None, Any], params: Cut) -> None:
        if ctx.key in cut:
            return  # sent again, since the answer was lost
        cut.add(ctx.key)
        await ctx.session.close(code=3000)
        for text in params.texts:
            await hub.publish(f"chat:{params.room}", Said(text))

    @hub.rpc(Clear)
    async def clear(ctx: Context[None, Any], params: Clear) -> None:
        await hub.room(f"chat:{params.room}").clear()

    @hub.rpc(Remove)
    async def remove(ctx: Context[None, Any], params: Remove) -> None:
        await hub.room(f"chat:{params.room}").remove(ctx.user, reason="enough")

    @hub.rpc(Echo)
    async def echo(ctx: Context[None, Any], params: Echo) -> str:
        return params.text

    @hub.rpc(Poke)
    async def poke(ctx: Context[None, Any], params: Poke) -> None:
        ctx.session.send("poked")
        await hub.publish(f"user:{ctx.user}", f"for {ctx.user}")

    @hub.rpc(Renew)
    async def renew(ctx: Context[None, Any], params: Renew) -> None:
        await hub.user(ctx.user).refresh()

    return hub


@pytest.mark.parametrize("transport", ["websocket", "sse", "poll"])
async def test_against_a_real_hub(transport: str) -> None:
    hub = make_hub()
    async with listen(hub, port=0) as server:
        port = urlsplit(server.url).port
        # Before version 22 WebSocket had to be asked for.
        version = await asyncio.create_subprocess_exec(
            find_node(), "--version", stdout=asyncio.subprocess.PIPE
        )
        major = int((await version.communicate())[0].decode().removeprefix("v").split(".")[0])
        flags = ["--experimental-websocket"] if major < 22 else []
        await run_node(
            *flags,
            str(HERE / "hub.mjs"),
            RTKIT_TEST_URL=f"http://127.0.0.1:{port}/rt",
            RTKIT_TEST_TRANSPORT=transport,
        )
