"""The client without its socket: units in, units out, and when to be asked again. Plain, no tasks.

Who drives it hands over what came (:meth:`Engine.feed`), fetches what is to be written
(:meth:`Engine.take`) whenever ``wake`` was called or the time it named has come, and says when a
connection begins and ends. It never awaits and reads no clock: *now* is monotonic, *boot* counts sleep.

What goes out, in this order: the answer to a ping; what is urgent (``connect``, ``refresh``); joins and
leaves; commands, oldest first; what rooms say by and by, such as marks; signals. All but the first two keep to
the rate the server named, a little below it, so that jitter on the way does not make a refusal of it. Commands keep
to the bytes a second, too, that it named; everything that is written counts. Is one refused nevertheless, everything
is held back for as long as the server said, and goes on in its old order.

A command that is larger than the server takes in one unit goes in chunks, one each time there is something
to write, behind all the rest: a large call delays neither the answer to a ping nor another room's commands (T8).
Commands of its own lane wait for it, and so do other large ones. Each of its chunks keeps to the bytes a second; its
command id is the large unit's too, so that a refusal finds its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from .. import codes
from ..errors import BadUnit, ConnectionClosed, InvalidMessage, PublishUnknown
from ..primitives.backoff import Backoff
from ..primitives.ratelimit import TokenBucket
from ..wire import (
    Assembler,
    Bye,
    Command,
    Connect,
    ConnectResult,
    Cut,
    Disconnect,
    MessagePush,
    Publish,
    Push,
    Reply,
    SignalBody,
    Splitter,
    SubRequest,
    decode_reply,
    dumps,
    slice_within,
)
from ..wire.units import RefreshPush
from .calls import Answered, Calls, call_error
from .commands import NO_ROOM, Outbox, Sending, give_up
from .rooms import Rooms

__all__ = ["Engine"]

#: Bytes of units put into one frame; a larger unit goes alone.
_FRAME: Final = 16 * 1024
#: How much of the server's limits is used.
_SHARE: Final = 0.9
_PING: Final = b"{}"
#: Bytes around the payload of a command, at the most: room or procedure, key, and braces.
_ENVELOPE: Final = 2048
_HELD_BACK: Final = 1.0
#: Bytes of a unit that comes in chunks, at the most; a server that sends more is not ours.
_LARGEST: Final = 64 * 1024 * 1024


def _ignore(*_: Any) -> None:
    pass


class Engine:
    """See the module's theory.

    :param wake: called when :meth:`take` has something new.
    :param new_backoff: makes back-offs for rooms.
    """

    def __init__(
        self,
        *,
        wake: Callable[[], None],
        new_backoff: Callable[[], Backoff],
        max_offline: int = 1000,
        max_offline_bytes: int = 32 * 1024 * 1024,
        resend_within: float = 150.0,
    ) -> None:
        self.outbox = Outbox(
            max_commands=max_offline, max_bytes=max_offline_bytes, resend_within=resend_within
        )
        self.calls = Calls(wake)
        self.rooms = Rooms(self.calls, self.outbox, new_backoff=new_backoff)
        self.farewell: Disconnect | None = None
        """What the server said before it closes the connection."""
        self.on_message: Callable[[MessagePush], None] = _ignore
        self.on_refresh: Callable[[RefreshPush], None] = _ignore
        self.rt = False
        """The server is rtkit's own: it knows keys, signals and goodbyes."""
        self.said_bye = False
        self.sent = self.resent = self.held_back = self.received = 0
        self._wake = wake
        self._connected = False
        self._asked: Mapping[str, SubRequest] = {}
        self._answers_pings = False
        self._pinged = False
        self._bye = False
        self._bucket: TokenBucket | None = None
        self._max_unit = self._max_message = self._max_large = 0
        self._volume: TokenBucket | None = None
        self._surge = 0.0
        self._splitter: Splitter | None = None
        self._splitting: Sending | None = None
        self._assembler = _assembler()
        self._held_until = -math.inf
        self._signals = self.rooms.talk.signals
        self._last_words: list[Command] = []

    # -- what the application wants ------------------------------------------------------------------

    def submit(self, sending: Sending) -> None:
        """Queue a command.

        :raises QueueFull: when there is no room.
        """
        self.outbox.add(sending)
        self.rooms.admit(sending.lane)
        self._wake()

    def signal(self, body: SignalBody) -> bool:
        """Queue a signal if it can go out soon; of the same room and event only the newest is kept (D5)."""
        membership = self.rooms.by_name.get(body.channel)
        if not self.rt or not self.rooms.online or membership is None or not membership.state.is_in:
            return False
        if not self._signals.put(body, membership.state.features.signal_rate):
            return False
        self._wake()
        return True

    def refresh(self, command: Command, answered: Answered) -> None:
        """Have a new token shown."""
        self.calls.ask(command, answered, urgent=True)

    # -- connections come and go ---------------------------------------------------------------------

    def connect(self, body: Connect, answered: Callable[[Reply, float], None]) -> None:
        """A pipe is open: introduce yourself. The owner looks at the reply and calls :meth:`begin`."""
        self.farewell = None
        self._asked = body.subs = self.rooms.standings()

        def replied(reply: Reply | None, now: float) -> None:
            if reply is not None:
                answered(reply, now)

        self.calls.ask(Command(connect=body), replied, urgent=True)

    def begin(self, result: ConnectResult, now: float) -> None:
        """The server took us."""
        self._connected = True
        self.rt = result.rt is not None
        self._answers_pings = result.pong
        limits = result.rt.limits if result.rt is not None else None
        if limits is not None:
            self._max_unit, self._max_message, self._max_large = limits.unit, limits.message, limits.large
            if limits.bytes > 0 and limits.surge > 0:
                self._surge = max(1.0, limits.surge * _SHARE)
                self._volume = TokenBucket(limits.bytes * _SHARE, self._surge)
            if limits.rate > 0 and limits.burst > 0:
                self._bucket = TokenBucket(limits.rate * _SHARE, max(1.0, limits.burst * _SHARE))
                self._bucket.force(1, now)  # the connect command itself
        if result.client:
            self.rooms.know_own(result.client)
        self.outbox.open(NO_ROOM)
        resumed = result.rt is not None and result.rt.resumed
        self.rooms.begin(result.subs, self._asked, now, resumed=resumed)
        self._wake()

    def lost(self, now: float, boot: float) -> None:
        """The connection is gone."""
        for sending in self.outbox.lost(self.rooms.by_name, resend=self.rt):
            give_up(sending, ConnectionClosed(1006, "the connection was lost"))
        self._connected = False
        self.rooms.lost()
        self.calls.lost(now)
        self._bucket = None
        self._held_until = -math.inf
        self._pinged = self._answers_pings = False
        self._max_unit = self._max_message = self._max_large = 0
        self._volume = None
        self._splitter = self._splitting = None
        self._assembler = _assembler()
        self.expire(boot)

    def bye(self) -> None:
        """Say goodbye after what is written by now; :attr:`said_bye` tells when."""
        self._bye = True
        self._wake()

    def end(self, error: ConnectionClosed, *, rooms_raise: bool) -> None:
        """The client is closed: nobody gets an answer any more."""
        if self.rt:
            self._last_words = [
                word for m in self.rooms.by_name.values() for word in self.rooms.talk.last_words(m)
            ]
        for sending in self.outbox.clear():
            give_up(sending, error)
        self.rooms.end(error if rooms_raise else None)

    # -- what comes in -------------------------------------------------------------------------------

    def feed(self, unit: bytes, now: float) -> None:
        """One unit from the server.

        :raises BadUnit: for what is none.
        """
        self.received += 1
        if unit == _PING:
            if self._answers_pings:
                self._pinged = True
                self._wake()
            return
        reply = decode_reply(unit)
        chunk = reply.push.chunk if reply.push is not None else None
        if chunk is not None:
            if chunk.error is not None:
                self._answered(Reply(id=chunk.of, error=chunk.error), now)
                return
            whole = self._assembler.add(chunk, now)
            if whole is None:
                return
            reply = decode_reply(whole)
            if reply.push is not None and reply.push.chunk is not None:
                raise BadUnit("a chunk of chunks")
        if reply.push is not None:
            self._pushed(reply.push, now)
        elif reply.id:
            self._answered(reply, now)

    def _pushed(self, push: Push, now: float) -> None:
        if push.disconnect is not None:
            self.farewell = push.disconnect
        elif push.message is not None:
            self.on_message(push.message)
        elif push.refresh is not None:
            self.on_refresh(push.refresh)
        else:
            self.rooms.pushed(push, now)

    def _answered(self, reply: Reply, now: float) -> None:
        error = reply.error
        if error is not None and error.code == codes.TOO_MANY_REQUESTS:
            self.held_back += 1
            wait = error.retry_after if 0 < error.retry_after < math.inf else _HELD_BACK
            self._held_until = max(self._held_until, now + wait)
            self._wake()
            if (refused := self.outbox.refused(reply.id)) is not None:
                self.rooms.disown(refused.lane)
                return
        if self.calls.answer(reply, now):
            return
        sending = self.outbox.answered(reply.id)
        if sending is not None:
            sending.settle(reply if error is None else call_error(error))

    # -- what goes out -------------------------------------------------------------------------------

    def expire(self, boot: float) -> None:
        """Give up what was written too long ago to be written again (H7)."""
        for sending in self.outbox.expire(boot):
            sending.settle(
                PublishUnknown("it may or may not have been done: sent, then offline for too long")
            )

    def next_expiry(self, now: float, boot: float) -> float:
        """When to call :meth:`expire`, in monotonic time."""
        return now + self.outbox.next_expiry() - boot

    def take(self, now: float, boot: float) -> tuple[list[bytes], float]:
        """Frames to be written now; and without any, when to ask again."""
        units, again = self._units(now, boot)
        if self._volume is not None and units:
            self._volume.force(sum(map(len, units)), now)
        return (_frames(units, min(_FRAME, self._max_unit or _FRAME)) if units else units), again

    def _units(self, now: float, boot: float) -> tuple[list[bytes], float]:
        units: list[bytes] = []
        if self._pinged:
            self._pinged = False
            units.append(_PING)
        while self.calls.next(urgent=True):
            if self._bucket is not None:
                self._bucket.force(1, now)
            units.append(self.calls.write(urgent=True))
        if self._bye and not self.said_bye:
            self.said_bye = True
            if self.rt and self._connected:
                for command in self._last_words:
                    if now < self._held_until or (self._bucket is not None and self._bucket.take(1, now) > 0):
                        break  # there is no later, and it is not worth being held back for
                    units.append(self.calls.written(command, _ignore))
                units.append(dumps(Command(bye=Bye())))
            return units, math.inf
        if not self.rooms.online:
            return units, math.inf
        self.expire(boot)
        again = min(self.rooms.due(now), self.next_expiry(now, boot))
        if self._splitter is not None and not self.outbox.is_flying(self._splitter.cut.of):
            # Refused, or nobody waits for it any more: what is there of it, the server forgets.
            self._splitter = self._splitting = None
        size = 0
        while size < _FRAME:
            unit, when = self._next_unit(now, boot)
            if unit is None:
                again = min(again, when)
                break
            if unit:
                units.append(unit)
                size += len(unit)
        chunk, when = self._next_chunk(now)
        if chunk is not None:
            units.append(chunk)
        return units, min(again, when)

    def _next_chunk(self, now: float) -> tuple[bytes | None, float]:
        """One more piece of the large command under way, or when there will be one."""
        splitter = self._splitter
        if splitter is None:
            return None, math.inf
        size = min(slice_within(self._max_unit), len(splitter.cut.unit)) * 4 / 3
        if (wait := self._room_for(size, now)) > 0:
            return None, now + wait
        chunk = next(splitter)
        if splitter.done:
            self._splitter = self._splitting = None
        return chunk, now

    def _room_for(self, size: float, now: float) -> float:
        """Seconds until the server takes so many bytes; for more than it ever takes at once, until it takes that."""
        return 0.0 if self._volume is None else self._volume.wait(min(size, self._surge), now)

    def _next_unit(self, now: float, boot: float) -> tuple[bytes | None, float]:
        """One more unit, or when there will be one; never is infinite. An empty one now leaves in chunks."""
        sending = None
        says = False
        joins = self.calls.next(urgent=False)
        if not joins:
            sending = self._fitting()
            says = sending is None and self.rooms.talk.has_word(now)
            if sending is None and not says and not self._signals.ready(now):
                return None, self._signals.next_at()
        if now < self._held_until:
            return None, self._held_until
        # Of what goes in chunks this is the first; the others follow when there is room for them.
        if sending is not None and (wait := self._room_for(min(sending.size, self._max_unit), now)) > 0:
            return None, now + wait
        if self._bucket is not None and (wait := self._bucket.take(1, now)) > 0:
            return None, now + wait
        if joins:
            return self.calls.write(urgent=False), 0.0
        if says and (word := self.rooms.talk.take_word(now)) is not None:
            return self.calls.written(*word), 0.0
        if sending is not None:
            id = self.calls.new_id()
            self.sent += 1
            if sending.written:
                self.resent += 1
            self.outbox.wrote(sending, id, boot)
            unit = sending.encode(id)
            if self._max_large and len(unit) > self._max_unit:
                self._splitter = Splitter(Cut(unit, id, push=False, size=slice_within(self._max_unit)))
                self._splitting = sending
                return b"", 0.0
            return unit, 0.0
        while self._signals.ready(now):
            signal = self._signals.take(now)
            membership = self.rooms.by_name.get(signal.channel)
            if membership is not None and membership.state.is_in:
                return self.calls.written(Command(signal=signal), _ignore), 0.0
        return b"", 0.0

    def _fitting(self) -> Sending | None:
        """The next command that is within the server's limits; the others are told that they are not."""
        held: frozenset[str] = frozenset() if self._splitting is None else frozenset((self._splitting.lane,))
        while (sending := self.outbox.next(held)) is not None:
            problem = self._problem(sending)
            if problem:
                self.outbox.withdraw(sending)
                give_up(sending, InvalidMessage(problem))
            elif held and sending.size > self._max_unit - _ENVELOPE:
                held |= {sending.lane}  # one that may be large, after the one that is under way
            else:
                return sending
        return None

    def _problem(self, sending: Sending) -> str:
        if self._max_message and isinstance(sending.body, Publish) and sending.size > self._max_message:
            return f"a message of {sending.size} bytes; the server takes {self._max_message}"
        # What stands around a payload is small: only near the limit is it worth encoding to know.
        most = self._max_large or self._max_unit
        near = most and sending.size > most - _ENVELOPE
        if near and len(sending.encode(2**53 - 1)) > most:
            return f"a command of more than {most} bytes, which is all the server takes"
        return ""

    def __repr__(self) -> str:
        rooms = len(self.rooms.by_name)
        return f"<Engine {'online' if self._connected else 'offline'}, {self.outbox!r}, {rooms} rooms>"


def _assembler() -> Assembler:
    """For what one connection brings. How long a server may take, its pings tell."""
    return Assembler(limit=_LARGEST, count=2**20, idle=math.inf, age=math.inf)


def _frames(units: list[bytes], most: int) -> list[bytes]:
    """Small units together, so that few frames are written; a large one alone, so that it still fits."""
    frames: list[bytes] = []
    group: list[bytes] = []
    size = 0
    for unit in units:
        if group and size + len(unit) + 1 > most:
            frames.append(b"\n".join(group))
            group, size = [], 0
        group.append(unit)
        size += len(unit) + 1
    frames.append(b"\n".join(group))
    return frames
