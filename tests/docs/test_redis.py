"""The page about Redis: its code runs, its tables are true, and its permissions are enough and not more."""

from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Published, anonymous
from rtkit.brokers import open_url
from rtkit.brokers.redis import RedisBroker
from rtkit.brokers.redis import broker as module
from rtkit.brokers.redis.scripts import COMMANDS
from tests.docs.blocks import blocks, table
from tests.support.redises import RedisError, RedisServer

PAGE = "docs/how-to/redis.md"


def block(name: str) -> str:
    (found,) = [each for each in blocks(PAGE) if each.info[-1] == name]
    return found.text


def run(name: str, server: RedisServer) -> Any:
    page = types.ModuleType("page")
    text = block(name)
    for old, new in (
        ("localhost:6379/0", f"127.0.0.1:{server.port}/0"),
        ("port=6379", f"port={server.port}"),
    ):
        text = text.replace(old, new)
    exec(compile(text, PAGE, "exec"), vars(page))
    return page


async def test_two_nodes_by_url(redis_server: RedisServer) -> None:
    first, second = run("hub", redis_server).hub, run("hub", redis_server).hub
    async with asyncio.timeout(20), first, second:
        published: Published = await first.room("news:sport").publish({"text": "goal"})
        page = await second.room("news:sport").history()
        assert page.messages[-1].data == {"text": "goal"}
        assert page.messages[-1].position == published.position


async def test_with_a_client(redis_server: RedisServer) -> None:
    page = run("client", redis_server)
    async with asyncio.timeout(20), page.redis, page.hub:
        assert await page.redis.ping()


def test_the_options_are_these() -> None:
    rows = table(PAGE, "option", "default", "")
    assert {row["option"].strip("`") for row in rows} == set(module._OPTIONS)
    parameters = inspect.signature(RedisBroker).parameters
    for row in rows:
        name, default = row["option"].strip("`"), row["default"].strip("`")
        assert parameters[name].default == type(parameters[name].default)(default), name


@pytest.mark.parametrize("name", ["sentinel", "cluster"])
def test_the_urls_are_understood(name: str) -> None:
    assert isinstance(open_url(block(name).strip()), RedisBroker)


async def test_the_permissions_are_enough(redis_server: RedisServer) -> None:
    """... for a hub that uses all that a broker can do; the conformance kit runs as this user elsewhere."""
    words = block("acl").split()
    assert words[:2] == ["user", "rtkit"]
    allowed = {word[1:] for word in words if word.startswith("+")}
    assert set(COMMANDS) <= allowed
    redis_server.command("ACL", "SETUSER", "rtkit", *words[2:])
    try:
        hub = Hub(
            authenticate=anonymous,
            broker=f"redis://rtkit:secret@127.0.0.1:{redis_server.port}/0?prefix=rt:acl",
        )
        hub.rooms("log:{x}", publishes=object, grant=Grant("publish"), history=History(10, ttl=60))
        async with asyncio.timeout(20), hub:
            await hub.room("log:a").publish(1, key="k")
            assert (await hub.room("log:a").history()).messages[-1].data == 1
        for forbidden in (("KEYS", "*"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "other")):
            assert redis_server.command("ACL", "DRYRUN", "rtkit", *forbidden) != b"OK"
    except RedisError as error:  # pragma: no cover
        pytest.fail(str(error))
    finally:
        redis_server.command("ACL", "DELUSER", "rtkit")
