"""A hub in a process of its own that publishes as it is told to: ``python -m tests.transport.slow_node own|uvicorn``.

Prints its port, and serves until its input ends. Its limits are the defaults.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import uvicorn

from rtkit import Context, Credentials, Grant, History, Hub, Identity
from rtkit.server import listen

#: In so many goes a second is published: who reads all of it gets as many frames, and not as many as messages.
GOES = 4


async def by_token(credentials: Credentials) -> Identity[None]:
    """The token is the user's name."""
    return Identity(credentials.token or "nobody")


def make_hub() -> Hub[None]:
    hub: Hub[None] = Hub(authenticate=by_token)
    for name, count in (("kept", 200_000), ("trimmed", 1000)):
        hub.rooms(name, publishes=object, grant=Grant(), history=History(count, ttl=3600))

    @hub.rpc(object, name="publish")
    async def publish(ctx: Context[None, Any], data: Any) -> int:
        """So many messages a second for so many seconds, in four goes a second; each says when it was published."""
        ctx.session.spawn(run, data["room"], data["rate"] // GOES, data["seconds"], data["size"])
        return 0

    async def run(room: str, each: int, seconds: int, size: int) -> None:
        began, fill = time.monotonic(), "x" * size
        for tick in range(seconds * GOES):
            await asyncio.sleep(max(0.0, began + tick / GOES - time.monotonic()))
            at = round(time.monotonic(), 4)
            await asyncio.gather(*(hub.publish(room, {"at": at, "fill": fill}) for _ in range(each)))
        await hub.publish(room, {"at": 0, "fill": "last"})

    @hub.rpc(object, name="look")
    async def look(ctx: Context[None, Any], data: Any) -> Any:
        now = hub.statistics()
        return {"most": now.queued_most, "behind": now.behind, "totals": dict(now.totals or {})}

    return hub


async def main(kind: str) -> None:
    if kind == "own":
        async with listen(make_hub()) as server:
            print(server.port, flush=True)  # noqa: T201
            await asyncio.to_thread(sys.stdin.read)
        return
    host = uvicorn.Server(
        # Its own pings would close who is 20 s behind, whatever the hub thinks of it.
        uvicorn.Config(
            make_hub(), port=0, log_config=None, access_log=False, lifespan="on", ws_ping_interval=None
        )
    )
    serving = asyncio.create_task(host.serve())
    while not host.started:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    print(host.servers[0].sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    host.should_exit = host.force_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
