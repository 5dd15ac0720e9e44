"""What each command of the wire does; see ``docs/reference/protocol.md``.

A command is answered exactly once, with its result or with an error whose text is the application's own
(``Reject``) or names the client's fault. Anything else is ``internal``, with a reference that stands in the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..errors import BadUnit, InvalidMessage, Reject, Unavailable, UnknownRoom
from ..position import Position
from ..primitives.clocks import timeout
from ..publisher import topic_of
from ..schema import encode_value, split_event
from ..wire import (
    Command,
    Connect,
    ConnectResult,
    Empty,
    Envelope,
    HistoryResult,
    Kind,
    PublishResult,
    Push,
    RefreshResult,
    Reply,
    RpcResult,
    RtWelcome,
    SubRefresh,
    Subscribe,
    SubscribeResult,
    dumps,
    loads,
)
from ..wire import Limits as WireLimits
from ..wire.units import RefreshPush, SubRefreshResult
from .context import Context, Run, current_run
from .handle import Room
from .local import Joining, Member
from .router import Procedure
from .session import Session
from .table import Around, Family

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["handle", "refresh"]

logger = logging.getLogger("rtkit.handlers")

_any = msgspec.json.Decoder(Any)

#: Commands that ask for something not switched on in this hub.
_NOT_AVAILABLE = ("presence", "presence_stats")
_METHODS = (
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "history",
    "rpc",
    "send",
    "signal",
    "sub_refresh",
    "ping",
    "bye",
    *_NOT_AVAILABLE,
)


async def handle(connection: Connection, command: Command) -> None:
    """Do what a command says, and answer it."""
    methods = [name for name in (*_METHODS, "refresh") if getattr(command, name) is not None]
    if len(methods) != 1:
        problem = "unknown method" if not methods else f"one method a command, not {' and '.join(methods)}"
        connection.error(command.id, codes.BAD_REQUEST if methods else codes.UNKNOWN_METHOD, problem)
        return
    (method,) = methods
    if connection.session is None and method != "connect":
        return  # connect failed before it; the connection is closing
    if method in _NOT_AVAILABLE or method == "refresh":
        connection.error(command.id, codes.NOT_AVAILABLE, f"{method} is not available here")
        return
    await answer(connection, command.id, _HANDLERS[method], connection, command)


async def answer(connection: Connection, id: int, func: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run *func*; answer the command with the error it ends in, if it does."""
    try:
        await func(*args)
    except Reject as error:
        connection.error(id, error.code, error.message, retry_after=error.retry_after)
    except UnknownRoom:
        connection.error(id, codes.UNKNOWN_ROOM, "unknown room")
    except Unavailable as error:
        connection.engine.counters.add("unavailable")
        logger.warning("%s", error)
        connection.error(id, codes.INTERNAL, "the broker is not available", retry_after=1.0)
    except Exception as error:
        reference = secrets.token_hex(4)
        session = connection.session
        user = session.identity.user if session is not None else "-"
        logger.exception(
            "unexpected error %s while handling a command of %r", reference, user, exc_info=error
        )
        connection.error(id, codes.INTERNAL, f"internal error (reference {reference})")


# -- connecting ---------------------------------------------------------------------------------


