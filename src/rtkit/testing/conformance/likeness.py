"""A broker is compared with the memory broker: the same is done to both, and the answers have to be the same.

The short tests say what is right one promise at a time. Here hypothesis makes up whole stories, and looks for one that
ends differently; it then tells the shortest it can find. What may differ is the names of epochs, and whether a count
of revisions is forgotten when a key has no field left.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...brokers import Appended, Conflict, MemoryBackend, MemoryBroker, Repeated
from ...position import Position
from ...streams import StreamPage
from ..clock import ManualClock
from .sinks import Delivery, Node, RecordingSink
from .suite import Suite

__all__ = ["Comparison", "Likeness", "Story"]

# An epoch that no stream ever had.
FOREIGN = "another"
_NOWHERE = Position("", 0)


class Likeness(Suite):
    """What is not said in words is said by the memory broker."""

    #: How many stories are made up, of some 50 acts each. They are the same in each run.
    stories: ClassVar[int] = 150
    #: Whether one that ends differently is told again and again until it is short, which takes longer than all others.
    shortened: ClassVar[bool] = True

    def acts(self) -> list[list[Any]]:
        """What may happen in a story; a suite adds what its protocol can do."""
        from .stories import CARRYING

        return [CARRYING]

    def test_it_is_like_the_memory_broker(self) -> None:
        from hypothesis import HealthCheck, Phase, given, seed, settings

        from .stories import Acting, stories

        # Hypothesis is not async, so the brokers have a loop of their own, which runs while there is something to do.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            comparison = Comparison(self, runner.get_loop().run_until_complete)

            @seed(3)  # the same stories, whatever becomes of this file
            @settings(
                max_examples=self.stories,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink) if self.shortened else (Phase.generate,),
                report_multiple_bugs=False,
                print_blob=False,
                suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
            )
            @given(stories(*self.acts()))
            def compare(story: list[Any]) -> None:
                Acting(comparison).tell(story)

            try:
                runner.run(comparison.begin())
                compare()
            finally:
                runner.run(comparison.end())


class Comparison:
    """Two brokers on the backend under test, and one in memory that is told the same.

    :param run: runs a coroutine to its end.
    :ivar moves: whether time can be moved.
    :ivar keys: whether idempotency keys are remembered for as long as a story takes.
    """

    def __init__(self, suite: Likeness, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.run = run
        self.suite = suite
        self.tick = suite.tick
        self.moves = type(suite).advance is not Suite.advance
        self.clock = ManualClock()  # of memory; where time cannot be moved it stands still, and nothing ends
        window = suite.dedupe_window or 300.0
        self.keys = self.moves or window > 60.0
        self.memory = MemoryBroker(MemoryBackend(clock=self.clock, dedupe_window=window))
        self.nodes: list[Node] = []
        self._moved = 0.0
        self._name = secrets.token_hex(6)
        self._serial = itertools.count()
        self._stack = AsyncExitStack()

    async def begin(self) -> None:
        """Open them all."""
        make = await self._stack.enter_async_context(self.suite.cluster())
        for _ in range(2):
            self.nodes.append(await self._stack.enter_async_context(self.suite.open(make)))
        await self.memory.open(RecordingSink())
        self._stack.push_async_callback(self.memory.aclose)

    async def end(self) -> None:
        """Close them all."""
        await self._stack.aclose()

    def new_name(self) -> str:
        """Part of the names of one story, so that none meets what another left."""
        self._moved = 0.0
        return f"{self._name}-{next(self._serial)}"

    async def advance(self, ticks: int) -> None:
        """Let time pass; a little more than said, so that nothing ends in the very same moment."""
        seconds = ticks * 1.01 * self.tick
        if self.suite.dedupe_window is None and self._moved + seconds > 200.0:
            return  # nobody said what happens to keys after that
        self._moved += seconds
        self.clock.advance_nowait(seconds)
        await self.suite.advance(seconds)

    def hurry(self) -> None:
        """Something did not come. It will not come in the retellings either: wait shorter for it."""
        self.nodes = [replace(node, patience=min(node.patience, 0.1)) for node in self.nodes]


@dataclass
class Told:
    """What is known of a key's revisions: the last, and whether it may have been forgotten since."""

    last: Position = _NOWHERE
    forgettable: bool = True


