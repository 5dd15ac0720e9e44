"""Answering with a file of the static folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from ..hosting.endpoints import Response, etag_matches
from .static import PIECE, StaticFile

if TYPE_CHECKING:
    from .heads import Head
    from .http import HttpConnection

__all__ = ["send_file"]


async def send_file(connection: HttpConnection, head: Head, parts: tuple[str, ...]) -> None:
    """Send what is at *parts* of the static folder, or say that nothing is.

    Cancellation: safe; the connection is not usable then.
    """
    folder = connection.site.static
    assert folder is not None
    found = await folder.find(parts)
    if found is None:
        connection.respond(connection.site.nothing(head))
        return
    try:
        await _send(connection, head, found)
    finally:
        found.close()


async def _send(connection: HttpConnection, head: Head, found: StaticFile) -> None:
    headers = [("cache-control", "no-cache"), ("etag", found.etag), ("x-content-type-options", "nosniff")]
    if etag_matches(head.merged.get("if-none-match"), found.etag):
        connection.respond(Response(304, headers))
        return
    headers += [("content-type", found.content_type), ("content-length", str(found.size))]
    if head.method == "HEAD" or found.size == len(found.first):
        connection.respond(Response(200, headers, b"" if head.method == "HEAD" else found.first))
        return
    await connection.send_piece(connection.format(Response(200, headers)))
    left, piece = found.size, found.first
    while piece:
        left -= len(piece)
        await connection.send_piece(connection.http.send(h11.Data(data=piece)))
        piece = await found.read(min(PIECE, left))
    connection.finish(b"")  # raises for a file that has shrunk meanwhile
