from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from rtkit.primitives import Outbox, Overflow, Spill


def box(limit: int = 10, reserve: int = 4, overhead: int = 0) -> Outbox:
    return Outbox(limit=limit, reserve=reserve, overhead=overhead)


def everything(outbox: Outbox) -> list[bytes]:
    return outbox.take(1 << 30)


# -- the queue


def test_first_in_first_out_across_lanes_and_control() -> None:
    outbox = box(100)
    assert outbox.push("a", b"1", "recover") is None
    assert outbox.put(b"2")
    assert outbox.push("b", b"3", "drop_oldest") is None
    assert outbox.push("a", b"4", "recover") is None
    assert len(outbox) == 4
    assert outbox.size == 4
    assert outbox
    assert everything(outbox) == [b"1", b"2", b"3", b"4"]
    assert not outbox
    assert outbox.size == 0
    assert everything(outbox) == []


def test_take_is_bounded_but_takes_one() -> None:
    outbox = box(100)
    for n in range(5):
        outbox.push("a", bytes([n]) * 10, "recover")
    assert len(outbox.take(25)) == 2
    assert len(outbox.take(0)) == 1
    assert len(outbox.take(3)) == 1
    assert len(outbox.take(10)) == 1
    assert outbox.take(10) == []


def test_an_empty_outbox_holds_no_container() -> None:
    fresh = box()
    used = box()
    used.push("a", b"1", "recover")
    used.push("a", b"2" * 9, "drop_oldest")
    used.push("b", b"3", "latest_per_key", key="k")
    used.push("c", b"3" * 11, "recover")
    used.push("d", b"4", "latest_per_key", key="k", minor=True)
    everything(used)
    used.resume("c")
    for name in ("_queue", "_lanes", "_lagging", "_minor"):
        assert getattr(fresh, name) is None
        assert getattr(used, name) is None
    assert sys.getsizeof(used) < 200
    assert not hasattr(used, "__dict__")


def test_overhead_counts() -> None:
    outbox = Outbox(limit=1000)
    pushed = 0
    while outbox.push("a", b"", "drop_newest") is None:
        pushed += 1
    assert pushed == 1000 // 64
    assert outbox.size == pushed * 64


def test_what_is_outside_counts() -> None:
    outbox = box(10, reserve=4)
    assert outbox.push("a", b"12345", "close", outside=6) == Spill(queued=False, overflow=True)
    assert outbox.push("a", b"12345", "close", outside=5) is None
    assert not outbox.put(b"12", outside=8)
    assert outbox.put(b"12", outside=7)


def test_control_has_a_reserve() -> None:
    outbox = box(10, reserve=4)
    outbox.push("a", b"x" * 10, "recover")
    assert outbox.put(b"1234")
    assert not outbox.put(b"5")
    assert outbox.push("a", b"", "close") == Spill(queued=False, overflow=True)
    assert outbox.statistics().overflows == 2
    assert everything(outbox) == [b"x" * 10, b"1234"]


def test_control_may_use_the_limit_too() -> None:
    outbox = box(10, reserve=4)
    assert outbox.put(b"x" * 14)
    assert outbox.push("a", b"x", "drop_newest") == Spill(queued=False, dropped_count=1)


# -- recover


def test_recover_makes_the_lane_lag() -> None:
    outbox = box(10)
    outbox.push("a", b"12345", "recover", mark=1)
    outbox.push("a", b"1234", "recover", mark=2)
    spill = outbox.push("a", b"12", "recover", mark=3)
    assert spill == Spill(queued=False, lagging=True)
    assert outbox.push("a", b"1", "recover", mark=4) == Spill(queued=False, lagging=True)  # though it fits
    assert outbox.lags("a")
    assert not outbox.lags("b")
    assert outbox.lagging == {"a"}
    assert outbox.push("b", b"1", "recover") is None
    assert everything(outbox) == [b"12345", b"1234", b"1"]
    assert outbox.push("a", b"1", "recover", mark=5) is not None
    outbox.resume("a")
    outbox.resume("a")
    assert outbox.push("a", b"1", "recover", mark=3) is None
    assert outbox.statistics().refused == 3
    assert outbox.statistics().dropped == 0


