"""Typing in one run of a hub: of each client that types, when to tell what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import Raw

from ...errors import BadUnit
from ...hub.feature import RunningFeature
from ...wire import SubscribeResult
from .policy import Typing
from .typist import Typist

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import Member
    from ...hub.session import Session
    from ...primitives.deadlines import Deadline

__all__ = ["EVENT", "Running"]

#: The event of the signals that are about typing.
EVENT: Final = "typing"

_WORDS: Final = {b"true": True, b"null": True, b"false": False}
_TRUE: Final = Raw(b"true")
_FALSE: Final = Raw(b"false")


class _Watched:
    """A client that types in a room, or did a moment ago."""

    __slots__ = ("deadline", "room", "session", "typist")

    def __init__(self, room: str, session: Session[Any], expires: float) -> None:
        self.room = room
        self.session = session
        self.typist = Typist(expires)
        self.deadline: Deadline | None = None


class Running(RunningFeature):
    """See :class:`rtkit.hub.feature.RunningFeature`. Of who does not type nothing is kept (C5)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._watched: dict[
            tuple[str, str], _Watched
        ] = {}  # by room and client: it may come back as another member

    def joined(self, member: Member, result: SubscribeResult) -> None:
        """See :meth:`.RunningFeature.joined`."""
        connection = member.session.connection
        if connection is not None and connection.rt:
            result.typing = _policy(member).expires

    def signalled(self, member: Member, event: str, data: Raw) -> bool:
        """See :meth:`.RunningFeature.signalled`."""
        if event != EVENT:
            return False
        typing = _WORDS.get(bytes(data))
        if typing is None:
            raise BadUnit("typing is true or false")
        watched = self._watched.get(_key(member))
        if watched is None:
            watched = _Watched(member.room.name, member.session, _policy(member).expires)
            self._watched[_key(member)] = watched
        self._said(watched, typing)
        return True

    def spoke(self, member: Member) -> None:
        """See :meth:`.RunningFeature.spoke`."""
        self._stopped(member)

    def detached(self, member: Member) -> None:
        """See :meth:`.RunningFeature.detached`: nobody would say when it stops."""
        self._stopped(member)

    def _stopped(self, member: Member) -> None:
        watched = self._watched.get(_key(member))
        if watched is not None:
            self._said(watched, False)

    def _said(self, watched: _Watched, typing: bool) -> None:
        watched.typist.says(typing, self._engine.clock.monotonic())
        self._look(watched)

    def _look(self, watched: _Watched) -> None:
        """Tell what there is to be told, and have it looked at again when there may be more."""
        now = self._engine.clock.monotonic()
        word = watched.typist.tell(now)
        if word is not None:
            data = _TRUE if word else _FALSE
            self._engine.send_signal(watched.room, EVENT, data, watched.session)
        when = watched.typist.look_at(now)
        if when is None:
            self._watched.pop((watched.room, watched.session.id), None)
            if watched.deadline is not None:
                watched.deadline.cancel()
        elif watched.deadline is None:
            # Patient: while we stood still we have not heard those who went on saying it (F5).
            watched.deadline = self._engine.deadlines.at(when, self._look, watched, patient=True)
        else:
            watched.deadline.move(when)

    async def aclose(self) -> None:
        """See :meth:`.RunningFeature.aclose`."""
        self._watched.clear()  # what was not told any more expires at those who were

    def __repr__(self) -> str:
        return f"<Typing: {len(self._watched)} clients>"


def _key(member: Member) -> tuple[str, str]:
    return member.room.name, member.session.id


def _policy(member: Member) -> Typing:
    return cast("Typing", member.room.family.rooms.features["typing"])
