"""The checker of histories finds what is planted, says it readably, and has nothing against what is true."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from rtkit import Gap, Position
from tests.support.checker import Record, Violations

ROOM = "r:1"


def at(text: str) -> Position:
    epoch, _, offset = text.partition(":")
    return Position(epoch, int(offset))


class Run:
    """Writes records in short."""

    def __init__(self) -> None:
        self.record = Record("seed 7")

    def publish(self, ids: str, where: str, *, durability: str = "stored") -> Run:
        """Acknowledged messages, one right after the other; *where* the first one is."""
        position = at(where)
        for n, id in enumerate(ids.split()):
            attempt = self.record.publishing(ROOM, id, publisher="p", durability=durability)  # type: ignore[arg-type]
            attempt.acknowledged(Position(position.epoch, position.offset + n))
        return self

    def member(self, script: str, name: str = "ann") -> Run:
        """``joined e:0 | a e:1 | gap e:1-4 trimmed | recovered e2:1 | stands e2:1``."""
        log = self.record.member(ROOM, name)
        for step in script.split(" | "):
            word, where, *rest = step.split()
            match word:
                case "joined":
                    log.joined(at(where))
                case "recovered":
                    log.recovered(at(where))
                case "unrecovered":
                    log.unrecovered(at(where))
                case "stands":
                    log.stands(at(where))
                case "left":
                    log.left()
                case "gap":
                    epoch, _, span = where.partition(":")
                    start, _, end = span.partition("-")
                    log.gap(Gap(int(start), int(end), epoch, rest[0]))  # type: ignore[arg-type]
                case _:
                    log.message(at(where), word)
        return self

    def stream(self, ids: str, where: str, floor: int = 0) -> Run:
        entries = {floor + n: id for n, id in enumerate(ids.split(), 1)}
        self.record.stream(ROOM, at(where), floor=floor, entries=entries)
        return self

    def lost(self, **options: float | bool) -> Run:
        self.record.lost("flood", **options)  # type: ignore[arg-type]
        return self


def good(name: str, make: Callable[[Run], Run]) -> object:
    return pytest.param(make, id=name)


@pytest.mark.parametrize(
    "make",
    [
        good("nothing", lambda run: run),
        good(
            "everything once",
            lambda run: (
                run.publish("a b c", "e:1")
                .member("joined e:0 | a e:1 | b e:2 | c e:3 | stands e:3")
                .member("joined e:2 | c e:3 | stands e:3", "bob")
                .member("joined e:0 | a e:1 | left -:0", "cid")
                .stream("a b c", "e:3")
            ),
        ),
        good(
            "trimmed, and told",
            lambda run: (
                run.publish("a b c d", "e:1")
                .member("joined e:0 | a e:1 | gap e:1-3 trimmed | d e:4 | stands e:4")
                .stream("d", "e:4", floor=3)
            ),
        ),
        good(
            "carried into another epoch",
            lambda run: (
                run.publish("a b", "e:1")
                .publish("c", "f:3")
                .member("joined e:0 | a e:1 | b e:2 | c f:3 | stands f:3")
                .member("joined e:0 | a e:1 | recovered f:1 | b f:2 | c f:3 | stands f:3", "bob")
                .stream("a b c", "f:3")
            ),
        ),
        good(
            "carried, and quiet",
            lambda run: run.publish("a", "e:1").member("joined e:0 | a e:1 | stands f:1").stream("a", "f:1"),
        ),
        good(
            "rolled back, and told",
            lambda run: (
                run.publish("a b c", "e:1")
                .lost()
                .publish("d", "f:2")
                .member("joined e:0 | a e:1 | b e:2 | c e:3 | gap f:1-1 rollback | d f:2 | stands f:2")
                .member("joined e:0 | a e:1 | d f:2 | stands f:2", "bob")  # it never had what was lost
                .stream("a d", "f:2")
            ),
        ),
        good(
            "not recovered, because it is trimmed, or another stream",
            lambda run: (
                run.publish("a b c d", "e:1")
                .member("joined e:0 | a e:1 | unrecovered e:3 | d e:4 | stands e:4")
                .member("joined x:7 | unrecovered e:3 | d e:4 | stands e:4", "bob")
                .stream("c d", "e:4", floor=2)
            ),
        ),
        good(
            "lost altogether, and told; what was unknown is sent again",
            lambda run: (
                run.publish("a", "e:1")
                .lost()
                .publish("b", "f:1")
                .member("joined e:0 | a e:1 | b e:2 | gap f:0-0 epoch | b f:1 | stands f:1")
                .stream("b", "f:1")
            ),
        ),
    ],
)
def test_it_has_nothing_against(make: Callable[[Run], Run]) -> None:
    make(Run()).record.check()


def bad(kind: str, make: Callable[[Run], Run], says: str = "", also: str = "") -> object:
    return pytest.param({kind, *also.split(", ")} - {""}, says, make, id=f"{kind}: {says}")


@pytest.mark.parametrize(
    "kinds, says, make",
    [
        bad(
            "missed in silence",
            lambda run: (
                run.publish("a b c", "e:1")
                .member("joined e:0 | a e:1 | c e:3 | stands e:3")
                .stream("a b c", "e:3")
            ),
            "after e:1 came e:3 (c), and no gap",
        ),
        bad(
            "behind at the end",
            lambda run: (
                run.publish("a b", "e:1").member("joined e:0 | a e:1 | stands e:1").stream("a b", "e:2")
            ),
            "ann: it stands at e:1, and the stream at e:2",
        ),
        bad(
            "missed in silence",
            lambda run: (
                run.publish("a b", "e:1").member("joined e:0 | a e:1 | stands e:2").stream("a b", "e:2")
            ),
            "its last item was at e:1",
        ),
        bad(
            "twice",
            lambda run: (
                run.publish("a", "e:1").publish("a", "f:2").member("joined e:0 | a e:1 | a f:2 | left -:0")
            ),
            "a came at e:1 and again at f:2",
        ),
        bad(
            "one message at two places",
            lambda run: run.publish("a b a", "e:1"),
            "a is at e:1 to publisher p, and at e:3",
        ),
        bad(
            "two messages at one place",
            lambda run: run.publish("a b", "e:1").member("joined e:1 | a e:2 | left -:0"),
            "e:2 is b to publisher p, and a to member ann",
        ),
        bad(
            "order",
            lambda run: run.publish("a b", "e:1").member(
                "joined e:0 | a e:1 | b e:2 | a e:1 | b e:2 | left -:0"
            ),
            "after e:2 came e:1 (a)",
            also="twice",
        ),
        bad(
            "acknowledged, yet lost",
            lambda run: run.publish("a b", "e:1").stream("a", "f:1"),
            "b was acknowledged at e:2 (stored)",
        ),
        bad(
            "acknowledged, yet lost",
            lambda run: run.lost().publish("a", "e:1").stream("", "e:0"),
            "a was acknowledged",
            also="the stream went back",
        ),
        bad(
            "acknowledged, yet lost",
            lambda run: (
                run.publish("a", "e:1", durability="replicated").lost(replicated=False).stream("", "f:0")
            ),
            "(replicated)",
        ),
        bad(
            "acknowledged, yet lost",
            lambda run: run.publish("a", "e:1").lost(since=time.monotonic() + 60).stream("", "f:0"),
            "a was",
        ),
        bad(
            "hole in the stream",
            lambda run: run.publish("a", "e:1").stream("a", "e:2"),
            "nothing at 2 of e",
        ),
        bad(
            "false continuity",
            lambda run: (
                run.publish("a b", "e:1")
                .lost()
                .publish("c d e", "f:1")
                .member("joined e:0 | a e:1 | b e:2 | recovered f:2 | e f:3 | stands f:3")
                .stream("c d e", "f:3")
            ),
            "moved from e:2 to f:2 without a gap, by recovered: true; yet of that epoch 1 is c, and it got a",
        ),
        bad(
            "false continuity",
            lambda run: (
                run.publish("a b", "e:1")
                .lost()
                .publish("c d e", "f:1")
                .member("joined e:0 | a e:1 | b e:2 | e f:3 | stands f:3")
                .stream("c d e", "f:3")
            ),
            "by e at f:3",
        ),
        bad(
            "false continuity",
            lambda run: (
                run.publish("a b", "e:1")
                .lost()
                .publish("c d", "f:1")
                .member("joined e:0 | a e:1 | b e:2 | stands f:2")
                .stream("c d", "f:2")
            ),
            "by the end",
        ),
        bad(
            "false recovered",
            lambda run: run.publish("a b", "e:1").member("joined e:0 | a e:1 | recovered e:2 | left -:0"),
            "it stood at e:1 and was let in at e:2",
        ),
        bad(
            "false gap",
            lambda run: (
                run.publish("a b c", "e:1")
                .member("joined e:0 | a e:1 | gap e:1-2 trimmed | c e:3 | stands e:3")
                .stream("a b c", "e:3")
            ),
            "told that e:2 is gone; it is there: b",
        ),
        bad(
            "false gap",
            lambda run: (
                run.publish("a b c", "e:1")
                .member("joined e:0 | a e:1 | unrecovered e:2 | c e:3 | stands e:3")
                .stream("a b c", "e:3")
            ),
            "told that e:2 is gone",
        ),
        bad(
            "false gap",
            lambda run: (
                run.publish("a", "e:1")
                .member("joined e:0 | a e:1 | unrecovered f:1 | stands f:1")
                .stream("a", "f:1")
            ),
            "that place is still there",
        ),
        bad(
            "false gap",
            lambda run: run.member("joined e:2 | gap e:1-3 trimmed | left -:0"),
            "at e:2 it was told gap (trimmed): 1 < offset <= 3",
        ),
        bad(
            "false gap",
            lambda run: (
                run.publish("a b", "e:1")
                .member("joined e:0 | a e:1 | gap f:0-0 epoch | a f:1 | b f:2 | stands f:2")
                .stream("a b", "f:2")
            ),
            "yet that is the same stream",
        ),
        bad(
            "false gap",
            lambda run: (
                run.publish("a b", "e:1")
                .member("joined e:0 | a e:1 | b e:2 | gap f:1-1 rollback | b f:2 | stands f:2")
                .stream("a b", "f:2")
            ),
            "yet that place is still there",
        ),
        bad(
            "the stream went back",
            lambda run: run.publish("a b", "e:1").lost().stream("a", "e:1"),
            "it ends at e:1, and 2 of that epoch were there",
        ),
        bad(
            "out of place",
            lambda run: run.publish("a", "e:1").member("a e:1 | left -:0"),
            "before it joined",
        ),
        bad(
            "out of thin air",
            lambda run: run.stream("a", "e:1"),
            "a at e:1 (the reader at the end) was published by nobody",
        ),
    ],
)
def test_it_finds(kinds: set[str], says: str, make: Callable[[Run], Run]) -> None:
    with pytest.raises(Violations) as caught:
        make(Run()).record.check()
    assert caught.value.kinds == kinds
    assert says in str(caught.value)
    assert "seed 7" in str(caught.value)


def test_what_failed_must_not_be_there_unless_it_was_tried_again() -> None:
    run = Run()
    run.record.publishing(ROOM, "a").failed(OSError("gone"))
    run.stream("a", "e:1")
    with pytest.raises(Violations, match="a, which failed, is at e:1"):
        run.record.check()
    run.record.publishing(ROOM, "a").unknown()
    run.record.check()


def test_what_never_ended_may_be_there_once_or_not() -> None:
    run = Run()
    run.record.publishing(ROOM, "a")
    run.record.publishing(ROOM, "b")
    run.stream("a", "e:1").record.check()


def test_who_begins_after_an_acknowledgement_stands_behind() -> None:
    run = Run().publish("a", "e:2").publish("b", "e:1")
    with pytest.raises(Violations, match="b at e:1 was begun after a at e:2 had been acknowledged"):
        run.record.check()
    together = Run()
    first, second = (together.record.publishing(ROOM, id) for id in "ab")
    first.acknowledged(at("e:2"))
    second.acknowledged(at("e:1"))
    together.record.check()