def test_a_lane_that_lags_refuses_whatever_the_policy() -> None:
    outbox = box(10)
    outbox.push("a", b"x" * 10, "recover")
    outbox.push("a", b"x", "recover")
    for policy in get_args(Overflow):
        assert outbox.push("a", b"", policy) == Spill(queued=False, lagging=True)


# -- drop_oldest


def test_drop_oldest_drops_as_many_of_its_own_as_it_takes() -> None:
    outbox = box(10)
    outbox.push("other", b"o", "recover")
    for n in range(1, 4):
        outbox.push("a", b"%d%d%d" % (n, n, n), "drop_oldest", mark=n)
    spill = outbox.push("a", b"4444", "drop_oldest", mark=4)
    assert spill == Spill(queued=True, dropped=(1, 2), dropped_count=2)
    assert outbox.put(b"c")
    assert everything(outbox) == [b"o", b"333", b"4444", b"c"]
    assert outbox.statistics().dropped == 2


def test_unmarked_entries_are_counted() -> None:
    outbox = box(2)
    outbox.push("a", b"1", "drop_oldest")
    outbox.push("a", b"2", "drop_oldest", mark=7)
    assert outbox.push("a", b"33", "drop_oldest") == Spill(queued=True, dropped=(7,), dropped_count=2)


def test_drop_oldest_overflows_when_its_own_are_too_few_and_changes_nothing() -> None:
    outbox = box(10)
    outbox.push("other", b"o" * 8, "recover")
    outbox.push("a", b"1", "drop_oldest", mark=1)
    assert outbox.push("a", b"22", "drop_oldest", mark=2) is not None  # 8 + 2 fits: one dropped
    assert outbox.push("a", b"333", "drop_oldest", mark=3) == Spill(queued=False, overflow=True)
    assert outbox.push("b", b"1", "drop_oldest") == Spill(queued=False, overflow=True)
    assert everything(outbox) == [b"o" * 8, b"22"]


def test_tombstones_do_not_pile_up_behind_a_stuck_head() -> None:
    outbox = box(1000)
    outbox.push("stuck", b"x" * 500, "recover")
    for n in range(10_000):
        outbox.push("a", b"y" * 50, "drop_oldest", mark=n + 1)
        queue = outbox._queue
        assert queue is not None
        assert len(queue) <= 2 * len(outbox) + 33
    assert outbox.size <= 1000
    assert outbox.statistics().dropped == 10_000 - 10


# -- drop_newest, close


def test_drop_newest() -> None:
    outbox = box(3)
    outbox.push("a", b"123", "drop_newest", mark=1)
    spill = outbox.push("a", b"4", "drop_newest", mark=2)
    assert spill == Spill(queued=False, dropped=(2,), dropped_count=1)
    assert everything(outbox) == [b"123"]


def test_close_overflows() -> None:
    outbox = box(3)
    outbox.push("a", b"123", "close")
    assert outbox.push("a", b"4", "close") == Spill(queued=False, overflow=True)
    assert everything(outbox) == [b"123"]


def test_an_entry_larger_than_the_limit() -> None:
    for policy in get_args(Overflow):
        outbox = box(3)
        spill = outbox.push("a", b"1234", policy, key="k")
        assert spill is not None
        assert not spill.queued
        assert not spill.lagging
        assert spill.overflow == (policy != "drop_newest")


# -- latest_per_key


def test_an_unmarked_entry_takes_the_place_of_the_older() -> None:
    outbox = box(100)
    outbox.push("a", b"ann 1", "latest_per_key", key="ann")
    outbox.push("a", b"bob 1", "latest_per_key", key="bob")
    outbox.push("b", b"other", "latest_per_key", key="ann")
    assert outbox.push("a", b"ann 22", "latest_per_key", key="ann") is None
    assert outbox.size == 16
    assert everything(outbox) == [b"ann 22", b"bob 1", b"other"]
    assert outbox.statistics().conflated == outbox.conflated == 1
    assert outbox.statistics().dropped == 0
    assert outbox.push("a", b"ann 3", "latest_per_key", key="ann") is None  # the older one is out
    assert everything(outbox) == [b"ann 3"]


