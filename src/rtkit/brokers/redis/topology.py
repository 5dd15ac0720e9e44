"""Which servers there are, and which of them has what: one, one behind Sentinels, or a Cluster.

All three answer the same questions. A *tag* is what decides where a key lies (what is in its braces); a
:class:`Server` is a name for whoever has it now, and :meth:`Servers.connect` makes a connection to that one. Only a
primary will do: a replica may show what is old, and what it hears it hears late. So each new connection asks for
the server's role, and with Sentinels each attempt asks them anew where the primary is.
"""

from __future__ import annotations

import asyncio
import logging
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

from ...clock import Clock
from ...primitives.backoff import Backoff
from ...primitives.clocks import timeout
from .lines import Dialer, Line
from .refusals import describe

__all__ = [
    "Cluster",
    "Nowhere",
    "Sentinels",
    "Server",
    "Servers",
    "Standalone",
    "connect_patiently",
    "slot_of",
]

_log: Final = logging.getLogger("rtkit.brokers.redis")

_SLOTS: Final = 16_384

# Seconds that the other Sentinels get once one has answered: one that was cut off tells of the past.
_SECOND_OPINION: Final = 0.25


class Nowhere(Exception):
    """Nobody is known who could be asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """Whoever has something now. ``str()`` is its name for people, and holds no secret."""

    host: str
    port: int = 0
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.label or (f"{self.host}:{self.port}" if self.port else self.host)


class Servers(Protocol):
    """What is there to talk to."""

    #: A Cluster: several servers, and channels that lie on one of them.
    sharded: bool
    #: The number of the database; channels are the same in all of them.
    database: int
    #: Another number each time that something moved.
    version: int

    def server_of(self, tag: str) -> Server:
        """Who has what belongs to this tag.

        :raises Nowhere: when nobody has.
        """
        ...

    def primaries(self) -> Sequence[Server]:
        """All who have anything."""
        ...

    def tag_on(self, server: Server, seed: str) -> str | None:
        """A tag that begins with *seed* and lies on *server*; None when nothing lies there."""
        ...

    def moved(self, slot: int, host: str, port: int, by: Server) -> Server:
        """*by* said that another has the slot; remembered until the next refresh."""
        ...

    def at(self, host: str, port: int, by: Server) -> Server:
        """The server that *by* named."""
        ...

    async def refresh(self, clock: Clock) -> None:
        """Ask how the Cluster lies.

        :raises Nowhere: when nobody answers.
        """
        ...

    async def connect(self, server: Server, clock: Clock) -> Line:
        """A new connection to a primary. Takes as long as it takes; Cancellation: safe.

        :raises Exception: whatever was in the way; :func:`~.refusals.describe` words it.
        """
        ...


def slot_of(tag: str) -> int:
    """The slot of a Cluster that *tag* lies in."""
    return crc_hqx(tag.encode("utf-8", "surrogatepass"), 0) % _SLOTS


async def connect_patiently(
    servers: Servers,
    server: Server,
    purpose: str,
    *,
    clock: Clock,
    patience: float,
    backoff: Backoff,
    failed: Callable[[str], object],
    at_once: bool,
    nudged: asyncio.Event,
) -> Line:
    """Try to connect until it succeeds, each time for *patience* seconds; what is in the way is logged when it changes.

    Cancellation: safe.

    :param purpose: what for, in log lines.
    :param failed: called after each attempt in vain, with the reason.
    :param at_once: without a pause before the first attempt.
    :param nudged: set by somebody who knows that the server is there: ends the pause.
    """
    said = ""
    while True:
        if not at_once:
            nudged.clear()
            try:
                async with timeout(clock, backoff.next()):
                    await nudged.wait()
            except TimeoutError:
                pass
        at_once = False
        try:
            async with timeout(clock, patience):
                return await servers.connect(server, clock)
        except TimeoutError:
            why = f"no answer within {patience:g} s"
        except Nowhere as error:
            why = str(error)
        except Exception as error:
            why = describe(error)
        failed(why)
        if said != why:
            said = why
            _log.warning("redis: cannot connect to %s for %s: %s", server, purpose, why)


async def _open_primary(line: Line) -> Line:
    await line.open()
    if line.role not in ("", "master"):
        line.close()
        raise Nowhere(f"it is a {line.role}, and no primary")
    return line


class _One:
    """What is the same wherever there is one primary for everything."""

    sharded = False
    version = 0

    def __init__(self, server: Server, database: int) -> None:
        self.server = server
        self.database = database

    def server_of(self, tag: str) -> Server:
        return self.server

    def primaries(self) -> Sequence[Server]:
        return (self.server,)

    def tag_on(self, server: Server, seed: str) -> str | None:
        return seed

    def moved(self, slot: int, host: str, port: int, by: Server) -> Server:
        return self.server

    def at(self, host: str, port: int, by: Server) -> Server:
        return self.server

    async def refresh(self, clock: Clock) -> None:
        return


@final
class Standalone(_One):
    """One server, always at the same address; its name is looked up anew with each connection."""

    def __init__(self, dialer: Dialer) -> None:
        super().__init__(Server(*dialer.address), dialer.database)
        self._dialer = dialer

    async def connect(self, server: Server, clock: Clock) -> Line:
        return await _open_primary(self._dialer.line())

    def __repr__(self) -> str:
        return f"<Standalone {self.server}>"


@final
class Sentinels(_One):
    """The primary that Sentinels watch over.

    :param sentinels: each of them.
    :param service: what they call it.
    :param dialer: how to connect to it, wherever it is.
    """

    def __init__(self, sentinels: Sequence[Dialer], service: str, dialer: Dialer) -> None:
        super().__init__(Server(service, label=f"{service} (by Sentinel)"), dialer.database)
        self._sentinels = sentinels
        self._service = service
        self._dialer = dialer

    async def connect(self, server: Server, clock: Clock) -> Line:
        host, port = await self._find(clock)
        return await _open_primary(self._dialer.line(host, port))

    async def _find(self, clock: Clock) -> tuple[str, int]:
        """Where the primary is.

        All are asked at once, because any of them may be frozen, or cut off from the others and so believe in a primary
        that was replaced: of those who answer in time, the one with the latest configuration is right.
        """
        asked = {asyncio.ensure_future(self._ask(sentinel)) for sentinel in self._sentinels}
        pending = asked
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if any(task.exception() is None for task in done):
                    break
            if pending:
                try:
                    async with timeout(clock, _SECOND_OPINION):
                        _, pending = await asyncio.wait(pending)
                except TimeoutError:
                    pass
            answers = [task.result() for task in asked if task.done() and task.exception() is None]
            if answers:
                return max(answers)[1]
            reasons = {describe(error) for task in asked if task.done() and (error := task.exception())}
            raise Nowhere(f"no Sentinel knows where {self._service} is: {'; '.join(sorted(reasons))}")
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, sentinel: Dialer) -> tuple[int, tuple[str, int]]:
        """What one Sentinel says: the epoch of its configuration, and the address."""
        line = sentinel.line()
        try:
            await line.open()
            reply = await line.ask("SENTINEL", "MASTER", self._service)
        finally:
            line.close()
        if isinstance(reply, Exception):
            raise reply
        fields: dict[bytes, bytes] = dict(zip(reply[::2], reply[1::2], strict=False))
        address = fields[b"ip"].decode(), int(fields[b"port"])
        return int(fields.get(b"config-epoch", b"0")), address

    def __repr__(self) -> str:
        return f"<Sentinels {len(self._sentinels)} for {self._service}>"


@final
class Cluster:
    """A Cluster, found from some of its servers.

    :param seeds: addresses to begin with, and to come back to when nobody else answers.
    :param dialer: how to connect to any of them.
    """

    sharded = True
    database = 0

    def __init__(self, seeds: Sequence[tuple[str, int]], dialer: Dialer) -> None:
        self._seeds = [Server(host, port) for host, port in seeds]
        self._dialer = dialer
        self._owners: list[Server | None] = [None] * _SLOTS
        self._servers = {(each.host, each.port): each for each in self._seeds}
        self._primaries: list[Server] = []
        self._primaries_of = 0  # which version
        self._known: list[Server] = []  # all servers that were seen in the last picture, replicas too
        self._turn = 0
        self.version = 0

    def server_of(self, tag: str) -> Server:
        owner = self._owners[slot_of(tag)]
        if owner is None:
            raise Nowhere(f"no server of the Cluster has slot {slot_of(tag)}")
        return owner

    def primaries(self) -> Sequence[Server]:
        if self._primaries_of != self.version:
            self._primaries_of = self.version
            self._primaries = list(dict.fromkeys(owner for owner in self._owners if owner is not None))
        return self._primaries

    def tag_on(self, server: Server, seed: str) -> str | None:
        if server not in self.primaries():
            return None
        # One in as many tags as there are servers fits; a server with one slot in 16,384 takes a while.
        return next(
            (tag for n in range(50 * _SLOTS) if self._owners[slot_of(tag := f"{seed}-{n}")] == server), None
        )

    def moved(self, slot: int, host: str, port: int, by: Server) -> Server:
        server = self.at(host, port, by)
        if 0 <= slot < _SLOTS and self._owners[slot] != server:
            self._owners[slot] = server
            self.version += 1
        return server

    def at(self, host: str, port: int, by: Server) -> Server:
        host = host if host and host != "?" else by.host
        found = self._servers.get((host, port))
        if found is None:
            found = self._servers[host, port] = Server(host, port)
        return found

    async def refresh(self, clock: Clock) -> None:
        # Three are asked at a time and the first answer is taken; others next time, so that one with an old picture
        # does not keep us in it.
        known = self._known or self._seeds
        self._turn += 1
        start = self._turn % len(known)
        candidates = list(dict.fromkeys([*known[start:], *known[:start], *self._seeds]))
        reasons: set[str] = set()
        while candidates:
            asked, candidates = candidates[:3], candidates[3:]
            try:
                async with timeout(clock, 1.0):
                    if await self._first_picture(asked, reasons):
                        return
            except TimeoutError:
                reasons.add("no answer")
        raise Nowhere(f"no server of the Cluster tells how it lies: {'; '.join(sorted(reasons))}")

    async def _first_picture(self, servers: Sequence[Server], reasons: set[str]) -> bool:
        pending = {asyncio.ensure_future(self._ask(server)) for server in servers}
        asked = list(pending)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        self._take(*task.result())
                        return True
                    reasons.add(describe(error))
            return False
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(self, server: Server) -> tuple[list[Server | None], list[Server]]:
        """How one server sees the Cluster."""
        line = self._dialer.line(server.host, server.port)
        try:
            await line.open()
            reply = await line.ask("CLUSTER", "SLOTS")
        finally:
            line.close()
        if isinstance(reply, Exception):
            raise reply
        owners: list[Server | None] = [None] * _SLOTS
        known: dict[Server, None] = {}
        for first, last, *nodes in reply:
            servers = [self._node(node, server) for node in nodes]
            owners[first : last + 1] = [servers[0]] * (last + 1 - first)
            known |= dict.fromkeys(servers)
        if not known:
            raise Nowhere(f"{server} knows of no slots")
        return owners, list(known)

    def _node(self, node: Sequence[Any], by: Server) -> Server:
        host = node[0].decode() if node[0] else ""
        return self.at(host, int(node[1]), by)

    def _take(self, owners: list[Server | None], known: list[Server]) -> None:
        if owners != self._owners:
            self._owners = owners
            self.version += 1
        self._known = known
        # One object for each, so that comparing thousands of slots is quick.
        self._servers = {(each.host, each.port): each for each in (*known, *self._seeds)}

    async def connect(self, server: Server, clock: Clock) -> Line:
        return await _open_primary(self._dialer.line(server.host, server.port))

    def __repr__(self) -> str:
        return f"<Cluster of {len(self.primaries())} primaries>"
