"""The kit as a third party has it: a folder with one test file, and rtkit installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Each starts another pytest, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(180)

# Ten lines that are neither empty nor an import.
PROJECT = """
from contextlib import asynccontextmanager
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing import ManualClock
from rtkit.testing.conformance import BrokerSuite, StateBrokerSuite, StreamBrokerSuite


class TestMine(StreamBrokerSuite, StateBrokerSuite):
    left_out = dict.fromkeys(("outage", "restart", "lose"), "it lives in this process")
    stories = 20

    @asynccontextmanager
    async def cluster(self):
        self.clock = ManualClock()
        backend = MemoryBackend(clock=self.clock)
        yield lambda: MemoryBroker(backend)

    async def advance(self, seconds):
        await self.clock.advance(seconds)
"""

BARE = """
import pytest
from contextlib import asynccontextmanager
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.testing.conformance import BrokerSuite

class Bare:
    def __init__(self, backend):
        broker = MemoryBroker(backend)
        for name in ("open", "aclose", "publish", "subscribe", "unsubscribe"):
            setattr(self, name, getattr(broker, name))
        self.publish = getattr(self, "broken", broker.publish)

    async def broken(self, topic, payload):
        pass

class TestBare(BrokerSuite):
    left_out = {"outage": "none", "restart": "none", "lose": "none"}
    patience = 0.1

    @asynccontextmanager
    async def cluster(self):
        backend = MemoryBackend()
        yield lambda: Bare(backend)

    @pytest.mark.xfail(reason="it has no echo")
    async def test_echo(self, nodes, topic):
        await super().test_echo(nodes, topic)

    @pytest.mark.skip(reason="no time")
    async def test_wrong_loop(self): ...

    def test_of_its_own(self): ...
"""


def run(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(source)
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faker",
        *arguments,
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )


def test_ten_lines_are_enough(tmp_path: Path) -> None:
    done = run(tmp_path, PROJECT, "--rtkit-certify", "made/cert.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rtkit conformance: TestMine: 109 promises kept, 18 excused" in done.stdout
    certificate = json.loads((tmp_path / "made/cert.json").read_text())
    assert certificate["kit"] == 1
    assert set(certificate["versions"]) == {"python", "rtkit", "pytest", "anyio", "hypothesis"}
    (suite,) = certificate["suites"]
    assert suite["suite"] == "test_mine.TestMine"
    assert suite["certified"] is True
    assert suite["protocols"] == ["Broker", "StreamBroker", "StateBroker"]
    assert suite["promises"]["test_echo"] == {"outcome": "kept"}
    lost = suite["promises"]["test_a_stream_that_was_lost_begins_a_new_epoch"]
    assert lost == {"outcome": "excused", "reason": "without lose(): it lives in this process"}
    assert len([line for line in PROJECT.splitlines() if line and "import" not in line]) <= 10


def test_the_certificate_says_what_is_not_kept(tmp_path: Path) -> None:
    done = run(
        tmp_path, BARE, "--rtkit-certify", "cert.json", "-k",
        "echo or wrong_loop or every_subscriber or of_its_own or not_subscribed or larger",
    )  # fmt: skip
    assert done.returncode == 1
    (suite,) = json.loads((tmp_path / "cert.json").read_text())["suites"]
    assert suite["certified"] is False
    assert suite["protocols"] == ["Broker"]
    outcomes: dict[str, Any] = suite["promises"]
    assert outcomes["test_echo"] == {"outcome": "excused", "reason": "it has no echo"}
    assert outcomes["test_wrong_loop"] == {"outcome": "not tried", "reason": "no time"}
    assert outcomes["test_not_subscribed_is_no_error"] == {"outcome": "kept"}
    assert outcomes["test_every_subscriber_gets_it"]["outcome"] == "broken"
    assert "not all came" in outcomes["test_every_subscriber_gets_it"]["reason"]
    assert outcomes["test_open_is_not_for_twice"] == {"outcome": "not run"}
    assert "test_of_its_own" not in outcomes
    assert "TestBare: 1 promise kept, 1 excused, 1 not tried, 2 broken, " in done.stdout


@pytest.mark.soak
def test_assertions_of_the_kit_show_what_they_compared(tmp_path: Path) -> None:
    source = (
        PROJECT.replace("yield lambda: MemoryBroker(backend)", "yield lambda: Twice(backend)")
        + """
class Twice(MemoryBroker):
    async def publish(self, topic, payload):
        await super().publish(topic, payload)
        await super().publish(topic, payload)
"""
    )
    done = run(tmp_path, source, "-k", "test_a_publication_is_delivered_once")
    assert done.returncode == 1
    assert "Left contains one more item: Delivery(" in done.stdout


@pytest.mark.soak
def test_several_processes_count_together(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    done = run(
        tmp_path,
        PROJECT,
        "-n",
        "2",
        "--rtkit-certify",
        "cert.json",
        "-k",
        "(read or put or renew) and not without",
    )
    assert done.returncode == 0, done.stdout
    (suite,) = json.loads((tmp_path / "cert.json").read_text())["suites"]
    kept = [name for name, found in suite["promises"].items() if found["outcome"] == "kept"]
    assert set(kept) == {
        name
        for name in suite["promises"]
        if any(word in name for word in ("read", "put", "renew")) and "without" not in name
    }
    assert f"TestMine: {len(kept)} promises kept, {127 - len(kept)} not run" in done.stdout


def test_who_does_not_test_brokers_sees_nothing_of_it(tmp_path: Path) -> None:
    source = """
import sys

def test_nothing():
    assert not {"rtkit.testing.conformance", "hypothesis", "websockets", "rtkit.client"} & set(sys.modules)
"""
    done = run(tmp_path, source, "-p", "no:hypothesispytest", "-p", "no:_hypothesis_pytestplugin")
    assert done.returncode == 0, done.stdout
    assert "rtkit" not in done.stdout


@pytest.mark.soak
def test_without_a_suite_nothing_is_certified(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_nothing(): ...", "--rtkit-certify", "cert.json")
    assert "no suite was run, so cert.json certifies nothing" in done.stdout
    assert json.loads((tmp_path / "cert.json").read_text())["suites"] == []
