"""HTTP for the transports that are made of requests: as little of it as they need.

The requests of one pipe share an :class:`Http`, and die with it. The one that exists is made of the ``httpcore2``
library, an extra, which is loaded when the first pipe is opened (decision 20). It follows no redirects, since a
token would be shown to wherever they lead; it keeps no cookies, and asks the environment for nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import ssl as _ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from .options import without_secrets
from .transport import DialFailed
from .websocket import version

if TYPE_CHECKING:
    import httpcore2

__all__ = ["Answer", "Body", "Http", "HttpFailed", "HttpMaker", "http_is_installed", "http_maker"]

#: Bytes of the body of an answer that says something only by its status.
_SMALL: Final = 64 * 1024
#: A stream, what goes up, a look whether the server is there, and a goodbye.
_CONNECTIONS: Final = 6
_ENDPOINTS: Final = ("/connection/websocket", "/ws")


class HttpFailed(OSError):
    """An exchange broke before its answer was whole; it may have been carried out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with a body that is at hand.

    :param headers: names in lower case; of several of the same name the last.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def __repr__(self) -> str:
        # Cookies are set by its headers, and its body may have a session's id in it (A5).
        return f"<Answer {self.status}, {len(self.body)} bytes>"


class Body(Protocol):
    """An answer whose body comes piece by piece."""

    @property
    def status(self) -> int:
        """Of the answer."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Likewise, names in lower case."""
        ...

    async def read(self) -> bytes:
        """The next piece; empty at the end.

        Errors: :exc:`HttpFailed`, also when the body ends before it is whole.
        Cancellation: the body cannot be read on.
        """
        ...

    async def aclose(self) -> None:
        """Read no further; not while somebody reads. Idempotent."""
        ...


class Http(Protocol):
    """The exchanges of one pipe.

    *endpoint* is a path below the hub, and *query* what is added to that of the hub's URL.
    """

    async def request(
        self,
        method: str,
        endpoint: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        max_size: int = _SMALL,
    ) -> Answer:
        """Send a request and fetch its answer.

        :param max_size: bytes of the answer's body; more is a failure.

        Errors: :exc:`HttpFailed`; :exc:`DialFailed` when no other request can fare better.
        Cancellation: safe; the request may have been carried out.
        """
        ...

    async def stream(self, endpoint: str, *, headers: Mapping[str, str], body: bytes) -> Body:
        """Post *body* and fetch the head of the answer. As :meth:`request` otherwise."""
        ...

    async def aclose(self) -> None:
        """Cut everything that is under way. Idempotent.

        Cancellation: everything is cut nevertheless.
        """
        ...


HttpMaker = Callable[[str, Mapping[str, str]], Http]
"""Makes one for a pipe, of the ``ws://`` or ``wss://`` URL of the endpoint for WebSockets, and headers for every
request."""


@functools.cache
def http_is_installed() -> bool:
    """Whether there is a library for HTTP."""
    return importlib.util.find_spec("httpcore2") is not None


def http_maker(*, ssl: _ssl.SSLContext | None = None, proxy: str | bool | None = None) -> HttpMaker:
    """What :class:`WebSocketDialer` takes, for HTTP.

    :raises DialFailed: (what is returned) when the library is not installed, or the proxy's URL is none.
    """

    @functools.cache
    def context() -> _ssl.SSLContext:
        return ssl or _ssl.create_default_context()  # costs 20 ms: once, not for every pipe

    def make(url: str, headers: Mapping[str, str]) -> Http:
        if not http_is_installed():
            raise DialFailed(
                "transports over HTTP need the httpcore2 library: pip install 'rtkit[http]'", terminal=True
            )
        secure = url.startswith("wss:")
        return _Http(url, headers, context() if secure else None, _proxy(url, proxy))

    return make


def _proxy(url: str, proxy: str | bool | None) -> httpcore2.Proxy | None:
    if not proxy:
        return None
    import httpcore2

    if proxy is True:
        from websockets.proxy import get_proxy
        from websockets.uri import parse_uri

        found = get_proxy(parse_uri(url))
        if found is None:
            return None
        proxy = found
    try:
        parts = urlsplit(proxy)
        port = parts.port
    except ValueError as error:
        raise DialFailed(f"the proxy's URL is none: {error}", terminal=True) from None
    if parts.scheme not in ("http", "https", "socks5", "socks5h") or not parts.hostname:
        raise DialFailed(f"{without_secrets(proxy)!r} is no URL of a proxy", terminal=True)
    auth = None
    if parts.username is not None:
        auth = unquote(parts.username).encode(), unquote(parts.password or "").encode()
    where = httpcore2.URL(scheme=parts.scheme, host=_host(parts.hostname), port=port, target=b"/")
    return httpcore2.Proxy(where, auth=auth)


def _host(name: str) -> bytes:
    return name.encode("ascii") if name.isascii() else name.encode("idna")


