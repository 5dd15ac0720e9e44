"""A chat on a bare Starlette WebSocket, with a bounded outbox and a rate limit, and without a hub.

Run `python examples/primitives_starlette.py`, then open ws://localhost:8000/ws twice.
"""

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from rtkit.primitives import AttachedConnection, Rate, RoomRegistry, attach

registry = RoomRegistry[AttachedConnection]()


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    async with attach(websocket, limit=Rate(10, burst=20)) as conn, registry.join(conn, "lobby"):
        async for message in conn:
            registry.broadcast("lobby", message)  # waits for nobody, however slow


app = Starlette(routes=[WebSocketRoute("/ws", chat)])

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app)
