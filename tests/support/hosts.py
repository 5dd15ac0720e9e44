"""Every way of serving a hub, behind one face, so that one suite of tests holds for all of them.

A :class:`Host` starts a given hub on a free port of this machine, in this process and loop, and says what it is
able to do; differences that no test can smooth over are its :class:`Abilities`. To add one: write a function
that serves a hub like :func:`_own`, and put it into :data:`HOSTS`. A host that mounts its hub somewhere names
the ``prefix``; every URL of the suite begins with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rtkit import Hub
from tests.support.servers import serve_asgi

__all__ = ["CERTIFICATE", "HOSTS", "MORE_HOSTS", "Abilities", "Host", "Served", "client_context"]

#: Self-signed for ``localhost`` and 127.0.0.1, with its key, valid for a century; made for these tests alone.
CERTIFICATE: Final = Path(__file__).with_name("localhost.pem")


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a host can do that others cannot.

    :param ours: rtkit writes and checks every byte itself: it sees frames, heads and time.
    :param tls: it can serve TLS.
    :param aborts: it can drop a connection whose peer takes nothing; an ASGI application cannot (T2).
    """

    ours: bool = False
    tls: bool = True
    aborts: bool = False


@dataclass
class Served:
    """A hub while a host serves it.

    :ivar port: on 127.0.0.1.
    :ivar prefix: where the hub is mounted.
    :ivar transports: the asyncio transports of open connections, for a look at what they have buffered.
    """

    hub: Hub[Any]
    port: int
    prefix: str
    secure: bool
    transports: Callable[[], list[Any]]
    name: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """What a client is told: the hub's mount point."""
        return f"{'https' if self.secure else 'http'}://{self.name}:{self.port}{self.prefix}"

    def path(self, endpoint: str) -> str:
        """The path of an endpoint below the mount point."""
        return f"{self.prefix}/{endpoint}"

    @property
    def buffered(self) -> int:
        """Bytes in the hands of asyncio, of all connections."""
        return sum(transport.get_write_buffer_size() for transport in self.transports())


@dataclass(frozen=True)
class Host:
    """One way of serving a hub.

    :param serve: serves a hub within a block; leaving it must leave nothing behind.
    """

    name: str
    serve: Callable[[Hub[Any], bool], AbstractAsyncContextManager[Served]]
    can: Abilities = field(default_factory=Abilities)

    def __repr__(self) -> str:
        return f"<Host {self.name}>"


def client_context() -> ssl.SSLContext:
    """For clients of a host that serves TLS with :data:`CERTIFICATE`."""
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    # A certificate that signs itself has no key usage for that; OpenSSL is strict about it since Python 3.13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@contextlib.asynccontextmanager
async def _under_uvicorn(hub: Hub[Any], app: Any, prefix: str, secure: bool) -> AsyncGenerator[Served]:
    """uvicorn as it comes, with websockets' Sans-I/O protocol."""
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    transports: set[asyncio.BaseTransport] = set()

    class Protocol(WebSocketsSansIOProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.add(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            transports.discard(self.transport)
            super().connection_lost(exc)

    class HttpProtocol(H11Protocol):
        # An upgrade hands the transport on to the other class.
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.add(transport)
            super().connection_made(transport)  # type: ignore[arg-type]

        def connection_lost(self, exc: Exception | None) -> None:
            transports.discard(self.transport)
            super().connection_lost(exc)

    options: dict[str, Any] = {"ssl_certfile": str(CERTIFICATE)} if secure else {}
    async with serve_asgi(app, ws=Protocol, http=HttpProtocol, lifespan="on", **options) as port:
        yield Served(hub, port, prefix, secure, lambda: list(transports))


def _uvicorn(hub: Hub[Any], secure: bool) -> AbstractAsyncContextManager[Served]:
    """The hub is the whole application."""
    return _under_uvicorn(hub, hub, "", secure)


def _starlette(hub: Hub[Any], secure: bool) -> AbstractAsyncContextManager[Served]:
    """The hub is mounted, as in FastAPI too."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    app = Starlette(routes=[Mount("/rt", hub)], lifespan=hub.lifespan)
    return _under_uvicorn(hub, app, "/rt", secure)


@contextlib.asynccontextmanager
async def _own(hub: Hub[Any], secure: bool) -> AsyncGenerator[Served]:
    """Our own server, on the hub's clock."""
    from rtkit.server import listen

    context = None
    if secure:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
    async with listen(hub, ssl=context) as server:
        site = server._site

        def transports() -> list[Any]:
            connections: list[Any] = [*site.open, *site.pipes.open]
            return [each._network for each in connections if each._network is not None]

        yield Served(hub, server.port, "/rt", secure, transports)


#: Those that move bytes in ways of their own: every test runs on each.
HOSTS: Final = (
    Host("uvicorn", _uvicorn),
    Host("own", _own, Abilities(ours=True, aborts=True)),
)
#: The same servers with something in between: what is about paths, requests and whole conversations runs on them.
MORE_HOSTS: Final = (Host("starlette", _starlette),)
