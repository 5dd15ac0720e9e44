"""Every way of serving a hub, behind one face, so that one suite of tests holds for all of them.

A :class:`Host` starts a given hub on a free port of this machine, in this process and loop, and says what it is
able to do; differences that no test can smooth over are its :class:`Abilities`. To add one: write a function
that serves a hub like :func:`_own`, or have :func:`host_of` make it from what serves an application, and put it
into :data:`ADAPTERS`. A host that mounts its hub somewhere names the ``prefix``; every URL of the suite begins
with it.
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

import pytest

from rtkit import Hub
from tests.hosts.servers import serve_aiohttp, serve_hypercorn, serve_uvicorn, serve_websockets, tls

__all__ = [
    "ADAPTERS",
    "CERTIFICATE",
    "HOSTS",
    "HTTP_HOSTS",
    "KNOWN",
    "MOUNTED",
    "Abilities",
    "Host",
    "Serve",
    "Served",
    "client_context",
    "host_of",
    "mark_known",
]

Serve = Callable[..., AbstractAsyncContextManager[int]]

#: Self-signed for ``localhost`` and 127.0.0.1, with its key, valid for a century; made for these tests alone.
CERTIFICATE: Final = Path(__file__).with_name("localhost.pem")


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a host can do that others cannot.

    :param ours: rtkit writes and checks every byte itself: it sees frames, heads and time.
    :param tls: it can serve TLS.
    :param aborts: it can drop a connection whose peer takes nothing; an ASGI application cannot (T2).
    :param last_words: the code with which it ends WebSockets when it stops. Not the hub's 3001: then it ends all that
        is open before it tells the hub, so that nobody hears when to come back, and streams are cut off (L2).
    :param drops_halves: when it stops it does not wait for clients that have not shaken hands, or were refused.
        websockets does, for the 10 s of its ``open_timeout``.
    """

    ours: bool = False
    tls: bool = True
    aborts: bool = False
    last_words: int = 3001
    drops_halves: bool = True


_NOTHING_SPECIAL: Final = Abilities()


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


def _transports_at(port: int) -> list[asyncio.Transport]:
    """The open connections of a server of this loop, whatever library it is of.

    The loop knows them all. It also knows those of clients, whose own port is another.
    """
    loop: Any = asyncio.get_running_loop()
    found: list[asyncio.Transport] = []
    for transport in list(loop._transports.values()):
        # One that has ended has no protocol any more, and is kept by whoever still refers to it.
        if transport.get_protocol() is None or transport.get_extra_info("sockname")[1:2] != (port,):
            continue
        if _peer_gone(transport):
            continue
        # What encrypts has a buffer of its own.
        found.append(getattr(transport.get_protocol(), "_app_transport", None) or transport)
    return found


def _peer_gone(transport: asyncio.Transport) -> bool:
    """Whether all that is left is a socket whose peer has closed it.

    hypercorn keeps that for as long as a connection may be idle, 5 s of real time; it has told us, and nobody reads.
    """
    reader = getattr(transport.get_protocol(), "_stream_reader", None)
    return reader is not None and reader.at_eof() and not transport.get_write_buffer_size()


def host_of(
    name: str, serve: Serve, build: Callable[[Hub[Any]], Any], prefix: str, can: Abilities = _NOTHING_SPECIAL
) -> Host:
    """A host that serves what *build* makes of a hub.

    :param serve: serves that within a block, over TLS when it gets a ``certificate``, and yields the port.
    """

    @contextlib.asynccontextmanager
    async def run(hub: Hub[Any], secure: bool) -> AsyncGenerator[Served]:
        async with serve(build(hub), certificate=CERTIFICATE if secure else None) as port:
            yield Served(hub, port, prefix, secure, lambda: _transports_at(port))

    return Host(name, run, can)


def _itself(hub: Hub[Any]) -> Any:
    """The hub is the whole application."""
    return hub


def _in_starlette(hub: Hub[Any]) -> Any:
    """The hub is mounted, as in FastAPI too."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount("/rt", hub)], lifespan=hub.lifespan)


def _in_aiohttp(hub: Hub[Any]) -> Any:
    from aiohttp import web

    app = web.Application()
    hub.add_to(app, "/rt")
    return app


@contextlib.asynccontextmanager
async def _own(hub: Hub[Any], secure: bool) -> AsyncGenerator[Served]:
    """Our own server, on the hub's clock."""
    from rtkit.server import listen

    async with listen(hub, ssl=tls(CERTIFICATE if secure else None)) as server:
        yield Served(hub, server.port, "/rt", secure, lambda: _transports_at(server.port))


def _uvicorn(app: Any, **options: Any) -> AbstractAsyncContextManager[int]:
    """uvicorn with what it would take by itself today, so that a package more does not make it another host."""
    return serve_uvicorn(app, ws="websockets-sansio", http="h11", **options)


def _uvicorn_fast(app: Any, **options: Any) -> AbstractAsyncContextManager[int]:
    """uvicorn with our protocol class, named as on its command line."""
    return serve_uvicorn(app, ws="rtkit.hosting.uvicorn_host:Protocol", **options)


#: Every test runs on each: what most people use, and what we have written ourselves.
HOSTS: Final = (
    host_of("uvicorn", _uvicorn, _itself, "", Abilities(last_words=1012)),
    Host("own", _own, Abilities(ours=True, aborts=True)),
)
_HYPERCORN: Final = host_of("hypercorn", serve_hypercorn, _itself, "", Abilities(last_words=1011))
_AIOHTTP: Final = host_of("aiohttp", serve_aiohttp, _in_aiohttp, "/rt")
#: All that have an adapter, or go another way through one: what is about conversations and their ends runs on each.
ADAPTERS: Final = (
    *HOSTS,
    host_of("uvicorn with our class", _uvicorn_fast, _itself, "", Abilities(last_words=1012)),
    _HYPERCORN,
    _AIOHTTP,
    host_of("websockets", serve_websockets, _itself, "", Abilities(drops_halves=False)),
)
#: Those that move bytes of plain HTTP, each in a way of its own. uvicorn's is the same whatever its class for
#: WebSockets; websockets has none (``tests/hosts/test_matrix.py`` reads what it says instead).
HTTP_HOSTS: Final = (*HOSTS, _HYPERCORN, _AIOHTTP)
#: With a framework in between: what is about paths runs here as well. Every framework on every server, in full, is
#: ``./dev matrix``.
MOUNTED: Final = (host_of("starlette", _uvicorn, _in_starlette, "/rt", Abilities(last_words=1012)),)

_GET_ONLY: Final = "websockets answers nothing but GET, and one request per connection"
#: What a host does else than the suite expects: (host, test, why). These are tests that fail, each for the reason
#: given; one that passes all of a sudden is an error (strict).
KNOWN: Final = (
    (
        "hypercorn",
        "test_the_reason_of_the_peer_is_told_to_the_application",
        "hypercorn does not pass on why a peer has closed",
    ),
    ("websockets", "test_a_body_that_nobody_wants", _GET_ONLY),
    ("websockets", "test_plain_requests", _GET_ONLY),
    ("websockets", "test_the_browser_sdk", _GET_ONLY),
)


def mark_known(item: pytest.Item) -> None:
    """Have a test of the suite that is :data:`KNOWN` to fail on its host be expected to."""
    function, _, parameters = item.name.partition("[")
    for host, test, why in KNOWN:
        if function == test and host in parameters:
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))
