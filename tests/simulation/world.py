"""A cluster and its users in a simulation, and all that has to be true of them.

Throughout: no outbox beyond its bound, no exception that nobody takes, no error in the log. Once it is quiet: the proof
of :mod:`tests.support.checker` over every room with history, presence is the truth on every node, everybody in a room
without history hears what is published now, and heard nothing twice or out of order before. At the end: no session,
task, timer, connection or subscription is left.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Final

from rtkit import (
    BrokerUnavailable,
    Gap,
    Grant,
    History,
    Hub,
    Identity,
    Limits,
    Position,
    Presence,
    PublishUnknown,
    codes,
)
from rtkit.client import Client, RoomClient, Unsubscribed, connect
from rtkit.client.connecting import TransportName
from rtkit.errors import CallError, ConnectionClosed, NotRunning, Unavailable
from rtkit.features import Receipts, Typing
from rtkit.messages import Marks
from rtkit.primitives.ratelimit import Rate
from rtkit.testing.simulation import Machine, Simulation
from rtkit.testing.simulation.broker import BrokerServer, SimulatedBroker
from tests.support.checker import MemberLog, Record, Violations

from .plan import Plan

__all__ = ["INVARIANTS", "Node", "User", "World"]

INVARIANTS: Final = (
    "one history (H1, H2)",
    "nothing acknowledged is lost",
    "nothing twice, nothing out of order (H2, H7)",
    "no false recovered, no silence (H3, H4)",
    "no false alarm (H10)",
    "rooms without history: in order, once, and alive in the end",
    "personal rooms by auto_join (H9)",
    "presence is the truth, on nodes and in clients (P1-P4)",
    "marks agree everywhere, and nobody types for ever (X1, X2)",
    "outboxes within bounds (D1)",
    "no errors",
    "nobody hangs",
    "nothing is left",
)

TRANSPORTS: Final[Sequence[tuple[TransportName, ...]]] = (
    ("websocket",),
    ("sse",),
    ("poll",),
    ("websocket", "sse", "poll"),
)
LIMITS: Final = Limits(
    outbox=16 * 1024,
    reserve=32 * 1024,
    position_check=10.0,
    recovery_page=20,
    commands=Rate(rate=1000, burst=1000),
)
#: Close codes after which a user's program begins anew: revoked, and refused because of that.
_SENT_AWAY: Final = (codes.REVOKED, codes.BAD_TOKEN, codes.NOT_PERMITTED_CLOSE)
#: Virtual seconds that a healed cluster has to come to rest: graces, leases, back-off and checks in a row.
PATIENCE: Final = 240.0


def make_hub(broker: SimulatedBroker, machine: Machine) -> Hub[None]:
    """All hubs are alike."""

    async def authenticate(credentials: Any) -> Identity[None]:
        """Everybody is who they say; for so long, if they say that too."""
        name, _, seconds = credentials.token.partition(" ")
        return Identity(name, expires_at=machine.clock.time() + float(seconds) if seconds else None)

    hub: Hub[None] = Hub(authenticate=authenticate, clock=machine.clock, broker=broker, limits=LIMITS)
    every = Grant("publish", "history", "presence", "signal")
    hub.rooms(
        "log:{x}",
        publishes=object,
        grant=every,
        history=History(5000, ttl=3600),
        presence=Presence(),
        receipts=Receipts(),
        typing=Typing(),
    )
    # Short: who is away for long comes back to find that some of it is gone.
    hub.rooms("short:{x}", publishes=object, grant=every, history=History(25, ttl=3600))
    hub.rooms("strict:{x}", publishes=object, grant=every, history=History(5000, ttl=3600), overflow="close")
    hub.rooms("news:{x}", publishes=object, grant=every)
    hub.rooms("newest:{x}", publishes=object, grant=every, overflow="drop_newest")
    mine = hub.rooms(
        "user:{user}",
        publishes=object,
        history=History(5000, ttl=3600),
        auto_join=lambda identity: [mine.name(user=identity.user)],
        grant=Grant("history"),
    )
    return hub


#: The room with presence, receipts and typing; everybody is in it.
SOCIAL: Final = "log:a"
KEPT: Final = ("log:a", "short:a", "strict:a")
PASSING: Final = ("news:a", "newest:a")


class _Errors(logging.Handler):
    """What is logged as an error counts as one."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.say("error", f"{record.name}: {self.format(record)}")


