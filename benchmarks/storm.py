"""A node dies: when are its clients back, what does that cost, and what do the survivor's own clients feel? (K4, F2)

    ./dev bench storm [--clients 5000] [--sdks 50] [--rooms 50] [--accepts N] [--mix 90 5 5] [--members 100]

Nodes A and B on one Redis, each in a process of its own, on our own server. On A a crowd by hand, over WebSockets,
event streams and polls, and SDKs, each in one of 50 rooms with history, in which somebody goes on publishing. On B
members of another room, whose messages are timed from when they were due. Then A is killed, and B has its address, as
if a balancer or an address that moves had noticed at once. The crowd does what the protocol says: full jitter, windows,
resume, recovery.

It prints what became of it, and ends with status 1 if a message was lost or came twice, if somebody is not back, or is
back over another transport.
"""

import argparse
import asyncio
import contextlib
import gc
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from _load.control import Load, Server, cores, raise_open_files
from _load.proc import environment, memory, usage
from _load.returning import KINDS, Client, Crowd
from brokers import Redis

OWN: Final = "own:1"
_SECRET: Final = b"of the benchmark"
#: Seconds that are looked at before the node dies, and after all are back.
BESIDE: Final = 5.0


def token_of(user: str) -> str:
    """What a user shows."""
    return f"{user}.{hmac.new(_SECRET, user.encode(), hashlib.sha256).hexdigest()}"


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


# -- a node ----------------------------------------------------------------------------------------------


async def serve(args: argparse.Namespace) -> None:
    """Until SIGTERM. At SIGUSR1 it takes the address of the other node over; at SIGUSR2 it says what it has counted."""
    from server import listener
    from server import raise_open_files as as_many_as_can_be

    from rtkit import Credentials, Grant, History, Hub, Identity, Limits, Reject, codes
    from rtkit.brokers.redis import RedisBroker
    from rtkit.primitives import Rate
    from rtkit.server import ServerLimits, listen

    async def authenticate(credentials: Credentials) -> Identity[None]:
        user = (credentials.token or "").partition(".")[0]
        if not hmac.compare_digest(token_of(user), credentials.token or ""):
            raise Reject("a bad token", code=codes.UNAUTHORISED)
        return Identity(user)

    # A publisher that was held up sends what is due at once.
    limits = Limits(commands=Rate(1000, burst=1000))
    if args.accepts == 0:
        limits = replace(limits, accepts=None, handshakes=None)
    elif args.accepts is not None:
        limits = replace(
            limits, accepts=Rate(args.accepts, burst=args.burst or max(1, round(args.accepts / 10)))
        )
    broker = RedisBroker.from_url(args.broker)
    hub: Hub[None] = Hub(broker=broker, authenticate=authenticate, limits=limits)
    for pattern in ("crowd:{x}", "own:{x}"):
        hub.rooms(pattern, publishes=object, history=History(1000, ttl=600), grant=Grant("publish"))
    stop, take = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    paces: list[float] = []  # of each second since the other node's address was taken over

    def look() -> None:
        paces.append(round(hub.engine.admission.rate))
        loop.call_later(1.0, look)

    def report() -> None:
        found = hub.statistics()
        say(
            totals=dict(found.totals),
            paces=paces,
            transports=dict(found.transports),
            broker=asdict(broker.statistics()),
        )

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, take.set)
    loop.add_signal_handler(signal.SIGUSR2, report)
    as_many_as_can_be()
    sock = listener("127.0.0.1", args.port)
    options = ServerLimits(connections=1_000_000)  # the open files decide
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(listen(hub, sock=sock, limits=options))
        print(f"listening on ws://127.0.0.1:{sock.getsockname()[1]}/rt/ws, pid {os.getpid()}", flush=True)
        stopping = asyncio.ensure_future(stop.wait())
        taking = asyncio.ensure_future(take.wait())
        await asyncio.wait({stopping, taking}, return_when=asyncio.FIRST_COMPLETED)
        if take.is_set():
            look()
            await stack.enter_async_context(
                listen(hub, sock=listener("127.0.0.1", args.also), limits=options)
            )
            await stopping
        taking.cancel()


