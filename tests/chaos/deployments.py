"""Redis and Valkey as they are deployed, each with what can go wrong there.

A fault is an async function that takes a world, does something bad, and ends it or leaves that to ``heal``. What takes
acknowledged messages along says so to the record; all others may not lose any.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, TypeAlias

from rtkit.brokers import Broker
from rtkit.brokers.redis import RedisBroker
from rtkit.messages import Durability
from tests.support.netns import Apart
from tests.support.proxy_link import Link
from tests.support.redises import Kind, RedisCluster, RedisServer, SentinelTrio

from .world import Plan, World

__all__ = ["Cluster", "Deployment", "Fault", "Parted", "Sentinels", "Standalone", "off"]

Fault: TypeAlias = Callable[[World], Awaitable[None]]

off = asyncio.to_thread
"""Servers block; the loop goes on meanwhile."""

#: Replication lags, on a busy machine: what was acknowledged so many seconds before a primary died may be lost with it.
_LAG = 1.0


class Deployment(ABC):
    """Servers, and how hubs reach them.

    :param kind: whose.
    :param long: faults last as long as they do in life.
    """

    rooms: ClassVar[tuple[tuple[str, Durability], ...]] = (("a", "stored"), ("b", "stored"))

    def __init__(self, kind: Kind, *, long: bool = False) -> None:
        self.kind: Kind = kind
        self.long = long

    def plan(self, **options: Any) -> Plan:
        return Plan(rooms=self.rooms, **options)

    def a_while(self, world: World, short: float, long: float) -> float:
        """Seconds, by chance."""
        return world.random.uniform(0.2, 1.0) * (long if self.long else short)

    @abstractmethod
    def broker(self) -> Broker:
        """For the next hub."""

    @property
    @abstractmethod
    def faults(self) -> Sequence[Fault]:
        """What can happen."""

    @abstractmethod
    async def heal(self) -> None:
        """Everything is as it should be again."""

    @asynccontextmanager
    @abstractmethod
    async def running(self) -> AsyncGenerator[Deployment]:
        """The servers."""
        yield self

    # -- what can happen anywhere ------------------------------------------------------------------

    @abstractmethod
    def server_of(self, room: str) -> RedisServer:
        """The primary that has a room now."""

    async def _any(self, world: World) -> RedisServer:
        room, _ = world.random.choice(self.rooms)
        return await off(self.server_of, room)

    async def listeners_killed(self, world: World) -> None:
        """The server cuts who is subscribed (row 1)."""
        server = await self._any(world)
        await off(server.kill_connections, "pubsub")

    async def everybody_killed(self, world: World) -> None:
        """The server cuts who sends commands, in the middle of them."""
        server = await self._any(world)
        await off(server.kill_connections, "normal")

    async def flushed(self, world: World) -> None:
        """Somebody says FLUSHALL (row 4)."""
        server = await self._any(world)
        await off(server.command, "FLUSHALL")
        world.record.lost("FLUSHALL")

    async def meta_deleted(self, world: World) -> None:
        """A stream's meta is evicted (row 11)."""
        room, _ = world.random.choice(self.rooms)
        await off(self.server_of(room).command, "DEL", f"rt:{{{room}}}:room:m")
        world.record.lost("meta deleted")

    async def entries_deleted(self, world: World) -> None:
        """Its entries are. They are gone for who has not got them, and that is told."""
        room, _ = world.random.choice(self.rooms)
        await off(self.server_of(room).command, "DEL", f"rt:{{{room}}}:room:s")
        world.record.lost("entries deleted")

    async def memory_full(self, world: World) -> None:
        """It takes no writes for want of memory (row 6)."""
        server = await self._any(world)
        await off(server.set, "maxmemory", "1")
        await asyncio.sleep(self.a_while(world, 0.3, 3.0))
        await off(server.set, "maxmemory", "0")

    async def listeners_overflow(self, world: World) -> None:
        """Messages are too large for the buffers of who is subscribed: cut at each of them (row 15)."""
        server = await self._any(world)
        await off(server.set, "client-output-buffer-limit", "pubsub 40kb 20kb 1")
        world.ballast = " " + "x" * 60_000
        await asyncio.sleep(self.a_while(world, 0.3, 2.0))
        world.ballast = ""
        await off(server.set, "client-output-buffer-limit", "pubsub 32mb 8mb 60")

    async def clients_cut(self, world: World) -> None:
        """Nothing is wrong with the broker: clients of a node lose their connections."""
        cable = world.random.choice(world.nodes).cable
        assert cable is not None
        cable.pull()
        await asyncio.sleep(self.a_while(world, 0.1, 1.0))
        cable.plug()

    async def comes_back(self, world: World) -> None:
        """A client leaves, and comes back with its position."""
        listener = world.random.choice([each for each in world.listeners if not each.log.over])
        await listener.come_back()

    def _everywhere(self) -> Sequence[Fault]:
        return (
            self.listeners_killed,
            self.everybody_killed,
            self.flushed,
            self.meta_deleted,
            self.entries_deleted,
            self.memory_full,
            self.listeners_overflow,
            self.clients_cut,
            self.comes_back,
        )


