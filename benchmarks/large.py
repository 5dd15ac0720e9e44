"""What do others feel while 10 MB go through one client, and what does that client feel itself?

    ./dev bench large [--megabytes 10] [--runs 5] [--kind websocket sse poll] [--what up down both] [--rate 100]

Three processes: the hub of ``server.py``; a client that calls a procedure with a large argument (``up``), a large
answer (``down``) or both, over one kind of transport; and one that looks on, over a transport of the same kind. The
one that looks on sends so many small messages a second, in turns to a room of its own and to one in which the large
client is as well. Delay counts from the moment when a message was due until its member has it: the one that looks on,
and the large client, on the connection on which the large unit goes as well.

The hub's longest turn is CPU time between two moments at which its loop could do something else. JSON alone is what
msgspec takes for a text of that size: no other work on the loop can be shorter than that.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from _load.control import Server, _Child
from _load.proc import environment

KINDS = ("websocket", "sse", "poll")
WHAT = ("up", "down", "both")


# -- the hub


async def serve(port: int) -> None:
    """A hub with the procedures, that tells of its loop's longest turn."""
    import server

    from rtkit import Context

    hub = server.make_hub()
    longest = 0.0

    @hub.rpc(object, name="up")
    async def up(ctx: Context[None, None], text: Any) -> int:
        return len(text)

    @hub.rpc(object, name="down")
    async def down(ctx: Context[None, None], size: Any) -> Any:
        return "x" * size

    @hub.rpc(object, name="both")
    async def both(ctx: Context[None, None], text: Any) -> Any:
        return text

    @hub.rpc(object, name="longest")
    async def longest_turn(ctx: Context[None, None], _: object) -> float:
        nonlocal longest
        found, longest = longest, 0.0
        return found

    sock = server.listener("127.0.0.1", port)
    async with server.on_own(hub, sock):
        print(f"listening on ws://127.0.0.1:{sock.getsockname()[1]}/", flush=True)
        while True:
            before = time.process_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.process_time() - before)


# -- the clients