# -- those who take orders -----------------------------------------------------------------------------------


def room_of(number: int, rooms: int) -> str:
    """The room of the crowd's that a client, or a message, goes to."""
    return f"crowd:{number % rooms}"


class Orders:
    """Lines of JSON on stdin: ``{"do": "join", …}`` calls ``do_join``, which returns the answer."""

    def __init__(self) -> None:
        self.input = b""
        self.orders: list[dict[str, Any]] = []

    def read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        *lines, self.input = (self.input + data).split(b"\n")
        self.orders += [json.loads(line) for line in lines]

    def obey(self) -> None:
        """Carry out what has come."""
        while self.orders:
            order = self.orders.pop(0)
            do: Callable[..., dict[str, Any]] = getattr(self, "do_" + order.pop("do"))
            say(**do(**order))


class Masses(Orders):
    """The crowd by hand."""

    crowd: Crowd

    def run(self) -> None:
        while not self.orders:
            self.read()
        self.obey()
        while True:
            self.crowd.turn(1.0)
            self.obey()

    def do_start(self, port: int) -> dict[str, Any]:
        self.crowd = Crowd(port, token_of)
        self.crowd.epoll.register(0)
        self.crowd.others[0] = self.read
        return {"pid": os.getpid()}

    def do_join(self, count: int, rooms: int, mix: list[float]) -> dict[str, Any]:
        """So many, in so many rooms; of each kind its share."""
        self.rooms = rooms
        kinds: list[str] = []
        for kind, share in zip(KINDS, mix, strict=True):
            kinds += [kind] * round(count * share / sum(mix))
        kinds = (kinds + ["websocket"] * count)[:count]
        self.crowd.join([(f"u{n}", kind, room_of(n, rooms)) for n, kind in enumerate(kinds)])
        _quiet()
        return {"inside": self.crowd.inside, "kinds": dict(Counter(kinds))}

    def do_storm(self, timeout: float) -> dict[str, Any]:
        """The node is about to die: see to it until all are back."""
        crowd = self.crowd
        crowd.watch()
        until = time.monotonic() + timeout
        count = len(crowd.clients)
        say(ready=True)
        while not (crowd.cut and crowd.inside == count) and time.monotonic() < until:
            crowd.turn(0.1)
        back = sorted(each.back - crowd.cut for each in crowd.clients if each.state == "in")
        return {
            "cut": crowd.cut,
            "back": back,
            "tries": Counter(each.tries for each in crowd.clients),
            "opening": _spread([each.welcomed - each.opened for each in crowd.clients if each.state == "in"]),
            "joining": _spread([each.back - each.welcomed for each in crowd.clients if each.state == "in"]),
        }

    def do_end(self, tops: dict[str, int]) -> dict[str, Any]:
        """Has everybody got everything?"""
        crowd = self.crowd
        until = time.monotonic() + 10
        while any(each.offset < tops[each.room] for each in crowd.clients) and time.monotonic() < until:
            crowd.turn(0.05)
        return {
            "behind": sum(each.offset != tops[each.room] for each in crowd.clients),
            "messages": crowd.messages,
            "inside": crowd.inside,
            "kinds": Counter(each.kind for each in crowd.clients if each.state == "in"),
            "refusals": crowd.refusals,
            "comings": crowd.comings,
            "faults": crowd.faults,
        }


