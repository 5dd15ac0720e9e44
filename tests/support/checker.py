"""Did anything get lost? A record of what publishers and members were told, and the proof that it fits together.

Publishers write down each attempt and how it ended. Members write down where they joined, each message, each gap, and
where they stand at the end. At the end the streams are read, once, and :meth:`Record.check` proves, for each room:

- *One history.* No place ``(epoch, offset)`` holds two messages; no epoch holds a message at two places. As members
  get places one after the other, this is one order for all.
- *Nothing out of thin air.* What failed (nothing was stored) never appears, nor what nobody published.
- *Real time.* What was begun after something else was acknowledged stands behind it.
- *Nothing lost.* What was acknowledged stands in the stream, unless a fault that takes such messages along was
  announced with :meth:`Record.lost`, or history no longer reaches back so far.
- *No silence.* A member gets the next place, or is told a gap up to where it goes on. It may be moved into another
  epoch without a gap, by the next message or by ``recovered: true``, only if all it holds is what that epoch holds,
  too. At the end it stands at the top, and holds each message of the stream, or was told that it is gone.
- *No false alarm.* The first message that a gap called trimmed is not there at the end; a stream that was called
  replaced, or rolled back behind the member's position, was. (Where a gap ends is not judged: who comes back to a
  position that cannot be continued is set to the top of that moment, by design.)
- *Nothing twice.* A member gets no message twice, unless it was told in between that the first one was rolled back or
  that its stream is gone.

Everything here is plain arithmetic on what was written down; nothing waits, and nothing asks a clock but the one it was
given, for the moments of attempts.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from rtkit import Gap, Position
from rtkit.messages import Durability

__all__ = ["Attempt", "Loss", "MemberLog", "Record", "Violations"]

#: Of a place a member holds: the message's id, or one of these.
_BEFORE: Final = "(before it joined)"
_TOLD: Final = "(told to do without it)"
_GONE: Final = "(told that it is gone)"
_MISSED: Final = "(missed, and that was said)"
_NO_IDS: Final = frozenset({_BEFORE, _TOLD, _GONE, _MISSED})

_SHOWN = 12


class Violations(AssertionError):
    """What does not fit together, the first of each kind first.

    :ivar found: pairs of a word for the kind and what happened.
    """

    def __init__(self, found: list[tuple[str, str]], context: str) -> None:
        self.found = found
        kinds = Counter(kind for kind, _ in found)
        first: dict[str, list[str]] = {}
        for kind, text in found:
            first.setdefault(kind, []).append(text)
        lines = [
            f"{kind} ({kinds[kind]}×):\n" + "\n".join(f"    {t}" for t in texts[:_SHOWN])
            for kind, texts in first.items()
        ]
        super().__init__("\n".join([f"{len(found)} violations", context, *lines]))

    @property
    def kinds(self) -> set[str]:
        """The words for what was found."""
        return {kind for kind, _ in self.found}


@dataclass
class Attempt:
    """One call of publish."""

    room: str
    id: str
    publisher: str
    durability: Durability
    began: float
    ended: float = math.inf
    outcome: Literal["unknown", "acknowledged", "failed"] = "unknown"
    position: Position | None = None
    why: str = ""
    clock: Callable[[], float] = time.monotonic

    def acknowledged(self, position: Position) -> None:
        """It was stored, here."""
        self.ended, self.outcome, self.position = self.clock(), "acknowledged", position

    def failed(self, why: object = "") -> None:
        """Nothing was stored, and that is certain: ``BrokerUnavailable``."""
        self.ended, self.outcome, self.why = self.clock(), "failed", repr(why)

    def unknown(self, why: object = "") -> None:
        """It may have been stored: ``PublishUnknown``, or nobody heard the answer. So are attempts that never end."""
        self.ended, self.outcome, self.why = self.clock(), "unknown", repr(why)


@dataclass(frozen=True)
class Loss:
    """A fault that may take acknowledged messages along.

    :ivar since: what was acknowledged before this moment is safe all the same.
    :ivar until: what was begun after it, too.
    :ivar replicated: messages acknowledged at the level ``replicated`` may be lost as well.
    """

    what: str
    since: float
    until: float
    replicated: bool

    def excuses(self, attempt: Attempt, began: float) -> bool:
        """Whether it may have taken this one along.

        :param began: when its message was first tried. A repeat is answered with what the first attempt did, even if
            that is gone by then.
        """
        return (
            began <= self.until
            and attempt.ended >= self.since
            and (self.replicated or attempt.durability != "replicated")
        )


@dataclass
class _Final:
    """The stream at the end."""

    position: Position
    floor: int
    entries: dict[int, str]


@dataclass
class MemberLog:
    """What one member of one room was told. Say :meth:`joined` first, then the rest as it comes.

    After :meth:`left` nothing is demanded of the future; :meth:`stands` says where somebody who stayed stands when
    all is quiet.
    """

    room: str
    name: str
    items: list[tuple[str, Position, Gap | str]] = field(default_factory=list)
    over: bool = False
    end: Position | None = None

    def joined(self, position: Position) -> None:
        """It is let in, and will get what comes after this position; what was before is of no interest."""
        self.items.append(("joined", position, ""))

    def recovered(self, position: Position) -> None:
        """It came back where it stood, and was told that it missed nothing up to here but what follows now.

        :param position: the epoch that is now, and the offset it stood at.
        """
        self.items.append(("recovered", position, ""))

    def unrecovered(self, position: Position) -> None:
        """It came back, and was told that it cannot be recovered: it goes on from here."""
        self.items.append(("unrecovered", position, ""))

    def message(self, position: Position, id: str) -> None:
        """A message."""
        self.items.append(("message", position, id))

    def gap(self, gap: Gap) -> None:
        """It is told that something is gone."""
        self.items.append(("gap", Position(gap.epoch, gap.end), gap))

    def stands(self, position: Position | None) -> None:
        """It is still here at the end, and believes to have everything up to here."""
        self.end = position

    def left(self) -> None:
        """It is gone for good."""
        self.over = True

    @property
    def ids(self) -> list[str]:
        """The messages, as they came."""
        return [what for kind, _, what in self.items if kind == "message" and isinstance(what, str)]

    @property
    def gaps(self) -> list[Gap]:
        """The gaps, as they were told."""
        return [what for _, _, what in self.items if isinstance(what, Gap)]


class Record:
    """What happened in a run.

    :param context: said with every failure: the seed, the faults.
    :param clock: tells the moments of attempts and losses, in seconds.
    """

    def __init__(self, context: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.context = [context] if context else []
        self.attempts: list[Attempt] = []
        self.members: list[MemberLog] = []
        self.losses: list[Loss] = []
        self.lives = 0
        self._finals: dict[str, _Final] = {}
        self._began = clock()

    # -- writing down ------------------------------------------------------------------------------

    def publishing(
        self, room: str, id: str, *, publisher: str = "", durability: Durability = "stored"
    ) -> Attempt:
        """A call of publish begins. Attempts to publish the same *id* again have to use the same key."""
        attempt = Attempt(room, id, publisher, durability, self.clock(), clock=self.clock)
        self.attempts.append(attempt)
        return attempt

    def member(self, room: str, name: str) -> MemberLog:
        """A member begins its log."""
        log = MemberLog(room, name)
        self.members.append(log)
        return log

    def lost(
        self, what: str, *, since: float = -math.inf, until: float | None = None, replicated: bool = True
    ) -> None:
        """A fault took place that may take acknowledged messages along; say it when it is over.

        :param since: see `Loss`; moments of the record's clock.
        :param until: now, unless given.
        :param replicated: see `Loss`.
        """
        self.losses.append(Loss(what, since, self.clock() if until is None else until, replicated))

    def another_life(self) -> None:
        """The broker has come back as another one, so that all streams begin new epochs."""
        self.lives += 1

    def note(self, text: str) -> None:
        """Something to be said with a failure."""
        self.context.append(f"{self.clock() - self._began:7.2f} s  {text}")

    def stream(self, room: str, position: Position, *, floor: int = 0, entries: Mapping[int, str]) -> None:
        """What the room's stream holds at the end.

        :param floor: what is at or below this offset is no longer kept.
        :param entries: ids by offset, from *floor* + 1 to the position.
        """
        self._finals[room] = _Final(position, floor, dict(entries))

    def summary(self) -> str:
        """In one line."""
        outcomes = Counter(attempt.outcome for attempt in self.attempts)
        gaps = Counter(gap.reason for member in self.members for gap in member.gaps)
        delivered = sum(len(member.ids) for member in self.members)
        back = Counter(kind for member in self.members for kind, _, _ in member.items)
        told = ", ".join(f"{n} {reason}" for reason, n in sorted(gaps.items())) or "none"
        line = (
            f"acknowledged {outcomes['acknowledged']}, unknown {outcomes['unknown']}, failed {outcomes['failed']},"
            f" delivered {delivered} to {len(self.members)} members, gaps: {told}"
        )
        # Only members by hand are told so; the SDKs' are told gaps, or nothing.
        if back["recovered"] or back["unrecovered"]:
            line += f", recovered {back['recovered']}, not {back['unrecovered']}"
        return line

    # -- the proof ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`Violations` unless everything fits together."""
        found: list[tuple[str, str]] = []
        rooms = {a.room for a in self.attempts} | {m.room for m in self.members} | set(self._finals)
        for room in sorted(rooms):
            found += _Room(self, room).violations()
        if found:
            raise Violations(found, "\n".join([*self.context, self.summary()]))


