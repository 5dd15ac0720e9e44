"""What clients send: messages to rooms, calls, signals; and reading history (api 4 and 5, A2, L3)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .. import codes
from ..errors import BadUnit, InvalidMessage, Reject
from ..position import Position
from ..primitives.clocks import timeout
from ..schema import encode_value, split_event
from ..wire import (
    UNIT,
    Command,
    Empty,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    PublishResult,
    Reply,
    RpcResult,
    dumps,
    loads,
    recode,
)
from .answers import answer, asked_for
from .context import Context, Run, current_run
from .feature import RunningReceipts, client_info
from .handle import Room
from .large import breathe
from .router import Procedure
from .session import Session
from .table import Around, Family

if TYPE_CHECKING:
    from .connection import Connection

__all__ = [
    "history",
    "presence",
    "presence_stats",
    "presence_update",
    "publish",
    "rpc",
    "send",
    "signal",
]

logger = logging.getLogger("rtkit.handlers")

_any = msgspec.json.Decoder(Any)


async def _permitted(
    session: Session[Any], name: str, right: str
) -> tuple[Family, Room[Any], Context[Any, Any]]:
    """The room, if the session may do this in it (A2). Outside of a join the application is asked anew."""
    engine = session.engine
    family, params = asked_for(engine, name)
    room: Room[Any] = Room(engine.hub, family, name, params, session=session)
    ctx = Context(hub=engine.hub, session=session, room=room, data=None, key=None, resumed=session.resumed)
    member = session.rooms.get(name)
    if member is not None:
        grant = member.grant
    else:
        await engine.authority.check_ban(name, session.identity.user)
        grant = await engine.authority.permit(ctx, family)
    if right not in grant.rights:
        raise Reject(f"the right to {_VERBS[right]} is missing", code=codes.NOT_PERMITTED)
    return family, room, ctx


_VERBS = {
    "publish": "publish here",
    "signal": "signal here",
    "history": "read the history of this room",
    "presence": "see who is here",
}


async def history(connection: Connection, command: Command) -> None:
    """A page of a room's history (H8)."""
    body, session = command.history, connection.session
    assert body is not None and session is not None
    engine = connection.engine
    family, _, _ = await _permitted(session, body.channel, "history")
    if family.history is None:
        raise Reject("this room keeps no history", code=codes.NOT_AVAILABLE)
    limit = engine.limits.history_page if body.limit < 0 else min(body.limit, engine.limits.history_page)
    since = Position(body.since.epoch, body.since.offset) if body.since is not None else None
    if since is not None and not since.epoch:
        # Of the present stream, whichever that is: no page of history claims to continue anything.
        top, _ = await engine.read_history(
            body.channel, family, since=None, limit=0, reverse=False, rt=connection.rt
        )
        since = Position(top.epoch, since.offset)
    page, publications = await engine.read_history(
        body.channel, family, since=since, limit=limit, reverse=body.reverse, rt=connection.rt
    )
    if page.lost is not None and not body.reverse:
        raise Reject("the position cannot be recovered", code=codes.UNRECOVERABLE)
    result = HistoryResult(publications=publications, epoch=page.epoch, offset=page.top)
    connection.reply(Reply(id=command.id, history=result))


async def publish(connection: Connection, command: Command) -> None:
    """A message to a room: to its handler; in a raw room, without one for it, straight into the stream."""
    body, session = command.publish, connection.session
    assert body is not None and session is not None
    if body.type or body.removed:
        raise Reject("there are no maps here; publish a message", code=codes.NOT_AVAILABLE)
    if isinstance(body.data, UnsetType):
        raise BadUnit("data is missing")
    _check_size(connection, body.channel, body.data)
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
        _spoke(session, body.channel)
        return
    if not family.schema.raw:
        # What a typed room publishes is for its handlers to decide: nobody goes past them (api 4).
        known = ", ".join(sorted(handlers)) or "nothing: it has no handlers"
        raise BadUnit(f"unknown event {event[:60]!r}; clients may send {known}")
    try:
        published = await room.publish_raw(recode(bytes(body.data)), key=body.key)
    except InvalidMessage as error:
        raise Reject(str(error), code=codes.LIMIT_EXCEEDED) from None
    result = PublishResult()
    if published.position is not None and connection.rt:
        result.epoch, result.offset = published.position.epoch, published.position.offset
    connection.reply(Reply(id=command.id, publish=result))
    _spoke(session, body.channel)


def _spoke(session: Session[Any], name: str) -> None:
    member = session.rooms.get(name)
    if member is not None:
        for kind in member.room.family.rooms.features:
            session.engine.features[kind].spoke(member)


def _check_size(connection: Connection, name: str, data: Raw) -> None:
    engine = connection.engine
    most = asked_for(engine, name)[0].max_publication or engine.limits.max_publication
    if memoryview(data).nbytes > most:
        engine.counters.add("limits", "publication")
        raise Reject(f"a message has at most {most} bytes", code=codes.LIMIT_EXCEEDED)


async def signal(connection: Connection, command: Command) -> None:
    """Tell those who are in a room now; not stored (D5)."""
    body, session = command.signal, connection.session
    assert body is not None and session is not None
    if not isinstance(body.data, UnsetType):
        _check_size(connection, body.channel, body.data)
    family, _, _ = await _permitted(session, body.channel, "signal")
    data = Raw(b"null" if isinstance(body.data, UnsetType) else dumps(loads(bytes(body.data), _any)))
    engine = connection.engine
    member = session.rooms.get(body.channel)
    if member is None and not family.rooms.features.keys().isdisjoint(("typing", "signals")):
        # They look after members; to be outside must not be a way around them.
        raise Reject("not subscribed", code=codes.NOT_PERMITTED)
    taken = member is not None and any(
        engine.features[kind].signalled(member, body.event, data) for kind in family.rooms.features
    )
    if not taken:
        engine.send_signal(body.channel, body.event, data, session)
    connection.reply(Reply(id=command.id, signal=Empty()))