def test_a_marked_entry_goes_to_the_end_so_that_marks_stay_in_order() -> None:
    outbox = box(100)
    for mark, key in ((1, "x"), (2, "y"), (3, "z")):
        assert outbox.push("a", b"%d" % mark, "latest_per_key", key=key, mark=mark) is None
    assert outbox.push("a", b"4", "latest_per_key", key="x", mark=4) == Spill(queued=True, replaced=1)
    assert everything(outbox) == [b"2", b"3", b"4"]


def test_without_a_key_nothing_is_conflated() -> None:
    outbox = box(100)
    outbox.push("a", b"1", "latest_per_key")
    outbox.push("a", b"2", "latest_per_key")
    assert everything(outbox) == [b"1", b"2"]


def test_a_full_outbox_drops_the_lanes_oldest() -> None:
    outbox = box(4)
    for key in "wxyz":
        outbox.push("a", key.encode(), "latest_per_key", key=key)
    assert outbox.push("a", b"v", "latest_per_key", key="v") == Spill(queued=True, dropped_count=1)
    assert everything(outbox) == [b"x", b"y", b"z", b"v"]


def test_a_replacement_that_grows_drops_others_but_not_itself() -> None:
    outbox = box(4)
    for key in "wxyz":
        outbox.push("a", key.encode(), "latest_per_key", key=key)
    assert outbox.push("a", b"www", "latest_per_key", key="w") == Spill(queued=True, dropped_count=2)
    assert everything(outbox) == [b"www", b"z"]


def test_a_replacement_that_can_not_fit_overflows_and_changes_nothing() -> None:
    outbox = box(6)
    outbox.push("other", b"oooo", "recover")
    outbox.push("a", b"1", "latest_per_key", key="x")
    outbox.push("a", b"2", "latest_per_key", key="y")
    assert outbox.push("a", b"333", "latest_per_key", key="x") == Spill(queued=False, overflow=True)
    assert everything(outbox) == [b"oooo", b"1", b"2"]


def test_conflated_marked_entries_do_not_pile_up() -> None:
    outbox = box(1000)
    outbox.push("stuck", b"x", "recover")
    for n in range(5000):
        outbox.push("a", b"y", "latest_per_key", key="k", mark=n + 1)
        assert outbox._queue is not None
        assert len(outbox._queue) <= 40
    assert everything(outbox) == [b"x", b"y"]


# -- leaving, ending


def test_discard_removes_a_lane() -> None:
    outbox = box(4)
    outbox.push("a", b"1", "recover")
    outbox.push("b", b"2", "recover")
    outbox.put(b"c")
    outbox.push("a", b"3", "recover")
    outbox.push("a", b"4", "recover")  # lags
    assert outbox.discard("a") == 2
    assert not outbox.lags("a")
    assert outbox.size == 2
    assert outbox.discard("a") == 0
    assert everything(outbox) == [b"2", b"c"]
    assert outbox.discard("b") == 0
    assert outbox.statistics().discarded == 2


def test_clear() -> None:
    outbox = box(2)
    outbox.push("a", b"1", "recover")
    outbox.push("a", b"22", "recover")
    outbox.put(b"c")
    assert outbox.clear() == 2
    assert (outbox.size, len(outbox), outbox.lagging) == (0, 0, frozenset())


# -- what gives way


def test_minor_lanes_give_way_before_any_policy_acts() -> None:
    """D5: the oldest first, no more than it takes, and only for who is not minor."""
    for policy in get_args(Overflow):
        outbox = box(10)
        outbox.push("a", b"aaaa", "recover")
        outbox.push("s1", b"1", "latest_per_key", key="x", minor=True)
        outbox.push("s2", b"22", "latest_per_key", key="y", minor=True)
        outbox.push("s1", b"33", "latest_per_key", key="z", minor=True)
        assert outbox.push("b", b"bbb", policy, key="k") is None, policy
        assert outbox.gave_way == 2
        assert everything(outbox) == [b"aaaa", b"22", b"bbb"]


