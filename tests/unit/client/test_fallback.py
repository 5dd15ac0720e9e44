"""Which kind of pipe is used where not every kind gets through, and what is remembered of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from rtkit.client import DialFailed, FallbackDialer, WireClosed, connect
from rtkit.client.fallback import http_ready
from rtkit.client.http import Answer
from rtkit.errors import ConnectionClosed
from rtkit.primitives.clocks import sleep
from rtkit.testing.clock import ManualClock
from tests.unit.client.fakes import FakeServer
from tests.unit.client.http_fakes import FakeWorld

URL = "ws://u:secret@localhost/rt/ws?q=secret"


class FakeWire:
    """A wire that receives what the test puts into it."""

    def __init__(self, *frames: bytes | WireClosed) -> None:
        self.inbox: asyncio.Queue[bytes | WireClosed] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.closed: int | None = None
        self.aborted = False
        for each in frames:
            self.inbox.put_nowait(each)

    async def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    async def recv(self) -> bytes:
        frame = await self.inbox.get()
        if isinstance(frame, WireClosed):
            self.inbox.put_nowait(frame)
            raise frame
        return frame

    async def close(self, code: int, reason: str) -> None:
        self.closed = code
        if not self.sent or self.sent[-1] != b"open":
            try:
                await asyncio.Event().wait()  # a goodbye nobody answers
            finally:
                self.aborted = True


Result = FakeWire | BaseException | None  # None: hang


class Way:
    """Opens, or does not open, one kind of pipe."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.result: Callable[[], Result] = lambda: FakeWire(b"hello")

    async def take(self) -> FakeWire:
        self.world.tried.append(self.name)
        result = self.result()
        if result is None:
            await asyncio.Event().wait()
        if isinstance(result, BaseException):
            raise result
        assert result is not None
        self.world.wires.append(result)
        return result


class Dials(Way):
    async def dial(self, url: str, headers: Mapping[str, str]) -> FakeWire:
        return await self.take()


class Opens(Way):
    async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> FakeWire:
        wire = await self.take()
        wire.sent.append(b"open")
        assert hello == b"HELLO"
        return wire


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.tried: list[str] = []
        self.wires: list[FakeWire] = []
        self.ready: Callable[[], Awaitable[Answer]] = self.is_ready
        self.websocket = Dials(self, "websocket")
        self.sse = Opens(self, "sse")
        self.poll = Opens(self, "poll")
        self.ways: list[Any] = [self.websocket, self.sse, self.poll]
        self.dialer = FallbackDialer(
            [(way.name, way) for way in self.ways], ready=self._ready, clock=self.clock
        )

    async def _ready(self, url: str, headers: Mapping[str, str]) -> Answer:
        self.tried.append("ready")
        return await self.ready()

    async def is_ready(self) -> Answer:
        return Answer(204, {})

    async def is_away(self) -> Answer:
        raise DialFailed("the network is away")

    def answers(self, status: int, **headers: str) -> Callable[[], Awaitable[Answer]]:
        async def answer() -> Answer:
            return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()})

        return answer

    async def open(self) -> Any:
        """Open, with all the time it takes and no more."""
        self.tried.clear()
        opening = asyncio.create_task(self.dialer.open(URL, {}, b"HELLO"))
        await self.clock.settle()
        while not opening.done():
            assert self.clock.next_at is not None
            await self.clock.advance(self.clock.next_at - self.clock.monotonic())
        return await opening

    async def works(self, name: str) -> Any:
        wire = await self.open()
        assert wire.transport == name
        assert self.tried[-1] == name
        return wire

    async def fails(self) -> DialFailed:
        with pytest.raises(DialFailed) as caught:
            await self.open()
        assert "secret" not in str(caught.value)
        assert self.clock.timers == 0
        return caught.value


def transport_of(wire: Any) -> str:
    return str(wire.transport)


def unusable() -> DialFailed:
    return DialFailed("not here", terminal=True, unusable=True)


async def test_the_first_is_taken_when_it_works() -> None:
    world = World()
    wire = await world.works("websocket")
    assert world.tried == ["websocket"]
    assert world.wires[0].sent == [b"HELLO"]
    assert await wire.recv() == b"hello"
    await wire.send(b"more")
    assert world.wires[0].sent[-1] == b"more"


@pytest.mark.parametrize("how", ["refused by a proxy", "refused by the host", "hangs", "mute", "garbage"])
async def test_one_that_does_not_open_or_speak_gives_way_within_the_same_attempt(how: str) -> None:
    world = World()
    silent = FakeWire()
    world.websocket.result = lambda: {
        "refused by a proxy": unusable(),
        "refused by the host": ConnectionRefusedError("no"),
        "hangs": None,
        "mute": silent,
        "garbage": DialFailed("no WebSocket", unusable=True),
    }[how]
    opening = asyncio.create_task(world.dialer.open(URL, {}, b"HELLO"))
    await world.clock.advance(3.0)
    assert transport_of(await opening) == "sse"
    assert world.tried == ["websocket", "ready", "sse"]
    if how == "mute":
        assert silent.closed == 1001, "the session may go on over another pipe"
        assert silent.aborted, "nobody waits for the goodbye of a pipe that says nothing"


