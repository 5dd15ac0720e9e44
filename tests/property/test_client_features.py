"""What rooms of a client say by and by, driven by hand: whatever happens, it comes to rest, keeps to its pace, and the
server knows what it has to know in the end (X1, X2, D5, P1).

The server answers everything, loses some, and refuses some for now. Each step ends with the engine being asked until it
has nothing to write: one that always has something would be asked for ever.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from rtkit.client.engine import Engine
from rtkit.client.rooms import Membership
from rtkit.client.roomstate import RoomState
from rtkit.position import Position
from rtkit.primitives.backoff import Backoff
from rtkit.wire import Connect, Reply, RtHello, SignalBody, decode_command, split

JSON = dict[str, Any]
NAMES: tuple[str, ...] = ("a", "b")


class World:
    """An engine, and a server that is a few lists."""

    def __init__(self) -> None:
        chance = random.Random(3)
        self.now = 1000.0
        self.engine = Engine(wake=lambda: None, new_backoff=lambda: Backoff(random=chance))
        self.members: dict[str, Membership] = {}
        self.connected = False
        self.session = 0
        self.resumes = False
        self.refuse = 0
        self.inside: set[str] = set()
        self.top = dict.fromkeys(NAMES, 0)
        self.marks: dict[str, dict[str, int]] = {name: {} for name in NAMES}
        self.metas: dict[tuple[str, int], str] = {}
        self.typing: dict[str, bool] = {}
        self.out: deque[JSON] = deque()
        self.said: list[tuple[float, str, str]] = []
        self.v = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            self.join(name)
        self.connect()

    # -- the client

    def join(self, name: str) -> None:
        if name not in self.members:
            state = RoomState(name, max_queue=3, own=self.engine.rooms.own, presence=True, receipts=True)
            self.members[name] = self.engine.rooms.join(state, self.now)

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            if not self.resumes:
                self.session += 1
                self.metas.clear()
            self.engine.connect(Connect(rt=RtHello()), self.on_connect)

    def on_connect(self, reply: Reply, now: float) -> None:
        assert reply.connect is not None
        self.engine.begin(reply.connect, now)

    def cut(self, *, resumes: bool) -> None:
        if self.connected:
            self.connected = False
            self.resumes = resumes
            self.inside.clear()
            self.typing.clear()
            self.out.clear()
            self.engine.lost(self.now, self.now)

    def flow(self) -> None:
        """Everything there is goes through, and then there is rest."""
        for _ in range(100):
            frames, again = self.engine.take(self.now, self.now)
            for frame in frames:
                for unit in split(frame):
                    self.serve(decode_command(unit))
            if not frames and not self.out:
                assert again > self.now, "it would be asked again at once, for ever"
                return
            while self.out:
                self.engine.feed(json.dumps(self.out.popleft()).encode(), self.now)
        raise AssertionError("it does not come to rest")

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.flow()
            _, again = self.engine.take(self.now, self.now) if self.connected else ([], math.inf)
            if again > end:
                break
            self.now = again
        self.now = end
        self.flow()

    # -- the server

    def serve(self, command: Any) -> None:
        if not self.connected:
            return
        reply: JSON = {"id": command.id}
        self.out.append(reply)
        if command.connect is not None:
            reply["connect"] = {"client": f"c{self.session}", "rt": {"v": 1, "resumed": self.resumes}}
        elif command.subscribe is not None:
            name = command.subscribe.channel
            self.inside.add(name)
            since = command.subscribe.offset if command.subscribe.recover else self.top[name]
            reply["subscribe"] = {
                "recoverable": True, "epoch": "e", "offset": self.top[name], "recovered": command.subscribe.recover,
                "publications": [{"data": n, "offset": n} for n in range(since + 1, self.top[name] + 1)],
                "presence": {"v": self.v[name], "members": self.present(name)},
                "marks": {"epoch": "e", "whole": True, "user": "me", **self.told(name)},
                "typing": 5.0, "signals": 4.0,
            }  # fmt: skip
        elif command.unsubscribe is not None:
            name = command.unsubscribe.channel
            self.inside.discard(name)
            self.typing.pop(name, None)
            self.metas.pop((name, self.session), None)
            reply["unsubscribe"] = {}
        else:
            self.take(command, reply)

    def take(self, command: Any, reply: JSON) -> None:
        body = command.mark or command.signal or command.presence_update
        assert body.channel in self.inside
        if self.refuse:
            self.refuse -= 1
            reply["error"] = {"code": 100, "message": "later", "temporary": True}
        elif command.mark is not None:
            marks = self.marks[body.channel]
            for kind in ("read", "delivered") if body.kind == "read" else ("delivered",):
                marks[kind] = max(marks.get(kind, 0), body.offset)
            assert body.offset <= self.top[body.channel]
            self.said.append((self.now, body.channel, body.kind))
            reply["mark"] = {}
        elif command.signal is not None:
            if body.event == "typing":
                self.typing[body.channel] = json.loads(bytes(body.data))
            else:
                self.said.append((self.now, body.channel, body.event))
            reply["signal"] = {}
        else:
            self.metas[body.channel, self.session] = bytes(body.meta).decode()
            reply["presence_update"] = {}

    def told(self, name: str) -> JSON:
        return {kind: {"me": at} for kind, at in self.marks[name].items()}

    def present(self, name: str) -> list[JSON]:
        meta = self.metas.get((name, self.session))
        return [{"user": "me", "client": f"c{self.session}", "meta": json.loads(meta)}] if meta else []

    def push(self, name: str, **what: Any) -> None:
        if name in self.inside:
            self.out.append({"push": {"channel": name, **what}})

    # -- steps

    def step(self, what: str, name: str, amount: int) -> None:
        member = self.members.get(name)
        if what == "cut":
            self.cut(resumes=amount % 2 == 0)
        elif what == "connect":
            self.connect()
        elif what == "wait":
            self.wait(amount / 3)
        elif what == "refuse":
            self.refuse = amount % 3
        elif what == "publish":
            self.top[name] += 1
            self.push(name, pub={"data": 1, "offset": self.top[name]})
        elif what == "hole":
            self.v[name] += 1
            self.push(
                name, presence={"v": self.v[name] + amount % 2, "joins": [{"user": "x", "client": "x"}]}
            )
        elif what == "kick":
            self.push(name, unsubscribe={"code": 2500, "reason": "again"})
            self.inside.discard(name)
            self.typing.pop(name, None)
            self.metas.pop((name, self.session), None)
        elif member is None:
            self.join(name)
        elif what == "leave":
            self.engine.rooms.leave(member, lambda: None)
            del self.members[name]
        else:
            self.act(what, member, amount)
        self.flow()

    def act(self, what: str, member: Membership, amount: int) -> None:
        features, talk = member.state.features, self.engine.rooms.talk
        if what == "take":
            if member.state.take() is not None:
                self.engine.rooms.drained(member)
        elif what == "read" and features.receipts is not None:
            if member.state.position is not None:
                features.receipts.want("read", member.state.position)
        elif what == "type":
            features.typing.called(amount % 4 > 0, self.now)
        elif what == "sent":
            features.typing.sent()
            self.typing.pop(member.channel, None)
        elif what == "meta" and features.presence is not None:
            if member.channel in self.inside:
                self.metas[member.channel, self.session] = f'{{"n":{amount}}}'
                features.presence.took(Raw(f'{{"n":{amount}}}'.encode()))
        elif what == "signal":
            self.engine.signal(SignalBody(member.channel, "at", Raw(b"1")))
        talk.look(member)


DECK = (
    *("cut", "connect", "connect", "wait", "wait", "refuse", "publish", "publish", "hole", "kick", "leave"),
    *("take", "take", "take", "read", "read", "type", "type", "sent", "meta", "signal", "signal"),
)
STEPS = st.lists(st.tuples(st.sampled_from(DECK), st.sampled_from(NAMES), st.integers(0, 9)), max_size=60)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_it_comes_to_rest_and_the_server_knows_in_the_end(steps: list[tuple[str, str, int]]) -> None:
    world = World()
    world.flow()
    for what, name, amount in steps:
        world.step(what, name, amount)
    world.refuse = 0
    world.connect()
    for _ in range(60):
        world.wait(1)
        for member in world.members.values():
            while member.state.take() is not None:
                world.engine.rooms.drained(member)
    for name, member in world.members.items():
        state = member.state
        assert state.phase == "in"
        features = state.features
        assert features.presence is not None
        assert features.receipts is not None
        assert features.presence.fresh
        meta = features.presence.meta
        assert world.metas.get((name, world.session)) == (bytes(meta).decode() if meta is not None else None)
        assert not world.typing.get(name), "nobody has typed for a minute"
        if (position := state.delivered) is not None:
            assert world.marks[name]["delivered"] == position.offset == world.top[name]
        read = features.receipts._wishes["read"].wanted
        if read is not None:
            assert world.marks[name]["read"] >= read.offset
            assert features.receipts.unread(Position("e", world.top[name])) == world.top[name] - max(
                read.offset, world.marks[name]["read"]
            )
    judge_pace(world.said)


def judge_pace(said: list[tuple[float, str, str]]) -> None:
    """At most one mark of a kind in a second while a room is kept; signals as the room says."""
    last: dict[tuple[str, str], float] = {}
    for when, name, what in said:
        least = 0.25 if what == "at" else 0.0  # who leaves says at once what it would have said later
        before = last.get((name, what))
        assert before is None or when >= before + least - 1e-9, f"{what} at {before} and {when}"
        last[name, what] = when
