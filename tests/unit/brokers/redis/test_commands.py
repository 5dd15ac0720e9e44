"""Commands, by a clock that is moved by hand, and a server that answers as it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rtkit.brokers.redis.commands import Commands
from rtkit.brokers.redis.servers import servers_from_url, slot_of
from rtkit.errors import BrokerUnavailable, NotRunning, PublishUnknown
from rtkit.testing import ManualClock
from tests.support.scripted_redis import OK, Peer, ScriptedRedis, bulk, error, number, slots, tag_in

pytestmark = pytest.mark.anyio


class Script:
    name = "test"
    text = "return ARGV[1]"
    sha = hashlib.sha1(text.encode()).hexdigest()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedRedis]:
    async with ScriptedRedis() as server:
        yield server


@asynccontextmanager
async def running(url: str, clock: ManualClock, **options: Any) -> AsyncGenerator[Commands]:
    """Commands that are open; at the end nothing of them is left."""
    before = asyncio.all_tasks()
    commands = Commands(servers_from_url(url), clock=clock, random=lambda: 0.5, **options)
    await commands.open()
    try:
        yield commands
    finally:
        await commands.aclose()
        assert clock.timers == 0
        assert {task for task in asyncio.all_tasks() - before if "rtkit" in repr(task.get_coro())} == set()


def ask(
    commands: Commands, answer: str = "done", *, again: bool = True, replicated: bool = False, tag: str = "t"
) -> Any:
    """The script's answer is its argument."""
    return asyncio.create_task(
        commands.run(tag, Script(), [f"{{{tag}}}k"], [answer], again=again, replicated=replicated)
    )


def scripts(server: ScriptedRedis) -> list[bytes]:
    """The arguments of the scripts it was asked to run."""
    return [command[-1] for command in server.commands if command[0] in {b"EVALSHA", b"EVAL"}]


def first(
    answer: bytes | None, *, then: bytes | None = b"$4\r\nthen\r\n"
) -> Callable[[Peer, list[bytes]], bytes | None]:
    """Answers so at first, and otherwise later."""
    answers = iter([answer])
    return lambda peer, command: next(answers, then)


# -- one connection for all


