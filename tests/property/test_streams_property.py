"""No schedule of late, lost, doubled and reordered events makes rtkit deceive anybody (H1-H4, H10).

The driver, the truth and the checks are in `tests/support/streams_model.py`. The second half proves that the
net holds fish: each mutant has one fault that somebody could well write, and has to be caught.

`RTKIT_EXAMPLES=100000` makes the search as long as one likes; the soak test does that by itself.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rtkit.position import Gap, Position
from rtkit.streams import CatchUp, Entry, Feed, Meeting, Moved, StreamPage, Verdict
from tests.support.streams_model import OPERATIONS, Client, Deceived, ModelRoom, Restless, World

EXAMPLES = int(os.environ.get("RTKIT_EXAMPLES", "240"))


def read_schedule(data: bytes) -> list[tuple[str, int]]:
    """Two bytes a step: drawing bytes at once is many times faster than drawing steps."""
    return [(OPERATIONS[data[i] % len(OPERATIONS)], data[i + 1] % 60) for i in range(0, len(data) - 1, 2)]


schedules = st.binary(min_size=60, max_size=160).map(read_schedule)


@settings(max_examples=EXAMPLES)
@given(schedules, st.integers(1, 4), st.integers(1, 4))
def test_nobody_is_deceived(schedule: list[tuple[str, int]], page_limit: int, window: int) -> None:
    World(page_limit=page_limit, window=window).play(schedule)


@pytest.mark.soak
def test_nobody_is_deceived_for_minutes() -> None:
    for seed in range(300_000):
        chance = random.Random(seed)
        schedule = read_schedule(chance.randbytes(chance.randrange(20, 240)))
        try:
            World(page_limit=chance.randint(1, 4), window=chance.randint(1, 4)).play(schedule)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {schedule}") from error


def test_the_schedules_get_everywhere() -> None:
    """A search that never meets a rollback proves nothing about it."""
    met: Counter[object] = Counter()

    class Witness(Client):
        def joined(
            self, asked: Any, rewound: bool, gap: Any, publications: Any, position: Any, paged: int
        ) -> None:
            how = "rewind" if rewound else "recover" if asked else "fresh"
            met[
                how, gap.reason if gap else "new epoch" if asked and asked.epoch != position.epoch else "ok"
            ] += 1
            met["pages", min(paged, 2)] += 1
            super().joined(asked, rewound, gap, publications, position, paged)

        def told_gap(self, gap: Gap) -> None:
            met["live or behind", gap.reason] += 1
            super().told_gap(gap)

        def told_position(self, position: Position) -> None:
            met["live or behind", "new epoch"] += 1
            super().told_position(position)

    class Meets(CatchUp):
        def meet(self, cursor: Position) -> tuple[Meeting, tuple[Entry, ...]]:
            meeting, entries = super().meet(cursor)
            met["joining" if self.joining else "resuming", meeting.value, bool(entries)] += 1
            return meeting, entries

    for seed in range(500):
        chance = random.Random(seed)
        world = World(
            page_limit=chance.randint(1, 4), window=chance.randint(1, 4), catch=Meets, client=Witness
        )
        world.play(read_schedule(chance.randbytes(120)))

    lost = ("trimmed", "epoch", "rollback")
    expected: list[object] = [("fresh", "ok"), ("pages", 0), ("pages", 1), ("pages", 2)]
    expected += [("recover", end) for end in ("ok", "new epoch", *lost)]
    expected += [("rewind", end) for end in ("ok", "new epoch", *lost)]
    expected += [("live or behind", end) for end in ("new epoch", *lost)]
    expected += [
        (who, *how)
        for who in ("joining", "resuming")
        for how in (("live", True), ("live", False), ("read", False), ("repair", False))
    ]
    assert [what for what in expected if not met[what]] == []


# -- drivers that forget a duty, and pay with more reads ---------------------------------------------


class NeverSaysReading(Feed):
    """It is not told when a read begins."""

    def reading(self) -> Position | None:
        return self.cursor


class NeverOffers(ModelRoom):
    """Members that catch up are not told what the feed delivered or where it jumped."""

    def hand_out(self, moved: Moved) -> None:
        catching, self.catching = self.catching, {}
        super().hand_out(moved)
        self.catching = catching

    def deliver(self, entry: Entry) -> None:
        catching, self.catching = self.catching, {}
        super().deliver(entry)
        self.catching = catching


CARELESS: list[dict[str, Any]] = [{"feed": NeverSaysReading}, {"room": NeverOffers}]


@pytest.mark.parametrize("careless", CARELESS, ids=["NeverSaysReading", "NeverOffers"])
@settings(max_examples=EXAMPLES // 3)
@given(schedules, st.integers(1, 4))
def test_a_careless_driver_deceives_nobody(
    careless: dict[str, Any], schedule: list[tuple[str, int]], page_limit: int
) -> None:
    World(page_limit=page_limit, patience=3, **careless).play(schedule)


# -- mutants ----------------------------------------------------------------------------------------


class SkipsOne(CatchUp):
    """A page is taken from one entry too far."""

    def page(self, page: StreamPage) -> tuple[tuple[Entry, ...], Gap | None]:
        entries, gap = super().page(page)
        return entries[1:], gap


class HistoryFirst(CatchUp):
    """History is read, then the member goes live; what came between is forgotten."""

    def meet(self, cursor: Position) -> tuple[Meeting, tuple[Entry, ...]]:
        if self._confirmed and self.position is not None and self.position.epoch == cursor.epoch:
            return self._go_live(cursor, ())
        return super().meet(cursor)


class IgnoresOverflow(CatchUp):
    """The window is believed to reach back to where it once began."""

    def offer(self, entry: Entry) -> None:
        begin = self._buffer_from
        super().offer(entry)
        self._buffer_from = begin


class AlwaysForgives(CatchUp):
    """A rewind forgives what is trimmed between its pages, too."""

    def page(self, page: StreamPage) -> tuple[tuple[Entry, ...], Gap | None]:
        forgiving = self.forgiving
        try:
            return super().page(page)
        finally:
            self.forgiving = forgiving


class ForgetsWhereItCameIn(CatchUp):
    """A joiner's gap begins where its last page ended, although those pages are thrown away."""

    def page(self, page: StreamPage) -> tuple[tuple[Entry, ...], Gap | None]:
        self._since = self._gap = None
        return super().page(page)


