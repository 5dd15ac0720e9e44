"""The one lease that says this node is alive, and who else is (P3, C4).

Everything a node has written into the broker for its clients names the node and its *incarnation*, and is worth as
much as the lease of that incarnation. So keeping ten thousand clients present costs as many commands as keeping one:
one every few seconds.

The rules, for whoever takes away what a dead node has left behind:

- An incarnation is dead when its lease is not there. A node whose lease has run out, because it was cut off or stood
  still, takes a new incarnation before it writes again: what others take away of the old one is not what it has now.
- The lease also says which versions of what is written between nodes its node reads (:mod:`rtkit.hub.versions`).
- When the broker was away, or has lost what it held, every lease is missing at first, and says nothing. Only after a
  full lease of uninterrupted reach (:attr:`NodeLease.may_reap`) has every living node had time to be seen again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ..brokers import StateBroker
from ..brokers.base import keeps_state
from ..errors import Unavailable
from ..primitives.clocks import sleep, timeout
from .versions import Range

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["LEASE", "NODES", "Announced", "NodeLease"]

logger = logging.getLogger("rtkit.hub")

T = TypeVar("T")

#: Seconds a node is taken for alive after it was last heard of, unless :class:`.Limits` says otherwise.
LEASE: Final = 10.0
#: The key under which all leases lie, by node id.
NODES: Final = "nodes"

# Shares of the lease:
_EVERY: Final = 0.3  # between renewals: two may fail before the lease is lost
_PATIENCE: Final = 0.3  # a command may take; longer is as good as away
_FRESH: Final = 0.1  # that what was read of the others is used again


class Announced(NamedTuple):
    """What a node's lease says."""

    incarnation: str
    reads: Range

    def encode(self) -> bytes:
        """As it lies in the broker."""
        return f"{self.incarnation} {self.reads.oldest}-{self.reads.newest}".encode()

    @classmethod
    def decode(cls, value: bytes) -> Announced:
        """From the broker. A release to come may say more; who says nothing that is understood reads the oldest."""
        incarnation, _, more = bytes(value).decode("ascii", "replace").partition(" ")
        oldest, _, newest = more.partition(" ")[0].partition("-")
        if _is_number(oldest) and _is_number(newest):
            return cls(incarnation, Range(int(oldest), int(newest)))
        return cls(incarnation, Range(1, 1))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 9