class Standalone(Deployment):
    """One server; each hub has a network of its own to it."""

    def __init__(self, kind: Kind = "redis", *, long: bool = False) -> None:
        super().__init__(kind, long=long)
        self.server = RedisServer(kind)
        self.links: list[Link] = []
        self._given = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Standalone]:
        with self.server:
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    self.links.append(await stack.enter_async_context(Link(self.server.port)))
                yield self

    def broker(self) -> Broker:
        link = self.links[self._given]
        self._given += 1
        return RedisBroker(f"redis://127.0.0.1:{link.port}")

    def server_of(self, room: str) -> RedisServer:
        return self.server

    @property
    def faults(self) -> Sequence[Fault]:
        return (
            *self._everywhere(),
            self.restarted,
            self.restarted_empty,
            self.rolled_back,
            self.frozen,
            self.frozen_for_long,
            self.read_only,
            self.far_away,
            self.cut_off,
            self.links_cut,
            self.deaf,
        )

    async def heal(self) -> None:
        for link in self.links:
            link.heal()
        self.server.thaw()
        if not self.server.running:
            await off(self.server.start)

    async def restarted(self, world: World) -> None:
        """SIGKILL, and back with all it has acknowledged (row 3)."""
        await off(self.server.kill)
        await asyncio.sleep(self.a_while(world, 0.3, 3.0))
        await off(self.server.start)

    async def restarted_empty(self, world: World) -> None:
        """SIGKILL, and back with nothing (row 4)."""
        await off(self.server.wipe)
        world.record.lost("restarted empty")

    async def rolled_back(self, world: World) -> None:
        """A backup is put back (row 8)."""
        since = time.monotonic()
        kept = await off(self.server.keep)
        await world.progress(20)
        await off(self.server.roll_back, kept)
        world.record.lost("rolled back", since=since)

    async def frozen(self, world: World) -> None:
        """It does not answer, and connections stay (row 5)."""
        self.server.freeze()
        await asyncio.sleep(self.a_while(world, 1.0, 5.0))
        self.server.thaw()

    async def frozen_for_long(self, world: World) -> None:
        """Likewise, and for longer than anybody waits for an answer; what was sent is done when it wakes up."""
        self.server.freeze()
        await asyncio.sleep(2.5)
        self.server.thaw()

    async def read_only(self, world: World) -> None:
        """It becomes the replica of nobody who is there (row 6)."""
        await off(self.server.command, "REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(self.a_while(world, 0.3, 3.0))
        await off(self.server.command, "REPLICAOF", "NO", "ONE")

    async def far_away(self, world: World) -> None:
        """Some hubs are far from it, by a different way with each piece (row 13)."""
        most = 0.1 if not self.long else 0.5
        for link in world.random.sample(self.links, 2):
            link.delay = lambda: world.random.random() * most
        await asyncio.sleep(self.a_while(world, 0.6, 5.0))
        for link in self.links:
            link.heal()

    async def cut_off(self, world: World) -> None:
        """A hub hears and is heard no more; no connection is reset (row 12)."""
        link = world.random.choice(self.links)
        link.swallow()
        await asyncio.sleep(self.a_while(world, 1.0, 6.0))
        if world.random.random() < 0.5:
            link.cut()
        link.heal()

    async def links_cut(self, world: World) -> None:
        """Connections of a hub are reset."""
        world.random.choice(self.links).cut()

    async def deaf(self, world: World) -> None:
        """A subscription is healthy but for that nothing comes (row 2)."""
        link = world.random.choice(self.links)
        world.record.note(f"  deaf: {link.deafen(b'SUBSCRIBE')} connections")


class Sentinels(Deployment):
    """A primary and a replica, looked after by Sentinels; one room is only acknowledged once the replica has it."""

    rooms = (("a", "stored"), ("safe", "replicated"))

    def __init__(self, kind: Kind = "redis", *, long: bool = False) -> None:
        super().__init__(kind, long=long)
        self.trio = SentinelTrio(kind)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Sentinels]:
        await off(self.trio.__enter__)
        try:
            yield self
        finally:
            self.trio.__exit__()

    def broker(self) -> Broker:
        return RedisBroker(self.trio.url)

    def server_of(self, room: str) -> RedisServer:
        return self.trio.current()

    @property
    def faults(self) -> Sequence[Fault]:
        return (
            *self._everywhere(),
            self.failed_over,
            self.primary_killed,
            self.primary_frozen,
            self.replica_behind,
        )

    async def heal(self) -> None:
        for server in self.trio.servers:
            server.thaw()
            if not server.running:
                await off(server.start)
        await off(self.trio.wait_settled)

    async def failed_over(self, world: World) -> None:
        """An operator has the Sentinels change the primary (row 7)."""
        since = time.monotonic() - _LAG
        await off(self.trio.failover)
        await off(self.trio.wait_settled)
        world.record.lost("failover", since=since, replicated=False)

    async def primary_killed(self, world: World) -> None:
        """The primary dies, and comes back as a replica (row 7)."""
        since = time.monotonic() - _LAG
        old = await off(self.trio.current)
        await off(old.kill)
        await off(self.trio.wait_for_other_than, old)
        await off(old.start)
        await off(self.trio.wait_settled)
        world.record.lost("the primary died", since=since, replicated=False)

    async def primary_frozen(self, world: World) -> None:
        """The primary hangs until another one reigns, and goes on as if nothing had been (row 8)."""
        since = time.monotonic() - _LAG
        old = await off(self.trio.current)
        old.freeze()
        await off(self.trio.wait_for_other_than, old)
        await asyncio.sleep(self.a_while(world, 0.2, 2.0))
        old.thaw()
        await off(self.trio.wait_settled)
        world.record.lost("the primary hung", since=since, replicated=False)

    async def replica_behind(self, world: World) -> None:
        """The primary dies while the replica hangs, which takes over all the same, with what it has."""
        old = await off(self.trio.current)
        replica = next(each for each in (self.trio.primary, *self.trio.replicas) if each is not old)
        since = time.monotonic() - _LAG
        replica.freeze()
        # Or the kernel would keep for it what it is sent, until it wakes up.
        await off(old.kill_connections, "replica")
        await world.progress(20)
        await off(old.kill)
        replica.thaw()
        await off(self.trio.wait_for_other_than, old)
        await off(old.start)
        await off(self.trio.wait_settled)
        world.record.lost("the primary died before its replica", since=since, replicated=False)


