from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import Action, Heartbeat, HeartbeatState, SilenceWatch

PING, DEAD, WAIT = Action.PING, Action.DEAD, Action.WAIT


def started(interval: float = 25, timeout: float = 10, fraction: float = 0.2) -> HeartbeatState:
    state = HeartbeatState(Heartbeat(interval=interval, timeout=timeout))
    state.start(0, fraction)
    return state


def test_policy() -> None:
    policy = Heartbeat()
    assert (policy.interval, policy.timeout) == (25, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.interval = 3  # type: ignore[misc]


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_bad_values_are_named(value: float) -> None:
    with pytest.raises(ValueError, match=rf"interval.*{value}"):
        Heartbeat(interval=value)
    with pytest.raises(ValueError, match=rf"timeout.*{value}"):
        Heartbeat(timeout=value)
    with pytest.raises(ValueError, match=rf"interval.*{value}"):
        SilenceWatch(value, 1, 0)
    with pytest.raises(ValueError, match=rf"timeout.*{value}"):
        SilenceWatch(1, value, 0)


def test_the_first_ping_is_at_a_random_moment_of_the_interval() -> None:
    state = HeartbeatState(Heartbeat())
    assert state.next_at == math.inf
    assert state.due(1e9) is WAIT
    assert state.start(100, 0.2) == 105
    assert state.next_at == 105
    assert state.due(104.9) is WAIT
    assert state.due(105) is PING
    with pytest.raises(ValueError, match=r"1\.5"):
        state.start(0, 1.5)


def test_pings_go_on_while_pongs_come() -> None:
    state = started()
    assert state.due(5) is PING
    assert state.next_at == 15
    state.pong(5.5)
    assert state.latency == 0.5
    assert state.next_at == 30
    assert state.due(30) is PING
    state.pong(31)
    assert state.latency == 1
    assert state.next_at == 55


def test_no_pong_is_death() -> None:
    state = started()
    assert state.due(5) is PING
    assert state.due(14.9) is WAIT
    assert state.due(15) is DEAD
    assert state.due(16) is DEAD
    assert state.next_at == 15


def test_anything_heard_is_life_but_no_latency() -> None:
    state = started()
    state.due(5)
    state.heard(6)
    assert state.latency is None
    assert state.next_at == 30


def test_traffic_does_not_put_pings_off() -> None:
    state = started()
    for now in range(5):
        state.heard(now)
    assert state.next_at == 5
    assert state.due(5) is PING


def test_a_late_ping_does_not_move_those_that_follow() -> None:
    """F4, F5: a stall must not bring ten thousand into step."""
    state = started()
    for late, following in ((5.1, 30), (54.9, 55), (55, 80), (1_000, 1_005)):
        assert state.due(late) is PING
        state.heard(late)
        assert state.next_at == following


def test_what_comes_next_is_a_ping_or_a_judgement() -> None:
    """F5: a stall puts off one, and makes the other urgent."""
    state = started()
    assert not state.judging
    assert not state.heard(1), "nothing is waited for"
    state.due(5)
    assert state.judging
    state.paused(6)
    assert not state.judging
    state.resumed(7)
    assert state.judging
    assert state.heard(8), "the next moment is another one now"
    assert not state.judging
    assert not state.pong(9)
    state.due(30)
    assert state.pong(31)


def test_unasked_pongs_are_harmless() -> None:
    state = started()
    state.pong(1)
    state.pong(2)
    assert state.latency is None
    assert state.next_at == 5


def test_a_timeout_longer_than_the_interval() -> None:
    state = started(interval=5, timeout=20, fraction=0)
    assert state.due(0) is PING
    assert state.due(5) is WAIT
    assert state.next_at == 20
    state.pong(12)
    assert state.next_at == 5
    assert state.due(12) is PING
    assert state.due(32) is DEAD


def test_while_reading_is_paused_the_pong_deadline_stands_still() -> None:
    state = started()
    state.due(5)
    state.paused(7)
    state.paused(8)
    assert state.statistics().paused
    assert state.next_at == 30
    assert state.due(29) is WAIT
    assert state.due(30) is PING  # they still go out: the peer wants to hear of us
    assert state.next_at == 55
    state.resumed(40)
    state.resumed(41)
    assert state.next_at == 48  # 8 seconds were left when it was paused
    assert state.due(47) is WAIT
    assert state.due(48) is DEAD


def test_a_ping_sent_while_paused_gets_its_whole_timeout() -> None:
    state = started()
    state.paused(1)
    assert state.due(5) is PING
    state.resumed(20)
    assert state.next_at == 30
    state.pong(21)
    assert state.latency is None  # the pause would be in it
    assert state.due(30) is PING


def test_a_pause_spoils_the_measurement() -> None:
    state = started()
    state.due(5)
    state.paused(6)
    state.resumed(9)
    state.pong(9)
    assert state.latency is None


def test_a_ping_that_has_not_left_yet_has_its_time_from_when_it_does() -> None:
    state = started()
    state.due(5)
    state.delayed(15)
    assert state.next_at == 25
    state.delayed(20)
    assert state.due(29) is WAIT
    state.pong(29)
    assert state.latency is None  # the wait would be in it
    assert state.due(30) is PING
    assert state.due(40) is DEAD
    state.delayed(40)
    assert state.due(50) is DEAD


def test_nothing_is_delayed_that_is_not_waited_for() -> None:
    state = started()
    state.delayed(3)
    assert state.next_at == 5
    assert not state.judging


def test_what_is_delayed_while_reading_is_paused_has_its_whole_time_after_it() -> None:
    state = started()
    state.due(5)
    state.paused(6)
    state.delayed(14)
    state.resumed(20)
    assert state.next_at == 30


def test_statistics_and_repr() -> None:
    state = started()
    assert "alive" in repr(state)
    state.due(5)
    assert state.statistics().unanswered
    assert "unanswered" in repr(state)
    state.pong(5.25)
    assert state.statistics().latency == 0.25
    assert "250.0 ms" in repr(state)
    state.paused(6)
    assert "paused" in repr(state)


@given(
    fraction=st.floats(0, 1),
    answers=st.lists(st.booleans(), max_size=20),
    interval=st.floats(0.1, 100),
    timeout=st.floats(0.1, 100),
)
def test_gone_within_interval_and_timeout(
    fraction: float, answers: list[bool], interval: float, timeout: float
) -> None:
    """From its last sign of life a peer is dead after interval + timeout at the latest (F4)."""
    state = started(interval, timeout, fraction)
    last_sign = now = 0.0
    for answer in [*answers, False]:
        now = state.next_at
        assert state.due(now) is PING
        if answer:
            now += timeout / 2
            state.pong(now)
            last_sign = now
            continue
        now = state.next_at
        assert state.due(now) is DEAD
        break
    assert now - last_sign <= interval + timeout + 1e-6


def test_silence_watch() -> None:
    watch = SilenceWatch(25, 10, now=0)
    assert watch.next_at == 35
    assert not watch.dead(34.9)
    assert watch.dead(35)
    watch.heard(20)
    assert watch.next_at == 55
    assert not watch.dead(54)
    assert watch.statistics().heard_at == 20
    assert repr(watch) == "<SilenceWatch heard at 20.000, dead at 55.000>"


def test_per_connection_state_is_small() -> None:
    for state in (started(), SilenceWatch(1, 1, 0)):
        assert not hasattr(state, "__dict__")
