"""What the server allows by default."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["ServerLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of a server; sizes in bytes, times in seconds.

    Those of a WebSocket, a stream or a poll once it is open (messages, outbox, heartbeat), and of what is sent to the
    hub's endpoints, are the hub's :class:`~rtkit.Limits`.

    :param head: request line and headers together; a larger head is answered 431.
    :param headers: how many of them; more are answered 431.
    :param body: of a request whose body nobody takes; a larger one is answered 413.
    :param header_time: from the first byte of a request, or the opening of the connection and TLS, until the head is
        there; else 408.
    :param body_time: from the head until the body is there; else 408.
    :param answer_time: from the request being there until there is an answer (else 503), and then until it has left,
        or the next 64 KiB of it (else the connection is dropped). Not while a poll waits.
    :param idle_time: between requests; then the connection is closed.
    :param connections: open at once, WebSockets and streams included; more are answered 503.
    :param close_timeout: that a closing connection may take, flushing included. Keep it below the hub's
        ``drain_timeout``.
    :param drain_timeout: that requests under way get when the server closes.
    :param silence: until the kernel gives up a peer that confirms nothing of what was sent (``TCP_USER_TIMEOUT``,
        Linux only); None leaves that to the system, which means a quarter of an hour.
    :raises ValueError: for a bound that is not positive.
    """

    head: int = 16 * 1024
    headers: int = 100
    body: int = 1024 * 1024
    header_time: float = 10.0
    body_time: float = 30.0
    answer_time: float = 30.0
    idle_time: float = 30.0
    connections: int = 20_000
    close_timeout: float = 4.0
    drain_timeout: float = 5.0
    silence: float | None = 30.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.name == "silence":
                continue
            if value is None or not value > 0:
                raise ValueError(f"ServerLimits({each.name}=…) is positive, not {value!r}")
