"""Ending an asyncio server without losing whom it has only just accepted."""

from __future__ import annotations

import asyncio

__all__ = ["stop_serving"]


async def stop_serving(server: asyncio.Server) -> None:
    """Close a server.

    `Server.close` alone loses a connection that was accepted in the same turn of the loop: asyncio attaches it to a
    server that has no sockets any more, which fails without a word, and its transport is found unclosed later, by some
    other test. Browsers that come back at once hit that now and then.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)  # who was accepted is attached
    server.close()
