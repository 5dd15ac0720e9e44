"""The WebSocket handshake of a request whose head was parsed elsewhere (RFC 6455, section 4.2). Pure.

The checks are websockets'. Its protocol object keeps no state that they look at, so one does for all handshakes; the
rest of it, 4 KiB for each connection, is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ..hosting.asgi import SUBPROTOCOLS
from ..hosting.deflate import negotiate
from ..hosting.endpoints import Response, plain

__all__ = ["Upgraded", "upgrade"]

_MAX_SUBPROTOCOLS: Final = 16
#: Of which there must be one only, or a proxy in front may have looked at another one.
_ONCE: Final = ("host", "origin", "sec-websocket-key", "sec-websocket-version")
#: What the checks look at.
_LOOKED_AT: Final = frozenset(
    ("connection", "sec-websocket-key", "sec-websocket-protocol", "sec-websocket-version", "upgrade")
)


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A handshake that is taken.

    :param head: of the answer, to be sent.
    :param deflate: it agrees to compression.
    """

    head: bytes
    deflate: bool = False


def upgrade(target: str, headers: Sequence[tuple[str, str]], *, deflate: bool = False) -> Upgraded | Response:
    """The head of the 101 answer to a GET of HTTP/1.1; or the answer that refuses it.

    :param target: of the request.
    :param headers: names in lower case.
    :param deflate: agree to compression where the client offers it in a way that will do (T9).
    """
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            return plain(400, f"more than one {name.title()} header\n")
    request = Request(target, Headers([each for each in headers if each[0] in _LOOKED_AT]))
    try:
        accept, _, subprotocol = checks().process_request(request)
    except InvalidHandshake:
        return _refused(request)
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept}",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    extension = None
    if deflate:
        extension = negotiate(
            ", ".join(value for name, value in headers if name == "sec-websocket-extensions")
        )
        if extension is not None:
            lines.append(f"Sec-WebSocket-Extensions: {extension}")
    return Upgraded("\r\n".join((*lines, "", "")).encode("ascii"), extension is not None)


def _refused(request: Request) -> Response:
    answer = ServerProtocol(select_subprotocol=_choose).accept(request)
    text = bytes(answer.body).decode()
    version = request.headers.get_all("sec-websocket-version")
    ours = (("upgrade", "websocket"), ("connection", "Upgrade"))
    if answer.status_code == 400 and version and version != ["13"]:
        return plain(426, text, ("sec-websocket-version", "13"), *ours)  # section 4.4
    return plain(answer.status_code, text, *(ours if answer.status_code == 426 else ()))


@functools.cache
def checks() -> ServerProtocol:
    """The one that looks at all handshakes; it keeps nothing of them."""
    return ServerProtocol(select_subprotocol=_choose)


def _choose(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours that the client wants too; to want none is fine."""
    first = offered[:_MAX_SUBPROTOCOLS]
    return next((Subprotocol(ours) for ours in SUBPROTOCOLS if ours in first), None)
