"""The pipe under a client: what it must do, and nothing about how.

A :class:`Dialer` opens a :class:`Wire`; a wire carries whole frames both ways. The WebSocket one is in
:mod:`rtkit.client.websocket`; tests and in-process hubs bring their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .. import codes
from ..errors import RtkitError

__all__ = ["DialFailed", "Dialer", "Wire", "WireClosed"]


class WireClosed(RtkitError):
    """The pipe is closed. Raised by a :class:`Wire` only; applications never see it.

    :param code: the peer's close code; 1006 when the pipe broke without one.
    :param reason: plain words.
    """

    def __init__(self, code: int = 1006, reason: str = "") -> None:
        super().__init__(f"the pipe closed with code {code}: {reason or codes.describe_close(code)}")
        self.code = code
        self.reason = reason


class DialFailed(RtkitError):
    """The pipe could not be opened. Raised by a :class:`Dialer` only.

    :param reason: plain words, for people; without secrets.
    :param terminal: trying again cannot help; the client closes with *code*.
    :param code: the close code that says so.
    :param window: least and most seconds until the next attempt, if the server named them.
    """

    def __init__(
        self,
        reason: str,
        *,
        terminal: bool = False,
        code: int = codes.BAD_REQUEST_CLOSE,
        window: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.terminal = terminal
        self.code = code
        self.window = window


class Wire(Protocol):
    """One live pipe. One task sends and another receives; any may close.

    Guarantees: frames arrive whole and in order, or not at all. What came in before the pipe closed is
    still received after it.
    """

    async def send(self, frame: bytes) -> None:
        """Hand over a frame: units, one JSON object a line. Waits while the pipe is full.

        Never waits beyond the end of the pipe: closing it, by whomever, ends the wait.

        Errors: :exc:`WireClosed`.
        Cancellation: the frame may have been sent or not; the pipe is only closed afterwards.
        """
        ...

    async def recv(self) -> bytes:
        """The next frame.

        Errors: :exc:`WireClosed`, every time, once the pipe is closed and everything was received.
        Cancellation: safe, no frame is lost.
        """
        ...

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye and let go of the pipe. Idempotent, bounded in time, raises nothing.

        Cancellation: the pipe is let go of without a goodbye. After it, in every case, nothing of the
        pipe is left but what :meth:`recv` has not fetched.
        """
        ...


class Dialer(Protocol):
    """Opens pipes; one serves all connections of a client, one after another."""

    async def dial(self, url: str, headers: Mapping[str, str]) -> Wire:
        """Open a pipe to *url*, a ``ws://`` or ``wss://`` URL that ends in the path of the endpoint.

        The caller bounds it in time by cancelling.

        Errors: :exc:`DialFailed`; or any :exc:`OSError`, which counts as one that may pass.
        Cancellation: safe, nothing is left open.
        """
        ...
