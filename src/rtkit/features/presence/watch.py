"""One room as the clients of this node watch it: a roster that follows the broker, and frames to those who asked (P2).

It exists while somebody on this node asked to be told. Otherwise nothing is subscribed to, and nothing is kept.

What a watcher gets: a snapshot, then every frame, in order. When a frame does not fit its outbox it is left out, and
as soon as there is room it gets a snapshot instead; so it may be late, and is never wrong. Rooms with more members
than are listed are only counted, for everybody, and begin with a snapshot again when they have become smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from ...brokers import StateBroker
from ...errors import BadUnit
from ...position import Position
from ...wire import ClientInfo, JoinPush, PresenceBody, PresentBody, Push, Reply, dumps
from .._following import Follower
from .._watching import RoomWatch
from .entries import decode_entry, decode_notice, key_of, topic_of
from .roster import Frame, Present, Roster

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import Member
    from . import Presence

__all__ = ["Watch", "decode_members"]


class Watch(RoomWatch):
    """A watched room."""

    def __init__(self, engine: Engine, broker: StateBroker, name: str, policy: Presence) -> None:
        super().__init__(engine, broker, "presence", name, key_of(name), topic_of(name))
        self._policy = policy
        self.roster = Roster()
        self._counting = False  # the last that was told is how many there are, not who
        self._shown: list[PresentBody] | None = None  # a snapshot, for all who come before the next frame

    # -- following the broker ----------------------------------------------------------------------

    @property
    def follower(self) -> Follower:
        """See :attr:`.RoomWatch.follower`."""
        return self.roster

    def _begin(self) -> None:
        self.roster = Roster()
        self._shown = None

    async def _read(self) -> None:
        roster = self.roster
        roster.reading()
        found = await self._broker.revision(self.key)
        roster.read(found.position, decode_members(self._engine, self.name, found.entries))
        self._shown = None

    def _announced(self, payload: bytes, position: Position) -> None:
        self.roster.announced(position, decode_notice(payload, self._engine.versions.formats))

    @property
    def _changed(self) -> bool:
        return self.roster.changed

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

    def _tell(self) -> bool:
        frame = self.roster.frame()
        self._shown = None
        dropped = self._send(frame)
        self._shown = None
        return dropped

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

    @property
    def listed(self) -> bool:
        """Whether it is told who is there, and not only how many."""
        return self.roster.clients <= self._policy.listed and self.roster.size <= self._policy.listed_size

    def _snapshot(self) -> PresenceBody:
        if not self.listed:
            return PresenceBody(v=self.roster.v, clients=self.roster.clients, users=self.roster.users)
        if self._shown is None:
            self._shown = [_body(each) for each in self.roster.snapshot()]
        return PresenceBody(v=self.roster.v, members=self._shown)

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
