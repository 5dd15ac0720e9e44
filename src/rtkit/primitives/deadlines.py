"""Any number of deadlines on one clock timer (C5, F5).

Structure
---------
A heap of ``(when, number, deadline)``, and one timer of the clock, set to the earliest entry. A hub
has several deadlines per connection, and moves most of them later again and again without one ever
firing. So moving later writes one number down and touches nothing else; the entry is found to be
early when it comes to the top, and goes back into the heap with its later time. Cancelling, and
moving to an earlier time, leave a dead entry behind, recognised by its number; when more than half
of the heap is dead it is rebuilt. So each operation is O(log n) at the most, amortised, moving
later is O(1), and the garbage is bounded by what lives.

The timer may therefore go off with nothing due. It is set anew from what is in the heap then.

Firing
------
All that is due when the timer goes off is collected first, then called in the order of time and of
setting. Callbacks are plain functions and may add, move and cancel anything, themselves included:
one that was collected, and is cancelled or moved before its turn, is not called; one that is added
meanwhile waits for the next round, however early its time. A deadline that has fired may be moved:
it is armed again. An exception is logged and stops nobody else.

Stalls
------
When the process itself stood still (a blocking handler, SIGSTOP, a starved machine), the clock ran
on, and every peer looks silent although nobody listened. The timer then goes off late, and by how
much is a lower bound for the stall. If that lag exceeds *stall* seconds, every deadline made with
``patient=True`` is put off by the lag plus *stall*: the lag, because that time was not the peer's;
*stall* more, because what the peers said meanwhile still lies in the kernel's buffers and has to be
read and worked off first. A stall that ends before the timer was due needs no such care: the loop
gets to read before it gets to judge. Patient deadlines live in a heap of their own whose clock is
set back by the sum of all such delays, so putting off all of them is one addition.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from ..clock import Clock, Timer
from ..errors import NotRunning

__all__ = ["Deadline", "Deadlines", "DeadlinesStatistics"]

_log: Final = logging.getLogger("rtkit.deadlines")

_SMALL: Final = 64
"""A heap up to this size is not worth rebuilding."""

_NOT_QUEUED: Final = 0


@dataclass(frozen=True, slots=True)
class DeadlinesStatistics:
    """What a :class:`Deadlines` holds and has seen.

    :param pending: deadlines that are armed.
    :param garbage: dead entries that still lie in the heap.
    :param fired: callbacks called.
    :param failed: of these, ended by an exception.
    :param stalls: how often the timer was late beyond the tolerance.
    :param stalled: seconds it was late on these occasions, together.
    """

    pending: int
    garbage: int
    fired: int
    failed: int
    stalls: int
    stalled: float


class _Heap:
    """Entries in their own time: the clock's, less *shift*."""

    __slots__ = ("entries", "live", "shift")

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Deadline]] = []
        self.live = 0
        self.shift = 0.0

    def first(self) -> float:
        """The clock's time of the earliest live entry; infinite without one. Clears what is in its way."""
        entries = self.entries
        while entries:
            when, number, deadline = entries[0]
            if deadline._number != number:
                heapq.heappop(entries)
            elif deadline._when > when:
                heapq.heapreplace(entries, (deadline._when, number, deadline))
            else:
                return when + self.shift
        return math.inf

    def own(self, when: float) -> float:
        """A moment of the clock in this heap's time: what is due is never so before it, by the clock.

        Rounding would have it otherwise, and who then finds that its time has not come sets the same moment again.
        """
        own = when - self.shift
        # Rounded to the nearest, it is off by half a step at the most.
        return own if own + self.shift >= when else math.nextafter(own, math.inf)

    def forget(self, deadline: Deadline) -> None:
        deadline._number = _NOT_QUEUED
        self.live -= 1
        if len(self.entries) > _SMALL and len(self.entries) > 2 * self.live:
            self.entries = [entry for entry in self.entries if entry[2]._number == entry[1]]
            heapq.heapify(self.entries)


