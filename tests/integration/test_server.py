"""A hub on its own server, from start to signal: real sockets, real clients, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import logging
import os
import signal
import socket
import ssl
import sys
import textwrap
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

import rtkit
from rtkit import Grant, Hub, anonymous
from rtkit.client import RoomClient, connect
from rtkit.hosting.raw import RawPipe
from rtkit.server import Server, ServerLimits, listen
from rtkit.server.http import HttpConnection
from rtkit.testing.clock import ManualClock
from tests.support.hosts import CERTIFICATE, client_context
from tests.unit.hosting.sockets import CLOSE, TEXT, masked
from tests.unit.server.world import Client, shake

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def make_hub(**options: Any) -> Hub[Any]:
    hub = Hub(authenticate=anonymous, **options)
    hub.rooms("lobby", publishes=object, grant=Grant("publish"))
    return hub


async def heard(room: RoomClient[Any]) -> Any:
    message = await anext(room)
    assert isinstance(message, rtkit.Message)
    return message.data


# -- listen --------------------------------------------------------------------------------------------


async def test_a_client_and_a_room() -> None:
    hub = make_hub()
    async with asyncio.timeout(20), listen(hub) as server:
        assert hub.running
        async with connect(server.url) as client, client.join("lobby") as room:
            await room.send("hello")
            assert await heard(room) == "hello"
            assert server.statistics().websockets == 1
        assert not hub.statistics().connections
    assert not hub.running
    assert repr(server) == "<Server closed, 0 WebSockets, 0 streams>"


async def test_a_hub_that_runs_already_and_one_that_runs_again() -> None:
    hub = make_hub()
    async with hub, listen(hub) as server, connect(server.url) as client:
        assert client.state == "connected"
    async with listen(hub) as server, connect(server.url) as client:
        assert client.state == "connected"
    assert not hub.running


async def test_over_tls() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with (
        asyncio.timeout(20),
        listen(make_hub(), ssl=context) as server,
        connect(server.url, ssl=client_context()) as client,
        client.join("lobby") as room,
    ):
        await room.send("hello")
        assert await heard(room) == "hello"


async def test_what_cannot_be_listened_on_leaves_no_hub_behind() -> None:
    async with listen(make_hub()) as server:
        hub = make_hub()
        with pytest.raises(OSError, match="already"):
            async with listen(hub, port=server.port):
                pass
        assert not hub.running


@contextlib.contextmanager
def dial(server: Server, first: bytes = b"") -> Generator[Client]:
    """A bare connection, closed before the server is."""
    with socket.create_connection(server.addresses[0]) as sock:
        client = Client(sock)
        client.say(first)
        yield client


def hello(**body: Any) -> bytes:
    """A handshake, the first frame with it."""
    return shake() + masked(TEXT, json.dumps({"id": 1, "connect": body}).encode())


async def test_every_client_is_told_when_to_come_back() -> None:
    clock = ManualClock()
    hub = make_hub(clock=clock)
    async with listen(hub) as server:
        with dial(server, hello(rt={"v": 1})) as client, dial(server, shake()[:-2]) as late:
            await clock.settle()
            assert client.answer().status == 101
            server.stop_accepting()
            closing = asyncio.ensure_future(hub.aclose())
            await clock.settle()
            assert '"disconnect":{"code":3001' in client.texts[-1]
            assert client.closed == (3001, "draining")
            late.say(b"\r\n")
            await clock.settle()
            assert late.answer().status == 503
            client.say(masked(CLOSE, b"\x0b\xb9"))
            await clock.settle()
            assert client.gone
            assert closing.done()
    assert clock.timers == 0


async def test_a_client_that_does_not_go_is_dropped_before_the_hub_gives_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    stack = contextlib.AsyncExitStack()
    server = await stack.enter_async_context(listen(make_hub(clock=clock)))
    with dial(server, hello()) as client:
        await clock.settle()
        closing = asyncio.ensure_future(stack.aclose())
        await clock.advance(3.5)
        assert not closing.done()
        await clock.advance(0.5)
        assert closing.done()
        await closing
        assert client.gone
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert clock.timers == 0


async def test_half_open_members_are_gone_in_35_seconds() -> None:
    """Heartbeats from end to end (F4): the peer is there for the kernel, and silent."""
    clock = ManualClock()
    hub = make_hub(clock=clock)
    async with listen(hub) as server:
        with dial(server, hello(rt={"v": 1})) as client:
            await clock.settle()
            assert client.answer().status == 101
            await clock.advance(35)
            assert client.closed == (3012, "no pong")
            assert "{}" in client.texts
            await clock.advance(4)
            assert server.statistics().websockets == 0


async def test_a_slow_reader_costs_its_bound_and_the_others_nothing() -> None:
    clock = ManualClock()
    hub = make_hub(clock=clock)
    subscribe = masked(TEXT, b'{"id":2,"subscribe":{"channel":"lobby"}}')
    async with listen(hub) as server:
        with dial(server, hello() + subscribe), dial(server, hello() + subscribe) as quick:
            await clock.settle()
            heard = 0
            for i in range(300):
                await hub.publish("lobby", "x" * 50_000 + f"-{i}")
                await clock.settle()
                heard += len(quick.listen())
                quick.heard = b""
            assert heard > 300 * 50_000
            (pipe,) = [each for each in server._site.pipes.open if each.buffered]
            assert pipe.buffered < 200_000
            assert hub.statistics().connections == 2, "it misses messages, and stays"


async def test_cancelled_again_while_closing_it_drops_everything() -> None:
    clock = ManualClock()
    hub = make_hub(clock=clock)
    stop = asyncio.Event()
    started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with listen(hub) as server:
            started.set_result(server)
            await stop.wait()

    task = asyncio.create_task(main())
    with dial(await started, hello()) as member, dial(await started, shake()[:-2]) as half:
        await clock.settle()
        task.cancel()
        await clock.settle()
        assert not task.done()
        assert not half.gone
        task.cancel()
        await clock.settle()
        assert task.cancelled()
        assert member.gone
        assert half.gone
    assert not hub.running
    assert clock.timers == 0


async def test_nothing_is_left_of_anything() -> None:
    before = asyncio.all_tasks()
    hub = make_hub()
    async with listen(hub, limits=ServerLimits(close_timeout=1)) as server:
        async with connect(server.url) as client, client.join("lobby"):
            pass
        with dial(server, shake()[:-1]):
            await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    gc.collect()
    kinds = {type(each) for each in gc.get_objects()}
    assert not kinds & {HttpConnection, RawPipe}


# -- serve ---------------------------------------------------------------------------------------------


def test_it_is_in_the_public_face() -> None:
    assert rtkit.serve is rtkit.server.serve
    with pytest.raises(AttributeError, match="nonsense"):
        rtkit.nonsense  # type: ignore[attr-defined]  # noqa: B018


async def test_cancelled_it_closes() -> None:
    hub = make_hub()
    before = signal.getsignal(signal.SIGTERM)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    task = asyncio.create_task(rtkit.serve(hub, sock=sock))
    async with asyncio.timeout(20), connect(f"http://127.0.0.1:{sock.getsockname()[1]}/rt") as client:
        assert client.state == "connected"
        assert signal.getsignal(signal.SIGTERM) is not before
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert not hub.running
    assert signal.getsignal(signal.SIGTERM) is before


async def test_nobody_waits_for_a_confirmation() -> None:
    """Nor on a socket on which asyncio leaves the kernel's delay on."""
    hub = make_hub()
    async with (
        asyncio.timeout(20),
        listen(hub, sock=socket.create_server(("127.0.0.1", 0))) as server,
        connect(f"http://127.0.0.1:{server.port}/rt"),
    ):
        [pipe] = server._site.pipes.open
        sock = pipe._network.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PROGRAM = """
import asyncio, logging, signal, sys
import rtkit
from rtkit import Grant, Hub, anonymous

logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.ERROR)
logging.getLogger("rtkit.server").setLevel(logging.INFO)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"))
stuck = asyncio.Event()

@hub.rpc(dict, name="hang")
async def hang(ctx, params):
    print("hanging", flush=True)
    await asyncio.sleep(0 if {quick} else 3600)
    return 1

async def main():
    try:
        await rtkit.serve(hub, port=0)
        print("returned", flush=True)
    finally:
        print("cleaned up", flush=True)

{before}
asyncio.run(main())
print("the end", flush=True)
"""


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, start: str) -> str:
        assert self.process.stdout is not None
        while True:
            line = (await self.process.stdout.readline()).decode()
            assert line, f"ended after {self.lines}"
            self.lines.append(line.rstrip())
            if line.startswith(start):
                return line.removeprefix(start).strip()

    async def end(self) -> tuple[int, list[str]]:
        assert self.process.stdout is not None
        rest = (await self.process.stdout.read()).decode().splitlines()
        return await self.process.wait(), rest