async def test_a_websocket_has_3_s_to_open_and_3_more_to_speak() -> None:
    world = World()
    dial = world.websocket.dial

    async def slow(url: str, headers: Mapping[str, str]) -> FakeWire:
        await sleep(world.clock, 2.9)
        return await dial(url, headers)

    world.websocket.dial = slow  # type: ignore[method-assign]
    world.websocket.result = lambda: FakeWire()
    opening = asyncio.create_task(world.dialer.open(URL, {}, b"HELLO"))
    await world.clock.advance(5.8)
    world.wires[0].inbox.put_nowait(b"hello")
    assert transport_of(await opening) == "websocket"


async def test_the_next_after_the_next() -> None:
    world = World()
    world.websocket.result = world.sse.result = unusable
    await world.works("poll")
    assert world.tried == ["websocket", "ready", "sse", "ready", "poll"]


async def test_what_no_other_request_would_fare_better_with_is_said_at_once() -> None:
    world = World()

    async def bad_certificate() -> Answer:
        raise DialFailed("not accepted", terminal=True, code=1015)

    world.ready = bad_certificate
    world.websocket.result = lambda: OSError("reset")
    failed = await world.fails()
    assert (failed.terminal, failed.code) == (True, 1015)


async def test_when_the_network_is_away_nothing_is_changed() -> None:
    world = World()
    world.ready = world.is_away
    world.websocket.result = lambda: ConnectionRefusedError("refused")
    failed = await world.fails()
    assert not failed.terminal
    assert "refused" in failed.reason and "the network is away" in failed.reason
    assert world.tried == ["websocket", "ready"]
    assert world.dialer.choice == "websocket"
    world.websocket.result = lambda: FakeWire(b"hello")
    await world.works("websocket")


async def test_nor_when_it_is_away_for_the_last_kind_of_pipe() -> None:
    world = World()
    world.websocket.result = world.sse.result = unusable
    await world.works("poll")
    world.poll.result = lambda: ConnectionRefusedError("refused")
    world.ready = world.is_away
    await world.fails()
    world.poll.result = lambda: FakeWire(b"hello")
    world.ready = world.is_ready
    await world.works("poll")
    assert world.tried == ["poll"]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_server_that_takes_nobody_now_is_waited_for(status: int) -> None:
    world = World()
    world.websocket.result = unusable
    world.ready = world.answers(status, retry_after="7")
    failed = await world.fails()
    assert (failed.terminal, failed.window) == (False, (7.0, 11.0))
    assert world.tried == ["websocket", "ready"]
    assert world.dialer.choice == "websocket"


async def test_a_crowd_of_newcomers_is_not_the_transports_fault() -> None:
    """T7, K4: in a storm nobody is demoted."""
    world = World()
    world.websocket.result = unusable
    world.ready = world.answers(204, retry_after="7")
    failed = await world.fails()
    assert (failed.terminal, failed.window) == (False, (7.0, 11.0))
    assert world.tried == ["websocket", "ready"]
    assert world.dialer.choice == "websocket"


@pytest.mark.parametrize(("seconds", "choice"), [(0.9, "sse"), (1.1, "websocket")])
async def test_a_server_that_is_slow_is_not_the_transports_fault(seconds: float, choice: str) -> None:
    """T7, K4."""
    world = World()
    world.websocket.result = lambda: None

    async def slow() -> Answer:
        await sleep(world.clock, seconds)
        return Answer(204, {})

    world.ready = slow
    if choice == "sse":
        await world.works("sse")
    else:
        failed = await world.fails()
        assert (failed.terminal, failed.window) == (False, None)
    assert world.tried[:2] == ["websocket", "ready"]
    assert world.dialer.choice == choice


@pytest.mark.parametrize("status", [200, 301, 403, 404])
async def test_where_no_hub_is_what_the_first_try_said_counts(status: int) -> None:
    world = World()
    world.websocket.result = unusable
    world.ready = world.answers(status)
    failed = await world.fails()
    assert (failed.terminal, failed.reason) == (True, "not here")
    assert world.tried == ["websocket", "ready"]