class _Room:
    """The proof for one room."""

    def __init__(self, record: Record, room: str) -> None:
        self.room = room
        self.attempts = [each for each in record.attempts if each.room == room]
        self.members = [each for each in record.members if each.room == room]
        self.losses = record.losses
        # Of several epochs in a row one may be lost, and with it the proof that the next goes on where it was: a member
        # may have been moved into it without a word.
        self.one_epoch_lost = record.lives > 1
        self.final = record._finals.get(room)
        self.found: list[tuple[str, str]] = []
        #: What is known to stand, or have stood, where: (id, who says so).
        self.places: dict[str, dict[int, tuple[str, str]]] = {}
        self.of_id: dict[str, dict[str, int]] = {}  # epoch -> id -> offset
        # Ids that were acknowledged at a place: nobody publishes those again, so seeing one at the same offset of
        # another epoch proves that the one goes on as the other.
        self.sure: set[tuple[str, int, str]] = set()

    def violations(self) -> list[tuple[str, str]]:
        self._one_history()
        self._out_of_thin_air()
        self._real_time()
        self._nothing_lost()
        for member in self.members:
            _Member(self, member).run()
        return self.found

    def say(self, kind: str, text: str) -> None:
        self.found.append((kind, f"{self.room}: {text}"))

    def _place(self, position: Position, id: str, who: str) -> None:
        epoch, offset = position.epoch, position.offset
        there = self.places.setdefault(epoch, {}).setdefault(offset, (id, who))
        if there[0] != id:
            self.say(
                "two messages at one place", f"{position} is {there[0]} to {there[1]}, and {id} to {who}"
            )
            return
        first = self.of_id.setdefault(epoch, {}).setdefault(id, offset)
        if first != offset:
            said = self.places[epoch][first][1]
            self.say(
                "one message at two places",
                f"{id} is at {epoch}:{first} to {said}, and at {position} to {who}",
            )

    def _one_history(self) -> None:
        for attempt in self.attempts:
            if attempt.position is not None:
                self._place(attempt.position, attempt.id, f"publisher {attempt.publisher}")
                self.sure.add((attempt.position.epoch, attempt.position.offset, attempt.id))
        for member in self.members:
            for kind, position, what in member.items:
                if kind == "message" and isinstance(what, str):
                    self._place(position, what, f"member {member.name}")
        if self.final is not None:
            epoch, top = self.final.position.epoch, self.final.position.offset
            for offset, id in sorted(self.final.entries.items()):
                self._place(Position(epoch, offset), id, "the reader at the end")
            missing = set(range(self.final.floor + 1, top + 1)) - set(self.final.entries)
            if missing:
                self.say(
                    "hole in the stream", f"at the end there is nothing at {_ranges(missing)} of {epoch}"
                )
            beyond = [offset for offset in self.places.get(epoch, {}) if offset > top]
            if beyond:
                self.say(
                    "the stream went back",
                    f"it ends at {self.final.position}, and {_ranges(beyond)} of that epoch were there",
                )

    def _out_of_thin_air(self) -> None:
        outcomes: dict[str, set[str]] = {}
        for attempt in self.attempts:
            outcomes.setdefault(attempt.id, set()).add(attempt.outcome)
        for epoch, places in self.places.items():
            for offset, (id, who) in places.items():
                said = outcomes.get(id)
                if said is None:
                    self.say("out of thin air", f"{id} at {epoch}:{offset} ({who}) was published by nobody")
                elif said == {"failed"}:
                    self.say("failed, yet there", f"{id}, which failed, is at {epoch}:{offset} ({who})")

    def _real_time(self) -> None:
        by_epoch: dict[str, list[Attempt]] = {}
        firsts: set[str] = set()
        for attempt in self.attempts:
            # Only first attempts: another one may be answered with the place of the first.
            if attempt.id not in firsts and attempt.position is not None:
                by_epoch.setdefault(attempt.position.epoch, []).append(attempt)
            firsts.add(attempt.id)
        for attempts in by_epoch.values():
            ended = sorted(attempts, key=lambda each: each.ended)
            ends = [each.ended for each in ended]
            highest: list[Attempt] = []  # of those that had ended by then
            for each in ended:
                assert each.position is not None
                before = highest[-1].position if highest else None
                highest.append(
                    each if before is None or each.position.offset > before.offset else highest[-1]
                )
            for each in attempts:
                count = bisect_left(ends, each.began)
                if count:
                    other = highest[count - 1]
                    assert each.position is not None
                    assert other.position is not None
                    if other.position.offset > each.position.offset:
                        self.say(
                            "against real time",
                            f"{each.id} at {each.position} was begun after {other.id} at {other.position} had been"
                            " acknowledged",
                        )

    def _nothing_lost(self) -> None:
        if self.final is None:
            return
        there = set(self.final.entries.values())
        began: dict[str, float] = {}
        for attempt in self.attempts:
            began.setdefault(attempt.id, attempt.began)
        for attempt in self.attempts:
            if attempt.outcome != "acknowledged" or attempt.id in there:
                continue
            assert attempt.position is not None
            if attempt.position.offset <= self.final.floor:
                continue  # trimmed; or of a stream that was replaced, which nobody can tell any more
            if not any(loss.excuses(attempt, began[attempt.id]) for loss in self.losses):
                self.say(
                    "acknowledged, yet lost",
                    f"{attempt.id} was acknowledged at {attempt.position} ({attempt.durability}), and is not in the"
                    f" stream at the end, which is at {self.final.position}",
                )

    def carried(self, old: str, new: str, *, at: int | None = None) -> bool:
        """Whether it is proven that *new* goes on where *old* was, at this offset (anywhere without it)."""
        here, there = self.places.get(old, {}), self.places.get(new, {})
        offsets = here if at is None else (at,)
        return any(
            offset in here
            and offset in there
            and here[offset][0] == there[offset][0]
            and (old, offset, here[offset][0]) in self.sure
            for offset in offsets
        )


