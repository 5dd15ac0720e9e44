"""What is answered in a task: requests to the hub's endpoints and to the HTTP API, and handshakes of WebSockets.

Each function here answers one request of an :class:`~rtkit.server.http.HttpConnection`, which cancels it when the
client has gone away or the answer takes too long. Afterwards the connection is idle again, waits for an answer that
has no task, or belongs to somebody else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ..codes import INTERNAL_CLOSE
from ..errors import Unavailable
from ..hosting.endpoints import Response, plain, refusal
from ..hosting.raw import RawPipe
from ..transports import Handshake, HttpRequest, Refused, Streaming
from .heads import Head, RequestRefused
from .streams import HttpStream
from .upgrade import Upgraded, upgrade

if TYPE_CHECKING:
    from .http import HttpConnection

__all__ = ["answer_api", "answer_hub", "become_websocket"]

_RETRY_AFTER: Final = 5

_log: Final = logging.getLogger("rtkit.server")


async def answer_hub(connection: HttpConnection, head: Head, body: bytes) -> None:
    """Let the hub answer a request to one of its endpoints.

    Cancellation: the hub hears of it.
    """
    if _ends(connection):
        return
    endpoint = connection.site.exchange(head)
    assert endpoint is not None
    request = HttpRequest(head.method, endpoint, _handshake(connection, head), body)
    answer = await connection.site.acceptor.answer(request)
    if isinstance(answer, Response):
        connection.respond(answer)
    elif isinstance(answer, Streaming):
        _become_stream(connection, head, answer)
    else:
        connection.wait_for(answer)


def _ends(connection: HttpConnection) -> bool:
    """Whether the server ends; then the request is refused, for it would start the hub again."""
    if connection.site.ending:
        connection.respond(refusal(503, "draining", 1), last=True)
    return connection.site.ending


def _become_stream(connection: HttpConnection, head: Head, answer: Streaming) -> None:
    site = connection.site
    taken = connection.release()
    if taken is None:
        return  # gone meanwhile, or it took too long
    network, behind = taken
    try:
        begin = connection.format(Response(answer.status, answer.headers), last=True)
    except Exception:
        network.abort()
        raise
    site.counters["streams"] += 1
    stream = HttpStream(network, site, chunked=head.version != "1.0")
    site.closed(connection)
    network.write(begin)
    network.resume_reading()
    stream.begin(answer.start, behind)


async def answer_api(connection: HttpConnection, head: Head, body: bytes) -> None:
    """Let the HTTP API carry out a request.

    Cancellation: what was asked for may have been done, or a part of it.
    """
    if _ends(connection):
        return
    api, request = connection.site.api, connection.site.api_request(head)
    assert api is not None
    assert request is not None
    connection.respond(await api.answer(request, body))


async def become_websocket(connection: HttpConnection, head: Head) -> None:
    """Answer the handshake of a WebSocket; if it is taken, a :class:`RawPipe` takes the connection over.

    Cancellation: safe.
    """
    site = connection.site
    try:
        answer = _shake_hands(connection, head)
        await site.acceptor.ensure_running()
        handshake = _handshake(connection, head)
        site.acceptor.admit(handshake)
    except RequestRefused as refused:
        connection.refuse(refused.response)
        return
    except Refused as refused:
        connection.refuse(refusal(refused.status, refused.reason, refused.retry_after))
        return
    except Unavailable as exc:
        _log.warning("cannot start: %s", exc, exc_info=True)
        connection.refuse(refusal(503, "not available right now", _RETRY_AFTER))
        return
    taken = connection.release()
    if taken is None:
        return  # gone meanwhile, or it took too long
    network, early = taken
    site.counters["websockets"] += 1
    pipe = RawPipe(network, site.pipes, deflate=answer.deflate)
    site.closed(connection)
    network.write(answer.head)
    network.resume_reading()  # in a later turn; before the driver may pause it
    transport = pipe.transport
    try:
        transport.drive(site.acceptor.connect(transport, handshake))
    except Exception:
        _log.exception("a connection failed as it began")
        pipe.close(INTERNAL_CLOSE, "internal error")
    if early:
        pipe.data_received(early)


def _shake_hands(connection: HttpConnection, head: Head) -> Upgraded:
    """The answer that takes the handshake.

    :raises RequestRefused: for one that is not taken.
    """
    if connection.site.draining:
        raise RequestRefused(refusal(503, "draining", 1))
    if head.has_body:
        raise RequestRefused(plain(400, "a WebSocket handshake has no body\n"))
    if head.version != "1.1":
        more = (("upgrade", "websocket"), ("connection", "Upgrade"))
        raise RequestRefused(plain(426, "a WebSocket handshake is HTTP/1.1\n", *more))
    answer = upgrade(head.target, head.headers, deflate=connection.site.deflate)
    if isinstance(answer, Response):
        raise RequestRefused(answer)
    return answer


def _handshake(connection: HttpConnection, head: Head) -> Handshake:
    return Handshake(
        path=head.path,
        headers=tuple(head.headers),
        query=head.query,
        address=connection.address,
        # Without TLS of our own there may still be some at a proxy's.
        secure=None if connection.site.ssl is None else True,
    )
