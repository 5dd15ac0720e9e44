"""Keyed state in Redis; what is atomic about it is in ``lua/state.lua`` and what builds on that."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import UsageError
from ...position import Position
from ..base import ANYTHING, Anything, Revision
from . import scripts
from .calls import Argument, Calls, milliseconds
from .names import text_of, to_bytes

__all__ = ["State"]


class State(Calls):
    """The keyed state half of :class:`.RedisBroker`."""

    async def put(
        self, key: str, field: str, value: bytes, *, ttl: float, expected: bytes | Anything | None = ANYTHING
    ) -> bool:
        """See :meth:`.StateBroker.put`."""
        commands = self._opened()
        expects: tuple[Argument, ...]
        if isinstance(expected, Anything):
            expects = ("any",)
        else:
            expects = ("none",) if expected is None else ("is", expected)
        place = self._names(key)
        args: list[Argument] = [to_bytes(field), value, milliseconds(ttl), *expects]
        # Not again after an unknown outcome: somebody else may have been there since, and would be overwritten.
        return bool(await commands.run(place.tag, scripts.PUT, place.values, args, again=False))

    async def renew(self, key: str, fields: Iterable[str], *, ttl: float) -> Iterable[str]:
        """See :meth:`.StateBroker.renew`."""
        commands = self._opened()
        asked = {to_bytes(field): field for field in fields}
        place = self._names(key)
        args: list[Argument] = [milliseconds(ttl), *asked]
        gone = await commands.run(place.tag, scripts.RENEW, place.values, args, again=True)
        return [asked[field] for field in gone]

    async def remove(self, key: str, field: str, *, expected: bytes | None = None) -> bool:
        """See :meth:`.StateBroker.remove`."""
        commands = self._opened()
        place = self._names(key)
        expects: tuple[Argument, ...] = ("any",) if expected is None else ("is", expected)
        args = (to_bytes(field), *expects)
        return bool(await commands.run(place.tag, scripts.REMOVE, place.values, args, again=False))

    async def entries(self, key: str) -> Mapping[str, bytes]:
        """See :meth:`.StateBroker.entries`."""
        self._opened()
        place = self._names(key)
        return _fields(await self._ask(place.tag, scripts.ENTRIES, place.values, ()))

    async def revise(
        self,
        key: str,
        changes: Mapping[str, bytes | None],
        *,
        ttl: float,
        expected: Mapping[str, bytes | None],
        topic: str,
        payload: bytes,
    ) -> Position | None:
        """See :meth:`.StateBroker.revise`.

        :raises ~rtkit.errors.UsageError: when *topic* and *key* do not belong together.
        """
        commands = self._opened()
        self._check(payload)
        place, target = self._names(key), self._names(topic)
        if place.tag != target.tag:
            raise UsageError(
                f"revise() publishes where the key belongs; {key!r} and {topic!r} may lie far apart"
            )
        args: list[Argument] = [
            *(secrets.token_urlsafe(9), self._publish, target.channel, payload),
            *(milliseconds(ttl), len(expected)),
        ]
        for field, value in (*expected.items(), *changes.items()):
            args += (to_bytes(field), 0, b"") if value is None else (to_bytes(field), 1, value)
        found = await commands.run(place.tag, scripts.REVISE, place.values, args, again=False)
        return None if found is None else Position(found[0].decode(), found[1])

    async def revision(self, key: str) -> Revision:
        """See :meth:`.StateBroker.revision`."""
        self._opened()
        epoch, count, fields = await self._revision(key, 1)
        return Revision(Position(epoch.decode(), count), _fields(fields))

    async def positions(self, keys: Sequence[str]) -> Sequence[Position]:
        """See :meth:`.StateBroker.positions`."""
        self._opened()
        found = await asyncio.gather(*(self._revision(key, 0) for key in keys))
        return [Position(epoch.decode(), count) for epoch, count, _ in found]

    async def _revision(self, key: str, with_fields: int) -> Any:
        place = self._names(key)
        args = (secrets.token_urlsafe(9), with_fields)
        return await self._ask(place.tag, scripts.REVISION, place.values, args)


def _fields(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Fields and values; without fields that were not made of a text, and so are not ours."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name: value for field, value in pairs if (name := text_of(field)) is not None}
