"""Sessions that outlive their connection: parked for a while, and taken up again, here or on another node (C3, C4).

A session *parks* when its transport is lost without a goodbye. It is in no room's delivery any more (rooms keep the
messages), but nobody is told that it left. Within the grace its client may come back:

::

    connected ──lost──▶ parked ──the grace is over──▶ ended: left every room it did not come back to
        ▲                 │
        └──taken up here──┘──taken up elsewhere──▶ handed over: nothing is told, the other node has it now

Taking up is one compare-and-set of the session's generation in the broker; then the node that had it is asked to let
go. If that node is dead its silence is taken for consent; the generation alone decides who has the session, so a node
that was merely cut off, and comes back, lets go when its grace ends and it finds that a newer generation exists.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .. import codes
from ..brokers.base import keeps_state
from ..errors import BadUnit, Unavailable, UnknownRoom
from ..identity import Grant, Identity
from ..primitives.clocks import sleep, timeout
from .local import LocalRoom, Member
from .relay import Answered, Ask, Obeyed
from .resume import Claim, Owner, OwnerHead, may_take_up, write_token
from .secret import Secret
from .session import Session

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine

__all__ = ["Parking", "TakenUp"]

logger = logging.getLogger("rtkit.hub")

#: Seconds a resume token is good for; a connection that lasted longer cannot be taken up after it.
TOKEN_LIFE: Final = 24 * 3600.0
_TRIES: Final = 3
#: Ended sessions to be forgotten, at the most, while the broker is away; of more it forgets by itself, in a day.
_VOID: Final = 10_000
#: Seconds that the end of a run takes for that, at the most.
_END: Final = 2.0
#: Seconds the node that had a session has to answer. Its client waits for that.
_PATIENCE: Final = 1.0
#: Nodes to be asked later, at the most.
_UNASKED: Final = 1000

_owners = msgspec.msgpack.Decoder(Owner)
_heads = msgspec.msgpack.Decoder(OwnerHead)
_encode = msgspec.msgpack.Encoder().encode


class TakenUp:
    """A session that a connection goes on with.

    :ivar rooms: it was in, on the other node.
    :ivar removed: rooms it was taken out of there while it was away, each with the reason; likewise *stale*.
    """

    __slots__ = ("client", "generation", "removed", "rooms", "stale")

    def __init__(self, client: str, generation: int, answered: Answered | None = None) -> None:
        self.client = client
        self.generation = generation
        self.rooms = answered.rooms if answered is not None else []
        self.removed = answered.removed if answered is not None else {}
        self.stale = answered is not None and answered.stale


class Parking:
    """Parks the sessions of one engine, and hands them out again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._secret = Secret(engine)
        self._void: dict[str, None] = {}  # sessions that have ended, and whose owner the broker still keeps
        self._forgetting = False
        self._taking: dict[str, asyncio.Future[None]] = {}  # sessions that are just being taken up, by client
        #: Nodes that had sessions which are ours, and could not be asked what they were in, as the broker was away.
        self._unasked: dict[str, str] = {}
        #: What the nodes that took sessions up were answered, each with the number of its question.
        self._given: dict[str, tuple[str, int, Answered]] = {}
        self._left: dict[str, Session[Any]] = {}  # that ended because this node does
        self.handed_over_at = -math.inf
        """When another node took a session up last, by the clock."""
        engine.relay.obey["let go"] = self._let_go

    # -- tokens ------------------------------------------------------------------------------------

    async def token(self, session: Session[Any]) -> str:
        """A resume token for the session as it is now; empty when there can be none."""
        if self._engine.limits.grace is None:
            return ""
        try:
            secret = await self._secret.find()
        except Unavailable as error:
            logger.warning("no resume token: %s", error)
            return ""
        await self._engine.lease.hold()  # without it, others would take our sessions without asking
        expires_at = int(self._engine.clock.time() + TOKEN_LIFE)
        claim = Claim(session.id, session.identity.user, self._engine.node_id, session.generation, expires_at)
        return write_token(secret, claim, version=self._engine.versions.writes)

    # -- taking up ---------------------------------------------------------------------------------

    async def take_up(self, token: str, identity: Identity[Any]) -> TakenUp | None:
        """The session a token stands for; None when it has to be a new one.

        :raises Unavailable: when the broker cannot be reached.
        """
        if not token or self._engine.limits.grace is None:
            return None
        claim = await self._secret.read(token)
        if claim is None or claim.user != identity.user:
            return None
        while (earlier := self._taking.get(claim.client)) is not None:
            # Its client gave up waiting, and that session is not there yet. It will be, or not, within the broker's
            # patience and ours with the other node.
            await asyncio.wait((earlier,))
        taking = self._taking[claim.client] = self._engine.loop.create_future()
        try:
            return await self._take_up(claim)
        finally:
            del self._taking[claim.client]
            taking.set_result(None)  # who waits goes on in another turn, when the session has begun

    async def _take_up(self, claim: Claim) -> TakenUp | None:
        owner = await self._claim(claim)
        if owner is None:
            self._engine.counters.add("resumes", "stale")
            return None
        answered: Answered | None = None
        node, here = owner.node, claim.client in self._engine.sessions
        if node == self._engine.node_id and not here:
            node = self._unasked.pop(claim.client, node)
        if node == self._engine.node_id:
            if not here:
                await self._too_late(claim.client)
                return None
        else:
            # The session is ours already; the other node may only say what it was in, or that it had ended.
            request = Ask(do="let go", client=claim.client, number=owner.generation)
            self._note_unasked(claim.client, node)
            # Of a node that died with thousands of sessions one second is lost once, not by each of them (K4).
            patience = 0.0 if self._engine.relay.silent(node) else _PATIENCE
            answered = await self._engine.relay.ask(node, request, patience=patience, tries=1)
            self._unasked.pop(claim.client, None)
            if answered is not None and answered.status != 200:
                await self._too_late(claim.client)
                return None
            # Whatever an earlier life of it left here: it is elsewhere that it went on.
            if (stale := self._engine.sessions.get(claim.client)) is not None:
                self._hand_over(stale)
        self._engine.counters.add("resumes", "taken up")
        return TakenUp(claim.client, owner.generation, answered)

    async def holds(self, token: str, identity: Identity[Any]) -> bool:
        """Whether the session that a token stands for is on this node: whoever comes back to it is no newcomer (F1).

        :raises Unavailable: when the broker cannot be reached.
        """
        if not token or self._engine.limits.grace is None:
            return False
        claim = await self._secret.read(token)
        return claim is not None and claim.user == identity.user and claim.client in self._engine.sessions

    async def _claim(self, claim: Claim) -> Owner | None:
        """Take the session in the broker: who had it, with the generation that begins now; None for a stale claim."""
        broker = self._engine.broker
        if not keeps_state(broker):
            session = self._engine.sessions.get(claim.client)
            found = Owner(1, session.generation, self._engine.node_id) if session is not None else None
            generation = may_take_up(claim, found)
            if found is None or generation is None:
                return None
            return Owner(1, generation, found.node)
        key = _key(claim.client)
        for _ in range(_TRIES):
            before = (await broker.entries(key)).get("owner")
            try:
                found = None if before is None else self._read_owner(before)
            except BadUnit:
                return None  # as good as a stale claim: who wrote that knows more than we
            generation = may_take_up(claim, found)
            if generation is None:
                return None
            mine = _encode(Owner(self._engine.versions.writes, generation, self._engine.node_id))
            node = claim.node if found is None else found.node
            if node != self._engine.node_id:
                self._note_unasked(claim.client, node)  # it may be done although it fails
            if await broker.put(key, "owner", mine, ttl=TOKEN_LIFE, expected=before):
                return Owner(1, generation, node)
        return None

    def _note_unasked(self, client: str, node: str) -> None:
        """Have it known whom to ask, however this claim ends."""
        self._unasked[client] = node
        if len(self._unasked) > _UNASKED:
            del self._unasked[next(iter(self._unasked))]

    def _read_owner(self, stored: bytes) -> Owner:
        """What the broker keeps of a session.

        :raises BadUnit: if this release cannot read it; that is told and counted.
        """
        versions = self._engine.versions
        try:
            return versions.formats.decode("the owner of a session", stored, _owners.decode, _heads.decode)
        except BadUnit as error:
            versions.unreadable("sessions", error)
            raise

    async def _too_late(self, client: str) -> None:
        """Its owner says that it has ended."""
        self._engine.counters.add("resumes", "too late")
        await self._forget(client)

    async def _forget(self, client: str) -> None:
        """Take away what the broker keeps of a session that was ours, unless another node has it by now."""
        broker = self._engine.broker
        if not keeps_state(broker):
            return
        stored = (await broker.entries(_key(client))).get("owner")
        if stored is None:
            return
        with suppress(BadUnit):
            if self._read_owner(stored).node == self._engine.node_id:
                await broker.remove(_key(client), "owner", expected=stored)

    def _let_go(self, request: Ask) -> Obeyed:
        """Another node has taken the session up."""
        session = self._engine.sessions.get(request.client)
        if session is None:
            if (taking := self._taking.get(request.client)) is not None:
                return self._let_go_later(
                    request, taking
                )  # it is on its way here: a newer claim overtook that
            if (left := self._left.pop(request.client, None)) is not None:
                answer = Answered(status=200, removed=dict(left.removed or {}), stale=left.stale)
                return self._remember(request, answer)
            node, number, given = self._given.get(request.client, ("", 0, None))
            if given is None or node != request.node or number >= request.number:
                return Answered(status=410)
            return self._remember(request, given)  # it has not got the answer
        if session.generation >= request.number:
            return Answered(status=409)  # it came back here meanwhile, by a newer claim
        removed, stale = dict(session.removed or {}), session.stale
        session.taken_by = request.node
        self.handed_over_at = self._engine.clock.monotonic()
        answer = Answered(status=200, rooms=self._hand_over(session), removed=removed, stale=stale)
        return self._remember(request, answer)

    def _remember(self, request: Ask, answer: Answered) -> Answered:
        """Bear to be asked twice: whoever does not hear the answer claims anew. Returns it."""
        self._given[request.client] = request.node, request.number, msgspec.structs.replace(answer)
        if len(self._given) > _UNASKED:
            del self._given[next(iter(self._given))]
        return answer

    def _let_go_later(self, request: Ask, taking: asyncio.Future[None]) -> asyncio.Future[Answered]:
        """As soon as it is here, or is not coming."""
        later: asyncio.Future[Answered] = self._engine.loop.create_future()

        def again(_: object) -> None:
            if later.done():
                return
            following = self._taking.get(request.client)
            if following is not None and request.client not in self._engine.sessions:
                following.add_done_callback(again)
                return
            answer = self._let_go(request)
            assert isinstance(answer, Answered)
            later.set_result(answer)

        taking.add_done_callback(again)
        return later

    def _hand_over(self, session: Session[Any]) -> list[str]:
        """Forget a session that goes on elsewhere; returns the rooms it is in, as others see it."""
        rooms = list(dict.fromkeys([*session.rooms, *session.parked]))
        connection = self._detach(session)
        for name in session.parked:
            self._engine.moved(session, name)
        session.parked.clear()
        self._engine.end(session, "taken up on another node", elsewhere=True)
        if connection is not None:
            connection.close(codes.REPLACED, "replaced by a newer connection")
        return rooms

    def _detach(self, session: Session[Any]) -> Connection | None:
        """Take the session off its connection, which is returned, and its rooms out of delivery."""
        for member in list(session.rooms.values()):
            self._engine.detach(member)
            if member.entered or member.room.name not in session.parked:
                session.parked[member.room.name] = member
        session.parted = None
        connection, session.connection = session.connection, None
        if session.park_deadline is not None:
            session.park_deadline.cancel()
            session.park_deadline = None
        return connection

    def attach(self, session: Session[Any], taken: TakenUp) -> None:
        """Take the session off the connection it had. The rooms it was in have the grace to be joined again.

        The caller gives it the new one.
        """
        engine = self._engine
        before = self._detach(session)
        session.generation = taken.generation
        session.resumed = True
        session.stale = session.stale or taken.stale
        if taken.removed:
            session.removed = {**(session.removed or {}), **taken.removed}
        for name in taken.rooms:
            if name not in session.parked:
                try:
                    family, params = engine.lookup(name)
                except UnknownRoom:
                    continue  # of another release's; its entries there are that node's, which takes them away
                member = Member(session, LocalRoom(engine, name, family, params), Grant(), server_side=False)
                member.left = member.entered = True
                session.parked[name] = member
        if session.parked:
            self._watch(session, engine.limits.grace or 0.0)
        if before is not None:
            before.close(codes.REPLACED, "replaced by a newer connection")

    # -- parking -----------------------------------------------------------------------------------

    def park(self, session: Session[Any], reason: str, *, window: float) -> None:
        """Keep a session that has lost its connection.

        :param window: seconds after which the client was told to come back, at the most.
        """
        self._detach(session)
        self._engine.counters.add("parked")
        session.park_reason = reason
        self._watch(session, (self._engine.limits.grace or 0.0) + window)

    def _watch(self, session: Session[Any], seconds: float) -> None:
        when = self._engine.clock.monotonic() + seconds
        if session.park_deadline is None:
            session.park_deadline = self._engine.deadlines.at(when, self._over, session)
        else:
            session.park_deadline.move(when)

    def _over(self, session: Session[Any]) -> None:
        """The grace is over."""
        if session.connection is not None:
            # It is back, and has not come back to these rooms.
            self.depart(session)
        elif session.resumed or keeps_state(self._engine.broker):
            self._engine.spawn(self._end_unless_elsewhere, session)
        else:
            self._end(session)

    async def _end_unless_elsewhere(self, session: Session[Any]) -> None:
        """It may have been taken up by a node that could not tell us."""
        broker = self._engine.broker
        assert keeps_state(broker)
        taken_by = ""
        try:
            found = (await broker.entries(_key(session.id))).get("owner")
            owner = None if found is None else self._read_owner(found)
            elsewhere = owner is not None and owner.generation > session.generation
            taken_by = "" if owner is None else owner.node
        except Unavailable:
            elsewhere = False
        except BadUnit:
            elsewhere = True  # whoever wrote it has it
        if session.connection is not None or self._engine.sessions.get(session.id) is not session:
            return  # it is back, or was handed over
        if elsewhere:
            session.taken_by = taken_by
            self._hand_over(session)
            return
        self._end(session)

    def _end(self, session: Session[Any]) -> None:
        self.depart(session)
        self._engine.end(session, session.park_reason)

    def end(self, session: Session[Any], reason: str, *, left: bool = False) -> None:
        """End a session that is parked, before its time.

        :param left: it is this node that leaves: who comes back to it elsewhere is nobody new.
        """
        if left:
            self._left[session.id] = session
        else:
            self._left.pop(session.id, None)
        session.park_reason = reason
        self._detach(session)
        self._end(session)

    def ended(self, session: Session[Any]) -> None:
        """A session has ended here: what the broker keeps of it is void."""
        if session.generation and keeps_state(self._engine.broker) and len(self._void) < _VOID:
            self._void[session.id] = None
            if not self._forgetting:
                self._forgetting = True
                self._engine.spawn(self._forget_all)

    async def _forget_all(self) -> None:
        """One task for all that have ended, which does not give up while the broker is away."""
        try:
            while self._void:
                client = next(iter(self._void))
                try:
                    await self._forget(client)
                except Unavailable:
                    await sleep(self._engine.clock, self._engine.backoff())
                else:
                    self._void.pop(client, None)
        finally:
            self._forgetting = False

    async def aclose(self) -> None:
        """The run ends: what has ended with it is forgotten, if the broker is there to do that. Never fails."""
        with suppress(Unavailable, TimeoutError):
            async with timeout(self._engine.clock, _END):
                for client in list(self._void):
                    await self._forget(client)
                    self._void.pop(client, None)

    def depart(self, session: Session[Any], name: str | None = None) -> None:
        """The session has left rooms that it was parked in: one, or all of them."""
        names = list(session.parked) if name is None else [name]
        for each in names:
            member = session.parked.pop(each, None)
            if member is not None and member.entered:
                self._engine.departed(member)

    def end_all(self, reason: str) -> None:
        """The hub closes: nobody comes back here.

        Who does elsewhere has left all rooms, and is nobody new: it would not be either if this node had died.
        """
        for session in list(self._engine.sessions.values()):
            if session.connection is None:
                self.end(session, reason, left=True)

    def left(self, user: str) -> list[Session[Any]]:
        """A user's sessions that have ended because this node does."""
        return [session for session in self._left.values() if session.identity.user == user]


def _key(client: str) -> str:
    return f"session:{client}"
