"""What Redis' error replies mean for who asked.

An error reply is an answer: the server is there, and tells in its first word why it did not do it. A few things can
follow (:class:`Verdict`); which one is told by that word alone. The one case in which an error does not say that
nothing was done is a script that broke off in its middle.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from redis import exceptions

from ...errors import BrokerUnavailable

__all__ = ["Verdict", "code_of", "describe", "elsewhere", "judge", "refusal"]


class Verdict(Enum):
    """What to do about an error reply."""

    #: Send the script itself, and not only its hash.
    NO_SCRIPT = "no script"
    #: Another server of the Cluster has the slot.
    MOVED = "moved"
    #: Another server of the Cluster has it for this command alone.
    ASK = "ask"
    #: Nothing was done, and the same server may do it in a moment.
    SOON = "soon"
    #: Nothing was done, and this connection will not do: look the server up again.
    ELSEWHERE = "elsewhere"
    #: Nothing was done, and trying again at once would not help.
    REFUSED = "refused"
    #: Some of it may have been done.
    UNSURE = "unsure"


_VERDICTS: Final = {
    "NOSCRIPT": Verdict.NO_SCRIPT,
    "MOVED": Verdict.MOVED,
    "ASK": Verdict.ASK,
    "LOADING": Verdict.SOON,
    "TRYAGAIN": Verdict.SOON,
    "CLUSTERDOWN": Verdict.SOON,
    "READONLY": Verdict.ELSEWHERE,
    "MASTERDOWN": Verdict.ELSEWHERE,
    "NOMASTERLINK": Verdict.ELSEWHERE,
    "UNBLOCKED": Verdict.ELSEWHERE,
    "NOAUTH": Verdict.ELSEWHERE,
    "WRONGPASS": Verdict.ELSEWHERE,
    "RTUNPUBLISHED": Verdict.UNSURE,
}

# redis-py cuts the first word off errors that it has a class for.
_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthorizationError, "NOPERM"),
)

# What an operator has to know, in front of the server's own words.
_MEANINGS: Final = {
    "OOM": "it has no memory left (maxmemory)",
    "MISCONF": "it cannot write to its disk, and takes no writes until it can",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write asks for",
    "BUSY": "it is busy with a script",
    "NOPERM": "the user lacks a permission (ACL)",
    "NOAUTH": "it wants another password",
    "WRONGPASS": "it wants another password",
    "WRONGTYPE": "one of our keys holds something that is not ours",
    "RTDAMAGED": "what it keeps for us was damaged",
    "RTUNPUBLISHED": "it has written, but nobody was told",
    "CROSSSLOT": "keys that belong together are in different slots",
    "LOADING": "it is still loading its data",
    "TRYAGAIN": "a slot is just moving",
    "CLUSTERDOWN": "its Cluster is down",
    "READONLY": "it is a replica",
    "MASTERDOWN": "it is a replica that lost its primary",
    "MOVED": "it is part of a Cluster: use redis+cluster://",
    "ASK": "it is part of a Cluster: use redis+cluster://",
}

_WORD: Final = re.compile(r"-?([A-Z][A-Z0-9_]{2,})(?: |$)")


def code_of(error: Exception) -> str:
    """The first word of an error reply: ``OOM``, ``MOVED``; ``ERR`` where there is none."""
    told = getattr(error, "status_code", None)  # newer ones keep it
    if told and told != "ERR":
        return str(told)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    match = _WORD.match(str(error))
    return match[1] if match else "ERR"


def judge(error: Exception, *, script: bool = False) -> Verdict:
    """What to do about an error reply.

    :param script: a script was answered. Its unknown errors may come from its middle.
    """
    code = code_of(error)
    verdict = _VERDICTS.get(code)
    if verdict is not None:
        return verdict
    if script and code == "ERR" and "script" in str(error).lower():
        return Verdict.UNSURE
    return Verdict.REFUSED


def elsewhere(error: Exception) -> tuple[int, str, int] | None:
    """The slot, host and port that ``MOVED`` or ``ASK`` names; an empty host is that of who answered."""
    match = re.search(r"(\d+) (\S*):(\d+)$", str(error))
    return (int(match[1]), match[2], int(match[3])) if match else None


def describe(error: BaseException) -> str:
    """An error in one line, for logs and messages."""
    text = " ".join(str(error).split())
    if isinstance(error, exceptions.RedisError):
        code = code_of(error)
        meaning = _MEANINGS.get(code)
        said = text if code == "ERR" or text.startswith(code) else f"{code} {text}"
        return f"{meaning} ({said})" if meaning else said or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def refusal(error: Exception, server: object) -> BrokerUnavailable:
    """What is raised when a server refuses for good."""
    return BrokerUnavailable(f"Redis at {server} refuses: {describe(error)}")