class Seat:
    """A user's place in a room."""

    def __init__(self, name: str, log: MemberLog | None) -> None:
        self.name = name
        self.log = log
        self.room: RoomClient[Any] | None = None
        self.heard: list[str] = []

    def take(self, item: Any) -> str:
        if isinstance(item, Gap):
            if self.log is not None:
                self.log.gap(item)
            return f"{item}"
        id = _id_of(item.data)
        if self.log is not None:
            assert item.position is not None
            self.log.message(item.position, id)
        else:
            self.heard.append(id)
        return f"{id} at {item.position}"


class User:
    """Somebody with a device, in some rooms: talks, listens, leaves and comes back."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"u{number}"
        self.random = random.Random(f"{world.plan.seed} {self.name}")
        self.busy = False
        #: Seconds that a token of this user is good for; some are for ever.
        self.lasts = self.random.choice((0, 0, 25, 70))
        self.seats: dict[str, Seat] = {}
        self.client: Client | None = None
        self._lives = 0
        self.boot()

    def boot(self) -> None:
        """A device is switched on."""
        self._lives += 1
        self.machine = self.world.sim.machine(self.name)
        self.task = self.machine.spawn(self._live())

    def crash(self, *, dark: bool) -> None:
        """All it knew is gone."""
        for seat in self.seats.values():
            if seat.log is not None:
                seat.log.left()
        self.seats.clear()
        self.client = None
        self.machine.crash(dark=dark)

    async def _token(self) -> str:
        return f"{self.name} {self.lasts}" if self.lasts else self.name

    async def _live(self) -> None:
        while True:
            try:
                await self._use()
                return
            except ConnectionClosed as error:
                if error.code not in _SENT_AWAY:
                    raise
                # Like a page that is loaded again.
                self.world.sim.note(f"{self.name} was sent away: {error}")
                for seat in self.seats.values():
                    if seat.log is not None:
                        seat.log.left()
                self.seats.clear()
                self.client = None
                self._lives += 1
                await asyncio.sleep(1 + self.random.random())

    async def _use(self) -> None:
        world, chance = self.world, self.random
        host = chance.choice(("cluster", "cluster", *(node.name for node in world.nodes)))
        transports = chance.choice(TRANSPORTS)
        world.sim.note(f"{self.name} connects to {host} by {'/'.join(transports)}")
        async with connect(
            f"http://{host}:8000/rt",
            token=self._token,
            wait=False,
            transports=transports,
            clock=self.machine.clock,
            random=random.Random(chance.random()),
        ) as self.client:
            names = [f"user:{self.name}", "log:a"]
            names += chance.sample((*KEPT[1:], *PASSING), k=2)
            tasks = [asyncio.create_task(self._sit(self.client, name)) for name in names]
            tasks.append(asyncio.create_task(self._talk()))
            leaving = asyncio.create_task(world.leaving.wait())
            await asyncio.wait([*tasks, leaving], return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, leaving):
                task.cancel()
            await asyncio.wait([*tasks, leaving])
            for task in tasks:
                if not task.cancelled():
                    task.result()

    async def _sit(self, client: Client, name: str) -> None:
        world, chance = self.world, self.random
        seat = Seat(
            name,
            None if name in PASSING else world.record.member(name, f"{self.name}.{self._lives}"),
        )
        # A room with room for little in the client, now and then: it is left, and recovered from there.
        queue = chance.choice((1024, 1024, 8))
        while True:
            try:
                room = await self._join(client, name, queue)
                break
            except (Unsubscribed, CallError) as error:
                if error.code not in (codes.UNSUBSCRIBED, codes.NOT_PERMITTED):
                    raise
                await asyncio.sleep(chance.random())
        if seat.log is not None:
            assert room.position is not None
            seat.log.joined(room.position)
        world.sim.note(f"{self.name} is in {name} at {room.position}")
        seat.room, self.seats[name] = room, seat
        while True:
            listening = asyncio.create_task(self._listen(seat, room, slow=queue == 8))
            quiet = asyncio.create_task(world.enough.wait())
            stay = 10 + chance.expovariate(1 / 30) if not world.enough.is_set() else None
            try:
                await asyncio.wait(
                    [listening] if stay is None else [listening, quiet],
                    timeout=stay,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for task in (listening, quiet):
                    task.cancel()
                await asyncio.wait([listening, quiet])
            if not listening.cancelled():
                try:
                    listening.result()
                    raise RuntimeError(f"{name} ended for {self.name}")
                except (Unsubscribed, CallError) as error:
                    # Who was away is told in the place of coming in.
                    if error.code not in (codes.UNSUBSCRIBED, codes.NOT_PERMITTED):
                        raise
                    world.sim.note(f"{self.name} was taken out of {name} at {room.position}")
                await asyncio.sleep(chance.random())
                seat.room = room = self._join(client, name, queue, since=room.position)
                continue
            if world.enough.is_set() or seat.log is None:
                continue
            since = room.position
            await room.leave()
            world.sim.note(f"{self.name} has left {name} at {since}")
            await asyncio.sleep(chance.random() * 5)
            seat.room = room = self._join(client, name, queue, since=since)

    def _join(
        self, client: Client, name: str, queue: int, *, since: Position | None = None
    ) -> RoomClient[Any]:
        social = name == SOCIAL
        return client.join(name, since=since, max_queue=queue, presence=social, receipts=social)

    async def _listen(self, seat: Seat, room: RoomClient[Any], *, slow: bool) -> None:
        world = self.world
        async for item in room:
            text = seat.take(item)
            world.sim.note(f"{self.name} got {text} in {seat.name}")
            world.delivered += 1
            if seat.name == SOCIAL and (world.enough.is_set() or self.random.random() < 0.5):
                room.receipts.read()
            if slow and not world.enough.is_set():
                await asyncio.sleep(1.5)

    def reads_all(self) -> None:
        """What there is in the room where that is seen."""
        seat = self.seats.get(SOCIAL)
        if seat is not None and seat.room is not None and not self.task.done():
            with suppress(NotRunning, ConnectionClosed, Unsubscribed):
                seat.room.receipts.read(seat.room.position)

    async def _talk(self) -> None:
        world, chance = self.world, self.random
        while not world.enough.is_set():
            await asyncio.sleep(chance.expovariate(1 / world.plan.pace))
            if world.enough.is_set():
                break
            able = [name for name in self.seats if not name.startswith("user:")]
            if able:
                name = chance.choice(able)
                room = self.seats[name].room
                if name == SOCIAL and room is not None and chance.random() < 0.5:
                    with suppress(NotRunning, ConnectionClosed, Unsubscribed):
                        room.typing()
                    if chance.random() < 0.5:
                        continue  # thinks better of it
                    await asyncio.sleep(chance.random() * 8)
                await self._send(name, world.new_id(f"{self.name}.{self._lives}"))
        await world.leaving.wait()

    async def _send(self, name: str, id: str) -> None:
        """With a key, until it is acknowledged."""
        world, chance = self.world, self.random
        text = world.with_ballast(id, chance)
        while (seat := self.seats.get(name)) is not None and seat.room is not None:
            if seat.log is None:
                world.passing(name, id)
                try:
                    await seat.room.send(text)
                except (CallError, PublishUnknown, NotRunning, Unsubscribed):
                    return
                return
            attempt = world.record.publishing(name, id, publisher=self.name)
            try:
                position = await seat.room.send(text, returns=Position, key=id)
            except (CallError, PublishUnknown, NotRunning, Unsubscribed) as error:
                if isinstance(error, CallError) and not error.temporary and error.code != codes.NOT_PERMITTED:
                    raise
                attempt.unknown(error)
                if world.enough.is_set():
                    return
                await asyncio.sleep(chance.random())
            else:
                attempt.acknowledged(position)
                world.sim.note(f"{self.name} sent {id} to {name}: {position}")
                return


class Node:
    """A server of the cluster."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"n{number}"
        self.random = random.Random(f"{world.plan.seed} {self.name}")
        self.busy = False
        self.hub: Hub[None] | None = None
        self._lives = 0

    async def boot(self) -> None:
        """Until it runs; without the broker it does not start, and whoever looks after it tries again."""
        self._lives += 1
        self.machine = self.world.sim.machine(self.name)
        while True:
            self.broker = SimulatedBroker(self.world.server, self.machine)
            hub = make_hub(self.broker, self.machine)
            try:
                await self.world.sim.serve(hub, self.machine)
            except Unavailable as error:
                self.world.sim.note(f"{self.name} does not start: {error}")
                await asyncio.sleep(1)
                continue
            self.hub = hub
            self._publishing = self.machine.spawn(self._publish(hub))
            return

    def crash(self, *, dark: bool) -> None:
        self.hub = None
        self.machine.crash(dark=dark)

    async def stop(self) -> None:
        parking = self.hub.engine.parking if self.hub is not None else None
        self.hub = None
        self._publishing.cancel()
        await asyncio.wait([self._publishing])
        await self.world.sim.stop(self.machine)
        await asyncio.sleep(0.5)
        if parking is not None:  # what it could not tell the broker in the 2 s it has for that
            self.world.untold |= {f"session:{client}" for client in parking._void}
        self.world.nothing_runs(self.machine)

    async def _publish(self, hub: Hub[None]) -> None:
        """The application's own publisher; with a key, and tries again."""
        world, chance = self.world, self.random
        users = [f"u{number}" for number in range(world.plan.users)]
        while not world.enough.is_set():
            await asyncio.sleep(chance.expovariate(1 / world.plan.pace))
            if world.enough.is_set():
                return
            name = chance.choice((*KEPT, *PASSING, f"user:{chance.choice(users)}"))
            id = world.new_id(f"{self.name}.{self._lives}")
            while not await self.publish_once(hub, name, id) and chance.random() > 0.2:  # noqa: ASYNC110
                await asyncio.sleep(chance.random())  # it tries again

    async def publish_once(self, hub: Hub[None], name: str, id: str, *, size: int | None = None) -> bool:
        world = self.world
        text = world.with_ballast(id, self.random) if size is None else f"{id} {'x' * size}"
        if name in PASSING:
            world.passing(name, id)
            try:
                await hub.publish(name, text)
            except (Unavailable, NotRunning):
                pass
            return True
        attempt = world.record.publishing(name, id, publisher=self.name)
        try:
            published = await hub.publish(name, text, key=id)
        except BrokerUnavailable as error:
            attempt.failed(error)
            return False
        except (PublishUnknown, NotRunning) as error:
            attempt.unknown(error)
            return False
        assert published.position is not None
        attempt.acknowledged(published.position)
        world.sim.note(f"{self.name} published {id} to {name}: {published.position}")
        return True