class _Member:
    """The proof for one member: what it holds, place by place, in the stream as it sees it."""

    def __init__(self, room: _Room, log: MemberLog) -> None:
        self.room = room
        self.log = log
        self.at: Position | None = None
        self.holds: dict[int, str] = {}
        self.seen: dict[str, Position] = {}

    def say(self, kind: str, text: str) -> None:
        self.room.say(kind, f"{self.log.name}: {text}")

    def run(self) -> None:
        for kind, position, what in self.log.items:
            if self.at is None or kind == "joined":
                if kind != "joined":
                    self.say("out of place", f"{kind} at {position} before it joined")
                self._begin(position)
            elif isinstance(what, Gap):
                self._gap(what)
            elif kind == "recovered":
                self._recovered(position)
            elif kind == "unrecovered":
                self._unrecovered(position)
            else:
                self._message(position, what)
        if not self.log.over:
            self._end()

    def _begin(self, position: Position) -> None:
        self.at = position
        self.holds = dict.fromkeys(range(1, position.offset + 1), _BEFORE)
        self.seen = {}

    def _recovered(self, position: Position) -> None:
        assert self.at is not None
        if position.offset != self.at.offset:
            self.say("false recovered", f"it stood at {self.at} and was let in at {position}")
            self._begin(position)
            return
        self._move(position, "recovered: true")

    def _unrecovered(self, position: Position) -> None:
        before = self.at
        assert before is not None
        if before.epoch != position.epoch and self.room.carried(
            before.epoch, position.epoch, at=before.offset
        ):
            self.say("false gap", f"at {before} it was told that it is lost, and that place is still there")
        self._begin(position)
        self.holds = dict.fromkeys(self.holds, _TOLD)
        if before.epoch == position.epoch and before.offset < position.offset:
            self.holds[before.offset + 1] = _GONE

    def _message(self, position: Position, id: str) -> None:
        assert self.at is not None
        if id in self.seen:
            self.say("twice", f"{id} came at {self.seen[id]} and again at {position}")
        if position.offset != self.at.offset + 1:
            which = "order" if position.offset <= self.at.offset else "missed in silence"
            self.say(which, f"after {self.at} came {position} ({id}), and no gap in between")
            self.holds.update(dict.fromkeys(range(self.at.offset + 1, position.offset), _MISSED))
        self._move(Position(position.epoch, position.offset - 1), f"{id} at {position}")
        self.at = position
        self.holds[position.offset] = id
        self.seen[id] = position

    def _move(self, position: Position, why: str) -> None:
        """It goes on in another epoch, or not, and all it holds has to be what that epoch holds."""
        assert self.at is not None
        before, self.at = self.at, position
        if before.epoch != position.epoch:
            self._compare(position, f"moved from {before} to {position} without a gap, by {why}")

    def _compare(self, position: Position, how: str) -> None:
        there = self.room.places.get(position.epoch, {})
        wrong = [
            f"{offset} is {there[offset][0]}, and it got {id}"
            for offset, id in self.holds.items()
            if offset <= position.offset and id not in _NO_IDS and offset in there and there[offset][0] != id
        ]
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            self.say("false continuity", f"{how}; yet of that epoch {'; '.join(wrong[:3])}{more}")

    def _gap(self, gap: Gap) -> None:
        assert self.at is not None
        before, self.at = self.at, Position(gap.epoch, gap.end)
        if gap.reason == "dropped":
            self.say("false gap", f"at {before} it was told {gap}, in a room with history")
        elif gap.reason == "trimmed":
            if gap.epoch != before.epoch:
                self._compare(
                    Position(gap.epoch, min(before.offset, gap.start)), f"moved from {before} by {gap}"
                )
            if not (gap.start == before.offset < gap.end):
                self.say("false gap", f"at {before} it was told {gap}")
            self.holds.update(dict.fromkeys(range(gap.start + 1, gap.end + 1), _TOLD))
            self.holds[gap.start + 1] = _GONE
        elif gap.reason == "epoch":
            # What it got is of another stream, if that is true.
            same = self.room.carried(before.epoch, gap.epoch) and not self.room.one_epoch_lost
            if gap.epoch == before.epoch or same:
                self.say("false gap", f"at {before} it was told {gap}, yet that is the same stream")
            self.holds = dict.fromkeys(range(1, gap.end + 1), _TOLD)
            self.seen = {}
        else:
            if self.room.carried(before.epoch, gap.epoch, at=before.offset) and before.epoch != gap.epoch:
                self.say("false gap", f"at {before} it was told {gap}, yet that place is still there")
            self.holds = {offset: id for offset, id in self.holds.items() if offset <= gap.end}
            self.holds.update(dict.fromkeys(range(gap.start + 1, gap.end + 1), _TOLD))
            self.seen = {id: place for id, place in self.seen.items() if place.offset <= gap.start}
            self._compare(Position(gap.epoch, gap.start), f"moved from {before} by {gap}")

    def _end(self) -> None:
        final, end = self.room.final, self.log.end
        if final is None:
            return
        if end is None or end != final.position or self.at is None:
            self.say("behind at the end", f"it stands at {end}, and the stream at {final.position}")
            return
        if self.at.offset != end.offset:
            self.say(
                "missed in silence", f"its last item was at {self.at}, and it believes to stand at {end}"
            )
            return
        self._move(end, "the end")
        for offset, id in final.entries.items():
            held = self.holds.get(offset)
            if held == _GONE:
                self.say(
                    "false gap",
                    f"it was told that {final.position.epoch}:{offset} is gone; it is there: {id}",
                )
            elif held is None:
                self.say("missed in silence", f"{id} at {final.position.epoch}:{offset} never came")


def _ranges(offsets: set[int] | list[int]) -> str:
    ordered = sorted(offsets)
    return f"{ordered[0]}…{ordered[-1]} ({len(ordered)})" if len(ordered) > 1 else str(ordered[0])