@final
class _Http:
    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        ssl: _ssl.SSLContext | None,
        proxy: httpcore2.Proxy | None,
    ) -> None:
        import httpcore2

        parts = urlsplit(url)
        self._shown = without_secrets(url)
        self._parts = parts
        self._scheme = "https" if parts.scheme == "wss" else "http"
        self._host = _host(parts.hostname or "")
        path = parts.path
        for endpoint in _ENDPOINTS:
            path = path.removesuffix(endpoint)
        self._path = quote(path, safe="/%:@!$&'()*+,;=~")
        self._query = quote(parts.query, safe="/?%:@!$&'()*+,;=~")
        self._headers = _headers(parts, headers)
        self._sockets = _sockets()
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl,
            proxy=proxy,
            max_connections=_CONNECTIONS,
            keepalive_expiry=30.0,
            network_backend=self._sockets,
        )

    async def request(
        self,
        method: str,
        endpoint: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        max_size: int = _SMALL,
    ) -> Answer:
        answer = await self._exchange(method, endpoint, query, headers or {}, body)
        pieces: list[bytes] = []
        size = 0
        while piece := await answer.read():
            size += len(piece)
            if size > max_size:
                await answer.aclose()
                raise HttpFailed(f"{self._shown}: an answer of more than {max_size} bytes")
            pieces.append(piece)
        return Answer(answer.status, answer.headers, b"".join(pieces))

    async def stream(self, endpoint: str, *, headers: Mapping[str, str], body: bytes) -> Body:
        return await self._exchange("POST", endpoint, "", headers, body)

    async def _exchange(
        self, method: str, endpoint: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> _Body:
        import httpcore2

        query = "&".join(filter(None, (self._query, query)))
        target = f"{self._path}/{endpoint}{'?' if query else ''}{query}".encode("ascii")
        request = httpcore2.Request(
            method,
            httpcore2.URL(scheme=self._scheme, host=self._host, port=self._parts.port, target=target),
            headers=[
                *self._headers,
                *((name.encode(), value.encode()) for name, value in headers.items()),
                *([(b"Content-Length", b"%d" % len(body))] if method != "GET" else []),
            ],
            content=body,
        )
        try:
            return _Body(await self._pool.handle_async_request(request), self._shown)
        except _errors() as error:
            raise _failure(error, self._shown) from error

    async def aclose(self) -> None:
        try:
            await self._pool.aclose()
        finally:
            await self._sockets.aclose()

    def __repr__(self) -> str:
        return f"<Http {self._shown}>"


@final
class _Body:
    def __init__(self, response: httpcore2.Response, shown: str) -> None:
        self.status = response.status
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
        }
        stream = response.stream
        assert isinstance(stream, AsyncIterable)
        self._response = response
        self._pieces: AsyncIterator[bytes] = aiter(stream)
        self._shown = shown

    async def read(self) -> bytes:
        try:
            while True:
                piece = await anext(self._pieces, None)
                if piece is None:
                    await self.aclose()  # gives the connection back
                    return b""
                if piece:
                    return piece
        except _errors() as error:
            raise _failure(error, self._shown) from error

    async def aclose(self) -> None:
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()
        await self._response.aclose()


def _headers(parts: SplitResult, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    named = {name.lower() for name in headers}
    found: list[tuple[bytes, bytes]] = []
    if "host" not in named:
        found.append((b"Host", _host(parts.netloc.rpartition("@")[2])))
    if "user-agent" not in named:
        found.append((b"User-Agent", f"rtkit-python/{version()}".encode()))
    if parts.username is not None and "authorization" not in named:
        import base64

        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        found.append((b"Authorization", b"Basic " + base64.b64encode(pair.encode())))
    return [*found, *((name.encode(), value.encode("latin-1")) for name, value in headers.items())]


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """What the library raises when the world breaks."""
    import httpcore2

    return (
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.ProxyError,
        httpcore2.TimeoutException,
        OSError,
    )


def _failure(error: Exception, shown: str) -> Exception:
    """An error of the library in our own words; it quotes nothing of the request."""
    cause: object = error
    while isinstance(cause, BaseException):
        if isinstance(cause, _ssl.SSLCertVerificationError):
            return DialFailed(
                f"{shown}: its certificate is not accepted: {cause.verify_message}", terminal=True, code=1015
            )
        cause = cause.args[0] if cause.args else None  # where the library keeps what it maps
    return HttpFailed(f"{shown}: {str(error) or type(error).__name__}")


def _sockets() -> Any:
    """Opens sockets and remembers them, so that one which was cancelled half-way does not stay open."""
    import httpcore2

    class Sockets(httpcore2.AsyncNetworkBackend):
        def __init__(self) -> None:
            self._backend: Any = httpcore2.AnyIOBackend()
            self._opened: list[httpcore2.AsyncNetworkStream] = []

        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
            self._opened = [stream for stream in self._opened if _is_open(stream)]
            stream: httpcore2.AsyncNetworkStream = await self._backend.connect_tcp(*args, **options)
            self._opened.append(stream)
            return stream

        async def aclose(self) -> None:
            opened, self._opened = self._opened, []
            cancelled: BaseException | None = None
            for stream in opened:
                try:
                    await stream.aclose()  # has closed the socket when it first waits
                except BaseException as error:
                    cancelled = error if not isinstance(error, Exception) else cancelled
            if cancelled is not None:
                raise cancelled

    return Sockets()


def _is_open(stream: httpcore2.AsyncNetworkStream) -> bool:
    found = stream.get_extra_info("socket")
    return found is not None and found.fileno() >= 0