class NodeLease:
    """This node's lease. Nothing is held, and no task runs, until :meth:`hold` is called.

    :ivar seconds: how long it lasts after each renewal.
    :ivar incarnation: names this life of the node. It changes when the lease was lost.
    :ivar on_lost: plain functions, called when the lease had been lost and a new incarnation holds it again.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = engine.limits.lease
        self.incarnation = secrets.token_hex(8)
        self.on_lost: list[Callable[[], object]] = []
        self._keeper: asyncio.Task[Any] | None = None
        self._claiming = asyncio.Lock()
        self._released = False
        self._lost = False  # it had run out, and those who have to know were not told yet
        self._until: float | None = None  # our lease ends then, or later
        self._reached_since: float | None = None
        self._alive: Mapping[str, Announced] = {}
        self._alive_at: float | None = None
        self._looks = 0
        self._looking = asyncio.Lock()

    async def hold(self) -> None:
        """Hold the lease from now on, and until :meth:`release`; again is no more than once.

        Nothing happens with a broker that keeps no state. When the broker is away this does not fail: it goes on
        trying, and :attr:`held` says how it stands.

        Cancellation: safe; whoever calls next tries again.
        """
        broker = self._engine.broker
        if not self._wanted() or not keeps_state(broker):
            return
        async with self._claiming:
            if self._wanted():
                await self._claim(broker)
            if self._wanted():
                self._keeper = self._engine.task(self._keep, broker)

    def _wanted(self) -> bool:
        return self._keeper is None and not self._released

    @property
    def held(self) -> bool:
        """Whether the lease stands, as far as can be known here: never yes when it has run out."""
        return self._until is not None and self._engine.clock.monotonic() < self._until

    @property
    def may_reap(self) -> bool:
        """Whether a missing lease proves that its node is dead: the broker was within reach for a full lease."""
        since = self._reached_since
        return self.held and since is not None and self._engine.clock.monotonic() - since >= self.seconds

    async def holders(self) -> frozenset[str] | None:
        """The ids of the nodes that hold a lease, as of at most a second ago.

        :return: None when the broker keeps no state, or cannot be reached.
        """
        found = await self.incarnations()
        return None if found is None else frozenset(found)

    async def holds(self, node: str) -> bool | None:
        """Whether a node holds a lease; None as for :meth:`holders`.

        Who holds one was perhaps seen a second ago; that somebody does not is as of now, for a node may be younger
        than what was read last. Those who ask at the same time share a look.
        """
        if node in self._alive and self._is_fresh():
            return True
        looks = self._looks
        async with self._looking:
            if self._looks == looks and await self.announced() is None:
                return None
        return node in self._alive

    def _is_fresh(self) -> bool:
        return (
            self._alive_at is not None
            and self._engine.clock.monotonic() - self._alive_at < self.seconds * _FRESH
        )

    async def incarnations(self, *, fresh: bool = False) -> Mapping[str, str] | None:
        """The nodes that hold a lease, each with its incarnation; otherwise as :meth:`holders`.

        :param fresh: read them now.
        """
        found = await self.announced(fresh=fresh)
        return None if found is None else {node: each.incarnation for node, each in found.items()}

    async def announced(self, *, fresh: bool = True) -> Mapping[str, Announced] | None:
        """All that the leases say; otherwise as :meth:`incarnations`."""
        if not fresh and self._is_fresh():
            return self._alive
        broker = self._engine.broker
        if not keeps_state(broker):
            return None
        self._looks += 1
        now = self._engine.clock.monotonic()
        entries = await self._ask(lambda: broker.entries(NODES))
        if entries is None:
            self._engine.versions.not_seen()
            return None
        self._alive = {node: Announced.decode(value) for node, value in entries.items()}
        self._alive_at = now
        self._engine.versions.seen((node, each.reads) for node, each in self._alive.items())
        return self._alive

    async def release(self) -> None:
        """Let go: at the end of a run, when nothing lies in the broker any more that depends on it. Never fails."""
        self._released = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
        broker = self._engine.broker
        if self._until is not None and keeps_state(broker):
            self._until = None
            mine = self._mine()
            await self._ask(lambda: broker.remove(NODES, self._engine.node_id, expected=mine))

    # -- inside ------------------------------------------------------------------------------------

    async def _keep(self, broker: StateBroker) -> None:
        clock, random = self._engine.clock, self._engine.random
        while True:
            if self._reached_since is None:
                await sleep(clock, self._engine.backoff())
            else:
                await sleep(clock, self.seconds * _EVERY * (0.8 + random.random() / 5))
            try:
                await self._renew(broker)
                if self._engine.versions.open:
                    await self.announced()
            except Exception as error:
                # It would be dead to all others, and never know.
                self._reached_since = None
                logger.exception(
                    "the lease of node %s could not be renewed", self._engine.node_id, exc_info=error
                )

    def _mine(self) -> bytes:
        return Announced(self.incarnation, self._engine.versions.reads).encode()

    async def _claim(self, broker: StateBroker) -> None:
        """Write the lease, and tell who has to know that it had been lost."""
        began = self._engine.clock.monotonic()
        node, mine = self._engine.node_id, self._mine()
        if not await self._ask(lambda: broker.put(NODES, node, mine, ttl=self.seconds)):
            return
        self._until = began + self.seconds
        self._alive_at = None
        if self._lost:
            self._lost = False
            logger.warning("the lease of node %s had run out; it is held again", node)
            for tell in self.on_lost:
                tell()

    async def _renew(self, broker: StateBroker) -> None:
        if self._until is None:
            await self._claim(broker)
            return
        began = self._engine.clock.monotonic()
        node = self._engine.node_id
        gone = await self._ask(lambda: broker.renew(NODES, [node], ttl=self.seconds))
        if gone is None:
            return
        if node not in gone:
            self._until = began + self.seconds
            return
        # Cut off, asleep, or the broker has lost what it held: nobody's lease says anything for a while.
        self._reached_since = began
        self._until = None
        self._lost = True
        self.incarnation = secrets.token_hex(8)
        await self._claim(broker)

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """Run a command; None when the broker is away, of which note is taken."""
        try:
            async with timeout(self._engine.clock, self.seconds * _PATIENCE):
                result = await command()
        except (Unavailable, TimeoutError) as error:
            if self._reached_since is not None:
                logger.warning("the broker is away: %s", error)
            self._reached_since = None
            return None
        if self._reached_since is None:
            self._reached_since = self._engine.clock.monotonic()
        return result

    def __repr__(self) -> str:
        state = "held" if self.held else "released" if self._released else "not held"
        return f"<NodeLease {self._engine.node_id}/{self.incarnation}: {state}>"