@contextlib.asynccontextmanager
async def program(*, quick: bool = True, before: str = "") -> AsyncGenerator[tuple[Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM.replace("{quick}", str(quick)).replace("{before}", textwrap.dedent(before)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(Path(rtkit.__file__).parents[1])},
    )
    try:
        async with asyncio.timeout(30):
            running = Process(process)
            yield running, await running.until("listening on ")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_program_goes_on(number: signal.Signals) -> None:
    async with program() as (running, url), connect(url) as client:
        assert client.state == "connected"
        running.process.send_signal(number)
        code, lines = await running.end()
    assert (code, lines) == (0, ["returned", "cleaned up", "the end"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)])
async def test_the_second_signal_ends_it_at_once(number: signal.Signals, code: int) -> None:
    async with program(quick=False) as (running, url), connect(url) as client:
        call = asyncio.ensure_future(client.call({}, name="hang"))
        await running.until("hanging")
        running.process.send_signal(signal.SIGTERM)
        # The drain has begun when it says so; it listens on meanwhile.
        port = int(url.rpartition(":")[2].partition("/")[0])
        while (await asyncio.to_thread(_ready, port)) != 503:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running.process.send_signal(number)
        found, lines = await running.end()
        call.cancel()
        await asyncio.wait({call})
    assert "returned" not in lines
    if number == signal.SIGTERM:
        assert found == code
    else:
        assert "KeyboardInterrupt" in lines
        assert "cleaned up" in lines


