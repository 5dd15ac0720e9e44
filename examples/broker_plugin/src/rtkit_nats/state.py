"""Keyed state: read what there is, decide, and replace it, unless somebody was faster; then again."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rtkit.brokers import Anything, Revision
from rtkit.position import Position

from .fields import Fields
from .link import Link, Overtaken
from .records import Damaged

__all__ = ["State"]

logger = logging.getLogger("rtkit_nats")

T = TypeVar("T")

# Keys that are asked for at once.
_AT_ONCE = 100


class State:
    """The keys of a cluster. Nothing is remembered here: the server is asked each time."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def put(
        self, key: str, field: str, value: bytes, ttl: float, expected: bytes | Anything | None
    ) -> bool:
        """See :meth:`rtkit.brokers.StateBroker.put`."""

        def decide(there: Fields, now: float) -> tuple[bool, Fields | None]:
            if not isinstance(expected, Anything) and there.get(field) != expected:
                return False, None
            return True, there.changed({field: value}, now, ttl)

        return await self._change(key, decide)

    async def renew(self, key: str, fields: Iterable[str], ttl: float) -> list[str]:
        """See :meth:`rtkit.brokers.StateBroker.renew`."""
        names = list(fields)

        def decide(there: Fields, now: float) -> tuple[list[str], Fields | None]:
            renewed = {name: there.fields[name].value for name in names if name in there.fields}
            gone = [name for name in names if name not in there.fields]
            return gone, there.changed(renewed, now, ttl) if renewed else None

        return await self._change(key, decide)

    async def remove(self, key: str, field: str, expected: bytes | None) -> bool:
        """See :meth:`rtkit.brokers.StateBroker.remove`."""

        def decide(there: Fields, now: float) -> tuple[bool, Fields | None]:
            value = there.get(field)
            if value is None or (expected is not None and value != expected):
                return False, None
            return True, there.changed({field: None}, now, 0.0)

        return await self._change(key, decide)

    async def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        """See :meth:`rtkit.brokers.StateBroker.revise`."""

        def decide(there: Fields, now: float) -> tuple[Position | None, Fields | None]:
            if any(there.get(name) != value for name, value in expected.items()):
                return None, None
            then = there.changed(changes, now, ttl).counted(payload, lambda: secrets.token_urlsafe(9))
            return then.position, then

        return await self._change(key, decide, topic)

    async def revision(self, key: str) -> Revision:
        """See :meth:`rtkit.brokers.StateBroker.revision`."""
        there, _ = await self._look(key)
        return Revision(there.position, there.values())

    async def positions(self, keys: Sequence[str]) -> list[Position]:
        """See :meth:`rtkit.brokers.StateBroker.positions`."""
        found: list[Position] = []
        for begin in range(0, len(keys), _AT_ONCE):
            looks = (self._look(key) for key in keys[begin : begin + _AT_ONCE])
            found += [there.position for there, _ in await asyncio.gather(*looks)]
        return found

    async def _look(self, key: str) -> tuple[Fields, int]:
        """What holds now, and the sequence of the message that says so."""
        last = await self._link.last(self._link.subjects.state_anywhere(key))
        there, sequence = Fields(), 0
        if last is not None:
            sequence = last.sequence
            try:
                there = Fields.decode(last.body)
            except Damaged as error:
                logger.warning("passed over: %s", error)
        return there.at(self._link.now(), self._link.fence), sequence

    async def _change(
        self,
        key: str,
        decide: Callable[[Fields, float], tuple[T, Fields | None]],
        topic: str | None = None,
    ) -> T:
        """Replace what there is by what *decide* makes of it, with what it answers; None: it stays."""
        subjects = self._link.subjects
        while True:
            there, sequence = await self._look(key)
            now = self._link.now()
            answer, then = decide(there, now)
            if then is None:
                return answer
            try:
                await self._link.store(
                    subjects.state(key, topic),
                    then.encode(),
                    headers={
                        "Nats-Rollup": "sub",
                        "Nats-Expected-Last-Subject-Sequence": str(sequence),
                        "Nats-Expected-Last-Subject-Sequence-Subject": subjects.state_anywhere(key),
                    },
                    ttl=then.until - now + 1.0,
                )
                return answer
            except Overtaken:
                await asyncio.sleep(0)
