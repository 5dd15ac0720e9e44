"""What tokens are verified with: keys, and sets of keys that change while the hub runs.

A key is tied to the algorithms it was made for before any token is seen, so that what a token says about its
algorithm chooses among those and nothing else (RFC 8725, section 3.1): a public key is never taken for the secret of
an HMAC.

A :class:`KeySet` asks the application for the issuer's keys (RFC 7517, section 5). The rules:

- One fetch at a time. It is made by whoever needs it first, and those who come meanwhile wait for it, but only if they
  cannot go on with what is known. There is no task: when the one that fetches is cancelled, the next one does it.
- Between two fetches at least *every* seconds pass, whatever strangers show. Whoever shows a key that was never heard
  of is told to come back, and only after a fetch that was made for them that there is no such key.
- A key that has left the set is remembered as gone: when an issuer drops one in haste, thousands come with its tokens,
  and are told at once to get others.
- What was fetched last is known until the next fetch succeeds. A set without a single usable key is a failure too: an
  issuer that publishes nothing by mistake shall not lock everybody out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast, final

import jwt
import msgspec
from jwt.algorithms import get_default_algorithms

from .. import codes
from ..clock import Clock
from ..errors import Reject, UsageError
from ..primitives.clocks import LoopClock, timeout

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

__all__ = ["BoundKey", "Finder", "FixedKeys", "Key", "KeySet", "KeySetStatistics", "bind", "check_algorithms"]

logger = logging.getLogger("rtkit.auth")

Key: TypeAlias = "str | bytes | jwt.PyJWK | AllowedPublicKeys"
"""A secret of 32 bytes or more for HS256; for the other algorithms a public key as PEM, as ``cryptography`` has it, or
as a ``PyJWK``."""

Document: TypeAlias = "Mapping[str, Any] | str | bytes"

_BY_TYPE: Final = {
    "oct": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES256K", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_SECRET: Final = frozenset(_BY_TYPE["oct"])
_ALL: Final = frozenset(name for names in _BY_TYPE.values() for name in names)

#: Keys of a set that are looked at.
_MOST_KEYS: Final = 100
#: What making a key of something that is none may raise.
_NO_KEY: Final = (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True)
class BoundKey:
    """A key, and the algorithms it may be used with. The repr does not show it (A5)."""

    material: Any
    algorithms: frozenset[str]

    def __repr__(self) -> str:
        return f"<BoundKey for {', '.join(sorted(self.algorithms))}>"


class Finder(Protocol):
    """Where keys are found."""

    async def find(self, kid: str | None, algorithm: str, *, but: BoundKey | None = None) -> BoundKey | None:
        """The key that a token names, or for one that names none the only one that fits; None when there is none.

        :param but: one that was tried already.
        :raises Reject: when that cannot be said now.
        """
        ...


def check_algorithms(algorithms: Collection[str]) -> frozenset[str]:
    """The algorithms that tokens may be signed with, once it is known that they go together.

    :raises UsageError: for none, for unknown ones and ``none``, and for secrets mixed with public keys.
    """
    if isinstance(algorithms, str):
        raise UsageError(f"algorithms= is a list, as in [{algorithms!r}]")
    wanted = frozenset(algorithms)
    if not wanted or not wanted <= _ALL:
        raise UsageError(
            f"algorithms= names what your issuer signs with, some of {sorted(_ALL)}; not {sorted(wanted)}"
        )
    if wanted & _SECRET and wanted - _SECRET:
        raise UsageError(
            "algorithms= mixes HMAC with public keys; with keys for both, tokens could be forged that are signed "
            "with what everybody knows. Make two, and ask them one after the other"
        )
    missing = wanted - frozenset(get_default_algorithms())
    if missing:
        raise UsageError(
            f"{sorted(missing)} need the cryptography package; pip install 'rtkit[jwt]' brings it"
        )
    return wanted


def bind(key: Key, algorithms: frozenset[str]) -> BoundKey:
    """Tie a key to those of the algorithms that it fits.

    :raises UsageError: when it fits none, is too short for one, or is a private key.
    """
    if isinstance(key, jwt.PyJWK):
        bound = _bind(key.key, algorithms & {key.algorithm_name})
    else:
        bound = _bind(key, algorithms)
    if bound is None:
        what = "a secret as long as the hash, 32 bytes for HS256" if algorithms <= _SECRET else "a public key"
        raise UsageError(f"this is no key for {sorted(algorithms)}, which take {what}")
    if _is_private(bound.material):
        raise UsageError(
            "this is a private key. To verify tokens takes the public one: pass key.public_key()"
        )
    return bound


def _bind(material: Any, algorithms: Collection[str]) -> BoundKey | None:
    known = get_default_algorithms()
    fits: set[str] = set()
    found: Any = None
    for name in sorted(algorithms):
        try:
            prepared = known[name].prepare_key(material)
            if known[name].check_key_length(prepared) is not None:
                continue
        except _NO_KEY:
            continue
        found = prepared
        fits.add(name)
    return BoundKey(found, frozenset(fits)) if fits else None


def _is_private(material: Any) -> bool:
    return hasattr(material, "private_bytes")


def _read(document: object) -> dict[str, list[BoundKey]]:
    """The usable keys of a set, by their ids; those without one under the empty string.

    :raises ValueError: for what is no set, and for one without a usable key.
    """
    decoded: Any = msgspec.json.decode(document) if isinstance(document, str | bytes) else document
    listed: Any = decoded.get("keys") if isinstance(decoded, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError("what was fetched is no JSON Web Key Set: it has no list of keys")
    found: dict[str, list[BoundKey]] = {}
    jwks: list[Any] = listed[:_MOST_KEYS]
    for jwk in jwks:
        if isinstance(jwk, dict) and (bound := _from_jwk(cast("dict[str, Any]", jwk))) is not None:
            kid: Any = cast("dict[str, Any]", jwk).get("kid")
            found.setdefault(kid if isinstance(kid, str) else "", []).append(bound)
    if not found:
        raise ValueError("there is no key to verify signatures with in what was fetched")
    return found


def _from_jwk(jwk: dict[str, Any]) -> BoundKey | None:
    names = _BY_TYPE.get(jwk["kty"], ()) if isinstance(jwk.get("kty"), str) else ()
    if "alg" in jwk:
        names = tuple(name for name in names if name == jwk["alg"])
    known = get_default_algorithms()
    names = tuple(name for name in names if name in known)
    if not names or jwk.get("use", "sig") != "sig":
        return None
    try:
        material = known[names[0]].from_jwk(jwk)
        if _is_private(material):
            material = material.public_key()  # a set for ourselves alone; to verify takes no more
    except _NO_KEY:
        return None
    return _bind(material, names)


def _choose(
    keys: Mapping[str, list[BoundKey]], kid: str | None, algorithm: str, but: BoundKey | None
) -> BoundKey | None:
    if kid:
        fits = [key for key in keys.get(kid, ()) if algorithm in key.algorithms]
    else:
        fits = [key for each in keys.values() for key in each if algorithm in key.algorithms]
    return fits[0] if len(fits) == 1 and fits[0] is not but else None


@final
class FixedKeys:
    """One key for every token, or several by their ids."""

    __slots__ = ("_keys", "_only")

    def __init__(self, keys: Key | Mapping[str, Key], algorithms: frozenset[str]) -> None:
        self._only: BoundKey | None = None
        self._keys: dict[str, list[BoundKey]] = {}
        if isinstance(keys, Mapping):
            if not keys:
                raise UsageError("there is no key to verify tokens with")
            self._keys = {kid: [bind(key, algorithms)] for kid, key in keys.items()}
        else:
            self._only = bind(keys, algorithms)

    async def find(self, kid: str | None, algorithm: str, *, but: BoundKey | None = None) -> BoundKey | None:
        if self._only is not None:
            return self._only if self._only is not but and algorithm in self._only.algorithms else None
        return _choose(self._keys, kid, algorithm, but)

    def __repr__(self) -> str:
        return f"<FixedKeys, {len(self._keys) or 1} keys>"


@dataclass(frozen=True, slots=True)
class KeySetStatistics:
    """A set of keys as it is now.

    :param keys: that are known.
    :param fetches: that were answered with a set.
    :param failures: that were not.
    :param age: seconds since the last set; None when there was none.
    """

    keys: int
    fetches: int
    failures: int
    age: float | None


@final
class KeySet:
    """An issuer's keys, which change while the hub runs; see the module's theory.

    ::

        async def fetch() -> bytes:
            async with httpx.AsyncClient() as http:
                return (await http.get(JWKS_URL)).raise_for_status().content


        Hub(authenticate=JwtAuthentication(KeySet(fetch), algorithms=["RS256"], issuer=…, audience=…))

    :param fetch: an async function that gets the issuer's JSON Web Key Set, as text or decoded. What it raises is
        logged.
    :param ttl: seconds after which it is fetched anew, when somebody comes. A key that the issuer has taken away is
        good for so long; while the issuer cannot be reached, for longer.
    :param every: seconds between two fetches, at the least.
    :param patience: seconds a fetch may take. A hub gives up on authentication after 10 s.
    :param clock: where time comes from.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Document]],
        *,
        ttl: float = 3600.0,
        every: float = 10.0,
        patience: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("ttl", ttl), ("every", every), ("patience", patience)):
            if not value > 0:
                raise ValueError(f"KeySet({name}=…) is positive seconds, not {value!r}")
        self._fetch = fetch
        self._ttl = ttl
        self._every = every
        self._patience = patience
        self._clock: Clock = clock or LoopClock()
        self._keys: dict[str, list[BoundKey]] = {}
        self._gone: dict[str, None] = {}
        self._fetched_at: float | None = None
        self._next_at: float | None = None  # not before
        self._fetches = 0
        self._failures = 0
        self._flight: asyncio.Future[None] | None = None

    async def find(self, kid: str | None, algorithm: str, *, but: BoundKey | None = None) -> BoundKey | None:
        """See :meth:`Finder.find`. Cancellation: safe; a fetch that others wait for is made by one of them."""
        fetches, failures = self._fetches, self._failures
        while True:
            key, now = _choose(self._keys, kid, algorithm, but), self._clock.monotonic()
            fresh = self._fetched_at is not None and now - self._fetched_at < self._ttl
            if self._fetches != fetches or (key is not None and (fresh or self._failures != failures)):
                return key  # as of now, or as good as can be had
            if fresh and kid in self._gone:
                return None
            if self._failures != failures:
                raise self._later(self._every)
            flight = self._flight
            wait = 0.0 if self._next_at is None else self._next_at - now
            if flight is not None and flight.get_loop() is asyncio.get_running_loop():
                if key is not None:
                    return key
                await asyncio.shield(flight)
            elif wait > 0:
                if key is not None:
                    return key
                raise self._later(wait)
            else:
                await self._renew(now)

    async def _renew(self, now: float) -> None:
        flight = self._flight = asyncio.get_running_loop().create_future()
        self._next_at, before = now + self._every, self._next_at
        try:
            async with timeout(self._clock, self._patience):
                document = await self._fetch()
            keys = _read(document)
        except Exception as error:
            self._failures += 1
            # Only what it is: its text may have a URL with a password, or a piece of what was fetched (A5).
            known = sum(map(len, self._keys.values()))
            logger.warning("keys could not be fetched: %s; %d are known", type(error).__name__, known)
            logger.debug("keys could not be fetched", exc_info=error)
        except BaseException:
            self._next_at = before  # nothing came of it: whoever waits may do it
            raise
        else:
            gone = [kid for kid in (*self._gone, *self._keys) if kid not in keys]
            self._gone = dict.fromkeys(gone[-_MOST_KEYS:])
            self._keys = keys
            self._fetches += 1
            self._fetched_at = self._clock.monotonic()
        finally:
            self._flight = None
            if not flight.done():
                flight.set_result(None)

    def _later(self, wait: float) -> Reject:
        return Reject("try again later", code=codes.INTERNAL, retry_after=round(max(1.0, wait), 3))

    def statistics(self) -> KeySetStatistics:
        """How it stands."""
        known = sum(map(len, self._keys.values()))
        age = None if self._fetched_at is None else self._clock.monotonic() - self._fetched_at
        return KeySetStatistics(known, self._fetches, self._failures, age)

    def __repr__(self) -> str:
        return f"<KeySet, {sum(map(len, self._keys.values()))} keys>"
