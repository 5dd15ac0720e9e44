"""How far users have come in a room, as one of its clients is told, and what it says itself (X2). Pure.

The theory
==========
**What is told.** All offsets of what the server says are of the epoch that it names. *Whole* replaces what was known;
in the same epoch the application is told the difference alone. There may be more users than were listed: they are
asked for page by page, in the order of their names, and those that are in no page in the end are forgotten. A change
in another epoch than ours shows that something was missed: then all is asked for from the beginning.

**Epochs.** Positions of different epochs cannot be compared, except where a stream was taken over: then the old epoch
is the new one, up to a place that the room knows (:meth:`ReceiptState.carried`). It is remembered, so that messages
which were handed out before still can be looked up.

**What we say.** Of each kind the newest position that is *wanted* is all that counts. It is said when the server, as
far as we know, is behind it: behind the marks it told of our user, and what we said since we joined. ``read`` implies
``delivered``. The first goes at once, the next not before a second later, so the last one always goes. Whatever is
lost on the way, the marks in the reply to the next join show it, and it is said again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..messages import MarkKind, Marks
from ..position import Position
from ..wire import Mark, MarksBody
from .values import MarksChange

__all__ = ["MAX_USERS", "ReceiptState"]

#: Users whose marks are known at the most.
MAX_USERS: Final = 10_000
#: Seconds between two marks of a kind.
_PACE: Final = 1.0
#: Epochs that are remembered as taken over.
_EPOCHS: Final = 16


class _Wish:
    """A mark of ours."""

    __slots__ = ("not_before", "said", "wanted")

    def __init__(self) -> None:
        self.wanted: Position | None = None
        self.said: Position | None = None  # since we joined
        self.not_before = -math.inf


class ReceiptState:
    """The marks of one room.

    :param channel: the room's name.
    :ivar epoch: that all marks are of; empty before there are any.
    :ivar user: our own user; empty while the server has not said so.
    :ivar complete: the marks of all users are known.
    """

    __slots__ = (
        "_after",
        "_ask_at",
        "_asked",
        "_capped",
        "_carried",
        "_delivered",
        "_first",
        "_generation",
        "_read",
        "_stale",
        "_stream",
        "_view",
        "_wishes",
        "channel",
        "complete",
        "epoch",
        "user",
    )

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.epoch = ""
        self.user = ""
        self.complete = False
        self._delivered: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._view: Mapping[str, Marks] | None = None
        self._wishes: dict[MarkKind, _Wish] = {"read": _Wish(), "delivered": _Wish()}
        self._stream = ""  # the present epoch of the room's stream
        self._carried: dict[str, int] = {}  # former epochs, and up to where they are that one
        self._after: str | None = None  # the users behind this one are to be asked for
        self._first = False  # the page asked for is the first, and replaces all
        self._asked = False
        self._ask_at = -math.inf
        self._generation = 0  # of what pages belong to
        self._stale: set[str] = set()  # known, but not listed again so far
        self._capped = False  # there are more than we keep

    # -- what the server says ----------------------------------------------------------------------

    def joined(self, body: MarksBody | None) -> MarksChange | None:
        """The room was joined; *body* is what its reply had of marks."""
        for wish in self._wishes.values():
            wish.said = None
        self._asked = False
        self._ask_at = -math.inf
        if body is None:
            return None
        if body.user:
            self.user = body.user
        return self._whole(body)

    def pushed(self, body: MarksBody, now: float) -> MarksChange | None:
        """Something was pushed: what is different now."""
        if body.whole:
            return self._whole(body)
        if body.epoch != self.epoch:
            self._anew(now)
            return None
        return self._merge(body)

    def page(self, body: MarksBody, generation: int, now: float) -> MarksChange | None:
        """A page came that was asked for; likewise."""
        if generation != self._generation:
            return None
        self._asked = False
        if self._first:
            return self._whole(body)
        if body.epoch != self.epoch:
            self._anew(now)
            return None
        users = _users(body)
        self._stale.difference_update(users)
        change = self._merge(body)
        last = max(users, default="")
        if not body.more:
            self._after = None
            self.complete = not self._capped
            return self._forget_stale() or change
        if self._after is None or last <= self._after or self._capped:
            self._after = None  # as many as we keep, or a server that goes round in circles
        else:
            self._after = last
        return change

    def no_page(self, generation: int, again_at: float) -> None:
        """The server did not answer with a page; ask again then, or never if that is infinite."""
        if generation != self._generation:
            return
        self._asked = False
        self._ask_at = again_at
        if again_at == math.inf:
            self._after = None

    def _anew(self, now: float) -> None:
        """Something was missed: ask for everything, in a while, unless the server says it by itself."""
        self._generation += 1
        self._after, self._first, self._asked = "", True, False
        self._ask_at = now + _PACE
        self.complete = False

    def _whole(self, body: MarksBody) -> MarksChange | None:
        self._generation += 1
        self._first = self._asked = False
        listed = _users(body)
        anew = body.epoch != self.epoch
        self.epoch = body.epoch
        self.complete = not body.more
        self._after = self._last(listed) if body.more else None
        self._capped = False
        if anew:
            self._delivered.clear()
            self._read.clear()
            self._view = None
            self._stale = set()
        else:
            self._stale = {*self._delivered, *self._read}.difference(listed)
        changed = self._take(body, listed, over=True)
        forgotten = None if body.more else self._forget_stale()
        if anew:
            return MarksChange(self.marks, whole=True)
        return forgotten or self._change(changed)

    def _last(self, listed: Collection[str]) -> str:
        """Behind whom the next page begins. Our own marks stand out of order."""
        users = sorted(listed)
        if self.user in listed:
            users.remove(self.user)
        elif not self.user and users:
            users.pop()  # it might be us
        return users[-1] if users else ""

    def _forget_stale(self) -> MarksChange | None:
        stale, self._stale = self._stale, set()
        if not stale:
            return None
        for user in stale:
            self._delivered.pop(user, None)
            self._read.pop(user, None)
        self._view = None
        return MarksChange(self.marks, whole=True)

    def _merge(self, body: MarksBody) -> MarksChange | None:
        return self._change(self._take(body, _users(body), over=False))

    def _take(self, body: MarksBody, users: Iterable[str], *, over: bool) -> list[str]:
        """Take marks in; who has other ones now.

        :param over: also when they are behind what we knew.
        """
        changed: list[str] = []
        room = MAX_USERS - len(self._delivered.keys() | self._read.keys())
        for user in users:
            before = self._delivered.get(user), self._read.get(user)
            if before == (None, None) and user != self.user:
                if room <= 0:
                    self._capped, self.complete = True, False
                    continue
                room -= 1
            for known, told in ((self._delivered, body.delivered), (self._read, body.read)):
                offset = told.get(user)
                if offset is not None:
                    known[user] = offset if over else max(offset, known.get(user, 0))
                elif over:
                    known.pop(user, None)
            if (self._delivered.get(user), self._read.get(user)) != before:
                changed.append(user)
        if changed:
            self._view = None
        return changed

    def _change(self, users: Iterable[str]) -> MarksChange | None:
        marks = {user: self._marks_of(user) for user in users}
        return MarksChange(marks, whole=False) if marks else None

    # -- what the application asks -----------------------------------------------------------------

    @property
    def marks(self) -> Mapping[str, Marks]:
        """All that are known, by user; it does not change afterwards."""
        if self._view is None:
            users = dict.fromkeys((*self._delivered, *self._read))
            self._view = MappingProxyType({user: self._marks_of(user) for user in users})
        return self._view

    def _marks_of(self, user: str) -> Marks:
        read = self._read.get(user)
        delivered = max(self._delivered.get(user, -1), -1 if read is None else read)
        return Marks(
            None if delivered < 0 else Position(self.epoch, delivered),
            None if read is None else Position(self.epoch, read),
        )

    def reached(self, position: Position, kind: MarkKind) -> list[str]:
        """Who is there, or beyond."""
        offset = self._place(position, self.epoch)
        if offset is None:
            return []
        users = {user for user, at in self._read.items() if at >= offset}
        if kind == "delivered":
            users.update(user for user, at in self._delivered.items() if at >= offset)
        return sorted(users)

    def unread(self, top: Position | None) -> int:
        """Messages between our own mark and *top*."""
        if top is None:
            return 0
        known = self._places("read", top.epoch)
        wanted = self._wishes["read"].wanted
        if wanted is not None and (place := self._place(wanted, top.epoch)) is not None:
            known.append(place)
        return max(0, top.offset - max(known, default=0))

    # -- epochs ------------------------------------------------------------------------------------

    def stands(self, epoch: str) -> None:
        """The room's stream is in this epoch; if it is another, nothing connects it with the one before."""
        if epoch != self._stream:
            self._carried.clear()
            self._stream = epoch

    def carried(self, old: str, new: str, until: int) -> None:
        """The room's stream goes on in a *new* epoch, which is the *old* one up to an offset."""
        if old == new:
            return
        if old != self._stream:
            self._carried.clear()
        self._carried = {epoch: min(at, until) for epoch, at in self._carried.items()}
        self._carried[old] = until
        self._carried.pop(new, None)
        while len(self._carried) > _EPOCHS:
            del self._carried[next(iter(self._carried))]
        self._stream = new

    def _place(self, position: Position, epoch: str) -> int | None:
        """The offset of a position in another epoch; None where that cannot be said."""
        if position.epoch == epoch:
            return position.offset
        old = position.epoch if epoch == self._stream else epoch if position.epoch == self._stream else None
        until = self._carried.get(old, -1) if old is not None else -1
        return position.offset if position.offset <= until else None

    # -- what we say -------------------------------------------------------------------------------

    def want(self, kind: MarkKind, position: Position) -> None:
        """We have come this far; not further than before changes nothing."""
        wish = self._wishes[kind]
        if wish.wanted is not None:
            before = self._place(wish.wanted, position.epoch)
            if before is not None and before >= position.offset:
                return
            if before is None and self._stream and position.epoch != self._stream:
                return  # of an epoch that is over
        wish.wanted = position

    def _places(self, kind: MarkKind, epoch: str) -> list[int]:
        """How far the server knows that we have come, as far as we know."""
        found: list[int | None] = []
        for each in ("read",) if kind == "read" else ("delivered", "read"):
            told = (self._read if each == "read" else self._delivered).get(self.user)
            said = self._wishes["read" if each == "read" else "delivered"].said
            if self.user and told is not None:
                found.append(self._place(Position(self.epoch, told), epoch))
            if said is not None:
                found.append(self._place(said, epoch))
        return [place for place in found if place is not None]

    def _due(self, kind: MarkKind) -> Position | None:
        """What is to be said, sooner or later."""
        wanted = self._wishes[kind].wanted
        if wanted is None or any(place >= wanted.offset for place in self._places(kind, wanted.epoch)):
            return None
        if self._stream and self._place(wanted, self._stream) is None:
            return None  # of an epoch that is over; the server would ignore it
        return wanted

    def next_at(self) -> float:
        """When :meth:`say` or :meth:`ask` has something."""
        when = math.inf if self._after is None or self._asked else self._ask_at
        for kind, wish in self._wishes.items():
            if wish.not_before < when and self._due(kind) is not None:
                when = wish.not_before
        return when

    def say(self, now: float) -> Mark | None:
        """A mark that is to be said now."""
        for kind, wish in self._wishes.items():  # what is read is delivered: that goes first
            if now >= wish.not_before and (position := self._due(kind)) is not None:
                return self._said(kind, position, now)
        return None

    def last_words(self) -> list[Mark]:
        """What has not been said yet, when there will be no other time."""
        kinds: tuple[MarkKind, ...] = ("read", "delivered")
        return [self._said(kind, due, -math.inf) for kind in kinds if (due := self._due(kind)) is not None]

    def _said(self, kind: MarkKind, position: Position, now: float) -> Mark:
        for each in self._wishes if kind == "read" else (kind,):
            self._wishes[each].not_before = now + _PACE
        self._wishes[kind].said = position
        return Mark(self.channel, kind, position.epoch, position.offset)

    def refused(self, mark: Mark, again_at: float) -> None:
        """A mark was not taken; say it again then, or not before the next join if that is infinite."""
        wish = self._wishes[mark.kind]
        if again_at < math.inf and wish.said == Position(mark.epoch, mark.offset):
            wish.said = None
            wish.not_before = max(wish.not_before, again_at)

    def ask(self, now: float) -> tuple[str, int] | None:
        """Behind which user a page is to be asked for now, and what it belongs to."""
        if self._after is None or self._asked or now < self._ask_at:
            return None
        self._asked = True
        return self._after, self._generation

    def __repr__(self) -> str:
        return f"<ReceiptState of {len(self.marks)} users in {self.epoch!r}>"


def _users(body: MarksBody) -> dict[str, None]:
    """In the order in which they are listed."""
    return dict.fromkeys((*body.delivered, *body.read))
