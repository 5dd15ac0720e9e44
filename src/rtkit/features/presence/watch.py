"""One room as the clients of this node watch it: a roster that follows the broker, and frames to those who asked (P2).

It exists while somebody on this node asked to be told. Otherwise nothing is subscribed to, and nothing is kept.

What a watcher gets: a snapshot, then every frame, in order. When a frame does not fit its outbox it is left out, and
as soon as there is room it gets a snapshot instead; so it may be late, and is never wrong. Rooms with more members
than are listed are only counted, for everybody, and begin with a snapshot again when they have become smaller.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw

from ...brokers import StateBroker
from ...errors import BadUnit, Unavailable
from ...position import Position
from ...primitives.clocks import sleep
from ...wire import ClientInfo, JoinPush, PresenceBody, PresentBody, Push, Reply, dumps
from .entries import decode_entry, decode_notice, key_of, topic_of
from .roster import Frame, Present, Roster

if TYPE_CHECKING:
    from ...hub.connection import Connection
    from ...hub.engine import Engine
    from ...hub.local import Member
    from ...primitives.deadlines import Deadline
    from . import Presence

__all__ = ["Watch", "decode_members"]

logger = logging.getLogger("rtkit.presence")

#: Frames of a room in any second, at the most (P2).
_FRAMES: Final = 2
_SECOND: Final = 1.0


class Watch:
    """A watched room.

    :ivar watchers: who is told, and whether it needs a snapshot first.
    :ivar coming: who will be a watcher in a moment, so that the watch is kept.
    """

    def __init__(self, engine: Engine, broker: StateBroker, name: str, policy: Presence) -> None:
        self._engine = engine
        self._broker = broker
        self._policy = policy
        self.name = name
        self.key = key_of(name)
        self.topic = topic_of(name)
        self.roster = Roster()
        self.watchers: dict[Member, bool] = {}
        self.coming: set[Member] = set()
        self._subscribed = False
        self._gate = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._repairing = False
        self._sent: deque[float] = deque(maxlen=_FRAMES)  # when the last frames left
        self._timer: Deadline | None = None
        self._counting = False  # the last that was told is how many there are, not who

    @property
    def wanted(self) -> bool:
        """Whether anybody watches, or is about to."""
        return bool(self.watchers or self.coming)

    @property
    def current(self) -> bool:
        """Whether the roster is known, and nothing is known to be missing."""
        return self._subscribed and not self.roster.wants_read

    # -- following the broker ----------------------------------------------------------------------

    async def open(self) -> None:
        """Follow the room, and know who is in it.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._gate:
            if not self._subscribed:
                self.roster = Roster()
                await self._broker.subscribe([self.topic])
                self._subscribed = True
        await self._repair()

    async def close(self) -> bool:
        """Let go, unless somebody has come meanwhile; whether it did.

        :raises Unavailable: when the broker cannot be reached.
        """
        async with self._gate:
            if self.wanted:
                return False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._subscribed:
                self._subscribed = False
                await self._broker.unsubscribe([self.topic])
            return True

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """A notice."""
        if position is None:
            raise BadUnit("a presence notice without a position")
        try:
            changes = decode_notice(payload, self._engine.versions.formats)
        except BadUnit:
            self.roster.wants_read = True  # whatever it was, it counts
            self.repair_soon()
            raise
        self.roster.announced(position, changes)
        if self.roster.wants_read:
            self.repair_soon()
        elif self.roster.changed:
            self._flush()

    def interrupted(self) -> None:
        """Something may have been missed."""
        self.roster.wants_read = True
        self.repair_soon()

    def checked(self, position: Position) -> None:
        """The position check has found the room there."""
        if self.roster.position is not None and self.roster.differs(position):
            self.interrupted()

    def repair_soon(self) -> None:
        """Read in the background, and do not give up while the broker is away."""
        if not self._repairing and self.wanted:
            self._repairing = True
            self._engine.spawn(self._repair_until_done)

    async def _repair_until_done(self) -> None:
        try:
            while self.wanted:
                try:
                    await self.open()
                    return
                except Unavailable as error:
                    logger.warning("room %r: presence cannot be read: %s", self.name, error)
                except Exception as error:
                    logger.exception("room %r: presence cannot be read", self.name, exc_info=error)
                await sleep(self._engine.clock, self._engine.backoff())
        finally:
            self._repairing = False

    async def _repair(self) -> None:
        async with self._reading:
            while self._subscribed and self.roster.wants_read:
                roster = self.roster
                roster.reading()
                found = await self._broker.revision(self.key)
                roster.read(found.position, decode_members(self._engine, self.name, found.entries))
        if self.roster.changed:
            self._flush()

    # -- telling those who watch -------------------------------------------------------------------

    def add(self, member: Member) -> PresenceBody | None:
        """The member watches from now on; the snapshot that its reply begins with, if it is one of ours."""
        self.coming.discard(member)
        self.watchers[member] = False
        connection = member.session.connection
        if connection is None or not connection.rt:
            return None
        self._counting = self._counting or not self.listed
        return self._snapshot()

    def remove(self, member: Member) -> None:
        """The member watches no more."""
        self.coming.discard(member)
        self.watchers.pop(member, None)

    def _flush(self) -> None:
        """Send what has changed, now or as soon as a frame may be sent."""
        now = self._engine.clock.monotonic()
        if len(self._sent) == _FRAMES and now < self._sent[0] + _SECOND:
            self._flush_at(self._sent[0] + _SECOND)
            return
        frame = self.roster.frame()
        if frame is None and not any(self.watchers.values()):
            return
        self._sent.append(now)
        if self._send(frame):
            self._flush_at(now + _SECOND)

    def _flush_at(self, when: float) -> None:
        if self._timer is None:
            self._timer = self._engine.deadlines.at(when, self._due)
        else:
            self._timer.move(when)

    def _due(self) -> None:
        self._timer = None
        if self.wanted:
            self._flush()

    def _send(self, frame: Frame | None) -> bool:
        """Send a frame; whether somebody had no room for it."""
        listed, counted = self.listed, self._counting
        self._counting = not listed
        # Who was told only how many there are needs a list; so does everybody if that is shorter than the changes.
        to_all = counted or not listed or (frame is not None and frame.size > self._policy.listed_size)
        dropped = False
        whole: bytes | None = None
        part: bytes | None = None
        base: list[bytes] | None = None
        for member, stale in self.watchers.items():
            connection = member.session.connection
            if connection is None or "presence" not in member.grant.rights:
                self.watchers[member] = True
            elif not connection.rt:
                self.watchers[member] = False
                if frame is not None and listed:
                    base = _base_pushes(self.name, frame) if base is None else base
                    for unit in base:
                        self._push(connection, unit)
            elif stale or (frame is not None and to_all):
                whole = self._unit(self._snapshot()) if whole is None else whole
                self.watchers[member] = not self._push(connection, whole)
                dropped = dropped or self.watchers[member]
            elif frame is not None:
                part = self._unit(_changes(frame)) if part is None else part
                self.watchers[member] = not self._push(connection, part)
                dropped = dropped or self.watchers[member]
        return dropped

    def _push(self, connection: Connection, unit: bytes) -> bool:
        """Queue a frame for one member; False when there was no room for it (D1)."""
        spill = connection.push((self.name, "presence"), unit, "drop_newest")
        if spill is None or spill.queued:
            return True
        self._engine.counters.add("drops", "presence")
        return False

    @property
    def listed(self) -> bool:
        """Whether it is told who is there, and not only how many."""
        return self.roster.clients <= self._policy.listed and self.roster.size <= self._policy.listed_size

    def _snapshot(self) -> PresenceBody:
        if not self.listed:
            return PresenceBody(v=self.roster.v, clients=self.roster.clients, users=self.roster.users)
        return PresenceBody(v=self.roster.v, members=[_body(each) for each in self.roster.snapshot()])

    def _unit(self, body: PresenceBody) -> bytes:
        return dumps(Reply(push=Push(channel=self.name, presence=body)))

    def __repr__(self) -> str:
        return f"<Watch {self.name!r}: {self.roster!r}, {len(self.watchers)} watchers>"


