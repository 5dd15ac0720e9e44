"""The head of a request: what is served, what is refused, and with which words. Pure.

h11 judges the grammar. What it takes and we do not: two ways to give the length of one body, and lines that end with a
bare line feed, both of which a proxy in front may read in another way; versions other than 1.0 and 1.1.

What is too much is refused before h11 sees it. h11 bounds only a head that is not there yet; one that came in a single
read, which is 256 KiB at the most, it would parse, at 30 µs a header: a second in which nobody else is served.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from ..hosting.endpoints import Response, plain

if TYPE_CHECKING:
    import h11

    from .limits import ServerLimits

__all__ = ["Head", "RequestRefused", "not_http", "read_head", "screen", "too_large"]

_TLS_HANDSHAKE: Final = 0x16

#: What h11 takes for the end of a head, and what no line of it may end with.
_END: Final = re.compile(rb"\n\r?\n")
_BARE: Final = re.compile(rb"(?<!\r)\n")
_TOO_LONG: Final = "the head of a request has {} bytes at the most\n"
_TOO_MANY: Final = "a request has {} headers at the most\n"

#: Headers in which thousands of clients say the same.
_COMMON: Final = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"host",
        b"origin",
        b"pragma",
        b"priority",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
        b"user-agent",
        b"via",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    )
)


class RequestRefused(Exception):
    """A request gets this answer at once, and it is the connection's last."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body.

    :param target: as it was sent.
    :param path: decoded.
    :param query: raw.
    :param version: ``1.0`` or ``1.1``.
    :param headers: in the order received, names in lower case.
    :param merged: each name once, values of repeated ones joined.
    """

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: Sequence[tuple[str, str]]
    merged: Mapping[str, str]

    @property
    def length(self) -> int | None:
        """What is said about the length of the body, in bytes."""
        length = self.merged.get("content-length")
        return None if length is None else int(length)

    @property
    def has_body(self) -> bool:
        """Whether a body of at least one byte follows, or may."""
        return self.merged.get("content-length", "0") != "0" or "transfer-encoding" in self.merged

    def __repr__(self) -> str:
        # Neither query nor headers: they have tokens, cookies and session ids in them (A5).
        return f"<Head {self.method} {self.path!r}, HTTP/{self.version}, {len(self.headers)} headers>"


def screen(raw: bytes, limits: ServerLimits) -> None:
    """Look whether a head, or what is there of one, is within its bounds.

    :param raw: the bytes it is made of, and whatever follows.
    :raises RequestRefused: when it is not.
    """
    if raw[:1] and raw[0] == _TLS_HANDSHAKE:
        return  # which is no head, and h11 says so at once
    end = _END.search(raw, 0, limits.head)
    if end is None and len(raw) >= limits.head + 1:
        raise RequestRefused(plain(431, _TOO_LONG.format(limits.head)))
    size = len(raw) if end is None else end.end()
    # The first line and the empty one at the end are none.
    if raw.count(b"\n", 0, size) > limits.headers + 2:
        raise RequestRefused(plain(431, _TOO_MANY.format(limits.headers)))


def read_head(event: h11.Request, raw: bytes, limits: ServerLimits) -> Head:
    """The head, once it is known to be one we serve.

    :param raw: the bytes it was made of, and whatever followed; they have been screened.
    :raises RequestRefused: for one we do not.
    """
    end = _END.search(raw)
    size = len(raw) if end is None else end.end()
    if _BARE.search(raw, 0, size):
        raise RequestRefused(plain(400, "lines end with CR LF, not with LF alone\n"))
    headers = _decoded(event.headers)
    merged: dict[str, str] = {}
    for name, value in headers:
        merged[name] = f"{merged[name]}, {value}" if name in merged else value
    target, version = event.target.decode("latin-1"), event.http_version.decode("latin-1")
    path, query = _split_target(target)
    head = Head(event.method.decode("latin-1"), target, path, query, version, headers, merged)
    if len(headers) > limits.headers:
        raise RequestRefused(plain(431, _TOO_MANY.format(limits.headers)))
    if version not in ("1.0", "1.1"):
        raise RequestRefused(plain(505, "this server speaks HTTP/1.1\n"))
    if "transfer-encoding" in merged and (head.length is not None or version == "1.0"):
        text = "a request has one length: Content-Length or, in HTTP/1.1, Transfer-Encoding\n"
        raise RequestRefused(plain(400, text))
    return head


def too_large(most: int) -> Response:
    """The answer to a body that is too large."""
    return plain(413, f"a body has {most} bytes at the most\n")


def not_http(error: h11.RemoteProtocolError, limits: ServerLimits, data: bytes) -> Response:
    """The answer to what is not HTTP, or has too long a head.

    :param data: what h11 has not taken.
    """
    status = error.error_status_hint
    if data[:1] and data[0] == _TLS_HANDSHAKE:
        return plain(400, "This port speaks plain HTTP, and this was TLS: use http:// and ws://.\n")
    if status == 431:
        return plain(431, _TOO_LONG.format(limits.head))
    if status == 501:
        return plain(501, "the only Transfer-Encoding served is chunked\n")
    return plain(400, f"not a valid HTTP/1.1 request: {str(error)[:200]}\n")


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Headers as text. A handshake is kept as long as its connection, so what is common is kept once for all."""
    return [
        _shared(name, value)
        if name in _COMMON and len(value) < 500
        else (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
    ]


@functools.lru_cache(maxsize=1024)
def _shared(name: bytes, value: bytes) -> tuple[str, str]:
    return name.decode("latin-1"), value.decode("latin-1")


def _split_target(target: str) -> tuple[str, str]:
    """The decoded path and the raw query of a request target."""
    if not target.startswith("/") and "://" in target:
        # The absolute form, which every server must take (RFC 9112, section 3.2.2).
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    return unquote(path), query
