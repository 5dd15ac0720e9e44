"""The page on draining: its numbers, its programs and its hook."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import textwrap
import types
from typing import Any

import pytest

from rtkit import Limits
from rtkit.client import connect
from rtkit.hub import drain
from tests.docs.blocks import blocks, prose
from tests.support.daemons import free_port
from tests.support.servers import serve_asgi

PAGE = "docs/how-to/drain.md"
KEY = "a-key-for-the-page-alone"


def program(kind: str) -> Any:
    (block,) = blocks(PAGE, "python", kind)
    module: Any = types.ModuleType("page")
    code: Any = block.code()
    exec(code, vars(module))
    return module


def hook() -> str:
    """What Kubernetes is told to run."""
    (found,) = (block.text for block in blocks(PAGE, "yaml") if "preStop" in block.text)
    return textwrap.dedent(found.partition("- |\n")[2])


async def test_the_hook_drains_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", KEY)
    page = program("app")
    async with serve_asgi(page.app, lifespan="on") as port, connect(f"http://127.0.0.1:{port}/rt") as client:
        assert client.state == "connected"
        text = hook().replace(":8000/", f":{port}/")
        await asyncio.to_thread(exec, compile(text, PAGE, "exec"), {})
        assert page.hub._not_ready() is not None
        assert page.hub.statistics().connections == 0
        assert page.hub.running


async def test_hypercorn_ends_when_the_hub_has_drained() -> None:
    from hypercorn.config import Config

    page, config, port = program("hypercorn"), Config(), free_port()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "ERROR"
    before = signal.getsignal(signal.SIGTERM)
    try:
        async with asyncio.timeout(20):
            serving = asyncio.create_task(page.main(config))
            async with connect(f"http://127.0.0.1:{port}") as client:
                assert client.state == "connected"
                os.kill(os.getpid(), signal.SIGTERM)
                await serving
                assert "3001" in (client.statistics().last_failure or "")
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


def test_the_numbers_are_the_hubs() -> None:
    text, limits = " ".join(prose(PAGE).split()), Limits()
    assert f"over {limits.drain_spread:g} s at the most" in text
    whole = drain._RATE * (limits.drain_spread or 0)
    assert f"fewer than {whole:,.0f} take less, at {drain._RATE:g} a second" in text
    assert f"at most {drain._LATE:g} s after the last client was to be back" in text
    assert f"| {limits.drain_timeout:g} s after the last close" in text
    assert drain._WINDOW == 1 and "within a second of their own" in text
    (probe,) = (block.text for block in blocks(PAGE, "yaml") if "readinessProbe" in block.text)
    whole = (limits.drain_spread or 0) + limits.drain_timeout
    assert f"the drain has {whole:g} s at the most" in probe
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", probe)
    assert int(grace) > whole + 2 * limits.drain_timeout


def test_every_block_is_run() -> None:
    found = [block.info for block in blocks(PAGE)]
    assert sorted(found) == [("python", "app"), ("python", "hypercorn"), ("yaml",), ("yaml",)]
