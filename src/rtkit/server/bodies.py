"""The body of a request while it comes in: who takes it, and how large it may be."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, final

from ..hosting.endpoints import plain
from ..transports import most_of_body
from .exchanges import answer_api, answer_hub
from .heads import Head, RequestRefused, too_large

if TYPE_CHECKING:
    from .http import HttpConnection
    from .site import Site

__all__ = ["Body", "Taker", "expect"]

Taker = Callable[["HttpConnection", Head, bytes], Coroutine[Any, Any, None]]
"""Answers a request whose body is there."""


@final
class Body:
    """What is there of a body. If nobody takes it, it is counted and thrown away, so that the connection stays usable.

    :param most: bytes of it at the most.
    :param taker: who takes it.
    """

    __slots__ = ("_data", "_most", "_size", "taker")

    def __init__(self, most: int, taker: Taker | None = None) -> None:
        self._most = most
        self._size = 0
        self._data = bytearray()
        self.taker = taker

    def take(self, data: bytes) -> None:
        """More of it is there.

        :raises RequestRefused: when that is too much.
        """
        self._size += len(data)
        if self._size > self._most:
            raise RequestRefused(too_large(self._most))
        if self.taker is not None:
            self._data += data

    def whole(self) -> bytes:
        """All of it; empty where nobody takes it."""
        return bytes(self._data)


def expect(site: Site, head: Head) -> Body:
    """The body of a request whose head is there.

    :raises RequestRefused: when it is turned away without a look at the body.
    """
    body = _body(site, head)
    if head.length is not None and head.length > body._most:
        raise RequestRefused(too_large(body._most))
    return body


def _body(site: Site, head: Head) -> Body:
    api, request = site.api, site.api_request(head)
    if api is not None and request is not None:
        refused = api.screen(request)
        if refused is not None:
            raise RequestRefused(refused)
        return Body(api.max_body, answer_api)
    endpoint = site.exchange(head)
    if endpoint is None:
        return Body(site.limits.body)
    if sum(name == "origin" for name, _ in head.headers) > 1:
        raise RequestRefused(plain(400, "more than one Origin header\n"))
    return Body(most_of_body(site.acceptor, endpoint), answer_hub)