async def _connect(connection: Connection, command: Command) -> None:
    engine, body = connection.engine, command.connect
    assert body is not None
    if connection.session is not None:
        connection.close(codes.BAD_REQUEST_CLOSE, "bad request: connected already")
        return
    data = None if isinstance(body.data, UnsetType) else loads(bytes(body.data), _any)
    try:
        async with timeout(engine.clock, engine.limits.auth_timeout):
            identity = await engine.authority.authenticate(connection.handshake, body.token, data)
    except Reject as error:
        connection.error(command.id, error.code, error.message, retry_after=error.retry_after)
        _close_unauthenticated(connection, error)
        return
    except Exception as error:
        reference = secrets.token_hex(4)
        logger.exception("authenticate failed, reference %s", reference, exc_info=error)
        connection.error(command.id, codes.INTERNAL, f"internal error (reference {reference})")
        connection.close(codes.INTERNAL_CLOSE, "internal error")
        return
    if connection.closing:
        return  # too late, or gone
    connection.rt = body.rt is not None
    session = engine.begin(connection, identity)
    connection.cork()
    try:
        subs = await _auto_join(connection, session, body)
        await engine.started(session)
    except Reject as error:
        connection.error(command.id, error.code, error.message, retry_after=error.retry_after)
        connection.close(codes.NOT_PERMITTED_CLOSE, "not permitted")
        return
    except Unavailable as error:
        logger.warning("%s", error)
        connection.error(command.id, codes.INTERNAL, "the broker is not available", retry_after=1.0)
        connection.close(codes.INTERNAL_CLOSE, "the broker is not available")
        return
    except Exception as error:
        logger.exception("a session could not start", exc_info=error)
        connection.error(command.id, codes.INTERNAL, "internal error")
        connection.close(codes.INTERNAL_CLOSE, "internal error")
        return
    if connection.closing:
        return
    limits = engine.limits
    expires, ttl = engine.time_left(identity.expires_at)
    result = ConnectResult(
        client=session.id,
        version=engine.version,
        subs=subs,
        expires=expires,
        ttl=ttl,
        ping=round(limits.heartbeat.interval) or 1 if limits.heartbeat is not None else 0,
        pong=limits.heartbeat is not None,
        node=engine.node_id,
    )
    if connection.rt:
        commands = limits.commands
        result.rt = RtWelcome(
            limits=WireLimits(limits.max_frame, limits.max_publication, commands.rate, commands.burst)
        )
    connection.uncork(dumps(Reply(id=command.id or 1, connect=result)))


def _close_unauthenticated(connection: Connection, error: Reject) -> None:
    if error.code in (codes.TOKEN_EXPIRED, codes.EXPIRED):
        connection.close(codes.EXPIRED_CLOSE, "expired")  # come back with a new token
    elif error.retry_after is not None:
        connection.close(codes.TRY_LATER, "try again later")
    else:
        connection.close(codes.BAD_TOKEN, "bad token")


async def _auto_join(
    connection: Connection, session: Session[Any], body: Connect
) -> dict[str, SubscribeResult]:
    """Put the session into the rooms its identity belongs in, all of them or none."""
    engine = connection.engine
    subs: dict[str, SubscribeResult] = {}
    for family in engine.table.families:
        if family.rooms.auto_join is None:
            continue
        for name in family.rooms.auto_join(session.identity):
            found, _ = engine.lookup(name)
            if found is not family:
                raise UnknownRoom(f"auto_join of {family.pattern.text!r} named {name!r}, of another family")
            asked = body.subs.get(name)
            since = Position(asked.epoch, asked.offset) if asked is not None and asked.recover else None
            subs[name] = await _join(session, name, since=since, server_side=True)
    return subs


async def refresh(connection: Connection, command: Command) -> None:
    """A new token for a living connection (A3)."""
    try:
        await answer(connection, command.id, _refresh, connection, command)
    finally:
        connection.refreshed()


async def _refresh(connection: Connection, command: Command) -> None:
    engine, session = connection.engine, connection.session
    assert command.refresh is not None and session is not None
    async with timeout(engine.clock, engine.limits.auth_timeout):
        identity = await engine.authority.authenticate(
            connection.handshake, command.refresh.token, None, previous=session.identity
        )
    if identity.user != session.identity.user:
        raise Reject("a refresh cannot change the user", code=codes.NOT_PERMITTED)
    session.identity = identity
    connection.watch_expiry()
    expires, ttl = engine.time_left(identity.expires_at)
    result = RefreshResult(client=session.id, version=engine.version, expires=expires, ttl=ttl)
    connection.reply(Reply(id=command.id, refresh=result))
    for member in list(session.rooms.values()):
        await engine.authority.permit_again(member)


