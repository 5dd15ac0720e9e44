"""What can be chosen, and how it is written in a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from rtkit.errors import UsageError

__all__ = ["Settings", "parse_url"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for all hubs of a cluster.

    :param prefix: the first token of all subjects, and the name of the JetStream stream.
    :param replicas: on how many servers JetStream keeps what is stored: 1, 3 or 5. Used when the stream is made.
    :param storage: ``file`` or ``memory``, likewise.
    :param dedupe_window: seconds a key is remembered (H7).
    :param patience: seconds after which a call comes back, with an answer or an error.
    :param logs: topics whose state this node remembers at the most. More are read anew when they are needed.
    :raises ValueError: for a value that cannot be meant.
    """

    prefix: str = "rt"
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    dedupe_window: float = 300.0
    patience: float = 2.0
    logs: int = 10_000

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.prefix):
            raise ValueError(f"prefix is up to 32 letters, digits, _ and -, not {self.prefix!r}")
        if self.replicas not in (1, 3, 5):
            raise ValueError(f"replicas is 1, 3 or 5, not {self.replicas!r}")
        if self.storage not in ("file", "memory"):
            raise ValueError(f"storage is 'file' or 'memory', not {self.storage!r}")
        for name in ("dedupe_window", "patience", "logs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is positive, not {getattr(self, name)!r}")


def parse_url(url: str) -> tuple[list[str], dict[str, Any], Settings]:
    """The servers of a URL, how to log in, and the settings.

    ``nats://user:password@one:4222,two:4222?prefix=chat&replicas=3``

    :return: server URLs without secrets, options of ``nats.connect``, settings.
    :raises ~rtkit.errors.UsageError: for what is no such URL. The message does not repeat it: it may hold a password.
    """
    parts = urlsplit(url)
    secrets, _, hosts = parts.netloc.rpartition("@")
    servers = [f"nats://{host}" for host in hosts.split(",") if host]
    if not servers or parts.path.strip("/") or parts.fragment:
        raise UsageError("a NATS URL is nats://[user:password@]host[:port][,host…][?option=value&…]")
    user, colon, password = secrets.partition(":")
    login: dict[str, Any] = {}
    if colon:
        login = {"user": unquote(user), "password": unquote(password)}
    elif user:
        login = {"token": unquote(user)}
    known: dict[str, type] = {field.name: type(field.default) for field in fields(Settings)}
    try:
        options: dict[str, Any] = {
            name: known[name](value)
            for name, value in parse_qsl(parts.query, strict_parsing=bool(parts.query))
        }
        return servers, login, Settings(**options)
    except KeyError as error:
        raise UsageError(f"nats:// has no option {error}; there are {', '.join(known)}") from None
    except ValueError as error:
        raise UsageError(f"nats:// has an option that cannot be meant: {error}") from None
