"""Plain HTTP, as hosts and the hub pass it to each other: whole requests, whole responses, responses that go on (T1).

A host reads a request with its body, within its limits, and hands it to :meth:`Acceptor.answer`. It gets back

- a :class:`Response`: send it;
- a future of one: send it when it is there, and cancel the future when the client has gone away before;
- a :class:`Streaming`: send its head, then call ``start`` with a :class:`StreamPipe`, and from then on tell the
  stream that came back when it is ``writable`` and that it is ``lost``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from .base import Batch, Handshake

__all__ = [
    "HTTP_ENDPOINTS",
    "Answer",
    "Form",
    "HttpRequest",
    "Response",
    "Stream",
    "StreamPipe",
    "Streaming",
    "plain",
    "refusal",
]

#: Last segments of paths that :meth:`Acceptor.answer` serves; each may be asked for by several methods.
HTTP_ENDPOINTS: Final = frozenset({"sse", "http_stream", "send", "emulation", "poll", "events"})

_TEXT: Final = "text/plain; charset=utf-8"

Form = Callable[[Sequence[bytes]], bytes]
"""Units to the bytes of one kind of response. A function of a module: it is a key of :meth:`Batch.form`."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request whose body is there.

    :param method: in capitals.
    :param endpoint: the last segment of the path below the mount point.
    :param handshake: its head.
    :param body: all of it, at most as many bytes as :func:`~rtkit.transports.most_of_body` says.
    """

    method: str
    endpoint: str
    handshake: Handshake
    body: bytes = b""

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.endpoint!r}, {len(self.body)} bytes, {self.handshake!r}>"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer with a body that is at hand.

    :param headers: names in lower case; ``content-length`` among them where there may be a body, also to a HEAD,
        whose body is empty.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = b""

    def __repr__(self) -> str:
        # Its body may have a session's id and its resume token in it (A5).
        return f"<Response {self.status}, {len(self.body)} bytes>"


class StreamPipe(Protocol):
    """A host's end of a response that goes on."""

    @property
    def buffered(self) -> int:
        """Bytes taken by :meth:`write` that the host has not yet passed to the network."""
        ...

    def write(self, data: bytes) -> None:
        """Send bytes of the body; never blocks. When all is passed on, the host calls ``writable``."""
        ...

    def write_batch(self, batch: Batch, form: Form) -> None:
        """The same as ``write(batch.form(form))``, from a form all share."""
        ...

    def end(self) -> None:
        """Send what was written, then end the response; bounded in time; idempotent."""
        ...


class Stream(Protocol):
    """What a host tells about a response that goes on."""

    def writable(self) -> None:
        """The host has passed on all that was written."""
        ...

    def lost(self, code: int, reason: str) -> None:
        """The response has ended, or the client is gone; called exactly once, last. 1000 if it ended in order."""
        ...


@dataclass(frozen=True, slots=True)
class Streaming:
    """An answer with a body that goes on.

    :param headers: names in lower case; no length.
    :param start: called once, when the head was sent; never called if the client has gone away before.
    """

    headers: Sequence[tuple[str, str]]
    start: Callable[[StreamPipe], Stream]
    status: int = 200


Answer = Response | Streaming | asyncio.Future[Response]


def plain(status: int, text: str, *more: tuple[str, str], head: bool = False) -> Response:
    """A page in plain words, never to be cached.

    :param more: headers besides its type and length.
    :param head: answer a HEAD.
    """
    body = text.encode()
    headers = (
        ("cache-control", "no-store"),
        *more,
        ("content-type", _TEXT),
        ("content-length", str(len(body))),
        ("x-content-type-options", "nosniff"),
    )
    return Response(status, headers, b"" if head else body)


def refusal(status: int, reason: str, retry_after: int | None = None) -> Response:
    """The answer to a request that is not taken."""
    more = () if retry_after is None else (("retry-after", str(retry_after)),)
    return plain(status, reason if reason.endswith("\n") else f"{reason}\n", *more)
