from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtkit.primitives import RoomRegistry


class Member:
    def __init__(self, name: str = "", *, answer: object = None) -> None:
        self.name = name
        self.got: list[bytes] = []
        self.answer = answer
        self.then: Callable[[], object] = lambda: None

    def send_nowait(self, data: bytes) -> object:
        self.got.append(data)
        self.then()
        return self.answer

    def __repr__(self) -> str:
        return f"Member({self.name!r})"


@pytest.fixture
def registry() -> RoomRegistry[Member]:
    return RoomRegistry()


def test_join_and_leave(registry: RoomRegistry[Member]) -> None:
    ann, bob = Member("ann"), Member("bob")
    registry.join(ann, "a")
    registry.join(bob, "a")
    registry.join(ann, "b")
    assert registry.members("a") == (ann, bob)
    assert registry.rooms(ann) == ("a", "b")
    assert "a" in registry
    assert "c" not in registry
    assert len(registry) == 2
    assert registry.count("a") == 2
    assert registry.count("c") == 0
    assert registry.is_member(bob, "a")
    assert not registry.is_member(bob, "b")
    assert registry.leave(ann, "a")
    assert not registry.leave(ann, "a")
    assert not registry.leave(ann, "c")
    assert registry.members("a") == (bob,)
    assert registry.members("c") == ()
    assert registry.rooms(Member()) == ()


def test_empty_rooms_are_gone(registry: RoomRegistry[Member]) -> None:
    ann = Member()
    registry.join(ann, "a")
    registry.leave(ann, "a")
    assert "a" not in registry
    statistics = registry.statistics()
    assert (statistics.rooms, statistics.members, statistics.memberships) == (0, 0, 0)
    assert registry  # also when empty


def test_discard(registry: RoomRegistry[Member]) -> None:
    ann, bob = Member(), Member()
    for room in ("a", "b"):
        registry.join(ann, room)
    registry.join(bob, "b")
    assert registry.discard(ann) == ("a", "b")
    assert registry.discard(ann) == ()
    assert len(registry) == 1


def test_joining_twice_is_once(registry: RoomRegistry[Member]) -> None:
    ann = Member()
    registry.join(ann, "a")
    registry.join(ann, "a")
    assert registry.count("a") == 1
    assert registry.leave(ann, "a")
    assert "a" not in registry


def test_a_membership_is_a_context_manager(registry: RoomRegistry[Member]) -> None:
    ann = Member("ann")
    with registry.join(ann, "a") as membership:
        assert membership.member is ann
        assert membership.room == "a"
        assert registry.is_member(ann, "a")
        assert repr(membership) == "<Membership of Member('ann') in 'a'>"
    assert "a" not in registry
    assert not membership.leave()


async def test_a_membership_is_an_async_context_manager(registry: RoomRegistry[Member]) -> None:
    ann = Member()
    async with registry.join(ann, "a"), registry.join(ann, "b"):
        assert registry.rooms(ann) == ("a", "b")
    assert registry.rooms(ann) == ()


def test_broadcast(registry: RoomRegistry[Member]) -> None:
    ann, bob, eve = Member(), Member(), Member()
    registry.join(ann, "a")
    registry.join(bob, "a")
    registry.join(eve, "b")
    assert registry.broadcast("a", b"1") == 2
    assert registry.broadcast("a", b"2", exclude=ann) == 1
    assert registry.broadcast("c", b"3") == 0
    assert (ann.got, bob.got, eve.got) == ([b"1"], [b"1", b"2"], [])
    assert registry.statistics().broadcasts == 2
    assert registry.statistics().delivered == 3


def test_a_member_that_answers_false_did_not_take_it(registry: RoomRegistry[Member]) -> None:
    registry.join(Member(answer=False), "a")
    registry.join(Member(answer=True), "a")
    assert registry.broadcast("a", b"x") == 1
    assert registry.statistics().refused == 1