class Home(Orders):
    """The survivor's own members, and who publishes: into their room, and into the crowd's."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = array("d")
        self.took = array("d")
        self.plan: list[tuple[str, float]] = []
        self.done: list[int] = []
        self.began = 0.0

    def run(self) -> None:
        while not self.orders:
            self.read()
        self.obey()
        while True:
            self.crowd.turn(self.publish())
            self.obey()

    def do_start(self, port: int, members: int) -> dict[str, Any]:
        urgent = False
        with contextlib.suppress(OSError):  # as if on a machine of its own
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
            urgent = True
        self.crowd = Crowd(port, token_of, told=self._told)
        self.crowd.epoll.register(0)
        self.crowd.others[0] = self.read
        self.crowd.join([(f"m{n}", "websocket", OWN) for n in range(members)])
        self.crowd.watch()  # they, too, came no faster than they were let in
        _quiet()
        return {"urgent": urgent}

    def _told(self, client: Client, sent: int) -> None:
        now = time.monotonic()
        self.sent.append(sent / 1e9)
        self.took.append(now - sent / 1e9)

    def do_publish(self, own: float, crowd: float, rooms: int) -> dict[str, Any]:
        self.plan = [("", own), ("crowd", crowd)]
        self.rooms = rooms
        self.done = [0, 0]
        self.began = time.monotonic()
        return {}

    def publish(self) -> float:
        """Publish what is due; seconds until something is again."""
        now, soonest = time.monotonic(), 1.0
        for which, (whose, rate) in enumerate(self.plan):
            while rate and (due := self.began + self.done[which] / rate) <= now:
                room = room_of(self.done[which], self.rooms) if whose else OWN
                self.done[which] += 1
                data = f'{{"t":{int(due * 1e9)},"x":"{"x" * 60}"}}'
                unit = f'{{"id":{self.done[which] + 10},"publish":{{"channel":"{room}","data":{data}}}}}'
                # Each by another of them: what one sends is carried out one after the other (C2).
                self.crowd.say(self.crowd.clients[sum(self.done) % len(self.crowd.clients)], unit.encode())
            if rate:
                soonest = min(soonest, self.began + self.done[which] / rate - now)
        return soonest

    def do_stop(self) -> dict[str, Any]:
        self.plan = []
        until = time.monotonic() + 10
        wanted = self.done[0] * len(self.crowd.clients)
        while len(self.sent) < wanted and time.monotonic() < until:
            self.crowd.turn(0.05)
        return {
            "published": self.done,
            "tops": Counter(room_of(n, self.rooms) for n in range(self.done[1])),
            "missing": wanted - len(self.sent),
            "faults": self.crowd.faults + self.crowd.refusals,
            "lost": len(self.crowd.clients) - self.crowd.inside,
        }

    def do_delays(self, since: float, until: float) -> dict[str, Any]:
        """Of what was due between these moments, in ms."""
        return _spread(
            [took for sent, took in zip(self.sent, self.took, strict=True) if since <= sent < until]
        )


def _spread(seconds: list[float]) -> dict[str, Any]:
    """Percentiles, in ms."""
    if not seconds:
        return {"count": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    seconds.sort()
    p50, p99 = (seconds[int(len(seconds) * share)] * 1e3 for share in (0.5, 0.99))
    return {"count": len(seconds), "p50": p50, "p99": p99, "max": seconds[-1] * 1e3}


def _quiet() -> None:
    """What has come to stay is not to be looked at by the collector in the middle of a measurement."""
    gc.collect()
    gc.freeze()


# -- SDKs ------------------------------------------------------------------------------------------------------


class Sdk:
    """One client of ours, as an application has it: everything by default."""

    def __init__(self) -> None:
        self.states: list[tuple[float, str]] = []
        self.last = -1
        self.room = ""
        self.faults: Counter[str] = Counter()
        self.client: Any = None

    async def live(self, url: str, user: str, room_name: str) -> None:
        from rtkit import Gap
        from rtkit.client import connect

        async with connect(url, token=token_of(user)) as client:
            self.client = client
            client.on_state(lambda state: self.states.append((time.monotonic(), str(state))))
            self.room = room_name
            async with client.join(room_name) as room:
                assert room.position is not None
                self.last = room.position.offset
                async for message in room:
                    if isinstance(message, Gap):
                        self.faults["gap"] += 1
                        continue
                    assert message.position is not None
                    if message.position.offset != self.last + 1:
                        self.faults["missing or doubled"] += 1
                    self.last = message.position.offset


async def sdks(url: str, count: int, rooms: int) -> None:
    """Orders: ``end`` with the last offsets, to be waited for."""
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    reader = Orders()

    def read() -> None:
        reader.read()
        while reader.orders:
            orders.put_nowait(reader.orders.pop(0))

    loop.add_reader(0, read)
    clients = [Sdk() for _ in range(count)]
    tasks = [
        asyncio.ensure_future(each.live(url, f"sdk{n}", room_of(n, rooms))) for n, each in enumerate(clients)
    ]
    while any(each.last < 0 for each in clients):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    _quiet()
    say(transports=Counter(str(each.client.transport) for each in clients))
    while True:
        order = await orders.get()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while any(each.last < order["tops"][each.room] for each in clients):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        faults = sum((each.faults for each in clients), Counter[str]())
        faults.update({f"ended: {task.exception()!r}": 1 for task in tasks if task.done()})
        say(
            behind=sum(each.last != order["tops"][each.room] for each in clients),
            transports=Counter(str(each.client.transport) for each in clients),
            back=[
                max([at for at, state in each.states if state == "connected"], default=0.0)
                for each in clients
            ],
            losses=sum(state == "connecting" for each in clients for _, state in each.states),
            faults=faults,
        )


# -- the whole ---------------------------------------------------------------------------------------------------


class Watch:
    """What processes use of the cores between two moments."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.pids = pids
        self.began = {name: usage(pid) for name, pid in pids.items()}

    def spent(self) -> dict[str, tuple[float, float]]:
        """Of each its CPU seconds, and its share of a core."""
        found = {}
        for name, pid in self.pids.items():
            used = usage(pid).since(self.began[name])
            found[name] = used.total, used.total / used.at
        return found


