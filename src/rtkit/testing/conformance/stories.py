"""What may happen in a story that is told to a broker and to memory; see :mod:`.likeness`. Needs hypothesis.

Hypothesis' own state machines draw a dozen choices for each step, which takes longer than all that is done. So an act
is one choice here, from a list made beforehand, and a story is a list of acts: many times as many fit into a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, TypeVar

from hypothesis import strategies as st

from ...brokers import ANYTHING, Anything, Conflict, NewEntry, Revision
from ...messages import History
from ...position import Position
from .likeness import FOREIGN, Comparison, Story

__all__ = ["CARRYING", "KEEPING", "STREAMING", "Acting", "stories"]

_LONG = 86400.0

T = TypeVar("T")


def _acts(kind: Callable[..., T], many: int, /, **choices: Sequence[Any]) -> list[T]:
    """Things to do of one kind. The simplest of the *choices* come first, and more often."""
    random, found = Random(1), dict[tuple[int, ...], T]()
    while len(found) < many:
        chosen = tuple(int(len(values) * random.random() ** 1.8) for values in choices.values())
        values = (values[index] for values, index in zip(choices.values(), chosen, strict=True))
        found[chosen] = kind(**dict(zip(choices, values, strict=True)))
    return [found[chosen] for chosen in sorted(found, key=lambda chosen: (sum(chosen), chosen))]


_NODES = (0, 1)
_TOPICS = (0, 0, 1, 2)
_STATES = (0, 0, 1)
_PAYLOADS = (b"1", b"22", b"", b"333333")
_KEYS = (None, "k", None, "l", "", "k:l")
#: Which of the positions seen on a topic, from the last one back, and how far off it. Far off is where its epoch began.
_FAR = -1000
_SPOTS = (
    None,
    (0, 0),
    None,
    (1, 0),
    (1, _FAR),
    (2, 0),
    (0, 1),
    (0, -1),
    (3, 0),
    (0, _FAR),
    (1, 1),
    (5, 0),
    (0, 4),
    FOREIGN,
)
_FIELDS = ("f", "g", "f", "")
_VALUES = (b"1", b"", b"2")
_SOME: tuple[dict[str, bytes | None], ...] = (
    {},
    {"f": b"1"},
    {"f": None},
    {"g": b""},
    {"f": b""},
    {"f": b"2", "g": b"1"},
    {"f": None, "g": None},
    {"f": b"1", "g": None},
    {"": b""},
)
#: How long leases last, in ticks; None: for ever. Where time does not move, nothing ends.
_LEASES = (None, 2.5, None, 5.5)


class Listen(NamedTuple):
    node: int
    topic: int
    join: bool


class Publish(NamedTuple):
    node: int
    topic: int
    payload: bytes


class Pass(NamedTuple):
    ticks: int


class Clear(NamedTuple):
    node: int
    topic: int


class Look(NamedTuple):
    node: int
    state: int


class Positions(NamedTuple):
    node: int


class Append(NamedTuple):
    node: int
    topic: int
    payload: bytes
    keep: int
    size: int
    key: str | None
    expected: Any


class Extend(NamedTuple):
    node: int
    topic: int
    entries: tuple[tuple[bytes, str | None], ...]
    keep: int
    expected: Any


class Read(NamedTuple):
    node: int
    topic: int
    since: Any
    limit: int
    reverse: bool
    bounded: bool


class Put(NamedTuple):
    node: int
    state: int
    field: str
    value: bytes
    lease: float | None
    expected: bytes | Anything | None


class Renew(NamedTuple):
    node: int
    state: int
    fields: tuple[str, ...]
    lease: float | None


class Remove(NamedTuple):
    node: int
    state: int
    field: str
    expected: bytes | None


class Revise(NamedTuple):
    node: int
    state: int
    changes: Mapping[str, bytes | None]
    expected: Mapping[str, bytes | None]
    lease: float | None
    payload: bytes


CARRYING: Final[list[Any]] = [
    *(Publish(node, topic, payload) for payload in _PAYLOADS for topic in (0, 1, 2) for node in _NODES),
    *(Listen(node, topic, join) for join in (True, False) for topic in (0, 1, 2) for node in _NODES),
    *(Pass(ticks) for ticks in (1, 3) for _ in range(5)),
]
STREAMING: Final[list[Any]] = [
    *_acts(
        Append,
        400,
        node=_NODES,
        topic=_TOPICS,
        payload=_PAYLOADS,
        keep=(100, 4, 2),
        size=(1000, 10),
        key=_KEYS,
        expected=_SPOTS,
    ),
    *(Clear(node, topic) for topic in _TOPICS for node in _NODES for _ in range(8)),
    *_acts(
        Extend,
        250,
        node=_NODES,
        topic=_TOPICS,
        entries=(
            ((b"1", None),),
            ((b"1", None), (b"22", "k")),
            ((b"22", "k"), (b"333333", "l"), (b"1", None)),
            ((b"", ""), (b"1", "l")),
            ((b"333333", None), (b"1", "k:l"), (b"1", "k")),
        ),
        keep=(100, 2, 4),
        expected=_SPOTS,
    ),
    *_acts(
        Read,
        300,
        node=_NODES,
        topic=_TOPICS,
        since=_SPOTS,
        limit=(100, 1, 2, 0),
        reverse=(False, True),
        bounded=(False, True),
    ),
]
KEEPING: Final[list[Any]] = [
    *(Look(node, state) for state in (0, 1) for node in _NODES for _ in range(10)),
    *(Positions(node) for node in _NODES for _ in range(15)),
    *_acts(
        Put,
        100,
        node=_NODES,
        state=_STATES,
        field=_FIELDS,
        value=_VALUES,
        lease=_LEASES,
        expected=(ANYTHING, None, b"1", b"", b"2"),
    ),
    *_acts(
        Renew, 30, node=_NODES, state=_STATES, fields=(("f",), ("f", "g"), ("", "g", "f"), ()), lease=_LEASES
    ),
    *_acts(Remove, 50, node=_NODES, state=_STATES, field=_FIELDS, expected=(None, b"1", b"")),
    *_acts(
        Revise,
        150,
        node=_NODES,
        state=_STATES,
        changes=_SOME,
        expected=_SOME,
        lease=_LEASES,
        payload=(b"told", b""),
    ),
]


def stories(*kinds: list[Any]) -> st.SearchStrategy[list[Any]]:
    """Stories of these kinds of acts. A chapter keeps to one kind, so that something comes of it."""
    chapters = st.one_of(*(st.lists(st.sampled_from(acts), min_size=4, max_size=24) for acts in kinds))
    return st.lists(chapters, min_size=1, max_size=8).map(
        lambda story: [act for chapter in story for act in chapter]
    )


class Acting(Story):
    """Publishing and subscribing, appending, reading and clearing, keyed state with leases."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self.bounds: dict[str, History] = {}

    def tell(self, acts: list[Any]) -> None:
        """Do all of it, and look whether the end is as it should be."""
        try:
            # Everybody hears something, but not the same.
            for node, number in ((0, 0), (0, 1), (1, 0), (1, 2)):
                self.listen(Listen(node, number, True))
            for number, act in enumerate(acts):
                getattr(self, type(act).__name__.lower())(act)
                if number % 8 == 7:
                    self.look_around(acts)
            self.look_around(acts)
            for node, topic in itertools.product(_NODES, self.topics):
                self.check(node, topic)
        finally:
            self.leave()

    def look_around(self, acts: list[Any]) -> None:
        """What stands now, of all that the story was about so far or will be."""
        for number in {act.topic for act in acts if isinstance(act, Append | Extend | Read | Clear)}:
            self.read(Read(0, number, None, 100, False, False))
        states = {act.state for act in acts if isinstance(act, Put | Renew | Remove | Revise | Look)}
        for node in _NODES if states else ():
            self.positions(Positions(node))
        for state in states:
            self.look(Look(1, state))

    def listen(self, act: Listen) -> None:
        topic, broker = self.topics[act.topic], self.c.nodes[act.node].broker
        if act.join:
            self.c.run(broker.subscribe([topic]))
            self.listening.add((act.node, topic))
        else:
            self.check(act.node, topic)  # what is on its way might come or not
            self.c.run(broker.unsubscribe([topic]))
            self.listening.discard((act.node, topic))

    def publish(self, act: Publish) -> None:
        self.c.run(self.c.nodes[act.node].broker.publish(self.topics[act.topic], act.payload))
        self.published(self.topics[act.topic], act.payload, None)

    def __getattr__(self, name: str) -> Any:
        if name == "pass":  # a word of the language
            return self.pass_time
        raise AttributeError(name)

    def pass_time(self, act: Pass) -> None:
        if self.c.moves:
            self.c.run(self.c.advance(act.ticks))

    # -- streams

    def at(self, topic: str, spot: Any) -> tuple[Position | None, Position | None]:
        """The position that is meant, in the broker's epochs and in those of memory."""
        seen = self.seen[topic]
        if spot == FOREIGN:
            return Position(FOREIGN, 1), Position(FOREIGN, 1)
        if spot is None or not seen:
            return None, None
        back, off = spot
        theirs, ours = seen[-1 - back % len(seen)]
        offset = max(0, theirs.offset + off)
        return Position(theirs.epoch, offset), Position(ours.epoch, offset)

    def saw(self, topic: str, theirs: Position, ours: Position) -> None:
        if (theirs, ours) not in self.seen[topic]:
            self.seen[topic].append((theirs, ours))

    def history(self, topic: str, count: int, size: int) -> History:
        # What has aged under the bounds of one append, and is not too old for those of the next, may be shown again
        # or not: so the age is one and the same for a topic.
        brief = self.c.moves and topic == self.topics[1]
        return History(count, ttl=5.5 * self.c.tick if brief else _LONG, size=size)

    def append(self, act: Append) -> None:
        topic = self.topics[act.topic]
        options: dict[str, Any] = {"key": act.key if self.c.keys else None}
        options["history"] = history = self.history(topic, act.keep, act.size)
        expected = self.at(topic, act.expected)
        theirs, ours = self.ask(
            act.node,
            lambda broker, side: broker.append(topic, act.payload, expected=expected[side], **options),
            f"append {act.payload!r} at {expected[0]} with {options}",
        )
        if isinstance(theirs, Conflict):
            self.saw(topic, theirs.top, ours.top)
            return
        self.saw(topic, theirs.position, ours.position)
        if not theirs.duplicate:
            self.bounds[topic] = history
            self.published(topic, act.payload, theirs.position)

    def extend(self, act: Extend) -> None:
        topic, history = self.topics[act.topic], self.history(self.topics[act.topic], act.keep, 1000)
        entries = [NewEntry(payload, key if self.c.keys else None) for payload, key in act.entries]
        expected = self.at(topic, act.expected)
        theirs, ours = self.ask(
            act.node,
            lambda broker, side: broker.extend(topic, entries, history=history, expected=expected[side]),
            f"extend by {entries} at {expected[0]}",
        )
        if isinstance(theirs, Exception):
            return
        self.bounds[topic] = history
        self.saw(topic, theirs, ours)
        for back, entry in zip(range(len(entries) - 1, -1, -1), entries, strict=True):
            self.published(topic, entry.payload, Position(theirs.epoch, theirs.offset - back))

    def read(self, act: Read) -> None:
        topic = self.topics[act.topic]
        options: dict[str, Any] = {"limit": act.limit, "reverse": act.reverse}
        history = self.bounds.get(topic)
        if history is not None and (act.bounded or history.ttl != _LONG):
            options["history"] = history  # where nothing ages, it is all the same
        since = self.at(topic, act.since)
        theirs, ours = self.ask(
            act.node,
            lambda broker, side: broker.read(topic, since=since[side], **options),
            f"read since {since[0]} with {options}",
        )
        self.saw(topic, theirs.position, ours.position)

    def clear(self, act: Clear) -> None:
        topic = self.topics[act.topic]
        theirs, ours = self.ask(act.node, lambda broker, side: broker.clear(topic), "clear")
        self.saw(topic, theirs, ours)

    # -- keyed state

    def ttl(self, ticks: float | None) -> float:
        return ticks * self.c.tick if ticks and self.c.moves else _LONG

    def change_key(self, node: int, key: str, call: Any, doing: str) -> tuple[Any, Any]:
        self.note(key)
        answers = self.ask(node, call, doing)
        self.note(key)
        return answers

    def put(self, act: Put) -> None:
        key, options = self.state[act.state][0], {"ttl": self.ttl(act.lease), "expected": act.expected}
        self.change_key(
            act.node,
            key,
            lambda broker, side: broker.put(key, act.field, act.value, **options),
            f"put {act.field!r} where there is {act.expected!r}",
        )

    def renew(self, act: Renew) -> None:
        key, ttl = self.state[act.state][0], self.ttl(act.lease)

        async def gone(broker: Any, side: int) -> list[str]:
            return list(await broker.renew(key, act.fields, ttl=ttl))

        self.change_key(act.node, key, gone, f"renew {act.fields}")

    def remove(self, act: Remove) -> None:
        key = self.state[act.state][0]
        self.change_key(
            act.node,
            key,
            lambda broker, side: broker.remove(key, act.field, expected=act.expected),
            f"remove {act.field!r} where there is {act.expected!r}",
        )

    def revise(self, act: Revise) -> None:
        key, topic = self.state[act.state]
        options = {"ttl": self.ttl(act.lease), "expected": act.expected, "topic": topic}
        positions: list[Position | None] = []

        async def done(broker: Any, side: int) -> bool:
            positions.append(await broker.revise(key, act.changes, payload=act.payload, **options))
            return positions[-1] is not None

        self.note(key)
        self.ask(act.node, done, f"revise by {act.changes} where there is {act.expected}")
        if (position := positions[0]) is not None:
            self.published(topic, act.payload, position)
            self.revised(key, position)

    def look(self, act: Look) -> None:
        key, node = self.state[act.state][0], act.node
        self.note(key)
        self.ask(node, lambda broker, side: broker.entries(key), "entries")
        revisions: list[Revision] = []

        async def fields(broker: Any, side: int) -> Mapping[str, bytes]:
            revisions.append(await broker.revision(key))
            return revisions[-1].entries

        self.ask(node, fields, "revision")
        self.stands(key, revisions[0].position)

    def positions(self, act: Positions) -> None:
        keys = [key for key, _ in self.state]
        found = self.c.run(self.c.nodes[act.node].broker.positions(keys))
        for key, position in zip(keys, found, strict=True):
            self.note(key)
            self.stands(key, position)
