"""The scripts that run inside Redis: each is one act, because nothing else happens there meanwhile.

Their texts are the files in ``lua/``, which say what they take and answer. A script is put together
from what all have in common, what streams or states have in common, and its own part.

They ask for Redis 7.0 (``#!lua`` and its flags, ``PEXPIRETIME``), or any Valkey. Whoever runs them has to be allowed:
see :data:`COMMANDS`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Final

__all__ = [
    "APPEND",
    "CLEAR",
    "COMMANDS",
    "ENTRIES",
    "PUT",
    "READ",
    "REMOVE",
    "RENEW",
    "REVISE",
    "REVISION",
    "SCRIPTS",
    "Script",
]

#: The commands that the scripts use; an ACL has to allow them to whoever runs the scripts.
COMMANDS: Final = (
    *("info", "time"),
    *("exists", "unlink", "pttl", "pexpire", "pexpireat", "pexpiretime", "get", "set"),
    *("hmget", "hset", "hlen", "hget", "hdel", "hgetall"),
    *("xadd", "xlen", "xrange", "xrevrange", "xtrim"),
    *("zadd", "zrem", "zcard", "zscore", "zrangebyscore", "zrevrange"),
    *("publish", "spublish"),
)


@dataclass(frozen=True, slots=True)
class Script:
    """A script.

    :param name: what log lines call it.
    :ivar sha: what ``EVALSHA`` calls it.
    """

    name: str
    text: str = field(repr=False)
    sha: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Not for security: it is what Redis calls scripts by.
        sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)


def _read(part: str) -> str:
    return (files("rtkit.brokers.redis") / "lua" / f"{part}.lua").read_text("utf-8")


def _script(name: str, on: str, *, grows: bool = False) -> Script:
    # A server that is out of memory refuses a script as a whole, before it begins. Those that make nothing larger, or
    # next to nothing, are run all the same: who is served must be able to read.
    flags = "" if grows else " flags=allow-oom"
    return Script(name, f"#!lua{flags}\n{_read('common')}\n{_read(on)}\n{_read(name)}")


# KEYS and ARGV, and what is answered, are told in the files.
APPEND: Final = _script("append", "stream", grows=True)
READ: Final = _script("read", "stream")
CLEAR: Final = _script("clear", "stream")

PUT: Final = _script("put", "state", grows=True)
RENEW: Final = _script("renew", "state")
REMOVE: Final = _script("remove", "state")
ENTRIES: Final = _script("entries", "state")
REVISE: Final = _script("revise", "state", grows=True)
REVISION: Final = _script("revision", "state")

SCRIPTS: Final = (APPEND, READ, CLEAR, PUT, RENEW, REMOVE, ENTRIES, REVISE, REVISION)