def commands(url: str) -> Counter[str]:
    """How often Redis has carried out each command, within scripts too."""
    host, _, port = url.removeprefix("redis://").partition(":")
    with socket.create_connection((host, int(port))) as sock, sock.makefile("rb") as said:
        sock.sendall(b"INFO commandstats\r\n")
        text = said.read(int(said.readline()[1:])).decode()
    return Counter({name: int(calls) for name, calls in re.findall(r"cmdstat_([^:]+):calls=(\d+)", text)})


def report(server: Server) -> dict[str, Any]:
    os.kill(server.pid, signal.SIGUSR2)
    found: dict[str, Any] = json.loads(server.line(30))
    return found


def storm(args: argparse.Namespace) -> dict[str, Any]:
    """One storm; what is found."""
    server_core, load_core = cores()
    with contextlib.ExitStack() as stack:
        redis = Redis(stack)
        os.sched_setaffinity(redis.process.pid, {load_core})
        node = ("storm.py", "--role", "node", "--broker", redis.url)
        a = stack.enter_context(Server.running(*node, "--accepts", "0", core=server_core))
        rate = () if args.accepts is None else ("--accepts", str(args.accepts), "--burst", str(args.burst))
        b = stack.enter_context(Server.running(*node, *rate, "--also", str(a.port), core=server_core))
        home = stack.enter_context(
            Load.running(b.port, core=load_core, program=("storm.py", "--role", "home"), members=args.members)
        )
        crowd = stack.enter_context(
            Load.running(a.port, core=load_core, program=("storm.py", "--role", "crowd"))
        )
        home.ask("publish", own=args.publish, crowd=args.crowd_publish, rooms=args.rooms)
        joined = crowd.ask("join", count=args.clients, rooms=args.rooms, mix=args.mix)
        pids = {"B": b.pid, "Redis": redis.process.pid, "crowd": crowd.pid, "home": home.pid}
        mine: Load | None = None
        transports: dict[str, int] = {}
        if args.sdks:
            mine = stack.enter_context(
                _Sdks.running(
                    a.port,
                    core=load_core,
                    program=("storm.py", "--role", "sdks"),
                    count=args.sdks,
                    rooms=args.rooms,
                )
            )
            transports = mine.answer()["transports"]
            pids["SDKs"] = mine.pid
        time.sleep(args.beside)
        rest = Watch(pids)
        time.sleep(args.beside)
        resting = rest.spent()
        rss = memory(b.pid)
        counted, said = commands(redis.url), report(b)
        crowd.tell("storm", timeout=args.timeout)
        crowd.answer()
        watch = Watch(pids)
        a.process.kill()
        a.process.wait()
        os.kill(b.pid, signal.SIGUSR1)
        found = crowd.answer(args.timeout + 30)
        storming = watch.spent()
        commanded, told = commands(redis.url), report(b)
        ended = time.monotonic()
        time.sleep(args.beside)
        after = time.monotonic()
        stopped = home.ask("stop")
        # A room of which nobody has said anything has nothing.
        tops = {room_of(n, args.rooms): 0 for n in range(args.rooms)} | stopped["tops"]
        last = crowd.ask("end", tops=tops)
        sdk = mine.ask("end", tops=tops) if mine is not None else {}
        cut = found["cut"]
        delays = {
            name: home.ask("delays", since=since, until=until)
            for name, since, until in (
                ("before", cut - args.beside, cut),
                ("during", cut, max(ended, cut + 1)),
                ("after", ended, after),
            )
        }
        return {
            "clients": args.clients,
            "accepts": args.accepts,
            "paces": told["paces"],
            "seconds": ended - cut,
            "joined": joined,
            "back": found["back"],
            "tries": found["tries"],
            "opening": found["opening"],
            "joining": found["joining"],
            "sdks": sdk | {"before": transports, "back": sorted(each - cut for each in sdk.get("back", []))},
            "cpu": storming,
            "resting": resting,
            "redis": dict(commanded - counted),
            "counted": {
                name: value - said["totals"].get(name, 0)
                for name, value in told["totals"].items()
                if value != said["totals"].get(name, 0)
            },
            "broker": {name: value - said["broker"][name] for name, value in told["broker"].items()},
            "home": stopped,
            "end": last,
            "delays": delays,
            "memory": (rss, memory(b.pid)),
        }


