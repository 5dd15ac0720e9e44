"""The states of a client: connecting, losing, waiting, coming back, closing for good."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

import pytest

from rtkit.client import Client, DialFailed, Policy, State, connect
from rtkit.errors import CallError, ConnectionClosed, NotRunning, PublishUnknown, WrongLoop
from rtkit.testing.clock import ManualClock
from tests.unit.client.fakes import Error, FakeServer, FakeWire, running, sub


async def failing(server: FakeServer, **options: Any) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        async with server.client(**options):
            pass
    return caught.value


async def test_connects_introduces_itself_and_says_goodbye() -> None:
    server = FakeServer()
    client = server.client(token="t", data={"a": 1}, headers={"x-a": "b"})
    assert client.state == "idle"
    async with client as entered:
        assert entered is client
        assert client.state is State.CONNECTED
        assert client.client_id == "c1"
        assert client.close_code is None
        hello = server.wire.commands[0]
        assert hello.id == 1
        assert hello.connect is not None
        assert (hello.connect.token, bytes(hello.connect.data), hello.connect.name) == (
            "t",
            b'{"a":1}',
            "rtkit-python",
        )
        assert hello.connect.rt is not None
        assert server.dials == [("ws://localhost/rt/ws", {"x-a": "b"})]
        assert "connected" in repr(client)
    assert client.state == "closed"
    assert client.close_code == 1000
    assert server.wire.frames[-1] == b'{"bye":{}}'
    assert server.wire.closed_by_client == (1000, "")
    await client.aclose()
    assert server.clock.timers == 0
    with pytest.raises(ConnectionClosed):
        client.join("r")


async def test_no_goodbye_to_foreign_servers() -> None:
    server = FakeServer()
    del server.hello["rt"]
    async with running(server):
        pass
    assert len(server.wire.commands) == 1


async def test_the_states_of_a_loss() -> None:
    server = FakeServer()
    seen: list[str] = []
    client = server.client()
    off = client.on_state(lambda state: seen.append(state))

    def bad(state: State) -> None:
        raise RuntimeError("callbacks may fail")

    client.on_state(bad)
    async with client:
        server.wire.cut()
        await server.clock.settle()
        assert client.state == "waiting"
        assert "1006" in client.statistics().last_failure
        await server.pass_(0.49)
        assert len(server.wires) == 1
        await server.pass_(0.51)
        assert client.state == "connected"
        assert client.client_id == "c2"
        off()
    assert seen == ["connecting", "connected", "waiting", "connecting", "connected"]


async def test_delays_grow_with_full_jitter_and_begin_anew_after_a_stable_connection() -> None:
    server = FakeServer()
    async with running(server) as client:
        delays: list[float] = []
        for _ in range(12):
            server.wire.cut()
            await server.clock.settle()
            before = server.clock.monotonic()
            at = server.clock.next_at
            assert at is not None
            delays.append(at - before)
            await server.pass_(at - before)
            assert client.state == "connected"
        assert all(0.5 <= d <= 20 for d in delays)
        assert delays[0] <= 1
        assert max(delays) > 4
        assert client.statistics().attempts == 12
        await server.pass_(6)
        server.wire.cut()
        await server.clock.settle()
        at = server.clock.next_at
        assert at is not None
        assert at - server.clock.monotonic() <= 1


@pytest.mark.parametrize("code", [1000, 1001, 1006, 3000, 3001, 3008, 3010, 3012, 4000, 4001, 5000])
async def test_codes_that_mean_come_back(code: int) -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.cut(code, "why")
        await server.pass_(1.0)
        assert client.state == "connected"
        assert client.client_id == "c2"


@pytest.mark.parametrize("code", [3500, 3501, 3503, 3507, 4500, 4501, 1009, 1002])
async def test_codes_that_mean_stay_away(code: int) -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.cut(code, "why")
        await server.clock.settle()
        assert client.state == "closed"
        assert (client.close_code, client.close_reason) == (code, "why")
        with pytest.raises(ConnectionClosed, match="why"):
            await client.call(name="x")
        with pytest.raises(ConnectionClosed):
            await client.wait_state("connected")
        assert await client.wait_state("closed") == "closed"
        await server.pass_(100)
        assert len(server.wires) == 1


async def test_the_servers_farewell_names_a_window_and_its_code_counts() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.push(disconnect={"code": 3001, "reason": "draining", "rt": {"min": 40, "max": 50}})
        server.wire.cut(1006)
        await server.pass_(39.9)
        assert client.state == "waiting"
        assert "draining" in client.statistics().last_failure
        await server.pass_(10.1)
        assert client.state == "connected"
        server.wire.push(disconnect={"code": 3503, "reason": "gone"})
        server.wire.cut(1006)
        await server.clock.settle()
        assert client.close_code == 3503


async def test_windows_out_of_order_are_put_right() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.push(disconnect={"code": 3001, "reason": "", "rt": {"min": 5, "max": 1}})
        server.wire.cut()
        await server.pass_(4.9)
        assert client.state == "waiting"
        await server.pass_(0.2)
        assert client.state == "connected"


async def test_first_connection_is_tried_again_and_again() -> None:
    server = FakeServer()
    server.refuse = [OSError("down"), DialFailed("busy", window=(3, 3)), TimeoutError()]
    task = asyncio.create_task(server.client().__aenter__())
    await server.pass_(10)
    client = await task
    assert len(server.dials) == 4
    await client.aclose()


async def test_connect_timeout_tells_the_last_failure() -> None:
    server = FakeServer()
    server.refuse = [OSError("no route")] * 100
    client = server.client(connect_timeout=5)
    task = asyncio.create_task(client.__aenter__())
    await server.pass_(6)
    with pytest.raises(TimeoutError, match="no route"):
        await task
    assert client.state == "closed"
    assert server.clock.timers == 0


async def test_giving_up_while_entering_leaves_nothing() -> None:
    server = FakeServer()
    server.hang = True
    client = server.client()
    task = asyncio.create_task(client.__aenter__())
    await server.clock.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.state == "closed"
    assert server.clock.timers == 0


async def test_a_terminal_failure_to_dial_is_raised() -> None:
    server = FakeServer()
    server.refuse = [DialFailed("no such path", terminal=True, code=3501)]
    error = await failing(server)
    assert (error.code, error.reason) == (3501, "no such path")


async def test_a_broken_dialer_is_tried_again() -> None:
    server = FakeServer()
    server.refuse = [RuntimeError("bug")]
    task = asyncio.create_task(server.client().__aenter__())
    await server.pass_(2)
    await (await task).aclose()


async def test_a_pipe_that_does_not_open_is_given_up() -> None:
    server = FakeServer()
    server.hang = True
    async with running(server, wait=False) as client:
        await server.pass_(10)
        assert client.state == "waiting"
        server.hang = False
        await server.pass_(1)
        assert client.state == "connected"


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    server = FakeServer()
    server.on["connect"] = lambda body: None
    async with running(server, wait=False) as client:
        await server.pass_(9.9)
        assert client.state == "connecting"
        await server.pass_(0.1)
        assert client.state == "waiting"
        assert server.wire.closed_by_client is not None


@pytest.mark.parametrize(
    "code, close", [(101, 3500), (103, 3507), (107, 3501), (106, 3504), (102, 3503), (400, 3503)]
)
async def test_a_refusal_is_final(code: int, close: int) -> None:
    server = FakeServer()

    def refuse(body: Any) -> None:
        raise Error(code, "go away")

    server.on["connect"] = refuse
    async with running(server, wait=False) as client:
        await server.pass_(1.9)
        assert client.state == "connecting", "a server that refuses closes, and is given the time"
        await server.pass_(0.1)
        with pytest.raises(ConnectionClosed) as caught:
            await client.wait_state("connected")
        assert (caught.value.code, client.close_code) == (close, close)
        assert "go away" in caught.value.reason
        assert isinstance(caught.value.__cause__, CallError)
        assert caught.value.__cause__.code == code


@pytest.mark.parametrize(
    "close, told", [(3500, 3500), (3507, 3507), (4567, 4567), (3005, 3507), (1006, 3507), (1000, 3507)]
)
async def test_the_code_that_a_refusing_server_closes_with_counts(close: int, told: int) -> None:
    """Unless it does not say to stay away, as the error did."""
    server = FakeServer()

    def refuse(body: Any) -> None:
        asyncio.get_running_loop().call_soon(server.wire.cut, close, "away")
        raise Error(103, "members only")

    server.on["connect"] = refuse
    error = await failing(server)
    assert error.code == told
    assert error.reason == "members only (error 103)"


async def test_a_temporary_refusal_is_not() -> None:
    server = FakeServer()
    hello, tries = server.on["connect"], 0

    def refuse(body: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Error(100, "broker away", temporary=True, retry_after=7)
        if tries == 2:
            raise Error(100)
        return hello(body)

    server.on["connect"] = refuse
    async with running(server, wait=False) as client:
        await server.pass_(6.9)
        assert client.state == "waiting"
        await server.pass_(6)
        assert client.state == "connected"


async def test_offline_first() -> None:
    server = FakeServer()
    server.refuse = [OSError()]
    server.on["subscribe"] = lambda body: sub("e", 3)
    async with running(server, wait=False) as client:
        assert client.state in ("connecting", "waiting")
        room = client.join("r")
        sending = asyncio.create_task(room.send("hi"))
        await server.pass_(2)
        assert await sending is None
        assert await room is room
        assert [c.id for c in server.wire.commands] == [1, 2, 3]


async def test_pings_are_answered_and_silence_is_death() -> None:
    server = FakeServer()
    async with running(server) as client:
        for _ in range(4):
            await server.pass_(34.9)
            server.wire.say({})
            await server.clock.settle()
        assert server.wire.pongs == 4
        assert client.state == "connected"
        await server.pass_(34.9)
        assert client.state == "connected"
        await server.pass_(0.2)
        assert client.state == "waiting"
        assert "heard" in client.statistics().last_failure
        assert server.wires[0].closed_by_client == (3000, "reconnecting")
        await server.pass_(1)
        assert client.state == "connected"


async def test_anything_heard_is_a_sign_of_life_and_pings_may_want_no_answer() -> None:
    server = FakeServer()
    server.hello["pong"] = False
    async with running(server) as client:
        for _ in range(5):
            await server.pass_(30)
            server.wire.say({})
            await server.clock.settle()
        assert client.state == "connected"
        assert server.wire.pongs == 0


async def test_without_pings_silence_means_nothing() -> None:
    server = FakeServer()
    server.hello["ping"] = 0
    async with running(server) as client:
        await server.pass_(1000)
        assert client.state == "connected"


async def test_a_stall_of_ours_is_not_the_servers_silence() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.clock.stall(40)
        server.wire.say({})  # it came in while we were stalled
        await server.clock.settle()
        await server.pass_(2)
        assert client.state == "connected"
        server.clock.stall(40)
        await server.pass_(4.9)
        assert client.client_id == "c1", (
            "there may be something to read; the server may have been stalled with us"
        )
        await server.pass_(2)
        assert client.client_id == "c2"


@pytest.mark.parametrize(
    "before, seconds", [(0.0, 35.5), (24.9, 10.5), (24.9, 11.0), (30.0, 5.2), (34.0, 1.5)]
)
async def test_nor_is_a_stall_that_ends_just_when_the_silence_has_lasted_too_long(
    before: float, seconds: float
) -> None:
    """F5: by how much the last look is late does not tell how long the stall was."""
    server = FakeServer()
    async with running(server) as client:
        await server.pass_(before)
        server.clock.stall(seconds)
        await server.clock.settle()
        if before + seconds > 35 and seconds < 4:
            # Too short to be noticed, and the server had been silent for 34 s before it.
            assert client.state == "waiting"
            return
        assert client.state == "connected"
        server.wire.say({})
        await server.pass_(30)
        assert client.client_id == "c1"
        await server.pass_(36)
        assert client.client_id == "c2", "real silence"


async def test_looking_for_silence_costs_little() -> None:
    """While pings come, it looks when the next one is due, and not more often."""
    server = FakeServer()
    async with running(server):
        await server.pass_(10)
        server.wire.say({})
        assert server.clock.next_at == 1025
        await server.pass_(15)
        assert server.clock.next_at == 1035
        server.wire.say({})
        await server.pass_(10)
        assert server.clock.next_at == 1050
        await server.pass_(15)
        assert server.clock.next_at == 1052.5
        await server.pass_(9.9)
        assert server.clock.next_at == 1060


async def test_garbage_ends_the_connection_not_the_client() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.say({"id": "x"})
        await server.clock.settle()
        assert client.state == "waiting"
        assert "no unit" in client.statistics().last_failure
        await server.pass_(1)
        assert client.state == "connected"


async def test_a_fault_of_ours_ends_the_connection_not_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    async with running(server) as client:
        room = await client.join("r")

        def broken(*args: object) -> None:
            raise RuntimeError("bug")

        with monkeypatch.context() as patch:
            patch.setattr(room._membership.state.__class__, "published", broken)  # pyright: ignore[reportPrivateUsage]
            server.wire.push(channel="r", pub={"data": 1})
            await server.clock.settle()
        assert client.state == "waiting"
        assert "bug" in client.statistics().last_failure
        await server.pass_(1)
        assert client.state == "connected"


class Broken(random.Random):
    def random(self) -> float:
        raise RuntimeError("bug")


async def test_a_fault_of_ours_elsewhere_ends_the_client_loudly() -> None:
    server = FakeServer()
    async with running(server, random=Broken(1)) as client:
        server.wire.cut()
        await server.clock.settle()
        assert client.state == "closed"
        with pytest.raises(ConnectionClosed, match="bug"):
            await client.call(name="x")


async def test_unknown_units_are_ignored() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.say({"news": 1}, {"push": {"channel": "x", "news": {}}}, {"id": 77, "news": {}})
        server.wire.push(channel="not joined", pub={"data": 1})
        await server.clock.settle()
        assert client.state == "connected"


async def test_a_stuck_pipe_does_not_stop_closing() -> None:
    server = FakeServer()
    async with server.client() as client:
        server.wire.stuck = True
        call = asyncio.create_task(client.call(name="x"))
        await server.clock.settle()
        closing = asyncio.create_task(client.aclose())
        await server.pass_(2.0)
        await closing
        with pytest.raises(PublishUnknown):
            await call
    assert server.clock.timers == 0


async def test_a_stuck_pipe_does_not_stop_reconnecting() -> None:
    server = FakeServer()
    async with running(server) as client:
        server.wire.stuck = True
        call = asyncio.create_task(client.call(name="x"))
        await server.pass_(36)
        assert client.client_id == "c2"
        assert await call is None


async def test_a_pipe_whose_sending_breaks_in_an_odd_way() -> None:
    server = FakeServer()
    async with running(server) as client:

        async def broken(frame: bytes) -> None:
            raise RuntimeError("bug in a wire")

        server.wire.send = broken  # type: ignore[method-assign]
        call = asyncio.create_task(client.call(name="x"))
        await server.pass_(1)
        assert client.client_id == "c2"
        assert await call is None


async def test_it_can_be_entered_once_and_used_only_inside() -> None:
    server = FakeServer()
    client = server.client()
    with pytest.raises(NotRunning, match="async with"):
        client.join("r")
    async with client:
        with pytest.raises(NotRunning):
            await client.__aenter__()
    with pytest.raises(NotRunning):
        await client.__aenter__()
    unused = server.client()
    await unused.aclose()
    assert unused.state == "closed"


async def test_another_loop_is_refused() -> None:
    server = FakeServer()
    async with running(server) as client:

        def elsewhere() -> None:
            async def use() -> None:
                client.join("r")

            with pytest.raises(WrongLoop):
                asyncio.run(use())

        await asyncio.to_thread(elsewhere)


async def test_cancelling_the_supervisor_closes_the_pipe() -> None:
    """As a loop does that shuts down."""
    server = FakeServer()
    client = server.client()
    await client.__aenter__()
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task() and "rtkit" in task.get_name():
            task.cancel()
    await server.clock.settle()
    assert server.wire.closed is not None
    await client.aclose()


async def test_waiting_for_states() -> None:
    server = FakeServer()
    async with running(server) as client:
        with pytest.raises(ValueError, match="at least one"):
            await client.wait_state()
        waiting = asyncio.create_task(client.wait_state("waiting", "closed"))
        await server.clock.settle()
        server.wire.cut()
        assert await waiting == "waiting"


@pytest.mark.parametrize(
    "options",
    [
        {"max_offline": 0},
        {"connect_timeout": 0},
        {"max_size": 0, "dialer": None},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive|at least"):
        connect("ws://x", **options)


def test_more_options_are_checked() -> None:
    with pytest.raises(TypeError, match="token"):
        connect("ws://x", token=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_delay"):
        Policy(min_delay=30)
    with pytest.raises(ValueError, match="silence"):
        Policy(silence=0)
    with pytest.raises(ValueError, match="wss"):
        connect("http://x", ssl=ssl.create_default_context())
    assert isinstance(connect("ws://x", random=random.Random(1), clock=ManualClock()), Client)


def test_wires_satisfy_the_protocol() -> None:
    from rtkit.client import Dialer, Wire

    dialer: Dialer = FakeServer()
    wire: type[Wire] = FakeWire
    assert dialer
    assert wire