def _ready(port: int) -> int:
    """What it says of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/rt/ready")
        return connection.getresponse().status
    finally:
        connection.close()


async def test_a_handler_that_was_there_hears_of_it_after_the_drain() -> None:
    before = """
    def handler(number, frame):
        print("handed on", signal.Signals(number).name, hub.running, flush=True)
    signal.signal(signal.SIGTERM, handler)
    """
    async with program(before=before) as (running, url), connect(url):
        running.process.send_signal(signal.SIGTERM)
        code, lines = await running.end()
    assert (code, lines) == (0, ["handed on SIGTERM False", "returned", "cleaned up", "the end"])


async def test_what_is_ignored_stays_ignored() -> None:
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    async with program(before=before) as (running, url):
        running.process.send_signal(signal.SIGINT)
        async with connect(url) as client:
            assert client.state == "connected"
        running.process.send_signal(signal.SIGTERM)
        code, lines = await running.end()
    assert (code, lines) == (0, ["returned", "cleaned up", "the end"])


async def test_in_another_thread_nothing_is_caught() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        async def main() -> None:
            hub = make_hub()
            task = asyncio.create_task(rtkit.serve(hub, port=0))
            while not hub.running:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert signal.getsignal(signal.SIGTERM) is before
            task.cancel()
            await asyncio.wait({task})

        asyncio.run(main())

    await asyncio.to_thread(run)
