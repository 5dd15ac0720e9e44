"""A hub on a server of the websockets library. Run: `python examples/hosts/websockets_server.py`."""

import asyncio

from websockets.asyncio.server import serve

from rtkit import Grant, History, Hub, anonymous
from rtkit.hosting.websockets_host import OPTIONS, handler

hub = Hub(authenticate=anonymous)
lobby = hub.rooms("lobby", publishes=object, grant=Grant("publish"), history=History(100, ttl=3600))

handle = handler(hub)


async def main() -> None:
    async with (
        serve(handle, "127.0.0.1", 8000, process_request=handle.process_request, **OPTIONS) as server,
        hub,
    ):
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
