"""Presence in one run of a hub: what the hub calls, and one task that looks after everything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from ... import codes
from ...errors import BadUnit, InvalidMessage, Reject, Unavailable
from ...hub.answers import asked_for
from ...hub.feature import FeatureCall, RunningPresence
from ...messages import Member as Shown
from ...messages import PresenceStats
from ...primitives.clocks import sleep, timeout
from ...schema import encode_value
from ...wire import SubscribeResult, loads
from .._watching import Reads, Watches, check_positions, state_broker
from .entries import key_of
from .ledger import Ledger
from .policy import Presence
from .reaper import reap
from .roster import Present
from .watch import Watch, decode_members

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import Member
    from ...hub.session import Session
    from ...hub.table import Family

__all__ = ["Running"]

logger = logging.getLogger("rtkit.presence")

#: Between looks for dead nodes, as a share of the lease: 5 s of 10.
_CHECK: Final = 0.5
#: Seconds that the run's end waits for what is left to be written.
_END: Final = 2.0

_any: Final = msgspec.json.Decoder(Any)


class _Update(msgspec.Struct):
    """The data of the procedure ``rt.presence.update``."""

    channel: str
    meta: Raw | UnsetType = UNSET


_updates: Final = msgspec.json.Decoder(_Update)


class Running(RunningPresence):
    """See :class:`rtkit.hub.feature.RunningPresence`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._broker = state_broker(engine, "presence")
        self._ledger = Ledger(engine, self._broker)
        self._watches: Watches[Watch] = Watches(engine)
        self._read: Reads[dict[str, Present]] = Reads(engine, self._read_entries)
        self._tending = False
        self._closed = False
        self._calls: Mapping[str, FeatureCall] = {"rt.presence.update": self._update_call}

    @property
    def calls(self) -> Mapping[str, FeatureCall]:
        """See :meth:`.RunningFeature.calls`."""
        return self._calls

    # -- members -----------------------------------------------------------------------------------

    async def joining(self, member: Member, *, asked: Collection[str], base: bool) -> None:
        """See :meth:`.RunningFeature.joining`. To a client of the base that may not, nothing is said: as in the base,
        it just is not told of anybody."""
        wanted = "presence" in asked
        if member.left or not (wanted or base):
            return  # of one that has left already, nobody would say so again
        if "presence" not in member.grant.rights:
            if wanted:
                raise Reject("the right to see who is here is missing", code=codes.NOT_PERMITTED)
            return
        name = member.room.name
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches.add(Watch(self._engine, self._broker, name, _policy(member.room.family)))
        watch.coming.add(member)
        await watch.open()

    def joined(self, member: Member, result: SubscribeResult) -> None:
        """See :meth:`.RunningFeature.joined`."""
        if (watch := self._watches.awaiting(member)) is not None:
            result.presence = watch.add(member)

    def entered(self, member: Member) -> None:
        """See :meth:`.RunningFeature.entered`."""
        self._ledger.enter(member, self._first_meta(member))
        self._tend()

    def detached(self, member: Member) -> None:
        """See :meth:`.RunningFeature.detached`."""
        self._ledger.hasten(member.room.name, member.session.id)
        self._watches.remove(member)

    def departed(self, member: Member) -> None:
        """See :meth:`.RunningFeature.departed`."""
        self._ledger.depart(member)

    def moved(self, session: Session[Any], room: str) -> None:
        """See :meth:`.RunningFeature.moved`."""
        self._ledger.move(session.id, room, session.taken_by)

    def _first_meta(self, member: Member) -> bytes:
        policy = _policy(member.room.family)
        if policy.meta is None:
            return b"{}"
        try:
            return _checked(encode_value(policy.meta(member.session.identity)), policy)
        except Reject as error:
            logger.error("room %r: Presence(meta=…) made none: %s", member.room.name, error.message)
        except Exception as error:
            logger.exception("room %r: Presence(meta=…) failed", member.room.name, exc_info=error)
        return b"{}"

    # -- who is there ------------------------------------------------------------------------------

    async def members(self, name: str, family: Family, *, bounded: bool = False) -> list[Shown]:
        """See :meth:`.RunningPresence.members`."""
        found = await self._present(name)
        policy = _policy(family)
        if bounded and (
            len(found) > policy.listed or sum(each.size for each in found.values()) > policy.listed_size
        ):
            raise Reject(
                f"{len(found)} clients are too many to be listed; presence_stats counts them",
                code=codes.LIMIT_EXCEEDED,
            )
        return [
            Shown(each.user, each.client, cast("dict[str, Any]", _any.decode(each.meta)))
            for each in found.values()
        ]

    async def stats(self, name: str, family: Family) -> PresenceStats:
        """See :meth:`.RunningPresence.stats`."""
        found = await self._present(name)
        return PresenceStats(len(found), len({each.user for each in found.values()}))

    async def _present(self, name: str) -> dict[str, Present]:
        """All that are there, by client. Of this node's own clients it is not waited until that is written."""
        self._tend()
        watch = self._watches.get(name)
        if watch is not None and watch.current:
            found = dict(watch.roster.members)
        else:
            found = dict(await self._read(name))
        for client, mine in self._ledger.of(name).items():
            if mine.there:
                found[client] = self._ledger.shown(client, mine)
            elif mine.member is not None:
                found.pop(client, None)
        return found

    async def _read_entries(self, name: str) -> dict[str, Present]:
        entries = await self._broker.entries(key_of(name))
        return {each.client: each for each in decode_members(self._engine, name, entries)}

    # -- meta --------------------------------------------------------------------------------------

    def update(self, session: Session[Any], name: str, meta: Raw | UnsetType) -> None:
        """See :meth:`.RunningPresence.update`."""
        member = session.rooms.get(name)
        mine = self._ledger.find(name, session.id)
        if member is None or mine is None or not mine.there:
            raise Reject("not subscribed", code=codes.NOT_PERMITTED)
        policy = _policy(member.room.family)
        if not policy.updates or "presence" not in member.grant.rights:
            raise Reject("the right to say something about oneself here is missing", code=codes.NOT_PERMITTED)
        if isinstance(meta, UnsetType):
            raise BadUnit("meta is missing")
        self._ledger.update(name, session.id, _checked(bytes(meta), policy))

    async def _update_call(self, session: Session[Any], data: Raw | UnsetType) -> Raw | UnsetType:
        body = loads(b"{}" if isinstance(data, UnsetType) else bytes(data), _updates)
        family, _ = asked_for(self._engine, body.channel)
        if "presence" not in family.rooms.features:
            raise Reject("this room has no presence", code=codes.NOT_AVAILABLE)
        self.update(session, body.channel, body.meta)
        return UNSET

    # -- looking after it --------------------------------------------------------------------------

    def _tend(self) -> None:
        if not self._tending and not self._closed:
            self._tending = True
            self._engine.spawn(self._look_after)

    async def _look_after(self) -> None:
        """Every few seconds: dead nodes, missed notices, entries that are to be renewed."""
        engine = self._engine
        interval = engine.limits.position_check
        checked_at = engine.clock.monotonic()
        while True:
            try:
                await engine.lease.hold()
                await reap(engine, self._broker)
                await self._ledger.renew()
                await self._ledger.check_moved()
                if interval is not None and engine.clock.monotonic() - checked_at >= interval * 0.9:
                    checked_at = engine.clock.monotonic()
                    await self._ledger.check(await check_positions(self._broker, self._watches.current))
            except Unavailable as error:
                logger.debug("presence could not be looked after: %s", error)
            except Exception as error:
                logger.exception("presence could not be looked after", exc_info=error)
            await sleep(engine.clock, engine.lease.seconds * _CHECK * (0.8 + engine.random.random() / 5))

    async def aclose(self) -> None:
        """See :meth:`.RunningFeature.aclose`."""
        self._closed = True
        self._watches.end()
        try:
            async with timeout(self._engine.clock, _END):
                while writers := self._ledger.writers:
                    await asyncio.wait(writers)
                await self._ledger.leave()
        except (Unavailable, TimeoutError):
            logger.warning("the broker is away: other nodes will have to take this node's clients away")
        except Exception as error:
            logger.exception("presence could not end", exc_info=error)

    def __repr__(self) -> str:
        return f"<Presence {self._ledger!r}, {len(self._watches)} rooms watched>"


def _policy(family: Family) -> Presence:
    return cast("Presence", family.rooms.features["presence"])


def _checked(data: bytes, policy: Presence) -> bytes:
    """A meta as it is kept; raises Reject when it is no object, or too large."""
    try:
        found = loads(data, _any)
    except BadUnit as error:
        raise BadUnit(f"meta: {error.message}") from None
    if not isinstance(found, dict):
        raise BadUnit("meta: an object is wanted")
    try:
        meta = encode_value(found)
    except InvalidMessage as error:
        raise BadUnit(f"meta: {error}") from None
    if len(meta) > policy.max_meta:
        raise Reject(f"a meta has at most {policy.max_meta} bytes", code=codes.LIMIT_EXCEEDED)
    return meta
