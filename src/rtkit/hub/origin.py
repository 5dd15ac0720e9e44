"""Which web pages may connect (T10). Pure.

A browser sends ``Origin`` with every WebSocket handshake, and no script can forge it; without this check any
page a user visits could connect with the user's cookies.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from ..transports import Handshake
from .address import NO_PROXIES, Proxies

__all__ = ["cookies_count", "cors_headers", "origin_allowed"]

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def origin_allowed(handshake: Handshake, allowed: Sequence[str], proxies: Proxies = NO_PROXIES) -> bool:
    """Whether the handshake comes from our own page, an allowed one, or no page at all.

    :param allowed: origins such as ``https://example.org``, or ``*`` for any.
    :param proxies: that are believed which host a client has asked for, and whether by TLS.
    """
    origins = [value for name, value in handshake.headers if name == "origin"]
    if not origins:
        # No browser page, or a same-origin request for which browsers send none.
        return handshake.header("sec-fetch-site") not in ("cross-site", "same-site")
    if len(origins) > 1:
        return False
    origin = origins[0]
    if "*" in allowed or origin.lower() in (each.lower().rstrip("/") for each in allowed):
        return True
    host, secure = proxies.asked_for(handshake)
    if host is None:
        return False
    try:
        theirs = urlsplit(origin)
        if theirs.scheme not in ("http", "https") or not theirs.hostname:
            return False
        # TLS may end at a proxy, so where the server's own scheme is plain the page's may still be https.
        if secure and theirs.scheme != "https":
            return False
        ours = urlsplit(f"{theirs.scheme}://{host}")
        same_port = (theirs.port or _DEFAULT_PORTS[theirs.scheme]) == (
            ours.port or _DEFAULT_PORTS[theirs.scheme]
        )
        return theirs.hostname == ours.hostname and same_port
    except ValueError:
        return False


def cookies_count(handshake: Handshake, allowed: Sequence[str], proxies: Proxies = NO_PROXIES) -> bool:
    """Whether the cookies of a handshake say anything: a page that only ``*`` lets in has not been given them.

    Over HTTP browsers see to that themselves (:func:`cors_headers`). Over WebSockets they send cookies from every page.
    """
    return origin_allowed(handshake, [each for each in allowed if each != "*"], proxies)


def cors_headers(
    handshake: Handshake, allowed: Sequence[str], proxies: Proxies = NO_PROXIES
) -> tuple[tuple[str, str], ...]:
    """What lets a page of another origin read a response (T10); nothing for one that may not.

    Cookies go along with origins that are named, never with ``*``.
    """
    origin = handshake.header("origin")
    if origin is None or not origin_allowed(handshake, allowed, proxies):
        return (("vary", "origin"),)
    by_name = cookies_count(handshake, allowed, proxies)
    more = (("access-control-allow-credentials", "true"),) if by_name else ()
    return (
        ("vary", "origin"),
        ("access-control-allow-origin", origin if by_name else "*"),
        *more,
        ("access-control-expose-headers", "retry-after"),
    )
