"""From what people have, a URL or a client, to the servers that it names.

A client's own connections are not used, only how it makes them: its class of connections, its credentials and its TLS.
Time limits, retries and the like of its configuration are left out: here they are the broker's.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from redis.asyncio.connection import Connection, SSLConnection, parse_url

from ...errors import UsageError
from .lines import Dialer
from .topology import Cluster, Nowhere, Sentinels, Server, Servers, Standalone, connect_patiently, slot_of

__all__ = [
    "Nowhere",
    "Server",
    "Servers",
    "connect_patiently",
    "servers_from_client",
    "servers_from_url",
    "slot_of",
]


def servers_from_url(url: str) -> Servers:
    """The servers that a URL names; nothing is connected yet.

    ::

        redis://user:password@host:6379/0        valkey:// is the same; rediss:// and valkeys:// use TLS
        redis+sentinel://host:26379,host2:26379/mymaster?db=0&sentinel_password=…
        redis+cluster://host:6379,host2:6379

    The query takes what redis-py's connections take (``client_name``, ``ssl_ca_certs``); ``ssl=true`` turns TLS on for
    Sentinel and Cluster. What begins with ``sentinel_`` is for connections to Sentinels.

    :raises ~rtkit.errors.UsageError: for a URL that cannot be one. Its text repeats no password.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower().replace("valkeys", "rediss").replace("valkey", "redis")
    if not separator or scheme not in ("redis", "rediss", "redis+sentinel", "redis+cluster"):
        raise UsageError(
            "a Redis is named by redis://, rediss://, valkey://, valkeys://, redis+sentinel:// or redis+cluster://"
        )
    rest, _, query = rest.partition("#")[0].partition("?")
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    secure = scheme == "rediss" or options.pop("ssl", "").lower() in ("1", "true", "yes")
    if scheme == "redis+sentinel":
        sentinel = {name[9:]: options.pop(name) for name in list(options) if name.startswith("sentinel_")}
        if not path or "/" in path:
            raise UsageError(
                "redis+sentinel:// names the service after the hosts: redis+sentinel://host:26379/mymaster"
            )
        dialer = _dialer(f"{user}{at}localhost", "", options, secure)
        addresses = _addresses(hosts, 26379)
        return Sentinels(
            [_dialer(f"{host}:{port}", "", sentinel, secure) for host, port in addresses], path, dialer
        )
    if path and not path.isdecimal():
        raise UsageError("what follows the host in a redis:// URL is the number of a database")
    if scheme == "redis+cluster":
        if int(path or 0) or int(options.pop("db", "0") or 0):
            raise UsageError("a Redis Cluster has one database, 0")
        addresses = _addresses(hosts, 6379)
        return Cluster(
            [_bare(*address) for address in addresses], _dialer(f"{user}{at}localhost", "", options, secure)
        )
    return Standalone(_dialer(authority, path, options, secure))


def _addresses(hosts: str, port: int) -> list[tuple[str, int]]:
    """``a:1,b,[::1]:2`` as pairs; brackets stay."""
    found: list[tuple[str, int]] = []
    for part in hosts.split(","):
        host, colon, number = part.rpartition(":")
        if not colon or number.endswith("]"):
            host, number = part, str(port)
        if not host or not number.isdecimal():
            raise UsageError("the hosts of a redis:// URL are host:port,host:port")
        found.append((host, int(number)))
    return found


def _bare(host: str, port: int) -> tuple[str, int]:
    return host.strip("[]"), port


def _dialer(authority: str, path: str, options: dict[str, str], secure: bool) -> Dialer:
    query = f"?{urlencode(options)}" if options else ""
    try:
        found: dict[str, Any] = dict(
            parse_url(f"{'rediss' if secure else 'redis'}://{authority}/{path}{query}")
        )
    except ValueError as error:
        raise UsageError(f"this redis:// URL cannot be read: {type(error).__name__}") from None
    kind = found.pop("connection_class", SSLConnection if secure else Connection)
    return Dialer(kind, found)


def servers_from_client(client: Any) -> Servers:
    """The servers of a client that the application has already; its connections are not used, only how it makes them.

    :param client: ``redis.asyncio.Redis``, also one from ``Sentinel.master_for``, or ``redis.asyncio.RedisCluster``.
    :raises ~rtkit.errors.UsageError: for anything else.
    """
    pool: Any = getattr(client, "connection_pool", None)
    if pool is not None:
        if not hasattr(pool, "connection_kwargs"):
            raise UsageError(f"a {type(client).__name__} has no connections to take after")
        dialer = Dialer(pool.connection_class, pool.connection_kwargs)
        manager: Any = getattr(pool, "sentinel_manager", None)
        if manager is None:
            return Standalone(dialer)
        sentinels = [
            Dialer(each.connection_pool.connection_class, each.connection_pool.connection_kwargs)
            for each in manager.sentinels
        ]
        return Sentinels(sentinels, pool.service_name, dialer)
    if hasattr(client, "startup_nodes") and hasattr(client, "connection_kwargs"):
        options: dict[str, Any] = dict(client.connection_kwargs)
        kind = options.pop("connection_class", Connection)
        options.pop("redis_connect_func", None)  # it asks for reads from replicas
        seeds = [(str(node.host), int(node.port)) for node in client.startup_nodes]
        return Cluster(seeds, Dialer(kind, options))
    raise UsageError(f"client=… is a redis.asyncio.Redis or RedisCluster, not a {type(client).__name__}")