def test_what_is_minor_makes_nobody_give_way() -> None:
    outbox = box(10)
    outbox.push("s1", b"1" * 9, "latest_per_key", key="x", minor=True)
    spill = outbox.push("s2", b"22", "latest_per_key", key="x", minor=True)
    assert spill is not None and spill.overflow
    assert outbox.gave_way == 0
    assert everything(outbox) == [b"1" * 9]


def test_nobody_gives_way_to_a_lane_that_takes_nothing() -> None:
    outbox = box(10)
    outbox.push("a", b"a" * 11, "drop_newest")
    outbox.push("a", b"a" * 8, "recover")
    spill = outbox.push("a", b"a" * 4, "recover")
    assert spill is not None and spill.lagging
    outbox.push("s", b"s", "latest_per_key", key="x", minor=True)
    outbox.push("a", b"a" * 4, "recover")
    assert outbox.gave_way == 0
    outbox.push("b", b"b" * 2, "drop_oldest")
    assert outbox.gave_way == 1
    assert everything(outbox) == [b"a" * 8, b"bb"]


def test_the_reserve_is_nothing_for_what_gives_way() -> None:
    outbox = box(10, reserve=4)
    outbox.push("s", b"s" * 10, "latest_per_key", key="x", minor=True)
    assert outbox.put(b"4444")
    assert not outbox.put(b"5")
    assert outbox.gave_way == 0


def test_statistics_and_repr() -> None:
    outbox = box(10)
    outbox.push("a", b"x" * 8, "recover")
    outbox.push("a", b"x" * 8, "recover")
    statistics = outbox.statistics()
    assert (statistics.queued, statistics.size, statistics.lagging) == (1, 8, 1)
    assert repr(outbox) == "<Outbox 1 entries, 8 of 10 bytes, 1 lanes lag>"
    assert outbox.limit == 10


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("reserve", -1), ("overhead", -1)])
def test_bad_values_are_named(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        Outbox(**{option: value})


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="drop_everything"):
        box(1).push("a", b"12", "drop_everything")  # type: ignore[arg-type]


# -- against a list


@dataclass
class Item:
    number: int
    lane: str | None  # None: control
    data: bytes
    mark: int = 0
    key: str | None = None


@dataclass
class Model:
    """The same rules, said with a list and no regard for cost."""

    limit: int
    reserve: int
    overhead: int
    minor: str = ""  # a lane that gives way
    gave_way: int = 0
    items: list[Item] = field(default_factory=list)
    lagging: set[str] = field(default_factory=set)

    def cost(self, *items: Item) -> int:
        return sum(len(item.data) + self.overhead for item in items)

    def fits(self, items: list[Item], outside: int) -> bool:
        return self.cost(*items) + outside <= self.limit

    def put(self, item: Item, outside: int) -> bool:
        if self.cost(*self.items, item) + outside > self.limit + self.reserve:
            return False
        self.items.append(item)
        return True

    def push(self, item: Item, policy: Overflow, outside: int) -> Spill | None:
        assert item.lane is not None
        if item.lane in self.lagging:
            return Spill(queued=False, lagging=True)
        older = None
        if policy == "latest_per_key" and item.key is not None:
            older = next((i for i in self.items if i.lane == item.lane and i.key == item.key), None)
        after = [i for i in self.items if i is not older]
        if older is not None and older.mark == 0 and item.mark == 0:
            after.insert(self.items.index(older), item)
        else:
            after.append(item)
        dropped: list[Item] = []
        if item.lane != self.minor:
            for each in [i for i in after if i.lane == self.minor]:
                if not self.fits(after, outside):
                    after.remove(each)
                    self.items.remove(each)
                    self.gave_way += 1
        if not self.fits(after, outside):
            if policy == "drop_newest":
                return Spill(queued=False, dropped=(item.mark,) if item.mark else (), dropped_count=1)
            if policy == "close" or self.cost(item) > self.limit:
                return Spill(queued=False, overflow=True)
            if policy == "recover":
                self.lagging.add(item.lane)
                return Spill(queued=False, lagging=True)
            for own in [i for i in after if i.lane == item.lane and i is not item]:
                if not self.fits(after, outside):
                    dropped.append(own)
                    after.remove(own)
            if not self.fits(after, outside):
                return Spill(queued=False, overflow=True)
        self.items = after
        replaced = 0 if older is None else older.mark
        if dropped or replaced:
            marks = tuple(i.mark for i in dropped if i.mark)
            return Spill(queued=True, dropped=marks, dropped_count=len(dropped), replaced=replaced)
        return None

    def take(self, max_bytes: int) -> list[bytes]:
        taken: list[bytes] = []
        while self.items:
            if taken and sum(map(len, taken)) + len(self.items[0].data) > max_bytes:
                break
            taken.append(self.items.pop(0).data)
        return taken