async def orders() -> AsyncIterator[dict[str, Any]]:
    """The lines of stdin."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def listen(room: Any, delays: list[float]) -> None:
    async for message in room:
        # A client that decodes 10 MB reads late what came meanwhile; that is its own time, and counts.
        delay = (time.monotonic_ns() - message.data) / 1e6
        delays.append(delay)


async def large(port: int, kind: str, size: int) -> None:
    """The client with the large calls: each order is one of them."""
    from rtkit.client import connect

    text = "0123456789" * (size // 10)
    async with (
        connect(f"http://127.0.0.1:{port}", transports=[kind]) as client,  # type: ignore[list-item]
        client.join("shared", receives=object) as room,
    ):
        delays: list[float] = []
        listening = asyncio.create_task(listen(room, delays))
        say(ready=True)
        async for order in orders():
            delays.clear()
            gc.collect()
            before = time.perf_counter()
            match order["what"]:
                case "up":
                    assert await client.call(text, name="up", returns=int) == len(text)
                case "down":
                    assert len(await client.call(size, name="down", returns=str)) == size
                case _:
                    assert await client.call(text, name="both", returns=str) == text
            say(took=time.perf_counter() - before, delays=list(delays))
        listening.cancel()
        assert client.statistics().connects == 1


async def onlooker(port: int, kind: str, rate: float) -> None:
    """Sends small messages all the time; between two orders those of that time are looked at."""
    from rtkit.client import connect

    async with (
        connect(f"http://127.0.0.1:{port}", transports=[kind]) as client,  # type: ignore[list-item]
        client.join("own", receives=object) as own,
        client.join("shared", receives=object) as shared,
    ):
        mine: list[float] = []
        ignored: list[float] = []
        sending: set[asyncio.Task[Any]] = set()

        async def send() -> None:
            due, n = time.monotonic_ns(), 0
            while True:
                due += int(1e9 / rate)
                await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                n += 1
                task = asyncio.ensure_future((own, shared)[n % 2].send(due))
                sending.add(task)
                task.add_done_callback(sending.discard)

        tasks = [asyncio.create_task(each) for each in (send(), listen(own, mine), listen(shared, ignored))]
        say(ready=True)
        async for order in orders():
            if order["do"] == "begin":
                mine.clear()
                say(turn=await client.call(None, name="longest", returns=float))
            else:
                turn = await client.call(None, name="longest", returns=float)
                say(delays=list(mine), turn=turn)
        for task in tasks:
            task.cancel()
        assert client.statistics().connects == 1


class Client(_Child):
    """One of the two, in a process of its own."""

    def __init__(self, *args: str) -> None:
        import subprocess

        super().__init__(__file__, *args, core=None, stdin=subprocess.PIPE)
        self.line(30)

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        found: dict[str, Any] = json.loads(self.line(60))
        return found


# -- what came of it


@dataclass(frozen=True, slots=True)
class Run:
    """One large call.

    :param took: seconds.
    :param turn: the hub's longest, in seconds of CPU.
    :param looking_on: ms that its small messages took which were due meanwhile.
    :param same: likewise, on the connection of the call.
    """

    took: float
    turn: float
    looking_on: list[float]
    same: list[float]


def cell(runs: list[list[float]]) -> str:
    """Of the delays of all runs."""
    delays = sorted(delay for run in runs for delay in run)
    if not delays:
        return "–"
    p99 = delays[int(len(delays) * 0.99)]
    most = statistics.median(max(run) for run in runs if run)
    return f"{statistics.median(delays):.1f}, {p99:.0f}, {most:.0f}, {delays[-1]:.0f}"


def json_alone(size: int) -> str:
    """What a text of that size costs in msgspec alone, there and back."""
    import msgspec

    text = "0123456789" * (size // 10)
    found = []
    for _ in range(5):
        began = time.perf_counter()
        data = msgspec.json.encode(text)
        between = time.perf_counter()
        msgspec.json.decode(data, type=str)
        found.append((between - began, time.perf_counter() - between))
    encoding, decoding = (statistics.median(each) * 1000 for each in zip(*found, strict=True))
    return (
        f"JSON of {size / 1e6:.0f} MB of text alone: encoding {encoding:.0f} ms, decoding {decoding:.0f} ms"
    )


def measure(args: argparse.Namespace) -> None:
    size = int(args.megabytes * 1e6)
    print(environment())
    print(f"{args.runs} runs each, {args.rate:g} small messages a second")
    print("delays in ms: median and p99 of all, most of a run (median of the runs), most of all")
    print(json_alone(size))
    print("| transport | what | seconds | the onlooker | the same connection | the hub's longest turn |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for kind in args.kind:
        with Server.running("large.py", "--role", "hub") as hub:
            children: list[Client] = []
            try:
                options = ["--port", str(hub.port), "--kind", kind, "--megabytes", str(args.megabytes)]
                children.append(Client("--role", "large", *options))
                children.append(Client("--role", "onlooker", *options, "--rate", str(args.rate)))
                with_large, looking_on = children
                for what in args.what:
                    one(with_large, looking_on, what)  # warms up
                    runs = [one(with_large, looking_on, what) for _ in range(args.runs)]
                    took = statistics.median(run.took for run in runs)
                    turn = statistics.median(run.turn for run in runs) * 1000
                    felt = f"{cell([run.looking_on for run in runs])} | {cell([run.same for run in runs])}"
                    print(f"| `{kind}` | {what} | {took:.2f} | {felt} | {turn:.0f} |", flush=True)
            finally:
                for child in children:
                    child.end()


def one(with_large: Client, looking_on: Client, what: str) -> Run:
    looking_on.ask(do="begin")
    time.sleep(0.05)
    done = with_large.ask(what=what)
    time.sleep(0.05)
    seen = looking_on.ask(do="end")
    return Run(done["took"], seen["turn"], seen["delays"], done["delays"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--role", choices=("hub", "large", "onlooker"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    match args.role:
        case "hub":
            asyncio.run(serve(args.port))
        case "large":
            asyncio.run(large(args.port, args.kind[0], int(args.megabytes * 1e6)))
        case "onlooker":
            asyncio.run(onlooker(args.port, args.kind[0], args.rate))
        case _:
            measure(args)


if __name__ == "__main__":
    main()
