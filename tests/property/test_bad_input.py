"""Whatever one client sends, the hub stays healthy and the others keep talking (W3, L3, D3)."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from rtkit import Context, Credentials, Grant, History, Hub, Identity, Limits, Reject
from rtkit.brokers import MemoryBackend, MemoryBroker
from rtkit.primitives import Rate
from rtkit.testing.clock import ManualClock
from rtkit.wire.units import Command
from tests.support.rawclient import RawClient

#: How a hub may end a connection for what it sent: goodbye, too big, too many, bad requests.
CLOSES = {1000, 1009, 3013, 3501}
#: What a command may be answered with here; never 100, since nothing of the application's fails.
ERRORS = {101, 102, 103, 104, 105, 106, 107, 108, 109, 111, 112}
INSIDES = ("Traceback", "rtkit/", ".py", "msgspec", "object at 0x", "Error(")


async def authenticate(credentials: Credentials) -> Identity[None]:
    if credentials.token not in ("ann", "bob", "eve", "mallory"):
        raise Reject("nobody", code=101)
    return Identity(credentials.token)


class Scene:
    """A hub, two members who talk to each other, and one who misbehaves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        limits = Limits(
            max_frame=20_000,
            max_publication=5_000,
            max_rooms=5,
            commands=Rate(rate=50, burst=60),
            outbox=200_000,
            grace=None,  # the scene counts who is left
        )
        hub: Hub[Any] = Hub(
            authenticate=authenticate,
            broker=MemoryBroker(MemoryBackend(clock=self.clock)),
            clock=self.clock,
            random=random.Random(1),
            limits=limits,
        )
        everything = Grant("publish", "signal", "history")
        raw = hub.rooms("raw:{x}", publishes=object, grant=everything, history=History(20, ttl=600))
        hub.rooms("live:{x}", publishes=object, grant=everything)
        hub.rooms("locked:{x}", publishes=object, grant=Grant())
        hub.rooms("me", publishes=object, grant=Grant(), auto_join=lambda identity: ["me"])

        @raw.on(int, name="add")
        async def add(ctx: Context[Any, Any], message: int) -> int:
            return message + 1

        @raw.on_join
        async def joined(ctx: Context[Any, Any]) -> Any:
            return ctx.data

        @hub.rpc(object, name="echo")
        async def echo(ctx: Context[Any, Any], message: Any) -> Any:
            return message

        self.hub = hub
        self.records: list[logging.LogRecord] = []
        self.talked = 0

    async def __aenter__(self) -> Scene:
        await self.hub.start()
        self.members = [await self.member("ann"), await self.member("bob")]
        self.mallory = await self.member("eve")
        self.base = self.hub.statistics()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hub.aclose()
        assert self.clock.timers == 0

    async def member(self, user: str) -> RawClient:
        client = RawClient(self.hub, self.clock, rt=user != "bob")
        await client.connect(user)
        for room in ("raw:talk", "live:talk"):
            await client.call("subscribe", channel=room)
        return client

    async def talk(self) -> None:
        """Each of the two says something in both rooms."""
        for client in self.members:
            self.talked += 1
            for room in ("raw:talk", "live:talk"):
                await client.call("publish", channel=room, data={"from": "us", "n": self.talked})

    async def check(self) -> None:
        """The two have heard each other, and the hub holds nothing that it did not hold before."""
        await self.talk()
        await self.mallory.settle()
        for client in self.members:
            await client.settle()
            assert client.closed is None
            for room in ("raw:talk", "live:talk"):
                said = [d["n"] for d in client.data_of(room) if isinstance(d, dict) and d.get("from") == "us"]
                assert said == list(range(1, self.talked + 1))
            offsets = client.offsets_of("raw:talk")
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        now = self.hub.statistics()
        assert now.tasks == self.base.tasks
        assert now.sessions == self.base.sessions - (self.mallory.closed is not None)
        assert now.deadlines == self.base.deadlines - (self.mallory.closed is not None)
        self.check_mallory()

    def check_mallory(self) -> None:
        client = self.mallory
        assert client.closed is None or client.close_code in CLOSES, client.closed
        for reply in client.units:
            if "error" in reply:
                assert reply["error"]["code"] in ERRORS, reply
                assert reply["error"]["message"]
        said = client.text + repr(client.closed)
        for word in INSIDES:
            assert word not in said