class Parted(Sentinels):
    """The replica and the Sentinels are in another network, and the cable to it is cut now and then."""

    def __init__(self, kind: Kind = "redis", *, long: bool = False) -> None:
        super().__init__(kind, long=long)
        self.apart = Apart()
        self.trio = SentinelTrio(kind, apart=self.apart)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Parted]:
        with self.apart:
            async with super().running():
                yield self

    @property
    def faults(self) -> Sequence[Fault]:
        return (self.cable_cut, self.cable_cut, *super().faults)

    async def heal(self) -> None:
        await off(self.apart.mend)
        await super().heal()

    async def cable_cut(self, world: World) -> None:
        """Hubs stay with a primary that is none any more and goes on acknowledging; or are left alone (row 8)."""
        since = time.monotonic() - _LAG
        old = await off(self.trio.current)
        await off(self.apart.cut)
        if old.host == self.apart.outside:
            await world.progress(20)
        # How far they are over there cannot be seen from here; it does not matter for the verdict.
        await asyncio.sleep(2 + self.a_while(world, 0.0, 3.0))
        await off(self.apart.mend)
        if old.host == self.apart.outside:
            await off(self.trio.wait_for_other_than, old)
        await off(self.trio.wait_settled)
        world.record.lost("the network was parted", since=since, replicated=False)