@pytest.mark.parametrize(
    "verdict",
    [
        DialFailed("no", terminal=True, code=3507),
        DialFailed("later", window=(1, 2)),
    ],
)
@pytest.mark.parametrize("way", [0, 1])
async def test_a_verdict_is_no_failure_of_the_pipe(verdict: DialFailed, way: int) -> None:
    world = World()
    world.websocket.result = unusable
    world.ways[way].result = lambda: verdict
    assert await world.fails() is verdict
    assert len(world.tried) == 1 + 2 * way


async def test_a_close_code_before_the_first_frame_is_handed_on() -> None:
    world = World()
    world.websocket.result = lambda: FakeWire(WireClosed(3500, "bad token"))
    wire = await world.works("websocket")
    for _ in range(2):
        with pytest.raises(WireClosed, match="bad token"):
            await wire.recv()


async def test_when_none_works_the_order_begins_again() -> None:
    world = World()
    for way in world.ways:
        way.result = unusable
    for _ in range(2):
        failed = await world.fails()
        assert not failed.terminal
        assert world.tried == ["websocket", "ready", "sse", "ready", "poll", "ready"]


async def test_the_choice_is_kept_for_ten_minutes_sleep_included() -> None:
    world = World()
    world.websocket.result = unusable
    await world.works("sse")
    await world.clock.advance(500)
    await world.works("sse")
    assert world.tried == ["sse"]
    world.clock.suspend(99)
    await world.works("sse")
    assert world.tried == ["sse"]
    world.clock.suspend(1)
    world.websocket.result = lambda: FakeWire(b"hello")
    await world.works("websocket")
    assert world.tried == ["websocket"]


async def test_coming_back_again_and_again_does_not_keep_the_choice_longer() -> None:
    world = World()
    world.websocket.result = unusable
    await world.works("sse")
    for _ in range(5):
        await world.clock.advance(100)
        await world.works("sse")
    await world.clock.advance(100)
    await world.works("sse")
    assert world.tried == ["websocket", "ready", "sse"]


async def test_three_cuts_in_a_row_are_a_failure() -> None:
    world = World()
    world.websocket.result = lambda: FakeWire(b"hello", WireClosed(1006))
    for n in range(3):
        wire = await world.works("websocket")
        assert await wire.recv() == b"hello"
        with pytest.raises(WireClosed):
            await wire.recv()
        with pytest.raises(WireClosed):  # twice, and counted once
            await wire.recv()
        assert world.dialer.choice == "websocket", n
    await world.works("sse")
    assert world.tried == ["ready", "sse"]
    await world.works("sse")
    assert world.tried == ["sse"]


@pytest.mark.parametrize("blame", ["slow", "no hub", "no room", "away"])
async def test_after_three_cuts_that_it_is_not_to_blame_for_the_same_kind_is_tried_again(blame: str) -> None:
    world = World()

    async def slow() -> Answer:
        await sleep(world.clock, 1.1)
        return Answer(204, {})

    world.ready = {
        "slow": slow,
        "no hub": world.answers(404),
        "no room": world.answers(503),
        "away": world.is_away,
    }[blame]
    world.websocket.result = lambda: FakeWire(b"hello", WireClosed(1006))
    for _ in range(3):
        wire = await world.works("websocket")
        await wire.recv()
        with pytest.raises(WireClosed):
            await wire.recv()
    await world.fails()
    assert world.tried == ["ready"]
    await world.works("websocket")
    assert world.tried == ["websocket"]


async def test_being_cut_before_the_first_word_counts_too() -> None:
    world = World()
    world.websocket.result = lambda: FakeWire(WireClosed(1006))
    for _ in range(3):
        failed = await world.fails()
        assert not failed.unusable
        assert world.tried == ["websocket"]
    await world.works("sse")


@pytest.mark.parametrize("between", ["a long life", "a close code", "closing it ourselves"])
async def test_cuts_that_are_not_in_a_row_are_none(between: str) -> None:
    world = World()

    async def end(closed: WireClosed, after: float = 0.0) -> None:
        wire = await world.works("websocket")
        await wire.recv()
        await world.clock.advance(after)
        world.wires[-1].inbox.put_nowait(closed)
        with pytest.raises(WireClosed):
            await wire.recv()

    cut = WireClosed(1006)
    await end(cut)
    await end(cut, after=9.9)
    if between == "a long life":
        await end(cut, after=10)
    elif between == "a close code":
        await end(WireClosed(3001))
    else:
        wire = await world.works("websocket")
        await wire.recv()
        closing = asyncio.create_task(wire.close(3000, ""))
        await world.clock.settle()
        world.wires[-1].inbox.put_nowait(cut)
        with pytest.raises(WireClosed):
            await wire.recv()
        closing.cancel()
        await end(cut)  # the third: ours did not count, and did not make the others begin anew
        await world.works("sse")
        return
    await end(cut)
    await end(cut)
    await world.works("websocket")


