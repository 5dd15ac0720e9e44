"""The benchmarks run, in short forms, so that they do not rot; what they measure is not judged here."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.services import require

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they use epoll and /proc")


async def bench(name: str, *args: str, patience: float = 50, quiet: bool = True) -> str:
    """Run a benchmark to its end; what it printed.

    :param quiet: it must not complain of anything.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(BENCHMARKS / f"{name}.py"),
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await asyncio.wait_for(process.communicate(), patience)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode() + complained.decode()
    # That a busy machine has no time for it says nothing about the benchmark.
    complaints = [line for line in complained.splitlines() if b"the event loop stood still" not in line]
    assert not complaints or not quiet
    return said.decode()


async def test_in_a_room_every_member_gets_every_message_in_order() -> None:
    said = await bench("room", "--members", "50", "--rate", "200", "--seconds", "1", "--processes", "2")
    assert said.count("all there, in order") == 2
    assert said.count("joined 50 of 50") == 2
    assert said.count("10,000 deliveries") == 2


async def test_versus_websockets() -> None:
    said = await bench(
        "versus_websockets", "--members", "20", "--seconds", "0.5", "--warmup", "0.1", "--pairs", "1"
    )
    assert "deliveries per CPU second" in said


@pytest.mark.soak
async def test_idle_members_stay() -> None:
    said = await bench(
        "idle", "--members", "20", "--rest", "0.5", "--settle", "0.3", "--case", "rooms", "peer"
    )
    assert said.count("20 of 20 joined") == 2
    assert said.count("20 still there") == 2


@pytest.mark.soak
async def test_marks_cost_something() -> None:
    said = await bench("marks", "--members", "20", "--seconds", "1")
    assert "in the end 0 members were not known to have read everything" in said
    assert "receipts cost" in said


@pytest.mark.soak
async def test_transports_cost_something() -> None:
    said = await bench("transports", "--members", "5", "--rate", "20", "--seconds", "0.5", "--rest", "0.2")
    assert said.count("| all") == 3


@pytest.mark.soak
async def test_others_go_on_while_something_large_leaves() -> None:
    said = await bench("large", "--megabytes", "1", "--runs", "1", "--what", "both", "--kind", "sse")
    assert "| `sse` | both |" in said


@pytest.mark.soak
async def test_people_come_and_go() -> None:
    said = await bench(
        "presence",
        "--what",
        "crowd",
        "--members",
        "40",
        "--churn",
        "10",
        "--seconds",
        "2",
        "--case",
        "listed",
    )
    assert "TROUBLE" not in said
    assert "members in," in said


@pytest.mark.soak  # thirteen processes
async def test_a_broker_costs_something() -> None:
    if shutil.which("redis-server") is None:
        require("redis", "no redis-server", "apt-get install redis-server")
    said = await bench("brokers", "--seconds", "0.3", "--rounds", "1", "--rate", "100", "--rooms", "200")
    assert said.count("acknowledged/s") == 6
    assert said.count(": 30 of 30,") == 2
    assert said.count("restore: 200 rooms") == 2


async def test_deflate() -> None:
    said = await bench("deflate", "--members", "5", "--messages", "2")
    assert "once for all" in said and "5 members" in said


@pytest.mark.soak
async def test_turning_away_costs_less_than_letting_in() -> None:
    said = await bench("admission", "--count", "100", "--rounds", "1")
    share = {
        line.split(":")[0].strip(): float(line.split()[-4]) for line in said.splitlines() if "µs" in line
    }
    assert set(share) == {"let in", "websocket", "poll", "events", "404"}
