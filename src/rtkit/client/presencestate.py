"""Who is in a room, as one of its clients is told (P2). Pure.

The theory
==========
The server tells in a *snapshot*, or in *changes*, numbered one by one from the number of the snapshot. So:

========================  =======================================================================================
what is told              what happens
========================  =======================================================================================
a snapshot                replaces what was known; the application is told the difference
a change, the next one    is applied
any other change          is not applied, and nothing after it: the room has to be joined again, for a snapshot
a mere count              who is there is unknown, until there is a snapshot
========================  =======================================================================================

What came is compared with what was known, in all cases: so what the application is told always agrees with what it
was told before, whatever the server calls it. Across an interruption the members stay as they were last known.

**What the client says about itself** is remembered once the server has taken it. It is said again after a join in which
the server cannot have kept it: with a new session, or after the room was left. With the old session it has as a rule;
a list without it shows that it has not, as when the node died that we were on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Raw, UnsetType

from ..messages import Member
from ..wire import PresenceBody, PresentBody
from .values import PresenceChange

__all__ = ["PresenceState"]

_metas: Final = msgspec.json.Decoder(dict[str, Any])


class PresenceState:
    """The members of one room, for one client of it.

    :ivar members: by client, in the order in which they became known.
    :ivar listed: it is known who is there, and not only how many.
    :ivar fresh: nothing is missing since the latest join.
    :ivar meta: what the client says about itself, as the server has taken it; None for nothing.
    :ivar pending: updates that wait for the server's answer.
    """

    __slots__ = (
        "_clients",
        "_known",
        "_said",
        "_say_at",
        "_users",
        "_v",
        "fresh",
        "listed",
        "members",
        "meta",
        "pending",
    )

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.listed = True
        self.fresh = False
        self.meta: Raw | None = None
        self.pending = 0
        self._known = False
        self._v = 0
        self._clients = self._users = 0
        self._said = False
        self._say_at = -math.inf

    @property
    def clients(self) -> int:
        """How many clients are there."""
        return len(self.members) if self.listed else self._clients

    @property
    def users(self) -> int:
        """How many users are there."""
        return len({each.user for each in self.members.values()}) if self.listed else self._users

    # -- what the server says ----------------------------------------------------------------------

    def joined(self, body: PresenceBody | None, client: str, *, kept: bool) -> PresenceChange | None:
        """The room was joined.

        :param body: the snapshot of the reply, if there is one.
        :param client: our own id.
        :param kept: to the server we were never gone, so it should know what we say about ourselves.
        """
        self._said = self._said and kept
        self._say_at = -math.inf
        self.fresh = False
        return None if body is None else self._whole(body, client)

    def pushed(self, body: PresenceBody, client: str) -> PresenceChange | None:
        """Something was pushed: what is different now. See :attr:`fresh`."""
        if body.members is not None or body.clients is not None or body.users is not None:
            was_listed = self.listed
            return self._whole(body, "" if was_listed else client)
        if not self.fresh:
            return None
        if not self.listed or body.v != self._v + 1:
            self.fresh = False
            return None
        self._v = body.v
        gone = [each.client for each in body.leaves]
        return self._set([*body.joins, *body.updates], gone)

    def _whole(self, body: PresenceBody, client: str) -> PresenceChange | None:
        self._v = body.v
        self.fresh = True
        anew = not (self._known and self.listed)
        self._known = True
        if body.members is not None:
            self.listed = True
            here = {each.client for each in body.members}
            change = self._set(body.members, [each for each in self.members if each not in here])
            if client and self.meta is not None:
                mine = self.members.get(client)
                self._said = self._said and mine is not None and mine.meta == _metas.decode(self.meta)
            if anew:
                return PresenceChange(tuple(self.members.values()), (), (), whole=True)
            return change
        counts = max(0, body.clients or 0), max(0, body.users or 0)
        if anew and not self.listed and counts == (self._clients, self._users):
            return None
        self.listed = False
        self.members.clear()
        self._clients, self._users = counts
        return PresenceChange((), (), (), whole=True)

    def _set(self, here: Iterable[PresentBody], gone: Iterable[str]) -> PresenceChange | None:
        before: dict[str, Member | None] = {}
        for client in gone:
            member = self.members.pop(client, None)
            if member is not None:
                before[client] = member
        for body in here:
            before.setdefault(body.client, self.members.get(body.client))
            self.members[body.client] = _member(body)
        joins: list[Member] = []
        leaves: list[Member] = []
        updates: list[Member] = []
        for client, old in before.items():
            new = self.members.get(client)
            if new is None:
                if old is not None:
                    leaves.append(old)
            elif old is None:
                joins.append(new)
            elif old != new:
                updates.append(new)
        if not (joins or leaves or updates):
            return None
        return PresenceChange(tuple(joins), tuple(leaves), tuple(updates), whole=False)

    # -- what we say -------------------------------------------------------------------------------

    def took(self, meta: Raw) -> None:
        """The server has taken what we say about ourselves."""
        self.meta = meta
        self._said = True

    def next_at(self) -> float:
        """When :meth:`say` has something. Not while an update waits: that is newer."""
        return math.inf if self._said or self.meta is None or self.pending else self._say_at

    def say(self, now: float) -> Raw | None:
        """What has to be said again now."""
        if now < self.next_at():
            return None
        self._said = True
        return self.meta

    def refused(self, again_at: float) -> None:
        """It was not taken; say it again then, or never if that is infinite."""
        self._said = again_at == math.inf
        self._say_at = again_at

    def __repr__(self) -> str:
        state = "" if self.fresh else ", not current"
        return f"<PresenceState v{self._v}: {self.clients} clients{state}>"


def _member(body: PresentBody) -> Member:
    meta: dict[str, Any] = {}
    if not isinstance(body.meta, UnsetType):
        try:
            meta = _metas.decode(body.meta)
        except msgspec.ValidationError:
            pass  # no object: nothing that we could show
    return Member(body.user, body.client, meta)
