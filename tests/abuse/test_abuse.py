"""Attacks with bare sockets on a hub in a process of its own: what they are answered, what they cost, and whom.

Everything here is seen from the outside. A neighbour is answered all the while, and what the victim takes in memory
has the bound that `docs/explanation/security.md` states for it: the fixture reads it there. An attack sends more than
that, wherever what it sends could be kept, so that a hub that keeps it is noticed. What a single frame, head or unit is
answered stands, row by row, in tests/transport, tests/unit/server and tests/unit/hub; the same page lists all of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Iterable
from typing import Any

import pytest

from tests.abuse.conftest import MIB, Victim
from tests.abuse.victim import AUTH_TIMEOUT, BLOCKED, BODY_TIME, HEADER_TIME
from tests.support.rawsocket import (
    BINARY,
    CONT,
    PING,
    TEXT,
    Closed,
    Peer,
    RawSocket,
    Response,
    frame,
    upgrade,
)
from tests.unit.hosting.test_deflate import bomb, compressed

MAX_FRAME = 2**20
#: Of who has not said who it is.
MAX_CONNECT = 128 * 1024


async def gathered(each: Iterable[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*each))


async def answer_of(sock: RawSocket) -> Response | None:
    """What a connection is answered before it ends; None for an end without a word."""
    try:
        return await sock.response()
    except AssertionError:
        return None


async def until_there_are(victim: Victim, what: str, most: int) -> None:
    """Wait until the hub has no more than so many of something."""
    asking = await victim.peer("asking")
    async with asyncio.timeout(10):
        while (await asking.call("rpc", method="count", data=None))["data"][what] > most:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


# -- before there is a request -------------------------------------------------------------------------


async def test_heads_that_never_end(own: Victim, bound: int) -> None:
    """200 that send a byte now and then are gone in time, however regularly they do."""
    async with own.watched(bound) as seen:
        began = time.monotonic()
        socks = await gathered(own.socket() for _ in range(200))
        for part in (b"GET /rt/ws HTTP/1.1\r\n", b"Host: x\r\n", b"X-A: b\r\n"):
            for sock in socks:
                sock.send_nowait(part)
            await asyncio.sleep(HEADER_TIME / 5)
        answers = await gathered(answer_of(sock) for sock in socks)
        assert time.monotonic() - began >= HEADER_TIME
        assert {answer.status for answer in answers if answer} == {408}
        assert None not in answers
    assert seen.counted["turned_away{408}"] == 200


async def test_connections_that_say_nothing(own: Victim, bound: int) -> None:
    async with own.watched(bound) as seen:
        socks = await gathered(own.socket() for _ in range(200))
        assert set(await gathered(sock.rest() for sock in socks)) == {b""}
    assert seen.counted["turned_away{silent}"] == 200


@pytest.mark.soak
async def test_heads_that_never_end_under_uvicorn(uvicorn: Victim, bound: int) -> None:
    """uvicorn keeps them: the deadline is a proxy's business. They cost little, and nobody else waits."""
    async with uvicorn.watched(bound):
        socks = await gathered(uvicorn.socket() for _ in range(200))
        for sock in socks:
            sock.send_nowait(b"GET /ws HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(2 * HEADER_TIME)
        assert not any(sock.speaks for sock in socks)


@pytest.mark.parametrize("what", ["a line", "many", "a target"])
async def test_a_flood_of_headers(own: Victim, what: str, bound: int) -> None:
    """Fifty at once: 431, and none of it is kept, or parsed. (uvicorn parses 10,000 in a third of a second.)"""
    head = {
        "a line": b"GET /rt/ready HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * MIB + b"\r\n\r\n",
        "many": b"GET /rt/ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
        "a target": b"GET /rt/ready?" + b"a" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    }[what]
    async with own.watched(bound) as seen:
        socks = await gathered(own.socket() for _ in range(50))

        async def send(sock: RawSocket) -> Response | None:
            try:
                await sock.send(head)
            except ConnectionError:
                pass  # it has had enough
            return await answer_of(sock)

        answers = await gathered(send(sock) for sock in socks)
        assert {answer.status if answer else 0 for answer in answers} == {431}
    assert seen.counted["turned_away{431}"] == 50


@pytest.mark.soak
async def test_a_flood_of_headers_under_uvicorn(uvicorn: Victim, bound: int) -> None:
    """uvicorn parses what it gets, and nobody is served meanwhile; afterwards nothing is kept of it."""
    head = b"GET /ready HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n"
    async with uvicorn.watched(bound):
        socks = await gathered(uvicorn.socket() for _ in range(10))
        await gathered(sock.send(head) for sock in socks)
        answers = await gathered(answer_of(sock) for sock in socks)
        assert {answer.status if answer else 0 for answer in answers} == {204}


async def test_bodies_that_never_end(own: Victim, bound: int) -> None:
    """100 that promise 1 MiB and send a byte now and then, and 24 that keep but the last one back."""
    head = b"POST /rt/send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % MAX_FRAME
    async with own.watched(bound) as seen:
        socks = await gathered(own.socket() for _ in range(124))
        for sock in socks:
            sock.send_nowait(head)
        for sock in socks[100:]:
            await sock.send(b"x" * (MAX_FRAME - 1))
        for _ in range(3):
            for sock in socks[:100]:
                sock.send_nowait(b"{")
            await asyncio.sleep(BODY_TIME / 5)
        answers = await gathered(answer_of(sock) for sock in socks)
        assert {answer.status if answer else 0 for answer in answers} == {408}
    assert seen.counted["turned_away{408}"] == 124


@pytest.mark.parametrize("how", ["declared", "chunked"])
async def test_a_body_without_end(victim: Victim, how: str, bound: int) -> None:
    """64 MiB of it, or as many as are taken: 413 as soon as it shows, and not kept until then."""
    path = "/rt/send" if victim.ours else "/send"
    length = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {64 * MIB}"
    piece = b"x" * 65536
    if how == "chunked":
        piece = b"10000\r\n" + piece + b"\r\n"
    async with victim.watched(bound) as seen:
        sock = await victim.socket()
        await sock.send(f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        try:
            for _ in range(1024):
                await sock.send(piece)
                if sock.speaks:
                    break
        except ConnectionError:
            pass
        answer = await answer_of(sock)
        assert answer is not None and answer.status == 413
    assert seen.counted["turned_away{413}"] == 1


async def test_thousands_of_requests_in_one_go(own: Victim, bound: int) -> None:
    """One a turn of the loop, and nobody has answers pile up that reads none."""
    async with own.watched(bound):
        sock = await own.socket(receive_buffer=4096)
        requests = b"GET /rt/client.js HTTP/1.1\r\nHost: x\r\n\r\n" * 5000
        sent, deadline = 0, time.monotonic() + 1
        while sent < len(requests) and time.monotonic() < deadline:
            sent += sock.send_nowait(requests[sent:])
            await asyncio.sleep(0.02)
        sock.reset()


# -- frames --------------------------------------------------------------------------------------------

FRAMES = {
    "not masked": (frame("{}", mask=None), {1002}),
    "a reserved bit": (frame("{}", rsv=1), {1002}),
    "an unknown opcode": (frame("{}", 5), {1002}),
    "a ping of 126 bytes": (frame(b"x" * 126, PING), {1002}),
    "a continuation of nothing": (frame("{}", CONT), {1002}),
    "a message within a message": (frame("{", fin=False) + frame("}"), {1002}),
    "no UTF-8": (frame(b"\xc3\x28"), {1007}),
    "2^62 bytes": (frame(b"", BINARY, length=2**62), {1009}),
    "2^64 - 1 bytes": (frame(b"", TEXT, length=2**64 - 1), {1009}),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_frames_of_many_who_break_the_protocol(own: Victim, name: str, bound: int) -> None:
    """They go on afterwards, as if nothing had been: it is not heard any more, and not kept."""
    said, codes = FRAMES[name]
    async with own.watched(bound) as seen:
        peers = await gathered(own.peer() for _ in range(25))

        async def attack(peer: Peer) -> Closed:
            try:
                await peer.send(said + b"x" * MIB)
            except ConnectionError:
                pass  # it has had enough
            return await peer.closed()

        ends: list[Closed] = await gathered(attack(peer) for peer in peers)
        assert {end.code for end in ends} == codes
    assert sum(seen.counted[f"closes{{{code}}}"] for code in codes) == 25


@pytest.mark.soak
async def test_frames_that_break_the_protocol_under_uvicorn(uvicorn: Victim, bound: int) -> None:
    async with uvicorn.watched(bound) as seen:
        for name, (said, codes) in FRAMES.items():
            peer = await uvicorn.peer()
            peer.send_nowait(said)
            assert {(await peer.closed()).code} == codes, name
    assert sum(seen.counted[f"closes{{{code}}}"] for code in (1002, 1007, 1009)) == len(FRAMES)


async def test_large_frames_that_are_never_finished(own: Victim, bound: int) -> None:
    """Who does not say who it is has 128 KiB, for ``auth_timeout`` at the most (A1)."""
    count = 100
    async with own.watched(bound) as seen:
        larger = await own.peer()
        larger.send_nowait(frame(b"", length=MAX_CONNECT + 1)[:14])
        assert (await larger.closed()).code == 1009
        peers = await gathered(own.peer() for _ in range(count))
        for peer in peers:
            await peer.send(frame(b"", length=MAX_CONNECT)[:14] + b"x" * (MAX_CONNECT - 1))
        began = time.monotonic()
        ends: list[Closed] = await gathered(peer.closed() for peer in peers)
        assert time.monotonic() - began < AUTH_TIMEOUT + 4
        assert {end.code for end in ends} == {3502}
    assert (seen.counted["closes{1009}"], seen.counted["closes{3502}"]) == (1, count)


async def test_large_frames_of_who_was_let_in(own: Victim, bound: int) -> None:
    """Each holds a message at the most."""
    count = 30
    async with own.watched(bound):
        peers = await gathered(own.peer(f"user{n}") for n in range(count))
        for peer in peers:
            await peer.send(frame(b"", length=MAX_FRAME)[:14] + b"x" * (MAX_FRAME - 1))


@pytest.mark.parametrize("size", [0, 1, 16384])
async def test_fragments_without_end(own: Victim, size: int, bound: int) -> None:
    """Ten who never finish; empty ones add nothing to the size, and those of a byte little."""
    more = frame(b"x" * size, CONT, fin=False) * (4 * MIB // max(size, 800))
    async with own.watched(bound) as seen:
        peers = await gathered(own.peer(f"user{n}") for n in range(10))

        async def attack(peer: Peer) -> Closed:
            try:
                await peer.send(frame("", fin=False) + more)
            except ConnectionError:
                pass  # it has had enough
            return await peer.closed()

        ends: list[Closed] = await gathered(attack(peer) for peer in peers)
        assert {end.code for end in ends} == {1009}
    assert seen.counted["closes{1009}"] == 10


async def test_bombs(own: Victim, bound: int) -> None:
    """Twenty of 260 KB that would be 256 MiB each."""
    data = bomb(256)
    async with own.watched(bound) as seen:
        peers = await gathered(own.peer("ann", deflate=True) for _ in range(20))
        ends = list[Closed]()
        for peer in peers:
            await peer.send(frame(data, rsv=4))
            ends.append(await peer.closed())
        assert {end.code for end in ends} == {1009}
    assert seen.counted["closes{1009}"] == 20


async def test_what_is_compressed_counts_as_what_it_is(own: Victim, bound: int) -> None:
    """A kilobyte that is a megabyte is a megabyte to the rate of bytes: 16 of them at once and one a second."""
    async with own.watched(bound) as seen:
        peer = await own.peer("ann", deflate=True)
        _, unit = peer.unit("ping")
        said = frame(compressed(unit.encode().ljust(MAX_FRAME - 1)), rsv=4)
        assert len(said) < 2000
        await peer.send(said * 25)
        assert (await peer.closed()).code == 3013
    assert (seen.counted["closes{3013}"], seen.counted["limits{bytes}"]) == (1, 1)


async def test_a_flood_of_pings_that_nobody_reads_the_answers_of(own: Victim, bound: int) -> None:
    """Ten, of 2 MiB each."""
    pings = frame(b"x" * 125, PING) * 16000
    async with own.watched(bound) as seen:
        peers = await gathered(own.peer(f"user{n}", receive_buffer=4096) for n in range(10))

        async def attack(peer: Peer) -> Closed:
            try:
                await peer.send(pings)
            except ConnectionError:
                pass  # it has had enough
            return await peer.closed()

        ends: list[Closed] = await gathered(attack(peer) for peer in peers)
        assert {end.code for end in ends} == {1008}
    assert seen.counted["closes{1008}"] == 10


# -- units ---------------------------------------------------------------------------------------------


async def test_who_does_not_say_who_it_is(victim: Victim, bound: int) -> None:
    """A hundred, some of whom keep the line busy: closed in time, and nothing but connecting was possible (A1)."""
    async with victim.watched(bound) as seen:
        peers = await gathered(victim.peer() for _ in range(100))
        for n, peer in enumerate(peers):
            if n % 2:
                peer.send_nowait(frame(b"", PING) * 5)
        ends: list[Closed] = await gathered(peer.closed() for peer in peers)
        assert {end.code for end in ends} == {3502}
        first = await victim.peer()
        await first.ask("subscribe", channel="log:a")
        assert (await first.closed()).code == 3501
    assert seen.counted["closes{3502}"] == 100


async def test_publishing_in_a_loop(victim: Victim, bound: int) -> None:
    """50 a second are taken; who goes on after refusals is closed, and others in the room are not flooded."""
    async with victim.watched(bound) as seen:
        other, ann = await victim.peer("other"), await victim.peer("ann")
        await other.join("now:a")
        refused, ended, long = 0, False, "x" * 2000
        for _ in range(20):
            units = [ann.unit("publish", channel="now:a", data=long)[1] for _ in range(300)]
            await ann.send(b"".join(frame(unit) for unit in units))
            try:
                while ann.speaks:
                    unit = await ann.next_unit()
                    refused += unit.get("error", {}).get("code") == 111
            except AssertionError as end:
                assert "closed instead" in str(end) and r"\x0b\xc5" in str(end)  # 3013
                ended = True
                break
            await asyncio.sleep(0.1)
        assert ended
        assert refused >= 50 or not victim.ours
        await other.say(json.dumps({"id": 99, "ping": {}}))
        while (await other.next_unit()).get("id") != 99:
            pass
        assert sum("pub" in push for push in other.pushes) < 250
    assert seen.counted["limits{commands}"] >= 50 and seen.counted["closes{3013}"] == 1


async def test_thousands_of_rooms(victim: Victim, bound: int) -> None:
    """128 of one connection, and a user has sixteen; and nothing is left of them when it goes."""
    async with victim.watched(bound) as seen:
        peers: list[Peer] = await gathered(victim.peer("ann") for _ in range(16))

        async def fill(n: int, peer: Peer) -> None:
            taken, room = 0, 0
            while True:
                result = await peer.call("subscribe", channel=f"{'now' if room % 2 else 'log'}:{n}-{room}")
                if "error" not in result:
                    taken, room = taken + 1, room + 1
                elif result["error"]["code"] == 111:
                    await asyncio.sleep(0.2)
                else:
                    assert result["error"]["code"] == 106
                    break
            assert 120 <= taken <= 128  # some are the server's own choice

        await gathered(fill(n, peer) for n, peer in enumerate(peers))
        for peer in peers:
            peer.close()
        await until_there_are(victim, "rooms", 10)
    assert seen.counted["limits{rooms}"] == 16


async def test_a_crowd_that_comes_and_goes(victim: Victim, bound: int) -> None:
    """Half of them say goodbye, half of them are cut off: nothing is left, whoever it was."""
    async with victim.watched(bound):

        async def visit(n: int) -> None:
            peer = await victim.peer(f"user{n}")
            await peer.join(f"now:{n % 7}")
            if n % 2:
                await peer.leave()
            else:
                peer.reset()

        for at in range(0, 150, 50):
            await gathered(visit(n) for n in range(at, at + 50))
        await until_there_are(victim, "sessions", 2)


async def test_clients_that_never_read(victim: Victim, bound: int) -> None:
    """Ten, of whom each asks for 5 MiB: what fits the outbox is kept; then they are closed, and cost no more (D1)."""
    async with victim.watched(bound) as seen:
        peers = await gathered(victim.peer(f"user{n}", receive_buffer=4096) for n in range(10))
        _, unit = peers[0].unit("rpc", method="echo", data="x" * 60_000)

        async def attack(peer: Peer) -> None:
            try:
                await peer.send(frame(unit) * 95)  # as many as the rate allows at once
            except (ConnectionError, TimeoutError):
                pass

        await gathered(attack(peer) for peer in peers)
        await until_there_are(victim, "sessions", 2)
    assert seen.counted["closes{3008}"] == 10


async def test_messages_that_wait_for_a_handler(own: Victim, bound: int) -> None:
    """Four who send 40 MiB each while the first is worked on: what the rate of bytes lets in may wait, and no more."""
    async with own.watched(bound) as seen:
        peers = await gathered(own.peer(f"user{n}") for n in range(4))

        async def attack(peer: Peer) -> Closed:
            try:
                await peer.ask("rpc", method="wait", data=None)
                _, unit = peer.unit("rpc", method="wait", data="x" * (MAX_FRAME - 100))
                said = frame(unit)
                for _ in range(40):
                    await peer.send(said)
            except ConnectionError:
                pass
            return await peer.closed()

        ends: list[Closed] = await gathered(attack(peer) for peer in peers)
        assert {end.code for end in ends} == {3013}
    assert seen.counted["limits{bytes}"] == seen.counted["closes{3013}"] == 4
    await until_there_are(own, "waiting", 0)  # what they hold is not to be the next one's
    own.drop_sockets()


# -- a loop that stands still ---------------------------------------------------------------------------


async def test_what_is_said_to_a_loop_that_stands_still_waits_in_the_system(own: Victim, bound: int) -> None:
    """Ten send eight messages of 800 KB each while a handler blocks: all are answered, and few are here at once."""
    long = "here" * 200_000
    async with own.watched(bound) as seen:
        peers: list[Peer] = await gathered(own.peer(f"user{n}") for n in range(11))
        began = time.monotonic()
        blocked = await peers[0].ask("rpc", method="block", data="done")

        async def talk(peer: Peer) -> None:
            units = [peer.unit("rpc", method="count", data=long) for _ in range(8)]
            await peer.send(b"".join(frame(unit) for _, unit in units))
            for id, _ in units:
                assert "error" not in await peer.reply(id, "rpc")

        await gathered(talk(peer) for peer in peers[1:])
        assert await peers[0].reply(blocked, "rpc") == {"data": "done"}
        assert time.monotonic() - began >= BLOCKED
    assert seen.counted["blocked"] == 1


@pytest.mark.soak  # by the real clock; by a manual one it is in tests/unit/hub/test_heartbeat.py
async def test_a_handler_that_blocks_the_loop_costs_time_and_no_connection(hasty: Victim, bound: int) -> None:
    """Blocked for longer than the heartbeat is patient: everybody is there afterwards, and is answered (F5)."""
    async with hasty.watched(bound) as seen:
        peers: list[Peer] = await gathered(hasty.peer(f"user{n}") for n in range(20))
        began = time.monotonic()
        blocked = await peers[0].ask("rpc", method="block", data="done")
        others = await gathered(each.ask("rpc", method="echo", data="here") for each in peers[1:])
        for each, id in zip(peers[1:], others, strict=True):
            assert await each.reply(id, "rpc") == {"data": "here"}
        assert await peers[0].reply(blocked, "rpc") == {"data": "done"}
        assert time.monotonic() - began >= BLOCKED
        # And nobody is closed right after it, for what could not be heard meanwhile.
        for _ in range(3):
            for each in peers:
                while each.speaks:
                    assert await each.next_unit() == {}
                    await each.say("{}")
                assert await each.echo("still") == "still"
            await asyncio.sleep(0.1)
    assert seen.counted["blocked"] == 1


async def test_handshakes_with_everything_in_one_packet(own: Victim, bound: int) -> None:
    """Handshake, connect and a command together: nobody is confused by what comes early. (uvicorn drops it.)"""
    async with own.watched(bound):

        async def early(n: int) -> None:
            async with await Peer.open(own.port) as peer:
                _, connect = peer.unit("connect", token=f"ann{n}")
                id, echo = peer.unit("rpc", method="echo", data="early")
                await peer.send(upgrade(own.path) + frame(connect) + frame(echo))
                await peer.accepted()
                assert "connect" in await peer.next_unit()
                assert await peer.reply(id, "rpc") == {"data": "early"}

        await gathered(early(n) for n in range(30))
