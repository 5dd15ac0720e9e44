"""Who is typing in a room, and that we are (X1). Pure.

The theory
==========
**We.** The application says at each key stroke that it is typing. Others are told at once, and again when half of the
time has passed after which they would forget it, if it was said again meanwhile. They are told that it is over when
the application says so, or has not said anything for the whole time. A message of ours ends it without a word: the
server tells the others. After a join nobody knows of it, so it is said again while it goes on.

**Others** type until they say that they do not, send a message, leave, or are not heard of for too long. While we are
not in the room nobody types, as far as we know. Two devices of a user are two that type, and one user; of ourselves
only this very client is left out.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Raw, UnsetType

__all__ = ["TYPING", "TypingState"]

#: The event by which it goes over the wire.
TYPING: Final = "typing"
#: Clients that are remembered as typing at the most; nobody could read more names.
_MOST: Final = 1000


class TypingState:
    """Typing in one room.

    :ivar expires: seconds after which who types, and says nothing more, has stopped; 0 in a room without.
    """

    __slots__ = ("_called", "_said", "_said_at", "_silent", "_typists", "expires")

    def __init__(self) -> None:
        self.expires = 0.0
        self._typists: dict[str, tuple[str, float]] = {}
        self._called: float | None = None  # when the application last said so; None: we do not
        self._said = False  # what the others were told
        self._said_at = -math.inf
        self._silent = False  # the server does not let us say it

    def joined(self, expires: float) -> None:
        """The room was joined: nobody knows of us, and we of nobody."""
        self.expires = expires if 0 < expires < math.inf else 0.0
        self._silent = False
        self._typists.clear()
        self._unsay()

    def left(self) -> None:
        """We are out of the room."""
        self._typists.clear()
        self._unsay()

    def _unsay(self) -> None:
        self._said = False

    # -- others ------------------------------------------------------------------------------------

    def users(self, now: float) -> tuple[str, ...]:
        """Who types, in the order in which they began."""
        return tuple(dict.fromkeys(user for user, until in self._typists.values() if now < until))

    def heard(self, user: str, client: str, data: Raw | UnsetType, now: float) -> None:
        """A client has said that it types, or does not any more."""
        said = b"true" if isinstance(data, UnsetType) else bytes(data).strip()
        if said == b"false":
            self.stopped(client)
        elif said == b"true" and user and (client in self._typists or len(self._typists) < _MOST):
            self._typists[client] = (user, now + self.expires)

    def stopped(self, client: str) -> None:
        """A client has sent a message, or left."""
        self._typists.pop(client, None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        for client in [client for client, (_, until) in self._typists.items() if until <= now]:
            del self._typists[client]
        if self._called is not None and self.expires and now >= self._called + self.expires:
            self._called = None

    # -- we ----------------------------------------------------------------------------------------

    def called(self, on: bool, now: float) -> None:
        """The application says that it is typing, or not any more."""
        self._called = now if on else None

    def sent(self) -> None:
        """We have sent a message; the server tells the others that it is over."""
        self._called = None
        self._unsay()

    def next_at(self) -> float:
        """When :meth:`tick` or :meth:`say` has something to do."""
        when = min((until for _, until in self._typists.values()), default=math.inf)
        return min(when, self._say_at())

    def _say_at(self) -> float:
        if not self.expires or self._silent:
            return math.inf
        if self._called is None:
            return -math.inf if self._said else math.inf
        if not self._said:
            return -math.inf
        again = self._said_at + self.expires / 2 if self._called > self._said_at else math.inf
        return min(again, self._called + self.expires)

    def say(self, now: float) -> bool | None:
        """What the others are to be told now; None for nothing."""
        self.tick(now)
        if now < self._say_at():
            return None
        self._said = self._called is not None
        self._said_at = now
        return self._said

    def refused(self) -> None:
        """The server does not let us say it: not again before the next join."""
        self._silent = True

    def __repr__(self) -> str:
        return f"<TypingState: {len(self._typists)} type{', and we' if self._called is not None else ''}>"
