"""Where to connect, and with what patience."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from urllib.parse import SplitResult, urlsplit, urlunsplit

__all__ = ["Policy", "endpoint", "is_loopback", "without_secrets"]

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_ENDPOINTS = ("/ws", "/connection/websocket")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Times and bounds of a client that seldom need changing; times in seconds.

    :param min_delay: before trying again, at the least (F3).
    :param max_delay: at the most; a window the server names wins over both.
    :param open_timeout: for the token function, for opening a pipe, and again for the answer to ``connect``. Where
        there is another kind of pipe to fall back to, one is waited for no longer than 3 s. A token function that
        takes longer has failed, and is asked again after a delay.
    :param silence: beyond the server's ping interval without hearing anything, until it counts as gone (F4).
    :param close_timeout: for saying goodbye.
    :param resend_within: after its first writing a command may be written again; half the server's
        window for keys (H7).
    :param max_offline_bytes: payloads of commands without an answer, at the most.
    :param stable: a connection that lived this long makes the delays begin anew.
    :raises ValueError: for a number that is not positive and finite, or delays the wrong way round.
    """

    min_delay: float = 0.5
    max_delay: float = 20.0
    open_timeout: float = 10.0
    silence: float = 10.0
    close_timeout: float = 2.0
    resend_within: float = 150.0
    max_offline_bytes: int = 32 * 1024 * 1024
    stable: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 < value < math.inf:
                raise ValueError(f"Policy({each.name}=…) is positive and finite, not {value!r}")
        if self.min_delay > self.max_delay:
            raise ValueError(f"Policy(min_delay={self.min_delay}) exceeds max_delay={self.max_delay}")


def endpoint(url: str) -> str:
    """The WebSocket URL of a hub: ``http(s)`` becomes ``ws(s)``, and ``/ws`` is appended where it is missing.

    :raises ValueError: for a URL that cannot be one.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        why = "" if "@" in url else f": {error}"  # it may quote what stands before the host
        raise ValueError(f"{_shown(url)!r:.200} is no URL{why}") from None
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not host:
        raise ValueError(
            f"connect() takes a ws://, wss://, http:// or https:// URL, not {_shown(url)!r:.200}"
        )
    path = parts.path.rstrip("/")
    if not path.endswith(_ENDPOINTS):
        path += "/ws"
    return urlunsplit(SplitResult(scheme, parts.netloc, path, parts.query, ""))


def without_secrets(url: str) -> str:
    """The URL as it may be shown: without user, password and query (A5)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _shown(url: str) -> str:
    """The same of what may be no URL."""
    url = url.partition("?")[0].partition("#")[0]
    before, slashes, rest = url.partition("//")
    return before + slashes + rest.rpartition("@")[2] if slashes else url.rpartition("@")[2]


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.endswith(".localhost") or host.startswith("127.")
