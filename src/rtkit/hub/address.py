"""Whose address a handshake comes from: the peer's, or what trusted proxies say (F1). Pure.

``X-Forwarded-For`` is a list to which each proxy appends whom it was called by. What a client has written into it
itself stands further left. So it is read from the right, for as long as the one who wrote is trusted::

    X-Forwarded-For: 1.2.3.4, 203.0.113.9, 10.0.0.7          the peer is 10.0.0.8
                     ▲        ▲            ▲
                     made up  the client   a trusted proxy, told by the peer, which is trusted too

An entry that is no address ends it: then nobody knows.

Who is counted by address (see :meth:`Proxies.client`) must be one client's, or a network's. A private address that
nobody vouches for is most likely a proxy's, with all the world behind it; it is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, final

from ..errors import UsageError
from ..transports import Handshake

__all__ = ["NO_PROXIES", "Client", "Proxies", "Uncounted", "key_of", "read_address"]

Address = IPv4Address | IPv6Address

#: Characters of an address with its port at the most: IPv6, with brackets and a zone.
_LONGEST: Final = 64
#: Trusted proxies that one request has come through, at the most.
_HOPS: Final = 16
#: Bits of IPv6 that one customer has to himself.
_HOST_BITS: Final = 64
#: Stands for peers without an address, in ``trusted_proxies``.
_UNIX: Final = "unix"


class Uncounted(Enum):
    """Why an address is not counted."""

    PRIVATE = "private"
    """It is not public, and nobody vouches for it."""
    UNSAID = "unsaid"
    """It is a trusted proxy that does not say for whom."""
    UNKNOWN = "unknown"
    """There is none, or a proxy has said what is none."""


@dataclass(frozen=True, slots=True)
class Client:
    """Where a handshake comes from.

    :param address: as an application sees it; empty for not known.
    :param key: what it is counted by; or why it is not.
    """

    address: str
    key: int | Uncounted


def read_address(text: str) -> Address | None:
    """An address as proxies write it, perhaps with a port, in brackets, with a zone; None for what is none.

    IPv4 in IPv6 is IPv4, and the zone is dropped: it means nothing elsewhere.
    """
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
        if ":" not in text:
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return found.ipv4_mapped
        if found.scope_id is not None:
            return IPv6Address(int(found))
    return found


def _is_port(text: str) -> bool:
    return text[0] == ":" and len(text) <= 6 and text[1:].isascii() and text[1:].isdigit()


def key_of(address: Address) -> int:
    """What an address is counted by: IPv4 by itself, IPv6 by its /64, which is the least that anybody has."""
    if isinstance(address, IPv4Address):
        return int(address)
    return int(address) >> _HOST_BITS | 1 << _HOST_BITS


@final
class Proxies:
    """The proxies that a deployment trusts.

    :param trusted: networks or addresses, such as ``10.0.0.0/8``; ``unix`` for whoever comes through a Unix socket.
    :raises UsageError: for one that is none.
    """

    __slots__ = ("_networks", "_unix")

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        if isinstance(trusted, str):
            raise UsageError(f"trusted_proxies= is a list of networks, as in [{trusted!r}]")
        self._unix = _UNIX in trusted
        self._networks = tuple(_network(each) for each in trusted if each != _UNIX)

    def client(self, handshake: Handshake) -> Client:
        """Where a handshake comes from."""
        peer = read_address(handshake.address)
        if not self._vouches(peer, handshake):
            if peer is None:
                return Client(handshake.address, Uncounted.UNKNOWN)
            return Client(handshake.address, key_of(peer) if peer.is_global else Uncounted.PRIVATE)
        found: Address | None = None
        for hop, entry in enumerate(_from_the_right(handshake)):
            found = read_address(entry)
            if found is None:
                return Client("", Uncounted.UNKNOWN)
            if hop == _HOPS or not self._trusts(found):
                break
        if found is None:
            return Client(handshake.address, Uncounted.UNSAID)
        return Client(str(found), key_of(found))

    def asked_for(self, handshake: Handshake) -> tuple[str | None, bool | None]:
        """The host, with its port, that a client has asked for, and whether by TLS; None for not known (T10).

        A trusted proxy is believed, whatever it says and however many it has it from: who could write these headers
        could write ``Origin`` itself, and a page can write neither.
        """
        host, secure = handshake.header("host"), handshake.secure
        if self and self._vouches(read_address(handshake.address), handshake):
            if told := _first(handshake, "x-forwarded-host"):
                host = told
            if _first(handshake, "x-forwarded-proto").lower() in ("https", "wss"):
                secure = True
        return host, secure

    def _vouches(self, peer: Address | None, handshake: Handshake) -> bool:
        """Whether the peer is a trusted proxy."""
        return self._trusts(peer) if peer is not None else self._unix and not handshake.address

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __repr__(self) -> str:
        return f"<Proxies {len(self._networks)} networks{' and Unix sockets' if self._unix else ''}>"


NO_PROXIES: Final = Proxies()
"""Nobody is believed."""


def _first(handshake: Handshake, name: str) -> str:
    """What the outermost proxy says, in a list to which each appends; empty for nothing."""
    return (handshake.header(name) or "").partition(",")[0].strip()


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"trusted_proxies= has networks such as 10.0.0.0/8, not {text!r}: {error}") from None


def _from_the_right(handshake: Handshake) -> Iterator[str]:
    """The entries of ``X-Forwarded-For``, the newest first, each only when it is asked for."""
    for name, value in reversed(handshake.headers):
        if name == "x-forwarded-for":
            rest: str = value
            comma = ","
            while comma:
                rest, comma, entry = rest.rpartition(",")
                yield entry