def refresh_push(ttl: int) -> bytes:
    """Tell a client when its identity ends now, so that it shows a new token before."""
    return dumps(Reply(push=Push(refresh=RefreshPush(expires=True, ttl=ttl))))


async def _bye(connection: Connection, command: Command) -> None:
    connection.close(codes.WS_NORMAL, "bye")


async def _ping(connection: Connection, command: Command) -> None:
    connection.reply(Reply(id=command.id, ping=Empty()))


# -- rooms --------------------------------------------------------------------------------------


async def _join(
    session: Session[Any],
    name: str,
    *,
    since: Position | None,
    server_side: bool,
    body: Subscribe | None = None,
) -> SubscribeResult:
    """Put the session into a room; when this fails, nothing is left of it.

    Between the last await in here and the caller's reply nothing can be published.
    """
    engine = session.engine
    family, params = engine.lookup(name)
    if name in session.rooms:
        raise Reject("already subscribed", code=codes.ALREADY_SUBSCRIBED)
    if len(session.rooms) >= engine.limits.max_rooms:
        engine.counters.add("limits", "rooms")
        raise Reject(f"at most {engine.limits.max_rooms} rooms", code=codes.LIMIT_EXCEEDED)
    data = None
    if body is not None and not isinstance(body.data, UnsetType):
        data = loads(bytes(body.data), _any)
    run = Run(engine.hub, session.identity.user, None)
    room = Room[Any](engine.hub, family, name, params, session=session, run=run)
    ctx = Context(hub=engine.hub, session=session, room=room, data=data, key=None, resumed=session.resumed)
    async with timeout(engine.clock, engine.limits.handler_timeout):
        grant = await engine.authority.permit(ctx, family)
        await engine.authority.check_ban(name, session.identity.user)
    if session.connection is None:
        raise Reject("gone", code=codes.EXPIRED)
    member = Member(session, engine.local(name, family, params), grant, server_side=server_side)
    session.rooms[name] = member
    joining = Joining(
        member, since=since, rewind=body.rewind if body is not None else 0, hook=_join_hook(ctx, family, run)
    )
    try:
        async with timeout(engine.clock, engine.limits.handler_timeout):
            await joining.run()
        result = await joining.complete()
        if member.left:
            raise Reject("taken out of the room while joining")
    except BaseException:
        engine.leave(member, joined=False)
        raise
    engine.authority.watch_grant(member)
    return result


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
            result = await family.around.call(ctx, lambda: hook(ctx))
        finally:
            current_run.reset(token)
        return UNSET if result is None else Raw(encode_value(result))

    return join_data


async def _subscribe(connection: Connection, command: Command) -> None:
    body, session = command.subscribe, connection.session
    assert body is not None and session is not None
    since = Position(body.epoch, body.offset) if body.recover else None
    result = await _join(session, body.channel, since=since, server_side=False, body=body)
    connection.reply(Reply(id=command.id, subscribe=result))


async def _unsubscribe(connection: Connection, command: Command) -> None:
    assert command.unsubscribe is not None and connection.session is not None
    member = connection.session.rooms.get(command.unsubscribe.channel)
    if member is not None:
        connection.engine.leave(member)
    connection.reply(Reply(id=command.id, unsubscribe=Empty()))


async def _sub_refresh(connection: Connection, command: Command) -> None:
    body: SubRefresh | None = command.sub_refresh
    assert body is not None and connection.session is not None
    member = connection.session.rooms.get(body.channel)
    if member is None:
        raise Reject("not subscribed", code=codes.NOT_PERMITTED)
    await connection.engine.authority.permit_again(member)
    expires, ttl = (True, max(1, round(member.grant.ttl))) if member.grant.ttl is not None else (False, 0)
    connection.reply(Reply(id=command.id, sub_refresh=SubRefreshResult(expires=expires, ttl=ttl)))


