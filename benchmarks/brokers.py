"""What a broker between the nodes costs: publications a second, delay from node to node, and a node's start.

    ./dev bench brokers [--url memory:// redis://…] [--seconds 10] [--rounds 3] [--rate 1000] [--rooms 10000]

Without ``--url`` a Redis server is started for it, on loopback, without persistence. Three questions:

- *throughput*: one hub publishes into one room, so many publications in flight; each counts when it is acknowledged.
  Beside it, in turns, the same without rtkit: redis-py, ``XADD`` and ``PUBLISH`` in one pipeline, which is what one
  would write by hand (neither deduplicates, fences, nor trims by bytes and age). CPU is given for the process and for
  the server, whose share is the broker's.
- *delay*: node A publishes at a rate, whatever becomes of it; a client of node B, over a WebSocket, takes the time from
  when each was due. A and B are processes of their own.
- *restore*: clients of a new node join so many rooms with history at once, each with a position: time until all are in.
"""

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from _load.proc import environment, usage

ROOMS: Final = {"history": "h:bench", "no history": "bench"}
WARM_UP: Final = 1.0  # seconds
CLIENTS: Final = 100  # who restore rooms; each is in a hundredth of them


def make_hub(url: str) -> Any:
    from server import LIMITS

    from rtkit import Grant, History, Hub, anonymous

    hub = Hub(authenticate=anonymous, broker=url, limits=LIMITS)
    everything = Grant("publish", "signal", "presence", "history")
    hub.rooms("{channel*}", publishes=object, grant=everything)
    hub.rooms("h:{channel*}", publishes=object, grant=everything, history=History(1000, ttl=600))
    return hub


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


# -- what runs in a process of its own --------------------------------------------------------------


async def publish_all_you_can(args: argparse.Namespace) -> None:
    """Publications in flight all the time, through a hub."""
    async with make_hub(args.url) as hub:
        room = hub.room(args.room)
        await _in_flight(args, lambda: room.publish({"text": "x" * args.size}))


async def publish_by_hand(args: argparse.Namespace) -> None:
    """The same without rtkit: an entry and a message in one pipeline."""
    from redis.asyncio import Redis

    stored, name = args.room.startswith("h:"), f"by-hand:{args.room}"

    async def publish() -> None:
        data = json.dumps({"text": "x" * args.size})
        async with client.pipeline(transaction=False) as pipe:
            if stored:
                _ = pipe.xadd(name, {"d": data}, maxlen=1000, approximate=True)
            _ = pipe.publish(name, data)
            await pipe.execute()

    async with Redis.from_url(args.url) as client:
        await _in_flight(args, publish)


async def _in_flight(args: argparse.Namespace, publish: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async def publisher(until: float) -> int:
        count = 0
        while time.monotonic() < until:
            await publish()
            count += 1
        return count

    async def all_of_them(seconds: float) -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(publisher(until) for _ in range(args.inflight))))

    await all_of_them(WARM_UP)
    began, before = time.monotonic(), time.process_time()
    count = await all_of_them(args.seconds)
    say(count=count, seconds=time.monotonic() - began, cpu=time.process_time() - before)


async def publish_at_a_rate(args: argparse.Namespace) -> None:
    """Node A: each publication is sent when it is due, and says when that was."""
    async with make_hub(args.url) as hub:
        room = hub.room(args.room)
        await room.publish({"due": 0})
        loop, failed, tasks = asyncio.get_running_loop(), 0, set[asyncio.Task[Any]]()
        sys.stdin.readline()
        began = time.monotonic()
        for number in range(int(args.rate * args.seconds)):
            due = began + number / args.rate
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            task = loop.create_task(room.publish({"due": due, "text": "x" * args.size}))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            failed += isinstance(result, BaseException)
        say(published=int(args.rate * args.seconds), failed=failed)


async def receive(args: argparse.Namespace) -> None:
    """Node B and a client of it."""
    from rtkit import Message
    from rtkit.client import connect
    from rtkit.server import listen

    expected, delays = int(args.rate * args.seconds), list[float]()
    async with (
        make_hub(args.url) as hub,
        listen(hub, port=0) as server,
        connect(server.url) as client,
        client.join(args.room) as room,
    ):
        say(ready=True)
        async for message in room:
            if not isinstance(message, Message):
                say(gap=str(message))
                return
            if due := message.data["due"]:
                delays.append(time.monotonic() - due)
                if len(delays) == expected:
                    break
    delays.sort()
    say(
        count=len(delays),
        **{f"p{p}": delays[int(len(delays) * p / 100)] * 1e3 for p in (50, 90, 99)},
        max=delays[-1] * 1e3,
    )


