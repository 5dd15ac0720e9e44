"""Hubs that say how many are there, served by our own server and by uvicorn in one process.

Run as a program: ``python -m tests.abuse.zombie_server hasty|default``. It prints a line of JSON with its ports, then
one whenever something of what it has to say has changed, each with the moment by its own clock, which is that of all
processes of the machine. A line of its input, ``{"publish": …, "times": …}``, has messages of so many bytes
published; when its input ends, it does.

*hasty*: heartbeats, graces and the like are parts of a second. *default*: they are as they are by default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from rtkit import Grant, Hub, Limits, Presence, anonymous
from rtkit.hub import oneway
from rtkit.primitives import Heartbeat
from rtkit.server import ServerLimits, listen

#: Rooms that clients are in. The second has nothing that anybody could fall behind in.
LOBBY, NEWS = "lobby", "news"


@dataclass(frozen=True)
class Patience:
    """How long each of those who wait for somebody waits, in seconds.

    :ivar stuck: the hub, for the reader of a one-way stream.
    :ivar silence: the kernel, for confirmations.
    :ivar idle: uvicorn, for the next request; and
    :ivar closing: it and the hub below it, for the peer to agree to the end.
    """

    hub: Limits
    server: ServerLimits
    stuck: float
    idle: int
    closing: float

    @property
    def bound(self) -> float:
        """Seconds within which nothing is left of somebody who fell silent: the longest of all ways to an end."""
        hub, server = self.hub, self.server
        assert hub.heartbeat is not None and hub.grace is not None and server.silence is not None
        noticed = max(
            hub.heartbeat.interval + hub.heartbeat.timeout,
            hub.poll_wait + hub.poll_gone,
            hub.keepalive + server.silence,
            hub.keepalive + self.stuck,
            server.answer_time,
        )
        return (
            noticed + hub.grace + max(server.close_timeout + server.idle_time, 2 * self.closing + self.idle)
        )


HASTY = Patience(
    Limits(
        heartbeat=Heartbeat(interval=0.4, timeout=0.4),
        grace=0.3,
        poll_wait=0.4,
        poll_gone=0.4,
        keepalive=0.2,
        outbox=256 * 1024,
    ),
    ServerLimits(silence=0.8, close_timeout=0.3, idle_time=0.6, answer_time=0.8),
    stuck=0.8,
    idle=1,
    closing=0.3,
)
DEFAULT = Patience(Limits(), ServerLimits(), stuck=30.0, idle=5, closing=10.0)
PATIENCE = {"hasty": HASTY, "default": DEFAULT}


def make_hub(patience: Patience) -> Hub[Any]:
    """A hub that takes everybody."""
    hub: Hub[Any] = Hub(authenticate=anonymous, limits=patience.hub)
    hub.rooms(LOBBY, publishes=object, grant=Grant("presence"), presence=Presence())
    hub.rooms(NEWS, publishes=object, grant=Grant())
    return hub


async def look(hub: Hub[Any]) -> dict[str, Any]:
    """What there is of clients in a hub."""
    now = hub.statistics()
    return {
        "connections": now.connections,
        "sessions": now.sessions,
        "users": now.users,
        "rooms": now.rooms,
        "members": now.members,
        "present": len(await hub.room(LOBBY).presence()),
        "requests": len(hub.engine.web.sessions),
        "deadlines": now.deadlines,
        "bytes": now.queued_bytes,
        "unanswered": now.counted.heartbeats_lost,
    }


def sockets() -> Counter[int]:
    """Sockets that this process has open, by port: one listens."""
    found: Counter[int] = Counter()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the listing itself
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as each:
                    if each.family == socket.AF_INET:
                        found[each.getsockname()[1]] += 1
    return found


def say(**what: Any) -> None:
    """A line of output."""
    print(json.dumps({"at": time.monotonic(), **what}), flush=True)  # noqa: T201


async def report(hubs: dict[str, Hub[Any]], ports: dict[str, int]) -> None:
    """Say what there is, whenever that has changed."""
    before: dict[str, Any] = {}
    while True:
        now: dict[str, Any] = {name: await look(hub) for name, hub in hubs.items()}
        there = sockets()
        for name, port in ports.items():
            now[name]["sockets"] = there[port]
        if now != before:
            say(**now)
            before = now
        await asyncio.sleep(0.05)


async def obey(hubs: dict[str, Hub[Any]]) -> None:
    """Do what the input says, until it ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        order = json.loads(line)
        for _ in range(order["times"]):
            for hub in hubs.values():
                await hub.publish(NEWS, "x" * order["publish"])
            await asyncio.sleep(0)


def _protocol(closing: float) -> type[WebSocketsSansIOProtocol]:
    class Protocol(WebSocketsSansIOProtocol):
        """uvicorn's, whose patience with a peer that does not agree to the end is 10 s."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.close_timeout = closing

    return Protocol


async def main(patience: Patience) -> None:
    """Serve until the input ends."""
    oneway._STUCK = patience.stuck  # type: ignore[misc] # it cannot be set, and is half a minute
    own, other = make_hub(patience), make_hub(patience)
    for each in (other._host, other._host._http):
        each._close_timeout = min(patience.closing, each._close_timeout)
    config = uvicorn.Config(
        other,
        host="0.0.0.0",
        port=0,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws=_protocol(patience.closing),
        timeout_keep_alive=patience.idle,
        timeout_graceful_shutdown=1,
    )
    theirs = uvicorn.Server(config)
    hubs = {"own": own, "uvicorn": other}
    async with listen(own, None, limits=patience.server) as server:
        serving = asyncio.create_task(theirs.serve())
        while not theirs.started:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.01)
        ports = {"own": server.port, "uvicorn": theirs.servers[0].sockets[0].getsockname()[1]}
        say(ports=ports)
        reporting = asyncio.create_task(report(hubs, ports))
        await obey(hubs)
        reporting.cancel()
        theirs.should_exit = True
        await serving


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(PATIENCE[sys.argv[1]]))
