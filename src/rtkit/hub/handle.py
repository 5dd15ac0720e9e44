"""Rooms and users as the application sees them: handles that hold no state of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from msgspec import Raw
from typing_extensions import TypeVar

from .. import codes
from ..errors import BadUnit, InvalidMessage, NotEnabled
from ..messages import Marks, Member, Message, Page, PresenceStats, Published
from ..position import Position
from ..publisher import publish, topic_of
from ..schema import encode_value, event_of
from ..streams import Entry
from ..wire import Envelope, Kind
from .context import current_run
from .control import Reached
from .relay import Ask

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session
    from .table import Family

__all__ = ["Room", "User"]

M = TypeVar("M", default=Any)


class Room(Generic[M]):
    """One room, seen from the server. Cheap to make; publishing reaches members on all nodes.

    :ivar name: the full name.
    :ivar params: what stands for the placeholders of its pattern, decoded.
    """

    __slots__ = ("_family", "_hub", "_session", "name", "params")

    def __init__(
        self,
        hub: Hub[Any],
        family: Family,
        name: str,
        params: Mapping[str, str],
        *,
        session: Session[Any] | None = None,
    ) -> None:
        self._hub = hub
        self._family = family
        self._session = session
        self.name = name
        self.params = params

    async def publish(self, message: M, *, key: str | None = None) -> Published:
        """Publish a message to everybody in the room.

        Within a handler run whose command had a key, the n-th publish gets the key ``<key>/n`` unless one
        is given, so that running again publishes nothing twice. As ``ctx.room``, the sender is the user.

        :param key: makes it idempotent for five minutes (H7).
        :raises InvalidMessage: for a type the room does not publish, or a message too large.
        :raises BrokerUnavailable: nothing was stored.
        :raises PublishUnknown: it may have been stored; repeat with the same key. So does cancelling.
        """
        data = self._family.schema.encode(message)
        return await self.publish_raw(data, key=key)

    async def publish_raw(self, data: bytes, *, key: str | None = None) -> Published:
        """Publish what is encoded already; for :meth:`publish` and commands of clients."""
        engine, session = self._hub.engine, self._session
        run = current_run.get()
        user, client = ("", "") if session is None else (session.identity.user, session.id)
        if key is None and run is not None:
            key = run.next_key(elsewhere=session is None)
        stamp = engine.clock.time()
        if engine.timings.publications.due() and (local := engine.rooms.get(self.name)) and local.live:
            engine.underway.begin(self.name, stamp)
        try:
            published = await publish(
                engine.broker,
                self._family,
                self.name,
                data,
                time=stamp,
                key=key,
                user=user,
                client=client,
                limit=engine.limits.max_publication,
                seal=engine.versions.seal,
            )
        except BaseException:
            engine.underway.end(self.name, stamp)
            raise
        if published.duplicate:
            engine.underway.end(self.name, stamp)
        engine.counters.add("publications" if not published.duplicate else "duplicates")
        await engine.breathe(len(data))
        return published

    def signal(self, message: object, *, exclude: Session[Any] | None = None) -> None:
        """Tell those who are here now; at most once, not stored, never blocks (D5).

        As ``ctx.room``, the sender is the user's client. What the family says about its clients' signals
        (``signals=``, ``typing=``) does not bind the server.

        :param exclude: a session that shall not get it.
        :raises InvalidMessage: for a value JSON cannot hold.
        """
        engine, session = self._hub.engine, self._session
        envelope = Envelope(
            v=1,
            kind=Kind.SIGNAL,
            data=Raw(encode_value(message)),
            event=event_of(message),
            user=session.identity.user if session is not None else "",
            client=session.id if session is not None else "",
            skip=exclude.id if exclude is not None else "",
        )
        engine.send_quietly(topic_of(self.name), engine.versions.seal(envelope))

    async def history(
        self, *, limit: int = 100, since: Position | None = None, reverse: bool = False
    ) -> Page[M]:
        """A page of the room's history (H8).

        :param since: forward: what follows it, in reverse: what comes before it.
        :raises NotEnabled: for a room without history.
        :raises BrokerUnavailable: when it cannot be read.
        """
        if self._family.history is None:
            raise NotEnabled(
                f"room {self.name!r} keeps no history: pass history=History(100, ttl=3600) to "
                f"rooms({self._family.pattern.text!r})"
            )
        page = await self._hub.engine.stream.read(
            topic_of(self.name), since=since, limit=limit, reverse=reverse, history=self._family.history
        )
        messages = [self._message(entry, page.epoch) for entry in page.entries]
        return Page(messages, page.position, complete=page.lost is None)

    def _message(self, entry: Entry, epoch: str) -> Message[M]:
        try:
            envelope = self._hub.engine.versions.formats.open(entry.payload)
            data = self._family.schema.decode(envelope.data)
        except BadUnit as error:
            raise InvalidMessage(f"room {self.name!r}, offset {entry.offset}: {error.message}") from None
        return Message(
            data, Position(epoch, entry.offset), envelope.user or None, envelope.time, envelope.client or None
        )

    async def clear(self) -> Position:
        """Drop the room's history and begin a new epoch; members learn of it (H6, H10)."""
        if self._family.history is None:
            raise NotEnabled(f"room {self.name!r} keeps no history")
        return await self._hub.engine.clear(self.name)

    async def presence(self) -> Sequence[Member]:
        """Who is here, on all nodes (P1).

        :raises NotEnabled: for a room without presence.
        :raises BrokerUnavailable: when it cannot be read.
        """
        self._must_have_presence()
        return await self._hub.engine.presence.members(self.name, self._family)

    async def presence_stats(self) -> PresenceStats:
        """How many are here, without a list of them; raises as :meth:`presence`."""
        self._must_have_presence()
        return await self._hub.engine.presence.stats(self.name, self._family)

    def _must_have_presence(self) -> None:
        if "presence" not in self._family.rooms.features:
            raise NotEnabled(
                f"room {self.name!r} has no presence: pass presence=Presence() to "
                f"rooms({self._family.pattern.text!r})"
            )

    async def marks(self) -> Mapping[str, Marks]:
        """How far users have got and read, by user (X2), also of those who are not here.

        :raises NotEnabled: for a room without receipts.
        :raises BrokerUnavailable: when it cannot be read.
        """
        if "receipts" not in self._family.rooms.features:
            raise NotEnabled(
                f"room {self.name!r} has no receipts: pass receipts=Receipts() to "
                f"rooms({self._family.pattern.text!r})"
            )
        return await self._hub.engine.receipts.marks(self.name, self._family)

    async def remove(self, user: str, *, reason: str, ban: float = 0, client: str = "") -> Reached:
        """Take a user out of the room, on every node, also those who have lost their connection and may come back.

        :param reason: told to the client; plain words.
        :param ban: seconds during which the user may not join again, with any client; all of them are taken out.
        :param client: the id of the one client to take out; all of the user's unless given.
        :return: on which nodes, and how many; nodes that did not answer within 4 s are named. A ban holds there too.
        :raises NotSupported: for a ban, when the broker keeps no state.
        :raises BrokerUnavailable: when nobody can be reached.
        :raises ValueError: for a ban of less than no time.
        """
        if not ban >= 0:
            raise ValueError(f"ban= is seconds, not {ban!r}")
        engine = self._hub.engine
        body = b""
        if ban:
            until = engine.clock.time() + ban
            body = await engine.revocations.revoke(user, until, room=self.name, reason=reason)
        return await engine.control.act(
            Ask(
                do="remove",
                user=user,
                room=self.name,
                client=client,
                code=codes.UNSUBSCRIBED,
                reason=reason,
                body=body,
            )
        )

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"


