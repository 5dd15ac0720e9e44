"""Users who show a JSON Web Token (RFC 7519), and rooms that ask for one of their own (A1 to A3).

::

    auth = JwtAuthentication(SECRET, algorithms=["HS256"], audience="chat")
    hub = Hub(authenticate=auth)

What is asked of a token, in this order, each before anything more expensive:

1. at most 8 KiB of ASCII, in the three parts of a signed token, with an algorithm out of the list;
2. that it has not ended. That is asked before the signature, so that a client with yesterday's token is told to get
   another one even when the key of yesterday is gone; to whoever forges one it says nothing;
3. that its key is known, and the signature is its work (:mod:`rtkit.ext.jwt_keys`);
4. the issuer, the audience, that it has begun, that it was not revoked; that its claims are of the type you declared.

A client is told what it can do, not what was found: ``token expired`` (109) when another token may help, which is also
said of a key that is not there any more; a moment to come back for what begins soon and for an issuer that cannot be
reached; ``bad token`` (101) of all the rest. The reason is in the log ``rtkit.auth``, at level INFO, since strangers
decide how often it is written; the token never is (A5).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, Generic, TypedDict, cast, final, overload

import msgspec
from typing_extensions import TypeVar, Unpack

from .. import codes
from ..clock import Clock
from ..errors import BadUnit, Reject, UsageError
from ..hub import Context
from ..identity import Credentials, Grant, Identity, Right
from ..primitives.clocks import LoopClock
from ..schema import Codec

try:
    import jwt
    from jwt.utils import base64url_decode

    from .jwt_keys import BoundKey, Finder, FixedKeys, Key, KeySet, KeySetStatistics, check_algorithms
except ModuleNotFoundError as error:  # pragma: no cover - the tests have it
    raise ModuleNotFoundError(
        f"{error}: rtkit.ext.jwt needs PyJWT; pip install 'rtkit[jwt]' brings it", name=error.name
    ) from None

__all__ = ["JwtAuthentication", "JwtOptions", "Key", "KeySet", "KeySetStatistics", "Revoked"]

logger = logging.getLogger("rtkit.auth")

C = TypeVar("C", default=Any)

Claims = Mapping[str, Any]
Revoked = Callable[[Claims], Awaitable[bool]]

#: Characters of a token at the most.
_LONGEST: Final = 8192
#: A NumericDate at the most: the end of the year 9999.
_LATEST: Final = 253402300799
#: Seconds that a client with a token for later is told to wait, at the most.
_SOON: Final = 60.0


class JwtOptions(TypedDict, total=False):
    """What :class:`JwtAuthentication` takes besides keys, algorithms and claims; see there."""

    issuer: str | Collection[str] | None
    audience: str | Collection[str] | None
    leeway: float
    must_expire: bool
    cookie: str | None
    room: str
    revoked: Revoked | None
    clock: Clock | None


class _Bad(Exception):
    """A token is refused; the text is for the log."""


@final
class JwtAuthentication(Generic[C]):
    """An ``authenticate`` for signed tokens; see the module.

    The token is that of the connect or refresh command, else of ``Authorization: Bearer``, else of the *cookie*.

    :param keys: one key for all tokens; or keys by the ``kid`` that tokens name; or a :class:`KeySet`.
    :param algorithms: that tokens may be signed with, such as ``["ES256"]``. Secrets (HS…) and public keys do not mix.
    :param claims: the type of the claims, which handlers find at ``ctx.claims``: a dataclass, Struct, TypedDict or
        pydantic model. A token that does not fit is refused. Without it the claims are a plain dict.
    :param user: the claim that names the user; or a function of the claims, for names made of several.
    :param issuer: who has to have issued it (``iss``); any of several. None takes every issuer.
    :param audience: for whom it has to be meant (``aud``); any of several. With None a token that names an audience
        is refused, for it is meant for somebody else.
    :param leeway: seconds that the issuer's clock may be ahead of ours: a token may be shown so long before it
        begins (``nbf``). Its end (``exp``) is the identity's, to the second; the hub has a leeway of its own there
        (``Limits.refresh_leeway``).
    :param must_expire: False takes tokens without ``exp`` too, which hold for ever.
    :param cookie: the cookie that has the token of a browser which shows none; see ``docs/how-to/authenticate.md``.
    :param room: the claim that makes a token one for a room, and for nothing else; see :meth:`room_grant`.
    :param revoked: an async function of the claims that says whether the token was taken back, by its ``jti`` say.
        What it raises lets nobody in.
    :param clock: where the time comes from; the hub's, if that has one of its own.
    :raises UsageError: for keys and algorithms that do not fit each other.
    :raises DeclarationError: for a type of claims that JSON cannot be.
    """

    @overload
    def __init__(
        self: JwtAuthentication[dict[str, Any]],
        keys: Key | Mapping[str, Key] | KeySet,
        *,
        algorithms: Collection[str],
        claims: None = None,
        user: str | Callable[[dict[str, Any]], str] = "sub",
        **options: Unpack[JwtOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        keys: Key | Mapping[str, Key] | KeySet,
        *,
        algorithms: Collection[str],
        claims: type[C],
        user: str | Callable[[C], str] = "sub",
        **options: Unpack[JwtOptions],
    ) -> None: ...
    def __init__(
        self,
        keys: Key | Mapping[str, Key] | KeySet,
        *,
        algorithms: Collection[str],
        claims: type[Any] | None = None,
        user: str | Callable[[Any], str] = "sub",
        issuer: str | Collection[str] | None = None,
        audience: str | Collection[str] | None = None,
        leeway: float = 10.0,
        must_expire: bool = True,
        cookie: str | None = None,
        room: str = "channel",
        revoked: Revoked | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not leeway >= 0:
            raise ValueError(f"leeway= is seconds, and not negative; not {leeway!r}")
        for name, value in (("issuer", issuer), ("audience", audience)):
            if value is not None and not value:
                raise UsageError(
                    f"{name}= is empty, so that no token could ever be good; None asks for nothing"
                )
        self._algorithms = check_algorithms(algorithms)
        self._keys: Finder = keys if isinstance(keys, KeySet) else FixedKeys(keys, self._algorithms)
        self._codec = None if claims is None else Codec(claims)
        self._user = user
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._must_expire = must_expire
        self._cookie = cookie
        self._room = room
        self._revoked = revoked
        self._clock: Clock = clock or LoopClock()
        # Times are judged here, by a clock that is an argument; the subject is whichever claim *user* says.
        self._jwt = jwt.PyJWT(
            {
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
                "enforce_minimum_key_length": True,
            }
        )

    async def __call__(self, credentials: Credentials) -> Identity[C]:
        """Who shows these credentials.

        :raises Reject: 109 for a token that has expired, 101 for a bad one and for none; with ``retry_after`` when
            that may change by itself.
        """
        token = credentials.token
        if token is None and self._cookie is not None:
            token = credentials.cookies.get(self._cookie)
        if not token:
            raise Reject("no token", code=codes.UNAUTHORISED)
        try:
            claims, end = await self._verify(token, self._clock.time())
            if self._room in claims:
                raise _Bad("it is for a room")
            decoded: Any = claims if self._codec is None else self._decode(token)
            return Identity(self._name(claims, decoded), decoded, expires_at=end)
        except _Bad as bad:
            logger.info("a token was refused: %s; shown by %s", bad, credentials.address or "somebody")
            raise Reject("bad token", code=codes.UNAUTHORISED) from None

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a token that is good now, for other places that take the same tokens.

        :raises Reject: as for authentication.
        """
        try:
            return (await self._verify(token, self._clock.time()))[0]
        except _Bad as bad:
            logger.info("a token was refused: %s", bad)
            raise Reject("bad token", code=codes.UNAUTHORISED) from None

    async def room_grant(self, ctx: Context[Any, Any], *rights: Right) -> Grant:
        """What the token for a room earns, in that room's ``authorize``: *rights*, for as long as it holds.

        ::

            @chat.authorize
            async def authorize(ctx: Context) -> Grant:
                return await auth.room_grant(ctx, "publish", "history")

        The token has to name the room (claim ``channel``) and this user. If it has a list ``rights``, only those of
        them are granted. The client is told how long it holds, and renews it with ``sub_refresh``; when it ends, the
        client is out of the room until it shows another.

        :raises Reject: 109 for a token that has expired, 103 for a bad one and for none.
        """
        token, now = ctx.token, ctx.hub.clock.time()
        if token is None:
            raise Reject("this room needs a token of its own")
        try:
            claims, end = await self._verify(token, now)
            if claims.get(self._room) != ctx.room.name:
                raise _Bad("it is not for this room")
            decoded: Any = (
                claims if self._codec is None or isinstance(self._user, str) else self._decode(token)
            )
            if self._name(claims, decoded) != ctx.user:
                raise _Bad("it is another user's")
            granted: tuple[Right, ...] = rights
            if "rights" in claims:
                if not isinstance(claims["rights"], list):
                    raise _Bad("its rights are no list")
                granted = tuple(right for right in rights if right in claims["rights"])
        except _Bad as bad:
            logger.info("a token for room %r was refused: %s; shown by %r", ctx.room.name, bad, ctx.user)
            raise Reject("bad token for this room") from None
        return Grant(*granted, ttl=None if end is None else end - now)

    # -- inside ------------------------------------------------------------------------------------

    async def _verify(self, token: str, now: float) -> tuple[dict[str, Any], float | None]:
        """The claims of a good token, and when it ends.

        :raises _Bad: for one that is not.
        """
        kid, algorithm, end = self._peek(token)
        if end is not None and end <= now:
            logger.info("a token was refused: it has expired %.0f s ago by our clock", now - end)
            raise Reject("token expired", code=codes.TOKEN_EXPIRED)
        key = await self._keys.find(kid, algorithm)
        claims = None if key is None else self._open(token, key, algorithm, final=kid is not None)
        if claims is None and kid is None and key is not None:
            # The only key there was, in a set whose keys have no names: it may be another one by now.
            key = await self._keys.find(kid, algorithm, but=key)
            if key is None:
                raise _Bad("InvalidSignatureError")
            claims = self._open(token, key, algorithm, final=True)
        if claims is None:
            logger.info("a token was refused: its key, %s, is not known, or not any more", _shown(kid))
            raise Reject("token expired: its key is not in use", code=codes.TOKEN_EXPIRED)
        begin = _moment(claims, "nbf")
        if begin is not None and begin > now + self._leeway:
            logger.info("a token was refused: it begins in %.0f s by our clock", begin - now)
            wait = min(_SOON, begin - now - self._leeway)
            raise Reject("token not valid yet", code=codes.UNAUTHORISED, retry_after=round(max(1.0, wait), 3))
        if self._revoked is not None and await self._revoked(claims):
            raise _Bad("it was revoked")
        return claims, self._end(claims)

    def _peek(self, token: str) -> tuple[str | None, str, float | None]:
        """The key's id, the algorithm and the end, as the token itself says before anything is proven."""
        if len(token) > _LONGEST or not token.isascii():
            raise _Bad(f"{len(token)} characters, or not all of them ASCII")
        parts = token.split(".")
        if len(parts) != 3:
            raise _Bad("it has not three parts")
        # Quick, and not strict: what passes is read again by PyJWT, together with the signature.
        header, claims = _read(parts[0]), _read(parts[1])
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise _Bad("its algorithm is none of ours")
        if kid is not None and not isinstance(kid, str):
            raise _Bad("the id of its key is no text")
        return kid or None, algorithm, self._end(claims)

    def _end(self, claims: Claims) -> float | None:
        end = _moment(claims, "exp")
        if end is None and self._must_expire:
            raise _Bad("it has no end (exp)")
        return end

    def _open(self, token: str, key: BoundKey, algorithm: str, *, final: bool) -> dict[str, Any] | None:
        """The claims; None when the signature is not the key's, and another one may be tried."""
        try:
            return self._jwt.decode(
                token, key.material, algorithms=[algorithm], audience=self._audience, issuer=self._issuer
            )
        except jwt.InvalidSignatureError as error:
            if not final:
                return None
            raise _Bad(type(error).__name__) from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise _Bad(type(error).__name__) from None  # its text may have a claim in it

    def _decode(self, token: str) -> Any:
        """The typed claims, of the very bytes that were signed."""
        assert self._codec is not None
        try:
            return self._codec.decode(base64url_decode(token.split(".")[1]))
        except BadUnit as error:
            # Where it does not fit, not what was found there: claims may be secrets of the host's (A5).
            where = error.message.rpartition(" - at ")[2] if " - at " in error.message else "the top"
            raise _Bad(f"its claims do not fit {self._codec!r} at {where}") from None

    def _name(self, claims: Claims, decoded: Any) -> str:
        try:
            found: Any = claims.get(self._user) if isinstance(self._user, str) else self._user(decoded)
            name: Any = str(found) if type(found) is int else found  # True is an int, and no name
            return Identity(name).user
        except (TypeError, ValueError):
            raise _Bad("it names no user, or one that cannot be") from None

    def __repr__(self) -> str:
        return f"<JwtAuthentication {', '.join(sorted(self._algorithms))}, {self._keys!r}>"


def _read(part: str) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(base64url_decode(part))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _Bad(type(error).__name__) from None
    if not isinstance(found, dict):
        raise _Bad("a part of it is no JSON object")
    return cast("dict[str, Any]", found)


def _moment(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise _Bad(f"{name} is no time")
    return value


def _shown(kid: str | None) -> str:
    return "which it does not name" if kid is None else ascii(kid[:40])