class _Sdks(Load):
    """They say by themselves when they have come."""

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        if do == "start":
            self.tell(do, **order)
            return {}
        return super().ask(do, **order)


def wrong(found: dict[str, Any]) -> list[str]:
    """What must not be."""
    end, sdk, home = found["end"], found["sdks"], found["home"]
    trouble = [f"{name}: {count}" for name, count in (end["faults"] | home["faults"]).items()]
    if len(found["back"]) != found["clients"] or end["inside"] != found["clients"]:
        trouble.append(f"only {end['inside']} are back")
    if end["kinds"] != found["joined"]["kinds"]:
        trouble.append(f"the kinds are {end['kinds']}")
    for who, each in (("of the crowd", end), ("SDKs", sdk)):
        if each.get("behind"):
            trouble.append(f"{each['behind']} {who} have not got everything")
    if home["missing"] or home["lost"]:
        trouble.append(f"the survivor's own lack {home['missing']} messages, {home['lost']} were lost")
    if end["comings"].get("with a gap"):
        trouble.append(f"{end['comings']['with a gap']} had a gap")
    if sdk.get("faults"):
        trouble.append(f"SDKs: {sdk['faults']}")
    if sdk.get("transports", {}) != sdk["before"]:
        trouble.append(f"SDKs are back over {sdk['transports']}, and were over {sdk['before']}")
    return trouble