@final
class Deadline:
    """One entry of a :class:`Deadlines`; made by :meth:`Deadlines.at`."""

    __slots__ = ("_args", "_callback", "_heap", "_number", "_owner", "_when")

    def __init__(
        self,
        owner: Deadlines,
        heap: _Heap,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self._owner = owner
        self._heap = heap
        self._when = when  # in the time of the heap
        self._number = _NOT_QUEUED
        self._callback: Callable[..., object] | None = callback
        self._args = args

    @property
    def when(self) -> float:
        """The moment, in seconds of the clock's ``monotonic()``."""
        return self._when + self._heap.shift

    @property
    def armed(self) -> bool:
        """Whether the callback is still to be called; also False while it is being called."""
        return self._number != _NOT_QUEUED

    def move(self, when: float, *, patient: bool | None = None) -> bool:
        """Set another moment. Later is O(1). A deadline that has fired is armed again.

        :param patient: whether a stall of our own puts it off; None leaves that as it is.
        :return: False, and nothing is changed, once it was cancelled or its owner closed.
        :raises ValueError: for a NaN.
        """
        if self._callback is None or self._owner._closed:
            return False
        if when != when:
            raise ValueError(f"a deadline is a number of seconds, not {when!r}")
        if patient is not None:
            heap = self._owner._patient if patient else self._owner._plain
            if heap is not self._heap:
                if self._number != _NOT_QUEUED:
                    self._heap.forget(self)
                self._heap = heap
        when = self._heap.own(when)
        if self._number != _NOT_QUEUED and when >= self._when:
            self._when = when
        else:
            self._owner._push(self, when)
        return True

    def cancel(self) -> None:
        """Never call the callback, and let go of it. Idempotent; harmless after it has fired."""
        self._callback = None
        self._args = ()
        if self._number != _NOT_QUEUED:
            self._heap.forget(self)
            self._owner._rest()

    def __repr__(self) -> str:
        state = "armed" if self.armed else "cancelled" if self._callback is None else "fired"
        return f"<Deadline {self.when:.3f} {state}>"


@final
class Deadlines:
    """One structure, and one clock timer, for all deadlines of a process.

    Nothing is bound before the first :meth:`at`, which is also when a clock that belongs to a loop
    needs it to be running.

    :param clock: tells the time and wakes.
    :param stall: seconds the timer may be late before that counts as a stall of our own, which
        puts off the patient deadlines (F5); None never does.
    :param on_stall: called with the lag in seconds when that happens. Plain function.
    :raises ValueError: for a tolerance that is not positive.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_counter",
        "_due",
        "_failed",
        "_fired",
        "_firing",
        "_on_stall",
        "_patient",
        "_plain",
        "_stall",
        "_stalled",
        "_stalls",
        "_timer",
        "_timer_at",
    )

    def __init__(
        self, clock: Clock, *, stall: float | None = 1.0, on_stall: Callable[[float], object] | None = None
    ) -> None:
        if stall is not None and not stall > 0:
            raise ValueError(f"Deadlines(stall=…) is positive seconds or None, not {stall!r}")
        self._clock = clock
        self._stall = math.inf if stall is None else stall
        self._on_stall = on_stall
        self._plain = _Heap()
        self._patient = _Heap()
        self._due: list[Deadline] = []  # collected and not yet called, the next one last
        self._counter = _NOT_QUEUED
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._firing = False
        self._closed = False
        self._fired = 0
        self._failed = 0
        self._stalls = 0
        self._stalled = 0.0

    def at(self, when: float, callback: Callable[..., object], *args: Any, patient: bool = False) -> Deadline:
        """Call ``callback(*args)`` when the clock gets to *when*; never before returning.

        :param when: seconds of the clock's ``monotonic()``; infinite for not yet.
        :param patient: a stall of our own puts it off (see the module's theory). For judging peers.
        :raises ValueError: for a NaN.
        :raises NotRunning: after :meth:`close`.
        """
        if self._closed:
            raise NotRunning("these deadlines are closed")
        if when != when:
            raise ValueError(f"a deadline is a number of seconds, not {when!r}")
        heap = self._patient if patient else self._plain
        deadline = Deadline(self, heap, heap.own(when), callback, args)
        self._push(deadline, deadline._when)
        return deadline

    def clear(self) -> None:
        """Cancel all of them."""
        for heap in (self._plain, self._patient):
            entries, heap.entries, heap.live = heap.entries, [], 0
            for _, number, deadline in entries:
                if deadline._number == number:
                    deadline._number = _NOT_QUEUED
                    deadline.cancel()
        for deadline in self._due:
            deadline.cancel()
        self._rest()

    def close(self) -> None:
        """Cancel all of them and take no more. Idempotent. No timer is left behind."""
        self._closed = True
        self.clear()

    @property
    def next_at(self) -> float | None:
        """The moment of the earliest; None without one."""
        first = min(self._plain.first(), self._patient.first())
        return first if first < math.inf else None

    # -- inside

    def _push(self, deadline: Deadline, when: float) -> None:
        """Put *deadline* into its heap; an entry it has there already becomes garbage."""
        heap = deadline._heap
        if deadline._number != _NOT_QUEUED:
            heap.forget(deadline)
        self._counter += 1
        deadline._when = when
        deadline._number = self._counter
        heapq.heappush(heap.entries, (when, self._counter, deadline))
        heap.live += 1
        if not self._firing and when + heap.shift < self._timer_at:
            self._set_timer(when + heap.shift)

    def _rest(self) -> None:
        """Nothing left to wait for: give the timer back."""
        if not (self._plain.live or self._patient.live):
            self._plain.entries.clear()
            self._patient.entries.clear()
            self._set_timer(math.inf)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._clock.call_at(when, self._fire) if when < math.inf else None

    def _fire(self) -> None:
        planned, self._timer, self._timer_at = self._timer_at, None, math.inf
        now = self._clock.monotonic()
        self._firing = True
        try:
            if now - planned > self._stall:
                self._put_off(now - planned)
            self._due = due = self._collect(now)
            while due:
                self._call(due.pop())
        finally:
            self._firing = False
            left, self._due = self._due, []
            for deadline in left:  # something like KeyboardInterrupt got through: the rest stays due
                if deadline._callback is not None and deadline._number == _NOT_QUEUED:
                    self._push(deadline, deadline._when)
            first = min(self._plain.first(), self._patient.first())
            if first < self._timer_at:
                self._set_timer(first)

    def _put_off(self, lag: float) -> None:
        self._stalls += 1
        self._stalled += lag
        self._patient.shift += lag + self._stall
        if self._on_stall is not None:
            try:
                self._on_stall(lag)
            except Exception:
                _log.exception("on_stall failed")

    def _collect(self, now: float) -> list[Deadline]:
        plain, patient, due = self._plain, self._patient, list[Deadline]()
        while True:
            first, first_patient = plain.first(), patient.first()
            heap = plain if first <= first_patient else patient
            if min(first, first_patient) > now:
                due.reverse()
                return due
            _, _, deadline = heapq.heappop(heap.entries)
            heap.live -= 1
            deadline._number = _NOT_QUEUED
            due.append(deadline)

    def _call(self, deadline: Deadline) -> None:
        callback = deadline._callback
        if callback is None or deadline._number != _NOT_QUEUED:
            return  # cancelled or moved by one that was called before it
        self._fired += 1
        try:
            callback(*deadline._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # as the event loop does: a stray CancelledError must not stop the others
            self._failed += 1
            _log.exception("a deadline's callback failed: %r", callback)

    def statistics(self) -> DeadlinesStatistics:
        """What is held now, and totals so far."""
        pending = len(self)
        return DeadlinesStatistics(
            pending=pending,
            garbage=len(self._plain.entries) + len(self._patient.entries) - pending,
            fired=self._fired,
            failed=self._failed,
            stalls=self._stalls,
            stalled=self._stalled,
        )

    def __len__(self) -> int:
        return self._plain.live + self._patient.live

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} pending"
        return f"<Deadlines {state}>"