async def _permitted(
    session: Session[Any], name: str, right: str
) -> tuple[Family, Room[Any], Context[Any, Any]]:
    """The room, if the session may do this in it (A2). Outside of a join the application is asked anew."""
    engine = session.engine
    family, params = engine.lookup(name)
    room = Room[Any](engine.hub, family, name, params, session=session)
    ctx = Context(hub=engine.hub, session=session, room=room, data=None, key=None, resumed=session.resumed)
    member = session.rooms.get(name)
    grant = member.grant if member is not None else await engine.authority.permit(ctx, family)
    if right not in grant.rights:
        raise Reject(f"the right to {_VERBS[right]} is missing", code=codes.NOT_PERMITTED)
    return family, room, ctx


_VERBS = {
    "publish": "publish here",
    "signal": "signal here",
    "history": "read the history of this room",
}


async def _history(connection: Connection, command: Command) -> None:
    body, session = command.history, connection.session
    assert body is not None and session is not None
    engine = connection.engine
    family, _, _ = await _permitted(session, body.channel, "history")
    if family.history is None:
        raise Reject("this room keeps no history", code=codes.NOT_AVAILABLE)
    limit = engine.limits.history_page if body.limit < 0 else min(body.limit, engine.limits.history_page)
    since = Position(body.since.epoch, body.since.offset) if body.since is not None else None
    page, publications = await engine.read_history(
        body.channel, family, since=since, limit=limit, reverse=body.reverse, rt=connection.rt
    )
    if page.lost is not None and not body.reverse:
        raise Reject("the position cannot be recovered", code=codes.UNRECOVERABLE)
    result = HistoryResult(publications=publications, epoch=page.epoch, offset=page.top)
    connection.reply(Reply(id=command.id, history=result))


async def _publish(connection: Connection, command: Command) -> None:
    body, session = command.publish, connection.session
    assert body is not None and session is not None
    if isinstance(body.data, UnsetType):
        raise BadUnit("data is missing")
    if len(bytes(body.data)) > connection.engine.limits.max_publication:
        connection.engine.counters.add("limits", "publication")
        raise Reject(
            f"a message has at most {connection.engine.limits.max_publication} bytes",
            code=codes.LIMIT_EXCEEDED,
        )
    family, room, ctx = await _permitted(session, body.channel, "publish")
    handlers = family.rooms.handlers
    event: str = ""
    inner: Raw | UnsetType = body.data
    if handlers or not family.schema.raw:
        try:
            event, inner = split_event(body.data)
        except BadUnit:
            if not family.schema.raw:
                raise
    procedure = handlers.get(event)
    if procedure is not None:
        target = f"room\n{body.channel}\n{event}"
        await _call(connection, command.id, session, ctx, procedure, family.around, inner, body.key, target)
        return
    if not family.schema.raw and event not in family.schema.names:
        known = ", ".join(sorted({*handlers, *family.schema.names}))
        raise BadUnit(f"unknown event {event[:60]!r}; this room knows {known}")
    try:
        data = family.schema.admit(event, body.data if family.schema.raw else inner)
        published = await room.publish_raw(data, key=body.key)
    except InvalidMessage as error:
        raise Reject(str(error), code=codes.LIMIT_EXCEEDED) from None
    result = PublishResult()
    if published.position is not None and connection.rt:
        result.epoch, result.offset = published.position.epoch, published.position.offset
    connection.reply(Reply(id=command.id, publish=result))


async def _signal(connection: Connection, command: Command) -> None:
    body, session = command.signal, connection.session
    assert body is not None and session is not None
    await _permitted(session, body.channel, "signal")
    data = Raw(b"null" if isinstance(body.data, UnsetType) else dumps(loads(bytes(body.data), _any)))
    envelope = Envelope(
        v=1, kind=Kind.SIGNAL, data=data, event=body.event, user=session.identity.user, skip=session.id
    )
    connection.engine.send_quietly(topic_of(body.channel), envelope.encode())
    connection.reply(Reply(id=command.id, signal=Empty()))


