"""What a transport is to the hub, and what a host must bring (T1).

Three parties, each ignorant of the others' insides:

- a *host* (an ASGI server, our own server, an in-memory test) moves bytes: a :class:`Pipe`;
- a *transport* knows the state and the format of one kind of pipe (frames, event streams, polls), and
  is driven by the host: ``received``, ``writable``, ``lost``;
- a :class:`Driver` (the hub's connection) gets whole frames of units and hands out units to be sent.

A host finds the hub through :class:`Acceptor`, so that no host imports the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, Protocol, TypeVar, final
from urllib.parse import parse_qsl

__all__ = ["Batch", "Driver", "Handshake", "Pipe", "Refused", "Transport", "joined"]

T = TypeVar("T")


def joined(units: Sequence[bytes]) -> bytes:
    """Units as one text message: one a line."""
    return units[0] if len(units) == 1 else b"\n".join(units)


@final
class Batch:
    """Units that many connections get in the same loop turn, and every form of them somebody writes (W2, D4).

    A host that can hand bytes to the network asks for its own form, such as a finished WebSocket frame; it is made
    for the first connection and shared by the rest.

    :ivar units: the encoded units, in order; at least one.
    """

    __slots__ = ("_forms", "units")

    def __init__(self, units: Sequence[bytes]) -> None:
        self.units = units
        self._forms: dict[Callable[[Sequence[bytes]], Any], Any] = {}

    def form(self, make: Callable[[Sequence[bytes]], T]) -> T:
        """What *make* makes of the units, made once. *make* is a function of a module: it is its own key."""
        try:
            found: T = self._forms[make]
        except KeyError:
            found = self._forms[make] = make(self.units)
        return found


@dataclass(frozen=True, slots=True)
class Handshake:
    """The request that opened a transport, as the host saw it.

    :param path: of the URL, without the query.
    :param headers: in the order received, names in lower case.
    :param query: the raw query string.
    :param address: the peer's IP address, or empty.
    :param secure: whether the peer's side was TLS, or None where the host does not know.
    :param scope: the ASGI scope, or empty.
    """

    path: str = "/"
    headers: Sequence[tuple[str, str]] = ()
    query: str = ""
    address: str = ""
    secure: bool | None = None
    scope: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def header(self, name: str) -> str | None:
        """The header's value, repeated ones joined with ``", "``; None when it is not there."""
        values = [value for key, value in self.headers if key == name]
        return ", ".join(values) if values else None

    def all_headers(self) -> dict[str, str]:
        """Every header once, repeated ones joined."""
        found: dict[str, str] = {}
        for key, value in self.headers:
            found[key] = f"{found[key]}, {value}" if key in found else value
        return found

    def cookies(self) -> dict[str, str]:
        """The cookies; a malformed header yields none."""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load("; ".join(value for key, value in self.headers if key == "cookie"))
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in jar.items()}

    def params(self) -> dict[str, str]:
        """The query's parameters; of a repeated one the last."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def __repr__(self) -> str:
        # No header and no query: they have tokens, cookies and session ids in them (A5).
        return f"<Handshake {self.path!r} from {self.address or 'somewhere'}, {len(self.headers)} headers>"


class Refused(Exception):
    """The hub does not take this handshake.

    :param status: the HTTP status to answer with.
    :param reason: plain words for the body.
    :param retry_after: seconds, for a ``Retry-After`` header.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Pipe(Protocol):
    """A host's end of one connection that moves text messages both ways (a WebSocket)."""

    @property
    def buffered(self) -> int:
        """Bytes taken by :meth:`write` that the host has not yet passed to the network."""
        ...

    def write(self, data: bytes) -> None:
        """Send one text message; never blocks. When all is passed on, the host calls ``writable``."""
        ...

    def write_batch(self, batch: Batch) -> None:
        """Send a batch as one text message: the same as ``write(batch.form(joined))``, from a form all share."""
        ...

    def pause_reading(self) -> None:
        """Take nothing more from the network until :meth:`resume_reading`; TCP pushes back."""
        ...

    def resume_reading(self) -> None:
        """Go on reading."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Send what was written, then a close frame; bounded in time; idempotent."""
        ...


class Transport(Protocol):
    """One live pipe, as the hub sees it; dies with the network.

    :ivar max_frame: bytes of the next frame that comes in, at the most; the driver says so, and hosts that can see a
        frame's length before its bytes go by it.
    """

    max_frame: int

    @property
    def kind(self) -> str:
        """``websocket``, ``sse`` or ``poll``: a metric's label."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes that were sent but have not left this process yet (D1)."""
        ...

    def send(self, units: Sequence[bytes]) -> None:
        """Send units, joined as the format allows; never blocks."""
        ...

    def send_batch(self, batch: Batch) -> bool:
        """Send what others get too; whether all of it has left this process (``buffered`` is 0)."""
        ...

    def pause_reading(self) -> None:
        """Let the peer's commands wait in the network (C2)."""
        ...

    def resume_reading(self) -> None:
        """Go on reading."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say why, and end. Idempotent."""
        ...


class Driver(Protocol):
    """What drives a transport: the hub's connection. Plain functions that never block."""

    def received(self, frame: bytes) -> None:
        """A frame of units came in."""
        ...

    def writable(self) -> None:
        """All that was sent has left this process."""
        ...

    def lost(self, code: int, reason: str) -> None:
        """The transport is gone, for whatever reason; called exactly once, last."""
        ...
