"""Who may not come back before a certain time, to the hub or to one room: the same on all nodes (A4).

The truth lies in the broker: a key with one field for each revocation and each ban, leased until it ends. Each change
is counted and published in the act that changes. A node reads all of it when it starts, before anybody is let in, and
follows from there: what comes next in the count is done; anything else is a reason to read again, and so is a count
that, when it is compared, is not where this node stands. It is compared

- whenever somebody authenticates or joins, those who come together sharing one look: so nobody who was revoked comes in
  after ``revoke`` has returned, whatever message was lost;
- every 30 s, as for rooms (H4): so nobody who was revoked stays in.

Whatever is read is done again: sessions that should not be there are closed. No clock is asked whether a revocation
still holds, but the broker, which counts its lease: a node whose clock is wrong lets nobody in too early or too late.

One field without a meaning is always there, so that the count is not forgotten when the last revocation has ended. If
it begins anew all the same, the broker has lost what it held, and the nodes write back what they know of. What was
lifted stays for a day, as lifted: or a node that stood still meanwhile would take that for a loss, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .. import codes
from ..brokers import StateBroker
from ..brokers.base import keeps_state
from ..errors import BadUnit, NotSupported, Unavailable
from ..position import Position
from ..primitives.clocks import sleep
from ..wire.envelope import Formats

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["KEY", "TOPIC", "Revocation", "Revocations"]

logger = logging.getLogger("rtkit.auth")

KEY: Final = "revocations:all"
#: It begins with NUL, so that it is no room's (W4).
TOPIC: Final = "\0revocations:all"

#: The field that holds the place, and the seconds it does, from the last start or change on.
_PLACE: Final = ""
_PLACE_LIFE: Final = 30 * 86400.0
#: Seconds a lease has at the most; ``until`` may be a word for "for ever".
_LONGEST: Final = 100 * 365 * 86400.0
#: Seconds for which it is said that a revocation was lifted, at the most.
_LIFTED: Final = 86400.0
#: Seconds for which what was read says that a revocation still holds. Who is refused has asked for a new look.
_FRESH: Final = 1.0
#: Of so many changes it is known how many sessions they closed here.
_COUNTED: Final = 256


class Revocation(msgspec.Struct, omit_defaults=True, frozen=True):
    """As it lies in the broker, and is published.

    :ivar room: that the user is banned from; empty for all there is.
    :ivar until: in seconds since the Unix epoch, by the clock of who revoked; 0: it is lifted.
    """

    v: int
    id: str
    user: str
    room: str = ""
    until: float = 0.0
    reason: str = ""

    @property
    def field(self) -> str:
        """Where it lies. A line feed is part of neither user nor room."""
        return f"{self.user}\n{self.room}"


_encode: Final = msgspec.json.Encoder().encode
_entries: Final = msgspec.json.Decoder(Revocation)


def _decode(formats: Formats, value: bytes) -> Revocation:
    return formats.decode("a revocation", value, _entries.decode)


class Revocations:
    """Those in force, as this node knows them. With a broker that keeps no state there are none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._entries: dict[str, Revocation] = {}
        self._lost: dict[str, Revocation] = {}  # by the broker; to be written back
        self._at = Position("", 0)
        self._read_at = -math.inf
        self._doubted = True
        self._repairing = False
        self._reading = asyncio.Lock()
        self._look_now: asyncio.Task[Unavailable | None] | None = None
        self._look_next: asyncio.Task[Unavailable | None] | None = None
        self._closed: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def _broker(self) -> StateBroker | None:
        broker = self._engine.broker
        return broker if keeps_state(broker) else None

    async def begin(self) -> None:
        """Read what is in force; the topic is subscribed by now, and nobody is let in before.

        :raises Unavailable: when the broker cannot be reached.
        """
        if (broker := self._broker) is not None:
            await broker.put(KEY, _PLACE, b"", ttl=_PLACE_LIFE)
            await self._read(broker)

    # -- revoking ----------------------------------------------------------------------------------

    async def revoke(self, user: str, until: float, *, room: str = "", reason: str = "") -> bytes:
        """Keep a user out until then, or lift what does if that time is over; what the nodes are to be told of it.

        :raises NotSupported: when the broker keeps no state.
        :raises Unavailable: when it cannot be reached; it may have been done all the same.
        """
        broker = self._broker
        if broker is None:
            raise NotSupported(
                f"{type(self._engine.broker).__name__} keeps no state; bans and revocations need a broker that does"
            )
        if not math.isfinite(until):
            raise ValueError(f"until= is a time in seconds since the Unix epoch, not {until!r}")
        left = until - self._engine.clock.time()
        holds = left > 0
        entry = Revocation(
            v=self._engine.versions.writes,
            id=secrets.token_hex(8),
            user=user,
            room=room,
            until=until if holds else 0.0,
            reason=reason,
        )
        value = _encode(entry)
        await broker.put(KEY, _PLACE, b"", ttl=_PLACE_LIFE)
        ttl = min(left, _LONGEST)
        if not holds:
            await self._confirm(broker)
            ttl = min(self._left(entry.field), _LIFTED)
        await broker.revise(
            KEY,
            {entry.field: value if ttl > 0 else None},
            ttl=max(ttl, 1.0),
            expected={},
            topic=TOPIC,
            payload=value,
        )
        return value

    def _left(self, field: str) -> float:
        """Seconds for which a revocation still holds, as far as is known here; 0 if there is none."""
        found = self._entries.get(field)
        return max(0.0, found.until - self._engine.clock.time()) if found is not None else 0.0

    def told(self, value: bytes) -> int:
        """By whoever revoked; returns how many sessions that has closed here, or taken out of the room."""
        found = _decode(self._engine.versions.formats, value)
        self._take(found)
        return self._closed.get(found.id, 0)

    # -- asking ------------------------------------------------------------------------------------

    def holds(self, user: str, room: str = "") -> bool:
        """Whether the user is to be kept out, as far as is known here."""
        return f"{user}\n{room}" in self._entries

    async def find(self, user: str, room: str = "") -> bool:
        """Whether the user is to be kept out now.

        :raises Unavailable: when the broker cannot be reached: then nobody knows.
        """
        broker = self._broker
        if broker is None:
            return False
        await self._confirm(broker)
        if self.holds(user, room) and self._engine.clock.monotonic() - self._read_at >= _FRESH:
            await self._read(broker)  # it may have ended
        return self.holds(user, room)

    async def _confirm(self, broker: StateBroker) -> None:
        """Know all that was in force when this was called. Whoever calls meanwhile waits for the look after."""
        if self._look_next is None:
            self._look_next = self._engine.task(self._look_after, broker, self._look_now)
        error = await asyncio.shield(self._look_next)
        if error is not None:
            raise error

    async def _look_after(self, broker: StateBroker, before: asyncio.Task[Any] | None) -> Unavailable | None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        self._look_now, self._look_next = self._look_next, None
        try:
            await self._look(broker)
        except Unavailable as error:
            return error
        return None

    async def _look(self, broker: StateBroker) -> None:
        """Compare the count, and read if it is not where this node stands."""
        top = (await broker.positions([KEY]))[0]
        if self._doubted or top != self._at:
            await self._read(broker)

    async def check(self) -> None:
        """Compare now and then (H4), forget what has ended, and write back what the broker has lost.

        :raises Unavailable: when it cannot be reached.
        """
        broker = self._broker
        if broker is None:
            return
        await self._look(broker)
        now = self._engine.clock.time()
        if any(each.until <= now for each in self._entries.values()):
            await self._read(broker)
        for entry in list(self._lost.values()):
            await self._write_back(broker, entry)

    # -- following ---------------------------------------------------------------------------------

    def deliver(self, payload: bytes, position: Position | None) -> None:
        """A change, from the broker."""
        if position is None:
            raise BadUnit("a revocation without a position")
        at = self._at
        if position.epoch == at.epoch and position.offset <= at.offset:
            return
        follows = position.offset == at.offset + 1 and (position.epoch == at.epoch or not at.epoch)
        if not follows:
            self.interrupted()
        try:
            found = _decode(self._engine.versions.formats, payload)
        except BadUnit:
            self.interrupted()  # whatever it was, it counts
            raise
        if follows:
            self._at = position
        self._take(found)

    def interrupted(self) -> None:
        """Something may have been missed: read, and do not give up while the broker is away."""
        self._doubted = True
        if not self._repairing and self._broker is not None:
            self._repairing = True
            self._engine.spawn(self._repair)

    async def _repair(self) -> None:
        try:
            while self._doubted and (broker := self._broker) is not None:
                try:
                    await self._read(broker)
                except Unavailable as error:
                    logger.warning("revocations cannot be read: %s", error)
                if self._doubted:
                    await sleep(self._engine.clock, self._engine.backoff())
        finally:
            self._repairing = False

    async def _read(self, broker: StateBroker) -> None:
        """Read all that is in force, and do it."""
        async with self._reading:
            self._doubted = False
            began = self._engine.clock.monotonic()
            try:
                found = await broker.revision(KEY)
            except BaseException:
                self._doubted = True
                raise
            self._absorb(found.position, found.entries)
            self._read_at = began

    def _absorb(self, position: Position, fields: Mapping[str, bytes]) -> None:
        before, at = self._entries, self._at
        if position.epoch == at.epoch and position.offset < at.offset:
            # It is older than what came meanwhile, and that is kept.
            self._doubted = True
            return
        entries: dict[str, Revocation] = {}
        for field, value in fields.items():
            if field != _PLACE:
                entries[field] = self._open(field, value)
        if at.epoch and position.epoch != at.epoch:
            now = self._engine.clock.time()
            lost = {
                field: each
                for field, each in before.items()
                if field not in entries and now < each.until < math.inf
            }
            if lost:
                logger.warning("the broker has lost %d revocations; they are written back", len(lost))
                self._lost.update(lost)
                self._engine.spawn(self._write_all_back)
        for field, each in list(self._lost.items()):
            if field in entries:
                del self._lost[field]  # another node was faster
            else:
                entries[field] = each
        self._entries, self._at = entries, position
        for field in [field for field, each in entries.items() if not each.until]:
            del entries[field]  # it was lifted: that is not known to be done, and not to be done again
        for entry in entries.values():
            self._enforce(entry)

    def _open(self, field: str, value: bytes) -> Revocation:
        """What lies in a field. What cannot be read keeps out whom it is about: better too many than too few."""
        try:
            return _decode(self._engine.versions.formats, value)
        except BadUnit as error:
            self._engine.versions.unreadable("revocations", error)
        user, _, room = field.partition("\n")
        return Revocation(v=0, id="", user=user, room=room, until=math.inf)

    def _take(self, entry: Revocation) -> None:
        """One is new, or comes again."""
        if entry.until:
            self._entries[entry.field] = entry
        else:
            self._entries.pop(entry.field, None)
            self._lost.pop(entry.field, None)
        self._enforce(entry)

    def _enforce(self, entry: Revocation) -> None:
        """Close whoever is here and should not be; or, if it is a ban, take them out of the room."""
        engine, number = self._engine, 0
        if not entry.until and entry.id in self._closed:
            return  # it was done; who is here now may be
        for session in list(engine.users.get(entry.user, ())):
            if entry.room:
                number += engine.control.remove(session, entry.room, codes.UNSUBSCRIBED, entry.reason)
            elif session.connection is not None:
                session.connection.close(codes.REVOKED, "revoked")
                number += 1
            else:
                engine.parking.end(session, "revoked")
                number += 1
        if number or not entry.until:
            self._closed[entry.id] = self._closed.get(entry.id, 0) + number
            if len(self._closed) > _COUNTED:
                self._closed.popitem(last=False)

    # -- what the broker has lost ------------------------------------------------------------------

    async def _write_all_back(self) -> None:
        try:
            if (broker := self._broker) is not None:
                for entry in list(self._lost.values()):
                    await self._write_back(broker, entry)
        except Unavailable as error:
            logger.warning("revocations could not be written back yet: %s", error)

    async def _write_back(self, broker: StateBroker, entry: Revocation) -> None:
        left = entry.until - self._engine.clock.time()
        if left > 0:
            value = _encode(msgspec.structs.replace(entry, v=self._engine.versions.writes))
            written = await broker.revise(
                KEY,
                {entry.field: value},
                ttl=min(left, _LONGEST),
                expected={entry.field: None},
                topic=TOPIC,
                payload=value,
            )
            if written is None:
                self.interrupted()  # somebody was faster: see what is there
        if self._lost.get(entry.field) is entry:
            del self._lost[entry.field]

    def __repr__(self) -> str:
        return f"<Revocations: {len(self._entries)} at {self._at}>"
