"""Close codes, unsubscribe codes and error codes; the number's band tells the client what to do.

========================  =========================================================
3000–3499, 4000–4499      the connection ended; come back (back-off applies)
5000 and up               likewise
3500–3999, 4500–4999      the connection ended; do not come back by itself
2000–2499                 the room was left by the server's will; do not join again by yourself
2500 and up               the room's stream was interrupted; join again
100–399                   a command failed, for a reason of the protocol's
400 and up                a command failed, for a reason of the application's own
========================  =========================================================

Source: ``docs/reference/protocol.md``, section Codes.
"""

from __future__ import annotations

__all__ = ["describe_close", "is_terminal", "is_valid_close", "may_resubscribe"]

# -- a connection was closed; come back -------------------------------------------------------
CLOSED_BY_SERVER = 3000
DRAINING = 3001
INTERNAL_CLOSE = 3004
EXPIRED_CLOSE = 3005
SLOW_CONSUMER = 3008
WRITE_TIMEOUT = 3009
CONTINUITY_LOST = 3010
NO_PONG = 3012
TOO_MANY_REQUESTS_CLOSE = 3013
REPLACED = 4000
TRY_LATER = 4001
# -- a connection was closed; stay away -------------------------------------------------------
BAD_TOKEN = 3500
BAD_REQUEST_CLOSE = 3501
STALE = 3502
CLOSED_FOR_GOOD = 3503
LIMIT_REACHED = 3504
NOT_PERMITTED_CLOSE = 3507
RATE_LIMIT_ABUSED = 4500
REVOKED = 4501
# -- a room was left by the server's will -----------------------------------------------------
UNSUBSCRIBED = 2000
ROOM_CONTINUITY_LOST = 2500
ROOM_EXPIRED = 2501
# -- a command failed -------------------------------------------------------------------------
INTERNAL = 100
UNAUTHORISED = 101
UNKNOWN_ROOM = 102
NOT_PERMITTED = 103
UNKNOWN_METHOD = 104
ALREADY_SUBSCRIBED = 105
LIMIT_EXCEEDED = 106
BAD_REQUEST = 107
NOT_AVAILABLE = 108
TOKEN_EXPIRED = 109
EXPIRED = 110
TOO_MANY_REQUESTS = 111
UNRECOVERABLE = 112
#: The first code an application may use for its own errors.
APPLICATION = 400

#: Command errors for which trying again may help.
TEMPORARY = frozenset({INTERNAL, TOO_MANY_REQUESTS})

# RFC 6455, section 7.4.1, and what browsers report when there was no close frame.
WS_NORMAL = 1000
WS_GOING_AWAY = 1001
WS_TOO_BIG = 1009

_CLOSE_WORDS = {
    WS_NORMAL: "normal",
    WS_GOING_AWAY: "going away",
    1006: "connection lost",
    WS_TOO_BIG: "message too big",
    CLOSED_BY_SERVER: "closed by the server",
    DRAINING: "draining",
    INTERNAL_CLOSE: "internal error",
    EXPIRED_CLOSE: "expired",
    SLOW_CONSUMER: "slow consumer",
    WRITE_TIMEOUT: "write timeout",
    CONTINUITY_LOST: "continuity lost",
    NO_PONG: "no pong",
    TOO_MANY_REQUESTS_CLOSE: "too many requests",
    REPLACED: "replaced by a newer connection",
    TRY_LATER: "try again later",
    BAD_TOKEN: "bad token",
    BAD_REQUEST_CLOSE: "bad request",
    STALE: "not authenticated in time",
    CLOSED_FOR_GOOD: "closed for good",
    LIMIT_REACHED: "limit reached",
    NOT_PERMITTED_CLOSE: "not permitted",
    RATE_LIMIT_ABUSED: "rate limit abused",
    REVOKED: "revoked",
}


def describe_close(code: int) -> str:
    """The plain words for a close *code*; empty for a code this protocol does not define."""
    return _CLOSE_WORDS.get(code, "")


#: Errors of the WebSocket layer that the same client would only repeat: a message that is too big,
#: an extension the server lacks, data of the wrong kind, a protocol error.
VIOLATIONS = frozenset({1002, 1003, 1007, 1008, WS_TOO_BIG, 1010})


def is_terminal(code: int) -> bool:
    """Whether a client that was closed with *code* must not reconnect by itself."""
    return 3500 <= code <= 3999 or 4500 <= code <= 4999 or code in VIOLATIONS


def is_valid_close(code: int) -> bool:
    """Whether a server may close a connection with *code* (RFC 6455 section 7.4)."""
    return code == WS_NORMAL or 3000 <= code <= 4999


def may_resubscribe(code: int) -> bool:
    """Whether a client that was unsubscribed with *code* should join again by itself."""
    return code >= ROOM_CONTINUITY_LOST
