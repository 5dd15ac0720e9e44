"""Signals in one run of a hub: of each client that sends some, what passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from msgspec import Raw

from ...hub.feature import RunningFeature
from ...wire import SubscribeResult
from .pace import Pace
from .policy import Signals

if TYPE_CHECKING:
    from ...hub.engine import Engine
    from ...hub.local import Member
    from ...hub.session import Session
    from ...primitives.deadlines import Deadline

__all__ = ["Running"]


class _Sender:
    """A client that sends signals to a room."""

    __slots__ = ("deadline", "pace", "room", "session")

    def __init__(self, room: str, session: Session[Any], rate: float) -> None:
        self.room = room
        self.session = session
        self.pace = Pace(rate)
        self.deadline: Deadline | None = None


class Running(RunningFeature):
    """See :class:`rtkit.hub.feature.RunningFeature`. Of who sends no signals nothing is kept (C5)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._senders: dict[
            tuple[str, str], _Sender
        ] = {}  # by room and client, so that to come anew brings nothing

    def joined(self, member: Member, result: SubscribeResult) -> None:
        """See :meth:`.RunningFeature.joined`."""
        connection = member.session.connection
        if connection is not None and connection.rt:
            result.signals = _policy(member).rate

    def signalled(self, member: Member, event: str, data: Raw) -> bool:
        """See :meth:`.RunningFeature.signalled`: what is held is taken care of."""
        sender = self._senders.get(_key(member))
        if sender is None:
            sender = self._senders[_key(member)] = _Sender(
                member.room.name, member.session, _policy(member).rate
            )
        passes = sender.pace.offer(event, data, self._engine.clock.monotonic())
        if not passes:
            self._engine.counters.add("limits", "signals")
            self._dropped(sender.pace.trim())
        self._look(sender)
        return not passes

    def detached(self, member: Member) -> None:
        """See :meth:`.RunningFeature.detached`: what is held ends with the member."""
        sender = self._senders.get(_key(member))
        if sender is not None:
            self._dropped(sender.pace.clear())
            self._look(sender)

    def _look(self, sender: _Sender) -> None:
        """Send what may pass by now, and come back when more may."""
        now = self._engine.clock.monotonic()
        for event, data in sender.pace.take(now):
            self._engine.send_signal(sender.room, event, data, sender.session)
        when = sender.pace.look_at(now)
        if when is None:
            self._senders.pop((sender.room, sender.session.id), None)
            if sender.deadline is not None:
                sender.deadline.cancel()
        elif sender.deadline is None:
            sender.deadline = self._engine.deadlines.at(when, self._look, sender)
        else:
            sender.deadline.move(when)

    def _dropped(self, count: int) -> None:
        if count:
            self._engine.counters.add("drops", "signal", count)

    async def aclose(self) -> None:
        """See :meth:`.RunningFeature.aclose`."""
        self._senders.clear()

    def __repr__(self) -> str:
        return f"<Signals: {len(self._senders)} clients>"


def _key(member: Member) -> tuple[str, str]:
    return member.room.name, member.session.id


def _policy(member: Member) -> Signals:
    return cast("Signals", member.room.family.rooms.features["signals"])
