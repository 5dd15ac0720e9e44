from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import exceptions
from redis._parsers.base import BaseParser

from rtkit.brokers.redis.refusals import Verdict, code_of, describe, elsewhere, judge, refusal

# As servers say them. Those from scripts have the script's name behind them.
LINES = {
    "NOSCRIPT No matching script. Please use EVAL.": Verdict.NO_SCRIPT,
    "MOVED 3999 127.0.0.1:6381": Verdict.MOVED,
    "ASK 3999 127.0.0.1:6381": Verdict.ASK,
    "LOADING Redis is loading the dataset in memory": Verdict.SOON,
    "TRYAGAIN Multiple keys request during rehashing of slot": Verdict.SOON,
    "CLUSTERDOWN The cluster is down": Verdict.SOON,
    "CLUSTERDOWN Hash slot not served": Verdict.SOON,
    "READONLY You can't write against a read only replica.": Verdict.ELSEWHERE,
    "READONLY You can't write against a read only replica. script: 0a, on @user_script:1.": Verdict.ELSEWHERE,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": Verdict.ELSEWHERE,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": Verdict.ELSEWHERE,
    "NOAUTH Authentication required.": Verdict.ELSEWHERE,
    "WRONGPASS invalid username-password pair or user is disabled.": Verdict.ELSEWHERE,
    "OOM command not allowed when used memory > 'maxmemory'. script: 0a, on @user_script:1.": Verdict.REFUSED,
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": Verdict.REFUSED,
    "NOREPLICAS Not enough good replicas to write.": Verdict.REFUSED,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": Verdict.REFUSED,
    "NOPERM this user has no permissions to run the 'info' command": Verdict.REFUSED,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Verdict.REFUSED,
    "RTDAMAGED the meta of this stream is no hash": Verdict.REFUSED,
    "CROSSSLOT Keys in request don't hash to the same slot": Verdict.REFUSED,
    "ERR unknown command 'SPUBLISH'": Verdict.REFUSED,
}


def parsed(line: str) -> Exception:
    """The exception that redis-py makes of it."""
    parse: Callable[[str], Exception] = getattr(BaseParser, "parse_error")  # noqa: B009 - untyped
    return parse(line)


@pytest.mark.parametrize("line", LINES)
def test_what_follows_from_an_error_reply_is_told_by_its_first_word(line: str) -> None:
    error = parsed(line)
    assert judge(error, script=True) is LINES[line]
    assert code_of(error) == line.split(maxsplit=1)[0]


def test_a_script_that_broke_off_in_its_middle_may_have_done_something() -> None:
    error = parsed("ERR value is not an integer or out of range script: 0a, on @user_script:3.")
    assert judge(error, script=True) is Verdict.UNSURE
    assert judge(error) is Verdict.REFUSED


def test_it_works_with_a_redis_py_that_cuts_the_first_word_off_and_with_one_that_does_not() -> None:
    for error in (
        exceptions.OutOfMemoryError("command not allowed"),
        exceptions.ResponseError("OOM command not allowed"),
    ):
        assert code_of(error) == "OOM"
        assert describe(error) == "it has no memory left (maxmemory) (OOM command not allowed)"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381)),
        ("ASK 0 redis-2.example:6379", (0, "redis-2.example", 6379)),
        ("MOVED 16383 :6381", (16383, "", 6381)),
        ("MOVED 5 ::1:6381", (5, "::1", 6381)),
    ],
)
def test_where_moved_and_ask_point_to(line: str, place: tuple[int, str, int]) -> None:
    assert elsewhere(parsed(line)) == place


def test_what_points_nowhere_points_nowhere() -> None:
    assert elsewhere(exceptions.ResponseError("MOVED")) is None


def test_what_is_raised_says_what_an_operator_has_to_know() -> None:
    text = str(refusal(parsed("NOREPLICAS Not enough good replicas to write."), "db:6379"))
    assert "db:6379" in text
    assert "min-replicas-to-write" in text
    assert "Not enough good replicas" in text


def test_any_error_has_a_description_of_one_line() -> None:
    assert describe(OSError("no\nroute")) == "OSError: no route"
    assert describe(ValueError()) == "ValueError"
    assert (
        describe(exceptions.ConnectionError("Error 111 connecting to db:6379."))
        == "Error 111 connecting to db:6379."
    )
