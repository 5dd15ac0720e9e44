"""Commands the client itself has to ask for, and whose reply is whose. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from .. import codes
from ..errors import CallError
from ..wire import Command, ErrorBody, Reply, dumps

__all__ = ["Answered", "Calls", "call_error", "window_of"]

#: Called with the reply and the moment; with None when the connection is lost before.
Answered = Callable[[Reply | None, float], None]


def call_error(error: ErrorBody) -> CallError:
    """The exception for an error reply."""
    temporary = error.temporary or error.code in codes.TEMPORARY
    retry_after = max(0.0, error.retry_after) or None
    return CallError(error.code, error.message, temporary=temporary, retry_after=retry_after)


def window_of(error: CallError) -> tuple[float, float] | None:
    """When to try again, as the server said; spread over half as long again."""
    if error.retry_after is None or not error.retry_after < math.inf:
        return None
    return error.retry_after, error.retry_after * 1.5


class Calls:
    """The control commands of one connection after another: joins, refreshes, and the ids of everything.

    :param wake: called when something is to be written.
    """

    __slots__ = ("_id", "_queue", "_urgent", "_waiting", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._id = 0
        self._queue: deque[tuple[Command, Answered]] = deque()
        self._urgent: deque[tuple[Command, Answered]] = deque()
        self._waiting: dict[int, Answered] = {}

    def ask(self, command: Command, answered: Answered, *, urgent: bool = False) -> None:
        """Have a command written; what is urgent goes before everything, and is not held back."""
        (self._urgent if urgent else self._queue).append((command, answered))
        self.wake()

    def new_id(self) -> int:
        """For a command of this connection; the first is 1."""
        self._id += 1
        return self._id

    def next(self, *, urgent: bool) -> bool:
        """Whether there is something to write."""
        return bool(self._urgent if urgent else self._queue)

    def write(self, *, urgent: bool) -> bytes:
        """The unit that is written next."""
        return self.written(*(self._urgent if urgent else self._queue).popleft())

    def written(self, command: Command, answered: Answered) -> bytes:
        """The unit of a command that is written now, without having waited here."""
        command.id = self.new_id()
        self._waiting[command.id] = answered
        return dumps(command)

    def answer(self, reply: Reply, now: float) -> bool:
        """Hand over a reply; False when nobody here asked."""
        answered = self._waiting.pop(reply.id, None)
        if answered is None:
            return False
        answered(reply, now)
        return True

    def lost(self, now: float) -> None:
        """The connection is gone: who waits for a reply gets None, and ids begin anew."""
        waiting = [*self._waiting.values(), *(answered for _, answered in (*self._urgent, *self._queue))]
        self._waiting.clear()
        self._urgent.clear()
        self._queue.clear()
        self._id = 0
        for answered in waiting:
            answered(None, now)

    def __repr__(self) -> str:
        return (
            f"<Calls {len(self._waiting)} unanswered, {len(self._queue) + len(self._urgent)} to be written>"
        )
