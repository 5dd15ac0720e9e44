"""One transport being driven: what comes in, what goes out, and whether anybody is still there (C1–C5).

Everything here is plain functions on the loop. A connection has no task, timer or queue of its own while
nothing happens: commands that wait are a deque that exists only then, with one task that works it off;
heartbeat and expiry are entries in the hub's deadlines; what is to be sent sits in the outbox until the end
of the loop turn, and leaves in one write (D4).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import codes
from ..primitives.deadlines import Deadline
from ..primitives.heartbeat import Action, HeartbeatState
from ..primitives.outbox import Outbox, Overflow, Spill
from ..primitives.ratelimit import TokenBucket
from ..transports import Handshake, Transport
from ..wire import (
    BadChunk,
    BadCommand,
    Chunk,
    Command,
    Disconnect,
    ErrorBody,
    Push,
    Reply,
    Window,
    decode_command,
    dumps,
    split,
)
from .assembly import Assembly
from .commands import handle, methods_of
from .greeting import refresh
from .large import FENCE, Freight, Parcel, breathe

if TYPE_CHECKING:
    from .engine import Engine
    from .http_session import HttpSession
    from .local import Member
    from .session import Session

__all__ = ["Connection"]

logger = logging.getLogger("rtkit.connection")

_PING = b"{}"
#: Seconds in which is done what a client said before its goodbye, when it does not wait for that.
_LAST_WORDS = 5.0


class Connection:
    """Drives one transport for the hub.

    :ivar session: None until authenticated.
    :ivar http: where its requests come in, over a transport that has no pipe of its own for them.
    :ivar rt: the client announced itself as rtkit's own.
    :ivar clear: nothing is queued here or in the transport, so that what comes next may go past the outbox.
    :ivar lagging: members that read on from history when the outbox has room.
    :ivar place: what its address is counted by, if it is counted (F1).
    """

    __slots__ = (
        "_afloat",
        "_assembly",
        "_auth_deadline",
        "_beat",
        "_beat_deadline",
        "_behind",
        "_bytes",
        "_commands",
        "_corked",
        "_dirty",
        "_expiry_deadline",
        "_freight",
        "_last_large",
        "_last_words",
        "_moved",
        "_overdrawn",
        "_paused",
        "_pending",
        "_pending_bytes",
        "_refreshing",
        "_replies_leave",
        "_said_bye",
        "_untaken",
        "_void",
        "clear",
        "closing",
        "engine",
        "handshake",
        "http",
        "lagging",
        "lost_with",
        "outbox",
        "place",
        "rt",
        "session",
        "transport",
        "wants_pong",
    )

    def __init__(self, engine: Engine, transport: Transport, handshake: Handshake) -> None:
        limits = engine.limits
        self.engine = engine
        self.transport = transport
        # Of somebody who has not said who it is, little is kept (A1).
        transport.max_frame = min(limits.max_connect, limits.max_frame)
        self.handshake = handshake
        self.session: Session[Any] | None = None
        self.http: HttpSession | None = None
        self.rt = False
        self.clear = False
        self.closing = False
        self.lost_with: tuple[int, str] | None = None
        self.place: int | None = None
        self.outbox = Outbox(limit=limits.outbox, reserve=limits.reserve)
        self.lagging: dict[Member, None] = {}
        self._freight: Freight | None = None  # while something large leaves (T8)
        self._last_large = 0  # the id of the large unit that was begun last
        self._afloat = 0  # bytes of it that the transport holds, in one frame
        self._replies_leave: asyncio.Future[None] | None = None
        self._assembly: Assembly | None = None  # since something large came in
        self._pending: deque[tuple[Command, int]] | None = None
        self._pending_bytes = 0  # of large commands alone
        self._paused = False
        self._dirty = False
        self._corked = False
        self._void = False
        self._refreshing = False
        self._said_bye = False
        self._last_words: Deadline | None = None  # of one who is gone
        self._overdrawn = 0
        self._commands = TokenBucket(limits.commands.rate, limits.commands.burst)
        self._bytes = TokenBucket(limits.inbound.rate, limits.inbound.burst)
        self._beat: HeartbeatState | None = None
        self._beat_deadline: Deadline | None = None
        self._behind = False  # the ping stands behind what the peer has not taken yet
        self._moved = False  # of which it has taken something since
        self._untaken = 0  # bytes the transport held when it was last given something
        self._expiry_deadline: Deadline | None = None
        now = engine.clock.monotonic()
        self._auth_deadline: Deadline | None = engine.deadlines.at(
            now + limits.auth_timeout, self.unauthenticated
        )

    # -- what comes in -----------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """A frame of units, from the transport."""
        if self.closing:
            return
        now = self.engine.clock.monotonic()
        if self._beat is not None and frame != _PING and self._beat.heard(now):
            self._watch()
        if self._bytes.take(len(frame), now) > 0:
            self.engine.counters.add("limits", "bytes")
            self.close(codes.TOO_MANY_REQUESTS_CLOSE, "too many bytes")
            return
        if self.session is None:
            self.transport.max_frame -= len(frame)  # in all: what waits behind the connect counts as well
        units = split(frame)
        self.engine.counters.add("received_bytes", amount=len(frame))
        self.engine.counters.add("units_received", amount=len(units))
        if not units:
            # Empty text is no unit; a flood of it must cost its sender something.
            units = [b""]
        for unit in units:
            self._unit(unit, now)
            if self.closing:
                return

    def _unit(self, unit: bytes, now: float, *, assembled: bool = False) -> None:
        if unit == _PING:
            self._pong(now)
            return
        try:
            command = decode_command(unit)
        except BadCommand as error:
            self.engine.counters.add("bad_units")
            if self.session is None or not error.id:
                self.close(codes.BAD_REQUEST_CLOSE, f"bad request: {error.message}")
            elif self._admit(error.id, now):
                self.error(error.id, codes.BAD_REQUEST, error.message)
            return
        if command.connect is None and self.session is None and not self._pending_connect():
            self.close(codes.BAD_REQUEST_CLOSE, "bad request: the first command must be connect")
            return
        if command.chunk is not None and self.rt and not assembled:
            self._chunk(command.chunk, now)
            return
        if not self._admit(command.id, now):
            return
        if command.refresh is not None and self.session is not None and methods_of(command) == ["refresh"]:
            self.refresh(command)  # bypasses the queue: a waiting handler must not let a token expire (C2)
            return
        if command.bye is not None:
            # Carried out in its turn, even if the transport is gone by then (C3).
            self._said_bye = True
        self._enqueue(command, len(unit) if assembled else 0)

    def _chunk(self, chunk: Chunk, now: float) -> None:
        """A piece of a large unit (T8). It costs its bytes alone; the whole costs what any command does (F1)."""
        if chunk.error is not None:
            return  # a client does not refuse what we send; there is nothing we could do about it
        if self._assembly is None:
            self._assembly = Assembly(self.engine, self._refuse, lambda: self._paused)
        assembly, wait = self._assembly, 0.0
        if assembly.costs(chunk) and self._commands.take(0.1, now):
            wait = self._commands.wait(1, now)
            self._overdraw(0, wait)
        if not self.closing and (unit := assembly.add(chunk, now, wait)) is not None:
            self._unit(unit, now, assembled=True)

    def _refuse(self, error: BadChunk, now: float) -> None:
        """Tell the sender of a large unit that it is refused. That costs a command, or refusals would be free."""
        self.engine.counters.add("bad_units")
        self._admit(0, now)
        if self.closing:
            return
        self.engine.counters.add("errors", str(error.code))
        body = ErrorBody(error.code, error.message, error.code in codes.TEMPORARY, error.retry_after or 0.0)
        self.control(dumps(Reply(push=Push(chunk=Chunk(error.of, error=body)))))

    @property
    def busy(self) -> bool:
        """Whether a session has commands that wait or are worked on. Those of a queue alone (C2)."""
        return self.session is not None and self._pending is not None

    def _pending_connect(self) -> bool:
        """Whether the connect command is waiting or being worked on."""
        return self._pending is not None

    def _pong(self, now: float) -> None:
        if self._beat is not None and self._beat.pong(now):
            self._watch()
        if self._commands.take(0.1, now) > 0:
            self._overdraw(0, self._commands.wait(1, now))

    def _admit(self, id: int, now: float) -> bool:
        """Take a token for a command; without one it is refused, and who goes on is closed (F1)."""
        wait = self._commands.take(1, now)
        if wait == 0:
            self._overdrawn = 0
            return True
        self._overdraw(id, wait)
        return False

    def _overdraw(self, id: int, wait: float) -> None:
        self.engine.counters.add("limits", "commands")
        self._overdrawn += 1
        if self._overdrawn > self.engine.limits.commands.burst:
            self.close(codes.TOO_MANY_REQUESTS_CLOSE, "too many requests")
        elif id:
            self.error(id, codes.TOO_MANY_REQUESTS, "too many requests", retry_after=round(wait, 3))

    def _enqueue(self, command: Command, size: int) -> None:
        """Have a command worked off after those that wait.

        :param size: bytes it counts as; 0 for all but large ones.
        """
        self._pending_bytes += size
        if self._pending is None:
            self._pending = deque(((command, size),))
            self.engine.work(self._work_off)
            return
        self._pending.append((command, size))
        limits = self.engine.limits
        full = len(self._pending) >= limits.max_pending or self._pending_bytes > limits.large
        if full and not self._paused:
            self._paused = True
            self.engine.counters.add("limits", "pending")
            if self._beat is not None:
                # While we do not read, we cannot hear a pong: its deadline stands still (C2).
                self._beat.paused(self.engine.clock.monotonic())
            self.transport.pause_reading()

    async def _work_off(self) -> None:
        """Handle the waiting commands one after another; ends when there are none."""
        pending = self._pending
        assert pending is not None
        try:
            while pending and not self.closing:
                if self._freight is not None:
                    await self._wait_for_replies()
                if pending[0][1]:
                    await breathe()
                await handle(self, pending[0][0])
                self._pending_bytes -= pending.popleft()[1]
                limits = self.engine.limits
                if (
                    self._paused
                    and len(pending) <= limits.max_pending // 2
                    and self._pending_bytes <= limits.large
                ):
                    self._resume()
        except BaseException:
            # Not to be answered any more: the client shall know, and send again what it has no answer to.
            self.close(codes.INTERNAL_CLOSE, "internal error")
            raise
        finally:
            self._pending = None
            self._pending_bytes = 0
            if self.lost_with is not None:
                self.close(codes.WS_NORMAL, "bye")  # if what was called a goodbye was none

    async def _wait_for_replies(self) -> None:
        """Let large replies leave before more is done that is answered: who does not read shall not ask (D1)."""
        while (
            self._freight is not None
            and self._freight.replies > self.engine.limits.large // 2
            and not self.closing
        ):
            self._replies_leave = asyncio.get_running_loop().create_future()
            try:
                await self._replies_leave
            finally:
                self._replies_leave = None

    def _resume(self) -> None:
        self._paused = False
        now = self.engine.clock.monotonic()
        if self._assembly is not None:
            self._assembly.resumed(now)
        if self._beat is not None:
            self._beat.resumed(now)
            self._watch()
        self.transport.resume_reading()

    def refresh(self, command: Command) -> None:
        """Begin to renew the identity; one at a time."""
        if self._refreshing:
            self.error(command.id, codes.TOO_MANY_REQUESTS, "a refresh is under way", retry_after=1.0)
            return
        self._refreshing = True
        self.engine.counters.add("commands", "refresh")
        self.engine.spawn(refresh, self, command)

    def refreshed(self) -> None:
        """The refresh has been answered."""
        self._refreshing = False

    # -- what goes out -----------------------------------------------------------------------------

    def push(
        self,
        lane: Any,
        unit: bytes,
        policy: Overflow,
        *,
        key: Any = None,
        mark: int = 0,
        minor: bool = False,
    ) -> Spill | None:
        """Queue a room's push; None when it simply went into the queue (D1).

        :param minor: it gives way to others (D5).
        """
        freight, outside = self._freight, self._outside
        if freight is None and len(unit) <= self.small:
            spill = self.outbox.push(lane, unit, policy, key=key, mark=mark, outside=outside, minor=minor)
        else:
            spill = self._push_apart(lane, unit, policy, key, mark, outside, minor)
        if self.outbox.gave_way:
            self.engine.counters.add("drops", "signal", self.outbox.gave_way)
            self.outbox.gave_way = 0
        self._mark_dirty()
        return spill

    @property
    def _outside(self) -> int:
        """Bytes in the transport's buffer. A large frame in it, as foreign clients get, takes nobody's room."""
        buffered = self.transport.buffered
        return max(0, buffered - self._afloat) if self._afloat else buffered

    @property
    def small(self) -> int:
        """Bytes of a unit at the most that is sent in one piece, through the outbox."""
        return self.engine.small_rt if self.rt else self.engine.small

    def _push_apart(
        self, lane: Any, unit: bytes, policy: Overflow, key: Any, mark: int, outside: int, minor: bool
    ) -> Spill | None:
        """A push that is large, or comes while something large is on its way (T8)."""
        freight = self._freight
        if freight is not None and freight.holds(lane):
            return freight.hold(lane, unit, policy, key=key, mark=mark, outside=outside + self.outbox.size)
        if len(unit) <= self.small or self.outbox.lags(lane):
            outside += freight.waiting if freight is not None else 0
            return self.outbox.push(lane, unit, policy, key=key, mark=mark, outside=outside, minor=minor)
        if freight is not None and not freight.takes_push:
            return freight.hold(lane, unit, policy, key=key, mark=mark, outside=outside + self.outbox.size)
        self._begin(lane, unit, push=True)
        return None

    def answers(self, lane: Any) -> bool:
        """Whether a reply in this lane has not left yet: it is large, or waits behind what is (T8). What comes in
        another lane would overtake it."""
        return self._freight is not None and self._freight.answers(lane)

    def _begin(self, lane: Any, unit: bytes, *, push: bool) -> None:
        """Have a large unit leave, once all that is queued by now has."""
        if self._freight is None:
            limits = self.engine.limits
            self._freight = Freight(
                self._parcel,
                small=self.small,
                whole=not self.rt,
                limit=limits.outbox,
                reserve=limits.reserve,
            )
        fenced = self._corked or bool(self.outbox)
        self._freight.begin(lane, unit, push=push, fenced=fenced)
        if fenced:
            self._requeue([FENCE])

    def _parcel(self, unit: bytes) -> Parcel:
        """The one that others send too, if its id is new to this client: it may have left the room and come back."""
        parcel = self.engine.parcel(unit, after=self._last_large)
        self._last_large = parcel.of
        return parcel

    def _requeue(self, units: list[bytes]) -> None:
        """Put into the outbox what had to wait beside it, and was counted there."""
        waiting = self._freight.waiting if self._freight is not None else 0
        for unit in units:
            # A fence always finds its place: it is no more than a note of ours, one for each large unit, and to close
            # here would change a room's members while it goes through them.
            outside = self._outside + waiting if unit else -self.outbox.size
            if not self.outbox.put(unit, outside=outside):
                self.close(codes.SLOW_CONSUMER, "slow consumer")
                return

    def control(self, unit: bytes, *, lane: Any = None) -> bool:
        """Queue a reply or a control push; False, and closed, when not even the reserve has room.

        :param lane: what comes later in this lane must not overtake it, nor it what came before.
        """
        if self.lost_with is not None:
            return False
        freight, outside = self._freight, self._outside
        if freight is not None and lane is not None and freight.holds(lane):
            most = self.engine.limits.large
            taken = freight.hold_control(lane, unit, outside=outside + self.outbox.size, most=most)
        elif len(unit) > self.small:
            # Who asks for large answers and does not read them has exceeded even what is outside of the outbox.
            taken = freight is None or freight.replies <= self.engine.limits.large
            if taken:
                self._begin(lane, unit, push=False)
        else:
            taken = self.outbox.put(unit, outside=outside if freight is None else outside + freight.waiting)
        if not taken:
            self.close(codes.SLOW_CONSUMER, "slow consumer")
            return False
        self._mark_dirty()
        return True

    def _mark_dirty(self) -> None:
        self.clear = False
        if not self._dirty:
            self._dirty = True
            self.engine.dirty(self)

    def reply(self, reply: Reply, *, lane: Any = None) -> None:
        """Answer a command; one without an id has no answer.

        :param lane: the room whose pushes must come after the answer.
        """
        if not reply.id:
            return
        unit = dumps(reply)
        if len(unit) > self.engine.limits.large:
            self.engine.counters.add("limits", "large")
            self.error(reply.id, codes.LIMIT_EXCEEDED, "the answer is too large")
        else:
            self.control(unit, lane=lane)

    def error(self, id: int, code: int, message: str, *, retry_after: float | None = None) -> None:
        """Answer a command with an error."""
        temporary = code in codes.TEMPORARY or retry_after is not None
        self.engine.counters.add("errors", str(code) if code < codes.APPLICATION else "application")
        body = ErrorBody(code, message, temporary)
        if retry_after:
            body.retry_after = retry_after
        self.reply(Reply(id=id, error=body))

    def cork(self) -> None:
        """Hold everything back, so that the reply to connect comes before what its rooms push."""
        self._corked = True
        self.clear = False

    def void(self) -> None:
        """What was held back is not to be sent: its session does not come about. What comes now, is."""
        self.outbox.clear()
        self._freight = None
        self._void = True

    def uncork(self, first: bytes) -> None:
        """Send *first*, then what was held back."""
        self._corked = False
        self._count([first])
        self.transport.send([first])
        self.flush()

    def flush(self) -> None:
        """Hand what is queued to the transport, as much as it should hold; at the end of a loop turn."""
        self._dirty = False
        if self._corked:
            return
        outbox, transport = self.outbox, self.transport
        if self._behind:
            self._move()
        high = self.engine.high_water
        while outbox and (room := high - transport.buffered) > 0:
            units = outbox.take(room)
            if self._freight is not None and not (units := self._unfenced(units)):
                continue
            self._count(units)
            transport.send(units)
        if self._freight is not None:
            self._ship(self._freight)
        self._untaken = buffered = transport.buffered
        self.clear = not outbox and not buffered and self._freight is None and not self.closing
        if self.lagging and outbox.size + buffered <= high // 2:
            members, self.lagging = self.lagging, {}
            for member in members:
                if self._freight is not None and self._freight.holds(member.room.name):
                    self.lagging[member] = None
                else:
                    self.engine.spawn(self.engine.catch_up, member)

    def _count(self, units: Sequence[bytes]) -> None:
        self.engine.counters.add("units_sent", amount=len(units))
        self.engine.counters.add("sent_bytes", amount=sum(map(len, units)))

    def _unfenced(self, units: list[bytes]) -> list[bytes]:
        """The units without fences; what stood behind those is ready to leave."""
        assert self._freight is not None
        found = [unit for unit in units if unit]
        for _ in range(len(units) - len(found)):
            self._freight.passed()
        return found

    def _ship(self, freight: Freight) -> None:
        """Send one more piece of what is large, if the transport has passed on what it had (T8)."""
        transport = self.transport
        if freight.ready and transport.buffered <= self.engine.high_water // 2:
            batch, units = freight.next()
            self._count(batch.units)
            transport.send_batch(batch)
            if not self.rt and transport.buffered:
                self._afloat = len(batch.units[0])
            self._requeue(units)
            if self._replies_leave is not None and not self._replies_leave.done():
                self._replies_leave.set_result(None)
        if not freight:
            self._freight = None
        if (freight.ready or self.outbox) and not transport.buffered and not self.closing:
            self._mark_dirty()  # the next piece in the next turn, after what comes meanwhile

    def writable(self) -> None:
        """The transport has passed on all it was given."""
        self._afloat = 0
        if not self.closing and not (self._dirty and self._freight is not None):
            self.flush()  # else it comes in this turn, and more than one chunk should not

    def forget(self, member: Member) -> None:
        """A member left its room: what is queued for it is void."""
        self.lagging.pop(member, None)
        name = member.room.name
        kinds = member.room.family.rooms.features
        for lane in (name, (name, "signal"), *((name, kind) for kind in kinds)):
            self.outbox.discard(lane)
            if self._freight is not None:
                self._requeue(self._freight.discard(lane))
                self._mark_dirty()

    # -- life and death ----------------------------------------------------------------------------

    def unauthenticated(self) -> None:
        """The time to authenticate is up (A1). Whose fault that is decides whether the client may come back."""
        if self._pending_connect():
            self.close(codes.INTERNAL_CLOSE, "authentication took too long")
        else:
            self.close(codes.STALE, "not authenticated in time")

    def authenticated(self, session: Session[Any]) -> None:
        """The connection has a session: heartbeats and expiry begin."""
        self.session = session
        self.transport.max_frame = self.engine.limits.max_frame
        self.engine.admission.settled(self)
        if self._auth_deadline is not None:
            self._auth_deadline.cancel()
            self._auth_deadline = None
        policy = self.engine.limits.heartbeat
        if policy is not None and self.transport.kind not in ("poll", "events"):  # one polls, one cannot (F4)
            self._beat = HeartbeatState(policy)
            # The first at a random moment, so that a reconnect storm does not beat in step (F4).
            self._beat.start(self.engine.clock.monotonic(), self.engine.random.random())
            self._watch()
        self.watch_expiry()

    def watch_expiry(self) -> None:
        """Close as expired some time after the identity's end, unless it is refreshed (A3)."""
        if self._expiry_deadline is not None:
            self._expiry_deadline.cancel()
            self._expiry_deadline = None
        if self.closing or self.session is None or self.session.identity.expires_at is None:
            return
        clock = self.engine.clock
        left = self.session.identity.expires_at - clock.time()  # negative when it is over: the leeway runs
        when = clock.monotonic() + left + self.engine.limits.refresh_leeway
        self._expiry_deadline = self.engine.deadlines.at(when, self._expire)

    def _expire(self) -> None:
        self.close(codes.EXPIRED_CLOSE, "expired")

    def _watch(self) -> None:
        assert self._beat is not None
        when, patient = self._beat.next_at, self._beat.judging
        if self._beat_deadline is None:
            self._beat_deadline = self.engine.deadlines.at(when, self._heartbeat, patient=patient)
        else:
            # A stall of our own puts off the verdict on the peer, but no ping: the peer judges us by them (F5).
            self._beat_deadline.move(when, patient=patient)

    def _heartbeat(self) -> None:
        if self._beat is None or self.closing:
            return
        now = self.engine.clock.monotonic()
        action = self._beat.due(now)
        if action is Action.DEAD and self._behind:
            self._move()
            if self._moved:
                self._moved = False
                self._beat.delayed(now)
                self._watch()
                return
        if action is Action.DEAD:
            self.engine.counters.add("heartbeats_lost")
            self.close(codes.NO_PONG, "no pong")
            return
        if action is Action.PING:
            self._behind = bool(self.outbox) or self.transport.buffered > 0 or self._freight is not None
            self._untaken, self._moved = self.transport.buffered, False
        if action is not Action.PING or self.control(_PING):
            self._watch()

    def _move(self) -> None:
        """Look whether the peer has taken something of what a ping stands behind: then it lives, and is slow (F4)."""
        buffered = self.transport.buffered
        if buffered < self._untaken:
            self._moved = True
            self._untaken = buffered
        if not buffered and not self.outbox and self._freight is None:
            # All of it, the ping included: from here on its time to answer runs.
            self._behind = False
            if self._beat is not None:
                self._beat.delayed(self.engine.clock.monotonic())
                self._watch()

    def close(self, code: int, reason: str, *, window: Window | None = None) -> None:
        """Send what is queued, say why, and end. Idempotent."""
        if self.closing:
            return
        self.closing = True  # so that what overflows now does not close it with another code
        self.clear = False
        if self.session is not None and not self._corked:
            self.engine.settle(self.session)
        self.engine.counters.add("closes", str(code))
        if self.lost_with is None:
            if self._corked and not self._void:
                self.void()  # nobody was told of that session: what its rooms push would come before it
            self._corked = False
            units: list[bytes] = []
            # What a peer that does not read has not been sent by now, it will not be. (Over long-poll, what waits to
            # be fetched holds nobody up.)
            if self.outbox and (
                self.transport.buffered < self.engine.high_water or self.transport.kind == "poll"
            ):
                units = self.outbox.take(self.engine.limits.outbox)
            if self._freight is not None:
                units = [unit for unit in units if unit]  # no fences; what is large stays behind
            if window is not None and self.rt:
                units.append(dumps(Reply(push=Push(disconnect=Disconnect(code, reason, window)))))
            if units:
                self._count(units)
                self.transport.send(units)
            self.transport.close(code, reason)
        said_bye = self._said_bye and self.lost_with is not None
        bye = code == codes.WS_NORMAL or codes.is_terminal(code) or said_bye
        self._let_go(code, reason, None if bye else window.max if window is not None else 0.0)
        if self.lost_with is not None:
            self.engine.dropped(self)

    def lost(self, code: int, reason: str) -> None:
        """The transport is gone; called once, last."""
        if self.lost_with is not None:
            return
        self.lost_with = (code, reason)
        if self._said_bye and self._pending and self.session is not None and not self.closing:
            # It said something, said goodbye and hung up, and all came at once: nothing of that shall be lost.
            now = self.engine.clock.monotonic()
            self._last_words = self.engine.deadlines.at(now + _LAST_WORDS, self.close, codes.WS_NORMAL, "bye")
            self.cork()  # there is nobody to be sent anything
            self._paused = False
            self._let_go_of_large()
            return
        if not self.closing:
            self.closing = True
            self.clear = False
            # A violation has its code, whichever side has found it: a transport closes by itself then.
            violated = code in codes.VIOLATIONS
            self.engine.counters.add(
                "closes", str(code) if violated else "lost" if code in (1005, 1006) else "peer"
            )
            # A browser closes with 1001 when its page goes, which may come back; so a goodbye is said with words.
            self._let_go(code, reason, None if self._said_bye else 0.0)
        self.engine.dropped(self)

    def _let_go(self, code: int, reason: str, window: float | None) -> None:
        deadlines = (self._auth_deadline, self._beat_deadline, self._expiry_deadline, self._last_words)
        for deadline in deadlines:
            if deadline is not None:
                deadline.cancel()
        self.engine.admission.settled(self)
        self._beat = None
        self.lagging.clear()
        self.outbox.clear()
        self._let_go_of_large()
        # However long the peer takes to close its end, nothing is delivered to it any more.
        if self.session is not None:
            self.engine.disconnected(self, self.session, reason or codes.describe_close(code), window=window)

    def _let_go_of_large(self) -> None:
        """Nothing large comes or goes any more."""
        self._freight = None
        if self._replies_leave is not None and not self._replies_leave.done():
            self._replies_leave.set_result(None)
        if self._assembly is not None:
            self._assembly.let_go()
            self._assembly = None

    def __repr__(self) -> str:
        who = repr(self.session.identity.user) if self.session is not None else "nobody yet"
        return f"<Connection {self.transport.kind} of {who}{' (closing)' if self.closing else ''}>"
