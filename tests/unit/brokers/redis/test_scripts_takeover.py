"""The fence (B6): who stood at what a failover lost is never told that it is all there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtkit.streams import locate
from tests.support.daemons import wait_until
from tests.support.redis_scripts import State, Stream
from tests.support.redises import Kind, RedisPair, RedisServer


@pytest.fixture(scope="module", params=["redis", "valkey"])
def pair(request: pytest.FixtureRequest) -> Iterator[RedisPair]:
    kind: Kind = request.param
    with RedisPair(kind, appendonly="no") as pair:
        yield pair


@pytest.fixture
def servers(pair: RedisPair) -> tuple[RedisServer, RedisServer]:
    """A primary, and a replica that is in step."""
    pair.primary.replicate(None)
    follow(pair.replica, pair.primary)
    return pair.primary, pair.replica


def follow(replica: RedisServer, primary: RedisServer) -> None:
    replica.replicate(primary)
    replica.wait_synced()
    in_step(primary, replica)


def in_step(primary: RedisServer, replica: RedisServer) -> None:
    offset = int(primary.info("replication")["master_repl_offset"])
    wait_until(
        lambda: int(replica.info("replication")["slave_repl_offset"]) >= offset, "the replica has it all"
    )


def cut_off(replica: RedisServer, primary: RedisServer) -> None:
    """From now on *replica* hears nothing any more; it is promoted."""
    in_step(primary, replica)
    replica.replicate(None)


def test_a_takeover_begins_an_epoch_that_goes_on(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    stream = Stream(a)
    stream.append(b"1", b"2", keys=("k",), call="one")
    cut_off(b, a)
    stream.server = b
    page = stream.read(("one", 1))
    assert page.taken_over and page.takeovers == [("one", 2)]
    assert (page.start, page.payloads) == (1, [b"2"])
    assert page.epoch != "one"
    again = stream.read(("one", 1))
    assert (again.epoch, again.taken_over) == (page.epoch, False)
    assert stream.append(b"3", keys=("l",))[1:] == [page.epoch, 3, 0]
    # A repeat of what the old primary took is answered as it answered.
    assert stream.append(b"1", keys=("k",), call="x") == [1, 1, "one", 1]
    assert stream.append(b"3", keys=("l",), call="x") == [1, 1, page.epoch, 3]


def test_the_first_to_append_takes_over_too(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    stream = Stream(a)
    stream.append(b"1", call="one")
    cut_off(b, a)
    stream.server = b
    assert stream.append(b"2", call="two") == [0, "two", 2, 1]
    assert stream.read().takeovers == [("one", 1)]


def test_an_expectation_of_the_old_epoch_is_a_conflict(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    stream = Stream(a)
    stream.append(b"1", call="one")
    cut_off(b, a)
    stream.server = b
    assert stream.append(b"2", call="two", expected=("one", 1)) == [2, "two", 1, 1]
    assert stream.append(b"2", call="three", expected=("two", 1)) == [0, "two", 2, 0]


def test_what_the_old_primary_took_alone_is_a_rollback(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    stream = Stream(a)
    stream.append(b"1", b"2", call="one")
    cut_off(b, a)
    assert stream.append(b"lost", keys=("k",)) == [0, "one", 3, 0]  # acknowledged, and on a alone
    stream.server = b
    assert stream.append(b"other", call="two")[:3] == [0, "two", 3]
    page = stream.read(("one", 3))
    assert locate(
        ("one", 3) and _at("one", 3), epoch=page.epoch, top=3, floor=0, takeovers=page.takeovers
    ) == (
        2,
        "rollback",
    )
    assert (page.start, page.payloads) == (2, [b"other"])
    # What was lost may be sent again.
    assert stream.append(b"lost", keys=("k",))[0] == 0


def test_from_a_to_b_and_back_to_a(servers: tuple[RedisServer, RedisServer]) -> None:
    """The run id of the server that wrote last would be a's both times."""
    a, b = servers
    stream = Stream(a)
    stream.append(b"1", b"2", call="one")
    cut_off(b, a)
    stream.append(b"lost on a")  # one:3
    stream.server = b
    stream.append(b"3", b"4", call="two")  # two:4
    follow(a, b)  # a forgets what it took alone
    cut_off(a, b)
    stream.append(b"lost on b")  # two:5
    stream.server = a
    stream.append(b"5", call="three")
    page = stream.read()
    assert page.epoch == "three"
    assert page.takeovers == [("one", 2), ("two", 4)]
    assert page.payloads == [b"1", b"2", b"3", b"4", b"5"]
    for since, start in (
        (("one", 2), 2),
        (("one", 3), 2),  # rollback: 3 is another one now
        (("two", 4), 4),
        (("two", 5), 4),  # rollback
        (("three", 5), 5),
    ):
        assert stream.read(since).start == start, since


def test_a_restart_is_a_takeover_because_the_end_may_be_missing() -> None:
    with RedisServer("redis") as server:  # with an append-only file
        stream = Stream(server)
        stream.append(b"1", call="one")
        kept = server.keep()
        stream.append(b"2")
        server.roll_back(kept)
        assert stream.append(b"other", call="two") == [0, "two", 2, 1]
        assert stream.read(("one", 2)).start == 1


def test_the_last_sixteen_takeovers_are_known(servers: tuple[RedisServer, RedisServer]) -> None:
    a, _ = servers
    stream = Stream(a)
    for number in range(20):
        stream.append(b"x", call=f"e{number}")
        a.command("HSET", stream.meta, "server", "another")
    page = stream.read()
    assert page.takeovers == [(f"e{number}", number + 1) for number in range(4, 20)]
    assert stream.read(("e4", 5)).start == 5
    assert stream.read(("e3", 4)).start == 0  # nobody knows any more


def test_clearing_ends_what_was_known_of_takeovers(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    stream = Stream(a)
    stream.append(b"x", call="one")
    cut_off(b, a)
    stream.server = b
    stream.clear()
    assert stream.read().takeovers == []


def test_a_replica_refuses(servers: tuple[RedisServer, RedisServer]) -> None:
    from tests.support.redises import RedisError

    _, b = servers
    for act in (Stream(b).read, lambda: Stream(b).append(b"x"), State(b).entries):
        with pytest.raises(RedisError, match="^READONLY"):
            act()


def test_revisions_are_counted_in_a_new_epoch(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    state = State(a)
    state.revise({"a": b"1"})
    first = state.revise({"a": b"2"})
    assert first is not None
    cut_off(b, a)
    lost = state.revise({"a": b"lost"})
    assert lost == (first[0], 3)
    state.server = b
    # Told so before anybody revised: 2 of the old epoch would be a step back for who knows of 3.
    epoch, count, fields = state.revision()
    assert (count, fields) == (0, {"a": b"2"})
    assert epoch not in ("", first[0])
    assert state.revise({"a": b"3"}) == (epoch, 1)
    assert state.revision()[:2] == (epoch, 1)


def test_the_first_to_revise_begins_it(servers: tuple[RedisServer, RedisServer]) -> None:
    a, b = servers
    state = State(a)
    first = state.revise({"a": b"1"})
    cut_off(b, a)
    state.server = b
    second = state.revise({"a": b"2"})
    assert first is not None and second is not None
    assert second[0] != first[0] and second[1] == 1
    follow(a, b)
    cut_off(a, b)
    state.server = a
    assert state.revise({"a": b"3"}) not in ((first[0], 2), (second[0], 2))


def _at(epoch: str, offset: int):  # type: ignore[no-untyped-def]
    from rtkit.position import Position

    return Position(epoch, offset)
