"""What does a large room cost in which people come and go? And what do ten thousand members cost the broker?

    ./dev bench presence [--members 5000] [--churn 50] [--seconds 20] [--case counted listed none] [--what crowd keep]

``crowd``: so many members of one room, all of whom ask who is there, on real sockets. In each second *churn* of them
leave, and as many that left two seconds ago come back. ``counted`` is the default, in which a room of this size is only
counted; ``listed`` lists everybody; ``none`` is the same room without presence, for comparison. CPU is the server's,
kernel included. No member may get more than two frames in a second: that is checked by what each has got in all, and by
when it came. Ends with status 1 if one has, or if somebody was lost.

``keep``: what the broker is asked to do for 10,000 members that are there and do nothing, in one room and in 100, on a
Redis of its own: commands a second, by its own count. "Asked" are the commands that hubs send; what scripts do besides
is given, too.
"""

import argparse
import asyncio
import base64
import contextlib
import math
import os
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from typing import Any, Final

from _load.control import Server, cores, raise_open_files
from _load.frames import CLOSE, TEXT, accept_of, client_frame, handshake, server_frames
from _load.proc import environment, usage
from server import LIMITS, listener, on_own
from server import raise_open_files as as_many_as_can_be

from rtkit import Grant, Hub, Presence, anonymous
from rtkit.transports import Batch, Handshake, WebSocketTransport, joined

CASES: Final = ("counted", "listed", "none")
ROOM: Final = "crowd:1"
_PONG: Final = client_frame(b"{}")
#: Seconds that somebody who has left stays away.
_AWAY: Final = 2.0
#: Commands that a hub at rest sends, and no script of ours does.
_ASKED: Final = ("evalsha", "hello", "ping", "ssubscribe", "subscribe", "unsubscribe")


# -- the server ------------------------------------------------------------------------------------------


async def serve(case: str, port: int) -> None:
    """The hub that is measured, until SIGTERM."""
    hub = Hub(authenticate=anonymous, limits=LIMITS)
    presence = None if case == "none" else Presence()
    if case == "listed":
        presence = Presence(listed=1_000_000, listed_size=1 << 26)
    hub.rooms("crowd:{x}", publishes=object, grant=Grant("presence"), presence=presence)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sock = listener("127.0.0.1", port)
    as_many_as_can_be()
    async with on_own(hub, sock):
        print(f"listening on ws://127.0.0.1:{sock.getsockname()[1]}/ws, pid {os.getpid()}", flush=True)
        await stop.wait()


# -- the crowd -------------------------------------------------------------------------------------------


class Member:
    """A connection, and when presence was told to it.

    :ivar times: of the last three frames.
    """

    __slots__ = ("accept", "frames", "recv", "sock", "state", "tail", "times")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.accept = b""
        self.state = "opening"
        self.tail = b""
        self.frames = 0
        self.times: deque[float] = deque(maxlen=3)


