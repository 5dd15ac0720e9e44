"""A ticker on a bare Starlette socket: outbox, heartbeat, rate limit and rooms, without a hub."""

from __future__ import annotations

import json
from typing import assert_type

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from rtkit.primitives import (
    AttachedConnection,
    AttachPolicy,
    Heartbeat,
    Outbox,
    Rate,
    RoomRegistry,
    attach,
)

registry = RoomRegistry[AttachedConnection]()
POLICY = AttachPolicy(text=True, overflow="latest_per_key", ping_text="ping", pong_text="pong")


async def ticker(websocket: WebSocket) -> None:
    symbol: str = websocket.path_params["symbol"]
    await websocket.accept()
    async with (
        attach(
            websocket,
            heartbeat=Heartbeat(interval=25, timeout=10),
            outbox=Outbox(limit=64 * 1024),
            limit=Rate(5, burst=10),
            policy=POLICY,
        ) as conn,
        registry.join(conn, symbol),
    ):
        conn.send_nowait(json.dumps({"symbol": symbol, "watching": registry.count(symbol)}))
        async for message in conn:
            assert_type(message, str | bytes)
            # A price from anybody goes to everybody; whoever is slow gets the newest one only.
            told = registry.broadcast(symbol, message)
            conn.send_nowait(json.dumps({"told": told}), key="told")


async def status(request: Request) -> JSONResponse:
    statistics = registry.statistics()
    return JSONResponse({"rooms": statistics.rooms, "members": statistics.members})


app = Starlette(routes=[Route("/status", status), WebSocketRoute("/ticker/{symbol}", ticker)])
