"""Which version this node writes for others, while releases change under a running cluster (W5).

Nodes say in their lease what they read (:class:`~rtkit.wire.Formats`), and each writes the newest version that all of
them read. The rules:

- Down at once: as soon as a node is seen that reads less, or one says so.
- Up when all nodes have said for :data:`SETTLED`, without a break, that they read the newer. So a node that was cut off
  for a while is not forgotten, and an upgrade may be taken back in that time: until then nothing has been stored that
  the older release could not read.
- Who comes in with an older release than some node writes tells all of them, and lets nobody in before they have
  answered, or kept silent.

What a node cannot read all the same, because it was stored before the older release came back, is told in the log once
for each version, and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import BadUnit, Unavailable
from ..wire import Envelope, UnknownVersion
from .relay import Answered, Ask

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["SETTLED", "Range", "Versions"]

logger = logging.getLogger("rtkit.hub")

#: Seconds for which all nodes must have read the newer version before anything is written in it.
SETTLED: Final = 600.0
#: Versions that are told of in the log, each once. Who sends more of them is not an rtkit.
_TOLD: Final = 16


class Range(NamedTuple):
    """The versions that a node reads."""

    oldest: int
    newest: int


class Versions:
    """What this node writes now.

    :ivar writes: the version.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.formats = engine.hub.formats
        self.reads = Range(self.formats.oldest, self.formats.newest)
        self.writes = self.reads.oldest
        self._agreed_since: float | None = None
        self._told: set[int] = set()
        self._behind: set[str] = set()
        engine.relay.obey["versions"] = self._capped
        engine.lease.on_lost.append(self._returned)

    @property
    def open(self) -> bool:
        """Whether there is a choice, so that it matters what the others read."""
        return self.reads.oldest < self.reads.newest

    def seal(self, envelope: Envelope) -> bytes:
        """An envelope as bytes, for other nodes and for streams."""
        return self.formats.seal(envelope, self.writes)

    # -- what the others read ----------------------------------------------------------------------

    def seen(self, nodes: Iterable[tuple[str, Range]]) -> None:
        """These are all nodes, and what they read."""
        most = self.reads.newest
        behind: set[str] = set()
        for node, reads in nodes:
            most = min(most, reads.newest)
            if reads.newest < self.reads.oldest:
                behind.add(node)
                if node not in self._behind:
                    logger.error(
                        "node %s reads versions up to %d, and this release writes %d at the least: "
                        "upgrade one release after the other",
                        node,
                        reads.newest,
                        self.reads.oldest,
                    )
        self._behind = behind
        self._may_write(most)

    def not_seen(self) -> None:
        """Who is there could not be found out: to agree takes its time from the beginning."""
        self._agreed_since = None

    def _may_write(self, most: int) -> None:
        most = max(most, self.reads.oldest)
        now = self._engine.clock.monotonic()
        if most <= self.writes:
            self._agreed_since = None
            if most < self.writes:
                logger.info("a node of an older release has come: version %d is written", most)
                self.writes = most
        elif self._agreed_since is None:
            self._agreed_since = now
        elif now - self._agreed_since >= SETTLED:
            logger.info("all nodes read version %d: it is written from now on", most)
            self.writes = most
            self._agreed_since = None

    # -- coming in with an older release -----------------------------------------------------------

    async def tell(self) -> None:
        """Have nobody write what this node cannot read. Called when the lease is held, and before anybody is let in.

        :raises Unavailable: when the broker cannot be reached.
        """
        nodes = await self._engine.lease.announced()
        if nodes is None or all(each.reads.newest <= self.reads.newest for each in nodes.values()):
            return
        found = await self._engine.relay.ask_all(Ask(do="versions", number=self.reads.newest))
        if found.silent:
            logger.warning(
                "nodes %s do not answer; they may write what this older release cannot read",
                ", ".join(found.silent),
            )

    def _capped(self, request: Ask) -> Answered:
        self._may_write(min(request.number, self.writes))
        return Answered(status=200)

    def _returned(self) -> None:
        """The lease had been lost: for others, this node was not there."""
        self._engine.spawn(self._tell_again)

    async def _tell_again(self) -> None:
        try:
            await self.tell()
        except Unavailable as error:
            logger.warning("what this node reads could not be told: %s", error)

    # -- what cannot be read -----------------------------------------------------------------------

    def unreadable(self, where: str, error: BadUnit, *, stored: bool = True) -> None:
        """Something from the broker cannot be read: count it, and tell of it, of another version's only once.

        :param where: it was found.
        :param stored: or else it came as a message.
        """
        if not isinstance(error, UnknownVersion):
            self._engine.counters.add("foreign_entries" if stored else "foreign_payloads")
            logger.error("%s: %s", where, error)
            return
        self._engine.counters.add("unknown_versions")
        if error.version not in self._told and len(self._told) < _TOLD:
            self._told.add(error.version)
            logger.error("%s: %s. Others like it are counted, and not told of", where, error)

    def __repr__(self) -> str:
        return f"<Versions: reads {self.reads.oldest} to {self.reads.newest}, writes {self.writes}>"
