"""The scripts of keyed state, on real servers."""

from __future__ import annotations

import time

import pytest

from rtkit.brokers.redis import scripts
from tests.support.daemons import wait_until
from tests.support.redis_scripts import HOUR, State, run
from tests.support.redises import RedisError, RedisServer


@pytest.fixture
def state(any_redis: RedisServer) -> State:
    return State(any_redis)


def exist(state: State) -> int:
    found: int = state.server.command("EXISTS", *state.place.values)
    return found


def backdate(state: State, *fields: str) -> None:
    """Have leases end in the past."""
    for field in fields:
        state.server.command("ZADD", state.place.values[1], 1, field)


def test_the_keys_end_with_the_last_lease(state: State) -> None:
    state.put("a", b"1", HOUR)
    state.revise({"b": b"2"}, ttl=2 * HOUR)
    ends = {state.server.command("PEXPIRETIME", key) for key in state.place.values}
    lease = float(state.server.command("ZSCORE", state.place.values[1], "b"))
    assert ends == {int(lease)}
    state.renew("b", ttl=HOUR // 2)
    ends = {state.server.command("PEXPIRETIME", key) for key in state.place.values}
    assert ends == {int(float(state.server.command("ZSCORE", state.place.values[1], "a")))}


def test_nothing_is_left_when_nobody_comes_back(state: State) -> None:
    state.revise({"a": b"1"}, ttl=30)
    wait_until(lambda: exist(state) == 0, "all keys have expired")


def test_without_fields_nothing_is_left(state: State) -> None:
    state.revise({"a": b"1", "b": b"2"})
    assert state.remove("a") and state.remove("b")
    assert exist(state) == 0
    begun = state.revise({"a": None})
    assert begun is not None and begun[1] == 1
    assert exist(state) == 0


def test_a_lease_that_has_ended_takes_its_field_along_whatever_is_called(state: State) -> None:
    acts = (
        lambda: state.put("x", b""),
        lambda: state.renew("x"),
        lambda: state.remove("x"),
        lambda: state.revise({}),
        lambda: state.revision(),
        lambda: state.entries(),
    )
    for act in acts:
        state.put("a", b"1")
        state.put("b", b"1")
        backdate(state, "a")
        act()
        assert state.server.command("HEXISTS", state.place.values[0], "a") == 0
        assert state.server.command("HEXISTS", state.place.values[0], "b") == 1


def test_when_the_last_lease_ends_so_does_the_count(state: State) -> None:
    first = state.revise({"a": b"1"})
    backdate(state, "a")
    assert state.revision() == ("", 0, {})
    assert exist(state) == 0
    second = state.revise({"a": b"1"})
    assert first is not None and second is not None
    assert second[1] == 1 and second[0] != first[0]


def ten_thousand(state: State, ends: int) -> None:
    """Fields f1, f2, ... whose leases end then."""
    text = """
    for i = 1, 10000 do
      redis.call('HSET', KEYS[1], 'f' .. i, i)
      redis.call('ZADD', KEYS[2], ARGV[1], 'f' .. i)
    end"""
    state.server.command("EVAL", text, 2, *state.place.values[:2], ends)


def test_ten_thousand_leases_that_end_at_once(state: State) -> None:
    leases = state.place.values[1]
    ten_thousand(state, 1)
    state.put("alive", b"1")
    assert state.entries() == {"alive": b"1"}
    assert state.server.command("ZCARD", leases) == 1


def test_ten_thousand_fields_are_read_and_renewed(state: State) -> None:
    leases = state.place.values[1]
    ten_thousand(state, 10**13)
    names = [f"f{n}" for n in range(1, 10_001)]
    assert state.renew(*names, "gone") == {"gone"}
    assert set(state.entries()) == set(names)
    assert state.server.command("ZCOUNT", leases, 10**13, "+inf") == 0


def test_a_lease_of_nothing_is_over_at_once(state: State) -> None:
    assert state.put("a", b"1", 0)
    assert state.entries() == {}
    assert exist(state) == 0


def test_a_lease_ends_to_the_millisecond(state: State) -> None:
    state.put("a", b"1", 50)
    state.put("b", b"1")
    end = float(state.server.command("ZSCORE", state.place.values[1], "a")) / 1000
    while True:
        before = redis_time(state.server)
        there = "a" in state.entries()
        after = redis_time(state.server)
        if after < end:
            assert there
        elif before >= end:
            assert not there
            break
        time.sleep(0.001)


def redis_time(server: RedisServer) -> float:
    seconds, micros = server.command("TIME")
    return int(seconds) + int(micros) / 1_000_000


@pytest.mark.parametrize("which", [0, 1])
def test_half_of_it_gone_is_all_of_it_gone(state: State, which: int) -> None:
    # Evicted, say. A field without a lease would stay for ever; a count without fields would say that all is well.
    first = state.revise({"a": b"1"})
    state.server.command("DEL", state.place.values[which])
    assert state.revision() == ("", 0, {})
    assert exist(state) == 0
    second = state.revise({"a": b"1"})
    assert first is not None and second is not None and second[0] != first[0]


def test_the_fields_gone_is_the_count_gone(state: State) -> None:
    state.revise({"a": b"1"})
    state.server.command("DEL", *state.place.values[:2])
    assert state.revision() == ("", 0, {})
    assert exist(state) == 0


def test_the_count_gone_is_a_new_epoch(state: State) -> None:
    first = state.revise({"a": b"1"})
    state.server.command("DEL", state.place.values[2])
    assert state.revision() == ("", 0, {"a": b"1"})
    second = state.revise({"a": b"2"})
    assert first is not None and second is not None
    assert second[0] != first[0] and second[1] == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_key_of_another_type_is_left_alone(state: State, which: int) -> None:
    state.revise({"a": b"1"})
    key = state.place.values[which]
    state.server.command("SET", key, "something else")
    before = [state.server.command("DUMP", each) for each in state.place.values]
    acts = (
        lambda: state.put("x", b""),
        lambda: state.renew("x"),
        lambda: state.remove("x"),
        lambda: state.revise({}),
        lambda: state.revision(),
        lambda: state.entries(),
    )
    for act in acts:
        with pytest.raises(RedisError, match="^RTDAMAGED the key"):
            act()
    assert [state.server.command("DUMP", each) for each in state.place.values] == before


def test_what_is_expected_may_be_any_bytes(state: State) -> None:
    state.put("a", b"\0\xff")
    state.put("none", b"")
    assert not state.put("a", b"2", HOUR, "is", b"\0")
    assert not state.put("none", b"2", HOUR, "none")
    assert state.put("a", b"2", HOUR, "is", b"\0\xff")
    assert state.revise({"b": b""}, expected={"a": b"2", "none": b"", "other": None}) is not None
    for expected in ({"other": b""}, {"none": None}, {"a": b"", "none": b""}):
        assert state.revise({"c": b""}, expected=expected) is None
    assert "c" not in state.entries()


def test_a_revision_that_is_refused_changes_nothing(state: State) -> None:
    state.revise({"a": b"1"})
    before = [state.server.command("DUMP", each) for each in state.place.values]
    assert state.revise({"a": None, "b": b"2"}, expected={"a": b"2"}) is None
    assert [state.server.command("DUMP", each) for each in state.place.values] == before


def test_out_of_memory_leases_are_renewed_and_nothing_is_added() -> None:
    with RedisServer("redis", appendonly="no", maxmemory_policy="noeviction") as server:
        state = State(server)
        state.revise({"a": b"1"})
        server.set("maxmemory", "1")
        for act in (lambda: state.put("b", b"2"), lambda: state.revise({"b": b"2"})):
            with pytest.raises(RedisError, match="^OOM"):
                act()
        assert state.renew("a") == set()
        assert state.revision()[1:] == (1, {"a": b"1"})
        assert state.remove("a")


def test_every_script_says_what_it_is_called() -> None:
    assert (
        len({script.sha for script in scripts.SCRIPTS})
        == len({script.name for script in scripts.SCRIPTS})
        == 9
    )


def test_redis_calls_a_script_as_we_do(any_redis: RedisServer) -> None:
    for script in scripts.SCRIPTS:
        assert any_redis.command("SCRIPT", "LOAD", script.text).decode() == script.sha


def test_an_epoch_that_is_missing_is_damage(state: State) -> None:
    state.revise({"a": b"1"})
    state.server.command("HDEL", state.place.values[2], "epoch")
    with pytest.raises(RedisError, match="^RTDAMAGED"):
        run(state.server, scripts.REVISION, state.place.values, "e", 1)
