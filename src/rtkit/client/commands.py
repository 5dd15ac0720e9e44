"""The commands of a client that somebody waits for: order, gates, resending, and giving up. Pure.

The theory
==========
Commands are numbered as they are made; that order is kept for good. Each belongs to a *lane*: its room, or
the lane of no room. A command is in one of two places:

- *waiting* in its lane. A lane has a gate: that of a room is open while the server has us in, that of no
  room while we are connected. Of all open lanes the oldest command goes first.
- *in flight*: written on the connection that lives now, and not answered.

When the connection is lost, what was in flight goes back to where it stood in its lane, so it is written
again before anything newer (H7). That is harmless because it has a key, within the server's window for
keys. The age of a command counts from when it was *first* written, by a clock that counts sleep; beyond half
the window it is not written again but given up as unknown. Commands that only read have no such limit, nor have those
that replace what a client says about itself: done twice is done once.

"Too many requests" says that a command was not taken: it goes back to its lane as if never written, unless
an earlier connection was lost while it was in flight.

Whether a command *may have been taken* decides what its sender is told when it is given up: never written
means certainly not; everything else is unknown.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Container, Iterator
from typing import Final

from ..errors import PublishUnknown, QueueFull
from ..wire import Command, HistoryCommand, PresenceUpdate, Publish, Reply, Rpc, dumps

__all__ = ["NO_ROOM", "Outbox", "Sending", "give_up"]

#: The lane of commands that belong to no room; no room has this name.
NO_ROOM = ""

#: Seconds by which rounding may make a timer early. Without it, who waits for an expiry would wait again
#: for a moment that adding to the clock's reading cannot express.
_HAIR: Final = 1e-6


class Sending:
    """One command on its way.

    :param body: what is sent.
    :param size: bytes it counts as.
    :param settle: called once by the owner of the outbox, with the reply or the error it ended in.
    """

    __slots__ = ("body", "first_written", "id", "keyed", "lane", "lost", "seq", "settle", "size", "written")

    def __init__(
        self,
        body: Publish | Rpc | HistoryCommand | PresenceUpdate,
        *,
        size: int,
        settle: Callable[[Reply | BaseException], None],
    ) -> None:
        self.body = body
        self.lane = NO_ROOM if isinstance(body, Rpc) else body.channel
        self.keyed = isinstance(body, Publish | Rpc)
        self.size = size
        self.settle = settle
        self.seq = 0
        self.id = 0
        """In flight under this id; 0 while waiting."""
        self.first_written: float | None = None
        self.lost = False
        """A connection was lost while it was in flight."""
        self.written = 0

    @property
    def may_be_taken(self) -> bool:
        """Whether the server may have done it."""
        return self.first_written is not None and self.keyed

    def encode(self, id: int) -> bytes:
        """The unit."""
        body = self.body
        if isinstance(body, Publish):
            return dumps(Command(id, publish=body))
        if isinstance(body, Rpc):
            return dumps(Command(id, rpc=body))
        if isinstance(body, PresenceUpdate):
            return dumps(Command(id, presence_update=body))
        return dumps(Command(id, history=body))

    def __lt__(self, other: Sending) -> bool:
        return self.seq < other.seq

    def __repr__(self) -> str:
        where = f"in flight as {self.id}" if self.id else "waiting"
        return f"<Sending #{self.seq} {type(self.body).__name__.lower()} in {self.lane!r}, {where}>"


def give_up(sending: Sending, error: BaseException) -> None:
    """Tell a command's sender that it is over: with *error* only if it certainly was not done."""
    if sending.may_be_taken:
        unknown = PublishUnknown("it may or may not have been done: sent, but not answered")
        unknown.__cause__ = error
        sending.settle(unknown)
    else:
        sending.settle(error)