def test_a_failing_member_harms_nobody(
    registry: RoomRegistry[Member], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Member("bad"), Member("good")
    bad.then = lambda: 1 / 0
    registry.join(bad, "a")
    registry.join(good, "a")
    assert registry.broadcast("a", b"x") == 1
    assert good.got == [b"x"]
    assert registry.statistics().failed == 1
    assert [r.name for r in caplog.records] == ["rtkit.rooms"]
    assert "Member('bad')" in caplog.text


def test_who_leaves_during_a_broadcast_gets_nothing_and_who_joins_waits(
    registry: RoomRegistry[Member],
) -> None:
    ann, bob, eve, late = Member(), Member(), Member(), Member()

    def change() -> None:
        registry.discard(bob)
        registry.join(late, "a")

    ann.then = change
    for member in (ann, bob, eve):
        registry.join(member, "a")
    assert registry.broadcast("a", b"x") == 2
    assert (ann.got, bob.got, eve.got, late.got) == ([b"x"], [], [b"x"], [])


def test_the_room_may_vanish_during_a_broadcast(registry: RoomRegistry[Member]) -> None:
    ann, bob = Member(), Member()
    ann.then = lambda: (registry.discard(ann), registry.discard(bob))
    registry.join(ann, "a")
    registry.join(bob, "a")
    assert registry.broadcast("a", b"x") == 1
    assert bob.got == []


def test_works_as_a_brokers_sink(caplog: pytest.LogCaptureFixture) -> None:
    log: list[tuple[str, str]] = []
    registry = RoomRegistry[Member](
        on_open=lambda room: log.append(("open", room)),
        on_empty=lambda room: log.append(("empty", room)),
        on_interrupted=lambda room: log.append(("interrupted", room)),
    )
    ann, bob = Member(), Member()
    registry.join(ann, "a")
    registry.join(bob, "a")
    registry.deliver("a", b"x", None)
    registry.deliver("nobody", b"x", object())
    registry.interrupted(["a", "nobody"])
    registry.leave(ann, "a")
    registry.leave(bob, "a")
    assert bob.got == [b"x"]
    assert log == [("open", "a"), ("interrupted", "a"), ("empty", "a")]
    assert registry.statistics().interruptions == 1
    assert caplog.records == []


def test_an_interruption_nobody_listens_to_is_a_warning(
    registry: RoomRegistry[Member], caplog: pytest.LogCaptureFixture
) -> None:
    registry.join(Member(), "a")
    registry.interrupted(["a"])
    assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_a_failing_hook_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    registry = RoomRegistry[Member](on_open=lambda room: 1 / 0)
    registry.join(Member(), "a")
    assert registry.count("a") == 1
    assert "ZeroDivisionError" in caplog.text
    assert repr(registry) == "<RoomRegistry 1 rooms, 1 members>"


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "leave", "discard"]), st.integers(0, 3), st.sampled_from("abc"))
    )
)
def test_like_a_set_of_pairs(steps: list[tuple[str, int, str]]) -> None:
    registry = RoomRegistry[int]()
    pairs: set[tuple[int, str]] = set()
    for what, member, room in steps:
        if what == "join":
            registry.join(member, room)
            pairs.add((member, room))
        elif what == "leave":
            assert registry.leave(member, room) == ((member, room) in pairs)
            pairs.discard((member, room))
        else:
            assert set(registry.discard(member)) == {r for m, r in pairs if m == member}
            pairs = {(m, r) for m, r in pairs if m != member}
        for r in "abc":
            assert set(registry.members(r)) == {m for m, r2 in pairs if r2 == r}
        for m in range(4):
            assert set(registry.rooms(m)) == {r for m2, r in pairs if m2 == m}
        statistics = registry.statistics()
        assert statistics.memberships == len(pairs)
        assert statistics.rooms == len(registry) == len({r for _, r in pairs})
        assert statistics.members == len({m for m, _ in pairs})
