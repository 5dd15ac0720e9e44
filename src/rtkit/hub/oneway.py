"""The endpoint for a plain ``EventSource``: who asks for which rooms, and what to answer (T5).

An ``EventSource`` comes back by itself when its response ends, after the delay that the server has named, with the same
URL and the id of the last event; and it stops for good on any status but 200. So a status is a last word (F2):

=====================================  ===================================================================
no, and it will not change             400, 401, 403, 404, with plain words
it had better stop now                 204: it was closed for good, or its token has expired since
not now: draining, a broker is away    200, ``retry:``, and the end
=====================================  ===================================================================

To know which it is, the response begins when all rooms are joined; all of them, or none.
"""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from .. import codes
from ..errors import BadUnit
from ..primitives.clocks import timeout
from ..transports import Handshake, HttpRequest, Refused, Response, Streaming, plain, refusal
from ..transports.events import HEADERS, Declined, EventsTransport
from ..wire.eventstream import MAX_ROOMS, Bookmark
from .connection import Connection

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["come_back", "open_events"]

logger = logging.getLogger("rtkit.hub")

#: Seconds in which all rooms have to be joined.
_OPENING: Final = 30.0
#: Seconds for which a client may take nothing of what waits for it (F4).
_STUCK: Final = 30.0
_NO_STORE: Final = ("cache-control", "no-store")

#: What an error of a command is as a status; others are 403.
_STATUSES: Final = {
    codes.UNAUTHORISED: 401,
    codes.TOKEN_EXPIRED: 401,
    codes.EXPIRED: 401,
    codes.EXPIRED_CLOSE: 401,
    codes.UNKNOWN_ROOM: 404,
    codes.BAD_REQUEST: 400,
    codes.BAD_REQUEST_CLOSE: 400,
}
_EXPIRED: Final = frozenset({codes.TOKEN_EXPIRED, codes.EXPIRED, codes.EXPIRED_CLOSE})


class _Asked:
    """What a request asks for.

    :ivar rooms: each once.
    :ivar bookmark: where to go on; None at the top.
    :ivar returns: it comes from an ``EventSource`` that was here before, by itself.
    :raises BadUnit: for a query, or an id, that cannot be meant.
    """

    __slots__ = ("bookmark", "returns", "rooms", "token")

    def __init__(self, handshake: Handshake) -> None:
        try:
            query = parse_qsl(handshake.query, keep_blank_values=True, errors="strict")
        except ValueError:
            raise BadUnit("the query is not UTF-8") from None
        self.rooms = list(dict.fromkeys(value for name, value in query if name == "room"))
        if not 1 <= len(self.rooms) <= MAX_ROOMS:
            raise BadUnit(
                f"name 1 to {MAX_ROOMS} rooms, as in events?room=news&room=user:ann, not {len(self.rooms)}"
            )
        last = dict(query)
        self.token = last.get("token", "")
        # A browser repeats the URL, so that what it adds in the header is newer.
        header = handshake.header("last-event-id")
        self.returns = bool(header)
        id = header or last.get("since") or last.get("last_event_id")
        self.bookmark = Bookmark.read(id) if id else None


async def open_events(engine: Engine, request: HttpRequest) -> Response | Streaming:
    """Answer a request for events, whose origin nobody has looked at yet.

    Cancellation: safe; the client has gone away.
    """
    handshake = request.handshake
    try:
        engine.hub.admit(handshake)
        asked = _Asked(handshake)
    except Refused as refused:
        if refused.status == 503:
            return come_back(engine.random, refused.retry_after or 1)
        return refusal(refused.status, refused.reason)
    except BadUnit as error:
        return refusal(400, error.message)
    if (turned := engine.admission.refuse(handshake)) is not None:
        return come_back(engine.random, *turned.window)
    rooms, left = asked.rooms, list[str]()
    if asked.returns and asked.bookmark is not None:
        left = [room for room in rooms if asked.bookmark.has_left(room)]
        rooms = [room for room in rooms if room not in left]
        if asked.bookmark.stop or not rooms:
            return Response(204, (_NO_STORE,))
    limits = engine.limits
    transport = EventsTransport(
        rooms,
        asked.bookmark,
        left=left,
        token=asked.token,
        clock=engine.clock,
        deadlines=engine.deadlines,
        keepalive=limits.keepalive,
        stuck=_STUCK,
        hold=limits.outbox,
        chance=engine.random,
    )
    connection = Connection(engine, transport, handshake)
    engine.adopt(connection)
    transport.drive(connection)
    limit = timeout(engine.clock, _OPENING)
    try:
        async with limit:
            declined = await transport.opened
    except BaseException as error:
        transport.lost(1006, "gone before it was answered")
        if isinstance(error, TimeoutError) and limit.expired():
            logger.warning(
                "joining %d rooms for a stream of events took more than %s s", len(rooms), _OPENING
            )
            return come_back(engine.random, 1)
        raise
    if declined is None:
        return Streaming(HEADERS, transport.start)
    return _refused(engine, declined, returns=asked.returns)


def _refused(engine: Engine, declined: Declined, *, returns: bool) -> Response:
    if declined.retry_after is not None:
        return come_back(engine.random, declined.retry_after)
    if declined.code in _EXPIRED and returns:
        return Response(204, (_NO_STORE,))
    status = _STATUSES.get(declined.code, 403)
    text = f"room {declined.room!r}: {declined.message}\n" if declined.room else f"{declined.message}\n"
    more = (("www-authenticate", "Bearer"),) if status == 401 else ()
    return plain(status, text, *more)


def come_back(chance: random.Random, least: float, most: float | None = None) -> Response:
    """The "try again later" that an ``EventSource`` understands: a stream that is over.

    :param least: seconds after which it comes, at a random moment, so that not all come at once;
    :param most: and those by then; without it twice as many.
    """
    most = 2 * least if most is None else most
    retry = math.ceil(1000 * (least + (most - least) * chance.random()))
    body = b"retry: %d\n: try again later\n\n" % retry
    return Response(200, (*HEADERS, ("content-length", str(len(body)))), body)
