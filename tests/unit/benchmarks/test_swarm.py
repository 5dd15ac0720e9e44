"""benchmarks/_load: what says that every member got every message in order must notice when that is not so."""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Iterator

import pytest

if sys.platform != "linux":
    pytest.skip("the load needs epoll", allow_module_level=True)

from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from benchmarks._load.control import merged
from benchmarks._load.frames import client_frame, server_frames
from benchmarks._load.state import LIVE, Client, Room
from benchmarks._load.swarm import Swarm


class Bench:
    """A swarm whose members' servers are the test."""

    def __init__(self) -> None:
        self.swarm = Swarm(("127.0.0.1", 0), publishers=2)
        self.room = self.swarm.rooms["r"] = Room("r")
        self.peers: list[socket.socket] = []

    def member(self, *, publisher: bool = False) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        client = Client(ours, None if publisher else self.room, 2)
        client.state = LIVE
        self.room.members += not publisher
        self.swarm.clients[client.fd] = client
        self.swarm.epoll.register(client.fd, select.EPOLLIN)
        self.peers.append(theirs)
        return theirs

    def turn(self) -> None:
        while self.swarm.turn(0):
            pass

    @property
    def clients(self) -> list[Client]:
        return list(self.swarm.clients.values())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.swarm.close()
    for peer in bench.peers:
        peer.close()


def unit(seq: int, *, publisher: int = 0, offset: int = 0, channel: str = "r") -> bytes:
    pub: dict[str, object] = {"data": {"p": publisher, "s": seq, "t": 0, "x": "x" * 150}}
    if offset:
        pub["offset"] = offset
    return json.dumps({"push": {"channel": channel, "pub": pub}}).encode()


def text(*units: bytes) -> bytes:
    return Frame(Opcode.TEXT, b"\n".join(units)).serialize(mask=False)


def unmasked(data: bytes) -> Frame:
    """The frame as a server reads it, which refuses one that is not masked."""
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=True, max_size=None)
    with pytest.raises(StopIteration) as done:
        while True:
            next(parsing)
    found = done.value.value
    assert isinstance(found, Frame)
    return found


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_client_frames_are_masked_and_whole(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert unmasked(client_frame(payload)).data == payload


def test_server_frames_may_be_cut_anywhere() -> None:
    stream = (
        text(b"short")
        + text(b"y" * 300)
        + text(b"z" * 70_000)
        + Frame(Opcode.PING, b"p").serialize(mask=False)
    )
    for cut in [*range(320), 500, 70_300, len(stream) - 1]:
        frames, rest = server_frames(stream[:cut])
        more, none = server_frames(rest + stream[cut:])
        assert [payload for _, payload in frames + more] == [b"short", b"y" * 300, b"z" * 70_000, b"p"]
        assert none == b""


@pytest.mark.parametrize("head", [b"\x81\x80", b"\x01\x02", b"\xc1\x02"])
def test_masked_fragmented_and_compressed_frames_are_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match="unexpected frame head"):
        server_frames(head + b"xxxx")


def test_what_arrives_in_order_is_counted_and_no_fault(bench: Bench) -> None:
    members = [bench.member() for _ in range(3)]
    for peer in members:
        peer.send(text(unit(1)) + text(unit(2), unit(1, publisher=1)) + text(unit(3)))
    bench.turn()
    assert bench.swarm.deliveries == 12
    assert bench.swarm.fault_count == 0
    assert [client.last for client in bench.clients] == [[3, 1]] * 3
    assert len(bench.swarm.last_latencies) == 4
    assert bench.room.lines == {}


def test_cut_frames_count_the_same(bench: Bench) -> None:
    peer, stream = bench.member(), text(unit(1)) + text(unit(2), unit(3))
    for byte in stream:
        peer.send(bytes((byte,)))
        bench.turn()
    assert bench.swarm.deliveries == 3
    assert bench.swarm.fault_count == 0


@pytest.mark.parametrize("seqs", [(1, 3), (2,), (1, 2, 2), (2, 1), (1, 2, 1)])
def test_a_loss_a_repetition_and_a_swap_are_faults(bench: Bench, seqs: tuple[int, ...]) -> None:
    good, bad = bench.member(), bench.member()
    for seq in (1, 2, 3):
        good.send(text(unit(seq)))
        bench.turn()  # the bad one's messages are known when it gets them: the short way must notice too
    assert bench.swarm.fault_count == 0
    for seq in seqs:
        bad.send(text(unit(seq)))
        bench.turn()
    assert bench.swarm.fault_count > 0


def test_an_offset_left_out_is_a_fault(bench: Bench) -> None:
    peer = bench.member()
    bench.clients[0].offset = 4
    peer.send(text(unit(1, offset=5)))
    bench.turn()
    assert bench.swarm.fault_count == 0
    peer.send(text(unit(2, offset=7)))
    bench.turn()
    assert bench.swarm.faults == ["r: after offset 5 came 7"]


def test_a_message_of_another_room_a_push_and_an_error_are_faults(bench: Bench) -> None:
    peer = bench.member()
    for strange in (
        unit(1, channel="other"),
        b'{"push":{"channel":"r","unsubscribe":{"code":2500,"reason":"continuity lost"}}}',
        b'{"id":9,"error":{"code":111,"message":"too many requests"}}',
        b"nonsense",
    ):
        before = bench.swarm.fault_count
        peer.send(text(strange))
        bench.turn()
        assert bench.swarm.fault_count == before + 1


def test_a_connection_that_ends_is_missed_and_the_reason_kept(bench: Bench) -> None:
    first, second = bench.member(), bench.member()
    first.send(Frame(Opcode.CLOSE, b"\x0b\xc0slow consumer").serialize(mask=False))
    second.close()
    bench.turn()
    assert bench.swarm.lost == {"closed 3008 slow consumer": 1, "end of stream": 1}
    assert bench.room.members == 0


def test_beats_and_pings_are_answered_and_are_no_messages(bench: Bench) -> None:
    peer = bench.member()
    peer.send(text(b"{}"))
    bench.turn()
    answer = unmasked(peer.recv(100))
    assert (answer.opcode, answer.data) == (Opcode.TEXT, b"{}")
    peer.send(text(unit(1), b"{}"))
    bench.turn()
    assert unmasked(peer.recv(100)).data == b"{}"
    peer.send(Frame(Opcode.PING, b"are you there").serialize(mask=False))
    bench.turn()
    answer = unmasked(peer.recv(100))
    assert (answer.opcode, answer.data) == (Opcode.PONG, b"are you there")
    assert (bench.swarm.deliveries, bench.swarm.pongs, bench.swarm.fault_count) == (1, 3, 0)


def test_what_the_socket_does_not_take_at_once_follows_in_order(bench: Bench) -> None:
    peer = bench.member(publisher=True)
    client = bench.clients[0]
    payload = b"".join(client_frame(b"%06d" % number * 1000) for number in range(200))
    for at in range(0, len(payload), 5000):
        bench.swarm.send(client, payload[at : at + 5000])
    assert client.out
    got = b""
    while len(got) < len(payload):
        got += peer.recv(65536)
        bench.turn()
    assert got == payload


def test_percentiles_of_several_processes_are_those_of_all() -> None:
    assert merged([{"1000": 50, "2000": 49}, {"9000": 1}]) == {"p50": 2.0, "p90": 2.0, "p99": 9.0, "max": 9.0}
    assert merged([{}, {}]) == {}