def decode_members(engine: Engine, name: str, entries: Mapping[str, bytes]) -> list[Present]:
    """A room's entries, but for those that no rtkit has written."""
    members: list[Present] = []
    for client, value in entries.items():
        try:
            members.append(decode_entry(client, value, engine.versions.formats))
        except BadUnit as error:
            engine.versions.unreadable(f"room {name!r}: presence of {client!r}", error)
    return members


def _changes(frame: Frame) -> PresenceBody:
    return PresenceBody(
        v=frame.v,
        joins=[_body(each) for each in frame.joins],
        leaves=[PresentBody(each.user, each.client) for each in frame.leaves],
        updates=[_body(each) for each in frame.updates],
    )


def _body(present: Present) -> PresentBody:
    return PresentBody(present.user, present.client, UNSET if present.meta == b"{}" else Raw(present.meta))


def _base_pushes(name: str, frame: Frame) -> list[bytes]:
    """As the base tells of it: one push for each; it knows no updates."""

    def info(present: Present) -> ClientInfo:
        body = _body(present)
        return ClientInfo(body.user, body.client, body.meta)

    joins = [Push(channel=name, join=JoinPush(info(each))) for each in frame.joins]
    leaves = [Push(channel=name, leave=JoinPush(info(each))) for each in frame.leaves]
    return [dumps(Reply(push=push)) for push in (*joins, *leaves)]
