"""Many nodes without a hub: who is in a room hears what is said there on whatever node, through a broker.

    python examples/fanout.py --port 8000 --broker redis://localhost
    python examples/fanout.py --port 8001 --broker redis://localhost

Then open ws://localhost:8000/rooms/lobby and ws://localhost:8001/rooms/lobby, and say something in either.

Who reads too slowly loses the oldest of what waits for it, and costs nobody else anything. That is where this ends: a
message that was dropped, or was said while somebody's network was away, is gone, and nobody is told which it was. A hub
has history for that: it delivers what was missed, in order, or says what is missing. It also knows who somebody is, and
what they may do.
"""

import argparse
import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from rtkit.brokers import Broker, open_url
from rtkit.errors import Unavailable
from rtkit.primitives import AttachedConnection, AttachPolicy, Outbox, Rate, RoomRegistry, attach

#: Bytes that wait for one member at the most, and of one message.
WAITING = 256 * 1024
MESSAGE = 16 * 1024


class Fanout:
    """The rooms of one node. A room's name is the broker's topic."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.registry = RoomRegistry[AttachedConnection](on_interrupted=self._interrupted)
        self._subscribed: set[str] = set()
        self._lock = asyncio.Lock()

    def _interrupted(self, room: str) -> None:
        """The broker was away. All that can be done about it here is to say so."""
        self.registry.broadcast(room, "* something may be missing here")

    @asynccontextmanager
    async def member(self, conn: AttachedConnection, room: str) -> AsyncGenerator[None]:
        """In the room for the block; from its beginning on, everything that is published is heard, or dropped."""
        try:
            with self.registry.join(conn, room):
                await self._follow(room)
                yield
        finally:
            with suppress(Unavailable):  # then it is unsubscribed when it next has members, and loses them
                await self._follow(room)

    async def _follow(self, room: str) -> None:
        """Be subscribed while the room has members. One at a time, so that coming and going cannot cross."""
        async with self._lock:
            if room in self.registry and room not in self._subscribed:
                await self.broker.subscribe([room])
                self._subscribed.add(room)
            elif room not in self.registry and room in self._subscribed:
                self._subscribed.discard(
                    room
                )  # first: to subscribe twice does no harm, to believe in vain does
                await self.broker.unsubscribe([room])

    async def chat(self, websocket: WebSocket) -> None:
        """One client, from its coming to its going."""
        room = f"room:{websocket.path_params['room']}"
        await websocket.accept()
        async with attach(
            websocket,
            outbox=Outbox(limit=WAITING),
            limit=Rate(10, burst=20),
            policy=AttachPolicy(text=True, overflow="drop_oldest"),
        ) as conn:
            if len(room) > 100:
                await conn.close(4400, "the room's name is too long")
                return
            async with self.member(conn, room):
                conn.send_nowait("* you are in")
                async for message in conn:
                    if not isinstance(message, str) or len(message) > MESSAGE:
                        conn.send_nowait("* text only, and not that much")
                        continue
                    try:
                        # What is said here comes back from the broker, too: all nodes hear it in one order.
                        await self.broker.publish(room, message.encode())
                    except Unavailable:
                        conn.send_nowait("* not sent, or perhaps it was: the broker is away")


def make_app(url: str) -> Starlette:
    """One node; give all of them the same broker."""
    fanout = Fanout(open_url(url))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        await fanout.broker.open(fanout.registry)
        yield
        await fanout.broker.aclose()

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", fanout.chat)], lifespan=lifespan)
    app.state.fanout = fanout
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One node of several.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--broker", default="memory://", help="such as redis://localhost")
    args = parser.parse_args()
    uvicorn.run(make_app(args.broker), port=args.port, ws_max_size=2 * MESSAGE, log_level="warning")