class GoesLiveAhead(CatchUp):
    """A member that knows more than its node goes live and waits for the node to come along."""

    def meet(self, cursor: Position) -> tuple[Meeting, tuple[Entry, ...]]:
        position = self.position
        if position is not None and position.epoch == cursor.epoch and position.offset > cursor.offset:
            return Meeting.LIVE, ()
        return super().meet(cursor)


class GoesToTheCursor(CatchUp):
    """A position that cannot be continued is taken for one that has nothing to catch up."""

    def page(self, page: StreamPage) -> tuple[tuple[Entry, ...], Gap | None]:
        return super().page(replace(page, lost=None, start=page.top, entries=()) if page.lost else page)


class NeverOld(Feed):
    """Old hints are not told from new ones."""

    def offer(self, position: Position, payload: bytes) -> Verdict:
        verdict = super().offer(position, payload)
        return Verdict.DELIVER if verdict is Verdict.OLD else verdict


class AnyEpoch(Feed):
    """The next number is the next entry, whatever its epoch."""

    def offer(self, position: Position, payload: bytes) -> Verdict:
        if self.cursor is not None and position.offset == self.cursor.offset + 1:
            self.cursor = position
            return Verdict.DELIVER
        return super().offer(position, payload)


class AbsorbsAnything(Feed):
    """A page that was read for a member is taken for one's own."""

    def extend(self, page: StreamPage) -> Moved:
        return self.absorb(page)


class ReadsThroughHoles(Feed):
    """A member's page moves the cursor, even if it begins beyond it."""

    def extend(self, page: StreamPage) -> Moved:
        if self.cursor is not None and page.epoch == self.cursor.epoch:
            page = replace(page, start=min(page.start, self.cursor.offset))
        return super().extend(page)


class ForgetsDoubts(Feed):
    """A page settles doubts that came up after it was read."""

    def absorb(self, page: StreamPage) -> Moved:
        self._doubted = False
        return super().absorb(page)


class ForgetsHeld(Feed):
    """What is held and does not follow on is dropped, although it came after the page was read."""

    def absorb(self, page: StreamPage) -> Moved:
        moved = super().absorb(page)
        self._held.clear()
        return moved


class KeepsHeld(Feed):
    """What is held is kept until it follows on, even from an epoch that is over."""

    def _drop_explained(self, page: StreamPage) -> None:
        pass


class TrustsStaleTakeover(Feed):
    """A page tells that the old position goes on in a new epoch; the cursor has moved meanwhile."""

    def absorb(self, page: StreamPage) -> Moved:
        self._asked = self.cursor
        return super().absorb(page)


class HidesNewEpoch(Feed):
    """Live members are not told that the stream goes on under another name."""

    def absorb(self, page: StreamPage) -> Moved:
        moved = super().absorb(page)
        return moved if moved.gap else replace(moved, start=None)


class ReadsFirst(ModelRoom):
    """The first read comes before the subscription."""

    async def _start(self) -> None:
        await self.repair()
        await self.hub.subscribe(self)
        self.subscribed = True
        self.ready.set(None)


class KeepsLostPublications(ModelRoom):
    """After a gap the join reply still holds what was read before it."""

    forget_publications = False


class NeverRepairs(ModelRoom):
    """A hole is noticed, and nothing is done."""

    def hint(self, position: Position, payload: bytes) -> None:
        if self.feed.offer(position, payload) is Verdict.DELIVER:
            self.deliver(Entry(position.offset, payload))


MUTANTS: list[tuple[str, Callable[..., Any]]] = [
    *(("catch", mutant) for mutant in CatchUp.__subclasses__()),
    *(("feed", mutant) for mutant in Feed.__subclasses__() if mutant is not NeverSaysReading),
    *(("room", mutant) for mutant in ModelRoom.__subclasses__() if mutant is not NeverOffers),
]


@pytest.mark.parametrize("part, mutant", MUTANTS, ids=[mutant.__name__ for _, mutant in MUTANTS])
def test_a_mutant_is_caught(part: str, mutant: Callable[..., Any]) -> None:
    parts: dict[str, Any] = {part: mutant}

    @settings(max_examples=5000, derandomize=True, database=None, phases=[Phase.generate])
    @given(schedules, st.integers(1, 4), st.integers(1, 4))
    def search(schedule: list[tuple[str, int]], page_limit: int, window: int) -> None:
        World(page_limit=page_limit, window=window, **parts).play(schedule)

    with pytest.raises((Deceived, Restless)):
        search()