def run(play: Callable[[Scene], Awaitable[None]]) -> None:
    """Play one scene in a loop of its own; an error in the log is a failure."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    async def main() -> None:
        async with Scene() as scene:
            await play(scene)
            await scene.check()

    handler = Handler(logging.ERROR)
    logger = logging.getLogger("rtkit")
    logger.addHandler(handler)
    try:
        asyncio.run(main())
    finally:
        logger.removeHandler(handler)
    assert not records, [record.getMessage() for record in records]


# -- bytes --------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        b"{}",
        b"\n",
        b'{"id":',
        b'{"id":7,"ping":{}}',
        b'{"id":8,"publish":{"channel":"raw:talk","data":',
        b'{"id":9,"subscribe":{"channel":"raw:x","data":',
        b'"\\ud800"',
        b"1e999",
        b"NaN",
        b"[" * 300,
        b"}}",
        b"]" * 300,
        b"\xff",
        b"\x00",
        b"1" * 5000,
        b'"' + b"x" * 6000 + b'"',
        b'"' + b"x" * 25_000 + b'"',
    ]
)
FRAMES = st.binary(max_size=80) | st.lists(FRAGMENTS | st.binary(max_size=5), max_size=6).map(b"".join)


@given(st.lists(FRAMES, min_size=1, max_size=6))
def test_arbitrary_bytes(frames: list[bytes]) -> None:
    """W3: at a connection that is live, and at one that has not said who it is."""

    async def play(scene: Scene) -> None:
        stranger = RawClient(scene.hub, scene.clock)
        for frame in frames:
            scene.mallory.transport.message(frame)
            stranger.transport.message(frame)
            await scene.talk()
        await stranger.settle()
        assert stranger.closed is None or stranger.close_code in CLOSES
        assert "connect" not in stranger.text
        await stranger.drop()

    run(play)


# -- units that are well-formed and wrong -------------------------------------------------------------

JUNK = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**53,
        2**70,
        "",
        "x",
        "\x00",
        "é" * 200,
        [],
        [1],
        {},
        {"a": 1},
        [[]] * 3,
        "raw:talk",
    ]
) | st.text(max_size=10)
ROOMS = st.sampled_from(
    [
        "raw:talk",
        "raw:a",
        "raw:b",
        "raw:c",
        "live:talk",
        "live:a",
        "locked:a",
        "me",
        "nope",
        "raw:a:b",
        "raw:%41",
        "raw:%3A",
        "raw:%C3%A9",
        "raw:é 😀",
        "raw:\x85",
        "",
    ]
)
POSITIONS = st.sampled_from([0, 1, 2, 5, 1000, 2**53 - 1])
#: What would be right for a field, by its name.
SOUND: dict[str, st.SearchStrategy[Any]] = {
    "channel": ROOMS,
    "token": st.sampled_from(["", "eve", "mallory"]),
    "data": JUNK | st.builds(lambda n: {"event": "add", "data": n}, JUNK),
    "recover": st.booleans(),
    "epoch": st.sampled_from(["", "other", "e" * 128]),
    "offset": POSITIONS,
    "rewind": POSITIONS,
    "limit": st.sampled_from([-1, 0, 1, 3, 2**31 - 1]),
    "since": st.builds(
        lambda offset, epoch: {"offset": offset, "epoch": epoch}, POSITIONS, st.sampled_from(["", "x"])
    ),
    "reverse": st.booleans(),
    "key": st.sampled_from(["k", "k/1", "\n", "k" * 128]),
    "method": st.sampled_from(["echo", "nope", "rt.signal", ""]),
    "event": st.sampled_from(["typing", ""]),
    "user": st.sampled_from(["", "ann"]),
    "subs": st.dictionaries(ROOMS, st.just({"recover": True})),
    "rt": st.sampled_from([{}, {"v": 1}, {"v": 99}]),
}


def body_of(field: msgspec.structs.FieldInfo) -> st.SearchStrategy[Any]:
    """A body of a command as its structure says it, with fields missing, added, or of the wrong type."""
    struct = next(arg for arg in field.type.__args__ if arg is not type(None))
    fields = {f.encode_name: f for f in msgspec.structs.fields(struct)}
    wrong = {name: SOUND.get(name, st.booleans()) | JUNK for name in fields}
    right = {name: SOUND.get(name, st.booleans()) for name in fields}
    required = [name for name, f in fields.items() if f.required]
    return (
        st.fixed_dictionaries(
            {n: right[n] for n in required}, optional={n: right[n] for n in right if n not in required}
        )
        | st.fixed_dictionaries({}, optional=wrong | {"unheard": JUNK})
        | JUNK
    )


METHODS = {f.encode_name: body_of(f) for f in msgspec.structs.fields(Command) if f.name != "id"}


@st.composite
def units(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(
        st.lists(st.sampled_from(sorted(METHODS)), min_size=0, max_size=2, unique=True)
        | st.sampled_from([["connect"]])
    )
    if "bye" in names and draw(st.integers(0, 3)):
        names.remove("bye")  # or little else would ever come to its turn
    unit: dict[str, Any] = {name: draw(METHODS[name]) for name in names}
    if draw(st.integers(0, 7)) == 0:
        unit[draw(st.sampled_from(["id", "push", "method", "x"]))] = draw(JUNK)
    return unit


@given(st.lists(st.lists(units(), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 2))
@settings(max_examples=40)
def test_well_formed_and_wrong(batches: list[list[dict[str, Any]]], pause: int) -> None:
    """W3: each unit that can be answered is answered once, in order; the rest gets a documented code."""

    async def play(scene: Scene) -> None:
        sent: list[int] = []
        silent: set[int] = set()  # `send` has no reply, though a malformed one has an error
        for batch in batches:
            numbered = []
            for unit in batch:
                if "id" not in unit:
                    sent.append(1000 + len(sent))
                    if "send" in unit:
                        silent.add(sent[-1])
                    numbered.append({"id": sent[-1], **unit})
                else:
                    numbered.append(unit)
            if scene.mallory.closed is None:
                scene.mallory.transport.message("\n".join(map(json.dumps, numbered)))
            await scene.talk()
            if pause:
                await scene.clock.advance(pause)
        await scene.mallory.settle()
        answered = [id for id in scene.mallory.replies if id >= 1000]
        if scene.mallory.closed is None:
            assert set(sent) - silent <= set(answered) <= set(sent)

    run(play)


@given(st.lists(units(), min_size=1, max_size=6), st.data())
def test_broken_on_the_way(batch: list[dict[str, Any]], data: st.DataObject) -> None:
    """W3: units of which bytes were changed, dropped or doubled."""
    frame = bytearray(
        "\n".join(map(json.dumps, ({"id": n + 1000, **unit} for n, unit in enumerate(batch)))).encode()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(frame) - 1)))
        match data.draw(st.integers(0, 3)):
            case 0:
                del frame[at : at + data.draw(st.integers(1, 10))]
            case 1:
                frame[at:at] = frame[at : at + data.draw(st.integers(1, 40))]
            case 2:
                frame[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case _:
                frame[at:at] = data.draw(FRAGMENTS)

    async def play(scene: Scene) -> None:
        scene.mallory.transport.message(bytes(frame))
        await scene.talk()

    run(play)


@given(
    st.lists(st.tuples(units(), st.sampled_from(["say", "drop", "stall", "drain"])), min_size=1, max_size=8)
)
@settings(max_examples=30)
def test_coming_and_going(steps: list[tuple[dict[str, Any], str]]) -> None:
    """L1: connections that end in the middle of anything leave nothing behind."""

    async def play(scene: Scene) -> None:
        for n, (unit, step) in enumerate(steps):
            client = scene.mallory
            if client.closed is not None or client.pipe.transport is None:
                scene.mallory = client = await scene.member("eve")
            client.transport.message(json.dumps({"id": 1000 + n, **unit}))
            match step:
                case "drop":
                    client.pipe.lose()
                case "stall":
                    client.pipe.stall()
                case "drain":
                    client.pipe.drain()
            await scene.talk()
        scene.mallory.pipe.lose()
        await scene.clock.settle()
        scene.mallory = await scene.member("eve")

    run(play)
