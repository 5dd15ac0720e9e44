"""What is done to a user on all nodes at once: closed, refreshed, removed from a room, counted (A4, T2).

Each is a request that every node answers with the number of sessions it was done to. Sessions that are parked count
(C3): they are in no delivery, but may come back, and must not come back as if nothing had been said. A session that is
on its way from one node to another at that moment is on neither: the node that takes it up notes what is asked of its
user meanwhile, and does it then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import Unavailable
from .relay import Answered, Ask, Everybody

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session

__all__ = ["Control", "NodeInfo", "Nodes", "Passing", "Reached"]

logger = logging.getLogger("rtkit.hub")

#: Requests about one user that are noted while a session of theirs is on its way; it takes a second or so.
_NOTED: Final = 64


@dataclass(frozen=True, slots=True)
class Reached:
    """On which nodes something was done, and to how many sessions.

    :param nodes: the nodes that answered, each with the number of sessions.
    :param silent: nodes that should have answered and did not, within 4 s, or could not do it. They may have done it
        all the same. A node that has just died is among them until its lease has run out, which takes 10 s.
    :param known: False when the broker keeps no state: nobody knows then which nodes there are. They were all told, and
        only what became of it on this one is known.
    """

    nodes: Mapping[str, int]
    silent: tuple[str, ...] = ()
    known: bool = True

    @property
    def sessions(self) -> int:
        """To how many it was done on all nodes that answered."""
        return sum(self.nodes.values())

    @property
    def complete(self) -> bool:
        """Whether it is certain that it was done wherever it had to be."""
        return self.known and not self.silent

    def check(self) -> None:
        """:raises Unavailable: unless it is :attr:`complete`."""
        if self.silent:
            raise Unavailable(f"nodes {', '.join(self.silent)} do not answer; do it again")
        if not self.known:
            raise Unavailable(
                "the broker keeps no state, so that nobody knows whether all nodes have heard of it"
            )


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as it is now."""

    id: str
    version: str
    sessions: int
    users: int
    rooms: int
    members: int
    uptime: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes.

    :param nodes: those that answered, in the order of their ids.
    :param silent: likewise those that did not; see :class:`Reached`, for *known* too.
    """

    nodes: Sequence[NodeInfo]
    silent: tuple[str, ...] = ()
    known: bool = True


_encode: Final = msgspec.msgpack.Encoder().encode
_infos: Final = msgspec.msgpack.Decoder(NodeInfo)


@dataclass(slots=True, eq=False)
class Passing:
    """A session that is about to be taken up here, or begun: what is asked of its user meanwhile is noted."""

    control: Control
    user: str
    missed: list[Ask] = field(default_factory=list[Ask])

    def arrived(self, session: Session[Any]) -> None:
        """It is here: do what was asked. Plain."""
        for request in self.missed:
            if request.client in ("", session.id):
                self.control.do_to(request, session)

    def close(self) -> None:
        """It is here, or will not come. Idempotent."""
        self.control.passing.pop(self, None)


class Control:
    """Does to users what this and other nodes ask.

    :ivar passing: sessions that are on their way here.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.passing: dict[Passing, None] = {}
        self._acts: dict[str, Callable[[Session[Any], Ask], bool]] = {
            "close": self._close,
            "refresh": self._refresh,
            "remove": self._remove,
            "where": self._where,
        }
        obey = engine.relay.obey
        for do in self._acts:
            obey[do] = self._obey
        obey["revoke"] = self._revoke
        obey["check"] = self._check
        obey["info"] = self._info

    # -- asking ------------------------------------------------------------------------------------

    async def act(self, request: Ask) -> Reached:
        """Have it done on all nodes.

        :raises BrokerUnavailable: when they cannot be asked: nothing was done.
        """
        done, silent, known = await self._ask(request)
        return Reached({node: each.number for node, each in done.items()}, silent, known)

    async def nodes(self) -> Nodes:
        """All nodes, as they are now; raises as :meth:`act`."""
        done, silent, known = await self._ask(Ask(do="info"))
        return Nodes([_infos.decode(each.body) for each in done.values()], silent, known)

    async def _ask(self, request: Ask) -> Everybody:
        """What the nodes say that have done it, in order; those that could not count as silent."""
        answers, silent, known = await self._engine.relay.ask_all(request)
        failed = [node for node, each in answers.items() if each.status != 200]
        if silent or failed:
            silent = tuple(sorted([*silent, *failed]))
            self._engine.counters.add("silent", amount=len(silent))
            logger.warning("%s: nodes %s did not answer, or could not do it", request.do, ", ".join(silent))
        done = {node: each for node, each in sorted(answers.items()) if each.status == 200}
        return Everybody(done, silent, known)

    async def check_everywhere(self, room: str) -> None:
        """Have all nodes look where a room's stream stands. A node that does not hear of it looks every 30 s (H4)."""
        await self._engine.relay.tell_all(Ask(do="check", room=room))

    # -- obeying -----------------------------------------------------------------------------------

    def expect(self, user: str) -> Passing:
        """A session of theirs is on its way here; the caller closes what is returned."""
        passing = Passing(self, user)
        self.passing[passing] = None
        return passing

    def do_to(self, request: Ask, session: Session[Any]) -> bool:
        """Do to one session what is asked of its user; whether it could be."""
        if request.do == "remove" and request.body:
            return False  # a ban: whoever is let in has been asked about
        act = self._acts.get(request.do)
        return act is not None and act(session, request)

    def _obey(self, request: Ask) -> Answered:
        if request.body:  # with a ban, which counts whom it has put out
            return self._revoke(request)
        user = request.user or ""
        for passing in self.passing:
            if passing.user == user and len(passing.missed) < _NOTED:
                passing.missed.append(request)
        act, number = self._acts[request.do], 0
        sessions = list(self._engine.users.get(user, ()))
        if request.do in ("close", "refresh"):
            sessions += self._engine.parking.left(user)
        for session in sessions:
            if request.client in ("", session.id) and act(session, request):
                number += 1
        return Answered(status=200, number=number)

    def _revoke(self, request: Ask) -> Answered:
        return Answered(status=200, number=self._engine.revocations.told(request.body))

    def _close(self, session: Session[Any], request: Ask) -> bool:
        if session.connection is None:
            self._engine.parking.end(session, request.reason)
        else:
            session.connection.close(request.code, request.reason)
        return True

    def _refresh(self, session: Session[Any], request: Ask) -> bool:
        if session.connection is None:
            session.stale = True  # asked as soon as it is back
        else:
            self._engine.ask_to_refresh(session, session.connection)
        return True

    def _remove(self, session: Session[Any], request: Ask) -> bool:
        return self.remove(session, request.room, request.code, request.reason)

    def remove(self, session: Session[Any], room: str, code: int, reason: str) -> bool:
        """Take a session out of a room, also if it is parked; whether it was there."""
        engine = self._engine
        member, parked = session.rooms.get(room), room in session.parked
        if member is not None:
            engine.unsubscribe(member, code, reason)
        if parked:
            # The others are told now. Its client is told when it comes back, in the place of coming in.
            engine.parking.depart(session, room)
            if member is None:
                session.removed = {**(session.removed or {}), room: reason}
        return parked or member is not None

    def _where(self, session: Session[Any], request: Ask) -> bool:
        return not request.room or request.room in session.rooms or request.room in session.parked

    def _check(self, request: Ask) -> Answered:
        room = self._engine.rooms.get(request.room)
        if room is not None:
            room.interrupted()
        return Answered(status=200)

    def _info(self, request: Ask) -> Answered:
        engine = self._engine
        info = NodeInfo(
            id=engine.node_id,
            version=engine.version,
            sessions=len(engine.sessions),
            users=len(engine.users),
            rooms=len(engine.rooms),
            members=sum(len(session.rooms) for session in engine.sessions.values()),
            uptime=engine.clock.monotonic() - engine.began_at,
        )
        return Answered(status=200, body=_encode(info))

    def __repr__(self) -> str:
        return f"<Control {self._engine.node_id}, {len(self.passing)} sessions expected>"
