"""What a hub answers to plain HTTP, whoever serves it. Pure but for one read of a file that comes with the package.

Endpoints are told by the last segment of the path, since hosts cut prefixes differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, final

from ..transports import Response, plain, refusal

__all__ = [
    "SCRIPTS",
    "WEBSOCKET",
    "Crowded",
    "Endpoints",
    "Request",
    "Response",
    "etag_matches",
    "plain",
    "refusal",
]

#: Last segments below the mount point that are the WebSocket; the empty one is the mount point itself.
WEBSOCKET: Final = frozenset({"", "ws", "websocket"})
#: The browser SDK, by name, and what it is served as.
SCRIPTS: Final = {
    "client.js": "text/javascript; charset=utf-8",
    "http.js": "text/javascript; charset=utf-8",
    "chunks.js": "text/javascript; charset=utf-8",
    "people.js": "text/javascript; charset=utf-8",
    "client.d.ts": "text/plain; charset=utf-8",
}
_NAMED: Final = frozenset({"ready", "ws", "websocket", *SCRIPTS})

_ALLOW: Final = "GET, HEAD, OPTIONS"

NOT_FOUND: Final = (
    "Nothing is here. This is rtkit; below its mount point are ws (a WebSocket), sse, poll, events, "
    "ready and client.js.\n"
)
_NO_SCRIPT: Final = "This installation of rtkit comes without its browser SDK.\n"
_NO_UPGRADE: Final = (
    "This is a WebSocket endpoint, but the request has no Upgrade header. If a WebSocket client sent it, "
    "a proxy in between has removed that: it must pass on Upgrade and Connection, in HTTP/1.1.\n"
)
_NO_WEBSOCKET: Final = (
    "The ASGI server handed over a WebSocket request as plain HTTP: its WebSocket support is missing or "
    "turned off. For uvicorn: pip install websockets, and no --ws none.\n"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as far as these endpoints look at it.

    :param method: in capitals.
    :param endpoint: the last segment of the path below the mount point.
    :param headers: by name, in lower case; repeated ones joined with ``", "``.
    :param http_version: as in ``1.1``.
    """

    method: str
    endpoint: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    http_version: str = "1.1"

    def __repr__(self) -> str:
        # No header: there are keys and cookies among them (A5).
        return f"<Request {self.method} {self.endpoint!r}, {len(self.headers)} headers>"


def etag_matches(header: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` header names the tag, weakly compared (RFC 9110, section 13.1.2)."""
    if header is None:
        return False
    return header.strip() == "*" or any(each.strip().removeprefix("W/") == tag for each in header.split(","))


class Crowded(float):
    """Seconds after which to come back, said by a hub that is well and has more newcomers than it lets in (F2).

    A balancer must not take it for one that is away: all others have a crowd as well. A client whose transport did not
    work learns that this was not the transport's fault (T7).
    """

    __slots__ = ()


@final
class Endpoints:
    """Answers for one hub.

    :param ready: None when new clients are welcome, else the seconds after which they shall come back (M4); those of
        a hub that is well are :class:`Crowded`.
    """

    __slots__ = ("_ready", "_scripts")

    def __init__(self, ready: Callable[[], float | None] | None = None) -> None:
        self._ready = ready
        self._scripts: dict[str, tuple[bytes, str]] = {}

    def knows(self, endpoint: str) -> bool:
        """Whether the last segment of a path is one of ours; the mount point itself speaks WebSocket only."""
        return endpoint in _NAMED

    def answer(self, request: Request) -> Response:
        """What to answer to a request that does not become a WebSocket."""
        head = request.method == "HEAD"
        if request.endpoint not in _NAMED:
            return plain(404, NOT_FOUND, head=head)
        cors: tuple[tuple[str, str], ...] = ()
        if request.endpoint == "ready":
            cors = (("access-control-allow-origin", "*"), ("access-control-expose-headers", "retry-after"))
        elif request.endpoint in SCRIPTS:
            cors = (("access-control-allow-origin", "*"),)
        if request.method == "OPTIONS":
            return Response(204, (("cache-control", "no-store"), *cors, ("allow", _ALLOW)))
        if request.method not in ("GET", "HEAD"):
            return plain(405, "method not allowed\n", *cors, ("allow", _ALLOW))
        if request.endpoint == "ready":
            return self._readiness(cors, head=head)
        if request.endpoint in SCRIPTS:
            return self._script(request, cors, head=head)
        return _no_upgrade(request, head=head)

    def _readiness(self, cors: tuple[tuple[str, str], ...], *, head: bool) -> Response:
        seconds = None if self._ready is None else self._ready()
        if seconds is None:
            return Response(204, (("cache-control", "no-store"), *cors))
        later = ("retry-after", str(max(1, round(seconds))))
        if isinstance(seconds, Crowded):
            return Response(204, (("cache-control", "no-store"), *cors, later))
        return plain(503, "not ready\n", *cors, later, head=head)

    def _script(self, request: Request, cors: tuple[tuple[str, str], ...], *, head: bool) -> Response:
        name = request.endpoint
        found = self._scripts.get(name)
        if found is None:
            try:
                body = resources.files("rtkit").joinpath("browser", name).read_bytes()
            except OSError:
                return plain(404, _NO_SCRIPT, *cors, head=head)
            found = self._scripts[name] = body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        body, tag = found
        headers = (("cache-control", "no-cache"), *cors, ("etag", tag), ("x-content-type-options", "nosniff"))
        if etag_matches(request.headers.get("if-none-match"), tag):
            return Response(304, headers)
        headers = (*headers, ("content-type", SCRIPTS[name]), ("content-length", str(len(body))))
        return Response(200, headers, b"" if head else body)

    def __repr__(self) -> str:
        return "<Endpoints>"


def _no_upgrade(request: Request, *, head: bool) -> Response:
    more = [("upgrade", "websocket")]
    if request.http_version.startswith("1"):
        more.append(("connection", "Upgrade"))  # RFC 9110, section 7.8; HTTP/2 forbids it
    text = _NO_WEBSOCKET if "upgrade" in request.headers else _NO_UPGRADE
    return plain(426, text, *more, head=head)