# -- handlers -----------------------------------------------------------------------------------


async def _rpc(connection: Connection, command: Command) -> None:
    body, session = command.rpc, connection.session
    assert body is not None and session is not None
    await _procedure(connection, command.id, session, body.method, body.data, body.key)


async def _send(connection: Connection, command: Command) -> None:
    """A message outside any room: a call nobody waits for."""
    body, session = command.send, connection.session
    assert body is not None and session is not None
    try:
        event, inner = split_event(body.data)
        await _procedure(connection, 0, session, event, inner, None)
    except (BadUnit, Reject):
        connection.engine.counters.add("bad_units")  # there is no id to answer to


async def _procedure(
    connection: Connection, id: int, session: Session[Any], name: str, data: Raw | UnsetType, key: str | None
) -> None:
    engine = connection.engine
    call = engine.table.procedures.get(name)
    if call is None:
        raise Reject("unknown procedure", code=codes.UNKNOWN_METHOD)
    ctx = Context(hub=engine.hub, session=session, room=None, data=None, key=key, resumed=session.resumed)
    await _call(connection, id, session, ctx, call.procedure, call.around, data, key, f"rpc\n{name}")


async def _call(
    connection: Connection,
    id: int,
    session: Session[Any],
    ctx: Context[Any, Any],
    procedure: Procedure,
    around: Around,
    data: Raw | UnsetType,
    key: str | None,
    target: str,
) -> None:
    """Run a handler and answer with what it returns."""
    message = procedure.codec.decode(data)
    run = Run(connection.engine.hub, session.identity.user, key)
    outside = target.startswith("rpc\n")
    ctx = Context(
        hub=ctx.hub,
        session=session,
        room=None if outside else ctx.room.bound(session, run),
        data=message,
        key=key,
        resumed=session.resumed,
    )

    async def respond() -> None:
        acknowledgement = await connection.engine.once(
            session, key, target, lambda: _run(ctx, procedure, around, message, run)
        )
        if outside:
            connection.reply(Reply(id=id, rpc=RpcResult(acknowledgement)))
        else:
            connection.reply(Reply(id=id, publish=PublishResult(acknowledgement)))

    if procedure.ordered:
        await respond()
    else:
        connection.engine.work(answer, connection, id, respond)


async def _run(
    ctx: Context[Any, Any], procedure: Procedure, around: Around, message: Any, run: Run
) -> Raw | UnsetType:
    engine = ctx.session.engine
    token = current_run.set(run)
    try:
        async with timeout(engine.clock, engine.limits.handler_timeout):
            result = await around.call(ctx, lambda: procedure.func(ctx, message))
        return UNSET if result is None else Raw(encode_value(result))
    except Reject:
        raise
    except asyncio.CancelledError:
        raise
    except Exception as error:
        reference = secrets.token_hex(4)
        extra = {"session": ctx.session.id, "user": ctx.user, "room": ctx.where}
        logger.exception(
            "handler %s failed, reference %s", procedure.name, reference, exc_info=error, extra=extra
        )
        engine.counters.add("handler_errors")
        for hook in around.error_hooks:
            try:
                await hook(ctx, error)
            except Exception as second:
                logger.exception("an error hook failed", exc_info=second)
        raise Reject(f"internal error (reference {reference})", code=codes.INTERNAL) from None
    finally:
        current_run.reset(token)


_HANDLERS: dict[str, Callable[[Connection, Command], Awaitable[None]]] = {
    "connect": _connect,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "publish": _publish,
    "history": _history,
    "rpc": _rpc,
    "send": _send,
    "signal": _signal,
    "sub_refresh": _sub_refresh,
    "ping": _ping,
    "bye": _bye,
}
