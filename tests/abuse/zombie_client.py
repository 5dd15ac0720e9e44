"""Clients of the Python SDK that say how they are: ``python -m tests.abuse.zombie_client hasty|default URL…``.

One for each URL and transport. Each change of a state is a line of JSON, with the moment by the clock of the machine.
When the input ends, so do they.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from rtkit.client import Policy, connect
from rtkit.client.connecting import TransportName

from .zombie_server import LOBBY, NEWS

TRANSPORTS: tuple[TransportName, ...] = ("websocket", "sse", "poll")
#: How soon a client takes a silent server for gone, beyond the ping interval, and how soon it tries again.
POLICIES = {
    "hasty": Policy(silence=0.8, min_delay=0.05, max_delay=0.2, open_timeout=0.5, close_timeout=0.3),
    "default": Policy(),
}


async def main(policy: Policy, urls: list[str]) -> None:
    """Stay connected until the input ends."""
    async with AsyncExitStack() as stack:
        for url in urls:
            for transport in TRANSPORTS:
                client = connect(url, wait=False, transports=(transport,), policy=policy)
                name = f"{url} {transport}"

                def say(state: Any, name: str = name) -> None:
                    print(json.dumps({"at": time.monotonic(), name: str(state)}), flush=True)  # noqa: T201

                client.on_state(say)
                await stack.enter_async_context(client)
                for room in (LOBBY, NEWS):
                    _ = client.join(room)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(POLICIES[sys.argv[1]], sys.argv[2:]))