def _receipts(connection: Connection, name: str) -> RunningReceipts:
    """Receipts, for a room that has them."""
    if "receipts" not in asked_for(connection.engine, name)[0].rooms.features:
        raise Reject("this room has no receipts", code=codes.NOT_AVAILABLE)
    return connection.engine.receipts


async def mark(connection: Connection, command: Command) -> None:
    """A user has got, or read, everything up to somewhere (X2)."""
    body, session = command.mark, connection.session
    assert body is not None and session is not None
    receipts = _receipts(connection, body.channel)
    await receipts.mark(session, body.channel, body.kind, Position(body.epoch, body.offset))
    connection.reply(Reply(id=command.id, mark=Empty()))


async def marks(connection: Connection, command: Command) -> None:
    """How far everybody has come: a page of it (X2)."""
    body, session = command.marks, connection.session
    assert body is not None and session is not None
    receipts = _receipts(connection, body.channel)
    found = await receipts.page(session, body.channel, body.after)
    connection.reply(Reply(id=command.id, marks=found))


async def _with_presence(session: Session[Any], name: str) -> Family:
    """The family of a room, if it has presence and the session may see it."""
    family, _, _ = await _permitted(session, name, "presence")
    if "presence" not in family.rooms.features:
        raise Reject("this room has no presence", code=codes.NOT_AVAILABLE)
    return family


async def presence(connection: Connection, command: Command) -> None:
    """Who is in a room (P1)."""
    body, session = command.presence, connection.session
    assert body is not None and session is not None
    family = await _with_presence(session, body.channel)
    members = await connection.engine.presence.members(body.channel, family, bounded=True)
    found = {each.client: client_info(each) for each in members}
    connection.reply(Reply(id=command.id, presence=PresenceResult(found)))


async def presence_stats(connection: Connection, command: Command) -> None:
    """How many are in a room."""
    body, session = command.presence_stats, connection.session
    assert body is not None and session is not None
    family = await _with_presence(session, body.channel)
    found = await connection.engine.presence.stats(body.channel, family)
    connection.reply(Reply(id=command.id, presence_stats=PresenceStatsResult(found.clients, found.users)))


async def presence_update(connection: Connection, command: Command) -> None:
    """What the client says about itself in a room from now on (P1)."""
    body, session = command.presence_update, connection.session
    assert body is not None and session is not None
    family, _ = asked_for(connection.engine, body.channel)
    if "presence" not in family.rooms.features:
        raise Reject("this room has no presence", code=codes.NOT_AVAILABLE)
    connection.engine.presence.update(session, body.channel, body.meta)
    connection.reply(Reply(id=command.id, presence_update=Empty()))


async def rpc(connection: Connection, command: Command) -> None:
    """Call a procedure."""
    body, session = command.rpc, connection.session
    assert body is not None and session is not None
    if body.method.startswith("rt."):
        for feature in connection.engine.features.values():
            call = feature.calls.get(body.method)
            if call is not None:
                answered = await call(session, body.data)
                connection.reply(Reply(id=command.id, rpc=RpcResult(answered)))
                return
    await _procedure(connection, command.id, session, body.method, body.data, body.key)


async def send(connection: Connection, command: Command) -> None:
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
    if not isinstance(data, UnsetType) and memoryview(data).nbytes > UNIT:
        await breathe()
    outside = target.startswith("rpc\n")
    run = Run(connection.engine.hub, session.identity.user, key, target if outside else ctx.where)
    ctx = Context(
        hub=ctx.hub,
        session=session,
        room=None if outside else ctx.room,
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
    task = asyncio.current_task()
    cancelling = 0 if task is None else task.cancelling()
    token = current_run.set(run)
    try:
        async with timeout(engine.clock, engine.limits.handler_timeout):
            call = around.call(ctx, lambda: procedure.func(ctx, message))
            result = await engine.lag.watch(procedure.func, call)
        return UNSET if result is None else Raw(encode_value(result))
    except Reject:
        raise
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancelling:
            raise
        # Nobody cancelled us: the handler awaited something that was cancelled.
        failure = RuntimeError("the handler let a CancelledError through that was not meant for it")
        failure.__cause__ = error
        raise await _failed(ctx, procedure, around, failure) from None
    except Exception as error:
        raise await _failed(ctx, procedure, around, error) from None
    finally:
        current_run.reset(token)


async def _failed(ctx: Context[Any, Any], procedure: Procedure, around: Around, error: Exception) -> Reject:
    """Log it once, tell the application's error hooks, and return what the client is told (L3)."""
    engine = ctx.session.engine
    reference = secrets.token_hex(4)
    extra = {"session": ctx.session.id, "user": ctx.user, "room": ctx.where}
    logger.error("handler %s failed, reference %s", procedure.name, reference, exc_info=error, extra=extra)
    engine.counters.add("handler_errors")
    for hook in around.error_hooks:
        try:
            async with timeout(engine.clock, engine.limits.handler_timeout):
                await engine.lag.watch(hook, hook(ctx, error))
        except Exception as second:
            logger.exception("an error hook failed", exc_info=second)
    return Reject(f"internal error (reference {reference})", code=codes.INTERNAL)
