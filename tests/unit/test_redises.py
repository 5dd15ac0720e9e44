"""The Redis and Valkey servers of the tests: real, quick, and gone at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import wait_until
from tests.support.netns import Apart
from tests.support.redises import Kind, RedisCluster, RedisError, RedisPair, RedisServer, SentinelTrio

ROOT = Path(__file__).parents[2]
KINDS: tuple[Kind, ...] = ("redis", "valkey")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_answered_survives_a_kill_and_ends_with_a_wipe(kind: Kind) -> None:
    with RedisServer(kind, password="p@ss", maxmemory="64mb") as server:
        port, folder = server.port, server.folder
        server.command("SET", "a", b"\xff")
        server.restart()
        assert (server.command("GET", "a"), server.port) == (b"\xff", port)
        assert server.command("CONFIG", "GET", "maxmemory")[1] == b"67108864"
        kept = server.keep()
        server.command("SET", "a", 2)
        server.roll_back(kept)
        assert server.command("GET", "a") == b"\xff"
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            server.command("PING")
        server.start()
        assert server.command("GET", "a") == b"\xff"
        server.wipe()
        assert server.command("GET", "a") is None
        assert server.url == f"{kind}://:p%40ss@127.0.0.1:{port}"
        with pytest.raises(RedisError, match="ERR"):
            server.command("NONSENSE")
    assert not server.running
    assert not folder.exists()


def test_frozen_it_does_not_answer_and_thawed_it_does() -> None:
    with RedisServer(appendonly="no") as server:
        server.freeze()
        with pytest.raises(TimeoutError):
            server.command("PING", timeout=0.05)
        server.thaw()
        assert server.command("PING") == b"PONG"


def test_one_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="nonsense"), RedisServer(appendonly="nonsense"):
        pass


def test_a_pair_is_in_step_and_may_be_parted() -> None:
    with RedisPair() as pair:
        pair.primary.command("SET", "a", 1)
        pair.primary.wait_replicated()
        with pytest.raises(RedisError, match="READONLY"):
            pair.replica.command("SET", "a", 2)
        pair.replica.replicate(None)
        assert (pair.replica.role, pair.replica.command("GET", "a")) == ("master", b"1")


def test_sentinels_change_the_primary_when_told_and_when_it_is_dead() -> None:
    with SentinelTrio() as trio:
        first = trio.current()
        assert first is trio.primary
        second = trio.failover()
        assert second is trio.replica
        trio.wait_settled()
        second.command("SET", "a", 1)
        second.wait_replicated()
        second.kill()
        assert trio.wait_for_other_than(second) is first
        assert first.command("GET", "a") == b"1"
        second.start()
        trio.wait_settled()
        assert second.role == "slave"


@pytest.mark.parametrize("kind", ["redis", pytest.param("valkey", marks=pytest.mark.soak)])
def test_slots_of_a_cluster_move_and_are_taken_over(kind: Kind) -> None:
    with RedisCluster(kind, replicas=1) as cluster:
        slot = cluster.slot_of("{a}1")
        old = cluster.owner_of(slot)
        old.command("SET", "{a}1", 1)
        new = next(server for server in cluster.primaries if server is not old)
        seen = []
        cluster.migrate(slot, new, between=lambda: seen.append(old.command("GET", "{a}1")))
        assert (seen, cluster.owner_of(slot), new.command("GET", "{a}1")) == ([b"1"], new, b"1")
        with pytest.raises(RedisError, match=f"MOVED {slot}"):
            old.command("GET", "{a}1")
        new.wait_replicated()
        new.kill()
        assert cluster.wait_taken_over(slot, new).command("GET", "{a}1") == b"1"


def test_who_is_killed_takes_his_servers_along() -> None:
    code = (
        "import os, signal; from tests.support.redises import RedisServer\n"
        "server = RedisServer().__enter__(); server.freeze()\n"
        "print(server.pid, server.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pid, folder = ended.stdout.split()
    wait_until(lambda: not (Path("/proc") / pid).exists() or "(redis" not in _stat(pid), "the server ends")
    wait_until(lambda: not Path(folder).parent.exists(), "its folder goes")


def _stat(pid: str) -> str:
    try:
        text = (Path("/proc") / pid / "stat").read_text()
    except FileNotFoundError:
        return ""
    return "" if ") Z " in text else text


def test_what_is_parted_rolls_back_what_only_one_side_has() -> None:
    with Apart() as apart, SentinelTrio(apart=apart) as trio:
        old = trio.primary
        old.command("SET", "a", 1)
        old.wait_replicated()
        apart.cut()
        with pytest.raises(TimeoutError):
            trio.replica.command("PING", timeout=0.1)
        old.command("SET", "a", 2)
        # They notice after half a second; a busy machine may need more than one attempt.
        wait_until(lambda: all("+switch-master" in each.log() for each in trio.sentinels), "another primary")
        apart.mend()
        trio.wait_for_other_than(old)
        trio.wait_settled()
        assert (old.role, trio.replica.command("GET", "a")) == ("slave", b"1")