def tell(found: dict[str, Any]) -> None:
    """For people."""
    back, count = found["back"], found["clients"]
    at = (
        [back[max(0, min(len(back), round(count * share)) - 1)] for share in (0.5, 0.99, 1.0)]
        if back
        else [0.0] * 3
    )
    print(
        f"{len(back)} of {count} back: half after {at[0]:.1f} s, 99 % after {at[1]:.1f} s, all after {at[2]:.1f} s; "
        f"it let in {found['paces']} a second, at each second"
    )
    sdk = found["sdks"]
    if sdk["back"]:
        print(
            f"{len(sdk['back'])} SDKs: the last after {sdk['back'][-1]:.1f} s, {sdk['losses']} attempts, "
            f"over {sdk['before']} before, {sdk['transports']} after"
        )
    tries = {int(tries): n for tries, n in found["tries"].items()}
    print(
        f"attempts: {sum(tries * n for tries, n in tries.items()) / count:.2f} each, {max(tries)} at the most; "
        f"refused: {found['end']['refusals'] or 'nobody'}; came back: {found['end']['comings']}"
    )
    for what, each in (("let in", found["opening"]), ("in its room, from then", found["joining"])):
        print(f"{what}: p50 {each['p50']:.0f} ms, p99 {each['p99']:.0f} ms, most {each['max']:.0f} ms")
    print(f"B counted: {found['counted']}; its broker: {found['broker']}")
    print("Redis:", ", ".join(f"{name} {n}" for name, n in Counter(found["redis"]).most_common()))
    for name, each in found["delays"].items():
        print(
            f"delivery to the survivor's own, {name}: p50 {each['p50']:.1f} ms, p99 {each['p99']:.1f} ms, "
            f"most {each['max']:.1f} ms ({each['count']})"
        )
    busy = ", ".join(
        f"{name} {share:.0%} (at rest {found['resting'][name][1]:.0%})"
        for name, (_, share) in found["cpu"].items()
    )
    used, seconds = found["cpu"]["B"][0], found["seconds"]
    each = (used - found["resting"]["B"][1] * seconds) / count
    print(
        f"CPU of a core: {busy}; B {each * 1e3:.2f} ms for each that came back: {1 / each:.0f} a second fill a core"
    )
    before, after = found["memory"]
    print(f"memory of B: {before / 2**20:.0f} MiB before, {after / 2**20:.0f} after")
    verdict = wrong(found) or "none lost or doubled, all over the transport they had"
    print(f"{found['home']['published']} messages; {verdict}")


def main(args: argparse.Namespace) -> None:
    print(f"{environment()}; open files {raise_open_files(args.clients + 1000)}", flush=True)
    found = storm(args)
    tell(found)
    if args.json:
        say(**found)
    if wrong(found):
        sys.exit(1)


async def run_sdks() -> None:
    start = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]
    await sdks(f"http://127.0.0.1:{start['port']}/rt", start["count"], start["rooms"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--sdks", type=int, default=50)
    parser.add_argument(
        "--mix", type=float, nargs=3, default=[90.0, 5.0, 5.0], help="WebSockets, streams, polls"
    )
    parser.add_argument(
        "--accepts", type=float, help="newcomers a second of B; 0 is any number; else as many as it bears"
    )
    parser.add_argument(
        "--burst", type=int, default=0, help="of them at once; without it a tenth of a second's"
    )
    parser.add_argument("--members", type=int, default=100, help="of B's own")
    parser.add_argument("--publish", type=float, default=40.0, help="messages a second to them, at most 50")
    parser.add_argument("--rooms", type=int, default=50, help="that the crowd is in, each in one")
    parser.add_argument(
        "--crowd-publish", type=float, default=10.0, help="messages a second, to these rooms in turn"
    )
    parser.add_argument("--beside", type=float, default=BESIDE, help="seconds before and after")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds until all have to be back")
    parser.add_argument("--json", action="store_true", help="say everything at the end, for programs")
    parser.add_argument("--role", choices=("node", "crowd", "home", "sdks"), help=argparse.SUPPRESS)
    parser.add_argument("--broker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--also", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case "node":
            asyncio.run(serve(options))
        case "crowd":
            Masses().run()
        case "home":
            Home().run()
        case "sdks":
            asyncio.run(run_sdks())
        case _:
            main(options)
