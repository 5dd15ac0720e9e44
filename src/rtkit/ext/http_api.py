"""The server HTTP API: other programs, in whatever language, publish into a hub's rooms, and more.

::

    app.mount("/api", HttpApi(hub, key=os.environ["API_KEY"]))

Shaped like Centrifugo's: ``POST /api/publish`` with the key in ``X-API-Key`` and a JSON object as the body. What is
wrong with the request as such is an HTTP status; what is wrong with the command is an ``error`` in an answer that
is 200. ``docs/reference/http-api.md`` lists the commands.

A request is looked at twice. :meth:`HttpApi.screen` sees its head, and turns away whoever has no key before a byte
of the body is read. :meth:`HttpApi.answer` sees the body. Both know nothing of ASGI, which is the shell around
them; another server calls them itself.

The key is the whole of the security: who has it may do what the application may. It is kept as a digest only, so
that neither a repr nor a dump of this object has it; it is compared in constant time, digest with digest, so that
not even its length shows; and it is not taken from the URL, since URLs are written to logs.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from .. import codes
from ..errors import BadUnit, NotRunning, Unavailable, UsageError
from ..hosting.endpoints import Request, Response, plain, refusal
from ..hub import Hub
from ..wire import ErrorBody, dumps
from .http_commands import COMMANDS, attempt, batch, decode_batch, decode_drain

__all__ = ["ApiStatistics", "HttpApi"]

_log: Final = logging.getLogger("rtkit.ext.http_api")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Characters of a key at the least.
_SHORTEST: Final = 16
_KEY: Final = re.compile(r"[!-~]+")
_RETRY_AFTER: Final = 5

#: The HTTP status of an error, for callers that asked for one.
_STATUS: Final = {
    codes.UNKNOWN_ROOM: 404,
    codes.UNKNOWN_METHOD: 404,
    codes.LIMIT_EXCEEDED: 413,
    codes.BAD_REQUEST: 400,
    codes.NOT_AVAILABLE: 400,
    codes.UNRECOVERABLE: 416,
}


@dataclass(frozen=True, slots=True)
class ApiStatistics:
    """Requests since the API was made.

    :param answered: that were carried out, whatever came of their commands.
    :param unauthorised: without a valid key.
    :param refused: turned away for another reason: a bad body, or too large; no such command; the hub is closing.
    """

    answered: int
    unauthorised: int
    refused: int


@final
class HttpApi:
    """The server HTTP API of one hub; an ASGI application.

    Mount it where only your own programs reach it, if you can; it needs TLS where others can listen in. Served
    alone (``uvicorn module:api``) it runs the hub with its lifespan; mounted, the hub is started by whoever runs
    it, or by the first request.

    :param hub: the hub.
    :param key: what callers show; several while one is being replaced by another. At least 16 visible ASCII
        characters each, such as ``secrets.token_urlsafe(32)`` makes.
    :param max_body: bytes of a request's body; a larger one is answered 413. Eight of the hub's largest messages
        unless given.
    :raises UsageError: without a key, and for one that is too short or has other characters.
    :raises ValueError: for a bound that is not positive.
    """

    __slots__ = ("_answered", "_digests", "_hub", "_refused", "_unauthorised", "max_body")

    def __init__(self, hub: Hub[Any], *, key: str | Sequence[str], max_body: int | None = None) -> None:
        self._hub = hub
        self._digests = [_digest(each) for each in _checked(key)]
        self.max_body = 8 * hub.limits.max_publication if max_body is None else max_body
        if not self.max_body > 0:
            raise ValueError(f"HttpApi(max_body=…) is positive, not {max_body!r}")
        self._answered = self._unauthorised = self._refused = 0

    # -- the core

    def screen(self, request: Request) -> Response | None:
        """What to answer to a request right away; None for one whose body is to be read.

        :param request: its ``endpoint`` is the last segment of the path.
        """
        refused = self._screen(request)
        if refused is not None:
            if refused.status == 401:
                self._unauthorised += 1
            else:
                self._refused += 1
        return refused

    def _screen(self, request: Request) -> Response | None:
        head = request.method == "HEAD"
        if request.method != "POST":
            return plain(405, "method not allowed\n", ("allow", "POST"), head=head)
        if not self._knows(_shown(request)):
            text = "the key is missing or wrong; it goes into the header X-API-Key\n"
            return plain(401, text, ("www-authenticate", "apikey"))
        if request.endpoint not in COMMANDS and request.endpoint not in ("batch", "drain"):
            return plain(404, f"no such command; there are {', '.join([*COMMANDS, 'batch', 'drain'])}\n")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_body:
            return self._too_large()
        return None

    def _knows(self, key: str) -> bool:
        shown, found = _digest(key), False
        for digest in self._digests:  # all of them, so that it does not show which
            found |= hmac.compare_digest(digest, shown)
        return found

    def _too_large(self) -> Response:
        return plain(413, f"a body has {self.max_body} bytes at the most\n")

    async def answer(self, request: Request, body: bytes) -> Response:
        """Carry out a request that :meth:`screen` has let through. Raises nothing.

        Cancellation: what was asked for may have been done, or a part of it. A publication is safe to repeat
        with the same ``idempotency_key``.
        """
        try:
            if len(body) > self.max_body:
                refused = self._too_large()
            else:
                response = await self._carry_out(request, body)
                self._answered += 1
                return response
        except BadUnit as error:
            refused = plain(400, f"bad request: {error.message}\n")
        except (NotRunning, Unavailable) as error:
            _log.warning("the HTTP API is not available: %s", error)
            refused = refusal(503, "not available right now", _RETRY_AFTER)
        except Exception as error:
            reference = secrets.token_hex(4)
            _log.exception("unexpected error %s in the HTTP API", reference, exc_info=error)
            refused = plain(500, f"internal error (reference {reference})\n")
        self._refused += 1
        return refused

    async def _carry_out(self, request: Request, body: bytes) -> Response:
        """The answer to a request, once its body is known to be one.

        :raises BadUnit: for a body that is none.
        :raises NotRunning: when the hub is closing.
        :raises Unavailable: when it cannot start.
        """
        name = request.endpoint
        if name == "drain":
            # Of this node and not of the hub's rooms: it does not start one, and may be asked for again.
            how = decode_drain(body)
            await self._hub.drain(spread=how.spread, timeout=how.timeout)
            return _json(200, {"result": {}})
        arguments: Any = decode_batch(body) if name == "batch" else COMMANDS[name].decode(body)
        await self._hub.ensure_running()
        if not self._hub.engine.accepting:
            raise NotRunning("the hub is closing")
        if name == "batch":
            return _json(200, {"replies": await batch(self._hub, arguments)})
        found = await attempt(self._hub, name, arguments)
        if not isinstance(found, ErrorBody):
            return _json(200, {"result": found})
        if request.headers.get("x-centrifugo-error-mode") == "transport":
            # Whoever asks for this takes every 200 for a success.
            return _json(_STATUS.get(found.code, 500), found)
        return _json(200, {"error": found})

    async def handle(self, request: Request, body: bytes) -> Response:
        """:meth:`screen` and :meth:`answer` in one, for a body that is at hand."""
        refused = self.screen(request)
        return await self.answer(request, body) if refused is None else refused

    # -- the shell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope.

        :raises ValueError: for a type of scope that is none of ASGI's.
        """
        match scope["type"]:
            case "http":
                await self._serve(scope, receive, send)
            case "lifespan":
                await self._hub(scope, receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": codes.BAD_REQUEST_CLOSE})  # a 403
            case other:
                raise ValueError(f"rtkit serves the ASGI scopes lifespan, http and websocket, not {other!r}")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope.get("headers") or ():
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        # Only the last segment counts, since hosts cut prefixes differently.
        endpoint = str(scope.get("path") or "").rstrip("/").rpartition("/")[2]
        request = Request(scope["method"], endpoint, headers, str(scope.get("http_version", "1.1")))
        response = self.screen(request)
        if response is None:
            body = await _read(receive, self.max_body)
            if body is None:
                return  # gone before the request was complete
            response = await self.answer(request, body)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": raw})
        await send({"type": "http.response.body", "body": response.body})

    # -- what it is

    def statistics(self) -> ApiStatistics:
        """How much it was used."""
        return ApiStatistics(self._answered, self._unauthorised, self._refused)

    def __repr__(self) -> str:
        return f"<HttpApi of {self._hub!r}, {len(self._digests)} keys>"


def _checked(key: object) -> list[str]:
    """The keys; the texts of the errors show none of them."""
    keys: list[Any] = list(key) if isinstance(key, list | tuple) else [key]
    if not keys or keys in ([None], [""]):
        raise UsageError(
            "HttpApi(key=…) is missing: who has no key may do nothing, and so may everybody without one. Leave the "
            "API out to do without it"
        )
    for each in keys:
        if not isinstance(each, str):
            raise UsageError(f"a key of the HTTP API is a string, not of type {type(each).__name__}")
        if not _KEY.fullmatch(each):
            raise UsageError("a key of the HTTP API has visible ASCII characters only, and no spaces")
        if len(each) < _SHORTEST:
            raise UsageError(
                f"a key of the HTTP API has at least {_SHORTEST} characters, and this one has {len(each)}; "
                f"secrets.token_urlsafe(32) makes a good one"
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _shown(request: Request) -> str:
    """The key that a request shows; empty when there is none."""
    key = request.headers.get("x-api-key", "").strip()
    if key:
        return key
    words = request.headers.get("authorization", "").split()
    return words[1] if len(words) == 2 and words[0].lower() == "apikey" else ""


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The body of a request, or the beginning of one that is larger than *limit*; None if the client is gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > limit or not message.get("more_body", False):
            return bytes(body)


def _json(status: int, value: Any) -> Response:
    body = dumps(value)
    headers = (
        ("cache-control", "no-store"),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("x-content-type-options", "nosniff"),
    )
    return Response(status, headers, body)
