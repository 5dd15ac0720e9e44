"""What passes of one client's signals, without hub or clock (D5)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from rtkit.features.signals.pace import EVENTS, Pace


def raw(n: int, size: int = 0) -> Raw:
    return Raw(b'"%06d%s"' % (n, b"x" * size))


def test_the_first_passes_and_the_newest_of_the_rest_when_it_may() -> None:
    pace = Pace(10)
    assert pace.offer("e", raw(1), 5.0)
    assert not pace.offer("e", raw(2), 5.01)
    assert not pace.offer("e", raw(3), 5.02)
    assert pace.look_at(5.02) == 5.1
    assert pace.take(5.09) == []
    assert pace.take(5.1) == [("e", raw(3))]
    assert not pace.offer("e", raw(4), 5.11)
    assert pace.take(5.2) == [("e", raw(4))]
    assert pace.offer("e", raw(5), 5.3)


def test_a_late_look_does_not_put_an_older_one_behind_a_newer() -> None:
    pace = Pace(10)
    pace.offer("e", raw(1), 0.0)
    pace.offer("e", raw(2), 0.05)
    assert not pace.offer("e", raw(3), 0.3)
    assert pace.take(0.3) == [("e", raw(3))]
    assert pace.take(9.0) == []


def test_events_do_not_wait_for_each_other() -> None:
    pace = Pace(1)
    assert pace.offer("a", raw(1), 0.0)
    assert pace.offer("b", raw(1), 0.4)
    assert not pace.offer("b", raw(2), 0.5)
    assert not pace.offer("a", raw(2), 0.6)
    assert pace.look_at(0.6) == 1.0
    assert pace.take(1.0) == [("a", raw(2))]
    assert pace.look_at(1.0) == 1.4
    assert pace.take(1.4) == [("b", raw(2))]


def test_it_is_forgotten_when_it_has_fallen_silent() -> None:
    pace = Pace(10)
    pace.offer("e", raw(1), 0.0)
    when = pace.look_at(0.0)
    assert when is not None
    assert when > 0.1
    assert pace.take(when) == []
    assert pace.look_at(when) is None


def test_a_few_events_at_a_time() -> None:
    """Of more, one waits until another has fallen silent; beyond as many again the oldest is dropped."""
    pace = Pace(1)
    assert all(pace.offer(f"e{n}", raw(n), n / 100) for n in range(EVENTS))
    for n in range(EVENTS, 2 * EVENTS):
        assert not pace.offer(f"e{n}", raw(n), 0.5)
        assert pace.trim() == 0
    assert not pace.offer("one more", raw(99), 0.5)
    assert pace.trim() == 1
    assert pace.look_at(0.5) == 1.0
    assert pace.take(1.0) == [(f"e{EVENTS + 1}", raw(EVENTS + 1))]
    assert len(pace.take(1.5)) == EVENTS - 1
    assert pace.take(2.5) == []
    assert pace.clear() == 0


def test_what_is_held_is_bounded_in_bytes() -> None:
    pace = Pace(1)
    for n in range(4):
        pace.offer(f"e{n}", raw(0), 0.0)
    for n in range(4):
        pace.offer(f"e{n}", raw(n, 20_000), 0.1)
        pace.offer(f"e{n}", raw(n, 20_001), 0.1)
        assert pace.trim() == (n == 3)
    pace.offer("e0", raw(9, 500_000), 0.2)
    assert pace.trim() == 3
    assert pace.take(1.0) == [("e0", raw(9, 500_000))]


OFFERS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2, 1.0]), st.integers(0, 40)), max_size=120
)


@given(st.sampled_from([0.7, 5.0, 20.0, 300.0]), OFFERS)
def test_whatever_is_offered(rate: float, offers: list[tuple[float, int]]) -> None:
    """Of each event no more than its rate passes, the newest gets through, and it never waits for ever."""
    pace, now = Pace(rate), 100.0
    passed: dict[str, list[float]] = {}
    newest: dict[str, Raw] = {}
    last: dict[str, Raw] = {}
    dropped = 0

    def took(event: str, data: Raw, at: float) -> None:
        passed.setdefault(event, []).append(at)
        last[event] = data

    def run(until: float) -> None:
        nonlocal now
        looks = 0
        while (when := pace.look_at(now)) is not None and when <= until:
            looks += 1
            assert looks < 10_000
            now = max(now, when)
            for event, data in pace.take(now):
                took(event, data, now)
        now = max(now, until)

    for n, (pause, number) in enumerate(offers):
        run(now + pause)
        event = f"e{number}"
        newest[event] = raw(n)
        if pace.offer(event, raw(n), now):
            took(event, raw(n), now)
        dropped += pace.trim()
    run(now + 1000)
    assert pace.look_at(now) is None
    for times in passed.values():
        assert all(b - a > 1 / rate - 1e-5 for a, b in pairwise(times))
    wrong = [event for event in newest if last.get(event) != newest[event]]
    assert len(wrong) <= dropped
    every = sorted(at for times in passed.values() for at in times)
    for first, later in zip(every, every[EVENTS:], strict=False):
        assert later - first > 1 / rate - 1e-5
