"""A chat on a bare websockets server: bounded outbox, heartbeat and rate limit, and no hub.

Run `python examples/primitives_websockets.py`, then open ws://localhost:8765 twice.
"""

import asyncio

from websockets.asyncio.server import ServerConnection, serve

from rtkit.primitives import AttachedConnection, Heartbeat, Rate, RoomRegistry, attach

registry = RoomRegistry[AttachedConnection]()


async def chat(sock: ServerConnection) -> None:
    async with (
        attach(sock, heartbeat=Heartbeat(interval=10.0), limit=Rate(10, burst=20)) as conn,
        registry.join(conn, "lobby"),
    ):
        async for message in conn:
            registry.broadcast("lobby", message)  # waits for nobody, however slow


async def main() -> None:
    async with serve(chat, "localhost", 8765, ping_interval=None) as server:  # pings are attach's
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
