"""Rooms and users as the application sees them: handles that hold no state of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from msgspec import Raw
from typing_extensions import TypeVar

from .. import codes
from ..errors import BadUnit, InvalidMessage, NotEnabled
from ..messages import Member, Message, Page, PresenceStats, Published
from ..position import Position
from ..publisher import publish, topic_of
from ..schema import encode_value, event_of
from ..streams import Entry
from ..wire import Envelope, Kind
from .context import current_run

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
        published = await publish(
            engine.broker,
            self._family,
            self.name,
            data,
            time=engine.clock.time(),
            key=key,
            user=user,
            client=client,
            limit=engine.limits.max_publication,
        )
        engine.counters.add("publications" if not published.duplicate else "duplicates")
        await engine.breathe(len(data))
        return published

    def signal(self, message: object, *, exclude: Session[Any] | None = None) -> None:
        """Tell those who are here now; at most once, not stored, never blocks (D5).

        :param exclude: a session that shall not get it.
        :raises InvalidMessage: for a value JSON cannot hold.
        """
        data = Raw(encode_value(message))
        user = self._session.identity.user if self._session is not None else ""
        skip = exclude.id if exclude is not None else ""
        envelope = Envelope(v=1, kind=Kind.SIGNAL, data=data, event=event_of(message), user=user, skip=skip)
        self._hub.engine.send_quietly(topic_of(self.name), envelope.encode())

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
            envelope = Envelope.decode(entry.payload)
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

    async def remove(self, user: str, *, reason: str, ban: float = 0, client: str = "") -> None:
        """Take a user out of the room, on every node.

        :param reason: told to the client; plain words.
        :param ban: seconds during which the user may not join again, with any client.
        :param client: the id of the one client to take out; all of the user's unless given.
        :raises NotSupported: for a ban, when the broker keeps no state.
        """
        engine = self._hub.engine
        if ban:
            await engine.authority.ban(self.name, user, ban)
        envelope = Envelope(
            v=1, kind=Kind.KICK, user=user, client=client, code=codes.UNSUBSCRIBED, reason=reason
        )
        await engine.broker.publish(topic_of(self.name), envelope.encode())

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"


class User:
    """A user, on every node of the cluster."""

    __slots__ = ("_hub", "id")

    def __init__(self, hub: Hub[Any], id: str) -> None:
        self._hub = hub
        self.id = id

    async def close(self, *, code: int = codes.CLOSED_FOR_GOOD, reason: str = "", client: str = "") -> None:
        """Close all the user's connections, or one.

        :param client: the id of the client whose connection it is; all of the user's unless given.
        :raises ValueError: for a code that cannot close a connection.
        """
        if not codes.is_valid_close(code):
            raise ValueError(f"a close code is 1000 or from 3000 to 4999, not {code!r}")
        await self._hub.engine.control(
            "close", self.id, client=client, code=code, reason=reason or codes.describe_close(code)
        )

    async def refresh(self, *, client: str = "") -> None:
        """Ask all the user's clients, or one, to show a new token now; who does not is closed as expired (A3).

        :param client: the id of the one to ask.
        """
        await self._hub.engine.control("refresh", self.id, client=client)

    async def revoke(self, until: float) -> None:
        """Close all the user's connections and refuse new ones until then (A4).

        :param until: seconds since the Unix epoch.
        :raises NotSupported: when the broker keeps no state.
        """
        await self._hub.engine.authority.revoke(self.id, until)
        await self._hub.engine.control("close", self.id, code=codes.REVOKED, reason="revoked")

    def __repr__(self) -> str:
        return f"<User {self.id!r}>"