class Crowd:
    """Members of a room, on one epoll. The bytes that many get are looked at once."""

    def __init__(self, port: int, *, asks: bool) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.members: dict[int, Member] = {}
        self.inside: deque[Member] = deque()
        self.outside: deque[tuple[float, Member]] = deque()
        self.subscribe = client_frame(
            b'{"id":2,"subscribe":{"channel":"%b"%b}}' % (ROOM.encode(), b',"presence":true' if asks else b"")
        )
        self.unsubscribe = client_frame(b'{"id":3,"unsubscribe":{"channel":"%b"}}' % ROOM.encode())
        self.known: dict[bytes, int] = {}  # how many frames of presence there are in these bytes
        self.received = 0
        self.shortest = math.inf  # seconds in which a member got three frames
        self.trouble: Counter[str] = Counter()

    def open(self) -> Member:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16))
        sock.sendall(handshake(f"127.0.0.1:{self.port}", "/ws", key))
        sock.setblocking(False)
        member = Member(sock)
        member.accept = accept_of(key)
        self.members[sock.fileno()] = member
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        return member

    def join(self, count: int) -> None:
        """So many come, a few at a time."""
        for first in range(0, count, 50):
            some = [self.open() for _ in range(min(50, count - first))]
            until = time.monotonic() + 30
            while any(each.state != "in" for each in some):
                self.turn(0.1)
                if time.monotonic() > until:
                    raise SystemExit(f"not everybody has come: {dict(self.trouble)}")
            self.inside.extend(some)

    def churn(self) -> None:
        """One leaves, and one that has been away for long enough comes back."""
        leaving = self.inside.popleft()
        leaving.sock.send(self.unsubscribe)
        leaving.state = "out"
        self.outside.append((time.monotonic(), leaving))
        if self.outside[0][0] + _AWAY <= time.monotonic():
            _, coming = self.outside.popleft()
            coming.sock.send(self.subscribe)
            self.inside.append(coming)

    def run(self, seconds: float, churn: float) -> int:
        """Let so many seconds pass; how often one left and another came."""
        began, done = time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            if churn and now >= began + done / churn:
                done += 1
                self.churn()
            else:
                self.turn(min(began + done / churn - now, 0.1) if churn else 0.1)
        return done

    def turn(self, timeout: float) -> None:
        for fd, _ in self.epoll.poll(max(0.0, timeout), 1024):
            member = self.members[fd]
            try:
                data = member.recv(1 << 20)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            self.received += len(data)
            if not data:
                self.trouble["lost"] += 1
                self.epoll.unregister(fd)
                del self.members[fd]
                member.sock.close()
                continue
            count = self.known.get(data) if not member.tail else None
            if count is None:
                count = self._parse(member, data)
            for _ in range(count):
                self._told(member)

    def _told(self, member: Member) -> None:
        now = time.monotonic()
        member.frames += 1
        member.times.append(now)
        if len(member.times) == 3:
            self.shortest = min(self.shortest, now - member.times[0])

    def _parse(self, member: Member, data: bytes) -> int:
        whole = member.tail + data
        if member.state == "opening":
            head, end, whole = whole.partition(b"\r\n\r\n")
            if not end:
                member.tail = head
                return 0
            if member.accept not in head:
                raise SystemExit(f"refused: {head[:100]!r}")
            member.state = "joining"
            member.sock.send(client_frame(b'{"id":1,"connect":{"rt":{"v":1}}}') + self.subscribe)
        frames, rest = server_frames(whole)
        pure = not member.tail and not rest
        member.tail = rest
        count = 0
        for opcode, payload in frames:
            if opcode == CLOSE:
                self.trouble[f"closed {int.from_bytes(payload[:2], 'big')}"] += 1
            if opcode != TEXT:
                continue
            for line in payload.split(b"\n"):
                if line.startswith(b'{"push":{"channel":"%b","presence":' % ROOM.encode()):
                    count += 1
                    continue
                pure = False
                if line == b"{}":
                    member.sock.send(_PONG)
                elif line.startswith((b'{"id":2', b'{"push":{"chunk":')):
                    if member.state == "joining":  # in its first chunk at the latest
                        member.state = "in"
                    if b'"error"' in line[:20]:
                        self.trouble[line[:80].decode()] += 1
        if pure:
            if len(self.known) > 64:
                self.known.clear()
            self.known[data] = count
        return count

    def reset(self) -> None:
        self.received, self.shortest = 0, math.inf
        for member in self.members.values():
            member.frames = 0
            member.times.clear()


def crowd(case: str, args: argparse.Namespace) -> bool:
    """One case on a server of its own; whether nobody got more than is promised."""
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    with Server.running("presence.py", "--serve", case, core=server_core) as server:
        people = Crowd(server.port, asks=case != "none")
        began = usage(server.pid)
        people.join(args.members + round(args.churn * _AWAY))
        joining = usage(server.pid).since(began)
        people.run(3.0, 0)
        people.reset()
        began = usage(server.pid)
        people.run(args.seconds / 2, 0)
        rest = usage(server.pid).since(began)
        people.run(3.0, args.churn)
        people.reset()
        mine, began = usage(os.getpid()), usage(server.pid)
        turns = people.run(args.seconds, args.churn)
        spent, load = usage(server.pid).since(began), usage(os.getpid()).since(mine)
    stayed = [member.frames for member in people.inside if member.frames]
    most = max(stayed, default=0)
    ok = not people.trouble and most <= 2 * spent.at + 2 and (case == "none" or most > 0)
    print(
        f"{case:8} {len(people.inside)} members in, {turns / spent.at:.0f} leave and as many come a second: "
        f"server {spent.total / spent.at:.1%} of a core ({spent.user / spent.at:.0%} user, "
        f"{spent.system / spent.at:.0%} system), at rest {rest.total / rest.at:.1%}; "
        f"frames of a member {most / spent.at:.2f} a second at the most, "
        f"three within {people.shortest:.2f} s at the least; {people.received / spent.at / 2**20:.1f} MiB/s; "
        f"joining {joining.total / (args.members + args.churn * _AWAY) * 1e3:.2f} ms each; "
        f"load {load.total / load.at:.0%}" + (f"; TROUBLE {dict(people.trouble)}" if people.trouble else ""),
        flush=True,
    )
    for member in people.members.values():
        member.sock.close()
    return ok


