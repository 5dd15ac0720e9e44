"""The scripts of streams, on real servers: what they do when what they find is not what they left."""

from __future__ import annotations

import pytest

from rtkit.brokers.redis import scripts
from tests.support.redis_scripts import HOUR, Stream, run
from tests.support.redises import RedisError, RedisServer


@pytest.fixture
def stream(any_redis: RedisServer) -> Stream:
    return Stream(any_redis)


def test_a_stream_is_numbered_from_1_in_an_epoch_of_the_callers_making(stream: Stream) -> None:
    assert stream.append(b"a", call="first") == [0, "first", 1, 0]
    assert stream.append(b"b", call="second") == [0, "first", 2, 0]
    assert stream.kept() == [("1-0", b"a"), ("2-0", b"b")]


def test_what_is_written_expires(stream: Stream) -> None:
    stream.append(b"a", keys=("k",))
    month = 30 * 24 * HOUR
    assert month <= stream.server.command("PTTL", stream.meta) <= 2 * month
    assert HOUR <= stream.server.command("PTTL", stream.entries) <= 2 * HOUR
    assert HOUR - 60_000 < stream.server.command("PTTL", stream.place.key("k")) <= HOUR


def test_meta_lives_twice_the_ttl_if_that_is_longer(stream: Stream) -> None:
    stream.ttl = 40 * 24 * HOUR
    stream.append(b"a")
    assert stream.server.command("PTTL", stream.meta) >= 80 * 24 * HOUR


def test_reading_has_meta_live_on(stream: Stream) -> None:
    stream.append(b"a")
    stream.server.command("PEXPIRE", stream.meta, HOUR)
    stream.read()
    assert stream.server.command("PTTL", stream.meta) >= 30 * 24 * HOUR


def test_reading_what_stands_writes_nothing(stream: Stream) -> None:
    stream.append(b"a")
    before = stream.server.info("replication")["master_repl_offset"]
    dirty = stream.server.info("persistence")["rdb_changes_since_last_save"]
    stream.read(("x", 3))
    assert stream.server.info("persistence")["rdb_changes_since_last_save"] == dirty
    assert stream.server.info("replication")["master_repl_offset"] == before


def test_the_largest_bounds_are_no_trouble(stream: Stream) -> None:
    stream.count = stream.size = 2**53
    stream.ttl = 100 * 366 * 86_400_000
    stream.append(b"a")
    assert stream.append(b"b")[2] == 2
    assert stream.read(bounds=(2**53, 2**53, stream.ttl)).payloads == [b"a", b"b"]


def test_offsets_beyond_what_lua_writes_as_digits(stream: Stream) -> None:
    stream.append(b"a")
    far = 123_456_789_012_345_678 // 100
    stream.server.command("HSET", stream.meta, "top", far, "floor", far, "bytes", 0)
    assert stream.append(b"b", keys=("k",))[2] == far + 1
    assert stream.read().payloads == [b"b"]
    assert stream.append(b"b", keys=("k",))[3] == far + 1


# -- what is gone


def test_meta_gone_is_a_new_epoch_and_the_entries_go_too(stream: Stream) -> None:
    stream.append(b"a", b"b", call="old")
    stream.server.command("DEL", stream.meta)
    page = stream.read(("old", 1))
    assert (page.top, page.floor, page.payloads, page.takeovers) == (0, 0, [], [])
    assert page.epoch != "old"
    assert stream.kept() == []
    assert stream.append(b"c")[1:3] == [page.epoch, 1]


def test_meta_gone_is_a_new_epoch_for_who_appends(stream: Stream) -> None:
    stream.append(b"a", b"b", call="old")
    stream.server.command("DEL", stream.meta)
    assert stream.append(b"c", call="new")[:3] == [0, "new", 1]
    assert stream.kept() == [("1-0", b"c")]


