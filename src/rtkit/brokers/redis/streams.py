"""Streams in Redis; what is atomic about them is in ``lua/append.lua``, ``read.lua`` and ``clear.lua``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from ...errors import InvalidMessage, UsageError
from ...messages import Durability, History
from ...position import Position
from ...streams import Entry, StreamPage, locate, locate_back
from ..base import Appended, Conflict, NewEntry, Repeated
from . import scripts
from .calls import Argument, Calls, milliseconds
from .names import to_bytes
from .shared import Shared

__all__ = ["ACT", "Streams"]

#: Bytes that one act publishes at the most. Redis cuts off a subscriber that has 32 MiB to come.
ACT: Final = 24 * 1024 * 1024

# Bytes of entries in one answer: a page that is larger comes in several.
_PAGE: Final = 8 * 1024 * 1024
# Redis counts in 64 bits, Lua in 53.
_MOST: Final = 2**53


class Streams(Calls):
    """The stream half of :class:`.RedisBroker`."""

    _reads: Shared[StreamPage]

    async def append(
        self,
        topic: str,
        payload: bytes,
        *,
        history: History,
        key: str | None = None,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Appended:
        """See :meth:`.StreamBroker.append`."""
        try:
            position = await self._extend(topic, (NewEntry(payload, key),), history, expected, durability)
        except Repeated as repeated:
            return Appended(next(iter(repeated.positions.values())), duplicate=True)
        return Appended(position)

    async def extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        *,
        history: History,
        expected: Position | None = None,
        durability: Durability = "stored",
    ) -> Position:
        """See :meth:`.StreamBroker.extend`.

        :raises ~rtkit.errors.InvalidMessage: also when all payloads together have more than 24 MiB.
        """
        self._opened()
        keys = [key for _, key in entries if key is not None]
        if not entries or len(set(keys)) < len(keys):
            raise UsageError("extend() takes at least one entry, and no two with the same key")
        if sum(len(payload) for payload, _ in entries) > ACT:
            raise InvalidMessage(f"entries of more than {ACT:,} bytes cannot be appended in one act")
        return await self._extend(topic, entries, history, expected, durability)

    async def _extend(
        self,
        topic: str,
        entries: Sequence[NewEntry],
        history: History,
        expected: Position | None,
        durability: Durability,
    ) -> Position:
        commands = self._opened()
        place = self._names(topic)
        call = secrets.token_urlsafe(9)
        replicated = durability == "replicated"
        window = milliseconds(self.dedupe_window)
        keys = list(place.stream)
        end: list[Argument] = []
        for payload, key in entries:
            self._check(payload)
            end += (payload, 0 if key is None else 1)
            if key is not None:
                keys.append(place.key(key))
        again = len(keys) > 2
        if replicated and not again:
            # Too few replicas in time is an unknown outcome, and is tried again: for that it needs a key, if only for
            # as long as that takes.
            keys.append(place.call(call))
            end[-1], again = 1, True
            window = milliseconds(10 * (self.patience + self.wait_timeout))
        reply = await commands.run(
            place.tag,
            scripts.APPEND,
            keys,
            (
                call,
                self._publish,
                place.channel,
                *_bounds(history),
                window,
                1 if replicated else 0,
                b"" if expected is None else to_bytes(expected.epoch),
                b"" if expected is None else _clamp(expected.offset),
                *end,
            ),
            again=again,
            replicated=replicated,
        )
        if type(reply) is bytes:
            epoch, top, taken_over = reply.split()
            self._counters.takeovers += taken_over == b"1"
            return Position(epoch.decode(), int(top))
        if reply[0] == 1:
            raise Repeated(
                {
                    entries[index - 1].key or "": Position(epoch.decode(), offset)
                    for index, epoch, offset in zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
                }
            )
        _, epoch, top, taken_over = reply
        self._counters.takeovers += taken_over
        raise Conflict(Position(epoch.decode(), top))

    async def read(
        self,
        topic: str,
        *,
        since: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
        history: History | None = None,
    ) -> StreamPage:
        """See :meth:`.StreamBroker.read`. A page holds at most 8 MiB, and one entry if that is larger."""
        self._opened()
        return await self._reads.call(
            (topic, since, limit, reverse, history),
            lambda: self._read(topic, since, limit, reverse, history),
        )

    async def _read(
        self, topic: str, since: Position | None, limit: int, reverse: bool, history: History | None
    ) -> StreamPage:
        place = self._names(topic)
        args = (
            secrets.token_urlsafe(9),
            b"" if since is None else to_bytes(since.epoch),
            b"" if since is None else _clamp(since.offset),
            _clamp(limit),
            _PAGE,
            1 if reverse else 0,
            *(_bounds(history) if history is not None else (b"", b"", b"")),
        )
        reply = await self._ask(place.tag, scripts.READ, place.stream, args)
        epoch, top, floor, said, begin, payloads, taken_over = reply
        self._counters.takeovers += taken_over
        words = said.decode().split()
        takeovers = list(zip(words[::2], map(int, words[1::2]), strict=True))
        find = locate_back if reverse else locate
        start, lost = find(since, epoch=(name := epoch.decode()), top=top, floor=floor, takeovers=takeovers)
        if start != begin:  # read.lua has computed it too, to send what comes there
            raise RuntimeError(f"a page at {begin}, where one at {start} was asked for")
        if reverse:
            entries = tuple(Entry(start - index, payload) for index, payload in enumerate(payloads))
            start -= len(entries)
        else:
            entries = tuple(Entry(start + index, payload) for index, payload in enumerate(payloads, 1))
        return StreamPage(name, top, floor, start, entries, lost)

    async def clear(self, topic: str) -> Position:
        """See :meth:`.StreamBroker.clear`."""
        commands = self._opened()
        place = self._names(topic)
        call = secrets.token_urlsafe(9)
        epoch = await commands.run(place.tag, scripts.CLEAR, place.stream, (call,), again=False)
        return Position(epoch.decode(), 0)


def _clamp(number: int) -> int:
    """As far as Lua counts; comparisons with what there is come out the same."""
    return max(-1, min(number, _MOST))


def _bounds(history: History) -> tuple[int, int, int]:
    return _clamp(history.count), _clamp(history.size), max(1, milliseconds(history.ttl))