# -- keeping -----------------------------------------------------------------------------------------------


class Nowhere:
    """A pipe that throws everything away."""

    buffered = 0

    def __init__(self, hub: Hub[Any]) -> None:
        self.answers = 0
        self.transport = WebSocketTransport(self, max_frame=65536)
        self.transport.drive(hub.connect(self.transport, Handshake()))

    def write(self, data: bytes) -> None:
        self.answers += data.count(b'"id":')
        if data.startswith(b"{}") or data.endswith(b"\n{}"):
            asyncio.get_running_loop().call_soon(self.transport.message, b"{}")

    def write_batch(self, batch: Batch) -> None:
        self.write(batch.form(joined))

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        asyncio.get_running_loop().call_soon(self.transport.lost, code, reason)


async def settled(pipes: list[Nowhere]) -> None:
    """Until all have been answered."""
    while any(pipe.answers < 2 for pipe in pipes):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def keep(rooms: int, args: argparse.Namespace) -> None:
    """Two nodes with half of the members each, in one process; the commands that Redis has carried out meanwhile."""
    import redis.asyncio
    from brokers import Redis

    from rtkit.brokers.redis import RedisBroker

    with contextlib.ExitStack() as stack:
        url = Redis(stack).url
        redis_client = redis.asyncio.Redis.from_url(url)
        hubs: list[Hub[None]] = []
        for _ in range(2):
            hub = Hub(authenticate=anonymous, limits=LIMITS, broker=RedisBroker.from_url(url))
            hub.rooms("crowd:{x}", publishes=object, grant=Grant("presence"), presence=Presence())
            await hub.start()
            hubs.append(hub)
        pipes: list[Nowhere] = []
        for first in range(0, args.kept, 200):
            some = [Nowhere(hubs[number % 2]) for number in range(first, min(first + 200, args.kept))]
            for number, pipe in enumerate(some, first):
                asks = b',"presence":true' if number < 2 * rooms else b""  # one of each room and node
                pipe.transport.message(b'{"id":1,"connect":{"rt":{"v":1}}}')
                pipe.transport.message(
                    b'{"id":2,"subscribe":{"channel":"crowd:%d"%b}}' % (number // 2 % rooms, asks)
                )
            await settled(some)
            pipes += some
        there = 0
        while there < args.kept:
            await asyncio.sleep(0.2)
            there = sum([(await hubs[0].room(f"crowd:{n}").presence_stats()).clients for n in range(rooms)])
        await asyncio.sleep(5)
        before, began = await counted(redis_client), time.monotonic()
        await asyncio.sleep(args.kept_seconds)
        seconds = time.monotonic() - began
        found = await counted(redis_client) - before
        rates = {name: count / seconds / 2 for name, count in found.most_common() if name != "info"}
        asked = sum(rates.get(name, 0.0) for name in _ASKED)
        seen = [(await hub.room("crowd:0").presence_stats()).clients for hub in hubs]
        for hub in hubs:
            await hub.aclose()
        await redis_client.aclose()
    listed = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    print(
        f"keep     {args.kept} members in {rooms} rooms on two nodes, {seconds:.0f} s: asked {asked:.2f} commands "
        f"a second by each; with what scripts did {sum(rates.values()):.2f} ({listed}); {seen} in the first room",
        flush=True,
    )


async def counted(client: Any) -> Counter[str]:
    """How often each command was carried out, within scripts too."""
    stats = await client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()})


def main(args: argparse.Namespace) -> None:
    if args.serve:
        asyncio.run(serve(args.serve, args.port))
        return
    print(f"{environment()}; open files {raise_open_files(args.members + 1000)}", flush=True)
    fine = True
    if "crowd" in args.what:
        for case in args.case:
            fine = crowd(case, args) and fine
    if "keep" in args.what:
        for rooms in args.rooms:
            asyncio.run(keep(rooms, args))
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--churn", type=float, default=50.0, help="that leave, and that come, in a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--kept", type=int, default=10_000, help="members that do nothing")
    parser.add_argument("--rooms", type=int, nargs="+", default=(1, 100), help="that those are in")
    parser.add_argument("--kept-seconds", type=float, default=60.0)
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--what", nargs="+", choices=("crowd", "keep"), default=("crowd", "keep"))
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    main(parser.parse_args())