def test_entries_gone_are_trimmed(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.server.command("DEL", stream.entries)
    page = stream.read(("e", 1))
    assert (page.epoch, page.top, page.floor, page.start, page.payloads) == ("e", 2, 2, 2, [])
    assert stream.append(b"c")[1:3] == ["e", 3]
    assert stream.read(("e", 2)).payloads == [b"c"]
    assert stream.told()["bytes"] == "1"


def test_entries_gone_are_noticed_by_who_appends(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.server.command("DEL", stream.entries)
    assert stream.append(b"c")[1:3] == ["e", 3]
    page = stream.read()
    assert (page.floor, page.payloads) == (2, [b"c"])


@pytest.mark.parametrize("victim", ["1-0", "2-0", "3-0"])
def test_one_entry_gone_is_all_of_them_trimmed(stream: Stream, victim: str) -> None:
    stream.append(b"a", b"b", b"c", call="e")
    stream.server.command("XDEL", stream.entries, victim)
    page = stream.read(("e", 0))
    assert (page.top, page.floor, page.payloads) == (3, 3, [])
    assert stream.kept() == []


def test_an_entry_of_somebody_elses_is_never_shown(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.server.command("XDEL", stream.entries, "2-0")
    stream.server.command("XADD", stream.entries, "7-7", "p", "forged", "t", "1")
    page = stream.read()
    assert (page.top, page.floor, page.payloads) == (2, 2, [])
    assert stream.append(b"c")[1:3] == ["e", 3]
    assert stream.read().payloads == [b"c"]


def test_an_entry_that_stands_higher_is_in_nobodys_way(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.server.command("XDEL", stream.entries, "2-0")
    stream.server.command("XADD", stream.entries, "7-7", "p", "forged", "t", "1")
    assert stream.append(b"c", b"d")[1:3] == ["e", 4]
    page = stream.read()
    assert (page.floor, page.payloads) == (2, [b"c", b"d"])
    assert stream.told()["bytes"] == "2"


def test_an_entry_of_another_shape_is_never_shown(stream: Stream) -> None:
    stream.append(b"a", call="e")
    stream.server.command("XDEL", stream.entries, "1-0")
    stream.server.command("XADD", stream.entries, "1-1", "x", "y")
    stream.append(b"b")
    assert stream.read(reverse=True).payloads == []
    assert stream.read().floor == 2


def test_an_entry_of_somebody_elses_is_noticed_by_who_trims(stream: Stream) -> None:
    stream.count = 2
    stream.append(b"a", b"b", call="e")
    stream.server.command("XDEL", stream.entries, "1-0")
    stream.server.command("XADD", stream.entries, "2-1", "x", "y")
    assert stream.append(b"c")[1:3] == ["e", 3]
    page = stream.read()
    assert (page.top, page.floor, page.payloads) == (3, 3, [])


# -- what is something else


def rejected(stream: Stream, key: str) -> None:
    before = stream.server.command("DUMP", key)
    others = [each for each in stream.place.stream if each != key]
    kept = [stream.server.command("DUMP", each) for each in others]
    for act in (stream.read, stream.clear, lambda: stream.append(b"x", keys=("k",))):
        with pytest.raises(RedisError, match=r"^RTDAMAGED the key t.*:\{r\}:room"):
            act()
    assert stream.server.command("DUMP", key) == before
    assert [stream.server.command("DUMP", each) for each in others] == kept
    assert stream.server.command("EXISTS", stream.place.key("k")) == 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_key_of_another_type_is_left_alone(stream: Stream, which: int) -> None:
    stream.append(b"a")
    key = stream.place.stream[which]
    stream.server.command("SET", key, "something else")
    rejected(stream, key)


@pytest.mark.parametrize("name", ["top", "floor", "bytes", "oldest", "takeovers", "size"])
def test_meta_that_was_damaged_is_left_alone(stream: Stream, name: str) -> None:
    stream.append(b"a")
    stream.server.command("HDEL", stream.meta, name)
    for act in (stream.read, lambda: stream.append(b"x")):
        with pytest.raises(RedisError, match="^RTDAMAGED"):
            act()
    assert stream.kept() == [("1-0", b"a")]
    # What helps is said by the error, and is what clear() does.
    assert stream.clear()
    assert stream.append(b"b")[2] == 1


@pytest.mark.parametrize("value", ["", "-1", "1.5", "nan", "inf", "1e300", "x"])
def test_a_number_that_is_none_is_damage(stream: Stream, value: str) -> None:
    stream.append(b"a")
    stream.server.command("HSET", stream.meta, "top", value)
    with pytest.raises(RedisError, match="^RTDAMAGED"):
        stream.read()


def test_a_hash_without_an_epoch_is_somebody_elses(stream: Stream) -> None:
    stream.server.command("HSET", stream.meta, "mine", "1")
    with pytest.raises(RedisError, match="^RTDAMAGED"):
        stream.append(b"x")
    assert stream.told() == {"mine": "1"}


def test_an_idempotency_key_of_another_type_or_shape_is_left_alone(stream: Stream) -> None:
    key = stream.place.key("k")
    stream.server.command("LPUSH", key, "x")
    with pytest.raises(RedisError, match="^RTDAMAGED"):
        stream.append(b"x", keys=("k",))
    stream.server.command("SET", key, "x")
    with pytest.raises(RedisError, match="^RTDAMAGED"):
        stream.append(b"x", keys=("k",))
    assert stream.server.command("EXISTS", stream.meta, stream.entries) == 0


# -- repeats


def test_a_repeat_answers_with_the_first_and_does_nothing_else(stream: Stream) -> None:
    stream.append(b"a", keys=("k",), call="one")
    before = stream.told()
    assert stream.append(b"b", keys=("k",), call="two", expected=("x", 9)) == [1, 1, "one", 1]
    assert stream.told() == before
    assert stream.kept() == [("1-0", b"a")]


def test_of_several_all_repeats_are_told_and_nothing_is_done(stream: Stream) -> None:
    stream.append(b"a", b"b", keys=("k", None), call="one")
    stream.append(b"c", keys=("l",))
    again = stream.append(b"w", b"x", b"y", b"z", keys=(None, "l", "new", "k"), call="two")
    assert again == [1, 2, "one", 3, 4, "one", 1]
    assert stream.read().top == 3
    assert stream.server.command("EXISTS", stream.place.key("new")) == 0


@pytest.mark.parametrize("keys", [("k", None, None), (None, "k", None), (None, None, "k"), ("k", "l", None)])
def test_a_call_that_is_made_again_is_no_repeat(stream: Stream, keys: tuple[str | None, ...]) -> None:
    # Its answer was lost, and so it is asked for again: with the same name of the call.
    stream.append(b"0", call="e")
    first = stream.append(b"a", b"b", b"c", keys=keys, call="mine")
    again = stream.append(b"a", b"b", b"c", keys=keys, call="mine")
    assert first == again == [0, "e", 4, 0]
    assert stream.read().top == 4
    assert stream.append(b"a", b"b", b"c", keys=keys, call="another's")[0] == 1


def test_a_repeat_writes_when_it_is_to_be_replicated_and_keeps_the_window(stream: Stream) -> None:
    stream.append(b"a", keys=("k",))
    stream.server.command("PEXPIRE", stream.place.key("k"), 5000)
    value = stream.server.command("GET", stream.place.key("k"))

    def changes() -> int:
        return int(stream.server.info("persistence")["rdb_changes_since_last_save"])

    before = changes()
    stream.append(b"a", keys=("k",))
    assert changes() == before
    stream.append(b"a", keys=("k",), touch=True)
    assert changes() > before, "WAIT would wait for nothing"
    assert 0 < stream.server.command("PTTL", stream.place.key("k")) <= 5000
    assert stream.server.command("GET", stream.place.key("k")) == value


# -- bounds


def test_trimmed_by_count(stream: Stream) -> None:
    stream.count = 3
    for number in range(10):
        stream.append(b"%d" % number)
        assert len(stream.kept()) == min(number + 1, 3)
    assert stream.append(*[b"x"] * 300)[2] == 310
    assert [name for name, _ in stream.kept()] == ["308-0", "309-0", "310-0"]
    assert (stream.told()["floor"], stream.told()["bytes"]) == ("307", "3")


def test_trimmed_by_bytes(stream: Stream) -> None:
    stream.size = 250
    for number in range(5):
        stream.append(b"%d" % number * 100)
        assert int(stream.told()["bytes"]) == sum(len(payload) for _, payload in stream.kept()) <= 250
    assert stream.read().start == 3


def test_the_newest_is_kept_however_large(stream: Stream) -> None:
    stream.size = 10
    stream.append(b"x" * 100)
    stream.append(b"y" * 100, b"z" * 100)
    assert stream.kept() == [("3-0", b"z" * 100)]


@pytest.mark.parametrize(
    "bounds", [{"count": 80}, {"size": 800}, {"count": 80, "size": 820}, {"count": 1000, "size": 800}]
)
def test_what_is_kept_too_long_is_an_eighth_at_the_most_and_never_shown(
    stream: Stream, bounds: dict[str, int]
) -> None:
    for name, bound in bounds.items():
        setattr(stream, name, bound)
    most = 0
    for number in range(300):
        stream.append(b"x" * 10)
        length = stream.server.command("XLEN", stream.entries)
        most = max(most, length)
        if number in (79, 80, 85, 200, 299):
            page = stream.read()
            assert len(page.payloads) == min(number + 1, 80)
            assert page.floor == max(0, number - 79)
    assert most == 90, "it was trimmed too late, or with each append"
    assert int(stream.told()["bytes"]) == 800


def test_what_has_aged_is_kept_too_long_by_an_eighth_of_its_time(stream: Stream) -> None:
    stream.append(b"a", call="e")
    now = int(stream.server.command("TIME")[0]) * 1000

    def older(milliseconds: int) -> None:
        stream.server.command("DEL", stream.entries)
        stream.server.command("XADD", stream.entries, "1-0", "p", "a", "t", now - milliseconds)
        stream.server.command("HSET", stream.meta, "top", 1, "oldest", now - milliseconds)

    older(HOUR + HOUR // 9)
    stream.append(b"b")
    assert len(stream.kept()) == 2
    assert stream.read().payloads == [b"b"]
    older(HOUR + HOUR // 7)
    stream.server.command("HSET", stream.meta, "floor", 0)
    stream.append(b"b")
    assert len(stream.kept()) == 1


def test_narrower_bounds_trim_many_at_once(stream: Stream) -> None:
    stream.append(*[b"%d" % number for number in range(1000)])
    stream.count = 5
    stream.append(b"last")
    assert [name for name, _ in stream.kept()] == [f"{n}-0" for n in range(997, 1002)]
    assert stream.told()["bytes"] == str(4 * 3 + 4)


def test_reading_with_bounds_trims_to_them(stream: Stream) -> None:
    stream.append(*[b"x"] * 10)
    assert stream.read(bounds=(4, 1000, HOUR)).floor == 6
    assert stream.read(bounds=(9, 3, HOUR)).floor == 7
    assert stream.read().payloads == [b"x"] * 3


def test_trimmed_by_age(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.grow_older(1800.0)
    stream.append(b"c")
    assert stream.read().payloads == [b"a", b"b", b"c"]
    assert stream.read(bounds=(100, 1000, 2 * HOUR)).payloads == [b"a", b"b", b"c"]
    stream.grow_older(1801.0)
    page = stream.read(("e", 1))
    assert (page.floor, page.start, page.payloads) == (2, 2, [b"c"])
    stream.grow_older(1800.0)
    page = stream.read()
    assert (page.epoch, page.top, page.floor, page.payloads) == ("e", 3, 3, [])
    assert stream.server.command("EXISTS", stream.entries) == 0
    assert stream.append(b"d")[1:3] == ["e", 4]


def test_only_what_has_aged_is_trimmed_by_age(stream: Stream) -> None:
    stream.append(b"a", b"b", call="e")
    stream.append(b"c")
    # Two entries of long ago.
    for offset in (1, 2, 3):
        stream.server.command("XDEL", stream.entries, f"{offset}-0")
    now = int(stream.server.command("TIME")[0]) * 1000
    stream.server.command("DEL", stream.entries)
    for offset, at in ((1, now - 2 * HOUR), (2, now - HOUR - 1), (3, now - HOUR + 60_000)):
        stream.server.command("XADD", stream.entries, f"{offset}-0", "p", "x", "t", at)
    stream.server.command("HSET", stream.meta, "oldest", now - 2 * HOUR)
    page = stream.read(("e", 0))
    assert (page.floor, page.start, page.payloads) == (2, 2, [b"x"])
    assert int(stream.told()["oldest"]) == now - HOUR + 60_000


def test_what_has_aged_by_the_old_bounds_is_gone_before_new_ones_count(stream: Stream) -> None:
    stream.append(b"a", call="e")
    now = int(stream.server.command("TIME")[0]) * 1000
    stream.server.command("DEL", stream.entries)
    stream.server.command("XADD", stream.entries, "1-0", "p", "a", "t", now - 2 * HOUR)
    stream.server.command("HSET", stream.meta, "oldest", now - 2 * HOUR)
    stream.ttl = 3 * HOUR
    stream.append(b"b")
    assert stream.kept() == [("2-0", b"b")]


def test_wider_bounds_bring_nothing_back(stream: Stream) -> None:
    stream.count = 80
    stream.append(*[b"x"] * 85)
    assert len(stream.kept()) == 85  # five of them are beyond the bounds, and to nobody's eyes
    stream.count = 1000
    stream.append(b"y")
    assert stream.read().floor == 5


# -- expectations


def test_an_append_that_expects_something_else_leaves_everything(stream: Stream) -> None:
    stream.append(b"a", call="e")
    for expected in (("e", 0), ("e", 2), ("other", 1), ("", 1)):
        assert stream.append(b"b", keys=("k",), expected=expected) == [2, "e", 1, 0]
    assert stream.append(b"b", keys=("k",), expected=("e", 1)) == [0, "e", 2, 0]


# -- pages


def test_a_page_has_so_many_bytes_at_the_most_and_one_entry_at_the_least(stream: Stream) -> None:
    stream.append(*[b"%d" % number * 100 for number in range(5)], call="e")
    assert len(stream.read(most=250).payloads) == 2
    assert len(stream.read(most=1).payloads) == 1
    back = stream.read(most=250, reverse=True)
    assert (back.start, [payload[:1] for payload in back.payloads]) == (5, [b"4", b"3"])


def test_a_long_page_comes_in_one_piece(stream: Stream) -> None:
    stream.append(*[b"%d" % number for number in range(1000)])
    assert stream.read(limit=1000).payloads == [b"%d" % number for number in range(1000)]
    assert stream.read(limit=999, reverse=True).payloads == [b"%d" % n for n in range(999, 0, -1)]
    assert stream.read(limit=0).payloads == []


# -- clearing


def test_clearing_begins_anew_and_keeps_the_keys(stream: Stream) -> None:
    stream.append(b"a", b"b", keys=("k",), call="old")
    fresh = stream.clear()
    page = stream.read(("old", 1))
    assert (page.epoch, page.top, page.floor, page.payloads, page.takeovers) == (fresh, 0, 0, [], [])
    assert stream.kept() == []
    assert stream.append(b"a", keys=("k",)) == [1, 1, "old", 1]
    assert stream.append(b"c")[1:3] == [fresh, 1]
    assert stream.server.command("PTTL", stream.meta) > HOUR


# -- limits of the server


def test_out_of_memory_nothing_is_appended_and_reading_goes_on() -> None:
    with RedisServer("redis", appendonly="no", maxmemory_policy="noeviction") as server:
        stream = Stream(server)
        stream.append(b"a", call="e")
        server.set("maxmemory", "1")
        with pytest.raises(RedisError, match="^OOM"):
            stream.append(b"b", keys=("k",))
        assert server.command("EXISTS", stream.place.key("k")) == 0
        page = stream.read()
        assert (page.top, page.payloads) == (1, [b"a"])
        # A stream of which nothing is known is begun, so that there is a position to hand out.
        assert Stream(server).read().top == 0


def test_a_user_who_may_use_these_commands_and_no_others_can_run_all_scripts(any_redis: RedisServer) -> None:
    commands = [f"+{name}" for name in (*scripts.COMMANDS, "eval", "evalsha")]
    any_redis.command("ACL", "SETUSER", "app", "on", ">secret", "~rt:*", "&rt:*", "-@all", *commands)
    stream = ("rt:{r}:room:m", "rt:{r}:room:s", "rt:{r}:room:k:1")
    values = ("rt:{r}:x:f", "rt:{r}:x:l", "rt:{r}:x:v")
    far = 10**9
    append = ("e", "PUBLISH", "rt:{r}:room", 1, 9, far, far, 1, "", "", b"a", 1)
    calls = [
        (scripts.APPEND, stream, append),
        (scripts.APPEND, stream, ("f", *append[1:])),
        (scripts.APPEND, stream[:2], (*append[:-1], 0, "b", 0)),
        (scripts.READ, stream[:2], ("e", "", "", 9, far, 0, "", "", "")),
        (scripts.READ, stream[:2], ("e", "", "", 9, far, 1, "", "", "")),
        (scripts.CLEAR, stream[:2], ("e",)),
        (scripts.PUT, values, ("f", "v", far, "any")),
        (scripts.RENEW, values, (far, "f")),
        (scripts.REVISE, values, ("e", "PUBLISH", "rt:{r}:x", "p", 0, 0, "g", 1, "v")),
        (scripts.REVISION, values, ("e", 1)),
        (scripts.ENTRIES, values, ()),
        (scripts.REMOVE, values, ("f", "any")),
    ]
    try:
        for script, keys, args in calls:
            # Redis would tell of a command that is not allowed only when it comes to it: ours do not depend on luck.
            assert (
                any_redis.command("ACL", "DRYRUN", "app", "EVAL", script.text, len(keys), *keys, *args)
                == b"OK"
            )
            as_user(any_redis, script, keys, args)
    finally:
        any_redis.command("ACL", "DELUSER", "app")
        any_redis.command("DEL", *stream, *values)


def as_user(
    server: RedisServer, script: scripts.Script, keys: tuple[str, ...], args: tuple[object, ...]
) -> None:
    from tests.support import redises

    with redises._Wire(server.host, server.port, 5) as wire:
        wire.ask("AUTH", "app", "secret")
        reply = wire.ask("EVAL", script.text, len(keys), *keys, *args)  # type: ignore[arg-type]
        assert not isinstance(reply, Exception), (script, reply)


def test_what_could_not_be_published_is_not_said_to_be_undone(any_redis: RedisServer) -> None:
    stream = Stream(any_redis)
    with pytest.raises(RedisError, match="^RTUNPUBLISHED"):
        run(
            any_redis,
            scripts.APPEND,
            stream.place.stream,
            *("e", "PUBLISH-NOT", stream.place.channel, 1, 9, HOUR, HOUR, 0, "", "", b"a", 0),
        )
    assert stream.read().top == 1
