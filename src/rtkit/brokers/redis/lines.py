"""One connection of redis-py, as we use it: what is untyped there is wrapped here, once.

A :class:`Line` sends bytes and reads replies, in order. It never retries, never reconnects, has no time limit of its
own and decodes nothing: that is decided above it, by our clock. RESP2 is spoken on purpose: what comes on a
subscribed line then is a plain array, and nothing arrives unasked on others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias, final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from ...errors import UsageError
from .refusals import describe

__all__ = ["Dialer", "Line", "Lost", "pack"]

Argument: TypeAlias = bytes | str | int

# What an existing client may have been configured with and we do by ourselves, or not at all.
_OURS: Final = frozenset({
    "connection_class", "connection_pool", "decode_responses", "event_dispatcher", "health_check_interval",
    "himport_registry", "legacy_responses", "maint_notifications_config", "maint_notifications_pool_handler",
    "maintenance_notification_hash", "maintenance_state", "max_connections", "orig_host_address",
    "orig_socket_connect_timeout", "orig_socket_timeout", "oss_cluster_maint_notifications_handler",
    "parser_class", "protocol", "response_callbacks", "retry", "retry_on_error", "retry_on_timeout",
    "single_connection_client", "socket_connect_timeout", "socket_timeout", "timeout",
})  # fmt: skip

# Errors that are raised although they are replies, and leave the connection as it is.
_REPLIES: Final = (
    exceptions.ResponseError,
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.BusyLoadingError,
)


class Lost(Exception):
    """The connection is gone; the text says why."""


def pack(*arguments: Argument) -> bytes:
    """A command as it goes over the line."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = (
            argument
            if isinstance(argument, bytes)
            else (argument if isinstance(argument, str) else str(argument)).encode()
        )
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"".join(parts)


@final
class Line:
    """A connection to one server.

    :param connection: of redis-py, not connected yet; nobody else may use it.
    """

    __slots__ = ("_connection", "_transport", "role")

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._transport: asyncio.WriteTransport | None = None
        #: ``master``, ``replica``, ``sentinel``; empty when the server would not say.
        self.role = ""

    async def open(self) -> None:
        """Connect, show who we are, and ask the server what it is.

        Cancellation: closes it.

        :raises Exception: whatever a name server, the network, TLS, a credential provider or Redis has to say.
        """
        try:
            connection: Any = self._connection
            await connection.connect()
            self._transport = connection._writer.transport
            # Nobody needs a permission for it, other than for ROLE. A proxy may not know it.
            hello = await self.ask("HELLO")
        except BaseException:
            self.close()
            raise
        if isinstance(hello, (exceptions.AuthenticationError, exceptions.BusyLoadingError)):
            self.close()
            raise hello
        self.role = role_in(hello)

    @property
    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._connection, "_writer", None)

    async def ask(self, *command: Argument) -> Any:
        """Send one command and read its reply; only where nothing else is under way.

        :return: the reply; an error reply is returned, not raised.
        :raises Lost: when the connection is gone.
        """
        await self.send([pack(*command)])
        return await self.read()

    async def send(self, data: Iterable[bytes]) -> None:
        """Write; waits while the server takes nothing.

        :raises Lost: when the connection is gone.
        """
        writer = self._writer
        if writer is None:
            raise Lost("it was closed")
        try:
            # Not by redis-py, which uses writelines(): on Python 3.12 and some of 3.13 that never says that the
            # network takes nothing, and would let all be written that nobody reads.
            writer.write(b"".join(data))
            await writer.drain()
        except Exception as error:
            raise Lost(describe(error)) from error

    async def read(self) -> Any:
        """The next reply; an error reply is returned, not raised.

        :raises Lost: when the connection is gone, or speaks something else.
        """
        try:
            return await self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except _REPLIES as error:
            return error
        except Exception as error:
            raise Lost(describe(error)) from error

    def close(self) -> None:
        """Close it, without waiting for what was written to leave: the other side may be frozen. Idempotent."""
        # redis-py, when a write is cancelled, closes on its own, and what was written would go on leaving for ever.
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        # With nowait nothing in there waits, so one step runs it to its end, in a plain function too.
        closing = self._connection.disconnect(nowait=True)
        try:
            closing.send(None)
        except StopIteration:
            pass
        finally:
            closing.close()

    def __repr__(self) -> str:
        return f"<Line {self.role} {'open' if self._connection.is_connected else 'closed'}>"


def role_in(hello: Any) -> str:
    """What the reply to HELLO says about the server."""
    if isinstance(hello, list):
        for name, value in zip(hello[::2], hello[1::2], strict=False):
            if name == b"role" and isinstance(value, bytes):
                return {"primary": "master", "slave": "replica"}.get(value.decode(), value.decode())
    return ""


@final
class Dialer:
    """Makes lines to servers that are configured alike.

    :param kind: class of redis-py's connections.
    :param options: what it is made with.
    :raises ~rtkit.errors.UsageError: for options that it does not know.
    """

    __slots__ = ("_kind", "_options")

    def __init__(self, kind: type[AbstractConnection], options: Mapping[str, Any]) -> None:
        if issubclass(kind, SentinelManagedSSLConnection):
            kind = SSLConnection
        elif issubclass(kind, SentinelManagedConnection):
            kind = Connection
        self._kind = kind
        self._options = {name: value for name, value in options.items() if name not in _OURS}
        try:
            self.line()
        except (TypeError, ValueError, exceptions.RedisError) as error:
            raise UsageError(f"these options do not make a connection to Redis: {error}") from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port as configured; the path of a Unix socket, and 0."""
        if "path" in self._options:
            return str(self._options["path"]), 0
        return str(self._options.get("host", "localhost")), int(self._options.get("port", 6379))

    @property
    def database(self) -> int:
        """The number of the database that is selected."""
        return int(self._options.get("db") or 0)

    def line(self, host: str | None = None, port: int | None = None) -> Line:
        """A line that is not open yet."""
        options = dict(self._options)
        if host is not None:
            options |= {"host": host, "port": port}
        kind: Any = self._kind
        return Line(
            kind(
                **options,
                protocol=2,
                decode_responses=False,
                socket_timeout=None,
                socket_connect_timeout=None,
                health_check_interval=0,
            )
        )

    def __repr__(self) -> str:
        host, port = self.address
        return f"<Dialer {host}:{port}>"  # never the options: they hold the password
