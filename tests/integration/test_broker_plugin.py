"""`examples/broker_plugin`, as somebody has it who installs it: found by URL, and certified."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from rtkit import Grant, History, Hub, Identity, Presence, anonymous
from rtkit.brokers import open_url
from rtkit.brokers.base import keeps_state, keeps_streams
from rtkit.testing import TestHub
from tests.docs.blocks import blocks, table
from tests.support.natses import NatsServer
from tests.support.services import require

ROOT = Path(__file__).parents[2]
PAGE = "docs/how-to/nats.md"
PACKAGE = ROOT / "examples" / "broker_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, built and installed as anywhere else, but without asking a registry."""
    if importlib.util.find_spec("hatchling") is None:
        require("nats", "no hatchling", "pip install hatchling")
    # A copy: building leaves things beside the sources.
    source = shutil.copytree(
        PACKAGE,
        tmp_path_factory.mktemp("source") / "rtkit-nats",
        ignore=shutil.ignore_patterns(".*", "__pycache__"),
    )
    target = tmp_path_factory.mktemp("installed")
    if importlib.util.find_spec("uv") is not None:
        install = ["uv", "pip", "install", "--quiet", "--offline", "--python", sys.executable]
    else:
        install = ["pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
    ran = subprocess.run(
        [sys.executable, "-m", *install, "--no-deps", "--no-build-isolation", "--target", target, source],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return target


@pytest.fixture
def importable(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is on the path, and afterwards it is not."""
    monkeypatch.syspath_prepend(installed)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "rtkit_nats"]:
        del sys.modules[name]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 8MB\n")
    with NatsServer("-c", str(config)) as server:
        yield server


@pytest.mark.usefixtures("importable")
def test_it_is_found_by_its_url() -> None:
    assert "nats" in {found.name for found in entry_points(group="rtkit.brokers")}
    broker = open_url("nats://127.0.0.1:1?prefix=chat")
    assert type(broker).__name__ == "NatsBroker"
    assert keeps_streams(broker) and keeps_state(broker)


@pytest.mark.usefixtures("importable")
async def test_two_hubs_talk_through_it(server: NatsServer) -> None:
    def hub() -> Hub[None]:
        hub = Hub(authenticate=anonymous, broker=server.url)
        hub.rooms(
            "lobby",
            publishes=object,
            grant=Grant("publish", "history", "presence"),
            history=History(10, ttl=60.0),
            presence=Presence(),
        )
        return hub

    async with asyncio.timeout(30), TestHub(hub()) as one, TestHub(hub()) as two:
        ann, bob = await one.connect(Identity("ann")), await two.connect(Identity("bob"))
        async with ann.join("lobby") as hers, bob.join("lobby") as his:
            await hers.send("hello")
            assert (await anext(his)).data == "hello"
            await his.send("hello yourself")
            heard = [(await anext(hers)) for _ in range(2)]
            assert [message.data for message in heard] == ["hello", "hello yourself"]
            assert [message.position.offset for message in heard if message.position] == [1, 2]
        # What was said is there for whoever comes later, on whichever node.
        page = await two.hub.room("lobby").history()
        assert [message.data for message in page.messages] == ["hello", "hello yourself"]


@pytest.mark.usefixtures("importable")
def test_the_page_says_what_can_be_chosen() -> None:
    from rtkit_nats import Settings

    rows = table(PAGE, "option", "default", "meaning")
    said = {row["option"].strip("`"): row["default"].strip("`") for row in rows}
    assert said == {field.name: f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
                    for field in dataclasses.fields(Settings)}  # fmt: skip
    for kind in ("hub", "options"):
        (block,) = blocks(PAGE, "python", kind)
        found: dict[str, Any] = {}
        exec(block.code(), found)
        assert isinstance(found["hub"], Hub)


@pytest.mark.soak
def test_it_is_certified(installed: Path, tmp_path: Path) -> None:
    """Its own tests, as its author runs them: the whole kit, and nothing of it excused."""
    certificate = tmp_path / "certificate.json"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rtkit-certify={certificate}", "tests"],
        cwd=PACKAGE,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    (suite,) = json.loads(certificate.read_text())["suites"]
    assert {promise["outcome"] for promise in suite["promises"].values()} == {"kept"}
    assert set(suite["protocols"]) == {"Broker", "StreamBroker", "StateBroker"}
