"""A cluster, and those who come, stay for a while, and go in all the ways there are: nothing is left of them.

Three nodes, one of which crashes now and then. Slots of visitors, each of whom is somebody else each time: clients of
the SDK on every transport, in rooms with history, presence, receipts and typing, that talk, come back, are frozen, cut
off, thrown out, or lose their power; clients of another make; readers of one-way streams; and strangers who open
something and say nothing, half a word, or the wrong one.

What is compared is in :mod:`.census`: all that hangs on the two nodes that live throughout, before the first visitor
and after the last, and with it the tasks and timers of their machines, the network's connections, and what the broker
keeps. What may grow, and how far, is in :data:`BOUNDED`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from rtkit import Credentials, Gap, Grant, History, Hub, Identity, Limits, Presence, Reject
from rtkit.client import Client, Unsubscribed
from rtkit.client.connecting import TransportName
from rtkit.errors import CallError, ConnectionClosed, NotRunning, PublishUnknown, Unavailable
from rtkit.features import Receipts, Signals, Typing
from rtkit.primitives.ratelimit import Rate
from rtkit.streams import StreamPage
from rtkit.testing.simulation import BrokerServer, Machine, SimulatedBroker, Simulation
from rtkit.testing.simulation.loop import State
from tests.support.rawsocket import frame, upgrade
from tests.support.rawstream import request

from .census import census, more

__all__ = ["Visits", "visits"]

TRANSPORTS: Final[tuple[tuple[TransportName, ...], ...]] = (
    ("websocket",),
    ("sse",),
    ("poll",),
    ("websocket", "sse", "poll"),
)
#: Rooms that anybody may be in; and as many that were never there before and never are again.
ROOMS: Final = tuple(f"{family}:{n}" for family in ("chat", "team", "news") for n in range(3))
NODES: Final = ("n0", "n1", "n2")
#: Of these two everything is compared.
STAYING: Final = ("n0", "n1")
#: Seconds until nothing is left of anybody: heartbeat and grace, the lease of a node that died, a position check, a
#: revocation that has to end, and messages that are kept for a minute.
REST: Final = 180.0
#: What may be more than before, by design, and how much there may be of it.
BOUNDED: Final = {
    # Names that clients said are looked up once; ten thousand of them, and then none.
    "Table._cache": 10_000,
    # Of what nodes asked each other the last answers are kept, for who asks again; likewise what a revocation closed.
    "Relay._done": 256,
    "Relay._silent": 3,  # nodes that died; looked through when the next one is asked
    # Publications of which it is measured how long they take, and that were lost, or are of a room that is empty now.
    "Underway._began": 256,
    "Answered": 256,
    "Revocations._closed": 256,
    # Names of counters, of which a hub and a server have so many.
    "Site.counters": 30,
    # A complaint for each handler, and for each reason why an address cannot be counted.
    "LoopLag._complaints": 20,
    "HubAdmission._warned": 4,
    "Uncounted": 4,
    # Of the nodes that live, one has crashed and come again.
    "NodeLease._alive": 4,
}
LIMITS: Final = Limits(commands=Rate(rate=500, burst=500), position_check=20.0, outbox=64 * 1024)


def make_hub(broker: SimulatedBroker, machine: Machine) -> Hub[None]:
    """All are alike."""

    async def authenticate(credentials: Credentials) -> Identity[None]:
        name, _, seconds = (credentials.token or "").partition(" ")
        if not name or name == "nobody":
            raise Reject("who?", code=101)
        await asyncio.sleep(0.05)
        return Identity(name, expires_at=machine.clock.time() + float(seconds) if seconds else None)

    hub: Hub[None] = Hub(authenticate=authenticate, clock=machine.clock, broker=broker, limits=LIMITS)
    every = Grant("publish", "history", "presence", "signal")
    kept = History(200, ttl=60)

    def personal(identity: Identity[None]) -> list[str]:
        return [f"user:{identity.user}"]

    hub.rooms(
        "chat:{x}",
        publishes=object,
        grant=every,
        history=kept,
        presence=Presence(),
        receipts=Receipts(),
        typing=Typing(),
    )
    hub.rooms("team:{x}", publishes=object, grant=every, presence=Presence(), signals=Signals(rate=5))
    hub.rooms("news:{x}", publishes=object, grant=every, history=kept, overflow="close")
    hub.rooms(
        "user:{user}",
        publishes=object,
        history=kept,
        grant=Grant("history"),
        auto_join=personal,
    )

    @hub.rpc(object, name="echo")
    async def echo(ctx: Any, data: Any) -> Any:
        return data

    @hub.rpc(object, name="think", ordered=False)
    async def think(ctx: Any, data: Any) -> Any:
        ctx.session.spawn(asyncio.sleep, 600)
        await asyncio.sleep(float(data))
        return None

    return hub


@dataclass
class Visits:
    """What an exercise has come to.

    :ivar left: what there is more of than before, by node; empty if all is well.
    :ivar what: visits, by what became of them.
    :ivar height: the most there was of some things, on one node.
    """

    left: dict[str, Any] = field(default_factory=dict[str, Any])
    what: Counter[str] = field(default_factory=Counter[str])
    errors: list[str] = field(default_factory=list[str])
    height: Counter[str] = field(default_factory=Counter[str])
    minutes: float = 0.0
    before: dict[str, Any] = field(default_factory=dict[str, Any])
    after: dict[str, Any] = field(default_factory=dict[str, Any])


class _Errors(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(f"{record.name}: {self.format(record)}")


class World:
    """All of it."""

    def __init__(self, sim: Simulation, seed: int, *, minutes: float, slots: int) -> None:
        self.sim = sim
        self.chance = random.Random(f"visitors {seed}")
        self.seconds = minutes * 60
        self.slots = slots
        self.found = Visits()
        self.server = BrokerServer(sim, sim.machine("broker"))
        self.hubs: dict[str, Hub[None]] = {}
        self.over = False
        self._number = 0
        sim.network.window = 32 * 1024
        sim.network.balance("cluster", *NODES)

    # -- nodes

    async def boot(self, name: str) -> None:
        machine = self.sim.machine(name)
        while True:
            hub = make_hub(SimulatedBroker(self.server, machine), machine)
            try:
                await self.sim.serve(hub, machine)
            except Unavailable:
                await asyncio.sleep(1)
                continue
            self.hubs[name] = hub
            return

    def count(self) -> dict[str, Any]:
        """All there is, where it is to be compared."""
        found: dict[str, Any] = {}
        for name in STAYING:
            machine = self.sim.machines[name]
            counted = census(self.hubs[name], self.sim.network._listeners[name, 8000])
            counted["tasks of the machine"] = sum(not task.done() for task in machine.tasks)
            counted["timers of the machine"] = len(machine.timers)
            found[name] = counted
        backend = self.server.backend
        found["network"] = Counter(connections=len(self.sim.network.connections))
        kept = found["broker"] = Counter[str]()
        for topic, ports in backend._topics.items():
            kept[f"subscribers of {self._named(topic)}"] += len(ports)
        for key in list(backend._state):
            kept[f"fields of {self._named(key)}"] += len(backend.entries(key))
        kept["messages"] = sum(len(page.entries) for page in map(self._read, list(backend._streams)))
        return found

    def _read(self, topic: str) -> StreamPage:
        return self.server.backend.read(topic, None, 1000, False, None)

    def _named(self, what: str) -> str:
        """A node that has crashed is another one when it is back."""
        for name, hub in self.hubs.items():
            what = what.replace(hub.node_id, name)
        return what

    # -- the run

    async def run(self) -> Visits:
        found, sim = self.found, self.sim
        errors = _Errors(found.errors)
        logging.getLogger("rtkit").addHandler(errors)
        try:
            for name in NODES:
                await self.boot(name)
            await self._one_of_each()
            found.before = self.count()
            slots = [asyncio.create_task(self._slot()) for _ in range(self.slots)]
            trouble = asyncio.create_task(self._trouble())
            looking = asyncio.create_task(self._look())
            await sim.sleep(self.seconds)
            self.over = True
            await asyncio.wait([*slots, trouble], timeout=600)
            for task in (*slots, trouble):
                task.result()
            looking.cancel()
            sim.network.heal()
            await sim.sleep(REST)
            gc.collect()
            found.after = self.count()
            self._compare()
        finally:
            logging.getLogger("rtkit").removeHandler(errors)
        found.errors += sim.errors
        found.minutes = sim.now / 60
        return found

    async def _one_of_each(self) -> None:
        """Somebody has been in each room on each node, so that what is made at its first use is there before."""
        for name in NODES:
            machine = self.sim.machine(f"first at {name}")

            async def go(name: str = name, machine: Machine = machine) -> None:
                async with self.sim.connect(machine, f"http://{name}:8000/rt", token="first") as client:
                    for room in ROOMS:
                        async with client.join(room) as joined:
                            await joined.send("first")

            await machine.spawn(go())
        await self.sim.sleep(REST)

    async def _look(self) -> None:
        """How high it was."""
        while True:
            await asyncio.sleep(5)
            for name in STAYING:
                now = self.hubs[name].statistics()
                for what in ("connections", "sessions", "parked", "rooms", "members", "tasks", "deadlines"):
                    self.found.height[what] = max(self.found.height[what], getattr(now, what))

    def _compare(self) -> None:
        for where, before in self.found.before.items():
            found = more(self.found.after[where], before, but=BOUNDED)
            if where == "broker":
                found = {what: how for what, how in found.items() if not self._stays(what)}
            if found:
                self.found.left[where] = found
        for name in STAYING:
            now = self.hubs[name].statistics()
            if any((now.connections, now.sessions, now.parked, now.users, now.rooms, now.members)):
                self.found.left[f"statistics of {name}"] = now

    def _stays(self, what: str) -> bool:
        """Marks are for when people come again; and who owned a session that died with its node is kept for a day."""
        return what.startswith(("fields of marks:", "fields of secret", "fields of session:"))

    # -- what goes wrong

    async def _trouble(self) -> None:
        chance, server = self.chance, self.server
        while not self.over:
            await asyncio.sleep(chance.expovariate(1 / 20))
            if self.over:
                return
            match chance.randrange(6):
                case 0:
                    self.found.what["a node crashed"] += 1
                    self.sim.machines["n2"].crash(dark=chance.random() < 0.5)
                    self.hubs.pop("n2")
                    await asyncio.sleep(chance.random() * 20)
                    await self.boot("n2")
                case 1:
                    server.stop()
                    await asyncio.sleep(chance.random() * 5)
                    server.reappear()
                case 2:
                    server.lost = 0.5
                    await asyncio.sleep(chance.random() * 5)
                    server.lost = 0.0
                case 3:
                    sides = (chance.choice(NODES),), ("broker",)
                    self.sim.network.partition(*sides)
                    await asyncio.sleep(chance.random() * 5)
                    self.sim.network.rejoin(*sides)
                case _:
                    await self._rule()

    async def _rule(self) -> None:
        """The application does something about somebody."""
        chance = self.chance
        hub = self.hubs[chance.choice(STAYING)]
        user = hub.user(f"v{max(0, self._number - chance.randrange(1, 6))}")
        acts: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: user.close(code=3000),
            lambda: user.refresh(),
            lambda: user.revoke(self.sim.machines["n0"].clock.time() + 30),
            lambda: hub.room(chance.choice(ROOMS)).remove(user.id, reason="for the exercise"),
            lambda: hub.room(chance.choice(ROOMS)).remove(user.id, reason="for the exercise", ban=30),
            lambda: hub.publish(chance.choice(ROOMS), "x" * chance.choice((10, 100_000))),
        )
        with suppress(Unavailable, NotRunning):
            await chance.choice(acts)()

    # -- who comes

    async def _slot(self) -> None:
        while not self.over:
            self._number += 1
            name = f"v{self._number}"
            machine = self.sim.machine(name)
            stranger = self.chance.random() < 0.4
            visitor: _Visitor = _Stranger(self, name, machine) if stranger else _Guest(self, name, machine)
            await visitor.visit()
            if machine.state is State.RUNNING:
                await asyncio.sleep(2)  # sockets close
                tasks = [task for task in machine.tasks if not task.done()]
                if tasks or machine.timers:
                    self.found.errors.append(f"left of {name}: {tasks}, {machine.timers}")
            # Gone for good: nothing of it is needed any more.
            for task in machine.bury():
                with suppress(BaseException):
                    await asyncio.wait([task], timeout=60)


class _Visitor:
    def __init__(self, world: World, name: str, machine: Machine) -> None:
        self.world = world
        self.name = name
        self.machine = machine
        self.chance = random.Random(world.chance.random())

    async def visit(self) -> None:
        """Come, stay, and go somehow."""
        world, chance = self.world, self.chance
        task = self.machine.spawn(self.live())
        left = world.seconds + 60 - world.sim.now if not world.over else 0.0
        _ = await asyncio.wait([task], timeout=min(chance.expovariate(1 / 25), max(1.0, left)))
        if task.done():
            self.told(task)
            return
        end = chance.choice(
            ("leaves", "leaves", "crashes", "goes dark", "freezes", "is cut off", "goes offline")
        )
        world.found.what[end] += 1
        others = (*NODES, "cluster")
        match end:
            case "crashes" | "goes dark":
                self.machine.crash(dark=end == "goes dark")
                return
            case "freezes":
                self.machine.freeze()
                await asyncio.sleep(chance.choice((2, 15, 50, 90)))
                self.machine.thaw()
            case "is cut off":
                for node in NODES:
                    world.sim.network.cut(self.name, node)
            case "goes offline":
                world.sim.network.partition((self.name,), others)
                await asyncio.sleep(chance.choice((2, 15, 50, 90)))
                world.sim.network.rejoin((self.name,), others)
            case _:
                pass
        # Some come back to what they had, and then leave; others are closed right away.
        _ = await asyncio.wait([task], timeout=chance.choice((0.01, 5, 30)))
        task.cancel()
        await asyncio.wait([task], timeout=60)
        self.told(task)

    def told(self, task: asyncio.Task[None]) -> None:
        """How its own program ended."""
        if not task.done():
            self.world.found.errors.append(f"{self.name} does not end")
        elif not task.cancelled() and (error := task.exception()) is not None:
            fine = (ConnectionClosed, OSError)
            wrong = error.split(fine)[1] if isinstance(error, BaseExceptionGroup) else error
            if wrong is not None and not isinstance(wrong, fine):
                self.world.found.errors.append(f"{self.name}: {wrong!r}")

    async def live(self) -> None:
        raise NotImplementedError

    @property
    def host(self) -> str:
        return self.chance.choice(("cluster", *NODES))


class _Guest(_Visitor):
    """Somebody with the SDK."""

    async def live(self) -> None:
        chance, world = self.chance, self.world
        lasts = chance.choice(("", "", " 5", " 30"))

        async def token() -> str:
            return f"{self.name}{lasts}"

        transports = chance.choice(TRANSPORTS)
        world.found.what["/".join(transports)] += 1
        client = world.sim.connect(
            self.machine, f"http://{self.host}:8000/rt", token=token, wait=False, transports=transports
        )
        async with client:
            names = [
                *chance.sample(ROOMS, k=chance.randrange(1, 4)),
                f"chat:of {self.name}",
                f"user:{self.name}",
            ]
            async with asyncio.TaskGroup() as group:
                for name in names:
                    _ = group.create_task(self._sit(client, name))
                _ = group.create_task(self._ask(client))

    async def _ask(self, client: Client) -> None:
        chance = self.chance
        while True:
            await asyncio.sleep(chance.expovariate(1 / 4))
            with suppress(CallError, PublishUnknown):
                if chance.random() < 0.5:
                    await client.call(chance.random() * 5, name="think")
                else:
                    await client.call("x" * chance.choice((10, 1000, 200_000)), name="echo")

    async def _sit(self, client: Client, name: str) -> None:
        """In a room; out again, now and then."""
        chance = self.chance
        social = name.startswith(("chat", "team"))
        while True:
            try:
                async with client.join(name, presence=social, receipts=name.startswith("chat")) as room:
                    stay = asyncio.timeout(1 + chance.expovariate(1 / 15))
                    with suppress(TimeoutError):
                        async with stay:
                            await self._talk(room, name)
            except (Unsubscribed, CallError):
                await asyncio.sleep(5)

    async def _talk(self, room: Any, name: str) -> None:
        chance = self.chance

        async def hear() -> None:
            async for item in room:
                if not isinstance(item, Gap) and name.startswith("chat") and chance.random() < 0.3:
                    room.receipts.read()

        hearing = asyncio.ensure_future(hear())
        try:
            while not hearing.done():
                await asyncio.sleep(chance.expovariate(1 / 3))
                if name.startswith("user"):
                    continue
                if name.startswith("chat"):
                    room.typing()
                if name.startswith("team"):
                    room.signal({"n": 1}, name="wave")
                with suppress(CallError, PublishUnknown):
                    await room.send("x" * chance.choice((10, 1000, 90_000)))
            hearing.result()
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])


class _Stranger(_Visitor):
    """Somebody with a socket."""

    async def live(self) -> None:
        chance = self.chance
        host = chance.choice(NODES)
        does = chance.choice(tuple(self._deeds()))
        self.world.found.what[does] += 1
        reader, writer = await asyncio.open_connection(host, 8000)
        try:
            for said in self._deeds()[does]:
                writer.write(said)
                await asyncio.sleep(chance.random())
            if does == "another make" or chance.random() < 0.5:
                while await reader.read(4096):  # who does not read has a window that is shut
                    pass
            else:
                await asyncio.sleep(1000)
        finally:
            if chance.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

    def _deeds(self) -> dict[str, tuple[bytes, ...]]:
        chance = self.chance
        room = chance.choice(ROOMS)
        hello = {"id": 1, "connect": {"token": self.name}}
        ours = {"id": 1, "connect": {"token": self.name, "rt": {"v": 1}}}
        nobody = {"id": 1, "connect": {"token": "nobody"}}

        def unit(what: Any) -> bytes:
            return frame(json.dumps(what))

        def said(what: Any) -> bytes:
            return json.dumps(what).encode()

        shake = upgrade("/rt/ws")
        join = unit({"id": 2, "subscribe": {"channel": room}})
        talk = unit({"id": 3, "publish": {"channel": room, "data": "hello"}})
        half = frame(b"", length=100_000)[:14] + b"x" * 5000
        chunk = unit({"chunk": {"of": 1, "n": 1, "size": 500_000, "data": "eHh4"}})
        events = f"/rt/events?room={room}&token={self.name}"
        return {
            "nothing": (),
            "half a head": (shake[:40],),
            "half a body": (request("POST", "/rt/sse", body=said(ours))[:-10],),
            "only hands": (shake,),
            "half a frame": (shake, half),
            "nobody": (shake, unit(nobody)),
            "another make": (shake, unit(hello), join, talk, join),
            "answers nothing": (shake, unit(ours), join, talk),
            "half a frame later": (shake, unit(ours), join, half),
            "half a unit": (shake, unit(ours), chunk),
            "a goodbye": (shake, unit(ours), join, unit({"bye": {}})),
            "all at once": (shake + unit(ours) + join + talk,),
            "one-way": (request("GET", events),),
            "a room that is none": (request("GET", f"/rt/events?room=none&token={self.name}"),),
            "a stream": (request("POST", "/rt/sse", body=said(ours)),),
            "theirs": (request("POST", "/rt/http_stream", body=said(hello)),),
            "a poll": (request("POST", "/rt/poll", body=said(ours)),),
            "a poll of nobody's": (request("GET", "/rt/poll?ack=0", headers={"RT-Session": "n0.abc"}),),
            "a word to nobody": (
                request("POST", "/rt/send", headers={"RT-Session": "x.y", "RT-Seq": "1"}, body=b"{}"),
            ),
        }


async def visits(sim: Simulation, seed: int, *, minutes: float, slots: int) -> Visits:
    """The program of the simulation."""
    return await World(sim, seed, minutes=minutes, slots=slots).run()
