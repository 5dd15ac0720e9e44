"""One client that types, without hub or clock (X1)."""

from __future__ import annotations

from itertools import pairwise

from rtkit.features.typing.typist import CHANGES, Typist


def words(typist: Typist, *, until: float, now: float = 0.0) -> list[tuple[float, bool]]:
    """What it has told, looked at whenever it asks for it; what it says meanwhile nothing."""
    told: list[tuple[float, bool]] = []
    while now <= until:
        word = typist.tell(now)
        if word is not None:
            told.append((now, word))
        when = typist.look_at(now)
        if when is None:
            break
        assert when > now, "it would never get on"
        now = when
    return told


def test_a_word_is_told_at_once_and_expires() -> None:
    typist = Typist(5.0)
    typist.says(True, 10.0)
    assert words(typist, now=10.0, until=100.0) == [(10.0, True), (15.0, False)]


def test_it_is_forgotten_a_second_after_it_was_last_told_of() -> None:
    typist = Typist(5.0)
    typist.says(True, 0.0)
    assert typist.tell(0.0) is True
    typist.says(False, 0.1)
    assert typist.tell(0.1) is False
    assert typist.look_at(0.1) == 1.1
    assert typist.tell(1.1) is None
    assert typist.look_at(1.1) is None


def test_who_says_it_again_goes_on() -> None:
    """However often it is said: told once in a third of the time, and it never expires at those who heard it."""
    for every in (0.02, 0.5, 1.2, 2.4, 4.9):
        typist, told, now = Typist(5.0), list[float](), 0.0
        next_look: float | None = None
        for n in range(int(60 / every)):
            while next_look is not None and next_look < n * every:
                now = next_look
                if (word := typist.tell(now)) is not None:
                    assert word is True
                    told.append(now)
                next_look = typist.look_at(now)
            now = n * every
            typist.says(True, now)
            if typist.tell(now) is not None:
                told.append(now)
            next_look = typist.look_at(now)
        gaps = [b - a for a, b in pairwise(told)]
        assert min(gaps) > 5 / 3 - 1e-5
        assert max(gaps) < 5


def test_flips_are_told_four_times_a_second_and_the_last_gets_through() -> None:
    typist = Typist(5.0)
    told: list[tuple[float, bool]] = []
    for n in range(101):
        now = n / 100
        typist.says(n % 2 == 0, now)
        if (word := typist.tell(now)) is not None:
            told.append((now, word))
    assert [word for _, word in told] == [True, False, True, False, True]
    assert told[CHANGES][0] - told[0][0] >= 1 - 1e-5
    typist.says(False, 1.01)
    assert words(typist, now=1.01, until=9.0) == [(1.01, False)]


def test_what_changes_back_before_it_could_be_told_is_not_told() -> None:
    typist = Typist(5.0)
    for n in range(4):
        typist.says(n % 2 == 0, 0.0)
        assert typist.tell(0.0) is (n % 2 == 0)
    typist.says(True, 0.5)
    assert typist.tell(0.5) is None
    assert typist.look_at(0.5) == 1.0
    typist.says(False, 0.6)
    assert words(typist, now=0.6, until=100.0) == []


def test_it_expires_while_it_waits_to_be_told() -> None:
    typist = Typist(1.0)
    for n in range(4):
        typist.says(n % 2 == 0, 0.9)
        typist.tell(0.9)
    typist.says(True, 0.95)
    assert words(typist, now=0.95, until=100.0) == [(1.9, True), (1.95, False)]


def test_rounding_does_not_make_it_look_again_for_ever() -> None:
    """A clock that shows a hair less than what was asked for."""
    typist = Typist(5.0)
    now = 1e9 + 0.1
    typist.says(True, now)
    assert typist.tell(now) is True
    when = typist.look_at(now)
    assert when is not None
    assert typist.tell(when - 1e-7) is False
