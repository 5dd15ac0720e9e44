"""Connecting and refreshing: who is there, and for how long (A1, A3)."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UnsetType

from .. import codes
from ..errors import Reject, Unavailable, UnknownRoom
from ..identity import Identity
from ..position import Position
from ..primitives.clocks import timeout
from ..wire import (
    Command,
    Connect,
    ConnectResult,
    Push,
    RefreshResult,
    Reply,
    RtWelcome,
    SubscribeResult,
    dumps,
    loads,
    unit_limit,
)
from ..wire import Limits as WireLimits
from ..wire.units import RefreshPush
from .answers import answer
from .joins import join, kinds_asked
from .session import Session

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["connect", "refresh", "refresh_push"]

logger = logging.getLogger("rtkit.auth")

_any = msgspec.json.Decoder(Any)


async def connect(connection: Connection, command: Command) -> None:
    """The first command: authenticate, join what the server chooses, and say welcome (A1)."""
    engine, body = connection.engine, command.connect
    assert body is not None
    if connection.session is not None:
        connection.close(codes.BAD_REQUEST_CLOSE, "bad request: connected already")
        return
    engine.admission.spoke(connection)
    data = None if isinstance(body.data, UnsetType) else loads(bytes(body.data), _any)
    limit = timeout(engine.clock, engine.limits.auth_timeout)
    try:
        async with limit:
            identity = await engine.authority.authenticate(connection.handshake, body.token, data)
    except Reject as error:
        if body.rt is not None or error.code != codes.UNAUTHORISED:
            # The base's clients report what comes first, and of a bad token that has to be the close code.
            connection.error(command.id, error.code, error.message, retry_after=error.retry_after)
        _close_unauthenticated(connection, error)
        return
    except Exception as error:
        if isinstance(error, TimeoutError) and limit.expired():
            logger.warning("authenticate took more than %s s", engine.limits.auth_timeout)
            connection.unauthenticated()
            return
        reference = secrets.token_hex(4)
        logger.exception("authenticate failed, reference %s", reference, exc_info=error)
        connection.error(command.id, codes.INTERNAL, f"internal error (reference {reference})")
        connection.close(codes.INTERNAL_CLOSE, "internal error")
        return
    if connection.closing:
        return  # too late, or gone
    connection.rt = body.rt is not None
    if connection.http is not None:
        connection.http.authenticated(by_token=bool(body.token))
    try:
        result = await _begin(connection, identity, body)
    except Reject as error:
        connection.void()  # nothing of a session that does not come about
        connection.error(command.id, error.code, error.message, retry_after=error.retry_after)
        if error.retry_after is not None:
            connection.close(codes.TRY_LATER, "try again later")
        else:
            connection.close(codes.NOT_PERMITTED_CLOSE, "not permitted")
    except Unavailable as error:
        logger.warning("%s", error)
        connection.void()
        connection.error(command.id, codes.INTERNAL, "the broker is not available", retry_after=1.0)
        connection.close(codes.INTERNAL_CLOSE, "the broker is not available")
    except Exception as error:
        logger.exception("a session could not start", exc_info=error)
        connection.void()
        connection.error(command.id, codes.INTERNAL, "internal error")
        connection.close(codes.INTERNAL_CLOSE, "internal error")
    else:
        if result is not None and connection.session is not None and not connection.closing:
            connection.session.established = True
            connection.uncork(dumps(Reply(id=command.id or 1, connect=result)))


async def _begin(connection: Connection, identity: Identity[Any], body: Connect) -> ConnectResult | None:
    """The session, new or taken up, and what its client is told; None when there is nobody to tell."""
    engine, limits = connection.engine, connection.engine.limits
    passing = engine.control.expect(identity.user)
    resume = body.rt.resume if body.rt is not None else ""
    seat = engine.admission.seat(identity.user)
    try:
        if not await engine.parking.holds(resume, identity):
            seat.take()  # before the claim: a session that is taken from another node must not be refused here
        taken = await engine.parking.take_up(resume, identity)
        if taken is None or taken.client not in engine.sessions:
            seat.take()
        if engine.revocations.holds(identity.user):  # since it was authenticated
            if taken is not None:
                engine.begin(connection, identity, taken)  # it is nowhere else any more: it ends here
            connection.close(codes.REVOKED, "revoked")
            return None
        session = engine.begin(connection, identity, taken)
    finally:
        passing.close()
        seat.close()
    if session is None:
        connection.close(codes.REPLACED, "replaced by a newer connection")
        return None
    passing.arrived(session)
    for name in list(session.parked):
        if engine.revocations.holds(identity.user, name):  # since it was let go there
            engine.control.remove(session, name, codes.UNSUBSCRIBED, "banned")
    if connection.closing:
        return None
    connection.cork()
    subs = await _auto_join(connection, session, body)
    if not session.established:
        await engine.started(session)
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
    if connection.http is not None:
        result.session = connection.http.id
        if connection.transport.kind == "poll":  # there, the polls are the heartbeat (F4)
            result.ping, result.pong = round(limits.poll_wait) or 1, False
    if connection.rt:
        commands = limits.commands
        result.rt = RtWelcome(
            v=1,
            limits=WireLimits(
                unit_limit(limits.max_frame),
                engine.max_publication,
                commands.rate,
                commands.burst,
                limits.large,
                limits.inbound.rate,
                limits.inbound.burst,
            ),
        )
        if limits.grace is not None and (token := await engine.parking.token(session)):
            result.rt.resume, result.rt.grace, result.rt.resumed = token, limits.grace, taken is not None
    return result


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
        for name in dict.fromkeys(family.rooms.auto_join(session.identity)):
            found, _ = engine.lookup(name)
            if found is not family:
                raise UnknownRoom(f"auto_join of {family.pattern.text!r} named {name!r}, of another family")
            asked = body.subs.get(name)
            since = Position(asked.epoch, asked.offset) if asked is not None and asked.recover else None
            kinds = kinds_asked(connection, asked) if asked is not None else []
            subs[name] = result = await join(session, name, since=since, server_side=True, asked=kinds)
            if not connection.rt and not result.recovered:
                # Of rooms that the server chose, the base's clients look at the publications of a recovery alone.
                for publication in result.publications:
                    connection.control(dumps(Reply(push=Push(channel=name, pub=publication))), lane=name)
                result.publications = []
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
    limit = timeout(engine.clock, engine.limits.auth_timeout)
    try:
        async with limit:
            identity = await engine.authority.authenticate(
                connection.handshake, command.refresh.token, None, previous=session.identity
            )
    except TimeoutError:
        if not limit.expired():
            raise
        # The token may be as good as any: the client tries again, as long as the old one is (A3).
        logger.warning("authenticate took more than %s s", engine.limits.auth_timeout)
        raise Reject("authenticating took too long", code=codes.INTERNAL, retry_after=1.0) from None
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