class World:
    """All of it. :meth:`run` is the program of the simulation."""

    def __init__(self, sim: Simulation, plan: Plan) -> None:
        self.sim = sim
        self.plan = plan
        self.record = Record(str(plan), clock=sim.loop.time)
        self.found: list[tuple[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.delivered = 0
        self.server_busy = False
        self.enough = asyncio.Event()
        self.leaving = asyncio.Event()
        #: Keys of sessions that ended with their node, while the broker was away: gone in a day.
        self.untold: set[str] = set()
        self.published: dict[str, dict[str, int]] = {name: {} for name in PASSING}
        self.users: list[User] = []
        self.revoked: set[str] = set()
        self._numbers = itertools.count(1)
        self.server = BrokerServer(sim, sim.machine("broker"))
        self.nodes = [Node(self, number) for number in range(plan.nodes)]
        # Small buffers: an outbox gets full after kilobytes, as behind a phone's link.
        sim.network.window = 8 * 1024
        sim.network.balance("cluster", *(node.name for node in self.nodes))

    def say(self, kind: str, text: str) -> None:
        """Something is wrong."""
        self.sim.note(f"WRONG {kind}: {text}")
        if len(self.found) < 1000:
            self.found.append((kind, text))

    def new_id(self, who: str) -> str:
        return f"{who}-{next(self._numbers)}"

    def with_ballast(self, id: str, chance: random.Random) -> str:
        return f"{id} {'x' * chance.choice((0, 200, 1500, 6000))}"

    def running_hub(self, number: int) -> Hub[None] | None:
        """One that can be asked, if there is any: the one with this number, counted around, or the next."""
        for n in range(len(self.nodes)):
            node = self.nodes[(number + n) % len(self.nodes)]
            if node.hub is not None and node.hub.running and not node.busy:
                return node.hub
        return None

    async def tolerant(self, act: Awaitable[object]) -> bool:
        """Await it; False when the broker could not be reached, or the hub has closed meanwhile."""
        try:
            await act
        except (Unavailable, NotRunning):
            return False
        return True

    def passing(self, name: str, id: str) -> None:
        """A message that nobody keeps is published."""
        self.published[name][id] = len(self.published[name])

    # -- the run -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Faults, rest, proof, end.

        :raises Violations: when something is not as it has to be.
        """
        errors = _Errors(self)
        logger = logging.getLogger("rtkit")
        logger.addHandler(errors)
        try:
            for node in self.nodes:
                await node.boot()
            self.users = [User(self, number) for number in range(self.plan.users)]
            looking = asyncio.create_task(self._look())
            try:
                async with asyncio.timeout(self.plan.seconds + 4 * PATIENCE):
                    await self._go_through_all()
            except TimeoutError as error:
                frames = traceback.extract_tb(error.__cause__.__traceback__ if error.__cause__ else None)
                where = "; ".join(f"{each.name}:{each.lineno}" for each in frames)
                self.say("hangs", f"the test itself, at {where}")
            looking.cancel()
        finally:
            logger.removeHandler(errors)
        for error in self.sim.errors:
            self.say("error", error)
        if self.found:
            raise Violations(self.found, "\n".join([*self.record.context, self.record.summary()]))

    async def _go_through_all(self) -> None:
        from .faults import inject

        faults = [asyncio.create_task(inject(self, fault)) for fault in self.plan.faults]
        await self.sim.sleep(self.plan.seconds)
        for task in faults:
            await task
        self.sim.network.heal()
        self.server.lost = 0.0
        if await self._rest():
            await self._prove()
            await self._end()

    async def _look(self) -> None:
        """What holds at any moment, four times a second."""
        bound = LIMITS.outbox + LIMITS.reserve
        while True:
            await asyncio.sleep(0.25)
            for node in self.nodes:
                if node.hub is None or not node.hub.running:
                    continue
                for connection in node.hub.engine.connections:
                    size = connection.outbox.statistics().size
                    if size > bound:
                        self.say("outbox", f"{node.name}: {size} bytes queued, {bound} are the most")

    async def _rest(self) -> bool:
        """Nobody talks any more; wait until all is quiet."""
        sim = self.sim
        self.enough.set()
        self.sim.note("from here on it is to become quiet")
        began = sim.now
        lasts = {name: self.new_id("last") for name in self._rooms()}
        hub = self.nodes[0].hub
        assert hub is not None
        # Who is in the middle of something may end it: a command may be sent again for minutes.
        await sim.sleep(20)
        # A failover may have lost that it was lifted, as anything else: then somebody has to do it again.
        for user in sorted(self.revoked):
            await self.tolerant(hub.user(user).revoke(0.0))
        for name, id in lasts.items():
            while not await self.nodes[0].publish_once(hub, name, id):
                if sim.now > began + PATIENCE:
                    self.say("hangs", f"nothing can be published to {name}")
                    return False
                await sim.sleep(1)
        for user in self.users:
            user.reads_all()  # who came after the last message has none to read
        while (wrong := await self._restless(lasts)) and sim.now < began + PATIENCE:
            await sim.sleep(1)
            for user in self.users:
                user.reads_all()
            for name in PASSING:
                # Published once and heard by nobody, since messages may pass: then the next one is.
                lasts[name] = self.new_id("last")
                await self.nodes[0].publish_once(hub, name, lasts[name])
            await sim.sleep(1)
        for kind, text in wrong:
            self.say(kind, text)
        self.record.note(f"at rest after {sim.now - began:.0f} s")
        return True

    def _rooms(self) -> list[str]:
        return [*KEPT, *PASSING, *(f"user:{user.name}" for user in self.users)]

    async def _restless(self, lasts: dict[str, str]) -> list[tuple[str, str]]:
        """Why it is not quiet yet."""
        hub = self.nodes[0].hub
        assert hub is not None
        found: list[tuple[str, str]] = []
        for user in self.users:
            if user.task.done():
                error = user.task.exception()
                found.append(("a user's program ended", f"{user.name}: {error!r}"))
                continue
            if len(user.seats) < 4:
                found.append(("hangs", f"{user.name} is in {sorted(user.seats)} only"))
            found += [
                ("deaf", f"{user.name} does not hear {seat.name}")
                for seat in user.seats.values()
                if seat.log is None and lasts[seat.name] not in seat.heard
            ]
        for name in self._rooms():
            if name not in PASSING:
                top = (await hub.room(name).history(limit=0)).top
                for user in self.users:
                    seat = user.seats.get(name)
                    if seat is not None and seat.room is not None and seat.room.position != top:
                        found.append(
                            ("behind", f"{user.name} in {name} is at {seat.room.position}, the top is {top}")
                        )
        found += self._antisocial((await hub.room(SOCIAL).history(limit=0)).top)
        there = {user.client.client_id or "" for user in self.users if user.client is not None}
        for node in self.nodes:
            if node.hub is None:
                found.append(("hangs", f"{node.name} does not run"))
                continue
            shown = [member.client for member in await node.hub.room("log:a").presence()]
            if sorted(shown) != sorted(there):
                found.append(
                    (
                        "presence",
                        f"{node.name} shows {sorted(set(shown) - there)} who are gone, not"
                        f" {sorted(there - set(shown))} who are there, and {len(shown) - len(set(shown))} twice",
                    )
                )
            marks = await node.hub.room(SOCIAL).marks()
            if marks != self._all_read((await hub.room(SOCIAL).history(limit=0)).top):
                found.append(("marks", f"{node.name} has {dict(marks)}"))
        return found

    def _all_read(self, top: Position) -> dict[str, Marks]:
        return {user.name: Marks(top, top) for user in self.users}

    def _antisocial(self, top: Position) -> list[tuple[str, str]]:
        """What clients are wrong about in the room where they see each other."""
        found: list[tuple[str, str]] = []
        there = sorted(user.client.client_id or "" for user in self.users if user.client is not None)
        for user in self.users:
            seat = user.seats.get(SOCIAL)
            if seat is None or seat.room is None:
                continue
            room = seat.room
            shown = sorted(member.client for member in room.presence.members)
            if shown != there or not room.presence.current:
                found.append(("presence", f"{user.name} sees {shown}, and {there} are there"))
            if dict(room.receipts.marks) != self._all_read(top) or room.receipts.unread:
                marks = dict(room.receipts.marks)
                found.append(("marks", f"{user.name} knows {marks}, {room.receipts.unread} unread"))
            if room.typists:
                found.append(("typing", f"{user.name} sees {room.typists} typing"))
        return found

    # -- the proof ---------------------------------------------------------------------------------

    async def _prove(self) -> None:
        hub = self.nodes[0].hub
        assert hub is not None
        for name in self._rooms():
            if name not in PASSING:
                await self._read(hub, name)
        for user in self.users:
            for seat in user.seats.values():
                if seat.log is None:
                    self._prove_passing(user, seat)
                elif seat.room is not None:
                    seat.log.stands(seat.room.position)
        for log in self.record.members:
            if not log.items:
                log.left()  # it never came in
        try:
            self.record.check()
        except Violations as violations:
            for kind, text in violations.found:
                self.say(kind, text)

    async def _read(self, hub: Hub[None], name: str) -> None:
        entries: dict[int, str] = {}
        since: Position | None = None
        while True:
            page = await hub.room(name).history(limit=1000, since=since)
            for message in page.messages:
                assert message.position is not None
                entries[message.position.offset] = _id_of(message.data)
                since = message.position
            if not page.messages:
                break
        floor = min(entries) - 1 if entries else page.top.offset
        self.record.stream(name, page.top, floor=floor, entries=entries)

    def _prove_passing(self, user: User, seat: Seat) -> None:
        """Of a room without history: what came was published, once, and in the order of each publisher."""
        known = self.published[seat.name]
        last: dict[str, int] = {}
        for id in seat.heard:
            number = known.get(id)
            publisher = id.rpartition("-")[0]
            if number is None:
                self.say("out of thin air", f"{user.name} heard {id} in {seat.name}")
            elif publisher.startswith("u"):
                pass  # a client that got no answer sends again, and there is no stream that would know the key
            elif number <= last.get(publisher, -1):
                self.say("order", f"{user.name} heard {id} in {seat.name} late, or twice")
            else:
                last[publisher] = number

    # -- the end -----------------------------------------------------------------------------------

    async def _end(self) -> None:
        """All go home; nothing may be left of them."""
        self.leaving.set()
        _, late = await asyncio.wait([user.task for user in self.users], timeout=60)
        for task in late:
            self.say("hangs", f"{task.get_name()} does not end")
        await self.sim.sleep(90)  # graces
        for user in self.users:
            self.nothing_runs(user.machine)
        for node in self.nodes:
            assert node.hub is not None
            found = node.hub.statistics()
            if any((found.connections, found.sessions, found.users, found.rooms, found.deadlines)):
                self.say("left over", f"with nobody there {node.name} has {found}")
        for node in self.nodes:
            await node.stop()
        backend = self.server.backend
        if self.server.ports or backend._topics:
            self.say("left over", f"of subscriptions: {self.server.ports}, {list(backend._topics)}")
        # One field each, without a meaning or of all nodes ever, is to stay.
        staying = {"revocations:all", "secret"}
        kept = {
            key: entries
            for key in list(backend._state)
            if key not in staying and (entries := backend.entries(key))
        }
        rolled_back = any("fails over" in loss.what for loss in self.record.losses)
        if self.faults["node crashes"] or rolled_back:
            # Who owned a session whose node died, or whose end was undone: until no token can name it.
            kept = {key: entries for key, entries in kept.items() if not key.startswith("session:")}
        kept = {key: entries for key, entries in kept.items() if key not in self.untold}
        if self.record.losses or self.faults["node freezes"]:
            # The index of a life that ended with the broker's data, or while its node stood still, put there by who did
            # not know yet: gone in a day.
            kept = {key: entries for key, entries in kept.items() if not key.startswith("presence-rooms:")}
        # How far everybody has read is for when they come again.
        kept = {key: entries for key, entries in kept.items() if not key.startswith("marks:")}
        if kept:
            self.say("left over", f"the broker keeps {kept}")
        if self.sim.network.connections:
            self.say("left over", f"connections {list(self.sim.network.connections)}")

    def nothing_runs(self, machine: Machine) -> None:
        tasks = [task for task in machine.tasks if not task.done()]
        if tasks or machine.timers:
            self.say("left over", f"on {machine.name}: tasks {tasks}, timers {machine.timers}")


def _id_of(data: Any) -> str:
    """Messages are an id, and ballast."""
    return str(data).partition(" ")[0]