class Outbox:
    """All commands that are not answered yet.

    :param max_commands: at the most; beyond that :exc:`~rtkit.errors.QueueFull`.
    :param max_bytes: of their payloads at the most; one command always fits an empty outbox.
    :param resend_within: seconds after its first writing within which a command may be written again.
    """

    __slots__ = (
        "_flying",
        "_lanes",
        "_open",
        "_seq",
        "_suspects",
        "bytes",
        "max_bytes",
        "max_commands",
        "resend_within",
    )

    def __init__(
        self, *, max_commands: int = 1000, max_bytes: int = 32 * 1024 * 1024, resend_within: float = 150.0
    ) -> None:
        self.max_commands = max_commands
        self.max_bytes = max_bytes
        self.resend_within = resend_within
        self.bytes = 0
        self._seq = 0
        self._lanes: dict[str, deque[Sending]] = {}
        self._flying: dict[int, Sending] = {}
        self._open: set[str] = set()
        self._suspects: dict[Sending, None] = {}  # waiting, keyed, and written before

    def add(self, sending: Sending) -> None:
        """Take a new command, behind all others of its lane.

        :raises QueueFull: when there is no room; nothing was taken.
        """
        if len(self) >= self.max_commands:
            raise QueueFull(f"{self.max_commands} commands wait for an answer, as many as may (max_offline)")
        if self and self.bytes + sending.size > self.max_bytes:
            raise QueueFull(
                f"the commands that wait for an answer hold {self.bytes} bytes; more than {self.max_bytes} may not"
            )
        self._seq += 1
        sending.seq = self._seq
        self.bytes += sending.size
        self._lanes.setdefault(sending.lane, deque()).append(sending)

    # -- gates -------------------------------------------------------------------------------------

    def open(self, lane: str) -> None:
        """Commands of this lane may be written."""
        self._open.add(lane)

    def shut(self, lane: str) -> None:
        """Commands of this lane have to wait."""
        self._open.discard(lane)

    def waits(self, lane: str) -> bool:
        """Whether a command waits in this lane."""
        return lane in self._lanes

    # -- writing -----------------------------------------------------------------------------------

    def next(self, besides: Container[str] = ()) -> Sending | None:
        """The command that is to be written next; it stays where it is.

        :param besides: lanes that have to wait for something large of theirs (T8).
        """
        best: Sending | None = None
        for lane, waiting in self._lanes.items():
            if lane in self._open and lane not in besides and (best is None or waiting[0].seq < best.seq):
                best = waiting[0]
        return best

    def is_flying(self, id: int) -> bool:
        """Whether a command was written under this id, and somebody waits for its answer."""
        return id in self._flying

    def wrote(self, sending: Sending, id: int, boottime: float) -> None:
        """The command :meth:`next` named is being written under this id."""
        self._take_out(sending)
        sending.id = id
        sending.written += 1
        if sending.first_written is None:
            sending.first_written = boottime
        self._flying[id] = sending

    def answered(self, id: int) -> Sending | None:
        """A reply came: whose it is. That command is gone from here."""
        sending = self._flying.pop(id, None)
        if sending is not None:
            sending.id = 0
            self.bytes -= sending.size
        return sending

    def refused(self, id: int) -> Sending | None:
        """A command was not taken, because of too many: it waits again. None when the id is unknown."""
        sending = self._flying.pop(id, None)
        if sending is None:
            return None
        if not sending.lost:
            sending.first_written = None
        self._put_back(sending)
        return sending

    # -- losing and giving up ------------------------------------------------------------------------

    def lost(self, rooms: Container[str], *, resend: bool = True) -> list[Sending]:
        """The connection is gone: what was in flight waits again. All gates are shut.

        :param rooms: the rooms that will be joined again; commands of others cannot be sent again.
        :param resend: the server knows keys.
        :return: commands that are given up; they may have been taken.
        """
        self._open.clear()
        given_up: list[Sending] = []
        flying, self._flying = self._flying, {}
        for sending in flying.values():
            sending.lost = True
            possible = sending.lane == NO_ROOM or sending.lane in rooms
            if possible and (resend or not sending.keyed):
                self._put_back(sending)
            else:
                sending.id = 0
                self.bytes -= sending.size
                given_up.append(sending)
        return given_up

    def expire(self, boottime: float) -> list[Sending]:
        """Commands that were written too long ago to be written again; they are gone from here."""
        if not self._suspects:
            return []
        limit = boottime - self.resend_within + _HAIR
        old = [s for s in self._suspects if s.first_written is not None and s.first_written <= limit]
        for sending in old:
            self._take_out(sending)
            self.bytes -= sending.size
        return old

    def next_expiry(self) -> float:
        """The boottime after which :meth:`expire` has something; infinite for never."""
        firsts = [s.first_written for s in self._suspects if s.first_written is not None]
        return min(firsts) + self.resend_within if firsts else math.inf

    def withdraw(self, sending: Sending) -> bool:
        """Nobody waits for it any more.

        :return: True when it was still here; look at :attr:`Sending.may_be_taken`.
        """
        if sending.id and self._flying.pop(sending.id, None) is not None:
            self.bytes -= sending.size
            return True
        if sending in self._lanes.get(sending.lane, ()):
            self._take_out(sending)
            self.bytes -= sending.size
            return True
        return False

    def abandon(self, lane: str) -> list[Sending]:
        """The room is gone: take out what waits for it. What is in flight may still be answered."""
        self._open.discard(lane)
        waiting = list(self._lanes.get(lane, ()))
        for sending in waiting:
            self._take_out(sending)
            self.bytes -= sending.size
        return waiting

    def clear(self) -> list[Sending]:
        """Take out everything, in order."""
        everything = sorted(self)
        self._lanes.clear()
        self._flying.clear()
        self._suspects.clear()
        self._open.clear()
        self.bytes = 0
        return everything

    # -- inside --------------------------------------------------------------------------------------

    def _take_out(self, sending: Sending) -> None:
        waiting = self._lanes[sending.lane]
        if waiting[0] is sending:
            waiting.popleft()
        else:
            waiting.remove(sending)
        if not waiting:
            del self._lanes[sending.lane]
        self._suspects.pop(sending, None)

    def _put_back(self, sending: Sending) -> None:
        sending.id = 0
        waiting = self._lanes.setdefault(sending.lane, deque())
        if not waiting or sending.seq < waiting[0].seq:
            waiting.appendleft(sending)
        else:
            insort(waiting, sending)
        if sending.may_be_taken:
            self._suspects[sending] = None

    def __iter__(self) -> Iterator[Sending]:
        yield from self._flying.values()
        for waiting in self._lanes.values():
            yield from waiting

    def __len__(self) -> int:
        return len(self._flying) + sum(len(waiting) for waiting in self._lanes.values())

    def __bool__(self) -> bool:
        return bool(self._flying or self._lanes)

    def __repr__(self) -> str:
        return f"<Outbox {len(self)} commands, {len(self._flying)} in flight>"
