"""Snapshots, frames and a lossy broker: whoever has listened knows who is there (P2)."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtkit.features.presence.roster import Frame, Present, Roster
from rtkit.position import Position

CLIENTS = st.sampled_from(["c1", "c2", "c3", "c4"])
METAS = st.sampled_from([b"{}", b'{"a":1}'])
NODES = st.sampled_from(["one", "two"])


class Listener:
    """A client: a snapshot, and the frames since."""

    def __init__(self, v: int, members: list[Present]) -> None:
        self.v = v
        self.members = {each.client: (each.user, each.meta) for each in members}

    def hear(self, frame: Frame) -> None:
        assert frame.v == self.v + 1
        self.v = frame.v
        told = [each.client for each in (*frame.joins, *frame.leaves, *frame.updates)]
        assert len(told) == len(set(told)) > 0
        for each in frame.joins:
            assert each.client not in self.members
            self.members[each.client] = (each.user, each.meta)
        for each in frame.leaves:
            assert self.members.pop(each.client) == (each.user, each.meta)
        for each in frame.updates:
            assert self.members[each.client] != (each.user, each.meta)
            self.members[each.client] = (each.user, each.meta)


class RosterAgainstTruth(RuleBasedStateMachine):
    """A broker, the announcements that are under way, and one node's roster with its listeners."""

    @initialize()
    def begin(self) -> None:
        self.truth: dict[str, Present] = {}
        self.epochs = 1
        self.position = Position("e1", 0)
        self.under_way: list[tuple[Position, dict[str, Present | None]]] = []
        self.roster = Roster()
        self.read_shows: tuple[Position, list[Present]] | None = None
        self.listeners: list[Listener] = []
        self.lost = False

    @rule(changes=st.dictionaries(CLIENTS, st.none() | st.tuples(METAS, NODES), min_size=1))
    def revise(self, changes: dict[str, tuple[bytes, str] | None]) -> None:
        made: dict[str, Present | None] = {}
        for client, change in changes.items():
            if change is None:
                made[client] = None
                self.truth.pop(client, None)
            else:
                present = Present(client, "user of " + client[1:], change[0], node=change[1])
                made[client] = self.truth[client] = present
        self.position = Position(self.position.epoch, self.position.offset + 1)
        self.under_way.append((self.position, made))

    @rule(forget=st.booleans())
    def begin_an_epoch(self, forget: bool) -> None:
        """The broker was emptied, or has lost its data; nobody announces that."""
        if forget:
            self.truth.clear()
        self.epochs += 1
        self.position = Position(f"e{self.epochs}", 0)
        self.lost = True

    @precondition(lambda self: self.under_way)
    @rule()
    def deliver(self) -> None:
        self.roster.announced(*self.under_way.pop(0))

    @precondition(lambda self: self.under_way)
    @rule()
    def lose(self) -> None:
        self.under_way.pop(0)
        self.lost = True

    @precondition(lambda self: self.roster.wants_read and self.read_shows is None)
    @rule()
    def begin_to_read(self) -> None:
        self.roster.reading()
        self.read_shows = self.position, list(self.truth.values())

    @precondition(lambda self: self.read_shows is not None)
    @rule()
    def end_to_read(self) -> None:
        assert self.read_shows is not None
        self.roster.read(*self.read_shows)
        self.read_shows = None

    @rule()
    def tell(self) -> None:
        frame = self.roster.frame()
        if frame is not None:
            for listener in self.listeners:
                listener.hear(frame)

    @precondition(lambda self: self.roster.position is not None)
    @rule()
    def listen(self) -> None:
        self.listeners.append(Listener(self.roster.v, self.roster.snapshot()))

    @rule()
    def check(self) -> None:
        """After the position check, and when all is delivered and told, everybody knows the truth."""
        if self.read_shows is not None:
            self.end_to_read()
        while self.under_way:
            self.deliver()
        # Only what was lost may need the check.
        assert self.lost or self.roster.wants_read or not self.roster.differs(self.position)
        if self.roster.wants_read or self.roster.differs(self.position):
            self.roster.reading()
            self.roster.read(self.position, self.truth.values())
        assert not self.roster.wants_read
        self.tell()
        self.lost = False
        assert self.roster.members == self.truth
        expected = {each.client: (each.user, each.meta) for each in self.truth.values()}
        for listener in self.listeners:
            assert listener.members == expected

    @invariant()
    def listeners_agree_with_a_snapshot(self) -> None:
        if not hasattr(self, "roster"):
            return
        shown = {each.client: (each.user, each.meta) for each in self.roster.snapshot()}
        for listener in self.listeners:
            assert (listener.v, listener.members) == (self.roster.v, shown)
        assert self.roster.users == len({each.user for each in self.roster.members.values()})
        assert self.roster.size == sum(each.size for each in self.roster.members.values())


TestRosterAgainstTruth = RosterAgainstTruth.TestCase
TestRosterAgainstTruth.settings = settings(
    max_examples=int(os.environ.get("RTKIT_EXAMPLES", "240")) // 4, stateful_step_count=40
)
