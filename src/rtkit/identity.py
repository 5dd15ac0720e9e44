"""Who somebody is, and what they may do: values without behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, overload

from typing_extensions import TypeVar

__all__ = ["ANONYMOUS", "Credentials", "Grant", "Identity", "Right", "anonymous"]

C = TypeVar("C", default=Any)

Right = Literal["publish", "signal", "presence", "history"]
_RIGHTS: frozenset[str] = frozenset({"publish", "signal", "presence", "history"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

ANONYMOUS: Final = "anonymous"
"""A user who is nobody in particular: many may be him, and no limit for each user applies to him."""


def _bytes(text: str) -> int:
    """How many bytes of UTF-8; 0 when a lone surrogate makes it none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


class Identity(Generic[C]):
    """What authentication yields: a user, the host's claims about them, and until when it holds.

    Immutable. Without claims it is an ``Identity[None]``.

    :param user: names the user everywhere: 1 to 255 bytes of UTF-8 without control characters.
    :param claims: whatever the host wants to have at hand in handlers.
    :param expires_at: seconds since the Unix epoch, or None for never (A3).
    :raises ValueError: for a user id that is empty, too long, or has control characters.
    :raises TypeError: for one that is no string.
    """

    __slots__ = ("_claims", "_expires_at", "_user")

    @overload
    def __init__(self: Identity[None], user: str, *, expires_at: float | None = None) -> None: ...
    @overload
    def __init__(self, user: str, claims: C, *, expires_at: float | None = None) -> None: ...
    def __init__(self, user: str, claims: Any = None, *, expires_at: float | None = None) -> None:
        if not isinstance(user, str):
            raise TypeError(f"a user id is a string, not {user!r:.80}; str(…) makes one of a number")
        if not 0 < _bytes(user) <= 255 or _CONTROL.search(user):
            raise ValueError(
                f"a user id is 1 to 255 bytes of UTF-8 without control characters, not {user!r:.80}"
            )
        self._user = user
        self._claims: C = claims
        self._expires_at = expires_at

    @property
    def user(self) -> str:
        """The user's id."""
        return self._user

    @property
    def claims(self) -> C:
        """What the host knows about the user."""
        return self._claims

    @property
    def expires_at(self) -> float | None:
        """Until when it holds."""
        return self._expires_at

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return (self.user, self.claims, self.expires_at) == (other.user, other.claims, other.expires_at)  # pyright: ignore[reportUnknownMemberType]

    def __hash__(self) -> int:
        return hash((self.user, self.expires_at))

    def __repr__(self) -> str:
        # Claims may hold secrets of the host's, so they are not shown (A5).
        until = "" if self.expires_at is None else f", expires_at={self.expires_at}"
        return f"Identity({self.user!r}{until})"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows, in one shape for header, cookie, query and connect command.

    :param token: the token of the connect or refresh command, else that of an
        ``Authorization: Bearer`` header, else None.
    :param data: the ``data`` of the connect command, decoded from JSON; None on a refresh.
    :param headers: of the handshake, names in lower case; repeated ones joined with ``", "``.
    :param cookies: of the handshake.
    :param query: of the handshake's URL; of a repeated name the last value.
    :param address: the client's IP address: the peer's as the host reports it, or what the proxies say that
        ``Hub(trusted_proxies=…)`` names; empty when there is none.
    :param scope: the ASGI scope, where the host has put what it knows (a session, a user); empty
        on hosts that are not ASGI.
    :param previous: on an in-band refresh the identity that is being renewed, else None (A3).
    """

    token: str | None = None
    data: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cookies: Mapping[str, str] = field(default_factory=dict[str, str])
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    address: str = ""
    scope: Mapping[str, Any] = field(default_factory=dict[str, Any])
    previous: Identity[Any] | None = None

    def __repr__(self) -> str:
        # Never a token, a cookie or a header: this ends up in logs (A5).
        shown = "shown" if self.token else "none"
        return f"Credentials(token={shown}, address={self.address!r})"


class Grant:
    """May join and read a room, plus these rights (A2).

    :param rights: any of ``publish``, ``signal``, ``presence``, ``history``.
    :param ttl: seconds after which the permission is asked for again; None for as long as the
        identity holds.
    :raises ValueError: for an unknown right or a ttl that is not positive.
    """

    __slots__ = ("rights", "ttl")

    def __init__(self, *rights: Right, ttl: float | None = None) -> None:
        unknown = set(rights) - _RIGHTS
        if unknown:
            raise ValueError(f"unknown rights {sorted(unknown)}; there are {sorted(_RIGHTS)}")
        if ttl is not None and not ttl > 0:
            raise ValueError(f"a grant's ttl is positive seconds or None, not {ttl!r}")
        self.rights: frozenset[str] = frozenset(rights)
        self.ttl = ttl

    def __repr__(self) -> str:
        ttl = "" if self.ttl is None else f", ttl={self.ttl}"
        return f"Grant({', '.join(map(repr, sorted(self.rights)))}{ttl})"


async def anonymous(credentials: Credentials) -> Identity[None]:
    """An ``authenticate`` that lets everybody in, as the one user ``anonymous``.

    It is passed like any other, ``Hub(authenticate=anonymous)``: there is no flag that turns
    authentication off by accident.
    """
    return Identity(ANONYMOUS)
