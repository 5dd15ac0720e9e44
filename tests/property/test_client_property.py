"""The client against a model server: whatever happens on the way, each message once and in order, or a true gap.

The engine is driven by hand: units wait in two lists, one each way, and the drawn operations say when which
side gets to see the next. The server is a model with nothing clever in it: a list of messages per room, an
epoch, how far it is trimmed, and a memory of keys.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtkit.client.commands import Sending
from rtkit.client.engine import Engine
from rtkit.client.rooms import Membership
from rtkit.client.roomstate import RoomState
from rtkit.errors import PublishUnknown
from rtkit.messages import Message
from rtkit.position import Gap, Position
from rtkit.primitives.backoff import Backoff
from rtkit.wire import Command, Connect, Publish, Reply, RtHello, decode_command, split

ROOMS = ("a", "b", "own")  # the server itself puts us into the last one
MAX_QUEUE = 4


@dataclass
class Stream:
    """A room on the server."""

    epoch: str = "e0"
    entries: list[str] = field(default_factory=list)
    floor: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)  # former epochs, and up to where they are this one

    @property
    def top(self) -> int:
        return len(self.entries)


class Server:
    """The model. *subscribed* and the lists of units belong to the connection that lives."""

    def __init__(self) -> None:
        self.streams = {name: Stream() for name in ROOMS}
        self.floors: dict[tuple[str, str], int] = {}
        self.truth = {(name, stream.epoch): stream.entries for name, stream in self.streams.items()}
        """What there ever was, also of epochs that are over."""
        self.executed: list[str] = []
        self.out: deque[bytes] = deque()
        self.inbox: deque[bytes] = deque()
        self.subscribed: set[str] = set()
        self.kicked: set[str] = set()
        self.holed: set[str] = set()  # a push was lost since the client joined
        self.live = False
        self.serial = 0
        self.lineage: dict[tuple[str, str, str], int] = {}
        """(room, old epoch, new epoch) -> up to where they are the same"""
        self.troubles: list[int] = []  # errors for the next commands that can have one
        self.long = 99  # publications in one reply at the most; the rest follows as pushes

    def connect(self) -> None:
        self.cut()
        self.live = True

    def cut(self) -> None:
        self.live = False
        self.out.clear()
        self.inbox.clear()
        self.subscribed.clear()
        self.kicked.clear()

    def say(self, **unit: Any) -> None:
        if self.live:
            self.out.append(json.dumps(unit).encode())

    def publish(self, room: str, data: str, *, fate: str = "") -> int:
        stream = self.streams[room]
        stream.entries.append(data)
        if room in self.subscribed:
            if fate == "lost":
                self.holed.add(room)
            for _ in range({"": 1, "lost": 0, "twice": 2}[fate]):
                self.push_entry(room, stream.top)
        return stream.top

    def push_entry(self, room: str, offset: int) -> None:
        self.say(
            push={"channel": room, "pub": {"data": self.streams[room].entries[offset - 1], "offset": offset}}
        )

    def trim(self, room: str, floor: int) -> None:
        stream = self.streams[room]
        stream.floor = max(stream.floor, min(floor, stream.top))
        self.floors[room, stream.epoch] = stream.floor

    def new_epoch(self, room: str, keep: int, *, tell: int) -> None:
        """The stream is lost and begins anew, with *keep* messages in it already."""
        old = self.streams[room]
        self.serial += 1
        new = self.streams[room] = Stream(f"e{self.serial}", keys=old.keys)
        new.entries = self.truth[room, new.epoch] = [f"{new.epoch}/{n}" for n in range(keep)]
        if room in self.subscribed:
            if tell <= 1:
                gap = {"from": 0, "to": new.top, "epoch": new.epoch, "reason": "epoch"}
                self.say(push={"channel": room, "gap": gap})
            if tell == 0:
                self.say(push={"channel": room, "position": {"epoch": new.epoch, "offset": new.top}})
            if tell == 2:
                self.kick(room)

    def take_over(self, room: str, lost: int) -> None:
        """The stream goes on in a new epoch, behind all there was, but for the last *lost* messages (B6, H10).

        Members are told as the hub does: a position if nothing was lost, else a gap; behind all of the old epoch.
        """
        old = self.streams[room]
        self.serial += 1
        lost = min(lost, old.top - old.floor)
        new = self.streams[room] = Stream(
            f"e{self.serial}", old.entries[: old.top - lost], old.floor, old.keys
        )
        new.shared = {epoch: min(until, new.top) for epoch, until in old.shared.items()} | {
            old.epoch: new.top
        }
        self.floors[room, new.epoch] = new.floor
        self.truth[room, new.epoch] = new.entries
        for epoch, until in new.shared.items():
            self.lineage[room, epoch, new.epoch] = until
        if room not in self.subscribed:
            return
        if lost:
            gap = {"from": new.top, "to": new.top, "epoch": new.epoch, "reason": "rollback"}
            self.say(push={"channel": room, "gap": gap})
        else:
            self.say(push={"channel": room, "position": {"epoch": new.epoch, "offset": new.top}})
            if self.serial % 3 == 0:
                self.say(push={"channel": room, "position": {"epoch": new.epoch, "offset": new.top}})

    def kick(self, room: str) -> None:
        if room in self.subscribed:
            self.subscribed.discard(room)
            self.kicked.add(room)
            self.say(push={"channel": room, "unsubscribe": {"code": 2500, "reason": "continuity lost"}})

    def lag(self, room: str, behind: int) -> None:
        """A slow member that fell behind is served from history, of which a part is gone."""
        stream = self.streams[room]
        if room in self.subscribed and stream.top:
            for _ in range(behind):
                self.serial += 1
                stream.entries.append(f"m{self.serial}")
            self.trim(room, stream.top - behind // 2)
            self.holed.discard(room)
            gap = {"from": 0, "to": stream.floor, "epoch": stream.epoch, "reason": "trimmed"}
            self.say(push={"channel": room, "gap": gap})
            for offset in range(stream.floor + 1, stream.top + 1):
                self.push_entry(room, offset)

    def join(self, room: str, asked: Any) -> dict[str, Any]:
        stream = self.streams[room]
        self.subscribed.add(room)
        self.holed.discard(room)
        result: dict[str, Any] = {"recoverable": True, "epoch": stream.epoch, "offset": stream.top}
        if not asked.recover:
            return result
        until = stream.top if asked.epoch == stream.epoch else stream.shared.get(asked.epoch, -1)
        if not stream.floor <= asked.offset <= until:
            return result
        first = asked.offset + 1
        last = min(stream.top, asked.offset + self.long)
        result |= {"recovered": True, "offset": last}
        result["publications"] = [
            {"data": stream.entries[offset - 1], "offset": offset} for offset in range(first, last + 1)
        ]
        return result

    def rest(self, room: str, result: dict[str, Any]) -> None:
        for offset in range(result["offset"] + 1, self.streams[room].top + 1):
            self.push_entry(room, offset)

    def serve(self) -> None:
        if not self.live or not self.inbox:
            return
        unit = self.inbox.popleft()
        if unit == b"{}":
            return
        command = decode_command(unit)
        id = command.id
        if command.connect is not None:
            subs = {
                "own": self.join(
                    "own", command.connect.subs.get("own") or decode_command(b"{}").subscribe or _NO
                )
            }
            hello = {"client": f"c{self.serial}", "subs": subs, "rt": {"v": 1}, "ping": 25}
            self.say(id=id, connect=hello)
            self.rest("own", subs["own"])
        elif command.unsubscribe is not None:
            self.subscribed.discard(command.unsubscribe.channel)
            self.say(id=id, unsubscribe={})
        elif command.subscribe is not None:
            room = command.subscribe.channel
            if room in self.subscribed:
                self.say(id=id, error={"code": 105, "message": "already"})
            elif self.troubles and (code := self.troubles.pop()) != 112:
                self.say(id=id, error={"code": code, "message": "later", "temporary": True})
            elif (
                command.subscribe.recover
                and self.streams[room].epoch != command.subscribe.epoch
                and command.subscribe.epoch not in self.streams[room].shared
                and self.serial % 2
            ):
                self.say(id=id, error={"code": 112, "message": "cannot"})
            else:
                result = self.join(room, command.subscribe)
                self.say(id=id, subscribe=result)
                self.rest(room, result)
        elif command.publish is not None:
            self.take(id, command.publish)

    def take(self, id: int, body: Any) -> None:
        if self.troubles:
            self.troubles.pop()
            self.say(id=id, error={"code": 111, "message": "too many", "temporary": True, "retry_after": 0.5})
            return
        known = body.channel in self.subscribed or body.channel in self.kicked
        assert known, "commands of a room are sent while we are in, as far as we know"
        if body.key not in self.streams[body.channel].keys:
            data = msgspec.json.decode(body.data)
            self.executed.append(data)
            self.streams[body.channel].keys[body.key] = self.publish(body.channel, data)
        self.say(id=id, publish={"offset": self.streams[body.channel].keys[body.key], "epoch": "x"})


_NO = msgspec.defstruct("No", [("recover", bool, False)])()


class World:
    """Engine, server, application, and the checks."""

    def __init__(self) -> None:
        self.now = 1000.0
        chance = random.Random(1)
        self.engine = Engine(
            wake=lambda: None, new_backoff=lambda: Backoff(random=chance), max_offline=50, resend_within=150.0
        )
        self.server = Server()
        self.members: dict[str, Membership] = {}
        self.where: dict[str, Position | None] = {}
        self.seen: dict[str, list[Any]] = {name: [] for name in ROOMS}
        self.sent: list[str] = []
        self.settled: dict[str, Reply | BaseException] = {}
        self.connected = False
        for name in ROOMS[:2]:
            self.join(name)

    def join(self, name: str) -> None:
        state = RoomState(name, max_queue=MAX_QUEUE, own=self.engine.rooms.own)
        self.members[name] = self.engine.rooms.join(state, self.now)

    # -- operations

    def connect(self) -> None:
        if self.connected:
            return
        self.connected = True
        self.server.connect()
        self.engine.connect(Connect(rt=RtHello()), self.on_connect)

    def on_connect(self, reply: Reply, now: float) -> None:
        assert reply.connect is not None
        self.engine.begin(reply.connect, now)
        if "own" not in self.members:
            self.join("own")

    def cut(self) -> None:
        if self.connected:
            self.connected = False
            self.server.cut()
            self.engine.lost(self.now, self.now)

    def write(self) -> bool:
        if not self.connected:
            return False
        frames, _ = self.engine.take(self.now, self.now)
        for frame in frames:
            self.server.inbox.extend(split(frame))
        return bool(frames)

    def read(self) -> bool:
        if not self.connected or not self.server.out:
            return False
        self.engine.feed(self.server.out.popleft(), self.now)
        return True

    def send(self, room: str) -> None:
        data = f"sent {len(self.sent)}"
        self.sent.append(data)

        def settle(outcome: Reply | BaseException) -> None:
            assert data not in self.settled, "settled once"
            self.settled[data] = outcome

        body = Publish(room, msgspec.Raw(json.dumps(data).encode()), f"k{len(self.sent)}")
        self.engine.submit(Sending(body, size=1, settle=settle))

    def take(self, room: str) -> bool:
        member = self.members.get(room)
        if member is None:
            return False
        before = self.where.setdefault(room, member.state.position)
        item = member.state.take()
        if item is None:
            # All there is was handed out; what was filtered or told moved along.
            return False
        self.engine.rooms.drained(member)
        self.check(room, before, item)
        return True

    def check(self, room: str, before: Position | None, item: Message[bytes] | Gap) -> None:
        assert before is not None or not self.seen[room]
        self.seen[room].append(item)
        epoch = item.epoch if isinstance(item, Gap) else item.position.epoch if item.position else ""
        carried = before is not None and before.offset <= self.server.lineage.get(
            (room, before.epoch, epoch), -1
        )
        if before is not None and carried:
            before = Position(epoch, before.offset)  # the same place
        if isinstance(item, Gap):
            # (What the hub had delivered beyond a takeover, and what the client had of that, are two things.)
            if before is not None and item.epoch == before.epoch and item.reason != "rollback":
                # A reply that does not recover need not say what an epoch has of ours.
                assert item.start == before.offset or (carried and item.start == 0), (
                    "it begins where we stand"
                )
                assert item.end > item.start
                floor = self.server.floors.get((room, item.epoch), 0)
                assert floor > before.offset, f"{item} claims what could have been continued"
            self.where[room] = Position(item.epoch, item.end)
            return
        assert item.position is not None
        if before is not None:
            assert item.position == Position(before.epoch, before.offset + 1), (
                f"{item.position} after {before}"
            )
        self.where[room] = item.position

    def bounds(self) -> None:
        for member in self.members.values():
            assert len(member.state.queue) <= MAX_QUEUE + 1

    def flow(self) -> None:
        """Everything there is goes through, both ways."""
        for _ in range(200):
            moved = self.write() | bool(self.server.inbox)
            self.server.serve()
            if not (moved | self.read()):
                break
        # A client that is told everything, and has room for it, stands where the server does.
        for name, member in self.members.items():
            if self.connected and member.state.phase == "in" and name not in self.server.holed:
                stream = self.server.streams[name]
                assert member.state.at == Position(stream.epoch, stream.top), (
                    f"{name} stands behind without knowing"
                )

    def heal(self) -> None:
        """Everything works from now on: run until nothing moves."""
        self.server.troubles.clear()
        self.server.long = 99
        self.cut()
        self.now += 30
        self.connect()
        for _ in range(2000):
            moved = self.write() | bool(self.server.inbox)
            self.server.serve()
            moved |= self.read()
            for room in ROOMS:
                moved |= self.take(room)
            self.bounds()
            if not moved:
                if self.engine.outbox or any(m.state.phase != "in" for m in self.members.values()):
                    self.now += 1
                    continue
                return
        raise AssertionError(f"it does not come to rest: {self.engine!r} {self.members}")


def run(steps: list[tuple[str, int, int]]) -> World:
    world = World()
    server = world.server
    world.connect()
    world.flow()
    for name, which, amount in steps:
        room = ROOMS[which]
        if name == "connect":
            world.connect()
        elif name == "cut":
            world.cut()
        elif name == "write":
            world.write()
        elif name == "serve":
            for _ in range(amount):
                server.serve()
        elif name == "read":
            for _ in range(amount):
                world.read()
        elif name == "flow":  # everything there is, both ways
            world.flow()
        elif name == "take":
            for _ in range(amount):
                world.take(room)
        elif name == "publish":
            for _ in range(amount):
                server.serial += 1
                server.publish(room, f"m{server.serial}")
        elif name in ("lost", "twice"):
            server.serial += 1
            server.publish(room, f"m{server.serial}", fate=name)
        elif name == "trim":
            server.trim(room, server.streams[room].top - amount)
        elif name == "epoch":
            server.new_epoch(room, amount, tell=amount % 3)
        elif name == "take over":
            server.take_over(room, max(0, amount - 3))
        elif name == "kick":
            server.kick(room)
        elif name == "lag":
            server.lag(room, amount)
        elif name == "send":
            if room in world.members:
                world.send(room)
        elif name == "wait":
            world.now += amount
        elif name == "trouble":
            server.troubles.append((100, 111, 112)[which])
        elif name == "long":
            server.long = amount
        world.bounds()
    return world


#: How often each operation is drawn, relative to the others.
WEIGHTS = {
    "flow": 8, "publish": 8, "take": 8, "send": 5, "connect": 4, "cut": 2, "lost": 3, "twice": 2, "trim": 2, "epoch": 2,
    "take over": 3, "kick": 1, "lag": 2, "wait": 1, "trouble": 1, "long": 1, "write": 2, "serve": 2, "read": 2,
}  # fmt: skip
DECK = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
STEPS = st.lists(
    st.tuples(st.sampled_from(DECK), st.integers(0, 2), st.integers(1, 6)), min_size=10, max_size=80
)


def drawn(seed: int) -> list[tuple[str, int, int]]:
    """A long run; hypothesis prefers short ones."""
    chance = random.Random(seed)
    return [(chance.choice(DECK), chance.randrange(3), chance.randint(1, 6)) for _ in range(200)]


QUIET = settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@QUIET
@given(STEPS)
def test_each_message_once_and_in_order_or_a_true_gap(steps: list[tuple[str, int, int]]) -> None:
    judge_messages(run(steps))


@QUIET
@given(STEPS)
def test_each_command_is_done_once_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    judge_commands(run(steps), in_order=all(name != "trouble" for name, _, _ in steps))


@pytest.mark.parametrize("block", range(8))
def test_long_runs(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        steps = drawn(seed)
        try:
            judge_messages(run(steps))
            calm = [step for step in steps if step[0] != "trouble"]
            judge_commands(run(calm), in_order=True)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def judge_messages(world: World) -> None:
    world.heal()
    server = world.server
    for room in ROOMS:
        stream = server.streams[room]
        state = world.members[room].state
        assert state.at == Position(stream.epoch, stream.top), "all there is was queued or told"
        assert state.position == state.at
        # What was handed out is what stands at that place.
        for item in world.seen[room]:
            if isinstance(item, Message) and item.position is not None:
                truth = server.truth[room, item.position.epoch]
                assert json.loads(item.data) == truth[item.position.offset - 1]
        data = [json.loads(item.data) for item in world.seen[room] if isinstance(item, Message)]
        assert len(data) == len(set(data)), "nothing twice"


def judge_commands(world: World, *, in_order: bool) -> None:
    world.heal()
    executed = world.server.executed
    assert len(executed) == len(set(executed)), "nothing twice"
    assert set(world.settled) == set(world.sent), "everybody is answered"
    for data, outcome in world.settled.items():
        assert isinstance(outcome, Reply | PublishUnknown), outcome
        assert data in executed or isinstance(outcome, PublishUnknown), "no false answer"
    by_room: dict[str, list[int]] = {}
    for data in executed:
        number = int(data.split()[1])
        by_room.setdefault(room_of(world, number), []).append(number)
    for numbers in by_room.values():
        assert numbers == sorted(numbers) or not in_order, "the order of the calls"


def room_of(world: World, number: int) -> str:
    key = f"k{number + 1}"
    return next(name for name, stream in world.server.streams.items() if key in stream.keys)


def test_commands_are_well_formed() -> None:
    """The model would not notice: each command is one unit with one id."""
    world = World()
    world.connect()
    world.send("a")
    for _ in range(5):
        world.write()
        commands = [decode_command(unit) for unit in world.server.inbox]
        assert all(isinstance(c, Command) and c.id for c in commands)
        assert len({c.id for c in commands}) == len(commands)
        world.server.serve()
        world.read()
