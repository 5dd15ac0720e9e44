"""The pipe under a client: what it must do, and nothing about how.

A :class:`Dialer` opens a :class:`Wire`; a wire carries whole frames both ways. Over HTTP a pipe begins with what is
said first: an :class:`Opener` opens it. The WebSocket is in :mod:`rtkit.client.websocket`, HTTP in
:mod:`rtkit.client.sse` and :mod:`rtkit.client.poll`, and the choice among them in :mod:`rtkit.client.fallback`;
tests and in-process hubs bring their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .. import codes
from ..errors import RtkitError

__all__ = ["DialFailed", "Dialer", "Opener", "Wire", "WireClosed"]


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
    :param unusable: this kind of pipe does not work on this way; another may (T7). Whoever knows of no other
        kind goes by *terminal*.
    """

    def __init__(
        self,
        reason: str,
        *,
        terminal: bool = False,
        code: int = codes.BAD_REQUEST_CLOSE,
        window: tuple[float, float] | None = None,
        unusable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.terminal = terminal
        self.code = code
        self.window = window
        self.unusable = unusable


class Wire(Protocol):
    """One live pipe. One task sends and another receives; any may close.

    Guarantees: frames arrive whole and in order, or not at all. What came in before the pipe closed is
    still received after it. A wire may have an attribute ``transport``, which names its kind.
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


@runtime_checkable
class Opener(Protocol):
    """Opens pipes that begin with a frame; in place of a :class:`Dialer`."""

    async def open(self, url: str, headers: Mapping[str, str], hello: bytes) -> Wire:
        """Open a pipe to *url* as :meth:`Dialer.dial` does, and send *hello*, the first frame, with it.

        It bounds itself in time; the answer to *hello* may come later, by :meth:`Wire.recv`.

        Errors: :exc:`DialFailed`; or any :exc:`OSError`, which counts as one that may pass.
        Cancellation: safe, nothing is left open. *hello* may have been sent.
        """
        ...
