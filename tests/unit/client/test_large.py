"""T8: the SDK sends what is larger than a unit in chunks, and puts together what comes in them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from msgspec import Raw

from rtkit.client.commands import Sending
from rtkit.client.engine import Engine
from rtkit.errors import BadUnit, CallError, InvalidMessage
from rtkit.primitives.backoff import Backoff
from rtkit.wire import (
    UNIT,
    Assembler,
    Chunk,
    Command,
    Connect,
    ConnectResult,
    Cut,
    Reply,
    Rpc,
    RpcResult,
    RtWelcome,
    Splitter,
    decode_command,
    dumps,
    split,
)
from rtkit.wire.units import ErrorBody, Limits, Push

MIB = 1024 * 1024


class Talk:
    """An engine that is connected, and everything it has written."""

    def __init__(self, **limits: Any) -> None:
        self.engine = Engine(
            wake=lambda: None,
            new_backoff=lambda: Backoff(random=random.Random(1)),
            max_offline_bytes=64 * MIB,
        )
        self.limits = Limits(**({"unit": UNIT, "message": MIB, "large": 16 * MIB} | limits))
        self.now = 0.0
        self.outcomes: dict[str, Any] = {}
        self.assembler = Assembler(limit=16 * MIB)
        self.heard: list[Command | str] = []
        self.connect()

    def connect(self) -> None:
        def welcome(reply: Reply, now: float) -> None:
            self.engine.begin(ConnectResult(client="c", pong=True, rt=RtWelcome(1, self.limits)), now)

        self.engine.connect(Connect(), welcome)
        self.take()
        self.engine.feed(dumps(Reply(id=1, connect=ConnectResult(client="c"))), self.now)

    def call(self, name: str, size: int, key: str = "k") -> Sending:
        def settle(outcome: Any) -> None:
            self.outcomes[name] = outcome

        data = json.dumps("x" * size).encode()
        sending = Sending(Rpc(name, Raw(data), key), size=len(data), settle=settle)
        self.engine.submit(sending)
        return sending

    def take(self) -> list[Command | str]:
        """One turn of the writer: what it says, large ones as ``chunk`` of their id."""
        frames, self.again = self.engine.take(self.now, self.now)
        said: list[Command | str] = []
        for frame in frames:
            assert len(frame) <= UNIT + 96
            for unit in split(frame):
                command = decode_command(unit)
                if command.chunk is None:
                    said.append(command)
                    continue
                said.append(f"chunk of {command.chunk.of}")
                whole = self.assembler.add(command.chunk, 0.0)
                if whole is not None:
                    said.append(decode_command(whole))
        self.heard += said
        return said

    def names(self) -> list[str]:
        return [each.rpc.method for each in self.heard if isinstance(each, Command) and each.rpc is not None]


def test_a_large_call_leaves_one_chunk_at_a_time_behind_pings_and_others() -> None:
    """At most one chunk in a turn of the writer, and what is urgent is before it."""
    talk = Talk()
    talk.call("big", 10_000_000)
    turns = 0
    while "big" not in talk.names():
        turns += 1
        talk.engine.feed(b"{}", 0.0)
        said = talk.take()
        assert said[0] == Command(), "the answer to the ping"
        assert sum(isinstance(each, str) for each in said) == 1
    assert turns == 204


def test_its_lane_waits_and_so_do_other_large_ones() -> None:
    talk = Talk()
    talk.call("small 1", 1)
    talk.call("big 1", 200_000)
    talk.call("small 2", 1)
    talk.call("big 2", 200_000)
    talk.call("small 3", 1)
    for _ in range(30):
        talk.take()
    assert talk.names() == ["small 1", "big 1", "small 2", "big 2", "small 3"]
    assert talk.again == math.inf


def test_what_fits_a_unit_goes_whole() -> None:
    talk = Talk()
    around = len(dumps(Command(2, rpc=Rpc("big", Raw(b'""'), "k"))))
    talk.call("big", UNIT - around)
    assert [type(each) for each in talk.take()] == [Command]
    talk.call("more", UNIT - around)
    assert talk.take()[0] == "chunk of 3"


def test_chunks_keep_to_the_bytes_a_second() -> None:
    """F1: as many at once as the server takes, then so many a second."""
    talk = Talk(bytes=100_000.0, surge=400_000.0)
    talk.call("big", 1_000_000)
    sent = 0
    while said := talk.take():
        sent += len(said)
    assert sent == 5
    assert 0 < talk.again < 1
    while "big" not in talk.names():
        talk.now = talk.again
        talk.take()
        assert talk.now < 20
    assert talk.now == pytest.approx((1_000_000 * 4 / 3 - 360_000) / 90_000, rel=0.1)


@pytest.mark.parametrize("size", [1_000, 60_000])
def test_what_goes_whole_keeps_to_the_bytes_a_second_as_well(size: int) -> None:
    """F1: the server counts all of them."""
    talk = Talk(bytes=100_000.0, surge=400_000.0)
    for n in range(1_000_000 // size):
        talk.call(f"{n}", size)
    sent = 0
    while sent < 1_000_000 // size:
        said = talk.take()
        sent += len(said)
        assert sent * size <= 400_000 + talk.now * 100_000
        if not said:
            assert talk.now < talk.again < talk.now + 1
            talk.now = talk.again
    assert talk.now == pytest.approx((1_000_000 - 360_000) / 90_000, rel=0.1)


@pytest.mark.parametrize("late", [False, True], ids=["half-way", "after the last chunk"])
def test_a_refused_large_call_fails_and_the_next_goes_on(late: bool) -> None:
    talk = Talk()
    talk.call("big", 200_000)
    talk.call("small", 1)
    for _ in range(10 if late else 2):
        talk.take()
    error = Chunk(2, error=ErrorBody(106, "a unit has at most 5 bytes"))
    talk.engine.feed(dumps(Reply(push=Push(chunk=error))), 0.0)
    assert isinstance(talk.outcomes["big"], CallError)
    assert talk.outcomes["big"].code == 106
    before = len(talk.heard)
    for _ in range(10):
        talk.take()
    assert "small" in talk.names()
    assert not any(isinstance(each, str) for each in talk.heard[before:])


def test_a_large_call_that_came_at_a_bad_time_is_sent_again() -> None:
    talk = Talk()
    talk.call("big", 200_000)
    talk.take()
    error = Chunk(2, error=ErrorBody(111, "too many", temporary=True, retry_after=2.0))
    talk.engine.feed(dumps(Reply(push=Push(chunk=error))), 0.0)
    assert talk.take() == []
    assert talk.again == 2.0
    talk.now = 2.0
    for _ in range(10):
        talk.take()
    assert talk.names() == ["big"]
    assert "chunk of 3" in talk.heard


def test_a_large_call_that_nobody_waits_for_is_given_up() -> None:
    talk = Talk()
    sending = talk.call("big", 10 * MIB)
    talk.take()
    talk.engine.outbox.withdraw(sending)
    assert talk.take() == []
    assert talk.again == math.inf
    talk.call("big 2", 200_000)
    for _ in range(10):
        talk.take()
    assert talk.names() == ["big 2"]


def test_after_a_lost_connection_it_begins_anew() -> None:
    talk = Talk()
    talk.call("big", 200_000)
    talk.take()
    talk.engine.lost(0.0, 0.0)
    talk.assembler = Assembler(limit=MIB)
    talk.connect()
    for _ in range(10):
        talk.take()
    assert talk.names() == ["big"]


def test_a_call_larger_than_large_is_refused_here() -> None:
    talk = Talk(large=MIB)
    talk.call("big", MIB)
    assert talk.take() == []
    assert isinstance(talk.outcomes["big"], InvalidMessage)


def test_without_large_the_unit_is_the_bound() -> None:
    """A server that knows no chunks."""
    talk = Talk(large=0)
    talk.call("big", UNIT)
    assert talk.take() == []
    assert isinstance(talk.outcomes["big"], InvalidMessage)


# -- in ------------------------------------------------------------------------------------------------


def pieces(reply: Reply, of: int = 1) -> Splitter:
    return Splitter(Cut(dumps(reply), of, push=True))


def test_a_large_answer_is_put_together_between_others() -> None:
    talk = Talk()
    talk.call("one", 1)
    talk.call("two", 1)
    talk.take()
    for piece in pieces(Reply(id=2, rpc=RpcResult(Raw(json.dumps("y" * 10 * MIB).encode())))):
        assert "one" not in talk.outcomes
        talk.engine.feed(piece, 0.0)
        talk.engine.feed(dumps(Reply(id=3, rpc=RpcResult(Raw(b"2")))), 0.0)
    assert len(talk.outcomes["one"].rpc.data) == 10 * MIB + 2
    assert bytes(talk.outcomes["two"].rpc.data) == b"2"


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(1, 1, True, b"x"),
        Chunk(1, 0, True, b""),
        Chunk(1, 0, True, b"not json"),
        Chunk(1, 0, True, dumps(Reply(push=Push(chunk=Chunk(2, 0, True, b"{}"))))),
    ],
    ids=["out of order", "empty", "no unit", "a chunk of chunks"],
)
def test_nonsense_ends_the_connection(chunk: Chunk) -> None:
    """Nothing may go missing in silence: whoever is connected anew recovers."""
    talk = Talk()
    with pytest.raises(BadUnit):
        talk.engine.feed(dumps(Reply(push=Push(chunk=chunk))), 0.0)


def test_what_the_server_gives_up_is_forgotten() -> None:
    talk = Talk()
    talk.call("one", 1)
    talk.take()
    talk.engine.feed(next(pieces(Reply(id=2, rpc=RpcResult(Raw(b"1" * 100_000))))), 0.0)
    for piece in pieces(Reply(id=2, rpc=RpcResult(Raw(b"2" * 100_000))), 2):
        talk.engine.feed(piece, 0.0)
    assert bytes(talk.outcomes["one"].rpc.data)[:1] == b"2"