class Cluster(Deployment):
    """Three primaries, each with a replica; rooms lie on different ones."""

    rooms = (("a", "stored"), ("b", "replicated"))

    def __init__(self, kind: Kind = "redis", *, long: bool = False) -> None:
        super().__init__(kind, long=long)
        self.cluster = RedisCluster(kind, replicas=1)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Cluster]:
        await off(self.cluster.__enter__)
        try:
            yield self
        finally:
            self.cluster.__exit__()

    def broker(self) -> Broker:
        return RedisBroker(self.cluster.url)

    def server_of(self, room: str) -> RedisServer:
        return self.cluster.owner_of(self.cluster.slot_of(room))

    @property
    def faults(self) -> Sequence[Fault]:
        return (
            *self._everywhere(),
            self.slot_moved,
            self.slot_moved_slowly,
            self.failed_over,
            self.primary_killed,
            self.primary_restarted,
        )

    async def heal(self) -> None:
        for server in self.cluster.servers:
            server.thaw()
            if not server.running:
                await off(server.start)
        await off(self.cluster.wait_settled)

    def _place(self, world: World) -> tuple[int, RedisServer, RedisServer]:
        """A room's slot, its owner, and another primary."""
        room, _ = world.random.choice(self.rooms)
        slot = self.cluster.slot_of(room)
        owner = self.cluster.owner_of(slot)
        others = [each for each in self.cluster.servers if each is not owner and each.role == "master"]
        return slot, owner, world.random.choice(others)

    async def slot_moved(self, world: World) -> None:
        """A room's slot goes to another primary (row 9)."""
        slot, _, target = await off(self._place, world)
        await off(self.cluster.migrate, slot, target)

    async def slot_moved_slowly(self, world: World) -> None:
        """Likewise, and for a moment it is on its way."""
        slot, _, target = await off(self._place, world)
        wait = self.a_while(world, 0.3, 2.0)
        await off(lambda: self.cluster.migrate(slot, target, between=lambda: time.sleep(wait)))

    async def failed_over(self, world: World) -> None:
        """A replica takes over in good order: nothing is lost."""
        slot, owner, _ = await off(self._place, world)
        replica = (await off(self.cluster.replicas_of, owner))[0]
        await off(replica.command, "CLUSTER", "FAILOVER")
        await off(self.cluster.wait_taken_over, slot, owner)
        await off(self.cluster.wait_settled)

    async def primary_killed(self, world: World) -> None:
        """A primary dies, and comes back as a replica (row 10)."""
        since = time.monotonic() - _LAG
        slot, owner, _ = await off(self._place, world)
        await off(owner.kill)
        await off(self.cluster.wait_taken_over, slot, owner)
        await off(owner.start)
        await off(self.cluster.wait_settled)
        world.record.lost("a primary died", since=since, replicated=False)

    async def primary_restarted(self, world: World) -> None:
        """A primary dies, and is back with all it had before anybody takes over."""
        since = time.monotonic() - _LAG
        _, owner, _ = await off(self._place, world)
        await off(owner.restart)
        await off(self.cluster.wait_settled)
        # Somebody may have taken over all the same, on a busy machine.
        world.record.lost("a primary was restarted", since=since, replicated=False)
