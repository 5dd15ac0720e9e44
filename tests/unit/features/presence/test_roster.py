"""Who is in a room, as one node sees it: what is announced, what is read, and what others are told (P1, P2)."""

from __future__ import annotations

from rtkit.features.presence.roster import Frame, Present, Roster
from rtkit.position import Position

ANN = Present("c1", "ann", b'{"n":1}', node="a")
BOB = Present("c2", "bob", node="a")
ANNS_PHONE = Present("c3", "ann", node="b")


def at(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset)


def read(*members: Present, offset: int = 5) -> Roster:
    """A roster that has read these."""
    roster = Roster()
    roster.reading()
    roster.read(at(offset), members)
    return roster


def test_a_roster_begins_with_a_read() -> None:
    roster = Roster()
    assert roster.wants_read
    roster.reading()
    roster.read(at(5), [ANN, BOB])
    assert not roster.wants_read
    assert roster.snapshot() == [ANN, BOB]
    assert roster.frame() is None  # they have not come: they were there


def test_the_next_revision_is_applied() -> None:
    roster = read(ANN)
    roster.announced(at(6), {"c2": BOB})
    roster.announced(at(7), {"c1": None})
    assert not roster.wants_read
    assert roster.frame() == Frame(1, joins=(BOB,), leaves=(ANN,))
    assert roster.snapshot() == [BOB]


def test_a_late_announcement_is_passed_over() -> None:
    roster = read(ANN)
    roster.announced(at(5), {"c1": None})
    roster.announced(at(1), {"c1": None})
    assert not roster.wants_read and not roster.changed


def test_a_jump_wants_a_read_and_the_read_yields_the_difference() -> None:
    """P2."""
    roster = read(ANN)
    roster.announced(at(7), {"c3": ANNS_PHONE})
    assert roster.wants_read and not roster.changed
    roster.reading()
    roster.read(at(7), [BOB, ANNS_PHONE])
    assert not roster.wants_read
    assert roster.frame() == Frame(1, joins=(BOB, ANNS_PHONE), leaves=(ANN,))


def test_another_epoch_wants_a_read() -> None:
    roster = read(ANN)
    roster.announced(at(6, "other"), {"c2": BOB})
    assert roster.wants_read and not roster.changed


def test_what_comes_during_a_read_and_is_not_shown_by_it_wants_another() -> None:
    roster = Roster()
    roster.reading()
    roster.announced(at(6), {"c2": BOB})
    roster.read(at(5), [ANN])
    assert roster.wants_read
    roster.reading()
    roster.read(at(6), [ANN, BOB])
    assert not roster.wants_read


def test_what_a_read_shows_already_wants_no_other() -> None:
    roster = Roster()
    roster.announced(at(9, "old"), {})  # before the read began, which shows what has become of it
    roster.reading()
    roster.announced(at(5), {"c1": ANN})
    roster.announced(at(6), {"c2": BOB})
    roster.read(at(6), [ANN, BOB])
    assert not roster.wants_read


def test_a_new_epoch_during_a_read_wants_another() -> None:
    roster = Roster()
    roster.reading()
    roster.announced(at(1, "new"), {"c1": ANN})
    roster.announced(at(6), {"c1": ANN})
    roster.read(at(6), [ANN])
    assert roster.wants_read


def test_several_clients_of_a_user_are_one_user() -> None:
    """P1."""
    roster = read(ANN, BOB, ANNS_PHONE)
    assert (roster.clients, roster.users) == (3, 2)
    roster.announced(at(6), {"c1": None})
    assert (roster.clients, roster.users) == (2, 2)
    roster.announced(at(7), {"c3": None})
    assert (roster.clients, roster.users) == (1, 1)


def test_a_change_of_meta_is_an_update() -> None:
    """P1."""
    roster = read(ANN)
    away = Present("c1", "ann", b'{"away":true}', node="a")
    roster.announced(at(6), {"c1": away})
    assert roster.frame() == Frame(1, updates=(away,))


def test_on_which_node_a_client_is_concerns_nobody() -> None:
    """P4: it has reconnected to another, or its node was cut off for a while."""
    roster = read(ANN)
    moved = Present("c1", "ann", ANN.meta, node="b", incarnation="i", generation=2)
    roster.announced(at(6), {"c1": moved})
    assert roster.frame() is None
    assert roster.members["c1"] == moved


def test_who_was_away_between_two_frames_has_not_left() -> None:
    roster = read(ANN)
    roster.announced(at(6), {"c1": None})
    roster.announced(at(7), {"c2": BOB})
    roster.announced(at(8), {"c1": ANN, "c2": None})
    assert not roster.changed
    assert roster.frame() is None
    assert roster.v == 0


def test_a_snapshot_between_frames_is_as_of_the_last_one() -> None:
    """P2: what a frame will say shall not be said before it."""
    roster = read(ANN, BOB)
    away = Present("c1", "ann", b'{"away":true}')
    roster.announced(at(6), {"c1": away, "c2": None, "c3": ANNS_PHONE})
    assert sorted(each.client for each in roster.snapshot()) == ["c1", "c2"]
    assert ANN in roster.snapshot()
    assert roster.v == 0
    frame = roster.frame()
    assert frame == Frame(1, joins=(ANNS_PHONE,), leaves=(BOB,), updates=(away,))
    assert roster.snapshot() == [away, ANNS_PHONE]
    assert roster.v == 1


def test_the_position_check_notices_what_was_missed() -> None:
    roster = read(ANN)
    assert not roster.differs(at(5))
    assert roster.differs(at(6))
    assert roster.differs(at(4))  # the broker has lost something
    assert roster.differs(at(5, "other"))


def test_the_size_is_that_of_all_members() -> None:
    roster = read(ANN, BOB)
    both = roster.size
    roster.announced(at(6), {"c2": None})
    assert roster.size == ANN.size == both - BOB.size
    roster.announced(at(7), {"c1": Present("c1", "ann", b'{"n":12}')})
    assert roster.size == ANN.size + 1
    roster.announced(at(8), {"c1": None})
    assert roster.size == 0
