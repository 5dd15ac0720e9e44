"""Joining and leaving rooms, on the client's command or the server's (A2, H2)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..errors import Reject
from ..position import Position
from ..primitives.clocks import timeout
from ..schema import encode_value
from ..wire import (
    Command,
    Empty,
    Reply,
    SubRefresh,
    SubRequest,
    Subscribe,
    SubscribeResult,
    loads,
)
from ..wire.units import SubRefreshResult
from .answers import asked_for
from .authority import TokenGrant
from .context import Context, Run, current_run
from .handle import Room
from .joining import Joining
from .local import Member
from .session import Session
from .table import Family

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["join", "kinds_asked", "sub_refresh", "subscribe", "unsubscribe"]

logger = logging.getLogger("rtkit.handlers")

_any = msgspec.json.Decoder(Any)

#: The bit of ``subscribe.flag`` with which a client wants to be refused rather than not recovered.
_OR_NOT_AT_ALL = 2


async def join(
    session: Session[Any],
    name: str,
    *,
    since: Position | None,
    server_side: bool,
    body: Subscribe | None = None,
    asked: Collection[str] = (),
) -> SubscribeResult:
    """Put the session into a room; when this fails, nothing is left of it.

    :param asked: the kinds of features that the client has asked for.

    Between the last await in here and the caller's reply nothing can be published.
    """
    engine = session.engine
    family, params = asked_for(engine, name)
    if name in session.rooms:
        raise Reject("already subscribed", code=codes.ALREADY_SUBSCRIBED)
    if session.removed and (reason := session.removed.pop(name, None)) is not None and not server_side:
        # Told in the place of coming in, once, as it would have been told had it been here.
        raise Reject(f"removed from this room: {reason}" if reason else "removed from this room")
    if len(session.rooms) >= engine.limits.max_rooms:
        engine.counters.add("limits", "rooms")
        raise Reject(f"at most {engine.limits.max_rooms} rooms", code=codes.LIMIT_EXCEEDED)
    data = None
    if body is not None and not isinstance(body.data, UnsetType):
        data = loads(bytes(body.data), _any)
    run = Run(engine.hub, session.identity.user, None, name)
    room: Room[Any] = Room(engine.hub, family, name, params, session=session)
    ctx = Context(
        hub=engine.hub,
        session=session,
        room=room,
        data=data,
        key=None,
        resumed=session.resumed,
        token=(body.token or None) if body is not None else None,
    )
    try:
        grant = await engine.authority.permit(ctx, family)
    except Reject as error:
        _refused(session, name, error)
        raise
    if session.connection is None:
        raise Reject("gone", code=codes.EXPIRED)
    member = Member(session, engine.local(name, family, params), grant, server_side=server_side)
    session.rooms[name] = member
    joining = Joining(
        member,
        since=since,
        rewind=body.rewind if body is not None else 0,
        admit=lambda: engine.authority.check_ban(name, session.identity.user),
        hook=_join_hook(ctx, family, run),
    )
    limit = timeout(engine.clock, engine.limits.handler_timeout)
    try:
        async with limit:
            await joining.run()
            for kind in family.rooms.features:
                base = body is not None and body.join_leave
                await engine.features[kind].joining(member, asked=asked, base=base)
        result = await joining.complete()
        if body is not None and body.flag & _OR_NOT_AT_ALL and _is_unrecovered(result):
            raise Reject("the position cannot be recovered", code=codes.UNRECOVERABLE)
    except BaseException as error:
        if isinstance(error, Reject) and not member.left:
            _refused(session, name, error)
        engine.leave(member)
        if isinstance(error, TimeoutError) and limit.expired():
            # The hook, or the broker; or this whole process stood still.
            extra = {"session": session.id, "user": session.identity.user, "room": name}
            logger.warning("joining %r took too long, and was given up", name, extra=extra)
            raise Reject("joining took too long", code=codes.INTERNAL, retry_after=1.0) from None
        raise
    session.parked.pop(name, None)
    engine.authority.watch_grant(member)
    for kind in family.rooms.features:
        engine.features[kind].joined(member, result)
    if isinstance(grant, TokenGrant):
        result.expires, result.ttl = grant.told()
    return result


def _refused(session: Session[Any], name: str, error: Reject) -> None:
    """Who may not come back to a room has left it, unless it was told to try again (C3)."""
    if error.retry_after is None:
        session.engine.parking.depart(session, name)


def _is_unrecovered(result: SubscribeResult) -> bool:
    """Whether a position was to be recovered and was not; a room without history recovers nothing, ever."""
    return result.recoverable and result.was_recovering and not result.recovered


def _join_hook(
    ctx: Context[Any, Any], family: Family, run: Run
) -> Callable[[], Awaitable[Raw | UnsetType]] | None:
    """The family's ``on_join`` within its middlewares, as a function that returns the join data."""
    hook = family.rooms.join_hook
    if hook is None:
        return None

    async def join_data() -> Raw | UnsetType:
        token = current_run.set(run)
        try:
            result = await ctx.session.engine.lag.watch(hook, family.around.call(ctx, lambda: hook(ctx)))
        finally:
            current_run.reset(token)
        return UNSET if result is None else Raw(encode_value(result))

    return join_data


async def subscribe(connection: Connection, command: Command) -> None:
    """Join a room; with a position, recover what was missed (H2, H3)."""
    body, session = command.subscribe, connection.session
    assert body is not None and session is not None
    if body.type or body.tf is not None:
        raise Reject(
            "there are no filters, maps or polled rooms here; subscribe without", code=codes.NOT_AVAILABLE
        )
    since = Position(body.epoch, body.offset) if body.recover else None
    asked = kinds_asked(connection, body)
    for kind in asked:
        if kind not in asked_for(connection.engine, body.channel)[0].rooms.features:
            raise Reject(f"this room has no {kind}", code=codes.NOT_AVAILABLE)
    result = await join(session, body.channel, since=since, server_side=False, body=body, asked=asked)
    connection.reply(Reply(id=command.id, subscribe=result), lane=body.channel)


def kinds_asked(connection: Connection, body: Subscribe | SubRequest) -> list[str]:
    """The kinds of features that an rt client asks for; others cannot."""
    if not connection.rt:
        return []
    return [kind for kind, asked in (("presence", body.presence), ("receipts", body.marks)) if asked]


async def unsubscribe(connection: Connection, command: Command) -> None:
    """Leave a room; not to be in it is no error."""
    assert command.unsubscribe is not None and connection.session is not None
    member = connection.session.rooms.get(command.unsubscribe.channel)
    if member is not None:
        connection.engine.leave(member)
    connection.reply(Reply(id=command.id, unsubscribe=Empty()), lane=command.unsubscribe.channel)


async def sub_refresh(connection: Connection, command: Command) -> None:
    """Ask the application again whether a room is still allowed, with a new token if there is one."""
    body: SubRefresh | None = command.sub_refresh
    assert body is not None and connection.session is not None
    member = connection.session.rooms.get(body.channel)
    if member is None:
        raise Reject("not subscribed", code=codes.NOT_PERMITTED)
    await connection.engine.authority.permit_again(member, body.token or None)
    if member.left:
        raise Reject("no longer permitted", code=codes.NOT_PERMITTED)
    expires, ttl = (True, max(1, round(member.grant.ttl))) if member.grant.ttl is not None else (False, 0)
    connection.reply(Reply(id=command.id, sub_refresh=SubRefreshResult(expires=expires, ttl=ttl)))
