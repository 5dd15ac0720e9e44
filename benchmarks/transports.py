"""What does each transport cost: bytes on the wire, delay, memory and CPU, idle and for each message?

    ./dev bench transports [--members 200] [--rate 5] [--seconds 10] [--rest 30] [--kind websocket sse poll]

Members over one kind of transport join a room of the hub of ``server.py``, on real sockets of this machine. First they
are idle: memory of each, CPU and bytes of each per minute. Then a publisher (over a WebSocket) sends so many messages a
second, and each member reads the clock when it has one. Bytes are those of TCP's payload in both directions, heads of
requests and responses included. Every message has to be there.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import statistics
import time
from typing import Any

from _load.control import Server, cores, raise_open_files
from _load.frames import client_frame
from _load.proc import environment, memory, usage

KINDS = ("websocket", "sse", "poll")
CONNECT = b'{"id":1,"connect":{"name":"bench"}}'
JOIN = b'{"id":2,"subscribe":{"channel":"bench"}}'
SENT = re.compile(rb'"sent":(\d+)')
#: About what a browser sends along.
HEAD = (
    "Host: localhost\r\nOrigin: http://localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 "
    "(KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Accept-Language: en\r\nReferer: http://localhost/\r\n"
)


class Tally:
    """What all members have seen."""

    def __init__(self) -> None:
        self.bytes = 0
        self.delays: list[float] = []


class Member:
    """One client of some kind: as little as it takes, and no less."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port = port
        self.tally = tally
        self.seq = 0
        self.session = ""
        self.tasks: list[asyncio.Task[None]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        self.tally.bytes += len(data)
        writer.write(data)

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        data = await reader.read(65536)
        if not data:
            raise ConnectionError("the server has closed")
        self.tally.bytes += len(data)
        return data

    def saw(self, text: bytes) -> None:
        now = time.monotonic_ns()
        for found in SENT.finditer(text):
            self.tally.delays.append((now - int(found[1])) / 1e6)

    def request(self, method: str, target: str, body: bytes = b"", *more: str) -> bytes:
        lines = [f"{method} {target} HTTP/1.1\r\n{HEAD}", *(f"{line}\r\n" for line in more)]
        if method == "POST":
            lines.append(f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n")
        return "".join(lines).encode() + b"\r\n" + body

    async def answer(self, reader: asyncio.StreamReader) -> bytes:
        """The body of a whole response."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        self.tally.bytes += len(head) + len(body)
        return body

    async def send(self, frame: bytes) -> None:
        """A POST, on a connection of its own that is kept."""
        if not hasattr(self, "up"):
            self.up = await self.open()
        reader, writer = self.up
        self.seq += 1
        more = (f"RT-Session: {self.session}", f"RT-Seq: {self.seq}")
        self.write(writer, self.request("POST", "/send", frame, *more))
        await self.answer(reader)

    async def start(self) -> None:
        raise NotImplementedError

    def later(self, coroutine: Any) -> None:
        self.tasks.append(asyncio.ensure_future(coroutine))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()


class WebSocket(Member):
    async def start(self) -> None:
        reader, writer = await self.open()
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = (
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self.write(writer, self.request("GET", "/ws", b"", *upgrade))
        await self.answer(reader)
        self.write(writer, client_frame(CONNECT + b"\n" + JOIN))
        while b'"subscribe"' not in await self.read(reader):
            pass
        self.later(self.listen(reader, writer))

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest = b""
        while True:
            rest += await self.read(reader)
            whole = rest.rfind(b"}") + 1
            self.saw(rest[:whole])
            for _ in range(rest.count(b"\x81\x02{}")):
                self.write(writer, client_frame(b"{}"))
            rest = rest[whole:]


class Sse(Member):
    async def start(self) -> None:
        reader, writer = await self.open()
        self.write(writer, self.request("POST", "/sse", CONNECT))
        text = b""
        while not (found := re.search(rb'"session":"([^"]+)"', text)):
            text += await self.read(reader)
        self.session = found[1].decode()
        await self.send(JOIN)
        while b'"subscribe"' not in text:
            text += await self.read(reader)
        self.later(self.listen(reader))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while True:
            rest += await self.read(reader)
            whole = rest.rfind(b"\n\n") + 2 if b"\n\n" in rest else 0
            self.saw(rest[:whole])
            for _ in range(rest[:whole].count(b"data: {}\n")):
                await self.send(b"{}")
            rest = rest[whole:]


class Poll(Member):
    async def start(self) -> None:
        self.down = await self.open()
        reader, writer = self.down
        self.write(writer, self.request("POST", "/poll", CONNECT))
        body = json.loads(await self.answer(reader))
        self.session = body["replies"][0]["connect"]["session"]
        await self.send(JOIN)
        ack = await self.poll(body["batch"])
        self.later(self.listen(ack))

    async def poll(self, ack: int) -> int:
        reader, writer = self.down
        self.write(writer, self.request("GET", f"/poll?ack={ack}", b"", f"RT-Session: {self.session}"))
        body = await self.answer(reader)
        self.saw(body)
        return int(json.loads(body)["batch"])

    async def listen(self, ack: int) -> None:
        while True:
            ack = await self.poll(ack)


CLASSES: dict[str, type[Member]] = {"websocket": WebSocket, "sse": Sse, "poll": Poll}


async def publish(port: int, rate: float, seconds: float) -> int:
    """Send messages of about 100 bytes, each when it is due; how many."""
    publisher = WebSocket(port, Tally())
    await publisher.start()
    writer = publisher.writers[0]
    count = max(1, round(rate * seconds))
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(began + number / rate - time.monotonic())
        data = json.dumps({"text": "x" * 60, "sent": time.monotonic_ns()}, separators=(",", ":"))
        unit = f'{{"id":{number + 10},"publish":{{"channel":"bench","data":{data}}}}}'
        publisher.write(writer, client_frame(unit.encode()))
    await asyncio.sleep(1)
    await publisher.close()
    return count


async def measure(kind: str, server: Server, args: argparse.Namespace) -> None:
    tally = Tally()
    # What is imported and made for the first client is not a member's.
    first = CLASSES[kind](server.port, Tally())
    await first.start()
    await first.close()
    await asyncio.sleep(1)
    before = memory(server.pid)
    members = [CLASSES[kind](server.port, tally) for _ in range(args.members)]
    for member in members:
        await member.start()
    await asyncio.sleep(2)
    size = (memory(server.pid) - before) / 1024 / args.members
    began, sent = usage(server.pid), tally.bytes
    await asyncio.sleep(args.rest)
    rested = usage(server.pid).since(began)
    per_minute = 60 / rested.at / args.members
    idle = rested.total * per_minute * 1000, (tally.bytes - sent) * per_minute
    began, sent = usage(server.pid), tally.bytes
    count = await publish(server.port, args.rate, args.seconds)
    worked = usage(server.pid).since(began)
    wanted = count * args.members
    # The publisher is a member too, which reads nothing of what is counted here.
    delays = sorted(tally.delays)
    missing = wanted - len(delays)
    print(
        f"{kind:9} | {(tally.bytes - sent) / wanted:.0f} | {statistics.median(delays):.1f}, "
        f"{delays[int(len(delays) * 0.99)]:.1f} | {size:.1f} | {idle[0]:.1f} | {idle[1]:.0f} | "
        f"{worked.total / wanted * 1e6:.0f} | {'all' if not missing else f'{missing} missing'}",
        flush=True,
    )
    for member in members:
        await member.close()
    if missing or any(task.done() and not task.cancelled() for member in members for task in member.tasks):
        raise SystemExit("not every message was there")


def main(args: argparse.Namespace) -> None:
    raise_open_files(args.members * 2)
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    print(environment())
    print(
        f"{args.members} members, {args.rate:g} messages a second for {args.seconds:g} s; idle for {args.rest:g} s\n"
        "transport | bytes a message | delay p50, p99 (ms) | KiB idle | CPU ms a minute idle | bytes a minute idle "
        "| CPU µs a message | messages"
    )
    for kind in args.kind:
        with Server.running("server.py", core=server_core) as server:
            asyncio.run(measure(kind, server, args))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of talk")
    parser.add_argument("--rest", type=float, default=30.0, help="seconds of idling before")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    main(parser.parse_args())
