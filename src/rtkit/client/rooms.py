"""All rooms of a client: joining, joining again, and what each push means for which. Plain, no tasks.

The decisions about one room are in :mod:`rtkit.client.roomstate`; here they become commands. A room that has
to be joined again does so at once the first time, and then after growing delays, until it was left in
peace for a while: neither a server that keeps throwing out nor one that keeps losing is hammered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from .. import codes
from ..errors import NotRunning, UsageError
from ..primitives.backoff import Backoff
from ..wire import (
    Command,
    Push,
    Reply,
    SubRequest,
    SubscribePush,
    SubscribeResult,
    Unsubscribe,
)
from .calls import Calls, call_error, window_of
from .commands import NO_ROOM, Outbox, give_up
from .membership import Membership
from .roomstate import Do, Phase, RoomState
from .talk import Talk

__all__ = ["Membership", "Rooms"]

#: Former client ids to know our own messages by; older ones are history.
_OWN_IDS: Final = 64


def _ignore() -> None:
    pass


class Rooms:
    """The rooms of one client.

    :param new_backoff: makes the back-off of a room.
    :param max_queue: of rooms that the server puts us in.
    """

    def __init__(
        self, calls: Calls, outbox: Outbox, *, new_backoff: Callable[[], Backoff], max_queue: int = 1024
    ) -> None:
        self.by_name: dict[str, Membership] = {}
        self.own: dict[str, None] = {}
        """The latest client ids we have had, for ``echo=False``."""
        self.client = ""
        """The one of now."""
        self.online = False
        self.new_backoff = new_backoff
        self._max_queue = max_queue
        self._calls = calls
        self._outbox = outbox
        self._retries: dict[Membership, float] = {}
        self.talk = Talk(calls)

    # -- what the application does -------------------------------------------------------------------

    def join(self, state: RoomState, now: float) -> Membership:
        """Join a room, or take over the one the server has put us in.

        :raises UsageError: when it is joined already.
        """
        found = self.by_name.get(state.channel)
        if found is not None:
            if found.bound:
                raise UsageError(
                    f"room {state.channel!r} is joined already; leave it first, or share the object"
                )
            return self._bind(found, state, now)
        membership = self._add(state, bound=True)
        if self.online:
            self._ask(membership)
        return membership

    def _add(self, state: RoomState, *, bound: bool) -> Membership:
        membership = self.by_name[state.channel] = Membership(state, self.new_backoff(), bound=bound)
        state.features.client = self.client
        return membership

    def _bind(self, found: Membership, wish: RoomState, now: float) -> Membership:
        found.bound = True
        state = found.state
        state.echo, state.data, state.queue.limit = wish.echo, wish.data, wish.queue.limit
        more = any(wish.features.asked)
        if more:
            state.features.adopt(wish.features)
        if wish.at is not None or wish.rewind or wish.has_data:
            # It wants a join of its own making; what was gathered comes again, or is not wanted.
            state.rebase(wish.at, wish.rewind)
            if state.phase in (Phase.IN, Phase.MUTED):
                self._do(found, Do.REJOIN, now)
            elif state.phase is Phase.PAUSED and self.online:
                self._ask(found)
        elif more and state.phase is Phase.IN:
            self._do(found, Do.REJOIN, now)
        return found

    def leave(self, membership: Membership, answered: Callable[[], None]) -> bool:
        """Leave a room for good, at once.

        :param answered: called when the server has confirmed it, or is gone.
        :return: False when there is nothing to wait for.
        """
        if self.by_name.get(membership.channel) is not membership:
            return False
        was = membership.state.phase
        for command in self.talk.last_words(membership):
            self._calls.ask(command, lambda reply, now: None)
        self._remove(membership, None, NotRunning(f"room {membership.channel!r} was left"), discard=True)
        if not self.online or was not in (Phase.ASKED, Phase.IN, Phase.MUTED):
            return False
        self._unsubscribe(membership.channel, answered)
        return True

    def drained(self, membership: Membership) -> None:
        """The application took something: maybe the room can go on."""
        state = membership.state
        if state.features.receipts is not None and (position := state.delivered) is not None:
            state.features.receipts.want("delivered", position)
            self.talk.look(membership)
        if not state.resumable or not self.online or membership in self._retries:
            return
        if state.phase is Phase.MUTED:
            self._unsubscribe(membership.channel)
        self._ask(membership)
        self._gate(membership)

    def admit(self, lane: str) -> None:
        """A command waits for this room: if it was left because the queue is full, go in, deaf."""
        membership = self.by_name.get(lane)
        if membership is None or not self.online or membership in self._retries:
            return
        if membership.state.phase is Phase.PAUSED:
            self._enter(membership)

    def disown(self, lane: str) -> None:
        """If the room has gone meanwhile, give up what waits for it: it will never be its turn."""
        if lane != NO_ROOM and lane not in self.by_name:
            for sending in self._outbox.abandon(lane):
                give_up(sending, NotRunning(f"room {lane!r} was left"))

    # -- connections come and go -----------------------------------------------------------------------

    def know_own(self, client: str) -> None:
        """The server gave us a client id."""
        self.client = client
        self.own.pop(client, None)
        self.own[client] = None
        if len(self.own) > _OWN_IDS:
            del self.own[next(iter(self.own))]

    def standings(self) -> dict[str, SubRequest]:
        """Where the server's own rooms stand, for the connect command."""
        return {
            name: m.state.standing()
            for name, m in self.by_name.items()
            if m.server_side and m.state.can_stand
        }

    def begin(
        self,
        subs: Mapping[str, SubscribeResult],
        asked: Mapping[str, SubRequest],
        now: float,
        *,
        resumed: bool = False,
    ) -> None:
        """Connected: the server put us into *subs*; join all others.

        :param resumed: with the session of the connection before.
        """
        self.online = True
        self.talk.begin()
        for known in self.by_name.values():
            known.state.features.begin(self.client, resumed=resumed)
        for channel, result in subs.items():
            request, membership = asked.get(channel), self.by_name.get(channel)
            # An application may have moved the room since connect was written: then this is the answer to another
            # question, and its "recovered" proves nothing of where the room stands now (H3).
            same = membership is not None and request == membership.state.standing()
            self._put_in(channel, result, now, asked=same and request is not None and request.recover)
        for membership in list(self.by_name.values()):
            if membership.channel in subs:
                continue
            if not membership.bound:
                self._remove(membership, None, NotRunning("the server did not put us into this room again"))
            else:
                self._enter(membership)

    def lost(self) -> None:
        """The connection is gone."""
        self.online = False
        self._retries.clear()
        self.talk.lost()
        for membership in list(self.by_name.values()):
            membership.state.lost()
            self.talk.tell(membership)

    def end(self, error: BaseException | None) -> None:
        """The client is closed: all rooms end, after what is queued in them."""
        self.online = False
        self.talk.lost()
        for membership in list(self.by_name.values()):
            self._remove(membership, error, error or NotRunning("the client is closed"))

    def due(self, now: float) -> float:
        """Join what is to be tried again by now; when there is more to do."""
        if self._retries:
            for membership in [m for m, when in self._retries.items() if when <= now]:
                del self._retries[membership]
                self._enter(membership)
        return min(min(self._retries.values(), default=math.inf), self.talk.due(now))

    # -- what the server says --------------------------------------------------------------------------

    def pushed(self, push: Push, now: float) -> None:
        """Something came for a room."""
        position, gap, signal = push.position, push.gap, push.signal
        channel = push.channel
        for body in (position, gap, signal):
            if body is not None and not channel:
                channel = body.channel
        if push.subscribe is not None:
            self._put_in(channel, _as_result(push.subscribe), now, asked=False)
            return
        membership = self.by_name.get(channel)
        if membership is None:
            return  # just left
        state = membership.state
        if push.pub is not None:
            do = state.published(push.pub)
            if do is Do.NOTHING:
                membership.changed()
            else:
                self._do(membership, do, now)
            if push.pub.info is not None and push.pub.info.client:
                state.features.spoke(push.pub.info.client, now)
                self.talk.tell(membership)
        elif push.presence is not None or push.marks is not None:
            self._do(membership, state.pushed(push, now), now)
        elif gap is not None:
            self._do(membership, state.told_gap(gap), now)
        elif position is not None:
            self._do(membership, state.told_position(position.epoch, position.offset), now)
        elif signal is not None:
            if state.is_in:
                if not state.features.signalled(signal, now, own=signal.client in self.own):
                    membership.signalled(signal)
                self.talk.tell(membership)
                self.talk.look(membership)
        elif push.unsubscribe is not None:
            self._do(membership, state.unsubscribed(push.unsubscribe.code, push.unsubscribe.reason), now)

    def _put_in(self, channel: str, result: SubscribeResult, now: float, *, asked: bool) -> None:
        membership = self.by_name.get(channel)
        if membership is None:
            state = RoomState(channel, max_queue=self._max_queue, own=self.own)
            membership = self._add(state, bound=False)
        membership.server_side = True
        self._do(membership, membership.state.adopt(result, asked=asked), now)

    def _replied(self, membership: Membership, reply: Reply | None, now: float) -> None:
        """The answer to a join."""
        state = membership.state
        if reply is None or self.by_name.get(membership.channel) is not membership:
            return
        if reply.error is None:
            self._do(membership, state.accept(reply.subscribe or SubscribeResult()), now)
            return
        error = call_error(reply.error)
        if error.code == codes.ALREADY_SUBSCRIBED:
            self._do(membership, Do.REJOIN, now)
        elif error.code == codes.UNRECOVERABLE and state.at is not None and not state.forgotten:
            state.forgotten = True
            self._ask(membership)
        elif error.temporary:
            state.step_out()
            state.features.refused()
            membership.disturbed_at = now
            self._retries[membership] = now + membership.backoff.next(window_of(error))
            self._calls.wake()
        else:
            self._remove(membership, error, error)

    # -- acting ----------------------------------------------------------------------------------------

    def _do(self, membership: Membership, do: Do, now: float) -> None:
        state, channel = membership.state, membership.channel
        if do is Do.JOIN:
            self._again(membership, now, membership.delay(now))
        elif do is Do.REJOIN:
            self._unsubscribe(channel)
            # Going on after the queue was full is no interruption.
            self._again(membership, now, 0.0 if state.phase is Phase.MUTED else membership.delay(now))
        elif do is Do.PAUSE:
            stay = self._outbox.waits(channel)
            state.pause(stay=stay)
            if not stay:
                self._unsubscribe(channel)
        if state.phase is Phase.ENDED:
            error = state.error or NotRunning(f"room {channel!r} has ended")
            self._remove(membership, error, error)
            return
        self._gate(membership)
        if state.phase is Phase.PAUSED and self._outbox.waits(channel):
            self.admit(channel)
        self.talk.tell(membership)
        self.talk.look(membership)
        membership.changed()

    def _again(self, membership: Membership, now: float, delay: float) -> None:
        if delay <= 0:
            self._ask(membership)
            return
        membership.state.step_out()
        self._retries[membership] = now + delay
        self._calls.wake()

    def _enter(self, membership: Membership) -> None:
        """Join a room that is out, in the way that suits its queue."""
        state = membership.state
        if state.phase is Phase.OUT or state.resumable:
            self._ask(membership)
        elif state.phase is Phase.PAUSED and self._outbox.waits(membership.channel):
            self._ask(membership, muted=True)

    def _ask(self, membership: Membership, *, muted: bool = False) -> None:
        self._retries.pop(membership, None)
        body = membership.state.request(muted=muted)
        self._calls.ask(Command(subscribe=body), lambda reply, now: self._replied(membership, reply, now))
        self.talk.tell(membership)
        self.talk.look(membership)

    def _unsubscribe(self, channel: str, answered: Callable[[], None] = _ignore) -> None:
        self._calls.ask(Command(unsubscribe=Unsubscribe(channel)), lambda reply, now: answered())

    def _gate(self, membership: Membership) -> None:
        if membership.state.phase in (Phase.IN, Phase.MUTED):
            self._outbox.open(membership.channel)
            self._calls.wake()
        else:
            self._outbox.shut(membership.channel)

    def _remove(
        self,
        membership: Membership,
        error: BaseException | None,
        for_commands: BaseException,
        *,
        discard: bool = False,
    ) -> None:
        """A room is over: *error* is raised to who iterates it, None ends the iteration."""
        channel = membership.channel
        del self.by_name[channel]
        self._retries.pop(membership, None)
        self.talk.forget(membership)
        membership.state.end(error, discard=discard)
        self.talk.tell(membership)
        for sending in self._outbox.abandon(channel):
            give_up(sending, for_commands)
        membership.changed()


def _as_result(push: SubscribePush) -> SubscribeResult:
    return SubscribeResult(
        recoverable=push.recoverable,
        positioned=push.positioned,
        epoch=push.epoch,
        offset=push.offset,
        data=push.data,
    )
