"""Brokers carry messages between hubs, and keep what rooms remember (B1-B9).

The contracts are in :mod:`rtkit.brokers.base`; a broker of your own proves that it keeps them with the suites in
:mod:`rtkit.testing.conformance`. :func:`open_url` makes the one that a URL names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..clock import Clock
from ..errors import UsageError
from .base import (
    ANYTHING,
    MAX_PAYLOAD,
    Anything,
    Appended,
    Broker,
    Conflict,
    NewEntry,
    Repeated,
    Revision,
    Sink,
    StateBroker,
    StreamBroker,
)
from .memory import MemoryBackend, MemoryBroker, MemoryStatistics

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    # contracts
    "Broker",
    "StreamBroker",
    "StateBroker",
    "Sink",
    # values
    "Appended",
    "NewEntry",
    "Conflict",
    "Repeated",
    "Revision",
    "Anything",
    "ANYTHING",
    "MAX_PAYLOAD",
    # in this process
    "MemoryBroker",
    "MemoryBackend",
    "MemoryStatistics",
    # by URL
    "open_url",
]

GROUP = "rtkit.brokers"

# What brings the broker of a scheme that people will ask for.
_BRINGS = {
    **dict.fromkeys(
        ("redis", "rediss", "redis+sentinel", "redis+cluster", "valkey", "valkeys"),
        'pip install "rtkit[redis]" brings it',
    ),
    "nats": "the package rtkit-nats in examples/broker_plugin brings it",
}


def open_url(url: str, *, clock: Clock | None = None) -> Broker:
    """The broker that *url* names; not connected yet, that is what its ``open`` is for.

    ``memory://`` is built in. Any other scheme is the name of an entry point in the group ``rtkit.brokers``,
    which is loaded now and not before: a class with ``from_url(url, *, clock=None)``.

    :param url: for example ``memory://`` or ``redis://host:6379/0``. It may hold a password, so no message
        repeats more of it than the scheme.
    :param clock: what the broker takes for time; the running event loop's unless given.
    :raises ~rtkit.errors.UsageError: for a scheme that is not installed, or a URL that its broker refuses.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    if match is None:
        raise UsageError('a broker is named by a URL such as "memory://" or "redis://host:6379/0"')
    scheme = match[1].lower()
    if scheme == "memory":
        return MemoryBroker.from_url(url, clock=clock)
    from importlib.metadata import entry_points  # slow to import, and memory:// does without

    installed = {found.name: found for found in entry_points(group=GROUP)}
    if scheme not in installed:
        raise UsageError(
            f"no broker for {scheme}:// is installed; there are {_list({'memory', *installed})}{_hint(scheme)}"
        )
    broker: Any = _load(installed[scheme]).from_url(url, clock=clock)
    if not isinstance(broker, Broker):
        raise UsageError(
            f"{installed[scheme].value} made {broker!r} for {scheme}://, which is no rtkit Broker"
        )
    return broker


def _load(found: EntryPoint) -> Any:
    try:
        return found.load()
    except ImportError as error:
        raise UsageError(
            f"the broker for {found.name}:// ({found.value}) cannot be loaded: {error}{_hint(found.name)}"
        ) from error


def _hint(scheme: str) -> str:
    """What to install."""
    return f"; {_BRINGS[scheme]}" if scheme in _BRINGS else ""


def _list(schemes: set[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted(schemes))
