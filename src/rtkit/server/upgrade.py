"""The WebSocket handshake of a request whose head was parsed elsewhere (RFC 6455, section 4.2). Pure.

The checks are websockets'; here is what it leaves to others: who may be asked twice, which version to name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ..hosting.asgi import SUBPROTOCOLS
from ..hosting.endpoints import Response, plain

__all__ = ["upgrade"]

_MAX_SUBPROTOCOLS: Final = 16


def upgrade(target: str, headers: Sequence[tuple[str, str]]) -> bytes | Response:
    """The head of the 101 answer to a GET of HTTP/1.1; or the answer that refuses it.

    :param target: of the request.
    :param headers: names in any case.
    """
    names = [name for name, _ in headers]
    for name in ("origin", "host", "sec-websocket-key", "sec-websocket-version"):
        if names.count(name) > 1:
            return plain(400, f"more than one {name.title()} header\n")
    protocol = ServerProtocol(select_subprotocol=_choose)
    answer = protocol.accept(Request(target, Headers(headers)))
    if answer.status_code == 101:
        return answer.serialize()
    more = [
        (name.lower(), value)
        for name, value in answer.headers.raw_items()
        if name.lower() in ("upgrade", "allow")
    ]
    status = answer.status_code
    if status == 426:
        more.append(("connection", "Upgrade"))
    elif dict(headers).get("sec-websocket-version", "13") != "13":
        status, more = (
            426,
            [("sec-websocket-version", "13"), ("upgrade", "websocket"), ("connection", "Upgrade")],
        )
    return plain(status, bytes(answer.body).decode(), *more)


def _choose(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours that the client wants too; to want none is fine."""
    first = offered[:_MAX_SUBPROTOCOLS]
    return next((Subprotocol(ours) for ours in SUBPROTOCOLS if ours in first), None)
