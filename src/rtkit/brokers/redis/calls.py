"""What streams and state of the broker have in common: the way to the scripts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final

from ...errors import BrokerUnavailable, InvalidMessage, NotRunning, PublishUnknown, WrongLoop
from .commands import Commands, RedisStatistics
from .names import Names
from .scripts import Script

__all__ = ["Argument", "Calls", "milliseconds"]

Argument = bytes | str | int

_CENTURY: Final = 100 * 366 * 86_400_000


class Calls:
    """Runs scripts while the broker is open; :class:`.RedisBroker` says what is here."""

    dedupe_window: float
    patience: float
    wait_timeout: float
    max_payload: int
    _names: Names
    _publish: str  # the command that does
    _counters: RedisStatistics
    _commands: Commands | None
    _loop: asyncio.AbstractEventLoop | None

    def _opened(self) -> Commands:
        commands = self._commands
        if commands is None:
            raise NotRunning(f"{self!r} is not open; start the hub first")
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("this broker runs in another event loop; from a thread use anyio.from_thread.run")
        return commands

    def _check(self, payload: bytes) -> None:
        if len(payload) > self.max_payload:
            # One that is too large for Redis' output buffers would cut off all who are subscribed.
            raise InvalidMessage(
                f"a payload of {len(payload):,} bytes; at most {self.max_payload:,} are allowed"
            )

    async def _ask(self, tag: str, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script that may as well be run twice; who only reads does not care whether it was."""
        try:
            return await self._opened().run(tag, script, keys, args, again=True)
        except PublishUnknown as unknown:
            raise BrokerUnavailable(str(unknown)) from unknown


def milliseconds(seconds: float) -> int:
    """Rounded up, and at most a century."""
    return _CENTURY if seconds * 1000 >= _CENTURY else max(0, math.ceil(seconds * 1000))
