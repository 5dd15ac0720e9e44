"""With what resume tokens are signed: one secret for all nodes, kept by the broker unless the hub has its own.

The broker may lose it, in a restart or because nobody has renewed it for a month; then the first that comes makes
another. So a node looks again from time to time, puts its own back when it finds none, and goes on reading tokens that
were signed with what it had before: a deployment in which old nodes and new ones had different secrets would make
everybody somebody new.
"""

from __future__ import annotations

import math
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from ..brokers.base import keeps_state
from ..errors import Unavailable
from .resume import Claim, read_token

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Secret"]

#: Seconds that the broker keeps it, unless it is renewed.
LIFE: Final = 30 * 86_400.0
#: Former ones that are read.
_FORMER: Final = 3


@final
class Secret:
    """The secret of an engine. It looks for it when it is asked for, and again a day later."""

    __slots__ = ("_engine", "_former", "_found", "_good_until")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._found: bytes | None = None
        self._good_until = -math.inf
        self._former: list[bytes] = []
        engine.lease.on_lost.append(self._lease_lost)

    async def find(self) -> bytes:
        """What to sign with: the hub's, else what the broker keeps for all nodes, else one for this run.

        :raises Unavailable: when the broker cannot be reached.
        """
        engine, now = self._engine, self._engine.clock.monotonic()
        if engine.hub.secret is not None:
            return engine.hub.secret
        if self._found is not None and now < self._good_until:
            return self._found
        found = self._found or secrets.token_bytes(32)
        broker = engine.broker
        if keeps_state(broker) and not await broker.put("secret", "resume", found, ttl=LIFE, expected=None):
            found = bytes((await broker.entries("secret")).get("resume", found))
            await broker.renew("secret", ["resume"], ttl=LIFE)
        if self._found is not None and self._found != found:
            self._former = [self._found, *self._former[: _FORMER - 1]]
        self._found = found
        self._good_until = now + LIFE / 30
        return found

    async def read(self, token: str) -> Claim | None:
        """What a token says, whichever of the secrets it was signed with; None for one that is none.

        :raises Unavailable: when the broker cannot be reached.
        """
        engine = self._engine
        now, reads = engine.clock.time(), engine.versions.reads
        for secret in (await self.find(), *self._former):
            claim = read_token(secret, token, now=now, reads=reads)
            if claim is not None:
                return claim
        return None

    def _lease_lost(self) -> None:
        """The broker has lost the lease, and perhaps this, too: have it there before a new node makes another."""
        if self._found is not None:
            self._good_until = -math.inf
            self._engine.spawn(self._look)

    async def _look(self) -> None:
        with suppress(Unavailable):
            await self.find()
