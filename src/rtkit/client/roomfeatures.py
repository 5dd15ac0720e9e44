"""What a room has besides its messages: who is there, who is typing, how far users have come. Pure.

One object holds all that for one room of a client, and knows which of it is due: the rooms of a client have one timer
together. It counts while we are in the room, deaf or not; see :mod:`rtkit.client.roomstate`.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Raw

from ..position import Position
from ..wire import Mark, MarksCommand, PresenceUpdate, Push, SignalBody, SubscribeResult
from .presencestate import PresenceState
from .receiptstate import ReceiptState
from .typingstate import TYPING, TypingState
from .values import MarksChange, PresenceChange

__all__ = ["News", "RoomFeatures", "Word"]

#: What the application is told: of presence, of marks, and who is typing now.
News = PresenceChange | MarksChange | tuple[str, ...]
#: What the server is told, by and by: of typing, of marks, of ourselves; or a page of marks is asked for. With the
#: latter comes what it belongs to.
Word = SignalBody | Mark | PresenceUpdate | tuple[MarksCommand, int]

_TRUE: Final = Raw(b"true")
_FALSE: Final = Raw(b"false")


class RoomFeatures:
    """See the module's theory.

    :ivar client: our own id.
    :ivar presence: None when it was not asked for; likewise *receipts*.
    :ivar signal_rate: signals of one event that the room takes in a second; 0 for any number.
    """

    __slots__ = (
        "_kept",
        "_news",
        "_typists",
        "channel",
        "client",
        "presence",
        "receipts",
        "signal_rate",
        "typing",
    )

    def __init__(self, channel: str, *, presence: bool = False, receipts: bool = False) -> None:
        self.channel = channel
        self.client = ""
        self.presence = PresenceState() if presence else None
        self.receipts = ReceiptState(channel) if receipts else None
        self.typing = TypingState()
        self.signal_rate = 0.0
        self._typists: tuple[str, ...] = ()  # as the application was told
        self._news: list[News] = []
        self._kept = False

    @property
    def asked(self) -> tuple[bool, bool]:
        """Whether presence, and receipts, are asked for."""
        return self.presence is not None, self.receipts is not None

    def adopt(self, other: RoomFeatures) -> None:
        """The application comes to a room that the server has put us in: ask for what it wants."""
        self.presence, self.receipts = other.presence, other.receipts

    def lacks(self, result: SubscribeResult) -> bool:
        """Whether a join has not brought what is wanted."""
        presence, receipts = self.asked
        return (presence and result.presence is None) or (receipts and result.marks is None)

    # -- being in the room -------------------------------------------------------------------------

    def joined(self, result: SubscribeResult) -> None:
        """The server has let us in."""
        kept, self._kept = self._kept, False
        if self.presence is not None:
            self._tell(self.presence.joined(result.presence, self.client, kept=kept))
        if self.receipts is not None:
            self._tell(self.receipts.joined(result.marks))
        self.typing.joined(result.typing)
        self.signal_rate = result.signals if 0 < result.signals < math.inf else 0.0
        self._tell_typists(-math.inf)

    def left(self) -> None:
        """We are out of the room, or about to be."""
        self.typing.left()
        self._tell_typists(-math.inf)

    def lost(self) -> None:
        """The connection is gone while we were in the room: perhaps nobody sees us leave it (C3)."""
        self._kept = True

    def begin(self, client: str, *, resumed: bool) -> None:
        """There is another connection; *resumed*: it goes on with the session of the one before."""
        self.client = client
        self._kept = self._kept and resumed

    def refused(self) -> None:
        """We were not let in: whoever is not has left."""
        self._kept = False

    # -- what is pushed ----------------------------------------------------------------------------

    def pushed(self, push: Push, now: float) -> bool:
        """Presence or marks were pushed; False when something was missed, so that the room has to be joined again."""
        if push.presence is not None and self.presence is not None:
            was_fresh = self.presence.fresh
            change = self.presence.pushed(push.presence, self.client)
            self._tell(change)
            if change is not None:
                for member in change.leaves:
                    self.typing.stopped(member.client)
                self._tell_typists(now)
            return self.presence.fresh or not was_fresh
        if push.marks is not None and self.receipts is not None:
            self._tell(self.receipts.pushed(push.marks, now))
        return True

    def signalled(self, body: SignalBody, now: float, *, own: bool) -> bool:
        """A signal came; whether it was about typing.

        :param own: from this very client.
        """
        if not self.typing.expires or body.event != TYPING:
            return False
        if not own:
            self.typing.heard(body.user, body.client, body.data, now)
            self._tell_typists(now)
        return True

    def spoke(self, client: str, now: float) -> None:
        """A client has sent a message."""
        self.typing.stopped(client)
        self._tell_typists(now)

    # -- what the application is told ----------------------------------------------------------------

    def _tell(self, change: PresenceChange | MarksChange | None) -> None:
        if change is not None:
            self._news.append(change)

    def _tell_typists(self, now: float) -> None:
        typists = self.typing.users(now)
        if typists != self._typists:
            self._typists = typists
            self._news.append(typists)

    def take_news(self) -> list[News]:
        """What the application has not been told yet."""
        if not self._news:
            return []
        news, self._news = self._news, []
        return news

    # -- what is due -------------------------------------------------------------------------------

    def next_at(self) -> float:
        """When :meth:`tick` and :meth:`say` have something to do; infinite for never."""
        when = self.typing.next_at()
        if self.presence is not None:
            when = min(when, self.presence.next_at())
        if self.receipts is not None:
            when = min(when, self.receipts.next_at())
        return when

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.typing.tick(now)
        self._tell_typists(now)

    def say(self, now: float, position: Position | None) -> Word | None:
        """What the server is to be told now, if anything.

        :param position: up to where the application was handed out messages; None for none.
        """
        typing = self.typing.say(now)
        if typing is not None:
            return SignalBody(self.channel, TYPING, _TRUE if typing else _FALSE)
        if self.presence is not None and (meta := self.presence.say(now)) is not None:
            return PresenceUpdate(self.channel, meta)
        if self.receipts is not None:
            if position is not None:
                self.receipts.want("delivered", position)  # maybe more than when it became due
            if (mark := self.receipts.say(now)) is not None:
                return mark
            if (page := self.receipts.ask(now)) is not None:
                return MarksCommand(self.channel, page[0]), page[1]
        return None

    def __repr__(self) -> str:
        return f"<RoomFeatures of {self.channel!r}: {self.presence!r}, {self.receipts!r}, {self.typing!r}>"