async def restore(args: argparse.Namespace) -> None:
    """Clients come back to a new node with all their rooms at once."""
    from websockets.asyncio.client import connect

    from rtkit.server import listen

    async with make_hub(args.url) as hub, listen(hub, port=0) as server:
        address = server.url.replace("http", "ws", 1) + "/ws"
        share = args.rooms // CLIENTS

        async def client(number: int) -> float:
            async with connect(address, max_size=None) as ws:
                await ws.send('{"id":1,"connect":{}}')
                await ws.recv()
                for first in range(0, share, 50):
                    await ws.send(
                        "\n".join(
                            json.dumps({"id": 2 + n, "subscribe": {"channel": f"h:{number}:{n}"}})
                            for n in range(first, min(first + 50, share))
                        )
                    )
                there = 0
                while there < share:
                    for line in (await ws.recv(decode=True)).split("\n"):
                        if line != "{}":
                            assert "subscribe" in json.loads(line), line
                            there += 1
                return time.monotonic()

        began = time.monotonic()
        ends = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        say(rooms=share * CLIENTS, seconds=max(ends) - began)


# -- what is asked of them ---------------------------------------------------------------------------


class Redis:
    """A server for this run, or one that is there already."""

    def __init__(self, stack: ExitStack) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise SystemExit("no redis-server; install one, or say --url")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", folder]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


def start(role: str, args: argparse.Namespace, **more: Any) -> "subprocess.Popen[str]":
    given = {**vars(args), **more}
    names = ("url", "room", "seconds", "rate", "size", "inflight", "rooms")
    options = [part for name in names for part in (f"--{name}", str(given[name]))]
    command = [sys.executable, str(Path(__file__)), "--role", role, *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended with {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def throughput(args: argparse.Namespace, url: str, server: int | None) -> None:
    for name, room in ROOMS.items():
        found: dict[str, list[dict[str, float]]] = {"hub": [], "by-hand": []}
        roles = ["hub"] if url.startswith("memory") else ["hub", "by-hand"]
        for _ in range(args.rounds):
            for role in roles:
                before = usage(server) if server else None
                with start(role, args, url=url, room=room) as process:
                    result = heard(process)
                if before is not None and server is not None:
                    # The warm-up counts here, and so is taken off in proportion.
                    result["server"] = (
                        usage(server).since(before).total * args.seconds / (args.seconds + WARM_UP)
                    )
                found[role].append(result)
        for role in roles:
            rates = [each["count"] / each["seconds"] for each in found[role]]
            each = found[role][rates.index(median(rates))]
            share = f", server {each['server'] / each['count'] * 1e6:.0f} us" if "server" in each else ""
            print(
                f"{name}, {role}: {median(rates):,.0f} acknowledged/s ({min(rates):,.0f} to {max(rates):,.0f}); "
                f"CPU each {each['cpu'] / each['count'] * 1e6:.0f} us{share}"
            )


def delay(args: argparse.Namespace, url: str) -> None:
    if url.startswith("memory"):
        return  # of one process
    for name, room in ROOMS.items():
        for _ in range(args.rounds):
            with (
                start("receive", args, url=url, room=room) as node_b,
                start("send", args, url=url, room=room) as node_a,
            ):
                heard(node_b)
                time.sleep(0.5)
                assert node_a.stdin is not None
                node_a.stdin.write("go\n")
                node_a.stdin.flush()
                sent, got = heard(node_a), heard(node_b)
            print(
                f"{name}: {args.rate:g}/s from node A to a client of node B: {got['count']} of {sent['published']}, "
                f"p50 {got['p50']:.1f} ms, p90 {got['p90']:.1f} ms, p99 {got['p99']:.1f} ms, max {got['max']:.1f} ms"
            )


def main(args: argparse.Namespace) -> None:
    with ExitStack() as stack:
        print(environment())
        urls, server = args.url, None
        if not urls:
            redis = Redis(stack)
            urls, server = ["memory://", redis.url], redis.process.pid
        for url in urls:
            print(f"-- {url.partition(':')[0]}")
            throughput(args, url, None if url.startswith("memory") else server)
            delay(args, url)
            with start("restore", args, url=url, room="") as process:
                found = heard(process)
            print(
                f"restore: {found['rooms']:,} rooms joined by {CLIENTS} clients in {found['seconds']:.2f} s"
            )


ROLES: Final = {
    "hub": publish_all_you_can,
    "by-hand": publish_by_hand,
    "send": publish_at_a_rate,
    "receive": receive,
    "restore": restore,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1000.0, help="publications a second, for the delay")
    parser.add_argument("--inflight", type=int, default=64)
    parser.add_argument("--size", type=int, default=100, help="bytes of padding in a publication")
    parser.add_argument("--rooms", type=int, default=10_000)
    parser.add_argument("--role", choices=tuple(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--room", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        options.url = options.url[0]
        asyncio.run(ROLES[options.role](options))
    else:
        main(options)
