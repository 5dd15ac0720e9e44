"""One room, seen from a client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, overload
from weakref import WeakKeyDictionary

from msgspec import Raw

from ..errors import BadUnit, NotEnabled, UsageError
from ..messages import Message, Page
from ..position import Gap, Position
from ..primitives.clocks import timeout as clock_timeout
from ..schema import Codec, encode_value
from ..wire import HistoryCommand, HistoryResult, Publication, Publish, Reply, SignalBody, Since
from .bell import Bell
from .core import Core
from .feeds import Feed
from .membership import Membership
from .payloads import IGNORED, Reader, event_of, is_utf8, pack, unpack_ack
from .presence import RoomPresence
from .receipts import RoomReceipts
from .roomfeatures import News
from .roomstate import Phase
from .values import MarksChange, PresenceChange, RoomStatistics, Signal

__all__ = ["RoomClient"]

M = TypeVar("M")
S = TypeVar("S")
R = TypeVar("R")
T = TypeVar("T")

logger: Final = logging.getLogger("rtkit.client")

_LEAVE_TIMEOUT: Final = 5.0
_SIGNALS: Final = 256


class RoomClient(Generic[M]):
    """A room this client is in. Made by :meth:`Client.join`; it joins by itself, and again after every loss.

    ::

        async with client.join("chat:lobby", receives=Said) as room:
            await room.send(Say("hi"))
            async for message in room:  # Message[Said] | Gap
                ...

    Entering waits until the server has let us in; leaving the block leaves the room. Without the block,
    ``room = await client.join(…)`` and later ``await room.leave()``.

    **Iterating** yields every message of a room with history exactly once and in order, across any number of
    reconnects; where that cannot be proven it yields a :class:`~rtkit.position.Gap` in the place of what is
    missing. In a room without history messages come at most once. Events that are none of the types in
    ``receives`` are skipped and counted. The queue behind it is bounded: see ``max_queue`` of
    :meth:`Client.join`. Several tasks that iterate share the messages among them.
    """

    def __init__(self, core: Core, membership: Membership, reader: Reader, joined: type[Any]) -> None:
        self._core = core
        self._membership = membership
        self._reader = reader
        self._joined: Codec[Any] = Codec(joined)
        self._bell = Bell()
        self._signals: WeakKeyDictionary[Feed[Any], Reader] = WeakKeyDictionary()
        self._typing: WeakKeyDictionary[Feed[tuple[str, ...]], None] = WeakKeyDictionary()
        features = membership.state.features
        self._presence = (
            RoomPresence(core, membership, features.presence) if features.presence is not None else None
        )
        self._receipts = (
            RoomReceipts(core, membership, features.receipts) if features.receipts is not None else None
        )
        membership.changed = self._changed
        membership.signalled = self._signalled
        membership.told = self._told

    # -- being in it -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The full name."""
        return self._membership.channel

    @property
    def position(self) -> Position | None:
        """Behind the last item that iterating handed out: where to go on with ``since=`` another time.

        None in a room without history, and before the room was joined.
        """
        return self._membership.state.position

    @property
    def join_data(self) -> Any:
        """What the room's ``on_join`` answered to the latest join, decoded; None without any.

        It is renewed when the room is joined again, so after a gap it tells the state to go on from.

        :raises BadUnit: when it does not fit the type given as ``joined``.
        """
        data = self._membership.state.join_data
        return None if data is None else self._joined.decode(data)

    async def joined(self) -> RoomClient[M]:
        """Wait until the server has let us in; while there is no connection, as long as that takes.

        Cancellation: safe; the room goes on being joined.

        :raises CallError: when the server refuses.
        :raises Unsubscribed: when it has taken us out again.
        :raises ConnectionClosed: when the client is closed for good.
        :raises NotRunning: when the room was left.
        """
        state = self._membership.state
        while not state.joins:
            self._membership.raise_if_over()
            await self._bell.wait()
        return self

    async def leave(self) -> None:
        """Leave the room. Iterating it ends, what is queued is forgotten, unsent commands to it fail.

        Waits until the server has confirmed, at most 5 s, and not at all without a connection. Idempotent.
        Cancellation: safe; the room is left all the same.
        """
        done = asyncio.get_running_loop().create_future()

        def answered() -> None:
            if not done.done():
                done.set_result(None)

        if self._core.engine.rooms.leave(self._membership, answered):
            try:
                async with clock_timeout(self._core.clock, _LEAVE_TIMEOUT):
                    await done
            except TimeoutError:
                pass

    async def __aenter__(self) -> RoomClient[M]:
        try:
            return await self.joined()
        except BaseException:
            self._core.engine.rooms.leave(self._membership, lambda: None)
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.leave()

    def __await__(self) -> Generator[Any, None, RoomClient[M]]:
        return self.joined().__await__()

    # -- receiving -------------------------------------------------------------------------------------

    def __aiter__(self) -> RoomClient[M]:
        return self

    async def __anext__(self) -> Message[M] | Gap:
        """The next message, or what is missing in its place.

        Cancellation: safe, nothing is lost.

        :raises BadUnit: for a message whose data does not fit its type; iterating may go on after it.
        :raises CallError: when the server refused to let us in again.
        :raises Unsubscribed: when it has taken us out.
        :raises ConnectionClosed: when the client was closed for good by the server. All three come after
            everything that was queued.
        """
        state, rooms = self._membership.state, self._core.engine.rooms
        while True:
            item = state.take()
            if item is not None:
                rooms.drained(self._membership)
                found = self._reader.message(item)
                if found is not None:
                    return found
                state.ignored += 1
            elif state.phase is Phase.ENDED:
                if state.error is not None:
                    raise state.error.with_traceback(None)
                raise StopAsyncIteration
            else:
                await self._bell.wait()

    @overload
    def signals(self) -> Feed[Signal[Any]]: ...
    @overload
    def signals(self, type_: type[S], /) -> Feed[Signal[S]]: ...
    @overload
    def signals(self, type_: type[S], second: type[R], /) -> Feed[Signal[S | R]]: ...
    @overload
    def signals(self, type_: type[S], second: type[R], third: type[T], /) -> Feed[Signal[S | R | T]]: ...
    def signals(self, *types: type[Any]) -> Feed[Signal[Any]]:
        """Iterate over the room's signals from now on: at most once, only while we are in (D5).

        :param types: the events wanted, up to three; without any, all of them as plain JSON.
        :return: an asynchronous iterator; it keeps the newest 256 that are not fetched.
        """
        reader = Reader(types or (object,), where=f"signals({self.name!r})")
        feed: Feed[Signal[Any]] = Feed(f"signals of {self.name!r}", max_queue=_SIGNALS)
        self._signals[feed] = reader
        self._membership.end_if_over(feed)
        return feed

    # -- who else is there -----------------------------------------------------------------------------

    @property
    def presence(self) -> RoomPresence:
        """Who is in the room.

        :raises UsageError: unless it was joined with ``presence=True``.
        """
        if self._presence is None:
            raise UsageError(f"who is in {self.name!r} was not asked for: join(…, presence=True)")
        return self._presence

    @property
    def receipts(self) -> RoomReceipts:
        """How far the users of the room have got, and read.

        :raises UsageError: unless it was joined with ``receipts=True``.
        """
        if self._receipts is None:
            raise UsageError(f"how far others are in {self.name!r} was not asked for: join(…, receipts=True)")
        return self._receipts

    def typing(self, on: bool = True) -> None:
        """This user is typing. Call it at each key stroke: it never blocks, and tells the others as seldom as it may.

        It is over when it was not called for the time that the room has set (5 s), with :meth:`send`, or with
        ``typing(False)``. Without a connection nobody is told; after it they are, if it goes on.

        :raises NotEnabled: the room has no typing; that is known once it is joined.
        :raises Unsubscribed: the server took us out of the room.
        :raises ConnectionClosed: the client is closed.
        :raises NotRunning: the room was left.
        """
        core, state = self._core, self._membership.state
        core.check()
        self._membership.raise_if_over()
        if state.joins and not state.features.typing.expires:
            raise NotEnabled(f"room {self.name!r} has no typing; the server declares it with typing=Typing()")
        state.features.typing.called(on, core.clock.monotonic())
        core.engine.rooms.talk.look(self._membership)

    @property
    def typists(self) -> tuple[str, ...]:
        """The users who are typing now, in the order in which they began. Of this user only other devices count."""
        return self._membership.state.features.typing.users(self._core.clock.monotonic())

    def typing_changes(self) -> Feed[tuple[str, ...]]:
        """Iterate over who is typing, whenever that changes from now on.

        :return: an asynchronous iterator; of what is not fetched it keeps the newest alone.
        """
        feed: Feed[tuple[str, ...]] = Feed(f"typists of {self.name!r}", max_queue=1)
        self._typing[feed] = None
        self._membership.end_if_over(feed)
        return feed

    # -- sending ---------------------------------------------------------------------------------------

    @overload
    async def send(
        self, message: object, *, name: str = ..., key: str | None = ..., timeout: float | None = ...
    ) -> Any: ...
    @overload
    async def send(
        self,
        message: object,
        *,
        returns: type[R],
        name: str = ...,
        key: str | None = ...,
        timeout: float | None = ...,
    ) -> R: ...
    async def send(
        self,
        message: object,
        *,
        returns: type[Any] = object,
        name: str = "",
        key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send a message to the room, and wait for the acknowledgement.

        While there is no connection it is queued. It is sent again after a reconnect until it is answered;
        its key makes that happen once (H7). Messages of one client reach a room in the order of the calls.

        Cancellation: withdrawn if it was not sent yet; otherwise it may happen.

        :param message: of a declared type, or plain JSON: lists, dicts, strings, numbers, None.
        :param returns: the type of the acknowledgement; plain JSON without it. ``Position`` gives the place
            of a message that no handler took.
        :param name: the event, for TypedDicts and plain JSON in rooms with types.
        :param key: a key of your own, 1 to 128 characters; say the same again and it happens once.
        :param timeout: seconds to wait, None for ever.
        :raises CallError: the server refused it.
        :raises PublishUnknown: sent, but not answered in time or before the connection was gone for too
            long: it may have happened. Sending again with the same *key* is safe for some minutes.
        :raises TimeoutError: never sent within *timeout*, and withdrawn.
        :raises QueueFull: too many commands wait.
        :raises InvalidMessage: a value that JSON cannot hold, or too large for the server.
        :raises BadUnit: it was done, but the acknowledgement is not of the type *returns*.
        :raises Unsubscribed: the server took us out of the room.
        :raises ConnectionClosed: the client is closed; not sent.
        :raises NotRunning: the room was left; not sent.
        """
        core = self._core
        core.check()
        self._membership.raise_if_over()
        data = pack(message, name)
        body = Publish(self.name, data, checked_key(key) or core.new_key())
        self._membership.state.features.typing.sent()
        return await core.ask(body, len(bytes(data)), unpack_ack(returns), timeout=timeout)

    def signal(self, message: object, *, name: str = "") -> bool:
        """Tell those who are in the room now; at most once, not stored, never blocks (D5).

        Of signals with the same event that wait to be written only the newest is sent. Where the room takes only so
        many a second, one that comes too soon waits.

        :param name: the event, for TypedDicts and plain JSON.
        :return: False when it cannot be sent now: not connected, not in the room, or too many wait.
        :raises InvalidMessage: for a value that JSON cannot hold.
        """
        self._core.check()
        self._membership.raise_if_over()
        event = event_of(message, name)
        return self._core.engine.signal(SignalBody(self.name, event, Raw(encode_value(message))))

    async def history(
        self,
        *,
        limit: int = 100,
        since: Position | None = None,
        reverse: bool = False,
        timeout: float | None = None,
    ) -> Page[M]:
        """A page of the room's history (H8).

        Events that are none of the types in ``receives`` are left out. Cancellation: safe.

        :param limit: messages at the most; 0 asks for the top alone.
        :param since: forward: what follows it; in reverse: what comes before it.
        :param timeout: seconds to wait, None for ever.
        :raises CallError: the server refused; code 112 when *since* cannot be continued from.
        :raises TimeoutError: not answered in time.
        :raises BadUnit: for a message whose data does not fit its type.
        """
        if limit < 0:
            raise ValueError(f"history(limit=…) is not negative, as {limit!r} is")
        core = self._core
        core.check()
        self._membership.raise_if_over()
        where = Since(since.offset, since.epoch) if since is not None else None
        body = HistoryCommand(self.name, limit, where, reverse)

        def unpack(reply: Reply) -> Page[M]:
            return self._page(reply.history or HistoryResult(), since, reverse)

        page: Page[M] = await core.ask(body, 256, unpack, timeout=timeout)
        return page

    def _page(self, result: HistoryResult, since: Position | None, reverse: bool) -> Page[M]:
        top = Position(result.epoch, result.offset)
        found = result.publications
        complete = True
        if since is not None:
            step = -1 if reverse else 1
            end = 1 if reverse else top.offset
            next_ = found[0].offset == since.offset + step if found else (since.offset - end) * step >= 0
            complete = since.epoch == top.epoch and next_
        messages = [m for p in found if isinstance(m := self._reader.message(_raw(p, top.epoch)), Message)]
        return Page(messages, top, complete)

    # -- inside ----------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._bell.ring()
        state = self._membership.state
        if state.phase is Phase.ENDED:
            for feed in (*self._signals, *self._typing):
                feed.end(state.error)
            if self._presence is not None:
                self._presence.end(state.error)
            if self._receipts is not None:
                self._receipts.end(state.error)

    def _told(self, news: News) -> None:
        if isinstance(news, PresenceChange):
            if self._presence is not None:
                self._presence.tell(news)
        elif isinstance(news, MarksChange):
            if self._receipts is not None:
                self._receipts.tell(news)
        else:
            for feed in list(self._typing):
                feed.offer(news)

    def _signalled(self, body: SignalBody) -> None:
        for feed, reader in list(self._signals.items()):
            try:
                data = reader.decode_event(body.event, body.data)
            except BadUnit:
                feed.dropped += 1
                continue
            except Exception:  # of the type's own code: it costs the signal, not the connection
                logger.exception("a signal cannot be read: its type failed")
                feed.dropped += 1
                continue
            if data is not IGNORED:
                feed.offer(Signal(data, body.event, body.user or None, body.client or None))

    def statistics(self) -> RoomStatistics:
        """What this room has seen."""
        return self._membership.state.statistics()

    def __repr__(self) -> str:
        state = self._membership.state
        return (
            f"<RoomClient {self.name!r} {state.phase} at {self.position}, {state.statistics().queued} queued>"
        )


def checked_key(key: str | None) -> str | None:
    """The key, if it can be one on the wire."""
    if key is not None and not (1 <= len(key) <= 128 and is_utf8(key)):
        raise ValueError(f"a key has 1 to 128 characters that UTF-8 can hold, as {key!r:.80} does not")
    return key


def _raw(publication: Publication, epoch: str) -> Message[bytes]:
    info = publication.info
    data = bytes(publication.data) if isinstance(publication.data, Raw) else b"null"
    position = Position(epoch, publication.offset) if publication.offset else None
    user, client = (info.user or None, info.client or None) if info is not None else (None, None)
    return Message(data, position, user, publication.time, client)
