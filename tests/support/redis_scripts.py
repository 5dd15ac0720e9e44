"""The scripts of the Redis broker, asked directly: one blocking call each, without the broker."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from rtkit.brokers.redis import scripts
from rtkit.brokers.redis.names import Names, Place
from rtkit.brokers.redis.scripts import Script
from tests.support.redises import RedisServer

__all__ = ["Page", "State", "Stream", "age", "epochs", "run"]

HOUR = 3_600_000


def run(server: RedisServer, script: Script, keys: tuple[str, ...], *args: bytes | str | float) -> Any:
    """Run a script; an error reply is raised as a RedisError."""
    return server.command("EVAL", script.text, len(keys), *keys, *args)


# Has everything under a prefix be so many milliseconds older: a server's clock cannot be moved, but what it keeps can.
_AGE = """
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
  local ends = redis.call('PEXPIRETIME', key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'stream' then
    local entries = redis.call('XRANGE', key, '-', '+')
    redis.call('DEL', key)
    for _, entry in ipairs(entries) do
      redis.call('XADD', key, entry[1], 'p', entry[2][2], 't', string.format('%.0f', entry[2][4] - ARGV[2]))
    end
  elseif kind == 'zset' then
    for _, field in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, -ARGV[2], field)
    end
  elseif kind == 'hash' and (tonumber(redis.call('HGET', key, 'oldest') or 0) or 0) > 0 then
    redis.call('HINCRBY', key, 'oldest', -ARGV[2])
  end
  if ends > 0 then
    redis.call('PEXPIREAT', key, string.format('%.0f', ends - ARGV[2]))
  end
end
"""


def age(server: RedisServer, prefix: str, seconds: float) -> None:
    """Let time pass for all that brokers with this prefix keep."""
    server.command("EVAL", _AGE, 0, prefix, round(seconds * 1000))


def epochs() -> str:
    """A name that no epoch had."""
    return secrets.token_urlsafe(9)


@dataclass
class Page:
    """What read.lua answers."""

    epoch: str
    top: int
    floor: int
    takeovers: list[tuple[str, int]]
    start: int
    payloads: list[bytes]
    taken_over: bool


@dataclass
class Stream:
    """One topic's stream.

    :ivar server: who is asked; may be exchanged for one that has its data.
    """

    server: RedisServer
    count: int = 1000
    size: int = 1_000_000
    ttl: int = HOUR
    window: int = HOUR
    place: Place = field(default_factory=lambda: Names(f"t{secrets.token_hex(6)}")("room:r"))

    @property
    def meta(self) -> str:
        return self.place.stream[0]

    @property
    def entries(self) -> str:
        return self.place.stream[1]

    def append(
        self,
        *payloads: bytes,
        keys: tuple[str | None, ...] = (),
        call: str | None = None,
        expected: tuple[str, int] | None = None,
        touch: bool = False,
    ) -> Any:
        """What append.lua answers, as a list that begins with 0 if it has appended, and with epochs as text."""
        keys = keys + (None,) * (len(payloads) - len(keys))
        args: list[bytes | str | int] = [call or epochs(), "PUBLISH", self.place.channel]
        args += [self.count, self.size, self.ttl, self.window, int(touch)]
        args += ["", ""] if expected is None else [*expected]
        for payload, key in zip(payloads, keys, strict=True):
            args += [payload, int(key is not None)]
        named = tuple(self.place.key(key) for key in keys if key is not None)
        reply = run(self.server, scripts.APPEND, self.place.stream + named, *args)
        if isinstance(reply, bytes):
            epoch, top, taken_over = reply.decode().split(" ")
            return [0, epoch, int(top), int(taken_over)]
        return [part.decode() if isinstance(part, bytes) else part for part in reply]

    def read(
        self,
        since: tuple[str, int] | None = None,
        *,
        limit: int = 1000,
        most: int = 8_000_000,
        reverse: bool = False,
        bounds: tuple[int, int, int] | None = None,
    ) -> Page:
        """What read.lua answers."""
        args = (*(since or ("", "")), limit, most, int(reverse), *(bounds or ("", "", "")))
        epoch, top, floor, takeovers, *rest = run(
            self.server, scripts.READ, self.place.stream, epochs(), *args
        )
        words = takeovers.decode().split()
        pairs = [(name, int(offset)) for name, offset in zip(words[::2], words[1::2], strict=True)]
        return Page(epoch.decode(), top, floor, pairs, rest[0], rest[1], bool(rest[2]))

    def clear(self) -> str:
        """What clear.lua answers."""
        epoch: bytes = run(self.server, scripts.CLEAR, self.place.stream, epochs())
        return epoch.decode()

    def grow_older(self, seconds: float) -> None:
        """Let time pass for it."""
        age(self.server, self.meta.partition(":{")[0], seconds)

    def told(self) -> dict[str, str]:
        """Meta, as it is kept."""
        flat = self.server.command("HGETALL", self.meta)
        return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def kept(self) -> list[tuple[str, bytes]]:
        """The entries, as they are kept: id and payload."""
        return [
            (name.decode(), fields[1])
            for name, fields in self.server.command("XRANGE", self.entries, "-", "+")
        ]


@dataclass
class State:
    """One key's fields."""

    server: RedisServer
    place: Place = field(default_factory=lambda: Names(f"t{secrets.token_hex(6)}")("presence:r"))

    def put(self, name: str, value: bytes, ttl: int = HOUR, *expects: bytes | str) -> bool:
        """What put.lua answers."""
        return bool(
            run(self.server, scripts.PUT, self.place.values, name, value, ttl, *(expects or ("any",)))
        )

    def renew(self, *names: str, ttl: int = HOUR) -> set[str]:
        """What renew.lua answers."""
        return {name.decode() for name in run(self.server, scripts.RENEW, self.place.values, ttl, *names)}

    def remove(self, name: str) -> bool:
        """What remove.lua answers."""
        return bool(run(self.server, scripts.REMOVE, self.place.values, name, "any"))

    def entries(self) -> dict[str, bytes]:
        """What entries.lua answers."""
        return _fields(run(self.server, scripts.ENTRIES, self.place.values))

    def revise(
        self,
        changes: dict[str, bytes | None],
        *,
        expected: dict[str, bytes | None] | None = None,
        ttl: int = HOUR,
        payload: bytes = b"",
    ) -> tuple[str, int] | None:
        """What revise.lua answers."""
        expected = expected or {}
        args: list[bytes | str | int] = [epochs(), "PUBLISH", self.place.channel, payload, ttl, len(expected)]
        for name, value in (*expected.items(), *changes.items()):
            args += [name, int(value is not None), value or b""]
        found = run(self.server, scripts.REVISE, self.place.values, *args)
        return None if found is None else (found[0].decode(), found[1])

    def revision(self) -> tuple[str, int, dict[str, bytes]]:
        """What revision.lua answers."""
        epoch, count, flat = run(self.server, scripts.REVISION, self.place.values, epochs(), 1)
        return epoch.decode(), count, _fields(flat)


def _fields(flat: list[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