LANES = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            LANES,
            st.integers(0, 12),
            st.sampled_from(get_args(Overflow)),
            st.sampled_from([None, "x", "y"]),
            st.booleans(),
            st.sampled_from([0, 0, 0, 3, 30]),
        ),
        st.tuples(st.just("put"), st.integers(0, 12), st.sampled_from([0, 0, 5])),
        st.tuples(st.just("take"), st.integers(0, 30)),
        st.tuples(st.just("resume"), LANES),
        st.tuples(st.just("discard"), LANES),
    ),
    max_size=150,
)


@given(
    limit=st.integers(1, 60),
    reserve=st.integers(0, 20),
    overhead=st.sampled_from([0, 2]),
    minor=st.sampled_from(["", "c"]),
    steps=STEPS,
)
def test_like_a_list(
    limit: int, reserve: int, overhead: int, minor: str, steps: list[tuple[object, ...]]
) -> None:
    outbox = Outbox(limit=limit, reserve=reserve, overhead=overhead)
    model = Model(limit, reserve, overhead, minor)
    offered = 0
    for number, step in enumerate(steps, start=1):
        match step:
            case ("push", str(lane), int(length), policy, key, bool(marked), int(outside)):
                item = Item(number, lane, bytes([number % 256]) * length, number if marked else 0)
                item.key = key if policy == "latest_per_key" else None  # type: ignore[assignment]
                offered += 1
                expected = model.push(item, policy, outside)  # type: ignore[arg-type]
                got = outbox.push(
                    lane, item.data, policy, key=item.key, mark=item.mark, outside=outside,  # type: ignore[arg-type]
                    minor=lane == minor,
                )  # fmt: skip
                assert got == expected
                assert outbox.gave_way == model.gave_way
                if got is None or got.queued:
                    assert outbox.size + outside <= limit
                if got is not None and got.dropped_count:
                    event("dropped")
            case ("put", int(length), int(outside)):
                item = Item(number, None, bytes([number % 256]) * length)
                offered += 1
                assert outbox.put(item.data, outside=outside) == model.put(item, outside)
            case ("take", int(most)):
                assert outbox.take(most) == model.take(most)
            case ("resume", str(lane)):
                model.lagging.discard(lane)
                outbox.resume(lane)
            case ("discard", str(lane)):
                model.lagging.discard(lane)
                before = len(model.items)
                model.items = [i for i in model.items if i.lane != lane]
                assert outbox.discard(lane) == before - len(model.items)
            case _:
                raise AssertionError(step)
        assert outbox.size == model.cost(*model.items) <= limit + reserve
        assert len(outbox) == len(model.items)
        assert outbox.lagging == model.lagging
        s = outbox.statistics()
        assert offered == (
            s.queued + s.taken + s.dropped + s.conflated + s.discarded + s.refused + s.overflows
        )
    assert everything(outbox) == [item.data for item in model.items]
