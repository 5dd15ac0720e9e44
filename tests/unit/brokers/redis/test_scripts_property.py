"""Whatever a stream went through: where a page begins is what `locate` says, and no position is continued falsely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from rtkit.position import Position
from rtkit.streams import locate, locate_back
from tests.support.redis_scripts import HOUR, Stream
from tests.support.redises import RedisServer


@dataclass
class Lived:
    """A stream, and all that was ever acknowledged of it.

    :ivar past: what stood up to each position that was handed out.
    :ivar now: what stands up to the present top.
    """

    stream: Stream
    epoch: str = ""
    now: tuple[bytes, ...] = ()
    past: dict[Position, tuple[bytes, ...]] = field(default_factory=dict)
    kept: Any = None
    serial: int = 0

    def seen(self, epoch: str) -> None:
        self.epoch = epoch
        for offset in range(len(self.now) + 1):
            # What once was said of a position stays true of it: no entry of an epoch changes.
            told = self.past.setdefault(Position(epoch, offset), self.now[:offset])
            assert told == self.now[:offset], f"{epoch}:{offset} was {told}, and is {self.now[:offset]}"

    def append(self, count: int) -> None:
        payloads = [b"%d" % (self.serial + n) for n in range(count)]
        self.serial += count
        _, epoch, top, _ = self.stream.append(*payloads)
        self.now += tuple(payloads)
        assert top == len(self.now)
        self.seen(epoch)

    def look(self) -> None:
        self.seen(self.stream.read(limit=0).epoch)

    def take_over(self) -> None:
        """Another server has it all."""
        self.stream.server.command("HSET", self.stream.meta, "server", f"another-{self.serial}")

    def back_up(self) -> None:
        self.look()
        self.kept = self.now, [self.stream.server.command("DUMP", key) for key in self.stream.place.stream]

    def roll_back(self) -> None:
        """Another server has what there was then."""
        if self.kept is None:
            return
        self.now, dumps = self.kept
        for key, dump in zip(self.stream.place.stream, dumps, strict=True):
            self.stream.server.command("DEL", key)
            if dump is not None:
                self.stream.server.command("RESTORE", key, 0, dump)
        self.take_over()

    def lose_meta(self) -> None:
        self.stream.server.command("DEL", self.stream.meta)
        self.now = ()
        self.look()

    def lose_entries(self) -> None:
        self.stream.server.command("DEL", self.stream.entries)

    def clear(self) -> None:
        self.now = ()
        self.seen(self.stream.clear())

    def trim(self, count: int) -> None:
        self.stream.read(bounds=(count, 10**9, HOUR))


acts = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5)),
    st.tuples(st.just("append"), st.integers(1, 5)),
    st.tuples(st.sampled_from(["look", "take_over", "take_over", "back_up", "roll_back", "roll_back"])),
    st.tuples(st.sampled_from(["lose_meta", "lose_entries", "clear"])),
    st.tuples(st.just("trim"), st.integers(1, 6)),
)


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(story=st.lists(acts, min_size=3, max_size=14), limit=st.integers(0, 6))
def test_pages_are_honest(any_redis: RedisServer, story: list[tuple[Any, ...]], limit: int) -> None:
    lived = Lived(Stream(any_redis))
    lived.look()
    for name, *args in story:
        getattr(lived, name)(*args)
    lived.look()
    note(f"{lived.epoch}, {lived.now}")
    positions = [*lived.past, Position("never", 2), Position(lived.epoch, len(lived.now) + 1)]
    for since in positions:
        check(lived, since, limit)
        check_back(lived, since, limit)
    check(lived, None, limit)
    check_back(lived, None, limit)


def check(lived: Lived, since: Position | None, limit: int) -> None:
    page = lived.stream.read(since and (since.epoch, since.offset), limit=limit)
    stands = {"epoch": page.epoch, "top": page.top, "floor": page.floor, "takeovers": page.takeovers}
    start, lost = locate(since, **stands)  # type: ignore[arg-type]
    assert page.start == start
    assert tuple(page.payloads) == lived.now[start : start + limit]
    assert page.top == len(lived.now)
    if since is not None and lost is None:
        # "You missed nothing": then what stood before it has to stand there now.
        assert lived.past[since] == lived.now[: since.offset]
    if since is not None and lost == "rollback" and since.epoch != page.epoch and start > page.floor:
        # It is said to be shared up to here.
        assert lived.past.get(since, lived.now)[:start] == lived.now[:start]


def check_back(lived: Lived, since: Position | None, limit: int) -> None:
    page = lived.stream.read(since and (since.epoch, since.offset), limit=limit, reverse=True)
    last, lost = locate_back(
        since, epoch=page.epoch, top=page.top, floor=page.floor, takeovers=page.takeovers
    )
    assert page.start == last
    expected = lived.now[page.floor : last][::-1][:limit] if last > page.floor else ()
    assert tuple(page.payloads) == expected
    if since is not None and lost is None:
        assert lived.past[since] == lived.now[: since.offset]


@pytest.mark.parametrize("offset", [-1, 0, 2**53])
def test_places_that_nobody_stood_at(any_redis: RedisServer, offset: int) -> None:
    stream = Stream(any_redis)
    stream.append(b"a", b"b", call="e")
    for since in (Position("e", offset), Position("never", offset)):
        page = stream.read((since.epoch, since.offset))
        assert page.start == locate(since, epoch="e", top=2, floor=0)[0]
        back = stream.read((since.epoch, since.offset), reverse=True)
        assert back.start == locate_back(since, epoch="e", top=2, floor=0)[0]


@pytest.mark.parametrize("epoch", ["a", "b", "c", "e"])
def test_takeovers_in_any_order_are_judged_alike(any_redis: RedisServer, epoch: str) -> None:
    # No stream of ours goes back in its meta; should one, then what is shared ends where it was lowest.
    stream = Stream(any_redis)
    stream.append(*[b"x"] * 9, call="e")
    stream.server.command("HSET", stream.meta, "takeovers", "a 7 b 3 c 5")
    stands = {"epoch": "e", "top": 9, "floor": 0, "takeovers": [("a", 7), ("b", 3), ("c", 5)]}
    for offset in range(10):
        start, _ = locate(Position(epoch, offset), **stands)  # type: ignore[arg-type]
        assert stream.read((epoch, offset)).start == start
        last, _ = locate_back(Position(epoch, offset), **stands)  # type: ignore[arg-type]
        assert stream.read((epoch, offset), reverse=True).start == last