class User:
    """A user, on every node of the cluster."""

    __slots__ = ("_hub", "id")

    def __init__(self, hub: Hub[Any], id: str) -> None:
        self._hub = hub
        self.id = id

    async def close(
        self, *, code: int = codes.CLOSED_FOR_GOOD, reason: str = "", client: str = ""
    ) -> Reached:
        """Close all the user's connections, or one; sessions that have lost theirs end.

        :param client: the id of the client whose connection it is; all of the user's unless given.
        :return: on which nodes, and how many; nodes that did not answer within 4 s are named.
        :raises ValueError: for a code that cannot close a connection.
        :raises BrokerUnavailable: when nobody can be reached: nothing was done.
        """
        if not codes.is_valid_close(code):
            raise ValueError(f"a close code is 1000 or from 3000 to 4999, not {code!r}")
        reason = reason or codes.describe_close(code)
        return await self._hub.engine.control.act(
            Ask(do="close", user=self.id, client=client, code=code, reason=reason)
        )

    async def refresh(self, *, client: str = "") -> Reached:
        """Ask all the user's clients, or one, to show a new token now; who does not is closed as expired (A3).

        :param client: the id of the one to ask.
        :return: as of :meth:`close`. Who has lost its connection is asked when it comes back.
        :raises BrokerUnavailable: when nobody can be reached: nothing was done.
        """
        return await self._hub.engine.control.act(Ask(do="refresh", user=self.id, client=client))

    async def revoke(self, until: float) -> Reached:
        """Close all the user's connections and refuse new ones until then, whatever token is shown (A4).

        It holds on nodes that did not answer, too: they learn of it within 30 s, and let the user in no more before.

        :param until: seconds since the Unix epoch. A time that is over lifts what holds, and closes all the same.
        :return: as of :meth:`close`.
        :raises NotSupported: when the broker keeps no state.
        :raises BrokerUnavailable: when it cannot be reached; call again, it may have been done.
        :raises ValueError: for a time that is none.
        """
        engine = self._hub.engine
        body = await engine.revocations.revoke(self.id, until)
        return await engine.control.act(Ask(do="revoke", user=self.id, body=body))

    async def where(self, room: str = "") -> Reached:
        """How many sessions the user has, on which nodes; those count that have lost their connection just now.

        :param room: only those that are in it.
        :raises BrokerUnavailable: when nobody can be reached.
        """
        return await self._hub.engine.control.act(Ask(do="where", user=self.id, room=room))

    def __repr__(self) -> str:
        return f"<User {self.id!r}>"