async def test_cancelling_lets_go_of_what_was_opened() -> None:
    world = World()
    silent = FakeWire()
    world.websocket.result = lambda: silent
    opening = asyncio.create_task(world.dialer.open(URL, {}, b"HELLO"))
    await world.clock.advance(1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert silent.closed == 1001
    assert world.clock.timers == 0


async def test_where_nothing_can_ask_there_is_no_falling_back_but_a_hint() -> None:
    world = World()
    world.websocket.result = unusable
    dialer = FallbackDialer(
        [("websocket", world.websocket)], ready=None, hint="install it", clock=world.clock
    )
    with pytest.raises(DialFailed, match="not here; install it") as failed:
        await dialer.open(URL, {}, b"HELLO")
    assert failed.value.terminal
    world.websocket.result = lambda: DialFailed("no", terminal=True, code=3507)
    with pytest.raises(DialFailed) as verdict:
        await dialer.open(URL, {}, b"HELLO")
    assert verdict.value.reason == "no"
    world.websocket.result = lambda: FakeWire()
    wire: Any = await dialer.open(URL, {}, b"HELLO")
    assert wire.sent == [b"HELLO"]
    world.websocket.result = lambda: None
    opening = asyncio.create_task(dialer.open(URL, {}, b"HELLO"))
    await world.clock.advance(3.1)
    with pytest.raises(TimeoutError):
        await opening


def test_no_kinds_at_all() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FallbackDialer([], ready=None)


async def test_ready_is_asked_for_over_http_and_has_an_end() -> None:
    world = FakeWorld()
    ready = http_ready(world, clock=world.clock)
    asking = asyncio.create_task(ready(URL, {}))
    await world.pass_()
    world.of("GET", "ready")[0].reply(503, retry_after="3")
    assert (await asking).status == 503
    asking = asyncio.create_task(ready(URL, {}))
    await world.pass_(3.1)
    with pytest.raises(DialFailed, match="within 3 s") as failed:
        await asking
    assert "secret" not in str(failed.value)
    world.check_nothing_is_left()


# -- within a client ---------------------------------------------------------------------------------------


def chooser(server: FakeServer, world: World) -> FallbackDialer:
    class Open:
        async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> Any:
            wire = await server.dial(url, headers)
            await wire.send(hello)
            return wire

    return FallbackDialer([("websocket", server), ("sse", Open())], ready=world._ready, clock=server.clock)


async def test_a_client_is_connected_by_what_works_and_says_which() -> None:
    server, world = FakeServer(), World()
    server.refuse = [unusable()]
    client = connect(
        "ws://localhost/rt", dialer=chooser(server, world), clock=server.clock, random=random.Random(7)
    )
    assert client.transport is None
    async with client:
        assert client.transport == "sse"
        hello = server.wire.commands[0].connect
        assert hello is not None and hello.rt is not None
        assert await client.call(name="x") is None
        server.wire.cut()
        await server.clock.settle()
        assert client.transport is None
        await server.pass_(1)
        assert client.state == "connected"
        assert client.transport == "sse"
    assert server.clock.timers == 0
    assert client.transport is None


async def test_a_client_whose_pipe_is_mute_is_connected_by_the_next() -> None:
    server, world = FakeServer(), World()
    answer = server.on["connect"]
    server.on["connect"] = lambda body: answer(body) if len(server.wires) > 1 else None
    dialer = chooser(server, world)
    async with connect("ws://localhost/rt", dialer=dialer, clock=server.clock, wait=False) as client:
        await server.pass_(3.1)
        assert client.state == "connected"
        assert client.transport == "sse"
        assert [wire.commands[0].id for wire in server.wires] == [1, 1]


async def test_a_client_that_no_pipe_can_serve_keeps_trying_or_gives_up() -> None:
    server, world = FakeServer(), World()
    server.refuse = [unusable(), unusable()]
    dialer = chooser(server, world)
    async with connect("ws://localhost/rt", dialer=dialer, clock=server.clock, wait=False) as client:
        await server.clock.settle()
        assert client.state == "waiting"
        assert "no transport works" in client.statistics().last_failure
        await server.pass_(1)
        assert client.transport == "websocket"
        assert [command.id for command in server.wire.commands] == [1], (
            "nothing is left of the attempt before"
        )
    world.ready = world.answers(404)
    server.refuse = [unusable()]
    with pytest.raises(ConnectionClosed, match="not here"):
        async with connect("ws://localhost/rt", dialer=chooser(server, world), clock=server.clock):
            pass


@pytest.mark.parametrize("transports", [(), ("websocket", "websocket"), ("carrier pigeon",), "sse"])
def test_an_order_that_is_none(transports: Any) -> None:
    with pytest.raises(ValueError, match="transports"):
        connect("ws://localhost", transports=transports)
