"""Subscriptions, by a clock that is moved by hand, and a server that answers as it is told to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from rtkit.brokers.redis.commands import Commands
from rtkit.brokers.redis.listener import Listener
from rtkit.brokers.redis.servers import servers_from_url, slot_of
from rtkit.errors import BrokerUnavailable, NotRunning
from rtkit.testing import ManualClock
from tests.support.scripted_redis import Peer, ScriptedRedis, array, bulk, error, number, slots, tag_in

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedRedis]:
    async with ScriptedRedis() as server:
        yield server


class Heard:
    """What a listener says; and the listener."""

    listener: Listener
    commands: Commands

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.interruptions: list[list[bytes]] = []
        self.fails: BaseException | None = None

    def deliver(self, channel: bytes, content: bytes) -> None:
        self.messages.append((channel, content))
        if self.fails is not None:
            raise self.fails

    def interrupted(self, channels: Sequence[bytes]) -> None:
        self.interruptions.append(sorted(channels))
        if self.fails is not None:
            raise self.fails


def channel(tag: str) -> bytes:
    return f"rt:{{{tag}}}:x".encode()


def tag_of(channel: bytes) -> str:
    return channel[channel.index(b"{") + 1 : channel.index(b"}")].decode()


@asynccontextmanager
async def listening(url: str, clock: ManualClock) -> AsyncGenerator[Heard]:
    """A listener that is open; at the end nothing of it is left."""
    heard = Heard()
    servers = servers_from_url(url)
    commands = heard.commands = Commands(servers, clock=clock, random=lambda: 0.5)
    listener = heard.listener = Listener(
        servers,
        commands,
        deliver=heard.deliver,
        interrupted=heard.interrupted,
        tag_of=tag_of,
        probe_channel=lambda tag: f"rt:{{{tag}}}:probe".encode(),
        clock=clock,
        random=lambda: 0.5,
    )
    await commands.open()
    await listener.open()
    await clock.settle()  # its own channel is confirmed
    try:
        yield heard
    finally:
        await listener.aclose()
        await commands.aclose()
        assert clock.timers == 0


A, B, C = channel("a"), channel("b"), channel("c")


def ear(server: ScriptedRedis) -> Peer:
    """The connection that subscribes."""
    [found] = [peer for peer in server.live if {b"SUBSCRIBE", b"SSUBSCRIBE"} & set(peer.names)]
    return found


def subscriptions(server: ScriptedRedis) -> set[bytes]:
    """What is subscribed now, without probes."""
    return {each for peer in server.live for each in peer.subscribed if b"probe" not in each}


# -- subscribing


async def test_what_is_subscribed_is_heard(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A, B])
        server.publish(A, b"1")
        server.publish(B, b"\x00\xff")
        server.publish(C, b"3")
        await clock.settle()
        assert heard.messages == [(A, b"1"), (B, b"\x00\xff")]
        assert heard.interruptions == []


async def test_subscribe_returns_when_the_server_has_confirmed_all(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        server.answers[b"SUBSCRIBE"] = None
        task = asyncio.create_task(heard.listener.subscribe([A, B]))
        await clock.settle()
        peer = ear(server)
        peer.say(array(bulk(b"subscribe"), bulk(A), number(1)))
        await clock.settle()
        assert not task.done()
        peer.say(array(bulk(b"subscribe"), bulk(B), number(2)))
        await task


async def test_subscribing_twice_asks_once(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await asyncio.gather(heard.listener.subscribe([A, A]), heard.listener.subscribe([A]))
        await heard.listener.subscribe([A])
        assert [each for command in ear(server).commands for each in command].count(A) == 1


async def test_what_is_unsubscribed_is_not_heard(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A, B])
        await heard.listener.unsubscribe([A, C])
        ear(server).say(array(bulk(b"message"), bulk(A), bulk(b"on its way")))
        await clock.settle()
        assert heard.messages == []
        assert subscriptions(server) == {B}


async def test_an_old_confirmation_is_not_taken_for_a_new_one(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        server.answers[b"SUBSCRIBE"] = server.answers[b"UNSUBSCRIBE"] = None
        first = asyncio.create_task(heard.listener.subscribe([A]))
        await clock.settle()
        await heard.listener.unsubscribe([A])
        with pytest.raises(BrokerUnavailable):
            await first
        second = asyncio.create_task(heard.listener.subscribe([A]))
        await clock.settle()
        peer = ear(server)
        assert peer.names[-3:] == [b"SUBSCRIBE", b"UNSUBSCRIBE", b"SUBSCRIBE"]
        peer.say(array(bulk(b"subscribe"), bulk(A), number(1)))
        peer.say(array(bulk(b"unsubscribe"), bulk(A), number(0)))
        await clock.settle()
        assert not second.done()
        peer.say(array(bulk(b"subscribe"), bulk(A), number(1)))
        await second


async def test_many_channels_go_in_commands_of_five_hundred(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    channels = [channel(f"{n}") for n in range(1201)]
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe(channels)
        sizes = [len(command) - 1 for command in ear(server).commands if command[0] == b"SUBSCRIBE"]
        assert sizes[-3:] == [500, 500, 201]
        server.drop()
        await clock.advance(0.2)
        assert heard.interruptions == [sorted(channels)]


async def test_a_subscription_that_is_not_confirmed_in_time_is_none(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        server.mute = True
        task = asyncio.create_task(heard.listener.subscribe([A, B]))
        await clock.advance(2.1)
        with pytest.raises(BrokerUnavailable, match="did not confirm"):
            await task
        server.mute = False
        await clock.advance(5)
        assert subscriptions(server) == {A}


async def test_a_subscription_while_the_server_is_away_waits_for_it(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await server.stop()
        await clock.settle()
        task = asyncio.create_task(heard.listener.subscribe([A]))
        await clock.advance(0.3)
        await server.start()
        await clock.advance(1.5)
        await task
        assert heard.interruptions == []  # nothing had been promised


async def test_a_cancelled_subscription_is_forgotten_unless_somebody_else_wants_it(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        server.answers[b"SUBSCRIBE"] = server.answers[b"UNSUBSCRIBE"] = None
        one = asyncio.create_task(heard.listener.subscribe([A, B]))
        two = asyncio.create_task(heard.listener.subscribe([B]))
        await clock.settle()
        one.cancel()
        await clock.settle()
        assert one.cancelled()
        for each in (A, B):
            ear(server).subscribed.add(each)
            ear(server).say(array(bulk(b"subscribe"), bulk(each), number(1)))
        await two
        await clock.settle()
        assert ear(server).commands[-1] == [b"UNSUBSCRIBE", A]


async def test_a_refusal_is_told_to_who_asked_and_costs_no_connection(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        server.answers[b"SUBSCRIBE"] = error(
            "NOPERM this user has no permissions to access one of the channels"
        )
        with pytest.raises(BrokerUnavailable, match="permission"):
            await heard.listener.subscribe([B])
        del server.answers[b"SUBSCRIBE"]
        await heard.listener.subscribe([C])
        assert len(server.live) == 2
        assert subscriptions(server) == {A, C}


async def test_before_open_and_after_aclose_nothing_is_subscribed(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
    await heard.listener.aclose()
    with pytest.raises(NotRunning):
        await heard.listener.subscribe([A])
    await heard.listener.unsubscribe([A])
    await clock.settle()
    assert server.live == []


async def test_who_waits_when_it_is_closed_is_told(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        server.mute = True
        task = asyncio.create_task(heard.listener.subscribe([A]))
        await clock.settle()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await task


async def test_open_says_why_nobody_is_there_and_leaves_nothing(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    servers = servers_from_url(server.url)
    commands = Commands(servers, clock=clock)
    await commands.open()
    listener = Listener(
        servers, commands, deliver=print, interrupted=print, tag_of=tag_of, probe_channel=channel, clock=clock
    )
    server.mute = True
    task = asyncio.create_task(listener.open())
    await clock.advance(2.1)
    with pytest.raises(BrokerUnavailable, match="it does not answer"):
        await task
    await commands.aclose()
    assert clock.timers == 0


# -- what may have been missed


async def test_after_a_loss_everything_is_subscribed_again_and_only_then_told_as_interrupted(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A, B])
        server.answers[b"SUBSCRIBE"] = None
        server.drop()
        await clock.advance(1)
        assert heard.interruptions == []
        peer = ear(server)
        probe = next(word for command in peer.commands for word in command if b"probe" in word)
        for each in (probe, A):
            peer.say(array(bulk(b"subscribe"), bulk(each), number(1)))
        await clock.settle()
        assert heard.interruptions == []
        peer.say(array(bulk(b"subscribe"), bulk(B), number(3)))
        await clock.settle()
        assert heard.interruptions == [[A, B]]
        assert heard.commands.counters.interrupted == 2
        assert heard.commands.counters.listener_reconnections == 1


async def test_what_was_unsubscribed_while_away_is_neither_heard_nor_told(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A, B])
        await server.stop()
        await clock.settle()
        await heard.listener.unsubscribe([A])
        await server.start()
        await clock.advance(2)
        assert heard.interruptions == [[B]]
        assert subscriptions(server) == {B}


async def test_who_is_told_of_an_interruption_can_read_at_once(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        answers: list[asyncio.Task[object]] = []

        def read(channels: Sequence[bytes]) -> None:
            answers.append(
                asyncio.create_task(heard.commands.execute("a", "PUBLISH", "other", "x", again=True))
            )

        heard.listener._interrupted = read
        for _ in range(10):  # whichever of the two connections comes back first
            await server.stop()
            await clock.advance(20.3)
            await server.start()
            while not answers:
                await clock.advance(0.1)
            await clock.settle()
            assert await answers.pop() == 0


async def test_what_comes_before_the_last_confirmation_is_delivered(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A, B])
        server.answers[b"SUBSCRIBE"] = None
        server.drop()
        await clock.advance(1)
        ear(server).say(array(bulk(b"message"), bulk(A), bulk(b"early")))
        await clock.settle()
        assert heard.messages == [(A, b"early")]


async def test_a_loss_within_a_loss_is_one(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        server.answers[b"SUBSCRIBE"] = None
        for _ in range(3):
            server.drop()
            await clock.advance(1)
        del server.answers[b"SUBSCRIBE"]
        server.drop()
        await clock.advance(2)
        assert heard.interruptions == [[A]]


async def test_a_server_that_does_not_confirm_is_given_up(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        server.answers[b"SUBSCRIBE"] = None
        server.drop()
        await clock.advance(1)
        peer = ear(server)
        del server.answers[b"SUBSCRIBE"]
        await clock.advance(3)
        assert not peer.open
        assert heard.interruptions == [[A]]


async def test_a_subscription_that_is_refused_after_a_loss_is_tried_until_it_is_not(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        server.answers[b"SUBSCRIBE"] = error(
            "NOPERM this user has no permissions to access one of the channels"
        )
        server.drop()
        await clock.advance(30)
        assert heard.interruptions == []
        assert caplog.text.count("subscribing again failed") == 1
        del server.answers[b"SUBSCRIBE"]
        await clock.advance(2)
        assert heard.interruptions == [[A]]
        server.publish(A, b"1")
        await clock.settle()
        assert heard.messages == [(A, b"1")]


# -- nothing ends it


@pytest.mark.parametrize(
    "fails", [ValueError("no"), asyncio.CancelledError(), ExceptionGroup("g", [KeyError()])]
)
async def test_whatever_a_callback_raises_it_goes_on_and_logs_once(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture, fails: BaseException
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        heard.fails = fails
        for _ in range(3):
            server.publish(A, b"bad")
        await clock.settle()
        assert caplog.text.count("delivering failed") == 1
        assert heard.interruptions == [[A]] * 3  # it counts as missed
        heard.fails = None
        server.publish(A, b"good")
        await clock.settle()
        assert heard.messages[-1] == (A, b"good")
        assert len(server.peers) == 2


@pytest.mark.parametrize(
    "reply",
    [
        b"+surprise\r\n",
        b":1\r\n",
        b"-ERR what\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*3\r\n*0\r\n*0\r\n*0\r\n",
        array(bulk(b"message"), array(), bulk(b"x")),
        array(bulk(b"subscribe"), bulk(b"never asked"), number(1)),
        array(bulk(b"unsubscribe"), bulk(A), number(1)),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 70_000,
        b"",
    ],
)
async def test_whatever_the_server_says_it_is_subscribed_again_and_told(
    server: ScriptedRedis, clock: ManualClock, reply: bytes
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        peer = ear(server)
        peer.say(reply)
        if not reply:
            peer.drop()
        await clock.advance(1)
        assert heard.interruptions == [[A]]
        server.publish(A, b"1")
        await clock.settle()
        assert heard.messages == [(A, b"1")]


async def test_a_function_of_ours_that_fails_does_not_end_it(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        heard.listener.probe_channel = None  # type: ignore[assignment]
        server.drop()
        await clock.advance(3)
        assert "failed on its own" in caplog.text
        heard.listener.probe_channel = lambda tag: channel(f"{tag}-probe")
        await clock.advance(5)
        assert heard.interruptions == [[A]]


async def test_a_pong_or_a_foreign_channel_is_harmless(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        ear(server).say(array(bulk(b"message"), bulk(b"foreign"), bulk(b"x")))
        await clock.advance(1)
        assert heard.interruptions == []
        assert heard.messages == []


async def test_a_flood_lets_others_have_a_turn(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        ear(server).say(array(bulk(b"message"), bulk(A), bulk(b"x")) * 1000)
        seen: list[int] = []
        while len(heard.messages) < 1000:
            seen.append(len(heard.messages))
            await asyncio.sleep(0)
        assert len([count for count in set(seen) if 0 < count < 1000]) > 10


async def test_no_restart_is_needed_however_long_it_was_away(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rtkit")
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        await server.stop()
        await clock.advance(45)
        await server.start()
        await clock.advance(3)
        assert heard.interruptions == [[A]]
        said = [record.getMessage() for record in caplog.records if "subscriptions" in record.getMessage()]
        assert [each.split(" 127")[0] for each in said] == [
            "redis: lost the connection to",
            "redis: cannot connect to",
            "redis: connected to",
        ]


# -- probes


async def test_probes_go_round_through_the_other_connection_and_are_nobodys_message(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await clock.advance(60)
        assert server.peers[0].names.count(b"PUBLISH") == 12
        assert heard.commands.counters.probes_missed == 0
        assert heard.messages == []
        assert len(server.peers) == 2


async def test_two_listeners_have_probes_of_their_own(server: ScriptedRedis, clock: ManualClock) -> None:
    other = ManualClock()
    async with listening(server.url, clock) as one, listening(server.url, other) as two:
        await clock.advance(11)
        await other.advance(11)
        channels = [command[1] for command in server.commands if command[0] == b"PUBLISH"]
        assert len(set(channels)) == 2
        assert one.listener.name != two.listener.name


async def test_a_deaf_connection_is_found_within_half_a_minute_although_it_answers(
    server: ScriptedRedis, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        await clock.advance(5.1)  # the worst moment: a probe has just come back
        server.deaf = True
        peer = ear(server)
        await clock.advance(16)
        assert not peer.open
        assert heard.commands.counters.probes_missed == 2
        assert heard.interruptions == [[A]]
        assert "deaf" in caplog.text
        server.deaf = False
        await clock.advance(60)
        assert heard.interruptions == [[A]]


async def test_one_probe_that_is_missed_is_forgiven(server: ScriptedRedis, clock: ManualClock) -> None:
    async with listening(server.url, clock) as heard:
        for _ in range(5):
            server.deaf = True
            await clock.advance(5.1)
            server.deaf = False
            await clock.advance(9.9)
        assert heard.commands.counters.probes_missed == 5
        assert len(server.peers) == 2


async def test_a_frozen_server_is_noticed_by_the_listener_too(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        peer = ear(server)
        server.mute = True
        await clock.advance(25)
        assert not peer.open
        server.mute = False
        await clock.advance(5)
        assert heard.interruptions == [[A]]


async def test_our_own_standing_still_is_not_held_against_the_server(
    server: ScriptedRedis, clock: ManualClock
) -> None:
    async with listening(server.url, clock) as heard:
        await heard.listener.subscribe([A])
        for _ in range(4):
            clock.stall(20)
            await clock.advance(1)
        assert len(server.peers) == 2
        assert heard.interruptions == []


# -- a Cluster

LOW, LOW2, HIGH = tag_in(0, 100), tag_in(0, 100, [tag_in(0, 100)]), tag_in(16_000, 16_383)


def share(border: int, *servers: ScriptedRedis) -> None:
    """Slots below the border are with the first one, the others with the second."""
    one, two = servers[:2]
    for server in servers:
        server.answers[b"CLUSTER"] = slots((0, border - 1, one.port), (border, 16_383, two.port))


@asynccontextmanager
async def cluster(clock: ManualClock) -> AsyncGenerator[tuple[ScriptedRedis, ScriptedRedis, Heard]]:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(ScriptedRedis()) for _ in range(2)]
        share(8000, one, two)
        heard = await stack.enter_async_context(listening(f"redis+cluster://127.0.0.1:{one.port}", clock))
        yield one, two, heard


def move_all(one: ScriptedRedis, two: ScriptedRedis) -> None:
    """Every slot is with two from now on, and one tells so."""
    share(1, one, two)
    moved = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}")
    one.answers[b"SSUBSCRIBE"] = one.answers[b"SPUBLISH"] = moved


async def test_in_a_cluster_each_channel_is_heard_where_it_lies(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(HIGH)])
        assert subscriptions(one) == {channel(LOW)}
        assert subscriptions(two) == {channel(HIGH)}
        one.publish(channel(LOW), b"1", kind=b"smessage")
        two.publish(channel(HIGH), b"2", kind=b"smessage")
        await clock.settle()
        assert sorted(heard.messages) == sorted([(channel(LOW), b"1"), (channel(HIGH), b"2")])


async def test_in_a_cluster_a_command_names_channels_of_one_slot(clock: ManualClock) -> None:
    async with cluster(clock) as (one, _, heard):
        one_slot = [f"rt:{{{LOW}}}:{n}".encode() for n in range(3)]
        await heard.listener.subscribe([*one_slot, channel(LOW2)])
        asked = [command[1:] for command in ear(one).commands if command[0] == b"SSUBSCRIBE"]
        assert sorted(one_slot) in [sorted(each) for each in asked]
        assert all(len({slot_of(tag_of(each)) for each in words}) == 1 for words in asked)


async def test_each_server_of_a_cluster_is_probed_on_a_channel_that_lies_there(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(HIGH)])
        await clock.advance(21)
        for server in (one, two):
            probes = [command for command in server.commands if command[0] == b"SPUBLISH"]
            assert len(probes) == 4
            assert (slot_of(tag_of(probes[0][1])) < 8000) is (server is one)
        two.deaf = True
        await clock.advance(16)
        assert heard.interruptions == [[channel(HIGH)]]


async def test_a_slot_that_was_taken_away_is_followed_to_its_new_owner(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(LOW2), channel(HIGH)])
        move_all(one, two)
        for tag in (LOW, LOW2):
            ear(one).say(array(bulk(b"sunsubscribe"), bulk(channel(tag)), number(0)))
        await clock.advance(1)
        assert subscriptions(two) == {channel(LOW), channel(LOW2), channel(HIGH)}
        assert sorted(each for told in heard.interruptions for each in told) == sorted(
            [channel(LOW), channel(LOW2)]
        )
        two.publish(channel(LOW), b"1", kind=b"smessage")
        await clock.settle()
        assert heard.messages == [(channel(LOW), b"1")]


async def test_a_sunsubscribe_that_was_asked_for_moves_nothing(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(LOW2)])
        await heard.listener.unsubscribe([channel(LOW)])
        await clock.advance(1)
        assert subscriptions(one) | subscriptions(two) == {channel(LOW2)}
        assert heard.interruptions == []


async def test_a_channel_given_up_and_taken_away_at_once_costs_no_connection(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(LOW2)])
        peer = ear(one)
        one.answers[b"SUNSUBSCRIBE"] = None
        await heard.listener.unsubscribe([channel(LOW)])
        peer.say(array(bulk(b"sunsubscribe"), bulk(channel(LOW)), number(0)))
        peer.say(error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}"))
        await clock.advance(1)
        assert peer.open
        assert heard.interruptions == []


async def test_a_subscription_is_sent_on_to_where_moved_says(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        # One has given its slots away, and the picture that both give is still the old one.
        one.answers[b"SSUBSCRIBE"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}")
        await heard.listener.subscribe([channel(LOW)])
        assert subscriptions(two) == {channel(LOW)}
        assert heard.interruptions == []


async def test_servers_that_send_each_other_subscriptions_are_not_asked_in_a_spin(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        one.answers[b"SSUBSCRIBE"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{two.port}")
        two.answers[b"SSUBSCRIBE"] = error(f"MOVED {slot_of(LOW)} 127.0.0.1:{one.port}")
        task = asyncio.create_task(heard.listener.subscribe([channel(LOW)]))
        await clock.advance(2.5)
        with pytest.raises(BrokerUnavailable):
            await task
        assert one.names.count(b"SSUBSCRIBE") + two.names.count(b"SSUBSCRIBE") < 80


async def test_a_look_at_the_cluster_moves_subscriptions_too(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(HIGH)])
        await clock.advance(1)
        share(1, one, two)  # nobody says a word about it
        await clock.advance(31)
        assert subscriptions(two) == {channel(LOW), channel(HIGH)}
        assert subscriptions(one) == set()
        assert heard.interruptions == [[channel(LOW)]]


async def test_a_server_that_died_is_replaced_by_whom_the_others_name(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(HIGH)])
        await two.stop()
        await clock.advance(5)
        async with ScriptedRedis() as three:
            share(8000, one, three)
            await clock.advance(5)
            assert subscriptions(three) == {channel(HIGH)}
            assert heard.interruptions == [[channel(HIGH)]]
            # and the connection to the dead one is not tried any more
            async with ScriptedRedis(two.port) as again:
                await clock.advance(30)
                assert again.peers == []


async def test_slots_that_nobody_has_are_waited_for(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(HIGH)])
        await two.stop()
        one.answers[b"CLUSTER"] = slots((0, 7999, one.port))
        await clock.advance(40)
        share(1, two, one)
        await clock.advance(5)
        assert subscriptions(one) == {channel(HIGH)}
        assert heard.interruptions == [[channel(HIGH)]]


async def test_a_probe_follows_when_its_slot_moves(clock: ManualClock) -> None:
    async with cluster(clock) as (one, two, heard):
        await heard.listener.subscribe([channel(LOW), channel(HIGH)])
        await clock.advance(5.1)
        probe = next(command[1] for command in one.commands if command[0] == b"SPUBLISH")
        border = slot_of(tag_of(probe))
        for server in (one, two):  # one slot goes: that of the probe
            server.answers[b"CLUSTER"] = slots(
                (0, border - 1, one.port),
                (border, border, two.port),
                (border + 1, 7999, one.port),
                (8000, 16_383, two.port),
            )
        ear(one).say(array(bulk(b"sunsubscribe"), bulk(probe), number(0)))
        await clock.advance(60)
        assert heard.commands.counters.listener_reconnections == 0
        assert heard.commands.counters.probes_missed <= 2
        assert {command[1] for command in one.commands if command[0] == b"SPUBLISH"} != {probe}
