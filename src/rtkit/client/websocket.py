"""WebSockets as the pipe, by the ``websockets`` library, which is loaded when the first one is dialled."""

from __future__ import annotations

import functools
import logging
import ssl as _ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import codes
from ..clock import Clock
from ..primitives.clocks import LoopClock, timeout
from .options import without_secrets
from .refusals import refusal
from .transport import DialFailed, WireClosed

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Response

__all__ = ["WebSocketDialer", "WebSocketWire"]


class WebSocketWire:
    """A :class:`~rtkit.client.transport.Wire` over one WebSocket."""

    transport = "websocket"

    __slots__ = ("_clock", "_close_timeout", "_connection")

    def __init__(self, connection: ClientConnection, *, clock: Clock, close_timeout: float) -> None:
        self._connection = connection
        self._clock = clock
        self._close_timeout = close_timeout

    async def send(self, frame: bytes) -> None:
        """See :meth:`Wire.send`."""
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(frame, text=True)
        except ConnectionClosed as closed:
            raise _why(closed) from None

    async def recv(self) -> bytes:
        """See :meth:`Wire.recv`."""
        from websockets.exceptions import ConnectionClosed

        try:
            return await self._connection.recv(decode=False)
        except ConnectionClosed as closed:
            raise _why(closed) from None

    async def close(self, code: int, reason: str) -> None:
        """See :meth:`Wire.close`."""
        short = reason.encode()[:120].decode(errors="ignore")
        try:
            # The library bounds the closing handshake, but not the wait for a full buffer before it.
            async with timeout(self._clock, self._close_timeout):
                await self._connection.close(code, short)
        except TimeoutError:
            pass
        finally:
            self._connection.transport.abort()

    def __repr__(self) -> str:
        return f"<WebSocketWire {self._connection.state.name.lower()}>"


def _why(closed: ConnectionClosed) -> WireClosed:
    """The peer's code; ours, when it was we who found a fault in what came; else 1006."""
    if closed.rcvd is not None:
        return WireClosed(closed.rcvd.code, closed.rcvd.reason)
    if closed.sent is not None and codes.is_terminal(closed.sent.code):
        return WireClosed(closed.sent.code, closed.sent.reason)
    return WireClosed(1006, str(closed.__cause__) if closed.__cause__ is not None else "")


class WebSocketDialer:
    """Opens WebSockets.

    :param ssl: for ``wss://``; None uses the system's certificates.
    :param proxy: URL of a proxy; True takes it from the environment. None, the default, uses none,
        whatever the environment says.
    :param max_size: bytes of one incoming frame at the most; a larger one ends the connection for good.
    :param close_timeout: seconds for saying goodbye.
    :param clock: measures that.
    """

    def __init__(
        self,
        *,
        ssl: _ssl.SSLContext | None = None,
        proxy: str | bool | None = None,
        max_size: int = 32 * 1024 * 1024,
        close_timeout: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is positive bytes, not {max_size!r}")
        self._ssl = ssl
        self._proxy: Any = proxy or None
        self._max_size = max_size
        self._close_timeout = close_timeout
        self._clock: Clock = LoopClock() if clock is None else clock

    async def dial(self, url: str, headers: Mapping[str, str]) -> WebSocketWire:
        """See :meth:`Dialer.dial`."""
        from websockets.exceptions import InvalidHandshake, InvalidProxy, InvalidStatus, SecurityError

        options: dict[str, Any] = {} if self._ssl is None else {"ssl": self._ssl}
        try:
            connection = await _connector()(
                url,
                additional_headers=dict(headers),
                user_agent_header=None if any(h.lower() == "user-agent" for h in headers) else _user_agent(),
                compression=None,
                proxy=self._proxy,
                open_timeout=None,  # the caller's
                ping_interval=None,  # heartbeats are the protocol's
                close_timeout=self._close_timeout,
                max_size=self._max_size,
                logger=_WithoutFrames(logging.getLogger("websockets.client")),
                **options,
            )
        except InvalidStatus as refused:
            raise self._refused(refused.response, url) from None
        except InvalidProxy as error:  # whose text has the URL of the proxy, which may hold a password
            raise DialFailed(f"{without_secrets(url)}: no valid proxy: {error.msg}", terminal=True) from None
        except SecurityError as error:
            raise DialFailed(f"{without_secrets(url)}: {error}", terminal=True) from error
        except InvalidHandshake as error:
            # No answer, or one that no server of WebSockets gives: something on the way stands in for it.
            raise DialFailed(f"{without_secrets(url)}: {error}", unusable=True) from error
        except _ssl.SSLCertVerificationError as error:
            raise DialFailed(
                f"{without_secrets(url)}: its certificate is not accepted: {error.verify_message}",
                terminal=True,
                code=1015,
            ) from error
        return WebSocketWire(connection, clock=self._clock, close_timeout=self._close_timeout)

    def _refused(self, response: Response, url: str) -> DialFailed:
        return refusal(
            url,
            "the WebSocket",
            response.status_code,
            clock=self._clock,
            location=response.headers.get("Location"),
            retry_after=response.headers.get("Retry-After"),
        )

    def __repr__(self) -> str:
        return f"WebSocketDialer(max_size={self._max_size})"


class _WithoutFrames(logging.LoggerAdapter[logging.Logger]):
    """The library's own logger, but for level DEBUG: what is sent has tokens, cookies and resume tokens in it (A5)."""

    def isEnabledFor(self, level: int) -> bool:
        return level > logging.DEBUG and super().isEnabledFor(level)


@functools.cache
def _connector() -> type[connect]:
    from websockets.asyncio.client import connect

    class Connect(connect):
        """Without redirects: the token would be shown to wherever they lead."""

        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    return Connect


def _user_agent() -> str:
    return f"rtkit-python/{version()}"


@functools.cache
def version() -> str:
    """Of this library, as installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("rtkit")
    except PackageNotFoundError:  # a copy that was never installed
        return "0"