async def test_what_is_asked_for_in_one_turn_goes_out_in_one_write(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        chunks = server.peers[0].chunks
        answers = await asyncio.gather(*(ask(commands, f"{n}") for n in range(50)))
        assert answers == [b"%d" % n for n in range(50)]
        assert server.peers[0].chunks == chunks + 1
        assert commands.counters.batches == 1
        assert commands.counters.commands == 50
        assert len(server.peers) == 1


async def test_a_cancelled_caller_breaks_nothing_for_the_others(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        tasks = [ask(commands, f"{n}") for n in range(4)]
        await clock.settle()
        tasks[1].cancel()
        await clock.settle()
        for n in range(4):
            server.peers[0].say(bulk(b"%d" % n))
        assert [await tasks[n] for n in (0, 2, 3)] == [b"0", b"2", b"3"]
        assert tasks[1].cancelled()
        assert len(server.peers) == 1


async def _outcome(task: asyncio.Task[Any]) -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def test_who_is_cancelled_before_it_was_sent_is_not_sent(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        task = ask(commands, "never")
        await asyncio.sleep(0)
        task.cancel()
        assert await ask(commands, "after") == b"after"
        assert scripts(server) == [b"after"]


async def test_a_script_that_the_server_does_not_know_is_sent_to_it(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = error("NOSCRIPT No matching script. Please use EVAL.")
    async with running(server.url, clock) as commands:
        assert await ask(commands, "done", again=False) == b"done"
        assert server.peers[0].names == [b"EVALSHA", b"EVAL"]
        assert server.peers[0].commands[-1] == [b"EVAL", Script.text.encode(), b"1", b"{t}k", b"done"]


async def test_a_single_command_is_run_as_it_is(server: ScriptedRedis, clock: ManualClock) -> None:
    server.answers[b"SET"] = OK
    async with running(server.url, clock) as commands:
        assert await commands.execute("t", "SET", b"\x00\xff", "ü", 7, again=False) == b"OK"
        assert server.peers[0].commands[-1] == [b"SET", b"\x00\xff", "ü".encode(), b"7"]


async def test_before_open_and_after_aclose_nothing_runs(server: ScriptedRedis, clock: ManualClock) -> None:
    commands = Commands(servers_from_url(server.url), clock=clock)
    with pytest.raises(NotRunning):
        await ask(commands)
    await commands.aclose()
    async with running(server.url, clock) as commands:
        pass
    await commands.aclose()
    with pytest.raises(NotRunning):
        await ask(commands)


async def test_after_aclose_there_is_no_task_no_timer_and_no_socket(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        sent = ask(commands)
        replicated = ask(commands, replicated=True)
        await clock.settle()
        assert len(server.live) == 2
    for task in (sent, replicated):
        with pytest.raises(PublishUnknown):
            await task
    await clock.settle()
    assert server.live == []


async def test_who_is_between_two_tries_when_it_is_closed_is_told(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = error("LOADING Redis is loading the dataset in memory")
    async with running(server.url, clock) as commands:
        task = ask(commands)
        await clock.settle()
    with pytest.raises(BrokerUnavailable, match="still loading"):
        await task


async def test_a_frozen_server_does_not_hold_up_the_end(server: ScriptedRedis, clock: ManualClock) -> None:
    async with running(server.url, clock) as commands:
        for peer in server.live:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        task = ask(commands, "x" * 12_000_000)  # more than any buffer holds
        await clock.settle()
    with pytest.raises(PublishUnknown):
        await task
    assert len(server.live) == 1
    server.live[0].writer.transport.resume_reading()  # type: ignore[attr-defined]
    await clock.settle()
    assert server.live == []
    assert scripts(server) == []  # it was reset, and not told the rest first


# -- what became of it


async def test_what_was_sent_and_is_not_answered_is_unknown(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        task = ask(commands, again=False)
        await clock.advance(1.99)
        assert not task.done()
        await clock.advance(0.02)
        with pytest.raises(PublishUnknown, match=r"no answer within 2 s"):
            await task
        assert commands.counters.unknown == 1


async def test_a_silent_connection_is_given_up_and_the_next_one_works(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        server.mute = True
        task = ask(commands)
        await clock.advance(2.1)
        with pytest.raises(PublishUnknown):
            await task
        assert server.live != server.peers
        server.mute = False
        await clock.advance(3)
        assert await ask(commands) == b"done"
        assert commands.counters.reconnections == 1


async def test_a_server_that_is_busy_is_not_silent(server: ScriptedRedis, clock: ManualClock) -> None:
    """It answers one after the other, and needs longer for all of them than anybody would wait for one: to break off
    and ask anew would never end."""
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        tasks = [ask(commands, f"{n}", again=False) for n in range(6)]
        await clock.settle()
        for n in range(6):
            await clock.advance(0.9)
            server.peers[0].say(bulk(b"%d" % n))
            await clock.settle()
        assert len(server.peers) == 1
        assert commands.counters.reconnections == 0
        outcomes = [await _outcome(task) for task in tasks]
        assert outcomes[:2] == [b"0", b"1"]
        assert all(
            isinstance(outcome, PublishUnknown) for outcome in outcomes[2:]
        )  # their patience had ended


async def test_a_connection_that_is_lost_leaves_what_was_sent_unknown_and_it_is_not_repeated(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        task = ask(commands, again=False)
        await clock.settle()
        server.drop()
        await clock.settle()
        with pytest.raises(PublishUnknown, match="lost before it was answered"):
            await task
        await clock.advance(3)
        assert scripts(server) == [b"done"]


async def test_what_may_be_repeated_is_repeated_on_the_next_connection(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = first(None)
    async with running(server.url, clock) as commands:
        task = ask(commands, again=True)
        await clock.settle()
        server.drop()
        await clock.advance(1)
        assert await task == b"then"
        assert scripts(server) == [b"done", b"done"]


async def test_a_doubt_does_not_go_away_when_the_repeat_is_refused(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = first(None, then=error("OOM command not allowed"))
    async with running(server.url, clock) as commands:
        task = ask(commands, again=True)
        await clock.settle()
        server.drop()
        await clock.advance(1)
        with pytest.raises(PublishUnknown):
            await task


async def test_a_doubt_does_not_go_away_when_nobody_is_there_for_the_repeat(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        task = ask(commands, again=True)
        await clock.settle()
        await server.stop()
        await clock.advance(2.1)
        with pytest.raises(PublishUnknown):
            await task


async def test_what_was_not_sent_waits_for_the_next_connection(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        await server.stop()
        await clock.settle()
        task = ask(commands, again=False)
        await clock.advance(0.5)
        assert not task.done()
        await server.start()
        await clock.advance(1.4)
        assert await task == b"done"


async def test_what_was_not_sent_is_not_done(server: ScriptedRedis, clock: ManualClock) -> None:
    async with running(server.url, clock) as commands:
        await server.stop()
        await clock.settle()
        task = ask(commands, again=False)
        await clock.advance(2.1)
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:\d+ is away: Error 111"):
            await task
        assert commands.counters.unknown == 0


async def test_what_waits_behind_a_network_that_takes_nothing_is_not_done(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        server.live[0].writer.transport.pause_reading()  # type: ignore[attr-defined]
        stuck = ask(commands, "x" * 12_000_000, again=False)
        await clock.settle()
        behind = ask(commands, again=False)
        await clock.advance(2.5)
        with pytest.raises(PublishUnknown):
            await stuck
        with pytest.raises(BrokerUnavailable):
            await behind


async def test_a_server_that_has_been_away_for_long_is_not_waited_for(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        await server.stop()
        await clock.advance(2.1)
        task = ask(commands)
        await clock.settle()
        with pytest.raises(BrokerUnavailable):
            await task


async def test_no_restart_is_needed_however_long_it_was_away(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        await server.stop()
        await clock.advance(45)
        await server.start()
        await clock.advance(4)
        assert await ask(commands) == b"done"


async def test_attempts_to_connect_get_rarer(server: ScriptedRedis, clock: ManualClock) -> None:
    async with running(server.url, clock):
        # Somebody else listens there, and hangs up.
        server.answers[b"HELLO"] = lambda peer, command: peer.drop()
        server.drop()
        await clock.advance(1)
        early = len(server.peers)
        await clock.advance(9)
        assert 3 <= early <= 12
        late = len(server.peers)
        await clock.advance(60)
        assert 40 <= len(server.peers) - late <= 80  # about one a second, half of the longest pause


async def test_a_server_that_accepts_and_hangs_up_is_not_asked_again_and_again(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        server.answers[b"EVALSHA"] = lambda peer, command: peer.drop()
        for _ in range(60):
            await _outcome(ask(commands, again=False)) if server.live else None
            await clock.advance(0.5)
        assert len(server.peers) < 40


async def test_an_answer_that_nobody_asked_for_ends_the_connection(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock) as commands:
        server.live[0].say(b"+surprise\r\n")
        await clock.advance(0.2)
        assert len(server.peers) == 2
        assert await ask(commands) == b"done"


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"\x00" * 70_000])
async def test_garbage_ends_the_connection(server: ScriptedRedis, clock: ManualClock, garbage: bytes) -> None:
    server.answers[b"EVALSHA"] = first(garbage)
    async with running(server.url, clock) as commands:
        task = ask(commands, again=True)
        await clock.advance(2)
        assert await task == b"then"
        assert len(server.peers) == 2


async def test_our_own_standing_still_is_not_held_against_the_server(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        task = ask(commands, again=False)
        await clock.settle()
        server.live[0].say(bulk(b"done"))
        clock.stall(60)
        assert await task == b"done"
        await clock.settle()
        assert len(server.peers) == 1


# -- error replies


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "maxmemory"),
        ("MISCONF Redis is configured to save RDB snapshots", "disk"),
        ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
        ("BUSY Redis is busy running a script.", "busy"),
        ("NOPERM this user has no permissions to run the 'info' command", "permission"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "not ours"),
        ("RTDAMAGED meta is a list", "damaged"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "slots"),
        ("ERR unknown command 'EVALSHA'", "unknown command"),
        ("MOVED 5 127.0.0.1:1", r"redis\+cluster://"),
    ],
)
async def test_a_refusal_is_told_with_its_cause_and_costs_no_connection(
    server: ScriptedRedis, clock: ManualClock, line: str, meaning: str
) -> None:
    server.answers[b"EVALSHA"] = first(error(line))
    async with running(server.url, clock) as commands:
        with pytest.raises(BrokerUnavailable, match=meaning):
            await ask(commands)
        assert await ask(commands) == b"then"
        assert len(server.peers) == 1


async def test_a_script_that_broke_off_is_unknown_and_not_repeated(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = error("ERR value is not an integer script: 0a, on @user_script:3.")
    async with running(server.url, clock) as commands:
        with pytest.raises(PublishUnknown, match="broke off"):
            await ask(commands, again=True)
        assert len(scripts(server)) == 1


@pytest.mark.parametrize(
    "line", ["LOADING Redis is loading the dataset in memory", "TRYAGAIN Multiple keys", "CLUSTERDOWN x"]
)
async def test_what_passes_is_tried_again_over_the_same_connection(
    server: ScriptedRedis, clock: ManualClock, line: str
) -> None:
    server.answers[b"EVALSHA"] = first(error(line))
    async with running(server.url, clock) as commands:
        task = ask(commands, again=False)
        await clock.advance(0.3)
        assert await task == b"then"
        assert len(server.peers) == 1


async def test_what_does_not_pass_within_the_patience_is_told_with_its_cause(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"EVALSHA"] = error("LOADING Redis is loading the dataset in memory")
    async with running(server.url, clock) as commands:
        task = ask(commands)
        await clock.advance(1.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(BrokerUnavailable, match="still loading"):
            await task


@pytest.mark.parametrize(
    "line",
    [
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link is down",
        "NOAUTH Authentication required.",
    ],
)
async def test_a_server_that_will_not_do_is_looked_up_again(
    server: ScriptedRedis, clock: ManualClock, line: str
) -> None:
    server.answers[b"EVALSHA"] = first(error(line))
    async with running(server.url, clock) as commands:
        task = ask(commands, again=False)
        await clock.advance(1)
        assert await task == b"then"
        assert len(server.peers) == 2
        assert len(server.live) == 1


async def test_others_on_a_connection_that_is_left_get_their_answers_first(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    readonly = error("READONLY You can't write against a read only replica.")
    server.answers[b"EVALSHA"] = None
    async with running(server.url, clock) as commands:
        tasks = [ask(commands, f"{n}", again=False) for n in range(3)]
        await clock.settle()
        server.answers.clear()
        peer = server.live[0]
        peer.say(readonly)
        await clock.advance(0.1)
        assert peer.open
        peer.say(bulk(b"one") + bulk(b"two"))
        await clock.advance(1)
        assert [await task for task in tasks] == [b"0", b"one", b"two"]
        assert not peer.open


async def test_a_server_that_becomes_a_replica_is_noticed_even_if_nobody_writes(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(server.url, clock) as commands:
        server.role = "slave"
        await clock.advance(8)
        assert server.live == []
        assert "it is a replica now" in caplog.text
        with pytest.raises(BrokerUnavailable, match="it is a replica, and no primary"):
            await ask(commands)
        server.role = "master"
        await clock.advance(3)
        assert await ask(commands) == b"done"


async def test_a_frozen_server_is_noticed_even_if_nobody_asks(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock):
        peer = server.live[0]
        server.mute = True
        await clock.advance(7.5)
        assert not peer.open


# -- connecting


async def test_open_says_why_nobody_is_there_and_leaves_nothing(clock: ManualClock) -> None:
    async with ScriptedRedis() as server:
        url = server.url
    commands = Commands(servers_from_url(url), clock=clock)
    task = asyncio.create_task(commands.open())
    await clock.advance(2.1)
    with pytest.raises(BrokerUnavailable, match=r"cannot be reached: .*Error 111"):
        await task
    assert clock.timers == 0


async def test_a_cancelled_open_leaves_nothing(server: ScriptedRedis, clock: ManualClock) -> None:
    server.mute = True
    commands = Commands(servers_from_url(server.url), clock=clock)
    task = asyncio.create_task(commands.open())
    await clock.settle()
    task.cancel()
    await clock.settle()
    assert task.cancelled()
    assert clock.timers == 0
    assert server.live == []


async def test_a_password_may_change_without_a_restart(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url.replace("://", "://:hush-hush@")
    async with running(url, clock) as commands:
        server.answers[b"AUTH"] = error("WRONGPASS invalid username-password pair or user is disabled.")
        server.drop()
        await clock.advance(30)
        with pytest.raises(BrokerUnavailable, match="wants another password"):
            await ask(commands)
        del server.answers[b"AUTH"]
        await clock.advance(3)
        assert await ask(commands) == b"done"
    assert caplog.text.count("wants another password") == 1
    assert "hush-hush" not in caplog.text


async def test_a_loss_is_logged_once_and_so_is_its_end(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtkit")
    async with running(server.url, clock):
        assert caplog.records == []
        await server.stop()
        await clock.advance(60)
        await server.start()
        await clock.advance(3)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" 127")[0] for message in messages] == [
        "redis: lost the connection to",
        "redis: cannot connect to",
        "redis: connected to",
    ]


# -- replicated


async def test_what_is_to_be_replicated_asks_wait_on_its_own_connection_once_for_each_batch(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with running(server.url, clock, replicas=2, wait_timeout=0.7) as commands:
        server.answers[b"WAIT"] = number(2)
        answers = await asyncio.gather(
            ask(commands, "stored"), *(ask(commands, f"{n}", replicated=True) for n in range(3))
        )
        assert answers == [b"stored", b"0", b"1", b"2"]
        assert [peer.names for peer in server.peers] == [[b"EVALSHA"], [b"EVALSHA"] * 3 + [b"WAIT"]]
        assert server.peers[1].commands[-1] == [b"WAIT", b"2", b"700"]


async def test_nobody_is_answered_before_wait_is_and_the_next_batch_waits_for_that(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"WAIT"] = None
    async with running(server.url, clock) as commands:
        one = ask(commands, "one", replicated=True)
        await clock.settle()
        two = ask(commands, "two", replicated=True)
        await clock.settle()
        assert scripts(server) == [b"one"]
        assert not one.done()
        server.peers[1].say(number(1))
        await clock.settle()
        assert one.done()
        assert scripts(server) == [b"one", b"two"]
        server.peers[1].say(number(3))
        assert await two == b"two"


async def test_too_few_replicas_are_unknown_after_repeats(server: ScriptedRedis, clock: ManualClock) -> None:
    server.answers[b"WAIT"] = number(0)
    async with running(server.url, clock) as commands:
        task = ask(commands, replicated=True, again=True)
        await clock.advance(1)
        assert not task.done()
        assert len(scripts(server)) > 1
        await clock.advance(1.1)
        with pytest.raises(PublishUnknown, match="0 of 1 replicas"):
            await task


async def test_too_few_replicas_are_unknown_at_once_without_repeats(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"WAIT"] = number(0)
    async with running(server.url, clock) as commands:
        with pytest.raises(PublishUnknown, match="0 of 1 replicas"):
            await ask(commands, replicated=True, again=False)
        assert len(scripts(server)) == 1


async def test_a_replica_that_comes_back_in_time_makes_it_good(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"WAIT"] = first(number(0), then=number(1))
    async with running(server.url, clock) as commands:
        task = ask(commands, replicated=True, again=True)
        await clock.advance(0.5)
        assert await task == b"done"


async def test_a_server_that_loses_its_office_during_wait_leaves_it_unknown(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"WAIT"] = first(
        error("UNBLOCKED instance state changed (master -> replica?)"), then=number(1)
    )
    async with running(server.url, clock) as commands:
        with pytest.raises(PublishUnknown, match="WAIT failed"):
            await ask(commands, replicated=True, again=False)
        await clock.advance(1)
        assert await ask(commands, replicated=True) == b"done"
        assert len(server.peers) == 3  # a new one


async def test_a_connection_lost_before_wait_was_answered_leaves_it_unknown(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    server.answers[b"WAIT"] = None
    async with running(server.url, clock) as commands:
        task = ask(commands, replicated=True, again=False)
        await clock.settle()
        server.peers[1].drop()
        await clock.settle()
        with pytest.raises(PublishUnknown):
            await task


async def test_a_refusal_needs_no_replica(server: ScriptedRedis, clock: ManualClock) -> None:
    server.answers[b"EVALSHA"] = error("OOM command not allowed")
    server.answers[b"WAIT"] = None
    async with running(server.url, clock) as commands:
        with pytest.raises(BrokerUnavailable, match="maxmemory"):
            await ask(commands, replicated=True)


# -- a Cluster


@asynccontextmanager
async def cluster(clock: ManualClock) -> AsyncGenerator[tuple[ScriptedRedis, ScriptedRedis, Commands]]:
    async with ScriptedRedis() as one, ScriptedRedis() as two:
        share(one, two, 8000)
        async with running(f"redis+cluster://127.0.0.1:{one.port}", clock) as commands:
            yield one, two, commands


def share(one: ScriptedRedis, two: ScriptedRedis, border: int) -> None:
    """Slots below the border are with one."""
    for server in (one, two):
        server.answers[b"CLUSTER"] = slots((0, border - 1, one.port), (border, 16383, two.port))


LOW, HIGH = tag_in(0, 100), tag_in(16_000, 16_383)


async def test_in_a_cluster_a_command_goes_where_its_slot_is(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        answers = await asyncio.gather(ask(commands, "low", tag=LOW), ask(commands, "high", tag=HIGH))
        assert list(answers) == [b"low", b"high"]
        assert scripts(one) == [b"low"]
        assert scripts(two) == [b"high"]


async def test_moved_is_followed_and_remembered(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        one.answers[b"EVALSHA"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}")
        assert await ask(commands, "one", tag=LOW, again=False) == b"one"
        assert await ask(commands, "two", tag=LOW, again=False) == b"two"
        assert len(scripts(one)) == 1
        assert scripts(two) == [b"one", b"two"]


async def test_ask_is_followed_for_this_command_alone(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        one.answers[b"EVALSHA"] = first(
            error(f"ASK {slot_of(LOW)} 127.0.0.1:{two.port}"), then=bulk(b"stayed")
        )
        assert await ask(commands, "went", tag=LOW, again=False) == b"went"
        assert two.names[-2:] == [b"ASKING", b"EVALSHA"]
        assert await ask(commands, "stays", tag=LOW) == b"stayed"


async def test_servers_that_point_at_each_other_are_not_asked_in_a_spin(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        one.answers[b"EVALSHA"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}")
        two.answers[b"EVALSHA"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{one.port}")
        task = ask(commands, tag=LOW)
        await clock.advance(2.1)
        with pytest.raises(BrokerUnavailable):
            await task
        assert len(scripts(one)) + len(scripts(two)) < 60


async def test_a_server_that_died_is_replaced_once_the_others_say_by_whom(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        assert await ask(commands, tag=HIGH) == b"done"
        await two.stop()
        await clock.advance(3)
        with pytest.raises(BrokerUnavailable):
            await ask(commands, tag=HIGH)
        assert await ask(commands, tag=LOW) == b"done"  # the rest goes on
        async with ScriptedRedis() as three:
            share(one, three, 8000)
            await clock.advance(3)
            assert await ask(commands, "new", tag=HIGH) == b"new"
            assert scripts(three) == [b"new"]
            async with ScriptedRedis(two.port) as again:  # it has nothing now: nobody tries to connect
                await clock.advance(5)
                assert [peer for peer in again.peers if b"CLUSTER" not in peer.names] == []


async def test_a_cluster_is_looked_at_every_half_minute(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, commands):
        moved: list[int] = []
        commands.on_moved.append(lambda: moved.append(1))
        await clock.advance(31)
        assert moved == []
        share(one, two, 16_384 - 1)
        await clock.advance(31)
        assert moved == [1]
        assert await ask(commands, "x", tag=HIGH) == b"x"
        assert scripts(one) == [b"x"]


async def test_a_cluster_that_nobody_tells_of_is_not_there(clock: ManualClock) -> None:
    async with ScriptedRedis() as server:
        server.answers[b"CLUSTER"] = error("ERR This instance has cluster support disabled")
        commands = Commands(servers_from_url(f"redis+cluster://127.0.0.1:{server.port}"), clock=clock)
        task = asyncio.create_task(commands.open())
        await clock.advance(2.1)
        with pytest.raises(BrokerUnavailable, match="cluster support disabled"):
            await task
        assert clock.timers == 0
