"""Mistakes in a program like ``programs/starlette_primitives.py``; both checkers must refuse each marked line."""

# What is unknown because of a mistake would be reported a second time.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from starlette.websockets import WebSocket

from rtkit.primitives import AttachPolicy, Heartbeat, Outbox, attach
from tests.typing.programs.starlette_primitives import registry

AttachPolicy(overflow="recovery")  # expect: mypy[arg-type] pyright[reportArgumentType]
Heartbeat(25)  # expect: mypy[call-arg] pyright[reportCallIssue]
# expect: mypy[call-overload] pyright[reportCallIssue, reportArgumentType]
registry.broadcast("ticker", {"price": 1})


async def ticker(websocket: WebSocket) -> None:
    attach(websocket, heartbeat=25)  # expect: mypy[arg-type] pyright[reportArgumentType]
    attach(websocket, outbox=Outbox(), limit=5)  # expect: mypy[arg-type] pyright[reportArgumentType]
    # The socket itself has no outbox: it cannot be a member.
    registry.join(websocket, "ticker")  # expect: mypy[arg-type] pyright[reportArgumentType]
    async with attach(websocket) as conn:
        await conn.send_nowait("x")  # expect: mypy[misc] pyright[reportGeneralTypeIssues]
        async for message in conn:
            message.encode()  # expect: mypy[union-attr] pyright[reportAttributeAccessIssue]
