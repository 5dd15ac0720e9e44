"""Who somebody is and what they may do: authentication, and grants (A1 to A4)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .. import codes
from ..errors import Reject, Unavailable
from ..identity import Credentials, Grant, Identity
from ..primitives.clocks import timeout
from ..transports import Handshake
from .context import Context
from .handle import Room
from .local import Member
from .origin import cookies_count
from .table import Family

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Authority", "TokenGrant"]

logger = logging.getLogger("rtkit.auth")


class TokenGrant(Grant):
    """What the application granted on seeing a token for the room; it is shown the same one when asked again."""

    __slots__ = ("token",)

    def __init__(self, grant: Grant, token: str) -> None:
        super().__init__(ttl=grant.ttl)
        self.rights = grant.rights
        self.token = token

    def told(self) -> tuple[bool, int]:
        """Whether the client has to renew it, and in how many whole seconds, at least one."""
        return (False, 0) if self.ttl is None else (True, max(1, round(self.ttl)))


class Authority:
    """Asks the application, and remembers for how long its answers hold."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def authenticate(
        self, handshake: Handshake, token: str, data: Any, *, previous: Identity[Any] | None = None
    ) -> Identity[Any]:
        """Credentials to an identity that has not expired and is not revoked.

        :raises Reject: when there is none.
        """
        headers, cookies = handshake.all_headers(), handshake.cookies()
        if cookies and not cookies_count(handshake, self._engine.hub.origins, self._engine.hub.proxies):
            cookies = {}
            headers.pop("cookie", None)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        credentials = Credentials(
            token=token or (bearer.strip() if scheme.lower() == "bearer" else "") or None,
            data=data,
            headers=headers,
            cookies=cookies,
            query=handshake.params(),
            address=self._engine.hub.proxies.client(handshake).address,
            scope=handshake.scope,
            previous=previous,
        )
        authenticate = self._engine.hub.authenticate_hook
        identity = await self._engine.lag.watch(authenticate, authenticate(credentials))
        if not isinstance(identity, Identity):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"authenticate returned {type(identity).__name__}, not an Identity; raise Reject to refuse"
            )
        if identity.expires_at is not None and identity.expires_at <= self._engine.clock.time():
            raise Reject("token expired", code=codes.TOKEN_EXPIRED)
        if await self._kept_out(identity.user):
            raise Reject("revoked", code=codes.UNAUTHORISED)
        return identity

    async def permit(self, ctx: Context[Any, Any], family: Family) -> Grant:
        """The gates, then the family's grant.

        :raises Reject: when the application says no; and, for now, when it says nothing for as long as a handler may
            take.
        """
        limit = timeout(self._engine.clock, self._engine.limits.handler_timeout)
        try:
            async with limit:
                for gate in family.around.gates:
                    await self._engine.lag.watch(gate, gate(ctx))
                authorize = family.rooms.authorize_hook
                if authorize is None:
                    assert family.rooms.grant is not None  # checked at start
                    return family.rooms.grant
                grant = await self._engine.lag.watch(authorize, authorize(ctx))
        except TimeoutError:
            if not limit.expired():
                raise
            # The application, or the broker; or this whole process stood still.
            logger.warning(
                "authorize of room %r took more than %s s", ctx.room.name, self._engine.limits.handler_timeout
            )
            raise Reject("authorizing took too long", code=codes.INTERNAL, retry_after=1.0) from None
        if not isinstance(grant, Grant):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"authorize of {family.pattern.text!r} returned {type(grant).__name__}, not a Grant; "
                f"raise Reject to refuse"
            )
        return TokenGrant(grant, ctx.token) if ctx.token is not None else grant

    async def permit_again(self, member: Member, token: str | None = None) -> None:
        """Ask again for a room that was joined; who may not any more is taken out.

        :param token: a new one that the client shows; without it the application sees the one shown last.
        """
        session, room = member.session, member.room
        handle: Room[Any] = Room(self._engine.hub, room.family, room.name, room.params, session=session)
        if token is None and isinstance(member.grant, TokenGrant):
            token = member.grant.token
        ctx = Context(
            hub=self._engine.hub,
            session=session,
            room=handle,
            data=None,
            key=None,
            resumed=session.resumed,
            token=token,
        )
        try:
            member.grant = await self.permit(ctx, room.family)
        except Reject as error:
            # An old token is replaced by joining again, and so is an answer that may be another later; who may not be
            # here stays away.
            again = error.code in (codes.TOKEN_EXPIRED, codes.EXPIRED) or error.retry_after is not None
            code = codes.ROOM_EXPIRED if again else codes.UNSUBSCRIBED
            self._engine.unsubscribe(member, code, error.message)
            return
        except Exception as error:
            # Whether the right still holds is unknown; to keep it would be to guess.
            logger.exception("authorize of room %r failed", room.name, exc_info=error)
            self._engine.unsubscribe(member, codes.ROOM_EXPIRED, "permission could not be renewed")
            return
        self.watch_grant(member)

    def watch_grant(self, member: Member) -> None:
        """Ask again when the grant's ttl has run out.

        For a token the client was told how long it holds, and has the same leeway as with that of its connection to
        show a new one. After that the old one is judged again.
        """
        if member.grant_deadline is not None:
            member.grant_deadline.cancel()
            member.grant_deadline = None
        if member.grant.ttl is not None and not member.left:
            when = self._engine.clock.monotonic() + member.grant.ttl
            if isinstance(member.grant, TokenGrant):
                when += self._engine.limits.refresh_leeway
            member.grant_deadline = self._engine.deadlines.at(when, self._ask_again, member)

    def _ask_again(self, member: Member) -> None:
        if not member.left:
            self._engine.spawn(self.permit_again, member)

    async def check_ban(self, room: str, user: str) -> None:
        """:raises Reject: for a user who is banned from the room."""
        if await self._kept_out(user, room):
            raise Reject("banned from this room")

    async def _kept_out(self, user: str, room: str = "") -> bool:
        try:
            return await self._engine.revocations.find(user, room)
        except Unavailable as error:
            raise Reject("try again later", code=codes.INTERNAL, retry_after=1.0) from error
