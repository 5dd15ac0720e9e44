"""The way in: :func:`connect`."""

from __future__ import annotations

import random as _random
import ssl as _ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from msgspec import UNSET, Raw

from ..clock import Clock
from ..primitives.clocks import LoopClock
from ..schema import encode_value
from .client import Client
from .fallback import PATIENCE, FallbackDialer, http_ready
from .http import http_is_installed, http_maker
from .options import Policy, endpoint, without_secrets
from .poll import PollDialer
from .sse import SseDialer
from .tokens import Token, TokenSource
from .transport import Dialer, Opener
from .websocket import WebSocketDialer

__all__ = ["TransportName", "connect"]

TransportName = Literal["websocket", "sse", "poll"]

_NAMES: Final = get_args(TransportName)
_DUPLEX: Final = ("websocket", "sse", "poll")
_RECEIVING: Final = ("sse", "websocket", "poll")


def connect(
    url: str,
    *,
    token: Token = None,
    data: Any = None,
    headers: Mapping[str, str] | None = None,
    wait: bool = True,
    connect_timeout: float | None = None,
    max_offline: int = 1000,
    max_size: int = 32 * 1024 * 1024,
    ssl: _ssl.SSLContext | None = None,
    proxy: str | bool | None = None,
    transports: Sequence[TransportName] | None = None,
    receive_only: bool = False,
    policy: Policy | None = None,
    dialer: Dialer | Opener | None = None,
    clock: Clock | None = None,
    random: _random.Random | None = None,
) -> Client:
    """A client of the hub at *url*, to be entered with ``async with``.

    ::

        async with connect("https://example.org/rt", token=get_token) as client:
            async with client.join("chat:lobby", receives=Said) as room:
                ...

    Nothing happens, and no event loop is needed, until it is entered.

    Where WebSockets do not get through, an event stream and long-polling are tried in their turn, by ``httpcore2``,
    which ``pip install 'rtkit[http]'`` brings. What works is kept for ten minutes. :attr:`Client.transport` tells.

    :param url: of the mounted hub or its WebSocket endpoint. ``http(s)`` is taken as ``ws(s)``, and ``/ws`` is
        appended unless the path ends in ``/ws`` or ``/connection/websocket``. The endpoints for HTTP are beside it.
    :param token: a string; or an async function that returns one, or None. The function is called for every
        connection and to refresh the identity before it expires. What it raises is logged and it is called
        again after a delay; only a ``ConnectionClosed`` raised by it closes the client for good.
    :param data: sent when connecting, beside the token; anything that becomes JSON.
    :param headers: of the WebSocket handshake, and of every request of the other transports.
    :param wait: entering waits until the first connection is authenticated; with False it returns at once,
        and commands are queued until there is a connection.
    :param connect_timeout: seconds entering may wait; None for ever, trying again and again.
    :param max_offline: commands that may wait for an answer; beyond that ``QueueFull`` is raised.
    :param max_size: bytes of one incoming frame at the most; a larger one closes the client for good.
    :param ssl: for ``wss://``; the system's certificates without it.
    :param proxy: URL of a proxy; True takes it from the environment; None uses none.
    :param policy: delays, timeouts and further bounds.
    :param transports: kinds of pipes to try, in this order: ``websocket``, ``sse``, ``poll``, without any of
        them all three.
    :param receive_only: the client hardly sends: without *transports*, the event stream is tried first.
    :param dialer: opens the pipe, in place of all that; then *max_size*, *ssl*, *proxy*, *transports* and
        *receive_only* mean nothing.
    :param clock: measures time; the loop's own without it.
    :param random: draws delays and keys; the system's generator without it.
    :raises ValueError: for a URL or number that cannot be right.
    :raises TypeError: for a token that is none of these.
    :raises InvalidMessage: for *data* that JSON cannot hold.
    """
    if max_offline < 1:
        raise ValueError(f"connect(max_offline=…) is at least 1, not {max_offline!r}")
    if connect_timeout is not None and not connect_timeout > 0:
        raise ValueError(f"connect(connect_timeout=…) is positive seconds or None, not {connect_timeout!r}")
    where = endpoint(url)
    if ssl is not None and not where.startswith("wss://"):
        raise ValueError(f"connect(ssl=…) needs a wss:// or https:// URL, not {without_secrets(where)!r}")
    policy = policy or Policy()
    clock = clock or LoopClock()
    random = random or _random.SystemRandom()
    if transports is None:
        transports = _RECEIVING if receive_only else _DUPLEX
    if not transports or len(set(transports)) < len(transports) or not set(transports) <= set(_NAMES):
        raise ValueError(f"connect(transports=…) is an order of {', '.join(_NAMES)}, not {transports!r}")
    if dialer is None:
        dialer = _dialer(
            transports,
            ssl=ssl,
            proxy=proxy,
            max_size=max_size,
            policy=policy,
            clock=clock,
            random=random,
        )
    return Client(
        where,
        source=TokenSource(token),
        data=UNSET if data is None else Raw(encode_value(data)),
        headers=dict(headers or {}),
        wait=wait,
        connect_timeout=connect_timeout,
        max_offline=max_offline,
        policy=policy,
        dialer=dialer,
        clock=clock,
        random=random,
    )


def _dialer(
    transports: Sequence[TransportName],
    *,
    ssl: _ssl.SSLContext | None,
    proxy: str | bool | None,
    max_size: int,
    policy: Policy,
    clock: Clock,
    random: _random.Random,
) -> Dialer | Opener:
    patience = min(PATIENCE, policy.open_timeout)
    make_http = http_maker(ssl=ssl, proxy=proxy)

    def make(name: TransportName) -> Dialer | Opener:
        if name == "websocket":
            return WebSocketDialer(
                ssl=ssl, proxy=proxy, max_size=max_size, close_timeout=policy.close_timeout, clock=clock
            )
        return (SseDialer if name == "sse" else PollDialer)(
            max_size=max_size,
            close_timeout=policy.close_timeout,
            patience=patience,
            clock=clock,
            random=random,
            http=make_http,
        )

    if len(transports) == 1:
        return make(transports[0])
    kinds = [(name, make(name)) for name in transports]
    if http_is_installed():
        ready = http_ready(make_http, clock=clock, patience=patience)
        return FallbackDialer(kinds, ready=ready, patience=patience, clock=clock)
    kinds = [(name, kind) for name, kind in kinds if name == "websocket"] or kinds
    return FallbackDialer(
        kinds,
        ready=None,
        patience=policy.open_timeout,
        hint="pip install 'rtkit[http]' to connect over HTTP where WebSockets do not get through",
        clock=clock,
    )