class Story:
    """One story: what was told to both, and what has to come of it. The rules are in :mod:`.stories`."""

    def __init__(self, comparison: Comparison) -> None:
        self.c = comparison
        name = comparison.new_name()
        # As a hub names them: streams, and keys whose revisions are told on a topic with the same rest.
        self.topics = [f"room:{name}-a", f"room:{name}-b", f"\0presence:{name}-a"]
        self.state = [(f"presence:{name}-a", self.topics[2]), (f"ban:{name}-b", self.topics[1])]
        self.expected: dict[tuple[int, str], list[Delivery]] = {}
        self.listening: set[tuple[int, str]] = set()
        self.epochs: dict[str, str] = {FOREIGN: FOREIGN}  # theirs -> that of memory
        self.seen: dict[str, list[tuple[Position, Position]]] = {topic: [] for topic in self.topics}
        self.told: dict[str, Told] = {key: Told() for key, _ in self.state}
        self.counted: set[str] = set()  # epochs of revisions

    # -- doing

    def must(self, kept: object, complaint: str) -> None:
        """A difference ends the story."""
        if not kept:
            raise AssertionError(complaint)

    def ask(self, node: int, call: Callable[[Any, int], Any], doing: str) -> tuple[Any, Any]:
        """The answers of the broker and of memory; *call* gets a broker, and which of the two it is."""

        async def answer(broker: Any, side: int) -> Any:
            try:
                return await call(broker, side)
            except (Conflict, Repeated) as error:
                return error

        async def both() -> tuple[Any, Any]:
            return await answer(self.c.nodes[node].broker, 0), await answer(self.c.memory, 1)

        theirs, ours = self.c.run(both())
        self.must(
            self.alike(theirs, ours), f"to {doing} the broker said {theirs!r}, and the memory broker {ours!r}"
        )
        return theirs, ours

    # -- comparing

    def alike(self, theirs: Any, ours: Any) -> bool:
        """Whether two answers are the same, but for the names of epochs."""
        if isinstance(ours, Position):
            return isinstance(theirs, Position) and self.same_position(theirs, ours)
        if type(theirs) is not type(ours) and not isinstance(ours, Mapping | list):
            return False
        if isinstance(ours, Appended):
            return theirs.duplicate == ours.duplicate and self.same_position(theirs.position, ours.position)
        if isinstance(ours, Conflict):
            return self.same_position(theirs.top, ours.top)
        if isinstance(ours, Repeated):
            return set(theirs.positions) == set(ours.positions) and all(
                self.same_position(theirs.positions[key], ours.positions[key]) for key in ours.positions
            )
        if isinstance(ours, StreamPage):
            return self.same_position(theirs.position, ours.position) and replace(
                theirs, epoch=ours.epoch, entries=tuple(theirs.entries)
            ) == replace(ours, entries=tuple(ours.entries))
        if isinstance(ours, Mapping):
            return dict(theirs) == dict(ours)
        if isinstance(ours, list):
            return sorted(theirs) == sorted(ours)
        return bool(theirs == ours)

    def same_position(self, theirs: Position, ours: Position) -> bool:
        """Whether they mean the same; a pair of epochs is one for ever."""
        if theirs.epoch not in self.epochs and ours.epoch not in self.epochs.values():
            self.epochs[theirs.epoch] = ours.epoch
        return self.epochs.get(theirs.epoch) == ours.epoch and theirs.offset == ours.offset

    # -- deliveries

    def published(self, topic: str, payload: bytes, position: Position | None) -> None:
        """Something was published: whoever listens has to get it."""
        for node, listened in self.listening:
            if listened == topic:
                self.expected.setdefault((node, topic), []).append(Delivery(topic, payload, position))

    def check(self, node: int, topic: str) -> None:
        """It got all that was published while it listened, and nothing else."""
        found = self.c.nodes[node]
        if (node, topic) in self.listening:
            try:
                self.c.run(found.quiet(topic))
            except BaseException:
                self.c.hurry()
                raise
        got, expected = found.sink.of(topic), self.expected.get((node, topic), [])
        self.must(got == expected, f"of topic {topic!r} node {node} was handed {got}, and not {expected}")

    def leave(self) -> None:
        """The end of a story."""
        for number, of in enumerate(self.c.nodes):
            topics = [topic for listening, topic in self.listening if listening == number]
            self.c.run(of.broker.unsubscribe(topics))
            of.sink.delivered.clear()

    # -- revisions

    def note(self, key: str) -> None:
        """Where a key has no field left, its count may be forgotten."""
        if not self.c.memory.backend.entries(key):
            self.told[key].forgettable = True

    def revised(self, key: str, position: Position) -> None:
        """The next revision of a key, or the first of a new epoch where the count may have been forgotten."""
        told = self.told[key]
        goes_on = told.last != _NOWHERE and position == Position(told.last.epoch, told.last.offset + 1)
        begins = told.forgettable and position.offset == 1 and position.epoch not in self.counted | {""}
        self.must(goes_on or begins, f"after {told} a revision of {key!r} was counted as {position}")
        self.counted.add(position.epoch)
        self.told[key] = Told(position, forgettable=False)
        self.note(key)

    def stands(self, key: str, position: Position) -> None:
        """Where a key stands."""
        told = self.told[key]
        known = {told.last, _NOWHERE} if told.forgettable else {told.last}
        self.must(position in known, f"{key!r} is said to stand at {position}, after {told}")
