"""One run of a hub: everything that is bound to an event loop, from start to close.

A :class:`~rtkit.hub.hub.Hub` makes an engine when it starts and drops it when it has closed, so that nothing
bound to a loop or a process exists before or after (api 10).
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakValueDictionary

from msgspec import Raw, UnsetType

from .. import codes
from ..brokers import Broker, StreamBroker
from ..brokers.base import keeps_state, keeps_streams
from ..clock import Clock
from ..errors import BadUnit, BrokerUnavailable, DeclarationError, NotSupported, Unavailable
from ..identity import Identity
from ..metrics import Counters, Timings
from ..position import Position
from ..primitives.clocks import sleep, timeout
from ..primitives.deadlines import Deadlines
from ..primitives.tasks import Tasks
from ..publisher import topic_of
from ..streams import StreamPage
from ..wire import UNIT, Envelope, Kind, Publication, Window
from .admission import HubAdmission
from .authority import Authority
from .connection import Connection
from .context import Context, outside_runs
from .control import Control
from .drain import Drain
from .feature import Listener, RunningFeature, RunningPresence, RunningReceipts
from .greeting import refresh_push
from .handle import Room
from .large import Parcel
from .lease import NodeLease
from .local import LocalRoom, Member
from .looplag import LoopLag
from .parking import Parking, TakenUp
from .prepared import HIGH_WATER, REPLY_BYTES, publication, unsubscribe_unit
from .relay import CONTROL, Relay
from .rereads import Rereads
from .revocations import TOPIC as REVOCATIONS
from .revocations import Revocations
from .roundtrips import timed
from .session import Session
from .table import Family, Table
from .underway import Underway
from .versions import Versions
from .web import Web

if TYPE_CHECKING:
    from .config import Limits
    from .hub import Hub

__all__ = ["Engine"]

logger = logging.getLogger("rtkit.hub")

#: Rooms that are read at the same time because something may have been missed: all rooms of a node may be.
REPAIRS: Final = 64
_COMPLAINT: Final = 10.0  # seconds between two lines about the same trouble

#: Bytes published in one loop turn; about as many as a connection hands on in one.
_BREATH = 32 * 1024


class Engine:
    """The running parts of a hub. Internal: applications use the hub."""

    def __init__(self, hub: Hub[Any], table: Table, broker: Broker) -> None:
        self.hub = hub
        self.table = table
        self.counters = Counters()
        self.timings = Timings()
        self.broker = timed(broker, hub.clock, self.timings, self.counters)
        self.limits: Limits = hub.limits
        self.clock: Clock = hub.clock
        self.random = hub.random
        self.node_id = hub.node_id
        self.version = hub.version
        self.tasks = Tasks(name="rtkit", clock=self.clock)
        self.deadlines = Deadlines(self.clock, on_stall=self._stalled)
        self.lag = LoopLag(self)
        self.underway = Underway(self.clock)
        self.admission = HubAdmission(self)
        self.authority = Authority(self)
        self.rereads = Rereads(self.clock, self.deadlines)
        self.lease = NodeLease(self)
        self.relay = Relay(self)
        self.versions = Versions(self)
        self.control = Control(self)
        self.revocations = Revocations(self)
        self.parking = Parking(self)
        self.web = Web(self)
        self.loop = asyncio.get_running_loop()
        self.began_at = self.clock.monotonic()
        # What is told or closed one after another is so in the order in which it came, and not in that of a set.
        self.connections: dict[Connection, None] = {}
        self.sessions: dict[str, Session[Any]] = {}
        self.users: dict[str, dict[Session[Any], None]] = {}
        self.rooms: dict[str, LocalRoom] = {}
        self.features: dict[str, RunningFeature] = {}
        self.listeners: dict[str, Listener] = {}  # of topics that are no rooms
        self.small = self.limits.outbox // 2
        """Bytes of a unit at the most that goes through the outbox; larger ones leave apart (T8)."""
        self.small_rt = min(UNIT, self.small)
        #: Bytes that a transport is given ahead of what it has passed on; the rest waits where policies act on it.
        self.high_water = min(HIGH_WATER, self.small)
        self.assembling = 0
        """Bytes of unfinished large units, of all connections."""
        self.max_publication = max(
            self.limits.max_publication, *(family.max_publication or 0 for family in table.families), 0
        )
        """Bytes of the largest message that some room takes."""
        self._parcels: WeakValueDictionary[int, Parcel] = WeakValueDictionary()
        self._large_units = 0
        self.accepting = True
        self.parks = True
        """Sessions outlive their connections (C3); while the hub drains, if another node could take them up."""
        self.leaving: Drain | None = None
        self._opened = False
        self._dirty: list[Connection] = []
        self._pending: dict[LocalRoom, None] = {}
        self._flushing = False
        self._published = 0  # bytes in this loop turn
        self._runs: dict[tuple[str, str, str], asyncio.Future[Any]] = {}
        self.working: set[asyncio.Task[Any]] = set()
        self.repairs = asyncio.Semaphore(REPAIRS)
        self._complained = -math.inf
        self.quiet = asyncio.Event()
        """There is no connection."""
        self.quiet.set()

    # -- start and close ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Check the declarations against the broker, and connect it (L1).

        :raises DeclarationError: for a family that nobody could join.
        :raises NotSupported: for a broker that cannot do what was declared.
        """
        for family in self.table.families:
            if family.rooms.authorize_hook is None and family.rooms.grant is None:
                raise DeclarationError(
                    f"nobody may join rooms {family.pattern.text!r}: pass grant=Grant(…) to rooms(), or decorate a "
                    f"function with @….authorize that returns one"
                )
            if family.history is not None and not keeps_streams(self.broker):
                raise NotSupported(
                    f"rooms {family.pattern.text!r} have history=, but {type(self.broker).__name__} keeps no streams; "
                    f"use a broker that does, such as memory://"
                )
            if (family.max_publication or 0) + UNIT > self.limits.large:
                raise DeclarationError(
                    f"rooms {family.pattern.text!r} have max_publication={family.max_publication}, which with 64 KiB "
                    f"around it is more than Limits(large={self.limits.large})"
                )
            for kind, feature in family.rooms.features.items():
                if kind not in self.features:
                    self.features[kind] = feature.begin(self)
        await self.broker.open(self)
        self._opened = True
        await self._come_in()
        if self.limits.position_check is not None:
            self.spawn(self._check_positions, self.limits.position_check)

    async def _come_in(self) -> None:
        """Become a node among others: be heard of, and know what they know, before anybody is let in."""
        topics = [CONTROL, self.relay.topic]
        if keeps_state(self.broker):
            topics.append(REVOCATIONS)
        await self.broker.subscribe(topics)
        await self.lease.hold()
        if keeps_state(self.broker) and not self.lease.held:
            raise BrokerUnavailable("the broker is away: this node could not be announced to the others")
        await self.versions.tell()
        await self.revocations.begin()

    async def aclose(self) -> None:
        """Tell every client when to come back, let handlers end, and let go of everything (L1).

        Cancelled, or called because the start has failed, it lets go all the same.
        """
        try:
            await self.drain()
            for feature in self.features.values():
                await feature.aclose()
            await self.parking.aclose()
            await self.lease.release()
        finally:
            if self.leaving is not None:
                self.leaving.abandon()  # nobody is left, unless this was cancelled
            self.lag.close()
            self.deadlines.close()
            self.relay.close()
            try:
                await self.tasks.aclose(timeout=self.limits.drain_timeout)
            finally:
                self.rooms.clear()
                if self._opened:
                    await self.broker.aclose()

    async def drain(self, *, spread: float | None = None, timeout: float | None = None) -> None:
        """Take no new client, and send those away that are there; see :meth:`Hub.drain`."""
        self.accepting = False
        if self.leaving is None:
            self.leaving = Drain(self)
        await self.leaving.run(spread, timeout)

    # -- owned tasks and time ----------------------------------------------------------------------

    def spawn(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run *func* in a task that nobody waits for and that dies with the hub at the latest."""
        _ = self.tasks.spawn(func, *args, context=outside_runs(self.hub))

    def work(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """The same for commands and their handlers: a closing hub lets them end, within its deadline."""
        task = self.tasks.spawn(func, *args, context=outside_runs(self.hub))
        self.working.add(task)
        task.add_done_callback(self.working.discard)

    def task(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> asyncio.Task[Any]:
        """The same, for somebody who waits, or cancels it."""
        return self.tasks.spawn(func, *args, context=outside_runs(self.hub))

    def backoff(self) -> float:
        """Seconds until something that failed for the broker's sake is tried again."""
        return 0.1 + self.random.random() * 0.9

    def time_left(self, expires_at: float | None) -> tuple[bool, int]:
        """Whether an identity expires, and in how many whole seconds, at least one."""
        if expires_at is None:
            return False, 0
        return True, max(1, int(expires_at - self.clock.time()))

    def _stalled(self, lag: float) -> None:
        self.counters.add("stalls")  # who did it, if anybody did, the monitor says

    # -- sending -----------------------------------------------------------------------------------

    def dirty(self, connection: Connection) -> None:
        """Something was queued: flush at the end of this loop turn, all connections at once (D4)."""
        self._dirty.append(connection)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def pending(self, room: LocalRoom) -> None:
        """A room has something for its members: hand it out at the end of this loop turn."""
        self._pending[room] = None
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def parcel(self, unit: bytes, *, after: int = 0) -> Parcel:
        """The large unit as a parcel: the one that others send already, if it is the same buffer.

        :param after: the last id that the connection has used. It uses none twice, so that only a later one will do.
        """
        found = self._parcels.get(id(unit))  # which is nobody else's: the parcel keeps the unit alive
        if found is None or found.of <= after:
            self._large_units += 1
            found = self._parcels[id(unit)] = Parcel(unit, self._large_units)
        return found

    def settled(self, room: LocalRoom) -> None:
        """The room has handed out what it had."""
        self._pending.pop(room, None)

    def settle(self, session: Session[Any]) -> None:
        """Hand out what waits for this session, which is about to be told goodbye."""
        for room in [room for room in self._pending if room.name in session.rooms]:
            room.settle()

    async def breathe(self, size: int) -> None:
        """After publishing so many bytes: let what has become much leave before more comes.

        Where the broker lives in this process, publishing in a loop gives nobody else a turn, and would overflow the
        outboxes of members that keep up (D3).
        """
        self._published += size
        if self._published >= _BREATH:
            self._published = 0
            await asyncio.sleep(0)

    def _flush(self) -> None:
        self._flushing = False
        self._published = 0
        alone = len(self._pending) == 1
        while self._pending:
            next(iter(self._pending)).settle(alone=alone)
        connections, self._dirty = self._dirty, []
        for connection in connections:
            if not connection.closing:
                try:
                    connection.flush()
                except Exception as error:
                    # It would wait for a flush for ever, and so would all behind it.
                    logger.exception("%r could not be flushed", connection, exc_info=error)
                    connection.close(codes.INTERNAL_CLOSE, "internal error")

    async def catch_up(self, member: Member) -> None:
        """A lagging member has room again; see :meth:`LocalRoom.catch_up`."""
        try:
            await member.room.catch_up(member)
        except Unavailable as error:
            logger.warning("room %r: a member waits for the broker: %s", member.room.name, error)
            await sleep(self.clock, self.backoff())
            if not member.left and member.session.connection is not None:
                member.session.connection.lagging[member] = None
                member.session.connection.flush()
        except Exception as error:
            # It stands still and would never know: let it come back, and recover (H3).
            logger.exception("room %r: a member could not catch up", member.room.name, exc_info=error)
            if member.session.connection is not None:
                member.session.connection.close(codes.INTERNAL_CLOSE, "internal error")

    def send_signal(
        self, room: str, event: str, data: Raw, session: Session[Any], *, to_all: bool = False
    ) -> None:
        """Tell those who are in a room now, on behalf of a session (D5).

        :param data: canonical JSON.
        :param to_all: the session's own client gets it too.
        """
        envelope = Envelope(
            v=1,
            kind=Kind.SIGNAL,
            data=data,
            event=event,
            user=session.identity.user,
            client=session.id,
            skip="" if to_all else session.id,
        )
        self.send_quietly(topic_of(room), self.versions.seal(envelope))

    def send_quietly(self, topic: str, payload: bytes) -> None:
        """Publish without waiting; a failure is counted, for what may be lost anyway."""
        self.spawn(self._send_quietly, topic, payload)

    async def _send_quietly(self, topic: str, payload: bytes) -> None:
        try:
            await self.broker.publish(topic, payload)
        except Unavailable:
            self.counters.add("drops", "signal")

    # -- sessions ----------------------------------------------------------------------------------

    def adopt(self, connection: Connection) -> None:
        """A transport was opened."""
        self.connections[connection] = None
        self.quiet.clear()
        self.lag.start()
        self.counters.add("connections")
        if not self.admission.enter(connection):
            connection.close(codes.TRY_LATER, "try again later")
        if not self.accepting:
            # Let in before the hub began to drain; its host has to know of it before it is closed.
            window = Window(0.0, 1.0)
            self.loop.call_soon(lambda: connection.close(codes.DRAINING, "draining", window=window))

    def begin(
        self, connection: Connection, identity: Identity[Any], taken: TakenUp | None = None
    ) -> Session[Any] | None:
        """A connection is authenticated: it gets a session, a new one or the one it has taken up.

        :return: None when a newer claim took the session up meanwhile.
        """
        client = secrets.token_urlsafe(12) if taken is None else taken.client
        session = self.sessions.get(client)
        if session is None:
            session = self.sessions[client] = Session(self, client, identity)
            self.users.setdefault(identity.user, {})[session] = None
            self.counters.add("sessions")
        if taken is not None:
            if session.generation >= taken.generation:
                return None
            self.parking.attach(session, taken)
        session.identity = identity
        session.connection = connection
        if connection.closing:
            self.disconnected(connection, session, "connection lost")
        else:
            connection.authenticated(session)
            if session.stale:
                session.stale = False
                self.ask_to_refresh(session, connection)
        return session

    async def started(self, session: Session[Any]) -> None:
        """Run the application's ``on_session_start``."""
        while (earlier := session.starting) is not None and not earlier.done():
            await asyncio.wait((earlier,))  # it runs for a connection that the session has left meanwhile
        if session.ended or (earlier is not None and earlier.result()):
            return
        session.starting = starting = self.loop.create_future()
        done = False
        try:
            async with timeout(self.clock, self.limits.handler_timeout):
                for hook in self.hub.start_hooks:
                    await self.lag.watch(hook, hook(self._context(session)))
            done = True
        finally:
            starting.set_result(done)

    def dropped(self, connection: Connection) -> None:
        """The host has let go of the transport."""
        self.connections.pop(connection, None)
        self.admission.left(connection)
        if connection.http is not None:
            self.web.forget(connection.http)
        if not self.connections:
            self.quiet.set()

    def disconnected(
        self, connection: Connection, session: Session[Any], reason: str, *, window: float | None = 0.0
    ) -> None:
        """A connection is over. Its session parks, or ends with it; handlers that run go on (C3, api 5).

        :param window: seconds after which its client was told to come back, at the most; None when it will not.
        """
        if session.connection is not connection:
            return  # it has another one
        may_return = (
            window is not None
            and connection.rt
            and connection.transport.kind != "events"  # nobody comes back to a session there, but to a place
            and (session.established or session.resumed)
            and self.limits.grace is not None
        )
        if may_return and self.parks:
            self.parking.park(session, reason, window=window or 0.0)
            return
        for member in list(session.rooms.values()):
            self.leave(member)
        self.parking.end(session, reason, left=may_return)

    def end(self, session: Session[Any], reason: str, *, elsewhere: bool = False) -> None:
        """A session is over on this node.

        :param elsewhere: another node has it now.
        """
        session.connection = None
        if self.sessions.get(session.id) is not session:
            return
        del self.sessions[session.id]
        of_user = self.users.get(session.identity.user)
        if of_user is not None:
            of_user.pop(session, None)
            if not of_user:
                del self.users[session.identity.user]
        session.end()
        if not elsewhere:
            self.parking.ended(session)
        if self.hub.end_hooks:
            self.work(self._run_end_hooks, session, reason)

    async def _run_end_hooks(self, session: Session[Any], reason: str) -> None:
        if session.starting is None:
            return  # the application has not heard of it
        while not session.starting.done():
            await asyncio.wait((session.starting,))
        for hook in self.hub.end_hooks:
            try:
                async with timeout(self.clock, self.limits.handler_timeout):
                    await self.lag.watch(hook, hook(self._context(session), reason))
            except Exception as error:
                logger.exception("on_session_end failed", exc_info=error)

    def _context(self, session: Session[Any]) -> Context[Any, Any]:
        return Context(hub=self.hub, session=session, room=None, data=None, key=None, resumed=session.resumed)

    async def once(
        self,
        session: Session[Any],
        key: str | None,
        target: str,
        run: Callable[[], Awaitable[Raw | UnsetType]],
    ) -> Raw | UnsetType:
        """Run a handler; a resend of a command whose first run is still going joins it (api 5)."""
        if key is None:
            return await run()
        scope = (session.identity.user, target, key)
        first = self._runs.get(scope)
        if first is not None:
            try:
                return await asyncio.shield(first)
            except asyncio.CancelledError:
                if not first.cancelled():
                    raise  # it is us who were cancelled
        result: asyncio.Future[Any] = self.loop.create_future()
        self._runs[scope] = result
        try:
            value = await run()
        except Exception as error:
            result.set_exception(error)
            result.exception()  # retrieved: nobody else may be waiting for it
            raise
        except BaseException:
            result.cancel()
            raise
        else:
            result.set_result(value)
            return value
        finally:
            if self._runs.get(scope) is result:
                del self._runs[scope]

    # -- rooms -------------------------------------------------------------------------------------

    @property
    def stream(self) -> StreamBroker:
        """The broker, of which :meth:`start` has made sure that it keeps streams."""
        assert keeps_streams(self.broker)
        return self.broker

    def lookup(self, name: str) -> tuple[Family, Mapping[str, str]]:
        """The family of a room name; raises :class:`~rtkit.errors.UnknownRoom`."""
        return self.table.find(name)

    def local(self, name: str, family: Family, params: Mapping[str, str]) -> LocalRoom:
        """The room as this node sees it."""
        room = self.rooms.get(name)
        if room is None:
            room = self.rooms[name] = LocalRoom(self, name, family, params)
        return room

    def entered(self, member: Member) -> None:
        """The application knows of the member, and will be told when it leaves, or now if it has left."""
        if not member.entered:
            member.entered = True
            for kind in member.room.family.rooms.features:
                self.features[kind].entered(member)
            if member.left and member.room.name not in member.session.parked:
                self.departed(member)

    def leave(self, member: Member) -> None:
        """A member leaves its room, or gives up joining it."""
        if not member.left:
            self.detach(member)
            if member.entered:
                self.departed(member)

    def detach(self, member: Member) -> None:
        """Nothing is delivered to a member any more. To the others it is still there, until it has departed."""
        room, session = member.room, member.session
        room.leave(member)
        for kind in room.family.rooms.features:
            self.features[kind].detached(member)
        if session.rooms.get(room.name) is member:
            del session.rooms[room.name]
        if not (room.live or room.outside):
            self.spawn(self._close_room, room)

    def departed(self, member: Member) -> None:
        """A member that had entered is gone: everybody may know."""
        for kind in member.room.family.rooms.features:
            self.features[kind].departed(member)
        self._tell_left(member)

    def moved(self, session: Session[Any], name: str) -> None:
        """A session goes on at another node, which has it in this room now (C4): nobody is told anything."""
        for kind in self.lookup(name)[0].rooms.features:
            self.features[kind].moved(session, name)

    @property
    def presence(self) -> RunningPresence:
        """Who is in the rooms of families that have presence; ask for no others."""
        return cast("RunningPresence", self.features["presence"])

    @property
    def receipts(self) -> RunningReceipts:
        """How far users have come in rooms of families that have receipts; ask for no others."""
        return cast("RunningReceipts", self.features["receipts"])

    def _tell_left(self, member: Member) -> None:
        if member.room.family.rooms.leave_hook is not None:
            self.work(self._run_leave_hook, member)

    async def _close_room(self, room: LocalRoom) -> None:
        try:
            await room.close()
        except Unavailable as error:
            logger.warning("room %r: could not unsubscribe: %s", room.name, error)
        if not (room.live or room.outside or room.subscribed) and self.rooms.get(room.name) is room:
            del self.rooms[room.name]

    async def _run_leave_hook(self, member: Member) -> None:
        room, session = member.room, member.session
        hook = room.family.rooms.leave_hook
        assert hook is not None
        handle: Room[Any] = Room(self.hub, room.family, room.name, room.params, session=session)
        ctx = Context(
            hub=self.hub, session=session, room=handle, data=None, key=None, resumed=session.resumed
        )
        try:
            async with timeout(self.clock, self.limits.handler_timeout):
                await self.lag.watch(hook, hook(ctx))
        except Exception as error:
            extra = {"session": session.id, "user": session.identity.user, "room": room.name}
            logger.exception("on_leave failed", exc_info=error, extra=extra)

    def unsubscribe(self, member: Member, code: int, reason: str) -> None:
        """Take a member out of its room, and tell its client."""
        connection = member.session.connection
        self.leave(member)
        if connection is not None:
            connection.control(unsubscribe_unit(member.room.name, code, reason), lane=member.room.name)

    async def clear(self, name: str) -> Position:
        """Begin a new epoch in a room's stream, and have every node notice."""
        topic = topic_of(name)
        position = await self.stream.clear(topic)
        room = self.rooms.get(name)
        if room is not None:
            room.forget_reads()
        try:
            await self.control.check_everywhere(name)
        except Unavailable:
            if room is not None:
                room.interrupted()  # it is cleared all the same; others see that at the next comparison (H4)
            raise
        return position

    async def read_history(
        self, name: str, family: Family, *, since: Position | None, limit: int, reverse: bool, rt: bool
    ) -> tuple[StreamPage, list[Publication]]:
        """A page of a room's history, as the wire shows it; shorter where a reply could not hold it."""
        page = await self.stream.read(
            topic_of(name), since=since, limit=limit, reverse=reverse, history=family.history
        )
        found: list[Publication] = []
        size = 0
        for entry in page.entries:
            size += len(entry.payload)
            if found and size > REPLY_BYTES:
                break
            try:
                found.append(publication(self.versions.formats.open(entry.payload), entry.offset, rt))
            except BadUnit as error:
                self.versions.unreadable(f"room {name!r}, offset {entry.offset}", error)
        return page, found

    async def _check_positions(self, interval: float) -> None:
        """Compare the tops of quiet rooms, so that a lost last message is noticed too (H4)."""
        while True:
            await sleep(self.clock, interval * (0.75 + self.random.random() / 2))
            try:
                await self.revocations.check()
            except Unavailable as error:
                logger.warning("revocations could not be checked: %s", error)
            except Exception as error:
                logger.exception("revocations could not be checked", exc_info=error)
            rooms = list(self.rooms.values())
            for first in range(0, len(rooms), REPAIRS):
                await asyncio.gather(*map(self._check, rooms[first : first + REPAIRS]))

    async def _check(self, room: LocalRoom) -> None:
        try:
            await room.check()
        except Unavailable as error:
            # Of one room, perhaps: a broker may keep all others.
            self.cannot_read(room, error)
        except Exception as error:
            logger.exception("room %r could not be checked", room.name, exc_info=error)

    def cannot_read(self, room: LocalRoom, error: Unavailable) -> None:
        """Say, but not for each of ten thousand rooms, that one waits for the broker."""
        now = self.clock.monotonic()
        if now - self._complained >= _COMPLAINT:
            self._complained = now
            logger.warning("room %r, and perhaps others, cannot be read: %s", room.name, error)

    # -- the broker's sink -------------------------------------------------------------------------

    def deliver(self, topic: str, payload: bytes, position: Position | None) -> None:
        """From the broker. Whatever it hands over, the next one is delivered too."""
        try:
            if topic in (CONTROL, self.relay.topic):
                self.relay.deliver(payload)
            elif topic == REVOCATIONS:
                self.revocations.deliver(payload, position)
            else:
                room = self.rooms.get(topic.removeprefix("room:")) or self.listeners.get(topic)
                if room is not None:
                    room.deliver(payload, position)
        except BadUnit as error:
            self.versions.unreadable(f"topic {topic!r}", error, stored=False)

    def interrupted(self, topics: Iterable[str]) -> None:
        """From the broker: these may have missed something."""
        for topic in topics:
            if topic == REVOCATIONS:
                self.revocations.interrupted()
                continue
            room = self.rooms.get(topic.removeprefix("room:")) or self.listeners.get(topic)
            if room is not None:
                room.interrupted()

    def ask_to_refresh(self, session: Session[Any], connection: Connection) -> None:
        """Have a client show a new token, or be closed as expired (A3)."""
        identity = session.identity
        until = self.clock.time() + 1.0
        if identity.expires_at is None or identity.expires_at > until:
            session.identity = Identity(identity.user, identity.claims, expires_at=until)
        connection.watch_expiry()
        connection.control(refresh_push(1))

    def __repr__(self) -> str:
        return f"<Engine {self.node_id}: {len(self.sessions)} sessions, {len(self.rooms)} rooms>"
