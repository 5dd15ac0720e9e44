"""What the rooms of a client have to say by and by: that it types, how far it has read; and when. Plain, no tasks.

What is to be said is decided by the room when it can be written, not before: so it is the newest, and a room takes the
place of one unit however much happens in it. Nobody waits for it. What is refused for now is said again later; what is
lost with a connection, the room finds out when it is joined again.
"""

from __future__ import annotations

import math
from typing import Final

from ..wire import Command, Mark, MarksBody, PresenceUpdate, Reply, SignalBody
from .calls import Answered, Calls, call_error
from .membership import Membership
from .roomfeatures import Word
from .signalqueue import SignalQueue

__all__ = ["Talk"]

#: Seconds until something is said again that was not taken, and the server did not say when.
_LATER: Final = 1.0


class Talk:
    """Of all rooms of one client.

    :param calls: woken when there is something to be said.
    :ivar signals: what the application wants to be said.
    """

    def __init__(self, calls: Calls) -> None:
        self.signals = SignalQueue()
        self._calls = calls
        self._online = False
        self._dues: dict[Membership, float] = {}  # when a room's features have something to do

    def begin(self) -> None:
        """There is a connection."""
        self._online = True

    def lost(self) -> None:
        """It is gone."""
        self._online = False
        self._dues.clear()
        self.signals.clear()

    def look(self, membership: Membership) -> None:
        """Something of the room's features has changed: see when they have something to do."""
        state = membership.state
        when = state.features.next_at() if self._online and state.is_in else math.inf
        before = self._dues.pop(membership, math.inf)
        if when < math.inf:
            self._dues[membership] = when
            if when < before:
                self._calls.wake()

    def forget(self, membership: Membership) -> None:
        """The room is over."""
        self._dues.pop(membership, None)
        self.signals.forget(membership.channel)

    def due(self, now: float) -> float:
        """Forget what has expired by now; when there is more to do, besides what is to be said now."""
        for membership in [m for m, when in self._dues.items() if when <= now]:
            membership.state.features.tick(now)
            self.tell(membership)
            self.look(membership)
        return min((when for when in self._dues.values() if when > now), default=math.inf)

    def has_word(self, now: float) -> bool:
        """Whether a room has something to say, after :meth:`due`."""
        return any(when <= now for when in self._dues.values())

    def take_word(self, now: float) -> tuple[Command, Answered] | None:
        """What is to be said now, one room after the other."""
        for membership in [m for m, when in self._dues.items() if when <= now]:
            state = membership.state
            word = state.features.say(now, state.delivered) if state.is_in else None
            del self._dues[membership]  # it goes to the end
            self.tell(membership)
            self.look(membership)
            if word is not None:
                return _command(word), self._listener(membership, word)
        return None

    def _listener(self, membership: Membership, word: Word) -> Answered:
        return lambda reply, now: self._heeded(membership, word, reply, now)

    def _heeded(self, membership: Membership, word: Word, reply: Reply | None, now: float) -> None:
        """The answer to something that was said."""
        features = membership.state.features
        presence, receipts = features.presence, features.receipts
        again_at: float | None = None  # it was taken
        if reply is None:
            again_at = now  # with the next connection
        elif reply.error is not None:
            error = call_error(reply.error)
            wait = _LATER if error.retry_after is None else error.retry_after
            again_at = now + wait if error.temporary else math.inf
        if isinstance(word, PresenceUpdate):
            if presence is not None and again_at is not None:
                presence.refused(again_at)
        elif isinstance(word, Mark):
            if receipts is not None and again_at is not None:
                receipts.refused(word, again_at)
        elif isinstance(word, SignalBody):
            if again_at == math.inf:
                features.typing.refused()
        elif receipts is not None:
            if again_at is not None:
                receipts.no_page(word[1], again_at)
            elif reply is not None:
                change = receipts.page(reply.marks or MarksBody(), word[1], now)
                if change is not None:
                    membership.told(change)
        self.look(membership)

    def last_words(self, membership: Membership) -> list[Command]:
        """What a room would have said a little later; there is no later."""
        state = membership.state
        receipts = state.features.receipts
        if not self._online or receipts is None or not state.is_in:
            return []
        if (position := state.delivered) is not None:
            receipts.want("delivered", position)
        return [Command(mark=mark) for mark in receipts.last_words()]

    def tell(self, membership: Membership) -> None:
        """Tell the application what is new."""
        for news in membership.state.features.take_news():
            membership.told(news)

    def __repr__(self) -> str:
        return f"<Talk of {len(self._dues)} rooms>"


def _command(word: Word) -> Command:
    if isinstance(word, SignalBody):
        return Command(signal=word)
    if isinstance(word, Mark):
        return Command(mark=word)
    if isinstance(word, PresenceUpdate):
        return Command(presence_update=word)
    return Command(marks=word[0])
