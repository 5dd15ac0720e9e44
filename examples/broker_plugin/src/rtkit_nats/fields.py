"""The fields of a key, as one message. Pure: no I/O, no clock.

All fields of a key stand together in one message, which replaces the one before on the condition that it is still
the last. So every change is one act. It costs that each change writes all of them.

A message says until when it counts, which is never sooner than the one before it said. A key has several subjects,
one for each topic that its changes are told on, and the newest message may be gone when an older one, on another
subject, is not yet: that one does not count any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rtkit.position import Position

from .records import Damaged, pack, unpack

__all__ = ["NOWHERE", "Fields", "Leased"]

#: Where a key stands that was never revised.
NOWHERE = Position("", 0)

# Seconds that the count of a key outlives its last field.
_REMEMBERED = 60.0


class Leased(NamedTuple):
    """A value, and until when it holds, in seconds by the server's clock."""

    value: bytes
    until: float


@dataclass(frozen=True, slots=True)
class Fields:
    """What a key holds.

    :param epoch: of its count of revisions; empty when there is none.
    :param until: when all of this is void.
    :param fence: which life of the server it was written in.
    :param payload: what was told with it, if it was a revision.
    """

    fields: Mapping[str, Leased] = field(default_factory=dict[str, Leased])
    epoch: str = ""
    count: int = 0
    until: float = 0.0
    fence: str = ""
    payload: bytes | None = None

    @property
    def position(self) -> Position:
        """How often the key was revised."""
        return Position(self.epoch, self.count)

    def at(self, now: float, fence: str) -> Fields:
        """What holds of it at this moment, in this life of the server.

        A count of another life may have been higher: nobody shall take the next revision for one that was lost.
        """
        if self.until <= now:
            return Fields(until=self.until, fence=fence)
        lives = {name: leased for name, leased in self.fields.items() if leased.until > now}
        if self.fence != fence:
            return Fields(lives, until=self.until, fence=fence)
        return replace(self, fields=lives)

    def values(self) -> dict[str, bytes]:
        """The fields without their leases."""
        return {name: leased.value for name, leased in self.fields.items()}

    def get(self, name: str) -> bytes | None:
        """The value of a field."""
        found = self.fields.get(name)
        return found.value if found is not None else None

    def changed(self, changes: Mapping[str, bytes | None], now: float, ttl: float) -> Fields:
        """Some fields set for *ttl* seconds, or deleted. Nothing is counted."""
        fields = dict(self.fields)
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = Leased(value, now + ttl)
        until = max([self.until, now + _REMEMBERED, *(leased.until for leased in fields.values())])
        return replace(self, fields=fields, until=until, payload=None)

    def counted(self, payload: bytes, new_epoch: Callable[[], str]) -> Fields:
        """The next revision, which tells *payload*."""
        epoch = self.epoch if self.count else new_epoch()
        return replace(self, epoch=epoch, count=self.count + 1, payload=payload)

    def encode(self) -> bytes:
        """The message."""
        head: dict[str, Any] = {"e": self.epoch, "c": self.count, "u": self.until, "f": self.fence}
        head["x"] = [[name, leased.until] for name, leased in self.fields.items()]
        payloads = tuple(leased.value for leased in self.fields.values())
        return pack(head, payloads if self.payload is None else (*payloads, self.payload))

    @classmethod
    def decode(cls, body: bytes) -> Fields:
        """What a message says.

        :raises Damaged: when it is none of these.
        """
        head, payloads = unpack(body)
        try:
            names = [(str(name), float(until)) for name, until in head["x"]]
            if not 0 <= len(payloads) - len(names) <= 1:
                raise ValueError("its fields do not add up")
            return cls(
                {name: Leased(value, until) for (name, until), value in zip(names, payloads, strict=False)},
                epoch=str(head["e"]),
                count=int(head["c"]),
                until=float(head["u"]),
                fence=str(head["f"]),
                payload=payloads[-1] if len(payloads) > len(names) else None,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise Damaged(f"foreign fields: {error}") from error
